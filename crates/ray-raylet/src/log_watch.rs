//! Which files of a folder have grown, as the kernel tells it.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use tracing::{debug, warn};

/// How often files are looked at where the kernel cannot tell of changes.
const POLL_EVERY: Duration = Duration::from_millis(200);

/// A watch on one folder, or a clock where there can be none.
#[derive(Debug)]
pub(crate) struct LogWatch(Option<AsyncFd<OwnedFd>>);

impl LogWatch {
    /// Watches the folder `logs`. Has to be called in a tokio runtime.
    pub(crate) fn new(logs: &Path) -> Self {
        let explain = |error: &io::Error| {
            warn!(%error, "the kernel does not tell of changes in logs: they are polled");
        };
        Self(open(logs).inspect_err(explain).ok())
    }

    /// Waits for changes; names of the files, or `None` if any may have changed. Nothing is lost
    /// when the future is dropped.
    pub(crate) async fn next_changes(&self) -> Option<Vec<String>> {
        let Some(watch) = &self.0 else {
            tokio::time::sleep(POLL_EVERY).await;
            return None;
        };
        loop {
            let outcome = match watch.readable().await {
                Ok(mut ready) => ready.try_io(|watch| take_names(watch.get_ref())),
                Err(error) => Ok(Err(error)),
            };
            match outcome {
                Ok(Ok(names)) => return names,
                Ok(Err(error)) => {
                    debug!(%error, "cannot read changes in logs");
                    tokio::time::sleep(POLL_EVERY).await;
                    return None;
                }
                Err(_would_block) => {}
            }
        }
    }
}

fn open(logs: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watch, logs, inotify::WatchFlags::MODIFY)?;
    // SAFETY: an `OwnedFd` always names the same descriptor and keeps it open until it is dropped,
    // which `AsyncFd` does only after it has deregistered it.
    Ok(unsafe { AsyncFd::register(watch) }?)
}

/// The names in the events that are there; `None` if some were lost.
fn take_names(watch: &OwnedFd) -> io::Result<Option<Vec<String>>> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(watch, &mut buffer);
    let mut names: Vec<String> = Vec::new();
    let mut lost = false;
    loop {
        let event = reader.next()?;
        lost |= event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW);
        if let Some(name) = event.file_name().and_then(|name| name.to_str().ok())
            && names.last().is_none_or(|last| last != name)
        {
            names.push(name.to_owned());
        }
        if reader.is_buffer_empty() {
            names.sort_unstable();
            names.dedup();
            return Ok((!lost).then_some(names));
        }
    }
}
