//! Frames to bytes and back: `cargo bench -p ray-link`.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use ray_link::frame::{FrameReader, write_frame};

/// About the size of a small task.
const SMALL_BYTES: usize = 150;
const LARGE_BYTES: usize = 1 << 20;
/// What a socket gives at once.
const READ_BYTES: usize = 64 * 1024;

fn main() {
    let criterion = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(500));
    let mut criterion = criterion.measurement_time(Duration::from_secs(2)).configure_from_args();
    write(&mut criterion);
    read(&mut criterion);
    criterion.final_summary();
}

fn write(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame write");
    for (count, payload) in [(1000, SMALL_BYTES), (1, LARGE_BYTES)] {
        let payload = vec![7; payload];
        let mut out = Vec::new();
        group.throughput(Throughput::Elements(count));
        group.bench_function(BenchmarkId::from_parameter(format!("{} bytes", payload.len())), |bencher| {
            bencher.iter(|| {
                out.clear();
                for _ in 0..count {
                    write_frame(&mut out, 3, |out| out.extend_from_slice(black_box(&payload)));
                }
                out.len()
            });
        });
    }
}

fn read(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame read");
    for (count, payload) in [(1000, SMALL_BYTES), (1, LARGE_BYTES)] {
        let mut stream = Vec::new();
        for _ in 0..count {
            write_frame(&mut stream, 3, |out| out.resize(out.len() + payload, 7));
        }
        let mut reader = FrameReader::new(usize::MAX);
        group.throughput(Throughput::Elements(count));
        group.bench_function(BenchmarkId::from_parameter(format!("{payload} bytes")), |bencher| {
            bencher.iter(|| {
                let frames = stream.chunks(READ_BYTES).map(|piece| feed(&mut reader, piece)).sum::<u64>();
                assert_eq!(frames, count);
            });
        });
    }
}

/// Returns how many frames came out.
fn feed(reader: &mut FrameReader, mut piece: &[u8]) -> u64 {
    let mut frames = 0;
    while !piece.is_empty() {
        let room = reader.room();
        let count = room.len().min(piece.len());
        room[..count].copy_from_slice(&piece[..count]);
        reader.filled(count);
        piece = &piece[count..];
        while let Some(frame) = reader.next_frame().expect("the frames are well-formed") {
            black_box(frame.payload);
            frames += 1;
        }
    }
    frames
}
