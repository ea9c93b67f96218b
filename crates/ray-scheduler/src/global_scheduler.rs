//! Answers requests for places from a view of the cluster.

use ray_core::id::NodeId;
use ray_core::resource::Resources;

use crate::cluster_view::{ClusterView, Node, ViewError};
use crate::decision::{Decision, Request, Strategy};
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
    /// in one step.
    pub fn schedule(&self, request: &Request) -> Decision {
        let resources = &request.resources;
        match request.strategy {
            Strategy::Default => self.by_policy(self.default_policy.as_ref(), resources),
            Strategy::Spread => self.by_policy(&SpreadPolicy, resources),
            Strategy::NodeAffinity { node_id, soft } => match self.on_node(&node_id, resources) {
                Decision::Infeasible { .. } if soft => {
                    self.by_policy(self.default_policy.as_ref(), resources)
                }
                decision => decision,
            },
        }
    }

    /// Chooses a node and commits the resources there.
    ///
    /// # Panics
    /// If a policy of the caller's own picks a node that does not have them free.
    pub fn place(&mut self, request: &Request) -> Decision {
        let decision = self.schedule(request);
        if let Decision::Placed(node_id) = decision {
            self.view.commit(&node_id, &request.resources).expect("a policy picks a node that has it free");
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

    fn by_policy(&self, policy: &dyn SchedulingPolicy, resources: &Resources) -> Decision {
        if let Some(node_id) = policy.pick(&self.view, resources) {
            return Decision::Placed(node_id);
        }
        if self.view.is_feasible(resources) {
            return Decision::Busy;
        }
        let reason = match self.view.closest(resources) {
            Some((node_id, node)) => {
                format!("node {node_id} comes closest, it {}", shortfall(node, resources))
            }
            None => "no node is alive".to_owned(),
        };
        Decision::Infeasible { reason }
    }

    fn on_node(&self, node_id: &NodeId, resources: &Resources) -> Decision {
        let Some(node) = self.view.node(node_id).filter(|node| node.is_alive()) else {
            return Decision::Infeasible {
                reason: format!("node {node_id}, the one asked for, is not alive"),
            };
        };
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
