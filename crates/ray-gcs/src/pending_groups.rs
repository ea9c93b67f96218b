//! The placement groups that wait for nodes, in the order in which they came.
//!
//! A group that found no nodes is looked at again when something about the nodes has changed, and a new one at once.

use std::collections::{BTreeMap, BTreeSet};

use ray_core::id::PlacementGroupId;

/// The groups that wait for nodes.
#[derive(Debug, Default)]
pub struct PendingGroups {
    /// By order of arrival.
    queue: BTreeMap<u64, PlacementGroupId>,
    places: BTreeMap<PlacementGroupId, u64>,
    /// Those that were not looked at yet.
    untried: BTreeSet<u64>,
    next: u64,
    /// The version of the view when all were looked at last.
    tried_at: u64,
}

impl PendingGroups {
    /// A group begins to wait. One that waits already keeps its place.
    pub fn push(&mut self, group_id: PlacementGroupId) {
        let place = *self.places.entry(group_id).or_insert(self.next);
        if place == self.next {
            self.next += 1;
        }
        self.queue.insert(place, group_id);
        self.untried.insert(place);
    }

    /// A group waits no longer.
    pub fn remove(&mut self, group_id: &PlacementGroupId) {
        if let Some(place) = self.places.remove(group_id) {
            self.queue.remove(&place);
            self.untried.remove(&place);
        }
    }

    /// Those to be looked at, given the version of the view of the nodes.
    pub fn to_try(&self, version: u64) -> Vec<PlacementGroupId> {
        if version == self.tried_at {
            self.untried.iter().map(|place| self.queue[place]).collect()
        } else {
            self.queue.values().copied().collect()
        }
    }

    /// All were looked at, in the view of this version.
    pub fn tried(&mut self, version: u64) {
        self.untried.clear();
        self.tried_at = version;
    }

    /// Who waits, in the order of ids; for tests.
    pub fn iter(&self) -> impl Iterator<Item = PlacementGroupId> {
        self.places.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> PlacementGroupId {
        PlacementGroupId::from_bytes([n; 16])
    }

    #[test]
    fn all_are_tried_when_the_nodes_have_changed_and_else_the_new_ones() {
        let mut pending = PendingGroups::default();
        pending.push(id(2));
        pending.push(id(1));
        assert_eq!(pending.to_try(1), [id(2), id(1)]);
        pending.tried(1);
        assert_eq!(pending.to_try(1), []);
        pending.push(id(3));
        assert_eq!(pending.to_try(1), [id(3)]);
        assert_eq!(pending.to_try(2), [id(2), id(1), id(3)]);
        pending.remove(&id(1));
        pending.push(id(2));
        assert_eq!(pending.to_try(1), [id(2), id(3)]);
    }
}
