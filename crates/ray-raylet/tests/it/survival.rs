//! What outlives what: a node its control plane, and nothing its node.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use prost::Message;
use ray_core::config::{GcsConfig, GcsStorage};
use ray_core::pb::gcs;
use ray_gcs::GcsServer;
use ray_link::message::GcsMethod;
use ray_link::{FromRaylet, ToRaylet};
use ray_raylet::node::{NodeConfig, run};
use tokio::net::TcpListener;

use crate::world::{World, eventually};

/// Tells the copy of this test that it is the daemon.
const DAEMON: &str = "RAY_RAYLET_TEST_DAEMON";

async fn control_plane(folder: &Path, port: u16) -> GcsServer {
    let config = GcsConfig {
        storage: GcsStorage::Redb,
        storage_path: Some(folder.join("gcs.redb")),
        ..GcsConfig::default()
    };
    let listener = loop {
        // The port is free as soon as the last control plane is gone.
        match TcpListener::bind(("127.0.0.1", port)).await {
            Ok(listener) => break listener,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    GcsServer::start(&config, listener).await.unwrap()
}

#[test]
fn a_node_and_its_calls_survive_a_restart_of_the_control_plane() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let first = runtime.block_on(control_plane(folder.path(), 0));
    let address = first.address();
    let mut world = World::start_with(|config| {
        config.gcs_address = Some(address.to_string());
        config.owner_pid = None;
    });
    let mut driver = world.driver();
    runtime.block_on(first.shutdown());
    // Leases need no control plane, and a call to it waits until it is back.
    driver.demand(1, 1.0, 1);
    let _worker = world.worker();
    driver.granted();
    let body = Bytes::from(gcs::ListNodesRequest {}.encode_to_vec());
    driver.tell(ToRaylet::GcsCall { request: 5, method: GcsMethod::ListNodes, body });
    let second = runtime.block_on(control_plane(folder.path(), address.port()));
    let reply = driver.wait_for("the answer", |message| match message {
        FromRaylet::GcsReply { request: 5, result } => Some(result.clone().unwrap()),
        _ => None,
    });
    let nodes = gcs::ListNodesReply::decode(reply).unwrap().nodes;
    assert_eq!(nodes.len(), 1);
    assert_eq!(nodes[0].node_id, world.info.node_id.to_binary());
    driver.tell(ToRaylet::Shutdown { reason: "the test is over".to_owned() });
    world.join().unwrap();
    runtime.block_on(second.shutdown());
}

/// What the copy of this process does: a node of its own, whose worker leaves a process behind.
fn be_the_daemon(folder: &str) {
    let (node, fork_server) = UnixStream::pair().unwrap();
    let config = NodeConfig { temp_dir: Some(folder.into()), ..NodeConfig::default() };
    run(config, node.into(), |info| {
        let script = "sleep 1000 & echo $!; sleep 1000 & exec sleep 1000";
        let mut worker =
            Command::new("setsid").args(["sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut orphan = String::new();
        BufReader::new(worker.stdout.take().unwrap()).read_line(&mut orphan).unwrap();
        println!("{}", serde_json::to_string(info).unwrap());
        println!("{} {}", worker.id(), orphan.trim());
        std::io::stdout().flush().unwrap();
        // An orphan: its parent ends before the node does.
        worker.kill().unwrap();
        worker.wait().unwrap();
    })
    .unwrap();
    drop(fork_server);
}

fn is_gone(pid: &str) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
        Err(_) => true,
    }
}

#[test]
fn nothing_outlives_a_daemon_that_is_terminated() {
    if let Ok(folder) = std::env::var(DAEMON) {
        be_the_daemon(&folder);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "survival::nothing_outlives_a_daemon_that_is_terminated", "--nocapture"])
        .env(DAEMON, folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(daemon.stdout.take().unwrap()).lines().map(Result::unwrap);
    let info = lines.find_map(|line| Some(line[line.find('{')?..].to_owned())).expect("the daemon is ready");
    let info: ray_raylet::node::NodeInfoJson = serde_json::from_str(&info).unwrap();
    let pids = lines.next().expect("the processes");
    let orphan = pids.split(' ').nth(1).unwrap().to_owned();
    assert!(!is_gone(&orphan));
    let killed = Command::new("kill").args(["-TERM", &daemon.id().to_string()]).status().unwrap();
    assert!(killed.success());
    eventually("the daemon's end", || daemon.try_wait().unwrap());
    assert!(is_gone(&orphan), "what a worker left behind");
    assert!(!info.socket_path.exists());
    let mut log = String::new();
    let logs = std::fs::read_dir(info.session_dir.join("logs")).unwrap();
    let file = logs.flatten().map(|entry| entry.path()).find(|path| path.to_string_lossy().contains("node-"));
    std::fs::File::open(file.expect("the daemon's log")).unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains("SIGTERM"), "{log}");
}
