//! How long the tasks of one scheduling class take, and so how many of them one lease may hold.
//!
//! A lease holds about [`WINDOW`] of work beyond the task that runs, so that a worker never runs dry between two tasks,
//! and little is stuck when one turns out long. Before any has come back, it holds one.

use std::time::Duration;

/// Work that a lease holds at most beyond the task that runs.
pub(super) const WINDOW: Duration = Duration::from_millis(2);

/// Weight of the newest execution time in the mean.
const NEWEST: f64 = 0.2;

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Pace {
    max_in_flight: usize,
    /// Mean execution time in microseconds, once there is one.
    execution_us: Option<f64>,
}

impl Pace {
    /// Nothing is known yet; a lease holds `max_in_flight` tasks at most, however short they are.
    pub(super) const fn new(max_in_flight: usize) -> Self {
        Self { max_in_flight, execution_us: None }
    }

    /// A task took this many microseconds of its own code.
    pub(super) fn on_execution(&mut self, execution_us: u32) {
        let newest = f64::from(execution_us);
        let mean = self.execution_us.map_or(newest, |mean| mean + NEWEST * (newest - mean));
        self.execution_us = Some(mean);
    }

    /// How many tasks a lease may hold, with the one that runs.
    pub(super) fn depth(&self) -> usize {
        match self.execution_us {
            None => 1,
            Some(mean) => {
                let fitting = WINDOW.as_micros() as f64 / mean.max(1.0);
                1 + (fitting as usize).min(self.max_in_flight - 1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 256;

    fn after(executions_us: &[u32]) -> Pace {
        let mut pace = Pace::new(MAX);
        executions_us.iter().for_each(|&execution_us| pace.on_execution(execution_us));
        pace
    }

    #[test]
    fn a_lease_holds_a_window_of_work_beyond_the_task_that_runs() {
        assert_eq!(after(&[]).depth(), 1, "they may be long");
        assert_eq!(after(&[10]).depth(), 201);
        assert_eq!(after(&[1_000]).depth(), 3);
        assert_eq!(after(&[2_000]).depth(), 2);
        assert_eq!(after(&[2_001]).depth(), 1);
        assert_eq!(after(&[0]).depth(), MAX);
    }

    #[test]
    fn one_that_is_unlike_the_others_counts_for_a_fifth() {
        assert_eq!(after(&[100, 600]).depth(), 11, "the mean is 200");
        assert_eq!(after(&[600, 100]).depth(), 5, "the mean is 500");
    }

    proptest! {
        #[test]
        fn a_lease_may_always_hold_a_task_and_never_too_many(
            executions in prop::collection::vec(any::<u32>(), 0..20),
            max in 1usize..300,
        ) {
            let mut pace = Pace::new(max);
            for execution_us in executions {
                pace.on_execution(execution_us);
                prop_assert!((1..=max).contains(&pace.depth()), "{}", pace.depth());
            }
        }
    }
}
