//! Handles and grants come and go.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use ray_core::id::{NodeId, ObjectId, WorkerId};
use ray_worker::reference_counter::{Effect, Owner, ReferenceCounter};

use crate::object_ids;

const OBJECTS: usize = 1_000;
/// References that one value holds.
const INNER: usize = 10_000;

pub(crate) fn bench(criterion: &mut Criterion) {
    owned(criterion);
    borrowed(criterion);
    granted(criterion);
    contained(criterion);
}

/// As by `put` and the end of its reference, among others that stay.
fn owned(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("reference_counter/owned, added and removed");
    group.throughput(Throughput::Elements(OBJECTS as u64));
    for others in [0, 1_000_000] {
        let ids = object_ids(others + OBJECTS);
        let (here, ids) = ids.split_at(others);
        let mut counter = ReferenceCounter::new();
        here.iter().for_each(|&object_id| counter.add_owned(object_id));
        let mut out = Vec::new();
        group.bench_function(BenchmarkId::new("among", others), |bencher| {
            bencher.iter(|| {
                ids.iter().for_each(|&object_id| counter.add_owned(object_id));
                ids.iter().for_each(|&object_id| counter.remove_local(object_id, &mut out));
                assert_eq!(out.len(), OBJECTS);
                out.clear();
            });
        });
    }
}

/// As a borrower: a reference comes with its owner's grant, which goes back.
fn borrowed(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("reference_counter");
    group.throughput(Throughput::Elements(OBJECTS as u64));
    let ids = object_ids(OBJECTS);
    let owner = Owner { worker_id: WorkerId::random(), node_id: NodeId::random() };
    let mut counter = ReferenceCounter::new();
    let mut out = Vec::new();
    group.bench_function("borrowed, received and returned", |bencher| {
        bencher.iter(|| {
            for &object_id in &ids {
                counter.add_borrowed(object_id, owner, 1);
            }
            ids.iter().for_each(|&object_id| counter.remove_local(object_id, &mut out));
            assert!(matches!(out[..], [Effect::ReturnGrants { grants: 1, .. }, ..]));
            out.clear();
        });
    });
}

/// As an owner: objects are lent to one of a few borrowers and come back.
fn granted(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("reference_counter");
    group.throughput(Throughput::Elements(OBJECTS as u64));
    let ids = object_ids(OBJECTS);
    let borrowers: Vec<WorkerId> = (0..4).map(|_| WorkerId::random()).collect();
    let mut counter = ReferenceCounter::new();
    ids.iter().for_each(|&object_id| counter.add_owned(object_id));
    let mut out = Vec::new();
    group.bench_function("owned, granted and given back", |bencher| {
        bencher.iter(|| {
            let lent = || ids.iter().copied().zip(borrowers.iter().copied().cycle());
            lent().for_each(|(object_id, borrower)| assert!(counter.grant(object_id, borrower)));
            lent().for_each(|(object_id, borrower)| {
                counter.return_grants(object_id, borrower, 1, &mut out);
            });
            assert!(out.is_empty(), "the owner's handles keep them");
        });
    });
}

/// A value full of references is taken in, and dropped with all that only it kept.
fn contained(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("reference_counter");
    group.throughput(Throughput::Elements(INNER as u64));
    let ids = object_ids(INNER + 1);
    let (&outer, inner) = ids.split_first().expect("there is one more");
    let mut counter = ReferenceCounter::new();
    let mut out = Vec::new();
    group.bench_function("a value of 10k references", |bencher| {
        bencher.iter_batched(
            || inner.to_vec(),
            |inner| take_in_and_drop(&mut counter, outer, inner, &mut out),
            BatchSize::LargeInput,
        );
    });
}

fn take_in_and_drop(
    counter: &mut ReferenceCounter,
    outer: ObjectId,
    inner: Vec<ObjectId>,
    out: &mut Vec<Effect>,
) {
    counter.add_owned(outer);
    inner.iter().for_each(|&object_id| counter.add_owned(object_id));
    counter.set_contained(outer, inner.clone());
    inner.iter().for_each(|&object_id| counter.remove_local(object_id, out));
    assert!(out.is_empty(), "the value keeps them");
    counter.remove_local(outer, out);
    assert_eq!(out.len(), INNER + 1);
    out.clear();
}
