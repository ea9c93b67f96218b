//! Gives nodes their orders.
//!
//! Each living node has a task that calls its `RayletService`, one order after the other: an order to
//! kill must not overtake the one to create. A call that does not get through is repeated until it does
//! or the node is declared dead; nodes take the same order any number of times. The answer goes back to the tables.
//!
//! A full queue loses nothing, because the tables know which orders are not acknowledged: the task is told, and asks
//! for them once it has emptied the queue.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ray_core::config::GcsConfig;
use ray_core::id::NodeId;
use ray_core::pb;
use ray_core::pb::raylet::raylet_service_client::RayletServiceClient;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};
use tracing::{debug, error, warn};

use crate::actor_table::NodeOrder;
use crate::backoff::Backoff;
use crate::control_plane::{OrderAnswer, OrderKey};
use crate::effects::LinkChange;
use crate::error::ServiceError;
use crate::placement_group::BundleOrder;
use crate::service::GcsHandle;
use crate::transport::{LocalNode, Transport};

/// Waits between two attempts of a call.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// The links to all living nodes.
pub(crate) struct RayletLinks {
    links: HashMap<NodeId, Link>,
    tasks: JoinSet<()>,
    handle: GcsHandle,
    rpc_timeout: Duration,
    max_order_queue: usize,
    max_message_bytes: usize,
    local: Option<LocalNode>,
}

struct Link {
    address: String,
    orders: mpsc::Sender<NodeOrder>,
    missed: Arc<Notify>,
    closed: CancellationToken,
}

impl RayletLinks {
    pub(crate) fn new(handle: GcsHandle, config: &GcsConfig, local: Option<LocalNode>) -> Self {
        Self {
            links: HashMap::new(),
            tasks: JoinSet::new(),
            handle,
            rpc_timeout: Duration::from_millis(config.rpc_timeout_ms),
            max_order_queue: config.max_order_queue,
            max_message_bytes: config.max_message_bytes,
            local,
        }
    }

    /// Opens or closes a link.
    pub(crate) fn apply(&mut self, change: LinkChange) {
        // Tasks of closed links are over soon; take their results while there are some.
        while self.tasks.try_join_next().is_some() {}
        match change {
            LinkChange::Open(node_id, address) => self.open(node_id, address),
            LinkChange::Close(node_id) => {
                if let Some(link) = self.links.remove(&node_id) {
                    link.closed.cancel();
                }
            }
        }
    }

    /// Queues an order; without a link to its node it is pointless.
    pub(crate) fn send(&self, node_id: NodeId, order: NodeOrder) {
        let Some(link) = self.links.get(&node_id) else { return };
        match link.orders.try_send(order) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                warn!(%node_id, "a node falls behind with its orders");
                link.missed.notify_one();
            }
            Err(TrySendError::Closed(_)) => debug!(%node_id, "the link is closed"),
        }
    }

    /// Closes all links and waits for their tasks.
    pub(crate) async fn shutdown(&mut self) {
        for (_, link) in self.links.drain() {
            link.closed.cancel();
        }
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                error!(%error, "the link to a node failed");
            }
        }
    }

    fn open(&mut self, node_id: NodeId, address: String) {
        let replaced = match self.links.get(&node_id) {
            Some(link) if link.address == address => return,
            Some(link) => {
                link.closed.cancel();
                true
            }
            None => false,
        };
        let Some(client) = self.client(node_id, &address) else { return };
        let (orders, queue) = mpsc::channel(self.max_order_queue);
        let missed = Arc::new(Notify::new());
        if replaced {
            missed.notify_one();
        }
        let closed = CancellationToken::new();
        let task = LinkTask {
            node_id,
            client,
            queue,
            missed: Arc::clone(&missed),
            closed: closed.clone(),
            handle: self.handle.clone(),
            rpc_timeout: self.rpc_timeout,
        };
        self.tasks.spawn(task.run());
        self.links.insert(node_id, Link { address, orders, missed, closed });
    }

    fn client(&self, node_id: NodeId, address: &str) -> Option<RayletServiceClient<Transport>> {
        if let Some(local) = self.local.as_ref().filter(|local| local.address == address) {
            return Some(RayletServiceClient::new(Transport::Here(local.services.clone())));
        }
        match Endpoint::from_shared(format!("http://{address}")) {
            Ok(endpoint) => {
                let endpoint = endpoint.tcp_nodelay(true).connect_timeout(self.rpc_timeout);
                let client = RayletServiceClient::new(Transport::Network(endpoint.connect_lazy()));
                Some(client.max_encoding_message_size(self.max_message_bytes))
            }
            Err(error) => {
                // Its heartbeats keep it alive, but nothing can be ordered there.
                error!(%node_id, address, %error, "a node registered with an address that is none");
                None
            }
        }
    }
}

struct LinkTask {
    node_id: NodeId,
    client: RayletServiceClient<Transport>,
    queue: mpsc::Receiver<NodeOrder>,
    missed: Arc<Notify>,
    closed: CancellationToken,
    handle: GcsHandle,
    rpc_timeout: Duration,
}

impl LinkTask {
    async fn run(mut self) {
        let closed = self.closed.clone();
        // Whatever it waits for, it ends at once when the node is declared dead.
        closed.run_until_cancelled(self.serve()).await;
    }

    async fn serve(&mut self) {
        loop {
            tokio::select! {
                biased; // the queue first: what was missed is asked for once the queue is empty
                order = self.queue.recv() => match order {
                    Some(order) => self.deliver(&order).await,
                    None => break,
                },
                () = self.missed.notified() => self.deliver_what_was_missed().await,
            }
        }
    }

    async fn deliver_what_was_missed(&mut self) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            match self.handle.outstanding(self.node_id).await {
                Ok(orders) => {
                    for order in orders {
                        self.deliver(&order).await;
                    }
                    return;
                }
                Err(error) => {
                    debug!(%error, "cannot list outstanding orders now");
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
        }
    }

    /// Returns when the node has answered.
    async fn deliver(&mut self, order: &NodeOrder) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let status = match tokio::time::timeout(self.rpc_timeout, self.call(order)).await {
                Ok(Ok(OrderAnswer::Acknowledged)) => {
                    return self.handle.order_acknowledged(order.key()).await;
                }
                Ok(Ok(OrderAnswer::Refused(why))) => return self.refused(order.key(), why).await,
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("the node did not answer in time"),
            };
            if is_refusal(status.code()) {
                let why = format!("{:?}: {}", status.code(), status.message());
                warn!(node_id = %self.node_id, why, "a node refused an order");
                return self.refused(order.key(), why).await;
            }
            debug!(node_id = %self.node_id, %status, "an order did not get through; it is repeated");
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    /// Passes a refusal on for sure: the actor or group would wait for ever.
    async fn refused(&self, key: OrderKey, why: String) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        while let Err(ServiceError::Overloaded { .. }) = self.handle.order_refused(key, why.clone()).await {
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    async fn call(&mut self, order: &NodeOrder) -> Result<OrderAnswer, Status> {
        let timeout = self.rpc_timeout;
        match order {
            NodeOrder::Create(order) => {
                let message = pb::raylet::CreateActorRequest {
                    spec: Some((&*order.spec).into()),
                    num_restarts: order.target.num_restarts,
                    bundle_index: order.bundle.map_or(-1, i64::from),
                };
                self.client.create_actor(with_deadline(message, timeout)).await?;
            }
            NodeOrder::Kill(order) => {
                let message = pb::raylet::KillActorRequest {
                    actor_id: order.target.actor_id.to_binary(),
                    num_restarts: order.target.num_restarts,
                    cause: Some((&order.cause).into()),
                };
                self.client.kill_actor(with_deadline(message, timeout)).await?;
            }
            NodeOrder::Bundles(BundleOrder::Reserve { target, bundles, commit }) => {
                let bundles = bundles.iter().map(|(index, resources)| pb::raylet::ReservedBundle {
                    index: *index,
                    resources: Some(resources.into()),
                });
                let message = pb::raylet::ReserveBundlesRequest {
                    placement_group_id: target.group_id.to_binary(),
                    attempt: target.attempt,
                    bundles: bundles.collect(),
                    commit: *commit,
                };
                let reply = self.client.reserve_bundles(with_deadline(message, timeout)).await?.into_inner();
                if !reply.reserved {
                    return Ok(OrderAnswer::Refused(reply.reason));
                }
            }
            NodeOrder::Bundles(BundleOrder::Commit(target)) => {
                let message = pb::raylet::CommitBundlesRequest {
                    placement_group_id: target.group_id.to_binary(),
                    attempt: target.attempt,
                };
                self.client.commit_bundles(with_deadline(message, timeout)).await?;
            }
            NodeOrder::Bundles(BundleOrder::Return(order)) => {
                let message = pb::raylet::ReturnBundlesRequest {
                    placement_group_id: order.target.group_id.to_binary(),
                    attempt: order.target.attempt,
                    all: order.all,
                    reason: order.reason.clone(),
                };
                self.client.return_bundles(with_deadline(message, timeout)).await?;
            }
        }
        Ok(OrderAnswer::Acknowledged)
    }
}

fn with_deadline<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

/// Whether the node holds the order for wrong; anything else may pass.
fn is_refusal(code: Code) -> bool {
    match code {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unauthenticated
        | Code::DataLoss => true,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable => false,
    }
}
