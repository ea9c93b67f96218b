use std::time::Duration;

use ray_core::error::RayError;
use ray_worker::core::ReadyValue;

use crate::front::{Call, DATA, LIMIT, Ref, Value};
use crate::world::World;

const LARGE: usize = 1_000_000;

/// Whether this address lies in the shared memory of a node.
fn is_shared(bytes: &[u8]) -> bool {
    let address = bytes.as_ptr() as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains("memfd:")).any(|line| {
        let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let parse = |text| usize::from_str_radix(text, 16).unwrap();
        (parse(from)..parse(to)).contains(&address)
    })
}

#[test]
fn a_large_value_is_read_where_it_lies() {
    let world = World::start(1.0);
    let driver = world.driver();
    let large = driver.put(&Value::new(vec![3; LARGE])).unwrap();
    let first = driver.get_ready(&large).unwrap().unwrap();
    let second = driver.get_ready(&large).unwrap().unwrap();
    assert!(first.bytes()[DATA..] == [3; LARGE]);
    assert!(is_shared(first.bytes()));
    assert!(std::ptr::eq(first.bytes(), second.bytes()));
    let small = driver.get_ready(&driver.put(&Value::new("small")).unwrap()).unwrap().unwrap();
    assert!(!is_shared(small.bytes()));
}

#[test]
fn a_value_that_is_read_stays_until_it_is_not() {
    let world = World::start(1.0);
    let driver = world.driver();
    let large = driver.submit(Call::new("large").value(LARGE.to_string()));
    let ready = driver.get_ready(&large).unwrap().unwrap();
    drop(large);
    driver.wait_for_no_references();
    // What asks for room now must not get that of the value.
    let other = driver.put(&Value::new(vec![9; LARGE])).unwrap();
    assert!(ready.bytes()[DATA..] == [7; LARGE]);
    assert!(world.store_usage().0 >= 2 * LARGE as u64);
    drop((ready, other));
    world.wait_for_empty_store();
}

#[test]
fn large_arguments_and_results_travel_by_shared_memory() {
    let world = World::start(2.0);
    let driver = world.driver();
    let large = driver.put(&Value::new(vec![1; LARGE])).unwrap();
    let lengths: Vec<Ref> = (0..20).map(|_| driver.submit(Call::new("length").reference(&large))).collect();
    let copies: Vec<Ref> = (0..5).map(|_| driver.submit(Call::new("echo").reference(&large))).collect();
    for length in &lengths {
        assert_eq!(driver.get(length).number(), LARGE as u64);
    }
    let values = driver.get_all(&copies, LIMIT).unwrap().unwrap();
    assert!(values.iter().all(|value| value.bytes().len() == LARGE + DATA && is_shared(value.bytes())));
    drop((large, lengths, copies));
    drop(values);
    world.wait_for_empty_store();
    driver.wait_for_no_references();
}

#[test]
fn one_object_may_be_asked_for_several_times_at_once() {
    let world = World::start(1.0);
    let driver = world.driver();
    let large = driver.put(&Value::new(vec![1; LARGE])).unwrap();
    let small = driver.put(&Value::new("small")).unwrap();
    let asked = [large.clone(), small.clone(), large.clone(), small];
    let values = driver.get_all(&asked, LIMIT).unwrap().unwrap();
    let sizes: Vec<usize> = values.iter().map(|value| value.bytes().len() - DATA).collect();
    assert_eq!(sizes, [LARGE, 5, LARGE, 5]);
    drop((asked, values, large));
    world.wait_for_empty_store();
}

#[test]
fn readers_that_come_and_go_leave_no_pins() {
    let world = World::start(1.0);
    let driver = world.driver();
    let large = driver.put(&Value::new(vec![1; LARGE])).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let ready = driver.get_ready(&large).unwrap().unwrap();
                    assert_eq!(ready.bytes()[LARGE], 1);
                }
            });
        }
    });
    drop(large);
    world.wait_for_empty_store();
}

#[test]
fn results_that_nobody_wants_any_more_are_freed() {
    let world = World::start(1.0);
    let driver = world.driver();
    let gate = world.gate("gate");
    let first = driver.submit(Call::new("gate").value(gate.path()));
    for _ in 0..5 {
        drop(driver.submit(Call::new("large").value(LARGE.to_string())));
    }
    gate.open();
    drop(first);
    driver.wait_for_no_references();
    let last = driver.submit(Call::new("echo").value("last"));
    assert_eq!(driver.get(&last).text(), "last");
    world.wait_for_empty_store();
}

#[test]
fn a_store_without_room_says_who_fills_it() {
    let world = World::start(1.0);
    let driver = world.driver();
    let error = driver.put(&Value::new(vec![0; 100 << 20])).unwrap_err();
    assert!(matches!(error, RayError::ObjectStoreFull { .. }), "{error}");
    driver.wait_for_no_references();
}

#[test]
fn more_than_fits_is_spilled_and_comes_back() {
    let world = World::start(1.0);
    let driver = world.driver();
    let size = 8 << 20;
    let objects: Vec<Ref> =
        (0..16).map(|number| driver.put(&Value::new(vec![number; size])).unwrap()).collect();
    for (number, object) in objects.iter().enumerate() {
        let ready = driver.get_ready(object).unwrap().unwrap();
        assert!(matches!(ready, ReadyValue::Pinned(_)));
        assert!(ready.bytes()[DATA..] == vec![number as u8; size]);
    }
    drop(objects);
    world.wait_for_empty_store();
}

#[test]
fn a_get_that_is_given_up_leaves_nothing_behind() {
    let world = World::start(1.0);
    let driver = world.driver();
    let gate = world.gate("gate");
    let _first = driver.submit(Call::new("gate").value(gate.path()));
    let large = driver.submit(Call::new("large").value(LARGE.to_string()));
    for _ in 0..50 {
        let error = driver.get_within(&large, Duration::from_micros(10)).unwrap_err();
        assert!(matches!(error, RayError::GetTimeout { .. }), "{error}");
    }
    gate.open();
    assert!(driver.get_ready(&large).unwrap().unwrap().bytes()[DATA..] == [7; LARGE]);
    drop(large);
    world.wait_for_empty_store();
}
