//! The control plane as a program, killed and started again.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use ray_core::id::{ActorId, JobId};
use ray_core::pb::common::actor_info::State;
use ray_core::pb::gcs::event::Event;
use ray_core::pb::gcs::node_info::State as NodeState;
use ray_core::pb::{common, gcs};
use tokio::task::JoinSet;

use crate::harness::*;

/// The program; killed when dropped.
struct Program {
    child: Child,
    address: String,
}

impl Program {
    fn start(folder: &Path, listen: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ray-gcs"))
            .args(["--listen", listen, "--storage", "redb", "--storage-path"])
            .arg(folder.join("gcs.redb"))
            .env("RUST_LOG", "error")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("{\"address\": \"").and_then(|rest| rest.strip_suffix("\"}"));
        let address = address.unwrap_or_else(|| panic!("no address in {line:?}")).to_owned();
        Self { child, address }
    }

    /// By SIGKILL.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test]
async fn killed_and_started_again_it_knows_its_nodes_actors_jobs_and_keys() {
    let folder = tempfile::tempdir().unwrap();
    let program = Program::start(folder.path(), "127.0.0.1:0");
    let address = program.address.clone();
    let client = connect(&address).await;
    let mut tasks = JoinSet::new();
    let raylet = FakeRaylet::start(&client, cpus(4), &mut tasks).await;
    let (alive, killed, waiting) = (ActorId::random(), ActorId::random(), ActorId::random());
    let job = gcs::JobInfo { job_id: JobId::from_bytes([1; 16]).to_binary(), ..Default::default() };
    client.add_job(gcs::AddJobRequest { job: Some(job) }).await.unwrap();
    let named = common::ActorSpec { name: "bob".to_owned(), max_restarts: 3, ..actor_spec(alive) };
    register(&client, named).await;
    register(&client, actor_spec(killed)).await;
    raylet.make(&client, alive, 0).await;
    raylet.make(&client, killed, 0).await;
    kill(&client, killed, true).await;
    register(&client, common::ActorSpec { placement_resources: Some(cpus(8)), ..actor_spec(waiting) }).await;
    let put = gcs::KvPutRequest { key: b"k".to_vec(), value: b"v".to_vec(), ..Default::default() };
    client.kv_put(put).await.unwrap();
    let before = get_actor(&client, alive).await;
    let mut events = client.subscribe(Some(raylet.node_id()));
    assert!(matches!(events.next().await, Some(Event::Snapshot(_))));

    program.kill();
    let _program = Program::start(folder.path(), &address);

    // The same client and the same subscription go on.
    let snapshot = loop {
        if let Some(Event::Snapshot(snapshot)) = events.next().await {
            break snapshot;
        }
    };
    assert_eq!((snapshot.nodes.len(), snapshot.actors.len(), snapshot.jobs.len()), (1, 3, 1));
    assert_eq!(snapshot.nodes[0].state(), NodeState::Alive);
    assert_eq!(get_actor(&client, alive).await, before);
    assert_eq!(get_actor(&client, killed).await.state(), State::Dead);
    assert_eq!(get_actor(&client, waiting).await.state(), State::PendingCreation);
    let by_name = gcs::GetNamedActorRequest { name: "bob".to_owned(), namespace: "space".to_owned() };
    assert_eq!(client.get_named_actor(by_name).await.unwrap().actor.unwrap(), before);
    let get = gcs::KvGetRequest { keys: vec![b"k".to_vec()], ..Default::default() };
    assert_eq!(client.kv_get(get).await.unwrap().entries[0].value, b"v");
    assert!(client.heartbeat(raylet.node_id(), 7).await.unwrap());

    // It goes on working with the node that it knows from before.
    let crash = died(common::death_cause::Kind::ProcessExited, "signal 9");
    client.report_actor_died(raylet.node_id(), alive, 0, crash).await.unwrap();
    let info = node_info(raylet.node_id(), &raylet.address, cpus(8));
    client.register_node(info).await.unwrap();
    raylet.make(&client, waiting, 0).await;
    raylet.make(&client, alive, 1).await;
}

#[tokio::test]
async fn told_to_end_it_ends_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut program = Program::start(folder.path(), "127.0.0.1:0");
    let client = connect(&program.address).await;
    let mut events = client.subscribe(None);
    assert!(matches!(events.next().await, Some(Event::Snapshot(_))));
    let pid = program.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let status = eventually("the program ends", async || program.child.try_wait().unwrap()).await;
    assert!(status.success(), "{status}");
}
