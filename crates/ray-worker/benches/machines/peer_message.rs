//! Tasks and replies to bytes and back.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use ray_core::id::{ActorId, FunctionId, NodeId, TaskId, WorkerId};
use ray_worker::peer_message::{
    ArgValue, RetryExceptions, Returned, Target, TaskHeader, TaskReply, read_args, write_arg,
};
use ray_worker::reference_counter::Owner;
use ray_worker::value::Value;

use crate::object_ids;

pub(crate) fn bench(criterion: &mut Criterion) {
    tasks(criterion);
    replies(criterion);
}

fn tasks(criterion: &mut Criterion) {
    let function = Target::Function(FunctionId::of(b"f"));
    let method = Target::Method { actor_id: ActorId::random(), sequence: 7, name: "small_value", group: "" };
    let mut group = criterion.benchmark_group("peer_message");
    for (name, target) in [("function call", function), ("method call", method)] {
        let header = TaskHeader {
            generator: None,
            task_id: TaskId::random(),
            attempt: 0,
            target,
            group: None,
            num_returns: 1,
            retriable: true,
            retries: 0,
            created_us: 1,
            name: "small_value",
            retry_exceptions: RetryExceptions::Never,
        };
        let mut bytes = Vec::new();
        group.bench_function(format!("{name} with 2 arguments, written"), |bencher| {
            bencher.iter(|| {
                bytes.clear();
                black_box(&header).write(&mut bytes);
                write_arg(&mut bytes, None, &ArgValue::Inline(b"one"));
                write_arg(&mut bytes, Some("two"), &ArgValue::Inline(b"two"));
            });
        });
        group.bench_function(format!("{name} with 2 arguments, read"), |bencher| {
            bencher.iter(|| {
                let (read, rest) = TaskHeader::split(black_box(&bytes)).expect("it was written whole");
                (read.attempt, read_args(rest).expect("they were written whole").len())
            });
        });
    }
}

fn replies(criterion: &mut Criterion) {
    let owner = Owner { worker_id: WorkerId::random(), node_id: NodeId::random() };
    let references = object_ids(10_000).into_iter().map(|object_id| (object_id, owner)).collect();
    let small = Returned { value: Value::Inline(Bytes::from_static(b"ok")), contained: Vec::new() };
    let full = Returned { value: Value::Inline(Bytes::from(vec![7; 100_000])), contained: references };
    for (name, elements, returned) in [("reply", 1, small), ("reply with 10k references", 10_000, full)] {
        let outcome = Ok(vec![returned]);
        let task_id = TaskId::random();
        let reply = TaskReply { task_id, attempt: 0, execution_us: 5, is_last: false, outcome };
        let mut group = criterion.benchmark_group("peer_message");
        group.throughput(Throughput::Elements(elements));
        let mut bytes = Vec::new();
        group.bench_function(format!("{name}, written"), |bencher| {
            bencher.iter(|| {
                bytes.clear();
                black_box(&reply).write(&mut bytes).expect("nothing has failed");
            });
        });
        group.bench_function(format!("{name}, read"), |bencher| {
            bencher.iter(|| TaskReply::read(black_box(&bytes)).expect("it was written whole"));
        });
    }
}
