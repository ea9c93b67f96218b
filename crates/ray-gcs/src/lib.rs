//! The control plane of a cluster: which nodes, actors, placement groups and jobs there are, what they were promised, and
//! a key-value store.
//!
//! | module | what it holds |
//! |---|---|
//! | [`control_plane`] | the machine made of all tables; [`effects`]: what it tells its shell to do |
//! | [`node_table`], [`actor_table`], [`placement_group_table`], [`job_table`], [`kv`], [`usage_table`] | a table each, pure |
//! | [`pending_actors`], [`pending_groups`] | who waits for a node |
//! | [`task_history`] | tasks that have ended |
//! | [`stored`], [`memory_store`], [`redb_store`] | how tables are kept, and where |
//! | [`service`], `outbox`, `raylet_link` | the shell: the owner of the machine, what makes its decisions durable and known, what gives nodes their orders |
//! | `grpc`, `server` | the service by gRPC, and a server of its own |
//! | [`client`] | how a node asks the control plane |
//!
//! It never takes part in a task or in an actor's calls: with the control plane gone, what runs goes on.

pub mod actor;
pub mod actor_table;
mod backoff;
pub mod client;
pub mod clock;
pub mod control_plane;
pub mod effects;
pub mod error;
mod grpc;
pub mod job_table;
pub mod kv;
pub mod memory_store;
pub mod node_table;
mod outbox;
pub mod packages;
pub mod pending_actors;
pub mod pending_groups;
pub mod placement_group;
pub mod placement_group_table;
mod raylet_link;
pub mod redb_store;
mod server;
pub mod service;
#[cfg(test)]
mod store_tests;
pub mod stored;
pub mod task_history;
pub mod transport;
pub mod usage_table;
mod wire;

pub use crate::client::GcsClient;
pub use crate::control_plane::ControlPlane;
pub use crate::grpc::{GcsGrpc, GcsGrpcService};
pub use crate::memory_store::InMemoryGcsStore;
pub use crate::redb_store::RedbGcsStore;
pub use crate::server::GcsServer;
pub use crate::service::{Gcs, GcsHandle};
