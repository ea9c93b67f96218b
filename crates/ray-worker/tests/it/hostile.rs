//! Whoever is connected to a core worker and does not speak its language is cut off, and the log says why;
//! nobody else notices.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use ray_core::id::{FunctionId, JobId, NodeId, TaskId, WorkerId};
use ray_core::serialize;
use ray_link::FrameReader;
use ray_link::frame::{VERSION, write_frame};
use ray_worker::peer_message::{
    DefineFunction, Hello, Kind, PeerMessage, RetryExceptions, Target, TaskHeader, TaskReply,
};

use crate::front::{Call, LIMIT};
use crate::process::Nonsense;
use crate::world::{Driver, World, eventually};

/// What this process logs, from the first call on.
#[derive(Debug, Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl Logged {
    fn get() -> Self {
        static LOGGED: OnceLock<Logged> = OnceLock::new();
        let start = || {
            let logged = Self::default();
            let writer = logged.clone();
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
            logged
        };
        LOGGED.get_or_init(start).clone()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_frame(&mut out, kind, |out| out.extend_from_slice(payload));
    out
}

/// A frame that is right but for its last byte.
fn without_end(mut frame: Vec<u8>) -> Vec<u8> {
    let payload = frame.len() - 8 - 1;
    frame.truncate(8 + payload);
    frame[..4].copy_from_slice(&(payload as u32).to_le_bytes());
    frame
}

fn hello(job_id: JobId) -> Vec<u8> {
    let (worker_id, node_id) = (WorkerId::random(), NodeId::random());
    let hello = Hello { worker_id, node_id, job_id, job_config: Bytes::new() };
    frame(Kind::Hello as u8, &serialize::to_bytes(&hello).unwrap())
}

fn other(message: &PeerMessage) -> Vec<u8> {
    frame(Kind::Other as u8, &serialize::to_bytes(message).unwrap())
}

fn reply() -> Vec<u8> {
    let (task_id, outcome) = (TaskId::random(), Ok(Vec::new()));
    let reply = TaskReply { task_id, attempt: 0, execution_us: 0, is_last: true, outcome };
    let mut payload = Vec::new();
    reply.write(&mut payload).unwrap();
    frame(Kind::TaskReply as u8, &payload)
}

fn task(function_id: FunctionId, args: &[u8]) -> Vec<u8> {
    let target = Target::Function(function_id);
    let header = TaskHeader {
        generator: None,
        task_id: TaskId::random(),
        attempt: 0,
        target,
        group: None,
        num_returns: 1,
        retriable: false,
        retries: 0,
        created_us: 1,
        name: "f",
        retry_exceptions: RetryExceptions::Never,
    };
    let mut payload = Vec::new();
    header.write(&mut payload);
    payload.extend_from_slice(args);
    frame(Kind::PushTask as u8, &payload)
}

/// Where a process listens, and what it has logged.
struct Heard<'a> {
    socket: PathBuf,
    log: &'a dyn Fn() -> String,
}

impl Heard<'_> {
    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// Open connections that others have made to it, as the kernel knows them.
    fn connections(&self) -> usize {
        let path = self.socket.to_str().unwrap();
        let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
        let is_connection =
            |line: &&str| line.ends_with(path) && line.split_whitespace().nth(5) == Some("03");
        sockets.lines().filter(is_connection).count()
    }

    /// Says this to it, and waits to be cut off for this reason.
    #[track_caller]
    fn refuses(&self, said: &[u8], reason: &str) {
        let (before, already) = (self.connections(), self.count(reason));
        let mut stream = self.connect();
        stream.write_all(said).unwrap();
        while stream.read(&mut [0; 1024]).is_ok_and(|count| count > 0) {}
        eventually(reason, || (self.count(reason) > already).then_some(()));
        drop(stream);
        eventually("the end of the connection", || (self.connections() == before).then_some(()));
    }

    fn count(&self, reason: &str) -> usize {
        (self.log)().matches(reason).count()
    }
}

/// The sockets of a driver's node.
fn sockets(driver: &Driver) -> PathBuf {
    driver.core.session_dir().join("sockets")
}

fn socket(driver: &Driver) -> PathBuf {
    sockets(driver).join(driver.core.me().worker_id.hex())
}

/// What is logged when a connection ends within a frame.
const AMID_FRAME: &str = "ended amid a frame";

/// What anybody might say, and what is logged then.
fn nonsense() -> Vec<(Vec<u8>, &'static str)> {
    vec![
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "the peer speaks version 47"),
        (vec![4, 0, 0, 0, 200, 1, 0, 0, 1, 2, 3, 4], "the peer speaks version 200"),
        (vec![0xff, 0xff, 0xff, 0xff, VERSION, 1, 0, 0], "a frame of 4294967295 bytes is longer"),
        (vec![4, 0, 0, 0, VERSION, 1, 9, 9], "the header of a frame is damaged"),
        (frame(77, b""), "a frame of kind 77"),
    ]
}

#[test]
fn nonsense_ends_the_connection_of_who_says_it_and_of_nobody_else() {
    let world = World::start(1.0);
    let driver = world.driver();
    let gate = world.gate("gate");
    let running = driver.submit(Call::new("gate").value(gate.path()));
    gate.wait_for_begun(1);

    let logged = Logged::get();
    let heard = Heard { socket: socket(&driver), log: &|| logged.text() };
    for (said, reason) in nonsense() {
        heard.refuses(&said, reason);
    }
    heard.refuses(&other(&PeerMessage::Granted { request: 1 }), "something else than a hello came first");
    let hello = hello(driver.core.job_id());
    let after_hello = |said: Vec<u8>| [hello.as_slice(), &said].concat();
    let broke = "a core worker broke the protocol";
    heard.refuses(&without_end(hello.clone()), broke);
    heard.refuses(&after_hello(hello.clone()), "a second hello");
    heard.refuses(&after_hello(task(FunctionId::NIL, b"")), "a task for a driver");
    heard.refuses(&after_hello(without_end(reply())), "it is cut off");
    heard.refuses(&after_hello(without_end(other(&PeerMessage::Granted { request: 1 }))), broke);
    heard.refuses(&after_hello(frame(Kind::DefineFunction as u8, b"no function")), broke);

    gate.open();
    assert_eq!(driver.get(&running).text(), "passed");
    let next = driver.submit(Call::new("echo").value("next"));
    assert_eq!(driver.get(&next).text(), "next");
}

#[test]
fn a_connection_that_ends_amid_a_frame_is_noticed() {
    let world = World::start(1.0);
    let driver = world.driver();
    let logged = Logged::get();
    let heard = Heard { socket: socket(&driver), log: &|| logged.text() };
    let before = heard.connections();
    let already = heard.count(AMID_FRAME);
    let mut stream = heard.connect();
    stream.write_all(&frame(1, &[0; 100])[..50]).unwrap();
    drop(stream);
    eventually("a word about it", || (heard.count(AMID_FRAME) > already).then_some(()));
    eventually("the end of the connection", || (heard.connections() == before).then_some(()));
    // One that never says anything hurts nobody either.
    let _silent = heard.connect();
    let next = driver.submit(Call::new("echo").value("next"));
    assert_eq!(driver.get(&next).text(), "next");
}

#[test]
fn nonsense_to_a_worker_harms_neither_its_task_nor_the_next() {
    let world = World::start(1.0);
    let driver = world.driver();
    let gate = world.gate("gate");
    let running = driver.submit(Call::new("gate").value(gate.path()));
    gate.wait_for_begun(1);

    let logs = driver.core.session_dir().join("logs");
    let heard = Heard { socket: socket_of_worker(&world, &driver), log: &|| logs_of_workers(&logs) };
    for (said, reason) in nonsense() {
        heard.refuses(&said, reason);
    }
    let hello = hello(driver.core.job_id());
    let after_hello = |said: Vec<u8>| [hello.as_slice(), &said].concat();
    let cut_off = "it is cut off";
    heard.refuses(&task(FunctionId::NIL, b""), "something else than a hello came first");
    heard.refuses(&after_hello(without_end(task(FunctionId::NIL, b""))), cut_off);
    heard.refuses(&after_hello(without_end(reply())), cut_off);
    heard.refuses(&after_hello(frame(Kind::Other as u8, b"\xff")), "a core worker broke the protocol");
    let (before, already) = (heard.connections(), heard.count(AMID_FRAME));
    heard.connect().write_all(&after_hello(task(FunctionId::NIL, b""))[..hello.len() + 20]).unwrap();
    eventually(AMID_FRAME, || {
        (heard.count(AMID_FRAME) > already && heard.connections() == before).then_some(())
    });

    gate.open();
    assert_eq!(driver.get(&running).text(), "passed");
    let next = driver.submit(Call::new("echo").value("next"));
    assert_eq!(driver.get(&next).text(), "next");
}

/// The arguments of a task are looked at when it runs: they are its failure then, and nobody else's.
#[test]
fn damaged_arguments_fail_their_task() {
    let world = World::start(1.0);
    let driver = world.driver();
    assert_eq!(driver.get(&driver.submit(Call::new("echo").value("first"))).text(), "first");
    let mut stream = UnixStream::connect(socket_of_worker(&world, &driver)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let function_id = FunctionId::of(b"echo");
    let (pickled, name) = (Bytes::from_static(b"echo"), "f".to_owned());
    let define = DefineFunction { function_id, pickled, name, max_calls: 0 };
    let define = frame(Kind::DefineFunction as u8, &serialize::to_bytes(&define).unwrap());
    let mut said = [hello(driver.core.job_id()), define].concat();
    for args in [&b"\x09"[..], &[0, 100, 0, 0, 0, 1], &[0x80, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0xff]] {
        said.extend(task(function_id, args));
    }
    stream.write_all(&said).unwrap();
    let failures = replies(&mut stream, 3).map(|reply| format!("{:?}", reply.outcome.unwrap_err()));
    for (failure, reason) in failures.zip(["an argument of kind 9", "it is cut off", "invalid utf-8"]) {
        assert!(failure.contains(reason), "{failure}");
    }
    assert_eq!(driver.get(&driver.submit(Call::new("echo").value("next"))).text(), "next");
}

/// The next so many answers.
fn replies(stream: &mut UnixStream, count: usize) -> impl Iterator<Item = TaskReply> {
    let (mut reader, mut replies) = (FrameReader::new(1 << 20), Vec::new());
    while replies.len() < count {
        let read = stream.read(reader.room()).unwrap();
        assert!(read > 0, "the connection goes on");
        reader.filled(read);
        while let Some(frame) = reader.next_frame().unwrap() {
            if frame.kind == Kind::TaskReply as u8 {
                replies.push(TaskReply::read(frame.payload).unwrap());
            }
        }
    }
    replies.into_iter()
}

/// Where the only worker of a node with one driver listens.
fn socket_of_worker(world: &World, driver: &Driver) -> PathBuf {
    let others = [socket(driver), world.info.socket_path.clone()];
    let paths = std::fs::read_dir(sockets(driver)).unwrap().map(|entry| entry.unwrap().path());
    let sockets = paths.filter(|path| !others.contains(path)).collect::<Vec<_>>();
    let [socket] = sockets.as_slice() else { panic!("one worker: {sockets:?}") };
    socket.clone()
}

fn logs_of_workers(folder: &Path) -> String {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_log = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "log");
    paths.filter(is_log).map(|path| std::fs::read_to_string(path).unwrap()).collect()
}

/// Each attempt of one task comes to a worker that answers with something else, the last one to a real
/// one. Those who talked nonsense are ended, so that their lease is free again.
#[test]
fn a_worker_that_answers_with_nonsense_is_cut_off_and_its_task_tried_elsewhere() {
    let logged = Logged::get();
    let folder = tempfile::tempdir().unwrap();
    // Each takes the second for which the node's word on a lost worker is waited for.
    let said = [
        (b"SSH-2.0-OpenSSH_9.6\r\n".to_vec(), "the peer speaks version 50"),
        (vec![4, 0, 0, 0, 201, 4, 0, 0, 1, 2, 3, 4], "the peer speaks version 201"),
        (vec![0xfe, 0xff, 0xff, 0xff, VERSION, 4, 0, 0], "a frame of 4294967294 bytes is longer"),
        (frame(Kind::TaskReply as u8, &[&[0; 24][..], &[9]].concat()), "an outcome of kind 9"),
        (hello(JobId::random()), "a second hello"),
        (reply()[..12].to_vec(), AMID_FRAME),
    ];
    let cases = said.iter().enumerate().map(|(at, (said, reason))| Nonsense {
        said: said.clone(),
        hangs_up: *reason == AMID_FRAME,
        cut_off: folder.path().join(at.to_string()),
    });
    let world = World::start_with(2.0, std::iter::once(None).chain(cases.map(Some)).collect::<Vec<_>>());
    let other = world.driver();
    let gate = world.gate("gate");
    let running = other.submit(Call::new("gate").value(gate.path()));
    gate.wait_for_begun(1);

    let already = said.iter().map(|(_, reason)| logged.text().matches(reason).count()).collect::<Vec<_>>();
    let driver = world.driver();
    let task = driver.submit(Call::new("echo").value("at last").retries(said.len() as i64));
    assert_eq!(driver.get(&task).text(), "at last");
    for (at, (_, reason)) in said.iter().enumerate() {
        assert!(logged.text().matches(reason).count() > already[at], "{reason}");
        assert!(folder.path().join(at.to_string()).exists(), "cut off after {reason}");
    }

    gate.open();
    assert_eq!(other.get(&running).text(), "passed");
    // Or the leases would stay for the next tasks.
    drop((task, running));
    driver.wait_for_no_references();
    eventually("that all is free", || (driver.free_cpus() == 2.0).then_some(()));
}
