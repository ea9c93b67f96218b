//! A model of a driver: it makes placement groups and registers actors of two jobs, some of them in groups, kills some,
//! removes groups, and ends one job. It repeats each call until it is answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ray_core::constraint::Strategy;
use ray_core::id::{ActorId, JobId, PlacementGroupId};
use ray_core::resource::Resources;
use ray_gcs::actor::{ActorSpec, MaxRestarts};
use ray_gcs::placement_group::GroupSpec;
use ray_scheduler::{Bundle, GroupStrategy};

use super::message::{Call, Context, Message, Peer, Reply, Timer};
use super::random::Random;

const TICK_MS: u64 = 150;
const ACTORS: u64 = 12;
const GROUPS: u64 = 3;

#[derive(Debug, Default)]
pub(super) struct Driver {
    /// What it still has in mind, the next thing last.
    plan: Vec<Call>,
    /// Calls that were not answered.
    pub(super) calls: BTreeMap<u64, Call>,
    /// Actors whose registration was acknowledged.
    pub(super) registered: BTreeSet<ActorId>,
    /// Actors that it asked to kill, or whose job it asked to end.
    pub(super) killed: BTreeSet<ActorId>,
    pub(super) finished: BTreeSet<JobId>,
    known: Vec<ActorId>,
    /// Groups whose creation was acknowledged.
    pub(super) made: BTreeSet<PlacementGroupId>,
    /// Groups that it asked to remove.
    pub(super) removed: BTreeSet<PlacementGroupId>,
}

impl Driver {
    pub(super) fn new(random: &mut Random) -> Self {
        let mut driver = Self::default();
        for n in 0..ACTORS {
            driver.plan.push(Call::RegisterActor(Arc::new(any_actor(n, random))));
        }
        for n in 0..GROUPS {
            let at = random.between(0, driver.plan.len() as u64) as usize;
            driver.plan.insert(at, Call::CreateGroup(Arc::new(any_group(n, random))));
        }
        for _ in 0..random.between(0, 3) {
            driver.plan.insert(0, Call::RemoveGroup(PlacementGroupId::nil()));
        }
        for _ in 0..random.between(0, 8) {
            // Whom to kill is known only when some are registered.
            driver.plan.insert(0, Call::KillActor(ActorId::nil(), random.percent(50)));
        }
        if random.percent(30) {
            driver.plan.insert(0, Call::FinishJob(job(1)));
        }
        driver.plan.extend([0, 1].map(|n| Call::AddJob(job(n))));
        driver
    }

    pub(super) fn act(&mut self, context: &mut Context<'_>) {
        let Some(mut call) = self.plan.pop() else { return };
        match &mut call {
            Call::KillActor(actor_id, _) => {
                let index = context.random.between(0, self.known.len() as u64) as usize;
                *actor_id = self.known[index];
                self.killed.insert(*actor_id);
            }
            Call::FinishJob(job_id) => drop(self.finished.insert(*job_id)),
            Call::RegisterActor(spec) => {
                self.known.push(spec.actor_id);
                // As a core worker does, it uses a group only when its creation was acknowledged.
                let groups: Vec<_> = self.made.iter().copied().collect();
                if context.random.percent(50) && !groups.is_empty() {
                    let at = context.random.between(0, groups.len() as u64) as usize;
                    put_into(Arc::make_mut(spec), groups[at], context.random.percent(50));
                }
            }
            Call::RemoveGroup(group_id) => {
                let groups: Vec<_> = self.made.iter().copied().collect();
                if groups.is_empty() {
                    return context.within(1, 800, Timer::DriverAct);
                }
                *group_id = groups[context.random.between(0, groups.len() as u64) as usize];
                self.removed.insert(*group_id);
            }
            _ => {}
        }
        let id = context.call_id();
        self.calls.insert(id, call.clone());
        context.send(Message::Call { from: Peer::Driver, id, call });
        context.within(1, 800, Timer::DriverAct);
    }

    pub(super) fn on_tick(&mut self, context: &mut Context<'_>) {
        for (&id, call) in &self.calls {
            context.send(Message::Call { from: Peer::Driver, id, call: call.clone() });
        }
        context.after(TICK_MS, Timer::DriverTick);
    }

    pub(super) fn on_reply(&mut self, id: u64, reply: &Reply) {
        let call = self.calls.remove(&id).filter(|_| *reply == Reply::Done);
        match call {
            Some(Call::RegisterActor(spec)) => drop(self.registered.insert(spec.actor_id)),
            Some(Call::CreateGroup(spec)) => drop(self.made.insert(spec.group_id)),
            _ => {}
        }
    }

    /// Whether the registration of this actor was not answered yet.
    pub(super) fn is_registering(&self, actor_id: ActorId) -> bool {
        let registers = |call: &Call| matches!(call, Call::RegisterActor(spec) if spec.actor_id == actor_id);
        self.calls.values().any(registers)
    }

    /// Whether it has nothing more to do.
    pub(super) fn is_done(&self) -> bool {
        self.plan.is_empty() && self.calls.is_empty()
    }
}

pub(super) fn job(n: u8) -> JobId {
    JobId::from_bytes([n; 16])
}

/// One that, with all other groups and actors, fits on one node.
fn any_group(n: u64, random: &mut Random) -> GroupSpec {
    let resources = Resources::new().with_cpu(0.25).expect("a valid amount");
    let strategies =
        [GroupStrategy::Pack, GroupStrategy::Spread, GroupStrategy::StrictPack, GroupStrategy::StrictSpread];
    GroupSpec {
        group_id: PlacementGroupId::from_bytes([n as u8 + 1; 16]),
        name: None,
        namespace: "space".to_owned(),
        strategy: strategies[random.between(0, 4) as usize],
        bundles: vec![Bundle { resources, ..Bundle::default() }; random.between(1, 3) as usize],
        detached: random.percent(20),
        job_id: job(random.between(0, 2) as u8),
        soft_target: None,
    }
}

/// The actor takes no more than a bundle has, and nothing for life, so that all find room in one.
fn put_into(spec: &mut ActorSpec, group_id: PlacementGroupId, first: bool) {
    spec.placement_resources = Resources::new().with_cpu(0.25).expect("a valid amount");
    spec.resources = Resources::new();
    spec.constraint = Strategy::Bundle { group_id, index: first.then_some(0), capture: false }.into();
}

/// One that, with all others, fits on one node.
fn any_actor(n: u64, random: &mut Random) -> ActorSpec {
    let cpu = |units| Resources::new().with_cpu(units).expect("a valid amount");
    let max_restarts = match random.between(0, 4) {
        0 => MaxRestarts::Unlimited,
        times => MaxRestarts::Times(times - 1),
    };
    ActorSpec {
        actor_id: ActorId::from_bytes([n as u8 + 1; 16]),
        job_id: job(random.between(0, 2) as u8),
        name: random.percent(50).then(|| format!("actor-{n}")),
        namespace: "space".to_owned(),
        class_name: "Counter".to_owned(),
        placement_resources: cpu(1.0),
        resources: if random.percent(50) { Resources::new() } else { cpu(0.1) },
        max_restarts,
        max_task_retries: 0,
        max_concurrency: 1,
        detached: random.percent(20),
        class_id: Arc::default(),
        class_blob: Arc::default(),
        creation_task: Arc::default(),
        owner: None,
        constraint: if random.percent(50) { Strategy::Default } else { Strategy::Spread }.into(),
        handle_metadata: Arc::default(),
        job_config: Arc::default(),
        runtime_env: String::new(),
        concurrency_groups: Box::default(),
        is_async: false,
    }
}
