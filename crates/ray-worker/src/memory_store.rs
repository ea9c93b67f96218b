//! The values that this process knows, and who waits for those that it does not know yet.
//!
//! ```text
//!   expect            set
//!  --------> Pending -----> Ready ---> removed with the last reference
//! ```

use ray_core::id::{ObjectId, WorkerId};
use rustc_hash::FxHashMap;

use crate::value::Value;

/// A thread of this process that waits; the shell's number for it.
pub type WaiterId = usize;

#[derive(Debug)]
enum Slot {
    Pending {
        threads: Vec<WaiterId>,
        /// Borrowers that asked for the value.
        peers: Vec<WorkerId>,
    },
    Ready(Value),
}

/// Who has to be told of a value.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Threads, once for each time that they asked.
    pub threads: Vec<WaiterId>,
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
        let pending = || Slot::Pending { threads: Vec::new(), peers: Vec::new() };
        self.slots.entry(object_id).or_insert_with(pending);
    }

    /// Sets a value. The first one counts; who waited for it is returned.
    pub fn set(&mut self, object_id: ObjectId, value: Value) -> Told {
        match self.slots.insert(object_id, Slot::Ready(value)) {
            Some(Slot::Pending { threads, peers }) => Told { threads, peers },
            Some(first @ Slot::Ready(_)) => {
                self.slots.insert(object_id, first);
                Told::default()
            }
            None => Told::default(),
        }
    }

    /// Sets a value though there is one: a copy was lost, or was found elsewhere.
    pub fn replace(&mut self, object_id: ObjectId, value: Value) -> Told {
        match self.slots.insert(object_id, Slot::Ready(value)) {
            Some(Slot::Pending { threads, peers }) => Told { threads, peers },
            Some(Slot::Ready(_)) | None => Told::default(),
        }
    }

    /// The value, if there is one yet.
    pub fn get(&self, object_id: ObjectId) -> Option<&Value> {
        match self.slots.get(&object_id)? {
            Slot::Ready(value) => Some(value),
            Slot::Pending { .. } => None,
        }
    }

    /// Whether the object is known, with a value or without.
    pub fn contains(&self, object_id: ObjectId) -> bool {
        self.slots.contains_key(&object_id)
    }

    /// Tells `waiter` when there is a value. Returns false if there is one, or the object is unknown.
    pub fn wait(&mut self, object_id: ObjectId, waiter: WaiterId) -> bool {
        match self.slots.get_mut(&object_id) {
            Some(Slot::Pending { threads, .. }) => {
                threads.push(waiter);
                true
            }
            Some(Slot::Ready(_)) | None => false,
        }
    }

    /// Tells this borrower when there is a value. Returns false if there is one, or the object is
    /// unknown.
    pub fn wait_as_peer(&mut self, object_id: ObjectId, peer: WorkerId) -> bool {
        match self.slots.get_mut(&object_id) {
            Some(Slot::Pending { peers, .. }) => {
                if !peers.contains(&peer) {
                    peers.push(peer);
                }
                true
            }
            Some(Slot::Ready(_)) | None => false,
        }
    }

    /// The waiter is gone: nobody needs to tell it.
    pub fn forget_waiter(&mut self, object_id: ObjectId, waiter: WaiterId) {
        if let Some(Slot::Pending { threads, .. }) = self.slots.get_mut(&object_id) {
            threads.retain(|&other| other != waiter);
        }
    }

    /// Drops an object. Returns its value, if it had one, and who waited in vain.
    pub fn remove(&mut self, object_id: ObjectId) -> (Option<Value>, Told) {
        match self.slots.remove(&object_id) {
            Some(Slot::Ready(value)) => (Some(value), Told::default()),
            Some(Slot::Pending { threads, peers }) => (None, Told { threads, peers }),
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
            Slot::Ready(Value::Stored { .. } | Value::Failed(_)) | Slot::Pending { .. } => 0,
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
        assert!(!store.wait(object_id, 1), "an unknown object is not waited for");
        store.expect(object_id);
        assert!(store.wait(object_id, 1));
        assert!(store.wait(object_id, 2));
        store.forget_waiter(object_id, 1);
        let peer = WorkerId::random();
        assert!(store.wait_as_peer(object_id, peer));
        assert!(store.wait_as_peer(object_id, peer));
        assert_eq!(store.set(object_id, inline("a")), Told { threads: vec![2], peers: vec![peer] });
        assert!(!store.wait(object_id, 3));
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
