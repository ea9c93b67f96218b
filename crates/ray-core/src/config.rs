//! One typed configuration for every process, one section for each component.
//!
//! A value comes from the defaults, then from a TOML file, then from variables named
//! `RAY_RUST_<SECTION>_<FIELD>`; the later source wins. [`Config::load`] checks all of it once, and every
//! refusal names the key and where its value came from. What is loaded is passed down: no other
//! code reads the environment.
//!
//! A file looks like this:
//!
//! ```toml
//! [raylet]
//! num_cpus = 8
//! resources = { gizmo = 2 }
//!
//! [log]
//! level = "debug"
//! ```
//!
//! To add a setting, add a documented field to its section, its value to the section's `Default`, and,
//! if not every value makes sense, a line to the section's `validate`.

mod gcs;
mod log;
mod object_store;
mod raylet;
mod worker;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

pub use self::gcs::{GcsConfig, GcsStorage};
pub use self::log::LogConfig;
pub use self::object_store::ObjectStoreConfig;
pub use self::raylet::RayletConfig;
pub use self::worker::WorkerConfig;
use crate::error::{RayError, RayResult};

/// Beginning of the names of all variables that this system reads.
const PREFIX: &str = "RAY_RUST_";
/// Names the configuration file that [`Config::from_env`] reads.
pub const FILE_VARIABLE: &str = "RAY_RUST_CONFIG";

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The control plane.
    pub gcs: GcsConfig,
    /// The daemon of one node.
    pub raylet: RayletConfig,
    /// The object store of one node.
    pub object_store: ObjectStoreConfig,
    /// Worker and driver processes.
    pub worker: WorkerConfig,
    /// Logs of all processes.
    pub log: LogConfig,
}

/// Checks that a section takes a key and a value.
type Check = fn(Table) -> Result<(), toml::de::Error>;

/// The sections by name, each with what checks one of its keys.
const SECTIONS: [(&str, Check); 5] = [
    ("gcs", check::<GcsConfig>),
    ("raylet", check::<RayletConfig>),
    ("object_store", check::<ObjectStoreConfig>),
    ("worker", check::<WorkerConfig>),
    ("log", check::<LogConfig>),
];

impl Config {
    /// The configuration from `file`, if there is one, and `variables`, checked.
    ///
    /// A variable's value is written as in TOML (`4`, `"a"`, `{ gizmo = 2 }`) or as JSON (`{"gizmo": 2}`); text
    /// needs no quotes. An empty value counts as not set. Of the variables, only those that begin
    /// with a section's name after `RAY_RUST_` are looked at, and these have to exist.
    ///
    /// # Errors
    /// [`RayError::Config`] names the key and where its value came from.
    pub fn load(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> RayResult<Self> {
        let mut settings = Settings::default();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|error| {
                config_error(FILE_KEY, format!("cannot read {}: {error}", path.display()))
            })?;
            settings.add_file(&text, &path.display().to_string())?;
        }
        settings.add_variables(variables)?;
        settings.build()
    }

    /// The configuration from this process's environment, and from the file that
    /// [`FILE_VARIABLE`] names there.
    ///
    /// # Errors
    /// As [`Config::load`]; also if a variable of ours is not valid Unicode.
    pub fn from_env() -> RayResult<Self> {
        let mut variables = Vec::new();
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
            let value = value
                .into_string()
                .map_err(|_| config_error(name, "the variable's value is not valid Unicode".to_owned()))?;
            variables.push((name.to_owned(), value));
        }
        let file = variables.iter().find(|(name, value)| name == FILE_VARIABLE && !value.is_empty());
        let file = file.map(|(_, value)| PathBuf::from(value));
        Self::load(file.as_deref(), variables)
    }

    /// Checks every value, and those that have to fit one another.
    ///
    /// # Errors
    /// [`RayError::Config`] names the first key that makes no sense.
    pub fn validate(&self) -> RayResult<()> {
        self.gcs.validate()?;
        self.raylet.validate()?;
        self.object_store.validate()?;
        self.worker.validate()?;
        self.log.validate()
    }
}

/// Key that errors about the file as a whole carry.
const FILE_KEY: &str = "config";

/// What the sources say, before it becomes a [`Config`].
#[derive(Default)]
struct Settings {
    table: Table,
    /// Where the value of a key came from, for errors.
    origins: BTreeMap<String, String>,
}

impl Settings {
    fn add_file(&mut self, text: &str, name: &str) -> RayResult<()> {
        let file: Table =
            text.parse().map_err(|error| config_error(FILE_KEY, format!("{name} is not TOML: {error}")))?;
        for (section, content) in file {
            let Some(&(_, check)) = SECTIONS.iter().find(|(known, _)| *known == section) else {
                return Err(config_error(&section, format!("{name} has an unknown section")));
            };
            let Value::Table(content) = content else {
                return Err(config_error(&section, format!("{name} has a value where a section belongs")));
            };
            for (field, value) in content {
                let key = format!("{section}.{field}");
                check_field(check, &field, &value)
                    .map_err(|reason| config_error(&key, format!("{reason} (in {name})")))?;
                self.set(&section, &field, value, name);
            }
        }
        Ok(())
    }

    fn add_variables(&mut self, variables: impl IntoIterator<Item = (String, String)>) -> RayResult<()> {
        for (name, text) in variables {
            let Some((section, check, field)) = parse_name(&name) else { continue };
            if text.is_empty() {
                continue;
            }
            let value = parse_text(check, &field, &text).map_err(|reason| {
                config_error(&format!("{section}.{field}"), format!("{name} is {text:?}: {reason}"))
            })?;
            self.set(section, &field, value, &name);
        }
        Ok(())
    }

    fn set(&mut self, section: &str, field: &str, value: Value, origin: &str) {
        let content = self.table.entry(section).or_insert_with(|| Value::Table(Table::new()));
        content.as_table_mut().expect("only tables are inserted").insert(field.to_owned(), value);
        self.origins.insert(format!("{section}.{field}"), origin.to_owned());
    }

    fn build(self) -> RayResult<Config> {
        let config: Config = self
            .table
            .try_into()
            .map_err(|error: toml::de::Error| config_error(FILE_KEY, error.message().to_owned()))?;
        config.validate().map_err(|error| match error {
            RayError::Config { key, reason } => match self.origins.get(&key) {
                Some(origin) => config_error(&key, format!("{reason} (set by {origin})")),
                None => config_error(&key, reason),
            },
            other => other,
        })?;
        Ok(config)
    }
}

/// Section and field that a variable sets; `None` if it is none of ours.
fn parse_name(name: &str) -> Option<(&'static str, Check, String)> {
    let rest = name.strip_prefix(PREFIX)?.to_ascii_lowercase();
    SECTIONS.iter().find_map(|&(section, check)| {
        let field = rest.strip_prefix(section)?.strip_prefix('_')?;
        Some((section, check, field.to_owned()))
    })
}

/// The value that a variable's text stands for: the first reading of it that the field takes.
fn parse_text(check: Check, field: &str, text: &str) -> Result<Value, String> {
    let toml = format!("value = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
    let json = || serde_json::from_str::<Value>(text).ok();
    let plain = || Some(Value::String(text.to_owned()));
    let mut first_reason = None;
    for reading in [toml, json(), plain()].into_iter().flatten() {
        match check_field(check, field, &reading) {
            Ok(()) => return Ok(reading),
            Err(reason) => first_reason.get_or_insert(reason),
        };
    }
    Err(first_reason.expect("plain text is always a reading"))
}

fn check_field(check: Check, field: &str, value: &Value) -> Result<(), String> {
    let table = Table::from_iter([(field.to_owned(), value.clone())]);
    check(table).map_err(|error| error.message().trim().to_owned())
}

fn check<T: DeserializeOwned>(table: Table) -> Result<(), toml::de::Error> {
    table.try_into::<T>().map(drop)
}

fn config_error(key: &str, reason: String) -> RayError {
    RayError::Config { key: key.to_owned(), reason }
}

/// Refuses `value` unless it is from `min` to `max`.
fn in_range<T: PartialOrd + std::fmt::Display>(key: &str, value: T, min: T, max: T) -> RayResult<()> {
    if value >= min && value <= max {
        return Ok(());
    }
    Err(config_error(key, format!("has to be from {min} to {max}, is {value}")))
}

/// Longest time that a setting may say: a day. More is a typing error, and sums of times stay far
/// from overflowing.
const MAX_MS: u64 = 24 * 60 * 60 * 1000;
/// Longest queue that a setting may say.
const MAX_QUEUE: usize = 100_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn from_variables(variables: &[(&str, &str)]) -> RayResult<Config> {
        Config::load(None, variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())))
    }

    fn from_file(text: &str) -> RayResult<Config> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ray.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(Some(&path), [])
    }

    #[track_caller]
    fn assert_refused(result: RayResult<Config>, key: &str, parts: &[&str]) {
        let error = result.unwrap_err();
        let RayError::Config { key: actual, .. } = &error else { panic!("{error:?}") };
        assert_eq!(actual, key, "{error}");
        for part in parts {
            assert!(error.to_string().contains(part), "{part:?} is not in {error}");
        }
    }

    #[test]
    fn the_defaults_are_valid() {
        Config::default().validate().unwrap();
        assert_eq!(from_variables(&[]).unwrap(), Config::default());
    }

    #[test]
    fn a_variable_wins_over_the_file_and_the_file_over_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ray.toml");
        std::fs::write(&path, "[raylet]\nnum_cpus = 2\nmax_workers = 5\n").unwrap();
        let variables = [("RAY_RUST_RAYLET_NUM_CPUS".to_owned(), "3.5".to_owned())];
        let config = Config::load(Some(&path), variables).unwrap();
        assert_eq!(config.raylet.num_cpus, Some(3.5));
        assert_eq!(config.raylet.max_workers, 5);
        assert_eq!(config.gcs, GcsConfig::default());
    }

    #[test]
    fn variables_of_every_type_are_read() {
        let config = from_variables(&[
            ("RAY_RUST_GCS_STORAGE", "memory"),
            ("RAY_RUST_GCS_STORAGE_PATH", "/var/ray"),
            ("RAY_RUST_RAYLET_RESOURCES", r#"{"gizmo": 2, "half": 0.5}"#),
            ("RAY_RUST_RAYLET_LABELS", "{ zone = 'a' }"),
            ("RAY_RUST_OBJECT_STORE_CAPACITY_BYTES", "1000000000"),
            ("RAY_RUST_LOG_LEVEL", "ray_gcs=debug,info"),
            ("RAY_RUST_LOG_DIRECTORY", "1"),
        ])
        .unwrap();
        assert_eq!(config.gcs.storage, GcsStorage::Memory);
        assert_eq!(config.gcs.storage_path.as_deref(), Some(Path::new("/var/ray")));
        assert_eq!(config.raylet.resources, [("gizmo".to_owned(), 2.0), ("half".to_owned(), 0.5)].into());
        assert_eq!(config.raylet.labels, [("zone".to_owned(), "a".to_owned())].into());
        assert_eq!(config.object_store.capacity_bytes, 1_000_000_000);
        assert_eq!(config.log.level, "ray_gcs=debug,info");
        // A folder may be called as a number is written.
        assert_eq!(config.log.directory.as_deref(), Some(Path::new("1")));
    }

    #[test]
    fn a_bad_variable_is_named_with_its_key() {
        let variable = "RAY_RUST_RAYLET_NUM_CPUS";
        assert_refused(from_variables(&[(variable, "many")]), "raylet.num_cpus", &[variable, "many"]);
        assert_refused(from_variables(&[(variable, "-1")]), "raylet.num_cpus", &[variable, "-1"]);
        assert_refused(from_variables(&[(variable, "nan")]), "raylet.num_cpus", &[variable]);
        assert_refused(
            from_variables(&[("RAY_RUST_GCS_RPC_TIMEOUT_MS", "-5")]),
            "gcs.rpc_timeout_ms",
            &["RAY_RUST_GCS_RPC_TIMEOUT_MS", "-5"],
        );
        assert_refused(
            from_variables(&[("RAY_RUST_GCS_STORAGE", "redis")]),
            "gcs.storage",
            &["redis", "memory"],
        );
    }

    #[test]
    fn an_unknown_key_of_a_section_is_refused_and_other_variables_are_not() {
        assert_refused(
            from_variables(&[("RAY_RUST_RAYLET_NUM_CPU", "1")]),
            "raylet.num_cpu",
            &["RAY_RUST_RAYLET_NUM_CPU", "num_cpus"],
        );
        let others =
            [("RAY_RUST_TMPDIR", "/tmp"), ("RAY_RUST_AS_RAY", "1"), ("RAY_RUST_LOG", "x"), ("HOME", "/")];
        assert_eq!(from_variables(&others).unwrap(), Config::default());
    }

    #[test]
    fn an_empty_variable_counts_as_not_set() {
        assert_eq!(from_variables(&[("RAY_RUST_RAYLET_NUM_CPUS", "")]).unwrap(), Config::default());
    }

    #[test]
    fn a_bad_file_is_named_with_the_key() {
        assert_refused(from_file("[raylet]\nnum_cpus = true"), "raylet.num_cpus", &["ray.toml", "true"]);
        assert_refused(from_file("[raylet]\nnum_cpus = -2"), "raylet.num_cpus", &["ray.toml", "-2"]);
        assert_refused(from_file("[raylet]\nnum_cups = 1"), "raylet.num_cups", &["ray.toml", "num_cups"]);
        assert_refused(from_file("[rayled]\nnum_cpus = 1"), "rayled", &["ray.toml", "unknown section"]);
        assert_refused(from_file("raylet = 1"), "raylet", &["ray.toml"]);
        assert_refused(from_file("[raylet"), "config", &["ray.toml", "not TOML"]);
        assert_refused(Config::load(Some(Path::new("/nowhere/ray.toml")), []), "config", &["/nowhere"]);
    }

    #[test]
    fn values_that_contradict_one_another_are_refused() {
        assert_refused(
            from_variables(&[("RAY_RUST_GCS_NODE_DEAD_AFTER_MS", "900")]),
            "gcs.node_dead_after_ms",
            &["RAY_RUST_GCS_NODE_DEAD_AFTER_MS", "heartbeat_interval_ms"],
        );
        assert_refused(
            from_variables(&[("RAY_RUST_RAYLET_RESOURCES", "{ CPU = 3 }")]),
            "raylet.resources",
            &["num_cpus"],
        );
        assert_refused(
            from_variables(&[("RAY_RUST_LOG_LEVEL", "info,=,")]),
            "log.level",
            &["RAY_RUST_LOG_LEVEL"],
        );
    }

    #[test]
    fn a_configuration_survives_json() {
        let mut config = Config::default();
        config.raylet.num_cpus = Some(2.5);
        config.raylet.resources.insert("gizmo".to_owned(), 1.0);
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(
            field in prop::sample::select(vec![
                "RAYLET_NUM_CPUS", "RAYLET_RESOURCES", "GCS_STORAGE", "GCS_INBOX_CAPACITY", "LOG_LEVEL", "LOG_X",
            ]),
            text in "\\PC{0,24}",
        ) {
            let _ = from_variables(&[(&format!("RAY_RUST_{field}"), &text)]);
        }
    }
}
