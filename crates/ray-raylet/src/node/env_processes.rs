//! The processes behind runtime environments: a fork server for each interpreter that is not the node's own, and
//! the files by which set-ups say what they came to.
//!
//! ```text
//! <session>/runtime_env/<id>.json        what a set-up came to, until it is read
//! <session>/runtime_resources/           packages and virtual environments
//! <session>/logs/runtime_env_setup-<id>.log, fork_server-<id>.log   what they and their installers print
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ray_core::id::RuntimeEnvId;
use ray_core::runtime_env::RuntimeEnv;
use ray_link::{Interest, Poller};
use serde::Deserialize;
use tracing::{info, warn};

use super::effect::ExitStatus;
use super::fork_server::{ForkEvent, ForkOrder, ForkServer, SetupOrder};
use super::link_server::FIRST_ENV_SERVER;
use crate::runtime_env_table::{Prepared, Resource, SetupError};

/// How much of what a process printed last is told, in bytes.
const LAST_WORDS: usize = 2_000;

/// What a set-up says of itself.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    /// It is done.
    Ready(Prepared),
    /// It has failed.
    Failed { step: String, reason: String, resources: Vec<Resource> },
    /// It is not done yet.
    Doing { step: String, resources: Vec<Resource> },
}

/// A fork server with an interpreter of its own, for all environments that have this interpreter.
#[derive(Debug)]
struct EnvServer {
    server: ForkServer,
    process: Child,
    token: u64,
    interest: Interest,
    log: PathBuf,
    used_by: BTreeSet<RuntimeEnvId>,
}

/// The environments that a fork server served, and how it ended.
pub(super) type Lost = (Vec<RuntimeEnvId>, String);

/// See the module.
#[derive(Debug)]
pub(super) struct EnvProcesses {
    outcomes: PathBuf,
    root: PathBuf,
    logs: PathBuf,
    /// By the command that starts them.
    servers: BTreeMap<Vec<String>, EnvServer>,
    next_token: u64,
}

/// The parts of a [`SetupOrder`].
#[derive(Debug)]
pub(super) struct OwnedSetupOrder {
    env: RuntimeEnv,
    outcome: PathBuf,
    log: PathBuf,
    root: PathBuf,
    gcs_address: String,
}

impl OwnedSetupOrder {
    pub(super) fn as_order(&self) -> SetupOrder<'_> {
        SetupOrder {
            runtime_env_id: self.env.id(),
            runtime_env: self.env.text(),
            outcome: &self.outcome,
            log: &self.log,
            root: &self.root,
            gcs_address: &self.gcs_address,
        }
    }
}

impl EnvProcesses {
    pub(super) fn new(session_dir: &str, logs: &Path) -> Self {
        let session = Path::new(session_dir);
        Self {
            outcomes: session.join("runtime_env"),
            root: session.join("runtime_resources"),
            logs: logs.to_owned(),
            servers: BTreeMap::new(),
            next_token: FIRST_ENV_SERVER,
        }
    }

    /// What the process that sets this environment up is told.
    pub(super) fn setup_order(&self, env: &RuntimeEnv, gcs_address: &str) -> OwnedSetupOrder {
        OwnedSetupOrder {
            env: env.clone(),
            outcome: self.outcome(env.id()),
            log: self.logs.join(format!("runtime_env_setup-{}.log", env.id())),
            root: self.root.clone(),
            gcs_address: gcs_address.to_owned(),
        }
    }

    fn outcome(&self, id: RuntimeEnvId) -> PathBuf {
        self.outcomes.join(format!("{id}.json"))
    }

    /// What a set-up whose process has ended came to.
    pub(super) fn take_outcome(&self, id: RuntimeEnvId, status: ExitStatus) -> Result<Prepared, SetupError> {
        let path = self.outcome(id);
        let text = fs::read_to_string(&path);
        let _ = fs::remove_file(&path);
        let unexpected = |step: String, resources| {
            let log = self.logs.join(format!("runtime_env_setup-{id}.log"));
            SetupError { step, reason: format!("{status}{}", last_words(&log)), resources }
        };
        let Ok(text) = text else { return Err(unexpected(String::new(), Vec::new())) };
        match serde_json::from_str(&text) {
            Ok(Outcome::Ready(prepared)) => Ok(prepared),
            Ok(Outcome::Failed { step, reason, resources }) => Err(SetupError { step, reason, resources }),
            Ok(Outcome::Doing { step, resources }) => Err(unexpected(step, resources)),
            Err(error) => {
                let reason = format!("what it left in {} makes no sense: {error}", path.display());
                Err(SetupError { reason, ..SetupError::default() })
            }
        }
    }

    /// Orders a worker of an environment from its fork server, which is started if need be. If there is none,
    /// or it is gone, returns the environments that were served by it, and what happened.
    pub(super) fn fork(
        &mut self,
        id: RuntimeEnvId,
        command: &[String],
        order: ForkOrder<'_>,
        poller: &Poller,
    ) -> Result<(), Lost> {
        if !self.servers.contains_key(command) {
            let server = self.start(id, command, poller).map_err(|cause| (vec![id], cause))?;
            self.servers.insert(command.to_vec(), server);
        }
        let server = self.servers.get_mut(command).expect("it is there, or was started just now");
        server.used_by.insert(id);
        let result = server.server.fork(order);
        result.map_err(|error| self.end(command, &error.chain(), poller))
    }

    fn start(&mut self, id: RuntimeEnvId, command: &[String], poller: &Poller) -> Result<EnvServer, String> {
        let shown = command.join(" ");
        let fail = |error: std::io::Error| format!("cannot run {shown:?}: {error}");
        let (own, theirs) = UnixStream::pair().map_err(fail)?;
        let log = self.logs.join(format!("fork_server-{id}.log"));
        let output = File::create(&log).map_err(fail)?;
        let (program, arguments) = command.split_first().ok_or_else(|| "there is no command".to_owned())?;
        let process = Command::new(program)
            .args(arguments)
            // Its orders come by this socket.
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(output.try_clone().map_err(fail)?)
            .stderr(output)
            .current_dir("/")
            .spawn()
            .map_err(fail)?;
        let token = self.next_token;
        self.next_token += 1;
        let (server, used_by) = (ForkServer::new(own.into()), BTreeSet::new());
        let mut server = EnvServer { server, process, token, interest: Interest::Read, log, used_by };
        if let Err(error) = poller.add(&server.server, token, Interest::Read) {
            end_process(&mut server.process);
            return Err(fail(error));
        }
        info!(%id, pid = server.process.id(), "the fork server of a runtime environment is started");
        Ok(server)
    }

    /// What the fork server behind this token has said; and if it has ended, what that means.
    pub(super) fn read(&mut self, token: u64, poller: &Poller) -> (Vec<ForkEvent>, Option<Lost>) {
        let mut events = Vec::new();
        let found = self.servers.iter_mut().find(|(_, server)| server.token == token);
        let Some((command, server)) = found.map(|(command, server)| (command.clone(), server)) else {
            return (events, None);
        };
        let result = server.server.read(&mut events).and_then(|()| server.server.flush());
        let ended = result.err().map(|error| self.end(&command, &error.chain(), poller));
        (events, ended)
    }

    /// Writes what waits to be written.
    pub(super) fn flush(&mut self, poller: &Poller) {
        for server in self.servers.values_mut() {
            let interest = if server.server.wants_write() { Interest::ReadWrite } else { Interest::Read };
            if server.interest != interest && poller.modify(&server.server, server.token, interest).is_ok() {
                server.interest = interest;
            }
        }
    }

    /// No process of this environment is left, nor wanted: a fork server that nobody else uses ends.
    pub(super) fn retire(&mut self, id: RuntimeEnvId, poller: &Poller) {
        let mut unused = Vec::new();
        for (command, server) in &mut self.servers {
            if server.used_by.remove(&id) && server.used_by.is_empty() {
                unused.push(command.clone());
            }
        }
        for command in unused {
            self.end(&command, "nothing runs in its environment any more", poller);
        }
    }

    /// Ends a fork server. Returns whom it served, and how it ended.
    fn end(&mut self, command: &[String], why: &str, poller: &Poller) -> Lost {
        let Some(mut server) = self.servers.remove(command) else { return (Vec::new(), why.to_owned()) };
        let _ = poller.remove(&server.server);
        let status = end_process(&mut server.process);
        info!(pid = server.process.id(), why, status, "the fork server of a runtime environment has ended");
        let words = last_words(&server.log);
        let cause = format!("the process that makes its workers ended ({status}){words}");
        (server.used_by.into_iter().collect(), cause)
    }

    /// Removes something from the disk: out of sight at once, the rest beside the node's work.
    pub(super) fn discard(&self, path: &Path) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let hidden = path.with_file_name(format!(".discarded-{name}"));
        if let Err(error) = fs::rename(path, &hidden) {
            warn!(path = %path.display(), %error, "cannot remove what no environment uses");
            return;
        }
        let remove = move || {
            if let Err(error) = fs::remove_dir_all(&hidden).or_else(|_| fs::remove_file(&hidden)) {
                warn!(path = %hidden.display(), %error, "cannot remove what no environment uses");
            }
        };
        let thread = std::thread::Builder::new().name("node-discard".to_owned()).spawn(remove);
        if let Err(error) = thread {
            warn!(%error, "cannot remove what no environment uses");
        }
    }
}

fn end_process(process: &mut Child) -> String {
    // One that has ended keeps its own status.
    let _ = process.kill();
    process.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
}

/// The end of a log, as part of an error.
fn last_words(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LAST_WORDS)..]);
    let tail = tail.trim();
    if tail.is_empty() { String::new() } else { format!("; its last words:\n{tail}") }
}
