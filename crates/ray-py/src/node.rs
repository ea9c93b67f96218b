//! The node daemon's entry, and what processes below it need of the system.

use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::path::Path;

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use ray_raylet::node::{NodeConfig, run};
use rustix::process::{Signal, set_parent_process_death_signal};

/// Runs the node daemon on the calling thread until it ends.
#[pyfunction]
pub(crate) fn run_node(
    py: Python<'_>,
    config_json: &str,
    fork_server_fd: RawFd,
    on_ready: Py<PyAny>,
) -> PyResult<()> {
    let config = NodeConfig::from_json(config_json).map_err(|error| PyValueError::new_err(error.chain()))?;
    let fork_server = own(fork_server_fd)?;
    let mut failed = None;
    let result = py.detach(|| {
        run(config, fork_server, |info| {
            let text = serde_json::to_string(info).expect("what describes a node can be written");
            failed = Python::attach(|py| on_ready.call1(py, (text + "\n",)).err());
        })
    });
    match (failed, result) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(PyRuntimeError::new_err(error.chain())),
        (None, Ok(())) => Ok(()),
    }
}

#[expect(unsafe_code, reason = "Python hands descriptors over as numbers")]
fn own(descriptor: RawFd) -> PyResult<OwnedFd> {
    if descriptor < 0 {
        return Err(PyValueError::new_err(format!("{descriptor} is no descriptor")));
    }
    // SAFETY: the caller has detached the descriptor from its Python object, so that it is owned by
    // nobody else; a number that is no descriptor fails at its first use.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Asks the kernel to send `signal` to this process when its parent thread ends.
#[pyfunction]
pub(crate) fn set_parent_death_signal(signal: i32) -> PyResult<()> {
    let signal = Signal::from_named_raw(signal)
        .ok_or_else(|| PyValueError::new_err(format!("{signal} is no signal")))?;
    set_parent_process_death_signal(Some(signal)).map_err(|error| PyOSError::new_err(error.to_string()))
}

/// Writes the log of this process to a file in `directory`.
#[pyfunction]
#[pyo3(signature = (process_name, directory))]
pub(crate) fn init_logging(process_name: &str, directory: Option<&str>) -> PyResult<()> {
    ray_core::log::init_logging(process_name, directory.map(Path::new))
        .map_err(|error| PyOSError::new_err(error.chain()))
}
