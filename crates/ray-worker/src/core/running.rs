//! The tasks that run in this process, and which of them a thread works for.
//!
//! Objects and tasks that a task makes are named after it, references that came with it are its own,
//! and `get` says for it that it waits. In most workers one task runs at a time, on the main thread, and
//! whatever any thread does is done for that task. An actor may run several at once; then each thread
//! says whom it works for ([`work_for`]), and what a thread does that works for none is done for none.

use std::cell::Cell;
use std::time::Instant;

use ray_core::id::{ChildTaskIds, FunctionId, ObjectId, TaskId};

use crate::peer_message::{Target, TaskHeader};

use crate::peer_message::GroupContext;

/// A running task, for as long as it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunningKey {
    slot: u32,
    generation: u32,
}

impl RunningKey {
    /// As a number, which names no other running task of this process.
    pub const fn to_u64(self) -> u64 {
        (self.generation as u64) << 32 | self.slot as u64
    }

    /// The key of a number.
    pub const fn from_u64(number: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "two halves of a number")]
        Self { slot: number as u32, generation: (number >> 32) as u32 }
    }
}

thread_local! {
    static WORKS_FOR: Cell<Option<RunningKey>> = const { Cell::new(None) };
}

/// From now on this thread works for this task, which may have ended.
pub fn work_for(task: Option<RunningKey>) {
    WORKS_FOR.set(task);
}

/// The task that this thread works for.
pub(super) fn works_for() -> Option<RunningKey> {
    WORKS_FOR.get()
}

/// A task that runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) task_id: TaskId,
    pub(super) name: String,
    /// What it calls, where its name does not tell.
    pub(super) called: Called,
    pub(super) children: ChildTaskIds,
    pub(super) puts: u64,
    pub(super) cancelled: bool,
    pub(super) since: Instant,
    /// It waits for objects.
    pub(super) blocked: bool,
    /// It asked for the end of its actor: its caller hears of that end instead of a reply.
    pub(super) left: bool,
    /// References that came with it and are covered by its caller only until the reply.
    pub(super) borrowed: Vec<ObjectId>,
    /// The placement group that its caller named.
    pub(super) placement_group: Option<GroupContext>,
    /// Its concurrency group, if its actor runs several calls at once.
    pub(super) group: usize,
}

/// What the running task calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Called {
    /// This function.
    Function(FunctionId),
    /// The method by which its name ends.
    NamedMethod,
    /// This method.
    Method(String),
}

impl Called {
    pub(super) fn of(header: &TaskHeader<'_>) -> Self {
        match header.target {
            Target::Function(function_id) => Self::Function(function_id),
            // Mostly, and then nothing has to be copied.
            Target::Method { name, .. } if header.name.rsplit('.').next() == Some(name) => Self::NamedMethod,
            Target::Method { name, .. } => Self::Method(name.to_owned()),
        }
    }
}

/// All tasks that run.
#[derive(Debug, Default)]
pub(super) struct RunningTasks {
    slots: Vec<Slot>,
    count: usize,
    /// Several may run: a thread works only for whom it says.
    pub(super) several: bool,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    running: Option<Running>,
}

impl RunningTasks {
    pub(super) fn insert(&mut self, running: Running) -> RunningKey {
        self.count += 1;
        let free = self.slots.iter().position(|slot| slot.running.is_none());
        let slot = free.unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        self.slots[slot].running = Some(running);
        RunningKey { slot: slot as u32, generation: self.slots[slot].generation }
    }

    pub(super) fn remove(&mut self, key: RunningKey) -> Option<Running> {
        let slot = self.slots.get_mut(key.slot as usize).filter(|slot| slot.generation == key.generation)?;
        slot.generation = slot.generation.wrapping_add(1);
        self.count -= 1;
        slot.running.take()
    }

    pub(super) fn get(&self, key: RunningKey) -> Option<&Running> {
        let slot = self.slots.get(key.slot as usize).filter(|slot| slot.generation == key.generation)?;
        slot.running.as_ref()
    }

    pub(super) fn get_mut(&mut self, key: RunningKey) -> Option<&mut Running> {
        let slot = self.slots.get_mut(key.slot as usize).filter(|slot| slot.generation == key.generation)?;
        slot.running.as_mut()
    }

    /// The task that this thread works for, if it runs.
    pub(super) fn current(&self) -> Option<&Running> {
        match works_for() {
            Some(key) => self.get(key),
            None if self.several => None,
            None => self.slots.first()?.running.as_ref(),
        }
    }

    /// As [`RunningTasks::current`].
    pub(super) fn current_mut(&mut self) -> Option<&mut Running> {
        match works_for() {
            Some(key) => self.get_mut(key),
            None if self.several => None,
            None => self.slots.first_mut()?.running.as_mut(),
        }
    }

    pub(super) fn find(&self, task_id: TaskId) -> Option<RunningKey> {
        let is_it = |slot: &Slot| slot.running.as_ref().is_some_and(|running| running.task_id == task_id);
        let slot = self.slots.iter().position(is_it)?;
        Some(RunningKey { slot: slot as u32, generation: self.slots[slot].generation })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Running> {
        self.slots.iter().filter_map(|slot| slot.running.as_ref())
    }

    /// Whether no task runs.
    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether tasks run, and all of them wait for objects.
    pub(super) fn all_blocked(&self) -> bool {
        self.count > 0 && self.iter().all(|running| running.blocked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> Running {
        let task_id = TaskId::random();
        Running {
            task_id,
            name: String::new(),
            called: Called::NamedMethod,
            children: ChildTaskIds::new(task_id),
            puts: 0,
            cancelled: false,
            since: Instant::now(),
            blocked: false,
            left: false,
            borrowed: Vec::new(),
            placement_group: None,
            group: 0,
        }
    }

    #[test]
    fn the_key_of_a_task_that_ended_names_no_other() {
        let mut tasks = RunningTasks::default();
        let first = tasks.insert(running());
        let second = tasks.insert(running());
        assert!(tasks.remove(first).is_some());
        let third = tasks.insert(running());
        assert_ne!(first, third);
        assert!(tasks.get(first).is_none() && tasks.remove(first).is_none());
        assert!(tasks.get(second).is_some() && tasks.get(third).is_some());
        assert_eq!(RunningKey::from_u64(third.to_u64()), third);
    }

    #[test]
    fn a_thread_works_for_the_only_task_or_for_whom_it_says() {
        let mut tasks = RunningTasks::default();
        let key = tasks.insert(running());
        let task_id = tasks.get(key).unwrap().task_id;
        assert_eq!(tasks.current().map(|running| running.task_id), Some(task_id));
        tasks.several = true;
        assert!(tasks.current().is_none());
        work_for(Some(key));
        assert_eq!(tasks.current().map(|running| running.task_id), Some(task_id));
        tasks.remove(key);
        assert!(tasks.current().is_none());
        work_for(None);
    }

    #[test]
    fn all_are_blocked_only_if_each_is() {
        let mut tasks = RunningTasks::default();
        assert!(!tasks.all_blocked());
        let keys = [tasks.insert(running()), tasks.insert(running())];
        tasks.get_mut(keys[0]).unwrap().blocked = true;
        assert!(!tasks.all_blocked());
        tasks.get_mut(keys[1]).unwrap().blocked = true;
        assert!(tasks.all_blocked());
    }
}
