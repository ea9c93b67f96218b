//! Keeps tables in memory, for tests and clusters that need not outlive their head.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use ray_core::error::RayResult;
use ray_core::traits::{GcsStore, Write};

/// The tables themselves: no locks, no async, for whoever has them to himself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryTables {
    tables: BTreeMap<&'static str, BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl MemoryTables {
    /// Applies all writes, in order.
    pub fn apply(&mut self, writes: impl IntoIterator<Item = Write>) {
        for write in writes {
            match write {
                Write::Put { table, key, value } => {
                    self.tables.entry(table).or_default().insert(key, value);
                }
                Write::Delete { table, key } => {
                    if let Some(entries) = self.tables.get_mut(table) {
                        entries.remove(&key);
                    }
                }
            }
        }
    }

    /// The value of a key.
    pub fn get(&self, table: &str, key: &[u8]) -> Option<&Vec<u8>> {
        self.tables.get(table)?.get(key)
    }

    /// All entries whose key begins with `prefix`, in the order of their keys.
    pub fn scan(&self, table: &str, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let Some(entries) = self.tables.get(table) else { return Vec::new() };
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let matching = entries.range::<[u8], _>(from).take_while(|(key, _)| key.starts_with(prefix));
        matching.map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

/// A [`GcsStore`] in memory.
#[derive(Debug, Default)]
pub struct InMemoryGcsStore {
    tables: Mutex<MemoryTables>,
}

impl InMemoryGcsStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// A store that holds these tables.
    pub fn with_tables(tables: MemoryTables) -> Self {
        Self { tables: Mutex::new(tables) }
    }

    fn tables(&self) -> std::sync::MutexGuard<'_, MemoryTables> {
        // A panic cannot happen between two changes that belong together: applying does not panic.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl GcsStore for InMemoryGcsStore {
    async fn write(&self, writes: Vec<Write>) -> RayResult<()> {
        self.tables().apply(writes);
        Ok(())
    }

    async fn get(&self, table: &'static str, key: &[u8]) -> RayResult<Option<Vec<u8>>> {
        Ok(self.tables().get(table, key).cloned())
    }

    async fn scan(&self, table: &'static str, prefix: &[u8]) -> RayResult<Vec<(Vec<u8>, Vec<u8>)>> {
        Ok(self.tables().scan(table, prefix))
    }
}
