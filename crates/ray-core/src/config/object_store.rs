//! Settings of the object store of one node.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{MAX_MS, in_range};
use crate::error::RayResult;

/// Settings of the object store of one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectStoreConfig {
    /// Bytes of shared memory that objects may take; 0 (default) is 30 % of the machine's memory, as
    /// in Ray. Raise it if objects are spilled though memory is free.
    pub capacity_bytes: u64,
    /// Folder that objects are spilled to. Default: one in the session folder. Set it to a large,
    /// fast disk.
    pub spill_directory: Option<PathBuf>,
    /// Bytes that spilled objects may take on disk; 0 (default) is without limit: until the disk is
    /// full.
    pub max_spill_bytes: u64,
    /// Bytes of one message when an object travels between nodes. Default 1 MiB. Raise it on fast
    /// networks with long round trips.
    pub transfer_chunk_bytes: u64,
    /// Objects that are pulled from other nodes at once. Default 16. Lower it where many nodes read from few.
    pub max_pulls: usize,
    /// Bytes of objects that are pulled at once, unless one alone has more; never more than half of the store.
    /// Default 256 MiB. Lower it if objects are spilled while others are pulled.
    pub max_pull_bytes: u64,
    /// How long the pull of an object goes on without progress before it is given up, in milliseconds. Default
    /// 30 000. Raise it where nodes are cut off from one another for longer.
    pub pull_patience_ms: u64,
}

impl Default for ObjectStoreConfig {
    fn default() -> Self {
        Self {
            capacity_bytes: 0,
            spill_directory: None,
            max_spill_bytes: 0,
            transfer_chunk_bytes: 1 << 20,
            max_pulls: 16,
            max_pull_bytes: 256 << 20,
            pull_patience_ms: 30_000,
        }
    }
}

impl ObjectStoreConfig {
    pub(super) fn validate(&self) -> RayResult<()> {
        // Above this an address space cannot hold it, and sums could overflow.
        in_range("object_store.capacity_bytes", self.capacity_bytes, 0, 1 << 46)?;
        in_range("object_store.max_spill_bytes", self.max_spill_bytes, 0, 1 << 62)?;
        in_range("object_store.max_pulls", self.max_pulls as u64, 1, 10_000)?;
        in_range("object_store.max_pull_bytes", self.max_pull_bytes, 1 << 20, 1 << 46)?;
        in_range("object_store.pull_patience_ms", self.pull_patience_ms, 100, MAX_MS)?;
        // gRPC refuses messages of more than 4 MiB, its own fields included.
        in_range("object_store.transfer_chunk_bytes", self.transfer_chunk_bytes, 1 << 10, 3 << 20)
    }
}
