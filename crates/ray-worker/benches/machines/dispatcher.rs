//! Queued tasks go out on two leases, and replies bring the next ones out.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, SamplingMode, Throughput};
use ray_core::id::{LeaseId, TaskId};
use ray_core::resource::Resources;
use ray_worker::dispatcher::{Action, Dispatcher};

use crate::task_ids;

const MAX_IN_FLIGHT: usize = 256;
const LEASE_IDLE: Duration = Duration::from_millis(50);
/// What a short task takes, so that a lease holds as many as it may.
const EXECUTION_US: u32 = 10;

pub(crate) fn bench(criterion: &mut Criterion) {
    one_by_one(criterion);
    queue(criterion);
}

/// Each task is replied to before the next one is queued.
fn one_by_one(criterion: &mut Criterion) {
    let ids = task_ids(1_000);
    let mut node = Node::with_two_leases();
    let mut group = criterion.benchmark_group("dispatcher");
    group.throughput(Throughput::Elements(ids.len() as u64));
    group.bench_function("queued, sent and replied one by one", |bencher| {
        bencher.iter(|| {
            for &task_id in &ids {
                node.enqueue(task_id);
                assert_eq!(node.reply_to_all(), 1);
            }
        });
    });
}

/// All are queued, and then done. What a task costs must not depend on how many wait.
fn queue(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dispatcher/queue");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    for queued in [1_000, 1_000_000] {
        let ids = task_ids(queued);
        group.throughput(Throughput::Elements(queued as u64));
        group.bench_function(BenchmarkId::new("of", queued), |bencher| {
            bencher.iter_batched(
                Node::with_two_leases,
                |mut node| {
                    ids.iter().for_each(|&task_id| node.enqueue(task_id));
                    assert_eq!(node.reply_to_all(), queued);
                    node // dropped when no time is taken
                },
                BatchSize::PerIteration,
            );
        });
    }
}

/// The dispatcher, and the workers that it speaks to.
struct Node {
    dispatcher: Dispatcher,
    class: u64,
    now: Instant,
    sent: VecDeque<(LeaseId, TaskId)>,
    out: Vec<Action>,
}

impl Node {
    /// Its tasks are known to be short.
    fn with_two_leases() -> Self {
        let mut dispatcher = Dispatcher::new(MAX_IN_FLIGHT, LEASE_IDLE);
        let class = dispatcher.class_of(
            &Resources::new().with_cpu(1.0).expect("one is an amount").into(),
            &ray_core::runtime_env::RuntimeEnv::none(),
        );
        let mut node =
            Self { dispatcher, class, now: Instant::now(), sent: VecDeque::new(), out: Vec::new() };
        for number in [1, 2] {
            let lease_id = LeaseId::from_bytes([number; 16]);
            node.dispatcher.on_lease_granted(class, None, lease_id, node.now, &mut node.out);
        }
        node.enqueue(TaskId::nil());
        node.reply_to_all();
        node
    }

    fn enqueue(&mut self, task_id: TaskId) {
        self.dispatcher.enqueue(self.class, task_id, false, &mut self.out);
        self.carry_out();
    }

    /// Until nothing is queued; returns how many replies that were.
    fn reply_to_all(&mut self) -> usize {
        let mut replies = 0;
        while let Some((lease_id, task_id)) = self.sent.pop_front() {
            self.dispatcher.on_reply(lease_id, task_id, EXECUTION_US, self.now, &mut self.out);
            self.carry_out();
            replies += 1;
        }
        replies
    }

    fn carry_out(&mut self) {
        for action in self.out.drain(..) {
            match action {
                Action::Send { lease_id, task_id } => self.sent.push_back((lease_id, task_id)),
                // There are two workers and no more.
                Action::SetDemand { .. } => {}
                Action::Return { .. } | Action::Retire { .. } => {
                    unreachable!("no time passes, and no worker leaves")
                }
            }
        }
    }
}
