//! The values that this process knows, and who waits for those that it does not know yet.
//!
//! ```text
//!   expect, wait           set
//!  -------------> Pending -----> Ready ---> removed with the last reference
//!       \-----------------------^
//!               set
//! ```
//! An object that nobody waits for yet need not be here before it has its value.

use std::collections::hash_map::Entry;

use ray_core::id::{ObjectId, WorkerId};
use rustc_hash::FxHashMap;

use crate::value::Value;

/// A thread of this process that waits; the shell's number for it.
pub type WaiterId = usize;

/// Somebody who is told through an inbox; the shell's number for it, never used twice.
pub type ListenerId = u64;

/// Small, for a process may keep millions.
#[derive(Debug)]
enum Slot {
    Pending(Box<Told>),
    Ready(Value),
}

const _: () = assert!(size_of::<Slot>() <= 40, "a slot is kept for every object");

/// Who has to be told of a value.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Threads, once for each time that they asked.
    pub threads: Vec<WaiterId>,
    /// Those who listen.
    pub listeners: Vec<ListenerId>,
    /// Borrowers.
    pub peers: Vec<WorkerId>,
}

/// Values by object.
#[derive(Debug, Default)]
pub struct MemoryStore {
    slots: FxHashMap<ObjectId, Slot>,
}

impl MemoryStore {
    /// Notes an object whose value will come. One that is known already is left as it is.
    pub fn expect(&mut self, object_id: ObjectId) {
        self.pending(object_id);
    }

    /// Sets a value. The first one counts; who waited for it is returned.
    pub fn set(&mut self, object_id: ObjectId, value: Value) -> Told {
        match self.slots.entry(object_id) {
            Entry::Vacant(entry) => {
                entry.insert(Slot::Ready(value));
                Told::default()
            }
            Entry::Occupied(mut entry) => match entry.get_mut() {
                Slot::Pending(told) => {
                    let told = std::mem::take(&mut **told);
                    entry.insert(Slot::Ready(value));
                    told
                }
                Slot::Ready(_) => Told::default(),
            },
        }
    }

    /// Sets a value though there is one: a copy was lost, or was found elsewhere.
    pub fn replace(&mut self, object_id: ObjectId, value: Value) -> Told {
        match self.slots.insert(object_id, Slot::Ready(value)) {
            Some(Slot::Pending(told)) => *told,
            Some(Slot::Ready(_)) | None => Told::default(),
        }
    }

    /// Who waits for an object, which is noted if it is not known; `None` if it has a value.
    fn pending(&mut self, object_id: ObjectId) -> Option<&mut Told> {
        match self.slots.entry(object_id).or_insert_with(|| Slot::Pending(Box::default())) {
            Slot::Pending(told) => Some(told),
            Slot::Ready(_) => None,
        }
    }

    /// The value, if there is one yet.
    pub fn get(&self, object_id: ObjectId) -> Option<&Value> {
        match self.slots.get(&object_id)? {
            Slot::Ready(value) => Some(value),
            Slot::Pending(_) => None,
        }
    }

    /// Whether the object is known, with a value or without.
    pub fn contains(&self, object_id: ObjectId) -> bool {
        self.slots.contains_key(&object_id)
    }

    /// Tells `waiter` when there is a value. Returns false if there is one.
    pub fn wait(&mut self, object_id: ObjectId, waiter: WaiterId) -> bool {
        self.pending(object_id).map(|told| told.threads.push(waiter)).is_some()
    }

    /// Tells `listener` when there is a value. Returns false if there is one.
    pub fn listen(&mut self, object_id: ObjectId, listener: ListenerId) -> bool {
        self.pending(object_id).map(|told| told.listeners.push(listener)).is_some()
    }

    /// Tells this borrower when there is a value. Returns false if there is one.
    pub fn wait_as_peer(&mut self, object_id: ObjectId, peer: WorkerId) -> bool {
        let Some(told) = self.pending(object_id) else { return false };
        if !told.peers.contains(&peer) {
            told.peers.push(peer);
        }
        true
    }

    /// The waiter is gone: nobody needs to tell it.
    pub fn forget_waiter(&mut self, object_id: ObjectId, waiter: WaiterId) {
        if let Some(Slot::Pending(told)) = self.slots.get_mut(&object_id) {
            told.threads.retain(|&other| other != waiter);
        }
    }

    /// The listener need not be told.
    pub fn forget_listener(&mut self, object_id: ObjectId, listener: ListenerId) {
        if let Some(Slot::Pending(told)) = self.slots.get_mut(&object_id) {
            told.listeners.retain(|&other| other != listener);
        }
    }

    /// Drops an object. Returns its value, if it had one, and who waited in vain.
    pub fn remove(&mut self, object_id: ObjectId) -> (Option<Value>, Told) {
        match self.slots.remove(&object_id) {
            Some(Slot::Ready(value)) => (Some(value), Told::default()),
            Some(Slot::Pending(told)) => (None, *told),
            None => (None, Told::default()),
        }
    }

    /// How many objects are known.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The bytes of values that live here.
    pub fn inline_bytes(&self) -> usize {
        let size = |slot: &Slot| match slot {
            Slot::Ready(Value::Inline(bytes)) => bytes.len(),
            Slot::Ready(Value::Stored { .. } | Value::Failed(_)) | Slot::Pending(_) => 0,
        };
        self.slots.values().map(size).sum()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use ray_core::id::TaskId;

    use super::*;

    fn inline(text: &'static str) -> Value {
        Value::Inline(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn whoever_waits_is_told_once() {
        let (mut store, object_id) = (MemoryStore::default(), ObjectId::for_return(TaskId::nil(), 0));
        assert!(store.wait(object_id, 1));
        store.expect(object_id);
        assert!(store.wait(object_id, 2));
        store.forget_waiter(object_id, 1);
        assert!(store.listen(object_id, 7));
        assert!(store.listen(object_id, 8));
        store.forget_listener(object_id, 7);
        let peer = WorkerId::random();
        assert!(store.wait_as_peer(object_id, peer));
        assert!(store.wait_as_peer(object_id, peer));
        assert_eq!(
            store.set(object_id, inline("a")),
            Told { threads: vec![2], listeners: vec![8], peers: vec![peer] }
        );
        assert!(!store.wait(object_id, 3));
        assert!(!store.listen(object_id, 9));
        assert_eq!(store.get(object_id), Some(&inline("a")));
    }

    #[test]
    fn the_first_value_counts() {
        let (mut store, object_id) = (MemoryStore::default(), ObjectId::for_return(TaskId::nil(), 0));
        store.set(object_id, inline("first"));
        store.set(object_id, inline("second"));
        assert_eq!(store.get(object_id), Some(&inline("first")));
        assert_eq!(store.inline_bytes(), 5);
        assert_eq!(store.remove(object_id).0, Some(inline("first")));
        assert!(store.is_empty());
    }
}
