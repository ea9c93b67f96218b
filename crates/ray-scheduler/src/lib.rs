//! Chooses the node for a task or an actor.
//!
//! [`ClusterView`] knows what every node has and what of it is free, [`SchedulingPolicy`] orders the
//! nodes that fit, and [`GlobalScheduler`] puts the two together and tells "not now" from "never".
//!
//! [`place_group`] chooses the nodes of a placement group, all at once.
//!
//! [`Autoscaler`] says which nodes to start for what finds no room, and which to end.
//!
//! Nothing here does I/O, reads a clock or draws a random number: the same calls in the same order
//! give the same answers. Whoever owns a view feeds it with reports and acts on decisions.

mod autoscaler;
mod bundles;
mod cluster_view;
mod decision;
mod global_scheduler;
mod node_index;
mod policy;

pub use self::autoscaler::{Autoscaler, NodeType, SeenNode, Sight, Step, WaitingGroup};
pub use self::bundles::{Bundle, GroupDecision, GroupRequest, GroupStrategy, place_group};
pub use self::cluster_view::{ClusterView, Node, Report, ViewError};
pub use self::decision::Decision;
pub use self::global_scheduler::GlobalScheduler;
pub use self::node_index::Candidate;
pub use self::policy::{HybridPolicy, PackPolicy, SchedulingPolicy, SpreadPolicy};
