//! The runtime environment of tasks and actors: what their processes need beside the job's code.
//!
//! The front end describes one as a JSON object, in which every name of a local file was replaced by that
//! of an uploaded package. To Rust it is text with an id: processes of different environments are
//! never shared, and two environments are the same if their descriptions are. The few fields that
//! the node has to understand are read once, when the text arrives.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::error::{RayError, RayResult};
use crate::id::{FunctionId, RuntimeEnvId};

/// How long the set-up of an environment may take unless its description says otherwise; as in Ray.
const SETUP_TIMEOUT: Duration = Duration::from_secs(600);
/// Fields for which nothing has to be made on a node before a process can have them.
const APPLIED_BY_WORKER: [&str; 4] = ["env_vars", "worker_process_setup_hook", "_setup_hook", CONFIG];
/// Says how to set the environment up, and so is no part of what it is.
const CONFIG: &str = "config";

/// A runtime environment; cheap to clone, compare and hash.
#[derive(Clone, Default)]
pub struct RuntimeEnv(Option<Arc<Described>>);

struct Described {
    id: RuntimeEnvId,
    text: String,
    needs_setup: bool,
    setup_timeout: Option<Duration>,
    eager_install: bool,
}

impl RuntimeEnv {
    /// The environment that processes have by themselves.
    pub const fn none() -> Self {
        Self(None)
    }

    /// The environment that this JSON object describes; empty text or an empty object is none.
    ///
    /// # Errors
    /// `InvalidArgument` if it is no JSON object.
    pub fn parse(text: &str) -> RayResult<Self> {
        if text.is_empty() {
            return Ok(Self::none());
        }
        let wrong = |reason: String| RayError::InvalidArgument(format!("a runtime environment {reason}"));
        let value: Value =
            serde_json::from_str(text).map_err(|error| wrong(format!("is no JSON: {error}")))?;
        let Value::Object(mut fields) = value else {
            return Err(wrong("has to be a JSON object".to_owned()));
        };
        let config = fields.remove(CONFIG).unwrap_or_default();
        if fields.is_empty() {
            return Ok(Self::none());
        }
        let needs_setup = fields.keys().any(|name| !APPLIED_BY_WORKER.contains(&name.as_str()))
            || fields
                .get("env_vars")
                .and_then(Value::as_object)
                .is_some_and(|variables| variables.keys().any(|name| is_read_at_start(name)));
        // Names come in order, so that equal environments have equal texts.
        let identity = Value::Object(fields).to_string();
        Ok(Self(Some(Arc::new(Described {
            id: RuntimeEnvId::from_bytes(*FunctionId::of(identity.as_bytes()).as_bytes()),
            text: text.to_owned(),
            needs_setup,
            setup_timeout: setup_timeout(&config),
            eager_install: config.get("eager_install").and_then(Value::as_bool).unwrap_or(true),
        }))))
    }

    /// Names it by its content; nil for none.
    pub fn id(&self) -> RuntimeEnvId {
        self.0.as_ref().map_or(RuntimeEnvId::NIL, |described| described.id)
    }

    /// Its description in JSON; empty for none.
    pub fn text(&self) -> &str {
        self.0.as_ref().map_or("", |described| &described.text)
    }

    /// Whether it is the environment that processes have by themselves.
    pub const fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Whether something has to be made on a node before a process can have it.
    pub fn needs_setup(&self) -> bool {
        self.0.as_ref().is_some_and(|described| described.needs_setup)
    }

    /// How long its set-up may take; `None`: without limit.
    pub fn setup_timeout(&self) -> Option<Duration> {
        self.0.as_ref().map_or(Some(SETUP_TIMEOUT), |described| described.setup_timeout)
    }

    /// Whether a job's environment is set up when the job starts rather than when it is first used.
    pub fn eager_install(&self) -> bool {
        self.0.as_ref().is_some_and(|described| described.eager_install)
    }
}

/// Whether a variable counts only if it is set before the interpreter starts: workers are forked from one that
/// has started, and so need one of their own.
fn is_read_at_start(variable: &str) -> bool {
    (variable.starts_with("LD_") || variable.starts_with("PYTHON")) && variable != "PYTHONPATH"
}

/// In the description: seconds, -1 for no limit.
fn setup_timeout(config: &Value) -> Option<Duration> {
    match config.get("setup_timeout_seconds").and_then(Value::as_f64) {
        Some(seconds) if seconds < 0.0 => None,
        Some(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        None => Some(SETUP_TIMEOUT),
    }
}

impl PartialEq for RuntimeEnv {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for RuntimeEnv {}

impl Hash for RuntimeEnv {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id().hash(state);
    }
}

impl fmt::Debug for RuntimeEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RuntimeEnv({})", self.text())
    }
}

impl Serialize for RuntimeEnv {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.text().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RuntimeEnv {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> RuntimeEnv {
        RuntimeEnv::parse(text).unwrap()
    }

    #[test]
    fn nothing_asked_is_no_environment() {
        for text in ["", "{}", r#"{"config": {"setup_timeout_seconds": 5}}"#] {
            assert_eq!(parse(text), RuntimeEnv::none());
            assert!(parse(text).id().is_nil());
        }
    }

    #[test]
    fn the_order_of_names_and_the_config_do_not_tell_environments_apart() {
        let one = parse(r#"{"env_vars": {"A": "1", "B": "2"}, "pip": {"packages": ["x"]}}"#);
        let other =
            parse(r#"{"pip": {"packages": ["x"]}, "env_vars": {"B": "2", "A": "1"}, "config": {"a": 1}}"#);
        assert_eq!(one, other);
        assert_ne!(one, parse(r#"{"env_vars": {"A": "1", "B": "3"}, "pip": {"packages": ["x"]}}"#));
    }

    #[test]
    fn variables_and_hooks_need_no_setup() {
        assert!(!parse(r#"{"env_vars": {"A": "1"}, "worker_process_setup_hook": "m.f"}"#).needs_setup());
        assert!(parse(r#"{"env_vars": {"A": "1"}, "working_dir": "gcs://x.zip"}"#).needs_setup());
        assert!(parse(r#"{"env_vars": {"LD_PRELOAD": "/lib.so"}}"#).needs_setup());
        assert!(!RuntimeEnv::none().needs_setup());
    }

    #[test]
    fn the_time_for_the_setup_is_what_the_config_says() {
        let with = |seconds: &str| {
            let text = format!(r#"{{"pip": [], "config": {{"setup_timeout_seconds": {seconds}}}}}"#);
            parse(&text).setup_timeout()
        };
        assert_eq!(with("7"), Some(Duration::from_secs(7)));
        assert_eq!(with("-1"), None);
        assert_eq!(parse(r#"{"pip": []}"#).setup_timeout(), Some(SETUP_TIMEOUT));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in ["[]", "7", "{"] {
            assert!(RuntimeEnv::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn it_travels_as_its_text() {
        let env = parse(r#"{"env_vars": {"A": "1"}}"#);
        let bytes = crate::serialize::to_bytes(&env).unwrap();
        let back: RuntimeEnv = crate::serialize::from_bytes(&bytes).unwrap();
        assert_eq!((back.id(), back.text()), (env.id(), env.text()));
    }
}
