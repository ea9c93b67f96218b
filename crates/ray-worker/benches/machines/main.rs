//! The machines that every task and object passes through: `cargo bench -p ray-worker`, or one of them by
//! `cargo bench -p ray-worker -- dispatcher`.
//!
//! The rates that are printed are per task or reference. Where a number of them is in a name, rates of
//! different numbers should be alike: costs must not grow with what waits.

use std::time::Duration;

use criterion::Criterion;

mod dispatcher;
mod memory_store;
mod peer_message;
mod reference_counter;
mod task_log;
mod task_table;

fn main() {
    let criterion = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(500));
    let mut criterion = criterion.measurement_time(Duration::from_secs(2)).configure_from_args();
    reference_counter::bench(&mut criterion);
    task_table::bench(&mut criterion);
    task_log::bench(&mut criterion);
    dispatcher::bench(&mut criterion);
    memory_store::bench(&mut criterion);
    peer_message::bench(&mut criterion);
    criterion.final_summary();
}

/// The ids of this many tasks of one parent.
fn task_ids(count: usize) -> Vec<ray_core::id::TaskId> {
    let mut ids = ray_core::id::ChildTaskIds::new(ray_core::id::TaskId::nil());
    (0..count).map(|_| ids.next_id()).collect()
}

/// The first objects that this many tasks return.
fn object_ids(count: usize) -> Vec<ray_core::id::ObjectId> {
    task_ids(count).into_iter().map(|task_id| ray_core::id::ObjectId::for_return(task_id, 0)).collect()
}
