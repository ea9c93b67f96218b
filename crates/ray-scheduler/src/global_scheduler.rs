//! Answers requests for places from a view of the cluster.

use ray_core::constraint::{LabelSelector, Shape, Strategy, WhenBusy};
use ray_core::id::NodeId;
use ray_core::resource::Resources;

use crate::cluster_view::{ClusterView, Node, ViewError};
use crate::decision::Decision;
use crate::policy::{HybridPolicy, SchedulingPolicy, SpreadPolicy};

/// A view of the cluster and the policies to choose by.
#[derive(Debug)]
pub struct GlobalScheduler {
    view: ClusterView,
    default_policy: Box<dyn SchedulingPolicy>,
}

impl Default for GlobalScheduler {
    fn default() -> Self {
        Self::new(HybridPolicy::default())
    }
}

impl GlobalScheduler {
    /// A scheduler of an empty cluster with this policy for requests that name no other.
    pub fn new(default_policy: impl SchedulingPolicy) -> Self {
        Self { view: ClusterView::new(), default_policy: Box::new(default_policy) }
    }

    /// What is known of the cluster.
    pub fn view(&self) -> &ClusterView {
        &self.view
    }

    /// What is known of the cluster, to be fed with what the nodes say.
    pub fn view_mut(&mut self) -> &mut ClusterView {
        &mut self.view
    }

    /// Chooses a node. Takes nothing there: [`ClusterView::commit`] does, or [`place`](Self::place)
    /// in one step. What runs in a placement group takes nothing of a node that its group has not taken before, and is
    /// not to be asked here.
    pub fn schedule(&self, shape: &Shape) -> Decision {
        match shape.constraint.strategy {
            Strategy::Default | Strategy::Bundle { .. } => {
                self.by_policy(self.default_policy.as_ref(), shape)
            }
            Strategy::Spread => self.by_policy(&SpreadPolicy, shape),
            Strategy::NodeAffinity { node_id, soft, when_busy } => {
                match (self.on_node(&node_id, shape), when_busy) {
                    (Decision::Infeasible { .. } | Decision::Never { .. }, _) if soft => {
                        self.by_policy(self.default_policy.as_ref(), shape)
                    }
                    (Decision::Busy, WhenBusy::Spill) => {
                        match self.by_policy(self.default_policy.as_ref(), shape) {
                            Decision::Placed(other) => Decision::Placed(other),
                            Decision::Busy | Decision::Infeasible { .. } | Decision::Never { .. } => {
                                Decision::Busy
                            }
                        }
                    }
                    (Decision::Busy, WhenBusy::Fail) => {
                        Decision::Never { reason: self.why(shape).unwrap_or_default() }
                    }
                    (decision, _) => decision,
                }
            }
        }
    }

    /// Why nothing of this shape can be placed now, for people; `None` if it can.
    pub fn why(&self, shape: &Shape) -> Option<String> {
        let resources = &shape.resources;
        if let Strategy::NodeAffinity { node_id, soft: false, .. } = shape.constraint.strategy {
            return match self.on_node(&node_id, shape) {
                Decision::Placed(_) => None,
                Decision::Busy => {
                    Some(format!("{resources} is not free on node {node_id}, the one asked for"))
                }
                Decision::Infeasible { reason } | Decision::Never { reason } => Some(reason),
            };
        }
        match self.schedule(shape) {
            Decision::Placed(_) => None,
            Decision::Busy => Some(format!("{resources} is free on no node that it may be on")),
            Decision::Infeasible { reason } | Decision::Never { reason } => Some(reason),
        }
    }

    /// Chooses a node and commits the resources there.
    ///
    /// # Panics
    /// If a policy of the caller's own picks a node that does not have them free.
    pub fn place(&mut self, shape: &Shape) -> Decision {
        let decision = self.schedule(shape);
        if let Decision::Placed(node_id) = decision {
            self.view.commit(&node_id, &shape.resources).expect("a policy picks a node that has it free");
        }
        decision
    }

    /// Gives back what [`place`](Self::place) committed.
    ///
    /// # Errors
    /// As [`ClusterView::release`].
    pub fn release(&mut self, node_id: &NodeId, resources: &Resources) -> Result<(), ViewError> {
        self.view.release(node_id, resources)
    }

    fn by_policy(&self, policy: &dyn SchedulingPolicy, shape: &Shape) -> Decision {
        let (resources, selectors) = (&shape.resources, &shape.constraint.selectors);
        let any = [None];
        let several: Vec<_> = selectors.iter().map(Some).collect();
        let selectors = if several.is_empty() { &any[..] } else { &several[..] };
        let pick = |&selector: &Option<&LabelSelector>| policy.pick(&self.view, resources, selector);
        if let Some(node_id) = selectors.iter().find_map(pick) {
            return Decision::Placed(node_id);
        }
        if selectors.iter().any(|&selector| self.view.is_feasible(resources, selector)) {
            return Decision::Busy;
        }
        self.infeasible(shape)
    }

    fn infeasible(&self, shape: &Shape) -> Decision {
        let selectors = &shape.constraint.selectors;
        let living = || self.view.nodes().filter(|(_, node)| node.is_alive());
        let gone = |selector: &LabelSelector| {
            let named = selector.named_nodes()?;
            named.iter().all(|node_id| !self.is_alive(node_id)).then_some(named)
        };
        let all_gone: Option<Vec<_>> = selectors.iter().map(gone).collect();
        if let Some(named) = all_gone.filter(|named| !named.is_empty()) {
            let named: Vec<_> = named.concat().iter().map(ToString::to_string).collect();
            let reason = format!(
                "node {}, the only one that its label selector allows, is not alive",
                named.join(", ")
            );
            return Decision::Never { reason };
        }
        let reason = if living().next().is_none() {
            "no node is alive".to_owned()
        } else if !living().any(|(_, node)| shape.constraint.allows(node.labels())) {
            let asked: Vec<_> = selectors.iter().map(ToString::to_string).collect();
            format!("no node carries the labels that it asks for, {}", asked.join(" or "))
        } else if selectors.is_empty() {
            let closest = self.view.closest(&shape.resources);
            let (node_id, node) = closest.expect("some node is alive");
            format!("node {node_id} comes closest, it {}", shortfall(node, &shape.resources))
        } else {
            let (node_id, node) = living()
                .find(|(_, node)| shape.constraint.allows(node.labels()))
                .expect("some node carries the labels");
            format!("node {node_id}, whose labels match, {}", shortfall(node, &shape.resources))
        };
        Decision::Infeasible { reason }
    }

    fn is_alive(&self, node_id: &NodeId) -> bool {
        self.view.node(node_id).is_some_and(Node::is_alive)
    }

    fn on_node(&self, node_id: &NodeId, shape: &Shape) -> Decision {
        let resources = &shape.resources;
        let Some(node) = self.view.node(node_id).filter(|node| node.is_alive()) else {
            return Decision::Never { reason: format!("node {node_id}, the one asked for, is not alive") };
        };
        if !shape.constraint.allows(node.labels()) {
            let reason = format!("node {node_id}, the one asked for, does not carry the labels asked for");
            return Decision::Infeasible { reason };
        }
        if node.available().can_satisfy(resources) {
            Decision::Placed(*node_id)
        } else if node.total().can_satisfy(resources) {
            Decision::Busy
        } else {
            let shortfall = shortfall(node, resources);
            Decision::Infeasible { reason: format!("node {node_id}, the one asked for, {shortfall}") }
        }
    }
}

/// As `has CPU: 4 of 8, gizmo: 0 of 1`.
fn shortfall(node: &Node, resources: &Resources) -> String {
    let missing = node.total().shortfall(resources);
    let missing: Vec<_> = missing.map(|(name, asked, there)| format!("{name}: {there} of {asked}")).collect();
    format!("has {}", missing.join(", "))
}
