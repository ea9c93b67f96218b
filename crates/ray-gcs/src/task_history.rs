//! Tasks that have ended, for the state API and the timeline.
//!
//! Nothing rests on this table: it is kept in memory, its room is limited, and the oldest attempts make way.
//! An attempt can be told of by two processes, the one that ran it and the one that called it; what both
//! say is put together. What found no room, here or where it was noted, is counted by name.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use ray_core::id::{JobId, TaskId, WorkerId};
use ray_core::report::{TaskBatch, TaskCount, TaskError, TaskKind, TaskName, TaskPhase, TaskRecord, Teller};
use rustc_hash::FxHashMap;

/// Processes whose last batches are remembered, so that one that comes twice counts once.
const REMEMBERED_TELLERS: usize = 10_000;

/// Names by which tasks without a record are counted; the others count under [`OTHER`].
const MAX_COUNTED: usize = 10_000;

/// The name under which the rest is counted.
const OTHER: &str = "(other tasks)";

type Key = (TaskId, u32);

#[derive(Debug)]
struct Stored {
    record: TaskRecord,
    name: Arc<TaskName>,
    teller: Arc<Teller>,
}

/// Which batches of a process have come: the newest, and which of the 64 before it.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    newest: u64,
    before: u64,
}

impl Seen {
    /// Notes a batch; returns whether it is new. One older than the 64 before the newest is not.
    fn note(&mut self, sequence: u64) -> bool {
        if sequence > self.newest {
            let step = sequence - self.newest;
            let shifted = if step < 64 { self.before << step } else { 0 };
            let newest = if self.newest > 0 && step <= 64 { 1 << (step - 1) } else { 0 };
            self.before = shifted | newest;
            self.newest = sequence;
            return true;
        }
        let back = self.newest - sequence;
        if back == 0 || back > 64 {
            return false;
        }
        let bit = 1 << (back - 1);
        let is_new = self.before & bit == 0;
        self.before |= bit;
        is_new
    }
}

/// Ended attempts, the newest of each job.
#[derive(Debug)]
pub struct TaskHistory {
    capacity: usize,
    attempts: FxHashMap<Key, Stored>,
    order: VecDeque<Key>,
    counts: BTreeMap<(JobId, TaskName, TaskKind, TaskPhase), u64>,
    seen: FxHashMap<WorkerId, Seen>,
    tellers: VecDeque<WorkerId>,
}

impl TaskHistory {
    /// Room for `capacity` attempts.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            attempts: FxHashMap::default(),
            order: VecDeque::new(),
            counts: BTreeMap::new(),
            seen: FxHashMap::default(),
            tellers: VecDeque::new(),
        }
    }

    /// Takes in what a process tells. Telling it again changes nothing.
    pub fn add(&mut self, batch: TaskBatch) {
        let worker_id = batch.teller.worker_id;
        if !batch.is_sound() || !self.is_new(worker_id, batch.sequence) {
            return;
        }
        let names: Vec<_> = batch.names.into_iter().map(Arc::new).collect();
        let teller = Arc::new(batch.teller);
        for count in batch.counts {
            let name = &names[count.name as usize];
            self.count(teller.job_id, name, count.kind, count.phase, count.count);
        }
        for record in batch.records {
            let name = Arc::clone(&names[record.name as usize]);
            self.insert(Stored { record, name, teller: Arc::clone(&teller) });
        }
    }

    fn is_new(&mut self, worker_id: WorkerId, sequence: u64) -> bool {
        if !self.seen.contains_key(&worker_id) {
            self.tellers.push_back(worker_id);
            if self.tellers.len() > REMEMBERED_TELLERS
                && let Some(oldest) = self.tellers.pop_front()
            {
                self.seen.remove(&oldest);
            }
        }
        self.seen.entry(worker_id).or_default().note(sequence)
    }

    fn insert(&mut self, new: Stored) {
        let key = (new.record.task_id, new.record.attempt);
        if let Some(known) = self.attempts.get_mut(&key) {
            known.merge(new);
            return;
        }
        self.order.push_back(key);
        self.attempts.insert(key, new);
        while self.attempts.len() > self.capacity {
            let Some(oldest) = self.order.pop_front() else { return };
            if let Some(Stored { record, name, teller }) = self.attempts.remove(&oldest) {
                self.count(teller.job_id, &name, record.kind, record.phase, 1);
            }
        }
    }

    fn count(&mut self, job_id: JobId, name: &TaskName, kind: TaskKind, phase: TaskPhase, count: u64) {
        let key = (job_id, name.clone(), kind, phase);
        let key = if self.counts.len() < MAX_COUNTED || self.counts.contains_key(&key) {
            key
        } else {
            let other = TaskName { name: OTHER.to_owned(), function: OTHER.to_owned() };
            (JobId::nil(), other, kind, phase)
        };
        *self.counts.entry(key).or_default() += count;
    }

    /// The newest `limit` attempts for which `wanted` holds, the oldest first, by process; and what was
    /// only counted, each job in a batch of its own.
    pub fn list(&self, limit: usize, wanted: impl Fn(&TaskRecord, &Teller) -> bool) -> Vec<TaskBatch> {
        let stored = self.order.iter().rev().filter_map(|key| self.attempts.get(key));
        let newest: Vec<_> = stored.filter(|it| wanted(&it.record, &it.teller)).take(limit).collect();
        let mut batches: Vec<TaskBatch> = Vec::new();
        let mut places: FxHashMap<WorkerId, usize> = FxHashMap::default();
        let mut names: FxHashMap<(usize, &TaskName), u32> = FxHashMap::default();
        for stored in newest.into_iter().rev() {
            let place = *places.entry(stored.teller.worker_id).or_insert_with(|| {
                batches.push(empty_batch((*stored.teller).clone()));
                batches.len() - 1
            });
            let batch = &mut batches[place];
            let name = *names.entry((place, &stored.name)).or_insert_with(|| add_name(batch, &stored.name));
            batch.records.push(TaskRecord { name, ..stored.record.clone() });
        }
        let mut of_job: Option<TaskBatch> = None;
        for ((job_id, name, kind, phase), &count) in &self.counts {
            if of_job.as_ref().is_none_or(|batch| batch.teller.job_id != *job_id) {
                batches.extend(of_job.take());
                let nobody = Teller {
                    worker_id: WorkerId::nil(),
                    node_id: ray_core::id::NodeId::nil(),
                    job_id: *job_id,
                    pid: 0,
                };
                of_job = Some(empty_batch(nobody));
            }
            if let Some(batch) = &mut of_job {
                let name = add_name(batch, name);
                batch.counts.push(TaskCount { name, kind: *kind, phase: *phase, count });
            }
        }
        batches.extend(of_job);
        batches
    }

    /// How many attempts are kept.
    pub fn len(&self) -> usize {
        self.attempts.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.attempts.is_empty()
    }
}

impl Stored {
    /// Adds what another process tells of the same attempt. The one that ran it knows more.
    fn merge(&mut self, new: Self) {
        let error = match (self.record.error.take(), new.record.error.clone()) {
            (Some(one), Some(other)) => Some(if other.message.is_empty() { one } else { other }),
            (one, other) => one.or(other),
        };
        let created = self.record.created_us.max(new.record.created_us);
        if self.record.start_us == 0 {
            *self = new;
        }
        self.record.created_us = created;
        self.record.error = error;
        if self.record.error.is_some() {
            self.record.phase = TaskPhase::Failed;
        }
    }
}

fn empty_batch(teller: Teller) -> TaskBatch {
    TaskBatch { teller, sequence: 0, names: Vec::new(), records: Vec::new(), counts: Vec::new() }
}

fn add_name(batch: &mut TaskBatch, name: &TaskName) -> u32 {
    batch.names.push(name.clone());
    u32::try_from(batch.names.len() - 1).expect("fewer names than attempts")
}

/// An error of this kind; for tests and tables.
pub fn task_error(kind: &str, message: &str) -> Box<TaskError> {
    Box::new(TaskError { kind: kind.to_owned(), message: message.to_owned() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ray_core::id::NodeId;

    use super::*;

    fn teller(byte: u8) -> Teller {
        Teller {
            worker_id: WorkerId::from_bytes([byte; 16]),
            node_id: NodeId::from_bytes([1; 16]),
            job_id: JobId::from_bytes([2; 16]),
            pid: u32::from(byte),
        }
    }

    fn record(task: u8, start_us: u64, phase: TaskPhase) -> TaskRecord {
        TaskRecord {
            task_id: TaskId::from_bytes([task; 16]),
            attempt: 0,
            phase,
            kind: TaskKind::NormalTask,
            name: 0,
            actor_id: None,
            created_us: 1,
            start_us,
            end_us: 9,
            error: None,
        }
    }

    fn batch(worker: u8, sequence: u64, records: Vec<TaskRecord>) -> TaskBatch {
        let names = vec![TaskName { name: "f".to_owned(), function: "f".to_owned() }];
        TaskBatch { teller: teller(worker), sequence, names, records, counts: Vec::new() }
    }

    fn listed(history: &TaskHistory) -> Vec<TaskRecord> {
        history.list(usize::MAX, |_, _| true).into_iter().flat_map(|batch| batch.records).collect()
    }

    fn counted(history: &TaskHistory) -> u64 {
        let batches = history.list(0, |_, _| true);
        batches.iter().flat_map(|batch| &batch.counts).map(|count| count.count).sum()
    }

    #[test]
    fn a_batch_that_comes_twice_counts_once_in_whatever_order() {
        let mut history = TaskHistory::new(10);
        for sequence in [2, 1, 2, 1, 70, 3, 3, 200, 100, 136, 136] {
            history.add(TaskBatch {
                counts: vec![TaskCount {
                    name: 0,
                    kind: TaskKind::NormalTask,
                    phase: TaskPhase::Finished,
                    count: 1,
                }],
                ..batch(1, sequence, Vec::new())
            });
        }
        // 3 is 67 before 70, and 100 is 100 before 200: too late to be told from one that came before.
        assert_eq!(counted(&history), 5);
    }

    #[test]
    fn what_caller_and_worker_say_is_put_together() {
        for worker_first in [true, false] {
            let mut history = TaskHistory::new(10);
            let mut of_caller = record(1, 0, TaskPhase::Failed);
            of_caller.error = Some(task_error("WORKER_DIED", "it was killed"));
            let told = [batch(1, 1, vec![record(1, 5, TaskPhase::Finished)]), batch(2, 1, vec![of_caller])];
            let (one, other) = if worker_first { (0, 1) } else { (1, 0) };
            history.add(told[one].clone());
            history.add(told[other].clone());
            let batches = history.list(10, |_, _| true);
            assert_eq!(batches.len(), 1);
            assert_eq!(batches[0].teller, teller(1), "where it ran");
            let [merged] = &batches[0].records[..] else { panic!("one attempt") };
            assert_eq!((merged.start_us, merged.phase), (5, TaskPhase::Failed));
            assert_eq!(merged.error.as_ref().unwrap().kind, "WORKER_DIED");
        }
    }

    #[test]
    fn a_batch_that_refers_to_what_is_not_in_it_is_refused() {
        let mut history = TaskHistory::new(10);
        let mut wrong = record(1, 5, TaskPhase::Finished);
        wrong.name = 1;
        history.add(batch(1, 1, vec![wrong]));
        assert!(history.is_empty());
    }

    proptest! {
        #[test]
        fn nothing_is_lost_without_being_counted(
            told in proptest::collection::vec((0u8..5, proptest::collection::vec(any::<u8>(), 0..8)), 0..30),
            capacity in 0usize..12,
        ) {
            let mut history = TaskHistory::new(capacity);
            let mut tasks = std::collections::BTreeSet::new();
            let mut next = 0u8;
            for (worker, of_batch) in told {
                let records: Vec<_> =
                    of_batch.into_iter().filter(|task| tasks.insert(*task))
                        .map(|task| record(task, 5, TaskPhase::Finished)).collect();
                next += 1;
                history.add(batch(worker, u64::from(next), records));
            }
            prop_assert!(history.len() <= capacity);
            prop_assert_eq!(listed(&history).len(), history.len());
            prop_assert_eq!(history.len() as u64 + counted(&history), tasks.len() as u64);
        }
    }
}
