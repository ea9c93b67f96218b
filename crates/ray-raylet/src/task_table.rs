//! Tasks that were submitted by gRPC, for clients without a core worker: the node is their caller.
//!
//! ```text
//!            submit              on_started               on_done
//!   (none) ---------> Pending --------------> Running ---------------> Finished | Failed
//!                       |  ^                     |
//!                       |  +---- on_worker_lost -+  while retries are left, else Failed
//!                       +------ cancel ----------+------> Cancelled
//! ```
//!
//! What has ended is kept for those who ask, the last `history` tasks of it.

use std::collections::VecDeque;

use bytes::Bytes;
use ray_core::id::{JobId, TaskId, WorkerId};
use ray_core::resource::Resources;
use rustc_hash::FxHashMap;
use thiserror::Error;

/// What is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSpec {
    /// Chosen by the caller, so that submitting again is submitting once.
    pub task_id: TaskId,
    /// On whose behalf.
    pub job_id: JobId,
    /// As "module:name".
    pub function: String,
    /// Its only argument.
    pub payload: Bytes,
    /// What it takes while it runs.
    pub resources: Resources,
    /// How often it runs again after its worker died.
    pub max_retries: u32,
}

/// How far a task is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskState {
    /// It waits for a lease.
    Pending,
    /// It runs on this worker.
    Running(WorkerId),
    /// Its result is stored.
    Finished,
    /// It raised, its worker died too often, or it could never run.
    Failed(String),
    /// Someone cancelled it.
    Cancelled,
}

impl TaskState {
    /// Whether nothing more happens to the task.
    pub const fn is_terminal(&self) -> bool {
        matches!(self, Self::Finished | Self::Failed(_) | Self::Cancelled)
    }
}

/// Why a task is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{capacity} tasks are under way already")]
pub struct TooManyTasks {
    /// How many may be under way.
    pub capacity: usize,
}

/// What becomes of a task whose worker is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AfterLoss {
    /// It is pending again.
    Retry,
    /// It has failed.
    Failed,
}

/// What came of the wish to cancel a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// It waited and never runs.
    WasPending,
    /// It ran on this worker, which has to be ended.
    WasRunning(WorkerId),
    /// It runs, and only force ends it.
    NeedsForce,
    /// It had ended, or was never known.
    No,
}

#[derive(Debug, Clone)]
struct Task {
    spec: TaskSpec,
    state: TaskState,
    retries_left: u32,
}

/// The tasks under way and the last that ended.
#[derive(Debug, Clone)]
pub struct TaskTable {
    tasks: FxHashMap<TaskId, Task>,
    /// Those that ended, oldest first.
    ended: VecDeque<TaskId>,
    capacity: usize,
    history: usize,
}

impl TaskTable {
    /// Room for `capacity` tasks under way; remembers the last `history` that ended.
    pub fn new(capacity: usize, history: usize) -> Self {
        Self { tasks: FxHashMap::default(), ended: VecDeque::new(), capacity, history }
    }

    /// Takes a task. Returns whether it is new.
    ///
    /// # Errors
    /// If too many are under way.
    pub fn submit(&mut self, spec: TaskSpec) -> Result<bool, TooManyTasks> {
        if self.tasks.contains_key(&spec.task_id) {
            return Ok(false);
        }
        if self.under_way() >= self.capacity {
            return Err(TooManyTasks { capacity: self.capacity });
        }
        let retries_left = spec.max_retries;
        self.tasks.insert(spec.task_id, Task { spec, state: TaskState::Pending, retries_left });
        Ok(true)
    }

    /// The task runs on this worker. Returns what to run, or `None` if it does not wait.
    pub fn on_started(&mut self, task_id: TaskId, worker_id: WorkerId) -> Option<&TaskSpec> {
        let task = self.tasks.get_mut(&task_id).filter(|task| task.state == TaskState::Pending)?;
        task.state = TaskState::Running(worker_id);
        Some(&task.spec)
    }

    /// The worker says that the task ended, well or with this message. Returns whether it counts: an
    /// answer from a worker that does not run the task (any more) changes nothing.
    pub fn on_done(&mut self, task_id: TaskId, worker_id: WorkerId, result: Result<(), String>) -> bool {
        if self.state(task_id) != Some(&TaskState::Running(worker_id)) {
            return false;
        }
        self.end(task_id, result.map_or_else(TaskState::Failed, |()| TaskState::Finished));
        true
    }

    /// The worker of the task is gone. `None` if it did not run there.
    pub fn on_worker_lost(&mut self, task_id: TaskId, worker_id: WorkerId, cause: &str) -> Option<AfterLoss> {
        let task = self.tasks.get_mut(&task_id).filter(|task| task.state == TaskState::Running(worker_id))?;
        if task.retries_left > 0 {
            task.retries_left -= 1;
            task.state = TaskState::Pending;
            return Some(AfterLoss::Retry);
        }
        self.end(task_id, TaskState::Failed(format!("its worker died: {cause}")));
        Some(AfterLoss::Failed)
    }

    /// The task can never run, or its result cannot be stored.
    pub fn on_failed(&mut self, task_id: TaskId, reason: String) {
        if self.state(task_id).is_some_and(|state| !state.is_terminal() || *state == TaskState::Finished) {
            self.end(task_id, TaskState::Failed(reason));
        }
    }

    /// Cancels the task; one that runs only with `force`.
    pub fn cancel(&mut self, task_id: TaskId, force: bool) -> Cancelled {
        let outcome = match self.state(task_id) {
            Some(TaskState::Pending) => Cancelled::WasPending,
            Some(TaskState::Running(worker_id)) if force => Cancelled::WasRunning(*worker_id),
            Some(TaskState::Running(_)) => return Cancelled::NeedsForce,
            Some(TaskState::Finished | TaskState::Failed(_) | TaskState::Cancelled) | None => {
                return Cancelled::No;
            }
        };
        self.end(task_id, TaskState::Cancelled);
        outcome
    }

    /// How far the task is; `None` if it is not known (any more).
    pub fn state(&self, task_id: TaskId) -> Option<&TaskState> {
        self.tasks.get(&task_id).map(|task| &task.state)
    }

    /// What the task is.
    pub fn spec(&self, task_id: TaskId) -> Option<&TaskSpec> {
        self.tasks.get(&task_id).map(|task| &task.spec)
    }

    /// How many tasks have not ended.
    pub fn under_way(&self) -> usize {
        self.tasks.len() - self.ended.len()
    }

    fn end(&mut self, task_id: TaskId, state: TaskState) {
        let Some(task) = self.tasks.get_mut(&task_id) else { return };
        let was_terminal = task.state.is_terminal();
        task.state = state;
        // Only its state is asked for from here on.
        task.spec.payload = Bytes::new();
        if !was_terminal {
            self.ended.push_back(task_id);
        }
        while self.ended.len() > self.history {
            let oldest = self.ended.pop_front().expect("it is longer than the history");
            self.tasks.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn task(number: u8) -> TaskId {
        TaskId::from_bytes([number; 16])
    }

    fn spec(number: u8, max_retries: u32) -> TaskSpec {
        TaskSpec {
            task_id: task(number),
            job_id: JobId::nil(),
            function: "module:name".to_owned(),
            payload: Bytes::from_static(b"in"),
            resources: Resources::new(),
            max_retries,
        }
    }

    const WORKER: WorkerId = WorkerId::from_bytes([1; 16]);
    const OTHER: WorkerId = WorkerId::from_bytes([2; 16]);

    #[test]
    fn submitting_again_is_submitting_once() {
        let mut table = TaskTable::new(1, 1);
        assert_eq!(table.submit(spec(1, 0)), Ok(true));
        assert_eq!(table.submit(spec(1, 0)), Ok(false));
        assert_eq!(table.submit(spec(2, 0)), Err(TooManyTasks { capacity: 1 }));
    }

    #[test]
    fn a_task_runs_again_while_retries_are_left() {
        let mut table = TaskTable::new(10, 10);
        table.submit(spec(1, 1)).unwrap();
        table.on_started(task(1), WORKER).unwrap();
        assert_eq!(table.on_worker_lost(task(1), OTHER, "late"), None);
        assert_eq!(table.on_worker_lost(task(1), WORKER, "signal 9"), Some(AfterLoss::Retry));
        assert!(!table.on_done(task(1), WORKER, Ok(())), "an answer of the first attempt");
        table.on_started(task(1), OTHER).unwrap();
        assert_eq!(table.on_worker_lost(task(1), OTHER, "signal 9"), Some(AfterLoss::Failed));
        let failed = TaskState::Failed("its worker died: signal 9".to_owned());
        assert_eq!(table.state(task(1)), Some(&failed));
    }

    #[test]
    fn a_running_task_is_cancelled_by_force_only() {
        let mut table = TaskTable::new(10, 10);
        table.submit(spec(1, 3)).unwrap();
        table.on_started(task(1), WORKER).unwrap();
        assert_eq!(table.cancel(task(1), false), Cancelled::NeedsForce);
        assert_eq!(table.cancel(task(1), true), Cancelled::WasRunning(WORKER));
        assert_eq!(table.on_worker_lost(task(1), WORKER, "killed"), None);
        assert_eq!(table.cancel(task(1), true), Cancelled::No);
        assert_eq!(table.state(task(1)), Some(&TaskState::Cancelled));
    }

    #[test]
    fn only_the_last_that_ended_are_remembered() {
        let mut table = TaskTable::new(10, 2);
        for number in 0..5 {
            table.submit(spec(number, 0)).unwrap();
            table.on_started(task(number), WORKER).unwrap();
            assert!(table.on_done(task(number), WORKER, Ok(())));
        }
        assert_eq!(table.state(task(2)), None);
        assert_eq!(table.state(task(3)), Some(&TaskState::Finished));
        assert_eq!(table.under_way(), 0);
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds_and_no_end_is_undone(
            steps in prop::collection::vec((0u8..6, 0u8..12), 0..200),
        ) {
            let mut table = TaskTable::new(4, 3);
            for (kind, number) in steps {
                let before = table.state(task(number)).cloned();
                match kind {
                    0 => drop(table.submit(spec(number, 1))),
                    1 => drop(table.on_started(task(number), WORKER).cloned()),
                    2 => { table.on_done(task(number), WORKER, Ok(())); }
                    3 => { table.on_worker_lost(task(number), WORKER, "x"); }
                    4 => { table.cancel(task(number), true); }
                    _ => { table.cancel(task(number), false); }
                }
                let after = table.state(task(number)).cloned();
                if let Some(before) = before.filter(TaskState::is_terminal) {
                    prop_assert_eq!(Some(before), after);
                }
                prop_assert!(table.under_way() <= 4);
                prop_assert!(table.ended.len() <= 3);
                let ended = table.tasks.values().filter(|task| task.state.is_terminal()).count();
                prop_assert_eq!(ended, table.ended.len());
            }
        }
    }
}
