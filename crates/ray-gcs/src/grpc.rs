//! `GcsService` by gRPC: checks messages, asks the control plane, words the answer. Nothing is decided here.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use ray_core::error::RayError;
use ray_core::id::{ActorId, JobId, NodeId, TaskId};
use ray_core::pb::gcs;
use ray_core::pb::gcs::gcs_service_server::{GcsService, GcsServiceServer};
use ray_core::pb::gcs::report_actor_request::Outcome;
use ray_core::report::TaskBatch;
use ray_core::serialize;
use ray_core::wire::{WireError, id, required};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};
use tracing::{debug, instrument};

use crate::actor::{DeathCause, DeathKind, Incarnation};
use crate::control_plane::{ActorOutcome, ControlPlane};
use crate::effects::Effects;
use crate::error::{ActorError, GroupError, NodeError, ServiceError};
use crate::service::{Gcs, GcsHandle};
use crate::task_history::TaskHistory;
use crate::wire;

/// The control plane's gRPC service, to be served alone or beside others on one port.
pub type GcsGrpcService = GcsServiceServer<GcsGrpc>;

/// Answers the calls of `GcsService`.
#[derive(Debug, Clone)]
pub struct GcsGrpc {
    handle: GcsHandle,
    heartbeat_interval_ms: u64,
    /// Apart from the tables, for nothing rests on it and it may be told a lot.
    history: Arc<Mutex<TaskHistory>>,
}

impl Gcs {
    /// This control plane's gRPC service.
    pub fn grpc_service(&self) -> GcsGrpcService {
        let heartbeat_interval_ms = self.config().heartbeat_interval_ms;
        let largest = self.config().max_message_bytes;
        let history = Arc::new(Mutex::new(TaskHistory::new(self.config().task_events_kept)));
        GcsServiceServer::new(GcsGrpc { handle: self.handle().clone(), heartbeat_interval_ms, history })
            .max_decoding_message_size(largest)
            .max_encoding_message_size(largest)
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(message: T) -> Answer<T> {
    Ok(Response::new(message))
}

macro_rules! into_status {
    ($($error:ty),*) => {$(
        impl From<$error> for Status {
            fn from(error: $error) -> Self {
                RayError::from(error).into()
            }
        }
    )*};
}
into_status!(NodeError, ActorError, GroupError, ServiceError);

#[tonic::async_trait]
impl GcsService for GcsGrpc {
    #[instrument(skip_all)]
    async fn register_node(
        &self,
        request: Request<gcs::RegisterNodeRequest>,
    ) -> Answer<gcs::RegisterNodeReply> {
        let spec = wire::node_spec(required("node", request.into_inner().node)?)?;
        self.handle.step(move |plane, now, fx| plane.register_node(spec, now, fx)).await??;
        answer(gcs::RegisterNodeReply { heartbeat_interval_ms: self.heartbeat_interval_ms })
    }

    #[instrument(skip_all)]
    async fn unregister_node(
        &self,
        request: Request<gcs::UnregisterNodeRequest>,
    ) -> Answer<gcs::UnregisterNodeReply> {
        let gcs::UnregisterNodeRequest { node_id, reason } = request.into_inner();
        let node_id = id("node_id", &node_id)?;
        self.handle.step(move |plane, now, fx| plane.unregister_node(node_id, &reason, now, fx)).await?;
        answer(gcs::UnregisterNodeReply {})
    }

    async fn list_nodes(&self, _: Request<gcs::ListNodesRequest>) -> Answer<gcs::ListNodesReply> {
        let nodes = self.handle.step(|plane, _, _| plane.nodes().iter().cloned().collect::<Vec<_>>()).await?;
        answer(gcs::ListNodesReply { nodes: nodes.iter().map(|node| (&**node).into()).collect() })
    }

    async fn heartbeat(&self, request: Request<gcs::HeartbeatRequest>) -> Answer<gcs::HeartbeatReply> {
        let gcs::HeartbeatRequest { node_id, sequence } = request.into_inner();
        let known = self.handle.heartbeat(id("node_id", &node_id)?, sequence).await?;
        answer(gcs::HeartbeatReply { known })
    }

    #[instrument(skip_all)]
    async fn register_actor(
        &self,
        request: Request<gcs::RegisterActorRequest>,
    ) -> Answer<gcs::RegisterActorReply> {
        let gcs::RegisterActorRequest { spec, stillborn } = request.into_inner();
        let spec = wire::actor_spec(required("spec", spec)?)?;
        let stillborn = stillborn.map(wire::death_cause).transpose()?;
        let register = move |plane: &mut ControlPlane, now, fx: &mut Effects| match stillborn {
            None => plane.register_actor(spec, now, fx),
            Some(cause) => plane.register_stillborn(spec, cause, now, fx),
        };
        let actor = self.handle.step(register).await??;
        answer(gcs::RegisterActorReply { actor: Some((&*actor).into()) })
    }

    async fn get_actor(&self, request: Request<gcs::GetActorRequest>) -> Answer<gcs::GetActorReply> {
        let actor_id = id("actor_id", &request.into_inner().actor_id)?;
        let actor = self.handle.step(move |plane, _, _| plane.actors().get(&actor_id).cloned()).await??;
        answer(gcs::GetActorReply { actor: Some((&*actor).into()) })
    }

    async fn get_named_actor(
        &self,
        request: Request<gcs::GetNamedActorRequest>,
    ) -> Answer<gcs::GetActorReply> {
        let gcs::GetNamedActorRequest { name, namespace } = request.into_inner();
        let find = move |plane: &ControlPlane| plane.actors().by_name(&namespace, &name).cloned();
        let actor = self.handle.step(move |plane, _, _| find(plane)).await??;
        answer(gcs::GetActorReply { actor: Some((&*actor).into()) })
    }

    async fn list_actors(&self, request: Request<gcs::ListActorsRequest>) -> Answer<gcs::ListActorsReply> {
        let job_id = wire::given_id("job_id", &request.into_inner().job_id)?;
        let actors = self
            .handle
            .step(move |plane, _, _| {
                let of_job =
                    plane.actors().iter().filter(|actor| job_id.is_none_or(|job| actor.job_id == job));
                of_job.cloned().collect::<Vec<_>>()
            })
            .await?;
        answer(gcs::ListActorsReply { actors: actors.iter().map(|actor| (&**actor).into()).collect() })
    }

    #[instrument(skip_all)]
    async fn kill_actor(&self, request: Request<gcs::KillActorRequest>) -> Answer<gcs::KillActorReply> {
        let gcs::KillActorRequest { actor_id, no_restart, cause } = request.into_inner();
        let actor_id = id("actor_id", &actor_id)?;
        let cause = match cause {
            Some(cause) => wire::death_cause(cause)?,
            None => DeathCause::new(DeathKind::Killed, "it was killed"),
        };
        self.handle
            .step(move |plane, now, fx| plane.kill_actor(actor_id, no_restart, cause, now, fx))
            .await??;
        answer(gcs::KillActorReply {})
    }

    #[instrument(skip_all)]
    async fn report_actor(&self, request: Request<gcs::ReportActorRequest>) -> Answer<gcs::ReportActorReply> {
        let (target, outcome) = actor_report(request.into_inner())?;
        debug!(%target, ?outcome, "report");
        self.handle.step(move |plane, now, fx| plane.report_actor(target, outcome, now, fx)).await??;
        answer(gcs::ReportActorReply {})
    }

    #[instrument(skip_all)]
    async fn create_placement_group(
        &self,
        request: Request<gcs::CreatePlacementGroupRequest>,
    ) -> Answer<gcs::PlacementGroupReply> {
        let spec = wire::group_spec(required("spec", request.into_inner().spec)?)?;
        let group = self.handle.step(move |plane, now, fx| plane.create_group(spec, now, fx)).await??;
        answer(gcs::PlacementGroupReply { group: Some((&*group).into()) })
    }

    #[instrument(skip_all)]
    async fn remove_placement_group(
        &self,
        request: Request<gcs::RemovePlacementGroupRequest>,
    ) -> Answer<gcs::RemovePlacementGroupReply> {
        let group_id = id("placement_group_id", &request.into_inner().placement_group_id)?;
        self.handle.step(move |plane, now, fx| plane.remove_group(group_id, now, fx)).await??;
        answer(gcs::RemovePlacementGroupReply {})
    }

    async fn get_placement_group(
        &self,
        request: Request<gcs::GetPlacementGroupRequest>,
    ) -> Answer<gcs::PlacementGroupReply> {
        let group_id = id("placement_group_id", &request.into_inner().placement_group_id)?;
        let group = self.handle.step(move |plane, _, _| plane.groups().get(&group_id).cloned()).await??;
        answer(gcs::PlacementGroupReply { group: Some((&*group).into()) })
    }

    async fn get_named_placement_group(
        &self,
        request: Request<gcs::GetNamedPlacementGroupRequest>,
    ) -> Answer<gcs::PlacementGroupReply> {
        let gcs::GetNamedPlacementGroupRequest { name, namespace } = request.into_inner();
        let find = move |plane: &ControlPlane| plane.groups().by_name(&namespace, &name).cloned();
        let group = self.handle.step(move |plane, _, _| find(plane)).await??;
        answer(gcs::PlacementGroupReply { group: Some((&*group).into()) })
    }

    async fn list_placement_groups(
        &self,
        _: Request<gcs::ListPlacementGroupsRequest>,
    ) -> Answer<gcs::ListPlacementGroupsReply> {
        let list = |plane: &ControlPlane| plane.groups().iter().cloned().collect::<Vec<_>>();
        let groups = self.handle.step(move |plane, _, _| list(plane)).await?;
        answer(gcs::ListPlacementGroupsReply {
            groups: groups.iter().map(|group| (&**group).into()).collect(),
        })
    }

    #[instrument(skip_all)]
    async fn add_job(&self, request: Request<gcs::AddJobRequest>) -> Answer<gcs::AddJobReply> {
        let spec = wire::job_spec(required("job", request.into_inner().job)?)?;
        self.handle.step(move |plane, now, fx| plane.add_job(spec, now, fx)).await?;
        answer(gcs::AddJobReply {})
    }

    #[instrument(skip_all)]
    async fn finish_job(&self, request: Request<gcs::FinishJobRequest>) -> Answer<gcs::FinishJobReply> {
        let gcs::FinishJobRequest { job_id, reason } = request.into_inner();
        let job_id = id("job_id", &job_id)?;
        self.handle.step(move |plane, now, fx| plane.finish_job(job_id, &reason, now, fx)).await?;
        answer(gcs::FinishJobReply {})
    }

    async fn list_jobs(&self, _: Request<gcs::ListJobsRequest>) -> Answer<gcs::ListJobsReply> {
        let jobs = self.handle.step(|plane, _, _| plane.jobs().iter().cloned().collect::<Vec<_>>()).await?;
        answer(gcs::ListJobsReply { jobs: jobs.iter().map(|job| (&**job).into()).collect() })
    }

    async fn report_resources(
        &self,
        request: Request<gcs::ReportResourcesRequest>,
    ) -> Answer<gcs::ReportResourcesReply> {
        let usage = wire::node_usage(required("usage", request.into_inner().usage)?)?;
        self.handle.step(move |plane, now, fx| plane.report_resources(usage, now, fx)).await??;
        answer(gcs::ReportResourcesReply {})
    }

    async fn get_cluster_resources(
        &self,
        _: Request<gcs::GetClusterResourcesRequest>,
    ) -> Answer<gcs::GetClusterResourcesReply> {
        let ((total, available, nodes), waiting) =
            self.handle.step(|plane, _, _| (plane.cluster_resources(), plane.waiting_actors())).await?;
        let waiting_actors = waiting.iter().map(|(shape, count)| gcs::WaitingActors {
            resources: Some((&shape.resources).into()),
            strategy: Some((&shape.constraint).into()),
            count: *count,
        });
        answer(gcs::GetClusterResourcesReply {
            total: Some((&total).into()),
            available: Some((&available).into()),
            nodes: nodes.iter().map(Into::into).collect(),
            waiting_actors: waiting_actors.collect(),
        })
    }

    async fn kv_put(&self, request: Request<gcs::KvPutRequest>) -> Answer<gcs::KvPutReply> {
        let gcs::KvPutRequest { namespace, key, value, overwrite } = request.into_inner();
        let value = Arc::from(value);
        let added =
            self.handle.step(move |plane, _, fx| plane.kv_put(namespace, key, value, overwrite, fx)).await?;
        answer(gcs::KvPutReply { added })
    }

    async fn kv_get(&self, request: Request<gcs::KvGetRequest>) -> Answer<gcs::KvGetReply> {
        let gcs::KvGetRequest { namespace, keys } = request.into_inner();
        let found = self
            .handle
            .step(move |plane, _, _| {
                let values = keys.into_iter().filter_map(|key| {
                    let value = plane.kv().get(&namespace, &key).cloned();
                    value.map(|value| (key, value))
                });
                values.collect::<Vec<_>>()
            })
            .await?;
        let entries = found.into_iter().map(|(key, value)| gcs::KvEntry { key, value: value.to_vec() });
        answer(gcs::KvGetReply { entries: entries.collect() })
    }

    async fn kv_del(&self, request: Request<gcs::KvDelRequest>) -> Answer<gcs::KvDelReply> {
        let gcs::KvDelRequest { namespace, key, prefix } = request.into_inner();
        let deleted =
            self.handle.step(move |plane, _, fx| plane.kv_delete(&namespace, &key, prefix, fx)).await?;
        answer(gcs::KvDelReply { deleted })
    }

    async fn kv_keys(&self, request: Request<gcs::KvKeysRequest>) -> Answer<gcs::KvKeysReply> {
        let gcs::KvKeysRequest { namespace, prefix } = request.into_inner();
        let keys = self.handle.step(move |plane, _, _| plane.kv().keys(&namespace, &prefix)).await?;
        answer(gcs::KvKeysReply { keys })
    }

    async fn add_task_events(
        &self,
        request: Request<gcs::AddTaskEventsRequest>,
    ) -> Answer<gcs::AddTaskEventsReply> {
        let batch: TaskBatch = serialize::from_bytes(&request.into_inner().batch)?;
        self.history.lock().unwrap_or_else(PoisonError::into_inner).add(batch);
        answer(gcs::AddTaskEventsReply {})
    }

    async fn list_task_events(
        &self,
        request: Request<gcs::ListTaskEventsRequest>,
    ) -> Answer<gcs::ListTaskEventsReply> {
        let gcs::ListTaskEventsRequest { job_id, task_id, actor_id, limit } = request.into_inner();
        let job_id: Option<JobId> = wire::given_id("job_id", &job_id)?;
        let task_id: Option<TaskId> = wire::given_id("task_id", &task_id)?;
        let actor_id: Option<ActorId> = wire::given_id("actor_id", &actor_id)?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let batches =
            self.history.lock().unwrap_or_else(PoisonError::into_inner).list(limit, |record, teller| {
                job_id.is_none_or(|wanted| teller.job_id == wanted)
                    && task_id.is_none_or(|wanted| record.task_id == wanted)
                    && actor_id.is_none_or(|wanted| record.actor_id == Some(wanted))
            });
        let batches = batches.iter().map(serialize::to_bytes).collect::<Result<_, _>>()?;
        answer(gcs::ListTaskEventsReply { batches })
    }

    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<gcs::Event, Status>> + Send>>;

    #[instrument(skip_all)]
    async fn subscribe(&self, request: Request<gcs::SubscribeRequest>) -> Answer<Self::SubscribeStream> {
        let subscriber: Option<NodeId> = wire::given_id("node_id", &request.into_inner().node_id)?;
        debug!(?subscriber, "subscribed");
        let events = ReceiverStream::new(self.handle.subscribe().await?);
        // The queue ends if the subscriber fell behind or the control plane stops; both say the same.
        let end = Status::unavailable("the subscription was cut off; subscribe again for a new snapshot");
        let events = events.map(|event| Ok(Arc::unwrap_or_clone(event)));
        answer(Box::pin(events.chain(tokio_stream::once(Err(end)))))
    }
}

fn actor_report(message: gcs::ReportActorRequest) -> Result<(Incarnation, ActorOutcome), WireError> {
    let target = Incarnation {
        node_id: id("node_id", &message.node_id)?,
        actor_id: id("actor_id", &message.actor_id)?,
        num_restarts: message.num_restarts,
    };
    let outcome = match required("outcome", message.outcome)? {
        Outcome::Alive(gcs::ActorAlive { address, pid }) => {
            let address = wire::worker_address(required("alive.address", address)?)?;
            if address.node_id != target.node_id {
                let reason = "the address is on another node".to_owned();
                return Err(WireError::Invalid { field: "alive.address.node_id", reason });
            }
            ActorOutcome::Alive { address, pid }
        }
        Outcome::Died(cause) => ActorOutcome::Died(wire::death_cause(cause)?),
    };
    Ok((target, outcome))
}
