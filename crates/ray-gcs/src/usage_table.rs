//! What each living node has, and what of it is free.
//!
//! A node reports its free resources from time to time. Between two reports the control plane goes on
//! placing actors and placement groups, so it keeps a ledger for each node: what it ordered there and the last report cannot
//! show yet is committed, and what it knows to be free again is added. So a burst of actors spreads,
//! and the next actor need not wait for a report.
//!
//! ```text
//!   ordered ──> ORDERED ── the node took the order ──> TAKEN ── next report ──> REPORTED
//!               (committed)                            (committed)              (the report shows it)
//!   each of them: settled or vacated ──> gone; the difference counts until the next report
//! ```
//!
//! The scheduler's view of the cluster lives here; nothing else changes it.

use std::collections::BTreeMap;

use ray_core::constraint::Shape;
use ray_core::id::NodeId;
use ray_core::resource::Resources;
use ray_scheduler::{ClusterView, Decision, GlobalScheduler, Report};

use crate::actor::Incarnation;
use crate::placement_group::Reservation;

/// Requests of one shape that wait on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// What each of them asks for.
    pub shape: Resources,
    /// How many wait.
    pub count: u64,
    /// Whether no node can ever hold it.
    pub infeasible: bool,
}

/// What a node reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeUsage {
    /// The node.
    pub node_id: NodeId,
    /// What it has.
    pub total: Resources,
    /// What of it is free.
    pub available: Resources,
    /// Grows with each report.
    pub version: u64,
    /// What waits on it.
    pub demand: Vec<Demand>,
}

/// How the reason begins for which an actor waits that no present node can ever hold: those who tell
/// people of it have to know it from one that will pass.
pub const INFEASIBLE: &str = "no node can ever hold ";

/// What came of looking for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// This node has room now.
    On(NodeId),
    /// None has now, for this reason; it may change.
    Wait(String),
    /// None ever will, for this reason.
    Never(String),
    /// None ever will, because its placement group is gone, for this reason.
    GroupRemoved(String),
}

/// The usage of all living nodes.
#[derive(Debug, Default)]
pub struct UsageTable {
    scheduler: GlobalScheduler,
    nodes: BTreeMap<NodeId, Ledger>,
    /// The view wants each change of what is free to be a newer report.
    view_version: u64,
}

/// What was ordered of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ordered {
    /// To make an actor.
    Actor(Incarnation),
    /// To reserve bundles.
    Bundles(Reservation),
}

impl Ordered {
    const fn node_id(&self) -> NodeId {
        match self {
            Self::Actor(target) => target.node_id,
            Self::Bundles(target) => target.node_id,
        }
    }
}

impl From<Incarnation> for Ordered {
    fn from(target: Incarnation) -> Self {
        Self::Actor(target)
    }
}

impl From<Reservation> for Ordered {
    fn from(target: Reservation) -> Self {
        Self::Bundles(target)
    }
}

#[derive(Debug)]
struct Ledger {
    /// The last report, or what has to do for one.
    usage: NodeUsage,
    /// Of the last report that the node really sent.
    version: Option<u64>,
    /// What is free by the last report and by what is known to have become free since.
    free: Resources,
    orders: BTreeMap<Ordered, Order>,
    /// Committed for actors that settled since the last report.
    settled: Resources,
    /// Whether it gave an order back that it had room for by this ledger. Nothing goes there until it
    /// reports, or until some time has passed, so that an order does not go to and fro.
    distrusted: bool,
}

#[derive(Debug)]
struct Order {
    amount: Resources,
    /// Whether the view holds the amount back; not if the node had too little free at the time.
    committed: bool,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Ordered,
    Taken,
    Reported,
}

impl UsageTable {
    /// A node is there. `fresh`: it has just registered, so that all it has counts as free until it
    /// reports; else nothing does.
    pub fn on_node_up(
        &mut self,
        node_id: NodeId,
        total: &Resources,
        labels: &BTreeMap<String, String>,
        fresh: bool,
    ) {
        if !self.nodes.contains_key(&node_id) {
            self.scheduler.view_mut().add_node(node_id, total.clone(), labels.clone());
            let usage = NodeUsage {
                node_id,
                total: total.clone(),
                available: Resources::new(),
                version: 0,
                demand: Vec::new(),
            };
            let (orders, settled, free) = (BTreeMap::new(), Resources::new(), Resources::new());
            self.nodes
                .insert(node_id, Ledger { usage, version: None, free, orders, settled, distrusted: false });
        }
        let Some(ledger) = self.nodes.get_mut(&node_id) else { return };
        ledger.usage.total = total.clone();
        if fresh && ledger.version.is_none() {
            ledger.usage.available = total.clone();
            ledger.free = total.clone();
        }
        self.show(&node_id);
    }

    /// A node is gone.
    pub fn on_node_down(&mut self, node_id: &NodeId) {
        self.nodes.remove(node_id);
        self.scheduler.view_mut().remove_node(node_id);
    }

    /// Takes a report in. Returns whether it is news; an older one than the last, or one of an unknown
    /// node, changes nothing.
    pub fn report(&mut self, usage: NodeUsage) -> bool {
        let node_id = usage.node_id;
        let Some(ledger) = self.nodes.get_mut(&node_id) else { return false };
        if ledger.version.is_some_and(|last| usage.version <= last) {
            return false;
        }
        let mut shown = std::mem::take(&mut ledger.settled);
        for order in ledger.orders.values_mut().filter(|order| order.stage == Stage::Taken) {
            order.stage = Stage::Reported;
            if std::mem::take(&mut order.committed) {
                shown.add(&order.amount);
            }
        }
        ledger.version = Some(usage.version);
        ledger.distrusted = false;
        ledger.free = usage.available.clone();
        ledger.usage = usage;
        self.release(&node_id, &shown);
        self.show(&node_id);
        true
    }

    /// Looks for a node for something of this shape.
    pub fn place(&self, shape: &Shape) -> Placement {
        let need = &shape.resources;
        match self.scheduler.schedule(shape) {
            Decision::Placed(node_id) => Placement::On(node_id),
            Decision::Busy => Placement::Wait(self.scheduler.why(shape).unwrap_or_default()),
            Decision::Infeasible { reason } => Placement::Wait(format!("{INFEASIBLE}{need}: {reason}")),
            Decision::Never { reason } => Placement::Never(reason),
        }
    }

    /// What is known of all nodes, for placing groups.
    pub fn view(&self) -> &ClusterView {
        self.scheduler.view()
    }

    /// An order that takes `amount` goes to its node.
    pub fn on_ordered(&mut self, target: impl Into<Ordered>, amount: &Resources) {
        let target = target.into();
        let Some(ledger) = self.nodes.get_mut(&target.node_id()) else { return };
        let committed = self.scheduler.view_mut().commit(&target.node_id(), amount).is_ok();
        let order = Order { amount: amount.clone(), committed, stage: Stage::Ordered };
        if let Some(last) = ledger.orders.insert(target, order)
            && last.committed
        {
            self.release(&target.node_id(), &last.amount);
        }
    }

    /// The node took the order; its next report shows it.
    pub fn on_acknowledged(&mut self, target: impl Into<Ordered>) {
        let target = target.into();
        let ledger = self.nodes.get_mut(&target.node_id());
        let order = ledger.and_then(|ledger| ledger.orders.get_mut(&target));
        if let Some(order) = order.filter(|order| order.stage == Stage::Ordered) {
            order.stage = Stage::Taken;
        }
    }

    /// The order is carried out: from now on it takes `rest`.
    pub fn on_settled(&mut self, target: impl Into<Ordered>, rest: &Resources) {
        let target = target.into();
        let Some(ledger) = self.nodes.get_mut(&target.node_id()) else { return };
        let Some(order) = ledger.orders.remove(&target) else { return };
        if order.stage == Stage::Reported {
            // The report counts all of the order as taken; give back what is not needed for life.
            let mut more = order.amount;
            take_off(&mut more, rest);
            ledger.free.add(&more);
            self.show(&target.node_id());
            return;
        }
        if order.committed {
            self.release(&target.node_id(), &order.amount);
        }
        if self.scheduler.view_mut().commit(&target.node_id(), rest).is_ok()
            && let Some(ledger) = self.nodes.get_mut(&target.node_id())
        {
            ledger.settled.add(rest);
        }
    }

    /// What was ordered is gone; if it had settled, it gives back what it `held` for life.
    pub fn on_vacated(&mut self, target: impl Into<Ordered>, held: &Resources) {
        let target = target.into();
        let Some(ledger) = self.nodes.get_mut(&target.node_id()) else { return };
        match ledger.orders.remove(&target) {
            Some(order) if order.committed => self.release(&target.node_id(), &order.amount),
            Some(order) if order.stage == Stage::Reported => ledger.free.add(&order.amount),
            Some(_) => {}
            None => ledger.free.add(held),
        }
        self.show(&target.node_id());
    }

    /// A node gave an order back, as it has no room after all.
    pub fn on_given_back(&mut self, node_id: &NodeId) {
        if let Some(ledger) = self.nodes.get_mut(node_id) {
            ledger.distrusted = true;
            self.show(node_id);
        }
    }

    /// Nodes that gave an order back may be tried again; returns whether there are any.
    pub fn trust_all_again(&mut self) -> bool {
        let distrusted = self.nodes.iter_mut().filter(|(_, ledger)| ledger.distrusted);
        let again: Vec<_> = distrusted
            .map(|(&node_id, ledger)| {
                ledger.distrusted = false;
                node_id
            })
            .collect();
        again.iter().for_each(|node_id| self.show(node_id));
        !again.is_empty()
    }

    /// What is free on a node, as far as can be known; `None` if there is no such node.
    pub fn available(&self, node_id: &NodeId) -> Option<Resources> {
        self.scheduler.view().node(node_id).map(|node| node.available())
    }

    /// Every node's last report, in the order of ids. A node that has not reported since the control plane
    /// started has nothing free, one that has just registered has all of it free.
    pub fn reports(&self) -> impl Iterator<Item = &NodeUsage> {
        self.nodes.values().map(|ledger| &ledger.usage)
    }

    /// What all nodes have together, and what of it is free by their last reports.
    pub fn aggregate(&self) -> (Resources, Resources) {
        let (mut total, mut available) = (Resources::new(), Resources::new());
        for usage in self.reports() {
            total.add(&usage.total);
            available.add(&usage.available);
        }
        (total, available)
    }

    /// Tells the view what is free by the ledger.
    fn show(&mut self, node_id: &NodeId) {
        let Some(ledger) = self.nodes.get(node_id) else { return };
        self.view_version += 1;
        let total = ledger.usage.total.clone();
        let available = if ledger.distrusted { Resources::new() } else { ledger.free.clone() };
        self.scheduler.view_mut().report(node_id, Report { version: self.view_version, total, available });
    }

    fn release(&mut self, node_id: &NodeId, amount: &Resources) {
        let released = self.scheduler.view_mut().release(node_id, amount);
        debug_assert_eq!(released, Ok(()), "the ledger releases what it committed");
    }

    /// Panics if a node has more free than it has, or the ledger and the view differ; for tests.
    pub fn check_invariants(&self) {
        for (node_id, ledger) in &self.nodes {
            let node = self.scheduler.view().node(node_id).expect("the view has every node");
            let free = node.available();
            assert!(node.total().can_satisfy(&free), "{free} of {} is free on {node_id}", node.total());
            assert!(ledger.orders.values().all(|order| !(order.committed && order.stage == Stage::Reported)));
        }
        assert_eq!(self.nodes.len(), self.scheduler.view().nodes().count());
    }
}

/// Takes off as much as there is.
fn take_off(free: &mut Resources, amount: &Resources) {
    for (name, taken) in amount.iter() {
        let rest = free.get(name).saturating_sub(taken);
        free.set(name, rest);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ray_core::id::ActorId;

    use super::*;

    const NODE: NodeId = NodeId::from_bytes([1; 16]);

    fn cpus(units: f64) -> Resources {
        Resources::new().with_cpu(units).unwrap()
    }

    fn actor(n: u8) -> Incarnation {
        Incarnation { node_id: NODE, actor_id: ActorId::from_bytes([n; 16]), num_restarts: 0 }
    }

    fn usage(version: u64, available: f64) -> NodeUsage {
        let (total, available) = (cpus(4.0), cpus(available));
        NodeUsage { node_id: NODE, total, available, version, demand: Vec::new() }
    }

    fn four_cpus() -> UsageTable {
        let mut table = UsageTable::default();
        table.on_node_up(NODE, &cpus(4.0), &BTreeMap::new(), true);
        table
    }

    #[test]
    fn an_order_is_taken_off_until_a_report_shows_it() {
        let mut table = four_cpus();
        table.on_ordered(actor(1), &cpus(1.0));
        assert_eq!(table.available(&NODE), Some(cpus(3.0)));
        assert!(table.report(usage(1, 4.0)), "the node had not heard of the order");
        assert_eq!(table.available(&NODE), Some(cpus(3.0)));
        table.on_acknowledged(actor(1));
        assert!(table.report(usage(2, 3.0)));
        assert_eq!(table.available(&NODE), Some(cpus(3.0)), "it is not counted twice");
    }

    #[test]
    fn what_an_actor_needs_only_to_be_made_is_free_at_once_when_it_lives() {
        let mut table = four_cpus();
        table.on_ordered(actor(1), &cpus(1.0));
        table.on_acknowledged(actor(1));
        table.report(usage(1, 3.0));
        table.on_settled(actor(1), &Resources::new());
        assert_eq!(table.available(&NODE), Some(cpus(4.0)));
        table.report(usage(2, 4.0));
        assert_eq!(table.available(&NODE), Some(cpus(4.0)));
    }

    #[test]
    fn what_an_actor_needs_for_life_stays_taken() {
        let mut table = four_cpus();
        table.on_ordered(actor(1), &cpus(1.0));
        table.on_acknowledged(actor(1));
        table.on_settled(actor(1), &cpus(1.0));
        assert_eq!(table.available(&NODE), Some(cpus(3.0)));
    }

    #[test]
    fn nothing_goes_to_a_node_that_gave_an_order_back_until_it_reports_or_some_time_has_passed() {
        let mut table = four_cpus();
        table.on_given_back(&NODE);
        assert!(matches!(table.place(&Shape::from(cpus(1.0))), Placement::Wait(_)));
        table.report(usage(1, 4.0));
        assert_eq!(table.place(&Shape::from(cpus(1.0))), Placement::On(NODE));
        table.on_given_back(&NODE);
        assert!(table.trust_all_again());
        assert!(!table.trust_all_again());
        assert_eq!(table.place(&Shape::from(cpus(1.0))), Placement::On(NODE));
    }

    #[test]
    fn older_reports_and_reports_of_strangers_change_nothing() {
        let mut table = four_cpus();
        assert!(table.report(usage(5, 2.0)));
        assert!(!table.report(usage(5, 4.0)));
        assert!(!table.report(usage(4, 4.0)));
        assert!(!table.report(NodeUsage { node_id: NodeId::nil(), ..usage(9, 4.0) }));
        assert_eq!(table.aggregate(), (cpus(4.0), cpus(2.0)));
        table.on_node_down(&NODE);
        assert_eq!(table.aggregate(), (Resources::new(), Resources::new()));
    }

    #[test]
    fn nothing_is_free_on_a_node_that_is_known_from_before_until_it_reports() {
        let mut table = UsageTable::default();
        table.on_node_up(NODE, &cpus(4.0), &BTreeMap::new(), false);
        assert_eq!(table.available(&NODE), Some(Resources::new()));
        assert!(table.report(usage(1, 2.0)));
        assert_eq!(table.available(&NODE), Some(cpus(2.0)));
    }

    proptest! {
        #[test]
        fn no_more_is_free_than_there_is(
            steps in prop::collection::vec((0u8..5, 0u8..4, 0.0..4.0f64), 0..60),
        ) {
            let mut table = four_cpus();
            for (version, (kind, n, amount)) in steps.into_iter().enumerate() {
                match kind {
                    0 => table.on_ordered(actor(n), &cpus(amount)),
                    1 => table.on_acknowledged(actor(n)),
                    2 => table.on_settled(actor(n), &cpus(amount)),
                    3 => table.on_vacated(actor(n), &cpus(amount)),
                    _ => drop(table.report(usage(version as u64 + 1, amount))),
                }
                table.check_invariants();
            }
        }
    }
}
