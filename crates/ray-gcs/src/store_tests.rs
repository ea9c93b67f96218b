//! What every store has to do, run for each of them; and what only the durable one does.

use std::sync::Arc;

use ray_core::error::RayError;
use ray_core::traits::{GcsStore, Write};

use crate::memory_store::InMemoryGcsStore;
use crate::redb_store::RedbGcsStore;

fn put(table: &'static str, key: &[u8], value: &[u8]) -> Write {
    Write::Put { table, key: key.to_vec(), value: value.to_vec() }
}

fn delete(table: &'static str, key: &[u8]) -> Write {
    Write::Delete { table, key: key.to_vec() }
}

async fn keys(store: &dyn GcsStore, table: &'static str, prefix: &[u8]) -> Vec<Vec<u8>> {
    store.scan(table, prefix).await.unwrap().into_iter().map(|(key, _)| key).collect()
}

async fn conformance(store: Arc<dyn GcsStore>) {
    an_empty_store_has_nothing(&*store).await;
    writes_are_applied_in_order(&*store).await;
    a_scan_is_ordered_and_ends_with_its_prefix(&*store).await;
    tables_do_not_mix(&*store).await;
    many_writers_are_all_heard(store).await;
}

async fn an_empty_store_has_nothing(store: &dyn GcsStore) {
    assert_eq!(store.get("a", b"k").await.unwrap(), None);
    assert_eq!(store.scan("a", b"").await.unwrap(), []);
    store.write(vec![delete("a", b"k")]).await.unwrap();
    store.write(vec![]).await.unwrap();
}

async fn writes_are_applied_in_order(store: &dyn GcsStore) {
    let writes = vec![put("a", b"k", b"1"), delete("a", b"k"), put("a", b"k", b"2"), put("a", b"k", b"3")];
    store.write(writes).await.unwrap();
    assert_eq!(store.get("a", b"k").await.unwrap().unwrap(), b"3");
    store.write(vec![delete("a", b"k")]).await.unwrap();
    assert_eq!(store.get("a", b"k").await.unwrap(), None);
}

async fn a_scan_is_ordered_and_ends_with_its_prefix(store: &dyn GcsStore) {
    let all: [&[u8]; 6] = [b"", b"\x00", b"a", b"ab", b"b", b"\xff\xff"];
    store.write(all.iter().rev().map(|key| put("scan", key, b"v")).collect()).await.unwrap();
    assert_eq!(keys(store, "scan", b"").await, all);
    assert_eq!(keys(store, "scan", b"a").await, [b"a".to_vec(), b"ab".to_vec()]);
    assert_eq!(keys(store, "scan", b"\xff").await, [b"\xff\xff".to_vec()]);
    assert_eq!(keys(store, "scan", b"c").await, Vec::<Vec<u8>>::new());
}

async fn tables_do_not_mix(store: &dyn GcsStore) {
    store.write(vec![put("left", b"k", b"l"), put("right", b"k", b"r")]).await.unwrap();
    store.write(vec![delete("left", b"k")]).await.unwrap();
    assert_eq!(store.get("right", b"k").await.unwrap().unwrap(), b"r");
}

async fn many_writers_are_all_heard(store: Arc<dyn GcsStore>) {
    let mut writers = tokio::task::JoinSet::new();
    for n in 0..100u8 {
        let store = Arc::clone(&store);
        writers.spawn(async move { store.write(vec![put("many", &[n], b"v")]).await });
    }
    while let Some(written) = writers.join_next().await {
        written.unwrap().unwrap();
    }
    assert_eq!(keys(&*store, "many", b"").await.len(), 100);
}

#[tokio::test]
async fn the_memory_store_conforms() {
    conformance(Arc::new(InMemoryGcsStore::new())).await;
}

#[tokio::test]
async fn the_redb_store_conforms() {
    let folder = tempfile::tempdir().unwrap();
    conformance(Arc::new(RedbGcsStore::open(folder.path().join("deep/er/gcs.redb")).await.unwrap())).await;
}

#[tokio::test]
async fn what_the_redb_store_acknowledged_is_there_after_it_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gcs.redb");
    for n in 0..3u8 {
        let store = RedbGcsStore::open(&path).await.unwrap();
        store.write(vec![put("t", &[n], b"v")]).await.unwrap();
        assert_eq!(keys(&store, "t", b"").await.len(), usize::from(n) + 1);
    }
}

/// A crash of the process leaves the file as it is at some moment: here, a copy of it taken while the
/// store is open and writes go on.
#[tokio::test]
async fn a_copy_of_the_file_taken_at_any_moment_has_every_acknowledged_write_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("gcs.redb"), folder.path().join("copy.redb"));
    let store = Arc::new(RedbGcsStore::open(&path).await.unwrap());
    for n in 0..10u8 {
        store.write(vec![put("left", &[n], b"v"), put("right", &[n], b"v")]).await.unwrap();
        std::fs::copy(&path, &copy).unwrap();
        let crashed = RedbGcsStore::open(&copy).await.unwrap();
        let left = keys(&crashed, "left", b"").await;
        assert_eq!(left.len(), usize::from(n) + 1);
        assert_eq!(left, keys(&crashed, "right", b"").await);
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gcs.redb");
    std::fs::write(&path, vec![7; 100_000]).unwrap();
    let error = RedbGcsStore::open(&path).await.unwrap_err();
    assert!(matches!(&error, RayError::Io { context, .. } if context.contains("gcs.redb")), "{error:?}");
}
