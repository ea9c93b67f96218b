//! All machines of the dispatcher together: what a class, its leases and its demand do at each event, and random programs
//! against a made-up node and its workers.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::strategy::Strategy;
use ray_core::resource::Resources;

use super::lease::TURN;
use super::pace::WINDOW;
use super::*;

const IDLE: Duration = Duration::from_millis(50);

pub(super) fn task(number: u32) -> TaskId {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    TaskId::from_bytes(bytes)
}

pub(super) fn lease(number: u8) -> LeaseId {
    LeaseId::from_bytes([number; 16])
}

fn dispatcher() -> (Dispatcher, u64, Instant) {
    let mut dispatcher = Dispatcher::new(256, IDLE);
    let class = dispatcher.class_of(&Resources::new().with_cpu(1.0).unwrap().into(), &RuntimeEnv::none());
    (dispatcher, class, Instant::now())
}

fn sent(actions: &[Action]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Send { .. })).count()
}

#[test]
fn a_first_task_asks_for_a_lease_and_goes_out_on_it() {
    let (mut dispatcher, class, now) = dispatcher();
    let mut out = Vec::new();
    dispatcher.enqueue(class, task(1), false, &mut out);
    assert_eq!(out, [Action::SetDemand { class, node: None, target: 1 }]);
    out.clear();
    dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
    assert_eq!(out, [Action::Send { lease_id: lease(1), task_id: task(1) }]);
}

#[test]
fn a_lease_holds_one_task_until_they_are_known_to_be_short() {
    let (mut dispatcher, class, now) = dispatcher();
    let mut out = Vec::new();
    for number in 0..1000 {
        dispatcher.enqueue(class, task(number), false, &mut out);
    }
    out.clear();
    dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
    assert_eq!(sent(&out), 1);
    out.clear();
    dispatcher.on_reply(lease(1), task(0), 10, now, &mut out);
    assert_eq!(sent(&out), 201);
}

#[test]
fn long_tasks_are_held_one_ahead_at_most() {
    let (mut dispatcher, class, now) = dispatcher();
    let mut out = Vec::new();
    dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
    dispatcher.enqueue(class, task(0), false, &mut out);
    dispatcher.on_reply(lease(1), task(0), 50_000, now, &mut out);
    out.clear();
    for number in 1..10 {
        dispatcher.enqueue(class, task(number), false, &mut out);
    }
    assert_eq!(sent(&out), 1);
}

#[test]
fn what_is_given_back_goes_elsewhere() {
    let (mut dispatcher, class, now) = dispatcher();
    let mut out = Vec::new();
    dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
    dispatcher.enqueue(class, task(0), false, &mut out);
    dispatcher.on_reply(lease(1), task(0), 1, now, &mut out);
    for number in 1..4 {
        dispatcher.enqueue(class, task(number), false, &mut out);
    }
    out.clear();
    dispatcher.on_given_back(lease(1), &[task(2), task(3)], now, &mut out);
    dispatcher.enqueue(class, task(3), true, &mut out);
    dispatcher.enqueue(class, task(2), true, &mut out);
    assert_eq!(sent(&out), 0, "the stalled lease gets nothing: {out:?}");
    assert!(matches!(out.last(), Some(Action::SetDemand { target: 3, .. })), "{out:?}");
    out.clear();
    dispatcher.on_lease_granted(class, None, lease(2), now, &mut out);
    assert_eq!(out[0], Action::Send { lease_id: lease(2), task_id: task(2) });
}

#[test]
fn an_idle_lease_goes_back_in_time_or_when_others_wait() {
    let (mut dispatcher, class, now) = dispatcher();
    let mut out = Vec::new();
    dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
    dispatcher.on_lease_granted(class, None, lease(2), now, &mut out);
    dispatcher.enqueue(class, task(0), false, &mut out);
    out.clear();
    assert_eq!(dispatcher.next_deadline(), Some(now + IDLE));
    dispatcher.tick(now + IDLE - Duration::from_nanos(1), &mut out);
    assert_eq!(out, []);
    dispatcher.tick(now + IDLE, &mut out);
    assert_eq!(out.iter().filter(|action| matches!(action, Action::Return { .. })).count(), 1);
    out.clear();
    let busy = if dispatcher.lease_of(task(0)) == Some(lease(1)) { lease(1) } else { lease(2) };
    dispatcher.on_contention(class, None, true, now, &mut out);
    assert_eq!(out, []);
    dispatcher.on_reply(busy, task(0), 1, now, &mut out);
    assert_eq!(out, [Action::SetDemand { class, node: None, target: 0 }, Action::Return { lease_id: busy }]);
}

#[test]
fn a_worker_that_leaves_ends_its_lease_and_what_it_did_not_start_comes_back() {
    let (mut dispatcher, class, now) = dispatcher();
    let mut out = Vec::new();
    dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
    dispatcher.enqueue(class, task(0), false, &mut out);
    dispatcher.on_reply(lease(1), task(0), 1, now, &mut out);
    for number in 1..4 {
        dispatcher.enqueue(class, task(number), false, &mut out);
    }
    out.clear();
    assert_eq!(dispatcher.on_last_reply(lease(1), task(1), 1, &mut out), [task(2), task(3)]);
    let ended = [Action::SetDemand { class, node: None, target: 0 }, Action::Retire { lease_id: lease(1) }];
    assert_eq!(out, ended);
    out.clear();
    for number in [3, 2] {
        dispatcher.enqueue(class, task(number), true, &mut out);
    }
    assert_eq!(
        out,
        [
            Action::SetDemand { class, node: None, target: 1 },
            Action::SetDemand { class, node: None, target: 2 }
        ]
    );
    out.clear();
    dispatcher.on_lease_granted(class, None, lease(2), now, &mut out);
    assert_eq!(out[0], Action::Send { lease_id: lease(2), task_id: task(2) });
    assert_eq!(dispatcher.on_last_reply(lease(1), task(1), 1, &mut out), [], "twice is once");
}

/// Another process waited until this one had nothing left to do.
#[test]
fn a_contended_lease_goes_back_after_its_turn_whatever_waits_here() {
    let (mut dispatcher, class, now) = dispatcher();
    let mut out = Vec::new();
    for number in 0..10 {
        dispatcher.enqueue(class, task(number), false, &mut out);
    }
    dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
    dispatcher.on_contention(class, None, true, now, &mut out);
    // One by one, for they take longer than a lease is filled for.
    let slow = WINDOW.as_micros() as u32 + 1;
    out.clear();
    dispatcher.on_reply(lease(1), task(0), slow, now + TURN - Duration::from_nanos(1), &mut out);
    assert_eq!(out, [Action::Send { lease_id: lease(1), task_id: task(1) }], "its turn is not over");
    out.clear();
    dispatcher.on_reply(lease(1), task(1), slow, now + TURN, &mut out);
    let again = Action::SetDemand { class, node: None, target: 8 };
    let returned =
        [Action::SetDemand { class, node: None, target: 0 }, Action::Return { lease_id: lease(1) }];
    assert_eq!(out, [&returned[..], &[again]].concat());
    out.clear();
    dispatcher.on_lease_granted(class, None, lease(2), now + TURN, &mut out);
    assert_eq!(sent(&out), 1, "it goes on when it is its turn again");
}

#[test]
fn a_lease_that_was_to_leave_stays_if_nobody_waits_any_more() {
    let (mut dispatcher, class, now) = dispatcher();
    let mut out = Vec::new();
    for number in 0..5 {
        dispatcher.enqueue(class, task(number), false, &mut out);
    }
    dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
    dispatcher.on_contention(class, None, true, now + TURN, &mut out);
    out.clear();
    dispatcher.on_contention(class, None, false, now + TURN, &mut out);
    dispatcher.on_reply(lease(1), task(0), 1, now + TURN, &mut out);
    assert_eq!(sent(&out), 4);
    assert!(!out.contains(&Action::Return { lease_id: lease(1) }));
}

#[test]
fn what_waits_goes_out_at_once_on_a_lease_that_was_to_leave_and_stays() {
    let (mut dispatcher, class, now) = dispatcher();
    let mut out = Vec::new();
    dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
    dispatcher.enqueue(class, task(0), false, &mut out);
    dispatcher.on_reply(lease(1), task(0), 1, now, &mut out);
    dispatcher.enqueue(class, task(1), false, &mut out);
    dispatcher.on_contention(class, None, true, now + TURN, &mut out);
    out.clear();
    dispatcher.enqueue(class, task(2), false, &mut out);
    assert_eq!(sent(&out), 0, "the lease leaves: {out:?}");
    out.clear();
    dispatcher.on_contention(class, None, false, now + TURN, &mut out);
    assert_eq!(out[0], Action::Send { lease_id: lease(1), task_id: task(2) });
}

#[test]
fn tasks_that_can_never_run_are_handed_out_and_later_ones_ask_again() {
    let (mut dispatcher, class, _) = dispatcher();
    let mut out = Vec::new();
    dispatcher.enqueue(class, task(1), false, &mut out);
    dispatcher.enqueue(class, task(2), false, &mut out);
    out.clear();
    assert_eq!(dispatcher.on_class_failed(class, None, &mut out), [task(1), task(2)]);
    assert_eq!(out, []);
    dispatcher.enqueue(class, task(3), false, &mut out);
    assert_eq!(out, [Action::SetDemand { class, node: None, target: 1 }]);
}

#[test]
fn a_lost_lease_names_its_tasks_in_order() {
    let (mut dispatcher, class, now) = dispatcher();
    let mut out = Vec::new();
    dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
    dispatcher.enqueue(class, task(0), false, &mut out);
    dispatcher.on_reply(lease(1), task(0), 1, now, &mut out);
    for number in 1..4 {
        dispatcher.enqueue(class, task(number), false, &mut out);
    }
    assert_eq!(dispatcher.on_lease_lost(lease(1), &mut out), [task(1), task(2), task(3)]);
    assert_eq!(dispatcher.next_deadline(), None);
}

const OTHER: NodeId = NodeId::from_bytes([7; 16]);

fn demand(node: Option<NodeId>, target: u32) -> Action {
    Action::SetDemand { class: 0, node, target }
}

#[test]
fn what_another_node_grants_serves_the_queue_and_raises_what_may_be_asked_there() {
    let (mut dispatcher, class, now) = dispatcher();
    let mut out = Vec::new();
    for number in 0..5 {
        dispatcher.enqueue(class, task(number), false, &mut out);
    }
    out.clear();
    dispatcher.on_elsewhere(class, &[(OTHER, Allowance::Waiting(2))], &mut out);
    assert_eq!(out, [demand(Some(OTHER), 2)], "what the own node was told stands");
    out.clear();
    dispatcher.on_lease_granted(class, Some(OTHER), lease(1), now, &mut out);
    assert_eq!(out, [Action::Send { lease_id: lease(1), task_id: task(0) }, demand(Some(OTHER), 3)]);
    out.clear();
    dispatcher.on_elsewhere(class, &[], &mut out);
    assert_eq!(out, [demand(Some(OTHER), 1)], "what is held there stays");
}

#[test]
fn a_grant_of_another_node_that_comes_too_late_goes_back_at_once() {
    let (mut dispatcher, class, now) = dispatcher();
    let mut out = Vec::new();
    dispatcher.enqueue(class, task(0), false, &mut out);
    dispatcher.on_elsewhere(class, &[(OTHER, Allowance::Waiting(1))], &mut out);
    out.clear();
    dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
    assert_eq!(out[1..], [demand(Some(OTHER), 0)], "nothing waits any more");
    out.clear();
    dispatcher.on_lease_granted(class, Some(OTHER), lease(2), now, &mut out);
    assert_eq!(out.last(), Some(&Action::Return { lease_id: lease(2) }));
    assert!(!out.contains(&demand(None, 0)), "the other node's grant is no matter of the own one: {out:?}");
}

#[test]
fn contention_is_a_matter_of_one_node() {
    let (mut dispatcher, class, now) = dispatcher();
    let mut out = Vec::new();
    dispatcher.enqueue(class, task(0), false, &mut out);
    dispatcher.enqueue(class, task(1), false, &mut out);
    dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
    dispatcher.on_lease_granted(class, Some(OTHER), lease(2), now, &mut out);
    out.clear();
    dispatcher.on_contention(class, Some(OTHER), true, now, &mut out);
    dispatcher.on_reply(lease(1), task(0), 1, now, &mut out);
    assert_eq!(out, []);
    dispatcher.on_reply(lease(2), task(1), 1, now, &mut out);
    assert_eq!(out, [demand(Some(OTHER), 0), Action::Return { lease_id: lease(2) }]);
}

#[test]
fn a_lost_node_is_asked_for_nothing_and_its_tasks_go_elsewhere() {
    let (mut dispatcher, class, now) = dispatcher();
    let mut out = Vec::new();
    dispatcher.enqueue(class, task(0), false, &mut out);
    dispatcher.enqueue(class, task(1), false, &mut out);
    dispatcher.on_elsewhere(class, &[(OTHER, Allowance::Waiting(2))], &mut out);
    dispatcher.on_lease_granted(class, Some(OTHER), lease(1), now, &mut out);
    out.clear();
    dispatcher.on_node_lost(OTHER);
    for task_id in dispatcher.on_lease_lost(lease(1), &mut out) {
        dispatcher.enqueue(class, task_id, true, &mut out);
    }
    assert!(!out.iter().any(|action| matches!(action, Action::SetDemand { node: Some(_), .. })), "{out:?}");
    dispatcher.on_lease_granted(class, None, lease(2), now, &mut out);
    assert_eq!(dispatcher.lease_of(task(0)), Some(lease(2)));
}

#[test]
fn what_is_spread_is_told_to_the_own_node_as_a_whole_and_no_lease_of_it_is_kept() {
    let mut dispatcher = Dispatcher::new(256, IDLE);
    let shape = Shape::from(Resources::new().with_cpu(1.0).unwrap())
        .with_strategy(ray_core::constraint::Strategy::Spread);
    let class = dispatcher.class_of(&shape, &RuntimeEnv::none());
    let (mut out, now) = (Vec::new(), Instant::now());
    dispatcher.enqueue(class, task(0), false, &mut out);
    dispatcher.on_elsewhere(class, &[(OTHER, Allowance::Held(1))], &mut out);
    dispatcher.on_lease_granted(class, Some(OTHER), lease(1), now, &mut out);
    out.clear();
    dispatcher.enqueue(class, task(1), false, &mut out);
    assert_eq!(out, [demand(None, 2)], "one runs elsewhere, one waits");
    out.clear();
    dispatcher.on_reply(lease(1), task(0), 1, now, &mut out);
    assert_eq!(out, [Action::Send { lease_id: lease(1), task_id: task(1) }, demand(None, 1)]);
    out.clear();
    dispatcher.on_reply(lease(1), task(1), 1, now, &mut out);
    let returned = [demand(Some(OTHER), 0), Action::Return { lease_id: lease(1) }, demand(None, 0)];
    assert_eq!(out, returned);
}

#[derive(Debug, Clone)]
enum Event {
    Enqueue,
    Grant,
    GrantElsewhere,
    Elsewhere(u32, bool),
    Reply(usize, u32),
    GiveBack(usize, bool),
    Lose(usize),
    Leave(usize),
    Contend(bool),
    Tick(u64),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => Just(Event::Enqueue),
        3 => Just(Event::Grant),
        2 => Just(Event::GrantElsewhere),
        1 => (0u32..4, any::<bool>()).prop_map(|(count, all)| Event::Elsewhere(count, all)),
        6 => (any::<usize>(), 0u32..10_000).prop_map(|(pick, us)| Event::Reply(pick, us)),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(pick, keeps_one)| Event::GiveBack(pick, keeps_one)),
        1 => any::<usize>().prop_map(Event::Lose),
        1 => any::<usize>().prop_map(Event::Leave),
        1 => any::<bool>().prop_map(Event::Contend),
        1 => (0u64..100).prop_map(Event::Tick),
    ]
}

proptest! {
    #[test]
    fn every_task_is_sent_once_at_a_time_and_all_get_done(events in prop::collection::vec(any_event(), 0..200)) {
        let (mut dispatcher, class, mut now) = dispatcher();
        let mut running: Vec<(LeaseId, VecDeque<TaskId>)> = Vec::new();
        let (mut open, mut next, mut next_lease) = (BTreeSet::new(), 0u32, 0u8);
        // What each node was told, and the leases that are the other's.
        let (mut demand, mut abroad, mut of_other) = (0usize, 0usize, BTreeSet::new());
        let mut drain = events.into_iter();
        loop {
            let mut out = Vec::new();
            let draining = drain.len() == 0;
            let event = match drain.next() {
                Some(event) => event,
                None if open.is_empty() => break,
                // At the end the node grants what is asked, and workers do their work.
                None if running.iter().all(|(_, tasks)| tasks.is_empty()) => Event::Grant,
                None => Event::Reply(running.iter().position(|(_, tasks)| !tasks.is_empty()).unwrap(), 1),
            };
            match event {
                Event::Enqueue => {
                    open.insert(task(next));
                    dispatcher.enqueue(class, task(next), false, &mut out);
                    next += 1;
                }
                Event::GrantElsewhere if of_other.len() < abroad && next_lease < 255 => {
                    next_lease += 1;
                    of_other.insert(lease(next_lease));
                    running.push((lease(next_lease), VecDeque::new()));
                    dispatcher.on_lease_granted(class, Some(OTHER), lease(next_lease), now, &mut out);
                }
                Event::Elsewhere(count, all) => {
                    let allowance = if all { Allowance::Held(count) } else { Allowance::Waiting(count) };
                    dispatcher.on_elsewhere(class, &[(OTHER, allowance)], &mut out);
                }
                Event::Grant if running.len() - of_other.len() < demand && next_lease < 255 => {
                    next_lease += 1;
                    running.push((lease(next_lease), VecDeque::new()));
                    dispatcher.on_lease_granted(class, None, lease(next_lease), now, &mut out);
                }
                Event::Reply(pick, us) if !running.is_empty() => {
                    let at = pick % running.len();
                    let (lease_id, tasks) = &mut running[at];
                    let lease_id = *lease_id;
                    if let Some(task_id) = tasks.pop_front() {
                        open.remove(&task_id);
                        dispatcher.on_reply(lease_id, task_id, us, now, &mut out);
                    }
                }
                Event::GiveBack(pick, keeps_one) if !running.is_empty() => {
                    let at = pick % running.len();
                    let (lease_id, tasks) = &mut running[at];
                    // All of them, if the reply to the one that ran was faster.
                    let kept = if keeps_one { tasks.len().min(1) } else { 0 };
                    let back: Vec<TaskId> = tasks.drain(kept..).collect();
                    dispatcher.on_given_back(*lease_id, &back, now, &mut out);
                    for &task_id in back.iter().rev() {
                        dispatcher.enqueue(class, task_id, true, &mut out);
                    }
                }
                Event::Lose(pick) if !running.is_empty() => {
                    let (lease_id, tasks) = running.swap_remove(pick % running.len());
                    of_other.remove(&lease_id);
                    let lost = dispatcher.on_lease_lost(lease_id, &mut out);
                    prop_assert_eq!(&lost, &tasks);
                    for task_id in lost {
                        dispatcher.enqueue(class, task_id, true, &mut out);
                    }
                }
                Event::Leave(pick) if running.iter().any(|(_, tasks)| !tasks.is_empty()) => {
                    let busy = running.iter().filter(|(_, tasks)| !tasks.is_empty());
                    let lease_id = busy.cycle().nth(pick % 100).unwrap().0;
                    let tasks = &mut running.iter_mut().find(|(id, _)| *id == lease_id).unwrap().1;
                    let last = tasks.pop_front().unwrap();
                    open.remove(&last);
                    of_other.remove(&lease_id);
                    let unstarted = dispatcher.on_last_reply(lease_id, last, 1, &mut out);
                    prop_assert_eq!(&unstarted, &*tasks);
                    tasks.clear();
                    for task_id in unstarted.into_iter().rev() {
                        dispatcher.enqueue(class, task_id, true, &mut out);
                    }
                }
                Event::Contend(contended) => dispatcher.on_contention(class, None, contended, now, &mut out),
                Event::Tick(ms) => {
                    now += Duration::from_millis(ms);
                    dispatcher.tick(now, &mut out);
                }
                Event::GrantElsewhere => {}
                Event::Grant
                | Event::Reply(..)
                | Event::GiveBack(..)
                | Event::Lose(_)
                | Event::Leave(_) => {
                    prop_assert!(!draining, "tasks wait, but nothing is asked for them");
                }
            }
            for action in out {
                match action {
                    Action::Send { lease_id, task_id } => {
                        prop_assert!(open.contains(&task_id));
                        prop_assert!(running.iter().all(|(_, tasks)| !tasks.contains(&task_id)));
                        let (_, tasks) = running.iter_mut().find(|(id, _)| *id == lease_id).unwrap();
                        tasks.push_back(task_id);
                    }
                    Action::SetDemand { node: None, target, .. } => demand = target as usize,
                    Action::SetDemand { node: Some(_), target, .. } => abroad = target as usize,
                    Action::Return { lease_id } | Action::Retire { lease_id } => {
                        of_other.remove(&lease_id);
                        let at = running.iter().position(|(id, _)| *id == lease_id).unwrap();
                        prop_assert!(running[at].1.is_empty());
                        running.remove(at);
                    }
                }
            }
        }
        let mut out = Vec::new();
        dispatcher.tick(now + IDLE, &mut out);
        let returned = out.iter().filter(|action| matches!(action, Action::Return { .. })).count();
        prop_assert_eq!(returned, running.len(), "a lease without tasks goes back in time");
    }
}
