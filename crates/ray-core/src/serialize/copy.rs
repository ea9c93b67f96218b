//! Copying much memory with more than one processor.

use std::sync::{Mutex, PoisonError};
use std::thread;

/// From this size on, a copy is shared with other threads: one takes 30 us to start, in which a tenth of
/// this is copied.
const SHARED_FROM: usize = 4 << 20;

/// What a thread takes at a time, in bytes.
const SHARE: usize = 1 << 20;

/// One processor does not fill a machine's memory bus, four do.
const MOST_THREADS: usize = 4;

/// Copies `from` to `out`, which is as long.
///
/// # Panics
/// If the lengths differ.
pub(super) fn copy(out: &mut [u8], from: &[u8]) {
    assert_eq!(out.len(), from.len(), "both have the same length");
    if from.len() < SHARED_FROM {
        out.copy_from_slice(from);
        return;
    }
    let processors = thread::available_parallelism().map_or(1, usize::from);
    copy_shared(out, from, processors.min(MOST_THREADS));
}

/// Copies with at most so many threads, the calling one among them.
fn copy_shared(out: &mut [u8], from: &[u8], threads: usize) {
    let shares = Mutex::new(out.chunks_mut(SHARE).zip(from.chunks(SHARE)));
    let next = || shares.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some((out, from)) = next() {
            out.copy_from_slice(from);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // Where no thread can be had, those that are there do more.
            drop(thread::Builder::new().name("ray-copy".to_owned()).spawn_scoped(scope, work));
        }
        work();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_copied_to_its_place() {
        let lengths = [0, 1, SHARE, SHARED_FROM - 1, SHARED_FROM, SHARED_FROM + 1, 3 * SHARED_FROM + 12_345];
        for length in lengths {
            let from: Vec<u8> = (0..length).map(|at| (at * 31 % 251) as u8).collect();
            let mut out = vec![0; length];
            copy(&mut out, &from);
            assert!(out == from, "{length} bytes");
            for threads in 1..6 {
                out.fill(0);
                copy_shared(&mut out, &from, threads);
                assert!(out == from, "{length} bytes by {threads} threads");
            }
        }
    }
}
