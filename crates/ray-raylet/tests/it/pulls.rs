//! Objects that one node pulls from another.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use ray_core::id::{NodeId, ObjectId, TaskId};
use ray_core::pb::gcs;
use ray_core::pb::gcs::gcs_service_client::GcsServiceClient;
use ray_link::message::{Elsewhere, StoreError};
use ray_link::{FromRaylet, ToRaylet};
use ray_object_store::shm::{Access, ShmRegion};

use crate::world::{Client, World, eventually};

const SIZE: u64 = 12 << 20;

fn object(number: u64) -> ObjectId {
    ObjectId::for_put(TaskId::from_bytes([4; 16]), number)
}

fn content(number: u64) -> Vec<u8> {
    (0..SIZE).map(|at| (at / 1000 + number) as u8).collect()
}

/// Two nodes of one cluster.
fn two_nodes() -> (World, World) {
    let head = World::start(1.0);
    let address = head.info.gcs_address.clone();
    let other = World::start_with(|config| config.gcs_address = Some(address));
    (head, other)
}

fn memory(client: &mut Client) -> ShmRegion {
    ShmRegion::from_fd(client.memory.take().expect("it came with the welcome"), Access::ReadWrite).unwrap()
}

/// Writes an object, which the client owns.
fn put(client: &mut Client, memory: &ShmRegion, number: u64) {
    let (object_id, owner) = (object(number), client.worker_id);
    client.tell(ToRaylet::CreateObject { request: 100 + number, object_id, size: SIZE, owner });
    let offset = client.wait_for("room", |message| match message {
        FromRaylet::ObjectCreated { result, .. } => Some(result.clone().unwrap()),
        _ => None,
    });
    memory.slice_mut(offset, SIZE).unwrap().copy_from_slice(&content(number));
    client.tell(ToRaylet::SealObject { object_id });
}

fn ask(client: &mut Client, request: u64, number: u64, node_id: NodeId) {
    let elsewhere = vec![Elsewhere { object_id: object(number), node_id, size: SIZE }];
    client.tell(ToRaylet::GetObjects { request, object_ids: vec![object(number)], elsewhere });
}

#[track_caller]
fn answer(client: &mut Client, request: u64) -> Result<u64, StoreError> {
    client.wait_for("the object", |message| match message {
        FromRaylet::ObjectReady { request: other, offset, .. } if *other == request => Some(Ok(*offset)),
        FromRaylet::ObjectUnavailable { request: other, error, .. } if *other == request => {
            Some(Err(error.clone()))
        }
        _ => None,
    })
}

/// Whether this node has the object.
fn has(client: &mut Client, request: u64, number: u64) -> bool {
    client.tell(ToRaylet::GetObjects { request, object_ids: vec![object(number)], elsewhere: Vec::new() });
    // Answered in order: what is there is told at once.
    client.tell(ToRaylet::FlushLogs { request });
    let mut is_there = false;
    client.wait_for("an answer", |message| match message {
        FromRaylet::ObjectReady { request: other, .. } if *other == request => {
            is_there = true;
            Some(())
        }
        FromRaylet::LogsFlushed { request: other } if *other == request => Some(()),
        _ => None,
    });
    client.tell(ToRaylet::CancelGet { request });
    if is_there {
        client.tell(ToRaylet::ReleaseObject { object_id: object(number), count: 1 });
    }
    is_there
}

#[test]
fn an_object_is_read_on_another_node_and_goes_there_when_it_goes() {
    let (head, other) = two_nodes();
    let (mut owner, mut reader, mut second) = (head.driver(), other.driver(), other.driver());
    let (written, read) = (memory(&mut owner), memory(&mut reader));
    // Asked for before it is there.
    put(&mut owner, &written, 1);
    ask(&mut reader, 1, 1, head.info.node_id);
    ask(&mut second, 1, 1, head.info.node_id);
    let offset = answer(&mut reader, 1).unwrap();
    assert_eq!(answer(&mut second, 1), Ok(offset), "there is one copy");
    assert!(*read.slice(offset, SIZE).unwrap() == content(1)[..]);
    for client in [&mut reader, &mut second] {
        client.tell(ToRaylet::ReleaseObject { object_id: object(1), count: 1 });
    }
    assert!(has(&mut reader, 2, 1));
    owner.tell(ToRaylet::DeleteObjects { object_ids: vec![object(1)] });
    let mut request = 10;
    eventually("the end of the copy", || {
        request += 1;
        (!has(&mut reader, request, 1)).then_some(())
    });
    ask(&mut reader, 3, 1, head.info.node_id);
    let error = answer(&mut reader, 3).unwrap_err();
    let StoreError::Lost { cause } = &error else { panic!("{error:?}") };
    assert!(cause.contains(&head.info.node_id.hex()), "{cause}");
}

#[test]
fn a_copy_makes_way_and_comes_again() {
    let (head, other) = two_nodes();
    let (mut owner, mut reader) = (head.driver(), other.driver());
    let (written, read) = (memory(&mut owner), memory(&mut reader));
    // Only one fits: the first is spilled.
    [1, 2].into_iter().for_each(|number| put(&mut owner, &written, number));
    for (request, number) in [(1, 1), (2, 2), (3, 1)] {
        ask(&mut reader, request, number, head.info.node_id);
        let offset = answer(&mut reader, request).unwrap();
        assert!(*read.slice(offset, SIZE).unwrap() == content(number)[..]);
        reader.tell(ToRaylet::ReleaseObject { object_id: object(number), count: 1 });
    }
}

/// Passes connections on to a node; cuts the first one after so many bytes.
struct Proxy {
    address: String,
    /// Bytes that each connection has brought from the node.
    passed: Arc<Mutex<Vec<u64>>>,
}

impl Proxy {
    fn start(upstream: String, cut_after: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let passed = Arc::new(Mutex::new(Vec::new()));
        let counts = Arc::clone(&passed);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, node) = (client.unwrap(), TcpStream::connect(&upstream).unwrap());
                let number = counts.lock().unwrap().len();
                counts.lock().unwrap().push(0);
                let limit = if number == 0 { cut_after } else { u64::MAX };
                let (mut up, mut down) = (client.try_clone().unwrap(), node.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut up, &mut down));
                let counts = Arc::clone(&counts);
                std::thread::spawn(move || {
                    pass(node, client, limit, |bytes| counts.lock().unwrap()[number] += bytes)
                });
            }
        });
        Self { address, passed }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, limit: u64, count: impl Fn(u64)) {
    let (mut buffer, mut passed) = (vec![0; 64 << 10], 0);
    while let Ok(read) = from.read(&mut buffer)
        && read > 0
        && passed < limit
        && to.write_all(&buffer[..read]).is_ok()
    {
        passed += read as u64;
        count(read as u64);
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Makes a node known that is called at this address.
fn register(cluster: &World, node_id: NodeId, address: String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let gcs_address = format!("http://{}", cluster.info.gcs_address);
        let mut client = GcsServiceClient::connect(gcs_address).await.unwrap();
        let node = gcs::NodeInfo {
            node_id: node_id.to_binary(),
            raylet_address: address,
            state: gcs::node_info::State::Alive.into(),
            total: Some(Default::default()),
            ..Default::default()
        };
        client.register_node(gcs::RegisterNodeRequest { node: Some(node) }).await.unwrap();
    });
}

#[test]
fn a_pull_that_is_cut_off_goes_on_where_it_stopped() {
    let (head, other) = two_nodes();
    let proxy = Proxy::start(head.info.node_address.clone(), SIZE / 2);
    let behind_proxy = NodeId::random();
    register(&head, behind_proxy, proxy.address.clone());
    let (mut owner, mut reader) = (head.driver(), other.driver());
    let (written, read) = (memory(&mut owner), memory(&mut reader));
    put(&mut owner, &written, 1);
    ask(&mut reader, 1, 1, behind_proxy);
    let offset = answer(&mut reader, 1).unwrap();
    assert!(*read.slice(offset, SIZE).unwrap() == content(1)[..]);
    let passed = proxy.passed.lock().unwrap().clone();
    assert!(passed.len() >= 2, "it was cut off once: {passed:?}");
    assert!(passed[1..].iter().sum::<u64>() < SIZE, "what was there is not sent again: {passed:?}");
}

#[test]
fn the_death_of_the_node_ends_a_pull() {
    let head = World::start_with(|config| {
        config.config.gcs.heartbeat_interval_ms = 200;
        config.config.gcs.node_dead_after_ms = 1_500;
    });
    let address = head.info.gcs_address.clone();
    let other = World::start_with(|config| config.gcs_address = Some(address));
    let mut reader = other.driver();
    // Nothing listens there, and it sends no heartbeats.
    let gone = NodeId::random();
    register(&head, gone, "127.0.0.1:9".to_owned());
    ask(&mut reader, 1, 1, gone);
    let error = answer(&mut reader, 1).unwrap_err();
    let StoreError::Lost { cause } = &error else { panic!("{error:?}") };
    assert!(cause.contains(&gone.hex()) && cause.contains("is dead"), "{cause}");
}
