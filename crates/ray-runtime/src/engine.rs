//! What all calls and all running tasks of one runtime share.
//!
//! The tables lie behind one lock, held for a few instructions and never across an `await`; whoever
//! has to be told of an end is told after it is let go.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ray_core::error::{RayError, RayResult};
use ray_core::id::{ChildTaskIds, JobId, ObjectId, TaskId};
use ray_core::traits::{ObjectStore, Scheduler};
use rustc_hash::FxHashMap;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::driver::{self, Work};
use crate::job_table::{JobInfo, JobTable};
use crate::task::{Function, TaskSpec, TaskStatus};
use crate::task_table::{AfterAttempt, Failure, TaskTable};

/// Jobs that have finished and are still listed.
const JOB_HISTORY: usize = 1_000;

/// How much of what there may be.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) max_workers: usize,
    pub(crate) max_pending_tasks: usize,
    pub(crate) task_history: usize,
    pub(crate) shutdown_grace: Duration,
}

pub(crate) struct Engine {
    pub(crate) handle: Handle,
    pub(crate) scheduler: Arc<dyn Scheduler>,
    pub(crate) object_store: Arc<dyn ObjectStore>,
    /// One permit for each function that may run.
    pub(crate) workers: Semaphore,
    shutdown_grace: Duration,
    drivers: TaskTracker,
    state: Mutex<State>,
}

struct State {
    /// Until shutdown.
    open: bool,
    functions: FxHashMap<String, Function>,
    tasks: TaskTable,
    jobs: JobTable,
    /// For each task under way, what is cancelled when it ends, in whatever way.
    ends: FxHashMap<TaskId, CancellationToken>,
    task_ids: ChildTaskIds,
    /// The id under which objects are put: that of the program itself, seen as a task.
    program: TaskId,
    puts: u64,
    default_job: JobId,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Engine")
            .field("open", &state.open)
            .field("functions", &state.functions.len())
            .field("tasks_under_way", &state.tasks.under_way())
            .finish_non_exhaustive()
    }
}

impl Engine {
    pub(crate) fn new(
        handle: Handle,
        scheduler: Arc<dyn Scheduler>,
        object_store: Arc<dyn ObjectStore>,
        limits: Limits,
    ) -> Self {
        let program = TaskId::random();
        let default_job = JobId::random();
        let mut jobs = JobTable::new(JOB_HISTORY);
        jobs.add(default_job, "main".to_owned()).expect("an empty table has room for one job");
        let state = State {
            open: true,
            functions: FxHashMap::default(),
            tasks: TaskTable::new(limits.max_pending_tasks, limits.task_history),
            jobs,
            ends: FxHashMap::default(),
            task_ids: ChildTaskIds::new(program),
            program,
            puts: 0,
            default_job,
        };
        Self {
            handle,
            scheduler,
            object_store,
            workers: Semaphore::new(limits.max_workers),
            shutdown_grace: limits.shutdown_grace,
            drivers: TaskTracker::new(),
            state: Mutex::new(state),
        }
    }

    pub(crate) fn register(&self, name: String, function: Function) {
        self.lock().functions.insert(name, function);
    }

    pub(crate) fn unregister(&self, name: &str) -> bool {
        self.lock().functions.remove(name).is_some()
    }

    pub(crate) async fn submit(self: &Arc<Self>, spec: TaskSpec) -> RayResult<ObjectId> {
        for object_id in spec.dependencies.iter().chain(spec.input.objects()) {
            self.check_obtainable(object_id).await?;
        }
        let (work, ended) = self.admit(spec)?;
        let result_id = ObjectId::for_return(work.task_id, 0);
        self.drivers.spawn_on(driver::drive(Arc::clone(self), work, ended), &self.handle);
        Ok(result_id)
    }

    /// Makes the task known, so that it can be waited for and cancelled.
    fn admit(&self, spec: TaskSpec) -> RayResult<(Work, CancellationToken)> {
        let mut state = self.open_state()?;
        let Some(function) = state.functions.get(&spec.function).cloned() else {
            return Err(RayError::NotFound { what: format!("function {:?}", spec.function) });
        };
        let job_id = spec.job_id.unwrap_or(state.default_job);
        state.jobs.check_running(job_id)?;
        let task_id = state.task_ids.next_id();
        state.tasks.submit(task_id, job_id, spec.max_retries)?;
        let ended = CancellationToken::new();
        state.ends.insert(task_id, ended.clone());
        let work = Work {
            task_id,
            job_id,
            function,
            input: spec.input,
            resources: spec.resources,
            dependencies: spec.dependencies,
        };
        Ok((work, ended))
    }

    pub(crate) async fn put(&self, data: Bytes) -> RayResult<ObjectId> {
        let object_id = {
            let mut state = self.open_state()?;
            state.puts += 1;
            ObjectId::for_put(state.program, state.puts - 1)
        };
        self.object_store.put(object_id, data).await?;
        Ok(object_id)
    }

    pub(crate) async fn get(&self, object_id: &ObjectId, timeout: Duration) -> RayResult<Bytes> {
        drop(self.open_state()?);
        let started = Instant::now();
        let late = || RayError::GetTimeout { what: format!("object {object_id}"), waited: timeout };
        tokio::time::timeout(timeout, self.obtainable(object_id)).await.map_err(|_| late())??;
        let left = timeout.saturating_sub(started.elapsed());
        self.object_store.get(object_id, left).await
    }

    /// Waits until the object is in the store.
    ///
    /// # Errors
    /// Why it never will be.
    pub(crate) async fn obtainable(&self, object_id: &ObjectId) -> RayResult<()> {
        let ended = self.lock().ends.get(&object_id.task_id()).cloned();
        if let Some(ended) = ended {
            ended.cancelled().await;
        }
        self.check_obtainable_now(object_id).await
    }

    /// That the object is in the store, or a task under way may bring it there.
    async fn check_obtainable(&self, object_id: &ObjectId) -> RayResult<()> {
        let known = self.lock().tasks.status(object_id.task_id());
        match known {
            // The task that waits for it fails then, and says why.
            Some(TaskStatus::Pending | TaskStatus::Running | TaskStatus::Failed | TaskStatus::Cancelled) => {
                Ok(())
            }
            Some(TaskStatus::Finished) | None => self.check_obtainable_now(object_id).await,
        }
    }

    async fn check_obtainable_now(&self, object_id: &ObjectId) -> RayResult<()> {
        if let Some(error) = self.lock().tasks.error(object_id.task_id()) {
            return Err(error);
        }
        if self.object_store.contains(object_id).await? {
            return Ok(());
        }
        Err(RayError::NotFound { what: format!("object {object_id}") })
    }

    pub(crate) fn on_started(&self, task_id: TaskId) -> Option<u32> {
        self.lock().tasks.on_started(task_id)
    }

    pub(crate) fn on_done(&self, task_id: TaskId, attempt: u32, result: Result<(), Failure>) -> AfterAttempt {
        let mut after = AfterAttempt::Stale;
        self.end(|state| {
            after = state.tasks.on_done(task_id, attempt, result);
            if after == AfterAttempt::Ended { vec![task_id] } else { Vec::new() }
        });
        after
    }

    pub(crate) fn fail(&self, task_id: TaskId, failure: Failure) {
        self.end(|state| if state.tasks.fail(task_id, failure) { vec![task_id] } else { Vec::new() });
    }

    /// Returns whether the task had not ended before.
    pub(crate) fn cancel(&self, task_id: TaskId) -> RayResult<bool> {
        let mut known = false;
        let ended = self.end(|state| {
            known = state.tasks.status(task_id).is_some();
            if state.tasks.cancel(task_id) { vec![task_id] } else { Vec::new() }
        });
        if known { Ok(ended > 0) } else { Err(unknown_task(task_id)) }
    }

    pub(crate) fn status(&self, task_id: TaskId) -> RayResult<TaskStatus> {
        self.lock().tasks.status(task_id).ok_or_else(|| unknown_task(task_id))
    }

    pub(crate) fn add_job(&self, name: String) -> RayResult<JobId> {
        let job_id = JobId::random();
        self.open_state()?.jobs.add(job_id, name)?;
        Ok(job_id)
    }

    /// Cancels what the job has under way. Returns whether it ran.
    pub(crate) fn finish_job(&self, job_id: JobId) -> RayResult<bool> {
        let mut outcome = Ok(false);
        self.end(|state| {
            outcome = state.jobs.finish(job_id);
            if outcome.is_err() {
                return Vec::new();
            }
            let mut tasks = state.tasks.tasks_under_way(Some(job_id));
            tasks.retain(|&task_id| state.tasks.cancel(task_id));
            tasks
        });
        outcome
    }

    pub(crate) fn jobs(&self) -> Vec<JobInfo> {
        self.lock().jobs.list()
    }

    pub(crate) fn tasks_under_way(&self) -> usize {
        self.lock().tasks.under_way()
    }

    /// Refuses everything from now on, and ends every task. Functions that run are not waited for.
    pub(crate) fn close(&self) {
        self.end(|state| {
            state.open = false;
            state.functions.clear();
            let mut tasks = state.tasks.tasks_under_way(None);
            tasks.retain(|&task_id| state.tasks.fail(task_id, Failure::ShutDown));
            tasks
        });
        self.drivers.close();
    }

    /// After [`close`](Self::close): waits for the functions that run, as long as is allowed.
    pub(crate) async fn join(&self) {
        if tokio::time::timeout(self.shutdown_grace, self.drivers.wait()).await.is_err() {
            let running = self.drivers.len();
            tracing::warn!(running, "functions still run after the runtime was shut down");
        }
    }

    /// Does something that ends tasks, and tells those who wait for them. Returns how many there were.
    fn end(&self, change: impl FnOnce(&mut State) -> Vec<TaskId>) -> usize {
        let mut state = self.lock();
        let tasks = change(&mut state);
        let ends: Vec<_> = tasks.iter().filter_map(|task_id| state.ends.remove(task_id)).collect();
        drop(state);
        ends.iter().for_each(CancellationToken::cancel);
        tasks.len()
    }

    fn open_state(&self) -> RayResult<MutexGuard<'_, State>> {
        let state = self.lock();
        if state.open { Ok(state) } else { Err(RayError::ShutDown) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code of users runs under the lock, so that a poisoned one holds sound tables.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unknown_task(task_id: TaskId) -> RayError {
    RayError::NotFound { what: format!("task {task_id}") }
}
