//! Objects on the heap of one process, for programs without a node daemon.
//!
//! `heap_table` decides; this shell waits, and does the file I/O.

mod arrivals;
mod heap_table;

use std::fmt;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ray_core::error::{RayError, RayResult};
use ray_core::id::ObjectId;
use ray_core::traits::{ObjectInfo, ObjectStore, StoreUsage};
use tokio::sync::Notify;
use tokio::time::timeout;

use self::arrivals::Arrivals;
use self::heap_table::{Found, HeapTable, Offer, SpillJob};
use crate::spill::{FileSpill, SpillBackend, SpillError};
use crate::{check_num_returns, not_found, partition_ready};

/// Makes an [`InMemoryObjectStore`].
#[derive(Debug, Clone, Default)]
pub struct InMemoryObjectStoreBuilder {
    capacity_bytes: u64,
    spill_folder: Option<PathBuf>,
}

impl InMemoryObjectStoreBuilder {
    /// How many bytes of objects the store may hold in memory; 0, the default, for as many as
    /// there are. What readers still hold of deleted objects does not count.
    #[must_use]
    pub fn capacity_bytes(mut self, bytes: u64) -> Self {
        self.capacity_bytes = bytes;
        self
    }

    /// Spills to files of this folder when memory is short. Without a folder, the default, a full
    /// store refuses objects.
    #[must_use]
    pub fn spill_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.spill_folder = Some(folder.into());
        self
    }

    /// The store.
    ///
    /// # Errors
    /// [`RayError::Io`] if the folder cannot be made.
    pub fn build(self) -> RayResult<InMemoryObjectStore> {
        let backend = self.spill_folder.map(FileSpill::new).transpose()?;
        let backend = backend.map(|backend| Arc::new(backend) as Arc<dyn SpillBackend>);
        Ok(InMemoryObjectStore::with_backend(self.capacity_bytes, backend))
    }
}

/// An object store on the heap. Cheap to clone; clones are the same store.
#[derive(Clone)]
pub struct InMemoryObjectStore {
    shared: Arc<Shared>,
}

struct Shared {
    /// Held for short, never across an await.
    table: Mutex<HeapTable>,
    arrivals: Arrivals,
    /// A spill ended, so that whoever waits for space or for the copy may go on.
    spill_ended: Notify,
    backend: Option<Arc<dyn SpillBackend>>,
}

impl fmt::Debug for InMemoryObjectStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InMemoryObjectStore").field("usage", &self.shared.table().usage()).finish()
    }
}

impl InMemoryObjectStore {
    /// A store of so many bytes, 0 for unlimited, that never spills.
    pub fn new(capacity_bytes: u64) -> Self {
        Self::with_backend(capacity_bytes, None)
    }

    /// A store with further settings.
    pub fn builder() -> InMemoryObjectStoreBuilder {
        InMemoryObjectStoreBuilder::default()
    }

    /// A store that spills to this back end, if there is one.
    pub fn with_backend(capacity_bytes: u64, backend: Option<Arc<dyn SpillBackend>>) -> Self {
        let table = Mutex::new(HeapTable::new(capacity_bytes, backend.is_some()));
        let arrivals = Arrivals::default();
        Self { shared: Arc::new(Shared { table, arrivals, spill_ended: Notify::new(), backend }) }
    }
}

#[async_trait]
impl ObjectStore for InMemoryObjectStore {
    /// Cancel safe: a put that is given up while it waits for space has stored nothing.
    async fn put(&self, object_id: ObjectId, data: Bytes) -> RayResult<()> {
        let shared = &*self.shared;
        let mut failure = None;
        loop {
            let mut spill_ended = pin!(shared.spill_ended.notified());
            // From here on no ending is missed, also not one that comes before the await below.
            spill_ended.as_mut().enable();
            let offer = shared.table().put(object_id, &data);
            match offer {
                Offer::Stored => break,
                Offer::Present => return Ok(()),
                Offer::Different(size) => {
                    return Err(RayError::AlreadyExists {
                        what: format!("object {object_id} of {size} bytes"),
                    });
                }
                Offer::Full => return Err(failure.unwrap_or_else(|| shared.full(data.len() as u64))),
                Offer::Wait => spill_ended.await,
                Offer::Spill(jobs) => {
                    let jobs = shared.begin(jobs);
                    if let Some(failure) = failure {
                        return Err(failure);
                    }
                    failure = shared.spill_all(jobs).await.err();
                }
            }
        }
        shared.remove_stale().await;
        shared.arrivals.announce(&object_id);
        Ok(())
    }

    /// Cancel safe. The time counts until the object is there; reading it back from disk ends by
    /// itself.
    async fn get(&self, object_id: &ObjectId, limit: Duration) -> RayResult<Bytes> {
        let shared = &*self.shared;
        let watch = shared.arrivals.watch(vec![*object_id]);
        let arrival = async {
            loop {
                if let Some(found) = shared.find(object_id) {
                    return found;
                }
                watch.arrived().await;
            }
        };
        match timeout(limit, arrival).await {
            Ok(Found::Memory(data)) => Ok(data),
            Ok(Found::Disk(url, size)) => shared.load(*object_id, &url, size).await.map(|(data, _)| data),
            Err(_) => Err(RayError::GetTimeout { what: format!("object {object_id}"), waited: limit }),
        }
    }

    async fn delete(&self, object_id: &ObjectId) -> RayResult<bool> {
        let was_there = self.shared.table().delete(object_id);
        self.shared.remove_stale().await;
        Ok(was_there)
    }

    async fn contains(&self, object_id: &ObjectId) -> RayResult<bool> {
        Ok(self.shared.table().contains(object_id))
    }

    async fn info(&self, object_id: &ObjectId) -> RayResult<ObjectInfo> {
        self.shared.table().info(object_id).ok_or_else(|| not_found(object_id))
    }

    /// Cancel safe.
    async fn wait(
        &self,
        object_ids: &[ObjectId],
        num_returns: usize,
        limit: Duration,
    ) -> RayResult<(Vec<ObjectId>, Vec<ObjectId>)> {
        check_num_returns(num_returns, object_ids.len())?;
        let shared = &*self.shared;
        let missing: Vec<ObjectId> = shared.missing(object_ids);
        let enough = object_ids.len() - num_returns;
        if missing.len() > enough {
            let watch = shared.arrivals.watch(missing.clone());
            let arrival = async {
                let mut missing = shared.missing(&missing);
                while missing.len() > enough {
                    watch.arrived().await;
                    missing = shared.missing(&missing);
                }
            };
            // Too late or not, what is there is returned.
            let _ = timeout(limit, arrival).await;
        }
        let table = shared.table();
        Ok(partition_ready(object_ids, num_returns, |object_id| table.contains(object_id)))
    }

    async fn spill(&self, object_ids: &[ObjectId]) -> RayResult<Vec<String>> {
        let mut urls = Vec::with_capacity(object_ids.len());
        for object_id in object_ids {
            urls.push(self.shared.spill_one(*object_id).await?);
        }
        Ok(urls)
    }

    /// An object that fits only if others were spilled first stays on disk, with `ObjectStoreFull`;
    /// a get reads it nevertheless.
    async fn restore(&self, object_ids: &[ObjectId]) -> RayResult<u64> {
        let mut restored = 0;
        for object_id in object_ids {
            let found = self.shared.find(object_id).ok_or_else(|| not_found(object_id))?;
            if let Found::Disk(url, size) = found {
                let (_, is_kept) = self.shared.load(*object_id, &url, size).await?;
                if !is_kept {
                    return Err(self.shared.full(size));
                }
                restored += size;
            }
        }
        Ok(restored)
    }

    async fn add_reference(&self, object_id: &ObjectId) -> RayResult<u64> {
        self.shared.table().add_reference(object_id).ok_or_else(|| not_found(object_id))
    }

    async fn remove_reference(&self, object_id: &ObjectId) -> RayResult<u64> {
        let left = self.shared.table().remove_reference(object_id).ok_or_else(|| not_found(object_id))?;
        self.shared.remove_stale().await;
        Ok(left)
    }

    async fn usage(&self) -> RayResult<StoreUsage> {
        Ok(self.shared.table().usage())
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, HeapTable> {
        // A broken invariant panics in the table; the others go on with what it left.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, object_id: &ObjectId) -> Option<Found> {
        self.table().find(object_id)
    }

    fn missing(&self, object_ids: &[ObjectId]) -> Vec<ObjectId> {
        let table = self.table();
        object_ids.iter().filter(|id| !table.contains(id)).copied().collect()
    }

    fn full(&self, requested_bytes: u64) -> RayError {
        let table = self.table();
        let StoreUsage { used_bytes, capacity_bytes, .. } = table.usage();
        RayError::ObjectStoreFull { requested_bytes, used_bytes, capacity_bytes, holders: table.holders() }
    }

    fn backend(&self) -> RayResult<&dyn SpillBackend> {
        let none = || RayError::InvalidArgument("this object store has no place to spill to".to_owned());
        self.backend.as_deref().ok_or_else(none)
    }

    fn begin(&self, jobs: Vec<SpillJob>) -> Vec<PendingSpill<'_>> {
        jobs.into_iter().map(|job| PendingSpill { shared: self, job, url: None }).collect()
    }

    /// Writes all of these, one after the other, because a disk is not faster for being asked twice;
    /// the first refusal is returned after all have ended.
    async fn spill_all(&self, jobs: Vec<PendingSpill<'_>>) -> RayResult<()> {
        let mut outcome = Ok(());
        for job in jobs {
            outcome = outcome.and(job.run().await);
        }
        self.remove_stale().await;
        outcome
    }

    /// Spills one object, or waits for the one who does; returns where it is.
    async fn spill_one(&self, object_id: ObjectId) -> RayResult<String> {
        self.backend()?;
        loop {
            let mut spill_ended = pin!(self.spill_ended.notified());
            spill_ended.as_mut().enable();
            let begun = self.table().start_spill(object_id);
            let job = begun.map_err(|_| not_found(&object_id))?;
            if let Some(job) = job {
                self.spill_all(self.begin(vec![job])).await?;
                continue;
            }
            let url = self.table().info(&object_id).and_then(|info| info.spill_url);
            match url {
                Some(url) => return Ok(url),
                None => spill_ended.await,
            }
        }
    }

    /// Reads a copy; returns it, and whether it is kept in memory too.
    async fn load(&self, object_id: ObjectId, url: &str, size: u64) -> RayResult<(Bytes, bool)> {
        match self.backend()?.read(url, size).await {
            Ok(data) => {
                let is_kept = self.table().on_restored(object_id, url, &data);
                self.remove_stale().await;
                Ok((data, is_kept))
            }
            Err(error) => {
                if matches!(error, SpillError::Lost { .. }) {
                    self.table().on_copy_lost(&object_id, url);
                }
                Err(self.spill_error(object_id, error))
            }
        }
    }

    /// Removes the copies on disk that nobody needs any more.
    async fn remove_stale(&self) {
        let stale = self.table().take_stale();
        let Some(backend) = &self.backend else { return };
        for url in stale {
            if let Err(error) = backend.remove(&url).await {
                tracing::warn!(%error, "a spilled object stays on disk");
            }
        }
    }

    fn spill_error(&self, object_id: ObjectId, error: SpillError) -> RayError {
        let holders = self.table().holders();
        error.into_ray_error(object_id, holders)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let Some(backend) = &self.backend else { return };
        let table = self.table.get_mut().unwrap_or_else(PoisonError::into_inner);
        table.urls().for_each(|url| backend.remove_now(url));
    }
}

/// A spill that the table waits for: however this ends, also by being dropped, the table hears of it.
struct PendingSpill<'a> {
    shared: &'a Shared,
    job: SpillJob,
    url: Option<String>,
}

impl PendingSpill<'_> {
    async fn run(mut self) -> RayResult<()> {
        let written = self.shared.backend()?.write(self.job.object_id, self.job.data.clone()).await;
        match written {
            Ok(url) => {
                self.url = Some(url);
                Ok(())
            }
            Err(error) => Err(self.shared.spill_error(self.job.object_id, error)),
        }
    }
}

impl Drop for PendingSpill<'_> {
    fn drop(&mut self) {
        self.shared.table().on_spilled(self.job.object_id, self.job.attempt, self.url.take());
        self.shared.spill_ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> ObjectId {
        ObjectId::from_bytes([n; 28])
    }

    #[tokio::test]
    async fn a_getter_that_gives_up_leaves_no_trace() {
        let store = InMemoryObjectStore::new(0);
        let error = store.get(&id(1), Duration::from_millis(1)).await.unwrap_err();
        assert!(matches!(error, RayError::GetTimeout { .. }));
        store.wait(&[id(1), id(2)], 1, Duration::ZERO).await.unwrap();
        assert!(store.shared.arrivals.is_empty());
    }

    #[tokio::test]
    async fn what_was_spilled_is_gone_from_disk_with_the_store() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("spill");
        let store =
            InMemoryObjectStore::builder().capacity_bytes(1000).spill_folder(&folder).build().unwrap();
        for n in 0..10 {
            store.put(id(n), vec![n; 400].into()).await.unwrap();
        }
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 8);
        store.delete(&id(0)).await.unwrap();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 7);
        drop(store);
        assert!(!folder.exists());
    }

    /// A disk on which nothing is ever finished, or nothing ever fits.
    enum BadDisk {
        Stuck,
        Full,
    }

    #[async_trait]
    impl SpillBackend for BadDisk {
        async fn write(&self, _: ObjectId, data: Bytes) -> Result<String, SpillError> {
            match self {
                Self::Stuck => std::future::pending().await,
                Self::Full => {
                    Err(SpillError::OutOfDisk { path: self.place(), size_bytes: data.len() as u64 })
                }
            }
        }
        async fn read(&self, _: &str, _: u64) -> Result<Bytes, SpillError> {
            std::future::pending().await
        }
        async fn read_into(&self, _: &str, _: crate::shm::ShmSliceMut) -> Result<(), SpillError> {
            std::future::pending().await
        }
        async fn remove(&self, _: &str) -> Result<(), SpillError> {
            Ok(())
        }
        fn remove_now(&self, _: &str) {}
        fn place(&self) -> String {
            "nowhere".to_owned()
        }
    }

    #[tokio::test]
    async fn a_full_disk_is_the_error_of_the_put_and_loses_nothing() {
        let store = InMemoryObjectStore::with_backend(100, Some(Arc::new(BadDisk::Full)));
        store.put(id(1), vec![1; 100].into()).await.unwrap();
        for _ in 0..2 {
            let error = store.put(id(2), vec![2; 50].into()).await.unwrap_err();
            assert!(matches!(error, RayError::OutOfDisk { .. }), "{error}");
            assert!(error.to_string().contains("nowhere") && error.to_string().contains("(100 bytes)"));
        }
        assert!(matches!(store.spill(&[id(1)]).await, Err(RayError::OutOfDisk { .. })));
        assert_eq!(store.get(&id(1), Duration::ZERO).await.unwrap(), vec![1; 100]);
        store.delete(&id(1)).await.unwrap();
        store.put(id(2), vec![2; 50].into()).await.unwrap();
    }

    #[tokio::test]
    async fn an_object_whose_only_copy_is_gone_is_lost_and_can_be_put_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = InMemoryObjectStore::builder().spill_folder(folder.path()).build().unwrap();
        store.put(id(1), vec![1; 100].into()).await.unwrap();
        let urls = store.spill(&[id(1)]).await.unwrap();
        std::fs::remove_file(crate::spill::local_path(&urls[0]).unwrap()).unwrap();
        let error = store.get(&id(1), Duration::ZERO).await.unwrap_err();
        assert!(matches!(error, RayError::ObjectLost { .. }), "{error}");
        assert!(!store.contains(&id(1)).await.unwrap());
        store.put(id(1), vec![1; 100].into()).await.unwrap();
    }

    #[tokio::test]
    async fn a_put_given_up_while_it_spills_leaves_the_others_as_they_were() {
        let store = InMemoryObjectStore::with_backend(100, Some(Arc::new(BadDisk::Stuck)));
        store.put(id(1), vec![1; 100].into()).await.unwrap();
        let put = store.put(id(2), vec![2; 100].into());
        assert!(timeout(Duration::from_millis(1), put).await.is_err());
        assert!(!store.contains(&id(2)).await.unwrap());
        assert_eq!(store.get(&id(1), Duration::ZERO).await.unwrap(), vec![1; 100]);
        // It is no candidate for a spill that has ended: another put begins anew.
        let put = store.put(id(2), vec![2; 100].into());
        assert!(timeout(Duration::from_millis(1), put).await.is_err());
    }
}
