//! What a node has, what of it is reserved for placement groups, and who took what.
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
//!
//! A bundle of a placement group is a pool of its own: what it has is used of the node, and what leases take of it
//! is used of the bundle. It is given back when no lease takes anything of it any more.
//!
//! ```text
//!              reserve             commit
//!   (unknown) ----------> reserved --------> in use by leases, or not
//!       ^                   |                    |
//!       +-- return_bundle --+--------------------+
//! ```

use std::collections::{BTreeMap, BTreeSet};

use ray_core::constraint::BundleId;
use ray_core::id::{LeaseId, PlacementGroupId};
use ray_core::resource::{Amount, CPU, GPU, Resources};
use rustc_hash::FxHashMap;

use crate::device_table::{DeviceTable, Share};

/// From what a lease takes its resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Pool {
    /// What the node has and no group has reserved.
    #[default]
    Node,
    /// What a placement group has reserved on the node.
    Group {
        /// The group.
        group_id: PlacementGroupId,
        /// Which of its bundles; any that has room if not given.
        index: Option<u32>,
    },
}

impl Pool {
    /// The group whose it is.
    pub const fn group_id(&self) -> Option<PlacementGroupId> {
        match self {
            Self::Node => None,
            Self::Group { group_id, .. } => Some(*group_id),
        }
    }
}

/// What a lease takes, and from what.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Claim {
    /// From what.
    pub pool: Pool,
    /// How much.
    pub resources: Resources,
}

impl From<Resources> for Claim {
    /// Of the node.
    fn from(resources: Resources) -> Self {
        Self { pool: Pool::Node, resources }
    }
}

/// What one lease holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Allocation {
    /// As it was asked for.
    pool: Pool,
    /// Where it was found.
    bundle: Option<BundleId>,
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

/// What is reserved for one bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bundle {
    total: Resources,
    /// The sum of what its leases use; may exceed `total` after [`ResourceManager::resume_cpu`].
    used: Resources,
    /// The attempt to place its group by which it came here.
    attempt: u64,
    /// Whether leases may take of it.
    committed: bool,
    leases: BTreeSet<LeaseId>,
    /// The graphics processors behind the GPUs among `total`.
    shares: Vec<Share>,
    /// What is free of them.
    devices: DeviceTable,
}

impl Bundle {
    fn fits(&self, request: &Resources) -> bool {
        leaves_room(&self.total, &self.used, request) && self.devices.fits(request.get(GPU))
    }
}

/// Accounts a node's resources, exactly.
#[derive(Debug, Clone)]
pub struct ResourceManager {
    total: Resources,
    /// The sum of what all bundles and all allocations of the node's own use; may exceed `total` after
    /// [`Self::resume_cpu`].
    used: Resources,
    allocations: FxHashMap<LeaseId, Allocation>,
    devices: DeviceTable,
    bundles: BTreeMap<BundleId, Bundle>,
}

impl ResourceManager {
    /// A node that has `total`, all of it free.
    pub fn new(total: Resources) -> Self {
        let devices = DeviceTable::new(total.get(GPU));
        let (used, allocations) = (Resources::new(), FxHashMap::default());
        Self { total, used, allocations, devices, bundles: BTreeMap::new() }
    }

    /// What the node has.
    pub fn total(&self) -> &Resources {
        &self.total
    }

    /// What is free now, and not reserved for a group.
    pub fn available(&self) -> Resources {
        free_of(&self.total, &self.used)
    }

    /// What the pool has, over all bundles that it may mean.
    pub fn total_of(&self, pool: Pool) -> Resources {
        self.sum_over(pool, &self.total, |bundle| bundle.total.clone())
    }

    /// What is free of the pool, over all bundles that it may mean.
    pub fn available_of(&self, pool: Pool) -> Resources {
        self.sum_over(pool, &self.available(), |bundle| free_of(&bundle.total, &bundle.used))
    }

    fn sum_over(&self, pool: Pool, node: &Resources, of: impl Fn(&Bundle) -> Resources) -> Resources {
        if pool == Pool::Node {
            return node.clone();
        }
        let mut sum = Resources::new();
        self.bundles_of(pool).for_each(|(_, bundle)| sum.add(&of(bundle)));
        sum
    }

    /// What bundles have taken of the node.
    pub fn reserved(&self) -> Resources {
        let mut sum = Resources::new();
        self.bundles.values().for_each(|bundle| sum.add(&bundle.total));
        sum
    }

    /// Whether `claim` could be taken now.
    pub fn fits(&self, claim: &Claim) -> bool {
        match claim.pool {
            Pool::Node => {
                leaves_room(&self.total, &self.used, &claim.resources)
                    && self.devices.fits(claim.resources.get(GPU))
            }
            Pool::Group { .. } => self.bundle_for(claim).is_some(),
        }
    }

    /// The bundle of which `claim` could be taken now.
    fn bundle_for(&self, claim: &Claim) -> Option<BundleId> {
        let mut bundles = self.bundles_of(claim.pool).filter(|(_, bundle)| bundle.committed);
        bundles.find(|(_, bundle)| bundle.fits(&claim.resources)).map(|(&id, _)| id)
    }

    /// The bundles that this pool may mean.
    fn bundles_of(&self, pool: Pool) -> impl Iterator<Item = (&BundleId, &Bundle)> {
        let range = match pool {
            Pool::Node => None,
            Pool::Group { group_id, index } => {
                let (first, last) = index.map_or((0, u32::MAX), |index| (index, index));
                Some(BundleId { group_id, index: first }..=BundleId { group_id, index: last })
            }
        };
        range.into_iter().flat_map(|range| self.bundles.range(range))
    }

    /// What `claim` asks for beyond what is free, for people; nothing if it fits.
    pub fn shortage(&self, claim: &Claim) -> String {
        if self.fits(claim) {
            return String::new();
        }
        let describe_all = |free: &Resources| {
            let describe = |(name, asked, free)| format!("{asked} of {name:?} asked, {free} free");
            let short: Vec<_> = free.shortfall(&claim.resources).map(describe).collect();
            if short.is_empty() {
                let (asked, free) = (claim.resources.get(GPU), free.get(GPU));
                return format!("{asked} of {GPU:?} asked, {free} free, but scattered over devices");
            }
            short.join(", ")
        };
        let Pool::Group { group_id, index } = claim.pool else { return describe_all(&self.available()) };
        match index {
            Some(index) => match self.bundles.get(&BundleId { group_id, index }) {
                Some(bundle) if bundle.committed => {
                    let free = free_of(&bundle.total, &bundle.used);
                    format!("in bundle {index} of placement group {group_id}: {}", describe_all(&free))
                }
                _ => format!("bundle {index} of placement group {group_id} is not on this node"),
            },
            None => format!("{} is free in no bundle of placement group {group_id}", claim.resources),
        }
    }

    /// What the lease uses now, if it has taken anything.
    pub fn held(&self, lease: LeaseId) -> Option<Resources> {
        self.allocations.get(&lease).map(Allocation::in_use)
    }

    /// What `claim` asks for beyond what its pool has at all, for people; `None` if it may ever be taken.
    pub fn infeasible(&self, claim: &Claim) -> Option<String> {
        let missing = |total: &Resources| {
            let describe = |(name, asked, there)| format!("{asked} of {name:?} asked, {there} there");
            let missing: Vec<_> = total.shortfall(&claim.resources).map(describe).collect();
            missing.join(", ")
        };
        match claim.pool {
            Pool::Node => (!self.total.can_satisfy(&claim.resources)).then(|| missing(&self.total)),
            Pool::Group { group_id, index } => {
                let can = |(_, bundle): (_, &Bundle)| bundle.total.can_satisfy(&claim.resources);
                if self.bundles_of(claim.pool).any(can) {
                    return None;
                }
                Some(match index.and_then(|index| self.bundles.get(&BundleId { group_id, index })) {
                    Some(bundle) => missing(&bundle.total),
                    None => format!("no bundle of placement group {group_id} here has as much"),
                })
            }
        }
    }

    /// How often `resources` could be taken of the pool if nothing of it were; `None` without limit.
    pub fn capacity(&self, claim: &Claim) -> Option<u64> {
        let times = |total: &Resources| {
            let share = |(name, amount): (&str, Amount)| total.get(name).to_raw() / amount.to_raw();
            claim.resources.iter().map(share).min()
        };
        match claim.pool {
            Pool::Node => times(&self.total),
            Pool::Group { .. } => self.bundles_of(claim.pool).map(|(_, bundle)| times(&bundle.total)).sum(),
        }
    }

    /// Takes `claim` on behalf of the lease. A lease that holds something already keeps that, and
    /// the answer is whether it is the same. `false`: nothing was taken.
    pub fn allocate(&mut self, lease: LeaseId, claim: &Claim) -> bool {
        if let Some(held) = self.allocations.get(&lease) {
            return held.resources == claim.resources && held.pool == claim.pool;
        }
        if !self.fits(claim) {
            return false;
        }
        let bundle = self.bundle_for(claim);
        if let Some(bundle) = bundle.and_then(|id| self.bundles.get_mut(&id)) {
            bundle.leases.insert(lease);
        }
        let Some(devices) = self.devices_within(bundle).allocate(claim.resources.get(GPU)) else {
            return false;
        };
        self.use_more(bundle, &claim.resources);
        let (pool, resources) = (claim.pool, claim.resources.clone());
        let allocation = Allocation { pool, bundle, resources, cpu_suspended: false, devices };
        self.allocations.insert(lease, allocation);
        true
    }

    /// Gives back all that the lease took. Returns whether it held anything.
    pub fn release(&mut self, lease: LeaseId) -> bool {
        let Some(allocation) = self.allocations.remove(&lease) else { return false };
        self.give_back(allocation.bundle, &allocation.in_use());
        self.devices_within(allocation.bundle).release(&allocation.devices);
        if let Some(bundle) = allocation.bundle.and_then(|id| self.bundles.get_mut(&id)) {
            bundle.leases.remove(&lease);
        }
        true
    }

    /// Gives back what the lease holds beyond `rest`: an actor that lives takes less than one that is
    /// placed. What `rest` asks for beyond what is held is not taken. Returns whether the lease is known.
    pub fn shrink(&mut self, lease: LeaseId, rest: &Resources) -> bool {
        let Some(mut allocation) = self.allocations.remove(&lease) else { return false };
        self.give_back(allocation.bundle, &allocation.in_use());
        let mut kept = Resources::new();
        for (name, held) in allocation.resources.iter() {
            kept.set(name, held.min(rest.get(name)));
        }
        if kept.get(GPU) != allocation.resources.get(GPU) {
            let devices = self.devices_within(allocation.bundle);
            devices.release(&allocation.devices);
            // Less than was just released always fits where that was.
            allocation.devices = devices.allocate(kept.get(GPU)).unwrap_or_default();
        }
        allocation.resources = kept;
        self.use_more(allocation.bundle, &allocation.in_use());
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
        let bundle = allocation.bundle;
        let mut cpus = Resources::new();
        cpus.set(CPU, allocation.resources.get(CPU));
        if suspended {
            self.give_back(bundle, &cpus);
        } else {
            self.use_more(bundle, &cpus);
        }
        true
    }

    fn give_back(&mut self, bundle: Option<BundleId>, resources: &Resources) {
        let used = self.used_of(bundle);
        used.subtract(resources).expect("what is given back was counted as used when it was taken");
    }

    fn use_more(&mut self, bundle: Option<BundleId>, resources: &Resources) {
        self.used_of(bundle).add(resources);
    }

    fn used_of(&mut self, bundle: Option<BundleId>) -> &mut Resources {
        match bundle {
            None => &mut self.used,
            Some(id) => &mut self.bundles.get_mut(&id).expect("a bundle outlives its leases").used,
        }
    }

    fn devices_within(&mut self, bundle: Option<BundleId>) -> &mut DeviceTable {
        match bundle {
            None => &mut self.devices,
            Some(id) => &mut self.bundles.get_mut(&id).expect("a bundle outlives its leases").devices,
        }
    }

    // Bundles.

    /// Reserves these bundles, all of them or none. Those that this attempt has reserved already stay as they are.
    ///
    /// # Errors
    /// What is missing, for people; nothing is changed then.
    pub fn reserve(
        &mut self,
        group_id: PlacementGroupId,
        attempt: u64,
        bundles: &[(u32, Resources)],
    ) -> Result<(), String> {
        let known = |index: u32| {
            let bundle = self.bundles.get(&BundleId { group_id, index });
            bundle.is_some_and(|bundle| bundle.attempt == attempt)
        };
        let new: Vec<_> = bundles.iter().filter(|(index, _)| !known(*index)).collect();
        let mut sum = Resources::new();
        new.iter().for_each(|(_, total)| sum.add(total));
        if !leaves_room(&self.total, &self.used, &sum) {
            return Err(self.shortage(&sum.into()));
        }
        if let Some((index, _)) =
            new.iter().find(|(index, _)| self.bundles.contains_key(&BundleId { group_id, index: *index }))
        {
            return Err(format!("bundle {index} was reserved here by another attempt"));
        }
        let mut devices = self.devices.clone();
        let mut reserved = Vec::with_capacity(new.len());
        for (index, total) in new {
            let Some(shares) = devices.allocate(total.get(GPU)) else {
                return Err(format!("the free {GPU} are scattered over devices"));
            };
            let (total, used, leases) = (total.clone(), Resources::new(), BTreeSet::new());
            let devices = DeviceTable::of_shares(&shares);
            let bundle = Bundle { total, used, attempt, committed: false, leases, shares, devices };
            reserved.push((BundleId { group_id, index: *index }, bundle));
        }
        self.devices = devices;
        self.used.add(&sum);
        self.bundles.extend(reserved);
        Ok(())
    }

    /// Lets leases take of the bundles that this attempt has reserved. Returns whether there are any.
    pub fn commit(&mut self, group_id: PlacementGroupId, attempt: u64) -> bool {
        let all = BundleId { group_id, index: 0 }..=BundleId { group_id, index: u32::MAX };
        let mut found = false;
        for (_, bundle) in self.bundles.range_mut(all).filter(|(_, bundle)| bundle.attempt == attempt) {
            bundle.committed = true;
            found = true;
        }
        found
    }

    /// The bundles of a group, with the attempt that reserved each and whether it is committed.
    pub fn bundles(&self, group_id: PlacementGroupId) -> Vec<(BundleId, u64, bool)> {
        let all = self.bundles_of(Pool::Group { group_id, index: None });
        all.map(|(&id, bundle)| (id, bundle.attempt, bundle.committed)).collect()
    }

    /// Whether leases may take of some bundle of this pool.
    pub fn is_here(&self, pool: Pool) -> bool {
        pool == Pool::Node || self.bundles_of(pool).any(|(_, bundle)| bundle.committed)
    }

    /// The leases that take something of a bundle.
    pub fn leases_in(&self, bundle: BundleId) -> Vec<LeaseId> {
        self.bundles.get(&bundle).map(|bundle| bundle.leases.iter().copied().collect()).unwrap_or_default()
    }

    /// Gives a bundle back. Returns whether it was there.
    ///
    /// # Panics
    /// If a lease still takes something of it.
    pub fn return_bundle(&mut self, bundle: BundleId) -> bool {
        let Some(bundle) = self.bundles.remove(&bundle) else { return false };
        assert!(bundle.leases.is_empty(), "its leases end before a bundle is given back");
        self.give_back(None, &bundle.total);
        self.devices.release(&bundle.shares);
        true
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

fn free_of(total: &Resources, used: &Resources) -> Resources {
    let mut free = Resources::new();
    for (name, amount) in total.iter() {
        free.set(name, amount.saturating_sub(used.get(name)));
    }
    free
}

fn leaves_room(total: &Resources, used: &Resources, request: &Resources) -> bool {
    request.iter().all(|(name, amount)| used.get(name).saturating_add(amount) <= total.get(name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn units(amounts: &[(&str, f64)]) -> Resources {
        Resources::from_units(amounts.iter().copied()).unwrap()
    }

    fn of_node(amounts: &[(&str, f64)]) -> Claim {
        units(amounts).into()
    }

    fn lease(number: u8) -> LeaseId {
        LeaseId::from_bytes([number; 16])
    }

    #[test]
    fn what_does_not_fit_is_refused_whole() {
        let mut manager = ResourceManager::new(units(&[("CPU", 2.0), ("gizmo", 1.0)]));
        assert!(!manager.allocate(lease(1), &of_node(&[("CPU", 1.0), ("gizmo", 2.0)])));
        assert_eq!(manager.available(), *manager.total());
        assert!(manager.allocate(lease(1), &of_node(&[("CPU", 2.0)])));
        assert!(!manager.allocate(lease(2), &of_node(&[("CPU", 0.1)])));
        assert!(manager.release(lease(1)));
        assert!(!manager.release(lease(1)));
        assert_eq!(manager.available(), *manager.total());
    }

    #[test]
    fn allocating_twice_for_a_lease_takes_once() {
        let mut manager = ResourceManager::new(units(&[("CPU", 2.0)]));
        assert!(manager.allocate(lease(1), &of_node(&[("CPU", 1.0)])));
        assert!(manager.allocate(lease(1), &of_node(&[("CPU", 1.0)])));
        assert!(!manager.allocate(lease(1), &of_node(&[("CPU", 2.0)])));
        assert_eq!(manager.available(), units(&[("CPU", 1.0)]));
    }

    #[test]
    fn a_waiting_lease_gives_back_only_cpus_and_takes_them_again_beyond_the_total() {
        let mut manager = ResourceManager::new(units(&[("CPU", 1.0), ("GPU", 1.0)]));
        assert!(manager.allocate(lease(1), &of_node(&[("CPU", 1.0), ("GPU", 1.0)])));
        assert!(manager.suspend_cpu(lease(1)));
        assert!(!manager.suspend_cpu(lease(1)));
        assert_eq!(manager.available(), units(&[("CPU", 1.0)]));
        assert!(manager.allocate(lease(2), &of_node(&[("CPU", 1.0)])));
        assert!(manager.resume_cpu(lease(1)));
        assert_eq!(manager.utilisation()["CPU"], 2.0);
        assert!(manager.release(lease(2)));
        assert!(manager.available().is_empty());
        assert!(!manager.fits(&of_node(&[("CPU", 0.0001)])));
        assert!(manager.release(lease(1)));
        assert_eq!(manager.available(), *manager.total());
    }

    #[test]
    fn a_placed_actor_keeps_only_what_it_needs_to_live() {
        let mut manager = ResourceManager::new(units(&[("CPU", 2.0)]));
        assert!(manager.allocate(lease(1), &of_node(&[("CPU", 1.0)])));
        assert!(manager.shrink(lease(1), &Resources::new()));
        assert_eq!(manager.available(), units(&[("CPU", 2.0)]));
        assert!(manager.release(lease(1)));
    }

    #[test]
    fn what_no_node_has_is_infeasible_and_nothing_always_fits() {
        let manager = ResourceManager::new(units(&[("CPU", 1.0)]));
        assert!(manager.infeasible(&of_node(&[("gizmo", 0.5)])).is_some());
        assert!(manager.fits(&Claim::default()));
    }

    const GROUP: PlacementGroupId = PlacementGroupId::from_bytes([9; 16]);

    fn of_group(index: Option<u32>, amounts: &[(&str, f64)]) -> Claim {
        Claim { pool: Pool::Group { group_id: GROUP, index }, resources: units(amounts) }
    }

    fn bundle(index: u32) -> BundleId {
        BundleId { group_id: GROUP, index }
    }

    #[test]
    fn bundles_are_taken_out_of_the_node_all_or_none_and_used_once_they_are_committed() {
        let mut manager = ResourceManager::new(units(&[("CPU", 3.0)]));
        let two = [(0, units(&[("CPU", 1.0)])), (1, units(&[("CPU", 1.0)]))];
        let missing = manager.reserve(GROUP, 1, &[(0, units(&[("CPU", 4.0)]))]).unwrap_err();
        assert_eq!(missing, "4 of \"CPU\" asked, 3 free");
        assert_eq!(manager.reserve(GROUP, 1, &two), Ok(()));
        assert_eq!(manager.reserve(GROUP, 1, &two), Ok(()));
        assert!(manager.reserve(GROUP, 2, &two[..1]).is_err());
        assert_eq!(manager.available(), units(&[("CPU", 1.0)]));
        let one = of_group(None, &[("CPU", 1.0)]);
        assert!(!manager.fits(&one));
        assert!(!manager.commit(GROUP, 2));
        assert!(manager.commit(GROUP, 1));
        assert!(manager.allocate(lease(1), &one) && manager.allocate(lease(2), &one));
        assert!(!manager.allocate(lease(3), &one));
        assert_eq!(manager.available(), units(&[("CPU", 1.0)]), "what is in a bundle is taken already");
        assert_eq!(
            manager.shortage(&of_group(Some(1), &[("CPU", 1.0)])),
            format!("in bundle 1 of placement group {GROUP}: 1 of \"CPU\" asked, 0 free")
        );
        assert!(manager.infeasible(&of_group(None, &[("CPU", 2.0)])).is_some());
        assert_eq!(manager.capacity(&of_group(None, &[("CPU", 0.5)])), Some(4));
        assert_eq!(manager.leases_in(bundle(0)), [lease(1)]);
        assert!(manager.release(lease(1)) && manager.release(lease(2)));
        assert!(manager.return_bundle(bundle(0)) && manager.return_bundle(bundle(1)));
        assert!(!manager.return_bundle(bundle(0)));
        assert_eq!(manager.available(), *manager.total());
    }

    #[test]
    fn a_waiting_lease_gives_its_cpus_back_to_its_bundle() {
        let mut manager = ResourceManager::new(units(&[("CPU", 1.0)]));
        manager.reserve(GROUP, 1, &[(0, units(&[("CPU", 1.0)]))]).unwrap();
        manager.commit(GROUP, 1);
        let one = of_group(Some(0), &[("CPU", 1.0)]);
        assert!(manager.allocate(lease(1), &one));
        assert!(manager.suspend_cpu(lease(1)));
        assert!(manager.available().is_empty(), "they are the bundle's");
        assert!(manager.allocate(lease(2), &one));
        assert!(manager.resume_cpu(lease(1)));
        assert!(manager.release(lease(2)));
        assert!(!manager.fits(&one));
        assert!(manager.release(lease(1)));
        assert!(manager.return_bundle(bundle(0)));
        assert_eq!(manager.available(), *manager.total());
    }

    #[test]
    fn a_lease_knows_its_devices_and_scattered_ones_do_not_fit() {
        let mut manager = ResourceManager::new(units(&[("GPU", 2.0)]));
        assert!(manager.allocate(lease(1), &of_node(&[("GPU", 0.6)])));
        assert!(manager.allocate(lease(2), &of_node(&[("GPU", 0.6)])));
        assert_eq!((manager.devices_of(lease(1)), manager.devices_of(lease(2))), (vec![0], vec![1]));
        assert!(!manager.allocate(lease(3), &of_node(&[("GPU", 0.8)])));
        assert!(manager.shortage(&of_node(&[("GPU", 0.8)])).contains("scattered"));
        assert!(manager.release(lease(1)));
        assert!(manager.allocate(lease(3), &of_node(&[("GPU", 1.0)])));
        assert_eq!(manager.devices_of(lease(3)), [0]);
        assert!(manager.shrink(lease(2), &units(&[("GPU", 0.1)])));
        assert_eq!(manager.devices_of(lease(2)), [1]);
        assert_eq!(manager.devices_of(lease(9)), [0u32; 0]);
    }

    #[test]
    fn a_bundle_has_devices_of_its_own() {
        let mut manager = ResourceManager::new(units(&[("GPU", 3.0)]));
        let two = [(0, units(&[("GPU", 1.0)])), (1, units(&[("GPU", 0.5)]))];
        manager.reserve(GROUP, 1, &two).unwrap();
        manager.commit(GROUP, 1);
        assert!(manager.allocate(lease(1), &of_node(&[("GPU", 1.0)])));
        assert!(!manager.fits(&of_node(&[("GPU", 1.0)])));
        assert!(manager.allocate(lease(2), &of_group(None, &[("GPU", 1.0)])));
        assert!(manager.allocate(lease(3), &of_group(Some(1), &[("GPU", 0.3)])));
        let devices = [1, 2, 3].map(|id| manager.devices_of(lease(id)));
        assert_eq!(devices, [vec![2], vec![0], vec![1]]);
        assert!(manager.allocate(lease(4), &of_node(&[("GPU", 0.5)])));
        assert_eq!(manager.devices_of(lease(4)), [1]);
        assert!(manager.reserve(GROUP, 1, &[(2, units(&[("GPU", 0.1)]))]).is_err());
        for id in 1..=4 {
            manager.release(lease(id));
        }
        assert!(manager.return_bundle(bundle(0)) && manager.return_bundle(bundle(1)));
        assert!(manager.fits(&of_node(&[("GPU", 3.0)])));
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// Of the node, of bundle 0 or 1, or of any.
        Allocate(u8, u64, u64, u8),
        Release(u8),
        Suspend(u8),
        Resume(u8),
        Shrink(u8, u64),
        Reserve(u32, u64),
        Commit,
        ReturnBundle(u32),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let id = 0u8..6;
        prop_oneof![
            3 => (id.clone(), 0u64..30_000, 0u64..3, 0u8..4)
                .prop_map(|(id, cpu, other, pool)| Step::Allocate(id, cpu, other, pool)),
            1 => id.clone().prop_map(Step::Release),
            1 => id.clone().prop_map(Step::Suspend),
            1 => id.clone().prop_map(Step::Resume),
            1 => (id, 0u64..30_000).prop_map(|(id, cpu)| Step::Shrink(id, cpu)),
            1 => (0u32..2, 0u64..30_000).prop_map(|(index, cpu)| Step::Reserve(index, cpu)),
            1 => Just(Step::Commit),
            1 => (0u32..2).prop_map(Step::ReturnBundle),
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
                    Step::Allocate(id, cpu, other, pool) => {
                        let mut request = Resources::new();
                        request.set(CPU, Amount::from_raw(cpu));
                        request.set("gizmo", Amount::from_raw(other));
                        let pool = match pool {
                            0 | 1 => Pool::Group { group_id: GROUP, index: Some(u32::from(pool)) },
                            2 => Pool::Group { group_id: GROUP, index: None },
                            _ => Pool::Node,
                        };
                        let claim = Claim { pool, resources: request.clone() };
                        let fits = manager.fits(&claim);
                        prop_assert_eq!(fits, manager.shortage(&claim).is_empty());
                        prop_assert!(!fits || manager.infeasible(&claim).is_none());
                        let held = manager.allocations.get(&lease(id)).cloned();
                        let taken = manager.allocate(lease(id), &claim);
                        let same = |held: Allocation| held.resources == request && held.pool == pool;
                        prop_assert_eq!(taken, held.map_or(fits, same));
                    }
                    Step::Release(id) => { manager.release(lease(id)); }
                    Step::Suspend(id) => { manager.suspend_cpu(lease(id)); }
                    Step::Resume(id) => { manager.resume_cpu(lease(id)); }
                    Step::Shrink(id, cpu) => {
                        let mut rest = Resources::new();
                        rest.set(CPU, Amount::from_raw(cpu));
                        manager.shrink(lease(id), &rest);
                    }
                    Step::Reserve(index, cpu) => {
                        let mut amount = Resources::new();
                        amount.set(CPU, Amount::from_raw(cpu));
                        let _ = manager.reserve(GROUP, 1, &[(index, amount)]);
                    }
                    Step::Commit => { manager.commit(GROUP, 1); }
                    Step::ReturnBundle(index) => {
                        for inside in manager.leases_in(bundle(index)) {
                            manager.release(inside);
                        }
                        manager.return_bundle(bundle(index));
                    }
                }
                let sum_of = |within: Option<BundleId>| {
                    let mut used = Resources::new();
                    let held = manager.allocations.values().filter(|held| held.bundle == within);
                    held.for_each(|allocation| used.add(&allocation.in_use()));
                    used
                };
                let mut used = sum_of(None);
                for (id, bundle) in &manager.bundles {
                    used.add(&bundle.total);
                    prop_assert_eq!(&sum_of(Some(*id)), &bundle.used);
                }
                prop_assert_eq!(&used, &manager.used);
                prop_assert!(used.get("gizmo") <= total.get("gizmo"), "only CPUs are oversubscribed");
            }
            for id in 0..6 {
                manager.release(lease(id));
            }
            manager.return_bundle(bundle(0));
            manager.return_bundle(bundle(1));
            prop_assert_eq!(manager.available(), total);
            prop_assert_eq!(manager.allocations(), 0);
        }
    }
}
