//! Ranges of shared memory, taken and given back: `cargo bench -p ray-object-store`.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion};
use ray_object_store::arena::Arena;

const GIB: u64 = 1 << 30;

fn main() {
    let criterion = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(500));
    let mut criterion = criterion.measurement_time(Duration::from_secs(2)).configure_from_args();
    warm_reuse(&mut criterion);
    fragmented(&mut criterion);
    criterion.final_summary();
}

/// The common case: an object is put and dropped, and the next one takes its place.
fn warm_reuse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("arena warm reuse");
    for (name, size) in [("1 KiB", 1 << 10), ("100 MiB", 100 << 20)] {
        group.bench_function(name, |bencher| {
            let mut arena = Arena::new(4 * GIB);
            // A neighbour, so that what is given back becomes a hole and not a part of the tail.
            let first = arena.allocate(size).expect("the arena is empty");
            arena.allocate(64).expect("the arena is nearly empty");
            arena.free(first);
            let warm = arena.warm_until();
            bencher.iter(|| {
                let offset = arena.allocate(size).expect("there is room");
                arena.free(offset)
            });
            assert_eq!(arena.warm_until(), warm, "no cold memory was touched");
        });
    }
}

/// One range is replaced by one of another size among many that live: small ones, and large ones that
/// share no page.
fn fragmented(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("arena fragmented");
    for live in [1_000, 10_000, 100_000] {
        group.bench_function(BenchmarkId::new("replace one of", live), |bencher| {
            let mut random = Random(1);
            let mut arena = Arena::new(1 << 46);
            let allocate = |arena: &mut Arena, random: &mut Random| {
                arena.allocate(random.size()).expect("there is room for far more")
            };
            let mut ranges: Vec<u64> = (0..live).map(|_| allocate(&mut arena, &mut random)).collect();
            let mut replace = |arena: &mut Arena| {
                let at = random.below(live) as usize;
                arena.free(ranges[at]).expect("it lives");
                ranges[at] = allocate(arena, &mut random);
            };
            // Holes take some time to reach the number at which they stay.
            (0..2 * live).for_each(|_| replace(&mut arena));
            bencher.iter(|| replace(&mut arena));
        });
    }
}

/// The same numbers in each run (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Three small ranges for each large one.
    fn size(&mut self) -> u64 {
        if self.below(4) == 0 { 100_000 + self.below(1_000_000) } else { self.below(10_000) }
    }
}
