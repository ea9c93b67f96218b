use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ray_core::config::WorkerConfig;
use ray_core::error::RayError;
use ray_core::id::WorkerId;
use ray_core::runtime_env::RuntimeEnv;
use ray_worker::{CoreWorker, Membership};

use crate::front::{Call, LIMIT, Ref, Value};
use crate::functions::Functions;
use crate::process::Nobody;
use crate::world::World;

#[test]
fn two_threads_wait_at_once_for_different_objects() {
    let world = World::start(2.0);
    let driver = world.driver();
    for round in 0..20 {
        let gates = [world.gate(&format!("first{round}")), world.gate(&format!("second{round}"))];
        let tasks = gates.each_ref().map(|gate| driver.submit(Call::new("gate").value(gate.path())));
        // Whichever thread reads the sockets, the other one may be the first to be served.
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        std::thread::scope(|scope| {
            let threads = tasks.each_ref().map(|task| scope.spawn(|| driver.get(task).text().to_owned()));
            let mut threads = threads.map(Some);
            for at in order {
                gates[at].open();
                assert_eq!(threads[at].take().unwrap().join().unwrap(), "passed");
            }
        });
    }
}

#[test]
fn many_threads_submit_and_get_at_once() {
    let world = World::start(2.0);
    let driver = world.driver();
    let actor = driver.create(Call::new("holder")).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let driver = &driver;
            scope.spawn(move || {
                for round in 0..40u64 {
                    let text = (thread * 1000 + round).to_string();
                    let one = driver.submit(Call::new("echo").value(text.clone()));
                    let other = driver.put(&Value::new("1")).unwrap();
                    let both = driver.submit(Call::new("sum").reference(&one).reference(&other));
                    let called = driver.call(actor, Call::new("echo").reference(&one));
                    assert_eq!(driver.get(&both).number(), thread * 1000 + round + 1);
                    assert_eq!(driver.get(&called).text(), text);
                    if round % 10 == 0 {
                        let tasks: Vec<Ref> =
                            (0..20).map(|_| driver.submit(Call::new("echo").value("x"))).collect();
                        assert_eq!(driver.get_all(&tasks, LIMIT).unwrap().unwrap().len(), 20);
                    }
                }
            });
        }
    });
    driver.wait_for_no_references();
}

/// A thread that stopped waiting, interrupted, just when it was to read the sockets left them to nobody.
#[test]
fn threads_that_give_up_leave_the_reading_to_those_who_wait() {
    let world = World::start(2.0);
    let driver = world.driver();
    let gate = world.gate("gate");
    let never = driver.submit(Call::new("gate").value(gate.path()));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (driver, never, stop) = (&driver, &never, &stop);
            scope.spawn(move || {
                let mut round = thread;
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    let timeout = Duration::from_micros(round * 37 % 2000);
                    let interrupted = driver.core.get(&[never.id], Some(timeout), &mut || round % 3 == 0);
                    assert!(interrupted.is_err());
                }
            });
        }
        for number in 0..300 {
            let task = driver.submit(Call::new("echo").value(number.to_string()));
            assert_eq!(driver.get(&task).number(), number);
        }
        stop.store(true, Ordering::Relaxed);
    });
    // With nobody waiting, the background thread answers those who ask this process.
    let object = driver.put(&Value::new("answered")).unwrap();
    let read = driver.submit(Call::new("read").holding("", &[&object]));
    crate::world::eventually("an answer", || driver.core.first_ready([read.id].into_iter(), 1, true));
    gate.open();
}

#[test]
fn a_shutdown_ends_every_wait() {
    let world = World::start(1.0);
    let driver = world.driver();
    let gate = world.gate("never");
    let task = driver.submit(Call::new("gate").value(gate.path()));
    gate.wait_for_begun(1);
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..4).map(|_| scope.spawn(|| driver.error(&task))).collect();
        driver.core.shutdown(false);
        for thread in waiting {
            let error = thread.join().unwrap();
            assert!(matches!(error, RayError::ShutDown), "{error}");
        }
    });
    assert!(matches!(driver.try_submit(Call::new("echo").value("late")), Err(RayError::ShutDown)));
    assert!(matches!(driver.put(&Value::new("late")), Err(RayError::ShutDown)));
    driver.core.shutdown(false);
}

#[test]
fn the_end_of_the_node_ends_every_wait() {
    let world = World::start(1.0);
    let driver = world.driver();
    let gate = world.gate("never");
    let task = driver.submit(Call::new("gate").value(gate.path()));
    gate.wait_for_begun(1);
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..3).map(|_| scope.spawn(|| driver.error(&task))).collect();
        drop(world);
        for thread in waiting {
            let error = thread.join().unwrap();
            assert!(matches!(error, RayError::NodeDied { .. }), "{error}");
        }
    });
}

/// A worker's main thread sleeps until something comes; its own process's farewell did not count.
#[test]
fn a_shutdown_ends_a_worker_that_waits_for_tasks() {
    let world = World::start(1.0);
    let membership = Membership::Worker { worker_id: WorkerId::random(), runtime_env: RuntimeEnv::none() };
    let (socket, config) = (&world.info.socket_path, WorkerConfig::default());
    let core = CoreWorker::connect(socket, membership, config, Box::new(Nobody)).unwrap();
    let main = std::thread::spawn({
        let core = Arc::clone(&core);
        move || core.run(&Functions::default())
    });
    core.shutdown(false);
    crate::world::eventually("the end of its main thread", || main.is_finished().then_some(()));
    assert!(matches!(main.join().unwrap(), Err(RayError::ShutDown)));
}
