//! Tasks are submitted, become ready, and go.

use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use ray_core::id::{ObjectId, TaskId};
use ray_worker::peer_message::{ExportedFunction, RetryExceptions};
use ray_worker::task_table::{Call, PendingTask, TaskState, TaskTable};

use crate::task_ids;

const TASKS: usize = 1_000;

pub(crate) fn bench(criterion: &mut Criterion) {
    independent(criterion);
    chained(criterion);
}

/// Without references among the arguments, among others that are pending.
fn independent(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("task_table/submitted, sent and removed");
    group.throughput(Throughput::Elements(TASKS as u64));
    for others in [0, 1_000_000] {
        let ids = task_ids(others + TASKS);
        let (pending, ids) = ids.split_at(others);
        let mut table = TaskTable::default();
        for (task_id, task) in tasks(pending, |_| None) {
            table.submit(task_id, task, |_| true);
        }
        group.bench_function(BenchmarkId::new("among", others), |bencher| {
            bencher.iter_batched(
                || tasks(ids, |_| None),
                |tasks| {
                    for (task_id, task) in tasks {
                        assert!(table.submit(task_id, task, |_| true));
                        table.on_sent(task_id);
                    }
                    for &task_id in ids {
                        assert!(table.remove(task_id).is_some());
                    }
                },
                BatchSize::LargeInput,
            );
        });
    }
}

/// Each takes what the one before returns.
fn chained(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("task_table");
    group.throughput(Throughput::Elements(TASKS as u64));
    let ids = task_ids(TASKS);
    let mut table = TaskTable::default();
    let mut ready = Vec::new();
    group.bench_function("a chain of dependent tasks", |bencher| {
        bencher.iter_batched(
            || tasks(&ids, |at| (at > 0).then(|| ObjectId::for_return(ids[at - 1], 0))),
            |tasks| {
                for (task_id, task) in tasks {
                    table.submit(task_id, task, |_| false);
                }
                for &task_id in &ids {
                    table.on_sent(task_id);
                    table.on_object_ready(ObjectId::for_return(task_id, 0), &mut ready);
                    assert!(table.remove(task_id).is_some());
                }
                assert_eq!(ready.len(), TASKS - 1);
                ready.clear();
            },
            BatchSize::LargeInput,
        );
    });
}

/// Small tasks of these ids; `dependency` says of each whether it waits for an object.
fn tasks(ids: &[TaskId], dependency: impl Fn(usize) -> Option<ObjectId>) -> Vec<(TaskId, PendingTask)> {
    let function = ExportedFunction::new(Bytes::from_static(b"f"), "f".to_owned());
    let name: Arc<str> = "f".into();
    let task = |at| PendingTask {
        generator: None,
        call: Call::Function { function: Arc::clone(&function), class: 0 },
        args: Box::new([7; 20]),
        dependencies: dependency(at).into_iter().collect(),
        nested: Box::default(),
        num_returns: 1,
        name: Arc::clone(&name),
        attempt: 0,
        retries_left: 3,
        retry_exceptions: RetryExceptions::Never,
        parent: TaskId::nil(),
        state: TaskState::Queued,
        cancelled: false,
        retries: 0,
        created_us: 1,
    };
    ids.iter().enumerate().map(|(at, &task_id)| (task_id, task(at))).collect()
}
