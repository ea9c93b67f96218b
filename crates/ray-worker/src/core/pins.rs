//! Objects in shared memory: pinned by the node for as long as someone here reads them.
//!
//! ```text
//!            granted by the node       last reader gone        read again
//!  (asked) ----------------------> alive ------------> idle ------------> alive
//!                                    |                   | for IDLE_FOR, or no reference is left
//!                                    | no reference left v
//!                                    +-------------> released
//! ```
//! A pin that nobody needs any more is kept for a moment, as long as this process refers to the object or
//! has tasks queued, which may have the same argument: who reads an object again and again asks the node
//! once.
//!
//! An object that another node has is pulled by the node and read as any other. `wait` has it fetched without reading
//! it: such a fetch goes on when the wait is over, so that who looks again and again gets it in the end.

use std::sync::{Arc, MutexGuard, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ray_core::error::RayResult;
use ray_core::id::{NodeId, ObjectId, WorkerId};
use ray_link::message::{Elsewhere, StoreError, ToRaylet};
use ray_object_store::shm::ShmSlice;
use rustc_hash::{FxHashMap, FxHashSet};

use super::CoreWorker;
use super::objects::Got;
use super::poll::Patience;
use super::state::{State, now};
use crate::memory_store::{ListenerId, WaiterId};
use crate::value::{Failure, Value};

/// How long a pin is kept after its last reader. Short, for pinned memory cannot be spilled.
const IDLE_FOR: Duration = Duration::from_millis(20);

/// An object of shared memory that stays where it is as long as this lives.
#[derive(Debug)]
pub struct Pinned {
    core: Arc<CoreWorker>,
    object_id: ObjectId,
    /// Offset and size.
    place: (u64, u64),
    /// Until it is dropped.
    slice: Option<ShmSlice>,
}

impl Pinned {
    /// The object's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.slice.as_deref().unwrap_or_default()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // First, for once the node knows, someone of this process may be told to write there.
        self.slice = None;
        let mut state = self.core.lock();
        if state.check_open().is_ok() {
            state.on_unread(self.object_id, self.place, now());
            self.core.stir(&mut state);
        }
    }
}

/// A value that can be read now.
#[derive(Debug, Clone)]
pub enum ReadyValue {
    /// A small one.
    Inline(Bytes),
    /// A large one, where it lies in shared memory.
    Pinned(Arc<Pinned>),
}

impl ReadyValue {
    /// The encoded value.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Inline(bytes) => bytes,
            Self::Pinned(pinned) => pinned.bytes(),
        }
    }
}

/// What this process reads of shared memory, and has asked for.
#[derive(Debug, Default)]
pub(super) struct Pins {
    /// Objects that are read, as long as they are.
    alive: FxHashMap<ObjectId, Weak<Pinned>>,
    /// Objects that are read no longer, but may be again.
    idle: FxHashMap<ObjectId, Idle>,
    requests: FxHashMap<u64, PinRequest>,
    /// Objects of other nodes that are fetched for `wait`.
    fetches: FxHashMap<ObjectId, Fetch>,
    /// Objects of other nodes that were fetched for `wait`, or cannot be: their reader is told why.
    fetched: FxHashSet<ObjectId>,
}

/// A request for an object that nobody reads yet.
#[derive(Debug)]
struct Fetch {
    request: u64,
    /// Who waits for it right now.
    waiters: Vec<WaiterId>,
}

/// An object of shared memory that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sought {
    pub(super) object_id: ObjectId,
    /// Its owner, as far as known.
    pub(super) owner: Option<WorkerId>,
    /// The node that has it, as far as known, and its size.
    pub(super) stored: Option<(NodeId, u64)>,
}

/// A pin without a reader.
#[derive(Debug)]
struct Idle {
    place: (u64, u64),
    since: Instant,
}

impl Pins {
    /// Whether someone here reads the object where it lies.
    pub(super) fn is_read(&self, object_id: ObjectId) -> bool {
        self.alive.get(&object_id).is_some_and(|pin| pin.strong_count() > 0)
    }

    /// When [`State::release_idle_pins`] has something to do next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.idle.values().map(|idle| idle.since + IDLE_FOR).min()
    }
}

/// A request for objects of shared memory.
#[derive(Debug)]
struct PinRequest {
    who: Who,
    /// Not answered yet.
    missing: Vec<Sought>,
    got: Vec<(ObjectId, Placed)>,
}

#[derive(Debug, Clone, Copy)]
enum Who {
    Thread(WaiterId),
    Listener(ListenerId),
    /// `wait`, as often as it is called.
    Fetch,
}

/// Offset and size of an object in shared memory, or why it is not there.
pub(super) type Placed = Result<(u64, u64), StoreError>;

impl CoreWorker {
    /// Reads values that are all there, pinning those in shared memory.
    pub(super) fn read_values<'a>(
        self: &'a Arc<Self>,
        mut state: MutexGuard<'a, State>,
        object_ids: &[ObjectId],
        sought: impl Fn(&State, ObjectId) -> Sought,
        timeout: Option<Duration>,
        patience: &mut Patience<'_>,
    ) -> RayResult<Got<Vec<ReadyValue>>> {
        let mut values: Vec<Option<ReadyValue>> = Vec::with_capacity(object_ids.len());
        let mut missing = Vec::new();
        for &object_id in object_ids {
            let value = match state.value_at_hand(self, object_id) {
                Ok(value) => value,
                // What is read here is let go without the lock.
                Err(failure) => {
                    drop(state);
                    return Ok(Err((object_id, failure)));
                }
            };
            if value.is_none() {
                missing.push(sought(&state, object_id));
            }
            values.push(value);
        }
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() {
            drop(state);
            return Ok(Ok(values.into_iter().flatten().collect()));
        }
        let pinned = match self.pin(state, missing, timeout, patience)? {
            Ok(pinned) => pinned,
            Err(failed) => return Ok(Err(failed)),
        };
        let value = |(value, object_id): (Option<ReadyValue>, &ObjectId)| {
            value.or_else(|| pinned.get(object_id).cloned().map(ReadyValue::Pinned))
        };
        Ok(Ok(values.into_iter().zip(object_ids).filter_map(value).collect()))
    }

    /// Has the node pin objects of its shared memory for this process.
    fn pin<'a>(
        self: &'a Arc<Self>,
        mut state: MutexGuard<'a, State>,
        missing: Vec<Sought>,
        timeout: Option<Duration>,
        patience: &mut Patience<'_>,
    ) -> RayResult<Got<FxHashMap<ObjectId, Arc<Pinned>>>> {
        if let Some(failed) = state.first_orphan(&missing) {
            return Ok(Err(failed));
        }
        let request = state.next_request();
        let waiter = state.add_waiter(missing.len());
        state.request_pins(request, Who::Thread(waiter), missing);
        let (mut state, end) = self.wait_for(state, waiter, patience);
        let asked = state.pins.requests.remove(&request).expect("it is removed here only");
        if !asked.missing.is_empty() {
            state.tell_node(&ToRaylet::CancelGet { request });
            self.stir(&mut state);
        }
        let orphan = state.first_orphan(&asked.missing);
        let ended = self.refuse(&state, end, "an object of shared memory", timeout.unwrap_or_default());
        drop(state);
        // Made without the lock, for dropping one takes it.
        let mut pinned = FxHashMap::default();
        let mut failed = orphan;
        for (object_id, result) in asked.got {
            match result {
                Ok((offset, size)) => {
                    pinned.insert(object_id, self.pinned(object_id, (offset, size))?);
                }
                Err(error) => failed = Some((object_id, store_failure(object_id, error))),
            }
        }
        ended?;
        if let Some(failed) = failed {
            return Ok(Err(failed));
        }
        let mut state = self.lock();
        for (&object_id, pin) in &pinned {
            state.pins.alive.insert(object_id, Arc::downgrade(pin));
        }
        Ok(Ok(pinned))
    }

    /// Reads what the node has pinned there.
    pub(super) fn pinned(self: &Arc<Self>, object_id: ObjectId, place: (u64, u64)) -> RayResult<Arc<Pinned>> {
        let slice = Some(self.region.slice(place.0, place.1)?);
        Ok(Arc::new(Pinned { core: Arc::clone(self), object_id, place, slice }))
    }

    /// The values of arguments that lie in shared memory.
    pub(super) fn pin_args(self: &Arc<Self>, args: &[Sought]) -> Result<Vec<ReadyValue>, Failure> {
        let mut never = || false;
        let mut patience = Patience::endless(&mut never);
        let object_ids: Vec<ObjectId> = args.iter().map(|sought| sought.object_id).collect();
        let sought = |_: &State, wanted| {
            *args.iter().find(|sought| sought.object_id == wanted).expect("only arguments are read")
        };
        let read = self.read_values(self.lock(), &object_ids, sought, None, &mut patience);
        read.map_err(|error| Failure::System(error.chain()))?.map_err(|(_, failure)| failure)
    }
}

impl State {
    /// A value that is here: a small one, or a large one that is pinned already. `None` if it has to be
    /// asked for, and is in shared memory as far as known.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn value_at_hand(
        &mut self,
        core: &Arc<CoreWorker>,
        object_id: ObjectId,
    ) -> Result<Option<ReadyValue>, Failure> {
        match self.memory.get(object_id) {
            Some(Value::Inline(bytes)) => return Ok(Some(ReadyValue::Inline(bytes.clone()))),
            Some(Value::Failed(failure)) => {
                let failure = Failure::clone(failure);
                self.unseen_failures.remove(&object_id.task_id());
                return Err(failure);
            }
            Some(Value::Stored { .. }) | None => {}
        }
        if let Some(pinned) = self.pins.alive.get(&object_id).and_then(Weak::upgrade) {
            return Ok(Some(ReadyValue::Pinned(pinned)));
        }
        let Some(idle) = self.pins.idle.remove(&object_id) else { return Ok(None) };
        // The node said once that something lies there, so it does.
        let pinned = core.pinned(object_id, idle.place).expect("a pinned object is inside the memory");
        self.pins.alive.insert(object_id, Arc::downgrade(&pinned));
        Ok(Some(ReadyValue::Pinned(pinned)))
    }

    /// A reader of an object is gone.
    fn on_unread(&mut self, object_id: ObjectId, place: (u64, u64), since: Instant) {
        let last = self.pins.alive.get(&object_id).is_some_and(|pin| pin.strong_count() == 0);
        if last {
            self.pins.alive.remove(&object_id);
            return self.keep_idle(object_id, place, since);
        }
        self.tell_node(&ToRaylet::ReleaseObject { object_id, count: 1 });
    }

    /// Keeps a pin without a reader for a moment, if there may be one again.
    fn keep_idle(&mut self, object_id: ObjectId, place: (u64, u64), since: Instant) {
        let may_be_read_again = self.references.contains(object_id) || self.execution.has_queued();
        if may_be_read_again && !self.pins.idle.contains_key(&object_id) {
            self.pins.idle.insert(object_id, Idle { place, since });
        } else {
            self.tell_node(&ToRaylet::ReleaseObject { object_id, count: 1 });
        }
    }

    /// Gives back the pins that nobody has used for long enough.
    pub(super) fn release_idle_pins(&mut self, now: Instant) {
        let is_due = |idle: &Idle| now.saturating_duration_since(idle.since) >= IDLE_FOR;
        let idle = self.pins.idle.iter().filter(|(_, idle)| is_due(idle));
        for object_id in idle.map(|(&object_id, _)| object_id).collect::<Vec<_>>() {
            self.release_idle_pin(object_id);
        }
    }

    /// Gives back the pins of arguments, for no task is left that may read them.
    pub(super) fn release_pins_of_arguments(&mut self) {
        if !self.pins.idle.is_empty() {
            let unknown = |object_id: &&ObjectId| !self.references.contains(**object_id);
            for object_id in self.pins.idle.keys().filter(unknown).copied().collect::<Vec<_>>() {
                self.release_idle_pin(object_id);
            }
        }
    }

    /// Gives back a pin that nobody uses, if there is one: this process refers to the object no more.
    pub(super) fn release_idle_pin(&mut self, object_id: ObjectId) {
        if self.pins.idle.remove(&object_id).is_some() {
            self.tell_node(&ToRaylet::ReleaseObject { object_id, count: 1 });
        }
    }

    /// An object whose owner is dead: the node has dropped it, or is about to.
    pub(super) fn first_orphan(&self, wanted: &[Sought]) -> Option<(ObjectId, Failure)> {
        wanted.iter().find_map(|&Sought { object_id, owner, .. }| {
            let owner = owner.filter(|&owner| self.references.is_dead(owner))?;
            let cause = self.cause_of(owner).unwrap_or("its process ended").to_owned();
            Some((object_id, Failure::OwnerDied { object_id, owner, cause }))
        })
    }

    /// Those who wait for objects in shared memory of a dead owner wait no longer.
    pub(super) fn give_up_pins(&mut self, owner: WorkerId) {
        let of_owner =
            |request: &&PinRequest| request.missing.iter().any(|sought| sought.owner == Some(owner));
        let requests = self.pins.requests.iter().filter(|(_, request)| of_owner(request));
        for (request, who) in requests.map(|(&number, request)| (number, request.who)).collect::<Vec<_>>() {
            match who {
                Who::Thread(waiter) => {
                    self.waiter(waiter).remaining = 1;
                    self.tell_waiter(waiter);
                }
                Who::Listener(listener) => {
                    let missing = self.forget_pin_request(request);
                    if let Some((_, failure)) = self.first_orphan(&missing) {
                        self.on_listener_placed(listener, Err(failure));
                    }
                }
                Who::Fetch => {
                    for Sought { object_id, .. } in self.forget_pin_request(request) {
                        self.on_fetched(object_id);
                    }
                }
            }
        }
    }

    /// Asks the node to pin an object for a listener. Returns the number of the request.
    pub(super) fn request_pin_for(&mut self, listener: ListenerId, sought: Sought) -> u64 {
        let request = self.next_request();
        self.request_pins(request, Who::Listener(listener), vec![sought]);
        request
    }

    fn request_pins(&mut self, request: u64, who: Who, missing: Vec<Sought>) {
        let own = self.me.node_id;
        let elsewhere = |&Sought { object_id, stored, .. }: &Sought| {
            let (node_id, size) = stored.filter(|&(node_id, _)| node_id != own)?;
            Some(Elsewhere { object_id, node_id, size })
        };
        let object_ids = missing.iter().map(|sought| sought.object_id).collect();
        let elsewhere = missing.iter().filter_map(elsewhere).collect();
        self.pins.requests.insert(request, PinRequest { who, missing, got: Vec::new() });
        self.tell_node(&ToRaylet::GetObjects { request, object_ids, elsewhere });
    }

    /// What is known of an object that is to be read.
    pub(super) fn sought(&self, object_id: ObjectId) -> Sought {
        let owner = self.references.borrowed_from(object_id).map(|owner| owner.worker_id);
        let stored = match self.memory.get(object_id) {
            Some(&Value::Stored { node_id, size }) => Some((node_id, size)),
            Some(Value::Inline(_) | Value::Failed(_)) | None => None,
        };
        Sought { object_id, owner, stored }
    }

    /// Whether the object lies on another node, and was not brought here yet.
    pub(super) fn is_distant(&self, object_id: ObjectId) -> bool {
        matches!(self.memory.get(object_id), Some(Value::Stored { node_id, .. }) if *node_id != self.me.node_id)
            && !self.pins.is_read(object_id)
            && !self.pins.idle.contains_key(&object_id)
            && !self.pins.fetched.contains(&object_id)
    }

    /// Has a distant object brought here. The waiter is told when it is.
    pub(super) fn fetch_for(&mut self, waiter: WaiterId, object_id: ObjectId) {
        if let Some(fetch) = self.pins.fetches.get_mut(&object_id) {
            fetch.waiters.push(waiter);
            return;
        }
        let (sought, request) = (self.sought(object_id), self.next_request());
        self.pins.fetches.insert(object_id, Fetch { request, waiters: vec![waiter] });
        match self.first_orphan(&[sought]) {
            Some(_) => self.on_fetched(object_id),
            None => self.request_pins(request, Who::Fetch, vec![sought]),
        }
    }

    /// A waiter need not be told.
    pub(super) fn forget_fetch_waiter(&mut self, object_id: ObjectId, waiter: WaiterId) {
        if !self.pins.fetches.is_empty()
            && let Some(fetch) = self.pins.fetches.get_mut(&object_id)
        {
            fetch.waiters.retain(|&other| other != waiter);
        }
    }

    /// An object was brought here, or will not come, which its reader will be told.
    fn on_fetched(&mut self, object_id: ObjectId) {
        let Some(fetch) = self.pins.fetches.remove(&object_id) else { return };
        self.pins.fetched.insert(object_id);
        fetch.waiters.into_iter().for_each(|waiter| self.tell_waiter(waiter));
    }

    /// This process refers to the object no more.
    pub(super) fn forget_pins(&mut self, object_id: ObjectId) {
        self.release_idle_pin(object_id);
        if self.pins.fetched.is_empty() && self.pins.fetches.is_empty() {
            return;
        }
        self.pins.fetched.remove(&object_id);
        if let Some(fetch) = self.pins.fetches.remove(&object_id) {
            self.forget_pin_request(fetch.request);
            fetch.waiters.into_iter().for_each(|waiter| self.tell_waiter(waiter));
        }
    }

    /// A request is not needed any more. Returns what was not answered.
    pub(super) fn forget_pin_request(&mut self, request: u64) -> Vec<Sought> {
        let Some(asked) = self.pins.requests.remove(&request) else { return Vec::new() };
        if !asked.missing.is_empty() {
            self.tell_node(&ToRaylet::CancelGet { request });
        }
        asked.missing
    }

    /// This process reads an object there from now on.
    pub(super) fn note_pinned(&mut self, object_id: ObjectId, pinned: &Arc<Pinned>) {
        self.pins.alive.insert(object_id, Arc::downgrade(pinned));
    }

    pub(super) fn on_object_pinned(&mut self, request: u64, object_id: ObjectId, result: Placed) {
        let pending = self.pins.requests.get_mut(&request);
        let pending = pending.and_then(|pending| {
            let at = pending.missing.iter().position(|sought| sought.object_id == object_id)?;
            pending.missing.swap_remove(at);
            Some(pending)
        });
        if let Some(pending) = pending {
            match pending.who {
                Who::Thread(waiter) => {
                    pending.got.push((object_id, result));
                    self.tell_waiter(waiter);
                }
                Who::Listener(listener) => {
                    self.pins.requests.remove(&request);
                    self.on_listener_placed(listener, Ok(result));
                }
                Who::Fetch => {
                    self.pins.requests.remove(&request);
                    if let Ok(place) = result {
                        self.keep_idle(object_id, place, now());
                    }
                    self.on_fetched(object_id);
                }
            }
        } else if result.is_ok() {
            // It came after it was taken back.
            self.tell_node(&ToRaylet::ReleaseObject { object_id, count: 1 });
        }
    }
}

pub(super) fn store_failure(object_id: ObjectId, error: StoreError) -> Failure {
    match error {
        StoreError::Lost { cause } => Failure::Lost { object_id, cause },
        other => {
            let out_of_disk = matches!(other, StoreError::OutOfDisk { .. });
            Failure::StoreFull { out_of_disk, message: other.into_error(object_id).to_string() }
        }
    }
}
