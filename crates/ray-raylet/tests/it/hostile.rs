//! Whoever connects to the node's socket and does not speak its language is cut off, and the log says why;
//! nobody else notices, and nothing is left of it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, Once};

use ray_core::id::{JobId, LeaseId, WorkerId};
use ray_core::serialize;
use ray_link::ToRaylet;
use ray_link::frame::{VERSION, write_frame};
use ray_link::message::{JobDescription, LINK, Role};

use crate::world::{LIMIT, World, eventually};

/// What this process logs, from the first call of [`logged`] on.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// How often this was logged.
fn logged(what: &str) -> usize {
    static START: Once = Once::new();
    START.call_once(|| tracing_subscriber::fmt().with_ansi(false).with_writer(|| Log).init());
    String::from_utf8_lossy(&LOG.lock().unwrap()).matches(what).count()
}

fn connect(world: &World) -> UnixStream {
    let stream = UnixStream::connect(&world.info.socket_path).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

/// Open connections to the node, as the kernel knows them.
fn connections(world: &World) -> usize {
    let path = world.info.socket_path.to_str().unwrap();
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let is_connection = |line: &&str| line.ends_with(path) && line.split_whitespace().nth(5) == Some("03");
    sockets.lines().filter(is_connection).count()
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_frame(&mut out, LINK, |out| out.extend_from_slice(payload));
    out
}

fn message(message: &ToRaylet) -> Vec<u8> {
    frame(&serialize::to_bytes(message).unwrap())
}

fn register() -> Vec<u8> {
    let job = JobDescription {
        job_id: JobId::random(),
        namespace: String::new(),
        entrypoint: String::new(),
        metadata: Default::default(),
        runtime_env: Default::default(),
    };
    let (worker_id, role, pid) = (WorkerId::random(), Role::Driver(job), std::process::id());
    message(&ToRaylet::Register { worker_id, role, pid, socket_path: String::new() })
}

/// Says this to the node, and waits to be cut off for this reason.
#[track_caller]
fn is_refused(world: &World, said: &[u8], reason: &str) {
    let (before, already) = (connections(world), logged(reason));
    let mut stream = connect(world);
    stream.write_all(said).unwrap();
    while stream.read(&mut [0; 1024]).is_ok_and(|count| count > 0) {}
    eventually(reason, || (logged(reason) > already).then_some(()));
    eventually("the end of the connection", || (connections(world) == before).then_some(()));
}

#[test]
fn nonsense_ends_the_connection_of_who_says_it_and_of_nobody_else() {
    let world = World::start(1.0);
    let mut driver = world.driver();
    driver.demand(1, 1.0, 1);
    let _worker = world.worker();
    let (lease_id, _) = driver.granted();

    let reasons = [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "the peer speaks version 47"),
        (vec![4, 0, 0, 0, 200, LINK, 0, 0, 1, 2, 3, 4], "the peer speaks version 200"),
        (vec![0xff, 0xff, 0xff, 0xff, VERSION, LINK, 0, 0], "a frame of 4294967295 bytes is longer"),
        (vec![4, 0, 0, 0, VERSION, LINK, 9, 9], "the header of a frame is damaged"),
        (vec![0, 0, 0, 0, VERSION, 77, 0, 0], "a frame of kind 77"),
        (frame(&[0xff; 20]), "decode a value: ray_link::message::ToRaylet"),
    ];
    for (said, reason) in &reasons {
        is_refused(&world, said, reason);
        // Whom the node knows is treated no better.
        is_refused(&world, &[register(), said.clone()].concat(), reason);
    }
    let early = message(&ToRaylet::Blocked);
    is_refused(&world, &early, "the first message has to say who speaks");

    driver.tell(ToRaylet::ReturnLease { lease_id });
    driver.granted();
}

#[test]
fn a_connection_that_ends_amid_a_frame_is_noticed() {
    let world = World::start(1.0);
    let mut driver = world.driver();
    for said in [&register()[..20], &[register(), register()[..20].to_vec()].concat()] {
        let (before, already) = (connections(&world), logged("ended amid a frame"));
        connect(&world).write_all(said).unwrap();
        eventually("a word about it", || (logged("ended amid a frame") > already).then_some(()));
        eventually("the end of the connection", || (connections(&world) == before).then_some(()));
    }
    // One that never says anything hurts nobody either.
    let _silent = connect(&world);
    driver.demand(1, 1.0, 1);
    let _worker = world.worker();
    driver.granted();
}

/// What it says of what is not its own changes nothing.
#[test]
fn a_client_cannot_speak_of_what_belongs_to_others() {
    let world = World::start(1.0);
    let (mut driver, mut other) = (world.driver(), world.driver());
    driver.demand(1, 1.0, 1);
    let worker = world.worker();
    let (lease_id, _) = driver.granted();
    for lease_id in [lease_id, LeaseId::random()] {
        other.tell(ToRaylet::ReturnLease { lease_id });
        other.tell(ToRaylet::KillWorker { lease_id, reason: "not yours".to_owned() });
    }
    other.tell(ToRaylet::Unblocked);
    // Answered after all of these.
    other.tell(ToRaylet::FlushLogs { request: 1 });
    other.wait_for("an answer", |message| {
        matches!(message, ray_link::FromRaylet::LogsFlushed { request: 1 }).then_some(())
    });
    assert!(world.lives(worker.worker_id));
    driver.tell(ToRaylet::ReturnLease { lease_id });
    assert_eq!(driver.granted().1.worker_id, worker.worker_id);
}
