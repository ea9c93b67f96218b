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
//!
//! Whoever has the resources for a lease asks here for a worker, and so there are never more workers
//! asked for than the resources can run, plus those that wait for others and gave their CPUs back.
//! A worker serves any job first and from then on only that one: what one job left in a process
//! (modules, globals, threads) is never seen by another.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ray_core::id::{ActorId, ChildTaskIds, JobId, LeaseId, NodeId, TaskId, WorkerId};

/// The pool's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerPoolConfig {
    /// How long a process may take from the order to fork it to its first message.
    pub start_timeout: Duration,
    /// How many processes may be starting at once.
    pub max_starting: usize,
    /// How many processes there may be in all.
    pub max_workers: usize,
    /// How many idle workers are kept for ever.
    pub kept_idle: usize,
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
    /// Whether the node itself has something to say to the worker.
    pub needs_link: bool,
}

impl Wanted {
    fn is_served_by(&self, worker: &Worker) -> bool {
        worker.job_id.is_none_or(|own| own == self.job_id) && (worker.linked || !self.needs_link)
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
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// What it does.
    pub state: WorkerState,
    /// The only job that it serves; none yet for a fresh one.
    pub job_id: Option<JobId>,
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
    /// Processes that failed to start since the last that did not.
    start_failures: u32,
    last_start_failure: String,
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
            start_failures: 0,
            last_start_failure: String::new(),
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

    /// Orders workers so that at least `count` are starting or idle: work is expected.
    pub fn prestart(&mut self, now: Instant, count: usize, out: &mut Vec<PoolEffect>) {
        let fresh = |worker: &&Worker| worker.job_id.is_none() && !worker.doomed;
        let there = self.workers.values().filter(fresh).count();
        for _ in there..count {
            if !self.fork(now, out) {
                break;
            }
        }
    }

    /// Whether no worker is there for a job that begins now, but one is starting.
    pub fn expects_first(&self) -> bool {
        let fresh = || self.workers.values().filter(|worker| worker.job_id.is_none() && !worker.doomed);
        !fresh().any(|worker| matches!(worker.state, WorkerState::Idle { .. }))
            && fresh().any(|worker| matches!(worker.state, WorkerState::Starting { .. }))
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
        let fresh =
            Worker { state: idle, job_id: None, pid: Some(pid), doomed: false, ordered: false, linked: true };
        let worker = self.workers.entry(worker_id).or_insert(fresh);
        if worker.doomed {
            return false;
        }
        // What the fork server says is certain, what a client says of itself is not.
        let pid = *worker.pid.get_or_insert(pid);
        worker.state = idle;
        self.by_pid.insert(pid, worker_id);
        self.start_failures = 0;
        self.serve_waiting(worker_id, now, out);
        true
    }

    /// Somebody announces a worker that is not connected to the node: it serves those who only need
    /// its address.
    pub fn on_announced(&mut self, now: Instant, worker_id: WorkerId, pid: u32, out: &mut Vec<PoolEffect>) {
        let state = WorkerState::Idle { since: now };
        let worker =
            Worker { state, job_id: None, pid: Some(pid), doomed: false, ordered: false, linked: false };
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
            self.on_start_failed(format!("a worker ended before it registered: {cause}"), out);
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
            self.kill(worker_id, out);
            if self.workers.get(&worker_id).is_some_and(|worker| worker.pid.is_none()) {
                // An order that the fork server never answers is followed by no exit either.
                self.workers.remove(&worker_id);
            }
            self.on_start_failed(format!("a worker did not register within {limit} s"), out);
        }
        self.fork_what_is_wanted(now, out);
        self.end_surplus(now, out);
    }

    /// When [`Self::tick`] has something to do next, if nothing else happens before.
    pub fn next_deadline(&self) -> Option<Instant> {
        let surplus = self.idle().count() > self.config.kept_idle;
        let deadline = |worker: &Worker| match worker.state {
            WorkerState::Starting { deadline } => Some(deadline),
            WorkerState::Idle { since } if surplus => Some(since + self.config.idle_timeout),
            WorkerState::Idle { .. } | WorkerState::Leased | WorkerState::Actor(_) => None,
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
                WorkerState::Starting { .. } | WorkerState::Leased | WorkerState::Actor(_) => None,
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
        let starting = |worker: &Worker| matches!(worker.state, WorkerState::Starting { .. });
        let starting = self.matching(starting).count();
        for _ in starting..self.waiting.len() {
            if !self.fork(now, out) {
                break;
            }
        }
    }

    /// Orders one worker, if there is room or can be made.
    fn fork(&mut self, now: Instant, out: &mut Vec<PoolEffect>) -> bool {
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
            Worker { state, job_id: None, pid: None, doomed: false, ordered: true, linked: true },
        );
        out.push(PoolEffect::Fork(worker_id));
        true
    }

    fn on_start_failed(&mut self, reason: String, out: &mut Vec<PoolEffect>) {
        self.start_failures += 1;
        self.last_start_failure = reason;
        if self.start_failures < self.config.max_start_failures {
            return;
        }
        self.start_failures = 0;
        for wanted in std::mem::take(&mut self.waiting).into_values() {
            let reason = self.last_start_failure.clone();
            out.push(PoolEffect::StartFailed { lease_id: wanted.lease_id, reason });
        }
    }

    fn end_surplus(&mut self, now: Instant, out: &mut Vec<PoolEffect>) {
        let mut idle: Vec<_> = self.idle().map(|(id, _, since)| (since, id)).collect();
        idle.sort_unstable();
        let surplus = idle.len().saturating_sub(self.config.kept_idle);
        for (since, worker_id) in idle.into_iter().take(surplus) {
            if now.saturating_duration_since(since) >= self.config.idle_timeout {
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
        Wanted { lease_id: lease(lease_number), job_id: job(job_number), needs_link: true }
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
        pool.prestart(now, 2, &mut out);
        pool.prestart(now, 2, &mut out);
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
        assert!(out.contains(&PoolEffect::StartFailed { lease_id: lease(1), reason }), "{out:?}");
    }

    #[test]
    fn a_worker_that_comes_too_late_is_not_wanted() {
        let (mut pool, mut out, now) = (pool(), Vec::new(), Instant::now());
        pool.prestart(now, 1, &mut out);
        let late = forked(&mut out)[0];
        pool.tick(now + Duration::from_secs(61), &mut out);
        assert!(!pool.on_forked(late, 7));
    }

    #[test]
    fn surplus_idle_workers_end_after_a_while_longest_idle_first() {
        let (mut pool, mut out, now) = (pool(), Vec::new(), Instant::now());
        pool.prestart(now, 2, &mut out);
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

    proptest! {
        /// Whatever happens, each lease gets at most one worker, each worker serves at most one
        /// lease and one job, and whoever waits is served in the end.
        #[test]
        fn everyone_who_waits_gets_a_worker_of_its_job(steps in prop::collection::vec((0u8..6, 0usize..40), 0..120)) {
            let config = WorkerPoolConfig { max_workers: 5, kept_idle: 2, ..WorkerPoolConfig::default() };
            let mut pool = WorkerPool::new(NodeId::nil(), config);
            let (mut now, mut pid, mut next) = (Instant::now(), 0u32, 0u8);
            let mut out = Vec::new();
            let mut ordered: Vec<WorkerId> = Vec::new();
            let mut doomed: Vec<WorkerId> = Vec::new();
            let mut waiting: BTreeMap<LeaseId, JobId> = BTreeMap::new();
            let mut served: BTreeMap<LeaseId, WorkerId> = BTreeMap::new();
            for (kind, pick) in steps.into_iter().chain((0..400).map(|at| ([1, 2, 3, 4][at % 4], 0))) {
                match kind {
                    0 => {
                        next += 1;
                        waiting.insert(lease(next), job(next % 2));
                        pool.acquire(now, wanted(next, next % 2), &mut out);
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
                            let job_id = waiting.remove(&lease_id).expect("it waited");
                            prop_assert!(!served.values().any(|other| *other == worker_id));
                            let worker = pool.get(worker_id).expect("it lives");
                            prop_assert_eq!((worker.job_id, worker.state), (Some(job_id), WorkerState::Leased));
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
