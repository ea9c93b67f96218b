//! References out of the sight of Python's garbage collector.

use pyo3::ffi;
use pyo3::prelude::*;

use crate::object_ref::PyObjectRef;

/// A Python object for a reference that the garbage collector does not visit.
///
/// PyO3 has it visit every object of a class in Rust, and so go through all references that a program holds, again and
/// again, for nothing: one refers to no Python object but its class. It is freed by its own count as before.
pub(crate) fn untracked(py: Python<'_>, reference: PyObjectRef) -> PyResult<Bound<'_, PyObjectRef>> {
    let object = Bound::new(py, reference)?;
    // SAFETY: it is a new, live object, whose class has Py_TPFLAGS_HAVE_GC, as all of PyO3's have. It can be in no
    // cycle: it is of the class itself and of none that inherits and adds a dictionary, and that holds no Python object.
    // Python allows to untrack an object twice, which is what its end does.
    unsafe { ffi::PyObject_GC_UnTrack(object.as_ptr().cast()) };
    Ok(object)
}
