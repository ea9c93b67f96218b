//! The link: what a core worker (a driver or a worker) and its node say to each other.
//!
//! Messages are encoded with [`ray_core::serialize`], one per frame of kind [`LINK`]. The first
//! message of a client is [`ToRaylet::Register`], the first answer [`FromRaylet::Registered`], which
//! brings the descriptor of the node's shared memory. From then on both sides speak when they like.
//! A request carries a number of the client's choice, and its answer repeats it. The end of the
//! connection is the end of the client: leases, pins and unsealed objects that it held are gone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use ray_core::constraint::Shape;
use ray_core::error::{RayError, RayResult};
use ray_core::id::{ActorId, JobId, LeaseId, NodeId, ObjectId, PlacementGroupId, TaskId, WorkerId};
use ray_core::metric::MetricChange;
use ray_core::report::Inquiry;
use ray_core::runtime_env::RuntimeEnv;
use ray_core::serialize;
use serde::{Deserialize, Serialize};

use crate::connection::{Connection, ConnectionError};
use crate::frame::Frame;

/// Where a node listens, in the folder of sockets that all nodes of a cluster on one machine share.
pub fn node_socket(folder: &Path, node_id: NodeId) -> PathBuf {
    folder.join(format!("{node_id}.sock"))
}

/// The kind of frame that carries a message of the link.
pub const LINK: u8 = 1;

/// What a core worker tells or asks its node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToRaylet {
    /// First of all: who speaks.
    Register {
        /// The speaker.
        worker_id: WorkerId,
        /// Driver or worker.
        role: Role,
        /// Process id.
        pid: u32,
        /// Where it listens for other core workers.
        socket_path: String,
    },
    /// How many leases of one class the speaker wants to hold in all. The node grants what is
    /// lacking, one [`FromRaylet::LeaseGranted`] each, as resources allow. Saying it again changes
    /// nothing; a lower target cancels requests that wait, never leases that are held.
    SetLeaseDemand {
        /// The speaker's number for the class.
        class: u64,
        /// What one lease takes, and where it may be.
        shape: Shape,
        /// On whose behalf.
        job_id: JobId,
        /// What the workers' processes need.
        runtime_env: RuntimeEnv,
        /// Leases to hold, counting those held.
        target: u32,
    },
    /// What the processes of the job of the speaker, a driver, need unless its tasks and actors say otherwise:
    /// known only now, when its packages are uploaded.
    SetJobEnvironment {
        /// The environment.
        runtime_env: RuntimeEnv,
    },
    /// Gives a lease back.
    ReturnLease {
        /// The lease.
        lease_id: LeaseId,
    },
    /// Gives a lease back whose worker runs no further task: its process ends.
    RetireWorker {
        /// The lease.
        lease_id: LeaseId,
    },
    /// The task that the speaker, a leased worker, runs waits for others: its CPUs are free meanwhile.
    Blocked,
    /// The task of the speaker goes on.
    Unblocked,
    /// Asks for the end of the worker of one of the speaker's leases, whose task must not go on.
    KillWorker {
        /// The lease.
        lease_id: LeaseId,
        /// Why, for the log and the error.
        reason: String,
    },
    /// Asks for room in shared memory; answered by [`FromRaylet::ObjectCreated`].
    CreateObject {
        /// Number of the request.
        request: u64,
        /// The object to write.
        object_id: ObjectId,
        /// Its size in bytes.
        size: u64,
        /// The process whose end is the object's end too: often the speaker, or who called its task.
        owner: WorkerId,
    },
    /// The object is written to its end.
    SealObject {
        /// The object.
        object_id: ObjectId,
    },
    /// The object will not be written to its end.
    AbortObject {
        /// The object.
        object_id: ObjectId,
    },
    /// Asks for objects in shared memory, each answered by [`FromRaylet::ObjectReady`], as soon as it
    /// is sealed or restored, and pinned for the speaker until released; or by
    /// [`FromRaylet::ObjectUnavailable`], at once if the node that should have it does not know it.
    GetObjects {
        /// Number of the request.
        request: u64,
        /// The objects.
        object_ids: Vec<ObjectId>,
        /// Those of them that are on other nodes, as far as the speaker knows: unless they are here already, the
        /// node pulls them.
        elsewhere: Vec<Elsewhere>,
    },
    /// Takes back what is not answered yet of a [`ToRaylet::GetObjects`].
    CancelGet {
        /// Number of the request.
        request: u64,
    },
    /// Releases pins.
    ReleaseObject {
        /// The object.
        object_id: ObjectId,
        /// How many of the speaker's pins on it.
        count: u32,
    },
    /// The speaker owns these objects, and nobody refers to them any more.
    DeleteObjects {
        /// The objects.
        object_ids: Vec<ObjectId>,
    },
    /// A call of the control plane, passed on by the node; answered by [`FromRaylet::GcsReply`].
    GcsCall {
        /// Number of the request.
        request: u64,
        /// Which call.
        method: GcsMethod,
        /// The protobuf request.
        body: Bytes,
    },
    /// From now on tell the speaker of this actor, beginning with its present state.
    SubscribeActor {
        /// The actor.
        actor_id: ActorId,
    },
    /// From now on tell the speaker of this placement group, beginning with its present state.
    SubscribeGroup {
        /// The group.
        group_id: PlacementGroupId,
        /// The speaker is about to create it: nobody knows of it yet.
        is_new: bool,
    },
    /// The speaker, the worker of this actor, has made it; or its constructor raised.
    ActorCreated {
        /// The actor.
        actor_id: ActorId,
        /// The incarnation that was asked for.
        num_restarts: u64,
        /// On failure the message for people and the encoded exception.
        result: Result<(), (String, Bytes)>,
    },
    /// The actor of the speaker leaves on purpose; the end of the process follows.
    ActorExiting {
        /// The actor.
        actor_id: ActorId,
        /// Why.
        reason: String,
    },
    /// Answers [`FromRaylet::RunTask`].
    TaskDone {
        /// The task.
        task_id: TaskId,
        /// Its result or what it raised.
        result: Result<Bytes, String>,
    },
    /// Asks for everything that was printed so far; answered by [`FromRaylet::LogsFlushed`].
    FlushLogs {
        /// Number of the request.
        request: u64,
    },
    /// Answers [`FromRaylet::Inspect`].
    Inspected {
        /// Number of the request.
        request: u64,
        /// A [`ray_core::report::ProcessReport`] in the common codec.
        report: Bytes,
    },
    /// Asks why no lease of this class is granted; answered by [`FromRaylet::PendingReason`].
    WhyPending {
        /// The speaker's number for the class.
        class: u64,
    },
    /// The speaker cannot reach a node to which it was sent by [`FromRaylet::LeaseElsewhere`], or its link there
    /// broke: it is not sent there for a while, and then again unless the node is dead.
    NodeUnreachable {
        /// The node.
        node_id: NodeId,
        /// What happened.
        cause: String,
    },
    /// What the programs of the speaker have recorded since it said so last.
    Metrics {
        /// By metric.
        changes: Vec<MetricChange>,
    },
    /// The speaker, a driver that owns its node, is done with it: the daemon ends.
    Shutdown {
        /// Why, for the log.
        reason: String,
    },
}

/// An object that another node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Elsewhere {
    /// The object.
    pub object_id: ObjectId,
    /// The node.
    pub node_id: NodeId,
    /// Its size in bytes.
    pub size: u64,
}

/// Who a client of the link is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// A user's process that starts a job.
    Driver(JobDescription),
    /// A process that runs tasks or an actor.
    Worker,
    /// A driver or worker of another node, which gets leases here and deletes objects that it owns; it maps no shared
    /// memory.
    Visitor {
        /// The job that it drives, and whose workers' output it wants to see.
        drives: Option<JobId>,
    },
}

/// What a driver says of its job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobDescription {
    /// The job.
    pub job_id: JobId,
    /// Where names of actors are looked up unless told otherwise.
    pub namespace: String,
    /// The command line.
    pub entrypoint: String,
    /// For people and tools.
    pub metadata: BTreeMap<String, String>,
    /// What the processes of its tasks and actors need unless these say otherwise.
    pub runtime_env: RuntimeEnv,
}

/// Calls of the control plane that a core worker may make. Request and reply are the protobuf
/// messages of `GcsService`'s method of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named after the methods of GcsService")]
pub enum GcsMethod {
    ListNodes,
    RegisterActor,
    GetActor,
    GetNamedActor,
    ListActors,
    KillActor,
    CreatePlacementGroup,
    RemovePlacementGroup,
    GetPlacementGroup,
    GetNamedPlacementGroup,
    ListPlacementGroups,
    ListJobs,
    GetClusterResources,
    KvPut,
    KvGet,
    KvDel,
    KvKeys,
    AddTaskEvents,
    ListTaskEvents,
    /// Not of `GcsService`: `RayletService.Inspect` of the node that the request names.
    InspectNode,
}

/// What a node tells or answers a core worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromRaylet {
    /// Answers [`ToRaylet::Register`]; the descriptor of the node's shared memory comes with it.
    Registered {
        /// The node.
        node_id: NodeId,
        /// "host:port" of the control plane.
        gcs_address: String,
        /// Folder of logs and sockets.
        session_dir: String,
        /// Size of the shared memory in bytes.
        store_capacity: u64,
    },
    /// The node does not take the client; the connection ends.
    Rejected {
        /// Why.
        reason: String,
    },
    /// The speaker holds this lease now.
    LeaseGranted {
        /// The speaker's number for the class.
        class: u64,
        /// The lease.
        lease_id: LeaseId,
        /// The process to send tasks to.
        worker: LeasedWorker,
        /// The graphics processors that tasks of the lease are to use, by number.
        devices: Vec<u32>,
    },
    /// No node can satisfy this class now or by waiting; the demand stays, for the cluster may grow.
    LeaseInfeasible {
        /// The speaker's number for the class.
        class: u64,
        /// What is missing.
        reason: String,
    },
    /// The runtime environment of this class could not be set up: there is no demand for its leases any
    /// more, and tasks that wait for one have failed.
    RuntimeEnvFailed {
        /// The speaker's number for the class.
        class: u64,
        /// What was asked for, which step failed, and the last words of what failed.
        reason: String,
    },
    /// No lease of this class will ever be granted, and the demand is dropped. The speaker keeps the leases that
    /// it holds, unless their workers end.
    LeaseUnschedulable {
        /// The speaker's number for the class.
        class: u64,
        /// What of it is to be told.
        kind: Unschedulable,
        /// Why.
        reason: String,
    },
    /// Leases of this class may be asked of these nodes besides, as a visitor; of others, no more than are held. Said
    /// to clients of the node alone.
    LeaseElsewhere {
        /// The speaker's number for the class.
        class: u64,
        /// The nodes, and how many leases each may be asked for.
        nodes: Vec<(NodeId, Allowance)>,
    },
    /// Others wait for what leases of this class take, or do so no longer: idle ones should be given
    /// back at once meanwhile, and busy ones after a while.
    LeaseContention {
        /// The speaker's number for the class.
        class: u64,
        /// Whether they wait.
        contended: bool,
    },
    /// Answers [`ToRaylet::CreateObject`].
    ObjectCreated {
        /// Number of the request.
        request: u64,
        /// Where to write, from the start of the shared memory, in bytes.
        result: Result<u64, StoreError>,
    },
    /// An object that was asked for is there, pinned.
    ObjectReady {
        /// Number of the request.
        request: u64,
        /// The object.
        object_id: ObjectId,
        /// Where it is, from the start of the shared memory, in bytes.
        offset: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// An object that was asked for will not come.
    ObjectUnavailable {
        /// Number of the request.
        request: u64,
        /// The object.
        object_id: ObjectId,
        /// Why not.
        error: StoreError,
    },
    /// Answers [`ToRaylet::GcsCall`].
    GcsReply {
        /// Number of the request.
        request: u64,
        /// The protobuf reply, or the gRPC code and message.
        result: Result<Bytes, (i32, String)>,
    },
    /// The state of an actor that was subscribed: a `ray.common.ActorInfo`.
    ActorState {
        /// The encoded message.
        info: Bytes,
    },
    /// The state of a placement group that was subscribed.
    GroupState {
        /// The group.
        group_id: PlacementGroupId,
        /// The encoded `ray.common.PlacementGroupInfo`; nothing if the control plane does not know the group.
        info: Option<Bytes>,
    },
    /// The speaker, a worker, becomes this actor: a `ray.common.ActorSpec`.
    CreateActor {
        /// The encoded message.
        spec: Bytes,
        /// The incarnation.
        num_restarts: u64,
        /// The graphics processors that it is to use, by number.
        devices: Vec<u32>,
    },
    /// Runs a function by name, for a client without a core worker.
    RunTask {
        /// The task.
        task_id: TaskId,
        /// As "module:name".
        function: String,
        /// Its only argument.
        payload: Bytes,
    },
    /// A process is gone: what it owned, borrowed and ran is too.
    WorkerDied {
        /// The process.
        worker_id: WorkerId,
        /// How it ended.
        cause: String,
        /// Whether the node has ended it because memory ran low.
        out_of_memory: bool,
    },
    /// What workers of the driver's job printed.
    LogLines {
        /// Process that printed.
        pid: u32,
        /// Name of its task or actor.
        name: String,
        /// Standard error rather than standard output.
        is_stderr: bool,
        /// Whole lines, without line ends.
        lines: Vec<String>,
    },
    /// Answers [`ToRaylet::FlushLogs`], after the lines.
    LogsFlushed {
        /// Number of the request.
        request: u64,
    },
    /// Asks what the receiver does and keeps; answered by [`ToRaylet::Inspected`].
    Inspect {
        /// Number of the request.
        request: u64,
        /// What is asked.
        inquiry: Inquiry,
    },
    /// Answers [`ToRaylet::WhyPending`].
    PendingReason {
        /// The speaker's number for the class.
        class: u64,
        /// What its leases wait for, for people; empty if they wait for nothing that the node knows of.
        reason: String,
    },
    /// The client, a worker that runs no further task, has to end as soon as no other process needs what it owns.
    Retire {
        /// Why.
        reason: String,
    },
    /// The client has to end; a visitor is told so when the node does.
    Exit {
        /// Why.
        reason: String,
    },
    /// To drivers: this other node is alive.
    NodeJoined {
        /// The node.
        node_id: NodeId,
    },
    /// This other node is dead.
    NodeDied {
        /// The node.
        node_id: NodeId,
        /// Why, for people.
        cause: String,
    },
    /// A copy of this object, which the speaker owns, was written to disk to make room.
    ObjectSpilled {
        /// The object.
        object_id: ObjectId,
    },
}

/// How many leases another node may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Allowance {
    /// So many more than are held there.
    Waiting(u32),
    /// So many in all.
    Held(u32),
}

/// Why something can never run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unschedulable {
    /// The node that it has to be on is gone, or what it has to be in is too small.
    NoNode,
    /// Its placement group was removed.
    PlacementGroupRemoved,
}

/// A process that a lease gives the right to use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeasedWorker {
    /// The process.
    pub worker_id: WorkerId,
    /// Its node.
    pub node_id: NodeId,
    /// Where it listens, for peers on its node.
    pub socket_path: String,
    /// Where it listens for peers on other nodes; empty if nowhere.
    pub tcp_address: String,
    /// Its process id on its node.
    pub pid: u32,
}

/// Why the object store refuses something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreError {
    /// No room, and nothing can make way.
    Full {
        /// Size of the refused object.
        requested_bytes: u64,
        /// Bytes in use.
        used_bytes: u64,
        /// Bytes that the store may hold.
        capacity_bytes: u64,
        /// The largest holders, for people.
        holders: String,
    },
    /// The disk to spill to is full.
    OutOfDisk {
        /// Where it was spilled to.
        path: String,
        /// Size of the object.
        requested_bytes: u64,
        /// The largest holders, for people.
        holders: String,
    },
    /// The object is sealed already: writing it again is not needed.
    AlreadySealed,
    /// The object does not exist, or is gone.
    Lost {
        /// What happened to it.
        cause: String,
    },
}

impl StoreError {
    /// This, as what a caller gets who wanted `object_id`.
    pub fn into_error(self, object_id: ObjectId) -> RayError {
        match self {
            Self::Full { requested_bytes, used_bytes, capacity_bytes, holders } => {
                RayError::ObjectStoreFull { requested_bytes, used_bytes, capacity_bytes, holders }
            }
            Self::OutOfDisk { path, requested_bytes, holders } => {
                RayError::OutOfDisk { path, requested_bytes, holders }
            }
            Self::AlreadySealed => RayError::AlreadyExists { what: format!("object {object_id}") },
            Self::Lost { cause } => RayError::ObjectLost { object_id, cause },
        }
    }
}

/// A message that travels in frames of kind [`LINK`].
pub trait LinkMessage: Serialize + for<'a> Deserialize<'a> {
    /// Puts this behind what waits to be written.
    ///
    /// # Errors
    /// If it cannot be encoded.
    fn queue(&self, connection: &mut Connection) -> RayResult<()> {
        let bytes = serialize::to_bytes(self)?;
        connection.queue(LINK, |out| out.extend_from_slice(&bytes));
        Ok(())
    }

    /// The message in this frame.
    ///
    /// # Errors
    /// `Protocol` if it is of another kind or damaged.
    fn read(frame: Frame<'_>) -> RayResult<Self> {
        let refuse = |reason| RayError::Protocol { peer: "the other side of the link".to_owned(), reason };
        if frame.kind != LINK {
            return Err(refuse(format!("a frame of kind {}", frame.kind)));
        }
        serialize::from_bytes(frame.payload).map_err(|error| refuse(error.chain()))
    }
}

impl LinkMessage for ToRaylet {}
impl LinkMessage for FromRaylet {}

/// A failed connection, as what a caller gets who talked to `peer`.
pub fn connection_error(peer: impl Into<String>, error: ConnectionError) -> RayError {
    match error {
        ConnectionError::Frame(error) => RayError::Protocol { peer: peer.into(), reason: error.to_string() },
        other => RayError::Unavailable { peer: peer.into(), cause: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ray_core::resource::Resources;

    use super::*;
    use crate::frame::FrameReader;

    fn round_trip<M: LinkMessage + PartialEq + std::fmt::Debug>(message: &M) {
        let bytes = serialize::to_bytes(message).unwrap();
        assert_eq!(&M::read(Frame { kind: LINK, payload: &bytes }).unwrap(), message);
    }

    #[test]
    fn messages_read_back() {
        round_trip(&ToRaylet::SetLeaseDemand {
            class: 1,
            shape: Resources::from_units([("CPU", 0.5), ("gizmo", 2.0)]).unwrap().into(),
            job_id: JobId::random(),
            runtime_env: RuntimeEnv::parse(r#"{"env_vars":{"A":"1"}}"#).unwrap(),
            target: 3,
        });
        round_trip(&ToRaylet::ActorCreated {
            actor_id: ActorId::random(),
            num_restarts: 2,
            result: Err(("no".to_owned(), Bytes::from_static(b"error"))),
        });
        round_trip(&FromRaylet::ObjectUnavailable {
            request: 9,
            object_id: ObjectId::nil(),
            error: StoreError::Lost { cause: "gone".to_owned() },
        });
    }

    #[test]
    fn a_frame_of_another_kind_is_refused() {
        let error = FromRaylet::read(Frame { kind: 77, payload: &[] }).unwrap_err();
        assert!(error.to_string().contains("kind 77"), "{error}");
        assert!(FrameReader::new(1).next_frame().unwrap().is_none());
    }

    proptest! {
        #[test]
        fn no_payload_makes_reading_panic(payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ToRaylet::read(Frame { kind: LINK, payload: &payload });
            let _ = FromRaylet::read(Frame { kind: LINK, payload: &payload });
        }
    }
}
