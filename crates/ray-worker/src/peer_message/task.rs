//! A task on its way to the process that runs it: what comes before its arguments.

use ray_core::error::RayResult;
use ray_core::id::{ActorId, FunctionId, PlacementGroupId, TaskId};

use crate::codec::{Fields, damaged, put_bytes, put_u32, put_u64};

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

/// How a generator task hands over what it yields: each as an object of its own, in a [`StreamItem`](super::StreamItem).
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

    /// Cuts a whole task into its header and its arguments, which are for [`read_args`](super::read_args).
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
            let mut bytes = Vec::new();
            header.write(&mut bytes);
            bytes.extend_from_slice(b"arguments");
            let (read, rest) = TaskHeader::split(&bytes).unwrap();
            assert_eq!(read, header);
            assert_eq!(rest, b"arguments");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = TaskHeader::split(&bytes);
        }
    }
}
