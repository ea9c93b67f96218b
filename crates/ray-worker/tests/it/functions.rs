//! What workers can run, by name.

use std::cell::RefCell;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ray_core::id::{ActorId, ObjectId};
use ray_core::pb::common::ActorSpec;
use ray_worker::CoreWorker;
use ray_worker::core::{Concurrency, Executor, Flow, ItemSender, ResolvedArg, Task};
use ray_worker::peer_message::{RetryExceptions, Returned, Target};
use ray_worker::value::{Encoded, Failure, Payload};
use rustix::process::{Signal, getpid, kill_process};

use crate::front::{Call, Front, LIMIT, Ref, Value, decode, never};

/// The executor of the tests: functions and methods are those of this file.
#[derive(Debug, Default)]
pub(crate) struct Functions {
    actor: RefCell<Option<Holder>>,
}

/// The one class of actors.
#[derive(Debug, Default)]
struct Holder {
    log: Vec<String>,
    kept: Vec<Ref>,
}

type Outcome = Result<Value, Failure>;

impl Executor for Functions {
    fn set_job(&self, _job_config: &[u8]) {}

    fn set_devices(&self, _devices: &[u32]) {}

    fn execute(&self, core: &Arc<CoreWorker>, task: &Task<'_>) -> Result<Vec<Returned>, Failure> {
        let front = Front { core: Arc::clone(core) };
        let args = decode_args(core, &task.args);
        if let Some(sender) = ItemSender::new(core, task) {
            return produce(core, task, sender, &args);
        }
        let count = task.header.num_returns;
        let value = match &task.header.target {
            Target::Function(_) => {
                let name = task.function.as_deref().unwrap();
                run(
                    std::str::from_utf8(name).unwrap(),
                    &front,
                    args,
                    task.header.attempt,
                    task.header.retry_exceptions,
                )?
            }
            Target::Method { name, .. } => self.call(name, &front, args)?,
        };
        (0..u64::from(count))
            .map(|index| {
                let object_id = ObjectId::for_return(task.header.task_id, index);
                let payload = Payload::Whole(Bytes::from(value.encode()));
                let encoded = Encoded { payload, contained: value.contained() };
                let placed = core.place_result(object_id, task.caller, encoded, &mut never);
                placed.map_err(|error| Failure::System(error.chain()))
            })
            .collect()
    }

    fn create_actor(
        &self,
        core: &Arc<CoreWorker>,
        spec: &ActorSpec,
        args: &[ResolvedArg<'_>],
    ) -> Result<Concurrency, (String, Bytes)> {
        let mut args = decode_args(core, args);
        match &spec.class_blob[..] {
            b"holder" => {
                let mut holder = Holder::default();
                if let Some(first) = args.pop() {
                    holder.log.push(first.text().to_owned());
                    holder.kept = first.refs;
                }
                *self.actor.borrow_mut() = Some(holder);
                Ok(Concurrency::Serial)
            }
            b"broken" => Err(("its constructor raised".to_owned(), Bytes::from_static(b"the exception"))),
            other => Err((format!("no class {other:?}"), Bytes::new())),
        }
    }

    fn run_named(&self, function: &str, _payload: &[u8]) -> Result<Vec<u8>, String> {
        Err(format!("no function {function}"))
    }
}

/// Yields numbers, as many as the first argument says, and then does what the name of the task says.
fn produce(
    core: &Arc<CoreWorker>,
    task: &Task<'_>,
    mut sender: ItemSender,
    args: &[Value],
) -> Result<Vec<Returned>, Failure> {
    let place = |object_id: ObjectId, value: &Value| {
        let payload = Payload::Whole(Bytes::from(value.encode()));
        let encoded = Encoded { payload, contained: value.contained() };
        let placed = core.place_result(object_id, task.caller, encoded, &mut never);
        placed.map_err(|error| Failure::System(error.chain()))
    };
    for index in 0..args[0].number() {
        let item = place(sender.next_id(), &number(index))?;
        let mut flow = sender.send(item)?;
        if flow == Flow::Wait {
            flow = sender.wait(&mut never).map_err(|error| Failure::System(error.chain()))?;
        }
        if flow == Flow::Stop {
            return Err(Failure::Cancelled(task.header.task_id));
        }
    }
    match std::str::from_utf8(task.function.as_deref().unwrap()).unwrap() {
        "count" => {}
        "count_and_fail" => return Err(Failure::Raised(Bytes::from_static(b"in the middle"))),
        "count_and_crash" => {
            note(args[1].text(), "crashes");
            pass_gate(args[1].text());
            if task.header.attempt < 2 {
                return crash().map(|_| Vec::new());
            }
        }
        other => return Err(Failure::System(format!("no generator {other}"))),
    }
    let object_id = ObjectId::for_return(task.header.task_id, 0);
    Ok(vec![place(object_id, &Value::default())?])
}

fn decode_args(core: &Arc<CoreWorker>, args: &[ResolvedArg<'_>]) -> Vec<Value> {
    args.iter().map(|arg| decode(core, arg.value.bytes())).collect()
}

/// What is raised, for a caller who may have listed it.
fn raised(retry_exceptions: RetryExceptions<&[u8]>, error: &'static [u8]) -> Failure {
    let error = Bytes::from_static(error);
    match retry_exceptions {
        RetryExceptions::Listed(listed) if listed == error => Failure::RaisedListed(error),
        _ => Failure::Raised(error),
    }
}

fn run(
    name: &str,
    front: &Front,
    mut args: Vec<Value>,
    attempt: u32,
    retry_exceptions: RetryExceptions<&[u8]>,
) -> Outcome {
    let text = |at: usize| args[at].text().to_owned();
    match name {
        "echo" => Ok(args.remove(0)),
        "sum" => Ok(number(args.iter().map(Value::number).sum())),
        "length" => Ok(number(args[0].data.len() as u64)),
        "pid" => Ok(number(u64::from(std::process::id()))),
        "attempt" => Ok(number(u64::from(attempt))),
        "fail" => Err(Failure::Raised(args.remove(0).data.into())),
        "fail_at_first" if attempt == 0 => Err(raised(retry_exceptions, b"at first")),
        "fail_at_first" => Ok(number(u64::from(attempt))),
        // Ends its process, but for the attempts from this one on.
        "crash_before" => {
            note(&text(0), "begun");
            if u64::from(attempt) < args[1].number() { crash() } else { Ok(number(u64::from(attempt))) }
        }
        "gate" => {
            note(&text(0), "begun");
            pass_gate(&text(0));
            Ok(Value::new("passed"))
        }
        "gate_large" => {
            pass_gate(&text(0));
            Ok(Value::new(vec![7; args[1].number() as usize]))
        }
        "nested" => match args[0].number() {
            0 => Ok(number(0)),
            depth => {
                let inner = front.submit(Call::new("nested").value((depth - 1).to_string()));
                Ok(number(front.outcome(&inner)?.number() + 1))
            }
        },
        "large" => Ok(Value::new(vec![7; args[0].number() as usize])),
        // A reference to an object of this process.
        "put" => {
            let data = vec![5; args[0].number() as usize];
            Ok(Value::of(vec![front.put(&Value::new(data)).unwrap()]))
        }
        // A reference to what a task of this process will return.
        "submit_gate" => Ok(Value::of(vec![front.submit(Call::new("gate").value(text(0)))])),
        "read" => front.outcome(&args[0].refs[0]).map(|value| number(value.data.len() as u64)),
        // Passes a reference on to another worker.
        "read_by_another" => {
            let held = &args[0].refs[0];
            let inner = front.submit(Call::new("read").holding("", &[held]));
            front.outcome(&inner)
        }
        // Has an actor keep a reference.
        "have_kept" => {
            let actor_id: ActorId = text(0).parse().unwrap();
            front.core.attach_actor(actor_id, "holder", false, 0);
            let kept = front.call(actor_id, Call::new("keep").holding("", &[&args[0].refs[0]]));
            front.outcome(&kept)
        }
        "usage" => Ok(usage(front)),
        other => Err(Failure::System(format!("no function {other}"))),
    }
}

impl Functions {
    fn call(&self, method: &str, front: &Front, mut args: Vec<Value>) -> Outcome {
        let mut actor = self.actor.borrow_mut();
        let actor = actor.as_mut().unwrap();
        match method {
            "push" => {
                actor.log.push(args[0].text().to_owned());
                Ok(number(actor.log.len() as u64))
            }
            "log" => Ok(Value::new(actor.log.join(","))),
            "keep" => {
                actor.kept.append(&mut args[0].refs);
                Ok(Value::default())
            }
            "read" => front.outcome(&actor.kept[0]).map(|value| number(value.data.len() as u64)),
            // Asks for what it keeps, but not for long.
            "glance" => match front.get_within(&actor.kept[0], Duration::ZERO) {
                Ok(_) => Ok(Value::new("there")),
                Err(error) => Ok(Value::new(error.to_string())),
            },
            "give" => Ok(Value::of(actor.kept.clone())),
            "forget" => {
                actor.kept.clear();
                Ok(Value::default())
            }
            "crash" => crash(),
            "exit" => {
                front.core.exit_actor("it has had enough");
                Ok(Value::default())
            }
            other => run(other, front, args, 0, RetryExceptions::Never),
        }
    }
}

fn number(value: u64) -> Value {
    Value::new(value.to_string())
}

/// How many objects this process refers to.
fn usage(front: &Front) -> Value {
    number(front.core.reference_usage().0 as u64)
}

/// Ends this process as the kernel would.
fn crash() -> Outcome {
    kill_process(getpid(), Signal::KILL).unwrap();
    unreachable!("nobody survives SIGKILL")
}

/// Adds a line with this process's id to the file of this name beside the gate.
fn note(gate: &str, what: &str) {
    let path = format!("{gate}.{what}");
    let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
    // In one piece, for whoever reads it may kill this process at once.
    file.write_all(format!("{}\n", std::process::id()).as_bytes()).unwrap();
}

/// Waits until the file is there.
fn pass_gate(gate: &str) {
    let start = Instant::now();
    while !Path::new(gate).exists() {
        assert!(start.elapsed() < LIMIT, "nobody opens {gate}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
