//! The arguments of a task: values, references, and what is in shared memory.

use ray_core::error::RayResult;
use ray_core::id::{NodeId, ObjectId, WorkerId};

use crate::codec::{Fields, damaged, put_bytes, put_u32};
use crate::reference_counter::Owner;

/// One argument of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arg<'a> {
    /// Its name, if it is passed by keyword.
    pub keyword: Option<&'a str>,
    /// What it is.
    pub value: ArgValue<'a>,
}

/// What an argument is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArgValue<'a> {
    /// An encoded value.
    Inline(&'a [u8]),
    /// A reference that its caller has to replace by the value before the task is sent.
    Reference(ObjectId),
    /// A value in shared memory. The caller keeps it until the reply.
    Stored {
        /// The object.
        object_id: ObjectId,
        /// Its owner.
        owner: Owner,
        /// The node whose memory holds it.
        node_id: NodeId,
        /// Its size in bytes.
        size: u64,
    },
}

const KEYWORD: u8 = 0x80;

/// Appends one argument.
pub fn write_arg(out: &mut Vec<u8>, keyword: Option<&str>, value: &ArgValue<'_>) {
    let flag = if keyword.is_some() { KEYWORD } else { 0 };
    match value {
        ArgValue::Inline(bytes) => {
            out.push(flag);
            put_bytes(out, bytes);
        }
        ArgValue::Reference(object_id) => {
            out.push(flag | 1);
            out.extend_from_slice(object_id.as_bytes());
        }
        ArgValue::Stored { object_id, owner, node_id, size } => {
            out.push(flag | 2);
            out.extend_from_slice(object_id.as_bytes());
            out.extend_from_slice(owner.worker_id.as_bytes());
            out.extend_from_slice(owner.node_id.as_bytes());
            out.extend_from_slice(node_id.as_bytes());
            out.extend_from_slice(&size.to_le_bytes());
        }
    }
    if let Some(keyword) = keyword {
        put_bytes(out, keyword.as_bytes());
    }
}

/// Appends one argument whose encoded value `write` appends. If that returns false or an error, nothing
/// is appended.
///
/// # Errors
/// Those of `write`.
pub fn write_inline_arg<E>(
    out: &mut Vec<u8>,
    keyword: Option<&str>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<bool, E>,
) -> Result<bool, E> {
    let start = out.len();
    out.push(if keyword.is_some() { KEYWORD } else { 0 });
    put_u32(out, 0);
    let value = out.len();
    let written = write(out);
    match (&written, u32::try_from(out.len() - value)) {
        (Ok(true), Ok(length)) => out[value - 4..value].copy_from_slice(&length.to_le_bytes()),
        _ => {
            out.truncate(start);
            return written.map(|_| false);
        }
    }
    if let Some(keyword) = keyword {
        put_bytes(out, keyword.as_bytes());
    }
    written
}

/// Reads arguments, as many as there are.
///
/// # Errors
/// If they are damaged.
pub fn read_args(bytes: &[u8]) -> RayResult<Vec<Arg<'_>>> {
    let mut fields = Fields::new(bytes);
    let mut args = Vec::new();
    while !fields.rest().is_empty() {
        let tag = fields.u8()?;
        let value = match tag & !KEYWORD {
            0 => ArgValue::Inline(fields.bytes()?),
            1 => ArgValue::Reference(fields.id(ObjectId::LEN)?),
            2 => ArgValue::Stored {
                object_id: fields.id(ObjectId::LEN)?,
                owner: Owner { worker_id: fields.id(WorkerId::LEN)?, node_id: fields.id(NodeId::LEN)? },
                node_id: fields.id(NodeId::LEN)?,
                size: fields.u64()?,
            },
            other => return Err(damaged(format!("an argument of kind {other}"))),
        };
        let keyword = if tag & KEYWORD == 0 { None } else { Some(fields.text()?) };
        args.push(Arg { keyword, value });
    }
    Ok(args)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn arguments_read_back() {
        let owner = Owner { worker_id: WorkerId::random(), node_id: NodeId::random() };
        let (object_id, node_id) = (ObjectId::nil(), NodeId::random());
        let args = [
            Arg { keyword: None, value: ArgValue::Inline(b"one") },
            Arg { keyword: Some("two"), value: ArgValue::Reference(object_id) },
            Arg {
                keyword: Some("three"),
                value: ArgValue::Stored { object_id, owner, node_id, size: 1 << 40 },
            },
        ];
        let mut bytes = Vec::new();
        for arg in &args {
            write_arg(&mut bytes, arg.keyword, &arg.value);
        }
        assert_eq!(read_args(&bytes).unwrap(), args);
    }

    #[test]
    fn an_argument_written_in_place_is_the_same_as_one_that_was_copied() {
        for keyword in [None, Some("name")] {
            let (mut copied, mut in_place) = (vec![1], vec![1]);
            write_arg(&mut copied, keyword, &ArgValue::Inline(b"value"));
            let written = write_inline_arg(&mut in_place, keyword, |out| {
                out.extend_from_slice(b"value");
                Ok::<_, ()>(true)
            });
            assert_eq!((written, in_place), (Ok(true), copied));
        }
    }

    #[test]
    fn an_argument_that_cannot_be_written_in_place_leaves_nothing() {
        for outcome in [Ok(false), Err("no")] {
            let mut out = vec![1];
            let written = write_inline_arg(&mut out, Some("name"), |out| {
                out.push(2);
                outcome
            });
            assert_eq!((written, out), (outcome, vec![1]));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_args(&bytes);
        }
    }
}
