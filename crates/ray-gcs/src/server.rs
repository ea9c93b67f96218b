//! A control plane with a server of its own, for the stand-alone program and for tests.

use std::net::SocketAddr;
use std::time::Duration;

use ray_core::config::GcsConfig;
use ray_core::error::{RayError, RayResult};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tracing::{error, warn};

use crate::service::Gcs;

/// Time between two signs of life on an idle connection, so that a subscriber whose machine is gone is
/// not kept for ever.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// A running control plane and its server.
#[derive(Debug)]
pub struct GcsServer {
    gcs: Gcs,
    address: SocketAddr,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

impl GcsServer {
    /// Starts a control plane as `config` says and serves it on `listener`.
    ///
    /// # Errors
    /// As [`Gcs::start`]; also if the listener has no address.
    pub async fn start(config: &GcsConfig, listener: TcpListener) -> RayResult<Self> {
        let gcs = Gcs::start(config).await?;
        let address =
            listener.local_addr().map_err(|error| RayError::io("the listener has no address", error))?;
        let stop = CancellationToken::new();
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let serving = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .add_service(gcs.grpc_service())
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        let server = tokio::spawn(async move {
            if let Err(error) = serving.await {
                error!(%error, "the control plane's server failed");
            }
        });
        Ok(Self { gcs, address, stop, server })
    }

    /// Where the control plane can be reached.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The control plane.
    pub fn gcs(&self) -> &Gcs {
        &self.gcs
    }

    /// Stops: the control plane first, which ends all subscriptions, then the server.
    pub async fn shutdown(mut self) {
        let patience = Duration::from_millis(self.gcs.config().rpc_timeout_ms);
        self.stop.cancel();
        self.gcs.shutdown().await;
        if tokio::time::timeout(patience, &mut self.server).await.is_err() {
            warn!("some clients do not hang up; the server ends without them");
            self.server.abort();
        }
    }
}
