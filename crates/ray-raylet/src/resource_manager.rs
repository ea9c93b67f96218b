//! What a node has, and who took what of it.
//!
//! The manager keeps what is *used* and derives what is free, so that a lease that takes its
//! processors again after a pause may push the use beyond the total without any amount going
//! negative: nothing new fits until the surplus is given back.
//!
//! ```text
//!              allocate            suspend_cpu
//!   (unknown) ----------> taken <--------------> taken but for its CPUs
//!       ^                   |     resume_cpu              |
//!       +------- release ---+------------- release -------+
//! ```

use std::collections::BTreeMap;

use ray_core::id::LeaseId;
use ray_core::resource::{Amount, CPU, GPU, Resources};
use rustc_hash::FxHashMap;

use crate::device_table::{DeviceTable, Share};

/// What one lease holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Allocation {
    resources: Resources,
    /// Whether the CPUs among `resources` are given back for the moment.
    cpu_suspended: bool,
    /// The graphics processors behind the GPUs among `resources`.
    devices: Vec<Share>,
}

impl Allocation {
    /// What counts as used on behalf of this allocation.
    fn in_use(&self) -> Resources {
        let mut in_use = self.resources.clone();
        if self.cpu_suspended {
            in_use.set(CPU, Amount::ZERO);
        }
        in_use
    }
}

/// Accounts a node's resources, exactly.
#[derive(Debug, Clone)]
pub struct ResourceManager {
    total: Resources,
    /// The sum of what all allocations use; may exceed `total` after [`Self::resume_cpu`].
    used: Resources,
    allocations: FxHashMap<LeaseId, Allocation>,
    devices: DeviceTable,
}

impl ResourceManager {
    /// A node that has `total`, all of it free.
    pub fn new(total: Resources) -> Self {
        let devices = DeviceTable::new(total.get(GPU));
        Self { total, used: Resources::new(), allocations: FxHashMap::default(), devices }
    }

    /// What the node has.
    pub fn total(&self) -> &Resources {
        &self.total
    }

    /// What is free now.
    pub fn available(&self) -> Resources {
        let mut available = Resources::new();
        for (name, amount) in self.total.iter() {
            available.set(name, amount.saturating_sub(self.used.get(name)));
        }
        available
    }

    /// Whether `request` could be taken now.
    pub fn fits(&self, request: &Resources) -> bool {
        let free = |(name, amount)| self.used.get(name).saturating_add(amount) <= self.total.get(name);
        request.iter().all(free) && self.devices.fits(request.get(GPU))
    }

    /// What `request` asks for beyond what is free, for people; nothing if it fits.
    pub fn shortage(&self, request: &Resources) -> String {
        let available = self.available();
        let describe = |(name, asked, free)| format!("{asked} of {name:?} asked, {free} free");
        let short = available.shortfall(request).map(describe).collect::<Vec<_>>().join(", ");
        if short.is_empty() && !self.devices.fits(request.get(GPU)) {
            let (asked, free) = (request.get(GPU), available.get(GPU));
            return format!("{asked} of {GPU:?} asked, {free} free, but scattered over devices");
        }
        short
    }

    /// What the lease uses now, if it has taken anything.
    pub fn held(&self, lease: LeaseId) -> Option<Resources> {
        self.allocations.get(&lease).map(Allocation::in_use)
    }

    /// Whether `request` could be taken if nothing else were.
    pub fn is_feasible(&self, request: &Resources) -> bool {
        self.total.can_satisfy(request)
    }

    /// Takes `request` on behalf of the lease. A lease that holds something already keeps that, and
    /// the answer is whether it is the same. `false`: nothing was taken.
    pub fn allocate(&mut self, lease: LeaseId, request: &Resources) -> bool {
        if let Some(held) = self.allocations.get(&lease) {
            return held.resources == *request;
        }
        if !self.fits(request) {
            return false;
        }
        let Some(devices) = self.devices.allocate(request.get(GPU)) else { return false };
        self.used.add(request);
        let allocation = Allocation { resources: request.clone(), cpu_suspended: false, devices };
        self.allocations.insert(lease, allocation);
        true
    }

    /// Gives back all that the lease took. Returns whether it held anything.
    pub fn release(&mut self, lease: LeaseId) -> bool {
        let Some(allocation) = self.allocations.remove(&lease) else { return false };
        self.give_back(&allocation.in_use());
        self.devices.release(&allocation.devices);
        true
    }

    /// Gives back what the lease holds beyond `rest`: an actor that lives takes less than one that is
    /// placed. What `rest` asks for beyond what is held is not taken. Returns whether the lease is known.
    pub fn shrink(&mut self, lease: LeaseId, rest: &Resources) -> bool {
        let Some(mut allocation) = self.allocations.remove(&lease) else { return false };
        self.give_back(&allocation.in_use());
        let mut kept = Resources::new();
        for (name, held) in allocation.resources.iter() {
            kept.set(name, held.min(rest.get(name)));
        }
        if kept.get(GPU) != allocation.resources.get(GPU) {
            self.devices.release(&allocation.devices);
            // Less than was just released always fits where that was.
            allocation.devices = self.devices.allocate(kept.get(GPU)).unwrap_or_default();
        }
        allocation.resources = kept;
        self.used.add(&allocation.in_use());
        self.allocations.insert(lease, allocation);
        true
    }

    /// Gives back the CPUs of a lease whose worker waits. Returns whether that changed anything.
    pub fn suspend_cpu(&mut self, lease: LeaseId) -> bool {
        self.set_suspended(lease, true)
    }

    /// Takes the CPUs of a lease again whose worker goes on, even if others took them meanwhile: a
    /// worker that could go on but must not would keep those waiting that wait for it.
    /// Returns whether that changed anything.
    pub fn resume_cpu(&mut self, lease: LeaseId) -> bool {
        self.set_suspended(lease, false)
    }

    fn set_suspended(&mut self, lease: LeaseId, suspended: bool) -> bool {
        let Some(allocation) = self.allocations.get_mut(&lease) else { return false };
        if allocation.cpu_suspended == suspended {
            return false;
        }
        allocation.cpu_suspended = suspended;
        let mut cpus = Resources::new();
        cpus.set(CPU, allocation.resources.get(CPU));
        if suspended {
            self.give_back(&cpus);
        } else {
            self.used.add(&cpus);
        }
        true
    }

    fn give_back(&mut self, resources: &Resources) {
        self.used.subtract(resources).expect("what is given back was counted as used when it was taken");
    }

    /// What the lease holds, its suspended CPUs included.
    pub fn held_by(&self, lease: LeaseId) -> Option<&Resources> {
        self.allocations.get(&lease).map(|allocation| &allocation.resources)
    }

    /// The graphics processors that the lease was given, by number.
    pub fn devices_of(&self, lease: LeaseId) -> Vec<u32> {
        let devices = self.allocations.get(&lease).map(|allocation| allocation.devices.as_slice());
        devices.unwrap_or_default().iter().map(|share| share.device).collect()
    }

    /// How many leases hold something.
    pub fn allocations(&self) -> usize {
        self.allocations.len()
    }

    /// The used share of each resource that the node has: 0 = idle, 1 = full, above 1 =
    /// oversubscribed by workers that went on after waiting.
    pub fn utilisation(&self) -> BTreeMap<String, f64> {
        let share = |(name, total): (&str, Amount)| {
            (name.to_owned(), self.used.get(name).to_raw() as f64 / total.to_raw() as f64)
        };
        self.total.iter().map(share).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn units(amounts: &[(&str, f64)]) -> Resources {
        Resources::from_units(amounts.iter().copied()).unwrap()
    }

    fn lease(number: u8) -> LeaseId {
        LeaseId::from_bytes([number; 16])
    }

    #[test]
    fn what_does_not_fit_is_refused_whole() {
        let mut manager = ResourceManager::new(units(&[("CPU", 2.0), ("gizmo", 1.0)]));
        assert!(!manager.allocate(lease(1), &units(&[("CPU", 1.0), ("gizmo", 2.0)])));
        assert_eq!(manager.available(), *manager.total());
        assert!(manager.allocate(lease(1), &units(&[("CPU", 2.0)])));
        assert!(!manager.allocate(lease(2), &units(&[("CPU", 0.1)])));
        assert!(manager.release(lease(1)));
        assert!(!manager.release(lease(1)));
        assert_eq!(manager.available(), *manager.total());
    }

    #[test]
    fn allocating_twice_for_a_lease_takes_once() {
        let mut manager = ResourceManager::new(units(&[("CPU", 2.0)]));
        assert!(manager.allocate(lease(1), &units(&[("CPU", 1.0)])));
        assert!(manager.allocate(lease(1), &units(&[("CPU", 1.0)])));
        assert!(!manager.allocate(lease(1), &units(&[("CPU", 2.0)])));
        assert_eq!(manager.available(), units(&[("CPU", 1.0)]));
    }

    #[test]
    fn a_waiting_lease_gives_back_only_cpus_and_takes_them_again_beyond_the_total() {
        let mut manager = ResourceManager::new(units(&[("CPU", 1.0), ("GPU", 1.0)]));
        assert!(manager.allocate(lease(1), &units(&[("CPU", 1.0), ("GPU", 1.0)])));
        assert!(manager.suspend_cpu(lease(1)));
        assert!(!manager.suspend_cpu(lease(1)));
        assert_eq!(manager.available(), units(&[("CPU", 1.0)]));
        assert!(manager.allocate(lease(2), &units(&[("CPU", 1.0)])));
        assert!(manager.resume_cpu(lease(1)));
        assert_eq!(manager.utilisation()["CPU"], 2.0);
        assert!(manager.release(lease(2)));
        assert!(manager.available().is_empty());
        assert!(!manager.fits(&units(&[("CPU", 0.0001)])));
        assert!(manager.release(lease(1)));
        assert_eq!(manager.available(), *manager.total());
    }

    #[test]
    fn a_placed_actor_keeps_only_what_it_needs_to_live() {
        let mut manager = ResourceManager::new(units(&[("CPU", 2.0)]));
        assert!(manager.allocate(lease(1), &units(&[("CPU", 1.0)])));
        assert!(manager.shrink(lease(1), &Resources::new()));
        assert_eq!(manager.available(), units(&[("CPU", 2.0)]));
        assert!(manager.release(lease(1)));
    }

    #[test]
    fn what_no_node_has_is_infeasible_and_nothing_always_fits() {
        let manager = ResourceManager::new(units(&[("CPU", 1.0)]));
        assert!(!manager.is_feasible(&units(&[("gizmo", 0.5)])));
        assert!(manager.fits(&Resources::new()));
    }

    #[test]
    fn a_lease_knows_its_devices_and_scattered_ones_do_not_fit() {
        let mut manager = ResourceManager::new(units(&[("GPU", 2.0)]));
        assert!(manager.allocate(lease(1), &units(&[("GPU", 0.6)])));
        assert!(manager.allocate(lease(2), &units(&[("GPU", 0.6)])));
        assert_eq!((manager.devices_of(lease(1)), manager.devices_of(lease(2))), (vec![0], vec![1]));
        assert!(!manager.allocate(lease(3), &units(&[("GPU", 0.8)])));
        assert!(manager.shortage(&units(&[("GPU", 0.8)])).contains("scattered"));
        assert!(manager.release(lease(1)));
        assert!(manager.allocate(lease(3), &units(&[("GPU", 1.0)])));
        assert_eq!(manager.devices_of(lease(3)), [0]);
        assert!(manager.shrink(lease(2), &units(&[("GPU", 0.1)])));
        assert_eq!(manager.devices_of(lease(2)), [1]);
        assert_eq!(manager.devices_of(lease(9)), [0u32; 0]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Allocate(u8, u64, u64),
        Release(u8),
        Suspend(u8),
        Resume(u8),
        Shrink(u8, u64),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let id = 0u8..6;
        prop_oneof![
            (id.clone(), 0u64..30_000, 0u64..3).prop_map(|(id, cpu, other)| Step::Allocate(id, cpu, other)),
            id.clone().prop_map(Step::Release),
            id.clone().prop_map(Step::Suspend),
            id.clone().prop_map(Step::Resume),
            (id, 0u64..30_000).prop_map(|(id, cpu)| Step::Shrink(id, cpu)),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_what_was_taken_comes_back_whole(steps in prop::collection::vec(any_step(), 0..80)) {
            let mut total = units(&[("gizmo", 0.0003)]);
            total.set(CPU, Amount::from_raw(40_000));
            let mut manager = ResourceManager::new(total.clone());
            for step in steps {
                match step {
                    Step::Allocate(id, cpu, other) => {
                        let mut request = Resources::new();
                        request.set(CPU, Amount::from_raw(cpu));
                        request.set("gizmo", Amount::from_raw(other));
                        let fits = manager.fits(&request);
                        let held = manager.held_by(lease(id)).cloned();
                        let taken = manager.allocate(lease(id), &request);
                        prop_assert_eq!(taken, held.map_or(fits, |held| held == request));
                    }
                    Step::Release(id) => { manager.release(lease(id)); }
                    Step::Suspend(id) => { manager.suspend_cpu(lease(id)); }
                    Step::Resume(id) => { manager.resume_cpu(lease(id)); }
                    Step::Shrink(id, cpu) => {
                        let mut rest = Resources::new();
                        rest.set(CPU, Amount::from_raw(cpu));
                        manager.shrink(lease(id), &rest);
                    }
                }
                let mut used = Resources::new();
                manager.allocations.values().for_each(|allocation| used.add(&allocation.in_use()));
                prop_assert_eq!(&used, &manager.used);
                prop_assert!(used.get("gizmo") <= total.get("gizmo"), "only CPUs are oversubscribed");
            }
            for id in 0..6 {
                manager.release(lease(id));
            }
            prop_assert_eq!(manager.available(), total);
            prop_assert_eq!(manager.allocations(), 0);
        }
    }
}
