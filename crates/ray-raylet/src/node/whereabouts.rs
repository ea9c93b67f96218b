//! Where a lease that somebody asks for can be: here, on another node, or nowhere, and why.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use ray_core::constraint::{Shape, Strategy, WhenBusy};
use ray_core::id::{NodeId, PlacementGroupId};
use ray_core::resource::{Amount, CPU, GPU, MEMORY, Resources};
use ray_link::FromRaylet;
use ray_link::message::Unschedulable;
use ray_scheduler::{Decision, GlobalScheduler, Report};

use super::demand::Demand;
use super::effect::{ClientId, Effect};
use super::groups::GroupState;
use super::machine::NodeMachine;
use super::shares::{Shares, Site};
use crate::resource_manager::{Claim, Pool};

/// Nodes that nobody knows and that are remembered as such.
const MAX_UNKNOWN: usize = 1_000;

/// Where a lease can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Whereabouts {
    /// On this node.
    Here(Pool),
    /// On one of these other nodes.
    Elsewhere(Vec<NodeId>),
    /// Nowhere now, for this reason; it may change.
    Nowhere(String),
    /// Nowhere as the cluster is, for this reason.
    Infeasible(String),
    /// Nowhere ever, for this reason.
    Never(Unschedulable, String),
}

/// What a node knows of the others.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    scheduler: GlobalScheduler,
    /// Nodes that were asked for and that this node had not heard of; `true` if the control plane has not either.
    unknown: BTreeMap<NodeId, bool>,
    /// When each node was last given a share of what is spread, by a count.
    turns: BTreeMap<NodeId, u64>,
    turn: u64,
}

/// A node as the others have to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The node.
    pub node_id: NodeId,
    /// Whether it is alive.
    pub is_alive: bool,
    /// What it has.
    pub total: Resources,
    /// What it can be chosen by.
    pub labels: BTreeMap<String, String>,
    /// Why it is dead, if it is.
    pub death_reason: String,
}

impl Cluster {
    /// A cluster in which only this node is known.
    pub(super) fn of(own: Neighbour) -> Self {
        let mut cluster = Self::default();
        cluster.note(own);
        cluster
    }

    fn note(&mut self, node: Neighbour) {
        let view = self.scheduler.view_mut();
        let known = view.node(&node.node_id);
        if node.is_alive && !known.is_some_and(|known| known.is_alive()) {
            view.add_node(node.node_id, node.total, node.labels);
        } else if !node.is_alive {
            if known.is_none() {
                view.add_node(node.node_id, node.total, node.labels);
            }
            view.mark_dead(&node.node_id);
        }
    }

    fn is_alive(&self, node_id: &NodeId) -> bool {
        self.scheduler.view().node(node_id).is_some_and(|node| node.is_alive())
    }

    /// Whether more nodes are alive than this one.
    pub(super) fn has_others(&self) -> bool {
        self.scheduler.view().nodes().filter(|(_, node)| node.is_alive()).nth(1).is_some()
    }

    /// These nodes have been given more to spread: others come first next time.
    pub(super) fn note_turns(&mut self, before: &Shares, after: &Shares) {
        for (node_id, share) in after {
            if before.get(node_id).is_none_or(|earlier| earlier < share) {
                self.turn += 1;
                self.turns.insert(*node_id, self.turn);
            }
        }
        let view = self.scheduler.view();
        self.turns.retain(|node_id, _| view.node(node_id).is_some_and(|node| node.is_alive()));
    }

    fn site(&self, node_id: NodeId, need: &Resources, total: &Resources, free: &Resources) -> Site {
        let wastes_gpu = need.get(GPU).is_zero() && !total.get(GPU).is_zero();
        let (free, used) = (times(free, need), used(total, free));
        let turn = self.turns.get(&node_id).copied().unwrap_or(0);
        Site { node_id, free, capacity: times(total, need), rank: (wastes_gpu, used, turn) }
    }
}

/// How often `need` is in `there`.
fn times(there: &Resources, need: &Resources) -> u32 {
    let share = |(name, amount): (&str, Amount)| there.get(name).to_raw() / amount.to_raw();
    need.iter().map(share).min().map_or(u32::MAX, |times| u32::try_from(times).unwrap_or(u32::MAX))
}

/// How much of what is scarcest is used, in millionths.
fn used(total: &Resources, free: &Resources) -> u32 {
    let share = |name: &str| {
        let total = total.get(name).to_f64();
        if total > 0.0 { (total - free.get(name).to_f64()) / total } else { 0.0 }
    };
    let most = [CPU, GPU, MEMORY].into_iter().map(share).fold(0.0, f64::max);
    (most.clamp(0.0, 1.0) * 1e6) as u32
}

/// Nodes are packed in the order of their ids until half full, then spread, as the control plane does with actors.
const fn packed((wastes_gpu, used, _): (bool, u32, u64)) -> (bool, u32, u64) {
    (wastes_gpu, if used < 500_000 { 0 } else { used }, 0)
}

impl NodeMachine {
    /// Something about other nodes has changed.
    pub fn on_neighbour(&mut self, now: Instant, node: Neighbour) {
        if node.node_id != self.identity.node_id {
            self.note_neighbour(node);
            self.look_again(now);
        }
    }

    /// Takes in what is said of another node, and tells the processes here of it if it is new.
    fn note_neighbour(&mut self, node: Neighbour) {
        let (node_id, cause) = (node.node_id, node.death_reason.clone());
        let was_alive = self.cluster.is_alive(&node_id);
        self.cluster.note(node);
        let is_alive = self.cluster.is_alive(&node_id);
        for (&client, known) in
            self.clients.iter().filter(|(_, client)| client.welcomed && client.visits.is_none())
        {
            let message = match (was_alive, is_alive) {
                (false, true) if known.drives.is_some() => FromRaylet::NodeJoined { node_id },
                (true, false) => FromRaylet::NodeDied { node_id, cause: cause.clone() },
                _ => continue,
            };
            self.effects.push(Effect::Send(client, message));
        }
    }

    /// Tells a driver which other nodes are alive.
    pub(super) fn tell_of_nodes(&mut self, client: ClientId) {
        let own = self.identity.node_id;
        let living =
            self.cluster.scheduler.view().nodes().filter(|(id, node)| **id != own && node.is_alive());
        for (&node_id, _) in living {
            self.effects.push(Effect::Send(client, FromRaylet::NodeJoined { node_id }));
        }
    }

    /// All nodes that the control plane knows.
    pub fn on_nodes_listed(&mut self, now: Instant, nodes: Vec<Neighbour>) {
        let own = self.identity.node_id;
        nodes.into_iter().filter(|node| node.node_id != own).for_each(|node| self.note_neighbour(node));
        self.cluster.unknown.values_mut().for_each(|answered| *answered = true);
        self.look_again(now);
    }

    /// Demands that found no place here may find one now, or none any more.
    fn look_again(&mut self, now: Instant) {
        let depends = |demand: &Demand| {
            demand.obstacle.is_some() || demand.abroad.is_some() || !demand.shares.is_empty()
        };
        let waiting = self.demands.iter().filter(|(_, demand)| depends(demand)).map(|(&key, _)| key);
        let waiting: BTreeSet<_> = waiting.collect();
        if !waiting.is_empty() || !self.queue.is_empty() {
            self.short.extend(waiting);
            self.serve(now);
        }
        if !self.cluster.has_others() {
            // Nobody is asked any more.
            self.overflow();
        }
    }

    /// Another node says what it has free.
    pub fn on_usage(&mut self, now: Instant, node_id: NodeId, report: Report) {
        if node_id != self.identity.node_id && self.cluster.scheduler.view_mut().report(&node_id, report) {
            self.look_again(now);
        }
    }

    /// Other nodes that may give leases of this shape, among those that are named.
    pub(super) fn sites(&self, shape: &Shape, wanted: u32, is_named: impl Fn(&NodeId) -> bool) -> Vec<Site> {
        let own = self.identity.node_id;
        let named = self.cluster.scheduler.view().nodes().filter(|(id, _)| **id != own && is_named(id));
        let site = |(&node_id, node): (&NodeId, &ray_scheduler::Node)| {
            if shape.constraint.group_id().is_some() {
                // Its bundles are no part of what it has free, and not told of.
                return Site { node_id, free: wanted, capacity: wanted, rank: (false, 0, 0) };
            }
            let mut site = self.cluster.site(node_id, &shape.resources, node.total(), &node.available());
            site.rank = packed(site.rank);
            site
        };
        named.filter(|(_, node)| node.is_alive()).map(site).collect()
    }

    /// Other nodes that may give leases of which this one has none left.
    pub(super) fn sites_for_overflow(&mut self, shape: &Shape, lacking: u32) -> Vec<Site> {
        match shape.constraint.strategy {
            Strategy::Bundle { group_id, index: None, .. } => {
                let nodes = self.bundle_nodes(group_id, &shape.resources);
                self.sites(shape, lacking, |node_id| nodes.contains(node_id))
            }
            Strategy::NodeAffinity { node_id, when_busy, .. }
                if node_id == self.identity.node_id && when_busy != WhenBusy::Spill =>
            {
                Vec::new()
            }
            Strategy::Bundle { .. } => Vec::new(),
            Strategy::Default | Strategy::Spread | Strategy::NodeAffinity { .. } => {
                let view = self.cluster.scheduler.view();
                let allows = |node_id: &NodeId| {
                    view.node(node_id).is_some_and(|node| shape.constraint.allows(node.labels()))
                };
                self.sites(shape, lacking, allows)
            }
        }
    }

    /// All nodes, this one too, on which leases of this shape can be that are to be spread.
    pub(super) fn sites_to_spread(&self, shape: &Shape) -> Vec<Site> {
        let (need, own) = (&shape.resources, self.identity.node_id);
        let view = self.cluster.scheduler.view();
        let selectors = &shape.constraint.selectors;
        let selector = selectors.iter().find(|&selector| view.is_feasible(need, Some(selector)));
        let site = |(&node_id, node): (&NodeId, &ray_scheduler::Node)| {
            if node_id == own {
                return self.cluster.site(own, need, self.resources.total(), &self.resources.available());
            }
            self.cluster.site(node_id, need, node.total(), &node.available())
        };
        let matches = |node: &ray_scheduler::Node| {
            selectors.is_empty() || selector.is_some_and(|selector| selector.matches(node.labels()))
        };
        let living = view.nodes().filter(|(_, node)| node.is_alive() && matches(node));
        living.map(site).filter(|site| site.capacity > 0).collect()
    }

    /// The other nodes on which a group has bundles that can hold so much.
    fn bundle_nodes(&mut self, group_id: PlacementGroupId, need: &Resources) -> BTreeSet<NodeId> {
        let own = self.identity.node_id;
        let Some(news) = self.follow_group(group_id) else { return BTreeSet::new() };
        let places = news.nodes.iter().zip(&news.bundles);
        let fitting = places.filter(|(_, bundle)| bundle.can_satisfy(need));
        fitting.filter_map(|(node_id, _)| *node_id).filter(|node_id| *node_id != own).collect()
    }

    /// Why leases of this shape wait for these nodes.
    pub(super) fn why_abroad(&self, shape: &Shape, nodes: &[NodeId]) -> String {
        let no_room = match shape.constraint.strategy {
            Strategy::Bundle { .. } => None,
            _ => self.cluster.scheduler.why(shape),
        };
        no_room.unwrap_or_else(|| {
            let names: Vec<_> = nodes.iter().map(ToString::to_string).collect();
            format!("it is asked of node {}, where it may run", names.join(", "))
        })
    }

    /// Where a lease that a process of another node asks for can be: here, or its own node has to look again.
    pub(super) fn whereabouts_of_visitor(&mut self, shape: &Shape) -> Whereabouts {
        let found = match shape.constraint.strategy {
            Strategy::Bundle { group_id, index, .. } => self.in_group(group_id, index, &shape.resources),
            Strategy::NodeAffinity { node_id, soft, when_busy } if node_id == self.identity.node_id => {
                self.on_wanted_node(shape, node_id, soft, when_busy)
            }
            Strategy::Default | Strategy::Spread | Strategy::NodeAffinity { .. } => {
                let claim = Claim::from(shape.resources.clone());
                match self.resources.infeasible(&claim) {
                    None if shape.constraint.allows(&self.identity.labels) => Whereabouts::Here(Pool::Node),
                    None => Whereabouts::Nowhere("this node does not carry the labels asked for".to_owned()),
                    Some(missing) => Whereabouts::Nowhere(missing),
                }
            }
        };
        match found {
            Whereabouts::Elsewhere(_) => Whereabouts::Nowhere("it may not run on this node".to_owned()),
            Whereabouts::Infeasible(reason) => Whereabouts::Nowhere(reason),
            other => other,
        }
    }

    pub(super) fn whereabouts(&mut self, shape: &Shape) -> Whereabouts {
        match shape.constraint.strategy {
            Strategy::Bundle { group_id, index, .. } => self.in_group(group_id, index, &shape.resources),
            Strategy::Default | Strategy::Spread if shape.constraint.selectors.is_empty() => {
                self.by_resources(shape)
            }
            Strategy::Default | Strategy::Spread => self.by_labels(shape),
            Strategy::NodeAffinity { node_id, soft, when_busy } => {
                self.on_wanted_node(shape, node_id, soft, when_busy)
            }
        }
    }

    fn by_resources(&self, shape: &Shape) -> Whereabouts {
        match self.resources.infeasible(&shape.resources.clone().into()) {
            None => Whereabouts::Here(Pool::Node),
            Some(missing) => {
                let others = self.feasible_on(&shape.resources, |_| true);
                if others.is_empty() {
                    Whereabouts::Infeasible(missing)
                } else {
                    Whereabouts::Elsewhere(others)
                }
            }
        }
    }

    /// The living other nodes that have as much, free or not.
    fn feasible_on(&self, need: &Resources, may: impl Fn(&BTreeMap<String, String>) -> bool) -> Vec<NodeId> {
        let own = self.identity.node_id;
        let others =
            self.cluster.scheduler.view().nodes().filter(|(id, node)| **id != own && node.is_alive());
        others
            .filter(|(_, node)| node.total().can_satisfy(need) && may(node.labels()))
            .map(|(&id, _)| id)
            .collect()
    }

    /// By the first selector that some node fulfils.
    fn by_labels(&self, shape: &Shape) -> Whereabouts {
        let has_room = self.resources.infeasible(&shape.resources.clone().into()).is_none();
        for selector in &shape.constraint.selectors {
            if has_room && selector.matches(&self.identity.labels) {
                return Whereabouts::Here(Pool::Node);
            }
            let others = self.feasible_on(&shape.resources, |labels| selector.matches(labels));
            if !others.is_empty() {
                return Whereabouts::Elsewhere(others);
            }
        }
        self.by_view(shape)
    }

    fn on_wanted_node(
        &mut self,
        shape: &Shape,
        node_id: NodeId,
        soft: bool,
        when_busy: WhenBusy,
    ) -> Whereabouts {
        let is_own = node_id == self.identity.node_id;
        let claim = Claim::from(shape.resources.clone());
        if is_own
            && shape.constraint.allows(&self.identity.labels)
            && self.resources.infeasible(&claim).is_none()
        {
            if when_busy == WhenBusy::Fail && !self.resources.fits(&claim) {
                let shortage = self.resources.shortage(&claim);
                let reason = format!("node {node_id}, the one asked for, has no room now: {shortage}");
                return Whereabouts::Never(Unschedulable::NoNode, reason);
            }
            return Whereabouts::Here(Pool::Node);
        }
        if self.cluster.scheduler.view().node(&node_id).is_none() {
            match self.cluster.unknown.get(&node_id) {
                Some(true) => {}
                Some(false) => return Whereabouts::Nowhere(format!("it is asked what node {node_id} is")),
                None => {
                    if self.cluster.unknown.len() >= MAX_UNKNOWN {
                        self.cluster.unknown.retain(|_, answered| !*answered);
                    }
                    self.cluster.unknown.insert(node_id, false);
                    self.effects.push(Effect::FetchNodes);
                    return Whereabouts::Nowhere(format!("it is asked what node {node_id} is"));
                }
            }
        }
        let view = self.cluster.scheduler.view();
        let there = view.node(&node_id).filter(|node| {
            let can = node.total().can_satisfy(&shape.resources) && shape.constraint.allows(node.labels());
            can && node.is_alive() && !is_own
        });
        let has_room = there.map(|node| node.available().can_satisfy(&shape.resources));
        match (has_room, when_busy) {
            (None, _) if soft => {}
            (Some(false), WhenBusy::Spill) => {}
            (Some(true), _) | (Some(false), WhenBusy::Wait) => return Whereabouts::Elsewhere(vec![node_id]),
            // Not alive, too small, or busy and not to be waited for.
            (None, _) | (Some(false), WhenBusy::Fail) => return self.by_view(shape),
        }
        let anywhere = shape.clone().with_strategy(Strategy::Default);
        self.whereabouts(&anywhere)
    }

    /// What the scheduler says of something that cannot be here.
    fn by_view(&self, shape: &Shape) -> Whereabouts {
        match self.cluster.scheduler.schedule(shape) {
            Decision::Placed(node_id) => Whereabouts::Elsewhere(vec![node_id]),
            Decision::Busy => Whereabouts::Nowhere(self.cluster.scheduler.why(shape).unwrap_or_default()),
            Decision::Infeasible { reason } => Whereabouts::Infeasible(reason),
            Decision::Never { reason } => Whereabouts::Never(Unschedulable::NoNode, reason),
        }
    }

    fn in_group(&mut self, group_id: PlacementGroupId, index: Option<u32>, need: &Resources) -> Whereabouts {
        let claim = Claim { pool: Pool::Group { group_id, index }, resources: need.clone() };
        if self.resources.is_here(claim.pool) {
            let missing = self.resources.infeasible(&claim);
            let others = match (&missing, index) {
                (Some(_), None) => self.bundle_nodes(group_id, need),
                _ => BTreeSet::new(),
            };
            return match missing {
                None => Whereabouts::Here(claim.pool),
                Some(_) if !others.is_empty() => Whereabouts::Elsewhere(others.into_iter().collect()),
                Some(missing) => {
                    let which =
                        index.map_or_else(|| "no bundle".to_owned(), |index| format!("not bundle {index}"));
                    let reason =
                        format!("{need} fits {which} of placement group {group_id}, ever: {missing}");
                    Whereabouts::Never(Unschedulable::NoNode, reason)
                }
            };
        }
        let own = self.identity.node_id;
        match self.follow_group(group_id) {
            None => Whereabouts::Nowhere(format!("it is asked where placement group {group_id} is")),
            Some(news) => match &news.state {
                GroupState::Pending(reason) => {
                    Whereabouts::Nowhere(format!("placement group {group_id} is not created: {reason}"))
                }
                GroupState::Created if index.is_some_and(|index| index as usize >= news.nodes.len()) => {
                    let reason =
                        format!("placement group {group_id} has no bundle {}", index.unwrap_or_default());
                    Whereabouts::Never(Unschedulable::NoNode, reason)
                }
                GroupState::Created if news.nodes.contains(&Some(own)) && index.is_none() => {
                    Whereabouts::Nowhere(format!("placement group {group_id} is being created"))
                }
                GroupState::Created => {
                    let bundles = (0..).zip(news.nodes.iter().zip(&news.bundles));
                    let asked = bundles.filter(|(at, _)| index.is_none_or(|index| index == *at));
                    let fitting = asked.filter(|(_, (_, bundle))| bundle.can_satisfy(need));
                    let nodes: BTreeSet<_> = fitting.filter_map(|(_, (node_id, _))| *node_id).collect();
                    if nodes.is_empty() {
                        let which = index
                            .map_or_else(|| "no bundle".to_owned(), |index| format!("not bundle {index}"));
                        let reason = format!("{need} fits {which} of placement group {group_id}, ever");
                        return Whereabouts::Never(Unschedulable::NoNode, reason);
                    }
                    Whereabouts::Elsewhere(nodes.into_iter().collect())
                }
                GroupState::Removed(reason) => {
                    let reason = format!("placement group {group_id} was removed: {reason}");
                    Whereabouts::Never(Unschedulable::PlacementGroupRemoved, reason)
                }
            },
        }
    }
}
