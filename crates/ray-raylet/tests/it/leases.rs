use ray_core::id::JobId;
use ray_core::resource::Resources;
use ray_link::{FromRaylet, ToRaylet};

use crate::world::{World, eventually};

#[test]
fn a_driver_gets_workers_and_gives_them_back() {
    let world = World::start(2.0);
    let mut driver = world.driver();
    driver.demand(1, 1.0, 5);
    let (first, second) = (world.worker(), world.worker());
    let (lease_id, leased) = driver.granted();
    let (_, other) = driver.granted();
    let mut ids = [leased.worker_id, other.worker_id];
    ids.sort_unstable();
    let mut expected = [first.worker_id, second.worker_id];
    expected.sort_unstable();
    assert_eq!(ids, expected);
    assert_eq!(leased.socket_path, format!("/nowhere/{}", leased.worker_id));
    driver.tell(ToRaylet::ReturnLease { lease_id });
    assert_eq!(driver.granted().1.worker_id, leased.worker_id, "the demand stands, and the worker is warm");
}

#[test]
fn what_no_node_has_is_answered_with_what_is_missing() {
    let world = World::start(2.0);
    let mut driver = world.driver();
    let resources = Resources::from_units([("CPU", 1.0), ("gizmo", 2.0)]).unwrap();
    let job_id = driver.job_id;
    let (shape, runtime_env) = (resources.into(), Default::default());
    driver.tell(ToRaylet::SetLeaseDemand { class: 4, shape, job_id, runtime_env, target: 1 });
    let reason = driver.wait_for("an answer", |message| match message {
        FromRaylet::LeaseInfeasible { class: 4, reason } => Some(reason.clone()),
        _ => None,
    });
    assert_eq!(reason, "2 of \"gizmo\" asked, 0 there");
}

#[test]
fn a_waiting_worker_lends_its_cpu() {
    let world = World::start(1.0);
    let mut driver = world.driver();
    driver.demand(1, 1.0, 1);
    let mut parent = world.worker();
    driver.granted();
    parent.job_id = driver.job_id;
    parent.demand(1, 1.0, 1);
    parent.tell(ToRaylet::Blocked);
    let child = world.worker();
    assert_eq!(parent.granted().1.worker_id, child.worker_id);
}

#[test]
fn a_killed_worker_is_told_of_with_the_signal_and_replaced() {
    let world = World::start(1.0);
    let mut driver = world.driver();
    driver.demand(1, 1.0, 1);
    let worker = world.worker();
    driver.granted();
    let worker_id = worker.worker_id;
    world.kill(worker);
    assert_eq!(driver.worker_died(worker_id), "its process was killed by signal 9 (SIGKILL)");
    let next = world.worker();
    assert_eq!(driver.granted().1.worker_id, next.worker_id);
}

#[test]
fn a_holder_can_have_its_worker_killed() {
    let world = World::start(1.0);
    let mut driver = world.driver();
    driver.demand(1, 1.0, 1);
    let worker = world.worker();
    let (lease_id, _) = driver.granted();
    driver.demand(1, 1.0, 0);
    driver.tell(ToRaylet::KillWorker { lease_id, reason: "cancelled".to_owned() });
    eventually("the end of the process", || (!world.lives(worker.worker_id)).then_some(()));
    let worker_id = worker.worker_id;
    drop(worker);
    assert_eq!(driver.worker_died(worker_id), "cancelled");
}

#[test]
fn the_workers_of_a_lost_driver_are_ended() {
    let world = World::start(2.0);
    let mut driver = world.driver();
    let mut other = world.driver();
    driver.demand(1, 1.0, 1);
    let worker = world.worker();
    driver.granted();
    let lost = driver.worker_id;
    drop(driver);
    other.worker_died(lost);
    eventually("the end of the process", || (!world.lives(worker.worker_id)).then_some(()));
    drop(worker);
    other.demand(1, 2.0, 1);
    let next = world.worker();
    assert_eq!(other.granted().1.worker_id, next.worker_id, "all CPUs are free again");
}

#[test]
fn a_client_that_does_not_say_who_it_is_is_refused() {
    let world = World::start(1.0);
    let mut driver = world.driver();
    let job_id = JobId::nil();
    driver.tell(ToRaylet::Register {
        worker_id: driver.worker_id,
        role: ray_link::message::Role::Worker,
        pid: 1,
        socket_path: job_id.to_string(),
    });
    driver.wait_for("a refusal", |message| matches!(message, FromRaylet::Rejected { .. }).then_some(()));
    driver.wait_for_end();
}

#[test]
fn what_workers_print_reaches_the_driver_of_their_job() {
    let world = World::start(1.0);
    let mut driver = world.driver();
    driver.demand(1, 1.0, 1);
    let worker = world.worker();
    let (_, leased) = driver.granted();
    let path = world.info.session_dir.join("logs").join(format!("worker-{}.out", worker.worker_id));
    std::fs::write(&path, ":task_name:f\nhello\nno end").unwrap();
    let lines = |message: &FromRaylet| match message {
        FromRaylet::LogLines { pid, name, is_stderr: false, lines } => {
            Some((*pid, name.clone(), lines.clone()))
        }
        _ => None,
    };
    let hello = (leased.pid, "f".to_owned(), vec!["hello".to_owned()]);
    assert_eq!(driver.wait_for("what was printed", lines), hello);
    driver.tell(ToRaylet::FlushLogs { request: 7 });
    let rest = (leased.pid, "f".to_owned(), vec!["no end".to_owned()]);
    assert_eq!(driver.wait_for("the rest", lines), rest);
    driver.wait_for("the flush", |message| {
        matches!(message, FromRaylet::LogsFlushed { request: 7 }).then_some(())
    });
}

#[test]
fn a_visitor_gets_leases_without_memory_and_its_end_frees_them() {
    let world = World::start(1.0);
    let mut visitor = world.visitor(None);
    assert!(matches!(visitor.registered, FromRaylet::Registered { .. }));
    assert!(visitor.memory.is_none());
    visitor.demand(1, 1.0, 1);
    let worker = world.worker();
    assert_eq!(visitor.granted().1.worker_id, worker.worker_id);
    let mut driver = world.driver();
    driver.demand(1, 1.0, 1);
    let (visitor_id, leased_id) = (visitor.worker_id, worker.worker_id);
    drop(visitor);
    eventually("the end of the worker that may be in the midst of a task", || {
        (!world.lives(leased_id)).then_some(())
    });
    drop(worker);
    let next = world.worker();
    assert_eq!(driver.granted().1.worker_id, next.worker_id);
    assert_eq!(driver.worker_died(visitor_id), "its connection to this node was closed");
}

#[test]
fn a_visitor_that_asks_for_shared_memory_is_refused() {
    let world = World::start(1.0);
    let mut visitor = world.visitor(None);
    let (object_id, owner) = (ray_core::id::ObjectId::nil(), visitor.worker_id);
    visitor.tell(ToRaylet::CreateObject { request: 1, object_id, size: 1, owner });
    let reason = visitor.wait_for("a refusal", |message| match message {
        FromRaylet::Rejected { reason } => Some(reason.clone()),
        _ => None,
    });
    assert_eq!(reason, "a visitor may not say CreateObject");
    visitor.wait_for_end();
}
