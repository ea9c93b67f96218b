//! Nodes for the bundles of placement groups: each strategy by example, and all against trying every way.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use ray_core::constraint::{LabelMatch, LabelSelector};
use ray_core::id::NodeId;
use ray_core::resource::{Amount, Resources};
use ray_scheduler::{Bundle, ClusterView, GroupDecision, GroupRequest, GroupStrategy, place_group};

use super::{add_node, node_id, resources};

fn cpus(units: f64) -> Bundle {
    Bundle { resources: resources(&[("CPU", units)]), selector: LabelSelector::default() }
}

fn view(nodes: &[f64]) -> ClusterView {
    let mut view = ClusterView::new();
    for (at, &units) in nodes.iter().enumerate() {
        add_node(&mut view, at as u8 + 1, &[("CPU", units)]);
    }
    view
}

/// The number of each bundle's node.
fn place(view: &ClusterView, strategy: GroupStrategy, bundles: &[Bundle]) -> Result<Vec<u8>, String> {
    let nodes = vec![None; bundles.len()];
    match place_group(view, &GroupRequest { strategy, bundles, nodes: &nodes, soft_target: None }) {
        GroupDecision::Placed(placed) => Ok(placed.values().map(|node_id| node_id.as_bytes()[0]).collect()),
        GroupDecision::Busy { reason } => Err(format!("busy: {reason}")),
        GroupDecision::Infeasible { reason } => Err(format!("infeasible: {reason}")),
    }
}

#[test]
fn pack_uses_few_nodes_and_spread_many() {
    let view = view(&[4.0, 4.0, 4.0]);
    let bundles = [cpus(1.0), cpus(1.0), cpus(1.0)];
    assert_eq!(place(&view, GroupStrategy::Pack, &bundles), Ok(vec![1, 1, 1]));
    assert_eq!(place(&view, GroupStrategy::StrictPack, &bundles), Ok(vec![1, 1, 1]));
    assert_eq!(place(&view, GroupStrategy::Spread, &bundles), Ok(vec![1, 2, 3]));
    let mut nodes = place(&view, GroupStrategy::StrictSpread, &bundles).unwrap();
    nodes.sort_unstable();
    assert_eq!(nodes, [1, 2, 3]);
}

#[test]
fn pack_and_spread_do_what_they_can_and_the_strict_ones_wait() {
    let view = view(&[2.0, 2.0]);
    let bundles = [cpus(1.0), cpus(1.0), cpus(1.0)];
    assert_eq!(place(&view, GroupStrategy::Pack, &bundles), Ok(vec![1, 1, 2]));
    assert_eq!(place(&view, GroupStrategy::Spread, &bundles), Ok(vec![1, 2, 1]));
    let packed = place(&view, GroupStrategy::StrictPack, &bundles).unwrap_err();
    assert_eq!(packed, "infeasible: all its bundles together, {CPU: 3}, fit on no single node");
    let spread = place(&view, GroupStrategy::StrictSpread, &bundles).unwrap_err();
    assert_eq!(spread, "infeasible: bundle 2, {CPU: 1}, fits on no node without another bundle of the group");
}

#[test]
fn what_is_taken_now_is_told_from_what_is_too_much() {
    let mut view = view(&[2.0]);
    view.commit(&node_id(1), &resources(&[("CPU", 2.0)])).unwrap();
    let busy = place(&view, GroupStrategy::Pack, &[cpus(1.0)]).unwrap_err();
    assert_eq!(busy, "busy: bundle 0, {CPU: 1}, is free on no node beside the others");
    let never = place(&view, GroupStrategy::Pack, &[cpus(3.0)]).unwrap_err();
    assert_eq!(never, "infeasible: bundle 0, {CPU: 3}, fits on no node beside the others");
    let none = place(&ClusterView::new(), GroupStrategy::Pack, &[cpus(1.0)]).unwrap_err();
    assert_eq!(none, "infeasible: no node is alive");
}

#[test]
fn each_bundle_goes_where_its_labels_are() {
    let mut view = view(&[8.0]);
    let labels = BTreeMap::from([("region".to_owned(), "eu".to_owned())]);
    view.add_node(node_id(2), resources(&[("CPU", 8.0)]), labels);
    let of = |value: &str| LabelSelector(vec![("region".to_owned(), LabelMatch::In(vec![value.to_owned()]))]);
    let bundles = [cpus(1.0), Bundle { selector: of("eu"), ..cpus(1.0) }];
    assert_eq!(place(&view, GroupStrategy::Pack, &bundles), Ok(vec![2, 2]));
    let nowhere = place(&view, GroupStrategy::Pack, &[Bundle { selector: of("us"), ..cpus(1.0) }]);
    assert_eq!(
        nowhere.unwrap_err(),
        "infeasible: no node carries the labels that bundle 0 asks for, {region: in(us)}"
    );
}

#[test]
fn the_wished_node_comes_first_if_it_has_room() {
    let mut view = view(&[4.0, 4.0]);
    let nodes = [None];
    let wish = |view: &ClusterView| {
        let request = GroupRequest {
            strategy: GroupStrategy::StrictPack,
            bundles: &[cpus(2.0)],
            nodes: &nodes,
            soft_target: Some(node_id(2)),
        };
        place_group(view, &request)
    };
    assert_eq!(wish(&view), GroupDecision::Placed(BTreeMap::from([(0, node_id(2))])));
    view.commit(&node_id(2), &resources(&[("CPU", 3.0)])).unwrap();
    assert_eq!(wish(&view), GroupDecision::Placed(BTreeMap::from([(0, node_id(1))])));
}

#[test]
fn bundles_that_lost_their_node_respect_those_that_have_one() {
    let view = view(&[4.0, 4.0]);
    let bundles = [cpus(1.0), cpus(1.0)];
    let nodes = [Some(node_id(1)), None];
    let place = |strategy| {
        place_group(&view, &GroupRequest { strategy, bundles: &bundles, nodes: &nodes, soft_target: None })
    };
    let on = |number| GroupDecision::Placed(BTreeMap::from([(1, node_id(number))]));
    assert_eq!(place(GroupStrategy::Pack), on(1));
    assert_eq!(place(GroupStrategy::StrictPack), on(1));
    assert_eq!(place(GroupStrategy::Spread), on(2));
    assert_eq!(place(GroupStrategy::StrictSpread), on(2));
}

fn raw(amount: u64) -> Resources {
    let mut resources = Resources::new();
    resources.set("CPU", Amount::from_raw(amount));
    resources
}

/// Whether there is any way at all.
fn possible(
    free: &mut BTreeMap<NodeId, u64>,
    strategy: GroupStrategy,
    left: &[u64],
    used: &[NodeId],
) -> bool {
    let Some((&first, rest)) = left.split_first() else { return true };
    let nodes: Vec<_> = free.keys().copied().collect();
    nodes.into_iter().any(|node_id| {
        let allowed = match strategy {
            GroupStrategy::StrictPack => used.iter().all(|&other| other == node_id),
            GroupStrategy::StrictSpread => !used.contains(&node_id),
            GroupStrategy::Pack | GroupStrategy::Spread => true,
        };
        if !allowed || free[&node_id] < first {
            return false;
        }
        *free.get_mut(&node_id).unwrap() -= first;
        let found = possible(free, strategy, rest, &[used, &[node_id]].concat());
        *free.get_mut(&node_id).unwrap() += first;
        found
    })
}

proptest! {
    #[test]
    fn a_place_is_found_exactly_if_there_is_one(
        totals in prop::collection::vec(0u64..8, 1..5),
        asked in prop::collection::vec(0u64..6, 1..5),
        strategy in prop::sample::select(vec![
            GroupStrategy::Pack, GroupStrategy::Spread, GroupStrategy::StrictPack, GroupStrategy::StrictSpread,
        ]),
    ) {
        let mut view = ClusterView::new();
        let mut free = BTreeMap::new();
        for (at, &total) in totals.iter().enumerate() {
            view.add_node(node_id(at as u8 + 1), raw(total), BTreeMap::new());
            free.insert(node_id(at as u8 + 1), total);
        }
        let bundles: Vec<_> =
            asked.iter().map(|&amount| Bundle { resources: raw(amount), ..Bundle::default() }).collect();
        let nodes = vec![None; bundles.len()];
        let request = GroupRequest { strategy, bundles: &bundles, nodes: &nodes, soft_target: None };
        match place_group(&view, &request) {
            GroupDecision::Placed(placed) => {
                prop_assert_eq!(placed.len(), bundles.len());
                for (&index, node_id) in &placed {
                    let left = free.get_mut(node_id).unwrap();
                    prop_assert!(*left >= asked[index as usize], "node {} is overbooked", node_id);
                    *left -= asked[index as usize];
                }
                let distinct: BTreeSet<_> = placed.values().collect();
                match strategy {
                    GroupStrategy::StrictPack => prop_assert_eq!(distinct.len(), 1),
                    GroupStrategy::StrictSpread => prop_assert_eq!(distinct.len(), placed.len()),
                    GroupStrategy::Pack | GroupStrategy::Spread => {}
                }
            }
            GroupDecision::Infeasible { .. } => prop_assert!(!possible(&mut free, strategy, &asked, &[])),
            GroupDecision::Busy { reason } => prop_assert!(false, "nothing is taken, yet {}", reason),
        }
    }
}
