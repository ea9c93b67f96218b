//! One scheduling class: the tasks that wait, and which lease gets the next of them.
//!
//! ```text
//!   enqueue: the first in the queue ---> the emptiest lease with room
//!   reply:   the next in the queue  ---> the lease that has got room, up to its share of what waits
//! ```

use std::collections::VecDeque;

use ray_core::constraint::{Shape, Strategy};
use ray_core::id::{LeaseId, NodeId, TaskId};
use ray_core::runtime_env::RuntimeEnv;

use super::Action;
use super::demand::Demand;
use super::lease::{Lease, Leases};
use super::pace::Pace;

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) shape: Shape,
    pub(super) runtime_env: RuntimeEnv,
    pub(super) demand: Demand,
    pub(super) pace: Pace,
    queue: VecDeque<TaskId>,
    leases: Vec<LeaseId>,
    /// No lease had room when last looked, and none has got any since.
    saturated: bool,
}

impl Class {
    /// The class with this number: no tasks, no leases.
    pub(super) fn new(number: u64, shape: Shape, runtime_env: RuntimeEnv, max_in_flight: usize) -> Self {
        let spreads = shape.constraint.strategy == Strategy::Spread;
        Self {
            shape,
            runtime_env,
            demand: Demand::new(number, spreads),
            pace: Pace::new(max_in_flight),
            queue: VecDeque::new(),
            leases: Vec::new(),
            saturated: false,
        }
    }

    /// The tasks that wait, in order.
    pub(super) const fn queue(&self) -> &VecDeque<TaskId> {
        &self.queue
    }

    /// All leases of this class.
    pub(super) fn leases(&self) -> &[LeaseId] {
        &self.leases
    }

    /// Takes a task that can run; `first` puts it before those that wait.
    pub(super) fn push(&mut self, task_id: TaskId, first: bool) {
        if first {
            self.queue.push_front(task_id);
        } else {
            self.queue.push_back(task_id);
        }
    }

    /// Takes a task out of the queue. Returns whether it was there.
    pub(super) fn remove(&mut self, task_id: TaskId) -> bool {
        let before = self.queue.len();
        self.queue.retain(|&queued| queued != task_id);
        self.queue.len() < before
    }

    /// Takes all tasks out of the queue.
    pub(super) fn take_queue(&mut self) -> VecDeque<TaskId> {
        std::mem::take(&mut self.queue)
    }

    /// A node has granted a lease. Returns the place where it counts.
    pub(super) fn on_lease_granted(&mut self, lease_id: LeaseId, node: Option<NodeId>) -> usize {
        self.leases.push(lease_id);
        self.on_room();
        self.demand.on_lease_granted(node)
    }

    /// A lease has ended.
    pub(super) fn on_lease_ended(&mut self, lease: &Lease) {
        self.leases.retain(|&other| other != lease.id);
        self.demand.on_lease_ended(lease.place, lease.tasks().len());
    }

    /// So many tasks have left a lease.
    pub(super) fn on_back(&mut self, lease: &Lease, tasks: usize) {
        self.demand.on_back(lease.place, tasks);
        self.on_room();
    }

    /// A lease may have got room.
    pub(super) const fn on_room(&mut self) {
        self.saturated = false;
    }

    /// Whether a lease goes back: it has nothing to do, and is not kept for tasks to come.
    pub(super) fn lets_go(&self, lease: &Lease) -> bool {
        lease.idle_since().is_some() && !self.demand.keeps_idle(lease.place)
    }

    /// Hands out queued tasks to the emptiest leases.
    pub(super) fn pump(&mut self, leases: &mut Leases, out: &mut Vec<Action>) {
        let depth = self.pace.depth();
        while !self.queue.is_empty() && !self.saturated {
            let with_room = self.leases.iter().filter_map(|lease_id| {
                let lease = &leases[lease_id];
                lease.has_room(depth).then_some((lease.tasks().len(), lease_id))
            });
            match with_room.min_by_key(|&(held, _)| held) {
                Some((_, lease_id)) => {
                    let lease = leases.get_mut(lease_id).expect("it was looked at");
                    self.send_next(lease, out);
                }
                None => self.saturated = true,
            }
        }
        self.settle(out);
    }

    /// Gives one lease as much as it may hold.
    pub(super) fn fill(&mut self, lease: &mut Lease, out: &mut Vec<Action>) {
        // Half a window is left to the other leases, so that the last tasks are shared.
        let share = self.queue.len().div_ceil(self.leases.len());
        let depth = self.pace.depth().min(lease.tasks().len() + share);
        while lease.has_room(depth) && !self.queue.is_empty() {
            self.send_next(lease, out);
        }
        self.settle(out);
    }

    /// Tells each node how many leases are wanted, if that differs enough from what it was told.
    pub(super) fn settle(&mut self, out: &mut Vec<Action>) {
        self.demand.settle(self.queue.len(), out);
    }

    fn send_next(&mut self, lease: &mut Lease, out: &mut Vec<Action>) {
        let task_id = self.queue.pop_front().expect("the caller has looked");
        self.demand.on_sent(lease.place);
        lease.on_sent(task_id);
        out.push(Action::Send { lease_id: lease.id, task_id });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;
    use ray_core::resource::Resources;

    use super::super::tests::{lease, task};
    use super::*;

    /// A class whose tasks take so long, and leases of it.
    fn class(execution_us: u32, count: u8) -> (Class, Leases) {
        let mut class = Class::new(0, Resources::new().into(), RuntimeEnv::none(), 256);
        class.pace.on_execution(execution_us);
        let mut leases = Leases::default();
        for number in 0..count {
            let place = class.on_lease_granted(lease(number), None);
            leases.insert(lease(number), Lease::new(lease(number), 0, place, Instant::now()));
        }
        (class, leases)
    }

    /// How many tasks each lease was sent.
    fn sent(out: &[Action], leases: u8) -> Vec<usize> {
        let of = |number| {
            let is_to = |action: &&Action| matches!(action, Action::Send { lease_id, .. } if *lease_id == lease(number));
            out.iter().filter(is_to).count()
        };
        (0..leases).map(of).collect()
    }

    #[test]
    fn tasks_go_to_the_emptiest_lease_until_all_are_full() {
        let (mut class, mut leases) = class(1_000, 3);
        let mut out = Vec::new();
        for number in 0..4 {
            class.push(task(number), false);
            class.pump(&mut leases, &mut out);
        }
        assert_eq!(sent(&out, 3), [2, 1, 1]);
        (4..20).for_each(|number| class.push(task(number), false));
        class.pump(&mut leases, &mut out);
        assert_eq!(sent(&out, 3), [3, 3, 3]);
        assert_eq!(class.queue().front(), Some(&task(9)));
    }

    #[test]
    fn a_lease_is_filled_with_its_share_and_no_more() {
        let (mut class, mut leases) = class(10, 4);
        let mut out = Vec::new();
        (0..10).for_each(|number| class.push(task(number), false));
        class.fill(leases.get_mut(&lease(1)).unwrap(), &mut out);
        assert_eq!(sent(&out, 4), [0, 3, 0, 0], "a quarter, rounded up");
        class.take_queue();
        class.push(task(10), false);
        class.fill(leases.get_mut(&lease(1)).unwrap(), &mut out);
        assert_eq!(sent(&out, 4), [0, 4, 0, 0], "what waits alone is not left to the others");
    }

    #[test]
    fn leases_are_not_looked_at_again_before_one_has_got_room() {
        let (mut class, mut leases) = class(1_000_000, 1);
        let mut out = Vec::new();
        (0..2).for_each(|number| class.push(task(number), false));
        class.pump(&mut leases, &mut out);
        leases.get_mut(&lease(0)).unwrap().on_reply(task(0), Instant::now());
        class.pump(&mut leases, &mut out);
        assert_eq!(sent(&out, 1), [1], "it has not heard of the reply");
        class.on_back(&leases[&lease(0)], 1);
        class.pump(&mut leases, &mut out);
        assert_eq!(sent(&out, 1), [2]);
    }

    #[test]
    fn a_task_is_taken_out_wherever_it_waits() {
        let (mut class, _) = class(1, 0);
        (0..3).for_each(|number| class.push(task(number), false));
        class.push(task(3), true);
        assert!(class.remove(task(1)));
        assert!(!class.remove(task(1)));
        assert_eq!(class.take_queue(), [task(3), task(0), task(2)]);
    }

    #[test]
    fn an_idle_lease_is_let_go_only_if_it_is_not_kept() {
        let (mut class, mut leases) = class(1, 1);
        assert!(!class.lets_go(&leases[&lease(0)]));
        class.demand.set_contended(0, true);
        assert!(class.lets_go(&leases[&lease(0)]));
        class.push(task(0), false);
        class.pump(&mut leases, &mut Vec::new());
        assert!(!class.lets_go(&leases[&lease(0)]), "it has a task");
    }

    proptest! {
        /// Tasks go out in the order in which they wait, and none waits while a lease has room.
        #[test]
        fn the_longest_waiting_goes_first_and_the_load_is_even(
            execution_us in 1u32..5_000,
            count in 1u8..6,
            queued in 0u32..100,
        ) {
            let (mut class, mut leases) = class(execution_us, count);
            (0..queued).for_each(|number| class.push(task(number), false));
            let mut out = Vec::new();
            class.pump(&mut leases, &mut out);
            let order = out.iter().filter_map(|action| match action {
                Action::Send { task_id, .. } => Some(*task_id),
                _ => None,
            });
            let order: Vec<TaskId> = order.chain(class.queue().iter().copied()).collect();
            prop_assert_eq!(order, (0..queued).map(task).collect::<Vec<_>>());
            let held = leases.values().map(|lease| lease.tasks().len());
            let (least, most) = (held.clone().min().unwrap(), held.max().unwrap());
            prop_assert!(most - least <= 1, "{least} and {most}");
            prop_assert!(class.queue().is_empty() || least == class.pace.depth());
        }
    }
}
