//! Errors of the core as Python exceptions.

use pyo3::call::PyCallArgs;
use pyo3::exceptions::{PyConnectionError, PyKeyboardInterrupt, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use ray_core::error::RayError;
use ray_core::id::{ObjectId, WorkerId};
use ray_link::message::Unschedulable;
use ray_worker::value::{ActorEnd, Failure};

use crate::codec::serialization;
use crate::id::PyTaskId;

/// An exception of this class of `ray_rust.exceptions`.
pub(crate) fn ray_exception(py: Python<'_>, class: &str, message: String) -> PyErr {
    made(py, class, (message,))
}

/// What a call of the core failed with.
pub(crate) fn raise(py: Python<'_>, error: RayError) -> PyErr {
    let text = match &error {
        RayError::ShutDown => "ray_rust was shut down in this process; call ray_rust.init()".to_owned(),
        error => error.chain(),
    };
    match error {
        RayError::GetTimeout { .. } => ray_exception(py, "GetTimeoutError", text),
        RayError::TaskCancelled { task_id } => made(py, "TaskCancelledError", (PyTaskId(task_id),)),
        RayError::WorkerCrashed { .. } => ray_exception(py, "WorkerCrashedError", text),
        RayError::ActorDied { .. } => ray_exception(py, "ActorDiedError", text),
        RayError::ActorUnavailable { actor_id, cause } => {
            made(py, "ActorUnavailableError", (cause, PyBytes::new(py, actor_id.as_bytes())))
        }
        RayError::ObjectLost { object_id, cause } => {
            object_lost(py, "ObjectLostError", object_id, None, cause)
        }
        RayError::OwnerDied { object_id, owner, cause } => {
            object_lost(py, "OwnerDiedError", object_id, Some(owner), cause)
        }
        RayError::ObjectStoreFull { .. } => no_room(py, false, &text),
        RayError::OutOfDisk { .. } => no_room(py, true, &text),
        RayError::NodeDied { .. } => ray_exception(py, "LocalRayletDiedError", text),
        RayError::AlreadyExists { .. } => ray_exception(py, "ActorAlreadyExistsError", text),
        RayError::Unavailable { .. } => PyConnectionError::new_err(text),
        RayError::InvalidArgument(_) | RayError::NotFound { .. } => PyValueError::new_err(text),
        _ => ray_exception(py, "RaySystemError", text),
    }
}

/// What `get` raises for an object that has no value.
pub(crate) fn raise_failure(py: Python<'_>, object_id: ObjectId, failure: Failure) -> PyErr {
    match failure {
        Failure::Raised(error) | Failure::RaisedListed(error) => decode_error(py, &error),
        Failure::Cancelled(task_id) => made(py, "TaskCancelledError", (PyTaskId(task_id),)),
        Failure::WorkerCrashed { task_id, name, worker_id, cause, out_of_memory } => {
            let text = format!("task {name} ({task_id}) failed: its worker {worker_id} died: {cause}");
            let class = if out_of_memory { "OutOfMemoryError" } else { "WorkerCrashedError" };
            ray_exception(py, class, text)
        }
        Failure::NodeDied { task_id, name, node_id, cause } => {
            let text =
                format!("task {name} ({task_id}) failed with node {node_id}, which it ran on: {cause}");
            ray_exception(py, "NodeDiedError", text)
        }
        Failure::Unschedulable { task_id, name, kind, reason, ran } => {
            let text = format!("task {name} ({task_id}) can never run: {reason}");
            match (kind, ran) {
                (Unschedulable::NoNode, _) => ray_exception(py, "TaskUnschedulableError", text),
                (Unschedulable::PlacementGroupRemoved, false) => {
                    ray_exception(py, "TaskPlacementGroupRemoved", reason)
                }
                (Unschedulable::PlacementGroupRemoved, true) => {
                    let text = format!("task {name} ({task_id}) was ended: {reason}");
                    ray_exception(py, "WorkerEndedWithPlacementGroup", text)
                }
            }
        }
        Failure::ActorDied { actor_id, class_name, cause, end: ActorEnd::Placeless(kind), .. } => {
            let text = format!("actor {class_name} ({actor_id}) is dead: {cause}");
            match kind {
                Unschedulable::NoNode => ray_exception(py, "ActorUnschedulableError", text),
                Unschedulable::PlacementGroupRemoved => {
                    ray_exception(py, "ActorEndedWithPlacementGroup", text)
                }
            }
        }
        Failure::ActorDied { actor_id, class_name, cause, end: ActorEnd::OutOfMemory, .. } => {
            actor_died(py, "ActorEndedForMemory", (actor_id.hex(), class_name, cause))
        }
        Failure::ActorDied { actor_id, class_name, cause, error, end: ActorEnd::Other } => {
            let died = || actor_died(py, "ActorDiedError", (actor_id.hex(), class_name, cause));
            if error.is_empty() { died() } else { actor_died_by(py, &error).unwrap_or_else(|_| died()) }
        }
        Failure::ActorUnavailable { actor_id, cause } => {
            made(py, "ActorUnavailableError", (cause, PyBytes::new(py, actor_id.as_bytes())))
        }
        Failure::OwnerDied { object_id, owner, cause } => {
            let cause = format!("the process that owned it, worker {owner}, has ended: {cause}");
            object_lost(py, "OwnerDiedError", object_id, Some(owner), cause)
        }
        Failure::Freed { object_id, cause } => {
            object_lost(py, "ReferenceCountingAssertionError", object_id, None, cause)
        }
        Failure::Lost { object_id, cause } => object_lost(py, "ObjectLostError", object_id, None, cause),
        Failure::StoreFull { out_of_disk, message } => no_room(py, out_of_disk, &message),
        Failure::RuntimeEnvSetup(message) => ray_exception(py, "RuntimeEnvSetupError", message),
        Failure::EndOfStream => {
            let text = format!("the generator task {} ended before this item", object_id.task_id());
            ray_exception(py, "ObjectRefStreamEndOfStreamError", text)
        }
        Failure::System(message) => {
            ray_exception(py, "RaySystemError", format!("object {object_id} cannot be had: {message}"))
        }
    }
}

/// There is no room for an object: what happened, and what can be done.
fn no_room(py: Python<'_>, out_of_disk: bool, what: &str) -> PyErr {
    let (class, advice) = if out_of_disk {
        let advice = "drop references that are not needed any more, make room there, or spill to a larger disk by \
                      init(object_spilling_directory=...)";
        ("OutOfDiskError", advice)
    } else {
        let advice = "drop references, and arrays that were read, that are not needed any more, or give the node more \
                      memory by init(object_store_memory=...)";
        ("ObjectStoreFullError", advice)
    };
    ray_exception(py, class, format!("{what}. What can be done: {advice}"))
}

/// An exception of this class of `ray_rust.exceptions`, or what its constructor raised.
fn made<'py>(py: Python<'py>, class: &str, args: impl PyCallArgs<'py>) -> PyErr {
    let made = exceptions(py).and_then(|module| module.getattr(class)?.call1(args));
    made.map_or_else(|error| error, PyErr::from_value)
}

fn exceptions(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    py.import("ray_rust.exceptions")
}

/// The error of a dead actor: its id, its class, and how it died.
fn actor_died(py: Python<'_>, class: &str, death: (String, String, String)) -> PyErr {
    match exceptions(py).and_then(|module| module.getattr("_ActorDeath")?.call1(death)) {
        Ok(death) => made(py, class, (death,)),
        Err(error) => error,
    }
}

/// The error of calls to an actor whose constructor raised.
fn actor_died_by(py: Python<'_>, error: &[u8]) -> PyResult<PyErr> {
    let cause = decode_error(py, error).into_value(py);
    let class = exceptions(py)?.getattr("ActorDiedError")?;
    Ok(PyErr::from_value(class.call1((cause,))?))
}

fn object_lost(
    py: Python<'_>,
    class: &str,
    object_id: ObjectId,
    owner: Option<WorkerId>,
    cause: String,
) -> PyErr {
    let made = || {
        let keywords = PyDict::new(py);
        keywords.set_item("cause", cause)?;
        let owner = owner.map(|owner| PyBytes::new(py, owner.as_bytes()));
        exceptions(py)?.getattr(class)?.call((object_id.hex(), owner, ""), Some(&keywords))
    };
    made().map_or_else(|error| error, PyErr::from_value)
}

fn decode_error(py: Python<'_>, error: &[u8]) -> PyErr {
    let decoded =
        serialization(py).and_then(|module| module.call_method1("decode_error", (PyBytes::new(py, error),)));
    match decoded {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}

/// A wait of the core that a signal may end: what the signal's handler raised.
#[derive(Default)]
pub(crate) struct Signals {
    raised: Option<PyErr>,
}

impl Signals {
    /// To be asked by the core now and then, without the GIL.
    pub(crate) fn check(&mut self) -> bool {
        if self.raised.is_none() {
            self.raised = Python::attach(|py| py.check_signals().err());
        }
        self.raised.is_some()
    }

    /// The result, or what a signal raised.
    pub(crate) fn settle<T>(self, py: Python<'_>, result: Result<T, RayError>) -> PyResult<T> {
        match (result, self.raised) {
            (Ok(value), None) => Ok(value),
            (_, Some(raised)) => Err(raised),
            (Err(error), None) => Err(raise(py, error)),
        }
    }
}

/// Whether Python code asks for the end of its process rather than reports an error.
pub(crate) fn is_exit(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<pyo3::exceptions::PySystemExit>(py)
        || error.is_instance_of::<PyKeyboardInterrupt>(py)
}
