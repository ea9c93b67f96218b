use std::time::Duration;

use ray_core::error::RayError;
use ray_worker::value::Failure;

use crate::front::{Call, LIMIT, Ref, Value};
use crate::world::World;

#[test]
fn wait_tells_what_is_ready_and_counts_failures_as_ready() {
    let world = World::start(1.0);
    let driver = world.driver();
    let gate = world.gate("gate");
    let there = driver.put(&Value::new("there")).unwrap();
    let slow = driver.submit(Call::new("gate").value(gate.path()));
    let failed = driver.submit(Call::new("fail").value("no").cpus(0.0));
    assert_eq!(driver.wait(&[&slow, &there], 1, LIMIT), [1]);
    assert_eq!(driver.wait(&[&slow], 1, Duration::ZERO), [] as [usize; 0]);
    assert_eq!(driver.wait(&[&slow, &failed, &there], 2, LIMIT), [1, 2]);
    assert_eq!(driver.wait(&[&slow, &there], 2, Duration::from_millis(1)), [1]);
    assert_eq!(driver.wait(&[&slow, &failed, &there], 1, LIMIT), [1], "no more than asked for");
    gate.open();
    assert_eq!(driver.wait(&[&slow, &there], 2, LIMIT), [0, 1]);
}

#[test]
fn waiting_one_by_one_sees_every_task_once() {
    let world = World::start(2.0);
    let driver = world.driver();
    let mut pending: Vec<Ref> =
        (0..300).map(|number| driver.submit(Call::new("echo").value(number.to_string()))).collect();
    let mut seen = Vec::new();
    while !pending.is_empty() {
        let ready = driver.wait(&pending.iter().collect::<Vec<_>>(), 1, LIMIT);
        seen.push(driver.get(&pending.swap_remove(ready[0])).number());
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..300).collect::<Vec<_>>());
}

#[test]
fn a_get_that_runs_out_of_time_names_the_task() {
    let world = World::start(1.0);
    let driver = world.driver();
    let gate = world.gate("gate");
    let task = driver.submit(Call::new("gate").value(gate.path()));
    let there = driver.put(&Value::new("there")).unwrap();
    let error = driver.get_all(&[there, task.clone()], Duration::from_millis(20)).unwrap_err();
    let RayError::GetTimeout { what, waited } = &error else { panic!("{error}") };
    assert_eq!(*waited, Duration::from_millis(20));
    assert!(what.contains("1 of 2") && what.contains("of task gate"), "{what}");
    gate.open();
    assert_eq!(driver.get(&task).text(), "passed");
}

#[test]
fn get_fails_at_once_with_the_first_failure() {
    let world = World::start(2.0);
    let driver = world.driver();
    let gate = world.gate("gate");
    let slow = driver.submit(Call::new("gate").value(gate.path()));
    let failed = driver.submit(Call::new("fail").value("no"));
    let got = driver.get_all(&[slow.clone(), failed], LIMIT).unwrap();
    assert_eq!(got.map(|_| ()), Err(Failure::Raised("no".into())));
    gate.open();
    assert_eq!(driver.get(&slow).text(), "passed");
}

/// What was asked of another process stayed unwritten if there was enough to return at once.
#[test]
fn a_wait_that_need_not_wait_still_asks_for_the_rest() {
    let world = World::start(1.0);
    let driver = world.driver();
    let actor = driver.create(Call::new("holder")).unwrap();
    let there = driver.put(&Value::new("there")).unwrap();
    let put = driver.call(actor, Call::new("put").value("10"));
    let borrowed = driver.get(&put).refs.remove(0);
    crate::world::eventually("the borrowed value", || {
        assert_eq!(driver.wait(&[&there, &borrowed], 1, LIMIT), [0]);
        driver.core.first_ready([there.id, borrowed.id].into_iter(), 2, true)
    });
}

#[test]
fn an_interrupted_wait_ends_and_others_go_on() {
    let world = World::start(1.0);
    let driver = world.driver();
    let gate = world.gate("gate");
    let task = driver.submit(Call::new("gate").value(gate.path()));
    let interrupted = driver.core.get(&[task.id], Some(LIMIT), &mut || true);
    assert!(interrupted.is_err());
    gate.open();
    assert_eq!(driver.get(&task).text(), "passed");
}
