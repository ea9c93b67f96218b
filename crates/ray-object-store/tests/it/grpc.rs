//! The service through a real client and server on a port of the system's choosing.

use std::sync::Arc;

use ray_core::id::ObjectId;
use ray_core::pb::object_store as pb;
use ray_core::pb::object_store::object_store_service_client::ObjectStoreServiceClient;
use ray_core::traits::ObjectStore;
use ray_object_store::InMemoryObjectStore;
use ray_object_store::grpc::{MAX_MESSAGE_BYTES, ObjectStoreServiceImpl};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request};

pub(crate) type Client = ObjectStoreServiceClient<Channel>;

/// A server that ends when this is dropped.
pub(crate) struct Serving(JoinHandle<()>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(crate) async fn serve(store: impl ObjectStore) -> (Client, Serving) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let service = ObjectStoreServiceImpl::new(Arc::new(store)).into_server();
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = tokio::spawn(async move {
        Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
    });
    let client = Client::connect(address).await.unwrap();
    let client =
        client.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES);
    (client, Serving(serving))
}

fn id(n: u8) -> Vec<u8> {
    ObjectId::from_bytes([n; 28]).to_binary()
}

fn object(n: u8, len: usize) -> pb::Object {
    pb::Object { object_id: id(n), data: vec![n; len] }
}

#[tokio::test]
async fn a_batch_comes_back_with_what_is_missing_named() {
    let (mut client, _serving) = serve(InMemoryObjectStore::new(0)).await;
    client.batch_put(pb::BatchPutRequest { objects: vec![object(1, 10), object(2, 20)] }).await.unwrap();
    let request = pb::BatchGetRequest { object_ids: vec![id(2), id(3), id(1)], timeout_ms: 1 };
    let reply = client.batch_get(request).await.unwrap().into_inner();
    assert_eq!(reply.objects, [object(2, 20), object(1, 10)]);
    assert_eq!(reply.missing, [id(3)]);
}

/// Larger than the 4 MiB that gRPC takes by default.
#[tokio::test]
async fn a_large_object_travels() {
    let (mut client, _serving) = serve(InMemoryObjectStore::new(0)).await;
    client.put(pb::PutRequest { object: Some(object(1, 10 << 20)) }).await.unwrap();
    let reply = client.get(pb::GetRequest { object_id: id(1), timeout_ms: 0 }).await.unwrap();
    assert!(reply.into_inner().data == vec![1; 10 << 20]);
}

#[tokio::test]
async fn a_bad_message_is_refused_and_the_field_is_named() {
    let (mut client, _serving) = serve(InMemoryObjectStore::new(0)).await;
    let refusals = [
        client.put(pb::PutRequest { object: None }).await.unwrap_err(),
        client.get(pb::GetRequest { object_id: vec![], timeout_ms: 0 }).await.unwrap_err(),
        client.delete(pb::DeleteRequest { object_id: vec![1; 27] }).await.unwrap_err(),
        client.spill(pb::SpillRequest { object_ids: vec![id(1), vec![]] }).await.unwrap_err(),
    ];
    for (status, field) in refusals.iter().zip(["object", "object_id", "object_id", "object_ids"]) {
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(&format!("{field:?}")), "{status}");
    }
    // Nothing of a batch with a bad message in it is stored.
    let bad = pb::Object { object_id: vec![1], data: vec![] };
    let request = pb::BatchPutRequest { objects: vec![object(1, 1), bad] };
    assert_eq!(client.batch_put(request).await.unwrap_err().code(), Code::InvalidArgument);
    let contains = client.contains(pb::ContainsRequest { object_id: id(1) }).await.unwrap();
    assert!(!contains.into_inner().contains);
}

/// A caller that waits less long than it said gets its answer from its own deadline.
#[tokio::test]
async fn a_deadline_ends_a_get() {
    let (mut client, _serving) = serve(InMemoryObjectStore::new(0)).await;
    let mut request = Request::new(pb::GetRequest { object_id: id(1), timeout_ms: u64::MAX });
    request.set_timeout(std::time::Duration::from_millis(5));
    let status = client.get(request).await.unwrap_err();
    assert!(matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded), "{status}");
}
