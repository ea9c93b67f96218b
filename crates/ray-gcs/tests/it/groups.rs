//! The life of placement groups between the control plane and raylets.

use ray_core::id::{ActorId, PlacementGroupId};
use ray_core::pb::common;
use ray_core::pb::common::placement_group_info::State;
use ray_core::pb::common::placement_group_spec::Strategy;
use ray_core::pb::gcs;
use ray_gcs::GcsClient;
use tokio::task::JoinSet;
use tonic::Status;

use crate::harness::*;

fn spec(group_id: PlacementGroupId, strategy: Strategy, bundles: usize) -> common::PlacementGroupSpec {
    let bundle = common::Bundle { resources: Some(cpus(1)), selector: None };
    common::PlacementGroupSpec {
        placement_group_id: group_id.to_binary(),
        name: "group".to_owned(),
        namespace: "space".to_owned(),
        strategy: strategy.into(),
        bundles: vec![bundle; bundles],
        job_id: actor_spec(ActorId::random()).job_id,
        ..common::PlacementGroupSpec::default()
    }
}

async fn create(client: &GcsClient, spec: common::PlacementGroupSpec) {
    let request = gcs::CreatePlacementGroupRequest { spec: Some(spec) };
    client.create_placement_group(request).await.unwrap();
}

async fn in_state(
    client: &GcsClient,
    group_id: PlacementGroupId,
    state: State,
) -> common::PlacementGroupInfo {
    eventually(&format!("{state:?}"), async || {
        let request = gcs::GetPlacementGroupRequest { placement_group_id: group_id.to_binary() };
        let group = client.get_placement_group(request).await.unwrap().group.unwrap();
        (group.state() == state).then_some(group)
    })
    .await
}

#[tokio::test]
async fn a_group_on_two_nodes_is_reserved_committed_and_returned() {
    let (server, client) = start(&memory_config()).await;
    let mut tasks = JoinSet::new();
    let first = FakeRaylet::start(&client, cpus(4), &mut tasks).await;
    let second = FakeRaylet::start(&client, cpus(4), &mut tasks).await;
    let group_id = PlacementGroupId::random();
    create(&client, spec(group_id, Strategy::StrictSpread, 2)).await;
    let created = in_state(&client, group_id, State::Created).await;
    assert_eq!(created.bundles_committed, [true, true]);
    for raylet in [&first, &second] {
        let index = created.bundle_nodes.iter().position(|node| *node == raylet.node_id().to_binary());
        let index = index.unwrap() as u32;
        raylet.ordered(Order::Reserve(group_id, 1, vec![index], false)).await;
        raylet.ordered(Order::Commit(group_id, 1)).await;
    }
    let named =
        gcs::GetNamedPlacementGroupRequest { name: "group".to_owned(), namespace: "space".to_owned() };
    assert_eq!(client.get_named_placement_group(named.clone()).await.unwrap().group, Some(created));
    let request = gcs::RemovePlacementGroupRequest { placement_group_id: group_id.to_binary() };
    client.remove_placement_group(request.clone()).await.unwrap();
    client.remove_placement_group(request).await.unwrap();
    for raylet in [&first, &second] {
        raylet.ordered(Order::Return(group_id, 2, true)).await;
    }
    assert!(client.get_named_placement_group(named).await.is_err());
    let list = client.list_placement_groups(gcs::ListPlacementGroupsRequest {}).await.unwrap();
    assert_eq!(list.groups[0].state(), State::Removed);
    server.shutdown().await;
}

#[tokio::test]
async fn a_group_on_one_node_takes_one_exchange_and_its_actors_go_into_it() {
    let (server, client) = start(&memory_config()).await;
    let mut tasks = JoinSet::new();
    let raylet = FakeRaylet::start(&client, cpus(4), &mut tasks).await;
    let group_id = PlacementGroupId::random();
    // A call that does not get through is repeated.
    raylet.fail_with(vec![Status::unavailable("not now")]);
    create(&client, spec(group_id, Strategy::Pack, 2)).await;
    in_state(&client, group_id, State::Created).await;
    assert_eq!(raylet.orders(), [Order::Reserve(group_id, 1, vec![0, 1], true)]);
    let actor_id = ActorId::random();
    let strategy = common::SchedulingStrategy {
        kind: common::scheduling_strategy::Kind::Bundle.into(),
        placement_group_id: group_id.to_binary(),
        bundle_index: -1,
        ..common::SchedulingStrategy::default()
    };
    register(&client, common::ActorSpec { strategy: Some(strategy), ..actor_spec(actor_id) }).await;
    raylet.make(&client, actor_id, 0).await;
    let request = gcs::RemovePlacementGroupRequest { placement_group_id: group_id.to_binary() };
    client.remove_placement_group(request).await.unwrap();
    let dead = actor_in_state(&client, actor_id, common::actor_info::State::Dead).await;
    let cause = dead.death_cause.unwrap();
    assert_eq!(cause.kind(), common::death_cause::Kind::PlacementGroupRemoved);
    assert!(cause.message.contains(&group_id.hex()), "{}", cause.message);
    server.shutdown().await;
}
