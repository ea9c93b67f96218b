//! References that travel: inside values, to actors that keep them, to third processes. Whatever
//! happens to them, nothing is freed early, and everything at the end.

use ray_core::id::ActorId;
use ray_worker::value::Failure;

use crate::front::{Call, Value};
use crate::world::{Driver, World, eventually};

const LARGE: u64 = 1_000_000;

fn large() -> Value {
    Value::new(vec![1; LARGE as usize])
}

fn call(driver: &Driver, actor: ActorId, call: Call) -> Value {
    driver.get(&driver.call(actor, call))
}

/// Waits until nothing is referred to by the driver or the actor, nor stored by the node.
#[track_caller]
fn wait_for_nothing(world: &World, driver: &Driver, actor: ActorId) {
    driver.wait_for_no_references();
    eventually("the end of the actor's references", || {
        (call(driver, actor, Call::new("usage")).number() == 0).then_some(())
    });
    world.wait_for_empty_store();
    driver.wait_for_no_references();
}

#[test]
fn a_reference_inside_a_result_keeps_its_object() {
    let world = World::start(1.0);
    let driver = world.driver();
    for size in [10, LARGE] {
        let outer = driver.submit(Call::new("put").value(size.to_string()));
        let inner = driver.get(&outer).refs.remove(0);
        drop(outer);
        let usage = || driver.get(&driver.submit(Call::new("usage"))).number();
        assert_eq!(usage(), 1, "its owner keeps it for the driver");
        assert_eq!(driver.get(&inner).data.len() as u64, size);
        let sum = driver.submit(Call::new("length").reference(&inner));
        assert_eq!(driver.get(&sum).number(), size);
        drop((inner, sum));
        eventually("the end of the object at its owner", || (usage() == 0).then_some(()));
        driver.wait_for_no_references();
        world.wait_for_empty_store();
    }
}

#[test]
fn the_end_of_a_watched_object_is_told_when_nobody_anywhere_refers_to_it() {
    let world = World::start(1.0);
    let driver = world.driver();
    let actor = driver.create(Call::new("holder")).unwrap();
    let (watched, other) = (driver.put(&large()).unwrap(), driver.put(&large()).unwrap());
    let id = watched.id;
    assert!(driver.core.watch(id));
    call(&driver, actor, Call::new("keep").holding("", &[&watched]));
    drop((watched, other));
    assert_eq!(call(&driver, actor, Call::new("read")).number(), LARGE);
    assert_eq!(driver.released(), [], "the actor keeps it");
    call(&driver, actor, Call::new("forget"));
    eventually("the end of the watched object", || (!driver.released().is_empty()).then_some(()));
    assert_eq!(driver.released(), [id], "and of that one alone");
    assert!(!driver.core.watch(id), "what is gone cannot be watched");
    wait_for_nothing(&world, &driver, actor);
}

#[test]
fn an_outer_object_keeps_the_inner_ones() {
    let world = World::start(1.0);
    let driver = world.driver();
    let inner = driver.put(&large()).unwrap();
    let middle = driver.put(&Value::of(vec![inner])).unwrap();
    let outer = driver.put(&Value::of(vec![middle])).unwrap();
    assert_eq!(driver.core.reference_usage().0, 3);
    let middle = driver.get(&outer).refs.remove(0);
    drop(outer);
    let read = driver.submit(Call::new("read").holding("", &[&driver.get(&middle).refs[0]]));
    drop(middle);
    assert_eq!(driver.get(&read).number(), LARGE);
    drop(read);
    driver.wait_for_no_references();
    world.wait_for_empty_store();
}

#[test]
fn an_actor_keeps_what_came_with_a_call_after_its_end() {
    let world = World::start(1.0);
    let driver = world.driver();
    let actor = driver.create(Call::new("holder")).unwrap();
    let object = driver.put(&large()).unwrap();
    call(&driver, actor, Call::new("keep").holding("", &[&object]));
    drop(object);
    assert_eq!(driver.core.reference_usage().0, 1, "the driver keeps it for the actor");
    assert_eq!(call(&driver, actor, Call::new("read")).number(), LARGE);
    let back = call(&driver, actor, Call::new("give")).refs.remove(0);
    call(&driver, actor, Call::new("forget"));
    assert_eq!(driver.get(&back).data.len() as u64, LARGE);
    drop(back);
    wait_for_nothing(&world, &driver, actor);
}

#[test]
fn an_actor_keeps_what_came_with_its_constructor() {
    let world = World::start(1.0);
    let driver = world.driver();
    let object = driver.put(&large()).unwrap();
    let actor = driver.create(Call::new("holder").holding("first", &[&object])).unwrap();
    drop(object);
    assert_eq!(call(&driver, actor, Call::new("log")).text(), "first");
    assert_eq!(call(&driver, actor, Call::new("read")).number(), LARGE);
    call(&driver, actor, Call::new("forget"));
    wait_for_nothing(&world, &driver, actor);
}

#[test]
fn a_reference_may_be_passed_on_to_a_third_process_that_keeps_it() {
    let world = World::start(2.0);
    let driver = world.driver();
    let actor = driver.create(Call::new("holder")).unwrap();
    for round in 0..10 {
        // Owned by the driver, or by a worker.
        let object = match round % 2 {
            0 => driver.put(&large()).unwrap(),
            _ => driver.get(&driver.submit(Call::new("put").value(LARGE.to_string()))).refs.remove(0),
        };
        let passed = driver.submit(Call::new("have_kept").holding(actor.hex(), &[&object]));
        drop(object);
        driver.get(&passed);
        drop(passed);
        assert_eq!(call(&driver, actor, Call::new("read")).number(), LARGE);
        call(&driver, actor, Call::new("forget"));
        wait_for_nothing(&world, &driver, actor);
    }
}

#[test]
fn a_reference_to_what_is_not_made_yet_travels_too() {
    let world = World::start(2.0);
    let driver = world.driver();
    let actor = driver.create(Call::new("holder")).unwrap();
    let gate = world.gate("gate");
    let pending = call(&driver, actor, Call::new("submit_gate").value(gate.path())).refs.remove(0);
    let read = driver.submit(Call::new("read").holding("", &[&pending]));
    let length = driver.submit(Call::new("length").reference(&pending));
    gate.wait_for_begun(1);
    gate.open();
    assert_eq!(driver.get(&pending).text(), "passed");
    assert_eq!((driver.get(&read).number(), driver.get(&length).number()), (6, 6));
    drop((pending, read, length));
    wait_for_nothing(&world, &driver, actor);
}

/// A borrower that had asked for a value and then let go of the reference took the late answer for
/// something of its own that nobody wants, and had the node delete the object.
#[test]
fn a_late_answer_to_a_borrower_does_not_delete_the_object() {
    let world = World::start(2.0);
    let driver = world.driver();
    let actor = driver.create(Call::new("holder")).unwrap();
    let gate = world.gate("gate");
    let object = driver.submit(Call::new("gate_large").value(gate.path()).value(LARGE.to_string()));
    call(&driver, actor, Call::new("keep").holding("", &[&object]));
    let glanced = call(&driver, actor, Call::new("glance"));
    assert!(glanced.text().contains("was not ready"), "{}", glanced.text());
    call(&driver, actor, Call::new("forget"));
    gate.open();
    assert_eq!(driver.wait(&[&object], 1, crate::front::LIMIT), [0]);
    // The answer is before these calls on its way.
    for _ in 0..3 {
        call(&driver, actor, Call::new("usage"));
        world.store_usage();
    }
    assert_eq!(driver.get(&object).data.len() as u64, LARGE);
    drop(object);
    wait_for_nothing(&world, &driver, actor);
}

#[test]
fn what_a_dead_borrower_held_is_freed() {
    let world = World::start(1.0);
    let driver = world.driver();
    let actor = driver.create(Call::new("holder")).unwrap();
    let object = driver.put(&large()).unwrap();
    call(&driver, actor, Call::new("keep").holding("", &[&object]));
    assert_eq!(call(&driver, actor, Call::new("read")).number(), LARGE);
    drop(object);
    assert_eq!(driver.core.reference_usage().0, 1);
    let crashed = driver.call(actor, Call::new("crash"));
    assert!(matches!(driver.failure(&crashed), Failure::ActorDied { .. }));
    drop(crashed);
    driver.wait_for_no_references();
    world.wait_for_empty_store();
}

#[test]
fn references_in_results_that_nobody_takes_are_freed() {
    let world = World::start(1.0);
    let driver = world.driver();
    let actor = driver.create(Call::new("holder")).unwrap();
    for _ in 0..20 {
        drop(driver.call(actor, Call::new("put").value(LARGE.to_string())));
    }
    wait_for_nothing(&world, &driver, actor);
}
