//! What travels between the control plane and the others, and what happens by itself.

use std::sync::Arc;

use ray_core::id::{ActorId, JobId, NodeId, PlacementGroupId};
use ray_gcs::actor::{ActorSpec, Incarnation};
use ray_gcs::actor_table::NodeOrder;
use ray_gcs::control_plane::{ActorOutcome, OrderAnswer, OrderKey};
use ray_gcs::node_table::NodeSpec;
use ray_gcs::placement_group::GroupSpec;
use ray_gcs::usage_table::NodeUsage;

use super::random::Random;

/// Who calls the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    Driver,
    Raylet(usize),
}

/// A call of the control plane.
#[derive(Debug, Clone)]
pub(super) enum Call {
    RegisterNode(NodeSpec),
    Heartbeat(NodeId, u64),
    ReportActor(Incarnation, ActorOutcome),
    ReportUsage(NodeUsage),
    AddJob(JobId),
    RegisterActor(Arc<ActorSpec>),
    KillActor(ActorId, bool),
    CreateGroup(Arc<GroupSpec>),
    RemoveGroup(PlacementGroupId),
    FinishJob(JobId),
}

/// The answer to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Done,
    /// The node is not known or was declared dead.
    NodeGone,
    Refused,
}

/// What travels.
#[derive(Debug, Clone)]
pub(super) enum Message {
    Call { from: Peer, id: u64, call: Call },
    Reply { to: Peer, id: u64, reply: Reply },
    Order { to: NodeId, order: NodeOrder },
    Answered(OrderKey, OrderAnswer),
}

impl Message {
    /// Short enough to be read, complete enough to be compared.
    pub(super) fn summary(&self) -> String {
        match self {
            Self::Call { from, id, call } => format!("{from:?} calls #{id}: {}", call.summary()),
            Self::Reply { to, id, reply } => format!("{to:?} gets #{id}: {reply:?}"),
            Self::Order { order, .. } => format!("order {:?}", order.key()),
            Self::Answered(key, answer) => format!("{answer:?}: {key:?}"),
        }
    }
}

impl Call {
    fn summary(&self) -> String {
        match self {
            Self::RegisterNode(spec) => format!("register node {}", spec.node_id),
            Self::Heartbeat(node_id, sequence) => format!("heartbeat {sequence} of {node_id}"),
            Self::ReportActor(target, outcome) => format!("report {target}: {outcome:?}"),
            Self::ReportUsage(usage) => {
                format!("usage {} of {}: {} free", usage.version, usage.node_id, usage.available)
            }
            Self::AddJob(job_id) => format!("add job {job_id}"),
            Self::RegisterActor(spec) => format!("register actor {}", spec.actor_id),
            Self::KillActor(actor_id, for_good) => format!("kill actor {actor_id}, for good: {for_good}"),
            Self::CreateGroup(spec) => format!("create group {}", spec.group_id),
            Self::RemoveGroup(group_id) => format!("remove group {group_id}"),
            Self::FinishJob(job_id) => format!("finish job {job_id}"),
        }
    }
}

/// What happens by itself. An `epoch` tells timers of a process that is gone from those of its successor.
#[derive(Debug, Clone)]
pub(super) enum Timer {
    /// The control plane looks for silent nodes and repeats outstanding orders.
    GcsTick {
        epoch: u64,
    },
    GcsCrash,
    GcsStart,
    /// A raylet sends what is due.
    RayletTick {
        raylet: usize,
        epoch: u64,
    },
    RayletCrash {
        raylet: usize,
    },
    RayletStart {
        raylet: usize,
    },
    /// A constructor comes to its end.
    Constructed {
        raylet: usize,
        epoch: u64,
        target: Incarnation,
    },
    /// An actor's process crashes if it still runs.
    ProcessCrash {
        raylet: usize,
        epoch: u64,
        target: Incarnation,
    },
    /// The driver repeats what was not answered.
    DriverTick,
    /// The driver does the next thing that it has in mind.
    DriverAct,
    /// The network is whole from here on, and nothing crashes any more.
    Heal,
}

/// What a participant wants done.
#[derive(Debug)]
pub(super) enum Action {
    Send(Message),
    After(u64, Timer),
}

/// What a participant is given to act.
pub(super) struct Context<'a> {
    pub(super) random: &'a mut Random,
    /// Whether things still go wrong.
    pub(super) faulty: bool,
    pub(super) next_call: &'a mut u64,
    pub(super) out: Vec<Action>,
}

impl Context<'_> {
    pub(super) fn send(&mut self, message: Message) {
        self.out.push(Action::Send(message));
    }

    pub(super) fn after(&mut self, ms: u64, timer: Timer) {
        self.out.push(Action::After(ms, timer));
    }

    /// Some time from `low` up to but not including `high` milliseconds from now.
    pub(super) fn within(&mut self, low: u64, high: u64, timer: Timer) {
        let ms = self.random.between(low, high);
        self.after(ms, timer);
    }

    /// A number for a new call.
    pub(super) fn call_id(&mut self) -> u64 {
        *self.next_call += 1;
        *self.next_call
    }
}
