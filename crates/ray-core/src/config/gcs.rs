//! Settings of the control plane.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{MAX_MS, MAX_QUEUE, config_error, in_range};
use crate::error::RayResult;

/// Where the control plane keeps what has to outlive it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GcsStorage {
    /// In memory: lost with the process. For tests and throw-away clusters.
    Memory,
    /// In an embedded database on disk: a restarted control plane goes on where it stopped.
    #[default]
    Redb,
}

/// Settings of the control plane.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GcsConfig {
    /// Time between two heartbeats of a node, in milliseconds. Default 1000. Raise it in clusters of
    /// thousands of nodes to save the control plane work; lower it to notice dead nodes sooner.
    pub heartbeat_interval_ms: u64,
    /// Silence after which a node counts as dead, in milliseconds. Default 10 000. At least twice
    /// `heartbeat_interval_ms`. Raise it where machines are paused or networks fail for seconds.
    pub node_dead_after_ms: u64,
    /// Where tables are kept: `redb` (default) or `memory`.
    pub storage: GcsStorage,
    /// File of the durable storage. Default: a file in the session folder. Set it so that a control
    /// plane started anew finds what the last one knew.
    pub storage_path: Option<PathBuf>,
    /// Messages that may wait for one subscriber before it is cut off and has to start again from a
    /// snapshot. Default 10 000. Raise it if subscribers are cut off in bursts.
    pub max_subscriber_queue: usize,
    /// Requests that may wait for the control plane before it answers that it is overloaded.
    /// Default 10 000. Raise it only if requests come in bursts and there is memory to spare.
    pub inbox_capacity: usize,
    /// Time for one call to the control plane or from it, in milliseconds. Default 5000. Raise it
    /// on machines that are so busy that calls run out of time.
    pub rpc_timeout_ms: u64,
    /// Changes that may wait for the storage before further calls are answered that the control plane is
    /// overloaded. Default 10 000. Raise it if the disk stalls for seconds under load.
    pub max_commit_queue: usize,
    /// Orders that may wait for one node; beyond that they are not lost, but listed anew once the node
    /// has caught up. Default 10 000.
    pub max_order_queue: usize,
    /// Largest message, in bytes, to or from the control plane. Default 256 MiB. Raise it if classes with
    /// larger captured data are made into actors.
    pub max_message_bytes: usize,
    /// Dead nodes that are kept, so that people see why they died. Default 1000.
    pub dead_nodes_kept: usize,
    /// Dead actors that are kept, so that people and late callers see why they died. Default 10 000.
    pub dead_actors_kept: usize,
    /// Removed placement groups that are kept, so that people see why they are gone. Default 1000.
    pub removed_groups_kept: usize,
    /// Finished jobs that are kept. Default 1000.
    pub finished_jobs_kept: usize,
    /// Ended tasks that are kept for the state API and the timeline; the oldest go first. Default
    /// 100 000, as in Ray.
    pub task_events_kept: usize,
}

impl Default for GcsConfig {
    fn default() -> Self {
        Self {
            heartbeat_interval_ms: 1_000,
            node_dead_after_ms: 10_000,
            storage: GcsStorage::default(),
            storage_path: None,
            max_subscriber_queue: 10_000,
            inbox_capacity: 10_000,
            rpc_timeout_ms: 5_000,
            max_commit_queue: 10_000,
            max_order_queue: 10_000,
            max_message_bytes: 256 << 20,
            dead_nodes_kept: 1_000,
            dead_actors_kept: 10_000,
            removed_groups_kept: 1_000,
            finished_jobs_kept: 1_000,
            task_events_kept: 100_000,
        }
    }
}

impl GcsConfig {
    pub(super) fn validate(&self) -> RayResult<()> {
        in_range("gcs.heartbeat_interval_ms", self.heartbeat_interval_ms, 1, MAX_MS)?;
        in_range("gcs.node_dead_after_ms", self.node_dead_after_ms, 1, MAX_MS)?;
        in_range("gcs.max_subscriber_queue", self.max_subscriber_queue, 1, MAX_QUEUE)?;
        in_range("gcs.inbox_capacity", self.inbox_capacity, 1, MAX_QUEUE)?;
        in_range("gcs.rpc_timeout_ms", self.rpc_timeout_ms, 1, MAX_MS)?;
        in_range("gcs.max_commit_queue", self.max_commit_queue, 1, MAX_QUEUE)?;
        in_range("gcs.max_order_queue", self.max_order_queue, 1, MAX_QUEUE)?;
        in_range("gcs.max_message_bytes", self.max_message_bytes, 1 << 20, 2 << 30)?;
        in_range("gcs.dead_nodes_kept", self.dead_nodes_kept, 1, MAX_QUEUE)?;
        in_range("gcs.dead_actors_kept", self.dead_actors_kept, 1, MAX_QUEUE)?;
        in_range("gcs.removed_groups_kept", self.removed_groups_kept, 1, MAX_QUEUE)?;
        in_range("gcs.finished_jobs_kept", self.finished_jobs_kept, 1, MAX_QUEUE)?;
        in_range("gcs.task_events_kept", self.task_events_kept, 0, MAX_QUEUE)?;
        if self.node_dead_after_ms < 2 * self.heartbeat_interval_ms {
            let reason = format!(
                "has to be at least twice gcs.heartbeat_interval_ms ({}), or one late heartbeat kills a \
                 node; is {}",
                self.heartbeat_interval_ms, self.node_dead_after_ms
            );
            return Err(config_error("gcs.node_dead_after_ms", reason));
        }
        Ok(())
    }
}
