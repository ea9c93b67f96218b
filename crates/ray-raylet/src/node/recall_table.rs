//! Which nodes still have to hear that objects of this node are gone, so that they drop their copies.
//!
//! ```text
//!              an object goes           told                  taken
//!  (nothing) ----------------> waiting ------> under way ---------------> (nothing)
//!                                 ^                |
//!                                 +-- due again ---+ not taken
//! ```
//! Each node is told by one call at a time, again and again until it takes it or is dead. For a node that is away for
//! long the objects are not listed without end: it is to drop all copies that it has from here, which is always right,
//! for it can pull them again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ray_core::id::{NodeId, ObjectId};

/// The objects whose copies a node has to drop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Recalled {
    /// These.
    Some(BTreeSet<ObjectId>),
    /// All that it has from this node.
    All,
}

/// Something that a node has to be told now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tell {
    pub(crate) node_id: NodeId,
    pub(crate) recalled: Recalled,
}

#[derive(Debug)]
struct Audience {
    waiting: Recalled,
    /// What it is being told.
    under_way: Option<Recalled>,
    /// Not before.
    due: Option<Instant>,
    pause: Duration,
}

/// What is to be told to whom; see the module's documentation.
#[derive(Debug)]
pub(crate) struct RecallTable {
    /// How many objects are listed for one node.
    max_listed: usize,
    /// The first and the longest pause before a node is told again.
    pauses: (Duration, Duration),
    nodes: BTreeMap<NodeId, Audience>,
}

impl RecallTable {
    pub(crate) fn new(max_listed: usize, pauses: (Duration, Duration)) -> Self {
        Self { max_listed, pauses, nodes: BTreeMap::new() }
    }

    /// An object is gone that these nodes have copied.
    pub(crate) fn on_gone(
        &mut self,
        now: Instant,
        object_id: ObjectId,
        nodes: &[NodeId],
        out: &mut Vec<Tell>,
    ) {
        for &node_id in nodes {
            let pause = self.pauses.0;
            let audience = self.nodes.entry(node_id).or_insert_with(|| Audience {
                waiting: Recalled::Some(BTreeSet::new()),
                under_way: None,
                due: None,
                pause,
            });
            audience.waiting.add(&Recalled::Some(BTreeSet::from([object_id])), self.max_listed);
            self.tell(now, node_id, out);
        }
    }

    /// A node was told; or not, and has to be told again.
    pub(crate) fn on_told(&mut self, now: Instant, node_id: NodeId, taken: bool, out: &mut Vec<Tell>) {
        let Some(audience) = self.nodes.get_mut(&node_id) else { return };
        let Some(told) = audience.under_way.take() else { return };
        if taken {
            (audience.pause, audience.due) = (self.pauses.0, None);
        } else {
            audience.waiting.add(&told, self.max_listed);
            audience.due = Some(now + audience.pause);
            audience.pause = (audience.pause * 2).min(self.pauses.1);
        }
        if audience.waiting.is_empty() {
            self.nodes.remove(&node_id);
        } else {
            self.tell(now, node_id, out);
        }
    }

    /// A node is dead, and its copies with it.
    pub(crate) fn on_node_lost(&mut self, node_id: NodeId) {
        self.nodes.remove(&node_id);
    }

    /// Does what is due by now.
    pub(crate) fn on_tick(&mut self, now: Instant, out: &mut Vec<Tell>) {
        let is_due = |audience: &Audience| audience.due.is_some_and(|due| due <= now);
        let due = self.nodes.iter().filter(|(_, audience)| is_due(audience));
        for node_id in due.map(|(&node_id, _)| node_id).collect::<Vec<_>>() {
            self.tell(now, node_id, out);
        }
    }

    /// When [`Self::on_tick`] has something to do next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.nodes.values().filter_map(|audience| audience.due).min()
    }

    fn tell(&mut self, now: Instant, node_id: NodeId, out: &mut Vec<Tell>) {
        let Some(audience) = self.nodes.get_mut(&node_id) else { return };
        if audience.under_way.is_some() || audience.due.is_some_and(|due| due > now) {
            return;
        }
        audience.due = None;
        let recalled = std::mem::replace(&mut audience.waiting, Recalled::Some(BTreeSet::new()));
        audience.under_way = Some(recalled.clone());
        out.push(Tell { node_id, recalled });
    }
}

impl Recalled {
    fn is_empty(&self) -> bool {
        matches!(self, Self::Some(objects) if objects.is_empty())
    }

    fn add(&mut self, more: &Self, max_listed: usize) {
        match (&mut *self, more) {
            (Self::All, _) => {}
            (Self::Some(objects), Self::Some(more)) => {
                objects.extend(more);
                if objects.len() > max_listed {
                    *self = Self::All;
                }
            }
            (Self::Some(_), Self::All) => *self = Self::All,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NORTH: NodeId = NodeId::from_bytes([1; 16]);
    const SOUTH: NodeId = NodeId::from_bytes([2; 16]);
    const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(300));

    fn id(n: u8) -> ObjectId {
        ObjectId::from_bytes([n; 28])
    }

    fn some(numbers: &[u8]) -> Recalled {
        Recalled::Some(numbers.iter().map(|&n| id(n)).collect())
    }

    fn tell(node_id: NodeId, recalled: Recalled) -> Tell {
        Tell { node_id, recalled }
    }

    struct Bench {
        table: RecallTable,
        now: Instant,
    }

    impl Bench {
        fn new(max_listed: usize) -> Self {
            Self { table: RecallTable::new(max_listed, PAUSES), now: Instant::now() }
        }

        fn gone(&mut self, n: u8, nodes: &[NodeId]) -> Vec<Tell> {
            let mut out = Vec::new();
            self.table.on_gone(self.now, id(n), nodes, &mut out);
            out
        }

        fn told(&mut self, node_id: NodeId, taken: bool) -> Vec<Tell> {
            let mut out = Vec::new();
            self.table.on_told(self.now, node_id, taken, &mut out);
            out
        }

        fn pass(&mut self, time: Duration) -> Vec<Tell> {
            self.now += time;
            let mut out = Vec::new();
            self.table.on_tick(self.now, &mut out);
            out
        }
    }

    #[test]
    fn a_node_is_told_by_one_call_at_a_time() {
        let mut bench = Bench::new(10);
        assert_eq!(bench.gone(1, &[NORTH, SOUTH]), [tell(NORTH, some(&[1])), tell(SOUTH, some(&[1]))]);
        assert_eq!(bench.gone(2, &[NORTH]), []);
        assert_eq!(bench.gone(3, &[NORTH]), []);
        assert_eq!(bench.told(NORTH, true), [tell(NORTH, some(&[2, 3]))]);
        assert_eq!(bench.told(NORTH, true), []);
        assert_eq!(bench.told(SOUTH, true), []);
        assert_eq!((bench.table.nodes.len(), bench.table.next_deadline()), (0, None));
    }

    #[test]
    fn who_does_not_take_it_is_told_again_after_longer_and_longer_pauses() {
        let mut bench = Bench::new(10);
        bench.gone(1, &[NORTH]);
        assert_eq!(bench.told(NORTH, false), []);
        assert_eq!(bench.gone(2, &[NORTH]), [], "not before it is due");
        assert_eq!(bench.pass(PAUSES.0), [tell(NORTH, some(&[1, 2]))]);
        for pause in [200, 300, 300] {
            bench.told(NORTH, false);
            assert_eq!(bench.pass(Duration::from_millis(pause - 1)), []);
            assert_eq!(bench.pass(Duration::from_millis(1)), [tell(NORTH, some(&[1, 2]))]);
        }
        bench.told(NORTH, true);
        bench.gone(3, &[NORTH]);
        bench.told(NORTH, false);
        assert_eq!(bench.pass(PAUSES.0).len(), 1, "the pauses begin anew");
    }

    #[test]
    fn what_is_too_much_to_list_is_everything() {
        let mut bench = Bench::new(2);
        bench.gone(1, &[NORTH]);
        (2..6).for_each(|n| assert_eq!(bench.gone(n, &[NORTH]), []));
        assert_eq!(bench.told(NORTH, false), []);
        assert_eq!(bench.pass(PAUSES.0), [tell(NORTH, Recalled::All)]);
        assert_eq!(bench.gone(7, &[NORTH]), []);
        assert_eq!(bench.told(NORTH, true), [tell(NORTH, some(&[7]))]);
    }

    #[test]
    fn a_dead_node_is_told_nothing() {
        let mut bench = Bench::new(2);
        bench.gone(1, &[NORTH]);
        bench.told(NORTH, false);
        bench.table.on_node_lost(NORTH);
        assert_eq!((bench.pass(PAUSES.0), bench.table.next_deadline()), (vec![], None));
        assert_eq!(bench.told(NORTH, false), []);
    }
}
