//! The node's objects behind the [`ObjectStore`] trait, for gRPC.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ray_core::error::{RayError, RayResult};
use ray_core::id::{NodeId, ObjectId};
use ray_core::traits::{ObjectInfo, ObjectStore, StoreUsage};
use ray_object_store::object_table::Reader;
use tokio::sync::{mpsc, oneshot};

use super::handle::{Command, NodeHandle};
use super::store_port::{PinnedObject, StoreCommand, StoreDrop};

/// How long bringing one object back may take: the disk may be busy with others.
const RESTORE_LIMIT: Duration = Duration::from_secs(600);

/// The store of the node behind this handle. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct NodeObjectStore {
    node: NodeHandle,
}

/// Takes a request back when whoever waits for it goes away.
struct Asked<'a> {
    node: &'a NodeHandle,
    request: Option<u64>,
}

impl<'a> Asked<'a> {
    const fn new(node: &'a NodeHandle, request: u64) -> Self {
        Self { node, request: Some(request) }
    }

    /// The request is answered.
    fn done(mut self) {
        self.request = None;
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            self.node.note_drop(StoreDrop::Request(request));
        }
    }
}

impl NodeObjectStore {
    /// The store of this node.
    pub(crate) const fn new(node: NodeHandle) -> Self {
        Self { node }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> StoreCommand + Send) -> RayResult<T> {
        self.node.call(|answer| Command::Store(command(answer))).await
    }

    /// The object, pinned where it is, as soon as it is there.
    ///
    /// # Errors
    /// As [`ObjectStore::get`].
    pub(crate) async fn pin(&self, object_id: ObjectId, timeout: Duration) -> RayResult<PinnedObject> {
        // This process can map the copy of a spilled object, and so needs no room to read it.
        self.pin_as(Reader::ArenaOrFile, object_id, timeout).await
    }

    /// The object, pinned where it is, for a node that keeps a copy of it; it is told when the object goes.
    ///
    /// # Errors
    /// `NotFound` if there is no such object and nobody is writing it, `Unavailable` if this node does not know the
    /// other; else as [`ObjectStore::get`].
    pub(crate) async fn lend(
        &self,
        object_id: ObjectId,
        to: Option<NodeId>,
        timeout: Duration,
    ) -> RayResult<PinnedObject> {
        let command = |request, answer| StoreCommand::Lend { request, object_id, to, answer };
        self.pinned_by(command, object_id, timeout).await
    }

    async fn pin_as(
        &self,
        reader: Reader,
        object_id: ObjectId,
        timeout: Duration,
    ) -> RayResult<PinnedObject> {
        let command = |request, answer| StoreCommand::Get { request, object_id, reader, answer };
        self.pinned_by(command, object_id, timeout).await
    }

    async fn pinned_by(
        &self,
        command: impl FnOnce(u64, oneshot::Sender<RayResult<PinnedObject>>) -> StoreCommand + Send,
        object_id: ObjectId,
        timeout: Duration,
    ) -> RayResult<PinnedObject> {
        let request = self.node.next_request();
        let asked = Asked::new(&self.node, request);
        let mut answer = pin!(self.ask(|answer| command(request, answer)));
        let answered = match tokio::time::timeout(timeout, answer.as_mut()).await {
            Ok(answered) => Some(answered),
            Err(_) => {
                self.wait_for_a_look().await?;
                match poll_fn(|context| Poll::Ready(answer.as_mut().poll(context))).await {
                    Poll::Ready(answered) => Some(answered),
                    Poll::Pending => None,
                }
            }
        };
        let Some(answered) = answered else {
            return Err(RayError::GetTimeout { what: format!("object {object_id}"), waited: timeout });
        };
        asked.done();
        answered?
    }

    /// Waits until the thread has looked at what it was asked before: a short time is over earlier than that,
    /// and what is there is told however short the time is.
    async fn wait_for_a_look(&self) -> RayResult<()> {
        self.usage().await.map(drop)
    }

    async fn known(&self, object_id: &ObjectId) -> RayResult<ObjectInfo> {
        let object_id = *object_id;
        let info = self.ask(|answer| StoreCommand::Info { object_id, answer }).await?;
        info.ok_or_else(|| not_found(&object_id))
    }

    async fn count_reference(&self, object_id: &ObjectId, add: bool) -> RayResult<u64> {
        let object_id = *object_id;
        let references = self.ask(|answer| StoreCommand::CountReference { object_id, add, answer }).await?;
        references.ok_or_else(|| not_found(&object_id))
    }
}

fn not_found(object_id: &ObjectId) -> RayError {
    RayError::NotFound { what: format!("object {object_id}") }
}

#[async_trait]
impl ObjectStore for NodeObjectStore {
    async fn put(&self, object_id: ObjectId, data: Bytes) -> RayResult<()> {
        let (request, size) = (self.node.next_request(), data.len() as u64);
        let asked = Asked::new(&self.node, request);
        let room = self.ask(|answer| StoreCommand::Create { request, object_id, size, answer }).await?;
        asked.done();
        let Some(room) = room? else { return Ok(()) };
        let written = tokio::task::spawn_blocking(move || room.fill(&data)).await;
        let room = written
            .map_err(|error| RayError::io("cannot write to shared memory", std::io::Error::other(error)))?;
        let (answer, sealed) = oneshot::channel();
        self.node.send(Command::Store(StoreCommand::Seal { object_id, answer })).await?;
        room.keep();
        sealed.await.map_err(|_| RayError::ShutDown)
    }

    async fn get(&self, object_id: &ObjectId, timeout: Duration) -> RayResult<Bytes> {
        Ok(Bytes::from_owner(self.pin(*object_id, timeout).await?))
    }

    async fn delete(&self, object_id: &ObjectId) -> RayResult<bool> {
        let object_id = *object_id;
        self.ask(|answer| StoreCommand::Delete { object_id, answer }).await
    }

    async fn contains(&self, object_id: &ObjectId) -> RayResult<bool> {
        let object_id = *object_id;
        let info = self.ask(|answer| StoreCommand::Info { object_id, answer }).await?;
        Ok(info.is_some_and(|info| info.sealed))
    }

    async fn info(&self, object_id: &ObjectId) -> RayResult<ObjectInfo> {
        self.known(object_id).await
    }

    async fn wait(
        &self,
        object_ids: &[ObjectId],
        num_returns: usize,
        timeout: Duration,
    ) -> RayResult<(Vec<ObjectId>, Vec<ObjectId>)> {
        if num_returns > object_ids.len() {
            let reason = format!("num_returns is {num_returns}, for {} objects", object_ids.len());
            return Err(RayError::InvalidArgument(reason));
        }
        let mut ready = std::collections::BTreeSet::new();
        let count = |ready: &std::collections::BTreeSet<ObjectId>| {
            object_ids.iter().filter(|object_id| ready.contains(object_id)).count()
        };
        let (arrived, mut arrivals) = mpsc::channel(object_ids.len().max(1));
        let request = self.node.next_request();
        let asked = Asked::new(&self.node, request);
        let object_ids_sent = object_ids.to_vec();
        let command = StoreCommand::Wait { request, object_ids: object_ids_sent, arrived };
        self.node.send(Command::Store(command)).await?;
        let gather = async {
            while count(&ready) < num_returns {
                let Some(object_id) = arrivals.recv().await else { return Err(RayError::ShutDown) };
                ready.insert(object_id);
            }
            Ok(())
        };
        // When the time is over, what has arrived counts.
        match tokio::time::timeout(timeout, gather).await {
            Ok(gathered) => gathered?,
            Err(_) => {
                self.wait_for_a_look().await?;
                ready.extend(std::iter::from_fn(|| arrivals.try_recv().ok()));
            }
        }
        drop(asked);
        let mut left = num_returns;
        Ok(object_ids.iter().partition(|object_id| {
            let taken = left > 0 && ready.contains(object_id);
            left -= usize::from(taken);
            taken
        }))
    }

    async fn spill(&self, object_ids: &[ObjectId]) -> RayResult<Vec<String>> {
        let wanted: std::collections::BTreeSet<_> = object_ids.iter().copied().collect();
        let (copies, mut done) = mpsc::channel(wanted.len().max(1));
        let request = self.node.next_request();
        let asked = Asked::new(&self.node, request);
        let command = StoreCommand::Spill { request, object_ids: object_ids.to_vec(), copies };
        self.node.send(Command::Store(command)).await?;
        let mut urls = std::collections::BTreeMap::new();
        while urls.len() < wanted.len() {
            let (object_id, url) = done.recv().await.ok_or(RayError::ShutDown)??;
            urls.insert(object_id, url);
        }
        drop(asked);
        Ok(object_ids.iter().filter_map(|object_id| urls.get(object_id).cloned()).collect())
    }

    async fn restore(&self, object_ids: &[ObjectId]) -> RayResult<u64> {
        let mut restored = 0;
        for object_id in object_ids {
            let info = self.known(object_id).await?;
            if info.sealed {
                let pinned = self.pin_as(Reader::Arena, *object_id, RESTORE_LIMIT).await?;
                restored += if info.spill_url.is_some() { pinned.len() as u64 } else { 0 };
            }
        }
        Ok(restored)
    }

    async fn add_reference(&self, object_id: &ObjectId) -> RayResult<u64> {
        self.count_reference(object_id, true).await
    }

    async fn remove_reference(&self, object_id: &ObjectId) -> RayResult<u64> {
        self.count_reference(object_id, false).await
    }

    async fn usage(&self) -> RayResult<StoreUsage> {
        self.ask(|answer| StoreCommand::Usage { answer }).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Context;
    use std::time::Instant;

    use ray_core::config::ObjectStoreConfig;
    use ray_core::id::TaskId;
    use ray_link::{Interest, Poller, Waker};
    use ray_object_store::spill::{FileSpill, SpillBackend};
    use ray_object_store::testing::Setup;
    use tokio::runtime::Handle;

    use super::super::store_port::StorePort;
    use super::*;

    const SECONDS: Duration = Duration::from_secs(10);
    const MIB: u64 = 1 << 20;

    fn object(number: u64) -> ObjectId {
        ObjectId::for_put(TaskId::from_bytes([1; 16]), number)
    }

    /// A store of 8 MiB that spills.
    fn start(folder: &std::path::Path) -> NodeObjectStore {
        start_with(8 * MIB, Some(Arc::new(FileSpill::new(folder.join("spilled")).unwrap())))
    }

    async fn make(setup: Setup) -> (NodeObjectStore, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let spill = setup.spills.then(|| FileSpill::new(folder.path().join("spilled")).unwrap());
        let spill = spill.map(|spill| Arc::new(spill) as Arc<dyn SpillBackend>);
        (start_with(setup.capacity_bytes, spill), folder)
    }

    ray_object_store::conformance_tests!(make);

    /// A store on a thread of its own, which ends with the test.
    fn start_with(capacity: u64, spill: Option<Arc<dyn SpillBackend>>) -> NodeObjectStore {
        let waker = Arc::new(Waker::new().unwrap());
        let (node, mut inbox) = NodeHandle::new(Arc::clone(&waker));
        let (own, settings) = (NodeId::random(), ObjectStoreConfig::default());
        let mut port =
            StorePort::new(own, capacity, &settings, spill, Handle::current(), node.clone()).unwrap();
        std::thread::spawn(move || {
            let poller = Poller::new().unwrap();
            poller.add(&*waker, 0, Interest::Read).unwrap();
            let (mut ready, mut out) = (Vec::new(), Vec::new());
            loop {
                let wait = port.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
                poller.wait(&mut ready, wait).unwrap();
                waker.reset();
                let now = Instant::now();
                while let Some(command) = inbox.take() {
                    let Command::Store(command) = command else { return };
                    port.on_command(now, command, &mut out);
                }
                port.on_tick(now, &mut out);
            }
        });
        NodeObjectStore::new(node)
    }

    #[tokio::test]
    async fn what_is_put_is_got_and_counted_until_it_is_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let store = start(folder.path());
        store.put(object(1), Bytes::from_static(b"hello")).await.unwrap();
        store.put(object(1), Bytes::from_static(b"hello")).await.unwrap();
        let error = store.put(object(1), Bytes::from_static(b"other size")).await.unwrap_err();
        assert!(matches!(error, RayError::AlreadyExists { .. }), "{error}");
        assert_eq!(store.get(&object(1), SECONDS).await.unwrap(), "hello");
        assert!(store.contains(&object(1)).await.unwrap());
        assert_eq!(store.add_reference(&object(1)).await.unwrap(), 2);
        assert_eq!(store.remove_reference(&object(1)).await.unwrap(), 1);
        let info = store.info(&object(1)).await.unwrap();
        assert_eq!((info.size_bytes, info.references, info.sealed), (5, 1, true));
        assert!(store.delete(&object(1)).await.unwrap());
        assert!(!store.delete(&object(1)).await.unwrap());
        assert!(matches!(store.info(&object(1)).await, Err(RayError::NotFound { .. })));
    }

    #[tokio::test]
    async fn waiting_tells_who_has_come_when_the_time_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let store = start(folder.path());
        store.put(object(1), Bytes::new()).await.unwrap();
        let both = [object(2), object(1)];
        let (ready, not_ready) = store.wait(&both, 2, Duration::ZERO).await.unwrap();
        assert_eq!((ready, not_ready), (vec![object(1)], vec![object(2)]));
        let (ready, not_ready) = store.wait(&both, 1, SECONDS).await.unwrap();
        assert_eq!((ready, not_ready), (vec![object(1)], vec![object(2)]));
        assert!(store.wait(&both, 3, SECONDS).await.is_err());
        let error = store.get(&object(2), Duration::from_millis(1)).await.unwrap_err();
        assert!(matches!(error, RayError::GetTimeout { .. }), "{error}");
    }

    #[tokio::test]
    async fn more_than_fits_is_spilled_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = start(folder.path());
        let data = |number: u8| Bytes::from(vec![number; 3 << 20]);
        for number in 0..6 {
            store.put(object(u64::from(number)), data(number)).await.unwrap();
        }
        for number in 0..6 {
            assert!(store.get(&object(u64::from(number)), SECONDS).await.unwrap() == data(number));
        }
        let urls = store.spill(&[object(0), object(0), object(1)]).await.unwrap();
        assert_eq!((urls.len(), &urls[0]), (3, &urls[1]));
        assert_eq!(store.restore(&[object(0), object(1)]).await.unwrap(), 6 * MIB);
        assert!(store.usage().await.unwrap().spilled_bytes >= 6 * MIB);
    }

    /// An answer that nobody took kept its room, and whoever put the object later waited for ever.
    #[tokio::test]
    async fn a_put_that_is_given_up_at_any_point_leaves_nothing() {
        let store = start_with(8 * MIB, None);
        let data = Bytes::from(vec![7; 5 << 20]);
        for polls in (1..=6).cycle().take(60) {
            {
                let mut put = pin!(store.put(object(1), data.clone()));
                for _ in 0..polls {
                    if put.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())).is_ready() {
                        break;
                    }
                    // It is answered after what was asked before.
                    store.usage().await.unwrap();
                }
            }
            store.delete(&object(1)).await.unwrap();
            let again = tokio::time::timeout(SECONDS, store.put(object(1), data.clone())).await;
            again.expect("nobody else writes the object").unwrap();
            store.delete(&object(1)).await.unwrap();
        }
        assert_eq!(store.usage().await.unwrap().used_bytes, 0);
    }

    #[tokio::test]
    async fn a_reader_keeps_its_object_where_it_is_until_it_goes() {
        let folder = tempfile::tempdir().unwrap();
        let store = start(folder.path());
        let data = Bytes::from(vec![7; 5 << 20]);
        store.put(object(1), data.clone()).await.unwrap();
        let read = store.get(&object(1), SECONDS).await.unwrap();
        store.delete(&object(1)).await.unwrap();
        let error = store.put(object(2), data.clone()).await.unwrap_err();
        assert!(matches!(error, RayError::ObjectStoreFull { .. }), "{error}");
        assert!(read == data);
        drop(read);
        store.put(object(2), data).await.unwrap();
    }
}
