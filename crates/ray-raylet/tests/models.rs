//! Concurrent parts of the node, under a scheduler that tries many orders of their steps.
//!
//! The files are the node's own, compiled here with the locks of that scheduler: a switch of
//! threads can happen at each of them. A failure prints how to replay it.

/// Instead of the locks of the standard library.
mod sync {
    pub(crate) use std::sync::PoisonError;

    pub(crate) use shuttle::sync::{Arc, Mutex};
}

#[path = "../src/node/inbox.rs"]
mod inbox;

use ray_link::{Interest, Poller, Waker};
use shuttle::{check_random, thread};
use std::time::Duration;
use sync::Arc;

/// Orders that are tried.
const RUNS: usize = 5_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    Command(u32),
    Note(u32),
}

/// Waits as the node's thread does, but lets the others run meanwhile.
fn wait(poller: &Poller) {
    let mut ready = Vec::new();
    // Far more often than the others have steps left.
    for _ in 0..10_000 {
        poller.wait(&mut ready, Some(Duration::ZERO)).unwrap();
        if !ready.is_empty() {
            return;
        }
        thread::yield_now();
    }
    panic!("the thread is not woken");
}

/// A note that overtook its command took back a request that was not there yet; the request then waited for
/// nobody for as long as its object did not come.
#[test]
fn a_note_is_taken_after_the_command_that_it_is_about_and_nothing_is_left() {
    const SENDERS: u32 = 2;
    check_random(
        || {
            let (waker, poller) = (Arc::new(Waker::new().unwrap()), Poller::new().unwrap());
            poller.add(&*waker, 0, Interest::Read).unwrap();
            let (outbox, mut inbox) = inbox::inbox(8, Arc::clone(&waker));
            let senders: Vec<_> = (0..SENDERS)
                .map(|number| {
                    let outbox = outbox.clone();
                    thread::spawn(move || {
                        for number in [2 * number, 2 * number + 1] {
                            shuttle::future::block_on(outbox.send(Item::Command(number))).unwrap();
                            outbox.note(Item::Note(number));
                        }
                    })
                })
                .collect();
            let mut taken = Vec::new();
            while taken.len() < 4 * SENDERS as usize {
                wait(&poller);
                waker.reset();
                while let Some(item) = inbox.take() {
                    if let Item::Note(number) = item {
                        assert!(taken.contains(&Item::Command(number)), "{item:?} comes first");
                    }
                    assert!(!taken.contains(&item), "{item:?} comes twice");
                    taken.push(item);
                }
            }
            for sender in senders {
                sender.join().unwrap();
            }
        },
        RUNS,
    );
}
