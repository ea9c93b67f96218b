//! A model of a raylet: it keeps to the protocol, and that is all.
//!
//! * It acknowledges an order at once; an order that it carried out already changes nothing.
//! * It remembers which incarnations ended here. Ordered to make one of them, it reports the end again; ordered
//!   to end one that it never made, it counts it as ended.
//! * Ordered to make an incarnation while it runs an earlier one, it ends that one.
//! * It repeats a report until it is answered.
//! * Told that it counts as dead, it ends all it runs and comes back under a new id.

use std::collections::BTreeMap;
use std::sync::Arc;

use ray_core::id::{ActorId, NodeId, WorkerId};
use ray_core::resource::Resources;
use ray_gcs::actor::{ActorSpec, DeathCause, DeathKind, Incarnation, KillOrder, WorkerAddress};
use ray_gcs::actor_table::NodeOrder;
use ray_gcs::control_plane::ActorOutcome;
use ray_gcs::node_table::NodeSpec;
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
        self.reports.clear();
    }

    pub(super) fn on_tick(&mut self, epoch: u64, context: &mut Context<'_>) {
        if self.up && self.epoch == epoch {
            self.tick(context);
        }
    }

    pub(super) fn on_order(&mut self, order: NodeOrder, context: &mut Context<'_>) {
        context.send(Message::Acknowledged(order.key()));
        match order {
            NodeOrder::Create(order) => self.create(order.target, order.spec, context),
            NodeOrder::Kill(KillOrder { target, cause }) => self.kill(target, cause, context),
        }
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
        for process in self.processes.values() {
            sum.add(taken(process));
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

    fn create(&mut self, target: Incarnation, spec: Arc<ActorSpec>, context: &mut Context<'_>) {
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
            self.free.add(taken(&older));
        }
        let full = !self.free.can_satisfy(&spec.placement_resources);
        if full && context.random.percent(50) {
            let cause = DeathCause::new(DeathKind::Unschedulable, "no room");
            self.report(target, ActorOutcome::Died(cause), context);
            return;
        }
        let process = Process { num_restarts: target.num_restarts, stage: Stage::Queued, spec };
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
        for (&actor_id, process) in &mut self.processes {
            let fits = self.free.can_satisfy(&process.spec.placement_resources);
            if process.stage == Stage::Queued && fits {
                self.free.subtract(&process.spec.placement_resources).expect("it fits");
                process.stage = Stage::Constructing;
                let (node_id, num_restarts) = (self.node_id, process.num_restarts);
                let target = Incarnation { node_id, actor_id, num_restarts };
                let timer = Timer::Constructed { raylet: self.index, epoch: self.epoch, target };
                context.within(5, 1000, timer);
            }
        }
    }

    fn live(&mut self, target: Incarnation, context: &mut Context<'_>) {
        let process = self.processes.get_mut(&target.actor_id).expect("it runs");
        self.free.add(&process.spec.placement_resources);
        self.free.subtract(&process.spec.resources).expect("it takes no more to live than to be made");
        process.stage = Stage::Living;
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
            self.free.add(taken(&process));
        }
        self.ended.insert(target.actor_id, (target.num_restarts, cause.clone()));
        self.report(target, ActorOutcome::Died(cause), context);
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
