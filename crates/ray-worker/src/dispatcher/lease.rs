//! One lease: a worker of this process for a while, and the tasks that it was sent.
//!
//! ```text
//!             granted                tasks               stalled
//!  (asked) -----------> idle <------------------> busy <---------> stalled
//!                        | idle for lease_idle,    |     reply
//!                        | or contended            | contended, for TURN
//!                        v                         v
//!                     returned <---------------- leaving
//!                                  last reply
//! ```
//! A worker that gives tasks back is *stalled* and gets no more until it replies.
//!
//! While others wait for the node's resources, its leases are *contended*: an idle one goes back at
//! once, and a busy one once it has been held for a [`TURN`], whatever waits here; then this process
//! stands in line again. So nobody waits for long behind a long queue of somebody else.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ray_core::id::{LeaseId, TaskId};
use rustc_hash::FxHashMap;

/// How long a contended lease is kept. Passing one on costs about a fiftieth of this.
pub(super) const TURN: Duration = Duration::from_millis(10);

/// All leases of this process, of whatever class.
pub(super) type Leases = FxHashMap<LeaseId, Lease>;

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) id: LeaseId,
    pub(super) class: u64,
    /// The number of its node in the demand of its class.
    pub(super) place: usize,
    granted_at: Instant,
    /// In the order in which they were sent, which is the order in which they run.
    tasks: VecDeque<TaskId>,
    /// Since when it has no tasks; `None` while it has some.
    idle_since: Option<Instant>,
    stalled: bool,
    /// It gets no more tasks, and goes back after those that it has.
    leaving: bool,
}

impl Lease {
    /// One that was just granted, without tasks.
    pub(super) const fn new(id: LeaseId, class: u64, place: usize, now: Instant) -> Self {
        Self {
            id,
            class,
            place,
            granted_at: now,
            tasks: VecDeque::new(),
            idle_since: Some(now),
            stalled: false,
            leaving: false,
        }
    }

    /// The tasks that it holds, the one that runs first.
    pub(super) const fn tasks(&self) -> &VecDeque<TaskId> {
        &self.tasks
    }

    /// The same, when it has ended.
    pub(super) fn into_tasks(self) -> VecDeque<TaskId> {
        self.tasks
    }

    /// Whether it gets a task if a lease may hold `depth` of them.
    pub(super) fn has_room(&self, depth: usize) -> bool {
        !self.stalled && !self.leaving && self.tasks.len() < depth
    }

    /// Since when it has nothing to do.
    pub(super) const fn idle_since(&self) -> Option<Instant> {
        self.idle_since
    }

    /// It is sent a task.
    pub(super) fn on_sent(&mut self, task_id: TaskId) {
        self.tasks.push_back(task_id);
        self.idle_since = None;
    }

    /// A task came back done. Returns whether it was there.
    pub(super) fn on_reply(&mut self, task_id: TaskId, now: Instant) -> bool {
        let Some(at) = self.tasks.iter().position(|&sent| sent == task_id) else { return false };
        self.tasks.remove(at);
        self.stalled = false;
        self.note_idle(now);
        true
    }

    /// These tasks came back unstarted. Returns how many of them were there.
    pub(super) fn on_given_back(&mut self, task_ids: &[TaskId], now: Instant) -> usize {
        let before = self.tasks.len();
        self.tasks.retain(|sent| !task_ids.contains(sent));
        self.stalled = !self.tasks.is_empty();
        self.note_idle(now);
        before - self.tasks.len()
    }

    /// Others wait for what it takes: it leaves once its time is over.
    pub(super) fn end_turn(&mut self, now: Instant) {
        self.leaving |= now.saturating_duration_since(self.granted_at) >= TURN;
    }

    /// Nobody waits for what it takes any more.
    pub(super) const fn stay(&mut self) {
        self.leaving = false;
    }

    fn note_idle(&mut self, now: Instant) {
        if self.tasks.is_empty() {
            self.idle_since.get_or_insert(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::task;
    use super::*;

    /// A lease with tasks 0 to `count`.
    fn lease(count: u32) -> (Lease, Instant) {
        let now = Instant::now();
        let mut lease = Lease::new(LeaseId::nil(), 0, 0, now);
        (0..count).for_each(|number| lease.on_sent(task(number)));
        (lease, now)
    }

    #[test]
    fn it_is_idle_from_its_grant_or_its_last_task_until_the_next_one() {
        let (mut lease, granted) = lease(0);
        assert_eq!(lease.idle_since(), Some(granted));
        let later = granted + TURN;
        lease.on_given_back(&[task(0)], later);
        assert_eq!(lease.idle_since(), Some(granted), "it had nothing to give back");
        lease.on_sent(task(0));
        lease.on_sent(task(1));
        assert_eq!(lease.idle_since(), None);
        assert!(lease.on_reply(task(0), later));
        assert_eq!(lease.idle_since(), None);
        assert!(lease.on_reply(task(1), later));
        assert_eq!(lease.idle_since(), Some(later));
    }

    #[test]
    fn a_reply_to_what_it_does_not_hold_changes_nothing() {
        let (mut lease, now) = lease(2);
        lease.on_given_back(&[task(1)], now);
        assert!(!lease.on_reply(task(1), now));
        assert_eq!(lease.tasks(), &[task(0)]);
        assert!(!lease.has_room(10), "it is still stalled");
    }

    #[test]
    fn it_has_room_up_to_the_depth_and_none_while_it_is_stalled() {
        let (mut lease, now) = lease(3);
        assert!(lease.has_room(4));
        assert!(!lease.has_room(3));
        assert_eq!(lease.on_given_back(&[task(2), task(1), task(7)], now), 2);
        assert!(!lease.has_room(4), "the one that runs blocks");
        lease.on_reply(task(0), now);
        assert!(lease.has_room(4));
    }

    #[test]
    fn one_that_has_given_all_back_is_idle_and_not_stalled() {
        let (mut lease, now) = lease(2);
        assert_eq!(lease.on_given_back(&[task(0), task(1)], now), 2);
        assert_eq!(lease.idle_since(), Some(now));
        assert!(lease.has_room(1));
    }

    #[test]
    fn a_contended_one_gets_no_more_after_its_turn_unless_nobody_waits_any_more() {
        let (mut lease, granted) = lease(1);
        lease.end_turn(granted + TURN - Duration::from_nanos(1));
        assert!(lease.has_room(2));
        lease.end_turn(granted + TURN);
        assert!(!lease.has_room(2));
        lease.end_turn(granted);
        assert!(!lease.has_room(2), "its turn does not begin anew");
        lease.stay();
        assert!(lease.has_room(2));
    }
}
