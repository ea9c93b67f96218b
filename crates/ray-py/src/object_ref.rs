//! References to objects, counted by the life of their Python objects.

use std::cell::RefCell;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyType};
use ray_core::id::{JobId, NodeId, ObjectId, TaskId, WorkerId};
use ray_worker::CoreWorker;
use ray_worker::core::{Returns, Wants};
use ray_worker::reference_counter::Owner;
use ray_worker::value::Contained;

use crate::awaiting::{
    PyCancel, await_value, forget_inboxes, future_in_loop, on_completed, on_ready, settle_later,
};
use crate::current_task::follow_context;
use crate::error::ray_exception;
use crate::id::{PyJobId, PyTaskId, refuse};
use crate::untracked::untracked;

/// The membership of this process: what a reference that is read belongs to.
static CURRENT: Mutex<Option<Arc<CoreWorker>>> = Mutex::new(None);

thread_local! {
    /// References met by each encoding that is under way on this thread.
    static MET: RefCell<Vec<Vec<Contained>>> = const { RefCell::new(Vec::new()) };
}

/// What makes an object again: a function and its arguments.
type Reduced<'py> = (Bound<'py, PyAny>, (Bound<'py, PyBytes>, Bound<'py, PyBytes>));

/// Sets or clears the membership of this process.
pub(crate) fn set_current(core: Option<Arc<CoreWorker>>) {
    *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = core;
}

fn current() -> PyResult<Arc<CoreWorker>> {
    let current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    current.clone().ok_or_else(|| {
        PyRuntimeError::new_err("an ObjectRef can be read only in a process that has joined a cluster")
    })
}

/// The membership of this process, if it has one.
pub(crate) fn ready_core() -> Option<Arc<CoreWorker>> {
    follow_context();
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// In a forked process: the membership was the parent's. It is not dropped, for that would speak to
/// the node on a socket that belongs to the parent.
#[pyfunction]
pub(crate) fn forget_membership() {
    // Another thread of the parent may have held the lock; then the membership stays, unused.
    if let Ok(mut current) = CURRENT.try_lock() {
        std::mem::forget(current.take());
    }
    forget_inboxes();
}

/// The references of a call that made these objects: None, one, or a list of them.
pub(crate) fn adopt_all<'py>(
    py: Python<'py>,
    core: &Arc<CoreWorker>,
    returns: Returns,
) -> PyResult<Bound<'py, PyAny>> {
    let adopt = |object_id| untracked(py, PyObjectRef::adopt(core, object_id));
    match returns.count() {
        0 => Ok(py.None().into_bound(py)),
        1 => Ok(adopt(returns.get(0))?.into_any()),
        _ => {
            let all = returns.iter().map(adopt).collect::<PyResult<Vec<_>>>()?;
            Ok(PyList::new(py, all)?.into_any())
        }
    }
}

/// Runs `encode` and returns the references that it met.
pub(crate) fn collect<T>(encode: impl FnOnce() -> PyResult<T>) -> PyResult<(T, Vec<Contained>)> {
    MET.with_borrow_mut(|met| met.push(Vec::new()));
    let result = encode();
    let met = MET.with_borrow_mut(Vec::pop).expect("pushed above");
    result.map(|value| (value, met))
}

/// Notes a reference in the encoding that is under way. Returns whether one is.
pub(crate) fn meet(contained: Contained) -> bool {
    MET.with_borrow_mut(|met| met.last_mut().map(|met| met.push(contained)).is_some())
}

/// A reference to a value that exists or will exist somewhere in the cluster.
#[pyclass(name = "ObjectRef", module = "ray_rust._internal", frozen, subclass, weakref)]
pub(crate) struct PyObjectRef {
    /// None for a reference that counts nowhere: nil, or made of bytes that name nothing known here.
    core: Option<Arc<CoreWorker>>,
    object_id: ObjectId,
    /// It was read from bytes: others may refer to the same object.
    is_copy: bool,
    /// The last look at a list of references that met this one.
    met_at: AtomicU64,
}

impl PyObjectRef {
    fn new(core: Option<Arc<CoreWorker>>, object_id: ObjectId, is_copy: bool) -> Self {
        Self { core, object_id, is_copy, met_at: AtomicU64::new(0) }
    }

    /// Takes over a handle that the core has counted already, the first one of a new object.
    pub(crate) fn adopt(core: &Arc<CoreWorker>, object_id: ObjectId) -> Self {
        Self::new(Some(Arc::clone(core)), object_id, false)
    }

    /// As [`PyObjectRef::adopt`]; with `is_copy`, others may refer to the same object.
    pub(crate) fn adopt_as(core: &Arc<CoreWorker>, object_id: ObjectId, is_copy: bool) -> Self {
        Self::new(Some(Arc::clone(core)), object_id, is_copy)
    }

    /// The reference to nothing.
    pub(crate) fn nil_reference() -> Self {
        Self::new(None, ObjectId::nil(), true)
    }

    /// Whether others may refer to the same object.
    pub(crate) const fn is_copy(&self) -> bool {
        self.is_copy
    }

    /// Notes that the look of this number has met this reference. Returns whether it had before.
    pub(crate) fn meet_again(&self, look: u64) -> bool {
        // Relaxed: nothing else is published by it, and each look has a number of its own.
        self.met_at.swap(look, Ordering::Relaxed) == look
    }

    /// One more reference to an object that this process refers to already; to another one, a reference
    /// that is only its name.
    fn named(object_id: ObjectId) -> Self {
        let core = current().ok().filter(|core| core.copy_reference(object_id));
        Self::new(core, object_id, true)
    }

    fn describe(&self) -> String {
        if self.is_nil() {
            return "the nil ObjectRef".to_owned();
        }
        format!("{}, which is not known in this process,", self.__repr__())
    }

    /// A reference that came from elsewhere.
    pub(crate) fn from_elsewhere(object_id: ObjectId, owner: Owner) -> PyResult<Self> {
        let core = current()?;
        core.add_reference(object_id, owner);
        Ok(Self::new(Some(core), object_id, true))
    }

    pub(crate) const fn id(&self) -> ObjectId {
        self.object_id
    }

    /// The reference and who owns what it refers to.
    pub(crate) fn contained(&self) -> PyResult<Contained> {
        match &self.core {
            Some(core) => Ok((self.object_id, core.owner_of(self.object_id))),
            None => {
                Err(PyTypeError::new_err(format!("{} refers to nothing and cannot be sent", self.describe())))
            }
        }
    }

    /// Whether it is of this membership.
    pub(crate) fn belongs_to(&self, core: &Arc<CoreWorker>) -> bool {
        self.core.as_ref().is_some_and(|own| Arc::ptr_eq(own, core))
    }

    /// The membership to which it belongs, which has to be that of this process still.
    fn own_core(&self) -> PyResult<Arc<CoreWorker>> {
        let core = current()?;
        self.check(&core)?;
        Ok(core)
    }

    /// Refuses a reference that is not of this membership: one kept over `shutdown`.
    pub(crate) fn check(&self, core: &Arc<CoreWorker>) -> PyResult<ObjectId> {
        match &self.core {
            Some(own) if Arc::ptr_eq(own, core) => Ok(self.object_id),
            Some(_) => {
                let text = format!("{} belongs to a cluster that this process has left", self.__repr__());
                Err(Python::attach(|py| ray_exception(py, "RaySystemError", text)))
            }
            None => Err(PyValueError::new_err(format!("{} has no value", self.describe()))),
        }
    }
}

#[pymethods]
impl PyObjectRef {
    #[new]
    fn from_name(id: &[u8]) -> PyResult<Self> {
        ObjectId::from_binary(id).map(Self::named).map_err(refuse)
    }

    #[classmethod]
    fn from_binary(_class: &Bound<'_, PyType>, id_bytes: &[u8]) -> PyResult<Self> {
        Self::from_name(id_bytes)
    }

    #[classmethod]
    fn from_hex(_class: &Bound<'_, PyType>, hex_id: &str) -> PyResult<Self> {
        ObjectId::from_hex(hex_id).map(Self::named).map_err(refuse)
    }

    #[classmethod]
    fn from_random(_class: &Bound<'_, PyType>) -> Self {
        Self::new(None, ObjectId::random(), true)
    }

    #[classmethod]
    const fn size(_class: &Bound<'_, PyType>) -> usize {
        ObjectId::LEN
    }

    #[classmethod]
    fn nil(_class: &Bound<'_, PyType>) -> Self {
        Self::new(None, ObjectId::nil(), true)
    }

    #[classmethod]
    fn __class_getitem__(class: &Bound<'_, PyType>, _item: &Bound<'_, PyAny>) -> Py<PyType> {
        class.clone().unbind()
    }

    fn binary<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.object_id.as_bytes())
    }

    fn hex(&self) -> String {
        self.object_id.hex()
    }

    fn is_nil(&self) -> bool {
        self.object_id.is_nil()
    }

    fn task_id(&self) -> PyTaskId {
        PyTaskId(if self.is_nil() { TaskId::nil() } else { self.object_id.task_id() })
    }

    fn job_id(&self) -> PyJobId {
        PyJobId(self.core.as_ref().map_or(JobId::nil(), |core| core.job_id()))
    }

    /// Where it was made; not recorded.
    #[staticmethod]
    const fn call_site() -> &'static str {
        ""
    }

    fn __await__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        await_value(&slf.get().own_core()?, slf)
    }

    /// The value as a future of `concurrent.futures`.
    fn future<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("ray_rust._private.futures")?.call_method1("future_of", (slf,))
    }

    /// The value as a future of the running event loop.
    #[pyo3(signature = (_internal = false))]
    fn as_future<'py>(slf: &Bound<'py, Self>, _internal: bool) -> PyResult<Bound<'py, PyAny>> {
        future_in_loop(&slf.get().own_core()?, slf, Wants::Value)
    }

    /// A future of the running event loop that is done when there is a value, or none will be.
    fn _readiness<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        future_in_loop(&slf.get().own_core()?, slf, Wants::Readiness)
    }

    /// Settles a future of `concurrent.futures` with the value.
    fn _settle(slf: &Bound<'_, Self>, future: Py<PyAny>) -> PyResult<()> {
        settle_later(&slf.get().own_core()?, slf, future)
    }

    /// Waits until there is a value, without reading it; returns the reference.
    fn _ready<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("ray_rust._private.futures")?.call_method1("ready", (slf,))
    }

    /// Calls `py_callback` with the value, or the exception that stands for it.
    fn _on_completed<'py>(slf: &Bound<'py, Self>, py_callback: Py<PyAny>) -> PyResult<Bound<'py, Self>> {
        on_completed(&slf.get().own_core()?, slf, py_callback)?;
        Ok(slf.clone())
    }

    /// Calls `py_callback` with None when there is a value, without reading it, or with the exception if
    /// it is lost. Returns what takes the callback back.
    fn _on_ready(slf: &Bound<'_, Self>, py_callback: Py<PyAny>) -> PyResult<PyCancel> {
        on_ready(&slf.get().own_core()?, slf, py_callback)
    }

    /// Asked of references of classes that inherit from this one before they become an argument.
    const fn _as_argument(&self) {}

    fn __repr__(&self) -> String {
        format!("ObjectRef({})", self.object_id)
    }

    fn __hash__(&self) -> u64 {
        let mut hasher = rustc_hash::FxHasher::default();
        self.object_id.hash(&mut hasher);
        hasher.finish()
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Self>().is_ok_and(|other| other.get().object_id == self.object_id)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Reduced<'py>> {
        let py = slf.py();
        let (object_id, owner) = slf.get().contained()?;
        if !meet((object_id, owner)) {
            // Out of band. Nobody knows who will read it and when, so the object stays.
            py.import("ray_rust._private.serialization")?.call_method1("check_out_of_band", (slf,))?;
            if let Some(core) = &slf.get().core {
                core.keep_for_good(object_id);
            }
        }
        let restore = py.import("ray_rust._internal")?.getattr("_restore_ref")?;
        let owner_bytes = [owner.worker_id.as_bytes().as_slice(), owner.node_id.as_bytes()].concat();
        Ok((restore, (PyBytes::new(py, object_id.as_bytes()), PyBytes::new(py, &owner_bytes))))
    }
}

impl Drop for PyObjectRef {
    fn drop(&mut self) {
        if let Some(core) = &self.core {
            core.drop_reference(self.object_id);
        }
    }
}

/// Reads a pickled reference.
#[pyfunction(name = "_restore_ref")]
pub(crate) fn restore_ref<'py>(
    py: Python<'py>,
    object_id: &[u8],
    owner: &[u8],
) -> PyResult<Bound<'py, PyObjectRef>> {
    let damaged = |error: ray_core::id::IdError| PyTypeError::new_err(error.to_string());
    let object_id = ObjectId::from_binary(object_id).map_err(damaged)?;
    let (worker_id, node_id) = owner.split_at_checked(WorkerId::LEN).unwrap_or((owner, &[]));
    let worker_id = WorkerId::from_binary(worker_id).map_err(damaged)?;
    let node_id = NodeId::from_binary(node_id).map_err(damaged)?;
    untracked(py, PyObjectRef::from_elsewhere(object_id, Owner { worker_id, node_id })?)
}
