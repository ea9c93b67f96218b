//! What core workers say to one another, one message per frame.
//!
//! The hot ones, a task, its reply and an item of a generator task, are laid out by hand; the others go through the common
//! codec. The first frame of whoever connects is [`Hello`]; after it both sides may send anything,
//! so one connection serves both directions.

use std::sync::Arc;

use bytes::Bytes;
use ray_core::error::{RayError, RayResult};
use ray_core::id::{ActorId, FunctionId, JobId, NodeId, ObjectId, PlacementGroupId, TaskId, WorkerId};
use ray_core::resource::Resources;
use ray_core::serialize;
use serde::{Deserialize, Serialize};

use crate::codec::{Fields, damaged, put_bytes, put_u32, put_u64};
use crate::reference_counter::Owner;
use crate::value::{Contained, Failure, Value};

/// Which message a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// [`Hello`].
    Hello = 1,
    /// [`DefineFunction`].
    DefineFunction = 2,
    /// A task: [`TaskHeader`], then its arguments.
    PushTask = 3,
    /// [`TaskReply`].
    TaskReply = 4,
    /// Everything else: [`PeerMessage`].
    Other = 5,
    /// [`StreamItem`].
    StreamItem = 6,
}

impl TryFrom<u8> for Kind {
    type Error = RayError;

    fn try_from(byte: u8) -> RayResult<Self> {
        Ok(match byte {
            1 => Self::Hello,
            2 => Self::DefineFunction,
            3 => Self::PushTask,
            4 => Self::TaskReply,
            5 => Self::Other,
            6 => Self::StreamItem,
            other => return Err(damaged(format!("a frame of kind {other}"))),
        })
    }
}

/// Who connects, and the job on whose behalf it sends tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The process.
    pub worker_id: WorkerId,
    /// Its node.
    pub node_id: NodeId,
    /// Its job.
    pub job_id: JobId,
    /// What a worker has to know before it runs the job's code, as the front end encoded it.
    pub job_config: Bytes,
}

/// A function or class that tasks on this connection will name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefineFunction {
    /// Its id.
    pub function_id: FunctionId,
    /// As the front end pickled it.
    pub pickled: Bytes,
    /// For people.
    pub name: String,
    /// After how many calls of it a process ends; 0 for never.
    pub max_calls: u32,
}

/// Messages that are not worth a layout of their own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// These tasks will not be run here for now: the worker is blocked or busy with a long one.
    GiveBack {
        /// The tasks, in the order in which they came.
        task_ids: Vec<TaskId>,
    },
    /// The sender has a lease on the receiver now: what tasks that follow may use.
    Leased {
        /// What the lease takes.
        resources: Resources,
        /// The graphics processors among it, by number.
        devices: Vec<u32>,
    },
    /// Do not start this task, or, if it runs, interrupt it.
    Cancel {
        /// The task.
        task_id: TaskId,
        /// Cancel the tasks that it has submitted, too.
        recursive: bool,
        /// If it runs, do not interrupt it but answer by `CancelledChildren`: the sender ends the process.
        force: bool,
    },
    /// The task runs here, and those that it has submitted are cancelled as far as was asked.
    CancelledChildren {
        /// The task.
        task_id: TaskId,
    },
    /// A borrower asks the owner of this object to cancel the task that makes it.
    CancelTask {
        /// The object.
        object_id: ObjectId,
        /// Cancel the tasks that it has submitted, too.
        recursive: bool,
        /// End the process that runs it.
        force: bool,
    },
    /// A borrower asks the owner for a value; answered by `ObjectValue` as soon as there is one.
    GetObject {
        /// The object.
        object_id: ObjectId,
    },
    /// The owner's answer.
    ObjectValue {
        /// The object.
        object_id: ObjectId,
        /// Its value.
        value: Value,
        /// References in it, each granted to the receiver.
        contained: Vec<Contained>,
    },
    /// Asks an owner for grants to `borrower`; answered by `Granted`.
    AskGrants {
        /// Number of the request.
        request: u64,
        /// Objects of the receiver.
        object_ids: Vec<ObjectId>,
        /// Who gets the grants.
        borrower: WorkerId,
    },
    /// The grants are given, as far as the objects still exist.
    Granted {
        /// Number of the request.
        request: u64,
    },
    /// A borrower gives grants back.
    ReturnGrants {
        /// Objects of the receiver, and how many grants of each.
        grants: Vec<(ObjectId, u32)>,
    },
    /// The consumer of a generator task has read so many of its items: the producer may go on.
    StreamRead {
        /// The task.
        task_id: TaskId,
        /// How many were read.
        read: u64,
    },
    /// Nobody wants further items of a generator task: its producer stops at its next item.
    StopStream {
        /// The task.
        task_id: TaskId,
    },
}

/// What the arguments of a task follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskHeader<'a> {
    /// The task.
    pub task_id: TaskId,
    /// How often it was tried before. Replies repeat it; one of an earlier attempt is dropped.
    pub attempt: u32,
    /// What to call: the function, or for a method the name on the actor.
    pub target: Target<'a>,
    /// The placement group in which it runs, if its caller names one.
    pub group: Option<GroupContext>,
    /// How many objects it returns.
    pub num_returns: u32,
    /// It may run twice, so replies to earlier tasks need not be written before it starts.
    pub retriable: bool,
    /// How often it was retried, which its attempts may be more than.
    pub retries: u32,
    /// When it was submitted, in microseconds since the epoch; 0: its end is not to be noted.
    pub created_us: u64,
    /// Its name, for logs and errors.
    pub name: &'a str,
    /// How it sends what it yields, if it is a generator task.
    pub generator: Option<GeneratorSpec>,
    /// Which exceptions of its code have it tried again, as long as it may be.
    pub retry_exceptions: RetryExceptions<&'a [u8]>,
}

/// Which exceptions of a task's code count as a failure to retry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RetryExceptions<T> {
    /// None.
    #[default]
    Never,
    /// All.
    Always,
    /// Those of these types, as the front end encoded them. Who runs the task knows the types, and so decides.
    Listed(T),
}

impl<T> RetryExceptions<T> {
    /// The same with the types in another form.
    pub fn map<U>(self, listed: impl FnOnce(T) -> U) -> RetryExceptions<U> {
        match self {
            Self::Never => RetryExceptions::Never,
            Self::Always => RetryExceptions::Always,
            Self::Listed(types) => RetryExceptions::Listed(listed(types)),
        }
    }

    /// The same, borrowed.
    pub const fn as_ref(&self) -> RetryExceptions<&T> {
        match self {
            Self::Never => RetryExceptions::Never,
            Self::Always => RetryExceptions::Always,
            Self::Listed(types) => RetryExceptions::Listed(types),
        }
    }
}

/// The placement group in which something runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupContext {
    /// The group.
    pub group_id: PlacementGroupId,
    /// Whether its own tasks and actors run in the group, too, unless told otherwise.
    pub capture: bool,
}

const RETRIABLE: u8 = 0x80;
/// The id of a placement group follows.
const GROUPED: u8 = 0x40;
const CAPTURING: u8 = 0x20;
/// The name of a concurrency group follows.
const IN_CONCURRENCY_GROUP: u8 = 0x10;
const GENERATOR: u8 = 0x08;
/// Exceptions are retried: those of the types that follow if [`LISTED`] says so, too.
const RETRIES_EXCEPTIONS: u8 = 0x04;
const LISTED: u8 = 0x02;
const FLAGS: u8 = RETRIABLE | GROUPED | CAPTURING | GENERATOR | RETRIES_EXCEPTIONS | LISTED;

/// How a generator task hands over what it yields: each as an object of its own, in a [`StreamItem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GeneratorSpec {
    /// Its return value holds references to all items, and nobody reads them before.
    pub is_dynamic: bool,
    /// How many objects one yield makes.
    pub objects_per_yield: u32,
    /// It pauses while so many of its items are unread; 0 for never.
    pub limit: u64,
    /// It pauses while so many items of all generator tasks of its actor are unread; 0 for never.
    pub actor_limit: u64,
}

/// What a task calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target<'a> {
    /// A function defined earlier on the connection.
    Function(FunctionId),
    /// A method of the receiving actor.
    Method {
        /// The actor.
        actor_id: ActorId,
        /// Position among the calls of this caller, from 0 in each incarnation of the actor.
        sequence: u64,
        /// The method.
        name: &'a str,
        /// The concurrency group that it runs in; empty for that of calls without one.
        group: &'a str,
    },
}

impl<'a> TaskHeader<'a> {
    /// Appends the header; the arguments follow.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.task_id.as_bytes());
        put_u32(out, self.attempt);
        put_u32(out, self.num_returns);
        put_u32(out, self.retries);
        put_u64(out, self.created_us);
        let mut flag = if self.retriable { RETRIABLE } else { 0 };
        flag |= match self.group {
            None => 0,
            Some(GroupContext { capture: false, .. }) => GROUPED,
            Some(GroupContext { capture: true, .. }) => GROUPED | CAPTURING,
        };
        if self.generator.is_some() {
            flag |= GENERATOR;
        }
        flag |= match self.retry_exceptions {
            RetryExceptions::Never => 0,
            RetryExceptions::Always => RETRIES_EXCEPTIONS,
            RetryExceptions::Listed(_) => RETRIES_EXCEPTIONS | LISTED,
        };
        match &self.target {
            Target::Function(function_id) => {
                out.push(flag);
                out.extend_from_slice(function_id.as_bytes());
            }
            Target::Method { actor_id, sequence, name, group } => {
                out.push(flag | 1 | if group.is_empty() { 0 } else { IN_CONCURRENCY_GROUP });
                out.extend_from_slice(actor_id.as_bytes());
                put_u64(out, *sequence);
                put_bytes(out, name.as_bytes());
                if !group.is_empty() {
                    put_bytes(out, group.as_bytes());
                }
            }
        }
        if let Some(group) = self.group {
            out.extend_from_slice(group.group_id.as_bytes());
        }
        put_bytes(out, self.name.as_bytes());
        if let Some(generator) = &self.generator {
            out.push(u8::from(generator.is_dynamic));
            put_u32(out, generator.objects_per_yield);
            put_u64(out, generator.limit);
            put_u64(out, generator.actor_limit);
        }
        if let RetryExceptions::Listed(types) = self.retry_exceptions {
            put_bytes(out, types);
        }
    }

    /// Cuts a whole task into its header and its arguments, which are for [`read_args`].
    ///
    /// # Errors
    /// If the header is damaged.
    pub fn split(task: &'a [u8]) -> RayResult<(Self, &'a [u8])> {
        let mut fields = Fields::new(task);
        let header = Self::read(&mut fields)?;
        Ok((header, fields.rest()))
    }

    /// Reads the header off the front of a task; what remains are its arguments.
    ///
    /// # Errors
    /// If it is damaged.
    pub(crate) fn read(fields: &mut Fields<'a>) -> RayResult<Self> {
        let task_id = fields.id(TaskId::LEN)?;
        let (attempt, num_returns) = (fields.u32()?, fields.u32()?);
        let (retries, created_us) = (fields.u32()?, fields.u64()?);
        let tag = fields.u8()?;
        let target = match tag & !FLAGS {
            0 => Target::Function(fields.id(FunctionId::LEN)?),
            kind if kind & !IN_CONCURRENCY_GROUP == 1 => Target::Method {
                actor_id: fields.id(ActorId::LEN)?,
                sequence: fields.u64()?,
                name: fields.text()?,
                group: if kind & IN_CONCURRENCY_GROUP == 0 { "" } else { read_group(fields)? },
            },
            other => return Err(damaged(format!("a task of kind {other}"))),
        };
        let retriable = tag & RETRIABLE != 0;
        let group = match (tag & GROUPED != 0, tag & CAPTURING != 0) {
            (true, capture) => Some(GroupContext { group_id: fields.id(PlacementGroupId::LEN)?, capture }),
            (false, false) => None,
            (false, true) => return Err(damaged("a task that captures without a group".to_owned())),
        };
        let name = fields.text()?;
        let generator = if tag & GENERATOR == 0 { None } else { Some(read_generator(fields)?) };
        let retry_exceptions = match (tag & RETRIES_EXCEPTIONS != 0, tag & LISTED != 0) {
            (false, false) => RetryExceptions::Never,
            (true, false) => RetryExceptions::Always,
            (true, true) => RetryExceptions::Listed(fields.bytes()?),
            (false, true) => {
                return Err(damaged("a task with a list of exceptions that are not retried".to_owned()));
            }
        };
        Ok(Self {
            task_id,
            attempt,
            target,
            group,
            num_returns,
            retriable,
            retries,
            created_us,
            name,
            generator,
            retry_exceptions,
        })
    }
}

/// The name of a concurrency group, which is empty only where it is left out.
fn read_group<'a>(fields: &mut Fields<'a>) -> RayResult<&'a str> {
    match fields.text()? {
        "" => Err(damaged("a call in a concurrency group without a name".to_owned())),
        name => Ok(name),
    }
}

fn read_generator(fields: &mut Fields<'_>) -> RayResult<GeneratorSpec> {
    let is_dynamic = match fields.u8()? {
        0 => false,
        1 => true,
        other => return Err(damaged(format!("a generator of kind {other}"))),
    };
    let (objects_per_yield, limit, actor_limit) = (fields.u32()?, fields.u64()?, fields.u64()?);
    Ok(GeneratorSpec { is_dynamic, objects_per_yield, limit, actor_limit })
}

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

/// A function or class as its process exports it.
#[derive(Debug, PartialEq, Eq)]
pub struct ExportedFunction {
    /// Hash of the pickled form.
    pub function_id: FunctionId,
    /// As the front end pickled it.
    pub pickled: Bytes,
    /// For logs and errors.
    pub name: String,
    /// After how many calls of it a process ends; 0 for never.
    pub max_calls: u32,
}

impl ExportedFunction {
    /// Names a pickled function by its content.
    pub fn new(pickled: Bytes, name: String) -> Arc<Self> {
        Arc::new(Self { function_id: FunctionId::of(&pickled), pickled, name, max_calls: 0 })
    }

    /// The same for a function after so many calls of which a process ends, which is part of its name.
    pub fn with_max_calls(pickled: Bytes, name: String, max_calls: u32) -> Arc<Self> {
        if max_calls == 0 {
            return Self::new(pickled, name);
        }
        let function_id = FunctionId::of(&[&pickled[..], &max_calls.to_le_bytes()].concat());
        Arc::new(Self { function_id, pickled, name, max_calls })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(target: Target<'_>) -> TaskHeader<'_> {
        let group = match &target {
            Target::Function(_) => Some(GroupContext { group_id: PlacementGroupId::random(), capture: true }),
            Target::Method { .. } => None,
        };
        TaskHeader {
            task_id: TaskId::random(),
            attempt: 3,
            target,
            group,
            num_returns: 2,
            retriable: true,
            retries: 1,
            created_us: 1 << 50,
            name: "double",
            generator: None,
            retry_exceptions: RetryExceptions::Never,
        }
    }

    #[test]
    fn a_concurrency_group_without_a_name_is_damage() {
        let method = Target::Method { actor_id: ActorId::random(), sequence: 1, name: "add", group: "disks" };
        let mut bytes = Vec::new();
        header(method).write(&mut bytes);
        // The name, and its length in front of it.
        let at = bytes.windows(5).position(|part| part == b"disks").unwrap();
        let nameless = [&bytes[..at - 4], &[0; 4], &bytes[at + 5..]].concat();
        assert!(TaskHeader::split(&bytes).is_ok());
        assert!(TaskHeader::split(&nameless).is_err());
    }

    #[test]
    fn a_task_reads_back() {
        let targets = [
            Target::Function(FunctionId::random()),
            Target::Method { actor_id: ActorId::random(), sequence: 7, name: "add", group: "" },
            Target::Method { actor_id: ActorId::random(), sequence: 8, name: "add", group: "io" },
        ];
        let retried =
            [RetryExceptions::Never, RetryExceptions::Always, RetryExceptions::Listed(&b"types"[..])];
        for (target, retry_exceptions) in targets.into_iter().zip(retried) {
            let generator = matches!(target, Target::Method { .. }).then_some(GeneratorSpec {
                is_dynamic: true,
                objects_per_yield: 2,
                limit: 3,
                actor_limit: 4,
            });
            let header = TaskHeader { generator, retry_exceptions, ..header(target) };
            let owner = Owner { worker_id: WorkerId::random(), node_id: NodeId::random() };
            let stored = ArgValue::Stored {
                object_id: ObjectId::nil(),
                owner,
                node_id: NodeId::random(),
                size: 1 << 40,
            };
            let args = [
                Arg { keyword: None, value: ArgValue::Inline(b"one") },
                Arg { keyword: Some("two"), value: ArgValue::Reference(ObjectId::nil()) },
                Arg { keyword: Some("three"), value: stored },
            ];
            let mut bytes = Vec::new();
            header.write(&mut bytes);
            for arg in &args {
                write_arg(&mut bytes, arg.keyword, &arg.value);
            }
            let (read, rest) = TaskHeader::split(&bytes).unwrap();
            assert_eq!(read, header);
            assert_eq!(read_args(rest).unwrap(), args);
        }
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
            let _ = read_args(&bytes);
            let _ = TaskHeader::split(&bytes);
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
