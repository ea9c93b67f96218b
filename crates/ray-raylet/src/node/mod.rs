//! The node daemon: the machine that decides, and what connects it to the world.

mod actors;
mod bytes_codec;
mod daemon;
mod demand;
pub(crate) mod effect;
mod env_processes;
mod environments;
pub mod fork_server;
pub(crate) mod gcs_port;
pub(crate) mod groups;
#[cfg(test)]
mod groups_tests;
pub(crate) mod handle;
mod hardware;
mod inbox;
mod inspection;
mod link_server;
mod machine;
#[cfg(test)]
mod machine_tests;
mod memory;
mod metrics_server;
mod node_metrics;
pub(crate) mod object_store;
mod observe;
mod process_tree;
mod pull_table;
pub(crate) mod pulls;
mod recall_table;
pub(crate) mod roster;
mod session;
mod shares;
pub(crate) mod store_port;
mod submitted;
mod unreachable;
pub(crate) mod whereabouts;

pub use daemon::{NodeConfig, run};
pub use effect::{ActorOrder, ActorOutcome, ClientId, Effect, ExitStatus, NodeIdentity, RemoteOutcome};
pub use groups::{GroupNews, GroupState, ReserveOrder};
pub use machine::NodeMachine;
pub use session::{NodeInfoJson, Session};
pub use whereabouts::Neighbour;
