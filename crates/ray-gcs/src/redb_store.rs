//! Keeps tables in one file, an embedded redb database, so that they outlive the process and the machine.
//!
//! One thread of its own owns the database. It takes all writes that wait, applies them in the order in
//! which they came in one transaction, and answers each of them after that transaction is on the disk:
//! the more wait, the more share one flush. A write is applied whole or not at all, as it never spans
//! two transactions.
//!
//! After a failure of the disk the database refuses everything until it is opened anew, so the thread
//! drops it and opens it for the next request: once the disk has room again, writes succeed again.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread::JoinHandle;

use async_trait::async_trait;
use ray_core::error::{RayError, RayResult};
use ray_core::traits::{GcsStore, Write};
use redb::{Database, ReadableDatabase, TableDefinition, TableError};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

/// Requests that may wait for the thread; beyond that, callers wait for a place.
const QUEUE: usize = 4096;
/// Most bytes of writes that share one transaction, unless a single write is larger.
const MAX_COMMIT_BYTES: usize = 16 << 20;
/// Memory for pages. The control plane reads its tables once, at its start.
const CACHE_BYTES: usize = 16 << 20;

type Table<'a> = TableDefinition<'a, &'static [u8], &'static [u8]>;
type Entries = Vec<(Vec<u8>, Vec<u8>)>;

enum Request {
    Write { writes: Vec<Write>, reply: oneshot::Sender<RayResult<()>> },
    Get { table: &'static str, key: Vec<u8>, reply: oneshot::Sender<RayResult<Option<Vec<u8>>>> },
    Scan { table: &'static str, prefix: Vec<u8>, reply: oneshot::Sender<RayResult<Entries>> },
}

/// A durable [`GcsStore`].
#[derive(Debug)]
pub struct RedbGcsStore {
    /// `None` once it is closed.
    requests: Option<mpsc::Sender<Request>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    path: PathBuf,
}

impl RedbGcsStore {
    /// Opens the database in this file, or makes it, along with its folder.
    ///
    /// # Errors
    /// If the file cannot be opened, is no such database, or another process has it open.
    pub async fn open(path: impl Into<PathBuf>) -> RayResult<Self> {
        let path = path.into();
        let (requests, inbox) = mpsc::channel(QUEUE);
        let (opened, is_open) = oneshot::channel();
        let thread_path = path.clone();
        let thread = std::thread::Builder::new()
            .name("gcs-store".to_owned())
            .spawn(move || match open(&thread_path) {
                Ok(database) => {
                    drop(opened.send(Ok(())));
                    Writer { path: thread_path, database: Some(database), inbox }.run();
                }
                Err(error) => drop(opened.send(Err(error))),
            })
            .map_err(|source| RayError::io("cannot start the storage thread", source))?;
        is_open.await.unwrap_or_else(|_| Err(stopped(&path)))?;
        Ok(Self { requests: Some(requests), thread: Mutex::new(Some(thread)), path })
    }

    /// Where the database lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<RayResult<T>>) -> Request) -> RayResult<T> {
        let (reply, answer) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or_else(|| stopped(&self.path))?;
        requests.send(make(reply)).await.map_err(|_| stopped(&self.path))?;
        answer.await.map_err(|_| stopped(&self.path))?
    }
}

impl Drop for RedbGcsStore {
    /// Waits until what was asked is written and the file is closed.
    fn drop(&mut self) {
        self.requests = None;
        let thread = self.thread.get_mut().map_or(None, Option::take);
        if thread.is_some_and(|thread| thread.join().is_err()) {
            error!(path = %self.path.display(), "the storage thread panicked");
        }
    }
}

#[async_trait]
impl GcsStore for RedbGcsStore {
    async fn write(&self, writes: Vec<Write>) -> RayResult<()> {
        self.ask(|reply| Request::Write { writes, reply }).await
    }

    async fn get(&self, table: &'static str, key: &[u8]) -> RayResult<Option<Vec<u8>>> {
        self.ask(|reply| Request::Get { table, key: key.to_vec(), reply }).await
    }

    async fn scan(&self, table: &'static str, prefix: &[u8]) -> RayResult<Entries> {
        self.ask(|reply| Request::Scan { table, prefix: prefix.to_vec(), reply }).await
    }
}

/// What the thread owns.
struct Writer {
    path: PathBuf,
    /// `None` after a failure.
    database: Option<Database>,
    inbox: mpsc::Receiver<Request>,
}

impl Writer {
    fn run(mut self) {
        let mut next = self.inbox.blocking_recv();
        while let Some(request) = next {
            next = match request {
                Request::Write { writes, reply } => self.commit_all_that_wait(writes, reply),
                Request::Get { table, key, reply } => {
                    drop(reply.send(self.with_database(|database| get(database, table, &key))));
                    None
                }
                Request::Scan { table, prefix, reply } => {
                    drop(reply.send(self.with_database(|database| scan(database, table, &prefix))));
                    None
                }
            }
            .or_else(|| self.inbox.blocking_recv());
        }
    }

    /// Commits this write and those behind it; returns the first request that is none.
    fn commit_all_that_wait(
        &mut self,
        writes: Vec<Write>,
        reply: oneshot::Sender<RayResult<()>>,
    ) -> Option<Request> {
        let mut bytes = size(&writes);
        let mut batch = vec![writes];
        let mut replies = vec![reply];
        let mut other = None;
        while bytes < MAX_COMMIT_BYTES {
            match self.inbox.try_recv() {
                Ok(Request::Write { writes, reply }) => {
                    bytes += size(&writes);
                    batch.push(writes);
                    replies.push(reply);
                }
                Ok(request) => {
                    other = Some(request);
                    break;
                }
                Err(_) => break,
            }
        }
        let result = self.with_database(|database| commit(database, &batch));
        for reply in replies {
            drop(reply.send(match &result {
                Ok(()) => Ok(()),
                Err(error) => Err(unavailable(&self.path, error.chain())),
            }));
        }
        other
    }

    fn with_database<T>(&mut self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> RayResult<T> {
        let database = match self.database.take() {
            Some(database) => database,
            None => {
                let database = open(&self.path)?;
                info!(path = %self.path.display(), "the control plane's store is open again");
                database
            }
        };
        match work(&database) {
            Ok(value) => {
                self.database = Some(database);
                Ok(value)
            }
            Err(error) => {
                warn!(path = %self.path.display(), %error, "the control plane's store failed and is opened anew");
                Err(unavailable(&self.path, error.to_string()))
            }
        }
    }
}

fn open(path: &Path) -> RayResult<Database> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)
            .map_err(|source| RayError::io(format!("cannot make the folder {}", folder.display()), source))?;
    }
    let database = Database::builder().set_cache_size(CACHE_BYTES).create(path);
    database.map_err(|error| {
        RayError::io(format!("cannot open {}", path.display()), std::io::Error::other(error))
    })
}

fn commit(database: &Database, batch: &[Vec<Write>]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    for write in batch.iter().flatten() {
        match write {
            Write::Put { table, key, value } => {
                transaction.open_table(Table::new(table))?.insert(&key[..], &value[..])?;
            }
            Write::Delete { table, key } => {
                transaction.open_table(Table::new(table))?.remove(&key[..])?;
            }
        }
    }
    // Returns after the flush, as this is redb's default durability.
    transaction.commit()?;
    Ok(())
}

fn get(database: &Database, table: &'static str, key: &[u8]) -> Result<Option<Vec<u8>>, redb::Error> {
    let transaction = database.begin_read()?;
    match transaction.open_table(Table::new(table)) {
        Ok(table) => Ok(table.get(key)?.map(|value| value.value().to_vec())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn scan(database: &Database, table: &'static str, prefix: &[u8]) -> Result<Entries, redb::Error> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(Table::new(table)) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut entries = Vec::new();
    for entry in table.range(prefix..)? {
        let (key, value) = entry?;
        if !key.value().starts_with(prefix) {
            break;
        }
        entries.push((key.value().to_vec(), value.value().to_vec()));
    }
    Ok(entries)
}

fn size(writes: &[Write]) -> usize {
    let size = |write: &Write| match write {
        Write::Put { key, value, .. } => key.len() + value.len(),
        Write::Delete { key, .. } => key.len(),
    };
    writes.iter().map(size).sum()
}

fn unavailable(path: &Path, cause: String) -> RayError {
    RayError::Unavailable { peer: format!("the control plane's store in {}", path.display()), cause }
}

fn stopped(path: &Path) -> RayError {
    unavailable(path, "it is closed".to_owned())
}
