//! What the state API is made of: reports of nodes and processes as JSON, actors and jobs as dicts.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use ray_core::error::{RayError, RayResult};
use ray_core::id::{ChildTaskIds, TaskId};
use ray_core::pb::common::{ActorInfo, actor_info, death_cause};
use ray_core::pb::gcs::{JobInfo, ListTaskEventsReply, ListTaskEventsRequest};
use ray_core::pb::raylet::{InspectReply, InspectRequest};
use ray_core::report::{Inquiry, NodeReport, ProcessReport, TaskBatch};
use ray_core::serialize;
use ray_link::message::GcsMethod;
use ray_worker::CoreWorker;

/// How much longer than its processes a node is waited for.
const GRACE: Duration = Duration::from_secs(2);

/// What the node at `address` and its processes do and keep, as JSON: a list of the node's id and the other fields of
/// [`NodeReport`], in order.
pub(crate) fn inspect_node(
    core: &Arc<CoreWorker>,
    address: &str,
    inquiry: Inquiry,
    timeout: Duration,
    interrupted: &mut dyn FnMut() -> bool,
) -> RayResult<String> {
    let request = InspectRequest {
        inquiry: serialize::to_bytes(&inquiry)?,
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        address: address.to_owned(),
    };
    let body = request.encode_to_vec().into();
    let reply = core.call_gcs(GcsMethod::InspectNode, body, timeout + GRACE, interrupted);
    let reply = reply.map_err(|error| match error {
        // The own node has asked the other one.
        RayError::Unavailable { cause, .. } => RayError::Unavailable { peer: "it".to_owned(), cause },
        other => other,
    })?;
    let reply = InspectReply::decode(reply).map_err(|error| wrong(&error))?;
    let NodeReport { node_id, processes, silent, workers, demands, environments, placing, owned_objects: _ } =
        serialize::from_bytes(&reply.report)?;
    let processes: Vec<ProcessReport> =
        processes.iter().map(|report| serialize::from_bytes(report)).collect::<RayResult<_>>()?;
    serialize::to_json(&(node_id, processes, silent, workers, demands, environments, placing))
}

/// Batches of tasks that have ended, as JSON.
pub(crate) fn task_events(
    core: &Arc<CoreWorker>,
    request: &ListTaskEventsRequest,
    timeout: Duration,
    interrupted: &mut dyn FnMut() -> bool,
) -> RayResult<String> {
    let body: Bytes = request.encode_to_vec().into();
    let reply = core.call_gcs(GcsMethod::ListTaskEvents, body, timeout, interrupted)?;
    let reply = ListTaskEventsReply::decode(reply).map_err(|error| wrong(&error))?;
    let batches: Vec<TaskBatch> =
        reply.batches.iter().map(|batch| serialize::from_bytes(batch)).collect::<RayResult<_>>()?;
    serialize::to_json(&batches)
}

/// What the ids of the tasks that this task submits begin with.
#[pyfunction]
pub(crate) fn child_prefix<'py>(py: Python<'py>, task_id: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    let parent = TaskId::from_binary(task_id).map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok(PyBytes::new(py, ChildTaskIds::new(parent).prefix()))
}

fn wrong(error: &dyn std::fmt::Display) -> RayError {
    RayError::Protocol { peer: "the cluster".to_owned(), reason: error.to_string() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An actor, by the names of the state API where it has one.
pub(crate) fn describe_actor<'py>(py: Python<'py>, actor: &ActorInfo) -> PyResult<Bound<'py, PyDict>> {
    let state = match actor.state() {
        actor_info::State::Unspecified | actor_info::State::DependenciesUnready => "DEPENDENCIES_UNREADY",
        actor_info::State::PendingCreation => "PENDING_CREATION",
        actor_info::State::Alive => "ALIVE",
        actor_info::State::Restarting => "RESTARTING",
        actor_info::State::Dead => "DEAD",
    };
    let address = actor.address.as_ref();
    let worker = address.map(|address| hex(&address.worker_id));
    let node =
        if actor.node_id.is_empty() { address.map(|it| hex(&it.node_id)) } else { Some(hex(&actor.node_id)) };
    let described = PyDict::new(py);
    described.set_item("actor_id", hex(&actor.actor_id))?;
    described.set_item("class_name", &actor.class_name)?;
    described.set_item("state", state)?;
    described.set_item("job_id", hex(&actor.job_id))?;
    described.set_item("name", &actor.name)?;
    described.set_item("ray_namespace", &actor.namespace)?;
    described.set_item("node_id", node)?;
    described.set_item("worker_id", worker)?;
    described.set_item("pid", actor.pid)?;
    described.set_item("num_restarts", actor.num_restarts)?;
    described.set_item("max_restarts", actor.max_restarts)?;
    described.set_item("is_detached", actor.detached)?;
    described.set_item("pending_reason", &actor.pending_reason)?;
    described.set_item("death_time_ms", actor.death_time_ms)?;
    let cause = actor.death_cause.as_ref();
    described.set_item("death_message", cause.map(|cause| cause.message.as_str()))?;
    described.set_item("death_kind", cause.map(|cause| death_kind(cause.kind())))?;
    Ok(described)
}

const fn death_kind(kind: death_cause::Kind) -> &'static str {
    match kind {
        death_cause::Kind::Unspecified => "UNSPECIFIED",
        death_cause::Kind::ProcessExited => "PROCESS_EXITED",
        death_cause::Kind::CreationFailed => "CREATION_FAILED",
        death_cause::Kind::Killed => "KILLED",
        death_cause::Kind::JobFinished => "JOB_FINISHED",
        death_cause::Kind::NodeDied => "NODE_DIED",
        death_cause::Kind::OutOfScope => "OUT_OF_SCOPE",
        death_cause::Kind::ExitedByUser => "EXITED_BY_USER",
        death_cause::Kind::Unschedulable => "UNSCHEDULABLE",
        death_cause::Kind::RuntimeEnvSetupFailed => "RUNTIME_ENV_SETUP_FAILED",
        death_cause::Kind::PlacementGroupRemoved => "PLACEMENT_GROUP_REMOVED",
        death_cause::Kind::OutOfMemory => "OUT_OF_MEMORY",
    }
}

/// A job.
pub(crate) fn describe_job<'py>(py: Python<'py>, job: &JobInfo) -> PyResult<Bound<'py, PyDict>> {
    let described = PyDict::new(py);
    described.set_item("job_id", hex(&job.job_id))?;
    described.set_item("entrypoint", &job.entrypoint)?;
    described.set_item("namespace", &job.namespace)?;
    described.set_item("driver_pid", job.driver_pid)?;
    described.set_item("driver_worker_id", hex(&job.driver_worker_id))?;
    described.set_item("node_id", hex(&job.node_id))?;
    described.set_item("start_time_ms", job.start_time_ms)?;
    described.set_item("end_time_ms", job.end_time_ms)?;
    described.set_item("end_reason", &job.end_reason)?;
    described.set_item("metadata", job.metadata.clone())?;
    Ok(described)
}
