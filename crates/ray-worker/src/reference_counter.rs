//! Who still needs an object: the counts by which values are freed, neither early nor never.
//!
//! One process, the object's *owner*, decides. Every process keeps an entry for each object that it
//! refers to:
//!
//! ```text
//!            add_owned                            add_borrowed
//!               |                                      |
//!               v        last use, no borrower         v          last use here
//!            [owned] ----------------------> gone   [borrowed] ----------------> gone
//!               ^          Effect::Free                |         Effect::ReturnGrants
//!               +------- grant / return_grants --------+
//! ```
//!
//! An entry is in use while any of these is above zero: handles of the language front end (`local`),
//! unfinished tasks that have it as an argument (`submitted`), objects in use here whose value holds
//! a reference to it (`contained_in`); and, for an owner, *grants*.
//!
//! A grant is the owner's promise to keep an object for another process. Before a process hands a
//! reference to a third one in a *reply*, the owner has to have granted it to the receiver; a
//! reference in a *request* is covered by the sender until the reply, and by then the receiver has
//! a grant of its own or has dropped it. If the sender dies before, its grants are gone, the object may be
//! freed, and the receiver is told so when it asks for the value. Grants are counted, not just noted: a borrower gives back
//! as many as it has received, so that one on its way to it when it gives up is not lost.
//! A borrower that dies gives back all, and is granted nothing afterwards, though others that have
//! not heard of its death may still ask on its behalf.

use std::collections::VecDeque;

use ray_core::id::{NodeId, ObjectId, WorkerId};
use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Deserialize, Serialize};

/// Dead processes that are remembered. A request on behalf of one can be late by as much as a message
/// takes to arrive; this many deaths meanwhile are out of reach.
const REMEMBERED_DEAD: usize = 10_000;

/// A core worker process: enough to find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// The process.
    pub worker_id: WorkerId,
    /// Its node.
    pub node_id: NodeId,
}

/// What uses an object here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uses {
    /// Its owner; `None`: this process.
    pub owner: Option<WorkerId>,
    /// Handles of the language front end.
    pub local: u32,
    /// Unfinished tasks that have it as an argument.
    pub submitted: u32,
    /// Objects in use here whose value refers to it.
    pub contained_in: u32,
    /// Processes that borrow it.
    pub borrowers: usize,
}

/// What has to be done about a change of counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Nobody refers to this object of ours any more: drop its value, wherever it is.
    Free(ObjectId),
    /// This process does not refer to the object any more: tell its owner, and drop what is cached.
    ReturnGrants {
        /// Whom to tell.
        owner: Owner,
        /// The object.
        object_id: ObjectId,
        /// How many grants go back; 0 if none was received, and then there is nobody to tell.
        grants: u32,
    },
}

/// Small, for a process may have millions; what few of them need stands in tables of its own.
#[derive(Debug)]
struct Entry {
    side: Side,
    local: u32,
    submitted: u32,
    contained_in: u32,
    /// It has borrowers in [`ReferenceCounter::grants`].
    is_granted: bool,
    /// Its value refers to others in [`ReferenceCounter::contains`].
    has_contained: bool,
}

const _: () = assert!(size_of::<Entry>() <= 24, "an entry is kept for every object");

#[derive(Debug)]
enum Side {
    Owned,
    Borrowed(Box<Borrowed>),
}

#[derive(Debug)]
struct Borrowed {
    owner: Owner,
    /// Grants received.
    grants: u32,
}

impl Entry {
    const fn new(side: Side) -> Self {
        Self { side, local: 0, submitted: 0, contained_in: 0, is_granted: false, has_contained: false }
    }

    const fn is_in_use(&self) -> bool {
        self.local > 0 || self.submitted > 0 || self.contained_in > 0 || self.is_granted
    }

    fn borrowed(&mut self) -> Option<&mut Borrowed> {
        match &mut self.side {
            Side::Borrowed(borrowed) => Some(borrowed),
            Side::Owned => None,
        }
    }
}

/// The references of one process.
#[derive(Debug)]
pub struct ReferenceCounter {
    entries: FxHashMap<ObjectId, Entry>,
    /// Grants of objects that this process owns, by borrower. Rarely more than a few.
    grants: FxHashMap<ObjectId, Vec<(WorkerId, u32)>>,
    /// Objects to which an object's value refers; each counts that in `contained_in`.
    contains: FxHashMap<ObjectId, Vec<ObjectId>>,
    dead: FxHashSet<WorkerId>,
    /// The same, oldest first.
    dead_in_order: VecDeque<WorkerId>,
}

impl Default for ReferenceCounter {
    fn default() -> Self {
        Self::new()
    }
}

impl ReferenceCounter {
    /// No references.
    pub fn new() -> Self {
        Self {
            entries: FxHashMap::default(),
            grants: FxHashMap::default(),
            contains: FxHashMap::default(),
            dead: FxHashSet::default(),
            dead_in_order: VecDeque::new(),
        }
    }

    /// Notes an object that this process owns, with one handle. Noting it again adds a handle.
    pub fn add_owned(&mut self, object_id: ObjectId) {
        self.entries.entry(object_id).or_insert_with(|| Entry::new(Side::Owned)).local += 1;
    }

    /// Notes a reference that came from elsewhere, together with `grants` of its owner, with one
    /// handle. If this process owns the object, the handle alone counts. Returns whether it has no grant, and nobody
    /// else's covers it for longer than the call or reply in which it came.
    pub fn add_borrowed(&mut self, object_id: ObjectId, owner: Owner, grants: u32) -> bool {
        let side = || Side::Borrowed(Box::new(Borrowed { owner, grants: 0 }));
        let entry = self.entries.entry(object_id).or_insert_with(|| Entry::new(side()));
        entry.local += 1;
        let Some(borrowed) = entry.borrowed() else { return false };
        borrowed.grants += grants;
        borrowed.grants == 0
    }

    /// Adds a handle. Returns false, and does nothing, if the object is unknown.
    pub fn add_local(&mut self, object_id: ObjectId) -> bool {
        let entry = self.entries.get_mut(&object_id);
        entry.map(|entry| entry.local += 1).is_some()
    }

    /// Takes a handle away.
    pub fn remove_local(&mut self, object_id: ObjectId, out: &mut Vec<Effect>) {
        self.release(object_id, |entry| &mut entry.local, out);
    }

    /// Counts an unfinished task that has the object as an argument.
    pub fn add_submitted(&mut self, object_id: ObjectId) {
        if let Some(entry) = self.entries.get_mut(&object_id) {
            entry.submitted += 1;
        }
    }

    /// The task has finished, and its reply has been taken in.
    pub fn remove_submitted(&mut self, object_id: ObjectId, out: &mut Vec<Effect>) {
        self.release(object_id, |entry| &mut entry.submitted, out);
    }

    /// The value of `outer` refers to these objects, all of them known here: they stay in use as long
    /// as `outer` is. Only the first list counts, as a value does not change.
    pub fn set_contained(&mut self, outer: ObjectId, inner: Vec<ObjectId>) {
        match self.entries.get_mut(&outer) {
            Some(entry) if !entry.has_contained && !inner.is_empty() => entry.has_contained = true,
            Some(_) | None => return,
        }
        for object_id in &inner {
            if let Some(entry) = self.entries.get_mut(object_id) {
                entry.contained_in += 1;
            }
        }
        self.contains.insert(outer, inner);
    }

    /// The objects to which the value of `outer` refers, as far as known.
    pub fn contained(&self, outer: ObjectId) -> &[ObjectId] {
        self.contains.get(&outer).map_or(&[], Vec::as_slice)
    }

    /// As owner, promises `borrower` to keep the object. Returns false if it is not there to keep.
    pub fn grant(&mut self, object_id: ObjectId, borrower: WorkerId) -> bool {
        let Some(entry) = self.entries.get_mut(&object_id) else { return false };
        if entry.borrowed().is_some() {
            return false;
        }
        if self.dead.contains(&borrower) {
            return true;
        }
        entry.is_granted = true;
        let borrowers = self.grants.entry(object_id).or_default();
        match borrowers.iter_mut().find(|(known, _)| *known == borrower) {
            Some((_, grants)) => *grants += 1,
            None => borrowers.push((borrower, 1)),
        }
        true
    }

    /// As borrower, has received a grant that it asked for.
    pub fn add_grant(&mut self, object_id: ObjectId) -> bool {
        let borrowed = self.entries.get_mut(&object_id).and_then(Entry::borrowed);
        borrowed.map(|borrowed| borrowed.grants += 1).is_some()
    }

    /// Whether another process refers to an object that this one owns.
    pub fn has_borrowers(&self) -> bool {
        !self.grants.is_empty()
    }

    /// As owner, gets grants back.
    pub fn return_grants(
        &mut self,
        object_id: ObjectId,
        borrower: WorkerId,
        returned: u32,
        out: &mut Vec<Effect>,
    ) {
        if let Some(borrowers) = self.grants.get_mut(&object_id) {
            for (_, grants) in borrowers.iter_mut().filter(|(known, _)| *known == borrower) {
                *grants = grants.saturating_sub(returned);
            }
            borrowers.retain(|(_, grants)| *grants > 0);
            self.on_fewer_grants(object_id, out);
        }
    }

    /// Some grants of an object of ours are gone.
    fn on_fewer_grants(&mut self, object_id: ObjectId, out: &mut Vec<Effect>) {
        if self.grants.get(&object_id).is_some_and(Vec::is_empty) {
            self.grants.remove(&object_id);
            if let Some(entry) = self.entries.get_mut(&object_id) {
                entry.is_granted = false;
            }
            self.collect(object_id, out);
        }
    }

    /// A process is gone, and every grant to it with it.
    pub fn on_worker_died(&mut self, worker_id: WorkerId, out: &mut Vec<Effect>) {
        if !self.dead.insert(worker_id) {
            return;
        }
        self.dead_in_order.push_back(worker_id);
        if self.dead_in_order.len() > REMEMBERED_DEAD {
            let forgotten = self.dead_in_order.pop_front().expect("it is not empty");
            self.dead.remove(&forgotten);
        }
        let mut touched = Vec::new();
        for (&object_id, borrowers) in &mut self.grants {
            let before = borrowers.len();
            borrowers.retain(|(borrower, _)| *borrower != worker_id);
            if borrowers.len() < before {
                touched.push(object_id);
            }
        }
        touched.sort_unstable();
        for object_id in touched {
            self.on_fewer_grants(object_id, out);
        }
    }

    /// Whether this process is known to be gone.
    pub fn is_dead(&self, worker_id: WorkerId) -> bool {
        self.dead.contains(&worker_id)
    }

    /// The objects that are borrowed from this process.
    pub fn borrowed_of(&self, owner: WorkerId) -> Vec<ObjectId> {
        let of_owner = |(&object_id, entry): (&ObjectId, &Entry)| match &entry.side {
            Side::Borrowed(borrowed) if borrowed.owner.worker_id == owner => Some(object_id),
            Side::Borrowed(_) | Side::Owned => None,
        };
        let mut borrowed: Vec<ObjectId> = self.entries.iter().filter_map(of_owner).collect();
        borrowed.sort_unstable();
        borrowed
    }

    /// All references, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (ObjectId, Uses)> {
        self.entries.iter().map(|(&object_id, entry)| {
            let owner = match &entry.side {
                Side::Owned => None,
                Side::Borrowed(borrowed) => Some(borrowed.owner.worker_id),
            };
            let uses = Uses {
                owner,
                local: entry.local,
                submitted: entry.submitted,
                contained_in: entry.contained_in,
                borrowers: self.grants.get(&object_id).map_or(0, Vec::len),
            };
            (object_id, uses)
        })
    }

    /// Whether any reference is known here.
    pub fn contains(&self, object_id: ObjectId) -> bool {
        self.entries.contains_key(&object_id)
    }

    /// Whether this process owns the object.
    pub fn is_owned(&self, object_id: ObjectId) -> bool {
        matches!(self.entries.get(&object_id), Some(Entry { side: Side::Owned, .. }))
    }

    /// The owner of a borrowed object; `None` if it is owned here or unknown.
    pub fn borrowed_from(&self, object_id: ObjectId) -> Option<Owner> {
        match &self.entries.get(&object_id)?.side {
            Side::Borrowed(borrowed) => Some(borrowed.owner),
            Side::Owned => None,
        }
    }

    /// Whether this is a borrowed object for which no grant was received: only the sender of the
    /// reference keeps it.
    pub fn lacks_grant(&self, object_id: ObjectId) -> bool {
        let entry = self.entries.get(&object_id);
        matches!(entry, Some(Entry { side: Side::Borrowed(borrowed), .. }) if borrowed.grants == 0)
    }

    /// Whether nothing but one handle refers to the object.
    pub fn has_one_handle(&self, object_id: ObjectId) -> bool {
        let alone = |entry: &Entry| {
            entry.local == 1 && entry.submitted == 0 && entry.contained_in == 0 && !entry.is_granted
        };
        self.entries.get(&object_id).is_some_and(alone)
    }

    /// How many objects are referred to.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no object is referred to.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn release(&mut self, object_id: ObjectId, count: fn(&mut Entry) -> &mut u32, out: &mut Vec<Effect>) {
        if let Some(entry) = self.entries.get_mut(&object_id) {
            let count = count(entry);
            debug_assert!(*count > 0, "{object_id} is released more often than held");
            *count = count.saturating_sub(1);
            if !entry.is_in_use() {
                self.collect(object_id, out);
            }
        }
    }

    /// Drops the entry if nothing uses it, and then what only its value kept. A loop, not a
    /// recursion, for references can be nested to any depth.
    fn collect(&mut self, object_id: ObjectId, out: &mut Vec<Effect>) {
        let mut candidates = vec![object_id];
        while let Some(object_id) = candidates.pop() {
            if self.entries.get(&object_id).is_none_or(Entry::is_in_use) {
                continue;
            }
            let entry = self.entries.remove(&object_id).expect("it was just looked at");
            out.push(match entry.side {
                Side::Owned => Effect::Free(object_id),
                Side::Borrowed(borrowed) => {
                    let Borrowed { owner, grants } = *borrowed;
                    Effect::ReturnGrants { owner, object_id, grants }
                }
            });
            let contained = if entry.has_contained { self.contains.remove(&object_id) } else { None };
            for inner in contained.into_iter().flatten() {
                if let Some(entry) = self.entries.get_mut(&inner) {
                    entry.contained_in -= 1;
                    candidates.push(inner);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
