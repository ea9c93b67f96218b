//! What processes tell of themselves, for people and tools: tasks that have ended, and, when asked, what
//! they do and keep.
//!
//! These travel by the common codec, inside of other messages, and reach Python as JSON. Times are
//! microseconds since the epoch; 0 means "not known".

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::constraint::Shape;
use crate::id::{ActorId, JobId, NodeId, ObjectId, TaskId, WorkerId};

/// Where a task is in its life; in JSON by Ray's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TaskPhase {
    /// Some of its arguments have no value yet.
    PendingArgsAvail,
    /// It waits for a worker, or for its turn with its actor.
    PendingNodeAssignment,
    /// It is with a worker and does not run yet.
    SubmittedToWorker,
    /// It runs.
    Running,
    /// It has returned.
    Finished,
    /// It raised, or was lost or cancelled.
    Failed,
}

/// What a task calls; in JSON by Ray's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TaskKind {
    /// A function.
    NormalTask,
    /// The constructor of an actor.
    ActorCreationTask,
    /// A method of an actor.
    ActorTask,
}

/// The process that tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Teller {
    /// Its id.
    pub worker_id: WorkerId,
    /// Its node.
    pub node_id: NodeId,
    /// The job that it acts for; nil in a worker that has not run anything yet.
    pub job_id: JobId,
    /// Its process id on its node.
    pub pid: u32,
}

/// How tasks are called.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TaskName {
    /// The name for people.
    pub name: String,
    /// The function or method.
    pub function: String,
}

/// Why a task failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskError {
    /// Ray's name for the kind of failure, such as `WORKER_DIED`.
    pub kind: String,
    /// For people.
    pub message: String,
}

/// One attempt of a task that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// The task.
    pub task_id: TaskId,
    /// How often it was retried before.
    pub attempt: u32,
    /// How it ended.
    pub phase: TaskPhase,
    /// What it called.
    pub kind: TaskKind,
    /// Its place in [`TaskBatch::names`].
    pub name: u32,
    /// The actor whose method or constructor it is.
    pub actor_id: Option<ActorId>,
    /// When it was submitted.
    pub created_us: u64,
    /// When it began to run in the process that tells; 0: it did not run there.
    pub start_us: u64,
    /// When it ended.
    pub end_us: u64,
    /// Why it failed.
    pub error: Option<Box<TaskError>>,
}

/// Tasks that ended without a record of their own, because there were too many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskCount {
    /// Their place in [`TaskBatch::names`].
    pub name: u32,
    /// What they called.
    pub kind: TaskKind,
    /// How they ended.
    pub phase: TaskPhase,
    /// How many.
    pub count: u64,
}

/// What a process tells of tasks that ended there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskBatch {
    /// Who tells.
    pub teller: Teller,
    /// Grows by one with each batch of the process, so that one that is told twice counts once.
    pub sequence: u64,
    /// Names to which the others refer.
    pub names: Vec<TaskName>,
    /// Attempts, in the order in which they ended.
    pub records: Vec<TaskRecord>,
    /// What was only counted.
    pub counts: Vec<TaskCount>,
}

impl TaskBatch {
    /// Whether all that it refers to is in it.
    pub fn is_sound(&self) -> bool {
        let names = self.names.len();
        let indices = self.records.iter().map(|record| record.name);
        indices.chain(self.counts.iter().map(|count| count.name)).all(|name| (name as usize) < names)
    }
}

/// What is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inquiry {
    /// Tasks that have not ended, and those that ended a moment ago.
    pub tasks: bool,
    /// Objects: what refers to them, and what the store holds.
    pub objects: bool,
    /// Tasks and objects that each process may tell of; of the rest it tells how many they are.
    pub limit: u32,
}

/// A task that its caller waits for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PendingTaskReport {
    /// The task.
    pub task_id: TaskId,
    /// How often it was retried.
    pub attempt: u32,
    /// Where it is, as far as its caller knows.
    pub phase: TaskPhase,
    /// What it calls.
    pub kind: TaskKind,
    /// How it is called.
    pub name: TaskName,
    /// The actor whose method or constructor it is.
    pub actor_id: Option<ActorId>,
    /// When it was submitted.
    pub created_us: u64,
    /// What it takes, in units, where its caller says so.
    pub resources: Vec<(String, f64)>,
    /// Its caller's number for what it takes: what the node knows of the wait is found by it.
    pub class: Option<u64>,
    /// Arguments that have no value yet, the first few of them.
    pub missing: Vec<ObjectId>,
    /// What it waits for, where its caller knows it.
    pub reason: String,
    /// The process that it was sent to.
    pub worker_id: Option<WorkerId>,
}

/// An object as a process refers to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceReport {
    /// The object.
    pub object_id: ObjectId,
    /// Who owns it.
    pub owner: WorkerId,
    /// Its size in bytes, once it has a value.
    pub size: Option<u64>,
    /// Whether its value lies in shared memory.
    pub stored: bool,
    /// Whether it failed rather than got a value.
    pub failed: bool,
    /// Handles of the language front end.
    pub local: u32,
    /// Unfinished tasks that have it as an argument.
    pub submitted: u32,
    /// Objects whose value refers to it.
    pub contained_in: u32,
    /// Values that the front end reads where they lie.
    pub pinned: bool,
    /// Processes that borrow it.
    pub borrowers: u32,
    /// Whether it stands for the handles to an actor.
    pub is_handle: bool,
}

/// What a process does and keeps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessReport {
    /// Who tells.
    pub teller: Teller,
    /// Whether it is a driver; otherwise a worker.
    pub is_driver: bool,
    /// The actor that it is.
    pub actor_id: Option<ActorId>,
    /// The parent of the tasks that it submits outside of any task.
    pub root_task: TaskId,
    /// What runs in it, and since when.
    pub running: Vec<(TaskId, u64)>,
    /// Tasks that it waits for, the oldest first.
    pub pending: Vec<PendingTaskReport>,
    /// How many they are.
    pub pending_total: u64,
    /// What it has not told the control plane yet.
    pub ended: Option<TaskBatch>,
    /// Objects that it refers to.
    pub references: Vec<ReferenceReport>,
    /// How many they are.
    pub references_total: u64,
    /// Where it serves debuggers.
    pub debugger: DebuggerReport,
    /// What its tasks need that wait for a worker, and how many they are.
    pub waiting: Vec<WaitingReport>,
}

/// Tasks that wait for a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingReport {
    /// The number that the process that submitted them has for what they take.
    pub class: u64,
    /// What each takes.
    pub shape: Shape,
    /// How many they are.
    pub count: u64,
}

/// How a debugger finds a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebuggerReport {
    /// Where the process waits for debuggers, if it does.
    pub port: Option<u16>,
    /// How many of its threads wait until one comes.
    pub paused_threads: u32,
}

/// A worker process as its node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerReport {
    /// The process.
    pub worker_id: WorkerId,
    /// Its process id, once it is known.
    pub pid: Option<u32>,
    /// The only job that it serves.
    pub job_id: Option<JobId>,
    /// The actor that it is.
    pub actor_id: Option<ActorId>,
    /// Whether it is a driver; otherwise a worker.
    pub is_driver: bool,
    /// `STARTING`, `IDLE`, `LEASED`, `ACTOR`, `DRIVER` or `DEAD`.
    pub state: String,
    /// When it was started, or a driver connected.
    pub start_us: u64,
    /// When it ended.
    pub end_us: u64,
    /// How it ended.
    pub exit_detail: String,
}

/// Why the leases that a process wants are not granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DemandReport {
    /// The process.
    pub worker_id: WorkerId,
    /// Its number for what they take.
    pub class: u64,
    /// What they wait for, for people; empty if they wait for nothing.
    pub reason: String,
    /// How many have their resources, and wait for a worker process alone.
    pub starting: u64,
}

/// A runtime environment on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentReport {
    /// Its JSON description.
    pub description: String,
    /// Whether processes can have it.
    pub ready: bool,
    /// Why it could not be set up; empty if that is not known.
    pub error: String,
    /// When it was first wanted.
    pub since_us: u64,
}

/// What a node and its processes do and keep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The node.
    pub node_id: NodeId,
    /// An encoded [`ProcessReport`] of each process that answered.
    pub processes: Vec<Bytes>,
    /// Processes that did not, for people.
    pub silent: Vec<String>,
    /// Workers and drivers, with those that ended lately.
    pub workers: Vec<WorkerReport>,
    /// What those who want leases wait for.
    pub demands: Vec<DemandReport>,
    /// Runtime environments that are known there.
    pub environments: Vec<EnvironmentReport>,
    /// What actors that the node makes wait for.
    pub placing: Vec<PlacingReport>,
    /// Objects that lie there alone, and would be lost with it.
    pub owned_objects: u64,
}

/// An actor that a node makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacingReport {
    /// The actor.
    pub actor_id: ActorId,
    /// What it waits for.
    pub reason: String,
}
