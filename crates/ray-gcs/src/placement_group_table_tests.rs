use std::time::Duration;

use proptest::prelude::*;
use ray_scheduler::{Bundle, GroupStrategy};

use super::*;

const NOW: Now = Now { elapsed: Duration::ZERO, unix_ms: 7 };

fn group(n: u8) -> PlacementGroupId {
    PlacementGroupId::from_bytes([n; 16])
}

fn node(n: u8) -> NodeId {
    NodeId::from_bytes([n; 16])
}

fn actor(n: u8) -> ActorId {
    ActorId::from_bytes([n; 16])
}

fn cpus(units: f64) -> Resources {
    Resources::new().with_cpu(units).unwrap()
}

fn spec(n: u8, bundles: usize) -> GroupSpec {
    GroupSpec {
        group_id: group(n),
        name: None,
        namespace: "space".to_owned(),
        strategy: GroupStrategy::Pack,
        bundles: vec![Bundle { resources: cpus(1.0), ..Bundle::default() }; bundles],
        detached: n.is_multiple_of(2),
        job_id: JobId::nil(),
        soft_target: None,
    }
}

fn at(n: u8, group_id: PlacementGroupId, attempt: u64) -> Reservation {
    Reservation { node_id: node(n), group_id, attempt }
}

fn on(nodes: &[u8]) -> BTreeMap<u32, NodeId> {
    (0..).zip(nodes.iter().map(|&n| node(n))).collect()
}

/// A table with group 1, whose bundles are on these nodes, and that is created.
fn created(nodes: &[u8]) -> PlacementGroupTable {
    let (mut table, mut out) = (PlacementGroupTable::new(10), Vec::new());
    table.register(spec(1, nodes.len()), &mut out).unwrap();
    table.on_placed(group(1), &on(nodes), &mut out);
    for &n in nodes {
        table.on_reserved(&at(n, group(1), 1), NOW, &mut out);
    }
    for &n in nodes {
        table.on_committed(&at(n, group(1), 1), NOW, &mut out);
    }
    assert_eq!(table.get(&group(1)).unwrap().phase, GroupPhase::Created);
    table.check_invariants();
    table
}

fn orders(out: &[GroupEffect]) -> Vec<&BundleOrder> {
    out.iter()
        .filter_map(|effect| match effect {
            GroupEffect::Order(order) => Some(order),
            _ => None,
        })
        .collect()
}

#[test]
fn a_group_on_one_node_is_created_by_one_order() {
    let (mut table, mut out) = (PlacementGroupTable::new(10), Vec::new());
    table.register(spec(1, 2), &mut out).unwrap();
    out.clear();
    table.on_placed(group(1), &on(&[1, 1]), &mut out);
    let target = at(1, group(1), 1);
    let bundles = vec![(0, cpus(1.0)), (1, cpus(1.0))];
    assert_eq!(orders(&out), [&BundleOrder::Reserve { target, bundles, commit: true }]);
    assert_eq!(table.outstanding(node(1)).len(), 1);
    out.clear();
    table.on_reserved(&target, NOW, &mut out);
    assert_eq!(table.get(&group(1)).unwrap().phase, GroupPhase::Created);
    assert_eq!(table.get(&group(1)).unwrap().created_ms, 7);
    assert!(orders(&out).is_empty() && table.outstanding(node(1)).is_empty());
}

#[test]
fn a_group_on_several_nodes_is_committed_when_all_have_reserved() {
    let (mut table, mut out) = (PlacementGroupTable::new(10), Vec::new());
    table.register(spec(1, 2), &mut out).unwrap();
    table.on_placed(group(1), &on(&[1, 2]), &mut out);
    let (first, second) = (at(1, group(1), 1), at(2, group(1), 1));
    out.clear();
    table.on_reserved(&first, NOW, &mut out);
    table.on_reserved(&first, NOW, &mut out);
    assert!(orders(&out).is_empty());
    table.on_committed(&first, NOW, &mut out);
    table.on_reserved(&second, NOW, &mut out);
    assert_eq!(orders(&out), [&BundleOrder::Commit(first), &BundleOrder::Commit(second)]);
    assert_eq!(table.outstanding(node(1)), [BundleOrder::Commit(first)]);
    table.on_committed(&first, NOW, &mut out);
    assert_eq!(table.get(&group(1)).unwrap().phase, GroupPhase::Prepared);
    table.on_committed(&second, NOW, &mut out);
    assert_eq!(table.get(&group(1)).unwrap().phase, GroupPhase::Created);
}

#[test]
fn what_others_reserved_goes_back_if_one_has_no_room() {
    let (mut table, mut out) = (PlacementGroupTable::new(10), Vec::new());
    table.register(spec(1, 2), &mut out).unwrap();
    table.on_placed(group(1), &on(&[1, 2]), &mut out);
    table.on_reserved(&at(1, group(1), 1), NOW, &mut out);
    out.clear();
    table.on_refused(&at(2, group(1), 1), "too little CPU", &mut out);
    let info = table.get(&group(1)).unwrap();
    assert_eq!(info.phase, GroupPhase::Pending { reason: "too little CPU".to_owned() });
    let order = ReturnOrder { target: at(1, group(1), 1), all: false, reason: "too little CPU".to_owned() };
    assert_eq!(orders(&out), [&BundleOrder::Return(order.clone())]);
    assert_eq!(out[0], GroupEffect::GivenBack(node(2)));
    out.clear();
    // Late answers are about the attempt that was given up.
    table.on_placed(group(1), &on(&[1, 1]), &mut out);
    table.on_refused(&at(2, group(1), 1), "again", &mut out);
    table.on_reserved(&at(1, group(1), 1), NOW, &mut out);
    assert_eq!(table.get(&group(1)).unwrap().phase, GroupPhase::Preparing);
    assert_eq!(table.outstanding(node(1))[0], BundleOrder::Return(order.clone()));
    out.clear();
    table.on_returned(&order.target, &mut out);
    assert_eq!(out, [GroupEffect::ReturnDone(order)]);
}

#[test]
fn only_the_bundles_of_a_dead_node_are_placed_anew() {
    let mut table = created(&[1, 2]);
    let mut out = Vec::new();
    table.on_node_dead(node(2), "lost", &mut out);
    let info = table.get(&group(1)).unwrap();
    assert_eq!((&info.nodes[..], &info.committed[..]), (&[Some(node(1)), None][..], &[true, false][..]));
    assert!(out.contains(&GroupEffect::Schedule(group(1))));
    out.clear();
    table.on_placed(group(1), &BTreeMap::from([(1, node(3))]), &mut out);
    let target = at(3, group(1), 2);
    assert_eq!(orders(&out), [&BundleOrder::Reserve { target, bundles: vec![(1, cpus(1.0))], commit: true }]);
    table.on_reserved(&target, NOW, &mut out);
    assert_eq!(table.get(&group(1)).unwrap().phase, GroupPhase::Created);
    out.clear();
    table.remove(group(1), "enough", NOW, &mut out).unwrap();
    // What was reserved by each attempt is free again.
    assert!(out.contains(&GroupEffect::Vacated(at(1, group(1), 1), cpus(1.0))));
    assert!(out.contains(&GroupEffect::Vacated(at(3, group(1), 2), cpus(1.0))));
    table.check_invariants();
}

#[test]
fn a_removed_group_gives_back_what_it_has_and_its_name() {
    let (mut table, mut out) = (PlacementGroupTable::new(1), Vec::new());
    let named = |n| GroupSpec { name: Some("name".to_owned()), ..spec(n, 1) };
    table.register(named(1), &mut out).unwrap();
    let taken = table.register(named(2), &mut out).unwrap_err();
    assert!(matches!(taken, GroupError::NameTaken { holder, .. } if holder == group(1)));
    table.on_placed(group(1), &on(&[1]), &mut out);
    table.on_reserved(&at(1, group(1), 1), NOW, &mut out);
    out.clear();
    table.remove(group(1), "enough", NOW, &mut out).unwrap();
    let order = ReturnOrder { target: at(1, group(1), 2), all: true, reason: "enough".to_owned() };
    assert_eq!(orders(&out), [&BundleOrder::Return(order.clone())]);
    assert!(out.contains(&GroupEffect::KeepReturn(order)));
    assert!(out.contains(&GroupEffect::Removed(group(1), "enough".to_owned())));
    out.clear();
    table.remove(group(1), "again", NOW, &mut out).unwrap();
    assert_eq!(out, []);
    table.register(named(2), &mut out).unwrap();
    table.remove(group(2), "enough", NOW, &mut out).unwrap();
    assert!(out.contains(&GroupEffect::Forget(group(1))));
    assert_eq!(table.remove(group(1), "again", NOW, &mut out), Err(GroupError::Unknown(group(1))));
    table.check_invariants();
}

#[test]
fn groups_end_with_their_job_unless_they_are_detached() {
    let (mut table, mut out) = (PlacementGroupTable::new(9), Vec::new());
    table.register(spec(1, 1), &mut out).unwrap();
    table.register(spec(2, 1), &mut out).unwrap();
    table.on_job_finished(JobId::nil(), NOW, &mut out);
    assert!(table.get(&group(1)).unwrap().is_removed());
    assert!(!table.get(&group(2)).unwrap().is_removed());
}

#[test]
fn actors_claim_bundles_until_these_are_full() {
    let mut table = created(&[1, 2]);
    let claim = |table: &mut PlacementGroupTable, n, index, units| {
        table.claim(group(1), index, actor(n), &cpus(units))
    };
    assert_eq!(claim(&mut table, 1, None, 1.0), BundlePlacement::On(node(1)));
    assert_eq!(claim(&mut table, 2, None, 1.0), BundlePlacement::On(node(2)));
    assert!(
        matches!(claim(&mut table, 3, None, 1.0), BundlePlacement::Wait(why) if why.contains("free in no"))
    );
    assert!(matches!(claim(&mut table, 3, None, 2.0), BundlePlacement::Never(_)));
    assert!(matches!(claim(&mut table, 3, Some(5), 1.0), BundlePlacement::Never(_)));
    assert!(matches!(table.claim(group(9), None, actor(3), &cpus(1.0)), BundlePlacement::Removed(_)));
    assert_eq!(table.claimed_by(&group(1), &actor(2)), Some(1));
    // One that lives needs less than one that is made.
    table.settle_claim(&group(1), &actor(1), &Resources::new());
    assert_eq!(claim(&mut table, 3, Some(0), 1.0), BundlePlacement::On(node(1)));
    table.release_claim(&group(1), &actor(2));
    assert_eq!(claim(&mut table, 4, None, 0.5), BundlePlacement::On(node(2)));
    table.on_node_dead(node(1), "lost", &mut Vec::new());
    assert!(matches!(claim(&mut table, 5, None, 1.0), BundlePlacement::Wait(why) if why.contains("died")));
    table.check_invariants();
}

#[test]
fn a_group_that_is_removed_amid_an_attempt_gives_up_what_earlier_ones_have_reserved() {
    let mut model = Model {
        table: PlacementGroupTable::new(2),
        nodes: BTreeMap::new(),
        ledger: BTreeMap::new(),
        registered: BTreeSet::new(),
    };
    model.step(Event::Register(0, 3));
    model.step(Event::Place(vec![2, 0, 2]));
    for n in [2, 0, 0, 2] {
        model.step(Event::Carry(n, false));
    }
    model.step(Event::Die(2));
    model.step(Event::Place(vec![1, 0, 0]));
    model.step(Event::Carry(1, true));
    model.step(Event::Remove(0));
    while (0..3).any(|n| model.carry(n, false)) {}
    assert!(model.nodes.values().all(|node| node.bundles.is_empty()), "{:?}", model.nodes);
    assert!(model.table.outstanding(node(0)).is_empty());
}

#[derive(Debug, Clone)]
enum Event {
    Register(u8, usize),
    /// The first group that waits is placed, each bundle on one of these.
    Place(Vec<u8>),
    /// The node carries out its next order, or refuses it if it is to reserve.
    Carry(u8, bool),
    Die(u8),
    Remove(u8),
    FinishJob,
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (0u8..12, 1usize..4).prop_map(|(n, bundles)| Event::Register(n, bundles)),
        4 => prop::collection::vec(0u8..3, 3).prop_map(Event::Place),
        8 => (0u8..3, prop::bool::weighted(0.2)).prop_map(|(n, refuse)| Event::Carry(n, refuse)),
        1 => (0u8..3).prop_map(Event::Die),
        1 => (0u8..12).prop_map(Event::Remove),
        1 => Just(Event::FinishJob),
    ]
}

/// What a node does: the bundles that it holds with their attempt, and whether they may be used.
#[derive(Debug, Default)]
struct ModelNode {
    orders: VecDeque<BundleOrder>,
    bundles: BTreeMap<(PlacementGroupId, u32), (u64, bool)>,
}

impl ModelNode {
    fn carry_out(&mut self, order: &BundleOrder) {
        match order {
            BundleOrder::Reserve { target, bundles, commit } => {
                for (index, _) in bundles {
                    self.bundles.insert((target.group_id, *index), (target.attempt, *commit));
                }
            }
            BundleOrder::Commit(target) => {
                for ((group_id, _), (attempt, committed)) in &mut self.bundles {
                    *committed |= *group_id == target.group_id && *attempt == target.attempt;
                }
            }
            BundleOrder::Return(ReturnOrder { target, all, .. }) => {
                self.bundles.retain(|(group_id, _), (attempt, _)| {
                    *group_id != target.group_id
                        || (if *all { *attempt > target.attempt } else { *attempt != target.attempt })
                });
            }
        }
    }
}

#[derive(Debug)]
struct Model {
    table: PlacementGroupTable,
    nodes: BTreeMap<u8, ModelNode>,
    /// What the ledger of the nodes says is asked for.
    ledger: BTreeMap<Reservation, Resources>,
    /// Groups that were registered, for no id is used twice.
    registered: BTreeSet<u8>,
}

impl Model {
    fn take(&mut self, out: Vec<GroupEffect>) {
        for effect in out {
            match effect {
                GroupEffect::Order(order) => {
                    let n = order.target().node_id.as_bytes()[0];
                    self.nodes.entry(n).or_default().orders.push_back(order);
                }
                GroupEffect::Ordered(target, amount) => {
                    assert_eq!(self.ledger.insert(target, amount), None, "it is ordered once");
                }
                GroupEffect::Vacated(target, amount) => {
                    let ordered = self.ledger.remove(&target);
                    let is_dead = !self.nodes.contains_key(&target.node_id.as_bytes()[0]);
                    assert!(is_dead || ordered == Some(amount), "what was ordered is vacated: {target}");
                }
                _ => {}
            }
        }
        self.table.check_invariants();
    }

    fn carry(&mut self, n: u8, refuse: bool) -> bool {
        let Some(model) = self.nodes.get_mut(&n) else { return false };
        let Some(order) = model.orders.pop_front() else { return false };
        let (target, mut out) = (order.target(), Vec::new());
        match &order {
            BundleOrder::Reserve { .. } if refuse => self.table.on_refused(&target, "no room", &mut out),
            BundleOrder::Reserve { .. } => {
                model.carry_out(&order);
                self.table.on_reserved(&target, NOW, &mut out);
            }
            BundleOrder::Commit(_) => {
                model.carry_out(&order);
                self.table.on_committed(&target, NOW, &mut out);
            }
            BundleOrder::Return(_) => {
                model.carry_out(&order);
                self.table.on_returned(&target, &mut out);
            }
        }
        self.take(out);
        true
    }

    fn place(&mut self, nodes: &[u8]) -> bool {
        let waiting = |info: &&Arc<GroupInfo>| matches!(info.phase, GroupPhase::Pending { .. });
        let Some(info) = self.table.iter().find(waiting).cloned() else { return false };
        let lacking = info.nodes.iter().enumerate().filter(|(_, node)| node.is_none());
        let placed = lacking.map(|(at, _)| (at as u32, node(nodes[at % nodes.len()]))).collect();
        let mut out = Vec::new();
        for &n in nodes {
            self.nodes.entry(n).or_default();
        }
        self.table.on_placed(info.spec.group_id, &placed, &mut out);
        self.take(out);
        true
    }

    fn step(&mut self, event: Event) {
        let mut out = Vec::new();
        match event {
            Event::Register(n, bundles) if self.registered.insert(n) => {
                drop(self.table.register(spec(n, bundles), &mut out));
            }
            Event::Register(..) => {}
            Event::Place(nodes) => {
                self.place(&nodes);
                return;
            }
            Event::Carry(n, refuse) => {
                self.carry(n, refuse);
                return;
            }
            Event::Die(n) => {
                self.nodes.remove(&n);
                self.ledger.retain(|target, _| target.node_id != node(n));
                self.table.on_node_dead(node(n), "lost", &mut out);
            }
            Event::Remove(n) => drop(self.table.remove(group(n), "enough", NOW, &mut out)),
            Event::FinishJob => self.table.on_job_finished(JobId::nil(), NOW, &mut out),
        }
        self.take(out);
    }
}

proptest! {
    #[test]
    fn at_rest_nodes_hold_exactly_the_bundles_of_created_groups(
        events in prop::collection::vec(any_event(), 0..80),
    ) {
        let mut model = Model {
            table: PlacementGroupTable::new(2), nodes: BTreeMap::new(), ledger: BTreeMap::new(),
            registered: BTreeSet::new(),
        };
        for event in events {
            model.step(event);
        }
        // At the end nobody refuses or dies.
        while model.place(&[0, 1, 2]) || (0..3).any(|n| model.carry(n, false)) {}
        let mut expected: BTreeMap<u8, BTreeMap<(PlacementGroupId, u32), bool>> = BTreeMap::new();
        for info in model.table.iter() {
            prop_assert!(info.phase == GroupPhase::Created || info.is_removed(), "{:?}", info);
            for (at, node_id) in info.nodes.iter().enumerate() {
                if let Some(node_id) = node_id {
                    let held = expected.entry(node_id.as_bytes()[0]).or_default();
                    held.insert((info.spec.group_id, at as u32), true);
                }
            }
        }
        for (n, node) in &model.nodes {
            let held: BTreeMap<_, _> =
                node.bundles.iter().map(|(&key, &(_, committed))| (key, committed)).collect();
            prop_assert_eq!(&held, expected.entry(*n).or_default());
            prop_assert!(model.table.outstanding(self::node(*n)).is_empty());
        }
        let mut sum = Resources::new();
        model.ledger.values().for_each(|amount| sum.add(amount));
        let held: usize = model.nodes.values().map(|node| node.bundles.len()).sum();
        prop_assert_eq!(sum, cpus(held as f64));
    }
}
