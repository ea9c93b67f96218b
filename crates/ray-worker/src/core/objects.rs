//! Values, whichever way they come, and references to them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use ray_core::error::{RayError, RayResult};
use ray_core::id::{ActorId, LeaseId, NodeId, ObjectId, TaskId, WorkerId};
use ray_link::message::{StoreError, ToRaylet};
use rustc_hash::{FxHashMap, FxHashSet};

use super::CoreWorker;
use super::grants::Then;
use super::pins::ReadyValue;
use super::poll::{End, Interrupted, Patience};
use super::state::{Answer, State, Waiter};
use crate::memory_store::{Told, WaiterId};
use crate::peer_message::{Kind, PeerMessage, Returned};
use crate::reference_counter::Owner;
use crate::value::{Contained, Encoded, Failure, Value};

/// What a core worker keeps in tables of no machine's own.
#[derive(Debug, Default)]
pub(super) struct SharedObjects {
    /// Values that were asked of their owners.
    pub(super) fetching: FxHashMap<ObjectId, WorkerId>,
    /// Owned objects of which a copy was written to disk once.
    pub(super) spilled: FxHashSet<ObjectId>,
    /// Owned objects of shared memory that nobody refers to any more.
    freed: Vec<ObjectId>,
    /// Such objects of other nodes.
    freed_elsewhere: BTreeMap<NodeId, Vec<ObjectId>>,
    /// Tasks whose arguments all have values since the last settling.
    pub(super) ready_tasks: VecDeque<TaskId>,
    /// Leases that this process holds, and whom they let it use.
    pub(super) leases: FxHashMap<LeaseId, Owner>,
    pub(super) lease_on: FxHashMap<WorkerId, LeaseId>,
    /// Registrations of actors that the control plane has not answered, and who waits for one.
    pub(super) registrations: FxHashMap<u64, (ActorId, Vec<WaiterId>)>,
    /// Actors of this process that end with their handles, by what those count as.
    pub(super) handles: FxHashMap<ObjectId, ActorId>,
    /// Those of them that nobody has a handle to any more.
    pub(super) unreferenced_actors: VecDeque<ActorId>,
    /// Objects of this process whose end the front end wants to hear of.
    watched: FxHashSet<ObjectId>,
    /// Borrowers that wait for values which are there now.
    answer_peers: VecDeque<(WorkerId, ObjectId)>,
}

impl SharedObjects {
    /// Whether this object was watched, which it is no more.
    pub(super) fn unwatch(&mut self, object_id: ObjectId) -> bool {
        !self.watched.is_empty() && self.watched.remove(&object_id)
    }
}

/// What `get` returns: the values, or the object that has none and why.
pub type Got<T> = Result<T, (ObjectId, Failure)>;

impl CoreWorker {
    /// Stores a value; the object has one handle.
    ///
    /// # Errors
    /// `ObjectStoreFull` or `OutOfDisk` if a large one finds no room.
    pub fn put(&self, encoded: Encoded<'_>, interrupted: Interrupted<'_>) -> RayResult<ObjectId> {
        let object_id = {
            let mut state = self.lock();
            state.check_open()?;
            let object_id = state.next_put_id();
            // Before the node can tell anything of it.
            state.references.add_owned(object_id);
            object_id
        };
        let inner: Vec<ObjectId> = encoded.contained.iter().map(|&(inner, _)| inner).collect();
        let placed = self.place(object_id, self.me.worker_id, encoded, interrupted);
        if placed.is_err() {
            self.drop_reference(object_id);
        }
        let value = placed?;
        let mut state = self.lock();
        state.references.set_contained(object_id, inner);
        state.memory.set(object_id, value);
        self.stir(&mut state);
        Ok(object_id)
    }

    /// Stores a value of at most [`CoreWorker::inline_limit`] bytes; the object has one handle.
    ///
    /// # Errors
    /// If this process has left the cluster.
    pub fn put_small(&self, bytes: Bytes, contained: &[Contained]) -> RayResult<ObjectId> {
        let mut state = self.lock();
        state.check_open()?;
        let object_id = state.next_put_id();
        state.references.add_owned(object_id);
        if !contained.is_empty() {
            let inner = contained.iter().map(|&(inner, _)| inner).collect();
            state.references.set_contained(object_id, inner);
        }
        state.memory.set(object_id, Value::Inline(bytes));
        Ok(object_id)
    }

    /// Stores what a task returned, on behalf of its caller. Every reference in it gets a handle, which
    /// is dropped once the caller has taken over.
    ///
    /// # Errors
    /// As [`CoreWorker::put`].
    pub fn place_result(
        &self,
        object_id: ObjectId,
        caller: WorkerId,
        encoded: Encoded<'_>,
        interrupted: Interrupted<'_>,
    ) -> RayResult<Returned> {
        let contained = encoded.contained.clone();
        if !contained.is_empty() {
            let mut state = self.lock();
            for &(inner, _) in &contained {
                state.references.add_local(inner);
            }
        }
        let placed = self.place(object_id, caller, encoded, interrupted);
        if placed.is_err() {
            contained.iter().for_each(|&(inner, _)| self.drop_reference(inner));
        }
        Ok(Returned { value: placed?, contained })
    }

    fn place(
        &self,
        object_id: ObjectId,
        owner: WorkerId,
        encoded: Encoded<'_>,
        interrupted: Interrupted<'_>,
    ) -> RayResult<Value> {
        let size = encoded.payload.len();
        if size <= self.inline_limit() {
            return Ok(Value::Inline(encoded.payload.into_bytes()?));
        }
        let stored = Value::Stored { node_id: self.me.node_id, size: size as u64 };
        let message = |request| ToRaylet::CreateObject { request, object_id, size: size as u64, owner };
        let answer = self.ask_node("room in the object store", None, interrupted, message)?;
        let offset = match answer {
            Answer::Created(Ok(offset)) => offset,
            Answer::Created(Err(StoreError::AlreadySealed)) => return Ok(stored),
            Answer::Created(Err(error)) => return Err(error.into_error(object_id)),
            Answer::Awaited(_) | Answer::Gcs(_) | Answer::Flushed => {
                let reason = "another answer than one to a request for room".to_owned();
                return Err(RayError::Protocol { peer: "the node".to_owned(), reason });
            }
        };
        let written = self
            .region
            .slice_mut(offset, size as u64)
            .map_err(RayError::from)
            .and_then(|mut place| encoded.payload.write_into(&mut place));
        let mut state = self.lock();
        state.tell_node(&match &written {
            Ok(()) => ToRaylet::SealObject { object_id },
            Err(_) => ToRaylet::AbortObject { object_id },
        });
        // A reader is told of the object by another connection: the node has to know it first.
        state.flush_link(self);
        written.map(|()| stored)
    }

    /// The values of these objects, in order; or the first failure in that order, as soon as any
    /// object has failed.
    ///
    /// # Errors
    /// `GetTimeout`, or what ended this process's membership. What interrupted the wait is known to
    /// who said so.
    pub fn get(
        self: &Arc<Self>,
        object_ids: &[ObjectId],
        timeout: Option<Duration>,
        interrupted: Interrupted<'_>,
    ) -> RayResult<Got<Vec<ReadyValue>>> {
        let mut patience = Patience::until(timeout, interrupted);
        let state = match self.await_values(object_ids, timeout, &mut patience)? {
            Ok(state) => state,
            Err(failed) => return Ok(Err(failed)),
        };
        self.read_values(state, object_ids, State::sought, timeout, &mut patience)
    }

    /// Waits until each object has a value, or one has failed.
    fn await_values<'a>(
        &'a self,
        object_ids: &[ObjectId],
        timeout: Option<Duration>,
        patience: &mut Patience<'_>,
    ) -> RayResult<Got<MutexGuard<'a, State>>> {
        let mut state = self.lock();
        state.check_open()?;
        let mut missing = Vec::new();
        for &object_id in object_ids {
            match state.memory.get(object_id) {
                Some(Value::Failed(_)) => return Ok(Ok(state)),
                Some(Value::Inline(_) | Value::Stored { .. }) => {}
                None => missing.push(object_id),
            }
        }
        if missing.is_empty() {
            return Ok(Ok(state));
        }
        state.ensure_values(self, &missing);
        let waiter = state.add_waiter(0);
        state.waiter(waiter).fail_fast = true;
        state.waiter(waiter).remaining =
            missing.iter().filter(|&&object_id| state.memory.wait(object_id, waiter)).count();
        if state.waiter(waiter).remaining == 0 || state.first_failure(&missing).is_some() {
            state.forget_waiter(&missing, waiter);
            self.stir(&mut state);
            return Ok(Ok(state));
        }
        let blocked = state.on_block(self);
        let (mut state, end) = self.wait_for(state, waiter, patience);
        if blocked {
            state.on_unblock(self);
        }
        let mut without_value = None;
        for &object_id in &missing {
            match state.memory.get(object_id) {
                Some(Value::Failed(_)) if end == End::Done => {
                    state.forget_waiter(&missing, waiter);
                    return Ok(Ok(state));
                }
                Some(_) => {}
                None => without_value = Some(object_id),
            }
        }
        let Some(object_id) = without_value else { return Ok(Ok(state)) };
        state.forget_waiter(&missing, waiter);
        let what = if end == End::Timeout { describe(object_ids, &state) } else { String::new() };
        self.refuse(&state, end, &what, timeout.unwrap_or_default())?;
        // Its last reference was dropped while it was waited for.
        let cause = "nothing refers to it any more".to_owned();
        Ok(Err((object_id, Failure::Freed { object_id, cause })))
    }

    /// The value of an object, if it is here and needs no waiting of any kind.
    pub fn value_at_hand(self: &Arc<Self>, object_id: ObjectId) -> Option<ReadyValue> {
        let mut state = self.lock();
        state.check_open().ok()?;
        state.value_at_hand(self, object_id).ok().flatten()
    }

    /// The places of the first `num_returns` objects that have a value or failed, in order, if so many
    /// have by now. With `fetch_local`, values have to be on this node.
    pub fn first_ready(
        &self,
        object_ids: impl Iterator<Item = ObjectId>,
        num_returns: usize,
        fetch_local: bool,
    ) -> Option<Vec<usize>> {
        let state = self.lock();
        state.check_open().ok()?;
        let ready = state.first_ready(object_ids, num_returns, fetch_local);
        (ready.len() == num_returns).then_some(ready)
    }

    /// Waits until `num_returns` objects have a value or failed, or the time is over. Returns the
    /// places of those, in order, at most `num_returns`. With `fetch_local`, values of other nodes are brought to
    /// this one, and are ready when they are here.
    ///
    /// # Errors
    /// What ended this process's membership.
    pub fn wait(
        &self,
        object_ids: &[ObjectId],
        num_returns: usize,
        timeout: Option<Duration>,
        fetch_local: bool,
        interrupted: Interrupted<'_>,
    ) -> RayResult<Vec<usize>> {
        let mut patience = Patience::until(timeout, interrupted);
        let mut state = self.lock();
        state.check_open()?;
        state.ensure_values(self, object_ids);
        let mut ready = state.first_ready(object_ids.iter().copied(), num_returns, fetch_local);
        if ready.len() < num_returns {
            let waiter = state.add_waiter(num_returns - ready.len());
            state.waiter(waiter).fetches = fetch_local;
            for &object_id in object_ids {
                if !state.memory.wait(object_id, waiter) && fetch_local && state.is_distant(object_id) {
                    state.fetch_for(waiter, object_id);
                }
            }
            let blocked = state.on_block(self);
            let (woken, end) = self.wait_for(state, waiter, &mut patience);
            state = woken;
            if blocked {
                state.on_unblock(self);
            }
            state.forget_waiter(object_ids, waiter);
            if end != End::Timeout {
                self.refuse(&state, end, "an object", timeout.unwrap_or_default())?;
            }
            ready = state.first_ready(object_ids.iter().copied(), num_returns, fetch_local);
        } else {
            self.stir(&mut state);
        }
        Ok(ready)
    }

    /// Adds a handle to an object that came as a reference, in an argument or a value.
    pub fn add_reference(&self, object_id: ObjectId, owner: Owner) {
        let mut state = self.lock();
        if owner.worker_id == self.me.worker_id && state.references.add_local(object_id) {
            return;
        }
        if !state.references.add_borrowed(object_id, owner, 0) {
            return;
        }
        if let Some(running) = state.execution.running.current_mut() {
            running.borrowed.push(object_id);
        } else if owner.worker_id != self.me.worker_id {
            // It was pickled out of band: nobody's request or reply covers it, only whoever pickled it.
            state.references.add_local(object_id);
            state.grant_then(self, vec![(object_id, owner)], self.me.worker_id, Then::Nothing);
            self.stir(&mut state);
        }
    }

    /// Adds a handle to an object. Returns whether this process refers to it, as it has to.
    pub fn copy_reference(&self, object_id: ObjectId) -> bool {
        self.lock().references.add_local(object_id)
    }

    /// Drops a handle.
    pub fn drop_reference(&self, object_id: ObjectId) {
        let mut state = self.lock();
        let mut effects = Vec::new();
        state.references.remove_local(object_id, &mut effects);
        if !effects.is_empty() {
            state.apply_reference_effects(self, effects);
            state.settle(self);
            self.stir(&mut state);
        }
    }

    /// From now on the end of this object is told ([`Notification::Released`]). Returns whether this process owns
    /// it, and somebody refers to it still; if not, nothing will be told.
    pub fn watch(&self, object_id: ObjectId) -> bool {
        let mut state = self.lock();
        let is_owned = state.references.is_owned(object_id);
        if is_owned {
            state.shared.watched.insert(object_id);
        }
        is_owned
    }

    /// Keeps an object for as long as this process lives: a reference to it leaves in bytes of which
    /// nobody knows where they go.
    pub fn keep_for_good(&self, object_id: ObjectId) {
        self.lock().references.add_local(object_id);
    }

    /// Who owns an object that this process refers to.
    pub fn owner_of(&self, object_id: ObjectId) -> Owner {
        self.lock().references.borrowed_from(object_id).unwrap_or(self.me)
    }

    /// How many objects this process refers to, and how many bytes of values it keeps for them.
    pub fn reference_usage(&self) -> (usize, usize) {
        let state = self.lock();
        (state.references.len(), state.memory.inline_bytes())
    }
}

impl State {
    /// Sees to it that the value of an object comes: by its task, or if another process owns it, by
    /// asking that.
    pub(super) fn ensure_value(&mut self, core: &CoreWorker, object_id: ObjectId) {
        if self.memory.contains(object_id) {
            return;
        }
        match self.references.borrowed_from(object_id) {
            Some(owner) => {
                self.memory.expect(object_id);
                self.shared.fetching.insert(object_id, owner.worker_id);
                self.tell(core, owner, &PeerMessage::GetObject { object_id });
            }
            None if self.is_expected(object_id) => {}
            None => {
                let cause = "nothing refers to it any more".to_owned();
                self.set_value(object_id, Failure::Freed { object_id, cause }.into());
            }
        }
    }

    /// Whether a task of this process, or the creation of a placement group, will give this object its value.
    fn is_expected(&self, object_id: ObjectId) -> bool {
        self.references.is_owned(object_id)
            && (self.tasks.get(object_id.task_id()).is_some() || self.groups.promises(object_id))
    }

    /// As [`State::ensure_value`] for each, and what follows from it.
    fn ensure_values(&mut self, core: &CoreWorker, object_ids: &[ObjectId]) {
        for &object_id in object_ids {
            self.ensure_value(core, object_id);
        }
        self.settle(core);
    }

    /// An object has its value now.
    pub(super) fn set_value(&mut self, object_id: ObjectId, value: Value) {
        let failed = matches!(value, Value::Failed(_));
        let is_elsewhere = matches!(value, Value::Stored { node_id, .. } if node_id != self.me.node_id);
        let told = self.memory.set(object_id, value);
        for waiter in told.threads {
            let fetches = |waiter: &Option<Waiter>| waiter.as_ref().is_some_and(|waiter| waiter.fetches);
            if is_elsewhere && self.is_distant(object_id) && fetches(&self.waiters[waiter]) {
                self.fetch_for(waiter, object_id);
                continue;
            }
            if failed && self.waiters[waiter].as_ref().is_some_and(|waiter| waiter.fail_fast) {
                self.waiter(waiter).remaining = 1;
            }
            self.tell_waiter(waiter);
        }
        told.listeners.into_iter().for_each(|listener| self.tell_listener(listener));
        self.shared.answer_peers.extend(told.peers.into_iter().map(|peer| (peer, object_id)));
        let mut ready = Vec::new();
        self.tasks.on_object_ready(object_id, &mut ready);
        self.shared.ready_tasks.extend(ready);
    }

    /// A value came, with references that were granted to this process.
    pub(super) fn take_value(
        &mut self,
        core: &CoreWorker,
        object_id: ObjectId,
        value: Value,
        contained: &[Contained],
    ) {
        if let Value::Stored { node_id, .. } = value
            && node_id != self.me.node_id
            && self.references.is_owned(object_id)
        {
            // By its end that node learns of the end of this process, with which the object goes.
            self.visit_node(core, node_id);
        }
        if contained.is_empty() {
            if self.references.contains(object_id) {
                self.set_value(object_id, value);
            }
            return;
        }
        let handles = self.hold_contained(contained);
        if self.references.contains(object_id) {
            self.references.set_contained(object_id, handles.clone());
            self.set_value(object_id, value);
        }
        self.drop_handles(core, handles);
    }

    /// Notes references that came with a grant each, with one handle each.
    pub(super) fn hold_contained(&mut self, contained: &[Contained]) -> Vec<ObjectId> {
        let mut handles = Vec::with_capacity(contained.len());
        for &(inner, owner) in contained {
            if owner.worker_id != self.me.worker_id {
                self.references.add_borrowed(inner, owner, 1);
            } else if !self.references.add_local(inner) {
                tracing::error!(object_id = %inner, "a reference to an object that was freed came back");
                continue;
            }
            handles.push(inner);
        }
        handles
    }

    pub(super) fn drop_handles(&mut self, core: &CoreWorker, handles: Vec<ObjectId>) {
        let mut effects = Vec::new();
        for inner in handles {
            self.references.remove_local(inner, &mut effects);
        }
        self.apply_reference_effects(core, effects);
    }

    /// The result of a task of this process came, with references that were granted to it.
    pub(super) fn take_result(&mut self, core: &CoreWorker, object_id: ObjectId, result: Returned) {
        if let Value::Stored { node_id, .. } = result.value
            && !self.references.contains(object_id)
        {
            // Nobody has waited for it.
            self.free_stored(object_id, node_id);
        }
        self.take_value(core, object_id, result.value, &result.contained);
    }

    /// The places of objects that have a value, here if `fetch_local`, or failed; the first `most` of them.
    fn first_ready(
        &self,
        object_ids: impl Iterator<Item = ObjectId>,
        most: usize,
        fetch_local: bool,
    ) -> Vec<usize> {
        let is_ready = |&(_, object_id): &(usize, ObjectId)| match self.memory.get(object_id) {
            Some(Value::Stored { .. }) => !fetch_local || !self.is_distant(object_id),
            Some(Value::Inline(_) | Value::Failed(_)) => true,
            None => false,
        };
        object_ids.enumerate().filter(is_ready).map(|(at, _)| at).take(most).collect()
    }

    pub(super) fn first_failure(&self, object_ids: &[ObjectId]) -> Option<(ObjectId, Failure)> {
        object_ids.iter().find_map(|&object_id| match self.memory.get(object_id) {
            Some(Value::Failed(failure)) => Some((object_id, Failure::clone(failure))),
            Some(Value::Inline(_) | Value::Stored { .. }) | None => None,
        })
    }

    /// A waiting thread goes on, and leaves nothing behind at the objects that it waited for.
    fn forget_waiter(&mut self, object_ids: &[ObjectId], waiter: WaiterId) {
        self.waiters[waiter] = None;
        for &object_id in object_ids {
            self.memory.forget_waiter(object_id, waiter);
            self.forget_fetch_waiter(object_id, waiter);
        }
    }

    /// An object is gone, and so is the reason to wait for it.
    pub(super) fn tell_in_vain(&mut self, object_id: ObjectId, told: Told) {
        for waiter in told.threads {
            self.tell_waiter(waiter);
        }
        told.listeners.into_iter().for_each(|listener| self.tell_listener(listener));
        self.shared.answer_peers.extend(told.peers.into_iter().map(|peer| (peer, object_id)));
    }

    /// Nobody refers any more to this owned object of the shared memory of that node.
    pub(super) fn free_stored(&mut self, object_id: ObjectId, node_id: NodeId) {
        if node_id == self.me.node_id {
            self.shared.freed.push(object_id);
        } else {
            self.shared.freed_elsewhere.entry(node_id).or_default().push(object_id);
        }
    }

    /// Tells the nodes of the objects that nobody refers to any more.
    pub(super) fn delete_freed(&mut self, core: &CoreWorker) {
        if !self.shared.freed.is_empty() {
            let object_ids = std::mem::take(&mut self.shared.freed);
            self.tell_node(&ToRaylet::DeleteObjects { object_ids });
        }
        while let Some((node_id, object_ids)) = self.shared.freed_elsewhere.pop_first() {
            // If it cannot be reached, they are gone with it.
            self.tell_node_at(core, node_id, &ToRaylet::DeleteObjects { object_ids });
        }
    }

    /// A borrower asks for a value.
    pub(super) fn on_get_object(&mut self, core: &CoreWorker, from: Owner, object_id: ObjectId) {
        if self.references.contains(object_id) {
            self.ensure_value(core, object_id);
            if self.memory.wait_as_peer(object_id, from.worker_id) {
                return;
            }
        }
        self.answer_peer(core, from, object_id);
    }

    /// Answers the borrowers that waited for values which are there now.
    pub(super) fn answer_next_peer(&mut self, core: &CoreWorker) -> bool {
        let Some((worker_id, object_id)) = self.shared.answer_peers.pop_front() else { return false };
        let to = Owner { worker_id, node_id: NodeId::nil() };
        self.answer_peer(core, to, object_id);
        true
    }

    fn answer_peer(&mut self, core: &CoreWorker, to: Owner, object_id: ObjectId) {
        let value = self.memory.get(object_id).cloned().unwrap_or_else(|| {
            let cause = "its owner has freed it".to_owned();
            Failure::Freed { object_id, cause }.into()
        });
        let contained: Vec<Contained> = self
            .references
            .contained(object_id)
            .iter()
            .map(|&inner| (inner, self.references.borrowed_from(inner).unwrap_or(self.me)))
            .collect();
        for &(inner, _) in &contained {
            self.references.add_local(inner);
        }
        let message = PeerMessage::ObjectValue { object_id, value, contained: contained.clone() };
        let payload =
            ray_core::serialize::to_bytes(&message).expect("messages between workers can be encoded");
        let then = Then::Send { to, kind: Kind::Other, payload };
        self.grant_then(core, contained, to.worker_id, then);
    }

    /// The owner of a borrowed object has answered.
    pub(super) fn on_object_value(
        &mut self,
        core: &CoreWorker,
        from: WorkerId,
        object_id: ObjectId,
        value: Value,
        contained: &[Contained],
    ) {
        if self.shared.fetching.get(&object_id) == Some(&from) {
            self.shared.fetching.remove(&object_id);
            self.take_value(core, object_id, value, contained);
        } else {
            // It is not wanted any more, but what was granted with it has to go back.
            let handles = self.hold_contained(contained);
            self.drop_handles(core, handles);
        }
    }
}

/// What a get waited for in vain.
fn describe(object_ids: &[ObjectId], state: &State) -> String {
    let missing = object_ids.iter().filter(|&&object_id| state.memory.get(object_id).is_none());
    let (mut names, mut count) = (Vec::new(), 0);
    for &object_id in missing {
        count += 1;
        if names.len() < 3 {
            let task = state.tasks.get(object_id.task_id());
            names.push(match task {
                Some(task) => format!("{object_id} (of task {})", task.name),
                None => object_id.to_string(),
            });
        }
    }
    format!("{count} of {} object(s), among them {},", object_ids.len(), names.join(", "))
}
