//! A node of this process, a fork server whose workers are threads' worth of nothing, and clients that
//! speak frames.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ray_core::error::RayResult;
use ray_core::id::{JobId, LeaseId, WorkerId};
use ray_core::resource::Resources;
use ray_link::message::{JobDescription, LeasedWorker, LinkMessage, Role};
use ray_link::{Connection, ConnectionError, FromRaylet, ToRaylet};
use ray_raylet::node::{NodeConfig, NodeInfoJson, run};

/// How long anything may take before a test fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

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

/// A process of the fork server: it does nothing until it is killed.
struct Process {
    worker_id: WorkerId,
    child: Child,
}

/// Makes a `sleep` for each worker that is ordered, and reports its end.
struct FakeForkServer {
    thread: JoinHandle<()>,
    processes: Arc<Mutex<Vec<Process>>>,
}

impl FakeForkServer {
    fn start(socket: UnixStream, ordered: mpsc::Sender<(WorkerId, u32)>) -> Self {
        let processes = Arc::new(Mutex::new(Vec::<Process>::new()));
        let thread = std::thread::spawn({
            let processes = Arc::clone(&processes);
            move || serve_forks(socket, &ordered, &processes)
        });
        Self { thread, processes }
    }
}

fn serve_forks(socket: UnixStream, ordered: &mpsc::Sender<(WorkerId, u32)>, processes: &Mutex<Vec<Process>>) {
    socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
    let mut writer = socket.try_clone().unwrap();
    let mut reader = BufReader::new(socket);
    let mut line = String::new();
    loop {
        match reader.read_line(&mut line) {
            Ok(0) => break,
            Ok(_) if line.ends_with('\n') => {
                let order: serde_json::Value = serde_json::from_str(&line).unwrap();
                let worker_id = WorkerId::from_hex(order["fork"]["worker_id"].as_str().unwrap()).unwrap();
                for stream in ["stdout", "stderr"] {
                    std::fs::File::create(order["fork"][stream].as_str().unwrap()).unwrap();
                }
                let child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
                let pid = child.id();
                let report = format!("{{\"forked\":{{\"worker_id\":\"{worker_id}\",\"pid\":{pid}}}}}\n");
                if writer.write_all(report.as_bytes()).is_err() {
                    break;
                }
                processes.lock().unwrap().push(Process { worker_id, child });
                let _ = ordered.send((worker_id, pid));
                line.clear();
            }
            _ => {}
        }
        report_exits(&mut writer, processes);
    }
    for mut process in processes.lock().unwrap().drain(..) {
        let _ = process.child.kill();
        process.child.wait().unwrap();
    }
}

fn report_exits(writer: &mut UnixStream, processes: &Mutex<Vec<Process>>) {
    use std::os::unix::process::ExitStatusExt;
    processes.lock().unwrap().retain_mut(|process| {
        let Some(status) = process.child.try_wait().unwrap() else { return true };
        let report = serde_json::json!({
            "exited": { "pid": process.child.id(), "code": status.code(), "signal": status.signal() }
        });
        let _ = writeln!(writer, "{report}");
        false
    });
}

/// A node and its surroundings.
pub(crate) struct World {
    pub(crate) info: NodeInfoJson,
    _folder: tempfile::TempDir,
    node: Option<JoinHandle<RayResult<()>>>,
    fork_server: Option<FakeForkServer>,
    ordered: mpsc::Receiver<(WorkerId, u32)>,
}

impl World {
    /// A head with so many CPUs, of a driver's own cluster.
    pub(crate) fn start(cpus: f64) -> Self {
        Self::start_with(|config| config.config.raylet.num_cpus = Some(cpus))
    }

    pub(crate) fn start_with(change: impl FnOnce(&mut NodeConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = NodeConfig {
            temp_dir: Some(folder.path().to_owned()),
            own_process: false,
            owner_pid: Some(std::process::id()),
            ..NodeConfig::default()
        };
        config.config.raylet.num_cpus = Some(2.0);
        config.config.raylet.prestart_workers = 0;
        config.config.object_store.capacity_bytes = 16 << 20;
        change(&mut config);
        let (node_end, server_end) = UnixStream::pair().unwrap();
        let (orders, ordered) = mpsc::channel();
        let fork_server = FakeForkServer::start(server_end, orders);
        let (ready, info) = mpsc::channel();
        let node = std::thread::spawn(move || {
            run(config, OwnedFd::from(node_end), |info| ready.send(info.clone()).unwrap())
        });
        let info = info.recv_timeout(LIMIT).expect("the node is ready in time");
        Self { info, _folder: folder, node: Some(node), fork_server: Some(fork_server), ordered }
    }

    /// A new driver with a job of its own.
    pub(crate) fn driver(&self) -> Client {
        let job_id = JobId::random();
        let job = JobDescription {
            job_id,
            namespace: "test".to_owned(),
            entrypoint: "test".to_owned(),
            metadata: Default::default(),
            runtime_env: Default::default(),
        };
        let mut client = Client::connect(self, WorkerId::random(), Role::Driver(job), std::process::id());
        client.job_id = job_id;
        client
    }

    /// A driver of this job, or a worker of another node.
    pub(crate) fn visitor(&self, drives: Option<JobId>) -> Client {
        Client::connect(self, WorkerId::random(), Role::Visitor { drives }, std::process::id())
    }

    /// The next worker that the node orders, connected.
    pub(crate) fn worker(&self) -> Client {
        let (worker_id, pid) = self.ordered.recv_timeout(LIMIT).expect("a worker is ordered");
        Client::connect(self, worker_id, Role::Worker, pid)
    }

    /// Whether the process of this worker lives.
    pub(crate) fn lives(&self, worker_id: WorkerId) -> bool {
        let fork_server = self.fork_server.as_ref().expect("the node runs");
        fork_server.processes.lock().unwrap().iter().any(|process| process.worker_id == worker_id)
    }

    /// Kills the process of this worker, and its connection with it.
    pub(crate) fn kill(&self, worker: Client) {
        let fork_server = self.fork_server.as_ref().expect("the node runs");
        for process in fork_server.processes.lock().unwrap().iter_mut() {
            if process.worker_id == worker.worker_id {
                process.child.kill().unwrap();
            }
        }
        drop(worker);
    }

    /// Waits for the node's end.
    pub(crate) fn join(&mut self) -> RayResult<()> {
        let node = self.node.take().expect("it is joined once");
        eventually("the end of the node", || node.is_finished().then_some(()));
        let outcome = node.join().unwrap();
        self.fork_server.take().expect("it is joined once").thread.join().unwrap();
        outcome
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.node.is_some() && !std::thread::panicking() {
            self.driver().tell(ToRaylet::Shutdown { reason: "the test is over".to_owned() });
            self.join().unwrap();
        }
    }
}

/// One end of the link.
pub(crate) struct Client {
    pub(crate) worker_id: WorkerId,
    pub(crate) job_id: JobId,
    pub(crate) registered: FromRaylet,
    pub(crate) memory: Option<OwnedFd>,
    connection: Connection,
    /// Read while something else was waited for.
    put_aside: Vec<FromRaylet>,
}

impl Client {
    fn connect(world: &World, worker_id: WorkerId, role: Role, pid: u32) -> Self {
        let mut connection = Connection::connect(&world.info.socket_path, 1 << 30).unwrap();
        let socket_path = format!("/nowhere/{worker_id}");
        ToRaylet::Register { worker_id, role, pid, socket_path }.queue(&mut connection).unwrap();
        let registered =
            connection.wait_for_frame(LIMIT, |frame| FromRaylet::read(frame).unwrap()).expect("an answer");
        let memory = connection.take_descriptor();
        let job_id = JobId::nil();
        Self { worker_id, job_id, registered, memory, connection, put_aside: Vec::new() }
    }

    pub(crate) fn tell(&mut self, message: ToRaylet) {
        message.queue(&mut self.connection).unwrap();
        eventually("the node's reading", || self.connection.flush().unwrap().then_some(()));
    }

    /// The next message that `find` takes; others are kept for later.
    #[track_caller]
    pub(crate) fn wait_for<T>(&mut self, what: &str, mut find: impl FnMut(&FromRaylet) -> Option<T>) -> T {
        if let Some(at) = self.put_aside.iter().position(|message| find(message).is_some()) {
            return find(&self.put_aside.remove(at)).expect("it was found");
        }
        loop {
            let message = self
                .connection
                .wait_for_frame(LIMIT, |frame| FromRaylet::read(frame).unwrap())
                .unwrap_or_else(|error| panic!("{what}: {error}; so far {:?}", self.put_aside));
            if let Some(found) = find(&message) {
                return found;
            }
            self.put_aside.push(message);
        }
    }

    pub(crate) fn demand(&mut self, class: u64, cpus: f64, target: u32) {
        let resources = Resources::new().with_cpu(cpus).unwrap();
        let job_id = self.job_id;
        let (shape, runtime_env) = (resources.into(), Default::default());
        self.tell(ToRaylet::SetLeaseDemand { class, shape, job_id, runtime_env, target });
    }

    #[track_caller]
    pub(crate) fn granted(&mut self) -> (LeaseId, LeasedWorker) {
        self.wait_for("a lease", |message| match message {
            FromRaylet::LeaseGranted { lease_id, worker, .. } => Some((*lease_id, worker.clone())),
            _ => None,
        })
    }

    #[track_caller]
    pub(crate) fn worker_died(&mut self, worker_id: WorkerId) -> String {
        self.wait_for("the end of a worker", |message| match message {
            FromRaylet::WorkerDied { worker_id: other, cause, .. } if *other == worker_id => {
                Some(cause.clone())
            }
            _ => None,
        })
    }

    /// Waits until the node ends the connection.
    pub(crate) fn wait_for_end(&mut self) {
        loop {
            match self.connection.wait_for_frame(LIMIT, |_| ()) {
                Ok(()) => {}
                Err(ConnectionError::Closed) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}
