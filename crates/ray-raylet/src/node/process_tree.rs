//! The processes below this one.
//!
//! The daemon is a child subreaper: what its workers start becomes its own child when the worker
//! ends, and so nothing can slip away from it. At its end it kills whatever is left.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, WaitOptions, getpid, kill_process, kill_process_group, set_child_subreaper, wait,
};
use tracing::warn;

/// Makes this process the parent of all orphans among its descendants.
pub(super) fn adopt_orphans() {
    if let Err(error) = set_child_subreaper(Some(getpid())) {
        warn!(%error, "cannot become a subreaper: processes that workers start may outlive the node");
    }
}

/// Kills this process, if it is one that a signal may be sent to.
pub(super) fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 1).and_then(Pid::from_raw) {
        // It fails when the process is gone, which is what is wanted.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Kills the process group that this process leads.
pub(super) fn kill_group(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 1).and_then(Pid::from_raw) {
        let _ = kill_process_group(pid, Signal::KILL);
    }
}

/// Kills all descendants of this process and reaps its children, until none is left or `limit` has
/// passed: a process in an uninterruptible wait of the kernel cannot be waited out.
pub(super) fn kill_descendants(limit: Duration) {
    let start = Instant::now();
    let mut pause = Duration::from_micros(500);
    loop {
        while matches!(wait(WaitOptions::NOHANG), Ok(Some(_))) {}
        let descendants = descendants();
        if descendants.is_empty() {
            return;
        }
        if start.elapsed() > limit {
            warn!(?descendants, "processes that cannot be killed");
            return;
        }
        descendants.into_iter().for_each(kill);
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Process ids of all descendants of this process that have not ended.
fn descendants() -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        if let Some(parent) = living_parent(&stat) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = children.remove(&std::process::id()).unwrap_or_default();
    let mut at = 0;
    while at < found.len() {
        found.extend(children.remove(&found[at]).unwrap_or_default());
        at += 1;
    }
    found
}

/// The parent in a line of `/proc/<pid>/stat`, unless the process has ended and waits to be reaped.
fn living_parent(stat: &str) -> Option<u32> {
    // The second field is the name in parentheses and may hold anything, parentheses too.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_whatever_the_name_is() {
        assert_eq!(living_parent("7 (a b) S) S 42 7 7 0"), Some(42));
        assert_eq!(living_parent("7 (sh) Z 42 7 7 0"), None);
        assert_eq!(living_parent(""), None);
    }

    #[test]
    fn a_child_is_a_descendant() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(descendants().contains(&child.id()));
        kill(child.id());
        child.wait().unwrap();
        assert!(!descendants().contains(&child.id()));
    }
}
