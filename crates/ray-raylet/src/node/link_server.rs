//! The one thread that owns the machine, the link's connections and the object table.
//!
//! Whatever concerns a worker of this node is done here, without a hop to another thread: a frame is
//! read, the machine or the store decides, the answers are written. Everything that waits for
//! something else (control plane, disks, other nodes) is done by tokio beside it, which talks to this
//! thread by commands.
//!
//! ```text
//!   each round: wait for sockets | read frames, reports, commands -> machine, store -> effects
//!               -> queue answers | flush each connection once
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ray_core::error::{RayError, RayResult};
use ray_core::id::{JobId, LeaseId, WorkerId};
use ray_core::metric::{MetricChange, MetricKind, MetricTable};
use ray_core::report::NodeReport;
use ray_link::message::{LINK, LinkMessage};
use ray_link::{Connection, FromRaylet, Interest, Listener, Poller, Readiness, ToRaylet, Waker};
use rustc_hash::FxHashMap;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};

use super::effect::{ClientId, Effect, NodeIdentity, RemoteOutcome};
use super::env_processes::{EnvProcesses, Lost};
use super::fork_server::{ForkEvent, ForkOrder, ForkServer};
use super::gcs_port::{GcsCall, GcsReport, UsageReport};
use super::handle::{Command, NodeStatus};
use super::inbox::Inbox;
use super::inspection::{Inspected, Inspections};
use super::machine::NodeMachine;
use super::memory::MemoryWatch;
use super::node_metrics;
use super::process_tree;
use super::store_port::{StoreOutput, StorePort};
use crate::log_monitor::{LogCommand, log_path};
use crate::runtime_env_table::SetupError;

/// Tag that tells the process that set a gauge.
const WORKER_TAG: &str = "WorkerId";

const LISTENER: u64 = 0;
const WAKER: u64 = 1;
const FORK_SERVER: u64 = 2;
const OWNER: u64 = 3;
/// Tokens from here on are those of clients.
const FIRST_CLIENT: u64 = 16;
/// Tokens from here on are those of the fork servers of runtime environments.
pub(super) const FIRST_ENV_SERVER: u64 = 1 << 62;

/// Longest frame that is taken from a client: no message of the link carries large values.
const MAX_FRAME_BYTES: usize = 512 << 20;
/// A client that lets more than this wait to be read by it is cut off, in bytes.
const MAX_QUEUED_BYTES: usize = 1 << 30;
/// What workers printed is dropped for a driver that lets more than this wait, in bytes.
const MAX_QUEUED_LOG_BYTES: usize = 16 << 20;
/// How long after a change the node tells what is free.
const USAGE_DELAY: Duration = Duration::from_millis(5);
/// How long something that found a channel full waits before it is tried again.
const RETRY: Duration = Duration::from_millis(5);
/// How long nobody is accepted after the process ran out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Reads of a client that cannot be written to any more: a socket's buffer holds less.
const LAST_READS: usize = 64;
/// Commands taken in one round, so that sockets are not forgotten.
const COMMANDS_PER_ROUND: usize = 1_024;
/// Reports to the control plane that may wait for their channel; far more than a node has actors.
const MAX_OUTBOX: usize = 1_000_000;

/// What a flush of logs is answered with.
pub(super) type FlushMark = (ClientId, u64);

/// What the thread needs from its maker.
#[derive(Debug)]
pub(super) struct LinkServerParts {
    pub(super) identity: NodeIdentity,
    pub(super) machine: NodeMachine,
    pub(super) store: StorePort,
    pub(super) listener: Listener,
    pub(super) fork_server: ForkServer,
    /// Readable when the driver that owns the node has ended.
    pub(super) owner: Option<OwnedFd>,
    pub(super) waker: Arc<Waker>,
    pub(super) inbox: Inbox<Command>,
    pub(super) logs: PathBuf,
    pub(super) log_commands: mpsc::Sender<LogCommand<FlushMark>>,
    pub(super) worker_env: BTreeMap<String, String>,
    pub(super) gcs_calls: mpsc::Sender<GcsCall>,
    pub(super) gcs_reports: mpsc::Sender<GcsReport>,
    pub(super) usage: watch::Sender<UsageReport>,
    pub(super) report_interval: Duration,
    pub(super) shutdown_grace: Duration,
    pub(super) memory: MemoryWatch,
    pub(super) max_metric_series: usize,
}

struct Peer {
    connection: Connection,
    interest: Interest,
}

/// The end of the node is under way.
struct Ending {
    reason: String,
    deadline: Instant,
}

pub(super) struct LinkServer {
    parts: LinkServerParts,
    poller: Poller,
    fork_interest: Interest,
    accepting: bool,
    accept_again: Option<Instant>,
    peers: FxHashMap<ClientId, Peer>,
    next_client: u64,
    /// Those with something to flush.
    unflushed: BTreeSet<ClientId>,
    reports: VecDeque<GcsReport>,
    questions: VecDeque<GcsCall>,
    log_commands: VecDeque<LogCommand<FlushMark>>,
    routed: FxHashMap<WorkerId, JobId>,
    lease_waiters: FxHashMap<LeaseId, Vec<oneshot::Sender<RemoteOutcome>>>,
    usage_version: u64,
    usage_due: Option<Instant>,
    usage_sent: Option<Instant>,
    ending: Option<Ending>,
    envs: EnvProcesses,
    inspections: Inspections<oneshot::Sender<NodeReport>>,
    metrics: MetricTable,
    /// It was said that there are too many series.
    metrics_full: bool,
}

impl LinkServer {
    pub(super) fn new(parts: LinkServerParts) -> RayResult<Self> {
        let fail = |error: std::io::Error| RayError::io("cannot wait for the node's sockets", error);
        let poller = Poller::new().map_err(fail)?;
        poller.add(&parts.listener, LISTENER, Interest::Read).map_err(fail)?;
        poller.add(&*parts.waker, WAKER, Interest::Read).map_err(fail)?;
        poller.add(&parts.fork_server, FORK_SERVER, Interest::Read).map_err(fail)?;
        if let Some(owner) = &parts.owner {
            poller.add(owner, OWNER, Interest::Read).map_err(fail)?;
        }
        let envs = EnvProcesses::new(&parts.identity.session_dir, &parts.logs);
        let metrics = MetricTable::new(parts.max_metric_series);
        Ok(Self {
            parts,
            poller,
            envs,
            fork_interest: Interest::Read,
            accepting: true,
            accept_again: None,
            peers: FxHashMap::default(),
            next_client: FIRST_CLIENT,
            unflushed: BTreeSet::new(),
            reports: VecDeque::new(),
            questions: VecDeque::new(),
            log_commands: VecDeque::new(),
            routed: FxHashMap::default(),
            lease_waiters: FxHashMap::default(),
            usage_version: 0,
            usage_due: None,
            usage_sent: None,
            ending: None,
            inspections: Inspections::new(),
            metrics,
            metrics_full: false,
        })
    }

    /// Serves until the node ends. Returns why it ended.
    pub(super) fn run(mut self) -> RayResult<String> {
        self.parts.machine.on_start(Instant::now());
        self.after_round(Instant::now());
        let mut ready = Vec::new();
        loop {
            let wait = self.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
            self.poller
                .wait(&mut ready, wait)
                .map_err(|error| RayError::io("cannot wait for the node's sockets", error))?;
            let now = Instant::now();
            for &readiness in &ready {
                self.on_ready(now, readiness);
            }
            self.parts.machine.on_tick(now);
            self.parts.memory.on_tick(now, &mut self.parts.machine);
            let mut out = Vec::new();
            self.parts.store.on_tick(now, &mut out);
            self.on_store_outputs(out);
            self.after_round(now);
            if let Some(reason) = self.ended(now) {
                return Ok(reason);
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let full = !self.reports.is_empty() || !self.log_commands.is_empty() || !self.questions.is_empty();
        let retry = full.then(|| Instant::now() + RETRY);
        let ending = self.ending.as_ref().map(|ending| ending.deadline).into_iter();
        let ending = ending.chain(self.inspections.next_deadline()).min();
        let (machine, store) = (self.parts.machine.next_deadline(), self.parts.store.next_deadline());
        let memory = self.parts.memory.next_deadline(&self.parts.machine);
        [machine, store, memory, self.usage_due, self.accept_again, retry, ending].into_iter().flatten().min()
    }

    fn on_ready(&mut self, now: Instant, readiness: Readiness) {
        match readiness.token {
            LISTENER => self.accept(),
            WAKER => self.on_commands(now),
            FORK_SERVER => self.on_fork_server(now, readiness),
            OWNER => self.shut_down(now, "the driver that owns the node has ended".to_owned()),
            token if token >= FIRST_ENV_SERVER => self.on_env_server(now, token),
            token => self.on_client(now, ClientId(token), readiness),
        }
    }

    fn accept(&mut self) {
        while self.accepting {
            match self.parts.listener.accept(MAX_FRAME_BYTES) {
                Ok(Some(connection)) => {
                    let client = ClientId(self.next_client);
                    self.next_client += 1;
                    if let Err(error) = self.poller.add(&connection, client.0, Interest::Read) {
                        warn!(%error, "cannot wait for a client");
                        continue;
                    }
                    self.peers.insert(client, Peer { connection, interest: Interest::Read });
                }
                Ok(None) => return,
                Err(error) => {
                    // Whoever waits goes on waiting, and would wake this thread at once again.
                    warn!(%error, "cannot take a client: trying again in a moment");
                    let paused = self.poller.modify(&self.parts.listener, LISTENER, Interest::None);
                    self.accept_again = paused.is_ok().then(|| Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn on_client(&mut self, now: Instant, client: ClientId, readiness: Readiness) {
        if readiness.writable {
            self.unflushed.insert(client);
        }
        if readiness.readable {
            self.read(now, client);
        }
    }

    /// Takes what a client has said, as far as it is read at once. Returns whether there may be more.
    fn read(&mut self, now: Instant, client: ClientId) -> bool {
        let Some(peer) = self.peers.get_mut(&client) else { return false };
        let filled = peer.connection.fill();
        let mut messages = Vec::new();
        let read = read_messages(&mut peer.connection, &mut messages);
        let amid_frame = peer.connection.is_amid_frame();
        for message in messages {
            self.on_message(now, client, message);
        }
        match (filled, read) {
            (Ok(more), Ok(())) => return more,
            (_, Err(error)) => {
                warn!(client = client.0, error = %error.chain(), "a client broke the protocol");
            }
            (Err(error), Ok(())) if amid_frame => {
                warn!(client = client.0, %error, "the connection of a client ended amid a frame");
            }
            (Err(error), Ok(())) => debug!(client = client.0, %error, "a client is gone"),
        }
        self.close(now, client);
        false
    }

    fn on_message(&mut self, now: Instant, client: ClientId, message: ToRaylet) {
        if let ToRaylet::Register { worker_id, role, pid, socket_path } = message {
            self.parts.store.on_client_named(client, format!("process {pid}"));
            self.parts.machine.on_registered(now, client, worker_id, role, pid, socket_path);
            return;
        }
        if self.parts.machine.worker_of(client).is_none() {
            self.reject(now, client, "the first message has to say who speaks".to_owned());
            return;
        }
        if !self.parts.machine.may_say(client, &message) {
            self.reject(now, client, format!("a visitor may not say {}", name_of(&message)));
            return;
        }
        match message {
            ToRaylet::GcsCall { request, method, body } => {
                let call = GcsCall::Pass { client, request, method, body };
                if self.parts.gcs_calls.try_send(call).is_err() {
                    let code = tonic::Code::ResourceExhausted as i32;
                    let text = "too many calls of the control plane wait already".to_owned();
                    self.send(client, &FromRaylet::GcsReply { request, result: Err((code, text)) });
                }
            }
            ToRaylet::FlushLogs { request } => match self.parts.machine.shown_job_of(client) {
                Some(job_id) => self.log_commands.push_back(LogCommand::Flush(job_id, (client, request))),
                // What a worker prints is its driver's to see.
                None => self.send(client, &FromRaylet::LogsFlushed { request }),
            },
            ToRaylet::Inspected { request, report } => self.inspections.on_answer(client, request, report),
            ToRaylet::WhyPending { class } => {
                let worker_id = self.parts.machine.worker_of(client).unwrap_or(WorkerId::nil());
                let reason = self.parts.machine.why_pending(worker_id, class);
                self.send(client, &FromRaylet::PendingReason { class, reason });
            }
            ToRaylet::Metrics { changes } => self.on_metrics(client, changes),
            ToRaylet::CreateObject { .. }
            | ToRaylet::SealObject { .. }
            | ToRaylet::AbortObject { .. }
            | ToRaylet::GetObjects { .. }
            | ToRaylet::CancelGet { .. }
            | ToRaylet::ReleaseObject { .. }
            | ToRaylet::DeleteObjects { .. } => {
                let mut out = Vec::new();
                self.parts.store.on_message(now, client, message, &mut out);
                self.on_store_outputs(out);
            }
            other => self.parts.machine.on_message(now, client, other),
        }
    }

    fn on_fork_server(&mut self, now: Instant, readiness: Readiness) {
        let mut events = Vec::new();
        let mut outcome = Ok(());
        if readiness.readable {
            outcome = self.parts.fork_server.read(&mut events);
        }
        self.on_fork_events(now, events);
        if let Err(error) = outcome.and_then(|()| self.parts.fork_server.flush()) {
            self.on_fork_server_lost(now, &error);
        }
    }

    fn on_fork_events(&mut self, now: Instant, events: Vec<ForkEvent>) {
        let machine = &mut self.parts.machine;
        for event in events {
            match event {
                ForkEvent::Forked(worker_id, pid) => machine.on_forked(worker_id, pid),
                ForkEvent::SetupStarted(id, pid) => machine.on_setup_started(id, pid),
                ForkEvent::SetupFailed(id, reason) => {
                    machine.on_setup_done(now, id, Err(SetupError { reason, ..SetupError::default() }));
                }
                ForkEvent::Exited(pid, status) => match machine.setup_of(pid) {
                    Some(id) => {
                        // If it did not end by itself, what it has started lives.
                        process_tree::kill_group(pid);
                        machine.on_setup_done(now, id, self.envs.take_outcome(id, status));
                    }
                    None => machine.on_exited(now, pid, status),
                },
            }
        }
    }

    /// The fork server of a runtime environment says something, or has ended.
    fn on_env_server(&mut self, now: Instant, token: u64) {
        let (events, ended) = self.envs.read(token, &self.poller);
        self.on_fork_events(now, events);
        self.on_env_server_lost(now, ended);
    }

    fn on_env_server_lost(&mut self, now: Instant, lost: Option<Lost>) {
        let Some((ids, cause)) = lost else { return };
        for id in ids {
            self.parts.machine.on_env_fork_server_lost(now, id, &cause);
        }
    }

    fn on_fork_server_lost(&mut self, now: Instant, error: &RayError) {
        if self.fork_interest != Interest::None {
            self.fork_interest = Interest::None;
            let _ = self.poller.remove(&self.parts.fork_server);
            self.shut_down(now, format!("no worker can be started: {}", error.chain()));
        }
    }

    fn on_commands(&mut self, now: Instant) {
        self.parts.waker.reset();
        let mut left = COMMANDS_PER_ROUND;
        while let Some(command) = self.parts.inbox.take() {
            self.on_command(now, command);
            left -= 1;
            if left == 0 {
                self.parts.waker.wake();
                return;
            }
        }
    }

    fn on_command(&mut self, now: Instant, command: Command) {
        let machine = &mut self.parts.machine;
        match command {
            Command::GcsReply { client, request, result } => {
                self.send(client, &FromRaylet::GcsReply { request, result });
            }
            Command::JobAdded { job_id, result } => machine.on_job_added(now, job_id, result),
            Command::JobFinished(job_id) => machine.on_job_finished(now, job_id),
            Command::ActorState { actor_id, version, info } => {
                machine.on_actor_state(actor_id, version, info);
            }
            Command::CreateActor { order, answer } => {
                machine.on_create_actor(now, order);
                reply(answer, ());
            }
            Command::KillActor { actor_id, num_restarts, cause, answer } => {
                machine.on_kill_actor(now, actor_id, num_restarts, cause);
                reply(answer, ());
            }
            Command::ReserveBundles { order, answer } => {
                reply(answer, machine.on_reserve_bundles(now, &order));
            }
            Command::CommitBundles { group_id, attempt, answer } => {
                reply(answer, machine.on_commit_bundles(now, group_id, attempt));
            }
            Command::ReturnBundles { group_id, attempt, all, reason, answer } => {
                machine.on_return_bundles(now, group_id, attempt, all, &reason);
                reply(answer, ());
            }
            Command::GroupNews(news) => machine.on_group_news(now, news),
            Command::GroupUnknown(group_id) => machine.on_group_unknown(now, group_id),
            Command::GroupsListed(listed) => machine.on_groups_listed(now, &listed),
            Command::Neighbour(node) => machine.on_neighbour(now, node),
            Command::Usage { node_id, report } => machine.on_usage(now, node_id, report),
            Command::NodesListed(nodes) => machine.on_nodes_listed(now, nodes),
            Command::Submit { spec, answer } => reply(answer, machine.on_submit(now, spec)),
            Command::Cancel { task_id, force, answer } => {
                reply(answer, machine.on_cancel(now, task_id, force));
            }
            Command::TaskStatus { task_id, answer } => {
                let state = machine.task_state(task_id).map(|(state, reason)| (state.clone(), reason));
                reply(answer, state);
            }
            Command::RegisterWorker { worker, answer } => {
                reply(answer, machine.on_external_worker(now, worker));
            }
            Command::UnregisterWorker { worker_id, reason, answer } => {
                machine.on_unregistered(now, worker_id, &reason);
                reply(answer, ());
            }
            Command::RequestLease { lease_id, job_id, shape, answer } => {
                self.lease_waiters.entry(lease_id).or_default().push(answer);
                machine.on_request_lease(now, lease_id, job_id, shape);
            }
            Command::LeaseTimeout { lease_id, answer } => {
                // An answer may be among the effects of this round: it comes first.
                self.run_effects(now);
                self.lease_waiters.remove(&lease_id);
                reply(answer, self.parts.machine.on_lease_timeout(now, lease_id));
            }
            Command::ReleaseLease { lease_id, answer } => {
                machine.on_release_lease(now, lease_id);
                reply(answer, ());
            }
            Command::Status { answer } => reply(answer, status(machine)),
            Command::LogLines { job_id, pid, is_stderr, batch } => {
                if let Some(driver) = machine.driver_of(job_id).filter(|driver| self.takes_logs(*driver)) {
                    let (name, lines) = (batch.name, batch.lines);
                    self.send(driver, &FromRaylet::LogLines { pid, name, is_stderr, lines });
                }
            }
            Command::LogsFlushed { client, request } => {
                self.send(client, &FromRaylet::LogsFlushed { request });
            }
            Command::Store(command) => {
                let mut out = Vec::new();
                self.parts.store.on_command(now, command, &mut out);
                self.on_store_outputs(out);
            }
            Command::Inspect { inquiry, timeout, answer } => {
                let clients = self.parts.machine.welcomed_clients();
                let request = self.inspections.open(&clients, now + timeout, answer);
                for client in clients {
                    self.send(client, &FromRaylet::Inspect { request, inquiry });
                }
            }
            Command::Metrics { answer } => {
                let usage = self.parts.store.usage();
                let received = self.parts.store.received_bytes();
                reply(answer, node_metrics::render(&self.parts.machine, &usage, received, &self.metrics));
            }
            Command::Shutdown(reason) => self.shut_down(now, reason),
        }
    }

    /// Takes in what a process has recorded.
    fn on_metrics(&mut self, client: ClientId, changes: Vec<MetricChange>) {
        let Some(worker_id) = self.parts.machine.worker_of(client) else { return };
        let mut all = true;
        for MetricChange { metric, series } in changes {
            for (mut tags, value) in series {
                if metric.kind == MetricKind::Gauge {
                    // It is this process's own, and goes with it.
                    tags.push((WORKER_TAG.to_owned(), worker_id.hex()));
                }
                all &= self.metrics.add(&metric, &tags, &value);
            }
        }
        if !all && !std::mem::replace(&mut self.metrics_full, true) {
            let limit = self.parts.max_metric_series;
            warn!(
                limit,
                "there are too many series of metrics, and new ones are left out: tags have too many values"
            );
        }
    }

    fn finish_inspections(&mut self, now: Instant) {
        for Inspected { asker, reports, silent } in self.inspections.take_done(now) {
            let owned_objects = self.parts.store.owned_objects();
            let report = self.parts.machine.report(now, reports, &silent);
            reply(asker, NodeReport { owned_objects, ..report });
        }
    }

    fn takes_logs(&self, driver: ClientId) -> bool {
        self.peers.get(&driver).is_some_and(|peer| peer.connection.queued_bytes() < MAX_QUEUED_LOG_BYTES)
    }

    /// Does what the machine wants, writes what is queued, and passes on what could not be before.
    fn after_round(&mut self, now: Instant) {
        self.run_effects(now);
        while let Some(client) = self.unflushed.pop_first() {
            if !self.flush(client) {
                // What it said before it left still counts: that it leaves, or that the node is to end.
                (0..LAST_READS).take_while(|_| self.read(now, client)).for_each(drop);
                self.close(now, client);
                self.run_effects(now);
            }
        }
        self.finish_inspections(now);
        self.watch_fork_server();
        self.envs.flush(&self.poller);
        if self.accepting && self.accept_again.is_some_and(|at| at <= now) {
            let resumed = self.poller.modify(&self.parts.listener, LISTENER, Interest::Read);
            self.accept_again = resumed.is_err().then(|| now + ACCEPT_PAUSE);
        }
        hand_over(&mut self.questions, &self.parts.gcs_calls);
        hand_over(&mut self.reports, &self.parts.gcs_reports);
        hand_over(&mut self.log_commands, &self.parts.log_commands);
        self.publish_usage(now);
    }

    fn run_effects(&mut self, now: Instant) {
        loop {
            let effects = self.parts.machine.take_effects();
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                self.run_effect(now, effect);
            }
        }
    }

    fn run_effect(&mut self, now: Instant, effect: Effect) {
        match effect {
            Effect::Send(client, message) => self.send(client, &message),
            Effect::Welcome(client) => self.welcome(now, client),
            Effect::Reject(client, reason) => self.reject(now, client, reason),
            Effect::Close(client) => self.close(now, client),
            Effect::Fork(worker_id) => self.fork(now, worker_id),
            Effect::SetUp(env) => {
                let order = self.envs.setup_order(&env, &self.parts.identity.gcs_address);
                if let Err(error) = self.parts.fork_server.set_up(order.as_order()) {
                    self.on_fork_server_lost(now, &error);
                }
            }
            Effect::AbortSetUp(pid) => process_tree::kill_group(pid),
            Effect::RetireEnv(id) => self.envs.retire(id, &self.poller),
            Effect::Discard(path) => self.envs.discard(&path),
            Effect::Kill(pid) => process_tree::kill(pid),
            Effect::RouteLogs(worker_id, job_id, pid) => {
                if self.routed.insert(worker_id, job_id) != Some(job_id) {
                    self.log_commands.push_back(LogCommand::Route(worker_id, job_id, pid));
                }
            }
            Effect::EndLogs(worker_id) => {
                if self.routed.remove(&worker_id).is_some() {
                    self.log_commands.push_back(LogCommand::End(worker_id));
                }
            }
            Effect::FetchActor(actor_id) => {
                if self.parts.gcs_calls.try_send(GcsCall::FetchActor(actor_id)).is_err() {
                    warn!(%actor_id, "too many calls wait: the actor's state comes with its next change");
                }
            }
            Effect::FetchGroup(group_id) => self.ask_gcs(GcsCall::FetchGroup(group_id)),
            Effect::FetchNodes => self.ask_gcs(GcsCall::FetchNodes),
            Effect::AddJob { job, driver, pid } => {
                let node_id = self.parts.identity.node_id;
                self.report(GcsReport::add_job(job, driver, pid, node_id));
            }
            Effect::FinishJob(job_id, reason) => self.report(GcsReport::FinishJob { job_id, reason }),
            Effect::ReportActor { actor_id, num_restarts, outcome } => {
                let node_id = self.parts.identity.node_id;
                self.report(GcsReport::actor(actor_id, num_restarts, node_id, outcome));
            }
            Effect::RemoteLease(lease_id, outcome) => {
                for waiter in self.lease_waiters.remove(&lease_id).unwrap_or_default() {
                    reply(waiter, outcome.clone());
                }
            }
            Effect::StoreResult(task_id, data) => {
                let mut out = Vec::new();
                self.parts.store.put_result(now, task_id, data, &mut out);
                self.on_store_outputs(out);
            }
            Effect::OwnerLost(worker_id) => {
                let mut out = Vec::new();
                self.parts.store.on_owner_lost(now, worker_id, &mut out);
                self.on_store_outputs(out);
            }
            Effect::Shutdown(reason) => self.shut_down(now, reason),
        }
    }

    /// A question of the node's own. One that finds no place would keep those waiting who need the answer.
    fn ask_gcs(&mut self, call: GcsCall) {
        self.questions.push_back(call);
    }

    fn on_store_outputs(&mut self, outputs: Vec<StoreOutput>) {
        for output in outputs {
            match output {
                StoreOutput::Tell(client, answer) => self.send(client, &answer),
                StoreOutput::TellOwner(owner, news) => {
                    if let Some(client) = self.parts.machine.client_of(owner) {
                        self.send(client, &news);
                    }
                }
                StoreOutput::ResultLost(task_id, reason) => {
                    self.parts.machine.on_result_lost(task_id, reason)
                }
            }
        }
    }

    fn send(&mut self, client: ClientId, message: &FromRaylet) {
        let Some(peer) = self.peers.get_mut(&client) else { return };
        match message.queue(&mut peer.connection) {
            Ok(()) => drop(self.unflushed.insert(client)),
            Err(error) => error!(client = client.0, error = %error.chain(), "a message cannot be encoded"),
        }
    }

    fn welcome(&mut self, now: Instant, client: ClientId) {
        let Some(peer) = self.peers.get_mut(&client) else { return };
        let identity = &self.parts.identity;
        let message = FromRaylet::Registered {
            node_id: identity.node_id,
            gcs_address: identity.gcs_address.clone(),
            session_dir: identity.session_dir.clone(),
            store_capacity: identity.store_capacity,
        };
        if self.parts.machine.is_visitor(client) {
            self.send(client, &message);
            return;
        }
        let welcomed =
            ray_core::serialize::to_bytes(&message).map_err(|error| error.chain()).and_then(|bytes| {
                let write = |out: &mut Vec<u8>| out.extend_from_slice(&bytes);
                let memory = self.parts.store.descriptor();
                peer.connection.send_with_descriptor(LINK, memory, write).map_err(|error| error.to_string())
            });
        if let Err(error) = welcomed {
            warn!(client = client.0, %error, "cannot welcome a client");
            self.close(now, client);
        }
    }

    fn reject(&mut self, now: Instant, client: ClientId, reason: String) {
        warn!(client = client.0, %reason, "a client is refused");
        self.send(client, &FromRaylet::Rejected { reason });
        self.flush(client);
        self.close(now, client);
    }

    /// Returns whether the connection goes on.
    fn flush(&mut self, client: ClientId) -> bool {
        let Some(peer) = self.peers.get_mut(&client) else { return true };
        let interest = match peer.connection.flush() {
            Ok(true) => Interest::Read,
            Ok(false) if peer.connection.queued_bytes() > MAX_QUEUED_BYTES => {
                warn!(client = client.0, "a client does not read what it is told: it is cut off");
                return false;
            }
            Ok(false) => Interest::ReadWrite,
            Err(error) => {
                debug!(client = client.0, %error, "a client is gone");
                return false;
            }
        };
        if peer.interest != interest {
            peer.interest = interest;
            return self.poller.modify(&peer.connection, client.0, interest).is_ok();
        }
        true
    }

    fn close(&mut self, now: Instant, client: ClientId) {
        if self.peers.remove(&client).is_none() {
            return;
        }
        self.inspections.on_client_lost(client);
        if let Some(worker_id) = self.parts.machine.worker_of(client) {
            self.metrics.remove_tagged(WORKER_TAG, &worker_id.hex());
        }
        let mut out = Vec::new();
        self.parts.store.on_client_lost(now, client, &mut out);
        self.on_store_outputs(out);
        self.parts.machine.on_client_lost(now, client);
    }

    fn fork(&mut self, now: Instant, worker_id: WorkerId) {
        if self.ending.is_some() {
            return;
        }
        let (out, err) =
            (log_path(&self.parts.logs, worker_id, false), log_path(&self.parts.logs, worker_id, true));
        let environment = self.parts.machine.environment_of(worker_id);
        let order = ForkOrder {
            worker_id,
            socket: self.parts.listener.path(),
            stdout: &out,
            stderr: &err,
            env: &self.parts.worker_env,
            runtime_env: environment.as_ref().map_or("", |(env, _)| env.text()),
            context: environment.as_ref().map_or(&serde_json::Value::Null, |(_, made)| &made.context),
        };
        match environment.as_ref().filter(|(_, made)| !made.command.is_empty()) {
            Some((env, made)) => {
                let forked = self.envs.fork(env.id(), &made.command, order, &self.poller);
                self.on_env_server_lost(now, forked.err());
            }
            None => {
                if let Err(error) = self.parts.fork_server.fork(order) {
                    self.on_fork_server_lost(now, &error);
                }
            }
        }
    }

    fn watch_fork_server(&mut self) {
        let interest =
            if self.parts.fork_server.wants_write() { Interest::ReadWrite } else { Interest::Read };
        if self.fork_interest != Interest::None && self.fork_interest != interest {
            self.fork_interest = interest;
            if let Err(error) = self.poller.modify(&self.parts.fork_server, FORK_SERVER, interest) {
                error!(%error, "cannot wait for the fork server");
            }
        }
    }

    fn report(&mut self, report: GcsReport) {
        if self.reports.len() >= MAX_OUTBOX {
            error!(?report, "the control plane was away for too long: a report is lost");
            return;
        }
        self.reports.push_back(report);
    }

    /// Tells what is free when that has changed: in a moment, for who waits for a lease comes first, and
    /// not more often than the interval.
    fn publish_usage(&mut self, now: Instant) {
        if self.parts.machine.take_changed() && self.usage_due.is_none() {
            let earliest = self.usage_sent.map(|sent| sent + self.parts.report_interval);
            self.usage_due = Some(earliest.unwrap_or(now).max(now + USAGE_DELAY));
        }
        if self.usage_due.is_some_and(|due| due <= now) {
            self.usage_due = None;
            self.usage_sent = Some(now);
            self.usage_version += 1;
            self.parts.usage.send_replace(UsageReport::of(&self.parts.machine, self.usage_version));
        }
    }

    /// Begins to end the node: nobody new is taken, and all are told to go.
    fn shut_down(&mut self, now: Instant, reason: String) {
        if self.ending.is_some() {
            return;
        }
        info!(%reason, "the node ends");
        self.accepting = false;
        self.accept_again = None;
        let _ = self.poller.remove(&self.parts.listener);
        let _ = std::fs::remove_file(self.parts.listener.path());
        if let Some(owner) = &self.parts.owner {
            let _ = self.poller.remove(owner);
        }
        let clients: Vec<_> = self.peers.keys().copied().collect();
        for client in clients {
            self.send(client, &FromRaylet::Exit { reason: reason.clone() });
        }
        self.ending = Some(Ending { reason, deadline: now + self.parts.shutdown_grace });
    }

    /// Why the node has ended: everyone has gone, or the time to go is over.
    fn ended(&self, now: Instant) -> Option<String> {
        let ending = self.ending.as_ref()?;
        let everyone_gone = self.parts.machine.worker_pids().next().is_none();
        if !everyone_gone && now < ending.deadline {
            return None;
        }
        self.parts.machine.worker_pids().for_each(process_tree::kill);
        Some(ending.reason.clone())
    }
}

/// What a message is, without what it says.
fn name_of(message: &ToRaylet) -> String {
    let text = format!("{message:?}");
    text.split([' ', '{', '(']).next().unwrap_or_default().to_owned()
}

fn read_messages(connection: &mut Connection, messages: &mut Vec<ToRaylet>) -> RayResult<()> {
    let broken = |error| ray_link::message::connection_error("a client", error);
    while let Some(frame) = connection.next_frame().map_err(|error| broken(error.into()))? {
        messages.push(ToRaylet::read(frame)?);
    }
    Ok(())
}

/// Who asked may have stopped waiting.
fn reply<T>(answer: oneshot::Sender<T>, value: T) {
    drop(answer.send(value));
}

/// Sends from the front of `waiting` while the channel has room. A channel whose reader is gone takes
/// everything: the node ends.
fn hand_over<T>(waiting: &mut VecDeque<T>, channel: &mpsc::Sender<T>) {
    while !waiting.is_empty() {
        match channel.try_reserve() {
            Ok(place) => place.send(waiting.pop_front().expect("it is not empty")),
            Err(mpsc::error::TrySendError::Full(())) => return,
            Err(mpsc::error::TrySendError::Closed(())) => waiting.clear(),
        }
    }
}

fn status(machine: &NodeMachine) -> NodeStatus {
    let (workers, leases, queued) = machine.counts();
    NodeStatus {
        total: machine.resources().total().clone(),
        available: machine.resources().available(),
        workers,
        leases,
        queued,
    }
}
