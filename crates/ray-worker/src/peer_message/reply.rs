//! What comes back of a task: its reply, and the items of a generator task.

use bytes::Bytes;
use ray_core::error::RayResult;
use ray_core::id::{NodeId, ObjectId, TaskId, WorkerId};
use ray_core::serialize;

use crate::codec::{Fields, damaged, put_bytes, put_u32, put_u64};
use crate::reference_counter::Owner;
use crate::value::{Contained, Failure, Value};

/// What became of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskReply {
    /// The task.
    pub task_id: TaskId,
    /// The attempt that this answers.
    pub attempt: u32,
    /// How long its code ran, in microseconds.
    pub execution_us: u32,
    /// The process runs no further task: those that were sent to it and not answered were not started.
    pub is_last: bool,
    /// Its objects, or why there are none.
    pub outcome: Result<Vec<Returned>, Failure>,
}

/// One item of a generator task.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamItem {
    /// The task.
    pub task_id: TaskId,
    /// The attempt that made it.
    pub attempt: u32,
    /// Its number, from 0.
    pub index: u64,
    /// What it is.
    pub item: Returned,
}

/// One object that a task returned or yielded.
#[derive(Debug, Clone, PartialEq)]
pub struct Returned {
    /// Its value; `Failed` if the code that should have made it raised.
    pub value: Value,
    /// References in it, each granted to the caller.
    pub contained: Vec<Contained>,
}

const FAILED: u8 = 0x01;
const LAST: u8 = 0x02;

impl TaskReply {
    /// Appends the reply.
    ///
    /// # Errors
    /// If a failure cannot be encoded.
    pub fn write(&self, out: &mut Vec<u8>) -> RayResult<()> {
        out.extend_from_slice(self.task_id.as_bytes());
        put_u32(out, self.attempt);
        put_u32(out, self.execution_us);
        let last = if self.is_last { LAST } else { 0 };
        let returned = match &self.outcome {
            Err(failure) => {
                out.push(FAILED | last);
                out.extend_from_slice(&serialize::to_bytes(failure)?);
                return Ok(());
            }
            Ok(returned) => returned,
        };
        out.push(last);
        put_u32(out, returned.len() as u32);
        returned.iter().try_for_each(|returned| write_returned(out, returned))
    }

    /// Reads a reply.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn read(payload: &[u8]) -> RayResult<Self> {
        let mut fields = Fields::new(payload);
        let task_id = fields.id(TaskId::LEN)?;
        let (attempt, execution_us) = (fields.u32()?, fields.u32()?);
        let tag = fields.u8()?;
        let outcome = match tag & !LAST {
            0 => Ok(read_returned(&mut fields)?),
            FAILED => Err(serialize::from_bytes(fields.rest()).map_err(|error| damaged(error.chain()))?),
            other => return Err(damaged(format!("an outcome of kind {other}"))),
        };
        Ok(Self { task_id, attempt, execution_us, is_last: tag & LAST != 0, outcome })
    }
}

impl StreamItem {
    /// Appends the item.
    ///
    /// # Errors
    /// If a failure cannot be encoded.
    pub fn write(&self, out: &mut Vec<u8>) -> RayResult<()> {
        out.extend_from_slice(self.task_id.as_bytes());
        put_u32(out, self.attempt);
        put_u64(out, self.index);
        write_returned(out, &self.item)
    }

    /// Reads an item.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn read(payload: &[u8]) -> RayResult<Self> {
        let mut fields = Fields::new(payload);
        let task_id = fields.id(TaskId::LEN)?;
        let (attempt, index) = (fields.u32()?, fields.u64()?);
        let item = read_one(&mut fields)?;
        fields.end()?;
        Ok(Self { task_id, attempt, index, item })
    }
}

/// Size of a reference in a returned value, in bytes.
const CONTAINED: usize = ObjectId::LEN + WorkerId::LEN + NodeId::LEN;

fn write_returned(out: &mut Vec<u8>, Returned { value, contained }: &Returned) -> RayResult<()> {
    match value {
        Value::Inline(bytes) => {
            out.push(0);
            put_bytes(out, bytes);
        }
        Value::Stored { node_id, size } => {
            out.push(1);
            out.extend_from_slice(node_id.as_bytes());
            put_u64(out, *size);
        }
        Value::Failed(failure) => {
            out.push(2);
            put_bytes(out, &serialize::to_bytes(&**failure)?);
        }
    }
    put_u32(out, contained.len() as u32);
    for (object_id, owner) in contained {
        out.extend_from_slice(object_id.as_bytes());
        out.extend_from_slice(owner.worker_id.as_bytes());
        out.extend_from_slice(owner.node_id.as_bytes());
    }
    Ok(())
}

fn read_returned(fields: &mut Fields<'_>) -> RayResult<Vec<Returned>> {
    const LEAST: usize = 1 + 4 + 4;
    let count = fields.count(LEAST)?;
    let mut returned = Vec::with_capacity(count);
    for _ in 0..count {
        returned.push(read_one(fields)?);
    }
    fields.end()?;
    Ok(returned)
}

fn read_one(fields: &mut Fields<'_>) -> RayResult<Returned> {
    let value = match fields.u8()? {
        0 => Value::Inline(Bytes::copy_from_slice(fields.bytes()?)),
        1 => Value::Stored { node_id: fields.id(NodeId::LEN)?, size: fields.u64()? },
        2 => {
            let failure: Failure =
                serialize::from_bytes(fields.bytes()?).map_err(|error| damaged(error.chain()))?;
            failure.into()
        }
        other => return Err(damaged(format!("a value of kind {other}"))),
    };
    let references = fields.count(CONTAINED)?;
    let mut contained = Vec::with_capacity(references);
    for _ in 0..references {
        let object_id = fields.id(ObjectId::LEN)?;
        let owner = Owner { worker_id: fields.id(WorkerId::LEN)?, node_id: fields.id(NodeId::LEN)? };
        contained.push((object_id, owner));
    }
    Ok(Returned { value, contained })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_reply_reads_back() {
        let owner = Owner { worker_id: WorkerId::random(), node_id: NodeId::random() };
        let outcomes = [
            Ok(vec![
                Returned { value: Value::Inline(Bytes::from_static(b"x")), contained: vec![] },
                Returned {
                    value: Value::Stored { node_id: NodeId::random(), size: 9 },
                    contained: vec![(ObjectId::nil(), owner)],
                },
            ]),
            Err(Failure::Raised(Bytes::from_static(b"error"))),
        ];
        for (outcome, is_last) in outcomes.iter().flat_map(|outcome| [(outcome, false), (outcome, true)]) {
            let outcome = outcome.clone();
            let reply =
                TaskReply { task_id: TaskId::random(), attempt: 1, execution_us: 5, is_last, outcome };
            let mut bytes = Vec::new();
            reply.write(&mut bytes).unwrap();
            assert_eq!(TaskReply::read(&bytes).unwrap(), reply);
            for end in 0..bytes.len() {
                assert!(TaskReply::read(&bytes[..end]).is_err(), "cut off at {end}");
            }
        }
    }

    #[test]
    fn an_item_reads_back() {
        let owner = Owner { worker_id: WorkerId::random(), node_id: NodeId::random() };
        let values = [
            Value::Inline(Bytes::from_static(b"x")),
            Value::Stored { node_id: NodeId::random(), size: 9 },
            Failure::Raised(Bytes::from_static(b"error")).into(),
        ];
        for value in values {
            let item = Returned { value, contained: vec![(ObjectId::nil(), owner)] };
            let item = StreamItem { task_id: TaskId::random(), attempt: 1, index: 5, item };
            let mut bytes = Vec::new();
            item.write(&mut bytes).unwrap();
            assert_eq!(StreamItem::read(&bytes).unwrap(), item);
            for end in 0..bytes.len() {
                assert!(StreamItem::read(&bytes[..end]).is_err(), "cut off at {end}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = TaskReply::read(&bytes);
            let _ = StreamItem::read(&bytes);
        }

        #[test]
        fn damage_in_one_byte_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let value = Returned { value: Value::Inline(Bytes::from_static(b"value")), contained: vec![] };
            let reply = TaskReply { task_id: TaskId::nil(), attempt: 0, execution_us: 0, is_last: false, outcome: Ok(vec![value; 3]) };
            let mut bytes = Vec::new();
            reply.write(&mut bytes).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = TaskReply::read(&bytes);
        }
    }
}
