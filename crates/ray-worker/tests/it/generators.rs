use ray_worker::value::Failure;

use crate::front::{Call, Front, Ref};
use crate::world::{World, eventually};

/// Reads all items to the end.
fn numbers(driver: &Front, generator: &Ref) -> Vec<u64> {
    std::iter::from_fn(|| driver.next(generator)).map(|item| driver.get(&item).number()).collect()
}

#[test]
fn items_come_in_order_and_leave_nothing() {
    let world = World::start(1.0);
    let driver = world.driver();
    for (count, limit) in [(0, 0), (1, 1), (3000, 0), (3000, 1), (3000, 7)] {
        let generator = driver.submit(Call::new("count").value(count.to_string()).generator(limit));
        assert_eq!(numbers(&driver, &generator), (0..count).collect::<Vec<_>>());
        assert_eq!(driver.get(&generator).text(), "");
        driver.drop_generator(generator);
    }
    driver.wait_for_no_references();
}

#[test]
fn what_a_generator_raises_is_its_last_item() {
    let world = World::start(1.0);
    let driver = world.driver();
    let generator = driver.submit(Call::new("count_and_fail").value("2").generator(0));
    let places = driver.peek(&generator, 4);
    let items: Vec<Ref> = std::iter::from_fn(|| driver.next(&generator)).collect();
    assert_eq!(
        items.iter().map(|item| item.id).collect::<Vec<_>>(),
        places[..3].iter().map(|p| p.id).collect::<Vec<_>>()
    );
    assert_eq!(driver.get(&items[1]).number(), 1);
    assert_eq!(driver.failure(&items[2]), Failure::Raised(b"in the middle".as_slice().into()));
    assert_eq!(driver.failure(&places[3]), Failure::EndOfStream);
    driver.drop_generator(generator);
    drop((places, items));
    driver.wait_for_no_references();
}

#[test]
fn attempts_that_crash_add_no_items() {
    let world = World::start(1.0);
    let driver = world.driver();
    for limit in [0, 2] {
        let gate = world.gate(&format!("gate {limit}"));
        let call = Call::new("count_and_crash").value("20").value(gate.path()).generator(limit).retries(2);
        let generator = driver.submit(call);
        let items: Vec<Ref> = (0..20).map_while(|_| driver.next(&generator)).collect();
        gate.open();
        assert!(driver.next(&generator).is_none());
        let read: Vec<u64> = items.iter().map(|item| driver.get(item).number()).collect();
        assert_eq!(read, (0..20).collect::<Vec<_>>());
        driver.drop_generator(generator);
    }
    driver.wait_for_no_references();
}

#[test]
fn the_end_of_a_worker_is_behind_the_items_that_came() {
    let world = World::start(1.0);
    let driver = world.driver();
    let gate = world.gate("gate");
    let generator = driver.submit(Call::new("count_and_crash").value("3").value(gate.path()).generator(0));
    let items: Vec<Ref> = (0..3).map_while(|_| driver.next(&generator)).collect();
    let place = driver.peek(&generator, 1).remove(0);
    gate.open();
    assert!(driver.next(&generator).is_none());
    assert_eq!(items.iter().map(|item| driver.get(item).number()).sum::<u64>(), 3);
    for failed in [&generator, &place] {
        assert!(matches!(driver.failure(failed), Failure::WorkerCrashed { .. }));
    }
    driver.drop_generator(generator);
    drop((items, place));
    driver.wait_for_no_references();
}

#[test]
fn a_generator_that_nobody_wants_ends() {
    let world = World::start(1.0);
    let driver = world.driver();
    for limit in [0, 3] {
        let endless = driver.submit(Call::new("count").value(u64::MAX.to_string()).generator(limit));
        let first = driver.next(&endless).unwrap();
        driver.drop_generator(endless);
        assert_eq!(driver.get(&first).number(), 0);
    }
    driver.wait_for_no_references();
    eventually("the return of the lease", || (driver.free_cpus() == 1.0).then_some(()));
}
