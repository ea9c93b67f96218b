//! `RayletService`: what the control plane, other nodes and tools ask of a node.
//!
//! Each call becomes a command for the thread that owns the machine, and its answer a reply.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use ray_core::constraint::{BundleId, Constraint};
use ray_core::error::RayError;
use ray_core::id::{NodeId, ObjectId};
use ray_core::pb::raylet as pb;
use ray_core::pb::raylet::raylet_service_server::RayletService;
use ray_core::resource::Resources;
use ray_core::runtime_env::RuntimeEnv;
use ray_core::serialize;
use ray_core::traits::ObjectStore;
use ray_core::wire::{self, WireError};
use ray_link::message::LeasedWorker;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::node::effect::{ActorOrder, RemoteOutcome};
use crate::node::gcs_port::address;
use crate::node::groups::ReserveOrder;
use crate::node::handle::{Command, NodeHandle};
use crate::node::object_store::NodeObjectStore;
use crate::node::store_port::{PinnedObject, StoreCommand};
use crate::task_table::{TaskSpec, TaskState};

/// Longest time for which a call waits, whatever the caller asks for.
const MAX_WAIT: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a transfer waits for its object to be written to its end, or read from disk.
const LEND_LIMIT: Duration = Duration::from_secs(10);
/// How long a transfer waits for its reader to take a chunk.
const READ_LIMIT: Duration = Duration::from_secs(30);
/// Chunks of one transfer that may wait for the network.
const CHUNKS_AHEAD: usize = 4;

/// The service of one node.
#[derive(Debug, Clone)]
pub(crate) struct RayletGrpc {
    node: NodeHandle,
    objects: NodeObjectStore,
    node_id: NodeId,
    chunk_bytes: u64,
}

impl RayletGrpc {
    /// Answers for this node, which sends objects in chunks of this size.
    pub(crate) fn new(node: NodeHandle, node_id: NodeId, chunk_bytes: u64) -> Self {
        Self { objects: NodeObjectStore::new(node.clone()), node, node_id, chunk_bytes }
    }
}

fn wait(timeout_ms: u64) -> Duration {
    Duration::from_millis(timeout_ms).min(MAX_WAIT)
}

fn resources(message: Option<ray_core::pb::common::Resources>) -> Result<Resources, WireError> {
    message.map_or_else(|| Ok(Resources::new()), Resources::try_from)
}

fn task_spec(request: pb::SubmitTaskRequest) -> Result<TaskSpec, WireError> {
    let invalid = |reason: &str| WireError::Invalid { field: "function", reason: reason.to_owned() };
    match request.function.split_once(':') {
        Some((module, name)) if !module.is_empty() && !name.is_empty() => {}
        _ => return Err(invalid(&format!("{:?} is not written as \"module:name\"", request.function))),
    }
    Ok(TaskSpec {
        task_id: wire::id("task_id", &request.task_id)?,
        job_id: wire::id("job_id", &request.job_id)?,
        function: request.function,
        payload: Bytes::from(request.payload),
        resources: resources(request.resources)?,
        max_retries: request.max_retries,
    })
}

fn actor_order(request: pb::CreateActorRequest) -> Result<ActorOrder, WireError> {
    let spec = wire::required("spec", request.spec)?;
    Ok(ActorOrder {
        actor_id: wire::id("actor_id", &spec.actor_id)?,
        job_id: wire::id("job_id", &spec.job_id)?,
        num_restarts: request.num_restarts,
        placement: resources(spec.placement_resources.clone())?,
        living: resources(spec.resources.clone())?,
        runtime_env: RuntimeEnv::parse(&spec.runtime_env)
            .map_err(|error| WireError::Invalid { field: "runtime_env", reason: error.to_string() })?,
        bundle: bundle(&spec, request.bundle_index)?,
        spec: Bytes::from(spec.encode_to_vec()),
    })
}

/// The bundle in which the actor runs, if it is in a placement group.
fn bundle(spec: &ray_core::pb::common::ActorSpec, index: i64) -> Result<Option<BundleId>, WireError> {
    let constraint = Constraint::try_from(spec.strategy.clone().unwrap_or_default())?;
    let Some(group_id) = constraint.group_id() else { return Ok(None) };
    let index = u32::try_from(index).map_err(|_| WireError::Invalid {
        field: "bundle_index",
        reason: format!("{index} is no bundle of placement group {group_id}"),
    })?;
    Ok(Some(BundleId { group_id, index }))
}

fn reserve_order(request: pb::ReserveBundlesRequest) -> Result<ReserveOrder, WireError> {
    let bundle = |bundle: pb::ReservedBundle| Ok((bundle.index, resources(bundle.resources)?));
    Ok(ReserveOrder {
        group_id: wire::id("placement_group_id", &request.placement_group_id)?,
        attempt: request.attempt,
        bundles: request.bundles.into_iter().map(bundle).collect::<Result<_, WireError>>()?,
        commit: request.commit,
    })
}

fn announced_worker(request: pb::RegisterWorkerRequest) -> Result<LeasedWorker, WireError> {
    let address = wire::required("address", request.address)?;
    if address.socket_path.is_empty() && address.tcp_address.is_empty() {
        return Err(WireError::Missing("socket_path"));
    }
    Ok(LeasedWorker {
        worker_id: wire::id("worker_id", &address.worker_id)?,
        node_id: wire::id("node_id", &address.node_id)?,
        socket_path: address.socket_path,
        tcp_address: address.tcp_address,
        pid: request.pid,
    })
}

/// Sends the object from `offset` on; at least one chunk, so that an empty object is told from none.
async fn send_chunks(
    object: PinnedObject,
    mut offset: u64,
    chunk_bytes: u64,
    chunks: mpsc::Sender<Result<pb::ObjectChunk, Status>>,
) {
    let total_bytes = object.len() as u64;
    loop {
        let end = offset.saturating_add(chunk_bytes).min(total_bytes);
        let data = object[offset as usize..end as usize].to_vec();
        let sent = chunks.send(Ok(pb::ObjectChunk { offset, total_bytes, data }));
        // A reader that has stopped would keep the object where it is; it can ask again for the rest.
        let sent = tokio::time::timeout(READ_LIMIT, sent).await;
        offset = end;
        if !matches!(sent, Ok(Ok(()))) || offset >= total_bytes {
            return;
        }
    }
}

const fn state_code(state: &TaskState) -> pb::TaskState {
    match state {
        TaskState::Pending => pb::TaskState::TaskPending,
        TaskState::Running(_) => pb::TaskState::TaskRunning,
        TaskState::Finished => pb::TaskState::TaskFinished,
        TaskState::Failed(_) => pb::TaskState::TaskFailed,
        TaskState::Cancelled => pb::TaskState::TaskCancelled,
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[tonic::async_trait]
impl RayletService for RayletGrpc {
    async fn submit_task(
        &self,
        request: Request<pb::SubmitTaskRequest>,
    ) -> Result<Response<pb::SubmitTaskReply>, Status> {
        let spec = task_spec(request.into_inner())?;
        let object_id = ObjectId::for_return(spec.task_id, 0).to_binary();
        self.node.call(|answer| Command::Submit { spec, answer }).await??;
        Ok(Response::new(pb::SubmitTaskReply { object_id }))
    }

    async fn cancel_task(
        &self,
        request: Request<pb::CancelTaskRequest>,
    ) -> Result<Response<pb::CancelTaskReply>, Status> {
        let request = request.into_inner();
        let (task_id, force) = (wire::id("task_id", &request.task_id)?, request.force);
        let cancelled = self.node.call(|answer| Command::Cancel { task_id, force, answer }).await??;
        Ok(Response::new(pb::CancelTaskReply { cancelled }))
    }

    async fn get_task_status(
        &self,
        request: Request<pb::GetTaskStatusRequest>,
    ) -> Result<Response<pb::GetTaskStatusReply>, Status> {
        let task_id = wire::id("task_id", &request.get_ref().task_id)?;
        let known = self.node.call(|answer| Command::TaskStatus { task_id, answer }).await?;
        let not_found = || RayError::NotFound { what: format!("task {task_id}") };
        let (state, reason) = known.ok_or_else(not_found)?;
        Ok(Response::new(pb::GetTaskStatusReply { state: state_code(&state).into(), reason }))
    }

    async fn register_worker(
        &self,
        request: Request<pb::RegisterWorkerRequest>,
    ) -> Result<Response<pb::RegisterWorkerReply>, Status> {
        let worker = announced_worker(request.into_inner())?;
        self.node.call(|answer| Command::RegisterWorker { worker, answer }).await??;
        Ok(Response::new(pb::RegisterWorkerReply {}))
    }

    async fn unregister_worker(
        &self,
        request: Request<pb::UnregisterWorkerRequest>,
    ) -> Result<Response<pb::UnregisterWorkerReply>, Status> {
        let request = request.into_inner();
        let worker_id = wire::id("worker_id", &request.worker_id)?;
        let reason = request.reason;
        self.node.call(|answer| Command::UnregisterWorker { worker_id, reason, answer }).await?;
        Ok(Response::new(pb::UnregisterWorkerReply {}))
    }

    async fn request_lease(
        &self,
        request: Request<pb::RequestLeaseRequest>,
    ) -> Result<Response<pb::RequestLeaseReply>, Status> {
        let request = request.into_inner();
        let lease_id = wire::id("lease_id", &request.lease_id)?;
        let job_id = wire::id("job_id", &request.job_id)?;
        let shape = resources(request.resources)?;
        let (sender, granted) = oneshot::channel();
        self.node.send(Command::RequestLease { lease_id, job_id, shape, answer: sender }).await?;
        let mut granted = std::pin::pin!(granted);
        let outcome = match tokio::time::timeout(wait(request.timeout_ms), &mut granted).await {
            Ok(outcome) => outcome.ok(),
            Err(_) => match self.node.call(|answer| Command::LeaseTimeout { lease_id, answer }).await? {
                Some(reason) => Some(RemoteOutcome::Busy(reason)),
                // It was granted in the same moment.
                None => granted.try_recv().ok(),
            },
        };
        let outcome = match outcome {
            Some(RemoteOutcome::Granted(worker)) => {
                let lease_id = lease_id.to_binary();
                let worker = Some(address(worker));
                pb::request_lease_reply::Outcome::Granted(pb::LeaseGranted { lease_id, worker })
            }
            Some(RemoteOutcome::Busy(reason)) => pb::request_lease_reply::Outcome::Busy(reason),
            Some(RemoteOutcome::Infeasible(reason)) => pb::request_lease_reply::Outcome::Infeasible(reason),
            None => return Err(Status::aborted("the lease was given up meanwhile")),
        };
        Ok(Response::new(pb::RequestLeaseReply { outcome: Some(outcome) }))
    }

    async fn release_lease(
        &self,
        request: Request<pb::ReleaseLeaseRequest>,
    ) -> Result<Response<pb::ReleaseLeaseReply>, Status> {
        let lease_id = wire::id("lease_id", &request.get_ref().lease_id)?;
        self.node.call(|answer| Command::ReleaseLease { lease_id, answer }).await?;
        Ok(Response::new(pb::ReleaseLeaseReply {}))
    }

    async fn wait_object(
        &self,
        request: Request<pb::WaitObjectRequest>,
    ) -> Result<Response<pb::WaitObjectReply>, Status> {
        let request = request.into_inner();
        let object_id = wire::id("object_id", &request.object_id)?;
        let (ready, _) = self.objects.wait(&[object_id], 1, wait(request.timeout_ms)).await?;
        Ok(Response::new(pb::WaitObjectReply { ready: !ready.is_empty() }))
    }

    async fn get_object_locations(
        &self,
        request: Request<pb::GetObjectLocationsRequest>,
    ) -> Result<Response<pb::GetObjectLocationsReply>, Status> {
        let object_id = wire::id("object_id", &request.get_ref().object_id)?;
        let info = match self.objects.info(&object_id).await {
            Ok(info) if info.sealed => Some(info),
            Ok(_) | Err(RayError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Response::new(pb::GetObjectLocationsReply {
            node_ids: info.iter().map(|_| self.node_id.to_binary()).collect(),
            size_bytes: info.as_ref().map_or(0, |info| info.size_bytes),
            spilled: info.is_some_and(|info| info.spill_url.is_some()),
        }))
    }

    type TransferObjectStream = Pin<Box<dyn Stream<Item = Result<pb::ObjectChunk, Status>> + Send>>;

    async fn transfer_object(
        &self,
        request: Request<pb::TransferObjectRequest>,
    ) -> Result<Response<Self::TransferObjectStream>, Status> {
        let request = request.into_inner();
        let object_id: ObjectId = wire::id("object_id", &request.object_id)?;
        let to = if request.node_id.is_empty() { None } else { Some(wire::id("node_id", &request.node_id)?) };
        // Pinned until the stream ends.
        let object = self.objects.lend(object_id, to, LEND_LIMIT).await?;
        if request.offset > object.len() as u64 {
            let reason = format!("{} is beyond the object's end at {}", request.offset, object.len());
            return Err(WireError::Invalid { field: "offset", reason }.into());
        }
        let (chunks, stream) = mpsc::channel(CHUNKS_AHEAD);
        // It ends by itself with the stream: as soon as nobody reads, sending fails.
        drop(tokio::spawn(send_chunks(object, request.offset, self.chunk_bytes, chunks)));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn recall_objects(
        &self,
        request: Request<pb::RecallObjectsRequest>,
    ) -> Result<Response<pb::RecallObjectsReply>, Status> {
        let request = request.into_inner();
        let from = wire::id("node_id", &request.node_id)?;
        let listed = request.object_ids.iter().map(|object_id| wire::id("object_ids", object_id));
        let object_ids = if request.all { None } else { Some(listed.collect::<Result<_, _>>()?) };
        let recalled = |answer| Command::Store(StoreCommand::Recalled { from, object_ids, answer });
        self.node.call(recalled).await?;
        Ok(Response::new(pb::RecallObjectsReply {}))
    }

    async fn get_resources(
        &self,
        _request: Request<pb::GetResourcesRequest>,
    ) -> Result<Response<pb::GetResourcesReply>, Status> {
        let status = self.node.call(|answer| Command::Status { answer }).await?;
        Ok(Response::new(pb::GetResourcesReply {
            total: Some((&status.total).into()),
            available: Some((&status.available).into()),
            workers: count(status.workers),
            leases: count(status.leases),
            queued: count(status.queued),
        }))
    }

    async fn inspect(
        &self,
        request: Request<pb::InspectRequest>,
    ) -> Result<Response<pb::InspectReply>, Status> {
        let request = request.into_inner();
        let inquiry = serialize::from_bytes(&request.inquiry)?;
        let timeout = wait(request.timeout_ms);
        let report = self.node.call(|answer| Command::Inspect { inquiry, timeout, answer }).await?;
        Ok(Response::new(pb::InspectReply { report: serialize::to_bytes(&report)? }))
    }

    async fn create_actor(
        &self,
        request: Request<pb::CreateActorRequest>,
    ) -> Result<Response<pb::CreateActorReply>, Status> {
        let order = actor_order(request.into_inner())?;
        self.node.call(|answer| Command::CreateActor { order, answer }).await?;
        Ok(Response::new(pb::CreateActorReply {}))
    }

    async fn kill_actor(
        &self,
        request: Request<pb::KillActorRequest>,
    ) -> Result<Response<pb::KillActorReply>, Status> {
        let request = request.into_inner();
        let actor_id = wire::id("actor_id", &request.actor_id)?;
        let cause = request.cause.unwrap_or_default();
        let num_restarts = request.num_restarts;
        self.node.call(|answer| Command::KillActor { actor_id, num_restarts, cause, answer }).await?;
        Ok(Response::new(pb::KillActorReply {}))
    }

    async fn reserve_bundles(
        &self,
        request: Request<pb::ReserveBundlesRequest>,
    ) -> Result<Response<pb::ReserveBundlesReply>, Status> {
        let order = reserve_order(request.into_inner())?;
        let outcome = self.node.call(|answer| Command::ReserveBundles { order, answer }).await?;
        let (reserved, reason) = match outcome {
            Ok(()) => (true, String::new()),
            Err(reason) => (false, reason),
        };
        Ok(Response::new(pb::ReserveBundlesReply { reserved, reason }))
    }

    async fn commit_bundles(
        &self,
        request: Request<pb::CommitBundlesRequest>,
    ) -> Result<Response<pb::CommitBundlesReply>, Status> {
        let pb::CommitBundlesRequest { placement_group_id, attempt } = request.into_inner();
        let group_id = wire::id("placement_group_id", &placement_group_id)?;
        let outcome = self.node.call(|answer| Command::CommitBundles { group_id, attempt, answer }).await?;
        outcome.map_err(Status::failed_precondition)?;
        Ok(Response::new(pb::CommitBundlesReply {}))
    }

    async fn return_bundles(
        &self,
        request: Request<pb::ReturnBundlesRequest>,
    ) -> Result<Response<pb::ReturnBundlesReply>, Status> {
        let pb::ReturnBundlesRequest { placement_group_id, attempt, all, reason } = request.into_inner();
        let group_id = wire::id("placement_group_id", &placement_group_id)?;
        self.node.call(|answer| Command::ReturnBundles { group_id, attempt, all, reason, answer }).await?;
        Ok(Response::new(pb::ReturnBundlesReply {}))
    }

    async fn shutdown(
        &self,
        request: Request<pb::ShutdownRequest>,
    ) -> Result<Response<pb::ShutdownReply>, Status> {
        self.node.send(Command::Shutdown(request.into_inner().reason)).await?;
        Ok(Response::new(pb::ShutdownReply {}))
    }
}
