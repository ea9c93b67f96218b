//! Placement groups on the node: the bundles that it has reserved, and what is told of groups to those who ask.
//!
//! The control plane decides which bundles are where; the node reserves them, lets leases and actors take of them once
//! they are committed, and ends those when it is told to give the bundles back. Orders name the attempt that they
//! belong to. One that is over here, because it was refused or given back, is never taken up again, however late a
//! copy of its order comes.
//!
//! A group is followed from the first who asks for it until it is removed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use ray_core::constraint::BundleId;
use ray_core::id::{LeaseId, NodeId, PlacementGroupId};
use ray_core::pb::common::{DeathCause, death_cause::Kind};
use ray_core::resource::Resources;
use ray_link::FromRaylet;
use ray_link::message::Unschedulable;

use super::effect::{ClientId, Effect};
use super::machine::NodeMachine;
use crate::lease_table::Holder;

/// Attempts that are over and remembered.
const MAX_OVER: usize = 10_000;

/// The last attempt for each group that is over here; those before it are, too.
#[derive(Debug, Default)]
pub(super) struct OverAttempts {
    attempts: BTreeMap<PlacementGroupId, u64>,
    oldest_first: VecDeque<PlacementGroupId>,
}

impl OverAttempts {
    fn note(&mut self, group_id: PlacementGroupId, attempt: u64) {
        let last = self.attempts.entry(group_id).or_insert_with(|| {
            self.oldest_first.push_back(group_id);
            attempt
        });
        *last = attempt.max(*last);
        if self.oldest_first.len() > MAX_OVER
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.attempts.remove(&oldest);
        }
    }

    fn has(&self, group_id: PlacementGroupId, attempt: u64) -> bool {
        self.attempts.get(&group_id).is_some_and(|&last| last >= attempt)
    }
}

/// The order to reserve bundles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReserveOrder {
    /// The group.
    pub group_id: PlacementGroupId,
    /// Which attempt to place it.
    pub attempt: u64,
    /// The bundles, by their indices.
    pub bundles: Vec<(u32, Resources)>,
    /// Whether they may be used at once.
    pub commit: bool,
}

/// Where a group stands, as far as a node has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupState {
    /// It cannot be used yet, for this reason.
    Pending(String),
    /// It can be used.
    Created,
    /// It is gone, for this reason.
    Removed(String),
}

/// What the control plane says of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupNews {
    /// The group.
    pub group_id: PlacementGroupId,
    /// Grows with each change.
    pub version: u64,
    /// Where it stands.
    pub state: GroupState,
    /// For each bundle its node, if it has one.
    pub nodes: Vec<Option<NodeId>>,
    /// What each bundle has.
    pub bundles: Vec<Resources>,
    /// The encoded `ray.common.PlacementGroupInfo`.
    pub info: Bytes,
}

/// A group that somebody here asks for.
#[derive(Debug, Default)]
pub(super) struct FollowedGroup {
    /// What is known of it, if anything is yet.
    pub(super) news: Option<GroupNews>,
    subscribers: BTreeSet<ClientId>,
}

impl NodeMachine {
    /// Reserves bundles, all of them or none. Asking again is asking once.
    ///
    /// # Errors
    /// Why it does not: nothing is reserved then, nor ever will be for this attempt.
    pub fn on_reserve_bundles(&mut self, now: Instant, order: &ReserveOrder) -> Result<(), String> {
        let ReserveOrder { group_id, attempt, bundles, commit } = order;
        if self.over_attempts.has(*group_id, *attempt) {
            return Err("this attempt to place the group is over".to_owned());
        }
        // There is one attempt at a time: those before this one are over, though they may not have been heard of.
        self.over_attempts.note(*group_id, attempt.saturating_sub(1));
        // What an earlier attempt has reserved in vain makes room; that it did so in vain may show in that the
        // same bundle is asked for again.
        for (bundle, earlier, committed) in self.resources.bundles(*group_id) {
            let again = bundles.iter().any(|(index, _)| *index == bundle.index);
            if earlier < *attempt && (!committed || again) {
                self.drop_bundle(now, bundle, "it is placed anew");
            }
        }
        let reserved = self.resources.reserve(*group_id, *attempt, bundles);
        self.mark_changed();
        match &reserved {
            Ok(()) if *commit => drop(self.on_commit_bundles(now, *group_id, *attempt)),
            Ok(()) => {}
            Err(_) => {
                self.over_attempts.note(*group_id, *attempt);
                self.serve(now);
            }
        }
        reserved
    }

    /// Lets the bundles of an attempt be used.
    ///
    /// # Errors
    /// If it has reserved nothing here.
    pub fn on_commit_bundles(
        &mut self,
        now: Instant,
        group_id: PlacementGroupId,
        attempt: u64,
    ) -> Result<(), String> {
        if !self.resources.commit(group_id, attempt) {
            return Err(format!("attempt {attempt} of placement group {group_id} has reserved nothing here"));
        }
        self.look_again_at_group(group_id);
        self.serve(now);
        Ok(())
    }

    /// Gives the bundles of an attempt back, with `all` those of earlier ones too, and ends what runs in them.
    pub fn on_return_bundles(
        &mut self,
        now: Instant,
        group_id: PlacementGroupId,
        attempt: u64,
        all: bool,
        reason: &str,
    ) {
        self.over_attempts.note(group_id, attempt);
        let concerned = |earlier: u64| if all { earlier <= attempt } else { earlier == attempt };
        let gone: Vec<_> =
            self.resources.bundles(group_id).into_iter().filter(|(_, of, _)| concerned(*of)).collect();
        if gone.is_empty() {
            return;
        }
        let reason = format!("placement group {group_id} was removed: {reason}");
        if all {
            // Told first, so that whoever loses a worker knows why.
            self.refuse_group(now, group_id, &reason);
            for lease_id in self.leases.of_group(group_id) {
                self.end_in_group(now, lease_id, &reason);
            }
        }
        for (bundle, _, _) in gone {
            self.drop_bundle(now, bundle, &reason);
        }
        self.mark_changed();
        self.serve(now);
    }

    /// Gives one bundle back, and ends what takes something of it.
    fn drop_bundle(&mut self, now: Instant, bundle: BundleId, reason: &str) {
        for lease_id in self.resources.leases_in(bundle) {
            self.end_in_group(now, lease_id, reason);
        }
        self.resources.return_bundle(bundle);
    }

    /// Ends a lease with what it takes of a bundle, at once.
    fn end_in_group(&mut self, now: Instant, lease_id: LeaseId, reason: &str) {
        match self.leases.get(lease_id).map(|lease| lease.holder) {
            Some(Holder::Actor(actor_id)) => {
                let kind = Kind::PlacementGroupRemoved.into();
                let cause = DeathCause { kind, message: reason.to_owned(), error: Vec::new() };
                self.end_actor(now, actor_id, cause);
                // Its process may take a moment to go.
                self.resources.release(lease_id);
            }
            Some(Holder::Client { .. } | Holder::Remote(_) | Holder::Task(_)) => {
                self.end_lease(now, lease_id, reason);
            }
            None => drop(self.resources.release(lease_id)),
        }
    }

    /// Tells all whose demands are in a group that is gone.
    fn refuse_group(&mut self, now: Instant, group_id: PlacementGroupId, reason: &str) {
        let inside = self.demands.iter().filter(|(_, demand)| demand.is_in(group_id));
        for key in inside.map(|(&key, _)| key).collect::<Vec<_>>() {
            self.refuse_demand(now, key, Unschedulable::PlacementGroupRemoved, reason.to_owned());
        }
    }

    /// Demands that wait for a group may be served now.
    fn look_again_at_group(&mut self, group_id: PlacementGroupId) {
        let inside = self.demands.iter().filter(|(_, demand)| demand.is_in(group_id));
        self.short.extend(inside.map(|(&key, _)| key));
    }

    // What is told of groups.

    /// The client wants to be told of this group. `is_new`: it is about to create it, and the control plane knows
    /// nothing of it yet.
    pub(super) fn on_subscribe_group(&mut self, client: ClientId, group_id: PlacementGroupId, is_new: bool) {
        let is_followed = self.groups.contains_key(&group_id);
        let group = self.groups.entry(group_id).or_default();
        group.subscribers.insert(client);
        match &group.news {
            Some(news) => {
                let info = Some(news.info.clone());
                self.effects.push(Effect::Send(client, FromRaylet::GroupState { group_id, info }));
            }
            None if is_new || is_followed => {}
            None => self.effects.push(Effect::FetchGroup(group_id)),
        }
    }

    /// What is known of a group; asks for it if nobody has yet.
    pub(super) fn follow_group(&mut self, group_id: PlacementGroupId) -> Option<&GroupNews> {
        if !self.groups.contains_key(&group_id) {
            self.effects.push(Effect::FetchGroup(group_id));
        }
        self.groups.entry(group_id).or_default().news.as_ref()
    }

    /// A client is gone.
    pub(super) fn unsubscribe_groups(&mut self, client: ClientId) {
        for group in self.groups.values_mut() {
            group.subscribers.remove(&client);
        }
    }

    /// The control plane tells where a group stands; what is older than what is known changes nothing.
    pub fn on_group_news(&mut self, now: Instant, news: GroupNews) {
        let group_id = news.group_id;
        let Some(group) = self.groups.get_mut(&group_id) else { return };
        if group.news.as_ref().is_some_and(|known| known.version >= news.version) {
            return;
        }
        let (info, state) = (news.info.clone(), news.state.clone());
        group.news = Some(news);
        for &client in &group.subscribers {
            let message = FromRaylet::GroupState { group_id, info: Some(info.clone()) };
            self.effects.push(Effect::Send(client, message));
        }
        match state {
            GroupState::Removed(reason) => {
                self.groups.remove(&group_id);
                let reason = format!("placement group {group_id} was removed: {reason}");
                self.refuse_group(now, group_id, &reason);
            }
            GroupState::Pending(_) | GroupState::Created => self.look_again_at_group(group_id),
        }
        self.serve(now);
    }

    /// The control plane does not know the group: it was removed long ago, or never created.
    pub fn on_group_unknown(&mut self, now: Instant, group_id: PlacementGroupId) {
        let Some(group) = self.groups.remove(&group_id) else { return };
        for client in group.subscribers {
            self.effects.push(Effect::Send(client, FromRaylet::GroupState { group_id, info: None }));
        }
        let reason = format!("placement group {group_id} was removed, or never created");
        self.refuse_group(now, group_id, &reason);
        self.serve(now);
    }

    /// All groups that the control plane knows: of the others, news were missed.
    pub fn on_groups_listed(&mut self, now: Instant, listed: &BTreeSet<PlacementGroupId>) {
        let lost =
            |(id, group): &(&PlacementGroupId, &FollowedGroup)| group.news.is_some() && !listed.contains(*id);
        for group_id in self.groups.iter().filter(lost).map(|(&id, _)| id).collect::<Vec<_>>() {
            self.on_group_unknown(now, group_id);
        }
    }
}
