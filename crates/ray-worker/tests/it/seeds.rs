//! The seeds of the fuzz targets in `fuzz/corpus/`: one message of each kind, a few values and streams.
//!
//! They are made here, so that a change of a message shows as a change of its seed.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use ray_core::constraint::{Constraint, LabelMatch, LabelSelector, Shape, Strategy};
use ray_core::id::{
    ActorId, FunctionId, JobId, LeaseId, NodeId, ObjectId, PlacementGroupId, TaskId, WorkerId,
};
use ray_core::metric::{MetricChange, MetricDescription, MetricKind, MetricValue};
use ray_core::report::Inquiry;
use ray_core::resource::Resources;
use ray_core::runtime_env::RuntimeEnv;
use ray_core::serialize::{self, Container, Plain, ValueParts, ZeroCopyWrite as _};
use ray_link::frame::VERSION;
use ray_link::message::{
    Allowance, Elsewhere, GcsMethod, JobDescription, LeasedWorker, Role, StoreError, Unschedulable,
};
use ray_link::{FromRaylet, ToRaylet};
use ray_worker::peer_message::{
    ArgValue, DefineFunction, GeneratorSpec, GroupContext, Hello, Kind, PeerMessage, RetryExceptions,
    Returned, StreamItem, Target, TaskHeader, TaskReply, write_arg,
};
use ray_worker::reference_counter::Owner;
use ray_worker::value::{ActorEnd, Failure, Value};

const TASK: TaskId = TaskId::from_bytes([1; 16]);
const ACTOR: ActorId = ActorId::from_bytes([2; 16]);
const NODE: NodeId = NodeId::from_bytes([3; 16]);
const JOB: JobId = JobId::from_bytes([4; 16]);
const WORKER: WorkerId = WorkerId::from_bytes([5; 16]);
const GROUP: PlacementGroupId = PlacementGroupId::from_bytes([8; 16]);
const LEASE: LeaseId = LeaseId::from_bytes([6; 16]);
const OBJECT: ObjectId = ObjectId::from_bytes([7; 28]);
const OWNER: Owner = Owner { worker_id: WORKER, node_id: NODE };

/// Set to write them.
const WRITE: &str = "RAY_RUST_WRITE_SEEDS";

#[test]
fn the_seeds_of_the_fuzz_targets_are_those_of_the_present_messages() {
    let mut seeds = Vec::new();
    frames(&mut seeds);
    values(&mut seeds);
    plain_values(&mut seeds);
    to_raylet(&mut seeds);
    from_raylet(&mut seeds);
    peer_messages(&mut seeds);
    tasks(&mut seeds);
    replies(&mut seeds);
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for (name, bytes) in seeds {
        let path = corpus.join(name);
        if std::env::var(WRITE).is_ok() {
            std::fs::write(&path, &bytes).unwrap();
        }
        let is_same = std::fs::read(&path).is_ok_and(|written| written == bytes);
        assert!(is_same, "{} is not what it should be: run this with {WRITE}=1", path.display());
    }
}

/// Path and content.
type Seeds = Vec<(String, Vec<u8>)>;

/// Programs: see `fuzz_targets/frame.rs`.
fn frames(seeds: &mut Seeds) {
    let mut save = |name: &str, bytes: Vec<u8>| seeds.push((format!("frame/{name}"), bytes));
    let program = |limit: u32, cuts: &[u16], pieces: &[&[u8]]| {
        let mut out = limit.to_le_bytes().to_vec();
        out.push(cuts.len() as u8);
        out.extend(cuts.iter().flat_map(|cut| cut.to_le_bytes()));
        pieces.iter().for_each(|piece| out.extend_from_slice(piece));
        out
    };
    let frame = |kind: u8, sixteens: u16| [&[0, kind][..], &sixteens.to_le_bytes()].concat();
    let header = |length: u32| [&[2][..], &length.to_le_bytes(), &[9]].concat();
    let (small, large, huge) = (frame(1, 2), frame(2, 0x1000), frame(3, 0xffff));
    let text = [&[1, 16][..], b"GET / HTTP/1.1\r\n"].concat();
    let damaged = [1, 8, 4, 0, 0, 0, VERSION, 1, 0, 7];
    save("one-in-bytes", program(1000, &[1], &[&small]));
    save("many-in-pieces", program(100_000, &[7, 3, 9000], &[&small, &large, &small, &large]));
    save("more-than-is-kept", program(4 << 20, &[0xf000, 5], &[&huge, &small, &huge, &huge]));
    save("cut-off", program(1 << 20, &[0x8800], &[&small, &header(70_000), &[3, 8, 0, 16]]));
    save("too-long", program(100, &[], &[&small, &header(u32::MAX)]));
    save("as-long-as-can-be", program(0x10000, &[], &[&large]));
    save("other-version", program(100, &[5], &[&text]));
    save("damaged-header", program(100, &[], &[&small, &damaged]));
    save("empty-frames", program(0, &[3], &[&frame(1, 0), &frame(2, 0), &frame(3, 0)]));
}

fn values(seeds: &mut Seeds) {
    let large = vec![3; 200];
    let values = [
        ("empty", ValueParts { in_band: b"", buffers: vec![] }),
        ("in-band", ValueParts { in_band: b"in band", buffers: vec![] }),
        ("one-buffer", ValueParts { in_band: b"in band", buffers: vec![b"buffer"] }),
        ("empty-buffers", ValueParts { in_band: b"in band", buffers: vec![b"", b"", b"third"] }),
        ("long-buffers", ValueParts { in_band: &large, buffers: vec![&large, b"x", &large] }),
    ];
    for (name, parts) in values {
        let mut block = vec![0; parts.encoded_len()];
        parts.write_into(&mut block).expect("it has its own size");
        seeds.push((format!("value/{name}"), block));
    }
}

fn plain_values(seeds: &mut Seeds) {
    let reference = Plain::Reference(OBJECT, WORKER, NODE);
    let items = [
        ("none", Plain::None),
        ("bool", Plain::Bool(true)),
        ("int", Plain::Int(-7)),
        ("float", Plain::Float(0.5)),
        ("str", Plain::Str("t\u{e4}xt")),
        ("bytes", Plain::Bytes(b"bytes")),
        ("reference", reference),
    ];
    for (name, item) in items {
        let mut alone = Vec::new();
        item.write(&mut alone);
        seeds.push((format!("plain_value/{name}"), alone));
    }
    for (name, kind) in [("list", Container::List), ("tuple", Container::Tuple), ("dict", Container::Dict)] {
        let mut all = Vec::new();
        let count = if kind == Container::Dict { items.len() / 2 } else { items.len() };
        Plain::Container(kind, count as u32).write(&mut all);
        items
            .iter()
            .take(count * if kind == Container::Dict { 2 } else { 1 })
            .for_each(|(_, item)| item.write(&mut all));
        seeds.push((format!("plain_value/{name}"), all));
    }
}

fn encode<T: serde::Serialize>(first: u8, message: &T) -> Vec<u8> {
    let encoded = serialize::to_bytes(message).expect("messages can be encoded");
    [&[first], encoded.as_slice()].concat()
}

fn env() -> RuntimeEnv {
    RuntimeEnv::parse(r#"{"env_vars":{"A":"1"}}"#).expect("it is a JSON object")
}

fn to_raylet(seeds: &mut Seeds) {
    let metadata = BTreeMap::from([("key".to_owned(), "value".to_owned())]);
    let (namespace, entrypoint) = ("space".to_owned(), "python main.py".to_owned());
    let job = JobDescription { job_id: JOB, namespace, entrypoint, metadata, runtime_env: env() };
    let resources = Resources::from_units([("CPU", 0.5), ("gizmo", 2.0)]).expect("these can be");
    let selector = |wanted| LabelSelector(vec![("region".to_owned(), wanted)]);
    let selectors =
        vec![selector(LabelMatch::In(vec!["eu".to_owned(); 2])), selector(LabelMatch::DoesNotExist)];
    let strategy = Strategy::Bundle { group_id: GROUP, index: Some(1), capture: true };
    let shape = Shape { resources, constraint: Constraint { strategy, selectors } };
    let reason = || "because".to_owned();
    let register =
        |role| ToRaylet::Register { worker_id: WORKER, role, pid: 77, socket_path: "/s".to_owned() };
    let body = Bytes::from_static(b"request");
    let messages = [
        ("register-driver", register(Role::Driver(job))),
        ("register-worker", register(Role::Worker)),
        ("register-visitor", register(Role::Visitor { drives: Some(JOB) })),
        (
            "set-lease-demand",
            ToRaylet::SetLeaseDemand { class: 1, shape, job_id: JOB, runtime_env: env(), target: 3 },
        ),
        ("set-job-environment", ToRaylet::SetJobEnvironment { runtime_env: env() }),
        ("return-lease", ToRaylet::ReturnLease { lease_id: LEASE }),
        ("retire-worker", ToRaylet::RetireWorker { lease_id: LEASE }),
        ("blocked", ToRaylet::Blocked),
        ("kill-worker", ToRaylet::KillWorker { lease_id: LEASE, reason: reason() }),
        ("create", ToRaylet::CreateObject { request: 1, object_id: OBJECT, size: 1 << 40, owner: WORKER }),
        ("seal", ToRaylet::SealObject { object_id: OBJECT }),
        (
            "get",
            ToRaylet::GetObjects {
                request: 2,
                object_ids: vec![OBJECT; 3],
                elsewhere: vec![Elsewhere { object_id: OBJECT, node_id: NODE, size: 1 << 33 }],
            },
        ),
        ("cancel-get", ToRaylet::CancelGet { request: 2 }),
        ("release", ToRaylet::ReleaseObject { object_id: OBJECT, count: 2 }),
        ("delete", ToRaylet::DeleteObjects { object_ids: vec![OBJECT; 2] }),
        ("gcs-call", ToRaylet::GcsCall { request: 3, method: GcsMethod::KvKeys, body: body.clone() }),
        ("subscribe-group", ToRaylet::SubscribeGroup { group_id: GROUP, is_new: true }),
        ("subscribe-actor", ToRaylet::SubscribeActor { actor_id: ACTOR }),
        ("actor-created", ToRaylet::ActorCreated { actor_id: ACTOR, num_restarts: 1, result: Ok(()) }),
        (
            "actor-raised",
            ToRaylet::ActorCreated {
                actor_id: ACTOR,
                num_restarts: 1,
                result: Err((reason(), body.clone())),
            },
        ),
        ("task-done", ToRaylet::TaskDone { task_id: TASK, result: Ok(body) }),
        ("flush-logs", ToRaylet::FlushLogs { request: 4 }),
        ("inspected", ToRaylet::Inspected { request: 5, report: Bytes::from_static(b"report") }),
        ("why-pending", ToRaylet::WhyPending { class: 1 }),
        ("node-unreachable", ToRaylet::NodeUnreachable { node_id: NODE, cause: reason() }),
        ("metrics", ToRaylet::Metrics { changes: metrics() }),
        ("shutdown", ToRaylet::Shutdown { reason: reason() }),
    ];
    messages
        .iter()
        .for_each(|(name, message)| seeds.push((format!("link_message/to-{name}"), encode(0, message))));
}

fn metrics() -> Vec<MetricChange> {
    let metric = |kind, boundaries: &[f64]| MetricDescription {
        name: "calls".to_owned(),
        description: "what they are".to_owned(),
        kind,
        boundaries: boundaries.to_vec(),
    };
    let tags = || vec![("tag".to_owned(), "value".to_owned())];
    vec![
        MetricChange {
            metric: metric(MetricKind::Counter, &[]),
            series: vec![(tags(), MetricValue::Number(1.5))],
        },
        MetricChange {
            metric: metric(MetricKind::Histogram, &[1.0, 2.0]),
            series: vec![(tags(), MetricValue::Distribution { buckets: vec![1, 0, 3], sum: 9.0 })],
        },
    ]
}

fn from_raylet(seeds: &mut Seeds) {
    let text = |text: &str| text.to_owned();
    let worker = LeasedWorker {
        worker_id: WORKER,
        node_id: NODE,
        socket_path: text("/tmp/socket"),
        tcp_address: String::new(),
        pid: 77,
    };
    let registered = FromRaylet::Registered {
        node_id: NODE,
        gcs_address: text("127.0.0.1:6379"),
        session_dir: text("/tmp/session"),
        store_capacity: 1 << 30,
    };
    let full = StoreError::Full {
        requested_bytes: 10,
        used_bytes: 5,
        capacity_bytes: 12,
        holders: text("process 1"),
    };
    let unavailable = |error| FromRaylet::ObjectUnavailable { request: 1, object_id: OBJECT, error };
    let refused = Err((5, text("not found")));
    let info = Bytes::from_static(b"info");
    let messages = [
        ("registered", registered),
        ("rejected", FromRaylet::Rejected { reason: text("no") }),
        (
            "lease-granted",
            FromRaylet::LeaseGranted { class: 1, lease_id: LEASE, worker, devices: vec![0, 3] },
        ),
        ("lease-infeasible", FromRaylet::LeaseInfeasible { class: 1, reason: text("no gizmo") }),
        ("runtime-env-failed", FromRaylet::RuntimeEnvFailed { class: 1, reason: text("no such package") }),
        (
            "lease-unschedulable",
            FromRaylet::LeaseUnschedulable {
                class: 1,
                kind: Unschedulable::NoNode,
                reason: text("its node is dead"),
            },
        ),
        ("group-state", FromRaylet::GroupState { group_id: GROUP, info: Some(info.clone()) }),
        ("object-created", FromRaylet::ObjectCreated { request: 1, result: Ok(4096) }),
        ("store-full", FromRaylet::ObjectCreated { request: 1, result: Err(full) }),
        ("object-ready", FromRaylet::ObjectReady { request: 1, object_id: OBJECT, offset: 64, size: 9 }),
        ("object-lost", unavailable(StoreError::Lost { cause: text("gone") })),
        ("gcs-reply", FromRaylet::GcsReply { request: 2, result: Ok(info.clone()) }),
        ("gcs-refusal", FromRaylet::GcsReply { request: 2, result: refused }),
        ("actor-state", FromRaylet::ActorState { info: info.clone() }),
        ("create-actor", FromRaylet::CreateActor { spec: info.clone(), num_restarts: 2, devices: vec![1] }),
        ("run-task", FromRaylet::RunTask { task_id: TASK, function: text("module:f"), payload: info }),
        (
            "worker-died",
            FromRaylet::WorkerDied { worker_id: WORKER, cause: text("killed"), out_of_memory: true },
        ),
        (
            "log-lines",
            FromRaylet::LogLines {
                pid: 7,
                name: text("f"),
                is_stderr: true,
                lines: vec![text("one"), String::new()],
            },
        ),
        (
            "inspect",
            FromRaylet::Inspect { request: 5, inquiry: Inquiry { tasks: true, objects: false, limit: 7 } },
        ),
        ("pending-reason", FromRaylet::PendingReason { class: 1, reason: text("no gizmo") }),
        ("exit", FromRaylet::Exit { reason: text("the end") }),
        ("retire", FromRaylet::Retire { reason: text("it has run enough") }),
        ("object-spilled", FromRaylet::ObjectSpilled { object_id: OBJECT }),
        (
            "lease-elsewhere",
            FromRaylet::LeaseElsewhere {
                class: 1,
                nodes: vec![(NODE, Allowance::Waiting(2)), (NODE, Allowance::Held(1))],
            },
        ),
        ("node-joined", FromRaylet::NodeJoined { node_id: NODE }),
        ("node-died", FromRaylet::NodeDied { node_id: NODE, cause: text("no heartbeat") }),
    ];
    messages
        .iter()
        .for_each(|(name, message)| seeds.push((format!("link_message/from-{name}"), encode(1, message))));
}

fn peer_messages(seeds: &mut Seeds) {
    let job_config = Bytes::from_static(b"job");
    let hello = Hello { worker_id: WORKER, node_id: NODE, job_id: JOB, job_config };
    seeds.push(("peer_message/hello".to_owned(), encode(Kind::Hello as u8, &hello)));
    let function_id = FunctionId::of(b"pickled");
    let name = "f".to_owned();
    let pickled = Bytes::from_static(b"pickled");
    let define = DefineFunction { function_id, pickled, name, max_calls: 3 };
    seeds.push(("peer_message/define-function".to_owned(), encode(Kind::DefineFunction as u8, &define)));
    let value =
        |value| PeerMessage::ObjectValue { object_id: OBJECT, value, contained: vec![(OBJECT, OWNER)] };
    let leased = Resources::from_units([("CPU", 1.0), ("GPU", 0.5)]).unwrap();
    let messages = [
        ("give-back", PeerMessage::GiveBack { task_ids: vec![TASK; 3] }),
        ("cancel", PeerMessage::Cancel { task_id: TASK, recursive: true, force: false }),
        ("cancelled-children", PeerMessage::CancelledChildren { task_id: TASK }),
        ("cancel-task", PeerMessage::CancelTask { object_id: OBJECT, recursive: true, force: true }),
        ("leased", PeerMessage::Leased { resources: leased, devices: vec![1] }),
        ("get-object", PeerMessage::GetObject { object_id: OBJECT }),
        ("object-inline", value(Value::Inline(Bytes::from_static(b"value")))),
        ("object-stored", value(Value::Stored { node_id: NODE, size: 1 << 33 })),
        ("object-failed", value(Failure::System("a fault".to_owned()).into())),
        ("ask-grants", PeerMessage::AskGrants { request: 1, object_ids: vec![OBJECT; 2], borrower: WORKER }),
        ("granted", PeerMessage::Granted { request: 1 }),
        ("return-grants", PeerMessage::ReturnGrants { grants: vec![(OBJECT, 1), (OBJECT, 300)] }),
        ("stream-read", PeerMessage::StreamRead { task_id: TASK, read: 300 }),
        ("stop-stream", PeerMessage::StopStream { task_id: TASK }),
    ];
    messages.iter().for_each(|(name, message)| {
        seeds.push((format!("peer_message/{name}"), encode(Kind::Other as u8, message)))
    });
}

fn tasks(seeds: &mut Seeds) {
    let function = Target::Function(FunctionId::of(b"pickled"));
    let method = Target::Method { actor_id: ACTOR, sequence: 7, name: "add", group: "io" };
    let stored = ArgValue::Stored { object_id: OBJECT, owner: OWNER, node_id: NODE, size: 1 << 33 };
    let args = [
        (None, ArgValue::Inline(b"one")),
        (None, ArgValue::Reference(OBJECT)),
        (Some("two"), stored),
        (Some("three"), ArgValue::Inline(b"")),
    ];
    let spec = Some(GeneratorSpec { is_dynamic: false, objects_per_yield: 1, limit: 10, actor_limit: 0 });
    let grouped = Some(GroupContext { group_id: GROUP, capture: true });
    let listed = RetryExceptions::Listed(&b"types"[..]);
    for (name, target, group, retriable, args, generator, retry_exceptions) in [
        ("task", function.clone(), None, true, &args[..], None, listed),
        ("call", method, None, false, &args, None, RetryExceptions::Always),
        ("bare", function.clone(), None, false, &[], None, RetryExceptions::Never),
        ("grouped", function.clone(), grouped, true, &[], None, RetryExceptions::Never),
        ("generator", function, None, true, &args[..1], spec, RetryExceptions::Never),
    ] {
        let header = TaskHeader {
            task_id: TASK,
            attempt: 1,
            target,
            group,
            num_returns: 2,
            retriable,
            retries: 1,
            created_us: 1 << 50,
            name: "module.f",
            generator,
            retry_exceptions,
        };
        let mut out = vec![Kind::PushTask as u8];
        header.write(&mut out);
        args.iter().for_each(|(keyword, value)| write_arg(&mut out, *keyword, value));
        seeds.push((format!("peer_message/{name}"), out));
    }
}

fn replies(seeds: &mut Seeds) {
    let cause = || "exit code 1".to_owned();
    let inline = Returned { value: Value::Inline(Bytes::from_static(b"value")), contained: vec![] };
    let value = Value::Stored { node_id: NODE, size: 1 << 33 };
    let stored = Returned { value, contained: vec![(OBJECT, OWNER); 2] };
    let crashed = Failure::WorkerCrashed {
        task_id: TASK,
        name: "f".to_owned(),
        worker_id: WORKER,
        cause: cause(),
        out_of_memory: true,
    };
    let error = Bytes::from_static(b"error");
    let died = Failure::ActorDied {
        actor_id: ACTOR,
        class_name: "A".to_owned(),
        cause: cause(),
        error: error.clone(),
        end: ActorEnd::OutOfMemory,
    };
    let name = || "f".to_owned();
    let kind = Unschedulable::PlacementGroupRemoved;
    let unschedulable =
        Failure::Unschedulable { task_id: TASK, name: name(), kind, reason: cause(), ran: true };
    let outcomes = [
        ("reply", Ok(vec![inline, stored])),
        ("reply-nothing", Ok(vec![])),
        ("reply-raised", Err(Failure::Raised(error.clone()))),
        ("reply-listed", Err(Failure::RaisedListed(error))),
        ("reply-crashed", Err(crashed)),
        ("reply-actor-died", Err(died)),
        ("reply-unschedulable", Err(unschedulable)),
        ("reply-cancelled", Err(Failure::Cancelled(TASK))),
        ("reply-owner-died", Err(Failure::OwnerDied { object_id: OBJECT, owner: WORKER, cause: cause() })),
        ("reply-freed", Err(Failure::Freed { object_id: OBJECT, cause: cause() })),
        ("reply-store-full", Err(Failure::StoreFull { out_of_disk: true, message: cause() })),
    ];
    for (name, outcome) in outcomes {
        let mut out = vec![Kind::TaskReply as u8];
        let is_last = outcome.is_ok();
        let reply = TaskReply { task_id: TASK, attempt: 1, execution_us: 5, is_last, outcome };
        reply.write(&mut out).expect("a reply can be encoded");
        seeds.push((format!("peer_message/{name}"), out));
    }
    let values = [
        ("item", Value::Inline(Bytes::from_static(b"value"))),
        ("item-stored", Value::Stored { node_id: NODE, size: 1 << 33 }),
        ("item-failed", Failure::System("a fault".to_owned()).into()),
    ];
    for (name, value) in values {
        let mut out = vec![Kind::StreamItem as u8];
        let item = Returned { value, contained: vec![(OBJECT, OWNER)] };
        let item = StreamItem { task_id: TASK, attempt: 1, index: 7, item };
        item.write(&mut out).expect("an item can be encoded");
        seeds.push((format!("peer_message/{name}"), out));
    }
}
