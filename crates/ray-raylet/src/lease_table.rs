//! The leases of a node: who asked for what, and which worker serves it.
//!
//! A lease is the right to use one worker with some resources. This table knows the requests and the
//! grants; the resources are counted by [`crate::ResourceManager`], the order of service is that of
//! [`crate::SchedulingQueue`], the processes are those of [`crate::worker_pool::WorkerPool`].
//!
//! ```text
//!            insert            on_placed               on_granted           set_blocked
//!   (none) ---------> Queued ------------> Starting -------------> Held <---------------> Blocked
//!                       |     resources       |      a worker       |    the worker waits    |
//!                       v     are taken       v      is there       v    for others          v
//!                     (none) <--------------(none) <--------------(none) <------------------- remove
//! ```

use std::collections::{BTreeMap, BTreeSet};

use ray_core::id::{ActorId, JobId, LeaseId, PlacementGroupId, TaskId, WorkerId};
use rustc_hash::FxHashMap;

use crate::resource_manager::Claim;

/// On whose behalf a lease is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    /// A core worker of this node.
    Client {
        /// The process.
        worker_id: WorkerId,
        /// Its number for the class of tasks.
        class: u64,
    },
    /// A caller by gRPC, who chose the lease's id.
    Remote(LeaseId),
    /// An actor that lives here.
    Actor(ActorId),
    /// A task that was submitted by gRPC.
    Task(TaskId),
}

/// How far a lease is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// It waits for resources.
    Queued,
    /// It has its resources and waits for a worker.
    Starting,
    /// It has this worker.
    Held(WorkerId),
    /// It has this worker, which waits for others and has given back its CPUs.
    Blocked(WorkerId),
}

impl LeaseState {
    /// The worker, if there is one.
    pub const fn worker(self) -> Option<WorkerId> {
        match self {
            Self::Held(worker_id) | Self::Blocked(worker_id) => Some(worker_id),
            Self::Queued | Self::Starting => None,
        }
    }
}

/// One request or grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Who asked.
    pub holder: Holder,
    /// On behalf of which job.
    pub job_id: JobId,
    /// What it takes.
    pub claim: Claim,
    /// How far it is.
    pub state: LeaseState,
}

/// How many leases of one holder are how far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeaseCount {
    /// Waiting for resources.
    pub queued: usize,
    /// With resources, waiting for a worker.
    pub starting: usize,
    /// With a worker.
    pub held: usize,
    /// Of these, with a worker that waits for others.
    pub blocked: usize,
}

/// All leases, by id, holder and worker.
#[derive(Debug, Clone, Default)]
pub struct LeaseTable {
    leases: FxHashMap<LeaseId, Lease>,
    /// Each holder's leases in the order in which they were asked for.
    by_holder: BTreeMap<Holder, BTreeMap<u64, LeaseId>>,
    numbers: FxHashMap<LeaseId, u64>,
    by_worker: FxHashMap<WorkerId, LeaseId>,
    next_number: u64,
}

impl LeaseTable {
    /// No leases.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a request, queued. Returns whether it is new.
    pub fn insert(&mut self, lease_id: LeaseId, holder: Holder, job_id: JobId, claim: Claim) -> bool {
        if self.leases.contains_key(&lease_id) {
            return false;
        }
        let number = self.next_number;
        self.next_number += 1;
        self.leases.insert(lease_id, Lease { holder, job_id, claim, state: LeaseState::Queued });
        self.numbers.insert(lease_id, number);
        self.by_holder.entry(holder).or_default().insert(number, lease_id);
        true
    }

    /// The lease has its resources. Returns whether it was queued.
    pub fn on_placed(&mut self, lease_id: LeaseId) -> bool {
        match self.leases.get_mut(&lease_id) {
            Some(lease) if lease.state == LeaseState::Queued => {
                lease.state = LeaseState::Starting;
                true
            }
            _ => false,
        }
    }

    /// The lease has this worker. Returns the lease, or `None` if it was not waiting for one or the
    /// worker serves another.
    pub fn on_granted(&mut self, lease_id: LeaseId, worker_id: WorkerId) -> Option<&Lease> {
        if self.by_worker.contains_key(&worker_id) {
            return None;
        }
        let lease = self.leases.get_mut(&lease_id).filter(|lease| lease.state == LeaseState::Starting)?;
        lease.state = LeaseState::Held(worker_id);
        self.by_worker.insert(worker_id, lease_id);
        Some(lease)
    }

    /// The worker waits for others, or goes on. Returns its lease if that is a change.
    pub fn set_blocked(&mut self, worker_id: WorkerId, blocked: bool) -> Option<LeaseId> {
        let lease_id = *self.by_worker.get(&worker_id)?;
        let lease = self.leases.get_mut(&lease_id)?;
        let state = if blocked { LeaseState::Blocked(worker_id) } else { LeaseState::Held(worker_id) };
        let changed = lease.state != state;
        lease.state = state;
        changed.then_some(lease_id)
    }

    /// Forgets the lease and returns it.
    pub fn remove(&mut self, lease_id: LeaseId) -> Option<Lease> {
        let lease = self.leases.remove(&lease_id)?;
        let number = self.numbers.remove(&lease_id).expect("every lease has a number");
        if let Some(all) = self.by_holder.get_mut(&lease.holder) {
            all.remove(&number);
            if all.is_empty() {
                self.by_holder.remove(&lease.holder);
            }
        }
        if let Some(worker_id) = lease.state.worker() {
            self.by_worker.remove(&worker_id);
        }
        Some(lease)
    }

    /// The lease of this id.
    pub fn get(&self, lease_id: LeaseId) -> Option<&Lease> {
        self.leases.get(&lease_id)
    }

    /// The lease that this worker serves.
    pub fn of_worker(&self, worker_id: WorkerId) -> Option<LeaseId> {
        self.by_worker.get(&worker_id).copied()
    }

    /// The leases of this holder, oldest request first.
    pub fn of_holder(&self, holder: &Holder) -> impl DoubleEndedIterator<Item = LeaseId> {
        self.by_holder.get(holder).into_iter().flat_map(|leases| leases.values().copied())
    }

    /// The leases of all classes of this client.
    pub fn of_client(&self, worker_id: WorkerId) -> impl Iterator<Item = LeaseId> {
        let first = Holder::Client { worker_id, class: 0 };
        let last = Holder::Client { worker_id, class: u64::MAX };
        self.by_holder.range(first..=last).flat_map(|(_, leases)| leases.values().copied())
    }

    /// The leases that take something of a placement group, or wait for it, in the order of their ids.
    pub fn of_group(&self, group_id: PlacementGroupId) -> BTreeSet<LeaseId> {
        let inside = |lease: &Lease| lease.claim.pool.group_id() == Some(group_id);
        self.leases.iter().filter(|(_, lease)| inside(lease)).map(|(&id, _)| id).collect()
    }

    /// The leases on behalf of this job, in the order of their ids.
    pub fn of_job(&self, job_id: JobId) -> BTreeSet<LeaseId> {
        self.leases.iter().filter(|(_, lease)| lease.job_id == job_id).map(|(&id, _)| id).collect()
    }

    /// How many leases this holder waits for and has.
    pub fn count(&self, holder: &Holder) -> LeaseCount {
        let mut count = LeaseCount::default();
        for lease_id in self.of_holder(holder) {
            match self.leases[&lease_id].state {
                LeaseState::Queued => count.queued += 1,
                LeaseState::Starting => count.starting += 1,
                LeaseState::Held(_) => count.held += 1,
                LeaseState::Blocked(_) => {
                    count.held += 1;
                    count.blocked += 1;
                }
            }
        }
        count
    }

    /// All leases, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (LeaseId, &Lease)> {
        self.leases.iter().map(|(&lease_id, lease)| (lease_id, lease))
    }

    /// How many leases have a worker.
    pub fn granted(&self) -> usize {
        self.by_worker.len()
    }

    /// The clients that hold workers, with the class for which they do, each once, in order.
    pub fn holding_clients(&self) -> impl Iterator<Item = (WorkerId, u64)> {
        self.by_holder.iter().filter_map(|(holder, leases)| match holder {
            Holder::Client { worker_id, class }
                if leases.values().any(|id| self.leases[id].state.worker().is_some()) =>
            {
                Some((*worker_id, *class))
            }
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lease(number: u8) -> LeaseId {
        LeaseId::from_bytes([number; 16])
    }

    fn worker(number: u8) -> WorkerId {
        WorkerId::from_bytes([number; 16])
    }

    fn holder(number: u8) -> Holder {
        Holder::Client { worker_id: worker(number % 2), class: u64::from(number / 2) }
    }

    #[test]
    fn a_lease_goes_from_queued_to_held_and_away() {
        let mut table = LeaseTable::new();
        assert!(table.insert(lease(1), holder(0), JobId::nil(), Claim::default()));
        assert!(!table.insert(lease(1), holder(0), JobId::nil(), Claim::default()));
        assert_eq!(table.on_granted(lease(1), worker(9)), None);
        assert!(table.on_placed(lease(1)));
        assert!(!table.on_placed(lease(1)));
        assert_eq!(table.count(&holder(0)), LeaseCount { starting: 1, ..LeaseCount::default() });
        assert!(table.on_granted(lease(1), worker(9)).is_some());
        assert_eq!(table.count(&holder(0)), LeaseCount { held: 1, ..LeaseCount::default() });
        assert_eq!(table.set_blocked(worker(9), true), Some(lease(1)));
        assert_eq!(table.set_blocked(worker(9), true), None);
        assert_eq!(table.remove(lease(1)).map(|lease| lease.state), Some(LeaseState::Blocked(worker(9))));
        assert_eq!(table.of_worker(worker(9)), None);
        assert_eq!(table.holding_clients().count(), 0);
    }

    #[test]
    fn the_leases_of_a_client_are_those_of_all_its_classes() {
        let mut table = LeaseTable::new();
        for number in 0..8 {
            table.insert(lease(number), holder(number), JobId::nil(), Claim::default());
        }
        assert_eq!(table.of_client(worker(1)).collect::<Vec<_>>(), [1, 3, 5, 7].map(lease));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u8, u8),
        Place(u8),
        Grant(u8, u8),
        Block(u8, bool),
        Remove(u8),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..8, 0u8..4).prop_map(|(id, holder)| Step::Insert(id, holder)),
            (0u8..8).prop_map(Step::Place),
            (0u8..8, 0u8..4).prop_map(|(id, worker)| Step::Grant(id, worker)),
            (0u8..4, any::<bool>()).prop_map(|(worker, blocked)| Step::Block(worker, blocked)),
            (0u8..8).prop_map(Step::Remove),
        ]
    }

    proptest! {
        #[test]
        fn every_index_agrees_with_the_leases(steps in prop::collection::vec(any_step(), 0..100)) {
            let mut table = LeaseTable::new();
            for step in steps {
                match step {
                    Step::Insert(id, of) => {
                        table.insert(lease(id), holder(of), JobId::nil(), Claim::default());
                    }
                    Step::Place(id) => {
                        table.on_placed(lease(id));
                    }
                    Step::Grant(id, by) => {
                        table.on_granted(lease(id), worker(by));
                    }
                    Step::Block(by, blocked) => {
                        table.set_blocked(worker(by), blocked);
                    }
                    Step::Remove(id) => {
                        table.remove(lease(id));
                    }
                }
                let served: Vec<_> =
                    table.leases.iter().filter_map(|(id, lease)| Some((lease.state.worker()?, *id))).collect();
                prop_assert_eq!(served.len(), table.by_worker.len(), "no worker serves two leases");
                prop_assert!(served.iter().all(|(by, id)| table.of_worker(*by) == Some(*id)));
                let listed: usize = table.by_holder.values().map(BTreeMap::len).sum();
                prop_assert_eq!(listed, table.leases.len());
                for (id, lease) in &table.leases {
                    prop_assert!(table.of_holder(&lease.holder).any(|other| other == *id));
                }
            }
        }
    }
}
