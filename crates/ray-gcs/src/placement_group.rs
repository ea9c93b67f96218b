//! What a placement group is to the control plane.

use std::fmt;
use std::sync::Arc;

use ray_core::id::{JobId, NodeId, PlacementGroupId};
use ray_core::resource::Resources;
use ray_scheduler::{Bundle, GroupStrategy};

/// What is needed to reserve a placement group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSpec {
    /// The group.
    pub group_id: PlacementGroupId,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Where its name counts.
    pub namespace: String,
    /// How its bundles lie to one another.
    pub strategy: GroupStrategy,
    /// What it reserves; at least one.
    pub bundles: Vec<Bundle>,
    /// Whether it outlives its job.
    pub detached: bool,
    /// Its job.
    pub job_id: JobId,
    /// With [`GroupStrategy::StrictPack`], the node to be preferred.
    pub soft_target: Option<NodeId>,
}

/// Where a group stands; drawn in [`crate::placement_group_table`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupPhase {
    /// Some bundles have no node yet.
    Pending {
        /// What it waits for.
        reason: String,
    },
    /// Nodes are asked to reserve them.
    Preparing,
    /// All did, and are told so.
    Prepared,
    /// It can be used.
    Created,
    /// It is gone for good.
    Removed {
        /// Why.
        reason: String,
        /// When, in milliseconds since the epoch.
        at_ms: u64,
    },
}

/// One placement group as everyone may know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupInfo {
    /// What was asked for.
    pub spec: Arc<GroupSpec>,
    /// Where it stands.
    pub phase: GroupPhase,
    /// For each bundle its node, if it has one.
    pub nodes: Vec<Option<NodeId>>,
    /// Which bundles are reserved for good; the other ones that have a node are of the attempt under way.
    pub committed: Vec<bool>,
    /// Counts the attempts to place bundles: orders, and answers to them, are about one.
    pub attempt: u64,
    /// Grows with each change.
    pub version: u64,
    /// When it was created first, in milliseconds since the epoch; 0 if it never was.
    pub created_ms: u64,
}

impl GroupInfo {
    /// A new group without nodes.
    pub fn new(spec: GroupSpec) -> Self {
        let count = spec.bundles.len();
        Self {
            spec: Arc::new(spec),
            phase: GroupPhase::Pending { reason: "it was not looked at yet".to_owned() },
            nodes: vec![None; count],
            committed: vec![false; count],
            attempt: 0,
            version: 1,
            created_ms: 0,
        }
    }

    /// Whether it is gone for good.
    pub const fn is_removed(&self) -> bool {
        matches!(self.phase, GroupPhase::Removed { .. })
    }

    /// What the bundles of the attempt under way take of this node, by their indices.
    pub(crate) fn under_way_on(&self, node_id: NodeId) -> Vec<(u32, Resources)> {
        let bundles = self.nodes.iter().zip(&self.committed).enumerate();
        let here = bundles.filter(|(_, (at, committed))| **at == Some(node_id) && !**committed);
        here.map(|(index, _)| (index as u32, self.spec.bundles[index].resources.clone())).collect()
    }
}

/// What one attempt to place a group reserves on one node: what an order or an answer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reservation {
    /// The node.
    pub node_id: NodeId,
    /// The group.
    pub group_id: PlacementGroupId,
    /// Which attempt.
    pub attempt: u64,
}

impl fmt::Display for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "placement group {} (attempt {}) on node {}", self.group_id, self.attempt, self.node_id)
    }
}

/// The order to a node to give bundles back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReturnOrder {
    /// Which.
    pub target: Reservation,
    /// Those of earlier attempts, too.
    pub all: bool,
    /// Why, for those who run in them.
    pub reason: String,
}

/// An order to a node about bundles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BundleOrder {
    /// Take them out of what others get, all of them or none.
    Reserve {
        /// What to reserve.
        target: Reservation,
        /// The bundles, by their indices.
        bundles: Vec<(u32, Resources)>,
        /// Whether they may be used at once, as the attempt concerns no other node.
        commit: bool,
    },
    /// They may be used.
    Commit(Reservation),
    /// Give them back.
    Return(ReturnOrder),
}

impl BundleOrder {
    /// What the order is about.
    pub const fn target(&self) -> Reservation {
        match self {
            Self::Reserve { target, .. }
            | Self::Commit(target)
            | Self::Return(ReturnOrder { target, .. }) => *target,
        }
    }
}
