//! Makes decisions durable, and then known: replies, events to subscribers, orders to nodes.
//!
//! Batches arrive in the order of decisions and leave in it. All that wait are written at once, so that
//! a burst of calls costs one flush of the disk. If the store fails, the batch is tried again until it succeeds: the
//! tables in memory are ahead of the store by exactly what waits here, and must not get away from it.

use std::sync::Arc;
use std::time::Duration;

use ray_core::config::GcsConfig;
use ray_core::pb;
use ray_core::traits::{GcsStore, Write};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::actor::ActorPhase;
use crate::backoff::Backoff;
use crate::effects::{Effects, Event, Snapshot};
use crate::error::ServiceError;
use crate::node_table::NodeState;
use crate::placement_group::GroupPhase;
use crate::raylet_link::RayletLinks;
use crate::service::{EventReceiver, GcsHandle};
use crate::transport::LocalNode;

/// Hands a result to whoever waits for it.
pub(crate) type Reply = Box<dyn FnOnce() + Send>;

/// Most batches that share one write.
const MAX_BATCHES: usize = 1024;
/// Waits between two attempts of a write that fails.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// What one step decided, and what comes after.
pub(crate) struct Batch {
    /// What the step decided.
    pub(crate) effects: Effects,
    /// What to do once the effects are durable and known.
    pub(crate) after: After,
}

/// The end of a [`Batch`].
pub(crate) enum After {
    /// Nobody waits.
    Nothing,
    /// Somebody waits for a result.
    Reply(Reply),
    /// Somebody wants all events from here on.
    Subscribe {
        /// What is true here.
        snapshot: Snapshot,
        /// Where the subscription goes.
        reply: oneshot::Sender<Result<EventReceiver, ServiceError>>,
    },
}

/// The task that makes decisions durable and known.
pub(crate) struct Outbox {
    store: Arc<dyn GcsStore>,
    subscribers: Vec<mpsc::Sender<Arc<pb::gcs::Event>>>,
    max_subscriber_queue: usize,
    links: RayletLinks,
    stop: CancellationToken,
}

impl Outbox {
    pub(crate) fn new(
        store: Arc<dyn GcsStore>,
        handle: GcsHandle,
        config: &GcsConfig,
        stop: CancellationToken,
        local: Option<LocalNode>,
    ) -> Self {
        Self {
            store,
            subscribers: Vec::new(),
            max_subscriber_queue: config.max_subscriber_queue,
            links: RayletLinks::new(handle, config, local),
            stop,
        }
    }

    /// Runs until the last sender of batches is gone and all that was sent is done.
    pub(crate) async fn run(mut self, mut batches: mpsc::Receiver<Batch>) {
        let mut waiting = Vec::with_capacity(MAX_BATCHES);
        while batches.recv_many(&mut waiting, MAX_BATCHES).await > 0 {
            let writes: Vec<_> =
                waiting.iter_mut().flat_map(|batch| std::mem::take(&mut batch.effects.writes)).collect();
            if !writes.is_empty() && !self.write(writes).await {
                break;
            }
            for batch in waiting.drain(..) {
                self.announce(batch.effects);
                self.finish(batch.after);
            }
        }
        // Ends the subscriptions before the links, which may take a moment.
        self.subscribers.clear();
        self.links.shutdown().await;
    }

    /// Returns false if the control plane stops before the store takes the writes.
    async fn write(&self, writes: Vec<Write>) -> bool {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let Err(failure) = self.store.write(writes.clone()).await else { return true };
            error!(error = %failure.chain(), "the control plane cannot write to its store; it tries again");
            tokio::select! {
                () = self.stop.cancelled() => {
                    error!(writes = writes.len(), "the control plane stops with writes that its store refused");
                    return false;
                }
                () = tokio::time::sleep(backoff.next_wait()) => {}
            }
        }
    }

    fn announce(&mut self, effects: Effects) {
        for change in effects.links {
            self.links.apply(change);
        }
        for event in &effects.events {
            log(event);
            self.publish(event);
        }
        for (node_id, order) in effects.orders {
            self.links.send(node_id, order);
        }
    }

    fn publish(&mut self, event: &Event) {
        if self.subscribers.is_empty() {
            return;
        }
        let message = Arc::new(pb::gcs::Event::from(event));
        self.subscribers.retain(|subscriber| match subscriber.try_send(Arc::clone(&message)) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                warn!(capacity = subscriber.max_capacity(), "a subscriber fell behind and is cut off");
                false
            }
            Err(TrySendError::Closed(_)) => false,
        });
    }

    fn finish(&mut self, after: After) {
        match after {
            After::Nothing => {}
            After::Reply(reply) => reply(),
            After::Subscribe { snapshot, reply } => {
                // One more for the snapshot, which is always the first.
                let (sender, receiver) = mpsc::channel(self.max_subscriber_queue + 1);
                let snapshot = Arc::new(pb::gcs::Event::from(&snapshot));
                if sender.try_send(snapshot).is_ok() && reply.send(Ok(receiver)).is_ok() {
                    self.subscribers.push(sender);
                }
            }
        }
    }
}

fn log(event: &Event) {
    match event {
        Event::Node(node) => match &node.state {
            NodeState::Alive => {
                info!(node_id = %node.spec.node_id, address = node.spec.raylet_address, "node is up");
            }
            NodeState::Dead { reason, .. } => warn!(node_id = %node.spec.node_id, reason, "node is dead"),
        },
        Event::Actor(actor) => match &actor.phase {
            ActorPhase::Dead { cause, .. } => {
                info!(actor_id = %actor.actor_id, kind = ?cause.kind, cause = cause.message, "actor is dead");
            }
            phase => {
                debug!(actor_id = %actor.actor_id, restarts = actor.num_restarts, ?phase, "actor changed")
            }
        },
        Event::PlacementGroup(group) => match &group.phase {
            GroupPhase::Removed { reason, .. } => {
                debug!(group_id = %group.spec.group_id, reason, "placement group removed");
            }
            phase => debug!(group_id = %group.spec.group_id, ?phase, "placement group changed"),
        },
        Event::Job(job) => info!(job_id = %job.spec.job_id, state = ?job.state, "job changed"),
        Event::Usage(_) => {}
    }
}
