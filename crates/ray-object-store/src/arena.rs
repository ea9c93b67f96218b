//! Hands out ranges of an address space [0, capacity): where in shared memory an object lies.
//!
//! ```text
//!  0                                              tail            warm               capacity
//!  | used | hole | used | used | hole | used | used |  free, warm   |    free, cold      |
//! ```
//!
//! Everything from `tail` on is free. Holes are the free extents before it; each borders on used
//! ranges at both ends, so that a range that becomes free merges with its neighbours at once.
//!
//! A page that was never touched costs eight times a warm one, because the kernel has to find and
//! clear it. Warmth is one mark: every byte below `warm` was handed out or pre-faulted once. Holes lie
//! below the mark by construction. Holes first, then the tail from its beginning: this order alone
//! takes warm space whenever warm space fits, without keeping a temperature for each extent.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use rustc_hash::FxHashMap;

/// Every range begins at a multiple of this, a cache line.
pub const ALIGNMENT: u64 = 64;
/// Large ranges begin and end at multiples of this, so that they share no page with others.
pub const PAGE_BYTES: u64 = 4096;
/// Ranges of at least this many bytes are large.
pub const LARGE_BYTES: u64 = 64 * 1024;

/// Holes that are tried for a large range before one is taken that fits wherever it begins.
const ALIGNED_TRIES: usize = 8;

/// An allocator over an address range; see the module's documentation.
///
/// Every operation takes time logarithmic in the number of extents.
#[derive(Debug, Clone)]
pub struct Arena {
    capacity: u64,
    /// Everything from here on is free.
    tail: u64,
    /// Everything before here was touched once.
    warm: u64,
    used: u64,
    /// Start to length of what is handed out.
    ranges: FxHashMap<u64, u64>,
    /// Start to length of the holes.
    holes: BTreeMap<u64, u64>,
    /// The holes again, by length, then start.
    holes_by_len: BTreeSet<(u64, u64)>,
}

impl Arena {
    /// An empty arena over `capacity` bytes, all of them cold. What exceeds a multiple of
    /// [`PAGE_BYTES`] stays unused.
    pub fn new(capacity: u64) -> Self {
        Self {
            capacity: capacity / PAGE_BYTES * PAGE_BYTES,
            tail: 0,
            warm: 0,
            used: 0,
            ranges: FxHashMap::default(),
            holes: BTreeMap::new(),
            holes_by_len: BTreeSet::new(),
        }
    }

    /// How many bytes a range of `size` bytes takes up: a multiple of [`ALIGNMENT`], or of
    /// [`PAGE_BYTES`] if it is large; at least one unit. `None` if that is no number.
    pub fn footprint(size: u64) -> Option<u64> {
        size.max(1).checked_next_multiple_of(Self::alignment(size))
    }

    /// Takes a range of at least `size` bytes and returns where it begins; `None` if no free extent
    /// is large enough. The smallest hole that fits is taken, so that large ones last.
    pub fn allocate(&mut self, size: u64) -> Option<u64> {
        let len = Self::footprint(size)?;
        let alignment = Self::alignment(size);
        let start = match self.best_hole(len, alignment) {
            Some(hole) => self.carve_hole(hole, len, alignment),
            None => self.carve_tail(len, alignment)?,
        };
        self.ranges.insert(start, len);
        self.used += len;
        Some(start)
    }

    /// Gives the range that begins at `offset` back; returns its length, or `None` if no range
    /// begins there, in which case nothing changes.
    pub fn free(&mut self, offset: u64) -> Option<u64> {
        let len = self.ranges.remove(&offset)?;
        self.used -= len;
        let (mut start, mut end) = (offset, offset + len);
        if let Some((&before, &before_len)) = self.holes.range(..start).next_back()
            && before + before_len == start
        {
            self.remove_hole(before, before_len);
            start = before;
        }
        if end == self.tail {
            self.tail = start;
            return Some(len);
        }
        if let Some(&after_len) = self.holes.get(&end) {
            self.remove_hole(end, after_len);
            end += after_len;
        }
        self.insert_hole(start, end - start);
        Some(len)
    }

    /// Whether a range of `size` bytes could be taken now.
    pub fn fits(&self, size: u64) -> bool {
        let Some(len) = Self::footprint(size) else { return false };
        let alignment = Self::alignment(size);
        self.best_hole(len, alignment).is_some() || self.tail_start(len, alignment).is_some()
    }

    /// The length of the range that begins at `offset`, if one does.
    pub fn len_at(&self, offset: u64) -> Option<u64> {
        self.ranges.get(&offset).copied()
    }

    /// Bytes that can be handed out, used or free.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes handed out, with what rounding and alignment took up inside the ranges.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Bytes not handed out.
    pub fn free_bytes(&self) -> u64 {
        self.capacity - self.used
    }

    /// Length of the largest free extent in bytes.
    pub fn largest_free(&self) -> u64 {
        let hole = self.holes_by_len.last().map_or(0, |&(len, _)| len);
        hole.max(self.capacity - self.tail)
    }

    /// How many extents are free, the tail included.
    pub fn free_extents(&self) -> usize {
        self.holes.len() + usize::from(self.tail < self.capacity)
    }

    /// Everything below this offset was touched once.
    pub fn warm_until(&self) -> u64 {
        self.warm
    }

    /// The cold range to touch so that the next `ahead` bytes of the tail are warm; `None` if
    /// they are.
    pub fn cold_ahead(&self, ahead: u64) -> Option<Range<u64>> {
        let until = self.tail.saturating_add(ahead).min(self.capacity);
        (until > self.warm).then_some(self.warm..until)
    }

    /// Notes that somebody has touched everything before `until`.
    pub fn warmed(&mut self, until: u64) {
        self.warm = self.warm.max(until.min(self.capacity));
    }

    fn alignment(size: u64) -> u64 {
        if size >= LARGE_BYTES { PAGE_BYTES } else { ALIGNMENT }
    }

    /// The smallest hole in which a range of this length and alignment fits.
    ///
    /// For a large range some holes of sufficient length are too short once their beginning is
    /// aligned. After a few of them one is taken that fits whatever its beginning, so that many near
    /// misses cost no time.
    fn best_hole(&self, len: u64, alignment: u64) -> Option<(u64, u64)> {
        let near = self.holes_by_len.range((len, 0)..).take(ALIGNED_TRIES);
        let sure = self.holes_by_len.range((len + alignment - ALIGNMENT, 0)..).take(1);
        near.chain(sure)
            .map(|&(hole_len, start)| (start, hole_len))
            .find(|&(start, hole_len)| start.next_multiple_of(alignment) + len <= start + hole_len)
    }

    fn carve_hole(&mut self, (start, hole_len): (u64, u64), len: u64, alignment: u64) -> u64 {
        self.remove_hole(start, hole_len);
        let aligned = start.next_multiple_of(alignment);
        self.insert_hole(start, aligned - start);
        self.insert_hole(aligned + len, start + hole_len - (aligned + len));
        aligned
    }

    fn tail_start(&self, len: u64, alignment: u64) -> Option<u64> {
        let start = self.tail.next_multiple_of(alignment);
        (start.checked_add(len)? <= self.capacity).then_some(start)
    }

    fn carve_tail(&mut self, len: u64, alignment: u64) -> Option<u64> {
        let start = self.tail_start(len, alignment)?;
        self.insert_hole(self.tail, start - self.tail);
        self.tail = start + len;
        self.warm = self.warm.max(self.tail);
        Some(start)
    }

    fn insert_hole(&mut self, start: u64, len: u64) {
        if len > 0 {
            self.holes.insert(start, len);
            self.holes_by_len.insert((len, start));
        }
    }

    fn remove_hole(&mut self, start: u64, len: u64) {
        self.holes.remove(&start);
        self.holes_by_len.remove(&(len, start));
    }

    /// Checks that the books agree with one another; for tests.
    ///
    /// # Panics
    /// If they do not.
    #[doc(hidden)]
    pub fn check_invariants(&self) {
        let mut extents: Vec<(u64, u64, bool)> = self.ranges.iter().map(|(&s, &l)| (s, l, true)).collect();
        extents.extend(self.holes.iter().map(|(&s, &l)| (s, l, false)));
        extents.sort_unstable();
        let mut at = 0;
        let mut before_is_used = true;
        for &(start, len, is_used) in &extents {
            assert_eq!(start, at, "extents follow one another without gap or overlap");
            assert!(len > 0 && start % ALIGNMENT == 0);
            assert!(is_used || before_is_used, "free neighbours at {start} are merged");
            (at, before_is_used) = (start + len, is_used);
        }
        assert_eq!(at, self.tail);
        assert!(before_is_used, "the last hole is part of the tail");
        assert!(self.tail <= self.warm && self.warm <= self.capacity);
        assert_eq!(self.used, self.ranges.values().sum::<u64>());
        let by_len: BTreeSet<(u64, u64)> = self.holes.iter().map(|(&s, &l)| (l, s)).collect();
        assert_eq!(by_len, self.holes_by_len);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn ranges_are_aligned_and_large_ones_own_their_pages() {
        let mut arena = Arena::new(MIB);
        assert_eq!(arena.allocate(0), Some(0));
        assert_eq!(arena.allocate(65), Some(64));
        assert_eq!(arena.used(), 64 + 128);
        assert_eq!(arena.allocate(LARGE_BYTES + 1), Some(PAGE_BYTES));
        assert_eq!(arena.used(), 64 + 128 + LARGE_BYTES + PAGE_BYTES);
        // The gap before the large range is of use to small ones.
        assert_eq!(arena.allocate(64), Some(192));
        arena.check_invariants();
    }

    #[test]
    fn the_smallest_hole_that_fits_is_taken() {
        let mut arena = Arena::new(MIB);
        let ranges: Vec<u64> = [256, 64, 128, 64, 192, 64].map(|size| arena.allocate(size).unwrap()).into();
        for hole in [0, 2, 4] {
            arena.free(ranges[hole]);
        }
        assert_eq!(arena.allocate(100), Some(ranges[2]));
        assert_eq!(arena.allocate(192), Some(ranges[4]));
        assert_eq!(arena.allocate(192), Some(ranges[0]));
    }

    #[test]
    fn warm_space_comes_before_cold() {
        let mut arena = Arena::new(MIB);
        let first = arena.allocate(LARGE_BYTES).unwrap();
        let second = arena.allocate(64).unwrap();
        assert_eq!(arena.warm_until(), second + 64);
        arena.free(first);
        assert_eq!(arena.allocate(LARGE_BYTES), Some(first));
        arena.free(second);
        assert_eq!(arena.allocate(64), Some(second));
        assert_eq!(arena.warm_until(), second + 64);
    }

    #[test]
    fn what_is_pre_faulted_is_warm() {
        let mut arena = Arena::new(MIB);
        assert_eq!(arena.cold_ahead(LARGE_BYTES), Some(0..LARGE_BYTES));
        arena.warmed(LARGE_BYTES);
        assert_eq!(arena.cold_ahead(LARGE_BYTES), None);
        arena.allocate(PAGE_BYTES);
        assert_eq!(arena.cold_ahead(LARGE_BYTES), Some(LARGE_BYTES..LARGE_BYTES + PAGE_BYTES));
        assert_eq!(arena.cold_ahead(u64::MAX), Some(LARGE_BYTES..MIB));
        arena.warmed(u64::MAX);
        assert_eq!(arena.warm_until(), MIB);
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let mut arena = Arena::new(2 * PAGE_BYTES + 100);
        assert_eq!(arena.capacity(), 2 * PAGE_BYTES);
        assert_eq!(arena.allocate(u64::MAX), None);
        assert_eq!(arena.allocate(3 * PAGE_BYTES), None);
        assert_eq!(arena.free(0), None);
        assert!(arena.allocate(2 * PAGE_BYTES).is_some());
        assert_eq!(arena.allocate(0), None);
        assert_eq!((arena.free(0), arena.free(0)), (Some(2 * PAGE_BYTES), None));
        assert_eq!(arena.largest_free(), 2 * PAGE_BYTES);
    }

    /// Many holes of the right length at the wrong alignment do not hide one that fits.
    #[test]
    fn near_misses_do_not_hide_a_fit() {
        let mut arena = Arena::new(64 * MIB);
        let mut misaligned = Vec::new();
        for _ in 0..50 {
            // Small ranges, side by side, that together leave a long hole at an odd beginning.
            arena.allocate(64);
            let parts: Vec<u64> = (0..17).map(|_| arena.allocate(PAGE_BYTES - 64).unwrap()).collect();
            misaligned.push(parts);
        }
        let good = arena.allocate(4 * LARGE_BYTES).unwrap();
        arena.allocate(64);
        for part in misaligned.into_iter().flatten() {
            arena.free(part);
        }
        arena.free(good);
        arena.check_invariants();
        let warm = arena.warm_until();
        assert!(arena.allocate(LARGE_BYTES).is_some());
        assert_eq!(arena.warm_until(), warm);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Allocate(u64),
        Free(usize),
        Warm(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..2000u64).prop_map(Step::Allocate),
            2 => (0..200_000u64).prop_map(Step::Allocate),
            5 => any::<usize>().prop_map(Step::Free),
            1 => (0..MIB).prop_map(Step::Warm),
        ]
    }

    proptest! {
        /// Against a model that is a list of live ranges.
        #[test]
        fn ranges_never_overlap_and_come_back_whole(steps in prop::collection::vec(step(), 1..300)) {
            let mut arena = Arena::new(MIB);
            let mut live: Vec<(u64, u64)> = Vec::new();
            for step in steps {
                match step {
                    Step::Allocate(size) => {
                        let (fits, warm) = (arena.fits(size), arena.warm_until());
                        let len = Arena::footprint(size).unwrap();
                        let Some(start) = arena.allocate(size) else {
                            prop_assert!(!fits);
                            prop_assert!(arena.largest_free() < len + PAGE_BYTES);
                            continue;
                        };
                        prop_assert!(fits && len >= size && start + len <= MIB);
                        prop_assert!(live.iter().all(|&(s, l)| start + len <= s || s + l <= start));
                        if size >= LARGE_BYTES {
                            prop_assert_eq!((start % PAGE_BYTES, len % PAGE_BYTES), (0, 0));
                        }
                        prop_assert!(arena.warm_until() >= warm.max(start + len));
                        live.push((start, len));
                    }
                    Step::Free(index) if !live.is_empty() => {
                        let (start, len) = live.swap_remove(index % live.len());
                        prop_assert_eq!(arena.free(start), Some(len));
                    }
                    Step::Free(index) => prop_assert_eq!(arena.free(index as u64), None),
                    Step::Warm(until) => arena.warmed(until),
                }
                prop_assert_eq!(arena.used(), live.iter().map(|&(_, len)| len).sum::<u64>());
                prop_assert_eq!(arena.free_bytes() + arena.used(), MIB);
                arena.check_invariants();
            }
            for (start, len) in live {
                prop_assert_eq!(arena.free(start), Some(len));
            }
            prop_assert_eq!((arena.free_extents(), arena.largest_free(), arena.used()), (1, MIB, 0));
        }
    }
}
