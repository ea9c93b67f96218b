//! The daemon of one node: its resources, leases, workers and actors.

pub mod lease_table;
mod local_scheduler;
pub mod log_monitor;
pub mod log_tail;
pub mod node;
pub mod resource_manager;
pub mod scheduling_queue;
pub mod task_table;
pub mod worker_pool;

pub use local_scheduler::LocalScheduler;
pub use resource_manager::ResourceManager;
pub use scheduling_queue::{EnqueueError, SchedulingQueue};
