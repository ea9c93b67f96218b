//! Orders among the nodes on which a request fits.

use std::cmp::Reverse;
use std::fmt;

use ray_core::constraint::LabelSelector;
use ray_core::id::NodeId;
use ray_core::resource::{GPU, Resources};

use crate::cluster_view::ClusterView;

/// Chooses among the nodes that have enough free.
pub trait SchedulingPolicy: fmt::Debug + Send + Sync + 'static {
    /// A living node on which `resources` are free and whose labels are as `selector` wants them, or `None` if there
    /// is none. The same view, resources and selector give the same answer. [`ClusterView::best_fit`] does the search.
    fn pick(
        &self,
        view: &ClusterView,
        resources: &Resources,
        selector: Option<&LabelSelector>,
    ) -> Option<NodeId>;
}

/// The node that is used least; of those used alike, the one that has waited longest for something
/// to be placed there, so that requests which take nothing are spread too.
#[derive(Debug, Clone, Copy, Default)]
pub struct SpreadPolicy;

impl SchedulingPolicy for SpreadPolicy {
    fn pick(
        &self,
        view: &ClusterView,
        resources: &Resources,
        selector: Option<&LabelSelector>,
    ) -> Option<NodeId> {
        view.best_fit(resources, selector, |node| (node.utilisation(), node.last_placed()))
    }
}

/// The node that is used most, so that whole nodes stay free for large requests.
#[derive(Debug, Clone, Copy, Default)]
pub struct PackPolicy;

impl SchedulingPolicy for PackPolicy {
    fn pick(
        &self,
        view: &ClusterView,
        resources: &Resources,
        selector: Option<&LabelSelector>,
    ) -> Option<NodeId> {
        view.best_fit(resources, selector, |node| Reverse(node.utilisation()))
    }
}

/// Packs the nodes in the order of their ids until each is used up to a threshold, then spreads: Ray's
/// default. As there, what needs no graphics processor goes to a node that has some only if no
/// other has room.
#[derive(Debug, Clone, Copy)]
pub struct HybridPolicy {
    /// Utilisation up to which a node is packed, in millionths.
    pub threshold: u32,
}

impl Default for HybridPolicy {
    /// Half of the node.
    fn default() -> Self {
        Self { threshold: 500_000 }
    }
}

impl SchedulingPolicy for HybridPolicy {
    fn pick(
        &self,
        view: &ClusterView,
        resources: &Resources,
        selector: Option<&LabelSelector>,
    ) -> Option<NodeId> {
        let needs_gpu = !resources.get(GPU).is_zero();
        view.best_fit(resources, selector, |node| {
            let wastes_gpu = !needs_gpu && node.has_gpu();
            let utilisation = node.utilisation();
            (wastes_gpu, if utilisation < self.threshold { 0 } else { utilisation })
        })
    }
}
