//! The node's objects, as its clients and tokio see them.
//!
//! ```text
//!            create          seal               delete, or owner lost
//!   (none) ---------> Open ---------> Sealed -------------------------> Doomed --> (none)
//!                      |  abort, or its writer lost                         last pin released
//!                      +-----> (none)
//! ```
//! Whoever asks for an object that is not sealed waits for it. A pin keeps an object's memory from
//! being used for another; what a client pinned is released with its connection.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;

use bytes::Bytes;
use ray_core::error::{RayError, RayResult};
use ray_core::id::{ObjectId, TaskId, WorkerId};
use ray_link::message::StoreError;
use ray_link::{FromRaylet, ToRaylet};
use ray_object_store::shm::ShmPool;
use rustc_hash::FxHashMap;
use tokio::sync::oneshot;

use super::effect::ClientId;

/// Holders named when the store is full.
const NAMED_HOLDERS: usize = 3;

/// Answers to clients.
type Answers = Vec<(ClientId, FromRaylet)>;

/// What tokio asks of the objects.
#[derive(Debug)]
pub(crate) enum StoreCommand {
    /// Answer as soon as the object is sealed.
    Wait { object_id: ObjectId, answer: oneshot::Sender<()> },
    /// Size of the object in bytes, if it is sealed.
    Size { object_id: ObjectId, answer: oneshot::Sender<Option<u64>> },
    /// A part of a sealed object.
    Read { object_id: ObjectId, offset: u64, len: u64, answer: oneshot::Sender<Option<Bytes>> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// This client writes it.
    Open(ClientId),
    Sealed,
    /// Gone but for those who read it.
    Doomed,
}

#[derive(Debug)]
struct Object {
    object_id: ObjectId,
    offset: u64,
    size: u64,
    owner: WorkerId,
    state: State,
    pins: BTreeMap<ClientId, u32>,
}

#[derive(Debug)]
enum Waiter {
    Client { client: ClientId, request: u64 },
    Tokio(oneshot::Sender<()>),
}

/// The objects of a node.
#[derive(Debug)]
pub(crate) struct StorePort {
    pool: ShmPool,
    objects: FxHashMap<ObjectId, Object>,
    /// Objects that are gone by name but whose memory is still read.
    doomed: Vec<Object>,
    waiters: FxHashMap<ObjectId, VecDeque<Waiter>>,
    node: WorkerId,
}

impl StorePort {
    /// An empty store of `capacity` bytes.
    ///
    /// # Errors
    /// If there is no such memory.
    pub(crate) fn new(capacity: u64) -> RayResult<Self> {
        Ok(Self {
            pool: ShmPool::create("ray_rust_objects", capacity)?,
            objects: FxHashMap::default(),
            doomed: Vec::new(),
            waiters: FxHashMap::default(),
            node: WorkerId::nil(),
        })
    }

    /// The shared memory, for clients to map.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.pool.region().fd()
    }

    /// Size of the shared memory in bytes.
    pub(crate) fn capacity(&self) -> u64 {
        self.pool.region().capacity()
    }

    /// A message about objects; others are ignored.
    pub(crate) fn on_message(
        &mut self,
        client: ClientId,
        _speaker: WorkerId,
        message: ToRaylet,
        answers: &mut Answers,
    ) {
        match message {
            ToRaylet::CreateObject { request, object_id, size, owner } => {
                let result = self.create(object_id, size, owner, State::Open(client));
                answers.push((client, FromRaylet::ObjectCreated { request, result }));
            }
            ToRaylet::SealObject { object_id } if self.is_open_by(client, &object_id) => {
                self.seal(object_id, answers);
            }
            ToRaylet::AbortObject { object_id } if self.is_open_by(client, &object_id) => {
                self.remove(&object_id);
            }
            ToRaylet::GetObjects { request, object_ids } => {
                for object_id in object_ids {
                    self.get(client, request, object_id, answers);
                }
            }
            ToRaylet::CancelGet { request } => self.forget_waiters(|waiter| {
                matches!(waiter, Waiter::Client { client: other, request: own } if *other == client && *own == request)
            }),
            ToRaylet::ReleaseObject { object_id, count } => self.release(client, object_id, count),
            ToRaylet::DeleteObjects { object_ids } => {
                object_ids.iter().for_each(|object_id| self.delete(object_id));
            }
            _ => {}
        }
    }

    /// What tokio asks.
    pub(crate) fn on_command(&mut self, command: StoreCommand, _answers: &mut Answers) {
        match command {
            StoreCommand::Wait { object_id, answer } => {
                if self.sealed(&object_id).is_some() {
                    let _ = answer.send(());
                } else {
                    self.forget_closed(&object_id);
                    self.waiters.entry(object_id).or_default().push_back(Waiter::Tokio(answer));
                }
            }
            StoreCommand::Size { object_id, answer } => {
                let _ = answer.send(self.sealed(&object_id).map(|object| object.size));
            }
            StoreCommand::Read { object_id, offset, len, answer } => {
                drop(answer.send(self.read(&object_id, offset, len)));
            }
        }
    }

    /// Stores the result of a task that the node itself called.
    pub(crate) fn put_result(
        &mut self,
        task_id: TaskId,
        data: &[u8],
        answers: &mut Answers,
    ) -> Result<(), StoreFailure> {
        let object_id = ObjectId::for_return(task_id, 0);
        if self.sealed(&object_id).is_some() {
            return Ok(());
        }
        let size = data.len() as u64;
        // No connection has this number: what the node writes is sealed before anyone can interfere.
        let offset =
            self.create(object_id, size, self.node, State::Open(ClientId(0))).map_err(StoreFailure)?;
        match self.pool.region().slice_mut(offset, size) {
            Ok(mut slice) => slice.copy_from_slice(data),
            Err(error) => {
                self.remove(&object_id);
                return Err(StoreFailure(StoreError::Lost { cause: error.to_string() }));
            }
        }
        self.seal(object_id, answers);
        Ok(())
    }

    /// What this client held is free.
    pub(crate) fn on_client_lost(&mut self, client: ClientId, answers: &mut Answers) {
        self.forget_waiters(
            |waiter| matches!(waiter, Waiter::Client { client: other, .. } if *other == client),
        );
        let open = |(_, object): &(&ObjectId, &Object)| object.state == State::Open(client);
        let open: Vec<_> = self.objects.iter().filter(open).map(|(id, _)| *id).collect();
        for object_id in open {
            self.remove(&object_id);
            self.tell_lost(object_id, "its writer died before it was complete", answers);
        }
        for object in self.objects.values_mut().chain(&mut self.doomed) {
            object.pins.remove(&client);
        }
        self.free_doomed();
    }

    /// Objects go with the process that owned them.
    pub(crate) fn on_owner_lost(&mut self, owner: WorkerId, answers: &mut Answers) {
        let owned: Vec<_> =
            self.objects.iter().filter(|(_, object)| object.owner == owner).map(|(id, _)| *id).collect();
        for object_id in owned {
            self.delete(&object_id);
            self.tell_lost(object_id, "the process that owned it is gone", answers);
        }
    }

    fn create(
        &mut self,
        object_id: ObjectId,
        size: u64,
        owner: WorkerId,
        state: State,
    ) -> Result<u64, StoreError> {
        if let Some(object) = self.objects.get(&object_id) {
            return match object.state {
                State::Sealed => Err(StoreError::AlreadySealed),
                // Another attempt of the same task, whose writer is being given up, writes there still.
                State::Open(_) | State::Doomed => {
                    Err(StoreError::Lost { cause: "another process writes it".to_owned() })
                }
            };
        }
        let full = |store: &Self| StoreError::Full {
            requested_bytes: size,
            used_bytes: store.pool.used(),
            capacity_bytes: store.capacity(),
            holders: store.largest_holders(),
        };
        let offset = match self.pool.allocate(size) {
            Ok(Some(slice)) => slice.offset(),
            Ok(None) => return Err(full(self)),
            Err(error) => return Err(StoreError::Lost { cause: error.to_string() }),
        };
        self.objects
            .insert(object_id, Object { object_id, offset, size, owner, state, pins: BTreeMap::new() });
        Ok(offset)
    }

    fn largest_holders(&self) -> String {
        let mut by_owner: BTreeMap<WorkerId, u64> = BTreeMap::new();
        for object in self.objects.values() {
            *by_owner.entry(object.owner).or_default() += object.size;
        }
        let mut holders: Vec<_> = by_owner.into_iter().collect();
        holders.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        let name = |(owner, bytes): &(WorkerId, u64)| format!("worker {owner} owns {bytes} bytes");
        let named: Vec<_> = holders.iter().take(NAMED_HOLDERS).map(name).collect();
        if named.is_empty() { String::new() } else { format!("; {}", named.join(", ")) }
    }

    fn seal(&mut self, object_id: ObjectId, answers: &mut Answers) {
        if let Some(object) = self.objects.get_mut(&object_id) {
            object.state = State::Sealed;
        }
        for waiter in self.waiters.remove(&object_id).unwrap_or_default() {
            match waiter {
                Waiter::Client { client, request } => self.get(client, request, object_id, answers),
                Waiter::Tokio(answer) => {
                    let _ = answer.send(());
                }
            }
        }
    }

    fn get(&mut self, client: ClientId, request: u64, object_id: ObjectId, answers: &mut Answers) {
        match self.objects.get_mut(&object_id).filter(|object| object.state == State::Sealed) {
            Some(object) => {
                *object.pins.entry(client).or_default() += 1;
                let (offset, size) = (object.offset, object.size);
                answers.push((client, FromRaylet::ObjectReady { request, object_id, offset, size }));
            }
            None => {
                let waiter = Waiter::Client { client, request };
                self.waiters.entry(object_id).or_default().push_back(waiter);
            }
        }
    }

    fn read(&self, object_id: &ObjectId, offset: u64, len: u64) -> Option<Bytes> {
        let object = self.sealed(object_id)?;
        let len = len.min(object.size.checked_sub(offset)?);
        let slice = self.pool.region().slice(object.offset + offset, len).ok()?;
        // Copied, for nothing keeps the memory from being used again once this returns.
        Some(Bytes::copy_from_slice(&slice))
    }

    fn release(&mut self, client: ClientId, object_id: ObjectId, count: u32) {
        // A name may have been used again while its first object is still read: the older one first.
        let pinned =
            |object: &&mut Object| object.object_id == object_id && object.pins.contains_key(&client);
        let doomed = self.doomed.iter_mut().find(pinned);
        let Some(object) = doomed.or_else(|| self.objects.get_mut(&object_id)) else { return };
        if let Some(pins) = object.pins.get_mut(&client) {
            *pins = pins.saturating_sub(count);
            if *pins == 0 {
                object.pins.remove(&client);
            }
        }
        self.free_doomed();
    }

    fn delete(&mut self, object_id: &ObjectId) {
        if self.objects.get(object_id).is_some_and(|object| object.state == State::Sealed) {
            self.remove(object_id);
        }
    }

    /// Takes the name away; the memory follows with the last pin.
    fn remove(&mut self, object_id: &ObjectId) {
        if let Some(mut object) = self.objects.remove(object_id) {
            object.state = State::Doomed;
            self.doomed.push(object);
            self.free_doomed();
        }
    }

    fn free_doomed(&mut self) {
        let pool = &self.pool;
        self.doomed.retain(|object| {
            let read = !object.pins.is_empty();
            if !read {
                pool.free(object.offset);
            }
            read
        });
    }

    fn tell_lost(&mut self, object_id: ObjectId, cause: &str, answers: &mut Answers) {
        for waiter in self.waiters.remove(&object_id).unwrap_or_default() {
            if let Waiter::Client { client, request } = waiter {
                let error = StoreError::Lost { cause: cause.to_owned() };
                answers.push((client, FromRaylet::ObjectUnavailable { request, object_id, error }));
            }
        }
    }

    fn forget_waiters(&mut self, gone: impl Fn(&Waiter) -> bool) {
        self.waiters.retain(|_, waiters| {
            waiters.retain(|waiter| !gone(waiter));
            !waiters.is_empty()
        });
    }

    /// Those who waited by gRPC and stopped.
    fn forget_closed(&mut self, object_id: &ObjectId) {
        if let Some(waiters) = self.waiters.get_mut(object_id) {
            waiters.retain(|waiter| !matches!(waiter, Waiter::Tokio(answer) if answer.is_closed()));
        }
    }

    fn is_open_by(&self, client: ClientId, object_id: &ObjectId) -> bool {
        self.objects.get(object_id).is_some_and(|object| object.state == State::Open(client))
    }

    fn sealed(&self, object_id: &ObjectId) -> Option<&Object> {
        self.objects.get(object_id).filter(|object| object.state == State::Sealed)
    }
}

/// Why the node cannot store a result.
#[derive(Debug)]
pub(crate) struct StoreFailure(StoreError);

impl std::fmt::Display for StoreFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let error: RayError = self.0.clone().into_error(ObjectId::nil());
        f.write_str(&error.to_string())
    }
}
