//! The books of a node's shared-memory store: who writes, reads and waits for which object, and what
//! makes way when memory is short. A pure machine.
//!
//! ```text
//!           create            seal           spill              done            space needed
//!  (none) ---------> Writing ------> Memory -------> Spilling --------> Both ----------------> Disk
//!                       |              ^                 |               ^                      |
//!        abort, client  |              +---- failed -----+               |  done           get  |
//!        lost: (none) <-+                                                +------- Restoring <---+
//! ```
//!
//! An object lives until it is deleted, or, with no references, until its space is needed. A pin keeps
//! its range as it is; the end of a client releases its pins and drops what it was writing. A deleted
//! object's range is given back when the last pin goes and no file I/O is on its way.
//!
//! # Room
//! Creates that do not fit wait in a queue, first come first served, and restores in another one that is
//! served before it. Space comes from, in this order: free ranges; unpinned objects that nobody refers to;
//! unpinned copies of other nodes' objects; memory of unpinned objects that also lie on disk (a spilled object's file is kept after a restore, so
//! that this costs nothing); unpinned objects that are spilled first, least recently used first.
//!
//! # Why nothing waits for ever
//! A spill waits for the disk alone: it needs no memory, no pin and no other request, so every spill
//! ends. While file I/O is under way the queue waits for it. When none is and the head of the queue still
//! does not fit, only a client can help, by releasing or sealing something. That client might itself be waiting
//! here, so the head waits at most [`TableConfig::full_grace`] for it, and is then refused, once, with
//! those named who hold most. When a spill fails the head is refused at once.
//!
//! A restore never depends on a spill if its reader can map a file ([`Reader::ArenaOrFile`]): if
//! free, garbage and clean memory do not suffice, or others wait for memory, the reader gets the file itself,
//! without waiting for anything. A reader that cannot ([`Reader::Arena`]) waits as a create does.

mod answer;
#[cfg(test)]
mod check;
mod copies;
mod entry;
#[cfg(test)]
mod programs;
mod space;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use ray_core::id::{NodeId, ObjectId, WorkerId};
use ray_core::traits::{ObjectInfo, StoreUsage};
use rustc_hash::FxHashMap;

pub use self::answer::{Answer, ClientId, DiskFailure, Effect, Misuse, Outcome, Refusal};
use self::entry::{Entry, Place, Rank};
use self::space::{WaitingCreate, WaitingRestore};
pub use self::waiting::Reader;
use self::waiting::{Waiter, Want};
use crate::arena::Arena;

/// Settings of an [`ObjectTable`].
#[derive(Debug, Clone)]
pub struct TableConfig {
    /// Bytes of the region.
    pub capacity_bytes: u64,
    /// Where objects are spilled to, as people read it. `None`: they are not.
    pub spill_place: Option<String>,
    /// Bytes that spilled objects may take up on disk; 0 for as many as fit.
    pub max_spill_bytes: u64,
    /// How long a request waits for clients to make room, when nothing else can.
    pub full_grace: Duration,
    /// How many creates, and how many restores, may wait for room.
    pub max_waiting: usize,
    /// How many objects clients may wait for, all clients together.
    pub max_waiters: usize,
}

impl Default for TableConfig {
    fn default() -> Self {
        Self {
            capacity_bytes: 0,
            spill_place: None,
            max_spill_bytes: 0,
            // As long as Ray waits before it says that it is out of memory.
            full_grace: Duration::from_secs(2),
            max_waiting: 4096,
            max_waiters: 1 << 20,
        }
    }
}

#[derive(Debug, Default)]
struct Client {
    /// What people call it; empty: its number.
    name: String,
    pins: BTreeMap<ObjectId, u64>,
    writing: BTreeSet<ObjectId>,
    /// What it waits for, by request.
    waiting: BTreeSet<(u64, ObjectId)>,
}

/// The books of a shared-memory store; see the module's documentation.
///
/// Every event is a method that appends what is to be done to `out`.
#[derive(Debug)]
pub struct ObjectTable {
    config: TableConfig,
    arena: Arena,
    entries: FxHashMap<ObjectId, Entry>,
    clients: FxHashMap<ClientId, Client>,
    /// The objects by owner, those with a living owner only.
    owned: FxHashMap<WorkerId, BTreeSet<ObjectId>>,
    /// The nodes that have pulled an object from here.
    lent: FxHashMap<ObjectId, BTreeSet<NodeId>>,
    waiters: FxHashMap<ObjectId, Vec<Waiter>>,
    waiter_count: usize,
    /// What can make way: by rank, then least recently used first.
    candidates: BTreeSet<(Rank, u64, ObjectId)>,
    /// Bytes of the arena that garbage and clean candidates take up.
    droppable: u64,
    /// Goes up with each use of an object.
    clock: u64,
    creates: VecDeque<WaitingCreate>,
    restores: VecDeque<WaitingRestore>,
    /// Footprint of what is being spilled, in bytes.
    spilling: u64,
    /// Spills and restores under way.
    disk_jobs: usize,
    /// Bytes on disk, with those on their way there.
    spilled: u64,
    /// A spill failed since the last request was refused for it.
    spill_failure: Option<DiskFailure>,
}

impl ObjectTable {
    /// An empty table.
    pub fn new(config: TableConfig) -> Self {
        Self {
            arena: Arena::new(config.capacity_bytes),
            config,
            entries: FxHashMap::default(),
            clients: FxHashMap::default(),
            owned: FxHashMap::default(),
            lent: FxHashMap::default(),
            waiters: FxHashMap::default(),
            waiter_count: 0,
            candidates: BTreeSet::new(),
            droppable: 0,
            clock: 0,
            creates: VecDeque::new(),
            restores: VecDeque::new(),
            spilling: 0,
            disk_jobs: 0,
            spilled: 0,
            spill_failure: None,
        }
    }

    /// A client is called `name` in errors, for example "worker 4711". Clients that are not
    /// introduced are called by their number.
    pub fn on_client_named(&mut self, client: ClientId, name: impl Into<String>) {
        self.clients.entry(client).or_default().name = name.into();
    }

    /// A client wants to write an object; the answer is `Created`, `Exists` or `Refused`.
    ///
    /// The object has one reference. It ends with its `owner`; nil for one without an owner. An object that
    /// was deleted and is still read is taken up again, since the same id always names the same bytes; so is
    /// a copy, which is one no longer.
    pub fn on_create(
        &mut self,
        now: Instant,
        (client, request): (ClientId, u64),
        object_id: ObjectId,
        size: u64,
        owner: WorkerId,
        out: &mut Vec<Effect>,
    ) {
        let deadline = now + self.config.full_grace;
        let create = WaitingCreate { client, request, object_id, size, owner, copy_of: None, deadline };
        self.on_wanted_room(now, create, out);
    }

    fn on_wanted_room(&mut self, now: Instant, create: WaitingCreate, out: &mut Vec<Effect>) {
        let size = create.size;
        if let Some(outcome) = self.readmit(&create) {
            create.answer(outcome, out);
        } else if size > self.arena.capacity() {
            // However long it waited, this would not fit.
            create.answer(Outcome::Refused(self.full(size)), out);
        } else if !self.creates.is_empty() && self.creates.len() >= self.config.max_waiting {
            let refusal =
                Refusal::Overloaded { queue: "the object store's queue", capacity: self.config.max_waiting };
            create.answer(Outcome::Refused(refusal), out);
        } else {
            self.creates.push_back(create);
            self.make_progress(now, out);
        }
    }

    /// The client has written the object to its end.
    ///
    /// # Errors
    /// [`Misuse::NotWriting`].
    pub fn on_seal(
        &mut self,
        now: Instant,
        client: ClientId,
        object_id: ObjectId,
        out: &mut Vec<Effect>,
    ) -> Result<(), Misuse> {
        let offset = self.written_by(client, object_id)?;
        self.end_writing(client, object_id, Place::Memory { offset });
        self.serve_waiters(object_id, out);
        self.settle(object_id, out);
        self.make_progress(now, out);
        Ok(())
    }

    /// The client will not write the object, or not to its end; a create that still waits for room is
    /// withdrawn, without an answer. Who waits to read what was begun is refused.
    ///
    /// # Errors
    /// [`Misuse::NotWriting`], also if it did not even wait for room.
    pub fn on_abort(
        &mut self,
        now: Instant,
        client: ClientId,
        object_id: ObjectId,
        out: &mut Vec<Effect>,
    ) -> Result<(), Misuse> {
        let written = self.written_by(client, object_id);
        let waiting = self.creates.len();
        match written {
            Ok(_) => self.drop_unsealed(client, object_id, "its writer gave up", out),
            Err(_) => self.creates.retain(|create| (create.client, create.object_id) != (client, object_id)),
        }
        let withdrawn = self.creates.len() < waiting;
        self.make_progress(now, out);
        if withdrawn { Ok(()) } else { written.map(|_| ()) }
    }

    /// A client gives back `count` of its pins on an object.
    ///
    /// # Errors
    /// [`Misuse::NotPinned`] if it holds fewer; those that it holds are released.
    pub fn on_release(
        &mut self,
        now: Instant,
        client: ClientId,
        object_id: ObjectId,
        count: u64,
        out: &mut Vec<Effect>,
    ) -> Result<(), Misuse> {
        let mut held = 0;
        if let Some(entry) = self.clients.get_mut(&client)
            && let Some(pins) = entry.pins.get_mut(&object_id)
        {
            held = *pins;
            *pins = held.saturating_sub(count);
            if *pins == 0 {
                entry.pins.remove(&object_id);
            }
        }
        self.unpin(object_id, count.min(held), out);
        self.make_progress(now, out);
        if held < count {
            return Err(Misuse::NotPinned { client, object_id, released: count, held });
        }
        Ok(())
    }

    /// Nobody needs these objects any more. They go when the last pin goes; who waits for one is refused.
    /// Returns how many of them there were.
    pub fn on_delete(&mut self, now: Instant, object_ids: &[ObjectId], out: &mut Vec<Effect>) -> usize {
        let deleted =
            object_ids.iter().filter(|id| self.doom(**id, "it was deleted by its owner", out)).count();
        self.make_progress(now, out);
        deleted
    }

    /// An owner is gone, and with it all that it owned.
    pub fn on_owner_lost(&mut self, now: Instant, owner: WorkerId, out: &mut Vec<Effect>) {
        if owner.is_nil() {
            return;
        }
        let (lost, rest) = self.creates.drain(..).partition(|create| create.owner == owner);
        self.creates = rest;
        let lost: VecDeque<WaitingCreate> = lost;
        for create in lost {
            let refusal = Refusal::Lost { cause: "its owner died".to_owned() };
            create.answer(Outcome::Refused(refusal), out);
        }
        for object_id in self.owned.get(&owner).cloned().unwrap_or_default() {
            self.doom(object_id, "its owner died", out);
        }
        self.make_progress(now, out);
    }

    /// A client is gone. Its pins are released and what it was writing is dropped; what it has sealed stays.
    pub fn on_client_lost(&mut self, now: Instant, client: ClientId, out: &mut Vec<Effect>) {
        self.creates.retain(|create| create.client != client);
        let Some(entry) = self.clients.get(&client) else { return self.make_progress(now, out) };
        let (waiting, writing, pins) = (entry.waiting.clone(), entry.writing.clone(), entry.pins.clone());
        for (request, object_id) in waiting {
            self.forget_waiter(client, request, object_id);
        }
        for object_id in writing {
            self.drop_unsealed(client, object_id, "its writer died", out);
        }
        self.clients.remove(&client);
        for (object_id, count) in pins {
            self.unpin(object_id, count, out);
        }
        self.make_progress(now, out);
    }

    /// Adds a reference; returns how many there are, or `None` if there is no such object.
    pub fn on_add_reference(&mut self, object_id: ObjectId) -> Option<u64> {
        let entry = self.entries.get_mut(&object_id).filter(|entry| !entry.is_doomed)?;
        entry.references = entry.references.saturating_add(1);
        let references = entry.references;
        self.touch(object_id);
        Some(references)
    }

    /// Takes a reference away; returns how many are left, or `None` if there is no such object.
    pub fn on_remove_reference(
        &mut self,
        now: Instant,
        object_id: ObjectId,
        out: &mut Vec<Effect>,
    ) -> Option<u64> {
        let entry = self.entries.get_mut(&object_id).filter(|entry| !entry.is_doomed)?;
        entry.references = entry.references.saturating_sub(1);
        let references = entry.references;
        self.touch(object_id);
        self.settle(object_id, out);
        self.make_progress(now, out);
        Some(references)
    }

    /// Time has passed. To be called at [`ObjectTable::next_deadline`].
    pub fn on_tick(&mut self, now: Instant, out: &mut Vec<Effect>) {
        self.make_progress(now, out);
    }

    /// When somebody's patience ends, unless something happens before.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.disk_jobs > 0 {
            return None;
        }
        let restore = self.restores.front().map(|restore| restore.deadline);
        restore.into_iter().chain(self.creates.front().map(|create| create.deadline)).min()
    }

    /// Whether the object can be read, from memory or disk.
    pub fn contains(&self, object_id: &ObjectId) -> bool {
        self.entries.get(object_id).is_some_and(|entry| entry.place.is_sealed() && !entry.is_doomed)
    }

    /// What is known about an object. Its writer counts as a pin.
    pub fn info(&self, object_id: &ObjectId) -> Option<ObjectInfo> {
        let entry = self.entries.get(object_id).filter(|entry| !entry.is_doomed)?;
        Some(ObjectInfo {
            object_id: *object_id,
            size_bytes: entry.size,
            references: entry.references,
            pins: entry.pins + u64::from(!entry.place.is_sealed()),
            sealed: entry.place.is_sealed(),
            spill_url: entry.place.url().map(str::to_owned),
        })
    }

    /// The process that owns this object, if there is one.
    pub fn owner_of(&self, object_id: &ObjectId) -> Option<WorkerId> {
        self.entries.get(object_id).map(|entry| entry.owner).filter(|owner| !owner.is_nil())
    }

    /// How full the store is. What is used counts in the units of the arena.
    pub fn usage(&self) -> StoreUsage {
        StoreUsage {
            capacity_bytes: self.arena.capacity(),
            used_bytes: self.arena.used(),
            spilled_bytes: self.spilled,
            objects: self.entries.len() as u64,
        }
    }

    /// How many objects there are that are no copies, with their owner alive.
    pub fn owned_objects(&self) -> u64 {
        self.owned.values().map(|objects| objects.len() as u64).sum()
    }

    /// The copies on disk of all objects.
    pub fn spilled_urls(&self) -> impl Iterator<Item = &str> {
        self.entries.values().filter_map(|entry| entry.place.url())
    }

    /// The arena, to be asked.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Somebody has pre-faulted everything before this offset.
    pub fn on_warmed(&mut self, until: u64) {
        self.arena.warmed(until);
    }

    /// Deletes the object, at once or when nobody uses it any more. False if there is none.
    fn doom(&mut self, object_id: ObjectId, why: &str, out: &mut Vec<Effect>) -> bool {
        let refusal = Refusal::Lost { cause: why.to_owned() };
        self.refuse_waiters(object_id, |_| true, &refusal, out);
        let Some(entry) = self.entries.get_mut(&object_id) else { return false };
        let was_alive = !entry.is_doomed;
        entry.is_doomed = true;
        self.recall(object_id, out);
        self.touch(object_id);
        self.settle(object_id, out);
        was_alive
    }

    fn pin(&mut self, client: ClientId, object_id: ObjectId) {
        *self.clients.entry(client).or_default().pins.entry(object_id).or_default() += 1;
        if let Some(entry) = self.entries.get_mut(&object_id) {
            entry.pins += 1;
        }
        self.touch(object_id);
    }

    fn unpin(&mut self, object_id: ObjectId, count: u64, out: &mut Vec<Effect>) {
        let Some(entry) = self.entries.get_mut(&object_id) else { return };
        entry.pins -= count;
        self.touch(object_id);
        self.settle(object_id, out);
    }

    /// Where the client writes this object.
    fn written_by(&self, client: ClientId, object_id: ObjectId) -> Result<u64, Misuse> {
        match self.entries.get(&object_id).map(|entry| &entry.place) {
            Some(&Place::Writing { offset, writer }) if writer == client => Ok(offset),
            _ => Err(Misuse::NotWriting { client, object_id }),
        }
    }

    fn end_writing(&mut self, client: ClientId, object_id: ObjectId, place: Place) {
        if let Some(entry) = self.clients.get_mut(&client) {
            entry.writing.remove(&object_id);
        }
        if let Some(entry) = self.entries.get_mut(&object_id) {
            entry.place = place;
        }
        self.touch(object_id);
    }

    fn drop_unsealed(&mut self, client: ClientId, object_id: ObjectId, why: &str, out: &mut Vec<Effect>) {
        if let Some(entry) = self.clients.get_mut(&client) {
            entry.writing.remove(&object_id);
        }
        // A copy is begun again by whoever makes it.
        if self.entries.get(&object_id).is_some_and(|entry| entry.copy_of.is_none()) {
            let refusal = Refusal::Lost { cause: why.to_owned() };
            self.refuse_waiters(object_id, |want| matches!(want, Want::Pin(_)), &refusal, out);
        }
        // It has no pins and no copy on disk, so nobody else has to be told.
        self.recall(object_id, out);
        self.remove(object_id);
    }

    fn admit(&mut self, create: &WaitingCreate, offset: u64) {
        let WaitingCreate { client, object_id, size, owner, copy_of, .. } = *create;
        let place = Place::Writing { offset, writer: client };
        let (references, is_doomed, pins, candidate) = (1, false, 0, None);
        let entry = Entry { size, owner, copy_of, references, is_doomed, pins, place, candidate };
        self.entries.insert(object_id, entry);
        self.clients.entry(client).or_default().writing.insert(object_id);
        if !owner.is_nil() {
            self.owned.entry(owner).or_default().insert(object_id);
        }
    }

    /// Takes an object up again that is to be created while it exists.
    fn readmit(&mut self, create: &WaitingCreate) -> Option<Outcome> {
        let entry = self.entries.get_mut(&create.object_id)?;
        let (sealed, size) = (entry.place.is_sealed(), entry.size);
        entry.references = entry.references.max(1);
        let is_made_here = sealed && create.copy_of.is_none() && entry.copy_of.is_some();
        if std::mem::take(&mut entry.is_doomed) || is_made_here {
            entry.copy_of = create.copy_of;
            let before = std::mem::replace(&mut entry.owner, create.owner);
            self.disown(before, create.object_id);
            if !create.owner.is_nil() {
                self.owned.entry(create.owner).or_default().insert(create.object_id);
            }
        }
        self.touch(create.object_id);
        Some(Outcome::Exists { sealed, size })
    }

    fn disown(&mut self, owner: WorkerId, object_id: ObjectId) {
        if let Some(owned) = self.owned.get_mut(&owner) {
            owned.remove(&object_id);
            if owned.is_empty() {
                self.owned.remove(&owner);
            }
        }
    }

    /// Removes an object that nothing keeps any more.
    fn settle(&mut self, object_id: ObjectId, out: &mut Vec<Effect>) {
        let Some(entry) = self.entries.get(&object_id) else { return };
        // One without references that lies on disk alone is in nobody's way and would never be collected.
        let is_forgotten = entry.references == 0 && matches!(entry.place, Place::Disk { .. });
        if (entry.is_doomed || is_forgotten) && entry.pins == 0 && !entry.place.is_busy() {
            let url = entry.place.url().map(str::to_owned);
            self.recall(object_id, out);
            self.remove(object_id);
            out.extend(url.map(|url| Effect::RemoveSpilled { url }));
        }
    }

    fn remove(&mut self, object_id: ObjectId) {
        let Some(entry) = self.entries.remove(&object_id) else { return };
        self.forget_candidate(object_id, entry.size, entry.candidate);
        if let Some(offset) = entry.place.offset() {
            self.arena.free(offset);
        }
        if entry.place.url().is_some() {
            self.spilled -= entry.size;
        }
        self.disown(entry.owner, object_id);
    }

    /// Finds the object's place among the candidates for making room anew, as the most recently used.
    fn touch(&mut self, object_id: ObjectId) {
        self.clock += 1;
        let Some(entry) = self.entries.get_mut(&object_id) else { return };
        let (size, rank) = (entry.size, entry.rank());
        let before = std::mem::replace(&mut entry.candidate, rank.map(|rank| (rank, self.clock)));
        self.forget_candidate(object_id, size, before);
        if let Some(rank) = rank {
            self.candidates.insert((rank, self.clock, object_id));
            if rank != Rank::Dirty {
                self.droppable += footprint(size);
            }
        }
    }

    fn forget_candidate(&mut self, object_id: ObjectId, size: u64, key: Option<(Rank, u64)>) {
        let Some((rank, used_at)) = key else { return };
        self.candidates.remove(&(rank, used_at, object_id));
        if rank != Rank::Dirty {
            self.droppable -= footprint(size);
        }
    }
}

/// What an object takes up that is in the arena or was.
fn footprint(size: u64) -> u64 {
    Arena::footprint(size).expect("an object that was in the arena has a footprint")
}
