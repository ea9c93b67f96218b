//! Settings of the daemon of one node.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{MAX_MS, MAX_QUEUE, config_error, in_range};
use crate::error::RayResult;
use crate::resource::{Amount, CPU, GPU, MEMORY, OBJECT_STORE_MEMORY};

/// Settings of the daemon of one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RayletConfig {
    /// Processors that tasks and actors may take. Default: as many as this process may run on.
    /// Set it to run more tasks at once than there are processors, or fewer.
    pub num_cpus: Option<f64>,
    /// Graphics processors that tasks and actors may take. Default: those that are found.
    pub num_gpus: Option<f64>,
    /// Bytes of memory that tasks and actors may ask for. Default: what the machine, or its
    /// control group, has beside the object store.
    pub memory_bytes: Option<u64>,
    /// Amounts of resources of your own, by name. Default: none. Processors, graphics processors
    /// and memory have fields of their own.
    pub resources: BTreeMap<String, f64>,
    /// What tasks may choose this node by. Default: none.
    pub labels: BTreeMap<String, String>,
    /// Worker processes that may live at once; 0 (default) derives it from the processors. Actors and
    /// blocked tasks keep their process, so that too small a number stops the node.
    pub max_workers: usize,
    /// Workers that are started before anyone asks. Default 1, which makes the first task fast;
    /// forking the others takes milliseconds. Raise it if many tasks start at once right away.
    pub prestart_workers: usize,
    /// Time after which a worker that does nothing is ended, in milliseconds. Default 60 000. Lower it
    /// to give memory back sooner.
    pub idle_worker_timeout_ms: u64,
    /// Time for a new worker to report, in milliseconds. Default 30 000. Raise it on slow disks.
    pub worker_start_timeout_ms: u64,
    /// Lease requests that may wait on this node before it answers that it is overloaded. Default
    /// 1 000 000.
    pub max_queued_leases: usize,
    /// Leases that one request may ask for at once. Default 64. Raise it on machines with more
    /// processors than that.
    pub max_leases_per_request: usize,
    /// Time for processes to end by themselves at shutdown before they are killed, in milliseconds.
    /// Default 500. Raise it if your code has to clean up for longer.
    pub shutdown_grace_ms: u64,
    /// How much of the machine's memory, or of its control group's, may be in use before the node ends
    /// a worker to make room: above 0 up to 1. Default 0.95. Lower it if the kernel is faster.
    pub memory_usage_threshold: f64,
    /// Time between two looks at the memory in use, in milliseconds. Default 250; 0 = never look, and let
    /// the kernel decide.
    pub memory_check_interval_ms: u64,
    /// Time between two reports of this node's free resources, in milliseconds. Default 100. Raise it
    /// in clusters of thousands of nodes.
    pub report_interval_ms: u64,
    /// Time for which the failure of a runtime environment's set-up is told to those who ask for it, before
    /// it is tried again, in milliseconds. Default 10 000.
    pub runtime_env_retry_ms: u64,
    /// Time after which a runtime environment that nothing runs in is retired, in milliseconds. Default
    /// 60 000. What it has on the disk is kept.
    pub idle_runtime_env_timeout_ms: u64,
    /// Bytes on the disk that packages and virtual environments of runtime environments may take before those
    /// that nobody uses are removed. Default 10 GiB.
    pub runtime_env_cache_bytes: u64,
    /// Port on the loopback interface at which metrics are read in Prometheus' text format; 0 (default)
    /// takes a free one.
    pub metrics_port: u16,
    /// Series of metrics that the node keeps for its processes. Default 10 000. Raise it if a metric has
    /// tags of very many values.
    pub max_metric_series: usize,
}

impl Default for RayletConfig {
    fn default() -> Self {
        Self {
            num_cpus: None,
            num_gpus: None,
            memory_bytes: None,
            resources: BTreeMap::new(),
            labels: BTreeMap::new(),
            max_workers: 0,
            prestart_workers: 1,
            idle_worker_timeout_ms: 60_000,
            worker_start_timeout_ms: 30_000,
            max_queued_leases: 1_000_000,
            max_leases_per_request: 64,
            shutdown_grace_ms: 500,
            memory_usage_threshold: 0.95,
            memory_check_interval_ms: 250,
            report_interval_ms: 100,
            runtime_env_retry_ms: 10_000,
            idle_runtime_env_timeout_ms: 60_000,
            runtime_env_cache_bytes: 10 << 30,
            metrics_port: 0,
            max_metric_series: 10_000,
        }
    }
}

impl RayletConfig {
    pub(super) fn validate(&self) -> RayResult<()> {
        check_amount("raylet.num_cpus", CPU, self.num_cpus.unwrap_or_default())?;
        check_amount("raylet.num_gpus", GPU, self.num_gpus.unwrap_or_default())?;
        check_amount("raylet.memory_bytes", MEMORY, self.memory_bytes.unwrap_or_default() as f64)?;
        for (name, &amount) in &self.resources {
            check_name(name)?;
            check_amount("raylet.resources", name, amount)?;
        }
        in_range("raylet.max_workers", self.max_workers, 0, 1_000_000)?;
        in_range("raylet.prestart_workers", self.prestart_workers, 0, 100_000)?;
        in_range("raylet.idle_worker_timeout_ms", self.idle_worker_timeout_ms, 1, MAX_MS)?;
        in_range("raylet.worker_start_timeout_ms", self.worker_start_timeout_ms, 1, MAX_MS)?;
        in_range("raylet.max_queued_leases", self.max_queued_leases, 1, MAX_QUEUE)?;
        in_range("raylet.max_leases_per_request", self.max_leases_per_request, 1, 100_000)?;
        in_range("raylet.shutdown_grace_ms", self.shutdown_grace_ms, 0, MAX_MS)?;
        in_range("raylet.report_interval_ms", self.report_interval_ms, 1, MAX_MS)?;
        in_range("raylet.memory_check_interval_ms", self.memory_check_interval_ms, 0, MAX_MS)?;
        if !(self.memory_usage_threshold > 0.0 && self.memory_usage_threshold <= 1.0) {
            let reason = format!("has to be above 0 up to 1, is {}", self.memory_usage_threshold);
            return Err(config_error("raylet.memory_usage_threshold", reason));
        }
        in_range("raylet.max_metric_series", self.max_metric_series, 0, MAX_QUEUE)?;
        if self.max_workers != 0 && self.prestart_workers > self.max_workers {
            let reason = format!("is {}, more than raylet.max_workers", self.prestart_workers);
            return Err(config_error("raylet.prestart_workers", reason));
        }
        Ok(())
    }
}

fn check_name(name: &str) -> RayResult<()> {
    let field = match name {
        "" => return Err(config_error("raylet.resources", "a resource needs a name".to_owned())),
        CPU => "raylet.num_cpus",
        GPU => "raylet.num_gpus",
        MEMORY => "raylet.memory_bytes",
        OBJECT_STORE_MEMORY => "object_store.capacity_bytes",
        _ => return Ok(()),
    };
    Err(config_error("raylet.resources", format!("{name:?} is set by {field}")))
}

fn check_amount(key: &str, name: &str, amount: f64) -> RayResult<()> {
    if Amount::from_f64(amount).is_some() {
        return Ok(());
    }
    let max = Amount::MAX.to_f64();
    Err(config_error(key, format!("the amount of {name:?} has to be from 0 to {max}, is {amount}")))
}
