//! How a node asks the control plane.
//!
//! A [`GcsClient`] outlives the control plane that it talks to: each call is repeated, with growing waits, while the
//! control plane cannot be reached, until the call's time is over. This is safe because every call may
//! be repeated. [`GcsClient::subscribe`] gives one endless row of events over as many connections as
//! it takes; each begins with a snapshot.

use std::time::Duration;

use ray_core::error::{RayError, RayResult};
use ray_core::id::{ActorId, JobId, NodeId};
use ray_core::pb::gcs::gcs_service_client::GcsServiceClient;
use ray_core::pb::gcs::report_actor_request::Outcome;
use ray_core::pb::{common, gcs};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::{debug, info};

use crate::backoff::Backoff;

/// Waits between two attempts.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// Time between two signs of life on an idle connection: a subscription whose control plane is gone
/// without a word notices it after about this long.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Events that may wait for whoever follows a subscription. If more do, the stream is not read, until the control
/// plane cuts it off; then it begins anew with a snapshot.
const SUBSCRIPTION_QUEUE: usize = 1024;

/// How a [`GcsClient`] behaves.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Time for one attempt of a call. Default 5 s.
    pub attempt_timeout: Duration,
    /// Time for a call with all its attempts. Default 30 s: long enough for a control plane to be
    /// started anew.
    pub call_timeout: Duration,
    /// Largest message in bytes. Default 256 MiB, as the control plane's.
    pub max_message_bytes: usize,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            attempt_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(30),
            max_message_bytes: 256 << 20,
        }
    }
}

/// Asks the control plane at one address; cheap to clone, and clones share a connection.
#[derive(Debug, Clone)]
pub struct GcsClient {
    client: Service,
    address: String,
    config: ClientConfig,
}

type Service = GcsServiceClient<Channel>;

/// One row of calls, each to the method of this name.
macro_rules! calls {
    ($($(#[$meta:meta])* $name:ident($request:ty) -> $reply:ty;)*) => {$(
        $(#[$meta])*
        ///
        /// # Errors
        /// What the control plane answers; `Unavailable` or `GetTimeout` if it cannot be reached in time.
        pub async fn $name(&self, request: $request) -> RayResult<$reply> {
            let send = |mut client: Service, request| async move { client.$name(request).await };
            self.call(stringify!($name), request, send).await.map_err(|status| self.error(None, status))
        }
    )*};
}

impl GcsClient {
    /// Connects to the control plane at this address ("host:port"); tries until `config.call_timeout` is over.
    ///
    /// # Errors
    /// `InvalidArgument` if this is no address, `Unavailable` if nobody listens there in time.
    pub async fn connect(address: &str, config: ClientConfig) -> RayResult<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| RayError::InvalidArgument(format!("{address:?} is no address: {error}")))?
            .tcp_nodelay(true)
            .connect_timeout(config.attempt_timeout)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        let deadline = Instant::now() + config.call_timeout;
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let error = match endpoint.connect().await {
                Ok(channel) => return Ok(Self::on_channel(channel, address, config)),
                Err(error) => error,
            };
            let wait = backoff.next_wait();
            if Instant::now() + wait >= deadline {
                return Err(unreachable(address, cause(&error)));
            }
            tokio::time::sleep(wait).await;
        }
    }

    fn on_channel(channel: Channel, address: &str, config: ClientConfig) -> Self {
        let client = GcsServiceClient::new(channel)
            .max_decoding_message_size(config.max_message_bytes)
            .max_encoding_message_size(config.max_message_bytes);
        Self { client, address: address.to_owned(), config }
    }

    /// The control plane's address.
    pub fn address(&self) -> &str {
        &self.address
    }

    calls! {
        /// Takes a node out that leaves in order.
        unregister_node(gcs::UnregisterNodeRequest) -> gcs::UnregisterNodeReply;
        /// All nodes.
        list_nodes(gcs::ListNodesRequest) -> gcs::ListNodesReply;
        /// Takes an actor in.
        register_actor(gcs::RegisterActorRequest) -> gcs::RegisterActorReply;
        /// The actor with this id.
        get_actor(gcs::GetActorRequest) -> gcs::GetActorReply;
        /// The living actor with this name.
        get_named_actor(gcs::GetNamedActorRequest) -> gcs::GetActorReply;
        /// All actors.
        list_actors(gcs::ListActorsRequest) -> gcs::ListActorsReply;
        /// Ends an actor.
        kill_actor(gcs::KillActorRequest) -> gcs::KillActorReply;
        /// Takes a placement group in.
        create_placement_group(gcs::CreatePlacementGroupRequest) -> gcs::PlacementGroupReply;
        /// Removes a placement group.
        remove_placement_group(gcs::RemovePlacementGroupRequest) -> gcs::RemovePlacementGroupReply;
        /// The placement group with this id.
        get_placement_group(gcs::GetPlacementGroupRequest) -> gcs::PlacementGroupReply;
        /// The placement group with this name.
        get_named_placement_group(gcs::GetNamedPlacementGroupRequest) -> gcs::PlacementGroupReply;
        /// All placement groups.
        list_placement_groups(gcs::ListPlacementGroupsRequest) -> gcs::ListPlacementGroupsReply;
        /// Takes a job in.
        add_job(gcs::AddJobRequest) -> gcs::AddJobReply;
        /// Ends a job.
        finish_job(gcs::FinishJobRequest) -> gcs::FinishJobReply;
        /// All jobs.
        list_jobs(gcs::ListJobsRequest) -> gcs::ListJobsReply;
        /// What all living nodes have and what of it is free.
        get_cluster_resources(gcs::GetClusterResourcesRequest) -> gcs::GetClusterResourcesReply;
        /// Sets a value.
        kv_put(gcs::KvPutRequest) -> gcs::KvPutReply;
        /// Values by key.
        kv_get(gcs::KvGetRequest) -> gcs::KvGetReply;
        /// Removes a key or all keys that begin with it.
        kv_del(gcs::KvDelRequest) -> gcs::KvDelReply;
        /// The keys that begin with a prefix.
        kv_keys(gcs::KvKeysRequest) -> gcs::KvKeysReply;
    }

    /// Takes a node in; returns the time between two heartbeats that it has to send. A node that reconnects
    /// registers again, and then reports its resources and its living actors.
    ///
    /// # Errors
    /// `NodeDied`: the node was declared dead and has to come back under a new id.
    pub async fn register_node(&self, node: gcs::NodeInfo) -> RayResult<Duration> {
        let node_id = NodeId::from_binary(&node.node_id)?;
        let request = gcs::RegisterNodeRequest { node: Some(node) };
        let send = |mut client: Service, request| async move { client.register_node(request).await };
        let reply = self.call("register_node", request, send).await;
        let reply = reply.map_err(|status| self.error(Some(node_id), status))?;
        Ok(Duration::from_millis(reply.heartbeat_interval_ms))
    }

    /// Gives a sign of life; returns whether the control plane knows the node and holds it for alive. Tried once: the next
    /// heartbeat is the repetition.
    ///
    /// # Errors
    /// If the control plane cannot be reached.
    pub async fn heartbeat(&self, node_id: NodeId, sequence: u64) -> RayResult<bool> {
        let request = gcs::HeartbeatRequest { node_id: node_id.to_binary(), sequence };
        let reply = self
            .once(request, |mut client: Service, request| async move { client.heartbeat(request).await })
            .await;
        reply.map(|reply| reply.known).map_err(|status| self.error(None, status))
    }

    /// Reports what a node has free. Tried once: the next report is the repetition.
    ///
    /// # Errors
    /// If the control plane cannot be reached, or does not know the node or holds it for dead.
    pub async fn report_resources(&self, usage: gcs::NodeUsage) -> RayResult<()> {
        let node_id = NodeId::from_binary(&usage.node_id)?;
        let request = gcs::ReportResourcesRequest { usage: Some(usage) };
        let reply =
            self.once(request, |mut client: Service, request| async move {
                client.report_resources(request).await
            })
            .await;
        reply.map(drop).map_err(|status| self.error(Some(node_id), status))
    }

    /// Reports that an incarnation takes calls.
    ///
    /// # Errors
    /// `NodeDied` or `NotFound`: the node was declared dead or forgotten and has to end what it runs.
    pub async fn report_actor_alive(
        &self,
        actor_id: ActorId,
        num_restarts: u64,
        address: common::WorkerAddress,
        pid: u32,
    ) -> RayResult<()> {
        let node_id = NodeId::from_binary(&address.node_id)?;
        let outcome = Outcome::Alive(gcs::ActorAlive { address: Some(address), pid });
        self.report_actor(node_id, actor_id, num_restarts, outcome).await
    }

    /// Reports that an incarnation is gone.
    ///
    /// # Errors
    /// `NodeDied` or `NotFound`: the node was declared dead or forgotten and has to end what it runs.
    pub async fn report_actor_died(
        &self,
        node_id: NodeId,
        actor_id: ActorId,
        num_restarts: u64,
        cause: common::DeathCause,
    ) -> RayResult<()> {
        self.report_actor(node_id, actor_id, num_restarts, Outcome::Died(cause)).await
    }

    async fn report_actor(
        &self,
        node_id: NodeId,
        actor_id: ActorId,
        num_restarts: u64,
        outcome: Outcome,
    ) -> RayResult<()> {
        let request = gcs::ReportActorRequest {
            actor_id: actor_id.to_binary(),
            num_restarts,
            node_id: node_id.to_binary(),
            outcome: Some(outcome),
        };
        let send = |mut client: Service, request| async move { client.report_actor(request).await };
        let reply = self.call("report_actor", request, send).await;
        reply.map(drop).map_err(|status| self.error(Some(node_id), status))
    }

    /// Ends a job.
    ///
    /// # Errors
    /// As any call.
    pub async fn end_job(&self, job_id: JobId, reason: &str) -> RayResult<()> {
        let request = gcs::FinishJobRequest { job_id: job_id.to_binary(), reason: reason.to_owned() };
        self.finish_job(request).await.map(drop)
    }

    /// All events for this node (`None`: for an observer). To be called inside a tokio runtime.
    pub fn subscribe(&self, node_id: Option<NodeId>) -> Subscription {
        let node_id = node_id.map(Into::into).unwrap_or_default();
        Subscription::start(self.clone(), node_id)
    }

    async fn call<Q: Clone, A, F: Future<Output = Result<Response<A>, Status>>>(
        &self,
        method: &'static str,
        request: Q,
        send: impl Fn(Service, Request<Q>) -> F,
    ) -> Result<A, Status> {
        let deadline = Instant::now() + self.config.call_timeout;
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let status = match self.once(request.clone(), &send).await {
                Ok(reply) => return Ok(reply),
                Err(status) => status,
            };
            let wait = backoff.next_wait();
            if !may_pass(&status) || Instant::now() + wait >= deadline {
                return Err(status);
            }
            debug!(method, %status, "a call to the control plane is repeated");
            tokio::time::sleep(wait).await;
        }
    }

    async fn once<Q, A, F: Future<Output = Result<Response<A>, Status>>>(
        &self,
        message: Q,
        send: impl Fn(Service, Request<Q>) -> F,
    ) -> Result<A, Status> {
        let mut request = Request::new(message);
        request.set_timeout(self.config.attempt_timeout);
        match tokio::time::timeout(self.config.attempt_timeout, send(self.client.clone(), request)).await {
            Ok(reply) => reply.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("no answer in time")),
        }
    }

    /// The error for the caller; `about`: the node that the call was about.
    fn error(&self, about: Option<NodeId>, status: Status) -> RayError {
        let text = status.message().to_owned();
        let peer = || format!("the control plane at {}", self.address);
        match (status.code(), about) {
            (Code::FailedPrecondition, Some(node_id)) => RayError::NodeDied { node_id, cause: text },
            (Code::NotFound, _) => RayError::NotFound { what: text },
            (Code::AlreadyExists, _) => RayError::AlreadyExists { what: text },
            (Code::InvalidArgument, _) => RayError::InvalidArgument(text),
            (Code::DeadlineExceeded, _) => RayError::GetTimeout {
                what: format!("the answer of {}", peer()),
                waited: self.config.attempt_timeout,
            },
            (code, _) if may_pass(&status) => unreachable(&self.address, format!("{code:?}: {text}")),
            (code, _) => RayError::Protocol { peer: peer(), reason: format!("{code:?}: {text}") },
        }
    }
}

/// An endless row of events. Whenever the connection breaks, or the subscriber was cut off because it
/// fell behind, it subscribes again, and the next event is a new snapshot. Dropping it ends it.
#[derive(Debug)]
pub struct Subscription {
    events: mpsc::Receiver<gcs::event::Event>,
    task: JoinHandle<()>,
}

impl Subscription {
    fn start(client: GcsClient, node_id: Vec<u8>) -> Self {
        let (sender, events) = mpsc::channel(SUBSCRIPTION_QUEUE);
        // A task of its own, so that whoever waits in a `select!` does not interrupt a reconnect.
        let task = tokio::spawn(follow(client, node_id, sender));
        Self { events, task }
    }

    /// The next event; waits for the control plane to come back if it has to. `None` only if the
    /// runtime shuts down. Cancel safe.
    pub async fn next(&mut self) -> Option<gcs::event::Event> {
        self.events.recv().await
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Subscribes again and again, until nobody takes the events any more.
async fn follow(client: GcsClient, node_id: Vec<u8>, events: mpsc::Sender<gcs::event::Event>) {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    loop {
        let request = gcs::SubscribeRequest { node_id: node_id.clone() };
        let mut service = client.client.clone();
        // No deadline in the request: it would end the stream, too.
        let attempt = tokio::time::timeout(client.config.attempt_timeout, service.subscribe(request)).await;
        let why = match attempt {
            Ok(Ok(stream)) => match pass_on(stream.into_inner(), &events, &mut backoff).await {
                Some(why) => why,
                None => return,
            },
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("no answer in time"),
        };
        info!(
            address = client.address,
            why = why.message(),
            "the subscription to the control plane is renewed"
        );
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// Returns why the stream ended; `None` if nobody takes the events any more.
async fn pass_on(
    mut stream: Streaming<gcs::Event>,
    events: &mpsc::Sender<gcs::event::Event>,
    backoff: &mut Backoff,
) -> Option<Status> {
    loop {
        match stream.message().await {
            Ok(Some(gcs::Event { event: Some(event) })) => {
                backoff.reset();
                events.send(event).await.ok()?;
            }
            // An event of a later release that this one does not know.
            Ok(Some(gcs::Event { event: None })) => {}
            Ok(None) => return Some(Status::unavailable("the stream ended")),
            Err(status) => return Some(status),
        }
    }
}

/// Whether the same call may succeed later.
fn may_pass(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Cancelled
            | Code::Unknown
            | Code::Internal
            | Code::Aborted
    )
}

fn unreachable(address: &str, cause: String) -> RayError {
    RayError::Unavailable { peer: format!("the control plane at {address}"), cause }
}

/// The innermost cause, which says more than "transport error".
pub fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Callers spawn calls; a future that is not `Send` would not even compile there.
    #[test]
    fn calls_can_be_spawned() {
        fn assert_send<F: Send>(_: impl FnOnce(GcsClient) -> F) {}
        assert_send(|client| async move { client.list_nodes(gcs::ListNodesRequest {}).await.map(drop) });
        assert_send(|client| async move { client.register_node(gcs::NodeInfo::default()).await.map(drop) });
        assert_send(|client| async move { client.heartbeat(NodeId::nil(), 1).await.map(drop) });
        assert_send(|client| async move { client.report_resources(gcs::NodeUsage::default()).await });
        let actor_id = ActorId::nil();
        let (address, cause) = (common::WorkerAddress::default(), common::DeathCause::default());
        assert_send(|client| async move { client.report_actor_alive(actor_id, 0, address, 1).await });
        assert_send(
            |client| async move { client.report_actor_died(NodeId::nil(), actor_id, 0, cause).await },
        );
    }
}
