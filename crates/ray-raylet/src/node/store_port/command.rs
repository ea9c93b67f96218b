//! What tokio asks of the node's objects, and what it reports of them.

use ray_core::error::RayResult;
use ray_core::id::{NodeId, ObjectId};
use ray_core::traits::{ObjectInfo, StoreUsage};
use ray_object_store::object_table::{self, DiskFailure, Reader};
use tokio::sync::{mpsc, oneshot};

use super::super::pull_table::FetchEnd;
use super::super::pulls::NodeNews;
use super::held::{PinnedObject, Room};

/// What tokio asks of the objects. Requests carry a number by which they can be cancelled.
#[derive(Debug)]
pub(crate) enum StoreCommand {
    /// Room to write an object; nothing if it is there already.
    Create { request: u64, object_id: ObjectId, size: u64, answer: oneshot::Sender<RayResult<Option<Room>>> },
    /// The object is written.
    Seal { object_id: ObjectId, answer: oneshot::Sender<()> },
    /// The object, pinned.
    Get {
        request: u64,
        object_id: ObjectId,
        reader: Reader,
        answer: oneshot::Sender<RayResult<PinnedObject>>,
    },
    /// The object, pinned, for another node that keeps a copy of it. Nobody waits for one that is not there.
    Lend {
        request: u64,
        object_id: ObjectId,
        to: Option<NodeId>,
        answer: oneshot::Sender<RayResult<PinnedObject>>,
    },
    /// Objects of this node are gone, all if none are listed: copies of them have to go, too.
    Recalled { from: NodeId, object_ids: Option<Vec<ObjectId>>, answer: oneshot::Sender<()> },
    /// An attempt to fetch an object of another node has ended, with so many bytes in its room.
    Fetched { object_id: ObjectId, attempt: u64, offset: u64, end: FetchEnd, room: Room },
    /// A node was told to drop copies.
    RecallTold { node_id: NodeId, taken: bool },
    /// What is known of another node.
    Node(NodeId, NodeNews),
    /// Tell each object that can be read. The channel has room for all.
    Wait { request: u64, object_ids: Vec<ObjectId>, arrived: mpsc::Sender<ObjectId> },
    /// Copy objects to disk and tell where. The channel has room for all.
    Spill { request: u64, object_ids: Vec<ObjectId>, copies: mpsc::Sender<RayResult<(ObjectId, String)>> },
    /// Forget an object; answered with whether it was there.
    Delete { object_id: ObjectId, answer: oneshot::Sender<bool> },
    /// What is known about an object?
    Info { object_id: ObjectId, answer: oneshot::Sender<Option<ObjectInfo>> },
    /// Add a reference, or take one away; answered with how many there are.
    CountReference { object_id: ObjectId, add: bool, answer: oneshot::Sender<Option<u64>> },
    /// How full is the store?
    Usage { answer: oneshot::Sender<StoreUsage> },
    /// A copy to disk has ended.
    SpillEnded { object_id: ObjectId, result: Result<String, DiskFailure> },
    /// A copy from disk has ended.
    RestoreEnded { object_id: ObjectId, result: Result<(), DiskFailure> },
    /// Memory before this offset was touched.
    Warmed(Option<u64>),
    /// Whoever asked went away.
    Dropped(StoreDrop),
}

/// What somebody on tokio has let go.
#[derive(Debug)]
pub(crate) enum StoreDrop {
    /// It reads the object no more.
    Pin(ObjectId),
    /// It waits for the answer no more.
    Request(u64),
    /// This client does not write the object to its end.
    Write(object_table::ClientId, ObjectId),
}
