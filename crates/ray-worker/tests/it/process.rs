//! This program as a worker's process.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use ray_core::config::WorkerConfig;
use ray_core::id::WorkerId;
use ray_core::runtime_env::RuntimeEnv;
use ray_link::message::{LinkMessage as _, Role};
use ray_link::{Connection, FrameReader, FromRaylet, ToRaylet};
use ray_worker::core::{Listening, Notification};
use ray_worker::peer_message::Kind;
use ray_worker::{CoreWorker, Membership};

use crate::front::LIMIT;
use crate::functions::Functions;

/// Set in a worker: its id.
pub(crate) const WORKER: &str = "TEST_WORKER_ID";
/// Set in a worker: the socket of its node.
pub(crate) const SOCKET: &str = "TEST_NODE_SOCKET";

/// Set in a worker that talks nonsense: what it says, in hexadecimal digits.
const NONSENSE: &str = "TEST_NONSENSE";
/// Set if its connection ends with that.
const HANGS_UP: &str = "TEST_HANGS_UP";
/// Set in it: a file that it makes when its caller has closed the connection.
const CUT_OFF: &str = "TEST_CUT_OFF";

/// The test whose process is the worker.
pub(crate) const TEST: &str = "process::a_worker";

/// Does not care about notifications.
#[derive(Debug)]
pub(crate) struct Nobody;

impl Listening for Nobody {
    fn notify(&self, _notification: Notification) {}
}

/// What a worker does; without a node this passes and shows nothing.
#[test]
fn a_worker() {
    let (Ok(worker_id), Ok(socket)) = (std::env::var(WORKER), std::env::var(SOCKET)) else { return };
    if let Ok(nonsense) = std::env::var(NONSENSE) {
        talk_nonsense(Path::new(&socket), WorkerId::from_hex(&worker_id).unwrap(), &nonsense);
        std::process::exit(0);
    }
    let session = Path::new(&socket).ancestors().nth(2).unwrap();
    ray_core::log::init_logging("worker", Some(&session.join("logs"))).unwrap();
    let membership = Membership::Worker {
        worker_id: WorkerId::from_hex(&worker_id).unwrap(),
        runtime_env: RuntimeEnv::none(),
    };
    let connected =
        CoreWorker::connect(Path::new(&socket), membership, WorkerConfig::default(), Box::new(Nobody));
    // The node may have ended meanwhile.
    let Ok(core) = connected else { std::process::exit(2) };
    let functions = Functions::default();
    let ended = core.run(&functions);
    drop(functions);
    core.shutdown(false);
    std::process::exit(i32::from(ended.is_err()));
}

/// What a worker says to its caller instead of an answer.
#[derive(Debug)]
pub(crate) struct Nonsense {
    pub(crate) said: Vec<u8>,
    /// It closes the connection after that.
    pub(crate) hangs_up: bool,
    /// Made as soon as the caller has closed the connection.
    pub(crate) cut_off: PathBuf,
}

impl Nonsense {
    pub(crate) fn put_in(&self, command: &mut Command) {
        let digits: String = self.said.iter().map(|byte| format!("{byte:02x}")).collect();
        command.env(NONSENSE, digits).env(CUT_OFF, &self.cut_off);
        if self.hangs_up {
            command.env(HANGS_UP, "1");
        }
    }
}

/// Joins the node as a worker, and talks nonsense as soon as it is sent a task.
fn talk_nonsense(node: &Path, worker_id: WorkerId, digits: &str) {
    let path = node.with_file_name(worker_id.hex());
    let listener = UnixListener::bind(&path).unwrap();
    let mut link = Connection::connect(node, 1 << 20).unwrap();
    let (pid, socket_path) = (std::process::id(), path.to_str().unwrap().to_owned());
    ToRaylet::Register { worker_id, role: Role::Worker, pid, socket_path }.queue(&mut link).unwrap();
    link.wait_for_frame(LIMIT, |frame| FromRaylet::read(frame).unwrap()).unwrap();
    let (mut caller, _) = listener.accept().unwrap();
    wait_for_task(&mut caller);
    let digits = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    let said: Vec<u8> = digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
    caller.write_all(&said).unwrap();
    if std::env::var(HANGS_UP).is_ok() {
        caller.shutdown(Shutdown::Write).unwrap();
    }
    // A connection that is closed with something unread is reset.
    while caller.read(&mut [0; 1024]).is_ok_and(|count| count > 0) {}
    std::fs::write(std::env::var(CUT_OFF).unwrap(), "").unwrap();
    // Until it is killed, or its node is gone.
    while link.wait_for_frame(LIMIT, |_| ()).is_ok() {}
}

fn wait_for_task(caller: &mut UnixStream) {
    let mut reader = FrameReader::new(1 << 20);
    loop {
        let count = caller.read(reader.room()).unwrap();
        assert!(count > 0, "the caller says something");
        reader.filled(count);
        while let Some(frame) = reader.next_frame().unwrap() {
            if frame.kind == Kind::PushTask as u8 {
                return;
            }
        }
    }
}
