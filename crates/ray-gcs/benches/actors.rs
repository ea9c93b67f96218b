//! What living actors cost the control plane in memory, and a registration in time:
//! `cargo bench -p ray-gcs`.
//!
//! The actors live in the machine alone: nodes take orders and report at once, and there is no process.
//! What an actor brings along is as large as it is for a small class of a script, and every actor has a
//! copy of its own, as if each had come by a message of its own.
//!
//! * "tables": what the control plane has in memory in any case;
//! * "and store": with what the store in memory keeps. A durable store has that on disk.
//!
//! Bytes are those that were asked of the allocator, without what it needs for itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ray_core::config::GcsConfig;
use ray_core::constraint::Constraint;
use ray_core::id::{ActorId, JobId, NodeId, WorkerId};
use ray_core::resource::Resources;
use ray_gcs::actor::{ActorPhase, ActorSpec, Incarnation, MaxRestarts, WorkerAddress};
use ray_gcs::actor_table::NodeOrder;
use ray_gcs::clock::Now;
use ray_gcs::control_plane::{ActorOutcome, ControlPlane, Limits, OrderAnswer};
use ray_gcs::effects::Effects;
use ray_gcs::memory_store::MemoryTables;
use ray_gcs::node_table::NodeSpec;
use ray_gcs::stored::StoredTables;

const NOW: Now = Now { elapsed: Duration::ZERO, unix_ms: 0 };
const NODES: u64 = 100;
const CLASS_BYTES: usize = 2_000;
const METADATA_BYTES: usize = 500;
const JOB_CONFIG_BYTES: usize = 600;
const ARGUMENTS_BYTES: usize = 200;

fn main() {
    println!("{:>7}  {:>20}  {:>20}  {:>12}  {:>9}", "", "tables", "and store", "registration", "all");
    println!(
        "{:>7}  {:>20}  {:>20}  {:>12}  {:>9}",
        "actors", "bytes for each", "bytes for each", "us each", "us each"
    );
    for actors in [1_000, 10_000, 100_000] {
        let bare = measure(actors, false);
        let kept = measure(actors, true);
        println!(
            "{actors:>7}  {:>20}  {:>20}  {:>12.1}  {:>9.1}",
            bare.bytes, kept.bytes, bare.registration_us, bare.whole_us
        );
    }
}

/// For each actor.
struct Cost {
    bytes: usize,
    /// From the request to the order to a node.
    registration_us: f64,
    /// Until it is alive.
    whole_us: f64,
}

fn measure(actors: usize, with_store: bool) -> Cost {
    let mut cluster = Cluster::new(with_store);
    let before = ALLOCATOR.live();
    let started = Instant::now();
    let mut registering = Duration::ZERO;
    for number in 0..actors {
        let spec = spec(number);
        let began = Instant::now();
        cluster.register(spec);
        registering += began.elapsed();
        cluster.carry_out();
    }
    let whole = started.elapsed();
    let alive = |phase: &ActorPhase| matches!(phase, ActorPhase::Alive { .. });
    assert_eq!(cluster.plane.actors().iter().filter(|info| alive(&info.phase)).count(), actors);
    cluster.effects = Effects::default();
    let micros = |time: Duration| time.as_secs_f64() * 1e6 / actors as f64;
    Cost {
        bytes: (ALLOCATOR.live() - before) / actors,
        registration_us: micros(registering),
        whole_us: micros(whole),
    }
}

/// A control plane whose nodes do everything at once.
struct Cluster {
    plane: ControlPlane,
    store: Option<MemoryTables>,
    effects: Effects,
    orders: Vec<(NodeId, NodeOrder)>,
}

impl Cluster {
    fn new(with_store: bool) -> Self {
        let mut effects = Effects::default();
        let limits = Limits::from(&GcsConfig::default());
        let plane = ControlPlane::restore(limits, StoredTables::default(), NOW, &mut effects);
        let store = with_store.then(MemoryTables::default);
        let mut cluster = Self { plane, store, effects, orders: Vec::new() };
        for number in 0..NODES {
            let node = node(number);
            cluster.plane.register_node(node, NOW, &mut cluster.effects).expect("it is a new node");
            cluster.take_effects();
        }
        cluster
    }

    fn register(&mut self, spec: ActorSpec) {
        self.plane.register_actor(spec, NOW, &mut self.effects).expect("it has no name");
        self.take_effects();
    }

    /// The nodes take their orders and have the actors live.
    fn carry_out(&mut self) {
        for (node_id, order) in std::mem::take(&mut self.orders) {
            self.plane.on_order_answered(order.key(), OrderAnswer::Acknowledged, NOW, &mut self.effects);
            let NodeOrder::Create(order) = order else { unreachable!("nobody is killed") };
            let outcome = ActorOutcome::Alive { address: address(node_id, &order.target), pid: 1 };
            let report = self.plane.report_actor(order.target, outcome, NOW, &mut self.effects);
            report.expect("the node lives");
            self.take_effects();
        }
    }

    fn take_effects(&mut self) {
        let Effects { writes, orders, .. } = std::mem::take(&mut self.effects);
        self.orders.extend(orders);
        if let Some(store) = &mut self.store {
            store.apply(writes);
        }
    }
}

fn node(number: u64) -> NodeSpec {
    let mut id = [0; NodeId::LEN];
    id[..8].copy_from_slice(&number.to_le_bytes());
    NodeSpec {
        node_id: NodeId::from_bytes(id),
        raylet_address: format!("10.0.0.{number}:1234"),
        hostname: format!("machine-{number}"),
        total: Resources::from_units([("CPU", 64.0), ("memory", 256e9)]).expect("amounts are positive"),
        labels: BTreeMap::new(),
        is_head: number == 0,
        socket_path: "/tmp/ray_rust/session/sockets/raylet".to_owned(),
        metrics_port: 0,
    }
}

fn spec(number: usize) -> ActorSpec {
    let mut id = [0; ActorId::LEN];
    // In no order, as real ids are.
    id[..8].copy_from_slice(&(number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    let actor_id = ActorId::from_bytes(id);
    let one_cpu = Resources::new().with_cpu(1.0).expect("one is an amount");
    let owner = Incarnation { node_id: node(0).node_id, actor_id, num_restarts: 0 };
    ActorSpec {
        actor_id,
        job_id: JobId::from_bytes([1; JobId::LEN]),
        name: None,
        namespace: "0123456789abcdef0123456789abcdef".to_owned(),
        class_name: "Progress".to_owned(),
        placement_resources: one_cpu,
        resources: Resources::new(),
        max_restarts: MaxRestarts::Times(3),
        max_task_retries: 0,
        max_concurrency: 1,
        detached: false,
        class_id: vec![7; 16].into(),
        class_blob: vec![7; CLASS_BYTES].into(),
        creation_task: vec![7; ARGUMENTS_BYTES].into(),
        owner: Some(address(owner.node_id, &owner)),
        constraint: Constraint::default(),
        handle_metadata: vec![7; METADATA_BYTES].into(),
        job_config: vec![7; JOB_CONFIG_BYTES].into(),
        runtime_env: String::new(),
        concurrency_groups: Box::default(),
        is_async: false,
    }
}

fn address(node_id: NodeId, target: &Incarnation) -> WorkerAddress {
    WorkerAddress {
        worker_id: WorkerId::from_bytes(*target.actor_id.as_bytes()),
        node_id,
        socket_path: format!("/tmp/ray_rust/session/sockets/{}", target.actor_id),
        tcp_address: String::new(),
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting { live: AtomicUsize::new(0) };

/// The system's allocator, with a count of the bytes that are in use.
struct Counting {
    live: AtomicUsize,
}

impl Counting {
    fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }
}

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract; counting
// neither allocates nor panics.
#[expect(unsafe_code, reason = "an allocator cannot be written otherwise")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.live.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.live.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the same contract, and what it gives back came from `alloc` above.
        unsafe { System.dealloc(pointer, layout) }
    }
}
