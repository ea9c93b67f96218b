//! `ray_rust._internal`: the core worker and the node daemon, for Python.
//!
//! Only what has to be fast or needs the core is here; the public interface is Python, in
//! `python/ray_rust`. What a module offers is written down in `_internal.pyi`.

mod api;
mod args;
mod autoscaler;
mod awaiting;
#[expect(unsafe_code, reason = "memory is lent to Python, and Python's is read, through pointers")]
mod buffer;
mod codec;
mod core_worker;
mod current_task;
mod error;
mod executor;
mod function;
mod gcs_kv;
mod generator;
mod id;
mod metric;
mod node;
mod object_ref;
mod object_ref_generator;
mod placement;
mod remote;
mod signature;
mod state;
#[expect(unsafe_code, reason = "PyO3 offers no classes that are not visited")]
mod untracked;

use pyo3::prelude::*;

#[pymodule]
mod _internal {
    #[pymodule_export]
    use crate::api::{get, put, wait};
    #[pymodule_export]
    use crate::autoscaler::PyAutoscaler;
    #[pymodule_export]
    use crate::core_worker::PyCoreWorker;
    #[pymodule_export]
    use crate::current_task::set_task_variable;
    #[pymodule_export]
    use crate::executor::PyStartedCall;
    #[pymodule_export]
    use crate::function::{PyExportedFunction, PyTaskOptions};
    #[pymodule_export]
    use crate::gcs_kv::PyGcsKv;
    #[pymodule_export]
    use crate::generator::PyStreamingGeneratorStats;
    #[pymodule_export]
    use crate::id::{
        PyActorClassId, PyActorId, PyClusterId, PyFunctionId, PyJobId, PyNodeId, PyPlacementGroupId,
        PyTaskId, PyUniqueId, PyWorkerId,
    };
    #[pymodule_export]
    use crate::metric::PyMetric;
    #[pymodule_export]
    use crate::node::{init_logging, run_node, set_parent_death_signal};
    #[pymodule_export]
    use crate::object_ref::{PyObjectRef, forget_membership, restore_ref};
    #[pymodule_export]
    use crate::object_ref_generator::PyObjectRefGenerator;
    #[pymodule_export]
    use crate::placement::{PyPlacementGroups, PySchedulingConstraint};
    #[pymodule_export]
    use crate::remote::{PyHandleCall, PyMethodCall, PyMethodDescription, PyRemoteCall};
    #[pymodule_export]
    use crate::signature::PyCallShape;
    #[pymodule_export]
    use crate::state::child_prefix;

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "the name that Python expects")]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    /// Whether figures of this build mean something.
    #[pymodule_export]
    const OPTIMIZED: bool = !cfg!(debug_assertions);
}
