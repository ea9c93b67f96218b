//! Who waits for resources, and who is next.
//!
//! Requests of one shape form a class and are served first come, first served. Classes take turns:
//! after a class was served every other class is asked before it is asked again, so that neither a
//! large request at the head of one class nor a long queue in another holds anyone up.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::ops::Bound;

use ray_core::error::RayError;
use ray_core::id::PlacementGroupId;
use ray_core::resource::Resources;
use rustc_hash::FxHashMap;
use thiserror::Error;

use crate::resource_manager::{Claim, Pool};

/// Why a request is not queued.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EnqueueError {
    /// The node has less than is asked, however long one waits.
    #[error("the node can never satisfy {requested}: {missing}")]
    Infeasible {
        /// What was asked.
        requested: Resources,
        /// What is missing, for people.
        missing: String,
    },
    /// As many wait as may.
    #[error("{capacity} requests wait for resources already")]
    Full {
        /// How many may wait.
        capacity: usize,
    },
}

impl From<EnqueueError> for RayError {
    fn from(error: EnqueueError) -> Self {
        match error {
            EnqueueError::Infeasible { requested, missing } => {
                Self::Infeasible { requested, reason: missing }
            }
            EnqueueError::Full { capacity } => {
                Self::Overloaded { queue: "the queue of requests for resources", capacity }
            }
        }
    }
}

/// One class: its requests by the number that they got on arrival.
type Class<K> = BTreeMap<u64, K>;

/// The requests that wait, by class.
#[derive(Debug, Clone)]
pub struct SchedulingQueue<K> {
    /// What the node has: what asks for more is refused.
    total: Resources,
    capacity: usize,
    classes: BTreeMap<Claim, Class<K>>,
    /// Where each request stands.
    places: FxHashMap<K, (Claim, u64)>,
    /// The class that was served last.
    last_served: Option<Claim>,
    next_number: u64,
    /// How many wait for what the node has, and for what each group has.
    by_pool: BTreeMap<Option<PlacementGroupId>, usize>,
}

impl<K: Copy + Eq + Hash> SchedulingQueue<K> {
    /// An empty queue of at most `capacity` requests to a node that has `total`.
    pub fn new(total: Resources, capacity: usize) -> Self {
        Self {
            total,
            capacity,
            classes: BTreeMap::new(),
            places: FxHashMap::default(),
            last_served: None,
            next_number: 0,
            by_pool: BTreeMap::new(),
        }
    }

    /// Adds a request behind all others of its shape. A request that waits already keeps its place.
    ///
    /// # Errors
    /// If it can never be served, or too many wait.
    pub fn push(&mut self, key: K, claim: &Claim) -> Result<(), EnqueueError> {
        if self.places.contains_key(&key) {
            return Ok(());
        }
        self.check_feasible(claim)?;
        if self.places.len() >= self.capacity {
            return Err(EnqueueError::Full { capacity: self.capacity });
        }
        let number = self.next_number;
        self.next_number += 1;
        self.classes.entry(claim.clone()).or_default().insert(number, key);
        self.places.insert(key, (claim.clone(), number));
        *self.by_pool.entry(claim.pool.group_id()).or_default() += 1;
        Ok(())
    }

    /// Whether the node has as much. What is asked of a placement group is not looked at.
    ///
    /// # Errors
    /// [`EnqueueError::Infeasible`] with what is missing.
    pub fn check_feasible(&self, claim: &Claim) -> Result<(), EnqueueError> {
        if claim.pool != Pool::Node {
            return Ok(());
        }
        let shape = &claim.resources;
        let describe = |(name, asked, there)| format!("{asked} of {name:?} asked, {there} there");
        let missing: Vec<String> = self.total.shortfall(shape).map(describe).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(EnqueueError::Infeasible { requested: shape.clone(), missing: missing.join(", ") })
    }

    /// Takes a request out. Returns whether it waited.
    pub fn cancel(&mut self, key: &K) -> bool {
        let Some((shape, number)) = self.places.remove(key) else { return false };
        self.remove_from_class(&shape, number);
        true
    }

    /// Takes out the next request whose shape `fits`, if there is one.
    pub fn pop_ready(&mut self, mut fits: impl FnMut(&Claim) -> bool) -> Option<(K, Claim)> {
        let shape = self.turn_order().find(|shape| fits(shape))?.clone();
        let (&number, &key) = self.classes.get(&shape)?.first_key_value()?;
        self.remove_from_class(&shape, number);
        self.places.remove(&key);
        self.last_served = Some(shape.clone());
        Some((key, shape))
    }

    /// The classes, beginning with the one after that which was served last.
    fn turn_order(&self) -> impl Iterator<Item = &Claim> {
        let (first, second) = match &self.last_served {
            Some(last) => {
                let after = (Bound::Excluded(last), Bound::Unbounded);
                (self.classes.range::<Claim, _>(after), Some(self.classes.range::<Claim, _>(..=last)))
            }
            None => (self.classes.range::<Claim, _>(..), None),
        };
        first.chain(second.into_iter().flatten()).map(|(shape, _)| shape)
    }

    fn remove_from_class(&mut self, shape: &Claim, number: u64) {
        if let Some(count) = self.by_pool.get_mut(&shape.pool.group_id()) {
            *count -= 1;
            if *count == 0 {
                self.by_pool.remove(&shape.pool.group_id());
            }
        }
        if let Some(class) = self.classes.get_mut(shape) {
            class.remove(&number);
            if class.is_empty() {
                self.classes.remove(shape);
            }
        }
    }

    /// Whether this request waits.
    pub fn contains(&self, key: &K) -> bool {
        self.places.contains_key(key)
    }

    /// How many requests wait.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// How many requests wait for what this group has; `None`: for what the node has.
    pub fn waiting_for(&self, group_id: Option<PlacementGroupId>) -> usize {
        self.by_pool.get(&group_id).copied().unwrap_or_default()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// How many requests of each shape wait.
    pub fn demand(&self) -> impl Iterator<Item = (&Claim, usize)> {
        self.classes.iter().map(|(shape, class)| (shape, class.len()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ray_core::resource::{Amount, CPU};

    use super::*;
    use crate::resource_manager::ResourceManager;
    use ray_core::id::LeaseId;

    fn cpus(units: f64) -> Claim {
        Resources::new().with_cpu(units).unwrap().into()
    }

    #[test]
    fn infeasible_and_full_are_different_answers() {
        let mut queue = SchedulingQueue::new(cpus(2.0).resources, 1);
        let error = queue.push(1, &cpus(3.0)).unwrap_err();
        assert_eq!(error.to_string(), "the node can never satisfy {CPU: 3}: 3 of \"CPU\" asked, 2 there");
        queue.push(2, &cpus(1.0)).unwrap();
        queue.push(2, &cpus(1.0)).unwrap();
        assert_eq!(queue.push(3, &cpus(1.0)), Err(EnqueueError::Full { capacity: 1 }));
    }

    #[test]
    fn a_large_head_does_not_hold_up_another_class() {
        let mut queue = SchedulingQueue::new(cpus(4.0).resources, 10);
        queue.push(1, &cpus(4.0)).unwrap();
        queue.push(2, &cpus(1.0)).unwrap();
        let free = cpus(1.0);
        assert_eq!(
            queue.pop_ready(|claim| free.resources.can_satisfy(&claim.resources)),
            Some((2, cpus(1.0)))
        );
        assert_eq!(queue.pop_ready(|claim| free.resources.can_satisfy(&claim.resources)), None);
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn classes_take_turns_however_long_one_of_them_is() {
        let mut queue = SchedulingQueue::new(cpus(4.0).resources, 100);
        (0..10).for_each(|key| queue.push(key, &cpus(1.0)).unwrap());
        (10..12).for_each(|key| queue.push(key, &cpus(2.0)).unwrap());
        let order: Vec<i32> = std::iter::from_fn(|| queue.pop_ready(|_| true).map(|(key, _)| key)).collect();
        assert_eq!(order[..5], [0, 10, 1, 11, 2]);
    }

    #[test]
    fn who_waits_for_a_group_is_counted_apart() {
        let group_id = PlacementGroupId::from_bytes([1; 16]);
        let pool = Pool::Group { group_id, index: None };
        let mut queue = SchedulingQueue::new(cpus(1.0).resources, 100);
        queue.push(1, &Claim { pool, ..cpus(8.0) }).unwrap();
        queue.push(2, &cpus(1.0)).unwrap();
        assert_eq!((queue.waiting_for(None), queue.waiting_for(Some(group_id))), (1, 1));
        queue.cancel(&1);
        assert_eq!((queue.waiting_for(None), queue.waiting_for(Some(group_id))), (1, 0));
    }

    #[test]
    fn a_cancelled_request_is_never_served() {
        let mut queue = SchedulingQueue::new(cpus(4.0).resources, 100);
        (0..3).for_each(|key| queue.push(key, &cpus(1.0)).unwrap());
        assert!(queue.cancel(&0));
        assert!(!queue.cancel(&0));
        assert_eq!(queue.pop_ready(|_| true), Some((1, cpus(1.0))));
        assert_eq!(queue.demand().collect::<Vec<_>>(), [(&cpus(1.0), 1)]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(u64),
        Cancel(prop::sample::Index),
        Serve,
        Finish(prop::sample::Index),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (1u64..5).prop_map(Step::Push),
            1 => any::<prop::sample::Index>().prop_map(Step::Cancel),
            2 => Just(Step::Serve),
            2 => any::<prop::sample::Index>().prop_map(Step::Finish),
        ]
    }

    fn shape(cpus: u64) -> Claim {
        let mut shape = Resources::new();
        shape.set(CPU, Amount::from_raw(cpus * Amount::SCALE));
        shape.into()
    }

    proptest! {
        /// Against a naive list: each class is served in order, nothing that fits waits after a
        /// serving round, and at the end everyone was served once or cancelled.
        #[test]
        fn everyone_is_served_in_the_order_of_their_class(steps in prop::collection::vec(any_step(), 0..120)) {
            let mut manager = ResourceManager::new(shape(4).resources);
            let mut queue = SchedulingQueue::new(shape(4).resources, 1000);
            let mut waiting: Vec<(LeaseId, u64)> = Vec::new();
            let mut running: Vec<LeaseId> = Vec::new();
            let mut next = 0u128;
            let serve = |queue: &mut SchedulingQueue<LeaseId>, manager: &mut ResourceManager,
                             waiting: &mut Vec<(LeaseId, u64)>, running: &mut Vec<LeaseId>| {
                while let Some((lease, shape)) = queue.pop_ready(|shape| manager.fits(shape)) {
                    assert!(manager.allocate(lease, &shape));
                    let at = waiting.iter().position(|(other, _)| *other == lease).expect("it waited");
                    let class = waiting[at].1;
                    assert!(waiting[..at].iter().all(|(_, other)| *other != class), "out of order");
                    waiting.remove(at);
                    running.push(lease);
                }
                assert!(waiting.iter().all(|(_, cpus)| !manager.fits(&shape(*cpus))));
            };
            for step in steps {
                match step {
                    Step::Push(cpus) => {
                        let lease = LeaseId::from_bytes(next.to_le_bytes());
                        next += 1;
                        queue.push(lease, &shape(cpus)).unwrap();
                        waiting.push((lease, cpus));
                    }
                    Step::Cancel(at) if !waiting.is_empty() => {
                        let (lease, _) = waiting.remove(at.index(waiting.len()));
                        prop_assert!(queue.cancel(&lease));
                    }
                    Step::Finish(at) if !running.is_empty() => {
                        let lease = running.remove(at.index(running.len()));
                        prop_assert!(manager.release(lease));
                    }
                    Step::Cancel(_) | Step::Finish(_) => {}
                    Step::Serve => serve(&mut queue, &mut manager, &mut waiting, &mut running),
                }
                prop_assert_eq!(queue.len(), waiting.len());
            }
            while !queue.is_empty() || !running.is_empty() {
                for lease in running.drain(..) {
                    prop_assert!(manager.release(lease));
                }
                serve(&mut queue, &mut manager, &mut waiting, &mut running);
            }
            prop_assert_eq!(manager.available(), shape(4).resources);
        }
    }
}
