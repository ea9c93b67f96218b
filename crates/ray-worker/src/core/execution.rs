//! A worker's side: tasks that come, run on the main thread one by one, and are answered.
//!
//! While the main thread runs a task, nobody reads the sockets for a moment; then the background thread
//! takes that over. A task that runs for [`LONG_AFTER`], or waits for objects, sends the tasks queued
//! behind it back to their callers, and what comes meanwhile at once. An actor whose calls run side by
//! side has its own way, see `concurrent`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;
use ray_core::constraint::{Constraint, Strategy};
use ray_core::error::{RayError, RayResult};
use ray_core::id::{ActorId, ChildTaskIds, FunctionId, JobId, NodeId, ObjectId, TaskId, WorkerId};
use ray_core::pb::common::ActorSpec;
use ray_core::report::TaskKind;
use ray_core::resource::Resources;
use ray_core::wire;
use ray_link::message::ToRaylet;
use rustc_hash::FxHashMap;

use super::CoreWorker;
use super::concurrent::{Concurrency, Concurrent, QueuedCall, StartedCall};
use super::grants::Then;
use super::peers::keep;
use super::pins::{ReadyValue, Sought};
use super::poll::{End, Patience};
use super::reports::Ended;
use super::running::{Called, Running, RunningKey, RunningTasks, work_for, works_for};
use super::state::{State, now};
use super::tasks::check_size;
use crate::codec::{Fields, damaged};
use crate::memory_store::WaiterId;
use crate::peer_message::{
    Arg, ArgValue, GroupContext, Kind, PeerMessage, RetryExceptions, Returned, Target, TaskHeader, TaskReply,
    read_args,
};
use crate::reference_counter::Owner;
use crate::value::{Contained, Failure};

/// How long a task runs before those queued behind it are sent back.
const LONG_AFTER: Duration = Duration::from_millis(5);

/// What runs the user's code. Called on the main thread, without locks.
pub trait Executor {
    /// Before anything of a job runs: what the driver said of it.
    fn set_job(&self, job_config: &[u8]);

    /// What runs from now on is to use these graphics processors of the node, by number.
    fn set_devices(&self, devices: &[u32]);

    /// Runs a task; its results are stored by [`CoreWorker::place_result`].
    ///
    /// # Errors
    /// What the caller gets instead of results.
    fn execute(&self, core: &Arc<CoreWorker>, task: &Task<'_>) -> Result<Vec<Returned>, Failure>;

    /// Starts a call of an actor whose calls run in event loops. Whoever ends it tells by
    /// [`CoreWorker::finish_call`].
    fn start(&self, core: &Arc<CoreWorker>, call: StartedCall, task: &Task<'_>) {
        // A front end without event loops runs them one by one.
        let outcome = self.execute(core, task);
        core.finish_call(&call, outcome);
    }

    /// Makes this worker's actor, and says how its calls run.
    ///
    /// # Errors
    /// A text for people and the exception as the front end encodes it.
    fn create_actor(
        &self,
        core: &Arc<CoreWorker>,
        spec: &ActorSpec,
        args: &[ResolvedArg<'_>],
    ) -> Result<Concurrency, (String, Bytes)>;

    /// Runs a function named as "module:name".
    ///
    /// # Errors
    /// What it raised, as text.
    fn run_named(&self, function: &str, payload: &[u8]) -> Result<Vec<u8>, String>;
}

/// A task that is about to run.
#[derive(Debug)]
pub struct Task<'a> {
    /// Which, and what it calls.
    pub header: TaskHeader<'a>,
    /// Who called it, and owns what it returns.
    pub caller: WorkerId,
    /// The pickled function, unless it is a method.
    pub function: Option<Bytes>,
    /// Its arguments.
    pub args: Vec<ResolvedArg<'a>>,
}

/// An argument that can be decoded.
#[derive(Debug)]
pub struct ResolvedArg<'a> {
    /// Its name, if it is passed by keyword.
    pub keyword: Option<&'a str>,
    /// The encoded value.
    pub value: ReadyArg<'a>,
}

/// The encoded value of an argument.
#[derive(Debug)]
pub enum ReadyArg<'a> {
    /// It came with the task.
    Inline(&'a [u8]),
    /// It lies in shared memory.
    Ready(ReadyValue),
}

/// A worker's tasks.
#[derive(Debug, Default)]
pub(super) struct Execution {
    queue: VecDeque<Assignment>,
    pub(super) running: RunningTasks,
    /// Calls that run side by side, if this worker is an actor that has such.
    pub(super) concurrent: Option<Concurrent>,
    /// This process is a worker: others may send it tasks.
    pub(super) is_worker: bool,
    /// The main thread, if it serves.
    main: Option<ThreadId>,
    /// The main thread waits for something to do.
    idle_waiter: Option<WaiterId>,
    /// The node was told that all that runs waits for objects.
    told_blocked: bool,
    pub(super) exit: bool,
    /// The task that ended last is not tried again, and its reply may not be written yet.
    unsaid: bool,
    /// How often functions were called of which a process may run only so many calls.
    calls: FxHashMap<FunctionId, u32>,
    /// It has run as many as it may, and runs no further task.
    is_retired: bool,
    /// The node has told it to end as soon as no other process needs it.
    is_leaving: bool,
    /// The actor that this worker is.
    pub(super) actor: Option<ActorId>,
    /// The placement group in which that actor runs.
    pub(super) actor_group: Option<GroupContext>,
    /// What it was told of itself.
    own_description: Option<OwnDescription>,
    /// What the running task, or the actor, may use.
    leased: Leased,
}

/// What an actor knows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnDescription {
    /// Its name; empty if it has none.
    pub name: String,
    /// How often it was made again.
    pub num_restarts: u64,
    /// What those get who look it up, as the front end encoded it.
    pub handle_metadata: Bytes,
}

/// What a worker may use of its node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leased {
    /// Amounts by name.
    pub resources: Resources,
    /// The graphics processors among it, by number.
    pub devices: Vec<u32>,
}

/// A task that begins.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) key: RunningKey,
    /// This process runs no further task after it.
    pub(super) is_last: bool,
    /// The pickled function that it calls, if it calls one.
    pub(super) function: Result<Option<Bytes>, Failure>,
}

/// Why [`CoreWorker::run`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// The process has nothing left to do.
    Exited,
    /// It is an actor whose calls run in event loops from now on ([`CoreWorker::serve_loop`]).
    InLoops,
}

#[derive(Debug)]
enum Assignment {
    Job(Bytes),
    Leased(Leased),
    Task { caller: WorkerId, task_id: TaskId, is_method: bool, retriable: bool, payload: Bytes },
    Create { spec: Bytes, num_restarts: u64, devices: Vec<u32> },
    Named { task_id: TaskId, function: String, payload: Bytes },
}

impl Execution {
    pub(super) fn on_caller_lost(&mut self, worker_id: WorkerId) {
        self.queue.retain(
            |assignment| !matches!(assignment, Assignment::Task { caller, .. } if *caller == worker_id),
        );
        if let Some(concurrent) = &mut self.concurrent {
            concurrent.groups.retain(|call| call.caller != worker_id);
        }
    }

    /// Whether tasks wait here for the one that runs.
    pub(super) fn has_queued(&self) -> bool {
        let waits = |concurrent: &Concurrent| concurrent.groups.has_queued();
        !self.queue.is_empty() || self.concurrent.as_ref().is_some_and(waits)
    }

    /// The job that comes first in the queue, if it is new.
    fn take_job(&mut self) -> Option<Bytes> {
        match self.queue.pop_front()? {
            Assignment::Job(config) => Some(config),
            other => {
                self.queue.push_front(other);
                None
            }
        }
    }

    /// Takes out the task that waits here under this id, if one does.
    pub(super) fn take_queued(&mut self, task_id: TaskId) -> Option<Bytes> {
        let queued = |assignment: &Assignment| match assignment {
            Assignment::Task { task_id: queued, .. } => *queued == task_id,
            Assignment::Job(_)
            | Assignment::Leased(_)
            | Assignment::Create { .. }
            | Assignment::Named { .. } => false,
        };
        let at = self.queue.iter().position(queued)?;
        match self.queue.remove(at) {
            Some(Assignment::Task { payload, .. }) => Some(payload),
            _ => None,
        }
    }

    /// Counts a call of a function of which a process may run only so many. Returns whether it is the last.
    fn count_call(&mut self, function_id: FunctionId, max_calls: u32) -> bool {
        let calls = self.calls.entry(function_id).or_default();
        *calls += 1;
        *calls >= max_calls
    }

    /// Whether a task that comes now would wait behind one that blocks or runs long, or for ever.
    fn is_stalled(&self, now: Instant) -> bool {
        if self.is_retired {
            return true;
        }
        let stalls = |running: &Running| running.blocked || now - running.since >= LONG_AFTER;
        self.running.iter().any(stalls)
    }
}

impl CoreWorker {
    /// Serves as a worker on the calling thread, until told to exit or become an actor that runs in
    /// event loops.
    ///
    /// # Errors
    /// What ended this process's membership, if it was not told to exit.
    pub fn run(self: &Arc<Self>, executor: &dyn Executor) -> RayResult<Served> {
        self.lock().execution.main = Some(std::thread::current().id());
        while let Some(assignment) = self.next_assignment()? {
            match assignment {
                Assignment::Job(config) => executor.set_job(&config),
                Assignment::Leased(leased) => self.use_lease(executor, leased),
                Assignment::Task { caller, payload, .. } => self.run_task(executor, caller, 0, &payload)?,
                Assignment::Create { spec, num_restarts, devices } => {
                    self.run_creation(executor, spec, num_restarts, devices)?;
                    if self.lock().serves_in_loops() {
                        return Ok(Served::InLoops);
                    }
                }
                Assignment::Named { task_id, function, payload } => {
                    let result = executor.run_named(&function, &payload).map(Bytes::from);
                    self.lock().tell_node(&ToRaylet::TaskDone { task_id, result });
                }
            }
        }
        Ok(Served::Exited)
    }

    /// The task that this thread runs, and its name.
    pub fn running_task(&self) -> Option<(TaskId, String)> {
        let state = self.lock();
        state.execution.running.current().map(|running| (running.task_id, running.name.clone()))
    }

    /// What the running task calls, and the task's name.
    pub fn running_call(&self) -> Option<(Called, String)> {
        let state = self.lock();
        state.execution.running.current().map(|running| (running.called.clone(), running.name.clone()))
    }

    /// What the actor that this process is was told of itself.
    pub fn own_description(&self) -> Option<OwnDescription> {
        self.lock().execution.own_description.clone()
    }

    /// Whether the task that this thread runs was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.lock().execution.running.current().is_some_and(|running| running.cancelled)
    }

    /// What the tasks of this worker, or its actor, may use; nothing in a driver.
    pub fn leased(&self) -> Leased {
        self.lock().execution.leased.clone()
    }

    fn use_lease(&self, executor: &dyn Executor, leased: Leased) {
        let devices = leased.devices.clone();
        let before = std::mem::replace(&mut self.lock().execution.leased, leased);
        if before.devices != devices {
            executor.set_devices(&devices);
        }
    }

    /// The actor that this process is.
    pub fn current_actor(&self) -> Option<ActorId> {
        self.lock().execution.actor
    }

    /// The actor of this process leaves on purpose: after the running call the process ends.
    pub fn exit_actor(&self, reason: &str) {
        let mut state = self.lock();
        if let Some(running) = state.execution.running.current_mut() {
            running.left = true;
        }
        state.leave(self, reason);
    }

    fn next_assignment(&self) -> RayResult<Option<Assignment>> {
        let mut state = self.lock();
        loop {
            if state.execution.exit {
                state.tell_all();
                state.flush(self);
                return Ok(None);
            }
            state.check_open()?;
            if let Some(assignment) = state.execution.queue.pop_front() {
                // Should this task end the process, its caller has to know which ran before: if this one
                // is not tried again, or the one before it was not to be.
                let unsaid = std::mem::take(&mut state.execution.unsaid);
                if unsaid || matches!(assignment, Assignment::Task { retriable: false, .. }) {
                    state.flush(self);
                }
                return Ok(Some(assignment));
            }
            state.release_pins_of_arguments();
            let waiter = state.add_waiter(1);
            state.execution.idle_waiter = Some(waiter);
            let mut never = || false;
            let (woken, end) = self.wait_for(state, waiter, &mut Patience::endless(&mut never));
            state = woken;
            state.execution.idle_waiter = None;
            if end == End::Closed && !state.execution.exit {
                state.check_open()?;
            }
        }
    }

    /// Runs a task of this concurrency group on this thread.
    pub(super) fn run_task(
        self: &Arc<Self>,
        executor: &dyn Executor,
        caller: WorkerId,
        group: usize,
        payload: &[u8],
    ) -> RayResult<()> {
        let mut fields = Fields::new(payload);
        let header = TaskHeader::read(&mut fields)?;
        let Begun { key, is_last, function } = self.begin(&header, group);
        let call = StartedCall { is_last, ..StartedCall::new(key, caller, &header) };
        let outcome = self.run_resolved(executor, header, caller, function, fields.rest());
        let replied = self.reply(&call, outcome);
        work_for(None);
        replied
    }

    /// Answers a call with what became of it.
    pub(super) fn reply(&self, call: &StartedCall, outcome: Result<Vec<Returned>, Failure>) -> RayResult<()> {
        let spent = call.since.elapsed();
        let execution_us = u32::try_from(spent.as_micros()).unwrap_or(u32::MAX);
        let StartedCall { task_id, attempt, is_last, .. } = *call;
        let mut reply = TaskReply { task_id, attempt, execution_us, is_last, outcome };
        let mut payload = Vec::new();
        reply.write(&mut payload)?;
        let limit = self.config.max_frame_bytes as usize;
        let oversized = check_size(payload.len(), limit, || format!("the results of {}", call.name));
        if let Err(failure) = oversized {
            for (inner, _) in contained_in(&reply) {
                self.drop_reference(inner);
            }
            reply.outcome = Err(failure);
            payload.clear();
            reply.write(&mut payload)?;
        }
        let error = reply.outcome.as_ref().err().map(Failure::kind);
        let ended = Ended { ran: Some((call.since, spent)), error, ..Ended::of_call(call) };
        self.answer(call, contained_in(&reply), payload, &ended);
        Ok(())
    }

    fn run_resolved(
        self: &Arc<Self>,
        executor: &dyn Executor,
        header: TaskHeader<'_>,
        caller: WorkerId,
        function: Result<Option<Bytes>, Failure>,
        args: &[u8],
    ) -> Result<Vec<Returned>, Failure> {
        let function = function?;
        let args = self.resolve(args)?;
        let task = Task { header, caller, function, args };
        executor.execute(self, &task)
    }

    /// Notes that a task begins, and that this thread works for it.
    pub(super) fn begin(&self, header: &TaskHeader<'_>, group: usize) -> Begun {
        let mut state = self.lock();
        let key = state.execution.running.insert(Running {
            task_id: header.task_id,
            name: header.name.to_owned(),
            called: Called::of(header),
            children: ChildTaskIds::new(header.task_id),
            puts: 0,
            placement_group: header.group,
            cancelled: false,
            since: now(),
            blocked: false,
            left: false,
            borrowed: Vec::new(),
            group,
        });
        work_for(Some(key));
        state.unblock_node(self);
        self.stir(&mut state);
        let (function, is_last) = match &header.target {
            Target::Function(function_id) => match state.function(*function_id) {
                Ok((function, 0)) => (Ok(Some(function)), false),
                Ok((function, max_calls)) => {
                    (Ok(Some(function)), state.execution.count_call(*function_id, max_calls))
                }
                Err(failure) => (Err(failure), false),
            },
            Target::Method { .. } => (Ok(None), false),
        };
        Begun { key, is_last, function }
    }

    /// The values of arguments, those in shared memory pinned.
    pub(super) fn resolve<'a>(self: &Arc<Self>, args: &'a [u8]) -> Result<Vec<ResolvedArg<'a>>, Failure> {
        let system = |error: RayError| Failure::System(error.chain());
        let args = read_args(args).map_err(system)?;
        let stored: Vec<_> = args.iter().filter_map(stored_in).collect();
        let mut pinned: FxHashMap<ObjectId, ReadyValue> = FxHashMap::default();
        if !stored.is_empty() {
            let values = self.pin_args(&stored)?;
            pinned.extend(stored.iter().map(|sought| sought.object_id).zip(values));
        }
        args.into_iter()
            .map(|Arg { keyword, value }| {
                let value = match value {
                    ArgValue::Inline(bytes) => ReadyArg::Inline(bytes),
                    ArgValue::Stored { object_id, .. } => {
                        ReadyArg::Ready(pinned.get(&object_id).expect("each was pinned").clone())
                    }
                    ArgValue::Reference(object_id) => {
                        return Err(Failure::System(format!("argument {object_id} came without its value")));
                    }
                };
                Ok(ResolvedArg { keyword, value })
            })
            .collect()
    }

    fn run_creation(
        self: &Arc<Self>,
        executor: &dyn Executor,
        spec: Bytes,
        num_restarts: u64,
        devices: Vec<u32>,
    ) -> RayResult<()> {
        let spec = ActorSpec::decode(spec).map_err(|error| damaged(error.to_string()))?;
        let actor_id: ActorId = wire::id("actor_id", &spec.actor_id)?;
        let job = {
            let mut state = self.lock();
            state.on_job(wire::id("job_id", &spec.job_id)?, spec.job_config.clone().into());
            state.execution.take_job()
        };
        if let Some(config) = job {
            executor.set_job(&config);
        }
        let resources = spec.resources.clone().unwrap_or_default().try_into();
        let resources = resources.map_err(|error: wire::WireError| damaged(error.to_string()))?;
        self.use_lease(executor, Leased { resources, devices });
        let name = format!("{}.__init__", spec.class_name);
        let header = TaskHeader {
            task_id: actor_id.creation_task_id(),
            attempt: 0,
            target: Target::Method { actor_id, sequence: 0, name: "__init__", group: "" },
            group: None,
            num_returns: 0,
            retriable: true,
            retries: u32::try_from(num_restarts).unwrap_or(u32::MAX),
            created_us: super::state::wall_us(),
            name: &name,
            generator: None,
            retry_exceptions: RetryExceptions::Never,
        };
        let constraint = Constraint::try_from(spec.strategy.clone().unwrap_or_default())?;
        let Begun { key, function: begun, .. } = self.begin(&header, 0);
        let start = now();
        {
            let mut state = self.lock();
            state.execution.actor = Some(actor_id);
            let handle_metadata = spec.handle_metadata.clone().into();
            state.execution.own_description =
                Some(OwnDescription { name: spec.name.clone(), num_restarts, handle_metadata });
            state.execution.actor_group = match constraint.strategy {
                Strategy::Bundle { group_id, capture, .. } => Some(GroupContext { group_id, capture }),
                Strategy::Default | Strategy::Spread | Strategy::NodeAffinity { .. } => None,
            };
        }
        let result = begun.and_then(|_| self.resolve(&spec.creation_task)).map_err(|failure| match failure {
            Failure::Raised(error) => (String::new(), error),
            other => (other.into_error(ObjectId::nil()).to_string(), Bytes::new()),
        });
        let result = result.and_then(|args| executor.create_actor(self, &spec, &args));
        let (concurrency, result) = match result {
            Ok(concurrency) => (concurrency, Ok(())),
            Err(error) => (Concurrency::Serial, Err(error)),
        };
        let error = result.is_err().then_some("TASK_EXECUTION_EXCEPTION");
        let ended = Ended {
            kind: TaskKind::ActorCreationTask,
            ran: Some((start, start.elapsed())),
            error,
            ..Ended::of(&header)
        };
        let message = ToRaylet::ActorCreated { actor_id, num_restarts, result };
        work_for(None);
        let mut state = self.lock();
        state.note_ended(&ended);
        let kept = state.end_running(key);
        state.run_concurrently(concurrency)?;
        state.grant_then(self, kept, self.me.worker_id, Then::TellNode(message));
        state.flush(self);
        Ok(())
    }

    /// Sends a reply, as soon as every reference that it hands over, or that stays here, is granted.
    fn answer(&self, call: &StartedCall, handed_over: Vec<Contained>, payload: Vec<u8>, ended: &Ended<'_>) {
        let (caller, mut state) = (call.caller, self.lock());
        state.note_ended(ended);
        let left = state.execution.running.get(call.key).is_some_and(|running| running.left);
        let kept = state.end_running(call.key);
        if call.is_last {
            state.retire(self);
        }
        state.on_call_ended(self);
        if left {
            return;
        }
        state.execution.unsaid = !call.retriable;
        let to = Owner { worker_id: caller, node_id: NodeId::nil() };
        let send = Then::Send { to, kind: Kind::TaskReply, payload };
        if handed_over.is_empty() && kept.is_empty() {
            state.run_then(self, send);
        } else {
            let then = Then::Nested(Box::new((handed_over, caller, send)));
            state.grant_then(self, kept, self.me.worker_id, then);
        }
    }
}

/// The references that a reply hands over.
fn contained_in(reply: &TaskReply) -> Vec<Contained> {
    let returned = reply.outcome.iter().flatten();
    returned.flat_map(|returned| returned.contained.iter().copied()).collect()
}

impl State {
    /// A running task has ended. Returns the references that came with it and stay here without a
    /// grant, each with a handle.
    fn end_running(&mut self, key: RunningKey) -> Vec<Contained> {
        let mut kept = Vec::new();
        let Some(running) = self.execution.running.remove(key) else { return kept };
        if let Some(concurrent) = &mut self.execution.concurrent {
            concurrent.on_ended(running.group);
        }
        for object_id in running.borrowed {
            if self.references.lacks_grant(object_id)
                && let Some(owner) = self.references.borrowed_from(object_id)
                && !kept.iter().any(|&(other, _)| other == object_id)
            {
                self.references.add_local(object_id);
                kept.push((object_id, owner));
            }
        }
        kept
    }

    /// A pickled function, and of how many calls of it a process may run; 0 for any number.
    fn function(&self, function_id: FunctionId) -> Result<(Bytes, u32), Failure> {
        let unknown = || Failure::System(format!("function {function_id} was not defined before its task"));
        let defined = self.functions.get(&function_id).ok_or_else(unknown)?;
        Ok((defined.pickled.clone(), defined.max_calls))
    }

    /// This process runs no further task: those that wait go back to their callers.
    fn retire(&mut self, core: &CoreWorker) {
        self.execution.is_retired = true;
        self.give_back_queued(core);
    }

    /// The node wants this process to end, which nothing runs in any more.
    pub(super) fn on_retire(&mut self, core: &CoreWorker, reason: &str) {
        tracing::info!(reason, "told to end when it is not needed any more");
        self.retire(core);
        self.execution.is_leaving = true;
        self.leave_if_unneeded();
    }

    /// Ends this process if it was told to, and no other needs what it owns, nor a task what it has submitted.
    pub(super) fn leave_if_unneeded(&mut self) {
        let execution = &self.execution;
        if execution.is_leaving
            && !execution.exit
            && execution.running.is_empty()
            && self.tasks.is_empty()
            && !self.grants.is_holding_back()
            && !self.references.has_borrowers()
        {
            self.begin_exit();
        }
    }

    /// Whoever connects says what job it acts for. A worker serves one job; the first counts.
    pub(super) fn on_job(&mut self, job_id: JobId, job_config: Bytes) {
        if self.job_id.is_nil() && !job_id.is_nil() {
            self.job_id = job_id;
            self.job_config = job_config.clone();
            self.execution.queue.push_front(Assignment::Job(job_config));
        }
    }

    pub(super) fn on_task_pushed(
        &mut self,
        core: &CoreWorker,
        caller: WorkerId,
        payload: &[u8],
    ) -> RayResult<()> {
        if !self.execution.is_worker {
            return Err(damaged("a task for a driver".to_owned()));
        }
        let header = TaskHeader::read(&mut Fields::new(payload))?;
        let (task_id, retriable) = (header.task_id, header.retriable);
        if let (Target::Method { name, group, .. }, Some(_)) = (&header.target, &self.execution.concurrent) {
            self.take_call(core, caller, name, group, QueuedCall::new(caller, &header, payload));
            return Ok(());
        }
        let is_method = matches!(header.target, Target::Method { .. });
        if !is_method && self.execution.is_stalled(now()) {
            self.give_back(core, caller, vec![task_id]);
            return Ok(());
        }
        let payload = keep(payload);
        self.assign(Assignment::Task { caller, task_id, is_method, retriable, payload });
        Ok(())
    }

    /// A caller has a lease on this worker.
    pub(super) fn on_leased(&mut self, resources: Resources, devices: Vec<u32>) {
        if self.execution.is_worker {
            self.assign(Assignment::Leased(Leased { resources, devices }));
        }
    }

    pub(super) fn on_create_actor(&mut self, spec: Bytes, num_restarts: u64, devices: Vec<u32>) {
        self.assign(Assignment::Create { spec, num_restarts, devices });
    }

    pub(super) fn on_run_task(&mut self, task_id: TaskId, function: String, payload: Bytes) {
        self.assign(Assignment::Named { task_id, function, payload });
    }

    pub(super) fn on_exit(&mut self, reason: &str) {
        tracing::info!(reason, "told to exit");
        self.begin_exit();
        if self.execution.main.is_none() {
            self.close(RayError::Unavailable { peer: "the node".to_owned(), cause: reason.to_owned() });
        }
    }

    fn assign(&mut self, assignment: Assignment) {
        self.execution.queue.push_back(assignment);
        self.wake_main();
    }

    pub(super) fn wake_main(&mut self) {
        if let Some(waiter) = self.execution.idle_waiter {
            self.tell_waiter(waiter);
        }
    }

    /// Answers a call that will not run.
    pub(super) fn refuse_call(&mut self, core: &CoreWorker, payload: &[u8], to: Owner, failure: Failure) {
        let Ok(header) = TaskHeader::read(&mut Fields::new(payload)) else { return };
        let (task_id, attempt) = (header.task_id, header.attempt);
        let reply = TaskReply { task_id, attempt, execution_us: 0, is_last: false, outcome: Err(failure) };
        let mut bytes = Vec::new();
        if reply.write(&mut bytes).is_ok() {
            self.run_then(core, Then::Send { to, kind: Kind::TaskReply, payload: bytes });
        }
    }

    /// The actor of this process leaves on purpose.
    pub(super) fn leave(&mut self, core: &CoreWorker, reason: &str) {
        let Some(actor_id) = self.execution.actor else { return };
        self.tell_node(&ToRaylet::ActorExiting { actor_id, reason: reason.to_owned() });
        self.flush(core);
        self.begin_exit();
        core.nudge_poller(self);
    }

    /// All threads that serve come to their end, after what they run.
    pub(super) fn begin_exit(&mut self) {
        self.execution.exit = true;
        self.wake_main();
        if let Some(concurrent) = &mut self.execution.concurrent {
            concurrent.wake_all();
        }
    }

    /// The task that this thread runs waits for objects: others should not wait for it. Returns whether
    /// it is to be told when the wait is over.
    pub(super) fn on_block(&mut self, core: &CoreWorker) -> bool {
        let Some(running) = works_for().and_then(|key| self.execution.running.get_mut(key)) else {
            return false;
        };
        if std::mem::replace(&mut running.blocked, true) {
            return false;
        }
        let group = running.group;
        if self.execution.concurrent.is_some() {
            self.rouse(group);
        } else {
            self.give_back_queued(core);
        }
        if self.execution.running.all_blocked() {
            self.execution.told_blocked = true;
            self.tell_node(&ToRaylet::Blocked);
        }
        true
    }

    pub(super) fn on_unblock(&mut self, core: &CoreWorker) {
        if let Some(running) = works_for().and_then(|key| self.execution.running.get_mut(key)) {
            running.blocked = false;
        }
        self.unblock_node(core);
    }

    /// Something runs here that does not wait.
    fn unblock_node(&mut self, core: &CoreWorker) {
        if std::mem::take(&mut self.execution.told_blocked) {
            self.tell_node(&ToRaylet::Unblocked);
            self.flush_link(core);
        }
    }

    /// The background thread's look at those that execute: nothing waits behind a long task.
    pub(super) fn watch_execution(&mut self, core: &CoreWorker, now: Instant) {
        self.watch_calls(now);
        if !self.execution.queue.is_empty() && self.execution.is_stalled(now) {
            self.give_back_queued(core);
        }
    }

    fn give_back_queued(&mut self, core: &CoreWorker) {
        let mut by_caller: Vec<(WorkerId, Vec<TaskId>)> = Vec::new();
        self.execution.queue.retain(|assignment| {
            let Assignment::Task { caller, task_id, is_method: false, .. } = assignment else { return true };
            match by_caller.iter_mut().find(|(known, _)| known == caller) {
                Some((_, task_ids)) => task_ids.push(*task_id),
                None => by_caller.push((*caller, vec![*task_id])),
            }
            false
        });
        for (caller, task_ids) in by_caller {
            self.give_back(core, caller, task_ids);
        }
    }

    fn give_back(&mut self, core: &CoreWorker, caller: WorkerId, task_ids: Vec<TaskId>) {
        let to = Owner { worker_id: caller, node_id: NodeId::nil() };
        self.tell(core, to, &PeerMessage::GiveBack { task_ids });
    }
}

/// The object of shared memory that is this argument.
fn stored_in(arg: &Arg<'_>) -> Option<Sought> {
    match arg.value {
        ArgValue::Stored { object_id, owner, node_id, size } => {
            Some(Sought { object_id, owner: Some(owner.worker_id), stored: Some((node_id, size)) })
        }
        ArgValue::Inline(_) | ArgValue::Reference(_) => None,
    }
}

impl ReadyArg<'_> {
    /// The encoded value.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Inline(bytes) => bytes,
            Self::Ready(value) => value.bytes(),
        }
    }
}
