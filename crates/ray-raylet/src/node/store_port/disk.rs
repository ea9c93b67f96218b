//! Copies of objects to and from the disk: made by tokio, which reports back by commands.

use std::fmt;
use std::sync::Arc;

use ray_core::id::ObjectId;
use ray_object_store::object_table::DiskFailure;
use ray_object_store::shm::{ShmError, ShmSlice, ShmSliceMut};
use ray_object_store::spill::{SpillBackend, SpillError};
use tokio::runtime::Handle;
use tracing::warn;

use super::super::handle::NodeHandle;
use super::command::StoreCommand;

const NO_PLACE: &str = "there is no place to spill to";

/// Where objects are spilled to, if anywhere.
pub(super) struct Disk {
    backend: Option<Arc<dyn SpillBackend>>,
    runtime: Handle,
    node: NodeHandle,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("place", &self.place()).finish_non_exhaustive()
    }
}

impl Disk {
    /// Copies go to this backend, and what became of them to this node.
    pub(super) const fn new(
        backend: Option<Arc<dyn SpillBackend>>,
        runtime: Handle,
        node: NodeHandle,
    ) -> Self {
        Self { backend, runtime, node }
    }

    /// Where copies are, as people read it.
    pub(super) fn place(&self) -> Option<String> {
        self.backend.as_ref().map(|backend| backend.place())
    }

    /// Copies an object to disk.
    pub(super) fn spill(&self, object_id: ObjectId, slice: Result<ShmSlice, ShmError>) {
        let (backend, node) = (self.backend.clone(), self.node.clone());
        self.runtime.spawn(async move {
            let result = match (slice, backend) {
                (Ok(slice), Some(backend)) => {
                    backend.write(object_id, slice.into_bytes()).await.map_err(disk_failure)
                }
                (Err(error), _) => Err(DiskFailure::Failed { cause: error.to_string() }),
                (_, None) => Err(DiskFailure::Failed { cause: NO_PLACE.to_owned() }),
            };
            node.report(StoreCommand::SpillEnded { object_id, result }).await;
        });
    }

    /// Reads an object from its copy into its room.
    pub(super) fn restore(&self, object_id: ObjectId, url: String, room: Result<ShmSliceMut, ShmError>) {
        let (backend, node) = (self.backend.clone(), self.node.clone());
        self.runtime.spawn(async move {
            let result = match (room, backend) {
                (Ok(room), Some(backend)) => backend.read_into(&url, room).await.map_err(disk_failure),
                (Err(error), _) => Err(DiskFailure::Failed { cause: error.to_string() }),
                (_, None) => Err(DiskFailure::Lost { cause: NO_PLACE.to_owned() }),
            };
            node.report(StoreCommand::RestoreEnded { object_id, result }).await;
        });
    }

    /// Removes a copy.
    pub(super) fn remove(&self, url: String) {
        let Some(backend) = self.backend.clone() else { return };
        self.runtime.spawn(async move {
            if let Err(error) = backend.remove(&url).await {
                warn!(%error, "a spilled object stays on disk");
            }
        });
    }

    /// Removes copies at once, at the end of the store.
    pub(super) fn remove_now<'a>(&self, urls: impl Iterator<Item = &'a str>) {
        if let Some(backend) = &self.backend {
            urls.for_each(|url| backend.remove_now(url));
        }
    }
}

fn disk_failure(error: SpillError) -> DiskFailure {
    match error {
        SpillError::OutOfDisk { .. } => DiskFailure::OutOfDisk,
        SpillError::Lost { .. } => DiskFailure::Lost { cause: error.to_string() },
        SpillError::Io { .. } => {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            DiskFailure::Failed { cause: format!("{error}: {source}") }
        }
    }
}
