//! Nodes that fall silent, and subscribers that fall behind.

use ray_core::config::GcsConfig;
use ray_core::id::{ActorId, NodeId};
use ray_core::pb::common::actor_info::State;
use ray_core::pb::common::death_cause::Kind;
use ray_core::pb::gcs::event::Event;
use ray_core::pb::gcs::gcs_service_client::GcsServiceClient;
use ray_core::pb::gcs::node_info::State as NodeState;
use ray_core::pb::{common, gcs};
use tokio::task::JoinSet;
use tonic::Code;

use crate::harness::*;

#[tokio::test]
async fn a_silent_node_is_dead_with_its_reason_and_its_actors_live_elsewhere() {
    let config = GcsConfig { heartbeat_interval_ms: 50, node_dead_after_ms: 600, ..memory_config() };
    let (server, client) = start(&config).await;
    let mut tasks = JoinSet::new();
    let silent = FakeRaylet::start(&client, cpus(4), &mut tasks).await;
    let (lasting, fleeting) = (ActorId::random(), ActorId::random());
    register(&client, common::ActorSpec { max_restarts: 1, ..actor_spec(lasting) }).await;
    register(&client, actor_spec(fleeting)).await;
    silent.make(&client, lasting, 0).await;
    silent.make(&client, fleeting, 0).await;

    let healthy = FakeRaylet::start(&client, cpus(4), &mut tasks).await;
    let beats = client.clone();
    let (silent_id, healthy_id) = (silent.node_id(), healthy.node_id());
    tasks.spawn(async move {
        for sequence in 1.. {
            assert!(beats.heartbeat(healthy_id, sequence).await.unwrap_or(true), "the healthy node lives");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    let mut events = client.subscribe(None);
    let reason = loop {
        match events.next().await.unwrap() {
            Event::Node(node) if node.state() == NodeState::Dead => {
                assert_eq!(node.node_id, silent_id.to_binary());
                break node.death_reason;
            }
            Event::Snapshot(snapshot) => {
                if let Some(node) = snapshot.nodes.into_iter().find(|node| node.state() == NodeState::Dead) {
                    break node.death_reason;
                }
            }
            _ => {}
        }
    };
    assert!(reason.starts_with("no heartbeat for 0."), "{reason}");
    assert!(!client.heartbeat(silent_id, 1).await.unwrap());

    let dead = actor_in_state(&client, fleeting, State::Dead).await.death_cause.unwrap();
    assert_eq!(dead.kind(), Kind::NodeDied);
    assert!(
        dead.message.contains(&silent_id.hex()) && dead.message.contains("no heartbeat"),
        "{}",
        dead.message
    );
    healthy.make(&client, lasting, 1).await;
    let alive = actor_in_state(&client, lasting, State::Alive).await;
    assert_eq!((alive.node_id, alive.num_restarts), (healthy_id.to_binary(), 1));
    // What the silent node says now comes too late.
    let late = client.report_actor_alive(lasting, 0, silent.worker(), 7).await.unwrap_err();
    assert!(late.to_string().contains("no heartbeat"), "{late}");
    server.shutdown().await;
}

#[tokio::test]
async fn a_subscriber_that_falls_behind_is_cut_off_and_starts_over_with_a_snapshot() {
    let config = GcsConfig { max_subscriber_queue: 4, ..memory_config() };
    let (server, client) = start(&config).await;
    let mut raw = GcsServiceClient::connect(format!("http://{}", client.address())).await.unwrap();
    let mut stream = raw.subscribe(gcs::SubscribeRequest::default()).await.unwrap().into_inner();
    // More than the connection's own buffers hold, and nobody reads.
    let entrypoint = "x".repeat(100_000);
    for n in 0..100 {
        let job = gcs::JobInfo { job_id: vec![n; 16], entrypoint: entrypoint.clone(), ..Default::default() };
        client.add_job(gcs::AddJobRequest { job: Some(job) }).await.unwrap();
    }
    let mut seen = 0;
    let end = loop {
        match stream.message().await {
            Ok(Some(_)) => seen += 1,
            Ok(None) => panic!("the stream ended without a word"),
            Err(status) => break status,
        }
    };
    assert!(seen < 101, "{seen} events");
    assert_eq!(end.code(), Code::Unavailable, "{end:?}");
    let mut again = client.subscribe(None);
    let Some(Event::Snapshot(snapshot)) = again.next().await else { panic!("no snapshot") };
    assert_eq!(snapshot.jobs.len(), 100);
    server.shutdown().await;
}

#[tokio::test]
async fn a_control_plane_that_stops_ends_subscriptions_and_answers_no_more() {
    let (server, client) = start(&memory_config()).await;
    let mut raw = GcsServiceClient::connect(format!("http://{}", client.address())).await.unwrap();
    let mut stream = raw.subscribe(gcs::SubscribeRequest::default()).await.unwrap().into_inner();
    stream.message().await.unwrap();
    let handle = server.gcs().handle().clone();
    server.shutdown().await;
    assert_eq!(stream.message().await.unwrap_err().code(), Code::Unavailable);
    assert!(handle.heartbeat(NodeId::random(), 1).await.is_err());
    assert!(client.heartbeat(NodeId::random(), 1).await.is_err());
}
