//! What every part of Ray Rust shares: ids, resources, constraints, errors, serialization, the traits behind
//! which back ends are replaced, the configuration, and the messages on the wire.
//!
//! It opens no socket, reads no clock and starts no thread.

pub mod config;
pub mod constraint;
pub mod error;
pub mod id;
pub mod log;
pub mod metric;
pub mod pb;
pub mod report;
pub mod resource;
pub mod runtime_env;
pub mod serialize;
pub mod traits;
pub mod wire;
