//! Items of generator tasks: the side of the process that submitted them, and reads.
//!
//! What is where is decided by [`ObjectRefStream`]. Here its items are objects: the stream holds one handle of
//! each that came and is unread, and the reader gets it. Each item is in the memory of this process if it is
//! small, and in shared memory otherwise, from where the node spills it if room is needed: a producer
//! without a limit that is faster than its consumer takes room for the small ones only.

use std::sync::MutexGuard;
use std::time::Duration;

use ray_core::error::{RayError, RayResult};
use ray_core::id::{NodeId, ObjectId, TaskId, WorkerId};
use ray_core::serialize::Plain;
use rustc_hash::FxHashMap;

use super::CoreWorker;
use super::poll::{End, Interrupted, Patience};
use super::state::State;
use crate::memory_store::WaiterId;
use crate::object_ref_stream::{Arrival, Finished, Next, ObjectRefStream, item_id};
use crate::peer_message::{GeneratorSpec, PeerMessage, Returned, StreamItem};
use crate::reference_counter::Owner;
use crate::task_table::{Call, TaskState};
use crate::value::{Contained, Failure, Value};

/// The streams of a process.
#[derive(Debug, Default)]
pub(super) struct Streams {
    open: FxHashMap<TaskId, Stream>,
}

#[derive(Debug)]
struct Stream {
    items: ObjectRefStream,
    /// Who sent the last item.
    producer: Option<Owner>,
    /// Nobody reads it: the task's return value refers to its items.
    is_dynamic: bool,
    /// Threads that wait for the next item.
    waiters: Vec<WaiterId>,
}

/// What reading the next item gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextItem {
    /// An item, with one handle, which is the reader's.
    Item {
        /// The object.
        object_id: ObjectId,
        /// Its place was given out before: others may refer to it.
        is_copy: bool,
    },
    /// Nothing came in time.
    NotYet,
    /// Nothing more comes.
    End,
}

/// The place of an item, with one handle, which is the asker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamPlace {
    /// The object that is or will be there; it fails with `EndOfStream` if the end comes first.
    pub object_id: ObjectId,
    /// Whether it is there, or will never be.
    pub is_ready: bool,
}

impl CoreWorker {
    /// Reads the next item of a generator task, and waits for it.
    ///
    /// # Errors
    /// What ended this process's membership. What interrupted the wait is known to who said so.
    pub fn next_item(
        &self,
        task_id: TaskId,
        timeout: Option<Duration>,
        interrupted: Interrupted<'_>,
    ) -> RayResult<NextItem> {
        let mut patience = Patience::until(timeout, interrupted);
        let mut state = self.lock();
        state.check_open()?;
        loop {
            let read = self.read_item(&mut state, task_id);
            if read != NextItem::NotYet || timeout == Some(Duration::ZERO) {
                return Ok(read);
            }
            let (woken, end) = self.await_item(state, task_id, &mut patience);
            state = woken;
            match end {
                End::Done => {}
                End::Timeout => return Ok(self.read_item(&mut state, task_id)),
                End::Interrupted | End::Closed => {
                    self.refuse(&state, end, "an item of a generator task", timeout.unwrap_or_default())?;
                }
            }
        }
    }

    fn await_item<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        task_id: TaskId,
        patience: &mut Patience<'_>,
    ) -> (MutexGuard<'a, State>, End) {
        let waiter = state.add_waiter(1);
        if let Some(stream) = state.streams.open.get_mut(&task_id) {
            stream.waiters.push(waiter);
        }
        let blocked = state.on_block(self);
        let (mut state, end) = self.wait_for(state, waiter, patience);
        if blocked {
            state.on_unblock(self);
        }
        if let Some(stream) = state.streams.open.get_mut(&task_id) {
            stream.waiters.retain(|&other| other != waiter);
        }
        (state, end)
    }

    fn read_item(&self, state: &mut State, task_id: TaskId) -> NextItem {
        let Some(stream) = state.streams.open.get_mut(&task_id) else { return NextItem::End };
        match stream.items.take() {
            Next::NotYet => NextItem::NotYet,
            Next::End => NextItem::End,
            Next::Item(index) => {
                let is_copy = stream.items.was_peeked(index);
                if state.tell_producer(self, task_id) {
                    self.stir(state);
                }
                NextItem::Item { object_id: item_id(task_id, index), is_copy }
            }
        }
    }

    /// Reads the next item of a generator task if it is there.
    ///
    /// # Errors
    /// What ended this process's membership.
    pub fn try_next_item(&self, task_id: TaskId) -> RayResult<NextItem> {
        let mut state = self.lock();
        state.check_open()?;
        Ok(self.read_item(&mut state, task_id))
    }

    /// The places of the next items, whether they are there or not; nothing is read.
    ///
    /// # Errors
    /// What ended this process's membership.
    pub fn peek_items(&self, task_id: TaskId, count: u64) -> RayResult<Vec<StreamPlace>> {
        let mut state = self.lock();
        state.check_open()?;
        let Some(stream) = state.streams.open.get_mut(&task_id) else { return Err(no_stream(task_id)) };
        let places = stream.items.peek(count);
        let ready = |index| (index, stream.items.is_ready(index), stream.items.is_behind(index));
        let places: Vec<_> = places.map(ready).collect();
        let end = state.end_of_stream(task_id);
        let place = |(index, is_ready, is_behind)| {
            let object_id = item_id(task_id, index);
            state.references.add_owned(object_id);
            if is_behind && state.memory.get(object_id).is_none() {
                state.set_value(object_id, end.clone());
            }
            StreamPlace { object_id, is_ready }
        };
        let places = places.into_iter().map(place).collect();
        self.stir(&mut state);
        Ok(places)
    }

    /// Passes over the next items, as if they were read and dropped. Returns false, and does nothing, if
    /// one of them is not there yet and may come.
    ///
    /// # Errors
    /// What ended this process's membership.
    pub fn consume_items(&self, task_id: TaskId, count: u64) -> RayResult<bool> {
        let mut state = self.lock();
        state.check_open()?;
        let Some(stream) = state.streams.open.get_mut(&task_id) else { return Err(no_stream(task_id)) };
        let Ok(items) = stream.items.consume(count) else { return Ok(false) };
        state.drop_items(self, task_id, items);
        state.tell_producer(self, task_id);
        self.stir(&mut state);
        Ok(true)
    }

    /// Whether all items of a generator task were read, and no more come.
    pub fn is_stream_exhausted(&self, task_id: TaskId) -> bool {
        let state = self.lock();
        state.streams.open.get(&task_id).is_none_or(|stream| stream.items.is_exhausted())
    }

    /// Whether an object has failed.
    pub fn has_failed(&self, object_id: ObjectId) -> bool {
        matches!(self.lock().memory.get(object_id), Some(Value::Failed(_)))
    }

    /// Nobody reads the items of this generator task any more: those that are unread are dropped, and those
    /// that come. Once nothing refers to its return value either it is cancelled if it has not begun, and
    /// stops at its next item if it runs. With `is_last`, who says so has the only handle of that and drops it
    /// next.
    pub fn drop_stream(&self, task_id: TaskId, is_last: bool) {
        let mut state = self.lock();
        if state.check_open().is_err() {
            return;
        }
        let Some(stream) = state.streams.open.get_mut(&task_id) else { return };
        let unread = stream.items.drop_consumer();
        state.drop_items(self, task_id, unread);
        if is_last && state.references.has_one_handle(ObjectId::for_return(task_id, 0)) {
            state.stop_producer(self, task_id);
        } else {
            state.tell_producer(self, task_id);
        }
        state.forget_stream(task_id);
        state.settle(self);
        self.stir(&mut state);
    }
}

fn no_stream(task_id: TaskId) -> RayError {
    RayError::InvalidArgument(format!("task {task_id} has no stream of items here"))
}

impl State {
    /// A generator task is submitted.
    pub(super) fn open_stream(&mut self, task_id: TaskId, spec: &GeneratorSpec) {
        // A limit of the actor holds for all its callers: it has to hear of each item that is read.
        let limit = if spec.actor_limit > 0 { 1 } else { spec.limit };
        let items = ObjectRefStream::new(limit);
        let stream = Stream { items, producer: None, is_dynamic: spec.is_dynamic, waiters: Vec::new() };
        self.streams.open.insert(task_id, stream);
    }

    /// An item came.
    pub(super) fn on_stream_item(&mut self, core: &CoreWorker, from: WorkerId, item: StreamItem) {
        let StreamItem { task_id, attempt, index, item } = item;
        let object_id = item_id(task_id, index);
        let current = self.tasks.get(task_id).map(|task| task.attempt);
        let Some(stream) = self.streams.open.get_mut(&task_id) else {
            // Nobody wants it: what was made for it goes.
            self.take_result(core, object_id, item);
            return;
        };
        let arrival = stream.items.on_item(attempt, current, index);
        if arrival == Arrival::Late {
            self.give_back_contained(core, &item.contained);
            return;
        }
        stream.producer = Some(Owner { worker_id: from, node_id: NodeId::nil() });
        if arrival == Arrival::New && !stream.items.is_dropped() {
            self.references.add_owned(object_id);
        }
        self.take_result(core, object_id, item);
        self.wake_readers(task_id);
        self.tell_producer(core, task_id);
    }

    /// What a generator task raised is its last item, and the task itself has ended well.
    pub(super) fn end_with_exception(
        &mut self,
        core: &CoreWorker,
        task_id: TaskId,
        outcome: Result<Vec<Returned>, Failure>,
    ) -> Result<Vec<Returned>, Failure> {
        let Err(Failure::Raised(_)) = &outcome else { return outcome };
        let Some(stream) = self.streams.open.get_mut(&task_id).filter(|stream| !stream.is_dynamic) else {
            return outcome;
        };
        let object_id = item_id(task_id, stream.items.append());
        if !stream.items.is_dropped() {
            self.references.add_owned(object_id);
        }
        outcome.or_else(|failure| {
            self.take_value(core, object_id, failure.into(), &[]);
            Ok(vec![nothing_returned()])
        })
    }

    /// A generator task has ended, and its return value is there.
    pub(super) fn finish_stream(&mut self, core: &CoreWorker, task_id: TaskId) {
        let Some(stream) = self.streams.open.get_mut(&task_id) else { return };
        let (dropped, is_dynamic) = (stream.items.is_dropped(), stream.is_dynamic);
        let Finished { lost, behind } = stream.items.finish();
        for object_id in lost.into_iter().map(|index| item_id(task_id, index)) {
            if !dropped {
                self.references.add_owned(object_id);
            }
            let cause = "its task ended without it, though with later items".to_owned();
            self.take_value(core, object_id, Failure::Lost { object_id, cause }.into(), &[]);
        }
        let end = self.end_of_stream(task_id);
        for index in behind {
            self.take_value(core, item_id(task_id, index), end.clone(), &[]);
        }
        self.wake_readers(task_id);
        if is_dynamic && let Some(stream) = self.streams.open.get_mut(&task_id) {
            // From here on the return value keeps them.
            let items = stream.items.drop_consumer();
            self.drop_items(core, task_id, items);
        }
        self.forget_stream(task_id);
    }

    /// What is behind the last item: the failure of the task, if it failed.
    fn end_of_stream(&self, task_id: TaskId) -> Value {
        match self.memory.get(ObjectId::for_return(task_id, 0)) {
            Some(Value::Failed(failure)) => Value::Failed(failure.clone()),
            Some(Value::Inline(_) | Value::Stored { .. }) | None => Failure::EndOfStream.into(),
        }
    }

    fn drop_items(&mut self, core: &CoreWorker, task_id: TaskId, items: impl IntoIterator<Item = u64>) {
        let mut effects = Vec::new();
        for index in items {
            self.references.remove_local(item_id(task_id, index), &mut effects);
        }
        self.apply_reference_effects(core, effects);
    }

    fn forget_stream(&mut self, task_id: TaskId) {
        let stream = self.streams.open.get(&task_id);
        if stream.is_some_and(|stream| stream.items.is_dropped() && stream.items.is_ended()) {
            self.streams.open.remove(&task_id);
        }
    }

    fn wake_readers(&mut self, task_id: TaskId) {
        let Some(stream) = self.streams.open.get_mut(&task_id) else { return };
        for waiter in std::mem::take(&mut stream.waiters) {
            self.tell_waiter(waiter);
        }
    }

    /// Tells the producer what was read, if it has to know by now. Returns whether it was told.
    fn tell_producer(&mut self, core: &CoreWorker, task_id: TaskId) -> bool {
        let Some(stream) = self.streams.open.get_mut(&task_id) else { return false };
        match (stream.producer, stream.items.due_ack()) {
            (Some(to), Some(read)) => self.tell(core, to, &PeerMessage::StreamRead { task_id, read }),
            (Some(_) | None, _) => false,
        }
    }

    /// Nothing refers to this object of ours any more: a generator task whose return value it would be, and
    /// whose items nobody reads, has no reason to go on.
    pub(super) fn on_unreferenced(&mut self, core: &CoreWorker, object_id: ObjectId) {
        if self.streams.open.is_empty() || object_id != ObjectId::for_return(object_id.task_id(), 0) {
            return;
        }
        let task_id = object_id.task_id();
        let Some(stream) = self.streams.open.get(&task_id) else { return };
        let is_unwanted = stream.items.is_dropped() || stream.is_dynamic;
        if is_unwanted && self.tasks.get(task_id).is_some_and(|task| !task.cancelled) {
            self.stop_producer(core, task_id);
        }
    }

    fn stop_producer(&mut self, core: &CoreWorker, task_id: TaskId) {
        match self.tasks.cancel(task_id) {
            None => {}
            Some(TaskState::Waiting { .. } | TaskState::Queued) => self.drop_unsent(core, task_id),
            Some(TaskState::Sent) => {
                if let Some(to) = self.worker_of(task_id) {
                    self.tell(core, to, &PeerMessage::StopStream { task_id });
                }
            }
        }
    }

    /// The process that this task was sent to.
    fn worker_of(&self, task_id: TaskId) -> Option<Owner> {
        match self.tasks.get(task_id)?.call {
            Call::Function { .. } => {
                let lease_id = self.dispatcher.lease_of(task_id)?;
                self.shared.leases.get(&lease_id).copied()
            }
            Call::Method { actor_id, .. } => self.address_of(actor_id),
            Call::Create { .. } => None,
        }
    }

    /// References that came with something that is not wanted.
    fn give_back_contained(&mut self, core: &CoreWorker, contained: &[Contained]) {
        let handles = self.hold_contained(contained);
        self.drop_handles(core, handles);
    }
}

/// What a generator task returns: `None`.
fn nothing_returned() -> Returned {
    let mut none = Vec::new();
    Plain::None.write(&mut none);
    Returned { value: Value::Inline(none.into()), contained: Vec::new() }
}
