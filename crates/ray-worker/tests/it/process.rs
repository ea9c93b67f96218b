//! This program as a worker's process.

use std::path::Path;

use ray_core::config::WorkerConfig;
use ray_core::id::WorkerId;
use ray_worker::core::{Listening, Notification};
use ray_worker::{CoreWorker, Membership};

use crate::functions::Functions;

/// Set in a worker: its id.
pub(crate) const WORKER: &str = "TEST_WORKER_ID";
/// Set in a worker: the socket of its node.
pub(crate) const SOCKET: &str = "TEST_NODE_SOCKET";

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
    let membership = Membership::Worker { worker_id: WorkerId::from_hex(&worker_id).unwrap() };
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
