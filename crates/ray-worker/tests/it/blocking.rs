use crate::front::{Call, Ref};
use crate::world::World;

#[test]
fn a_task_may_wait_for_tasks_of_its_own_class_however_few_cpus_there_are() {
    for cpus in [1.0, 2.0] {
        let world = World::start(cpus);
        let driver = world.driver();
        // Known to be short, so that a child might be sent to its own parent's worker.
        for number in 0..20 {
            driver.get(&driver.submit(Call::new("nested").value("0").retries(number % 2)));
        }
        let deep = driver.submit(Call::new("nested").value("20"));
        assert_eq!(driver.get(&deep).number(), 20);
        let wide: Vec<Ref> = (0..6).map(|_| driver.submit(Call::new("nested").value("3"))).collect();
        for task in &wide {
            assert_eq!(driver.get(task).number(), 3);
        }
        drop((deep, wide));
        driver.wait_for_no_references();
    }
}

#[test]
fn nothing_waits_behind_a_long_task_while_another_worker_is_free() {
    let world = World::start(2.0);
    let driver = world.driver();
    for number in 0..50 {
        driver.get(&driver.submit(Call::new("echo").value(number.to_string())));
    }
    let gate = world.gate("gate");
    let long = driver.submit(Call::new("gate").value(gate.path()));
    let short: Vec<Ref> =
        (0..200).map(|number| driver.submit(Call::new("echo").value(number.to_string()))).collect();
    for (number, task) in short.iter().enumerate() {
        assert_eq!(driver.get(task).number(), number as u64);
    }
    gate.open();
    assert_eq!(driver.get(&long).text(), "passed");
}

#[test]
fn a_task_that_passes_references_on_waits_for_them_elsewhere() {
    let world = World::start(1.0);
    let driver = world.driver();
    let gate = world.gate("gate");
    let slow = driver.submit(Call::new("gate").value(gate.path()));
    let read = driver.submit(Call::new("read_by_another").holding("", &[&slow]));
    gate.wait_for_begun(1);
    gate.open();
    assert_eq!(driver.get(&read).number(), "passed".len() as u64);
}
