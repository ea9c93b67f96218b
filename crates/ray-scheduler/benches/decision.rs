//! How long one decision takes: `cargo bench -p ray-scheduler`.
//!
//! For clusters of 2 000 and 10 000 nodes, flat (all alike) and mixed (four kinds of nodes, two custom
//! resources, part of everything in use), for each policy and each answer.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use ray_core::constraint::{Shape, Strategy};
use ray_core::id::NodeId;
use ray_core::resource::Resources;
use ray_scheduler::{GlobalScheduler, HybridPolicy, PackPolicy, SchedulingPolicy, SpreadPolicy};

const ROUNDS: u32 = 2_000;

fn main() {
    println!("{:>6} {:>6} {:>7}  {:<28} {:>9}", "nodes", "kind", "policy", "request", "us");
    for nodes in [2_000, 10_000] {
        for mixed in [false, true] {
            measure(nodes, mixed, "spread", SpreadPolicy);
            measure(nodes, mixed, "pack", PackPolicy);
            measure(nodes, mixed, "hybrid", HybridPolicy::default());
        }
    }
}

fn measure(nodes: u64, mixed: bool, policy_name: &str, policy: impl SchedulingPolicy) {
    let kind = if mixed { "mixed" } else { "flat" };
    let mut scheduler = cluster(nodes, mixed, policy);
    for (name, request) in requests() {
        let started = Instant::now();
        for _ in 0..ROUNDS {
            black_box(scheduler.schedule(black_box(&request)));
        }
        report(nodes, kind, policy_name, name, started);
    }
    let request = Shape::from(resources(&[("CPU", 1.0)]));
    let started = Instant::now();
    for _ in 0..ROUNDS {
        let node_id = scheduler.place(&request).node_id().expect("there is room for one");
        scheduler.release(&node_id, &request.resources).expect("it was placed");
    }
    report(nodes, kind, policy_name, "1 CPU, placed and released", started);
}

fn report(nodes: u64, kind: &str, policy: &str, request: &str, started: Instant) {
    let micros = started.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS);
    println!("{nodes:>6} {kind:>6} {policy:>7}  {request:<28} {micros:>9.2}");
}

fn requests() -> Vec<(&'static str, Shape)> {
    let affinity = Strategy::on_node(id(7), false);
    vec![
        ("nothing", Shape::default()),
        ("1 CPU", Shape::from(resources(&[("CPU", 1.0)]))),
        ("1 CPU and memory", Shape::from(resources(&[("CPU", 1.0), ("memory", 1e9)]))),
        (
            "4 resources",
            Shape::from(resources(&[("CPU", 1.0), ("memory", 1e9), ("gizmo", 0.5), ("rack", 0.1)])),
        ),
        ("busy: 64 CPU", Shape::from(resources(&[("CPU", 64.0)]))),
        ("infeasible: 65 CPU, gizmo", Shape::from(resources(&[("CPU", 65.0), ("gizmo", 1.0)]))),
        ("node affinity", Shape::from(resources(&[("CPU", 1.0)])).with_strategy(affinity)),
    ]
}

fn cluster(nodes: u64, mixed: bool, policy: impl SchedulingPolicy) -> GlobalScheduler {
    let mut scheduler = GlobalScheduler::new(policy);
    for number in 0..nodes {
        let flat = [("CPU", 64.0), ("memory", 256e9), ("gizmo", 8.0), ("rack", 1.0)];
        let mut total = resources(&flat);
        if mixed && number % 4 == 1 {
            total = resources(&[("CPU", 16.0), ("memory", 64e9), ("GPU", 4.0), ("rack", 1.0)]);
        } else if mixed && number % 4 == 2 {
            total = resources(&[("CPU", 8.0), ("memory", 16e9), ("gizmo", 1.0)]);
        }
        scheduler.view_mut().add_node(id(number), total, BTreeMap::new());
        let used = if mixed { (number % 8) as f64 } else { 1.0 };
        scheduler
            .view_mut()
            .commit(&id(number), &resources(&[("CPU", used)]))
            .expect("every node has so much");
        if mixed && number % 8 == 0 {
            scheduler
                .view_mut()
                .commit(&id(number), &resources(&[("CPU", 1.0)]))
                .expect("every node has so much");
        }
    }
    scheduler
}

/// Ids in no order, as real ones are.
fn id(number: u64) -> NodeId {
    let mut bytes = [0; NodeId::LEN];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    NodeId::from_bytes(bytes)
}

fn resources(amounts: &[(&str, f64)]) -> Resources {
    Resources::from_units(amounts.iter().copied()).expect("amounts are positive")
}
