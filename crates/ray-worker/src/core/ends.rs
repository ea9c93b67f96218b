//! Processes that are lost, and how they ended.
//!
//! ```text
//!                    connection closed                the node tells of its end
//!   (connected) -----------------------> [suspect] ------------------------------> dead
//!                                         |     |    the node is silent, and nobody    ^
//!                                         |     +--- listens where it did -------------+
//!                                         v
//!                                  only the connection was lost
//! ```
//! What was with a suspect is given up at once: its leases, the calls that were sent to it. What depends
//! on its end (errors that name the cause, the objects that it owns, those that it borrows) waits for
//! the node's word, which follows within moments. Of processes on other nodes it says nothing, unless this
//! process has a link to theirs.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ray_core::id::{LeaseId, NodeId, ObjectId, WorkerId};
use ray_link::message::ToRaylet;
use rustc_hash::{FxHashMap, FxHashSet};

use super::CoreWorker;
use super::state::{State, now};
use crate::peer_message::PeerMessage;
use crate::reference_counter::Owner;
use crate::value::{Failure, Value};

/// Ends that are remembered, for errors that name them.
const REMEMBERED_CAUSES: usize = 1000;

/// How long the node's word on a suspect is waited for.
pub(super) const CAUSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What is known of ends.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// How processes ended, the newest last.
    causes: VecDeque<(WorkerId, String)>,
    /// Those among them that were ended because memory ran low.
    out_of_memory: FxHashSet<WorkerId>,
    /// Those among them that ended with their node.
    with_node: FxHashMap<WorkerId, NodeId>,
    suspects: Vec<Suspect>,
}

#[derive(Debug)]
struct Suspect {
    worker_id: WorkerId,
    /// The lease on it that this process held, and its node.
    lease: Option<(LeaseId, NodeId)>,
    /// Why nobody could connect to it; nothing if a connection was closed.
    unreachable: Option<String>,
    give_up_at: Instant,
}

impl Ends {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.suspects.iter().map(|suspect| suspect.give_up_at).min()
    }

    fn note(&mut self, worker_id: WorkerId, cause: String) {
        self.causes.push_back((worker_id, cause));
        if self.causes.len() > REMEMBERED_CAUSES
            && let Some((forgotten, _)) = self.causes.pop_front()
        {
            self.out_of_memory.remove(&forgotten);
            self.with_node.remove(&forgotten);
        }
    }

    fn take_overdue(&mut self, now: Instant) -> Vec<Suspect> {
        let (overdue, rest) =
            std::mem::take(&mut self.suspects).into_iter().partition(|suspect| suspect.give_up_at <= now);
        self.suspects = rest;
        overdue
    }
}

impl State {
    /// How this process ended, if it was told.
    pub(super) fn cause_of(&self, worker_id: WorkerId) -> Option<&str> {
        let mut causes = self.ends.causes.iter().rev();
        causes.find(|(known, _)| *known == worker_id).map(|(_, cause)| cause.as_str())
    }

    /// Whether this process was ended because memory ran low.
    pub(super) fn was_out_of_memory(&self, worker_id: WorkerId) -> bool {
        self.ends.out_of_memory.contains(&worker_id)
    }

    /// The node with which this process ended, if it did so with one.
    pub(super) fn ended_with(&self, worker_id: WorkerId) -> Option<NodeId> {
        self.ends.with_node.get(&worker_id).copied()
    }

    /// Another node is dead or cannot be reached any more: what had leases there has ended, or is about to.
    pub(super) fn on_node_lost(&mut self, core: &CoreWorker, node_id: NodeId, cause: &str) {
        tracing::info!(%node_id, cause, "the link to another node has ended");
        self.dispatcher.on_node_lost(node_id);
        let there = self.shared.leases.values().filter(|at| at.node_id == node_id);
        let mut workers: Vec<_> = there.map(|at| at.worker_id).collect();
        // The ends of their own connections may have been noticed first.
        let was_there = |suspect: &&Suspect| suspect.lease.is_some_and(|(_, at)| at == node_id);
        workers.extend(self.ends.suspects.iter().filter(was_there).map(|suspect| suspect.worker_id));
        for worker_id in workers {
            self.ends.with_node.insert(worker_id, node_id);
            self.on_worker_died(core, worker_id, cause.to_owned(), false);
        }
    }

    /// The node tells of the end of a process.
    pub(super) fn on_worker_died(
        &mut self,
        core: &CoreWorker,
        worker_id: WorkerId,
        cause: String,
        out_of_memory: bool,
    ) {
        if out_of_memory {
            self.ends.out_of_memory.insert(worker_id);
        }
        self.ends.note(worker_id, cause);
        self.ends.suspects.retain(|suspect| suspect.worker_id != worker_id);
        self.drain_peer(core, worker_id);
        self.on_worker_lost(core, worker_id, None);
    }

    /// A process seems to be gone: a connection to it was closed, or could not be made for this reason.
    /// Hearing it again changes nothing.
    pub(super) fn on_worker_lost(
        &mut self,
        core: &CoreWorker,
        worker_id: WorkerId,
        unreachable: Option<String>,
    ) {
        self.drop_connections(core, worker_id);
        let lease = self.on_lease_worker_lost(core, worker_id);
        self.on_actor_worker_lost(core, worker_id);
        self.on_granter_lost(core, worker_id);
        self.execution.on_caller_lost(worker_id);
        self.on_stream_owner_lost(worker_id);
        if self.cause_of(worker_id).is_some() {
            self.on_worker_dead(core, worker_id);
        } else {
            self.suspect(worker_id, lease, unreachable);
        }
    }

    fn suspect(
        &mut self,
        worker_id: WorkerId,
        lease: Option<(LeaseId, NodeId)>,
        unreachable: Option<String>,
    ) {
        match self.ends.suspects.iter_mut().find(|suspect| suspect.worker_id == worker_id) {
            Some(suspect) => {
                suspect.lease = suspect.lease.or(lease);
                suspect.unreachable = suspect.unreachable.take().or(unreachable);
            }
            None => {
                let give_up_at = now() + CAUSE_TIMEOUT;
                self.ends.suspects.push(Suspect { worker_id, lease, unreachable, give_up_at });
            }
        }
        self.flush_soon();
    }

    /// Decides on the suspects of whom the node has said nothing for long enough.
    pub(super) fn settle_suspects(&mut self, core: &CoreWorker, now: Instant) {
        for Suspect { worker_id, lease, unreachable, .. } in self.ends.take_overdue(now) {
            if let Some((lease_id, node_id)) = lease {
                // Unless it ends, the node holds the lease for taken.
                let reason = "the connection of its leaseholder to it was lost".to_owned();
                self.tell_node_at(core, node_id, &ToRaylet::KillWorker { lease_id, reason });
            }
            // It ended before this process could hear of it, or on another node.
            let deserted = || self.is_deserted(worker_id).then(|| "its process ended".to_owned());
            match unreachable.or_else(deserted) {
                Some(reason) => {
                    self.ends.note(worker_id, reason);
                    self.on_worker_dead(core, worker_id);
                }
                None => self.on_worker_not_lost(core, worker_id),
            }
        }
    }

    /// A process is gone for certain.
    fn on_worker_dead(&mut self, core: &CoreWorker, worker_id: WorkerId) {
        let mut effects = Vec::new();
        self.references.on_worker_died(worker_id, &mut effects);
        self.apply_reference_effects(core, effects);
        self.on_owner_dead(core, worker_id);
        self.settle_crashes(core, now());
    }

    /// Only the connection to a process was lost: what it was asked is asked again.
    fn on_worker_not_lost(&mut self, core: &CoreWorker, worker_id: WorkerId) {
        self.on_actor_worker_not_lost(core, worker_id);
        let owner = Owner { worker_id, node_id: NodeId::nil() };
        for object_id in self.asked_of(worker_id) {
            self.tell(core, owner, &PeerMessage::GetObject { object_id });
        }
    }

    fn asked_of(&self, owner: WorkerId) -> Vec<ObjectId> {
        let asked = self.shared.fetching.iter().filter(|(_, from)| **from == owner);
        asked.map(|(&object_id, _)| object_id).collect()
    }

    /// The objects of a dead owner get an error: those that it was asked for, and those in shared memory,
    /// for the node drops them.
    fn on_owner_dead(&mut self, core: &CoreWorker, owner: WorkerId) {
        let cause = self.cause_of(owner).unwrap_or("its process ended").to_owned();
        let failure = |object_id| Value::from(Failure::OwnerDied { object_id, owner, cause: cause.clone() });
        for object_id in self.asked_of(owner) {
            self.shared.fetching.remove(&object_id);
            self.set_value(object_id, failure(object_id));
        }
        let borrowed = self.references.borrowed_of(owner);
        self.on_creator_dead(core, &borrowed, &cause);
        for object_id in borrowed {
            if let Some(Value::Stored { .. }) = self.memory.get(object_id) {
                self.memory.replace(object_id, failure(object_id));
            }
        }
        self.give_up_pins(owner);
    }
}
