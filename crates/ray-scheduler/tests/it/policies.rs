//! Each policy, strategy and answer on small clusters.

use std::collections::BTreeMap;

use ray_core::constraint::{LabelMatch, LabelSelector, NODE_ID_LABEL, Shape, Strategy, WhenBusy};
use ray_scheduler::{Decision, GlobalScheduler, HybridPolicy, PackPolicy, Report, SpreadPolicy, ViewError};

use super::{add_node, node_id, resources};

fn one_cpu() -> Shape {
    Shape::from(resources(&[("CPU", 1.0)]))
}

/// Places one-CPU requests until the cluster is busy; the nodes by number, in order.
fn fill(scheduler: &mut GlobalScheduler) -> Vec<u8> {
    let mut order = Vec::new();
    while let Decision::Placed(node_id) = scheduler.place(&one_cpu()) {
        order.push(node_id.as_bytes()[0]);
    }
    assert_eq!(scheduler.schedule(&one_cpu()), Decision::Busy);
    order
}

#[test]
fn spread_takes_turns_and_ties_go_by_id() {
    let mut scheduler = GlobalScheduler::new(SpreadPolicy);
    for number in [3, 1, 2] {
        add_node(scheduler.view_mut(), number, &[("CPU", 2.0)]);
    }
    assert_eq!(fill(&mut scheduler), [1, 2, 3, 1, 2, 3]);
}

#[test]
fn spread_takes_turns_even_for_requests_that_take_nothing() {
    let mut scheduler = GlobalScheduler::new(SpreadPolicy);
    for number in [1, 2, 3] {
        add_node(scheduler.view_mut(), number, &[("CPU", 2.0)]);
    }
    let nothing = Shape::default();
    let order: Vec<_> = (0..6).map(|_| scheduler.place(&nothing).node_id().unwrap()).collect();
    assert_eq!(order, [1, 2, 3, 1, 2, 3].map(node_id));
}

#[test]
fn pack_fills_one_node_after_the_other() {
    let mut scheduler = GlobalScheduler::new(PackPolicy);
    for number in [2, 1] {
        add_node(scheduler.view_mut(), number, &[("CPU", 3.0)]);
    }
    assert_eq!(fill(&mut scheduler), [1, 1, 1, 2, 2, 2]);
}

#[test]
fn hybrid_packs_to_half_and_then_spreads() {
    let mut scheduler = GlobalScheduler::new(HybridPolicy::default());
    for number in [2, 1] {
        add_node(scheduler.view_mut(), number, &[("CPU", 4.0)]);
    }
    assert_eq!(fill(&mut scheduler), [1, 1, 2, 2, 1, 2, 1, 2]);
}

#[test]
fn hybrid_keeps_graphics_nodes_for_those_who_need_them() {
    let mut scheduler = GlobalScheduler::default();
    add_node(scheduler.view_mut(), 1, &[("CPU", 2.0), ("GPU", 1.0)]);
    add_node(scheduler.view_mut(), 2, &[("CPU", 2.0)]);
    let with_gpu = Shape::from(resources(&[("CPU", 1.0), ("GPU", 1.0)]));
    assert_eq!(scheduler.schedule(&with_gpu), Decision::Placed(node_id(1)));
    assert_eq!(fill(&mut scheduler), [2, 2, 1, 1]);
}

#[test]
fn a_request_may_ask_to_be_spread_whatever_the_default() {
    let mut scheduler = GlobalScheduler::new(PackPolicy);
    for number in [1, 2] {
        add_node(scheduler.view_mut(), number, &[("CPU", 2.0)]);
    }
    let spread = one_cpu().with_strategy(Strategy::Spread);
    let order: Vec<_> = (0..4).map(|_| scheduler.place(&spread).node_id().unwrap()).collect();
    assert_eq!(order, [1, 2, 1, 2].map(node_id));
}

#[test]
fn infeasible_names_what_is_missing_and_the_closest_node() {
    let mut scheduler = GlobalScheduler::default();
    add_node(scheduler.view_mut(), 1, &[("CPU", 2.0)]);
    add_node(scheduler.view_mut(), 2, &[("CPU", 4.0), ("gizmo", 1.0)]);
    let request = Shape::from(resources(&[("CPU", 8.0), ("gizmo", 2.0), ("memory", 0.0)]));
    let Decision::Infeasible { reason } = scheduler.schedule(&request) else { panic!() };
    assert_eq!(reason, format!("node {} comes closest, it has CPU: 4 of 8, gizmo: 1 of 2", node_id(2)));
    let error = scheduler.schedule(&request).infeasible_error(&request.resources).unwrap();
    assert!(error.to_string().contains("{CPU: 8, gizmo: 2}"), "{error}");
}

#[test]
fn resources_on_different_nodes_do_not_add_up() {
    let mut scheduler = GlobalScheduler::default();
    add_node(scheduler.view_mut(), 1, &[("CPU", 2.0), ("left", 1.0)]);
    add_node(scheduler.view_mut(), 2, &[("CPU", 2.0), ("right", 1.0)]);
    let request = Shape::from(resources(&[("left", 1.0), ("right", 1.0)]));
    assert!(matches!(scheduler.schedule(&request), Decision::Infeasible { .. }));
}

#[test]
fn an_empty_cluster_says_so() {
    let mut scheduler = GlobalScheduler::default();
    let empty = Decision::Infeasible { reason: "no node is alive".to_owned() };
    assert_eq!(scheduler.schedule(&one_cpu()), empty);
    assert_eq!(scheduler.schedule(&Shape::default()), empty);
    add_node(scheduler.view_mut(), 1, &[("CPU", 2.0)]);
    assert!(scheduler.view_mut().mark_dead(&node_id(1)));
    assert_eq!(scheduler.schedule(&one_cpu()), empty);
    assert!(!scheduler.view().node(&node_id(1)).unwrap().is_alive());
}

#[test]
fn hard_affinity_waits_for_its_node_and_fails_without_it() {
    let mut scheduler = GlobalScheduler::default();
    for number in [1, 2] {
        add_node(scheduler.view_mut(), number, &[("CPU", 1.0)]);
    }
    let hard = one_cpu().with_strategy(Strategy::on_node(node_id(2), false));
    assert_eq!(scheduler.place(&hard), Decision::Placed(node_id(2)));
    assert_eq!(scheduler.place(&hard), Decision::Busy);
    let large = Shape { resources: resources(&[("CPU", 2.0)]), ..hard.clone() };
    let Decision::Infeasible { reason } = scheduler.schedule(&large) else { panic!() };
    assert_eq!(reason, format!("node {}, the one asked for, has CPU: 1 of 2", node_id(2)));
    scheduler.view_mut().mark_dead(&node_id(2));
    let Decision::Never { reason } = scheduler.schedule(&hard) else { panic!() };
    assert!(reason.contains("not alive"), "{reason}");
}

#[test]
fn soft_affinity_waits_for_a_busy_node_and_leaves_a_dead_or_small_one() {
    let mut scheduler = GlobalScheduler::default();
    add_node(scheduler.view_mut(), 1, &[("CPU", 4.0)]);
    add_node(scheduler.view_mut(), 2, &[("CPU", 1.0)]);
    let soft = one_cpu().with_strategy(Strategy::on_node(node_id(2), true));
    assert_eq!(scheduler.place(&soft), Decision::Placed(node_id(2)));
    assert_eq!(scheduler.place(&soft), Decision::Busy);
    let large = Shape { resources: resources(&[("CPU", 2.0)]), ..soft.clone() };
    assert_eq!(scheduler.schedule(&large), Decision::Placed(node_id(1)));
    scheduler.view_mut().remove_node(&node_id(2));
    assert_eq!(scheduler.schedule(&soft), Decision::Placed(node_id(1)));
}

#[test]
fn a_busy_node_is_left_or_given_up_where_that_was_asked_for() {
    let mut scheduler = GlobalScheduler::default();
    for number in [1, 2] {
        add_node(scheduler.view_mut(), number, &[("CPU", 1.0)]);
    }
    let on = |soft, when_busy| {
        one_cpu().with_strategy(Strategy::NodeAffinity { node_id: node_id(2), soft, when_busy })
    };
    assert_eq!(scheduler.place(&on(true, WhenBusy::Spill)), Decision::Placed(node_id(2)));
    let Decision::Never { reason } = scheduler.schedule(&on(false, WhenBusy::Fail)) else { panic!() };
    assert_eq!(reason, format!("{{CPU: 1}} is not free on node {}, the one asked for", node_id(2)));
    assert_eq!(scheduler.place(&on(true, WhenBusy::Spill)), Decision::Placed(node_id(1)));
    assert_eq!(scheduler.place(&on(true, WhenBusy::Spill)), Decision::Busy);
}

fn labelled(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn with_label(key: &str, values: &[&str]) -> LabelSelector {
    let values = values.iter().map(|&value| value.to_owned()).collect();
    LabelSelector(vec![(key.to_owned(), LabelMatch::In(values))])
}

#[test]
fn the_first_selector_that_some_node_fulfils_counts() {
    let mut scheduler = GlobalScheduler::default();
    let cpus = resources(&[("CPU", 1.0)]);
    scheduler.view_mut().add_node(node_id(1), cpus.clone(), labelled(&[("region", "eu")]));
    scheduler.view_mut().add_node(node_id(2), cpus, labelled(&[("region", "us")]));
    let (us, eu) = (with_label("region", &["us"]), with_label("region", &["eu"]));
    let us_first = one_cpu().with_selectors(vec![us.clone(), eu]);
    assert_eq!(scheduler.place(&us_first), Decision::Placed(node_id(2)));
    assert_eq!(scheduler.place(&us_first), Decision::Placed(node_id(1)));
    assert_eq!(scheduler.place(&us_first), Decision::Busy);
    assert_eq!(scheduler.schedule(&one_cpu().with_selectors(vec![us])), Decision::Busy);
    let nowhere = one_cpu().with_selectors(vec![with_label("region", &["moon"])]);
    assert_eq!(
        scheduler.why(&nowhere).unwrap(),
        "no node carries the labels that it asks for, {region: in(moon)}"
    );
    let large = Shape::from(resources(&[("CPU", 9.0)])).with_selectors(vec![with_label("region", &["us"])]);
    assert_eq!(
        scheduler.why(&large).unwrap(),
        format!("node {}, whose labels match, has CPU: 1 of 9", node_id(2))
    );
}

#[test]
fn whoever_is_pinned_to_a_node_that_is_gone_never_runs() {
    let mut scheduler = GlobalScheduler::default();
    let labels = labelled(&[(NODE_ID_LABEL, &node_id(1).hex())]);
    scheduler.view_mut().add_node(node_id(1), resources(&[("CPU", 1.0)]), labels);
    let pinned = one_cpu().with_selectors(vec![with_label(NODE_ID_LABEL, &[&node_id(1).hex()])]);
    assert_eq!(scheduler.schedule(&pinned), Decision::Placed(node_id(1)));
    scheduler.view_mut().mark_dead(&node_id(1));
    let Decision::Never { reason } = scheduler.schedule(&pinned) else { panic!() };
    assert!(reason.contains(&node_id(1).hex()) && reason.contains("not alive"), "{reason}");
}

#[test]
fn a_report_from_before_a_placement_does_not_free_it_again() {
    let mut scheduler = GlobalScheduler::default();
    add_node(scheduler.view_mut(), 1, &[("CPU", 1.0)]);
    assert_eq!(scheduler.place(&one_cpu()), Decision::Placed(node_id(1)));
    let total = resources(&[("CPU", 1.0)]);
    let idle = Report { version: 1, total: total.clone(), available: total.clone() };
    assert!(scheduler.view_mut().report(&node_id(1), idle));
    assert_eq!(scheduler.schedule(&one_cpu()), Decision::Busy);
    // The node has started it: from now on its own reports say so.
    let started = Report { version: 2, total: total.clone(), available: resources(&[]) };
    assert!(scheduler.view_mut().report(&node_id(1), started));
    scheduler.release(&node_id(1), &total).unwrap();
    assert_eq!(scheduler.schedule(&one_cpu()), Decision::Busy);
    let ended = Report { version: 3, total: total.clone(), available: total };
    assert!(scheduler.view_mut().report(&node_id(1), ended));
    assert_eq!(scheduler.schedule(&one_cpu()), Decision::Placed(node_id(1)));
}

#[test]
fn stale_reports_and_those_of_dead_nodes_change_nothing() {
    let mut scheduler = GlobalScheduler::default();
    let view = scheduler.view_mut();
    add_node(view, 1, &[("CPU", 1.0)]);
    let report = |version| Report { version, total: resources(&[("CPU", 9.0)]), available: resources(&[]) };
    assert!(view.report(&node_id(1), report(5)));
    assert!(!view.report(&node_id(1), report(5)));
    assert!(!view.report(&node_id(1), report(4)));
    assert_eq!(view.node(&node_id(1)).unwrap().version(), 5);
    view.remove_node(&node_id(1));
    assert!(!view.report(&node_id(1), report(6)));
    assert!(view.node(&node_id(1)).is_none());
}

#[test]
fn a_report_may_change_what_a_node_has() {
    let mut scheduler = GlobalScheduler::default();
    add_node(scheduler.view_mut(), 1, &[("CPU", 1.0), ("old", 1.0)]);
    let total = resources(&[("CPU", 1.0), ("new", 1.0)]);
    let report = Report { version: 1, total: total.clone(), available: total };
    assert!(scheduler.view_mut().report(&node_id(1), report));
    let asks = |name| Shape::from(resources(&[(name, 1.0)]));
    assert_eq!(scheduler.schedule(&asks("new")), Decision::Placed(node_id(1)));
    assert!(matches!(scheduler.schedule(&asks("old")), Decision::Infeasible { .. }));
}

#[test]
fn what_was_not_committed_cannot_be_released() {
    let mut scheduler = GlobalScheduler::default();
    add_node(scheduler.view_mut(), 1, &[("CPU", 2.0)]);
    let one = resources(&[("CPU", 1.0)]);
    scheduler.view_mut().commit(&node_id(1), &one).unwrap();
    let error = scheduler.release(&node_id(1), &resources(&[("CPU", 2.0)])).unwrap_err();
    assert!(matches!(error, ViewError::NotCommitted { .. }), "{error}");
    scheduler.release(&node_id(1), &one).unwrap();
    assert!(scheduler.release(&node_id(1), &one).is_err());
    assert_eq!(scheduler.release(&node_id(7), &one), Err(ViewError::NotAlive(node_id(7))));
}

#[test]
fn the_version_grows_only_when_a_decision_could_change() {
    let mut scheduler = GlobalScheduler::default();
    let view = scheduler.view_mut();
    add_node(view, 1, &[("CPU", 2.0)]);
    let before = view.version();
    let total = resources(&[("CPU", 2.0)]);
    assert!(view.report(&node_id(1), Report { version: 1, total: total.clone(), available: total.clone() }));
    assert_eq!(view.version(), before);
    assert!(view.report(&node_id(1), Report { version: 2, total, available: resources(&[("CPU", 1.0)]) }));
    assert!(view.version() > before);
}
