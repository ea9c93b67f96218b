//! The core worker: what makes a process a driver or a worker.
mod codec;
pub mod dispatcher;
pub mod peer_message;
pub mod reference_counter;
pub mod task_table;
pub mod value;
