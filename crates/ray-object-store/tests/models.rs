//! Concurrent parts of the stores, under a scheduler that tries many orders of their steps.
//!
//! The files are the crate's own, compiled here with the locks of that scheduler: a switch of
//! threads can happen at each of them. A failure prints how to replay it; a thread that nobody wakes is one.

/// Instead of the locks of the standard library.
mod sync {
    pub(crate) use std::sync::PoisonError;

    pub(crate) use shuttle::sync::{Arc, Mutex, MutexGuard};
}

#[path = "../src/memory_store/arrivals.rs"]
mod arrivals;

use std::collections::BTreeSet;

use arrivals::Arrivals;
use ray_core::id::ObjectId;
use shuttle::future::block_on;
use shuttle::{check_random, thread};
use sync::{Arc, Mutex};

/// Orders that are tried.
const RUNS: usize = 5_000;

/// As much of a store as it takes to wait.
#[derive(Debug, Default)]
struct Store {
    objects: Mutex<BTreeSet<ObjectId>>,
    arrivals: Arrivals,
}

impl Store {
    fn put(&self, object_id: ObjectId) {
        self.objects.lock().unwrap().insert(object_id);
        thread::yield_now();
        self.arrivals.announce(&object_id);
    }

    /// Waits for all of these, as `get` and `wait` do.
    fn wait(&self, object_ids: &[ObjectId]) {
        let watch = self.arrivals.watch(object_ids.to_vec());
        let missing = || {
            let objects = self.objects.lock().unwrap();
            object_ids.iter().any(|object_id| !objects.contains(object_id))
        };
        block_on(async {
            while missing() {
                // Tokio's parts are taken as they are, and switch no threads themselves.
                thread::yield_now();
                watch.arrived().await;
            }
        });
    }
}

#[test]
fn whoever_waits_hears_of_every_arrival_and_leaves_nothing_behind() {
    check_random(
        || {
            let store = Arc::new(Store::default());
            let ids = [1, 2].map(|byte| ObjectId::from_bytes([byte; 28]));
            let waits: [&[ObjectId]; 3] = [&ids, &ids[..1], &ids[1..]];
            let waiting = waits.map(|wanted| {
                let (store, wanted) = (Arc::clone(&store), wanted.to_vec());
                thread::spawn(move || store.wait(&wanted))
            });
            let putting = ids.map(|object_id| {
                let store = Arc::clone(&store);
                thread::spawn(move || store.put(object_id))
            });
            waiting.into_iter().chain(putting).for_each(|thread| thread.join().unwrap());
            assert!(store.arrivals.is_empty());
        },
        RUNS,
    );
}
