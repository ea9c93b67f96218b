//! The seams behind which back ends are replaced: where objects lie, who decides what runs, and
//! where the control plane keeps what has to outlive it.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::RayResult;
use crate::id::{JobId, LeaseId, ObjectId};
use crate::resource::Resources;

/// What a store knows about one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectInfo {
    /// The object.
    pub object_id: ObjectId,
    /// Size of its data in bytes.
    pub size_bytes: u64,
    /// References that keep it from being collected.
    pub references: u64,
    /// Readers and writers that keep it from being moved or spilled.
    pub pins: u64,
    /// Whether it is written to its end and can be read.
    pub sealed: bool,
    /// Where it was spilled to.
    pub spill_url: Option<String>,
}

/// How full a store is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreUsage {
    /// Bytes that it may hold in memory; 0 = unlimited.
    pub capacity_bytes: u64,
    /// Bytes in memory.
    pub used_bytes: u64,
    /// Bytes spilled to disk.
    pub spilled_bytes: u64,
    /// Objects, in memory or spilled.
    pub objects: u64,
}

/// Holds immutable objects by id.
#[async_trait]
pub trait ObjectStore: Send + Sync + 'static {
    /// Stores `data` with one reference. An object of the same id and size is left as it is.
    ///
    /// # Errors
    /// `ObjectStoreFull` if nothing can make way, `OutOfDisk` if the disk is full too,
    /// `AlreadyExists` for an object of the same id with another size.
    async fn put(&self, object_id: ObjectId, data: Bytes) -> RayResult<()>;

    /// The data, as soon as it is there; restored if it was spilled.
    ///
    /// # Errors
    /// `GetTimeout` if it does not come within `timeout`.
    async fn get(&self, object_id: &ObjectId, timeout: Duration) -> RayResult<Bytes>;

    /// Forgets the object; readers keep what they hold. Returns whether it was there.
    async fn delete(&self, object_id: &ObjectId) -> RayResult<bool>;

    /// Whether the object can be read, from memory or from where it was spilled.
    async fn contains(&self, object_id: &ObjectId) -> RayResult<bool>;

    /// What is known about the object.
    ///
    /// # Errors
    /// `NotFound`.
    async fn info(&self, object_id: &ObjectId) -> RayResult<ObjectInfo>;

    /// Waits until `num_returns` of these objects can be read or `timeout` has passed; returns the
    /// ready ones, at most `num_returns`, and the others, both in the order given.
    ///
    /// # Errors
    /// `InvalidArgument` if `num_returns` is more than there are ids.
    async fn wait(
        &self,
        object_ids: &[ObjectId],
        num_returns: usize,
        timeout: Duration,
    ) -> RayResult<(Vec<ObjectId>, Vec<ObjectId>)>;

    /// Writes these objects to disk and frees their memory; returns where they are.
    ///
    /// # Errors
    /// `NotFound`, or `OutOfDisk`.
    async fn spill(&self, object_ids: &[ObjectId]) -> RayResult<Vec<String>>;

    /// Reads these objects back into memory; returns how many bytes were read.
    async fn restore(&self, object_ids: &[ObjectId]) -> RayResult<u64>;

    /// Adds a reference; returns how many there are.
    async fn add_reference(&self, object_id: &ObjectId) -> RayResult<u64>;

    /// Takes a reference away; returns how many are left. At 0 the object may be collected.
    async fn remove_reference(&self, object_id: &ObjectId) -> RayResult<u64>;

    /// How full the store is.
    async fn usage(&self) -> RayResult<StoreUsage>;
}

/// What somebody needs to run something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRequest {
    /// Chosen by the caller, so that asking again is asking once.
    pub lease_id: LeaseId,
    /// The job on whose behalf.
    pub job_id: JobId,
    /// What is taken while the lease lasts.
    pub resources: Resources,
}

/// Decides when something may run.
#[async_trait]
pub trait Scheduler: Send + Sync + 'static {
    /// Waits until the request's resources are free and takes them. Requests of the same shape are
    /// served in order; one shape never waits behind another. Dropping the future gives up.
    ///
    /// # Errors
    /// `Infeasible` if it can never be satisfied, `Overloaded` if too many wait, `ShutDown`.
    async fn acquire(&self, request: LeaseRequest) -> RayResult<()>;

    /// Gives back what the lease took. Releasing an unknown lease changes nothing.
    async fn release(&self, lease_id: LeaseId) -> RayResult<()>;

    /// What there is, and what of it is free.
    async fn resources(&self) -> RayResult<(Resources, Resources)>;
}

/// One change to a [`GcsStore`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets the value of a key.
    Put {
        /// Table name.
        table: &'static str,
        /// Key in the table.
        key: Vec<u8>,
        /// New value.
        value: Vec<u8>,
    },
    /// Removes a key.
    Delete {
        /// Table name.
        table: &'static str,
        /// Key in the table.
        key: Vec<u8>,
    },
}

/// Keeps the tables of the control plane.
#[async_trait]
pub trait GcsStore: Send + Sync + 'static {
    /// Applies all of `writes`, in order, or none. When this returns they survive the end of the
    /// process if the store is durable.
    async fn write(&self, writes: Vec<Write>) -> RayResult<()>;

    /// The value of a key.
    async fn get(&self, table: &'static str, key: &[u8]) -> RayResult<Option<Vec<u8>>>;

    /// All entries of a table whose key begins with `prefix`, in the order of their keys.
    async fn scan(&self, table: &'static str, prefix: &[u8]) -> RayResult<Vec<(Vec<u8>, Vec<u8>)>>;
}
