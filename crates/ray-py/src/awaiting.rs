//! References that event loops await and that callbacks hear of.
//!
//! Each event loop has an [`PyInbox`], whose descriptor it watches and whose `deliver` it calls; what a
//! thread's loops use is kept with the thread. All callbacks of a process share one inbox and one thread,
//! which starts with the first of them, so that what users do there holds nobody else up.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::{PyRuntimeError, PyStopIteration};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyWeakrefReference};
use ray_worker::CoreWorker;
use ray_worker::core::{Heard, Inbox, Wants};
use rustc_hash::FxHashMap;

use crate::codec::decode;
use crate::error::{raise, raise_failure};
use crate::object_ref::PyObjectRef;

/// Entries of an inbox before those that were given up are looked for.
const FIRST_SWEEP: usize = 64;

/// How long the end of the membership waits for a callback that runs, in seconds.
const JOIN_TIMEOUT_S: f64 = 1.0;

thread_local! {
    /// The inboxes of the loops that have run on this thread.
    static OF_LOOPS: RefCell<Vec<Py<PyInbox>>> = const { RefCell::new(Vec::new()) };
}

/// The inbox of all callbacks, and the thread that runs them.
static OF_CALLBACKS: Mutex<Option<(Py<PyInbox>, Py<PyAny>)>> = Mutex::new(None);

/// Where an event loop, or the thread of callbacks, hears of objects.
#[pyclass(name = "_Inbox", module = "ray_rust._internal", frozen, weakref)]
pub(crate) struct PyInbox {
    inbox: Inbox,
    /// The loop that it serves, if it serves one.
    event_loop: Option<Py<PyWeakrefReference>>,
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    awaited: FxHashMap<u64, Awaited>,
    /// How many entries there may be before those given up are dropped.
    sweep_at: usize,
    flush_is_due: bool,
}

/// Whom to tell, and the reference that keeps the object until then.
struct Awaited {
    whom: Whom,
    reference: Py<PyAny>,
}

enum Whom {
    /// A future of asyncio, or of `concurrent.futures`.
    Future(Py<PyAny>),
    /// A function that gets the value, or the exception instead.
    OnCompleted(Py<PyAny>),
    /// A function that gets None, or the exception if the object is lost.
    OnReady(Py<PyAny>),
}

#[pymethods]
impl PyInbox {
    /// Tells everybody whose object has come.
    fn deliver(&self, py: Python<'_>) {
        let heard = self.inbox.read();
        self.tell(py, heard);
    }

    /// Writes what the loop's tasks have asked of others.
    fn flush(&self) {
        self.lock().flush_is_due = false;
        self.inbox.flush();
    }

    /// The thread of callbacks, until the process leaves the cluster.
    fn serve(&self, py: Python<'_>) {
        loop {
            let heard = py.detach(|| self.inbox.wait());
            if heard.is_empty() {
                return;
            }
            self.tell(py, heard);
        }
    }
}

impl PyInbox {
    fn new(inbox: Inbox, event_loop: Option<Py<PyWeakrefReference>>) -> Self {
        let pending = Pending { sweep_at: FIRST_SWEEP, ..Pending::default() };
        Self { inbox, event_loop, pending: Mutex::new(pending) }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `whom` told of the object. Returns the number under which that can be taken back, and whether
    /// [`PyInbox::flush`] has something to do.
    fn listen(
        &self,
        py: Python<'_>,
        reference: &Bound<'_, PyObjectRef>,
        whom: Whom,
        wants: Wants,
    ) -> PyResult<(u64, bool)> {
        let object_id = reference.get().id();
        let given_up = self.sweep(py);
        let awaited = Awaited { whom, reference: reference.clone().into_any().unbind() };
        // Held meanwhile, for what has come at once is told by another thread. Nothing of Python's runs.
        let mut pending = self.lock();
        let listening = self.inbox.listen(object_id, wants);
        let (id, has_queued) = match listening {
            Ok(listening) => listening,
            Err(error) => {
                drop(pending);
                return Err(raise(py, error));
            }
        };
        pending.awaited.insert(id, awaited);
        let flush_is_due = has_queued && !std::mem::replace(&mut pending.flush_is_due, has_queued);
        drop(pending);
        drop(given_up);
        Ok((id, flush_is_due))
    }

    /// Takes out the futures that nobody waits for any more, if there may be many of them.
    fn sweep(&self, py: Python<'_>) -> Vec<Awaited> {
        let futures: Vec<(u64, Py<PyAny>)> = {
            let pending = self.lock();
            if pending.awaited.len() < pending.sweep_at {
                return Vec::new();
            }
            let future = |(&id, awaited): (&u64, &Awaited)| match &awaited.whom {
                Whom::Future(future) => Some((id, future.clone_ref(py))),
                Whom::OnCompleted(_) | Whom::OnReady(_) => None,
            };
            pending.awaited.iter().filter_map(future).collect()
        };
        // Asked without the lock, for it may be Python code, meanwhile another thread runs.
        let is_over = |(_, future): &(u64, Py<PyAny>)| is_done(future.bind(py)).unwrap_or(true);
        let over: Vec<u64> = futures.into_iter().filter(is_over).map(|(id, _)| id).collect();
        over.iter().for_each(|&id| self.inbox.forget(id));
        let mut pending = self.lock();
        let given_up = over.iter().filter_map(|id| pending.awaited.remove(id)).collect();
        pending.sweep_at = FIRST_SWEEP.max(2 * pending.awaited.len());
        given_up
    }

    fn tell(&self, py: Python<'_>, heard: Vec<(u64, Heard)>) {
        for (id, heard) in heard {
            let awaited = self.lock().awaited.remove(&id);
            let Some(Awaited { whom, reference }) = awaited else { continue };
            let told = match whom {
                Whom::Future(future) => settle(future.bind(py), heard),
                Whom::OnCompleted(callback) => {
                    let outcome = outcome_of(py, heard);
                    let value =
                        outcome.unwrap_or_else(|error| error.into_value(py).into_any().into_bound(py));
                    callback.call1(py, (value,)).map(drop)
                }
                Whom::OnReady(callback) => callback.call1(py, (loss_in(py, heard),)).map(drop),
            };
            if let Err(error) = told {
                // There is nobody who could be told.
                error.write_unraisable(py, Some(reference.bind(py)));
            }
        }
    }

    /// Whether the loop that it serves is this one, and still runs things.
    fn serves(&self, py: Python<'_>, event_loop: &Bound<'_, PyAny>) -> bool {
        let own = self.event_loop.as_ref().and_then(|own| own.bind(py).upgrade());
        own.is_some_and(|own| own.is(event_loop))
    }

    fn is_over(&self, py: Python<'_>) -> bool {
        let own = self.event_loop.as_ref().and_then(|own| own.bind(py).upgrade());
        own.is_none_or(|own| {
            own.call_method0(intern!(py, "is_closed")).and_then(|closed| closed.extract()).unwrap_or(true)
        })
    }
}

/// What a value that has come is to those who wait for it.
fn outcome_of(py: Python<'_>, heard: Heard) -> PyResult<Bound<'_, PyAny>> {
    match heard {
        Heard::Value(value) => decode(py, &value),
        Heard::Ready => Ok(py.None().into_bound(py)),
        Heard::Failed(object_id, failure) => Err(raise_failure(py, object_id, failure)),
        Heard::Closed(error) => Err(raise(py, error)),
    }
}

/// None, or the exception if there is neither a value nor an error that stands for it.
fn loss_in(py: Python<'_>, heard: Heard) -> Option<Py<PyAny>> {
    outcome_of(py, heard).err().map(|error| error.into_value(py).into_any())
}

fn is_done(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    future.call_method0(intern!(future.py(), "done"))?.extract()
}

/// Gives a future its result.
fn settle(future: &Bound<'_, PyAny>, heard: Heard) -> PyResult<()> {
    match set(future, heard) {
        // Another thread has cancelled it meanwhile.
        Err(_) if is_done(future)? => Ok(()),
        other => other,
    }
}

fn set(future: &Bound<'_, PyAny>, heard: Heard) -> PyResult<()> {
    let py = future.py();
    if is_done(future)? {
        return Ok(());
    }
    let set_exception = intern!(py, "set_exception");
    match outcome_of(py, heard) {
        Ok(value) => future.call_method1(intern!(py, "set_result"), (value,)).map(drop),
        Err(error) => match future.call_method1(set_exception, (error.value(py),)) {
            Ok(_) => Ok(()),
            // Such as StopIteration, which no future takes.
            Err(_) => {
                let stands_for_it = PyRuntimeError::new_err(format!("the task raised {error}"));
                stands_for_it.set_cause(py, Some(error));
                future.call_method1(set_exception, (stands_for_it.value(py),)).map(drop)
            }
        },
    }
}

/// The value of a reference for `await`: at once if it is here, else by a future of the running loop.
pub(crate) fn await_value<'py>(
    core: &Arc<CoreWorker>,
    reference: &Bound<'py, PyObjectRef>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = reference.py();
    if let Some(value) = core.value_at_hand(reference.get().id()) {
        let value = Mutex::new(Some(decode(py, &value)?.unbind()));
        return Ok(Bound::new(py, PyReady(value))?.into_any());
    }
    future_in_loop(core, reference, Wants::Value)?.call_method0(intern!(py, "__await__"))
}

/// A future of the running loop, which gets the value, or None if only that it is there is of interest.
pub(crate) fn future_in_loop<'py>(
    core: &Arc<CoreWorker>,
    reference: &Bound<'py, PyObjectRef>,
    wants: Wants,
) -> PyResult<Bound<'py, PyAny>> {
    let py = reference.py();
    let event_loop = running_loop(py)?;
    if event_loop.is_none() {
        return Err(PyRuntimeError::new_err("an ObjectRef can be awaited only while an event loop runs"));
    }
    let inbox = inbox_of_loop(core, &event_loop)?;
    let future = event_loop.call_method0(intern!(py, "create_future"))?;
    let (_, flush_is_due) =
        inbox.get().listen(py, reference, Whom::Future(future.clone().unbind()), wants)?;
    if flush_is_due {
        // After the others that are about to run, which may have something to send as well.
        event_loop.call_method1(intern!(py, "call_soon"), (inbox.getattr(intern!(py, "flush"))?,))?;
    }
    Ok(future)
}

fn running_loop(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static GET: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let get = GET.get_or_try_init(py, || {
        Ok::<_, PyErr>(py.import("asyncio")?.getattr("_get_running_loop")?.unbind())
    })?;
    get.bind(py).call0()
}

/// The inbox of this loop, made at its first use.
fn inbox_of_loop<'py>(
    core: &Arc<CoreWorker>,
    event_loop: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyInbox>> {
    let py = event_loop.py();
    let known = OF_LOOPS.with_borrow(|inboxes| {
        let serving = inboxes.iter().find(|inbox| {
            let inbox = inbox.get();
            inbox.inbox.belongs_to(core) && inbox.serves(py, event_loop)
        });
        serving.map(|inbox| inbox.clone_ref(py))
    });
    if let Some(known) = known {
        return Ok(known.into_bound(py));
    }
    let inbox = core.open_loop_inbox().map_err(|error| raise(py, error))?;
    let descriptor = inbox.descriptor();
    let weak = PyWeakrefReference::new(event_loop)?.unbind();
    let made = Bound::new(py, PyInbox::new(inbox, Some(weak)))?;
    event_loop
        .call_method1(intern!(py, "add_reader"), (descriptor, made.getattr(intern!(py, "deliver"))?))?;
    let over = OF_LOOPS.with_borrow_mut(|inboxes| {
        let (over, mut kept): (Vec<_>, Vec<_>) = std::mem::take(inboxes)
            .into_iter()
            .partition(|inbox| inbox.get().is_over(py) || !inbox.get().inbox.belongs_to(core));
        kept.push(made.clone().unbind());
        *inboxes = kept;
        over
    });
    drop(over);
    Ok(made)
}

/// In a forked process: what serves the parent is neither used nor dropped.
pub(crate) fn forget_inboxes() {
    OF_LOOPS.with_borrow_mut(|inboxes| std::mem::forget(std::mem::take(inboxes)));
    if let Ok(mut of_callbacks) = OF_CALLBACKS.try_lock() {
        std::mem::forget(of_callbacks.take());
    }
}

/// Has `callback` called with the value of a reference, or with the exception instead.
pub(crate) fn on_completed(
    core: &Arc<CoreWorker>,
    reference: &Bound<'_, PyObjectRef>,
    callback: Py<PyAny>,
) -> PyResult<()> {
    let py = reference.py();
    let inbox = inbox_of_callbacks(py, core)?;
    inbox.get().listen(py, reference, Whom::OnCompleted(callback), Wants::Value)?;
    Ok(())
}

/// Settles a future of `concurrent.futures` with the value of a reference.
pub(crate) fn settle_later(
    core: &Arc<CoreWorker>,
    reference: &Bound<'_, PyObjectRef>,
    future: Py<PyAny>,
) -> PyResult<()> {
    let py = reference.py();
    let inbox = inbox_of_callbacks(py, core)?;
    inbox.get().listen(py, reference, Whom::Future(future), Wants::Value)?;
    Ok(())
}

/// Has `callback` called with None once a reference has a value, or with the exception if it is lost.
pub(crate) fn on_ready(
    core: &Arc<CoreWorker>,
    reference: &Bound<'_, PyObjectRef>,
    callback: Py<PyAny>,
) -> PyResult<PyCancel> {
    let py = reference.py();
    let inbox = inbox_of_callbacks(py, core)?;
    let (id, _) = inbox.get().listen(py, reference, Whom::OnReady(callback), Wants::Readiness)?;
    Ok(PyCancel { inbox: inbox.unbind(), id })
}

fn inbox_of_callbacks<'py>(py: Python<'py>, core: &Arc<CoreWorker>) -> PyResult<Bound<'py, PyInbox>> {
    let known = || {
        let of_callbacks = OF_CALLBACKS.lock().unwrap_or_else(PoisonError::into_inner);
        let (inbox, _) = of_callbacks.as_ref()?;
        inbox.get().inbox.belongs_to(core).then(|| inbox.bind(py).clone())
    };
    if let Some(known) = known() {
        return Ok(known);
    }
    let inbox = Bound::new(py, PyInbox::new(core.open_thread_inbox(), None))?;
    let options = PyDict::new(py);
    options.set_item("target", inbox.getattr("serve")?)?;
    options.set_item("name", "ray_rust callbacks")?;
    options.set_item("daemon", true)?;
    let thread = py.import("threading")?.getattr("Thread")?.call((), Some(&options))?;
    if let Some(known) = known() {
        // Another thread was faster.
        return Ok(known);
    }
    let new = (inbox.clone().unbind(), thread.clone().unbind());
    let old = OF_CALLBACKS.lock().unwrap_or_else(PoisonError::into_inner).replace(new);
    drop(old);
    thread.call_method0("start")?;
    Ok(inbox)
}

/// Waits for the thread of callbacks, whose membership has ended.
pub(crate) fn join_callbacks(py: Python<'_>) -> PyResult<()> {
    let ended = OF_CALLBACKS.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some((_, thread)) = ended else { return Ok(()) };
    let current = py.import("threading")?.call_method0("current_thread")?;
    if !current.is(thread.bind(py)) {
        thread.call_method1(py, "join", (JOIN_TIMEOUT_S,))?;
    }
    Ok(())
}

/// Takes a callback back.
#[pyclass(name = "_Cancel", module = "ray_rust._internal", frozen)]
pub(crate) struct PyCancel {
    inbox: Py<PyInbox>,
    id: u64,
}

#[pymethods]
impl PyCancel {
    fn __call__(&self) {
        let inbox = self.inbox.get();
        let given_up = inbox.lock().awaited.remove(&self.id);
        inbox.inbox.forget(self.id);
        drop(given_up);
    }
}

/// An awaitable that has its value.
#[pyclass(name = "_Ready", module = "ray_rust._internal", frozen)]
pub(crate) struct PyReady(Mutex<Option<Py<PyAny>>>);

#[pymethods]
impl PyReady {
    const fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__(&self) -> PyResult<Option<Py<PyAny>>> {
        let value = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        Err(PyStopIteration::new_err((value,)))
    }
}
