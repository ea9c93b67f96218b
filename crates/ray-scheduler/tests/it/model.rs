//! Random clusters and requests, each answer compared with what scanning plain maps gives.

use std::collections::BTreeMap;

use proptest::prelude::*;
use ray_core::constraint::{Shape, Strategy as Placement};
use ray_core::id::NodeId;
use ray_core::resource::{Amount, CPU, GPU, MEMORY, OBJECT_STORE_MEMORY, Resources};
use ray_scheduler::{
    Decision, GlobalScheduler, HybridPolicy, PackPolicy, Report, SchedulingPolicy, SpreadPolicy,
};

use super::node_id;

#[derive(Debug, Clone)]
enum Step {
    Add(u8, Resources),
    Report(u8, u64, Resources, Resources),
    MarkDead(u8),
    Remove(u8),
    Place(Shape),
    /// Releases the placement with this index, counted round.
    Release(usize),
}

fn any_resources() -> impl Strategy<Value = Resources> {
    let name = prop::sample::select(vec![CPU, GPU, MEMORY, OBJECT_STORE_MEMORY, "a", "b", "c"]);
    // Few different amounts, so that what fits exactly is common.
    prop::collection::vec((name, 0u64..5), 0..5).prop_map(|amounts| {
        let mut resources = Resources::new();
        for (name, raw) in amounts {
            resources.set(name, Amount::from_raw(raw));
        }
        resources
    })
}

fn any_placement() -> impl Strategy<Value = Placement> {
    prop_oneof![
        3 => Just(Placement::Default),
        1 => Just(Placement::Spread),
        1 => (0u8..6, any::<bool>())
            .prop_map(|(number, soft)| Placement::on_node(node_id(number), soft)),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..6, any_resources()).prop_map(|(number, total)| Step::Add(number, total)),
        3 => (0u8..6, 0u64..20, any_resources(), any_resources())
            .prop_map(|(number, version, total, available)| Step::Report(number, version, total, available)),
        1 => (0u8..6).prop_map(Step::MarkDead),
        1 => (0u8..6).prop_map(Step::Remove),
        10 => (any_resources(), any_placement())
            .prop_map(|(resources, strategy)| Step::Place(Shape::from(resources).with_strategy(strategy))),
        4 => any::<usize>().prop_map(Step::Release),
    ]
}

#[derive(Debug, Clone, Default)]
struct ModelNode {
    total: Resources,
    reported: Resources,
    committed: Resources,
    version: u64,
    last_placed: u64,
    alive: bool,
}

impl ModelNode {
    fn free(&self, name: &str) -> u64 {
        let reported = self.reported.get(name).min(self.total.get(name));
        reported.to_raw().saturating_sub(self.committed.get(name).to_raw())
    }

    fn fits(&self, request: &Resources) -> bool {
        request.iter().all(|(name, amount)| self.free(name) >= amount.to_raw())
    }

    /// In millionths; in this test no use is so small that it would be none.
    fn utilisation(&self) -> u64 {
        let used = |name| {
            let total = self.total.get(name).to_raw();
            ((total - self.free(name)) * 1_000_000).checked_div(total).unwrap_or(0)
        };
        [CPU, GPU, MEMORY, OBJECT_STORE_MEMORY].into_iter().map(used).max().unwrap()
    }
}

#[derive(Debug, Clone, Copy)]
enum Policy {
    Spread,
    Pack,
    Hybrid,
}

#[derive(Debug, Default)]
struct Model {
    nodes: BTreeMap<NodeId, ModelNode>,
    placements: u64,
}

impl Model {
    /// `Ok` with the node, `Err(true)` for busy, `Err(false)` for infeasible.
    fn decide(&self, request: &Shape, default: Policy) -> Result<NodeId, bool> {
        match request.constraint.strategy {
            Placement::Default | Placement::Bundle { .. } => self.by_policy(&request.resources, default),
            Placement::Spread => self.by_policy(&request.resources, Policy::Spread),
            Placement::NodeAffinity { node_id, soft, .. } => {
                let node = self.nodes.get(&node_id).filter(|node| node.alive);
                match node {
                    Some(node) if node.fits(&request.resources) => Ok(node_id),
                    Some(node) if node.total.can_satisfy(&request.resources) => Err(true),
                    _ if soft => self.by_policy(&request.resources, default),
                    _ => Err(false),
                }
            }
        }
    }

    fn by_policy(&self, request: &Resources, policy: Policy) -> Result<NodeId, bool> {
        let living = || self.nodes.iter().filter(|(_, node)| node.alive);
        let key = |(id, node): &(&NodeId, &ModelNode)| {
            let used = node.utilisation() as i64;
            let wastes_gpu = request.get(GPU).is_zero() && !node.total.get(GPU).is_zero();
            match policy {
                Policy::Spread => (used, node.last_placed, **id),
                Policy::Pack => (-used, 0, **id),
                Policy::Hybrid => {
                    let used = if used < 500_000 { 0 } else { used };
                    (used + if wastes_gpu { 10_000_000 } else { 0 }, 0, **id)
                }
            }
        };
        let best = living().filter(|(_, node)| node.fits(request)).min_by_key(key);
        match best {
            Some((id, _)) => Ok(*id),
            None => Err(living().any(|(_, node)| node.total.can_satisfy(request))),
        }
    }

    fn check_against(&self, scheduler: &GlobalScheduler) -> Result<(), TestCaseError> {
        let view = scheduler.view();
        prop_assert_eq!(view.nodes().count(), self.nodes.len());
        let (mut total, mut available) = (Resources::new(), Resources::new());
        for ((id, node), (model_id, model)) in view.nodes().zip(&self.nodes) {
            prop_assert_eq!(id, model_id);
            prop_assert_eq!(node.is_alive(), model.alive);
            prop_assert_eq!(node.total(), &model.total);
            for name in [CPU, GPU, MEMORY, OBJECT_STORE_MEMORY, "a", "b", "c"] {
                prop_assert_eq!(node.available().get(name).to_raw(), model.free(name));
            }
            if model.alive {
                total.add(node.total());
                available.add(&node.available());
            }
        }
        prop_assert_eq!(view.total(), total);
        prop_assert_eq!(view.available(), available);
        Ok(())
    }
}

/// Runs the steps on both and compares after each.
fn agree(steps: Vec<Step>, policy: impl SchedulingPolicy, kind: Policy) -> Result<(), TestCaseError> {
    let mut scheduler = GlobalScheduler::new(policy);
    let mut model = Model::default();
    let mut placed: Vec<(NodeId, Resources)> = Vec::new();
    for step in steps {
        match step {
            Step::Add(number, total) => {
                let node = ModelNode {
                    reported: total.clone(),
                    total: total.clone(),
                    alive: true,
                    ..ModelNode::default()
                };
                model.nodes.insert(node_id(number), node);
                placed.retain(|(id, _)| *id != node_id(number));
                scheduler.view_mut().add_node(node_id(number), total, BTreeMap::new());
            }
            Step::Report(number, version, total, available) => {
                let node = model.nodes.get_mut(&node_id(number));
                let taken = node.is_some_and(|node| {
                    let fresh = node.alive && version > node.version;
                    if fresh {
                        (node.version, node.total, node.reported) =
                            (version, total.clone(), available.clone());
                    }
                    fresh
                });
                let report = Report { version, total, available };
                prop_assert_eq!(scheduler.view_mut().report(&node_id(number), report), taken);
            }
            Step::MarkDead(number) => {
                let node = model.nodes.get_mut(&node_id(number));
                let was_alive = node.is_some_and(|node| std::mem::replace(&mut node.alive, false));
                prop_assert_eq!(scheduler.view_mut().mark_dead(&node_id(number)), was_alive);
            }
            Step::Remove(number) => {
                let was_there = model.nodes.remove(&node_id(number)).is_some();
                placed.retain(|(id, _)| *id != node_id(number));
                prop_assert_eq!(scheduler.view_mut().remove_node(&node_id(number)), was_there);
            }
            Step::Place(request) => {
                let decision = scheduler.place(&request);
                match (model.decide(&request, kind), &decision) {
                    (Ok(expected), Decision::Placed(actual)) => prop_assert_eq!(expected, *actual),
                    (Err(true), Decision::Busy)
                    | (Err(false), Decision::Infeasible { .. } | Decision::Never { .. }) => {}
                    (expected, _) => prop_assert!(false, "{:?}, not {:?}", decision, expected),
                }
                if let Decision::Placed(id) = decision {
                    model.placements += 1;
                    let node = model.nodes.get_mut(&id).unwrap();
                    node.committed.add(&request.resources);
                    node.last_placed = model.placements;
                    placed.push((id, request.resources));
                }
            }
            Step::Release(index) => {
                if placed.is_empty() {
                    continue;
                }
                let (id, resources) = placed.swap_remove(index % placed.len());
                let node = model.nodes.get_mut(&id).unwrap();
                if node.alive {
                    node.committed.subtract(&resources).unwrap();
                }
                prop_assert_eq!(scheduler.release(&id, &resources).is_ok(), node.alive);
            }
        }
        model.check_against(&scheduler)?;
    }
    Ok(())
}

proptest! {
    #[test]
    fn spread_agrees_with_the_model(steps in prop::collection::vec(any_step(), 0..60)) {
        agree(steps, SpreadPolicy, Policy::Spread)?;
    }

    #[test]
    fn pack_agrees_with_the_model(steps in prop::collection::vec(any_step(), 0..60)) {
        agree(steps, PackPolicy, Policy::Pack)?;
    }

    #[test]
    fn hybrid_agrees_with_the_model(steps in prop::collection::vec(any_step(), 0..60)) {
        agree(steps, HybridPolicy::default(), Policy::Hybrid)?;
    }

    #[test]
    fn releasing_everything_restores_what_was_there(
        totals in prop::collection::vec(any_resources(), 1..6),
        requests in prop::collection::vec(any_resources(), 0..40),
    ) {
        let mut scheduler = GlobalScheduler::default();
        for (number, total) in totals.iter().enumerate() {
            scheduler.view_mut().add_node(node_id(number as u8), total.clone(), BTreeMap::new());
        }
        let mut placed = Vec::new();
        for resources in requests {
            let request = Shape::from(resources);
            if let Decision::Placed(id) = scheduler.place(&request) {
                placed.push((id, request.resources));
            }
        }
        for (id, resources) in placed {
            scheduler.release(&id, &resources).unwrap();
        }
        for (_, node) in scheduler.view().nodes() {
            prop_assert_eq!(&node.available(), node.total());
        }
    }

    #[test]
    fn the_closest_node_lacks_the_least(
        totals in prop::collection::vec(any_resources(), 1..6),
        request in any_resources(),
    ) {
        let mut scheduler = GlobalScheduler::default();
        for (number, total) in totals.iter().enumerate() {
            scheduler.view_mut().add_node(node_id(number as u8), total.clone(), BTreeMap::new());
        }
        let lacking = |total: &Resources| -> f64 {
            total.shortfall(&request).map(|(_, asked, there)| 1.0 - there.to_f64() / asked.to_f64()).sum()
        };
        let (_, closest) = scheduler.view().closest(&request).unwrap();
        let least = totals.iter().map(lacking).fold(f64::INFINITY, f64::min);
        prop_assert!(lacking(closest.total()) <= least + 1e-9);
    }
}
