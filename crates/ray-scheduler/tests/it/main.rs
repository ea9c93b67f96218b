//! The scheduler against what its documentation says, and against a naive model of it.

mod bundles;
mod model;
mod policies;

use std::collections::BTreeMap;

use ray_core::id::NodeId;
use ray_core::resource::Resources;
use ray_scheduler::ClusterView;

fn node_id(number: u8) -> NodeId {
    NodeId::from_bytes([number; 16])
}

fn resources(amounts: &[(&str, f64)]) -> Resources {
    Resources::from_units(amounts.iter().copied()).unwrap()
}

fn add_node(view: &mut ClusterView, number: u8, amounts: &[(&str, f64)]) {
    view.add_node(node_id(number), resources(amounts), BTreeMap::new());
}
