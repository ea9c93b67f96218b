//! Tasks that have ended in this process and of which the control plane was not told yet.
//!
//! ```text
//!   a task ends        interval over        taken in
//!  ------------> noted -------------> told -----------> gone
//!                  |                   | not taken in
//!                  | no room           v
//!                  +-------------> counted -- with the next batch --> told
//! ```
//! A note is a few words written to room that is there already, for tasks can end every few microseconds. One
//! batch is under way at a time: a control plane that is slow or away makes for counts, not for memory.

use std::time::{Duration, Instant};

use ray_core::id::{ActorId, TaskId};
use ray_core::report::{TaskBatch, TaskCount, TaskError, TaskKind, TaskName, TaskPhase, TaskRecord, Teller};
use rustc_hash::FxHashMap;

/// Names in one batch; tasks with more are counted under [`OTHER`].
const MAX_NAMES: usize = 2_000;

/// Where tasks are counted that have yet another name.
const OTHER: &str = "(other tasks)";

/// Texts of errors are cut off at this length, in bytes.
const MAX_ERROR_TEXT: usize = 8 * 1024;

/// Texts of errors that wait for the end of their task.
const MAX_TEXTS: usize = 1_000;

/// How many names are compared with that of a task before the table of all is asked.
const RECENT_NAMES: usize = 2;

/// A task that has ended.
#[derive(Debug, Clone, Copy)]
pub struct EndedTask<'a> {
    /// The task.
    pub task_id: TaskId,
    /// How often it was retried before.
    pub attempt: u32,
    /// What it called.
    pub kind: TaskKind,
    /// The actor whose method or constructor it is.
    pub actor_id: Option<ActorId>,
    /// Its name.
    pub name: &'a str,
    /// Its function or method.
    pub function: &'a str,
    /// When it was submitted, in microseconds since the epoch.
    pub created_us: u64,
    /// When it began to run here, and for how long it did; `None`: it did not.
    pub ran: Option<(Instant, Duration)>,
    /// Ray's name for the kind of failure, if it failed.
    pub error: Option<&'static str>,
    /// The process that ran it has noted it too, unless it died before it could tell.
    pub noted_elsewhere: bool,
}

/// A batch that was told, and not answered yet.
#[derive(Debug)]
struct UnderWay {
    request: u64,
    /// How many tasks of each kind are in it.
    content: Vec<(TaskName, TaskKind, TaskPhase, u64)>,
}

/// What waits to be told.
#[derive(Debug)]
pub struct TaskLog {
    capacity: usize,
    every: Duration,
    /// A moment on both clocks.
    anchor: (Instant, u64),
    records: Vec<TaskRecord>,
    names: Vec<TaskName>,
    by_name: FxHashMap<TaskName, u32>,
    /// Places of the names that were used last.
    recent: [u32; RECENT_NAMES],
    counts: FxHashMap<(u32, TaskKind, TaskPhase), u64>,
    texts: FxHashMap<TaskId, String>,
    due: Option<Instant>,
    sequence: u64,
    under_way: Option<UnderWay>,
    /// How many tasks have ended in each way: finished, failed.
    totals: [u64; 2],
}

impl TaskLog {
    /// Nothing noted; room for `capacity` tasks in each interval, which has this length. `anchor` is a moment, as
    /// this process's clock and as microseconds since the epoch.
    pub fn new(capacity: usize, every: Duration, anchor: (Instant, u64)) -> Self {
        Self {
            capacity,
            every,
            anchor,
            records: Vec::new(),
            names: Vec::new(),
            by_name: FxHashMap::default(),
            recent: [0; RECENT_NAMES],
            counts: FxHashMap::default(),
            texts: FxHashMap::default(),
            due: None,
            sequence: 0,
            under_way: None,
            totals: [0; 2],
        }
    }

    /// Notes a task, if it is to be noted at all (`created_us` is not 0).
    pub fn note(&mut self, task: &EndedTask<'_>, now: Instant) {
        if !task.noted_elsewhere {
            self.totals[usize::from(task.error.is_some())] += 1;
        }
        if task.created_us == 0 || self.capacity == 0 {
            return;
        }
        if self.due.is_none() {
            self.due = Some(now + self.every);
        }
        let name = self.place_of(task.name, task.function);
        let phase = if task.error.is_some() { TaskPhase::Failed } else { TaskPhase::Finished };
        if self.records.len() >= self.capacity + if task.error.is_some() { self.capacity / 10 } else { 0 } {
            if !task.noted_elsewhere {
                *self.counts.entry((name, task.kind, phase)).or_default() += 1;
            }
            return;
        }
        let (start_us, end_us) = match task.ran {
            Some((start, length)) => {
                let start_us = self.wall_us(start);
                (start_us, start_us + micros(length))
            }
            None => (0, self.wall_us(now)),
        };
        let error = task.error.map(|kind| self.error(task.task_id, kind));
        self.records.push(TaskRecord {
            task_id: task.task_id,
            attempt: task.attempt,
            phase,
            kind: task.kind,
            name,
            actor_id: task.actor_id,
            created_us: task.created_us,
            start_us,
            end_us,
            error,
        });
    }

    /// Keeps the text of the error with which a task is about to end.
    pub fn keep_error(&mut self, task_id: TaskId, mut text: String) {
        if text.len() > MAX_ERROR_TEXT {
            // The end of a traceback says what was raised.
            let cut = (text.len() - MAX_ERROR_TEXT..text.len()).find(|&at| text.is_char_boundary(at));
            text.drain(..cut.unwrap_or(0));
        }
        if self.texts.len() < MAX_TEXTS {
            self.texts.insert(task_id, text);
        }
    }

    fn error(&mut self, task_id: TaskId, kind: &str) -> Box<TaskError> {
        let message = if self.texts.is_empty() { None } else { self.texts.remove(&task_id) };
        Box::new(TaskError { kind: kind.to_owned(), message: message.unwrap_or_default() })
    }

    /// A moment in microseconds since the epoch.
    pub fn wall_us(&self, at: Instant) -> u64 {
        let (then, wall_us) = self.anchor;
        match at.checked_duration_since(then) {
            Some(later) => wall_us + micros(later),
            None => wall_us.saturating_sub(micros(then - at)),
        }
    }

    fn place_of(&mut self, name: &str, function: &str) -> u32 {
        let is_same = |known: &TaskName| known.name == name && known.function == function;
        for place in self.recent {
            if self.names.get(place as usize).is_some_and(is_same) {
                return place;
            }
        }
        let wanted = TaskName { name: name.to_owned(), function: function.to_owned() };
        let place = self.place_of_new(wanted);
        self.recent.rotate_right(1);
        self.recent[0] = place;
        place
    }

    fn place_of_new(&mut self, mut wanted: TaskName) -> u32 {
        if self.names.len() >= MAX_NAMES && !self.by_name.contains_key(&wanted) {
            wanted = TaskName { name: OTHER.to_owned(), function: OTHER.to_owned() };
        }
        if let Some(&place) = self.by_name.get(&wanted) {
            return place;
        }
        let place = u32::try_from(self.names.len()).expect("names are few");
        self.names.push(wanted.clone());
        self.by_name.insert(wanted, place);
        place
    }

    /// When something has to be told.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.due.filter(|_| self.under_way.is_none())
    }

    /// What is to be told by now, as request `request`.
    pub fn take_due(&mut self, now: Instant, request: u64, teller: &Teller) -> Option<TaskBatch> {
        if self.next_deadline().is_none_or(|due| due > now) {
            return None;
        }
        self.take(request, teller)
    }

    /// All that waits, as request `request`.
    pub fn take(&mut self, request: u64, teller: &Teller) -> Option<TaskBatch> {
        self.due = None;
        let mut batch = self.peek(teller)?;
        self.sequence += 1;
        batch.sequence = self.sequence;
        let mut content: FxHashMap<(u32, TaskKind, TaskPhase), u64> = std::mem::take(&mut self.counts);
        for record in self.records.drain(..) {
            *content.entry((record.name, record.kind, record.phase)).or_default() += 1;
        }
        let names = std::mem::take(&mut self.names);
        let named = |((name, kind, phase), count): ((u32, TaskKind, TaskPhase), u64)| {
            (names[name as usize].clone(), kind, phase, count)
        };
        self.under_way = Some(UnderWay { request, content: content.into_iter().map(named).collect() });
        self.by_name.clear();
        Some(batch)
    }

    /// What waits, without taking it.
    pub fn peek(&self, teller: &Teller) -> Option<TaskBatch> {
        if self.records.is_empty() && self.counts.is_empty() {
            return None;
        }
        let count = |(&(name, kind, phase), &count)| TaskCount { name, kind, phase, count };
        Some(TaskBatch {
            teller: teller.clone(),
            sequence: 0,
            names: self.names.clone(),
            records: self.records.clone(),
            counts: self.counts.iter().map(count).collect(),
        })
    }

    /// The control plane has answered this request. Returns false if it was no batch; what it did not take
    /// in is counted.
    pub fn on_answer(&mut self, request: u64, taken_in: bool, now: Instant) -> bool {
        let Some(UnderWay { content, .. }) = self.under_way.take_if(|batch| batch.request == request) else {
            return false;
        };
        if !taken_in {
            for (name, kind, phase, count) in content {
                let place = self.place_of_new(name);
                *self.counts.entry((place, kind, phase)).or_default() += count;
            }
            self.due = Some(now + self.every);
        }
        true
    }

    /// How many tasks have finished and how many failed, recorded or not, since the start.
    pub const fn totals(&self) -> [u64; 2] {
        self.totals
    }
}

fn micros(length: Duration) -> u64 {
    u64::try_from(length.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ray_core::id::{JobId, NodeId, WorkerId};

    use super::*;

    const EVERY: Duration = Duration::from_secs(1);

    fn teller() -> Teller {
        Teller {
            worker_id: WorkerId::from_bytes([1; 16]),
            node_id: NodeId::from_bytes([2; 16]),
            job_id: JobId::from_bytes([3; 16]),
            pid: 4,
        }
    }

    fn task(number: u32, name: &str) -> EndedTask<'_> {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&number.to_le_bytes());
        EndedTask {
            task_id: TaskId::from_bytes(id),
            attempt: 0,
            kind: TaskKind::NormalTask,
            actor_id: None,
            name,
            function: "f",
            created_us: 5,
            ran: None,
            error: None,
            noted_elsewhere: false,
        }
    }

    fn total(batch: &TaskBatch) -> u64 {
        batch.records.len() as u64 + batch.counts.iter().map(|count| count.count).sum::<u64>()
    }

    #[test]
    fn a_batch_is_due_an_interval_after_its_first_task_and_not_before_the_last_is_answered() {
        let start = Instant::now();
        let mut log = TaskLog::new(10, EVERY, (start, 1_000_000));
        assert_eq!(log.next_deadline(), None);
        let ran = Some((start + Duration::from_micros(7), Duration::from_micros(3)));
        log.note(&EndedTask { ran, ..task(1, "one") }, start);
        log.note(&EndedTask { error: Some("WORKER_DIED"), ..task(2, "two") }, start + EVERY / 2);
        assert_eq!(log.next_deadline(), Some(start + EVERY));
        assert_eq!(log.take_due(start, 1, &teller()), None);
        let batch = log.take_due(start + EVERY, 1, &teller()).unwrap();
        assert!(batch.is_sound());
        assert_eq!((batch.records[0].start_us, batch.records[0].end_us), (1_000_007, 1_000_010));
        assert_eq!((batch.records[1].phase, batch.records[1].start_us), (TaskPhase::Failed, 0));
        log.note(&task(3, "three"), start + EVERY);
        assert_eq!(log.next_deadline(), None);
        assert!(!log.on_answer(9, true, start));
        assert!(log.on_answer(1, true, start));
        assert_eq!(log.next_deadline(), Some(start + EVERY * 2));
        assert_eq!(log.totals(), [2, 1]);
    }

    #[test]
    fn tasks_without_events_are_not_noted_and_texts_of_errors_are_kept() {
        let start = Instant::now();
        let mut log = TaskLog::new(10, EVERY, (start, 0));
        log.note(&EndedTask { created_us: 0, ..task(1, "quiet") }, start);
        assert_eq!(log.peek(&teller()), None);
        let failed = EndedTask { error: Some("TASK_EXECUTION_EXCEPTION"), ..task(2, "loud") };
        log.keep_error(failed.task_id, format!("{}ValueError: no", "é".repeat(MAX_ERROR_TEXT)));
        log.note(&failed, start);
        let batch = log.peek(&teller()).unwrap();
        let error = batch.records[0].error.as_ref().unwrap();
        assert!(error.message.ends_with("ValueError: no") && error.message.len() <= MAX_ERROR_TEXT);
    }

    proptest! {
        #[test]
        fn every_task_is_told_or_counted_once(
            steps in proptest::collection::vec((0u8..5, 0u8..4), 0..200),
            capacity in 1usize..20,
        ) {
            let mut now = Instant::now();
            let mut log = TaskLog::new(capacity, EVERY, (now, 0));
            let (mut noted, mut told, mut number, mut request) = (0u64, 0u64, 0, 0);
            let mut under_way: Option<(u64, u64)> = None;
            for (step, what) in steps {
                match step {
                    0..=2 => {
                        number += 1;
                        noted += 1;
                        let name = format!("task {what}");
                        let error = (what == 0).then_some("WORKER_DIED");
                        log.note(&EndedTask { error, ..task(number, &name) }, now);
                    }
                    3 => {
                        now += EVERY;
                        request += 1;
                        if let Some(batch) = log.take_due(now, request, &teller()) {
                            prop_assert!(under_way.is_none());
                            prop_assert!(batch.is_sound());
                            under_way = Some((request, total(&batch)));
                        }
                    }
                    _ => {
                        if let Some((request, count)) = under_way.take() {
                            let taken_in = what % 2 == 0;
                            prop_assert!(log.on_answer(request, taken_in, now));
                            if taken_in {
                                told += count;
                            }
                        }
                    }
                }
                prop_assert!(log.records.len() <= capacity + capacity / 10);
            }
            let left = log.peek(&teller()).map_or(0, |batch| total(&batch));
            prop_assert_eq!(noted, told + left + under_way.map_or(0, |(_, count)| count));
        }
    }
}
