//! The pure machine of the in-memory store: what is held, what is counted, what makes way.
//!
//! ```text
//!            put                start_spill               spilled
//!  (none) ---------> Memory ------------------> Spilling ---------> Disk
//!                      ^                           |                 |
//!                      +------- spill failed ------+                 | restored, if it fits
//!                                                                    v
//!                                     Disk <------ make room ------ Both
//! ```
//!
//! Space is made in this order: objects without references are dropped, then data that also lies on
//! disk, and only then are objects spilled, least recently used first. A restore never waits for a
//! spill: what does not fit by dropping alone is handed to its reader and not kept.

use std::collections::BTreeSet;

use bytes::Bytes;
use ray_core::id::ObjectId;
use ray_core::traits::{ObjectInfo, StoreUsage};
use rustc_hash::FxHashMap;

/// Where an object's data is.
#[derive(Debug)]
enum Place {
    Memory(Bytes),
    /// In memory, on its way to disk; the number tells this spill from earlier ones.
    Spilling(Bytes, u64),
    Both(Bytes, String),
    Disk(String),
}

impl Place {
    fn data(&self) -> Option<&Bytes> {
        match self {
            Self::Memory(data) | Self::Spilling(data, _) | Self::Both(data, _) => Some(data),
            Self::Disk(_) => None,
        }
    }

    fn url(&self) -> Option<&str> {
        match self {
            Self::Both(_, url) | Self::Disk(url) => Some(url),
            Self::Memory(_) | Self::Spilling(..) => None,
        }
    }
}

/// What can be done with an object to make room, in the order in which it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Nobody refers to it: it is dropped.
    Garbage,
    /// It lies on disk too: its memory is dropped.
    Clean,
    /// It can be spilled.
    Dirty,
}

#[derive(Debug)]
struct Entry {
    size: u64,
    references: u64,
    place: Place,
    /// Its key among the candidates, if it is one.
    candidate: Option<(Rank, u64)>,
}

/// How a put went.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// The object is in.
    Stored,
    /// It was there.
    Present,
    /// Another object of this size is there under the same id.
    Different(u64),
    /// Try again when these are spilled.
    Spill(Vec<SpillJob>),
    /// Try again when a spill that others began ends.
    Wait,
    /// Nothing can make way.
    Full,
}

/// One object to write to disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SpillJob {
    pub(super) object_id: ObjectId,
    pub(super) data: Bytes,
    /// Goes back with the outcome.
    pub(super) attempt: u64,
}

/// What a reader finds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The data.
    Memory(Bytes),
    /// So many bytes, at this URL.
    Disk(String, u64),
}

/// Objects on the heap; see the module's documentation.
#[derive(Debug, Default)]
pub(super) struct HeapTable {
    /// 0 = unlimited.
    capacity: u64,
    can_spill: bool,
    used: u64,
    spilled: u64,
    spilling: u64,
    entries: FxHashMap<ObjectId, Entry>,
    /// What can make way: by rank, then least recently used first.
    candidates: BTreeSet<(Rank, u64, ObjectId)>,
    clock: u64,
    /// Copies on disk that nobody needs any more.
    stale: Vec<String>,
}

impl HeapTable {
    pub(super) fn new(capacity: u64, can_spill: bool) -> Self {
        Self { capacity, can_spill, ..Self::default() }
    }

    /// Stores `data` with one reference, if there is room or room can be made at once.
    pub(super) fn put(&mut self, object_id: ObjectId, data: &Bytes) -> Offer {
        let size = data.len() as u64;
        if let Some(entry) = self.entries.get_mut(&object_id) {
            if entry.size != size {
                return Offer::Different(entry.size);
            }
            // Whoever puts an object holds a reference; one whose last is gone is taken up again.
            entry.references = entry.references.max(1);
            self.rank(object_id);
            return Offer::Present;
        }
        if self.capacity > 0 && size > self.capacity {
            return Offer::Full;
        }
        if !self.make_room(size) {
            return self.spill_for(size);
        }
        self.used += size;
        let entry = Entry { size, references: 1, place: Place::Memory(data.clone()), candidate: None };
        self.entries.insert(object_id, entry);
        self.rank(object_id);
        Offer::Stored
    }

    /// The object, if it is here; that makes it the most recently used one.
    pub(super) fn find(&mut self, object_id: &ObjectId) -> Option<Found> {
        self.rank(*object_id);
        let entry = self.entries.get(object_id)?;
        Some(match (&entry.place, entry.place.data()) {
            (_, Some(data)) => Found::Memory(data.clone()),
            (place, None) => Found::Disk(place.url().unwrap_or_default().to_owned(), entry.size),
        })
    }

    pub(super) fn contains(&self, object_id: &ObjectId) -> bool {
        self.entries.contains_key(object_id)
    }

    /// Forgets the object; returns whether it was there.
    pub(super) fn delete(&mut self, object_id: &ObjectId) -> bool {
        let Some(entry) = self.entries.remove(object_id) else { return false };
        self.forget_candidate(*object_id, entry.candidate);
        if entry.place.data().is_some() {
            self.used -= entry.size;
        }
        match entry.place {
            Place::Memory(_) => {}
            Place::Spilling(..) => self.spilling -= entry.size,
            Place::Both(_, url) | Place::Disk(url) => {
                self.spilled -= entry.size;
                self.stale.push(url);
            }
        }
        true
    }

    /// Begins to spill the object on demand. Its memory is dropped at once if it lies on disk.
    /// `Ok(None)`: nothing to do, or another is doing it. `Err`: there is no such object.
    pub(super) fn start_spill(&mut self, object_id: ObjectId) -> Result<Option<SpillJob>, ()> {
        let entry = self.entries.get_mut(&object_id).ok_or(())?;
        match &entry.place {
            Place::Memory(data) => {
                let data = data.clone();
                self.clock += 1;
                entry.place = Place::Spilling(data.clone(), self.clock);
                self.spilling += entry.size;
                let attempt = self.clock;
                self.rank(object_id);
                Ok(Some(SpillJob { object_id, data, attempt }))
            }
            Place::Both(..) => {
                self.drop_memory(object_id);
                Ok(None)
            }
            Place::Spilling(..) | Place::Disk(_) => Ok(None),
        }
    }

    /// A spill ended: the copy lies at `url`, or there is none. A copy of what was deleted meanwhile
    /// becomes stale.
    pub(super) fn on_spilled(&mut self, object_id: ObjectId, attempt: u64, url: Option<String>) {
        let entry = self.entries.get_mut(&object_id);
        let current = entry.filter(|entry| matches!(entry.place, Place::Spilling(_, own) if own == attempt));
        let Some(entry) = current else {
            self.stale.extend(url);
            return;
        };
        self.spilling -= entry.size;
        match url {
            Some(url) => {
                self.used -= entry.size;
                self.spilled += entry.size;
                entry.place = Place::Disk(url);
            }
            None => {
                let data = entry.place.data().cloned().unwrap_or_default();
                entry.place = Place::Memory(data);
            }
        }
        self.rank(object_id);
    }

    /// Somebody read the copy at `url`. The data is kept if there is room without spilling; returns
    /// whether it is in memory now.
    pub(super) fn on_restored(&mut self, object_id: ObjectId, url: &str, data: &Bytes) -> bool {
        let size = data.len() as u64;
        match self.entries.get(&object_id).map(|entry| &entry.place) {
            Some(Place::Disk(own)) if own == url => {}
            Some(place) => return place.data().is_some(),
            None => return false,
        }
        if !self.make_room(size) {
            return false;
        }
        let Some(entry) = self.entries.get_mut(&object_id) else { return false };
        entry.place = Place::Both(data.clone(), url.to_owned());
        self.used += size;
        self.rank(object_id);
        true
    }

    /// The copy at `url` turned out to be gone. If it was the only one, so is the object.
    pub(super) fn on_copy_lost(&mut self, object_id: &ObjectId, url: &str) {
        let place = self.entries.get(object_id).map(|entry| &entry.place);
        if matches!(place, Some(Place::Disk(own)) if own == url) {
            self.delete(object_id);
        }
    }

    /// Adds a reference; returns how many there are, or `None` if there is no such object.
    pub(super) fn add_reference(&mut self, object_id: &ObjectId) -> Option<u64> {
        let entry = self.entries.get_mut(object_id)?;
        entry.references = entry.references.saturating_add(1);
        let references = entry.references;
        self.rank(*object_id);
        Some(references)
    }

    /// Takes a reference away; returns how many are left, or `None` if there is no such object. An
    /// object without references that lies on disk alone is forgotten at once: it is in nobody's way
    /// and would never be collected.
    pub(super) fn remove_reference(&mut self, object_id: &ObjectId) -> Option<u64> {
        let entry = self.entries.get_mut(object_id)?;
        entry.references = entry.references.saturating_sub(1);
        let references = entry.references;
        if references == 0 && matches!(entry.place, Place::Disk(_)) {
            self.delete(object_id);
        } else {
            self.rank(*object_id);
        }
        Some(references)
    }

    pub(super) fn info(&self, object_id: &ObjectId) -> Option<ObjectInfo> {
        self.entries.get(object_id).map(|entry| ObjectInfo {
            object_id: *object_id,
            size_bytes: entry.size,
            references: entry.references,
            pins: 0,
            sealed: true,
            spill_url: entry.place.url().map(str::to_owned),
        })
    }

    pub(super) fn usage(&self) -> StoreUsage {
        StoreUsage {
            capacity_bytes: self.capacity,
            used_bytes: self.used,
            spilled_bytes: self.spilled,
            objects: self.entries.len() as u64,
        }
    }

    /// The largest objects in memory, as text to append to an error.
    pub(super) fn holders(&self) -> String {
        let in_memory = self.entries.iter().filter(|(_, entry)| entry.place.data().is_some());
        let mut sizes: Vec<(u64, ObjectId)> = in_memory.map(|(id, entry)| (entry.size, *id)).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        let largest: Vec<String> =
            sizes.iter().take(3).map(|(size, id)| format!("object {id} ({size} bytes)")).collect();
        if largest.is_empty() { String::new() } else { format!("; the largest: {}", largest.join(", ")) }
    }

    /// The copies on disk that nobody needs any more; the caller removes them.
    pub(super) fn take_stale(&mut self) -> Vec<String> {
        std::mem::take(&mut self.stale)
    }

    /// Every copy on disk.
    pub(super) fn urls(&self) -> impl Iterator<Item = &str> {
        self.entries
            .values()
            .filter_map(|entry| entry.place.url())
            .chain(self.stale.iter().map(String::as_str))
    }

    fn fits(&self, size: u64) -> bool {
        self.capacity == 0 || self.used.saturating_add(size) <= self.capacity
    }

    /// Drops garbage and clean data until `size` bytes fit; false if that does not suffice.
    fn make_room(&mut self, size: u64) -> bool {
        while !self.fits(size) {
            match self.candidates.first() {
                Some(&(Rank::Garbage, _, id)) => {
                    self.delete(&id);
                }
                Some(&(Rank::Clean, _, id)) => self.drop_memory(id),
                Some(&(Rank::Dirty, ..)) | None => return false,
            }
        }
        true
    }

    fn spill_for(&mut self, size: u64) -> Offer {
        let mut jobs = Vec::new();
        while self.can_spill && !self.fits_after_spills(size) {
            let Some(&(_, _, id)) = self.candidates.first() else { break };
            jobs.extend(self.start_spill(id).ok().flatten());
        }
        if !jobs.is_empty() {
            Offer::Spill(jobs)
        } else if self.spilling > 0 {
            Offer::Wait
        } else {
            Offer::Full
        }
    }

    fn fits_after_spills(&self, size: u64) -> bool {
        (self.used - self.spilling).saturating_add(size) <= self.capacity
    }

    /// Drops the data of an object that also lies on disk.
    fn drop_memory(&mut self, object_id: ObjectId) {
        let Some(entry) = self.entries.get_mut(&object_id) else { return };
        if let Place::Both(_, url) = &mut entry.place {
            entry.place = Place::Disk(std::mem::take(url));
            self.used -= entry.size;
            self.rank(object_id);
        }
    }

    /// Finds the object's place among the candidates anew, as the most recently used one.
    fn rank(&mut self, object_id: ObjectId) {
        let Some(entry) = self.entries.get_mut(&object_id) else { return };
        let rank = match &entry.place {
            Place::Memory(_) | Place::Both(..) if entry.references == 0 => Some(Rank::Garbage),
            Place::Both(..) => Some(Rank::Clean),
            Place::Memory(_) => Some(Rank::Dirty),
            Place::Spilling(..) | Place::Disk(_) => None,
        };
        self.clock += 1;
        let clock = self.clock;
        let before = std::mem::replace(&mut entry.candidate, rank.map(|rank| (rank, clock)));
        self.forget_candidate(object_id, before);
        if let Some(rank) = rank {
            self.candidates.insert((rank, clock, object_id));
        }
    }

    fn forget_candidate(&mut self, object_id: ObjectId, key: Option<(Rank, u64)>) {
        if let Some((rank, used_at)) = key {
            self.candidates.remove(&(rank, used_at, object_id));
        }
    }

    /// Checks that the books agree with one another.
    #[cfg(test)]
    fn check_invariants(&self) {
        let sum = |keep: fn(&Place) -> bool| -> u64 {
            self.entries.values().filter(|entry| keep(&entry.place)).map(|entry| entry.size).sum()
        };
        assert_eq!(self.used, sum(|place| place.data().is_some()));
        assert_eq!(self.spilled, sum(|place| place.url().is_some()));
        assert_eq!(self.spilling, sum(|place| matches!(place, Place::Spilling(..))));
        assert!(self.capacity == 0 || self.used <= self.capacity);
        let candidates: BTreeSet<_> =
            self.entries.iter().filter_map(|(id, e)| e.candidate.map(|(rank, at)| (rank, at, *id))).collect();
        assert_eq!(candidates, self.candidates);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(n: u8) -> ObjectId {
        ObjectId::from_bytes([n; 28])
    }

    fn bytes(n: u8, len: usize) -> Bytes {
        vec![n; len].into()
    }

    #[test]
    fn what_nobody_refers_to_goes_first() {
        let mut table = HeapTable::new(100, true);
        for n in 1..=2 {
            assert_eq!(table.put(id(n), &bytes(n, 50)), Offer::Stored);
        }
        assert_eq!(table.remove_reference(&id(2)), Some(0));
        assert!(table.contains(&id(2)));
        assert_eq!(table.put(id(3), &bytes(3, 50)), Offer::Stored);
        assert!(table.contains(&id(1)) && !table.contains(&id(2)));
    }

    #[test]
    fn the_least_recently_used_is_spilled() {
        let mut table = HeapTable::new(100, true);
        for n in 1..=2 {
            table.put(id(n), &bytes(n, 50));
        }
        table.find(&id(1));
        let Offer::Spill(jobs) = table.put(id(3), &bytes(3, 40)) else { panic!("something is spilled") };
        assert_eq!(jobs, [SpillJob { object_id: id(2), data: bytes(2, 50), attempt: jobs[0].attempt }]);
        assert_eq!(table.put(id(3), &bytes(3, 40)), Offer::Wait);
        table.on_spilled(id(2), jobs[0].attempt, Some("url".into()));
        assert_eq!(table.put(id(3), &bytes(3, 40)), Offer::Stored);
        assert_eq!(table.find(&id(2)), Some(Found::Disk("url".into(), 50)));
    }

    #[test]
    fn a_restore_drops_clean_data_and_never_spills() {
        let mut table = HeapTable::new(100, true);
        for (n, url) in [(1, "one"), (2, "two")] {
            table.put(id(n), &bytes(n, 100));
            let job = table.start_spill(id(n)).unwrap().unwrap();
            table.on_spilled(id(n), job.attempt, Some(url.into()));
        }
        assert!(table.on_restored(id(1), "one", &bytes(1, 100)));
        // Object 1 lies on disk as well, so it makes way.
        assert!(table.on_restored(id(2), "two", &bytes(2, 100)));
        assert_eq!(table.find(&id(1)), Some(Found::Disk("one".into(), 100)));
        table.delete(&id(2));
        table.put(id(3), &bytes(3, 100));
        assert!(!table.on_restored(id(1), "one", &bytes(1, 100)));
        assert_eq!(table.take_stale(), ["two"]);
    }

    #[test]
    fn a_late_spill_of_a_deleted_object_is_stale() {
        let mut table = HeapTable::new(100, true);
        table.put(id(1), &bytes(1, 10));
        let job = table.start_spill(id(1)).unwrap().unwrap();
        assert!(table.delete(&id(1)));
        table.put(id(1), &bytes(1, 10));
        table.on_spilled(id(1), job.attempt, Some("late".into()));
        assert_eq!(table.find(&id(1)), Some(Found::Memory(bytes(1, 10))));
        assert_eq!(table.take_stale(), ["late"]);
        table.check_invariants();
    }

    #[test]
    fn without_a_disk_a_full_store_says_so() {
        let mut table = HeapTable::new(100, false);
        table.put(id(1), &bytes(1, 100));
        assert_eq!(table.put(id(2), &bytes(2, 1)), Offer::Full);
        assert!(table.holders().contains("(100 bytes)"));
        assert_eq!(table.put(id(1), &bytes(1, 99)), Offer::Different(100));
        assert_eq!(table.put(id(1), &bytes(1, 100)), Offer::Present);
    }

    proptest! {
        #[test]
        fn the_books_agree_after_every_step(
            steps in prop::collection::vec((0..7u8, 0..6u8, 0..60usize), 1..150)
        ) {
            let mut table = HeapTable::new(100, true);
            let mut jobs: Vec<SpillJob> = Vec::new();
            for (serial, (kind, n, size)) in steps.into_iter().enumerate() {
                match kind {
                    0 | 1 => if let Offer::Spill(more) = table.put(id(n), &bytes(n, size)) { jobs.extend(more) },
                    2 => { table.delete(&id(n)); }
                    3 => { table.remove_reference(&id(n)); }
                    4 => jobs.extend(table.start_spill(id(n)).ok().flatten()),
                    5 if !jobs.is_empty() => {
                        let job = jobs.swap_remove(size % jobs.len());
                        let url = (size % 3 > 0).then(|| format!("{serial}"));
                        table.on_spilled(job.object_id, job.attempt, url);
                    }
                    _ => if let Some(Found::Disk(url, len)) = table.find(&id(n)) {
                        table.on_restored(id(n), &url, &bytes(n, len as usize));
                    },
                }
                table.check_invariants();
            }
            for job in jobs {
                table.on_spilled(job.object_id, job.attempt, None);
            }
            for n in 0..6 {
                table.delete(&id(n));
            }
            table.check_invariants();
            prop_assert_eq!((table.used, table.spilled, table.spilling), (0, 0, 0));
        }
    }
}
