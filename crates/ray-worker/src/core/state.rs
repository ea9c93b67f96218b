//! What a core worker knows, and the duties that fall due with time.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Condvar};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ray_core::config::WorkerConfig;
use ray_core::error::{RayError, RayResult};
use ray_core::id::{ActorId, ChildTaskIds, FunctionId, JobId, NodeId, ObjectId, TaskId};
use ray_core::report::DebuggerReport;
use ray_core::runtime_env::RuntimeEnv;
use ray_link::message::{LinkMessage as _, ToRaylet};
use ray_link::{Connection, Listener, Readiness};
use rustc_hash::{FxHashMap, FxHashSet};
use rustix::time::{ClockId, clock_gettime};

use super::actors::Actor;
use super::cancellation::ForcedEnd;
use super::ends::Ends;
use super::execution::Execution;
use super::grants::Grants;
use super::groups::Groups;
use super::inbox::Inboxes;
use super::node_links::NodeLinks;
use super::objects::SharedObjects;
use super::peers::{Defined, Peers};
use super::pins::Pins;
use super::producers::Producers;
use super::streams::Streams;
use super::tasks::Crash;
use super::{CoreWorker, Notification};
use crate::dispatcher::Dispatcher;
use crate::eagerness::Eagerness;
use crate::memory_store::{MemoryStore, WaiterId};
use crate::pending_watch::PendingWatch;
use crate::reference_counter::{Owner, ReferenceCounter};
use crate::task_log::TaskLog;
use crate::task_table::TaskTable;

/// Notifications that wait for the front end at most; what is more is dropped and counted.
const MAX_UNTOLD: usize = 10_000;

/// Everything behind the lock.
#[derive(Debug)]
pub(super) struct State {
    pub(super) me: Owner,
    pub(super) job_id: JobId,
    pub(super) job_config: Bytes,
    /// What tasks and actors that this process asks for need unless they say otherwise.
    pub(super) runtime_env: RuntimeEnv,
    /// Where the sockets of this node's processes are.
    pub(super) sockets_dir: PathBuf,
    pub(super) max_frame: usize,

    /// `None` once this process has left.
    pub(super) link: Option<Connection>,
    pub(super) node_links: NodeLinks,
    /// `None` once this process has left.
    pub(super) listener: Option<Listener>,
    pub(super) peers: Peers,

    pub(super) references: ReferenceCounter,
    pub(super) memory: MemoryStore,
    pub(super) shared: SharedObjects,
    pub(super) pins: Pins,
    pub(super) grants: Grants,
    pub(super) inboxes: Inboxes,
    pub(super) tasks: TaskTable,
    /// Items of generator tasks that this process has submitted.
    pub(super) streams: Streams,
    /// Generator tasks that run here.
    pub(super) producers: Producers,
    pub(super) dispatcher: Dispatcher,
    pub(super) groups: Groups,
    /// Scheduling classes in placement groups that were removed, and why.
    pub(super) removed_classes: FxHashMap<u64, String>,
    pub(super) actors: FxHashMap<ActorId, Actor>,
    /// Actors that died, the newest last: of the oldest only this is kept that they died.
    pub(super) dead_actors: VecDeque<ActorId>,
    pub(super) forgotten_actors: FxHashSet<ActorId>,
    /// What connected processes may have run here.
    pub(super) functions: FxHashMap<FunctionId, Defined>,
    pub(super) execution: Execution,
    /// Attempts that failed for good, waiting to hear how their worker ended.
    pub(super) crashes: Vec<Crash>,
    /// Workers that are ended because their task was cancelled with force.
    pub(super) forced_ends: Vec<ForcedEnd>,
    pub(super) ends: Ends,
    /// Classes whose infeasibility was told.
    pub(super) warned: FxHashSet<u64>,
    /// Answers of the node that a thread waits for, by request.
    pub(super) answers: FxHashMap<u64, Answer>,

    pub(super) next_request: u64,
    /// Room for the next message.
    pub(super) message: Vec<u8>,
    /// Ids of the tasks and objects that this process makes outside of any task.
    pub(super) root_task: TaskId,
    pub(super) children: ChildTaskIds,
    pub(super) next_put: u64,

    pub(super) waiters: Vec<Option<Waiter>>,
    /// Some thread reads the sockets.
    pub(super) polling: bool,
    /// The background thread is told when the sockets are ready.
    pub(super) armed: bool,
    /// Whether a thread that waits for the sockets looks before it sleeps.
    pub(super) eagerness: Eagerness,
    /// Since when the event loop that reads the sockets has nothing to serve.
    pub(super) loop_idle_since: Option<Instant>,
    /// Some other thread has read the sockets since the background thread looked.
    pub(super) was_read: bool,
    /// Submissions since the sockets were read by the thread that submits.
    pub(super) submissions: u32,
    /// Room for what is ready, for that thread.
    pub(super) ready: Vec<Readiness>,
    /// The background thread sleeps until the next deadline that it knew of, and not just for a pulse.
    pub(super) background_sleeps: bool,
    /// Something has happened since the background thread looked.
    pub(super) stirred: bool,
    /// Something is queued and not written.
    pub(super) unflushed: bool,
    pub(super) untold: VecDeque<Untold>,
    /// Tasks that ended here.
    pub(super) task_log: TaskLog,
    /// What waits without progress.
    pub(super) pending_watch: PendingWatch,
    /// Failed tasks of this process whose error nobody has looked at.
    pub(super) unseen_failures: FxHashSet<TaskId>,
    /// When metrics are told.
    pub(super) metrics_due: Option<Instant>,
    /// Where debuggers find this process.
    pub(super) debugger: DebuggerReport,
    dropped_notifications: usize,
    closed: Option<Closed>,
}

/// What the background thread has to tell, in order.
#[derive(Debug)]
pub(super) enum Untold {
    /// To the front end.
    Notification(Notification),
    /// To who waits for this answer of the node: all that was printed has been told.
    Flushed(u64),
}

/// What the node answered to a request that a thread waits for.
#[derive(Debug)]
pub(super) enum Answer {
    /// Nothing yet.
    Awaited(WaiterId),
    /// A place in shared memory, or why not.
    Created(Result<u64, ray_link::message::StoreError>),
    /// A reply of the control plane, or its gRPC code and message.
    Gcs(Result<Bytes, (i32, String)>),
    /// All that was printed has been told.
    Flushed,
}

/// A waiting thread.
#[derive(Debug)]
pub(super) struct Waiter {
    /// What it still waits for; it may go on at 0.
    pub(super) remaining: usize,
    pub(super) condvar: Arc<Condvar>,
    /// It sleeps on the condition variable.
    pub(super) parked: bool,
    /// The first failure ends the wait.
    pub(super) fail_fast: bool,
    /// A value of another node does not count before it is here.
    pub(super) fetches: bool,
}

#[derive(Debug)]
enum Closed {
    ShutDown,
    NodeLost(NodeId, String),
}

impl State {
    pub(super) fn new(
        me: Owner,
        job_id: JobId,
        job_config: Bytes,
        sockets_dir: PathBuf,
        link: Connection,
        listener: Listener,
        config: &WorkerConfig,
    ) -> Self {
        let root_task = TaskId::random();
        Self {
            me,
            job_id,
            job_config,
            runtime_env: RuntimeEnv::none(),
            sockets_dir,
            max_frame: config.max_frame_bytes as usize,
            link: Some(link),
            node_links: NodeLinks::default(),
            listener: Some(listener),
            peers: Peers::default(),
            references: ReferenceCounter::new(),
            memory: MemoryStore::default(),
            shared: SharedObjects::default(),
            pins: Pins::default(),
            grants: Grants::default(),
            inboxes: Inboxes::default(),
            tasks: TaskTable::default(),
            streams: Streams::default(),
            producers: Producers::default(),
            dispatcher: Dispatcher::new(
                config.max_inflight_per_worker,
                Duration::from_millis(config.lease_idle_ms),
            ),
            groups: Groups::default(),
            removed_classes: FxHashMap::default(),
            actors: FxHashMap::default(),
            dead_actors: VecDeque::new(),
            forgotten_actors: FxHashSet::default(),
            functions: FxHashMap::default(),
            execution: Execution::default(),
            crashes: Vec::new(),
            forced_ends: Vec::new(),
            ends: Ends::default(),
            warned: FxHashSet::default(),
            answers: FxHashMap::default(),
            next_request: 0,
            message: Vec::new(),
            root_task,
            children: ChildTaskIds::new(root_task),
            next_put: 0,
            waiters: Vec::new(),
            polling: false,
            armed: true,
            eagerness: Eagerness::new(Duration::from_micros(config.look_before_sleep_us)),
            loop_idle_since: None,
            was_read: false,
            submissions: 0,
            ready: Vec::new(),
            background_sleeps: false,
            stirred: false,
            unflushed: false,
            untold: VecDeque::new(),
            task_log: TaskLog::new(
                if config.task_events { config.max_task_events } else { 0 },
                Duration::from_millis(config.report_interval_ms),
                (now(), wall_us()),
            ),
            pending_watch: PendingWatch::new(Duration::from_millis(config.pending_warning_ms)),
            unseen_failures: FxHashSet::default(),
            metrics_due: None,
            debugger: DebuggerReport::default(),
            dropped_notifications: 0,
            closed: None,
        }
    }

    pub(super) fn check_open(&self) -> RayResult<()> {
        match &self.closed {
            None => Ok(()),
            Some(Closed::ShutDown) => Err(RayError::ShutDown),
            Some(Closed::NodeLost(node_id, cause)) => {
                Err(RayError::NodeDied { node_id: *node_id, cause: cause.clone() })
            }
        }
    }

    /// Ends the membership: whoever waits is woken, and finds out why.
    pub(super) fn close(&mut self, why: RayError) {
        if self.closed.is_none() {
            self.closed = Some(match why {
                RayError::ShutDown => Closed::ShutDown,
                other => Closed::NodeLost(self.me.node_id, other.chain()),
            });
            for waiter in self.waiters.iter().flatten() {
                waiter.condvar.notify_all();
            }
            self.close_inboxes();
            if let Some(concurrent) = &mut self.execution.concurrent {
                concurrent.wake_all();
            }
        }
    }

    /// Closes what is connected, so that the others learn that this process is gone.
    pub(super) fn disconnect(&mut self) {
        self.peers.clear();
        self.node_links.clear();
        self.link = None;
        self.listener = None;
        self.memory = MemoryStore::default();
    }

    pub(super) fn next_request(&mut self) -> u64 {
        self.next_request += 1;
        self.next_request
    }

    /// Queues a message to the node. A message that cannot be encoded is a fault of this program.
    pub(super) fn tell_node(&mut self, message: &ToRaylet) {
        if let Some(link) = &mut self.link {
            message.queue(link).expect("messages of the link can be encoded");
            self.flush_soon();
        }
    }

    /// What is queued is written by the next who waits, or by the background thread at its next look.
    pub(super) const fn flush_soon(&mut self) {
        self.unflushed = true;
    }

    /// Whether something is queued for the node or a peer.
    pub(super) fn has_queued(&self) -> bool {
        let to_node = self.link.as_ref().is_some_and(|link| link.queued_bytes() > 0);
        self.unflushed && (to_node || self.peers.has_queued() || self.node_links.has_queued())
    }

    pub(super) fn notify(&mut self, notification: Notification) {
        if self.untold.len() < MAX_UNTOLD {
            self.untold.push_back(Untold::Notification(notification));
        } else {
            self.dropped_notifications += 1;
        }
    }

    /// Tells the front end of the end of an object, if it wants to hear of it.
    pub(super) fn tell_released(&mut self, object_id: ObjectId) {
        if self.shared.unwatch(object_id) {
            self.untold.push_back(Untold::Notification(Notification::Released(object_id)));
        }
    }

    /// What the front end has to be told now.
    pub(super) fn take_untold(&mut self) -> VecDeque<Untold> {
        let mut taken = std::mem::take(&mut self.untold);
        let dropped = std::mem::take(&mut self.dropped_notifications);
        if dropped > 0 {
            let text = format!("{dropped} messages came too fast and were dropped");
            taken.push_back(Untold::Notification(Notification::Warning(text)));
        }
        taken
    }

    pub(super) fn add_waiter(&mut self, remaining: usize) -> WaiterId {
        let condvar = Arc::new(Condvar::new());
        let waiter = Waiter { remaining, condvar, parked: false, fail_fast: false, fetches: false };
        if let Some(free) = self.waiters.iter().position(Option::is_none) {
            self.waiters[free] = Some(waiter);
            return free;
        }
        self.waiters.push(Some(waiter));
        self.waiters.len() - 1
    }

    pub(super) fn waiter(&mut self, id: WaiterId) -> &mut Waiter {
        self.waiters[id].as_mut().expect("a waiter is removed by its own thread only")
    }

    /// One of the things that this thread waits for has happened.
    pub(super) fn tell_waiter(&mut self, id: WaiterId) {
        if let Some(Some(waiter)) = self.waiters.get_mut(id) {
            waiter.remaining = waiter.remaining.saturating_sub(1);
            if waiter.remaining == 0 && waiter.parked {
                waiter.condvar.notify_all();
            }
        }
    }

    /// What falls due with time.
    pub(super) fn tick(&mut self, core: &CoreWorker, now: Instant) {
        let mut out = Vec::new();
        self.dispatcher.tick(now, &mut out);
        self.apply_dispatch(core, out);
        self.settle_suspects(core, now);
        self.settle_crashes(core, now);
        self.settle_forced_ends(core, now);
        self.watch_execution(core, now);
        self.resume_accepting(core, now);
        self.release_idle_pins(now);
        self.settle(core);
        self.tell_what_is_due(core, now);
        if self.unflushed {
            self.flush(core);
        }
    }

    /// When [`State::tick`] has something to do next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let crashes = self.crashes.iter().map(|crash| crash.give_up_at).min();
        let (dispatch, ends) = (self.dispatcher.next_deadline(), self.ends.next_deadline());
        let forced = self.forced_deadline();
        let deadlines = [dispatch, crashes, forced, ends, self.peers.accept_again, self.pins.next_deadline()];
        let reports = [self.task_log.next_deadline(), self.metrics_deadline(), self.pending_deadline()];
        deadlines.into_iter().chain(reports).flatten().min()
    }

    /// The id of the next object that this process puts: of the running task, so that a task that
    /// runs again names its objects as before.
    pub(super) fn next_put_id(&mut self) -> ObjectId {
        if let Some(running) = self.execution.running.current_mut() {
            running.puts += 1;
            return ObjectId::for_put(running.task_id, running.puts - 1);
        }
        self.next_put += 1;
        ObjectId::for_put(self.root_task, self.next_put - 1)
    }

    /// The id of the next task that this process submits, and the task that submits it; nil if none does.
    pub(super) fn next_task_id(&mut self) -> (TaskId, TaskId) {
        match self.execution.running.current_mut() {
            Some(running) => (running.children.next_id(), running.task_id),
            None => (self.children.next_id(), TaskId::nil()),
        }
    }
}

/// The time of day in microseconds since the epoch, as of the kernel's last tick: it costs no more than a few
/// nanoseconds, and may be some milliseconds late.
pub(super) fn wall_us() -> u64 {
    let time = clock_gettime(ClockId::RealtimeCoarse);
    u64::try_from(time.tv_sec).unwrap_or_default() * 1_000_000
        + u64::try_from(time.tv_nsec).unwrap_or_default() / 1_000
}

/// The one place that reads the clock.
pub(super) fn now() -> Instant {
    Instant::now()
}
