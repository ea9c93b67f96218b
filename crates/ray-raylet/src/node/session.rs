//! The folder of one node's run, and what is left of earlier ones.
//!
//! ```text
//! <temp_dir>/session_<time>_<pid>/   mode 0700
//!     lock        locked as long as the node lives: whoever can lock it knows that it does not
//!     node.json   how to reach the node
//!     logs/       one file for each process, and what workers print
//!     sockets/    of the node and its processes; of a node that has joined a cluster, a link to that folder of the
//!                 first node, so that the processes of all nodes find one another
//!     runtime_resources/, runtime_env/   what was made for runtime environments, and is being made
//! <temp_dir>/ray_current_cluster   node.json of the head that was started last by hand, and lives
//! ```

use std::fs::{self, DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ray_core::error::{RayError, RayResult};
use ray_core::id::NodeId;
use ray_link::message::node_socket;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tracing::warn;

/// Dead sessions whose logs are kept.
const KEPT_SESSIONS: usize = 10;
/// Folders of a session that end with it.
const PASSING: [&str; 3] = ["sockets", "runtime_resources", "runtime_env"];
/// Beginning of the names of sessions.
const PREFIX: &str = "session_";
/// Name of the file that says how to reach the cluster of this machine.
const CURRENT_CLUSTER: &str = "ray_current_cluster";

/// How to reach a node: the content of `node.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfoJson {
    /// "host:port" of the control plane.
    pub gcs_address: String,
    /// "host:port" of the node's own services.
    pub node_address: String,
    /// Unix socket for workers and drivers of this machine.
    pub socket_path: PathBuf,
    /// The node.
    pub node_id: NodeId,
    /// Process id of the daemon.
    pub pid: u32,
    /// Folder of logs and sockets.
    pub session_dir: PathBuf,
    /// Whether it ends with the driver that started it.
    pub owned_by_driver: bool,
    /// Port on the loopback interface at which its metrics are read.
    pub metrics_export_port: u16,
}

/// A live session. Its sockets and what was made for runtime environments go away with it; its logs stay.
#[derive(Debug)]
pub struct Session {
    folder: PathBuf,
    temp_dir: PathBuf,
    /// Whether `ray_current_cluster` is ours.
    announced: bool,
    /// Held, not read: its lock tells others that we live.
    _lock: File,
}

impl Session {
    /// Makes a session in `temp_dir`, after removing what dead ones left there.
    ///
    /// # Errors
    /// If the folders cannot be made.
    pub fn create(temp_dir: &Path) -> RayResult<Self> {
        let fail = |path: &Path| {
            let context = format!("cannot make the session folder {}", path.display());
            move |error: std::io::Error| RayError::io(context, error)
        };
        fs::create_dir_all(temp_dir).map_err(fail(temp_dir))?;
        let temp_dir = fs::canonicalize(temp_dir).map_err(fail(temp_dir))?;
        remove_dead_sessions(&temp_dir);
        let pid = std::process::id();
        let mut attempt = SystemTime::now();
        loop {
            let folder = temp_dir.join(format!("{PREFIX}{}_{pid}", timestamp(attempt)));
            // Made under another name and locked first: a session without a lock is taken for dead.
            let hidden =
                temp_dir.join(format!(".{}", folder.file_name().unwrap_or_default().to_string_lossy()));
            match private_folder(&hidden) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    // Another node of this process was made in the same moment.
                    attempt += std::time::Duration::from_millis(1);
                    continue;
                }
                made => made.map_err(fail(&hidden))?,
            }
            if folder.exists() {
                let _ = fs::remove_dir(&hidden);
                attempt += std::time::Duration::from_millis(1);
                continue;
            }
            let lock = lock(&hidden.join("lock")).map_err(fail(&hidden))?;
            private_folder(&hidden.join("logs")).map_err(fail(&hidden))?;
            private_folder(&hidden.join("sockets")).map_err(fail(&hidden))?;
            fs::rename(&hidden, &folder).map_err(fail(&folder))?;
            return Ok(Self { folder, temp_dir, announced: false, _lock: lock });
        }
    }

    /// The session's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Folder of the logs.
    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// Has the node and its processes listen where the nodes do that it joins.
    ///
    /// # Errors
    /// If the link to that folder cannot be made.
    pub fn share_sockets(&self, shared: &Path) -> RayResult<()> {
        let own = self.folder.join("sockets");
        let fail = |error| {
            RayError::io(format!("cannot make {} a link to {}", own.display(), shared.display()), error)
        };
        fs::remove_dir(&own).map_err(fail)?;
        symlink(shared, &own).map_err(fail)
    }

    /// Where this node listens for its clients.
    pub fn socket_path(&self, node_id: NodeId) -> PathBuf {
        node_socket(&self.folder.join("sockets"), node_id)
    }

    /// Says how to reach the node; with `announce` to everyone on the machine who looks for a cluster.
    ///
    /// # Errors
    /// If the files cannot be written.
    pub fn publish(&mut self, info: &NodeInfoJson, announce: bool) -> RayResult<()> {
        let text = serde_json::to_string_pretty(info)
            .map_err(|error| RayError::serialization("encode node.json", error))?;
        let path = self.folder.join("node.json");
        write_whole(&path, &text).map_err(|error| RayError::io("cannot write node.json", error))?;
        if announce {
            let path = self.temp_dir.join(CURRENT_CLUSTER);
            write_whole(&path, &text)
                .map_err(|error| RayError::io(format!("cannot write {}", path.display()), error))?;
            self.announced = true;
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for name in PASSING {
            let _ = fs::remove_dir_all(self.folder.join(name));
        }
        if !self.announced {
            return;
        }
        let path = self.temp_dir.join(CURRENT_CLUSTER);
        let ours = |text: String| serde_json::from_str::<NodeInfoJson>(&text).ok();
        let announced = fs::read_to_string(&path).ok().and_then(ours);
        if announced.is_some_and(|info| info.session_dir == self.folder) {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Removes the sockets of dead sessions, and all of those beyond the last few.
fn remove_dead_sessions(temp_dir: &Path) {
    let Ok(entries) = fs::read_dir(temp_dir) else { return };
    let named =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    let mut dead = Vec::new();
    for folder in entries.flatten().map(|entry| entry.path()).filter(named) {
        // The lock is held until the folder is dealt with, so that two new nodes do not do it at once.
        if let Ok(lock) = lock(&folder.join("lock")) {
            dead.push((folder, lock));
        }
    }
    // Names begin with the time: the last in order is the newest.
    dead.sort_by(|(one, _), (other, _)| other.cmp(one));
    for (at, (folder, _lock)) in dead.iter().enumerate() {
        let passing = || PASSING.iter().map(|name| folder.join(name)).collect();
        let doomed = if at < KEPT_SESSIONS { passing() } else { vec![folder.clone()] };
        for doomed in doomed {
            match fs::remove_dir_all(&doomed) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    warn!(path = %doomed.display(), %error, "cannot remove what a dead session left")
                }
            }
        }
    }
}

fn lock(path: &Path) -> std::io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

fn private_folder(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

/// Readers see the old content or the new one, never a part.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let draft = path.with_extension(format!("{}.draft", std::process::id()));
    let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&draft)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&draft, path)
}

/// Coordinated universal time to the millisecond, as `20261123T194104123`, which sorts by time.
fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // The proleptic Gregorian calendar, counted in eras of 400 years from 0000-03-01.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = 400 * era + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}{:03}", since.subsec_millis())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn info(session: &Session) -> NodeInfoJson {
        NodeInfoJson {
            gcs_address: "127.0.0.1:1".to_owned(),
            node_address: "127.0.0.1:7000".to_owned(),
            socket_path: session.socket_path(NodeId::nil()),
            node_id: NodeId::nil(),
            pid: 1,
            session_dir: session.folder().to_owned(),
            owned_by_driver: false,
            metrics_export_port: 0,
        }
    }

    #[test]
    fn times_are_written_as_the_calendar_has_them() {
        let at = |seconds| timestamp(UNIX_EPOCH + Duration::from_millis(seconds));
        assert_eq!(at(0), "19700101T000000000");
        assert_eq!(at(951_827_696_789), "20000229T123456789");
        assert_eq!(at(1_795_463_464_000), "20261123T195104000");
    }

    #[test]
    fn a_session_leaves_only_its_logs() {
        let folder = tempfile::tempdir().unwrap();
        let mut session = Session::create(folder.path()).unwrap();
        session.publish(&info(&session), true).unwrap();
        fs::write(session.logs().join("x.log"), "x").unwrap();
        fs::write(session.socket_path(NodeId::nil()), "").unwrap();
        let path = session.folder().to_owned();
        let text = fs::read_to_string(folder.path().join(CURRENT_CLUSTER)).unwrap();
        assert_eq!(serde_json::from_str::<NodeInfoJson>(&text).unwrap(), info(&session));
        drop(session);
        assert!(!folder.path().join(CURRENT_CLUSTER).exists());
        assert!(!path.join("sockets").exists());
        assert!(path.join("logs").join("x.log").exists());
    }

    #[test]
    fn a_session_that_shares_the_sockets_of_another_leaves_them() {
        let folder = tempfile::tempdir().unwrap();
        let first = Session::create(folder.path()).unwrap();
        let second = Session::create(folder.path()).unwrap();
        let one = NodeId::from_bytes([1; 16]);
        second.share_sockets(&first.folder().join("sockets")).unwrap();
        fs::write(second.socket_path(one), "").unwrap();
        assert!(first.socket_path(one).exists());
        let path = second.folder().to_owned();
        drop(second);
        assert!(!path.join("sockets").exists());
        assert!(first.socket_path(one).exists());
    }

    #[test]
    fn the_announcement_of_a_later_cluster_stays() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Session::create(folder.path()).unwrap();
        first.publish(&info(&first), true).unwrap();
        let mut second = Session::create(folder.path()).unwrap();
        second.publish(&info(&second), true).unwrap();
        assert_ne!(first.folder(), second.folder());
        drop(first);
        assert!(folder.path().join(CURRENT_CLUSTER).exists());
    }

    #[test]
    fn what_dead_sessions_left_is_removed_and_the_living_are_let_alone() {
        let folder = tempfile::tempdir().unwrap();
        let living = Session::create(folder.path()).unwrap();
        for number in 0..12 {
            let dead = folder.path().join(format!("{PREFIX}2000010{}T000000000_{number}", number % 10));
            fs::create_dir_all(dead.join("sockets")).unwrap();
            fs::create_dir_all(dead.join("logs")).unwrap();
        }
        let _new = Session::create(folder.path()).unwrap();
        assert!(living.folder().join("sockets").exists());
        let dead = fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.path());
        let dead: Vec<_> = dead.filter(|path| path.to_string_lossy().contains("_2000")).collect();
        assert_eq!(dead.len(), KEPT_SESSIONS);
        assert!(dead.iter().all(|path| path.join("logs").exists() && !path.join("sockets").exists()));
    }
}
