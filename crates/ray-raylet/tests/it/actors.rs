use bytes::Bytes;
use prost::Message;
use ray_core::id::{ActorId, FunctionId, NodeId};
use ray_core::pb::common::actor_info::State;
use ray_core::pb::common::death_cause::Kind;
use ray_core::pb::common::{ActorInfo, ActorSpec, DeathCause, WorkerAddress};
use ray_core::pb::gcs;
use ray_core::resource::Resources;
use ray_link::message::GcsMethod;
use ray_link::{FromRaylet, ToRaylet};

use crate::world::{Client, World};

/// Calls the control plane through the node.
#[track_caller]
fn call<R: Message + Default>(client: &mut Client, method: GcsMethod, request: &impl Message) -> R {
    let body = Bytes::from(request.encode_to_vec());
    client.tell(ToRaylet::GcsCall { request: 77, method, body });
    let reply = client.wait_for("the control plane's answer", |message| match message {
        FromRaylet::GcsReply { request: 77, result } => Some(result.clone()),
        _ => None,
    });
    R::decode(reply.unwrap_or_else(|error| panic!("{error:?}"))).unwrap()
}

#[track_caller]
fn register(driver: &mut Client, actor_id: ActorId, max_restarts: i64) {
    let one_cpu = Resources::new().with_cpu(1.0).unwrap();
    let spec = ActorSpec {
        actor_id: actor_id.to_binary(),
        job_id: driver.job_id.to_binary(),
        class_name: "Counter".to_owned(),
        placement_resources: Some((&one_cpu).into()),
        resources: Some((&Resources::new()).into()),
        max_restarts,
        max_concurrency: 1,
        class_id: FunctionId::of(b"class").to_binary(),
        owner: Some(WorkerAddress {
            worker_id: driver.worker_id.to_binary(),
            node_id: NodeId::random().to_binary(),
            ..WorkerAddress::default()
        }),
        ..ActorSpec::default()
    };
    let request = gcs::RegisterActorRequest { spec: Some(spec), stillborn: None };
    let _: gcs::RegisterActorReply = call(driver, GcsMethod::RegisterActor, &request);
    driver.tell(ToRaylet::SubscribeActor { actor_id });
}

/// Waits until the actor is in this state.
#[track_caller]
fn wait_for_state(driver: &mut Client, actor_id: ActorId, state: State) -> ActorInfo {
    driver.wait_for(&format!("{state:?}"), |message| match message {
        FromRaylet::ActorState { info } => {
            let info = ActorInfo::decode(info.clone()).unwrap();
            (info.actor_id == actor_id.to_binary() && info.state() == state).then_some(info)
        }
        _ => None,
    })
}

#[track_caller]
fn asked_to_create(worker: &mut Client) -> (ActorSpec, u64) {
    worker.wait_for("the order to become an actor", |message| match message {
        FromRaylet::CreateActor { spec, num_restarts, .. } => {
            Some((ActorSpec::decode(spec.clone()).unwrap(), *num_restarts))
        }
        _ => None,
    })
}

#[track_caller]
fn become_actor(world: &World, actor_id: ActorId, num_restarts: u64) -> Client {
    let mut worker = world.worker();
    let (spec, restarts) = asked_to_create(&mut worker);
    assert_eq!((spec.actor_id, restarts), (actor_id.to_binary(), num_restarts));
    worker.tell(ToRaylet::ActorCreated { actor_id, num_restarts, result: Ok(()) });
    worker
}

#[test]
fn an_actor_lives_in_a_worker_is_restarted_and_dies_when_killed() {
    let world = World::start(1.0);
    let mut driver = world.driver();
    let actor_id = ActorId::random();
    register(&mut driver, actor_id, 1);
    let worker = become_actor(&world, actor_id, 0);
    let info = wait_for_state(&mut driver, actor_id, State::Alive);
    let address = info.address.expect("where it lives");
    assert_eq!(address.worker_id, worker.worker_id.to_binary());
    assert_eq!(address.socket_path, format!("/nowhere/{}", worker.worker_id));

    world.kill(worker);
    wait_for_state(&mut driver, actor_id, State::Restarting);
    let worker = become_actor(&world, actor_id, 1);
    let info = wait_for_state(&mut driver, actor_id, State::Alive);
    assert_eq!(info.num_restarts, 1);

    let cause = DeathCause { kind: Kind::Killed.into(), message: "kill".to_owned(), error: Vec::new() };
    let request =
        gcs::KillActorRequest { actor_id: actor_id.to_binary(), no_restart: true, cause: Some(cause) };
    let _: gcs::KillActorReply = call(&mut driver, GcsMethod::KillActor, &request);
    let info = wait_for_state(&mut driver, actor_id, State::Dead);
    assert_eq!(info.death_cause.unwrap().kind(), Kind::Killed);
    crate::world::eventually("the end of the process", || (!world.lives(worker.worker_id)).then_some(()));
}

#[test]
fn a_constructor_that_raises_ends_the_actor_with_its_error() {
    let world = World::start(1.0);
    let mut driver = world.driver();
    let actor_id = ActorId::random();
    register(&mut driver, actor_id, 5);
    let mut worker = world.worker();
    asked_to_create(&mut worker);
    let result = Err(("ValueError: no".to_owned(), Bytes::from_static(b"pickled")));
    worker.tell(ToRaylet::ActorCreated { actor_id, num_restarts: 0, result });
    // The node kills the process, and its connection goes with it.
    crate::world::eventually("the end of the process", || (!world.lives(worker.worker_id)).then_some(()));
    drop(worker);
    let cause = wait_for_state(&mut driver, actor_id, State::Dead).death_cause.unwrap();
    assert_eq!((cause.kind(), cause.error), (Kind::CreationFailed, b"pickled".to_vec()));
}

#[test]
fn the_actors_of_a_lost_driver_end_with_its_job() {
    let world = World::start(1.0);
    let (mut driver, mut watcher) = (world.driver(), world.driver());
    let actor_id = ActorId::random();
    register(&mut driver, actor_id, -1);
    watcher.tell(ToRaylet::SubscribeActor { actor_id });
    let worker = become_actor(&world, actor_id, 0);
    wait_for_state(&mut driver, actor_id, State::Alive);
    drop(driver);
    let cause = wait_for_state(&mut watcher, actor_id, State::Dead).death_cause.unwrap();
    assert_eq!(cause.kind(), Kind::JobFinished);
    crate::world::eventually("the end of the process", || (!world.lives(worker.worker_id)).then_some(()));
}

#[test]
fn the_control_plane_tells_what_the_cluster_has() {
    let world = World::start(3.0);
    let mut driver = world.driver();
    driver.demand(1, 1.0, 1);
    let _worker = world.worker();
    driver.granted();
    crate::world::eventually("the report of what is free", || {
        let request = gcs::GetClusterResourcesRequest {};
        let reply: gcs::GetClusterResourcesReply =
            call(&mut driver, GcsMethod::GetClusterResources, &request);
        let cpus = |resources: Option<ray_core::pb::common::Resources>| {
            Resources::try_from(resources.unwrap()).unwrap().get("CPU").to_f64()
        };
        ((cpus(reply.total), cpus(reply.available)) == (3.0, 2.0)).then_some(())
    });
}
