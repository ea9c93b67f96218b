//! What a core worker and its node say to each other: what is read is written to what reads the same.
//!
//! The first byte tells the direction, the rest is the message.

#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use ray_core::resource::{Amount, Resources};
use ray_core::serialize;
use ray_fuzz::read_frugally;
use ray_link::message::{LINK, LinkMessage};
use ray_link::{Frame, FromRaylet, ToRaylet};

/// Lines of one character each are the worst: a byte for the length, and a `String`.
const EACH: usize = 64;

fn check<M: LinkMessage + PartialEq + Debug>(payload: &[u8]) -> Option<M> {
    let read = |payload: &[u8]| M::read(Frame { kind: LINK, payload });
    let Ok(message) = read_frugally(payload, EACH, read) else { return None };
    let written = serialize::to_bytes(&message).expect("what was read can be written");
    let again = read(&written).expect("what was written can be read");
    // A metric may be no number, and that is not equal to itself.
    assert!(again == message || format!("{again:?}") == format!("{message:?}"), "{again:?} was {message:?}");
    assert_eq!(serialize::to_bytes(&again).ok().as_ref(), Some(&written));
    Some(message)
}

/// Equal amounts have one form only, or they would be different classes of tasks.
fn check_resources(resources: &Resources) {
    let mut rebuilt = Resources::new();
    for (name, amount) in resources.iter() {
        assert!(amount <= Amount::MAX, "{amount} of {name}");
        rebuilt.set(name, amount);
    }
    assert_eq!(rebuilt, *resources);
}

fuzz_target!(|bytes: &[u8]| {
    match bytes.split_first() {
        Some((0, payload)) => {
            if let Some(ToRaylet::SetLeaseDemand { shape, .. }) = check::<ToRaylet>(payload) {
                check_resources(&shape.resources);
            }
        }
        Some((1, payload)) => drop(check::<FromRaylet>(payload)),
        _ => {}
    }
});
