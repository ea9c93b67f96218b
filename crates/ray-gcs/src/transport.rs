//! How a call gets to a gRPC service: over the network, or, if the service is in this process, as a function call.
//!
//! The control plane and the head's node are one process, and most of what they say to each other takes less time to
//! do than to carry through a socket.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, StdError, http};
use tonic::service::Routes;
use tonic::transport::Channel;

/// Carries the calls of clients to one process. Clones share what they need.
#[derive(Debug, Clone)]
pub enum Transport {
    /// To another process, or to this one by way of the network.
    Network(Channel),
    /// To services of this process.
    Here(Routes),
}

/// A node in the process of the control plane.
#[derive(Debug, Clone)]
pub struct LocalNode {
    /// What it registers as its `raylet_address`.
    pub address: String,
    /// Its services.
    pub services: Routes,
}

impl Service<http::Request<Body>> for Transport {
    type Response = http::Response<Body>;
    type Error = StdError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        match self {
            Self::Network(channel) => channel.poll_ready(context).map_err(Into::into),
            Self::Here(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match self {
            Self::Network(channel) => {
                let answer = channel.call(request);
                Box::pin(async move { answer.await.map_err(Into::into) })
            }
            Self::Here(services) => {
                let limit = deadline(request.headers());
                let answer = services.call(request);
                Box::pin(async move {
                    let Some(limit) = limit else { return Ok(answer.await?) };
                    match tokio::time::timeout(limit, answer).await {
                        Ok(answer) => Ok(answer?),
                        Err(_) => {
                            Ok(Status::deadline_exceeded(format!("no answer in {limit:?}")).into_http())
                        }
                    }
                })
            }
        }
    }
}

/// How long the caller waits, as gRPC writes it: a number of up to eight digits, and a unit.
fn deadline(headers: &http::HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number.checked_mul(3600)?)),
        "M" => Some(Duration::from_secs(number.checked_mul(60)?)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use ray_core::config::{GcsConfig, GcsStorage};
    use ray_core::pb::gcs;
    use ray_core::pb::gcs::gcs_service_client::GcsServiceClient;
    use tonic::{Code, Request};

    use super::*;
    use crate::Gcs;

    fn written(text: &str) -> Option<Duration> {
        let mut headers = http::HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().unwrap());
        deadline(&headers)
    }

    #[test]
    fn deadlines_are_read_as_grpc_writes_them() {
        assert_eq!(written("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(written("2M"), Some(Duration::from_secs(120)));
        assert_eq!(written("15S"), Some(Duration::from_secs(15)));
        assert_eq!(written("20m"), Some(Duration::from_millis(20)));
        assert_eq!(written("99999999u"), Some(Duration::from_micros(99_999_999)));
        assert_eq!(written("7n"), Some(Duration::from_nanos(7)));
        for wrong in ["", "S", "1", "1x", "-1S", "1 S"] {
            assert_eq!(written(wrong), None, "{wrong}");
        }
        let mut request = Request::new(());
        request.set_timeout(Duration::from_millis(1500));
        let text = request.metadata().get("grpc-timeout").unwrap().to_str().unwrap();
        assert_eq!(written(text), Some(Duration::from_millis(1500)));
    }

    #[tokio::test]
    async fn a_service_of_this_process_is_called_and_streams_without_the_network() {
        let config = GcsConfig { storage: GcsStorage::Memory, ..GcsConfig::default() };
        let control_plane = Gcs::start(&config).await.unwrap();
        let services = Routes::new(control_plane.grpc_service());
        let mut client = GcsServiceClient::new(Transport::Here(services));
        let request = gcs::KvPutRequest {
            namespace: Vec::new(),
            key: b"k".to_vec(),
            value: b"v".to_vec(),
            overwrite: true,
        };
        client.kv_put(request).await.unwrap();
        let request = gcs::KvGetRequest { namespace: Vec::new(), keys: vec![b"k".to_vec()] };
        assert_eq!(client.kv_get(request).await.unwrap().into_inner().entries.len(), 1);
        let unknown = client.get_actor(gcs::GetActorRequest { actor_id: vec![1; 16] }).await.unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound);
        let mut events = client.subscribe(gcs::SubscribeRequest::default()).await.unwrap().into_inner();
        assert!(matches!(
            events.message().await.unwrap().unwrap().event,
            Some(gcs::event::Event::Snapshot(_))
        ));
        control_plane.shutdown().await;
        assert!(!matches!(events.message().await, Ok(Some(_))), "the stream ends with the service");
    }

    #[derive(Debug, Clone)]
    struct Silent;

    impl tonic::server::NamedService for Silent {
        const NAME: &'static str = "ray.gcs.GcsService";
    }

    impl Service<http::Request<Body>> for Silent {
        type Response = http::Response<Body>;
        type Error = std::convert::Infallible;
        type Future = std::future::Pending<Result<Self::Response, Self::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: http::Request<Body>) -> Self::Future {
            pending()
        }
    }

    #[tokio::test]
    async fn a_call_that_is_not_answered_ends_at_its_deadline() {
        let mut client = GcsServiceClient::new(Transport::Here(Routes::new(Silent)));
        let mut request = Request::new(gcs::ListNodesRequest {});
        request.set_timeout(Duration::from_millis(5));
        assert_eq!(client.list_nodes(request).await.unwrap_err().code(), Code::DeadlineExceeded);
    }
}
