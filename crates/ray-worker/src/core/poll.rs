//! Who reads the sockets, and how a thread waits.
//!
//! ```text
//!          a thread waits, nobody polls            it stops waiting, another one waits
//!  nobody -------------------------------> poller --------------------------------------> poller
//!   ^  |                                    |  ^
//!   |  |   it stops waiting, no other waits |  |  a thread waits
//!   +--|------------------------------------+  |
//!      |  nobody has read for a pulse          |
//!      +----------------------------------> background
//! ```
//! The background thread waits for a set that holds the set of sockets, unless the sockets are taken
//! out of it because some other thread reads them.
//!
//! A wake-up costs more than the work of a small task, so user threads do without: while anything
//! happens, the background thread looks by itself once in a [`PULSE`] for what has fallen due, and
//! whether somebody still reads. Only when nothing has happened for [`QUIET_AFTER`] does it sleep for
//! longer, and then the next thing that happens wakes it ([`CoreWorker::stir`]). Threads that submit
//! much read the sockets by themselves now and then ([`CoreWorker::read_between`]).

use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ray_core::error::{RayError, RayResult};
use ray_link::{Interest, Readiness};

use super::state::{Answer, State, Untold, now};
use super::{
    CoreWorker, FIRST_LINK_TOKEN, FIRST_PEER_TOKEN, LINK_TOKEN, LISTENER_TOKEN, Listening, NUDGE_TOKEN,
    SOCKETS_TOKEN, WAKER_TOKEN,
};
use crate::eagerness::Eagerness;
use crate::memory_store::WaiterId;

/// How long a thread sleeps that waits for the sockets alone.
const LONG_SLEEP: Duration = Duration::from_secs(3600);

/// Time between two looks of the background thread while anything happens.
const PULSE: Duration = Duration::from_millis(1);

/// How long after the last event the background thread goes on looking.
const QUIET_AFTER: Duration = Duration::from_millis(20);

/// Submissions between two readings of the sockets by the thread that submits.
const SUBMISSIONS_PER_READ: u32 = 32;

/// Whether a wait should end, asked now and then without any lock held.
pub type Interrupted<'a> = &'a mut dyn FnMut() -> bool;

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Done,
    Timeout,
    Interrupted,
    Closed,
}

/// What every wait has in common.
pub(super) struct Patience<'a> {
    pub(super) deadline: Option<Instant>,
    pub(super) interrupted: Interrupted<'a>,
    /// Something outside of the sockets may end the wait, and has to be looked for now and then.
    pub(super) interruptible: bool,
}

impl Patience<'_> {
    pub(super) fn until(timeout: Option<Duration>, interrupted: Interrupted<'_>) -> Patience<'_> {
        // A timeout beyond what the clock can say is none.
        let deadline = timeout.and_then(|timeout| now().checked_add(timeout));
        Patience { deadline, interrupted, interruptible: true }
    }

    /// Until something comes, without a look at anything else: an idle process stays asleep.
    pub(super) fn endless(never: Interrupted<'_>) -> Patience<'_> {
        Patience { deadline: None, interrupted: never, interruptible: false }
    }
}

impl CoreWorker {
    /// Waits until nothing remains for `waiter`, and removes it.
    pub(super) fn wait_for<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        waiter: WaiterId,
        patience: &mut Patience<'_>,
    ) -> (MutexGuard<'a, State>, End) {
        let mut end = None;
        while end.is_none() {
            let (next, reached) = if state.polling {
                self.park(state, waiter, patience)
            } else {
                self.poll_sockets(state, waiter, patience)
            };
            (state, end) = (next, reached);
        }
        state.waiters[waiter] = None;
        (state, end.expect("the loop ends with a reason"))
    }

    /// Whether the wait is over, and if not, how long to sleep at most.
    fn look(&self, state: &State, waiter: WaiterId, patience: &Patience<'_>) -> Result<Duration, End> {
        if state.waiters[waiter].as_ref().is_none_or(|waiter| waiter.remaining == 0) {
            return Err(End::Done);
        }
        if state.check_open().is_err() {
            return Err(End::Closed);
        }
        let poll =
            if patience.interruptible { Duration::from_millis(self.config.get_poll_ms) } else { LONG_SLEEP };
        let Some(deadline) = patience.deadline else { return Ok(poll) };
        match deadline.checked_duration_since(now()) {
            Some(rest) if !rest.is_zero() => Ok(poll.min(rest)),
            Some(_) | None => Err(End::Timeout),
        }
    }

    /// Sleeps while another thread polls. Returns without a reason when this thread should poll.
    fn park<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        waiter: WaiterId,
        patience: &mut Patience<'_>,
    ) -> (MutexGuard<'a, State>, Option<End>) {
        state.flush(self);
        while state.polling {
            let limit = match self.look(&state, waiter, patience) {
                Ok(limit) => limit,
                Err(end) => return (state, Some(end)),
            };
            let own = state.waiter(waiter);
            own.parked = true;
            let condvar = Arc::clone(&own.condvar);
            let slept = condvar.wait_timeout(state, limit);
            let (woken, timeout) = slept.unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.waiter(waiter).parked = false;
            if timeout.timed_out() {
                drop(state);
                let interrupted = (patience.interrupted)();
                state = self.lock();
                if interrupted {
                    // It may have been chosen to poll while it was not looking.
                    if !state.polling {
                        self.hand_over(&mut state);
                    }
                    return (state, Some(End::Interrupted));
                }
            }
        }
        (state, None)
    }

    /// Reads the sockets until the wait is over.
    fn poll_sockets<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        waiter: WaiterId,
        patience: &mut Patience<'_>,
    ) -> (MutexGuard<'a, State>, Option<End>) {
        state.polling = true;
        self.arm(&mut state, false);
        state.dismiss_reader(self);
        let mut ready = Vec::new();
        let end = loop {
            state.flush(self);
            let limit = match self.look(&state, waiter, patience) {
                Ok(limit) => limit,
                Err(end) => break end,
            };
            let looking_time = state.eagerness.looking_time();
            drop(state);
            let began = Instant::now();
            let waited = match self.look_at_sockets(&mut ready, looking_time.min(limit)) {
                Ok(()) if ready.is_empty() => self.sockets.wait(&mut ready, Some(limit)),
                looked => looked,
            };
            let took = began.elapsed();
            let interrupted = ready.is_empty() && (patience.interrupted)();
            state = self.lock();
            state.eagerness.on_end(took);
            if let Err(error) = waited {
                state.close(RayError::io("cannot wait for sockets", error));
            }
            if !ready.is_empty() {
                state.on_ready(self, &ready);
                self.stir(&mut state);
            }
            if interrupted {
                break End::Interrupted;
            }
        };
        state.polling = false;
        self.hand_over(&mut state);
        (state, Some(end))
    }

    /// Looks at the sockets again and again, for so long at most and while nothing else wants the processor, until one
    /// of them is ready.
    fn look_at_sockets(&self, ready: &mut Vec<Readiness>, looking_time: Duration) -> io::Result<()> {
        ready.clear();
        if looking_time.is_zero() {
            return Ok(());
        }
        let (began, mut looked) = (Instant::now(), Duration::ZERO);
        loop {
            self.sockets.wait(ready, Some(Duration::ZERO))?;
            if !ready.is_empty() {
                return Ok(());
            }
            std::thread::yield_now();
            let now = began.elapsed();
            if !Eagerness::goes_on(looking_time, looked, now) {
                return Ok(());
            }
            looked = now;
        }
    }

    /// Looks for calls of the event loop that reads the sockets, before it sleeps. Returns whether it has something to
    /// serve.
    ///
    /// # Errors
    /// If the sockets cannot be waited for.
    pub fn look_for_calls(&self, group: usize) -> RayResult<bool> {
        let looking_time = self.lock().eagerness.looking_time();
        if group != 0 || looking_time.is_zero() {
            return Ok(false);
        }
        let mut ready = Vec::new();
        let looked = self.look_at_sockets(&mut ready, looking_time);
        looked.map_err(|error| RayError::io("cannot wait for sockets", error))?;
        Ok(!ready.is_empty())
    }

    /// Reads the sockets once, without waiting, if nobody else does: for a thread that submits much
    /// and would otherwise have the background thread woken for every few replies.
    pub(super) fn read_between(&self, state: &mut State) {
        state.submissions += 1;
        if state.submissions < SUBMISSIONS_PER_READ || state.polling {
            return;
        }
        state.submissions = 0;
        self.read_now(state);
    }

    /// Reads the sockets once, without waiting, on a thread that comes back soon.
    pub(super) fn read_now(&self, state: &mut State) {
        self.arm(state, false);
        state.was_read = true;
        let mut ready = std::mem::take(&mut state.ready);
        self.read_once(state, &mut ready);
        state.ready = ready;
    }

    /// Reads the sockets once, for an event loop that was woken by them.
    pub(super) fn read_for_loop(&self, state: &mut State) {
        self.arm(state, false);
        state.was_read = true;
        let mut ready = std::mem::take(&mut state.ready);
        self.read_once(state, &mut ready);
        state.ready = ready;
        self.stir(state);
    }

    /// Lets the next who waits poll, or in time the background thread.
    pub(super) fn hand_over(&self, state: &mut State) {
        match state.waiters.iter().flatten().find(|waiter| waiter.parked) {
            Some(waiter) => waiter.condvar.notify_all(),
            None => {
                state.was_read = true;
                state.appoint_reader(self);
            }
        }
        self.stir(state);
    }

    /// Has the thread that reads the sockets look at what it waits for, which another one has changed.
    pub(super) fn nudge_poller(&self, state: &State) {
        if state.polling {
            self.nudge.wake();
        }
    }

    fn arm(&self, state: &mut State, armed: bool) {
        if state.armed != armed {
            let interest = if armed { Interest::Read } else { Interest::None };
            // It is in the set from the start, so this cannot fail but for a fault of the program.
            self.background.modify(&self.sockets, SOCKETS_TOKEN, interest).expect("the set holds it");
            state.armed = armed;
        }
    }

    /// Something happened that the background thread has to look after: it does so within a pulse, and
    /// is woken only if it sleeps for longer.
    pub(super) fn stir(&self, state: &mut State) {
        state.stirred = true;
        if std::mem::take(&mut state.background_sleeps) {
            self.waker.wake();
        }
    }

    /// The background thread, from start to end.
    pub(super) fn run_background(&self, listening: &dyn Listening) {
        let mut ready = Vec::new();
        let mut stirred_at = None;
        let mut state = self.lock();
        while state.check_open().is_ok() {
            let now = now();
            if std::mem::take(&mut state.stirred) {
                stirred_at = Some(now);
            }
            let quiet = stirred_at.is_none_or(|at| now.saturating_duration_since(at) >= QUIET_AFTER);
            // While armed, it hears of what comes. If nobody reads and it is not, a pulse is due.
            state.background_sleeps = quiet && (state.armed || state.polling);
            let sleep = if state.background_sleeps {
                state.next_deadline().map(|due| due.saturating_duration_since(now))
            } else {
                Some(PULSE)
            };
            drop(state);
            let waited = self.background.wait(&mut ready, sleep);
            state = self.lock();
            state.background_sleeps = false;
            if let Err(error) = waited {
                state.close(RayError::io("cannot wait for sockets", error));
            }
            if ready.iter().any(|ready| ready.token == WAKER_TOKEN) {
                self.waker.reset();
            }
            if ready.iter().any(|ready| ready.token == SOCKETS_TOKEN) {
                if !state.polling {
                    self.read_once(&mut state, &mut ready);
                }
            } else if !std::mem::take(&mut state.was_read) && !state.polling {
                self.arm(&mut state, true);
            }
            state.tick(self, super::state::now());
            for untold in state.take_untold() {
                match untold {
                    Untold::Notification(notification) => {
                        drop(state);
                        listening.notify(notification);
                        state = self.lock();
                    }
                    Untold::Flushed(request) => {
                        state.answer(request, Answer::Flushed);
                        self.nudge_poller(&state);
                    }
                }
            }
        }
    }

    fn read_once(&self, state: &mut State, ready: &mut Vec<Readiness>) {
        match self.sockets.wait(ready, Some(Duration::ZERO)) {
            Ok(()) => state.on_ready(self, ready),
            Err(error) => state.close(RayError::io("cannot wait for sockets", error)),
        }
    }

    /// Ends a wait that did not end well.
    pub(super) fn refuse(&self, state: &State, end: End, what: &str, waited: Duration) -> RayResult<()> {
        match end {
            End::Done => Ok(()),
            End::Timeout => Err(RayError::GetTimeout { what: what.to_owned(), waited }),
            // The front end knows what interrupted it.
            End::Interrupted => Err(RayError::InvalidArgument("interrupted".to_owned())),
            End::Closed => state.check_open(),
        }
    }
}

impl State {
    /// Reads and writes where the sockets are ready.
    pub(super) fn on_ready(&mut self, core: &CoreWorker, ready: &[Readiness]) {
        for event in ready {
            match event.token {
                LINK_TOKEN => self.on_link_ready(core, *event),
                LISTENER_TOKEN => self.accept_peers(core),
                NUDGE_TOKEN => core.nudge.reset(),
                token if token >= FIRST_LINK_TOKEN => {
                    self.on_node_link_ready(core, (token - FIRST_LINK_TOKEN) as usize, *event);
                }
                token => self.on_peer_ready(core, (token - FIRST_PEER_TOKEN) as usize, *event),
            }
        }
        self.settle(core);
    }

    /// Writes what is queued, as far as the sockets take it.
    pub(super) fn flush(&mut self, core: &CoreWorker) {
        self.unflushed = false;
        self.flush_link(core);
        self.flush_node_links(core);
        self.flush_peers(core);
    }
}
