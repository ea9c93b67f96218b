//! Which queued task goes to which leased worker, and how many leases to ask for.
//!
//! Tasks of one *scheduling class* (the same shape, which is resources and where they may be, and the same runtime
//! environment) are interchangeable to the node, so they
//! share leases. A lease holds several unstarted tasks, the more of them the shorter the class's
//! tasks have been: about [`WINDOW`] of work, so that a worker never runs dry between two tasks, and
//! little is stuck when one turns out long. A worker that gives tasks back is *stalled* and gets no
//! more until it replies.
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
//! While others wait for the node's resources, its leases are *contended*: an idle one goes back at
//! once, and a busy one once it has been held for a [`TURN`], whatever waits here; then this process
//! stands in line again. So nobody waits for long behind a long queue of somebody else.
//!
//! Each node gives out its own leases. The own one is told of all tasks that wait, and says which others may be asked
//! besides, and for how many; which of them grants first is served by the same queue, and what comes too late goes
//! back at once.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ray_core::constraint::Shape;
use ray_core::constraint::Strategy;
use ray_core::id::{LeaseId, NodeId, TaskId};
use ray_core::runtime_env::RuntimeEnv;
use ray_link::message::Allowance;
use rustc_hash::FxHashMap;

/// Work that a lease holds at most beyond the task that runs.
const WINDOW: Duration = Duration::from_millis(2);

/// How long a contended lease is kept. Passing one on costs about a fiftieth of this.
const TURN: Duration = Duration::from_millis(10);

/// Weight of the newest execution time in the mean of its class.
const NEWEST: f64 = 0.2;

/// Leases of one class that are asked for at most.
const MAX_LEASES: usize = 10_000;

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
    classes: Vec<Class>,
    by_need: FxHashMap<RuntimeEnv, FxHashMap<Shape, u64>>,
    leases: FxHashMap<LeaseId, Lease>,
    max_in_flight: usize,
    lease_idle: Duration,
}

#[derive(Debug)]
struct Class {
    shape: Shape,
    runtime_env: RuntimeEnv,
    queue: VecDeque<TaskId>,
    leases: Vec<LeaseId>,
    in_flight: usize,
    /// The nodes that are asked for leases, or were; the own one first.
    places: Vec<Place>,
    /// Each lease is to be on another node: none is kept for tasks to come, and the own node is told of all tasks.
    spreads: bool,
    /// Mean execution time in microseconds, once there is one.
    execution_us: Option<f64>,
    /// No lease had room when last looked, and none has got any since.
    saturated: bool,
}

/// What a class has and wants on one node.
#[derive(Debug)]
struct Place {
    /// `None`: the own one.
    node: Option<NodeId>,
    /// What may be asked of it; of no meaning for the own node.
    allowance: Option<Allowance>,
    held: usize,
    in_flight: usize,
    /// What the node was told last.
    demand: usize,
    /// Others wait there for what its leases take.
    contended: bool,
}

impl Place {
    const fn new(node: Option<NodeId>) -> Self {
        Self { node, allowance: None, held: 0, in_flight: 0, demand: 0, contended: false }
    }

    /// How many leases may be asked of another node in all.
    fn limit(&self) -> usize {
        match self.allowance {
            None => self.held,
            Some(Allowance::Waiting(more)) => self.held.saturating_add(more as usize),
            Some(Allowance::Held(all)) => self.held.max(all as usize),
        }
    }
}

#[derive(Debug)]
struct Lease {
    class: u64,
    /// Its place among those of its class.
    place: usize,
    /// In the order in which they were sent, which is the order in which they run.
    in_flight: VecDeque<TaskId>,
    idle_since: Option<Instant>,
    stalled: bool,
    granted_at: Instant,
    /// It gets no more tasks, and goes back after those that it has.
    leaving: bool,
}

impl Class {
    fn note_execution(&mut self, execution_us: u32) {
        let newest = f64::from(execution_us);
        let mean = self.execution_us.map_or(newest, |mean| mean + NEWEST * (newest - mean));
        self.execution_us = Some(mean);
    }
}

impl Dispatcher {
    /// No tasks, no leases. A lease is returned after `lease_idle` without tasks.
    pub fn new(max_in_flight: usize, lease_idle: Duration) -> Self {
        Self {
            classes: Vec::new(),
            by_need: FxHashMap::default(),
            leases: FxHashMap::default(),
            max_in_flight,
            lease_idle,
        }
    }

    /// The class of tasks of this shape, in processes of this environment.
    pub fn class_of(&mut self, shape: &Shape, runtime_env: &RuntimeEnv) -> u64 {
        if let Some(&class) = self.by_need.get(runtime_env).and_then(|classes| classes.get(shape)) {
            return class;
        }
        let class = self.classes.len() as u64;
        self.by_need.entry(runtime_env.clone()).or_default().insert(shape.clone(), class);
        self.classes.push(Class {
            shape: shape.clone(),
            runtime_env: runtime_env.clone(),
            queue: VecDeque::new(),
            leases: Vec::new(),
            in_flight: 0,
            places: vec![Place::new(None)],
            spreads: shape.constraint.strategy == Strategy::Spread,
            execution_us: None,
            saturated: false,
        });
        class
    }

    /// Classes of which tasks wait and none is under way: the class, how many wait, and the first of them.
    pub fn stuck(&self) -> impl Iterator<Item = (u64, usize, TaskId)> {
        (0..)
            .zip(&self.classes)
            .filter(|(_, class)| class.in_flight == 0)
            .filter_map(|(at, class)| class.queue.front().map(|&first| (at, class.queue.len(), first)))
    }

    /// The tasks of a class that wait, in order.
    pub fn waiting(&self, class: u64) -> impl Iterator<Item = TaskId> {
        self.classes.get(class as usize).into_iter().flat_map(|class| class.queue.iter().copied())
    }

    /// How many classes there are; they are numbered from 0.
    pub const fn classes(&self) -> u64 {
        self.classes.len() as u64
    }

    /// What a lease of this class takes, and where it may be.
    ///
    /// # Panics
    /// If `class` did not come from [`Dispatcher::class_of`].
    pub fn shape(&self, class: u64) -> &Shape {
        &self.classes[class as usize].shape
    }

    /// What the processes of this class need.
    ///
    /// # Panics
    /// If `class` did not come from [`Dispatcher::class_of`].
    pub fn runtime_env(&self, class: u64) -> &RuntimeEnv {
        &self.classes[class as usize].runtime_env
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
        if class as usize >= self.classes.len() {
            return VecDeque::new();
        }
        let waiting = self.class(class);
        let queue = std::mem::take(&mut waiting.queue);
        // That node has forgotten the demand; others are told.
        if let Some(at) = waiting.places.iter().position(|place| place.node == node) {
            let held = self.base(class, at).0;
            self.class(class).places[at].demand = held;
        }
        self.settle(class, out);
        queue
    }

    /// The own node says what other nodes may be asked for leases of this class; those that it does not name, for none.
    pub fn on_elsewhere(&mut self, class: u64, nodes: &[(NodeId, Allowance)], out: &mut Vec<Action>) {
        if class as usize >= self.classes.len() {
            return;
        }
        let waiting = self.class(class);
        for place in waiting.places.iter_mut().skip(1) {
            place.allowance = None;
        }
        for &(node_id, allowance) in nodes {
            let at = waiting.place_for(node_id);
            waiting.places[at].allowance = Some(allowance);
        }
        self.settle(class, out);
    }

    /// Another node is lost: nothing can be asked of it. The loss of each of its leases is told besides.
    pub fn on_node_lost(&mut self, node_id: NodeId) {
        let places = self.classes.iter_mut().flat_map(|class| &mut class.places);
        for place in places.filter(|place| place.node == Some(node_id)) {
            place.allowance = None;
            place.demand = place.held;
        }
    }

    /// Takes a task that can run; `first` puts it before those that wait.
    pub fn enqueue(&mut self, class: u64, task_id: TaskId, first: bool, out: &mut Vec<Action>) {
        let waiting = self.class(class);
        if first {
            waiting.queue.push_front(task_id);
        } else {
            waiting.queue.push_back(task_id);
        }
        self.pump(class, out);
    }

    /// Takes a task out of its queue. Returns whether it was there.
    pub fn remove_queued(&mut self, class: u64, task_id: TaskId, out: &mut Vec<Action>) -> bool {
        let queue = &mut self.class(class).queue;
        let before = queue.len();
        queue.retain(|&queued| queued != task_id);
        let was_there = queue.len() < before;
        // Nobody is to work for a lease that nobody needs, such as to set an environment up.
        self.settle(class, out);
        was_there
    }

    /// A node has granted a lease; `None`: the own one.
    pub fn on_lease_granted(
        &mut self,
        class: u64,
        node: Option<NodeId>,
        lease_id: LeaseId,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        if class as usize >= self.classes.len() {
            out.push(Action::Return { lease_id });
            return;
        }
        let waiting = self.class(class);
        let place = node.map_or(0, |node_id| waiting.place_for(node_id));
        waiting.leases.push(lease_id);
        waiting.places[place].held += 1;
        waiting.saturated = false;
        let lease = Lease {
            class,
            place,
            in_flight: VecDeque::new(),
            idle_since: Some(now),
            stalled: false,
            granted_at: now,
            leaving: false,
        };
        self.leases.insert(lease_id, lease);
        self.fill(lease_id, out);
        self.settle(class, out);
        if place == 0 {
            self.pass_on(lease_id, now, out);
        } else {
            // Another node was faster.
            self.return_if(lease_id, |_| true, out);
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
        let Some(at) = lease.in_flight.iter().position(|&sent| sent == task_id) else { return };
        lease.in_flight.remove(at);
        lease.stalled = false;
        if lease.in_flight.is_empty() {
            lease.idle_since = Some(now);
        }
        let (class, place) = (lease.class, lease.place);
        let waiting = self.class(class);
        waiting.in_flight -= 1;
        waiting.places[place].in_flight -= 1;
        waiting.saturated = false;
        waiting.note_execution(execution_us);
        if waiting.places[place].contended {
            self.end_turn(lease_id, now);
        }
        self.fill(lease_id, out);
        self.settle(class, out);
        self.pass_on(lease_id, now, out);
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
        let Some(mut lease) = self.leases.remove(&lease_id) else { return VecDeque::new() };
        let (class, at) = (lease.class, lease.place);
        self.class(class).note_execution(execution_us);
        self.forget(lease_id, &lease);
        // Said first, as when a lease is returned.
        self.lower_demand(class, at, out);
        out.push(Action::Retire { lease_id });
        self.settle(class, out);
        lease.in_flight.retain(|&sent| sent != task_id);
        lease.in_flight
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
        let before = lease.in_flight.len();
        lease.in_flight.retain(|sent| !task_ids.contains(sent));
        let given_back = before - lease.in_flight.len();
        lease.stalled = !lease.in_flight.is_empty();
        if lease.in_flight.is_empty() {
            lease.idle_since.get_or_insert(now);
        }
        let (class, place) = (lease.class, lease.place);
        let waiting = self.class(class);
        waiting.in_flight -= given_back;
        waiting.places[place].in_flight -= given_back;
        waiting.saturated = false;
        self.settle(class, out);
        self.pass_on(lease_id, now, out);
    }

    /// The worker of this lease is gone. Returns the tasks that it held, the one that ran first.
    pub fn on_lease_lost(&mut self, lease_id: LeaseId, out: &mut Vec<Action>) -> VecDeque<TaskId> {
        let Some(lease) = self.leases.remove(&lease_id) else { return VecDeque::new() };
        self.forget(lease_id, &lease);
        // The node knows that the worker is gone, and counts the lease as held no longer.
        let held = self.base(lease.class, lease.place).0;
        let place = &mut self.class(lease.class).places[lease.place];
        place.demand = place.demand.min(held);
        self.settle(lease.class, out);
        lease.in_flight
    }

    /// Others wait on a node for the resources that leases of this class take there, or do so no longer.
    pub fn on_contention(
        &mut self,
        class: u64,
        node: Option<NodeId>,
        contended: bool,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let Some(waiting) = self.classes.get_mut(class as usize) else { return };
        let Some(at) = waiting.places.iter().position(|place| place.node == node) else { return };
        waiting.places[at].contended = contended;
        for lease_id in self.class(class).leases.clone() {
            if self.leases.get(&lease_id).is_none_or(|lease| lease.place != at) {
                continue;
            }
            if contended {
                self.end_turn(lease_id, now);
                self.pass_on(lease_id, now, out);
            } else if let Some(lease) = self.leases.get_mut(&lease_id) {
                lease.leaving = false;
            }
        }
        self.class(class).saturated = false;
        self.pump(class, out);
    }

    /// Marks a contended lease whose time is over.
    fn end_turn(&mut self, lease_id: LeaseId, now: Instant) {
        if let Some(lease) = self.leases.get_mut(&lease_id)
            && now.saturating_duration_since(lease.granted_at) >= TURN
        {
            lease.leaving = true;
        }
    }

    /// Gives back a lease that has nothing to do, or gets nothing more, and is contended or not kept anyway.
    fn pass_on(&mut self, lease_id: LeaseId, now: Instant, out: &mut Vec<Action>) {
        let Some(lease) = self.leases.get(&lease_id) else { return };
        let class = &self.classes[lease.class as usize];
        if class.spreads || class.places[lease.place].contended {
            self.return_if(lease_id, |since| since <= now, out);
        }
    }

    /// Time passes: leases that were idle long enough go back.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<Action>) {
        let patience = self.lease_idle;
        let mut idle: Vec<LeaseId> =
            self.leases.iter().filter(|(_, lease)| lease.idle_since.is_some()).map(|(&id, _)| id).collect();
        idle.sort_unstable();
        for lease_id in idle {
            self.return_if(lease_id, |since| now.duration_since(since) >= patience, out);
        }
    }

    /// When [`Dispatcher::tick`] has something to do next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let since = self.leases.values().filter_map(|lease| lease.idle_since).min()?;
        Some(since + self.lease_idle)
    }

    /// How many unfinished tasks this lease holds.
    pub fn held(&self, lease_id: LeaseId) -> usize {
        self.leases.get(&lease_id).map_or(0, |lease| lease.in_flight.len())
    }

    /// The lease that holds a task, by a look at all of them: for rare events.
    pub fn lease_of(&self, task_id: TaskId) -> Option<LeaseId> {
        let mut leases = self.leases.iter();
        leases.find(|(_, lease)| lease.in_flight.contains(&task_id)).map(|(&id, _)| id)
    }

    /// Tasks of this class that wait for a worker.
    pub fn queued(&self, class: u64) -> usize {
        self.classes.get(class as usize).map_or(0, |class| class.queue.len())
    }

    fn class(&mut self, class: u64) -> &mut Class {
        &mut self.classes[class as usize]
    }

    /// How many tasks a lease of this class may hold.
    fn depth(&self, class: u64) -> usize {
        match self.classes[class as usize].execution_us {
            None => 1,
            Some(mean) => {
                let fitting = WINDOW.as_micros() as f64 / mean.max(1.0);
                1 + (fitting as usize).min(self.max_in_flight - 1)
            }
        }
    }

    /// Hands out queued tasks to the emptiest leases.
    fn pump(&mut self, class: u64, out: &mut Vec<Action>) {
        let depth = self.depth(class);
        loop {
            let waiting = &self.classes[class as usize];
            if waiting.queue.is_empty() || waiting.saturated {
                break;
            }
            let free = waiting.leases.iter().filter_map(|&lease_id| {
                let lease = &self.leases[&lease_id];
                let has_room = !lease.stalled && !lease.leaving && lease.in_flight.len() < depth;
                has_room.then_some((lease.in_flight.len(), lease_id))
            });
            match free.min_by_key(|&(held, _)| held) {
                Some((_, lease_id)) => self.send_next(lease_id, out),
                None => self.class(class).saturated = true,
            }
        }
        self.settle(class, out);
    }

    /// Gives one lease as much as it may hold.
    fn fill(&mut self, lease_id: LeaseId, out: &mut Vec<Action>) {
        let class = self.leases[&lease_id].class;
        if self.leases[&lease_id].leaving {
            return;
        }
        let depth = self.depth(class);
        // Half a window is left to the other leases, so that the last tasks are shared.
        let share = self.class(class).queue.len().div_ceil(self.class(class).leases.len());
        let depth = depth.min(share.max(1) + self.leases[&lease_id].in_flight.len());
        while self.leases[&lease_id].in_flight.len() < depth && !self.class(class).queue.is_empty() {
            self.send_next(lease_id, out);
        }
    }

    fn send_next(&mut self, lease_id: LeaseId, out: &mut Vec<Action>) {
        let lease = self.leases.get_mut(&lease_id).expect("a lease of a class exists");
        let class = &mut self.classes[lease.class as usize];
        let task_id = class.queue.pop_front().expect("the caller has looked");
        class.in_flight += 1;
        class.places[lease.place].in_flight += 1;
        lease.in_flight.push_back(task_id);
        lease.idle_since = None;
        out.push(Action::Send { lease_id, task_id });
    }

    /// Counts a lease no more that was taken out of the table.
    fn forget(&mut self, lease_id: LeaseId, lease: &Lease) {
        let waiting = self.class(lease.class);
        waiting.in_flight -= lease.in_flight.len();
        waiting.leases.retain(|&other| other != lease_id);
        let place = &mut waiting.places[lease.place];
        place.in_flight -= lease.in_flight.len();
        place.held -= 1;
    }

    /// Tells a node that no more is wanted than is held.
    fn lower_demand(&mut self, class: u64, at: usize, out: &mut Vec<Action>) {
        let held = self.base(class, at).0;
        let place = &mut self.class(class).places[at];
        place.demand = held;
        let node = place.node;
        out.push(Action::SetDemand { class, node, target: held as u32 });
    }

    /// The leases that count for what a node is told, and the tasks on them.
    fn base(&self, class: u64, place: usize) -> (usize, usize) {
        let class = &self.classes[class as usize];
        if place == 0 && class.spreads {
            // It has to know of all, to say how many of them are to be elsewhere.
            return (class.leases.len(), class.in_flight);
        }
        (class.places[place].held, class.places[place].in_flight)
    }

    /// Tells each node how many leases are wanted, if that differs enough from what it was told.
    fn settle(&mut self, class: u64, out: &mut Vec<Action>) {
        for place in 0..self.classes[class as usize].places.len() {
            self.settle_place(class, place, out);
        }
    }

    fn settle_place(&mut self, class: u64, at: usize, out: &mut Vec<Action>) {
        let (held, in_flight) = self.base(class, at);
        let waiting = self.class(class);
        let queued = waiting.queue.len();
        let place = &mut waiting.places[at];
        let limit = if at == 0 { usize::MAX } else { place.limit() };
        // On other nodes, what is held has its tasks, and each that waits may have one more.
        let needed = if at == 0 { queued + in_flight } else { queued + held };
        let wanted = needed.clamp(held, MAX_LEASES.max(held));
        let target = if queued == 0 {
            // Nothing waits: requests that are not granted yet are withdrawn.
            held
        } else if wanted.min(limit) > place.demand + place.demand / 4 {
            wanted.min(limit)
        } else {
            place.demand.max(held).min(limit)
        };
        if target != place.demand {
            place.demand = target;
            let node = place.node;
            out.push(Action::SetDemand { class, node, target: target as u32 });
        }
    }

    fn return_if(&mut self, lease_id: LeaseId, due: impl Fn(Instant) -> bool, out: &mut Vec<Action>) {
        let Some(lease) = self.leases.get(&lease_id) else { return };
        if lease.in_flight.is_empty() && lease.idle_since.is_some_and(due) {
            let (class, at) = (lease.class, lease.place);
            let lease = self.leases.remove(&lease_id).expect("it was looked at");
            self.forget(lease_id, &lease);
            // Said first, so that the node does not grant the lease anew when it comes back.
            self.lower_demand(class, at, out);
            out.push(Action::Return { lease_id });
            // What waits here still needs one.
            self.settle(class, out);
        }
    }
}

impl Class {
    /// Where what is held and wanted on another node is counted.
    fn place_for(&mut self, node_id: NodeId) -> usize {
        if let Some(known) = self.places.iter().position(|place| place.node == Some(node_id)) {
            return known;
        }
        // One that nothing is held or wanted of any more makes room: nodes come and go.
        let is_free = |place: &Place| {
            place.node.is_some() && place.allowance.is_none() && place.demand + place.held == 0
        };
        let at = self.places.iter().position(is_free).unwrap_or(self.places.len());
        if at == self.places.len() {
            self.places.push(Place::new(None));
        }
        self.places[at] = Place::new(Some(node_id));
        at
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use proptest::strategy::Strategy;
    use ray_core::resource::Resources;

    use super::*;

    const IDLE: Duration = Duration::from_millis(50);

    fn task(number: u32) -> TaskId {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        TaskId::from_bytes(bytes)
    }

    fn lease(number: u8) -> LeaseId {
        LeaseId::from_bytes([number; 16])
    }

    fn dispatcher() -> (Dispatcher, u64, Instant) {
        let mut dispatcher = Dispatcher::new(256, IDLE);
        let class = dispatcher.class_of(&Resources::new().with_cpu(1.0).unwrap().into(), &RuntimeEnv::none());
        (dispatcher, class, Instant::now())
    }

    fn sent(actions: &[Action]) -> usize {
        actions.iter().filter(|action| matches!(action, Action::Send { .. })).count()
    }

    #[test]
    fn a_first_task_asks_for_a_lease_and_goes_out_on_it() {
        let (mut dispatcher, class, now) = dispatcher();
        let mut out = Vec::new();
        dispatcher.enqueue(class, task(1), false, &mut out);
        assert_eq!(out, [Action::SetDemand { class, node: None, target: 1 }]);
        out.clear();
        dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
        assert_eq!(out, [Action::Send { lease_id: lease(1), task_id: task(1) }]);
    }

    #[test]
    fn a_lease_holds_one_task_until_they_are_known_to_be_short() {
        let (mut dispatcher, class, now) = dispatcher();
        let mut out = Vec::new();
        for number in 0..1000 {
            dispatcher.enqueue(class, task(number), false, &mut out);
        }
        out.clear();
        dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
        assert_eq!(sent(&out), 1);
        out.clear();
        dispatcher.on_reply(lease(1), task(0), 10, now, &mut out);
        assert_eq!(sent(&out), 201);
    }

    #[test]
    fn long_tasks_are_held_one_ahead_at_most() {
        let (mut dispatcher, class, now) = dispatcher();
        let mut out = Vec::new();
        dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
        dispatcher.enqueue(class, task(0), false, &mut out);
        dispatcher.on_reply(lease(1), task(0), 50_000, now, &mut out);
        out.clear();
        for number in 1..10 {
            dispatcher.enqueue(class, task(number), false, &mut out);
        }
        assert_eq!(sent(&out), 1);
    }

    #[test]
    fn what_is_given_back_goes_elsewhere() {
        let (mut dispatcher, class, now) = dispatcher();
        let mut out = Vec::new();
        dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
        dispatcher.enqueue(class, task(0), false, &mut out);
        dispatcher.on_reply(lease(1), task(0), 1, now, &mut out);
        for number in 1..4 {
            dispatcher.enqueue(class, task(number), false, &mut out);
        }
        out.clear();
        dispatcher.on_given_back(lease(1), &[task(2), task(3)], now, &mut out);
        dispatcher.enqueue(class, task(3), true, &mut out);
        dispatcher.enqueue(class, task(2), true, &mut out);
        assert_eq!(sent(&out), 0, "the stalled lease gets nothing: {out:?}");
        assert!(matches!(out.last(), Some(Action::SetDemand { target: 3, .. })), "{out:?}");
        out.clear();
        dispatcher.on_lease_granted(class, None, lease(2), now, &mut out);
        assert_eq!(out[0], Action::Send { lease_id: lease(2), task_id: task(2) });
    }

    #[test]
    fn an_idle_lease_goes_back_in_time_or_when_others_wait() {
        let (mut dispatcher, class, now) = dispatcher();
        let mut out = Vec::new();
        dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
        dispatcher.on_lease_granted(class, None, lease(2), now, &mut out);
        dispatcher.enqueue(class, task(0), false, &mut out);
        out.clear();
        assert_eq!(dispatcher.next_deadline(), Some(now + IDLE));
        dispatcher.tick(now + IDLE - Duration::from_nanos(1), &mut out);
        assert_eq!(out, []);
        dispatcher.tick(now + IDLE, &mut out);
        assert_eq!(out.iter().filter(|action| matches!(action, Action::Return { .. })).count(), 1);
        out.clear();
        let busy = if dispatcher.lease_of(task(0)) == Some(lease(1)) { lease(1) } else { lease(2) };
        dispatcher.on_contention(class, None, true, now, &mut out);
        assert_eq!(out, []);
        dispatcher.on_reply(busy, task(0), 1, now, &mut out);
        assert_eq!(
            out,
            [Action::SetDemand { class, node: None, target: 0 }, Action::Return { lease_id: busy }]
        );
    }

    #[test]
    fn a_worker_that_leaves_ends_its_lease_and_what_it_did_not_start_comes_back() {
        let (mut dispatcher, class, now) = dispatcher();
        let mut out = Vec::new();
        dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
        dispatcher.enqueue(class, task(0), false, &mut out);
        dispatcher.on_reply(lease(1), task(0), 1, now, &mut out);
        for number in 1..4 {
            dispatcher.enqueue(class, task(number), false, &mut out);
        }
        out.clear();
        assert_eq!(dispatcher.on_last_reply(lease(1), task(1), 1, &mut out), [task(2), task(3)]);
        let ended =
            [Action::SetDemand { class, node: None, target: 0 }, Action::Retire { lease_id: lease(1) }];
        assert_eq!(out, ended);
        out.clear();
        for number in [3, 2] {
            dispatcher.enqueue(class, task(number), true, &mut out);
        }
        assert_eq!(
            out,
            [
                Action::SetDemand { class, node: None, target: 1 },
                Action::SetDemand { class, node: None, target: 2 }
            ]
        );
        out.clear();
        dispatcher.on_lease_granted(class, None, lease(2), now, &mut out);
        assert_eq!(out[0], Action::Send { lease_id: lease(2), task_id: task(2) });
        assert_eq!(dispatcher.on_last_reply(lease(1), task(1), 1, &mut out), [], "twice is once");
    }

    /// Another process waited until this one had nothing left to do.
    #[test]
    fn a_contended_lease_goes_back_after_its_turn_whatever_waits_here() {
        let (mut dispatcher, class, now) = dispatcher();
        let mut out = Vec::new();
        for number in 0..10 {
            dispatcher.enqueue(class, task(number), false, &mut out);
        }
        dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
        dispatcher.on_contention(class, None, true, now, &mut out);
        // One by one, for they take longer than a lease is filled for.
        let slow = WINDOW.as_micros() as u32 + 1;
        out.clear();
        dispatcher.on_reply(lease(1), task(0), slow, now + TURN - Duration::from_nanos(1), &mut out);
        assert_eq!(out, [Action::Send { lease_id: lease(1), task_id: task(1) }], "its turn is not over");
        out.clear();
        dispatcher.on_reply(lease(1), task(1), slow, now + TURN, &mut out);
        let again = Action::SetDemand { class, node: None, target: 8 };
        let returned =
            [Action::SetDemand { class, node: None, target: 0 }, Action::Return { lease_id: lease(1) }];
        assert_eq!(out, [&returned[..], &[again]].concat());
        out.clear();
        dispatcher.on_lease_granted(class, None, lease(2), now + TURN, &mut out);
        assert_eq!(sent(&out), 1, "it goes on when it is its turn again");
    }

    #[test]
    fn a_lease_that_was_to_leave_stays_if_nobody_waits_any_more() {
        let (mut dispatcher, class, now) = dispatcher();
        let mut out = Vec::new();
        for number in 0..5 {
            dispatcher.enqueue(class, task(number), false, &mut out);
        }
        dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
        dispatcher.on_contention(class, None, true, now + TURN, &mut out);
        out.clear();
        dispatcher.on_contention(class, None, false, now + TURN, &mut out);
        dispatcher.on_reply(lease(1), task(0), 1, now + TURN, &mut out);
        assert_eq!(sent(&out), 4);
        assert!(!out.contains(&Action::Return { lease_id: lease(1) }));
    }

    #[test]
    fn tasks_that_can_never_run_are_handed_out_and_later_ones_ask_again() {
        let (mut dispatcher, class, _) = dispatcher();
        let mut out = Vec::new();
        dispatcher.enqueue(class, task(1), false, &mut out);
        dispatcher.enqueue(class, task(2), false, &mut out);
        out.clear();
        assert_eq!(dispatcher.on_class_failed(class, None, &mut out), [task(1), task(2)]);
        assert_eq!(out, []);
        dispatcher.enqueue(class, task(3), false, &mut out);
        assert_eq!(out, [Action::SetDemand { class, node: None, target: 1 }]);
    }

    #[test]
    fn a_lost_lease_names_its_tasks_in_order() {
        let (mut dispatcher, class, now) = dispatcher();
        let mut out = Vec::new();
        dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
        dispatcher.enqueue(class, task(0), false, &mut out);
        dispatcher.on_reply(lease(1), task(0), 1, now, &mut out);
        for number in 1..4 {
            dispatcher.enqueue(class, task(number), false, &mut out);
        }
        assert_eq!(dispatcher.on_lease_lost(lease(1), &mut out), [task(1), task(2), task(3)]);
        assert_eq!(dispatcher.next_deadline(), None);
    }

    const OTHER: NodeId = NodeId::from_bytes([7; 16]);

    fn demand(node: Option<NodeId>, target: u32) -> Action {
        Action::SetDemand { class: 0, node, target }
    }

    #[test]
    fn other_nodes_are_asked_besides_as_far_as_the_own_one_allows() {
        let (mut dispatcher, class, now) = dispatcher();
        let mut out = Vec::new();
        for number in 0..5 {
            dispatcher.enqueue(class, task(number), false, &mut out);
        }
        out.clear();
        dispatcher.on_elsewhere(class, &[(OTHER, Allowance::Waiting(2))], &mut out);
        assert_eq!(out, [demand(Some(OTHER), 2)], "what the own node was told stands");
        out.clear();
        dispatcher.on_lease_granted(class, Some(OTHER), lease(1), now, &mut out);
        assert_eq!(out, [Action::Send { lease_id: lease(1), task_id: task(0) }, demand(Some(OTHER), 3)]);
        out.clear();
        dispatcher.on_elsewhere(class, &[], &mut out);
        assert_eq!(out, [demand(Some(OTHER), 1)], "what is held there stays");
    }

    #[test]
    fn an_allowance_of_all_counts_what_is_held() {
        let (mut dispatcher, class, now) = dispatcher();
        let mut out = Vec::new();
        for number in 0..5 {
            dispatcher.enqueue(class, task(number), false, &mut out);
        }
        dispatcher.on_elsewhere(class, &[(OTHER, Allowance::Held(1))], &mut out);
        assert_eq!(out.last(), Some(&demand(Some(OTHER), 1)));
        out.clear();
        dispatcher.on_lease_granted(class, Some(OTHER), lease(1), now, &mut out);
        assert_eq!(out, [Action::Send { lease_id: lease(1), task_id: task(0) }]);
    }

    #[test]
    fn a_grant_of_another_node_that_comes_too_late_goes_back_at_once() {
        let (mut dispatcher, class, now) = dispatcher();
        let mut out = Vec::new();
        dispatcher.enqueue(class, task(0), false, &mut out);
        dispatcher.on_elsewhere(class, &[(OTHER, Allowance::Waiting(1))], &mut out);
        out.clear();
        dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
        assert_eq!(out[1..], [demand(Some(OTHER), 0)], "nothing waits any more");
        out.clear();
        dispatcher.on_lease_granted(class, Some(OTHER), lease(2), now, &mut out);
        assert_eq!(out.last(), Some(&Action::Return { lease_id: lease(2) }));
        assert!(
            !out.contains(&demand(None, 0)),
            "the other node's grant is no matter of the own one: {out:?}"
        );
    }

    #[test]
    fn contention_is_a_matter_of_one_node() {
        let (mut dispatcher, class, now) = dispatcher();
        let mut out = Vec::new();
        dispatcher.enqueue(class, task(0), false, &mut out);
        dispatcher.enqueue(class, task(1), false, &mut out);
        dispatcher.on_lease_granted(class, None, lease(1), now, &mut out);
        dispatcher.on_lease_granted(class, Some(OTHER), lease(2), now, &mut out);
        out.clear();
        dispatcher.on_contention(class, Some(OTHER), true, now, &mut out);
        dispatcher.on_reply(lease(1), task(0), 1, now, &mut out);
        assert_eq!(out, []);
        dispatcher.on_reply(lease(2), task(1), 1, now, &mut out);
        assert_eq!(out, [demand(Some(OTHER), 0), Action::Return { lease_id: lease(2) }]);
    }

    #[test]
    fn a_lost_node_is_asked_for_nothing_and_its_tasks_go_elsewhere() {
        let (mut dispatcher, class, now) = dispatcher();
        let mut out = Vec::new();
        dispatcher.enqueue(class, task(0), false, &mut out);
        dispatcher.enqueue(class, task(1), false, &mut out);
        dispatcher.on_elsewhere(class, &[(OTHER, Allowance::Waiting(2))], &mut out);
        dispatcher.on_lease_granted(class, Some(OTHER), lease(1), now, &mut out);
        out.clear();
        dispatcher.on_node_lost(OTHER);
        for task_id in dispatcher.on_lease_lost(lease(1), &mut out) {
            dispatcher.enqueue(class, task_id, true, &mut out);
        }
        assert!(
            !out.iter().any(|action| matches!(action, Action::SetDemand { node: Some(_), .. })),
            "{out:?}"
        );
        dispatcher.on_lease_granted(class, None, lease(2), now, &mut out);
        assert_eq!(dispatcher.lease_of(task(0)), Some(lease(2)));
    }

    #[test]
    fn what_is_spread_is_told_to_the_own_node_as_a_whole_and_no_lease_of_it_is_kept() {
        let mut dispatcher = Dispatcher::new(256, IDLE);
        let shape = Shape::from(Resources::new().with_cpu(1.0).unwrap())
            .with_strategy(ray_core::constraint::Strategy::Spread);
        let class = dispatcher.class_of(&shape, &RuntimeEnv::none());
        let (mut out, now) = (Vec::new(), Instant::now());
        dispatcher.enqueue(class, task(0), false, &mut out);
        dispatcher.on_elsewhere(class, &[(OTHER, Allowance::Held(1))], &mut out);
        dispatcher.on_lease_granted(class, Some(OTHER), lease(1), now, &mut out);
        out.clear();
        dispatcher.enqueue(class, task(1), false, &mut out);
        assert_eq!(out, [demand(None, 2)], "one runs elsewhere, one waits");
        out.clear();
        dispatcher.on_reply(lease(1), task(0), 1, now, &mut out);
        assert_eq!(out, [Action::Send { lease_id: lease(1), task_id: task(1) }, demand(None, 1)]);
        out.clear();
        dispatcher.on_reply(lease(1), task(1), 1, now, &mut out);
        let returned = [demand(Some(OTHER), 0), Action::Return { lease_id: lease(1) }, demand(None, 0)];
        assert_eq!(out, returned);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Enqueue,
        Grant,
        GrantElsewhere,
        Elsewhere(u32, bool),
        Reply(usize, u32),
        GiveBack(usize, bool),
        Lose(usize),
        Leave(usize),
        Contend(bool),
        Tick(u64),
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            6 => Just(Event::Enqueue),
            3 => Just(Event::Grant),
            2 => Just(Event::GrantElsewhere),
            1 => (0u32..4, any::<bool>()).prop_map(|(count, all)| Event::Elsewhere(count, all)),
            6 => (any::<usize>(), 0u32..10_000).prop_map(|(pick, us)| Event::Reply(pick, us)),
            1 => (any::<usize>(), any::<bool>()).prop_map(|(pick, keeps_one)| Event::GiveBack(pick, keeps_one)),
            1 => any::<usize>().prop_map(Event::Lose),
            1 => any::<usize>().prop_map(Event::Leave),
            1 => any::<bool>().prop_map(Event::Contend),
            1 => (0u64..100).prop_map(Event::Tick),
        ]
    }

    proptest! {
        #[test]
        fn every_task_is_sent_once_at_a_time_and_all_get_done(events in prop::collection::vec(any_event(), 0..200)) {
            let (mut dispatcher, class, mut now) = dispatcher();
            let mut running: Vec<(LeaseId, VecDeque<TaskId>)> = Vec::new();
            let (mut open, mut next, mut next_lease) = (BTreeSet::new(), 0u32, 0u8);
            // What each node was told, and the leases that are the other's.
            let (mut demand, mut abroad, mut of_other) = (0usize, 0usize, BTreeSet::new());
            let mut drain = events.into_iter();
            loop {
                let mut out = Vec::new();
                let draining = drain.len() == 0;
                let event = match drain.next() {
                    Some(event) => event,
                    None if open.is_empty() => break,
                    // At the end the node grants what is asked, and workers do their work.
                    None if running.iter().all(|(_, tasks)| tasks.is_empty()) => Event::Grant,
                    None => Event::Reply(running.iter().position(|(_, tasks)| !tasks.is_empty()).unwrap(), 1),
                };
                match event {
                    Event::Enqueue => {
                        open.insert(task(next));
                        dispatcher.enqueue(class, task(next), false, &mut out);
                        next += 1;
                    }
                    Event::GrantElsewhere if of_other.len() < abroad && next_lease < 255 => {
                        next_lease += 1;
                        of_other.insert(lease(next_lease));
                        running.push((lease(next_lease), VecDeque::new()));
                        dispatcher.on_lease_granted(class, Some(OTHER), lease(next_lease), now, &mut out);
                    }
                    Event::Elsewhere(count, all) => {
                        let allowance = if all { Allowance::Held(count) } else { Allowance::Waiting(count) };
                        dispatcher.on_elsewhere(class, &[(OTHER, allowance)], &mut out);
                    }
                    Event::Grant if running.len() - of_other.len() < demand && next_lease < 255 => {
                        next_lease += 1;
                        running.push((lease(next_lease), VecDeque::new()));
                        dispatcher.on_lease_granted(class, None, lease(next_lease), now, &mut out);
                    }
                    Event::Reply(pick, us) if !running.is_empty() => {
                        let at = pick % running.len();
                        let (lease_id, tasks) = &mut running[at];
                        let lease_id = *lease_id;
                        if let Some(task_id) = tasks.pop_front() {
                            open.remove(&task_id);
                            dispatcher.on_reply(lease_id, task_id, us, now, &mut out);
                        }
                    }
                    Event::GiveBack(pick, keeps_one) if !running.is_empty() => {
                        let at = pick % running.len();
                        let (lease_id, tasks) = &mut running[at];
                        // All of them, if the reply to the one that ran was faster.
                        let kept = if keeps_one { tasks.len().min(1) } else { 0 };
                        let back: Vec<TaskId> = tasks.drain(kept..).collect();
                        dispatcher.on_given_back(*lease_id, &back, now, &mut out);
                        for &task_id in back.iter().rev() {
                            dispatcher.enqueue(class, task_id, true, &mut out);
                        }
                    }
                    Event::Lose(pick) if !running.is_empty() => {
                        let (lease_id, tasks) = running.swap_remove(pick % running.len());
                        of_other.remove(&lease_id);
                        let lost = dispatcher.on_lease_lost(lease_id, &mut out);
                        prop_assert_eq!(&lost, &tasks);
                        for task_id in lost {
                            dispatcher.enqueue(class, task_id, true, &mut out);
                        }
                    }
                    Event::Leave(pick) if running.iter().any(|(_, tasks)| !tasks.is_empty()) => {
                        let busy = running.iter().filter(|(_, tasks)| !tasks.is_empty());
                        let lease_id = busy.cycle().nth(pick % 100).unwrap().0;
                        let tasks = &mut running.iter_mut().find(|(id, _)| *id == lease_id).unwrap().1;
                        let last = tasks.pop_front().unwrap();
                        open.remove(&last);
                        of_other.remove(&lease_id);
                        let unstarted = dispatcher.on_last_reply(lease_id, last, 1, &mut out);
                        prop_assert_eq!(&unstarted, &*tasks);
                        tasks.clear();
                        for task_id in unstarted.into_iter().rev() {
                            dispatcher.enqueue(class, task_id, true, &mut out);
                        }
                    }
                    Event::Contend(contended) => dispatcher.on_contention(class, None, contended, now, &mut out),
                    Event::Tick(ms) => {
                        now += Duration::from_millis(ms);
                        dispatcher.tick(now, &mut out);
                    }
                    Event::GrantElsewhere => {}
                    Event::Grant
                    | Event::Reply(..)
                    | Event::GiveBack(..)
                    | Event::Lose(_)
                    | Event::Leave(_) => {
                        prop_assert!(!draining, "tasks wait, but nothing is asked for them");
                    }
                }
                for action in out {
                    match action {
                        Action::Send { lease_id, task_id } => {
                            prop_assert!(open.contains(&task_id));
                            prop_assert!(running.iter().all(|(_, tasks)| !tasks.contains(&task_id)));
                            let (_, tasks) = running.iter_mut().find(|(id, _)| *id == lease_id).unwrap();
                            tasks.push_back(task_id);
                        }
                        Action::SetDemand { node: None, target, .. } => demand = target as usize,
                        Action::SetDemand { node: Some(_), target, .. } => abroad = target as usize,
                        Action::Return { lease_id } | Action::Retire { lease_id } => {
                            of_other.remove(&lease_id);
                            let at = running.iter().position(|(id, _)| *id == lease_id).unwrap();
                            prop_assert!(running[at].1.is_empty());
                            running.remove(at);
                        }
                    }
                }
            }
            let mut out = Vec::new();
            dispatcher.tick(now + IDLE, &mut out);
            let returned = out.iter().filter(|action| matches!(action, Action::Return { .. })).count();
            prop_assert_eq!(returned, running.len(), "a lease without tasks goes back in time");
        }
    }
}
