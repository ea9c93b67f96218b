//! Objects of other nodes: what the table and the pulls of [`PullPort`] have to do with each other.

use std::time::Instant;

use ray_core::error::{RayError, RayResult};
use ray_core::id::{NodeId, ObjectId, WorkerId};
use ray_link::message::Elsewhere;
use ray_object_store::object_table::{Answer, Outcome, Reader, Refusal};
use rustc_hash::FxHashSet;
use tokio::sync::oneshot;
use tracing::error;

use super::super::pull_table::{Asker, FetchEnd, Origin, PullEffect};
use super::super::pulls::{Fetch, NodeNews, PullPort};
use super::creates::Create;
use super::held::{PinnedObject, Room};
use super::{NODE, PULLS, Pending, StoreOutput, StorePort, complain};

impl StorePort {
    /// Pulls what a client wants of other nodes' objects, unless it is here.
    pub(super) fn pull(
        &mut self,
        now: Instant,
        asker: Asker,
        elsewhere: &[Elsewhere],
        out: &mut Vec<StoreOutput>,
    ) {
        for &Elsewhere { object_id, node_id, size } in elsewhere {
            let is_here = node_id == self.pulls.own() || self.table.contains(&object_id);
            if !is_here && self.table.is_awaited_by(asker.client, asker.request, object_id) {
                let origin = Origin { node_id, size };
                self.pull_step(now, out, |pulls, effects| {
                    pulls.table.on_wanted(now, asker, object_id, origin, effects);
                });
            }
        }
    }

    /// Refuses what a client believes to be here and is not: it has heard of the object only once it was written
    /// here to its end, so it was here, and nobody will write it again.
    pub(super) fn refuse_unknown(
        &mut self,
        asker: Asker,
        object_ids: &[ObjectId],
        elsewhere: &[Elsewhere],
        out: &mut Vec<StoreOutput>,
    ) {
        let Asker { client, request } = asker;
        let own = self.pulls.own();
        let elsewhere = elsewhere.iter().filter(|other| other.node_id != own);
        let elsewhere: FxHashSet<ObjectId> = elsewhere.map(|other| other.object_id).collect();
        for object_id in object_ids.iter().filter(|id| !elsewhere.contains(id)) {
            let is_awaited = self.table.is_awaited_by(client, request, *object_id);
            if is_awaited && self.table.info(object_id).is_none() {
                let refusal = Refusal::Lost { cause: format!("node {own} does not have it any more") };
                self.step(out, |table, effects| {
                    table.on_unavailable((client, request), *object_id, &refusal, effects);
                });
            }
        }
    }

    /// Reads an object for another node.
    pub(super) fn lend(
        &mut self,
        now: Instant,
        request: u64,
        object_id: ObjectId,
        to: Option<NodeId>,
        answer: oneshot::Sender<RayResult<PinnedObject>>,
        out: &mut Vec<StoreOutput>,
    ) {
        if let Some(node_id) = to.filter(|&node_id| !self.pulls.table.is_alive(node_id)) {
            // It could not be told when the object goes.
            let peer = format!("node {node_id}");
            let cause = "the node that has the object has not heard of it".to_owned();
            let _ = answer.send(Err(RayError::Unavailable { peer, cause }));
            return;
        }
        self.pending.insert(request, Pending::Get(answer));
        let mut found = false;
        self.step(out, |table, effects| {
            // This process can map the copy of a spilled object, and so needs no room to read it.
            let reader = Reader::ArenaOrFile;
            found = table.on_lend(now, (NODE, request), object_id, reader, to, effects);
        });
        if !found && let Some(Pending::Get(answer)) = self.pending.remove(&request) {
            let _ = answer.send(Err(RayError::NotFound { what: format!("object {object_id}") }));
        }
    }

    /// There is news of another node.
    pub(super) fn on_node(
        &mut self,
        now: Instant,
        node_id: NodeId,
        news: &NodeNews,
        out: &mut Vec<StoreOutput>,
    ) {
        if node_id == self.pulls.own() {
            return;
        }
        match news {
            NodeNews::Alive(address) => {
                if self.pulls.on_address(node_id, address) {
                    self.pull_step(now, out, |pulls, effects| {
                        pulls.table.on_node_alive(now, node_id, effects);
                    });
                }
            }
            NodeNews::Dead(reason) => {
                self.pulls.on_node_lost(node_id);
                self.step(out, |table, effects| table.on_node_lost(now, node_id, effects));
                self.pull_step(now, out, |pulls, effects| {
                    pulls.table.on_node_lost(now, node_id, reason, effects);
                });
            }
        }
    }

    /// Takes a step of the pulls and does what follows from it.
    pub(super) fn pull_step(
        &mut self,
        now: Instant,
        out: &mut Vec<StoreOutput>,
        step: impl FnOnce(&mut PullPort, &mut Vec<PullEffect>),
    ) {
        let mut effects = Vec::new();
        step(&mut self.pulls, &mut effects);
        self.pull_effects.extend(effects);
        self.run_pull_effects(now, out);
    }

    /// What follows from one effect comes after the others, however many there are.
    pub(super) fn run_pull_effects(&mut self, now: Instant, out: &mut Vec<StoreOutput>) {
        if std::mem::replace(&mut self.in_pull_effects, true) {
            return;
        }
        while let Some(effect) = self.pull_effects.pop_front() {
            match effect {
                PullEffect::Reserve { object_id, origin: Origin { node_id, size }, attempt } => {
                    let (client, request, owner) = (PULLS, attempt, WorkerId::nil());
                    let copy_of = Some(node_id);
                    self.create(now, Create { client, request, object_id, size, owner, copy_of }, out);
                }
                PullEffect::Fetch { object_id, origin, attempt, offset } => {
                    if !self.pulls.fetch(Fetch { object_id, origin, attempt, offset }) {
                        error!(%object_id, "an object that is to be pulled has no room");
                        let (end, mut effects) =
                            (FetchEnd::Broken("its room is gone".to_owned()), Vec::new());
                        let table = &mut self.pulls.table;
                        table.on_fetched(now, object_id, attempt, offset, end, &mut effects);
                        self.pull_effects.extend(effects);
                    }
                }
                PullEffect::Seal { object_id } => {
                    if let Some(room) = self.pulls.take_room(object_id) {
                        // Nobody writes there any more.
                        room.keep();
                        self.step(out, |table, effects| {
                            complain(table.on_seal(now, PULLS, object_id, effects));
                        });
                        self.retry_deferred(now, out);
                    }
                }
                PullEffect::Drop { object_id } => {
                    self.pulls.stop(object_id);
                    // What still waits for room; what has some is given up by whoever has it.
                    self.creates.forget_object(PULLS, object_id);
                    self.step(out, |table, effects| table.on_withdraw(now, PULLS, object_id, effects));
                }
                PullEffect::Refuse { asker: Asker { client, request }, object_id, refusal } => {
                    self.step(out, |table, effects| {
                        table.on_unavailable((client, request), object_id, &refusal, effects);
                    });
                }
            }
        }
        self.in_pull_effects = false;
    }

    /// There is room for an object of another node, or it is here, or there is none.
    pub(super) fn answer_pull(&mut self, answer: Answer) {
        let Answer { request, object_id, outcome, .. } = answer;
        let Some(create) = self.creates.end(PULLS, request) else { return };
        if matches!(outcome, Outcome::Exists { sealed: false, .. }) {
            // Somebody else writes it, or a pull that was given up is about to let go.
            return self.creates.defer(create);
        }
        let (now, mut effects) = (Instant::now(), Vec::new());
        let mut room = None;
        let outcome = match outcome {
            Outcome::Exists { .. } => {
                self.pulls.table.on_present(now, object_id, request, &mut effects);
                return self.pull_effects.extend(effects);
            }
            Outcome::Created { offset } => match self.region.slice_mut(offset, create.size) {
                Ok(slice) => {
                    room = Some(Room::new(slice, PULLS, object_id, self.node.clone()));
                    Ok(())
                }
                Err(error) => Err(Refusal::Lost { cause: error.to_string() }),
            },
            Outcome::Refused(refusal) => Err(refusal),
            _ => return,
        };
        if self.pulls.table.on_room(now, object_id, request, outcome, &mut effects) {
            room.into_iter().for_each(|room| self.pulls.keep_room(object_id, room));
        }
        self.pull_effects.extend(effects);
    }
}
