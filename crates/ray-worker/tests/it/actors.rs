use bytes::Bytes;
use ray_core::error::RayError;
use ray_core::id::ActorId;
use ray_worker::value::Failure;

use crate::front::{Call, Ref, never};
use crate::world::{Driver, World, eventually, kill};

fn call(driver: &Driver, actor: ActorId, call: Call) -> crate::front::Value {
    driver.get(&driver.call(actor, call))
}

#[track_caller]
fn death(driver: &Driver, object: &Ref) -> (String, Bytes) {
    match driver.failure(object) {
        Failure::ActorDied { cause, error, .. } => (cause, error),
        other => panic!("{other:?}"),
    }
}

#[test]
fn calls_run_in_the_order_in_which_they_are_made() {
    let world = World::start(2.0);
    let driver = world.driver();
    let actor = driver.create(Call::new("holder")).unwrap();
    let slow = |number: usize| driver.submit(Call::new("echo").value(number.to_string()));
    let calls: Vec<Ref> = (0..1000)
        .map(|number| {
            let push = Call::new("push");
            // Some wait for their argument, and those behind them wait with them.
            let push =
                if number % 50 == 7 { push.reference(&slow(number)) } else { push.value(number.to_string()) };
            driver.call(actor, push)
        })
        .collect();
    for (number, call) in calls.iter().enumerate() {
        assert_eq!(driver.get(call).number(), number as u64 + 1);
    }
    let expected: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
    assert_eq!(call(&driver, actor, Call::new("log")).text(), expected.join(","));
    drop(calls);
    driver.wait_for_no_references();
}

#[test]
fn a_call_whose_argument_failed_fails_alone() {
    let world = World::start(1.0);
    let driver = world.driver();
    let actor = driver.create(Call::new("holder")).unwrap();
    let failed = driver.submit(Call::new("fail").value("no"));
    let before = driver.call(actor, Call::new("push").value("a"));
    let dependent = driver.call(actor, Call::new("push").reference(&failed));
    let after = driver.call(actor, Call::new("push").value("b"));
    assert_eq!(driver.failure(&dependent), Failure::Raised("no".into()));
    assert_eq!((driver.get(&before).number(), driver.get(&after).number()), (1, 2));
}

#[test]
fn what_the_constructor_raised_reaches_every_caller() {
    let world = World::start(1.0);
    let driver = world.driver();
    let actor = driver.create(Call::new("broken").restarts(3)).unwrap();
    let early = driver.call(actor, Call::new("log"));
    let expected = ("its constructor raised".to_owned(), Bytes::from_static(b"the exception"));
    assert_eq!(death(&driver, &early), expected);
    let late = driver.call(actor, Call::new("log"));
    assert_eq!(death(&driver, &late), expected);
    eventually("the return of its CPU", || (driver.free_cpus() == 1.0).then_some(()));
}

/// Such an actor was never registered, and its callers waited for ever.
#[test]
fn an_actor_whose_argument_failed_is_dead() {
    let world = World::start(1.0);
    let driver = world.driver();
    let failed = driver.submit(Call::new("fail").value("no"));
    let actor = driver.create(Call::new("holder").reference(&failed)).unwrap();
    let early = driver.call(actor, Call::new("log"));
    let (cause, error) = death(&driver, &early);
    assert!(cause.contains("argument"), "{cause}");
    assert_eq!(error, "no");
    assert_eq!(death(&driver, &driver.call(actor, Call::new("log"))), (cause, error));
    drop((failed, early));
    driver.wait_for_no_references();
}

#[test]
fn a_killed_actor_is_dead_for_those_who_wait_and_those_who_come() {
    let world = World::start(1.0);
    let driver = world.driver();
    let gate = world.gate("never");
    let actor = driver.create(Call::new("holder").restarts(5)).unwrap();
    let running = driver.call(actor, Call::new("gate").value(gate.path()).retries(5));
    let waiting = driver.call(actor, Call::new("log").retries(5));
    gate.wait_for_begun(1);
    driver.core.kill_actor(actor, true, &mut never).unwrap();
    let late = driver.call(actor, Call::new("log"));
    for object in [&running, &waiting, &late] {
        assert_eq!(death(&driver, object).0, "it was killed by ray.kill");
    }
    driver.core.kill_actor(actor, true, &mut never).unwrap();
    drop([running, waiting, late]);
    driver.wait_for_no_references();
}

#[test]
fn an_actor_is_restarted_as_often_as_it_may_and_calls_are_retried_as_often_as_they_may() {
    let world = World::start(1.0);
    let driver = world.driver();
    let actor = driver.create(Call::new("holder").restarts(2)).unwrap();
    for round in 0..2 {
        let gate = world.gate(&format!("gate{round}"));
        let lost = driver.call(actor, Call::new("gate").value(gate.path()));
        let pid = gate.wait_for_begun(1)[0];
        let retried = driver.call(actor, Call::new("push").value("a").retries(1));
        let behind = driver.call(actor, Call::new("push").value("b").retries(-1));
        kill(pid);
        assert!(matches!(driver.failure(&lost), Failure::ActorUnavailable { .. }));
        assert_eq!((driver.get(&retried).number(), driver.get(&behind).number()), (1, 2));
        assert_eq!(call(&driver, actor, Call::new("log")).text(), "a,b", "a new process forgot the old one");
    }
    let crashed = driver.call(actor, Call::new("crash").retries(3));
    let behind = driver.call(actor, Call::new("log").retries(3));
    for object in [&crashed, &behind] {
        assert_eq!(death(&driver, object).0, "its process was killed by signal 9 (SIGKILL)");
    }
}

#[test]
fn an_actor_may_leave_by_itself() {
    let world = World::start(1.0);
    let driver = world.driver();
    let actor = driver.create(Call::new("holder").restarts(3)).unwrap();
    let before = driver.call(actor, Call::new("push").value("a"));
    let exit = driver.call(actor, Call::new("exit"));
    let after = driver.call(actor, Call::new("push").value("b"));
    assert_eq!(driver.get(&before).number(), 1);
    for object in [&exit, &after] {
        assert_eq!(death(&driver, object).0, "it has had enough");
    }
}

#[test]
fn a_name_is_taken_once_and_found_by_others() {
    let world = World::start(2.0);
    let driver = world.driver();
    let actor = driver.create(Call::new("holder").named("one")).unwrap();
    let error = driver.create(Call::new("holder").named("one")).unwrap_err();
    assert!(matches!(error, RayError::AlreadyExists { .. }), "{error}");
    let (found, class_name, _) = driver.core.named_actor("one", "test", &mut never).unwrap();
    assert_eq!((found, class_name.as_str()), (actor, "holder"));
    let error = driver.core.named_actor("two", "test", &mut never).unwrap_err();
    assert!(matches!(error, RayError::NotFound { .. }), "{error}");
}

#[test]
fn many_dead_actors_still_say_how_they_died() {
    let world = World::start(2.0);
    let driver = world.driver();
    let actors: Vec<ActorId> = (0..10).map(|_| driver.create(Call::new("broken")).unwrap()).collect();
    for _ in 0..2 {
        for &actor in &actors {
            assert_eq!(death(&driver, &driver.call(actor, Call::new("log"))).0, "its constructor raised");
        }
    }
}
