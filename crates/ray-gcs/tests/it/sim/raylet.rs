//! A model of a raylet: it keeps to the protocol, and that is all.
//!
//! * It acknowledges an order at once; an order that it carried out already changes nothing.
//! * It remembers which incarnations ended here. Ordered to make one of them, it reports the end again; ordered
//!   to end one that it never made, it counts it as ended.
//! * Ordered to make an incarnation while it runs an earlier one, it ends that one.
//! * It repeats a report until it is answered.
//! * Ordered to reserve bundles, it takes all of them or refuses, and refuses that attempt from then on. It
//!   remembers which attempts were given back, and reserves nothing for them any more.
//! * Told that it counts as dead, it ends all it runs and comes back under a new id.

use std::collections::BTreeMap;
use std::sync::Arc;

use ray_core::id::{ActorId, NodeId, PlacementGroupId, WorkerId};
use ray_core::resource::Resources;
use ray_gcs::actor::{ActorSpec, CreateOrder, DeathCause, DeathKind, Incarnation, KillOrder, WorkerAddress};
use ray_gcs::actor_table::NodeOrder;
use ray_gcs::control_plane::{ActorOutcome, OrderAnswer};
use ray_gcs::node_table::NodeSpec;
use ray_gcs::placement_group::{BundleOrder, Reservation, ReturnOrder};
use ray_gcs::usage_table::NodeUsage;

use super::message::{Call, Context, Message, Peer, Reply, Timer};

const TICK_MS: u64 = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Waits for resources.
    Queued,
    /// Runs its constructor.
    Constructing,
    /// Takes calls.
    Living,
}

#[derive(Debug)]
pub(super) struct Process {
    pub(super) num_restarts: u64,
    pub(super) stage: Stage,
    spec: Arc<ActorSpec>,
    /// The bundle in which it runs.
    bundle: Option<(PlacementGroupId, u32)>,
}

/// What is reserved.
#[derive(Debug)]
pub(super) struct Reserved {
    attempt: u64,
    pub(super) committed: bool,
    amount: Resources,
    free: Resources,
}

#[derive(Debug)]
pub(super) struct Raylet {
    index: usize,
    /// Grows with each start; `None` in `up` while it is down.
    pub(super) epoch: u64,
    pub(super) up: bool,
    pub(super) node_id: NodeId,
    pub(super) registered: bool,
    total: Resources,
    pub(super) free: Resources,
    pub(super) processes: BTreeMap<ActorId, Process>,
    pub(super) bundles: BTreeMap<(PlacementGroupId, u32), Reserved>,
    /// The last attempt for each group that is over here, and those before it.
    over: BTreeMap<PlacementGroupId, u64>,
    /// The last incarnation of each actor that ended here, and how.
    ended: BTreeMap<ActorId, (u64, DeathCause)>,
    /// Reports that were not answered, by call.
    pub(super) reports: BTreeMap<u64, (Incarnation, ActorOutcome)>,
    heartbeat: u64,
    usage_version: u64,
}

impl Raylet {
    pub(super) fn new(index: usize, total: Resources) -> Self {
        Self {
            index,
            epoch: 0,
            up: false,
            node_id: NodeId::nil(),
            registered: false,
            free: total.clone(),
            total,
            processes: BTreeMap::new(),
            bundles: BTreeMap::new(),
            over: BTreeMap::new(),
            ended: BTreeMap::new(),
            reports: BTreeMap::new(),
            heartbeat: 0,
            usage_version: 0,
        }
    }

    /// All that it was is gone; it comes up as a new node.
    pub(super) fn start(&mut self, context: &mut Context<'_>) {
        let (index, total, epoch) = (self.index, self.total.clone(), self.epoch + 1);
        *self = Self { epoch, up: true, ..Self::new(index, total) };
        self.node_id = NodeId::from_bytes(context.random.bytes());
        self.tick(context);
    }

    pub(super) fn crash(&mut self) {
        self.up = false;
        self.processes.clear();
        self.bundles.clear();
        self.reports.clear();
    }

    pub(super) fn on_tick(&mut self, epoch: u64, context: &mut Context<'_>) {
        if self.up && self.epoch == epoch {
            self.tick(context);
        }
    }

    pub(super) fn on_order(&mut self, order: NodeOrder, context: &mut Context<'_>) {
        let key = order.key();
        let mut answer = OrderAnswer::Acknowledged;
        match order {
            NodeOrder::Create(order) => self.create(order, context),
            NodeOrder::Kill(KillOrder { target, cause }) => self.kill(target, cause, context),
            NodeOrder::Bundles(BundleOrder::Reserve { target, bundles, commit }) => {
                if !self.reserve(target, &bundles, commit, context) {
                    answer = OrderAnswer::Refused("no room".to_owned());
                }
            }
            NodeOrder::Bundles(BundleOrder::Commit(target)) => self.commit(&target),
            NodeOrder::Bundles(BundleOrder::Return(order)) => self.give_back(&order, context),
        }
        context.send(Message::Answered(key, answer));
        self.start_queued(context);
    }

    pub(super) fn on_reply(&mut self, id: u64, reply: &Reply, context: &mut Context<'_>) {
        match reply {
            Reply::Done => {
                // Reports are numbered; any other answer tells that the node is known.
                if self.reports.remove(&id).is_none() {
                    self.registered = true;
                }
            }
            Reply::NodeGone => self.start(context),
            Reply::Refused => {}
        }
    }

    pub(super) fn on_constructed(&mut self, epoch: u64, target: Incarnation, context: &mut Context<'_>) {
        if !self.runs(epoch, &target, Stage::Constructing) {
            return;
        }
        let chance = context.random.between(0, 100);
        match chance {
            0..8 => self.end(
                target,
                DeathCause::new(DeathKind::CreationFailed, "its constructor raised"),
                context,
            ),
            8..16 if context.faulty => self.end(target, exited("it crashed in its constructor"), context),
            _ => self.live(target, context),
        }
        self.start_queued(context);
    }

    pub(super) fn on_process_crash(&mut self, epoch: u64, target: Incarnation, context: &mut Context<'_>) {
        if context.faulty && self.runs(epoch, &target, Stage::Living) {
            self.end(target, exited("it crashed"), context);
            self.start_queued(context);
        }
    }

    /// Whether it is up as this node.
    pub(super) fn is(&self, node_id: NodeId) -> bool {
        self.up && self.node_id == node_id
    }

    /// Panics unless what is free and what its processes take is what it has.
    pub(super) fn check_resources(&self) {
        let mut sum = self.free.clone();
        for process in self.processes.values().filter(|process| process.bundle.is_none()) {
            sum.add(taken(process));
        }
        for (key, reserved) in &self.bundles {
            sum.add(&reserved.amount);
            let mut inside = reserved.free.clone();
            let held = self.processes.values().filter(|process| process.bundle == Some(*key));
            held.for_each(|process| inside.add(taken(process)));
            assert_eq!(inside, reserved.amount, "raylet {} lost resources of a bundle", self.index);
        }
        assert_eq!(sum, self.total, "raylet {} lost resources", self.index);
    }

    fn tick(&mut self, context: &mut Context<'_>) {
        self.heartbeat += 1;
        self.usage_version += 1;
        let calls = if self.registered {
            let usage = NodeUsage {
                node_id: self.node_id,
                total: self.total.clone(),
                available: self.free.clone(),
                version: self.usage_version,
                demand: Vec::new(),
            };
            vec![Call::Heartbeat(self.node_id, self.heartbeat), Call::ReportUsage(usage)]
        } else {
            vec![Call::RegisterNode(self.spec())]
        };
        for call in calls {
            let id = context.call_id();
            context.send(Message::Call { from: Peer::Raylet(self.index), id, call });
        }
        for (&id, (target, outcome)) in &self.reports {
            let call = Call::ReportActor(*target, outcome.clone());
            context.send(Message::Call { from: Peer::Raylet(self.index), id, call });
        }
        context.after(TICK_MS, Timer::RayletTick { raylet: self.index, epoch: self.epoch });
    }

    fn spec(&self) -> NodeSpec {
        NodeSpec {
            node_id: self.node_id,
            raylet_address: format!("10.0.0.{}:1", self.index),
            hostname: format!("machine-{}", self.index),
            total: self.total.clone(),
            labels: BTreeMap::new(),
            is_head: false,
            socket_path: String::new(),
            metrics_port: 0,
        }
    }

    fn reserve(
        &mut self,
        target: Reservation,
        bundles: &[(u32, Resources)],
        commit: bool,
        context: &mut Context<'_>,
    ) -> bool {
        let group_id = target.group_id;
        if self.over.get(&group_id).is_some_and(|&over| over >= target.attempt) {
            return false;
        }
        if bundles.iter().all(|(index, _)| {
            self.bundles.get(&(group_id, *index)).is_some_and(|known| known.attempt == target.attempt)
        }) {
            return true;
        }
        if target.attempt > 0 {
            self.over.insert(group_id, target.attempt - 1);
        }
        // What an earlier attempt reserved in vain makes room.
        self.drop_bundles(context, |(group, index), known| {
            let again = bundles.iter().any(|(asked, _)| *asked == index);
            group == group_id && known.attempt < target.attempt && (!known.committed || again)
        });
        let mut free = self.free.clone();
        let fits = bundles.iter().all(|(_, amount)| free.subtract(amount).is_ok());
        if !fits {
            self.over.insert(group_id, target.attempt);
            return false;
        }
        self.free = free;
        for (index, amount) in bundles {
            let (amount, free) = (amount.clone(), amount.clone());
            let reserved = Reserved { attempt: target.attempt, committed: commit, amount, free };
            self.bundles.insert((group_id, *index), reserved);
        }
        true
    }

    fn commit(&mut self, target: &Reservation) {
        for ((group_id, _), reserved) in &mut self.bundles {
            reserved.committed |= *group_id == target.group_id && reserved.attempt == target.attempt;
        }
    }

    fn give_back(&mut self, order: &ReturnOrder, context: &mut Context<'_>) {
        let ReturnOrder { target, all, .. } = order;
        let over = self.over.entry(target.group_id).or_default();
        *over = (*over).max(target.attempt);
        self.drop_bundles(context, |(group, _), known| {
            let concerned =
                if *all { known.attempt <= target.attempt } else { known.attempt == target.attempt };
            group == target.group_id && concerned
        });
    }

    fn drop_bundles(
        &mut self,
        context: &mut Context<'_>,
        concerned: impl Fn((PlacementGroupId, u32), &Reserved) -> bool,
    ) {
        let gone: Vec<_> = self
            .bundles
            .iter()
            .filter(|(key, reserved)| concerned(**key, reserved))
            .map(|(&key, _)| key)
            .collect();
        for key in gone {
            let inside: Vec<_> = self
                .processes
                .iter()
                .filter(|(_, process)| process.bundle == Some(key))
                .map(|(&actor_id, process)| (actor_id, process.num_restarts))
                .collect();
            for (actor_id, num_restarts) in inside {
                let target = Incarnation { node_id: self.node_id, actor_id, num_restarts };
                let cause = DeathCause::new(DeathKind::PlacementGroupRemoved, "its bundle is gone");
                self.end(target, cause, context);
            }
            if let Some(reserved) = self.bundles.remove(&key) {
                self.free.add(&reserved.amount);
            }
        }
    }

    /// Where a process takes its resources.
    fn pool(&mut self, bundle: Option<(PlacementGroupId, u32)>) -> Option<&mut Resources> {
        match bundle {
            None => Some(&mut self.free),
            Some(key) => {
                self.bundles.get_mut(&key).filter(|known| known.committed).map(|known| &mut known.free)
            }
        }
    }

    fn create(&mut self, order: CreateOrder, context: &mut Context<'_>) {
        let CreateOrder { target, spec, bundle, .. } = order;
        if let Some((last, cause)) = self.ended.get(&target.actor_id)
            && target.num_restarts <= *last
        {
            let cause = cause.clone();
            if target.num_restarts == *last {
                self.report(target, ActorOutcome::Died(cause), context);
            }
            return;
        }
        if self.processes.get(&target.actor_id).is_some_and(|known| known.num_restarts >= target.num_restarts)
        {
            return;
        }
        // The control plane gave the last incarnation up.
        if let Some(older) = self.processes.remove(&target.actor_id) {
            self.free_of(&older);
        }
        let bundle = spec.constraint.group_id().map(|group_id| (group_id, bundle.unwrap_or_default()));
        let pool = self.pool(bundle);
        let is_gone = pool.is_none();
        let full = pool.is_none_or(|free| !free.can_satisfy(&spec.placement_resources));
        if is_gone || (full && bundle.is_none() && context.random.percent(50)) {
            let cause = DeathCause::new(DeathKind::Unschedulable, "no room");
            self.report(target, ActorOutcome::Died(cause), context);
            return;
        }
        let process = Process { num_restarts: target.num_restarts, stage: Stage::Queued, spec, bundle };
        self.processes.insert(target.actor_id, process);
    }

    fn kill(&mut self, target: Incarnation, cause: DeathCause, context: &mut Context<'_>) {
        let newer = |last: u64| last > target.num_restarts;
        let process = self.processes.get(&target.actor_id);
        let ended = self.ended.get(&target.actor_id);
        if process.is_some_and(|process| newer(process.num_restarts))
            || ended.is_some_and(|(last, _)| *last >= target.num_restarts)
        {
            return;
        }
        self.end(target, cause, context);
    }

    fn start_queued(&mut self, context: &mut Context<'_>) {
        let queued = self.processes.iter().filter(|(_, process)| process.stage == Stage::Queued);
        for actor_id in queued.map(|(&actor_id, _)| actor_id).collect::<Vec<_>>() {
            let process = &self.processes[&actor_id];
            let (spec, bundle, num_restarts) =
                (Arc::clone(&process.spec), process.bundle, process.num_restarts);
            let taken =
                self.pool(bundle).is_some_and(|free| free.subtract(&spec.placement_resources).is_ok());
            if taken {
                self.processes.get_mut(&actor_id).expect("it was listed").stage = Stage::Constructing;
                let node_id = self.node_id;
                let target = Incarnation { node_id, actor_id, num_restarts };
                let timer = Timer::Constructed { raylet: self.index, epoch: self.epoch, target };
                context.within(5, 1000, timer);
            }
        }
    }

    fn live(&mut self, target: Incarnation, context: &mut Context<'_>) {
        let process = self.processes.get_mut(&target.actor_id).expect("it runs");
        process.stage = Stage::Living;
        let (spec, bundle) = (Arc::clone(&process.spec), process.bundle);
        let free = self.pool(bundle).expect("processes end with their bundles");
        free.add(&spec.placement_resources);
        free.subtract(&spec.resources).expect("it takes no more to live than to be made");
        let address = WorkerAddress {
            worker_id: WorkerId::from_bytes(context.random.bytes()),
            node_id: self.node_id,
            socket_path: String::new(),
            tcp_address: String::new(),
        };
        self.report(target, ActorOutcome::Alive { address, pid: 1 }, context);
        if context.random.percent(40) {
            let timer = Timer::ProcessCrash { raylet: self.index, epoch: self.epoch, target };
            context.within(1, 4000, timer);
        }
    }

    /// The incarnation, if it runs, is gone, and so it is remembered.
    fn end(&mut self, target: Incarnation, cause: DeathCause, context: &mut Context<'_>) {
        if let Some(process) = self.processes.remove(&target.actor_id) {
            self.free_of(&process);
        }
        self.ended.insert(target.actor_id, (target.num_restarts, cause.clone()));
        self.report(target, ActorOutcome::Died(cause), context);
    }

    fn free_of(&mut self, process: &Process) {
        if let Some(free) = self.pool(process.bundle) {
            free.add(taken(process));
        }
    }

    fn report(&mut self, target: Incarnation, outcome: ActorOutcome, context: &mut Context<'_>) {
        let id = context.call_id();
        self.reports.insert(id, (target, outcome.clone()));
        let call = Call::ReportActor(target, outcome);
        context.send(Message::Call { from: Peer::Raylet(self.index), id, call });
    }

    fn runs(&self, epoch: u64, target: &Incarnation, stage: Stage) -> bool {
        let process = self.processes.get(&target.actor_id);
        let same = |process: &Process| process.num_restarts == target.num_restarts && process.stage == stage;
        self.up && self.epoch == epoch && process.is_some_and(same)
    }
}

fn taken(process: &Process) -> &Resources {
    static NOTHING: std::sync::LazyLock<Resources> = std::sync::LazyLock::new(Resources::new);
    match process.stage {
        Stage::Queued => &NOTHING,
        Stage::Constructing => &process.spec.placement_resources,
        Stage::Living => &process.spec.resources,
    }
}

fn exited(message: &str) -> DeathCause {
    DeathCause::new(DeathKind::ProcessExited, message)
}
