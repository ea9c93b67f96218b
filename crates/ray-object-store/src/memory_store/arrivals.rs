//! Who waits for which objects to arrive.

use ray_core::id::ObjectId;
use rustc_hash::FxHashMap;
use tokio::sync::Notify;

use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Waiters = FxHashMap<ObjectId, Vec<Arc<Notify>>>;

/// The waiting calls by object. A call waits for many objects with one [`Notify`], so that an
/// arrival wakes those who wait for this object and nobody else.
#[derive(Debug, Default)]
pub(super) struct Arrivals(Mutex<Waiters>);

impl Arrivals {
    /// Wakes those who wait for this object.
    pub(super) fn announce(&self, object_id: &ObjectId) {
        let waiters = self.lock().remove(object_id);
        waiters.into_iter().flatten().for_each(|waiter| waiter.notify_one());
    }

    /// Begins to wait. What arrives from now on is not missed, so look for the objects after this.
    pub(super) fn watch(&self, object_ids: Vec<ObjectId>) -> Watch<'_> {
        let notify = Arc::new(Notify::new());
        let mut waiters = self.lock();
        for object_id in &object_ids {
            waiters.entry(*object_id).or_default().push(Arc::clone(&notify));
        }
        drop(waiters);
        Watch { arrivals: self, object_ids, notify }
    }

    fn lock(&self) -> MutexGuard<'_, Waiters> {
        // Nothing that can panic half-way runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}

/// One call that waits; dropping it ends the waiting.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    arrivals: &'a Arrivals,
    object_ids: Vec<ObjectId>,
    notify: Arc<Notify>,
}

impl Watch<'_> {
    /// Waits until one of the objects has arrived since the last call of this.
    pub(super) async fn arrived(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut waiters = self.arrivals.lock();
        for object_id in &self.object_ids {
            let Some(own) = waiters.get_mut(object_id) else { continue };
            own.retain(|notify| !Arc::ptr_eq(notify, &self.notify));
            if own.is_empty() {
                waiters.remove(object_id);
            }
        }
    }
}
