//! Cancelling tasks, and the tasks that they have submitted.
//!
//! The owner of a task knows where it is. One that has not been sent never is; of one that was, the process that
//! has it is asked. There it is taken out of the queue, or interrupted if it runs, and its children, of which that
//! process is the owner, are cancelled in the same way.
//!
//! With `force` the process is ended by its node. It cancels the children first and says so, for nobody else
//! knows them; and it alone knows whether the task runs, and not another one before it, which must not pay for it:
//!
//! ```text
//!            Cancel, force             it runs: children are cancelled
//!  owner -------------------> process --------------------------------> owner ---> node: kill it
//!                                |  it is queued: reply that it is cancelled            ^
//!                                v                                                      |
//!                              owner                      no word for FORCE_AFTER ------+
//! ```

use std::time::{Duration, Instant};

use ray_core::error::{RayError, RayResult};
use ray_core::id::{LeaseId, ObjectId, TaskId};
use ray_link::message::ToRaylet;

use super::CoreWorker;
use super::state::{State, now};
use crate::peer_message::PeerMessage;
use crate::reference_counter::Owner;
use crate::task_table::{Call, TaskState};
use crate::value::Failure;

/// How long a process that is to be ended may take to cancel the children of its task.
const FORCE_AFTER: Duration = Duration::from_secs(5);

/// How a task is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cancellation {
    /// End the process that runs it.
    pub force: bool,
    /// Cancel the tasks that it has submitted, too.
    pub recursive: bool,
}

/// A process that is ended because its task was cancelled with force.
#[derive(Debug)]
pub(super) struct ForcedEnd {
    task_id: TaskId,
    lease_id: LeaseId,
    /// When it is, if nothing was heard of the children of its task.
    due: Instant,
}

impl CoreWorker {
    /// Cancels the task that makes this object; if another process has submitted it, that process is asked to.
    /// Returns whether it was pending here.
    ///
    /// # Errors
    /// If it is a call of an actor and `force` is given.
    pub fn cancel_task(&self, object_id: ObjectId, how: Cancellation) -> RayResult<bool> {
        let mut state = self.lock();
        let task_id = object_id.task_id();
        let was_pending = state.tasks.get(task_id).is_some();
        if was_pending {
            if how.force && state.calls_actor(task_id) {
                return Err(RayError::InvalidArgument(
                    "force=True cannot be given for a call of an actor, which it would end: cancel it without \
                     force, or end the actor by kill()"
                        .to_owned(),
                ));
            }
            state.cancel_pending(self, task_id, how);
        } else if let Some(owner) = state.references.borrowed_from(object_id) {
            let Cancellation { force, recursive } = how;
            state.tell(self, owner, &PeerMessage::CancelTask { object_id, recursive, force });
        }
        state.settle(self);
        state.flush(self);
        // The poller may be who waited for it.
        self.nudge_poller(&state);
        Ok(was_pending)
    }
}

impl State {
    fn calls_actor(&self, task_id: TaskId) -> bool {
        let call = self.tasks.get(task_id).map(|task| &task.call);
        matches!(call, Some(Call::Method { .. } | Call::Create { .. }))
    }

    /// A borrower asks for it.
    pub(super) fn on_cancel_task(&mut self, core: &CoreWorker, object_id: ObjectId, how: Cancellation) {
        let task_id = object_id.task_id();
        let force = how.force && !self.calls_actor(task_id);
        self.cancel_pending(core, task_id, Cancellation { force, ..how });
    }

    /// Cancels a task of this process, if it is pending.
    fn cancel_pending(&mut self, core: &CoreWorker, task_id: TaskId, how: Cancellation) {
        match self.tasks.cancel(task_id) {
            None => {}
            Some(TaskState::Waiting { .. } | TaskState::Queued) => self.drop_unsent(core, task_id),
            Some(TaskState::Sent) => self.cancel_sent(core, task_id, how),
        }
    }

    /// Takes a cancelled task out of the queue that it is in.
    pub(super) fn drop_unsent(&mut self, core: &CoreWorker, task_id: TaskId) {
        match self.tasks.get(task_id).map(|task| task.call.clone()) {
            Some(Call::Function { class, .. }) => {
                let mut out = Vec::new();
                self.dispatcher.remove_queued(class, task_id, &mut out);
                self.apply_dispatch(core, out);
            }
            Some(Call::Method { actor_id, .. }) => self.drop_call(core, actor_id, task_id),
            Some(Call::Create { .. }) | None => {}
        }
        self.finish_task(core, task_id, Err(Failure::Cancelled(task_id)));
    }

    fn cancel_sent(&mut self, core: &CoreWorker, task_id: TaskId, how: Cancellation) {
        let Cancellation { force, recursive } = how;
        let message = PeerMessage::Cancel { task_id, recursive, force };
        if let Some(Call::Method { actor_id, .. }) = self.tasks.get(task_id).map(|task| &task.call) {
            if let Some(at) = self.address_of(*actor_id) {
                self.tell(core, at, &message);
            }
            return;
        }
        let Some(lease_id) = self.dispatcher.lease_of(task_id) else { return };
        let Some(&at) = self.shared.leases.get(&lease_id) else { return };
        self.tell(core, at, &message);
        if force {
            self.forced_ends.push(ForcedEnd { task_id, lease_id, due: now() + FORCE_AFTER });
            self.flush_soon();
        }
    }

    /// Somebody has cancelled a task that was sent to this process.
    pub(super) fn on_cancel(&mut self, core: &CoreWorker, from: Owner, task_id: TaskId, how: Cancellation) {
        let Some(key) = self.execution.running.find(task_id) else {
            return self.cancel_queued(core, from, task_id);
        };
        if let Some(running) = self.execution.running.get_mut(key) {
            running.cancelled = true;
        }
        if how.recursive {
            for child in self.tasks.children_of(task_id) {
                let force = how.force && !self.calls_actor(child);
                self.cancel_pending(core, child, Cancellation { force, ..how });
            }
        }
        if how.force {
            self.tell(core, from, &PeerMessage::CancelledChildren { task_id });
        } else {
            self.interrupt_running(key);
        }
    }

    fn cancel_queued(&mut self, core: &CoreWorker, from: Owner, task_id: TaskId) {
        let concurrent = self.execution.concurrent.as_mut();
        let call = concurrent.and_then(|concurrent| concurrent.remove(task_id)).map(|call| call.payload);
        if let Some(payload) = call.or_else(|| self.execution.take_queued(task_id)) {
            self.refuse_call(core, &payload, from, Failure::Cancelled(task_id));
        }
    }

    /// The process of a task that was cancelled with force has cancelled its children.
    pub(super) fn on_cancelled_children(&mut self, core: &CoreWorker, task_id: TaskId) {
        for end in self.forced_ends.iter_mut().filter(|end| end.task_id == task_id) {
            end.due = now();
        }
        self.settle_forced_ends(core, now());
    }

    /// Ends the processes that are due.
    pub(super) fn settle_forced_ends(&mut self, core: &CoreWorker, now: Instant) {
        if self.forced_ends.is_empty() {
            return;
        }
        for end in std::mem::take(&mut self.forced_ends) {
            if self.dispatcher.lease_of(end.task_id) != Some(end.lease_id) {
                // It has ended meanwhile.
            } else if end.due <= now {
                let reason = "its task was cancelled with force".to_owned();
                let at = self.shared.leases.get(&end.lease_id);
                let node_id = at.map_or(self.me.node_id, |at| at.node_id);
                self.tell_node_at(core, node_id, &ToRaylet::KillWorker { lease_id: end.lease_id, reason });
                self.flush(core);
            } else {
                self.forced_ends.push(end);
            }
        }
    }

    /// When [`State::settle_forced_ends`] has something to do next.
    pub(super) fn forced_deadline(&self) -> Option<Instant> {
        self.forced_ends.iter().map(|end| end.due).min()
    }
}
