//! What a call of a generator returns: the references to what it yields, as they come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pyo3::exceptions::{PyNotImplementedError, PyStopIteration, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyType};
use ray_core::id::{ObjectId, TaskId};
use ray_worker::CoreWorker;
use ray_worker::core::{NextItem, Returns};
use ray_worker::peer_message::GeneratorSpec;

use crate::current_task::follow_context;
use crate::error::{Signals, raise};
use crate::object_ref::{PyObjectRef, adopt_all};
use crate::untracked::untracked;

/// The items of a generator task, each a reference; iterated over with `for` or `async for`.
#[pyclass(name = "ObjectRefGenerator", module = "ray_rust._internal", frozen, weakref)]
pub(crate) struct PyObjectRefGenerator {
    core: Arc<CoreWorker>,
    task_id: TaskId,
    /// The object that has a value, or fails, when the task ends.
    generator_ref: Py<PyObjectRef>,
    /// The failure of the task was given out, as the last reference.
    failure_read: AtomicBool,
    /// `generator_ref` was given out: it may outlive this.
    is_shared: AtomicBool,
}

/// The references of a call that was submitted: those of [`adopt_all`], or a generator of them.
pub(crate) fn adopt_results<'py>(
    py: Python<'py>,
    core: &Arc<CoreWorker>,
    returns: Returns,
    generator: Option<&GeneratorSpec>,
) -> PyResult<Bound<'py, PyAny>> {
    match generator {
        Some(generator) if !generator.is_dynamic => {
            let object_id = returns.get(0);
            let generator_ref = Py::new(py, PyObjectRef::adopt(core, object_id))?;
            let (core, task_id) = (Arc::clone(core), object_id.task_id());
            let (failure_read, is_shared) = (AtomicBool::new(false), AtomicBool::new(false));
            let generator = PyObjectRefGenerator { core, task_id, generator_ref, failure_read, is_shared };
            Ok(Bound::new(py, generator)?.into_any())
        }
        Some(_) | None => adopt_all(py, core, returns),
    }
}

impl PyObjectRefGenerator {
    /// The next reference. `None` if nothing came in time; StopIteration after the last one.
    fn next(&self, py: Python<'_>, timeout: Option<Duration>) -> PyResult<Option<Py<PyAny>>> {
        let mut next = self.core.try_next_item(self.task_id).map_err(|error| raise(py, error))?;
        if next == NextItem::NotYet && timeout != Some(Duration::ZERO) {
            follow_context();
            let mut signals = Signals::default();
            let waited = py.detach(|| self.core.next_item(self.task_id, timeout, &mut || signals.check()));
            next = signals.settle(py, waited)?;
        }
        match next {
            NextItem::Item { object_id, is_copy } => {
                let reference = PyObjectRef::adopt_as(&self.core, object_id, is_copy);
                Ok(Some(untracked(py, reference)?.into_any().unbind()))
            }
            NextItem::NotYet => Ok(None),
            NextItem::End if self.has_unread_failure(py) => {
                self.failure_read.store(true, Ordering::Relaxed);
                Ok(Some(self.completed(py).into_any()))
            }
            NextItem::End => Err(PyStopIteration::new_err(())),
        }
    }

    /// Whether the task itself failed, and its failure was not given out yet.
    fn has_unread_failure(&self, py: Python<'_>) -> bool {
        let object_id = self.generator_ref.bind(py).get().id();
        !self.failure_read.load(Ordering::Relaxed) && self.core.has_failed(object_id)
    }

    /// The object that is or will be the next item, with one handle, and whether it is there.
    pub(crate) fn peek(&self, core: &Arc<CoreWorker>) -> PyResult<ObjectId> {
        self.generator_ref.get().check(core)?;
        let places = core.peek_items(self.task_id, 1);
        let places = places.map_err(|error| Python::attach(|py| raise(py, error)))?;
        Ok(places[0].object_id)
    }
}

#[pymethods]
impl PyObjectRefGenerator {
    #[classmethod]
    fn __class_getitem__(class: &Bound<'_, PyType>, _item: &Bound<'_, PyAny>) -> Py<PyType> {
        class.clone().unbind()
    }

    const fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.next(py, None)
    }

    const fn __aiter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __anext__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        next_async(slf, None)
    }

    #[pyo3(signature = (timeout_s = None))]
    fn _next_async<'py>(
        slf: &Bound<'py, Self>,
        timeout_s: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        next_async(slf, timeout_s)
    }

    #[pyo3(signature = (timeout_s = None))]
    fn _next_sync(&self, py: Python<'_>, timeout_s: Option<f64>) -> PyResult<Py<PyAny>> {
        let timeout = match timeout_s {
            // -1 is Ray's other word for None.
            None | Some(-1.0) => None,
            Some(seconds) if seconds.is_nan() || seconds < 0.0 => {
                let text = format!("timeout_s has to be 0 or more seconds, is {seconds}");
                return Err(PyValueError::new_err(text));
            }
            Some(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        };
        match self.next(py, timeout)? {
            Some(reference) => Ok(reference),
            None => Ok(Py::new(py, PyObjectRef::nil_reference())?.into_any()),
        }
    }

    fn completed(&self, py: Python<'_>) -> Py<PyObjectRef> {
        self.is_shared.store(true, Ordering::Relaxed);
        self.generator_ref.clone_ref(py)
    }

    #[getter]
    fn _generator_ref(&self, py: Python<'_>) -> Py<PyObjectRef> {
        self.completed(py)
    }

    fn is_finished(&self, py: Python<'_>) -> bool {
        self.core.is_stream_exhausted(self.task_id) && !self.has_unread_failure(py)
    }

    fn next_ready(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(!self.is_finished(py) && self.peek_refs(py, 1)?[0].1)
    }

    fn _stream_exhausted(&self) -> bool {
        self.core.is_stream_exhausted(self.task_id)
    }

    fn _get_next_object_id_binary<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let (reference, _) = &self.peek_refs(py, 1)?[0];
        Ok(PyBytes::new(py, reference.id().as_bytes()))
    }

    fn _get_next_ref_n(&self, py: Python<'_>, num_refs: i64) -> PyResult<Vec<PyObjectRef>> {
        let places = self.peek_refs(py, positive(num_refs)?)?;
        Ok(places.into_iter().map(|(reference, _)| reference).collect())
    }

    fn _consume_next_ref_n(&self, py: Python<'_>, num_refs: i64) -> PyResult<()> {
        let consumed = self.core.consume_items(self.task_id, positive(num_refs)?);
        if consumed.map_err(|error| raise(py, error))? {
            return Ok(());
        }
        Err(PyValueError::new_err(format!(
            "the next {num_refs} item(s) are not all there yet: wait for the last of _get_next_ref_n({num_refs}) first"
        )))
    }

    /// The references of the next places, and whether something is there.
    fn _peek(&self, py: Python<'_>, num_refs: i64) -> PyResult<Vec<(PyObjectRef, bool)>> {
        self.peek_refs(py, positive(num_refs)?)
    }

    fn send(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        Err(not_supported("send", Some(value)))
    }

    fn throw(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        Err(not_supported("throw", Some(value)))
    }

    fn close(&self) -> PyResult<()> {
        Err(not_supported("close", None))
    }

    fn asend(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        Err(not_supported("asend", Some(value)))
    }

    fn athrow(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        Err(not_supported("athrow", Some(value)))
    }

    fn aclose(&self) -> PyResult<()> {
        Err(not_supported("aclose", None))
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err(
            "an ObjectRefGenerator can be read only in the process that made the call: it cannot be passed to \
             a task, returned, put or pickled. Pass the references that it gives",
        ))
    }

    fn __repr__(&self) -> String {
        format!("ObjectRefGenerator({})", self.task_id)
    }
}

impl PyObjectRefGenerator {
    fn peek_refs(&self, py: Python<'_>, count: u64) -> PyResult<Vec<(PyObjectRef, bool)>> {
        let places = self.core.peek_items(self.task_id, count).map_err(|error| raise(py, error))?;
        let reference = |object_id| PyObjectRef::adopt_as(&self.core, object_id, true);
        Ok(places.into_iter().map(|place| (reference(place.object_id), place.is_ready)).collect())
    }
}

impl Drop for PyObjectRefGenerator {
    fn drop(&mut self) {
        self.core.drop_stream(self.task_id, !self.is_shared.load(Ordering::Relaxed));
    }
}

fn positive(count: i64) -> PyResult<u64> {
    match u64::try_from(count) {
        Ok(count) if count > 0 => Ok(count),
        Ok(_) | Err(_) => Err(PyValueError::new_err(format!("num_refs has to be 1 or more, is {count}"))),
    }
}

fn not_supported(method: &str, _value: Option<&Bound<'_, PyAny>>) -> PyErr {
    PyNotImplementedError::new_err(format!(
        "ObjectRefGenerator.{method}() is not supported: nothing can be sent into a generator of another process"
    ))
}

/// A coroutine that reads the next reference.
fn next_async<'py>(
    generator: &Bound<'py, PyObjectRefGenerator>,
    timeout_s: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = generator.py();
    let module = py.import(intern!(py, "ray_rust._private.object_ref_generator"))?;
    module.getattr(intern!(py, "next_async"))?.call1((generator, timeout_s))
}
