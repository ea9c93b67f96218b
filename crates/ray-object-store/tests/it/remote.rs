//! A store behind gRPC does what every store does.
//!
//! [`Remote`] is a store that asks `ObjectStoreService` through a real client. That makes the suite go through
//! the service, its messages and its codes.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ray_core::error::{RayError, RayResult};
use ray_core::id::ObjectId;
use ray_core::pb::object_store as pb;
use ray_core::traits::{ObjectInfo, ObjectStore, StoreUsage};
use ray_object_store::testing::Setup;
use tonic::{Code, Status};

use crate::grpc::{Client, Serving, serve};
use crate::memory;

async fn make(setup: Setup) -> (Remote, (Serving, tempfile::TempDir)) {
    let (store, folder) = memory::make(setup).await;
    let (client, serving) = serve(store).await;
    (Remote { client }, (serving, folder))
}

ray_object_store::conformance_tests!(make);

struct Remote {
    client: Client,
}

/// What a code stands for, as far as callers can act on it.
fn error(status: Status) -> RayError {
    let text = status.message().to_owned();
    match status.code() {
        Code::NotFound => RayError::NotFound { what: text },
        Code::AlreadyExists => RayError::AlreadyExists { what: text },
        Code::InvalidArgument => RayError::InvalidArgument(text),
        Code::DeadlineExceeded => RayError::GetTimeout { what: text, waited: Duration::ZERO },
        Code::ResourceExhausted => RayError::ObjectStoreFull {
            requested_bytes: 0,
            used_bytes: 0,
            capacity_bytes: 0,
            holders: format!("; {text}"),
        },
        _ => RayError::Unavailable { peer: "the store".to_owned(), cause: status.to_string() },
    }
}

fn millis(limit: Duration) -> u64 {
    limit.as_millis().try_into().unwrap()
}

fn binary(ids: &[ObjectId]) -> Vec<Vec<u8>> {
    ids.iter().map(ObjectId::to_binary).collect()
}

fn parsed(ids: &[Vec<u8>]) -> Vec<ObjectId> {
    ids.iter().map(|bytes| ObjectId::from_binary(bytes).unwrap()).collect()
}

#[async_trait]
impl ObjectStore for Remote {
    async fn put(&self, object_id: ObjectId, data: Bytes) -> RayResult<()> {
        let object = Some(pb::Object { object_id: object_id.to_binary(), data: data.into() });
        self.client.clone().put(pb::PutRequest { object }).await.map_err(error)?;
        Ok(())
    }

    async fn get(&self, object_id: &ObjectId, timeout: Duration) -> RayResult<Bytes> {
        let request = pb::GetRequest { object_id: object_id.to_binary(), timeout_ms: millis(timeout) };
        Ok(self.client.clone().get(request).await.map_err(error)?.into_inner().data.into())
    }

    async fn delete(&self, object_id: &ObjectId) -> RayResult<bool> {
        let request = pb::DeleteRequest { object_id: object_id.to_binary() };
        Ok(self.client.clone().delete(request).await.map_err(error)?.into_inner().deleted)
    }

    async fn contains(&self, object_id: &ObjectId) -> RayResult<bool> {
        let request = pb::ContainsRequest { object_id: object_id.to_binary() };
        Ok(self.client.clone().contains(request).await.map_err(error)?.into_inner().contains)
    }

    async fn info(&self, object_id: &ObjectId) -> RayResult<ObjectInfo> {
        let request = pb::GetInfoRequest { object_id: object_id.to_binary() };
        let info = self.client.clone().get_info(request).await.map_err(error)?.into_inner().info.unwrap();
        Ok(ObjectInfo {
            object_id: ObjectId::from_binary(&info.object_id).unwrap(),
            size_bytes: info.size_bytes,
            references: info.references,
            pins: info.pins,
            sealed: info.sealed,
            spill_url: Some(info.spill_url).filter(|url| !url.is_empty()),
        })
    }

    async fn wait(
        &self,
        object_ids: &[ObjectId],
        num_returns: usize,
        timeout: Duration,
    ) -> RayResult<(Vec<ObjectId>, Vec<ObjectId>)> {
        let request = pb::WaitRequest {
            object_ids: binary(object_ids),
            num_returns: num_returns.try_into().unwrap(),
            timeout_ms: millis(timeout),
        };
        let reply = self.client.clone().wait(request).await.map_err(error)?.into_inner();
        Ok((parsed(&reply.ready), parsed(&reply.not_ready)))
    }

    async fn spill(&self, object_ids: &[ObjectId]) -> RayResult<Vec<String>> {
        let request = pb::SpillRequest { object_ids: binary(object_ids) };
        Ok(self.client.clone().spill(request).await.map_err(error)?.into_inner().urls)
    }

    async fn restore(&self, object_ids: &[ObjectId]) -> RayResult<u64> {
        let request = pb::RestoreRequest { object_ids: binary(object_ids) };
        Ok(self.client.clone().restore(request).await.map_err(error)?.into_inner().restored_bytes)
    }

    async fn add_reference(&self, object_id: &ObjectId) -> RayResult<u64> {
        let request = pb::AddReferenceRequest { object_id: object_id.to_binary() };
        Ok(self.client.clone().add_reference(request).await.map_err(error)?.into_inner().references)
    }

    async fn remove_reference(&self, object_id: &ObjectId) -> RayResult<u64> {
        let request = pb::RemoveReferenceRequest { object_id: object_id.to_binary() };
        Ok(self.client.clone().remove_reference(request).await.map_err(error)?.into_inner().references)
    }

    async fn usage(&self) -> RayResult<StoreUsage> {
        let reply = self.client.clone().get_usage(pb::GetUsageRequest {}).await.map_err(error)?.into_inner();
        Ok(StoreUsage {
            capacity_bytes: reply.capacity_bytes,
            used_bytes: reply.used_bytes,
            spilled_bytes: reply.spilled_bytes,
            objects: reply.objects,
        })
    }
}
