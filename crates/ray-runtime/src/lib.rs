//! Tasks and objects inside one process, for Rust programs and their tests: no daemon, no socket, no
//! other process.
//!
//! Functions are registered by name, take bytes and return bytes. A task is one call of a function; its
//! result is an object. Tasks run on threads, as many at once as the resources that they ask for allow.
//!
//! ```
//! use std::sync::Arc;
//!
//! use ray_core::error::RayResult;
//! use ray_runtime::{LocalRuntime, RuntimeConfig};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> RayResult<()> {
//! let config = RuntimeConfig { num_cpus: 4, max_workers: 8, object_store_memory: 0 };
//! let runtime = LocalRuntime::new(config)?;
//! let double = |payload: &[u8]| -> RayResult<Vec<u8>> {
//!     Ok(payload.iter().map(|byte| byte.wrapping_mul(2)).collect())
//! };
//! runtime.register_function("double_bytes", Arc::new(double)).await;
//! let result_id = runtime.submit_fn("double_bytes", vec![1, 2, 3]).await?;
//! assert_eq!(runtime.get_object(&result_id, 5000).await?, [2, 4, 6]);
//! runtime.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! * [`LocalRuntime`] is what a program holds.
//! * `task_table` and `job_table` are the state machines: what tasks and jobs there are.
//! * `engine` owns both, the registered functions, and what is waited for.
//! * `driver` takes one task through its life: waits, asks for resources, runs, stores the result.
//!
//! Where objects lie and what may run are behind the traits of [`ray_core::traits`]; see
//! [`LocalRuntimeBuilder`].

mod builder;
mod driver;
mod engine;
mod job_table;
mod runtime;
mod task;
mod task_table;

pub use self::builder::{LocalRuntimeBuilder, RuntimeConfig};
pub use self::job_table::{JobInfo, JobState};
pub use self::runtime::{LocalRuntime, ResourceUsage};
pub use self::task::{Function, TaskInput, TaskSpec, TaskStatus};
