//! Why a request for resources is not granted, in words for people.
//!
//! Pure: it looks at what the scheduling machines of the node know, and decides nothing.

use std::collections::BTreeMap;

use ray_core::resource::{Amount, Resources};

/// How far a runtime environment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment<'a> {
    /// Processes can have it, or none is needed.
    Ready,
    /// It is being set up.
    BeingSetUp,
    /// It could not be set up, for this reason.
    Failed(&'a str),
}

/// What a request waits behind.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// What it asks for.
    pub shape: &'a Resources,
    /// What the node has.
    pub total: &'a Resources,
    /// What of it is free.
    pub available: &'a Resources,
    /// Who took what, by a name for people.
    pub taken: &'a BTreeMap<&'static str, Resources>,
    /// How far the runtime environment is that its processes need.
    pub environment: Environment<'a>,
    /// How many requests of the same kind have their resources and wait for a worker process.
    pub starting: usize,
    /// How many wait for resources.
    pub queued: usize,
}

/// Why the request waits; empty if it does not.
pub fn explain(situation: &Situation<'_>) -> String {
    let Situation { shape, total, available, .. } = situation;
    let missing: Vec<_> = total.shortfall(shape).map(|(name, _, there)| beyond_total(name, there)).collect();
    if !missing.is_empty() {
        return format!("they need {}, and {}", braces(shape), missing.join(" and "));
    }
    match situation.environment {
        Environment::Ready => {}
        Environment::BeingSetUp => return "their runtime environment is being set up".to_owned(),
        Environment::Failed(reason) => {
            return format!("their runtime environment cannot be set up: {reason}");
        }
    }
    if situation.queued > 0 {
        let short: Vec<_> = available.shortfall(shape).collect();
        if short.is_empty() {
            return format!("they need {} and stand in line behind others", braces(shape));
        }
        let taken = short.into_iter().map(|(name, _, free)| taken(situation, name, free));
        let taken: Vec<_> = taken.collect();
        return format!("they need {}, and {}", braces(shape), taken.join(" and "));
    }
    if situation.starting > 0 {
        return "a worker process is being started for them".to_owned();
    }
    String::new()
}

fn beyond_total(name: &str, there: Amount) -> String {
    if there == Amount::ZERO {
        format!("no node has any {name:?}")
    } else {
        format!("the node has only {there} {name:?}")
    }
}

fn taken(situation: &Situation<'_>, name: &str, free: Amount) -> String {
    let total = situation.total.get(name);
    let by = situation.taken.iter().filter_map(|(holder, resources)| {
        let amount = resources.get(name);
        (amount != Amount::ZERO).then(|| format!("{amount} by {holder}"))
    });
    let by: Vec<_> = by.collect();
    let by = if by.is_empty() { String::new() } else { format!(" (taken: {})", by.join(", ")) };
    format!("of {total} {name:?} {free} are free{by}")
}

/// As `{"CPU": 1, "gizmo": 0.5}`.
fn braces(resources: &Resources) -> String {
    let amounts: Vec<_> = resources.iter().map(|(name, amount)| format!("{name:?}: {amount}")).collect();
    format!("{{{}}}", amounts.join(", "))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn amounts(pairs: &[(&str, f64)]) -> Resources {
        Resources::from_units(pairs.iter().copied()).unwrap()
    }

    #[test]
    fn each_cause_is_told_from_the_others() {
        let total = amounts(&[("CPU", 4.0), ("gizmo", 1.0)]);
        let available = amounts(&[("CPU", 1.0), ("gizmo", 1.0)]);
        let taken =
            BTreeMap::from([("actors", amounts(&[("CPU", 2.0)])), ("tasks", amounts(&[("CPU", 1.0)]))]);
        let explain_in = |shape: &Resources, environment, starting, queued| {
            let (total, available, taken) = (&total, &available, &taken);
            explain(&Situation { shape, total, available, taken, environment, starting, queued })
        };
        let explain =
            |shape: &Resources, starting, queued| explain_in(shape, Environment::Ready, starting, queued);
        assert_eq!(
            explain(&amounts(&[("GPU", 1.0)]), 0, 0),
            "they need {\"GPU\": 1}, and no node has any \"GPU\""
        );
        assert_eq!(
            explain(&amounts(&[("CPU", 5.0), ("gizmo", 1.0)]), 0, 0),
            "they need {\"CPU\": 5, \"gizmo\": 1}, and the node has only 4 \"CPU\""
        );
        assert_eq!(
            explain(&amounts(&[("CPU", 2.0)]), 0, 1),
            "they need {\"CPU\": 2}, and of 4 \"CPU\" 1 are free (taken: 2 by actors, 1 by tasks)"
        );
        assert_eq!(
            explain(&amounts(&[("CPU", 1.0)]), 0, 1),
            "they need {\"CPU\": 1} and stand in line behind others"
        );
        assert_eq!(explain(&amounts(&[("CPU", 1.0)]), 1, 0), "a worker process is being started for them");
        assert_eq!(explain(&amounts(&[("CPU", 1.0)]), 0, 0), "");
        let one = amounts(&[("CPU", 1.0)]);
        assert_eq!(
            explain_in(&one, Environment::BeingSetUp, 0, 0),
            "their runtime environment is being set up"
        );
        assert_eq!(
            explain_in(&one, Environment::Failed("no such package"), 0, 0),
            "their runtime environment cannot be set up: no such package"
        );
    }

    proptest! {
        #[test]
        fn whoever_waits_gets_a_reason(
            asked in 1u32..6, total in 0u32..6, used in 0u32..6, starting in 0usize..3, queued in 0usize..3,
        ) {
            let amount = |count: u32| amounts(&[("CPU", f64::from(count))]);
            let (shape, total, available) = (amount(asked), amount(total), amount(total.saturating_sub(used)));
            let taken = BTreeMap::new();
            let situation = Situation {
                shape: &shape, total: &total, available: &available, taken: &taken,
                environment: Environment::Ready, starting, queued,
            };
            let waits = starting + queued > 0 || !total.can_satisfy(&shape);
            prop_assert_eq!(explain(&situation).is_empty(), !waits);
        }
    }
}
