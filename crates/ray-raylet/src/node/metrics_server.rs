//! Metrics over HTTP, for Prometheus: one resource, read-only, on the loopback interface.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::debug;

use super::handle::{Command, NodeHandle};

/// Longest head of a request that is read, in bytes.
const MAX_HEAD: usize = 8 * 1024;
/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Requests at once; more wait.
const MAX_CONNECTIONS: usize = 16;
/// Pause after a connection could not be taken.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers requests for as long as it is polled.
pub(super) async fn serve(listener: TcpListener, node: NodeHandle) {
    let slots = std::sync::Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let slot =
            std::sync::Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let node = node.clone();
                connections.spawn(async move {
                    if !matches!(tokio::time::timeout(LIMIT, answer(stream, &node)).await, Ok(Ok(()))) {
                        debug!("a request for metrics was not answered");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                debug!(%error, "cannot take a request for metrics");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn answer(mut stream: TcpStream, node: &NodeHandle) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut part = [0; 1024];
        let count = stream.read(&mut part).await?;
        if count == 0 || head.len() + count > MAX_HEAD {
            return Ok(());
        }
        head.extend_from_slice(&part[..count]);
    }
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let (status, body) = match path_of(&line) {
        Some("/metrics" | "/") => match node.call(|answer| Command::Metrics { answer }).await {
            Ok(text) => ("200 OK", text),
            Err(_) => ("503 Service Unavailable", "the node ends\n".to_owned()),
        },
        Some(_) => ("404 Not Found", "metrics are at /metrics\n".to_owned()),
        None => ("405 Method Not Allowed", "metrics are read by GET\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// The path that a request's first line asks for, without its query, if it is a GET.
fn path_of(line: &str) -> Option<&str> {
    let mut words = line.split(' ');
    let method = words.next()?;
    let target = words.next()?;
    (method == "GET").then(|| target.split('?').next().unwrap_or(target))
}

#[cfg(test)]
mod tests {
    use super::path_of;

    #[test]
    fn the_first_line_says_what_is_asked() {
        assert_eq!(path_of("GET /metrics HTTP/1.1"), Some("/metrics"));
        assert_eq!(path_of("GET /metrics?x=1 HTTP/1.1"), Some("/metrics"));
        assert_eq!(path_of("POST /metrics HTTP/1.1"), None);
        assert_eq!(path_of("nonsense"), None);
    }
}
