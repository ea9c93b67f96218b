//! Calls of one actor that run side by side.
//!
//! In *threads*: the main thread reads what comes, and the threads of each concurrency group run its
//! calls ([`CoreWorker::run_thread`]); how many it takes is decided in [`crate::concurrency_groups`].
//!
//! In *event loops*: each group has a loop, which the front end runs on a thread of its own, that of the
//! calls without a group on the main thread. That loop waits for the sockets itself, so that between a
//! call's arrival and its start there is no other thread; when it does not come to it, the background
//! thread reads, and wakes the loops whose calls came ([`CoreWorker::serve_loop`]).

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ray_core::error::{RayError, RayResult};
use ray_core::id::{NodeId, TaskId, WorkerId};
use ray_link::Waker;

use super::execution::{Begun, Executor, Task};
use super::peers::keep;
use super::reports::Origin;
use super::running::{RunningKey, work_for};
use super::state::{State, now};
use super::{CoreWorker, Notification};
use crate::codec::{Fields, damaged};
use crate::concurrency_groups::{ConcurrencyGroups, Wanted};
use crate::peer_message::{RetryExceptions, Returned, TaskHeader};
use crate::reference_counter::Owner;
use crate::value::Failure;

/// Time between two looks whether calls wait for threads.
const LOOK_AFTER: Duration = Duration::from_millis(1);

/// Why an actor of concurrent calls ends when it is told to.
const TERMINATED: &str = "it was told to terminate";

/// How the calls of an actor run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Concurrency {
    /// One by one, on the main thread.
    Serial,
    /// Side by side, each on a thread.
    Threads(Limits),
    /// Side by side, in event loops.
    Loops(Limits),
}

/// How many calls may run at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Of those without a concurrency group.
    pub default: usize,
    /// Of each group.
    pub named: Vec<(String, usize)>,
}

/// A call that is under way.
#[derive(Debug)]
pub struct StartedCall {
    /// Names it among what runs here.
    pub key: RunningKey,
    /// The task.
    pub task_id: TaskId,
    /// Which attempt of it.
    pub attempt: u32,
    /// Who called it, and owns what it returns.
    pub caller: WorkerId,
    /// How many objects it returns.
    pub num_returns: u32,
    /// Its name, for logs and errors.
    pub name: String,
    /// Which exceptions of its code have it tried again.
    pub retry_exceptions: RetryExceptions<Bytes>,
    /// Whether it is tried again when it fails in a way that is retried.
    pub retriable: bool,
    /// This process runs no further task after it.
    pub(super) is_last: bool,
    pub(super) since: Instant,
    /// What the record of its end says beside.
    pub(super) origin: Origin,
}

impl StartedCall {
    pub(super) fn new(key: RunningKey, caller: WorkerId, header: &TaskHeader<'_>) -> Self {
        Self {
            key,
            task_id: header.task_id,
            attempt: header.attempt,
            caller,
            num_returns: header.num_returns,
            name: header.name.to_owned(),
            retry_exceptions: header.retry_exceptions.map(Bytes::copy_from_slice),
            retriable: header.retriable,
            is_last: false,
            since: now(),
            origin: Origin::of(header),
        }
    }
}

/// The calls of this worker's actor, if they run side by side.
#[derive(Debug)]
pub(super) struct Concurrent {
    pub(super) groups: ConcurrencyGroups<QueuedCall>,
    servers: Servers,
}

/// Who runs the calls, by group.
#[derive(Debug)]
enum Servers {
    Threads { sleepers: Vec<Sleepers>, looked_at: Option<Instant> },
    Loops { bells: Vec<Bell>, reads: bool },
}

/// The idle threads of a group.
#[derive(Debug, Default)]
struct Sleepers {
    condvar: Arc<Condvar>,
    /// Threads that were woken and have not noticed.
    woken: usize,
}

/// Wakes an event loop.
#[derive(Debug)]
struct Bell {
    waker: Arc<Waker>,
    rung: bool,
}

/// A call that has come and not begun.
#[derive(Debug)]
pub(super) struct QueuedCall {
    pub(super) caller: WorkerId,
    task_id: TaskId,
    retriable: bool,
    pub(super) payload: Bytes,
}

impl QueuedCall {
    pub(super) fn new(caller: WorkerId, header: &TaskHeader<'_>, payload: &[u8]) -> Self {
        let (task_id, retriable) = (header.task_id, header.retriable);
        Self { caller, task_id, retriable, payload: keep(payload) }
    }
}

impl Concurrent {
    /// Takes a queued call out.
    pub(super) fn remove(&mut self, task_id: TaskId) -> Option<QueuedCall> {
        self.groups.remove(|call| call.task_id == task_id)
    }

    /// A call has ended; whoever ran it takes the next.
    pub(super) fn on_ended(&mut self, group: usize) {
        if self.groups.finish(group) {
            self.ring(group);
        }
    }

    /// Has all who serve look whether they should go on.
    pub(super) fn wake_all(&mut self) {
        match &mut self.servers {
            Servers::Threads { sleepers, .. } => sleepers.iter().for_each(|group| group.condvar.notify_all()),
            Servers::Loops { bells, .. } => bells.iter().for_each(|bell| bell.waker.wake()),
        }
    }

    /// Has the event loop of this group come for calls, unless it is about to look anyway.
    fn ring(&mut self, group: usize) {
        if let Servers::Loops { bells, reads } = &mut self.servers
            && !(*reads && group == 0)
            && !std::mem::replace(&mut bells[group].rung, true)
        {
            bells[group].waker.wake();
        }
    }

    /// Wakes idle threads. Returns how many new ones are wanted.
    fn wake(&mut self, wanted: Wanted) -> usize {
        if let Servers::Threads { sleepers, .. } = &mut self.servers {
            let group = &mut sleepers[wanted.group];
            group.woken += wanted.wake;
            for _ in 0..wanted.wake {
                group.condvar.notify_one();
            }
        }
        wanted.start
    }
}

impl CoreWorker {
    /// Serves a concurrency group on the calling thread until told to exit.
    ///
    /// # Errors
    /// What ended this process's membership, if it was not told to exit.
    pub fn run_thread(self: &Arc<Self>, executor: &dyn Executor, group: usize) -> RayResult<()> {
        let mut state = self.lock();
        loop {
            if state.execution.exit {
                return Ok(());
            }
            state.check_open()?;
            let concurrent = state.execution.concurrent_mut()?;
            if let Some(call) = concurrent.groups.take(group) {
                // As for a worker of one task at a time: who crashes takes only its own reply along.
                if !call.retriable {
                    state.flush(self);
                }
                drop(state);
                self.run_task(executor, call.caller, group, &call.payload)?;
                state = self.lock();
                continue;
            }
            concurrent.groups.on_idle(group);
            let Servers::Threads { sleepers, .. } = &concurrent.servers else {
                return Err(damaged("a thread serves an actor that runs in event loops".to_owned()));
            };
            let condvar = Arc::clone(&sleepers[group].condvar);
            state.flush(self);
            loop {
                state = condvar.wait(state).unwrap_or_else(PoisonError::into_inner);
                if state.execution.exit || state.check_open().is_err() || state.execution.take_woken(group) {
                    break;
                }
            }
        }
    }

    /// A thread that was asked for could not be started. While calls wait, it is asked for again.
    pub fn on_thread_not_started(&self, group: usize) {
        if let Some(concurrent) = &mut self.lock().execution.concurrent {
            concurrent.groups.on_not_started(group);
        }
    }

    /// What the event loop of a group waits for: it calls [`CoreWorker::serve_loop`] whenever one of
    /// these is readable.
    ///
    /// # Errors
    /// If this process is no actor that runs in event loops.
    pub fn loop_descriptors<T>(
        &self,
        group: usize,
        mut take: impl FnMut(BorrowedFd<'_>) -> T,
    ) -> RayResult<Vec<T>> {
        let mut state = self.lock();
        let concurrent = state.execution.concurrent_mut()?;
        let Servers::Loops { bells, .. } = &concurrent.servers else {
            return Err(damaged("an actor that runs in threads has no event loops".to_owned()));
        };
        let mut taken = vec![take(bells[group].waker.as_fd())];
        if group == 0 {
            taken.push(take(self.sockets.as_fd()));
        }
        Ok(taken)
    }

    /// Starts the calls that wait for the event loop of a group, on its thread. Returns false when the
    /// loop should end.
    ///
    /// # Errors
    /// What ended this process's membership, if it was not told to exit.
    pub fn serve_loop(self: &Arc<Self>, executor: &dyn Executor, group: usize) -> RayResult<bool> {
        let mut state = self.lock();
        if group == 0
            && let Some(since) = state.loop_idle_since.take()
        {
            state.eagerness.on_end(since.elapsed());
        }
        if group == 0 && !state.polling {
            state.execution.set_reads(true);
            self.read_now(&mut state);
            state.execution.set_reads(false);
            self.stir(&mut state);
        }
        // What is answered so far does not end with the process, should the next call end it.
        state.flush(self);
        state.execution.reset_bell(group);
        loop {
            if state.execution.exit {
                return Ok(false);
            }
            state.check_open()?;
            let Some(call) = state.execution.concurrent_mut()?.groups.take(group) else {
                if state.unflushed {
                    state.flush(self);
                }
                if group == 0 {
                    state.loop_idle_since = Some(now());
                }
                return Ok(true);
            };
            drop(state);
            self.start_call(executor, group, &call)?;
            state = self.lock();
        }
    }

    fn start_call(
        self: &Arc<Self>,
        executor: &dyn Executor,
        group: usize,
        call: &QueuedCall,
    ) -> RayResult<()> {
        let mut fields = Fields::new(&call.payload);
        let header = TaskHeader::read(&mut fields)?;
        let Begun { key, function, .. } = self.begin(&header, group);
        let started = StartedCall::new(key, call.caller, &header);
        let args = function.and_then(|_| self.resolve(fields.rest()));
        match args {
            Ok(args) => {
                executor.start(self, started, &Task { header, caller: call.caller, function: None, args });
            }
            Err(failure) => self.reply(&started, Err(failure))?,
        }
        work_for(None);
        Ok(())
    }

    /// A call that [`Executor::start`] was given has ended.
    pub fn finish_call(&self, call: &StartedCall, outcome: Result<Vec<Returned>, Failure>) {
        if let Err(error) = self.reply(call, outcome) {
            // Only a failure that cannot be encoded has none; its caller has to hear of it all the same.
            let failure = Failure::System(format!("the end of {} cannot be told: {error}", call.name));
            if let Err(error) = self.reply(call, Err(failure)) {
                tracing::error!(%error, task = call.name, "a call cannot be answered");
            }
        }
    }

    /// Writes what is queued, for an event loop that comes to rest.
    pub fn flush_replies(&self) {
        let mut state = self.lock();
        if state.unflushed {
            state.flush(self);
        }
    }
}

impl super::execution::Execution {
    fn concurrent_mut(&mut self) -> RayResult<&mut Concurrent> {
        self.concurrent.as_mut().ok_or_else(|| RayError::Protocol {
            peer: "this process".to_owned(),
            reason: "it is no actor whose calls run side by side".to_owned(),
        })
    }

    fn take_woken(&mut self, group: usize) -> bool {
        let Some(Concurrent { servers: Servers::Threads { sleepers, .. }, .. }) = &mut self.concurrent else {
            return true;
        };
        let woken = sleepers[group].woken > 0;
        sleepers[group].woken -= usize::from(woken);
        woken
    }

    fn set_reads(&mut self, now: bool) {
        if let Some(Concurrent { servers: Servers::Loops { reads, .. }, .. }) = &mut self.concurrent {
            *reads = now;
        }
    }

    fn reset_bell(&mut self, group: usize) {
        if let Some(Concurrent { servers: Servers::Loops { bells, .. }, .. }) = &mut self.concurrent
            && std::mem::take(&mut bells[group].rung)
        {
            bells[group].waker.reset();
        }
    }
}

impl State {
    /// From now on calls run as the front end said.
    pub(super) fn run_concurrently(&mut self, concurrency: Concurrency) -> RayResult<()> {
        let (limits, in_loops) = match concurrency {
            Concurrency::Serial => return Ok(()),
            Concurrency::Threads(limits) => (limits, false),
            Concurrency::Loops(limits) => (limits, true),
        };
        let groups = ConcurrencyGroups::new(limits.default, limits.named);
        let servers = if in_loops {
            let bell = |_| {
                let waker = Waker::new().map_err(|error| RayError::io("cannot wake event loops", error))?;
                Ok(Bell { waker: Arc::new(waker), rung: false })
            };
            let bells = (0..groups.len()).map(bell).collect::<RayResult<_>>()?;
            Servers::Loops { bells, reads: false }
        } else {
            let sleepers = (0..groups.len()).map(|_| Sleepers::default()).collect();
            Servers::Threads { sleepers, looked_at: None }
        };
        self.execution.running.several = true;
        self.execution.concurrent = Some(Concurrent { groups, servers });
        Ok(())
    }

    pub(super) fn serves_in_loops(&self) -> bool {
        let concurrent = self.execution.concurrent.as_ref();
        concurrent.is_some_and(|concurrent| matches!(concurrent.servers, Servers::Loops { .. }))
    }

    /// A call of this actor has come.
    pub(super) fn take_call(
        &mut self,
        core: &CoreWorker,
        caller: WorkerId,
        name: &str,
        group: &str,
        call: QueuedCall,
    ) {
        let Some(concurrent) = &mut self.execution.concurrent else { return };
        if name == "__ray_terminate__" {
            concurrent.groups.close();
            self.on_call_ended(core);
            return;
        }
        let Some(group) = concurrent.groups.find(group) else {
            let to = Owner { worker_id: caller, node_id: NodeId::nil() };
            let failure = Failure::System(format!("the actor has no concurrency group {group:?}"));
            self.refuse_call(core, &call.payload, to, failure);
            return;
        };
        let is_due = concurrent.groups.push(group, call);
        concurrent.ring(group);
        if is_due {
            self.rouse_some(group, 1);
        }
    }

    /// Calls of a group wait, and one that runs does not get ahead: others take them.
    pub(super) fn rouse(&mut self, group: usize) {
        self.rouse_some(group, usize::MAX);
    }

    fn rouse_some(&mut self, group: usize, count: usize) {
        let Some(concurrent) = &mut self.execution.concurrent else { return };
        if matches!(concurrent.servers, Servers::Threads { .. }) {
            let wanted = concurrent.groups.rouse(group, count);
            let count = concurrent.wake(wanted);
            self.ask_for_threads(group, count);
        }
    }

    fn ask_for_threads(&mut self, group: usize, count: usize) {
        if count > 0 {
            self.notify(Notification::StartThreads { group, count });
        }
    }

    /// The background thread's look at groups whose threads do not get to their calls.
    pub(super) fn watch_calls(&mut self, now: Instant) {
        let Some(concurrent) = &mut self.execution.concurrent else { return };
        let Servers::Threads { looked_at, .. } = &mut concurrent.servers else { return };
        if looked_at.is_some_and(|at| now.saturating_duration_since(at) < LOOK_AFTER) {
            return;
        }
        *looked_at = Some(now);
        for wanted in concurrent.groups.look() {
            if let Some(concurrent) = &mut self.execution.concurrent {
                let count = concurrent.wake(wanted);
                self.ask_for_threads(wanted.group, count);
            }
        }
    }

    /// A running call was cancelled: it is interrupted if it can be.
    pub(super) fn interrupt_running(&mut self, key: RunningKey) {
        if self.serves_in_loops() {
            self.notify(Notification::CancelCall(key));
        } else if self.execution.actor.is_none() {
            self.notify(Notification::Interrupt);
        }
        // A call of any other actor goes on, as in Ray: it could leave the actor in a state that nobody
        // foresaw, and of several threads Python cannot interrupt one. It can ask whether it was cancelled.
    }

    /// If the actor was told to terminate, it does after its last call.
    pub(super) fn on_call_ended(&mut self, core: &CoreWorker) {
        let is_drained = |concurrent: &Concurrent| concurrent.groups.is_drained();
        if !self.execution.exit && self.execution.concurrent.as_ref().is_some_and(is_drained) {
            self.leave(core, TERMINATED);
        }
    }
}
