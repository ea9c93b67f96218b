//! Leases on the node: from a client's demand to a grant and back.
//!
//! A client says how many leases of a class it wants to hold. The node keeps that number, queues at
//! most as many requests as could be granted at once, and adds more as grants are made: a demand for
//! a million leases costs as much as one for ten.
//!
//! A client of this node is told besides which other nodes it may ask, and for how many ([`super::shares`]): for what
//! cannot be here, what is to be spread, and what finds no room here while another node has some. A visitor is never
//! sent on: its own node knows better.

use std::collections::BTreeSet;
use std::time::Instant;

use ray_core::constraint::{Shape, Strategy};
use ray_core::id::{JobId, LeaseId, NodeId, PlacementGroupId, RuntimeEnvId, WorkerId};
use ray_core::runtime_env::RuntimeEnv;
use ray_link::FromRaylet;
use ray_link::message::{Allowance, Unschedulable};
use tracing::warn;

use super::effect::{Effect, RemoteOutcome};
use super::machine::{NodeMachine, START_RETRY};
use super::shares::{self, Shares, Site};
use super::whereabouts::Whereabouts;
use crate::lease_table::{Holder, LeaseState};
use crate::resource_manager::Claim;
use crate::runtime_env_table::Standing;
use crate::worker_pool::Wanted;

/// What a client wants to hold of one class.
#[derive(Debug, Clone)]
pub(super) struct Demand {
    pub(super) job_id: JobId,
    pub(super) shape: Shape,
    pub(super) runtime_env: RuntimeEnv,
    pub(super) target: u32,
    /// The node can never satisfy it; the client was told.
    pub(super) infeasible: bool,
    /// Why no leases are queued for it.
    pub(super) obstacle: Option<String>,
    /// Why it waits for other nodes alone, if it does.
    pub(super) abroad: Option<String>,
    /// For how many leases its client was told to ask which node; of what is spread also this one.
    pub(super) shares: Shares,
}

impl Demand {
    pub(super) const fn new(job_id: JobId, shape: Shape, runtime_env: RuntimeEnv, target: u32) -> Self {
        Self {
            job_id,
            shape,
            runtime_env,
            target,
            infeasible: false,
            obstacle: None,
            abroad: None,
            shares: Shares::new(),
        }
    }

    fn is_spread(&self) -> bool {
        self.shape.constraint.strategy == Strategy::Spread
    }

    pub(super) fn is_in(&self, group_id: PlacementGroupId) -> bool {
        self.shape.constraint.group_id() == Some(group_id)
    }
}

impl NodeMachine {
    pub(super) fn on_demand(&mut self, now: Instant, worker_id: WorkerId, class: u64, demand: Demand) {
        let key = (worker_id, class);
        let target = demand.target;
        self.mark_changed();
        if target == 0 {
            self.share_out(key, Shares::new());
            self.demands.remove(&key);
            self.envs_released = true;
        } else {
            let known = self.demands.get(&key);
            let infeasible = known.is_some_and(|known| known.infeasible && known.shape == demand.shape);
            let shares = known.map(|known| known.shares.clone()).unwrap_or_default();
            self.demands.insert(key, Demand { infeasible, shares, ..demand });
        }
        self.cancel_surplus(now, worker_id, class, target as usize);
        self.short.insert(key);
        self.serve(now);
    }

    /// Withdraws the newest requests beyond what is wanted. Leases that are held stay.
    pub(super) fn cancel_surplus(&mut self, now: Instant, worker_id: WorkerId, class: u64, target: usize) {
        let holder = Holder::Client { worker_id, class };
        let count = self.leases.count(&holder);
        let wanted = target.saturating_sub(count.held);
        let pending = count.queued + count.starting;
        let waits = |id: &LeaseId| self.leases.get(*id).is_some_and(|lease| lease.state.worker().is_none());
        let surplus = pending.saturating_sub(wanted);
        let surplus: Vec<_> = self.leases.of_holder(&holder).rev().filter(waits).take(surplus).collect();
        for lease_id in surplus {
            self.end_lease(now, lease_id, "it is not wanted any more");
        }
    }

    /// Grants what can be granted.
    pub(super) fn serve(&mut self, now: Instant) {
        loop {
            self.top_up(now);
            let mut granted = false;
            while let Some((lease_id, claim)) = self.queue.pop_ready(|claim| self.resources.fits(claim)) {
                let taken = self.resources.allocate(lease_id, &claim);
                debug_assert!(taken, "the queue gave out what fits");
                self.mark_changed();
                granted = true;
                self.on_resources_taken(now, lease_id);
            }
            if !granted {
                if self.cluster.has_others() {
                    self.overflow();
                }
                self.tell_contention();
                return;
            }
        }
    }

    fn on_resources_taken(&mut self, now: Instant, lease_id: LeaseId) {
        let Some(lease) = self.leases.get(lease_id) else {
            self.resources.release(lease_id);
            return;
        };
        if let Holder::Client { worker_id, class } = lease.holder {
            self.short.insert((worker_id, class));
        }
        let needs_link = matches!(lease.holder, Holder::Actor(_) | Holder::Task(_));
        let env = match lease.holder {
            Holder::Client { worker_id, class } => {
                self.demands.get(&(worker_id, class)).map(|demand| demand.runtime_env.id())
            }
            Holder::Actor(actor_id) => self.actors.get(&actor_id).map(|actor| actor.runtime_env().id()),
            Holder::Remote(_) | Holder::Task(_) => Some(RuntimeEnvId::NIL),
        };
        let Some(env) = env else {
            // Whoever asked does so no longer.
            self.give_back(now, lease_id);
            return;
        };
        let wanted = Wanted { lease_id, job_id: lease.job_id, env, needs_link };
        self.leases.on_placed(lease_id);
        let mut out = Vec::new();
        self.pool.acquire(now, wanted, &mut out);
        self.run_pool_effects(now, out);
    }

    /// Queues what the demands lack.
    fn top_up(&mut self, now: Instant) {
        while let Some(key) = self.short.pop_first() {
            let Some(demand) = self.demands.get(&key) else { continue };
            let (shape, job_id, mut target) = (demand.shape.clone(), demand.job_id, demand.target as usize);
            let visits = self.client_visits(key.0);
            if let Some(own) = self.spread_out(key, visits) {
                target = own as usize;
                self.cancel_surplus(now, key.0, key.1, target);
                if own == 0 {
                    continue;
                }
            }
            let whereabouts =
                if visits { self.whereabouts_of_visitor(&shape) } else { self.whereabouts(&shape) };
            let pool = match whereabouts {
                Whereabouts::Here(pool) => pool,
                Whereabouts::Elsewhere(nodes) => {
                    self.cancel_surplus(now, key.0, key.1, 0);
                    self.send_abroad(key, &nodes);
                    continue;
                }
                Whereabouts::Nowhere(reason) => {
                    self.note_obstacle(key, reason);
                    continue;
                }
                Whereabouts::Infeasible(reason) => {
                    self.note_obstacle(key, reason.clone());
                    self.tell_infeasible(key, reason);
                    continue;
                }
                Whereabouts::Never(kind, reason) => {
                    self.refuse_demand(now, key, kind, reason);
                    continue;
                }
            };
            let Some(demand) = self.demands.get_mut(&key) else { continue };
            demand.obstacle = None;
            demand.abroad = None;
            let runtime_env = demand.runtime_env.clone();
            match self.want_env(now, &runtime_env) {
                Standing::Ready => {}
                // It comes back here when the environment is ready.
                Standing::Pending { .. } => continue,
                Standing::Failed { reason } => {
                    self.fail_demand(now, key, &reason);
                    continue;
                }
            }
            let holder = Holder::Client { worker_id: key.0, class: key.1 };
            let count = self.leases.count(&holder);
            let claim = Claim { pool, resources: shape.resources };
            let at_once = self.grantable_at_once(&claim);
            let granted = count.starting + count.held;
            let mut wanted = target.saturating_sub(granted).min(at_once);
            if claim.resources.is_empty() {
                // No resource ends the supply of these; those that wait for others do not count.
                wanted = wanted.min((at_once + count.blocked).saturating_sub(granted));
            }
            for _ in count.queued..wanted {
                let lease_id = self.next_lease_id();
                if self.queue.push(lease_id, &claim).is_err() {
                    // The queue is full: others are served first, and each service looks here again.
                    self.short.insert(key);
                    return;
                }
                self.leases.insert(lease_id, holder, job_id, claim.clone());
            }
        }
    }

    /// How many leases of this kind could be granted if everything were free.
    fn grantable_at_once(&self, claim: &Claim) -> usize {
        let limit = self.config.max_leases_per_request;
        let capacity = self.resources.capacity(claim);
        let fits = capacity.map_or(limit, |fits| usize::try_from(fits).unwrap_or(limit));
        fits.clamp(1, limit.max(1))
    }

    /// Has the demands that are to be on different nodes shared among these. Returns this node's share, if this is one.
    fn spread_out(&mut self, key: (WorkerId, u64), visits: bool) -> Option<u32> {
        let demand = self.demands.get(&key).filter(|demand| demand.is_spread())?;
        if visits || !self.cluster.has_others() {
            return None;
        }
        let (shape, target, before) = (demand.shape.clone(), demand.target, demand.shares.clone());
        let sites = self.reachable(key.0, self.sites_to_spread(&shape));
        if sites.is_empty() {
            return None;
        }
        let shares = shares::spread(target, &sites, &before);
        self.cluster.note_turns(&before, &shares);
        let own = shares.get(&self.identity.node_id).copied().unwrap_or(0);
        if let Some(demand) = self.demands.get_mut(&key) {
            demand.obstacle = None;
            demand.abroad = (own == 0).then(|| "it is to be on another node, to be spread".to_owned());
        }
        self.share_out(key, shares);
        Some(own)
    }

    /// Has a client ask these nodes, for its leases cannot be here.
    fn send_abroad(&mut self, key: (WorkerId, u64), nodes: &[NodeId]) {
        let Some(demand) = self.demands.get(&key) else { return };
        let (shape, target, before) = (demand.shape.clone(), demand.target, demand.shares.clone());
        let sites = self.sites(&shape, target, |node_id| nodes.contains(node_id));
        let sites = self.reachable(key.0, sites);
        let out_of_reach = nodes.iter().find_map(|&node_id| {
            let cause = self.unreachable.cause(key.0, node_id).filter(|_| sites.is_empty())?;
            Some(format!("node {node_id}, where it may run, cannot be reached ({cause}), and is tried again"))
        });
        let reason = out_of_reach.unwrap_or_else(|| self.why_abroad(&shape, nodes));
        let shares = shares::abroad(target, sites, &before);
        if let Some(demand) = self.demands.get_mut(&key) {
            demand.obstacle = None;
            demand.abroad = Some(reason);
        }
        self.share_out(key, shares);
    }

    /// Has clients ask other nodes that have room for what this one has none for.
    pub(super) fn overflow(&mut self) {
        for key in self.demands.keys().copied().collect::<Vec<_>>() {
            let Some(demand) = self.demands.get(&key) else { continue };
            if demand.abroad.is_some() || demand.is_spread() || self.client_visits(key.0) {
                continue;
            }
            let count = self.leases.count(&Holder::Client { worker_id: key.0, class: key.1 });
            let granted = (count.starting + count.held) as u32;
            let waits = count.queued > 0 && !demand.shape.resources.is_empty();
            let lacking = if waits { demand.target.saturating_sub(granted) } else { 0 };
            if lacking == 0 && demand.shares.is_empty() {
                continue;
            }
            let (shape, before) = (demand.shape.clone(), demand.shares.clone());
            let sites = if lacking == 0 { Vec::new() } else { self.sites_for_overflow(&shape, lacking) };
            let sites = self.reachable(key.0, sites);
            let shares = shares::overflow(lacking, sites, &before);
            self.share_out(key, shares);
        }
    }

    /// Those sites that this client can reach, as far as it has said.
    fn reachable(&self, worker_id: WorkerId, mut sites: Vec<Site>) -> Vec<Site> {
        sites.retain(|site| self.unreachable.cause(worker_id, site.node_id).is_none());
        sites
    }

    /// A client cannot reach a node: what it was to ask there it asks others, until it is sent there again.
    pub(super) fn on_node_unreachable(
        &mut self,
        now: Instant,
        worker_id: WorkerId,
        node_id: NodeId,
        cause: String,
    ) {
        warn!(%worker_id, %node_id, %cause, "a process cannot reach another node");
        self.unreachable.on_failure(now, worker_id, node_id, cause);
        for key in self.demands_of(worker_id) {
            if let Some(demand) = self.demands.get_mut(&key) {
                // It knows that it was sent there in vain.
                demand.shares.remove(&node_id);
            }
            self.short.insert(key);
        }
        self.serve(now);
    }

    /// The demands of one client.
    pub(super) fn demands_of(&self, worker_id: WorkerId) -> Vec<(WorkerId, u64)> {
        let range = (worker_id, 0)..=(worker_id, u64::MAX);
        self.demands.range(range).map(|(&key, _)| key).collect()
    }

    /// Tells a client what it may ask of other nodes, if that has changed.
    fn share_out(&mut self, key: (WorkerId, u64), shares: Shares) {
        let Some(demand) = self.demands.get_mut(&key) else { return };
        let own = self.identity.node_id;
        let others = |shares: &Shares| -> Vec<(NodeId, u32)> {
            shares
                .iter()
                .filter(|(node_id, _)| **node_id != own)
                .map(|(&node_id, &share)| (node_id, share))
                .collect()
        };
        let is_spread = demand.is_spread();
        let told = others(&std::mem::replace(&mut demand.shares, shares.clone()));
        let others = others(&shares);
        if told == others {
            return;
        }
        let allowance = |share| if is_spread { Allowance::Held(share) } else { Allowance::Waiting(share) };
        let nodes = others.into_iter().map(|(node_id, share)| (node_id, allowance(share))).collect();
        self.send_to(key.0, FromRaylet::LeaseElsewhere { class: key.1, nodes });
    }

    /// Whether this process belongs to another node.
    fn client_visits(&self, worker_id: WorkerId) -> bool {
        self.by_worker.get(&worker_id).is_some_and(|&client| self.is_visitor(client))
    }

    /// Notes why nothing is queued for a demand.
    fn note_obstacle(&mut self, key: (WorkerId, u64), reason: String) {
        self.share_out(key, Shares::new());
        if let Some(demand) = self.demands.get_mut(&key) {
            demand.obstacle = Some(reason);
            demand.abroad = None;
            self.mark_changed();
        }
    }

    /// No lease will ever be granted for this demand: it goes, and its client is told.
    pub(super) fn refuse_demand(
        &mut self,
        now: Instant,
        key: (WorkerId, u64),
        kind: Unschedulable,
        reason: String,
    ) {
        self.share_out(key, Shares::new());
        if self.demands.remove(&key).is_none() {
            return;
        }
        self.envs_released = true;
        self.mark_changed();
        let (worker_id, class) = key;
        self.cancel_surplus(now, worker_id, class, 0);
        self.send_to(worker_id, FromRaylet::LeaseUnschedulable { class, kind, reason });
    }

    fn tell_infeasible(&mut self, (worker_id, class): (WorkerId, u64), reason: String) {
        let Some(demand) = self.demands.get_mut(&(worker_id, class)) else { return };
        if !std::mem::replace(&mut demand.infeasible, true) {
            warn!(%worker_id, class, requested = %demand.shape.resources, %reason, "no lease can ever be granted");
            self.send_to(worker_id, FromRaylet::LeaseInfeasible { class, reason });
        }
    }

    /// Tells those who hold leases whether others wait for resources, where that has changed.
    fn tell_contention(&mut self) {
        if self.queue.is_empty() && self.contended.is_empty() {
            return;
        }
        let waits_beside = |&(worker_id, class): &(WorkerId, u64)| {
            // What others wait for in another pool does not become free by what is given back to this one.
            let group_id =
                self.demands.get(&(worker_id, class)).and_then(|demand| demand.shape.constraint.group_id());
            let own = self.leases.count(&Holder::Client { worker_id, class }).queued;
            self.queue.waiting_for(group_id) > own
        };
        let contended: BTreeSet<_> = self.leases.holding_clients().filter(waits_beside).collect();
        let told = std::mem::replace(&mut self.contended, contended.clone());
        for &(worker_id, class) in contended.symmetric_difference(&told) {
            let contended = contended.contains(&(worker_id, class));
            self.send_to(worker_id, FromRaylet::LeaseContention { class, contended });
        }
    }

    /// The pool has a worker for a lease that has its resources.
    pub(super) fn on_worker_ready(&mut self, now: Instant, lease_id: LeaseId, worker_id: WorkerId) {
        let worker = self.leased_worker(worker_id);
        let lease = self.leases.on_granted(lease_id, worker_id);
        let (Some(worker), Some(lease)) = (worker, lease) else {
            // Withdrawn meanwhile, or the worker is gone: its end is told next and frees the lease.
            if self.leases.of_worker(worker_id).is_none() {
                let mut out = Vec::new();
                self.pool.release(now, worker_id, &mut out);
                self.run_pool_effects(now, out);
            }
            return;
        };
        self.effects.push(Effect::RouteLogs(worker_id, lease.job_id, worker.pid));
        match lease.holder {
            Holder::Client { worker_id: client, class } => {
                let devices = self.resources.devices_of(lease_id);
                self.send_to(client, FromRaylet::LeaseGranted { class, lease_id, worker, devices });
                self.tell_contention();
            }
            Holder::Remote(id) => {
                self.effects.push(Effect::RemoteLease(id, RemoteOutcome::Granted(worker)));
            }
            Holder::Actor(actor_id) => self.on_actor_placed(actor_id, worker_id),
            Holder::Task(task_id) => self.on_task_placed(now, task_id, lease_id, worker_id),
        }
    }

    /// No worker starts for a lease that has its resources.
    pub(super) fn on_start_failed(
        &mut self,
        now: Instant,
        lease_id: LeaseId,
        env: RuntimeEnvId,
        reason: String,
    ) {
        let Some(lease) = self.leases.remove(lease_id) else { return };
        warn!(%lease_id, %reason, "no worker starts");
        self.resources.release(lease_id);
        self.mark_changed();
        let reason = format!("no worker process starts: {reason}");
        // Where other processes of the environment live, it is not at fault.
        if !env.is_nil() && !self.pool.lives_in(env) {
            self.fail_env(now, env, format!("in the runtime environment {env}, {reason}"));
            return;
        }
        match lease.holder {
            Holder::Client { worker_id, class } => {
                self.retry_at = Some(now + START_RETRY);
                self.send_to(worker_id, FromRaylet::LeaseInfeasible { class, reason });
            }
            Holder::Remote(id) => {
                self.effects.push(Effect::RemoteLease(id, RemoteOutcome::Busy(reason)));
            }
            Holder::Actor(actor_id) => self.on_actor_unplaced(actor_id, reason),
            Holder::Task(task_id) => self.tasks.on_failed(task_id, reason),
        }
    }

    pub(super) fn on_return(&mut self, now: Instant, worker_id: WorkerId, lease_id: LeaseId) {
        let lease = self.leases.get(lease_id);
        let Some(Holder::Client { worker_id: holder, class }) = lease.map(|lease| lease.holder) else {
            return;
        };
        if holder == worker_id {
            self.give_back(now, lease_id);
            self.short.insert((worker_id, class));
            self.serve(now);
        }
    }

    /// As [`Self::on_return`], and the worker, which runs no further task, ends by itself.
    pub(super) fn on_retire_worker(&mut self, now: Instant, caller: WorkerId, lease_id: LeaseId) {
        let Some(lease) = self.leases.get(lease_id) else { return };
        let holds = matches!(lease.holder, Holder::Client { worker_id, .. } if worker_id == caller);
        if let Some(worker_id) = lease.state.worker().filter(|_| holds) {
            self.retire_worker(worker_id, "it has run as many calls of a function as max_calls allows");
            self.on_return(now, caller, lease_id);
        }
    }

    /// Ends a lease whose worker has nothing left to do for it.
    pub(super) fn give_back(&mut self, now: Instant, lease_id: LeaseId) {
        let Some(lease) = self.leases.remove(lease_id) else { return };
        self.queue.cancel(&lease_id);
        self.pool.cancel(lease_id);
        self.resources.release(lease_id);
        self.mark_changed();
        if let Some(worker_id) = lease.state.worker() {
            let mut out = Vec::new();
            self.pool.release(now, worker_id, &mut out);
            self.run_pool_effects(now, out);
        }
    }

    /// Ends a lease whatever it is doing: its worker may be in the midst of a task and is killed.
    pub(super) fn end_lease(&mut self, now: Instant, lease_id: LeaseId, reason: &str) {
        let Some(lease) = self.leases.get(lease_id) else { return };
        if let Holder::Client { worker_id, class } = lease.holder {
            // What it was granted for may still be wanted.
            self.short.insert((worker_id, class));
        }
        if let Some(worker_id) = lease.state.worker() {
            self.kill_worker(now, worker_id, reason);
        }
        self.give_back(now, lease_id);
    }

    pub(super) fn on_blocked(&mut self, now: Instant, worker_id: WorkerId, blocked: bool) {
        let Some(lease_id) = self.leases.set_blocked(worker_id, blocked) else { return };
        self.mark_changed();
        if blocked {
            self.resources.suspend_cpu(lease_id);
            self.serve(now);
        } else {
            self.resources.resume_cpu(lease_id);
        }
    }

    pub(super) fn on_kill_worker(
        &mut self,
        now: Instant,
        caller: WorkerId,
        lease_id: LeaseId,
        reason: String,
    ) {
        let Some(lease) = self.leases.get(lease_id) else { return };
        let holds = matches!(lease.holder, Holder::Client { worker_id, .. } if worker_id == caller);
        match lease.state {
            LeaseState::Held(worker_id) | LeaseState::Blocked(worker_id) if holds => {
                self.kill_worker(now, worker_id, &reason);
            }
            LeaseState::Held(_) | LeaseState::Blocked(_) | LeaseState::Queued | LeaseState::Starting => {}
        }
    }

    /// The worker of this lease is gone.
    pub(super) fn on_leased_worker_lost(
        &mut self,
        now: Instant,
        lease_id: LeaseId,
        worker_id: WorkerId,
        cause: &str,
    ) {
        let Some(lease) = self.leases.remove(lease_id) else { return };
        self.resources.release(lease_id);
        self.mark_changed();
        match lease.holder {
            Holder::Client { worker_id, class } => drop(self.short.insert((worker_id, class))),
            // The caller sees the end of its own connection to the worker.
            Holder::Remote(_) => {}
            Holder::Actor(actor_id) => self.on_actor_worker_lost(actor_id, worker_id, cause),
            Holder::Task(task_id) => self.on_task_worker_lost(now, task_id, worker_id, cause),
        }
    }
}
