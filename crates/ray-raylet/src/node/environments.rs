//! Runtime environments on the node: no lease is queued for one that is not ready, so that nobody holds
//! resources while packages are installed.
//!
//! ```text
//!   demand, actor --want--> Ready: queued for resources
//!                           Pending: noted; queued when the set-up is done
//!                           Failed: whoever asked is told
//! ```
//! An environment is in use as long as a demand, an actor, a worker, or the driver of a job that asks for it
//! is here.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use ray_core::id::{RuntimeEnvId, WorkerId};
use ray_core::runtime_env::RuntimeEnv;
use ray_link::FromRaylet;
use tracing::{info, warn};

use super::effect::{ClientId, Effect};
use super::machine::NodeMachine;
use crate::runtime_env_table::{Prepared, RuntimeEnvEffect, SetupError, Standing};

impl NodeMachine {
    /// Somebody needs this environment.
    pub(super) fn want_env(&mut self, now: Instant, env: &RuntimeEnv) -> Standing {
        if env.is_none() {
            return Standing::Ready;
        }
        let mut out = Vec::new();
        let standing = self.envs.want(now, env, &mut out);
        self.run_env_effects(out);
        standing
    }

    /// How far an environment is: what those who need it wait for, or why they cannot have it. `None` if
    /// nobody needs it.
    pub fn env_standing(&self, id: RuntimeEnvId) -> Option<Standing> {
        self.envs.standing(id)
    }

    /// What those who need this environment wait for, if they wait for it.
    pub(super) fn why_env_pending(&self, env: &RuntimeEnv) -> Option<String> {
        let id = env.id();
        let pending = matches!(self.env_standing(id), Some(Standing::Pending { .. }));
        pending.then(|| {
            format!(
                "their runtime environment is being set up (its installer writes runtime_env_setup-{id}.log)"
            )
        })
    }

    /// A job begins: its environment is set up, and its first worker started, before anyone asks.
    pub(super) fn prepare_job(&mut self, now: Instant, client: ClientId) {
        let Some(env) = self.clients.get(&client).map(|client| client.runtime_env.clone()) else { return };
        if (!env.needs_setup() || env.eager_install()) && self.want_env(now, &env) == Standing::Ready {
            self.prestart(now, env.id());
        }
    }

    /// What the process of this worker is to be made with; `None`: nothing.
    pub fn environment_of(&self, worker_id: WorkerId) -> Option<(RuntimeEnv, Arc<Prepared>)> {
        let (env, prepared) = self.envs.ready(self.pool.get(worker_id)?.env)?;
        Some((env.clone(), Arc::clone(prepared)))
    }

    /// The set-up of this environment runs in this process.
    pub fn on_setup_started(&mut self, id: RuntimeEnvId, pid: u32) {
        if !self.envs.on_setup_started(id, pid) {
            self.effects.push(Effect::AbortSetUp(pid));
        }
    }

    /// The environment that this process sets up.
    pub fn setup_of(&self, pid: u32) -> Option<RuntimeEnvId> {
        self.envs.of_pid(pid)
    }

    /// The process that set this environment up has ended.
    pub fn on_setup_done(&mut self, now: Instant, id: RuntimeEnvId, result: Result<Prepared, SetupError>) {
        let mut out = Vec::new();
        let awaited = self.envs.on_setup_done(now, id, result, &mut out);
        self.run_env_effects(out);
        if awaited {
            self.on_env_settled(now, id);
        }
    }

    /// What makes the processes of this environment has ended: none of those that are starting will come.
    pub fn on_env_fork_server_lost(&mut self, now: Instant, id: RuntimeEnvId, cause: &str) {
        let mut out = Vec::new();
        self.pool.on_fork_server_lost(now, id, cause, &mut out);
        self.run_pool_effects(now, out);
        self.serve(now);
    }

    fn on_env_settled(&mut self, now: Instant, id: RuntimeEnvId) {
        match self.envs.standing(id) {
            Some(Standing::Ready) => {
                info!(%id, "a runtime environment is ready");
                let of_env = self.demands.iter().filter(|(_, demand)| demand.runtime_env.id() == id);
                self.short.extend(of_env.map(|(&key, _)| key));
                for actor_id in self.actors_in(id) {
                    self.queue_actor(actor_id);
                }
                if self.clients.values().any(|client| client.runtime_env.id() == id) {
                    self.prestart(now, id);
                }
                self.serve(now);
            }
            Some(Standing::Failed { reason }) => self.on_env_failed(now, id, &reason),
            Some(Standing::Pending { .. }) | None => {}
        }
    }

    /// No worker of this environment starts.
    pub(super) fn fail_env(&mut self, now: Instant, id: RuntimeEnvId, reason: String) {
        self.envs.fail(now, id, reason.clone());
        let mut out = Vec::new();
        self.pool.end_starting(id, &mut out);
        self.run_pool_effects(now, out);
        self.on_env_failed(now, id, &reason);
    }

    fn on_env_failed(&mut self, now: Instant, id: RuntimeEnvId, reason: &str) {
        warn!(%id, reason, "a runtime environment cannot be had");
        let of_env = self.demands.iter().filter(|(_, demand)| demand.runtime_env.id() == id);
        for key in of_env.map(|(&key, _)| key).collect::<Vec<_>>() {
            self.fail_demand(now, key, reason);
        }
        for actor_id in self.actors_in(id) {
            self.on_actor_env_failed(now, actor_id, reason);
        }
        self.serve(now);
    }

    /// The tasks of this demand cannot have their environment.
    pub(super) fn fail_demand(&mut self, now: Instant, key: (WorkerId, u64), reason: &str) {
        let (worker_id, class) = key;
        self.demands.remove(&key);
        self.mark_changed();
        self.cancel_surplus(now, worker_id, class, 0);
        self.send_to(worker_id, FromRaylet::RuntimeEnvFailed { class, reason: reason.to_owned() });
    }

    /// Begins, gives up and retires what is due.
    pub(super) fn tend_environments(&mut self, now: Instant) {
        let released = std::mem::take(&mut self.envs_released);
        let due = || self.envs.next_deadline().is_some_and(|at| at <= now);
        if self.envs.is_empty() || !(released || due()) {
            return;
        }
        let in_use = self.envs_in_use();
        let mut out = Vec::new();
        let stuck = self.envs.tick(now, &in_use, &mut out);
        self.run_env_effects(out);
        for id in stuck {
            let reason = "its process did not end when it was killed".to_owned();
            self.on_setup_done(now, id, Err(SetupError { reason, ..SetupError::default() }));
        }
    }

    fn envs_in_use(&self) -> BTreeSet<RuntimeEnvId> {
        let demands = self.demands.values().map(|demand| demand.runtime_env.id());
        let actors = self.actors.values().map(|actor| actor.runtime_env().id());
        let jobs = self.clients.values().map(|client| client.runtime_env.id());
        demands.chain(actors).chain(jobs).chain(self.pool.envs()).collect()
    }

    fn run_env_effects(&mut self, effects: Vec<RuntimeEnvEffect>) {
        for effect in effects {
            match effect {
                RuntimeEnvEffect::SetUp(env) => {
                    // Not its description, in which there may be secrets.
                    info!(id = %env.id(), "a runtime environment is set up");
                    self.effects.push(Effect::SetUp(env));
                }
                // A process that is not known yet is ended when it is.
                RuntimeEnvEffect::Abort { pid, .. } => {
                    self.effects.extend(pid.map(Effect::AbortSetUp));
                }
                RuntimeEnvEffect::Retire(id) => self.effects.push(Effect::RetireEnv(id)),
                RuntimeEnvEffect::Discard(path) => self.effects.push(Effect::Discard(path)),
            }
        }
    }
}
