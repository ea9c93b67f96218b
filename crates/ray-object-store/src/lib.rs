//! Where a node's objects lie.
//!
//! * [`InMemoryObjectStore`]: objects on the heap of one process.
//! * [`object_table`]: the books of the store that a node's processes share.
//! * [`shm`]: memory that the node's processes map; the only unsafe code.
//! * [`arena`]: which range of it belongs to whom.
//! * [`spill`]: where objects go when memory is short.
//! * [`grpc`]: any object store as `ObjectStoreService`.
//!
//! The node daemon owns an [`object_table::ObjectTable`] and a [`shm::ShmRegion`], and drives both from its
//! connections: nothing here listens, and nothing runs in the background.

pub mod arena;
mod borrow;
pub mod grpc;
mod memory_store;
pub mod object_table;
#[expect(unsafe_code, reason = "memory shared between processes is reached through pointers")]
pub mod shm;
pub mod spill;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;

use ray_core::error::{RayError, RayResult};
use ray_core::id::ObjectId;

pub use self::memory_store::{InMemoryObjectStore, InMemoryObjectStoreBuilder};

fn not_found(object_id: &ObjectId) -> RayError {
    RayError::NotFound { what: format!("object {object_id}") }
}

fn check_num_returns(num_returns: usize, len: usize) -> RayResult<()> {
    if num_returns > len {
        return Err(RayError::InvalidArgument(format!("num_returns is {num_returns}, for {len} objects")));
    }
    Ok(())
}

/// Splits the ids into the first `num_returns` ready ones and the others, both in the order given.
fn partition_ready(
    object_ids: &[ObjectId],
    num_returns: usize,
    is_ready: impl Fn(&ObjectId) -> bool,
) -> (Vec<ObjectId>, Vec<ObjectId>) {
    let mut left = num_returns;
    object_ids.iter().partition(|object_id| {
        let is_taken = left > 0 && is_ready(object_id);
        left -= usize::from(is_taken);
        is_taken
    })
}
