//! Links to other nodes than the own one, on which this process is a visitor.
//!
//! ```text
//!            first needed               its end, or that of the node
//!  (none) -----------------> connected -----------------------------> (none)
//! ```
//! One link to a node serves all that this process wants there: leases, the deletion of objects that it owns, what
//! workers of its job print. Its end tells both sides at once that the other is gone: the node takes back the leases,
//! and this process gives up what ran on them.
//!
//! The nodes of one machine listen in one folder, so that nobody has to tell where.

use ray_core::error::RayError;
use ray_core::id::NodeId;
use ray_link::message::{FromRaylet, LinkMessage as _, Role, ToRaylet, connection_error, node_socket};
use ray_link::{Connection, Interest, Readiness};
use rustc_hash::FxHashMap;

use super::state::{State, Untold};
use super::{CoreWorker, FIRST_LINK_TOKEN, Notification, worker_socket};

/// The links to other nodes.
#[derive(Debug, Default)]
pub(super) struct NodeLinks {
    slots: Vec<Option<NodeLink>>,
    by_node: FxHashMap<NodeId, usize>,
    /// Something is queued on one of them.
    is_dirty: bool,
    /// Nodes that could not be reached, and why: lost at the next settling.
    unreachable: Vec<(NodeId, String)>,
}

#[derive(Debug)]
struct NodeLink {
    node_id: NodeId,
    connection: Connection,
    /// Requests for the logs that were printed so far, which are not answered.
    flushes: Vec<u64>,
    /// Why the node has said that it ends.
    farewell: Option<String>,
}

impl NodeLinks {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The nodes to which there is a link.
    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.slots.iter().flatten().map(|link| link.node_id)
    }

    /// Whether something is queued for one of them.
    pub(super) fn has_queued(&self) -> bool {
        self.is_dirty && self.slots.iter().flatten().any(|link| link.connection.queued_bytes() > 0)
    }
}

impl State {
    /// Says something to a node: to the own one, or as a visitor to another, by a link that is made if there is none.
    /// Returns false if it cannot be reached; then its loss follows.
    pub(super) fn tell_node_at(&mut self, core: &CoreWorker, node_id: NodeId, message: &ToRaylet) -> bool {
        if node_id == self.me.node_id {
            self.tell_node(message);
            return true;
        }
        let Some(link) = self.link_to(core, node_id) else { return false };
        message.queue(&mut link.connection).expect("messages of the link can be encoded");
        if let ToRaylet::FlushLogs { request } = message {
            link.flushes.push(*request);
        }
        self.node_links.is_dirty = true;
        self.flush_soon();
        true
    }

    /// Has a link to another node, without saying anything there yet.
    pub(super) fn visit_node(&mut self, core: &CoreWorker, node_id: NodeId) {
        if node_id != self.me.node_id && self.link_to(core, node_id).is_some() {
            self.node_links.is_dirty = true;
            self.flush_soon();
        }
    }

    fn link_to(&mut self, core: &CoreWorker, node_id: NodeId) -> Option<&mut NodeLink> {
        let slot = match self.node_links.by_node.get(&node_id) {
            Some(&slot) => slot,
            None => match self.open_link(core, node_id) {
                Ok(slot) => slot,
                Err(cause) => {
                    self.node_links.unreachable.push((node_id, cause));
                    self.flush_soon();
                    return None;
                }
            },
        };
        self.node_links.slots[slot].as_mut()
    }

    fn open_link(&mut self, core: &CoreWorker, node_id: NodeId) -> Result<usize, String> {
        let path = node_socket(&self.sockets_dir, node_id);
        let mut connection = Connection::connect(&path, self.max_frame).map_err(|error| error.to_string())?;
        let links = &mut self.node_links;
        let slot = links.slots.iter().position(Option::is_none).unwrap_or(links.slots.len());
        core.sockets
            .add(&connection, FIRST_LINK_TOKEN + slot as u64, Interest::Read)
            .map_err(|error| format!("this process cannot wait for it: {error}"))?;
        // Nothing has to be waited for: what follows is taken in after this.
        ToRaylet::Register {
            worker_id: self.me.worker_id,
            role: Role::Visitor { drives: (!self.execution.is_worker).then_some(self.job_id) },
            pid: std::process::id(),
            socket_path: worker_socket(&self.sockets_dir, self.me.worker_id).to_string_lossy().into_owned(),
        }
        .queue(&mut connection)
        .expect("messages of the link can be encoded");
        if slot == links.slots.len() {
            links.slots.push(None);
        }
        links.slots[slot] = Some(NodeLink { node_id, connection, flushes: Vec::new(), farewell: None });
        links.by_node.insert(node_id, slot);
        Ok(slot)
    }

    pub(super) fn on_node_link_ready(&mut self, core: &CoreWorker, slot: usize, ready: Readiness) {
        if ready.readable {
            // Frames that came before an end still count.
            let Some(Some(link)) = self.node_links.slots.get_mut(slot) else { return };
            let filled = link.connection.fill().map(drop);
            let taken = self.take_node_link_frames(core, slot);
            let filled = filled.map_err(|error| connection_error("another node", error));
            if let Err(error) = filled.and(taken) {
                self.on_node_link_lost(core, slot, &error);
                return;
            }
        }
        if ready.writable {
            self.flush_node_link(core, slot);
        }
    }

    fn take_node_link_frames(&mut self, core: &CoreWorker, slot: usize) -> Result<(), RayError> {
        let Some(Some(link)) = self.node_links.slots.get_mut(slot) else { return Ok(()) };
        let node_id = link.node_id;
        let mut reader = link.connection.lend_reader();
        let result = loop {
            match reader.next_frame() {
                Ok(None) => break Ok(()),
                Ok(Some(frame)) => {
                    let taken = FromRaylet::read(frame)
                        .and_then(|message| self.on_node_link_message(core, slot, node_id, message));
                    if let Err(error) = taken {
                        break Err(error);
                    }
                }
                Err(error) => break Err(connection_error("another node", error.into())),
            }
        };
        if let Some(Some(link)) = self.node_links.slots.get_mut(slot) {
            link.connection.restore_reader(reader);
        }
        result
    }

    fn on_node_link_message(
        &mut self,
        core: &CoreWorker,
        slot: usize,
        node_id: NodeId,
        message: FromRaylet,
    ) -> Result<(), RayError> {
        match message {
            // It is taken, and needs no shared memory there.
            FromRaylet::Registered { .. } => {}
            FromRaylet::Rejected { reason } => {
                return Err(RayError::Unavailable { peer: format!("node {node_id}"), cause: reason });
            }
            FromRaylet::Exit { reason } => {
                if let Some(Some(link)) = self.node_links.slots.get_mut(slot) {
                    link.farewell = Some(reason);
                }
            }
            FromRaylet::LogsFlushed { request } => {
                if let Some(Some(link)) = self.node_links.slots.get_mut(slot) {
                    link.flushes.retain(|&other| other != request);
                }
                self.untold.push_back(Untold::Flushed(request));
            }
            FromRaylet::WorkerDied { worker_id, cause, out_of_memory } => {
                self.on_worker_died(core, worker_id, cause, out_of_memory);
            }
            FromRaylet::LogLines { pid, name, is_stderr, lines } => {
                self.notify(Notification::Log { pid, name, is_stderr, lines });
            }
            FromRaylet::LeaseGranted { class, lease_id, worker, devices } => {
                self.on_lease_granted(core, class, lease_id, worker, devices);
            }
            FromRaylet::LeaseInfeasible { class, reason } => self.on_lease_infeasible(class, &reason),
            FromRaylet::RuntimeEnvFailed { class, reason } => {
                self.on_runtime_env_failed(core, class, Some(node_id), &reason);
            }
            FromRaylet::LeaseUnschedulable { class, kind, reason } => {
                self.on_lease_unschedulable(core, class, Some(node_id), kind, &reason);
            }
            FromRaylet::LeaseContention { class, contended } => {
                self.on_lease_contention(core, class, Some(node_id), contended);
            }
            FromRaylet::ObjectSpilled { object_id } => self.on_object_spilled(object_id),
            other => {
                let reason = format!("it told a visitor {other:?}");
                return Err(RayError::Protocol { peer: format!("node {node_id}"), reason });
            }
        }
        Ok(())
    }

    /// A node is dead, or cannot be reached any more.
    fn on_node_link_lost(&mut self, core: &CoreWorker, slot: usize, error: &RayError) {
        let Some(link) = self.node_links.slots[slot].take() else { return };
        self.node_links.by_node.remove(&link.node_id);
        // The descriptor closes with it, but a copy in a forked process would keep it in the set.
        let _ = core.sockets.remove(&link.connection);
        for request in link.flushes {
            self.untold.push_back(Untold::Flushed(request));
        }
        let cause = match (link.farewell, error) {
            (Some(reason), _) => format!("it has ended: {reason}"),
            (None, RayError::NodeDied { cause, .. } | RayError::Unavailable { cause, .. }) => cause.clone(),
            (None, other) => other.chain(),
        };
        self.tell_unreachable(link.node_id, &cause);
        self.on_node_lost(core, link.node_id, &cause);
    }

    /// Gives up what is on a node to which no link can be made; returns whether there was one.
    pub(super) fn settle_unreachable_node(&mut self, core: &CoreWorker) -> bool {
        let Some((node_id, cause)) = self.node_links.unreachable.pop() else { return false };
        self.tell_unreachable(node_id, &cause);
        self.on_node_lost(core, node_id, &format!("it cannot be reached: {cause}"));
        true
    }

    /// Has the own node send this process elsewhere, or there again after a while.
    fn tell_unreachable(&mut self, node_id: NodeId, cause: &str) {
        self.tell_node(&ToRaylet::NodeUnreachable { node_id, cause: cause.to_owned() });
    }

    /// The control plane holds this node for dead: whatever it says from now on does not count.
    pub(super) fn on_node_died(&mut self, core: &CoreWorker, node_id: NodeId, cause: &str) {
        if let Some(&slot) = self.node_links.by_node.get(&node_id) {
            let error = RayError::NodeDied { node_id, cause: cause.to_owned() };
            self.on_node_link_lost(core, slot, &error);
        }
    }

    /// Writes what is queued on links to other nodes.
    pub(super) fn flush_node_links(&mut self, core: &CoreWorker) {
        if std::mem::take(&mut self.node_links.is_dirty) {
            for slot in 0..self.node_links.slots.len() {
                self.flush_node_link(core, slot);
            }
        }
    }

    fn flush_node_link(&mut self, core: &CoreWorker, slot: usize) {
        let Some(Some(link)) = self.node_links.slots.get_mut(slot) else { return };
        if link.connection.queued_bytes() == 0 {
            return;
        }
        match link.connection.flush() {
            Ok(all) => {
                let interest = if all { Interest::Read } else { Interest::ReadWrite };
                // Only a lost link is not in the set, and that is noticed by reading.
                let _ = core.sockets.modify(&link.connection, FIRST_LINK_TOKEN + slot as u64, interest);
            }
            // Its end is noticed by reading, after what it said last.
            Err(error) => tracing::debug!(%error, "the link to another node cannot be written"),
        }
    }
}
