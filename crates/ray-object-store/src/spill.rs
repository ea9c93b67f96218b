//! Where objects go when memory is short, and how they come back.
//!
//! A back end stores each spilled object under a URL of its choosing. Two spills never share a URL,
//! not even of the same object: a removal that is still on its way then cannot hit the next copy.

use std::fs;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use ray_core::error::RayError;
use ray_core::id::ObjectId;
use thiserror::Error;

use crate::shm::ShmSliceMut;

/// Why an object could not be spilled or restored.
#[derive(Debug, Error)]
pub enum SpillError {
    /// The disk, or the user's share of it, is full.
    #[error("out of disk while writing {size_bytes} bytes to {path}")]
    OutOfDisk {
        /// Where it was written to.
        path: String,
        /// Size of the object.
        size_bytes: u64,
    },
    /// The copy is gone or damaged; trying again does not help.
    #[error("the spilled copy {url} is lost: {reason}")]
    Lost {
        /// The copy.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system refused something else.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

impl SpillError {
    /// What the caller of a store hears; `holders` names who holds most, as text to append.
    pub fn into_ray_error(self, object_id: ObjectId, holders: String) -> RayError {
        match self {
            Self::OutOfDisk { path, size_bytes } => {
                RayError::OutOfDisk { path, requested_bytes: size_bytes, holders }
            }
            Self::Lost { .. } => RayError::ObjectLost { object_id, cause: self.to_string() },
            Self::Io { action, path, source } => RayError::io(format!("cannot {action} {path}"), source),
        }
    }
}

/// Stores spilled objects outside of memory.
#[async_trait]
pub trait SpillBackend: Send + Sync + 'static {
    /// Writes `data` and returns the URL of the copy. A copy is whole or not there.
    ///
    /// # Errors
    /// [`SpillError::OutOfDisk`] or [`SpillError::Io`].
    async fn write(&self, object_id: ObjectId, data: Bytes) -> Result<String, SpillError>;

    /// The `size_bytes` bytes of a copy, in private memory.
    ///
    /// # Errors
    /// [`SpillError::Lost`] or [`SpillError::Io`].
    async fn read(&self, url: &str, size_bytes: u64) -> Result<Bytes, SpillError>;

    /// Reads a copy into `target`, which it fills.
    ///
    /// # Errors
    /// [`SpillError::Lost`] or [`SpillError::Io`].
    async fn read_into(&self, url: &str, target: ShmSliceMut) -> Result<(), SpillError>;

    /// Removes a copy; one that is gone already is no error.
    ///
    /// # Errors
    /// [`SpillError::Io`].
    async fn remove(&self, url: &str) -> Result<(), SpillError>;

    /// Removes a copy at once, for the end of a store, when nothing runs any more.
    fn remove_now(&self, url: &str);

    /// Where the objects go, as people read it.
    fn place(&self) -> String;
}

/// Spills to files of a folder, one per object: `<folder>/<object id>.<serial number>`.
///
/// A file is written under another name and renamed, so that a reader never sees half of one. It is
/// not synced: after a crash of the machine nobody is left to ask for it.
#[derive(Debug)]
pub struct FileSpill {
    folder: PathBuf,
    /// Whether this made the folder, and so removes it.
    made_folder: bool,
    next_serial: AtomicU64,
}

impl FileSpill {
    /// Spills to this folder, which is made if it is not there, readable by this user only.
    ///
    /// # Errors
    /// [`RayError::Io`] if it cannot be made.
    pub fn new(folder: impl AsRef<Path>) -> Result<Self, RayError> {
        let folder = folder.as_ref();
        let refused = |source: io::Error| RayError::io(format!("cannot make {}", folder.display()), source);
        let made_folder = !folder.exists();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(refused)?;
        let folder = folder.canonicalize().map_err(refused)?;
        Ok(Self { folder, made_folder, next_serial: AtomicU64::new(0) })
    }
}

impl Drop for FileSpill {
    fn drop(&mut self) {
        if self.made_folder {
            // Only an empty folder goes; what others put there is theirs.
            let _ = fs::remove_dir(&self.folder);
        }
    }
}

#[async_trait]
impl SpillBackend for FileSpill {
    async fn write(&self, object_id: ObjectId, data: Bytes) -> Result<String, SpillError> {
        // The number only has to differ from the others.
        let serial = self.next_serial.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("{object_id}.{serial}"));
        on_blocking_thread(move || {
            write_whole(&path, &data)?;
            Ok(url_of(&path))
        })
        .await
    }

    async fn read(&self, url: &str, size_bytes: u64) -> Result<Bytes, SpillError> {
        let url = url.to_owned();
        on_blocking_thread(move || {
            let len = usize::try_from(size_bytes).expect("usize has 64 bits where this runs");
            let mut data = vec![0; len];
            read_whole(&url, &mut data)?;
            Ok(data.into())
        })
        .await
    }

    async fn read_into(&self, url: &str, mut target: ShmSliceMut) -> Result<(), SpillError> {
        let url = url.to_owned();
        on_blocking_thread(move || read_whole(&url, &mut target)).await
    }

    async fn remove(&self, url: &str) -> Result<(), SpillError> {
        let url = url.to_owned();
        on_blocking_thread(move || remove_file(&url)).await
    }

    fn remove_now(&self, url: &str) {
        if let Err(error) = remove_file(url) {
            tracing::warn!(%error, "a spilled object stays on disk");
        }
    }

    fn place(&self) -> String {
        self.folder.display().to_string()
    }
}

/// The local file behind a `file://` URL; `None` for any other URL.
pub fn local_path(url: &str) -> Option<PathBuf> {
    let mut bytes = Vec::with_capacity(url.len());
    let mut rest = url.strip_prefix("file://")?.as_bytes().iter();
    while let Some(&byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(*rest.next()?).to_digit(16);
        bytes.push((digit()? * 16 + digit()?) as u8);
    }
    Some(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

/// The `file://` URL of a path, with everything escaped that is no plain character of a path.
fn url_of(path: &Path) -> String {
    let mut url = "file://".to_owned();
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    url
}

async fn on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SpillError> + Send + 'static,
) -> Result<T, SpillError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(join) => {
            let source = io::Error::other(join);
            Err(SpillError::Io { action: "finish the work on", path: "a spilled object".to_owned(), source })
        }
    }
}

fn write_whole(path: &Path, data: &[u8]) -> Result<(), SpillError> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    let result = write_file(&unfinished, data).and_then(|()| {
        fs::rename(&unfinished, path).map_err(|source| refused("rename", &unfinished, data.len(), source))
    });
    if result.is_err() {
        // Half a file would hold the very space that is missing.
        let _ = fs::remove_file(&unfinished);
    }
    result
}

fn write_file(path: &Path, data: &[u8]) -> Result<(), SpillError> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).map_err(|source| refused("create", path, data.len(), source))?;
    file.write_all(data).map_err(|source| refused("write", path, data.len(), source))
}

fn read_whole(url: &str, target: &mut [u8]) -> Result<(), SpillError> {
    let lost = |reason: String| SpillError::Lost { url: url.to_owned(), reason };
    let path = local_path(url).ok_or_else(|| lost("no file:// URL".to_owned()))?;
    let refused = |source: io::Error| match source.kind() {
        ErrorKind::NotFound => lost("the file is gone".to_owned()),
        ErrorKind::UnexpectedEof => lost("the file is too short".to_owned()),
        _ => SpillError::Io { action: "read", path: path.display().to_string(), source },
    };
    fs::File::open(&path).and_then(|mut file| file.read_exact(target)).map_err(refused)
}

fn remove_file(url: &str) -> Result<(), SpillError> {
    let Some(path) = local_path(url) else { return Ok(()) };
    match fs::remove_file(&path) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(SpillError::Io { action: "remove", path: path.display().to_string(), source })
        }
        _ => Ok(()),
    }
}

fn refused(action: &'static str, path: &Path, len: usize, source: io::Error) -> SpillError {
    let path = path.display().to_string();
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            SpillError::OutOfDisk { path, size_bytes: len as u64 }
        }
        _ => SpillError::Io { action, path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::ShmRegion;

    fn id(n: u8) -> ObjectId {
        ObjectId::from_bytes([n; 28])
    }

    #[tokio::test]
    async fn what_is_spilled_comes_back_and_goes_away() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("spill of ü");
        let spill = FileSpill::new(&folder).unwrap();
        let data = Bytes::from(vec![7; 100_000]);
        let url = spill.write(id(1), data.clone()).await.unwrap();
        assert!(url.starts_with("file:///") && url.contains("spill%20of%20%C3%BC"), "{url}");
        assert_eq!(spill.read(&url, 100_000).await.unwrap(), data);
        let again = spill.write(id(1), data).await.unwrap();
        assert_ne!(url, again);
        for copy in [&url, &again, &url] {
            spill.remove(copy).await.unwrap();
        }
        drop(spill);
        assert!(!folder.exists());
    }

    #[tokio::test]
    async fn shared_memory_is_spilled_and_restored_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let spill = FileSpill::new(folder.path()).unwrap();
        let region = ShmRegion::create("test", 1 << 20).unwrap();
        region.slice_mut(4096, 100_000).unwrap().fill(7);
        let data = region.slice(4096, 100_000).unwrap().into_bytes();
        let url = spill.write(id(1), data).await.unwrap();
        region.slice_mut(4096, 100_000).unwrap().fill(0);
        spill.read_into(&url, region.slice_mut(8192, 100_000).unwrap()).await.unwrap();
        assert!(region.slice(8192, 100_000).unwrap().iter().all(|byte| *byte == 7));
        let short = spill.read_into(&url, region.slice_mut(0, 100_001).unwrap()).await;
        assert!(matches!(short, Err(SpillError::Lost { .. })));
    }

    #[tokio::test]
    async fn a_copy_that_is_gone_or_short_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let spill = FileSpill::new(folder.path()).unwrap();
        let url = spill.write(id(1), Bytes::from_static(b"short")).await.unwrap();
        assert!(matches!(spill.read(&url, 6).await, Err(SpillError::Lost { .. })));
        fs::remove_file(local_path(&url).unwrap()).unwrap();
        assert!(matches!(spill.read(&url, 5).await, Err(SpillError::Lost { .. })));
        assert!(matches!(spill.read("s3://bucket/key", 5).await, Err(SpillError::Lost { .. })));
        // The folder was there before, so it stays.
        drop(spill);
        assert!(folder.path().exists());
    }

    /// `/dev/full` refuses every write as a full disk does.
    #[test]
    fn a_full_disk_is_named_as_such() {
        let error = write_file(Path::new("/dev/full"), b"data").unwrap_err();
        assert!(matches!(error, SpillError::OutOfDisk { size_bytes: 4, .. }), "{error}");
    }

    #[test]
    fn a_failed_write_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("object.0");
        fs::create_dir(&path).unwrap();
        assert!(matches!(write_whole(&path, b"data"), Err(SpillError::Io { action: "rename", .. })));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
