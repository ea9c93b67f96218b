//! Objects that are awaited without a thread: whoever awaits them is told of them through an inbox.
//!
//! ```text
//!           listen              its value comes               read
//!  (nobody) ------> listening -------------------> arrived ---------> gone
//!                      ^                              |
//!                      |   it lies in shared memory   |
//!                      +------------------------------+
//! ```
//! One inbox serves one consumer: an event loop, or a thread that runs callbacks. A loop waits for the
//! inbox's descriptor. While nobody else reads the sockets, that is ready whenever they are, and the loop
//! reads them itself: so a reply wakes the loop that wants it and no other thread, as it does with a thread
//! that waits in `get`. Of several loops one reads for all. A loop that is busy with something else leaves
//! the reading to the background thread, as everybody does (see [`super::poll`]).

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Condvar, PoisonError};

use ray_core::error::{RayError, RayResult};
use ray_core::id::ObjectId;
use ray_link::message::ToRaylet;
use ray_link::{Interest, Poller, Waker};
use rustc_hash::FxHashMap;

use super::CoreWorker;
use super::pins::{Placed, ReadyValue, store_failure};
use super::state::State;
use crate::memory_store::ListenerId;
use crate::value::{Failure, Value};

/// Tokens of an inbox's own set.
const SOCKETS_TOKEN: u64 = 0;
const WAKER_TOKEN: u64 = 1;

/// What a listener wants to hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wants {
    /// The value.
    Value,
    /// Only that there is one, or an error of its task in its place.
    Readiness,
}

/// What a listener heard of its object.
#[derive(Debug)]
pub enum Heard {
    /// Its value.
    Value(ReadyValue),
    /// It has one.
    Ready,
    /// It has none.
    Failed(ObjectId, Failure),
    /// This process has left the cluster.
    Closed(RayError),
}

/// Tables of all inboxes of a process.
#[derive(Debug, Default)]
pub(super) struct Inboxes {
    listeners: FxHashMap<ListenerId, Listener>,
    open: FxHashMap<u64, Open>,
    /// The inbox whose loop reads the sockets.
    reader: Option<u64>,
    next_listener: ListenerId,
    next_inbox: u64,
}

#[derive(Debug)]
struct Listener {
    inbox: u64,
    object_id: ObjectId,
    wants: Wants,
    /// The node was asked to pin the object by this request.
    request: Option<u64>,
    /// What the node answered.
    placed: Option<Result<Placed, Failure>>,
}

#[derive(Debug)]
struct Open {
    consumer: Arc<Consumer>,
    arrived: VecDeque<ListenerId>,
    /// The consumer was told that something arrived, and has not looked since.
    is_told: bool,
    listening: usize,
}

/// What wakes whom an inbox serves.
#[derive(Debug)]
enum Consumer {
    /// An event loop: the set holds the sockets of the process and the waker.
    Loop { set: Poller, waker: Waker },
    /// A thread in [`Inbox::wait`].
    Thread(Condvar),
}

/// Where one consumer hears of the objects that it awaits. Closed when it is dropped.
#[derive(Debug)]
pub struct Inbox {
    core: Arc<CoreWorker>,
    number: u64,
    consumer: Arc<Consumer>,
}

impl CoreWorker {
    /// An inbox for an event loop, which calls [`Inbox::read`] whenever [`Inbox::descriptor`] is readable.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub fn open_loop_inbox(self: &Arc<Self>) -> RayResult<Inbox> {
        let refused = |error| RayError::io("cannot wait for sockets in an event loop", error);
        let (set, waker) = (Poller::new().map_err(refused)?, Waker::new().map_err(refused)?);
        set.add(&self.sockets, SOCKETS_TOKEN, Interest::None).map_err(refused)?;
        set.add(&waker, WAKER_TOKEN, Interest::Read).map_err(refused)?;
        Ok(self.open_inbox(Consumer::Loop { set, waker }))
    }

    /// An inbox for a thread that waits in [`Inbox::wait`].
    pub fn open_thread_inbox(self: &Arc<Self>) -> Inbox {
        self.open_inbox(Consumer::Thread(Condvar::new()))
    }

    fn open_inbox(self: &Arc<Self>, consumer: Consumer) -> Inbox {
        let consumer = Arc::new(consumer);
        let mut state = self.lock();
        state.inboxes.next_inbox += 1;
        let number = state.inboxes.next_inbox;
        let own = Arc::clone(&consumer);
        let open = Open { consumer: own, arrived: VecDeque::new(), is_told: false, listening: 0 };
        state.inboxes.open.insert(number, open);
        Inbox { core: Arc::clone(self), number, consumer }
    }
}

impl Inbox {
    /// Readable when [`Inbox::read`] has something to do; -1 if a thread is served.
    pub fn descriptor(&self) -> RawFd {
        match &*self.consumer {
            Consumer::Loop { set, .. } => set.as_fd().as_raw_fd(),
            Consumer::Thread(_) => -1,
        }
    }

    /// Whether it is of this membership.
    pub fn belongs_to(&self, core: &Arc<CoreWorker>) -> bool {
        Arc::ptr_eq(&self.core, core)
    }

    /// Has the inbox told of this object, which has to stay referred to until then. Also returns whether
    /// something is queued that [`Inbox::flush`] would write.
    ///
    /// # Errors
    /// If this process has left the cluster.
    pub fn listen(&self, object_id: ObjectId, wants: Wants) -> RayResult<(ListenerId, bool)> {
        let mut state = self.core.lock();
        state.check_open()?;
        state.ensure_value(&self.core, object_id);
        state.settle(&self.core);
        state.inboxes.next_listener += 1;
        let id = state.inboxes.next_listener;
        let listener = Listener { inbox: self.number, object_id, wants, request: None, placed: None };
        state.inboxes.listeners.insert(id, listener);
        if let Some(open) = state.inboxes.open.get_mut(&self.number) {
            open.listening += 1;
        }
        if !state.memory.listen(object_id, id) {
            state.tell_listener(id);
        }
        state.appoint_reader(&self.core);
        self.core.stir(&mut state);
        Ok((id, state.has_queued()))
    }

    /// Nobody wants to hear of it any more. Hearing of it later changes nothing.
    pub fn forget(&self, id: ListenerId) {
        let mut state = self.core.lock();
        state.forget_listener(id);
        self.core.stir(&mut state);
    }

    /// Writes what is queued for others: the loop is about to wait for their answers.
    pub fn flush(&self) {
        let mut state = self.core.lock();
        state.flush(&self.core);
    }

    /// What arrived since the last look. Reads the sockets before, unless somebody else does.
    pub fn read(&self) -> Vec<(ListenerId, Heard)> {
        let mut state = self.core.lock();
        if state.check_open().is_ok() && state.inboxes.reader == Some(self.number) {
            if state.inboxes.open.get(&self.number).is_none_or(|open| open.listening == 0) {
                // It was woken for nothing: the sockets concern others.
                state.dismiss_reader(&self.core);
            } else {
                self.core.read_for_loop(&mut state);
            }
        }
        self.take_arrived(&mut state)
    }

    /// Waits until something arrives; empty once this process has left the cluster and all listeners know.
    pub fn wait(&self) -> Vec<(ListenerId, Heard)> {
        let Consumer::Thread(condvar) = &*self.consumer else { return Vec::new() };
        let mut state = self.core.lock();
        loop {
            let heard = self.take_arrived(&mut state);
            if !heard.is_empty() || state.check_open().is_err() {
                return heard;
            }
            state = condvar.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn take_arrived(&self, state: &mut State) -> Vec<(ListenerId, Heard)> {
        let Some(open) = state.inboxes.open.get_mut(&self.number) else { return Vec::new() };
        if std::mem::take(&mut open.is_told)
            && let Consumer::Loop { waker, .. } = &*self.consumer
        {
            waker.reset();
        }
        let arrived = std::mem::take(&mut open.arrived);
        if let Err(error) = state.check_open() {
            return self.take_all(state, &error);
        }
        let heard = arrived.into_iter().filter_map(|id| Some((id, state.hear(&self.core, id)?))).collect();
        if state.has_queued() {
            // Something has to be fetched.
            state.flush(&self.core);
        }
        heard
    }

    fn take_all(&self, state: &mut State, error: &RayError) -> Vec<(ListenerId, Heard)> {
        let own = state.inboxes.listeners.iter().filter(|(_, listener)| listener.inbox == self.number);
        let ids: Vec<ListenerId> = own.map(|(&id, _)| id).collect();
        for id in &ids {
            state.inboxes.remove(*id);
        }
        let closed = |error: &RayError| match error {
            RayError::NodeDied { node_id, cause } => {
                RayError::NodeDied { node_id: *node_id, cause: cause.clone() }
            }
            _ => RayError::ShutDown,
        };
        ids.into_iter().map(|id| (id, Heard::Closed(closed(error)))).collect()
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let mut state = self.core.lock();
        if state.inboxes.reader == Some(self.number) {
            state.inboxes.reader = None;
        }
        let own = state.inboxes.listeners.iter().filter(|(_, listener)| listener.inbox == self.number);
        for id in own.map(|(&id, _)| id).collect::<Vec<_>>() {
            state.forget_listener(id);
        }
        state.inboxes.open.remove(&self.number);
        self.core.stir(&mut state);
    }
}

impl Inboxes {
    fn remove(&mut self, id: ListenerId) -> Option<Listener> {
        let listener = self.listeners.remove(&id)?;
        if let Some(open) = self.open.get_mut(&listener.inbox) {
            open.listening -= 1;
        }
        Some(listener)
    }
}

impl State {
    /// The object of this listener has a value now, or its place in shared memory is known.
    pub(super) fn tell_listener(&mut self, id: ListenerId) {
        let Some(listener) = self.inboxes.listeners.get(&id) else { return };
        let Some(open) = self.inboxes.open.get_mut(&listener.inbox) else { return };
        open.arrived.push_back(id);
        open.tell();
    }

    /// All consumers learn that the membership has ended.
    pub(super) fn close_inboxes(&mut self) {
        self.inboxes.open.values_mut().for_each(Open::tell);
    }

    /// The node has answered a listener's request for an object of shared memory.
    pub(super) fn on_listener_placed(&mut self, id: ListenerId, placed: Result<Placed, Failure>) {
        let Some(listener) = self.inboxes.listeners.get_mut(&id) else { return };
        listener.request = None;
        listener.placed = Some(placed);
        self.tell_listener(id);
    }

    /// What a listener hears; `None` if it has to go on listening.
    fn hear(&mut self, core: &Arc<CoreWorker>, id: ListenerId) -> Option<Heard> {
        let listener = self.inboxes.listeners.get_mut(&id)?;
        let (object_id, wants) = (listener.object_id, listener.wants);
        let heard = match listener.placed.take() {
            Some(placed) => self.hear_placed(core, object_id, placed),
            None if wants == Wants::Readiness => match self.memory.get(object_id) {
                Some(Value::Failed(failure)) if failure.is_loss() => {
                    Heard::Failed(object_id, Failure::clone(failure))
                }
                // An error of its task is as good as a value.
                Some(_) => Heard::Ready,
                None => lost(object_id),
            },
            None => match self.value_at_hand(core, object_id) {
                Ok(Some(value)) => Heard::Value(value),
                Err(failure) => Heard::Failed(object_id, failure),
                Ok(None) if self.memory.get(object_id).is_none() => lost(object_id),
                Ok(None) => {
                    self.ask_pin(id, object_id);
                    return None;
                }
            },
        };
        self.inboxes.remove(id);
        Some(heard)
    }

    fn hear_placed(
        &mut self,
        core: &Arc<CoreWorker>,
        object_id: ObjectId,
        placed: Result<Placed, Failure>,
    ) -> Heard {
        let place = match placed {
            Ok(Ok(place)) => place,
            Ok(Err(error)) => return Heard::Failed(object_id, store_failure(object_id, error)),
            Err(failure) => return Heard::Failed(object_id, failure),
        };
        match core.pinned(object_id, place) {
            Ok(pinned) => {
                self.note_pinned(object_id, &pinned);
                Heard::Value(ReadyValue::Pinned(pinned))
            }
            Err(error) => Heard::Failed(object_id, Failure::System(error.chain())),
        }
    }

    fn ask_pin(&mut self, id: ListenerId, object_id: ObjectId) {
        let sought = self.sought(object_id);
        if let Some((_, failure)) = self.first_orphan(&[sought]) {
            self.on_listener_placed(id, Err(failure));
            return;
        }
        let request = self.request_pin_for(id, sought);
        if let Some(listener) = self.inboxes.listeners.get_mut(&id) {
            listener.request = Some(request);
        }
    }

    fn forget_listener(&mut self, id: ListenerId) {
        let Some(listener) = self.inboxes.remove(id) else { return };
        self.memory.forget_listener(listener.object_id, id);
        if let Some(request) = listener.request {
            self.forget_pin_request(request);
        }
        if let Some(Ok(Ok(_))) = listener.placed {
            self.tell_node(&ToRaylet::ReleaseObject { object_id: listener.object_id, count: 1 });
        }
    }

    /// Lets the loop of an inbox read the sockets, if one waits and nobody else reads them.
    pub(super) fn appoint_reader(&mut self, core: &CoreWorker) {
        if self.polling || self.inboxes.reader.is_some() || self.inboxes.open.is_empty() {
            return;
        }
        let waits = |(_, open): &(&u64, &Open)| open.listening > 0 && open.set().is_some();
        if let Some((&number, open)) = self.inboxes.open.iter().find(waits)
            && open.watch_sockets(&core.sockets, Interest::Read)
        {
            self.inboxes.reader = Some(number);
        }
    }

    /// Somebody else reads the sockets from now on.
    pub(super) fn dismiss_reader(&mut self, core: &CoreWorker) {
        if let Some(number) = self.inboxes.reader.take()
            && let Some(open) = self.inboxes.open.get(&number)
        {
            open.watch_sockets(&core.sockets, Interest::None);
        }
    }
}

impl Open {
    fn set(&self) -> Option<&Poller> {
        match &*self.consumer {
            Consumer::Loop { set, .. } => Some(set),
            Consumer::Thread(_) => None,
        }
    }

    fn watch_sockets(&self, sockets: &Poller, interest: Interest) -> bool {
        self.set().is_some_and(|set| set.modify(sockets, SOCKETS_TOKEN, interest).is_ok())
    }

    fn tell(&mut self) {
        if std::mem::replace(&mut self.is_told, true) {
            return;
        }
        match &*self.consumer {
            Consumer::Loop { waker, .. } => waker.wake(),
            Consumer::Thread(condvar) => condvar.notify_all(),
        }
    }
}

/// Its last reference was dropped while it was listened for.
fn lost(object_id: ObjectId) -> Heard {
    let cause = "nothing refers to it any more".to_owned();
    Heard::Failed(object_id, Failure::Freed { object_id, cause })
}
