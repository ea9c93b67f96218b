//! Placement groups: the side of those who make and use them.
//!
//! ```text
//!            subscribed               created              news
//!  (unknown) ----------> Pending ----------------> Created <----> Pending (a node died)
//!      ^                    |                         |
//!      +---- removed -------+-------------------------+
//! ```
//! What is known of a group comes from the node, which follows it from the first question until it is removed. A
//! removed group is not remembered: who asks for it later is told by the control plane.

use std::collections::hash_map::Entry;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use ray_core::constraint::Strategy;
use ray_core::error::{RayError, RayResult};
use ray_core::id::{ObjectId, PlacementGroupId};
use ray_core::pb::common::{PlacementGroupInfo, PlacementGroupSpec, placement_group_info};
use ray_core::pb::gcs::{
    CreatePlacementGroupRequest, GetNamedPlacementGroupRequest, GetPlacementGroupRequest,
    ListPlacementGroupsReply, ListPlacementGroupsRequest, PlacementGroupReply, RemovePlacementGroupRequest,
};
use ray_link::message::{GcsMethod, ToRaylet, Unschedulable};
use rustc_hash::{FxHashMap, FxHashSet};

use super::link::gcs_error;
use super::poll::{End, Interrupted, Patience};
use super::state::State;
use super::{CoreWorker, Notification};
use crate::memory_store::WaiterId;
use crate::peer_message::GroupContext;
use crate::value::{Failure, Value};

/// How long a call of the control plane may take; the node retries while the GCS is away.
const GCS_TIMEOUT: Duration = Duration::from_secs(30);

/// What this process knows of placement groups.
#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: FxHashMap<PlacementGroupId, Group>,
    /// Objects that get their value when a group is created.
    promised: FxHashSet<ObjectId>,
    /// Creations that were not answered, by request.
    creations: FxHashMap<u64, Creation>,
    /// Removals that were not answered, by request.
    removals: FxHashMap<u64, PlacementGroupId>,
    /// Threads that wait until all of these are answered.
    flushing: Vec<WaiterId>,
}

#[derive(Debug)]
struct Creation {
    group_id: PlacementGroupId,
    /// It is to be removed as soon as it is there: the calls of a process may overtake one another.
    to_be_removed: bool,
}

#[derive(Debug, Default)]
struct Group {
    state: GroupState,
    waiters: Vec<WaiterId>,
    /// Objects to be set when it is created, and to what.
    ready: Vec<(ObjectId, Bytes)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum GroupState {
    #[default]
    Pending,
    Created,
    /// Kept only until those who wait have seen it.
    Removed(String),
}

impl Groups {
    /// Whether the object gets its value when a group is created.
    pub(super) fn promises(&self, object_id: ObjectId) -> bool {
        self.promised.contains(&object_id)
    }

    /// Whether the control plane has answered everything that was said to it.
    fn is_settled(&self) -> bool {
        self.creations.is_empty() && self.removals.is_empty()
    }
}

impl CoreWorker {
    /// Makes a placement group of this job, whose id and job the request need not name. Its resources are reserved as
    /// they become free. One with a name is known to the control plane when this returns; for others it is not waited
    /// for, but see [`CoreWorker::settle_groups`].
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken.
    pub fn create_group(
        &self,
        mut spec: PlacementGroupSpec,
        interrupted: Interrupted<'_>,
    ) -> RayResult<PlacementGroupId> {
        let group_id = PlacementGroupId::random();
        let mut state = self.lock();
        state.check_open()?;
        spec.placement_group_id = group_id.into();
        spec.job_id = state.job_id.into();
        let is_named = !spec.name.is_empty();
        // Followed from before it is there, so that no news of it is missed.
        state.groups.groups.insert(group_id, Group::default());
        state.tell_node(&ToRaylet::SubscribeGroup { group_id, is_new: true });
        let body: Bytes = CreatePlacementGroupRequest { spec: Some(spec) }.encode_to_vec().into();
        if !is_named {
            let request = state.next_request();
            state.groups.creations.insert(request, Creation { group_id, to_be_removed: false });
            state.tell_node(&ToRaylet::GcsCall { request, method: GcsMethod::CreatePlacementGroup, body });
            self.stir(&mut state);
            return Ok(group_id);
        }
        drop(state);
        match self.call_gcs(GcsMethod::CreatePlacementGroup, body, GCS_TIMEOUT, interrupted) {
            Ok(_) => Ok(group_id),
            Err(error) => {
                self.lock().groups.groups.remove(&group_id);
                Err(error)
            }
        }
    }

    /// Waits until the group is created. Returns whether it is.
    ///
    /// # Errors
    /// `NotFound` if it is removed.
    pub fn wait_group(
        &self,
        group_id: PlacementGroupId,
        timeout: Option<Duration>,
        interrupted: Interrupted<'_>,
    ) -> RayResult<bool> {
        let mut patience = Patience::until(timeout, interrupted);
        let mut state = self.lock();
        loop {
            state.check_open()?;
            state.follow_group(group_id);
            match state.group_state(group_id) {
                GroupState::Created => return Ok(true),
                GroupState::Removed(reason) => {
                    state.forget_removed(group_id);
                    return Err(RayError::NotFound { what: reason });
                }
                GroupState::Pending => {}
            }
            let waiter = state.add_waiter(1);
            if let Some(group) = state.groups.groups.get_mut(&group_id) {
                group.waiters.push(waiter);
            }
            let (woken, end) = self.wait_for(state, waiter, &mut patience);
            state = woken;
            if let Some(group) = state.groups.groups.get_mut(&group_id) {
                group.waiters.retain(|&other| other != waiter);
            }
            match end {
                End::Done => {}
                End::Timeout => return Ok(false),
                End::Interrupted | End::Closed => {
                    self.refuse(&state, end, "creation of a placement group", timeout.unwrap_or_default())?;
                }
            }
        }
    }

    /// An object that gets this value, which holds no references, as soon as the group is created, and fails if it is
    /// removed; with one handle.
    ///
    /// # Errors
    /// If this process has left the cluster.
    pub fn group_ready(&self, group_id: PlacementGroupId, value: Bytes) -> RayResult<ObjectId> {
        let mut state = self.lock();
        state.check_open()?;
        let object_id = state.next_put_id();
        state.references.add_owned(object_id);
        state.follow_group(group_id);
        if state.group_state(group_id) == GroupState::Created {
            state.memory.set(object_id, Value::Inline(value));
        } else {
            state.memory.expect(object_id);
            state.groups.promised.insert(object_id);
            if let Some(group) = state.groups.groups.get_mut(&group_id) {
                group.ready.push((object_id, value));
            }
        }
        self.stir(&mut state);
        Ok(object_id)
    }

    /// Removes a placement group, and ends what runs in it. Does not wait for that.
    ///
    /// # Errors
    /// If this process has left the cluster.
    pub fn remove_group(&self, group_id: PlacementGroupId) -> RayResult<()> {
        let mut state = self.lock();
        state.check_open()?;
        match state.groups.creations.values_mut().find(|creation| creation.group_id == group_id) {
            Some(creation) => creation.to_be_removed = true,
            None => state.send_removal(group_id),
        }
        self.stir(&mut state);
        Ok(())
    }

    /// What the control plane knows of a group.
    ///
    /// # Errors
    /// `NotFound` if it knows no such group.
    pub fn group(
        &self,
        group_id: PlacementGroupId,
        interrupted: Interrupted<'_>,
    ) -> RayResult<PlacementGroupInfo> {
        let body = GetPlacementGroupRequest { placement_group_id: group_id.into() }.encode_to_vec();
        self.ask_group(GcsMethod::GetPlacementGroup, body, interrupted)
    }

    /// The group of this name.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    pub fn named_group(
        &self,
        name: &str,
        namespace: &str,
        interrupted: Interrupted<'_>,
    ) -> RayResult<PlacementGroupInfo> {
        let request =
            GetNamedPlacementGroupRequest { name: name.to_owned(), namespace: namespace.to_owned() };
        self.ask_group(GcsMethod::GetNamedPlacementGroup, request.encode_to_vec(), interrupted)
    }

    fn ask_group(
        &self,
        method: GcsMethod,
        body: Vec<u8>,
        interrupted: Interrupted<'_>,
    ) -> RayResult<PlacementGroupInfo> {
        self.settle_groups(interrupted)?;
        let reply = self.call_gcs(method, body.into(), GCS_TIMEOUT, interrupted)?;
        let reply = PlacementGroupReply::decode(reply).map_err(|error| misunderstood(&error))?;
        Ok(ray_core::wire::required("group", reply.group)?)
    }

    /// All groups that the control plane knows, also some that were removed.
    ///
    /// # Errors
    /// If the control plane cannot be reached.
    pub fn all_groups(&self, interrupted: Interrupted<'_>) -> RayResult<Vec<PlacementGroupInfo>> {
        self.settle_groups(interrupted)?;
        let body = ListPlacementGroupsRequest {}.encode_to_vec().into();
        let reply = self.call_gcs(GcsMethod::ListPlacementGroups, body, GCS_TIMEOUT, interrupted)?;
        let reply = ListPlacementGroupsReply::decode(reply).map_err(|error| misunderstood(&error))?;
        Ok(reply.groups)
    }

    /// Waits until the control plane knows what this process has created and removed: before it is asked, and before
    /// others are told of a group.
    ///
    /// # Errors
    /// If it cannot be reached.
    pub fn settle_groups(&self, interrupted: Interrupted<'_>) -> RayResult<()> {
        let mut state = self.lock();
        if state.groups.is_settled() {
            return Ok(());
        }
        let waiter = state.add_waiter(1);
        state.groups.flushing.push(waiter);
        let (mut state, end) =
            self.wait_for(state, waiter, &mut Patience::until(Some(GCS_TIMEOUT), interrupted));
        state.groups.flushing.retain(|&other| other != waiter);
        self.refuse(&state, end, "creation or removal of placement groups", GCS_TIMEOUT)
    }

    /// Whether the control plane may not know this group yet.
    pub(super) fn is_creating_group(&self, group_id: PlacementGroupId) -> bool {
        self.lock().groups.creations.values().any(|creation| creation.group_id == group_id)
    }

    /// The placement group in which the calling task runs, or the actor that this process is.
    pub fn current_group(&self) -> Option<GroupContext> {
        self.lock().current_group()
    }
}

fn misunderstood(error: &prost::DecodeError) -> RayError {
    RayError::Protocol { peer: "the control plane".to_owned(), reason: error.to_string() }
}

impl State {
    /// The placement group of what runs here.
    pub(super) fn current_group(&self) -> Option<GroupContext> {
        let running = self.execution.running.current().and_then(|running| running.placement_group);
        running.or(self.execution.actor_group)
    }

    /// The strategy of something that runs here submits, and for which none was chosen.
    pub(super) fn inherited_strategy(&self) -> Strategy {
        match self.current_group() {
            Some(GroupContext { group_id, capture: true }) => {
                Strategy::Bundle { group_id, index: None, capture: true }
            }
            Some(_) | None => Strategy::Default,
        }
    }

    fn follow_group(&mut self, group_id: PlacementGroupId) {
        if let Entry::Vacant(entry) = self.groups.groups.entry(group_id) {
            entry.insert(Group::default());
            self.tell_node(&ToRaylet::SubscribeGroup { group_id, is_new: false });
        }
    }

    fn group_state(&self, group_id: PlacementGroupId) -> GroupState {
        self.groups.groups.get(&group_id).map(|group| group.state.clone()).unwrap_or_default()
    }

    fn send_removal(&mut self, group_id: PlacementGroupId) {
        let request = self.next_request();
        self.groups.removals.insert(request, group_id);
        let body = RemovePlacementGroupRequest { placement_group_id: group_id.into() }.encode_to_vec().into();
        self.tell_node(&ToRaylet::GcsCall { request, method: GcsMethod::RemovePlacementGroup, body });
    }

    /// Nobody waits for a removed group any more.
    fn forget_removed(&mut self, group_id: PlacementGroupId) {
        let is_over =
            |group: &Group| matches!(group.state, GroupState::Removed(_)) && group.waiters.is_empty();
        if self.groups.groups.get(&group_id).is_some_and(is_over) {
            self.groups.groups.remove(&group_id);
        }
    }

    /// The node tells of a group.
    pub(super) fn on_group_state(
        &mut self,
        core: &CoreWorker,
        group_id: PlacementGroupId,
        info: Option<&Bytes>,
    ) {
        let Ok(info) = info.map(|info| PlacementGroupInfo::decode(info.as_ref())).transpose() else {
            tracing::error!("news of a placement group cannot be read");
            return;
        };
        let state = match info {
            None => GroupState::Removed(format!("placement group {group_id} was removed, or never created")),
            Some(info) => match info.state() {
                placement_group_info::State::Created => GroupState::Created,
                placement_group_info::State::Removed => {
                    let reason = &info.removed_reason;
                    GroupState::Removed(format!("placement group {group_id} was removed: {reason}"))
                }
                placement_group_info::State::Pending
                | placement_group_info::State::Prepared
                | placement_group_info::State::Rescheduling
                | placement_group_info::State::Unspecified => GroupState::Pending,
            },
        };
        self.set_group_state(core, group_id, state);
    }

    fn set_group_state(&mut self, core: &CoreWorker, group_id: PlacementGroupId, state: GroupState) {
        let Some(group) = self.groups.groups.get_mut(&group_id) else { return };
        group.state = state.clone();
        if state == GroupState::Pending {
            return;
        }
        let (ready, waiters) = (std::mem::take(&mut group.ready), group.waiters.clone());
        for (object_id, value) in ready {
            self.groups.promised.remove(&object_id);
            let value = match &state {
                GroupState::Removed(reason) => Value::from(removed(object_id, reason)),
                GroupState::Created | GroupState::Pending => Value::Inline(value),
            };
            self.take_value(core, object_id, value, &[]);
        }
        waiters.into_iter().for_each(|waiter| self.tell_waiter(waiter));
        self.forget_removed(group_id);
    }

    /// The control plane has answered a creation or a removal. Returns false if it was neither.
    pub(super) fn on_group_answer(
        &mut self,
        core: &CoreWorker,
        request: u64,
        result: &Result<Bytes, (i32, String)>,
    ) -> bool {
        let error = |what: &str| {
            let (code, message) = result.as_ref().err()?;
            Some(gcs_error(*code, format!("{what} of a placement group"), message.clone()))
        };
        if let Some(Creation { group_id, to_be_removed }) = self.groups.creations.remove(&request) {
            if let Some(error) = error("creation") {
                let reason = format!("placement group {group_id} could not be created: {}", error.chain());
                self.set_group_state(core, group_id, GroupState::Removed(reason));
            } else if to_be_removed {
                self.send_removal(group_id);
            }
        } else if let Some(group_id) = self.groups.removals.remove(&request) {
            match error("removal") {
                // It was removed before.
                None | Some(RayError::NotFound { .. }) => {}
                Some(error) => {
                    let text = format!("placement group {group_id} could not be removed: {}", error.chain());
                    self.notify(Notification::Warning(text));
                }
            }
        } else {
            return false;
        }
        if self.groups.is_settled() {
            for waiter in self.groups.flushing.clone() {
                self.tell_waiter(waiter);
            }
        }
        true
    }
}

fn removed(object_id: ObjectId, reason: &str) -> Failure {
    Failure::Unschedulable {
        task_id: object_id.task_id(),
        name: "the creation of a placement group".to_owned(),
        kind: Unschedulable::PlacementGroupRemoved,
        reason: reason.to_owned(),
        ran: false,
    }
}
