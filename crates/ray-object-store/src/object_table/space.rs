//! Making room: the two queues, dropping, spilling and restoring.

use std::collections::BTreeMap;
use std::time::Instant;

use ray_core::id::{NodeId, ObjectId, WorkerId};

use super::answer::{Answer, ClientId, DiskFailure, Effect, Outcome, Refusal};
use super::entry::{Place, Rank};
use super::waiting::{Reader, Waiter, Want};
use super::{ObjectTable, footprint};
use crate::arena::Arena;

/// How many of the largest holders an error names.
const NAMED_HOLDERS: usize = 3;

/// A create that waits for room.
#[derive(Debug, Clone)]
pub(super) struct WaitingCreate {
    pub(super) client: ClientId,
    pub(super) request: u64,
    pub(super) object_id: ObjectId,
    pub(super) size: u64,
    pub(super) owner: WorkerId,
    /// The node that it is pulled from, if it will be a copy.
    pub(super) copy_of: Option<NodeId>,
    /// When its client's patience ends, if nobody but clients can help.
    pub(super) deadline: Instant,
}

impl WaitingCreate {
    pub(super) fn answer(&self, outcome: Outcome, out: &mut Vec<Effect>) {
        let Self { client, request, object_id, .. } = *self;
        out.push(Effect::Answer(Answer { client, request, object_id, outcome }));
    }
}

/// A spilled object that waits for room, and with it those who wait for the object.
#[derive(Debug, Clone)]
pub(super) struct WaitingRestore {
    pub(super) object_id: ObjectId,
    pub(super) deadline: Instant,
}

impl ObjectTable {
    /// A client wants these objects on disk and out of memory. Each is answered with `Spilled` or `Refused`.
    /// The memory of an object that is pinned goes later, when its space is needed.
    pub fn on_spill(
        &mut self,
        now: Instant,
        (client, request): (ClientId, u64),
        object_ids: &[ObjectId],
        out: &mut Vec<Effect>,
    ) {
        let mut wanted = Vec::new();
        for &object_id in object_ids {
            match self.entries.get(&object_id).map(|entry| &entry.place) {
                _ if self.config.spill_place.is_none() => {
                    let outcome = Outcome::Refused(Refusal::CannotSpill);
                    out.push(Effect::Answer(Answer { client, request, object_id, outcome }));
                    continue;
                }
                None | Some(Place::Writing { .. }) => {
                    let outcome = Outcome::Refused(Refusal::NotFound);
                    out.push(Effect::Answer(Answer { client, request, object_id, outcome }));
                    continue;
                }
                Some(Place::Memory { .. }) => self.start_spill(object_id, out),
                Some(Place::Both { .. }) => self.drop_memory_if_unpinned(object_id, out),
                Some(Place::Spilling { .. } | Place::Disk { .. } | Place::Restoring { .. }) => {}
            }
            if !self.entries.contains_key(&object_id) {
                // Nobody refers to it, and without memory it was of no use.
                let outcome = Outcome::Refused(Refusal::NotFound);
                out.push(Effect::Answer(Answer { client, request, object_id, outcome }));
                continue;
            }
            wanted.push(object_id);
        }
        self.on_wanted(now, (client, request), &wanted, Want::Copy, out);
    }

    /// A spill ended: a copy of the object is at `url`.
    pub fn on_spill_done(&mut self, now: Instant, object_id: ObjectId, url: String, out: &mut Vec<Effect>) {
        let Some((offset, _)) = self.end_spill(object_id) else {
            out.push(Effect::RemoveSpilled { url });
            return;
        };
        let is_wanted_there = self
            .waiters
            .get(&object_id)
            .is_some_and(|waiters| waiters.iter().any(|waiter| waiter.want == Want::Copy));
        self.move_to(object_id, Place::Both { offset, url });
        self.serve_waiters(object_id, out);
        if is_wanted_there {
            self.drop_memory_if_unpinned(object_id, out);
        }
        self.settle(object_id, out);
        self.make_progress(now, out);
    }

    /// A spill ended without a copy.
    pub fn on_spill_failed(
        &mut self,
        now: Instant,
        object_id: ObjectId,
        failure: DiskFailure,
        out: &mut Vec<Effect>,
    ) {
        let Some((offset, size)) = self.end_spill(object_id) else { return };
        self.spilled -= size;
        self.move_to(object_id, Place::Memory { offset });
        let refusal = self.spill_refusal(size, &failure);
        self.refuse_waiters(object_id, |want| want == Want::Copy, &refusal, out);
        self.spill_failure = Some(failure);
        self.settle(object_id, out);
        self.make_progress(now, out);
    }

    /// A restore ended: the object is where it was to go.
    pub fn on_restore_done(&mut self, now: Instant, object_id: ObjectId, out: &mut Vec<Effect>) {
        let Some((offset, url)) = self.end_restore(object_id) else { return };
        self.move_to(object_id, Place::Both { offset, url });
        self.serve_waiters(object_id, out);
        self.settle(object_id, out);
        self.make_progress(now, out);
    }

    /// A restore ended without success. If the copy is lost, so is the object.
    pub fn on_restore_failed(
        &mut self,
        now: Instant,
        object_id: ObjectId,
        failure: DiskFailure,
        out: &mut Vec<Effect>,
    ) {
        let Some((offset, url)) = self.end_restore(object_id) else { return };
        self.arena.free(offset);
        self.move_to(object_id, Place::Disk { url });
        match failure {
            DiskFailure::Lost { cause } => drop(self.doom(object_id, &cause, out)),
            DiskFailure::Failed { cause } => {
                self.refuse_readers(object_id, Refusal::DiskFailed { cause }, out)
            }
            DiskFailure::OutOfDisk => {
                let cause = "the disk is full".to_owned();
                self.refuse_readers(object_id, Refusal::DiskFailed { cause }, out);
            }
        }
        self.settle(object_id, out);
        self.make_progress(now, out);
    }

    /// A reader found that the copy at `url` is gone. If it was the only one, so is the object.
    pub fn on_copy_lost(&mut self, now: Instant, object_id: ObjectId, url: &str, out: &mut Vec<Effect>) {
        match self.entries.get(&object_id).map(|entry| (&entry.place, entry.size)) {
            Some((Place::Disk { url: own }, _)) if own == url => {
                self.doom(object_id, &format!("its copy {url} is gone"), out);
            }
            Some((Place::Both { url: own, offset }, size)) if own == url => {
                let offset = *offset;
                self.spilled -= size;
                self.move_to(object_id, Place::Memory { offset });
            }
            _ => {}
        }
        self.make_progress(now, out);
    }

    /// Lets whoever can go on go on. The end of every event.
    pub(super) fn make_progress(&mut self, now: Instant, out: &mut Vec<Effect>) {
        while let Some(size) = self.serve_queues(out) {
            if self.disk_jobs > 0 && self.spill_failure.is_some() {
                // What others are spilling may suffice; otherwise the head is refused when they end.
                break;
            }
            if let Some(failure) = self.spill_failure.take() {
                let refusal = self.spill_refusal(size, &failure);
                self.refuse_head(refusal, out);
                continue;
            }
            self.spill_for_queues(out);
            if self.spill_failure.is_some() {
                continue;
            }
            if self.disk_jobs > 0 || !self.refuse_expired(now, out) {
                break;
            }
        }
        if self.restores.is_empty() && self.creates.is_empty() {
            // Nobody is left to hear of it.
            self.spill_failure = None;
        }
    }

    /// Serves the queues as far as room can be had at once; returns the size of the first that is left.
    fn serve_queues(&mut self, out: &mut Vec<Effect>) -> Option<u64> {
        while let Some(restore) = self.restores.front() {
            let object_id = restore.object_id;
            if let Some((url, size)) = self.awaited_on_disk(object_id) {
                let Some(offset) = self.reserve(size, out) else { return Some(size) };
                self.start_restore(object_id, url, offset, size, out);
            }
            self.restores.pop_front();
        }
        while let Some(create) = self.creates.front().cloned() {
            let outcome = match self.readmit(&create) {
                Some(outcome) => outcome,
                None => {
                    let Some(offset) = self.reserve(create.size, out) else { return Some(create.size) };
                    self.admit(&create, offset);
                    Outcome::Created { offset }
                }
            };
            self.creates.pop_front();
            create.answer(outcome, out);
        }
        None
    }

    /// Refuses the first restore or create whose time is up; false if neither's is.
    fn refuse_expired(&mut self, now: Instant, out: &mut Vec<Effect>) -> bool {
        if let Some(restore) = self.restores.front().filter(|restore| restore.deadline <= now) {
            let object_id = restore.object_id;
            let size = self.entries.get(&object_id).map_or(0, |entry| entry.size);
            self.restores.pop_front();
            self.refuse_readers(object_id, self.full(size), out);
            return true;
        }
        let Some(create) = self.creates.front().filter(|create| create.deadline <= now) else { return false };
        create.answer(Outcome::Refused(self.full(create.size)), out);
        self.creates.pop_front();
        true
    }

    fn refuse_head(&mut self, refusal: Refusal, out: &mut Vec<Effect>) {
        if let Some(restore) = self.restores.pop_front() {
            self.refuse_readers(restore.object_id, refusal, out);
        } else if let Some(create) = self.creates.pop_front() {
            create.answer(Outcome::Refused(refusal), out);
        }
    }

    fn refuse_readers(&mut self, object_id: ObjectId, refusal: Refusal, out: &mut Vec<Effect>) {
        self.refuse_waiters(object_id, |want| matches!(want, Want::Pin(_)), &refusal, out);
    }

    /// Where the object lies on disk, if it lies only there and somebody waits to read it.
    fn awaited_on_disk(&self, object_id: ObjectId) -> Option<(String, u64)> {
        let is_awaited =
            |waiters: &Vec<Waiter>| waiters.iter().any(|waiter| matches!(waiter.want, Want::Pin(_)));
        self.waiters.get(&object_id).filter(|waiters| is_awaited(waiters))?;
        let entry = self.entries.get(&object_id)?;
        match &entry.place {
            Place::Disk { url } => Some((url.clone(), entry.size)),
            _ => None,
        }
    }

    /// Begins to restore an object that lies on disk, or hands out the file. `None`: the reader waits.
    pub(super) fn fetch(
        &mut self,
        now: Instant,
        object_id: ObjectId,
        client: ClientId,
        reader: Reader,
        out: &mut Vec<Effect>,
    ) -> Option<Outcome> {
        let entry = self.entries.get(&object_id)?;
        let (url, size) = (entry.place.url()?.to_owned(), entry.size);
        if self.restores.is_empty()
            && self.creates.is_empty()
            && let Some(offset) = self.reserve(size, out)
        {
            self.start_restore(object_id, url, offset, size, out);
            return None;
        }
        match reader {
            Reader::ArenaOrFile => {
                self.pin(client, object_id);
                Some(Outcome::OnDisk { url, size })
            }
            Reader::Arena if self.restores.iter().any(|restore| restore.object_id == object_id) => None,
            Reader::Arena if self.restores.len() >= self.config.max_waiting => {
                let capacity = self.config.max_waiting;
                Some(Outcome::Refused(Refusal::Overloaded { queue: "the queue of restores", capacity }))
            }
            Reader::Arena => {
                let deadline = now + self.config.full_grace;
                self.restores.push_back(WaitingRestore { object_id, deadline });
                None
            }
        }
    }

    fn start_restore(
        &mut self,
        object_id: ObjectId,
        url: String,
        offset: u64,
        size: u64,
        out: &mut Vec<Effect>,
    ) {
        self.disk_jobs += 1;
        self.move_to(object_id, Place::Restoring { offset, url: url.clone() });
        out.push(Effect::Restore { object_id, url, offset, size });
    }

    fn end_restore(&mut self, object_id: ObjectId) -> Option<(u64, String)> {
        match self.entries.get(&object_id).map(|entry| &entry.place) {
            Some(Place::Restoring { offset, url }) => {
                self.disk_jobs -= 1;
                Some((*offset, url.clone()))
            }
            _ => None,
        }
    }

    /// A range of this size, if free, garbage and clean memory suffice.
    fn reserve(&mut self, size: u64, out: &mut Vec<Effect>) -> Option<u64> {
        // Nothing is dropped in vain when all of it together would not do.
        if Arena::footprint(size)? > self.arena.free_bytes() + self.droppable {
            return None;
        }
        loop {
            if let Some(offset) = self.arena.allocate(size) {
                return Some(offset);
            }
            let &(rank, _, object_id) = self.candidates.first()?;
            match rank {
                Rank::Garbage => {
                    self.doom(object_id, "nobody referred to it and its space was needed", out);
                }
                Rank::Copy => {
                    self.doom(object_id, "it was a copy and its space was needed", out);
                }
                Rank::Clean => self.drop_memory_if_unpinned(object_id, out),
                Rank::Dirty => return None,
            }
        }
    }

    /// Spills as much as all that wait need, and something at least, so that a queue that waits because free
    /// space lies in pieces moves on too.
    fn spill_for_queues(&mut self, out: &mut Vec<Effect>) {
        let restores = self.restores.iter().filter_map(|restore| self.entries.get(&restore.object_id));
        let sizes = restores.map(|entry| entry.size).chain(self.creates.iter().map(|create| create.size));
        let wanted = sizes.filter_map(Arena::footprint).fold(0, u64::saturating_add);
        while self.spilling == 0 || wanted > self.arena.free_bytes() + self.droppable + self.spilling {
            let dirty = (Rank::Dirty, 0, ObjectId::from_bytes([0; 28]));
            let Some(&(_, _, object_id)) = self.candidates.range(dirty..).next() else { return };
            let Some(size) = self.entries.get(&object_id).map(|entry| entry.size) else { return };
            if self.config.spill_place.is_none() {
                return;
            }
            if self.config.max_spill_bytes > 0 && self.spilled + size > self.config.max_spill_bytes {
                if self.disk_jobs == 0 {
                    self.spill_failure = Some(DiskFailure::OutOfDisk);
                }
                return;
            }
            self.start_spill(object_id, out);
        }
    }

    fn start_spill(&mut self, object_id: ObjectId, out: &mut Vec<Effect>) {
        let Some(entry) = self.entries.get(&object_id) else { return };
        let Place::Memory { offset } = entry.place else { return };
        let size = entry.size;
        self.disk_jobs += 1;
        self.spilling += footprint(size);
        self.spilled += size;
        self.move_to(object_id, Place::Spilling { offset });
        out.push(Effect::Spill { object_id, offset, size });
    }

    fn end_spill(&mut self, object_id: ObjectId) -> Option<(u64, u64)> {
        let entry = self.entries.get(&object_id)?;
        let Place::Spilling { offset } = entry.place else { return None };
        self.disk_jobs -= 1;
        self.spilling -= footprint(entry.size);
        Some((offset, entry.size))
    }

    /// Drops the memory of an object that lies on disk too, unless somebody reads it.
    fn drop_memory_if_unpinned(&mut self, object_id: ObjectId, out: &mut Vec<Effect>) {
        let Some(entry) = self.entries.get(&object_id).filter(|entry| entry.pins == 0) else { return };
        if let Place::Both { offset, url } = &entry.place {
            let (offset, url) = (*offset, url.clone());
            self.arena.free(offset);
            self.move_to(object_id, Place::Disk { url });
            self.settle(object_id, out);
        }
    }

    fn move_to(&mut self, object_id: ObjectId, place: Place) {
        if let Some(entry) = self.entries.get_mut(&object_id) {
            entry.place = place;
        }
        self.touch(object_id);
    }

    pub(super) fn full(&self, requested_bytes: u64) -> Refusal {
        Refusal::Full {
            requested_bytes,
            used_bytes: self.arena.used(),
            capacity_bytes: self.arena.capacity(),
            holders: self.holders(),
        }
    }

    fn spill_refusal(&self, requested_bytes: u64, failure: &DiskFailure) -> Refusal {
        match failure {
            DiskFailure::OutOfDisk => Refusal::OutOfDisk {
                path: self.config.spill_place.clone().unwrap_or_default(),
                requested_bytes,
                holders: self.holders(),
            },
            DiskFailure::Lost { cause } | DiskFailure::Failed { cause } => {
                Refusal::DiskFailed { cause: cause.clone() }
            }
        }
    }

    /// Who keeps most memory from making way, as text to append to an error: clients by what they pin or
    /// write, and owners by what they own in memory.
    fn holders(&self) -> String {
        let mut clients: Vec<(u64, String)> = Vec::new();
        for (id, client) in &self.clients {
            let held = client.pins.keys().chain(&client.writing);
            let bytes = held.filter_map(|object_id| self.bytes_in_memory(object_id)).sum();
            let name = if client.name.is_empty() { id.to_string() } else { client.name.clone() };
            clients.push((bytes, format!("{name} uses {bytes} bytes")));
        }
        let mut owners: BTreeMap<WorkerId, u64> = BTreeMap::new();
        for (object_id, entry) in &self.entries {
            *owners.entry(entry.owner).or_default() += self.bytes_in_memory(object_id).unwrap_or(0);
        }
        let owners = owners.into_iter().map(|(owner, bytes)| {
            let name = if owner.is_nil() { "the node".to_owned() } else { format!("worker {owner}") };
            (bytes, format!("{name} owns {bytes} bytes"))
        });
        let named: Vec<String> = largest(clients).into_iter().chain(largest(owners.collect())).collect();
        if named.is_empty() { String::new() } else { format!("; {}", named.join(", ")) }
    }

    fn bytes_in_memory(&self, object_id: &ObjectId) -> Option<u64> {
        let entry = self.entries.get(object_id)?;
        entry.place.offset().map(|_| entry.size)
    }
}

/// The texts of the largest few that are more than nothing.
fn largest(mut holders: Vec<(u64, String)>) -> Vec<String> {
    holders.retain(|(bytes, _)| *bytes > 0);
    holders.sort_unstable_by(|a, b| b.cmp(a));
    holders.into_iter().take(NAMED_HOLDERS).map(|(_, text)| text).collect()
}
