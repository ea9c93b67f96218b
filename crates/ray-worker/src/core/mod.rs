//! The shell around the machines: sockets, threads and shared memory of one process.
//!
//! All state is behind one lock, held for short steps and never while waiting or calling the front
//! end. Two kinds of threads come to it:
//!
//! * the user's threads, which submit, and wait in `get` and `wait`; in a worker also the main
//!   thread, which waits for tasks. The first of them that waits becomes the *poller*: it reads the
//!   sockets itself, so that a reply wakes the thread that wants it and no other.
//! * the background thread, which reads the sockets when nobody else has for a moment, writes what was
//!   left unwritten, watches over deadlines, and tells the front end what it should know.
//!
//! | file | what is decided there |
//! |---|---|
//! | `poll` | who reads the sockets, and how a thread waits |
//! | `state` | what is known; the background's duties |
//! | `link` | the conversation with the node |
//! | `node_links` | links to other nodes, as their visitor |
//! | `peers` | connections to other core workers and their messages |
//! | `ends` | processes that are lost, and how they ended |
//! | `tasks` | submission, dispatch, replies, retries |
//! | `actor_creation` | actors that this process creates |
//! | `actors` | what is heard of actors, calls to them |
//! | `inbox` | objects that event loops and callbacks await |
//! | `groups` | placement groups that are made, waited for and removed |
//! | `objects` | values, by whatever way they come |
//! | `pins` | objects in shared memory |
//! | `grants` | references that are handed over |
//! | `reports` | what is told for people: ended tasks, metrics, why something waits |
//! | `execution` | a worker's side: tasks that come, what goes back |
//! | `running` | what runs, and which thread works for it |
//! | `concurrent` | calls of one actor that run side by side, in threads or event loops |
//! | `streams` | items of generator tasks: their consumer's side |
//! | `producers` | items of generator tasks: their worker's side |

mod actor_creation;
mod actors;
mod cancellation;
mod concurrent;
mod ends;
mod execution;
mod grants;
mod groups;
mod inbox;
mod link;
mod locations;
mod node_links;
mod objects;
mod peers;
mod pins;
mod poll;
mod producers;
mod reports;
mod running;
mod state;
mod streams;
mod tasks;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use ray_core::config::WorkerConfig;
use ray_core::error::{RayError, RayResult};
use ray_core::id::{JobId, NodeId, ObjectId, WorkerId};
use ray_core::runtime_env::RuntimeEnv;
use ray_link::message::{FromRaylet, JobDescription, LinkMessage as _, Role, ToRaylet, connection_error};
use ray_link::{Connection, Interest, Listener, Poller, Waker};
use ray_object_store::shm::{Access, ShmRegion};

pub use self::actor_creation::ActorRequest;
pub use self::actors::{MethodRequest, handle_object};
pub use self::cancellation::Cancellation;
pub use self::concurrent::{Concurrency, Limits, StartedCall};
pub use self::execution::{Executor, Leased, OwnDescription, ReadyArg, ResolvedArg, Served, Task};
pub use self::inbox::{Heard, Inbox, Wants};
pub use self::locations::Location;
pub use self::objects::Got;
pub use self::pins::{Pinned, ReadyValue};
pub use self::poll::Interrupted;
pub use self::producers::{Flow, ItemSender};
pub use self::running::{Called, RunningKey, work_for};
use self::state::State;
pub use self::streams::{NextItem, StreamPlace};
pub use self::tasks::{Returns, TaskRequest};
use crate::reference_counter::Owner;
use crate::value::Failure;

/// How long a node may take to answer a registration.
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(30);

/// What the front end should know, told from the background thread.
#[derive(Debug, Clone, PartialEq)]
pub enum Notification {
    /// A worker printed.
    Log {
        /// The process.
        pid: u32,
        /// Name of its task or actor.
        name: String,
        /// Standard error rather than standard output.
        is_stderr: bool,
        /// Whole lines.
        lines: Vec<String>,
    },
    /// Something that a person should read.
    Warning(String),
    /// Why tasks or an actor of this process have waited for so long.
    Pending(String),
    /// A task of this process failed, and nobody has asked for its result.
    UnhandledError {
        /// What it would have made.
        object_id: ObjectId,
        /// How it failed.
        failure: Failure,
    },
    /// The running task was cancelled: the main thread should look whether it goes on
    /// ([`CoreWorker::is_cancelled`]).
    Interrupt,
    /// A call that runs in an event loop was cancelled.
    CancelCall(RunningKey),
    /// A generator call that runs in an event loop, and had to wait, may look whether it can go on.
    ResumeCall(RunningKey),
    /// Nobody refers any more to an object of this process that is watched ([`CoreWorker::watch`]). Never dropped:
    /// there are at most as many as objects that are watched.
    Released(ObjectId),
    /// Threads are wanted that serve a concurrency group ([`CoreWorker::run_thread`]).
    StartThreads {
        /// The group.
        group: usize,
        /// How many.
        count: usize,
    },
}

/// Who gets notifications.
pub trait Listening: Send + Sync {
    /// Takes one; may block, for it is called outside of all locks.
    fn notify(&self, notification: Notification);
}

/// What this process joins its node as.
#[derive(Debug, Clone)]
pub enum Membership {
    /// As the driver of a new job.
    Driver {
        /// Where names of actors are looked up unless told otherwise.
        namespace: String,
        /// The command line.
        entrypoint: String,
        /// For people and tools.
        metadata: BTreeMap<String, String>,
        /// What workers have to know before they run the job's code, as the front end encoded it.
        job_config: Bytes,
        /// What the processes of the job's tasks and actors need unless these say otherwise.
        runtime_env: RuntimeEnv,
    },
    /// As a worker, whose id the node chose.
    Worker {
        /// The id.
        worker_id: WorkerId,
        /// What it was made with, and its tasks and actors need unless they say otherwise.
        runtime_env: RuntimeEnv,
    },
}

/// This process as a member of a cluster.
#[derive(Debug)]
pub struct CoreWorker {
    state: Mutex<State>,
    /// All sockets, and `nudge`.
    sockets: Poller,
    /// Has whoever reads the sockets look at what it waits for.
    nudge: Waker,
    /// `sockets`, as long as nobody polls them, and `waker`: what the background thread waits for.
    background: Poller,
    waker: Waker,
    thread: Mutex<Option<JoinHandle<()>>>,
    me: Owner,
    session_dir: PathBuf,
    gcs_address: String,
    region: Arc<ShmRegion>,
    config: WorkerConfig,
}

/// Tokens of [`CoreWorker::sockets`]; peers follow.
const LINK_TOKEN: u64 = 0;
const LISTENER_TOKEN: u64 = 1;
const NUDGE_TOKEN: u64 = 2;
const FIRST_PEER_TOKEN: u64 = 3;
/// Tokens from here on are those of links to other nodes.
const FIRST_LINK_TOKEN: u64 = 1 << 62;

/// Tokens of [`CoreWorker::background`].
const SOCKETS_TOKEN: u64 = 0;
const WAKER_TOKEN: u64 = 1;

impl CoreWorker {
    /// Joins the node that listens at `socket`.
    ///
    /// # Errors
    /// If no node listens there, or it does not take this process.
    pub fn connect(
        socket: &Path,
        membership: Membership,
        config: WorkerConfig,
        listening: Box<dyn Listening>,
    ) -> RayResult<Arc<Self>> {
        let max_frame = config.max_frame_bytes as usize;
        let peer = || format!("the node at {}", socket.display());
        let mut link =
            Connection::connect(socket, max_frame).map_err(|error| connection_error(peer(), error))?;
        let folder = socket.parent().unwrap_or_else(|| Path::new("."));
        let is_worker = matches!(membership, Membership::Worker { .. });
        let (worker_id, role, job_id, job_config, runtime_env) = register_as(membership);
        let listener = Listener::bind(&worker_socket(folder, worker_id))
            .map_err(|error| connection_error(format!("a socket in {}", folder.display()), error))?;
        ToRaylet::Register {
            worker_id,
            role,
            pid: std::process::id(),
            socket_path: listener.path().to_string_lossy().into_owned(),
        }
        .queue(&mut link)?;
        let answer = link
            .wait_for_frame(REGISTRATION_TIMEOUT, FromRaylet::read)
            .map_err(|error| connection_error(peer(), error))??;
        let (node_id, gcs_address, session_dir, capacity) = match answer {
            FromRaylet::Registered { node_id, gcs_address, session_dir, store_capacity } => {
                (node_id, gcs_address, session_dir, store_capacity)
            }
            FromRaylet::Rejected { reason } => {
                return Err(RayError::Unavailable { peer: peer(), cause: reason });
            }
            other => {
                let reason = format!("it answered a registration by {other:?}");
                return Err(RayError::Protocol { peer: peer(), reason });
            }
        };
        let region = open_region(&mut link, capacity, &peer())?;
        let me = Owner { worker_id, node_id };
        let mut state = State::new(me, job_id, job_config, folder.to_owned(), link, listener, &config);
        state.execution.is_worker = is_worker;
        state.runtime_env = runtime_env;
        Self::start(state, me, session_dir.into(), gcs_address, region, config, listening)
    }

    fn start(
        state: State,
        me: Owner,
        session_dir: PathBuf,
        gcs_address: String,
        region: Arc<ShmRegion>,
        config: WorkerConfig,
        listening: Box<dyn Listening>,
    ) -> RayResult<Arc<Self>> {
        let refused = |error| RayError::io("cannot wait for sockets", error);
        let (sockets, background) = (Poller::new().map_err(refused)?, Poller::new().map_err(refused)?);
        let (waker, nudge) = (Waker::new().map_err(refused)?, Waker::new().map_err(refused)?);
        for (token, descriptor) in [
            (LINK_TOKEN, state.link.as_ref().map(AsFd::as_fd)),
            (LISTENER_TOKEN, state.listener.as_ref().map(AsFd::as_fd)),
        ] {
            let descriptor = descriptor.expect("a new state is connected");
            sockets.add(descriptor, token, Interest::Read).map_err(refused)?;
        }
        sockets.add(&nudge, NUDGE_TOKEN, Interest::Read).map_err(refused)?;
        background.add(&sockets, SOCKETS_TOKEN, Interest::Read).map_err(refused)?;
        background.add(&waker, WAKER_TOKEN, Interest::Read).map_err(refused)?;
        let core = Arc::new(Self {
            state: Mutex::new(state),
            sockets,
            nudge,
            background,
            waker,
            thread: Mutex::new(None),
            me,
            session_dir,
            gcs_address,
            region,
            config,
        });
        core.lock().take_early_news(&core);
        let of_thread = Arc::clone(&core);
        let thread = std::thread::Builder::new()
            .name("ray-background".to_owned())
            .spawn(move || of_thread.run_background(&*listening))
            .map_err(|error| RayError::io("cannot start the background thread", error))?;
        *core.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(core)
    }

    /// This process.
    pub const fn me(&self) -> Owner {
        self.me
    }

    /// Its node.
    pub const fn node_id(&self) -> NodeId {
        self.me.node_id
    }

    /// The job on whose behalf this process acts; nil in a worker that has not run a task yet.
    pub fn job_id(&self) -> JobId {
        self.lock().job_id
    }

    /// What this process was made with, or of a driver what its job asks for.
    pub fn runtime_env(&self) -> RuntimeEnv {
        self.lock().runtime_env.clone()
    }

    /// What the tasks and actors of this driver need from now on unless they say otherwise. The node
    /// sets it up.
    pub fn set_runtime_env(&self, runtime_env: RuntimeEnv) {
        let mut state = self.lock();
        state.runtime_env = runtime_env.clone();
        state.tell_node(&ToRaylet::SetJobEnvironment { runtime_env });
        state.flush(self);
    }

    /// Folder of logs and sockets.
    pub fn session_dir(&self) -> &Path {
        &self.session_dir
    }

    /// "host:port" of the control plane.
    pub fn gcs_address(&self) -> &str {
        &self.gcs_address
    }

    /// Size up to which values travel inside messages, in bytes.
    pub const fn inline_limit(&self) -> usize {
        self.config.inline_limit_bytes as usize
    }

    /// Whether this process is still a member; if not, why.
    ///
    /// # Errors
    /// What ended the membership.
    pub fn check_open(&self) -> RayResult<()> {
        self.lock().check_open()
    }

    /// Leaves the cluster. Whoever waits gets an error. With `stop_node`, asks the node to end.
    pub fn shutdown(&self, stop_node: bool) {
        {
            let mut state = self.lock();
            if state.check_open().is_ok() {
                if stop_node {
                    state.tell_node(&ToRaylet::Shutdown { reason: "the driver has ended".to_owned() });
                }
                state.tell_all();
                state.flush(self);
                state.close(RayError::ShutDown);
                self.nudge_poller(&state);
            }
        }
        self.waker.wake();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // A panic of the thread was printed when it happened, and there is nothing to save.
            drop(thread.join());
        }
        self.lock().disconnect();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the state was changed leaves it in an unknown condition: go no further.
        self.state.lock().expect("no thread panicked while it held the state")
    }
}

/// Where the process with this id listens, beside its node's socket.
fn worker_socket(folder: &Path, worker_id: WorkerId) -> PathBuf {
    folder.join(worker_id.hex())
}

fn register_as(membership: Membership) -> (WorkerId, Role, JobId, Bytes, RuntimeEnv) {
    match membership {
        Membership::Worker { worker_id, runtime_env } => {
            (worker_id, Role::Worker, JobId::nil(), Bytes::new(), runtime_env)
        }
        Membership::Driver { namespace, entrypoint, metadata, job_config, runtime_env } => {
            let job_id = JobId::random();
            let own = runtime_env.clone();
            let job = JobDescription { job_id, namespace, entrypoint, metadata, runtime_env };
            (WorkerId::random(), Role::Driver(job), job_id, job_config, own)
        }
    }
}

fn open_region(link: &mut Connection, capacity: u64, peer: &str) -> RayResult<Arc<ShmRegion>> {
    let descriptor = link.take_descriptor().ok_or_else(|| RayError::Protocol {
        peer: peer.to_owned(),
        reason: "it sent no shared memory with its registration".to_owned(),
    })?;
    let region = ShmRegion::from_fd(descriptor, Access::ReadWrite)?;
    if region.capacity() < capacity {
        let reason = format!("it sent {} bytes of shared memory instead of {capacity}", region.capacity());
        return Err(RayError::Protocol { peer: peer.to_owned(), reason });
    }
    Ok(Arc::new(region))
}
