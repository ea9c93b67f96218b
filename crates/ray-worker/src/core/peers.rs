//! Connections to other core workers, and their messages.

use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ray_core::error::RayResult;
use ray_core::id::{FunctionId, NodeId, ObjectId, WorkerId};
use ray_core::serialize;
use ray_link::message::connection_error;
use ray_link::{Connection, Frame, Interest, Readiness};
use rustc_hash::{FxHashMap, FxHashSet};

use super::cancellation::Cancellation;
use super::state::{State, now};
use super::{CoreWorker, FIRST_PEER_TOKEN, LISTENER_TOKEN, worker_socket};
use crate::codec::damaged;
use crate::peer_message::{
    DefineFunction, ExportedFunction, Hello, Kind, PeerMessage, StreamItem, TaskReply,
};
use crate::reference_counter::{Effect, Owner};
use crate::value::Value;

/// A connection with more than this queued is written at once, in bytes.
const FLUSH_AT: usize = 16 * 1024;

/// A connection that was not written to for this long is written to at once: a lone message does not
/// wait, and of many in a row each write takes along what came since the last.
const FLUSH_EVERY: Duration = Duration::from_micros(100);

/// How long nobody is accepted after the process ran out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The other core workers that this one is connected to.
#[derive(Debug, Default)]
pub(super) struct Peers {
    slots: Vec<Option<Peer>>,
    by_worker: FxHashMap<WorkerId, usize>,
    /// Slots with something queued.
    dirty: Vec<usize>,
    /// Processes to which no connection could be made: treated as lost at the next settling.
    unreachable: Vec<(WorkerId, String)>,
    /// When connections are accepted again, after this process ran out of descriptors.
    pub(super) accept_again: Option<Instant>,
}

/// A function that processes may have run here, as long as one of those who defined it is connected.
#[derive(Debug)]
pub(super) struct Defined {
    pub(super) pickled: Bytes,
    pub(super) name: Arc<str>,
    /// After how many calls of it this process ends; 0 for never.
    pub(super) max_calls: u32,
    /// Connections that defined it.
    connections: usize,
}

#[derive(Debug)]
struct Peer {
    connection: Connection,
    /// Unknown until it says hello.
    worker_id: Option<WorkerId>,
    sent_functions: FxHashSet<FunctionId>,
    defined_functions: FxHashSet<FunctionId>,
    dirty: bool,
    flushed_at: Instant,
}

impl Peers {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn add(
        &mut self,
        core: &CoreWorker,
        connection: Connection,
        worker_id: Option<WorkerId>,
    ) -> Option<usize> {
        let slot = self.slots.iter().position(Option::is_none).unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        if let Err(error) = core.sockets.add(&connection, FIRST_PEER_TOKEN + slot as u64, Interest::Read) {
            tracing::error!(%error, "a connection cannot be waited for");
            return None;
        }
        let (sent_functions, defined_functions) = (FxHashSet::default(), FxHashSet::default());
        let (dirty, flushed_at) = (false, now());
        let peer = Peer { connection, worker_id, sent_functions, defined_functions, dirty, flushed_at };
        self.slots[slot] = Some(peer);
        Some(slot)
    }

    /// All connections of this process. Two that connect to each other at once have two.
    fn slots_of(&self, worker_id: WorkerId) -> Vec<usize> {
        let of_worker = |(_, peer): &(usize, &Option<Peer>)| {
            peer.as_ref().is_some_and(|peer| peer.worker_id == Some(worker_id))
        };
        self.slots.iter().enumerate().filter(of_worker).map(|(slot, _)| slot).collect()
    }

    /// Whether something is queued for anybody.
    pub(super) fn has_queued(&self) -> bool {
        let dirty = self.dirty.iter().filter_map(|&slot| self.slots[slot].as_ref());
        dirty.into_iter().any(|peer| peer.connection.queued_bytes() > 0)
    }

    fn mark(&mut self, slot: usize) {
        if let Some(peer) = &mut self.slots[slot]
            && !peer.dirty
        {
            peer.dirty = true;
            self.dirty.push(slot);
        }
    }
}

impl State {
    pub(super) fn accept_peers(&mut self, core: &CoreWorker) {
        loop {
            let Some(listener) = &self.listener else { return };
            match listener.accept(self.max_frame) {
                Ok(Some(connection)) => drop(self.peers.add(core, connection, None)),
                Ok(None) => return,
                Err(error) => {
                    // Whoever waits goes on waiting, and would be told of at once again.
                    tracing::warn!(%error, "a connection cannot be accepted: trying again in a moment");
                    let paused = core.sockets.modify(listener, LISTENER_TOKEN, Interest::None);
                    self.peers.accept_again = paused.is_ok().then(|| now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// Accepts connections again after a pause.
    pub(super) fn resume_accepting(&mut self, core: &CoreWorker, now: Instant) {
        if let (Some(at), Some(listener)) = (self.peers.accept_again, &self.listener)
            && at <= now
        {
            let resumed = core.sockets.modify(listener, LISTENER_TOKEN, Interest::Read);
            self.peers.accept_again = resumed.is_err().then(|| now + ACCEPT_PAUSE);
        }
    }

    /// The connection to this process, made if there is none.
    fn peer_of(&mut self, core: &CoreWorker, at: Owner) -> Option<usize> {
        if let Some(&slot) = self.peers.by_worker.get(&at.worker_id) {
            return Some(slot);
        }
        // Whatever its node, for the nodes of one machine share the folder.
        let socket = worker_socket(&self.sockets_dir, at.worker_id);
        let cause = match Connection::connect(&socket, self.max_frame) {
            Ok(connection) => match self.greet(core, at, connection) {
                Some(slot) => return Some(slot),
                None => "this process cannot wait for more connections".to_owned(),
            },
            Err(error) => format!("it cannot be reached: {error}"),
        };
        self.peers.unreachable.push((at.worker_id, cause));
        self.flush_soon();
        None
    }

    /// Whether nobody listens where this process did: it has ended.
    pub(super) fn is_deserted(&self, worker_id: WorkerId) -> bool {
        Connection::connect(&worker_socket(&self.sockets_dir, worker_id), self.max_frame)
            .is_err_and(|error| error.is_nobody_there())
    }

    fn greet(&mut self, core: &CoreWorker, at: Owner, connection: Connection) -> Option<usize> {
        let slot = self.peers.add(core, connection, Some(at.worker_id))?;
        self.peers.by_worker.insert(at.worker_id, slot);
        let hello = Hello {
            worker_id: self.me.worker_id,
            node_id: self.me.node_id,
            job_id: self.job_id,
            job_config: self.job_config.clone(),
        };
        self.queue(slot, Kind::Hello, |out| encode(out, &hello));
        Some(slot)
    }

    fn queue(&mut self, slot: usize, kind: Kind, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(peer) = &mut self.peers.slots[slot] else { return };
        peer.connection.queue(kind as u8, write);
        self.peers.mark(slot);
        self.flush_soon();
    }

    /// Queues a frame for this process. Returns false if it cannot be reached; then its death follows.
    pub(super) fn send(
        &mut self,
        core: &CoreWorker,
        to: Owner,
        kind: Kind,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        let Some(slot) = self.peer_of(core, to) else { return false };
        self.queue(slot, kind, write);
        if let Some(peer) = &self.peers.slots[slot]
            && (peer.connection.queued_bytes() >= FLUSH_AT || peer.flushed_at.elapsed() >= FLUSH_EVERY)
        {
            self.flush_peer(core, slot);
        }
        true
    }

    /// Queues a message for this process. Returns false if it cannot be reached; then its death follows.
    pub(super) fn tell(&mut self, core: &CoreWorker, to: Owner, message: &PeerMessage) -> bool {
        self.send(core, to, Kind::Other, |out| encode(out, message))
    }

    /// Makes sure that this process knows the function before the next task. False if unreachable.
    pub(super) fn define_function(
        &mut self,
        core: &CoreWorker,
        to: Owner,
        function: &ExportedFunction,
    ) -> bool {
        let Some(slot) = self.peer_of(core, to) else { return false };
        let Some(peer) = &mut self.peers.slots[slot] else { return false };
        if peer.sent_functions.insert(function.function_id) {
            let define = DefineFunction {
                function_id: function.function_id,
                pickled: function.pickled.clone(),
                name: function.name.clone(),
                max_calls: function.max_calls,
            };
            self.queue(slot, Kind::DefineFunction, |out| encode(out, &define));
        }
        true
    }

    /// Writes now what is queued for this process, for it has nothing to do until it comes.
    pub(super) fn flush_to(&mut self, core: &CoreWorker, worker_id: WorkerId) {
        if let Some(&slot) = self.peers.by_worker.get(&worker_id) {
            self.flush_peer(core, slot);
        }
    }

    pub(super) fn flush_peers(&mut self, core: &CoreWorker) {
        for slot in std::mem::take(&mut self.peers.dirty) {
            if let Some(peer) = &mut self.peers.slots[slot] {
                peer.dirty = false;
            }
            self.flush_peer(core, slot);
        }
    }

    fn flush_peer(&mut self, core: &CoreWorker, slot: usize) {
        let Some(peer) = &mut self.peers.slots[slot] else { return };
        if peer.connection.queued_bytes() == 0 {
            return;
        }
        peer.flushed_at = now();
        match peer.connection.flush() {
            Ok(true) => {}
            Ok(false) => {
                let token = FIRST_PEER_TOKEN + slot as u64;
                // Only a lost connection is not in the set, and that is noticed by reading.
                let _ = core.sockets.modify(&peer.connection, token, Interest::ReadWrite);
            }
            // Its end is noticed by reading, after what it said last.
            Err(error) => tracing::debug!(%error, "a peer cannot be written to"),
        }
    }

    pub(super) fn on_peer_ready(&mut self, core: &CoreWorker, slot: usize, ready: Readiness) {
        if ready.writable {
            self.on_peer_writable(core, slot);
        }
        if !ready.readable {
            return;
        }
        let Some(Some(peer)) = self.peers.slots.get_mut(slot) else { return };
        // Frames that came before an end still count.
        let filled = peer.connection.fill();
        let taken = self.take_peer_frames(core, slot);
        let result = filled.map(drop).map_err(|error| connection_error("a core worker", error));
        if let Err(error) = taken {
            tracing::error!(error = %error.chain(), "a core worker broke the protocol; its connection is closed");
            self.on_peer_lost(core, slot);
        } else if result.is_err() {
            self.on_peer_lost(core, slot);
        }
    }

    fn on_peer_writable(&mut self, core: &CoreWorker, slot: usize) {
        let Some(Some(peer)) = self.peers.slots.get_mut(slot) else { return };
        match peer.connection.flush() {
            Ok(true) => {
                let token = FIRST_PEER_TOKEN + slot as u64;
                // As above.
                let _ = core.sockets.modify(&peer.connection, token, Interest::Read);
            }
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "a peer cannot be written to"),
        }
        if let Some(worker_id) = peer.worker_id {
            self.on_peer_drained(worker_id);
        }
    }

    fn take_peer_frames(&mut self, core: &CoreWorker, slot: usize) -> RayResult<()> {
        let Some(Some(peer)) = self.peers.slots.get_mut(slot) else { return Ok(()) };
        let mut reader = peer.connection.lend_reader();
        let result = loop {
            match reader.next_frame() {
                Ok(None) => break Ok(()),
                Ok(Some(frame)) => {
                    if let Err(error) = self.on_peer_frame(core, slot, frame) {
                        break Err(error);
                    }
                }
                Err(error) => break Err(connection_error("a core worker", error.into())),
            }
        };
        if let Some(peer) = &mut self.peers.slots[slot] {
            peer.connection.restore_reader(reader);
        }
        result
    }

    fn on_peer_frame(&mut self, core: &CoreWorker, slot: usize, frame: Frame<'_>) -> RayResult<()> {
        let kind = Kind::try_from(frame.kind)?;
        if kind == Kind::Hello {
            return self.on_hello(slot, decode(frame)?);
        }
        let Some(worker_id) = self.peers.slots[slot].as_ref().and_then(|peer| peer.worker_id) else {
            return Err(damaged("something else than a hello came first".to_owned()));
        };
        match kind {
            Kind::Hello => {}
            Kind::DefineFunction => {
                self.on_function_defined(slot, decode(frame)?);
            }
            Kind::PushTask => self.on_task_pushed(core, worker_id, frame.payload)?,
            Kind::TaskReply => self.on_task_reply(core, worker_id, TaskReply::read(frame.payload)?),
            Kind::StreamItem => self.on_stream_item(core, worker_id, StreamItem::read(frame.payload)?),
            Kind::Other => self.on_peer_message(core, worker_id, decode(frame)?),
        }
        Ok(())
    }

    fn on_hello(&mut self, slot: usize, hello: Hello) -> RayResult<()> {
        if let Some(peer) = &mut self.peers.slots[slot] {
            // It stays who it is, for what was with it is given up by that name.
            if peer.worker_id.is_some() {
                return Err(damaged("a second hello".to_owned()));
            }
            peer.worker_id = Some(hello.worker_id);
        }
        // Both sides may have connected at once: then each sends on the connection that it made.
        self.peers.by_worker.entry(hello.worker_id).or_insert(slot);
        self.on_job(hello.job_id, hello.job_config);
        Ok(())
    }

    fn on_peer_message(&mut self, core: &CoreWorker, from: WorkerId, message: PeerMessage) {
        let sender = Owner { worker_id: from, node_id: NodeId::nil() };
        match message {
            PeerMessage::GiveBack { task_ids } => self.on_given_back(core, from, &task_ids),
            PeerMessage::Cancel { task_id, recursive, force } => {
                self.on_cancel(core, sender, task_id, Cancellation { force, recursive });
            }
            PeerMessage::CancelledChildren { task_id } => self.on_cancelled_children(core, task_id),
            PeerMessage::CancelTask { object_id, recursive, force } => {
                self.on_cancel_task(core, object_id, Cancellation { force, recursive });
            }
            PeerMessage::Leased { resources, devices } => self.on_leased(resources, devices),
            PeerMessage::GetObject { object_id } => self.on_get_object(core, sender, object_id),
            PeerMessage::ObjectValue { object_id, value, contained } => {
                self.on_object_value(core, from, object_id, value, &contained);
            }
            PeerMessage::AskGrants { request, object_ids, borrower } => {
                for object_id in object_ids {
                    self.references.grant(object_id, borrower);
                }
                self.tell(core, sender, &PeerMessage::Granted { request });
            }
            PeerMessage::Granted { request } => self.on_granted(core, request),
            PeerMessage::ReturnGrants { grants } => {
                let mut effects = Vec::new();
                for (object_id, count) in grants {
                    self.references.return_grants(object_id, from, count, &mut effects);
                }
                self.apply_reference_effects(core, effects);
            }
            PeerMessage::StreamRead { task_id, read } => self.on_stream_read(from, task_id, read),
            PeerMessage::StopStream { task_id } => self.on_stop_stream(core, sender, task_id),
        }
    }

    /// How much is queued for this process and not written, in bytes.
    pub(super) fn queued_for(&self, worker_id: WorkerId) -> usize {
        let slot = self.peers.by_worker.get(&worker_id);
        let peer = slot.and_then(|&slot| self.peers.slots[slot].as_ref());
        peer.map_or(0, |peer| peer.connection.queued_bytes())
    }

    fn on_function_defined(&mut self, slot: usize, define: DefineFunction) {
        let Some(peer) = &mut self.peers.slots[slot] else { return };
        if peer.defined_functions.insert(define.function_id) {
            let name = define.name.into();
            let (pickled, max_calls) = (define.pickled, define.max_calls);
            let defined = || Defined { pickled, name, max_calls, connections: 0 };
            self.functions.entry(define.function_id).or_insert_with(defined).connections += 1;
        }
    }

    fn on_peer_lost(&mut self, core: &CoreWorker, slot: usize) {
        let worker_id = self.peers.slots[slot].as_ref().and_then(|peer| peer.worker_id);
        match worker_id {
            Some(worker_id) => {
                self.drain_peer(core, worker_id);
                self.on_worker_lost(core, worker_id, None);
            }
            None => self.drop_connection(core, slot),
        }
    }

    /// Reads what a process said before it ended, so that no reply is lost with it.
    pub(super) fn drain_peer(&mut self, core: &CoreWorker, worker_id: WorkerId) {
        for slot in self.peers.slots_of(worker_id) {
            while let Some(peer) = &mut self.peers.slots[slot] {
                let more = matches!(peer.connection.fill(), Ok(true));
                if !more || self.take_peer_frames(core, slot).is_err() {
                    break;
                }
            }
        }
    }

    /// Closes all connections to this process.
    pub(super) fn drop_connections(&mut self, core: &CoreWorker, worker_id: WorkerId) {
        self.peers.by_worker.remove(&worker_id);
        for slot in self.peers.slots_of(worker_id) {
            self.drop_connection(core, slot);
        }
    }

    fn drop_connection(&mut self, core: &CoreWorker, slot: usize) {
        let Some(peer) = self.peers.slots[slot].take() else { return };
        if peer.connection.is_amid_frame() {
            let worker_id = peer.worker_id.unwrap_or(WorkerId::NIL);
            tracing::warn!(%worker_id, "a connection of a core worker ended amid a frame");
        }
        // The descriptor closes with it, but a copy in a forked process would keep it in the set.
        let _ = core.sockets.remove(&peer.connection);
        for function_id in peer.defined_functions {
            if let Entry::Occupied(mut entry) = self.functions.entry(function_id) {
                entry.get_mut().connections -= 1;
                if entry.get().connections == 0 {
                    entry.remove();
                }
            }
        }
    }

    /// What follows from what happened, until nothing does.
    pub(super) fn settle(&mut self, core: &CoreWorker) {
        loop {
            if let Some((worker_id, cause)) = self.peers.unreachable.pop() {
                self.on_lease_unreachable(core, worker_id);
                self.on_worker_lost(core, worker_id, Some(cause));
            } else if self.settle_unreachable_node(core) {
                // There may be more.
            } else if let Some(task_id) = self.shared.ready_tasks.pop_front() {
                self.on_task_ready(core, task_id);
            } else if let Some(actor_id) = self.shared.unreferenced_actors.pop_front() {
                self.end_unreferenced_actor(core, actor_id);
            } else if self.answer_next_peer(core) {
                // There may be more.
            } else {
                break;
            }
        }
        self.delete_freed(core);
        self.leave_if_unneeded();
    }

    /// Does what the reference counter says.
    pub(super) fn apply_reference_effects(&mut self, core: &CoreWorker, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Free(object_id) => {
                    self.forget_pins(object_id);
                    let (value, told) = self.memory.remove(object_id);
                    self.tell_in_vain(object_id, told);
                    if let Some(actor_id) = self.shared.handles.remove(&object_id) {
                        self.shared.unreferenced_actors.push_back(actor_id);
                    }
                    match value {
                        Some(Value::Stored { node_id, .. }) => {
                            self.shared.spilled.remove(&object_id);
                            self.free_stored(object_id, node_id);
                            self.flush_soon();
                        }
                        Some(Value::Failed(failure)) => self.on_failure_dropped(object_id, *failure),
                        Some(Value::Inline(_)) | None => {}
                    }
                    self.on_unreferenced(core, object_id);
                    self.tell_released(object_id);
                }
                Effect::ReturnGrants { owner, object_id, grants } => {
                    self.forget_borrowed(object_id);
                    if grants > 0 {
                        let message = PeerMessage::ReturnGrants { grants: vec![(object_id, grants)] };
                        self.tell(core, owner, &message);
                    }
                }
            }
        }
    }

    fn forget_borrowed(&mut self, object_id: ObjectId) {
        self.forget_pins(object_id);
        let (_, told) = self.memory.remove(object_id);
        self.tell_in_vain(object_id, told);
        self.shared.fetching.remove(&object_id);
    }
}

fn encode<T: serde::Serialize>(out: &mut Vec<u8>, message: &T) {
    out.extend(serialize::to_bytes(message).expect("messages between workers can be encoded"));
}

fn decode<T: serde::de::DeserializeOwned>(frame: Frame<'_>) -> RayResult<T> {
    serialize::from_bytes(frame.payload).map_err(|error| damaged(error.chain()))
}

/// Bytes that outlive their frame.
pub(super) fn keep(payload: &[u8]) -> Bytes {
    Bytes::copy_from_slice(payload)
}
