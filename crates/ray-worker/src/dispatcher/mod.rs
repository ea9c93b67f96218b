//! Which queued task goes to which leased worker, and how many leases to ask for.
//!
//! Tasks of one *scheduling class* (the same shape, which is resources and where they may be, and the same runtime
//! environment) are interchangeable to the node, so they share leases. Several machines decide together:
//!
//! | decision | machine |
//! |---|---|
//! | which tasks are of one class | `class_table.rs` |
//! | which lease gets the next task of a class | `class.rs` |
//! | how many tasks a lease may hold | `pace.rs` |
//! | what a lease holds, whether it gets more, when its turn is over | `lease.rs` |
//! | how many leases each node is asked for | `demand.rs` |
//!
//! [`Dispatcher`] takes the events, says which of them hears of each, and gives leases back: those idle for
//! `lease_idle`, those that are not kept, and what another node grants too late.

mod class;
mod class_table;
mod demand;
mod lease;
mod pace;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ray_core::constraint::Shape;
use ray_core::id::{LeaseId, NodeId, TaskId};
use ray_core::runtime_env::RuntimeEnv;
use ray_link::message::Allowance;

use self::class::Class;
use self::class_table::ClassTable;
use self::demand::OWN;
use self::lease::{Lease, Leases};

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send this task to the worker of this lease.
    Send {
        /// The lease.
        lease_id: LeaseId,
        /// The task.
        task_id: TaskId,
    },
    /// Tell a node how many of its leases of this class to hold in all.
    SetDemand {
        /// The class.
        class: u64,
        /// The node; `None`: the own one.
        node: Option<NodeId>,
        /// How many.
        target: u32,
    },
    /// Give this lease back to the node.
    Return {
        /// The lease.
        lease_id: LeaseId,
    },
    /// The same, and its worker is to run nothing more.
    Retire {
        /// The lease.
        lease_id: LeaseId,
    },
}

/// Tasks ready to run, by class, and the leases on which they run.
#[derive(Debug)]
pub struct Dispatcher {
    classes: ClassTable,
    leases: Leases,
    lease_idle: Duration,
}

impl Dispatcher {
    /// No tasks, no leases. A lease is returned after `lease_idle` without tasks.
    pub fn new(max_in_flight: usize, lease_idle: Duration) -> Self {
        Self { classes: ClassTable::new(max_in_flight), leases: Leases::default(), lease_idle }
    }

    /// The class of tasks of this shape, in processes of this environment.
    pub fn class_of(&mut self, shape: &Shape, runtime_env: &RuntimeEnv) -> u64 {
        self.classes.number_of(shape, runtime_env)
    }

    /// How many classes there are; they are numbered from 0.
    pub const fn classes(&self) -> u64 {
        self.classes.len()
    }

    /// What a lease of this class takes, and where it may be.
    ///
    /// # Panics
    /// If `class` did not come from [`Dispatcher::class_of`].
    pub fn shape(&self, class: u64) -> &Shape {
        &self.classes[class].shape
    }

    /// What the processes of this class need.
    ///
    /// # Panics
    /// If `class` did not come from [`Dispatcher::class_of`].
    pub fn runtime_env(&self, class: u64) -> &RuntimeEnv {
        &self.classes[class].runtime_env
    }

    /// Classes of which tasks wait and none is under way: the class, how many wait, and the first of them.
    pub fn stuck(&self) -> impl Iterator<Item = (u64, usize, TaskId)> {
        let idle = self.classes.iter().filter(|(_, class)| class.demand.has_none_in_flight());
        idle.filter_map(|(number, class)| {
            let queue = class.queue();
            queue.front().map(|&first| (number, queue.len(), first))
        })
    }

    /// The tasks of a class that wait, in order.
    pub fn waiting(&self, class: u64) -> impl Iterator<Item = TaskId> {
        self.classes.get(class).into_iter().flat_map(|class| class.queue().iter().copied())
    }

    /// How many tasks of a class wait.
    pub fn queued(&self, class: u64) -> usize {
        self.classes.get(class).map_or(0, |class| class.queue().len())
    }

    /// How many unfinished tasks this lease holds.
    pub fn held(&self, lease_id: LeaseId) -> usize {
        self.leases.get(&lease_id).map_or(0, |lease| lease.tasks().len())
    }

    /// The lease that holds a task, by a look at all of them: for rare events.
    pub fn lease_of(&self, task_id: TaskId) -> Option<LeaseId> {
        self.leases.values().find(|lease| lease.tasks().contains(&task_id)).map(|lease| lease.id)
    }

    /// Takes a task that can run; `first` puts it before those that wait.
    pub fn enqueue(&mut self, class: u64, task_id: TaskId, first: bool, out: &mut Vec<Action>) {
        let class = &mut self.classes[class];
        class.push(task_id, first);
        class.pump(&mut self.leases, out);
    }

    /// Takes a task out of its queue. Returns whether it was there.
    pub fn remove_queued(&mut self, class: u64, task_id: TaskId, out: &mut Vec<Action>) -> bool {
        let class = &mut self.classes[class];
        let was_there = class.remove(task_id);
        // Nobody is to work for a lease that nobody needs, such as to set an environment up.
        class.settle(out);
        was_there
    }

    /// A node will grant no lease of this class, and has dropped the demand: its environment cannot be set up, or it
    /// may be nowhere. Returns the tasks that wait for one, which have failed with it; leases that are held stay. Tasks
    /// that come later ask anew.
    pub fn on_class_failed(
        &mut self,
        class: u64,
        node: Option<NodeId>,
        out: &mut Vec<Action>,
    ) -> VecDeque<TaskId> {
        let Some(class) = self.classes.get_mut(class) else { return VecDeque::new() };
        let failed = class.take_queue();
        // That node has forgotten the demand; others are told.
        class.demand.on_dropped(node);
        class.settle(out);
        failed
    }

    /// The own node says what other nodes may be asked for leases of this class; those that it does not name, for none.
    pub fn on_elsewhere(&mut self, class: u64, nodes: &[(NodeId, Allowance)], out: &mut Vec<Action>) {
        let Some(class) = self.classes.get_mut(class) else { return };
        class.demand.on_elsewhere(nodes);
        class.settle(out);
    }

    /// Another node is lost: nothing can be asked of it. The loss of each of its leases is told besides.
    pub fn on_node_lost(&mut self, node_id: NodeId) {
        self.classes.iter_mut().for_each(|class| class.demand.on_node_lost(node_id));
    }

    /// A node has granted a lease; `None`: the own one.
    pub fn on_lease_granted(
        &mut self,
        number: u64,
        node: Option<NodeId>,
        lease_id: LeaseId,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let Some(class) = self.classes.get_mut(number) else {
            out.push(Action::Return { lease_id });
            return;
        };
        let place = class.on_lease_granted(lease_id, node);
        let mut lease = Lease::new(lease_id, number, place, now);
        class.fill(&mut lease, out);
        // Nothing waits here for what came from another node: one was faster.
        let is_late = place != OWN && lease.idle_since().is_some();
        let goes_back = is_late || class.lets_go(&lease);
        self.leases.insert(lease_id, lease);
        if goes_back {
            self.end(lease_id, Action::Return { lease_id }, out);
        }
    }

    /// A task came back done, after this many microseconds of its own code.
    pub fn on_reply(
        &mut self,
        lease_id: LeaseId,
        task_id: TaskId,
        execution_us: u32,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let Some(lease) = self.leases.get_mut(&lease_id) else { return };
        if !lease.on_reply(task_id, now) {
            return;
        }
        let class = &mut self.classes[lease.class];
        class.on_back(lease, 1);
        class.pace.on_execution(execution_us);
        if class.demand.is_contended(lease.place) {
            lease.end_turn(now);
        }
        class.fill(lease, out);
        if class.lets_go(lease) {
            self.end(lease_id, Action::Return { lease_id }, out);
        }
    }

    /// A task came back done, and its worker runs no further one: the lease ends. Returns the tasks that it held
    /// beside, which were not started and have to be enqueued again.
    pub fn on_last_reply(
        &mut self,
        lease_id: LeaseId,
        task_id: TaskId,
        execution_us: u32,
        out: &mut Vec<Action>,
    ) -> VecDeque<TaskId> {
        let Some(lease) = self.leases.get(&lease_id) else { return VecDeque::new() };
        self.classes[lease.class].pace.on_execution(execution_us);
        let mut unstarted = self.end(lease_id, Action::Retire { lease_id }, out);
        unstarted.retain(|&sent| sent != task_id);
        unstarted
    }

    /// The worker of this lease will not start these tasks for now. They have to be enqueued again.
    pub fn on_given_back(
        &mut self,
        lease_id: LeaseId,
        task_ids: &[TaskId],
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let Some(lease) = self.leases.get_mut(&lease_id) else { return };
        let given_back = lease.on_given_back(task_ids, now);
        let class = &mut self.classes[lease.class];
        class.on_back(lease, given_back);
        class.settle(out);
        if class.lets_go(lease) {
            self.end(lease_id, Action::Return { lease_id }, out);
        }
    }

    /// The worker of this lease is gone. Returns the tasks that it held, the one that ran first.
    pub fn on_lease_lost(&mut self, lease_id: LeaseId, out: &mut Vec<Action>) -> VecDeque<TaskId> {
        let Some((lease, class)) = self.forget(lease_id) else { return VecDeque::new() };
        class.demand.on_worker_lost(lease.place);
        class.settle(out);
        lease.into_tasks()
    }

    /// Others wait on a node for the resources that leases of this class take there, or do so no longer.
    pub fn on_contention(
        &mut self,
        number: u64,
        node: Option<NodeId>,
        contended: bool,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let Some(class) = self.classes.get_mut(number) else { return };
        let Some(place) = class.demand.place_of(node) else { return };
        class.demand.set_contended(place, contended);
        for lease_id in class.leases().to_vec() {
            let Some(lease) = self.leases.get_mut(&lease_id) else { continue };
            if lease.place != place {
                continue;
            }
            if contended {
                lease.end_turn(now);
            } else {
                lease.stay();
            }
            if self.classes[number].lets_go(lease) {
                self.end(lease_id, Action::Return { lease_id }, out);
            }
        }
        let class = &mut self.classes[number];
        class.on_room();
        class.pump(&mut self.leases, out);
    }

    /// Time passes: leases that were idle long enough go back.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<Action>) {
        let is_due = |since| now.duration_since(since) >= self.lease_idle;
        let due = self.leases.values().filter(|lease| lease.idle_since().is_some_and(is_due));
        let mut due: Vec<LeaseId> = due.map(|lease| lease.id).collect();
        due.sort_unstable();
        for lease_id in due {
            self.end(lease_id, Action::Return { lease_id }, out);
        }
    }

    /// When [`Dispatcher::tick`] has something to do next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let since = self.leases.values().filter_map(Lease::idle_since).min()?;
        Some(since + self.lease_idle)
    }

    /// Ends a lease, as `action` says to its node. Returns the tasks that it held.
    fn end(&mut self, lease_id: LeaseId, action: Action, out: &mut Vec<Action>) -> VecDeque<TaskId> {
        let Some((lease, class)) = self.forget(lease_id) else { return VecDeque::new() };
        // Said first, so that the node does not grant the lease anew when it comes back.
        class.demand.lower(lease.place, out);
        out.push(action);
        // What waits here still needs one.
        class.settle(out);
        lease.into_tasks()
    }

    /// Takes a lease out of the table, and counts it no more in its class.
    fn forget(&mut self, lease_id: LeaseId) -> Option<(Lease, &mut Class)> {
        let lease = self.leases.remove(&lease_id)?;
        let class = &mut self.classes[lease.class];
        class.on_lease_ended(&lease);
        Some((lease, class))
    }
}

#[cfg(test)]
mod tests;
