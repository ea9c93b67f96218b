//! Which ranges of a shared region this process reads and which it writes.
//!
//! The store's protocol keeps readers and writers of one range apart between processes. Inside a
//! process this book does, so that safe code cannot make a mutable slice that overlaps another.
//!
//! ```text
//!  read:  refused while a writer overlaps        write: refused while anybody overlaps
//! ```

use std::collections::BTreeMap;
use std::ops::Range;

/// The borrowed ranges; none of them is empty.
#[derive(Debug, Default)]
pub(crate) struct Borrows {
    /// Start to end of what is written. These never overlap.
    writers: BTreeMap<u64, u64>,
    /// How often each range is read. These may overlap.
    readers: BTreeMap<(u64, u64), u32>,
    /// No range that is read is longer than this.
    longest_reader: u64,
}

impl Borrows {
    /// Notes a reader; false, and nothing noted, if a writer overlaps.
    pub(crate) fn read(&mut self, range: Range<u64>) -> bool {
        if self.has_writer(&range) {
            return false;
        }
        self.longest_reader = self.longest_reader.max(range.end - range.start);
        *self.readers.entry((range.start, range.end)).or_default() += 1;
        true
    }

    /// Notes a writer; false, and nothing noted, if a reader or a writer overlaps.
    pub(crate) fn write(&mut self, range: Range<u64>) -> bool {
        if self.has_writer(&range) || self.has_reader(&range) {
            return false;
        }
        self.writers.insert(range.start, range.end);
        true
    }

    /// Forgets one reader of exactly this range.
    pub(crate) fn end_read(&mut self, range: Range<u64>) {
        let key = (range.start, range.end);
        if let Some(count) = self.readers.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.readers.remove(&key);
            }
        }
        if self.readers.is_empty() {
            self.longest_reader = 0;
        }
    }

    /// Forgets the writer of this range.
    pub(crate) fn end_write(&mut self, range: Range<u64>) {
        self.writers.remove(&range.start);
    }

    fn has_writer(&self, range: &Range<u64>) -> bool {
        self.writers.range(..range.end).next_back().is_some_and(|(_, &end)| end > range.start)
    }

    fn has_reader(&self, range: &Range<u64>) -> bool {
        // A reader that begins earlier than the longest one is long cannot reach into the range.
        let earliest = range.start.saturating_sub(self.longest_reader);
        self.readers.range((earliest, 0)..(range.end, 0)).any(|(&(_, end), _)| end > range.start)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a model that is a plain list of borrows.
        #[test]
        fn writers_are_alone(
            steps in prop::collection::vec((any::<bool>(), any::<bool>(), 0..100u64, 1..30u64), 1..200)
        ) {
            let mut borrows = Borrows::default();
            let mut live: Vec<(bool, Range<u64>)> = Vec::new();
            for (add, is_write, start, len) in steps {
                if !add && !live.is_empty() {
                    let (is_write, range) = live.swap_remove(start as usize % live.len());
                    if is_write { borrows.end_write(range) } else { borrows.end_read(range) }
                    continue;
                }
                let range = start..start + len;
                let clash = live.iter().any(|(other_writes, other)| {
                    (is_write || *other_writes) && other.start < range.end && range.start < other.end
                });
                let granted =
                    if is_write { borrows.write(range.clone()) } else { borrows.read(range.clone()) };
                prop_assert_eq!(granted, !clash);
                if granted {
                    live.push((is_write, range));
                }
            }
        }
    }
}
