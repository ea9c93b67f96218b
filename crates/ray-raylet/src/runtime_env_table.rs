//! The runtime environments of a node: which are being set up, ready or failed, and what lies on the disk for
//! them.
//!
//! ```text
//!            want                start_some              on_setup_done
//!   (none) --------> Waiting ---------------> SettingUp ---------------> Ready
//!      ^               |                        |    |                     |
//!      +---------------+------------------------+    | error, time-out     | unused for a while,
//!      |    nobody wants it any more                 v                     | or too many are
//!      +<---- after RETRY_AFTER ------------------ Failed                  |
//!      +<------------------------------------------------------------------+
//! ```
//! One set-up serves all who want the environment, whoever they are. A failure is told to all who wait, and
//! for a moment to all who ask: installing again right away would fail again. What the set-ups have left
//! on the disk (packages, virtual environments) outlives the environment, for others that need
//! the same; what nobody uses is discarded, least recently used first, when all of it takes too much room.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ray_core::id::RuntimeEnvId;
use ray_core::runtime_env::RuntimeEnv;
use serde::Deserialize;

/// How long a process that was told to end its set-up may take to do so.
const ABORT_LIMIT: Duration = Duration::from_secs(5);

/// The table's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeEnvConfig {
    /// How many set-ups may run at once.
    pub max_setting_up: usize,
    /// How long a failure is told to those who ask, before it is tried again.
    pub retry_after: Duration,
    /// How long a ready environment is kept after its last use.
    pub keep_unused: Duration,
    /// How many ready environments that nobody uses are kept at most.
    pub max_unused: usize,
    /// Bytes on the disk that are kept for environments, unless those in use take more.
    pub cache_bytes: u64,
}

impl Default for RuntimeEnvConfig {
    fn default() -> Self {
        Self {
            max_setting_up: 4,
            retry_after: Duration::from_secs(10),
            keep_unused: Duration::from_secs(60),
            max_unused: 8,
            cache_bytes: 10 << 30,
        }
    }
}

/// What a set-up has made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prepared {
    /// The interpreter to run processes with, and its first arguments; empty: the node's own.
    #[serde(default)]
    pub command: Vec<String>,
    /// What a process has to do to have the environment, for it to read: JSON.
    #[serde(default)]
    pub context: serde_json::Value,
    /// What lies on the disk for it.
    #[serde(default)]
    pub resources: Vec<Resource>,
}

/// A file or folder that environments use.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resource {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// Why a set-up came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SetupError {
    /// What it was doing, as "installing .. with pip"; empty if it does not say.
    pub step: String,
    /// What happened.
    pub reason: String,
    /// What lies on the disk nevertheless.
    pub resources: Vec<Resource>,
}

/// What the table wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEnvEffect {
    /// Start a process that sets this environment up.
    SetUp(RuntimeEnv),
    /// End the process of this set-up, and what it has started.
    Abort {
        /// The environment.
        id: RuntimeEnvId,
        /// The process; unknown while it is being made.
        pid: Option<u32>,
    },
    /// No process of this environment is wanted: end what makes them.
    Retire(RuntimeEnvId),
    /// Remove this from the disk.
    Discard(PathBuf),
}

/// How far an environment is, for those who need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Processes can have it.
    Ready,
    /// It is being set up, or waits until others are.
    Pending {
        /// Since when it has been waited for.
        since: Instant,
    },
    /// It could not be set up.
    Failed {
        /// What was asked for, and what happened.
        reason: String,
    },
}

#[derive(Debug)]
enum State {
    Waiting,
    SettingUp {
        pid: Option<u32>,
        deadline: Option<Instant>,
        /// Its time is over, and it was told to end by this moment.
        aborted: Option<Instant>,
    },
    Ready {
        prepared: Arc<Prepared>,
        unused_since: Option<Instant>,
    },
    Failed {
        until: Instant,
        reason: String,
    },
}

#[derive(Debug)]
struct Entry {
    env: RuntimeEnv,
    state: State,
    /// When it was first wanted.
    since: Instant,
}

#[derive(Debug)]
struct Kept {
    bytes: u64,
    used_by: BTreeSet<RuntimeEnvId>,
    last_used: Instant,
}

/// All environments that are known, and what lies on the disk.
#[derive(Debug)]
pub struct RuntimeEnvTable {
    config: RuntimeEnvConfig,
    entries: BTreeMap<RuntimeEnvId, Entry>,
    resources: BTreeMap<PathBuf, Kept>,
}

impl RuntimeEnvTable {
    /// No environments.
    pub const fn new(config: RuntimeEnvConfig) -> Self {
        Self { config, entries: BTreeMap::new(), resources: BTreeMap::new() }
    }

    /// Somebody needs this environment: it is set up if it is not.
    pub fn want(&mut self, now: Instant, env: &RuntimeEnv, out: &mut Vec<RuntimeEnvEffect>) -> Standing {
        if env.is_none() {
            return Standing::Ready;
        }
        let id = env.id();
        let over = |entry: &Entry| matches!(entry.state, State::Failed { until, .. } if until <= now);
        if self.entries.get(&id).is_none_or(over) {
            let state = if env.needs_setup() {
                State::Waiting
            } else {
                State::Ready { prepared: Arc::default(), unused_since: None }
            };
            self.entries.insert(id, Entry { env: env.clone(), state, since: now });
            self.start_some(now, out);
        }
        if let Some(Entry { state: State::Ready { unused_since, .. }, .. }) = self.entries.get_mut(&id) {
            *unused_since = None;
        }
        self.standing(id).unwrap_or(Standing::Ready)
    }

    /// How far an environment is; `None` if nobody needs it.
    pub fn standing(&self, id: RuntimeEnvId) -> Option<Standing> {
        let entry = self.entries.get(&id)?;
        Some(match &entry.state {
            State::Waiting | State::SettingUp { .. } => Standing::Pending { since: entry.since },
            State::Ready { .. } => Standing::Ready,
            State::Failed { reason, .. } => Standing::Failed { reason: reason.clone() },
        })
    }

    /// The environment of this id, and what its processes need, if it is ready.
    pub fn ready(&self, id: RuntimeEnvId) -> Option<(&RuntimeEnv, &Arc<Prepared>)> {
        match self.entries.get(&id)? {
            Entry { env, state: State::Ready { prepared, .. }, .. } => Some((env, prepared)),
            Entry { .. } => None,
        }
    }

    /// The set-up runs in this process. Returns whether it is still wanted.
    pub fn on_setup_started(&mut self, id: RuntimeEnvId, started: u32) -> bool {
        match self.entries.get_mut(&id).map(|entry| &mut entry.state) {
            Some(State::SettingUp { pid, aborted, .. }) if pid.is_none() => {
                *pid = Some(started);
                aborted.is_none()
            }
            Some(State::Waiting | State::SettingUp { .. } | State::Ready { .. } | State::Failed { .. })
            | None => false,
        }
    }

    /// The environment that this process sets up.
    pub fn of_pid(&self, pid: u32) -> Option<RuntimeEnvId> {
        let sets_up =
            |entry: &Entry| matches!(entry.state, State::SettingUp { pid: Some(own), .. } if own == pid);
        self.entries.iter().find(|(_, entry)| sets_up(entry)).map(|(&id, _)| id)
    }

    /// A set-up has ended. Returns whether somebody waits for it.
    pub fn on_setup_done(
        &mut self,
        now: Instant,
        id: RuntimeEnvId,
        result: Result<Prepared, SetupError>,
        out: &mut Vec<RuntimeEnvEffect>,
    ) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        let State::SettingUp { aborted, .. } = entry.state else { return false };
        match result {
            Ok(prepared) => {
                keep(&mut self.resources, &prepared.resources, id, now);
                entry.state = State::Ready { prepared: Arc::new(prepared), unused_since: None };
            }
            Err(error) => {
                keep(&mut self.resources, &error.resources, id, now);
                let limit = entry.env.setup_timeout().filter(|_| aborted.is_some());
                let reason = explain(&entry.env, &error, limit);
                self.fail(now, id, reason);
            }
        }
        self.start_some(now, out);
        true
    }

    /// Nobody can have this environment for a while, for this reason.
    pub fn fail(&mut self, now: Instant, id: RuntimeEnvId, reason: String) {
        let until = now + self.config.retry_after;
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.state = State::Failed { until, reason };
        }
        self.release_resources(now, id);
    }

    /// Does what is due by now; `in_use` are the environments that somebody needs. Returns those whose set-up
    /// took too long and does not end.
    pub fn tick(
        &mut self,
        now: Instant,
        in_use: &BTreeSet<RuntimeEnvId>,
        out: &mut Vec<RuntimeEnvEffect>,
    ) -> Vec<RuntimeEnvId> {
        let mut stuck = Vec::new();
        let mut gone = Vec::new();
        for (&id, entry) in &mut self.entries {
            let used = in_use.contains(&id);
            match &mut entry.state {
                State::Waiting if !used => gone.push(id),
                State::SettingUp { pid, .. } if !used => {
                    out.push(RuntimeEnvEffect::Abort { id, pid: *pid });
                    gone.push(id);
                }
                State::SettingUp { pid, deadline, aborted } => match aborted {
                    Some(limit) if *limit <= now => stuck.push(id),
                    None if deadline.is_some_and(|deadline| deadline <= now) => {
                        *aborted = Some(now + ABORT_LIMIT);
                        out.push(RuntimeEnvEffect::Abort { id, pid: *pid });
                    }
                    Some(_) | None => {}
                },
                State::Ready { unused_since, .. } if used => *unused_since = None,
                State::Ready { unused_since, .. } => {
                    let since = *unused_since.get_or_insert(now);
                    // What costs nothing to have again is not kept.
                    if !entry.env.needs_setup() || now.duration_since(since) >= self.config.keep_unused {
                        gone.push(id);
                    }
                }
                State::Failed { until, .. } if *until <= now => gone.push(id),
                State::Failed { .. } | State::Waiting => {}
            }
        }
        for id in gone {
            self.forget(now, id, out);
        }
        self.end_surplus(now, out);
        self.discard_some(out);
        self.start_some(now, out);
        stuck
    }

    /// When [`Self::tick`] has something to do next, if nothing else happens before.
    pub fn next_deadline(&self) -> Option<Instant> {
        let due = |entry: &Entry| match &entry.state {
            State::Waiting => None,
            State::SettingUp { deadline, aborted, .. } => aborted.or(*deadline),
            State::Ready { unused_since, .. } => unused_since.map(|since| since + self.config.keep_unused),
            State::Failed { until, .. } => Some(*until),
        };
        self.entries.values().filter_map(due).min()
    }

    /// All environments that are known: how far each is, and since when it is wanted.
    pub fn iter(&self) -> impl Iterator<Item = (&RuntimeEnv, Standing, Instant)> {
        self.entries.iter().filter_map(|(&id, entry)| Some((&entry.env, self.standing(id)?, entry.since)))
    }

    /// Whether no environment is known and nothing lies on the disk.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.resources.is_empty()
    }

    /// Begins set-ups, those first that were wanted first.
    fn start_some(&mut self, now: Instant, out: &mut Vec<RuntimeEnvEffect>) {
        let running = |entry: &&Entry| matches!(entry.state, State::SettingUp { .. });
        let running = self.entries.values().filter(running).count();
        let waits = |entry: &&mut Entry| matches!(entry.state, State::Waiting);
        let mut waiting: Vec<_> = self.entries.values_mut().filter(waits).collect();
        waiting.sort_by_key(|entry| entry.since);
        for entry in waiting.into_iter().take(self.config.max_setting_up.saturating_sub(running)) {
            let deadline = entry.env.setup_timeout().map(|limit| now + limit);
            entry.state = State::SettingUp { pid: None, deadline, aborted: None };
            out.push(RuntimeEnvEffect::SetUp(entry.env.clone()));
        }
    }

    fn forget(&mut self, now: Instant, id: RuntimeEnvId, out: &mut Vec<RuntimeEnvEffect>) {
        if let Some(Entry { state: State::Ready { .. }, .. }) = self.entries.remove(&id) {
            out.push(RuntimeEnvEffect::Retire(id));
        }
        self.release_resources(now, id);
    }

    fn release_resources(&mut self, now: Instant, id: RuntimeEnvId) {
        for kept in self.resources.values_mut() {
            if kept.used_by.remove(&id) {
                kept.last_used = now;
            }
        }
    }

    /// Forgets ready environments beyond the number that may lie unused, longest unused first.
    fn end_surplus(&mut self, now: Instant, out: &mut Vec<RuntimeEnvEffect>) {
        let unused = |(&id, entry): (&RuntimeEnvId, &Entry)| match entry.state {
            State::Ready { unused_since: Some(since), .. } => Some((since, id)),
            State::Ready { .. } | State::Waiting | State::SettingUp { .. } | State::Failed { .. } => None,
        };
        let mut unused: Vec<_> = self.entries.iter().filter_map(unused).collect();
        unused.sort_unstable();
        let surplus = unused.len().saturating_sub(self.config.max_unused);
        for (_, id) in unused.into_iter().take(surplus) {
            self.forget(now, id, out);
        }
    }

    /// Removes from the disk what nobody uses, as long as all of it takes too much room. A set-up that runs
    /// may be about to use any of it.
    fn discard_some(&mut self, out: &mut Vec<RuntimeEnvEffect>) {
        if self.entries.values().any(|entry| matches!(entry.state, State::SettingUp { .. })) {
            return;
        }
        let mut total: u64 = self.resources.values().map(|kept| kept.bytes).sum();
        while total > self.config.cache_bytes {
            let unused = self.resources.iter().filter(|(_, kept)| kept.used_by.is_empty());
            let Some((path, _)) = unused.min_by_key(|(_, kept)| kept.last_used) else { return };
            let path = path.clone();
            total -= self.resources.remove(&path).map_or(0, |kept| kept.bytes);
            out.push(RuntimeEnvEffect::Discard(path));
        }
    }
}

/// Notes what an environment uses.
fn keep(kept: &mut BTreeMap<PathBuf, Kept>, resources: &[Resource], id: RuntimeEnvId, now: Instant) {
    for Resource { path, bytes } in resources {
        let fresh = Kept { bytes: *bytes, used_by: BTreeSet::new(), last_used: now };
        let known = kept.entry(path.clone()).or_insert(fresh);
        known.bytes = *bytes;
        known.used_by.insert(id);
    }
}

/// What those who wait are told.
fn explain(env: &RuntimeEnv, error: &SetupError, overdue: Option<Duration>) -> String {
    let step = if error.step.is_empty() { "starting" } else { &error.step };
    let what = match overdue {
        Some(limit) => format!(
            "its set-up took longer than {} s (runtime_env[\"config\"][\"setup_timeout_seconds\"]) and was ended \
             while {step}",
            limit.as_secs_f64()
        ),
        None => format!("while {step}: {}", error.reason),
    };
    format!("{}: {what}", shown(env))
}

/// The description, short enough for an error, and without the values of variables: they may be secrets.
fn shown(env: &RuntimeEnv) -> String {
    const LIMIT: usize = 600;
    let mut fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(env.text()).unwrap_or_default();
    fields.retain(|name, _| !name.starts_with('_') && name != "config");
    if let Some(serde_json::Value::Object(variables)) = fields.get_mut("env_vars") {
        variables.values_mut().for_each(|value| *value = "...".into());
    }
    let text = serde_json::Value::Object(fields).to_string();
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
#[path = "runtime_env_table_tests.rs"]
mod tests;
