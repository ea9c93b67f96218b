//! The process that makes workers, from the node's side: one line of JSON for each message.
//!
//! ```text
//! node -> fork server   {"fork":{"worker_id":"<hex>","stdout":"<path>","stderr":"<path>","env":{..},
//!                                "runtime_env":"<json>","context":{..}}}    (the last two: if it has one)
//!                       {"setup":{"runtime_env_id":"<hex>","runtime_env":"<json>","outcome":"<path>",..}}
//! fork server -> node   {"forked":{"worker_id":"<hex>","pid":1}}
//!                       {"setup_started":{"runtime_env_id":"<hex>","pid":1}}
//!                       {"setup_failed":{"runtime_env_id":"<hex>","reason":"<text>"}}   (no process)
//!                       {"exited":{"pid":1,"code":0,"signal":null}}
//! ```
//! The fork server reaps all workers. It ends, and they with it, when this end of the socket is closed.
//! What a set-up came to stands in the file `outcome` when its process has ended.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use ray_core::error::{RayError, RayResult};
use ray_core::id::{RuntimeEnvId, WorkerId};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::{Deserialize, Serialize};

use super::effect::ExitStatus;

/// Longest line that is taken, in bytes.
const MAX_LINE: usize = 64 * 1024;

/// An order for the fork server.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Order<'a> {
    Fork {
        worker_id: WorkerId,
        socket: &'a Path,
        stdout: &'a Path,
        stderr: &'a Path,
        env: &'a BTreeMap<String, String>,
        #[serde(skip_serializing_if = "str::is_empty")]
        runtime_env: &'a str,
        #[serde(skip_serializing_if = "serde_json::Value::is_null")]
        context: &'a serde_json::Value,
    },
    Setup(SetupOrder<'a>),
}

/// What a process that sets an environment up has to know.
#[derive(Debug, Serialize)]
pub struct SetupOrder<'a> {
    /// The environment.
    pub runtime_env_id: RuntimeEnvId,
    /// Its description.
    pub runtime_env: &'a str,
    /// File for what it came to.
    pub outcome: &'a Path,
    /// File for what it and its installers print.
    pub log: &'a Path,
    /// Folder of what is made for environments.
    pub root: &'a Path,
    /// "host:port" of the control plane, which has uploaded packages.
    pub gcs_address: &'a str,
}

/// With what a worker is made.
#[derive(Debug, Clone, Copy)]
pub struct ForkOrder<'a> {
    /// The worker.
    pub worker_id: WorkerId,
    /// Where its node listens.
    pub socket: &'a Path,
    /// File for its standard output.
    pub stdout: &'a Path,
    /// File for its standard error.
    pub stderr: &'a Path,
    /// Its variables.
    pub env: &'a BTreeMap<String, String>,
    /// Its runtime environment; empty for none.
    pub runtime_env: &'a str,
    /// What the environment's set-up has made for it; null if there was none.
    pub context: &'a serde_json::Value,
}

/// What the fork server tells.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Report {
    Forked {
        worker_id: WorkerId,
        pid: u32,
    },
    #[serde(rename = "setup_started")]
    SetupStarted {
        runtime_env_id: RuntimeEnvId,
        pid: u32,
    },
    #[serde(rename = "setup_failed")]
    SetupFailed {
        runtime_env_id: RuntimeEnvId,
        reason: String,
    },
    Exited {
        pid: u32,
        code: Option<i32>,
        signal: Option<i32>,
    },
}

/// What has happened to a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForkEvent {
    /// It was made.
    Forked(WorkerId, u32),
    /// The process that sets this environment up was made.
    SetupStarted(RuntimeEnvId, u32),
    /// No process could be made to set this environment up.
    SetupFailed(RuntimeEnvId, String),
    /// It was reaped.
    Exited(u32, ExitStatus),
}

/// The connection to the fork server.
#[derive(Debug)]
pub struct ForkServer {
    socket: OwnedFd,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl ForkServer {
    /// Talks over this end of a stream socket pair.
    pub const fn new(socket: OwnedFd) -> Self {
        Self { socket, input: Vec::new(), output: Vec::new() }
    }

    /// Orders a worker.
    ///
    /// # Errors
    /// If the fork server is gone.
    pub fn fork(&mut self, order: ForkOrder<'_>) -> RayResult<()> {
        let ForkOrder { worker_id, socket, stdout, stderr, env, runtime_env, context } = order;
        self.order(&Order::Fork { worker_id, socket, stdout, stderr, env, runtime_env, context })
    }

    /// Orders a process that sets a runtime environment up.
    ///
    /// # Errors
    /// If the fork server is gone.
    pub fn set_up(&mut self, order: SetupOrder<'_>) -> RayResult<()> {
        self.order(&Order::Setup(order))
    }

    fn order(&mut self, order: &Order<'_>) -> RayResult<()> {
        serde_json::to_writer(&mut self.output, order)
            .map_err(|error| RayError::serialization("encode an order for the fork server", error))?;
        self.output.push(b'\n');
        self.flush()
    }

    /// Writes what the socket takes now.
    ///
    /// # Errors
    /// If the fork server is gone.
    pub fn flush(&mut self) -> RayResult<()> {
        while !self.output.is_empty() {
            match send(&self.socket, &self.output, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(gone(error.to_string())),
            }
        }
        Ok(())
    }

    /// Whether something waits until the socket takes more.
    pub const fn wants_write(&self) -> bool {
        !self.output.is_empty()
    }

    /// Reads what is there now and adds what it tells to `events`.
    ///
    /// # Errors
    /// If the fork server is gone or says what cannot be understood.
    pub fn read(&mut self, events: &mut Vec<ForkEvent>) -> RayResult<()> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(gone("it closed the connection".to_owned())),
                Ok((_, count)) => self.input.extend_from_slice(&buffer[..count]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(gone(error.to_string())),
            }
            self.take_lines(events)?;
        }
    }

    fn take_lines(&mut self, events: &mut Vec<ForkEvent>) -> RayResult<()> {
        let mut start = 0;
        while let Some(length) = self.input[start..].iter().position(|&byte| byte == b'\n') {
            events.push(parse(&self.input[start..start + length])?);
            start += length + 1;
        }
        self.input.drain(..start);
        if self.input.len() > MAX_LINE {
            return Err(broken(format!("a line of more than {MAX_LINE} bytes")));
        }
        Ok(())
    }
}

impl AsFd for ForkServer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn parse(line: &[u8]) -> RayResult<ForkEvent> {
    let report = serde_json::from_slice(line)
        .map_err(|error| broken(format!("{error} in {:?}", String::from_utf8_lossy(line))))?;
    Ok(match report {
        Report::Forked { worker_id, pid } => ForkEvent::Forked(worker_id, pid),
        Report::SetupStarted { runtime_env_id, pid } => ForkEvent::SetupStarted(runtime_env_id, pid),
        Report::SetupFailed { runtime_env_id, reason } => ForkEvent::SetupFailed(runtime_env_id, reason),
        Report::Exited { pid, code, signal } => {
            let status = match (signal, code) {
                (Some(signal), _) => ExitStatus::Signal(signal),
                (None, Some(code)) => ExitStatus::Code(code),
                (None, None) => ExitStatus::Unknown,
            };
            ForkEvent::Exited(pid, status)
        }
    })
}

fn gone(cause: String) -> RayError {
    RayError::Unavailable { peer: "the fork server".to_owned(), cause }
}

fn broken(reason: String) -> RayError {
    RayError::Protocol { peer: "the fork server".to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (ForkServer, UnixStream) {
        let (node, server) = UnixStream::pair().unwrap();
        (ForkServer::new(node.into()), server)
    }

    #[test]
    fn an_order_is_one_line_of_json() {
        let (mut node, server) = pair();
        let env = BTreeMap::from([("A".to_owned(), "b\n".to_owned())]);
        let order = ForkOrder {
            worker_id: WorkerId::from_bytes([1; 16]),
            socket: Path::new("/s"),
            stdout: Path::new("/o"),
            stderr: Path::new("/e"),
            env: &env,
            runtime_env: "",
            context: &serde_json::Value::Null,
        };
        node.fork(order).unwrap();
        let mut line = String::new();
        BufReader::new(server).read_line(&mut line).unwrap();
        let expected = r#"{"fork":{"worker_id":"01010101010101010101010101010101","socket":"/s","stdout":"/o","stderr":"/e","env":{"A":"b\n"}}}"#;
        assert_eq!(line.trim_end(), expected);
    }

    #[test]
    fn reports_come_in_any_pieces() {
        let (mut node, mut server) = pair();
        let mut events = Vec::new();
        node.read(&mut events).unwrap();
        server.write_all(br#"{"forked":{"worker_id":"01010101010101010101010101010101","pi"#).unwrap();
        node.read(&mut events).unwrap();
        assert_eq!(events, []);
        server.write_all(b"d\":7}}\n{\"exited\":{\"pid\":7,\"code\":null,\"signal\":9}}\n").unwrap();
        node.read(&mut events).unwrap();
        let forked = ForkEvent::Forked(WorkerId::from_bytes([1; 16]), 7);
        assert_eq!(events, [forked, ForkEvent::Exited(7, ExitStatus::Signal(9))]);
    }

    #[test]
    fn nonsense_and_the_end_are_errors() {
        let (mut node, mut server) = pair();
        server.write_all(b"{\"oops\":1}\n").unwrap();
        assert!(matches!(node.read(&mut Vec::new()), Err(RayError::Protocol { .. })));
        drop(server);
        assert!(matches!(node.read(&mut Vec::new()), Err(RayError::Unavailable { .. })));
    }
}
