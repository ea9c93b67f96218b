//! The daemon of one node: its resources, leases, workers and actors.
//!
//! | module | what it holds |
//! |---|---|
//! | [`resource_manager`], [`device_table`], [`scheduling_queue`] | what is free, and who waits for it; pure |
//! | [`lease_table`], [`worker_pool`], [`task_table`] | leases, worker processes, tasks by gRPC; pure |
//! | [`runtime_env_table`] | which runtime environments are being set up, ready or failed; pure |
//! | [`memory_monitor`] | which worker is ended when memory runs low; pure |
//! | [`node`] | the machine that joins these, and the daemon around it |
//! | [`log_monitor`], [`log_tail`] | what workers print, on its way to their driver |
//! | [`LocalScheduler`] | resources and queue behind the `Scheduler` trait, for one process |
//!
//! Tasks do not pass through here: a lease is granted, and from then on its holder talks to the worker.

pub mod device_table;
mod grpc;
pub mod lease_table;
mod local_scheduler;
pub mod log_monitor;
pub mod log_tail;
#[expect(
    unsafe_code,
    reason = "a descriptor is registered with tokio, which has to trust that it stays open"
)]
mod log_watch;
pub mod memory_monitor;
pub mod node;
pub mod pending_reason;
pub mod resource_manager;
pub mod runtime_env_table;
pub mod scheduling_queue;
mod sync;
pub mod task_table;
pub mod worker_pool;

pub use local_scheduler::LocalScheduler;
pub use resource_manager::ResourceManager;
pub use scheduling_queue::{EnqueueError, SchedulingQueue};
