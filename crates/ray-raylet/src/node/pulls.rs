//! Objects that come from other nodes, and copies that others are told to drop.
//!
//! [`PullTable`] and [`RecallTable`] decide; this makes the calls, on tokio, and writes what comes straight into the
//! room that the object has in shared memory.

use std::time::{Duration, Instant};

use ray_core::config::ObjectStoreConfig;
use ray_core::id::{NodeId, ObjectId};
use ray_core::pb::raylet as pb;
use ray_core::pb::raylet::raylet_service_client::RayletServiceClient;
use rustc_hash::FxHashMap;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tracing::{debug, warn};

use super::handle::{Command, NodeHandle};
use super::pull_table::{FetchEnd, Origin, PullConfig, PullTable};
use super::recall_table::{RecallTable, Recalled, Tell};
use super::store_port::{Room, StoreCommand};

/// The first and the longest pause before another node is asked again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How long nothing of an object may come before it is asked for again.
const SILENCE: Duration = Duration::from_secs(10);
/// How long a connection to another node may take, and a call that moves no object.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Objects that are listed for a node that has to drop its copies.
const MAX_LISTED: usize = 10_000;
/// Bytes that may be under way to this node: on one stream, and on all of a connection.
const WINDOWS: (u32, u32) = (4 << 20, 16 << 20);

/// What other nodes this one has heard of.
#[derive(Debug)]
pub(crate) enum NodeNews {
    /// It lives, and is called at this address.
    Alive(String),
    /// It is dead, for this reason.
    Dead(String),
}

/// One attempt to fetch an object.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fetch {
    pub(super) object_id: ObjectId,
    pub(super) origin: Origin,
    pub(super) attempt: u64,
    pub(super) offset: u64,
}

/// What is under way between this node and others.
#[derive(Debug)]
pub(super) struct PullPort {
    own: NodeId,
    pub(super) table: PullTable,
    pub(super) recalls: RecallTable,
    channels: FxHashMap<NodeId, Channel>,
    /// Rooms of objects that are not being fetched right now.
    rooms: FxHashMap<ObjectId, Room>,
    fetches: FxHashMap<ObjectId, AbortHandle>,
    runtime: Handle,
    node: NodeHandle,
}

impl PullPort {
    pub(super) fn new(own: NodeId, settings: &ObjectStoreConfig, runtime: Handle, node: NodeHandle) -> Self {
        let config = PullConfig {
            max_pulls: settings.max_pulls,
            max_bytes: settings.max_pull_bytes,
            patience: Duration::from_millis(settings.pull_patience_ms),
            pauses: PAUSES,
        };
        Self {
            own,
            table: PullTable::new(config),
            recalls: RecallTable::new(MAX_LISTED, PAUSES),
            channels: FxHashMap::default(),
            rooms: FxHashMap::default(),
            fetches: FxHashMap::default(),
            runtime,
            node,
        }
    }

    /// This node.
    pub(super) const fn own(&self) -> NodeId {
        self.own
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.table.next_deadline().into_iter().chain(self.recalls.next_deadline()).min()
    }

    /// Connects to a node that is called at this address, when there is something to say. False if that is no address.
    pub(super) fn on_address(&mut self, node_id: NodeId, address: &str) -> bool {
        if self.channels.contains_key(&node_id) {
            return true;
        }
        match Endpoint::from_shared(format!("http://{address}")) {
            Ok(endpoint) => {
                let endpoint = endpoint
                    .connect_timeout(CALL_LIMIT)
                    .tcp_nodelay(true)
                    .initial_stream_window_size(WINDOWS.0)
                    .initial_connection_window_size(WINDOWS.1);
                // Lazy connections need a runtime when they are made.
                let _entered = self.runtime.enter();
                self.channels.insert(node_id, endpoint.connect_lazy());
                true
            }
            Err(error) => {
                warn!(%node_id, address, %error, "a node cannot be called");
                false
            }
        }
    }

    pub(super) fn on_node_lost(&mut self, node_id: NodeId) {
        self.channels.remove(&node_id);
        self.recalls.on_node_lost(node_id);
    }

    /// There is room for an object.
    pub(super) fn keep_room(&mut self, object_id: ObjectId, room: Room) {
        self.rooms.insert(object_id, room);
    }

    /// The room of an object that is not being fetched.
    pub(super) fn take_room(&mut self, object_id: ObjectId) -> Option<Room> {
        self.rooms.remove(&object_id)
    }

    /// Stops what is under way for an object, and gives its room up, wherever it is.
    pub(super) fn stop(&mut self, object_id: ObjectId) {
        if let Some(fetch) = self.fetches.remove(&object_id) {
            fetch.abort();
        }
        self.rooms.remove(&object_id);
    }

    /// Begins an attempt, at whose end the room comes back. False if the object has no room.
    pub(super) fn fetch(&mut self, fetch: Fetch) -> bool {
        let Fetch { object_id, origin, attempt, offset } = fetch;
        let Some(mut room) = self.rooms.remove(&object_id) else { return false };
        let (channel, node, own) = (self.channels.get(&origin.node_id).cloned(), self.node.clone(), self.own);
        let task = self.runtime.spawn(async move {
            let (offset, end) = match channel {
                Some(channel) => read_object(channel, own, fetch, &mut room).await,
                None => (offset, FetchEnd::Broken("it cannot be called".to_owned())),
            };
            debug!(%object_id, from = %origin.node_id, offset, ?end, "an attempt to pull an object has ended");
            let command = StoreCommand::Fetched { object_id, attempt, offset, end, room };
            // It fails when this node has ended.
            drop(node.send(Command::Store(command)).await);
        });
        self.fetches.insert(object_id, task.abort_handle());
        true
    }

    /// An attempt has ended: its room is kept until the next one.
    pub(super) fn on_fetched(&mut self, object_id: ObjectId, room: Room) {
        self.fetches.remove(&object_id);
        self.rooms.insert(object_id, room);
    }

    /// Tells nodes to drop copies.
    pub(super) fn tell(&self, tells: Vec<Tell>) {
        for Tell { node_id, recalled } in tells {
            let (channel, node, own) = (self.channels.get(&node_id).cloned(), self.node.clone(), self.own);
            self.runtime.spawn(async move {
                let told = match channel {
                    Some(channel) => recall(channel, own, recalled).await,
                    None => Err(Status::unavailable("it cannot be called")),
                };
                if let Err(error) = &told {
                    debug!(%node_id, %error, "a node was not told to drop copies: trying again");
                }
                let command = StoreCommand::RecallTold { node_id, taken: told.is_ok() };
                drop(node.send(Command::Store(command)).await);
            });
        }
    }
}

async fn recall(channel: Channel, own: NodeId, recalled: Recalled) -> Result<(), Status> {
    let (object_ids, all) = match recalled {
        Recalled::Some(objects) => (objects.iter().map(ObjectId::to_binary).collect(), false),
        Recalled::All => (Vec::new(), true),
    };
    let message = pb::RecallObjectsRequest { node_id: own.to_binary(), object_ids, all };
    let mut request = Request::new(message);
    request.set_timeout(CALL_LIMIT);
    RayletServiceClient::new(channel).recall_objects(request).await.map(drop)
}

/// Writes what comes of an object into its room. Returns how far it came, and how it ended.
async fn read_object(channel: Channel, own: NodeId, fetch: Fetch, room: &mut Room) -> (u64, FetchEnd) {
    let Fetch { object_id, origin, mut offset, .. } = fetch;
    let broken = |cause: String| FetchEnd::Broken(cause);
    let silent = || broken(format!("nothing came for {} s", SILENCE.as_secs()));
    let request =
        pb::TransferObjectRequest { object_id: object_id.to_binary(), offset, node_id: own.to_binary() };
    let mut client = RayletServiceClient::new(channel);
    let mut chunks = match tokio::time::timeout(SILENCE, client.transfer_object(request)).await {
        Ok(Ok(reply)) => reply.into_inner(),
        Ok(Err(status)) => return (offset, end_of(&status)),
        Err(_) => return (offset, silent()),
    };
    loop {
        let chunk = match tokio::time::timeout(SILENCE, chunks.message()).await {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None)) => return (offset, broken(format!("it sent {offset} of {} bytes", origin.size))),
            Ok(Err(status)) => return (offset, end_of(&status)),
            Err(_) => return (offset, silent()),
        };
        if chunk.total_bytes != origin.size || chunk.offset != offset || !room.write_at(offset, &chunk.data) {
            let (at, len, total) = (chunk.offset, chunk.data.len(), chunk.total_bytes);
            let expected = format!("instead of what follows byte {offset} of {}", origin.size);
            return (offset, broken(format!("it sent {len} bytes at {at} of {total} {expected}")));
        }
        offset += chunk.data.len() as u64;
        if offset == origin.size {
            return (offset, FetchEnd::Complete);
        }
    }
}

fn end_of(status: &Status) -> FetchEnd {
    match status.code() {
        Code::NotFound => FetchEnd::Missing,
        code => FetchEnd::Broken(format!("{code}: {}", status.message())),
    }
}
