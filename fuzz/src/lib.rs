//! What the fuzz targets have in common: a meter of the memory that a decoder takes.
//!
//! A length in a message must not make its reader take memory that the message does not fill. A
//! limit of the fuzzer's on its whole process would see only the grossest case of that.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, which the address sanitizer watches, with a count of what is held.
#[derive(Debug)]
struct Metered;

#[global_allocator]
static METERED: Metered = Metered;

fn took(bytes: usize) {
    let held = HELD.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(held, Ordering::Relaxed);
}

fn gave(bytes: usize) {
    HELD.fetch_sub(bytes, Ordering::Relaxed);
}

// SAFETY: everything is passed on to the system's allocator as it came; the counts touch no memory of it.
unsafe impl GlobalAlloc for Metered {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller keeps to the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        gave(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // What is large is moved by changing the page table, so that both are never held at once.
        took(size.saturating_sub(layout.size()));
        gave(layout.size().saturating_sub(size));
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Does this, and tells the most memory that it held at any time, in bytes.
pub fn peak_bytes<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = work();
    (result, PEAK.load(Ordering::Relaxed) - before)
}

/// Reads a message, and sees to it that no more memory is taken than so much for each of its bytes, and
/// `ROOM` for what is taken before it is known to be needed.
///
/// # Panics
/// If more is taken.
pub fn read_frugally<'a, T>(bytes: &'a [u8], each: usize, read: impl FnOnce(&'a [u8]) -> T) -> T {
    /// Deserializers trust a length for up to 1 MiB, and messages nest two lists at most.
    const ROOM: usize = 2 << 20;
    let (result, peak) = peak_bytes(|| read(bytes));
    assert!(peak <= ROOM + each * bytes.len(), "{peak} bytes are taken to read {}", bytes.len());
    result
}
