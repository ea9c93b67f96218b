//! What an actor is to the control plane.

use std::fmt;
use std::sync::Arc;

use ray_core::constraint::{Constraint, Shape};
use ray_core::id::{ActorId, JobId, NodeId, WorkerId};
use ray_core::resource::Resources;

/// Where a worker listens for frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerAddress {
    /// The worker.
    pub worker_id: WorkerId,
    /// Its node.
    pub node_id: NodeId,
    /// Path of its Unix socket.
    pub socket_path: String,
    /// "host:port" for peers on other nodes; empty if it has none.
    pub tcp_address: String,
}

/// How something ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeathKind {
    /// Its process ended on its own or by a signal.
    ProcessExited,
    /// Its constructor raised.
    CreationFailed,
    /// Someone called kill.
    Killed,
    /// Its job ended.
    JobFinished,
    /// Its node died.
    NodeDied,
    /// The last handle to it went away.
    OutOfScope,
    /// It left by itself.
    ExitedByUser,
    /// No node can ever hold it.
    Unschedulable,
    /// The runtime environment that it needs could not be set up.
    RuntimeEnvSetupFailed,
    /// Its placement group was removed.
    PlacementGroupRemoved,
    /// Its node ended its process because memory ran low.
    OutOfMemory,
}

impl DeathKind {
    /// Whether an actor that ended like this is made anew if it has restarts left. The others were
    /// meant to end, or would end in the same way again.
    pub fn may_restart(self) -> bool {
        match self {
            Self::ProcessExited | Self::Killed | Self::NodeDied | Self::OutOfMemory => true,
            Self::CreationFailed
            | Self::JobFinished
            | Self::OutOfScope
            | Self::ExitedByUser
            | Self::Unschedulable
            | Self::RuntimeEnvSetupFailed
            | Self::PlacementGroupRemoved => false,
        }
    }
}

/// Why something ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeathCause {
    /// How it ended.
    pub kind: DeathKind,
    /// For people.
    pub message: String,
    /// An exception as the language front end encoded it; empty if there is none.
    pub error: Arc<[u8]>,
}

impl DeathCause {
    /// A cause without an exception.
    pub fn new(kind: DeathKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), error: Arc::default() }
    }
}

/// How often an actor may be made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxRestarts {
    /// This often.
    Times(u64),
    /// For ever.
    Unlimited,
}

impl MaxRestarts {
    /// Whether an actor that was made anew `num_restarts` times may be so once more.
    pub fn allows_another(self, num_restarts: u64) -> bool {
        match self {
            Self::Times(times) => num_restarts < times,
            Self::Unlimited => true,
        }
    }
}

/// What is needed to make an actor, wherever and however often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActorSpec {
    /// The actor.
    pub actor_id: ActorId,
    /// Its job.
    pub job_id: JobId,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Where its name counts.
    pub namespace: String,
    /// Its class, for people.
    pub class_name: String,
    /// Taken while the actor is being made.
    pub placement_resources: Resources,
    /// Taken while it lives.
    pub resources: Resources,
    /// How often it may be made anew.
    pub max_restarts: MaxRestarts,
    /// How often a call of it may be tried again; -1: without limit. Passed on.
    pub max_task_retries: i64,
    /// How many calls it runs at once. Passed on.
    pub max_concurrency: u32,
    /// Whether it outlives its job.
    pub detached: bool,
    /// Name of the pickled class.
    pub class_id: Arc<[u8]>,
    /// The pickled class.
    pub class_blob: Arc<[u8]>,
    /// The constructor's arguments, as the language front end encoded them.
    pub creation_task: Arc<[u8]>,
    /// Who asked for it.
    pub owner: Option<WorkerAddress>,
    /// Where it may run.
    pub constraint: Constraint,
    /// Method names with their options, as the language front end encoded them.
    pub handle_metadata: Arc<[u8]>,
    /// What a worker has to know before it runs the job's code, as the language front end encoded it.
    pub job_config: Arc<[u8]>,
    /// Its runtime environment in JSON; empty for none. Passed on.
    pub runtime_env: String,
    /// How many calls of each concurrency group run at once. Passed on.
    pub concurrency_groups: Box<[(String, u32)]>,
    /// Whether its calls run in event loops. Passed on.
    pub is_async: bool,
}

impl ActorSpec {
    /// What the actor needs while it is made or while it lives, whichever is more of each, and where.
    pub fn shape(&self) -> Shape {
        let mut resources = self.placement_resources.clone();
        for (name, amount) in self.resources.iter() {
            resources.set(name, amount.max(resources.get(name)));
        }
        Shape { resources, constraint: self.constraint.clone() }
    }
}

/// Where an actor stands; drawn in [`crate::actor_table`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActorPhase {
    /// No node is found for it yet.
    Waiting {
        /// What it waits for.
        reason: String,
    },
    /// A node makes it.
    Creating {
        /// The node.
        node_id: NodeId,
    },
    /// It takes calls.
    Alive {
        /// Where.
        address: WorkerAddress,
        /// Its process.
        pid: u32,
    },
    /// It ended for good.
    Dead {
        /// Why.
        cause: DeathCause,
        /// When, in milliseconds since the epoch.
        at_ms: u64,
    },
}

impl ActorPhase {
    /// The node that makes or holds the actor.
    pub fn node_id(&self) -> Option<NodeId> {
        match self {
            Self::Waiting { .. } | Self::Dead { .. } => None,
            Self::Creating { node_id } => Some(*node_id),
            Self::Alive { address, .. } => Some(address.node_id),
        }
    }

    /// Whether the actor ended for good.
    pub fn is_dead(&self) -> bool {
        matches!(self, Self::Dead { .. })
    }
}

/// One actor as everyone may know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActorInfo {
    /// The actor.
    pub actor_id: ActorId,
    /// Its job.
    pub job_id: JobId,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Where its name counts.
    pub namespace: String,
    /// Its class, for people.
    pub class_name: String,
    /// Where it stands.
    pub phase: ActorPhase,
    /// How often it was made anew: the incarnation by which late messages are told from fresh ones.
    pub num_restarts: u64,
    /// How often it may be made anew.
    pub max_restarts: MaxRestarts,
    /// How often a call of it may be tried again; -1: without limit.
    pub max_task_retries: i64,
    /// How many calls it runs at once.
    pub max_concurrency: u32,
    /// Whether it outlives its job.
    pub detached: bool,
    /// Method names with their options, as the language front end encoded them; empty once it is dead.
    pub handle_metadata: Arc<[u8]>,
    /// Grows with each change.
    pub version: u64,
}

impl ActorInfo {
    /// A new actor that waits for a node.
    pub fn new(spec: &ActorSpec) -> Self {
        Self {
            actor_id: spec.actor_id,
            job_id: spec.job_id,
            name: spec.name.clone(),
            namespace: spec.namespace.clone(),
            class_name: spec.class_name.clone(),
            phase: ActorPhase::Waiting { reason: "it was not looked at yet".to_owned() },
            num_restarts: 0,
            max_restarts: spec.max_restarts,
            max_task_retries: spec.max_task_retries,
            max_concurrency: spec.max_concurrency,
            detached: spec.detached,
            handle_metadata: Arc::clone(&spec.handle_metadata),
            version: 1,
        }
    }
}

/// One incarnation of an actor on one node: what a command to a node or a report from it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation {
    /// The node that makes or holds it.
    pub node_id: NodeId,
    /// The actor.
    pub actor_id: ActorId,
    /// How often the actor was made anew before.
    pub num_restarts: u64,
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "actor {} (restart {}) on node {}", self.actor_id, self.num_restarts, self.node_id)
    }
}

/// The order to a node to make one incarnation of an actor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateOrder {
    /// What to make.
    pub target: Incarnation,
    /// What is needed to make it.
    pub spec: Arc<ActorSpec>,
    /// The actor's version when it was placed: tells this order from an earlier one for the same
    /// incarnation and node, which the node gave back.
    pub version: u64,
    /// If it runs in a placement group: in which of its bundles.
    pub bundle: Option<u32>,
}

/// The order to a node to end one incarnation of an actor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KillOrder {
    /// What to end.
    pub target: Incarnation,
    /// Why.
    pub cause: DeathCause,
}
