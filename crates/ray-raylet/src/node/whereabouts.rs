//! Where a lease that somebody asks for can be: here, on another node, or nowhere, and why.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use ray_core::constraint::{Shape, Strategy, WhenBusy};
use ray_core::id::{NodeId, PlacementGroupId};
use ray_core::resource::Resources;
use ray_link::FromRaylet;
use ray_link::message::Unschedulable;
use ray_scheduler::{Decision, GlobalScheduler};

use super::effect::{ClientId, Effect};
use super::groups::GroupState;
use super::machine::NodeMachine;
use crate::resource_manager::{Claim, Pool};

/// Nodes that nobody knows and that are remembered as such.
const MAX_UNKNOWN: usize = 1_000;

/// Where a lease can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Whereabouts {
    /// On this node.
    Here(Pool),
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

    /// Demands that found no place may find one now, or none any more.
    fn look_again(&mut self, now: Instant) {
        let waiting: BTreeSet<_> = self
            .demands
            .iter()
            .filter(|(_, demand)| demand.obstacle.is_some())
            .map(|(&key, _)| key)
            .collect();
        if !waiting.is_empty() {
            self.short.extend(waiting);
            self.serve(now);
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
            Some(missing) => Whereabouts::Infeasible(missing),
        }
    }

    /// By the first selector that some node fulfils.
    fn by_labels(&self, shape: &Shape) -> Whereabouts {
        let has_room = self.resources.infeasible(&shape.resources.clone().into()).is_none();
        let view = self.cluster.scheduler.view();
        for selector in &shape.constraint.selectors {
            if has_room && selector.matches(&self.identity.labels) {
                return Whereabouts::Here(Pool::Node);
            }
            if view.is_feasible(&shape.resources, Some(selector)) {
                return Whereabouts::Nowhere(format!(
                    "it may only run on other nodes than this one: {selector}"
                ));
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
        if soft && (is_own || !self.cluster.is_alive(&node_id)) {
            let anywhere = shape.clone().with_strategy(Strategy::Default);
            return self.whereabouts(&anywhere);
        }
        self.by_view(shape)
    }

    /// What the scheduler says of something that cannot be here.
    fn by_view(&self, shape: &Shape) -> Whereabouts {
        match self.cluster.scheduler.schedule(shape) {
            Decision::Placed(node_id) => {
                Whereabouts::Nowhere(format!("it may only run on other nodes than this one: node {node_id}"))
            }
            Decision::Busy => Whereabouts::Nowhere(self.cluster.scheduler.why(shape).unwrap_or_default()),
            Decision::Infeasible { reason } => Whereabouts::Infeasible(reason),
            Decision::Never { reason } => Whereabouts::Never(Unschedulable::NoNode, reason),
        }
    }

    fn in_group(&mut self, group_id: PlacementGroupId, index: Option<u32>, need: &Resources) -> Whereabouts {
        let claim = Claim { pool: Pool::Group { group_id, index }, resources: need.clone() };
        if self.resources.is_here(claim.pool) {
            return match self.resources.infeasible(&claim) {
                None => Whereabouts::Here(claim.pool),
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
                    Whereabouts::Nowhere(format!("placement group {group_id} has its bundles on other nodes"))
                }
                GroupState::Removed(reason) => {
                    let reason = format!("placement group {group_id} was removed: {reason}");
                    Whereabouts::Never(Unschedulable::PlacementGroupRemoved, reason)
                }
            },
        }
    }
}
