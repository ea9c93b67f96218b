//! Nodes that join a cluster.

use std::os::unix::net::UnixStream;

use ray_core::config::{GcsConfig, GcsStorage};
use ray_core::id::NodeId;
use ray_core::pb::gcs;
use ray_gcs::GcsServer;
use ray_gcs::client::{ClientConfig, GcsClient};
use ray_link::message::node_socket;
use ray_raylet::node::{NodeConfig, run};
use tokio::net::TcpListener;

use crate::world::World;

#[test]
fn the_nodes_of_a_machine_listen_in_one_folder() {
    let first = World::start(1.0);
    let join = |config: &mut NodeConfig| config.gcs_address = Some(first.info.gcs_address.clone());
    let (second, third) = (World::start_with(join), World::start_with(join));
    let folder = first.info.socket_path.parent().unwrap();
    for node in [&first, &second, &third] {
        assert!(node_socket(folder, node.info.node_id).exists());
        assert!(node.info.socket_path.starts_with(&node.info.session_dir), "each names it as its own");
    }
    let links = second.info.session_dir.join("sockets");
    assert_eq!(std::fs::read_link(links).unwrap(), std::fs::canonicalize(folder).unwrap());
    let gone = node_socket(folder, second.info.node_id);
    drop(second);
    assert!(!gone.exists(), "its socket goes with it");
    assert!(folder.exists() && node_socket(folder, third.info.node_id).exists(), "and nothing else");
    drop(third);
}

#[test]
fn a_cluster_on_another_machine_is_refused_by_name() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(async {
        let config = GcsConfig { storage: GcsStorage::Memory, ..GcsConfig::default() };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let server = GcsServer::start(&config, listener).await.unwrap();
        let client =
            GcsClient::connect(&server.address().to_string(), ClientConfig::default()).await.unwrap();
        let far = gcs::NodeInfo {
            node_id: NodeId::from_bytes([7; 16]).to_binary(),
            state: gcs::node_info::State::Alive.into(),
            raylet_address: "10.0.0.7:1".to_owned(),
            hostname: "far-away".to_owned(),
            total: Some(Default::default()),
            socket_path: "/nowhere/node.sock".to_owned(),
            ..gcs::NodeInfo::default()
        };
        client.register_node(far).await.unwrap();
        server
    });
    let folder = tempfile::tempdir().unwrap();
    let config = NodeConfig {
        temp_dir: Some(folder.path().to_owned()),
        gcs_address: Some(server.address().to_string()),
        own_process: false,
        ..NodeConfig::default()
    };
    let (node_end, _fork_server) = UnixStream::pair().unwrap();
    let error = run(config, node_end.into(), |_| panic!("it must not join")).unwrap_err().chain();
    assert!(error.contains("another machine") && error.contains("far-away"), "{error}");
    runtime.block_on(server.shutdown());
}
