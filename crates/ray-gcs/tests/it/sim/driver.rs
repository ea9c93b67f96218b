//! A model of a driver: it registers actors of two jobs, kills some, and ends one job. It repeats each call until it
//! is answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ray_core::id::{ActorId, JobId};
use ray_core::resource::Resources;
use ray_gcs::actor::{ActorSpec, MaxRestarts};
use ray_scheduler::Strategy;

use super::message::{Call, Context, Message, Peer, Reply, Timer};
use super::random::Random;

const TICK_MS: u64 = 150;
const ACTORS: u64 = 12;

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
}

impl Driver {
    pub(super) fn new(random: &mut Random) -> Self {
        let mut driver = Self::default();
        for n in 0..ACTORS {
            driver.plan.push(Call::RegisterActor(Arc::new(any_actor(n, random))));
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
            Call::RegisterActor(spec) => self.known.push(spec.actor_id),
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
        if let Some(Call::RegisterActor(spec)) = self.calls.remove(&id)
            && *reply == Reply::Done
        {
            self.registered.insert(spec.actor_id);
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
        resources: if random.percent(50) { Resources::new() } else { cpu(0.25) },
        max_restarts,
        max_task_retries: 0,
        max_concurrency: 1,
        detached: random.percent(20),
        class_id: Arc::default(),
        class_blob: Arc::default(),
        creation_task: Arc::default(),
        owner: None,
        strategy: if random.percent(50) { Strategy::Default } else { Strategy::Spread },
        handle_metadata: Arc::default(),
        job_config: Arc::default(),
        runtime_env: String::new(),
        concurrency_groups: Box::default(),
        is_async: false,
    }
}
