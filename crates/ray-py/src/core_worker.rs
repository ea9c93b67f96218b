//! The core worker as a Python class.

use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use pyo3::call::PyCallArgs;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};
use ray_core::config::Config;
use ray_core::error::{RayError, RayResult};
use ray_core::id::{ObjectId, WorkerId};
use ray_core::pb::common::Resources as WireResources;
use ray_core::pb::common::{ActorInfo, actor_info};
use ray_core::pb::gcs::{
    GetClusterResourcesReply, KvDelReply, KvDelRequest, KvEntry, KvGetReply, KvGetRequest, KvKeysReply,
    KvKeysRequest, KvPutReply, KvPutRequest, ListActorsReply, ListJobsReply, ListNodesReply,
    ListTaskEventsRequest, NodeInfo, node_info,
};
use ray_core::report::{DebuggerReport, Inquiry};
use ray_core::resource::{Amount, CPU, Resources};
use ray_core::runtime_env::RuntimeEnv;
use ray_link::message::GcsMethod;
use ray_worker::core::{ActorRequest, Called, Cancellation, Listening, Notification, Served, handle_object};
use ray_worker::{CoreWorker, Membership};
use rustix::process::{Signal, getpid, kill_process};

use crate::api::{get_all, split};
use crate::args::{Args, store};
use crate::awaiting::join_callbacks;
use crate::codec::EncodedValue;
use crate::current_task::follow_context;
use crate::error::{Signals, raise, raise_failure, ray_exception};
use crate::executor::PyExecutor;
use crate::function::{PyExportedFunction, PyTaskOptions};
use crate::id::{PyActorId, PyJobId, PyNodeId, PyTaskId, PyWorkerId};
use crate::object_ref::{PyObjectRef, set_current};
use crate::object_ref_generator::PyObjectRefGenerator;
use crate::placement::PyPlacementGroups;
use crate::remote::submit_task;
use crate::state;

/// How long a question to the control plane may take; the node retries while the GCS is away.
const GCS_TIMEOUT: Duration = Duration::from_secs(30);

/// This process as a member of a cluster.
#[pyclass(name = "CoreWorker", module = "ray_rust._internal", frozen)]
pub(crate) struct PyCoreWorker {
    pub(crate) core: Arc<CoreWorker>,
    /// What runs tasks, in a worker.
    executor: Option<PyExecutor>,
}

#[pymethods]
impl PyCoreWorker {
    #[staticmethod]
    #[pyo3(signature = (socket_path, namespace, entrypoint, job_config, on_log, on_warning, runtime_env = ""))]
    #[expect(clippy::too_many_arguments, reason = "arguments of one Python function")]
    fn connect_driver(
        py: Python<'_>,
        socket_path: &str,
        namespace: String,
        entrypoint: String,
        job_config: &[u8],
        on_log: Py<PyAny>,
        on_warning: Py<PyAny>,
        runtime_env: &str,
    ) -> PyResult<Self> {
        let membership = Membership::Driver {
            namespace,
            entrypoint,
            metadata: std::collections::BTreeMap::new(),
            job_config: Bytes::copy_from_slice(job_config),
            runtime_env: parse_env(runtime_env)?,
        };
        let listener = PyListener { on_log: Some(on_log), on_warning: Some(on_warning), front: None };
        Self::connect(py, socket_path, membership, listener, None)
    }

    #[staticmethod]
    #[pyo3(signature = (socket_path, worker_id, executor, runtime_env = ""))]
    fn connect_worker(
        py: Python<'_>,
        socket_path: &str,
        worker_id: &[u8],
        executor: Py<PyAny>,
        runtime_env: &str,
    ) -> PyResult<Self> {
        let worker_id =
            WorkerId::from_binary(worker_id).map_err(|error| PyValueError::new_err(error.to_string()))?;
        let listener = PyListener { on_log: None, on_warning: None, front: Some(executor.clone_ref(py)) };
        Self::connect(
            py,
            socket_path,
            Membership::Worker { worker_id, runtime_env: parse_env(runtime_env)? },
            listener,
            Some(executor),
        )
    }

    #[getter]
    fn job_id(&self) -> PyJobId {
        PyJobId(self.core.job_id())
    }

    #[getter]
    fn node_id(&self) -> PyNodeId {
        PyNodeId(self.core.node_id())
    }

    #[getter]
    fn worker_id(&self) -> PyWorkerId {
        PyWorkerId(self.core.me().worker_id)
    }

    /// Description of what this process was made with, or of a driver what its job asks for.
    #[getter]
    fn runtime_env(&self) -> String {
        self.core.runtime_env().text().to_owned()
    }

    fn set_runtime_env(&self, runtime_env: &str) -> PyResult<()> {
        self.core.set_runtime_env(parse_env(runtime_env)?);
        Ok(())
    }

    #[getter]
    fn session_dir(&self) -> String {
        self.core.session_dir().to_string_lossy().into_owned()
    }

    #[getter]
    fn gcs_address(&self) -> &str {
        self.core.gcs_address()
    }

    #[getter]
    fn placement_groups(&self) -> PyPlacementGroups {
        PyPlacementGroups::new(&self.core)
    }

    fn current_task_id(&self) -> Option<PyTaskId> {
        follow_context();
        self.core.running_task().map(|(task_id, _)| PyTaskId(task_id))
    }

    fn current_task_name(&self) -> Option<String> {
        follow_context();
        self.core.running_task().map(|(_, name)| name)
    }

    /// Id of the function that runs, or the name of the method; nothing in a driver.
    fn current_call<'py>(&self, py: Python<'py>) -> Option<(Option<Bound<'py, PyBytes>>, Option<String>)> {
        follow_context();
        let (called, task_name) = self.core.running_call()?;
        Some(match called {
            Called::Function(function_id) => (Some(PyBytes::new(py, function_id.as_bytes())), None),
            Called::Method(name) => (None, Some(name)),
            Called::NamedMethod => (None, task_name.rsplit('.').next().map(str::to_owned)),
        })
    }

    /// Name, number of restarts and handle metadata of the actor that this process is.
    fn own_description<'py>(&self, py: Python<'py>) -> Option<(String, u64, Bound<'py, PyBytes>)> {
        let own = self.core.own_description()?;
        Some((own.name, own.num_restarts, PyBytes::new(py, &own.handle_metadata)))
    }

    /// What the tasks of this worker, or its actor, may use, and the numbers of the graphics processors.
    fn leased<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyDict>, Vec<u32>)> {
        let leased = self.core.leased();
        let amounts = PyDict::new(py);
        for (name, amount) in leased.resources.iter() {
            amounts.set_item(name, amount.to_f64())?;
        }
        Ok((amounts, leased.devices))
    }

    fn current_actor_id(&self) -> Option<PyActorId> {
        self.core.current_actor().map(PyActorId)
    }

    fn put(&self, value: &Bound<'_, PyAny>) -> PyResult<PyObjectRef> {
        let py = value.py();
        follow_context();
        if value.is_instance_of::<PyObjectRef>() {
            return Err(PyTypeError::new_err(
                "an ObjectRef cannot be put: what it refers to is an object already",
            ));
        }
        store(py, &self.core, EncodedValue::new(value)?)
    }

    /// Has the end of an object of this process told to `ray_rust._private.tensors.shelf`. Returns whether there is
    /// one to tell of.
    fn watch(&self, reference: &PyObjectRef) -> PyResult<bool> {
        Ok(self.core.watch(reference.check(&self.core)?))
    }

    #[pyo3(signature = (refs, timeout))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        refs: &Bound<'py, PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyList>> {
        follow_context();
        let ids = self.ids(refs)?;
        get_all(py, &self.core, &ids, patience(timeout)?)
    }

    #[pyo3(signature = (refs, num_returns, timeout, fetch_local))]
    fn wait<'py>(
        &self,
        py: Python<'py>,
        refs: &Bound<'py, PyAny>,
        num_returns: usize,
        timeout: Option<f64>,
        fetch_local: bool,
    ) -> PyResult<Bound<'py, PyTuple>> {
        follow_context();
        // Dropped when the wait is over; a generator is as ready as its next item.
        let mut places = Vec::new();
        let ids = self.ids_of_waitables(refs, &mut places)?;
        let timeout = patience(timeout)?;
        let mut signals = Signals::default();
        let waited = || self.core.wait(&ids, num_returns, timeout, fetch_local, &mut || signals.check());
        let result = py.detach(waited);
        let ready = signals.settle(py, result)?;
        split(&refs.try_iter()?.collect::<PyResult<Vec<_>>>().and_then(|refs| PyList::new(py, refs))?, &ready)
    }

    fn submit_task<'py>(
        &self,
        py: Python<'py>,
        function: &PyExportedFunction,
        args: &Bound<'py, PyTuple>,
        kwargs: &Bound<'py, PyDict>,
        options: &PyTaskOptions,
    ) -> PyResult<Bound<'py, PyAny>> {
        follow_context();
        let args = Args::encode(&self.core, args, Some(kwargs))?;
        submit_task(py, &self.core, &function.0, args, options)
    }

    #[pyo3(signature = (actor_class, args, kwargs, options, *, placement_cpus, max_restarts,
        max_task_retries, max_concurrency, concurrency_groups, is_async, out_of_order, max_pending_calls, actor_name, namespace, detached,
        handle_metadata))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of one Python method")]
    fn create_actor<'py>(
        &self,
        py: Python<'py>,
        actor_class: &PyExportedFunction,
        args: &Bound<'py, PyTuple>,
        kwargs: &Bound<'py, PyDict>,
        options: &PyTaskOptions,
        placement_cpus: f64,
        max_restarts: i64,
        max_task_retries: i64,
        max_concurrency: u32,
        concurrency_groups: Vec<(String, u32)>,
        is_async: bool,
        out_of_order: bool,
        max_pending_calls: u32,
        actor_name: String,
        namespace: String,
        detached: bool,
        handle_metadata: Vec<u8>,
    ) -> PyResult<(PyActorId, Option<PyObjectRef>)> {
        follow_context();
        let args = Args::encode(&self.core, args, Some(kwargs))?;
        let placement = Resources::new().with_cpu(placement_cpus);
        let mut placement_resources = placement.map_err(|error| PyValueError::new_err(error.to_string()))?;
        // The CPUs of placement are those that the actor keeps, where it keeps any.
        let cpus = placement_resources.get(CPU).max(options.shape.resources.get(CPU));
        placement_resources.add(&options.shape.resources);
        placement_resources.set(CPU, cpus);
        let request = ActorRequest {
            class: Arc::clone(&actor_class.0),
            resources: options.shape.resources.clone(),
            placement_resources,
            runtime_env: options.runtime_env.clone(),
            constraint: options.shape.constraint.clone(),
            may_inherit: options.may_inherit,
            args: args.bytes,
            dependencies: args.dependencies,
            nested: args.nested,
            max_restarts,
            max_task_retries,
            max_concurrency,
            concurrency_groups,
            is_async,
            out_of_order,
            max_pending_calls,
            name: actor_name,
            namespace,
            detached,
            handle_metadata,
            ends_with_handles: !detached,
        };
        let mut signals = Signals::default();
        let result = py.detach(|| self.core.create_actor(request, &mut || signals.check()));
        let actor_id = signals.settle(py, result)?;
        let handle = (!detached).then(|| PyObjectRef::adopt(&self.core, handle_object(actor_id)));
        Ok((PyActorId(actor_id), handle))
    }

    fn attach_actor(
        &self,
        actor_id: &PyActorId,
        class_name: &str,
        out_of_order: bool,
        max_pending_calls: u32,
    ) {
        self.core.attach_actor(actor_id.0, class_name, out_of_order, max_pending_calls);
    }

    fn is_task_cancelled(&self) -> bool {
        follow_context();
        self.core.is_cancelled()
    }

    fn exit_actor(&self, reason: &str) {
        follow_context();
        self.core.exit_actor(reason);
    }

    fn kill_actor(&self, py: Python<'_>, actor_id: &PyActorId, no_restart: bool) -> PyResult<()> {
        let (mut signals, actor_id) = (Signals::default(), actor_id.0);
        let result = py.detach(|| self.core.kill_actor(actor_id, no_restart, &mut || signals.check()));
        if let Err(RayError::NotFound { .. }) = result {
            let text = format!(
                "this cluster has no actor {actor_id}: its handle may be of a cluster that this process has left"
            );
            return Err(ray_exception(py, "ActorHandleNotFoundError", text));
        }
        signals.settle(py, result)
    }

    fn get_named_actor(
        &self,
        py: Python<'_>,
        name: &str,
        namespace: &str,
    ) -> PyResult<Option<(PyActorId, Vec<u8>)>> {
        let mut signals = Signals::default();
        let result = py.detach(|| self.core.named_actor(name, namespace, &mut || signals.check()));
        match result {
            Err(RayError::NotFound { .. }) => Ok(None),
            other => {
                let (actor_id, _, metadata) = signals.settle(py, other)?;
                Ok(Some((PyActorId(actor_id), metadata)))
            }
        }
    }

    #[pyo3(name = "cancel_task")]
    fn cancel_task(
        &self,
        py: Python<'_>,
        reference: &PyObjectRef,
        force: bool,
        recursive: bool,
    ) -> PyResult<()> {
        let object_id = reference.check(&self.core)?;
        let cancelled = py.detach(|| self.core.cancel_task(object_id, Cancellation { force, recursive }));
        cancelled.map(drop).map_err(|error| raise(py, error))
    }

    fn nodes<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let reply: ListNodesReply = self.ask_gcs(py, GcsMethod::ListNodes, Bytes::new())?;
        reply.nodes.iter().map(|node| describe_node(py, node)).collect()
    }

    fn cluster_resources<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let reply: GetClusterResourcesReply =
            self.ask_gcs(py, GcsMethod::GetClusterResources, Bytes::new())?;
        units(py, reply.total.as_ref())
    }

    fn available_resources<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let reply: GetClusterResourcesReply =
            self.ask_gcs(py, GcsMethod::GetClusterResources, Bytes::new())?;
        units(py, reply.available.as_ref())
    }

    fn available_resources_per_node<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let reply: GetClusterResourcesReply =
            self.ask_gcs(py, GcsMethod::GetClusterResources, Bytes::new())?;
        let nodes = PyDict::new(py);
        for node in &reply.nodes {
            nodes.set_item(hex(&node.node_id), units(py, node.available.as_ref())?)?;
        }
        Ok(nodes)
    }

    fn named_actors(&self, py: Python<'_>) -> PyResult<Vec<(String, String)>> {
        let reply: ListActorsReply = self.ask_gcs(py, GcsMethod::ListActors, Bytes::new())?;
        let named = |actor: &ActorInfo| !actor.name.is_empty() && actor.state() != actor_info::State::Dead;
        let actors = reply.actors.into_iter().filter(named);
        Ok(actors.map(|actor| (actor.namespace, actor.name)).collect())
    }

    fn kv_put(
        &self,
        py: Python<'_>,
        namespace: Vec<u8>,
        key: Vec<u8>,
        value: Vec<u8>,
        overwrite: bool,
    ) -> PyResult<bool> {
        let body = KvPutRequest { namespace, key, value, overwrite }.encode_to_vec();
        let reply: KvPutReply = self.ask_gcs(py, GcsMethod::KvPut, body.into())?;
        Ok(reply.added)
    }

    fn kv_get<'py>(
        &self,
        py: Python<'py>,
        namespace: Vec<u8>,
        keys: Vec<Vec<u8>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let body = KvGetRequest { namespace, keys }.encode_to_vec();
        let reply: KvGetReply = self.ask_gcs(py, GcsMethod::KvGet, body.into())?;
        let values = PyDict::new(py);
        for KvEntry { key, value } in reply.entries {
            values.set_item(PyBytes::new(py, &key), PyBytes::new(py, &value))?;
        }
        Ok(values)
    }

    fn kv_del(&self, py: Python<'_>, namespace: Vec<u8>, key: Vec<u8>, prefix: bool) -> PyResult<u64> {
        let body = KvDelRequest { namespace, key, prefix }.encode_to_vec();
        let reply: KvDelReply = self.ask_gcs(py, GcsMethod::KvDel, body.into())?;
        Ok(reply.deleted)
    }

    fn kv_keys<'py>(
        &self,
        py: Python<'py>,
        namespace: Vec<u8>,
        prefix: Vec<u8>,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let body = KvKeysRequest { namespace, prefix }.encode_to_vec();
        let reply: KvKeysReply = self.ask_gcs(py, GcsMethod::KvKeys, body.into())?;
        Ok(reply.keys.iter().map(|key| PyBytes::new(py, key)).collect())
    }

    fn location_of<'py>(
        &self,
        py: Python<'py>,
        reference: &PyObjectRef,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        let object_id = reference.check(&self.core)?;
        let Some(location) = self.core.location_of(object_id) else { return Ok(None) };
        let described = PyDict::new(py);
        described.set_item("node_ids", location.nodes.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        described.set_item("object_size", location.size)?;
        described.set_item("did_spill", location.did_spill)?;
        Ok(Some(described))
    }

    /// How many objects this process refers to, and how many bytes of small values it keeps.
    fn reference_usage(&self) -> (usize, usize) {
        self.core.reference_usage()
    }

    fn inspect_node(
        &self,
        py: Python<'_>,
        address: &str,
        tasks: bool,
        objects: bool,
        limit: u32,
        timeout: f64,
    ) -> PyResult<String> {
        let inquiry = Inquiry { tasks, objects, limit };
        let mut signals = Signals::default();
        let timeout = patience(Some(timeout))?.unwrap_or_default();
        let core = &self.core;
        let result =
            py.detach(|| state::inspect_node(core, address, inquiry, timeout, &mut || signals.check()));
        signals.settle(py, result)
    }

    fn task_events(
        &self,
        py: Python<'_>,
        limit: u64,
        timeout: f64,
        job_id: &[u8],
        task_id: &[u8],
        actor_id: &[u8],
    ) -> PyResult<String> {
        let (job_id, task_id, actor_id) = (job_id.to_vec(), task_id.to_vec(), actor_id.to_vec());
        let request = ListTaskEventsRequest { job_id, task_id, actor_id, limit };
        let mut signals = Signals::default();
        let timeout = patience(Some(timeout))?.unwrap_or_default();
        let core = &self.core;
        let result = py.detach(|| state::task_events(core, &request, timeout, &mut || signals.check()));
        signals.settle(py, result)
    }

    fn list_actors<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let reply: ListActorsReply = self.ask_gcs(py, GcsMethod::ListActors, Bytes::new())?;
        reply.actors.iter().map(|actor| state::describe_actor(py, actor)).collect()
    }

    fn list_jobs<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let reply: ListJobsReply = self.ask_gcs(py, GcsMethod::ListJobs, Bytes::new())?;
        reply.jobs.iter().map(|job| state::describe_job(py, job)).collect()
    }

    fn flush_logs(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let timeout = patience(Some(timeout))?.unwrap_or_default();
        let mut signals = Signals::default();
        let result = py.detach(|| self.core.flush_logs(timeout, &mut || signals.check()));
        signals.settle(py, result)
    }

    fn shutdown(&self, py: Python<'_>, stop_node: bool) -> PyResult<()> {
        set_current(None);
        py.detach(|| self.core.shutdown(stop_node));
        join_callbacks(py)
    }

    fn run(&self, py: Python<'_>) -> PyResult<bool> {
        let executor = self.executor()?;
        let result = py.detach(|| self.core.run(executor));
        Ok(unless_gone(py, result)? == Some(Served::InLoops))
    }

    fn run_thread(&self, py: Python<'_>, group: usize) -> PyResult<()> {
        let executor = self.executor()?;
        let result = py.detach(|| self.core.run_thread(executor, group));
        unless_gone(py, result).map(drop)
    }

    fn set_debugger(&self, port: Option<u16>, paused_threads: u32) {
        self.core.set_debugger(DebuggerReport { port, paused_threads });
    }

    fn on_thread_not_started(&self, group: usize) {
        self.core.on_thread_not_started(group);
    }

    fn loop_descriptors(&self, py: Python<'_>, group: usize) -> PyResult<Vec<i32>> {
        self.core
            .loop_descriptors(group, |descriptor| descriptor.as_raw_fd())
            .map_err(|error| raise(py, error))
    }

    fn serve_loop(&self, py: Python<'_>, group: usize) -> PyResult<bool> {
        let executor = self.executor()?;
        let result = py.detach(|| self.core.serve_loop(executor, group));
        Ok(unless_gone(py, result)?.unwrap_or(false))
    }

    /// Before the event loop of a group sleeps: whether it has something to serve instead.
    fn look_for_calls(&self, py: Python<'_>, group: usize) -> PyResult<bool> {
        let result = py.detach(|| self.core.look_for_calls(group));
        result.map_err(|error| raise(py, error))
    }

    fn flush_replies(&self) {
        self.core.flush_replies();
    }
}

impl PyCoreWorker {
    fn connect(
        py: Python<'_>,
        socket_path: &str,
        membership: Membership,
        listener: PyListener,
        executor: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let config = Config::from_env().map_err(|error| PyValueError::new_err(error.chain()))?.worker;
        let core = py
            .detach(|| CoreWorker::connect(Path::new(socket_path), membership, config, Box::new(listener)))
            .map_err(|error| raise(py, error))?;
        set_current(Some(Arc::clone(&core)));
        Ok(Self { core, executor: executor.map(PyExecutor::new) })
    }

    fn executor(&self) -> PyResult<&PyExecutor> {
        self.executor.as_ref().ok_or_else(|| PyRuntimeError::new_err("only a worker runs tasks"))
    }

    fn ids_of_waitables(
        &self,
        waitables: &Bound<'_, PyAny>,
        places: &mut Vec<PyObjectRef>,
    ) -> PyResult<Vec<ObjectId>> {
        let mut ids = Vec::new();
        for waitable in waitables.try_iter()? {
            let waitable = waitable?;
            if let Ok(generator) = waitable.cast::<PyObjectRefGenerator>() {
                let object_id = generator.get().peek(&self.core)?;
                places.push(PyObjectRef::adopt_as(&self.core, object_id, true));
                ids.push(object_id);
            } else if let Ok(reference) = waitable.cast::<PyObjectRef>() {
                ids.push(reference.get().check(&self.core)?);
            } else {
                let kind = waitable.get_type().name()?;
                let text = format!("an ObjectRef or an ObjectRefGenerator is expected, got {kind}");
                return Err(PyTypeError::new_err(text));
            }
        }
        Ok(ids)
    }

    fn ids(&self, refs: &Bound<'_, PyAny>) -> PyResult<Vec<ObjectId>> {
        let id = |reference: PyResult<Bound<'_, PyAny>>| {
            let reference = reference?;
            match reference.cast::<PyObjectRef>() {
                Ok(reference) => reference.get().check(&self.core),
                Err(_) => Err(PyTypeError::new_err(format!(
                    "an ObjectRef is expected, got {}",
                    reference.get_type().name()?
                ))),
            }
        };
        refs.try_iter()?.map(id).collect()
    }

    fn ask_gcs<R: prost::Message + Default>(
        &self,
        py: Python<'_>,
        method: GcsMethod,
        body: Bytes,
    ) -> PyResult<R> {
        let mut signals = Signals::default();
        let result: RayResult<R> = py.detach(|| {
            let reply = self.core.call_gcs(method, body, GCS_TIMEOUT, &mut || signals.check())?;
            R::decode(reply).map_err(|error| RayError::Protocol {
                peer: "the control plane".to_owned(),
                reason: error.to_string(),
            })
        });
        signals.settle(py, result)
    }
}

fn parse_env(text: &str) -> PyResult<RuntimeEnv> {
    RuntimeEnv::parse(text).map_err(|error| PyValueError::new_err(error.to_string()))
}

/// What serving came to; None if the node is gone, and its workers go with it.
fn unless_gone<T>(py: Python<'_>, result: RayResult<T>) -> PyResult<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(RayError::NodeDied { .. } | RayError::Unavailable { .. } | RayError::ShutDown) => Ok(None),
        Err(error) => Err(raise(py, error)),
    }
}

/// A timeout in seconds; none of them, or more than can be waited for, is for ever.
pub(crate) fn patience(seconds: Option<f64>) -> PyResult<Option<Duration>> {
    match seconds {
        None => Ok(None),
        Some(seconds) if seconds.is_nan() || seconds < 0.0 => {
            Err(PyValueError::new_err(format!("timeout has to be 0 or more seconds, got {seconds}")))
        }
        Some(seconds) => Ok(Duration::try_from_secs_f64(seconds).ok()),
    }
}

pub(crate) fn units<'py>(py: Python<'py>, resources: Option<&WireResources>) -> PyResult<Bound<'py, PyDict>> {
    let units = PyDict::new(py);
    for (name, &raw) in resources.iter().flat_map(|resources| &resources.amounts) {
        units.set_item(name, Amount::from_raw(raw).to_f64())?;
    }
    Ok(units)
}

/// An id as Python shows it.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A node as `ray.nodes()` describes it.
fn describe_node<'py>(py: Python<'py>, node: &NodeInfo) -> PyResult<Bound<'py, PyDict>> {
    let alive = node.state() == node_info::State::Alive;
    let (host, port) = node.raylet_address.rsplit_once(':').unwrap_or((&node.raylet_address, "0"));
    let described = PyDict::new(py);
    described.set_item("NodeID", hex(&node.node_id))?;
    described.set_item("Alive", alive)?;
    described.set_item("alive", alive)?;
    described.set_item("NodeManagerAddress", host)?;
    described.set_item("NodeManagerHostname", &node.hostname)?;
    described.set_item("NodeManagerPort", port.parse::<u16>().unwrap_or(0))?;
    described.set_item("NodeName", host)?;
    described.set_item("RayletSocketName", &node.socket_path)?;
    // One process and one port serve what in Ray are several.
    described.set_item("ObjectStoreSocketName", &node.socket_path)?;
    described.set_item("ObjectManagerPort", port.parse::<u16>().unwrap_or(0))?;
    for absent in ["DashboardAgentListenPort", "MetricsAgentPort"] {
        described.set_item(absent, 0)?;
    }
    described.set_item("RuntimeEnvAgentPort", port.parse::<u16>().unwrap_or(0))?;
    described.set_item("DeathReason", if alive { None } else { Some(&node.death_reason) })?;
    described.set_item("DeathReasonMessage", if alive { None } else { Some(&node.death_reason) })?;
    described.set_item("Resources", units(py, node.total.as_ref())?)?;
    described.set_item("Labels", node.labels.clone())?;
    described.set_item("IsHeadNode", node.is_head)?;
    described.set_item("MetricsExportPort", node.metrics_port)?;
    described.set_item("StartTimeMs", node.start_time_ms)?;
    described.set_item("EndTimeMs", node.end_time_ms)?;
    Ok(described)
}

/// Calls a function of the module that reports to the user.
fn report<'py>(py: Python<'py>, name: &str, args: impl PyCallArgs<'py>) -> PyResult<()> {
    py.import("ray_rust._private.reporting")?.call_method1(name, args).map(drop)
}

/// Tells Python what the core noticed.
struct PyListener {
    on_log: Option<Py<PyAny>>,
    on_warning: Option<Py<PyAny>>,
    /// What runs tasks, in a worker.
    front: Option<Py<PyAny>>,
}

impl Listening for PyListener {
    fn notify(&self, notification: Notification) {
        Python::attach(|py| {
            let told = match (notification, &self.on_log, &self.on_warning) {
                (Notification::Log { pid, name, is_stderr, lines }, Some(on_log), _) => {
                    on_log.call1(py, (pid, name, is_stderr, lines)).map(drop)
                }
                (Notification::Warning(text), _, Some(on_warning)) => on_warning.call1(py, (text,)).map(drop),
                (Notification::Warning(text), _, None) => {
                    tracing::warn!("{text}");
                    Ok(())
                }
                (Notification::Log { .. }, None, _) => Ok(()),
                (Notification::CancelCall(key), _, _) => self
                    .front
                    .as_ref()
                    .map_or(Ok(()), |front| front.call_method1(py, "cancel_call", (key.to_u64(),)).map(drop)),
                (Notification::ResumeCall(key), _, _) => self
                    .front
                    .as_ref()
                    .map_or(Ok(()), |front| front.call_method1(py, "resume_call", (key.to_u64(),)).map(drop)),
                (Notification::StartThreads { group, count }, _, _) => {
                    self.front.as_ref().map_or(Ok(()), |front| {
                        front.call_method1(py, "start_threads", (group, count)).map(drop)
                    })
                }
                (Notification::Released(object_id), ..) => py
                    .import("ray_rust._private.tensors.shelf")
                    .and_then(|shelf| shelf.call_method1("on_released", (object_id.hex(),)))
                    .map(drop),
                // As if a worker without a process had printed it.
                (Notification::Pending(text), Some(on_log), _) => {
                    on_log.call1(py, (0, "scheduler", true, vec![text])).map(drop)
                }
                (Notification::Pending(text), None, _) => report(py, "report_pending", (text,)),
                (Notification::UnhandledError { object_id, failure }, ..) => {
                    let error = raise_failure(py, object_id, failure).into_value(py);
                    report(py, "report_unhandled", (error,))
                }
                (Notification::Interrupt, _, _) => {
                    // The worker's handler of the signal raises in the main thread if the task still runs.
                    kill_process(getpid(), Signal::INT).map_err(|error| PyOSError::new_err(error.to_string()))
                }
            };
            if let Err(error) = told {
                error.print(py);
            }
        });
    }
}
