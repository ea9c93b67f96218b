//! Actors as their callers see them: what is heard of them, and the calls to them.

use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use ray_core::error::{RayError, RayResult};
use ray_core::id::{ActorId, NodeId, ObjectId, TaskId, WorkerId};
use ray_core::pb::common::{ActorInfo, DeathCause, actor_info, death_cause};
use ray_core::pb::gcs::{GetActorReply, GetNamedActorRequest, KillActorRequest};
use ray_core::wire;
use ray_link::message::{GcsMethod, ToRaylet, Unschedulable};

use super::actor_creation::Creation;
use super::poll::Interrupted;
use super::state::State;
use super::tasks::Returns;
use super::{CoreWorker, Notification};
use crate::actor_calls::{Action, ActorCalls, ActorState};
use crate::peer_message::{GeneratorSpec, Kind, RetryExceptions, Target};
use crate::pending_watch::Cause;
use crate::reference_counter::Owner;
use crate::task_table::{Call, MethodName, Mishap, PendingTask, TaskState, Verdict};
use crate::value::{ActorEnd, Failure};

/// How long a call of the control plane may take; the node retries while the GCS is away.
pub(super) const GCS_TIMEOUT: Duration = Duration::from_secs(30);

/// Why an actor is dead that someone has killed.
const KILLED: &str = "it was killed by ray.kill";

/// Dead actors of which is remembered how they died.
const REMEMBERED_DEAD: usize = 1000;

/// An actor as this process knows it.
#[derive(Debug)]
pub(super) struct Actor {
    pub(super) calls: ActorCalls,
    /// What handles to it count as; see [`handle_object`].
    pub(super) handle: ObjectId,
    pub(super) class_name: String,
    /// The task that creates it, if this process does: it keeps the constructor's arguments.
    pub(super) creation: Option<Creation>,
    /// Why the control plane did not take it.
    pub(super) refused: Option<RayError>,
    /// It was said that no node can hold it.
    warned: bool,
    /// It died because its runtime environment could not be set up.
    lacks_environment: bool,
    /// What the control plane said that it waits for.
    pub(super) pending_reason: String,
}

impl Actor {
    /// One of which nothing is known but its class.
    pub(super) fn new(actor_id: ActorId, class_name: String) -> Self {
        Self {
            calls: ActorCalls::new(),
            handle: handle_object(actor_id),
            class_name,
            creation: None,
            refused: None,
            warned: false,
            lacks_environment: false,
            pending_reason: String::new(),
        }
    }
}

/// A call of an actor's method.
#[derive(Debug)]
pub struct MethodRequest {
    /// The actor.
    pub actor_id: ActorId,
    /// The method.
    pub method: Arc<MethodName>,
    /// Its arguments, as `write_arg` wrote them.
    pub args: Vec<u8>,
    /// Objects that are arguments by themselves, once for each.
    pub dependencies: Vec<ObjectId>,
    /// Objects referred to inside arguments.
    pub nested: Vec<ObjectId>,
    /// How many objects it returns.
    pub num_returns: u32,
    /// Its name, for logs and errors.
    pub name: Arc<str>,
    /// How often it may be tried again; -1 = for ever.
    pub max_retries: i64,
    /// Which exceptions count as a failure to retry.
    pub retry_exceptions: RetryExceptions<Bytes>,
    /// Whether its end is noted for the state API and the timeline.
    pub task_events: bool,
    /// How it yields, if it is a generator; then it returns one object, which has its value at its end.
    pub generator: Option<Arc<GeneratorSpec>>,
}

impl CoreWorker {
    /// Calls a method. Its objects are returned at once, each with one handle.
    ///
    /// # Errors
    /// If this process has left the cluster; `Overloaded` if the actor takes no more calls of this process for
    /// now.
    pub fn call_actor(&self, request: MethodRequest) -> RayResult<Returns> {
        let mut state = self.lock();
        state.check_open()?;
        // Calls of this system are as many as those of its users need.
        if !request.method.may_pass()
            && let Some(actor) = state.actors.get(&request.actor_id)
            && let Some(limit) = actor.calls.is_full()
        {
            return Err(RayError::Overloaded { queue: "the queue of calls to this actor", capacity: limit });
        }
        let returns = state.queue_call(self, request);
        state.settle(self);
        self.read_between(&mut state);
        self.stir(&mut state);
        Ok(returns)
    }

    /// Notes an actor whose handle came from elsewhere, so that its news are heard early.
    /// `out_of_order`: its calls need not wait for those before them. So many of them may be without an answer;
    /// 0 for any number.
    pub fn attach_actor(
        &self,
        actor_id: ActorId,
        class_name: &str,
        out_of_order: bool,
        max_pending_calls: u32,
    ) {
        let mut state = self.lock();
        if state.check_open().is_ok() {
            state.know_actor(actor_id, class_name);
            if out_of_order {
                state.calls_of(actor_id).allow_out_of_order();
            }
            if max_pending_calls > 0 {
                state.calls_of(actor_id).limit_pending(max_pending_calls as usize);
            }
            self.stir(&mut state);
        }
    }

    /// Ends an actor's process; with `no_restart` the actor too.
    ///
    /// # Errors
    /// If the control plane cannot be reached; `NotFound` if neither it nor this process has heard of the actor.
    pub fn kill_actor(
        &self,
        actor_id: ActorId,
        no_restart: bool,
        interrupted: Interrupted<'_>,
    ) -> RayResult<()> {
        let cause = DeathCause {
            kind: death_cause::Kind::Killed.into(),
            message: KILLED.to_owned(),
            error: Vec::new(),
        };
        let request = KillActorRequest { actor_id: actor_id.into(), no_restart, cause: Some(cause) };
        let body: Bytes = request.encode_to_vec().into();
        loop {
            // Its registration and this could overtake each other on their way, and nothing would be killed.
            self.await_answer(actor_id, &mut *interrupted)?;
            let body = body.clone();
            let result = self.call_gcs(GcsMethod::KillActor, body, GCS_TIMEOUT, &mut *interrupted);
            let Err(RayError::NotFound { .. }) = result else {
                if result.is_ok() && no_restart {
                    let mut state = self.lock();
                    state.on_actor_killed(self, actor_id);
                    self.stir(&mut state);
                }
                return result.map(drop);
            };
            let mut state = self.lock();
            if !state.knows_actor(actor_id) {
                return result.map(drop);
            }
            if state.is_registering(actor_id) {
                continue;
            }
            // It is forgotten; or its constructor waits for an argument, and will not be called.
            if no_restart {
                state.abandon_creation(self, actor_id);
                self.stir(&mut state);
            }
            return Ok(());
        }
    }

    /// The living actor of this name: its id, class and handle metadata.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    pub fn named_actor(
        &self,
        name: &str,
        namespace: &str,
        interrupted: Interrupted<'_>,
    ) -> RayResult<(ActorId, String, Vec<u8>)> {
        let request = GetNamedActorRequest { name: name.to_owned(), namespace: namespace.to_owned() };
        let body = request.encode_to_vec().into();
        let reply = self.call_gcs(GcsMethod::GetNamedActor, body, GCS_TIMEOUT, interrupted)?;
        let reply = GetActorReply::decode(reply).map_err(|error| RayError::Protocol {
            peer: "the control plane".to_owned(),
            reason: error.to_string(),
        })?;
        let info = wire::required("actor", reply.actor)?;
        let actor_id = wire::id("actor_id", &info.actor_id)?;
        self.attach_actor(actor_id, &info.class_name, false, 0);
        Ok((actor_id, info.class_name, info.handle_metadata))
    }
}

/// The object that handles to an actor refer to: it has no value, and is counted like any other. When its
/// last reference is gone, wherever that was, its owner, who made the actor, ends the actor. A call that is
/// not answered is a reference too, so the actor ends after the calls made so far.
pub fn handle_object(actor_id: ActorId) -> ObjectId {
    ObjectId::for_return(actor_id.creation_task_id(), 0)
}

impl State {
    /// Notes an actor, and asks to be told of it, if it is new.
    fn know_actor(&mut self, actor_id: ActorId, class_name: &str) {
        if let Entry::Vacant(entry) = self.actors.entry(actor_id) {
            entry.insert(Actor::new(actor_id, class_name.to_owned()));
            if self.forgotten_actors.contains(&actor_id) {
                let cause = "it died too long ago to remember how".to_owned();
                self.dead_actors.push_back(actor_id);
                self.calls_of(actor_id).on_state(
                    u64::MAX,
                    ActorState::Dead { cause, error: Bytes::new(), end: ActorEnd::Other },
                    &mut Vec::new(),
                );
            } else {
                self.tell_node(&ToRaylet::SubscribeActor { actor_id });
            }
        }
    }

    /// The control plane ends the actor for good: who has asked for that makes no call any more, though its process
    /// may take a moment to go.
    fn on_actor_killed(&mut self, core: &CoreWorker, actor_id: ActorId) {
        self.bury_actor(core, actor_id, KILLED.to_owned(), Bytes::new());
        self.finish_creation(core, actor_id, actor_info::State::Dead);
    }

    fn knows_actor(&self, actor_id: ActorId) -> bool {
        self.actors.contains_key(&actor_id) || self.forgotten_actors.contains(&actor_id)
    }

    /// Takes a call in, behind those made before.
    fn queue_call(&mut self, core: &CoreWorker, request: MethodRequest) -> Returns {
        let actor_id = request.actor_id;
        self.know_actor(actor_id, "");
        let mut nested = request.nested;
        if let Some(actor) = self.actors.get(&actor_id)
            && self.references.contains(actor.handle)
        {
            nested.push(actor.handle);
        }
        let (task_id, parent) = self.next_task_id();
        let may_pass = request.method.may_pass();
        let task = PendingTask {
            call: Call::Method { actor_id, method: request.method },
            args: request.args.into(),
            dependencies: request.dependencies.into(),
            nested: nested.into(),
            num_returns: request.num_returns,
            name: request.name,
            attempt: 0,
            retries_left: request.max_retries,
            retry_exceptions: request.retry_exceptions,
            parent,
            state: TaskState::Queued,
            cancelled: false,
            retries: 0,
            created_us: self.created_us(request.task_events),
            generator: request.generator,
        };
        let returns = self.take_task(core, task_id, task);
        // It takes its place among the calls now, whenever its arguments come.
        let mut out = Vec::new();
        let calls = self.calls_of(actor_id);
        if may_pass {
            calls.call_that_passes(task_id, false, &mut out);
        } else {
            calls.call(task_id, false, &mut out);
        }
        self.apply_calls(core, actor_id, out);
        returns
    }

    /// Nobody has a handle to an actor of this process any more, and no call to it is under way.
    pub(super) fn end_unreferenced_actor(&mut self, core: &CoreWorker, actor_id: ActorId) {
        let name = "__ray_terminate__";
        let request = MethodRequest {
            generator: None,
            actor_id,
            method: Arc::new(MethodName { name: name.to_owned(), group: String::new() }),
            args: Vec::new(),
            dependencies: Vec::new(),
            nested: Vec::new(),
            num_returns: 0,
            name: name.into(),
            max_retries: 0,
            retry_exceptions: RetryExceptions::Never,
            task_events: false,
        };
        self.queue_call(core, request);
    }

    fn calls_of(&mut self, actor_id: ActorId) -> &mut ActorCalls {
        &mut self.actors.get_mut(&actor_id).expect("an actor is known before it is called").calls
    }

    /// Where an actor lives, if it does.
    pub(super) fn address_of(&self, actor_id: ActorId) -> Option<Owner> {
        match self.actors.get(&actor_id)?.calls.state() {
            ActorState::Alive { at, .. } => Some(*at),
            ActorState::Pending | ActorState::Restarting | ActorState::Dead { .. } => None,
        }
    }

    /// An actor that is dead whatever was said of it last: nobody has registered it, or it was killed.
    pub(super) fn bury_actor(&mut self, core: &CoreWorker, actor_id: ActorId, cause: String, error: Bytes) {
        self.set_actor_state(
            core,
            actor_id,
            u64::MAX,
            ActorState::Dead { cause, error, end: ActorEnd::Other },
        );
    }

    /// The process is dead that these objects were borrowed from. Those of them that are handles to actors of which
    /// nobody has ever heard will not be registered any more.
    pub(super) fn on_creator_dead(&mut self, core: &CoreWorker, borrowed: &[ObjectId], cause: &str) {
        let unheard = |(id, actor): (&ActorId, &Actor)| {
            (!actor.calls.was_heard_of() && borrowed.contains(&actor.handle)).then_some(*id)
        };
        for actor_id in self.actors.iter().filter_map(unheard).collect::<Vec<_>>() {
            let cause = format!("the process that was to create it has ended before: {cause}");
            self.bury_actor(core, actor_id, cause, Bytes::new());
        }
    }

    pub(super) fn on_actor_news(&mut self, core: &CoreWorker, info: &[u8]) {
        let Ok(info) = ActorInfo::decode(info) else {
            tracing::error!("news of an actor cannot be read");
            return;
        };
        match read_news(&info) {
            Ok((actor_id, state)) => {
                if let Some(actor) = self.actors.get_mut(&actor_id)
                    && actor.class_name.is_empty()
                {
                    actor.class_name.clone_from(&info.class_name);
                }
                let kind = info.death_cause.as_ref().map(DeathCause::kind);
                if let Some(actor) = self.actors.get_mut(&actor_id) {
                    actor.lacks_environment |= kind == Some(death_cause::Kind::RuntimeEnvSetupFailed);
                    actor.pending_reason.clone_from(&info.pending_reason);
                }
                if info.infeasible {
                    self.warn_infeasible_actor(actor_id, &info);
                }
                self.set_actor_state(core, actor_id, info.version, state);
                if info.max_restarts == 0 || info.state() == actor_info::State::Dead {
                    self.finish_creation(core, actor_id, info.state());
                }
            }
            Err(error) => tracing::error!(error = %error.chain(), "news of an actor make no sense"),
        }
    }

    /// Says once for each actor that it waits for what no node has; to its creator, not to all.
    fn warn_infeasible_actor(&mut self, actor_id: ActorId, info: &ActorInfo) {
        let Some(actor) = self.actors.get_mut(&actor_id) else { return };
        if actor.creation.is_none() || std::mem::replace(&mut actor.warned, true) {
            return;
        }
        let text = format!(
            "actor {} ({actor_id}) cannot be scheduled: {}. It stays pending until a node that can joins the \
             cluster.",
            info.class_name, info.pending_reason
        );
        self.notify(Notification::Warning(text));
        self.pending_watch.on_told(Cause::Actor(actor_id));
    }

    fn set_actor_state(&mut self, core: &CoreWorker, actor_id: ActorId, version: u64, state: ActorState) {
        if let ActorState::Alive { at, .. } = &state {
            // What its calls return is stored there: by the end of the link that node learns of the owner's end.
            self.visit_node(core, at.node_id);
        }
        let Some(actor) = self.actors.get_mut(&actor_id) else { return };
        let was_dead = matches!(actor.calls.state(), ActorState::Dead { .. });
        let mut out = Vec::new();
        actor.calls.on_state(version, state, &mut out);
        let is_dead = matches!(actor.calls.state(), ActorState::Dead { .. });
        self.apply_calls(core, actor_id, out);
        self.settle_crashes(core, super::state::now());
        if is_dead && !was_dead {
            self.remember_dead(actor_id);
        }
    }

    /// Keeps a dead actor for late callers, and forgets how the one ended that died first if there are
    /// many.
    fn remember_dead(&mut self, actor_id: ActorId) {
        self.dead_actors.push_back(actor_id);
        if self.dead_actors.len() > REMEMBERED_DEAD
            && let Some(oldest) = self.dead_actors.pop_front()
        {
            self.actors.remove(&oldest);
            self.forgotten_actors.insert(oldest);
        }
    }

    /// All arguments of a call have values.
    pub(super) fn on_call_ready(&mut self, core: &CoreWorker, actor_id: ActorId, task_id: TaskId) {
        let mut out = Vec::new();
        self.calls_of(actor_id).on_arguments_ready(task_id, &mut out);
        self.apply_calls(core, actor_id, out);
    }

    pub(super) fn on_call_reply(&mut self, actor_id: ActorId, task_id: TaskId) {
        self.calls_of(actor_id).on_reply(task_id);
    }

    pub(super) fn requeue_calls(&mut self, core: &CoreWorker, actor_id: ActorId, task_ids: &[TaskId]) {
        let mut out = Vec::new();
        self.calls_of(actor_id).requeue(task_ids, &mut out);
        self.apply_calls(core, actor_id, out);
    }

    /// A call will not be sent: its argument failed, or it was cancelled.
    pub(super) fn drop_call(&mut self, core: &CoreWorker, actor_id: ActorId, task_id: TaskId) {
        let mut out = Vec::new();
        self.calls_of(actor_id).remove_waiting(task_id, &mut out);
        self.apply_calls(core, actor_id, out);
    }

    fn apply_calls(&mut self, core: &CoreWorker, actor_id: ActorId, actions: Vec<Action>) {
        let mut again = Vec::new();
        for action in actions {
            match action {
                Action::Send { task_id, at, sequence } => {
                    self.send_call(core, actor_id, task_id, at, sequence)
                }
                Action::Lost { task_id } => match self.tasks.on_attempt_failed(task_id, Mishap::Crash) {
                    Verdict::Retry => again.push(task_id),
                    Verdict::Fail => self.on_call_lost(actor_id, task_id),
                },
                Action::Fail { task_id } => {
                    let failure = self.actor_failure(actor_id, true).expect("an overdue failure is one");
                    self.finish_task(core, task_id, Err(failure));
                }
            }
        }
        if !again.is_empty() {
            self.requeue_calls(core, actor_id, &again);
        }
    }

    fn send_call(&mut self, core: &CoreWorker, actor_id: ActorId, task_id: TaskId, at: Owner, sequence: u64) {
        let Some(task) = self.tasks.get(task_id) else { return };
        let Call::Method { method, .. } = &task.call else { return };
        let method = Arc::clone(method);
        let mut message = std::mem::take(&mut self.message);
        let target = Target::Method { actor_id, sequence, name: &method.name, group: &method.group };
        if let Err(failure) = self.write_task(task_id, target, &mut message) {
            self.on_call_reply(actor_id, task_id);
            self.finish_task(core, task_id, Err(failure));
            return;
        }
        self.send(core, at, Kind::PushTask, |out| out.extend_from_slice(&message));
        self.keep_room(message);
        self.tasks.on_sent(task_id);
        if self.calls_of(actor_id).sent() == 1 {
            // The actor has nothing else of this process to do.
            self.flush_to(core, at.worker_id);
        }
    }

    pub(super) fn on_actor_worker_lost(&mut self, core: &CoreWorker, worker_id: WorkerId) {
        let mut concerned = Vec::new();
        for (&actor_id, actor) in &mut self.actors {
            let mut out = Vec::new();
            actor.calls.on_worker_lost(worker_id, &mut out);
            if !out.is_empty() {
                concerned.push((actor_id, out));
            }
        }
        for (actor_id, out) in concerned {
            self.apply_calls(core, actor_id, out);
        }
    }

    /// The process of an actor lives, only the connection to it was lost.
    pub(super) fn on_actor_worker_not_lost(&mut self, core: &CoreWorker, worker_id: WorkerId) {
        let mut concerned = Vec::new();
        for (&actor_id, actor) in &mut self.actors {
            let mut out = Vec::new();
            actor.calls.on_worker_not_lost(worker_id, &mut out);
            concerned.push((actor_id, out));
        }
        for (actor_id, out) in concerned {
            self.apply_calls(core, actor_id, out);
        }
        self.settle_crashes(core, super::state::now());
    }

    /// Why a lost call fails; `None` while it is not known what becomes of the actor.
    pub(super) fn actor_failure(&self, actor_id: ActorId, overdue: bool) -> Option<Failure> {
        let actor = self.actors.get(&actor_id)?;
        match actor.calls.state() {
            ActorState::Dead { cause, .. } if actor.lacks_environment => {
                Some(Failure::RuntimeEnvSetup(cause.clone()))
            }
            ActorState::Dead { cause, error, end } => Some(Failure::ActorDied {
                actor_id,
                class_name: actor.class_name.clone(),
                cause: cause.clone(),
                error: error.clone(),
                end: *end,
            }),
            ActorState::Alive { .. } => Some(Failure::ActorUnavailable {
                actor_id,
                cause: "it was lost while it ran the call; by now it can be reached again".to_owned(),
            }),
            ActorState::Pending | ActorState::Restarting => overdue.then(|| Failure::ActorUnavailable {
                actor_id,
                cause: "its process was lost, and nothing was heard of it since".to_owned(),
            }),
        }
    }
}

fn read_news(info: &ActorInfo) -> RayResult<(ActorId, ActorState)> {
    let actor_id = wire::id("actor_id", &info.actor_id)?;
    let state = match info.state() {
        actor_info::State::Alive => {
            let address = wire::required("address", info.address.as_ref())?;
            let node_id: NodeId = wire::id("node_id", &address.node_id)?;
            let at = Owner { worker_id: wire::id("worker_id", &address.worker_id)?, node_id };
            ActorState::Alive { at, num_restarts: info.num_restarts }
        }
        actor_info::State::Restarting => ActorState::Restarting,
        actor_info::State::Dead => {
            let cause = info.death_cause.clone().unwrap_or_default();
            let end = match cause.kind() {
                death_cause::Kind::Unschedulable => ActorEnd::Placeless(Unschedulable::NoNode),
                death_cause::Kind::PlacementGroupRemoved => {
                    ActorEnd::Placeless(Unschedulable::PlacementGroupRemoved)
                }
                death_cause::Kind::OutOfMemory => ActorEnd::OutOfMemory,
                _ => ActorEnd::Other,
            };
            ActorState::Dead { cause: cause.message, error: cause.error.into(), end }
        }
        actor_info::State::DependenciesUnready
        | actor_info::State::PendingCreation
        | actor_info::State::Unspecified => ActorState::Pending,
    };
    Ok((actor_id, state))
}
