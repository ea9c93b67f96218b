//! Which worker is ended when the node runs out of memory, before the kernel chooses a process itself.
//!
//! Tasks go before actors, which lose their state; among them the one that uses most memory. Only one at
//! a time: how much its end has freed is seen before another is chosen.

use ray_core::id::WorkerId;

/// Memory of a machine or control group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUsage {
    /// Bytes in use that cannot be had back at once.
    pub used: u64,
    /// Bytes that there are.
    pub total: u64,
}

impl MemoryUsage {
    /// Whether more than this part, from 0 to 1, is in use.
    pub fn is_above(self, threshold: f64) -> bool {
        self.total > 0 && self.used as f64 > self.total as f64 * threshold
    }
}

/// A worker that could be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The worker.
    pub worker_id: WorkerId,
    /// Its process.
    pub pid: u32,
    /// Whether it is an actor.
    pub is_actor: bool,
    /// Memory of its own in bytes; what it reads of the object store is not counted.
    pub bytes: u64,
}

/// The one to end; `None` if there is none.
pub fn choose(candidates: impl IntoIterator<Item = Candidate>) -> Option<Candidate> {
    candidates.into_iter().max_by_key(|candidate| (!candidate.is_actor, candidate.bytes, candidate.worker_id))
}

/// Why it is ended, for those who lose it.
pub fn reason(usage: MemoryUsage, threshold: f64, chosen: &Candidate) -> String {
    let mib = |bytes: u64| bytes >> 20;
    format!(
        "the node ran low on memory: {} of {} MiB were in use, above the threshold of {:.0} %, and of its workers \
         process {} used most, {} MiB. Ask for memory (memory=...) or more CPUs per task so that fewer run at \
         once, or set raylet.memory_usage_threshold",
        mib(usage.used),
        mib(usage.total),
        threshold * 100.0,
        chosen.pid,
        mib(chosen.bytes),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn candidate(number: u8, is_actor: bool, bytes: u64) -> Candidate {
        let worker_id = WorkerId::from_bytes([number; WorkerId::LEN]);
        Candidate { worker_id, pid: number.into(), is_actor, bytes }
    }

    #[test]
    fn the_largest_task_goes_before_any_actor() {
        let all = [candidate(1, true, 9 * MIB), candidate(2, false, MIB), candidate(3, false, 2 * MIB)];
        assert_eq!(choose(all), Some(all[2]));
        assert_eq!(choose([all[0]]), Some(all[0]));
        assert_eq!(choose([]), None);
    }

    #[test]
    fn what_is_at_the_threshold_is_not_above_it() {
        let usage = |used| MemoryUsage { used, total: 100 };
        assert!(!usage(95).is_above(0.95));
        assert!(usage(96).is_above(0.95));
        assert!(!MemoryUsage { used: 5, total: 0 }.is_above(0.5));
    }

    #[test]
    fn the_reason_names_the_process_and_the_figures() {
        let text =
            reason(MemoryUsage { used: 97 * MIB, total: 100 * MIB }, 0.95, &candidate(7, false, 60 * MIB));
        for word in ["97 of 100 MiB", "95 %", "process 7", "60 MiB"] {
            assert!(text.contains(word), "{text}");
        }
    }
}
