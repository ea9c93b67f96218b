//! How many leases of one scheduling class each node is asked for.
//!
//! Each node gives out its own leases. The own one is told of all tasks that wait, and says which others may be asked
//! besides, and for how many (their *allowance*). A node is told how many leases to hold in all, those held included:
//!
//! ```text
//!               wanted grows by more than a quarter
//!        told ---------------------------------------> wanted, within the allowance
//!         |
//!         | nothing waits; or the node has dropped or lost what it was told
//!         v
//!        held
//! ```
//! As long as tasks wait, fewer of them are no news: the node would be told at each reply.

use ray_core::id::NodeId;
use ray_link::message::Allowance;

use super::Action;

/// Leases of one class that are asked for at most.
const MAX_LEASES: usize = 10_000;

/// The place of the own node.
pub(super) const OWN: usize = 0;

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Demand {
    class: u64,
    /// Each lease is to be on another node: none is kept for tasks to come, and the own node has to know of all
    /// leases and tasks, to say how many are to be elsewhere.
    spreads: bool,
    /// The nodes that are asked, or were; the own one first.
    places: Vec<Place>,
}

/// What is wanted and held on one node.
#[derive(Debug)]
struct Place {
    /// `None`: the own one.
    node: Option<NodeId>,
    /// What may be asked of it; of no meaning for the own node.
    allowance: Option<Allowance>,
    /// Leases; those of all nodes if this is the own one and the class spreads.
    held: usize,
    /// The tasks on them.
    in_flight: usize,
    /// How many leases the node was told to hold.
    told: usize,
    /// Others wait there for what its leases take.
    contended: bool,
}

impl Demand {
    /// Nothing is held or asked.
    pub(super) fn new(class: u64, spreads: bool) -> Self {
        Self { class, spreads, places: vec![Place::new(None)] }
    }

    /// Whether no task is with a worker.
    pub(super) fn has_none_in_flight(&self) -> bool {
        self.places.iter().all(|place| place.in_flight == 0)
    }

    /// Where a node is counted, if it is; `None`: the own one.
    pub(super) fn place_of(&self, node: Option<NodeId>) -> Option<usize> {
        self.places.iter().position(|place| place.node == node)
    }

    /// A node has granted a lease. Returns its place.
    pub(super) fn on_lease_granted(&mut self, node: Option<NodeId>) -> usize {
        let at = self.place_for(node);
        self.count(at, |place| place.held += 1);
        at
    }

    /// A lease has ended that held this many tasks.
    pub(super) fn on_lease_ended(&mut self, at: usize, tasks: usize) {
        self.count(at, |place| {
            place.held -= 1;
            place.in_flight -= tasks;
        });
    }

    /// A task was sent to a lease.
    pub(super) fn on_sent(&mut self, at: usize) {
        self.count(at, |place| place.in_flight += 1);
    }

    /// Tasks have left a lease.
    pub(super) fn on_back(&mut self, at: usize, tasks: usize) {
        self.count(at, |place| place.in_flight -= tasks);
    }

    /// Others wait on a node for what its leases take, or do so no longer.
    pub(super) fn set_contended(&mut self, at: usize, contended: bool) {
        self.places[at].contended = contended;
    }

    /// Whether others wait there for what its leases take.
    pub(super) fn is_contended(&self, at: usize) -> bool {
        self.places[at].contended
    }

    /// Whether a lease there is kept for tasks to come.
    pub(super) fn keeps_idle(&self, at: usize) -> bool {
        !self.spreads && !self.places[at].contended
    }

    /// The own node says what other nodes may be asked for; those that it does not name, for nothing.
    pub(super) fn on_elsewhere(&mut self, nodes: &[(NodeId, Allowance)]) {
        for place in self.places.iter_mut().skip(1) {
            place.allowance = None;
        }
        for &(node_id, allowance) in nodes {
            let at = self.place_for(Some(node_id));
            self.places[at].allowance = Some(allowance);
        }
    }

    /// A node has forgotten what it was told.
    pub(super) fn on_dropped(&mut self, node: Option<NodeId>) {
        if let Some(at) = self.place_of(node) {
            self.places[at].told = self.places[at].held;
        }
    }

    /// Another node is lost: nothing can be asked of it.
    pub(super) fn on_node_lost(&mut self, node_id: NodeId) {
        if let Some(at) = self.place_of(Some(node_id)) {
            self.places[at].allowance = None;
            self.places[at].told = self.places[at].held;
        }
    }

    /// The worker of a lease is gone, which the node knows, and counts it as held no longer.
    pub(super) fn on_worker_lost(&mut self, at: usize) {
        let place = &mut self.places[at];
        place.told = place.told.min(place.held);
    }

    /// Tells a node that no more is wanted than is held, so that it does not grant a lease anew that comes back to it.
    pub(super) fn lower(&mut self, at: usize, out: &mut Vec<Action>) {
        self.tell(at, self.places[at].held, out);
    }

    /// Tells each node how many leases are wanted for so many waiting tasks, if that differs enough from what it was
    /// told.
    pub(super) fn settle(&mut self, queued: usize, out: &mut Vec<Action>) {
        for at in 0..self.places.len() {
            let target = self.places[at].target(queued);
            if target != self.places[at].told {
                self.tell(at, target, out);
            }
        }
    }

    fn tell(&mut self, at: usize, target: usize, out: &mut Vec<Action>) {
        let place = &mut self.places[at];
        place.told = target;
        out.push(Action::SetDemand { class: self.class, node: place.node, target: target as u32 });
    }

    /// Counts something of one place, and at the own node what that has to know of.
    fn count(&mut self, at: usize, change: impl Fn(&mut Place)) {
        change(&mut self.places[at]);
        if self.spreads && at != OWN {
            change(&mut self.places[OWN]);
        }
    }

    /// Where a node is counted from now on.
    fn place_for(&mut self, node: Option<NodeId>) -> usize {
        if let Some(known) = self.place_of(node) {
            return known;
        }
        let place = Place::new(node);
        // One that nothing is held or wanted of any more makes room: nodes come and go.
        if let Some(free) = self.places.iter().position(Place::is_free) {
            self.places[free] = place;
            return free;
        }
        self.places.push(place);
        self.places.len() - 1
    }
}

impl Place {
    const fn new(node: Option<NodeId>) -> Self {
        Self { node, allowance: None, held: 0, in_flight: 0, told: 0, contended: false }
    }

    /// Whether its number may go to another node.
    const fn is_free(&self) -> bool {
        self.node.is_some() && self.allowance.is_none() && self.told + self.held == 0
    }

    /// What the node should be told while so many tasks wait.
    fn target(&self, queued: usize) -> usize {
        let Self { held, told, .. } = *self;
        if queued == 0 {
            // Requests that are not granted yet are withdrawn.
            return held;
        }
        let limit = self.limit();
        // On other nodes, what is held has its tasks, and each that waits may have one more.
        let needed = queued + if self.node.is_none() { self.in_flight } else { held };
        let wanted = needed.clamp(held, MAX_LEASES.max(held)).min(limit);
        if wanted > told + told / 4 { wanted } else { told.max(held).min(limit) }
    }

    /// How many leases may be asked of it in all.
    fn limit(&self) -> usize {
        match (self.node, self.allowance) {
            (None, _) => usize::MAX,
            (Some(_), None) => self.held,
            (Some(_), Some(Allowance::Waiting(more))) => self.held.saturating_add(more as usize),
            (Some(_), Some(Allowance::Held(all))) => self.held.max(all as usize),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: NodeId = NodeId::from_bytes([1; 16]);
    const B: NodeId = NodeId::from_bytes([2; 16]);

    fn demand(spreads: bool) -> Demand {
        Demand::new(0, spreads)
    }

    /// What the nodes are told now.
    fn settle(demand: &mut Demand, queued: usize) -> Vec<(Option<NodeId>, u32)> {
        let mut out = Vec::new();
        demand.settle(queued, &mut out);
        targets(&out)
    }

    fn targets(actions: &[Action]) -> Vec<(Option<NodeId>, u32)> {
        let target = |action: &Action| match *action {
            Action::SetDemand { class: 0, node, target } => (node, target),
            ref other => panic!("{other:?} is no demand of this class"),
        };
        actions.iter().map(target).collect()
    }

    #[test]
    fn a_demand_is_raised_in_steps_of_a_quarter_and_withdrawn_when_nothing_waits() {
        let mut demand = demand(false);
        assert_eq!(settle(&mut demand, 8), [(None, 8)]);
        assert_eq!(settle(&mut demand, 8), [], "said once");
        assert_eq!(settle(&mut demand, 10), [], "a quarter more is not worth a message");
        assert_eq!(settle(&mut demand, 11), [(None, 11)]);
        assert_eq!(settle(&mut demand, 1), [], "it is not lowered while something waits");
        assert_eq!(settle(&mut demand, 0), [(None, 0)]);
    }

    #[test]
    fn what_runs_counts_on_the_own_node_and_what_is_held_is_never_asked_back() {
        let mut demand = demand(false);
        assert_eq!(demand.on_lease_granted(None), OWN);
        demand.on_sent(OWN);
        demand.on_sent(OWN);
        assert_eq!(settle(&mut demand, 3), [(None, 5)]);
        demand.on_back(OWN, 2);
        assert!(demand.has_none_in_flight());
        assert_eq!(settle(&mut demand, 0), [(None, 1)]);
    }

    #[test]
    fn not_more_than_ten_thousand_leases_are_asked_for() {
        assert_eq!(settle(&mut demand(false), 1_000_000), [(None, MAX_LEASES as u32)]);
    }

    #[test]
    fn other_nodes_are_asked_besides_as_far_as_the_own_one_allows() {
        let mut demand = demand(false);
        settle(&mut demand, 5);
        demand.on_elsewhere(&[(A, Allowance::Waiting(2)), (B, Allowance::Held(1))]);
        assert_eq!(settle(&mut demand, 5), [(Some(A), 2), (Some(B), 1)], "what the own node was told stands");
        demand.on_lease_granted(Some(A));
        demand.on_lease_granted(Some(B));
        assert_eq!(settle(&mut demand, 4), [(Some(A), 3)], "so many more, and so many in all");
        demand.on_elsewhere(&[]);
        assert_eq!(settle(&mut demand, 4), [(Some(A), 1)], "what is held there stays");
    }

    #[test]
    fn a_node_that_has_dropped_or_lost_what_it_was_told_is_told_again() {
        let mut demand = demand(false);
        demand.on_elsewhere(&[(A, Allowance::Waiting(9))]);
        settle(&mut demand, 2);
        demand.on_dropped(None);
        demand.on_dropped(Some(B));
        assert_eq!(settle(&mut demand, 2), [(None, 2)]);
        demand.on_node_lost(A);
        assert_eq!(settle(&mut demand, 2), [], "it is gone, and not told so");
        demand.on_lease_granted(None);
        demand.on_lease_granted(None);
        demand.on_lease_ended(OWN, 0);
        demand.on_worker_lost(OWN);
        assert_eq!(settle(&mut demand, 2), [(None, 2)], "the node has one lease less");
    }

    #[test]
    fn a_lease_that_goes_back_lowers_the_demand_first_even_if_the_node_knows() {
        let (mut demand, mut out) = (demand(false), Vec::new());
        settle(&mut demand, 3);
        demand.lower(OWN, &mut out);
        demand.lower(OWN, &mut out);
        assert_eq!(targets(&out), [(None, 0), (None, 0)]);
        assert_eq!(settle(&mut demand, 3), [(None, 3)]);
    }

    #[test]
    fn the_own_node_is_told_of_all_that_is_spread() {
        let mut demand = demand(true);
        demand.on_elsewhere(&[(A, Allowance::Held(1))]);
        let at = demand.on_lease_granted(Some(A));
        demand.on_sent(at);
        assert_eq!(settle(&mut demand, 4), [(None, 5), (Some(A), 1)]);
        demand.on_lease_ended(at, 1);
        assert!(demand.has_none_in_flight());
        assert_eq!(settle(&mut demand, 0), [(None, 0), (Some(A), 0)]);
    }

    #[test]
    fn an_idle_lease_is_kept_unless_others_wait_there_or_it_is_spread() {
        assert!(!demand(true).keeps_idle(OWN));
        let mut demand = demand(false);
        let at = demand.on_lease_granted(Some(A));
        demand.set_contended(at, true);
        assert!(!demand.keeps_idle(at));
        assert!(demand.keeps_idle(OWN), "contention is a matter of one node");
        demand.set_contended(at, false);
        assert!(demand.keeps_idle(at));
    }

    #[test]
    fn nodes_that_are_done_with_make_room_for_others() {
        let mut demand = demand(false);
        let at = demand.on_lease_granted(Some(A));
        settle(&mut demand, 1);
        demand.set_contended(at, true);
        demand.on_lease_ended(at, 0);
        assert_ne!(
            demand.on_lease_granted(Some(B)),
            at,
            "the first one has still to be told that none is wanted"
        );
        settle(&mut demand, 0);
        let third = NodeId::from_bytes([3; 16]);
        assert_eq!(demand.on_lease_granted(Some(third)), at);
        assert!(!demand.is_contended(at), "it inherits nothing");
        assert_eq!(demand.place_of(Some(A)), None);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Grant(bool),
        Send(usize),
        Back(usize),
        End(usize),
        Lose(usize),
        Elsewhere(u32, bool),
        Drop(bool),
        NodeLost,
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            3 => any::<bool>().prop_map(Event::Grant),
            4 => any::<usize>().prop_map(Event::Send),
            2 => any::<usize>().prop_map(Event::Back),
            2 => any::<usize>().prop_map(Event::End),
            1 => any::<usize>().prop_map(Event::Lose),
            2 => (0u32..50, any::<bool>()).prop_map(|(count, all)| Event::Elsewhere(count, all)),
            1 => any::<bool>().prop_map(Event::Drop),
            1 => Just(Event::NodeLost),
        ]
    }

    proptest! {
        /// Whatever happens, what was told last is no less than what is held, enough for what waits, and no more than
        /// the own node has allowed; and nothing is asked if nothing waits.
        #[test]
        fn a_node_is_told_enough_and_not_too_much(
            events in prop::collection::vec((any_event(), 0usize..60), 0..100),
            spreads in any::<bool>(),
        ) {
            let mut demand = demand(spreads);
            // The node and the tasks of each lease, and what the own node has allowed of the other.
            let (mut leases, mut allowed): (Vec<(usize, usize)>, _) = (Vec::new(), None);
            for (event, queued) in events {
                let mut out = Vec::new();
                match event {
                    Event::Grant(here) => leases.push((demand.on_lease_granted((!here).then_some(A)), 0)),
                    Event::Elsewhere(count, all) => {
                        let allowance = if all { Allowance::Held(count) } else { Allowance::Waiting(count) };
                        demand.on_elsewhere(&[(A, allowance)]);
                        allowed = Some(allowance);
                    }
                    Event::Drop(here) => demand.on_dropped((!here).then_some(A)),
                    Event::NodeLost => {
                        demand.on_node_lost(A);
                        allowed = None;
                    }
                    Event::Send(pick) if !leases.is_empty() => {
                        let at = pick % leases.len();
                        leases[at].1 += 1;
                        demand.on_sent(leases[at].0);
                    }
                    Event::Back(pick) if !leases.is_empty() => {
                        let at = pick % leases.len();
                        demand.on_back(leases[at].0, std::mem::take(&mut leases[at].1));
                    }
                    Event::End(pick) if !leases.is_empty() => {
                        let (place, tasks) = leases.swap_remove(pick % leases.len());
                        demand.on_lease_ended(place, tasks);
                        demand.lower(place, &mut out);
                    }
                    Event::Lose(pick) if !leases.is_empty() => {
                        let (place, tasks) = leases.swap_remove(pick % leases.len());
                        demand.on_lease_ended(place, tasks);
                        demand.on_worker_lost(place);
                    }
                    Event::Send(_) | Event::Back(_) | Event::End(_) | Event::Lose(_) => {}
                }
                demand.settle(queued, &mut out);
                prop_assert_eq!(settle(&mut demand, queued), [], "all is said at once");
                prop_assert_eq!(
                    demand.has_none_in_flight(),
                    leases.iter().all(|&(_, tasks)| tasks == 0)
                );
                for (at, place) in demand.places.iter().enumerate() {
                    let of_place = leases.iter().filter(|lease| lease.0 == at || (spreads && at == OWN));
                    let (held, in_flight) =
                        of_place.fold((0, 0), |(held, sum), lease| (held + 1, sum + lease.1));
                    prop_assert!(place.told >= held);
                    if queued == 0 {
                        prop_assert_eq!(place.told, held);
                    }
                    if at == OWN {
                        let needed = if queued == 0 { held } else { queued + in_flight };
                        prop_assert!(place.told + place.told / 4 >= needed);
                        continue;
                    }
                    let more = match allowed {
                        None => 0,
                        Some(Allowance::Waiting(more)) => more as usize,
                        Some(Allowance::Held(all)) => (all as usize).saturating_sub(held),
                    };
                    prop_assert!(place.told <= held + more);
                    prop_assert!(place.told + place.told / 4 >= held + more.min(queued));
                }
            }
        }
    }
}
