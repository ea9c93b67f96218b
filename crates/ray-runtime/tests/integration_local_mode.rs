//! A runtime from the outside: what a program sees of tasks, objects, jobs and resources.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use ray_core::error::{RayError, RayResult};
use ray_core::id::{JobId, LeaseId, ObjectId, TaskId};
use ray_core::resource::{CPU, GPU, Resources};
use ray_core::serialize::{ValueView, ZeroCopyRead};
use ray_core::traits::{LeaseRequest, Scheduler};
use ray_runtime::{JobState, LocalRuntime, RuntimeConfig, TaskInput, TaskSpec, TaskStatus};

/// Longer than anything here takes; how long a failing test takes.
const LONG_MS: u64 = 20_000;

fn runtime(num_cpus: usize) -> LocalRuntime {
    LocalRuntime::new(RuntimeConfig { num_cpus, max_workers: 8, object_store_memory: 0 }).unwrap()
}

async fn register(
    runtime: &LocalRuntime,
    name: &str,
    function: impl Fn(&[u8]) -> RayResult<Vec<u8>> + Send + Sync + 'static,
) {
    runtime.register_function(name, Arc::new(function)).await;
}

/// Registers `double`, which doubles each byte.
async fn register_double(runtime: &LocalRuntime) {
    register(runtime, "double", |payload| Ok(payload.iter().map(|byte| byte.wrapping_mul(2)).collect()))
        .await;
}

/// Holds calls of a function until they are let go.
struct Gate {
    let_go: Sender<()>,
    entered: Receiver<()>,
}

impl Gate {
    /// Registers a function that tells when it is called, waits, and returns its input.
    async fn register(runtime: &LocalRuntime, name: &str) -> Self {
        let (let_go, wait) = channel();
        let (enter, entered) = channel();
        let wait: Mutex<Receiver<()>> = Mutex::new(wait);
        let enter = Mutex::new(enter);
        let function = move |payload: &[u8]| {
            let _ = enter.lock().unwrap().send(());
            // A test that is over lets everything go.
            let _ = wait.lock().unwrap().recv();
            Ok(payload.to_vec())
        };
        register(runtime, name, function).await;
        Self { let_go, entered }
    }

    /// Waits until a call has begun.
    fn wait_for_call(&self) {
        self.entered.recv_timeout(Duration::from_millis(LONG_MS)).expect("the function is called");
    }

    fn let_go(&self) {
        self.let_go.send(()).unwrap();
    }
}

/// Waits until the task is as far as that.
async fn wait_for_status(runtime: &LocalRuntime, task_id: TaskId, status: TaskStatus) {
    wait_until(async || runtime.get_task_status(&task_id).await.unwrap() == status).await;
}

async fn wait_until(condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_millis(LONG_MS);
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn what_is_put_can_be_got() {
    let runtime = runtime(1);
    let object_id = runtime.put_object(vec![10, 20, 30]).await.unwrap();
    let other_id = runtime.put_object(Vec::new()).await.unwrap();
    assert_ne!(object_id, other_id);
    assert_eq!(runtime.get_object(&object_id, 0).await.unwrap(), [10, 20, 30]);
    assert_eq!(runtime.get_object(&object_id, 1000).await.unwrap(), [10, 20, 30]);
    assert!(runtime.get_object(&other_id, 1000).await.unwrap().is_empty());
    runtime.shutdown().await;
}

#[tokio::test]
async fn a_task_is_submitted_and_its_result_got() {
    let runtime = runtime(1);
    register_double(&runtime).await;
    let result_id = runtime.submit_fn("double", vec![1, 2, 200]).await.unwrap();
    assert_eq!(runtime.get_object(&result_id, LONG_MS).await.unwrap(), [2, 4, 144]);
    // As often as one likes.
    assert_eq!(runtime.get_object(&result_id, LONG_MS).await.unwrap(), [2, 4, 144]);
    runtime.shutdown().await;
}

#[tokio::test]
async fn a_task_goes_from_pending_to_running_to_finished() {
    let runtime = runtime(1);
    let gate = Gate::register(&runtime, "gate").await;
    let first = runtime.submit_fn("gate", vec![1]).await.unwrap();
    gate.wait_for_call();
    let second = runtime.submit_fn("gate", vec![2]).await.unwrap();
    assert_eq!(runtime.get_task_status(&first.task_id()).await.unwrap(), TaskStatus::Running);
    assert_eq!(runtime.get_task_status(&second.task_id()).await.unwrap(), TaskStatus::Pending);
    gate.let_go();
    assert_eq!(runtime.get_object(&first, LONG_MS).await.unwrap(), [1]);
    assert_eq!(runtime.get_task_status(&first.task_id()).await.unwrap(), TaskStatus::Finished);
    gate.wait_for_call();
    assert_eq!(runtime.get_task_status(&second.task_id()).await.unwrap(), TaskStatus::Running);
    gate.let_go();
    wait_for_status(&runtime, second.task_id(), TaskStatus::Finished).await;
    let unknown = runtime.get_task_status(&TaskId::random()).await;
    assert!(matches!(unknown, Err(RayError::NotFound { .. })));
    runtime.shutdown().await;
}

#[tokio::test]
async fn as_many_tasks_run_at_once_as_there_are_processors() {
    let runtime = runtime(4);
    // Nobody passes before all four have come.
    let barrier = Arc::new(Barrier::new(4));
    register(&runtime, "meet", move |payload| {
        barrier.wait();
        Ok(payload.to_vec())
    })
    .await;
    let mut result_ids = Vec::new();
    for number in 0..4 {
        result_ids.push(runtime.submit_fn("meet", vec![number]).await.unwrap());
    }
    for (number, result_id) in result_ids.iter().enumerate() {
        assert_eq!(runtime.get_object(result_id, LONG_MS).await.unwrap(), [number as u8]);
    }
    runtime.shutdown().await;
}

/// Runs 40 tasks of these resources and returns how many ran at once at most.
async fn most_at_once(runtime: &LocalRuntime, resources: Resources) -> usize {
    let now = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&most);
    register(runtime, "count", move |_| {
        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::yield_now();
        now.fetch_sub(1, Ordering::SeqCst);
        Ok(Vec::new())
    })
    .await;
    let mut result_ids = Vec::new();
    for _ in 0..40 {
        let spec = TaskSpec { resources: resources.clone(), ..TaskSpec::new("count", vec![]) };
        result_ids.push(runtime.submit_task(spec).await.unwrap());
    }
    for result_id in &result_ids {
        runtime.get_object(result_id, LONG_MS).await.unwrap();
    }
    seen.load(Ordering::SeqCst)
}

#[tokio::test]
async fn never_more_tasks_run_at_once_than_resources_and_workers_allow() {
    let config = RuntimeConfig { num_cpus: 4, max_workers: 3, object_store_memory: 0 };
    let runtime = LocalRuntime::new(config).unwrap();
    assert!(most_at_once(&runtime, Resources::new().with_cpu(2.0).unwrap()).await <= 2);
    assert!(most_at_once(&runtime, Resources::new()).await <= 3);
    runtime.shutdown().await;
}

#[tokio::test]
async fn a_task_that_waits_can_be_cancelled() {
    let runtime = runtime(1);
    let gate = Gate::register(&runtime, "gate").await;
    let first = runtime.submit_fn("gate", vec![1]).await.unwrap();
    gate.wait_for_call();
    let second = runtime.submit_fn("gate", vec![2]).await.unwrap();
    assert!(runtime.cancel_task(&second.task_id()).await.unwrap());
    assert!(!runtime.cancel_task(&second.task_id()).await.unwrap());
    let error = runtime.get_object(&second, LONG_MS).await.unwrap_err();
    assert!(matches!(error, RayError::TaskCancelled { task_id } if task_id == second.task_id()), "{error}");
    assert_eq!(runtime.get_task_status(&second.task_id()).await.unwrap(), TaskStatus::Cancelled);
    gate.let_go();
    assert_eq!(runtime.get_object(&first, LONG_MS).await.unwrap(), [1]);
    assert!(!runtime.cancel_task(&first.task_id()).await.unwrap());
    assert!(runtime.cancel_task(&TaskId::random()).await.is_err());
    // The second was never called: its place goes to a third.
    let third = runtime.submit_fn("gate", vec![3]).await.unwrap();
    gate.let_go();
    assert_eq!(runtime.get_object(&third, LONG_MS).await.unwrap(), [3]);
    runtime.shutdown().await;
}

#[tokio::test]
async fn a_task_that_runs_can_be_cancelled_and_keeps_its_processor_until_it_returns() {
    let runtime = runtime(1);
    let gate = Gate::register(&runtime, "gate").await;
    let result_id = runtime.submit_fn("gate", vec![1]).await.unwrap();
    gate.wait_for_call();
    assert!(runtime.cancel_task(&result_id.task_id()).await.unwrap());
    let error = runtime.get_object(&result_id, LONG_MS).await.unwrap_err();
    assert!(matches!(error, RayError::TaskCancelled { .. }), "{error}");
    assert_eq!(runtime.resource_usage().await.unwrap().used(CPU).to_f64(), 1.0);
    gate.let_go();
    wait_until(async || runtime.resource_usage().await.unwrap().used(CPU).is_zero()).await;
    wait_until(async || runtime.resource_usage().await.unwrap().object_store.objects == 0).await;
    assert!(!runtime.contains(&result_id).await.unwrap());
    runtime.shutdown().await;
}

#[tokio::test]
async fn whoever_waits_for_a_cancelled_task_is_told_at_once() {
    let runtime = runtime(1);
    let gate = Gate::register(&runtime, "gate").await;
    let result_id = runtime.submit_fn("gate", vec![1]).await.unwrap();
    gate.wait_for_call();
    let task_id = result_id.task_id();
    let (got, cancelled) =
        tokio::join!(runtime.get_object(&result_id, LONG_MS), runtime.cancel_task(&task_id));
    assert!(cancelled.unwrap());
    assert!(matches!(got, Err(RayError::TaskCancelled { .. })));
}

#[tokio::test]
async fn a_failing_function_is_an_error_and_the_runtime_lives_on() {
    let runtime = runtime(1);
    register(&runtime, "fail", |_| Err(RayError::InvalidArgument("no such luck".to_owned()))).await;
    register_double(&runtime).await;
    let result_id = runtime.submit_fn("fail", vec![]).await.unwrap();
    for _ in 0..2 {
        let error = runtime.get_object(&result_id, LONG_MS).await.unwrap_err();
        let RayError::TaskFailed { task_id, message } = error else { panic!("{error:?}") };
        assert_eq!((task_id, message.as_str()), (result_id.task_id(), "no such luck"));
    }
    assert_eq!(runtime.get_task_status(&result_id.task_id()).await.unwrap(), TaskStatus::Failed);
    let result_id = runtime.submit_fn("double", vec![4]).await.unwrap();
    assert_eq!(runtime.get_object(&result_id, LONG_MS).await.unwrap(), [8]);
    runtime.shutdown().await;
}

#[tokio::test]
async fn a_panicking_function_is_an_error_and_the_runtime_lives_on() {
    let runtime = runtime(1);
    register(&runtime, "panic", |payload| panic!("payload of {} bytes", payload.len())).await;
    register_double(&runtime).await;
    let result_id = runtime.submit_fn("panic", vec![1, 2]).await.unwrap();
    let error = runtime.get_object(&result_id, LONG_MS).await.unwrap_err();
    assert!(error.to_string().ends_with("it panicked: payload of 2 bytes"), "{error}");
    assert!(runtime.resource_usage().await.unwrap().used(CPU).is_zero());
    let result_id = runtime.submit_fn("double", vec![4]).await.unwrap();
    assert_eq!(runtime.get_object(&result_id, LONG_MS).await.unwrap(), [8]);
    runtime.shutdown().await;
}

#[tokio::test]
async fn a_failing_function_is_called_again_as_often_as_its_task_allows() {
    let runtime = runtime(1);
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    register(&runtime, "third_time", move |payload| match counted.fetch_add(1, Ordering::SeqCst) {
        0 => Err(RayError::InvalidArgument("not yet".to_owned())),
        1 => panic!("not yet either"),
        _ => Ok(payload.to_vec()),
    })
    .await;
    let spec = TaskSpec { max_retries: 2, ..TaskSpec::new("third_time", vec![7]) };
    let result_id = runtime.submit_task(spec.clone()).await.unwrap();
    assert_eq!(runtime.get_object(&result_id, LONG_MS).await.unwrap(), [7]);
    assert_eq!(calls.swap(0, Ordering::SeqCst), 3);
    let result_id = runtime.submit_task(TaskSpec { max_retries: 1, ..spec }).await.unwrap();
    let error = runtime.get_object(&result_id, LONG_MS).await.unwrap_err();
    assert!(error.to_string().contains("not yet either"), "{error}");
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    runtime.shutdown().await;
}

#[tokio::test]
async fn an_unknown_function_is_an_error_at_submit() {
    let runtime = runtime(1);
    let error = runtime.submit_fn("nowhere", vec![]).await.unwrap_err();
    assert_eq!(error.to_string(), "function \"nowhere\" does not exist");
    register_double(&runtime).await;
    let result_id = runtime.submit_fn("double", vec![1]).await.unwrap();
    assert!(runtime.unregister_function("double").await);
    assert!(!runtime.unregister_function("double").await);
    assert!(runtime.submit_fn("double", vec![1]).await.is_err());
    // What was submitted before has its function.
    assert_eq!(runtime.get_object(&result_id, LONG_MS).await.unwrap(), [2]);
    runtime.shutdown().await;
}

#[tokio::test]
async fn jobs_are_added_listed_and_finished_with_their_tasks() {
    let runtime = runtime(1);
    let gate = Gate::register(&runtime, "gate").await;
    let job_id = runtime.add_job("nightly").await.unwrap();
    let jobs = runtime.list_jobs().await;
    let names: Vec<_> = jobs.iter().map(|job| job.name.as_str()).collect();
    assert_eq!(names, ["main", "nightly"]);

    let of_job = |payload| TaskSpec { job_id: Some(job_id), ..TaskSpec::new("gate", payload) };
    let running = runtime.submit_task(of_job(vec![1])).await.unwrap();
    gate.wait_for_call();
    let pending = runtime.submit_task(of_job(vec![2])).await.unwrap();
    let other = runtime.submit_fn("gate", vec![3]).await.unwrap();
    assert!(runtime.finish_job(&job_id).await.unwrap());
    assert!(!runtime.finish_job(&job_id).await.unwrap());
    for result_id in [running, pending] {
        let error = runtime.get_object(&result_id, LONG_MS).await.unwrap_err();
        assert!(matches!(error, RayError::TaskCancelled { .. }), "{error}");
    }
    gate.let_go();
    gate.let_go();
    assert_eq!(runtime.get_object(&other, LONG_MS).await.unwrap(), [3]);

    let job = runtime.list_jobs().await.into_iter().find(|job| job.job_id == job_id).unwrap();
    assert_eq!(job.state, JobState::Finished);
    let error = runtime.submit_task(of_job(vec![])).await.unwrap_err();
    assert!(error.to_string().contains("\"nightly\") is finished"), "{error}");
    let unknown = JobId::random();
    assert!(matches!(runtime.finish_job(&unknown).await, Err(RayError::NotFound { .. })));
    let spec = TaskSpec { job_id: Some(unknown), ..TaskSpec::new("gate", vec![]) };
    assert!(matches!(runtime.submit_task(spec).await, Err(RayError::NotFound { .. })));
    runtime.shutdown().await;
}

#[tokio::test]
async fn resource_usage_tells_what_is_taken() {
    let runtime = LocalRuntime::builder()
        .num_cpus(4)
        .object_store_memory(1000)
        .resource(GPU, 1.0)
        .resource("gizmo", 0.5);
    let runtime = runtime.build().unwrap();
    let gate = Gate::register(&runtime, "gate").await;
    let idle = runtime.resource_usage().await.unwrap();
    assert_eq!(idle.total.to_string(), "{CPU: 4, GPU: 1, gizmo: 0.5}");
    assert_eq!(idle.available, idle.total);
    assert_eq!((idle.object_store.capacity_bytes, idle.object_store.objects), (1000, 0));

    let resources = Resources::from_units([(CPU, 1.5), ("gizmo", 0.5)]).unwrap();
    let spec = TaskSpec { resources, ..TaskSpec::new("gate", vec![0; 100]) };
    let result_id = runtime.submit_task(spec).await.unwrap();
    gate.wait_for_call();
    let busy = runtime.resource_usage().await.unwrap();
    assert_eq!(busy.available.to_string(), "{CPU: 2.5, GPU: 1}");
    assert_eq!((busy.used(CPU).to_f64(), busy.tasks_under_way), (1.5, 1));
    gate.let_go();
    runtime.get_object(&result_id, LONG_MS).await.unwrap();
    let after = runtime.resource_usage().await.unwrap();
    assert_eq!((after.available, after.tasks_under_way), (idle.total, 0));
    assert_eq!((after.object_store.used_bytes, after.object_store.objects), (100, 1));
    runtime.shutdown().await;
}

#[tokio::test]
async fn contains_tells_what_is_there_now() {
    let runtime = runtime(1);
    let gate = Gate::register(&runtime, "gate").await;
    let object_id = runtime.put_object(vec![1]).await.unwrap();
    assert!(runtime.contains(&object_id).await.unwrap());
    assert!(!runtime.contains(&ObjectId::for_put(TaskId::random(), 0)).await.unwrap());
    let result_id = runtime.submit_fn("gate", vec![2]).await.unwrap();
    gate.wait_for_call();
    assert!(!runtime.contains(&result_id).await.unwrap());
    gate.let_go();
    runtime.get_object(&result_id, LONG_MS).await.unwrap();
    assert!(runtime.contains(&result_id).await.unwrap());
    assert!(runtime.free_object(&object_id).await.unwrap());
    assert!(!runtime.free_object(&object_id).await.unwrap());
    assert!(!runtime.contains(&object_id).await.unwrap());
    assert!(matches!(runtime.get_object(&object_id, LONG_MS).await, Err(RayError::NotFound { .. })));
    runtime.shutdown().await;
}

#[tokio::test]
async fn an_object_beyond_the_memory_budget_is_refused_wherever_it_comes_from() {
    let config = RuntimeConfig { num_cpus: 1, max_workers: 1, object_store_memory: 1000 };
    let runtime = LocalRuntime::new(config).unwrap();
    register(&runtime, "zeros", |payload| Ok(vec![0; usize::from(payload[0]) * 100])).await;
    let error = runtime.put_object(vec![0; 1001]).await.unwrap_err();
    assert!(
        matches!(error, RayError::ObjectStoreFull { requested_bytes: 1001, capacity_bytes: 1000, .. }),
        "{error}"
    );
    let kept = runtime.put_object(vec![0; 900]).await.unwrap();
    let error = runtime.put_object(vec![0; 101]).await.unwrap_err();
    assert!(matches!(error, RayError::ObjectStoreFull { used_bytes: 900, .. }), "{error}");

    let result_id = runtime.submit_fn("zeros", vec![2]).await.unwrap();
    let error = runtime.get_object(&result_id, LONG_MS).await.unwrap_err();
    assert!(matches!(error, RayError::ObjectStoreFull { requested_bytes: 200, .. }), "{error}");
    assert_eq!(runtime.get_task_status(&result_id.task_id()).await.unwrap(), TaskStatus::Failed);

    assert!(runtime.free_object(&kept).await.unwrap());
    let result_id = runtime.submit_fn("zeros", vec![2]).await.unwrap();
    assert_eq!(runtime.get_object(&result_id, LONG_MS).await.unwrap().len(), 200);
    runtime.shutdown().await;
}

#[tokio::test]
async fn objects_beyond_the_memory_budget_go_to_disk_where_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = LocalRuntime::builder()
        .num_cpus(1)
        .object_store_memory(1000)
        .spill_folder(folder.path())
        .build()
        .unwrap();
    let mut object_ids = Vec::new();
    for number in 0..5 {
        object_ids.push(runtime.put_object(vec![number; 400]).await.unwrap());
    }
    for (number, object_id) in object_ids.iter().enumerate() {
        assert_eq!(runtime.get_object(object_id, LONG_MS).await.unwrap(), [number as u8; 400]);
    }
    runtime.shutdown().await;
}

#[tokio::test]
async fn tasks_are_fed_by_the_results_of_others() {
    let runtime = runtime(2);
    register_double(&runtime).await;
    register(&runtime, "join", |payload| {
        let view = ValueView::read_from(payload)?;
        Ok([view.in_band(), &view.buffers().collect::<Vec<_>>().concat()].concat())
    })
    .await;
    let gate = Gate::register(&runtime, "gate").await;
    let first = runtime.submit_fn("gate", vec![1]).await.unwrap();
    let put = runtime.put_object(vec![50]).await.unwrap();
    let second = runtime.submit_task(TaskSpec::with_input("double", TaskInput::Object(first))).await.unwrap();
    let third = runtime.submit_task(TaskSpec::with_input("double", TaskInput::Object(second))).await.unwrap();
    let parts = TaskInput::Parts { in_band: vec![9].into(), objects: vec![first, put, third] };
    let joined = runtime.submit_task(TaskSpec::with_input("join", parts)).await.unwrap();
    gate.wait_for_call();
    assert_eq!(runtime.get_task_status(&joined.task_id()).await.unwrap(), TaskStatus::Pending);
    gate.let_go();
    assert_eq!(runtime.get_object(&joined, LONG_MS).await.unwrap(), [9, 1, 50, 4]);
    runtime.shutdown().await;
}

#[tokio::test]
async fn a_task_begins_after_what_it_depends_on_and_takes_nothing_meanwhile() {
    let runtime = runtime(1);
    register_double(&runtime).await;
    let gate = Gate::register(&runtime, "gate").await;
    let first = runtime.submit_fn("gate", vec![1]).await.unwrap();
    gate.wait_for_call();
    let spec = TaskSpec { dependencies: vec![first], ..TaskSpec::new("double", vec![3]) };
    let second = runtime.submit_task(spec).await.unwrap();
    assert_eq!(runtime.get_task_status(&second.task_id()).await.unwrap(), TaskStatus::Pending);
    gate.let_go();
    assert_eq!(runtime.get_object(&second, LONG_MS).await.unwrap(), [6]);
    assert_eq!(runtime.get_task_status(&first.task_id()).await.unwrap(), TaskStatus::Finished);
    runtime.shutdown().await;
}

#[tokio::test]
async fn a_task_fails_with_what_it_depends_on_and_an_unknown_dependency_is_refused() {
    let runtime = runtime(1);
    register_double(&runtime).await;
    register(&runtime, "fail", |_| Err(RayError::InvalidArgument("no such luck".to_owned()))).await;
    let failed = runtime.submit_fn("fail", vec![]).await.unwrap();
    let depends = |on| TaskSpec { dependencies: vec![on], ..TaskSpec::new("double", vec![3]) };
    // Both before it is known to fail and, with the second, after.
    for _ in 0..2 {
        let result_id = runtime.submit_task(depends(failed)).await.unwrap();
        let error = runtime.get_object(&result_id, LONG_MS).await.unwrap_err();
        assert!(
            matches!(error, RayError::TaskFailed { task_id, .. } if task_id == result_id.task_id()),
            "{error}"
        );
        assert!(
            error.to_string().contains(&failed.hex()) && error.to_string().contains("no such luck"),
            "{error}"
        );
    }
    let unknown = ObjectId::for_put(TaskId::random(), 0);
    let error = runtime.submit_task(depends(unknown)).await.unwrap_err();
    assert!(matches!(error, RayError::NotFound { .. }), "{error}");
    runtime.shutdown().await;
}

#[tokio::test]
async fn a_task_that_asks_for_more_than_there_is_fails_and_says_so() {
    let runtime = runtime(2);
    register_double(&runtime).await;
    let resources = Resources::from_units([(CPU, 3.0), ("gizmo", 1.0)]).unwrap();
    let spec = TaskSpec { resources, ..TaskSpec::new("double", vec![1]) };
    let result_id = runtime.submit_task(spec).await.unwrap();
    let error = runtime.get_object(&result_id, LONG_MS).await.unwrap_err();
    assert!(matches!(error, RayError::Infeasible { .. }), "{error}");
    assert!(error.to_string().contains("gizmo"), "{error}");
    runtime.shutdown().await;
}

#[tokio::test]
async fn a_get_ends_when_its_time_is_over_and_the_task_goes_on() {
    let runtime = runtime(1);
    let gate = Gate::register(&runtime, "gate").await;
    let result_id = runtime.submit_fn("gate", vec![1]).await.unwrap();
    gate.wait_for_call();
    for timeout_ms in [0, 10] {
        let error = runtime.get_object(&result_id, timeout_ms).await.unwrap_err();
        assert!(matches!(error, RayError::GetTimeout { .. }), "{error}");
        assert!(error.to_string().contains(&result_id.hex()), "{error}");
    }
    gate.let_go();
    assert_eq!(runtime.get_object(&result_id, LONG_MS).await.unwrap(), [1]);
    runtime.shutdown().await;
}

#[tokio::test]
async fn an_object_that_can_never_come_is_not_waited_for() {
    let runtime = runtime(1);
    let unknown = ObjectId::for_return(TaskId::random(), 0);
    let error = runtime.get_object(&unknown, LONG_MS).await.unwrap_err();
    assert!(matches!(error, RayError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains(&unknown.hex()), "{error}");
}

#[tokio::test]
async fn too_many_tasks_are_refused_until_some_have_ended() {
    let runtime = LocalRuntime::builder().num_cpus(1).max_pending_tasks(2).build().unwrap();
    let gate = Gate::register(&runtime, "gate").await;
    let first = runtime.submit_fn("gate", vec![1]).await.unwrap();
    runtime.submit_fn("gate", vec![2]).await.unwrap();
    let error = runtime.submit_fn("gate", vec![3]).await.unwrap_err();
    assert!(matches!(error, RayError::Overloaded { capacity: 2, .. }) && error.is_retryable(), "{error}");
    gate.let_go();
    runtime.get_object(&first, LONG_MS).await.unwrap();
    runtime.submit_fn("gate", vec![3]).await.unwrap();
}

#[tokio::test]
async fn ended_tasks_are_forgotten_in_time_but_not_their_results() {
    let runtime = LocalRuntime::builder().num_cpus(1).task_history(2).build().unwrap();
    register_double(&runtime).await;
    let mut result_ids = Vec::new();
    for number in 0..4 {
        let result_id = runtime.submit_fn("double", vec![number]).await.unwrap();
        runtime.get_object(&result_id, LONG_MS).await.unwrap();
        result_ids.push(result_id);
    }
    assert!(runtime.get_task_status(&result_ids[0].task_id()).await.is_err());
    assert!(runtime.get_task_status(&result_ids[3].task_id()).await.is_ok());
    assert_eq!(runtime.get_object(&result_ids[0], LONG_MS).await.unwrap(), [0]);
    runtime.shutdown().await;
}

#[tokio::test]
async fn shutdown_ends_every_wait_and_every_later_call() {
    let runtime = LocalRuntime::builder().num_cpus(1).shutdown_grace(Duration::ZERO).build().unwrap();
    let gate = Gate::register(&runtime, "gate").await;
    let running = runtime.submit_fn("gate", vec![1]).await.unwrap();
    gate.wait_for_call();
    let pending = runtime.submit_fn("gate", vec![2]).await.unwrap();
    let (first, second, ()) = tokio::join!(
        runtime.get_object(&running, LONG_MS),
        runtime.get_object(&pending, LONG_MS),
        runtime.shutdown(),
    );
    assert!(matches!((first, second), (Err(RayError::ShutDown), Err(RayError::ShutDown))));
    assert!(matches!(runtime.submit_fn("gate", vec![]).await, Err(RayError::ShutDown)));
    assert!(matches!(runtime.put_object(vec![]).await, Err(RayError::ShutDown)));
    assert!(matches!(runtime.get_object(&running, LONG_MS).await, Err(RayError::ShutDown)));
    assert!(matches!(runtime.add_job("late").await, Err(RayError::ShutDown)));
    runtime.shutdown().await;
}

#[tokio::test]
async fn shutdown_waits_for_functions_that_run() {
    let runtime =
        LocalRuntime::builder().num_cpus(1).shutdown_grace(Duration::from_secs(20)).build().unwrap();
    let gate = Gate::register(&runtime, "gate").await;
    runtime.submit_fn("gate", vec![1]).await.unwrap();
    gate.wait_for_call();
    let mut shutdown = std::pin::pin!(runtime.shutdown());
    assert!(matches!(poll_once(shutdown.as_mut()), Poll::Pending));
    gate.let_go();
    shutdown.await;
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let config = |num_cpus, max_workers| RuntimeConfig { num_cpus, max_workers, object_store_memory: 0 };
    let key_of = |result: RayResult<LocalRuntime>| match result {
        Err(RayError::Config { key, .. }) => key,
        other => panic!("{other:?}"),
    };
    assert_eq!(key_of(LocalRuntime::new(config(0, 1))), "num_cpus");
    assert_eq!(key_of(LocalRuntime::new(config(usize::MAX, 1))), "num_cpus");
    assert_eq!(key_of(LocalRuntime::new(config(1, usize::MAX))), "max_workers");
    assert_eq!(key_of(LocalRuntime::builder().resource("gizmo", -1.0).build()), "resources");
    assert_eq!(key_of(LocalRuntime::builder().resource(CPU, 1.0).build()), "resources");
    assert_eq!(key_of(LocalRuntime::builder().max_pending_tasks(0).build()), "max_pending_tasks");
    LocalRuntime::new(RuntimeConfig::default()).unwrap();
}

fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// An executor that is not tokio's: a thread that sleeps until it is woken.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn any_executor_will_do() {
    block_on(async {
        let runtime = runtime(2);
        register_double(&runtime).await;
        let result_id = runtime.submit_fn("double", vec![21]).await.unwrap();
        assert_eq!(runtime.get_object(&result_id, LONG_MS).await.unwrap(), [42]);
        runtime.shutdown().await;
    });
}

/// Counts what passes through to another scheduler.
struct Counting {
    inner: ray_raylet::LocalScheduler,
    acquired: AtomicUsize,
    released: AtomicUsize,
}

#[async_trait]
impl Scheduler for Counting {
    async fn acquire(&self, request: LeaseRequest) -> RayResult<()> {
        self.inner.acquire(request).await?;
        self.acquired.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn release(&self, lease_id: LeaseId) -> RayResult<()> {
        self.released.fetch_add(1, Ordering::SeqCst);
        self.inner.release(lease_id).await
    }

    async fn resources(&self) -> RayResult<(Resources, Resources)> {
        self.inner.resources().await
    }
}

#[tokio::test]
async fn the_scheduler_can_be_replaced_and_gets_back_all_that_it_gave() {
    let inner = ray_raylet::LocalScheduler::new(Resources::new().with_cpu(2.0).unwrap(), 100);
    let counting = Arc::new(Counting { inner, acquired: AtomicUsize::new(0), released: AtomicUsize::new(0) });
    let runtime = LocalRuntime::builder().scheduler(counting.clone()).build().unwrap();
    register_double(&runtime).await;
    register(&runtime, "panic", |_| panic!("on purpose")).await;
    for number in 0..10 {
        let name = if number % 3 == 0 { "panic" } else { "double" };
        let result_id = runtime.submit_fn(name, vec![number]).await.unwrap();
        let _ = runtime.get_object(&result_id, LONG_MS).await;
    }
    assert_eq!(counting.acquired.load(Ordering::SeqCst), 10);
    assert_eq!(counting.released.load(Ordering::SeqCst), 10);
    runtime.shutdown().await;
}
