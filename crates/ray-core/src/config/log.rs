//! Settings of the logs of all processes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::config_error;
use crate::error::RayResult;
use crate::log::parse_filter;

/// Settings of the logs of all processes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// What is logged where `RUST_LOG` says nothing: a level, or levels by module as
    /// `ray_gcs=debug,info`. Default `info`. Lower it to `debug` to follow single tasks.
    pub level: String,
    /// Folder of the log files, one for each process. Default: one in the session folder.
    pub directory: Option<PathBuf>,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), directory: None }
    }
}

impl LogConfig {
    pub(super) fn validate(&self) -> RayResult<()> {
        match parse_filter(&self.level) {
            Ok(_) => Ok(()),
            Err(error) => Err(config_error("log.level", format!("{:?} is no filter: {error}", self.level))),
        }
    }
}
