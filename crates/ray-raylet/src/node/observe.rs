//! What people may know of the node: its processes, and why those who want leases wait.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ray_core::constraint::{Constraint, Strategy};
use ray_core::id::WorkerId;
use ray_core::report::{DemandReport, EnvironmentReport, NodeReport, WorkerReport};
use ray_core::resource::Resources;
use ray_core::runtime_env::RuntimeEnv;

use super::effect::ClientId;
use super::machine::{Client, NodeMachine};
use super::roster::Member;
use crate::lease_table::Holder;
use crate::pending_reason::{Environment, Situation, explain};
use crate::resource_manager::Pool;
use crate::runtime_env_table::Standing;
use crate::worker_pool::{Worker, WorkerState};

impl NodeMachine {
    /// Why the leases of this class that a process wants are not granted; empty if nothing holds them up.
    pub fn why_pending(&self, worker_id: WorkerId, class: u64) -> String {
        let Some(demand) = self.demands.get(&(worker_id, class)) else { return String::new() };
        let is_constrained = demand.shape.constraint != Constraint::default();
        if let Some(obstacle) = demand.obstacle.as_ref().filter(|_| is_constrained) {
            return obstacle.clone();
        }
        if let Some(abroad) = &demand.abroad {
            return abroad.clone();
        }
        let pool = match demand.shape.constraint.strategy {
            Strategy::Bundle { group_id, index, .. } => Pool::Group { group_id, index },
            Strategy::Default | Strategy::Spread | Strategy::NodeAffinity { .. } => Pool::Node,
        };
        let count = self.leases.count(&Holder::Client { worker_id, class });
        let standing = self.envs.standing(demand.runtime_env.id());
        explain(&Situation {
            shape: &demand.shape.resources,
            total: &self.resources.total_of(pool),
            available: &self.resources.available_of(pool),
            taken: &self.taken(pool),
            environment: match &standing {
                None | Some(Standing::Ready) => Environment::Ready,
                Some(Standing::Pending { .. }) => Environment::BeingSetUp,
                Some(Standing::Failed { reason }) => Environment::Failed(reason),
            },
            starting: count.starting,
            queued: count.queued,
        })
    }

    /// What of this pool is taken, by kind of holder.
    fn taken(&self, pool: Pool) -> BTreeMap<&'static str, Resources> {
        let mut taken: BTreeMap<&'static str, Resources> = BTreeMap::new();
        if pool == Pool::Node {
            let reserved = self.resources.reserved();
            if !reserved.is_empty() {
                taken.insert("placement groups", reserved);
            }
        }
        for (lease_id, lease) in self.leases.iter() {
            if lease.claim.pool.group_id() != pool.group_id() {
                continue;
            }
            let Some(held) = self.resources.held(lease_id) else { continue };
            let holder = match lease.holder {
                Holder::Actor(_) => "actors",
                Holder::Client { .. } | Holder::Remote(_) | Holder::Task(_) => "tasks",
            };
            taken.entry(holder).or_default().add(&held);
        }
        taken
    }

    /// The clients that can be asked something; visitors are asked by their own nodes.
    pub(super) fn welcomed_clients(&self) -> Vec<ClientId> {
        let asked = |(_, client): &(&ClientId, &Client)| client.welcomed && client.visits.is_none();
        self.clients.iter().filter(asked).map(|(&client, _)| client).collect()
    }

    /// What the node knows, together with what its processes have told; of its objects the store knows.
    pub(super) fn report(&self, now: Instant, processes: Vec<Bytes>, silent: &[ClientId]) -> NodeReport {
        let name = |client: &ClientId| {
            let pid = self.clients.get(client).map(|client| client.pid);
            pid.map_or_else(|| "a process".to_owned(), |pid| format!("process {pid}"))
        };
        let demand = |&(worker_id, class): &(WorkerId, u64)| {
            let reason = self.why_pending(worker_id, class);
            let starting = self.leases.count(&Holder::Client { worker_id, class }).starting as u64;
            DemandReport { worker_id, class, reason, starting }
        };
        NodeReport {
            node_id: self.identity.node_id,
            processes,
            silent: silent.iter().map(name).collect(),
            workers: self
                .members(now)
                .iter()
                .map(|(member, state)| worker_report(member, state, now))
                .collect(),
            demands: self.demands.keys().map(demand).collect(),
            environments: self
                .envs
                .iter()
                .map(|(env, standing, since)| environment(env, standing, since, now))
                .collect(),
            placing: self.placing(),
            owned_objects: 0,
        }
    }

    fn members(&self, now: Instant) -> Vec<(Member, &'static str)> {
        let ended = self.roster.ended().cloned().map(|member| (member, "DEAD"));
        // One that is only ordered has no process yet.
        let started = self.pool.iter().filter(|(_, worker)| worker.pid.is_some());
        let workers = started.map(|(worker_id, worker)| {
            let member = Self::member(worker_id, worker, self.roster.start_of(worker_id, now));
            let state = match worker.state {
                WorkerState::Starting { .. } => "STARTING",
                WorkerState::Idle { .. } => "IDLE",
                WorkerState::Leased => "LEASED",
                WorkerState::Actor(_) => "ACTOR",
                WorkerState::Retired => "RETIRED",
            };
            (member, state)
        });
        let drivers = self.clients.values().filter(|client| client.drives.is_some()).map(|client| {
            let member = Member {
                worker_id: client.worker_id,
                pid: Some(client.pid),
                job_id: client.drives,
                actor_id: None,
                is_driver: true,
                start: self.roster.start_of(client.worker_id, now),
                end: None,
            };
            (member, "DRIVER")
        });
        ended.chain(workers).chain(drivers).collect()
    }

    pub(super) const fn member(worker_id: WorkerId, worker: &Worker, start: Instant) -> Member {
        let actor_id = match worker.state {
            WorkerState::Actor(actor_id) => Some(actor_id),
            WorkerState::Starting { .. }
            | WorkerState::Idle { .. }
            | WorkerState::Leased
            | WorkerState::Retired => None,
        };
        let (pid, job_id) = (worker.pid, worker.job_id);
        Member { worker_id, pid, job_id, actor_id, is_driver: false, start, end: None }
    }
}

fn environment(env: &RuntimeEnv, standing: Standing, since: Instant, now: Instant) -> EnvironmentReport {
    let (ready, error) = match standing {
        Standing::Ready => (true, String::new()),
        Standing::Pending { .. } => (false, String::new()),
        Standing::Failed { reason } => (false, reason),
    };
    EnvironmentReport { description: env.text().to_owned(), ready, error, since_us: wall_us(since, now) }
}

/// A moment in microseconds since the epoch.
fn wall_us(at: Instant, now: Instant) -> u64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let then = wall.saturating_sub(now.saturating_duration_since(at));
    u64::try_from(then.as_micros()).unwrap_or_default()
}

fn worker_report(member: &Member, state: &str, now: Instant) -> WorkerReport {
    let (end_us, exit_detail) = match &member.end {
        Some((at, how)) => (wall_us(*at, now), how.clone()),
        None => (0, String::new()),
    };
    WorkerReport {
        worker_id: member.worker_id,
        pid: member.pid,
        job_id: member.job_id,
        actor_id: member.actor_id,
        is_driver: member.is_driver,
        state: state.to_owned(),
        start_us: wall_us(member.start, now),
        end_us,
        exit_detail,
    }
}
