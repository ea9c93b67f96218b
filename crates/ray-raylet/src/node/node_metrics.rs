//! The metrics of the node itself, beside those of its processes.

use std::fmt::Write as _;

use ray_core::metric::{MetricDescription, MetricKind, MetricTable, Tags};
use ray_core::traits::StoreUsage;

use super::machine::NodeMachine;

/// Before each name, as in Ray.
const PREFIX: &str = "ray_";

/// All metrics as Prometheus reads them.
pub(super) fn render(
    machine: &NodeMachine,
    usage: &StoreUsage,
    received: u64,
    programs: &MetricTable,
) -> String {
    let mut own = MetricTable::new(usize::MAX);
    let node = machine.node_id().hex();
    let mut gauge = |name: &str, description: &str, tags: &[(&str, &str)], value: f64| {
        let metric = MetricDescription {
            name: name.to_owned(),
            description: description.to_owned(),
            kind: MetricKind::Gauge,
            boundaries: Vec::new(),
        };
        let tags = tags.iter().copied().chain([("NodeId", node.as_str())]);
        let tags: Tags = tags.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        own.record(&metric, &tags, value);
    };
    let resources = "Resources of the node, by whether they are free";
    let (total, available) = (machine.resources().total(), machine.resources().available());
    for (name, amount) in total.iter() {
        let free = available.get(name).to_f64();
        gauge("resources", resources, &[("Name", name), ("State", "AVAILABLE")], free);
        gauge("resources", resources, &[("Name", name), ("State", "USED")], amount.to_f64() - free);
    }
    let (workers, leases, queued) = machine.counts();
    gauge("node_workers", "Worker processes of the node", &[], workers as f64);
    let of_leases = "Leases on workers of the node, by whether they are granted";
    gauge("node_leases", of_leases, &[("State", "GRANTED")], leases as f64);
    gauge("node_leases", of_leases, &[("State", "QUEUED")], queued as f64);
    let waiting = machine.demand();
    let infeasible = waiting.iter().filter(|(_, _, infeasible)| *infeasible).count();
    gauge(
        "node_infeasible_demands",
        "Wishes for leases that the node can never grant",
        &[],
        infeasible as f64,
    );
    let of_store = "Bytes of objects in the node's store, by where they lie";
    gauge("object_store_memory", of_store, &[("Location", "MMAP_SHM")], usage.used_bytes as f64);
    gauge("object_store_memory", of_store, &[("Location", "SPILLED")], usage.spilled_bytes as f64);
    let capacity = "Bytes that the node's store may hold in memory";
    gauge("object_store_capacity_bytes", capacity, &[], usage.capacity_bytes as f64);
    gauge("object_store_num_local_objects", "Objects in the node's store", &[], usage.objects as f64);
    let moved = "Bytes of objects that other nodes have sent";
    gauge("object_manager_bytes", moved, &[("Type", "Received")], received as f64);
    let mut text = String::new();
    own.render(PREFIX, &mut text);
    programs.render(PREFIX, &mut text);
    let name = format!("{PREFIX}metric_series_refused_total");
    let _ = writeln!(text, "# HELP {name} Records of metrics without room for their series");
    let _ = writeln!(text, "# TYPE {name} counter");
    let _ = writeln!(text, "{name}{{NodeId=\"{node}\"}} {}", programs.refused());
    text
}

#[cfg(test)]
mod tests {
    use ray_core::config::Config;
    use ray_core::id::NodeId;
    use ray_core::resource::Resources;

    use super::super::effect::NodeIdentity;
    use super::*;

    #[test]
    fn the_nodes_own_numbers_and_those_of_programs_are_there() {
        let identity = NodeIdentity {
            node_id: NodeId::from_bytes([7; 16]),
            gcs_address: String::new(),
            session_dir: String::new(),
            store_capacity: 0,
            labels: Default::default(),
        };
        let total = Resources::from_units([("CPU", 4.0)]).unwrap();
        let machine = NodeMachine::new(identity, total, &Config::default());
        let usage = StoreUsage { capacity_bytes: 100, used_bytes: 10, spilled_bytes: 5, objects: 2 };
        let mut programs = MetricTable::new(1);
        let metric = MetricDescription {
            name: "calls".to_owned(),
            description: String::new(),
            kind: MetricKind::Counter,
            boundaries: Vec::new(),
        };
        programs.record(&metric, &Vec::new(), 3.0);
        let text = render(&machine, &usage, 7, &programs);
        let node = NodeId::from_bytes([7; 16]).hex();
        for line in [
            format!("ray_resources{{Name=\"CPU\",State=\"AVAILABLE\",NodeId=\"{node}\"}} 4.0"),
            format!("ray_object_store_memory{{Location=\"SPILLED\",NodeId=\"{node}\"}} 5.0"),
            "ray_calls_total 3.0".to_owned(),
            format!("ray_metric_series_refused_total{{NodeId=\"{node}\"}} 0"),
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is not in {text}");
        }
    }
}
