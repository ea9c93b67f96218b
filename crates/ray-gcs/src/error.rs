//! Why the control plane refuses something.

use ray_core::error::RayError;
use ray_core::id::{ActorId, JobId, NodeId, PlacementGroupId};
use thiserror::Error;

/// Why a call about a node is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NodeError {
    /// Nobody registered this node, or it is dead for so long that it is forgotten.
    #[error("node {0} is not known")]
    Unknown(NodeId),
    /// The node was declared dead. It never comes back under this id.
    #[error("node {node_id} was declared dead: {reason}")]
    Dead {
        /// The node.
        node_id: NodeId,
        /// Why it was declared dead.
        reason: String,
    },
}

/// Why a call about an actor is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ActorError {
    /// Nobody registered this actor, or it is dead for so long that it is forgotten.
    #[error("actor {0} is not known")]
    Unknown(ActorId),
    /// No living actor has this name.
    #[error("no living actor is named {name:?} in namespace {namespace:?}")]
    NoSuchName {
        /// The name.
        name: String,
        /// Where it was looked for.
        namespace: String,
    },
    /// A living actor has this name.
    #[error("actor {holder} is named {name:?} in namespace {namespace:?}")]
    NameTaken {
        /// The name.
        name: String,
        /// Where it is taken.
        namespace: String,
        /// The actor that has it.
        holder: ActorId,
    },
    /// The actor's job ended before the actor was registered.
    #[error("job {0} has ended and makes no more actors")]
    JobFinished(JobId),
}

/// Why a call about a placement group is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GroupError {
    /// Nobody registered this group, or it was removed so long ago that it is forgotten.
    #[error("placement group {0} is not known")]
    Unknown(PlacementGroupId),
    /// No group has this name.
    #[error("no placement group is named {name:?} in namespace {namespace:?}")]
    NoSuchName {
        /// The name.
        name: String,
        /// Where it was looked for.
        namespace: String,
    },
    /// Another group has this name.
    #[error("placement group {holder} is named {name:?} in namespace {namespace:?}")]
    NameTaken {
        /// The name.
        name: String,
        /// Where it is taken.
        namespace: String,
        /// The group that has it.
        holder: PlacementGroupId,
    },
    /// The group's job ended before the group was registered.
    #[error("job {0} has ended and makes no more placement groups")]
    JobFinished(JobId),
}

/// Why the service does not answer a call.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ServiceError {
    /// Too many calls wait.
    #[error("{queue} is full ({capacity} entries)")]
    Overloaded {
        /// The queue.
        queue: &'static str,
        /// How many entries it holds.
        capacity: usize,
    },
    /// The service ends or has ended; the call may or may not have been carried out.
    #[error("the control plane is shutting down")]
    Stopped,
}

impl From<NodeError> for RayError {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::Unknown(node_id) => Self::NotFound { what: format!("node {node_id}") },
            NodeError::Dead { node_id, reason } => Self::NodeDied { node_id, cause: reason },
        }
    }
}

impl From<ActorError> for RayError {
    fn from(error: ActorError) -> Self {
        match error {
            ActorError::Unknown(actor_id) => Self::NotFound { what: format!("actor {actor_id}") },
            ActorError::NoSuchName { name, namespace } => {
                Self::NotFound { what: format!("a living actor named {name:?} in namespace {namespace:?}") }
            }
            ActorError::NameTaken { name, namespace, holder } => {
                let what = format!("an actor named {name:?} in namespace {namespace:?} ({holder})");
                Self::AlreadyExists { what }
            }
            error @ ActorError::JobFinished(_) => Self::InvalidArgument(error.to_string()),
        }
    }
}

impl From<GroupError> for RayError {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::Unknown(group_id) => Self::NotFound { what: format!("placement group {group_id}") },
            GroupError::NoSuchName { name, namespace } => Self::NotFound {
                what: format!("a placement group named {name:?} in namespace {namespace:?}"),
            },
            GroupError::NameTaken { name, namespace, holder } => {
                let what = format!("a placement group named {name:?} in namespace {namespace:?} ({holder})");
                Self::AlreadyExists { what }
            }
            error @ GroupError::JobFinished(_) => Self::InvalidArgument(error.to_string()),
        }
    }
}

impl From<ServiceError> for RayError {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::Overloaded { queue, capacity } => Self::Overloaded { queue, capacity },
            ServiceError::Stopped => {
                Self::Unavailable { peer: "the control plane".to_owned(), cause: error.to_string() }
            }
        }
    }
}
