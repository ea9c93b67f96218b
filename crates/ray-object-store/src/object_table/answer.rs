//! What the object table tells its clients, and what it wants done.

use std::fmt;

use ray_core::error::RayError;
use ray_core::id::{NodeId, ObjectId};
use thiserror::Error;

/// One client of the store: a connection, not a process that may come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {}", self.0)
    }
}

/// What is to be done after a step of the table, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Tell a client.
    Answer(Answer),
    /// Write this range to disk, then report [`on_spill_done`](super::ObjectTable::on_spill_done) or
    /// [`on_spill_failed`](super::ObjectTable::on_spill_failed). The range stays as it is meanwhile.
    Spill {
        /// The object.
        object_id: ObjectId,
        /// Where it begins.
        offset: u64,
        /// Its length in bytes.
        size: u64,
    },
    /// Read the copy into this range, then report [`on_restore_done`](super::ObjectTable::on_restore_done)
    /// or [`on_restore_failed`](super::ObjectTable::on_restore_failed). Nobody else touches the range.
    Restore {
        /// The object.
        object_id: ObjectId,
        /// Where its copy is.
        url: String,
        /// Where it goes.
        offset: u64,
        /// Its length in bytes.
        size: u64,
    },
    /// Remove this copy from disk. Nothing is reported back.
    RemoveSpilled {
        /// The copy.
        url: String,
    },
    /// The object is gone: these nodes, which have pulled it from here, have to drop their copies. Nothing is
    /// reported back.
    Recall {
        /// The object.
        object_id: ObjectId,
        /// The nodes.
        nodes: Vec<NodeId>,
    },
}

/// What a client hears about one object of one of its requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Who asked.
    pub client: ClientId,
    /// The number that the client gave its request.
    pub request: u64,
    /// The object.
    pub object_id: ObjectId,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of one object of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Create: write here, then seal or abort.
    Created {
        /// Where the object begins, in bytes from the start of the region.
        offset: u64,
    },
    /// Create: there is nothing to write.
    Exists {
        /// False while another client is still writing.
        sealed: bool,
        /// Size of what exists in bytes.
        size: u64,
    },
    /// Get: it is here, pinned until released.
    Ready {
        /// Where the object begins, in bytes from the start of the region.
        offset: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// Get, of a reader that can map files: read this copy; it is pinned until released.
    OnDisk {
        /// The copy.
        url: String,
        /// Size of the object in bytes.
        size: u64,
    },
    /// Wait: it can be read.
    Arrived,
    /// Spill: a copy is here.
    Spilled {
        /// The copy.
        url: String,
    },
    /// It will not come.
    Refused(Refusal),
}

/// Why a request for an object is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Nothing made way, for as long as is waited for that.
    #[error(
        "the object store is full: {requested_bytes} bytes requested, {used_bytes} of {capacity_bytes} in use{holders}"
    )]
    Full {
        /// Size of the object.
        requested_bytes: u64,
        /// Bytes in use.
        used_bytes: u64,
        /// Bytes that there are.
        capacity_bytes: u64,
        /// Who holds most, as text to append.
        holders: String,
    },
    /// Others could make way only by being spilled, and the disk is full.
    #[error("out of disk while spilling to {path}: {requested_bytes} bytes requested{holders}")]
    OutOfDisk {
        /// Where it is spilled to.
        path: String,
        /// Size of the refused object.
        requested_bytes: u64,
        /// Who holds most, as text to append.
        holders: String,
    },
    /// The disk refused to read or write.
    #[error("{cause}")]
    DiskFailed {
        /// What was tried, and what the operating system said.
        cause: String,
    },
    /// The object is gone.
    #[error("{cause}")]
    Lost {
        /// How it was lost.
        cause: String,
    },
    /// There is no such object.
    #[error("there is no such object")]
    NotFound,
    /// The store has no place to spill to.
    #[error("this object store has no place to spill to")]
    CannotSpill,
    /// Too many requests wait.
    #[error("{queue} is full ({capacity} entries)")]
    Overloaded {
        /// Which queue.
        queue: &'static str,
        /// Its length.
        capacity: usize,
    },
}

impl Refusal {
    /// What the caller hears who wanted this object.
    pub fn into_ray_error(self, object_id: ObjectId) -> RayError {
        match self {
            Self::Full { requested_bytes, used_bytes, capacity_bytes, holders } => {
                RayError::ObjectStoreFull { requested_bytes, used_bytes, capacity_bytes, holders }
            }
            Self::OutOfDisk { path, requested_bytes, holders } => {
                RayError::OutOfDisk { path, requested_bytes, holders }
            }
            Self::DiskFailed { cause } => {
                RayError::io(format!("cannot move object {object_id}"), std::io::Error::other(cause))
            }
            Self::Lost { cause } => RayError::ObjectLost { object_id, cause },
            Self::NotFound => crate::not_found(&object_id),
            Self::CannotSpill => RayError::InvalidArgument(self.to_string()),
            Self::Overloaded { queue, capacity } => RayError::Overloaded { queue, capacity },
        }
    }
}

/// Why a spill or a restore ended without success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskFailure {
    /// The disk is full.
    OutOfDisk,
    /// The copy is gone or damaged: reading it again does not help.
    Lost {
        /// What is wrong with it.
        cause: String,
    },
    /// Anything else; trying again may help.
    Failed {
        /// What was tried, and what the operating system said.
        cause: String,
    },
}

/// What a client did that its protocol does not allow. The connection should be closed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Misuse {
    /// It sealed or aborted an object that it is not writing.
    #[error("{client} is not writing object {object_id}")]
    NotWriting {
        /// The client.
        client: ClientId,
        /// The object.
        object_id: ObjectId,
    },
    /// It released more pins than it holds. Those that it held are released.
    #[error("{client} released {released} pins of object {object_id} and held {held}")]
    NotPinned {
        /// The client.
        client: ClientId,
        /// The object.
        object_id: ObjectId,
        /// How many it wanted to release.
        released: u64,
        /// How many it held.
        held: u64,
    },
}
