//! What this process tells for people: tasks that ended, metrics, what it does when asked, and why
//! something waits.

use std::time::{Duration, Instant};

use ray_core::id::{ActorId, FunctionId, ObjectId, TaskId};
use ray_core::pb::gcs::AddTaskEventsRequest;
use ray_core::report::{
    DebuggerReport, Inquiry, PendingTaskReport, ProcessReport, ReferenceReport, TaskBatch, TaskKind,
    TaskName, TaskPhase, Teller, WaitingReport,
};
use ray_core::serialize;
use ray_link::message::{GcsMethod, ToRaylet};
use rustc_hash::FxHashSet;

use prost::Message as _;

use super::concurrent::StartedCall;
use super::state::{State, now, wall_us};
use super::{CoreWorker, Notification};
use crate::actor_calls::ActorState;
use crate::metrics;
use crate::peer_message::{Target, TaskHeader};
use crate::pending_watch::Cause;
use crate::task_log::EndedTask;
use crate::task_table::{Call, PendingTask, TaskState};
use crate::value::{Failure, Value};

/// Missing arguments that are named.
const NAMED_ARGUMENTS: usize = 8;

/// Waiting tasks whose names are looked at for a text.
const COUNTED_NAMES: usize = 1_000;

/// Failed tasks that are remembered until somebody asks for their result.
const MAX_UNSEEN: usize = 100_000;

/// What the header of a task says for the record of its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    retries: u32,
    created_us: u64,
    kind: TaskKind,
    function: Option<FunctionId>,
    actor_id: Option<ActorId>,
}

impl Origin {
    pub(super) fn of(header: &TaskHeader<'_>) -> Self {
        let (kind, function, actor_id) = match &header.target {
            Target::Function(function_id) => (TaskKind::NormalTask, Some(*function_id), None),
            Target::Method { actor_id, .. } => (TaskKind::ActorTask, None, Some(*actor_id)),
        };
        Self { retries: header.retries, created_us: header.created_us, kind, function, actor_id }
    }
}

/// A task that ended here, by what its header says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended<'a> {
    pub(super) task_id: TaskId,
    pub(super) retries: u32,
    pub(super) created_us: u64,
    pub(super) name: &'a str,
    pub(super) function: Option<FunctionId>,
    pub(super) actor_id: Option<ActorId>,
    pub(super) kind: TaskKind,
    pub(super) ran: Option<(Instant, Duration)>,
    pub(super) error: Option<&'static str>,
}

impl<'a> Ended<'a> {
    pub(super) fn of(header: &TaskHeader<'a>) -> Self {
        Self::new(header.task_id, header.name, Origin::of(header))
    }

    pub(super) fn of_call(call: &'a StartedCall) -> Self {
        Self::new(call.task_id, &call.name, call.origin)
    }

    const fn new(task_id: TaskId, name: &'a str, origin: Origin) -> Self {
        let Origin { retries, created_us, kind, function, actor_id } = origin;
        Self { task_id, retries, created_us, name, function, actor_id, kind, ran: None, error: None }
    }
}

impl CoreWorker {
    /// The text of the exception that a task of this process raised, for the record of its end.
    pub fn keep_error_text(&self, task_id: TaskId, text: String) {
        self.lock().task_log.keep_error(task_id, text);
    }

    /// Where this process serves debuggers, for whoever asks.
    pub fn set_debugger(&self, debugger: DebuggerReport) {
        self.lock().debugger = debugger;
    }

    /// Something was recorded that the node has to be told.
    pub fn on_metric(&self) {
        let mut state = self.lock();
        if state.check_open().is_ok() && state.metrics_due.is_none() {
            state.metrics_due = Some(now() + self.report_interval());
            self.stir(&mut state);
        }
    }

    const fn report_interval(&self) -> Duration {
        Duration::from_millis(self.config.report_interval_ms)
    }
}

impl State {
    /// What a task carries whose end is to be noted: when it was submitted.
    pub(super) fn created_us(&self, task_events: bool) -> u64 {
        if task_events { wall_us() } else { 0 }
    }

    pub(super) fn teller(&self) -> Teller {
        Teller {
            worker_id: self.me.worker_id,
            node_id: self.me.node_id,
            job_id: self.job_id,
            pid: std::process::id(),
        }
    }

    /// A task has ended here.
    pub(super) fn note_ended(&mut self, ended: &Ended<'_>) {
        let defined = ended.function.and_then(|function_id| self.functions.get(&function_id));
        let function = defined.map_or(ended.name, |defined| &*defined.name);
        let task = EndedTask {
            task_id: ended.task_id,
            attempt: ended.retries,
            kind: ended.kind,
            actor_id: ended.actor_id,
            name: ended.name,
            function,
            created_us: ended.created_us,
            ran: ended.ran,
            error: ended.error,
            noted_elsewhere: false,
        };
        let now = ended.ran.map_or_else(now, |(start, length)| start + length);
        self.task_log.note(&task, now);
    }

    /// A task of this process has failed for good.
    pub(super) fn on_task_failed(&mut self, task_id: TaskId, task: &PendingTask, failure: &Failure) {
        let is_creation = matches!(task.call, Call::Create { .. });
        // The end of an actor, or of an owner, is not the task's own failure.
        let is_own =
            matches!(failure, Failure::Raised(_) | Failure::WorkerCrashed { .. } | Failure::NodeDied { .. });
        let is_seen = !is_own || is_creation || task.num_returns == 0;
        let first = ObjectId::for_return(task_id, 0);
        let mut returns = (0..u64::from(task.num_returns)).map(|at| ObjectId::for_return(task_id, at));
        if is_seen {
            // Nobody is to be told.
        } else if !returns.any(|object_id| self.references.contains(object_id)) {
            self.notify(Notification::UnhandledError { object_id: first, failure: failure.clone() });
        } else if self.unseen_failures.len() < MAX_UNSEEN {
            self.unseen_failures.insert(task_id);
        }
        // Who passes a failure on has seen it.
        for dependency in &task.dependencies {
            self.unseen_failures.remove(&dependency.task_id());
        }
        let (kind, actor_id) = kind_of(&task.call);
        if !matches!(failure, Failure::Raised(_)) {
            self.task_log.keep_error(task_id, failure.clone().into_error(first).chain());
        }
        let name = self.task_name(task);
        let ended = EndedTask {
            task_id,
            attempt: task.retries,
            kind,
            actor_id,
            name: &name.name,
            function: &name.function,
            created_us: task.created_us,
            ran: None,
            error: Some(failure.kind()),
            noted_elsewhere: task.state == TaskState::Sent
                && (matches!(failure, Failure::Raised(_)) || is_creation),
        };
        self.task_log.note(&ended, now());
    }

    /// The last reference to an object without a value is gone.
    pub(super) fn on_failure_dropped(&mut self, object_id: ObjectId, failure: Failure) {
        if !self.unseen_failures.is_empty() && self.unseen_failures.remove(&object_id.task_id()) {
            self.notify(Notification::UnhandledError { object_id, failure });
        }
    }

    pub(super) fn metrics_deadline(&self) -> Option<Instant> {
        // What was recorded before this process joined is told first of all.
        self.metrics_due.or_else(|| metrics::is_waiting().then(now))
    }

    pub(super) fn pending_deadline(&self) -> Option<Instant> {
        self.pending_watch.next_look().filter(|_| self.may_wait())
    }

    fn may_wait(&self) -> bool {
        !self.tasks.is_empty()
    }

    /// Tells what is due by now.
    pub(super) fn tell_what_is_due(&mut self, core: &CoreWorker, now: Instant) {
        let request = self.next_request + 1;
        let teller = self.teller();
        if let Some(batch) = self.task_log.take_due(now, request, &teller) {
            self.tell_batch(request, &batch);
        }
        if self.metrics_due.is_some_and(|due| due <= now)
            || (self.metrics_due.is_none() && metrics::is_waiting())
        {
            self.metrics_due = None;
            self.tell_metrics();
        }
        if !self.may_wait() {
            self.pending_watch.rest();
        } else if self.pending_watch.is_due(now) {
            self.look_for_reasons(core, now);
        }
    }

    /// Tells all that waits to be told, for this process leaves.
    pub(super) fn tell_all(&mut self) {
        let request = self.next_request + 1;
        let teller = self.teller();
        if let Some(batch) = self.task_log.take(request, &teller) {
            self.tell_batch(request, &batch);
        }
        if metrics::is_waiting() {
            self.tell_metrics();
        }
    }

    fn tell_batch(&mut self, request: u64, batch: &TaskBatch) {
        self.next_request = request;
        let batch = serialize::to_bytes(batch).expect("records of tasks can be encoded");
        let body = AddTaskEventsRequest { batch }.encode_to_vec().into();
        self.tell_node(&ToRaylet::GcsCall { request, method: GcsMethod::AddTaskEvents, body });
    }

    fn tell_metrics(&mut self) {
        let changes = metrics::take();
        if !changes.is_empty() {
            self.tell_node(&ToRaylet::Metrics { changes });
        }
    }

    // When asked.

    pub(super) fn on_inspect(&mut self, request: u64, inquiry: Inquiry) {
        let report = self.process_report(inquiry);
        let report = serialize::to_bytes(&report).expect("a report can be encoded").into();
        self.tell_node(&ToRaylet::Inspected { request, report });
    }

    fn process_report(&self, inquiry: Inquiry) -> ProcessReport {
        let teller = self.teller();
        let limit = inquiry.limit as usize;
        let running = self.execution.running.iter();
        ProcessReport {
            is_driver: !self.execution.is_worker,
            actor_id: self.execution.actor,
            root_task: self.root_task,
            running: running.map(|task| (task.task_id, self.task_log.wall_us(task.since))).collect(),
            pending: if inquiry.tasks { self.pending_tasks(limit) } else { Vec::new() },
            pending_total: self.tasks.len() as u64,
            ended: if inquiry.tasks { self.task_log.peek(&teller) } else { None },
            references: if inquiry.objects { self.reference_reports(limit) } else { Vec::new() },
            references_total: self.references.len() as u64,
            debugger: self.debugger,
            waiting: self.waiting_tasks(),
            teller,
        }
    }

    fn waiting_tasks(&self) -> Vec<WaitingReport> {
        let classes =
            (0..self.dispatcher.classes()).map(|class| (class, self.dispatcher.queued(class) as u64));
        let waiting = classes.filter(|&(_, count)| count > 0);
        let report =
            |(class, count)| WaitingReport { class, shape: self.dispatcher.shape(class).clone(), count };
        waiting.map(report).collect()
    }

    fn pending_tasks(&self, limit: usize) -> Vec<PendingTaskReport> {
        let mut tasks: Vec<_> = self.tasks.iter().collect();
        tasks.sort_unstable_by_key(|&(task_id, task)| (task.created_us, task_id));
        tasks.truncate(limit);
        tasks.into_iter().map(|(task_id, task)| self.pending_task(task_id, task)).collect()
    }

    fn pending_task(&self, task_id: TaskId, task: &PendingTask) -> PendingTaskReport {
        let (kind, actor_id) = kind_of(&task.call);
        let missing = self.missing_arguments(task);
        let phase = match task.state {
            TaskState::Waiting { .. } => TaskPhase::PendingArgsAvail,
            TaskState::Queued => TaskPhase::PendingNodeAssignment,
            TaskState::Sent if kind == TaskKind::ActorCreationTask => TaskPhase::PendingNodeAssignment,
            TaskState::Sent => TaskPhase::SubmittedToWorker,
        };
        let class = match &task.call {
            Call::Function { class, .. } => Some(*class),
            Call::Method { .. } | Call::Create { .. } => None,
        };
        let reason = if missing.is_empty() {
            actor_id.map_or_else(String::new, |actor_id| self.wait_for_actor(actor_id, task_id, task.state))
        } else {
            self.wait_for_arguments(&missing)
        };
        let lease = (task.state == TaskState::Sent).then(|| self.dispatcher.lease_of(task_id)).flatten();
        PendingTaskReport {
            task_id,
            attempt: task.retries,
            phase,
            kind,
            name: self.task_name(task),
            actor_id,
            created_us: task.created_us,
            resources: class.map_or_else(Vec::new, |class| {
                let amounts = self.dispatcher.shape(class).resources.iter();
                amounts.map(|(name, amount)| (name.to_owned(), amount.to_f64())).collect()
            }),
            class,
            missing,
            reason,
            worker_id: lease.and_then(|lease| self.shared.leases.get(&lease)).map(|at| at.worker_id),
        }
    }

    fn task_name(&self, task: &PendingTask) -> TaskName {
        let name = task.name.to_string();
        match &task.call {
            Call::Function { function, .. } => TaskName { name, function: function.name.clone() },
            Call::Method { .. } => TaskName { function: name.clone(), name },
            Call::Create { .. } => {
                let name = format!("{name}.__init__");
                TaskName { function: name.clone(), name }
            }
        }
    }

    fn missing_arguments(&self, task: &PendingTask) -> Vec<ObjectId> {
        let mut missing: Vec<_> = task.dependencies.to_vec();
        missing.retain(|&object_id| self.memory.get(object_id).is_none());
        missing.sort_unstable();
        missing.dedup();
        missing.truncate(NAMED_ARGUMENTS);
        missing
    }

    fn reference_reports(&self, limit: usize) -> Vec<ReferenceReport> {
        let mut all: Vec<_> = self.references.iter().collect();
        all.sort_unstable_by_key(|&(object_id, _)| object_id);
        all.truncate(limit);
        let handles: FxHashSet<ObjectId> = self.actors.values().map(|actor| actor.handle).collect();
        all.into_iter()
            .map(|(object_id, uses)| {
                let value = self.memory.get(object_id);
                ReferenceReport {
                    object_id,
                    owner: uses.owner.unwrap_or(self.me.worker_id),
                    size: match value {
                        Some(Value::Inline(bytes)) => Some(bytes.len() as u64),
                        Some(Value::Stored { size, .. }) => Some(*size),
                        Some(Value::Failed(_)) | None => None,
                    },
                    stored: matches!(value, Some(Value::Stored { .. })),
                    failed: matches!(value, Some(Value::Failed(_))),
                    local: uses.local,
                    submitted: uses.submitted,
                    contained_in: uses.contained_in,
                    pinned: self.pins.is_read(object_id),
                    borrowers: u32::try_from(uses.borrowers).unwrap_or(u32::MAX),
                    is_handle: handles.contains(&object_id),
                }
            })
            .collect()
    }

    // Why something waits, as far as this process knows.

    fn wait_for_arguments(&self, missing: &[ObjectId]) -> String {
        let named: Vec<_> = missing.iter().map(|&object_id| self.describe_missing(object_id)).collect();
        format!("its arguments are not there yet: {}", named.join("; "))
    }

    fn describe_missing(&self, object_id: ObjectId) -> String {
        let maker = self.tasks.get(object_id.task_id());
        match (maker, self.references.borrowed_from(object_id)) {
            (Some(task), _) => {
                let state = match task.state {
                    TaskState::Waiting { .. } => "waits for arguments itself",
                    TaskState::Queued => "waits to be run itself",
                    TaskState::Sent => "is with its worker",
                };
                format!(
                    "object {object_id}, made by task {:?} ({}), which {state}",
                    task.name,
                    object_id.task_id()
                )
            }
            (None, Some(owner)) => {
                format!("object {object_id}, which process {} owns and has not made yet", owner.worker_id)
            }
            (None, None) => format!("object {object_id}"),
        }
    }

    fn wait_for_actor(&self, actor_id: ActorId, task_id: TaskId, task_state: TaskState) -> String {
        let Some(actor) = self.actors.get(&actor_id) else { return String::new() };
        let what = format!("actor {} ({actor_id})", actor.class_name);
        match actor.calls.state() {
            ActorState::Pending if actor.pending_reason.is_empty() => {
                format!("{what} is not made yet")
            }
            ActorState::Pending => format!("{what} is not made yet: {}", actor.pending_reason),
            ActorState::Restarting if actor.pending_reason.is_empty() => format!("{what} is being restarted"),
            ActorState::Restarting => format!("{what} is being restarted: {}", actor.pending_reason),
            ActorState::Dead { .. } => format!("{what} is dead"),
            ActorState::Alive { .. } if task_state == TaskState::Sent => String::new(),
            ActorState::Alive { .. } => match actor.calls.first_waiting() {
                Some((first, true)) if first != task_id => {
                    let name = self.tasks.get(first).map_or_else(String::new, |task| task.name.to_string());
                    format!("an earlier call of {what}, {name:?} ({first}), waits for its arguments")
                }
                Some(_) | None => String::new(),
            },
        }
    }

    /// Looks for what waits without progress, and asks why.
    fn look_for_reasons(&mut self, core: &CoreWorker, now: Instant) {
        let class = |(class, _, first): (u64, usize, TaskId)| {
            let bytes = first.as_bytes();
            let mark = u64::from_le_bytes(bytes[bytes.len() - 8..].try_into().expect("8 bytes"));
            (Cause::Class(class), mark)
        };
        let waits = |actor: &super::actors::Actor| match actor.calls.state() {
            ActorState::Pending | ActorState::Restarting => {
                actor.creation.is_some() || actor.calls.pending() > 0
            }
            ActorState::Alive { .. } | ActorState::Dead { .. } => false,
        };
        let mark_of =
            |actor: &super::actors::Actor| u64::from(*actor.calls.state() == ActorState::Restarting);
        let actors = self.actors.iter().filter(|(_, actor)| waits(actor));
        let actors = actors.map(|(&actor_id, actor)| (Cause::Actor(actor_id), mark_of(actor)));
        let present: Vec<_> = self.dispatcher.stuck().map(class).chain(actors).collect();
        for cause in self.pending_watch.look(now, present.into_iter()) {
            match cause {
                Cause::Class(class) => self.tell_node(&ToRaylet::WhyPending { class }),
                Cause::Actor(actor_id) => self.tell_why_actor_waits(actor_id),
            }
        }
        let _ = core;
    }

    fn tell_why_actor_waits(&mut self, actor_id: ActorId) {
        let Some(actor) = self.actors.get(&actor_id) else { return };
        let state = *actor.calls.state() == ActorState::Restarting;
        let creation = actor.creation.as_ref().map(|creation| creation.task_id);
        let missing =
            creation.and_then(|task_id| self.tasks.get(task_id)).map(|task| self.missing_arguments(task));
        let reason = match missing {
            Some(missing) if !missing.is_empty() => self.wait_for_arguments(&missing),
            _ if !actor.pending_reason.is_empty() => actor.pending_reason.clone(),
            _ if state => "it is being restarted".to_owned(),
            _ => "it is being made, or its constructor has not returned".to_owned(),
        };
        let text = format!("actor {} ({actor_id}) waits: {reason}", actor.class_name);
        if self.pending_watch.is_news(Cause::Actor(actor_id), &reason) {
            self.notify(Notification::Pending(text));
        }
    }

    /// The node says why no lease of a class is granted.
    pub(super) fn on_pending_reason(&mut self, class: u64, reason: &str) {
        let count = self.dispatcher.queued(class);
        let Some(first) = self.dispatcher.waiting(class).next() else { return };
        if reason.is_empty() {
            return;
        }
        let Some(name) = self.tasks.get(first).map(|task| task.name.clone()) else { return };
        let is_other = |task_id| self.tasks.get(task_id).is_some_and(|task| task.name != name);
        let others = self.dispatcher.waiting(class).take(COUNTED_NAMES).any(is_other);
        let others = if others { " and others" } else { "" };
        let (tasks, wait) = if count == 1 { ("task", "waits") } else { ("tasks", "wait") };
        let text = format!("{count} {tasks} {:?}{others} {wait}: {reason}", &*name);
        if self.pending_watch.is_news(Cause::Class(class), reason) {
            self.notify(Notification::Pending(text));
        }
    }
}

const fn kind_of(call: &Call) -> (TaskKind, Option<ActorId>) {
    match call {
        Call::Function { .. } => (TaskKind::NormalTask, None),
        Call::Method { actor_id, .. } => (TaskKind::ActorTask, Some(*actor_id)),
        Call::Create { actor_id } => (TaskKind::ActorCreationTask, Some(*actor_id)),
    }
}
