//! `get`, `put` and `wait` of the public interface: the ordinary call. Whatever is out of the ordinary,
//! such as arguments that do not fit or a process that has not joined a cluster, goes to the Python
//! function of the same name in `ray_rust._private.api`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyTuple};
use ray_core::id::ObjectId;
use ray_worker::CoreWorker;
use rustc_hash::FxHashSet;

use crate::args::store;
use crate::codec::{EncodedValue, decode};
use crate::error::{Signals, raise_failure};
use crate::object_ref::{PyObjectRef, ready_core};
use crate::untracked::untracked;

/// The value of a reference, or the list of values of a list; waits until they are there.
///
/// Raises what the task raised, or GetTimeoutError after `timeout` seconds.
#[pyfunction]
#[pyo3(signature = (object_refs, *, timeout = None, _use_object_store = None),
       text_signature = "(object_refs, *, timeout=None, _use_object_store=False)")]
pub(crate) fn get<'py>(
    object_refs: &Bound<'py, PyAny>,
    timeout: Option<&Bound<'py, PyAny>>,
    _use_object_store: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = object_refs.py();
    if let (Some(core), None) = (ready_core(), timeout) {
        // A reference of a class that inherits from this one may stand for more than the value.
        if let Ok(reference) = object_refs.cast_exact::<PyObjectRef>() {
            let object_id = reference.get().check(&core)?;
            return get_one(py, &core, object_id);
        }
        if let Ok(references) = object_refs.cast_exact::<PyList>()
            && let Some(ids) = ids_of(&core, references)
        {
            return Ok(get_all(py, &core, &ids, None)?.into_any());
        }
    }
    let options = PyDict::new(py);
    options.set_item("timeout", timeout)?;
    if let Some(use_object_store) = _use_object_store {
        options.set_item("_use_object_store", use_object_store)?;
    }
    slow(py, "get")?.call((object_refs,), Some(&options))
}

/// Stores a value; tasks that get the reference, here and elsewhere, read it without a copy if it is
/// large.
#[pyfunction]
#[pyo3(signature = (value, *, _tensor_transport = None))]
pub(crate) fn put<'py>(
    value: &Bound<'py, PyAny>,
    _tensor_transport: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = value.py();
    if let (Some(core), None) = (ready_core(), _tensor_transport)
        && !value.is_instance_of::<PyObjectRef>()
    {
        return Ok(untracked(py, store(py, &core, EncodedValue::new(value)?)?)?.into_any());
    }
    let options = PyDict::new(py);
    options.set_item("_tensor_transport", _tensor_transport)?;
    slow(py, "put")?.call((value,), Some(&options))
}

/// Waits until `num_returns` of the references are ready, at most `timeout` seconds.
///
/// Returns those that are ready, at most `num_returns`, and the others, both in the order given.
/// `timeout_ms` says the time in milliseconds instead.
#[pyfunction]
#[pyo3(signature = (ray_waitables, *, num_returns = None, timeout = None, fetch_local = None, timeout_ms = None),
       text_signature = "(ray_waitables, *, num_returns=1, timeout=None, fetch_local=True, timeout_ms=None)")]
pub(crate) fn wait<'py>(
    ray_waitables: &Bound<'py, PyAny>,
    num_returns: Option<&Bound<'py, PyAny>>,
    timeout: Option<&Bound<'py, PyAny>>,
    fetch_local: Option<&Bound<'py, PyAny>>,
    timeout_ms: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = ray_waitables.py();
    let count = match num_returns {
        None => Some(1),
        Some(count) => count.cast_exact::<PyInt>().ok().and_then(|count| count.extract::<usize>().ok()),
    };
    let fetched = fetch_local.map_or(Some(true), |value| Some(value.cast_exact::<PyBool>().ok()?.is_true()));
    if let (Some(core), None, Some(count), Some(fetched)) = (ready_core(), timeout_ms, count, fetched)
        && let Ok(references) = ray_waitables.cast_exact::<PyList>()
        && (1..=references.len()).contains(&count)
        && let Some(timeout) = plain_timeout(timeout)
        && are_different(&core, references)
    {
        let id = |at| references.get_item(at).ok()?.cast::<PyObjectRef>().ok().map(|item| item.get().id());
        let ready = match core.first_ready((0..references.len()).map_while(id), count, fetched) {
            Some(ready) => ready,
            None => {
                let ids: Vec<ObjectId> = (0..references.len()).map_while(id).collect();
                let mut signals = Signals::default();
                let waited = py.detach(|| core.wait(&ids, count, timeout, fetched, &mut || signals.check()));
                signals.settle(py, waited)?
            }
        };
        return Ok(split(references, &ready)?.into_any());
    }
    let options = PyDict::new(py);
    for (name, value) in [
        ("num_returns", num_returns),
        ("timeout", timeout),
        ("fetch_local", fetch_local),
        ("timeout_ms", timeout_ms),
    ] {
        if let Some(value) = value {
            options.set_item(name, value)?;
        }
    }
    slow(py, "wait")?.call((ray_waitables,), Some(&options))
}

/// The values of these objects, or the exception of the first that has none.
pub(crate) fn get_all<'py>(
    py: Python<'py>,
    core: &Arc<CoreWorker>,
    ids: &[ObjectId],
    timeout: Option<Duration>,
) -> PyResult<Bound<'py, PyList>> {
    let mut signals = Signals::default();
    let result = py.detach(|| core.get(ids, timeout, &mut || signals.check()));
    match signals.settle(py, result)? {
        // What is pinned is released after the last decoding, for that takes the core's lock.
        Ok(values) => {
            let decoded = values.iter().map(|value| decode(py, value)).collect::<PyResult<Vec<_>>>()?;
            PyList::new(py, decoded)
        }
        Err((object_id, failure)) => Err(raise_failure(py, object_id, failure)),
    }
}

/// Those of `references` at these places, which are in order, and the others.
pub(crate) fn split<'py>(references: &Bound<'py, PyList>, ready: &[usize]) -> PyResult<Bound<'py, PyTuple>> {
    let py = references.py();
    let first =
        PyList::new(py, ready.iter().map(|&at| references.get_item(at)).collect::<PyResult<Vec<_>>>()?)?;
    let rest = PyList::empty(py);
    let mut from = 0;
    for &at in ready {
        append_slice(&rest, references, from, at)?;
        from = at + 1;
    }
    append_slice(&rest, references, from, references.len())?;
    (first, rest).into_pyobject(py)
}

/// Adds these items, as one piece.
fn append_slice(to: &Bound<'_, PyList>, from: &Bound<'_, PyList>, low: usize, high: usize) -> PyResult<()> {
    if low < high { to.set_slice(to.len(), to.len(), &from.get_slice(low, high)) } else { Ok(()) }
}

fn get_one<'py>(py: Python<'py>, core: &Arc<CoreWorker>, object_id: ObjectId) -> PyResult<Bound<'py, PyAny>> {
    if let Some(value) = core.value_at_hand(object_id) {
        return decode(py, &value);
    }
    get_all(py, core, &[object_id], None)?.get_item(0)
}

/// The objects of a list of plain references of this membership; None if something else is in it.
fn ids_of(core: &Arc<CoreWorker>, references: &Bound<'_, PyList>) -> Option<Vec<ObjectId>> {
    references.iter().map(|item| item.cast_exact::<PyObjectRef>().ok()?.get().check(core).ok()).collect()
}

/// Whether all these are references of this membership, and no two of them to the same object.
fn are_different(core: &Arc<CoreWorker>, references: &Bound<'_, PyList>) -> bool {
    static LOOKS: AtomicU64 = AtomicU64::new(0);
    let look = LOOKS.fetch_add(1, Ordering::Relaxed) + 1;
    let mut has_copies = false;
    // A loop around `wait` asks this of every reference each time: no look at its id if it can be avoided.
    for item in references {
        let Ok(reference) = item.cast::<PyObjectRef>() else { return false };
        let reference = reference.get();
        if !reference.belongs_to(core) || reference.meet_again(look) {
            return false;
        }
        has_copies |= reference.is_copy();
    }
    if !has_copies {
        return true;
    }
    let ids = ids_of(core, references).unwrap_or_default();
    ids.iter().collect::<FxHashSet<_>>().len() == references.len()
}

/// A timeout that is none, or a number of seconds that can be waited for.
fn plain_timeout(timeout: Option<&Bound<'_, PyAny>>) -> Option<Option<Duration>> {
    let Some(timeout) = timeout else { return Some(None) };
    let is_number = timeout.is_exact_instance_of::<PyFloat>() || timeout.is_exact_instance_of::<PyInt>();
    let seconds = is_number.then(|| timeout.extract::<f64>().ok()).flatten()?;
    Duration::try_from_secs_f64(seconds).ok().map(Some)
}

/// A function of `ray_rust._private.api`.
fn slow<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module = MODULE.get_or_try_init(py, || py.import("ray_rust._private.api").map(Bound::unbind))?;
    module.bind(py).getattr(name)
}
