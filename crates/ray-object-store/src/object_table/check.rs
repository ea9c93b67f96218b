//! Whether the books of the table agree with one another.

use std::collections::BTreeSet;

use super::entry::{Place, Rank};
use super::waiting::Want;
use super::{ObjectTable, footprint};

impl ObjectTable {
    /// Checks what holds between any two events.
    pub(super) fn check_invariants(&self) {
        self.arena.check_invariants();
        self.check_space();
        self.check_clients();
        self.check_waiters();
    }

    fn check_space(&self) {
        let mut used = 0;
        let (mut spilling, mut spilled, mut disk_jobs, mut droppable) = (0, 0, 0, 0);
        let mut candidates = BTreeSet::new();
        for (id, entry) in &self.entries {
            if let Some(offset) = entry.place.offset() {
                assert_eq!(self.arena.len_at(offset), Some(footprint(entry.size)));
                used += footprint(entry.size);
            }
            let (is_spilling, is_restoring) = (
                matches!(entry.place, Place::Spilling { .. }),
                matches!(entry.place, Place::Restoring { .. }),
            );
            disk_jobs += usize::from(is_spilling) + usize::from(is_restoring);
            spilling += if is_spilling { footprint(entry.size) } else { 0 };
            spilled += if is_spilling || entry.place.url().is_some() { entry.size } else { 0 };
            assert_eq!(entry.candidate.map(|(rank, _)| rank), entry.rank());
            if let Some((rank, at)) = entry.candidate {
                candidates.insert((rank, at, *id));
                droppable += if rank == Rank::Dirty { 0 } else { footprint(entry.size) };
            }
            let is_kept = entry.pins > 0 || entry.place.is_busy() || !entry.is_doomed;
            assert!(is_kept, "a deleted object goes when nobody uses it");
            assert!(entry.copy_of.is_none() || entry.owner.is_nil(), "nobody here owns a copy");
            let is_owned = self.owned.get(&entry.owner).is_some_and(|owned| owned.contains(id));
            assert_eq!(is_owned, !entry.owner.is_nil());
        }
        assert_eq!(self.arena.used(), used);
        assert_eq!((self.spilling, self.spilled, self.disk_jobs), (spilling, spilled, disk_jobs));
        assert_eq!((&self.candidates, self.droppable), (&candidates, droppable));
        assert!(self.owned.values().flatten().all(|id| self.entries.contains_key(id)));
        if let Some(create) = self.creates.front().filter(|_| self.restores.is_empty()) {
            assert!(!self.arena.fits(create.size), "nobody waits for space that is there");
            assert!(!self.entries.contains_key(&create.object_id));
        }
        assert!(self.creates.len() <= self.config.max_waiting.max(1));
    }

    fn check_clients(&self) {
        for (id, nodes) in &self.lent {
            assert!(!nodes.is_empty());
            let entry = self.entries.get(id).filter(|entry| !entry.is_doomed);
            assert!(entry.is_some(), "copies of what is gone are recalled");
        }
        for (id, entry) in &self.entries {
            let pins: u64 = self.clients.values().filter_map(|client| client.pins.get(id)).sum();
            assert_eq!(entry.pins, pins, "pins of {id}");
            if let Place::Writing { writer, .. } = entry.place {
                assert!(self.clients[&writer].writing.contains(id));
                assert_eq!(entry.pins, 0);
            }
        }
        for (id, client) in &self.clients {
            assert!(
                client.pins.iter().all(|(object, count)| *count > 0 && self.entries.contains_key(object))
            );
            for object in &client.writing {
                assert!(matches!(self.entries[object].place, Place::Writing { writer, .. } if writer == *id));
            }
        }
    }

    fn check_waiters(&self) {
        let mut count = 0;
        for (object_id, waiters) in &self.waiters {
            assert!(!waiters.is_empty());
            count += waiters.len();
            let entry = self.entries.get(object_id);
            for waiter in waiters {
                assert!(self.clients[&waiter.client].waiting.contains(&(waiter.request, *object_id)));
                let Some(entry) = entry else { continue };
                let is_fulfilled = match waiter.want {
                    Want::Pin(_) => entry.place.readable_offset().is_some(),
                    Want::Arrival => entry.place.is_sealed(),
                    Want::Copy => entry.place.url().is_some(),
                };
                assert!(!is_fulfilled, "{waiter:?} waits for what is there: {entry:?}");
                let is_queued = self.restores.iter().any(|restore| restore.object_id == *object_id);
                let is_stuck = matches!((waiter.want, &entry.place), (Want::Pin(_), Place::Disk { .. }));
                assert!(!is_stuck || is_queued, "somebody brings back what is waited for");
            }
        }
        assert_eq!(self.waiter_count, count);
        assert_eq!(count, self.clients.values().map(|client| client.waiting.len()).sum::<usize>());
    }

    /// Whether nothing is left of anything.
    pub(super) fn is_pristine(&self) -> bool {
        self.entries.is_empty()
            && self.waiters.is_empty()
            && self.creates.is_empty()
            && self.restores.is_empty()
            && self.owned.is_empty()
            && self.lent.is_empty()
            && self.clients.is_empty()
            && self.arena.free_extents() == 1
            && (self.spilled, self.spilling, self.disk_jobs) == (0, 0, 0)
    }
}
