//! The node's shared objects: the books, the memory, and who is told what.
//!
//! [`ObjectTable`] decides, and for objects of other nodes [`super::pull_table`]; this does what it decides. Answers go to clients as messages and to tokio as
//! values; copies to and from disk are made by tokio, which reports back by commands.

use std::collections::VecDeque;
use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ray_core::config::ObjectStoreConfig;
use ray_core::error::{RayError, RayResult};
use ray_core::id::{NodeId, ObjectId, TaskId, WorkerId};
use ray_core::traits::{ObjectInfo, StoreUsage};
use ray_link::message::{Elsewhere, StoreError};
use ray_link::{FromRaylet, ToRaylet};
use ray_object_store::object_table::{
    self, Answer, DiskFailure, Misuse, ObjectTable, Outcome, Reader, Refusal, TableConfig,
};
use ray_object_store::shm::{ShmRegion, ShmSlice, ShmSliceMut};
use ray_object_store::spill::{SpillBackend, SpillError, local_path};
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error, warn};

use super::effect::ClientId;
use super::handle::{Command, NodeHandle};
use super::pull_table::{Asker, FetchEnd, Origin, PullEffect};
use super::pulls::{Fetch, NodeNews, PullPort};

/// The client that stands for the node itself. No connection has this number.
const NODE: object_table::ClientId = object_table::ClientId(1);
/// The client that writes what is pulled from other nodes.
const PULLS: object_table::ClientId = object_table::ClientId(2);
/// At most so much memory is touched before anyone writes there, in bytes.
const MAX_WARM_AHEAD: u64 = 128 << 20;

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

/// A sealed object that stays where it is as long as this lives.
#[derive(Debug)]
pub(crate) struct PinnedObject {
    // The slice goes first: only then may the range be written again.
    slice: Option<ShmSlice>,
    object_id: ObjectId,
    node: NodeHandle,
}

impl Deref for PinnedObject {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.slice.as_deref().unwrap_or_default()
    }
}

impl AsRef<[u8]> for PinnedObject {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for PinnedObject {
    fn drop(&mut self) {
        drop(self.slice.take());
        self.node.note_drop(StoreDrop::Pin(self.object_id));
    }
}

/// Room for an object that the node itself writes. The object goes with this, wherever this is when it goes,
/// unless the order to seal it was given.
#[derive(Debug)]
pub(crate) struct Room {
    // The slice goes first: only then may the range be written again.
    slice: Option<ShmSliceMut>,
    client: object_table::ClientId,
    object_id: ObjectId,
    node: NodeHandle,
    kept: bool,
}

impl Room {
    /// Writes a part of the object. False if it does not lie in it.
    pub(crate) fn write_at(&mut self, offset: u64, data: &[u8]) -> bool {
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(data.len())?));
        match range.and_then(|range| self.slice.as_mut()?.get_mut(range)) {
            Some(place) => {
                place.copy_from_slice(data);
                true
            }
            None => false,
        }
    }

    /// Writes the object.
    pub(crate) fn fill(mut self, data: &[u8]) -> Self {
        if let Some(mut slice) = self.slice.take() {
            slice.copy_from_slice(data);
        }
        self
    }

    /// Keeps the object, for the order to seal it was given.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        drop(self.slice.take());
        if !self.kept {
            self.node.note_drop(StoreDrop::Write(self.client, self.object_id));
        }
    }
}

/// What the store says that concerns others.
#[derive(Debug)]
pub(crate) enum StoreOutput {
    /// Say this to a client.
    Tell(ClientId, FromRaylet),
    /// Say this to a process, if it is a client of this node.
    TellOwner(WorkerId, FromRaylet),
    /// The result of this task could not be stored.
    ResultLost(TaskId, String),
}

/// What the node itself waits for.
#[derive(Debug)]
enum Pending {
    Create(u64, oneshot::Sender<RayResult<Option<Room>>>),
    Get(oneshot::Sender<RayResult<PinnedObject>>),
    Wait(mpsc::Sender<ObjectId>),
    Spill(mpsc::Sender<RayResult<(ObjectId, String)>>),
    Result(TaskId, Bytes),
}

/// A create of an object that another process is writing: that one may seal it or fail.
#[derive(Debug, Clone, Copy)]
struct Deferred {
    client: object_table::ClientId,
    request: u64,
    object_id: ObjectId,
    size: u64,
    owner: WorkerId,
    copy_of: Option<NodeId>,
}

/// The objects of a node.
pub(crate) struct StorePort {
    table: ObjectTable,
    region: ShmRegion,
    spill: Option<Arc<dyn SpillBackend>>,
    runtime: Handle,
    node: NodeHandle,
    pulls: PullPort,
    /// What is still to be done for pulls.
    pull_effects: VecDeque<PullEffect>,
    /// It is being done.
    in_pull_effects: bool,
    pending: FxHashMap<u64, Pending>,
    /// Sizes and owners of creates of clients under way, in case they are to be tried again.
    creates: FxHashMap<(object_table::ClientId, u64), Deferred>,
    deferred: Vec<Deferred>,
    warming: bool,
}

impl std::fmt::Debug for StorePort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StorePort").field("table", &self.table).finish_non_exhaustive()
    }
}

impl StorePort {
    /// An empty store of `capacity` bytes that spills to `spill`.
    ///
    /// # Errors
    /// If there is no such memory.
    pub(crate) fn new(
        node_id: NodeId,
        capacity: u64,
        settings: &ObjectStoreConfig,
        spill: Option<Arc<dyn SpillBackend>>,
        runtime: Handle,
        node: NodeHandle,
    ) -> RayResult<Self> {
        let region = ShmRegion::create("ray_rust_objects", capacity)?;
        let table = ObjectTable::new(TableConfig {
            capacity_bytes: region.capacity(),
            spill_place: spill.as_ref().map(|spill| spill.place()),
            max_spill_bytes: settings.max_spill_bytes,
            ..TableConfig::default()
        });
        let (pending, creates) = (FxHashMap::default(), FxHashMap::default());
        let (deferred, pull_effects) = (Vec::new(), VecDeque::new());
        // More at once would only wait for room, and keep those waiting who come behind.
        let max_pull_bytes = settings.max_pull_bytes.min(region.capacity() / 2);
        let pulled = ObjectStoreConfig { max_pull_bytes, ..settings.clone() };
        let pulls = PullPort::new(node_id, &pulled, runtime.clone(), node.clone());
        let warming = false;
        Ok(Self {
            table,
            region,
            spill,
            runtime,
            node,
            pulls,
            pull_effects,
            in_pull_effects: false,
            pending,
            creates,
            deferred,
            warming,
        })
    }

    /// The shared memory, for clients to map.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.region.fd()
    }

    /// How full the store is.
    pub(crate) fn usage(&self) -> StoreUsage {
        self.table.usage()
    }

    /// How many objects would be lost with this node.
    pub(crate) fn owned_objects(&self) -> u64 {
        self.table.owned_objects()
    }

    /// Bytes of objects that other nodes have sent.
    pub(crate) const fn received_bytes(&self) -> u64 {
        self.pulls.table.received_bytes()
    }

    /// Size of the shared memory in bytes.
    pub(crate) fn capacity(&self) -> u64 {
        self.region.capacity()
    }

    /// When [`Self::on_tick`] has something to do next, if nothing else happens before.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.table.next_deadline().into_iter().chain(self.pulls.next_deadline()).min()
    }

    /// Does what is due by now.
    pub(crate) fn on_tick(&mut self, now: Instant, out: &mut Vec<StoreOutput>) {
        if self.table.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.step(out, |table, effects| table.on_tick(now, effects));
        }
        if self.pulls.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.pull_step(now, out, |pulls, effects| pulls.table.on_tick(now, effects));
            let mut tells = Vec::new();
            self.pulls.recalls.on_tick(now, &mut tells);
            self.pulls.tell(tells);
        }
    }

    /// The name of a client in errors.
    pub(crate) fn on_client_named(&mut self, client: ClientId, name: String) {
        self.table.on_client_named(object_table::ClientId(client.0), name);
    }

    /// A message about objects; others are ignored.
    pub(crate) fn on_message(
        &mut self,
        now: Instant,
        client: ClientId,
        message: ToRaylet,
        out: &mut Vec<StoreOutput>,
    ) {
        let client = object_table::ClientId(client.0);
        match message {
            ToRaylet::CreateObject { request, object_id, size, owner } => {
                self.create(now, Deferred { client, request, object_id, size, owner, copy_of: None }, out);
            }
            ToRaylet::SealObject { object_id } => {
                self.step(out, |table, effects| complain(table.on_seal(now, client, object_id, effects)));
                self.retry_deferred(now, out);
            }
            ToRaylet::AbortObject { object_id } => {
                self.creates.retain(|_, create| (create.client, create.object_id) != (client, object_id));
                self.deferred.retain(|create| (create.client, create.object_id) != (client, object_id));
                self.step(out, |table, effects| complain(table.on_abort(now, client, object_id, effects)));
                self.retry_deferred(now, out);
            }
            ToRaylet::GetObjects { request, object_ids, elsewhere } => {
                self.step(out, |table, effects| {
                    table.on_get(now, (client, request), &object_ids, Reader::Arena, effects);
                });
                let asker = Asker { client, request };
                self.pull(now, asker, &elsewhere, out);
                self.refuse_unknown(asker, &object_ids, &elsewhere, out);
            }
            ToRaylet::CancelGet { request } => {
                self.step(out, |table, effects| table.on_cancel(now, client, request, effects));
                let asker = Asker { client, request };
                self.pull_step(now, out, |pulls, effects| pulls.table.on_cancelled(now, asker, effects));
            }
            ToRaylet::ReleaseObject { object_id, count } => self.step(out, |table, effects| {
                complain(table.on_release(now, client, object_id, u64::from(count), effects));
            }),
            ToRaylet::DeleteObjects { object_ids } => {
                self.step(out, |table, effects| drop_count(table.on_delete(now, &object_ids, effects)));
            }
            _ => {}
        }
    }

    /// What tokio asks or reports.
    pub(crate) fn on_command(&mut self, now: Instant, command: StoreCommand, out: &mut Vec<StoreOutput>) {
        match command {
            StoreCommand::Create { request, object_id, size, answer } => {
                self.pending.insert(request, Pending::Create(size, answer));
                let (client, owner, copy_of) = (NODE, WorkerId::nil(), None);
                self.create(now, Deferred { client, request, object_id, size, owner, copy_of }, out);
            }
            StoreCommand::Seal { object_id, answer } => {
                self.step(out, |table, effects| complain(table.on_seal(now, NODE, object_id, effects)));
                self.retry_deferred(now, out);
                let _ = answer.send(());
            }
            StoreCommand::Get { request, object_id, reader, answer } => {
                self.pending.insert(request, Pending::Get(answer));
                self.step(out, |table, effects| {
                    table.on_get(now, (NODE, request), &[object_id], reader, effects);
                });
            }
            StoreCommand::Lend { request, object_id, to, answer } => {
                self.lend(now, request, object_id, to, answer, out);
            }
            StoreCommand::Recalled { from, object_ids, answer } => {
                self.step(out, |table, effects| match &object_ids {
                    Some(object_ids) => table.on_recall(now, from, object_ids.iter().copied(), effects),
                    None => table.on_recall_all(now, from, effects),
                });
                self.pull_step(now, out, |pulls, effects| {
                    pulls.table.on_recalled(now, from, object_ids.as_deref(), effects);
                });
                let _ = answer.send(());
            }
            StoreCommand::Fetched { object_id, attempt, offset, end, room } => {
                self.pull_step(now, out, |pulls, effects| {
                    if pulls.table.on_fetched(now, object_id, attempt, offset, end, effects) {
                        pulls.on_fetched(object_id, room);
                    }
                });
            }
            StoreCommand::RecallTold { node_id, taken } => {
                let mut tells = Vec::new();
                self.pulls.recalls.on_told(now, node_id, taken, &mut tells);
                self.pulls.tell(tells);
            }
            StoreCommand::Node(node_id, news) => self.on_node(now, node_id, &news, out),
            StoreCommand::Wait { request, object_ids, arrived } => {
                self.pending.insert(request, Pending::Wait(arrived));
                self.step(out, |table, effects| table.on_wait(now, (NODE, request), &object_ids, effects));
            }
            StoreCommand::Spill { request, object_ids, copies } => {
                self.pending.insert(request, Pending::Spill(copies));
                self.step(out, |table, effects| table.on_spill(now, (NODE, request), &object_ids, effects));
            }
            StoreCommand::Delete { object_id, answer } => {
                let mut deleted = 0;
                self.step(out, |table, effects| deleted = table.on_delete(now, &[object_id], effects));
                let _ = answer.send(deleted > 0);
            }
            StoreCommand::Info { object_id, answer } => {
                let _ = answer.send(self.table.info(&object_id));
            }
            StoreCommand::CountReference { object_id, add, answer } => {
                let mut references = None;
                self.step(out, |table, effects| {
                    references = match add {
                        true => table.on_add_reference(object_id),
                        false => table.on_remove_reference(now, object_id, effects),
                    };
                });
                let _ = answer.send(references);
            }
            StoreCommand::Usage { answer } => {
                let _ = answer.send(self.usage());
            }
            StoreCommand::SpillEnded { object_id, result } => {
                if let (Ok(_), Some(owner)) = (&result, self.table.owner_of(&object_id)) {
                    out.push(StoreOutput::TellOwner(owner, FromRaylet::ObjectSpilled { object_id }));
                }
                self.step(out, |table, effects| match result {
                    Ok(url) => table.on_spill_done(now, object_id, url, effects),
                    Err(failure) => table.on_spill_failed(now, object_id, failure, effects),
                });
            }
            StoreCommand::RestoreEnded { object_id, result } => {
                self.step(out, |table, effects| match result {
                    Ok(()) => table.on_restore_done(now, object_id, effects),
                    Err(failure) => table.on_restore_failed(now, object_id, failure, effects),
                })
            }
            StoreCommand::Warmed(until) => {
                self.warming = false;
                if let Some(until) = until {
                    self.table.on_warmed(until);
                    self.warm_ahead();
                }
            }
            StoreCommand::Dropped(dropped) => self.on_dropped(now, dropped, out),
        }
    }

    fn on_dropped(&mut self, now: Instant, dropped: StoreDrop, out: &mut Vec<StoreOutput>) {
        match dropped {
            StoreDrop::Pin(object_id) => self.step(out, |table, effects| {
                complain(table.on_release(now, NODE, object_id, 1, effects));
            }),
            StoreDrop::Request(request) => {
                if let Some(Pending::Create(..)) = self.pending.remove(&request) {
                    let create = self.creates.remove(&(NODE, request));
                    self.deferred.retain(|other| (other.client, other.request) != (NODE, request));
                    if let Some(create) = create {
                        self.on_dropped(now, StoreDrop::Write(NODE, create.object_id), out);
                    }
                }
                self.step(out, |table, effects| table.on_cancel(now, NODE, request, effects));
            }
            StoreDrop::Write(client, object_id) => self.abort(now, client, object_id, out),
        }
    }

    /// The node itself does not write an object to its end.
    fn abort(
        &mut self,
        now: Instant,
        client: object_table::ClientId,
        object_id: ObjectId,
        out: &mut Vec<StoreOutput>,
    ) {
        self.step(out, |table, effects| {
            // It may have been refused, or be there already.
            if let Err(misuse) = table.on_abort(now, client, object_id, effects) {
                debug!(%misuse, "nothing to abort");
            }
        });
        self.retry_deferred(now, out);
    }

    /// Pulls what a client wants of other nodes' objects, unless it is here.
    fn pull(&mut self, now: Instant, asker: Asker, elsewhere: &[Elsewhere], out: &mut Vec<StoreOutput>) {
        for &Elsewhere { object_id, node_id, size } in elsewhere {
            let is_here = node_id == self.pulls.own() || self.table.contains(&object_id);
            if !is_here && self.table.is_awaited_by(asker.client, asker.request, object_id) {
                let origin = Origin { node_id, size };
                self.pull_step(now, out, |pulls, effects| {
                    pulls.table.on_wanted(now, asker, object_id, origin, effects);
                });
            }
        }
    }

    /// Refuses what a client believes to be here and is not: it has heard of the object only once it was written
    /// here to its end, so it was here, and nobody will write it again.
    fn refuse_unknown(
        &mut self,
        asker: Asker,
        object_ids: &[ObjectId],
        elsewhere: &[Elsewhere],
        out: &mut Vec<StoreOutput>,
    ) {
        let Asker { client, request } = asker;
        let own = self.pulls.own();
        let elsewhere = elsewhere.iter().filter(|other| other.node_id != own);
        let elsewhere: FxHashSet<ObjectId> = elsewhere.map(|other| other.object_id).collect();
        for object_id in object_ids.iter().filter(|id| !elsewhere.contains(id)) {
            if self.table.info(object_id).is_none() {
                let refusal = Refusal::Lost { cause: format!("node {own} does not have it any more") };
                self.step(out, |table, effects| {
                    table.on_unavailable((client, request), *object_id, &refusal, effects);
                });
            }
        }
    }

    /// Reads an object for another node.
    fn lend(
        &mut self,
        now: Instant,
        request: u64,
        object_id: ObjectId,
        to: Option<NodeId>,
        answer: oneshot::Sender<RayResult<PinnedObject>>,
        out: &mut Vec<StoreOutput>,
    ) {
        if let Some(node_id) = to.filter(|&node_id| !self.pulls.table.is_alive(node_id)) {
            // It could not be told when the object goes.
            let peer = format!("node {node_id}");
            let cause = "the node that has the object has not heard of it".to_owned();
            let _ = answer.send(Err(RayError::Unavailable { peer, cause }));
            return;
        }
        self.pending.insert(request, Pending::Get(answer));
        let mut found = false;
        self.step(out, |table, effects| {
            // This process can map the copy of a spilled object, and so needs no room to read it.
            let reader = Reader::ArenaOrFile;
            found = table.on_lend(now, (NODE, request), object_id, reader, to, effects);
        });
        if !found && let Some(Pending::Get(answer)) = self.pending.remove(&request) {
            let _ = answer.send(Err(RayError::NotFound { what: format!("object {object_id}") }));
        }
    }

    fn on_node(&mut self, now: Instant, node_id: NodeId, news: &NodeNews, out: &mut Vec<StoreOutput>) {
        if node_id == self.pulls.own() {
            return;
        }
        match news {
            NodeNews::Alive(address) => {
                if self.pulls.on_address(node_id, address) {
                    self.pull_step(now, out, |pulls, effects| {
                        pulls.table.on_node_alive(now, node_id, effects);
                    });
                }
            }
            NodeNews::Dead(reason) => {
                self.pulls.on_node_lost(node_id);
                self.step(out, |table, effects| table.on_node_lost(now, node_id, effects));
                self.pull_step(now, out, |pulls, effects| {
                    pulls.table.on_node_lost(now, node_id, reason, effects);
                });
            }
        }
    }

    /// Takes a step of the pulls and does what follows from it.
    fn pull_step(
        &mut self,
        now: Instant,
        out: &mut Vec<StoreOutput>,
        step: impl FnOnce(&mut PullPort, &mut Vec<PullEffect>),
    ) {
        let mut effects = Vec::new();
        step(&mut self.pulls, &mut effects);
        self.pull_effects.extend(effects);
        self.run_pull_effects(now, out);
    }

    /// What follows from one effect comes after the others, however many there are.
    fn run_pull_effects(&mut self, now: Instant, out: &mut Vec<StoreOutput>) {
        if std::mem::replace(&mut self.in_pull_effects, true) {
            return;
        }
        while let Some(effect) = self.pull_effects.pop_front() {
            match effect {
                PullEffect::Reserve { object_id, origin: Origin { node_id, size }, attempt } => {
                    let (client, request, owner) = (PULLS, attempt, WorkerId::nil());
                    let copy_of = Some(node_id);
                    self.create(now, Deferred { client, request, object_id, size, owner, copy_of }, out);
                }
                PullEffect::Fetch { object_id, origin, attempt, offset } => {
                    if !self.pulls.fetch(Fetch { object_id, origin, attempt, offset }) {
                        error!(%object_id, "an object that is to be pulled has no room");
                        let (end, mut effects) =
                            (FetchEnd::Broken("its room is gone".to_owned()), Vec::new());
                        let table = &mut self.pulls.table;
                        table.on_fetched(now, object_id, attempt, offset, end, &mut effects);
                        self.pull_effects.extend(effects);
                    }
                }
                PullEffect::Seal { object_id } => {
                    if let Some(room) = self.pulls.take_room(object_id) {
                        // Nobody writes there any more.
                        room.keep();
                        self.step(out, |table, effects| {
                            complain(table.on_seal(now, PULLS, object_id, effects));
                        });
                        self.retry_deferred(now, out);
                    }
                }
                PullEffect::Drop { object_id } => {
                    self.pulls.stop(object_id);
                    // What still waits for room; what has some is given up by whoever has it.
                    self.creates.retain(|_, create| (create.client, create.object_id) != (PULLS, object_id));
                    self.deferred.retain(|create| (create.client, create.object_id) != (PULLS, object_id));
                    self.step(out, |table, effects| table.on_withdraw(now, PULLS, object_id, effects));
                }
                PullEffect::Refuse { asker: Asker { client, request }, object_id, refusal } => {
                    self.step(out, |table, effects| {
                        table.on_unavailable((client, request), object_id, &refusal, effects);
                    });
                }
            }
        }
        self.in_pull_effects = false;
    }

    /// There is room for an object of another node, or it is here, or there is none.
    fn answer_pull(&mut self, answer: Answer) {
        let Answer { request, object_id, outcome, .. } = answer;
        let Some(create) = self.creates.remove(&(PULLS, request)) else { return };
        if matches!(outcome, Outcome::Exists { sealed: false, .. }) {
            // Somebody else writes it, or a pull that was given up is about to let go.
            return self.deferred.push(create);
        }
        let (now, mut effects) = (Instant::now(), Vec::new());
        let mut room = None;
        let outcome = match outcome {
            Outcome::Exists { .. } => {
                self.pulls.table.on_present(now, object_id, request, &mut effects);
                return self.pull_effects.extend(effects);
            }
            Outcome::Created { offset } => match self.region.slice_mut(offset, create.size) {
                Ok(slice) => {
                    let (client, node) = (PULLS, self.node.clone());
                    room = Some(Room { slice: Some(slice), client, object_id, node, kept: false });
                    Ok(())
                }
                Err(error) => Err(Refusal::Lost { cause: error.to_string() }),
            },
            Outcome::Refused(refusal) => Err(refusal),
            _ => return,
        };
        if self.pulls.table.on_room(now, object_id, request, outcome, &mut effects) {
            room.into_iter().for_each(|room| self.pulls.keep_room(object_id, room));
        }
        self.pull_effects.extend(effects);
    }

    /// Stores the result of a task that the node itself called.
    pub(crate) fn put_result(
        &mut self,
        now: Instant,
        task_id: TaskId,
        data: Bytes,
        out: &mut Vec<StoreOutput>,
    ) {
        let object_id = ObjectId::for_return(task_id, 0);
        let (request, size) = (self.node.next_request(), data.len() as u64);
        self.pending.insert(request, Pending::Result(task_id, data));
        let (client, owner, copy_of) = (NODE, WorkerId::nil(), None);
        self.create(now, Deferred { client, request, object_id, size, owner, copy_of }, out);
    }

    /// What this client held is free.
    pub(crate) fn on_client_lost(&mut self, now: Instant, client: ClientId, out: &mut Vec<StoreOutput>) {
        let client = object_table::ClientId(client.0);
        self.creates.retain(|(other, _), _| *other != client);
        self.deferred.retain(|create| create.client != client);
        self.step(out, |table, effects| table.on_client_lost(now, client, effects));
        self.pull_step(now, out, |pulls, effects| pulls.table.on_client_lost(now, client, effects));
        self.retry_deferred(now, out);
    }

    /// Objects go with the process that owned them.
    pub(crate) fn on_owner_lost(&mut self, now: Instant, owner: WorkerId, out: &mut Vec<StoreOutput>) {
        self.step(out, |table, effects| table.on_owner_lost(now, owner, effects));
    }

    fn create(&mut self, now: Instant, create: Deferred, out: &mut Vec<StoreOutput>) {
        let Deferred { client, request, object_id, size, owner, copy_of } = create;
        self.creates.insert((client, request), create);
        self.step(out, |table, effects| match copy_of {
            None => table.on_create(now, (client, request), object_id, size, owner, effects),
            Some(from) => table.on_create_copy(now, (client, request), object_id, size, from, effects),
        });
        self.warm_ahead();
    }

    /// Somebody sealed or gave up an object: those who wanted to write the same try again.
    fn retry_deferred(&mut self, now: Instant, out: &mut Vec<StoreOutput>) {
        for create in std::mem::take(&mut self.deferred) {
            self.create(now, create, out);
        }
    }

    /// Takes a step of the table and does what follows from it.
    fn step(
        &mut self,
        out: &mut Vec<StoreOutput>,
        step: impl FnOnce(&mut ObjectTable, &mut Vec<object_table::Effect>),
    ) {
        let mut effects = Vec::new();
        step(&mut self.table, &mut effects);
        for effect in effects {
            match effect {
                object_table::Effect::Answer(answer) if answer.client == NODE => {
                    self.answer_node(answer, out)
                }
                object_table::Effect::Answer(answer) if answer.client == PULLS => self.answer_pull(answer),
                object_table::Effect::Answer(answer) => self.answer_client(answer, out),
                object_table::Effect::Spill { object_id, offset, size } => {
                    self.spill(object_id, offset, size)
                }
                object_table::Effect::Restore { object_id, url, offset, size } => {
                    self.restore(object_id, url, offset, size);
                }
                object_table::Effect::RemoveSpilled { url } => self.remove_spilled(url),
                object_table::Effect::Recall { object_id, nodes } => {
                    let mut tells = Vec::new();
                    self.pulls.recalls.on_gone(Instant::now(), object_id, &nodes, &mut tells);
                    self.pulls.tell(tells);
                }
            }
        }
        if !self.pull_effects.is_empty() {
            self.run_pull_effects(Instant::now(), out);
        }
    }

    fn answer_client(&mut self, answer: Answer, out: &mut Vec<StoreOutput>) {
        let Answer { client, request, object_id, outcome } = answer;
        let create = self.creates.remove(&(client, request)).filter(|create| create.object_id == object_id);
        let created = |result| FromRaylet::ObjectCreated { request, result };
        let message = match (outcome, create) {
            (Outcome::Exists { sealed: false, .. }, Some(create)) => return self.deferred.push(create),
            (Outcome::Created { offset }, _) => created(Ok(offset)),
            (Outcome::Exists { .. }, _) => created(Err(StoreError::AlreadySealed)),
            (Outcome::Ready { offset, size }, _) => {
                FromRaylet::ObjectReady { request, object_id, offset, size }
            }
            (Outcome::Refused(refusal), Some(_)) => created(Err(store_error(refusal))),
            (Outcome::Refused(refusal), None) => {
                FromRaylet::ObjectUnavailable { request, object_id, error: store_error(refusal) }
            }
            // Clients ask for none of these.
            (Outcome::OnDisk { .. } | Outcome::Arrived | Outcome::Spilled { .. }, _) => return,
        };
        out.push(StoreOutput::Tell(ClientId(client.0), message));
    }

    fn answer_node(&mut self, answer: Answer, out: &mut Vec<StoreOutput>) {
        let Answer { request, object_id, outcome, .. } = answer;
        let create = self.creates.remove(&(NODE, request));
        if let (Outcome::Exists { sealed: false, .. }, Some(create)) = (&outcome, create) {
            return self.deferred.push(create);
        }
        match self.pending.get_mut(&request) {
            Some(Pending::Wait(arrived)) => {
                // Full or closed: whoever waited has enough.
                if matches!(outcome, Outcome::Arrived) && arrived.try_send(object_id).is_err() {
                    self.pending.remove(&request);
                }
                return;
            }
            Some(Pending::Spill(copies)) => {
                let copy = match outcome {
                    Outcome::Spilled { url } => Ok((object_id, url)),
                    Outcome::Refused(refusal) => Err(refusal.into_ray_error(object_id)),
                    _ => return,
                };
                if copies.try_send(copy).is_err() {
                    self.pending.remove(&request);
                }
                return;
            }
            Some(Pending::Create(..) | Pending::Get(_) | Pending::Result(..)) | None => {}
        }
        match self.pending.remove(&request) {
            Some(Pending::Create(size, answer)) => {
                let room = |slice| {
                    let node = self.node.clone();
                    Room { slice: Some(slice), client: NODE, object_id, node, kept: false }
                };
                // If nobody waits any more, the room is dropped, and the object with it.
                drop(answer.send(self.created(object_id, size, outcome).map(|slice| slice.map(room))));
            }
            Some(Pending::Get(answer)) => {
                let copy = match &outcome {
                    Outcome::OnDisk { url, .. } => Some(url.clone()),
                    _ => None,
                };
                let pinned = self.pinned(object_id, outcome);
                if let (Some(url), Err(_)) = (copy, &pinned) {
                    let now = Instant::now();
                    self.step(out, |table, effects| table.on_copy_lost(now, object_id, &url, effects));
                }
                drop(answer.send(pinned));
            }
            Some(Pending::Result(task_id, data)) => {
                self.write_result(object_id, task_id, &data, outcome, out)
            }
            Some(Pending::Wait(_) | Pending::Spill(_)) => {}
            None if matches!(outcome, Outcome::Ready { .. } | Outcome::OnDisk { .. }) => {
                self.node.note_drop(StoreDrop::Pin(object_id));
            }
            None => {}
        }
    }

    fn created(&self, object_id: ObjectId, size: u64, outcome: Outcome) -> RayResult<Option<ShmSliceMut>> {
        match outcome {
            Outcome::Created { offset } => Ok(Some(self.region.slice_mut(offset, size)?)),
            Outcome::Exists { size: other, .. } if other == size => Ok(None),
            Outcome::Refused(refusal) => Err(refusal.into_ray_error(object_id)),
            _ => Err(RayError::AlreadyExists { what: format!("object {object_id}") }),
        }
    }

    fn pinned(&self, object_id: ObjectId, outcome: Outcome) -> RayResult<PinnedObject> {
        match outcome {
            Outcome::Ready { offset, size } => {
                // Made first, so that the pin is given back even if there is no slice.
                let mut pinned = PinnedObject { slice: None, object_id, node: self.node.clone() };
                pinned.slice = Some(self.region.slice(offset, size)?);
                Ok(pinned)
            }
            Outcome::OnDisk { url, size } => {
                let mut pinned = PinnedObject { slice: None, object_id, node: self.node.clone() };
                if size > 0 {
                    let lost = || RayError::ObjectLost { object_id, cause: format!("{url} is no file") };
                    let path = local_path(&url).ok_or_else(lost)?;
                    pinned.slice = Some(ShmRegion::open_spilled(&path, size)?.slice(0, size)?);
                }
                Ok(pinned)
            }
            Outcome::Refused(refusal) => Err(refusal.into_ray_error(object_id)),
            _ => Err(RayError::ObjectLost { object_id, cause: "it cannot be read".to_owned() }),
        }
    }

    fn write_result(
        &mut self,
        object_id: ObjectId,
        task_id: TaskId,
        data: &[u8],
        outcome: Outcome,
        out: &mut Vec<StoreOutput>,
    ) {
        match self.created(object_id, data.len() as u64, outcome) {
            Ok(Some(mut room)) => {
                room.copy_from_slice(data);
                drop(room);
                let now = Instant::now();
                self.step(out, |table, effects| complain(table.on_seal(now, NODE, object_id, effects)));
            }
            Ok(None) => {}
            Err(error) => {
                let reason = format!("its result cannot be stored: {}", error.chain());
                out.push(StoreOutput::ResultLost(task_id, reason));
            }
        }
    }

    fn spill(&self, object_id: ObjectId, offset: u64, size: u64) {
        let slice = self.region.slice(offset, size);
        let (spill, node) = (self.spill.clone(), self.node.clone());
        self.runtime.spawn(async move {
            let result = match (slice, spill) {
                (Ok(slice), Some(spill)) => {
                    spill.write(object_id, slice.into_bytes()).await.map_err(disk_failure)
                }
                (Err(error), _) => Err(DiskFailure::Failed { cause: error.to_string() }),
                (_, None) => Err(DiskFailure::Failed { cause: "there is no place to spill to".to_owned() }),
            };
            node.report(StoreCommand::SpillEnded { object_id, result }).await;
        });
    }

    fn restore(&self, object_id: ObjectId, url: String, offset: u64, size: u64) {
        let slice = self.region.slice_mut(offset, size);
        let (spill, node) = (self.spill.clone(), self.node.clone());
        self.runtime.spawn(async move {
            let result = match (slice, spill) {
                (Ok(slice), Some(spill)) => spill.read_into(&url, slice).await.map_err(disk_failure),
                (Err(error), _) => Err(DiskFailure::Failed { cause: error.to_string() }),
                (_, None) => Err(DiskFailure::Lost { cause: "there is no place to spill to".to_owned() }),
            };
            node.report(StoreCommand::RestoreEnded { object_id, result }).await;
        });
    }

    fn remove_spilled(&self, url: String) {
        let Some(spill) = self.spill.clone() else { return };
        self.runtime.spawn(async move {
            if let Err(error) = spill.remove(&url).await {
                warn!(%error, "a spilled object stays on disk");
            }
        });
    }

    /// Touches memory before it is written, which makes the first write there many times faster. As much
    /// ahead as is in use: a node that stores nothing takes no memory.
    fn warm_ahead(&mut self) {
        let ahead = self.table.arena().used().min(MAX_WARM_AHEAD);
        if self.warming || ahead == 0 {
            return;
        }
        let Some(range) = self.table.arena().cold_ahead(ahead) else { return };
        self.warming = true;
        let (region, node, until) = (self.region.clone(), self.node.clone(), range.end);
        self.runtime.spawn(async move {
            let warmed = tokio::task::spawn_blocking(move || region.pre_fault(range)).await;
            let until = matches!(warmed, Ok(Ok(()))).then_some(until);
            if until.is_none() {
                debug!("memory cannot be touched ahead");
                // Not at once again: it will not go better.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            node.report(StoreCommand::Warmed(until)).await;
        });
    }
}

impl Drop for StorePort {
    fn drop(&mut self) {
        if let Some(spill) = &self.spill {
            self.table.spilled_urls().for_each(|url| spill.remove_now(url));
        }
    }
}

impl NodeHandle {
    /// Reports the end of something that the store began.
    async fn report(&self, command: StoreCommand) {
        // It fails when the node has ended.
        drop(self.send(Command::Store(command)).await);
    }
}

/// A client that does what it must not harms nobody but itself.
fn complain(result: Result<(), Misuse>) {
    if let Err(misuse) = result {
        warn!(%misuse, "a client of the object store breaks its rules");
    }
}

const fn drop_count(_deleted: usize) {}

fn disk_failure(error: SpillError) -> DiskFailure {
    match error {
        SpillError::OutOfDisk { .. } => DiskFailure::OutOfDisk,
        SpillError::Lost { .. } => DiskFailure::Lost { cause: error.to_string() },
        SpillError::Io { .. } => {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            DiskFailure::Failed { cause: format!("{error}: {source}") }
        }
    }
}

fn store_error(refusal: Refusal) -> StoreError {
    match refusal {
        Refusal::Full { requested_bytes, used_bytes, capacity_bytes, holders } => {
            StoreError::Full { requested_bytes, used_bytes, capacity_bytes, holders }
        }
        Refusal::OutOfDisk { path, requested_bytes, holders } => {
            StoreError::OutOfDisk { path, requested_bytes, holders }
        }
        other => StoreError::Lost { cause: other.to_string() },
    }
}
