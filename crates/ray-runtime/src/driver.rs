//! Takes one task through its life: waits for what it needs, asks for resources, calls the function on
//! a thread, stores the result, and begins again if it may.
//!
//! Waiting ends as soon as the task does, whoever ended it. A call of a function is waited for to its
//! end, because until then its resources and its thread are in use.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use ray_core::error::{RayError, RayResult};
use ray_core::id::{JobId, LeaseId, ObjectId, TaskId};
use ray_core::resource::Resources;
use ray_core::serialize::{ValueParts, ZeroCopyWrite};
use ray_core::traits::LeaseRequest;
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::task::{Function, TaskInput};
use crate::task_table::{AfterAttempt, Failure};

/// A task that was admitted.
pub(crate) struct Work {
    pub(crate) task_id: TaskId,
    pub(crate) job_id: JobId,
    pub(crate) function: Function,
    pub(crate) input: TaskInput,
    pub(crate) resources: Resources,
    pub(crate) dependencies: Vec<ObjectId>,
}

/// Runs the task to its end. `ended` says that it has ended, perhaps by someone else's doing.
pub(crate) async fn drive(engine: Arc<Engine>, work: Work, ended: CancellationToken) {
    let input = tokio::select! {
        biased;
        () = ended.cancelled() => return,
        input = gather(&engine, &work) => input,
    };
    match input {
        Ok(input) => while attempt(&engine, &work, &input, &ended).await == AfterAttempt::Retry {},
        Err(error) => engine.fail(work.task_id, Failure::from_error(error)),
    }
}

/// What the function is called with, once everything is there that the task depends on.
async fn gather(engine: &Engine, work: &Work) -> RayResult<Bytes> {
    for object_id in work.dependencies.iter().chain(work.input.objects()) {
        engine
            .obtainable(object_id)
            .await
            .map_err(|error| failed_dependency(work.task_id, object_id, error))?;
    }
    match &work.input {
        TaskInput::Bytes(bytes) => Ok(bytes.clone()),
        TaskInput::Object(object_id) => fetch(engine, object_id).await,
        TaskInput::Parts { in_band, objects } => {
            let mut buffers = Vec::with_capacity(objects.len());
            for object_id in objects {
                buffers.push(fetch(engine, object_id).await?);
            }
            let parts = ValueParts { in_band, buffers: buffers.iter().map(Bytes::as_ref).collect() };
            let mut block = vec![0; parts.encoded_len()];
            parts.write_into(&mut block)?;
            Ok(block.into())
        }
    }
}

/// The data of an object that is in the store.
async fn fetch(engine: &Engine, object_id: &ObjectId) -> RayResult<Bytes> {
    // It is there, but may have to be read from disk, or be freed just now.
    engine.object_store.get(object_id, std::time::Duration::from_secs(60)).await
}

fn failed_dependency(task_id: TaskId, object_id: &ObjectId, error: RayError) -> RayError {
    match error {
        RayError::ShutDown => RayError::ShutDown,
        error => {
            let message =
                format!("object {object_id}, which it depends on, is not to be had: {}", error.chain());
            RayError::TaskFailed { task_id, message }
        }
    }
}

async fn attempt(engine: &Engine, work: &Work, input: &Bytes, ended: &CancellationToken) -> AfterAttempt {
    // A task has one attempt at a time, so that its own id tells its leases apart.
    let lease_id = LeaseId::from_bytes(*work.task_id.as_bytes());
    let request = LeaseRequest { lease_id, job_id: work.job_id, resources: work.resources.clone() };
    let granted = tokio::select! {
        biased;
        () = ended.cancelled() => return AfterAttempt::Stale,
        granted = engine.scheduler.acquire(request) => granted,
    };
    if let Err(error) = granted {
        engine.fail(work.task_id, Failure::from_error(error));
        return AfterAttempt::Ended;
    }
    let called = call_on_worker(engine, work, input, ended).await;
    // Before anyone hears of the result: who then looks finds the resources free.
    if let Err(error) = engine.scheduler.release(lease_id).await {
        tracing::debug!(task_id = %work.task_id, error = error.chain(), "a lease was not given back");
    }
    let Some((attempt, result)) = called else { return AfterAttempt::Stale };
    let stored = result.is_ok();
    let after = engine.on_done(work.task_id, attempt, result.map_err(Failure::from_error));
    if stored && after == AfterAttempt::Stale {
        // Cancelled while it ran: nobody can ask for the result.
        let _ = engine.object_store.delete(&ObjectId::for_return(work.task_id, 0)).await;
    }
    after
}

/// Calls the function and stores what it returns; `None` if the task ended before.
async fn call_on_worker(
    engine: &Engine,
    work: &Work,
    input: &Bytes,
    ended: &CancellationToken,
) -> Option<(u32, RayResult<()>)> {
    let worker = tokio::select! {
        biased;
        () = ended.cancelled() => return None,
        worker = engine.workers.acquire() => worker.expect("the semaphore is never closed"),
    };
    let attempt = engine.on_started(work.task_id)?;
    let (function, input, task_id) = (Arc::clone(&work.function), input.clone(), work.task_id);
    let call = engine.handle.spawn_blocking(move || call(task_id, &function, &input));
    // A call that was never begun is the end of the runtime's threads.
    let output = call.await.unwrap_or(Err(RayError::ShutDown));
    drop(worker);
    let result = match output {
        Ok(data) => engine.object_store.put(ObjectId::for_return(task_id, 0), data).await,
        Err(error) => Err(error),
    };
    Some((attempt, result))
}

fn call(task_id: TaskId, function: &Function, input: &[u8]) -> RayResult<Bytes> {
    let message = match catch_unwind(AssertUnwindSafe(|| function(input))) {
        Ok(Ok(output)) => return Ok(output.into()),
        Ok(Err(error)) => error.chain(),
        Err(panic) => format!("it panicked: {}", panic_text(panic.as_ref())),
    };
    Err(RayError::TaskFailed { task_id, message })
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "with a value that is no text"
    }
}
