//! What is asked of the scheduler, and what it answers.

use ray_core::error::RayError;
use ray_core::id::NodeId;
use ray_core::resource::Resources;

/// Which nodes are wanted, beyond what is needed there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Strategy {
    /// What the scheduler was made with; [`HybridPolicy`](crate::HybridPolicy) unless told otherwise.
    #[default]
    Default,
    /// The node that is used least.
    Spread,
    /// One node.
    NodeAffinity {
        /// That node.
        node_id: NodeId,
        /// Whether any node will do if that one is gone or too small. As in Ray, a node that is only
        /// busy is waited for.
        soft: bool,
    },
}

/// A place that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// What has to be free on the node.
    pub resources: Resources,
    /// Which nodes are wanted.
    pub strategy: Strategy,
}

impl Request {
    /// A place with these resources on any node.
    pub fn new(resources: Resources) -> Self {
        Self { resources, strategy: Strategy::Default }
    }

    /// This request with another strategy.
    #[must_use]
    pub fn with_strategy(self, strategy: Strategy) -> Self {
        Self { strategy, ..self }
    }
}

/// The answer to a [`Request`].
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
}

impl Decision {
    /// The node, if there is one now.
    pub fn node_id(&self) -> Option<NodeId> {
        match self {
            Self::Placed(node_id) => Some(*node_id),
            Self::Busy | Self::Infeasible { .. } => None,
        }
    }

    /// The error for whoever asked for `requested`, if it can never be had.
    pub fn infeasible_error(&self, requested: &Resources) -> Option<RayError> {
        match self {
            Self::Infeasible { reason } => {
                Some(RayError::Infeasible { requested: requested.clone(), reason: reason.clone() })
            }
            Self::Placed(_) | Self::Busy => None,
        }
    }
}
