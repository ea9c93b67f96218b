//! A node in this process, a fork server whose workers are this program again, and drivers.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;
use ray_core::config::WorkerConfig;
use ray_core::error::RayResult;
use ray_core::id::ObjectId;
use ray_core::pb::gcs;
use ray_core::pb::object_store::GetUsageRequest;
use ray_core::pb::object_store::object_store_service_client::ObjectStoreServiceClient;
use ray_core::resource::Resources;
use ray_core::runtime_env::RuntimeEnv;
use ray_link::message::GcsMethod;
use ray_raylet::node::{NodeConfig, NodeInfoJson, run};
use ray_worker::core::{Listening, Notification};
use ray_worker::{CoreWorker, Membership};
use rustix::process::{Pid, Signal, kill_process};

use crate::front::{Front, LIMIT, never};
use crate::process::{Nonsense, SOCKET, TEST, WORKER};

/// Polls until `find` finds something.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(start.elapsed() < LIMIT, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Starts a process for each worker that is ordered, and reports its end, until the node is gone.
fn serve_forks(
    socket: UnixStream,
    node_socket: &Mutex<Option<PathBuf>>,
    mut nonsense: VecDeque<Option<Nonsense>>,
) {
    let writer = Arc::new(Mutex::new(socket.try_clone().unwrap()));
    let mut waiting = Vec::new();
    for line in BufReader::new(socket).lines() {
        let Ok(line) = line else { break };
        let order: serde_json::Value = serde_json::from_str(&line).unwrap();
        let worker_id = order["fork"]["worker_id"].as_str().unwrap().to_owned();
        let output = |stream: &str| {
            Stdio::from(std::fs::File::create(order["fork"][stream].as_str().unwrap()).unwrap())
        };
        let node_socket = eventually("the node's socket", || node_socket.lock().unwrap().clone());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", TEST, "--nocapture"])
            .env(WORKER, &worker_id)
            .env(SOCKET, node_socket)
            .stdin(Stdio::null())
            .stdout(output("stdout"))
            .stderr(output("stderr"));
        if let Some(nonsense) = nonsense.pop_front().flatten() {
            nonsense.put_in(&mut command);
        }
        let mut child = command.spawn().unwrap();
        let pid = child.id();
        say(&writer, &serde_json::json!({ "forked": { "worker_id": worker_id, "pid": pid } }));
        let writer = Arc::clone(&writer);
        waiting.push(std::thread::spawn(move || {
            let status = child.wait().unwrap();
            let (code, signal) = (status.code(), status.signal());
            say(&writer, &serde_json::json!({ "exited": { "pid": pid, "code": code, "signal": signal } }));
        }));
    }
    // A worker ends with its node.
    waiting.into_iter().for_each(|thread| thread.join().unwrap());
}

fn say(writer: &Mutex<UnixStream>, report: &serde_json::Value) {
    // At its end the node does not listen any more.
    let _ = writeln!(writer.lock().unwrap(), "{report}");
}

/// A node and its surroundings.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) info: NodeInfoJson,
    folder: tempfile::TempDir,
    node: Option<JoinHandle<RayResult<()>>>,
    fork_server: Option<JoinHandle<()>>,
}

impl World {
    /// A head with so many CPUs.
    pub(crate) fn start(cpus: f64) -> Self {
        Self::start_with(cpus, [])
    }

    /// As [`World::start`]; of its first workers, in the order of their start, some talk nonsense.
    pub(crate) fn start_with(cpus: f64, nonsense: impl Into<VecDeque<Option<Nonsense>>>) -> Self {
        let nonsense = nonsense.into();
        let folder = tempfile::tempdir().unwrap();
        let mut config = NodeConfig {
            temp_dir: Some(folder.path().to_owned()),
            own_process: false,
            owner_pid: Some(std::process::id()),
            ..NodeConfig::default()
        };
        config.config.raylet.num_cpus = Some(cpus);
        config.config.raylet.prestart_workers = 0;
        config.config.object_store.capacity_bytes = 64 << 20;
        let (node_end, server_end) = UnixStream::pair().unwrap();
        let node_socket = Arc::new(Mutex::new(None));
        let fork_server = std::thread::spawn({
            let node_socket = Arc::clone(&node_socket);
            move || serve_forks(server_end, &node_socket, nonsense)
        });
        let (ready, info) = mpsc::channel();
        let node = std::thread::spawn(move || {
            run(config, OwnedFd::from(node_end), |info| ready.send(info.clone()).unwrap())
        });
        let info: NodeInfoJson = info.recv_timeout(LIMIT).expect("the node is ready in time");
        *node_socket.lock().unwrap() = Some(info.socket_path.clone());
        Self { info, folder, node: Some(node), fork_server: Some(fork_server) }
    }

    /// A new driver with a job of its own.
    pub(crate) fn driver(&self) -> Driver {
        self.driver_with(WorkerConfig::default())
    }

    pub(crate) fn driver_with(&self, config: WorkerConfig) -> Driver {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let membership = Membership::Driver {
            namespace: "test".to_owned(),
            entrypoint: "test".to_owned(),
            metadata: BTreeMap::new(),
            job_config: Bytes::from_static(b"job"),
            runtime_env: RuntimeEnv::none(),
        };
        let listening = Box::new(Hearing(Arc::clone(&heard)));
        let core = CoreWorker::connect(&self.info.socket_path, membership, config, listening)
            .unwrap_or_else(|error| panic!("{}", error.chain()));
        Driver { front: Front { core }, heard }
    }

    /// A gate that is closed.
    pub(crate) fn gate(&self, name: &str) -> Gate {
        Gate { path: self.folder.path().join(name) }
    }

    /// Bytes and objects in the node's store.
    pub(crate) fn store_usage(&self) -> (u64, u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let reply = runtime.block_on(async {
            let address = format!("http://{}", self.info.gcs_address);
            let mut client = ObjectStoreServiceClient::connect(address).await.unwrap();
            client.get_usage(GetUsageRequest {}).await.unwrap().into_inner()
        });
        (reply.used_bytes, reply.objects)
    }

    #[track_caller]
    pub(crate) fn wait_for_empty_store(&self) {
        eventually("the end of all objects", || (self.store_usage() == (0, 0)).then_some(()));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.driver().core.shutdown(true);
            let node = self.node.take().unwrap();
            eventually("the end of the node", || node.is_finished().then_some(()));
            node.join().unwrap().unwrap();
            self.fork_server.take().unwrap().join().unwrap();
        }
    }
}

/// Kills a process as the kernel would.
pub(crate) fn kill(pid: u64) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

/// Holds tasks up until it is opened.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    path: PathBuf,
}

impl Gate {
    pub(crate) fn path(&self) -> String {
        self.path.to_str().unwrap().to_owned()
    }

    pub(crate) fn open(&self) {
        std::fs::write(&self.path, "").unwrap();
    }

    /// The processes of the tasks that have begun to wait for it.
    pub(crate) fn begun(&self) -> Vec<u64> {
        let lines = std::fs::read_to_string(format!("{}.begun", self.path())).unwrap_or_default();
        lines.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// The processes of the first `count` tasks that wait for it.
    #[track_caller]
    pub(crate) fn wait_for_begun(&self, count: usize) -> Vec<u64> {
        eventually("the begin of a task", || Some(self.begun()).filter(|begun| begun.len() >= count))
    }
}

#[derive(Debug)]
struct Hearing(Arc<Mutex<Vec<Notification>>>);

impl Listening for Hearing {
    fn notify(&self, notification: Notification) {
        self.0.lock().unwrap().push(notification);
    }
}

/// A driver, which leaves at its end.
#[derive(Debug)]
pub(crate) struct Driver {
    front: Front,
    heard: Arc<Mutex<Vec<Notification>>>,
}

impl std::ops::Deref for Driver {
    type Target = Front;

    fn deref(&self) -> &Front {
        &self.front
    }
}

impl Driver {
    /// The first warning that was told.
    #[track_caller]
    pub(crate) fn warning(&self) -> String {
        eventually("a warning", || {
            self.heard.lock().unwrap().iter().find_map(|notification| match notification {
                Notification::Warning(text) => Some(text.clone()),
                Notification::Log { .. }
                | Notification::Interrupt
                | Notification::CancelCall(_)
                | Notification::ResumeCall(_)
                | Notification::StartThreads { .. }
                | Notification::Pending(_)
                | Notification::Released(_)
                | Notification::UnhandledError { .. } => None,
            })
        })
    }

    /// Watched objects of whose end this driver was told.
    pub(crate) fn released(&self) -> Vec<ObjectId> {
        let heard = self.heard.lock().unwrap();
        let released = |notification: &Notification| match notification {
            Notification::Released(object_id) => Some(*object_id),
            _ => None,
        };
        heard.iter().filter_map(released).collect()
    }

    /// CPUs of the cluster that nothing takes, as the control plane knows.
    pub(crate) fn free_cpus(&self) -> f64 {
        let body = gcs::GetClusterResourcesRequest {}.encode_to_vec().into();
        let reply = self.core.call_gcs(GcsMethod::GetClusterResources, body, LIMIT, &mut never).unwrap();
        let reply = gcs::GetClusterResourcesReply::decode(reply).unwrap();
        Resources::try_from(reply.available.unwrap()).unwrap().get("CPU").to_f64()
    }

    /// Waits until this process refers to no object any more.
    #[track_caller]
    pub(crate) fn wait_for_no_references(&self) {
        eventually("the end of all references", || (self.core.reference_usage().0 == 0).then_some(()));
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.core.shutdown(false);
    }
}
