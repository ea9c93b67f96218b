//! What the scheduler answers.

use ray_core::error::RayError;
use ray_core::id::NodeId;
use ray_core::resource::Resources;

/// The answer to whoever asks for a place for a [`Shape`](ray_core::constraint::Shape).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// This node has it free now. Nothing is taken yet.
    Placed(NodeId),
    /// Some node has as much, but not free. Ask again when the view has changed.
    Busy,
    /// No living node has as much, however long one waits. A new node may change that.
    Infeasible {
        /// What is missing, and which node comes closest.
        reason: String,
    },
    /// Nothing that may happen to the cluster helps: the node that was asked for is gone, or has no room and was
    /// not to be waited for.
    Never {
        /// Which node, and what is wrong with it.
        reason: String,
    },
}

impl Decision {
    /// The node, if there is one now.
    pub fn node_id(&self) -> Option<NodeId> {
        match self {
            Self::Placed(node_id) => Some(*node_id),
            Self::Busy | Self::Infeasible { .. } | Self::Never { .. } => None,
        }
    }

    /// The error for whoever asked for `requested`, if it can never be had.
    pub fn infeasible_error(&self, requested: &Resources) -> Option<RayError> {
        match self {
            Self::Infeasible { reason } | Self::Never { reason } => {
                Some(RayError::Infeasible { requested: requested.clone(), reason: reason.clone() })
            }
            Self::Placed(_) | Self::Busy => None,
        }
    }
}
