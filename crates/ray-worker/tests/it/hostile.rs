//! Whoever connects to a core worker's socket and does not speak its language is cut off; nobody else
//! notices.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock};

use ray_link::frame::VERSION;

use crate::front::{Call, LIMIT};
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
    let mut out = u32::try_from(payload.len()).unwrap().to_le_bytes().to_vec();
    out.extend_from_slice(&[VERSION, kind, 0, 0]);
    out.extend_from_slice(payload);
    out
}

fn connect(driver: &Driver) -> UnixStream {
    let folder = driver.core.session_dir().join("sockets");
    let stream = UnixStream::connect(folder.join(driver.core.me().worker_id.hex())).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

/// Says this to the driver, and waits to be cut off for this reason.
#[track_caller]
fn is_refused(driver: &Driver, said: &[u8], reason: &str) {
    let logged = Logged::get();
    let mut stream = connect(driver);
    stream.write_all(said).unwrap();
    assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0, "the connection is closed");
    eventually(reason, || logged.text().contains(reason).then_some(()));
}

#[test]
fn nonsense_ends_the_connection_of_who_says_it_and_of_nobody_else() {
    let world = World::start(1.0);
    let driver = world.driver();
    let gate = world.gate("gate");
    let running = driver.submit(Call::new("gate").value(gate.path()));
    gate.wait_for_begun(1);

    is_refused(&driver, b"GET / HTTP/1.1\r\n\r\n", "the peer speaks version 47");
    is_refused(&driver, &[0xff, 0xff, 0xff, 0xff, VERSION, 1, 0, 0], "a frame of 4294967295 bytes is longer");
    is_refused(&driver, &[4, 0, 0, 0, VERSION, 1, 9, 9], "the header of a frame is damaged");
    is_refused(&driver, &frame(5, b"no hello"), "something else than a hello came first");
    is_refused(&driver, &frame(1, b"not a hello"), "a core worker broke the protocol");
    is_refused(&driver, &frame(77, b""), "a frame of kind 77");

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
    let mut stream = connect(&driver);
    stream.write_all(&frame(1, &[0; 100])[..50]).unwrap();
    drop(stream);
    eventually("a word about it", || logged.text().contains("ended amid a frame").then_some(()));
    // One that never says anything hurts nobody either.
    let _silent = connect(&driver);
    let next = driver.submit(Call::new("echo").value("next"));
    assert_eq!(driver.get(&next).text(), "next");
}

#[test]
fn a_hello_is_said_once() {
    let world = World::start(1.0);
    let driver = world.driver();
    let hello = ray_worker::peer_message::Hello {
        worker_id: ray_core::id::WorkerId::random(),
        node_id: driver.core.node_id(),
        job_id: driver.core.job_id(),
        job_config: bytes::Bytes::new(),
    };
    let hello = frame(1, &ray_core::serialize::to_bytes(&hello).unwrap());
    is_refused(&driver, &[hello.clone(), hello.clone()].concat(), "a second hello");
    is_refused(&driver, &[hello, frame(3, b"a task")].concat(), "a task for a driver");
}
