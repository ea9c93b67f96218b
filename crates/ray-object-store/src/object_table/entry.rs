//! One object of the table.

use ray_core::id::{NodeId, WorkerId};

use super::answer::ClientId;

/// Where an object's data is; drawn in the documentation of [the table](super).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Being written by its creator.
    Writing { offset: u64, writer: ClientId },
    /// Sealed, in memory only.
    Memory { offset: u64 },
    /// In memory, on its way to disk.
    Spilling { offset: u64 },
    /// In memory and on disk.
    Both { offset: u64, url: String },
    /// On disk only.
    Disk { url: String },
    /// On disk, on its way to memory.
    Restoring { offset: u64, url: String },
}

impl Place {
    /// Which range the object takes up.
    pub(super) fn offset(&self) -> Option<u64> {
        match self {
            Self::Writing { offset, .. }
            | Self::Memory { offset }
            | Self::Spilling { offset }
            | Self::Both { offset, .. }
            | Self::Restoring { offset, .. } => Some(*offset),
            Self::Disk { .. } => None,
        }
    }

    /// Where its bytes can be read in memory now.
    pub(super) fn readable_offset(&self) -> Option<u64> {
        match self {
            Self::Memory { offset } | Self::Spilling { offset } | Self::Both { offset, .. } => Some(*offset),
            Self::Writing { .. } | Self::Restoring { .. } | Self::Disk { .. } => None,
        }
    }

    /// Where its copy on disk is.
    pub(super) fn url(&self) -> Option<&str> {
        match self {
            Self::Both { url, .. } | Self::Disk { url } | Self::Restoring { url, .. } => Some(url),
            Self::Writing { .. } | Self::Memory { .. } | Self::Spilling { .. } => None,
        }
    }

    /// Whether its range is being read or written by someone who does not hold a pin.
    pub(super) fn is_busy(&self) -> bool {
        match self {
            Self::Writing { .. } | Self::Spilling { .. } | Self::Restoring { .. } => true,
            Self::Memory { .. } | Self::Both { .. } | Self::Disk { .. } => false,
        }
    }

    pub(super) fn is_sealed(&self) -> bool {
        !matches!(self, Self::Writing { .. })
    }
}

/// What can be done with an unpinned object to make room, in the order in which it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// Nobody refers to it: it is dropped.
    Garbage,
    /// Another node has it: it is dropped.
    Copy,
    /// It lies on disk too: its memory is dropped.
    Clean,
    /// It can be spilled.
    Dirty,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) size: u64,
    pub(super) owner: WorkerId,
    /// The node that it was pulled from, if it is a copy.
    pub(super) copy_of: Option<NodeId>,
    /// At 0 the object goes when its space is needed.
    pub(super) references: u64,
    /// Its owner has deleted it: it goes as soon as nobody uses it.
    pub(super) is_doomed: bool,
    /// The pins of all clients.
    pub(super) pins: u64,
    pub(super) place: Place,
    /// Its key among the candidates for making room, if it is one.
    pub(super) candidate: Option<(Rank, u64)>,
}

impl Entry {
    /// Whether it is a copy, written to its end, of an object of this node.
    pub(super) fn is_copy_of(&self, node_id: NodeId) -> bool {
        self.copy_of == Some(node_id) && self.place.is_sealed()
    }

    pub(super) fn rank(&self) -> Option<Rank> {
        match self.place {
            _ if self.pins > 0 || self.is_doomed => None,
            Place::Memory { .. } | Place::Both { .. } if self.references == 0 => Some(Rank::Garbage),
            Place::Memory { .. } if self.copy_of.is_some() => Some(Rank::Copy),
            Place::Both { .. } => Some(Rank::Clean),
            Place::Memory { .. } => Some(Rank::Dirty),
            Place::Writing { .. } | Place::Spilling { .. } | Place::Disk { .. } | Place::Restoring { .. } => {
                None
            }
        }
    }
}
