//! What a program holds: [`LocalRuntime`].

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ray_core::error::RayResult;
use ray_core::id::{JobId, ObjectId, TaskId};
use ray_core::resource::{Amount, Resources};
use ray_core::traits::StoreUsage;
use tokio::runtime::Runtime;
use tokio_util::context::TokioContext;

use crate::builder::{LocalRuntimeBuilder, RuntimeConfig};
use crate::engine::Engine;
use crate::job_table::JobInfo;
use crate::task::{Function, TaskSpec, TaskStatus};

/// How much of everything there is and is free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceUsage {
    /// What tasks may take in sum.
    pub total: Resources,
    /// What of it is free.
    pub available: Resources,
    /// How full the object store is.
    pub object_store: StoreUsage,
    /// Tasks that have not ended.
    pub tasks_under_way: usize,
}

impl ResourceUsage {
    /// How much of this resource is taken.
    pub fn used(&self, name: &str) -> Amount {
        self.total.get(name).saturating_sub(self.available.get(name))
    }
}

/// Tasks and objects inside this process; see the [crate's documentation](crate).
///
/// It has threads of its own: its methods can be awaited on any executor, and dropping one of their
/// futures gives up waiting and nothing else. Share it in an `Arc`. When it is dropped, tasks that wait
/// are forgotten and functions that run do so to their end.
#[derive(Debug)]
pub struct LocalRuntime {
    engine: Arc<Engine>,
    /// `None` only while it is dropped.
    threads: Option<Runtime>,
}

impl LocalRuntime {
    /// Starts a runtime with these settings.
    ///
    /// # Errors
    /// [`Config`](ray_core::error::RayError::Config) names the setting that makes no sense.
    pub fn new(config: RuntimeConfig) -> RayResult<Self> {
        Self::builder().config(config).build()
    }

    /// A runtime with more settings than [`RuntimeConfig`] has.
    pub fn builder() -> LocalRuntimeBuilder {
        LocalRuntimeBuilder::default()
    }

    pub(crate) fn start(engine: Arc<Engine>, threads: Runtime) -> Self {
        Self { engine, threads: Some(threads) }
    }

    /// Gives a function a name to be submitted by. A function of that name that was there before is
    /// replaced; tasks that were submitted with it keep it.
    pub async fn register_function(&self, name: impl Into<String>, function: Function) {
        self.engine.register(name.into(), function);
    }

    /// Forgets a function; tasks that were submitted with it keep it. Returns whether it was there.
    pub async fn unregister_function(&self, name: &str) -> bool {
        self.engine.unregister(name)
    }

    /// Submits a call of a registered function on one CPU. Returns the id of its result, which
    /// tells the id of the task too: [`ObjectId::task_id`].
    ///
    /// # Errors
    /// As [`submit_task`](Self::submit_task).
    pub async fn submit_fn(&self, name: &str, payload: Vec<u8>) -> RayResult<ObjectId> {
        self.submit_task(TaskSpec::new(name, payload)).await
    }

    /// Submits a task. Returns the id of its result.
    ///
    /// # Errors
    /// `NotFound` if the function, the job, or an object that it depends on does not exist,
    /// `InvalidArgument` if the job is finished, `Overloaded` if too many tasks are under way,
    /// `ShutDown`. What goes wrong later is told to those who get the result.
    pub async fn submit_task(&self, spec: TaskSpec) -> RayResult<ObjectId> {
        self.inside(self.engine.submit(spec)).await
    }

    /// Stores an object. It stays until it is [freed](Self::free_object) or the runtime ends.
    ///
    /// # Errors
    /// `ObjectStoreFull` if there is no room, `ShutDown`.
    pub async fn put_object(&self, data: Vec<u8>) -> RayResult<ObjectId> {
        self.put_bytes(data.into()).await
    }

    /// As [`put_object`](Self::put_object), for data that others hold too.
    ///
    /// # Errors
    /// As [`put_object`](Self::put_object).
    pub async fn put_bytes(&self, data: Bytes) -> RayResult<ObjectId> {
        self.inside(self.engine.put(data)).await
    }

    /// The data of an object, waiting at most `timeout_ms` milliseconds for the task that makes it.
    ///
    /// # Errors
    /// `GetTimeout` if it does not come in time; `TaskFailed`, `TaskCancelled`, `ObjectStoreFull` or
    /// `Infeasible` if its task ended so; `NotFound` if there is no such object; `ShutDown`.
    pub async fn get_object(&self, object_id: &ObjectId, timeout_ms: u64) -> RayResult<Vec<u8>> {
        self.get_bytes(object_id, timeout_ms).await.map(Vec::from)
    }

    /// As [`get_object`](Self::get_object), without a copy.
    ///
    /// # Errors
    /// As [`get_object`](Self::get_object).
    pub async fn get_bytes(&self, object_id: &ObjectId, timeout_ms: u64) -> RayResult<Bytes> {
        self.inside(self.engine.get(object_id, Duration::from_millis(timeout_ms))).await
    }

    /// Whether the object is there now.
    ///
    /// # Errors
    /// What the object store says.
    pub async fn contains(&self, object_id: &ObjectId) -> RayResult<bool> {
        self.inside(self.engine.object_store.contains(object_id)).await
    }

    /// Forgets an object. Tasks that still wait for it fail. Returns whether it was there.
    ///
    /// # Errors
    /// What the object store says.
    pub async fn free_object(&self, object_id: &ObjectId) -> RayResult<bool> {
        self.inside(self.engine.object_store.delete(object_id)).await
    }

    /// Ends a task: who gets its result is told that it was cancelled. A function that runs already
    /// cannot be stopped; it keeps its resources until it returns, and what it returns is dropped.
    /// Returns whether the task had not ended before.
    ///
    /// # Errors
    /// `NotFound` if there is no such task.
    pub async fn cancel_task(&self, task_id: &TaskId) -> RayResult<bool> {
        self.engine.cancel(*task_id)
    }

    /// How far a task is.
    ///
    /// # Errors
    /// `NotFound` if there is no such task, or it ended so long ago that it is forgotten.
    pub async fn get_task_status(&self, task_id: &TaskId) -> RayResult<TaskStatus> {
        self.engine.status(*task_id)
    }

    /// Begins a job: a name for tasks that belong together and can be ended together.
    ///
    /// # Errors
    /// `Overloaded` if there are too many, `ShutDown`.
    pub async fn add_job(&self, name: impl Into<String>) -> RayResult<JobId> {
        self.engine.add_job(name.into())
    }

    /// Ends a job: its tasks that have not ended are cancelled, and no new one is taken. Its objects
    /// stay. Returns whether it had not been finished before.
    ///
    /// # Errors
    /// `NotFound` if there is no such job.
    pub async fn finish_job(&self, job_id: &JobId) -> RayResult<bool> {
        self.engine.finish_job(*job_id)
    }

    /// The jobs that were finished last, then those that run. A job named `main` is there from the
    /// beginning.
    pub async fn list_jobs(&self) -> Vec<JobInfo> {
        self.engine.jobs()
    }

    /// How much of everything there is and is free.
    ///
    /// # Errors
    /// What the scheduler or the object store says.
    pub async fn resource_usage(&self) -> RayResult<ResourceUsage> {
        let (total, available) = self.inside(self.engine.scheduler.resources()).await?;
        let object_store = self.inside(self.engine.object_store.usage()).await?;
        let tasks_under_way = self.engine.tasks_under_way();
        Ok(ResourceUsage { total, available, object_store, tasks_under_way })
    }

    /// Ends everything: tasks that have not ended fail with `ShutDown`, and so does every later call
    /// that needs the runtime. Waits a moment for functions that run; those that take longer do so on
    /// their threads, and nobody hears of them.
    pub async fn shutdown(&self) {
        self.engine.close();
        self.inside(self.engine.join()).await;
    }

    /// Runs a future so that it finds our timers, whatever executor polls it.
    async fn inside<F: Future>(&self, future: F) -> F::Output {
        TokioContext::new(future, self.engine.handle.clone()).await
    }
}

impl Drop for LocalRuntime {
    fn drop(&mut self) {
        self.engine.close();
        if let Some(threads) = self.threads.take() {
            // Not by waiting: we may be on a thread of an executor, and a function may never return.
            threads.shutdown_background();
        }
    }
}
