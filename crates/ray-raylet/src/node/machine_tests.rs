//! The machine under a made-up clock, fork server and control plane.

use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use ray_core::config::Config;
use ray_core::constraint::Shape;
use ray_core::id::{ActorId, JobId, LeaseId, NodeId, PlacementGroupId, TaskId, WorkerId};
use ray_core::pb::common::DeathCause;
use ray_core::pb::common::death_cause::Kind;
use ray_core::resource::{CPU, Resources};
use ray_core::runtime_env::RuntimeEnv;
use ray_link::message::{JobDescription, Role};
use ray_link::{FromRaylet, ToRaylet};

use super::effect::{ActorOrder, ActorOutcome, ClientId, Effect, ExitStatus, NodeIdentity, RemoteOutcome};
use super::groups::ReserveOrder;
use super::machine::{FIRST_WORKER_LIMIT, NodeMachine};
use crate::lease_table::{Holder, LeaseState};
use crate::resource_manager::Pool;
use crate::runtime_env_table::{Prepared, SetupError, Standing};
use crate::task_table::{TaskSpec, TaskState};

pub(super) const DRIVER: ClientId = ClientId(100);
pub(super) const JOB: JobId = JobId::from_bytes([1; 16]);

pub(super) fn cpus(units: f64) -> Resources {
    Resources::new().with_cpu(units).unwrap()
}

fn actor(number: u8) -> ActorId {
    ActorId::from_bytes([number; 16])
}

fn task(number: u8) -> TaskId {
    TaskId::from_bytes([number; 16])
}

/// A node and what happened around it.
pub(super) struct World {
    pub(super) machine: NodeMachine,
    pub(super) now: Instant,
    next_pid: u32,
    /// Ordered and not yet registered.
    ordered: Vec<WorkerId>,
    /// Registered workers: client, id, pid.
    pub(super) workers: Vec<(ClientId, WorkerId, u32)>,
    /// Pids that the node wants dead.
    pub(super) killed: Vec<u32>,
    /// What was said, to whom.
    pub(super) said: Vec<(ClientId, FromRaylet)>,
    pub(super) other: Vec<Effect>,
}

impl World {
    fn new(total: Resources) -> Self {
        Self::prestarting(total, 0)
    }

    /// A node that starts so many workers before anyone asks.
    fn prestarting(total: Resources, workers: usize) -> Self {
        let identity = NodeIdentity {
            node_id: NodeId::from_bytes([9; 16]),
            gcs_address: String::new(),
            session_dir: String::new(),
            store_capacity: 0,
            labels: std::collections::BTreeMap::from([("region".to_owned(), "eu".to_owned())]),
        };
        let mut config = Config::default();
        config.raylet.prestart_workers = workers;
        let machine = NodeMachine::new(identity, total, &config);
        let now = Instant::now();
        let (ordered, workers, killed, said, other) = Default::default();
        Self { machine, now, next_pid: 1000, ordered, workers, killed, said, other }
    }

    /// A node with a driver.
    pub(super) fn with_driver(total: Resources) -> Self {
        let mut world = Self::new(total);
        world.connect_driver(DRIVER, JOB);
        world
    }

    fn connect_driver(&mut self, client: ClientId, job_id: JobId) {
        let job = JobDescription {
            job_id,
            namespace: String::new(),
            entrypoint: String::new(),
            metadata: Default::default(),
            runtime_env: RuntimeEnv::none(),
        };
        let worker_id = WorkerId::from_bytes(*job_id.as_bytes());
        self.machine.on_registered(self.now, client, worker_id, Role::Driver(job), 1, "/driver".to_owned());
        self.machine.on_job_added(self.now, job_id, Ok(()));
        self.settle();
    }

    pub(super) fn settle(&mut self) {
        for effect in self.machine.take_effects() {
            match effect {
                Effect::Fork(worker_id) => self.ordered.push(worker_id),
                Effect::Kill(pid) => self.killed.push(pid),
                Effect::Send(client, message) => self.said.push((client, message)),
                other => self.other.push(other),
            }
        }
    }

    /// All ordered workers start.
    pub(super) fn start_workers(&mut self) {
        while !self.ordered.is_empty() {
            for worker_id in std::mem::take(&mut self.ordered) {
                self.next_pid += 1;
                let pid = self.next_pid;
                let client = ClientId(u64::from(pid));
                self.machine.on_forked(worker_id, pid);
                let path = format!("/worker-{pid}");
                self.machine.on_registered(self.now, client, worker_id, Role::Worker, pid, path);
                self.workers.push((client, worker_id, pid));
            }
            self.settle();
        }
    }

    /// The process of this pid ends.
    pub(super) fn end_process(&mut self, pid: u32, status: ExitStatus) {
        let at = self.workers.iter().position(|(.., other)| *other == pid).expect("it is a worker");
        let (client, ..) = self.workers.remove(at);
        self.machine.on_client_lost(self.now, client);
        self.machine.on_exited(self.now, pid, status);
        self.settle();
    }

    pub(super) fn end_killed(&mut self) {
        while let Some(pid) = self.killed.pop() {
            if self.workers.iter().any(|(.., other)| *other == pid) {
                self.end_process(pid, ExitStatus::Signal(9));
            }
        }
    }

    pub(super) fn tell(&mut self, client: ClientId, message: ToRaylet) {
        self.machine.on_message(self.now, client, message);
        self.settle();
    }

    pub(super) fn demand(&mut self, client: ClientId, class: u64, resources: Resources, target: u32) {
        self.demand_in(client, class, resources, &RuntimeEnv::none(), target);
    }

    fn demand_in(
        &mut self,
        client: ClientId,
        class: u64,
        resources: Resources,
        env: &RuntimeEnv,
        target: u32,
    ) {
        let (shape, runtime_env) = (resources.into(), env.clone());
        let demand = ToRaylet::SetLeaseDemand { class, shape, job_id: JOB, runtime_env, target };
        self.tell(client, demand);
    }

    /// The environments whose set-up was ordered since the last call.
    fn setups(&mut self) -> Vec<RuntimeEnv> {
        let ordered = |effect: &Effect| match effect {
            Effect::SetUp(env) => Some(env.clone()),
            _ => None,
        };
        let setups = self.other.iter().filter_map(ordered).collect();
        self.other.retain(|effect| !matches!(effect, Effect::SetUp(_)));
        setups
    }

    fn setup_done(&mut self, env: &RuntimeEnv, result: Result<Prepared, SetupError>) {
        self.machine.on_setup_done(self.now, env.id(), result);
        self.settle();
    }

    /// Leases granted to this client since the last call, with their workers' pids.
    pub(super) fn granted(&mut self, to: ClientId) -> Vec<(LeaseId, u32)> {
        let mut granted = Vec::new();
        self.said.retain(|(client, message)| match message {
            FromRaylet::LeaseGranted { lease_id, worker, .. } if *client == to => {
                granted.push((*lease_id, worker.pid));
                false
            }
            _ => true,
        });
        granted
    }

    pub(super) fn free(&self) -> f64 {
        self.machine.resources().available().get(CPU).to_f64()
    }

    fn client_of(&self, pid: u32) -> ClientId {
        self.workers.iter().find(|(.., other)| *other == pid).expect("it is a worker").0
    }

    pub(super) fn reports(&mut self) -> Vec<(ActorId, u64, ActorOutcome)> {
        let mut reports = Vec::new();
        self.other.retain_mut(|effect| match effect {
            Effect::ReportActor { actor_id, num_restarts, outcome } => {
                reports.push((*actor_id, *num_restarts, outcome.clone()));
                false
            }
            _ => true,
        });
        reports
    }
}

#[test]
fn a_worker_is_told_of_once_it_has_a_process() {
    let mut world = World::with_driver(cpus(1.0));
    world.demand(DRIVER, 1, cpus(1.0), 1);
    let reported = |world: &World| world.machine.report(world.now, Vec::new(), &[]).workers;
    assert!(reported(&world).iter().all(|worker| worker.is_driver), "it is only ordered");
    world.start_workers();
    let pids: Vec<_> = reported(&world).iter().filter(|worker| !worker.is_driver).map(|w| w.pid).collect();
    assert!(!pids.is_empty() && pids.iter().all(Option::is_some), "{pids:?}");
}

#[test]
fn a_demand_is_met_as_far_as_resources_go_and_no_further() {
    let mut world = World::with_driver(cpus(2.0));
    world.demand(DRIVER, 1, cpus(1.0), 1_000_000);
    assert_eq!(world.ordered.len(), 2);
    assert_eq!(world.machine.counts().2, 2, "more are queued only as leases come back");
    world.start_workers();
    let leases = world.granted(DRIVER);
    assert_eq!(leases.len(), 2);
    world.tell(DRIVER, ToRaylet::ReturnLease { lease_id: leases[0].0 });
    let again = world.granted(DRIVER);
    assert_eq!(again.len(), 1, "the demand still stands");
    assert_eq!(again[0].1, leases[0].1, "by the same worker");
}

#[test]
fn a_worker_that_runs_no_further_task_ends_by_itself_and_is_given_to_nobody() {
    let mut world = World::with_driver(cpus(1.0));
    world.demand(DRIVER, 1, cpus(1.0), 2);
    world.start_workers();
    let (lease_id, worker) = world.granted(DRIVER).remove(0);
    let (client, .., pid) = world.workers[0];
    world.tell(client, ToRaylet::RetireWorker { lease_id });
    assert_eq!(world.machine.counts().0, 1, "the lease is not the worker's own");
    world.tell(DRIVER, ToRaylet::RetireWorker { lease_id });
    world.tell(DRIVER, ToRaylet::RetireWorker { lease_id });
    let told = world
        .said
        .iter()
        .filter(|(to, message)| *to == client && matches!(message, FromRaylet::Retire { .. }));
    assert_eq!(told.count(), 1);
    assert!(world.killed.is_empty());
    world.start_workers();
    let again = world.granted(DRIVER);
    assert_eq!(again.len(), 1, "the demand still stands");
    assert_ne!(again[0].1, worker, "by another worker");
    world.end_process(pid, ExitStatus::Code(0));
    let causes = world.said.iter().filter_map(|(to, message)| match message {
        FromRaylet::WorkerDied { cause, .. } if *to == DRIVER => Some(cause),
        _ => None,
    });
    let causes: Vec<_> = causes.collect();
    assert!(matches!(&causes[..], [cause] if cause.contains("max_calls")), "{causes:?}");
    assert_eq!(world.machine.counts().0, 1, "nothing of the new lease is lost");
}

#[test]
fn a_worker_that_was_let_go_is_ended_with_its_job() {
    let mut world = World::with_driver(cpus(1.0));
    world.demand(DRIVER, 1, cpus(1.0), 1);
    world.start_workers();
    let (lease_id, _) = world.granted(DRIVER).remove(0);
    let (.., pid) = world.workers[0];
    world.demand(DRIVER, 1, cpus(1.0), 0);
    world.tell(DRIVER, ToRaylet::RetireWorker { lease_id });
    assert!(world.killed.is_empty());
    world.machine.on_job_finished(world.now, JOB);
    world.settle();
    assert_eq!(world.killed, [pid]);
}

#[test]
fn a_lower_target_withdraws_what_waits_but_nothing_that_is_held() {
    let mut world = World::with_driver(cpus(2.0));
    world.demand(DRIVER, 1, cpus(1.0), 5);
    world.start_workers();
    assert_eq!(world.granted(DRIVER).len(), 2);
    world.demand(DRIVER, 1, cpus(1.0), 1);
    assert_eq!(world.machine.counts(), (2, 2, 0));
    world.demand(DRIVER, 1, cpus(1.0), 0);
    assert_eq!(world.machine.counts(), (2, 2, 0));
}

fn pip(package: &str) -> RuntimeEnv {
    RuntimeEnv::parse(&format!(r#"{{"pip": {{"packages": ["{package}"]}}}}"#)).unwrap()
}

fn no_such_package() -> SetupError {
    SetupError {
        step: "installing with pip".to_owned(),
        reason: "no such package".to_owned(),
        ..SetupError::default()
    }
}

#[test]
fn nobody_holds_resources_while_an_environment_is_set_up() {
    let mut world = World::with_driver(cpus(1.0));
    let env = pip("a");
    world.demand_in(DRIVER, 1, cpus(1.0), &env, 1);
    world.demand_in(DRIVER, 2, cpus(1.0), &env, 1);
    assert_eq!(world.setups(), std::slice::from_ref(&env), "one for both");
    assert!(matches!(world.machine.env_standing(env.id()), Some(Standing::Pending { .. })));
    assert!(world.ordered.is_empty());
    assert_eq!(world.free(), 1.0);
    world.demand(DRIVER, 3, cpus(1.0), 1);
    world.start_workers();
    let plain = world.granted(DRIVER);
    assert_eq!(plain.len(), 1, "another runs meanwhile");
    world.setup_done(&env, Ok(Prepared::default()));
    world.demand(DRIVER, 3, cpus(1.0), 0);
    world.tell(DRIVER, ToRaylet::ReturnLease { lease_id: plain[0].0 });
    world.start_workers();
    let granted = world.granted(DRIVER);
    assert_eq!(granted.len(), 1);
    assert_ne!(granted[0].1, plain[0].1, "in a process of its own");
}

#[test]
fn whoever_waits_for_an_environment_that_fails_is_told_and_asks_in_vain_for_a_moment() {
    let mut world = World::with_driver(cpus(1.0));
    let env = pip("a");
    world.demand_in(DRIVER, 1, cpus(1.0), &env, 3);
    let order = ActorOrder { runtime_env: env.clone(), ..actor_order(1, 0) };
    world.machine.on_create_actor(world.now, order);
    world.settle();
    assert_eq!(world.setups().len(), 1);
    world.setup_done(&env, Err(no_such_package()));
    let failed = |message: &FromRaylet| match message {
        FromRaylet::RuntimeEnvFailed { class, reason } => {
            assert!(reason.contains("no such package"), "{reason}");
            Some(*class)
        }
        _ => None,
    };
    let told: Vec<_> = world.said.drain(..).filter_map(|(_, message)| failed(&message)).collect();
    assert_eq!(told, [1]);
    let reports = world.reports();
    let [(_, 0, ActorOutcome::Died(cause))] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!(cause.kind(), Kind::RuntimeEnvSetupFailed);
    world.demand_in(DRIVER, 1, cpus(1.0), &env, 1);
    assert!(world.said.drain(..).any(|(_, message)| failed(&message) == Some(1)));
    assert!(world.setups().is_empty(), "it is not tried again at once");
    world.now += Duration::from_secs(11);
    world.demand_in(DRIVER, 1, cpus(1.0), &env, 1);
    assert_eq!(world.setups(), [env]);
}

#[test]
fn a_setup_whose_job_ends_is_ended() {
    let mut world = World::with_driver(cpus(1.0));
    let env = pip("a");
    world.demand_in(DRIVER, 1, cpus(1.0), &env, 1);
    world.machine.on_setup_started(env.id(), 77);
    world.machine.on_client_lost(world.now, DRIVER);
    world.machine.on_tick(world.now);
    world.settle();
    assert!(world.other.contains(&Effect::AbortSetUp(77)), "{:?}", world.other);
    assert_eq!(world.machine.env_standing(env.id()), None);
}

#[test]
fn the_environment_of_a_job_is_set_up_before_anyone_asks_unless_told_otherwise() {
    let mut world = World::new(cpus(1.0));
    let lazy = r#"{"pip": {"packages": ["b"]}, "config": {"eager_install": false}}"#;
    let envs = [pip("a"), RuntimeEnv::parse(lazy).unwrap()];
    for (number, env) in (1u8..).zip(&envs) {
        let job_id = JobId::from_bytes([number; 16]);
        let job = JobDescription {
            job_id,
            namespace: String::new(),
            entrypoint: String::new(),
            metadata: Default::default(),
            runtime_env: env.clone(),
        };
        let (client, worker_id) = (ClientId(u64::from(number)), WorkerId::from_bytes([number; 16]));
        world.machine.on_registered(world.now, client, worker_id, Role::Driver(job), 1, String::new());
        world.machine.on_job_added(world.now, job_id, Ok(()));
    }
    world.settle();
    assert_eq!(world.setups(), [envs[0].clone()]);
}

#[test]
fn an_actor_that_is_killed_while_its_environment_is_set_up_never_lives() {
    let mut world = World::with_driver(cpus(1.0));
    let env = pip("a");
    let order = ActorOrder { runtime_env: env.clone(), ..actor_order(1, 0) };
    world.machine.on_create_actor(world.now, order);
    let cause = DeathCause { kind: Kind::Killed.into(), ..DeathCause::default() };
    world.machine.on_kill_actor(world.now, actor(1), 0, cause);
    world.setup_done(&env, Ok(Prepared::default()));
    world.start_workers();
    assert_eq!(world.reports().len(), 1);
    assert!(world.workers.is_empty());
}

#[test]
fn an_environment_whose_processes_do_not_start_fails() {
    let mut world = World::with_driver(cpus(1.0));
    let env = pip("a");
    world.demand_in(DRIVER, 1, cpus(1.0), &env, 1);
    world.setup_done(&env, Ok(Prepared::default()));
    for _ in 0..3 {
        world.machine.on_env_fork_server_lost(world.now, env.id(), "it ended");
    }
    world.settle();
    let failed = world.said.iter().any(|(_, message)| matches!(message, FromRaylet::RuntimeEnvFailed { .. }));
    assert!(failed, "{:?}", world.said);
    assert_eq!(world.free(), 1.0);
}

#[test]
fn what_the_node_lacks_is_named_once() {
    let mut world = World::with_driver(cpus(2.0));
    world.demand(DRIVER, 7, cpus(3.0), 1);
    world.demand(DRIVER, 7, cpus(3.0), 2);
    let reason = "3 of \"CPU\" asked, 2 there".to_owned();
    assert_eq!(world.said, [(DRIVER, FromRaylet::LeaseInfeasible { class: 7, reason })]);
    assert_eq!(world.machine.demand(), [(cpus(3.0), 2, true)]);
}

#[test]
fn a_blocked_worker_lends_its_cpu_and_takes_it_back() {
    let mut world = World::with_driver(cpus(1.0));
    world.demand(DRIVER, 1, cpus(1.0), 2);
    world.start_workers();
    let (_, pid) = world.granted(DRIVER)[0];
    let worker = world.client_of(pid);
    world.tell(worker, ToRaylet::Blocked);
    world.start_workers();
    assert_eq!(world.granted(DRIVER).len(), 1, "another runs meanwhile");
    world.tell(worker, ToRaylet::Unblocked);
    assert_eq!(world.machine.resources().utilisation()["CPU"], 2.0);
}

#[test]
fn nested_tasks_never_starve_for_cpus() {
    let mut world = World::with_driver(cpus(1.0));
    world.demand(DRIVER, 1, cpus(1.0), 1);
    world.start_workers();
    let mut pid = world.granted(DRIVER)[0].1;
    for _ in 0..10 {
        let parent = world.client_of(pid);
        world.demand(parent, 1, cpus(1.0), 1);
        world.tell(parent, ToRaylet::Blocked);
        world.start_workers();
        pid = world.granted(parent)[0].1;
    }
}

#[test]
fn the_end_of_a_worker_is_told_with_its_cause_and_frees_its_lease() {
    let mut world = World::with_driver(cpus(1.0));
    world.demand(DRIVER, 1, cpus(1.0), 1);
    world.start_workers();
    let (_, pid) = world.granted(DRIVER)[0];
    let (client, worker_id, _) = world.workers[0];
    world.machine.on_client_lost(world.now, client);
    world.settle();
    assert_eq!(world.said, [], "the exit status is still to come");
    world.machine.on_exited(world.now, pid, ExitStatus::Signal(9));
    world.settle();
    let cause = "its process was killed by signal 9 (SIGKILL)".to_owned();
    assert_eq!(world.said, [(DRIVER, FromRaylet::WorkerDied { worker_id, cause, out_of_memory: false })]);
    assert_eq!(world.ordered.len(), 1, "the demand still stands");
}

#[test]
fn whoever_loses_a_worker_is_told_that_memory_ran_low() {
    let mut world = World::with_driver(cpus(1.0));
    assert!(!world.machine.is_at_work());
    world.demand(DRIVER, 1, cpus(1.0), 1);
    world.start_workers();
    let (_, pid) = world.granted(DRIVER)[0];
    let (client, worker_id, _) = world.workers[0];
    assert!(world.machine.is_at_work());
    assert_eq!(world.machine.leased_processes().collect::<Vec<_>>(), [(worker_id, pid, false)]);
    world.machine.on_low_memory(world.now, worker_id, "too much");
    world.settle();
    assert!(world.machine.is_freeing_memory());
    world.machine.on_client_lost(world.now, client);
    world.machine.on_exited(world.now, pid, ExitStatus::Signal(9));
    world.settle();
    assert!(!world.machine.is_freeing_memory());
    let cause = "too much".to_owned();
    assert!(
        world.said.contains(&(DRIVER, FromRaylet::WorkerDied { worker_id, cause, out_of_memory: true })),
        "{:?}",
        world.said
    );
}

#[test]
fn an_actor_that_is_ended_to_free_memory_is_reported_so() {
    let mut world = World::with_driver(cpus(1.0));
    world.machine.on_create_actor(world.now, actor_order(1, 0));
    world.settle();
    world.start_workers();
    let (client, worker_id, pid) = world.workers[0];
    world.tell(client, ToRaylet::ActorCreated { actor_id: actor(1), num_restarts: 0, result: Ok(()) });
    world.reports();
    world.machine.on_low_memory(world.now, worker_id, "too much");
    world.end_process(pid, ExitStatus::Signal(9));
    let reports = world.reports();
    let [(_, 0, ActorOutcome::Died(cause))] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!((cause.kind(), &*cause.message), (Kind::OutOfMemory, "too much"));
}

#[test]
fn a_worker_that_only_closes_its_connection_is_killed_after_a_moment() {
    let mut world = World::with_driver(cpus(1.0));
    world.demand(DRIVER, 1, cpus(1.0), 1);
    world.start_workers();
    let (client, _, pid) = world.workers[0];
    world.machine.on_client_lost(world.now, client);
    world.now = world.machine.next_deadline().expect("the exit status is waited for");
    world.machine.on_tick(world.now);
    world.settle();
    assert_eq!(world.killed, [pid]);
    assert!(world.said.iter().any(|(_, message)| matches!(message, FromRaylet::WorkerDied { .. })));
}

#[test]
fn messages_of_a_worker_that_has_exited_still_count() {
    let mut world = World::with_driver(cpus(1.0));
    let order = actor_order(1, 0);
    world.machine.on_create_actor(world.now, order);
    world.settle();
    world.start_workers();
    let (client, _, pid) = world.workers[0];
    world.tell(client, ToRaylet::ActorCreated { actor_id: actor(1), num_restarts: 0, result: Ok(()) });
    world.reports();
    world.machine.on_exited(world.now, pid, ExitStatus::Code(0));
    world.tell(client, ToRaylet::ActorExiting { actor_id: actor(1), reason: "exit_actor".to_owned() });
    assert_eq!(world.reports(), []);
    world.machine.on_client_lost(world.now, client);
    world.settle();
    let reports = world.reports();
    assert!(
        matches!(&reports[..], [(_, 0, ActorOutcome::Died(cause))] if cause.kind() == Kind::ExitedByUser)
    );
}

#[test]
fn the_end_of_a_driver_is_that_of_its_job() {
    let mut world = World::with_driver(cpus(2.0));
    world.demand(DRIVER, 1, cpus(1.0), 5);
    world.start_workers();
    let mut pids: Vec<_> = world.granted(DRIVER).into_iter().map(|(_, pid)| pid).collect();
    world.machine.on_client_lost(world.now, DRIVER);
    world.settle();
    world.killed.sort_unstable();
    pids.sort_unstable();
    assert_eq!(world.killed, pids);
    assert!(world.other.contains(&Effect::FinishJob(JOB, "its driver is gone".to_owned())));
    world.end_killed();
    assert_eq!(world.machine.counts(), (0, 0, 0));
    assert_eq!(world.free(), 2.0);
}

#[test]
fn the_children_of_a_lost_worker_are_ended() {
    let mut world = World::with_driver(cpus(2.0));
    world.demand(DRIVER, 1, cpus(1.0), 1);
    world.start_workers();
    let (_, parent) = world.granted(DRIVER)[0];
    world.demand(world.client_of(parent), 1, cpus(1.0), 1);
    world.start_workers();
    let child = world.workers[1].2;
    world.demand(DRIVER, 1, cpus(1.0), 0);
    world.end_process(parent, ExitStatus::Code(1));
    assert_eq!(world.killed, [child]);
}

#[test]
fn those_who_hold_leases_are_told_whether_others_wait() {
    let mut world = World::with_driver(cpus(1.0));
    world.demand(DRIVER, 1, cpus(1.0), 1);
    world.start_workers();
    world.granted(DRIVER);
    world.demand(DRIVER, 2, cpus(0.5), 1);
    let contention = |contended| (DRIVER, FromRaylet::LeaseContention { class: 1, contended });
    assert_eq!(world.said, [contention(true)]);
    // More who wait are no news; that nobody does any more is.
    world.demand(DRIVER, 2, cpus(0.5), 2);
    world.demand(DRIVER, 2, cpus(0.5), 0);
    assert_eq!(world.said, [contention(true), contention(false)]);
}

#[test]
fn a_client_does_not_contend_with_itself() {
    let mut world = World::with_driver(cpus(1.0));
    world.demand(DRIVER, 1, cpus(1.0), 5);
    world.start_workers();
    world.granted(DRIVER);
    assert_eq!(world.said, []);
}

pub(super) fn actor_order(number: u8, num_restarts: u64) -> ActorOrder {
    ActorOrder {
        actor_id: actor(number),
        job_id: JOB,
        num_restarts,
        placement: cpus(1.0),
        living: Resources::new(),
        runtime_env: RuntimeEnv::none(),
        bundle: None,
        spec: Bytes::from_static(b"spec"),
    }
}

#[test]
fn an_actor_takes_a_cpu_to_be_placed_and_none_to_live() {
    let mut world = World::with_driver(cpus(1.0));
    world.machine.on_create_actor(world.now, actor_order(1, 0));
    world.machine.on_create_actor(world.now, actor_order(1, 0));
    world.settle();
    world.start_workers();
    let (client, worker_id, pid) = world.workers[0];
    let spec = Bytes::from_static(b"spec");
    assert_eq!(world.said, [(client, FromRaylet::CreateActor { spec, num_restarts: 0, devices: vec![] })]);
    assert_eq!(world.free(), 0.0);
    world.tell(client, ToRaylet::ActorCreated { actor_id: actor(1), num_restarts: 0, result: Ok(()) });
    assert_eq!(world.free(), 1.0);
    let reports = world.reports();
    let [(_, 0, ActorOutcome::Alive(address))] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!((address.worker_id, address.pid), (worker_id, pid));
    world.end_process(pid, ExitStatus::Code(3));
    let reports = world.reports();
    let [(_, 0, ActorOutcome::Died(cause))] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!(
        (cause.kind(), cause.message.as_str()),
        (Kind::ProcessExited, "its process exited with code 3")
    );
    world.machine.on_create_actor(world.now, actor_order(1, 1));
    world.settle();
    assert_eq!(world.ordered.len(), 1, "the next incarnation gets another worker");
}

#[test]
fn a_repeated_order_does_not_bring_a_dead_incarnation_back() {
    let mut world = World::with_driver(cpus(1.0));
    world.machine.on_create_actor(world.now, actor_order(1, 3));
    world.settle();
    world.start_workers();
    let (.., pid) = world.workers[0];
    world.end_process(pid, ExitStatus::Signal(9));
    let reports = world.reports();
    world.machine.on_create_actor(world.now, actor_order(1, 3));
    world.machine.on_create_actor(world.now, actor_order(1, 2));
    world.settle();
    assert_eq!(world.reports().first(), reports.first());
    assert_eq!(world.ordered, []);
    world.machine.on_create_actor(world.now, actor_order(1, 4));
    world.settle();
    assert_eq!(world.ordered.len(), 1);
}

#[test]
fn a_driver_is_welcomed_before_it_is_told_anything_else() {
    let mut world = World::with_driver(cpus(1.0));
    let (early, job_id) = (ClientId(7), JobId::from_bytes([7; 16]));
    let job = JobDescription {
        job_id,
        namespace: String::new(),
        entrypoint: String::new(),
        metadata: Default::default(),
        runtime_env: RuntimeEnv::none(),
    };
    let worker_id = WorkerId::from_bytes([7; 16]);
    world.machine.on_registered(world.now, early, worker_id, Role::Driver(job), 1, String::new());
    world.machine.on_client_lost(world.now, DRIVER);
    world.machine.on_job_added(world.now, job_id, Ok(()));
    world.settle();
    assert_eq!(world.said, []);
    assert!(world.other.contains(&Effect::Welcome(early)));
}

#[test]
fn a_driver_is_welcomed_when_a_worker_is_there_for_its_first_task() {
    let mut world = World::prestarting(cpus(1.0), 1);
    world.connect_driver(DRIVER, JOB);
    assert_eq!((world.ordered.len(), world.other.contains(&Effect::Welcome(DRIVER))), (1, false));
    world.start_workers();
    assert!(world.other.contains(&Effect::Welcome(DRIVER)));
}

#[test]
fn a_driver_is_welcomed_in_time_though_no_worker_starts() {
    let mut world = World::prestarting(cpus(1.0), 1);
    world.connect_driver(DRIVER, JOB);
    assert_eq!(world.machine.next_deadline(), Some(world.now + FIRST_WORKER_LIMIT));
    world.now += FIRST_WORKER_LIMIT;
    world.machine.on_tick(world.now);
    world.settle();
    assert!(world.other.contains(&Effect::Welcome(DRIVER)));
}

#[test]
fn only_a_driver_can_end_the_node() {
    let mut world = World::with_driver(cpus(1.0));
    world.demand(DRIVER, 1, cpus(1.0), 1);
    world.start_workers();
    let worker = world.workers[0].0;
    world.tell(worker, ToRaylet::Shutdown { reason: "no".to_owned() });
    world.tell(DRIVER, ToRaylet::Shutdown { reason: "yes".to_owned() });
    let ends = world.other.iter().filter(|effect| matches!(effect, Effect::Shutdown(_)));
    assert_eq!(ends.collect::<Vec<_>>(), [&Effect::Shutdown("yes".to_owned())]);
}

#[test]
fn a_constructor_that_raises_is_reported_with_its_error() {
    let mut world = World::with_driver(cpus(1.0));
    world.machine.on_create_actor(world.now, actor_order(1, 0));
    world.settle();
    world.start_workers();
    let (client, _, pid) = world.workers[0];
    let result = Err(("ValueError: no".to_owned(), Bytes::from_static(b"pickled")));
    world.tell(client, ToRaylet::ActorCreated { actor_id: actor(1), num_restarts: 0, result });
    assert_eq!(world.killed, [pid]);
    world.end_killed();
    let reports = world.reports();
    let [(_, 0, ActorOutcome::Died(cause))] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!((cause.kind(), &cause.error[..]), (Kind::CreationFailed, &b"pickled"[..]));
}

#[test]
fn an_actor_is_killed_before_and_after_it_has_a_worker() {
    let mut world = World::with_driver(cpus(1.0));
    let cause = DeathCause { kind: Kind::Killed.into(), message: "kill".to_owned(), error: Vec::new() };
    world.machine.on_create_actor(world.now, actor_order(1, 0));
    world.machine.on_create_actor(world.now, actor_order(2, 0));
    world.settle();
    world.machine.on_kill_actor(world.now, actor(2), 0, cause.clone());
    world.settle();
    assert_eq!(world.reports(), [(actor(2), 0, ActorOutcome::Died(cause.clone()))]);
    world.start_workers();
    let (.., pid) = world.workers[0];
    world.machine.on_kill_actor(world.now, actor(1), 0, cause.clone());
    world.settle();
    assert_eq!(world.killed, [pid]);
    world.end_killed();
    assert_eq!(world.reports(), [(actor(1), 0, ActorOutcome::Died(cause))]);
    assert_eq!(world.free(), 1.0);
}

#[test]
fn an_actor_that_was_killed_before_its_order_came_is_not_made() {
    let mut world = World::with_driver(cpus(1.0));
    let cause = DeathCause { kind: Kind::Killed.into(), message: "kill".to_owned(), error: Vec::new() };
    world.machine.on_kill_actor(world.now, actor(1), 1, cause.clone());
    world.machine.on_create_actor(world.now, actor_order(1, 1));
    world.settle();
    assert_eq!(world.reports(), [(actor(1), 1, ActorOutcome::Died(cause))]);
    assert_eq!(world.free(), 1.0);
    // A later incarnation is another matter.
    world.machine.on_create_actor(world.now, actor_order(1, 2));
    world.settle();
    assert_eq!(world.reports(), []);
    assert_eq!(world.free(), 0.0);
}

#[test]
fn subscribers_hear_of_newer_states_only() {
    let mut world = World::with_driver(cpus(1.0));
    world.tell(DRIVER, ToRaylet::SubscribeActor { actor_id: actor(1) });
    assert!(world.other.contains(&Effect::FetchActor(actor(1))));
    let state = |text: &'static str| Bytes::from_static(text.as_bytes());
    world.machine.on_actor_state(actor(1), 2, state("second"));
    world.machine.on_actor_state(actor(1), 1, state("first"));
    world.machine.on_actor_state(actor(2), 9, state("of another"));
    world.settle();
    assert_eq!(world.said, [(DRIVER, FromRaylet::ActorState { info: state("second") })]);
}

fn task_spec(number: u8, max_retries: u32) -> TaskSpec {
    TaskSpec {
        task_id: task(number),
        job_id: JOB,
        function: "module:name".to_owned(),
        payload: Bytes::from_static(b"in"),
        resources: cpus(1.0),
        max_retries,
    }
}

#[test]
fn a_submitted_task_runs_on_a_worker_and_its_result_is_stored() {
    let mut world = World::new(cpus(1.0));
    world.machine.on_submit(world.now, task_spec(1, 1)).unwrap();
    world.settle();
    world.start_workers();
    let (client, _, pid) = world.workers[0];
    assert!(matches!(&world.said[..], [(to, FromRaylet::RunTask { .. })] if *to == client));
    world.end_process(pid, ExitStatus::Signal(11));
    world.start_workers();
    let (client, ..) = world.workers[0];
    let result = Ok(Bytes::from_static(b"out"));
    world.tell(client, ToRaylet::TaskDone { task_id: task(1), result });
    assert!(world.other.contains(&Effect::StoreResult(task(1), Bytes::from_static(b"out"))));
    assert_eq!(world.machine.task_state(task(1)).map(|(state, _)| state), Some(&TaskState::Finished));
    assert_eq!(world.free(), 1.0);
}

#[test]
fn a_pending_task_says_what_it_waits_for_and_can_be_cancelled() {
    let mut world = World::new(cpus(1.0));
    world.machine.on_submit(world.now, task_spec(1, 0)).unwrap();
    world.machine.on_submit(world.now, task_spec(2, 0)).unwrap();
    let (_, reason) = world.machine.task_state(task(2)).unwrap();
    assert_eq!(reason, "waits for resources: 1 of \"CPU\" asked, 0 free");
    assert!(world.machine.on_cancel(world.now, task(2), false).unwrap());
    assert!(!world.machine.on_cancel(world.now, task(2), false).unwrap());
    let mut large = task_spec(3, 0);
    large.resources = cpus(2.0);
    assert!(world.machine.on_submit(world.now, large).is_err());
}

#[test]
fn a_lease_by_grpc_is_granted_once_and_given_up_when_nobody_waits() {
    let mut world = World::new(cpus(1.0));
    let lease = |number| LeaseId::from_bytes([number; 16]);
    world.machine.on_request_lease(world.now, lease(1), JOB, cpus(1.0));
    world.machine.on_request_lease(world.now, lease(2), JOB, cpus(1.0));
    world.machine.on_request_lease(world.now, lease(3), JOB, cpus(9.0));
    world.settle();
    world.start_workers();
    let outcomes: Vec<_> = world.other.drain(..).collect();
    let granted = |effect: &&Effect| matches!(effect, Effect::RemoteLease(_, RemoteOutcome::Granted(_)));
    assert_eq!(outcomes.iter().filter(granted).count(), 1);
    let infeasible = |effect: &Effect| matches!(effect, Effect::RemoteLease(_, RemoteOutcome::Infeasible(_)));
    assert!(outcomes.iter().any(infeasible));
    let reason = world.machine.on_lease_timeout(world.now, lease(2));
    assert_eq!(reason.as_deref(), Some("1 of \"CPU\" asked, 0 free"));
    assert_eq!(world.machine.on_lease_timeout(world.now, lease(1)), None);
    world.machine.on_release_lease(world.now, lease(1));
    assert_eq!(world.free(), 1.0);
}

#[test]
fn a_worker_id_cannot_be_taken_twice() {
    let mut world = World::with_driver(cpus(1.0));
    let id = WorkerId::from_bytes(*JOB.as_bytes());
    world.machine.on_registered(world.now, ClientId(5), id, Role::Worker, 5, String::new());
    world.settle();
    assert!(world.other.iter().any(|effect| matches!(effect, Effect::Reject(ClientId(5), _))));
    world.machine.on_message(world.now, ClientId(6), ToRaylet::Blocked);
    world.settle();
    assert!(world.other.iter().any(|effect| matches!(effect, Effect::Reject(ClientId(6), _))));
}

#[derive(Debug, Clone)]
enum Step {
    Demand(prop::sample::Index, u64, u32),
    Return(prop::sample::Index, bool),
    Block(prop::sample::Index, bool),
    Start,
    Crash(prop::sample::Index),
    EndKilled,
    Tick,
    CreateActor(u8),
    ActorCreated(prop::sample::Index),
    Submit(u8),
    /// The set-ups that run end, well or not.
    SetUp(bool),
    ReserveGroup,
    ReturnGroup,
}

const GROUP: PlacementGroupId = PlacementGroupId::from_bytes([6; 16]);

/// What a class asks for: 1 CPU each from class 1 on; classes 3 and 4 of a group of two bundles.
fn shape_of(class: u64) -> Shape {
    match class {
        3 | 4 => {
            let index = (class == 4).then_some(1);
            let strategy = ray_core::constraint::Strategy::Bundle { group_id: GROUP, index, capture: false };
            Shape::from(cpus(0.5)).with_strategy(strategy)
        }
        5 | 6 => cpus(class as f64 - 4.0).into(),
        class => cpus(class as f64).into(),
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    let pick = any::<prop::sample::Index>;
    prop_oneof![
        3 => (pick(), 0u64..7, 0u32..6).prop_map(|(who, class, target)| Step::Demand(who, class, target)),
        3 => (pick(), prop::bool::weighted(0.3)).prop_map(|(which, retires)| Step::Return(which, retires)),
        2 => (pick(), any::<bool>()).prop_map(|(who, blocked)| Step::Block(who, blocked)),
        4 => Just(Step::Start),
        1 => pick().prop_map(Step::Crash),
        2 => Just(Step::EndKilled),
        1 => Just(Step::Tick),
        1 => (0u8..4).prop_map(Step::CreateActor),
        1 => pick().prop_map(Step::ActorCreated),
        1 => (0u8..6).prop_map(Step::Submit),
        2 => any::<bool>().prop_map(Step::SetUp),
        1 => Just(Step::ReserveGroup),
        1 => Just(Step::ReturnGroup),
    ]
}

/// What must hold after every step.
fn check(machine: &NodeMachine) {
    let used: usize = machine.leases.granted();
    assert!(used <= machine.pool.len(), "a lease without a worker");
    let mut cpus_used = 0u64;
    for lease_id in machine.leases.of_job(JOB) {
        let lease = machine.leases.get(lease_id).expect("it is listed");
        let queued = machine.queue.contains(&lease_id);
        assert_eq!(queued, lease.state == LeaseState::Queued, "{lease:?}");
        assert_eq!(machine.resources.held_by(lease_id).is_some(), !queued, "{lease:?}");
        if !queued && !matches!(lease.state, LeaseState::Blocked(_)) && lease.claim.pool == Pool::Node {
            cpus_used += machine.resources.held_by(lease_id).map_or(0, |held| held.get(CPU).to_raw());
        }
    }
    for (bundle, ..) in machine.resources.bundles(GROUP) {
        let units = if bundle.index == 0 { 1.0 } else { 0.5 };
        cpus_used += cpus(units).get(CPU).to_raw();
    }
    let free = machine.resources.available().get(CPU).to_raw();
    let total = machine.resources.total().get(CPU).to_raw();
    assert_eq!(free, total.saturating_sub(cpus_used));
    let waits = |lease_id: &LeaseId| {
        machine.leases.get(*lease_id).is_some_and(|lease| machine.resources.fits(&lease.claim))
    };
    for (&(worker_id, class), demand) in &machine.demands {
        let count = machine.leases.count(&Holder::Client { worker_id, class });
        let served = count.queued + count.starting + count.held > 0;
        let pending = matches!(
            machine.env_standing(demand.runtime_env.id()),
            Some(Standing::Pending { .. } | Standing::Failed { .. })
        );
        // Those for whom no worker starts ask again in a moment, those of a group when it is here.
        let asks_again = (machine.retry_at.is_some() || demand.obstacle.is_some()) && !pending;
        assert!(
            served != pending || asks_again,
            "{demand:?} is forgotten, or is served without its environment: {count:?}"
        );
    }
    for (_, worker) in machine.pool.iter().filter(|(_, worker)| !worker.env.is_nil()) {
        assert!(machine.envs.ready(worker.env).is_some() || worker.doomed, "{worker:?} has no environment");
    }
    assert!(
        !machine.leases.of_job(JOB).iter().any(|id| machine.queue.contains(id) && waits(id)),
        "idle resources"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn whatever_happens_resources_are_exact_and_all_come_back(steps in prop::collection::vec(any_step(), 0..120)) {
        let mut world = World::with_driver(cpus(3.0));
        let mut held: Vec<(ClientId, LeaseId)> = Vec::new();
        let mut attempt = 0;
        for step in steps {
            let clients: Vec<ClientId> =
                std::iter::once(DRIVER).chain(world.workers.iter().map(|(client, ..)| *client)).collect();
            match step {
                Step::Demand(who, class, target) => {
                    // Two of the classes need environments.
                    let env = if class < 5 { RuntimeEnv::none() } else { pip(&class.to_string()) };
                    let client = clients[who.index(clients.len())];
                    let (shape, job_id) = (shape_of(class), JOB);
                    world.tell(client, ToRaylet::SetLeaseDemand { class, shape, job_id, runtime_env: env, target });
                }
                Step::Return(which, retires) if !held.is_empty() => {
                    let (client, lease_id) = held.remove(which.index(held.len()));
                    let retired = ToRaylet::RetireWorker { lease_id };
                    world.tell(client, if retires { retired } else { ToRaylet::ReturnLease { lease_id } });
                }
                Step::Block(who, blocked) => {
                    let client = clients[who.index(clients.len())];
                    world.tell(client, if blocked { ToRaylet::Blocked } else { ToRaylet::Unblocked });
                }
                Step::Start => world.start_workers(),
                Step::Crash(who) if !world.workers.is_empty() => {
                    let (.., pid) = world.workers[who.index(world.workers.len())];
                    world.end_process(pid, ExitStatus::Signal(11));
                }
                Step::EndKilled => world.end_killed(),
                Step::Tick => {
                    world.now += Duration::from_secs(31);
                    world.machine.on_tick(world.now);
                    world.settle();
                }
                Step::CreateActor(number) => {
                    let runtime_env = if number < 2 { RuntimeEnv::none() } else { pip("3") };
                    let order = ActorOrder { runtime_env, ..actor_order(number, 0) };
                    world.machine.on_create_actor(world.now, order);
                    world.settle();
                }
                Step::SetUp(succeeds) => {
                    for env in world.setups() {
                        let result = if succeeds { Ok(Prepared::default()) } else { Err(no_such_package()) };
                        world.setup_done(&env, result);
                    }
                }
                Step::ActorCreated(who) if !world.workers.is_empty() => {
                    let (client, ..) = world.workers[who.index(world.workers.len())];
                    for number in 0..4 {
                        let result = Ok(());
                        world.tell(client, ToRaylet::ActorCreated { actor_id: actor(number), num_restarts: 0, result });
                    }
                }
                Step::Submit(number) => {
                    world.machine.on_submit(world.now, task_spec(number, 1)).unwrap();
                    world.settle();
                }
                Step::ReserveGroup => {
                    attempt += 1;
                    let order = ReserveOrder {
                        group_id: GROUP, attempt, bundles: vec![(0, cpus(1.0)), (1, cpus(0.5))], commit: true,
                    };
                    let _ = world.machine.on_reserve_bundles(world.now, &order);
                    world.settle();
                }
                Step::ReturnGroup => {
                    world.machine.on_return_bundles(world.now, GROUP, attempt, true, "enough");
                    world.settle();
                }
                Step::Return(..) | Step::Crash(_) | Step::ActorCreated(_) => {}
            }
            for client in clients {
                held.extend(world.granted(client).into_iter().map(|(lease_id, _)| (client, lease_id)));
            }
            world.ordered.retain(|id| world.machine.pool.get(*id).is_some());
            check(&world.machine);
        }
        world.machine.on_client_lost(world.now, DRIVER);
        world.settle();
        let cause = DeathCause { kind: Kind::JobFinished.into(), ..DeathCause::default() };
        for number in 0..4 {
            world.machine.on_kill_actor(world.now, actor(number), 0, cause.clone());
        }
        world.settle();
        world.start_workers();
        world.end_killed();
        check(&world.machine);
        world.machine.on_return_bundles(world.now, GROUP, attempt, true, "enough");
        prop_assert_eq!(world.machine.resources().available(), cpus(3.0));
        prop_assert_eq!(world.machine.resources().allocations(), 0);
        prop_assert_eq!(world.machine.counts().1, 0);
        for _ in 0..3 {
            world.now += Duration::from_secs(1000);
            world.machine.on_tick(world.now);
            world.settle();
            world.end_killed();
        }
        prop_assert!(world.machine.envs.is_empty(), "an environment is kept for ever");
    }
}
