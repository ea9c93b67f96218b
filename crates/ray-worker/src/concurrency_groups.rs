//! Calls of an actor that run side by side: how many of each concurrency group, and how many threads
//! that takes.
//!
//! ```text
//!  call:    push ---> queued ---> taken ---> finished          at most `limit` of a group are taken
//!
//!  thread:  (not there) ---> active <---> idle                 at most `limit` of a group are there
//! ```
//! Python lets one thread run at a time, so a second thread is of use only when the first is *blocked*
//! in something else. Handing each call to a thread of its own would cost more than most calls do.
//! So one thread of a group goes on with call after call as long as it gets ahead, and others join it
//! when calls wait that it does not get to: at once if a call says that it blocks, and else at the next
//! [`ConcurrencyGroups::look`], of which there is one in a millisecond.

use std::collections::VecDeque;

/// Calls that an active thread has to take between two looks to count as one that gets ahead.
const GETS_AHEAD: u64 = 10;

/// The groups of an actor; the first is that of calls that name none. `T` is a call.
#[derive(Debug)]
pub struct ConcurrencyGroups<T> {
    groups: Vec<Group<T>>,
    /// No call that comes now runs any more.
    closing: bool,
}

#[derive(Debug)]
struct Group<T> {
    name: String,
    limit: usize,
    queue: VecDeque<T>,
    running: usize,
    /// Calls taken since the last look.
    taken: u64,
    /// Calls were queued at the last look.
    waited: bool,
    active: usize,
    idle: usize,
}

/// Threads that a group could use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The group.
    pub group: usize,
    /// Idle threads to wake.
    pub wake: usize,
    /// New threads to start.
    pub start: usize,
}

impl<T> ConcurrencyGroups<T> {
    /// Groups by name and limit, beside the one without a name.
    pub fn new(default_limit: usize, named: impl IntoIterator<Item = (String, usize)>) -> Self {
        let groups = std::iter::once((String::new(), default_limit)).chain(named);
        let group = |(name, limit): (String, usize)| Group {
            name,
            limit: limit.max(1),
            queue: VecDeque::new(),
            running: 0,
            taken: 0,
            waited: false,
            active: 0,
            idle: 0,
        };
        Self { groups: groups.map(group).collect(), closing: false }
    }

    /// How many groups there are.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// There is always one.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// The group of this name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.groups.iter().position(|group| group.name == name)
    }

    /// Takes a call in. Returns whether a thread has to come for it at once, for its group has none that
    /// will.
    pub fn push(&mut self, group: usize, call: T) -> bool {
        if self.closing {
            return false;
        }
        let group = &mut self.groups[group];
        group.queue.push_back(call);
        group.active == 0 && group.running < group.limit
    }

    /// The next call of a group, if one more may run.
    pub fn take(&mut self, group: usize) -> Option<T> {
        let group = &mut self.groups[group];
        if group.running >= group.limit {
            return None;
        }
        let call = group.queue.pop_front()?;
        group.running += 1;
        group.taken += 1;
        Some(call)
    }

    /// A call that was taken has ended. Returns whether another of its group can be taken.
    pub fn finish(&mut self, group: usize) -> bool {
        let group = &mut self.groups[group];
        group.running -= 1;
        !group.queue.is_empty()
    }

    /// Removes queued calls.
    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        for group in &mut self.groups {
            group.queue.retain(&keep);
        }
    }

    /// Takes a queued call out.
    pub fn remove(&mut self, is_it: impl Fn(&T) -> bool) -> Option<T> {
        self.groups.iter_mut().find_map(|group| {
            let at = group.queue.iter().position(&is_it)?;
            group.queue.remove(at)
        })
    }

    /// From now on calls are refused; those that are here still run.
    pub const fn close(&mut self) {
        self.closing = true;
    }

    /// Whether it is closed and every call has ended.
    pub fn is_drained(&self) -> bool {
        self.closing && self.groups.iter().all(|group| group.running == 0 && group.queue.is_empty())
    }

    /// A thread that was active finds no call to take, and sleeps.
    pub fn on_idle(&mut self, group: usize) {
        let group = &mut self.groups[group];
        group.active -= 1;
        group.idle += 1;
    }

    /// A thread could not be started.
    pub fn on_not_started(&mut self, group: usize) {
        self.groups[group].active -= 1;
    }

    /// Has up to `count` more threads of a group become active.
    pub fn rouse(&mut self, group: usize, count: usize) -> Wanted {
        let at = group;
        let group = &mut self.groups[at];
        let useful = group.queue.len().min(group.limit - group.running);
        // Threads that were woken and have not taken a call yet are on their way.
        let on_their_way = group.active.saturating_sub(group.running);
        let count = count.min(useful.saturating_sub(on_their_way));
        let wake = count.min(group.idle);
        let start = (count - wake).min(group.limit.saturating_sub(group.active + group.idle));
        group.idle -= wake;
        group.active += wake + start;
        Wanted { group: at, wake, start }
    }

    /// Once in a while: groups whose threads do not get to the calls that wait, and how many more
    /// threads they get. Where nothing moved, all that are of use; else as many again.
    pub fn look(&mut self) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for at in 0..self.groups.len() {
            let group = &mut self.groups[at];
            let taken = std::mem::take(&mut group.taken);
            let waited = std::mem::replace(&mut group.waited, !group.queue.is_empty());
            if !waited || taken >= GETS_AHEAD * group.active.max(1) as u64 {
                continue;
            }
            let count = if taken == 0 { usize::MAX } else { group.active.max(1) };
            let more = self.rouse(at, count);
            if more.wake + more.start > 0 {
                wanted.push(more);
            }
        }
        wanted
    }

    /// Whether calls wait.
    pub fn has_queued(&self) -> bool {
        self.groups.iter().any(|group| !group.queue.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named() -> ConcurrencyGroups<u32> {
        ConcurrencyGroups::new(2, [("io".to_owned(), 1)])
    }

    #[test]
    fn a_group_runs_no_more_than_its_limit() {
        let mut groups = named();
        let io = groups.find("io").unwrap();
        assert_eq!(groups.find("other"), None);
        for call in 0..3 {
            groups.push(0, call);
            groups.push(io, 10 + call);
        }
        assert_eq!((groups.take(0), groups.take(0), groups.take(0)), (Some(0), Some(1), None));
        assert_eq!((groups.take(io), groups.take(io)), (Some(10), None));
        assert!(groups.finish(io));
        assert_eq!(groups.take(io), Some(11));
    }

    #[test]
    fn the_first_call_needs_a_thread_and_those_behind_it_do_not() {
        let mut groups = named();
        assert!(groups.push(0, 0));
        assert_eq!(groups.rouse(0, 1), Wanted { group: 0, wake: 0, start: 1 });
        assert!(!groups.push(0, 1));
        assert_eq!(groups.rouse(0, 1), Wanted { group: 0, wake: 0, start: 1 }, "there are calls for two");
        assert_eq!(groups.rouse(0, 1), Wanted { group: 0, wake: 0, start: 0 }, "two are on their way");
    }

    #[test]
    fn threads_join_one_that_does_not_get_ahead() {
        let mut groups = ConcurrencyGroups::new(8, []);
        for call in 0..6 {
            groups.push(0, call);
        }
        groups.rouse(0, 1);
        groups.take(0);
        assert_eq!(groups.look(), [], "nothing has waited yet");
        assert_eq!(groups.look(), [Wanted { group: 0, wake: 0, start: 5 }]);
        assert_eq!(groups.look(), [], "they are on their way");
    }

    #[test]
    fn a_thread_that_gets_ahead_is_left_alone() {
        let mut groups = ConcurrencyGroups::new(8, []);
        for call in 0..1000 {
            groups.push(0, call);
        }
        groups.rouse(0, 1);
        groups.look();
        for _ in 0..20 {
            groups.take(0).unwrap();
            groups.finish(0);
        }
        assert_eq!(groups.look(), []);
        groups.take(0).unwrap();
        assert_eq!(groups.look(), [Wanted { group: 0, wake: 0, start: 1 }]);
    }

    #[test]
    fn a_closed_one_runs_what_it_has_and_nothing_else() {
        let mut groups = named();
        groups.push(0, 0);
        groups.close();
        groups.push(0, 1);
        assert!(!groups.is_drained());
        assert_eq!(groups.take(0), Some(0));
        assert!(!groups.is_drained());
        assert!(!groups.finish(0));
        assert!(groups.is_drained());
    }

    proptest! {
        /// Threads as the shell has them: they take until there is nothing, then sleep until they are
        /// woken. Some calls never end by themselves until all others have.
        #[test]
        fn every_call_is_taken_while_any_thread_may_run(
            limit in 1usize..5, steps in prop::collection::vec((0u8..4, any::<bool>()), 0..100)
        ) {
            let mut groups = ConcurrencyGroups::new(limit, []);
            let (mut ready, mut running, mut idle) = (0usize, 0usize, 0usize);
            let (mut pushed, mut taken) = (0u32, 0u32);
            let apply = |wanted: Wanted, ready: &mut usize, idle: &mut usize| {
                *idle -= wanted.wake;
                *ready += wanted.wake + wanted.start;
            };
            for (step, end) in steps {
                match step {
                    0 | 1 => {
                        let at_once = groups.push(0, pushed);
                        pushed += 1;
                        if at_once {
                            let wanted = groups.rouse(0, 1);
                            prop_assert_eq!(wanted.wake + wanted.start, 1);
                            apply(wanted, &mut ready, &mut idle);
                        }
                    }
                    2 if ready > 0 => {
                        ready -= 1;
                        match groups.take(0) {
                            Some(call) => { prop_assert_eq!(call, taken); taken += 1; running += 1; }
                            None => { groups.on_idle(0); idle += 1; }
                        }
                    }
                    3 if running > 0 && end => { running -= 1; ready += 1; groups.finish(0); }
                    _ => for wanted in groups.look() { apply(wanted, &mut ready, &mut idle); },
                }
                prop_assert!(running <= limit);
                prop_assert!(ready + running + idle <= limit);
            }
            // Whatever waits is taken in the end: after two looks and the end of what runs.
            while taken < pushed {
                for _ in 0..2 { for wanted in groups.look() { apply(wanted, &mut ready, &mut idle); } }
                let before = taken;
                while ready > 0 {
                    ready -= 1;
                    match groups.take(0) {
                        Some(_) => { taken += 1; running += 1; }
                        None => { groups.on_idle(0); idle += 1; }
                    }
                }
                prop_assert!(taken > before || running > 0, "nothing runs and nothing is taken");
                if running > 0 { running -= 1; ready += 1; groups.finish(0); }
            }
        }
    }
}
