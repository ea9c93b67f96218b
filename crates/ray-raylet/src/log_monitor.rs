//! Passes on what workers print to the driver of their job.
//!
//! Each worker prints to two files, `worker-<id>.out` and `.err`. A file is read from the moment when
//! it is known to which job its worker belongs, and until its worker is gone. What is read waits in
//! a bounded channel; while that is full the files are the buffer.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use ray_core::id::{JobId, WorkerId};
use tokio::sync::mpsc;
use tracing::debug;

use crate::log_tail::{LogBatch, LogTail};
use crate::log_watch::LogWatch;

/// Bytes read from a file before another has its turn.
const READ_BYTES: usize = 256 * 1024;

/// The file to which this worker's output goes.
pub fn log_path(logs: &Path, worker_id: WorkerId, is_stderr: bool) -> PathBuf {
    logs.join(format!("worker-{worker_id}.{}", if is_stderr { "err" } else { "out" }))
}

/// What the monitor has to know.
#[derive(Debug)]
pub enum LogCommand<F> {
    /// This worker works for this job from now on, and this is its process.
    Route(WorkerId, JobId, u32),
    /// This worker is gone.
    End(WorkerId),
    /// Read all that workers of the job printed, then pass this on.
    Flush(JobId, F),
}

/// What the monitor says.
#[derive(Debug)]
pub enum LogEvent<F> {
    /// Lines that a worker printed.
    Lines {
        /// The job that it works for.
        job_id: JobId,
        /// Its process.
        pid: u32,
        /// Whether it printed to standard error.
        is_stderr: bool,
        /// The lines.
        batch: LogBatch,
    },
    /// All lines before this flush have been said.
    Flushed(F),
}

/// One file that is followed.
#[derive(Debug)]
struct Followed {
    job_id: JobId,
    pid: u32,
    /// Opened when it is there.
    file: Option<File>,
    tail: LogTail,
}

/// Follows the files of one folder.
#[derive(Debug)]
pub struct LogMonitor {
    logs: PathBuf,
    /// By worker and whether it is standard error.
    files: BTreeMap<(WorkerId, bool), Followed>,
}

impl LogMonitor {
    /// Follows nothing yet in the folder `logs`.
    pub const fn new(logs: PathBuf) -> Self {
        Self { logs, files: BTreeMap::new() }
    }

    /// Follows files as `commands` say and calls `say` with what is in them, until `commands` or
    /// those who listen are gone.
    pub async fn run<F, S>(mut self, mut commands: mpsc::Receiver<LogCommand<F>>, mut say: S)
    where
        F: Send,
        S: AsyncFnMut(LogEvent<F>) -> Result<(), ()>,
    {
        let watch = LogWatch::new(&self.logs);
        loop {
            let outcome = tokio::select! {
                biased;
                changed = watch.next_changes() => self.read_changed(changed, &mut say).await,
                command = commands.recv() => match command {
                    Some(command) => self.on_command(command, &mut say).await,
                    None => return,
                },
            };
            if outcome.is_err() {
                return;
            }
        }
    }

    async fn on_command<F, S>(&mut self, command: LogCommand<F>, say: &mut S) -> Result<(), ()>
    where
        S: AsyncFnMut(LogEvent<F>) -> Result<(), ()>,
    {
        match command {
            LogCommand::Route(worker_id, job_id, pid) => {
                for is_stderr in [false, true] {
                    let new = || Followed { job_id, pid, file: None, tail: LogTail::new() };
                    self.files.entry((worker_id, is_stderr)).or_insert_with(new);
                    self.read((worker_id, is_stderr), false, say).await?;
                }
            }
            LogCommand::End(worker_id) => {
                for is_stderr in [false, true] {
                    self.read((worker_id, is_stderr), true, say).await?;
                    self.files.remove(&(worker_id, is_stderr));
                }
            }
            LogCommand::Flush(job_id, mark) => {
                let of_job = self.files.iter().filter(|(_, followed)| followed.job_id == job_id);
                for key in of_job.map(|(&key, _)| key).collect::<Vec<_>>() {
                    self.read(key, true, say).await?;
                }
                say(LogEvent::Flushed(mark)).await?;
            }
        }
        Ok(())
    }

    /// Reads the named files, or all if there are no names.
    async fn read_changed<F, S>(&mut self, changed: Option<Vec<String>>, say: &mut S) -> Result<(), ()>
    where
        S: AsyncFnMut(LogEvent<F>) -> Result<(), ()>,
    {
        let keys = match changed {
            Some(names) => names.iter().filter_map(|name| parse_name(name)).collect(),
            None => self.files.keys().copied().collect::<Vec<_>>(),
        };
        for key in keys {
            self.read(key, false, say).await?;
        }
        Ok(())
    }

    /// Says what was added to a file since it was read last; with `all`, also a line without end.
    async fn read<F, S>(&mut self, key: (WorkerId, bool), all: bool, say: &mut S) -> Result<(), ()>
    where
        S: AsyncFnMut(LogEvent<F>) -> Result<(), ()>,
    {
        let Some(followed) = self.files.get_mut(&key) else { return Ok(()) };
        let path = log_path(&self.logs, key.0, key.1);
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let mut batches = Vec::new();
            // Read on this thread: what was just written is in memory, and there is no file system
            // in between that would have to be waited for.
            let count = followed.read_some(&path, &mut buffer);
            followed.tail.push(&buffer[..count], &mut batches);
            if all && count == 0 {
                followed.tail.finish(&mut batches);
            }
            for batch in batches {
                let (job_id, pid) = (followed.job_id, followed.pid);
                say(LogEvent::Lines { job_id, pid, is_stderr: key.1, batch }).await?;
            }
            if count == 0 {
                return Ok(());
            }
        }
    }
}

impl Followed {
    fn read_some(&mut self, path: &Path, buffer: &mut [u8]) -> usize {
        if self.file.is_none() {
            match File::open(path) {
                Ok(file) => self.file = Some(file),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => debug!(path = %path.display(), %error, "cannot follow what a worker prints"),
            }
        }
        let Some(file) = &mut self.file else { return 0 };
        file.read(buffer).unwrap_or_else(|error| {
            debug!(path = %path.display(), %error, "cannot read what a worker printed");
            0
        })
    }
}

/// The worker and stream of a file of this name.
fn parse_name(name: &str) -> Option<(WorkerId, bool)> {
    let (id, extension) = name.strip_prefix("worker-")?.split_once('.')?;
    let is_stderr = match extension {
        "out" => false,
        "err" => true,
        _ => return None,
    };
    Some((WorkerId::from_hex(id).ok()?, is_stderr))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const WORKER: WorkerId = WorkerId::from_bytes([7; 16]);
    const JOB: JobId = JobId::from_bytes([1; 16]);

    async fn next_line(events: &mut mpsc::Receiver<LogEvent<u32>>) -> (String, bool, Vec<String>) {
        match events.recv().await {
            Some(LogEvent::Lines { job_id: JOB, pid: 42, is_stderr, batch }) => {
                (batch.name, is_stderr, batch.lines)
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn lines_are_passed_on_as_they_are_printed_and_the_rest_at_a_flush() {
        let folder = tempfile::tempdir().unwrap();
        let (commands, inbox) = mpsc::channel(8);
        let (outbox, mut events) = mpsc::channel(8);
        let monitor = LogMonitor::new(folder.path().to_owned());
        let follow =
            tokio::spawn(monitor.run(inbox, async move |event| outbox.send(event).await.map_err(drop)));
        let mut out = File::create(log_path(folder.path(), WORKER, false)).unwrap();
        out.write_all(b":task_name:f\nbefore it is known\n").unwrap();
        commands.send(LogCommand::Route(WORKER, JOB, 42)).await.unwrap();
        let lines = |line: &str| vec![line.to_owned()];
        assert_eq!(next_line(&mut events).await, ("f".to_owned(), false, lines("before it is known")));
        out.write_all(b"later\n").unwrap();
        assert_eq!(next_line(&mut events).await, ("f".to_owned(), false, lines("later")));
        let mut err = File::create(log_path(folder.path(), WORKER, true)).unwrap();
        err.write_all(b"no end").unwrap();
        commands.send(LogCommand::Flush(JOB, 5)).await.unwrap();
        assert_eq!(next_line(&mut events).await, (String::new(), true, lines("no end")));
        assert!(matches!(events.recv().await, Some(LogEvent::Flushed(5))));
        commands.send(LogCommand::End(WORKER)).await.unwrap();
        drop(commands);
        follow.await.unwrap();
    }

    #[test]
    fn only_files_of_workers_are_followed() {
        assert_eq!(parse_name(&format!("worker-{WORKER}.err")), Some((WORKER, true)));
        assert_eq!(parse_name("worker-1.out"), None);
        assert_eq!(parse_name(&format!("worker-{WORKER}.log")), None);
        assert_eq!(parse_name("node-7.log"), None);
    }
}
