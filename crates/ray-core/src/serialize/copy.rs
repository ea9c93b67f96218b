//! Copying much memory: with more than one processor, and past the caches.
//!
//! An ordinary store reads its cache line before it changes it, and drives out another one. For a copy
//! that no cache holds both are in vain, and the memory bus is what limits it.

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
            stream::copy(out, from);
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

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "no safe operation stores past the caches")]
mod stream {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};

    /// What is stored at a time: a cache line, so that none is written in parts.
    const LINE: usize = 64;

    /// Copies without reading `out` into the caches, or leaving it there.
    pub(super) fn copy(out: &mut [u8], from: &[u8]) {
        assert_eq!(out.len(), from.len(), "both have the same length");
        let head = out.as_ptr().align_offset(LINE).min(out.len());
        let (out_head, out) = out.split_at_mut(head);
        let (from_head, from) = from.split_at(head);
        out_head.copy_from_slice(from_head);
        let (mut out, mut from) = (out.chunks_exact_mut(LINE), from.chunks_exact(LINE));
        for (out, from) in out.by_ref().zip(from.by_ref()) {
            let (out, from) = (out.as_mut_ptr().cast::<__m128i>(), from.as_ptr().cast::<__m128i>());
            // SAFETY: both chunks have 64 bytes, which are these four vectors; `out` begins at a multiple of
            // 64, as streaming stores need at one of 16, and loads may be unaligned. SSE2 is part of x86-64.
            unsafe {
                let line = [0, 1, 2, 3].map(|part| _mm_loadu_si128(from.add(part)));
                for (part, vector) in line.into_iter().enumerate() {
                    _mm_stream_si128(out.add(part), vector);
                }
            }
        }
        out.into_remainder().copy_from_slice(from.remainder());
        // Streaming stores are not ordered with others: who is told of the copy afterwards has to see it.
        // SAFETY: as above, SSE2 is there.
        #[allow(unused_unsafe, reason = "a safe function from some version of the compiler on")]
        unsafe {
            _mm_sfence();
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod stream {
    /// Copies as usual: stable Rust has no streaming stores for this processor.
    pub(super) fn copy(out: &mut [u8], from: &[u8]) {
        out.copy_from_slice(from);
    }
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

    #[test]
    fn no_byte_beside_a_copy_changes_wherever_it_begins() {
        let from: Vec<u8> = (0..400).map(|at| (at * 7 % 251 + 1) as u8).collect();
        for length in [0, 1, 15, 63, 64, 65, 127, 128, 200] {
            for (to, start) in (0..70).zip((0..70).rev()) {
                let mut out = vec![0; 400];
                stream::copy(&mut out[to..to + length], &from[start..start + length]);
                let mut expected = vec![0; 400];
                expected[to..to + length].copy_from_slice(&from[start..start + length]);
                assert!(out == expected, "{length} bytes from {start} to {to}");
            }
        }
    }
}
