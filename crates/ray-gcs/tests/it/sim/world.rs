//! The loop of virtual time: who is there, what is under way, what goes wrong, and what must hold.

use std::collections::BTreeMap;
use std::pin::pin;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use ray_core::id::JobId;
use ray_core::resource::Resources;
use ray_gcs::actor::{ActorInfo, ActorPhase, DeathCause, DeathKind};
use ray_gcs::clock::Now;
use ray_gcs::control_plane::{ControlPlane, Limits};
use ray_gcs::effects::Effects;
use ray_gcs::job_table::JobSpec;
use ray_gcs::memory_store::{InMemoryGcsStore, MemoryTables};
use ray_gcs::node_table::NodeLimits;
use ray_gcs::placement_group::{GroupInfo, GroupPhase};
use ray_gcs::stored::StoredTables;

use super::driver::{Driver, job};
use super::message::{Action, Call, Context, Message, Peer, Reply, Timer};
use super::random::Random;
use super::raylet::{Raylet, Stage};

/// When everything heals.
const HEAL_MS: u64 = 15_000;
/// By when everything must have come to rest.
const END_MS: u64 = 45_000;
const GCS_TICK_MS: u64 = 100;
const LIMITS: Limits = Limits {
    nodes: NodeLimits {
        dead_after: Duration::from_millis(1500),
        tick_every: Duration::from_millis(GCS_TICK_MS),
        dead_kept: 100,
    },
    dead_actors_kept: 100,
    removed_groups_kept: 100,
    finished_jobs_kept: 10,
};

enum Event {
    Deliver(Message),
    Timer(Timer),
}

/// How bad the network is, in hundredths and milliseconds.
struct Network {
    lost: u64,
    doubled: u64,
    longest_delay: u64,
}

pub(super) struct World {
    now_ms: u64,
    /// By time, and by order of arrival within a time.
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    next_call: u64,
    random: Random,
    network: Network,
    faulty: bool,
    /// `None` while it is down.
    gcs: Option<ControlPlane>,
    gcs_epoch: u64,
    tables: MemoryTables,
    raylets: Vec<Raylet>,
    driver: Driver,
    hash: u64,
    print: bool,
}

impl World {
    pub(super) fn new(seed: u64, print: bool) -> Self {
        let mut random = Random::new(seed);
        let network = Network {
            lost: random.between(0, 30),
            doubled: random.between(0, 20),
            longest_delay: random.between(2, 300),
        };
        let driver = Driver::new(&mut random);
        let total = Resources::new().with_cpu(4.0).expect("a valid amount");
        let mut world = Self {
            now_ms: 0,
            events: BTreeMap::new(),
            sequence: 0,
            next_call: 0,
            random,
            network,
            faulty: true,
            gcs: None,
            gcs_epoch: 0,
            tables: MemoryTables::default(),
            raylets: (0..2).map(|index| Raylet::new(index, total.clone())).collect(),
            driver,
            hash: 0xcbf2_9ce4_8422_2325,
            print,
        };
        world.set_the_stage();
        world
    }

    /// Runs to the end; returns the hash of all events.
    pub(super) fn run(mut self) -> u64 {
        while let Some(((at, _), event)) = self.events.pop_first() {
            self.now_ms = at;
            assert!(at < END_MS, "it does not come to rest: {}", self.unrest().unwrap_or_default());
            self.note(&event);
            match event {
                Event::Deliver(message) => self.deliver(message),
                Event::Timer(timer) => self.on_timer(timer),
            }
            if let Some(plane) = &self.gcs {
                plane.check_invariants();
            }
            self.raylets.iter().filter(|raylet| raylet.up).for_each(Raylet::check_resources);
            if !self.faulty && self.unrest().is_none() {
                break;
            }
        }
        self.check_the_end();
        self.hash
    }

    fn set_the_stage(&mut self) {
        self.schedule(0, Timer::GcsStart);
        self.schedule(0, Timer::DriverTick);
        self.schedule(1, Timer::DriverAct);
        self.schedule(HEAL_MS, Timer::Heal);
        for raylet in 0..self.raylets.len() {
            let at = self.random.between(0, 500);
            self.schedule(at, Timer::RayletStart { raylet });
            for _ in 0..self.random.between(0, 3) {
                let at = self.random.between(1000, HEAL_MS);
                self.schedule(at, Timer::RayletCrash { raylet });
            }
        }
        for _ in 0..self.random.between(0, 4) {
            let at = self.random.between(500, HEAL_MS);
            self.schedule(at, Timer::GcsCrash);
        }
    }

    fn schedule(&mut self, at_ms: u64, timer: Timer) {
        self.sequence += 1;
        self.events.insert((at_ms, self.sequence), Event::Timer(timer));
    }

    fn send(&mut self, message: Message) {
        let copies = if self.random.percent(self.network.doubled) { 2 } else { 1 };
        for _ in 0..copies {
            if self.random.percent(self.network.lost) {
                continue;
            }
            let at = self.now_ms + self.random.between(1, self.network.longest_delay);
            self.sequence += 1;
            self.events.insert((at, self.sequence), Event::Deliver(message.clone()));
        }
    }

    fn note(&mut self, event: &Event) {
        let text = match event {
            Event::Deliver(message) => message.summary(),
            Event::Timer(timer) => format!("{timer:?}"),
        };
        if self.print {
            println!("{:>6} {text}", self.now_ms);
        }
        // FNV-1a, which is the same everywhere, unlike the standard library's.
        for byte in text.bytes().chain(self.now_ms.to_le_bytes()) {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Lets a participant act, and does what it wants.
    fn act(&mut self, work: impl FnOnce(&mut [Raylet], &mut Driver, &mut Context<'_>)) {
        let mut context = Context {
            random: &mut self.random,
            faulty: self.faulty,
            next_call: &mut self.next_call,
            out: Vec::new(),
        };
        work(&mut self.raylets, &mut self.driver, &mut context);
        for action in context.out {
            match action {
                Action::Send(message) => self.send(message),
                Action::After(ms, timer) => self.schedule(self.now_ms + ms, timer),
            }
        }
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Call { from, id, call } => {
                if let Some(reply) = self.call(call) {
                    self.send(Message::Reply { to: from, id, reply });
                }
            }
            Message::Reply { to: Peer::Driver, id, reply } => {
                self.act(|_, driver, _| driver.on_reply(id, &reply));
            }
            Message::Reply { to: Peer::Raylet(index), id, reply } => self.act(|raylets, _, context| {
                // A raylet that was down since does not know the call any more.
                if raylets[index].up {
                    raylets[index].on_reply(id, &reply, context);
                }
            }),
            Message::Order { to, order } => self.act(|raylets, _, context| {
                if let Some(raylet) = raylets.iter_mut().find(|raylet| raylet.is(to)) {
                    raylet.on_order(order, context);
                }
            }),
            Message::Answered(key, answer) => {
                self.step(|plane, now, fx| plane.on_order_answered(key, answer, now, fx));
            }
        }
    }

    fn on_timer(&mut self, timer: Timer) {
        match timer {
            Timer::GcsStart => self.start_gcs(),
            Timer::GcsCrash => self.crash_gcs(),
            Timer::GcsTick { epoch } => self.tick_gcs(epoch),
            Timer::RayletStart { raylet } => self.act(|raylets, _, context| {
                if !raylets[raylet].up {
                    raylets[raylet].start(context);
                }
            }),
            Timer::RayletCrash { raylet } => {
                self.raylets[raylet].crash();
                let at = self.now_ms + self.random.between(1, 4000);
                self.schedule(at, Timer::RayletStart { raylet });
            }
            Timer::RayletTick { raylet, epoch } => {
                self.act(|raylets, _, context| raylets[raylet].on_tick(epoch, context));
            }
            Timer::Constructed { raylet, epoch, target } => {
                self.act(|raylets, _, context| raylets[raylet].on_constructed(epoch, target, context));
            }
            Timer::ProcessCrash { raylet, epoch, target } => {
                self.act(|raylets, _, context| raylets[raylet].on_process_crash(epoch, target, context));
            }
            Timer::DriverTick => self.act(|_, driver, context| driver.on_tick(context)),
            Timer::DriverAct => self.act(|_, driver, context| driver.act(context)),
            Timer::Heal => {
                self.faulty = false;
                self.network = Network { lost: 0, doubled: 0, longest_delay: 5 };
            }
        }
    }

    // The control plane and its shell.

    fn now(&self) -> Now {
        Now { elapsed: Duration::from_millis(self.now_ms), unix_ms: 1_000_000 + self.now_ms }
    }

    fn start_gcs(&mut self) {
        let store = InMemoryGcsStore::with_tables(self.tables.clone());
        let stored = at_once(StoredTables::load(&store)).expect("what was kept can be read");
        let mut effects = Effects::default();
        self.gcs_epoch += 1;
        self.gcs = Some(ControlPlane::restore(LIMITS, stored, self.now(), &mut effects));
        self.carry_out(effects);
        self.schedule(self.now_ms + GCS_TICK_MS, Timer::GcsTick { epoch: self.gcs_epoch });
    }

    fn crash_gcs(&mut self) {
        if self.gcs.take().is_some() {
            let at = self.now_ms + self.random.between(1, 3000);
            self.schedule(at, Timer::GcsStart);
        }
    }

    fn tick_gcs(&mut self, epoch: u64) {
        if self.gcs.is_none() || self.gcs_epoch != epoch {
            return;
        }
        self.step(ControlPlane::tick);
        let Some(plane) = &self.gcs else { return };
        let nodes: Vec<_> = plane.nodes().iter().map(|node| node.spec.node_id).collect();
        let orders: Vec<_> = nodes
            .into_iter()
            .flat_map(|to| plane.outstanding(to).into_iter().map(move |order| Message::Order { to, order }))
            .collect();
        orders.into_iter().for_each(|order| self.send(order));
        self.schedule(self.now_ms + GCS_TICK_MS, Timer::GcsTick { epoch });
    }

    /// Does a step and carries out what follows; `None` if the control plane is down, or goes down before
    /// it can answer.
    fn step<R>(&mut self, work: impl FnOnce(&mut ControlPlane, Now, &mut Effects) -> R) -> Option<R> {
        let now = self.now();
        let mut effects = Effects::default();
        let result = work(self.gcs.as_mut()?, now, &mut effects);
        // Orders make the moment delicate.
        let chance = if effects.orders.is_empty() { 1 } else { 6 };
        if self.faulty && !effects.writes.is_empty() && self.random.percent(chance) {
            // It crashes before the write or after it; what was to follow is lost in both cases.
            if self.random.percent(50) {
                self.tables.apply(effects.writes);
            }
            self.crash_gcs();
            return None;
        }
        self.carry_out(effects);
        Some(result)
    }

    fn carry_out(&mut self, effects: Effects) {
        self.tables.apply(effects.writes);
        for (to, order) in effects.orders {
            self.send(Message::Order { to, order });
        }
    }

    fn call(&mut self, call: Call) -> Option<Reply> {
        let gone = |known: bool| if known { Reply::Done } else { Reply::NodeGone };
        Some(match call {
            Call::RegisterNode(spec) => {
                gone(self.step(|plane, now, fx| plane.register_node(spec, now, fx))?.is_ok())
            }
            Call::Heartbeat(node_id, sequence) => {
                gone(self.step(|plane, now, _| plane.heartbeat(node_id, sequence, now))?)
            }
            Call::ReportActor(target, outcome) => {
                gone(self.step(|plane, now, fx| plane.report_actor(target, outcome, now, fx))?.is_ok())
            }
            Call::ReportUsage(usage) => {
                gone(self.step(|plane, now, fx| plane.report_resources(usage, now, fx))?.is_ok())
            }
            Call::AddJob(job_id) => {
                self.step(|plane, now, fx| plane.add_job(job_spec(job_id), now, fx))?;
                Reply::Done
            }
            Call::RegisterActor(spec) => {
                let spec = (*spec).clone();
                match self.step(|plane, now, fx| plane.register_actor(spec, now, fx))? {
                    Ok(_) => Reply::Done,
                    Err(_) => Reply::Refused,
                }
            }
            Call::KillActor(actor_id, for_good) => {
                let cause = DeathCause::new(DeathKind::Killed, "the driver killed it");
                let kill = |plane: &mut ControlPlane, now, fx: &mut Effects| {
                    plane.kill_actor(actor_id, for_good, cause, now, fx)
                };
                match self.step(kill)? {
                    Ok(()) => Reply::Done,
                    // Its registration is still under way; the driver tries again.
                    Err(_) if self.driver.is_registering(actor_id) => return None,
                    Err(_) => Reply::Refused,
                }
            }
            Call::CreateGroup(spec) => {
                let spec = (*spec).clone();
                match self.step(|plane, now, fx| plane.create_group(spec, now, fx))? {
                    Ok(_) => Reply::Done,
                    Err(_) => Reply::Refused,
                }
            }
            Call::RemoveGroup(group_id) => {
                self.step(|plane, now, fx| plane.remove_group(group_id, now, fx))?.expect("it was made");
                Reply::Done
            }
            Call::FinishJob(job_id) => {
                self.step(|plane, now, fx| plane.finish_job(job_id, "done", now, fx))?;
                Reply::Done
            }
        })
    }

    // What must hold.

    /// What is still under way, if anything is.
    fn unrest(&self) -> Option<String> {
        let Some(plane) = &self.gcs else { return Some("the control plane is down".to_owned()) };
        if !self.driver.is_done() {
            return Some(format!("the driver waits: {:?}", self.driver.calls));
        }
        for raylet in &self.raylets {
            // What still is made is reported later, and may prove to be wanted no more.
            let all_made = raylet.processes.values().all(|process| process.stage == Stage::Living);
            let at_rest = raylet.up && raylet.registered && raylet.reports.is_empty() && all_made;
            if !at_rest || !plane.nodes().is_alive(&raylet.node_id) {
                return Some(format!("a raylet is not at rest: {raylet:?}"));
            }
        }
        for node in plane.nodes().iter().filter(|node| node.is_alive()) {
            let node_id = node.spec.node_id;
            if !self.raylets.iter().any(|raylet| raylet.is(node_id)) {
                return Some(format!("node {node_id} is gone, and nobody noticed"));
            }
            let orders = plane.outstanding(node_id);
            if !orders.is_empty() {
                return Some(format!("orders are outstanding: {orders:?}"));
            }
        }
        let under_way = plane
            .groups()
            .iter()
            .find(|group| !matches!(group.phase, GroupPhase::Created | GroupPhase::Removed { .. }));
        if let Some(group) = under_way {
            return Some(format!("a placement group is neither created nor removed: {group:?}"));
        }
        let unsettled = plane
            .actors()
            .iter()
            .find(|actor| matches!(actor.phase, ActorPhase::Waiting { .. } | ActorPhase::Creating { .. }));
        unsettled.map(|actor| format!("an actor is neither alive nor dead: {actor:?}"))
    }

    fn check_the_end(&self) {
        assert_eq!(self.unrest(), None);
        let plane = self.gcs.as_ref().expect("it is up at the end");
        for actor_id in &self.driver.registered {
            let actor = plane.actors().get(actor_id).expect("no registered actor is lost");
            match &actor.phase {
                ActorPhase::Alive { .. } => self.check_alive(actor),
                ActorPhase::Dead { cause, .. } => self.check_dead(actor, cause),
                ActorPhase::Waiting { .. } | ActorPhase::Creating { .. } => panic!("not at rest: {actor:?}"),
            }
        }
        let mut reserved = 0;
        for group_id in &self.driver.made {
            reserved +=
                self.check_group(plane.groups().get(group_id).expect("no group that was made is lost"));
        }
        let held: usize = self.raylets.iter().map(|raylet| raylet.bundles.len()).sum();
        assert_eq!(reserved, held, "every bundle is a created group's");
        let alive = plane.actors().iter().filter(|actor| !actor.phase.is_dead()).count();
        let running: usize = self.raylets.iter().map(|raylet| raylet.processes.len()).sum();
        assert_eq!(alive, running, "every process is a living actor's");
    }

    /// Returns how many bundles it has.
    fn check_group(&self, group: &GroupInfo) -> usize {
        let job_ended = self.driver.finished.contains(&group.spec.job_id) && !group.spec.detached;
        let removed = self.driver.removed.contains(&group.spec.group_id);
        if group.is_removed() {
            assert!(removed || job_ended, "nobody removed it: {group:?}");
            return 0;
        }
        assert!(!removed && !job_ended, "it should be removed: {group:?}");
        for (index, node_id) in group.nodes.iter().enumerate() {
            let key = (group.spec.group_id, index as u32);
            let holders: Vec<_> =
                self.raylets.iter().filter(|raylet| raylet.bundles.contains_key(&key)).collect();
            let [holder] = holders[..] else { panic!("{} raylets hold {key:?}", holders.len()) };
            assert_eq!(Some(holder.node_id), *node_id);
            assert!(holder.bundles[&key].committed, "it can be used: {group:?}");
        }
        group.nodes.len()
    }

    fn check_alive(&self, actor: &ActorInfo) {
        let holders: Vec<_> =
            self.raylets.iter().filter(|raylet| raylet.processes.contains_key(&actor.actor_id)).collect();
        let [holder] = holders[..] else { panic!("{} raylets run {actor:?}", holders.len()) };
        assert_eq!(Some(holder.node_id), actor.phase.node_id());
        let process = &holder.processes[&actor.actor_id];
        assert_eq!((process.num_restarts, process.stage), (actor.num_restarts, Stage::Living));
        let outlives = actor.detached || !self.driver.finished.contains(&actor.job_id);
        assert!(outlives, "it outlives its job: {actor:?}");
    }

    fn check_dead(&self, actor: &ActorInfo, cause: &DeathCause) {
        assert!(!cause.message.is_empty(), "it died without a reason: {actor:?}");
        let happened = match cause.kind {
            // An incarnation that two nodes made, because an order given back was taken after all, is
            // ended on one of them; should the actor come back to that node, it is made anew or dies of it.
            DeathKind::Killed => {
                self.driver.killed.contains(&actor.actor_id) || cause.message.contains("not the present one")
            }
            DeathKind::JobFinished => actor.job_id == job(1) && self.driver.finished.contains(&job(1)),
            DeathKind::ProcessExited | DeathKind::NodeDied | DeathKind::OutOfMemory => {
                // Whoever may be made anew for ever does not die of a crash.
                !actor.max_restarts.allows_another(actor.num_restarts)
            }
            DeathKind::CreationFailed => true,
            DeathKind::PlacementGroupRemoved => {
                !self.driver.removed.is_empty() || self.driver.finished.contains(&job(1))
            }
            DeathKind::OutOfScope
            | DeathKind::ExitedByUser
            | DeathKind::Unschedulable
            | DeathKind::RuntimeEnvSetupFailed => false,
        };
        assert!(happened, "this never happened: {actor:?}");
    }
}

fn job_spec(job_id: JobId) -> JobSpec {
    JobSpec {
        job_id,
        entrypoint: "main.py".to_owned(),
        namespace: "space".to_owned(),
        driver_pid: 1,
        driver_worker_id: None,
        node_id: None,
        metadata: BTreeMap::new(),
    }
}

/// The value of a future that never waits.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut TaskContext::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a store in memory never waits"),
    }
}
