//! The worker processes of a node.
//!
//! ```text
//!          Fork               on_registered            serve              release
//!   (none) -----> Starting -----------------> Idle -------------> Leased ---------> Idle
//!                    |                          |                    |
//!                    | start timeout, exit      | surplus, job end   | dedicate: an actor's for good
//!                    v                          v                    v
//!                  (none) <------------------(none) <------------- (none)      remove
//! ```
//! A leased worker that runs no further task is Retired until its process has ended by itself.
//!
//! Whoever has the resources for a lease asks here for a worker, and so there are never more workers
//! asked for than the resources can run, plus those that wait for others and gave their CPUs back.
//! A worker serves any job first and from then on only that one: what one job left in a process
//! (modules, globals, threads) is never seen by another. It is made with one runtime environment, or
//! none, and serves only leases that ask for that.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ray_core::id::{ActorId, ChildTaskIds, JobId, LeaseId, NodeId, RuntimeEnvId, TaskId, WorkerId};

/// The pool's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerPoolConfig {
    /// How long a process may take from the order to fork it to its first message.
    pub start_timeout: Duration,
    /// How many processes may be starting at once.
    pub max_starting: usize,
    /// How many processes there may be in all.
    pub max_workers: usize,
    /// How many idle workers without a runtime environment are kept for ever.
    pub kept_idle: usize,
    /// How many idle workers with a runtime environment there may be.
    pub max_idle_in_envs: usize,
    /// How long an idle worker beyond these is kept.
    pub idle_timeout: Duration,
    /// After so many processes in a row that did not start, those who wait are told.
    pub max_start_failures: u32,
}

impl Default for WorkerPoolConfig {
    fn default() -> Self {
        Self {
            start_timeout: Duration::from_secs(60),
            max_starting: 16,
            max_workers: 4096,
            kept_idle: 4,
            max_idle_in_envs: 16,
            idle_timeout: Duration::from_secs(1),
            max_start_failures: 3,
        }
    }
}

/// What a lease wants of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The lease.
    pub lease_id: LeaseId,
    /// On whose behalf.
    pub job_id: JobId,
    /// The runtime environment that it needs; nil: none.
    pub env: RuntimeEnvId,
    /// Whether the node itself has something to say to the worker.
    pub needs_link: bool,
}

impl Wanted {
    fn is_served_by(&self, worker: &Worker) -> bool {
        worker.job_id.is_none_or(|own| own == self.job_id)
            && worker.env == self.env
            && (worker.linked || !self.needs_link)
    }
}

/// What the pool wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolEffect {
    /// Start this worker.
    Fork(WorkerId),
    /// End this worker; its exit is expected afterwards.
    Kill(WorkerId),
    /// The lease has its worker.
    Ready {
        /// Who waited.
        lease_id: LeaseId,
        /// Its worker.
        worker_id: WorkerId,
    },
    /// No worker starts: the lease waits in vain.
    StartFailed {
        /// Who waited.
        lease_id: LeaseId,
        /// The runtime environment that its worker was to have.
        env: RuntimeEnvId,
        /// What happened to the last attempts.
        reason: String,
    },
}

/// What a worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerState {
    /// It was ordered and has not registered yet.
    Starting {
        /// When it is given up.
        deadline: Instant,
    },
    /// It waits for work.
    Idle {
        /// Since when.
        since: Instant,
    },
    /// It serves a lease.
    Leased,
    /// It is this actor for the rest of its life.
    Actor(ActorId),
    /// It runs nothing more, and ends when no other process needs what it owns.
    Retired,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// What it does.
    pub state: WorkerState,
    /// The only job that it serves; none yet for a fresh one.
    pub job_id: Option<JobId>,
    /// The runtime environment that it is made with; nil: none.
    pub env: RuntimeEnvId,
    /// Its process id, once it is known.
    pub pid: Option<u32>,
    /// Whether it was told to end.
    pub doomed: bool,
    /// Whether the fork server was told to make it, and so will tell of its exit.
    pub ordered: bool,
    /// Whether it is connected to the node; a worker that somebody else announced need not be.
    pub linked: bool,
}

/// All workers, and the leases that wait for one.
#[derive(Debug, Clone)]
pub struct WorkerPool {
    config: WorkerPoolConfig,
    ids: ChildTaskIds,
    workers: BTreeMap<WorkerId, Worker>,
    by_pid: BTreeMap<u32, WorkerId>,
    /// Leases that wait, by the number that they got on arrival.
    waiting: BTreeMap<u64, Wanted>,
    next_number: u64,
    /// Processes of each environment that failed to start since the last that did not.
    start_failures: BTreeMap<RuntimeEnvId, u32>,
}

impl WorkerPool {
    /// The empty pool of this node; its workers' ids are derived from the node's.
    pub fn new(node_id: NodeId, config: WorkerPoolConfig) -> Self {
        Self {
            config,
            ids: ChildTaskIds::new(TaskId::from_bytes(*node_id.as_bytes())),
            workers: BTreeMap::new(),
            by_pid: BTreeMap::new(),
            waiting: BTreeMap::new(),
            next_number: 0,
            start_failures: BTreeMap::new(),
        }
    }

    /// Finds a worker for this lease: at once, or as soon as one is free or has started.
    pub fn acquire(&mut self, now: Instant, wanted: Wanted, out: &mut Vec<PoolEffect>) {
        if let Some(worker_id) = self.idle_worker_for(wanted) {
            self.lease(worker_id, wanted.job_id);
            out.push(PoolEffect::Ready { lease_id: wanted.lease_id, worker_id });
            return;
        }
        let number = self.next_number;
        self.next_number += 1;
        self.waiting.insert(number, wanted);
        self.fork_what_is_wanted(now, out);
    }

    /// The lease needs no worker any more. Returns whether it waited for one.
    pub fn cancel(&mut self, lease_id: LeaseId) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|_, wanted| wanted.lease_id != lease_id);
        self.waiting.len() < before
    }

    /// Orders workers of this environment so that at least `count` are starting or idle: work is expected.
    pub fn prestart(&mut self, now: Instant, env: RuntimeEnvId, count: usize, out: &mut Vec<PoolEffect>) {
        let there = self.fresh(env).count();
        for _ in there..count {
            if !self.fork(now, env, out) {
                break;
            }
        }
    }

    /// Whether no worker is there for a job in this environment that begins now, but one is starting.
    pub fn expects_first(&self, env: RuntimeEnvId) -> bool {
        let fresh = || self.fresh(env);
        !fresh().any(|worker| matches!(worker.state, WorkerState::Idle { .. }))
            && fresh().any(|worker| matches!(worker.state, WorkerState::Starting { .. }))
    }

    /// Workers of this environment that have not served a job yet.
    fn fresh(&self, env: RuntimeEnvId) -> impl Iterator<Item = &Worker> {
        self.workers
            .values()
            .filter(move |worker| worker.job_id.is_none() && worker.env == env && !worker.doomed)
    }

    /// The fork server has made the process of this worker. Returns `false` if nobody wants it (any
    /// more), and it has to be ended.
    pub fn on_forked(&mut self, worker_id: WorkerId, pid: u32) -> bool {
        match self.workers.get_mut(&worker_id) {
            Some(worker) => {
                worker.pid = Some(pid);
                self.by_pid.insert(pid, worker_id);
                !worker.doomed
            }
            None => false,
        }
    }

    /// The worker is there. One that the pool did not order, started by somebody else, joins it.
    /// Returns `false` if it is not wanted.
    pub fn on_registered(
        &mut self,
        now: Instant,
        worker_id: WorkerId,
        pid: u32,
        out: &mut Vec<PoolEffect>,
    ) -> bool {
        let idle = WorkerState::Idle { since: now };
        let fresh = Worker {
            state: idle,
            job_id: None,
            env: RuntimeEnvId::NIL,
            pid: Some(pid),
            doomed: false,
            ordered: false,
            linked: true,
        };
        let worker = self.workers.entry(worker_id).or_insert(fresh);
        if worker.doomed {
            return false;
        }
        // What the fork server says is certain, what a client says of itself is not.
        let pid = *worker.pid.get_or_insert(pid);
        worker.state = idle;
        self.start_failures.remove(&worker.env);
        self.by_pid.insert(pid, worker_id);
        self.serve_waiting(worker_id, now, out);
        true
    }

    /// Somebody announces a worker that is not connected to the node: it serves those who only need
    /// its address.
    pub fn on_announced(&mut self, now: Instant, worker_id: WorkerId, pid: u32, out: &mut Vec<PoolEffect>) {
        let state = WorkerState::Idle { since: now };
        let worker = Worker {
            state,
            job_id: None,
            env: RuntimeEnvId::NIL,
            pid: Some(pid),
            doomed: false,
            ordered: false,
            linked: false,
        };
        self.workers.entry(worker_id).or_insert(worker);
        self.serve_waiting(worker_id, now, out);
    }

    /// The lease of this worker is given back: it serves the next of its job, or is idle.
    pub fn release(&mut self, now: Instant, worker_id: WorkerId, out: &mut Vec<PoolEffect>) {
        let Some(worker) = self.workers.get_mut(&worker_id) else { return };
        if worker.state != WorkerState::Leased || worker.doomed {
            return;
        }
        worker.state = WorkerState::Idle { since: now };
        self.serve_waiting(worker_id, now, out);
    }

    /// The leased worker becomes this actor. Returns whether it was leased.
    pub fn dedicate(&mut self, worker_id: WorkerId, actor_id: ActorId) -> bool {
        match self.workers.get_mut(&worker_id) {
            Some(worker) if worker.state == WorkerState::Leased => {
                worker.state = WorkerState::Actor(actor_id);
                true
            }
            _ => false,
        }
    }

    /// The leased worker runs nothing more, and will end by itself. Returns whether it was leased.
    pub fn let_go(&mut self, worker_id: WorkerId) -> bool {
        match self.workers.get_mut(&worker_id) {
            Some(worker) if worker.state == WorkerState::Leased && !worker.doomed => {
                worker.state = WorkerState::Retired;
                true
            }
            _ => false,
        }
    }

    /// Ends the worker. Returns whether it is known.
    pub fn kill(&mut self, worker_id: WorkerId, out: &mut Vec<PoolEffect>) -> bool {
        let Some(worker) = self.workers.get_mut(&worker_id) else { return false };
        if !std::mem::replace(&mut worker.doomed, true) {
            out.push(PoolEffect::Kill(worker_id));
        }
        true
    }

    /// The worker is ending by itself: it is given no more work. Returns whether it is known.
    pub fn retire(&mut self, worker_id: WorkerId) -> bool {
        self.workers.get_mut(&worker_id).map(|worker| worker.doomed = true).is_some()
    }

    /// The worker is gone. Returns what it was. One that never registered counts as a failed start.
    pub fn remove(
        &mut self,
        now: Instant,
        worker_id: WorkerId,
        cause: &str,
        out: &mut Vec<PoolEffect>,
    ) -> Option<Worker> {
        let worker = self.workers.remove(&worker_id)?;
        if let Some(pid) = worker.pid.filter(|pid| self.by_pid.get(pid) == Some(&worker_id)) {
            self.by_pid.remove(&pid);
        }
        if matches!(worker.state, WorkerState::Starting { .. }) && !worker.doomed {
            self.on_start_failed(worker.env, &format!("a worker ended before it registered: {cause}"), out);
        }
        self.fork_what_is_wanted(now, out);
        Some(worker)
    }

    /// A job has ended: its task workers do so too. Its actors are the control plane's to end.
    pub fn on_job_finished(&mut self, job_id: JobId, out: &mut Vec<PoolEffect>) {
        self.waiting.retain(|_, wanted| wanted.job_id != job_id);
        let of_job =
            |worker: &Worker| worker.job_id == Some(job_id) && !matches!(worker.state, WorkerState::Actor(_));
        let ended: Vec<_> = self.matching(of_job).collect();
        for worker_id in ended {
            self.kill(worker_id, out);
        }
    }

    /// Gives up workers that take too long to start, and ends surplus idle ones.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<PoolEffect>) {
        let late =
            |worker: &Worker| matches!(worker.state, WorkerState::Starting { deadline } if deadline <= now);
        let late: Vec<_> = self.matching(late).collect();
        for worker_id in late {
            let limit = self.config.start_timeout.as_secs_f64();
            let env = self.workers.get(&worker_id).map_or(RuntimeEnvId::NIL, |worker| worker.env);
            self.kill(worker_id, out);
            if self.workers.get(&worker_id).is_some_and(|worker| worker.pid.is_none()) {
                // An order that the fork server never answers is followed by no exit either.
                self.workers.remove(&worker_id);
            }
            self.on_start_failed(env, &format!("a worker did not register within {limit} s"), out);
        }
        self.fork_what_is_wanted(now, out);
        self.end_surplus(now, out);
    }

    /// When [`Self::tick`] has something to do next, if nothing else happens before.
    pub fn next_deadline(&self) -> Option<Instant> {
        let plain = self.idle().filter(|(_, worker, _)| worker.env.is_nil()).count();
        let surplus = plain > self.config.kept_idle;
        let deadline = |worker: &Worker| match worker.state {
            WorkerState::Starting { deadline } => Some(deadline),
            WorkerState::Idle { since } if surplus || !worker.env.is_nil() => {
                Some(since + self.config.idle_timeout)
            }
            WorkerState::Idle { .. } | WorkerState::Leased | WorkerState::Actor(_) | WorkerState::Retired => {
                None
            }
        };
        self.workers.values().filter(|worker| !worker.doomed).filter_map(deadline).min()
    }

    /// The worker of this id.
    pub fn get(&self, worker_id: WorkerId) -> Option<&Worker> {
        self.workers.get(&worker_id)
    }

    /// The worker whose process this is.
    pub fn of_pid(&self, pid: u32) -> Option<WorkerId> {
        self.by_pid.get(&pid).copied()
    }

    /// All workers, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (WorkerId, &Worker)> {
        self.workers.iter().map(|(&id, worker)| (id, worker))
    }

    /// How many workers there are.
    pub fn len(&self) -> usize {
        self.workers.len()
    }

    /// Whether there is no worker.
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    fn matching(&self, wanted: impl Fn(&Worker) -> bool) -> impl Iterator<Item = WorkerId> {
        self.workers.iter().filter(move |(_, worker)| !worker.doomed && wanted(worker)).map(|(&id, _)| id)
    }

    fn idle(&self) -> impl Iterator<Item = (WorkerId, &Worker, Instant)> {
        self.workers.iter().filter(|(_, worker)| !worker.doomed).filter_map(|(&id, worker)| {
            match worker.state {
                WorkerState::Idle { since } => Some((id, worker, since)),
                WorkerState::Starting { .. }
                | WorkerState::Leased
                | WorkerState::Actor(_)
                | WorkerState::Retired => None,
            }
        })
    }

    /// An idle worker of the job, the one that worked last: its caches are warm; else a fresh one.
    fn idle_worker_for(&self, wanted: Wanted) -> Option<WorkerId> {
        self.idle()
            .filter(|(_, worker, _)| wanted.is_served_by(worker))
            .max_by_key(|(_, worker, since)| (worker.job_id.is_some(), *since))
            .map(|(id, ..)| id)
    }

    fn lease(&mut self, worker_id: WorkerId, job_id: JobId) {
        let worker = self.workers.get_mut(&worker_id).expect("the caller found it in the pool");
        worker.state = WorkerState::Leased;
        worker.job_id = Some(job_id);
    }

    /// Gives an idle worker to the first who waits for one of its kind.
    fn serve_waiting(&mut self, worker_id: WorkerId, now: Instant, out: &mut Vec<PoolEffect>) {
        let Some(worker) = self.workers.get(&worker_id) else { return };
        let served = self.waiting.iter().find(|(_, wanted)| wanted.is_served_by(worker));
        if let Some((number, wanted)) = served.map(|(&number, &wanted)| (number, wanted)) {
            self.waiting.remove(&number);
            self.lease(worker_id, wanted.job_id);
            out.push(PoolEffect::Ready { lease_id: wanted.lease_id, worker_id });
        } else if !self.waiting.is_empty() {
            // It may be in the way of a fresh one.
            self.fork_what_is_wanted(now, out);
        }
    }

    fn fork_what_is_wanted(&mut self, now: Instant, out: &mut Vec<PoolEffect>) {
        if self.waiting.is_empty() {
            return;
        }
        let mut starting: BTreeMap<RuntimeEnvId, usize> = BTreeMap::new();
        for worker in self.workers.values().filter(|worker| !worker.doomed) {
            if matches!(worker.state, WorkerState::Starting { .. }) {
                *starting.entry(worker.env).or_default() += 1;
            }
        }
        let mut lacking = Vec::new();
        for wanted in self.waiting.values() {
            match starting.get_mut(&wanted.env) {
                Some(count) if *count > 0 => *count -= 1,
                Some(_) | None => lacking.push(wanted.env),
            }
        }
        for env in lacking {
            if !self.fork(now, env, out) {
                break;
            }
        }
    }

    /// Orders one worker of this environment, if there is room or can be made.
    fn fork(&mut self, now: Instant, env: RuntimeEnvId, out: &mut Vec<PoolEffect>) -> bool {
        let starting = |worker: &Worker| matches!(worker.state, WorkerState::Starting { .. });
        if self.matching(starting).count() >= self.config.max_starting {
            return false;
        }
        if self.workers.len() >= self.config.max_workers {
            // The one that is idle for longest makes way; the next is ordered when it is gone.
            let doomed = self.workers.values().any(|worker| worker.doomed);
            let victim = self.idle().min_by_key(|(_, _, since)| *since).map(|(id, ..)| id);
            if let Some(victim) = victim.filter(|_| !doomed) {
                self.kill(victim, out);
            }
            return false;
        }
        let worker_id = WorkerId::from_bytes(*self.ids.next_id().as_bytes());
        let deadline = now + self.config.start_timeout;
        let state = WorkerState::Starting { deadline };
        self.workers.insert(
            worker_id,
            Worker { state, job_id: None, env, pid: None, doomed: false, ordered: true, linked: true },
        );
        out.push(PoolEffect::Fork(worker_id));
        true
    }

    fn on_start_failed(&mut self, env: RuntimeEnvId, reason: &str, out: &mut Vec<PoolEffect>) {
        let failures = self.start_failures.entry(env).or_default();
        *failures += 1;
        if *failures < self.config.max_start_failures {
            return;
        }
        self.start_failures.remove(&env);
        self.waiting.retain(|_, wanted| {
            if wanted.env == env {
                let (lease_id, reason) = (wanted.lease_id, reason.to_owned());
                out.push(PoolEffect::StartFailed { lease_id, env, reason });
            }
            wanted.env != env
        });
    }

    /// What makes the workers of this environment is gone: none of those that are starting will come.
    pub fn on_fork_server_lost(
        &mut self,
        now: Instant,
        env: RuntimeEnvId,
        cause: &str,
        out: &mut Vec<PoolEffect>,
    ) {
        let lost =
            |worker: &Worker| worker.env == env && matches!(worker.state, WorkerState::Starting { .. });
        for worker_id in self.matching(lost).collect::<Vec<_>>() {
            self.remove(now, worker_id, cause, out);
        }
    }

    /// Whether a worker of this environment has started and lives.
    pub fn lives_in(&self, env: RuntimeEnvId) -> bool {
        let lives =
            |worker: &Worker| worker.env == env && !matches!(worker.state, WorkerState::Starting { .. });
        self.matching(lives).next().is_some()
    }

    /// Ends the workers of this environment that are starting.
    pub fn end_starting(&mut self, env: RuntimeEnvId, out: &mut Vec<PoolEffect>) {
        let starting =
            |worker: &Worker| worker.env == env && matches!(worker.state, WorkerState::Starting { .. });
        for worker_id in self.matching(starting).collect::<Vec<_>>() {
            self.kill(worker_id, out);
        }
    }

    /// The environments that workers have.
    pub fn envs(&self) -> impl Iterator<Item = RuntimeEnvId> {
        self.workers.values().map(|worker| worker.env).filter(|env| !env.is_nil())
    }

    fn end_surplus(&mut self, now: Instant, out: &mut Vec<PoolEffect>) {
        let idle = self.idle().map(|(id, worker, since)| (worker.env.is_nil(), since, id));
        let (mut plain, mut in_envs): (Vec<_>, Vec<_>) = idle.partition(|(is_plain, ..)| *is_plain);
        plain.sort_unstable();
        in_envs.sort_unstable();
        let kept = plain.len().saturating_sub(self.config.kept_idle);
        let too_many = in_envs.len().saturating_sub(self.config.max_idle_in_envs);
        let plain = plain.into_iter().take(kept).map(|(_, since, id)| (since, id, false));
        let in_envs = in_envs.into_iter().enumerate().map(|(at, (_, since, id))| (since, id, at < too_many));
        for (since, worker_id, crowded) in plain.chain(in_envs) {
            if crowded || now.saturating_duration_since(since) >= self.config.idle_timeout {
                self.kill(worker_id, out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lease(number: u8) -> LeaseId {
        LeaseId::from_bytes([number; 16])
    }

    fn job(number: u8) -> JobId {
        JobId::from_bytes([number; 16])
    }

    fn wanted(lease_number: u8, job_number: u8) -> Wanted {
        wanted_in(RuntimeEnvId::NIL, lease_number, job_number)
    }

    fn wanted_in(env: RuntimeEnvId, lease_number: u8, job_number: u8) -> Wanted {
        Wanted { lease_id: lease(lease_number), job_id: job(job_number), env, needs_link: true }
    }

    #[test]
    fn an_announced_worker_serves_only_those_who_need_no_link() {
        let (mut pool, mut out, now) = (pool(), Vec::new(), Instant::now());
        let announced = WorkerId::from_bytes([9; 16]);
        pool.acquire(now, wanted(1, 1), &mut out);
        out.clear();
        pool.on_announced(now, announced, 7, &mut out);
        assert_eq!(out, []);
        pool.acquire(now, Wanted { needs_link: false, ..wanted(2, 1) }, &mut out);
        assert_eq!(out, [PoolEffect::Ready { lease_id: lease(2), worker_id: announced }]);
    }

    fn pool() -> WorkerPool {
        WorkerPool::new(NodeId::nil(), WorkerPoolConfig { kept_idle: 1, ..WorkerPoolConfig::default() })
    }

    fn forked(out: &mut Vec<PoolEffect>) -> Vec<WorkerId> {
        let forked = |effect: PoolEffect| match effect {
            PoolEffect::Fork(worker_id) => Some(worker_id),
            PoolEffect::Kill(_) | PoolEffect::Ready { .. } | PoolEffect::StartFailed { .. } => None,
        };
        out.drain(..).filter_map(forked).collect()
    }

    #[test]
    fn a_worker_serves_one_job_only() {
        let (mut pool, mut out, now) = (pool(), Vec::new(), Instant::now());
        pool.acquire(now, wanted(1, 1), &mut out);
        let first = forked(&mut out)[0];
        assert!(pool.on_registered(now, first, 100, &mut out));
        assert_eq!(out, [PoolEffect::Ready { lease_id: lease(1), worker_id: first }]);
        out.clear();
        pool.release(now, first, &mut out);
        pool.acquire(now, wanted(2, 2), &mut out);
        assert_ne!(forked(&mut out), [first]);
        pool.acquire(now, wanted(3, 1), &mut out);
        assert_eq!(out, [PoolEffect::Ready { lease_id: lease(3), worker_id: first }]);
    }

    #[test]
    fn no_more_are_forked_than_wait() {
        let (mut pool, mut out, now) = (pool(), Vec::new(), Instant::now());
        pool.prestart(now, RuntimeEnvId::NIL, 2, &mut out);
        pool.prestart(now, RuntimeEnvId::NIL, 2, &mut out);
        assert_eq!(out.len(), 2);
        pool.acquire(now, wanted(1, 1), &mut out);
        pool.acquire(now, wanted(2, 1), &mut out);
        assert_eq!(out.len(), 2);
        pool.acquire(now, wanted(3, 1), &mut out);
        assert_eq!(out.len(), 3);
        assert!(pool.cancel(lease(3)));
        assert!(!pool.cancel(lease(3)));
    }

    #[test]
    fn workers_that_never_start_are_told_to_those_who_wait() {
        let (mut pool, mut out, mut now) = (pool(), Vec::new(), Instant::now());
        pool.acquire(now, wanted(1, 1), &mut out);
        let first = forked(&mut out)[0];
        assert!(pool.on_forked(first, 7));
        pool.remove(now, first, "exit code 1", &mut out);
        assert_eq!(forked(&mut out).len(), 1, "another is tried");
        for _ in 0..2 {
            now = pool.next_deadline().expect("it starts");
            pool.tick(now, &mut out);
        }
        let reason = "a worker did not register within 60 s".to_owned();
        let failed = PoolEffect::StartFailed { lease_id: lease(1), env: RuntimeEnvId::NIL, reason };
        assert!(out.contains(&failed), "{out:?}");
    }

    #[test]
    fn a_worker_that_comes_too_late_is_not_wanted() {
        let (mut pool, mut out, now) = (pool(), Vec::new(), Instant::now());
        pool.prestart(now, RuntimeEnvId::NIL, 1, &mut out);
        let late = forked(&mut out)[0];
        pool.tick(now + Duration::from_secs(61), &mut out);
        assert!(!pool.on_forked(late, 7));
    }

    #[test]
    fn surplus_idle_workers_end_after_a_while_longest_idle_first() {
        let (mut pool, mut out, now) = (pool(), Vec::new(), Instant::now());
        pool.prestart(now, RuntimeEnvId::NIL, 2, &mut out);
        let workers = forked(&mut out);
        let second = Duration::from_secs(1);
        assert!(pool.on_registered(now, workers[0], 1, &mut out));
        assert!(pool.on_registered(now + second / 2, workers[1], 2, &mut out));
        assert_eq!(pool.next_deadline(), Some(now + second));
        pool.tick(now + second - Duration::from_nanos(1), &mut out);
        assert_eq!(out, []);
        pool.tick(now + second, &mut out);
        assert_eq!(out, [PoolEffect::Kill(workers[0])]);
        assert_eq!(pool.next_deadline(), None);
    }

    #[test]
    fn the_end_of_a_job_is_that_of_its_task_workers() {
        let (mut pool, mut out, now) = (pool(), Vec::new(), Instant::now());
        for number in 1..=3 {
            pool.acquire(now, wanted(number, number.min(2)), &mut out);
        }
        let workers = forked(&mut out);
        for (&worker_id, pid) in workers.iter().zip(1..) {
            assert!(pool.on_registered(now, worker_id, pid, &mut out));
        }
        assert!(pool.dedicate(workers[1], ActorId::nil()));
        out.clear();
        pool.on_job_finished(job(2), &mut out);
        assert_eq!(out, [PoolEffect::Kill(workers[2])]);
    }

    #[test]
    fn a_full_pool_makes_room_among_the_idle() {
        let config = WorkerPoolConfig { max_workers: 1, ..WorkerPoolConfig::default() };
        let (mut pool, mut out, now) = (WorkerPool::new(NodeId::nil(), config), Vec::new(), Instant::now());
        pool.acquire(now, wanted(1, 1), &mut out);
        let first = forked(&mut out)[0];
        assert!(pool.on_registered(now, first, 1, &mut out));
        out.clear();
        pool.acquire(now, wanted(2, 2), &mut out);
        assert_eq!(out, []);
        pool.release(now, first, &mut out);
        assert_eq!(out, [PoolEffect::Kill(first)]);
        out.clear();
        pool.remove(now, first, "killed", &mut out);
        assert_eq!(forked(&mut out).len(), 1);
    }

    fn env(number: u8) -> RuntimeEnvId {
        if number == 0 { RuntimeEnvId::NIL } else { RuntimeEnvId::from_bytes([number; 16]) }
    }

    #[test]
    fn a_worker_serves_its_own_environment_only() {
        let (mut pool, mut out, now) = (pool(), Vec::new(), Instant::now());
        pool.prestart(now, RuntimeEnvId::NIL, 1, &mut out);
        let plain = forked(&mut out)[0];
        assert!(pool.on_registered(now, plain, 1, &mut out));
        pool.acquire(now, wanted_in(env(1), 1, 1), &mut out);
        let special = forked(&mut out)[0];
        assert_eq!(pool.get(special).map(|worker| worker.env), Some(env(1)));
        assert!(pool.on_registered(now, special, 2, &mut out));
        assert_eq!(out, [PoolEffect::Ready { lease_id: lease(1), worker_id: special }]);
        out.clear();
        pool.release(now, special, &mut out);
        pool.acquire(now, wanted_in(env(2), 2, 1), &mut out);
        assert_eq!(forked(&mut out).len(), 1);
        pool.acquire(now, wanted(3, 1), &mut out);
        assert_eq!(out, [PoolEffect::Ready { lease_id: lease(3), worker_id: plain }]);
    }

    #[test]
    fn a_worker_that_starts_for_one_environment_is_not_counted_for_another() {
        let (mut pool, mut out, now) = (pool(), Vec::new(), Instant::now());
        pool.acquire(now, wanted_in(env(1), 1, 1), &mut out);
        pool.acquire(now, wanted_in(env(2), 2, 1), &mut out);
        assert_eq!(forked(&mut out).len(), 2);
        assert!(pool.cancel(lease(1)));
        pool.acquire(now, wanted_in(env(2), 3, 1), &mut out);
        assert_eq!(forked(&mut out).len(), 1);
    }

    #[test]
    fn an_environment_whose_workers_never_start_fails_alone() {
        let (mut pool, mut out, now) = (pool(), Vec::new(), Instant::now());
        pool.acquire(now, wanted_in(env(1), 1, 1), &mut out);
        pool.acquire(now, wanted(2, 1), &mut out);
        for _ in 0..3 {
            out.clear();
            pool.on_fork_server_lost(now, env(1), "it ended", &mut out);
        }
        let reason = "a worker ended before it registered: it ended".to_owned();
        assert_eq!(out, [PoolEffect::StartFailed { lease_id: lease(1), env: env(1), reason }]);
        assert!(pool.cancel(lease(2)), "who needs no environment still waits");
    }

    #[test]
    fn idle_workers_of_environments_are_few_and_end_after_a_while() {
        let config = WorkerPoolConfig { kept_idle: 1, max_idle_in_envs: 2, ..WorkerPoolConfig::default() };
        let (mut pool, mut out, now) = (WorkerPool::new(NodeId::nil(), config), Vec::new(), Instant::now());
        let mut workers = Vec::new();
        for number in 0..4 {
            pool.prestart(now, env(number), 1, &mut out);
            workers.extend(forked(&mut out));
        }
        for (number, &worker_id) in (0u32..).zip(&workers) {
            let at = now + Duration::from_millis(u64::from(number));
            assert!(pool.on_registered(at, worker_id, number + 1, &mut out));
        }
        pool.tick(now + Duration::from_millis(4), &mut out);
        assert_eq!(out, [PoolEffect::Kill(workers[1])]);
        out.clear();
        pool.tick(now + Duration::from_secs(2), &mut out);
        assert_eq!(out, [PoolEffect::Kill(workers[2]), PoolEffect::Kill(workers[3])]);
    }

    proptest! {
        /// Whatever happens, each lease gets at most one worker, each worker serves at most one
        /// lease, one job and one environment, and whoever waits is served in the end.
        #[test]
        fn everyone_who_waits_gets_a_worker_of_its_job(steps in prop::collection::vec((0u8..6, 0usize..40), 0..120)) {
            let config = WorkerPoolConfig { max_workers: 5, kept_idle: 2, ..WorkerPoolConfig::default() };
            let mut pool = WorkerPool::new(NodeId::nil(), config);
            let (mut now, mut pid, mut next) = (Instant::now(), 0u32, 0u8);
            let mut out = Vec::new();
            let mut ordered: Vec<WorkerId> = Vec::new();
            let mut doomed: Vec<WorkerId> = Vec::new();
            let mut waiting: BTreeMap<LeaseId, (JobId, RuntimeEnvId)> = BTreeMap::new();
            let mut served: BTreeMap<LeaseId, WorkerId> = BTreeMap::new();
            for (kind, pick) in steps.into_iter().chain((0..400).map(|at| ([1, 2, 3, 4][at % 4], 0))) {
                match kind {
                    0 => {
                        next += 1;
                        let of_env = env(next / 2 % 3);
                        waiting.insert(lease(next), (job(next % 2), of_env));
                        pool.acquire(now, wanted_in(of_env, next, next % 2), &mut out);
                    }
                    1 if !ordered.is_empty() => {
                        let worker_id = ordered.remove(pick % ordered.len());
                        pid += 1;
                        if pool.on_forked(worker_id, pid) {
                            pool.on_registered(now, worker_id, pid, &mut out);
                        } else {
                            pool.remove(now, worker_id, "unwanted", &mut out);
                        }
                    }
                    2 if !served.is_empty() => {
                        let lease_id = *served.keys().nth(pick % served.len()).expect("in range");
                        let worker_id = served.remove(&lease_id).expect("it is a key");
                        pool.release(now, worker_id, &mut out);
                    }
                    3 if !doomed.is_empty() => {
                        let worker_id = doomed.remove(pick % doomed.len());
                        if !ordered.contains(&worker_id) {
                            pool.remove(now, worker_id, "killed", &mut out);
                        }
                    }
                    4 => {
                        now += Duration::from_millis(700);
                        pool.tick(now, &mut out);
                    }
                    5 if !served.is_empty() => {
                        let lease_id = *served.keys().nth(pick % served.len()).expect("in range");
                        let worker_id = served.remove(&lease_id).expect("it is a key");
                        pool.remove(now, worker_id, "crashed", &mut out);
                    }
                    _ => {}
                }
                for effect in std::mem::take(&mut out) {
                    match effect {
                        PoolEffect::Fork(worker_id) => ordered.push(worker_id),
                        PoolEffect::Kill(worker_id) => doomed.push(worker_id),
                        PoolEffect::Ready { lease_id, worker_id } => {
                            let (job_id, of_env) = waiting.remove(&lease_id).expect("it waited");
                            prop_assert!(!served.values().any(|other| *other == worker_id));
                            let worker = pool.get(worker_id).expect("it lives");
                            prop_assert_eq!((worker.job_id, worker.state), (Some(job_id), WorkerState::Leased));
                            prop_assert_eq!(worker.env, of_env);
                            served.insert(lease_id, worker_id);
                        }
                        PoolEffect::StartFailed { lease_id, .. } => drop(waiting.remove(&lease_id)),
                    }
                }
                prop_assert!(pool.len() <= 5);
            }
            prop_assert_eq!(waiting.len(), 0, "someone waits for ever");
        }
    }
}
