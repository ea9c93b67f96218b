//! Amounts of resources, exact under any order of taking and giving back.
//!
//! An [`Amount`] counts ten-thousandths of a unit, as Ray does, so that 0.1 taken ten times and given
//! back leaves what was there. Floating point enters and leaves at the border only.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Name of the resource that counts processors.
pub const CPU: &str = "CPU";
/// Name of the resource that counts graphics processors.
pub const GPU: &str = "GPU";
/// Name of the resource that counts bytes of heap memory.
pub const MEMORY: &str = "memory";
/// Name of the resource that counts bytes of object store memory.
pub const OBJECT_STORE_MEMORY: &str = "object_store_memory";

/// Why an amount or a change of amounts is refused.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ResourceError {
    /// The amount is negative, infinite, not a number, or too large.
    #[error("the amount of {name:?} has to be a finite number from 0 to {max}, got {amount}", max = Amount::MAX.to_f64())]
    InvalidAmount {
        /// The resource's name.
        name: String,
        /// The refused amount.
        amount: f64,
    },
    /// A resource needs a name.
    #[error("a resource needs a name")]
    EmptyName,
    /// More is asked than there is.
    #[error("{requested} of {name:?} requested, but only {available} there")]
    Insufficient {
        /// The resource's name.
        name: String,
        /// What was asked.
        requested: Amount,
        /// What is there.
        available: Amount,
    },
}

/// A non-negative amount of one resource in ten-thousandths of its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "u64")]
pub struct Amount(u64);

impl Amount {
    /// Ten-thousandths in one unit.
    pub const SCALE: u64 = 10_000;
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// One unit.
    pub const ONE: Self = Self(Self::SCALE);
    /// The largest amount: 2^63 ten-thousandths, about 920 TB when it counts bytes.
    pub const MAX: Self = Self(1 << 63);

    /// The amount of this many ten-thousandths.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// How many ten-thousandths this is.
    pub const fn to_raw(self) -> u64 {
        self.0
    }

    /// The amount closest to `units`, or `None` if that is negative, not finite or too large.
    /// What is above zero never becomes zero.
    pub fn from_f64(units: f64) -> Option<Self> {
        if !units.is_finite() || units < 0.0 {
            return None;
        }
        let raw = (units * Self::SCALE as f64).round();
        if raw > Self::MAX.0 as f64 {
            return None;
        }
        let raw = raw as u64;
        Some(Self(if units > 0.0 { raw.max(1) } else { raw }))
    }

    /// This amount in units.
    pub fn to_f64(self) -> f64 {
        self.0 as f64 / Self::SCALE as f64
    }

    /// Whether this is nothing.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// This and `other` together, at most [`Self::MAX`].
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        let sum = self.0.saturating_add(other.0);
        if sum > Self::MAX.0 { Self::MAX } else { Self(sum) }
    }

    /// This without `other`, or `None` if that is more.
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }

    /// This without `other`, at least nothing.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl TryFrom<u64> for Amount {
    type Error = &'static str;

    /// The amount that another process sent.
    fn try_from(raw: u64) -> Result<Self, Self::Error> {
        if raw > Self::MAX.0 { Err("an amount is too large") } else { Ok(Self(raw)) }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to_f64())
    }
}

/// Amounts by name: what a node has, what is free, or what a task asks for.
///
/// A resource that is absent is there in the amount zero; both are equal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "Received")]
pub struct Resources {
    cpu: Amount,
    gpu: Amount,
    memory: Amount,
    object_store_memory: Amount,
    /// Neither any of the above nor zero.
    custom: BTreeMap<String, Amount>,
}

/// [`Resources`] that another process sent.
#[derive(Deserialize)]
struct Received {
    cpu: Amount,
    gpu: Amount,
    memory: Amount,
    object_store_memory: Amount,
    custom: BTreeMap<String, Amount>,
}

impl TryFrom<Received> for Resources {
    type Error = &'static str;

    /// A standard resource among the others would be taken once and given back twice.
    fn try_from(received: Received) -> Result<Self, Self::Error> {
        let Received { cpu, gpu, memory, object_store_memory, custom } = received;
        let reserved = ["", CPU, GPU, MEMORY, OBJECT_STORE_MEMORY];
        if custom.iter().any(|(name, amount)| amount.is_zero() || reserved.contains(&name.as_str())) {
            return Err("a custom resource has the name of a standard one, or no name, or no amount");
        }
        Ok(Self { cpu, gpu, memory, object_store_memory, custom })
    }
}

impl Resources {
    /// Nothing of anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// These amounts in units by name; a name given twice counts twice.
    ///
    /// # Errors
    /// If an amount is negative or not finite, or a name is empty.
    pub fn from_units<N: AsRef<str>>(
        amounts: impl IntoIterator<Item = (N, f64)>,
    ) -> Result<Self, ResourceError> {
        let mut resources = Self::new();
        for (name, units) in amounts {
            let name = name.as_ref();
            let amount = parse_amount(name, units)?;
            let sum = resources.get(name).saturating_add(amount);
            resources.set(name, sum);
        }
        Ok(resources)
    }

    /// This with `units` processors. Builder form of [`Resources::set`].
    ///
    /// # Errors
    /// If the amount is negative or not finite.
    pub fn with_cpu(self, units: f64) -> Result<Self, ResourceError> {
        self.with(CPU, units)
    }

    /// This with `units` of the resource `name`.
    ///
    /// # Errors
    /// If the amount is negative or not finite, or the name is empty.
    pub fn with(mut self, name: &str, units: f64) -> Result<Self, ResourceError> {
        let amount = parse_amount(name, units)?;
        self.set(name, amount);
        Ok(self)
    }

    /// The amount of `name`.
    pub fn get(&self, name: &str) -> Amount {
        match name {
            CPU => self.cpu,
            GPU => self.gpu,
            MEMORY => self.memory,
            OBJECT_STORE_MEMORY => self.object_store_memory,
            custom => self.custom.get(custom).copied().unwrap_or_default(),
        }
    }

    /// Makes the amount of `name` this one.
    pub fn set(&mut self, name: &str, amount: Amount) {
        match name {
            CPU => self.cpu = amount,
            GPU => self.gpu = amount,
            MEMORY => self.memory = amount,
            OBJECT_STORE_MEMORY => self.object_store_memory = amount,
            custom if amount.is_zero() => drop(self.custom.remove(custom)),
            custom => drop(self.custom.insert(custom.to_owned(), amount)),
        }
    }

    /// What is there in an amount above zero, standard resources first, then by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Amount)> {
        [
            (CPU, self.cpu),
            (GPU, self.gpu),
            (MEMORY, self.memory),
            (OBJECT_STORE_MEMORY, self.object_store_memory),
        ]
        .into_iter()
        .chain(self.custom.iter().map(|(name, &amount)| (name.as_str(), amount)))
        .filter(|(_, amount)| !amount.is_zero())
    }

    /// Whether nothing is there.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Whether `request` can be taken from this.
    pub fn can_satisfy(&self, request: &Self) -> bool {
        self.cpu >= request.cpu
            && self.gpu >= request.gpu
            && self.memory >= request.memory
            && self.object_store_memory >= request.object_store_memory
            && request.custom.iter().all(|(name, &amount)| self.get(name) >= amount)
    }

    /// Takes `request` out of this, all of it or, on an error, nothing.
    ///
    /// # Errors
    /// [`ResourceError::Insufficient`] names the first resource of which too little is there.
    pub fn subtract(&mut self, request: &Self) -> Result<(), ResourceError> {
        if let Some((name, requested)) = request.iter().find(|&(name, amount)| self.get(name) < amount) {
            return Err(ResourceError::Insufficient {
                name: name.to_owned(),
                requested,
                available: self.get(name),
            });
        }
        for (name, amount) in request.iter() {
            let rest = self.get(name).saturating_sub(amount);
            self.set(name, rest);
        }
        Ok(())
    }

    /// Adds all of `other` to this.
    pub fn add(&mut self, other: &Self) {
        for (name, amount) in other.iter() {
            let sum = self.get(name).saturating_add(amount);
            self.set(name, sum);
        }
    }

    /// What `request` asks for beyond what is here: name, asked, there.
    pub fn shortfall<'a>(&'a self, request: &'a Self) -> impl Iterator<Item = (&'a str, Amount, Amount)> {
        request
            .iter()
            .map(|(name, amount)| (name, amount, self.get(name)))
            .filter(|(_, requested, available)| requested > available)
    }

    /// The amounts in units, by name.
    pub fn to_units(&self) -> BTreeMap<String, f64> {
        self.iter().map(|(name, amount)| (name.to_owned(), amount.to_f64())).collect()
    }
}

impl fmt::Display for Resources {
    /// As `{CPU: 1, custom: 0.5}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (at, (name, amount)) in self.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{name}: {amount}")?;
        }
        f.write_str("}")
    }
}

fn parse_amount(name: &str, units: f64) -> Result<Amount, ResourceError> {
    if name.is_empty() {
        return Err(ResourceError::EmptyName);
    }
    Amount::from_f64(units)
        .ok_or_else(|| ResourceError::InvalidAmount { name: name.to_owned(), amount: units })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::serialize;

    #[test]
    fn a_tenth_taken_ten_times_leaves_nothing_and_comes_back_whole() {
        let whole = Resources::new().with_cpu(1.0).unwrap();
        let tenth = Resources::new().with_cpu(0.1).unwrap();
        let mut free = whole.clone();
        for _ in 0..10 {
            free.subtract(&tenth).unwrap();
        }
        assert!(free.is_empty());
        assert!(free.subtract(&tenth).is_err());
        for _ in 0..10 {
            free.add(&tenth);
        }
        assert_eq!(free, whole);
    }

    #[test]
    fn negative_and_undefined_amounts_are_refused_by_name() {
        for bad in [-1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300] {
            let error = Resources::new().with("gizmo", bad).unwrap_err();
            assert!(error.to_string().contains("gizmo"), "{error}");
        }
        assert_eq!(Resources::new().with("", 1.0), Err(ResourceError::EmptyName));
    }

    #[test]
    fn what_is_above_zero_stays_above_zero() {
        assert_eq!(Amount::from_f64(1e-9), Some(Amount::from_raw(1)));
        assert_eq!(Amount::from_f64(0.0), Some(Amount::ZERO));
    }

    #[test]
    fn amounts_stay_below_the_largest() {
        assert_eq!(Amount::MAX.saturating_add(Amount::ONE), Amount::MAX);
        assert_eq!(Amount::try_from(Amount::MAX.to_raw()), Ok(Amount::MAX));
        assert!(Amount::try_from(Amount::MAX.to_raw() + 1).is_err());
    }

    /// Four processors among the custom resources came on top of those that the node had.
    #[test]
    fn what_no_program_makes_is_not_received() {
        let send = |cpu: u64, name: &str, amount: u64| {
            let sent = (cpu, 0_u64, 0_u64, 0_u64, BTreeMap::from([(name, amount)]));
            serialize::from_bytes::<Resources>(&serialize::to_bytes(&sent).unwrap())
        };
        let expected = Resources::new().with_cpu(1.0).unwrap().with("gizmo", 2.0).unwrap();
        assert_eq!(send(10_000, "gizmo", 20_000).unwrap(), expected);
        for (name, amount) in [("CPU", 40_000), ("memory", 1), ("", 1), ("gizmo", 0)] {
            assert!(send(10_000, name, amount).is_err(), "{name:?}");
        }
        assert!(send(u64::MAX, "gizmo", 1).is_err());
        assert!(send(1, "gizmo", u64::MAX).is_err());
    }

    #[test]
    fn a_failed_subtraction_takes_nothing() {
        let mut free = Resources::from_units([("CPU", 2.0), ("gizmo", 1.0)]).unwrap();
        let before = free.clone();
        let error = free.subtract(&Resources::from_units([("CPU", 1.0), ("gizmo", 2.0)]).unwrap());
        assert_eq!(error.unwrap_err().to_string(), "2 of \"gizmo\" requested, but only 1 there");
        assert_eq!(free, before);
    }

    #[test]
    fn it_prints_what_is_there() {
        let resources = Resources::from_units([("gizmo", 0.5), ("CPU", 1.0), ("GPU", 0.0)]).unwrap();
        assert_eq!(resources.to_string(), "{CPU: 1, gizmo: 0.5}");
    }

    fn any_resources() -> impl Strategy<Value = Resources> {
        let name = prop::sample::select(vec!["CPU", "GPU", "memory", "object_store_memory", "a", "b"]);
        prop::collection::vec((name, 0u64..100_000), 0..6).prop_map(|amounts| {
            let mut resources = Resources::new();
            for (name, raw) in amounts {
                resources.set(name, Amount::from_raw(raw));
            }
            resources
        })
    }

    proptest! {
        #[test]
        fn taking_and_giving_back_changes_nothing(
            whole in any_resources(),
            requests in prop::collection::vec(any_resources(), 0..20),
        ) {
            let mut free = whole.clone();
            let mut taken = Vec::new();
            for request in requests {
                let before = free.clone();
                let fits = free.can_satisfy(&request);
                prop_assert_eq!(fits, free.subtract(&request).is_ok());
                prop_assert_eq!(fits, before.shortfall(&request).next().is_none());
                if fits { taken.push(request) } else { prop_assert_eq!(&free, &before) }
            }
            for request in taken.into_iter().rev() {
                free.add(&request);
            }
            prop_assert_eq!(free, whole);
        }
    }
}
