use ray_core::id::{ActorId, JobId, LeaseId, NodeId, ObjectId, TaskId, WorkerId};
use ray_core::pb::common::WorkerAddress;
use ray_core::pb::raylet as pb;
use ray_core::pb::raylet::raylet_service_client::RayletServiceClient;
use ray_core::resource::Resources;
use ray_link::{FromRaylet, ToRaylet};
use tokio::runtime::Runtime;
use tonic::Code;
use tonic::transport::Channel;

use crate::world::{Client, World, eventually};

/// A real client of the node's gRPC service.
struct Raylet {
    runtime: Runtime,
    client: RayletServiceClient<Channel>,
}

impl Raylet {
    fn connect(world: &World) -> Self {
        let runtime = Runtime::new().unwrap();
        let address = format!("http://{}", world.info.gcs_address);
        let client = runtime.block_on(RayletServiceClient::connect(address)).unwrap();
        Self { runtime, client }
    }

    fn state(&mut self, task_id: TaskId) -> (pb::TaskState, String) {
        let request = pb::GetTaskStatusRequest { task_id: task_id.to_binary() };
        let reply = self.runtime.block_on(self.client.get_task_status(request)).unwrap().into_inner();
        (reply.state(), reply.reason)
    }

    #[track_caller]
    fn wait_for_state(&mut self, task_id: TaskId, state: pb::TaskState) -> String {
        eventually(&format!("{state:?}"), || {
            let (actual, reason) = self.state(task_id);
            (actual == state).then_some(reason)
        })
    }

    fn submit(&mut self, task_id: TaskId, cpus: f64, max_retries: u32) -> Result<ObjectId, tonic::Status> {
        let request = pb::SubmitTaskRequest {
            task_id: task_id.to_binary(),
            job_id: JobId::random().to_binary(),
            function: "module:name".to_owned(),
            payload: b"in".to_vec(),
            resources: Some((&Resources::new().with_cpu(cpus).unwrap()).into()),
            max_retries,
        };
        let reply = self.runtime.block_on(self.client.submit_task(request))?.into_inner();
        Ok(ObjectId::from_binary(&reply.object_id).unwrap())
    }
}

#[track_caller]
fn asked_to_run(worker: &mut Client) -> (TaskId, Vec<u8>) {
    worker.wait_for("a task", |message| match message {
        FromRaylet::RunTask { task_id, function, payload } => {
            assert_eq!(function, "module:name");
            Some((*task_id, payload.to_vec()))
        }
        _ => None,
    })
}

#[test]
fn a_task_by_grpc_runs_and_its_result_is_transferred() {
    let world = World::start(1.0);
    let mut raylet = Raylet::connect(&world);
    let task_id = TaskId::random();
    let object_id = raylet.submit(task_id, 1.0, 0).unwrap();
    assert_eq!(raylet.submit(task_id, 1.0, 0).unwrap(), object_id, "submitting again is submitting once");
    let mut worker = world.worker();
    assert_eq!(asked_to_run(&mut worker), (task_id, b"in".to_vec()));
    assert_eq!(raylet.state(task_id).0, pb::TaskState::TaskRunning);
    let result: Vec<u8> = (0..3_000_000u32).map(|at| at as u8).collect();
    worker.tell(ToRaylet::TaskDone { task_id, result: Ok(result.clone().into()) });
    let (runtime, client) = (&raylet.runtime, &mut raylet.client);
    let object = object_id.to_binary();
    let request = pb::WaitObjectRequest { object_id: object.clone(), timeout_ms: 20_000 };
    assert!(runtime.block_on(client.wait_object(request)).unwrap().into_inner().ready);
    let request = pb::GetObjectLocationsRequest { object_id: object.clone() };
    let locations = runtime.block_on(client.get_object_locations(request)).unwrap().into_inner();
    assert_eq!(locations.node_ids, [world.info.node_id.to_binary()]);
    assert_eq!(locations.size_bytes, 3_000_000);
    let received = runtime.block_on(async {
        let request = pb::TransferObjectRequest { object_id: object, offset: 1, ..Default::default() };
        let mut chunks = client.transfer_object(request).await.unwrap().into_inner();
        let mut received = Vec::new();
        while let Some(chunk) = chunks.message().await.unwrap() {
            assert_eq!((chunk.offset, chunk.total_bytes), (1 + received.len() as u64, 3_000_000));
            received.extend(chunk.data);
        }
        received
    });
    assert!(received == result[1..]);
    assert_eq!(raylet.state(task_id).0, pb::TaskState::TaskFinished);
}

#[test]
fn a_task_is_retried_after_its_worker_died_and_fails_with_the_cause() {
    let world = World::start(1.0);
    let mut raylet = Raylet::connect(&world);
    let task_id = TaskId::random();
    raylet.submit(task_id, 1.0, 1).unwrap();
    for _ in 0..2 {
        let mut worker = world.worker();
        asked_to_run(&mut worker);
        world.kill(worker);
    }
    let reason = raylet.wait_for_state(task_id, pb::TaskState::TaskFailed);
    assert_eq!(reason, "its worker died: its process was killed by signal 9 (SIGKILL)");
}

#[test]
fn a_failing_function_fails_its_task_and_not_the_worker() {
    let world = World::start(1.0);
    let mut raylet = Raylet::connect(&world);
    let (first, second) = (TaskId::random(), TaskId::random());
    raylet.submit(first, 1.0, 0).unwrap();
    let mut worker = world.worker();
    asked_to_run(&mut worker);
    worker.tell(ToRaylet::TaskDone { task_id: first, result: Err("ValueError: no".to_owned()) });
    assert_eq!(raylet.wait_for_state(first, pb::TaskState::TaskFailed), "ValueError: no");
    raylet.submit(second, 1.0, 0).unwrap();
    raylet.wait_for_state(second, pb::TaskState::TaskPending);
}

#[test]
fn tasks_are_cancelled_before_they_run_and_by_force_while_they_do() {
    let world = World::start(1.0);
    let mut raylet = Raylet::connect(&world);
    let (running, pending) = (TaskId::random(), TaskId::random());
    raylet.submit(running, 1.0, 3).unwrap();
    let mut worker = world.worker();
    asked_to_run(&mut worker);
    raylet.submit(pending, 1.0, 0).unwrap();
    assert_eq!(raylet.state(pending).1, "waits for resources: 1 of \"CPU\" asked, 0 free");
    let mut cancel = |task_id: TaskId, force| {
        let request = pb::CancelTaskRequest { task_id: task_id.to_binary(), force };
        raylet.runtime.block_on(raylet.client.cancel_task(request)).map(|reply| reply.into_inner().cancelled)
    };
    assert!(cancel(pending, false).unwrap());
    assert_eq!(cancel(running, false).unwrap_err().code(), Code::InvalidArgument);
    assert!(cancel(running, true).unwrap());
    assert!(!cancel(running, true).unwrap());
    assert!(!cancel(TaskId::random(), true).unwrap());
    eventually("the end of the process", || (!world.lives(worker.worker_id)).then_some(()));
    assert_eq!(raylet.state(running).0, pb::TaskState::TaskCancelled);
}

#[test]
fn what_makes_no_sense_or_can_never_run_is_refused_at_once() {
    let world = World::start(1.0);
    let mut raylet = Raylet::connect(&world);
    assert_eq!(raylet.submit(TaskId::random(), 2.0, 0).unwrap_err().code(), Code::FailedPrecondition);
    let (runtime, client) = (&raylet.runtime, &mut raylet.client);
    let request = pb::SubmitTaskRequest { function: "no colon".to_owned(), ..Default::default() };
    let refused = runtime.block_on(client.submit_task(request)).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("function"), "{refused}");
    let request = pb::GetTaskStatusRequest { task_id: TaskId::random().to_binary() };
    assert_eq!(runtime.block_on(client.get_task_status(request)).unwrap_err().code(), Code::NotFound);
    let request = pb::WaitObjectRequest {
        object_id: ObjectId::for_return(TaskId::random(), 0).to_binary(),
        timeout_ms: 0,
    };
    assert!(!runtime.block_on(client.wait_object(request)).unwrap().into_inner().ready);
    let request = pb::CreateActorRequest { spec: None, num_restarts: 0, bundle_index: -1 };
    assert_eq!(runtime.block_on(client.create_actor(request)).unwrap_err().code(), Code::InvalidArgument);
    let request = pb::KillActorRequest { actor_id: ActorId::random().to_binary(), ..Default::default() };
    runtime.block_on(client.kill_actor(request)).unwrap();
}

#[test]
fn a_lease_by_grpc_is_granted_busy_or_infeasible() {
    let world = World::start(1.0);
    let mut raylet = Raylet::connect(&world);
    let (runtime, client) = (&raylet.runtime, &mut raylet.client);
    let lease_id = LeaseId::random();
    let request = |lease_id: LeaseId, cpus, timeout_ms| pb::RequestLeaseRequest {
        lease_id: lease_id.to_binary(),
        job_id: JobId::nil().to_binary(),
        resources: Some((&Resources::new().with_cpu(cpus).unwrap()).into()),
        timeout_ms,
    };
    let mut asking = client.clone();
    let first = runtime.spawn(async move { asking.request_lease(request(lease_id, 1.0, 20_000)).await });
    let worker = world.worker();
    let granted = |reply: pb::RequestLeaseReply| match reply.outcome {
        Some(pb::request_lease_reply::Outcome::Granted(granted)) => granted.worker.unwrap().worker_id,
        other => panic!("{other:?}"),
    };
    let reply = runtime.block_on(first).unwrap().unwrap().into_inner();
    assert_eq!(granted(reply), worker.worker_id.to_binary());
    let again = runtime.block_on(client.request_lease(request(lease_id, 1.0, 0))).unwrap().into_inner();
    assert_eq!(granted(again), worker.worker_id.to_binary());
    let mut ask = |cpus| {
        runtime
            .block_on(client.request_lease(request(LeaseId::random(), cpus, 1)))
            .unwrap()
            .into_inner()
            .outcome
    };
    assert!(matches!(ask(1.0), Some(pb::request_lease_reply::Outcome::Busy(_))));
    assert!(matches!(ask(9.0), Some(pb::request_lease_reply::Outcome::Infeasible(_))));
    let status = runtime.block_on(client.get_resources(pb::GetResourcesRequest {})).unwrap().into_inner();
    assert_eq!((status.workers, status.leases, status.queued), (1, 1, 0));
    let release = pb::ReleaseLeaseRequest { lease_id: lease_id.to_binary() };
    runtime.block_on(client.release_lease(release)).unwrap();
    let status = runtime.block_on(client.get_resources(pb::GetResourcesRequest {})).unwrap().into_inner();
    assert_eq!(status.leases, 0);
    assert_eq!(status.available, status.total);
}

#[test]
fn a_worker_started_by_others_is_leased_until_it_is_unregistered() {
    let world = World::start(1.0);
    let mut raylet = Raylet::connect(&world);
    let (runtime, client) = (&raylet.runtime, &mut raylet.client);
    let worker_id = WorkerId::random();
    let address = WorkerAddress {
        worker_id: worker_id.to_binary(),
        node_id: NodeId::random().to_binary(),
        socket_path: "/elsewhere".to_owned(),
        tcp_address: String::new(),
    };
    let register = pb::RegisterWorkerRequest { address: Some(address), pid: 0 };
    runtime.block_on(client.register_worker(register.clone())).unwrap();
    runtime.block_on(client.register_worker(register)).unwrap();
    let mut driver = world.driver();
    driver.demand(1, 1.0, 1);
    let (_, leased) = driver.granted();
    assert_eq!((leased.worker_id, leased.socket_path.as_str()), (worker_id, "/elsewhere"));
    let unregister =
        pb::UnregisterWorkerRequest { worker_id: worker_id.to_binary(), reason: "it left".to_owned() };
    runtime.block_on(client.unregister_worker(unregister)).unwrap();
    assert_eq!(driver.worker_died(worker_id), "it left");
}

#[test]
fn the_node_is_shut_down_by_grpc() {
    let mut world = World::start(1.0);
    let mut raylet = Raylet::connect(&world);
    let request = pb::ShutdownRequest { reason: "test".to_owned() };
    raylet.runtime.block_on(raylet.client.shutdown(request)).unwrap();
    world.join().unwrap();
}

#[test]
fn an_object_put_by_grpc_is_read_in_shared_memory_by_a_process_of_the_node() {
    use ray_core::pb::object_store as objects;
    use ray_core::pb::object_store::object_store_service_client::ObjectStoreServiceClient;
    use ray_object_store::shm::{Access, ShmRegion};

    let world = World::start(1.0);
    let mut driver = world.driver();
    let memory = driver.memory.take().expect("it came with the welcome");
    let memory = ShmRegion::from_fd(memory, Access::ReadOnly).unwrap();
    let object_id = ObjectId::for_put(TaskId::random(), 0);
    let runtime = Runtime::new().unwrap();
    let address = format!("http://{}", world.info.gcs_address);
    let mut client = runtime.block_on(ObjectStoreServiceClient::connect(address)).unwrap();
    let object = objects::Object { object_id: object_id.to_binary(), data: b"hello".to_vec() };
    runtime.block_on(client.put(objects::PutRequest { object: Some(object) })).unwrap();
    // Who has heard of an object asks for it when it is there.
    driver.tell(ToRaylet::GetObjects { request: 1, object_ids: vec![object_id], elsewhere: Vec::new() });
    let (offset, size) = driver.wait_for("the object", |message| match message {
        FromRaylet::ObjectReady { request: 1, offset, size, .. } => Some((*offset, *size)),
        _ => None,
    });
    assert_eq!(&*memory.slice(offset, size).unwrap(), b"hello");
}
