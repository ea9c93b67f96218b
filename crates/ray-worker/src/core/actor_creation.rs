//! Creation of actors: from the request to what the control plane answers to the registration.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use ray_core::constraint::Constraint;
use ray_core::error::RayResult;
use ray_core::id::{ActorId, ObjectId, TaskId};
use ray_core::pb::common::{ActorSpec, ConcurrencyGroup, DeathCause, WorkerAddress, actor_info, death_cause};
use ray_core::pb::gcs::RegisterActorRequest;
use ray_core::resource::Resources;
use ray_core::runtime_env::RuntimeEnv;
use ray_link::message::{GcsMethod, ToRaylet};

use super::CoreWorker;
use super::actors::{Actor, GCS_TIMEOUT, handle_object};
use super::link::gcs_error;
use super::poll::{Interrupted, Patience};
use super::state::State;
use crate::peer_message::{ExportedFunction, RetryExceptions};
use crate::task_table::{Call, PendingTask, TaskState};
use crate::value::Failure;

/// An actor that this process is creating.
#[derive(Debug)]
pub(super) struct Creation {
    /// The task of its constructor, which keeps the arguments.
    pub(super) task_id: TaskId,
    /// Without the arguments, which are added when all have values.
    spec: ActorSpec,
}

/// A new actor.
#[derive(Debug)]
pub struct ActorRequest {
    /// Its class.
    pub class: Arc<ExportedFunction>,
    /// What it takes while it lives.
    pub resources: Resources,
    /// What it takes while it is placed.
    pub placement_resources: Resources,
    /// What its process needs; `None`: what this process has.
    pub runtime_env: Option<RuntimeEnv>,
    /// Where it may run.
    pub constraint: Constraint,
    /// Nothing was said of where it runs: it may be in the placement group of the task that makes it.
    pub may_inherit: bool,
    /// Its constructor's arguments, as `write_arg` wrote them.
    pub args: Vec<u8>,
    /// Objects that are arguments by themselves, once for each.
    pub dependencies: Vec<ObjectId>,
    /// Objects referred to inside arguments.
    pub nested: Vec<ObjectId>,
    /// How often it may be made again; -1 = for ever.
    pub max_restarts: i64,
    /// How often a lost call may be tried again, for those who look it up.
    pub max_task_retries: i64,
    /// How many calls without a concurrency group may run at once.
    pub max_concurrency: u32,
    /// How many calls of each concurrency group may run at once.
    pub concurrency_groups: Vec<(String, u32)>,
    /// Whether its calls run in event loops.
    pub is_async: bool,
    /// Whether calls need not wait for those before them.
    pub out_of_order: bool,
    /// How many calls of one process may be without an answer; 0 for any number.
    pub max_pending_calls: u32,
    /// Its name; empty for none.
    pub name: String,
    /// Where its name counts.
    pub namespace: String,
    /// Whether it outlives its job.
    pub detached: bool,
    /// Given to those who look it up.
    pub handle_metadata: Vec<u8>,
    /// Whether it ends when nobody has a handle to it any more. Then [`handle_object`] has one reference,
    /// which is the caller's.
    pub ends_with_handles: bool,
}

impl CoreWorker {
    /// Makes an actor. It is registered as soon as its arguments have values; an actor with a name is
    /// registered when this returns.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken.
    pub fn create_actor(&self, request: ActorRequest, interrupted: Interrupted<'_>) -> RayResult<ActorId> {
        if let Some(group_id) = request.constraint.group_id()
            && self.is_creating_group(group_id)
        {
            // The control plane has to know the group before the actor.
            self.settle_groups(interrupted)?;
        }
        let actor_id = ActorId::random();
        let task_id = actor_id.creation_task_id();
        let mut state = self.lock();
        state.check_open()?;
        let named = !request.name.is_empty();
        let handle = handle_object(actor_id);
        let ends_with_handles = request.ends_with_handles;
        if ends_with_handles {
            state.references.add_owned(handle);
            state.shared.handles.insert(handle, actor_id);
        }
        let mut actor = Actor::new(actor_id, request.class.name.clone());
        if request.out_of_order {
            actor.calls.allow_out_of_order();
        }
        actor.calls.limit_pending(request.max_pending_calls as usize);
        let task = creation_task(actor_id, &request, state.created_us(true));
        actor.creation = Some(Creation { task_id, spec: actor_spec(actor_id, &state, request) });
        state.actors.insert(actor_id, actor);
        state.tell_node(&ToRaylet::SubscribeActor { actor_id });
        state.take_task(self, task_id, task);
        state.settle(self);
        state.flush(self);
        drop(state);
        if named && let Err(error) = self.await_registration(actor_id, interrupted) {
            if ends_with_handles {
                self.drop_reference(handle);
            }
            return Err(error);
        }
        Ok(actor_id)
    }

    /// Waits until the control plane has taken or refused a registration.
    fn await_registration(&self, actor_id: ActorId, interrupted: Interrupted<'_>) -> RayResult<()> {
        self.await_answer(actor_id, interrupted)?;
        self.lock().registration_result(actor_id)
    }

    /// Waits until no registration of this actor is under way.
    pub(super) fn await_answer(&self, actor_id: ActorId, interrupted: Interrupted<'_>) -> RayResult<()> {
        let mut state = self.lock();
        if !state.is_registering(actor_id) {
            return Ok(());
        }
        let waiter = state.add_waiter(1);
        for (registered, waiting) in state.shared.registrations.values_mut() {
            if *registered == actor_id {
                waiting.push(waiter);
            }
        }
        let mut patience = Patience::until(Some(GCS_TIMEOUT), interrupted);
        let (mut state, end) = self.wait_for(state, waiter, &mut patience);
        for (_, waiting) in state.shared.registrations.values_mut() {
            // Its number may be another's next.
            waiting.retain(|other| *other != waiter);
        }
        self.refuse(&state, end, "registration of an actor", GCS_TIMEOUT)
    }
}

fn creation_task(actor_id: ActorId, request: &ActorRequest, created_us: u64) -> PendingTask {
    PendingTask {
        call: Call::Create { actor_id },
        args: request.args.clone().into(),
        dependencies: request.dependencies.clone().into(),
        nested: request.nested.clone().into(),
        num_returns: 0,
        name: request.class.name.as_str().into(),
        attempt: 0,
        retries_left: 0,
        retry_exceptions: RetryExceptions::Never,
        parent: TaskId::nil(),
        state: TaskState::Queued,
        cancelled: false,
        retries: 0,
        created_us,
        generator: None,
    }
}

fn actor_spec(actor_id: ActorId, state: &State, mut request: ActorRequest) -> ActorSpec {
    if request.may_inherit {
        request.constraint.strategy = state.inherited_strategy();
    }
    ActorSpec {
        actor_id: actor_id.into(),
        job_id: state.job_id.into(),
        name: request.name,
        namespace: request.namespace,
        class_name: request.class.name.clone(),
        placement_resources: Some((&request.placement_resources).into()),
        resources: Some((&request.resources).into()),
        max_restarts: request.max_restarts,
        max_task_retries: request.max_task_retries,
        max_concurrency: request.max_concurrency,
        concurrency_groups: request
            .concurrency_groups
            .into_iter()
            .map(|(name, max_concurrency)| ConcurrencyGroup { name, max_concurrency })
            .collect(),
        is_async: request.is_async,
        detached: request.detached,
        class_id: request.class.function_id.into(),
        class_blob: request.class.pickled.to_vec(),
        creation_task: Vec::new(),
        owner: Some(WorkerAddress {
            worker_id: state.me.worker_id.into(),
            node_id: state.me.node_id.into(),
            socket_path: state
                .listener
                .as_ref()
                .map_or_else(String::new, |listener| listener.path().to_string_lossy().into_owned()),
            tcp_address: String::new(),
        }),
        strategy: Some((&request.constraint).into()),
        handle_metadata: request.handle_metadata,
        job_config: state.job_config.to_vec(),
        runtime_env: request.runtime_env.as_ref().unwrap_or(&state.runtime_env).text().to_owned(),
    }
}

impl State {
    /// All arguments of a constructor have values.
    pub(super) fn register_actor(&mut self, _core: &CoreWorker, actor_id: ActorId, task_id: TaskId) {
        let Some(task) = self.tasks.get(task_id) else { return };
        let mut args = Vec::new();
        self.write_values(&task.args, &mut args);
        let Some(Actor { creation: Some(creation), .. }) = self.actors.get(&actor_id) else { return };
        let mut spec = creation.spec.clone();
        spec.creation_task = args;
        self.tasks.on_sent(task_id);
        let request = self.next_request();
        self.shared.registrations.insert(request, (actor_id, Vec::new()));
        self.register(request, RegisterActorRequest { spec: Some(spec), stillborn: None });
    }

    fn register(&mut self, request: u64, message: RegisterActorRequest) {
        let body = message.encode_to_vec().into();
        self.tell_node(&ToRaylet::GcsCall { request, method: GcsMethod::RegisterActor, body });
    }

    /// Others may have handles to the actor, which will never be made: they are to hear why.
    fn register_stillborn(
        &mut self,
        actor_id: ActorId,
        kind: death_cause::Kind,
        message: &str,
        error: &Bytes,
    ) {
        let Some(Actor { creation: Some(creation), .. }) = self.actors.get(&actor_id) else { return };
        let spec = ActorSpec { class_blob: Vec::new(), ..creation.spec.clone() };
        let cause = DeathCause { kind: kind.into(), message: message.to_owned(), error: error.to_vec() };
        let request = self.next_request();
        self.register(request, RegisterActorRequest { spec: Some(spec), stillborn: Some(cause) });
    }

    /// The control plane has answered a registration. Returns false if it was no registration.
    pub(super) fn on_registration(
        &mut self,
        core: &CoreWorker,
        request: u64,
        result: &Result<Bytes, (i32, String)>,
    ) -> bool {
        let Some((actor_id, waiters)) = self.shared.registrations.remove(&request) else { return false };
        if let Err((code, message)) = result {
            let error = gcs_error(*code, "registration of an actor".to_owned(), message.clone());
            self.bury_actor(core, actor_id, error.to_string(), Bytes::new());
            self.finish_creation(core, actor_id, actor_info::State::Dead);
            if let Some(actor) = self.actors.get_mut(&actor_id) {
                actor.refused = Some(error);
            }
        }
        for waiter in waiters {
            self.tell_waiter(waiter);
        }
        true
    }

    pub(super) fn is_registering(&self, actor_id: ActorId) -> bool {
        self.shared.registrations.values().any(|&(registered, _)| registered == actor_id)
    }

    fn registration_result(&mut self, actor_id: ActorId) -> RayResult<()> {
        match self.actors.get_mut(&actor_id).and_then(|actor| actor.refused.take()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// An argument of a constructor has no value.
    pub(super) fn on_creation_failed(&mut self, core: &CoreWorker, actor_id: ActorId, failure: &Failure) {
        let (why, error) = match failure {
            Failure::Raised(error) => ("its task raised".to_owned(), error.clone()),
            other => (other.clone().into_error(ObjectId::nil()).to_string(), Bytes::new()),
        };
        let cause = format!("an argument of its constructor has no value: {why}");
        self.register_stillborn(actor_id, death_cause::Kind::CreationFailed, &cause, &error);
        if let Some(actor) = self.actors.get_mut(&actor_id) {
            actor.creation = None;
        }
        self.bury_actor(core, actor_id, cause, error);
    }

    /// The actor was killed before it was registered.
    pub(super) fn abandon_creation(&mut self, core: &CoreWorker, actor_id: ActorId) {
        if self.actors.get(&actor_id).is_some_and(|actor| actor.creation.is_some()) {
            let cause = "it was killed by ray.kill before its constructor had all arguments".to_owned();
            self.register_stillborn(actor_id, death_cause::Kind::Killed, &cause, &Bytes::new());
            self.bury_actor(core, actor_id, cause, Bytes::new());
            self.finish_creation(core, actor_id, actor_info::State::Dead);
        }
    }

    /// The actor needs its constructor's arguments no more.
    pub(super) fn finish_creation(&mut self, core: &CoreWorker, actor_id: ActorId, state: actor_info::State) {
        if !matches!(state, actor_info::State::Alive | actor_info::State::Dead) {
            return;
        }
        let creation = self.actors.get_mut(&actor_id).and_then(|actor| actor.creation.take());
        if let Some(creation) = creation {
            self.finish_task(core, creation.task_id, Ok(Vec::new()));
        }
    }
}
