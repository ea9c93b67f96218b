//! Runs generators: what they yield goes to the caller item by item.

use std::sync::Arc;
use std::time::Instant;

use pyo3::exceptions::{PyStopIteration, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use ray_core::id::NodeId;
use ray_core::serialize::Plain;
use ray_worker::CoreWorker;
use ray_worker::core::{Flow, ItemSender};
use ray_worker::peer_message::{GeneratorSpec, Returned};
use ray_worker::reference_counter::Owner;
use ray_worker::value::{Failure, Value};

use crate::error::{Signals, is_exit};
use crate::executor::{Ended, Expected, store_result};
use crate::object_ref::PyObjectRef;

/// What a generator gets for a `yield`: `stats = yield value`.
#[pyclass(name = "StreamingGeneratorStats", module = "ray_rust._internal", frozen)]
pub(crate) struct PyStreamingGeneratorStats {
    /// How long it took to store and send what was yielded, in seconds.
    #[pyo3(get)]
    object_creation_dur_s: f64,
}

#[pymethods]
impl PyStreamingGeneratorStats {
    #[new]
    const fn new(object_creation_dur_s: f64) -> Self {
        Self { object_creation_dur_s }
    }

    fn __repr__(&self) -> String {
        format!("StreamingGeneratorStats(object_creation_dur_s={:?})", self.object_creation_dur_s)
    }
}

/// What a generator task's code returned.
enum Iterated<'py> {
    /// A generator, which gets to know what became of each item.
    Generator(Bound<'py, PyAny>),
    /// Any other iterator.
    Iterator(Bound<'py, PyAny>),
}

impl<'py> Iterated<'py> {
    fn new(value: Bound<'py, PyAny>, task_name: &str) -> PyResult<Self> {
        if value.hasattr(intern!(value.py(), "send"))? {
            return Ok(Self::Generator(value));
        }
        if value.hasattr(intern!(value.py(), "__next__"))? {
            return Ok(Self::Iterator(value));
        }
        let kind = value.get_type().name()?;
        Err(PyValueError::new_err(format!(
            "{task_name} was called as a generator (num_returns is \"streaming\" or \"dynamic\"), and so has to \
             yield or return an iterator, but it returned a value of type {kind}"
        )))
    }

    /// The next value; none at the end.
    fn next(
        &self,
        stats: Option<Bound<'py, PyStreamingGeneratorStats>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let next = match self {
            Self::Generator(generator) => {
                let stats = if takes_values(generator)? { stats } else { None };
                generator.call_method1(intern!(generator.py(), "send"), (stats,))
            }
            Self::Iterator(iterator) => iterator.call_method0(intern!(iterator.py(), "__next__")),
        };
        match next {
            Ok(value) => Ok(Some(value)),
            Err(error) => match self.py() {
                py if error.is_instance_of::<PyStopIteration>(py) => Ok(None),
                _ => Err(error),
            },
        }
    }

    fn py(&self) -> Python<'py> {
        match self {
            Self::Generator(iterated) | Self::Iterator(iterated) => iterated.py(),
        }
    }
}

/// Whether a value can be sent into a generator: while it is amid a `yield from` of what is no generator, such
/// as a range, only `None` can.
fn takes_values(generator: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = generator.py();
    let mut innermost = generator.clone();
    loop {
        // Objects that only look like generators need not have it.
        let Some(inner) = innermost.getattr_opt(intern!(py, "gi_yieldfrom"))? else { return Ok(true) };
        if inner.is_none() {
            return Ok(true);
        }
        if !inner.hasattr(intern!(py, "send"))? {
            return Ok(false);
        }
        innermost = inner;
    }
}

/// Sends what the code of a generator task yields.
pub(crate) struct Producing<'a> {
    pub(crate) core: &'a Arc<CoreWorker>,
    pub(crate) task: Expected<'a>,
    pub(crate) spec: GeneratorSpec,
    pub(crate) sender: ItemSender,
}

impl Producing<'_> {
    /// Iterates over what the code returned to its end.
    pub(crate) fn run(&mut self, iterated: Bound<'_, PyAny>) -> Ended {
        match self.iterate(iterated) {
            Ok(()) => Ended::Returned(Vec::new()),
            Err(ended) => ended,
        }
    }

    fn iterate(&mut self, iterated: Bound<'_, PyAny>) -> Result<(), Ended> {
        let py = iterated.py();
        let iterated = Iterated::new(iterated, self.task.name).map_err(Ended::Raised)?;
        let mut stats = None;
        while let Some(value) = iterated.next(stats).map_err(Ended::Raised)? {
            let (flow, sent) = self.send(&value)?;
            let flow = if flow == Flow::Wait { self.wait(py)? } else { flow };
            if flow == Flow::Stop {
                // What it holds is let go as if its own process had dropped it.
                drop(iterated);
                return Err(Ended::Failed(Failure::Cancelled(self.task.task_id)));
            }
            stats = Some(Bound::new(py, sent).map_err(Ended::Raised)?);
        }
        Ok(())
    }

    /// Stores and sends what was yielded.
    pub(crate) fn send(
        &mut self,
        value: &Bound<'_, PyAny>,
    ) -> Result<(Flow, PyStreamingGeneratorStats), Ended> {
        let start = Instant::now();
        let mut flow = Flow::Go;
        if self.spec.objects_per_yield == 1 {
            flow = self.send_one(value)?;
        } else {
            for value in self.split(value).map_err(Ended::Raised)? {
                flow = self.send_one(&value)?;
            }
        }
        Ok((flow, PyStreamingGeneratorStats::new(start.elapsed().as_secs_f64())))
    }

    fn send_one(&mut self, value: &Bound<'_, PyAny>) -> Result<Flow, Ended> {
        let item = store_result(self.core, &self.task, self.sender.next_id(), value)?;
        let has_references = !item.contained.is_empty();
        let flow = self.sender.send(item).map_err(Ended::Failed)?;
        if has_references && self.sender.is_held() {
            let mut signals = Signals::default();
            let py = value.py();
            let waited = py.detach(|| self.sender.wait_sent(&mut || signals.check()));
            signals.settle(py, waited).map_err(Ended::Raised)?;
            return Ok(self.sender.flow());
        }
        Ok(flow)
    }

    /// The objects of one yield that makes several.
    fn split<'py>(&self, value: &Bound<'py, PyAny>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let expected = self.spec.objects_per_yield as usize;
        let name = self.task.name;
        let not_iterable = |_| {
            PyValueError::new_err(format!(
                "{name} has _num_objects_per_yield={expected}, but it yielded a value that cannot be iterated over"
            ))
        };
        let values = value.try_iter().map_err(not_iterable)?.collect::<PyResult<Vec<_>>>()?;
        if values.len() == expected {
            return Ok(values);
        }
        let count = values.len();
        Err(PyValueError::new_err(format!(
            "{name} yielded {count} objects, but it has _num_objects_per_yield={expected}"
        )))
    }

    /// Waits until the generator may go on.
    pub(crate) fn wait(&self, py: Python<'_>) -> Result<Flow, Ended> {
        let mut signals = Signals::default();
        let waited = py.detach(|| self.sender.wait(&mut || signals.check()));
        signals.settle(py, waited).map_err(Ended::Raised)
    }

    /// What the caller gets beside the items. An exception that is not retried is the last item of a dynamic
    /// generator, which its caller reads through the return value; of all others the caller makes the last item.
    pub(crate) fn finish(
        &mut self,
        py: Python<'_>,
        ended: Ended,
        is_retried: impl FnOnce(&PyErr) -> bool,
        encode: impl FnOnce(PyErr) -> Failure,
    ) -> Ended {
        let ended = match ended {
            Ended::Raised(error)
                if self.spec.is_dynamic
                    && !self.core.is_cancelled()
                    && !is_exit(py, &error)
                    && !is_retried(&error) =>
            {
                let item = Returned { value: encode(error).into(), contained: Vec::new() };
                match self.sender.send(item) {
                    Ok(_) => Ended::Returned(Vec::new()),
                    Err(failure) => Ended::Failed(failure),
                }
            }
            other => other,
        };
        if !matches!(ended, Ended::Returned(_)) {
            return ended;
        }
        if self.spec.is_dynamic {
            return self.all_items(py).map_or_else(|ended| ended, |value| Ended::Returned(vec![value]));
        }
        let mut none = Vec::new();
        Plain::None.write(&mut none);
        Ended::Returned(vec![Returned { value: Value::Inline(none.into()), contained: Vec::new() }])
    }

    /// A `DynamicObjectRefGenerator`.
    fn all_items(&self, py: Python<'_>) -> Result<Returned, Ended> {
        // The caller owns them, and does not look at its own node in them.
        let owner = Owner { worker_id: self.task.caller, node_id: NodeId::nil() };
        let references = self.sender.ids().map(|object_id| PyObjectRef::from_elsewhere(object_id, owner));
        let made = references.collect::<PyResult<Vec<_>>>().and_then(|references| {
            let module = py.import(intern!(py, "ray_rust._private.object_ref_generator"))?;
            module.getattr(intern!(py, "DynamicObjectRefGenerator"))?.call1((PyTuple::new(py, references)?,))
        });
        let object_id = ray_core::id::ObjectId::for_return(self.task.task_id, 0);
        made.map_err(Ended::Raised).and_then(|value| store_result(self.core, &self.task, object_id, &value))
    }
}
