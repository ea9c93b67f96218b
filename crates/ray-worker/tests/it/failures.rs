use ray_core::config::WorkerConfig;
use ray_worker::value::Failure;

use crate::front::{Call, Ref};
use crate::world::{World, eventually, kill};

/// A driver that takes no message of more than 64 KiB.
fn narrow() -> WorkerConfig {
    WorkerConfig { max_frame_bytes: 1 << 16, inline_limit_bytes: 1 << 10, ..WorkerConfig::default() }
}

#[test]
fn a_task_whose_worker_is_lost_is_tried_again_elsewhere() {
    let world = World::start(1.0);
    let driver = world.driver();
    let gate = world.gate("gate");
    let task = driver.submit(Call::new("gate").value(gate.path()).retries(3));
    kill(gate.wait_for_begun(1)[0]);
    let begun = gate.wait_for_begun(2);
    assert_ne!(begun[0], begun[1]);
    gate.open();
    assert_eq!(driver.get(&task).text(), "passed");
}

#[test]
fn when_no_retry_is_left_the_error_says_how_the_worker_ended() {
    let world = World::start(1.0);
    let driver = world.driver();
    let gate = world.gate("gate");
    let task = driver.submit(Call::new("crash_before").value(gate.path()).value("9").retries(2));
    let dependent = driver.submit(Call::new("echo").reference(&task));
    let Failure::WorkerCrashed { task_id, name, cause, .. } = driver.failure(&task) else {
        panic!("the worker crashed");
    };
    assert_eq!((task_id, name.as_str()), (task.id.task_id(), "crash_before"));
    assert_eq!(cause, "its process was killed by signal 9 (SIGKILL) (after 2 retries)");
    assert!(
        matches!(driver.failure(&dependent), Failure::WorkerCrashed { task_id, .. } if task_id == task.id.task_id())
    );
    assert_eq!(gate.begun().len(), 3);
    drop([task, dependent]);
    driver.wait_for_no_references();
    eventually("the return of the leases", || (driver.free_cpus() == 1.0).then_some(()));
}

#[test]
fn a_crash_costs_only_the_task_that_ran() {
    let world = World::start(1.0);
    let driver = world.driver();
    for round in 0..10 {
        let gate = world.gate(&format!("gate{round}"));
        let echo = |number: usize| driver.submit(Call::new("echo").value(number.to_string()));
        // Known to be short, so that many are sent ahead.
        let warm: Vec<Ref> = (0..20).map(echo).collect();
        warm.iter().for_each(|task| drop(driver.get(task)));
        let before: Vec<Ref> = (0..20).map(echo).collect();
        let retriable = round % 2 * 3;
        let crash = Call::new("crash_before").value(gate.path()).value("9").retries(retriable);
        let crash = driver.submit(crash);
        let after: Vec<Ref> = (0..20).map(echo).collect();
        assert!(matches!(driver.failure(&crash), Failure::WorkerCrashed { .. }));
        for tasks in [&before, &after] {
            for (number, task) in tasks.iter().enumerate() {
                assert_eq!(driver.get(task).number(), number as u64);
            }
        }
        assert_eq!(gate.begun().len() as i64, 1 + retriable);
    }
}

#[test]
fn objects_of_a_dead_owner_say_so() {
    let world = World::start(1.0);
    let driver = world.driver();
    let actor = driver.create(Call::new("holder")).unwrap();
    let pid = driver.get(&driver.call(actor, Call::new("pid"))).number();
    let small = driver.get(&driver.call(actor, Call::new("put").value("10"))).refs.remove(0);
    let large = driver.get(&driver.call(actor, Call::new("put").value("1000000"))).refs.remove(0);
    // Its value is known here, and lies where the node drops it.
    let known = driver.get(&driver.call(actor, Call::new("put").value("1000000"))).refs.remove(0);
    assert_eq!(driver.get(&known).data.len(), 1_000_000);
    let gate = world.gate("never");
    let pending = driver.get(&driver.call(actor, Call::new("submit_gate").value(gate.path()))).refs.remove(0);
    let dependent = driver.submit(Call::new("echo").reference(&pending));
    gate.wait_for_begun(1);
    let read = driver.submit(Call::new("read").holding("", &[&pending]));
    kill(pid);
    // Its worker may have come too late to hear how the owner ended.
    assert!(matches!(driver.failure(&read), Failure::OwnerDied { .. }));
    for object in [&small, &large, &pending, &dependent, &known] {
        let failure = driver.failure(object);
        let Failure::OwnerDied { cause, .. } = &failure else { panic!("{failure:?}") };
        assert_eq!(cause, "its process was killed by signal 9 (SIGKILL)");
    }
    let late = driver.submit(Call::new("length").reference(&known));
    assert!(matches!(driver.failure(&late), Failure::OwnerDied { .. }));
    world.wait_for_empty_store();
    drop([small, large, pending, dependent, read, known, late]);
    driver.wait_for_no_references();
}

#[test]
fn a_driver_that_leaves_takes_its_tasks_with_it() {
    let world = World::start(1.0);
    let gate = world.gate("never");
    let leaving = world.driver();
    let _running = leaving.submit(Call::new("gate").value(gate.path()));
    gate.wait_for_begun(1);
    leaving.core.shutdown(false);
    let driver = world.driver();
    assert_eq!(driver.get(&driver.submit(Call::new("echo").value("next"))).text(), "next");
}

/// The node held such a lease for taken, and its CPU was never seen again.
#[test]
fn a_worker_whose_connection_alone_was_lost_is_replaced() {
    let world = World::start(1.0);
    let driver = world.driver_with(narrow());
    // The worker takes it for small enough, the driver does not.
    let long = driver.submit(Call::new("large").value("90000").retries(1));
    assert!(matches!(driver.failure(&long), Failure::WorkerCrashed { .. }));
    let next = driver.submit(Call::new("echo").value("next"));
    assert_eq!(driver.get(&next).text(), "next");
    eventually("the return of all leases", || (driver.free_cpus() == 1.0).then_some(()));
}

/// Calls to such an actor waited for ever for news of its restart.
#[test]
fn an_actor_whose_connection_alone_was_lost_is_called_again() {
    let world = World::start(1.0);
    let driver = world.driver_with(narrow());
    let actor = driver.create(Call::new("holder")).unwrap();
    let before = driver.call(actor, Call::new("push").value("a"));
    let long = driver.call(actor, Call::new("large").value("90000"));
    let after = driver.call(actor, Call::new("push").value("b").retries(1));
    assert_eq!(driver.get(&before).number(), 1);
    assert!(matches!(driver.failure(&long), Failure::ActorUnavailable { .. }));
    // Tried again, though it had run already.
    assert!([2, 3].contains(&driver.get(&after).number()));
    assert!(driver.get(&driver.call(actor, Call::new("log"))).text().starts_with("a,b"));
}

#[test]
fn arguments_that_no_message_can_carry_are_refused_by_name() {
    let world = World::start(1.0);
    let driver = world.driver_with(narrow());
    let actor = driver.create(Call::new("holder")).unwrap();
    let long = || Call::new("push").value(vec![0; 70_000]);
    for object in [driver.submit(long()), driver.call(actor, long())] {
        let Failure::System(text) = driver.failure(&object) else { panic!("it is refused") };
        assert!(text.contains("push") && text.contains("65536"), "{text}");
    }
    assert_eq!(driver.get(&driver.call(actor, Call::new("push").value("a"))).number(), 1);
    assert_eq!(driver.get(&driver.submit(Call::new("echo").value("next"))).text(), "next");
}
