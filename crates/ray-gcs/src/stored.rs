//! How the tables lie in the store.
//!
//! | table         | key                                    | value                        |
//! |---------------|----------------------------------------|------------------------------|
//! | `meta`        | `format`                               | version of this layout, u32  |
//! | `nodes`       | node id                                | `ray.gcs.NodeInfo`           |
//! | `actors`      | actor id                               | `ray.common.ActorInfo`       |
//! | `actor_specs` | actor id                               | `ray.common.ActorSpec`       |
//! | `kills`       | node id, actor id, restarts (u64)      | `ray.common.DeathCause`      |
//! | `groups`      | placement group id                     | `ray.common.PlacementGroupInfo` |
//! | `returns`     | node id, placement group id, attempt (u64), 1 if all | the reason     |
//! | `jobs`        | job id                                 | `ray.gcs.JobInfo`            |
//! | `kv`          | length of namespace (u32), namespace, key | the value                 |
//!
//! Values are protobuf messages, so that a later release reads what an earlier one kept. Integers in
//! keys are big-endian, so that they sort as numbers.

use prost::Message;
use ray_core::error::{RayError, RayResult};
use ray_core::id::{ActorId, JobId, NodeId, PlacementGroupId};
use ray_core::pb;
use ray_core::traits::{GcsStore, Write};

use crate::actor::{ActorInfo, ActorSpec, Incarnation, KillOrder};
use crate::job_table::JobInfo;
use crate::kv::{KvEffect, Value};
use crate::node_table::NodeInfo;
use crate::placement_group::{GroupInfo, Reservation, ReturnOrder};
use crate::wire;

const META: &str = "meta";
const NODES: &str = "nodes";
const ACTORS: &str = "actors";
const ACTOR_SPECS: &str = "actor_specs";
const KILLS: &str = "kills";
const GROUPS: &str = "groups";
const RETURNS: &str = "returns";
const JOBS: &str = "jobs";
const KV: &str = "kv";

/// Every table that the control plane uses.
pub const TABLES: [&str; 9] = [META, NODES, ACTORS, ACTOR_SPECS, KILLS, GROUPS, RETURNS, JOBS, KV];

const FORMAT_KEY: &[u8] = b"format";
/// Grows when the layout changes in a way that an older release would misread.
const FORMAT: u32 = 1;

/// What a store holds.
#[derive(Debug, Default)]
pub struct StoredTables {
    /// All nodes.
    pub nodes: Vec<NodeInfo>,
    /// All actors, with what is needed to make them if that is kept.
    pub actors: Vec<(ActorInfo, Option<ActorSpec>)>,
    /// Kill orders that no node acknowledged.
    pub kills: Vec<KillOrder>,
    /// All placement groups.
    pub groups: Vec<GroupInfo>,
    /// Orders to give bundles back that no node acknowledged.
    pub returns: Vec<ReturnOrder>,
    /// All jobs.
    pub jobs: Vec<JobInfo>,
    /// Namespace, key and value.
    pub kv: Vec<(Vec<u8>, Vec<u8>, Value)>,
}

impl StoredTables {
    /// Reads all that `store` holds; marks an empty one with the version of the layout.
    ///
    /// # Errors
    /// If it cannot be read, was written by a later release, or holds what no release wrote.
    pub async fn load(store: &dyn GcsStore) -> RayResult<Self> {
        check_format(store).await?;
        let mut specs = std::collections::BTreeMap::new();
        for (_, value) in store.scan(ACTOR_SPECS, &[]).await? {
            let spec = wire::actor_spec(decode::<pb::common::ActorSpec>(ACTOR_SPECS, &value)?)?;
            specs.insert(spec.actor_id, spec);
        }
        let mut tables = Self::default();
        for (_, value) in store.scan(NODES, &[]).await? {
            tables.nodes.push(wire::node_info(decode::<pb::gcs::NodeInfo>(NODES, &value)?)?);
        }
        for (_, value) in store.scan(ACTORS, &[]).await? {
            let info = wire::actor_info(decode::<pb::common::ActorInfo>(ACTORS, &value)?)?;
            let spec = specs.remove(&info.actor_id);
            tables.actors.push((info, spec));
        }
        for (key, value) in store.scan(KILLS, &[]).await? {
            let target = read_kill_key(&key).ok_or_else(|| corrupt(KILLS))?;
            let cause = wire::death_cause(decode::<pb::common::DeathCause>(KILLS, &value)?)?;
            tables.kills.push(KillOrder { target, cause });
        }
        for (_, value) in store.scan(GROUPS, &[]).await? {
            let info = decode::<pb::common::PlacementGroupInfo>(GROUPS, &value)?;
            tables.groups.push(wire::group_info(info)?);
        }
        for (key, value) in store.scan(RETURNS, &[]).await? {
            let (target, all) = read_return_key(&key).ok_or_else(|| corrupt(RETURNS))?;
            let reason = String::from_utf8(value).map_err(|_| corrupt(RETURNS))?;
            tables.returns.push(ReturnOrder { target, all, reason });
        }
        for (_, value) in store.scan(JOBS, &[]).await? {
            tables.jobs.push(wire::job_info(decode::<pb::gcs::JobInfo>(JOBS, &value)?)?);
        }
        for (key, value) in store.scan(KV, &[]).await? {
            let (namespace, key) = read_kv_key(&key).ok_or_else(|| corrupt(KV))?;
            tables.kv.push((namespace.to_vec(), key.to_vec(), value.into()));
        }
        Ok(tables)
    }
}

async fn check_format(store: &dyn GcsStore) -> RayResult<()> {
    let Some(found) = store.get(META, FORMAT_KEY).await? else {
        return store.write(vec![put(META, FORMAT_KEY.to_vec(), FORMAT.to_be_bytes().to_vec())]).await;
    };
    if found == FORMAT.to_be_bytes() {
        return Ok(());
    }
    let reason = format!("its layout is {found:?}, this release reads {:?}", FORMAT.to_be_bytes());
    Err(RayError::Protocol { peer: "the control plane's store".to_owned(), reason })
}

/// Keeps a node.
pub(crate) fn put_node(info: &NodeInfo) -> Write {
    put(NODES, info.spec.node_id.to_binary(), pb::gcs::NodeInfo::from(info).encode_to_vec())
}

/// Forgets a node.
pub(crate) fn delete_node(node_id: &NodeId) -> Write {
    Write::Delete { table: NODES, key: node_id.to_binary() }
}

/// Keeps an actor's state.
pub(crate) fn put_actor(info: &ActorInfo) -> Write {
    put(ACTORS, info.actor_id.to_binary(), pb::common::ActorInfo::from(info).encode_to_vec())
}

/// Forgets an actor's state.
pub(crate) fn delete_actor(actor_id: &ActorId) -> Write {
    Write::Delete { table: ACTORS, key: actor_id.to_binary() }
}

/// Keeps what is needed to make an actor.
pub(crate) fn put_actor_spec(spec: &ActorSpec) -> Write {
    put(ACTOR_SPECS, spec.actor_id.to_binary(), pb::common::ActorSpec::from(spec).encode_to_vec())
}

/// Forgets what is needed to make an actor.
pub(crate) fn delete_actor_spec(actor_id: &ActorId) -> Write {
    Write::Delete { table: ACTOR_SPECS, key: actor_id.to_binary() }
}

/// Keeps a kill order.
pub(crate) fn put_kill(order: &KillOrder) -> Write {
    put(KILLS, kill_key(&order.target), pb::common::DeathCause::from(&order.cause).encode_to_vec())
}

/// Forgets a kill order.
pub(crate) fn delete_kill(target: &Incarnation) -> Write {
    Write::Delete { table: KILLS, key: kill_key(target) }
}

/// Keeps a placement group.
pub(crate) fn put_group(info: &GroupInfo) -> Write {
    let message = pb::common::PlacementGroupInfo::from(info);
    put(GROUPS, info.spec.group_id.to_binary(), message.encode_to_vec())
}

/// Forgets a placement group.
pub(crate) fn delete_group(group_id: &PlacementGroupId) -> Write {
    Write::Delete { table: GROUPS, key: group_id.to_binary() }
}

/// Keeps an order to give bundles back.
pub(crate) fn put_return(order: &ReturnOrder) -> Write {
    put(RETURNS, return_key(&order.target, order.all), order.reason.clone().into_bytes())
}

/// Forgets an order to give bundles back.
pub(crate) fn delete_return(target: &Reservation, all: bool) -> Write {
    Write::Delete { table: RETURNS, key: return_key(target, all) }
}

/// Keeps a job.
pub(crate) fn put_job(info: &JobInfo) -> Write {
    put(JOBS, info.spec.job_id.to_binary(), pb::gcs::JobInfo::from(info).encode_to_vec())
}

/// Forgets a job.
pub(crate) fn delete_job(job_id: &JobId) -> Write {
    Write::Delete { table: JOBS, key: job_id.to_binary() }
}

/// Keeps what a change of the key-value table left.
pub(crate) fn kv(effect: KvEffect) -> Write {
    match effect {
        KvEffect::Put { namespace, key, value } => put(KV, kv_key(&namespace, &key), value.to_vec()),
        KvEffect::Delete { namespace, key } => Write::Delete { table: KV, key: kv_key(&namespace, &key) },
    }
}

fn put(table: &'static str, key: Vec<u8>, value: Vec<u8>) -> Write {
    Write::Put { table, key, value }
}

fn decode<M: Message + Default>(table: &'static str, bytes: &[u8]) -> RayResult<M> {
    M::decode(bytes).map_err(|_| corrupt(table))
}

fn corrupt(table: &'static str) -> RayError {
    let reason = format!("table {table:?} holds an entry that cannot be read");
    RayError::Protocol { peer: "the control plane's store".to_owned(), reason }
}

fn kill_key(target: &Incarnation) -> Vec<u8> {
    let restarts = target.num_restarts.to_be_bytes();
    [&target.node_id.as_bytes()[..], target.actor_id.as_bytes(), &restarts].concat()
}

fn read_kill_key(key: &[u8]) -> Option<Incarnation> {
    let (node_id, rest) = key.split_at_checked(NodeId::LEN)?;
    let (actor_id, restarts) = rest.split_at_checked(ActorId::LEN)?;
    Some(Incarnation {
        node_id: NodeId::from_binary(node_id).ok()?,
        actor_id: ActorId::from_binary(actor_id).ok()?,
        num_restarts: u64::from_be_bytes(restarts.try_into().ok()?),
    })
}

fn return_key(target: &Reservation, all: bool) -> Vec<u8> {
    let attempt = target.attempt.to_be_bytes();
    [&target.node_id.as_bytes()[..], target.group_id.as_bytes(), &attempt, &[u8::from(all)]].concat()
}

fn read_return_key(key: &[u8]) -> Option<(Reservation, bool)> {
    let (node_id, rest) = key.split_at_checked(NodeId::LEN)?;
    let (group_id, rest) = rest.split_at_checked(PlacementGroupId::LEN)?;
    let (attempt, rest) = rest.split_first_chunk::<8>()?;
    let &[all @ (0 | 1)] = rest else { return None };
    let target = Reservation {
        node_id: NodeId::from_binary(node_id).ok()?,
        group_id: PlacementGroupId::from_binary(group_id).ok()?,
        attempt: u64::from_be_bytes(*attempt),
    };
    Some((target, all == 1))
}

fn kv_key(namespace: &[u8], key: &[u8]) -> Vec<u8> {
    let length = namespace.len() as u32;
    [&length.to_be_bytes()[..], namespace, key].concat()
}

fn read_kv_key(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_read_back(
            node in any::<[u8; 16]>(), actor in any::<[u8; 16]>(), num_restarts in any::<u64>(), all in any::<bool>(),
            namespace in prop::collection::vec(any::<u8>(), 0..9), key in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let (node_id, actor_id) = (NodeId::from_bytes(node), ActorId::from_bytes(actor));
            let target = Incarnation { node_id, actor_id, num_restarts };
            prop_assert_eq!(read_kill_key(&kill_key(&target)), Some(target));
            let group_id = PlacementGroupId::from_bytes(actor);
            let target = Reservation { node_id, group_id, attempt: num_restarts };
            prop_assert_eq!(read_return_key(&return_key(&target, all)), Some((target, all)));
            let stored = kv_key(&namespace, &key);
            prop_assert_eq!(read_kv_key(&stored), Some((&namespace[..], &key[..])));
        }
    }

    #[test]
    fn foreign_keys_are_refused() {
        assert_eq!(read_kill_key(&[0; 39]), None);
        assert_eq!(read_kill_key(&[0; 41]), None);
        assert_eq!(read_return_key(&[0; 40]), None);
        assert_eq!(read_return_key(&[2; 41]), None);
        assert_eq!(read_kv_key(&[0, 0, 0, 9, 1]), None);
        assert_eq!(read_kv_key(&[0, 0]), None);
    }
}
