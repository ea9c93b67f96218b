//! Memory that several processes map: the only module of this crate with unsafe code.
//!
//! A [`ShmRegion`] is one memory file (memfd), mapped whole. It has no name in any file system, so
//! nothing is left of it when the last process that has it open ends, however that process ends.
//! Its size is sealed: no peer can shrink it under a reader, who would die by SIGBUS.
//!
//! Who may touch which range when is agreed through the object table: a range is written by one
//! client until the object is sealed, is never written again while anybody holds a pin, and is handed
//! out again only after the last pin. A peer that breaks this can garble the data of others, as it could
//! by other means: all processes of a node belong to one user and trust one another. Bytes read from
//! a region are therefore data to check, never offsets or lengths to follow. Inside a process, overlapping
//! readers and writers are refused (see [`ShmError::Borrowed`]).

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use memmap2::{Advice, MmapOptions, MmapRaw};
use ray_core::error::RayError;
use rustix::fs::{MemfdFlags, SealFlags};
use thiserror::Error;

use crate::arena::{Arena, PAGE_BYTES};
use crate::borrow::Borrows;

/// Why a region or a part of it cannot be had.
#[derive(Debug, Error)]
pub enum ShmError {
    /// The operating system refused something.
    #[error("cannot {action} shared memory")]
    Os {
        /// What was tried.
        action: &'static str,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The received file is not what it should be.
    #[error("the file is no shared memory region: {0}")]
    NotARegion(String),
    /// The range does not lie in the region.
    #[error("{len} bytes at {offset} do not lie in a region of {capacity} bytes")]
    OutOfBounds {
        /// Where the range begins.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// Length of the region in bytes.
        capacity: u64,
    },
    /// This process reads or writes a part of the range already.
    #[error("{len} bytes at {offset} are in use in this process")]
    Borrowed {
        /// Where the range begins.
        offset: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// The region was opened for reading.
    #[error("the region is mapped read-only")]
    ReadOnly,
}

impl From<ShmError> for RayError {
    fn from(error: ShmError) -> Self {
        match error {
            ShmError::Os { action, source } => Self::io(format!("cannot {action} shared memory"), source),
            other => Self::InvalidArgument(other.to_string()),
        }
    }
}

/// What a process may do with a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read only; the processor enforces it.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

#[derive(Debug)]
struct Mapping {
    map: MmapRaw,
    file: File,
    access: Access,
    borrows: Mutex<Borrows>,
}

impl Mapping {
    fn borrows(&self) -> MutexGuard<'_, Borrows> {
        // No code that can panic runs under this lock.
        self.borrows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A shared memory region, mapped whole. Clones share the mapping, which lasts as long as the last
/// clone or slice.
#[derive(Debug, Clone)]
pub struct ShmRegion {
    mapping: Arc<Mapping>,
}

impl ShmRegion {
    /// Makes a region of `capacity` bytes, rounded up to whole pages. `name` shows up in
    /// `/proc/<pid>/maps`; it names nothing. Memory is taken when it is touched, not here.
    ///
    /// # Errors
    /// [`ShmError::Os`], for example if the address space or the limit on open files does not suffice.
    pub fn create(name: &str, capacity: u64) -> Result<Self, ShmError> {
        let len = capacity
            .max(1)
            .checked_next_multiple_of(PAGE_BYTES)
            .ok_or_else(|| ShmError::NotARegion(format!("{capacity} bytes are too many")))?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create(name, flags).map_err(|error| os("create", error))?;
        rustix::fs::ftruncate(&fd, len).map_err(|error| os("size", error))?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&fd, seals).map_err(|error| os("seal", error))?;
        Self::map(fd.into(), len, Access::ReadWrite)
    }

    /// Maps a region that another process made and whose file it sent.
    ///
    /// # Errors
    /// [`ShmError::NotARegion`] if the file could shrink while it is mapped or is empty,
    /// [`ShmError::Os`] if it cannot be mapped.
    pub fn from_fd(fd: OwnedFd, access: Access) -> Result<Self, ShmError> {
        let seals = rustix::fs::fcntl_get_seals(&fd)
            .map_err(|error| ShmError::NotARegion(format!("it has no seals ({error})")))?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(ShmError::NotARegion("it is not sealed against shrinking".to_owned()));
        }
        let len = file_len(&fd)?;
        Self::map(fd.into(), len, access)
    }

    /// Maps the file of a spilled object, for reading: its first `len` bytes.
    ///
    /// Such a file is complete when it gets its name and is never written again, only unlinked, which
    /// does not disturb those who have mapped it.
    ///
    /// # Errors
    /// [`ShmError::Os`] if it cannot be opened, [`ShmError::NotARegion`] if it is shorter.
    pub fn open_spilled(path: &Path, len: u64) -> Result<Self, ShmError> {
        let file = File::open(path).map_err(|source| ShmError::Os { action: "open", source })?;
        let actual = file_len(&file)?;
        if actual < len {
            return Err(ShmError::NotARegion(format!("it has {actual} bytes instead of {len}")));
        }
        Self::map(file, len, Access::ReadOnly)
    }

    fn map(file: File, len: u64, access: Access) -> Result<Self, ShmError> {
        let Some(map_len) = usize::try_from(len).ok().filter(|&len| len > 0 && isize::try_from(len).is_ok())
        else {
            return Err(ShmError::NotARegion(format!("it has {len} bytes")));
        };
        let mut options = MmapOptions::new();
        options.len(map_len).no_reserve_swap();
        let map = match access {
            Access::ReadOnly => options.map_raw_read_only(&file),
            Access::ReadWrite => options.map_raw(&file),
        };
        let map = map.map_err(|source| ShmError::Os { action: "map", source })?;
        Ok(Self { mapping: Arc::new(Mapping { map, file, access, borrows: Mutex::default() }) })
    }

    /// The region's file, to send to another process.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.mapping.file.as_fd()
    }

    /// Length in bytes.
    pub fn capacity(&self) -> u64 {
        self.mapping.map.len() as u64
    }

    /// What this process may do with the region.
    pub fn access(&self) -> Access {
        self.mapping.access
    }

    /// Where the region begins in this process.
    pub fn as_ptr(&self) -> *const u8 {
        self.mapping.map.as_ptr()
    }

    /// The `len` bytes at `offset`, for reading, without a copy.
    ///
    /// Hold the object's pin for as long as the slice lives; see the module's documentation.
    ///
    /// # Errors
    /// [`ShmError::OutOfBounds`], or [`ShmError::Borrowed`] while this process writes there.
    pub fn slice(&self, offset: u64, len: u64) -> Result<ShmSlice, ShmError> {
        let span = self.span(offset, len)?;
        if len > 0 && !self.mapping.borrows().read(offset..offset + len) {
            return Err(ShmError::Borrowed { offset, len });
        }
        Ok(ShmSlice(span))
    }

    /// The `len` bytes at `offset`, for writing; handed out once at a time.
    ///
    /// Only for an object that this process has created and not yet sealed.
    ///
    /// # Errors
    /// [`ShmError::OutOfBounds`], [`ShmError::ReadOnly`], or [`ShmError::Borrowed`] while this process
    /// reads or writes there.
    pub fn slice_mut(&self, offset: u64, len: u64) -> Result<ShmSliceMut, ShmError> {
        let span = self.span(offset, len)?;
        if self.mapping.access == Access::ReadOnly {
            return Err(ShmError::ReadOnly);
        }
        if len > 0 && !self.mapping.borrows().write(offset..offset + len) {
            return Err(ShmError::Borrowed { offset, len });
        }
        Ok(ShmSliceMut(span))
    }

    /// Gives memory to the pages of this range, so that whoever writes there first does not have to wait
    /// for it. The contents stay as they are.
    ///
    /// # Errors
    /// [`ShmError::OutOfBounds`], [`ShmError::ReadOnly`], or [`ShmError::Os`] if there is no memory.
    pub fn pre_fault(&self, range: Range<u64>) -> Result<(), ShmError> {
        let span = self.span(range.start, range.end.saturating_sub(range.start))?;
        if self.mapping.access == Access::ReadOnly {
            return Err(ShmError::ReadOnly);
        }
        if span.len == 0 {
            return Ok(());
        }
        match self.mapping.map.advise_range(Advice::PopulateWrite, span.start, span.len) {
            Ok(()) => Ok(()),
            // Kernels before 5.14 do not know the advice.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                span.touch();
                Ok(())
            }
            Err(source) => Err(ShmError::Os { action: "pre-fault", source }),
        }
    }

    fn span(&self, offset: u64, len: u64) -> Result<Span, ShmError> {
        let capacity = self.capacity();
        let end = offset.checked_add(len).filter(|&end| end <= capacity);
        if end.is_none() {
            return Err(ShmError::OutOfBounds { offset, len, capacity });
        }
        // Both are at most the length of the mapping, which is a usize.
        Ok(Span { mapping: Arc::clone(&self.mapping), start: offset as usize, len: len as usize })
    }
}

fn os(action: &'static str, error: rustix::io::Errno) -> ShmError {
    ShmError::Os { action, source: error.into() }
}

fn file_len(fd: impl AsFd) -> Result<u64, ShmError> {
    let stat = rustix::fs::fstat(fd).map_err(|error| os("inspect", error))?;
    u64::try_from(stat.st_size).map_err(|_| ShmError::NotARegion("it has a negative size".to_owned()))
}

/// A range inside a mapping: `start + len` is at most the mapping's length.
#[derive(Debug)]
struct Span {
    mapping: Arc<Mapping>,
    start: usize,
    len: usize,
}

impl Span {
    fn range(&self) -> Range<u64> {
        self.start as u64..(self.start + self.len) as u64
    }

    fn ptr(&self) -> *mut u8 {
        // `wrapping_add` is safe and, being in bounds, no different from `add`.
        self.mapping.map.as_mut_ptr().wrapping_add(self.start)
    }

    /// Writes to every page without changing it.
    fn touch(&self) {
        let first = self.start - self.start % PAGE_BYTES as usize;
        for page in (first..self.start + self.len).step_by(PAGE_BYTES as usize) {
            let byte = self.mapping.map.as_mut_ptr().wrapping_add(page);
            // SAFETY: the page begins inside the mapping, which is writable (checked by `pre_fault`) and
            // lives as long as `self`; an `AtomicU8` has neither alignment nor invalid values. The range is
            // free or still being written by its creator, so no Rust reference to this byte is read.
            let byte = unsafe { AtomicU8::from_ptr(byte) };
            // Relaxed: nothing is published; only the fault counts.
            byte.fetch_or(0, Ordering::Relaxed);
        }
    }
}

/// A range of a region, readable without a copy. Holds the mapping, not the object's pin.
#[derive(Debug)]
pub struct ShmSlice(Span);

impl ShmSlice {
    /// Where the range begins in its region.
    pub fn offset(&self) -> u64 {
        self.0.start as u64
    }

    /// The range as reference-counted bytes, without a copy.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for ShmSlice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the span lies inside the mapping, which the span keeps alive. While `self` lives, no
        // `ShmSliceMut` of this process overlaps it (`Borrows`), and by the store's protocol no other
        // process writes to a pinned or sealed range; see the module's documentation.
        unsafe { std::slice::from_raw_parts(self.0.ptr(), self.0.len) }
    }
}

impl AsRef<[u8]> for ShmSlice {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Clone for ShmSlice {
    fn clone(&self) -> Self {
        let Span { mapping, start, len } = &self.0;
        if *len > 0 {
            let is_free = mapping.borrows().read(self.0.range());
            debug_assert!(is_free, "a range that is read has no writer");
        }
        Self(Span { mapping: Arc::clone(mapping), start: *start, len: *len })
    }
}

impl Drop for ShmSlice {
    fn drop(&mut self) {
        if self.0.len > 0 {
            self.0.mapping.borrows().end_read(self.0.range());
        }
    }
}

/// A range of a region for its only writer. Its contents are whatever the range held before.
#[derive(Debug)]
pub struct ShmSliceMut(Span);

impl ShmSliceMut {
    /// Where the range begins in its region.
    pub fn offset(&self) -> u64 {
        self.0.start as u64
    }

    /// Ends writing.
    ///
    /// # Errors
    /// [`ShmError::Borrowed`] if another writer took the range in between.
    pub fn into_shared(self) -> Result<ShmSlice, ShmError> {
        let region = ShmRegion { mapping: Arc::clone(&self.0.mapping) };
        let (offset, len) = (self.offset(), self.len() as u64);
        drop(self);
        region.slice(offset, len)
    }
}

impl Deref for ShmSliceMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: as for `ShmSlice`; the only writer of the range in this process is `self`, which is borrowed.
        unsafe { std::slice::from_raw_parts(self.0.ptr(), self.0.len) }
    }
}

impl DerefMut for ShmSliceMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the span lies inside the mapping, which is writable and kept alive. No other slice of this
        // process overlaps it (`Borrows`), `self` is borrowed mutably, and by the store's protocol no
        // other process touches a range between its creation and its sealing.
        unsafe { std::slice::from_raw_parts_mut(self.0.ptr(), self.0.len) }
    }
}

impl Drop for ShmSliceMut {
    fn drop(&mut self) {
        if self.0.len > 0 {
            self.0.mapping.borrows().end_write(self.0.range());
        }
    }
}

/// Buffers in shared memory: an [`Arena`] and the [`ShmRegion`] that it divides.
#[derive(Debug)]
pub struct ShmPool {
    region: ShmRegion,
    arena: Mutex<Arena>,
}

impl ShmPool {
    /// A pool over a new region of `capacity` bytes.
    ///
    /// # Errors
    /// As [`ShmRegion::create`].
    pub fn create(name: &str, capacity: u64) -> Result<Self, ShmError> {
        let region = ShmRegion::create(name, capacity)?;
        let arena = Mutex::new(Arena::new(region.capacity()));
        Ok(Self { region, arena })
    }

    /// The region, whose file readers in other processes need.
    pub fn region(&self) -> &ShmRegion {
        &self.region
    }

    /// A new buffer of `len` bytes; `None` if nothing that large is free. It stays taken until
    /// [`ShmPool::free`] is called with its offset.
    ///
    /// # Errors
    /// [`ShmError::Borrowed`] if a slice of a freed buffer still lives where the new one should lie.
    pub fn allocate(&self, len: u64) -> Result<Option<ShmSliceMut>, ShmError> {
        let mut arena = self.arena();
        let Some(offset) = arena.allocate(len) else { return Ok(None) };
        let slice = self.region.slice_mut(offset, len);
        if slice.is_err() {
            arena.free(offset);
        }
        slice.map(Some)
    }

    /// Gives back the buffer that begins at `offset`; returns its footprint in bytes, or `None` if
    /// there is none.
    pub fn free(&self, offset: u64) -> Option<u64> {
        self.arena().free(offset)
    }

    /// Bytes taken.
    pub fn used(&self) -> u64 {
        self.arena().used()
    }

    /// Length of the largest buffer that could be allocated now, in bytes.
    pub fn largest_free(&self) -> u64 {
        self.arena().largest_free()
    }

    fn arena(&self) -> MutexGuard<'_, Arena> {
        self.arena.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region() -> ShmRegion {
        ShmRegion::create("test", 1 << 20).unwrap()
    }

    #[test]
    fn two_mappings_of_one_region_share_their_memory() {
        let ours = region();
        let fd = ours.fd().try_clone_to_owned().unwrap();
        let theirs = ShmRegion::from_fd(fd, Access::ReadOnly).unwrap();
        assert_ne!(ours.as_ptr(), theirs.as_ptr());
        ours.slice_mut(4096, 5).unwrap().copy_from_slice(b"hello");
        let read = theirs.slice(4096, 5).unwrap();
        assert_eq!(&*read, b"hello");
        assert_eq!(read.as_ptr(), theirs.as_ptr().wrapping_add(4096));
        assert!(matches!(theirs.slice_mut(0, 1), Err(ShmError::ReadOnly)));
        assert!(matches!(theirs.pre_fault(0..1), Err(ShmError::ReadOnly)));
    }

    #[test]
    fn slices_outlive_the_region_and_are_not_copied() {
        let region = region();
        let start = region.as_ptr();
        region.slice_mut(64, 3).unwrap().copy_from_slice(&[1, 2, 3]);
        let bytes = region.slice(64, 3).unwrap().into_bytes();
        drop(region);
        assert_eq!(bytes.as_ptr(), start.wrapping_add(64));
        assert_eq!(&bytes[..], [1, 2, 3]);
    }

    #[test]
    fn a_range_has_one_writer_or_many_readers() {
        let region = region();
        let writer = region.slice_mut(0, 100).unwrap();
        assert!(matches!(region.slice_mut(99, 1), Err(ShmError::Borrowed { offset: 99, len: 1 })));
        assert!(matches!(region.slice(0, 1), Err(ShmError::Borrowed { .. })));
        assert!(region.slice_mut(100, 1).is_ok());
        let reader = writer.into_shared().unwrap();
        let other = reader.clone();
        drop(reader);
        assert!(matches!(region.slice_mut(0, 1), Err(ShmError::Borrowed { .. })));
        drop(other);
        assert!(region.slice_mut(0, 1).is_ok());
        // Nothing is borrowed by a range of no bytes.
        let _empty = (region.slice_mut(0, 0).unwrap(), region.slice_mut(0, 0).unwrap());
    }

    #[test]
    fn what_lies_outside_is_refused() {
        let region = region();
        for (offset, len) in [(1 << 20, 1), (0, (1 << 20) + 1), (u64::MAX, 1), (1, u64::MAX)] {
            assert!(matches!(region.slice(offset, len), Err(ShmError::OutOfBounds { .. })));
            assert!(matches!(region.slice_mut(offset, len), Err(ShmError::OutOfBounds { .. })));
        }
        assert!(region.slice(1 << 20, 0).is_ok());
        assert!(matches!(ShmRegion::create("test", u64::MAX), Err(ShmError::NotARegion(_))));
    }

    #[test]
    fn the_size_is_sealed_and_a_file_that_could_shrink_is_refused() {
        let region = region();
        assert!(rustix::fs::ftruncate(region.fd(), 0).is_err());
        assert!(rustix::fs::ftruncate(region.fd(), 2 << 20).is_err());
        let plain: OwnedFd = tempfile::tempfile().unwrap().into();
        assert!(matches!(ShmRegion::from_fd(plain, Access::ReadOnly), Err(ShmError::NotARegion(_))));
        let unsealed = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(matches!(ShmRegion::from_fd(unsealed, Access::ReadOnly), Err(ShmError::NotARegion(_))));
    }

    #[test]
    fn pre_faulting_takes_memory_and_changes_nothing() {
        let region = region();
        let blocks = || rustix::fs::fstat(region.fd()).unwrap().st_blocks;
        region.slice_mut(5000, 1).unwrap()[0] = 9;
        region.pre_fault(4096..12288).unwrap();
        // In units of 512 bytes.
        assert_eq!(blocks(), 16);
        region.span(12288, 4097).unwrap().touch();
        assert_eq!(blocks(), 32);
        assert_eq!(region.slice(5000, 1).unwrap()[0], 9);
        assert!(region.pre_fault(0..u64::MAX).is_err());
        region.pre_fault(7..7).unwrap();
    }

    #[test]
    fn a_spilled_file_is_read_in_place_even_after_it_is_unlinked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("object");
        std::fs::write(&path, b"spilled").unwrap();
        assert!(matches!(ShmRegion::open_spilled(&path, 8), Err(ShmError::NotARegion(_))));
        let region = ShmRegion::open_spilled(&path, 7).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(&*region.slice(0, 7).unwrap(), b"spilled");
        assert!(matches!(ShmRegion::open_spilled(&path, 7), Err(ShmError::Os { action: "open", .. })));
    }

    #[test]
    fn a_pool_reuses_what_is_freed() {
        let pool = ShmPool::create("test", 8192).unwrap();
        let mut buffer = pool.allocate(8192).unwrap().unwrap();
        buffer.fill(1);
        assert!(pool.allocate(1).unwrap().is_none());
        let offset = buffer.offset();
        drop(buffer);
        assert_eq!(pool.free(offset), Some(8192));
        assert_eq!((pool.used(), pool.largest_free()), (0, 8192));
        assert!(pool.allocate(1).unwrap().is_some());
    }
}
