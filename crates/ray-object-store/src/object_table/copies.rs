//! Copies: objects of other nodes that are kept here, and objects of this node that others have copied.
//!
//! A copy is like any other object, but nobody here owns it, and it is dropped where others are spilled: it can be
//! pulled again. It goes with its original: the node that has that knows who has pulled it, and recalls the copies.

use std::time::Instant;

use ray_core::id::{NodeId, ObjectId, WorkerId};

use super::ObjectTable;
use super::answer::{ClientId, Effect};
use super::space::WaitingCreate;
use super::waiting::Reader;

impl ObjectTable {
    /// A client wants to write a copy of an object of the node `from`; the answer is as that to
    /// [`Self::on_create`]. What is here already stays what it is, copy or not.
    pub fn on_create_copy(
        &mut self,
        now: Instant,
        (client, request): (ClientId, u64),
        object_id: ObjectId,
        size: u64,
        from: NodeId,
        out: &mut Vec<Effect>,
    ) {
        let deadline = now + self.config.full_grace;
        let (owner, copy_of) = (WorkerId::NIL, Some(from));
        let create = WaitingCreate { client, request, object_id, size, owner, copy_of, deadline };
        self.on_wanted_room(now, create, out);
    }

    /// A client reads an object for another node, which keeps a copy of it from now on. As [`Self::on_get`], but
    /// false, and not done, if there is no such object: nobody waits here for one to be made.
    pub fn on_lend(
        &mut self,
        now: Instant,
        (client, request): (ClientId, u64),
        object_id: ObjectId,
        reader: Reader,
        to: Option<NodeId>,
        out: &mut Vec<Effect>,
    ) -> bool {
        if self.entries.get(&object_id).is_none_or(|entry| entry.is_doomed) {
            return false;
        }
        if let Some(node_id) = to {
            self.lent.entry(object_id).or_default().insert(node_id);
        }
        self.on_get(now, (client, request), &[object_id], reader, out);
        true
    }

    /// The originals of these copies are gone. What is no copy of an object of that node is left alone, and
    /// copies that are being written are left to their writers.
    pub fn on_recall(
        &mut self,
        now: Instant,
        from: NodeId,
        object_ids: impl IntoIterator<Item = ObjectId>,
        out: &mut Vec<Effect>,
    ) {
        for object_id in object_ids {
            if self.entries.get(&object_id).is_some_and(|entry| entry.is_copy_of(from)) {
                self.doom(object_id, &format!("node {from} has deleted it"), out);
            }
        }
        self.make_progress(now, out);
    }

    /// As [`Self::on_recall`] of all copies of objects of this node.
    pub fn on_recall_all(&mut self, now: Instant, from: NodeId, out: &mut Vec<Effect>) {
        let copies = self.entries.iter().filter(|(_, entry)| entry.is_copy_of(from));
        for object_id in copies.map(|(&object_id, _)| object_id).collect::<Vec<_>>() {
            self.doom(object_id, &format!("node {from} has deleted it"), out);
        }
        self.make_progress(now, out);
    }

    /// A node is dead, and with it its objects and the copies that it had.
    pub fn on_node_lost(&mut self, now: Instant, node_id: NodeId, out: &mut Vec<Effect>) {
        self.lent.retain(|_, nodes| {
            nodes.remove(&node_id);
            !nodes.is_empty()
        });
        self.on_recall_all(now, node_id, out);
    }

    /// A client does not want to write an object after all; what still waits for room is withdrawn, without an answer.
    pub fn on_withdraw(
        &mut self,
        now: Instant,
        client: ClientId,
        object_id: ObjectId,
        out: &mut Vec<Effect>,
    ) {
        self.creates.retain(|create| (create.client, create.object_id) != (client, object_id));
        self.make_progress(now, out);
    }

    /// Whether a request still waits for an object.
    pub fn is_awaited_by(&self, client: ClientId, request: u64, object_id: ObjectId) -> bool {
        self.clients.get(&client).is_some_and(|entry| entry.waiting.contains(&(request, object_id)))
    }

    /// The object goes: its copies on other nodes have to go, too.
    pub(super) fn recall(&mut self, object_id: ObjectId, out: &mut Vec<Effect>) {
        if !self.lent.is_empty()
            && let Some(nodes) = self.lent.remove(&object_id)
        {
            out.push(Effect::Recall { object_id, nodes: nodes.into_iter().collect() });
        }
    }
}
