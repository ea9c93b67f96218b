//! What a task costs that is noted at its end: it has to be next to nothing.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::Criterion;
use ray_core::id::{JobId, NodeId, TaskId, WorkerId};
use ray_core::report::{TaskKind, Teller};
use ray_worker::task_log::{EndedTask, TaskLog};

const CAPACITY: usize = 10_000;

pub(crate) fn bench(criterion: &mut Criterion) {
    let teller =
        Teller { worker_id: WorkerId::random(), node_id: NodeId::random(), job_id: JobId::random(), pid: 1 };
    let start = Instant::now();
    let task = EndedTask {
        task_id: TaskId::random(),
        attempt: 0,
        kind: TaskKind::NormalTask,
        actor_id: None,
        name: "small_value",
        function: "small_value",
        created_us: 1,
        ran: Some((start, Duration::from_micros(5))),
        error: None,
        noted_elsewhere: false,
    };
    let mut group = criterion.benchmark_group("task_log");
    group.bench_function("a task is recorded", |bencher| {
        let mut log = TaskLog::new(CAPACITY, Duration::from_secs(1), (start, 1));
        let mut noted = 0;
        bencher.iter(|| {
            noted += 1;
            if noted % CAPACITY == 0 {
                black_box(log.take(1, &teller));
                log.on_answer(1, true, start);
            }
            log.note(black_box(&task), start);
        });
    });
    group.bench_function("a task is counted, for there is no room", |bencher| {
        let mut log = TaskLog::new(1, Duration::from_secs(1), (start, 1));
        bencher.iter(|| log.note(black_box(&task), start));
    });
    group.bench_function("a task without events", |bencher| {
        let mut log = TaskLog::new(CAPACITY, Duration::from_secs(1), (start, 1));
        let quiet = EndedTask { created_us: 0, ..task };
        bencher.iter(|| log.note(black_box(&quiet), start));
    });
    group.finish();
}
