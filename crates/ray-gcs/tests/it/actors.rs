//! The life of actors between the control plane and raylets.

use ray_core::config::GcsConfig;
use ray_core::id::{ActorId, JobId, NodeId};
use ray_core::pb::common;
use ray_core::pb::common::actor_info::State;
use ray_core::pb::common::death_cause::Kind;
use ray_core::pb::gcs;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::Status;

use crate::harness::*;

#[tokio::test]
async fn a_constructor_that_raises_ends_the_actor_with_its_exception() {
    let (server, client) = start(&memory_config()).await;
    let mut tasks = JoinSet::new();
    let raylet = FakeRaylet::start(&client, cpus(4), &mut tasks).await;
    let actor_id = ActorId::random();
    register(&client, common::ActorSpec { max_restarts: -1, ..actor_spec(actor_id) }).await;
    raylet.ordered(Order::Create(actor_id, 0)).await;
    let cause = common::DeathCause { error: vec![9, 9], ..died(Kind::CreationFailed, "ValueError") };
    client.report_actor_died(raylet.node_id(), actor_id, 0, cause.clone()).await.unwrap();
    let dead = get_actor(&client, actor_id).await;
    assert_eq!((dead.state(), dead.death_cause), (State::Dead, Some(cause)));
    server.shutdown().await;
}

#[tokio::test]
async fn a_crashed_actor_is_made_anew_and_late_reports_change_nothing() {
    let (server, client) = start(&memory_config()).await;
    let mut tasks = JoinSet::new();
    let raylet = FakeRaylet::start(&client, cpus(4), &mut tasks).await;
    let actor_id = ActorId::random();
    register(&client, common::ActorSpec { max_restarts: 1, ..actor_spec(actor_id) }).await;
    raylet.make(&client, actor_id, 0).await;
    let crash = died(Kind::ProcessExited, "signal 11");
    for _ in 0..2 {
        client.report_actor_died(raylet.node_id(), actor_id, 0, crash.clone()).await.unwrap();
    }
    let restarting = get_actor(&client, actor_id).await;
    assert_eq!((restarting.state(), restarting.num_restarts), (State::Restarting, 1));
    raylet.make(&client, actor_id, 1).await;
    assert_eq!(get_actor(&client, actor_id).await.state(), State::Alive);
    client.report_actor_died(raylet.node_id(), actor_id, 1, crash.clone()).await.unwrap();
    let dead = get_actor(&client, actor_id).await;
    assert_eq!((dead.state(), dead.death_cause), (State::Dead, Some(crash)));
    server.shutdown().await;
}

#[tokio::test]
async fn an_actor_that_no_node_can_hold_says_so_and_is_placed_once_one_can() {
    let (server, client) = start(&memory_config()).await;
    let mut tasks = JoinSet::new();
    let small = FakeRaylet::start(&client, cpus(4), &mut tasks).await;
    let gizmo = common::Resources { amounts: [("gizmo".to_owned(), 20_000)].into() };
    let actor_id = ActorId::random();
    let spec = common::ActorSpec { placement_resources: Some(gizmo.clone()), ..actor_spec(actor_id) };
    let pending = register(&client, spec).await;
    assert_eq!(pending.state(), State::PendingCreation);
    let reason = get_actor(&client, actor_id).await.pending_reason;
    assert!(reason.contains("no node can ever hold {gizmo: 2}"), "{reason}");
    let large = FakeRaylet::start(&client, gizmo, &mut tasks).await;
    large.make(&client, actor_id, 0).await;
    actor_in_state(&client, actor_id, State::Alive).await;
    assert_eq!(small.orders(), []);
    server.shutdown().await;
}

#[tokio::test]
async fn actors_wait_for_a_free_processor_and_move_up_as_soon_as_one_is_made() {
    let (server, client) = start(&memory_config()).await;
    let mut tasks = JoinSet::new();
    let raylet = FakeRaylet::start(&client, cpus(1), &mut tasks).await;
    let actors: Vec<_> = (0..5).map(|n| ActorId::from_bytes([n; 16])).collect();
    for &actor_id in &actors {
        register(&client, actor_spec(actor_id)).await;
    }
    let reason = get_actor(&client, actors[4]).await.pending_reason;
    assert!(reason.contains("{CPU: 1} is free on no node"), "{reason}");
    // No report of resources is sent: that an actor lives is enough to place the next one.
    for &actor_id in &actors {
        raylet.make(&client, actor_id, 0).await;
    }
    let expected: Vec<_> = actors.iter().map(|&actor_id| Order::Create(actor_id, 0)).collect();
    assert_eq!(raylet.orders(), expected);
    server.shutdown().await;
}

#[tokio::test]
async fn an_order_is_repeated_until_the_node_takes_it() {
    let (server, client) = start(&memory_config()).await;
    let mut tasks = JoinSet::new();
    let raylet = FakeRaylet::start(&client, cpus(4), &mut tasks).await;
    raylet.fail_with(vec![Status::unavailable("not yet"), Status::resource_exhausted("nor now")]);
    let actor_id = ActorId::random();
    register(&client, actor_spec(actor_id)).await;
    raylet.make(&client, actor_id, 0).await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_node_that_is_not_up_yet_gets_its_orders_when_it_is() {
    let (server, client) = start(&memory_config()).await;
    let mut tasks = JoinSet::new();
    // Takes a port and gives it back, so that nobody listens there.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let node_id = NodeId::random();
    client.register_node(node_info(node_id, &address, cpus(4))).await.unwrap();
    let actor_id = ActorId::random();
    register(&client, actor_spec(actor_id)).await;
    let raylet = FakeRaylet::at(node_id, address.clone());
    let listener = eventually("the port is free", async || TcpListener::bind(&address).await.ok()).await;
    raylet.serve(listener, &mut tasks);
    raylet.make(&client, actor_id, 0).await;
    server.shutdown().await;
}

#[tokio::test]
async fn an_order_that_the_node_refuses_ends_the_actor_with_the_nodes_words() {
    let (server, client) = start(&memory_config()).await;
    let mut tasks = JoinSet::new();
    let raylet = FakeRaylet::start(&client, cpus(4), &mut tasks).await;
    raylet.fail_with(vec![Status::invalid_argument("no such class")]);
    let actor_id = ActorId::random();
    register(&client, actor_spec(actor_id)).await;
    let dead = actor_in_state(&client, actor_id, State::Dead).await;
    let cause = dead.death_cause.unwrap();
    assert_eq!(cause.kind(), Kind::CreationFailed);
    assert!(cause.message.contains("no such class"), "{}", cause.message);
    server.shutdown().await;
}

#[tokio::test]
async fn more_orders_than_a_nodes_queue_holds_all_arrive() {
    let config = GcsConfig { max_order_queue: 2, ..memory_config() };
    let (server, client) = start(&config).await;
    let mut tasks = JoinSet::new();
    let raylet = FakeRaylet::start(&client, cpus(1000), &mut tasks).await;
    raylet.fail_with(vec![Status::unavailable("wait a moment"); 3]);
    let actors: Vec<_> = (0..50).map(|n| ActorId::from_bytes([n; 16])).collect();
    for &actor_id in &actors {
        register(&client, actor_spec(actor_id)).await;
    }
    for &actor_id in &actors {
        raylet.ordered(Order::Create(actor_id, 0)).await;
    }
    server.shutdown().await;
}

#[tokio::test]
async fn a_job_takes_its_actors_with_it_and_makes_no_more() {
    let (server, client) = start(&memory_config()).await;
    let mut tasks = JoinSet::new();
    let raylet = FakeRaylet::start(&client, cpus(4), &mut tasks).await;
    let job_id = JobId::from_bytes([1; 16]);
    let job = gcs::JobInfo { job_id: job_id.to_binary(), ..Default::default() };
    client.add_job(gcs::AddJobRequest { job: Some(job) }).await.unwrap();
    let (mortal, detached) = (ActorId::random(), ActorId::random());
    register(&client, actor_spec(mortal)).await;
    register(&client, common::ActorSpec { detached: true, ..actor_spec(detached) }).await;
    raylet.make(&client, mortal, 0).await;
    raylet.make(&client, detached, 0).await;
    client.end_job(job_id, "the driver left").await.unwrap();
    let dead = get_actor(&client, mortal).await;
    assert_eq!(dead.death_cause.unwrap().kind(), Kind::JobFinished);
    assert_eq!(get_actor(&client, detached).await.state(), State::Alive);
    raylet.ordered(Order::Kill(mortal, 0, format!("its job {job_id} ended"))).await;
    let request = gcs::RegisterActorRequest { spec: Some(actor_spec(ActorId::random())), stillborn: None };
    assert!(client.register_actor(request).await.unwrap_err().to_string().contains("has ended"));
    server.shutdown().await;
}

#[tokio::test]
async fn killed_with_restart_it_comes_back_once_its_process_is_gone() {
    let (server, client) = start(&memory_config()).await;
    let mut tasks = JoinSet::new();
    let raylet = FakeRaylet::start(&client, cpus(4), &mut tasks).await;
    let actor_id = ActorId::random();
    register(&client, common::ActorSpec { max_restarts: -1, ..actor_spec(actor_id) }).await;
    raylet.make(&client, actor_id, 0).await;
    kill(&client, actor_id, false).await;
    raylet.ordered(Order::Kill(actor_id, 0, "it was killed".to_owned())).await;
    client.report_actor_died(raylet.node_id(), actor_id, 0, died(Kind::Killed, "gone")).await.unwrap();
    raylet.make(&client, actor_id, 1).await;
    assert_eq!(get_actor(&client, actor_id).await.num_restarts, 1);
    server.shutdown().await;
}
