//! The way of a call: what `.remote(...)` does once everything that does not change from call to call
//! is known. Whatever is out of the ordinary goes to the Python class that inherits from these.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use pyo3::exceptions::{PyAttributeError, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString, PyTuple};
use ray_core::error::RayError;
use ray_core::id::ActorId;
use ray_worker::CoreWorker;
use ray_worker::core::{MethodRequest, TaskRequest};
use ray_worker::peer_message::{ExportedFunction, GeneratorSpec, RetryExceptions};
use ray_worker::task_table::MethodName;

use crate::args::Args;
use crate::core_worker::PyCoreWorker;
use crate::current_task::follow_context;
use crate::error::{raise, ray_exception};
use crate::function::{
    GeneratorFields, PyExportedFunction, PyTaskOptions, RetriedExceptions, generator_spec,
};
use crate::id::PyActorId;
use crate::object_ref::ready_core;
use crate::object_ref_generator::adopt_results;
use crate::signature::PyCallShape;

/// A remote function; `_submit(args, kwargs)` of the class that inherits from it is the slow way.
#[pyclass(name = "RemoteCall", module = "ray_rust._internal", subclass, frozen)]
#[derive(Default)]
pub(crate) struct PyRemoteCall {
    prepared: OnceLock<PreparedCall>,
}

struct PreparedCall {
    shape: Option<Py<PyCallShape>>,
    function: Arc<ExportedFunction>,
    options: Py<PyTaskOptions>,
}

#[pymethods]
impl PyRemoteCall {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self::default()
    }

    /// From now on calls need nothing but this. `shape` is None if any arguments will do.
    fn _prepare(
        &self,
        shape: Option<Py<PyCallShape>>,
        function: &PyExportedFunction,
        options: Py<PyTaskOptions>,
    ) {
        let prepared = PreparedCall { shape, function: Arc::clone(&function.0), options };
        // Another thread may have been faster, with the same.
        let _ = self.prepared.set(prepared);
    }

    /// Submits a task. Returns a reference; None with num_returns=0, a list of references with more
    /// than 1, and a generator of references if it is a generator.
    #[pyo3(signature = (*args, **kwargs))]
    fn remote<'py>(
        slf: &Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        if let Some(prepared) = slf.get().prepared.get()
            && let Some(core) = ready_core()
            && fits(prepared.shape.as_ref(), args, kwargs)?
            && let Some(args) = ordinary(Args::encode(&core, args, kwargs), py)?
        {
            return submit_task(py, &core, &prepared.function, args, prepared.options.get());
        }
        slow_call(slf.as_any(), args, kwargs)
    }
}

/// A method of actors of one class.
#[pyclass(name = "MethodDescription", module = "ray_rust._internal", frozen)]
pub(crate) struct PyMethodDescription {
    method: Arc<MethodName>,
    task_name: Arc<str>,
    shape: Option<Py<PyCallShape>>,
    num_returns: u32,
    /// None if it is the actor's own.
    max_task_retries: Option<i64>,
    retry_exceptions: RetryExceptions<Bytes>,
    task_events: bool,
    generator: Option<Arc<GeneratorSpec>>,
}

#[pymethods]
impl PyMethodDescription {
    #[new]
    #[pyo3(signature = (method, task_name, shape, num_returns, max_task_retries, generator = None, *,
        task_events = true, retry_exceptions = RetriedExceptions::default()))]
    #[expect(clippy::too_many_arguments, reason = "arguments of one Python constructor")]
    fn new(
        method: (String, String),
        task_name: &str,
        shape: Option<Py<PyCallShape>>,
        num_returns: u32,
        max_task_retries: Option<i64>,
        generator: Option<GeneratorFields>,
        task_events: bool,
        retry_exceptions: RetriedExceptions,
    ) -> Self {
        let (name, group) = method;
        let method = Arc::new(MethodName { name, group });
        let (task_name, generator) = (task_name.into(), generator_spec(generator));
        let retry_exceptions = retry_exceptions.0;
        Self {
            method,
            task_name,
            shape,
            num_returns,
            max_task_retries,
            retry_exceptions,
            generator,
            task_events,
        }
    }
}

/// A handle to an actor, with its methods as attributes. `methods` maps their names to
/// `MethodDescription`s; `method_class(handle, description)` makes what calls them.
#[pyclass(name = "HandleCall", module = "ray_rust._internal", subclass, frozen)]
pub(crate) struct PyHandleCall {
    class_name: String,
    methods: Py<PyDict>,
    method_class: Py<PyAny>,
}

#[pymethods]
impl PyHandleCall {
    #[new]
    fn new(class_name: String, methods: Py<PyDict>, method_class: Py<PyAny>) -> Self {
        Self { class_name, methods, method_class }
    }

    fn __getattribute__<'py>(
        slf: &Bound<'py, Self>,
        name: &Bound<'py, PyString>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let handle = slf.get();
        // What the handle has of its own begins with an underscore, and comes before methods.
        let first = name.to_str().is_ok_and(|name| !name.starts_with('_'));
        if first && let Some(description) = handle.methods.bind(py).get_item(name)? {
            return handle.method_class.bind(py).call1((slf, description));
        }
        static PLAIN: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let plain = PLAIN.get_or_try_init(py, || {
            Ok::<_, PyErr>(py.get_type::<PyAny>().getattr("__getattribute__")?.unbind())
        })?;
        plain.bind(py).call1((slf, name))
    }

    /// What `__getattribute__` has not found: Python asks here next, and would forget what that has said.
    fn __getattr__<'py>(slf: &Bound<'py, Self>, name: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let handle = slf.get();
        if let Some(description) = handle.methods.bind(py).get_item(name)? {
            return handle.method_class.bind(py).call1((slf, description));
        }
        let class_name = &handle.class_name;
        let text = if name.to_str().is_ok_and(|name| name.starts_with('_')) {
            format!("the handle to an actor of class {class_name} has no attribute {name:?}")
        } else {
            format!(
                "the actor class {class_name} has no method {name:?} (attributes of an actor can be read by its methods \
                 only)"
            )
        };
        Err(PyAttributeError::new_err(text))
    }
}

/// A method of one actor; `_submit(args, kwargs)` of the class that inherits from it is the slow way.
#[pyclass(name = "MethodCall", module = "ray_rust._internal", subclass, frozen)]
pub(crate) struct PyMethodCall {
    /// Keeps the actor alive until the call is made.
    handle: Py<PyAny>,
    description: Py<PyMethodDescription>,
    actor_id: ActorId,
    max_task_retries: i64,
}

#[pymethods]
impl PyMethodCall {
    #[new]
    fn new(handle: &Bound<'_, PyAny>, description: Py<PyMethodDescription>) -> PyResult<Self> {
        let py = handle.py();
        let actor_id = handle.getattr(intern!(py, "_actor_id"))?.cast::<PyActorId>()?.get().0;
        let max_task_retries = match description.get().max_task_retries {
            Some(own) => own,
            None => handle.getattr(intern!(py, "_max_task_retries"))?.extract()?,
        };
        Ok(Self { handle: handle.clone().unbind(), description, actor_id, max_task_retries })
    }

    #[getter]
    fn _handle<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        self.handle.bind(py).clone()
    }

    #[getter]
    fn _name(&self) -> &str {
        &self.description.get().method.name
    }

    #[getter]
    fn _concurrency_group(&self) -> &str {
        &self.description.get().method.group
    }

    #[getter]
    fn _task_name(&self) -> &str {
        &self.description.get().task_name
    }

    /// Calls it, whatever the arguments are like.
    fn _call<'py>(
        &self,
        py: Python<'py>,
        core: &PyCoreWorker,
        args: &Bound<'py, PyTuple>,
        kwargs: &Bound<'py, PyDict>,
    ) -> PyResult<Bound<'py, PyAny>> {
        follow_context();
        let args = Args::encode(&core.core, args, Some(kwargs))?;
        self.submit(py, &core.core, args)
    }

    /// Calls it. Returns a reference; None with num_returns=0, a list of references with more than 1, and
    /// a generator of references if it is a generator.
    #[pyo3(signature = (*args, **kwargs))]
    fn remote<'py>(
        slf: &Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (py, call) = (slf.py(), slf.get());
        let description = call.description.get();
        if let Some(core) = ready_core()
            && fits(description.shape.as_ref(), args, kwargs)?
            && let Some(args) = ordinary(Args::encode(&core, args, kwargs), py)?
        {
            return call.submit(py, &core, args);
        }
        slow_call(slf.as_any(), args, kwargs)
    }
}

impl PyMethodCall {
    fn submit<'py>(
        &self,
        py: Python<'py>,
        core: &Arc<CoreWorker>,
        args: Args,
    ) -> PyResult<Bound<'py, PyAny>> {
        let description = self.description.get();
        let request = MethodRequest {
            actor_id: self.actor_id,
            method: Arc::clone(&description.method),
            args: args.bytes,
            dependencies: args.dependencies,
            nested: args.nested,
            num_returns: description.num_returns,
            name: Arc::clone(&description.task_name),
            max_retries: self.max_task_retries,
            retry_exceptions: description.retry_exceptions.clone(),
            task_events: description.task_events,
            generator: description.generator.clone(),
        };
        let returns = core.call_actor(request).map_err(|error| match error {
            RayError::Overloaded { capacity, .. } => self.too_many_pending(py, capacity),
            other => raise(py, other),
        })?;
        adopt_results(py, core, returns, description.generator.as_deref())
    }

    fn too_many_pending(&self, py: Python<'_>, limit: usize) -> PyErr {
        let text = format!(
            "{} was not called: {limit} calls that this process made of the actor {} have no answer yet, as many as \
             its option max_pending_calls allows. Get some of their results first, or make the actor with a higher \
             limit",
            self.description.get().task_name,
            self.actor_id
        );
        ray_exception(py, "PendingCallsLimitExceeded", text)
    }
}

/// Submits a task whose arguments are encoded, and makes the references to its results.
pub(crate) fn submit_task<'py>(
    py: Python<'py>,
    core: &Arc<CoreWorker>,
    function: &Arc<ExportedFunction>,
    args: Args,
    options: &PyTaskOptions,
) -> PyResult<Bound<'py, PyAny>> {
    let request = TaskRequest {
        function: Arc::clone(function),
        shape: options.shape.clone(),
        may_inherit: options.may_inherit,
        runtime_env: options.runtime_env.clone(),
        args: args.bytes,
        dependencies: args.dependencies,
        nested: args.nested,
        num_returns: options.num_returns,
        name: Arc::clone(&options.name),
        max_retries: options.max_retries,
        retry_exceptions: options.retry_exceptions.clone(),
        task_events: options.task_events,
        generator: options.generator.clone(),
    };
    let returns = core.submit_task(request).map_err(|error| raise(py, error))?;
    adopt_results(py, core, returns, options.generator.as_deref())
}

fn fits(
    shape: Option<&Py<PyCallShape>>,
    args: &Bound<'_, PyTuple>,
    kwargs: Option<&Bound<'_, PyDict>>,
) -> PyResult<bool> {
    shape.map_or(Ok(true), |shape| shape.get().fits(args, kwargs))
}

/// Encoded arguments, unless it takes the slow way to say what is wrong with them.
fn ordinary(args: PyResult<Args>, py: Python<'_>) -> PyResult<Option<Args>> {
    match args {
        Ok(args) => Ok(Some(args)),
        Err(error) if error.is_instance_of::<PyTypeError>(py) => Ok(None),
        Err(error) => Err(error),
    }
}

fn slow_call<'py>(
    slf: &Bound<'py, PyAny>,
    args: &Bound<'py, PyTuple>,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = slf.py();
    let kwargs = kwargs.map_or_else(|| PyDict::new(py), Bound::clone);
    slf.call_method1(intern!(py, "_submit"), (args, kwargs))
}
