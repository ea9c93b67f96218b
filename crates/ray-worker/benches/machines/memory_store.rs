//! Results are waited for, come, and are dropped.

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput};
use ray_worker::memory_store::MemoryStore;
use ray_worker::value::Value;

use crate::object_ids;

const OBJECTS: usize = 1_000;

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("memory_store/expected, waited for, set, read and removed");
    group.throughput(Throughput::Elements(OBJECTS as u64));
    for others in [0, 1_000_000] {
        let ids = object_ids(others + OBJECTS);
        let (here, ids) = ids.split_at(others);
        let mut store = MemoryStore::default();
        here.iter().for_each(|&object_id| store.expect(object_id));
        let value = Bytes::from_static(b"a small value");
        group.bench_function(BenchmarkId::new("among", others), |bencher| {
            bencher.iter(|| {
                for &object_id in ids {
                    store.expect(object_id);
                    assert!(store.wait(object_id, 1));
                }
                for &object_id in ids {
                    assert_eq!(store.set(object_id, Value::Inline(value.clone())).threads, [1]);
                    assert!(store.get(object_id).is_some());
                    store.remove(object_id);
                }
            });
        });
    }
}
