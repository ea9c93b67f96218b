//! Starting and ending nodes by what waits: a look at the cluster from outside, and what the autoscaler says of it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use ray_core::constraint::{Constraint, LabelSelector, Shape};
use ray_core::error::{RayError, RayResult};
use ray_core::id::NodeId;
use ray_core::pb::common::PlacementGroupInfo;
use ray_core::pb::common::placement_group_info::State as GroupState;
use ray_core::pb::common::placement_group_spec::Strategy as WireStrategy;
use ray_core::pb::gcs::{
    GetClusterResourcesRequest, ListNodesRequest, ListPlacementGroupsRequest, NodeInfo, NodeUsage, node_info,
};
use ray_core::pb::raylet::InspectRequest;
use ray_core::pb::raylet::raylet_service_client::RayletServiceClient;
use ray_core::report::{Inquiry, NodeReport, ProcessReport};
use ray_core::resource::Resources;
use ray_core::serialize;
use ray_core::wire::{id, required};
use ray_gcs::client::{ClientConfig, GcsClient};
use ray_scheduler::{Autoscaler, Bundle, GroupStrategy, NodeType, SeenNode, Sight, Step, WaitingGroup};
use tokio::runtime::Runtime;

use crate::core_worker::{hex, patience};
use crate::error::raise;

/// What a node is given beyond the time for its processes to answer.
const GRACE: Duration = Duration::from_secs(2);

/// States of a worker in which nothing would be lost with it.
const SPARE_STATES: [&str; 3] = ["STARTING", "IDLE", "DEAD"];

/// A type of nodes as Python writes it: its name, resources, labels, how many at least and at most, and how many
/// seconds one may be idle.
type PyNodeType = (String, BTreeMap<String, f64>, BTreeMap<String, String>, usize, usize, f64);

/// The autoscaler of the cluster at one address.
#[pyclass(name = "Autoscaler", module = "ray_rust._internal", frozen)]
pub(crate) struct PyAutoscaler {
    runtime: Runtime,
    client: GcsClient,
    scaler: Mutex<Autoscaler>,
}

#[pymethods]
impl PyAutoscaler {
    /// Looks after the cluster whose control plane is at "host:port".
    #[new]
    fn new(py: Python<'_>, address: &str, types: Vec<PyNodeType>, max_workers: usize) -> PyResult<Self> {
        let types = types.into_iter().map(node_type).collect::<PyResult<_>>()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| PyOSError::new_err(error.to_string()))?;
        let connect = GcsClient::connect(address, ClientConfig::default());
        let client = py.detach(|| runtime.block_on(connect)).map_err(|error| raise(py, error))?;
        Ok(Self { runtime, client, scaler: Mutex::new(Autoscaler::new(types, max_workers)) })
    }

    /// What is to be started, by the number of its type; which nodes are to end; and what could not be found out.
    fn look(
        &self,
        py: Python<'_>,
        started: BTreeMap<String, usize>,
        timeout: f64,
    ) -> PyResult<(Vec<usize>, Vec<String>, Vec<String>)> {
        let timeout = patience(Some(timeout))?.unwrap_or_default();
        let looking = look(&self.client, &started, timeout);
        let (sight, failures) =
            py.detach(|| self.runtime.block_on(looking)).map_err(|error| raise(py, error))?;
        let (mut launches, mut ends) = (Vec::new(), Vec::new());
        for step in self.scaler().look(&sight, Instant::now()) {
            match step {
                Step::Launch(at) => launches.push(at),
                Step::End(node_id) => ends.push(node_id.hex()),
            }
        }
        Ok((launches, ends, failures))
    }

    /// A node of this type could not be started.
    fn launch_failed(&self, node_type: usize) {
        self.scaler().on_launch_failed(node_type, Instant::now());
    }
}

impl PyAutoscaler {
    fn scaler(&self) -> std::sync::MutexGuard<'_, Autoscaler> {
        self.scaler.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn node_type((name, resources, labels, min_workers, max_workers, idle_s): PyNodeType) -> PyResult<NodeType> {
    let wrong = |error: &dyn std::fmt::Display| PyValueError::new_err(format!("node type {name:?}: {error}"));
    let resources = Resources::from_units(resources).map_err(|error| wrong(&error))?;
    let idle_timeout = Duration::try_from_secs_f64(idle_s).map_err(|error| wrong(&error))?;
    Ok(NodeType { name: name.clone(), resources, labels, min_workers, max_workers, idle_timeout })
}

/// The cluster as it is. What a node does not tell in time is not known, and it counts as busy.
async fn look(
    client: &GcsClient,
    started: &BTreeMap<String, usize>,
    timeout: Duration,
) -> RayResult<(Sight, Vec<String>)> {
    let usage = client.get_cluster_resources(GetClusterResourcesRequest {}).await?;
    let groups = client.list_placement_groups(ListPlacementGroupsRequest {}).await?;
    let nodes = client.list_nodes(ListNodesRequest {}).await?;
    let usage_of: BTreeMap<&[u8], &NodeUsage> =
        usage.nodes.iter().map(|one| (one.node_id.as_slice(), one)).collect();
    let (mut sight, mut failures) = (Sight::default(), Vec::new());
    let (mut waiting, mut starting) = (Vec::new(), BTreeMap::new());
    for node in nodes.nodes.iter().filter(|node| node.state() == node_info::State::Alive) {
        let told = inspect(node, timeout).await;
        let busy = match &told {
            Ok((report, processes)) => is_busy(report, processes),
            Err(error) => {
                failures.push(error.to_string());
                true
            }
        };
        if let Ok((report, processes)) = told {
            for demand in report.demands {
                *starting.entry((demand.worker_id, demand.class)).or_insert(0) += demand.starting;
            }
            let tasks = |process: ProcessReport| {
                process.waiting.into_iter().map(move |tasks| (process.teller.worker_id, tasks))
            };
            waiting.extend(processes.into_iter().flat_map(tasks));
        }
        sight.nodes.push(seen(node, usage_of.get(node.node_id.as_slice()).copied(), busy, started)?);
    }
    // Who waits for a worker process alone has found its room.
    for (worker_id, tasks) in waiting {
        let starting = starting.get(&(worker_id, tasks.class)).copied().unwrap_or_default();
        sight.waiting.push((tasks.shape, tasks.count.saturating_sub(starting)));
    }
    for waiting in usage.waiting_actors {
        let resources = required("resources", waiting.resources)?.try_into()?;
        let constraint = Constraint::try_from(required("strategy", waiting.strategy)?)?;
        sight.waiting.push((Shape { resources, constraint }, waiting.count));
    }
    for group in groups.groups {
        if matches!(group.state(), GroupState::Pending | GroupState::Rescheduling) {
            sight.groups.push(waiting_group(group)?);
        }
    }
    Ok((sight, failures))
}

async fn inspect(node: &NodeInfo, timeout: Duration) -> RayResult<(NodeReport, Vec<ProcessReport>)> {
    let inquiry = Inquiry { tasks: false, objects: false, limit: 0 };
    let request = InspectRequest {
        inquiry: serialize::to_bytes(&inquiry)?,
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        address: node.raylet_address.clone(),
    };
    let failed = |error: &dyn std::fmt::Display| RayError::Unavailable {
        peer: format!("node {}", hex(&node.node_id)),
        cause: error.to_string(),
    };
    let asking = async {
        let client = RayletServiceClient::connect(format!("http://{}", node.raylet_address));
        let mut client = client.await.map_err(|error| failed(&error))?.max_decoding_message_size(usize::MAX);
        client.inspect(request).await.map_err(|error| failed(&error))
    };
    let limit = timeout + GRACE;
    let reply = tokio::time::timeout(limit, asking)
        .await
        .map_err(|_| failed(&format!("it did not answer within {limit:?}")))??
        .into_inner();
    let report: NodeReport = serialize::from_bytes(&reply.report)?;
    let processes = report.processes.iter().map(|process| serialize::from_bytes(process));
    let processes = processes.collect::<RayResult<_>>()?;
    Ok((report, processes))
}

/// Whether something is on a node that would be lost with it.
fn is_busy(report: &NodeReport, processes: &[ProcessReport]) -> bool {
    report.owned_objects > 0
        || !report.silent.is_empty()
        || !report.placing.is_empty()
        || report.workers.iter().any(|worker| !SPARE_STATES.contains(&worker.state.as_str()))
        || processes.iter().any(|process| process.references_total > 0 || process.pending_total > 0)
}

fn seen(
    node: &NodeInfo,
    usage: Option<&NodeUsage>,
    busy: bool,
    started: &BTreeMap<String, usize>,
) -> RayResult<SeenNode> {
    let total =
        required("total", usage.and_then(|usage| usage.total.clone()).or_else(|| node.total.clone()))?;
    // A node that has reported nothing yet has all of it.
    let available = usage.and_then(|usage| usage.available.clone()).unwrap_or_else(|| total.clone());
    let node_id: NodeId = id("node_id", &node.node_id)?;
    Ok(SeenNode {
        node_id,
        node_type: started.get(&node_id.hex()).copied(),
        total: total.try_into()?,
        available: available.try_into()?,
        labels: node.labels.clone().into_iter().collect(),
        busy,
        activity: usage.map_or(0, |usage| usage.version),
    })
}

fn waiting_group(group: PlacementGroupInfo) -> RayResult<WaitingGroup> {
    let spec = required("spec", group.spec)?;
    let strategy = match spec.strategy() {
        WireStrategy::Pack => GroupStrategy::Pack,
        WireStrategy::Spread => GroupStrategy::Spread,
        WireStrategy::StrictPack => GroupStrategy::StrictPack,
        WireStrategy::StrictSpread => GroupStrategy::StrictSpread,
    };
    let bundles = spec.bundles.into_iter().map(|bundle| {
        let resources = required("resources", bundle.resources)?.try_into()?;
        let selector = LabelSelector::try_from(bundle.selector.unwrap_or_default())?;
        Ok(Bundle { resources, selector })
    });
    let bundles = bundles.collect::<RayResult<Vec<_>>>()?;
    let node_of = |at: usize| group.bundle_nodes.get(at).filter(|node_id| !node_id.is_empty());
    let nodes =
        (0..bundles.len()).map(|at| node_of(at).map(|node_id| id("bundle_nodes", node_id)).transpose());
    let nodes = nodes.collect::<Result<_, _>>()?;
    Ok(WaitingGroup { strategy, bundles, nodes })
}
