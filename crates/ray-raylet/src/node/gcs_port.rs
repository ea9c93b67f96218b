//! The node's side of the control plane.
//!
//! Three streams, each with its own order and fate:
//! * *membership*: register, send heartbeats, follow events, report resources; begun anew
//!   whenever the control plane was away;
//! * *reports* about jobs and actors: in order, each repeated until it is taken;
//! * *calls* of clients, passed on as bytes: side by side, repeated while nobody answers, up to a limit.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message;
use ray_core::error::{RayError, RayResult};
use ray_core::id::{ActorId, JobId, NodeId, PlacementGroupId, WorkerId};
use ray_core::pb::gcs::gcs_service_client::GcsServiceClient;
use ray_core::pb::raylet::raylet_service_client::RayletServiceClient;
use ray_core::pb::{common, gcs, raylet};
use ray_core::wire;
use ray_gcs::transport::Transport;
use ray_link::message::{GcsMethod, JobDescription, LeasedWorker};
use ray_scheduler::Report;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};
use tracing::{debug, info, warn};

use super::bytes_codec::BytesCodec;
use super::effect::{ActorOutcome, ClientId};
use super::groups::{GroupNews, GroupState};
use super::handle::{Command, NodeHandle};
use super::hardware::hostname;
use super::machine::NodeMachine;
use super::pulls::NodeNews;
use super::store_port::StoreCommand;
use super::whereabouts::Neighbour;

/// Calls of clients that may be under way at once.
const MAX_CALLS: usize = 256;
/// How long a client's call is repeated while the control plane is away.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// How much longer than its processes a node is waited for.
const INSPECTION_GRACE: Duration = Duration::from_secs(1);
/// First and longest pause before something is tried again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// A call to be passed on.
#[derive(Debug)]
pub(crate) enum GcsCall {
    /// Of a client.
    Pass { client: ClientId, request: u64, method: GcsMethod, body: Bytes },
    /// Of the node itself: the state of an actor.
    FetchActor(ActorId),
    /// Of the node itself: the state of a placement group.
    FetchGroup(PlacementGroupId),
    /// Of the node itself: all nodes.
    FetchNodes,
}

/// Something that the control plane has to learn.
#[derive(Debug)]
pub(crate) enum GcsReport {
    /// A driver has come.
    AddJob { job_id: JobId, job: gcs::JobInfo },
    /// A job has ended.
    FinishJob { job_id: JobId, reason: String },
    /// What became of an actor.
    Actor(gcs::ReportActorRequest),
}

impl GcsReport {
    /// A driver of this node has come.
    pub(crate) fn add_job(job: JobDescription, driver: WorkerId, pid: u32, node_id: NodeId) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let info = gcs::JobInfo {
            job_id: job.job_id.to_binary(),
            entrypoint: job.entrypoint,
            namespace: job.namespace,
            driver_pid: pid,
            driver_worker_id: driver.to_binary(),
            node_id: node_id.to_binary(),
            start_time_ms: u64::try_from(now.as_millis()).unwrap_or_default(),
            end_time_ms: 0,
            end_reason: String::new(),
            metadata: job.metadata.into_iter().collect(),
        };
        Self::AddJob { job_id: job.job_id, job: info }
    }

    /// What became of an actor of this node.
    pub(crate) fn actor(
        actor_id: ActorId,
        num_restarts: u64,
        node_id: NodeId,
        outcome: ActorOutcome,
    ) -> Self {
        let outcome = match outcome {
            ActorOutcome::Alive(worker) => gcs::report_actor_request::Outcome::Alive(gcs::ActorAlive {
                pid: worker.pid,
                address: Some(address(worker)),
            }),
            ActorOutcome::Died(cause) => gcs::report_actor_request::Outcome::Died(cause),
        };
        Self::Actor(gcs::ReportActorRequest {
            actor_id: actor_id.to_binary(),
            num_restarts,
            node_id: node_id.to_binary(),
            outcome: Some(outcome),
        })
    }
}

/// A worker's address as it travels.
pub(crate) fn address(worker: LeasedWorker) -> common::WorkerAddress {
    common::WorkerAddress {
        worker_id: worker.worker_id.to_binary(),
        node_id: worker.node_id.to_binary(),
        socket_path: worker.socket_path,
        tcp_address: worker.tcp_address,
    }
}

impl UsageReport {
    /// What this machine has and waits for.
    pub(crate) fn of(machine: &NodeMachine, version: u64) -> Self {
        let demand = machine.demand().into_iter().map(|(shape, count, infeasible)| gcs::Demand {
            shape: Some((&shape).into()),
            count,
            infeasible,
        });
        Self {
            version,
            total: machine.resources().total().into(),
            available: (&machine.resources().available()).into(),
            demand: demand.collect(),
        }
    }
}

/// What is free and waited for.
#[derive(Debug, Clone, Default)]
pub(crate) struct UsageReport {
    /// 0: nothing is known yet.
    pub(crate) version: u64,
    pub(crate) total: common::Resources,
    pub(crate) available: common::Resources,
    pub(crate) demand: Vec<gcs::Demand>,
}

/// Connections to one control plane.
#[derive(Debug, Clone)]
pub(crate) struct GcsPort {
    client: GcsServiceClient<Transport>,
    transport: Transport,
    timeout: Duration,
    node: NodeHandle,
}

impl GcsPort {
    /// Talks to the control plane at `address` ("host:port"), connecting when there is something to say.
    ///
    /// # Errors
    /// If that is no address.
    pub(crate) fn connect(address: &str, timeout: Duration, node: NodeHandle) -> RayResult<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| RayError::InvalidArgument(format!("{address:?} is no address: {error}")))?;
        let channel = endpoint.connect_timeout(timeout).tcp_nodelay(true).connect_lazy();
        Ok(Self::over(Transport::Network(channel), timeout, node))
    }

    /// Talks to the control plane that this leads to.
    pub(crate) fn over(transport: Transport, timeout: Duration, node: NodeHandle) -> Self {
        let client = GcsServiceClient::new(transport.clone()).max_decoding_message_size(usize::MAX);
        Self { client, transport, timeout, node }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }

    /// Makes the node known, repeating until it is or `limit` has passed. Returns how often heartbeats
    /// are due.
    pub(crate) async fn register(&self, node: &gcs::NodeInfo, limit: Duration) -> RayResult<Duration> {
        let call = || async {
            let request = self.request(gcs::RegisterNodeRequest { node: Some(node.clone()) });
            self.client.clone().register_node(request).await
        };
        match repeat(limit, call).await {
            Ok(reply) => Ok(Duration::from_millis(reply.into_inner().heartbeat_interval_ms.max(1))),
            Err(status) if may_pass(&status) => {
                let peer = "the control plane".to_owned();
                Err(RayError::Unavailable { peer, cause: status.message().to_owned() })
            }
            Err(status) => Err(RayError::InvalidArgument(format!(
                "the control plane does not take this node: {}",
                status.message()
            ))),
        }
    }

    /// The folder of sockets of the cluster to join, asking until there is an answer or `limit` has passed; `None`
    /// if it has no node yet.
    ///
    /// # Errors
    /// If the control plane cannot be reached, or the other nodes are on another machine.
    pub(crate) async fn shared_sockets(&self, limit: Duration) -> RayResult<Option<PathBuf>> {
        let call = || async { self.client.clone().list_nodes(self.request(gcs::ListNodesRequest {})).await };
        let nodes = repeat(limit, call).await.map_err(|status| RayError::Unavailable {
            peer: "the control plane".to_owned(),
            cause: status.message().to_owned(),
        })?;
        let living = nodes
            .into_inner()
            .nodes
            .into_iter()
            .filter(|node| node.state() == gcs::node_info::State::Alive && !node.socket_path.is_empty());
        let Some(first) = living.min_by_key(|node| (!node.is_head, node.start_time_ms)) else {
            return Ok(None);
        };
        let socket = Path::new(&first.socket_path);
        match socket.parent().filter(|_| socket.exists()) {
            Some(folder) => Ok(Some(folder.to_owned())),
            None => Err(RayError::InvalidArgument(format!(
                "the cluster is on another machine: {} is not here ({}), where its node on {} listens; the nodes of \
                 a cluster have to be on one machine for now",
                first.socket_path,
                hostname(),
                first.hostname
            ))),
        }
    }

    /// Says that the node ends; tried once, for its silence says the same.
    pub(crate) async fn unregister(&self, node_id: NodeId, reason: &str, limit: Duration) {
        let message = gcs::UnregisterNodeRequest { node_id: node_id.to_binary(), reason: reason.to_owned() };
        let mut request = Request::new(message);
        request.set_timeout(limit);
        if let Err(status) = self.client.clone().unregister_node(request).await {
            debug!(error = status.message(), "cannot say goodbye to the control plane");
        }
    }

    /// Passes on calls until the other end of `calls` is gone.
    pub(crate) async fn run_calls(self, mut calls: mpsc::Receiver<GcsCall>) {
        let slots = Arc::new(Semaphore::new(MAX_CALLS));
        let mut under_way = JoinSet::new();
        while let Some(call) = calls.recv().await {
            while under_way.try_join_next().is_some() {}
            let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
            let port = self.clone();
            under_way.spawn(async move {
                port.run_call(call).await;
                drop(slot);
            });
        }
    }

    async fn run_call(&self, call: GcsCall) {
        let command = match call {
            GcsCall::Pass { client, request, method, body } => {
                let result = match method {
                    GcsMethod::InspectNode => inspect(body).await,
                    // Whoever tells of ended tasks counts what is not taken in at once.
                    GcsMethod::AddTaskEvents => self.pass(method, body).await,
                    _ => repeat(CALL_LIMIT, || self.pass(method, body.clone())).await,
                };
                let result = result.map_err(|status| (status.code() as i32, status.message().to_owned()));
                Command::GcsReply { client, request, result }
            }
            GcsCall::FetchActor(actor_id) => {
                let call = || async {
                    let request = self.request(gcs::GetActorRequest { actor_id: actor_id.to_binary() });
                    self.client.clone().get_actor(request).await
                };
                match repeat(CALL_LIMIT, call).await.map(|reply| reply.into_inner().actor) {
                    Ok(Some(actor)) => return self.on_actor(&actor).await,
                    // Subscribed before it was registered: its first event is still to come.
                    Ok(None) => return,
                    Err(status) if status.code() == Code::NotFound => return,
                    Err(status) => {
                        warn!(%actor_id, error = status.message(), "cannot learn the state of an actor");
                        return;
                    }
                }
            }
            GcsCall::FetchGroup(group_id) => {
                let call = || async {
                    let placement_group_id = group_id.to_binary();
                    let request = self.request(gcs::GetPlacementGroupRequest { placement_group_id });
                    self.client.clone().get_placement_group(request).await
                };
                // Those who wait for the answer wait for nothing else: it is asked for until it comes.
                match repeat(Duration::MAX, call).await.map(|reply| reply.into_inner().group) {
                    Ok(Some(group)) => return self.on_group(&group).await,
                    Ok(None) => Command::GroupUnknown(group_id),
                    Err(status) => {
                        debug!(%group_id, error = status.message(), "a placement group is not known");
                        Command::GroupUnknown(group_id)
                    }
                }
            }
            GcsCall::FetchNodes => {
                let call =
                    || async { self.client.clone().list_nodes(self.request(gcs::ListNodesRequest {})).await };
                match repeat(Duration::MAX, call).await {
                    Ok(reply) => Command::NodesListed(
                        reply.into_inner().nodes.into_iter().filter_map(neighbour).collect(),
                    ),
                    Err(status) => {
                        warn!(error = status.message(), "cannot learn which nodes there are");
                        Command::NodesListed(Vec::new())
                    }
                }
            }
        };
        drop(self.node.send(command).await);
    }

    async fn pass(&self, method: GcsMethod, body: Bytes) -> Result<Bytes, Status> {
        let mut client =
            tonic::client::Grpc::new(self.transport.clone()).max_decoding_message_size(usize::MAX);
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(path_of(method));
        Ok(client.unary(self.request(body), path, BytesCodec).await?.into_inner())
    }

    /// Delivers reports in order until the other end of `reports` is gone.
    pub(crate) async fn run_reports(self, mut reports: mpsc::Receiver<GcsReport>) {
        while let Some(report) = reports.recv().await {
            self.deliver(report).await;
        }
    }

    async fn deliver(&self, report: GcsReport) {
        let client = || self.client.clone();
        match report {
            GcsReport::AddJob { job_id, job } => {
                let call = || async {
                    client().add_job(self.request(gcs::AddJobRequest { job: Some(job.clone()) })).await
                };
                let result = repeat(CALL_LIMIT, call).await;
                let result = result.map(drop).map_err(|status| status.message().to_owned());
                drop(self.node.send(Command::JobAdded { job_id, result }).await);
            }
            GcsReport::FinishJob { job_id, reason } => {
                let request = gcs::FinishJobRequest { job_id: job_id.to_binary(), reason };
                let call = || async { client().finish_job(self.request(request.clone())).await };
                log_refusal("the end of a job", repeat(Duration::MAX, call).await);
            }
            GcsReport::Actor(request) => {
                let call = || async { client().report_actor(self.request(request.clone())).await };
                log_refusal("the state of an actor", repeat(Duration::MAX, call).await);
            }
        }
    }

    /// Is a member of the cluster for as long as it is polled, after a first [`Self::register`].
    pub(crate) async fn run_membership(
        self,
        node: gcs::NodeInfo,
        mut heartbeat_every: Duration,
        usage: watch::Receiver<UsageReport>,
    ) {
        let mut pause = PAUSES.0;
        loop {
            let start = Instant::now();
            let end = self.follow(&node, heartbeat_every, usage.clone()).await;
            info!(reason = end.message(), "the control plane is away: joining again");
            if start.elapsed() > PAUSES.1 {
                pause = PAUSES.0;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
            match self.register(&node, Duration::MAX).await {
                Ok(every) => heartbeat_every = every,
                Err(error) => {
                    drop(self.node.send(Command::Shutdown(error.to_string())).await);
                    return;
                }
            }
        }
    }

    /// Heartbeats, events and usage until one of them fails.
    async fn follow(
        &self,
        node: &gcs::NodeInfo,
        heartbeat_every: Duration,
        usage: watch::Receiver<UsageReport>,
    ) -> Status {
        tokio::select! {
            end = self.follow_events(&node.node_id) => end,
            end = self.send_heartbeats(&node.node_id, heartbeat_every) => end,
            end = self.report_usage(&node.node_id, usage) => end,
        }
    }

    async fn send_heartbeats(&self, node_id: &[u8], every: Duration) -> Status {
        let mut ticker = tokio::time::interval(every);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for sequence in 1.. {
            ticker.tick().await;
            let message = gcs::HeartbeatRequest { node_id: node_id.to_vec(), sequence };
            match self.client.clone().heartbeat(self.request(message)).await {
                Ok(reply) if reply.get_ref().known => {}
                Ok(_) => return Status::unavailable("it does not know this node"),
                Err(status) => return status,
            }
        }
        Status::internal("heartbeats cannot be counted any more")
    }

    async fn report_usage(&self, node_id: &[u8], mut usage: watch::Receiver<UsageReport>) -> Status {
        // A control plane that was away has forgotten what was reported before.
        usage.mark_changed();
        while usage.changed().await.is_ok() {
            let report = usage.borrow_and_update().clone();
            if report.version == 0 {
                continue;
            }
            let usage = gcs::NodeUsage {
                node_id: node_id.to_vec(),
                total: Some(report.total),
                available: Some(report.available),
                version: report.version,
                demand: report.demand,
            };
            let request = self.request(gcs::ReportResourcesRequest { usage: Some(usage) });
            if let Err(status) = self.client.clone().report_resources(request).await {
                return status;
            }
        }
        // The node ends, and this with it.
        std::future::pending().await
    }

    async fn follow_events(&self, node_id: &[u8]) -> Status {
        let request = gcs::SubscribeRequest { node_id: node_id.to_vec() };
        let mut events = match self.client.clone().subscribe(Request::new(request)).await {
            Ok(events) => events.into_inner(),
            Err(status) => return status,
        };
        loop {
            match events.message().await {
                Ok(Some(event)) => self.on_event(node_id, event).await,
                Ok(None) => return Status::unavailable("the stream of events has ended"),
                Err(status) => return status,
            }
        }
    }

    async fn on_event(&self, own: &[u8], event: gcs::Event) {
        match event.event {
            Some(gcs::event::Event::Snapshot(snapshot)) => {
                for node in &snapshot.nodes {
                    self.on_node(own, node).await;
                }
                for actor in &snapshot.actors {
                    self.on_actor(actor).await;
                }
                for group in &snapshot.placement_groups {
                    self.on_group(group).await;
                }
                for usage in snapshot.usages {
                    self.on_usage(usage).await;
                }
                let group_id = |group: &common::PlacementGroupInfo| {
                    wire::id("placement_group_id", &group.spec.as_ref()?.placement_group_id).ok()
                };
                let listed = snapshot.placement_groups.iter().filter_map(group_id).collect();
                drop(self.node.send(Command::GroupsListed(listed)).await);
                for job in &snapshot.jobs {
                    self.on_job(job).await;
                }
            }
            Some(gcs::event::Event::Node(node)) => self.on_node(own, &node).await,
            Some(gcs::event::Event::Actor(actor)) => self.on_actor(&actor).await,
            Some(gcs::event::Event::PlacementGroup(group)) => self.on_group(&group).await,
            Some(gcs::event::Event::Job(job)) => self.on_job(&job).await,
            Some(gcs::event::Event::Usage(usage)) => self.on_usage(usage).await,
            None => {}
        }
    }

    async fn on_node(&self, own: &[u8], node: &gcs::NodeInfo) {
        if node.node_id == own && node.state() == gcs::node_info::State::Dead {
            let reason = format!("the control plane holds this node for dead: {}", node.death_reason);
            drop(self.node.send(Command::Shutdown(reason)).await);
        }
        if let Ok(node_id) = wire::id("node_id", &node.node_id) {
            let news = match node.state() {
                gcs::node_info::State::Alive => NodeNews::Alive(node.raylet_address.clone()),
                _ => NodeNews::Dead(node.death_reason.clone()),
            };
            drop(self.node.send(Command::Store(StoreCommand::Node(node_id, news))).await);
        }
        if let Some(node) = neighbour(node.clone()) {
            drop(self.node.send(Command::Neighbour(node)).await);
        }
    }

    async fn on_usage(&self, usage: gcs::NodeUsage) {
        let node_id = wire::id("node_id", &usage.node_id);
        let (total, available) = (usage.total.unwrap_or_default(), usage.available.unwrap_or_default());
        match (node_id, total.try_into(), available.try_into()) {
            (Ok(node_id), Ok(total), Ok(available)) => {
                let report = Report { version: usage.version, total, available };
                drop(self.node.send(Command::Usage { node_id, report }).await);
            }
            (Err(error), _, _) | (_, Err(error), _) | (_, _, Err(error)) => {
                warn!(%error, "what is said of a node's resources makes no sense");
            }
        }
    }

    async fn on_group(&self, group: &common::PlacementGroupInfo) {
        match group_news(group) {
            Ok(news) => drop(self.node.send(Command::GroupNews(news)).await),
            Err(error) => warn!(%error, "an event about a placement group makes no sense"),
        }
    }

    async fn on_actor(&self, actor: &common::ActorInfo) {
        match wire::id("actor_id", &actor.actor_id) {
            Ok(actor_id) => {
                let info = Bytes::from(actor.encode_to_vec());
                let command = Command::ActorState { actor_id, version: actor.version, info };
                drop(self.node.send(command).await);
            }
            Err(error) => warn!(%error, "an event about an actor makes no sense"),
        }
    }

    async fn on_job(&self, job: &gcs::JobInfo) {
        if job.end_time_ms == 0 {
            return;
        }
        match wire::id("job_id", &job.job_id) {
            Ok(job_id) => drop(self.node.send(Command::JobFinished(job_id)).await),
            Err(error) => warn!(%error, "an event about a job makes no sense"),
        }
    }
}

fn neighbour(node: gcs::NodeInfo) -> Option<Neighbour> {
    let is_alive = node.state() == gcs::node_info::State::Alive;
    let node_id = wire::id("node_id", &node.node_id);
    let total = node.total.unwrap_or_default().try_into();
    match (node_id, total) {
        (Ok(node_id), Ok(total)) => {
            let (labels, death_reason) = (node.labels.into_iter().collect(), node.death_reason);
            Some(Neighbour { node_id, is_alive, total, labels, death_reason })
        }
        (Err(error), _) | (_, Err(error)) => {
            warn!(%error, "what is said of a node makes no sense");
            None
        }
    }
}

fn group_news(group: &common::PlacementGroupInfo) -> Result<GroupNews, wire::WireError> {
    use common::placement_group_info::State;
    let spec = wire::required("spec", group.spec.as_ref())?;
    let state = match group.state() {
        State::Created => GroupState::Created,
        State::Removed => GroupState::Removed(group.removed_reason.clone()),
        State::Pending | State::Prepared | State::Rescheduling | State::Unspecified => {
            GroupState::Pending(group.pending_reason.clone())
        }
    };
    let node = |bytes: &Vec<u8>| {
        if bytes.is_empty() { Ok(None) } else { wire::id("bundle_nodes", bytes).map(Some) }
    };
    Ok(GroupNews {
        group_id: wire::id("placement_group_id", &spec.placement_group_id)?,
        version: group.version,
        state,
        nodes: group.bundle_nodes.iter().map(node).collect::<Result<_, _>>()?,
        bundles: spec
            .bundles
            .iter()
            .map(|bundle| bundle.resources.clone().unwrap_or_default().try_into())
            .collect::<Result<_, _>>()?,
        info: Bytes::from(group.encode_to_vec()),
    })
}

fn log_refusal<T>(what: &str, result: Result<T, Status>) {
    if let Err(status) = result {
        warn!(error = %status, "the control plane does not take {what}");
    }
}

/// Whether the same call may succeed later.
fn may_pass(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted)
        // A connection that breaks amid a call is told as this.
        || (status.code() == Code::Unknown && status.message().contains("transport"))
        || status.code() == Code::Cancelled
}

/// Calls until the answer is no passing failure or `limit` has passed.
async fn repeat<T, F>(limit: Duration, mut call: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    let start = Instant::now();
    let mut pause = PAUSES.0;
    loop {
        match call().await {
            Err(status) if may_pass(&status) && start.elapsed() + pause < limit => {
                debug!(error = %status, "trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
            other => return other,
        }
    }
}

/// Passes a question on to the node that it names, which may be this one.
async fn inspect(body: Bytes) -> Result<Bytes, Status> {
    let invalid = |error: &dyn std::fmt::Display| Status::invalid_argument(error.to_string());
    let request = raylet::InspectRequest::decode(body).map_err(|error| invalid(&error))?;
    let limit = Duration::from_millis(request.timeout_ms) + INSPECTION_GRACE;
    let endpoint =
        Endpoint::from_shared(format!("http://{}", request.address)).map_err(|error| invalid(&error))?;
    let endpoint = endpoint.connect_timeout(limit).tcp_nodelay(true);
    let connected = endpoint.connect().await;
    let channel = connected.map_err(|error| Status::unavailable(ray_gcs::client::cause(&error)))?;
    let mut client = RayletServiceClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut request = Request::new(request);
    request.set_timeout(limit);
    let reply = client.inspect(request).await?.into_inner();
    Ok(reply.encode_to_vec().into())
}

const fn path_of(method: GcsMethod) -> &'static str {
    match method {
        GcsMethod::ListNodes => "/ray.gcs.GcsService/ListNodes",
        GcsMethod::RegisterActor => "/ray.gcs.GcsService/RegisterActor",
        GcsMethod::GetActor => "/ray.gcs.GcsService/GetActor",
        GcsMethod::GetNamedActor => "/ray.gcs.GcsService/GetNamedActor",
        GcsMethod::ListActors => "/ray.gcs.GcsService/ListActors",
        GcsMethod::KillActor => "/ray.gcs.GcsService/KillActor",
        GcsMethod::CreatePlacementGroup => "/ray.gcs.GcsService/CreatePlacementGroup",
        GcsMethod::RemovePlacementGroup => "/ray.gcs.GcsService/RemovePlacementGroup",
        GcsMethod::GetPlacementGroup => "/ray.gcs.GcsService/GetPlacementGroup",
        GcsMethod::GetNamedPlacementGroup => "/ray.gcs.GcsService/GetNamedPlacementGroup",
        GcsMethod::ListPlacementGroups => "/ray.gcs.GcsService/ListPlacementGroups",
        GcsMethod::ListJobs => "/ray.gcs.GcsService/ListJobs",
        GcsMethod::GetClusterResources => "/ray.gcs.GcsService/GetClusterResources",
        GcsMethod::KvPut => "/ray.gcs.GcsService/KvPut",
        GcsMethod::KvGet => "/ray.gcs.GcsService/KvGet",
        GcsMethod::KvDel => "/ray.gcs.GcsService/KvDel",
        GcsMethod::KvKeys => "/ray.gcs.GcsService/KvKeys",
        GcsMethod::AddTaskEvents => "/ray.gcs.GcsService/AddTaskEvents",
        GcsMethod::ListTaskEvents => "/ray.gcs.GcsService/ListTaskEvents",
        GcsMethod::InspectNode => "/ray.raylet.RayletService/Inspect",
    }
}
