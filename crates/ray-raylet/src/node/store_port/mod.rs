//! The node's shared objects: the books, the memory, and who is told what.
//!
//! [`ObjectTable`] decides, and for objects of other nodes `pull_table`; this does what it decides. Answers go to clients as
//! messages and to tokio as values.

mod command;
mod creates;
mod disk;
mod held;
mod pulling;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ray_core::config::ObjectStoreConfig;
use ray_core::error::{RayError, RayResult};
use ray_core::id::{NodeId, ObjectId, TaskId, WorkerId};
use ray_core::traits::StoreUsage;
use ray_link::message::StoreError;
use ray_link::{FromRaylet, ToRaylet};
use ray_object_store::object_table::{
    self, Answer, Misuse, ObjectTable, Outcome, Reader, Refusal, TableConfig,
};
use ray_object_store::shm::{ShmRegion, ShmSliceMut};
use ray_object_store::spill::{SpillBackend, local_path};
use rustc_hash::FxHashMap;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

pub(crate) use self::command::{StoreCommand, StoreDrop};
use self::creates::{Create, Creates};
use self::disk::Disk;
pub(crate) use self::held::{PinnedObject, Room};
use super::effect::ClientId;
use super::handle::{Command, NodeHandle};
use super::pull_table::{Asker, PullEffect};
use super::pulls::PullPort;

/// The client that stands for the node itself. No connection has this number.
const NODE: object_table::ClientId = object_table::ClientId(1);
/// The client that writes what is pulled from other nodes.
const PULLS: object_table::ClientId = object_table::ClientId(2);
/// At most so much memory is touched before anyone writes there, in bytes.
const MAX_WARM_AHEAD: u64 = 128 << 20;

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

/// The objects of a node.
pub(crate) struct StorePort {
    table: ObjectTable,
    region: ShmRegion,
    disk: Disk,
    runtime: Handle,
    node: NodeHandle,
    pulls: PullPort,
    /// What is still to be done for pulls.
    pull_effects: VecDeque<PullEffect>,
    /// It is being done.
    in_pull_effects: bool,
    pending: FxHashMap<u64, Pending>,
    creates: Creates,
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
        let disk = Disk::new(spill, runtime.clone(), node.clone());
        let table = ObjectTable::new(TableConfig {
            capacity_bytes: region.capacity(),
            spill_place: disk.place(),
            max_spill_bytes: settings.max_spill_bytes,
            ..TableConfig::default()
        });
        // More at once would only wait for room, and keep those waiting who come behind.
        let max_pull_bytes = settings.max_pull_bytes.min(region.capacity() / 2);
        let pulled = ObjectStoreConfig { max_pull_bytes, ..settings.clone() };
        let pulls = PullPort::new(node_id, &pulled, runtime.clone(), node.clone());
        Ok(Self {
            table,
            region,
            disk,
            runtime,
            node,
            pulls,
            pull_effects: VecDeque::new(),
            in_pull_effects: false,
            pending: FxHashMap::default(),
            creates: Creates::default(),
            warming: false,
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
                self.create(now, Create { client, request, object_id, size, owner, copy_of: None }, out);
            }
            ToRaylet::SealObject { object_id } => {
                self.step(out, |table, effects| complain(table.on_seal(now, client, object_id, effects)));
                self.retry_deferred(now, out);
            }
            ToRaylet::AbortObject { object_id } => {
                self.creates.forget_object(client, object_id);
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
                self.create(now, Create { client, request, object_id, size, owner, copy_of }, out);
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
                if let Some(Pending::Create(..)) = self.pending.remove(&request)
                    && let Some(create) = self.creates.forget_request(NODE, request)
                {
                    self.on_dropped(now, StoreDrop::Write(NODE, create.object_id), out);
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
        self.create(now, Create { client, request, object_id, size, owner, copy_of }, out);
    }

    /// What this client held is free.
    pub(crate) fn on_client_lost(&mut self, now: Instant, client: ClientId, out: &mut Vec<StoreOutput>) {
        let client = object_table::ClientId(client.0);
        self.creates.forget_client(client);
        self.step(out, |table, effects| table.on_client_lost(now, client, effects));
        self.pull_step(now, out, |pulls, effects| pulls.table.on_client_lost(now, client, effects));
        self.retry_deferred(now, out);
    }

    /// Objects go with the process that owned them.
    pub(crate) fn on_owner_lost(&mut self, now: Instant, owner: WorkerId, out: &mut Vec<StoreOutput>) {
        self.step(out, |table, effects| table.on_owner_lost(now, owner, effects));
    }

    fn create(&mut self, now: Instant, create: Create, out: &mut Vec<StoreOutput>) {
        let Create { client, request, object_id, size, owner, copy_of } = create;
        self.creates.begin(create);
        self.step(out, |table, effects| match copy_of {
            None => table.on_create(now, (client, request), object_id, size, owner, effects),
            Some(from) => table.on_create_copy(now, (client, request), object_id, size, from, effects),
        });
        self.warm_ahead();
    }

    /// Somebody sealed or gave up an object: those who wanted to write the same try again.
    fn retry_deferred(&mut self, now: Instant, out: &mut Vec<StoreOutput>) {
        for create in self.creates.take_deferred() {
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
                    self.disk.spill(object_id, self.region.slice(offset, size));
                }
                object_table::Effect::Restore { object_id, url, offset, size } => {
                    self.disk.restore(object_id, url, self.region.slice_mut(offset, size));
                }
                object_table::Effect::RemoveSpilled { url } => self.disk.remove(url),
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
        let create = self.creates.end(client, request).filter(|create| create.object_id == object_id);
        let created = |result| FromRaylet::ObjectCreated { request, result };
        let message = match (outcome, create) {
            (Outcome::Exists { sealed: false, .. }, Some(create)) => return self.creates.defer(create),
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
        let create = self.creates.end(NODE, request);
        if let (Outcome::Exists { sealed: false, .. }, Some(create)) = (&outcome, create) {
            return self.creates.defer(create);
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
                let room = |slice| Room::new(slice, NODE, object_id, self.node.clone());
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
                let pinned = PinnedObject::new(object_id, self.node.clone());
                Ok(pinned.with_bytes(self.region.slice(offset, size)?))
            }
            Outcome::OnDisk { url, size } => {
                let pinned = PinnedObject::new(object_id, self.node.clone());
                if size == 0 {
                    return Ok(pinned);
                }
                let lost = || RayError::ObjectLost { object_id, cause: format!("{url} is no file") };
                let path = local_path(&url).ok_or_else(lost)?;
                Ok(pinned.with_bytes(ShmRegion::open_spilled(&path, size)?.slice(0, size)?))
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
        self.disk.remove_now(self.table.spilled_urls());
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
