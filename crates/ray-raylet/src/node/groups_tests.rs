//! Placement groups, labels and nodes that are asked for, on the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use ray_core::constraint::{BundleId, LabelMatch, LabelSelector, NODE_ID_LABEL, Shape, Strategy, WhenBusy};
use ray_core::id::{NodeId, PlacementGroupId, WorkerId};
use ray_core::pb::common::death_cause::Kind;
use ray_core::resource::Resources;
use ray_core::runtime_env::RuntimeEnv;
use ray_link::message::{Allowance, Role, Unschedulable};
use ray_link::{FromRaylet, ToRaylet};
use ray_scheduler::Report;

use super::effect::{ActorOrder, ActorOutcome, ClientId, Effect, ExitStatus};
use super::groups::{GroupNews, GroupState, ReserveOrder};
use super::machine_tests::{DRIVER, JOB, World, actor_order, cpus};
use super::whereabouts::Neighbour;

const GROUP: PlacementGroupId = PlacementGroupId::from_bytes([4; 16]);
const OWN: NodeId = NodeId::from_bytes([9; 16]);
const OTHER: NodeId = NodeId::from_bytes([8; 16]);

fn order(attempt: u64, bundles: &[f64], commit: bool) -> ReserveOrder {
    let bundles = (0..).zip(bundles.iter().map(|&units| cpus(units))).collect();
    ReserveOrder { group_id: GROUP, attempt, bundles, commit }
}

fn in_group(index: Option<u32>, units: f64) -> Shape {
    let strategy = Strategy::Bundle { group_id: GROUP, index, capture: false };
    Shape::from(cpus(units)).with_strategy(strategy)
}

fn news(version: u64, state: GroupState) -> GroupNews {
    GroupNews {
        group_id: GROUP,
        version,
        state,
        nodes: vec![Some(OWN)],
        bundles: vec![cpus(1.0)],
        info: Bytes::from(version.to_string()),
    }
}

fn neighbour(node_id: NodeId, is_alive: bool) -> Neighbour {
    let labels = BTreeMap::from([(NODE_ID_LABEL.to_owned(), node_id.hex())]);
    Neighbour { node_id, is_alive, total: cpus(1.0), labels, death_reason: String::new() }
}

impl World {
    fn reserve(&mut self, order: &ReserveOrder) -> Result<(), String> {
        let outcome = self.machine.on_reserve_bundles(self.now, order);
        self.settle();
        outcome
    }

    fn give_back(&mut self, attempt: u64, all: bool) {
        self.machine.on_return_bundles(self.now, GROUP, attempt, all, "enough");
        self.settle();
    }

    fn want(&mut self, class: u64, shape: Shape, target: u32) {
        self.tell(
            DRIVER,
            ToRaylet::SetLeaseDemand { class, shape, job_id: JOB, runtime_env: RuntimeEnv::none(), target },
        );
    }

    /// What the driver was told of demands that will never be met: class, kind, reason.
    fn refused(&mut self) -> Vec<(u64, Unschedulable, String)> {
        let mut refused = Vec::new();
        self.said.retain(|(_, message)| match message {
            FromRaylet::LeaseUnschedulable { class, kind, reason } => {
                refused.push((*class, *kind, reason.clone()));
                false
            }
            _ => true,
        });
        refused
    }

    fn asked(&mut self, effect: &Effect) -> bool {
        let asked = self.other.contains(effect);
        self.other.retain(|other| other != effect);
        asked
    }
}

#[test]
fn leases_in_a_group_take_of_its_bundles_alone() {
    let mut world = World::with_driver(cpus(3.0));
    world.reserve(&order(1, &[1.0, 1.0], true)).unwrap();
    assert_eq!(world.free(), 1.0);
    world.want(1, in_group(None, 1.0), 10);
    world.want(2, in_group(Some(1), 1.0), 1);
    world.demand(DRIVER, 3, cpus(1.0), 10);
    world.start_workers();
    assert_eq!(world.granted(DRIVER).len(), 3, "two in the group and one beside it");
    assert_eq!(world.free(), 0.0);
    world.want(1, in_group(None, 1.0), 0);
    world.want(2, in_group(Some(1), 1.0), 0);
    world.demand(DRIVER, 3, cpus(1.0), 0);
    world.give_back(1, true);
    world.end_killed();
    assert_eq!(world.free(), 2.0);
}

#[test]
fn a_demand_waits_for_its_group_and_is_served_when_the_bundles_are_there() {
    let mut world = World::with_driver(cpus(2.0));
    world.want(1, in_group(Some(0), 1.0), 1);
    assert!(world.asked(&Effect::FetchGroup(GROUP)));
    world.machine.on_group_news(world.now, news(1, GroupState::Pending("too full".to_owned())));
    world.reserve(&order(1, &[1.0], false)).unwrap();
    assert_eq!(world.machine.counts().2, 0, "reserved is not yet usable");
    world.machine.on_commit_bundles(world.now, GROUP, 1).unwrap();
    world.settle();
    world.start_workers();
    assert_eq!(world.granted(DRIVER).len(), 1);
    assert!(!world.asked(&Effect::FetchGroup(GROUP)));
}

#[test]
fn what_can_never_fit_its_bundle_is_refused_at_once() {
    let mut world = World::with_driver(cpus(4.0));
    world.reserve(&order(1, &[1.0], true)).unwrap();
    world.want(1, in_group(None, 2.0), 1);
    let [(1, Unschedulable::NoNode, reason)] = &world.refused()[..] else { panic!() };
    assert!(reason.contains("{CPU: 2} fits no bundle"), "{reason}");
}

#[test]
fn the_removal_of_a_group_ends_what_runs_in_it_and_says_so_first() {
    let mut world = World::with_driver(cpus(3.0));
    world.reserve(&order(1, &[1.0, 1.0], true)).unwrap();
    world.want(1, in_group(None, 1.0), 5);
    let bundle = Some(BundleId { group_id: GROUP, index: 1 });
    let inside = ActorOrder { bundle, ..actor_order(1, 0) };
    world.start_workers();
    assert_eq!(world.granted(DRIVER).len(), 2);
    // This one waits for room in its bundle.
    world.machine.on_create_actor(world.now, inside);
    world.settle();
    world.give_back(1, true);
    let [(1, Unschedulable::PlacementGroupRemoved, reason)] = &world.refused()[..] else { panic!() };
    assert_eq!(reason, &format!("placement group {GROUP} was removed: enough"));
    let reports = world.reports();
    let [(_, 0, ActorOutcome::Died(cause))] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!((cause.kind(), &cause.message), (Kind::PlacementGroupRemoved, reason));
    assert_eq!(world.killed.len(), 2);
    assert_eq!(world.free(), 3.0, "all is free, though the processes may take a moment to end");
    world.end_killed();
    assert_eq!((world.free(), world.machine.resources().allocations()), (3.0, 0));
    // Whoever comes late is told, too.
    world.want(2, in_group(None, 1.0), 1);
    assert!(world.asked(&Effect::FetchGroup(GROUP)));
    world.machine.on_group_unknown(world.now, GROUP);
    world.settle();
    assert_eq!(world.refused().len(), 1);
}

#[test]
fn an_actor_lives_in_its_bundle_and_dies_with_it() {
    let mut world = World::with_driver(cpus(1.0));
    world.reserve(&order(1, &[1.0], true)).unwrap();
    let bundle = Some(BundleId { group_id: GROUP, index: 0 });
    world.machine.on_create_actor(world.now, ActorOrder { bundle, living: cpus(0.5), ..actor_order(1, 0) });
    world.settle();
    world.start_workers();
    let (client, _, pid) = world.workers[0];
    let actor_id = actor_order(1, 0).actor_id;
    world.tell(client, ToRaylet::ActorCreated { actor_id, num_restarts: 0, result: Ok(()) });
    world.reports();
    world.give_back(1, true);
    assert_eq!((world.free(), &world.killed[..]), (1.0, &[pid][..]));
    world.end_process(pid, ExitStatus::Signal(9));
    let reports = world.reports();
    let [(_, 0, ActorOutcome::Died(cause))] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!(cause.kind(), Kind::PlacementGroupRemoved);
    world.machine.on_create_actor(world.now, ActorOrder { bundle, ..actor_order(2, 0) });
    world.settle();
    let reports = world.reports();
    let [(_, 0, ActorOutcome::Died(cause))] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!(cause.kind(), Kind::Unschedulable, "the control plane finds it another place, or none");
}

#[test]
fn an_attempt_that_is_over_is_never_taken_up_again() {
    let mut world = World::with_driver(cpus(2.0));
    assert_eq!(world.reserve(&order(1, &[3.0], true)).unwrap_err(), "3 of \"CPU\" asked, 2 free");
    assert!(world.reserve(&order(1, &[1.0], true)).is_err(), "it was refused");
    world.reserve(&order(2, &[1.0], false)).unwrap();
    world.reserve(&order(2, &[1.0], false)).unwrap();
    assert_eq!(world.free(), 1.0, "asking again is asking once");
    world.give_back(2, false);
    assert!(world.reserve(&order(2, &[1.0], false)).is_err(), "it was given back");
    world.reserve(&order(4, &[2.0], false)).unwrap();
    world.give_back(3, false);
    assert_eq!(world.free(), 0.0, "another attempt");
    // The order to give attempt 4 back is late, but nobody can want both.
    world.reserve(&order(5, &[2.0], true)).unwrap();
    world.give_back(4, false);
    assert_eq!(world.free(), 0.0);
    assert!(world.machine.on_commit_bundles(world.now, GROUP, 4).is_err());
    // It was committed here, but given up elsewhere.
    world.reserve(&order(6, &[1.0], true)).unwrap();
    assert_eq!(world.free(), 1.0);
    world.give_back(6, true);
    // A later attempt came first.
    let elsewhere = |attempt, index, units| ReserveOrder {
        group_id: GROUP,
        attempt,
        bundles: vec![(index, cpus(units))],
        commit: true,
    };
    world.reserve(&elsewhere(8, 1, 1.0)).unwrap();
    assert!(world.reserve(&elsewhere(7, 0, 1.0)).is_err());
    world.give_back(8, true);
    assert_eq!(world.free(), 2.0);
}

#[test]
fn whoever_loses_a_lease_to_a_bundle_that_is_placed_anew_goes_on_waiting() {
    let mut world = World::with_driver(cpus(2.0));
    world.reserve(&order(1, &[1.0], true)).unwrap();
    world.want(1, in_group(Some(0), 1.0), 1);
    world.start_workers();
    assert_eq!(world.granted(DRIVER).len(), 1);
    world.reserve(&order(2, &[3.0], true)).unwrap_err();
    world.end_killed();
    assert!(world.asked(&Effect::FetchGroup(GROUP)), "the demand waits for what becomes of the group");
    world.reserve(&order(3, &[1.0], true)).unwrap();
    world.start_workers();
    assert_eq!(world.granted(DRIVER).len(), 1);
}

#[test]
fn who_follows_a_group_is_told_each_news_once_and_its_end() {
    let mut world = World::with_driver(cpus(1.0));
    let follow = ToRaylet::SubscribeGroup { group_id: GROUP, is_new: true };
    world.tell(DRIVER, follow);
    assert!(!world.asked(&Effect::FetchGroup(GROUP)), "nobody knows of it yet");
    world.machine.on_group_news(world.now, news(2, GroupState::Created));
    world.machine.on_group_news(world.now, news(1, GroupState::Pending("late".to_owned())));
    world.machine.on_group_news(world.now, news(3, GroupState::Removed("enough".to_owned())));
    world.machine.on_group_news(world.now, news(4, GroupState::Created));
    world.settle();
    let told: Vec<_> = world
        .said
        .drain(..)
        .filter_map(|(_, message)| match message {
            FromRaylet::GroupState { info, .. } => info,
            _ => None,
        })
        .collect();
    assert_eq!(told, ["2", "3"]);
    world.tell(DRIVER, ToRaylet::SubscribeGroup { group_id: GROUP, is_new: false });
    assert!(world.asked(&Effect::FetchGroup(GROUP)));
    world.machine.on_group_news(world.now, news(5, GroupState::Created));
    // News were missed: it is not there any more.
    world.machine.on_groups_listed(world.now, &BTreeSet::new());
    world.settle();
    assert!(world.said.contains(&(DRIVER, FromRaylet::GroupState { group_id: GROUP, info: None })));
}

#[test]
fn a_node_that_is_gone_is_waited_for_by_nobody() {
    let mut world = World::with_driver(cpus(1.0));
    let on = |node_id, soft| Shape::from(cpus(1.0)).with_strategy(Strategy::on_node(node_id, soft));
    world.want(1, on(OTHER, false), 1);
    assert!(world.asked(&Effect::FetchNodes));
    assert!(world.refused().is_empty(), "it may be new");
    world.machine.on_nodes_listed(world.now, vec![neighbour(OTHER, true)]);
    world.settle();
    assert!(world.refused().is_empty());
    world.machine.on_neighbour(world.now, neighbour(OTHER, false));
    world.settle();
    let [(1, Unschedulable::NoNode, reason)] = &world.refused()[..] else { panic!() };
    assert!(reason.contains(&OTHER.hex()) && reason.contains("not alive"), "{reason}");
    world.want(2, on(OTHER, true), 1);
    world.start_workers();
    assert_eq!(world.granted(DRIVER).len(), 1, "another node is as good");
    let nobody = NodeId::from_bytes([7; 16]);
    world.want(3, on(nobody, false), 1);
    world.machine.on_nodes_listed(world.now, Vec::new());
    world.settle();
    assert_eq!(world.refused().len(), 1);
}

#[test]
fn labels_decide_whether_a_lease_may_be_here() {
    let mut world = World::with_driver(cpus(2.0));
    let with = |key: &str, value: &str| {
        LabelSelector(vec![(key.to_owned(), LabelMatch::In(vec![value.to_owned()]))])
    };
    let shape = |selectors| Shape::from(cpus(1.0)).with_selectors(selectors);
    world.want(1, shape(vec![with("region", "eu")]), 1);
    world.want(2, shape(vec![with("region", "us"), with("region", "eu")]), 1);
    world.start_workers();
    assert_eq!(world.granted(DRIVER).len(), 2);
    world.want(3, shape(vec![with("region", "us")]), 1);
    let infeasible = |message: &FromRaylet| match message {
        FromRaylet::LeaseInfeasible { class: 3, reason } => reason.contains("{region: in(us)}"),
        _ => false,
    };
    assert!(world.said.iter().any(|(_, message)| infeasible(message)), "{:?}", world.said);
    world.want(4, shape(vec![with(NODE_ID_LABEL, &OTHER.hex())]), 1);
    assert_eq!(world.refused().len(), 1, "no other node will ever have this id");
}

#[test]
fn a_busy_node_can_be_given_up() {
    let mut world = World::with_driver(cpus(1.0));
    world.demand(DRIVER, 1, cpus(1.0), 1);
    let strategy = Strategy::NodeAffinity { node_id: OWN, soft: false, when_busy: WhenBusy::Fail };
    world.want(2, Shape::from(cpus(1.0)).with_strategy(strategy), 1);
    let [(2, Unschedulable::NoNode, reason)] = &world.refused()[..] else { panic!() };
    assert!(reason.contains("no room now: 1 of \"CPU\" asked, 0 free"), "{reason}");
    world.want(3, Shape::from(Resources::new()).with_strategy(strategy), 1);
    assert!(world.refused().is_empty());
}

// Leases of other nodes

const VISITOR: ClientId = ClientId(300);

impl World {
    /// Another node with so many CPUs joins, or says how many are free.
    fn other_node(&mut self, total: f64) {
        let node = Neighbour { total: cpus(total), ..neighbour(OTHER, true) };
        self.machine.on_neighbour(self.now, node);
        self.settle();
    }

    fn other_has_free(&mut self, version: u64, total: f64, free: f64) {
        let report = Report { version, total: cpus(total), available: cpus(free) };
        self.machine.on_usage(self.now, OTHER, report);
        self.settle();
    }

    fn visitor(&mut self) {
        let (worker_id, role) = (WorkerId::from_bytes([33; 16]), Role::Visitor { drives: None });
        self.machine.on_registered(self.now, VISITOR, worker_id, role, 7, "/visitor".to_owned());
        self.settle();
    }

    /// The driver says that it cannot reach a node.
    fn unreachable(&mut self, node_id: NodeId) {
        let message = ToRaylet::NodeUnreachable { node_id, cause: "connection refused".to_owned() };
        self.machine.on_message(self.now, DRIVER, message);
        self.settle();
    }

    /// What the driver was told last of other nodes, by class.
    fn elsewhere(&mut self) -> Vec<(u64, Vec<(NodeId, Allowance)>)> {
        let mut told = Vec::new();
        self.said.retain(|(client, message)| match message {
            FromRaylet::LeaseElsewhere { class, nodes } => {
                assert_eq!(*client, DRIVER, "visitors are never sent on");
                told.push((*class, nodes.clone()));
                false
            }
            _ => true,
        });
        told
    }
}

#[test]
fn what_finds_no_room_is_asked_of_nodes_that_have_some_until_it_has() {
    let mut world = World::with_driver(cpus(1.0));
    world.other_node(2.0);
    world.demand(DRIVER, 1, cpus(1.0), 1);
    world.start_workers();
    assert_eq!(world.elsewhere(), [], "it has room here");
    world.demand(DRIVER, 1, cpus(1.0), 5);
    assert_eq!(world.elsewhere(), [(1, vec![(OTHER, Allowance::Waiting(2))])]);
    world.other_has_free(1, 2.0, 0.0);
    assert_eq!(world.elsewhere(), [], "it waits in line there");
    world.demand(DRIVER, 1, cpus(1.0), 1);
    assert_eq!(world.elsewhere(), [(1, Vec::new())]);
}

#[test]
fn nothing_is_asked_of_a_node_without_room_before_it_says_that_it_has_some() {
    let mut world = World::with_driver(cpus(1.0));
    world.other_node(1.0);
    world.other_has_free(1, 1.0, 0.0);
    world.demand(DRIVER, 1, cpus(1.0), 2);
    world.start_workers();
    assert_eq!(world.elsewhere(), []);
    world.other_has_free(2, 1.0, 1.0);
    assert_eq!(world.elsewhere(), [(1, vec![(OTHER, Allowance::Waiting(1))])]);
    world.machine.on_neighbour(world.now, neighbour(OTHER, false));
    world.settle();
    assert_eq!(world.elsewhere(), [(1, Vec::new())], "it is dead");
}

#[test]
fn who_cannot_reach_a_node_is_sent_elsewhere_and_there_again_later() {
    const THIRD: NodeId = NodeId::from_bytes([12; 16]);
    let mut world = World::with_driver(cpus(1.0));
    world.other_node(1.0);
    world.machine.on_neighbour(world.now, Neighbour { total: cpus(1.0), ..neighbour(THIRD, true) });
    // One can run anywhere else, the other on one node only.
    world.demand(DRIVER, 1, cpus(1.0), 3);
    world.want(2, Shape::from(cpus(0.5)).with_strategy(Strategy::on_node(OTHER, false)), 1);
    let both = vec![(OTHER, Allowance::Waiting(1)), (THIRD, Allowance::Waiting(1))];
    let pinned = (2, vec![(OTHER, Allowance::Waiting(1))]);
    assert_eq!(world.elsewhere(), [(1, both.clone()), pinned.clone()]);
    world.unreachable(OTHER);
    assert_eq!(world.elsewhere(), [], "it keeps what it may ask of others");
    let reason = world.machine.why_pending(WorkerId::from_bytes(*JOB.as_bytes()), 2);
    assert!(reason.contains("refused") && reason.contains(&OTHER.hex()), "{reason}");
    // Whatever happens meanwhile, it is not sent there.
    world.demand(DRIVER, 1, cpus(1.0), 4);
    world.want(2, Shape::from(cpus(0.5)).with_strategy(Strategy::on_node(OTHER, false)), 2);
    assert_eq!(world.elsewhere(), []);
    world.now = world.machine.next_deadline().expect("the end of the pause");
    world.machine.on_tick(world.now);
    world.settle();
    assert_eq!(world.elsewhere(), [(2, vec![(OTHER, Allowance::Waiting(2))]), (1, both)]);
    world.unreachable(OTHER);
    world.machine.on_client_lost(world.now, DRIVER);
    let pause = world.machine.next_deadline();
    assert!(pause.is_none_or(|at| at > world.now + Duration::from_secs(1)), "a pause ends with its process");
}

#[test]
fn what_is_spread_passes_by_a_node_that_is_out_of_reach() {
    let mut world = World::with_driver(cpus(4.0));
    world.other_node(4.0);
    world.want(1, Shape::from(cpus(1.0)).with_strategy(Strategy::Spread), 4);
    assert_eq!(world.elsewhere(), [(1, vec![(OTHER, Allowance::Held(2))])]);
    world.unreachable(OTHER);
    assert_eq!(world.elsewhere(), []);
    world.start_workers();
    assert_eq!(world.granted(DRIVER).len(), 4);
}

#[test]
fn what_only_another_node_can_hold_is_asked_of_it_and_of_nobody_when_it_dies() {
    let mut world = World::with_driver(cpus(1.0));
    world.other_node(4.0);
    world.demand(DRIVER, 1, cpus(3.0), 2);
    assert_eq!(world.elsewhere(), [(1, vec![(OTHER, Allowance::Waiting(1))])]);
    world.want(2, Shape::from(cpus(1.0)).with_strategy(Strategy::on_node(OTHER, false)), 2);
    assert_eq!(world.elsewhere(), [(2, vec![(OTHER, Allowance::Waiting(2))])]);
    assert_eq!(world.machine.counts().2, 0, "nothing is queued here");
    world.machine.on_neighbour(world.now, neighbour(OTHER, false));
    world.settle();
    let mut told = world.elsewhere();
    told.sort_unstable_by_key(|(class, _)| *class);
    assert_eq!(told, [(1, Vec::new()), (2, Vec::new())]);
    let refused = world.refused();
    assert_eq!(refused.len(), 1);
    assert_eq!((refused[0].0, refused[0].1), (2, Unschedulable::NoNode));
    let infeasible =
        |(_, message): &(_, FromRaylet)| matches!(message, FromRaylet::LeaseInfeasible { class: 1, .. });
    assert!(world.said.iter().any(infeasible));
}

#[test]
fn what_is_spread_is_shared_with_this_node() {
    let mut world = World::with_driver(cpus(4.0));
    world.other_node(4.0);
    let shape = Shape::from(cpus(1.0)).with_strategy(Strategy::Spread);
    for target in 1..=4 {
        world.want(1, shape.clone(), target);
    }
    world.start_workers();
    assert_eq!(world.granted(DRIVER).len(), 2);
    assert_eq!(world.elsewhere().last(), Some(&(1, vec![(OTHER, Allowance::Held(2))])));
    world.want(1, shape, 0);
    assert_eq!(world.elsewhere(), [(1, Vec::new())]);
}

#[test]
fn a_visitor_is_served_here_or_waits() {
    let mut world = World::with_driver(cpus(1.0));
    world.other_node(4.0);
    world.visitor();
    world.demand(VISITOR, 1, cpus(1.0), 3);
    let here = Shape::from(cpus(0.0)).with_strategy(Strategy::on_node(OWN, false));
    let (job_id, runtime_env) = (JOB, RuntimeEnv::none());
    world.tell(VISITOR, ToRaylet::SetLeaseDemand { class: 2, shape: here, job_id, runtime_env, target: 1 });
    let there = Shape::from(cpus(3.0));
    let runtime_env = RuntimeEnv::none();
    world.tell(VISITOR, ToRaylet::SetLeaseDemand { class: 3, shape: there, job_id, runtime_env, target: 1 });
    world.start_workers();
    assert_eq!(world.granted(VISITOR).len(), 2);
    assert_eq!(world.elsewhere(), []);
    assert!(!world.said.iter().any(|(_, message)| matches!(message, FromRaylet::LeaseInfeasible { .. })));
    world.machine.on_client_lost(world.now, VISITOR);
    world.settle();
    world.end_killed();
    assert_eq!(world.free(), 1.0, "its leases end with its link");
    assert!(world.said.iter().any(|(client, message)| *client == DRIVER
        && matches!(message, FromRaylet::WorkerDied { worker_id, .. } if worker_id.as_bytes() == &[33; 16])));
}

#[test]
fn tasks_in_a_group_are_asked_of_the_nodes_of_bundles_that_can_hold_them() {
    let mut world = World::with_driver(cpus(2.0));
    world.other_node(4.0);
    let created = GroupNews {
        nodes: vec![Some(OWN), Some(OTHER)],
        bundles: vec![cpus(1.0), cpus(3.0)],
        ..news(1, GroupState::Created)
    };
    world.reserve(&order(1, &[1.0], true)).unwrap();
    world.want(1, in_group(Some(1), 1.0), 1);
    world.machine.on_group_news(world.now, created);
    world.settle();
    assert_eq!(world.elsewhere(), [(1, vec![(OTHER, Allowance::Waiting(1))])]);
    world.want(2, in_group(None, 2.0), 1);
    assert_eq!(world.elsewhere(), [(2, vec![(OTHER, Allowance::Waiting(1))])], "it fits no bundle here");
    world.want(3, in_group(None, 1.0), 3);
    world.start_workers();
    assert_eq!(world.granted(DRIVER).len(), 1);
    assert_eq!(world.elsewhere(), [(3, vec![(OTHER, Allowance::Waiting(2))])]);
    world.want(4, in_group(Some(1), 4.0), 1);
    assert_eq!(world.refused().len(), 1, "it fits no bundle anywhere");
}
