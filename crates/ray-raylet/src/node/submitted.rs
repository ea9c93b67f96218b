//! What comes by gRPC: tasks of clients without a core worker, and leases for other nodes.

use std::time::Instant;

use bytes::Bytes;
use ray_core::error::{RayError, RayResult};
use ray_core::id::{JobId, LeaseId, TaskId, WorkerId};
use ray_core::resource::Resources;
use ray_link::FromRaylet;
use ray_link::message::LeasedWorker;

use super::effect::{Effect, ExitStatus, RemoteOutcome};
use super::machine::NodeMachine;
use crate::lease_table::Holder;
use crate::resource_manager::Claim;
use crate::scheduling_queue::EnqueueError;
use crate::task_table::{AfterLoss, Cancelled, TaskSpec, TaskState};

impl NodeMachine {
    /// Takes a task. Submitting it again is submitting it once.
    ///
    /// # Errors
    /// If the node can never run it, or has too many.
    pub fn on_submit(&mut self, now: Instant, spec: TaskSpec) -> RayResult<()> {
        if self.tasks.state(spec.task_id).is_some() {
            return Ok(());
        }
        self.queue.check_feasible(&spec.resources.clone().into())?;
        let task_id = spec.task_id;
        let refuse = |error: crate::task_table::TooManyTasks| RayError::Overloaded {
            queue: "the table of submitted tasks",
            capacity: error.capacity,
        };
        self.tasks.submit(spec).map_err(refuse)?;
        self.request_lease_for(task_id);
        self.serve(now);
        Ok(())
    }

    fn request_lease_for(&mut self, task_id: TaskId) {
        let Some(spec) = self.tasks.spec(task_id) else { return };
        let (claim, job_id) = (Claim::from(spec.resources.clone()), spec.job_id);
        let lease_id = self.next_lease_id();
        match self.queue.push(lease_id, &claim) {
            Ok(()) => {
                self.leases.insert(lease_id, Holder::Task(task_id), job_id, claim);
                self.mark_changed();
            }
            Err(error) => self.tasks.on_failed(task_id, error.to_string()),
        }
    }

    pub(super) fn on_task_placed(
        &mut self,
        now: Instant,
        task_id: TaskId,
        lease_id: LeaseId,
        worker_id: WorkerId,
    ) {
        let Some(spec) = self.tasks.on_started(task_id, worker_id) else {
            self.give_back(now, lease_id);
            return;
        };
        let (function, payload) = (spec.function.clone(), spec.payload.clone());
        self.send_to(worker_id, FromRaylet::RunTask { task_id, function, payload });
    }

    pub(super) fn on_task_done(
        &mut self,
        now: Instant,
        worker_id: WorkerId,
        task_id: TaskId,
        result: Result<Bytes, String>,
    ) {
        let (result, value) = match result {
            Ok(value) => (Ok(()), Some(value)),
            Err(message) => (Err(message), None),
        };
        if !self.tasks.on_done(task_id, worker_id, result) {
            return;
        }
        // Stored before the state can be asked for: both are the work of one thread.
        self.effects.extend(value.map(|value| Effect::StoreResult(task_id, value)));
        self.end_leases_of(now, task_id);
    }

    /// The result of a task that ended well could not be stored.
    pub fn on_result_lost(&mut self, task_id: TaskId, reason: String) {
        self.tasks.on_failed(task_id, reason);
    }

    pub(super) fn on_task_worker_lost(
        &mut self,
        now: Instant,
        task_id: TaskId,
        worker_id: WorkerId,
        cause: &str,
    ) {
        match self.tasks.on_worker_lost(task_id, worker_id, cause) {
            Some(AfterLoss::Retry) => {
                self.request_lease_for(task_id);
                self.serve(now);
            }
            Some(AfterLoss::Failed) | None => {}
        }
    }

    /// Cancels a task. Returns whether it will not end by itself any more.
    ///
    /// # Errors
    /// If it runs and `force` is not given: a running function cannot be asked to stop.
    pub fn on_cancel(&mut self, now: Instant, task_id: TaskId, force: bool) -> RayResult<bool> {
        match self.tasks.cancel(task_id, force) {
            Cancelled::WasPending => self.end_leases_of(now, task_id),
            Cancelled::WasRunning(worker_id) => self.kill_worker(now, worker_id, "its task was cancelled"),
            Cancelled::NeedsForce => {
                let reason = format!("task {task_id} runs already, and only force ends it");
                return Err(RayError::InvalidArgument(reason));
            }
            Cancelled::No => return Ok(false),
        }
        Ok(true)
    }

    fn end_leases_of(&mut self, now: Instant, task_id: TaskId) {
        let leases: Vec<_> = self.leases.of_holder(&Holder::Task(task_id)).collect();
        for lease_id in leases {
            self.give_back(now, lease_id);
        }
        self.serve(now);
    }

    /// How far a task is, and what it waits for.
    pub fn task_state(&self, task_id: TaskId) -> Option<(&TaskState, String)> {
        let state = self.tasks.state(task_id)?;
        let lease = self.leases.of_holder(&Holder::Task(task_id)).next();
        let reason = match (state, lease) {
            (TaskState::Failed(reason), _) => reason.clone(),
            (TaskState::Pending, Some(lease_id)) if self.queue.contains(&lease_id) => {
                let claim = self.leases.get(lease_id).map(|lease| &lease.claim);
                let shortage = claim.map(|claim| self.resources.shortage(claim)).unwrap_or_default();
                format!("waits for resources: {shortage}")
            }
            (TaskState::Pending, Some(_)) => "waits for a worker to start".to_owned(),
            (TaskState::Pending | TaskState::Running(_) | TaskState::Finished | TaskState::Cancelled, _) => {
                String::new()
            }
        };
        Some((state, reason))
    }

    /// Somebody asks by gRPC for a lease; answered by [`Effect::RemoteLease`], at once if it is held or
    /// infeasible. Asking again is asking once.
    pub fn on_request_lease(&mut self, now: Instant, lease_id: LeaseId, job_id: JobId, shape: Resources) {
        if let Some(lease) = self.leases.get(lease_id) {
            let worker = lease.state.worker().and_then(|worker_id| self.leased_worker(worker_id));
            if let Some(worker) = worker {
                self.effects.push(Effect::RemoteLease(lease_id, RemoteOutcome::Granted(worker)));
            }
            return;
        }
        let claim = Claim::from(shape);
        match self.queue.push(lease_id, &claim) {
            Ok(()) => {
                self.leases.insert(lease_id, Holder::Remote(lease_id), job_id, claim);
                self.mark_changed();
                self.serve(now);
            }
            Err(EnqueueError::Infeasible { missing, .. }) => {
                self.effects.push(Effect::RemoteLease(lease_id, RemoteOutcome::Infeasible(missing)));
            }
            Err(EnqueueError::Full { .. }) => {
                let reason = "too many requests wait already".to_owned();
                self.effects.push(Effect::RemoteLease(lease_id, RemoteOutcome::Busy(reason)));
            }
        }
    }

    /// The caller by gRPC has stopped waiting; a lease that it was granted meanwhile stays its own.
    /// Returns why it waited in vain, or `None` if the lease is held after all.
    pub fn on_lease_timeout(&mut self, now: Instant, lease_id: LeaseId) -> Option<String> {
        let lease = self.leases.get(lease_id)?;
        if lease.state.worker().is_some() {
            return None;
        }
        let reason = match self.resources.shortage(&lease.claim) {
            shortage if shortage.is_empty() => "its worker is still starting".to_owned(),
            shortage => shortage,
        };
        self.give_back(now, lease_id);
        Some(reason)
    }

    /// The caller by gRPC gives its lease back.
    pub fn on_release_lease(&mut self, now: Instant, lease_id: LeaseId) {
        if matches!(self.leases.get(lease_id).map(|lease| lease.holder), Some(Holder::Remote(_))) {
            self.give_back(now, lease_id);
            self.serve(now);
        }
    }

    /// A worker that somebody else started serves those who only need its address.
    ///
    /// # Errors
    /// If a worker of that id is known already, at another address.
    pub fn on_external_worker(&mut self, now: Instant, worker: LeasedWorker) -> RayResult<()> {
        let worker_id = worker.worker_id;
        if self.announced.get(&worker_id) == Some(&worker) {
            return Ok(());
        }
        if self.pool.get(worker_id).is_some() || self.by_worker.contains_key(&worker_id) {
            return Err(RayError::AlreadyExists { what: format!("worker {worker_id}") });
        }
        let pid = worker.pid;
        self.announced.insert(worker_id, worker);
        let mut out = Vec::new();
        self.pool.on_announced(now, worker_id, pid, &mut out);
        self.run_pool_effects(now, out);
        Ok(())
    }

    /// A worker goes: one that was announced is forgotten, one of the node's own is ended.
    pub fn on_unregistered(&mut self, now: Instant, worker_id: WorkerId, reason: &str) {
        if self.announced.contains_key(&worker_id) {
            self.kill_reasons.insert(worker_id, reason.to_owned());
            self.finish_worker(now, worker_id, ExitStatus::Unknown);
        } else {
            self.kill_worker(now, worker_id, reason);
        }
    }
}
