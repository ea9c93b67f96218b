//! Submission, dispatch, replies, retries: the caller's side of a task.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ray_core::constraint::{Shape, Strategy};
use ray_core::error::RayResult;
use ray_core::id::{ActorId, LeaseId, NodeId, ObjectId, TaskId, WorkerId};
use ray_core::runtime_env::RuntimeEnv;
use ray_link::message::{LeasedWorker, ToRaylet, Unschedulable};

use super::ends::CAUSE_TIMEOUT;
use super::state::{State, now};
use super::{CoreWorker, Notification};
use crate::dispatcher::Action;
use crate::peer_message::{
    ArgValue, ExportedFunction, GeneratorSpec, GroupContext, Kind, PeerMessage, RetryExceptions, Returned,
    Target, TaskHeader, TaskReply, read_args, write_arg,
};
use crate::pending_watch::Cause;
use crate::reference_counter::Owner;
use crate::task_table::{Call, Mishap, PendingTask, TaskState, Verdict};
use crate::value::{Failure, Value};

/// How long a lost call waits for the news what becomes of its actor.
const ACTOR_NEWS_TIMEOUT: Duration = Duration::from_secs(30);

/// Room for messages that is kept at most, in bytes.
const KEPT_ROOM: usize = 64 * 1024;

/// A call of a remote function.
#[derive(Debug)]
pub struct TaskRequest {
    /// The function.
    pub function: Arc<ExportedFunction>,
    /// What it takes while it runs, and where it may.
    pub shape: Shape,
    /// Nothing was said of where it runs: it may be in the placement group of the task that submits it.
    pub may_inherit: bool,
    /// What its process needs; `None`: what this process has.
    pub runtime_env: Option<RuntimeEnv>,
    /// Its arguments, as [`write_arg`] wrote them.
    pub args: Vec<u8>,
    /// Objects that are arguments by themselves, once for each.
    pub dependencies: Vec<ObjectId>,
    /// Objects referred to inside arguments.
    pub nested: Vec<ObjectId>,
    /// How many objects it returns.
    pub num_returns: u32,
    /// Its name, for logs and errors.
    pub name: Arc<str>,
    /// How often it may be tried again; -1 = for ever.
    pub max_retries: i64,
    /// Which exceptions count as a failure to retry.
    pub retry_exceptions: RetryExceptions<Bytes>,
    /// Whether its end is noted for the state API and the timeline.
    pub task_events: bool,
    /// How it yields, if it is a generator; then it returns one object, which has its value at its end.
    pub generator: Option<Arc<GeneratorSpec>>,
}

/// The objects that a call makes; each has one handle, which is the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Returns {
    task_id: TaskId,
    count: u32,
}

impl Returns {
    /// How many there are.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// The one at this place.
    pub fn get(&self, index: u32) -> ObjectId {
        ObjectId::for_return(self.task_id, u64::from(index))
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = ObjectId> + use<> {
        let task_id = self.task_id;
        (0..u64::from(self.count)).map(move |index| ObjectId::for_return(task_id, index))
    }
}

/// A task that failed for good, whose error waits for the news of its cause.
#[derive(Debug)]
pub(super) struct Crash {
    task_id: TaskId,
    victim: Victim,
    pub(super) give_up_at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Worker(WorkerId),
    Actor(ActorId),
}

impl CoreWorker {
    /// Submits a task. Its objects are returned at once, each with one handle.
    ///
    /// # Errors
    /// If this process has left the cluster.
    pub fn submit_task(&self, request: TaskRequest) -> RayResult<Returns> {
        let mut state = self.lock();
        state.check_open()?;
        let mut shape = request.shape;
        if request.may_inherit {
            shape.constraint.strategy = state.inherited_strategy();
        }
        let state_mut = &mut *state;
        let runtime_env = request.runtime_env.as_ref().unwrap_or(&state_mut.runtime_env);
        let class = state_mut.dispatcher.class_of(&shape, runtime_env);
        let (task_id, parent) = state.next_task_id();
        let task = PendingTask {
            call: Call::Function { function: request.function, class },
            args: request.args.into(),
            dependencies: request.dependencies.into(),
            nested: request.nested.into(),
            num_returns: request.num_returns,
            name: request.name,
            attempt: 0,
            retries_left: request.max_retries,
            retry_exceptions: request.retry_exceptions,
            parent,
            state: TaskState::Queued,
            cancelled: false,
            retries: 0,
            created_us: state.created_us(request.task_events),
            generator: request.generator,
        };
        let returns = state.take_task(self, task_id, task);
        state.settle(self);
        self.read_between(&mut state);
        self.stir(&mut state);
        Ok(returns)
    }
}

impl State {
    /// Notes a task and its objects, and sends it if it can be sent.
    pub(super) fn take_task(&mut self, core: &CoreWorker, task_id: TaskId, task: PendingTask) -> Returns {
        let returns = Returns { task_id, count: task.num_returns };
        for object_id in returns.iter() {
            self.references.add_owned(object_id);
        }
        if let Some(generator) = &task.generator {
            self.open_stream(task_id, generator);
        }
        for &object_id in task.dependencies.iter().chain(&task.nested) {
            self.references.add_submitted(object_id);
        }
        for &object_id in &task.dependencies {
            self.ensure_value(core, object_id);
        }
        let memory = &self.memory;
        if self.tasks.submit(task_id, task, |object_id| memory.get(object_id).is_some()) {
            self.shared.ready_tasks.push_back(task_id);
        }
        returns
    }

    /// All arguments of a task have values.
    pub(super) fn on_task_ready(&mut self, core: &CoreWorker, task_id: TaskId) {
        let Some(task) = self.tasks.get(task_id) else { return };
        let call = task.call.clone();
        if let Some((_, failure)) = self.first_failure(&task.dependencies) {
            match call {
                Call::Function { .. } => {}
                Call::Method { actor_id, .. } => self.drop_call(core, actor_id, task_id),
                Call::Create { actor_id } => self.on_creation_failed(core, actor_id, &failure),
            }
            self.finish_task(core, task_id, Err(failure));
            return;
        }
        match call {
            Call::Function { class, .. } => {
                let mut out = Vec::new();
                self.dispatcher.enqueue(class, task_id, false, &mut out);
                self.apply_dispatch(core, out);
            }
            Call::Method { actor_id, .. } => self.on_call_ready(core, actor_id, task_id),
            Call::Create { actor_id } => self.register_actor(core, actor_id, task_id),
        }
    }

    pub(super) fn apply_dispatch(&mut self, core: &CoreWorker, actions: Vec<Action>) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Send { lease_id, task_id } => {
                    if !self.push_to_lease(core, lease_id, task_id) {
                        // It was dropped while it was queued: the lease is free for another.
                        let mut out = Vec::new();
                        self.dispatcher.on_reply(lease_id, task_id, 0, now(), &mut out);
                        actions.extend(out);
                    }
                }
                Action::SetDemand { class, node, target } => {
                    let shape = self.dispatcher.shape(class).clone();
                    let runtime_env = self.dispatcher.runtime_env(class).clone();
                    let job_id = self.job_id;
                    let demand = ToRaylet::SetLeaseDemand { class, shape, job_id, runtime_env, target };
                    self.tell_node_at(core, node.unwrap_or(self.me.node_id), &demand);
                }
                Action::Return { lease_id } => {
                    let node_id = self.forget_lease(lease_id);
                    self.tell_node_at(core, node_id, &ToRaylet::ReturnLease { lease_id });
                }
                Action::Retire { lease_id } => {
                    let node_id = self.forget_lease(lease_id);
                    self.tell_node_at(core, node_id, &ToRaylet::RetireWorker { lease_id });
                }
            }
        }
    }

    /// A lease goes back. Returns the node whose it is.
    fn forget_lease(&mut self, lease_id: LeaseId) -> NodeId {
        let Some(worker) = self.shared.leases.remove(&lease_id) else { return self.me.node_id };
        self.shared.lease_on.remove(&worker.worker_id);
        worker.node_id
    }

    /// Sends a task to the worker of a lease. Returns false if there is no such task any more.
    fn push_to_lease(&mut self, core: &CoreWorker, lease_id: LeaseId, task_id: TaskId) -> bool {
        let Some(task) = self.tasks.get(task_id) else { return false };
        let Call::Function { function, .. } = &task.call else { return false };
        let function = Arc::clone(function);
        let Some(&at) = self.shared.leases.get(&lease_id) else { return false };
        let mut message = std::mem::take(&mut self.message);
        if let Err(failure) = self.write_task(task_id, Target::Function(function.function_id), &mut message) {
            self.finish_task(core, task_id, Err(failure));
            return false;
        }
        if self.define_function(core, at, &function) {
            self.send(core, at, Kind::PushTask, |out| out.extend_from_slice(&message));
        }
        self.keep_room(message);
        self.tasks.on_sent(task_id);
        if self.dispatcher.held(lease_id) == 1 {
            // The worker has nothing else to do.
            self.flush_to(core, at.worker_id);
        }
        true
    }

    /// Keeps an emptied buffer for the next message, unless it is large.
    pub(super) fn keep_room(&mut self, mut message: Vec<u8>) {
        if message.capacity() <= KEPT_ROOM {
            message.clear();
            self.message = message;
        }
    }

    /// Appends a task for its worker: the header, then the arguments with their values.
    ///
    /// # Errors
    /// If an argument was lost after all were there, or they are too large together.
    pub(super) fn write_task(
        &self,
        task_id: TaskId,
        target: Target<'_>,
        message: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let unknown = || Failure::System(format!("task {task_id} is not pending"));
        let task = self.tasks.get(task_id).ok_or_else(unknown)?;
        let header = TaskHeader {
            task_id,
            attempt: task.attempt,
            target,
            group: self.group_of(&task.call),
            num_returns: task.num_returns,
            retriable: task.retries_left != 0,
            retries: task.retries,
            created_us: task.created_us,
            name: &task.name,
            generator: task.generator.as_deref().copied(),
            retry_exceptions: task.retry_exceptions.as_ref().map(|types| &types[..]),
        };
        header.write(message);
        if task.dependencies.is_empty() {
            message.extend_from_slice(&task.args);
        } else {
            if let Some((_, failure)) = self.first_failure(&task.dependencies) {
                return Err(failure);
            }
            self.write_values(&task.args, message);
        }
        let what = || format!("the arguments of {}", task.name);
        check_size(message.len(), self.max_frame, what)
    }

    /// The placement group that a call names; methods run in that of their actor.
    fn group_of(&self, call: &Call) -> Option<GroupContext> {
        let Call::Function { class, .. } = call else { return None };
        match self.dispatcher.shape(*class).constraint.strategy {
            Strategy::Bundle { group_id, capture, .. } => Some(GroupContext { group_id, capture }),
            Strategy::Default | Strategy::Spread | Strategy::NodeAffinity { .. } => None,
        }
    }

    /// Appends arguments with references replaced by values.
    pub(super) fn write_values(&self, args: &[u8], out: &mut Vec<u8>) {
        for arg in read_args(args).expect("this process wrote the arguments") {
            let value = match arg.value {
                ArgValue::Reference(object_id) => match self.memory.get(object_id) {
                    Some(Value::Inline(bytes)) => ArgValue::Inline(bytes),
                    Some(&Value::Stored { node_id, size }) => {
                        let owner = self.references.borrowed_from(object_id).unwrap_or(self.me);
                        ArgValue::Stored { object_id, owner, node_id, size }
                    }
                    // A task is not ready before its arguments have values, and fails with them.
                    Some(Value::Failed(_)) | None => ArgValue::Reference(object_id),
                },
                other => other,
            };
            write_arg(out, arg.keyword, &value);
        }
    }

    pub(super) fn on_lease_granted(
        &mut self,
        core: &CoreWorker,
        class: u64,
        lease_id: LeaseId,
        worker: LeasedWorker,
        devices: Vec<u32>,
    ) {
        let at = Owner { worker_id: worker.worker_id, node_id: worker.node_id };
        self.shared.leases.insert(lease_id, at);
        self.shared.lease_on.insert(at.worker_id, lease_id);
        // Before its first task: on one connection, so that they cannot change places.
        if class < self.dispatcher.classes() {
            let resources = self.dispatcher.shape(class).resources.clone();
            self.tell(core, at, &PeerMessage::Leased { resources, devices });
        }
        let mut out = Vec::new();
        let node = (at.node_id != self.me.node_id).then_some(at.node_id);
        self.dispatcher.on_lease_granted(class, node, lease_id, now(), &mut out);
        self.apply_dispatch(core, out);
    }

    /// Others wait on a node for what leases of this class take there, or do so no longer.
    pub(super) fn on_lease_contention(
        &mut self,
        core: &CoreWorker,
        class: u64,
        node: Option<NodeId>,
        contended: bool,
    ) {
        let mut out = Vec::new();
        self.dispatcher.on_contention(class, node, contended, now(), &mut out);
        self.apply_dispatch(core, out);
    }

    pub(super) fn on_lease_infeasible(&mut self, class: u64, reason: &str) {
        let count = self.dispatcher.queued(class);
        // None if they were cancelled meanwhile.
        if count > 0 && self.warned.insert(class) {
            let resources = &self.dispatcher.shape(class).resources;
            let text = format!(
                "{count} task(s) that need {resources} cannot be scheduled: {reason}. They stay \
                 pending until a node with these resources joins the cluster."
            );
            self.notify(Notification::Warning(text));
            self.pending_watch.on_told(Cause::Class(class));
        }
    }

    /// The tasks of this class that have no worker yet will not get one.
    pub(super) fn on_runtime_env_failed(
        &mut self,
        core: &CoreWorker,
        class: u64,
        node: Option<NodeId>,
        reason: &str,
    ) {
        let mut out = Vec::new();
        for task_id in self.dispatcher.on_class_failed(class, node, &mut out) {
            self.finish_task(core, task_id, Err(Failure::RuntimeEnvSetup(reason.to_owned())));
        }
        self.apply_dispatch(core, out);
    }

    /// No lease of this class will ever be granted: what waits for one fails.
    pub(super) fn on_lease_unschedulable(
        &mut self,
        core: &CoreWorker,
        class: u64,
        node: Option<NodeId>,
        kind: Unschedulable,
        reason: &str,
    ) {
        if class >= self.dispatcher.classes() {
            return;
        }
        if kind == Unschedulable::PlacementGroupRemoved {
            self.removed_classes.insert(class, reason.to_owned());
        }
        let mut out = Vec::new();
        for task_id in self.dispatcher.on_class_failed(class, node, &mut out) {
            let failure = self.unschedulable(task_id, kind, reason, false);
            self.finish_task(core, task_id, Err(failure));
        }
        self.apply_dispatch(core, out);
    }

    fn unschedulable(&self, task_id: TaskId, kind: Unschedulable, reason: &str, ran: bool) -> Failure {
        let name = self.tasks.get(task_id).map_or_else(String::new, |task| task.name.to_string());
        Failure::Unschedulable { task_id, name, kind, reason: reason.to_owned(), ran }
    }

    pub(super) fn on_task_reply(&mut self, core: &CoreWorker, from: WorkerId, reply: TaskReply) {
        let Some(task) = self.tasks.get(reply.task_id) else { return };
        if task.attempt != reply.attempt {
            return;
        }
        let call = task.call.clone();
        let (mishap, outcome) = match reply.outcome {
            Err(Failure::RaisedListed(error)) => {
                (Some(Mishap::Exception { is_listed: true }), Err(Failure::Raised(error)))
            }
            Err(Failure::Raised(error)) => {
                (Some(Mishap::Exception { is_listed: false }), Err(Failure::Raised(error)))
            }
            other => (None, other),
        };
        let mut out = Vec::new();
        match &call {
            Call::Function { .. } => {
                if let Some(&lease_id) = self.shared.lease_on.get(&from) {
                    let (task_id, spent) = (reply.task_id, reply.execution_us);
                    if reply.is_last {
                        let unstarted = self.dispatcher.on_last_reply(lease_id, task_id, spent, &mut out);
                        for task_id in unstarted.into_iter().rev() {
                            self.requeue_first(core, task_id, &mut out);
                        }
                    } else {
                        self.dispatcher.on_reply(lease_id, task_id, spent, now(), &mut out);
                    }
                }
            }
            Call::Method { actor_id, .. } => self.on_call_reply(*actor_id, reply.task_id),
            Call::Create { .. } => return,
        }
        let verdict = mishap.map(|mishap| self.tasks.on_attempt_failed(reply.task_id, mishap));
        if verdict == Some(Verdict::Retry) {
            match call {
                Call::Function { class, .. } => {
                    self.dispatcher.enqueue(class, reply.task_id, false, &mut out);
                }
                Call::Method { actor_id, .. } => self.requeue_calls(core, actor_id, &[reply.task_id]),
                Call::Create { .. } => {}
            }
        } else {
            let outcome = self.end_with_exception(core, reply.task_id, outcome);
            self.finish_task(core, reply.task_id, outcome);
        }
        self.apply_dispatch(core, out);
    }

    /// A task has ended: its objects get their values, and its arguments are let go.
    pub(super) fn finish_task(
        &mut self,
        core: &CoreWorker,
        task_id: TaskId,
        outcome: Result<Vec<Returned>, Failure>,
    ) {
        let Some(task) = self.tasks.remove(task_id) else { return };
        let outcome = outcome.and_then(|returned| {
            let expected = task.num_returns as usize;
            if returned.len() == expected {
                return Ok(returned);
            }
            let count = returned.len();
            Err(Failure::System(format!("{} returned {count} objects instead of {expected}", task.name)))
        });
        let ids = (0..u64::from(task.num_returns)).map(|index| ObjectId::for_return(task_id, index));
        match outcome {
            Ok(returned) => {
                for (object_id, returned) in ids.zip(returned) {
                    self.take_result(core, object_id, returned);
                }
            }
            Err(failure) => {
                self.on_task_failed(task_id, &task, &failure);
                for object_id in ids {
                    self.take_value(core, object_id, failure.clone().into(), &[]);
                }
            }
        }
        if task.generator.is_some() {
            self.finish_stream(core, task_id);
        }
        let mut effects = Vec::new();
        for &object_id in task.dependencies.iter().chain(&task.nested) {
            self.references.remove_submitted(object_id, &mut effects);
        }
        self.apply_reference_effects(core, effects);
    }

    /// A worker does not start these tasks for now.
    pub(super) fn on_given_back(&mut self, core: &CoreWorker, from: WorkerId, task_ids: &[TaskId]) {
        // Else its lease has ended, and with it they came back: by now they may be with another.
        let Some(&lease_id) = self.shared.lease_on.get(&from) else { return };
        let mut out = Vec::new();
        self.dispatcher.on_given_back(lease_id, task_ids, now(), &mut out);
        for &task_id in task_ids.iter().rev() {
            self.requeue_first(core, task_id, &mut out);
        }
        self.apply_dispatch(core, out);
    }

    fn requeue_first(&mut self, core: &CoreWorker, task_id: TaskId, out: &mut Vec<Action>) {
        let Some(PendingTask { call: Call::Function { class, .. }, .. }) = self.tasks.get(task_id) else {
            return;
        };
        let class = *class;
        match self.tasks.on_given_back(task_id) {
            Some(Verdict::Retry) => self.dispatcher.enqueue(class, task_id, true, out),
            Some(Verdict::Fail) => self.finish_task(core, task_id, Err(Failure::Cancelled(task_id))),
            None => {}
        }
    }

    /// No connection to the worker of a lease could be made: nothing that was meant for it has run.
    pub(super) fn on_lease_unreachable(&mut self, core: &CoreWorker, worker_id: WorkerId) {
        let Some(lease_id) = self.shared.lease_on.remove(&worker_id) else { return };
        let at = self.shared.leases.remove(&lease_id);
        let reason = "its leaseholder cannot connect to it".to_owned();
        let node_id = at.map_or(self.me.node_id, |at| at.node_id);
        self.tell_node_at(core, node_id, &ToRaylet::KillWorker { lease_id, reason });
        let mut out = Vec::new();
        for task_id in self.dispatcher.on_lease_lost(lease_id, &mut out).into_iter().rev() {
            self.requeue_first(core, task_id, &mut out);
        }
        self.apply_dispatch(core, out);
    }

    /// The worker of a lease is gone. The task that ran is tried again if it may be; those behind it
    /// were not started, or may run twice (see `TaskHeader::retriable`), and are queued again. Returns
    /// the lease and its node.
    pub(super) fn on_lease_worker_lost(
        &mut self,
        core: &CoreWorker,
        worker_id: WorkerId,
    ) -> Option<(LeaseId, NodeId)> {
        let lease_id = self.shared.lease_on.remove(&worker_id)?;
        let node_id = self.shared.leases.remove(&lease_id)?.node_id;
        let mut out = Vec::new();
        let mut lost = self.dispatcher.on_lease_lost(lease_id, &mut out);
        let ran = lost.pop_front();
        for &task_id in lost.iter().rev() {
            self.requeue_first(core, task_id, &mut out);
        }
        if let Some(task_id) = ran {
            let class = match self.tasks.get(task_id) {
                Some(PendingTask { call: Call::Function { class, .. }, .. }) => Some(*class),
                Some(_) | None => None,
            };
            match (self.tasks.on_attempt_failed(task_id, Mishap::Crash), class) {
                (Verdict::Retry, Some(class)) => self.dispatcher.enqueue(class, task_id, true, &mut out),
                (Verdict::Retry | Verdict::Fail, _) => {
                    self.await_cause(task_id, Victim::Worker(worker_id), CAUSE_TIMEOUT);
                }
            }
        }
        self.apply_dispatch(core, out);
        Some((lease_id, node_id))
    }

    /// A call was lost with its actor's process, and is not tried again.
    pub(super) fn on_call_lost(&mut self, actor_id: ActorId, task_id: TaskId) {
        self.await_cause(task_id, Victim::Actor(actor_id), ACTOR_NEWS_TIMEOUT);
    }

    fn await_cause(&mut self, task_id: TaskId, victim: Victim, patience: Duration) {
        self.crashes.push(Crash { task_id, victim, give_up_at: now() + patience });
        self.flush_soon();
    }

    /// Fails the tasks whose end is known now, or has been waited for long enough.
    pub(super) fn settle_crashes(&mut self, core: &CoreWorker, now: Instant) {
        let crashes = std::mem::take(&mut self.crashes);
        for crash in crashes {
            let overdue = crash.give_up_at <= now;
            let cancelled = self.tasks.get(crash.task_id).is_some_and(|task| task.cancelled);
            let failure = if cancelled {
                Some(Failure::Cancelled(crash.task_id))
            } else {
                match crash.victim {
                    Victim::Worker(worker_id) => self.crash_failure(crash.task_id, worker_id, overdue),
                    Victim::Actor(actor_id) => self.actor_failure(actor_id, overdue),
                }
            };
            match failure {
                Some(failure) => self.finish_task(core, crash.task_id, Err(failure)),
                None => self.crashes.push(crash),
            }
        }
    }

    fn crash_failure(&self, task_id: TaskId, worker_id: WorkerId, overdue: bool) -> Option<Failure> {
        if let Some(PendingTask { call: Call::Function { class, .. }, .. }) = self.tasks.get(task_id)
            && let Some(reason) = self.removed_classes.get(class)
        {
            // The node says so before it ends the workers.
            return Some(self.unschedulable(task_id, Unschedulable::PlacementGroupRemoved, reason, true));
        }
        let cause = match self.cause_of(worker_id) {
            Some(cause) => cause,
            None if overdue => "its connection was closed",
            None => return None,
        };
        let (name, attempts) =
            self.tasks.get(task_id).map_or((String::new(), 0), |task| (task.name.to_string(), task.attempt));
        let tried = if attempts == 0 { String::new() } else { format!(" (after {attempts} retries)") };
        let cause = format!("{cause}{tried}");
        if let Some(node_id) = self.ended_with(worker_id) {
            return Some(Failure::NodeDied { task_id, name, node_id, cause });
        }
        let out_of_memory = self.was_out_of_memory(worker_id);
        Some(Failure::WorkerCrashed { task_id, name, worker_id, cause, out_of_memory })
    }
}

/// Refuses what no message can carry: whoever got it would close the connection.
pub(super) fn check_size(size: usize, limit: usize, what: impl FnOnce() -> String) -> Result<(), Failure> {
    if size <= limit {
        return Ok(());
    }
    let what = what();
    Err(Failure::System(format!("{what} take {size} bytes, more than the {limit} of one message")))
}
