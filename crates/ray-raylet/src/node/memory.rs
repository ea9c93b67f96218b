//! Looks now and then at the memory in use, and has a worker ended when it runs low.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tracing::warn;

use super::machine::NodeMachine;
use crate::memory_monitor::{Candidate, MemoryUsage, choose, reason};

/// When to look, and what is too much.
#[derive(Debug)]
pub(super) struct MemoryWatch {
    /// Nothing: never.
    interval: Option<Duration>,
    threshold: f64,
    last: Instant,
}

impl MemoryWatch {
    pub(super) fn new(interval_ms: u64, threshold: f64) -> Self {
        let interval = (interval_ms > 0).then(|| Duration::from_millis(interval_ms));
        Self { interval, threshold, last: Instant::now() }
    }

    /// When to look next; a node without work does not look.
    pub(super) fn next_deadline(&self, machine: &NodeMachine) -> Option<Instant> {
        let interval = self.interval.filter(|_| machine.is_at_work())?;
        Some(self.last + interval)
    }

    /// Looks, if it is time.
    pub(super) fn on_tick(&mut self, now: Instant, machine: &mut NodeMachine) {
        if self.next_deadline(machine).is_none_or(|due| due > now) {
            return;
        }
        self.last = now;
        let usage = tightest(machine_usage(), group_usage());
        // The end of the last one that was chosen frees something first.
        let Some(usage) = usage.filter(|usage| usage.is_above(self.threshold)) else { return };
        if machine.is_freeing_memory() {
            return;
        }
        let candidates = machine.leased_processes().map(|(worker_id, pid, is_actor)| Candidate {
            worker_id,
            pid,
            is_actor,
            bytes: own_bytes(pid),
        });
        if let Some(chosen) = choose(candidates) {
            let reason = reason(usage, self.threshold, &chosen);
            warn!(worker_id = %chosen.worker_id, pid = chosen.pid, %reason, "a worker is ended to free memory");
            machine.on_low_memory(now, chosen.worker_id, &reason);
        }
    }
}

/// That of which the greater part is in use.
fn tightest(one: Option<MemoryUsage>, other: Option<MemoryUsage>) -> Option<MemoryUsage> {
    let part = |usage: &MemoryUsage| usage.used as f64 / usage.total.max(1) as f64;
    one.into_iter().chain(other).max_by(|one, other| part(one).total_cmp(&part(other)))
}

fn machine_usage() -> Option<MemoryUsage> {
    parse_meminfo(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse_meminfo(text: &str) -> Option<MemoryUsage> {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    let total = bytes("MemTotal")?;
    Some(MemoryUsage { used: total.saturating_sub(bytes("MemAvailable")?), total })
}

/// Of the control group that this process is the root of, if it has a limit.
fn group_usage() -> Option<MemoryUsage> {
    let files = [("memory.current", "memory.max"), ("memory.usage_in_bytes", "memory.limit_in_bytes")];
    let folders = [Path::new("/sys/fs/cgroup"), Path::new("/sys/fs/cgroup/memory")];
    folders.iter().zip(files).find_map(|(folder, (current, limit))| {
        // Without a limit it says "max", or a number far beyond any machine.
        let read = |name| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
        let (used, total) = (read(current)?, read(limit)?);
        let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        Some(MemoryUsage { used: used.saturating_sub(file_cache(&stat)), total })
    })
}

/// Pages of files that can be had back at once.
fn file_cache(stat: &str) -> u64 {
    let names = ["inactive_file ", "total_inactive_file "];
    let value = |line: &str| names.iter().find_map(|name| line.strip_prefix(name))?.trim().parse().ok();
    stat.lines().filter_map(value).max().unwrap_or(0)
}

/// Memory of a process in bytes, without what it shares with others; 0 if it is gone.
fn own_bytes(pid: u32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let mut pages = statm.split_whitespace().skip(1).map_while(|field| field.parse::<u64>().ok());
    let (resident, shared) = (pages.next().unwrap_or(0), pages.next().unwrap_or(0));
    resident.saturating_sub(shared) * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_is_what_is_not_available() {
        let text = "MemTotal:  100 kB\nMemFree: 10 kB\nMemAvailable:   40 kB\n";
        assert_eq!(parse_meminfo(text), Some(MemoryUsage { used: 60 << 10, total: 100 << 10 }));
        assert_eq!(parse_meminfo("MemTotal: 100 kB\n"), None);
    }

    #[test]
    fn the_tighter_limit_counts() {
        let usage = |used, total| Some(MemoryUsage { used, total });
        assert_eq!(tightest(usage(50, 100), usage(9, 10)), usage(9, 10));
        assert_eq!(tightest(usage(50, 100), None), usage(50, 100));
        assert_eq!(tightest(None, None), None);
    }

    #[test]
    fn caches_of_files_are_not_in_use() {
        assert_eq!(file_cache("anon 5\ninactive_file 7\nactive_file 9\n"), 7);
        assert_eq!(file_cache("inactive_file 1\ntotal_inactive_file 8\n"), 8);
        assert_eq!(file_cache(""), 0);
    }

    #[test]
    fn this_process_has_memory_of_its_own() {
        assert!(own_bytes(std::process::id()) > 100_000);
        assert_eq!(own_bytes(u32::MAX), 0);
    }
}
