//! Tests of the autoscaler, with a made-up clock.

use proptest::prelude::*;
use proptest::strategy::Strategy as _;
use ray_core::constraint::{LabelMatch, Strategy};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn amounts(pairs: &[(&str, f64)]) -> Resources {
    Resources::from_units(pairs.iter().copied()).unwrap()
}

fn node_type(name: &str, resources: &[(&str, f64)], min_workers: usize, max_workers: usize) -> NodeType {
    NodeType {
        name: name.to_owned(),
        resources: amounts(resources),
        labels: BTreeMap::from([("kind".to_owned(), name.to_owned())]),
        min_workers,
        max_workers,
        idle_timeout: HOUR,
    }
}

fn scaler() -> Autoscaler {
    let small = node_type("small", &[("CPU", 2.0)], 0, 4);
    let gpu = node_type("gpu", &[("CPU", 4.0), ("GPU", 1.0)], 0, 2);
    Autoscaler::new(vec![small, gpu], 5)
}

/// A node with all of its resources free.
fn node(number: u8, of: &Autoscaler, node_type: Option<usize>) -> SeenNode {
    let total = node_type.map_or_else(|| amounts(&[("CPU", 1.0)]), |at| of.types[at].resources.clone());
    let labels = node_type.map(|at| of.types[at].labels.clone()).unwrap_or_default();
    let node_id = NodeId::from_bytes([number; 16]);
    SeenNode { node_id, node_type, available: total.clone(), total, labels, busy: false, activity: 1 }
}

fn wait_for(resources: &[(&str, f64)], count: u64) -> (Shape, u64) {
    (amounts(resources).into(), count)
}

fn group(strategy: GroupStrategy, bundles: &[&[(&str, f64)]]) -> WaitingGroup {
    let bundle = |resources: &&[(&str, f64)]| Bundle {
        resources: amounts(resources),
        selector: LabelSelector::default(),
    };
    let bundles: Vec<_> = bundles.iter().map(bundle).collect();
    let nodes = vec![None; bundles.len()];
    WaitingGroup { strategy, bundles, nodes }
}

/// What is started for a cluster of a head with one processor.
fn launches(waiting: Vec<(Shape, u64)>, groups: Vec<WaitingGroup>) -> Vec<usize> {
    let mut scaler = scaler();
    let sight = Sight { nodes: vec![node(1, &scaler, None)], waiting, groups };
    let steps = scaler.look(&sight, Instant::now());
    steps
        .into_iter()
        .map(|step| match step {
            Step::Launch(at) => at,
            Step::End(node_id) => panic!("{node_id} was not to end"),
        })
        .collect()
}

fn launches_for(waiting: Vec<(Shape, u64)>) -> Vec<usize> {
    launches(waiting, Vec::new())
}

#[test]
fn what_finds_no_room_has_nodes_started() {
    assert_eq!(launches_for(vec![]), [] as [usize; 0]);
    assert_eq!(launches_for(vec![wait_for(&[("CPU", 1.0)], 1)]), [] as [usize; 0]);
    // One on the head, two on each new node.
    assert_eq!(launches_for(vec![wait_for(&[("CPU", 1.0)], 5)]), [0, 0]);
    assert_eq!(launches_for(vec![wait_for(&[("GPU", 1.0)], 1)]), [1]);
    // Too large for the small ones, which the other type can do, if need be.
    assert_eq!(launches_for(vec![wait_for(&[("CPU", 4.0)], 1)]), [1]);
    // What takes nothing runs anywhere.
    assert_eq!(launches_for(vec![wait_for(&[], 1_000_000)]), [] as [usize; 0]);
}

#[test]
fn what_no_type_has_starts_nothing() {
    assert_eq!(launches_for(vec![wait_for(&[("CPU", 5.0)], 1)]), [] as [usize; 0]);
    assert_eq!(launches_for(vec![wait_for(&[("gizmo", 1.0)], 1)]), [] as [usize; 0]);
}

#[test]
fn there_are_never_more_nodes_than_allowed() {
    // Four small ones, and with the others five of all.
    assert_eq!(launches_for(vec![wait_for(&[("CPU", 2.0)], 1000)]), [0, 0, 0, 0, 1]);
    assert_eq!(launches_for(vec![wait_for(&[("GPU", 1.0)], 1000)]), [1, 1]);
}

#[test]
fn there_are_always_as_many_nodes_as_wished() {
    let mut scaler = Autoscaler::new(vec![node_type("kept", &[("CPU", 1.0)], 2, 3)], 8);
    let start = Instant::now();
    assert_eq!(scaler.look(&Sight::default(), start), [Step::Launch(0), Step::Launch(0)]);
    let nodes = vec![node(1, &scaler, Some(0)), node(2, &scaler, Some(0)), node(3, &scaler, Some(0))];
    let sight = Sight { nodes, ..Sight::default() };
    assert_eq!(scaler.look(&sight, start), []);
    assert_eq!(scaler.look(&sight, start + HOUR), [Step::End(NodeId::from_bytes([1; 16]))]);
    // More than there may be of all.
    let mut scaler = Autoscaler::new(vec![node_type("kept", &[("CPU", 1.0)], 5, 5)], 3);
    assert_eq!(scaler.look(&Sight::default(), start), [Step::Launch(0); 3]);
}

#[test]
fn labels_choose_the_type() {
    let on = |kind: &str| LabelSelector(vec![("kind".to_owned(), LabelMatch::In(vec![kind.to_owned()]))]);
    let shape = |selectors| Shape::from(amounts(&[("CPU", 1.0)])).with_selectors(selectors);
    assert_eq!(launches_for(vec![(shape(vec![on("gpu")]), 1)]), [1]);
    assert_eq!(launches_for(vec![(shape(vec![on("small")]), 1)]), [0]);
    assert_eq!(launches_for(vec![(shape(vec![on("large"), on("gpu")]), 1)]), [1]);
    assert_eq!(launches_for(vec![(shape(vec![on("large")]), 1)]), [] as [usize; 0]);
}

#[test]
fn what_belongs_elsewhere_starts_nothing() {
    let shape = Shape::from(amounts(&[("CPU", 2.0)]));
    let node_id = NodeId::from_bytes([1; 16]);
    let group_id = ray_core::id::PlacementGroupId::from_bytes([1; 16]);
    let in_group = Strategy::Bundle { group_id, index: None, capture: false };
    assert_eq!(
        launches_for(vec![(shape.clone().with_strategy(Strategy::on_node(node_id, false)), 1)]),
        [0; 0]
    );
    assert_eq!(launches_for(vec![(shape.clone().with_strategy(in_group), 1)]), [0; 0]);
    assert_eq!(launches_for(vec![(shape.clone().with_strategy(Strategy::on_node(node_id, true)), 1)]), [0]);
    assert_eq!(launches_for(vec![(shape.with_strategy(Strategy::Spread), 1)]), [0]);
}

#[test]
fn groups_have_nodes_started_all_together_or_not_at_all() {
    let one: &[(&str, f64)] = &[("CPU", 1.0)];
    let two: &[(&str, f64)] = &[("CPU", 2.0)];
    let gpu: &[(&str, f64)] = &[("GPU", 1.0)];
    let launches =
        |strategy, bundles: &[&[(&str, f64)]]| launches(Vec::new(), vec![group(strategy, bundles)]);
    assert_eq!(launches(GroupStrategy::Pack, &[one]), [0; 0]);
    assert_eq!(launches(GroupStrategy::Pack, &[two, two]), [0, 0]);
    assert_eq!(launches(GroupStrategy::Pack, &[two, gpu]), [1]);
    assert_eq!(launches(GroupStrategy::Spread, &[gpu, gpu]), [1, 1]);
    // The head takes one of them.
    assert_eq!(launches(GroupStrategy::StrictSpread, &[one, one, one]), [0, 0]);
    assert_eq!(launches(GroupStrategy::StrictPack, &[one, one]), [0]);
    assert_eq!(launches(GroupStrategy::StrictPack, &[two, one]), [1]);
    // One bundle too many.
    assert_eq!(launches(GroupStrategy::Pack, &[gpu, gpu, gpu]), [0; 0]);
    assert_eq!(launches(GroupStrategy::StrictSpread, &[one; 7]), [0; 0]);
    assert_eq!(launches(GroupStrategy::StrictPack, &[two, two, two]), [0; 0]);
}

#[test]
fn bundles_that_have_a_node_are_not_started_for_again() {
    let scaler = scaler();
    let mut lost = group(GroupStrategy::StrictSpread, &[&[("CPU", 1.0)], &[("CPU", 1.0)]]);
    let mut head = node(1, &scaler, None);
    head.available = amounts(&[("CPU", 0.0)]);
    lost.nodes[0] = Some(head.node_id);
    let mut scaler = scaler;
    let sight = Sight { nodes: vec![head], groups: vec![lost], ..Sight::default() };
    assert_eq!(scaler.look(&sight, Instant::now()), [Step::Launch(0)]);
}

#[test]
fn idle_nodes_end_when_their_time_is_over() {
    let mut scaler = scaler();
    let start = Instant::now();
    let (head, worker) = (node(1, &scaler, None), node(2, &scaler, Some(0)));
    let idle = Sight { nodes: vec![head, worker.clone()], ..Sight::default() };
    assert_eq!(scaler.look(&idle, start), []);
    assert_eq!(scaler.look(&idle, start + HOUR - Duration::from_nanos(1)), []);
    assert_eq!(scaler.look(&idle, start + HOUR), [Step::End(worker.node_id)]);
}

#[test]
fn whatever_happens_on_a_node_starts_its_time_anew() {
    let start = Instant::now();
    let in_use = |change: fn(&mut Sight)| {
        let mut scaler = scaler();
        let idle = Sight { nodes: vec![node(2, &scaler, Some(0))], ..Sight::default() };
        assert_eq!(scaler.look(&idle, start), []);
        let mut used = idle.clone();
        change(&mut used);
        assert_eq!(scaler.look(&used, start + HOUR), [], "{used:?}");
        // What was there between the looks counts, too.
        used = Sight {
            nodes: vec![SeenNode { activity: used.nodes[0].activity, ..idle.nodes[0].clone() }],
            ..idle
        };
        assert_eq!(scaler.look(&used, start + HOUR + HOUR / 2), [], "{used:?}");
    };
    in_use(|sight| sight.nodes[0].busy = true);
    in_use(|sight| sight.nodes[0].available = amounts(&[("CPU", 1.0)]));
    in_use(|sight| sight.nodes[0].activity = 2);
    // It is about to be used: nothing else has the room.
    in_use(|sight| sight.waiting.push(wait_for(&[("CPU", 2.0)], 1)));
}

#[test]
fn a_type_that_cannot_be_started_is_left_alone_for_a_while() {
    let mut scaler = scaler();
    let start = Instant::now();
    let sight = Sight { waiting: vec![wait_for(&[("CPU", 2.0)], 1)], ..Sight::default() };
    assert_eq!(scaler.look(&sight, start), [Step::Launch(0)]);
    scaler.on_launch_failed(0, start);
    // The other one does as well.
    assert_eq!(scaler.look(&sight, start), [Step::Launch(1)]);
    scaler.on_launch_failed(1, start);
    assert_eq!(scaler.look(&sight, start), []);
    assert_eq!(scaler.look(&sight, start + LAUNCH_PAUSE), [Step::Launch(0)]);
}

fn any_waiting() -> impl proptest::strategy::Strategy<Value = Vec<(Shape, u64)>> {
    let shape = (0u32..6, 0u32..3, 0u32..2).prop_map(|(cpus, gpus, gizmos)| {
        amounts(&[("CPU", f64::from(cpus)), ("GPU", f64::from(gpus)), ("gizmo", f64::from(gizmos))])
    });
    prop::collection::vec((shape.prop_map(Shape::from), 0u64..20), 0..4)
}

fn any_groups() -> impl proptest::strategy::Strategy<Value = Vec<WaitingGroup>> {
    let strategy = prop::sample::select(vec![
        GroupStrategy::Pack,
        GroupStrategy::Spread,
        GroupStrategy::StrictPack,
        GroupStrategy::StrictSpread,
    ]);
    let bundle = (1u32..4, 0u32..2).prop_map(|(cpus, gpus)| Bundle {
        resources: amounts(&[("CPU", f64::from(cpus)), ("GPU", f64::from(gpus))]),
        selector: LabelSelector::default(),
    });
    let group = (strategy, prop::collection::vec(bundle, 1..5)).prop_map(|(strategy, bundles)| {
        let nodes = vec![None; bundles.len()];
        WaitingGroup { strategy, bundles, nodes }
    });
    prop::collection::vec(group, 0..3)
}

proptest! {
    /// Nodes are started within their bounds, and once they are there nothing more is. Several groups are laid on
    /// nodes in more ways than one, so that one of them may have a node started that all together could do without.
    #[test]
    fn launches_keep_their_bounds_and_come_to_an_end(
        waiting in any_waiting(), mut groups in any_groups(), one in any::<bool>(),
    ) {
        groups.truncate(1);
        let (waiting, groups) = if one { (waiting, Vec::new()) } else { (Vec::new(), groups) };
        let mut scaler = scaler();
        let start = Instant::now();
        let mut sight = Sight { nodes: vec![node(1, &scaler, None)], waiting, groups };
        let steps = scaler.look(&sight, start);
        for (at, step) in steps.iter().enumerate() {
            let Step::Launch(node_type) = step else { panic!("nothing was there to be ended") };
            sight.nodes.push(node(at as u8 + 2, &scaler, Some(*node_type)));
        }
        let counts = counts(&scaler.types, &sight);
        prop_assert!(counts.iter().zip(&scaler.types).all(|(&count, one)| count <= one.max_workers));
        prop_assert!(counts.iter().sum::<usize>() <= scaler.max_workers);
        prop_assert_eq!(scaler.look(&sight, start), []);
        // Nobody waits any more: all that was started ends, and nothing else.
        sight.waiting.clear();
        sight.groups.clear();
        prop_assert_eq!(scaler.look(&sight, start), []);
        let ended = scaler.look(&sight, start + HOUR);
        let all: Vec<_> = sight.nodes[1..].iter().map(|node| Step::End(node.node_id)).collect();
        prop_assert_eq!(ended, all);
    }

    /// What ends is idle, and nothing is started in its place.
    #[test]
    fn what_ends_is_not_missed(
        busy in prop::collection::vec(any::<bool>(), 1..6), waiting in any_waiting(), groups in any_groups(),
    ) {
        let mut scaler = scaler();
        // So that what is started depends on what waits alone.
        scaler.max_workers = 1000;
        scaler.types.iter_mut().for_each(|one| one.max_workers = 1000);
        let start = Instant::now();
        let mut sight = Sight { waiting, groups, ..Sight::default() };
        for (at, &busy) in busy.iter().enumerate() {
            sight.nodes.push(SeenNode { busy, ..node(at as u8 + 1, &scaler, Some(at % 2)) });
        }
        scaler.look(&sight, start);
        let (launches, ends): (Vec<Step>, Vec<Step>) =
            scaler.look(&sight, start + HOUR).into_iter().partition(|step| matches!(step, Step::Launch(_)));
        prop_assert!(sight.nodes.iter().all(|node| !node.busy || !ends.contains(&Step::End(node.node_id))));
        sight.nodes.retain(|node| !ends.contains(&Step::End(node.node_id)));
        prop_assert_eq!(scaler.look(&sight, start + HOUR), launches);
    }
}
