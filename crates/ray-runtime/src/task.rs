//! What a task is made of, and how far it is.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use ray_core::error::RayResult;
use ray_core::id::{JobId, ObjectId};
use ray_core::resource::{Amount, CPU, Resources};

/// What a task runs: bytes in, bytes out. It runs on a thread of its own and may block there, but
/// it should not wait for other tasks: it keeps its resources meanwhile. Give them to its task as
/// input or dependencies instead.
pub type Function = Arc<dyn Fn(&[u8]) -> RayResult<Vec<u8>> + Send + Sync>;

/// What a task's function is called with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskInput {
    /// These bytes.
    Bytes(Bytes),
    /// The data of this object, as soon as it is there.
    Object(ObjectId),
    /// A value of several parts, for [`ValueView`](ray_core::serialize::ValueView) to read: these bytes
    /// in band, and the data of each object as a buffer, in this order, as soon as all are there.
    Parts {
        /// The in-band part.
        in_band: Bytes,
        /// The objects whose data are the buffers.
        objects: Vec<ObjectId>,
    },
}

impl TaskInput {
    /// The objects that are waited for.
    pub(crate) fn objects(&self) -> &[ObjectId] {
        match self {
            Self::Bytes(_) => &[],
            Self::Object(object_id) => std::slice::from_ref(object_id),
            Self::Parts { objects, .. } => objects,
        }
    }
}

/// One task, before it is submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSpec {
    /// Name of a registered function.
    pub function: String,
    /// What it is called with.
    pub input: TaskInput,
    /// What the task takes while it runs. Default: one CPU.
    pub resources: Resources,
    /// Objects that have to be there before it runs, beside those of the input. If one of them can
    /// never be there, because its task failed, this task fails too.
    pub dependencies: Vec<ObjectId>,
    /// How often the function is called again after it failed or panicked. Default 0.
    pub max_retries: u32,
    /// The job that it belongs to. Default: the one that every runtime begins with.
    pub job_id: Option<JobId>,
}

impl TaskSpec {
    /// A call of `function` with these bytes, on one CPU.
    pub fn new(function: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self::with_input(function, TaskInput::Bytes(payload.into()))
    }

    /// A call of `function` with this input, on one CPU.
    pub fn with_input(function: impl Into<String>, input: TaskInput) -> Self {
        let mut resources = Resources::new();
        resources.set(CPU, Amount::ONE);
        Self {
            function: function.into(),
            input,
            resources,
            dependencies: Vec::new(),
            max_retries: 0,
            job_id: None,
        }
    }
}

/// How far a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskStatus {
    /// It waits for its dependencies, resources or a thread.
    Pending,
    /// Its function is being called.
    Running,
    /// Its result is stored.
    Finished,
    /// Its function failed or panicked, its result found no room, or it could never run.
    Failed,
    /// Someone cancelled it.
    Cancelled,
}

impl TaskStatus {
    /// Whether nothing more happens to the task.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for TaskStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        })
    }
}
