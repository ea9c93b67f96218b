//! What the tables know of time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One reading of both clocks. Tables never read a clock; they are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Time since an arbitrary beginning; never goes back. For timeouts.
    pub elapsed: Duration,
    /// Milliseconds since the epoch by the wall clock. For people.
    pub unix_ms: u64,
}

/// Reads the machine's clocks, for the shell.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    beginning: Instant,
}

impl Clock {
    /// A clock whose time begins now.
    pub fn start() -> Self {
        Self { beginning: Instant::now() }
    }

    /// The time now.
    pub fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { elapsed: self.beginning.elapsed(), unix_ms: unix.as_millis() as u64 }
    }
}
