//! What the tests share: a control plane on a free port, a raylet that only says what it is told to, and waiting.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ray_core::config::{GcsConfig, GcsStorage};
use ray_core::id::{ActorId, JobId, NodeId, PlacementGroupId, WorkerId};
use ray_core::pb::raylet::raylet_service_server::{RayletService, RayletServiceServer};
use ray_core::pb::{common, gcs, raylet};
use ray_gcs::client::ClientConfig;
use ray_gcs::{GcsClient, GcsServer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// Longest time that anything is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `probe` gives a value.
pub(crate) async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(Instant::now() < deadline, "this never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) fn memory_config() -> GcsConfig {
    GcsConfig { storage: GcsStorage::Memory, ..GcsConfig::default() }
}

pub(crate) async fn start(config: &GcsConfig) -> (GcsServer, GcsClient) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = GcsServer::start(config, listener).await.unwrap();
    let client = connect(&server.address().to_string()).await;
    (server, client)
}

pub(crate) async fn connect(address: &str) -> GcsClient {
    GcsClient::connect(address, ClientConfig::default()).await.unwrap()
}

pub(crate) fn cpus(units: u64) -> common::Resources {
    common::Resources { amounts: [("CPU".to_owned(), units * 10_000)].into() }
}

pub(crate) fn node_info(node_id: NodeId, address: &str, total: common::Resources) -> gcs::NodeInfo {
    gcs::NodeInfo {
        node_id: node_id.to_binary(),
        raylet_address: address.to_owned(),
        hostname: "here".to_owned(),
        total: Some(total),
        socket_path: "/socket".to_owned(),
        ..Default::default()
    }
}

/// An actor that needs one processor to be placed and nothing to live.
pub(crate) fn actor_spec(actor_id: ActorId) -> common::ActorSpec {
    common::ActorSpec {
        actor_id: actor_id.to_binary(),
        job_id: JobId::from_bytes([1; 16]).to_binary(),
        namespace: "space".to_owned(),
        class_name: "Counter".to_owned(),
        placement_resources: Some(cpus(1)),
        class_blob: vec![1, 2, 3],
        ..Default::default()
    }
}

pub(crate) async fn register(client: &GcsClient, spec: common::ActorSpec) -> common::ActorInfo {
    let request = gcs::RegisterActorRequest { spec: Some(spec), stillborn: None };
    client.register_actor(request).await.unwrap().actor.unwrap()
}

pub(crate) async fn get_actor(client: &GcsClient, actor_id: ActorId) -> common::ActorInfo {
    let request = gcs::GetActorRequest { actor_id: actor_id.to_binary() };
    client.get_actor(request).await.unwrap().actor.unwrap()
}

pub(crate) async fn actor_in_state(
    client: &GcsClient,
    actor_id: ActorId,
    state: common::actor_info::State,
) -> common::ActorInfo {
    eventually(&format!("{actor_id} is {state:?}"), async || {
        let actor = get_actor(client, actor_id).await;
        (actor.state() == state).then_some(actor)
    })
    .await
}

pub(crate) async fn kill(client: &GcsClient, actor_id: ActorId, no_restart: bool) {
    let request = gcs::KillActorRequest { actor_id: actor_id.to_binary(), no_restart, cause: None };
    client.kill_actor(request).await.unwrap();
}

pub(crate) fn died(kind: common::death_cause::Kind, message: &str) -> common::DeathCause {
    common::DeathCause { kind: kind.into(), message: message.to_owned(), error: vec![] }
}

/// What a raylet was ordered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Order {
    Create(ActorId, u64),
    Kill(ActorId, u64, String),
    /// Bundles of this group and attempt, by their indices, and whether at once for good.
    Reserve(PlacementGroupId, u64, Vec<u32>, bool),
    Commit(PlacementGroupId, u64),
    /// Whether those of earlier attempts, too.
    Return(PlacementGroupId, u64, bool),
}

#[derive(Default)]
struct RayletState {
    orders: Vec<Order>,
    /// Answers that it gives to the next calls instead of taking an order.
    failures: Vec<Status>,
    specs: BTreeMap<ActorId, common::ActorSpec>,
}

/// A raylet that takes orders and does nothing about them.
#[derive(Clone)]
pub(crate) struct FakeRaylet {
    state: Arc<Mutex<RayletState>>,
    node_id: NodeId,
    pub(crate) address: String,
}

impl FakeRaylet {
    /// One that does not serve yet.
    pub(crate) fn at(node_id: NodeId, address: String) -> Self {
        Self { state: Arc::default(), node_id, address }
    }

    /// Serves on a free port until `tasks` is dropped, and registers.
    pub(crate) async fn start(client: &GcsClient, total: common::Resources, tasks: &mut JoinSet<()>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let raylet = Self::at(NodeId::random(), listener.local_addr().unwrap().to_string());
        raylet.serve(listener, tasks);
        let info = node_info(raylet.node_id(), &raylet.address, total);
        client.register_node(info).await.unwrap();
        raylet
    }

    pub(crate) fn serve(&self, listener: TcpListener, tasks: &mut JoinSet<()>) {
        let service = RayletServiceServer::new(self.clone());
        tasks.spawn(async move {
            let incoming = TcpIncoming::from(listener);
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
    }

    pub(crate) fn node_id(&self) -> NodeId {
        self.node_id
    }

    pub(crate) fn orders(&self) -> Vec<Order> {
        self.state.lock().unwrap().orders.clone()
    }

    pub(crate) fn spec(&self, actor_id: ActorId) -> common::ActorSpec {
        self.state.lock().unwrap().specs[&actor_id].clone()
    }

    /// The next calls fail like this, the last one first.
    pub(crate) fn fail_with(&self, failures: Vec<Status>) {
        self.state.lock().unwrap().failures = failures;
    }

    pub(crate) async fn ordered(&self, order: Order) {
        eventually(&format!("{order:?}, but {:?}", self.orders()), async || {
            self.orders().contains(&order).then_some(())
        })
        .await;
    }

    pub(crate) fn worker(&self) -> common::WorkerAddress {
        common::WorkerAddress {
            worker_id: WorkerId::from_bytes([5; 16]).to_binary(),
            node_id: self.node_id().to_binary(),
            socket_path: "/worker".to_owned(),
            tcp_address: String::new(),
        }
    }

    /// Waits for the order to make this incarnation and reports that it takes calls.
    pub(crate) async fn make(&self, client: &GcsClient, actor_id: ActorId, num_restarts: u64) {
        self.ordered(Order::Create(actor_id, num_restarts)).await;
        client.report_actor_alive(actor_id, num_restarts, self.worker(), 42).await.unwrap();
    }

    fn take(&self, order: Order) -> Result<(), Status> {
        let mut state = self.state.lock().unwrap();
        match state.failures.pop() {
            Some(status) => Err(status),
            None => {
                state.orders.push(order);
                Ok(())
            }
        }
    }
}

// Written as `async_trait` writes methods, because it does not look into macros.
macro_rules! not_offered {
    ($($name:ident($request:ident) -> $reply:ident;)*) => {$(
        fn $name<'a, 'b>(
            &'a self,
            _: Request<raylet::$request>,
        ) -> Pin<Box<dyn Future<Output = Result<Response<raylet::$reply>, Status>> + Send + 'b>>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async { Err(Status::unimplemented("not offered")) })
        }
    )*};
}

#[tonic::async_trait]
impl RayletService for FakeRaylet {
    async fn create_actor(
        &self,
        request: Request<raylet::CreateActorRequest>,
    ) -> Result<Response<raylet::CreateActorReply>, Status> {
        let raylet::CreateActorRequest { spec, num_restarts, bundle_index: _ } = request.into_inner();
        let spec = spec.unwrap();
        let actor_id = ActorId::from_binary(&spec.actor_id).unwrap();
        self.state.lock().unwrap().specs.insert(actor_id, spec);
        self.take(Order::Create(actor_id, num_restarts))?;
        Ok(Response::new(raylet::CreateActorReply {}))
    }

    async fn kill_actor(
        &self,
        request: Request<raylet::KillActorRequest>,
    ) -> Result<Response<raylet::KillActorReply>, Status> {
        let raylet::KillActorRequest { actor_id, num_restarts, cause } = request.into_inner();
        let actor_id = ActorId::from_binary(&actor_id).unwrap();
        self.take(Order::Kill(actor_id, num_restarts, cause.unwrap().message))?;
        Ok(Response::new(raylet::KillActorReply {}))
    }

    async fn reserve_bundles(
        &self,
        request: Request<raylet::ReserveBundlesRequest>,
    ) -> Result<Response<raylet::ReserveBundlesReply>, Status> {
        let request = request.into_inner();
        let group_id = PlacementGroupId::from_binary(&request.placement_group_id).unwrap();
        let indices: Vec<_> = request.bundles.iter().map(|bundle| bundle.index).collect();
        self.take(Order::Reserve(group_id, request.attempt, indices, request.commit))?;
        Ok(Response::new(raylet::ReserveBundlesReply { reserved: true, reason: String::new() }))
    }

    async fn commit_bundles(
        &self,
        request: Request<raylet::CommitBundlesRequest>,
    ) -> Result<Response<raylet::CommitBundlesReply>, Status> {
        let request = request.into_inner();
        let group_id = PlacementGroupId::from_binary(&request.placement_group_id).unwrap();
        self.take(Order::Commit(group_id, request.attempt))?;
        Ok(Response::new(raylet::CommitBundlesReply {}))
    }

    async fn return_bundles(
        &self,
        request: Request<raylet::ReturnBundlesRequest>,
    ) -> Result<Response<raylet::ReturnBundlesReply>, Status> {
        let request = request.into_inner();
        let group_id = PlacementGroupId::from_binary(&request.placement_group_id).unwrap();
        self.take(Order::Return(group_id, request.attempt, request.all))?;
        Ok(Response::new(raylet::ReturnBundlesReply {}))
    }

    not_offered! {
        submit_task(SubmitTaskRequest) -> SubmitTaskReply;
        cancel_task(CancelTaskRequest) -> CancelTaskReply;
        get_task_status(GetTaskStatusRequest) -> GetTaskStatusReply;
        register_worker(RegisterWorkerRequest) -> RegisterWorkerReply;
        unregister_worker(UnregisterWorkerRequest) -> UnregisterWorkerReply;
        request_lease(RequestLeaseRequest) -> RequestLeaseReply;
        release_lease(ReleaseLeaseRequest) -> ReleaseLeaseReply;
        wait_object(WaitObjectRequest) -> WaitObjectReply;
        get_object_locations(GetObjectLocationsRequest) -> GetObjectLocationsReply;
        recall_objects(RecallObjectsRequest) -> RecallObjectsReply;
        get_resources(GetResourcesRequest) -> GetResourcesReply;
        inspect(InspectRequest) -> InspectReply;
        shutdown(ShutdownRequest) -> ShutdownReply;
    }

    type TransferObjectStream = tokio_stream::Empty<Result<raylet::ObjectChunk, Status>>;

    async fn transfer_object(
        &self,
        _: Request<raylet::TransferObjectRequest>,
    ) -> Result<Response<Self::TransferObjectStream>, Status> {
        Err(Status::unimplemented("not offered"))
    }
}
