//! A node from its start to its end.
//!
//! ```text
//!   session -> control plane (head) -> gRPC on one port -> registered -> ready
//!     -> [the link server on the calling thread] -> everyone told to go -> leave the cluster
//!     -> services end -> whatever process is left is killed -> sockets removed
//! ```

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ray_core::config::{Config, GcsConfig, GcsStorage};
use ray_core::constraint::NODE_ID_LABEL;
use ray_core::error::{RayError, RayResult};
use ray_core::id::NodeId;
use ray_core::pb::gcs;
use ray_core::pb::raylet::raylet_service_server::RayletServiceServer;
use ray_core::resource::Resources;
use ray_gcs::Gcs;
use ray_gcs::transport::{LocalNode, Transport};
use ray_link::{Listener, Waker};
use ray_object_store::grpc::ObjectStoreServiceImpl;
use ray_object_store::spill::{FileSpill, SpillBackend};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tracing::{info, warn};

use super::effect::NodeIdentity;
use super::fork_server::ForkServer;
use super::gcs_port::{GcsPort, UsageReport};
use super::handle::{Command, NodeHandle};
use super::hardware::{self, FoundGpus, Hardware};
use super::link_server::{LinkServer, LinkServerParts};
use super::machine::NodeMachine;
use super::memory::MemoryWatch;
use super::metrics_server;
use super::object_store::NodeObjectStore;
use super::process_tree;
use super::session::{NodeInfoJson, Session};
use super::store_port::StorePort;
use crate::grpc::RayletGrpc;
use crate::log_monitor::{LogCommand, LogEvent, LogMonitor};

/// Names the folder of all sessions where the configuration does not.
const TEMP_DIR_VARIABLE: &str = "RAY_RUST_TMPDIR";
/// Folder of all sessions if nobody names one.
const TEMP_DIR: &str = "/tmp/ray_rust";
/// How long a node waits at its start for the control plane.
const JOIN_LIMIT: Duration = Duration::from_secs(30);
/// How long a node that ends waits for the control plane's answer.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);
/// How long services may take to end.
const SERVICES_LIMIT: Duration = Duration::from_millis(200);
/// How long processes below the node may take to die of SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(2);
/// Messages that may wait between the node's thread and each of its helpers.
const CHANNEL: usize = 4_096;

/// How a node is started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// Folder of all sessions. Default: what `RAY_RUST_TMPDIR` names, else `/tmp/ray_rust`.
    pub temp_dir: Option<PathBuf>,
    /// "host:port" of the control plane to join. Default: none, this node is a head and hosts it.
    pub gcs_address: Option<String>,
    /// Port of the node's gRPC services on the loopback interface; 0 (default) takes a free one.
    pub port: u16,
    /// Process id of the driver with which the node ends. Default: none, it lives until it is stopped.
    pub owner_pid: Option<u32>,
    /// Whether drivers of this machine that name no cluster join this one. Default: if the node is a head that no
    /// driver owns.
    pub announce: Option<bool>,
    /// Graphics processors that were found, for nodes whose settings do not say how many they have. Default: none,
    /// then the driver's files are counted.
    pub found_gpus: Option<u32>,
    /// What the vendor's library calls their type, such as "H100". Default: unknown.
    pub found_gpu_type: Option<String>,
    /// Variables for the environment of workers.
    pub worker_env: BTreeMap<String, String>,
    /// Whether the process is the node's alone (default): it logs to the session's folder, and at its
    /// end every process below it is killed. Unset it to run a node inside of a larger program.
    pub own_process: bool,
    /// All settings.
    pub config: Config,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            temp_dir: None,
            gcs_address: None,
            port: 0,
            owner_pid: None,
            announce: None,
            found_gpus: None,
            found_gpu_type: None,
            worker_env: BTreeMap::new(),
            own_process: true,
            config: Config::default(),
        }
    }
}

impl NodeConfig {
    /// The configuration that this JSON describes; settings that it leaves out come from the file and
    /// the variables that [`Config::from_env`] reads.
    ///
    /// # Errors
    /// `Config` naming the wrong key.
    pub fn from_json(text: &str) -> RayResult<Self> {
        let wrong = |error: serde_json::Error| RayError::Config {
            key: "configuration of the node".to_owned(),
            reason: error.to_string(),
        };
        let given: serde_json::Value = serde_json::from_str(text).map_err(wrong)?;
        let mut all =
            serde_json::json!({ "config": serde_json::to_value(Config::from_env()?).map_err(wrong)? });
        overlay(&mut all, given);
        serde_json::from_value(all).map_err(wrong)
    }

    const fn is_head(&self) -> bool {
        self.gcs_address.is_none()
    }

    fn temp_dir(&self) -> PathBuf {
        let named = || std::env::var_os(TEMP_DIR_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        self.temp_dir.clone().or_else(named).unwrap_or_else(|| PathBuf::from(TEMP_DIR))
    }
}

/// Sets in `base` what `given` says, leaving what it does not mention.
fn overlay(base: &mut serde_json::Value, given: serde_json::Value) {
    match (base, given) {
        (serde_json::Value::Object(base), serde_json::Value::Object(given)) => {
            for (key, value) in given {
                overlay(base.entry(key).or_insert(serde_json::Value::Null), value);
            }
        }
        (base, given) => *base = given,
    }
}

/// Runs a node on the calling thread until it ends: told so by a signal, its driver or a caller, or
/// because its owner has ended. `fork_server` is one end of a stream socket pair, at whose other
/// end workers are made. `on_ready` is called once the node takes workers and drivers.
///
/// # Errors
/// If the node cannot start, or can serve no longer.
pub fn run(config: NodeConfig, fork_server: OwnedFd, on_ready: impl FnOnce(&NodeInfoJson)) -> RayResult<()> {
    config.config.validate()?;
    let owner = match config.owner_pid.map(watch_process).transpose()? {
        Some(None) => return Ok(()),
        other => other.flatten(),
    };
    if config.own_process {
        process_tree::adopt_orphans();
    }
    let session = Session::create(&config.temp_dir())?;
    if config.own_process {
        let logs = config.config.log.directory.clone().unwrap_or_else(|| session.logs());
        ray_core::log::init_logging_at("node", Some(&logs), &config.config.log.level)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("node-io")
        .enable_all()
        .build()
        .map_err(|error| RayError::io("cannot start the node's threads", error))?;
    let own_process = config.own_process;
    let outcome = serve(config, &runtime, session, fork_server, owner, on_ready);
    runtime.shutdown_timeout(SERVICES_LIMIT);
    if own_process {
        process_tree::kill_descendants(KILL_LIMIT);
    }
    outcome
}

/// Everything between the start of the threads and their end.
fn serve(
    config: NodeConfig,
    runtime: &Runtime,
    mut session: Session,
    fork_server: OwnedFd,
    owner: Option<OwnedFd>,
    on_ready: impl FnOnce(&NodeInfoJson),
) -> RayResult<()> {
    let waker = Waker::new().map_err(|error| RayError::io("cannot make the node's waker", error))?;
    let waker = Arc::new(waker);
    let (handle, inbox) = NodeHandle::new(Arc::clone(&waker));
    let mut node = runtime.block_on(Services::start(&config, &session, handle))?;
    let socket_path = session.socket_path(node.identity.node_id);
    let listener = Listener::bind(&socket_path).map_err(|error| RayError::Unavailable {
        peer: "the node's socket".to_owned(),
        cause: error.to_string(),
    })?;
    let info = node.describe(&session, config.owner_pid.is_some());
    let machine = NodeMachine::new(node.identity.clone(), node.total.clone(), &config.config);
    let store = node.store.take().expect("it is taken once");
    let raylet = &config.config.raylet;
    let (log_commands, log_inbox) = mpsc::channel(CHANNEL);
    let (gcs_calls, calls) = mpsc::channel(CHANNEL);
    let (gcs_reports, reports) = mpsc::channel(CHANNEL);
    let (usage, usage_changes) = watch::channel(UsageReport::default());
    let parts = LinkServerParts {
        identity: node.identity.clone(),
        machine,
        store,
        listener,
        fork_server: ForkServer::new(fork_server),
        owner,
        waker,
        inbox,
        logs: session.logs(),
        log_commands,
        worker_env: config.worker_env.clone(),
        gcs_calls,
        gcs_reports,
        usage,
        report_interval: Duration::from_millis(raylet.report_interval_ms),
        shutdown_grace: Duration::from_millis(raylet.shutdown_grace_ms),
        memory: MemoryWatch::new(raylet.memory_check_interval_ms, raylet.memory_usage_threshold),
        max_metric_series: raylet.max_metric_series,
    };
    let server = LinkServer::new(parts)?;
    let node_info = node.node_info(&config, &session);
    runtime.block_on(async {
        let heartbeat_every = node.gcs.register(&node_info, JOIN_LIMIT).await?;
        node.tasks.spawn(node.gcs.clone().run_membership(node_info, heartbeat_every, usage_changes));
        node.tasks.spawn(node.gcs.clone().run_calls(calls));
        node.tasks.spawn(node.gcs.clone().run_reports(reports));
        node.tasks.spawn(follow_logs(session.logs(), log_inbox, node.handle.clone()));
        node.tasks.spawn(follow_signals(node.handle.clone()));
        Ok::<_, RayError>(())
    })?;
    let announce = config.announce.unwrap_or_else(|| config.is_head() && config.owner_pid.is_none());
    session.publish(&info, announce)?;
    info!(node_id = %info.node_id, gcs_address = info.gcs_address, "the node is ready");
    on_ready(&info);
    let outcome = server.run();
    runtime.block_on(node.stop(config.is_head(), outcome.as_ref().map_or("it failed", String::as_str)));
    outcome.map(drop)
}

/// What runs on tokio beside the link server.
struct Services {
    identity: NodeIdentity,
    total: Resources,
    /// Until the link server takes it.
    store: Option<StorePort>,
    address: SocketAddr,
    handle: NodeHandle,
    gcs: GcsPort,
    control_plane: Option<Gcs>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    metrics_port: u16,
}

impl Services {
    async fn start(config: &NodeConfig, session: &Session, handle: NodeHandle) -> RayResult<Self> {
        let failed = |error| RayError::io(format!("cannot listen on port {}", config.port), error);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, config.port)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let gcs_address = config.gcs_address.clone().unwrap_or_else(|| address.to_string());
        let host = address.ip().to_string();
        let gpus = FoundGpus { count: config.found_gpus, kind: config.found_gpu_type.clone() };
        let hardware = Hardware::find(&config.config, &host, config.is_head(), gpus)?;
        let settings = &config.config.object_store;
        let folder = settings.spill_directory.clone().unwrap_or_else(|| session.folder().join("spilled"));
        let spill: Arc<dyn SpillBackend> = Arc::new(FileSpill::new(folder)?);
        let (node_id, bytes) = (NodeId::random(), hardware.store_bytes);
        let store = StorePort::new(node_id, bytes, settings, Some(spill), Handle::current(), handle.clone())?;
        let identity = NodeIdentity {
            node_id,
            gcs_address: gcs_address.clone(),
            session_dir: session.folder().display().to_string(),
            store_capacity: store.capacity(),
            labels: labels(node_id, config),
        };
        let chunk_bytes = config.config.object_store.transfer_chunk_bytes;
        let raylet = RayletServiceServer::new(RayletGrpc::new(handle.clone(), node_id, chunk_bytes))
            .max_decoding_message_size(usize::MAX);
        let timeout = Duration::from_millis(config.config.gcs.rpc_timeout_ms);
        let (control_plane, gcs) = if config.is_head() {
            let node = LocalNode { address: address.to_string(), services: Routes::new(raylet.clone()) };
            let settings = control_plane_config(config, session.folder());
            let control_plane = Gcs::start_beside(&settings, node).await?;
            let services = Routes::new(control_plane.grpc_service());
            let gcs = GcsPort::over(Transport::Here(services), timeout, handle.clone());
            (Some(control_plane), gcs)
        } else {
            (None, GcsPort::connect(&gcs_address, timeout, handle.clone())?)
        };
        let (tasks, stop) = (JoinSet::new(), CancellationToken::new());
        if !config.is_head()
            && let Some(folder) = gcs.shared_sockets(JOIN_LIMIT).await?
        {
            // Through no chain of links, of which one may go before this node does.
            let folder = folder.canonicalize().map_err(|error| {
                RayError::io(format!("cannot find the folder of sockets {}", folder.display()), error)
            })?;
            session.share_sockets(&folder)?;
        }
        let total = hardware.total;
        let store = Some(store);
        let metrics_port = config.config.raylet.metrics_port;
        let failed = |error| RayError::io(format!("cannot offer metrics on port {metrics_port}"), error);
        let metrics = TcpListener::bind((Ipv4Addr::LOCALHOST, metrics_port)).await.map_err(failed)?;
        let metrics_port = metrics.local_addr().map_err(failed)?.port();
        let mut services =
            Self { identity, total, store, address, handle, gcs, control_plane, tasks, stop, metrics_port };
        services.tasks.spawn(metrics_server::serve(metrics, services.handle.clone()));
        services.listen(raylet, listener);
        Ok(services)
    }

    fn listen(&mut self, raylet: RayletServiceServer<RayletGrpc>, listener: TcpListener) {
        let objects = Arc::new(NodeObjectStore::new(self.handle.clone()));
        let objects = ObjectStoreServiceImpl::new(objects).into_server();
        let control_plane = self.control_plane.as_ref().map(Gcs::grpc_service);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let services =
            Server::builder().add_service(raylet).add_service(objects).add_optional_service(control_plane);
        let (stop, handle) = (self.stop.clone(), self.handle.clone());
        self.tasks.spawn(async move {
            if let Err(error) = services.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await
            {
                let reason = format!("its gRPC services failed: {error}");
                drop(handle.send(Command::Shutdown(reason)).await);
            }
        });
    }

    fn describe(&self, session: &Session, owned_by_driver: bool) -> NodeInfoJson {
        NodeInfoJson {
            gcs_address: self.identity.gcs_address.clone(),
            node_address: self.address.to_string(),
            socket_path: session.socket_path(self.identity.node_id),
            node_id: self.identity.node_id,
            pid: std::process::id(),
            session_dir: session.folder().to_owned(),
            owned_by_driver,
            metrics_export_port: self.metrics_port,
        }
    }

    fn node_info(&self, config: &NodeConfig, session: &Session) -> gcs::NodeInfo {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        gcs::NodeInfo {
            node_id: self.identity.node_id.to_binary(),
            state: gcs::node_info::State::Alive.into(),
            raylet_address: self.address.to_string(),
            hostname: hardware::hostname(),
            total: Some((&self.total).into()),
            labels: self.identity.labels.clone().into_iter().collect(),
            is_head: config.is_head(),
            death_reason: String::new(),
            start_time_ms: u64::try_from(since.as_millis()).unwrap_or_default(),
            end_time_ms: 0,
            socket_path: session.socket_path(self.identity.node_id).display().to_string(),
            metrics_port: self.metrics_port.into(),
        }
    }

    async fn stop(mut self, is_head: bool, reason: &str) {
        if !is_head {
            // The cluster lives on without this node, and should know at once.
            self.gcs.unregister(self.identity.node_id, reason, LEAVE_LIMIT).await;
        }
        self.stop.cancel();
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
        if let Some(control_plane) = self.control_plane {
            let _ = tokio::time::timeout(SERVICES_LIMIT, control_plane.shutdown()).await;
        }
    }
}

/// What the node can be chosen by: what it was given, and its id.
fn labels(node_id: NodeId, config: &NodeConfig) -> BTreeMap<String, String> {
    let mut labels = config.config.raylet.labels.clone();
    labels.insert(NODE_ID_LABEL.to_owned(), node_id.hex());
    labels
}

/// The control plane of a driver's own cluster ends with it and keeps nothing; that of a head that was
/// started by hand keeps its tables in the session's folder.
fn control_plane_config(config: &NodeConfig, session: &Path) -> GcsConfig {
    let mut gcs = config.config.gcs.clone();
    if config.owner_pid.is_some() {
        gcs.storage = GcsStorage::Memory;
    }
    gcs.storage_path.get_or_insert_with(|| session.join("gcs.redb"));
    gcs
}

/// A descriptor that is readable once the process has ended; `None` if it has ended already.
fn watch_process(pid: u32) -> RayResult<Option<OwnedFd>> {
    let no_process = || RayError::InvalidArgument(format!("{pid} is no process id"));
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(no_process)?;
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => Ok(Some(process)),
        Err(Errno::SRCH) => Ok(None),
        Err(error) => Err(RayError::io(format!("cannot watch process {}", pid.as_raw_nonzero()), error)),
    }
}

async fn follow_logs(
    logs: PathBuf,
    commands: mpsc::Receiver<LogCommand<super::link_server::FlushMark>>,
    node: NodeHandle,
) {
    let say = async move |event: LogEvent<super::link_server::FlushMark>| {
        let command = match event {
            LogEvent::Lines { job_id, pid, is_stderr, batch } => {
                Command::LogLines { job_id, pid, is_stderr, batch }
            }
            LogEvent::Flushed((client, request)) => Command::LogsFlushed { client, request },
        };
        node.send(command).await.map_err(drop)
    };
    LogMonitor::new(logs).run(commands, say).await;
}

/// Ends the node at SIGTERM or SIGINT.
async fn follow_signals(node: NodeHandle) {
    let (terminate, interrupt) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = (terminate, interrupt) else {
        warn!("signals cannot be followed: SIGTERM ends the node without a goodbye");
        return;
    };
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    drop(node.send(Command::Shutdown(format!("it got {name}"))).await);
}
