//! Nodes that processes of this one could not reach a moment ago.
//!
//! A process says so of a node that lives as far as anybody knows. It is not sent there for a while, so that it looks
//! for leases elsewhere; then it is sent there again, for its link may have broken for a passing reason. If the node has
//! died, the control plane says so meanwhile.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ray_core::id::{NodeId, WorkerId};

/// How long a process is not sent to a node that it could not reach.
const PAUSE: Duration = Duration::from_secs(1);

/// Which process could not reach which node, why, and until when that counts. At most one entry for each process of
/// this node and each other node.
#[derive(Debug, Default)]
pub(super) struct Unreachable {
    pauses: BTreeMap<(WorkerId, NodeId), (Instant, String)>,
}

impl Unreachable {
    /// A process could not reach a node, or its link there broke.
    pub(super) fn on_failure(&mut self, now: Instant, worker_id: WorkerId, node_id: NodeId, cause: String) {
        self.pauses.insert((worker_id, node_id), (now + PAUSE, cause));
    }

    /// Why this process is not to be sent there now; `None` if it is.
    pub(super) fn cause(&self, worker_id: WorkerId, node_id: NodeId) -> Option<&str> {
        self.pauses.get(&(worker_id, node_id)).map(|(_, cause)| cause.as_str())
    }

    /// The process has ended.
    pub(super) fn forget(&mut self, worker_id: WorkerId) {
        self.pauses.retain(|(other, _), _| *other != worker_id);
    }

    /// Ends the pauses that are over; returns the processes whose they were.
    pub(super) fn on_tick(&mut self, now: Instant) -> Vec<WorkerId> {
        let over = |(&(worker_id, _), (until, _)): (&(WorkerId, NodeId), &(Instant, String))| {
            (*until <= now).then_some(worker_id)
        };
        let workers: Vec<_> = self.pauses.iter().filter_map(over).collect();
        self.pauses.retain(|_, (until, _)| *until > now);
        workers
    }

    /// When the next pause ends.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.pauses.values().map(|(until, _)| *until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_sent_again_when_the_pause_is_over() {
        let (worker, other, node) = (WorkerId::random(), WorkerId::random(), NodeId::random());
        let start = Instant::now();
        let mut unreachable = Unreachable::default();
        unreachable.on_failure(start, worker, node, "refused".to_owned());
        assert_eq!(unreachable.cause(worker, node), Some("refused"));
        assert_eq!(unreachable.cause(other, node), None);
        let end = unreachable.next_deadline().unwrap();
        assert_eq!(unreachable.on_tick(end - Duration::from_millis(1)), []);
        // Another failure begins another pause.
        unreachable.on_failure(end, worker, node, "reset".to_owned());
        assert_eq!(unreachable.on_tick(end), []);
        assert_eq!(unreachable.on_tick(end + PAUSE), [worker]);
        assert_eq!((unreachable.cause(worker, node), unreachable.next_deadline()), (None, None));
        unreachable.on_failure(end, worker, node, "refused".to_owned());
        unreachable.forget(worker);
        assert_eq!(unreachable.next_deadline(), None);
    }
}
