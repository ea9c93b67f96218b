//! What can go wrong, one variant for each thing that a caller can act on.

use std::error::Error as StdError;
use std::time::Duration;

use thiserror::Error;

use crate::id::{ActorId, IdError, NodeId, ObjectId, TaskId, WorkerId};
use crate::resource::{ResourceError, Resources};

/// The result of what may fail with a [`RayError`].
pub type RayResult<T> = Result<T, RayError>;

/// The cause beneath an error.
pub type Source = Box<dyn StdError + Send + Sync + 'static>;

/// What went wrong, to whom, and why.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RayError {
    /// The task's own code failed; the message is its author's.
    #[error("task {task_id} failed: {message}")]
    TaskFailed {
        /// The task.
        task_id: TaskId,
        /// What its code said.
        message: String,
    },
    /// Someone cancelled the task.
    #[error("task {task_id} was cancelled")]
    TaskCancelled {
        /// The task.
        task_id: TaskId,
    },
    /// The process that ran the task ended, and no retry is left.
    #[error("worker {worker_id} died while it ran task {task_id}: {cause}")]
    WorkerCrashed {
        /// The task.
        task_id: TaskId,
        /// The process.
        worker_id: WorkerId,
        /// How it ended.
        cause: String,
    },
    /// The actor is dead for good.
    #[error("actor {actor_id} is dead: {cause}")]
    ActorDied {
        /// The actor.
        actor_id: ActorId,
        /// How it ended.
        cause: String,
    },
    /// The actor cannot be reached now; it may come back.
    #[error("actor {actor_id} cannot be reached: {cause}")]
    ActorUnavailable {
        /// The actor.
        actor_id: ActorId,
        /// Why not.
        cause: String,
    },
    /// Every copy of the object is gone.
    #[error("object {object_id} is lost: {cause}")]
    ObjectLost {
        /// The object.
        object_id: ObjectId,
        /// How it was lost.
        cause: String,
    },
    /// The process that owned the object is gone, and what it knew with it.
    #[error("the owner of object {object_id}, worker {owner}, died: {cause}")]
    OwnerDied {
        /// The object.
        object_id: ObjectId,
        /// Its owner.
        owner: WorkerId,
        /// How the owner ended.
        cause: String,
    },
    /// The value did not come in time; it may still come.
    #[error("{what} was not ready within {} s", waited.as_secs_f64())]
    GetTimeout {
        /// What was waited for.
        what: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The object store has no room, and nothing in it can make way.
    #[error(
        "the object store is full: {requested_bytes} bytes requested, {used_bytes} of {capacity_bytes} in use{holders}"
    )]
    ObjectStoreFull {
        /// Size of the refused object.
        requested_bytes: u64,
        /// Bytes in use.
        used_bytes: u64,
        /// Bytes that the store may hold.
        capacity_bytes: u64,
        /// The largest holders, as text to append, or nothing.
        holders: String,
    },
    /// The disk to spill to has no room.
    #[error("out of disk while spilling to {path}: {requested_bytes} bytes requested{holders}")]
    OutOfDisk {
        /// Where it was spilled to.
        path: String,
        /// Size of the object.
        requested_bytes: u64,
        /// The largest holders, as text to append, or nothing.
        holders: String,
    },
    /// No node has as much as is asked, however long one waits.
    #[error("no node can ever satisfy {requested}: {reason}")]
    Infeasible {
        /// What was asked.
        requested: Resources,
        /// What is missing.
        reason: String,
    },
    /// What was asked for does not exist.
    #[error("{what} does not exist")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// What should be made exists.
    #[error("{what} exists already")]
    AlreadyExists {
        /// What should be made.
        what: String,
    },
    /// The caller's input makes no sense.
    #[error("{0}")]
    InvalidArgument(String),
    /// A setting makes no sense.
    #[error("the setting {key:?} is wrong: {reason}")]
    Config {
        /// The setting.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The other side cannot be reached now; the same call may work later.
    #[error("{peer} cannot be reached: {cause}")]
    Unavailable {
        /// The other side.
        peer: String,
        /// Why not.
        cause: String,
    },
    /// A queue is full; the same call may work later.
    #[error("{queue} is full ({capacity} entries)")]
    Overloaded {
        /// The queue.
        queue: &'static str,
        /// How many entries it holds.
        capacity: usize,
    },
    /// The other side does not keep to the protocol.
    #[error("{peer} broke the protocol: {reason}")]
    Protocol {
        /// The other side.
        peer: String,
        /// What it did.
        reason: String,
    },
    /// A value cannot be turned into bytes, or bytes into a value.
    #[error("cannot {action}")]
    Serialization {
        /// What was tried, such as "encode a task".
        action: &'static str,
        /// What the codec said.
        #[source]
        source: Source,
    },
    /// The operating system refused something.
    #[error("{context}")]
    Io {
        /// What was tried.
        context: String,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The node is gone.
    #[error("node {node_id} died: {cause}")]
    NodeDied {
        /// The node.
        node_id: NodeId,
        /// How it ended.
        cause: String,
    },
    /// The runtime is shut down.
    #[error("the runtime is shut down")]
    ShutDown,
}

impl RayError {
    /// Whether the same call may succeed later without anyone acting.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::ActorUnavailable { .. }
                | Self::GetTimeout { .. }
                | Self::ObjectStoreFull { .. }
                | Self::Overloaded { .. }
                | Self::Unavailable { .. }
        )
    }

    /// An operating system's refusal, with what was tried.
    pub fn io(context: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::Io { context: context.into(), source: source.into() }
    }

    /// A codec's refusal, with what was tried.
    pub fn serialization(action: &'static str, source: impl Into<Source>) -> Self {
        Self::Serialization { action, source: source.into() }
    }

    /// The whole chain of causes in one line, outermost first.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(inner) = cause {
            text.push_str(": ");
            text.push_str(&inner.to_string());
            cause = inner.source();
        }
        text
    }
}

impl From<ResourceError> for RayError {
    fn from(error: ResourceError) -> Self {
        Self::InvalidArgument(error.to_string())
    }
}

impl From<IdError> for RayError {
    fn from(error: IdError) -> Self {
        Self::InvalidArgument(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_names_every_cause() {
        let error = RayError::io("cannot open /nowhere", std::io::Error::other("no such thing"));
        assert_eq!(error.chain(), "cannot open /nowhere: no such thing");
        assert!(!error.is_retryable());
    }

    #[test]
    fn only_what_may_pass_is_retryable() {
        let cause = String::new;
        assert!(RayError::Unavailable { peer: cause(), cause: cause() }.is_retryable());
        assert!(!RayError::ActorDied { actor_id: ActorId::nil(), cause: cause() }.is_retryable());
    }
}
