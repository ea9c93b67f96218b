//! Which task the code of an event loop works for.
//!
//! Where calls run in event loops, many are under way on one thread. Each runs in a context of its own, in
//! which a variable names it, and what it starts inherits that. Before a thread asks the core for
//! something on behalf of its task, it looks there.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use ray_worker::core::{RunningKey, work_for};

static IN_LOOPS: AtomicBool = AtomicBool::new(false);
static VARIABLE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// From now on this context variable says which call the code works for: the `key` of a `StartedCall`,
/// or None.
#[pyfunction]
pub(crate) fn set_task_variable(py: Python<'_>, variable: Py<PyAny>) {
    // A process is one actor, so there is one.
    let _ = VARIABLE.set(py, variable);
    IN_LOOPS.store(true, Ordering::Relaxed);
}

/// Has this thread work for the task that its context names, if there are contexts.
pub(crate) fn follow_context() {
    if !IN_LOOPS.load(Ordering::Relaxed) {
        return;
    }
    Python::attach(|py| {
        let named = VARIABLE.get(py).map(|variable| variable.call_method1(py, "get", (py.None(),)));
        let key = match named {
            Some(Ok(key)) => key.extract::<Option<u64>>(py).ok().flatten(),
            Some(Err(_)) | None => None,
        };
        work_for(key.map(RunningKey::from_u64));
    });
}
