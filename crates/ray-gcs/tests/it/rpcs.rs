//! Each call through a real client.

use ray_core::error::RayError;
use ray_core::id::{ActorId, JobId, NodeId};
use ray_core::pb::common::actor_info::State;
use ray_core::pb::gcs::event::Event;
use ray_core::pb::gcs::gcs_service_client::GcsServiceClient;
use ray_core::pb::gcs::node_info::State as NodeState;
use ray_core::pb::{common, gcs};
use ray_gcs::GcsClient;
use tokio::task::JoinSet;
use tonic::Code;

use crate::harness::*;

async fn nodes(client: &GcsClient) -> Vec<gcs::NodeInfo> {
    client.list_nodes(gcs::ListNodesRequest {}).await.unwrap().nodes
}

#[tokio::test]
async fn nodes_register_beat_are_listed_and_leave() {
    let (server, client) = start(&memory_config()).await;
    let node_id = NodeId::random();
    assert!(!client.heartbeat(node_id, 1).await.unwrap());
    let info = node_info(node_id, "127.0.0.1:9", cpus(4));
    for _ in 0..2 {
        let interval = client.register_node(info.clone()).await.unwrap();
        assert_eq!(interval.as_millis(), 1000);
    }
    assert!(client.heartbeat(node_id, 1).await.unwrap());
    let listed = nodes(&client).await;
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (listed[0].state(), &listed[0].total, &listed[0].socket_path),
        (NodeState::Alive, &Some(cpus(4)), &"/socket".to_owned())
    );
    assert!(listed[0].start_time_ms > 0);

    let request =
        gcs::UnregisterNodeRequest { node_id: node_id.to_binary(), reason: "maintenance".to_owned() };
    client.unregister_node(request).await.unwrap();
    let listed = nodes(&client).await;
    assert_eq!((listed[0].state(), &listed[0].death_reason[..]), (NodeState::Dead, "maintenance"));
    assert!(!client.heartbeat(node_id, 2).await.unwrap());
    let error = client.register_node(info).await.unwrap_err();
    assert!(matches!(&error, RayError::NodeDied { node_id: id, .. } if *id == node_id), "{error:?}");
    server.shutdown().await;
}

#[tokio::test]
async fn jobs_start_and_finish() {
    let (server, client) = start(&memory_config()).await;
    let job_id = JobId::random();
    let job = gcs::JobInfo {
        job_id: job_id.to_binary(),
        entrypoint: "main.py".to_owned(),
        metadata: [("team".to_owned(), "a".to_owned())].into(),
        ..Default::default()
    };
    client.add_job(gcs::AddJobRequest { job: Some(job) }).await.unwrap();
    let jobs = async || client.list_jobs(gcs::ListJobsRequest {}).await.unwrap().jobs;
    let listed = jobs().await;
    assert_eq!((listed.len(), listed[0].end_time_ms, &listed[0].metadata["team"][..]), (1, 0, "a"));
    client.end_job(job_id, "done").await.unwrap();
    client.end_job(job_id, "again").await.unwrap();
    let listed = jobs().await;
    assert!(listed[0].end_time_ms >= listed[0].start_time_ms && listed[0].start_time_ms > 0);
    assert_eq!(listed[0].end_reason, "done");
    server.shutdown().await;
}

#[tokio::test]
async fn resources_are_added_up_over_living_nodes_by_their_newest_reports() {
    let (server, client) = start(&memory_config()).await;
    let (first, second) = (NodeId::random(), NodeId::random());
    client.register_node(node_info(first, "127.0.0.1:9", cpus(4))).await.unwrap();
    client.register_node(node_info(second, "127.0.0.1:8", cpus(2))).await.unwrap();
    let report = async |version, free| {
        let usage = gcs::NodeUsage {
            node_id: first.to_binary(),
            total: Some(cpus(4)),
            available: Some(cpus(free)),
            version,
            demand: vec![gcs::Demand { shape: Some(cpus(1)), count: 3, infeasible: false }],
        };
        client.report_resources(usage).await
    };
    report(2, 1).await.unwrap();
    report(1, 4).await.unwrap();
    let cluster = client.get_cluster_resources(gcs::GetClusterResourcesRequest {}).await.unwrap();
    assert_eq!((cluster.total, cluster.available), (Some(cpus(6)), Some(cpus(3))));
    let of_first = cluster.nodes.iter().find(|usage| usage.node_id == first.to_binary()).unwrap();
    assert_eq!(of_first.demand[0].count, 3);

    let request = gcs::UnregisterNodeRequest { node_id: first.to_binary(), reason: String::new() };
    client.unregister_node(request).await.unwrap();
    let cluster = client.get_cluster_resources(gcs::GetClusterResourcesRequest {}).await.unwrap();
    assert_eq!(cluster.total, Some(cpus(2)));
    assert!(matches!(report(3, 4).await, Err(RayError::NodeDied { .. })));
    server.shutdown().await;
}

#[tokio::test]
async fn keys_are_put_got_listed_and_deleted() {
    let (server, client) = start(&memory_config()).await;
    let bytes = |text: &str| text.as_bytes().to_vec();
    let put = async |key: &str, value: &str, overwrite| {
        let (namespace, key, value) = (bytes("n"), bytes(key), bytes(value));
        client.kv_put(gcs::KvPutRequest { namespace, key, value, overwrite }).await.unwrap().added
    };
    let get = async |keys: &[&str]| {
        let keys = keys.iter().map(|key| bytes(key)).collect();
        let entries = client.kv_get(gcs::KvGetRequest { namespace: bytes("n"), keys }).await.unwrap().entries;
        entries.into_iter().map(|entry| (entry.key, entry.value)).collect::<Vec<_>>()
    };
    assert!(put("a1", "x", false).await);
    assert!(!put("a1", "y", false).await);
    assert!(put("a2", "z", true).await);
    assert!(put("b", "w", true).await);
    assert_eq!(get(&["b", "none", "a1"]).await, [(bytes("b"), bytes("w")), (bytes("a1"), bytes("x"))]);
    assert!(!put("a1", "y", true).await);
    assert_eq!(get(&["a1"]).await, [(bytes("a1"), bytes("y"))]);
    let request = gcs::KvKeysRequest { namespace: bytes("n"), prefix: bytes("a") };
    assert_eq!(client.kv_keys(request).await.unwrap().keys, [bytes("a1"), bytes("a2")]);
    let delete = |key: &str, prefix| gcs::KvDelRequest { namespace: bytes("n"), key: bytes(key), prefix };
    assert_eq!(client.kv_del(delete("a", false)).await.unwrap().deleted, 0);
    assert_eq!(client.kv_del(delete("a", true)).await.unwrap().deleted, 2);
    assert_eq!(client.kv_del(delete("b", false)).await.unwrap().deleted, 1);
    server.shutdown().await;
}

#[tokio::test]
async fn actors_are_registered_found_listed_and_killed() {
    let (server, client) = start(&memory_config()).await;
    let mut tasks = JoinSet::new();
    let raylet = FakeRaylet::start(&client, cpus(4), &mut tasks).await;
    let actor_id = ActorId::random();
    let spec = common::ActorSpec { name: "bob".to_owned(), ..actor_spec(actor_id) };
    let info = register(&client, spec.clone()).await;
    assert_eq!((info.state(), &info.node_id), (State::PendingCreation, &raylet.node_id().to_binary()));
    let again = register(&client, spec.clone()).await;
    assert_eq!(again.actor_id, info.actor_id);
    raylet.make(&client, actor_id, 0).await;
    assert_eq!(raylet.spec(actor_id).class_blob, [1, 2, 3]);
    let alive = get_actor(&client, actor_id).await;
    assert_eq!((alive.state(), alive.pid, alive.address), (State::Alive, 42, Some(raylet.worker())));
    assert!(alive.version > info.version);

    let by_name = gcs::GetNamedActorRequest { name: "bob".to_owned(), namespace: "space".to_owned() };
    let found = client.get_named_actor(by_name.clone()).await.unwrap().actor.unwrap();
    assert_eq!(found.actor_id, actor_id.to_binary());
    let rival = common::ActorSpec { name: "bob".to_owned(), ..actor_spec(ActorId::random()) };
    let error = client
        .register_actor(gcs::RegisterActorRequest { spec: Some(rival), stillborn: None })
        .await
        .unwrap_err();
    assert!(matches!(error, RayError::AlreadyExists { .. }), "{error:?}");

    let list =
        async |job_id| client.list_actors(gcs::ListActorsRequest { job_id }).await.unwrap().actors.len();
    assert_eq!(list(vec![]).await, 1);
    assert_eq!(list(spec.job_id).await, 1);
    assert_eq!(list(JobId::random().to_binary()).await, 0);

    kill(&client, actor_id, true).await;
    let dead = get_actor(&client, actor_id).await;
    assert_eq!((dead.state(), dead.death_cause.unwrap().message), (State::Dead, "it was killed".to_owned()));
    raylet.ordered(Order::Kill(actor_id, 0, "it was killed".to_owned())).await;
    assert!(matches!(client.get_named_actor(by_name).await, Err(RayError::NotFound { .. })));
    server.shutdown().await;
}

#[tokio::test]
async fn a_subscription_begins_with_what_is_true_and_tells_what_changes() {
    let (server, client) = start(&memory_config()).await;
    let mut tasks = JoinSet::new();
    let raylet = FakeRaylet::start(&client, cpus(4), &mut tasks).await;
    let mut events = client.subscribe(Some(raylet.node_id()));
    let Some(Event::Snapshot(snapshot)) = events.next().await else { panic!("no snapshot") };
    assert_eq!((snapshot.nodes.len(), snapshot.actors.len(), snapshot.usages.len()), (1, 0, 1));

    let actor_id = ActorId::random();
    register(&client, actor_spec(actor_id)).await;
    raylet.make(&client, actor_id, 0).await;
    let job = gcs::JobInfo { job_id: vec![3; 16], ..Default::default() };
    client.add_job(gcs::AddJobRequest { job: Some(job) }).await.unwrap();
    let usage = gcs::NodeUsage { node_id: raylet.node_id().to_binary(), version: 1, ..Default::default() };
    client.report_resources(usage).await.unwrap();

    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(match events.next().await.unwrap() {
            Event::Actor(actor) => format!("{:?}", actor.state()),
            Event::Job(job) => format!("job {}", job.job_id[0]),
            Event::Usage(usage) => format!("usage {}", usage.version),
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(seen, ["PendingCreation", "Alive", "job 3", "usage 1"]);
    server.shutdown().await;
}

#[tokio::test]
async fn a_message_that_makes_no_sense_is_refused_by_field() {
    let (server, client) = start(&memory_config()).await;
    let mut raw = GcsServiceClient::connect(format!("http://{}", client.address())).await.unwrap();
    let mut refused = Vec::new();
    refused.push(raw.register_node(gcs::RegisterNodeRequest { node: None }).await.map(drop));
    refused.push(raw.get_actor(gcs::GetActorRequest { actor_id: vec![1, 2] }).await.map(drop));
    let spec = common::ActorSpec { max_restarts: -2, ..actor_spec(ActorId::random()) };
    refused.push(
        raw.register_actor(gcs::RegisterActorRequest { spec: Some(spec), stillborn: None }).await.map(drop),
    );
    let report = gcs::ReportActorRequest {
        actor_id: vec![1; 16],
        node_id: vec![1; 16],
        outcome: None,
        num_restarts: 0,
    };
    refused.push(raw.report_actor(report.clone()).await.map(drop));
    let unspecified = Some(gcs::report_actor_request::Outcome::Died(common::DeathCause::default()));
    refused
        .push(raw.report_actor(gcs::ReportActorRequest { outcome: unspecified, ..report }).await.map(drop));
    let fields = ["\"node\"", "\"actor_id\"", "\"max_restarts\"", "\"outcome\"", "\"cause.kind\""];
    for (result, field) in refused.into_iter().zip(fields) {
        let status = result.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(field), "{field} is not in {status:?}");
    }
    server.shutdown().await;
}
