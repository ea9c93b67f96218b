//! Arguments of a call, encoded.

use std::sync::Arc;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};
use ray_core::id::ObjectId;
use ray_worker::CoreWorker;
use ray_worker::peer_message::{ArgValue, write_arg, write_inline_arg};

use crate::codec::{EncodedValue, write_small};
use crate::error::{Signals, raise};
use crate::object_ref::PyObjectRef;

/// Arguments as the core takes them.
#[derive(Default)]
pub(crate) struct Args {
    /// As [`write_arg`] wrote them.
    pub(crate) bytes: Vec<u8>,
    /// Objects that are arguments by themselves, once for each.
    pub(crate) dependencies: Vec<ObjectId>,
    /// Objects referred to inside arguments.
    pub(crate) nested: Vec<ObjectId>,
    /// Objects made for large arguments; kept until the task that needs them is submitted.
    promoted: Vec<PyObjectRef>,
}

impl Args {
    /// Encodes arguments. References by themselves are resolved by the core, those inside of values
    /// are kept; a value too large for a message becomes an object of its own.
    pub(crate) fn encode(
        core: &Arc<CoreWorker>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let mut encoded = Self::default();
        for arg in args.iter() {
            encoded.push(core, None, &arg)?;
        }
        for (keyword, arg) in kwargs.into_iter().flat_map(|kwargs| kwargs.iter()) {
            encoded.push(core, Some(keyword.cast::<PyString>()?.to_str()?), &arg)?;
        }
        Ok(encoded)
    }

    fn push(
        &mut self,
        core: &Arc<CoreWorker>,
        keyword: Option<&str>,
        arg: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        if let Ok(reference) = arg.cast::<PyObjectRef>() {
            if !arg.is_exact_instance_of::<PyObjectRef>() {
                // It may be one that cannot be an argument as it is: then it raises a TypeError.
                arg.call_method0(intern!(arg.py(), "_as_argument"))?;
            }
            let object_id = reference.get().check(core)?;
            self.dependencies.push(object_id);
            write_arg(&mut self.bytes, keyword, &ArgValue::Reference(object_id));
            return Ok(());
        }
        let py = arg.py();
        let mut contained = Vec::new();
        let limit = core.inline_limit();
        if write_inline_arg(&mut self.bytes, keyword, |out| {
            Ok::<_, PyErr>(write_small(out, arg, limit)?.map(|met| contained = met).is_some())
        })? {
            self.nested.extend(contained.iter().map(|&(object_id, _)| object_id));
            return Ok(());
        }
        let encoded = EncodedValue::new(arg)?;
        if encoded.len(py) > core.inline_limit() {
            let object = store(py, core, encoded)?;
            self.dependencies.push(object.id());
            write_arg(&mut self.bytes, keyword, &ArgValue::Reference(object.id()));
            self.promoted.push(object);
            return Ok(());
        }
        self.nested.extend(encoded.contained().iter().map(|&(object_id, _)| object_id));
        let bytes = encoded.into_core(py, |encoded| encoded.payload.into_bytes());
        let bytes = bytes.map_err(|error| raise(py, error))?;
        write_arg(&mut self.bytes, keyword, &ArgValue::Inline(&bytes));
        Ok(())
    }
}

/// Stores a value as an object of its own.
pub(crate) fn store(py: Python<'_>, core: &Arc<CoreWorker>, encoded: EncodedValue) -> PyResult<PyObjectRef> {
    let encoded = match encoded.into_small(core.inline_limit()) {
        // Short enough that releasing the GIL would cost more.
        Ok((bytes, contained)) => {
            let stored = core.put_small(bytes.into(), &contained).map_err(|error| raise(py, error))?;
            return Ok(PyObjectRef::adopt(core, stored));
        }
        Err(encoded) => encoded,
    };
    let mut signals = Signals::default();
    let result = encoded.into_core(py, |encoded| core.put(encoded, &mut || signals.check()));
    Ok(PyObjectRef::adopt(core, signals.settle(py, result)?))
}
