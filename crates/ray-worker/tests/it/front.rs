//! The simplest front end: a value is some bytes and the references in it; it is used by the driver and
//! by the functions that run in workers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ray_core::constraint::Constraint;
use ray_core::error::{RayError, RayResult};
use ray_core::id::{ActorId, NodeId, ObjectId, WorkerId};
use ray_core::resource::Resources;
use ray_worker::CoreWorker;
use ray_worker::core::{ActorRequest, Cancellation, MethodRequest, NextItem, ReadyValue, TaskRequest};
use ray_worker::peer_message::{ArgValue, ExportedFunction, GeneratorSpec, RetryExceptions, write_arg};
use ray_worker::reference_counter::Owner;
use ray_worker::task_table::MethodName;
use ray_worker::value::{Contained, Encoded, Failure, Payload};

/// How long anything may take before a test fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Nothing interrupts a wait.
pub(crate) fn never() -> bool {
    false
}

/// One handle of an object, as a language front end has it.
#[derive(Debug)]
pub(crate) struct Ref {
    core: Arc<CoreWorker>,
    pub(crate) id: ObjectId,
}

impl Ref {
    /// Takes over the handle that the core made.
    fn made(core: &Arc<CoreWorker>, id: ObjectId) -> Self {
        Self { core: Arc::clone(core), id }
    }

    /// A reference that came in a value.
    fn received(core: &Arc<CoreWorker>, id: ObjectId, owner: Owner) -> Self {
        core.add_reference(id, owner);
        Self::made(core, id)
    }

    fn contained(&self) -> Contained {
        (self.id, self.core.owner_of(self.id))
    }
}

impl Clone for Ref {
    fn clone(&self) -> Self {
        self.core.copy_reference(self.id);
        Self::made(&self.core, self.id)
    }
}

impl Drop for Ref {
    fn drop(&mut self) {
        self.core.drop_reference(self.id);
    }
}

/// A decoded value.
#[derive(Debug, Default)]
pub(crate) struct Value {
    pub(crate) data: Vec<u8>,
    pub(crate) refs: Vec<Ref>,
}

impl Value {
    pub(crate) fn new(data: impl Into<Vec<u8>>) -> Self {
        Self { data: data.into(), refs: Vec::new() }
    }

    pub(crate) fn of(refs: Vec<Ref>) -> Self {
        Self { data: Vec::new(), refs }
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.data).unwrap()
    }

    pub(crate) fn number(&self) -> u64 {
        self.text().parse().unwrap()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        encode(&self.data, &self.refs)
    }

    pub(crate) fn contained(&self) -> Vec<Contained> {
        self.refs.iter().map(Ref::contained).collect()
    }
}

fn encode(data: &[u8], refs: &[Ref]) -> Vec<u8> {
    let mut out = vec![u8::try_from(refs.len()).unwrap()];
    for (id, owner) in refs.iter().map(Ref::contained) {
        out.extend_from_slice(id.as_bytes());
        out.extend_from_slice(owner.worker_id.as_bytes());
        out.extend_from_slice(owner.node_id.as_bytes());
    }
    out.extend_from_slice(data);
    out
}

/// Where the data of an encoded value without references begins.
pub(crate) const DATA: usize = 1;

pub(crate) fn decode(core: &Arc<CoreWorker>, bytes: &[u8]) -> Value {
    let (&count, mut rest) = bytes.split_first().unwrap();
    let mut refs = Vec::new();
    for _ in 0..count {
        let mut take = |length| {
            let (taken, after): (&[u8], &[u8]) = rest.split_at(length);
            rest = after;
            taken
        };
        let id = ObjectId::try_from(take(ObjectId::LEN)).unwrap();
        let worker_id = WorkerId::try_from(take(WorkerId::LEN)).unwrap();
        let node_id = NodeId::try_from(take(NodeId::LEN)).unwrap();
        refs.push(Ref::received(core, id, Owner { worker_id, node_id }));
    }
    Value { data: rest.to_vec(), refs }
}

/// A call to be made.
#[derive(Debug)]
pub(crate) struct Call {
    function: String,
    args: Vec<u8>,
    dependencies: Vec<ObjectId>,
    nested: Vec<ObjectId>,
    /// Kept until the call is made.
    kept: Vec<Ref>,
    resources: Resources,
    returns: u32,
    retries: i64,
    retry_exceptions: RetryExceptions<Bytes>,
    max_calls: u32,
    restarts: i64,
    name: String,
    generator: Option<Arc<GeneratorSpec>>,
}

impl Call {
    /// A call on one CPU that is not retried.
    pub(crate) fn new(function: &str) -> Self {
        Self {
            function: function.to_owned(),
            args: Vec::new(),
            dependencies: Vec::new(),
            nested: Vec::new(),
            kept: Vec::new(),
            resources: Resources::new().with_cpu(1.0).unwrap(),
            returns: 1,
            retries: 0,
            retry_exceptions: RetryExceptions::Never,
            max_calls: 0,
            restarts: 0,
            name: String::new(),
            generator: None,
        }
    }

    /// With a value as the next argument.
    pub(crate) fn value(self, data: impl Into<Vec<u8>>) -> Self {
        self.holding(data, &[])
    }

    /// With a value that holds references as the next argument.
    pub(crate) fn holding(mut self, data: impl Into<Vec<u8>>, refs: &[&Ref]) -> Self {
        let refs: Vec<Ref> = refs.iter().map(|&held| held.clone()).collect();
        self.nested.extend(refs.iter().map(|held| held.id));
        let encoded = encode(&data.into(), &refs);
        write_arg(&mut self.args, None, &ArgValue::Inline(&encoded));
        self.kept.extend(refs);
        self
    }

    /// With the value of an object as the next argument.
    pub(crate) fn reference(mut self, object: &Ref) -> Self {
        write_arg(&mut self.args, None, &ArgValue::Reference(object.id));
        self.dependencies.push(object.id);
        self.kept.push(object.clone());
        self
    }

    pub(crate) fn cpus(mut self, cpus: f64) -> Self {
        self.resources = Resources::new().with_cpu(cpus).unwrap();
        self
    }

    pub(crate) fn gizmos(mut self, count: f64) -> Self {
        self.resources = Resources::from_units([("gizmo", count)]).unwrap();
        self
    }

    pub(crate) fn retries(mut self, retries: i64) -> Self {
        self.retries = retries;
        self
    }

    pub(crate) fn retry_exceptions(mut self) -> Self {
        self.retry_exceptions = RetryExceptions::Always;
        self
    }

    /// Retried when it raises this.
    pub(crate) fn retry_exception(mut self, listed: &'static str) -> Self {
        self.retry_exceptions = RetryExceptions::Listed(Bytes::from_static(listed.as_bytes()));
        self
    }

    pub(crate) fn max_calls(mut self, max_calls: u32) -> Self {
        self.max_calls = max_calls;
        self
    }

    pub(crate) fn returns(mut self, count: u32) -> Self {
        self.returns = count;
        self
    }

    pub(crate) fn restarts(mut self, restarts: i64) -> Self {
        self.restarts = restarts;
        self
    }

    /// As a generator that pauses at so many unread items; 0 for never.
    pub(crate) fn generator(mut self, limit: u64) -> Self {
        let spec = GeneratorSpec { is_dynamic: false, objects_per_yield: 1, limit, actor_limit: 0 };
        self.generator = Some(Arc::new(spec));
        self
    }

    pub(crate) fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    fn exported(&self) -> Arc<ExportedFunction> {
        let pickled = self.function.clone().into_bytes().into();
        ExportedFunction::with_max_calls(pickled, self.function.clone(), self.max_calls)
    }
}

/// A process's way to the cluster.
#[derive(Debug, Clone)]
pub(crate) struct Front {
    pub(crate) core: Arc<CoreWorker>,
}

impl Front {
    pub(crate) fn put(&self, value: &Value) -> RayResult<Ref> {
        let encoded = value.encode();
        let payload = Payload::Whole(Bytes::from(encoded));
        let encoded = Encoded { payload, contained: value.contained() };
        self.core.put(encoded, &mut never).map(|id| Ref::made(&self.core, id))
    }

    pub(crate) fn submit(&self, call: Call) -> Ref {
        self.submit_many(call).remove(0)
    }

    pub(crate) fn submit_many(&self, call: Call) -> Vec<Ref> {
        self.try_submit(call).unwrap()
    }

    pub(crate) fn try_submit(&self, call: Call) -> RayResult<Vec<Ref>> {
        let ids = self.core.submit_task(TaskRequest {
            function: call.exported(),
            shape: call.resources.into(),
            may_inherit: true,
            runtime_env: None,
            args: call.args,
            dependencies: call.dependencies,
            nested: call.nested,
            num_returns: call.returns,
            name: call.function.as_str().into(),
            max_retries: call.retries,
            retry_exceptions: call.retry_exceptions,
            task_events: true,
            generator: call.generator,
        })?;
        Ok(ids.iter().map(|id| Ref::made(&self.core, id)).collect())
    }

    /// Cancels the task of an object, and what it has submitted. Returns whether it was pending.
    pub(crate) fn cancel(&self, object: &Ref, force: bool) -> bool {
        self.core.cancel_task(object.id, Cancellation { force, recursive: true }).unwrap()
    }

    /// The next item of a generator task, or nothing after the last.
    #[track_caller]
    pub(crate) fn next(&self, generator: &Ref) -> Option<Ref> {
        match self.core.next_item(generator.id.task_id(), Some(LIMIT), &mut never).unwrap() {
            NextItem::Item { object_id, .. } => Some(Ref::made(&self.core, object_id)),
            NextItem::End => None,
            NextItem::NotYet => panic!("no item came"),
        }
    }

    /// References to the places of the next items.
    pub(crate) fn peek(&self, generator: &Ref, count: u64) -> Vec<Ref> {
        let places = self.core.peek_items(generator.id.task_id(), count).unwrap();
        places.iter().map(|place| Ref::made(&self.core, place.object_id)).collect()
    }

    /// Drops a generator as a front end does: first the items, then the return value.
    pub(crate) fn drop_generator(&self, generator: Ref) {
        self.core.drop_stream(generator.id.task_id(), true);
        drop(generator);
    }

    /// Makes an actor whose class is the call's function.
    pub(crate) fn create(&self, call: Call) -> RayResult<ActorId> {
        let request = ActorRequest {
            class: call.exported(),
            placement_resources: call.resources,
            runtime_env: None,
            resources: Resources::new(),
            constraint: Constraint::default(),
            may_inherit: true,
            args: call.args,
            dependencies: call.dependencies,
            nested: call.nested,
            max_restarts: call.restarts,
            max_task_retries: 0,
            max_concurrency: 1,
            concurrency_groups: Vec::new(),
            is_async: false,
            out_of_order: false,
            max_pending_calls: call.max_calls,
            name: call.name,
            namespace: "test".to_owned(),
            detached: false,
            handle_metadata: Vec::new(),
            ends_with_handles: false,
        };
        self.core.create_actor(request, &mut never)
    }

    /// Calls the method that is the call's function.
    pub(crate) fn call(&self, actor_id: ActorId, call: Call) -> Ref {
        let request = MethodRequest {
            actor_id,
            name: format!("Holder.{}", call.function).into(),
            method: Arc::new(MethodName { name: call.function, group: String::new() }),
            args: call.args,
            dependencies: call.dependencies,
            nested: call.nested,
            num_returns: call.returns,
            max_retries: call.retries,
            retry_exceptions: call.retry_exceptions,
            task_events: true,
            generator: call.generator,
        };
        Ref::made(&self.core, self.core.call_actor(request).unwrap().get(0))
    }

    /// The values of these objects, not decoded, or the first failure.
    pub(crate) fn get_all(
        &self,
        refs: &[Ref],
        timeout: Duration,
    ) -> RayResult<Result<Vec<ReadyValue>, Failure>> {
        let ids: Vec<ObjectId> = refs.iter().map(|object| object.id).collect();
        let got = self.core.get(&ids, Some(timeout), &mut never)?;
        Ok(got.map_err(|(_, failure)| failure))
    }

    pub(crate) fn get_ready(&self, object: &Ref) -> RayResult<Result<ReadyValue, Failure>> {
        self.get_within(object, LIMIT)
    }

    pub(crate) fn get_within(
        &self,
        object: &Ref,
        timeout: Duration,
    ) -> RayResult<Result<ReadyValue, Failure>> {
        let got = self.core.get(&[object.id], Some(timeout), &mut never)?;
        Ok(got.map(|mut values| values.remove(0)).map_err(|(_, failure)| failure))
    }

    /// The value of an object, or why it has none.
    ///
    /// # Panics
    /// If neither comes in time.
    #[track_caller]
    pub(crate) fn outcome(&self, object: &Ref) -> Result<Value, Failure> {
        match self.get_ready(object) {
            Ok(got) => got.map(|ready| decode(&self.core, ready.bytes())),
            Err(error) => panic!("{}", error.chain()),
        }
    }

    #[track_caller]
    pub(crate) fn get(&self, object: &Ref) -> Value {
        self.outcome(object).unwrap_or_else(|failure| panic!("{failure:?}"))
    }

    #[track_caller]
    pub(crate) fn failure(&self, object: &Ref) -> Failure {
        self.outcome(object).map(|value| value.data.len()).unwrap_err()
    }

    /// As the above, for what is interrupted by the end of the membership.
    pub(crate) fn error(&self, object: &Ref) -> RayError {
        self.get_ready(object).map(|_| ()).unwrap_err()
    }

    /// The places of the first so many of these that are ready, after waiting for them.
    pub(crate) fn wait(&self, refs: &[&Ref], count: usize, timeout: Duration) -> Vec<usize> {
        let ids: Vec<ObjectId> = refs.iter().map(|object| object.id).collect();
        self.core.wait(&ids, count, Some(timeout), true, &mut never).unwrap()
    }
}
