//! The processes of the node, as people want to see them: those that live, and how the last ones ended.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use ray_core::id::{ActorId, JobId, WorkerId};

/// Ended processes that are remembered.
const REMEMBERED: usize = 1_000;

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) worker_id: WorkerId,
    pub(crate) pid: Option<u32>,
    pub(crate) job_id: Option<JobId>,
    pub(crate) actor_id: Option<ActorId>,
    pub(crate) is_driver: bool,
    pub(crate) start: Instant,
    /// When it ended, and how.
    pub(crate) end: Option<(Instant, String)>,
}

/// When living processes began, and those that ended.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    started: BTreeMap<WorkerId, Instant>,
    ended: VecDeque<Member>,
}

impl Roster {
    /// A process begins.
    pub(crate) fn on_start(&mut self, worker_id: WorkerId, now: Instant) {
        self.started.entry(worker_id).or_insert(now);
    }

    /// When a living process began; `now` for one that nobody has seen begin.
    pub(crate) fn start_of(&self, worker_id: WorkerId, now: Instant) -> Instant {
        self.started.get(&worker_id).copied().unwrap_or(now)
    }

    /// A process has ended; of `member` all but the times is taken.
    pub(crate) fn on_end(&mut self, member: Member, now: Instant, how: &str) {
        let start = self.started.remove(&member.worker_id).unwrap_or(now);
        self.ended.push_back(Member { start, end: Some((now, how.to_owned())), ..member });
        if self.ended.len() > REMEMBERED {
            self.ended.pop_front();
        }
    }

    /// The last processes that ended, in order.
    pub(crate) fn ended(&self) -> impl Iterator<Item = &Member> {
        self.ended.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_last_ends_are_remembered_with_their_times() {
        let (mut roster, start) = (Roster::default(), Instant::now());
        let id = |number: u16| {
            let mut bytes = [0; 16];
            bytes[..2].copy_from_slice(&number.to_le_bytes());
            WorkerId::from_bytes(bytes)
        };
        let end = start + Duration::from_secs(1);
        for number in 0..1_001 {
            let worker_id = id(number);
            roster.on_start(worker_id, start);
            roster.on_start(worker_id, end);
            assert_eq!(roster.start_of(worker_id, end), start);
            let member = Member {
                worker_id,
                pid: None,
                job_id: None,
                actor_id: None,
                is_driver: false,
                start: end,
                end: None,
            };
            roster.on_end(member, end, "killed");
        }
        let ended: Vec<_> = roster.ended().collect();
        assert_eq!((ended.len(), ended[0].worker_id), (1_000, id(1)));
        assert_eq!((ended[0].start, ended[0].end.clone()), (start, Some((end, "killed".to_owned()))));
        assert!(roster.started.is_empty());
    }
}
