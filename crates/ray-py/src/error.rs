//! Errors of the core as Python exceptions.

use pyo3::exceptions::{PyConnectionError, PyKeyboardInterrupt, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use ray_core::error::RayError;
use ray_core::id::ObjectId;
use ray_worker::value::Failure;

use crate::codec::serialization;

/// An exception of this class of `ray_rust.exceptions`.
pub(crate) fn ray_exception(py: Python<'_>, class: &str, message: String) -> PyErr {
    let made = py
        .import("ray_rust.exceptions")
        .and_then(|module| module.getattr(class))
        .and_then(|class| class.call1((message,)));
    match made {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}

/// What a call of the core failed with.
pub(crate) fn raise(py: Python<'_>, error: RayError) -> PyErr {
    let text = match &error {
        RayError::ShutDown => "ray_rust was shut down in this process; call ray_rust.init()".to_owned(),
        error => error.chain(),
    };
    let class = match error {
        RayError::GetTimeout { .. } => "GetTimeoutError",
        RayError::TaskCancelled { .. } => "TaskCancelledError",
        RayError::WorkerCrashed { .. } => "WorkerCrashedError",
        RayError::ActorDied { .. } => "ActorDiedError",
        RayError::ActorUnavailable { .. } => "ActorUnavailableError",
        RayError::ObjectLost { .. } => "ObjectLostError",
        RayError::OwnerDied { .. } => "OwnerDiedError",
        RayError::ObjectStoreFull { .. } => "ObjectStoreFullError",
        RayError::OutOfDisk { .. } => "OutOfDiskError",
        RayError::NodeDied { .. } => "LocalRayletDiedError",
        RayError::Unavailable { .. } => return PyConnectionError::new_err(text),
        RayError::InvalidArgument(_) | RayError::AlreadyExists { .. } | RayError::NotFound { .. } => {
            return PyValueError::new_err(text);
        }
        _ => "RaySystemError",
    };
    ray_exception(py, class, text)
}

/// What `get` raises for an object that has no value.
pub(crate) fn raise_failure(py: Python<'_>, object_id: ObjectId, failure: Failure) -> PyErr {
    match failure {
        Failure::Raised(error) => decode_error(py, &error),
        Failure::Cancelled(task_id) => {
            ray_exception(py, "TaskCancelledError", format!("task {task_id} was cancelled"))
        }
        Failure::WorkerCrashed { task_id, name, worker_id, cause } => {
            let text = format!("task {name} ({task_id}) failed: its worker {worker_id} died: {cause}");
            ray_exception(py, "WorkerCrashedError", text)
        }
        Failure::ActorDied { actor_id, class_name, cause, error } => {
            let text = format!("actor {class_name} ({actor_id}) is dead: {cause}");
            if error.is_empty() {
                return ray_exception(py, "ActorDiedError", text);
            }
            actor_died_by(py, &error).unwrap_or_else(|_| ray_exception(py, "ActorDiedError", text))
        }
        Failure::StoreFull { out_of_disk, message } => {
            let class = if out_of_disk { "OutOfDiskError" } else { "ObjectStoreFullError" };
            ray_exception(py, class, message)
        }
        other @ (Failure::ActorUnavailable { .. }
        | Failure::OwnerDied { .. }
        | Failure::Lost { .. }
        | Failure::System(_)) => {
            let class = match other {
                Failure::ActorUnavailable { .. } => "ActorUnavailableError",
                Failure::OwnerDied { .. } => "OwnerDiedError",
                Failure::Lost { .. } => "ObjectLostError",
                _ => "RaySystemError",
            };
            let text = match &other {
                Failure::System(message) => message.clone(),
                _ => other.into_error(object_id).to_string(),
            };
            ray_exception(py, class, text)
        }
    }
}

/// The error of calls to an actor whose constructor raised.
fn actor_died_by(py: Python<'_>, error: &[u8]) -> PyResult<PyErr> {
    let cause = decode_error(py, error).into_value(py);
    let class = py.import("ray_rust.exceptions")?.getattr("ActorDiedError")?;
    Ok(PyErr::from_value(class.call1((cause,))?))
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
