//! How a runtime is set up.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ray_core::error::{RayError, RayResult};
use ray_core::resource::{CPU, Resources};
use ray_core::traits::{ObjectStore, Scheduler};
use ray_object_store::InMemoryObjectStore;
use ray_raylet::LocalScheduler;

use crate::engine::{Engine, Limits};
use crate::runtime::LocalRuntime;

/// The settings that every runtime has. These fields are all there are and will be, so that it can be
/// written as a literal; [`LocalRuntime::builder`] has the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// Processors that tasks may take, at least 1; a task takes one unless it says otherwise. Default:
    /// as many as this process may run on.
    pub num_cpus: usize,
    /// Functions that run at once, whatever they take; 0 (default) is twice `num_cpus`. Each has a
    /// thread.
    pub max_workers: usize,
    /// Bytes that objects may take; 0 (default) is unlimited.
    pub object_store_memory: u64,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        let num_cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self { num_cpus, max_workers: 0, object_store_memory: 0 }
    }
}

/// Threads that one process can sensibly have.
const MAX_WORKERS: usize = 10_000;
/// Threads for blocking work of our own, such as files, beside those of the functions.
const SPARE_THREADS: usize = 8;

/// Sets up a [`LocalRuntime`].
pub struct LocalRuntimeBuilder {
    config: RuntimeConfig,
    resources: Vec<(String, f64)>,
    max_pending_tasks: usize,
    task_history: usize,
    shutdown_grace: Duration,
    spill_folder: Option<PathBuf>,
    object_store: Option<Arc<dyn ObjectStore>>,
    scheduler: Option<Arc<dyn Scheduler>>,
}

impl Default for LocalRuntimeBuilder {
    fn default() -> Self {
        Self {
            config: RuntimeConfig::default(),
            resources: Vec::new(),
            max_pending_tasks: 100_000,
            task_history: 10_000,
            shutdown_grace: Duration::from_millis(500),
            spill_folder: None,
            object_store: None,
            scheduler: None,
        }
    }
}

impl fmt::Debug for LocalRuntimeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalRuntimeBuilder")
            .field("config", &self.config)
            .field("resources", &self.resources)
            .field("max_pending_tasks", &self.max_pending_tasks)
            .field("task_history", &self.task_history)
            .field("shutdown_grace", &self.shutdown_grace)
            .field("spill_folder", &self.spill_folder)
            .finish_non_exhaustive()
    }
}

impl LocalRuntimeBuilder {
    /// All settings of a [`RuntimeConfig`] at once.
    #[must_use]
    pub fn config(self, config: RuntimeConfig) -> Self {
        Self { config, ..self }
    }

    /// [`RuntimeConfig::num_cpus`].
    #[must_use]
    pub fn num_cpus(mut self, num_cpus: usize) -> Self {
        self.config.num_cpus = num_cpus;
        self
    }

    /// [`RuntimeConfig::max_workers`].
    #[must_use]
    pub fn max_workers(mut self, max_workers: usize) -> Self {
        self.config.max_workers = max_workers;
        self
    }

    /// [`RuntimeConfig::object_store_memory`].
    #[must_use]
    pub fn object_store_memory(mut self, bytes: u64) -> Self {
        self.config.object_store_memory = bytes;
        self
    }

    /// A resource beside the processors that tasks may take, such as `GPU` or one of your own.
    #[must_use]
    pub fn resource(mut self, name: impl Into<String>, amount: f64) -> Self {
        self.resources.push((name.into(), amount));
        self
    }

    /// Tasks that may be under way at once; a submission beyond that is an
    /// [`Overloaded`](RayError::Overloaded) error. Default 100 000.
    #[must_use]
    pub fn max_pending_tasks(self, max_pending_tasks: usize) -> Self {
        Self { max_pending_tasks, ..self }
    }

    /// Tasks that have ended and whose status can still be asked for. Default 10 000.
    #[must_use]
    pub fn task_history(self, task_history: usize) -> Self {
        Self { task_history, ..self }
    }

    /// How long [`LocalRuntime::shutdown`] waits for functions that run. Default 500 ms.
    #[must_use]
    pub fn shutdown_grace(self, shutdown_grace: Duration) -> Self {
        Self { shutdown_grace, ..self }
    }

    /// Where objects go for which `object_store_memory` has no room. Default: nowhere, they are refused.
    #[must_use]
    pub fn spill_folder(self, folder: impl Into<PathBuf>) -> Self {
        Self { spill_folder: Some(folder.into()), ..self }
    }

    /// Where objects lie, instead of in this process's memory; `object_store_memory` and the folder to
    /// spill to say nothing then.
    #[must_use]
    pub fn object_store(self, object_store: Arc<dyn ObjectStore>) -> Self {
        Self { object_store: Some(object_store), ..self }
    }

    /// Who decides what may run, instead of a [`LocalScheduler`]; `num_cpus` and the resources say
    /// nothing then.
    #[must_use]
    pub fn scheduler(self, scheduler: Arc<dyn Scheduler>) -> Self {
        Self { scheduler: Some(scheduler), ..self }
    }

    /// Starts the runtime.
    ///
    /// # Errors
    /// [`RayError::Config`] names the setting that makes no sense; `Io` if no thread can be started.
    pub fn build(self) -> RayResult<LocalRuntime> {
        let total = self.total()?;
        let max_workers = self.worker_threads()?;
        at_least_one("max_pending_tasks", self.max_pending_tasks)?;
        let threads = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(max_workers + SPARE_THREADS)
            .thread_name("ray-local")
            .enable_time()
            .build()
            .map_err(|error| RayError::io("cannot start the threads of the runtime", error))?;
        let scheduler = self.scheduler.unwrap_or_else(|| {
            Arc::new(LocalScheduler::new_on(threads.handle(), total, self.max_pending_tasks))
        });
        let object_store = match self.object_store {
            Some(object_store) => object_store,
            None => memory_store(self.config.object_store_memory, self.spill_folder)?,
        };
        let limits = Limits {
            max_workers,
            max_pending_tasks: self.max_pending_tasks,
            task_history: self.task_history,
            shutdown_grace: self.shutdown_grace,
        };
        let engine = Engine::new(threads.handle().clone(), scheduler, object_store, limits);
        Ok(LocalRuntime::start(Arc::new(engine), threads))
    }

    fn total(&self) -> RayResult<Resources> {
        at_least_one("num_cpus", self.config.num_cpus)?;
        let wrong = |key: &str, error: &dyn fmt::Display| RayError::Config {
            key: key.to_owned(),
            reason: error.to_string(),
        };
        let mut total = Resources::new()
            .with_cpu(self.config.num_cpus as f64)
            .map_err(|error| wrong("num_cpus", &error))?;
        for (name, amount) in &self.resources {
            if name == CPU {
                return Err(wrong("resources", &"the amount of \"CPU\" is set by num_cpus"));
            }
            total = total.with(name, *amount).map_err(|error| wrong("resources", &error))?;
        }
        Ok(total)
    }

    fn worker_threads(&self) -> RayResult<usize> {
        match self.config.max_workers {
            0 => Ok(self.config.num_cpus.saturating_mul(2).min(MAX_WORKERS)),
            max_workers if max_workers <= MAX_WORKERS => Ok(max_workers),
            max_workers => Err(RayError::Config {
                key: "max_workers".to_owned(),
                reason: format!("has to be at most {MAX_WORKERS}, is {max_workers}"),
            }),
        }
    }
}

fn memory_store(capacity_bytes: u64, spill_folder: Option<PathBuf>) -> RayResult<Arc<dyn ObjectStore>> {
    let mut store = InMemoryObjectStore::builder().capacity_bytes(capacity_bytes);
    if let Some(folder) = spill_folder {
        store = store.spill_folder(folder);
    }
    Ok(Arc::new(store.build()?))
}

fn at_least_one(key: &str, value: usize) -> RayResult<()> {
    match value {
        0 => Err(RayError::Config { key: key.to_owned(), reason: "has to be at least 1, is 0".to_owned() }),
        _ => Ok(()),
    }
}
