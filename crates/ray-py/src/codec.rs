//! Python values to bytes and back.
//!
//! Plain values are written by the codec itself: `None`, `bool`, `int` of 64 bits, `float`, `str`,
//! `bytes`, references, and flat `list`s, `tuple`s and `dict`s of them. Everything else is pickled
//! (protocol 5) by `ray_rust._private.serialization`, large buffers out of band. The first byte tells
//! which: a tag below, or the `R` with which a block of pickled parts begins.

use bytes::Bytes;
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};
use ray_core::id::{NodeId, ObjectId, WorkerId};
use ray_core::serialize::{ValueParts, ValueView, ZeroCopyRead as _};
use ray_worker::core::ReadyValue;
use ray_worker::reference_counter::Owner;
use ray_worker::value::{Contained, Encoded, Payload};

use crate::buffer::{BorrowedBuffer, LentBuffer};
use crate::object_ref::{PyObjectRef, collect, meet};

const NONE: u8 = 0;
const FALSE: u8 = 1;
const TRUE: u8 = 2;
const INT: u8 = 3;
const FLOAT: u8 = 4;
const STR: u8 = 5;
const BYTES: u8 = 6;
const LIST: u8 = 7;
const TUPLE: u8 = 8;
const DICT: u8 = 9;
const REFERENCE: u8 = 10;
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
        out.push(NONE);
    } else if let Ok(value) = value.cast_exact::<PyBool>() {
        out.push(if value.is_true() { TRUE } else { FALSE });
    } else if value.is_exact_instance_of::<PyInt>() {
        let Ok(number) = value.extract::<i64>() else { return Ok(false) };
        out.push(INT);
        out.extend_from_slice(&number.to_le_bytes());
    } else if let Ok(value) = value.cast_exact::<PyFloat>() {
        out.push(FLOAT);
        out.extend_from_slice(&value.value().to_le_bytes());
    } else if let Ok(value) = value.cast_exact::<PyString>() {
        // Lone surrogates have no UTF-8 form; pickle knows what to do.
        let Ok(text) = value.to_str() else { return Ok(false) };
        return Ok(write_long(out, STR, text.as_bytes(), most));
    } else if let Ok(value) = value.cast_exact::<PyBytes>() {
        return Ok(write_long(out, BYTES, value.as_bytes(), most));
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
        return write_items(out, LIST, list.len(), list.iter(), most);
    }
    if let Ok(tuple) = value.cast_exact::<PyTuple>() {
        return write_items(out, TUPLE, tuple.len(), tuple.iter(), most);
    }
    if let Ok(dict) = value.cast_exact::<PyDict>() {
        let items = dict.iter().flat_map(|(key, value)| [key, value]);
        return write_items(out, DICT, dict.len(), items, most);
    }
    Ok(false)
}

fn write_items<'py>(
    out: &mut Vec<u8>,
    tag: u8,
    length: usize,
    items: impl Iterator<Item = Bound<'py, PyAny>>,
    most: usize,
) -> PyResult<bool> {
    let Ok(length) = u32::try_from(length) else { return Ok(false) };
    out.push(tag);
    out.extend_from_slice(&length.to_le_bytes());
    for item in items {
        if out.len() > most || !write_plain(out, &item, false, most)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn write_long(out: &mut Vec<u8>, tag: u8, bytes: &[u8], most: usize) -> bool {
    let Ok(length) = u32::try_from(bytes.len()) else { return false };
    if bytes.len() > most.saturating_sub(out.len()) {
        return false;
    }
    out.push(tag);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
    true
}

fn write_reference(out: &mut Vec<u8>, reference: &PyObjectRef) -> PyResult<()> {
    let (object_id, owner) = reference.contained()?;
    meet((object_id, owner));
    out.push(REFERENCE);
    out.extend_from_slice(object_id.as_bytes());
    out.extend_from_slice(owner.worker_id.as_bytes());
    out.extend_from_slice(owner.node_id.as_bytes());
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
        buffers.append(LentBuffer::new(value, range))?;
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
    let mut rest = bytes;
    let value = read_plain(py, &mut rest)?;
    if rest.is_empty() { Ok(value) } else { Err(damaged("it goes on after its end")) }
}

fn read_plain<'py>(py: Python<'py>, rest: &mut &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let tag = take(rest, 1)?[0];
    Ok(match tag {
        NONE => py.None().into_bound(py),
        FALSE | TRUE => PyBool::new(py, tag == TRUE).to_owned().into_any(),
        INT => i64::from_le_bytes(take_array(rest)?).into_pyobject(py)?.into_any(),
        FLOAT => PyFloat::new(py, f64::from_le_bytes(take_array(rest)?)).into_any(),
        STR => {
            let bytes = take_long(rest)?;
            let text = std::str::from_utf8(bytes).map_err(|error| damaged(&error.to_string()))?;
            PyString::new(py, text).into_any()
        }
        BYTES => PyBytes::new(py, take_long(rest)?).into_any(),
        LIST => PyList::new(py, read_items(py, rest, 1)?)?.into_any(),
        TUPLE => PyTuple::new(py, read_items(py, rest, 1)?)?.into_any(),
        DICT => {
            let dict = PyDict::new(py);
            for pair in read_items(py, rest, 2)?.chunks_exact(2) {
                dict.set_item(&pair[0], &pair[1])?;
            }
            dict.into_any()
        }
        REFERENCE => Bound::new(py, read_reference(rest)?)?.into_any(),
        other => return Err(damaged(&format!("{other} is no tag"))),
    })
}

fn read_items<'py>(py: Python<'py>, rest: &mut &[u8], each: usize) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let count = u32::from_le_bytes(take_array(rest)?) as usize * each;
    // An item has a byte at least, so no more room is made than the bytes can fill.
    let mut items = Vec::with_capacity(count.min(rest.len()));
    for _ in 0..count {
        items.push(read_plain(py, rest)?);
    }
    Ok(items)
}

fn read_reference(rest: &mut &[u8]) -> PyResult<PyObjectRef> {
    let object_id = ObjectId::from_bytes(take_array(rest)?);
    let worker_id = WorkerId::from_bytes(take_array(rest)?);
    let node_id = NodeId::from_bytes(take_array(rest)?);
    PyObjectRef::from_elsewhere(object_id, Owner { worker_id, node_id })
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> PyResult<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(count).ok_or_else(|| damaged("it is cut off"))?;
    *rest = after;
    Ok(taken)
}

fn take_array<const N: usize>(rest: &mut &[u8]) -> PyResult<[u8; N]> {
    Ok(take(rest, N)?.try_into().expect("as many bytes as asked for"))
}

fn take_long<'a>(rest: &mut &'a [u8]) -> PyResult<&'a [u8]> {
    let length = u32::from_le_bytes(take_array(rest)?) as usize;
    take(rest, length)
}

fn damaged(reason: &str) -> PyErr {
    PyValueError::new_err(format!("an encoded value is damaged: {reason}"))
}
