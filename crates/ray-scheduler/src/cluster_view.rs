//! What is known of every node: what it has, what it reported free, and what was promised since.
//!
//! ```text
//!            add_node                mark_dead
//!   unknown ----------> alive  ------------------> dead
//!      ^                 | ^  report, commit,       |
//!      |                 +-+  release               |
//!      +--- remove_node --+-------------------------+
//! ```
//!
//! A node's report overwrites what it reported before, never what was committed here: a report that
//! was sent before the node heard of a placement must not make the same processors free again.
//! What a placement may take is therefore `min(total, reported) - committed`, and whoever committed
//! releases once the node itself accounts for the placement, or the placement failed.

use std::collections::BTreeMap;

use ray_core::constraint::LabelSelector;
use ray_core::error::RayError;
use ray_core::id::NodeId;
use ray_core::resource::{ResourceError, Resources};
use thiserror::Error;

use crate::node_index::{Candidate, NodeIndex, Slot};

/// Why a change to the view is refused.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ViewError {
    /// There is no such node, or it is dead.
    #[error("node {0} is not alive")]
    NotAlive(NodeId),
    /// The node has less free than should be taken.
    #[error("node {node_id} has too little free: {source}")]
    Insufficient {
        /// The node.
        node_id: NodeId,
        /// What is missing.
        source: ResourceError,
    },
    /// More is given back than was taken.
    #[error("more is released on node {node_id} than was committed: {source}")]
    NotCommitted {
        /// The node.
        node_id: NodeId,
        /// What was never taken.
        source: ResourceError,
    },
}

impl From<ViewError> for RayError {
    fn from(error: ViewError) -> Self {
        Self::InvalidArgument(error.to_string())
    }
}

/// What a node says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Grows with each report of the node; what is not above the last one is stale.
    pub version: u64,
    /// What the node has.
    pub total: Resources,
    /// What of it was free when the report was made.
    pub available: Resources,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    total: Resources,
    reported: Resources,
    committed: Resources,
    labels: BTreeMap<String, String>,
    version: u64,
    last_placed: u64,
    /// Where the index has it; only living nodes are there.
    slot: Option<Slot>,
}

impl Node {
    /// What it has.
    pub fn total(&self) -> &Resources {
        &self.total
    }

    /// What is free: reported so, and not promised to anyone since.
    pub fn available(&self) -> Resources {
        let mut available = Resources::new();
        for (name, total) in self.total.iter() {
            let reported = self.reported.get(name).min(total);
            available.set(name, reported.saturating_sub(self.committed.get(name)));
        }
        available
    }

    /// What tells it from other nodes.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }

    /// Whether it is alive.
    pub fn is_alive(&self) -> bool {
        self.slot.is_some()
    }

    /// The version of its last report; 0 before the first.
    pub fn version(&self) -> u64 {
        self.version
    }
}

/// All nodes of a cluster.
#[derive(Debug, Default)]
pub struct ClusterView {
    nodes: BTreeMap<NodeId, Node>,
    /// The living nodes, so laid out that a search is fast.
    index: NodeIndex,
    version: u64,
    placements: u64,
}

impl ClusterView {
    /// The view of an empty cluster.
    pub fn new() -> Self {
        Self::default()
    }

    /// A node has joined, with all that it has free. A node of that id that was there before, dead or
    /// alive, is forgotten.
    pub fn add_node(&mut self, node_id: NodeId, total: Resources, labels: BTreeMap<String, String>) {
        self.remove_node(&node_id);
        let slot = self.index.insert(node_id, &total, &total, 0);
        let node = Node {
            reported: total.clone(),
            committed: Resources::new(),
            total,
            labels,
            version: 0,
            last_placed: 0,
            slot: Some(slot),
        };
        self.nodes.insert(node_id, node);
        self.version += 1;
    }

    /// Takes a node's report in. Returns whether it was: a stale one, or one of a node that is not
    /// alive, changes nothing.
    pub fn report(&mut self, node_id: &NodeId, report: Report) -> bool {
        let Some(node) = self.nodes.get_mut(node_id) else { return false };
        let Some(slot) = node.slot.filter(|_| report.version > node.version) else { return false };
        let total_changed = node.total != report.total;
        if !total_changed && node.reported == report.available {
            // The common case by far: nobody has to look for places again.
            node.version = report.version;
            return true;
        }
        node.version = report.version;
        node.reported = report.available;
        if total_changed {
            self.index.remove(slot, &node.total);
            node.total = report.total;
            node.slot = Some(self.index.insert(*node_id, &node.total, &node.available(), node.last_placed));
        } else {
            self.index.set_free(slot, &node.total, &node.available());
        }
        self.version += 1;
        true
    }

    /// A node has died: nothing is placed there any more, but it can still be looked at. Returns
    /// whether it was alive.
    pub fn mark_dead(&mut self, node_id: &NodeId) -> bool {
        let Some(node) = self.nodes.get_mut(node_id) else { return false };
        let Some(slot) = node.slot.take() else { return false };
        self.index.remove(slot, &node.total);
        self.version += 1;
        true
    }

    /// Forgets a node. Returns whether it was there.
    pub fn remove_node(&mut self, node_id: &NodeId) -> bool {
        self.mark_dead(node_id);
        self.nodes.remove(node_id).is_some()
    }

    /// Promises `resources` of this node to someone.
    ///
    /// # Errors
    /// If the node is not alive or has too little free; nothing is changed then.
    pub fn commit(&mut self, node_id: &NodeId, resources: &Resources) -> Result<(), ViewError> {
        let node = alive(&mut self.nodes, node_id)?;
        let mut available = node.available();
        available
            .subtract(resources)
            .map_err(|source| ViewError::Insufficient { node_id: *node_id, source })?;
        self.placements += 1;
        self.version += 1;
        node.committed.add(resources);
        node.last_placed = self.placements;
        let slot = node.slot.expect("a living node is in the index");
        self.index.set_free(slot, &node.total, &available);
        self.index.set_last_placed(slot, node.last_placed);
        Ok(())
    }

    /// Takes back what was promised by [`commit`](Self::commit): it failed, or the node accounts for it
    /// itself now.
    ///
    /// # Errors
    /// If the node is not alive, or more is released than was committed; nothing is changed then.
    pub fn release(&mut self, node_id: &NodeId, resources: &Resources) -> Result<(), ViewError> {
        let node = alive(&mut self.nodes, node_id)?;
        node.committed
            .subtract(resources)
            .map_err(|source| ViewError::NotCommitted { node_id: *node_id, source })?;
        let slot = node.slot.expect("a living node is in the index");
        self.index.set_free(slot, &node.total, &node.available());
        self.version += 1;
        Ok(())
    }

    /// The node, dead or alive.
    pub fn node(&self, node_id: &NodeId) -> Option<&Node> {
        self.nodes.get(node_id)
    }

    /// All nodes, dead or alive, in the order of their ids.
    pub fn nodes(&self) -> impl Iterator<Item = (&NodeId, &Node)> {
        self.nodes.iter()
    }

    /// Grows with each change that can alter a decision.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What all living nodes have together.
    pub fn total(&self) -> Resources {
        self.sum(|node, sum| sum.add(&node.total))
    }

    /// What is free on all living nodes together.
    pub fn available(&self) -> Resources {
        self.sum(|node, sum| sum.add(&node.available()))
    }

    /// Of the living nodes on which `resources` are free and whose labels are as `selector` wants them, the one
    /// with the smallest key; ties go to the smallest id. This is what policies are made of.
    pub fn best_fit<K: Ord>(
        &self,
        resources: &Resources,
        selector: Option<&LabelSelector>,
        key: impl FnMut(Candidate<'_>) -> K,
    ) -> Option<NodeId> {
        match selector {
            None => self.index.best_fit(resources, |_| true, key),
            Some(selector) => self.index.best_fit(resources, |node_id| self.carries(node_id, selector), key),
        }
    }

    /// Whether some living node whose labels are as `selector` wants them has as much, free or not.
    pub fn is_feasible(&self, resources: &Resources, selector: Option<&LabelSelector>) -> bool {
        match selector {
            None => self.index.is_feasible(resources),
            Some(selector) => self.nodes.values().any(|node| {
                node.is_alive() && node.total.can_satisfy(resources) && selector.matches(&node.labels)
            }),
        }
    }

    /// Whether the node's labels are as `selector` wants them.
    pub fn carries(&self, node_id: NodeId, selector: &LabelSelector) -> bool {
        self.nodes.get(&node_id).is_some_and(|node| selector.matches(&node.labels))
    }

    /// The living node that lacks the least for `resources`, each resource counted by the share of
    /// the request that is missing.
    pub fn closest(&self, resources: &Resources) -> Option<(NodeId, &Node)> {
        let node_id = self.index.closest(resources)?;
        self.nodes.get(&node_id).map(|node| (node_id, node))
    }

    fn sum(&self, add: impl Fn(&Node, &mut Resources)) -> Resources {
        let mut sum = Resources::new();
        self.nodes.values().filter(|node| node.is_alive()).for_each(|node| add(node, &mut sum));
        sum
    }
}

/// The living node of this id. Not a method: the caller goes on using the view's other fields.
fn alive<'a>(nodes: &'a mut BTreeMap<NodeId, Node>, node_id: &NodeId) -> Result<&'a mut Node, ViewError> {
    nodes.get_mut(node_id).filter(|node| node.is_alive()).ok_or(ViewError::NotAlive(*node_id))
}
