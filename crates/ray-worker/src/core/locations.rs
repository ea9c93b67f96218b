//! Where objects are, as far as this process knows.

use ray_core::id::{NodeId, ObjectId};

use super::CoreWorker;
use super::state::State;
use crate::value::Value;

/// Where an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The node whose shared memory has it, and the own one if a copy is read here; none for a small one, which is in
    /// its owner's memory.
    pub nodes: Vec<NodeId>,
    /// Size of the encoded value in bytes; `None` while there is no value, and if there will be none.
    pub size: Option<u64>,
    /// Whether a copy was written to disk once. Its owner knows; others say no.
    pub did_spill: bool,
}

impl CoreWorker {
    /// What this process knows of an object's whereabouts; `None` if that is nothing: another process owns
    /// it, and its value was not asked for yet.
    pub fn location_of(&self, object_id: ObjectId) -> Option<Location> {
        let state = self.lock();
        let (nodes, size) = match state.memory.get(object_id) {
            Some(Value::Inline(bytes)) => (Vec::new(), Some(bytes.len() as u64)),
            Some(&Value::Stored { node_id, size }) => {
                let own = self.me.node_id;
                let has_copy = node_id != own && state.pins.is_read(object_id);
                (has_copy.then_some(own).into_iter().chain([node_id]).collect(), Some(size))
            }
            Some(Value::Failed(_)) => (Vec::new(), None),
            None if state.references.is_owned(object_id) => (Vec::new(), None),
            None => return None,
        };
        Some(Location { nodes, size, did_spill: state.shared.spilled.contains(&object_id) })
    }
}

impl State {
    /// The node has written a copy of an owned object to disk.
    pub(super) fn on_object_spilled(&mut self, object_id: ObjectId) {
        // It may have been freed while the news were under way.
        if self.references.is_owned(object_id) {
            self.shared.spilled.insert(object_id);
        }
    }
}
