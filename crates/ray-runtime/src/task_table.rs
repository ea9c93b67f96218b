//! The life of every task.
//!
//! ```text
//!            submit             on_started             on_done(ok)
//!   (none) ---------> Pending --------------> Running ---------------> Finished
//!                      |   ^                   |   |
//!                      |   +-- on_done(error) -+   |  while retries are left
//!                      |                           |
//!                      +-- fail ---> Failed <------+  on_done(error)
//!                      +-- cancel -> Cancelled <---+  cancel
//! ```
//!
//! A call of a function cannot be stopped. When its task is cancelled meanwhile, it runs on, and what
//! it returns is refused here: an attempt that is not the running one changes nothing.
//!
//! How many tasks are under way is bounded. What has ended is kept for those who ask, the last
//! `history` of it.

use std::collections::VecDeque;

use ray_core::error::RayError;
use ray_core::id::{JobId, TaskId};
use ray_core::resource::Resources;
use rustc_hash::FxHashMap;

use crate::task::TaskStatus;

/// Why a task has no result, kept for everyone who asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Its function, or what it depended on, failed.
    Raised(String),
    /// Its result found no room.
    StoreFull { requested_bytes: u64, used_bytes: u64, capacity_bytes: u64, holders: String },
    /// It asked for more than there is.
    Infeasible { requested: Resources, reason: String },
    /// The runtime was shut down first.
    ShutDown,
}

impl Failure {
    /// What to keep of an error that ended a task.
    pub(crate) fn from_error(error: RayError) -> Self {
        match error {
            RayError::ObjectStoreFull { requested_bytes, used_bytes, capacity_bytes, holders } => {
                Self::StoreFull { requested_bytes, used_bytes, capacity_bytes, holders }
            }
            RayError::Infeasible { requested, reason } => Self::Infeasible { requested, reason },
            RayError::ShutDown => Self::ShutDown,
            RayError::TaskFailed { message, .. } => Self::Raised(message),
            other => Self::Raised(other.chain()),
        }
    }

    fn into_error(self, task_id: TaskId) -> RayError {
        match self {
            Self::Raised(message) => RayError::TaskFailed { task_id, message },
            Self::StoreFull { requested_bytes, used_bytes, capacity_bytes, holders } => {
                RayError::ObjectStoreFull { requested_bytes, used_bytes, capacity_bytes, holders }
            }
            Self::Infeasible { requested, reason } => RayError::Infeasible { requested, reason },
            Self::ShutDown => RayError::ShutDown,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Pending,
    Running { attempt: u32 },
    Finished,
    Failed(Failure),
    Cancelled,
}

impl State {
    const fn status(&self) -> TaskStatus {
        match self {
            Self::Pending => TaskStatus::Pending,
            Self::Running { .. } => TaskStatus::Running,
            Self::Finished => TaskStatus::Finished,
            Self::Failed(_) => TaskStatus::Failed,
            Self::Cancelled => TaskStatus::Cancelled,
        }
    }
}

#[derive(Debug)]
struct Task {
    job_id: JobId,
    /// Attempts begun so far.
    attempts: u32,
    max_retries: u32,
    state: State,
}

/// What follows from the end of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AfterAttempt {
    /// The task has ended.
    Ended,
    /// It is pending again.
    Retry,
    /// The attempt was not the running one; nothing has changed.
    Stale,
}

/// All tasks that are under way, and the last ones that ended.
#[derive(Debug)]
pub(crate) struct TaskTable {
    tasks: FxHashMap<TaskId, Task>,
    /// Tasks that have ended, the oldest first.
    ended: VecDeque<TaskId>,
    max_under_way: usize,
    history: usize,
}

impl TaskTable {
    pub(crate) fn new(max_under_way: usize, history: usize) -> Self {
        Self { tasks: FxHashMap::default(), ended: VecDeque::new(), max_under_way, history }
    }

    /// Takes a new task in.
    pub(crate) fn submit(
        &mut self,
        task_id: TaskId,
        job_id: JobId,
        max_retries: u32,
    ) -> Result<(), RayError> {
        if self.under_way() >= self.max_under_way {
            return Err(RayError::Overloaded { queue: "the task table", capacity: self.max_under_way });
        }
        let task = Task { job_id, attempts: 0, max_retries, state: State::Pending };
        let before = self.tasks.insert(task_id, task);
        debug_assert!(before.is_none(), "task ids are handed out once");
        Ok(())
    }

    /// Its function is about to be called. Returns the attempt's number; `None` if the task is not
    /// pending any more.
    pub(crate) fn on_started(&mut self, task_id: TaskId) -> Option<u32> {
        let task = self.tasks.get_mut(&task_id).filter(|task| task.state == State::Pending)?;
        task.attempts += 1;
        task.state = State::Running { attempt: task.attempts };
        Some(task.attempts)
    }

    /// The attempt's result was stored, or there is none.
    pub(crate) fn on_done(
        &mut self,
        task_id: TaskId,
        attempt: u32,
        result: Result<(), Failure>,
    ) -> AfterAttempt {
        let task = self.tasks.get_mut(&task_id).filter(|task| task.state == State::Running { attempt });
        let Some(task) = task else { return AfterAttempt::Stale };
        let state = match result {
            Ok(()) => State::Finished,
            Err(Failure::Raised(_)) if task.attempts <= task.max_retries => {
                task.state = State::Pending;
                return AfterAttempt::Retry;
            }
            Err(failure) => State::Failed(failure),
        };
        self.end(task_id, state);
        AfterAttempt::Ended
    }

    /// The task will not run, or not be awaited. Returns whether it had not ended before.
    pub(crate) fn fail(&mut self, task_id: TaskId, failure: Failure) -> bool {
        self.end(task_id, State::Failed(failure))
    }

    /// Nobody wants the task any more. Returns whether it had not ended before.
    pub(crate) fn cancel(&mut self, task_id: TaskId) -> bool {
        self.end(task_id, State::Cancelled)
    }

    /// The tasks under way, of this job or of all, in the order of their ids.
    pub(crate) fn tasks_under_way(&self, job_id: Option<JobId>) -> Vec<TaskId> {
        let of_job = |task: &Task| job_id.is_none_or(|job_id| task.job_id == job_id);
        let under_way =
            self.tasks.iter().filter(|(_, task)| !task.state.status().is_terminal() && of_job(task));
        let mut ids: Vec<_> = under_way.map(|(&task_id, _)| task_id).collect();
        ids.sort_unstable();
        ids
    }

    /// How far the task is; `None` if it was never submitted or is forgotten.
    pub(crate) fn status(&self, task_id: TaskId) -> Option<TaskStatus> {
        self.tasks.get(&task_id).map(|task| task.state.status())
    }

    /// Why the task has no result and never will; `None` if that is not so.
    pub(crate) fn error(&self, task_id: TaskId) -> Option<RayError> {
        match &self.tasks.get(&task_id)?.state {
            State::Pending | State::Running { .. } | State::Finished => None,
            State::Failed(failure) => Some(failure.clone().into_error(task_id)),
            State::Cancelled => Some(RayError::TaskCancelled { task_id }),
        }
    }

    /// How many tasks have not ended.
    pub(crate) fn under_way(&self) -> usize {
        self.tasks.len() - self.ended.len()
    }

    fn end(&mut self, task_id: TaskId, state: State) -> bool {
        let task = self.tasks.get_mut(&task_id).filter(|task| !task.state.status().is_terminal());
        let Some(task) = task else { return false };
        task.state = state;
        self.ended.push_back(task_id);
        if self.ended.len() > self.history {
            let oldest = self.ended.pop_front().expect("it is longer than something");
            self.tasks.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const JOB: JobId = JobId::NIL;

    fn task(number: u8) -> TaskId {
        TaskId::from_bytes([number; 16])
    }

    fn raised() -> Result<(), Failure> {
        Err(Failure::Raised("no".to_owned()))
    }

    #[test]
    fn a_task_runs_and_finishes() {
        let mut table = TaskTable::new(10, 10);
        table.submit(task(1), JOB, 0).unwrap();
        assert_eq!(table.status(task(1)), Some(TaskStatus::Pending));
        assert_eq!(table.on_started(task(1)), Some(1));
        assert_eq!(table.on_started(task(1)), None);
        assert_eq!(table.status(task(1)), Some(TaskStatus::Running));
        assert_eq!(table.on_done(task(1), 1, Ok(())), AfterAttempt::Ended);
        assert_eq!(table.status(task(1)), Some(TaskStatus::Finished));
        assert!(table.error(task(1)).is_none());
        assert!(!table.cancel(task(1)));
    }

    #[test]
    fn a_failing_task_runs_once_more_for_each_retry() {
        let mut table = TaskTable::new(10, 10);
        table.submit(task(1), JOB, 2).unwrap();
        for (attempt, after) in [(1, AfterAttempt::Retry), (2, AfterAttempt::Retry), (3, AfterAttempt::Ended)]
        {
            assert_eq!(table.on_started(task(1)), Some(attempt));
            assert_eq!(table.on_done(task(1), attempt, raised()), after);
        }
        assert!(
            matches!(table.error(task(1)), Some(RayError::TaskFailed { message, .. }) if message == "no")
        );
    }

    #[test]
    fn what_a_retry_cannot_mend_is_not_retried() {
        let mut table = TaskTable::new(10, 10);
        table.submit(task(1), JOB, 5).unwrap();
        let attempt = table.on_started(task(1)).unwrap();
        let full = Failure::StoreFull {
            requested_bytes: 3,
            used_bytes: 1,
            capacity_bytes: 2,
            holders: String::new(),
        };
        assert_eq!(table.on_done(task(1), attempt, Err(full)), AfterAttempt::Ended);
        assert!(matches!(table.error(task(1)), Some(RayError::ObjectStoreFull { requested_bytes: 3, .. })));
    }

    #[test]
    fn what_a_cancelled_task_returns_is_refused() {
        let mut table = TaskTable::new(10, 10);
        table.submit(task(1), JOB, 3).unwrap();
        let attempt = table.on_started(task(1)).unwrap();
        assert!(table.cancel(task(1)));
        assert_eq!(table.on_done(task(1), attempt, Ok(())), AfterAttempt::Stale);
        assert_eq!(table.on_started(task(1)), None);
        assert!(matches!(table.error(task(1)), Some(RayError::TaskCancelled { .. })));
    }

    #[test]
    fn too_many_tasks_are_refused_until_one_ends() {
        let mut table = TaskTable::new(1, 10);
        table.submit(task(1), JOB, 0).unwrap();
        assert!(matches!(table.submit(task(2), JOB, 0), Err(RayError::Overloaded { capacity: 1, .. })));
        assert!(table.cancel(task(1)));
        table.submit(task(2), JOB, 0).unwrap();
    }

    #[test]
    fn a_jobs_tasks_are_told_from_others() {
        let other = JobId::from_bytes([1; 16]);
        let mut table = TaskTable::new(10, 10);
        for (number, job_id) in [(3, JOB), (2, other), (1, JOB), (4, JOB)] {
            table.submit(task(number), job_id, 0).unwrap();
        }
        table.cancel(task(4));
        assert_eq!(table.tasks_under_way(Some(JOB)), [task(1), task(3)]);
        assert_eq!(table.tasks_under_way(None), [task(1), task(2), task(3)]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Submit(u32),
        Start(u8),
        Done(u8, u32, bool),
        Fail(u8),
        Cancel(u8),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let number = 0u8..20;
        prop_oneof![
            (0u32..3).prop_map(Step::Submit),
            number.clone().prop_map(Step::Start),
            (number.clone(), 1u32..4, any::<bool>())
                .prop_map(|(number, attempt, ok)| Step::Done(number, attempt, ok)),
            number.clone().prop_map(Step::Fail),
            number.prop_map(Step::Cancel),
        ]
    }

    proptest! {
        #[test]
        fn what_has_ended_stays_so_and_everything_is_bounded(steps in prop::collection::vec(any_step(), 0..150)) {
            let mut table = TaskTable::new(5, 4);
            let mut next = 0;
            for step in steps {
                let before: Vec<_> = (0..20).map(|number| table.status(task(number))).collect();
                match step {
                    Step::Submit(retries) if next < 20 => {
                        let full = table.under_way() >= 5;
                        prop_assert_eq!(table.submit(task(next), JOB, retries).is_err(), full);
                        next += u8::from(!full);
                    }
                    Step::Submit(_) => {}
                    Step::Start(number) => {
                        let started = table.on_started(task(number)).is_some();
                        prop_assert_eq!(started, before[usize::from(number)] == Some(TaskStatus::Pending));
                    }
                    Step::Done(number, attempt, ok) => {
                        let after = table.on_done(task(number), attempt, if ok { Ok(()) } else { raised() });
                        let ran = before[usize::from(number)] == Some(TaskStatus::Running);
                        prop_assert!(ran || after == AfterAttempt::Stale);
                        prop_assert!(!ok || after != AfterAttempt::Retry);
                    }
                    Step::Fail(number) => { table.fail(task(number), Failure::ShutDown); }
                    Step::Cancel(number) => { table.cancel(task(number)); }
                }
                for number in 0..20 {
                    let (was, is) = (before[usize::from(number)], table.status(task(number)));
                    let ended = was.is_some_and(TaskStatus::is_terminal);
                    prop_assert!(!ended || is.is_none() || is == was, "{:?} became {:?}", was, is);
                    let failed = matches!(is, Some(TaskStatus::Failed | TaskStatus::Cancelled));
                    prop_assert_eq!(table.error(task(number)).is_some(), failed);
                }
                let under_way = table.tasks_under_way(None).len();
                prop_assert_eq!(under_way, table.under_way());
                prop_assert!(under_way <= 5 && table.ended.len() <= 4);
                prop_assert_eq!(table.tasks.len(), under_way + table.ended.len());
            }
        }
    }
}
