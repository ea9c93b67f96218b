//! Ids as Python classes, one for each kind.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyType};
use ray_core::id::{
    ActorClassId, ActorId, ClusterId, FunctionId, IdError, JobId, NodeId, PlacementGroupId, TaskId, UniqueId,
    WorkerId,
};

use pyo3::exceptions::PyValueError;

pub(crate) fn refuse(error: IdError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

macro_rules! id_class {
    ($(#[$meta:meta])* $class:ident, $name:literal, $id:ty $({ $($more:tt)* })?) => {
        $(#[$meta])*
        #[pyclass(name = $name, module = "ray_rust._internal", frozen, eq, ord, hash, subclass)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) struct $class(pub(crate) $id);

        #[pymethods]
        impl $class {
            #[new]
            fn new(binary: &[u8]) -> PyResult<Self> {
                <$id>::from_binary(binary).map(Self).map_err(refuse)
            }

            #[classmethod]
            fn from_binary(_class: &Bound<'_, PyType>, id_bytes: &[u8]) -> PyResult<Self> {
                Self::new(id_bytes)
            }

            #[classmethod]
            fn from_hex(_class: &Bound<'_, PyType>, hex_id: &str) -> PyResult<Self> {
                <$id>::from_hex(hex_id).map(Self).map_err(refuse)
            }

            #[classmethod]
            fn from_random(_class: &Bound<'_, PyType>) -> Self {
                Self(<$id>::random())
            }

            #[classmethod]
            fn nil(_class: &Bound<'_, PyType>) -> Self {
                Self(<$id>::nil())
            }

            #[classmethod]
            fn size(_class: &Bound<'_, PyType>) -> usize {
                <$id>::LEN
            }

            fn binary<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
                PyBytes::new(py, self.0.as_bytes())
            }

            fn hex(&self) -> String {
                self.0.hex()
            }

            fn is_nil(&self) -> bool {
                self.0.is_nil()
            }

            fn __repr__(&self) -> String {
                format!("{}({})", $name, self.0)
            }

            fn __reduce__<'py>(slf: &Bound<'py, Self>) -> (Bound<'py, PyType>, (Bound<'py, PyBytes>,)) {
                (slf.get_type(), (slf.get().binary(slf.py()),))
            }

            $($($more)*)?
        }
    };
}

id_class!(
    /// One task.
    PyTaskId, "TaskID", TaskId
);
id_class!(
    /// One actor.
    PyActorId, "ActorID", ActorId
);
id_class!(
    /// One node.
    PyNodeId, "NodeID", NodeId
);
id_class!(
    /// One job.
    PyJobId, "JobID", JobId {
        /// The job of this number.
        #[classmethod]
        fn from_int(_class: &Bound<'_, PyType>, value: u32) -> Self {
            let mut bytes = [0; JobId::LEN];
            bytes[JobId::LEN - 4..].copy_from_slice(&value.to_be_bytes());
            Self(JobId::from_bytes(bytes))
        }

        /// Its number: the last four bytes.
        fn int(&self) -> u32 {
            let bytes = self.0.as_bytes();
            u32::from_be_bytes(bytes[JobId::LEN - 4..].try_into().expect("an id has more than 4 bytes"))
        }
    }
);
id_class!(
    /// One process.
    PyWorkerId, "WorkerID", WorkerId
);
id_class!(
    /// One placement group.
    PyPlacementGroupId, "PlacementGroupID", PlacementGroupId
);
id_class!(
    /// One function or class that was sent to other processes.
    PyFunctionId, "FunctionID", FunctionId
);

id_class!(
    /// Whatever has no kind of its own.
    PyUniqueId, "UniqueID", UniqueId
);
id_class!(
    /// A class of actors.
    PyActorClassId, "ActorClassID", ActorClassId
);
id_class!(
    /// A cluster.
    PyClusterId, "ClusterID", ClusterId
);
