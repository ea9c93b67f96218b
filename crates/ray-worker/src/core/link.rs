//! The conversation with the node.

use std::time::Duration;

use bytes::Bytes;
use ray_core::error::{RayError, RayResult};
use ray_link::message::{FromRaylet, GcsMethod, LinkMessage as _, ToRaylet, connection_error};
use ray_link::{Interest, Readiness};

use super::poll::{Interrupted, Patience};
use super::state::{Answer, State, Untold, now};
use super::{CoreWorker, LINK_TOKEN, Notification};

impl State {
    pub(super) fn on_link_ready(&mut self, core: &CoreWorker, ready: Readiness) {
        if ready.readable {
            // Frames that came before an end still count.
            let Some(link) = &mut self.link else { return };
            let filled = link.fill();
            let taken = self.take_link_frames(core);
            let result = filled.map(drop).map_err(|error| connection_error("the node", error)).and(taken);
            if let Err(error) = result {
                self.on_link_lost(core, error);
                return;
            }
        }
        if ready.writable {
            self.flush_link(core);
        }
    }

    /// Takes what came right behind the answer to the registration: nothing would tell of it again.
    pub(super) fn take_early_news(&mut self, core: &CoreWorker) {
        if let Err(error) = self.take_link_frames(core) {
            self.on_link_lost(core, error);
        }
    }

    fn take_link_frames(&mut self, core: &CoreWorker) -> RayResult<()> {
        let Some(link) = &mut self.link else { return Ok(()) };
        let mut reader = link.lend_reader();
        let result = loop {
            match reader.next_frame() {
                Ok(None) => break Ok(()),
                Ok(Some(frame)) => match FromRaylet::read(frame) {
                    Ok(message) => self.on_link_message(core, message),
                    Err(error) => break Err(error),
                },
                Err(error) => break Err(connection_error("the node", error.into())),
            }
        };
        if let Some(link) = &mut self.link {
            link.restore_reader(reader);
        }
        result
    }

    fn on_link_lost(&mut self, core: &CoreWorker, error: RayError) {
        // It would be ready for ever.
        if let Some(link) = &self.link {
            let _ = core.sockets.remove(link);
        }
        self.begin_exit();
        self.close(error);
    }

    pub(super) fn flush_link(&mut self, core: &CoreWorker) {
        let Some(link) = self.link.as_mut().filter(|link| link.queued_bytes() > 0) else { return };
        match link.flush() {
            Ok(all) => {
                let interest = if all { Interest::Read } else { Interest::ReadWrite };
                // Only a lost link is not in the set, and that is noticed by reading.
                let _ = core.sockets.modify(&*link, LINK_TOKEN, interest);
            }
            // Its end is noticed by reading, after what it said last.
            Err(error) => tracing::debug!(%error, "the link cannot be written"),
        }
    }

    fn on_link_message(&mut self, core: &CoreWorker, message: FromRaylet) {
        match message {
            FromRaylet::LeaseGranted { class, lease_id, worker, devices } => {
                self.on_lease_granted(core, class, lease_id, worker, devices);
            }
            FromRaylet::LeaseInfeasible { class, reason } => self.on_lease_infeasible(class, &reason),
            FromRaylet::RuntimeEnvFailed { class, reason } => {
                self.on_runtime_env_failed(core, class, None, &reason);
            }
            FromRaylet::LeaseUnschedulable { class, kind, reason } => {
                self.on_lease_unschedulable(core, class, None, kind, &reason);
            }
            FromRaylet::LeaseContention { class, contended } => {
                self.on_lease_contention(core, class, None, contended);
            }
            FromRaylet::LeaseElsewhere { class, nodes } => {
                let mut out = Vec::new();
                self.dispatcher.on_elsewhere(class, &nodes, &mut out);
                self.apply_dispatch(core, out);
            }
            FromRaylet::ObjectCreated { request, result } => self.answer(request, Answer::Created(result)),
            FromRaylet::ObjectReady { request, object_id, offset, size } => {
                self.on_object_pinned(request, object_id, Ok((offset, size)));
            }
            FromRaylet::ObjectUnavailable { request, object_id, error } => {
                self.on_object_pinned(request, object_id, Err(error));
            }
            FromRaylet::GcsReply { request, result } => {
                let is_batch = self.task_log.on_answer(request, result.is_ok(), now());
                if !is_batch
                    && !self.on_registration(core, request, &result)
                    && !self.on_group_answer(core, request, &result)
                {
                    self.answer(request, Answer::Gcs(result));
                }
            }
            FromRaylet::ActorState { info } => self.on_actor_news(core, &info),
            FromRaylet::GroupState { group_id, info } => {
                self.on_group_state(core, group_id, info.as_ref());
            }
            FromRaylet::CreateActor { spec, num_restarts, devices } => {
                self.on_create_actor(spec, num_restarts, devices);
            }
            FromRaylet::RunTask { task_id, function, payload } => {
                self.on_run_task(task_id, function, payload);
            }
            FromRaylet::WorkerDied { worker_id, cause, out_of_memory } => {
                self.on_worker_died(core, worker_id, cause, out_of_memory);
            }
            FromRaylet::LogLines { pid, name, is_stderr, lines } => {
                self.notify(Notification::Log { pid, name, is_stderr, lines });
            }
            // Behind the lines that came before, which the front end has not taken yet.
            FromRaylet::LogsFlushed { request } => self.untold.push_back(Untold::Flushed(request)),
            FromRaylet::Inspect { request, inquiry } => self.on_inspect(request, inquiry),
            FromRaylet::PendingReason { class, reason } => self.on_pending_reason(class, &reason),
            FromRaylet::Exit { reason } => self.on_exit(&reason),
            // Its workers may print something of this driver's job.
            FromRaylet::NodeJoined { node_id } => self.visit_node(core, node_id),
            FromRaylet::NodeDied { node_id, cause } => self.on_node_died(core, node_id, &cause),
            FromRaylet::Retire { reason } => self.on_retire(core, &reason),
            FromRaylet::ObjectSpilled { object_id } => self.on_object_spilled(object_id),
            FromRaylet::Registered { .. } | FromRaylet::Rejected { .. } => {
                tracing::warn!("the node answered a registration twice");
            }
        }
    }

    pub(super) fn answer(&mut self, request: u64, answer: Answer) {
        // A request that nobody waits for any more was given up in time.
        if let Some(Answer::Awaited(waiter)) = self.answers.remove(&request) {
            self.answers.insert(request, answer);
            self.tell_waiter(waiter);
        }
    }
}

impl CoreWorker {
    /// Sends a request to the node and waits for its answer.
    pub(super) fn ask_node(
        &self,
        what: &str,
        timeout: Option<Duration>,
        interrupted: Interrupted<'_>,
        message: impl FnOnce(u64) -> ToRaylet,
    ) -> RayResult<Answer> {
        let mut state = self.lock();
        state.check_open()?;
        let request = state.next_request();
        let waiter = state.add_waiter(1);
        state.answers.insert(request, Answer::Awaited(waiter));
        state.tell_node(&message(request));
        let mut patience = Patience::until(timeout, interrupted);
        let (mut state, end) = self.wait_for(state, waiter, &mut patience);
        let answer = state.answers.remove(&request);
        self.refuse(&state, end, what, timeout.unwrap_or_default())?;
        answer.ok_or_else(|| RayError::Protocol {
            peer: "the node".to_owned(),
            reason: format!("no answer to {what}"),
        })
    }

    /// A call of the control plane, by way of the node: protobuf in, protobuf out.
    ///
    /// # Errors
    /// What the control plane answered, by its gRPC code.
    pub fn call_gcs(
        &self,
        method: GcsMethod,
        body: Bytes,
        timeout: Duration,
        interrupted: Interrupted<'_>,
    ) -> RayResult<Bytes> {
        let what = format!("{method:?}");
        let answer = self.ask_node(&what, Some(timeout), interrupted, |request| ToRaylet::GcsCall {
            request,
            method,
            body,
        })?;
        let unexpected = || RayError::Protocol {
            peer: "the node".to_owned(),
            reason: format!("another answer than one to {what}"),
        };
        match answer {
            Answer::Gcs(Ok(reply)) => Ok(reply),
            Answer::Gcs(Err((code, message))) => Err(gcs_error(code, what, message)),
            Answer::Awaited(_) | Answer::Created(_) | Answer::Flushed => Err(unexpected()),
        }
    }

    /// Waits until all that workers of this job printed so far was told, by the nodes to which there is a link.
    ///
    /// # Errors
    /// If that takes longer than `timeout`.
    pub fn flush_logs(&self, timeout: Duration, interrupted: Interrupted<'_>) -> RayResult<()> {
        let mut state = self.lock();
        state.check_open()?;
        let nodes: Vec<_> = std::iter::once(self.me.node_id).chain(state.node_links.nodes()).collect();
        let waiter = state.add_waiter(nodes.len());
        let mut requests = Vec::new();
        for node_id in nodes {
            let request = state.next_request();
            state.answers.insert(request, Answer::Awaited(waiter));
            state.tell_node_at(self, node_id, &ToRaylet::FlushLogs { request });
            requests.push(request);
        }
        let mut patience = Patience::until(Some(timeout), interrupted);
        let (mut state, end) = self.wait_for(state, waiter, &mut patience);
        for request in requests {
            state.answers.remove(&request);
        }
        self.refuse(&state, end, "flushing of logs", timeout)
    }
}

/// The error that a gRPC code stands for. The numbers are gRPC's own.
pub(super) fn gcs_error(code: i32, what: String, message: String) -> RayError {
    match code {
        3 => RayError::InvalidArgument(message),
        5 => RayError::NotFound { what: message },
        6 => RayError::AlreadyExists { what: message.trim_end_matches(" exists already").to_owned() },
        _ => RayError::Unavailable { peer: format!("the control plane ({what})"), cause: message },
    }
}
