use std::collections::BTreeSet;
use std::path::Path;

use ray_worker::value::Failure;

use crate::front::{Call, Ref, Value};
use crate::world::{World, eventually};

#[test]
fn a_task_runs_and_its_value_comes_back() {
    let world = World::start(1.0);
    let driver = world.driver();
    let echo = driver.submit(Call::new("echo").value("hello"));
    assert_eq!(driver.get(&echo).text(), "hello");
    drop(echo);
    driver.wait_for_no_references();
    eventually("the return of the lease", || (driver.free_cpus() == 1.0).then_some(()));
}

#[test]
fn many_tasks_return_each_its_own_value() {
    let world = World::start(2.0);
    let driver = world.driver();
    let tasks: Vec<Ref> =
        (0..3000).map(|number| driver.submit(Call::new("echo").value(number.to_string()))).collect();
    for (number, task) in tasks.iter().enumerate() {
        assert_eq!(driver.get(task).number(), number as u64);
    }
}

#[test]
fn tasks_may_depend_on_tasks_and_on_what_was_put() {
    let world = World::start(2.0);
    let driver = world.driver();
    let one = driver.put(&Value::new("1")).unwrap();
    let mut last = one.clone();
    for _ in 0..300 {
        last = driver.submit(Call::new("sum").reference(&last).reference(&one));
    }
    assert_eq!(driver.get(&last).number(), 301);
    let both = driver.submit(Call::new("sum").reference(&last).reference(&last).value("8"));
    assert_eq!(driver.get(&both).number(), 610);
}

#[test]
fn one_task_may_return_several_objects() {
    let world = World::start(1.0);
    let driver = world.driver();
    let objects = driver.submit_many(Call::new("echo").value("x").returns(5));
    assert_eq!(objects.len(), 5);
    for object in &objects {
        assert_eq!(driver.get(object).text(), "x");
    }
}

#[test]
fn a_failure_reaches_its_caller_and_whatever_depends_on_it() {
    let world = World::start(2.0);
    let driver = world.driver();
    let gate = world.gate("gate");
    let held_up = driver.submit(Call::new("gate").value(gate.path()));
    let failed = driver.submit(Call::new("fail").value("no").retries(3));
    let early = driver.submit(Call::new("sum").reference(&held_up).reference(&failed));
    let raised = Failure::Raised("no".into());
    assert_eq!(driver.failure(&failed), raised);
    let late = driver.submit(Call::new("echo").reference(&failed));
    let later = driver.submit(Call::new("echo").reference(&late));
    assert_eq!((driver.failure(&late), driver.failure(&later)), (raised.clone(), raised.clone()));
    gate.open();
    assert_eq!(driver.failure(&early), raised);
    drop([held_up, failed, early, late, later]);
    driver.wait_for_no_references();
}

#[test]
fn an_exception_is_tried_again_only_if_asked() {
    let world = World::start(1.0);
    let driver = world.driver();
    let once = driver.submit(Call::new("fail_at_first").retries(3));
    assert_eq!(driver.failure(&once), Failure::Raised("at first".into()));
    let again = driver.submit(Call::new("fail_at_first").retries(1).retry_exceptions());
    assert_eq!(driver.get(&again).number(), 1);
    let in_vain = driver.submit(Call::new("fail").value("always").retries(2).retry_exceptions());
    assert_eq!(driver.failure(&in_vain), Failure::Raised("always".into()));
    let listed = driver.submit(Call::new("fail_at_first").retries(1).retry_exception("at first"));
    assert_eq!(driver.get(&listed).number(), 1);
    let other = driver.submit(Call::new("fail_at_first").retries(1).retry_exception("another"));
    assert_eq!(driver.failure(&other), Failure::Raised("at first".into()));
}

fn has_ended(pid: u64) -> Option<()> {
    (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
}

#[test]
fn a_process_ends_after_the_calls_that_it_may_run_and_those_behind_run_elsewhere() {
    let world = World::start(1.0);
    let driver = world.driver();
    let pids: Vec<_> = (0..12).map(|_| driver.submit(Call::new("pid").max_calls(2))).collect();
    let pids: Vec<u64> = pids.iter().map(|object| driver.get(object).number()).collect();
    let different: BTreeSet<_> = pids.iter().collect();
    assert_eq!(different.len(), 6, "{pids:?}");
    for pid in different {
        eventually("the end of the process", || has_ended(*pid));
    }
}

#[test]
fn a_process_that_has_run_its_calls_stays_as_long_as_it_owns_what_others_need() {
    let world = World::start(1.0);
    let driver = world.driver();
    let pid = driver.get(&driver.submit(Call::new("pid"))).number();
    let made = driver.get(&driver.submit(Call::new("put").value("10").max_calls(1)));
    assert_ne!(driver.get(&driver.submit(Call::new("pid"))).number(), pid);
    assert_eq!(driver.get(&made.refs[0]).data, [5; 10]);
    drop(made);
    eventually("the end of the process", || has_ended(pid));
}

#[test]
fn a_task_that_its_process_has_not_begun_is_cancelled_by_force_without_harm_to_the_one_that_runs() {
    let world = World::start(1.0);
    let driver = world.driver();
    // Short, so that several are sent at once.
    for object in (0..20).map(|_| driver.submit(Call::new("echo").value("x"))).collect::<Vec<_>>() {
        driver.get(&object);
    }
    let gate = world.gate("gate");
    let running = driver.submit(Call::new("gate").value(gate.path()));
    let behind: Vec<_> = (0..5).map(|_| driver.submit(Call::new("echo").value("x"))).collect();
    for object in &behind {
        driver.cancel(object, true);
    }
    gate.open();
    assert_eq!(driver.get(&running).text(), "passed");
    for object in &behind {
        assert_eq!(driver.failure(object), Failure::Cancelled(object.id.task_id()));
    }
}

#[test]
fn a_queued_task_can_be_cancelled_and_never_runs() {
    let world = World::start(1.0);
    let driver = world.driver();
    let (gate, never_opened) = (world.gate("gate"), world.gate("never"));
    let running = driver.submit(Call::new("gate").value(gate.path()));
    gate.wait_for_begun(1);
    let queued = driver.submit(Call::new("gate").value(never_opened.path()).retries(5));
    let dependent = driver.submit(Call::new("echo").reference(&queued));
    let waiting = driver.submit(Call::new("echo").reference(&running));
    assert!(driver.cancel(&queued, false));
    assert!(driver.cancel(&waiting, false));
    assert!(!driver.cancel(&queued, false), "it is pending no more");
    let cancelled = Failure::Cancelled(queued.id.task_id());
    assert_eq!(driver.failure(&queued), cancelled);
    assert_eq!(driver.failure(&dependent), cancelled);
    assert_eq!(driver.failure(&waiting), Failure::Cancelled(waiting.id.task_id()));
    gate.open();
    assert_eq!(driver.get(&running).text(), "passed");
    assert!(never_opened.begun().is_empty());
}

#[test]
fn a_task_that_was_sent_ahead_can_be_cancelled_whoever_has_it() {
    let world = World::start(1.0);
    let driver = world.driver();
    for round in 0..10 {
        // Short tasks let the next ones be sent ahead; the gate then has them given back.
        for number in 0..20 {
            driver.get(&driver.submit(Call::new("echo").value(number.to_string())));
        }
        let (gate, never_opened) =
            (world.gate(&format!("gate{round}")), world.gate(&format!("never{round}")));
        let running = driver.submit(Call::new("gate").value(gate.path()));
        let ahead = driver.submit(Call::new("gate").value(never_opened.path()).retries(5));
        assert!(driver.cancel(&ahead, false));
        assert_eq!(driver.failure(&ahead), Failure::Cancelled(ahead.id.task_id()));
        gate.open();
        assert_eq!(driver.get(&running).text(), "passed");
        assert!(never_opened.begun().is_empty());
    }
}

#[test]
fn a_running_task_is_cancelled_by_force() {
    let world = World::start(1.0);
    let driver = world.driver();
    let gate = world.gate("never");
    let running = driver.submit(Call::new("gate").value(gate.path()).retries(5));
    gate.wait_for_begun(1);
    assert!(driver.cancel(&running, true));
    assert_eq!(driver.failure(&running), Failure::Cancelled(running.id.task_id()));
    let next = driver.submit(Call::new("echo").value("next"));
    assert_eq!(driver.get(&next).text(), "next");
    assert_eq!(gate.begun().len(), 1);
}

#[test]
fn what_no_node_has_is_told_and_blocks_nobody_else() {
    let world = World::start(1.0);
    let driver = world.driver();
    let infeasible = driver.submit(Call::new("echo").value("never").gizmos(2.0));
    let warning = driver.warning();
    assert!(warning.contains("gizmo"), "{warning}");
    let feasible = driver.submit(Call::new("echo").value("now"));
    assert_eq!(driver.get(&feasible).text(), "now");
    assert!(driver.cancel(&infeasible, false));
    assert_eq!(driver.failure(&infeasible), Failure::Cancelled(infeasible.id.task_id()));
}

#[test]
fn tasks_of_another_shape_get_the_resources_that_idle_leases_hold() {
    let world = World::start(1.0);
    let driver = world.driver();
    for round in 0..20 {
        let (cpus, text) = (if round % 2 == 0 { 1.0 } else { 0.5 }, round.to_string());
        let task = driver.submit(Call::new("echo").value(text.clone()).cpus(cpus));
        assert_eq!(driver.get(&task).text(), text);
    }
}

#[test]
fn two_drivers_share_the_node() {
    let world = World::start(1.0);
    let (one, other) = (world.driver(), world.driver());
    let tasks: Vec<(Ref, Ref)> = (0..50)
        .map(|number| {
            let call = || Call::new("echo").value(number.to_string());
            (one.submit(call()), other.submit(call()))
        })
        .collect();
    for (number, (task, same)) in tasks.iter().enumerate() {
        assert_eq!((one.get(task).number(), other.get(same).number()), (number as u64, number as u64));
    }
}
