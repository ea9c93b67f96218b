//! Which actors there are, where each of them stands, and what has to happen next.
//!
//! ```text
//!  register                      nobody has room yet
//!     │                           ┌─────┐
//!     v                           v     │            (1) the node took no notice of it before it
//!  WAITING ──────────────────────────── ┘ <────┐         died, or has no room for it after all
//!     │ placed on a node                       │(1)
//!     v                                        │
//!  CREATING ───────────────────────────────────┘
//!     │      │ its process or node died, restarts left ────> WAITING, num_restarts + 1
//!     │      │ its constructor raised, or no restarts left ─> DEAD
//!     │ it reported
//!     v
//!  ALIVE ──── its process or node died, restarts left ─────> WAITING, num_restarts + 1
//!     │       no restarts left, or it was meant to end ────> DEAD
//!     │
//!  any of them: killed for good, its job ended, no node can ever hold it ──> DEAD (for good)
//! ```
//!
//! To the outside WAITING and CREATING are PENDING_CREATION before the first restart and RESTARTING after it;
//! DEPENDENCIES_UNREADY is not used, because the caller resolves a constructor's arguments before
//! it registers the actor.
//!
//! A node is told what to do by orders: create this incarnation, kill that one. Orders stand until the
//! node acknowledges them or dies; [`ActorTable::outstanding`] lists them, so that a shell that lost its
//! queue, or a control plane that was restarted, sends them again. Kill orders are kept in the store for
//! that; an order to create follows from the state CREATING. A node's report names the incarnation
//! that it is about. A report about another incarnation than the present one changes nothing, but if
//! that other one is alive, it is ordered to end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use ray_core::id::{ActorId, JobId, NodeId, PlacementGroupId};

use crate::actor::{
    ActorInfo, ActorPhase, ActorSpec, CreateOrder, DeathCause, DeathKind, Incarnation, KillOrder,
    MaxRestarts, WorkerAddress,
};
use crate::clock::Now;
use crate::error::ActorError;
use crate::placement_group::BundleOrder;

/// What follows from a change of the table.
#[derive(Debug, Clone, PartialEq)]
pub enum ActorEffect {
    /// Keep what is needed to make this actor.
    SaveSpec(Arc<ActorSpec>),
    /// What is needed to make this actor is no longer needed.
    DropSpec(ActorId),
    /// The actor's state changed: keep it, then tell everyone.
    Changed(Arc<ActorInfo>),
    /// A dead actor is not kept any longer.
    Forget(ActorId),
    /// Find a node for this actor and call [`ActorTable::on_placed`].
    Schedule(ActorId),
    /// Order the node to make this incarnation.
    CreateOnNode(CreateOrder),
    /// Keep this order, then give it to the node.
    KillOnNode(KillOrder),
    /// This order is carried out or pointless.
    KillDone(Incarnation),
    /// This incarnation is made; from now on it takes its resources for life only.
    Settled(Incarnation, Arc<ActorSpec>),
    /// The node has less room than it said; for a while nothing should go there.
    GivenBack(NodeId),
    /// What this incarnation took on its node is free again, or soon.
    Vacated(Incarnation, Arc<ActorSpec>),
}

/// An order that a node has not acknowledged yet.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeOrder {
    /// Make this incarnation.
    Create(CreateOrder),
    /// End this one.
    Kill(KillOrder),
    /// Something about bundles of placement groups.
    Bundles(BundleOrder),
}

/// All actors.
#[derive(Debug)]
pub struct ActorTable {
    actors: BTreeMap<ActorId, Actor>,
    /// Namespace and name of living actors.
    names: BTreeMap<(String, String), ActorId>,
    kills: BTreeMap<Incarnation, DeathCause>,
    /// Dead actors, the one that died first in front.
    dead: VecDeque<ActorId>,
    dead_kept: usize,
}

#[derive(Debug)]
struct Actor {
    info: Arc<ActorInfo>,
    /// `None` once it is dead.
    spec: Option<Arc<ActorSpec>>,
    /// While it is being created: whether the node took the order. A node that never did so cannot
    /// have run the constructor, and its death costs no restart.
    acknowledged: bool,
    /// Nodes that are not, or no longer, to make the present incarnation, and where it ended or has to:
    /// what they say of it being alive is late.
    strays: BTreeSet<NodeId>,
}

impl ActorTable {
    /// An empty table that keeps the last `dead_kept` dead actors.
    pub fn new(dead_kept: usize) -> Self {
        Self {
            actors: BTreeMap::new(),
            names: BTreeMap::new(),
            kills: BTreeMap::new(),
            dead: VecDeque::new(),
            dead_kept,
        }
    }

    /// Puts an actor back that was kept, without effects. A living actor whose spec is lost is left
    /// out, as nothing could ever make it anew; returns whether it was put back.
    pub fn restore(&mut self, info: ActorInfo, spec: Option<ActorSpec>) -> bool {
        if !info.phase.is_dead() && spec.is_none() {
            return false;
        }
        if let (false, Some(name)) = (info.phase.is_dead(), &info.name) {
            self.names.insert((info.namespace.clone(), name.clone()), info.actor_id);
        }
        let spec = spec.filter(|_| !info.phase.is_dead()).map(Arc::new);
        self.actors.insert(
            info.actor_id,
            Actor { info: Arc::new(info), spec, acknowledged: false, strays: BTreeSet::new() },
        );
        true
    }

    /// Puts a kill order back that was kept.
    pub fn restore_kill(&mut self, order: KillOrder) {
        self.kills.insert(order.target, order.cause);
    }

    /// To be called once all is put back: orders the dead by their time, and asks again for a node
    /// for whoever waits for one. Orders to nodes are in [`ActorTable::outstanding`].
    pub fn finish_restore(&mut self, out: &mut Vec<ActorEffect>) {
        let mut dead = Vec::new();
        for (&actor_id, actor) in &self.actors {
            match &actor.info.phase {
                ActorPhase::Waiting { .. } => out.push(ActorEffect::Schedule(actor_id)),
                ActorPhase::Dead { at_ms, .. } => dead.push((*at_ms, actor_id)),
                ActorPhase::Creating { .. } | ActorPhase::Alive { .. } => {}
            }
        }
        dead.sort_unstable();
        self.dead = dead.into_iter().map(|(_, id)| id).collect();
    }

    /// Takes an actor in. An actor that is known already is left as it is.
    ///
    /// # Errors
    /// [`ActorError::NameTaken`] if a living actor has the name.
    pub fn register(
        &mut self,
        spec: ActorSpec,
        out: &mut Vec<ActorEffect>,
    ) -> Result<Arc<ActorInfo>, ActorError> {
        let actor_id = spec.actor_id;
        if let Some(actor) = self.actors.get(&actor_id) {
            return Ok(Arc::clone(&actor.info));
        }
        if let Some(name) = &spec.name {
            let key = (spec.namespace.clone(), name.clone());
            if let Some(&holder) = self.names.get(&key) {
                let (namespace, name) = key;
                return Err(ActorError::NameTaken { name, namespace, holder });
            }
            self.names.insert(key, actor_id);
        }
        let info = Arc::new(ActorInfo::new(&spec));
        let spec = Arc::new(spec);
        out.push(ActorEffect::SaveSpec(Arc::clone(&spec)));
        out.push(ActorEffect::Changed(Arc::clone(&info)));
        out.push(ActorEffect::Schedule(actor_id));
        self.actors.insert(
            actor_id,
            Actor { info: Arc::clone(&info), spec: Some(spec), acknowledged: false, strays: BTreeSet::new() },
        );
        Ok(info)
    }

    /// Takes in an actor that will never be made: it is dead from the start. An actor that is known already is
    /// left as it is.
    pub fn register_stillborn(
        &mut self,
        mut spec: ActorSpec,
        cause: DeathCause,
        now: Now,
        out: &mut Vec<ActorEffect>,
    ) {
        let actor_id = spec.actor_id;
        if self.actors.contains_key(&actor_id) {
            return;
        }
        // Another actor may have it.
        spec.name = None;
        let info = Arc::new(ActorInfo::new(&spec));
        self.actors
            .insert(actor_id, Actor { info, spec: None, acknowledged: false, strays: BTreeSet::new() });
        self.bury(actor_id, cause, Process::Gone, now, out);
    }

    /// A node was found for an actor that waits; for any other this changes nothing.
    pub fn on_placed(&mut self, actor_id: ActorId, node_id: NodeId, out: &mut Vec<ActorEffect>) {
        let Some((actor, spec)) = self.waiting_mut(actor_id) else { return };
        actor.acknowledged = false;
        actor.enter(ActorPhase::Creating { node_id }, out);
        let target = Incarnation { node_id, actor_id, num_restarts: actor.info.num_restarts };
        out.push(ActorEffect::CreateOnNode(CreateOrder {
            target,
            spec,
            version: actor.info.version,
            bundle: None,
        }));
    }

    /// No node can take the actor now; it goes on waiting, for `reason`.
    pub fn on_unplaced(&mut self, actor_id: ActorId, reason: &str, out: &mut Vec<ActorEffect>) {
        let Some((actor, _)) = self.waiting_mut(actor_id) else { return };
        if !matches!(&actor.info.phase, ActorPhase::Waiting { reason: known } if known == reason) {
            actor.enter(ActorPhase::Waiting { reason: reason.to_owned() }, out);
        }
    }

    /// No node can ever take the actor, however the cluster grows: it is dead.
    pub fn on_unplaceable(
        &mut self,
        actor_id: ActorId,
        cause: DeathCause,
        now: Now,
        out: &mut Vec<ActorEffect>,
    ) {
        if self.waiting_mut(actor_id).is_some() {
            self.bury(actor_id, cause, Process::Gone, now, out);
        }
    }

    /// A node took the order of this version to make this incarnation. Returns whether that order stands;
    /// the answer to one that was given back since says nothing about the next one, which may be lost.
    pub fn on_create_acknowledged(&mut self, target: &Incarnation, version: u64) -> bool {
        let actor = self.current_mut(target).filter(|actor| actor.info.version == version);
        let stands = actor.is_some();
        if let Some(actor) = actor {
            actor.acknowledged = true;
        }
        stands
    }

    /// A node will never make this incarnation, because it holds the order of this version for wrong.
    pub fn on_create_refused(
        &mut self,
        target: &Incarnation,
        version: u64,
        why: &str,
        now: Now,
        out: &mut Vec<ActorEffect>,
    ) {
        let stands = |actor: &mut Actor| actor.is_creating() && actor.info.version == version;
        if self.current_mut(target).is_some_and(stands) {
            let message = format!("node {} refused to make it: {why}", target.node_id);
            let cause = DeathCause::new(DeathKind::CreationFailed, message);
            self.bury(target.actor_id, cause, Process::Gone, now, out);
        }
    }

    /// A node took the order to end this incarnation.
    pub fn on_kill_acknowledged(&mut self, target: &Incarnation, out: &mut Vec<ActorEffect>) {
        if self.kills.remove(target).is_some() {
            out.push(ActorEffect::KillDone(*target));
        }
    }

    /// A living node reports that this incarnation takes calls.
    pub fn on_alive(
        &mut self,
        target: &Incarnation,
        address: WorkerAddress,
        pid: u32,
        out: &mut Vec<ActorEffect>,
    ) {
        let Some(actor) = self.actors.get_mut(&target.actor_id).filter(|actor| actor.may_live_as(target))
        else {
            self.note_stray(target);
            let message = format!("{target} is not the present one any more");
            self.order_kill(*target, DeathCause::new(DeathKind::Killed, message), out);
            return;
        };
        if !matches!(actor.info.phase, ActorPhase::Alive { .. }) {
            actor.enter(ActorPhase::Alive { address, pid }, out);
            out.extend(actor.spec.clone().map(|spec| ActorEffect::Settled(*target, spec)));
        }
    }

    /// A node reports that this incarnation is gone.
    pub fn on_died(&mut self, target: &Incarnation, cause: DeathCause, now: Now, out: &mut Vec<ActorEffect>) {
        let Some(actor) = self.current_mut(target) else { return self.note_stray(target) };
        if cause.kind != DeathKind::Unschedulable {
            self.restart_or_bury(target.actor_id, cause, now, out);
        } else if actor.is_creating() {
            self.place_again(target.actor_id, out);
            out.push(ActorEffect::GivenBack(target.node_id));
        }
        // Else the node gave an earlier order back, and took the next one and carried it out since.
    }

    /// Ends an actor, for good or so that it is made anew if it may be. Ending a dead actor changes
    /// nothing.
    ///
    /// # Errors
    /// [`ActorError::Unknown`].
    pub fn kill(
        &mut self,
        actor_id: ActorId,
        no_restart: bool,
        cause: DeathCause,
        now: Now,
        out: &mut Vec<ActorEffect>,
    ) -> Result<(), ActorError> {
        let actor = self.actors.get(&actor_id).ok_or(ActorError::Unknown(actor_id))?;
        let incarnation = actor.incarnation();
        if actor.info.phase.is_dead() {
            return Ok(());
        }
        if no_restart {
            self.bury(actor_id, cause, Process::ToBeKilled, now, out);
        } else if let Some(target) = incarnation {
            // Its state stays until the node reports the death, so that the next incarnation does not
            // meet the last one's process.
            self.order_kill(target, cause, out);
        }
        Ok(())
    }

    /// A node died: what it held is made anew elsewhere, if it may be.
    pub fn on_node_dead(&mut self, node_id: NodeId, reason: &str, now: Now, out: &mut Vec<ActorEffect>) {
        let pointless: Vec<_> = self.kills_on(node_id).map(|(target, _)| *target).collect();
        for target in pointless {
            self.kills.remove(&target);
            out.push(ActorEffect::KillDone(target));
        }
        let held: Vec<_> = self.actors.values().filter_map(Actor::incarnation).collect();
        for target in held.into_iter().filter(|target| target.node_id == node_id) {
            let actor = &self.actors[&target.actor_id];
            if actor.is_creating() && !actor.acknowledged {
                self.place_again(target.actor_id, out);
            } else {
                let message = format!("its node {node_id} died: {reason}");
                let cause = DeathCause::new(DeathKind::NodeDied, message);
                self.restart_or_bury(target.actor_id, cause, now, out);
            }
        }
    }

    /// A job ended: its actors end too, but for the detached ones.
    pub fn on_job_finished(&mut self, job_id: JobId, now: Now, out: &mut Vec<ActorEffect>) {
        let ends = |actor: &Actor| actor.info.job_id == job_id && !actor.info.detached;
        let living = self.actors.values().filter(|actor| !actor.info.phase.is_dead() && ends(actor));
        for actor_id in living.map(|actor| actor.info.actor_id).collect::<Vec<_>>() {
            let message = format!("its job {job_id} ended");
            let cause = DeathCause::new(DeathKind::JobFinished, message);
            self.bury(actor_id, cause, Process::ToBeKilled, now, out);
        }
    }

    /// A placement group was removed: the actors in it end too.
    pub fn on_group_removed(
        &mut self,
        group_id: PlacementGroupId,
        reason: &str,
        now: Now,
        out: &mut Vec<ActorEffect>,
    ) {
        let inside = |actor: &&Actor| {
            actor.spec.as_ref().is_some_and(|spec| spec.constraint.group_id() == Some(group_id))
        };
        let inside: Vec<_> = self.actors.values().filter(inside).map(|actor| actor.info.actor_id).collect();
        for actor_id in inside {
            let message = format!("its placement group {group_id} was removed: {reason}");
            let cause = DeathCause::new(DeathKind::PlacementGroupRemoved, message);
            self.bury(actor_id, cause, Process::ToBeKilled, now, out);
        }
    }

    /// The actor with this id.
    ///
    /// # Errors
    /// [`ActorError::Unknown`].
    pub fn get(&self, actor_id: &ActorId) -> Result<&Arc<ActorInfo>, ActorError> {
        self.actors.get(actor_id).map(|actor| &actor.info).ok_or(ActorError::Unknown(*actor_id))
    }

    /// The living actor with this name.
    ///
    /// # Errors
    /// [`ActorError::NoSuchName`].
    pub fn by_name(&self, namespace: &str, name: &str) -> Result<&Arc<ActorInfo>, ActorError> {
        let key = (namespace.to_owned(), name.to_owned());
        let actor = self.names.get(&key).and_then(|actor_id| self.actors.get(actor_id));
        actor.map(|actor| &actor.info).ok_or_else(|| {
            let (namespace, name) = key;
            ActorError::NoSuchName { name, namespace }
        })
    }

    /// All actors, in the order of ids.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<ActorInfo>> {
        self.actors.values().map(|actor| &actor.info)
    }

    /// The incarnation of this actor that a node makes or holds.
    pub fn incarnation(&self, actor_id: &ActorId) -> Option<Incarnation> {
        self.actors.get(actor_id).and_then(Actor::incarnation)
    }

    /// The nodes that make or hold an actor, or have to kill one.
    pub fn nodes_with_actors(&self) -> BTreeSet<NodeId> {
        let held = self.actors.values().filter_map(Actor::incarnation);
        held.chain(self.kills.keys().copied()).map(|target| target.node_id).collect()
    }

    /// The incarnations that are being made.
    pub fn creating(&self) -> Vec<Incarnation> {
        self.actors.values().filter(|actor| actor.is_creating()).filter_map(Actor::incarnation).collect()
    }

    /// What is needed to make the actor, unless it is dead.
    pub fn spec(&self, actor_id: &ActorId) -> Option<&Arc<ActorSpec>> {
        self.actors.get(actor_id).and_then(|actor| actor.spec.as_ref())
    }

    /// What the node has not acknowledged yet. Orders to create come first, so that no order to kill
    /// overtakes the one that it undoes.
    pub fn outstanding(&self, node_id: NodeId) -> Vec<NodeOrder> {
        let kills = self
            .kills_on(node_id)
            .map(|(target, cause)| NodeOrder::Kill(KillOrder { target: *target, cause: cause.clone() }));
        let creates = self.actors.values().filter_map(|actor| {
            let spec = actor.spec.as_ref()?;
            let target = actor.incarnation().filter(|target| target.node_id == node_id)?;
            let unanswered = actor.is_creating() && !actor.acknowledged;
            let (spec, version) = (Arc::clone(spec), actor.info.version);
            unanswered.then_some(NodeOrder::Create(CreateOrder { target, spec, version, bundle: None }))
        });
        creates.chain(kills).collect()
    }

    fn kills_on(&self, node_id: NodeId) -> impl Iterator<Item = (&Incarnation, &DeathCause)> {
        let first = Incarnation { node_id, actor_id: ActorId::from_bytes([0; 16]), num_restarts: 0 };
        self.kills.range(first..).take_while(move |(target, _)| target.node_id == node_id)
    }

    fn waiting_mut(&mut self, actor_id: ActorId) -> Option<(&mut Actor, Arc<ActorSpec>)> {
        let actor = self.actors.get_mut(&actor_id)?;
        let spec = actor.spec.clone()?;
        matches!(actor.info.phase, ActorPhase::Waiting { .. }).then_some((actor, spec))
    }

    /// The actor, if `target` is its present incarnation.
    fn current_mut(&mut self, target: &Incarnation) -> Option<&mut Actor> {
        self.actors.get_mut(&target.actor_id).filter(|actor| actor.incarnation() == Some(*target))
    }

    fn note_stray(&mut self, target: &Incarnation) {
        let actor = self.actors.get_mut(&target.actor_id);
        if let Some(actor) = actor.filter(|actor| actor.info.num_restarts == target.num_restarts) {
            actor.strays.insert(target.node_id);
        }
    }

    fn order_kill(&mut self, target: Incarnation, cause: DeathCause, out: &mut Vec<ActorEffect>) {
        if self.kills.insert(target, cause.clone()).is_none() {
            out.push(ActorEffect::KillOnNode(KillOrder { target, cause }));
        }
    }

    fn restart_or_bury(
        &mut self,
        actor_id: ActorId,
        cause: DeathCause,
        now: Now,
        out: &mut Vec<ActorEffect>,
    ) {
        let Some(actor) = self.actors.get_mut(&actor_id) else { return };
        let info = &actor.info;
        if cause.kind.may_restart() && info.max_restarts.allows_another(info.num_restarts) {
            actor.vacate(out);
            Arc::make_mut(&mut actor.info).num_restarts += 1;
            actor.strays.clear();
            actor.enter(ActorPhase::Waiting { reason: format!("it is made anew: {}", cause.message) }, out);
            out.push(ActorEffect::Schedule(actor_id));
        } else {
            self.bury(actor_id, cause, Process::Gone, now, out);
        }
    }

    /// The same incarnation goes to another node, as the last one did nothing about it.
    fn place_again(&mut self, actor_id: ActorId, out: &mut Vec<ActorEffect>) {
        let Some(actor) = self.actors.get_mut(&actor_id) else { return };
        actor.vacate(out);
        actor.enter(ActorPhase::Waiting { reason: "its node could not take it".to_owned() }, out);
        out.push(ActorEffect::Schedule(actor_id));
    }

    fn bury(
        &mut self,
        actor_id: ActorId,
        cause: DeathCause,
        process: Process,
        now: Now,
        out: &mut Vec<ActorEffect>,
    ) {
        let Some(actor) = self.actors.get_mut(&actor_id) else { return };
        let last = actor.incarnation();
        actor.vacate(out);
        actor.spec = None;
        Arc::make_mut(&mut actor.info).handle_metadata = Arc::default();
        actor.enter(ActorPhase::Dead { cause: cause.clone(), at_ms: now.unix_ms }, out);
        out.push(ActorEffect::DropSpec(actor_id));
        if let Some(name) = &actor.info.name {
            self.names.remove(&(actor.info.namespace.clone(), name.clone()));
        }
        if let (Some(target), Process::ToBeKilled) = (last, process) {
            self.order_kill(target, cause, out);
        }
        self.dead.push_back(actor_id);
        while self.dead.len() > self.dead_kept {
            let Some(oldest) = self.dead.pop_front() else { break };
            self.actors.remove(&oldest);
            out.push(ActorEffect::Forget(oldest));
        }
    }

    /// Panics if the table contradicts itself; for tests.
    pub fn check_invariants(&self) {
        let mut dead = 0;
        for (actor_id, actor) in &self.actors {
            let info = &actor.info;
            assert_eq!(info.actor_id, *actor_id);
            assert_eq!(actor.spec.is_none(), info.phase.is_dead(), "the living have a spec: {info:?}");
            if let MaxRestarts::Times(times) = info.max_restarts {
                assert!(info.num_restarts <= times, "restarted too often: {info:?}");
            }
            if let Some(name) = info.name.as_ref().filter(|_| !info.phase.is_dead()) {
                let holder = self.names.get(&(info.namespace.clone(), name.clone()));
                assert_eq!(holder, Some(actor_id), "a living actor holds its name");
            }
            dead += usize::from(info.phase.is_dead());
        }
        for ((namespace, name), holder) in &self.names {
            let info = &self.actors[holder].info;
            assert!(!info.phase.is_dead(), "the dead hold no names: {info:?}");
            assert_eq!((&info.namespace, info.name.as_ref()), (namespace, Some(name)));
        }
        assert_eq!(dead, self.dead.len(), "exactly the dead are listed as dead");
        assert!(dead <= self.dead_kept, "{dead} dead actors are kept");
        assert!(self.dead.iter().all(|actor_id| self.actors[actor_id].info.phase.is_dead()));
    }
}

/// What is known of a dead actor's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    /// It is gone, or there was none.
    Gone,
    /// It may be there, and has to go.
    ToBeKilled,
}

impl Actor {
    /// The incarnation that a node makes or holds.
    fn incarnation(&self) -> Option<Incarnation> {
        let (actor_id, num_restarts) = (self.info.actor_id, self.info.num_restarts);
        self.info.phase.node_id().map(|node_id| Incarnation { node_id, actor_id, num_restarts })
    }

    /// Whether a report that `target` takes calls is to be believed. It is if that is the present incarnation, or
    /// if nobody makes the present one now: a late copy of an order given back took the actor from a
    /// node that has taken and carried out the order since.
    fn may_live_as(&self, target: &Incarnation) -> bool {
        let waits = matches!(self.info.phase, ActorPhase::Waiting { .. });
        let is_stray = self.strays.contains(&target.node_id);
        self.incarnation() == Some(*target)
            || (waits && self.info.num_restarts == target.num_restarts && !is_stray)
    }

    fn is_creating(&self) -> bool {
        matches!(self.info.phase, ActorPhase::Creating { .. })
    }

    fn enter(&mut self, phase: ActorPhase, out: &mut Vec<ActorEffect>) {
        let info = Arc::make_mut(&mut self.info);
        info.phase = phase;
        info.version += 1;
        out.push(ActorEffect::Changed(Arc::clone(&self.info)));
    }

    fn vacate(&self, out: &mut Vec<ActorEffect>) {
        if let (Some(incarnation), Some(spec)) = (self.incarnation(), &self.spec) {
            out.push(ActorEffect::Vacated(incarnation, Arc::clone(spec)));
        }
    }
}

#[cfg(test)]
#[path = "actor_table_tests.rs"]
mod tests;
