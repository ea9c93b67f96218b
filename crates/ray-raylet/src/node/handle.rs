//! How other threads talk to the one that owns the machine.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ray_core::error::{RayError, RayResult};
use ray_core::id::{ActorId, JobId, LeaseId, NodeId, PlacementGroupId, TaskId, WorkerId};
use ray_core::pb::common::DeathCause;
use ray_core::report::{Inquiry, NodeReport};
use ray_core::resource::Resources;
use ray_link::Waker;
use ray_link::message::LeasedWorker;
use ray_scheduler::Report;
use tokio::sync::oneshot;

use super::effect::{ActorOrder, ClientId, RemoteOutcome};
use super::groups::{GroupNews, ReserveOrder};
use super::inbox::{Inbox, Outbox, inbox};
use super::store_port::{StoreCommand, StoreDrop};
use super::whereabouts::Neighbour;
use crate::log_tail::LogBatch;
use crate::task_table::{TaskSpec, TaskState};

/// Commands that may wait for the thread; more make their senders wait.
const INBOX: usize = 4_096;

/// What the node has and does, in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeStatus {
    pub(crate) total: Resources,
    pub(crate) available: Resources,
    pub(crate) workers: usize,
    pub(crate) leases: usize,
    pub(crate) queued: usize,
}

/// Something for the thread that owns the machine.
#[derive(Debug)]
pub(crate) enum Command {
    /// The answer of the control plane to a client's call.
    GcsReply { client: ClientId, request: u64, result: Result<Bytes, (i32, String)> },
    /// The control plane knows the job, or refuses it.
    JobAdded { job_id: JobId, result: Result<(), String> },
    /// A job has ended.
    JobFinished(JobId),
    /// The encoded state of an actor.
    ActorState { actor_id: ActorId, version: u64, info: Bytes },
    /// The control plane places an actor here.
    CreateActor { order: ActorOrder, answer: oneshot::Sender<()> },
    /// The control plane ends an actor.
    KillActor { actor_id: ActorId, num_restarts: u64, cause: DeathCause, answer: oneshot::Sender<()> },
    /// The control plane reserves bundles here.
    ReserveBundles { order: ReserveOrder, answer: oneshot::Sender<Result<(), String>> },
    /// The control plane lets bundles be used.
    CommitBundles { group_id: PlacementGroupId, attempt: u64, answer: oneshot::Sender<Result<(), String>> },
    /// The control plane takes bundles back.
    ReturnBundles {
        group_id: PlacementGroupId,
        attempt: u64,
        all: bool,
        reason: String,
        answer: oneshot::Sender<()>,
    },
    /// Where a placement group stands.
    GroupNews(GroupNews),
    /// The control plane does not know this group.
    GroupUnknown(PlacementGroupId),
    /// All groups that the control plane knows.
    GroupsListed(BTreeSet<PlacementGroupId>),
    /// What another node is.
    Neighbour(Neighbour),
    /// What another node has free.
    Usage { node_id: NodeId, report: Report },
    /// All nodes that the control plane knows.
    NodesListed(Vec<Neighbour>),
    /// A task by gRPC.
    Submit { spec: TaskSpec, answer: oneshot::Sender<RayResult<()>> },
    /// Cancel a task.
    Cancel { task_id: TaskId, force: bool, answer: oneshot::Sender<RayResult<bool>> },
    /// How far is a task?
    TaskStatus { task_id: TaskId, answer: oneshot::Sender<Option<(TaskState, String)>> },
    /// A worker that the fork server did not make.
    RegisterWorker { worker: LeasedWorker, answer: oneshot::Sender<RayResult<()>> },
    /// A worker goes.
    UnregisterWorker { worker_id: WorkerId, reason: String, answer: oneshot::Sender<()> },
    /// A lease by gRPC.
    RequestLease {
        lease_id: LeaseId,
        job_id: JobId,
        shape: Resources,
        answer: oneshot::Sender<RemoteOutcome>,
    },
    /// Who waited for a lease has stopped; answered with why it waited, unless it is held after all.
    LeaseTimeout { lease_id: LeaseId, answer: oneshot::Sender<Option<String>> },
    /// A lease by gRPC is given back.
    ReleaseLease { lease_id: LeaseId, answer: oneshot::Sender<()> },
    /// What is there?
    Status { answer: oneshot::Sender<NodeStatus> },
    /// A worker of this job printed.
    LogLines { job_id: JobId, pid: u32, is_stderr: bool, batch: LogBatch },
    /// All that was printed before the request is sent.
    LogsFlushed { client: ClientId, request: u64 },
    /// Something about objects.
    Store(StoreCommand),
    /// What do the processes of the node do and keep? Those who take longer than this are left out.
    Inspect { inquiry: Inquiry, timeout: Duration, answer: oneshot::Sender<NodeReport> },
    /// The node's metrics, as text.
    Metrics { answer: oneshot::Sender<String> },
    /// End the node.
    Shutdown(String),
}

/// Sends commands to the thread. Clones share one queue.
#[derive(Debug, Clone)]
pub(crate) struct NodeHandle {
    outbox: Outbox<Command>,
    next_request: Arc<AtomicU64>,
}

impl NodeHandle {
    /// A handle and the end from which the thread takes the commands when `waker` is readable.
    pub(crate) fn new(waker: Arc<Waker>) -> (Self, Inbox<Command>) {
        let (outbox, inbox) = inbox(INBOX, waker);
        (Self { outbox, next_request: Arc::default() }, inbox)
    }

    /// Leaves a note for the thread without waiting.
    pub(crate) fn note_drop(&self, dropped: StoreDrop) {
        self.outbox.note(Command::Store(StoreCommand::Dropped(dropped)));
    }

    /// A number for a request to the store, never given twice.
    pub(crate) fn next_request(&self) -> u64 {
        self.next_request.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends a command, when there is room.
    ///
    /// # Errors
    /// `ShutDown`.
    pub(crate) async fn send(&self, command: Command) -> RayResult<()> {
        self.outbox.send(command).await.map_err(|_| RayError::ShutDown)
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// `ShutDown`.
    pub(crate) async fn call<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command + Send,
    ) -> RayResult<T> {
        let (sender, answer) = oneshot::channel();
        self.send(command(sender)).await?;
        answer.await.map_err(|_| RayError::ShutDown)
    }
}
