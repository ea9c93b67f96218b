use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use ray_core::id::WorkerId;
use ray_core::resource::Resources;

use super::*;

fn at(unix_ms: u64) -> Now {
    Now { elapsed: Duration::from_millis(unix_ms), unix_ms }
}

fn actor(n: u8) -> ActorId {
    ActorId::from_bytes([n; 16])
}

fn node(n: u8) -> NodeId {
    NodeId::from_bytes([100 + n; 16])
}

fn job(n: u8) -> JobId {
    JobId::from_bytes([200 + n; 16])
}

fn spec(n: u8, max_restarts: MaxRestarts) -> ActorSpec {
    ActorSpec {
        runtime_env: String::new(),
        actor_id: actor(n),
        job_id: job(0),
        name: None,
        namespace: "space".to_owned(),
        class_name: "Counter".to_owned(),
        placement_resources: Resources::new().with_cpu(1.0).unwrap(),
        resources: Resources::new(),
        max_restarts,
        max_task_retries: 0,
        max_concurrency: 1,
        detached: false,
        class_id: Arc::default(),
        class_blob: Arc::default(),
        creation_task: Arc::default(),
        owner: None,
        constraint: ray_core::constraint::Constraint::default(),
        handle_metadata: Arc::new([7]),
        job_config: Arc::default(),
        concurrency_groups: Box::default(),
        is_async: false,
    }
}

fn address(node_id: NodeId) -> WorkerAddress {
    WorkerAddress {
        worker_id: WorkerId::from_bytes([9; 16]),
        node_id,
        socket_path: String::new(),
        tcp_address: String::new(),
    }
}

fn incarnation(a: u8, n: u8, num_restarts: u64) -> Incarnation {
    Incarnation { node_id: node(n), actor_id: actor(a), num_restarts }
}

fn died(kind: DeathKind) -> DeathCause {
    DeathCause::new(kind, "because")
}

/// A table with actor 1, taking calls on node 1.
fn with_living_actor(max_restarts: MaxRestarts) -> ActorTable {
    let mut table = ActorTable::new(10);
    let mut out = Vec::new();
    table.register(spec(1, max_restarts), &mut out).unwrap();
    table.on_placed(actor(1), node(1), &mut out);
    acknowledge(&mut table, incarnation(1, 1, 0));
    table.on_alive(&incarnation(1, 1, 0), address(node(1)), 42, &mut out);
    table
}

fn version(table: &ActorTable, a: u8) -> u64 {
    table.get(&actor(a)).map_or(0, |info| info.version)
}

fn acknowledge(table: &mut ActorTable, target: Incarnation) {
    let version = table.get(&target.actor_id).unwrap().version;
    assert!(table.on_create_acknowledged(&target, version));
}

fn phase(table: &ActorTable, a: u8) -> ActorPhase {
    table.get(&actor(a)).unwrap().phase.clone()
}

#[track_caller]
fn assert_dead(table: &ActorTable, a: u8, kind: DeathKind) {
    let phase = phase(table, a);
    assert!(matches!(&phase, ActorPhase::Dead { cause, .. } if cause.kind == kind), "{phase:?}");
    table.check_invariants();
}

fn kills(out: &[ActorEffect]) -> Vec<Incarnation> {
    out.iter()
        .filter_map(|effect| match effect {
            ActorEffect::KillOnNode(order) => Some(order.target),
            _ => None,
        })
        .collect()
}

#[test]
fn an_actor_is_saved_placed_created_and_alive() {
    let mut table = ActorTable::new(10);
    let mut out = Vec::new();
    table.register(spec(1, MaxRestarts::Times(0)), &mut out).unwrap();
    let [ActorEffect::SaveSpec(_), ActorEffect::Changed(_), ActorEffect::Schedule(id)] = &out[..] else {
        panic!("{out:?}")
    };
    assert_eq!(*id, actor(1));
    out.clear();
    table.on_placed(actor(1), node(1), &mut out);
    let [ActorEffect::Changed(_), ActorEffect::CreateOnNode(order)] = &out[..] else { panic!("{out:?}") };
    assert_eq!(order.target, incarnation(1, 1, 0));
    out.clear();
    table.on_alive(&incarnation(1, 1, 0), address(node(1)), 42, &mut out);
    let [ActorEffect::Changed(info), ActorEffect::Settled(..)] = &out[..] else { panic!("{out:?}") };
    assert_eq!(info.phase, ActorPhase::Alive { address: address(node(1)), pid: 42 });
}

#[test]
fn registering_again_or_reporting_again_changes_nothing() {
    let mut table = with_living_actor(MaxRestarts::Times(0));
    let mut out = Vec::new();
    let info = table.register(spec(1, MaxRestarts::Times(5)), &mut out).unwrap();
    assert_eq!(info.max_restarts, MaxRestarts::Times(0), "the first one counts");
    table.on_alive(&incarnation(1, 1, 0), address(node(1)), 43, &mut out);
    assert_eq!(out, []);
}

#[test]
fn a_name_belongs_to_one_living_actor_of_a_namespace() {
    let named = |n, namespace: &str| ActorSpec {
        name: Some("bob".to_owned()),
        namespace: namespace.to_owned(),
        ..spec(n, MaxRestarts::Times(0))
    };
    let mut table = ActorTable::new(10);
    let mut out = Vec::new();
    table.register(named(1, "a"), &mut out).unwrap();
    table.register(named(2, "b"), &mut out).unwrap();
    table.register(named(1, "a"), &mut out).unwrap();
    let error = table.register(named(3, "a"), &mut out).unwrap_err();
    assert!(matches!(error, ActorError::NameTaken { holder, .. } if holder == actor(1)));
    assert!(table.get(&actor(3)).is_err());
    table.kill(actor(1), true, died(DeathKind::Killed), at(1), &mut out).unwrap();
    assert!(table.by_name("a", "bob").is_err());
    table.register(named(3, "a"), &mut out).unwrap();
    assert_eq!(table.by_name("a", "bob").unwrap().actor_id, actor(3));
    table.check_invariants();
}

#[test]
fn a_lost_process_is_made_anew_as_often_as_allowed() {
    let mut table = with_living_actor(MaxRestarts::Times(1));
    let mut out = Vec::new();
    table.on_died(&incarnation(1, 1, 0), died(DeathKind::ProcessExited), at(1), &mut out);
    assert!(matches!(phase(&table, 1), ActorPhase::Waiting { reason } if reason.contains("because")));
    assert_eq!(out.last(), Some(&ActorEffect::Schedule(actor(1))));
    table.on_placed(actor(1), node(2), &mut out);
    table.on_alive(&incarnation(1, 2, 1), address(node(2)), 43, &mut out);
    table.on_died(&incarnation(1, 2, 1), died(DeathKind::ProcessExited), at(2), &mut out);
    assert_dead(&table, 1, DeathKind::ProcessExited);
    assert_eq!(kills(&out), [], "its process is gone");
}

#[test]
fn without_limit_it_is_made_anew_for_ever() {
    let mut table = with_living_actor(MaxRestarts::Unlimited);
    let mut out = Vec::new();
    for restart in 0..100 {
        table.on_died(&incarnation(1, 1, restart), died(DeathKind::ProcessExited), at(1), &mut out);
        table.on_placed(actor(1), node(1), &mut out);
        table.on_alive(&incarnation(1, 1, restart + 1), address(node(1)), 1, &mut out);
    }
    assert_eq!(table.get(&actor(1)).unwrap().num_restarts, 100);
}

#[test]
fn a_constructor_that_raises_ends_the_actor_with_its_exception() {
    let mut table = ActorTable::new(10);
    let mut out = Vec::new();
    table.register(spec(1, MaxRestarts::Unlimited), &mut out).unwrap();
    table.on_placed(actor(1), node(1), &mut out);
    let cause = DeathCause { error: Arc::new([1, 2, 3]), ..died(DeathKind::CreationFailed) };
    table.on_died(&incarnation(1, 1, 0), cause.clone(), at(5), &mut out);
    assert_eq!(phase(&table, 1), ActorPhase::Dead { cause, at_ms: 5 });
    assert!(out.contains(&ActorEffect::DropSpec(actor(1))));
}

#[test]
fn a_report_about_an_earlier_incarnation_changes_nothing_but_what_lives_there_is_killed() {
    let mut table = with_living_actor(MaxRestarts::Unlimited);
    let mut out = Vec::new();
    table.on_died(&incarnation(1, 1, 0), died(DeathKind::ProcessExited), at(1), &mut out);
    table.on_placed(actor(1), node(1), &mut out);
    out.clear();
    table.on_died(&incarnation(1, 1, 0), died(DeathKind::ProcessExited), at(2), &mut out);
    assert_eq!(out, []);
    table.on_alive(&incarnation(1, 1, 0), address(node(1)), 42, &mut out);
    table.on_alive(&incarnation(1, 2, 1), address(node(2)), 42, &mut out);
    table.on_alive(&incarnation(1, 2, 1), address(node(2)), 42, &mut out);
    assert_eq!(kills(&out), [incarnation(1, 1, 0), incarnation(1, 2, 1)], "each is ordered once");
    assert!(matches!(phase(&table, 1), ActorPhase::Creating { node_id } if node_id == node(1)));
}

#[test]
fn killed_for_good_it_is_dead_at_once_and_its_process_ordered_to_end() {
    let mut table = with_living_actor(MaxRestarts::Unlimited);
    let mut out = Vec::new();
    table.kill(actor(1), true, died(DeathKind::Killed), at(1), &mut out).unwrap();
    assert_dead(&table, 1, DeathKind::Killed);
    assert_eq!(kills(&out), [incarnation(1, 1, 0)]);
    assert_eq!(table.outstanding(node(1)).len(), 1);
    out.clear();
    table.kill(actor(1), true, died(DeathKind::Killed), at(1), &mut out).unwrap();
    assert_eq!(out, []);
    table.on_kill_acknowledged(&incarnation(1, 1, 0), &mut out);
    table.on_kill_acknowledged(&incarnation(1, 1, 0), &mut out);
    assert_eq!(out, [ActorEffect::KillDone(incarnation(1, 1, 0))]);
    assert_eq!(table.outstanding(node(1)), []);
    assert_eq!(
        table.kill(actor(2), true, died(DeathKind::Killed), at(1), &mut out),
        Err(ActorError::Unknown(actor(2)))
    );
}

#[test]
fn killed_with_restart_it_is_made_anew_once_its_process_is_gone() {
    let mut table = with_living_actor(MaxRestarts::Times(1));
    let mut out = Vec::new();
    table.kill(actor(1), false, died(DeathKind::Killed), at(1), &mut out).unwrap();
    assert_eq!(kills(&out), [incarnation(1, 1, 0)]);
    assert!(matches!(phase(&table, 1), ActorPhase::Alive { .. }));
    table.on_died(&incarnation(1, 1, 0), died(DeathKind::Killed), at(2), &mut out);
    assert!(matches!(phase(&table, 1), ActorPhase::Waiting { .. }));
}

#[test]
fn a_node_takes_its_actors_with_it_and_its_orders_too() {
    let mut table = with_living_actor(MaxRestarts::Times(0));
    let mut out = Vec::new();
    table.register(spec(2, MaxRestarts::Times(0)), &mut out).unwrap();
    table.on_placed(actor(2), node(1), &mut out);
    table.register(spec(3, MaxRestarts::Times(0)), &mut out).unwrap();
    table.on_placed(actor(3), node(1), &mut out);
    acknowledge(&mut table, incarnation(3, 1, 0));
    table.kill(actor(1), false, died(DeathKind::Killed), at(1), &mut out).unwrap();
    out.clear();
    table.on_node_dead(node(1), "fire", at(2), &mut out);
    assert_dead(&table, 1, DeathKind::NodeDied);
    assert!(out.contains(&ActorEffect::KillDone(incarnation(1, 1, 0))));
    // The node never heard of 2, so that nothing of it ran; 3 may have run in part.
    assert!(matches!(phase(&table, 2), ActorPhase::Waiting { .. }));
    assert_eq!(table.get(&actor(2)).unwrap().num_restarts, 0);
    assert_dead(&table, 3, DeathKind::NodeDied);
}

#[test]
fn a_job_takes_its_actors_with_it_but_for_the_detached() {
    let mut table = with_living_actor(MaxRestarts::Unlimited);
    let mut out = Vec::new();
    table.register(ActorSpec { detached: true, ..spec(2, MaxRestarts::Times(0)) }, &mut out).unwrap();
    table.register(ActorSpec { job_id: job(1), ..spec(3, MaxRestarts::Times(0)) }, &mut out).unwrap();
    table.register(spec(4, MaxRestarts::Times(0)), &mut out).unwrap();
    out.clear();
    table.on_job_finished(job(0), at(1), &mut out);
    assert_dead(&table, 1, DeathKind::JobFinished);
    assert_dead(&table, 4, DeathKind::JobFinished);
    assert!(!phase(&table, 2).is_dead() && !phase(&table, 3).is_dead());
    assert_eq!(kills(&out), [incarnation(1, 1, 0)]);
}

#[test]
fn an_order_that_a_node_gives_back_or_refuses() {
    let mut table = ActorTable::new(10);
    let mut out = Vec::new();
    table.register(spec(1, MaxRestarts::Times(0)), &mut out).unwrap();
    table.on_placed(actor(1), node(1), &mut out);
    table.on_died(&incarnation(1, 1, 0), died(DeathKind::Unschedulable), at(1), &mut out);
    assert!(matches!(phase(&table, 1), ActorPhase::Waiting { .. }));
    assert!(out.ends_with(&[ActorEffect::Schedule(actor(1)), ActorEffect::GivenBack(node(1))]));
    table.on_placed(actor(1), node(2), &mut out);
    let now = version(&table, 1);
    table.on_create_refused(&incarnation(1, 1, 0), now, "late", at(2), &mut out);
    assert!(!phase(&table, 1).is_dead(), "the refusal is another node's");
    table.on_create_refused(&incarnation(1, 2, 0), now, "no such thing", at(2), &mut out);
    assert_dead(&table, 1, DeathKind::CreationFailed);
}

#[test]
fn a_late_copy_of_an_order_given_back_does_not_end_what_the_node_made_since() {
    let mut table = with_living_actor(MaxRestarts::Times(0));
    let mut out = Vec::new();
    table.on_died(&incarnation(1, 1, 0), died(DeathKind::Unschedulable), at(1), &mut out);
    assert_eq!(out, []);
    assert!(matches!(phase(&table, 1), ActorPhase::Alive { .. }));
}

#[test]
fn a_node_that_took_the_order_after_all_keeps_the_actor_unless_it_is_made_elsewhere() {
    let waiting_again = || {
        let mut table = ActorTable::new(10);
        let mut out = Vec::new();
        table.register(spec(1, MaxRestarts::Times(0)), &mut out).unwrap();
        table.on_placed(actor(1), node(1), &mut out);
        table.on_died(&incarnation(1, 1, 0), died(DeathKind::Unschedulable), at(1), &mut out);
        table
    };
    let mut out = Vec::new();
    let mut table = waiting_again();
    table.on_alive(&incarnation(1, 1, 0), address(node(1)), 1, &mut out);
    assert!(matches!(phase(&table, 1), ActorPhase::Alive { .. }));

    let mut table = waiting_again();
    table.on_placed(actor(1), node(2), &mut out);
    table.on_alive(&incarnation(1, 1, 0), address(node(1)), 1, &mut out);
    assert_eq!(kills(&out), [incarnation(1, 1, 0)]);

    // That it died arrives before that it lived.
    let mut table = waiting_again();
    out.clear();
    table.on_died(&incarnation(1, 1, 0), died(DeathKind::ProcessExited), at(2), &mut out);
    table.on_alive(&incarnation(1, 1, 0), address(node(1)), 1, &mut out);
    assert!(matches!(phase(&table, 1), ActorPhase::Waiting { .. }));
    assert_eq!(kills(&out), [incarnation(1, 1, 0)]);
}

#[test]
fn a_late_answer_to_an_order_given_back_says_nothing_about_the_next_one() {
    let mut table = ActorTable::new(10);
    let mut out = Vec::new();
    table.register(spec(1, MaxRestarts::Times(0)), &mut out).unwrap();
    table.on_placed(actor(1), node(1), &mut out);
    let first = version(&table, 1);
    table.on_died(&incarnation(1, 1, 0), died(DeathKind::Unschedulable), at(1), &mut out);
    table.on_placed(actor(1), node(1), &mut out);
    assert!(!table.on_create_acknowledged(&incarnation(1, 1, 0), first));
    assert_eq!(table.outstanding(node(1)).len(), 1);
    acknowledge(&mut table, incarnation(1, 1, 0));
    assert_eq!(table.outstanding(node(1)), []);
}

#[test]
fn a_reason_to_wait_is_told_once() {
    let mut table = ActorTable::new(10);
    let mut out = Vec::new();
    table.register(spec(1, MaxRestarts::Times(0)), &mut out).unwrap();
    out.clear();
    table.on_unplaced(actor(1), "no gizmo", &mut out);
    table.on_unplaced(actor(1), "no gizmo", &mut out);
    let [ActorEffect::Changed(info)] = &out[..] else { panic!("{out:?}") };
    assert_eq!(info.phase, ActorPhase::Waiting { reason: "no gizmo".to_owned() });
    let cause = DeathCause::new(DeathKind::Unschedulable, "its node is gone");
    table.on_unplaceable(actor(1), cause, at(1), &mut out);
    assert_dead(&table, 1, DeathKind::Unschedulable);
}

#[test]
fn the_dead_are_kept_to_a_bound() {
    let mut table = ActorTable::new(2);
    let mut out = Vec::new();
    for n in 1..=5 {
        table.register(spec(n, MaxRestarts::Times(0)), &mut out).unwrap();
        table.kill(actor(n), true, died(DeathKind::Killed), at(u64::from(n)), &mut out).unwrap();
        table.check_invariants();
    }
    let kept: Vec<_> = table.iter().map(|info| info.actor_id).collect();
    assert_eq!(kept, [actor(4), actor(5)]);
    assert_eq!(out.iter().filter(|effect| matches!(effect, ActorEffect::Forget(_))).count(), 3);
}

#[test]
fn a_restored_table_repeats_what_nobody_acknowledged() {
    let mut table = with_living_actor(MaxRestarts::Unlimited);
    let mut out = Vec::new();
    for n in 2..=4 {
        table.register(spec(n, MaxRestarts::Times(0)), &mut out).unwrap();
    }
    table.on_placed(actor(2), node(1), &mut out);
    acknowledge(&mut table, incarnation(2, 1, 0));
    table.kill(actor(4), true, died(DeathKind::Killed), at(3), &mut out).unwrap();
    table.kill(actor(1), false, died(DeathKind::Killed), at(3), &mut out).unwrap();

    let mut restored = ActorTable::new(10);
    for info in table.iter() {
        let spec = table.spec(&info.actor_id).map(|spec| ActorSpec::clone(spec));
        assert!(restored.restore(ActorInfo::clone(info), spec));
    }
    restored.restore_kill(KillOrder { target: incarnation(1, 1, 0), cause: died(DeathKind::Killed) });
    out.clear();
    restored.finish_restore(&mut out);
    restored.check_invariants();
    assert_eq!(out, [ActorEffect::Schedule(actor(3))]);
    let [NodeOrder::Create(create), NodeOrder::Kill(kill)] = &restored.outstanding(node(1))[..] else {
        panic!("{:?}", restored.outstanding(node(1)))
    };
    assert_eq!((create.target, kill.target), (incarnation(2, 1, 0), incarnation(1, 1, 0)));
    assert!(restored.iter().eq(table.iter()));
}

/// Something that happens to the table; numbers pick actors, nodes and incarnations, present or past.
#[derive(Debug, Clone)]
enum Step {
    Register { actor: u8, named: bool, max_restarts: i8, detached: bool },
    Placed(u8, u8),
    Unplaced(u8),
    Acknowledged(u8, bool),
    Refused(u8, bool),
    Alive(u8, bool),
    Died(u8, bool, DeathKind),
    Kill(u8, bool),
    KillAcknowledged(u8),
    NodeDead(u8),
    JobFinished,
}

const KINDS: [DeathKind; 10] = [
    DeathKind::ProcessExited,
    DeathKind::CreationFailed,
    DeathKind::Killed,
    DeathKind::JobFinished,
    DeathKind::NodeDied,
    DeathKind::OutOfScope,
    DeathKind::ExitedByUser,
    DeathKind::Unschedulable,
    DeathKind::RuntimeEnvSetupFailed,
    DeathKind::OutOfMemory,
];

fn any_step() -> impl Strategy<Value = Step> {
    let a = 0u8..4;
    prop_oneof![
        3 => (a.clone(), any::<bool>(), -1i8..3, any::<bool>())
            .prop_map(|(actor, named, max_restarts, detached)| Step::Register { actor, named, max_restarts, detached }),
        6 => (a.clone(), 0u8..3).prop_map(|(a, n)| Step::Placed(a, n)),
        1 => a.clone().prop_map(Step::Unplaced),
        3 => (a.clone(), any::<bool>()).prop_map(|(a, late)| Step::Acknowledged(a, late)),
        1 => (a.clone(), any::<bool>()).prop_map(|(a, late)| Step::Refused(a, late)),
        6 => (a.clone(), any::<bool>()).prop_map(|(a, late)| Step::Alive(a, late)),
        4 => (a.clone(), any::<bool>(), prop::sample::select(KINDS.to_vec()))
            .prop_map(|(a, late, kind)| Step::Died(a, late, kind)),
        2 => (a.clone(), any::<bool>()).prop_map(|(a, for_good)| Step::Kill(a, for_good)),
        2 => a.prop_map(Step::KillAcknowledged),
        1 => (0u8..3).prop_map(Step::NodeDead),
        1 => Just(Step::JobFinished),
    ]
}

/// What the outside has seen of the table, and what follows from it.
#[derive(Default)]
struct Witness {
    seen: BTreeMap<ActorId, ActorInfo>,
    /// Actors that a node is being looked for.
    scheduled: BTreeSet<ActorId>,
    specs: BTreeSet<ActorId>,
    kills: BTreeSet<Incarnation>,
    /// Every incarnation that was ever ordered.
    ordered: Vec<Incarnation>,
}

impl Witness {
    fn watch(&mut self, effects: Vec<ActorEffect>) -> Result<(), TestCaseError> {
        for effect in effects {
            match effect {
                ActorEffect::SaveSpec(spec) => prop_assert!(self.specs.insert(spec.actor_id)),
                ActorEffect::DropSpec(actor_id) => prop_assert!(self.specs.remove(&actor_id)),
                ActorEffect::Changed(info) => self.watch_change(&info)?,
                ActorEffect::Forget(actor_id) => {
                    let last = self.seen.remove(&actor_id);
                    prop_assert!(last.is_some_and(|info| info.phase.is_dead()));
                }
                ActorEffect::Schedule(actor_id) => drop(self.scheduled.insert(actor_id)),
                ActorEffect::CreateOnNode(order) => self.ordered.push(order.target),
                ActorEffect::KillOnNode(order) => prop_assert!(self.kills.insert(order.target)),
                ActorEffect::KillDone(target) => prop_assert!(self.kills.remove(&target)),
                ActorEffect::Settled(..) | ActorEffect::Vacated(..) | ActorEffect::GivenBack(_) => {}
            }
        }
        Ok(())
    }

    fn watch_change(&mut self, info: &ActorInfo) -> Result<(), TestCaseError> {
        if let Some(last) = self.seen.insert(info.actor_id, info.clone()) {
            prop_assert!(info.version > last.version);
            prop_assert!(info.num_restarts >= last.num_restarts);
            prop_assert!(!last.phase.is_dead(), "the dead stay dead");
        }
        if !matches!(info.phase, ActorPhase::Waiting { .. }) {
            self.scheduled.remove(&info.actor_id);
        }
        Ok(())
    }

    /// The last incarnation of this actor that was ordered, or the first one.
    fn target(&self, a: u8, late: bool) -> Incarnation {
        let mut all = self.ordered.iter().filter(|target| target.actor_id == actor(a));
        let target = if late { all.next() } else { all.next_back() };
        target.copied().unwrap_or_else(|| incarnation(a, 0, 0))
    }
}

fn apply(table: &mut ActorTable, witness: &Witness, step: Step, out: &mut Vec<ActorEffect>) {
    match step {
        Step::Register { actor, named, max_restarts, detached } => {
            let max_restarts = u64::try_from(max_restarts).map_or(MaxRestarts::Unlimited, MaxRestarts::Times);
            let name = named.then(|| "bob".to_owned());
            let registered = table.register(ActorSpec { name, detached, ..spec(actor, max_restarts) }, out);
            assert!(matches!(registered, Ok(_) | Err(ActorError::NameTaken { .. })));
        }
        Step::Placed(a, n) => table.on_placed(actor(a), node(n), out),
        Step::Unplaced(a) => table.on_unplaced(actor(a), "full", out),
        Step::Acknowledged(a, late) => {
            let version = if late { 0 } else { version(table, a) };
            table.on_create_acknowledged(&witness.target(a, late), version);
        }
        Step::Refused(a, late) => {
            let version = if late { 0 } else { version(table, a) };
            table.on_create_refused(&witness.target(a, late), version, "no", at(1), out);
        }
        Step::Alive(a, late) => {
            let target = witness.target(a, late);
            table.on_alive(&target, address(target.node_id), 1, out);
        }
        Step::Died(a, late, kind) => table.on_died(&witness.target(a, late), died(kind), at(1), out),
        Step::Kill(a, for_good) => drop(table.kill(actor(a), for_good, died(DeathKind::Killed), at(1), out)),
        Step::KillAcknowledged(a) => table.on_kill_acknowledged(&witness.target(a, false), out),
        Step::NodeDead(n) => table.on_node_dead(node(n), "fire", at(1), out),
        Step::JobFinished => table.on_job_finished(job(0), at(1), out),
    }
}

proptest! {
    #[test]
    fn whatever_happens_no_actor_is_lost(steps in prop::collection::vec(any_step(), 0..120)) {
        let mut table = ActorTable::new(2);
        let mut witness = Witness::default();
        for step in steps {
            let dead_node = match step { Step::NodeDead(n) => Some(node(n)), _ => None };
            let mut out = Vec::new();
            apply(&mut table, &witness, step, &mut out);
            witness.watch(out)?;
            table.check_invariants();

            // What the outside saw is what is there, and whoever waits is being looked a node for.
            let seen: Vec<_> = witness.seen.values().cloned().collect();
            let there: Vec<_> = table.iter().map(|info| ActorInfo::clone(info)).collect();
            prop_assert_eq!(seen, there);
            for info in table.iter() {
                let waits = matches!(info.phase, ActorPhase::Waiting { .. });
                prop_assert_eq!(waits, witness.scheduled.contains(&info.actor_id));
                prop_assert_eq!(!info.phase.is_dead(), witness.specs.contains(&info.actor_id));
                prop_assert!(dead_node.is_none() || info.phase.node_id() != dead_node);
            }
            let outstanding: BTreeSet<_> = (0..3)
                .flat_map(|n| table.outstanding(node(n)))
                .filter_map(|order| match order {
                    NodeOrder::Kill(order) => Some(order.target),
                    NodeOrder::Create(..) | NodeOrder::Bundles(..) => None,
                })
                .collect();
            prop_assert_eq!(&outstanding, &witness.kills);
        }
    }
}

#[test]
fn a_stillborn_actor_is_dead_from_the_start_and_takes_no_name() {
    let (mut table, mut out) = (ActorTable::new(10), Vec::new());
    let named = |n| ActorSpec { name: Some("one".to_owned()), ..spec(n, MaxRestarts::Times(0)) };
    table.register(named(1), &mut out).unwrap();
    out.clear();
    table.register_stillborn(named(2), died(DeathKind::CreationFailed), at(0), &mut out);
    assert!(!out.iter().any(|effect| matches!(effect, ActorEffect::Schedule(_))), "{out:?}");
    assert!(matches!(table.get(&actor(2)).unwrap().phase, ActorPhase::Dead { .. }));
    assert_eq!(table.by_name("space", "one").unwrap().actor_id, actor(1));
    // What lives is not buried by it.
    table.register_stillborn(named(1), died(DeathKind::CreationFailed), at(0), &mut out);
    assert!(!matches!(table.get(&actor(1)).unwrap().phase, ActorPhase::Dead { .. }));
    table.check_invariants();
}
