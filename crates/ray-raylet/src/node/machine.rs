//! The node: who is connected, who holds what, and what follows from everything that happens.
//!
//! ```text
//!   link, fork server, control plane, clock      on_..()      effects
//!   -----------------------------------------> NodeMachine ----------> link, fork server, control plane
//! ```
//!
//! It owns the tables of this crate and is the only place where they meet. [`super::demand`] is
//! about leases, [`super::environments`] about runtime environments, [`super::actors`] about actors,
//! [`super::submitted`] about what comes by gRPC.
//! It does no I/O and reads no clock: `now` is passed in, and what is to be done is left in a list.
//!
//! The end of a worker has two signs, its connection's end and its exit status, which come in any
//! order. Messages that it sent before it died come before the first, the reason is in the second.
//! So its end is acted on when both are there, or a moment after the first.
//!
//! ```text
//!             connection ends            exit status
//!   alive ------------------> unreaped ----------------> finished
//!     |      exit status                 connection ends    ^  or EXIT_WAIT has passed
//!     +---------------------> draining ---------------------+
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ray_core::config::{Config, RayletConfig};
use ray_core::id::{
    ActorId, ChildTaskIds, JobId, LeaseId, NodeId, PlacementGroupId, RuntimeEnvId, TaskId, WorkerId,
};
use ray_core::resource::{CPU, Resources};
use ray_core::runtime_env::RuntimeEnv;
use ray_link::message::{LeasedWorker, Role};
use ray_link::{FromRaylet, ToRaylet};
use rustc_hash::FxHashMap;
use tracing::warn;

use super::actors::{EndedActors, LocalActor};
use super::demand::Demand;
use super::effect::{ClientId, Effect, ExitStatus, NodeIdentity};
use super::groups::{FollowedGroup, OverAttempts};
use super::roster::{Member, Roster};
use super::unreachable::Unreachable;
use super::whereabouts::{Cluster, Neighbour};
use crate::lease_table::{Holder, LeaseTable};
use crate::resource_manager::ResourceManager;
use crate::runtime_env_table::{RuntimeEnvConfig, RuntimeEnvTable};
use crate::scheduling_queue::SchedulingQueue;
use crate::task_table::TaskTable;
use crate::worker_pool::{PoolEffect, WorkerPool, WorkerPoolConfig, WorkerState};

/// How long the second sign of a worker's end is waited for.
const EXIT_WAIT: Duration = Duration::from_millis(250);
/// How long after a failure to start workers those who wait for leases ask again.
pub(super) const START_RETRY: Duration = Duration::from_secs(1);
/// How long a driver's welcome waits for its first worker.
pub(super) const FIRST_WORKER_LIMIT: Duration = Duration::from_secs(1);
/// Tasks submitted by gRPC that may be under way.
const MAX_SUBMITTED: usize = 100_000;
/// Tasks submitted by gRPC that are remembered after their end.
const SUBMITTED_HISTORY: usize = 10_000;

/// One connection that has said who it is.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) worker_id: WorkerId,
    pub(super) pid: u32,
    pub(super) socket_path: String,
    /// The job that it drives; `None`: a worker or a visitor.
    pub(super) drives: Option<JobId>,
    /// It belongs to another node; with the job that it drives, if it does.
    pub(super) visits: Option<Option<JobId>>,
    /// What its job's processes need unless they say otherwise.
    pub(super) runtime_env: RuntimeEnv,
    pub(super) subscriptions: BTreeSet<ActorId>,
    /// It has been told that it is taken.
    pub(super) welcomed: bool,
}

impl Client {
    /// The job of which it is shown what its workers print.
    fn shown_job(&self) -> Option<JobId> {
        self.drives.or_else(|| self.visits.flatten())
    }
}

/// A worker of which one sign of its end was seen.
#[derive(Debug)]
struct Ending {
    deadline: Instant,
    status: Option<ExitStatus>,
}

/// The decisions of one node.
#[derive(Debug)]
pub struct NodeMachine {
    pub(super) identity: NodeIdentity,
    pub(super) config: RayletConfig,
    pub(super) resources: ResourceManager,
    pub(super) queue: SchedulingQueue<LeaseId>,
    pub(super) leases: LeaseTable,
    pub(super) pool: WorkerPool,
    pub(super) envs: RuntimeEnvTable,
    /// Somebody may have stopped to need an environment.
    pub(super) envs_released: bool,
    pub(super) tasks: TaskTable,
    pub(super) actors: BTreeMap<ActorId, LocalActor>,
    pub(super) ended_actors: EndedActors,
    /// Placement groups that someone here asks for.
    pub(super) groups: BTreeMap<PlacementGroupId, FollowedGroup>,
    pub(super) over_attempts: OverAttempts,
    pub(super) cluster: Cluster,
    pub(super) clients: BTreeMap<ClientId, Client>,
    pub(super) by_worker: FxHashMap<WorkerId, ClientId>,
    pub(super) demands: BTreeMap<(WorkerId, u64), Demand>,
    /// Demands that may have fewer requests in the queue than they should.
    pub(super) short: BTreeSet<(WorkerId, u64)>,
    /// Nodes to which clients are not sent for a while.
    pub(super) unreachable: Unreachable,
    /// Clients that were told that others wait for what their leases of a class take.
    pub(super) contended: BTreeSet<(WorkerId, u64)>,
    /// Drivers whose job the control plane knows, welcomed once a worker is there for their first task, and
    /// until when that is waited for.
    awaiting_worker: BTreeMap<ClientId, Instant>,
    /// Demands that lack requests because no worker starts, and when they ask again.
    pub(super) retry_at: Option<Instant>,
    /// Latest known versions of the actors that someone here has subscribed to.
    pub(super) actor_states: FxHashMap<ActorId, (u64, bytes::Bytes)>,
    ending: BTreeMap<WorkerId, Ending>,
    /// Why a worker was told to end, for those who ask how it ended.
    pub(super) kill_reasons: FxHashMap<WorkerId, String>,
    /// Workers that were told to end to free memory, and have not ended yet.
    pub(super) freeing_memory: BTreeSet<WorkerId>,
    /// Workers that are not connected but known by address.
    pub(super) announced: BTreeMap<WorkerId, LeasedWorker>,
    lease_ids: ChildTaskIds,
    pub(super) effects: Vec<Effect>,
    changed: bool,
    pub(super) roster: Roster,
}

impl NodeMachine {
    /// A node that has `total`, without workers or clients.
    pub fn new(identity: NodeIdentity, total: Resources, config: &Config) -> Self {
        let raylet = config.raylet.clone();
        let cpus = (total.get(CPU).to_f64().ceil() as usize).max(1);
        // The ids of leases are children of the node's, as those of its workers are of the bare one.
        let lease_seed = TaskId::from_bytes(*identity.node_id.as_bytes());
        let lease_seed = ChildTaskIds::new(lease_seed).next_id();
        let pool = WorkerPoolConfig {
            start_timeout: Duration::from_millis(raylet.worker_start_timeout_ms),
            max_starting: cpus.max(4),
            max_workers: if raylet.max_workers == 0 {
                cpus.saturating_mul(64).max(1024)
            } else {
                raylet.max_workers
            },
            kept_idle: raylet.prestart_workers,
            idle_timeout: Duration::from_millis(raylet.idle_worker_timeout_ms),
            max_idle_in_envs: cpus.max(4),
            ..WorkerPoolConfig::default()
        };
        let envs = RuntimeEnvConfig {
            retry_after: Duration::from_millis(raylet.runtime_env_retry_ms),
            keep_unused: Duration::from_millis(raylet.idle_runtime_env_timeout_ms),
            cache_bytes: raylet.runtime_env_cache_bytes,
            ..RuntimeEnvConfig::default()
        };
        Self {
            pool: WorkerPool::new(identity.node_id, pool),
            envs: RuntimeEnvTable::new(envs),
            envs_released: false,
            groups: BTreeMap::new(),
            over_attempts: OverAttempts::default(),
            cluster: Cluster::of(Neighbour {
                node_id: identity.node_id,
                is_alive: true,
                total: total.clone(),
                labels: identity.labels.clone(),
                death_reason: String::new(),
            }),
            identity,
            queue: SchedulingQueue::new(total.clone(), raylet.max_queued_leases),
            resources: ResourceManager::new(total),
            config: raylet,
            leases: LeaseTable::new(),
            tasks: TaskTable::new(MAX_SUBMITTED, SUBMITTED_HISTORY),
            actors: BTreeMap::new(),
            ended_actors: EndedActors::default(),
            clients: BTreeMap::new(),
            by_worker: FxHashMap::default(),
            demands: BTreeMap::new(),
            short: BTreeSet::new(),
            unreachable: Unreachable::default(),
            contended: BTreeSet::new(),
            awaiting_worker: BTreeMap::new(),
            retry_at: None,
            actor_states: FxHashMap::default(),
            ending: BTreeMap::new(),
            kill_reasons: FxHashMap::default(),
            freeing_memory: BTreeSet::new(),
            announced: BTreeMap::new(),
            lease_ids: ChildTaskIds::new(lease_seed),
            effects: Vec::new(),
            changed: true,
            roster: Roster::default(),
        }
    }

    /// What is to be done since the last call, in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Whether what is free or waited for may have changed since the last call.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The fork server is ready: the first workers can be started.
    pub fn on_start(&mut self, now: Instant) {
        self.prestart(now, RuntimeEnvId::NIL);
    }

    pub(super) fn prestart(&mut self, now: Instant, env: RuntimeEnvId) {
        let mut out = Vec::new();
        self.pool.prestart(now, env, self.config.prestart_workers, &mut out);
        self.run_pool_effects(now, out);
    }

    /// A connection says who it is.
    pub fn on_registered(
        &mut self,
        now: Instant,
        client: ClientId,
        worker_id: WorkerId,
        role: Role,
        pid: u32,
        socket_path: String,
    ) {
        if self.clients.contains_key(&client) || self.by_worker.contains_key(&worker_id) {
            let reason = format!("worker {worker_id} is registered already");
            self.effects.push(Effect::Reject(client, reason));
            return;
        }
        let (drives, runtime_env) = match &role {
            Role::Driver(job) => (Some(job.job_id), job.runtime_env.clone()),
            Role::Worker | Role::Visitor { .. } => (None, RuntimeEnv::none()),
        };
        let visits = match &role {
            Role::Visitor { drives } => Some(*drives),
            Role::Driver(_) | Role::Worker => None,
        };
        let welcomed = drives.is_none();
        let subscriptions = BTreeSet::new();
        let entry =
            Client { worker_id, pid, socket_path, drives, visits, runtime_env, subscriptions, welcomed };
        if drives.is_some() {
            self.roster.on_start(worker_id, now);
        }
        self.clients.insert(client, entry);
        self.by_worker.insert(worker_id, client);
        match role {
            // Welcomed once the control plane knows the job: what the driver asks next is about it.
            Role::Driver(job) => self.effects.push(Effect::AddJob { job, driver: worker_id, pid }),
            Role::Worker => self.on_worker_registered(now, client, worker_id, pid),
            Role::Visitor { .. } => self.effects.push(Effect::Welcome(client)),
        }
    }

    fn on_worker_registered(&mut self, now: Instant, client: ClientId, worker_id: WorkerId, pid: u32) {
        // Welcomed first: what the pool wants of it may be a lease at once.
        self.effects.push(Effect::Welcome(client));
        let mut out = Vec::new();
        if self.pool.on_registered(now, worker_id, pid, &mut out) {
            self.run_pool_effects(now, out);
            self.welcome_drivers(now);
        } else {
            self.forget_client(client);
            self.effects.push(Effect::Reject(client, "the worker is not wanted any more".to_owned()));
        }
    }

    /// The control plane knows the job, or refuses it.
    pub fn on_job_added(&mut self, now: Instant, job_id: JobId, result: Result<(), String>) {
        let drives = |(_, client): &(&ClientId, &Client)| client.drives == Some(job_id);
        let Some(client) = self.clients.iter().find(drives).map(|(&id, _)| id) else {
            // The driver was faster gone than its job was there.
            self.effects.push(Effect::FinishJob(job_id, "its driver is gone".to_owned()));
            return;
        };
        match result {
            Ok(()) => {
                self.prepare_job(now, client);
                self.awaiting_worker.insert(client, now + FIRST_WORKER_LIMIT);
                self.welcome_drivers(now);
            }
            Err(reason) => {
                self.forget_client(client);
                self.effects.push(Effect::Reject(client, reason));
            }
        }
    }

    /// Welcomes the drivers for whose first task a worker is there, or that have waited long enough for one:
    /// what takes long is better done while a driver starts than when it wants a result.
    fn welcome_drivers(&mut self, now: Instant) {
        let soon = |client: &ClientId| {
            let env = self.clients.get(client).map_or(RuntimeEnvId::NIL, |client| client.runtime_env.id());
            self.pool.expects_first(env)
        };
        let due =
            |(client, &limit): (&ClientId, &Instant)| (limit <= now || !soon(client)).then_some(*client);
        for client in self.awaiting_worker.iter().filter_map(due).collect::<Vec<_>>() {
            self.awaiting_worker.remove(&client);
            if let Some(entry) = self.clients.get_mut(&client) {
                entry.welcomed = true;
                self.effects.push(Effect::Welcome(client));
                self.tell_of_nodes(client);
            }
        }
    }

    /// Whether a client may say this: visitors only what needs neither shared memory nor a worker of this node.
    pub fn may_say(&self, client: ClientId, message: &ToRaylet) -> bool {
        let is_visitor = self.clients.get(&client).is_some_and(|client| client.visits.is_some());
        !is_visitor
            || matches!(
                message,
                ToRaylet::SetLeaseDemand { .. }
                    | ToRaylet::ReturnLease { .. }
                    | ToRaylet::RetireWorker { .. }
                    | ToRaylet::KillWorker { .. }
                    | ToRaylet::DeleteObjects { .. }
                    | ToRaylet::FlushLogs { .. }
                    | ToRaylet::WhyPending { .. }
            )
    }

    /// A message of a client that concerns the machine; the shell answers the others.
    pub fn on_message(&mut self, now: Instant, client: ClientId, message: ToRaylet) {
        let Some(worker_id) = self.clients.get(&client).map(|client| client.worker_id) else {
            let reason = "the first message has to say who speaks".to_owned();
            self.effects.push(Effect::Reject(client, reason));
            return;
        };
        match message {
            ToRaylet::SetLeaseDemand { class, shape, job_id, runtime_env, target } => {
                let demand = Demand::new(job_id, shape, runtime_env, target);
                self.on_demand(now, worker_id, class, demand);
            }
            ToRaylet::SetJobEnvironment { runtime_env } => {
                if let Some(driver) = self.clients.get_mut(&client).filter(|client| client.drives.is_some()) {
                    driver.runtime_env = runtime_env;
                    self.prepare_job(now, client);
                }
            }
            ToRaylet::ReturnLease { lease_id } => self.on_return(now, worker_id, lease_id),
            ToRaylet::RetireWorker { lease_id } => self.on_retire_worker(now, worker_id, lease_id),
            ToRaylet::Blocked => self.on_blocked(now, worker_id, true),
            ToRaylet::Unblocked => self.on_blocked(now, worker_id, false),
            ToRaylet::KillWorker { lease_id, reason } => {
                self.on_kill_worker(now, worker_id, lease_id, reason)
            }
            ToRaylet::SubscribeActor { actor_id } => self.on_subscribe(client, actor_id),
            ToRaylet::SubscribeGroup { group_id, is_new } => {
                self.on_subscribe_group(client, group_id, is_new);
            }
            ToRaylet::ActorCreated { actor_id, num_restarts, result } => {
                self.on_actor_created(now, worker_id, actor_id, num_restarts, result);
            }
            ToRaylet::NodeUnreachable { node_id, cause } => {
                self.on_node_unreachable(now, worker_id, node_id, cause);
            }
            ToRaylet::ActorExiting { actor_id, reason } => self.on_actor_exiting(worker_id, actor_id, reason),
            ToRaylet::TaskDone { task_id, result } => self.on_task_done(now, worker_id, task_id, result),
            ToRaylet::Shutdown { reason } if self.job_of(client).is_some() => {
                self.effects.push(Effect::Shutdown(reason));
            }
            // The node is not a worker's to end.
            ToRaylet::Shutdown { reason } => warn!(%worker_id, %reason, "a worker asks for the node's end"),
            // Registering twice is refused, and the rest is the shell's.
            ToRaylet::Register { .. } => {
                self.effects.push(Effect::Reject(client, "it is registered already".to_owned()));
            }
            ToRaylet::CreateObject { .. }
            | ToRaylet::SealObject { .. }
            | ToRaylet::AbortObject { .. }
            | ToRaylet::GetObjects { .. }
            | ToRaylet::CancelGet { .. }
            | ToRaylet::ReleaseObject { .. }
            | ToRaylet::DeleteObjects { .. }
            | ToRaylet::GcsCall { .. }
            | ToRaylet::FlushLogs { .. }
            | ToRaylet::Inspected { .. }
            | ToRaylet::WhyPending { .. }
            | ToRaylet::Metrics { .. } => {}
        }
    }

    /// A connection has ended.
    pub fn on_client_lost(&mut self, now: Instant, client: ClientId) {
        let Some(gone) = self.forget_client(client) else { return };
        if let Some(job_id) = gone.drives {
            let member = Member {
                worker_id: gone.worker_id,
                pid: Some(gone.pid),
                job_id: Some(job_id),
                actor_id: None,
                is_driver: true,
                start: now,
                end: None,
            };
            self.roster.on_end(member, now, "the driver has ended");
            self.on_driver_lost(now, gone.worker_id, job_id);
            return;
        }
        if gone.visits.is_some() {
            self.lose_holder(now, gone.worker_id);
            self.announce_death(gone.worker_id, "its connection to this node was closed", false);
            return;
        }
        let ordered = self.pool.get(gone.worker_id).is_some_and(|worker| worker.ordered);
        let status = self.ending.get(&gone.worker_id).and_then(|ending| ending.status);
        if status.is_some() || !ordered {
            self.finish_worker(now, gone.worker_id, status.unwrap_or(ExitStatus::Unknown));
        } else {
            let ending = Ending { deadline: now + EXIT_WAIT, status: None };
            self.ending.insert(gone.worker_id, ending);
            self.pool.retire(gone.worker_id);
        }
    }

    fn on_driver_lost(&mut self, now: Instant, driver: WorkerId, job_id: JobId) {
        self.effects.push(Effect::FinishJob(job_id, "its driver is gone".to_owned()));
        self.lose_holder(now, driver);
        self.announce_death(driver, "the driver's connection to its node was closed", false);
        self.end_job(now, job_id);
    }

    /// The control plane says that a job has ended.
    pub fn on_job_finished(&mut self, now: Instant, job_id: JobId) {
        self.end_job(now, job_id);
    }

    fn end_job(&mut self, now: Instant, job_id: JobId) {
        let actor = |lease: &crate::lease_table::Lease| matches!(lease.holder, Holder::Actor(_));
        for lease_id in self.leases.of_job(job_id) {
            // Actors, of which some outlive their job, are ended by the control plane one by one.
            if !self.leases.get(lease_id).is_some_and(actor) {
                self.end_lease(now, lease_id, "its job has ended");
            }
        }
        self.demands.retain(|_, demand| demand.job_id != job_id);
        self.envs_released = true;
        let mut out = Vec::new();
        self.pool.on_job_finished(job_id, &mut out);
        self.run_pool_effects(now, out);
        self.serve(now);
    }

    /// The fork server has made a process for this worker.
    pub fn on_forked(&mut self, worker_id: WorkerId, pid: u32) {
        if !self.pool.on_forked(worker_id, pid) {
            self.effects.push(Effect::Kill(pid));
        }
    }

    /// The fork server has reaped this process.
    pub fn on_exited(&mut self, now: Instant, pid: u32, status: ExitStatus) {
        let Some(worker_id) = self.pool.of_pid(pid) else { return };
        if self.by_worker.contains_key(&worker_id) {
            let ending = Ending { deadline: now + EXIT_WAIT, status: Some(status) };
            self.ending.insert(worker_id, ending);
            self.pool.retire(worker_id);
        } else {
            self.finish_worker(now, worker_id, status);
        }
    }

    /// Does what is due by now.
    pub fn on_tick(&mut self, now: Instant) {
        let due = |(id, ending): (&WorkerId, &Ending)| (ending.deadline <= now).then_some(*id);
        let due: Vec<_> = self.ending.iter().filter_map(due).collect();
        for worker_id in due {
            // Its process is gone but something it started holds the connection, or the reverse.
            if let Some(client) = self.by_worker.get(&worker_id).copied() {
                self.forget_client(client);
                self.effects.push(Effect::Close(client));
            }
            let status = self.ending.get(&worker_id).and_then(|ending| ending.status);
            if let (None, Some(pid)) = (status, self.pool.get(worker_id).and_then(|worker| worker.pid)) {
                self.effects.push(Effect::Kill(pid));
            }
            self.finish_worker(now, worker_id, status.unwrap_or(ExitStatus::Unknown));
        }
        let mut out = Vec::new();
        self.pool.tick(now, &mut out);
        if !out.is_empty() {
            self.run_pool_effects(now, out);
            self.serve(now);
        }
        self.tend_environments(now);
        self.welcome_drivers(now);
        let mut reachable = self.unreachable.on_tick(now);
        if !reachable.is_empty() {
            reachable.dedup();
            for worker_id in reachable {
                self.short.extend(self.demands_of(worker_id));
            }
            self.serve(now);
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.short.extend(self.demands.keys().copied());
            self.serve(now);
        }
    }

    /// When [`Self::on_tick`] has something to do next, if nothing else happens before.
    pub fn next_deadline(&self) -> Option<Instant> {
        let endings = self.ending.values().map(|ending| ending.deadline);
        let welcomes = self.awaiting_worker.values().copied();
        let pools = self.pool.next_deadline().into_iter().chain(self.envs.next_deadline());
        let pauses = self.unreachable.next_deadline();
        endings.chain(welcomes).chain(pools).chain(pauses).chain(self.retry_at).min()
    }

    /// Ends a worker, for a reason that those who lose it are told.
    pub(super) fn kill_worker(&mut self, now: Instant, worker_id: WorkerId, reason: &str) {
        let mut out = Vec::new();
        if self.pool.kill(worker_id, &mut out) {
            self.kill_reasons.entry(worker_id).or_insert_with(|| reason.to_owned());
        }
        self.run_pool_effects(now, out);
    }

    /// A worker gets no more work, and is told to end when nobody needs what it owns.
    pub(super) fn retire_worker(&mut self, worker_id: WorkerId, reason: &str) {
        if self.pool.let_go(worker_id)
            && let Some(&client) = self.by_worker.get(&worker_id)
        {
            self.kill_reasons.entry(worker_id).or_insert_with(|| reason.to_owned());
            self.effects.push(Effect::Send(client, FromRaylet::Retire { reason: reason.to_owned() }));
        }
    }

    /// Memory runs low: this worker is the one to end.
    pub fn on_low_memory(&mut self, now: Instant, worker_id: WorkerId, reason: &str) {
        self.freeing_memory.insert(worker_id);
        self.kill_worker(now, worker_id, reason);
    }

    /// Whether a worker that was told to end to free memory has not ended yet.
    pub fn is_freeing_memory(&self) -> bool {
        !self.freeing_memory.is_empty()
    }

    /// Whether any worker has a lease.
    pub fn is_at_work(&self) -> bool {
        self.leases.granted() > 0
    }

    /// The workers that have a lease, their processes, and whether they are actors.
    pub fn leased_processes(&self) -> impl Iterator<Item = (WorkerId, u32, bool)> {
        self.pool.iter().filter_map(|(worker_id, worker)| {
            let lease = self.leases.get(self.leases.of_worker(worker_id)?)?;
            Some((worker_id, worker.pid?, matches!(lease.holder, Holder::Actor(_))))
        })
    }

    /// A worker is gone for certain.
    pub(super) fn finish_worker(&mut self, now: Instant, worker_id: WorkerId, status: ExitStatus) {
        self.ending.remove(&worker_id);
        self.announced.remove(&worker_id);
        let out_of_memory = self.freeing_memory.contains(&worker_id);
        let cause = match self.kill_reasons.remove(&worker_id) {
            Some(reason) => reason,
            None => status.to_string(),
        };
        if let Some(lease_id) = self.leases.of_worker(worker_id) {
            self.on_leased_worker_lost(now, lease_id, worker_id, &cause);
        }
        self.freeing_memory.remove(&worker_id);
        self.lose_holder(now, worker_id);
        let mut out = Vec::new();
        let worker = self.pool.remove(now, worker_id, &cause, &mut out);
        if let Some(worker) = &worker {
            self.roster.on_end(Self::member(worker_id, worker, now), now, &cause);
        }
        self.run_pool_effects(now, out);
        self.welcome_drivers(now);
        self.effects.push(Effect::EndLogs(worker_id));
        if worker.is_some_and(|worker| !matches!(worker.state, WorkerState::Starting { .. })) {
            self.announce_death(worker_id, &cause, out_of_memory);
        }
        self.serve(now);
    }

    /// What a process that is gone held or waited for as a caller.
    fn lose_holder(&mut self, now: Instant, worker_id: WorkerId) {
        let leases: Vec<_> = self.leases.of_client(worker_id).collect();
        for lease_id in leases {
            self.end_lease(now, lease_id, "the process that it worked for is gone");
        }
        self.demands.retain(|(holder, _), _| *holder != worker_id);
        self.envs_released = true;
        self.effects.push(Effect::OwnerLost(worker_id));
        self.serve(now);
    }

    fn announce_death(&mut self, worker_id: WorkerId, cause: &str, out_of_memory: bool) {
        // The first that a client hears is its welcome.
        for (&client, _) in self.clients.iter().filter(|(_, client)| client.welcomed) {
            let message = FromRaylet::WorkerDied { worker_id, cause: cause.to_owned(), out_of_memory };
            self.effects.push(Effect::Send(client, message));
        }
    }

    pub(super) fn run_pool_effects(&mut self, now: Instant, effects: Vec<PoolEffect>) {
        for effect in effects {
            match effect {
                PoolEffect::Fork(worker_id) => {
                    self.roster.on_start(worker_id, now);
                    self.effects.push(Effect::Fork(worker_id));
                }
                PoolEffect::Kill(worker_id) => {
                    // One without a process yet is killed when the fork server tells of it.
                    if let Some(pid) = self.pool.get(worker_id).and_then(|worker| worker.pid) {
                        self.effects.push(Effect::Kill(pid));
                    }
                }
                PoolEffect::Ready { lease_id, worker_id } => self.on_worker_ready(now, lease_id, worker_id),
                PoolEffect::StartFailed { lease_id, env, reason } => {
                    self.on_start_failed(now, lease_id, env, reason);
                }
            }
        }
    }

    fn forget_client(&mut self, client: ClientId) -> Option<Client> {
        let gone = self.clients.remove(&client)?;
        self.by_worker.remove(&gone.worker_id);
        self.unreachable.forget(gone.worker_id);
        for actor_id in &gone.subscriptions {
            self.unsubscribe(*actor_id);
        }
        self.unsubscribe_groups(client);
        Some(gone)
    }

    /// The connection of a process, if it has one.
    pub fn client_of(&self, worker_id: WorkerId) -> Option<ClientId> {
        self.by_worker.get(&worker_id).copied()
    }

    /// Address of a worker that is connected or announced.
    pub(super) fn leased_worker(&self, worker_id: WorkerId) -> Option<LeasedWorker> {
        if let Some(announced) = self.announced.get(&worker_id) {
            return Some(announced.clone());
        }
        let client = self.clients.get(self.by_worker.get(&worker_id)?)?;
        Some(LeasedWorker {
            worker_id,
            node_id: self.identity.node_id,
            socket_path: client.socket_path.clone(),
            tcp_address: String::new(),
            pid: client.pid,
        })
    }

    /// Says something to a worker, if it is connected.
    pub(super) fn send_to(&mut self, worker_id: WorkerId, message: FromRaylet) -> bool {
        let Some(&client) = self.by_worker.get(&worker_id) else { return false };
        self.effects.push(Effect::Send(client, message));
        true
    }

    pub(super) fn next_lease_id(&mut self) -> LeaseId {
        LeaseId::from_bytes(*self.lease_ids.next_id().as_bytes())
    }

    pub(super) const fn mark_changed(&mut self) {
        self.changed = true;
    }

    /// The connection of the driver of this job, which may be a visitor.
    pub fn driver_of(&self, job_id: JobId) -> Option<ClientId> {
        let drives = |client: &Client| client.shown_job() == Some(job_id);
        self.clients.iter().find(|(_, client)| drives(client)).map(|(&id, _)| id)
    }

    /// The job of which this client is shown what its workers print.
    pub fn shown_job_of(&self, client: ClientId) -> Option<JobId> {
        self.clients.get(&client)?.shown_job()
    }

    /// Whether this client belongs to another node.
    pub fn is_visitor(&self, client: ClientId) -> bool {
        self.clients.get(&client).is_some_and(|client| client.visits.is_some())
    }

    /// The job that this client drives.
    pub fn job_of(&self, client: ClientId) -> Option<JobId> {
        self.clients.get(&client)?.drives
    }

    /// The process behind this connection, if it has said who it is.
    pub fn worker_of(&self, client: ClientId) -> Option<WorkerId> {
        self.clients.get(&client).map(|client| client.worker_id)
    }

    /// Process ids of all workers.
    pub fn worker_pids(&self) -> impl Iterator<Item = u32> {
        self.pool.iter().filter_map(|(_, worker)| worker.pid)
    }

    /// The node.
    pub const fn node_id(&self) -> NodeId {
        self.identity.node_id
    }

    /// The resources of the node and how they are used.
    pub const fn resources(&self) -> &ResourceManager {
        &self.resources
    }

    /// How many workers, granted leases and waiting requests there are.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.pool.len(), self.leases.granted(), self.queue.len())
    }

    /// What is waited for: shape, how often, and whether it can never be had here.
    pub fn demand(&self) -> Vec<(Resources, u64, bool)> {
        let waiting =
            self.queue.demand().map(|(claim, count)| (claim.resources.clone(), count as u64, false));
        let placeless = self.demands.values().filter(|demand| demand.obstacle.is_some() && demand.target > 0);
        let placeless = placeless
            .map(|demand| (demand.shape.resources.clone(), u64::from(demand.target), demand.infeasible));
        waiting.chain(placeless).collect()
    }
}
