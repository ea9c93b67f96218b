//! Where what the processes say with `tracing` goes: one file for each process.
//!
//! `RUST_LOG` decides what is written, as everywhere; without it, the level that the caller gives.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;

use crate::error::{RayError, RayResult};

/// The variable that decides what is logged, before any configuration.
pub const FILTER_VARIABLE: &str = "RUST_LOG";
/// What is logged if nobody says otherwise.
pub const DEFAULT_LEVEL: &str = "info";

/// Sends this process's log to `<process_name>-<pid>.log` in `directory`, or to standard error if
/// that is `None`. Logs `info` and above unless `RUST_LOG` says otherwise.
///
/// May be called again: the first call of a process counts. A process that was forked is a new one
/// and gets a file of its own.
///
/// # Errors
/// If the name is no file name, or the folder or the file cannot be made.
pub fn init_logging(process_name: &str, directory: Option<&Path>) -> RayResult<()> {
    init_logging_at(process_name, directory, DEFAULT_LEVEL)
}

/// As [`init_logging`], with what is logged if `RUST_LOG` is not set.
///
/// # Errors
/// As [`init_logging`]; also if `level` or the value of `RUST_LOG` is no filter.
pub fn init_logging_at(process_name: &str, directory: Option<&Path>, level: &str) -> RayResult<()> {
    let pid = std::process::id();
    let mut target = TARGET.lock().unwrap_or_else(PoisonError::into_inner);
    if target.as_ref().is_some_and(|target| target.pid == pid) {
        return Ok(());
    }
    let filter = filter(level)?;
    let file = directory.map(|directory| open(process_name, directory, pid)).transpose()?;
    *target = Some(Target { pid, file });
    drop(target);
    // Refused if this process was forked from one that has a subscriber, which writes to the new
    // file already, or if the program that embeds us has one of its own, which we leave in place.
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(CurrentTarget);
    let _ = tracing::subscriber::set_global_default(subscriber.finish());
    Ok(())
}

/// Where lines go now.
struct Target {
    /// The process that opened it.
    pid: u32,
    /// `None`: standard error.
    file: Option<Arc<File>>,
}

static TARGET: Mutex<Option<Target>> = Mutex::new(None);

fn filter(level: &str) -> RayResult<EnvFilter> {
    let from_variable = std::env::var(FILTER_VARIABLE).ok().filter(|text| !text.is_empty());
    let (key, text) = match &from_variable {
        Some(text) => (FILTER_VARIABLE, text.as_str()),
        None => ("log.level", level),
    };
    parse_filter(text).map_err(|error| RayError::Config {
        key: key.to_owned(),
        reason: format!("{text:?} is no filter: {error}"),
    })
}

/// The filter that this text describes.
///
/// Spaces around its parts are taken away before: the library looks for what separates names in the part
/// without them, and then cuts the part with them, so that it reads other names, or panics in a character.
pub(crate) fn parse_filter(text: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::try_new(text.split(',').map(str::trim).collect::<Vec<_>>().join(","))
}

fn open(process_name: &str, directory: &Path, pid: u32) -> RayResult<Arc<File>> {
    if process_name.is_empty() || process_name.contains(['/', '\0']) {
        return Err(RayError::InvalidArgument(format!("{process_name:?} cannot name a log file")));
    }
    std::fs::create_dir_all(directory).map_err(|error| {
        RayError::io(format!("cannot make the log folder {}", directory.display()), error)
    })?;
    let path = directory.join(format!("{process_name}-{pid}.log"));
    let file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(|error| RayError::io(format!("cannot open the log file {}", path.display()), error))?;
    Ok(Arc::new(file))
}

/// Writes each line to the target of its moment. A line is one `write`, so that lines of several
/// threads do not mix.
struct CurrentTarget;

enum LineWriter {
    File(Arc<File>),
    Stderr(io::Stderr),
}

impl MakeWriter<'_> for CurrentTarget {
    type Writer = LineWriter;

    fn make_writer(&self) -> LineWriter {
        let target = TARGET.lock().unwrap_or_else(PoisonError::into_inner);
        match target.as_ref().and_then(|target| target.file.clone()) {
            Some(file) => LineWriter::File(file),
            None => LineWriter::Stderr(io::stderr()),
        }
    }
}

impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => (&**file).write(bytes),
            Self::Stderr(stderr) => stderr.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => (&**file).flush(),
            Self::Stderr(stderr) => stderr.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_to_the_first_file_of_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("logs");
        init_logging("test", Some(&directory)).unwrap();
        init_logging("again", Some(&directory)).unwrap();
        tracing::error!(node_id = 7, "something happened");
        let files: Vec<_> =
            std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(files, [format!("test-{}.log", std::process::id()).as_str()]);
        let text = std::fs::read_to_string(directory.join(&files[0])).unwrap();
        assert!(text.contains("something happened") && text.contains("node_id=7"), "{text:?}");
    }

    #[test]
    fn spaces_in_a_filter_change_nothing() {
        let filter = parse_filter(" ray_gcs=debug, ray_raylet=trace ").unwrap().to_string();
        assert!(filter.contains("ray_gcs=debug") && filter.contains("ray_raylet=trace"), "{filter}");
        // This made it panic.
        let _ = parse_filter(" \u{10f30}=");
    }

    #[test]
    fn a_name_that_leaves_the_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(open("../outside", folder.path(), 1).is_err());
        assert!(open("", folder.path(), 1).is_err());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let error = open("test", Path::new("/proc/nowhere"), 1).unwrap_err();
        assert!(error.to_string().contains("/proc/nowhere"), "{error}");
    }
}
