//! The core worker: what makes a process a driver or a worker. It submits tasks and runs them, calls
//! actors and is one, owns objects and counts who refers to them.
//!
//! The machines decide, without sockets, clocks or locks: [`reference_counter`], [`task_table`],
//! [`object_ref_stream`],
//! [`dispatcher`], [`actor_calls`], [`concurrency_groups`], [`memory_store`], [`task_log`], [`pending_watch`]. What core
//! workers say to each other is in
//! [`peer_message`]. [`core`] is the shell around all of it.
//!
//! It knows no language: values, functions and exceptions are bytes that a front end encoded.

pub mod actor_calls;
mod codec;
pub mod concurrency_groups;
pub mod core;
pub mod dispatcher;
pub mod eagerness;
pub mod memory_store;
pub mod metrics;
pub mod object_ref_stream;
pub mod peer_message;
pub mod pending_watch;
pub mod reference_counter;
pub mod task_log;
pub mod task_table;
pub mod value;

pub use crate::core::{CoreWorker, Membership};
