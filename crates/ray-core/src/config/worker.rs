//! Settings of worker and driver processes.

use serde::{Deserialize, Serialize};

use super::{MAX_MS, in_range};
use crate::error::RayResult;

/// Settings of worker and driver processes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerConfig {
    /// Size up to which a value travels inside messages and lives in its owner's memory, in bytes;
    /// larger ones go to shared memory. Default 102 400, as in Ray.
    pub inline_limit_bytes: u64,
    /// Size of the largest message between processes, in bytes; a larger one ends the connection.
    /// Default 512 MiB. Raise it if arguments of one task are larger in sum.
    pub max_frame_bytes: u64,
    /// Tasks that one worker may hold unfinished. Default 256. Raise it if very short tasks leave
    /// workers idle; long tasks are given back whatever it is.
    pub max_inflight_per_worker: usize,
    /// Time for which a lease without tasks is kept, in milliseconds. Default 50. Raise it if tasks
    /// come in waves with pauses between them; nobody else can use the worker meanwhile.
    pub lease_idle_ms: u64,
    /// Longest time between two looks for signals such as Ctrl-C while waiting, in milliseconds.
    /// Default 100.
    pub get_poll_ms: u64,
    /// How long a thread that waits looks for what comes before it sleeps, if what it waited for last came sooner
    /// than that, in microseconds; 0: not at all. Default 100. It looks only while the processor is idle.
    pub look_before_sleep_us: u64,
    /// Whether ended tasks are noted for the state API and the timeline. Default true. Tasks can be left
    /// out one by one by `enable_task_events=False`.
    pub task_events: bool,
    /// Ended tasks of which one process may tell in one interval; what is more is only counted. Default
    /// 10 000.
    pub max_task_events: usize,
    /// Time between two reports of ended tasks and of metrics, in milliseconds. Default 1000.
    pub report_interval_ms: u64,
    /// Time without progress after which the reason is printed, in milliseconds; 0: never. Default
    /// 10 000.
    pub pending_warning_ms: u64,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            inline_limit_bytes: 100 * 1024,
            max_frame_bytes: 512 << 20,
            max_inflight_per_worker: 256,
            lease_idle_ms: 50,
            get_poll_ms: 100,
            look_before_sleep_us: 100,
            task_events: true,
            max_task_events: 10_000,
            report_interval_ms: 1_000,
            pending_warning_ms: 10_000,
        }
    }
}

impl WorkerConfig {
    pub(super) fn validate(&self) -> RayResult<()> {
        // The length field of a frame has four bytes.
        in_range("worker.max_frame_bytes", self.max_frame_bytes, 1 << 16, u64::from(u32::MAX))?;
        // Beside the value, a frame has to hold what describes it.
        in_range("worker.inline_limit_bytes", self.inline_limit_bytes, 0, self.max_frame_bytes / 2)?;
        in_range("worker.max_inflight_per_worker", self.max_inflight_per_worker, 1, 1_000_000)?;
        in_range("worker.lease_idle_ms", self.lease_idle_ms, 0, MAX_MS)?;
        in_range("worker.get_poll_ms", self.get_poll_ms, 1, 10_000)?;
        in_range("worker.look_before_sleep_us", self.look_before_sleep_us, 0, 100_000)?;
        in_range("worker.max_task_events", self.max_task_events, 0, 1_000_000)?;
        in_range("worker.report_interval_ms", self.report_interval_ms, 1, MAX_MS)?;
        in_range("worker.pending_warning_ms", self.pending_warning_ms, 0, MAX_MS)
    }
}
