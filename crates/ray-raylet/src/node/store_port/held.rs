//! What the node itself holds of its shared memory: objects that it reads, and room that it writes. Either is given back
//! when it goes, wherever it is then.

use std::ops::Deref;

use ray_core::id::ObjectId;
use ray_object_store::object_table;
use ray_object_store::shm::{ShmSlice, ShmSliceMut};

use super::super::handle::NodeHandle;
use super::command::StoreDrop;

/// A sealed object that stays where it is as long as this lives.
#[derive(Debug)]
pub(crate) struct PinnedObject {
    // The slice goes first: only then may the range be written again.
    slice: Option<ShmSlice>,
    object_id: ObjectId,
    node: NodeHandle,
}

impl PinnedObject {
    /// An object without bytes; its pin is given back when this goes.
    pub(super) const fn new(object_id: ObjectId, node: NodeHandle) -> Self {
        Self { slice: None, object_id, node }
    }

    /// The same with the bytes that it has.
    pub(super) fn with_bytes(mut self, slice: ShmSlice) -> Self {
        self.slice = Some(slice);
        self
    }
}

impl Deref for PinnedObject {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.slice.as_deref().unwrap_or_default()
    }
}

impl AsRef<[u8]> for PinnedObject {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for PinnedObject {
    fn drop(&mut self) {
        drop(self.slice.take());
        self.node.note_drop(StoreDrop::Pin(self.object_id));
    }
}

/// Room for an object that the node itself writes. The object goes with this, wherever this is when it goes,
/// unless the order to seal it was given.
#[derive(Debug)]
pub(crate) struct Room {
    // The slice goes first: only then may the range be written again.
    slice: Option<ShmSliceMut>,
    client: object_table::ClientId,
    object_id: ObjectId,
    node: NodeHandle,
    kept: bool,
}

impl Room {
    /// Room that this client writes.
    pub(super) const fn new(
        slice: ShmSliceMut,
        client: object_table::ClientId,
        object_id: ObjectId,
        node: NodeHandle,
    ) -> Self {
        Self { slice: Some(slice), client, object_id, node, kept: false }
    }

    /// Writes a part of the object. False if it does not lie in it.
    pub(crate) fn write_at(&mut self, offset: u64, data: &[u8]) -> bool {
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(data.len())?));
        match range.and_then(|range| self.slice.as_mut()?.get_mut(range)) {
            Some(place) => {
                place.copy_from_slice(data);
                true
            }
            None => false,
        }
    }

    /// Writes the object.
    pub(crate) fn fill(mut self, data: &[u8]) -> Self {
        if let Some(mut slice) = self.slice.take() {
            slice.copy_from_slice(data);
        }
        self
    }

    /// Keeps the object, for the order to seal it was given.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        drop(self.slice.take());
        if !self.kept {
            self.node.note_drop(StoreDrop::Write(self.client, self.object_id));
        }
    }
}
