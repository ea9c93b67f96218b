//! What an object can be, once it is something.

use bytes::Bytes;
use ray_core::error::RayError;
use ray_core::id::{ActorId, NodeId, ObjectId, TaskId, WorkerId};
use ray_link::message::Unschedulable;
use serde::{Deserialize, Serialize};

use crate::reference_counter::Owner;

/// The value of an object, or why it has none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Value {
    /// Small: here it is.
    Inline(Bytes),
    /// In the shared memory of a node.
    Stored {
        /// The node.
        node_id: NodeId,
        /// Size in bytes.
        size: u64,
    },
    /// There is none, and there will be none. Boxed, for a process may keep millions of values.
    Failed(Box<Failure>),
}

impl From<Failure> for Value {
    fn from(failure: Failure) -> Self {
        Self::Failed(Box::new(failure))
    }
}

/// How an actor ended, as far as its callers get an error of its own for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActorEnd {
    /// In a way that has none.
    #[default]
    Other,
    /// For want of a place.
    Placeless(Unschedulable),
    /// Its node ended it because memory ran low.
    OutOfMemory,
}

/// Why an object has no value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Failure {
    /// The task's code raised; the exception as the language front end encoded it.
    Raised(Bytes),
    /// The same on its way to the task's caller, who wants it retried, for it is of a type that is listed.
    RaisedListed(Bytes),
    /// The process that ran the task ended, and no retry was left.
    WorkerCrashed {
        /// The task.
        task_id: TaskId,
        /// Its name.
        name: String,
        /// The process.
        worker_id: WorkerId,
        /// How it ended, and how often it was tried.
        cause: String,
        /// Whether the node has ended it because memory ran low.
        out_of_memory: bool,
    },
    /// The actor is dead.
    ActorDied {
        /// The actor.
        actor_id: ActorId,
        /// Its class.
        class_name: String,
        /// How it ended.
        cause: String,
        /// What its constructor raised, if that was it.
        error: Bytes,
        /// What kind of end that was.
        end: ActorEnd,
    },
    /// The actor's process was lost while it ran the call; the actor may come back.
    ActorUnavailable {
        /// The actor.
        actor_id: ActorId,
        /// What happened.
        cause: String,
    },
    /// The task can never run: no node may hold it any more, or its placement group was removed.
    Unschedulable {
        /// The task.
        task_id: TaskId,
        /// Its name.
        name: String,
        /// What of it.
        kind: Unschedulable,
        /// Why.
        reason: String,
        /// Whether it was running.
        ran: bool,
    },
    /// Someone cancelled the task.
    Cancelled(TaskId),
    /// The owner of the object is gone.
    OwnerDied {
        /// The object.
        object_id: ObjectId,
        /// The owner.
        owner: WorkerId,
        /// How it ended.
        cause: String,
    },
    /// Every copy is gone.
    Lost {
        /// The object.
        object_id: ObjectId,
        /// How.
        cause: String,
    },
    /// The result could not be stored: `ObjectStoreFullError` or `OutOfDiskError` for its caller.
    StoreFull {
        /// Whether it was the disk.
        out_of_disk: bool,
        /// What the store said.
        message: String,
    },
    /// The system failed in a way that has no name of its own.
    System(String),
    /// The runtime environment that the task or actor asked for could not be set up.
    RuntimeEnvSetup(String),
    /// The object was freed, for nothing that counts referred to it.
    Freed {
        /// The object.
        object_id: ObjectId,
        /// By whom.
        cause: String,
    },
    /// The generator task has ended before it would have yielded this item.
    EndOfStream,
    /// The node that ran the task is dead, and no retry was left.
    NodeDied {
        /// The task.
        task_id: TaskId,
        /// Its name.
        name: String,
        /// The node.
        node_id: NodeId,
        /// What is known of its end, and how often the task was tried.
        cause: String,
    },
}

impl Failure {
    /// Whether there was, or could have been, a value that is lost.
    pub const fn is_loss(&self) -> bool {
        matches!(self, Self::OwnerDied { .. } | Self::Lost { .. } | Self::Freed { .. })
    }

    /// Ray's name for the kind of failure, as the state API shows it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::WorkerCrashed { .. } => "WORKER_DIED",
            Self::NodeDied { .. } => "NODE_DIED",
            Self::ActorDied { .. } => "ACTOR_DIED",
            Self::ActorUnavailable { .. } => "ACTOR_UNAVAILABLE",
            Self::Cancelled(_) => "TASK_CANCELLED",
            Self::OwnerDied { .. } => "OWNER_DIED",
            Self::Lost { .. } => "OBJECT_LOST",
            Self::RuntimeEnvSetup(_) => "RUNTIME_ENV_SETUP_FAILED",
            Self::StoreFull { out_of_disk: true, .. } => "OUT_OF_DISK_ERROR",
            _ => "TASK_EXECUTION_EXCEPTION",
        }
    }

    /// This for programs in Rust, which cannot read what the front end encoded.
    pub fn into_error(self, object_id: ObjectId) -> RayError {
        match self {
            Self::Raised(_) | Self::RaisedListed(_) => RayError::TaskFailed {
                task_id: object_id.task_id(),
                message: "it raised an exception of another language".to_owned(),
            },
            Self::WorkerCrashed { task_id, worker_id, cause, .. } => {
                RayError::WorkerCrashed { task_id, worker_id, cause }
            }
            Self::NodeDied { node_id, cause, .. } => RayError::NodeDied { node_id, cause },
            Self::ActorDied { actor_id, cause, .. } => RayError::ActorDied { actor_id, cause },
            Self::ActorUnavailable { actor_id, cause } => RayError::ActorUnavailable { actor_id, cause },
            Self::Unschedulable { task_id, name, reason, .. } => {
                RayError::TaskFailed { task_id, message: format!("{name} can never run: {reason}") }
            }
            Self::Cancelled(task_id) => RayError::TaskCancelled { task_id },
            Self::OwnerDied { object_id, owner, cause } => RayError::OwnerDied { object_id, owner, cause },
            Self::Lost { object_id, cause } | Self::Freed { object_id, cause } => {
                RayError::ObjectLost { object_id, cause }
            }
            Self::EndOfStream => RayError::TaskFailed {
                task_id: object_id.task_id(),
                message: "it ended before it yielded this item".to_owned(),
            },
            Self::StoreFull { message, .. } | Self::System(message) | Self::RuntimeEnvSetup(message) => {
                RayError::TaskFailed { task_id: object_id.task_id(), message }
            }
        }
    }
}

/// A reference that a value holds.
pub type Contained = (ObjectId, Owner);

/// A value as it leaves the front end: its encoded parts and the references that it holds.
#[derive(Debug, Default)]
pub struct Encoded<'a> {
    /// The bytes, to be laid out in one block.
    pub payload: Payload<'a>,
    /// References inside, each held by the caller for as long as this lives.
    pub contained: Vec<Contained>,
}

/// Encoded bytes, in one piece or in parts that are put together where they will lie.
#[derive(Debug)]
pub enum Payload<'a> {
    /// One piece.
    Whole(Bytes),
    /// A part in band and buffers out of band, as pickle 5 makes them.
    Parts(ray_core::serialize::ValueParts<'a>),
}

impl Default for Payload<'_> {
    fn default() -> Self {
        Self::Whole(Bytes::new())
    }
}

impl Payload<'_> {
    /// Size of the whole block in bytes.
    pub fn len(&self) -> usize {
        use ray_core::serialize::ZeroCopyWrite as _;
        match self {
            Self::Whole(bytes) => bytes.len(),
            Self::Parts(parts) => parts.encoded_len(),
        }
    }

    /// Whether there is nothing; no codec makes that.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the block into `out`, which has exactly its size.
    ///
    /// # Errors
    /// If the parts cannot be laid out.
    pub fn write_into(&self, out: &mut [u8]) -> ray_core::error::RayResult<()> {
        use ray_core::serialize::ZeroCopyWrite as _;
        match self {
            Self::Whole(bytes) => out.copy_from_slice(bytes),
            Self::Parts(parts) => parts.write_into(out)?,
        }
        Ok(())
    }

    /// The block in memory of its own.
    ///
    /// # Errors
    /// If the parts cannot be laid out.
    pub fn into_bytes(self) -> ray_core::error::RayResult<Bytes> {
        match self {
            Self::Whole(bytes) => Ok(bytes),
            Self::Parts(_) => {
                let mut block = vec![0; self.len()];
                self.write_into(&mut block)?;
                Ok(block.into())
            }
        }
    }
}
