//! Which of a node's graphics processors are whose, so that each task is told which ones to use.
//!
//! A request for whole devices gets devices that nobody else uses. The fraction of a request shares one
//! device with others: the fullest on which it fits, so that whole ones stay free for those who need them.
//! So a request may not fit although the sum of what is free suffices.

use ray_core::resource::Amount;

/// A part of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Number of the device, from 0.
    pub device: u32,
    /// How much of it.
    pub amount: Amount,
}

/// What is free of each device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceTable {
    free: Vec<Amount>,
}

impl DeviceTable {
    /// As many devices as `total` says, all free; the last one is only a part of one if that is not whole.
    pub fn new(total: Amount) -> Self {
        let whole = usize::try_from(total.to_raw() / Amount::SCALE).unwrap_or(usize::MAX).min(MAX_DEVICES);
        let mut free = vec![Amount::ONE; whole];
        let rest = Amount::from_raw(total.to_raw() % Amount::SCALE);
        if !rest.is_zero() {
            free.push(rest);
        }
        Self { free }
    }

    /// Of these devices only what these shares say, all free.
    pub fn of_shares(shares: &[Share]) -> Self {
        let len = shares.iter().map(|share| share.device as usize + 1).max().unwrap_or(0);
        let mut table = Self { free: vec![Amount::ZERO; len] };
        table.release(shares);
        table
    }

    /// Whether `amount` could be taken now.
    pub fn fits(&self, amount: Amount) -> bool {
        self.choose(amount).is_some()
    }

    /// Takes `amount`. `None`: nothing was taken, for it does not fit.
    pub fn allocate(&mut self, amount: Amount) -> Option<Vec<Share>> {
        let shares = self.choose(amount)?;
        for share in &shares {
            let free = &mut self.free[share.device as usize];
            *free = free.saturating_sub(share.amount);
        }
        Some(shares)
    }

    /// Gives back what was taken.
    pub fn release(&mut self, shares: &[Share]) {
        for share in shares {
            let free = &mut self.free[share.device as usize];
            *free = free.saturating_add(share.amount);
        }
    }

    fn choose(&self, amount: Amount) -> Option<Vec<Share>> {
        if amount.is_zero() {
            return Some(Vec::new());
        }
        let whole = usize::try_from(amount.to_raw() / Amount::SCALE).ok()?;
        let rest = Amount::from_raw(amount.to_raw() % Amount::SCALE);
        if whole > self.free.len() {
            return None;
        }
        let untouched = (0u32..).zip(&self.free).filter(|&(_, &free)| free == Amount::ONE);
        let mut shares: Vec<_> =
            untouched.take(whole).map(|(device, &amount)| Share { device, amount }).collect();
        if shares.len() < whole {
            return None;
        }
        if !rest.is_zero() {
            let others = (0u32..).zip(&self.free).filter(|&(device, &free)| {
                free >= rest && !shares.iter().any(|share: &Share| share.device == device)
            });
            let (device, _) = others.min_by_key(|&(device, &free)| (free, device))?;
            shares.push(Share { device, amount: rest });
        }
        Some(shares)
    }
}

/// More devices than this are counted, but not told apart: no machine has them.
const MAX_DEVICES: usize = 65_536;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn amount(units: f64) -> Amount {
        Amount::from_f64(units).unwrap()
    }

    fn devices(shares: &[Share]) -> Vec<u32> {
        shares.iter().map(|share| share.device).collect()
    }

    #[test]
    fn whole_devices_are_nobody_elses() {
        let mut table = DeviceTable::new(amount(3.0));
        assert_eq!(devices(&table.allocate(amount(2.0)).unwrap()), [0, 1]);
        assert_eq!(devices(&table.allocate(amount(1.0)).unwrap()), [2]);
        assert_eq!(table.allocate(amount(0.0001)), None);
    }

    #[test]
    fn fractions_share_the_fullest_device_that_has_room() {
        let mut table = DeviceTable::new(amount(2.0));
        assert_eq!(devices(&table.allocate(amount(0.4)).unwrap()), [0]);
        assert_eq!(devices(&table.allocate(amount(0.4)).unwrap()), [0]);
        assert_eq!(devices(&table.allocate(amount(0.4)).unwrap()), [1]);
        assert_eq!(devices(&table.allocate(amount(0.2)).unwrap()), [0]);
    }

    #[test]
    fn what_is_scattered_over_devices_is_not_enough() {
        let mut table = DeviceTable::new(amount(2.0));
        let first = table.allocate(amount(0.6)).unwrap();
        table.allocate(amount(0.6)).unwrap();
        assert!(!table.fits(amount(0.5)));
        assert!(!table.fits(amount(1.0)));
        table.release(&first);
        assert_eq!(devices(&table.allocate(amount(1.0)).unwrap()), [0]);
    }

    #[test]
    fn the_part_of_a_device_is_never_a_whole_one() {
        let mut table = DeviceTable::new(amount(1.5));
        assert_eq!(devices(&table.allocate(amount(0.5)).unwrap()), [1]);
        assert_eq!(devices(&table.allocate(amount(1.0)).unwrap()), [0]);
    }

    proptest! {
        #[test]
        fn no_device_is_given_out_beyond_what_it_is(
            total in 0u64..50_000,
            steps in prop::collection::vec((0usize..6, 0u64..25_000), 0..80),
        ) {
            let fresh = DeviceTable::new(Amount::from_raw(total));
            let mut table = fresh.clone();
            let mut held: BTreeMap<usize, Vec<Share>> = BTreeMap::new();
            for (holder, raw) in steps {
                if let Some(shares) = held.remove(&holder) {
                    table.release(&shares);
                } else {
                    let request = Amount::from_raw(raw);
                    let fits = table.fits(request);
                    let shares = table.allocate(request);
                    prop_assert_eq!(shares.is_some(), fits);
                    if let Some(shares) = shares {
                        let sum: u64 = shares.iter().map(|share| share.amount.to_raw()).sum();
                        prop_assert_eq!(sum, raw);
                        held.insert(holder, shares);
                    }
                }
                for (device, &capacity) in (0u32..).zip(&fresh.free) {
                    let of_device: Vec<_> =
                        held.values().flatten().filter(|share| share.device == device).collect();
                    let taken: u64 = of_device.iter().map(|share| share.amount.to_raw()).sum();
                    prop_assert_eq!(taken + table.free[device as usize].to_raw(), capacity.to_raw());
                    let whole = of_device.iter().any(|share| share.amount == Amount::ONE);
                    prop_assert!(!whole || of_device.len() == 1, "a whole device is shared");
                }
            }
            held.values().for_each(|shares| table.release(shares));
            prop_assert_eq!(table.free, fresh.free);
        }
    }
}
