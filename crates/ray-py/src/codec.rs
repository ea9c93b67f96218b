//! Python values to bytes and back.
//!
//! Plain values have a form of their own ([`ray_core::serialize::Plain`]): `None`, `bool`, `int` of 64
//! bits, `float`, `str`, `bytes`, references, and flat `list`s, `tuple`s and `dict`s of them. Everything
//! else is pickled (protocol 5) by `ray_rust._private.serialization`, large buffers out of band. The first
//! byte tells which: a tag of a plain value, or the `R` with which a block of pickled parts begins.

use bytes::Bytes;
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyMemoryView, PyString, PyTuple};
use ray_core::error::RayResult;
use ray_core::serialize::{Container, Plain, PlainReader, ValueParts, ValueView, ZeroCopyRead as _};
use ray_worker::core::ReadyValue;
use ray_worker::reference_counter::Owner;
use ray_worker::value::{Contained, Encoded, Payload};

use crate::buffer::{BorrowedBuffer, LentBuffer};
use crate::object_ref::{PyObjectRef, collect, meet};
use crate::untracked::untracked;

const PICKLED: u8 = b'R';

/// An encoded value. Holds the Python buffers that are part of it.
pub(crate) struct EncodedValue {
    form: Form,
    contained: Vec<Contained>,
}

enum Form {
    Plain(Vec<u8>),
    Pickled { data: Py<PyBytes>, buffers: Vec<BorrowedBuffer> },
}

impl EncodedValue {
    /// Encodes a value.
    pub(crate) fn new(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        let mut plain = Vec::new();
        let (is_plain, contained) = collect(|| write_plain(&mut plain, value, true, usize::MAX))?;
        if is_plain {
            return Ok(Self { form: Form::Plain(plain), contained });
        }
        let ((data, buffers), contained) = collect(|| pickle(value))?;
        Ok(Self { form: Form::Pickled { data, buffers }, contained })
    }

    /// The bytes and references of a plain value of at most `limit` bytes.
    pub(crate) fn into_small(self, limit: usize) -> Result<(Vec<u8>, Vec<Contained>), Self> {
        match self.form {
            Form::Plain(bytes) if bytes.len() <= limit => Ok((bytes, self.contained)),
            form => Err(Self { form, contained: self.contained }),
        }
    }

    /// What [`EncodedValue::into_small`] gave.
    pub(crate) const fn from_small(bytes: Vec<u8>, contained: Vec<Contained>) -> Self {
        Self { form: Form::Plain(bytes), contained }
    }

    /// References inside.
    pub(crate) fn contained(&self) -> &[Contained] {
        &self.contained
    }

    /// The value as the core takes it.
    pub(crate) fn into_core<T>(self, py: Python<'_>, take: impl FnOnce(Encoded<'_>) -> T + Send) -> T
    where
        T: Send,
    {
        let contained = self.contained;
        match self.form {
            Form::Plain(bytes) => {
                let payload = Payload::Whole(bytes.into());
                py.detach(move || take(Encoded { payload, contained }))
            }
            Form::Pickled { data, buffers } => {
                let data = data.bind(py).as_bytes();
                let slices = buffers.iter().map(BorrowedBuffer::bytes).collect();
                let parts = ValueParts { in_band: data, buffers: slices };
                py.detach(move || take(Encoded { payload: Payload::Parts(parts), contained }))
            }
        }
    }

    /// Size of the encoded value in bytes.
    pub(crate) fn len(&self, py: Python<'_>) -> usize {
        use ray_core::serialize::ZeroCopyWrite as _;
        match &self.form {
            Form::Plain(bytes) => bytes.len(),
            Form::Pickled { data, buffers } => {
                let slices = buffers.iter().map(BorrowedBuffer::bytes).collect();
                ValueParts { in_band: data.bind(py).as_bytes(), buffers: slices }.encoded_len()
            }
        }
    }
}

/// Appends a value if it is plain and takes at most `limit` bytes. Returns the references in it; if
/// there are none because it is something else, what was written means nothing.
pub(crate) fn write_small(
    out: &mut Vec<u8>,
    value: &Bound<'_, PyAny>,
    limit: usize,
) -> PyResult<Option<Vec<Contained>>> {
    let start = out.len();
    let (is_plain, contained) = collect(|| write_plain(out, value, true, start.saturating_add(limit)))?;
    Ok((is_plain && out.len() - start <= limit).then_some(contained))
}

/// Writes a value if it is plain. Returns whether it is; if not, what was written means nothing. What
/// would make `out` longer than `most` is not plain either.
fn write_plain(out: &mut Vec<u8>, value: &Bound<'_, PyAny>, containers: bool, most: usize) -> PyResult<bool> {
    if value.is_none() {
        Plain::None.write(out);
    } else if let Ok(value) = value.cast_exact::<PyBool>() {
        Plain::Bool(value.is_true()).write(out);
    } else if value.is_exact_instance_of::<PyInt>() {
        let Ok(number) = value.extract::<i64>() else { return Ok(false) };
        Plain::Int(number).write(out);
    } else if let Ok(value) = value.cast_exact::<PyFloat>() {
        Plain::Float(value.value()).write(out);
    } else if let Ok(value) = value.cast_exact::<PyString>() {
        // Lone surrogates have no UTF-8 form; pickle knows what to do.
        let Ok(text) = value.to_str() else { return Ok(false) };
        return Ok(write_long(out, Plain::Str(text), text.len(), most));
    } else if let Ok(value) = value.cast_exact::<PyBytes>() {
        let bytes = value.as_bytes();
        return Ok(write_long(out, Plain::Bytes(bytes), bytes.len(), most));
    } else if let Ok(reference) = value.cast_exact::<PyObjectRef>() {
        write_reference(out, reference.get())?;
    } else if containers {
        return write_container(out, value, most);
    } else {
        return Ok(false);
    }
    Ok(true)
}

fn write_container(out: &mut Vec<u8>, value: &Bound<'_, PyAny>, most: usize) -> PyResult<bool> {
    if let Ok(list) = value.cast_exact::<PyList>() {
        return write_items(out, Container::List, list.len(), list.iter(), most);
    }
    if let Ok(tuple) = value.cast_exact::<PyTuple>() {
        return write_items(out, Container::Tuple, tuple.len(), tuple.iter(), most);
    }
    if let Ok(dict) = value.cast_exact::<PyDict>() {
        let items = dict.iter().flat_map(|(key, value)| [key, value]);
        return write_items(out, Container::Dict, dict.len(), items, most);
    }
    Ok(false)
}

fn write_items<'py>(
    out: &mut Vec<u8>,
    kind: Container,
    length: usize,
    items: impl Iterator<Item = Bound<'py, PyAny>>,
    most: usize,
) -> PyResult<bool> {
    let Ok(length) = u32::try_from(length) else { return Ok(false) };
    Plain::Container(kind, length).write(out);
    for item in items {
        if out.len() > most || !write_plain(out, &item, false, most)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes text or bytes of this length.
fn write_long(out: &mut Vec<u8>, value: Plain<'_>, length: usize, most: usize) -> bool {
    if length > most.saturating_sub(out.len()) || u32::try_from(length).is_err() {
        return false;
    }
    value.write(out);
    true
}

fn write_reference(out: &mut Vec<u8>, reference: &PyObjectRef) -> PyResult<()> {
    let (object_id, owner) = reference.contained()?;
    meet((object_id, owner));
    Plain::Reference(object_id, owner.worker_id, owner.node_id).write(out);
    Ok(())
}

fn pickle(value: &Bound<'_, PyAny>) -> PyResult<(Py<PyBytes>, Vec<BorrowedBuffer>)> {
    let py = value.py();
    let pickled = serialization(py)?.call_method1(intern!(py, "dumps"), (value,))?;
    let (data, buffers): (Bound<'_, PyBytes>, Vec<Bound<'_, PyAny>>) = pickled.extract()?;
    // As plain bytes, whatever their shape was.
    let flat = |buffer: &Bound<'_, PyAny>| BorrowedBuffer::new(&buffer.call_method0(intern!(py, "raw"))?);
    let buffers = buffers.iter().map(flat).collect::<PyResult<_>>()?;
    Ok((data.unbind(), buffers))
}

/// `ray_rust._private.serialization`.
pub(crate) fn serialization(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static MODULE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let module = MODULE.get_or_try_init(py, || {
        Ok::<_, PyErr>(py.import("ray_rust._private.serialization")?.into_any().unbind())
    })?;
    Ok(module.bind(py))
}

/// Decodes a value. What it holds of large buffers stays where it is.
pub(crate) fn decode<'py>(py: Python<'py>, value: &ReadyValue) -> PyResult<Bound<'py, PyAny>> {
    let bytes = value.bytes();
    if bytes.first() != Some(&PICKLED) {
        return decode_plain(py, bytes);
    }
    let view = ValueView::read_from(bytes).map_err(|error| damaged(&error.chain()))?;
    let start = view.in_band().as_ptr() as usize - bytes.as_ptr() as usize;
    let data = LentBuffer::new(value, start..start + view.in_band().len());
    let buffers = PyList::empty(py);
    for range in (0..view.buffer_count()).filter_map(|index| view.buffer_range(index)) {
        let buffer = Bound::new(py, LentBuffer::new(value, range))?;
        // What users' classes get as their buffer has a length and can be sliced.
        buffers.append(PyMemoryView::from(buffer.as_any())?)?;
    }
    serialization(py)?.call_method1(intern!(py, "loads"), (data, buffers))
}

/// Decodes an argument that came with its task.
pub(crate) fn decode_inline<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    if bytes.first() == Some(&PICKLED) {
        decode(py, &ReadyValue::Inline(Bytes::copy_from_slice(bytes)))
    } else {
        decode_plain(py, bytes)
    }
}

fn decode_plain<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let mut reader = PlainReader::new(bytes);
    let value = match read(reader.value())? {
        Plain::Container(kind, length) => decode_container(py, &mut reader, kind, length as usize)?,
        item => decode_item(py, item)?,
    };
    read(reader.finish())?;
    Ok(value)
}

fn decode_container<'py>(
    py: Python<'py>,
    reader: &mut PlainReader<'_>,
    kind: Container,
    length: usize,
) -> PyResult<Bound<'py, PyAny>> {
    let mut item = || decode_item(py, read(reader.item())?);
    if kind == Container::Dict {
        let dict = PyDict::new(py);
        for _ in 0..length {
            dict.set_item(item()?, item()?)?;
        }
        return Ok(dict.into_any());
    }
    let items = (0..length).map(|_| item()).collect::<PyResult<Vec<_>>>()?;
    Ok(if kind == Container::List {
        PyList::new(py, items)?.into_any()
    } else {
        PyTuple::new(py, items)?.into_any()
    })
}

fn decode_item<'py>(py: Python<'py>, item: Plain<'_>) -> PyResult<Bound<'py, PyAny>> {
    Ok(match item {
        Plain::None => py.None().into_bound(py),
        Plain::Bool(value) => PyBool::new(py, value).to_owned().into_any(),
        Plain::Int(number) => number.into_pyobject(py)?.into_any(),
        Plain::Float(number) => PyFloat::new(py, number).into_any(),
        Plain::Str(text) => PyString::new(py, text).into_any(),
        Plain::Bytes(bytes) => PyBytes::new(py, bytes).into_any(),
        Plain::Reference(object_id, worker_id, node_id) => {
            let reference = PyObjectRef::from_elsewhere(object_id, Owner { worker_id, node_id })?;
            untracked(py, reference)?.into_any()
        }
        Plain::Container(..) => return Err(damaged("a container is in a container")),
    })
}

fn read<T>(result: RayResult<T>) -> PyResult<T> {
    result.map_err(|error| damaged(&error.chain()))
}

fn damaged(reason: &str) -> PyErr {
    PyValueError::new_err(format!("an encoded value is damaged: {reason}"))
}
