//! `ObjectStoreService` by gRPC: checks messages, asks the store, words the answer. Nothing is decided here.
//!
//! Every call can be repeated. Dropping a call, as tonic does when the caller's deadline passes, takes
//! back what it waits for.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ray_core::error::{RayError, RayResult};
use ray_core::id::ObjectId;
use ray_core::pb::object_store as pb;
use ray_core::pb::object_store::object_store_service_server::{ObjectStoreService, ObjectStoreServiceServer};
use ray_core::traits::{ObjectInfo, ObjectStore};
use ray_core::wire::{self, WireError, required};
use tonic::{Request, Response, Status};
use tracing::{debug, instrument};

/// The longest that one call waits for objects. Who wants to wait longer asks again.
pub const MAX_WAIT: Duration = Duration::from_secs(600);
/// The largest message in bytes, and so about the largest object that travels by this service.
pub const MAX_MESSAGE_BYTES: usize = 1 << 30;
/// The most objects that one call names.
pub const MAX_IDS: usize = 100_000;

/// How long reading an object may take that was there a moment ago: it may have to come from disk.
const READ_TIME: Duration = Duration::from_secs(30);

/// Answers the calls of `ObjectStoreService` from a store.
#[derive(Clone)]
pub struct ObjectStoreServiceImpl {
    store: Arc<dyn ObjectStore>,
}

impl fmt::Debug for ObjectStoreServiceImpl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectStoreServiceImpl").finish_non_exhaustive()
    }
}

impl ObjectStoreServiceImpl {
    /// The service over this store.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store }
    }

    /// The service, ready to be added to a server, with room for messages of [`MAX_MESSAGE_BYTES`].
    pub fn into_server(self) -> ObjectStoreServiceServer<Self> {
        ObjectStoreServiceServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Reads those of the objects that can be read; `None` for one that went away meanwhile.
    async fn read(&self, object_id: &ObjectId) -> RayResult<Option<Bytes>> {
        match self.store.get(object_id, READ_TIME).await {
            Ok(data) => Ok(Some(data)),
            Err(RayError::NotFound { .. } | RayError::ObjectLost { .. } | RayError::GetTimeout { .. }) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

#[tonic::async_trait]
impl ObjectStoreService for ObjectStoreServiceImpl {
    #[instrument(skip_all)]
    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutReply>, Status> {
        let object = required("object", request.into_inner().object)?;
        let object_id = object_id(&object.object_id)?;
        self.store.put(object_id, object.data.into()).await.map_err(refused)?;
        Ok(Response::new(pb::PutReply {}))
    }

    #[instrument(skip_all)]
    async fn get(&self, request: Request<pb::GetRequest>) -> Result<Response<pb::GetReply>, Status> {
        let request = request.into_inner();
        let object_id = object_id(&request.object_id)?;
        let data = self.store.get(&object_id, wait_time(request.timeout_ms)).await.map_err(refused)?;
        Ok(Response::new(pb::GetReply { data: data.into() }))
    }

    #[instrument(skip_all)]
    async fn delete(&self, request: Request<pb::DeleteRequest>) -> Result<Response<pb::DeleteReply>, Status> {
        let object_id = object_id(&request.into_inner().object_id)?;
        let deleted = self.store.delete(&object_id).await.map_err(refused)?;
        Ok(Response::new(pb::DeleteReply { deleted }))
    }

    #[instrument(skip_all)]
    async fn contains(
        &self,
        request: Request<pb::ContainsRequest>,
    ) -> Result<Response<pb::ContainsReply>, Status> {
        let object_id = object_id(&request.into_inner().object_id)?;
        let contains = self.store.contains(&object_id).await.map_err(refused)?;
        Ok(Response::new(pb::ContainsReply { contains }))
    }

    /// Puts one object after the other. An error names the object; those before it are stored, and
    /// repeating the whole call is harmless.
    #[instrument(skip_all)]
    async fn batch_put(
        &self,
        request: Request<pb::BatchPutRequest>,
    ) -> Result<Response<pb::BatchPutReply>, Status> {
        let objects = request.into_inner().objects;
        // All are checked before the first is stored.
        let ids = objects.iter().map(|object| object_id(&object.object_id)).collect::<Result<Vec<_>, _>>()?;
        for (object_id, object) in ids.into_iter().zip(objects) {
            self.store.put(object_id, object.data.into()).await.map_err(refused)?;
        }
        Ok(Response::new(pb::BatchPutReply {}))
    }

    #[instrument(skip_all)]
    async fn batch_get(
        &self,
        request: Request<pb::BatchGetRequest>,
    ) -> Result<Response<pb::BatchGetReply>, Status> {
        let request = request.into_inner();
        let ids = object_ids(&request.object_ids)?;
        let limit = wait_time(request.timeout_ms);
        let (ready, not_ready) = self.store.wait(&ids, ids.len(), limit).await.map_err(refused)?;
        let mut reply = pb::BatchGetReply { missing: binary(&not_ready), ..Default::default() };
        let mut total = 0;
        for object_id in ready {
            let Some(data) = self.read(&object_id).await.map_err(refused)? else {
                reply.missing.push(object_id.to_binary());
                continue;
            };
            total += data.len();
            if total > MAX_MESSAGE_BYTES {
                let text =
                    format!("the objects have more than {MAX_MESSAGE_BYTES} bytes; ask for fewer at a time");
                return Err(Status::out_of_range(text));
            }
            reply.objects.push(pb::Object { object_id: object_id.to_binary(), data: data.into() });
        }
        Ok(Response::new(reply))
    }

    #[instrument(skip_all)]
    async fn get_info(
        &self,
        request: Request<pb::GetInfoRequest>,
    ) -> Result<Response<pb::GetInfoReply>, Status> {
        let object_id = object_id(&request.into_inner().object_id)?;
        let info = self.store.info(&object_id).await.map_err(refused)?;
        Ok(Response::new(pb::GetInfoReply { info: Some(info_message(info)) }))
    }

    #[instrument(skip_all)]
    async fn wait(&self, request: Request<pb::WaitRequest>) -> Result<Response<pb::WaitReply>, Status> {
        let request = request.into_inner();
        let ids = object_ids(&request.object_ids)?;
        let num_returns = usize::try_from(request.num_returns).map_err(|_| WireError::Invalid {
            field: "num_returns",
            reason: format!("{} is too many", request.num_returns),
        })?;
        let limit = wait_time(request.timeout_ms);
        let (ready, not_ready) = self.store.wait(&ids, num_returns, limit).await.map_err(refused)?;
        Ok(Response::new(pb::WaitReply { ready: binary(&ready), not_ready: binary(&not_ready) }))
    }

    #[instrument(skip_all)]
    async fn spill(&self, request: Request<pb::SpillRequest>) -> Result<Response<pb::SpillReply>, Status> {
        let ids = object_ids(&request.into_inner().object_ids)?;
        let urls = self.store.spill(&ids).await.map_err(refused)?;
        Ok(Response::new(pb::SpillReply { urls }))
    }

    #[instrument(skip_all)]
    async fn restore(
        &self,
        request: Request<pb::RestoreRequest>,
    ) -> Result<Response<pb::RestoreReply>, Status> {
        let ids = object_ids(&request.into_inner().object_ids)?;
        let restored_bytes = self.store.restore(&ids).await.map_err(refused)?;
        Ok(Response::new(pb::RestoreReply { restored_bytes }))
    }

    #[instrument(skip_all)]
    async fn add_reference(
        &self,
        request: Request<pb::AddReferenceRequest>,
    ) -> Result<Response<pb::AddReferenceReply>, Status> {
        let object_id = object_id(&request.into_inner().object_id)?;
        let references = self.store.add_reference(&object_id).await.map_err(refused)?;
        Ok(Response::new(pb::AddReferenceReply { references }))
    }

    #[instrument(skip_all)]
    async fn remove_reference(
        &self,
        request: Request<pb::RemoveReferenceRequest>,
    ) -> Result<Response<pb::RemoveReferenceReply>, Status> {
        let object_id = object_id(&request.into_inner().object_id)?;
        let references = self.store.remove_reference(&object_id).await.map_err(refused)?;
        Ok(Response::new(pb::RemoveReferenceReply { references }))
    }

    #[instrument(skip_all)]
    async fn get_usage(
        &self,
        _request: Request<pb::GetUsageRequest>,
    ) -> Result<Response<pb::GetUsageReply>, Status> {
        let usage = self.store.usage().await.map_err(refused)?;
        Ok(Response::new(pb::GetUsageReply {
            capacity_bytes: usage.capacity_bytes,
            used_bytes: usage.used_bytes,
            spilled_bytes: usage.spilled_bytes,
            objects: usage.objects,
        }))
    }
}

fn refused(error: RayError) -> Status {
    debug!(error = %error.chain(), "a call is refused");
    error.into()
}

fn wait_time(timeout_ms: u64) -> Duration {
    Duration::from_millis(timeout_ms).min(MAX_WAIT)
}

fn object_id(bytes: &[u8]) -> Result<ObjectId, WireError> {
    wire::id("object_id", bytes)
}

fn object_ids(all: &[Vec<u8>]) -> Result<Vec<ObjectId>, WireError> {
    if all.len() > MAX_IDS {
        let reason = format!("{} ids are more than {MAX_IDS}", all.len());
        return Err(WireError::Invalid { field: "object_ids", reason });
    }
    wire::ids("object_ids", all)
}

fn binary(ids: &[ObjectId]) -> Vec<Vec<u8>> {
    ids.iter().map(ObjectId::to_binary).collect()
}

fn info_message(info: ObjectInfo) -> pb::ObjectInfo {
    pb::ObjectInfo {
        object_id: info.object_id.to_binary(),
        size_bytes: info.size_bytes,
        references: info.references,
        pins: info.pins,
        sealed: info.sealed,
        spill_url: info.spill_url.unwrap_or_default(),
    }
}
