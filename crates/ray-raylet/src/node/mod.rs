//! The node daemon: the machine that decides, and what connects it to the world.

mod actors;
mod demand;
mod effect;
pub mod fork_server;
mod handle;
mod machine;
mod process_tree;
mod session;
mod submitted;

pub use effect::{ActorOrder, ActorOutcome, ClientId, Effect, ExitStatus, NodeIdentity, RemoteOutcome};
pub use machine::NodeMachine;
pub use session::{NodeInfoJson, Session};
