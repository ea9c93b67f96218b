//! The whole control plane as one machine: the tables, and how a change of one moves the others.
//!
//! A step takes a call and the time, changes the tables and notes in [`Effects`] what the shell has to do.
//! The same machine runs under [`crate::Gcs`] and in the simulation. After each step nobody waits who
//! could be placed: there is no timer in the way of an actor.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ray_core::config::GcsConfig;
use ray_core::constraint::{Shape, Strategy};
use ray_core::id::{ActorId, JobId, NodeId, PlacementGroupId};
use ray_core::resource::Resources;
use ray_scheduler::{GroupDecision, GroupRequest, place_group};

use crate::actor::{
    ActorInfo, ActorPhase, ActorSpec, CreateOrder, DeathCause, DeathKind, Incarnation, KillOrder,
    WorkerAddress,
};
use crate::actor_table::{ActorEffect, ActorTable, NodeOrder};
use crate::clock::Now;
use crate::effects::{Effects, Event, LinkChange, Snapshot};
use crate::error::{ActorError, GroupError, NodeError};
use crate::job_table::{JobEffect, JobSpec, JobState, JobTable};
use crate::kv::{Kv, Value};
use crate::node_table::{NodeEffect, NodeLimits, NodeSpec, NodeTable};
use crate::packages;
use crate::pending_actors::PendingActors;
use crate::pending_groups::PendingGroups;
use crate::placement_group::{BundleOrder, GroupInfo, GroupPhase, GroupSpec, Reservation, ReturnOrder};
use crate::placement_group_table::{BundlePlacement, GroupEffect, PlacementGroupTable};
use crate::stored::{self, StoredTables};
use crate::usage_table::{INFEASIBLE, NodeUsage, Placement, UsageTable};

/// How much a [`ControlPlane`] keeps, and how long it waits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// About nodes.
    pub nodes: NodeLimits,
    /// How many dead actors are kept.
    pub dead_actors_kept: usize,
    /// How many removed placement groups are kept.
    pub removed_groups_kept: usize,
    /// How many finished jobs are kept.
    pub finished_jobs_kept: usize,
}

impl From<&GcsConfig> for Limits {
    fn from(config: &GcsConfig) -> Self {
        let dead_after = Duration::from_millis(config.node_dead_after_ms);
        // A node is found dead at most a tenth of the limit too late.
        let tick_every = (dead_after / 10).max(Duration::from_millis(1));
        Self {
            nodes: NodeLimits { dead_after, tick_every, dead_kept: config.dead_nodes_kept },
            dead_actors_kept: config.dead_actors_kept,
            removed_groups_kept: config.removed_groups_kept,
            finished_jobs_kept: config.finished_jobs_kept,
        }
    }
}

/// What became of an incarnation, as its node reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActorOutcome {
    /// It takes calls.
    Alive {
        /// Where.
        address: WorkerAddress,
        /// Its process.
        pid: u32,
    },
    /// It is gone. [`DeathKind::Unschedulable`] about one that is still being made gives the order back:
    /// the node has no room after all, and did nothing.
    Died(DeathCause),
}

/// What a node answered to an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderAnswer {
    /// It took the order.
    Acknowledged,
    /// It holds the order for wrong and will never take it.
    Refused(String),
}

/// What an order is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderKey {
    /// To make this incarnation, as ordered at this version of the actor.
    Create(Incarnation, u64),
    /// To end it.
    Kill(Incarnation),
    /// To reserve bundles.
    Reserve(Reservation),
    /// To let them be used.
    Commit(Reservation),
    /// To give them back.
    Return(Reservation),
}

impl NodeOrder {
    /// What the order is about.
    pub fn key(&self) -> OrderKey {
        match self {
            Self::Create(order) => OrderKey::Create(order.target, order.version),
            Self::Kill(order) => OrderKey::Kill(order.target),
            Self::Bundles(order) => match order {
                BundleOrder::Reserve { target, .. } => OrderKey::Reserve(*target),
                BundleOrder::Commit(target) => OrderKey::Commit(*target),
                BundleOrder::Return(order) => OrderKey::Return(order.target),
            },
        }
    }
}

/// All tables.
#[derive(Debug)]
pub struct ControlPlane {
    nodes: NodeTable,
    actors: ActorTable,
    groups: PlacementGroupTable,
    jobs: JobTable,
    kv: Kv,
    usage: UsageTable,
    pending: PendingActors,
    pending_groups: PendingGroups,
}

impl ControlPlane {
    /// The control plane that was kept; an empty one if nothing was.
    ///
    /// Its effects open the links to the nodes that were alive and repeat the orders that these have
    /// not acknowledged; they get all of `dead_after` to say that they are still there.
    pub fn restore(limits: Limits, stored: StoredTables, now: Now, fx: &mut Effects) -> Self {
        let mut plane = Self {
            nodes: NodeTable::restore(limits.nodes, stored.nodes, now),
            actors: ActorTable::new(limits.dead_actors_kept),
            groups: PlacementGroupTable::new(limits.removed_groups_kept),
            jobs: JobTable::restore(limits.finished_jobs_kept, stored.jobs),
            kv: Kv::default(),
            usage: UsageTable::default(),
            pending: PendingActors::default(),
            pending_groups: PendingGroups::default(),
        };
        for (namespace, key, value) in stored.kv {
            plane.kv.restore(namespace, key, value);
        }
        for node in plane.nodes.iter().filter(|node| node.is_alive()) {
            let spec = &node.spec;
            plane.usage.on_node_up(spec.node_id, &spec.total, &spec.labels, false);
            fx.links.push(LinkChange::Open(spec.node_id, spec.raylet_address.clone()));
        }
        plane.restore_groups(stored.groups, stored.returns, now, fx);
        plane.restore_actors(stored.actors, stored.kills, now, fx);
        plane
    }

    fn restore_actors(
        &mut self,
        actors: Vec<(ActorInfo, Option<ActorSpec>)>,
        kills: Vec<KillOrder>,
        now: Now,
        fx: &mut Effects,
    ) {
        for (info, spec) in actors {
            let actor_id = info.actor_id;
            if !self.actors.restore(info, spec) {
                fx.writes.push(stored::delete_actor(&actor_id));
            }
        }
        kills.into_iter().for_each(|order| self.actors.restore_kill(order));
        let mut out = Vec::new();
        self.actors.finish_restore(&mut out);
        // A node's death and what follows from it are one write, so this finds nothing unless someone
        // else changed the store.
        for node_id in self.actors.nodes_with_actors() {
            if let Err(error) = self.nodes.alive(&node_id) {
                self.actors.on_node_dead(node_id, &error.to_string(), now, &mut out);
            }
        }
        self.restore_orders();
        for node in self.nodes.iter().filter(|node| node.is_alive()) {
            let node_id = node.spec.node_id;
            let orders = self.outstanding(node_id);
            fx.orders.extend(orders.into_iter().map(|order| (node_id, order)));
        }
        self.apply_actor_effects(out, now, fx);
    }

    /// Notes what actors take of their nodes and bundles.
    fn restore_orders(&mut self) {
        let creating = self.actors.creating();
        let held: Vec<_> =
            self.actors.iter().filter_map(|info| self.actors.incarnation(&info.actor_id)).collect();
        for target in held {
            let Some(spec) = self.actors.spec(&target.actor_id) else { continue };
            let is_creating = creating.contains(&target);
            match spec.constraint.strategy {
                Strategy::Bundle { group_id, index, .. } => {
                    let amount = if is_creating { spec.shape().resources } else { spec.resources.clone() };
                    self.groups.restore_claim(group_id, index, target.actor_id, target.node_id, &amount);
                }
                Strategy::Default | Strategy::Spread | Strategy::NodeAffinity { .. } => {
                    if is_creating {
                        self.usage.on_ordered(target, &spec.shape().resources);
                    }
                }
            }
        }
    }

    fn restore_groups(
        &mut self,
        groups: Vec<GroupInfo>,
        returns: Vec<ReturnOrder>,
        now: Now,
        fx: &mut Effects,
    ) {
        groups.into_iter().for_each(|info| self.groups.restore(info));
        returns.into_iter().for_each(|order| self.groups.restore_return(order));
        let mut out = Vec::new();
        self.groups.finish_restore(&mut out);
        for node_id in self.groups.nodes_with_bundles() {
            if let Err(error) = self.nodes.alive(&node_id) {
                self.groups.on_node_dead(node_id, &error.to_string(), &mut out);
            }
        }
        self.note_group_effects(out, now, fx);
    }

    // Nodes.

    /// Takes a node in; see [`NodeTable::register`].
    ///
    /// # Errors
    /// [`NodeError::Dead`]: the node was declared dead and has to come back under a new id.
    pub fn register_node(&mut self, spec: NodeSpec, now: Now, fx: &mut Effects) -> Result<(), NodeError> {
        let (node_id, total, labels) = (spec.node_id, spec.total.clone(), spec.labels.clone());
        let mut out = Vec::new();
        self.nodes.register(spec, now, &mut out)?;
        self.usage.on_node_up(node_id, &total, &labels, true);
        self.apply_node_effects(out, now, fx);
        Ok(())
    }

    /// Takes a node out that leaves in order.
    pub fn unregister_node(&mut self, node_id: NodeId, reason: &str, now: Now, fx: &mut Effects) {
        let mut out = Vec::new();
        self.nodes.unregister(node_id, reason, now, &mut out);
        self.apply_node_effects(out, now, fx);
    }

    /// Notes a sign of life; returns whether the node is alive.
    pub fn heartbeat(&mut self, node_id: NodeId, sequence: u64, now: Now) -> bool {
        self.nodes.heartbeat(node_id, sequence, now)
    }

    /// Declares silent nodes dead, and gives nodes another chance that gave orders back.
    pub fn tick(&mut self, now: Now, fx: &mut Effects) {
        if self.usage.trust_all_again() {
            self.place_pending(now, fx);
        }
        let mut out = Vec::new();
        self.nodes.tick(now, &mut out);
        if !out.is_empty() {
            self.apply_node_effects(out, now, fx);
        }
    }

    // Actors.

    /// Takes an actor in and looks for a node for it. Registering it again changes nothing.
    ///
    /// # Errors
    /// If a living actor has its name, or its job has ended.
    pub fn register_actor(
        &mut self,
        spec: ActorSpec,
        now: Now,
        fx: &mut Effects,
    ) -> Result<Arc<ActorInfo>, ActorError> {
        let actor_id = self.check_job_of(&spec)?;
        let mut out = Vec::new();
        self.actors.register(spec, &mut out)?;
        self.apply_actor_effects(out, now, fx);
        self.actors.get(&actor_id).cloned()
    }

    /// The id of an actor that is to be registered, unless it is new and its job has ended.
    fn check_job_of(&self, spec: &ActorSpec) -> Result<ActorId, ActorError> {
        if self.actors.get(&spec.actor_id).is_err() && self.jobs.is_finished(&spec.job_id) {
            return Err(ActorError::JobFinished(spec.job_id));
        }
        Ok(spec.actor_id)
    }

    /// Notes an actor that will never be made, so that whoever has a handle to it hears why.
    ///
    /// # Errors
    /// If its job has ended.
    pub fn register_stillborn(
        &mut self,
        spec: ActorSpec,
        cause: DeathCause,
        now: Now,
        fx: &mut Effects,
    ) -> Result<Arc<ActorInfo>, ActorError> {
        let actor_id = self.check_job_of(&spec)?;
        let mut out = Vec::new();
        self.actors.register_stillborn(spec, cause, now, &mut out);
        self.apply_actor_effects(out, now, fx);
        self.actors.get(&actor_id).cloned()
    }

    /// Ends an actor, for good or so that it is made anew if it may be.
    ///
    /// # Errors
    /// [`ActorError::Unknown`].
    pub fn kill_actor(
        &mut self,
        actor_id: ActorId,
        no_restart: bool,
        cause: DeathCause,
        now: Now,
        fx: &mut Effects,
    ) -> Result<(), ActorError> {
        let mut out = Vec::new();
        self.actors.kill(actor_id, no_restart, cause, now, &mut out)?;
        self.apply_actor_effects(out, now, fx);
        Ok(())
    }

    /// Takes in what a node says about an incarnation.
    ///
    /// # Errors
    /// If the node is dead or unknown: it has to end what it runs.
    pub fn report_actor(
        &mut self,
        target: Incarnation,
        outcome: ActorOutcome,
        now: Now,
        fx: &mut Effects,
    ) -> Result<(), NodeError> {
        self.nodes.alive(&target.node_id)?;
        let mut out = Vec::new();
        match outcome {
            ActorOutcome::Alive { address, pid } => self.actors.on_alive(&target, address, pid, &mut out),
            ActorOutcome::Died(cause) => self.actors.on_died(&target, cause, now, &mut out),
        }
        self.apply_actor_effects(out, now, fx);
        Ok(())
    }

    /// Takes in what a node answered to an order.
    pub fn on_order_answered(&mut self, order: OrderKey, answer: OrderAnswer, now: Now, fx: &mut Effects) {
        let mut out = Vec::new();
        match (order, answer) {
            (OrderKey::Create(target, version), OrderAnswer::Acknowledged) => {
                if self.actors.on_create_acknowledged(&target, version) {
                    self.usage.on_acknowledged(target);
                }
            }
            (OrderKey::Create(target, version), OrderAnswer::Refused(why)) => {
                self.actors.on_create_refused(&target, version, &why, now, &mut out);
            }
            // A node that refuses to kill has nothing to kill.
            (OrderKey::Kill(target), OrderAnswer::Acknowledged | OrderAnswer::Refused(_)) => {
                self.actors.on_kill_acknowledged(&target, &mut out);
            }
            (OrderKey::Reserve(target), answer) => return self.on_bundles_answered(target, answer, now, fx),
            (OrderKey::Commit(target), answer) => {
                let mut out = Vec::new();
                match answer {
                    OrderAnswer::Acknowledged => self.groups.on_committed(&target, now, &mut out),
                    OrderAnswer::Refused(why) => self.groups.on_refused(&target, &why, &mut out),
                }
                return self.apply_group_effects(out, now, fx);
            }
            // A node that refuses to give bundles back has none.
            (OrderKey::Return(target), OrderAnswer::Acknowledged | OrderAnswer::Refused(_)) => {
                let mut out = Vec::new();
                self.groups.on_returned(&target, &mut out);
                return self.apply_group_effects(out, now, fx);
            }
        }
        self.apply_actor_effects(out, now, fx);
    }

    fn on_bundles_answered(&mut self, target: Reservation, answer: OrderAnswer, now: Now, fx: &mut Effects) {
        let mut out = Vec::new();
        match answer {
            OrderAnswer::Acknowledged => self.groups.on_reserved(&target, now, &mut out),
            OrderAnswer::Refused(why) => self.groups.on_refused(&target, &why, &mut out),
        }
        self.apply_group_effects(out, now, fx);
    }

    /// The orders that a living node has not acknowledged.
    pub fn outstanding(&self, node_id: NodeId) -> Vec<NodeOrder> {
        if !self.nodes.is_alive(&node_id) {
            return Vec::new();
        }
        let bundles = self.groups.outstanding(node_id).into_iter().map(NodeOrder::Bundles);
        let actors = self.actors.outstanding(node_id).into_iter().map(|order| match order {
            NodeOrder::Create(order) => NodeOrder::Create(self.with_bundle(order)),
            other @ (NodeOrder::Kill(_) | NodeOrder::Bundles(_)) => other,
        });
        bundles.chain(actors).collect()
    }

    /// The order with the bundle that its actor has claimed.
    fn with_bundle(&self, order: CreateOrder) -> CreateOrder {
        let group_id = order.spec.constraint.group_id();
        let bundle = group_id.and_then(|group_id| self.groups.claimed_by(&group_id, &order.target.actor_id));
        CreateOrder { bundle, ..order }
    }

    // Placement groups.

    /// Takes a placement group in and looks for nodes for it. Creating it again changes nothing.
    ///
    /// # Errors
    /// If another group has its name, or its job has ended.
    pub fn create_group(
        &mut self,
        spec: GroupSpec,
        now: Now,
        fx: &mut Effects,
    ) -> Result<Arc<GroupInfo>, GroupError> {
        let group_id = spec.group_id;
        if self.groups.get(&group_id).is_err() && self.jobs.is_finished(&spec.job_id) {
            return Err(GroupError::JobFinished(spec.job_id));
        }
        let mut out = Vec::new();
        self.groups.register(spec, &mut out)?;
        self.apply_group_effects(out, now, fx);
        self.groups.get(&group_id).cloned()
    }

    /// Removes a placement group, and ends what runs in it.
    ///
    /// # Errors
    /// [`GroupError::Unknown`].
    pub fn remove_group(
        &mut self,
        group_id: PlacementGroupId,
        now: Now,
        fx: &mut Effects,
    ) -> Result<(), GroupError> {
        let mut out = Vec::new();
        self.groups.remove(group_id, "someone called remove_placement_group", now, &mut out)?;
        self.apply_group_effects(out, now, fx);
        Ok(())
    }

    /// The placement groups.
    pub fn groups(&self) -> &PlacementGroupTable {
        &self.groups
    }

    // Jobs.

    /// Takes a job in. Adding it again changes nothing.
    pub fn add_job(&mut self, spec: JobSpec, now: Now, fx: &mut Effects) {
        let mut out = Vec::new();
        self.jobs.add(spec, now, &mut out);
        self.apply_job_effects(out, now, fx);
    }

    /// Ends a job and all of its actors that are not detached, also those that are registered late. Ending
    /// it again changes nothing.
    pub fn finish_job(&mut self, job_id: JobId, reason: &str, now: Now, fx: &mut Effects) {
        let mut out = Vec::new();
        self.jobs.finish(job_id, reason, now, &mut out);
        self.apply_job_effects(out, now, fx);
    }

    // Resources.

    /// Takes in what a node has free.
    ///
    /// # Errors
    /// If the node is dead or unknown.
    pub fn report_resources(
        &mut self,
        usage: NodeUsage,
        now: Now,
        fx: &mut Effects,
    ) -> Result<(), NodeError> {
        self.nodes.alive(&usage.node_id)?;
        if self.usage.report(usage.clone()) {
            fx.events.push(Event::Usage(Arc::new(usage)));
            self.place_pending(now, fx);
        }
        Ok(())
    }

    /// What all living nodes have, what of it is free, and each node's last report.
    pub fn cluster_resources(&self) -> (Resources, Resources, Vec<NodeUsage>) {
        let (total, available) = self.usage.aggregate();
        (total, available, self.usage.reports().cloned().collect())
    }

    /// What actors need for which no node has been found yet, and how many they are.
    pub fn waiting_actors(&self) -> Vec<(Shape, u64)> {
        self.pending.demand().map(|(shape, count)| (shape.clone(), count as u64)).collect()
    }

    // Key-value.

    /// Sets a value; returns whether the key is new. See [`Kv::put`].
    pub fn kv_put(
        &mut self,
        namespace: Vec<u8>,
        key: Vec<u8>,
        value: Value,
        overwrite: bool,
        fx: &mut Effects,
    ) -> bool {
        let mut out = Vec::new();
        let is_new = self.kv.put(namespace, key, value, overwrite, &mut out);
        fx.writes.extend(out.into_iter().map(stored::kv));
        is_new
    }

    /// Removes a key, or every key that begins with it; returns how many.
    pub fn kv_delete(&mut self, namespace: &[u8], key: &[u8], prefix: bool, fx: &mut Effects) -> u64 {
        let mut out = Vec::new();
        let deleted = self.kv.delete(namespace, key, prefix, &mut out);
        fx.writes.extend(out.into_iter().map(stored::kv));
        deleted
    }

    /// The keys and values.
    pub fn kv(&self) -> &Kv {
        &self.kv
    }

    /// The nodes.
    pub fn nodes(&self) -> &NodeTable {
        &self.nodes
    }

    /// The actors.
    pub fn actors(&self) -> &ActorTable {
        &self.actors
    }

    /// The jobs.
    pub fn jobs(&self) -> &JobTable {
        &self.jobs
    }

    /// Everything that everyone may know.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            nodes: self.nodes.iter().cloned().collect(),
            actors: self.actors.iter().cloned().collect(),
            groups: self.groups.iter().cloned().collect(),
            jobs: self.jobs.iter().cloned().collect(),
            usages: self.usage.reports().cloned().collect(),
        }
    }

    // How a change of one table moves the others.

    fn apply_node_effects(&mut self, effects: Vec<NodeEffect>, now: Now, fx: &mut Effects) {
        let mut actors = Vec::new();
        let mut groups = Vec::new();
        let mut jobs = Vec::new();
        for effect in effects {
            match effect {
                NodeEffect::Up(info) => {
                    fx.writes.push(stored::put_node(&info));
                    fx.links.push(LinkChange::Open(info.spec.node_id, info.spec.raylet_address.clone()));
                    fx.events.push(Event::Node(info));
                }
                NodeEffect::Down(info) => {
                    let node_id = info.spec.node_id;
                    let reason = info.death_reason().to_owned();
                    fx.writes.push(stored::put_node(&info));
                    fx.links.push(LinkChange::Close(node_id));
                    fx.events.push(Event::Node(info));
                    self.usage.on_node_down(&node_id);
                    self.jobs.on_node_dead(node_id, &reason, now, &mut jobs);
                    self.groups.on_node_dead(node_id, &reason, &mut groups);
                    self.actors.on_node_dead(node_id, &reason, now, &mut actors);
                }
                NodeEffect::Forget(node_id) => fx.writes.push(stored::delete_node(&node_id)),
            }
        }
        // What a dead node held is looked at before its jobs end, so that an actor that ends with its job
        // is not placed first.
        self.note_group_effects(groups, now, fx);
        self.note_actor_effects(actors, fx);
        self.apply_job_effects(jobs, now, fx);
    }

    fn apply_job_effects(&mut self, effects: Vec<JobEffect>, now: Now, fx: &mut Effects) {
        let mut actors = Vec::new();
        let ended = effects.iter().any(|effect| matches!(effect, JobEffect::Finished(_)));
        let mut groups = Vec::new();
        for effect in effects {
            match effect {
                JobEffect::Started(info) => {
                    fx.writes.push(stored::put_job(&info));
                    fx.events.push(Event::Job(info));
                }
                JobEffect::Finished(info) => {
                    let job_id = info.spec.job_id;
                    fx.writes.push(stored::put_job(&info));
                    fx.events.push(Event::Job(info));
                    // Its actors first: that their job ended says more than that their group did.
                    self.actors.on_job_finished(job_id, now, &mut actors);
                    self.groups.on_job_finished(job_id, now, &mut groups);
                }
                JobEffect::Forget(job_id) => fx.writes.push(stored::delete_job(&job_id)),
            }
        }
        self.note_group_effects(groups, now, fx);
        self.apply_actor_effects(actors, now, fx);
        if ended {
            self.remove_unused_packages(fx);
        }
    }

    /// Removes the packages of runtime environments that no running job and no living actor needs.
    fn remove_unused_packages(&mut self, fx: &mut Effects) {
        let running: BTreeSet<JobId> = self
            .jobs
            .iter()
            .filter(|info| info.state == JobState::Running)
            .map(|info| info.spec.job_id)
            .collect();
        let living = self.actors.iter().filter(|info| !info.phase.is_dead());
        let envs: Vec<_> = living.filter_map(|info| self.actors.spec(&info.actor_id)).collect();
        let named = |uri: &str| envs.iter().any(|spec| spec.runtime_env.contains(uri));
        for key in packages::unused(&self.kv, |job_id| running.contains(&job_id), named) {
            // A key that says of a job what it uses has none behind it.
            self.kv_delete(packages::NAMESPACE, &key, true, fx);
        }
    }

    fn apply_group_effects(&mut self, effects: Vec<GroupEffect>, now: Now, fx: &mut Effects) {
        self.note_group_effects(effects, now, fx);
        self.place_pending(now, fx);
    }

    /// The actors of a group that is removed are killed before its bundles go back.
    fn note_group_effects(&mut self, effects: Vec<GroupEffect>, now: Now, fx: &mut Effects) {
        for effect in effects {
            match effect {
                GroupEffect::Changed(info) => fx.group_changed(info),
                GroupEffect::Forget(group_id) => fx.writes.push(stored::delete_group(&group_id)),
                GroupEffect::Schedule(group_id) => self.pending_groups.push(group_id),
                GroupEffect::Order(order) => {
                    fx.orders.push((order.target().node_id, NodeOrder::Bundles(order)));
                }
                GroupEffect::KeepReturn(order) => fx.writes.push(stored::put_return(&order)),
                GroupEffect::ReturnDone(order) => {
                    fx.writes.push(stored::delete_return(&order.target, order.all));
                }
                GroupEffect::Ordered(target, amount) => self.usage.on_ordered(target, &amount),
                GroupEffect::Taken(target) => self.usage.on_acknowledged(target),
                GroupEffect::Vacated(target, amount) => self.usage.on_vacated(target, &amount),
                GroupEffect::GivenBack(node_id) => self.usage.on_given_back(&node_id),
                GroupEffect::Removed(group_id, reason) => {
                    self.pending_groups.remove(&group_id);
                    let mut ended = Vec::new();
                    self.actors.on_group_removed(group_id, &reason, now, &mut ended);
                    self.note_actor_effects(ended, fx);
                }
            }
        }
    }

    fn apply_actor_effects(&mut self, effects: Vec<ActorEffect>, now: Now, fx: &mut Effects) {
        self.note_actor_effects(effects, fx);
        self.place_pending(now, fx);
    }

    fn note_actor_effects(&mut self, effects: Vec<ActorEffect>, fx: &mut Effects) {
        for effect in effects {
            match effect {
                ActorEffect::SaveSpec(spec) => fx.writes.push(stored::put_actor_spec(&spec)),
                ActorEffect::DropSpec(actor_id) => fx.writes.push(stored::delete_actor_spec(&actor_id)),
                ActorEffect::Changed(info) => {
                    if !matches!(info.phase, ActorPhase::Waiting { .. }) {
                        self.pending.remove(&info.actor_id);
                    }
                    fx.actor_changed(info);
                }
                ActorEffect::Forget(actor_id) => fx.writes.push(stored::delete_actor(&actor_id)),
                ActorEffect::Schedule(actor_id) => {
                    if let Some(spec) = self.actors.spec(&actor_id) {
                        self.pending.push(actor_id, spec.shape());
                    }
                }
                ActorEffect::CreateOnNode(order) => {
                    let order = self.with_bundle(order);
                    fx.orders.push((order.target.node_id, NodeOrder::Create(order)));
                }
                ActorEffect::KillOnNode(order) => {
                    fx.writes.push(stored::put_kill(&order));
                    fx.orders.push((order.target.node_id, NodeOrder::Kill(order)));
                }
                ActorEffect::KillDone(target) => fx.writes.push(stored::delete_kill(&target)),
                ActorEffect::Settled(target, spec) => match spec.constraint.group_id() {
                    Some(group_id) => self.groups.settle_claim(&group_id, &target.actor_id, &spec.resources),
                    None => self.usage.on_settled(target, &spec.resources),
                },
                ActorEffect::GivenBack(node_id) => self.usage.on_given_back(&node_id),
                ActorEffect::Vacated(target, spec) => match spec.constraint.group_id() {
                    Some(group_id) => self.groups.release_claim(&group_id, &target.actor_id),
                    None => self.usage.on_vacated(target, &spec.resources),
                },
            }
        }
    }

    /// Places every group and actor that some node can take now; groups first, for actors may wait for one.
    fn place_pending(&mut self, now: Now, fx: &mut Effects) {
        self.place_pending_groups(now, fx);
        if self.pending.is_empty() {
            return;
        }
        let mut out = Vec::new();
        for shape in self.pending.shapes() {
            while let Some(actor_id) = self.pending.first(&shape) {
                let cause = match self.find_place(actor_id, &shape) {
                    Placement::On(node_id) => {
                        self.pending.remove(&actor_id);
                        self.actors.on_placed(actor_id, node_id, &mut out);
                        let target = self.actors.incarnation(&actor_id).filter(|it| it.node_id == node_id);
                        if let Some(target) = target.filter(|_| shape.constraint.group_id().is_none()) {
                            self.usage.on_ordered(target, &shape.resources);
                        }
                        continue;
                    }
                    Placement::Wait(reason) => {
                        for actor_id in self.pending.tell(&shape, &reason) {
                            self.actors.on_unplaced(actor_id, &reason, &mut out);
                        }
                        break;
                    }
                    Placement::Never(why) => DeathCause::new(DeathKind::Unschedulable, why),
                    Placement::GroupRemoved(why) => DeathCause::new(DeathKind::PlacementGroupRemoved, why),
                };
                self.pending.remove(&actor_id);
                self.actors.on_unplaceable(actor_id, cause, now, &mut out);
            }
        }
        self.note_actor_effects(out, fx);
    }

    fn find_place(&mut self, actor_id: ActorId, shape: &Shape) -> Placement {
        let Strategy::Bundle { group_id, index, .. } = shape.constraint.strategy else {
            return self.usage.place(shape);
        };
        match self.groups.claim(group_id, index, actor_id, &shape.resources) {
            BundlePlacement::On(node_id) => Placement::On(node_id),
            BundlePlacement::Wait(reason) => Placement::Wait(reason),
            BundlePlacement::Never(why) => Placement::Never(why),
            BundlePlacement::Removed(why) => Placement::GroupRemoved(why),
        }
    }

    fn place_pending_groups(&mut self, now: Now, fx: &mut Effects) {
        let mut out = Vec::new();
        for group_id in self.pending_groups.to_try(self.usage.view().version()) {
            let Ok(info) = self.groups.get(&group_id).cloned() else { continue };
            let request = GroupRequest {
                strategy: info.spec.strategy,
                bundles: &info.spec.bundles,
                nodes: &info.nodes,
                soft_target: info.spec.soft_target,
            };
            match place_group(self.usage.view(), &request) {
                GroupDecision::Placed(nodes) => {
                    self.pending_groups.remove(&group_id);
                    self.groups.on_placed(group_id, &nodes, &mut out);
                }
                GroupDecision::Busy { reason } => self.groups.on_unplaced(group_id, &reason, &mut out),
                GroupDecision::Infeasible { reason } => {
                    let reason = format!("{INFEASIBLE}it: {reason}");
                    self.groups.on_unplaced(group_id, &reason, &mut out);
                }
            }
            // What one takes is not there for the next.
            self.note_group_effects(std::mem::take(&mut out), now, fx);
        }
        self.pending_groups.tried(self.usage.view().version());
    }

    /// Panics if the tables contradict themselves or one another; for tests.
    pub fn check_invariants(&self) {
        self.nodes.check_invariants();
        self.actors.check_invariants();
        self.usage.check_invariants();
        let waiting = self.actors.iter().filter(|info| matches!(info.phase, ActorPhase::Waiting { .. }));
        let waiting: Vec<_> = waiting.map(|info| info.actor_id).collect();
        assert_eq!(waiting, self.pending.iter().collect::<Vec<_>>(), "whoever waits is in the queue");
        self.groups.check_invariants();
        let pending = self.groups.iter().filter(|info| matches!(info.phase, GroupPhase::Pending { .. }));
        let pending: Vec<_> = pending.map(|info| info.spec.group_id).collect();
        assert_eq!(
            pending,
            self.pending_groups.iter().collect::<Vec<_>>(),
            "groups that wait are in the queue"
        );
        for node_id in self.groups.nodes_with_bundles() {
            assert!(self.nodes.is_alive(&node_id), "bundles are on dead node {node_id}");
        }
        for info in self.groups.iter() {
            let job_ended = self.jobs.is_finished(&info.spec.job_id) && !info.spec.detached;
            assert!(info.is_removed() || !job_ended, "{} outlived its job", info.spec.group_id);
        }
        for info in self.actors.iter() {
            if let Some(node_id) = info.phase.node_id() {
                assert!(self.nodes.is_alive(&node_id), "{} is on dead node {node_id}", info.actor_id);
            }
            let job_ended = self.jobs.is_finished(&info.job_id) && !info.detached;
            assert!(info.phase.is_dead() || !job_ended, "{} outlived its job", info.actor_id);
        }
    }
}
