//! Items of generator tasks: the side of the worker that runs them.
//!
//! An item goes to the caller by the way of replies, as soon as it is there and with no answer to wait for:
//! many of them in one write if they come fast. The producer pauses only
//! * at its limit of unread items, until the caller tells that some were read;
//! * while an item waits for grants of the references in it, so that items stay in order;
//! * while the caller does not take what was sent, so that not all of it piles up here.
//!
//! It stops when its caller wants no more, or is gone.

use std::sync::Arc;

use ray_core::error::RayResult;
use ray_core::id::{NodeId, ObjectId, TaskId, WorkerId};
use rustc_hash::FxHashMap;

use super::cancellation::Cancellation;
use super::execution::Task;
use super::grants::Then;
use super::poll::{Interrupted, Patience};
use super::running::RunningKey;
use super::state::State;
use super::tasks::check_size;
use super::{CoreWorker, Notification};
use crate::memory_store::WaiterId;
use crate::object_ref_stream::item_id;
use crate::peer_message::{Kind, Returned, StreamItem};
use crate::reference_counter::Owner;
use crate::value::{Failure, Value};

/// A producer pauses when more than this is sent to its caller and not written, in bytes.
const MAX_UNWRITTEN: usize = 4 << 20;

/// Generator tasks that run in this process.
#[derive(Debug, Default)]
pub(super) struct Producers {
    running: FxHashMap<TaskId, Producer>,
}

#[derive(Debug)]
struct Producer {
    caller: WorkerId,
    limit: u64,
    actor_limit: u64,
    /// How many items were sent.
    sent: u64,
    /// How many of them are known to be read.
    read: u64,
    /// Its last item waits for grants.
    held: bool,
    stopped: bool,
    waiters: Vec<WaiterId>,
    /// The call in an event loop that is to be told when it may go on.
    awaited: Option<RunningKey>,
}

impl Producer {
    const fn unread(&self) -> u64 {
        self.sent.saturating_sub(self.read)
    }
}

/// Whether a producer goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// It may make its next item.
    Go,
    /// It has to wait first: [`ItemSender::wait`].
    Wait,
    /// Nobody wants further items.
    Stop,
}

/// Sends the items of a running generator task.
#[derive(Debug)]
pub struct ItemSender {
    core: Arc<CoreWorker>,
    task_id: TaskId,
    attempt: u32,
    caller: WorkerId,
    /// Number of the next item.
    next: u64,
}

impl ItemSender {
    /// For this task, if it is a generator task; made before its code runs, and kept until it has ended.
    pub fn new(core: &Arc<CoreWorker>, task: &Task<'_>) -> Option<Self> {
        let spec = task.header.generator?;
        let (task_id, attempt, caller) = (task.header.task_id, task.header.attempt, task.caller);
        let producer = Producer {
            caller,
            limit: spec.limit,
            actor_limit: spec.actor_limit,
            sent: 0,
            read: 0,
            held: false,
            stopped: false,
            waiters: Vec::new(),
            awaited: None,
        };
        core.lock().producers.running.insert(task_id, producer);
        Some(Self { core: Arc::clone(core), task_id, attempt, caller, next: 0 })
    }

    /// The object that the next item is.
    pub fn next_id(&self) -> ObjectId {
        item_id(self.task_id, self.next)
    }

    /// The objects of all items so far.
    pub fn ids(&self) -> impl Iterator<Item = ObjectId> + use<> {
        let task_id = self.task_id;
        (0..self.next).map(move |index| item_id(task_id, index))
    }

    /// Sends the next item; references in it have a handle each, which is dropped.
    ///
    /// # Errors
    /// If it is too large for a message.
    pub fn send(&mut self, item: Returned) -> Result<Flow, Failure> {
        let core = &self.core;
        let contained = item.contained.clone();
        let is_plain = contained.is_empty() && !matches!(item.value, Value::Failed(_));
        let item = StreamItem { task_id: self.task_id, attempt: self.attempt, index: self.next, item };
        let to = Owner { worker_id: self.caller, node_id: NodeId::nil() };
        self.next += 1;
        if is_plain {
            let mut state = core.lock();
            state.count_item(self.task_id);
            state.send(core, to, Kind::StreamItem, |out| {
                item.write(out).expect("all but a failure can be encoded");
            });
            core.stir(&mut state);
            return Ok(state.flow(self.task_id));
        }
        let mut payload = Vec::new();
        let written = item.write(&mut payload).map_err(|error| Failure::System(error.chain()));
        let limit = core.config.max_frame_bytes as usize;
        let fits = written.and_then(|()| check_size(payload.len(), limit, || "an item".to_owned()));
        if let Err(failure) = fits {
            contained.iter().for_each(|&(inner, _)| core.drop_reference(inner));
            return Err(failure);
        }
        let mut state = core.lock();
        state.count_item(self.task_id);
        state.hold_item(self.task_id);
        let send = Then::SendItem { task_id: self.task_id, to, payload };
        state.grant_then(core, contained, self.caller, send);
        core.stir(&mut state);
        Ok(state.flow(self.task_id))
    }

    /// Whether the task may go on.
    pub fn flow(&self) -> Flow {
        self.core.lock().flow(self.task_id)
    }

    /// Whether the task may go on. If it has to wait, [`Notification::ResumeCall`] tells when to ask again.
    pub fn flow_of_call(&self, call: RunningKey) -> Flow {
        let mut state = self.core.lock();
        let flow = state.flow(self.task_id);
        if let Some(producer) = state.producers.running.get_mut(&self.task_id) {
            producer.awaited = (flow == Flow::Wait).then_some(call);
        }
        flow
    }

    /// Waits until the task may go on, or has to stop.
    ///
    /// # Errors
    /// What ended this process's membership. What interrupted the wait is known to who said so.
    pub fn wait(&self, interrupted: Interrupted<'_>) -> RayResult<Flow> {
        self.wait_until(|state| state.flow(self.task_id) != Flow::Wait, interrupted)?;
        Ok(self.flow())
    }

    /// Whether the last item waits for grants of the references in it.
    pub fn is_held(&self) -> bool {
        self.core.lock().is_held(self.task_id)
    }

    /// Waits until the last item is on its way: what follows must not be there before it.
    ///
    /// # Errors
    /// As [`ItemSender::wait`].
    pub fn wait_sent(&self, interrupted: Interrupted<'_>) -> RayResult<()> {
        self.wait_until(|state| !state.is_held(self.task_id), interrupted)
    }

    fn wait_until(&self, is_over: impl Fn(&State) -> bool, interrupted: Interrupted<'_>) -> RayResult<()> {
        let core = &*self.core;
        let mut patience = Patience::until(None, interrupted);
        let mut state = core.lock();
        loop {
            if is_over(&state) {
                return Ok(());
            }
            let waiter = state.add_waiter(1);
            if let Some(producer) = state.producers.running.get_mut(&self.task_id) {
                producer.waiters.push(waiter);
            }
            let (woken, end) = core.wait_for(state, waiter, &mut patience);
            state = woken;
            if let Some(producer) = state.producers.running.get_mut(&self.task_id) {
                producer.waiters.retain(|&other| other != waiter);
            }
            core.refuse(&state, end, "the reader of a generator task", std::time::Duration::ZERO)?;
        }
    }
}

impl Drop for ItemSender {
    fn drop(&mut self) {
        let mut state = self.core.lock();
        if state.producers.running.remove(&self.task_id).is_some_and(|producer| producer.actor_limit > 0) {
            state.wake_producers(|_| true);
            self.core.nudge_poller(&state);
            self.core.stir(&mut state);
        }
    }
}

impl State {
    fn count_item(&mut self, task_id: TaskId) {
        if let Some(producer) = self.producers.running.get_mut(&task_id) {
            producer.sent += 1;
        }
    }

    fn hold_item(&mut self, task_id: TaskId) {
        if let Some(producer) = self.producers.running.get_mut(&task_id) {
            producer.held = true;
        }
    }

    fn is_held(&self, task_id: TaskId) -> bool {
        self.producers.running.get(&task_id).is_some_and(|producer| producer.held && !producer.stopped)
    }

    /// All references of an item are granted, and it is on its way.
    pub(super) fn on_item_sent(&mut self, task_id: TaskId) {
        if let Some(producer) = self.producers.running.get_mut(&task_id) {
            producer.held = false;
        }
        self.wake_producers(|(other, _)| **other == task_id);
    }

    fn flow(&self, task_id: TaskId) -> Flow {
        let Some(producer) = self.producers.running.get(&task_id) else { return Flow::Stop };
        if producer.stopped {
            return Flow::Stop;
        }
        let at_limit = producer.limit > 0 && producer.unread() >= producer.limit;
        let waits = at_limit
            || producer.held
            || self.is_actor_at_limit(producer.actor_limit)
            || self.queued_for(producer.caller) > MAX_UNWRITTEN;
        if waits { Flow::Wait } else { Flow::Go }
    }

    fn is_actor_at_limit(&self, limit: u64) -> bool {
        limit > 0 && self.producers.running.values().map(Producer::unread).sum::<u64>() >= limit
    }

    /// Has producers look whether they may go on.
    fn wake_producers(&mut self, which: impl Fn(&(&TaskId, &mut Producer)) -> bool) {
        let (mut woken, mut resumed) = (Vec::new(), Vec::new());
        for (_, producer) in self.producers.running.iter_mut().filter(which) {
            woken.append(&mut producer.waiters);
            resumed.extend(producer.awaited.take());
        }
        woken.into_iter().for_each(|waiter| self.tell_waiter(waiter));
        resumed.into_iter().for_each(|call| self.notify(Notification::ResumeCall(call)));
    }

    /// The caller of a generator task has read some of its items.
    pub(super) fn on_stream_read(&mut self, from: WorkerId, task_id: TaskId, read: u64) {
        let Some(producer) = self.producers.running.get_mut(&task_id) else { return };
        if producer.caller != from {
            return;
        }
        producer.read = producer.read.max(read);
        let everyone = producer.actor_limit > 0;
        self.wake_producers(|(other, _)| everyone || **other == task_id);
    }

    /// The caller of a generator task wants no more of its items.
    pub(super) fn on_stop_stream(&mut self, core: &CoreWorker, from: Owner, task_id: TaskId) {
        if let Some(producer) = self.producers.running.get_mut(&task_id) {
            producer.stopped = true;
        } else if !self.is_running(task_id) {
            // It has not begun, or has ended.
            self.on_cancel(core, from, task_id, Cancellation { force: false, recursive: true });
        }
        self.wake_producers(|(other, _)| **other == task_id);
    }

    fn is_running(&self, task_id: TaskId) -> bool {
        self.execution.running.find(task_id).is_some()
    }

    /// Something of what was sent to this process is written.
    pub(super) fn on_peer_drained(&mut self, worker_id: WorkerId) {
        if !self.producers.running.is_empty() && self.queued_for(worker_id) <= MAX_UNWRITTEN {
            self.wake_producers(|(_, producer)| producer.caller == worker_id);
        }
    }

    /// Nobody reads what is produced for this process any more.
    pub(super) fn on_stream_owner_lost(&mut self, worker_id: WorkerId) {
        for producer in self.producers.running.values_mut().filter(|producer| producer.caller == worker_id) {
            producer.stopped = true;
        }
        self.wake_producers(|(_, producer)| producer.caller == worker_id);
    }
}
