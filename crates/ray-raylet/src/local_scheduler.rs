//! A [`Scheduler`] inside one process: an event loop that owns the resources and the queue.
//!
//! Callers talk to the loop through a bounded channel. A caller that stops waiting leaves a note in a
//! list beside the channel, since a `drop` can neither wait for a place in the channel nor let the
//! note be lost: an unnoticed grant would keep its resources for ever.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use ray_core::error::{RayError, RayResult};
use ray_core::id::LeaseId;
use ray_core::resource::Resources;
use ray_core::traits::{LeaseRequest, Scheduler};
use rustc_hash::FxHashMap;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::resource_manager::ResourceManager;
use crate::scheduling_queue::SchedulingQueue;

/// How many commands may be on their way to the loop; more make their senders wait.
const INBOX: usize = 1024;

/// Hands out the resources of one process or node. Clones share them.
///
/// The loop ends when the last clone is gone; who waits then gets `ShutDown`.
#[derive(Debug, Clone)]
pub struct LocalScheduler {
    inbox: mpsc::Sender<Command>,
    abandoned: Arc<Abandoned>,
}

#[derive(Debug)]
enum Command {
    Acquire { request: LeaseRequest, caller: Caller },
    Release { lease_id: LeaseId, caller: oneshot::Sender<()> },
    Resources { caller: oneshot::Sender<(Resources, Resources)> },
}

/// One call of `acquire`.
#[derive(Debug)]
struct Caller {
    number: u64,
    answer: oneshot::Sender<RayResult<()>>,
}

/// Calls of `acquire` whose futures were dropped. Never longer than there were calls under way.
#[derive(Debug, Default)]
struct Abandoned {
    calls: Mutex<Vec<(LeaseId, u64)>>,
    changed: Notify,
    next_number: AtomicU64,
}

/// Leaves a note when a caller goes away before it got its answer.
struct GiveUp<'a> {
    abandoned: &'a Abandoned,
    lease_id: LeaseId,
    number: u64,
    armed: bool,
}

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        if self.armed {
            let mut calls = self.abandoned.calls.lock().unwrap_or_else(PoisonError::into_inner);
            calls.push((self.lease_id, self.number));
            drop(calls);
            self.abandoned.changed.notify_one();
        }
    }
}

impl LocalScheduler {
    /// Hands out `total` to at most `max_queued` waiting requests, on the current tokio runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime; see [`Self::new_on`].
    pub fn new(total: Resources, max_queued: usize) -> Self {
        Self::new_on(&Handle::current(), total, max_queued)
    }

    /// Hands out `total` to at most `max_queued` waiting requests; the loop runs on this runtime.
    pub fn new_on(runtime: &Handle, total: Resources, max_queued: usize) -> Self {
        let (inbox, commands) = mpsc::channel(INBOX);
        let abandoned = Arc::new(Abandoned::default());
        let state = State {
            queue: SchedulingQueue::new(total.clone(), max_queued),
            resources: ResourceManager::new(total),
            waiting: FxHashMap::default(),
            held: FxHashMap::default(),
        };
        // The loop has no parent to be joined by: it ends by itself with the last sender.
        drop(runtime.spawn(state.run(commands, Arc::clone(&abandoned))));
        Self { inbox, abandoned }
    }

    async fn call<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> RayResult<T> {
        let (caller, answer) = oneshot::channel();
        self.inbox.send(command(caller)).await.map_err(|_| RayError::ShutDown)?;
        answer.await.map_err(|_| RayError::ShutDown)
    }
}

#[async_trait]
impl Scheduler for LocalScheduler {
    async fn acquire(&self, request: LeaseRequest) -> RayResult<()> {
        let (sender, answer) = oneshot::channel();
        let lease_id = request.lease_id;
        let number = self.abandoned.next_number.fetch_add(1, Ordering::Relaxed);
        // A caller that goes away before its command is in the channel has asked for nothing.
        let place = self.inbox.reserve().await.map_err(|_| RayError::ShutDown)?;
        place.send(Command::Acquire { request, caller: Caller { number, answer: sender } });
        let mut give_up = GiveUp { abandoned: &self.abandoned, lease_id, number, armed: true };
        let outcome = answer.await;
        give_up.armed = false;
        outcome.map_err(|_| RayError::ShutDown)?
    }

    async fn release(&self, lease_id: LeaseId) -> RayResult<()> {
        self.call(|caller| Command::Release { lease_id, caller }).await
    }

    async fn resources(&self) -> RayResult<(Resources, Resources)> {
        self.call(|caller| Command::Resources { caller }).await
    }
}

/// What the loop owns.
struct State {
    resources: ResourceManager,
    queue: SchedulingQueue<LeaseId>,
    /// Those who wait for each queued lease: one, or more where somebody asks again.
    waiting: FxHashMap<LeaseId, Vec<Caller>>,
    /// For each granted lease, the calls that were told so and did not go away before they heard it.
    held: FxHashMap<LeaseId, Vec<u64>>,
}

impl State {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>, abandoned: Arc<Abandoned>) {
        loop {
            tokio::select! {
                // Commands first: a note is about a command that was sent before it. Where the note
                // comes first all the same, its command is found to have no one who listens.
                biased;
                command = commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => break,
                },
                () = abandoned.changed.notified() => {
                    let mut calls = abandoned.calls.lock().unwrap_or_else(PoisonError::into_inner);
                    let calls = std::mem::take(&mut *calls);
                    calls.into_iter().for_each(|(lease_id, number)| self.on_abandoned(lease_id, number));
                }
            }
            self.grant_what_fits();
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Acquire { request, caller } => self.on_acquire(request, caller),
            Command::Release { lease_id, caller } => {
                self.on_release(lease_id);
                let _ = caller.send(());
            }
            Command::Resources { caller } => {
                drop(caller.send((self.resources.total().clone(), self.resources.available())));
            }
        }
    }

    fn on_acquire(&mut self, request: LeaseRequest, caller: Caller) {
        if caller.answer.is_closed() {
            return;
        }
        let lease_id = request.lease_id;
        if let Some(told) = self.held.get_mut(&lease_id) {
            told.push(caller.number);
            drop(caller.answer.send(Ok(())));
            return;
        }
        match self.queue.push(lease_id, &request.resources.into()) {
            Ok(()) => self.waiting.entry(lease_id).or_default().push(caller),
            Err(error) => drop(caller.answer.send(Err(error.into()))),
        }
    }

    fn on_release(&mut self, lease_id: LeaseId) {
        self.queue.cancel(&lease_id);
        // Dropping the senders tells those who still wait that nothing comes.
        self.waiting.remove(&lease_id);
        self.held.remove(&lease_id);
        self.resources.release(lease_id);
    }

    /// One of the calls that asked for the lease went away before it heard the answer.
    fn on_abandoned(&mut self, lease_id: LeaseId, number: u64) {
        let nobody_left = if let Some(callers) = self.waiting.get_mut(&lease_id) {
            callers.retain(|caller| caller.number != number);
            callers.is_empty()
        } else if let Some(told) = self.held.get_mut(&lease_id) {
            let before = told.len();
            told.retain(|&other| other != number);
            told.len() < before && told.is_empty()
        } else {
            false
        };
        if nobody_left {
            self.on_release(lease_id);
        }
    }

    fn grant_what_fits(&mut self) {
        while let Some((lease_id, shape)) = self.queue.pop_ready(|shape| self.resources.fits(shape)) {
            let taken = self.resources.allocate(lease_id, &shape);
            debug_assert!(taken, "the queue gave out what fits");
            let callers = self.waiting.remove(&lease_id).unwrap_or_default();
            self.held.insert(lease_id, callers.iter().map(|caller| caller.number).collect());
            for caller in callers {
                // Who is gone already has left a note, or is about to: it takes the grant back.
                drop(caller.answer.send(Ok(())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use ray_core::id::JobId;

    use super::*;

    fn request(number: u8, cpus: f64) -> LeaseRequest {
        LeaseRequest {
            lease_id: LeaseId::from_bytes([number; 16]),
            job_id: JobId::nil(),
            resources: Resources::new().with_cpu(cpus).unwrap(),
        }
    }

    fn scheduler(cpus: f64, max_queued: usize) -> LocalScheduler {
        LocalScheduler::new(Resources::new().with_cpu(cpus).unwrap(), max_queued)
    }

    async fn free_cpus(scheduler: &LocalScheduler) -> f64 {
        scheduler.resources().await.unwrap().1.get("CPU").to_f64()
    }

    /// Polls once, so that the request is on its way, without waiting for the answer.
    fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> bool {
        future.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[tokio::test]
    async fn what_is_taken_is_given_to_the_next_on_release() {
        let scheduler = scheduler(1.0, 10);
        scheduler.acquire(request(1, 1.0)).await.unwrap();
        let mut second = pin!(scheduler.acquire(request(2, 1.0)));
        assert!(!poll_once(second.as_mut()));
        assert_eq!(free_cpus(&scheduler).await, 0.0);
        scheduler.release(request(1, 1.0).lease_id).await.unwrap();
        second.await.unwrap();
        scheduler.release(request(2, 1.0).lease_id).await.unwrap();
        scheduler.release(request(2, 1.0).lease_id).await.unwrap();
        assert_eq!(free_cpus(&scheduler).await, 1.0);
    }

    #[tokio::test]
    async fn what_can_never_run_is_an_error_at_once_and_so_is_a_full_queue() {
        let scheduler = scheduler(1.0, 1);
        let error = scheduler.acquire(request(1, 2.0)).await.unwrap_err();
        assert!(matches!(error, RayError::Infeasible { .. }), "{error}");
        scheduler.acquire(request(2, 1.0)).await.unwrap();
        let mut waits = pin!(scheduler.acquire(request(3, 1.0)));
        assert!(!poll_once(waits.as_mut()));
        let error = scheduler.acquire(request(4, 1.0)).await.unwrap_err();
        assert!(matches!(error, RayError::Overloaded { capacity: 1, .. }), "{error}");
    }

    #[tokio::test]
    async fn dropping_the_future_gives_up_the_place() {
        let scheduler = scheduler(1.0, 1);
        scheduler.acquire(request(1, 1.0)).await.unwrap();
        {
            let mut waits = pin!(scheduler.acquire(request(2, 1.0)));
            assert!(!poll_once(waits.as_mut()));
        }
        let mut third = pin!(scheduler.acquire(request(3, 1.0)));
        // The place is free again as soon as the loop has read the note.
        while poll_once(third.as_mut()) {
            third.set(scheduler.acquire(request(3, 1.0)));
            tokio::task::yield_now().await;
        }
        scheduler.release(request(1, 1.0).lease_id).await.unwrap();
        third.await.unwrap();
    }

    #[tokio::test]
    async fn a_grant_that_nobody_heard_is_taken_back() {
        let scheduler = scheduler(1.0, 1);
        {
            let mut unheard = pin!(scheduler.acquire(request(1, 1.0)));
            assert!(!poll_once(unheard.as_mut()));
            // The loop answers this after it has granted the other.
            assert_eq!(free_cpus(&scheduler).await, 0.0);
        }
        scheduler.acquire(request(2, 1.0)).await.unwrap();
        assert_eq!(free_cpus(&scheduler).await, 0.0);
    }

    #[tokio::test]
    async fn asking_again_for_a_lease_is_asking_once() {
        let scheduler = scheduler(1.0, 1);
        scheduler.acquire(request(1, 1.0)).await.unwrap();
        scheduler.acquire(request(1, 1.0)).await.unwrap();
        scheduler.release(request(1, 1.0).lease_id).await.unwrap();
        assert_eq!(free_cpus(&scheduler).await, 1.0);
    }

    #[tokio::test]
    async fn a_small_request_passes_a_large_one_that_waits() {
        let scheduler = scheduler(2.0, 10);
        scheduler.acquire(request(1, 1.0)).await.unwrap();
        let mut large = pin!(scheduler.acquire(request(2, 2.0)));
        assert!(!poll_once(large.as_mut()));
        scheduler.acquire(request(3, 1.0)).await.unwrap();
        assert_eq!(free_cpus(&scheduler).await, 0.0);
    }
}
