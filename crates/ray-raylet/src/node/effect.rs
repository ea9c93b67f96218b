//! What the node's machine takes in beside messages of the link, and what it wants done.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use ray_core::constraint::BundleId;
use ray_core::id::{ActorId, JobId, LeaseId, NodeId, PlacementGroupId, RuntimeEnvId, TaskId, WorkerId};
use ray_core::pb::common::DeathCause;
use ray_core::resource::Resources;
use ray_core::runtime_env::RuntimeEnv;
use ray_link::FromRaylet;
use ray_link::message::{JobDescription, LeasedWorker};

/// A connection of the link, numbered by the shell; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// What never changes about a node.
#[derive(Debug, Clone)]
pub struct NodeIdentity {
    /// The node.
    pub node_id: NodeId,
    /// "host:port" of the control plane.
    pub gcs_address: String,
    /// Folder of logs and sockets.
    pub session_dir: String,
    /// Size of the shared memory in bytes.
    pub store_capacity: u64,
    /// What it can be chosen by.
    pub labels: BTreeMap<String, String>,
}

/// An actor to be placed, as far as the node has to understand it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActorOrder {
    /// The actor.
    pub actor_id: ActorId,
    /// Its job.
    pub job_id: JobId,
    /// The incarnation.
    pub num_restarts: u64,
    /// Taken until the actor is made.
    pub placement: Resources,
    /// Taken while it lives.
    pub living: Resources,
    /// What its process needs.
    pub runtime_env: RuntimeEnv,
    /// Of which both are taken; of the node if not given.
    pub bundle: Option<BundleId>,
    /// The encoded `ray.common.ActorSpec`, for the worker.
    pub spec: Bytes,
}

/// What became of an actor.
#[derive(Debug, Clone, PartialEq)]
pub enum ActorOutcome {
    /// It lives in this worker.
    Alive(LeasedWorker),
    /// It does not live (any more).
    Died(DeathCause),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Nobody saw it.
    Unknown,
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "its process exited with code {code}"),
            Self::Signal(9) => f.write_str("its process was killed by signal 9 (SIGKILL)"),
            Self::Signal(signal) => write!(f, "its process was ended by signal {signal}"),
            Self::Unknown => f.write_str("its connection to the node was closed"),
        }
    }
}

/// What came of a lease asked for by gRPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteOutcome {
    /// The caller has this worker.
    Granted(LeasedWorker),
    /// It cannot be had now.
    Busy(String),
    /// It can never be had here.
    Infeasible(String),
}

/// What the machine wants done. The shell does it in order.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Say this to the client.
    Send(ClientId, FromRaylet),
    /// The client is one of ours: answer with the descriptor of the shared memory.
    Welcome(ClientId),
    /// Refuse the client, for this reason, and end its connection.
    Reject(ClientId, String),
    /// End the connection.
    Close(ClientId),
    /// Make a process for this worker, with the environment that [`super::NodeMachine::environment_of`] tells.
    Fork(WorkerId),
    /// Start the process that sets this environment up; its end is told by `on_setup_done`.
    SetUp(RuntimeEnv),
    /// Kill this process, which sets an environment up, and what it has started.
    AbortSetUp(u32),
    /// No more processes of this environment are made.
    RetireEnv(RuntimeEnvId),
    /// Remove what lies there for environments that nobody uses.
    Discard(PathBuf),
    /// Kill this process. It is a worker of ours that was not reaped yet.
    Kill(u32),
    /// A worker belongs to this job from now on: what it prints goes to the job's driver.
    RouteLogs(WorkerId, JobId, u32),
    /// A worker is gone: read the rest of what it printed.
    EndLogs(WorkerId),
    /// Tell the control plane of a job; `JobAdded` is expected back.
    AddJob {
        /// What the driver says of it.
        job: JobDescription,
        /// The driver.
        driver: WorkerId,
        /// Process id of the driver.
        pid: u32,
    },
    /// Tell the control plane that a job has ended.
    FinishJob(JobId, String),
    /// Tell the control plane what became of an actor.
    ReportActor {
        /// The actor.
        actor_id: ActorId,
        /// The incarnation.
        num_restarts: u64,
        /// What became of it.
        outcome: ActorOutcome,
    },
    /// Ask the control plane for the state of an actor; `ActorState` is expected back.
    FetchActor(ActorId),
    /// Ask the control plane for the state of a placement group; `GroupNews` or `GroupUnknown` is expected back.
    FetchGroup(PlacementGroupId),
    /// Ask the control plane which nodes there are; `NodesListed` is expected back.
    FetchNodes,
    /// Answer those who asked by gRPC for this lease.
    RemoteLease(LeaseId, RemoteOutcome),
    /// Store the result of a task that was submitted by gRPC.
    StoreResult(TaskId, Bytes),
    /// Objects that this process owned go with it.
    OwnerLost(WorkerId),
    /// End the node.
    Shutdown(String),
}
