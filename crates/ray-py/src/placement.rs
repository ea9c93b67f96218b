//! Where tasks and actors may run, and placement groups.

use std::sync::Arc;

use bytes::Bytes;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use ray_core::constraint::{Constraint, LabelMatch, LabelSelector, Strategy, WhenBusy};
use ray_core::error::RayError;
use ray_core::id::NodeId;
use ray_core::pb::common::placement_group_info::State;
use ray_core::pb::common::placement_group_spec::Strategy as GroupStrategy;
use ray_core::pb::common::{Bundle, PlacementGroupInfo, PlacementGroupSpec};
use ray_core::resource::Resources;
use ray_worker::CoreWorker;
use rustc_hash::FxHashMap;

use crate::codec::EncodedValue;
use crate::core_worker::{hex, patience, units};
use crate::error::{Signals, raise};
use crate::id::PyPlacementGroupId;
use crate::object_ref::PyObjectRef;

/// A label selector as Python writes it: keys with the operator and its values.
type PySelector = Vec<(String, String, Vec<String>)>;

/// Where a task or actor may run.
#[pyclass(name = "SchedulingConstraint", module = "ray_rust._internal", frozen)]
#[derive(Debug, Clone)]
pub(crate) struct PySchedulingConstraint(pub(crate) Constraint);

#[pymethods]
impl PySchedulingConstraint {
    /// Anywhere.
    #[staticmethod]
    fn default() -> Self {
        Self(Constraint::default())
    }

    /// On the node that is used least.
    #[staticmethod]
    fn spread() -> Self {
        Self(Strategy::Spread.into())
    }

    /// On one node.
    #[staticmethod]
    fn on_node(node_id: &str, soft: bool, when_busy: &str) -> PyResult<Self> {
        let node_id = NodeId::from_hex(node_id).map_err(|error| PyValueError::new_err(error.to_string()))?;
        let when_busy = match when_busy {
            "wait" => WhenBusy::Wait,
            "spill" => WhenBusy::Spill,
            "fail" => WhenBusy::Fail,
            other => return Err(PyValueError::new_err(format!("{other:?} is not wait, spill or fail"))),
        };
        Ok(Self(Strategy::NodeAffinity { node_id, soft, when_busy }.into()))
    }

    /// In a placement group; in any of its bundles without an index.
    #[staticmethod]
    fn in_group(group_id: &PyPlacementGroupId, index: Option<u32>, capture: bool) -> Self {
        Self(Strategy::Bundle { group_id: group_id.0, index, capture }.into())
    }

    /// This, on nodes whose labels are as one of these wants them; the first that some node fulfils counts.
    fn with_selectors(&self, selectors: Vec<PySelector>) -> PyResult<Self> {
        let selectors = selectors.into_iter().map(selector).collect::<PyResult<_>>()?;
        Ok(Self(Constraint { selectors, ..self.0.clone() }))
    }

    fn __repr__(&self) -> String {
        format!("{:?}", self.0)
    }
}

fn selector(expressions: PySelector) -> PyResult<LabelSelector> {
    let expressions = expressions.into_iter().map(|(key, operator, values)| {
        let wanted = match operator.as_str() {
            "in" => LabelMatch::In(values),
            "not in" => LabelMatch::NotIn(values),
            "exists" => LabelMatch::Exists,
            "does not exist" => LabelMatch::DoesNotExist,
            other => return Err(PyValueError::new_err(format!("{other:?} is no operator of labels"))),
        };
        Ok((key, wanted))
    });
    expressions.collect::<PyResult<_>>().map(LabelSelector)
}

/// The placement groups of a cluster, by way of this process's membership.
#[pyclass(name = "PlacementGroups", module = "ray_rust._internal", frozen)]
pub(crate) struct PyPlacementGroups {
    core: Arc<CoreWorker>,
}

impl PyPlacementGroups {
    pub(crate) fn new(core: &Arc<CoreWorker>) -> Self {
        Self { core: Arc::clone(core) }
    }
}

#[pymethods]
impl PyPlacementGroups {
    #[expect(clippy::too_many_arguments, reason = "arguments of one Python method")]
    fn create(
        &self,
        py: Python<'_>,
        bundles: Vec<(FxHashMap<String, f64>, PySelector)>,
        strategy: &str,
        name: String,
        namespace: String,
        detached: bool,
        soft_target_node_id: Option<&str>,
    ) -> PyResult<PyPlacementGroupId> {
        let strategy = match strategy {
            "PACK" => GroupStrategy::Pack,
            "SPREAD" => GroupStrategy::Spread,
            "STRICT_PACK" => GroupStrategy::StrictPack,
            "STRICT_SPREAD" => GroupStrategy::StrictSpread,
            other => return Err(PyValueError::new_err(format!("{other:?} is no strategy"))),
        };
        let invalid = |error: String| PyValueError::new_err(error);
        let bundles = bundles.into_iter().map(|(resources, wanted)| {
            let resources = Resources::from_units(resources).map_err(|error| invalid(error.to_string()))?;
            let selector = selector(wanted)?;
            Ok(Bundle { resources: Some((&resources).into()), selector: Some((&selector).into()) })
        });
        let soft_target = soft_target_node_id.map(NodeId::from_hex).transpose();
        let soft_target = soft_target.map_err(|error| invalid(error.to_string()))?;
        let spec = PlacementGroupSpec {
            name,
            namespace,
            strategy: strategy.into(),
            bundles: bundles.collect::<PyResult<_>>()?,
            detached,
            soft_target_node_id: soft_target.map(Into::into).unwrap_or_default(),
            // The core fills in what identifies it.
            placement_group_id: Vec::new(),
            job_id: Vec::new(),
        };
        let mut signals = Signals::default();
        let result = py.detach(|| self.core.create_group(spec, &mut || signals.check()));
        signals.settle(py, result).map(PyPlacementGroupId)
    }

    fn wait(&self, py: Python<'_>, group_id: &PyPlacementGroupId, timeout: Option<f64>) -> PyResult<bool> {
        let (timeout, group_id) = (patience(timeout)?, group_id.0);
        let mut signals = Signals::default();
        let result = py.detach(|| self.core.wait_group(group_id, timeout, &mut || signals.check()));
        signals.settle(py, result)
    }

    /// A reference that becomes `value`, which refers to no objects, when the group is created.
    fn ready(&self, group_id: &PyPlacementGroupId, value: &Bound<'_, PyAny>) -> PyResult<PyObjectRef> {
        let py = value.py();
        let bytes = EncodedValue::new(value)?.into_core(py, |encoded| encoded.payload.into_bytes());
        let bytes: Bytes = bytes.map_err(|error| raise(py, error))?;
        let object_id = self.core.group_ready(group_id.0, bytes).map_err(|error| raise(py, error))?;
        Ok(PyObjectRef::adopt(&self.core, object_id))
    }

    fn remove(&self, py: Python<'_>, group_id: &PyPlacementGroupId) -> PyResult<()> {
        self.core.remove_group(group_id.0).map_err(|error| raise(py, error))
    }

    /// Waits until the control plane knows the groups that this process has created.
    fn settle(&self, py: Python<'_>) -> PyResult<()> {
        let mut signals = Signals::default();
        let result = py.detach(|| self.core.settle_groups(&mut || signals.check()));
        signals.settle(py, result)
    }

    /// What is known of a group; None if nothing is.
    fn get<'py>(
        &self,
        py: Python<'py>,
        group_id: &PyPlacementGroupId,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        let (mut signals, group_id) = (Signals::default(), group_id.0);
        let result = py.detach(|| self.core.group(group_id, &mut || signals.check()));
        found(py, signals, result)
    }

    /// The group of this name that is not removed; None if there is none.
    fn get_named<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        namespace: &str,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        let mut signals = Signals::default();
        let result = py.detach(|| self.core.named_group(name, namespace, &mut || signals.check()));
        found(py, signals, result)
    }

    /// What is known of all groups, also of some that were removed.
    fn list<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let mut signals = Signals::default();
        let result = py.detach(|| self.core.all_groups(&mut || signals.check()));
        signals.settle(py, result)?.iter().map(|info| describe_group(py, info)).collect()
    }

    /// The placement group in which this code runs, and whether it captures what this code submits.
    fn current(&self) -> Option<(PyPlacementGroupId, bool)> {
        self.core.current_group().map(|group| (PyPlacementGroupId(group.group_id), group.capture))
    }
}

fn found<'py>(
    py: Python<'py>,
    signals: Signals,
    result: Result<PlacementGroupInfo, RayError>,
) -> PyResult<Option<Bound<'py, PyDict>>> {
    match result {
        Err(RayError::NotFound { .. }) => Ok(None),
        other => describe_group(py, &signals.settle(py, other)?).map(Some),
    }
}

/// A group with the facts that the control plane has, under names of their own; see `ray_rust.util.placement_group`.
fn describe_group<'py>(py: Python<'py>, info: &PlacementGroupInfo) -> PyResult<Bound<'py, PyDict>> {
    let described = PyDict::new(py);
    let spec = info.spec.clone().unwrap_or_default();
    let state = match info.state() {
        State::Unspecified | State::Pending => "PENDING",
        State::Prepared => "PREPARED",
        State::Created => "CREATED",
        State::Removed => "REMOVED",
        State::Rescheduling => "RESCHEDULING",
    };
    let strategy = match spec.strategy() {
        GroupStrategy::Pack => "PACK",
        GroupStrategy::Spread => "SPREAD",
        GroupStrategy::StrictPack => "STRICT_PACK",
        GroupStrategy::StrictSpread => "STRICT_SPREAD",
    };
    let bundles = PyList::empty(py);
    for bundle in &spec.bundles {
        bundles.append(units(py, bundle.resources.as_ref())?)?;
    }
    let nodes: Vec<_> = info.bundle_nodes.iter().map(|node_id| hex(node_id)).collect();
    described.set_item("placement_group_id", hex(&spec.placement_group_id))?;
    described.set_item("name", &spec.name)?;
    described.set_item("namespace", &spec.namespace)?;
    described.set_item("job_id", hex(&spec.job_id))?;
    described.set_item("is_detached", spec.detached)?;
    described.set_item("strategy", strategy)?;
    described.set_item("bundles", bundles)?;
    described.set_item("bundle_nodes", nodes)?;
    described.set_item("state", state)?;
    described.set_item("pending_reason", &info.pending_reason)?;
    described.set_item("infeasible", info.infeasible)?;
    described.set_item("removed_reason", &info.removed_reason)?;
    described.set_item("attempts", info.attempt)?;
    described.set_item("created_time_ms", info.created_time_ms)?;
    described.set_item("removed_time_ms", info.removed_time_ms)?;
    Ok(described)
}
