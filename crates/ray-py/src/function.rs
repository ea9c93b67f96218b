//! Functions and options as the core takes them, made once and used for every call.

use std::sync::Arc;

use bytes::Bytes;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use ray_core::constraint::Shape;
use ray_core::resource::{CPU, GPU, MEMORY, Resources};
use ray_core::runtime_env::RuntimeEnv;
use ray_worker::peer_message::{ExportedFunction, GeneratorSpec, RetryExceptions};
use rustc_hash::FxHashMap;

use crate::placement::PySchedulingConstraint;

/// A pickled function or class, named by its content.
#[pyclass(name = "ExportedFunction", module = "ray_rust._internal", frozen)]
pub(crate) struct PyExportedFunction(pub(crate) Arc<ExportedFunction>);

#[pymethods]
impl PyExportedFunction {
    #[new]
    #[pyo3(signature = (pickled, name, max_calls = 0))]
    fn new(pickled: &[u8], name: String, max_calls: u32) -> Self {
        Self(ExportedFunction::with_max_calls(Bytes::copy_from_slice(pickled), name, max_calls))
    }

    #[getter]
    fn name(&self) -> &str {
        &self.0.name
    }

    #[getter]
    fn function_id<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.function_id.as_bytes())
    }
}

/// What a task or actor needs.
#[pyclass(name = "TaskOptions", module = "ray_rust._internal", frozen)]
pub(crate) struct PyTaskOptions {
    pub(crate) name: Arc<str>,
    pub(crate) shape: Shape,
    /// Nothing was said of where it runs.
    pub(crate) may_inherit: bool,
    pub(crate) num_returns: u32,
    pub(crate) max_retries: i64,
    pub(crate) retry_exceptions: RetryExceptions<Bytes>,
    /// None if it is that of the process that asks.
    pub(crate) runtime_env: Option<RuntimeEnv>,
    pub(crate) task_events: bool,
    pub(crate) generator: Option<Arc<GeneratorSpec>>,
}

/// Which exceptions are retried, as Python says it: whether all are, or the pickled types of those that are.
#[derive(Default)]
pub(crate) struct RetriedExceptions(pub(crate) RetryExceptions<Bytes>);

impl<'a, 'py> FromPyObject<'a, 'py> for RetriedExceptions {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self(match object.cast::<PyBytes>() {
            Ok(types) => RetryExceptions::Listed(Bytes::copy_from_slice(types.as_bytes())),
            Err(_) if object.extract::<bool>()? => RetryExceptions::Always,
            Err(_) => RetryExceptions::Never,
        }))
    }
}

/// How a generator yields, as Python says it: whether it is "dynamic", objects per yield, unread items at
/// which it pauses, and those of its actor; 0 for never.
pub(crate) type GeneratorFields = (bool, u32, u64, u64);

pub(crate) fn generator_spec(fields: Option<GeneratorFields>) -> Option<Arc<GeneratorSpec>> {
    let (is_dynamic, objects_per_yield, limit, actor_limit) = fields?;
    Some(Arc::new(GeneratorSpec { is_dynamic, objects_per_yield, limit, actor_limit }))
}

#[pymethods]
impl PyTaskOptions {
    #[new]
    #[pyo3(signature = (*, name, num_cpus, num_gpus, memory, resources, num_returns, max_retries, retry_exceptions,
        runtime_env = None, task_events = true, generator = None, constraint = None))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of one Python constructor")]
    fn new(
        name: &str,
        num_cpus: f64,
        num_gpus: f64,
        memory: f64,
        resources: FxHashMap<String, f64>,
        num_returns: u32,
        max_retries: i64,
        retry_exceptions: RetriedExceptions,
        runtime_env: Option<&str>,
        task_events: bool,
        generator: Option<GeneratorFields>,
        constraint: Option<&PySchedulingConstraint>,
    ) -> PyResult<Self> {
        let runtime_env = runtime_env
            .map(RuntimeEnv::parse)
            .transpose()
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        let standard = [(CPU, num_cpus), (GPU, num_gpus), (MEMORY, memory)];
        let custom = resources.iter().map(|(name, &amount)| (name.as_str(), amount));
        let resources = Resources::from_units(standard.into_iter().chain(custom))
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        let generator = generator_spec(generator);
        let may_inherit = constraint.is_none();
        let constraint = constraint.map(|constraint| constraint.0.clone()).unwrap_or_default();
        let shape = Shape { resources, constraint };
        Ok(Self {
            name: name.into(),
            shape,
            may_inherit,
            num_returns,
            max_retries,
            retry_exceptions: retry_exceptions.0,
            runtime_env,
            task_events,
            generator,
        })
    }

    /// Whether it is for another environment than that of the process that asks.
    #[getter]
    const fn has_runtime_env(&self) -> bool {
        self.runtime_env.is_some()
    }
}
