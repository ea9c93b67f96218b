//! Memory lent to Python and Python's memory read in place: the buffer protocol, both ways.

use std::ffi::c_int;
use std::ops::Range;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use ray_worker::core::ReadyValue;

/// Read-only memory that Python reads where it lies: part of a value, which stays where it is as long
/// as anything made of it lives.
#[pyclass(name = "_Buffer", module = "ray_rust._internal", frozen)]
pub(crate) struct LentBuffer {
    value: ReadyValue,
    range: Range<usize>,
}

impl LentBuffer {
    /// Lends this part of a value.
    ///
    /// # Panics
    /// If the range is not inside the value.
    pub(crate) fn new(value: &ReadyValue, range: Range<usize>) -> Self {
        assert!(value.bytes().get(range.clone()).is_some(), "the range is inside the value");
        Self { value: value.clone(), range }
    }
}

#[pymethods]
impl LentBuffer {
    /// # Safety
    /// Called by Python with a view to fill in.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let buffer = slf.get();
        let bytes = &buffer.value.bytes()[buffer.range.clone()];
        // A slice is never longer than this.
        let length = bytes.len() as ffi::Py_ssize_t;
        const READ_ONLY: c_int = 1;
        // SAFETY: `view` is Python's to fill. The memory is neither moved nor freed while `slf` lives,
        // of which the view holds a reference: `value` is frozen, and a shared object of the store is
        // pinned by it. It is read-only, and PyBuffer_FillInfo refuses who asks to write.
        let filled = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                bytes.as_ptr().cast_mut().cast(),
                length,
                READ_ONLY,
                flags,
            )
        };
        if filled == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

/// A buffer of Python's whose memory is read in place.
pub(crate) struct BorrowedBuffer(PyUntypedBuffer);

impl BorrowedBuffer {
    /// Holds the buffer of `object`, which stays where it is as long as this lives.
    pub(crate) fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyUntypedBuffer::get(object)?;
        if buffer.is_c_contiguous() || buffer.is_fortran_contiguous() {
            return Ok(Self(buffer));
        }
        Err(PyBufferError::new_err("a buffer that is not in one piece cannot be sent out of band"))
    }

    /// The memory. Whoever made the buffer may write to it meanwhile, as with any pickled buffer; the
    /// bytes are only copied, so what is copied may be mixed, but nothing else follows.
    pub(crate) fn bytes(&self) -> &[u8] {
        let length = self.0.len_bytes();
        if length == 0 {
            return &[];
        }
        // SAFETY: the exporter keeps the memory in place while the buffer is held, and it is contiguous,
        // so it has `length` bytes from its start. u8 takes any alignment and content.
        unsafe { std::slice::from_raw_parts(self.0.buf_ptr().cast::<u8>(), length) }
    }
}
