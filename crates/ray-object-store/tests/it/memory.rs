//! The in-memory store does what every store does.

use ray_object_store::InMemoryObjectStore;
use ray_object_store::testing::Setup;
use tempfile::TempDir;

pub(crate) async fn make(setup: Setup) -> (InMemoryObjectStore, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut builder = InMemoryObjectStore::builder().capacity_bytes(setup.capacity_bytes);
    if setup.spills {
        builder = builder.spill_folder(folder.path().join("spill"));
    }
    (builder.build().unwrap(), folder)
}

ray_object_store::conformance_tests!(make);
