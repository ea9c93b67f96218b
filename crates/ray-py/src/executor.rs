//! Runs tasks and actors in Python.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError, PySystemExit, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use ray_core::error::RayError;
use ray_core::id::{FunctionId, ObjectId, TaskId, WorkerId};
use ray_core::pb::common::ActorSpec;
use ray_worker::CoreWorker;
use ray_worker::core::{
    Concurrency, Executor, Flow, ItemSender, Limits, ReadyArg, ResolvedArg, StartedCall, Task, work_for,
};
use ray_worker::peer_message::{GeneratorSpec, RetryExceptions, Returned, Target};
use ray_worker::value::{Failure, Value};
use rustc_hash::FxHashMap;

use crate::codec::{EncodedValue, decode, decode_inline};
use crate::error::{Signals, is_exit, raise_failure};
use crate::generator::{Producing, PyStreamingGeneratorStats};

/// Runs what comes, by way of the Python object that `connect_worker` was given.
pub(crate) struct PyExecutor {
    front: Py<PyAny>,
    /// Functions that were loaded.
    functions: Mutex<FxHashMap<FunctionId, Py<PyAny>>>,
    actor: OnceLock<Py<PyAny>>,
    /// Whose output the front was told to expect.
    announced: Mutex<String>,
    /// Why this process is not fit to run anything of its job, and since when.
    unfit: Mutex<Option<(String, Instant)>>,
    job_config: Mutex<Vec<u8>>,
}

/// What a lock holds, which nobody keeps while Python code runs.
fn taken<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a process that could not be prepared says so, before it is tried again.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// How a call ended.
pub(crate) enum Ended {
    /// With its results.
    Returned(Vec<Returned>),
    /// By an exception of the user's code.
    Raised(PyErr),
    /// By a failure that has a name of its own.
    Failed(Failure),
}

impl PyExecutor {
    pub(crate) fn new(front: Py<PyAny>) -> Self {
        Self {
            front,
            functions: Mutex::default(),
            actor: OnceLock::new(),
            announced: Mutex::default(),
            unfit: Mutex::default(),
            job_config: Mutex::default(),
        }
    }

    /// Does what the job's processes have to do first.
    fn prepare(&self, py: Python<'_>) {
        let config = PyBytes::new(py, &taken(&self.job_config));
        let prepared = self.front.call_method1(py, "set_job", (config,));
        *taken(&self.unfit) = prepared.err().map(|error| {
            let text = error.value(py).to_string();
            error.print(py);
            (text, Instant::now())
        });
    }

    /// Why this process cannot run what it was given. After a while it is tried again to make it fit.
    fn unfit(&self, py: Python<'_>) -> Option<String> {
        let since = taken(&self.unfit).as_ref().map(|&(_, since)| since)?;
        if since.elapsed() >= TRY_AGAIN_AFTER {
            self.prepare(py);
        }
        taken(&self.unfit).as_ref().map(|(reason, _)| reason.clone())
    }

    fn announce(&self, py: Python<'_>, kind: &str, name: &str) {
        let mut announced = taken(&self.announced);
        if *announced != name {
            name.clone_into(&mut announced);
            drop(announced);
            if let Err(error) = self.front.call_method1(py, "announce", (kind, name)) {
                error.print(py);
            }
        }
    }

    fn load<'py>(&self, py: Python<'py>, id: FunctionId, pickled: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        let known = || taken(&self.functions);
        if let Some(function) = known().get(&id) {
            return Ok(function.bind(py).clone());
        }
        let args = (PyBytes::new(py, pickled), PyBytes::new(py, id.as_bytes()));
        let function = self.front.call_method1(py, "load", args)?;
        known().insert(id, function.clone_ref(py));
        Ok(function.into_bound(py))
    }

    fn callable<'py>(&self, py: Python<'py>, task: &Task<'_>) -> PyResult<Bound<'py, PyAny>> {
        match (&task.header.target, &task.function) {
            (Target::Function(id), Some(pickled)) => self.load(py, *id, pickled),
            (Target::Function(_), None) => Err(PyRuntimeError::new_err("a task came without its function")),
            (Target::Method { name, .. }, _) => {
                let actor =
                    self.actor.get().ok_or_else(|| PyRuntimeError::new_err("this worker is no actor"))?;
                actor.bind(py).getattr(*name)
            }
        }
    }

    fn run(&self, py: Python<'_>, core: &Arc<CoreWorker>, task: &Task<'_>) -> Ended {
        // Before the code runs, so that nothing that its caller says is missed.
        let producing = ItemSender::new(core, task).zip(task.header.generator);
        let called = match &task.header.target {
            Target::Method { name: "__ray_terminate__", .. } => {
                core.exit_actor("it was told to terminate");
                Ok(py.None().into_bound(py))
            }
            Target::Method { name: "__ray_ready__", .. } => {
                Ok(pyo3::types::PyBool::new(py, true).to_owned().into_any())
            }
            Target::Method { .. } | Target::Function(_) => self.call(py, task),
        };
        let expected = Expected::by(task);
        let Some((sender, spec)) = producing else {
            return called.map_or_else(Ended::Raised, |value| store_results(core, &expected, &value));
        };
        let mut producing = Producing { core, task: expected, spec, sender };
        let ended = called.map_or_else(Ended::Raised, |iterated| producing.run(iterated));
        let retried = retried(task);
        producing.finish(
            py,
            ended,
            |error| is_retried(py, &self.front, error, retried),
            |error| encode_error(py, &self.front, error, task.header.name),
        )
    }

    fn call<'py>(&self, py: Python<'py>, task: &Task<'_>) -> PyResult<Bound<'py, PyAny>> {
        let callable = self.callable(py, task)?;
        let (args, kwargs) = decode_args(py, &task.args)?;
        callable.call(args, kwargs.as_ref())
    }
}

/// Which exceptions have a task tried again: none if it was tried as often as it may be.
const fn retried<'a>(task: &Task<'a>) -> RetryExceptions<&'a [u8]> {
    if task.header.retriable { task.header.retry_exceptions } else { RetryExceptions::Never }
}

/// Whether this exception is one of those.
fn is_retried(
    py: Python<'_>,
    front: &Py<PyAny>,
    error: &PyErr,
    retried: RetryExceptions<impl AsRef<[u8]>>,
) -> bool {
    let types = match retried {
        RetryExceptions::Never => return false,
        RetryExceptions::Always => return true,
        RetryExceptions::Listed(types) => types,
    };
    let args = (error.value(py), PyBytes::new(py, types.as_ref()));
    let listed = front.call_method1(py, "is_listed", args).and_then(|listed| listed.extract(py));
    listed.unwrap_or_else(|error| {
        // The caller gets what was raised; why it was not retried is in what this process prints.
        error.print(py);
        false
    })
}

/// An exception of a task, as the front encodes it, for a caller who may want it retried.
fn raised(
    py: Python<'_>,
    front: &Py<PyAny>,
    error: PyErr,
    task_name: &str,
    retried: RetryExceptions<impl AsRef<[u8]>>,
) -> Failure {
    let is_listed = matches!(retried, RetryExceptions::Listed(_)) && is_retried(py, front, &error, retried);
    match encode_error(py, front, error, task_name) {
        Failure::Raised(error) if is_listed => Failure::RaisedListed(error),
        other => other,
    }
}

/// Whether a call that was cancelled has ended by that: it was interrupted, or it awaited what it had submitted, which
/// was cancelled with it.
fn is_end_of_cancelled(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PyKeyboardInterrupt>(py)
        || is_of(py, error, "asyncio", "CancelledError")
        || is_of(py, error, "ray_rust.exceptions", "TaskCancelledError")
}

fn is_of(py: Python<'_>, error: &PyErr, module: &str, class: &str) -> bool {
    let class = py.import(module).and_then(|module| module.getattr(class));
    class.is_ok_and(|class| error.matches(py, class).unwrap_or(false))
}

/// An exception of a task, as the front encodes it.
fn encode_error(py: Python<'_>, front: &Py<PyAny>, error: PyErr, task_name: &str) -> Failure {
    let text = error.to_string();
    let encoded = front
        .call_method1(py, "encode_error", (error.into_value(py), task_name))
        .and_then(|bytes| bytes.extract::<Vec<u8>>(py));
    match encoded {
        Ok(bytes) => Failure::Raised(bytes.into()),
        Err(second) => {
            Failure::System(format!("{task_name} raised {text}, which could not be encoded: {second}"))
        }
    }
}

impl Executor for PyExecutor {
    fn set_job(&self, job_config: &[u8]) {
        *taken(&self.job_config) = job_config.to_vec();
        Python::attach(|py| self.prepare(py));
    }

    fn set_devices(&self, devices: &[u32]) {
        Python::attach(|py| {
            if let Err(error) = self.front.call_method1(py, "set_devices", (devices.to_vec(),)) {
                tracing::error!(%error, "the visible devices could not be set");
                error.print(py);
            }
        });
    }

    fn execute(&self, core: &Arc<CoreWorker>, task: &Task<'_>) -> Result<Vec<Returned>, Failure> {
        Python::attach(|py| {
            if let Some(reason) = self.unfit(py) {
                return Err(Failure::RuntimeEnvSetup(reason));
            }
            if matches!(task.header.target, Target::Function(_)) {
                self.announce(py, "task", task.header.name);
            }
            match self.run(py, core, task) {
                Ended::Returned(returned) => Ok(returned),
                Ended::Failed(failure) => Err(failure),
                Ended::Raised(error) if core.is_cancelled() && is_end_of_cancelled(py, &error) => {
                    Err(Failure::Cancelled(task.header.task_id))
                }
                Ended::Raised(error) => {
                    if is_exit(py, &error) && matches!(task.header.target, Target::Method { .. }) {
                        core.exit_actor("its code raised SystemExit");
                    }
                    let error = harmless(py, error, task.header.name);
                    core.keep_error_text(task.header.task_id, traceback_of(py, &error));
                    Err(raised(py, &self.front, error, task.header.name, retried(task)))
                }
            }
        })
    }

    fn start(&self, core: &Arc<CoreWorker>, call: StartedCall, task: &Task<'_>) {
        Python::attach(|py| {
            let Target::Method { name, group, .. } = task.header.target else {
                let failure = Failure::System("a function was sent to an actor".to_owned());
                return core.finish_call(&call, Err(failure));
            };
            // Before the code runs, so that nothing that its caller says is missed.
            let producing = ItemSender::new(core, task).zip(task.header.generator);
            let started = PyStartedCall {
                core: Arc::clone(core),
                front: self.front.clone_ref(py),
                group: group.to_owned(),
                is_generator: producing.is_some(),
                producing: Mutex::new(producing),
                call,
            };
            let started = match Bound::new(py, started) {
                Ok(started) => started,
                Err(error) => return error.print(py),
            };
            let begun = (|| {
                let method = match name {
                    "__ray_ready__" => py.None().into_bound(py),
                    _ => self.callable(py, task)?,
                };
                let (args, kwargs) = decode_args(py, &task.args)?;
                let kwargs = kwargs.unwrap_or_else(|| PyDict::new(py));
                self.front.call_method1(py, "start_call", (&started, method, args, kwargs))
            })();
            if let Err(error) = begun {
                started.get().fail(py, error.into_value(py).into_bound(py).into_any());
            }
        });
    }

    fn create_actor(
        &self,
        core: &Arc<CoreWorker>,
        spec: &ActorSpec,
        args: &[ResolvedArg<'_>],
    ) -> Result<Concurrency, (String, Bytes)> {
        let class_name = &spec.class_name;
        let groups = spec.concurrency_groups.iter();
        let limits = Limits {
            default: spec.max_concurrency as usize,
            named: groups.map(|group| (group.name.clone(), group.max_concurrency as usize)).collect(),
        };
        Python::attach(|py| {
            if let Some(reason) = self.unfit(py) {
                return Err((reason, Bytes::new()));
            }
            self.announce(py, "actor", class_name);
            let made = self.load(py, FunctionId::of(&spec.class_blob), &spec.class_blob).and_then(|class| {
                let (args, kwargs) = decode_args(py, args)?;
                if !spec.is_async {
                    return class.call(args, kwargs.as_ref());
                }
                let kwargs = kwargs.unwrap_or_else(|| PyDict::new(py));
                let names: Vec<&str> = limits.named.iter().map(|(name, _)| name.as_str()).collect();
                let made = self.front.call_method1(py, "make_async_actor", (class, args, kwargs, names))?;
                Ok(made.into_bound(py))
            });
            match made {
                Ok(actor) => {
                    // A worker becomes an actor once.
                    let _ = self.actor.set(actor.unbind());
                    Ok(if spec.is_async {
                        Concurrency::Loops(limits)
                    } else if limits.default > 1 || !limits.named.is_empty() {
                        Concurrency::Threads(limits)
                    } else {
                        Concurrency::Serial
                    })
                }
                Err(error) => {
                    let text = format!("its constructor raised {error}");
                    let name = format!("{class_name}.__init__");
                    if let Some(actor_id) = core.current_actor() {
                        core.keep_error_text(actor_id.creation_task_id(), traceback_of(py, &error));
                    }
                    match encode_error(py, &self.front, error, &name) {
                        Failure::Raised(encoded) => Err((text, encoded)),
                        other => Err((other.into_error(ObjectId::nil()).to_string(), Bytes::new())),
                    }
                }
            }
        })
    }

    fn run_named(&self, function: &str, payload: &[u8]) -> Result<Vec<u8>, String> {
        Python::attach(|py| {
            let call = || {
                let (module, name) = function.split_once(':').ok_or_else(|| {
                    PyValueError::new_err(format!("a function is named as \"module:name\", got {function:?}"))
                })?;
                let mut object = py.import(module)?.into_any();
                for part in name.split('.') {
                    object = object.getattr(part)?;
                }
                let result = object.call1((PyBytes::new(py, payload),))?;
                let bytes = result
                    .cast::<PyBytes>()
                    .map_err(|_| PyTypeError::new_err(format!("{function} has to return bytes")))?;
                Ok(bytes.as_bytes().to_vec())
            };
            call().map_err(|error: PyErr| error.to_string())
        })
    }
}

/// The text of an exception, as Python prints it.
fn traceback_of(py: Python<'_>, error: &PyErr) -> String {
    let parts = py
        .import("traceback")
        .and_then(|module| {
            module.call_method1(
                "format_exception",
                (error.value(py).get_type(), error.value(py), error.traceback(py)),
            )
        })
        .and_then(|parts| parts.extract::<Vec<String>>());
    parts.map_or_else(|_| error.to_string(), |parts| parts.concat())
}

fn decode_args<'py>(
    py: Python<'py>,
    args: &[ResolvedArg<'_>],
) -> PyResult<(Bound<'py, PyTuple>, Option<Bound<'py, PyDict>>)> {
    let mut positional = Vec::with_capacity(args.len());
    let mut keywords = None;
    for arg in args {
        let value = match &arg.value {
            ReadyArg::Inline(bytes) => decode_inline(py, bytes)?,
            ReadyArg::Ready(value) => decode(py, value)?,
        };
        match arg.keyword {
            None => positional.push(value),
            Some(keyword) => {
                keywords.get_or_insert_with(|| PyDict::new(py)).set_item(keyword, value)?;
            }
        }
    }
    Ok((PyTuple::new(py, positional)?, keywords))
}

/// A call that runs in an event loop: whoever awaits its end tells the caller.
#[pyclass(name = "StartedCall", module = "ray_rust._internal", frozen)]
pub(crate) struct PyStartedCall {
    core: Arc<CoreWorker>,
    front: Py<PyAny>,
    group: String,
    is_generator: bool,
    /// What sends its items, until it has ended; taken while it does.
    producing: Mutex<Option<(ItemSender, GeneratorSpec)>>,
    call: StartedCall,
}

/// Whether a generator call goes on, as Python is told.
const fn flow_number(flow: Flow) -> u8 {
    match flow {
        Flow::Go => 0,
        Flow::Wait => 1,
        Flow::Stop => 2,
    }
}

#[pymethods]
impl PyStartedCall {
    /// Names it among the calls that run.
    #[getter]
    const fn key(&self) -> u64 {
        self.call.key.to_u64()
    }

    /// Its concurrency group; empty for that of calls without one.
    #[getter]
    fn group(&self) -> &str {
        &self.group
    }

    /// Whether what it gives is to be iterated over, and sent item by item.
    #[getter]
    const fn is_generator(&self) -> bool {
        self.is_generator
    }

    /// Sends what it has yielded. Returns whether it goes on (0), waits first (1), or stops (2), and what it gets for
    /// its `yield`.
    fn send(&self, value: &Bound<'_, PyAny>) -> PyResult<(u8, PyStreamingGeneratorStats)> {
        work_for(Some(self.call.key));
        let Some((sender, spec)) = taken(&self.producing).take() else {
            return Err(PyRuntimeError::new_err("an item was sent by what is no generator, or has ended"));
        };
        let mut producing = Producing { core: &self.core, task: Expected::by_call(&self.call), spec, sender };
        let sent = producing.send(value);
        *taken(&self.producing) = Some((producing.sender, spec));
        match sent {
            Ok((flow, stats)) => Ok((flow_number(flow), stats)),
            Err(Ended::Raised(error)) => Err(error),
            Err(Ended::Failed(failure)) => Err(raise_failure(value.py(), ObjectId::nil(), failure)),
            Err(Ended::Returned(_)) => Err(PyRuntimeError::new_err("an item was sent after the last")),
        }
    }

    /// Whether it goes on, as `send` says it; if it has to wait, `resume_call` is called when to ask again.
    fn flow(&self) -> u8 {
        let producing = taken(&self.producing);
        let flow = producing.as_ref().map(|(sender, _)| sender.flow_of_call(self.call.key));
        flow_number(flow.unwrap_or(Flow::Stop))
    }

    /// Nobody wants what it would still yield.
    fn stop(&self, py: Python<'_>) {
        self.end(py, Ended::Failed(Failure::Cancelled(self.call.task_id)));
    }

    /// It has returned; of a generator, it has yielded all.
    fn succeed(&self, value: &Bound<'_, PyAny>) {
        work_for(Some(self.call.key));
        let ended = if self.is_generator {
            Ended::Returned(Vec::new())
        } else {
            store_results(&self.core, &Expected::by_call(&self.call), value)
        };
        self.end(value.py(), ended);
    }

    /// It has raised.
    fn fail(&self, py: Python<'_>, error: Bound<'_, PyAny>) {
        self.end(py, Ended::Raised(PyErr::from_value(error)));
    }
}

impl PyStartedCall {
    fn end(&self, py: Python<'_>, ended: Ended) {
        work_for(Some(self.call.key));
        let ended = match taken(&self.producing).take() {
            None => ended,
            Some((sender, spec)) => {
                let mut producing =
                    Producing { core: &self.core, task: Expected::by_call(&self.call), spec, sender };
                producing.finish(
                    py,
                    ended,
                    |error| is_retried(py, &self.front, error, self.retried()),
                    |error| encode_error(py, &self.front, error, &self.call.name),
                )
            }
        };
        let outcome = match ended {
            Ended::Returned(returned) => Ok(returned),
            Ended::Failed(failure) => Err(failure),
            Ended::Raised(error) => Err(self.failure(py, error)),
        };
        self.core.finish_call(&self.call, outcome);
    }

    /// Which exceptions have it tried again: none if it was tried as often as it may be.
    const fn retried(&self) -> RetryExceptions<&Bytes> {
        if self.call.retriable { self.call.retry_exceptions.as_ref() } else { RetryExceptions::Never }
    }

    fn failure(&self, py: Python<'_>, error: PyErr) -> Failure {
        if self.core.is_cancelled() && is_end_of_cancelled(py, &error) {
            Failure::Cancelled(self.call.task_id)
        } else {
            if is_exit(py, &error) {
                self.core.exit_actor("its code raised SystemExit");
            }
            let error = harmless(py, error, &self.call.name);
            self.core.keep_error_text(self.call.task_id, traceback_of(py, &error));
            raised(py, &self.front, error, &self.call.name, self.retried())
        }
    }
}

/// The error of a task, which must not end whoever gets it.
fn harmless(py: Python<'_>, error: PyErr, task_name: &str) -> PyErr {
    if error.is_instance_of::<PySystemExit>(py) {
        PyRuntimeError::new_err(format!("{task_name} called sys.exit: {error}"))
    } else {
        error
    }
}

/// What a caller expects of a call.
#[derive(Clone, Copy)]
pub(crate) struct Expected<'a> {
    pub(crate) task_id: TaskId,
    pub(crate) caller: WorkerId,
    num_returns: u32,
    pub(crate) name: &'a str,
}

impl<'a> Expected<'a> {
    const fn by(task: &'a Task<'_>) -> Self {
        let header = &task.header;
        let (task_id, num_returns, name) = (header.task_id, header.num_returns, header.name);
        Self { task_id, caller: task.caller, num_returns, name }
    }

    fn by_call(call: &'a StartedCall) -> Self {
        Self { task_id: call.task_id, caller: call.caller, num_returns: call.num_returns, name: &call.name }
    }
}

/// Stores what a call returned, as many objects as its caller expects.
fn store_results(core: &Arc<CoreWorker>, task: &Expected<'_>, value: &Bound<'_, PyAny>) -> Ended {
    let expected = task.num_returns as usize;
    let values = match expected {
        0 => return Ended::Returned(Vec::new()),
        1 => vec![value.clone()],
        _ => match split_results(value, expected, task.name) {
            Ok(values) => values,
            Err(error) => return Ended::Raised(error),
        },
    };
    let mut returned = Vec::with_capacity(expected);
    for (index, value) in values.iter().enumerate() {
        let object_id = ObjectId::for_return(task.task_id, index as u64);
        let ended = match store_result(core, task, object_id, value) {
            Ok(stored) => {
                returned.push(stored);
                continue;
            }
            Err(ended) => ended,
        };
        for (inner, _) in returned.iter().flat_map(|returned: &Returned| &returned.contained) {
            core.drop_reference(*inner);
        }
        return ended;
    }
    Ended::Returned(returned)
}

pub(crate) fn store_result(
    core: &Arc<CoreWorker>,
    task: &Expected<'_>,
    object_id: ObjectId,
    value: &Bound<'_, PyAny>,
) -> Result<Returned, Ended> {
    let py = value.py();
    let encoded = match EncodedValue::new(value).map_err(Ended::Raised)?.into_small(core.inline_limit()) {
        // Short enough that releasing the GIL would cost more.
        Ok((bytes, contained)) if contained.is_empty() => {
            return Ok(Returned { value: Value::Inline(bytes.into()), contained });
        }
        Ok((bytes, contained)) => EncodedValue::from_small(bytes, contained),
        Err(encoded) => encoded,
    };
    let mut signals = Signals::default();
    let caller = task.caller;
    let placed = encoded
        .into_core(py, |encoded| core.place_result(object_id, caller, encoded, &mut || signals.check()));
    placed.map_err(|error| {
        let out_of_disk = matches!(error, RayError::OutOfDisk { .. });
        match error {
            RayError::ObjectStoreFull { .. } | RayError::OutOfDisk { .. } => {
                Ended::Failed(Failure::StoreFull { out_of_disk, message: error.chain() })
            }
            other => Ended::Failed(Failure::System(other.chain())),
        }
    })
}

fn split_results<'py>(
    value: &Bound<'py, PyAny>,
    expected: usize,
    name: &str,
) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let not_iterable = |_| {
        PyTypeError::new_err(format!(
            "{name} has num_returns={expected} and so has to return as many values, but it returned one that \
             cannot be iterated over"
        ))
    };
    let values = value.try_iter().map_err(not_iterable)?.collect::<PyResult<Vec<_>>>()?;
    if values.len() == expected {
        return Ok(values);
    }
    let count = values.len();
    Err(PyValueError::new_err(format!("{name} has num_returns={expected}, but it returned {count} values")))
}
