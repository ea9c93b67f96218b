//! The control plane as a service: one task that owns the tables, and handles to ask it.
//!
//! ```text
//!   handles ──inbox──> owner (ControlPlane::step) ──commits──> outbox: store, then replies, events, orders
//!               ^                                                                │
//!               └──────────────── answers of nodes to orders ────── raylet links <┘
//! ```
//!
//! The owner never waits: not for the disk, not for a node, not for a subscriber. What it decides goes through the
//! outbox in the order of decisions, and no reply, event or order leaves before what it rests on is durable. So
//! does the reply to a question, because it may rest on a change that is not yet durable. Heartbeats
//! promise nothing and are answered at once.
//!
//! If the disk stalls until the outbox is full, calls are answered with `RESOURCE_EXHAUSTED`, and nobody is declared
//! dead meanwhile.

use std::fmt;
use std::sync::Arc;

use ray_core::config::{GcsConfig, GcsStorage};
use ray_core::error::{RayError, RayResult};
use ray_core::id::NodeId;
use ray_core::pb;
use ray_core::traits::GcsStore;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::actor_table::NodeOrder;
use crate::clock::{Clock, Now};
use crate::control_plane::{ControlPlane, Limits, OrderAnswer, OrderKey};
use crate::effects::Effects;
use crate::error::ServiceError;
use crate::memory_store::InMemoryGcsStore;
use crate::outbox::{After, Batch, Outbox, Reply};
use crate::redb_store::RedbGcsStore;
use crate::stored::StoredTables;
use crate::transport::LocalNode;

/// Something to do with the tables, and where its result goes.
trait Step: Send {
    /// Does it; the result is handed over once the effects are durable.
    fn run(self: Box<Self>, plane: &mut ControlPlane, now: Now, fx: &mut Effects) -> Reply;
    /// Tells the caller that it is not done.
    fn refuse(self: Box<Self>, error: ServiceError);
}

struct Call<F, R> {
    work: F,
    reply: oneshot::Sender<Result<R, ServiceError>>,
}

impl<F, R> Step for Call<F, R>
where
    F: FnOnce(&mut ControlPlane, Now, &mut Effects) -> R + Send,
    R: Send + 'static,
{
    fn run(self: Box<Self>, plane: &mut ControlPlane, now: Now, fx: &mut Effects) -> Reply {
        let Self { work, reply } = *self;
        let result = work(plane, now, fx);
        Box::new(move || drop(reply.send(Ok(result))))
    }

    fn refuse(self: Box<Self>, error: ServiceError) {
        drop(self.reply.send(Err(error)));
    }
}

/// What the owner is asked.
enum Command {
    /// A step of the tables, answered when what came before is durable.
    Step(Box<dyn Step>),
    /// A sign of life, answered at once: whether the node is alive.
    Heartbeat { node_id: NodeId, sequence: u64, reply: oneshot::Sender<bool> },
    /// All events from a snapshot on.
    Subscribe { reply: oneshot::Sender<Result<EventReceiver, ServiceError>> },
}

/// The events of one subscription, the snapshot first. It ends when the subscriber falls behind or the
/// control plane stops.
pub type EventReceiver = mpsc::Receiver<Arc<pb::gcs::Event>>;

/// Asks a [`Gcs`]; cheap to clone.
#[derive(Clone)]
pub struct GcsHandle {
    inbox: mpsc::Sender<Command>,
}

impl fmt::Debug for GcsHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GcsHandle").finish_non_exhaustive()
    }
}

impl GcsHandle {
    /// Does a step of the tables, and waits until what it changed, and all that came before, is durable.
    /// Dropping the future leaves it open whether the step is done.
    ///
    /// # Errors
    /// If too much waits, or the control plane stops.
    pub async fn step<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut ControlPlane, Now, &mut Effects) -> R + Send + 'static,
    ) -> Result<R, ServiceError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Step(Box::new(Call { work, reply })))?;
        answer.await.unwrap_or(Err(ServiceError::Stopped))
    }

    /// Notes a sign of life; returns whether the node is alive.
    ///
    /// # Errors
    /// If too much waits, or the control plane stops.
    pub async fn heartbeat(&self, node_id: NodeId, sequence: u64) -> Result<bool, ServiceError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Heartbeat { node_id, sequence, reply })?;
        answer.await.map_err(|_| ServiceError::Stopped)
    }

    /// All events from a snapshot on.
    ///
    /// # Errors
    /// If too much waits, or the control plane stops.
    pub async fn subscribe(&self) -> Result<EventReceiver, ServiceError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Subscribe { reply })?;
        answer.await.unwrap_or(Err(ServiceError::Stopped))
    }

    /// A node took an order. Waits for room in the inbox, but not until it is carried out; should it get
    /// lost because the store cannot keep up, the order counts as outstanding for longer, that is all.
    pub(crate) async fn order_acknowledged(&self, order: OrderKey) {
        let (reply, _) = oneshot::channel();
        let work = move |plane: &mut ControlPlane, now: Now, fx: &mut Effects| {
            plane.on_order_answered(order, OrderAnswer::Acknowledged, now, fx);
        };
        drop(self.inbox.send(Command::Step(Box::new(Call { work, reply }))).await);
    }

    /// A node will never take an order.
    ///
    /// # Errors
    /// As [`GcsHandle::step`].
    pub(crate) async fn order_refused(&self, order: OrderKey, why: String) -> Result<(), ServiceError> {
        self.step(move |plane, now, fx| plane.on_order_answered(order, OrderAnswer::Refused(why), now, fx))
            .await
    }

    /// The orders that a node has not acknowledged.
    pub(crate) async fn outstanding(&self, node_id: NodeId) -> Result<Vec<NodeOrder>, ServiceError> {
        self.step(move |plane, _, _| plane.outstanding(node_id)).await
    }

    fn send(&self, command: Command) -> Result<(), ServiceError> {
        self.inbox.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                let capacity = self.inbox.max_capacity();
                ServiceError::Overloaded { queue: "the control plane's inbox", capacity }
            }
            mpsc::error::TrySendError::Closed(_) => ServiceError::Stopped,
        })
    }
}

/// A running control plane. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct Gcs {
    handle: GcsHandle,
    config: GcsConfig,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Gcs {
    /// Starts a control plane on the storage that `config` names, with what is kept there.
    ///
    /// # Errors
    /// If the storage cannot be opened or read, or no file is named for a durable one.
    pub async fn start(config: &GcsConfig) -> RayResult<Self> {
        Self::start_on(config, open_store(config).await?).await
    }

    /// Starts a control plane in the process of one of its nodes, which it calls without the network.
    ///
    /// # Errors
    /// As [`Gcs::start`].
    pub async fn start_beside(config: &GcsConfig, node: LocalNode) -> RayResult<Self> {
        Self::launch(config, open_store(config).await?, Some(node)).await
    }

    /// Starts a control plane on `store`, with what is kept there.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn start_on(config: &GcsConfig, store: Arc<dyn GcsStore>) -> RayResult<Self> {
        Self::launch(config, store, None).await
    }

    async fn launch(
        config: &GcsConfig,
        store: Arc<dyn GcsStore>,
        local: Option<LocalNode>,
    ) -> RayResult<Self> {
        let clock = Clock::start();
        let stored = StoredTables::load(&*store).await?;
        info!(
            nodes = stored.nodes.len(),
            actors = stored.actors.len(),
            jobs = stored.jobs.len(),
            "tables loaded"
        );
        let limits = Limits::from(config);
        let mut effects = Effects::default();
        let plane = ControlPlane::restore(limits, stored, clock.now(), &mut effects);

        let (inbox_sender, inbox) = mpsc::channel(config.inbox_capacity);
        let (commits, batches) = mpsc::channel(config.max_commit_queue);
        let handle = GcsHandle { inbox: inbox_sender };
        let stop = CancellationToken::new();
        let outbox = Outbox::new(store, handle.clone(), config, stop.clone(), local);
        commits.try_send(Batch { effects, after: After::Nothing }).map_err(|_| RayError::ShutDown)?;
        let owner = Owner { plane, clock, limits, inbox, commits, stop: stop.clone() };
        let mut tasks = JoinSet::new();
        tasks.spawn(outbox.run(batches));
        tasks.spawn(owner.run());
        Ok(Self { handle, config: config.clone(), stop, tasks })
    }

    /// To ask this control plane.
    pub fn handle(&self) -> &GcsHandle {
        &self.handle
    }

    /// How this control plane is set.
    pub fn config(&self) -> &GcsConfig {
        &self.config
    }

    /// Stops: what was decided is made durable and answered, subscriptions end, the store is closed.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                error!(%error, "a task of the control plane failed");
            }
        }
    }
}

impl Drop for Gcs {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn open_store(config: &GcsConfig) -> RayResult<Arc<dyn GcsStore>> {
    Ok(match config.storage {
        GcsStorage::Memory => Arc::new(InMemoryGcsStore::new()),
        GcsStorage::Redb => {
            let path = config.storage_path.as_ref().ok_or_else(|| RayError::Config {
                key: "gcs.storage_path".to_owned(),
                reason: "has to be set when gcs.storage is \"redb\"".to_owned(),
            })?;
            Arc::new(RedbGcsStore::open(path).await?)
        }
    })
}

/// The only task that can reach the tables.
struct Owner {
    plane: ControlPlane,
    clock: Clock,
    limits: Limits,
    inbox: mpsc::Receiver<Command>,
    commits: mpsc::Sender<Batch>,
    stop: CancellationToken,
}

impl Owner {
    async fn run(mut self) {
        let mut ticker = tokio::time::interval(self.limits.nodes.tick_every);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased; // so that load starves neither shutdown nor the timer
                () = self.stop.cancelled() => break,
                _ = ticker.tick() => self.tick(),
                command = self.inbox.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => break,
                },
            }
        }
    }

    fn tick(&mut self) {
        // While the outbox is full the tick is left out, and the next one, being late, blames nobody.
        let Ok(permit) = self.commits.try_reserve() else {
            warn!("the control plane's store cannot keep up");
            return;
        };
        let mut effects = Effects::default();
        self.plane.tick(self.clock.now(), &mut effects);
        if !effects.is_empty() {
            permit.send(Batch { effects, after: After::Nothing });
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Heartbeat { node_id, sequence, reply } => {
                // Whoever asked may have gone; the sign of life counts all the same.
                let _ = reply.send(self.plane.heartbeat(node_id, sequence, self.clock.now()));
            }
            Command::Step(step) => match self.commits.try_reserve() {
                Ok(permit) => {
                    let mut effects = Effects::default();
                    let reply = step.run(&mut self.plane, self.clock.now(), &mut effects);
                    permit.send(Batch { effects, after: After::Reply(reply) });
                }
                Err(_) => step.refuse(self.overloaded()),
            },
            Command::Subscribe { reply } => match self.commits.try_reserve() {
                Ok(permit) => {
                    let after = After::Subscribe { snapshot: self.plane.snapshot(), reply };
                    permit.send(Batch { effects: Effects::default(), after });
                }
                Err(_) => drop(reply.send(Err(self.overloaded()))),
            },
        }
    }

    fn overloaded(&self) -> ServiceError {
        ServiceError::Overloaded { queue: "the queue to storage", capacity: self.commits.max_capacity() }
    }
}
