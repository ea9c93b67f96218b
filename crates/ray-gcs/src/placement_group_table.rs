//! Which placement groups there are, where each of them stands, and what has to happen next.
//!
//! ```text
//!  register              no room yet
//!     │                    ┌─────┐
//!     v                    v     │     (1) a node has no room after all, or died
//!  PENDING ───────────────────── ┘ <──────────┐
//!     │  ^ placed on nodes                    │(1)
//!     │  └──────── PREPARING ─────────────────┤
//!     v                │ all have reserved    │
//!  PREPARING ──────────┘──> PREPARED ─────────┘
//!     │ the only one has reserved  │ all were told
//!     v                            v
//!  CREATED <───────────────────────┘
//!     │ a node with bundles died: PENDING again, for those bundles only (shown as RESCHEDULING)
//!     │
//!  any of them: removed, or its job ended ──> REMOVED (for good)
//! ```
//!
//! Bundles are reserved in two phases, so that a group is never created in part: first every node takes its
//! bundles out of what it gives to others, then, when all have, they are told that the bundles may be used. An attempt
//! that concerns one node only needs one order for both. Attempts are numbered; orders and answers name theirs, and
//! those of an earlier one change nothing.
//!
//! As with actors, orders stand until they are acknowledged or their node dies, and follow from what is kept: those to
//! reserve and to commit from the group's state, those to give back are kept themselves.
//!
//! Actors that are placed in a group claim a share of one of its bundles here, so that no more of them are sent there
//! than fit. What tasks take is the node's matter.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use ray_core::id::{ActorId, JobId, NodeId, PlacementGroupId};
use ray_core::resource::Resources;

use crate::clock::Now;
use crate::error::GroupError;
use crate::placement_group::{BundleOrder, GroupInfo, GroupPhase, GroupSpec, Reservation, ReturnOrder};

/// What follows from a change of the table.
#[derive(Debug, Clone, PartialEq)]
pub enum GroupEffect {
    /// The group's state changed: keep it, then tell everyone.
    Changed(Arc<GroupInfo>),
    /// A removed group is not kept any longer.
    Forget(PlacementGroupId),
    /// Find nodes for this group and call [`PlacementGroupTable::on_placed`].
    Schedule(PlacementGroupId),
    /// Give this order to its node.
    Order(BundleOrder),
    /// Keep this order to give back.
    KeepReturn(ReturnOrder),
    /// An order to give back is carried out or pointless.
    ReturnDone(ReturnOrder),
    /// So much of the node is asked for.
    Ordered(Reservation, Resources),
    /// The node has taken it out of what it gives to others.
    Taken(Reservation),
    /// So much of the node is free again, or soon.
    Vacated(Reservation, Resources),
    /// The node has less room than it said; for a while nothing should go there.
    GivenBack(NodeId),
    /// The group is gone, for this reason: what runs in it ends.
    Removed(PlacementGroupId, String),
}

/// What came of looking for a bundle for an actor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BundlePlacement {
    /// This node, where the bundle is claimed.
    On(NodeId),
    /// Not now, for this reason.
    Wait(String),
    /// No bundle can ever hold it, for this reason.
    Never(String),
    /// The group is gone, for this reason.
    Removed(String),
}

/// What an actor takes of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claim {
    index: u32,
    amount: Resources,
}

#[derive(Debug)]
struct Group {
    info: Arc<GroupInfo>,
    /// The nodes that have answered the orders of the present phase.
    answered: BTreeSet<NodeId>,
    /// The attempt by which each bundle came to its node; 0 if that is not known any more.
    reserved_in: Vec<u64>,
    claims: BTreeMap<ActorId, Claim>,
}

/// All placement groups.
#[derive(Debug)]
pub struct PlacementGroupTable {
    groups: BTreeMap<PlacementGroupId, Group>,
    /// Namespace and name of groups that are not removed.
    names: BTreeMap<(String, String), PlacementGroupId>,
    returns: BTreeMap<Reservation, ReturnOrder>,
    /// Removed groups, the one that was removed first in front.
    removed: VecDeque<PlacementGroupId>,
    removed_kept: usize,
}

impl PlacementGroupTable {
    /// An empty table that keeps the last `removed_kept` removed groups.
    pub fn new(removed_kept: usize) -> Self {
        Self {
            groups: BTreeMap::new(),
            names: BTreeMap::new(),
            returns: BTreeMap::new(),
            removed: VecDeque::new(),
            removed_kept,
        }
    }

    /// Puts a group back that was kept, without effects.
    pub fn restore(&mut self, info: GroupInfo) {
        let group_id = info.spec.group_id;
        if let (false, Some(name)) = (info.is_removed(), &info.spec.name) {
            self.names.insert((info.spec.namespace.clone(), name.clone()), group_id);
        }
        self.groups.insert(group_id, Group::new(Arc::new(info)));
    }

    /// Puts an order to give back that was kept.
    pub fn restore_return(&mut self, order: ReturnOrder) {
        self.returns.insert(order.target, order);
    }

    /// To be called once all is put back: orders the removed by their time, says what is asked of nodes, and asks
    /// again for nodes for whoever lacks one. Orders to nodes are in [`PlacementGroupTable::outstanding`].
    pub fn finish_restore(&mut self, out: &mut Vec<GroupEffect>) {
        let mut removed = Vec::new();
        for (&group_id, group) in &self.groups {
            match &group.info.phase {
                GroupPhase::Pending { .. } => out.push(GroupEffect::Schedule(group_id)),
                GroupPhase::Preparing | GroupPhase::Prepared => {
                    let targets = group.attempt_nodes().into_iter().map(|node_id| group.reservation(node_id));
                    out.extend(targets.map(|target| GroupEffect::Ordered(target, group.under_way(target))));
                }
                GroupPhase::Created => {}
                GroupPhase::Removed { at_ms, .. } => removed.push((*at_ms, group_id)),
            }
        }
        removed.sort_unstable();
        self.removed = removed.into_iter().map(|(_, id)| id).collect();
    }

    /// Takes a group in. A group that is known already is left as it is.
    ///
    /// # Errors
    /// [`GroupError::NameTaken`] if a group that is not removed has the name.
    pub fn register(
        &mut self,
        spec: GroupSpec,
        out: &mut Vec<GroupEffect>,
    ) -> Result<Arc<GroupInfo>, GroupError> {
        let group_id = spec.group_id;
        if let Some(group) = self.groups.get(&group_id) {
            return Ok(Arc::clone(&group.info));
        }
        if let Some(name) = &spec.name {
            let key = (spec.namespace.clone(), name.clone());
            if let Some(&holder) = self.names.get(&key) {
                let (namespace, name) = key;
                return Err(GroupError::NameTaken { name, namespace, holder });
            }
            self.names.insert(key, group_id);
        }
        let info = Arc::new(GroupInfo::new(spec));
        out.push(GroupEffect::Changed(Arc::clone(&info)));
        out.push(GroupEffect::Schedule(group_id));
        self.groups.insert(group_id, Group::new(Arc::clone(&info)));
        Ok(info)
    }

    /// Nodes were found for the bundles of a group that had none; if it does not wait for any, this changes nothing.
    pub fn on_placed(
        &mut self,
        group_id: PlacementGroupId,
        nodes: &BTreeMap<u32, NodeId>,
        out: &mut Vec<GroupEffect>,
    ) {
        let Some(group) = self.groups.get_mut(&group_id).filter(|group| group.is_pending()) else { return };
        let info = Arc::make_mut(&mut group.info);
        info.attempt += 1;
        for (&index, &node_id) in nodes {
            if let Some(node) = info.nodes.get_mut(index as usize) {
                *node = Some(node_id);
                group.reserved_in[index as usize] = info.attempt;
            }
        }
        group.enter(GroupPhase::Preparing, out);
        let on = group.attempt_nodes();
        let commit = on.len() == 1;
        for node_id in on {
            let target = group.reservation(node_id);
            out.push(GroupEffect::Ordered(target, group.under_way(target)));
            out.push(GroupEffect::Order(group.reserve_order(target, commit)));
        }
    }

    /// There are no nodes for all bundles now; the group goes on waiting, for `reason`.
    pub fn on_unplaced(&mut self, group_id: PlacementGroupId, reason: &str, out: &mut Vec<GroupEffect>) {
        let Some(group) = self.groups.get_mut(&group_id) else { return };
        if let GroupPhase::Pending { reason: known } = &group.info.phase
            && known != reason
        {
            group.enter(GroupPhase::Pending { reason: reason.to_owned() }, out);
        }
    }

    /// A node has reserved what it was asked for.
    pub fn on_reserved(&mut self, target: &Reservation, now: Now, out: &mut Vec<GroupEffect>) {
        let Some(group) = self.current_mut(target, &GroupPhase::Preparing) else { return };
        if !group.answered.insert(target.node_id) {
            return;
        }
        out.push(GroupEffect::Taken(*target));
        let on = group.attempt_nodes();
        if group.answered.len() < on.len() {
            return;
        }
        if on.len() == 1 {
            group.create(now, out);
            return;
        }
        group.enter(GroupPhase::Prepared, out);
        let orders = on.into_iter().map(|node_id| BundleOrder::Commit(group.reservation(node_id)));
        out.extend(orders.map(GroupEffect::Order));
    }

    /// A node was told that its bundles may be used.
    pub fn on_committed(&mut self, target: &Reservation, now: Now, out: &mut Vec<GroupEffect>) {
        let Some(group) = self.current_mut(target, &GroupPhase::Prepared) else { return };
        group.answered.insert(target.node_id);
        if group.answered.len() == group.attempt_nodes().len() {
            group.create(now, out);
        }
    }

    /// A node has no room for what it was asked to reserve, or knows nothing of what it should commit.
    pub fn on_refused(&mut self, target: &Reservation, why: &str, out: &mut Vec<GroupEffect>) {
        let Some(group) = self.groups.get(&target.group_id) else { return };
        let under_way = matches!(group.info.phase, GroupPhase::Preparing | GroupPhase::Prepared);
        if !under_way || group.info.attempt != target.attempt {
            return;
        }
        // First, so that what is given up is not placed there at once again.
        out.push(GroupEffect::GivenBack(target.node_id));
        self.give_up(target.group_id, Some(target.node_id), why, out);
    }

    /// A node has given bundles back.
    pub fn on_returned(&mut self, target: &Reservation, out: &mut Vec<GroupEffect>) {
        out.extend(self.returns.remove(target).map(GroupEffect::ReturnDone));
    }

    /// A node died: the bundles that it held are placed anew.
    pub fn on_node_dead(&mut self, node_id: NodeId, reason: &str, out: &mut Vec<GroupEffect>) {
        let pointless: Vec<_> = self.returns_on(node_id).map(|(target, _)| *target).collect();
        for target in pointless {
            out.extend(self.returns.remove(&target).map(GroupEffect::ReturnDone));
        }
        let holds = |group: &Group| !group.info.is_removed() && group.info.nodes.contains(&Some(node_id));
        let concerned: Vec<_> =
            self.groups.iter().filter(|(_, group)| holds(group)).map(|(&id, _)| id).collect();
        for group_id in concerned {
            let message = format!("node {node_id}, which held some of its bundles, died: {reason}");
            if self.groups[&group_id].attempt_nodes().contains(&node_id) {
                self.give_up(group_id, Some(node_id), &message, out);
            }
            self.lose(group_id, node_id, &message, out);
        }
    }

    /// Removes a group for good. Removing it again changes nothing.
    ///
    /// # Errors
    /// [`GroupError::Unknown`].
    pub fn remove(
        &mut self,
        group_id: PlacementGroupId,
        reason: &str,
        now: Now,
        out: &mut Vec<GroupEffect>,
    ) -> Result<(), GroupError> {
        let group = self.groups.get_mut(&group_id).ok_or(GroupError::Unknown(group_id))?;
        if group.info.is_removed() {
            return Ok(());
        }
        if let Some(name) = &group.info.spec.name {
            self.names.remove(&(group.info.spec.namespace.clone(), name.clone()));
        }
        let mut held: BTreeMap<Reservation, Resources> = BTreeMap::new();
        for (at, bundle) in group.info.spec.bundles.iter().enumerate() {
            if let Some(node_id) = group.info.nodes[at] {
                let target = Reservation { node_id, group_id, attempt: group.reserved_in[at] };
                held.entry(target).or_default().add(&bundle.resources);
            }
        }
        let info = Arc::make_mut(&mut group.info);
        info.nodes.fill(None);
        info.committed.fill(false);
        // An attempt of its own, or its order would be taken for one that gives up the last attempt only.
        info.attempt += 1;
        let attempt = info.attempt;
        group.claims.clear();
        group.enter(GroupPhase::Removed { reason: reason.to_owned(), at_ms: now.unix_ms }, out);
        // Its actors first: they are ended one by one, with this cause.
        out.push(GroupEffect::Removed(group_id, reason.to_owned()));
        let nodes: BTreeSet<_> = held.keys().map(|target| target.node_id).collect();
        out.extend(held.into_iter().map(|(target, amount)| GroupEffect::Vacated(target, amount)));
        for node_id in nodes {
            let target = Reservation { node_id, group_id, attempt };
            self.order_return(ReturnOrder { target, all: true, reason: reason.to_owned() }, out);
        }
        self.removed.push_back(group_id);
        while self.removed.len() > self.removed_kept {
            let Some(oldest) = self.removed.pop_front() else { break };
            self.groups.remove(&oldest);
            out.push(GroupEffect::Forget(oldest));
        }
        Ok(())
    }

    /// A job ended: its groups are removed, but for the detached ones.
    pub fn on_job_finished(&mut self, job_id: JobId, now: Now, out: &mut Vec<GroupEffect>) {
        let ends = |info: &GroupInfo| info.spec.job_id == job_id && !info.spec.detached && !info.is_removed();
        let ended: Vec<_> = self.iter().filter(|info| ends(info)).map(|info| info.spec.group_id).collect();
        for group_id in ended {
            let removed = self.remove(group_id, &format!("its job {job_id} ended"), now, out);
            debug_assert_eq!(removed, Ok(()), "it was listed just now");
        }
    }

    // Actors in bundles.

    /// Looks for a bundle of the group for an actor that needs so much, and claims it.
    pub fn claim(
        &mut self,
        group_id: PlacementGroupId,
        index: Option<u32>,
        actor_id: ActorId,
        need: &Resources,
    ) -> BundlePlacement {
        let Some(group) = self.groups.get_mut(&group_id) else {
            return BundlePlacement::Removed(format!("placement group {group_id} was removed"));
        };
        if let GroupPhase::Removed { reason, .. } = &group.info.phase {
            return BundlePlacement::Removed(format!("placement group {group_id} was removed: {reason}"));
        }
        let bundles = group.info.spec.bundles.iter().enumerate();
        let candidates: Vec<_> = bundles
            .filter(|(at, bundle)| {
                index.is_none_or(|index| index as usize == *at) && bundle.resources.can_satisfy(need)
            })
            .map(|(at, _)| at)
            .collect();
        if candidates.is_empty() {
            let which =
                index.map_or_else(|| "no bundle".to_owned(), |index| format!("bundle {index} cannot"));
            return BundlePlacement::Never(format!("{which} of placement group {group_id} hold {need}"));
        }
        if let GroupPhase::Pending { reason } = &group.info.phase {
            return BundlePlacement::Wait(format!("placement group {group_id} is not created: {reason}"));
        }
        if group.info.phase != GroupPhase::Created {
            return BundlePlacement::Wait(format!("placement group {group_id} is being created"));
        }
        match candidates.into_iter().find(|&at| group.free_in(at).can_satisfy(need)) {
            Some(at) => {
                let claim = Claim { index: at as u32, amount: need.clone() };
                group.claims.insert(actor_id, claim);
                BundlePlacement::On(group.info.nodes[at].expect("a created group has all its nodes"))
            }
            None => BundlePlacement::Wait(format!(
                "{need} is free in no bundle of placement group {group_id} that it may be in"
            )),
        }
    }

    /// Notes what an actor takes that was placed before the control plane came up again.
    pub fn restore_claim(
        &mut self,
        group_id: PlacementGroupId,
        index: Option<u32>,
        actor_id: ActorId,
        node_id: NodeId,
        amount: &Resources,
    ) {
        let Some(group) = self.groups.get_mut(&group_id) else { return };
        let on_node = |at: &usize| {
            group.info.nodes[*at] == Some(node_id) && index.is_none_or(|index| index as usize == *at)
        };
        let candidates: Vec<_> = (0..group.info.nodes.len()).filter(on_node).collect();
        let fits = candidates.iter().find(|&&at| group.free_in(at).can_satisfy(amount));
        if let Some(&at) = fits.or_else(|| candidates.first()) {
            group.claims.insert(actor_id, Claim { index: at as u32, amount: amount.clone() });
        }
    }

    /// The bundle that an actor has claimed.
    pub fn claimed_by(&self, group_id: &PlacementGroupId, actor_id: &ActorId) -> Option<u32> {
        self.groups.get(group_id)?.claims.get(actor_id).map(|claim| claim.index)
    }

    /// An actor lives, and takes no more than this from now on.
    pub fn settle_claim(&mut self, group_id: &PlacementGroupId, actor_id: &ActorId, rest: &Resources) {
        let group = self.groups.get_mut(group_id);
        if let Some(claim) = group.and_then(|group| group.claims.get_mut(actor_id)) {
            claim.amount = rest.clone();
        }
    }

    /// An actor takes nothing any more.
    pub fn release_claim(&mut self, group_id: &PlacementGroupId, actor_id: &ActorId) {
        if let Some(group) = self.groups.get_mut(group_id) {
            group.claims.remove(actor_id);
        }
    }

    // What there is.

    /// The group with this id.
    ///
    /// # Errors
    /// [`GroupError::Unknown`].
    pub fn get(&self, group_id: &PlacementGroupId) -> Result<&Arc<GroupInfo>, GroupError> {
        self.groups.get(group_id).map(|group| &group.info).ok_or(GroupError::Unknown(*group_id))
    }

    /// The group with this name that is not removed.
    ///
    /// # Errors
    /// [`GroupError::NoSuchName`].
    pub fn by_name(&self, namespace: &str, name: &str) -> Result<&Arc<GroupInfo>, GroupError> {
        let key = (namespace.to_owned(), name.to_owned());
        let group = self.names.get(&key).and_then(|group_id| self.groups.get(group_id));
        group.map(|group| &group.info).ok_or_else(|| {
            let (namespace, name) = key;
            GroupError::NoSuchName { name, namespace }
        })
    }

    /// All groups, in the order of ids.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<GroupInfo>> {
        self.groups.values().map(|group| &group.info)
    }

    /// The nodes that hold bundles, or have to give some back.
    pub fn nodes_with_bundles(&self) -> BTreeSet<NodeId> {
        let held = self.iter().flat_map(|info| info.nodes.iter().flatten().copied());
        held.chain(self.returns.keys().map(|target| target.node_id)).collect()
    }

    /// What the node has not acknowledged yet.
    pub fn outstanding(&self, node_id: NodeId) -> Vec<BundleOrder> {
        let returns = self.returns_on(node_id).map(|(_, order)| BundleOrder::Return(order.clone()));
        let unanswered =
            |group: &&Group| !group.answered.contains(&node_id) && group.attempt_nodes().contains(&node_id);
        let orders = self.groups.values().filter(unanswered).filter_map(|group| {
            let target = group.reservation(node_id);
            match group.info.phase {
                GroupPhase::Preparing => Some(group.reserve_order(target, group.attempt_nodes().len() == 1)),
                GroupPhase::Prepared => Some(BundleOrder::Commit(target)),
                GroupPhase::Pending { .. } | GroupPhase::Created | GroupPhase::Removed { .. } => None,
            }
        });
        returns.chain(orders).collect()
    }

    fn returns_on(&self, node_id: NodeId) -> impl Iterator<Item = (&Reservation, &ReturnOrder)> {
        let first = Reservation { node_id, group_id: PlacementGroupId::from_bytes([0; 16]), attempt: 0 };
        self.returns.range(first..).take_while(move |(target, _)| target.node_id == node_id)
    }

    /// The group, if `target` is of the attempt under way and it is in this phase.
    fn current_mut(&mut self, target: &Reservation, phase: &GroupPhase) -> Option<&mut Group> {
        let group = self.groups.get_mut(&target.group_id)?;
        let is_current = group.info.phase == *phase
            && group.info.attempt == target.attempt
            && group.attempt_nodes().contains(&target.node_id);
        is_current.then_some(group)
    }

    /// Gives the attempt under way up: its nodes give back what they reserved, but for the one that has
    /// done nothing or is dead.
    fn give_up(
        &mut self,
        group_id: PlacementGroupId,
        but: Option<NodeId>,
        why: &str,
        out: &mut Vec<GroupEffect>,
    ) {
        let Some(group) = self.groups.get_mut(&group_id) else { return };
        let mut orders = Vec::new();
        for node_id in group.attempt_nodes() {
            let target = group.reservation(node_id);
            out.push(GroupEffect::Vacated(target, group.under_way(target)));
            if Some(node_id) != but {
                orders.push(ReturnOrder { target, all: false, reason: why.to_owned() });
            }
        }
        let info = Arc::make_mut(&mut group.info);
        for (node, committed) in info.nodes.iter_mut().zip(&info.committed) {
            if !committed {
                *node = None;
            }
        }
        group.enter(GroupPhase::Pending { reason: why.to_owned() }, out);
        out.push(GroupEffect::Schedule(group_id));
        orders.into_iter().for_each(|order| self.order_return(order, out));
    }

    /// The bundles that were reserved for good on a dead node need another.
    fn lose(&mut self, group_id: PlacementGroupId, node_id: NodeId, why: &str, out: &mut Vec<GroupEffect>) {
        let Some(group) = self.groups.get_mut(&group_id) else { return };
        if !group.info.nodes.contains(&Some(node_id)) {
            return;
        }
        let info = Arc::make_mut(&mut group.info);
        for (node, committed) in info.nodes.iter_mut().zip(&mut info.committed) {
            if *node == Some(node_id) {
                *node = None;
                *committed = false;
            }
        }
        let nodes = &info.nodes;
        group.claims.retain(|_, claim| nodes[claim.index as usize].is_some());
        // An attempt for other bundles that is under way goes on; what is lost now is looked for after it.
        if !matches!(group.info.phase, GroupPhase::Preparing | GroupPhase::Prepared) {
            group.enter(GroupPhase::Pending { reason: why.to_owned() }, out);
            out.push(GroupEffect::Schedule(group_id));
        }
    }

    fn order_return(&mut self, order: ReturnOrder, out: &mut Vec<GroupEffect>) {
        // Also if the same was ordered before: something may have been reserved since.
        self.returns.insert(order.target, order.clone());
        out.push(GroupEffect::KeepReturn(order.clone()));
        out.push(GroupEffect::Order(BundleOrder::Return(order)));
    }

    /// Panics if the table contradicts itself; for tests.
    pub fn check_invariants(&self) {
        let mut removed = 0;
        for (group_id, group) in &self.groups {
            let info = &group.info;
            assert_eq!(info.spec.group_id, *group_id);
            let placed = |at: usize| info.nodes[at].is_some();
            for at in 0..info.nodes.len() {
                assert!(placed(at) || !info.committed[at], "what is committed is somewhere: {info:?}");
            }
            match info.phase {
                GroupPhase::Created => assert!(info.committed.iter().all(|&committed| committed), "{info:?}"),
                GroupPhase::Pending { .. } => {
                    assert!(group.attempt_nodes().is_empty(), "no attempt is under way: {info:?}");
                    assert!(
                        !info.committed.iter().all(|&committed| committed),
                        "it lacks something: {info:?}"
                    );
                }
                GroupPhase::Preparing | GroupPhase::Prepared => {
                    assert!(!group.attempt_nodes().is_empty(), "an attempt is under way: {info:?}");
                }
                GroupPhase::Removed { .. } => {
                    removed += 1;
                    assert!(info.nodes.iter().all(Option::is_none), "it holds nothing: {info:?}");
                }
            }
            if let Some(name) = info.spec.name.as_ref().filter(|_| !info.is_removed()) {
                let holder = self.names.get(&(info.spec.namespace.clone(), name.clone()));
                assert_eq!(holder, Some(group_id), "a group that is not removed holds its name");
            }
            for at in 0..info.nodes.len() {
                let claims = group.claims.values().filter(|claim| claim.index as usize == at);
                let mut claimed = Resources::new();
                claims.for_each(|claim| claimed.add(&claim.amount));
                assert!(info.committed[at] || claimed.is_empty(), "claims are on what is there: {info:?}");
            }
        }
        for holder in self.names.values() {
            assert!(!self.groups[holder].info.is_removed(), "removed groups hold no names");
        }
        assert_eq!(removed, self.removed.len(), "exactly the removed are listed as removed");
        assert!(removed <= self.removed_kept, "{removed} removed groups are kept");
    }
}

impl Group {
    fn new(info: Arc<GroupInfo>) -> Self {
        let reserved_in = vec![0; info.nodes.len()];
        Self { info, answered: BTreeSet::new(), reserved_in, claims: BTreeMap::new() }
    }

    fn is_pending(&self) -> bool {
        matches!(self.info.phase, GroupPhase::Pending { .. })
    }

    /// The nodes of the attempt under way.
    fn attempt_nodes(&self) -> BTreeSet<NodeId> {
        let bundles = self.info.nodes.iter().zip(&self.info.committed);
        bundles.filter(|(_, committed)| !**committed).filter_map(|(node, _)| *node).collect()
    }

    fn reservation(&self, node_id: NodeId) -> Reservation {
        Reservation { node_id, group_id: self.info.spec.group_id, attempt: self.info.attempt }
    }

    /// What the attempt under way takes of the node.
    fn under_way(&self, target: Reservation) -> Resources {
        let mut sum = Resources::new();
        self.info.under_way_on(target.node_id).iter().for_each(|(_, amount)| sum.add(amount));
        sum
    }

    fn reserve_order(&self, target: Reservation, commit: bool) -> BundleOrder {
        BundleOrder::Reserve { target, bundles: self.info.under_way_on(target.node_id), commit }
    }

    /// What no actor has claimed of a bundle.
    fn free_in(&self, at: usize) -> Resources {
        let mut free = self.info.spec.bundles[at].resources.clone();
        for claim in self.claims.values().filter(|claim| claim.index as usize == at) {
            // An actor of before a restart may have been noted on the wrong bundle.
            for (name, amount) in claim.amount.iter() {
                let rest = free.get(name).saturating_sub(amount);
                free.set(name, rest);
            }
        }
        free
    }

    /// The attempt under way has succeeded.
    fn create(&mut self, now: Now, out: &mut Vec<GroupEffect>) {
        let group_id = self.info.spec.group_id;
        let info = Arc::make_mut(&mut self.info);
        for (node, committed) in info.nodes.iter().zip(&mut info.committed) {
            *committed = node.is_some();
        }
        if info.committed.iter().all(|&committed| committed) {
            if info.created_ms == 0 {
                info.created_ms = now.unix_ms.max(1);
            }
            self.enter(GroupPhase::Created, out);
        } else {
            let reason = "the node of some of its bundles died".to_owned();
            self.enter(GroupPhase::Pending { reason }, out);
            out.push(GroupEffect::Schedule(group_id));
        }
    }

    fn enter(&mut self, phase: GroupPhase, out: &mut Vec<GroupEffect>) {
        self.answered.clear();
        let info = Arc::make_mut(&mut self.info);
        info.phase = phase;
        info.version += 1;
        out.push(GroupEffect::Changed(Arc::clone(&self.info)));
    }
}

#[cfg(test)]
#[path = "placement_group_table_tests.rs"]
mod tests;
