//! Metrics of programs: what `ray_rust.util.metrics` records.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use ray_core::metric::{MetricDescription, MetricKind, Tags};
use ray_worker::metrics::{self, Recorded};

use crate::object_ref::ready_core;

/// One metric of this process.
#[pyclass(name = "Metric", module = "ray_rust._internal", frozen)]
pub(crate) struct PyMetric {
    description: MetricDescription,
}

#[pymethods]
impl PyMetric {
    #[new]
    fn new(kind: &str, name: String, description: String, boundaries: Vec<f64>) -> PyResult<Self> {
        let kind = match kind {
            "counter" => MetricKind::Counter,
            "gauge" => MetricKind::Gauge,
            "histogram" => MetricKind::Histogram,
            other => return Err(PyValueError::new_err(format!("{other:?} is no kind of metric"))),
        };
        Ok(Self { description: MetricDescription { name, description, kind, boundaries } })
    }

    /// Records a value. Returns false if the process has too many series already.
    fn record(&self, value: f64, tags: &Bound<'_, PyDict>) -> PyResult<bool> {
        let mut pairs: Tags = Vec::with_capacity(tags.len());
        for (name, value) in tags {
            pairs.push((text(&name)?, text(&value)?));
        }
        pairs.sort_unstable();
        let recorded = metrics::record(&self.description, &pairs, value);
        if recorded == Recorded::First
            && let Some(core) = ready_core()
        {
            core.on_metric();
        }
        Ok(recorded != Recorded::Refused)
    }
}

fn text(value: &Bound<'_, PyAny>) -> PyResult<String> {
    Ok(value.cast::<PyString>()?.to_str()?.to_owned())
}
