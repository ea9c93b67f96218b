//! Which nodes to start for what waits, and which to end for they have nothing to do.
//!
//! Each look at the cluster is answered anew: what waits is laid on the room that is there, then on nodes of the known
//! types that could be started. So a look that shows what was started for the last one orders nothing more.
//!
//! ```text
//!                   waits, and fits on no node             seen
//!   (not there) ─────────────────────────────> LAUNCHED ─────────> BUSY <─────┐ used, or wanted
//!                                                                   │         │
//!                                              nothing happens there└──> IDLE ┘──── for the time of its type ──> ENDED
//! ```
//!
//! A node that has something of which another may have need, be it a worker in use, an object or a reservation, is
//! busy. Nobody asks the node before it is ended, so that what comes to it at that moment is lost with it, as with
//! any node that dies.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ray_core::constraint::{LabelSelector, Shape, Strategy};
use ray_core::id::NodeId;
use ray_core::resource::{Amount, CPU, MEMORY, OBJECT_STORE_MEMORY, Resources};

use crate::bundles::{Bundle, GroupDecision, GroupRequest, GroupStrategy, place_group};
use crate::cluster_view::ClusterView;

/// How long no node of a type is started after one could not be.
const LAUNCH_PAUSE: Duration = Duration::from_secs(5);

/// One kind of node that can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeType {
    /// Its name.
    pub name: String,
    /// What a node of it has.
    pub resources: Resources,
    /// What tells it from other nodes.
    pub labels: BTreeMap<String, String>,
    /// How many there are at least, whether they are needed or not.
    pub min_workers: usize,
    /// How many there are at most.
    pub max_workers: usize,
    /// How long a node has nothing to do before it is ended.
    pub idle_timeout: Duration,
}

/// A living node at a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenNode {
    /// The node.
    pub node_id: NodeId,
    /// Its type, by its index, if it was started for want of it.
    pub node_type: Option<usize>,
    /// What it has.
    pub total: Resources,
    /// What of it is free.
    pub available: Resources,
    /// What tells it from other nodes.
    pub labels: BTreeMap<String, String>,
    /// Whether something is there that would be lost with it.
    pub busy: bool,
    /// Changes whenever something happens there, also between two looks.
    pub activity: u64,
}

/// A placement group that waits for nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingGroup {
    /// How its bundles lie to one another.
    pub strategy: GroupStrategy,
    /// All of its bundles.
    pub bundles: Vec<Bundle>,
    /// The nodes of those that have one.
    pub nodes: Vec<Option<NodeId>>,
}

/// The cluster at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sight {
    /// Its living nodes.
    pub nodes: Vec<SeenNode>,
    /// What tasks and actors wait with, and how many.
    pub waiting: Vec<(Shape, u64)>,
    /// Placement groups that wait.
    pub groups: Vec<WaitingGroup>,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Start a node of the type of this index.
    Launch(usize),
    /// End this node.
    End(NodeId),
}

/// Decides about the nodes of known types; see the module's documentation.
#[derive(Debug)]
pub struct Autoscaler {
    types: Vec<NodeType>,
    max_workers: usize,
    /// Since when each node has had nothing to do, and its activity then.
    idle: BTreeMap<NodeId, (Instant, u64)>,
    /// Until when no node of a type is to be started.
    paused: BTreeMap<usize, Instant>,
}

impl Autoscaler {
    /// Starts nodes of these types, and never more than `max_workers` of all.
    pub const fn new(types: Vec<NodeType>, max_workers: usize) -> Self {
        Self { types, max_workers, idle: BTreeMap::new(), paused: BTreeMap::new() }
    }

    /// A node of this type could not be started: the next one has to wait.
    pub fn on_launch_failed(&mut self, node_type: usize, now: Instant) {
        self.paused.insert(node_type, now + LAUNCH_PAUSE);
    }

    /// What is to be done about the cluster as it is; launches come first.
    pub fn look(&mut self, sight: &Sight, now: Instant) -> Vec<Step> {
        self.paused.retain(|_, &mut until| now < until);
        let mut plan = Plan::new(self, sight);
        plan.meet_minima();
        for group in &sight.groups {
            plan.place_group(group);
        }
        let mut waiting: Vec<_> = sight.waiting.iter().collect();
        waiting.sort_by_key(|(shape, _)| plan.choice(&shape.resources));
        for (shape, count) in waiting {
            plan.place(shape, *count);
        }
        let Plan { launches, used, .. } = plan;
        let mut steps: Vec<_> = launches.into_iter().map(Step::Launch).collect();
        steps.extend(self.idle_nodes(sight, &used, now).into_iter().map(Step::End));
        steps
    }

    /// The nodes that have been idle for long enough, the one that has been for the longest time first.
    fn idle_nodes(&mut self, sight: &Sight, used: &BTreeSet<NodeId>, now: Instant) -> Vec<NodeId> {
        let mut idle = BTreeMap::new();
        let mut due = Vec::new();
        let mut counts = counts(&self.types, sight);
        for node in &sight.nodes {
            let Some(node_type) = node.node_type.filter(|&at| at < self.types.len()) else { continue };
            if node.busy || node.available != node.total || used.contains(&node.node_id) {
                continue;
            }
            let known = self.idle.get(&node.node_id).filter(|(_, activity)| *activity == node.activity);
            let since = known.map_or(now, |&(since, _)| since);
            idle.insert(node.node_id, (since, node.activity));
            if now.saturating_duration_since(since) >= self.types[node_type].idle_timeout {
                due.push((since, node.node_id, node_type));
            }
        }
        self.idle = idle;
        due.sort_unstable();
        due.retain(|&(_, _, node_type)| {
            let spare = counts[node_type] > self.types[node_type].min_workers;
            counts[node_type] -= usize::from(spare);
            spare
        });
        due.into_iter().map(|(_, node_id, _)| node_id).collect()
    }
}

/// How many nodes there are of each type.
fn counts(types: &[NodeType], sight: &Sight) -> Vec<usize> {
    let mut counts = vec![0; types.len()];
    for at in sight.nodes.iter().filter_map(|node| node.node_type) {
        if let Some(count) = counts.get_mut(at) {
            *count += 1;
        }
    }
    counts
}

/// The cluster as it will be, while it is being thought about.
#[derive(Debug, Clone)]
struct Plan<'a> {
    types: &'a [NodeType],
    /// Types of which none can be started now.
    paused: &'a BTreeMap<usize, Instant>,
    room: usize,
    counts: Vec<usize>,
    /// The nodes that there are, in the order in which they are to be filled, then those to be started.
    order: Vec<NodeId>,
    free: BTreeMap<NodeId, (Resources, BTreeMap<String, String>)>,
    launches: Vec<usize>,
    /// Nodes on which something was laid.
    used: BTreeSet<NodeId>,
}

impl<'a> Plan<'a> {
    fn new(scaler: &'a Autoscaler, sight: &Sight) -> Self {
        let counts = counts(&scaler.types, sight);
        let mut nodes: Vec<_> = sight.nodes.iter().collect();
        // What can end should stay free.
        nodes.sort_by_key(|node| (node.node_type.is_some(), !node.busy, node.node_id));
        Self {
            types: &scaler.types,
            paused: &scaler.paused,
            room: scaler.max_workers.saturating_sub(counts.iter().sum()),
            counts,
            order: nodes.iter().map(|node| node.node_id).collect(),
            free: nodes
                .iter()
                .map(|node| (node.node_id, (node.available.clone(), node.labels.clone())))
                .collect(),
            launches: Vec::new(),
            used: BTreeSet::new(),
        }
    }

    fn meet_minima(&mut self) {
        for at in 0..self.types.len() {
            while self.counts[at] < self.types[at].min_workers && self.may_launch(at) {
                self.launch(at);
            }
        }
    }

    fn may_launch(&self, at: usize) -> bool {
        self.room > 0 && self.counts[at] < self.types[at].max_workers && !self.paused.contains_key(&at)
    }

    fn launch(&mut self, at: usize) -> NodeId {
        self.room -= 1;
        self.counts[at] += 1;
        self.launches.push(at);
        let node_id = self.new_id();
        let node_type = &self.types[at];
        self.order.push(node_id);
        self.free.insert(node_id, (node_type.resources.clone(), node_type.labels.clone()));
        node_id
    }

    /// It has no id yet; one that nobody has tells it from others in here. They sort behind real ones.
    fn new_id(&self) -> NodeId {
        let mut number = u128::MAX - (1 << 64) + self.launches.len() as u128;
        loop {
            let node_id = NodeId::from_bytes(number.to_be_bytes());
            if !self.free.contains_key(&node_id) {
                return node_id;
            }
            number += 1 << 32;
        }
    }

    /// What is to be laid first sorts first: what has the fewest types to go to, then what is largest.
    fn choice(&self, resources: &Resources) -> (usize, Reverse<Option<u64>>) {
        let types = self.types.iter().filter(|one| one.resources.can_satisfy(resources)).count();
        (types, Reverse(resources.iter().map(|(_, amount)| amount.to_raw()).max()))
    }

    /// Lays as many of these as can be on nodes, of which some are started.
    fn place(&mut self, shape: &Shape, count: u64) {
        match shape.constraint.strategy {
            // No new node can have these.
            Strategy::Bundle { .. } | Strategy::NodeAffinity { soft: false, .. } => return,
            Strategy::Default | Strategy::Spread | Strategy::NodeAffinity { soft: true, .. } => {}
        }
        let anything = [LabelSelector::default()];
        let selectors = match shape.constraint.selectors.as_slice() {
            [] => &anything[..],
            selectors => selectors,
        };
        // What takes nothing finds room for all wherever there is room for one.
        let mut left = if shape.resources.is_empty() { count.min(1) } else { count };
        while left > 0 {
            let there =
                self.order.iter().copied().find(|node_id| self.takes(*node_id, &shape.resources, selectors));
            let node_id = match there {
                Some(node_id) => node_id,
                None => match selectors.iter().find_map(|one| self.best_type(&shape.resources, one, left)) {
                    Some(at) => self.launch(at),
                    None => return,
                },
            };
            left -= self.fill(node_id, &shape.resources, left);
        }
    }

    fn takes(&self, node_id: NodeId, resources: &Resources, selectors: &[LabelSelector]) -> bool {
        let (free, labels) = &self.free[&node_id];
        free.can_satisfy(resources) && selectors.iter().any(|selector| selector.matches(labels))
    }

    /// Lays up to `count` on a node that takes one; returns how many.
    fn fill(&mut self, node_id: NodeId, resources: &Resources, count: u64) -> u64 {
        self.used.insert(node_id);
        let Some((free, _)) = self.free.get_mut(&node_id) else { return count };
        let taken = times(free, resources).min(count);
        for (name, amount) in resources.iter() {
            let rest = free.get(name).to_raw() - amount.to_raw() * taken;
            free.set(name, Amount::from_raw(rest));
        }
        taken
    }

    /// The type of which a node is to be started for up to `count` of these: one that has nothing special that they
    /// do not ask for, wastes little, and takes many.
    fn best_type(&self, resources: &Resources, selector: &LabelSelector, count: u64) -> Option<usize> {
        let fits = |&at: &usize| {
            let node_type = &self.types[at];
            self.may_launch(at)
                && node_type.resources.can_satisfy(resources)
                && selector.matches(&node_type.labels)
        };
        let rank = |&at: &usize| {
            let has = &self.types[at].resources;
            let taken = times(has, resources).min(count);
            let is_special = |name: &str| ![CPU, MEMORY, OBJECT_STORE_MEMORY].contains(&name);
            let unasked =
                has.iter().filter(|(name, _)| is_special(name) && resources.get(name).to_raw() == 0);
            let wasted = resources.iter().map(|(name, amount)| {
                let all = u128::from(has.get(name).to_raw());
                let rest = all - u128::from(amount.to_raw()) * u128::from(taken);
                (rest * 1_000_000).checked_div(all).unwrap_or_default()
            });
            (unasked.count(), wasted.max(), Reverse(taken), at)
        };
        (0..self.types.len()).filter(fits).min_by_key(rank)
    }

    /// Lays a group on nodes, of which some are started, or does nothing if it cannot be.
    fn place_group(&mut self, group: &WaitingGroup) {
        if self.settle(group) {
            return;
        }
        let mut trial = self.clone();
        if trial.launch_for(group) {
            *self = trial;
        }
    }

    /// Lays a group on the nodes that there are, if they have the room.
    fn settle(&mut self, group: &WaitingGroup) -> bool {
        let mut view = ClusterView::new();
        for (node_id, (free, labels)) in &self.free {
            view.add_node(*node_id, free.clone(), labels.clone());
        }
        let WaitingGroup { strategy, bundles, nodes } = group;
        let request = GroupRequest { strategy: *strategy, bundles, nodes, soft_target: None };
        let GroupDecision::Placed(places) = place_group(&view, &request) else { return false };
        for (bundle, node_id) in places {
            self.fill(node_id, &bundles[bundle as usize].resources, 1);
        }
        true
    }

    /// Lays a group bundle by bundle, and starts a node for each that finds no room; false if there is no type for one.
    fn launch_for(&mut self, group: &WaitingGroup) -> bool {
        let is_bound = group.nodes.iter().any(Option::is_some);
        if group.strategy == GroupStrategy::StrictPack && is_bound {
            return false; // A new node is not the one that has the others.
        }
        let mut taken: BTreeSet<NodeId> = group.nodes.iter().flatten().copied().collect();
        for bundle in self.lacking(group) {
            let selectors = std::slice::from_ref(&bundle.selector);
            let is_taken =
                |node_id| group.strategy == GroupStrategy::StrictSpread && taken.contains(&node_id);
            let takes =
                |&node_id: &NodeId| !is_taken(node_id) && self.takes(node_id, &bundle.resources, selectors);
            let node_id = match self.order.iter().copied().find(takes) {
                Some(node_id) => node_id,
                None => match self.best_type(&bundle.resources, &bundle.selector, 1) {
                    Some(at) => self.launch(at),
                    None => return false,
                },
            };
            self.fill(node_id, &bundle.resources, 1);
            taken.insert(node_id);
        }
        true
    }

    /// The bundles of a group that have no node, in order; all of them as one if they have to be together.
    fn lacking(&self, group: &WaitingGroup) -> Vec<Bundle> {
        let without = group.bundles.iter().zip(&group.nodes).filter(|(_, node)| node.is_none());
        let mut lacking: Vec<Bundle> = without.map(|(bundle, _)| bundle.clone()).collect();
        if group.strategy == GroupStrategy::StrictPack {
            let mut all = Bundle::default();
            for bundle in lacking {
                all.resources.add(&bundle.resources);
                all.selector.0.extend(bundle.selector.0);
            }
            return vec![all];
        }
        lacking.sort_by_key(|bundle| self.choice(&bundle.resources));
        lacking
    }
}

/// How often these resources are there; without a bound if they are none.
fn times(free: &Resources, resources: &Resources) -> u64 {
    let each = resources.iter().map(|(name, amount)| free.get(name).to_raw().checked_div(amount.to_raw()));
    each.flatten().min().unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "autoscaler_tests.rs"]
mod tests;
