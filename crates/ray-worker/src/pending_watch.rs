//! What has waited for so long without progress that a person should be told why.
//!
//! ```text
//!            seen              for patience, with the same mark
//!  (unknown) ----> waiting ------------------------------------> told
//!       ^            | ^ |  another mark                          |
//!       |            | +-+                                        |
//!       +------------+------------ not seen any more -------------+
//! ```
//! The mark changes with every sign of progress. A cause is told once; a text that was told is not told
//! again, so that what waits, goes on and waits again for the same reason is not told over and over.

use std::time::{Duration, Instant};

use ray_core::id::ActorId;
use rustc_hash::{FxHashMap, FxHashSet};

/// Texts that are remembered; past that, none is told any more.
const MAX_TEXTS: usize = 1_000;

/// Who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// Tasks of a scheduling class, none of which is under way.
    Class(u64),
    /// An actor that is being made, or whose calls wait for it.
    Actor(ActorId),
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    mark: u64,
    told: bool,
}

/// Who waits, and since when.
#[derive(Debug)]
pub struct PendingWatch {
    patience: Duration,
    waiting: FxHashMap<Cause, Waiting>,
    told: FxHashSet<String>,
    next_look: Option<Instant>,
}

impl PendingWatch {
    /// Tells who has waited for `patience`; zero: nobody.
    pub fn new(patience: Duration) -> Self {
        Self { patience, waiting: FxHashMap::default(), told: FxHashSet::default(), next_look: None }
    }

    /// When to look next, if anything is pending.
    pub fn next_look(&self) -> Option<Instant> {
        if self.patience.is_zero() { None } else { self.next_look }
    }

    /// Whether it is time to look; asks for the next look to come.
    pub fn is_due(&mut self, now: Instant) -> bool {
        if self.patience.is_zero() || self.next_look.is_some_and(|at| at > now) {
            return false;
        }
        let is_due = self.next_look.is_some();
        self.next_look = Some(now + (self.patience / 10).max(Duration::from_millis(1)));
        is_due
    }

    /// Nothing is pending: no look is needed before something is.
    pub fn rest(&mut self) {
        self.next_look = None;
        self.waiting.clear();
    }

    /// Takes in who waits now, each with its mark. Returns whose reason has to be found out.
    pub fn look(&mut self, now: Instant, present: impl Iterator<Item = (Cause, u64)>) -> Vec<Cause> {
        let mut before = std::mem::take(&mut self.waiting);
        let mut due = Vec::new();
        for (cause, mark) in present {
            let known = before.remove(&cause).filter(|known| known.mark == mark);
            let mut waiting = known.unwrap_or(Waiting { since: now, mark, told: false });
            if !waiting.told && now.saturating_duration_since(waiting.since) >= self.patience {
                waiting.told = true;
                due.push(cause);
            }
            self.waiting.insert(cause, waiting);
        }
        due.sort_unstable();
        due
    }

    /// This was told in some other way.
    pub fn on_told(&mut self, cause: Cause) {
        if let Some(waiting) = self.waiting.get_mut(&cause) {
            waiting.told = true;
        }
    }

    /// Whether this reason of this cause is to be told; it counts as told from now on.
    pub fn is_news(&mut self, cause: Cause, reason: &str) -> bool {
        if self.told.len() >= MAX_TEXTS {
            return false;
        }
        self.told.insert(format!("{cause:?} {reason}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn a_cause_is_told_once_it_has_waited_for_so_long_without_progress() {
        let start = Instant::now();
        let mut watch = PendingWatch::new(PATIENCE);
        let at = |seconds| start + Duration::from_secs(seconds);
        let (one, two) = (Cause::Class(1), Cause::Class(2));
        assert_eq!(watch.look(at(0), [(one, 5), (two, 5)].into_iter()), []);
        // The second makes progress.
        assert_eq!(watch.look(at(9), [(one, 5), (two, 6)].into_iter()), []);
        assert_eq!(watch.look(at(10), [(one, 5), (two, 6)].into_iter()), [one]);
        assert_eq!(watch.look(at(18), [(one, 5), (two, 6)].into_iter()), []);
        assert_eq!(watch.look(at(19), [(one, 5), (two, 6)].into_iter()), [two]);
        // It goes on, and waits again.
        assert_eq!(watch.look(at(20), [(two, 6)].into_iter()), []);
        assert_eq!(watch.look(at(21), [(one, 7)].into_iter()), []);
        assert_eq!(watch.look(at(31), [(one, 7)].into_iter()), [one]);
        assert!(watch.is_news(one, "no gizmo"));
        assert!(!watch.is_news(one, "no gizmo"));
        assert!(watch.is_news(one, "no worker starts"));
        assert!(watch.is_news(two, "no gizmo"));
    }

    #[test]
    fn looks_are_due_while_something_is_pending() {
        let start = Instant::now();
        let mut watch = PendingWatch::new(PATIENCE);
        assert_eq!(watch.next_look(), None);
        assert!(!watch.is_due(start));
        assert_eq!(watch.next_look(), Some(start + PATIENCE / 10));
        assert!(!watch.is_due(start + PATIENCE / 20));
        assert!(watch.is_due(start + PATIENCE / 10));
        watch.rest();
        assert_eq!(watch.next_look(), None);
        let mut never = PendingWatch::new(Duration::ZERO);
        assert!(!never.is_due(start) && !never.is_due(start + PATIENCE) && never.next_look().is_none());
    }

    #[test]
    fn what_was_told_otherwise_is_not_told_again() {
        let start = Instant::now();
        let mut watch = PendingWatch::new(PATIENCE);
        let one = Cause::Class(1);
        watch.look(start, [(one, 5)].into_iter());
        watch.on_told(one);
        assert_eq!(watch.look(start + PATIENCE, [(one, 5)].into_iter()), []);
    }
}
