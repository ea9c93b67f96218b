//! What every [`ObjectStore`] has to do, as tests that each implementation runs.
//!
//! ```text
//! async fn make(setup: Setup) -> (MyStore, TempDir) { .. }
//! ray_object_store::conformance_tests!(make);
//! ```
//!
//! The second value that `make` returns is kept until the test ends. Sizes here are multiples of a page,
//! so that stores that round sizes up pass the same tests.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ray_core::error::RayError;
use ray_core::id::ObjectId;
use ray_core::traits::ObjectStore;
use tokio::task::JoinSet;

/// What kind of store a test needs.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Bytes that it holds in memory.
    pub capacity_bytes: u64,
    /// Whether it spills when these do not suffice.
    pub spills: bool,
}

/// Bytes of the stores of this suite.
const CAPACITY: u64 = 1 << 20;
/// A quarter of that.
const QUARTER: usize = 1 << 18;
/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

impl Setup {
    /// A store that spills.
    pub const SPILLS: Self = Self { capacity_bytes: CAPACITY, spills: true };
    /// A store that refuses what does not fit.
    pub const REFUSES: Self = Self { capacity_bytes: CAPACITY, spills: false };
}

/// Makes a tokio test of every case, with a store that `$make(setup).await` returns first of two.
#[macro_export]
macro_rules! conformance_tests {
    ($make:path) => {
        $crate::conformance_tests! { $make:
            what_is_put_comes_back REFUSES,
            a_get_of_what_is_not_there_times_out REFUSES,
            a_get_waits_for_a_put REFUSES,
            putting_twice_stores_once REFUSES,
            what_is_deleted_is_gone_but_for_its_readers REFUSES,
            what_is_unknown_is_not_found SPILLS,
            a_wait_returns_the_first_ready_in_the_order_given REFUSES,
            a_wait_ends_with_the_last_arrival REFUSES,
            references_are_counted REFUSES,
            what_nobody_refers_to_makes_way REFUSES,
            a_full_store_refuses_and_takes_again REFUSES,
            a_full_store_spills_and_everything_stays_readable SPILLS,
            what_is_spilled_on_demand_frees_memory_and_can_be_restored SPILLS,
            a_restore_needs_no_spill SPILLS,
            many_at_once_see_their_own_data SPILLS,
        }
    };
    ($make:path: $($case:ident $setup:ident,)*) => {
        $(
            #[tokio::test]
            async fn $case() {
                let (store, _guard) = $make($crate::testing::Setup::$setup).await;
                $crate::testing::$case(store).await;
            }
        )*
    };
}

fn id(n: u32) -> ObjectId {
    let mut bytes = [1; 28];
    bytes[..4].copy_from_slice(&n.to_le_bytes());
    ObjectId::from_bytes(bytes)
}

fn data(n: u32, len: usize) -> Bytes {
    (0..len).map(|at| (at as u32).wrapping_mul(31).wrapping_add(n) as u8).collect()
}

/// What goes in comes out, of any size, at once.
pub async fn what_is_put_comes_back(store: impl ObjectStore) {
    for (n, len) in [(0, 0), (1, 1), (2, 4095), (3, QUARTER)] {
        store.put(id(n), data(n, len)).await.unwrap();
        assert_eq!(store.get(&id(n), Duration::ZERO).await.unwrap(), data(n, len));
        assert!(store.contains(&id(n)).await.unwrap());
        let info = store.info(&id(n)).await.unwrap();
        assert_eq!((info.object_id, info.size_bytes, info.references), (id(n), len as u64, 1));
        assert!(info.sealed && info.spill_url.is_none());
    }
    let usage = store.usage().await.unwrap();
    assert_eq!((usage.capacity_bytes, usage.objects, usage.spilled_bytes), (CAPACITY, 4, 0));
    assert!(usage.used_bytes >= QUARTER as u64 + 4096);
}

/// A get that comes too early ends with `GetTimeout`, a wait with nothing.
pub async fn a_get_of_what_is_not_there_times_out(store: impl ObjectStore) {
    for limit in [Duration::ZERO, Duration::from_millis(5)] {
        assert!(matches!(store.get(&id(1), limit).await, Err(RayError::GetTimeout { .. })));
        assert_eq!(store.wait(&[id(1)], 1, limit).await.unwrap(), (vec![], vec![id(1)]));
    }
    assert!(!store.contains(&id(1)).await.unwrap());
}

/// Many readers of one object that comes later all get it.
pub async fn a_get_waits_for_a_put(store: impl ObjectStore) {
    let store = Arc::new(store);
    let mut readers = JoinSet::new();
    for _ in 0..8 {
        let store = Arc::clone(&store);
        readers.spawn(async move { store.get(&id(1), LONG).await });
    }
    tokio::task::yield_now().await;
    store.put(id(1), data(1, 1000)).await.unwrap();
    for got in readers.join_all().await {
        assert_eq!(got.unwrap(), data(1, 1000));
    }
}

/// The same again changes nothing; the same id with another size is an error.
pub async fn putting_twice_stores_once(store: impl ObjectStore) {
    store.put(id(1), data(1, 4096)).await.unwrap();
    let used = store.usage().await.unwrap().used_bytes;
    store.put(id(1), data(1, 4096)).await.unwrap();
    assert_eq!(store.usage().await.unwrap().used_bytes, used);
    assert_eq!(store.info(&id(1)).await.unwrap().references, 1);
    let error = store.put(id(1), data(1, 4097)).await.unwrap_err();
    assert!(matches!(error, RayError::AlreadyExists { .. }), "{error}");
}

/// A deleted object is forgotten; a reader keeps what it holds.
pub async fn what_is_deleted_is_gone_but_for_its_readers(store: impl ObjectStore) {
    store.put(id(1), data(1, QUARTER)).await.unwrap();
    let reader = store.get(&id(1), LONG).await.unwrap();
    assert!(store.delete(&id(1)).await.unwrap());
    assert!(!store.contains(&id(1)).await.unwrap());
    store.put(id(2), data(2, QUARTER)).await.unwrap();
    assert_eq!(reader, data(1, QUARTER));
    drop(reader);
    assert!(!store.delete(&id(1)).await.unwrap());
    assert!(store.delete(&id(2)).await.unwrap());
    until(|| async { store.usage().await.unwrap().used_bytes == 0 }).await;
    assert_eq!(store.usage().await.unwrap().objects, 0);
}

/// Everything that needs an object says so when there is none.
pub async fn what_is_unknown_is_not_found(store: impl ObjectStore) {
    let errors = [
        store.info(&id(1)).await.map(drop),
        store.add_reference(&id(1)).await.map(drop),
        store.remove_reference(&id(1)).await.map(drop),
        store.spill(&[id(1)]).await.map(drop),
        store.restore(&[id(1)]).await.map(drop),
    ];
    for result in errors {
        assert!(matches!(result, Err(RayError::NotFound { .. })), "{result:?}");
    }
}

/// At most as many ready objects as asked for, and both lists in the order given.
pub async fn a_wait_returns_the_first_ready_in_the_order_given(store: impl ObjectStore) {
    for n in [4, 2, 3] {
        store.put(id(n), data(n, 10)).await.unwrap();
    }
    let ids: Vec<ObjectId> = (1..=5).map(id).collect();
    let two = store.wait(&ids, 2, LONG).await.unwrap();
    assert_eq!(two, (vec![id(2), id(3)], vec![id(1), id(4), id(5)]));
    let all = store.wait(&ids, 5, Duration::from_millis(5)).await.unwrap();
    assert_eq!(all, (vec![id(2), id(3), id(4)], vec![id(1), id(5)]));
    let none = store.wait(&ids, 0, LONG).await.unwrap();
    assert_eq!(none, (vec![], ids.clone()));
    assert!(matches!(store.wait(&ids, 6, LONG).await, Err(RayError::InvalidArgument(_))));
}

/// A wait that began before the objects came ends when enough have come.
pub async fn a_wait_ends_with_the_last_arrival(store: impl ObjectStore) {
    let store = Arc::new(store);
    let ids: Vec<ObjectId> = (0..20).map(id).collect();
    let waiting = tokio::spawn({
        let (store, ids) = (Arc::clone(&store), ids.clone());
        async move { store.wait(&ids, 20, LONG).await }
    });
    for n in (0..20).rev() {
        store.put(id(n), data(n, 10)).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(waiting.await.unwrap().unwrap(), (ids, vec![]));
}

/// References add up, and end at 0.
pub async fn references_are_counted(store: impl ObjectStore) {
    store.put(id(1), data(1, 10)).await.unwrap();
    assert_eq!(store.add_reference(&id(1)).await.unwrap(), 2);
    assert_eq!(store.remove_reference(&id(1)).await.unwrap(), 1);
    assert_eq!(store.remove_reference(&id(1)).await.unwrap(), 0);
    assert_eq!(store.info(&id(1)).await.unwrap().references, 0);
    // It may be collected but need not be, as long as nobody needs the space.
    assert!(store.contains(&id(1)).await.unwrap());
    assert_eq!(store.add_reference(&id(1)).await.unwrap(), 1);
}

/// Space is taken from what nobody refers to, and from nothing else.
pub async fn what_nobody_refers_to_makes_way(store: impl ObjectStore) {
    for n in 0..4 {
        store.put(id(n), data(n, QUARTER)).await.unwrap();
    }
    store.remove_reference(&id(2)).await.unwrap();
    store.put(id(4), data(4, QUARTER)).await.unwrap();
    for n in [0, 1, 3, 4] {
        assert_eq!(store.get(&id(n), LONG).await.unwrap(), data(n, QUARTER));
    }
    assert!(!store.contains(&id(2)).await.unwrap());
}

/// Without a disk a full store says what is in use, and a deletion makes room.
pub async fn a_full_store_refuses_and_takes_again(store: impl ObjectStore) {
    for n in 0..4 {
        store.put(id(n), data(n, QUARTER)).await.unwrap();
    }
    let error = store.put(id(9), data(9, QUARTER)).await.unwrap_err();
    assert!(matches!(error, RayError::ObjectStoreFull { .. }), "{error}");
    for part in ["262144 bytes requested", "1048576 of 1048576 in use"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert!(!store.contains(&id(9)).await.unwrap());
    store.delete(&id(0)).await.unwrap();
    store.put(id(9), data(9, QUARTER)).await.unwrap();
    let error = store.put(id(10), data(10, CAPACITY as usize + 1)).await.unwrap_err();
    assert!(matches!(error, RayError::ObjectStoreFull { .. }), "{error}");
}

/// Four times as much as memory holds can be stored and read again, also while it is read.
pub async fn a_full_store_spills_and_everything_stays_readable(store: impl ObjectStore) {
    for n in 0..16 {
        store.put(id(n), data(n, QUARTER)).await.unwrap();
    }
    let usage = store.usage().await.unwrap();
    assert!(usage.used_bytes <= CAPACITY && usage.objects == 16, "{usage:?}");
    assert!(usage.spilled_bytes >= 12 * QUARTER as u64, "{usage:?}");
    for n in (0..16).chain(0..16) {
        assert_eq!(store.get(&id(n), LONG).await.unwrap(), data(n, QUARTER), "object {n}");
        assert!(store.usage().await.unwrap().used_bytes <= CAPACITY);
    }
    // What lies on disk is there without waiting, as far as a caller is concerned.
    let ids: Vec<ObjectId> = (0..16).map(id).collect();
    assert_eq!(store.wait(&ids, 16, LONG).await.unwrap().0, ids);
    for n in 0..16 {
        assert!(store.delete(&id(n)).await.unwrap());
    }
    until(|| async {
        let usage = store.usage().await.unwrap();
        (usage.used_bytes, usage.spilled_bytes, usage.objects) == (0, 0, 0)
    })
    .await;
}

/// Spilling and restoring by hand.
pub async fn what_is_spilled_on_demand_frees_memory_and_can_be_restored(store: impl ObjectStore) {
    for n in 0..2 {
        store.put(id(n), data(n, QUARTER)).await.unwrap();
    }
    let urls = store.spill(&[id(0), id(1)]).await.unwrap();
    assert_eq!(urls.len(), 2);
    assert_eq!(store.info(&id(0)).await.unwrap().spill_url.as_ref(), Some(&urls[0]));
    let usage = store.usage().await.unwrap();
    assert_eq!((usage.used_bytes, usage.spilled_bytes), (0, 2 * QUARTER as u64));
    assert_eq!(store.spill(&[id(0), id(1)]).await.unwrap(), urls);
    assert_eq!(store.restore(&[id(0)]).await.unwrap(), QUARTER as u64);
    assert_eq!(store.usage().await.unwrap().used_bytes, QUARTER as u64);
    assert_eq!(store.get(&id(0), LONG).await.unwrap(), data(0, QUARTER));
    assert_eq!(store.get(&id(1), LONG).await.unwrap(), data(1, QUARTER));
}

/// While memory is full of what is being read, what lies on disk can be read all the same.
pub async fn a_restore_needs_no_spill(store: impl ObjectStore) {
    for n in 0..5 {
        store.put(id(n), data(n, QUARTER)).await.unwrap();
    }
    let mut readers = Vec::new();
    for n in 0..5 {
        let reader = store.get(&id(n), LONG).await.unwrap();
        assert_eq!(reader, data(n, QUARTER));
        readers.push(reader);
    }
}

/// Writers, readers and deleters at the same time, with more data than memory.
pub async fn many_at_once_see_their_own_data(store: impl ObjectStore) {
    let store = Arc::new(store);
    let mut clients = JoinSet::new();
    for client in 0..8 {
        let store = Arc::clone(&store);
        clients.spawn(async move {
            for round in 0..10 {
                let (n, len) = (client * 100 + round, 10_000 * (round as usize + 1));
                store.put(id(n), data(n, len)).await.unwrap();
                assert_eq!(store.get(&id(n), LONG).await.unwrap(), data(n, len));
                if round % 2 == 0 {
                    assert!(store.delete(&id(n)).await.unwrap());
                }
            }
        });
    }
    clients.join_all().await;
    for client in 0..8 {
        for round in [1, 3, 5, 7, 9] {
            let (n, len) = (client * 100 + round, 10_000 * (round as usize + 1));
            assert_eq!(store.get(&id(n), LONG).await.unwrap(), data(n, len));
        }
    }
}

/// Polls until this holds, for a while.
async fn until<F: Future<Output = bool>>(holds: impl Fn() -> F) {
    let poll = async {
        while !holds().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, poll).await.expect("it comes to hold");
}
