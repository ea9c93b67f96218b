//! References that are handed over: held back until their owners have granted them to the receiver.
//!
//! See [`crate::reference_counter`] for the rule. What waits here is a reply with references in it,
//! the end of a task that keeps references which came with it, or a reference that came out of band.

use ray_core::id::{ObjectId, TaskId, WorkerId};
use ray_link::message::ToRaylet;
use rustc_hash::FxHashMap;

use super::CoreWorker;
use super::state::State;
use crate::peer_message::{Kind, PeerMessage};
use crate::reference_counter::Owner;
use crate::value::Contained;

/// What waits for grants.
#[derive(Debug, Default)]
pub(super) struct Grants {
    /// Requests for grants: of whom, and for what.
    asked: FxHashMap<u64, (WorkerId, u64)>,
    held_back: FxHashMap<u64, HeldBack>,
}

/// Something that hands references over, and waits until their owners have granted them.
#[derive(Debug)]
struct HeldBack {
    missing: usize,
    borrower: WorkerId,
    /// Kept until then, one handle each.
    references: Vec<Contained>,
    then: Then,
}

/// What is done once the grants are there.
#[derive(Debug)]
pub(super) enum Then {
    /// A frame to another core worker.
    Send {
        /// To whom.
        to: Owner,
        /// Its kind.
        kind: Kind,
        /// Its payload.
        payload: Vec<u8>,
    },
    /// An item of a generator task, which goes on after it.
    SendItem {
        /// The task.
        task_id: TaskId,
        /// To whom.
        to: Owner,
        /// The payload of the frame.
        payload: Vec<u8>,
    },
    /// A message to the node.
    TellNode(ToRaylet),
    /// The grants were all that was wanted.
    Nothing,
    /// Something else waits for the same.
    Nested(Box<(Vec<Contained>, WorkerId, Self)>),
}

impl Grants {
    /// Whether something waits for grants.
    pub(super) fn is_holding_back(&self) -> bool {
        !self.held_back.is_empty()
    }
}

impl State {
    /// Does `then` as soon as each of these references is granted to `borrower` by its owner. Each
    /// has a handle for this purpose, which is dropped afterwards.
    pub(super) fn grant_then(
        &mut self,
        core: &CoreWorker,
        references: Vec<Contained>,
        borrower: WorkerId,
        then: Then,
    ) {
        let id = self.next_request();
        let mut by_owner: FxHashMap<WorkerId, (Owner, Vec<ObjectId>)> = FxHashMap::default();
        for &(object_id, owner) in &references {
            if owner.worker_id == borrower {
                // The owner needs no promise of its own.
            } else if owner.worker_id == self.me.worker_id {
                self.references.grant(object_id, borrower);
            } else {
                by_owner.entry(owner.worker_id).or_insert((owner, Vec::new())).1.push(object_id);
            }
        }
        let mut missing = 0;
        for (worker_id, (owner, object_ids)) in by_owner {
            let request = self.next_request();
            // An owner that cannot be reached is dead, and what it owned with it.
            if self.tell(core, owner, &PeerMessage::AskGrants { request, object_ids, borrower }) {
                self.grants.asked.insert(request, (worker_id, id));
                missing += 1;
            }
        }
        self.grants.held_back.insert(id, HeldBack { missing, borrower, references, then });
        self.release_held_back(core, id);
    }

    pub(super) fn on_granted(&mut self, core: &CoreWorker, request: u64) {
        let Some((_, id)) = self.grants.asked.remove(&request) else { return };
        if let Some(held_back) = self.grants.held_back.get_mut(&id) {
            held_back.missing -= 1;
            self.release_held_back(core, id);
        }
    }

    /// What a dead owner should have granted is not waited for.
    pub(super) fn on_granter_lost(&mut self, core: &CoreWorker, worker_id: WorkerId) {
        let asked = self.grants.asked.iter().filter(|(_, (owner, _))| *owner == worker_id);
        let requests: Vec<u64> = asked.map(|(&request, _)| request).collect();
        for request in requests {
            self.on_granted(core, request);
        }
    }

    fn release_held_back(&mut self, core: &CoreWorker, id: u64) {
        if self.grants.held_back.get(&id).is_none_or(|held_back| held_back.missing > 0) {
            return;
        }
        let Some(HeldBack { borrower, references, then, .. }) = self.grants.held_back.remove(&id) else {
            return;
        };
        let mut effects = Vec::new();
        for (object_id, owner) in references {
            if borrower == self.me.worker_id && owner.worker_id != borrower {
                self.references.add_grant(object_id);
            }
            self.references.remove_local(object_id, &mut effects);
        }
        self.run_then(core, then);
        self.apply_reference_effects(core, effects);
    }

    pub(super) fn run_then(&mut self, core: &CoreWorker, then: Then) {
        match then {
            Then::Send { to, kind, payload } => {
                self.send(core, to, kind, |out| out.extend_from_slice(&payload));
            }
            Then::SendItem { task_id, to, payload } => {
                self.send(core, to, Kind::StreamItem, |out| out.extend_from_slice(&payload));
                self.on_item_sent(task_id);
            }
            Then::TellNode(message) => self.tell_node(&message),
            Then::Nothing => {}
            Then::Nested(nested) => {
                let (references, borrower, then) = *nested;
                self.grant_then(core, references, borrower, then);
            }
        }
    }
}
