//! The metrics of this process's programs, from when they are recorded until the node is told.
//!
//! They are of the process, not of a membership: a metric may be made and recorded before the process joins
//! a cluster, and goes on after it has left.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ray_core::metric::{MetricChange, MetricDescription, MetricTable, Tags};

/// Series that one process records between two reports at most.
const MAX_SERIES: usize = 10_000;

static TABLE: Mutex<MetricTable> = Mutex::new(MetricTable::new(MAX_SERIES));

/// Something was recorded since the last report.
static RECORDED: AtomicBool = AtomicBool::new(false);

fn table() -> MutexGuard<'static, MetricTable> {
    // Each change of the table is complete: a panic elsewhere leaves it sound.
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What came of recording a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// It is the first since the last report.
    First,
    /// Others wait already.
    Another,
    /// There was no room for its series.
    Refused,
}

/// Records a value.
pub fn record(metric: &MetricDescription, tags: &Tags, value: f64) -> Recorded {
    if !table().record(metric, tags, value) {
        return Recorded::Refused;
    }
    if RECORDED.swap(true, Ordering::Relaxed) { Recorded::Another } else { Recorded::First }
}

/// Whether something waits to be told.
pub fn is_waiting() -> bool {
    RECORDED.load(Ordering::Relaxed)
}

/// What waits to be told.
pub fn take() -> Vec<MetricChange> {
    RECORDED.store(false, Ordering::Relaxed);
    table().take()
}
