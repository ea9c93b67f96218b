//! Actors on the node.
//!
//! ```text
//!             on_create_actor           on_actor_placed            on_actor_created
//!   (none) -------------------> Placing ----------------> Creating -----------------> Alive
//!      |                         ^  |                          |    constructor raised   |
//!      +--> Preparing -----------+  |                          |                         |
//!        its environment is set up |                          |                         |
//!                                  v on_kill_actor            v    or worker lost       v worker lost
//!                               (none), reported as died <----+-------------------------+
//! ```
//!
//! The control plane decides where and how often an actor is made; the node makes it, says what
//! became of it, and forgets it with its process.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use ray_core::id::{ActorId, LeaseId, RuntimeEnvId, WorkerId};
use ray_core::pb::common::{DeathCause, death_cause::Kind};
use ray_core::report::PlacingReport;
use ray_core::resource::Resources;
use ray_core::runtime_env::RuntimeEnv;
use ray_link::FromRaylet;
use tracing::info;

use super::effect::{ActorOrder, ActorOutcome, ClientId, Effect};
use super::machine::NodeMachine;
use crate::lease_table::Holder;
use crate::resource_manager::{Claim, Pool};
use crate::runtime_env_table::Standing;

/// How far an actor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ActorState {
    /// Its runtime environment is being set up.
    Preparing,
    /// It waits for resources or a worker.
    Placing,
    /// Its constructor runs.
    Creating(WorkerId),
    /// It takes calls.
    Alive(WorkerId),
}

/// Ends of actors that are remembered.
const MAX_ENDED: usize = 10_000;

/// The last incarnations that ended here, in case an order for one of them is repeated: its answer was
/// lost, and the actor must not come to life again.
#[derive(Debug, Default)]
pub(super) struct EndedActors {
    ends: BTreeMap<ActorId, (u64, DeathCause)>,
    oldest_first: VecDeque<ActorId>,
}

impl EndedActors {
    fn insert(&mut self, actor_id: ActorId, num_restarts: u64, cause: DeathCause) {
        if self.of(actor_id, num_restarts).is_some() {
            return;
        }
        if self.ends.insert(actor_id, (num_restarts, cause)).is_none() {
            self.oldest_first.push_back(actor_id);
        }
        if self.oldest_first.len() > MAX_ENDED
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.ends.remove(&oldest);
        }
    }

    /// How this incarnation ended, or a later one.
    fn of(&self, actor_id: ActorId, num_restarts: u64) -> Option<&DeathCause> {
        self.ends.get(&actor_id).filter(|(ended, _)| *ended >= num_restarts).map(|(_, cause)| cause)
    }
}

/// One actor of this node.
#[derive(Debug)]
pub(super) struct LocalActor {
    order: ActorOrder,
    lease_id: LeaseId,
    state: ActorState,
    /// Why it is about to end, if that is known before it does.
    ending: Option<DeathCause>,
}

impl LocalActor {
    /// What its process needs.
    pub(super) const fn runtime_env(&self) -> &RuntimeEnv {
        &self.order.runtime_env
    }

    const fn worker(&self) -> Option<WorkerId> {
        match self.state {
            ActorState::Preparing | ActorState::Placing => None,
            ActorState::Creating(worker_id) | ActorState::Alive(worker_id) => Some(worker_id),
        }
    }
}

fn died(kind: Kind, message: impl Into<String>) -> DeathCause {
    DeathCause { kind: kind.into(), message: message.into(), error: Vec::new() }
}

impl NodeMachine {
    /// The control plane wants this actor to live here. Asking again is asking once.
    pub fn on_create_actor(&mut self, now: Instant, order: ActorOrder) {
        let actor_id = order.actor_id;
        if let Some(known) = self.actors.get(&actor_id) {
            if known.order.num_restarts >= order.num_restarts {
                self.repeat_report(actor_id);
                return;
            }
            // The control plane gave the last incarnation up.
            self.drop_actor(now, actor_id, "a newer incarnation of the actor takes its place");
        }
        if let Some(cause) = self.ended_actors.of(actor_id, order.num_restarts) {
            let (num_restarts, outcome) = (order.num_restarts, ActorOutcome::Died(cause.clone()));
            self.effects.push(Effect::ReportActor { actor_id, num_restarts, outcome });
            return;
        }
        let lease_id = self.next_lease_id();
        let standing = self.want_env(now, &order.runtime_env);
        let state = ActorState::Preparing;
        self.actors.insert(actor_id, LocalActor { order, lease_id, state, ending: None });
        match standing {
            Standing::Ready => {
                self.queue_actor(actor_id);
                self.serve(now);
            }
            Standing::Pending { .. } => {}
            Standing::Failed { reason } => self.on_actor_env_failed(now, actor_id, &reason),
        }
    }

    /// Queues an actor, whose environment is ready, for its resources.
    pub(super) fn queue_actor(&mut self, actor_id: ActorId) {
        let Some(actor) = self.actors.get_mut(&actor_id) else { return };
        if actor.state != ActorState::Preparing {
            return;
        }
        let (lease_id, job_id, num_restarts) = (actor.lease_id, actor.order.job_id, actor.order.num_restarts);
        let bundle = actor.order.bundle;
        let pool = bundle.map_or(Pool::Node, |bundle| Pool::Group {
            group_id: bundle.group_id,
            index: Some(bundle.index),
        });
        let claim = Claim { pool, resources: larger_of(&actor.order.placement, &actor.order.living) };
        let refused = match bundle.filter(|_| !self.resources.is_here(pool)) {
            Some(bundle) => Some(format!("{bundle} is not here")),
            None => self.queue.push(lease_id, &claim).err().map(|error| error.to_string()),
        };
        match refused {
            None => {
                actor.state = ActorState::Placing;
                self.leases.insert(lease_id, Holder::Actor(actor_id), job_id, claim);
                self.mark_changed();
            }
            Some(reason) => {
                self.actors.remove(&actor_id);
                let outcome = ActorOutcome::Died(died(Kind::Unschedulable, reason));
                self.effects.push(Effect::ReportActor { actor_id, num_restarts, outcome });
            }
        }
    }

    /// The actors of this environment that have no process yet.
    pub(super) fn actors_in(&self, env: RuntimeEnvId) -> Vec<ActorId> {
        let concerned = |actor: &LocalActor| actor.worker().is_none() && actor.order.runtime_env.id() == env;
        self.actors.iter().filter(|(_, actor)| concerned(actor)).map(|(&id, _)| id).collect()
    }

    /// The actor cannot have its environment.
    pub(super) fn on_actor_env_failed(&mut self, now: Instant, actor_id: ActorId, reason: &str) {
        if let Some(actor) = self.actors.remove(&actor_id) {
            self.give_back(now, actor.lease_id);
            self.report_died(&actor, died(Kind::RuntimeEnvSetupFailed, reason));
        }
    }

    /// An answer may have been lost: what is known of a living actor is said again.
    fn repeat_report(&mut self, actor_id: ActorId) {
        let Some(actor) = self.actors.get(&actor_id) else { return };
        if let ActorState::Alive(worker_id) = actor.state {
            self.report_alive(actor_id, worker_id);
        }
    }

    pub(super) fn on_actor_placed(&mut self, actor_id: ActorId, worker_id: WorkerId) {
        let Some(actor) = self.actors.get_mut(&actor_id) else { return };
        actor.state = ActorState::Creating(worker_id);
        let (spec, num_restarts) = (actor.order.spec.clone(), actor.order.num_restarts);
        let devices = self.resources.devices_of(actor.lease_id);
        self.pool.dedicate(worker_id, actor_id);
        self.send_to(worker_id, FromRaylet::CreateActor { spec, num_restarts, devices });
    }

    /// The actor's lease came to nothing.
    pub(super) fn on_actor_unplaced(&mut self, actor_id: ActorId, reason: String) {
        if let Some(actor) = self.actors.remove(&actor_id) {
            self.report_died(&actor, died(Kind::ProcessExited, reason));
        }
    }

    pub(super) fn on_actor_created(
        &mut self,
        now: Instant,
        worker_id: WorkerId,
        actor_id: ActorId,
        num_restarts: u64,
        result: Result<(), (String, Bytes)>,
    ) {
        let Some(actor) = self.actors.get_mut(&actor_id) else { return };
        if actor.state != ActorState::Creating(worker_id) || actor.order.num_restarts != num_restarts {
            return;
        }
        match result {
            Ok(()) => {
                actor.state = ActorState::Alive(worker_id);
                let (lease_id, living) = (actor.lease_id, actor.order.living.clone());
                self.resources.shrink(lease_id, &living);
                self.mark_changed();
                self.report_alive(actor_id, worker_id);
                self.serve(now);
            }
            Err((message, error)) => {
                let cause = Kind::CreationFailed.into();
                actor.ending =
                    Some(DeathCause { kind: cause, message: message.clone(), error: error.to_vec() });
                self.kill_worker(now, worker_id, &message);
            }
        }
    }

    pub(super) fn on_actor_exiting(&mut self, worker_id: WorkerId, actor_id: ActorId, reason: String) {
        if let Some(actor) = self.actors.get_mut(&actor_id).filter(|actor| actor.worker() == Some(worker_id))
        {
            actor.ending.get_or_insert_with(|| died(Kind::ExitedByUser, reason));
        }
    }

    pub(super) fn on_actor_worker_lost(&mut self, actor_id: ActorId, worker_id: WorkerId, cause: &str) {
        if self.actors.get(&actor_id).and_then(LocalActor::worker) != Some(worker_id) {
            return;
        }
        if let Some(mut actor) = self.actors.remove(&actor_id) {
            let ending = actor.ending.take();
            let for_memory = self.freeing_memory.contains(&worker_id);
            let kind = if for_memory { Kind::OutOfMemory } else { Kind::ProcessExited };
            let cause = ending.unwrap_or_else(|| died(kind, cause));
            self.report_died(&actor, cause);
        }
    }

    /// The control plane wants this incarnation, or an older one, to end.
    pub fn on_kill_actor(&mut self, now: Instant, actor_id: ActorId, num_restarts: u64, cause: DeathCause) {
        let Some(actor) = self.actors.get_mut(&actor_id) else {
            // The order to create it may still be on its way, and must find it killed.
            self.ended_actors.insert(actor_id, num_restarts, cause);
            return;
        };
        if actor.order.num_restarts > num_restarts {
            return;
        }
        self.end_actor(now, actor_id, cause);
    }

    /// Ends an actor, for a reason that is its cause of death.
    pub(super) fn end_actor(&mut self, now: Instant, actor_id: ActorId, cause: DeathCause) {
        let Some(actor) = self.actors.get_mut(&actor_id) else { return };
        actor.ending = Some(cause.clone());
        match actor.worker() {
            Some(worker_id) => self.kill_worker(now, worker_id, &cause.message),
            None => {
                if let Some(actor) = self.actors.remove(&actor_id) {
                    self.envs_released = true;
                    self.give_back(now, actor.lease_id);
                    self.report_died(&actor, cause);
                    self.serve(now);
                }
            }
        }
    }

    /// What the actors that are being made wait for.
    pub(super) fn placing(&self) -> Vec<PlacingReport> {
        let placing = self.actors.iter().filter_map(|(&actor_id, actor)| {
            let reason = match actor.state {
                ActorState::Preparing => self.why_env_pending(&actor.order.runtime_env)?,
                ActorState::Placing => "it waits for its resources, or for a worker process".to_owned(),
                ActorState::Creating(_) => "its constructor runs".to_owned(),
                ActorState::Alive(_) => return None,
            };
            Some(PlacingReport { actor_id, reason })
        });
        placing.collect()
    }

    fn drop_actor(&mut self, now: Instant, actor_id: ActorId, reason: &str) {
        if let Some(actor) = self.actors.remove(&actor_id) {
            self.end_lease(now, actor.lease_id, reason);
        }
    }

    fn report_alive(&mut self, actor_id: ActorId, worker_id: WorkerId) {
        let Some(worker) = self.leased_worker(worker_id) else { return };
        let Some(actor) = self.actors.get(&actor_id) else { return };
        let num_restarts = actor.order.num_restarts;
        info!(%actor_id, num_restarts, pid = worker.pid, "actor lives");
        let outcome = ActorOutcome::Alive(worker);
        self.effects.push(Effect::ReportActor { actor_id, num_restarts, outcome });
    }

    fn report_died(&mut self, actor: &LocalActor, cause: DeathCause) {
        let (actor_id, num_restarts) = (actor.order.actor_id, actor.order.num_restarts);
        info!(%actor_id, num_restarts, cause = cause.message, "actor died");
        self.ended_actors.insert(actor_id, num_restarts, cause.clone());
        let outcome = ActorOutcome::Died(cause);
        self.effects.push(Effect::ReportActor { actor_id, num_restarts, outcome });
    }

    /// The client wants to be told of this actor.
    pub(super) fn on_subscribe(&mut self, client: ClientId, actor_id: ActorId) {
        let Some(subscriber) = self.clients.get_mut(&client) else { return };
        subscriber.subscriptions.insert(actor_id);
        match self.actor_states.get(&actor_id) {
            Some((_, info)) => {
                let message = FromRaylet::ActorState { info: info.clone() };
                self.effects.push(Effect::Send(client, message));
            }
            None => self.effects.push(Effect::FetchActor(actor_id)),
        }
    }

    /// A subscriber is gone; the state of an actor that nobody else asks for is forgotten.
    pub(super) fn unsubscribe(&mut self, actor_id: ActorId) {
        if !self.clients.values().any(|client| client.subscriptions.contains(&actor_id)) {
            self.actor_states.remove(&actor_id);
        }
    }

    /// The control plane tells the state of an actor; an older one than is known changes nothing.
    pub fn on_actor_state(&mut self, actor_id: ActorId, version: u64, info: Bytes) {
        let interested =
            |(_, client): &(&ClientId, &super::machine::Client)| client.subscriptions.contains(&actor_id);
        let clients: Vec<_> = self.clients.iter().filter(interested).map(|(&id, _)| id).collect();
        let known = self.actor_states.get(&actor_id).map(|(version, _)| *version);
        if clients.is_empty() || known.is_some_and(|known| known >= version) {
            return;
        }
        self.actor_states.insert(actor_id, (version, info.clone()));
        for client in clients {
            self.effects.push(Effect::Send(client, FromRaylet::ActorState { info: info.clone() }));
        }
    }
}

/// The larger amount of each resource.
fn larger_of(one: &Resources, other: &Resources) -> Resources {
    let mut larger = one.clone();
    for (name, amount) in other.iter() {
        larger.set(name, amount.max(one.get(name)));
    }
    larger
}
