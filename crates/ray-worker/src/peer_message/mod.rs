//! What core workers say to one another, one message per frame.
//!
//! The hot ones, a task with its arguments, its reply and an item of a generator task, are laid out by hand, a file
//! each; the others go through the common codec. The first frame of whoever connects is [`Hello`]; after it both sides
//! may send anything, so one connection serves both directions.

mod arg;
mod reply;
mod task;

use std::sync::Arc;

use bytes::Bytes;
use ray_core::error::{RayError, RayResult};
use ray_core::id::{FunctionId, JobId, NodeId, ObjectId, TaskId, WorkerId};
use ray_core::resource::Resources;
use serde::{Deserialize, Serialize};

pub use self::arg::{Arg, ArgValue, read_args, write_arg, write_inline_arg};
pub use self::reply::{Returned, StreamItem, TaskReply};
pub use self::task::{GeneratorSpec, GroupContext, RetryExceptions, Target, TaskHeader};
use crate::codec::damaged;
use crate::value::{Contained, Value};

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
