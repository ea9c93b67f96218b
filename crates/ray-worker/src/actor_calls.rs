//! The calls of this process to one actor: sent in the order in which they were made, whatever
//! happens to the actor meanwhile.
//!
//! ```text
//!  actor:  Pending ---> Alive <---> Restarting        any ---> Dead
//!
//!  call:   Waiting ---> Sent ---> gone (replied)
//!             ^           |
//!             +-----------+  actor lost, and the call may be retried
//! ```
//! A call whose arguments are not there yet holds back the calls behind it, unless the actor runs calls
//! in any order; one that may pass is held back by its own arguments alone. Calls that were not sent
//! survive a restart; calls that were sent when the actor was lost are retried if they may be, and
//! fail otherwise, for nobody knows how far they came. A connection that broke though the actor's process
//! lives is made anew, after a while without news.

use std::collections::VecDeque;

use ray_core::id::{TaskId, WorkerId};

use crate::reference_counter::Owner;
use crate::value::ActorEnd;

/// An actor as its callers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActorState {
    /// Not made yet.
    Pending,
    /// In this process, after this many restarts.
    Alive {
        /// The process.
        at: Owner,
        /// The incarnation.
        num_restarts: u64,
    },
    /// Lost, and being made again.
    Restarting,
    /// Gone for good.
    Dead {
        /// How it ended.
        cause: String,
        /// What its constructor raised, if that was it, as the front end encoded it.
        error: bytes::Bytes,
        /// What kind of end that was.
        end: ActorEnd,
    },
}

#[derive(Debug)]
struct Queued {
    task_id: TaskId,
    arguments_ready: bool,
    /// It need not wait for those before it, even if others have to.
    may_pass: bool,
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send this call to this process, as the caller's `sequence`-th of this incarnation.
    Send {
        /// The call.
        task_id: TaskId,
        /// Where to.
        at: Owner,
        /// Its place, from 0 in each incarnation.
        sequence: u64,
    },
    /// The call was sent to an incarnation that is lost. If it may be retried, give it back by
    /// [`ActorCalls::requeue`]; else it fails.
    Lost {
        /// The call.
        task_id: TaskId,
    },
    /// The actor is dead: the call fails.
    Fail {
        /// The call.
        task_id: TaskId,
    },
}

/// One actor, and this process's calls to it.
#[derive(Debug)]
pub struct ActorCalls {
    state: ActorState,
    /// Not sent, in order.
    waiting: VecDeque<Queued>,
    /// Sent to the present incarnation, in order.
    sent: VecDeque<TaskId>,
    next_sequence: u64,
    /// Version of the newest news.
    version: u64,
    /// The incarnation whose process seems to be gone; no news has confirmed that yet.
    doubted: Option<(Owner, u64)>,
    /// A call need not wait for those before it.
    out_of_order: bool,
    /// How many calls may be without an answer; 0 for any number.
    max_pending: usize,
}

impl Default for ActorCalls {
    fn default() -> Self {
        Self::new()
    }
}

impl ActorCalls {
    /// An actor of which nothing is known yet.
    pub const fn new() -> Self {
        Self {
            state: ActorState::Pending,
            waiting: VecDeque::new(),
            sent: VecDeque::new(),
            next_sequence: 0,
            version: 0,
            doubted: None,
            out_of_order: false,
            max_pending: 0,
        }
    }

    /// From now on a call need not wait for the arguments of those before it.
    pub const fn allow_out_of_order(&mut self) {
        self.out_of_order = true;
    }

    /// Whether anything was ever said of the actor.
    pub const fn was_heard_of(&self) -> bool {
        self.version > 0
    }

    /// From now on so many calls may be without an answer; 0 for any number.
    pub const fn limit_pending(&mut self, max_pending: usize) {
        self.max_pending = max_pending;
    }

    /// Whether as many calls are without an answer as may be, and how many that is.
    pub fn is_full(&self) -> Option<usize> {
        (self.max_pending > 0 && self.pending() >= self.max_pending).then_some(self.max_pending)
    }

    /// What is known of the actor.
    pub const fn state(&self) -> &ActorState {
        &self.state
    }

    /// The first call that was not sent, and whether it waits for arguments of its own.
    pub fn first_waiting(&self) -> Option<(TaskId, bool)> {
        self.waiting.front().map(|call| (call.task_id, !call.arguments_ready))
    }

    /// Whether the call was not sent.
    pub fn is_waiting(&self, task_id: TaskId) -> bool {
        self.waiting.iter().any(|call| call.task_id == task_id)
    }

    /// Takes a call, behind all others.
    pub fn call(&mut self, task_id: TaskId, arguments_ready: bool, out: &mut Vec<Action>) {
        self.queue(Queued { task_id, arguments_ready, may_pass: false }, out);
    }

    /// Takes a call that passes those before it whose arguments are not there, whatever the actor's order is. So a
    /// call can bring what another one waits for.
    pub fn call_that_passes(&mut self, task_id: TaskId, arguments_ready: bool, out: &mut Vec<Action>) {
        self.queue(Queued { task_id, arguments_ready, may_pass: true }, out);
    }

    fn queue(&mut self, call: Queued, out: &mut Vec<Action>) {
        let Queued { task_id, arguments_ready, may_pass } = call;
        if let ActorState::Dead { .. } = self.state {
            out.push(Action::Fail { task_id });
            return;
        }
        self.waiting.push_back(call);
        if (self.out_of_order || may_pass) && arguments_ready {
            self.move_forward(self.waiting.len() - 1);
        }
        self.send(out);
    }

    /// The arguments of a waiting call are there now.
    pub fn on_arguments_ready(&mut self, task_id: TaskId, out: &mut Vec<Action>) {
        // Mostly it is the newest.
        let Some(at) = self.waiting.iter().rposition(|call| call.task_id == task_id) else { return };
        self.waiting[at].arguments_ready = true;
        if self.out_of_order || self.waiting[at].may_pass {
            self.move_forward(at);
        }
        self.send(out);
    }

    /// A call was answered.
    pub fn on_reply(&mut self, task_id: TaskId) {
        if let Some(at) = self.sent.iter().position(|&sent| sent == task_id) {
            self.sent.remove(at);
        }
    }

    /// Takes a call out that was not sent. Returns whether it was there.
    pub fn remove_waiting(&mut self, task_id: TaskId, out: &mut Vec<Action>) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|call| call.task_id != task_id);
        let removed = self.waiting.len() < before;
        self.send(out);
        removed
    }

    /// News of the actor. Older ones than were heard change nothing.
    pub fn on_state(&mut self, version: u64, state: ActorState, out: &mut Vec<Action>) {
        if version <= self.version || matches!(self.state, ActorState::Dead { .. }) {
            return;
        }
        self.version = version;
        self.doubted = None;
        let moved = match (&self.state, &state) {
            (ActorState::Alive { at, num_restarts }, ActorState::Alive { at: now, num_restarts: newer }) => {
                at != now || num_restarts != newer
            }
            (ActorState::Alive { .. }, _) => true,
            _ => false,
        };
        if moved {
            self.lose_sent(out);
        }
        if let ActorState::Dead { .. } = state {
            self.lose_sent(out);
            out.extend(self.waiting.drain(..).map(|call| Action::Fail { task_id: call.task_id }));
        }
        if matches!(state, ActorState::Alive { .. }) && !matches!(self.state, ActorState::Alive { .. })
            || moved
        {
            self.next_sequence = 0;
        }
        self.state = state;
        self.send(out);
    }

    /// The process of the actor is gone; news of what becomes of the actor follow.
    pub fn on_worker_lost(&mut self, worker_id: WorkerId, out: &mut Vec<Action>) {
        if let ActorState::Alive { at, num_restarts } = self.state
            && at.worker_id == worker_id
        {
            self.state = ActorState::Restarting;
            self.doubted = Some((at, num_restarts));
            self.lose_sent(out);
        }
    }

    /// Nothing was heard of the end of this process, so only the connection to it was lost: calls go
    /// there again.
    pub fn on_worker_not_lost(&mut self, worker_id: WorkerId, out: &mut Vec<Action>) {
        if let Some((at, num_restarts)) = self.doubted.take_if(|(at, _)| at.worker_id == worker_id) {
            self.state = ActorState::Alive { at, num_restarts };
            self.next_sequence = 0;
            self.send(out);
        }
    }

    /// Calls that were lost and may be retried come first again, in the order given.
    pub fn requeue(&mut self, task_ids: &[TaskId], out: &mut Vec<Action>) {
        if let ActorState::Dead { .. } = self.state {
            out.extend(task_ids.iter().map(|&task_id| Action::Fail { task_id }));
            return;
        }
        for &task_id in task_ids.iter().rev() {
            self.waiting.push_front(Queued { task_id, arguments_ready: true, may_pass: false });
        }
        self.send(out);
    }

    /// Calls that were sent and are not answered.
    pub fn sent(&self) -> usize {
        self.sent.len()
    }

    /// Calls that are not answered.
    pub fn pending(&self) -> usize {
        self.waiting.len() + self.sent.len()
    }

    /// Puts a call that can be sent before those that cannot.
    fn move_forward(&mut self, at: usize) {
        let to = self.waiting.iter().take_while(|call| call.arguments_ready).count().min(at);
        let call = self.waiting.remove(at).expect("there is a call at this place");
        self.waiting.insert(to, call);
    }

    fn send(&mut self, out: &mut Vec<Action>) {
        let ActorState::Alive { at, .. } = self.state else { return };
        while self.waiting.front().is_some_and(|call| call.arguments_ready) {
            let Queued { task_id, .. } = self.waiting.pop_front().expect("there is a front");
            self.sent.push_back(task_id);
            out.push(Action::Send { task_id, at, sequence: self.next_sequence });
            self.next_sequence += 1;
        }
    }

    fn lose_sent(&mut self, out: &mut Vec<Action>) {
        out.extend(self.sent.drain(..).map(|task_id| Action::Lost { task_id }));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use ray_core::id::NodeId;

    use super::*;

    fn task(number: u8) -> TaskId {
        TaskId::from_bytes([number; 16])
    }

    fn alive(worker: u8, num_restarts: u64) -> ActorState {
        let at = Owner { worker_id: WorkerId::from_bytes([worker; 16]), node_id: NodeId::nil() };
        ActorState::Alive { at, num_restarts }
    }

    fn dead() -> ActorState {
        ActorState::Dead { cause: "killed".to_owned(), error: Bytes::new(), end: ActorEnd::Other }
    }

    fn sent(out: &[Action]) -> Vec<(TaskId, u64)> {
        out.iter()
            .filter_map(|action| match action {
                Action::Send { task_id, sequence, .. } => Some((*task_id, *sequence)),
                Action::Lost { .. } | Action::Fail { .. } => None,
            })
            .collect()
    }

    #[test]
    fn calls_wait_for_the_actor_and_for_arguments_in_order() {
        let (mut calls, mut out) = (ActorCalls::new(), Vec::new());
        calls.call(task(0), true, &mut out);
        calls.call(task(1), false, &mut out);
        calls.call(task(2), true, &mut out);
        assert_eq!(out, []);
        calls.on_state(1, alive(1, 0), &mut out);
        assert_eq!(sent(&out), [(task(0), 0)]);
        out.clear();
        calls.on_arguments_ready(task(1), &mut out);
        assert_eq!(sent(&out), [(task(1), 1), (task(2), 2)]);
    }

    #[test]
    fn no_more_calls_are_pending_than_the_limit() {
        let (mut calls, mut out) = (ActorCalls::new(), Vec::new());
        assert_eq!(calls.is_full(), None);
        calls.limit_pending(2);
        calls.call(task(0), true, &mut out);
        assert_eq!(calls.is_full(), None);
        calls.call(task(1), false, &mut out);
        assert_eq!(calls.is_full(), Some(2), "whether they wait or were sent");
        calls.on_state(1, alive(1, 0), &mut out);
        assert_eq!(calls.is_full(), Some(2));
        calls.on_reply(task(0));
        assert_eq!(calls.is_full(), None);
        calls.call(task(2), true, &mut out);
        calls.on_state(2, dead(), &mut out);
        assert_eq!(calls.is_full(), None);
    }

    #[test]
    fn calls_pass_one_that_waits_for_arguments_if_they_may() {
        let (mut calls, mut out) = (ActorCalls::new(), Vec::new());
        calls.allow_out_of_order();
        calls.call(task(0), false, &mut out);
        calls.call(task(1), true, &mut out);
        calls.call(task(2), false, &mut out);
        calls.call(task(3), true, &mut out);
        calls.on_arguments_ready(task(2), &mut out);
        assert_eq!(out, []);
        calls.on_state(1, alive(1, 0), &mut out);
        assert_eq!(sent(&out), [(task(1), 0), (task(3), 1), (task(2), 2)]);
        out.clear();
        calls.call(task(4), true, &mut out);
        calls.on_arguments_ready(task(0), &mut out);
        assert_eq!(sent(&out), [(task(4), 3), (task(0), 4)]);
    }

    #[test]
    fn one_call_can_bring_what_another_of_an_ordered_actor_waits_for() {
        let (mut calls, mut out) = (ActorCalls::new(), Vec::new());
        calls.on_state(1, alive(1, 0), &mut out);
        calls.call(task(0), false, &mut out);
        calls.call(task(1), true, &mut out);
        calls.call_that_passes(task(2), false, &mut out);
        calls.call_that_passes(task(3), true, &mut out);
        assert_eq!(sent(&out), [(task(3), 0)], "the others keep their order");
        out.clear();
        calls.on_arguments_ready(task(2), &mut out);
        assert_eq!(sent(&out), [(task(2), 1)]);
        out.clear();
        calls.on_arguments_ready(task(0), &mut out);
        assert_eq!(sent(&out), [(task(0), 2), (task(1), 3)]);
    }

    #[test]
    fn a_lost_actor_loses_what_was_sent_and_keeps_what_was_not() {
        let (mut calls, mut out) = (ActorCalls::new(), Vec::new());
        calls.on_state(1, alive(1, 0), &mut out);
        calls.call(task(0), true, &mut out);
        calls.call(task(1), false, &mut out);
        out.clear();
        calls.on_worker_lost(WorkerId::from_bytes([1; 16]), &mut out);
        assert_eq!(out, [Action::Lost { task_id: task(0) }]);
        calls.requeue(&[task(0)], &mut out);
        calls.on_arguments_ready(task(1), &mut out);
        out.clear();
        calls.on_state(2, ActorState::Restarting, &mut out);
        calls.on_state(3, alive(2, 1), &mut out);
        assert_eq!(sent(&out), [(task(0), 0), (task(1), 1)]);
    }

    #[test]
    fn a_dead_actor_fails_all_calls_for_ever() {
        let (mut calls, mut out) = (ActorCalls::new(), Vec::new());
        calls.call(task(0), true, &mut out);
        calls.on_state(5, dead(), &mut out);
        calls.on_state(6, alive(1, 0), &mut out);
        calls.call(task(1), true, &mut out);
        assert_eq!(out, [Action::Fail { task_id: task(0) }, Action::Fail { task_id: task(1) }]);
    }

    #[test]
    fn a_connection_that_broke_alone_is_made_anew() {
        let (mut calls, mut out) = (ActorCalls::new(), Vec::new());
        let worker_id = WorkerId::from_bytes([1; 16]);
        calls.on_state(1, alive(1, 0), &mut out);
        calls.on_worker_lost(worker_id, &mut out);
        calls.call(task(0), true, &mut out);
        assert_eq!(out, []);
        calls.on_worker_not_lost(WorkerId::from_bytes([2; 16]), &mut out);
        assert_eq!(out, []);
        calls.on_worker_not_lost(worker_id, &mut out);
        assert_eq!(sent(&out), [(task(0), 0)]);
        out.clear();
        calls.on_worker_lost(worker_id, &mut out);
        calls.on_state(2, ActorState::Restarting, &mut out);
        calls.on_worker_not_lost(worker_id, &mut out);
        assert_eq!(calls.state(), &ActorState::Restarting, "news count for more than their absence");
    }

    #[test]
    fn late_news_change_nothing() {
        let (mut calls, mut out) = (ActorCalls::new(), Vec::new());
        calls.on_state(4, alive(2, 1), &mut out);
        calls.on_state(3, ActorState::Restarting, &mut out);
        calls.on_state(2, alive(1, 0), &mut out);
        assert_eq!(calls.state(), &alive(2, 1));
    }

    proptest! {
        #[test]
        fn every_incarnation_gets_the_calls_in_order_without_gaps(events in prop::collection::vec(0u8..6, 0..200)) {
            let (mut calls, mut version, mut worker) = (ActorCalls::new(), 0, 0u8);
            let mut order: Vec<TaskId> = Vec::new();
            let mut open = VecDeque::new();
            let mut here: Vec<(TaskId, u64)> = Vec::new();
            for (number, event) in events.into_iter().enumerate() {
                let mut out = Vec::new();
                match event {
                    0 | 1 => {
                        let mut bytes = [0; 16];
                        bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
                        let task_id = TaskId::from_bytes(bytes);
                        order.push(task_id);
                        open.push_back(task_id);
                        calls.call(task_id, event == 0, &mut out);
                    }
                    2 => if let Some(&task_id) = open.front() { calls.on_arguments_ready(task_id, &mut out) },
                    3 if worker < 250 => {
                        worker += 1;
                        version += 1;
                        calls.on_state(version, alive(worker, u64::from(worker)), &mut out);
                    }
                    4 => calls.on_worker_lost(WorkerId::from_bytes([worker; 16]), &mut out),
                    _ => if let Some((task_id, _)) = here.first().copied() {
                        here.remove(0);
                        open.retain(|&other| other != task_id);
                        calls.on_reply(task_id);
                    },
                }
                loop {
                    let lost: Vec<TaskId> = out.iter().filter_map(|action| match action {
                        Action::Lost { task_id } => Some(*task_id),
                        Action::Send { .. } | Action::Fail { .. } => None,
                    }).collect();
                    if !lost.is_empty() { here.clear(); }
                    here.extend(sent(&out));
                    prop_assert!(here.windows(2).all(|pair| pair[0].1 < pair[1].1));
                    let places: Vec<usize> = here.iter()
                        .map(|(task_id, _)| order.iter().position(|made| made == task_id).unwrap()).collect();
                    prop_assert!(places.is_sorted());
                    if lost.is_empty() { break; }
                    out.clear();
                    calls.requeue(&lost, &mut out);
                }
            }
        }
    }
}
