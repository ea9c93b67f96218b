//! The tasks that this process has submitted and whose result it does not have yet.
//!
//! ```text
//!            arguments missing            sent
//!  submit ---> Waiting ---> Queued ------------> Sent ---> gone (replied, failed, cancelled)
//!         \------------------^  ^                  |
//!           none missing        +------------------+
//!                                given back; or worker lost or exception, with a retry left
//! ```
//! A task keeps its id over its retries; its attempt number grows, and a reply to an earlier
//! attempt is told by it.

use std::sync::Arc;

use bytes::Bytes;
use ray_core::id::{ActorId, ObjectId, TaskId};
use rustc_hash::FxHashMap;

use crate::peer_message::{ExportedFunction, GeneratorSpec, RetryExceptions};

/// A submitted task.
#[derive(Debug)]
pub struct PendingTask {
    /// What it calls.
    pub call: Call,
    /// Its arguments as `write_arg` wrote them; references still to be replaced.
    pub args: Box<[u8]>,
    /// Objects that are arguments by themselves: the task waits until each has a value.
    pub dependencies: Box<[ObjectId]>,
    /// Objects referred to inside arguments: kept, not waited for.
    pub nested: Box<[ObjectId]>,
    /// How many objects it returns.
    pub num_returns: u32,
    /// Its name, for logs and errors.
    pub name: Arc<str>,
    /// How often it was tried before.
    pub attempt: u32,
    /// How often it may be tried again; -1 = for ever.
    pub retries_left: i64,
    /// Which exceptions of its code count as a failure to retry.
    pub retry_exceptions: RetryExceptions<Bytes>,
    /// The task that submitted it, with which it may be cancelled; nil if none did.
    pub parent: TaskId,
    /// Where it is in its life.
    pub state: TaskState,
    /// Someone asked to cancel it; it is never retried.
    pub cancelled: bool,
    /// How often it was retried; given back is not tried.
    pub retries: u32,
    /// When it was submitted, in microseconds since the epoch; 0: its end is not to be noted.
    pub created_us: u64,
    /// What it yields comes as items of a stream, if it is a generator task.
    pub generator: Option<Arc<GeneratorSpec>>,
}

/// What a task calls.
#[derive(Debug, Clone)]
pub enum Call {
    /// A function, on any worker that a lease of this class gives.
    Function {
        /// The function.
        function: Arc<ExportedFunction>,
        /// The scheduling class.
        class: u64,
    },
    /// A method of an actor.
    Method {
        /// The actor.
        actor_id: ActorId,
        /// The method.
        method: Arc<MethodName>,
    },
    /// The constructor of an actor: it is registered with the control plane, which has it run.
    Create {
        /// The actor.
        actor_id: ActorId,
    },
}

/// A method, and where it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MethodName {
    /// The method.
    pub name: String,
    /// The concurrency group that it runs in; empty for that of calls without one.
    pub group: String,
}

/// How the names of groups begin that actors have for calls of this system, beside those of their users.
const SYSTEM_GROUPS: &str = "_ray_system";

impl MethodName {
    /// Whether its calls need not wait for calls to the same actor before them, which may wait for what they do.
    pub fn may_pass(&self) -> bool {
        self.group.starts_with(SYSTEM_GROUPS)
    }
}

/// Where a task is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskState {
    /// This many of its arguments have no value yet.
    Waiting {
        /// How many.
        missing: usize,
    },
    /// It can be sent.
    Queued,
    /// It is with a worker.
    Sent,
}

/// What to do with a task that failed.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Verdict {
    /// It is queued again, as its next attempt.
    Retry,
    /// Its objects get the failure.
    Fail,
}

/// How an attempt failed.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Mishap {
    /// Its process ended.
    Crash,
    /// Its code raised an exception, of a type that is listed among those to retry or not.
    Exception {
        /// Whether it is listed.
        is_listed: bool,
    },
}

/// All pending tasks of a process.
#[derive(Debug, Default)]
pub struct TaskTable {
    /// Boxed, so that a table of millions has little room that is not used.
    tasks: FxHashMap<TaskId, Box<PendingTask>>,
    /// Tasks by an argument that they wait for.
    waiting: FxHashMap<ObjectId, Vec<TaskId>>,
}

impl TaskTable {
    /// Takes a task in. Returns whether it can be sent at once. `has_value` tells of each argument.
    pub fn submit(
        &mut self,
        task_id: TaskId,
        mut task: PendingTask,
        has_value: impl Fn(ObjectId) -> bool,
    ) -> bool {
        let mut missing = 0;
        for &object_id in &task.dependencies {
            if !has_value(object_id) {
                missing += 1;
                self.waiting.entry(object_id).or_default().push(task_id);
            }
        }
        task.state = if missing == 0 { TaskState::Queued } else { TaskState::Waiting { missing } };
        self.tasks.insert(task_id, Box::new(task));
        missing == 0
    }

    /// An object has a value now. Appends the tasks that can be sent because of it.
    pub fn on_object_ready(&mut self, object_id: ObjectId, ready: &mut Vec<TaskId>) {
        if self.waiting.is_empty() {
            return;
        }
        for task_id in self.waiting.remove(&object_id).unwrap_or_default() {
            let Some(task) = self.tasks.get_mut(&task_id) else { continue };
            if let TaskState::Waiting { missing } = task.state {
                // An object that is several arguments of one task stands in the list as often.
                let missing = missing - 1;
                task.state = if missing == 0 { TaskState::Queued } else { TaskState::Waiting { missing } };
                if missing == 0 {
                    ready.push(task_id);
                }
            }
        }
    }

    /// The task is with a worker now.
    pub fn on_sent(&mut self, task_id: TaskId) {
        if let Some(task) = self.tasks.get_mut(&task_id) {
            task.state = TaskState::Sent;
        }
    }

    /// The worker did not start the task. Returns what becomes of it; nothing if it was not sent.
    pub fn on_given_back(&mut self, task_id: TaskId) -> Option<Verdict> {
        let task = self.tasks.get_mut(&task_id).filter(|task| task.state == TaskState::Sent)?;
        task.state = TaskState::Queued;
        // A reply to the attempt that was given back may not come; one that comes is wrong.
        task.attempt += 1;
        // Whoever was asked to cancel it may have given it back before.
        Some(if task.cancelled { Verdict::Fail } else { Verdict::Retry })
    }

    /// An attempt failed, by the end of its worker or by an exception.
    pub fn on_attempt_failed(&mut self, task_id: TaskId, mishap: Mishap) -> Verdict {
        let Some(task) = self.tasks.get_mut(&task_id) else { return Verdict::Fail };
        let is_retried = match mishap {
            Mishap::Crash | Mishap::Exception { is_listed: true } => true,
            Mishap::Exception { is_listed: false } => task.retry_exceptions == RetryExceptions::Always,
        };
        if task.cancelled || task.retries_left == 0 || !is_retried {
            return Verdict::Fail;
        }
        if task.retries_left > 0 {
            task.retries_left -= 1;
        }
        task.attempt += 1;
        task.retries += 1;
        task.state = TaskState::Queued;
        Verdict::Retry
    }

    /// Marks a task as cancelled: it is not retried. Returns its state, if it is pending.
    pub fn cancel(&mut self, task_id: TaskId) -> Option<TaskState> {
        let task = self.tasks.get_mut(&task_id)?;
        task.cancelled = true;
        Some(task.state)
    }

    /// Takes a task out, for good.
    pub fn remove(&mut self, task_id: TaskId) -> Option<Box<PendingTask>> {
        let task = self.tasks.remove(&task_id)?;
        if matches!(task.state, TaskState::Waiting { .. }) {
            for object_id in &task.dependencies {
                if let Some(waiting) = self.waiting.get_mut(object_id) {
                    waiting.retain(|&other| other != task_id);
                    if waiting.is_empty() {
                        self.waiting.remove(object_id);
                    }
                }
            }
        }
        Some(task)
    }

    /// The task, if it is pending.
    pub fn get(&self, task_id: TaskId) -> Option<&PendingTask> {
        self.tasks.get(&task_id).map(|task| &**task)
    }

    /// All pending tasks, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (TaskId, &PendingTask)> {
        self.tasks.iter().map(|(&task_id, task)| (task_id, &**task))
    }

    /// The pending tasks that this task has submitted, by a look at all: for rare events.
    pub fn children_of(&self, parent: TaskId) -> Vec<TaskId> {
        let children = self.tasks.iter().filter(|(_, task)| task.parent == parent && !task.parent.is_nil());
        children.map(|(&task_id, _)| task_id).collect()
    }

    /// How many tasks are pending.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(dependencies: &[ObjectId], retries: i64) -> PendingTask {
        let function = ExportedFunction::new(Bytes::from_static(b"f"), "f".to_owned());
        PendingTask {
            call: Call::Function { function, class: 0 },
            args: Box::default(),
            dependencies: dependencies.into(),
            nested: Box::default(),
            num_returns: 1,
            name: "f".into(),
            attempt: 0,
            retries_left: retries,
            retry_exceptions: RetryExceptions::Never,
            parent: TaskId::nil(),
            state: TaskState::Queued,
            cancelled: false,
            retries: 0,
            created_us: 0,
            generator: None,
        }
    }

    fn id(byte: u8) -> TaskId {
        TaskId::from_bytes([byte; 16])
    }

    fn object(byte: u8) -> ObjectId {
        ObjectId::for_return(id(byte), 0)
    }

    #[test]
    fn a_task_waits_for_every_argument_even_one_given_twice() {
        let (mut table, mut ready) = (TaskTable::default(), Vec::new());
        let dependencies = [object(1), object(1), object(2), object(3)];
        assert!(!table.submit(id(9), task(&dependencies, 0), |object_id| object_id == object(3)));
        table.on_object_ready(object(1), &mut ready);
        assert_eq!(ready, []);
        table.on_object_ready(object(2), &mut ready);
        assert_eq!(ready, [id(9)]);
        table.on_object_ready(object(2), &mut ready);
        assert_eq!(ready, [id(9)]);
    }

    #[test]
    fn retries_are_counted_and_each_is_a_new_attempt() {
        let mut table = TaskTable::default();
        assert!(table.submit(id(1), task(&[], 2), |_| true));
        for attempt in 1..=2 {
            table.on_sent(id(1));
            assert_eq!(table.on_attempt_failed(id(1), Mishap::Crash), Verdict::Retry);
            assert_eq!(table.get(id(1)).unwrap().attempt, attempt);
        }
        assert_eq!(table.on_attempt_failed(id(1), Mishap::Crash), Verdict::Fail);
        assert!(table.remove(id(1)).is_some());
        assert!(table.is_empty());
    }

    #[test]
    fn without_limit_means_for_ever_and_exceptions_only_if_asked() {
        let other = Mishap::Exception { is_listed: false };
        let listed = Mishap::Exception { is_listed: true };
        for (retry_exceptions, mishap, verdict) in [
            (RetryExceptions::Never, Mishap::Crash, Verdict::Retry),
            (RetryExceptions::Never, other, Verdict::Fail),
            (RetryExceptions::Always, other, Verdict::Retry),
            (RetryExceptions::Listed(Bytes::from_static(b"types")), other, Verdict::Fail),
            (RetryExceptions::Listed(Bytes::from_static(b"types")), listed, Verdict::Retry),
        ] {
            let mut table = TaskTable::default();
            table.submit(id(1), PendingTask { retry_exceptions, ..task(&[], -1) }, |_| true);
            for _ in 0..100 {
                assert_eq!(table.on_attempt_failed(id(1), Mishap::Crash), Verdict::Retry);
            }
            assert_eq!(table.on_attempt_failed(id(1), mishap), verdict);
        }
    }

    #[test]
    fn crashes_and_exceptions_use_up_the_same_retries() {
        let mut table = TaskTable::default();
        let always = PendingTask { retry_exceptions: RetryExceptions::Always, ..task(&[], 2) };
        table.submit(id(1), always, |_| true);
        assert_eq!(table.on_attempt_failed(id(1), Mishap::Exception { is_listed: false }), Verdict::Retry);
        assert_eq!(table.on_attempt_failed(id(1), Mishap::Crash), Verdict::Retry);
        assert_eq!(table.on_attempt_failed(id(1), Mishap::Exception { is_listed: false }), Verdict::Fail);
    }

    #[test]
    fn the_children_of_a_task_are_those_that_it_submitted_and_are_pending() {
        let mut table = TaskTable::default();
        for (child, parent) in [(1, id(9)), (2, TaskId::nil()), (3, id(8)), (4, id(9))] {
            table.submit(id(child), PendingTask { parent, ..task(&[], 0) }, |_| true);
        }
        table.remove(id(4));
        assert_eq!(table.children_of(id(9)), [id(1)]);
        assert_eq!(table.children_of(TaskId::nil()), []);
    }

    #[test]
    fn a_task_that_is_given_back_costs_no_retry_and_its_late_reply_is_told() {
        let mut table = TaskTable::default();
        table.submit(id(1), task(&[], 1), |_| true);
        assert_eq!(table.on_given_back(id(1)), None);
        table.on_sent(id(1));
        assert_eq!(table.on_given_back(id(1)), Some(Verdict::Retry));
        let task = table.get(id(1)).unwrap();
        assert_eq!((task.attempt, task.retries_left, task.state), (1, 1, TaskState::Queued));
        assert_eq!(task.retries, 0);
        table.on_sent(id(1));
        table.cancel(id(1));
        assert_eq!(table.on_given_back(id(1)), Some(Verdict::Fail));
    }

    #[test]
    fn a_cancelled_task_is_not_retried_and_leaves_nothing() {
        let (mut table, mut ready) = (TaskTable::default(), Vec::new());
        table.submit(id(1), task(&[object(1)], 5), |_| false);
        assert_eq!(table.cancel(id(1)), Some(TaskState::Waiting { missing: 1 }));
        assert_eq!(table.on_attempt_failed(id(1), Mishap::Crash), Verdict::Fail);
        table.remove(id(1));
        table.on_object_ready(object(1), &mut ready);
        assert_eq!(ready, []);
        assert!(table.waiting.is_empty());
    }
}
