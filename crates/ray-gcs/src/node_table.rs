//! Which nodes there are, and which of them are alive.
//!
//! ```text
//!   register ──> ALIVE ──┬── unregister ─────────────────────────┬──> DEAD (for good; its id never comes back)
//!                 │  ^   ├── silent for `dead_after` ────────────┤
//!                 └──┘   └── another node takes its address ─────┘
//!               heartbeat
//! ```
//!
//! Dead nodes are kept to a bound, so that people can see why they died; the oldest is forgotten first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ray_core::id::NodeId;
use ray_core::resource::Resources;

use crate::clock::Now;
use crate::error::NodeError;

/// What a node says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    /// The node.
    pub node_id: NodeId,
    /// "host:port" of its gRPC server.
    pub raylet_address: String,
    /// Its machine's name.
    pub hostname: String,
    /// What it has.
    pub total: Resources,
    /// What it can be chosen by.
    pub labels: BTreeMap<String, String>,
    /// Whether the control plane lives in its process.
    pub is_head: bool,
    /// Path of the Unix socket on which it takes its workers and drivers.
    pub socket_path: String,
    /// Port of its metrics; 0: none.
    pub metrics_port: u16,
}

/// Whether a node is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeState {
    /// It sends heartbeats.
    Alive,
    /// It is gone for good.
    Dead {
        /// Why.
        reason: String,
        /// When, in milliseconds since the epoch.
        end_ms: u64,
    },
}

/// One node as everyone may know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// What it said about itself.
    pub spec: NodeSpec,
    /// Whether it is there.
    pub state: NodeState,
    /// When it registered first, in milliseconds since the epoch.
    pub start_ms: u64,
}

impl NodeInfo {
    /// Whether it is there.
    pub fn is_alive(&self) -> bool {
        self.state == NodeState::Alive
    }

    /// Why it is dead; empty while it is alive.
    pub fn death_reason(&self) -> &str {
        match &self.state {
            NodeState::Alive => "",
            NodeState::Dead { reason, .. } => reason,
        }
    }
}

/// What follows from a change of the table.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeEffect {
    /// A node is new or says something else about itself: keep it and tell everyone.
    Up(Arc<NodeInfo>),
    /// A node is dead: keep it, tell everyone, and see to what ran there.
    Down(Arc<NodeInfo>),
    /// A dead node is not kept any longer.
    Forget(NodeId),
}

/// Times and bounds of a [`NodeTable`].
#[derive(Debug, Clone, Copy)]
pub struct NodeLimits {
    /// Silence after which a node is dead.
    pub dead_after: Duration,
    /// Time between two calls of [`NodeTable::tick`].
    pub tick_every: Duration,
    /// How many dead nodes are kept.
    pub dead_kept: usize,
}

/// All nodes.
#[derive(Debug)]
pub struct NodeTable {
    limits: NodeLimits,
    nodes: BTreeMap<NodeId, Node>,
    /// Dead nodes, the one that died first in front.
    dead: VecDeque<NodeId>,
    last_tick: Duration,
}

#[derive(Debug)]
struct Node {
    info: Arc<NodeInfo>,
    /// When it last gave a sign of life.
    last_seen: Duration,
    /// Highest heartbeat seen, so that a late copy of an old one is no sign of life.
    sequence: u64,
}

impl NodeTable {
    /// An empty table.
    pub fn new(limits: NodeLimits, now: Now) -> Self {
        Self::restore(limits, [], now)
    }

    /// The table that was kept. Living nodes get all of `dead_after` from `now` on, because nobody
    /// could hear them meanwhile.
    pub fn restore(limits: NodeLimits, nodes: impl IntoIterator<Item = NodeInfo>, now: Now) -> Self {
        let mut dead = Vec::new();
        let mut table = BTreeMap::new();
        for info in nodes {
            if let NodeState::Dead { end_ms, .. } = info.state {
                dead.push((end_ms, info.spec.node_id));
            }
            let node = Node { info: Arc::new(info), last_seen: now.elapsed, sequence: 0 };
            table.insert(node.info.spec.node_id, node);
        }
        dead.sort_unstable();
        let dead = dead.into_iter().map(|(_, id)| id).collect();
        Self { limits, nodes: table, dead, last_tick: now.elapsed }
    }

    /// Takes a node in. A node that is registered already may do so again, after a reconnect.
    ///
    /// A node that has the address of another one, or is head like another one, replaces it: two
    /// processes cannot listen at one address, so the other one ended without a word.
    ///
    /// # Errors
    /// [`NodeError::Dead`]: the node was declared dead and has to come back under a new id.
    pub fn register(&mut self, spec: NodeSpec, now: Now, out: &mut Vec<NodeEffect>) -> Result<(), NodeError> {
        let node_id = spec.node_id;
        let start_ms = match self.nodes.get_mut(&node_id) {
            Some(node) => {
                check_alive(&node.info)?;
                node.last_seen = now.elapsed;
                if node.info.spec == spec {
                    return Ok(());
                }
                node.info.start_ms
            }
            None => now.unix_ms,
        };
        self.replace_those_like(&spec, now, out);
        let info = Arc::new(NodeInfo { spec, state: NodeState::Alive, start_ms });
        let sequence = self.nodes.get(&node_id).map_or(0, |node| node.sequence);
        self.nodes.insert(node_id, Node { info: Arc::clone(&info), last_seen: now.elapsed, sequence });
        out.push(NodeEffect::Up(info));
        Ok(())
    }

    /// Takes a node out that leaves in order. Repeating it, or naming an unknown node, changes nothing.
    pub fn unregister(&mut self, node_id: NodeId, reason: &str, now: Now, out: &mut Vec<NodeEffect>) {
        let reason = if reason.is_empty() { "it was stopped" } else { reason };
        self.bury(node_id, reason.to_owned(), now, out);
    }

    /// Notes a sign of life. Returns whether the node is alive; if not, it has to register under a
    /// new id.
    pub fn heartbeat(&mut self, node_id: NodeId, sequence: u64, now: Now) -> bool {
        let Some(node) = self.nodes.get_mut(&node_id).filter(|node| node.info.is_alive()) else {
            return false;
        };
        if sequence > node.sequence {
            node.sequence = sequence;
            node.last_seen = now.elapsed;
        }
        true
    }

    /// Declares every node dead that was silent for `dead_after` or longer, in the order of ids.
    pub fn tick(&mut self, now: Now, out: &mut Vec<NodeEffect>) {
        let since_last = now.elapsed.saturating_sub(self.last_tick);
        self.last_tick = now.elapsed;
        if since_last > 2 * self.limits.tick_every {
            // We slept ourselves, and heartbeats wait unread. What nobody could hear is not silence.
            for node in self.nodes.values_mut() {
                node.last_seen = (node.last_seen + since_last).min(now.elapsed);
            }
            return;
        }
        let silent: Vec<_> =
            self.nodes.iter().filter_map(|(&id, node)| self.silence(id, node, now)).collect();
        for (node_id, silence) in silent {
            let reason = format!(
                "no heartbeat for {:.1} s (the limit is {:.1} s)",
                silence.as_secs_f64(),
                self.limits.dead_after.as_secs_f64()
            );
            self.bury(node_id, reason, now, out);
        }
    }

    /// The node with this id.
    pub fn get(&self, node_id: &NodeId) -> Option<&Arc<NodeInfo>> {
        self.nodes.get(node_id).map(|node| &node.info)
    }

    /// The living node with this id.
    ///
    /// # Errors
    /// If it is dead or unknown.
    pub fn alive(&self, node_id: &NodeId) -> Result<&Arc<NodeInfo>, NodeError> {
        let info = self.get(node_id).ok_or(NodeError::Unknown(*node_id))?;
        check_alive(info)?;
        Ok(info)
    }

    /// Whether the node is there.
    pub fn is_alive(&self, node_id: &NodeId) -> bool {
        self.alive(node_id).is_ok()
    }

    /// All nodes, in the order of ids.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<NodeInfo>> {
        self.nodes.values().map(|node| &node.info)
    }

    fn silence(&self, node_id: NodeId, node: &Node, now: Now) -> Option<(NodeId, Duration)> {
        let silence = now.elapsed.saturating_sub(node.last_seen);
        (node.info.is_alive() && silence >= self.limits.dead_after).then_some((node_id, silence))
    }

    fn replace_those_like(&mut self, spec: &NodeSpec, now: Now, out: &mut Vec<NodeEffect>) {
        let replaced = |other: &NodeInfo| {
            let same_address = !spec.raylet_address.is_empty()
                && other.spec.hostname == spec.hostname
                && other.spec.raylet_address == spec.raylet_address;
            let is_other = other.is_alive() && other.spec.node_id != spec.node_id;
            is_other && (same_address || (other.spec.is_head && spec.is_head))
        };
        let replaced: Vec<_> =
            self.iter().filter(|other| replaced(other)).map(|other| other.spec.node_id).collect();
        for node_id in replaced {
            self.bury(node_id, format!("node {} took its place", spec.node_id), now, out);
        }
    }

    fn bury(&mut self, node_id: NodeId, reason: String, now: Now, out: &mut Vec<NodeEffect>) {
        let Some(node) = self.nodes.get_mut(&node_id).filter(|node| node.info.is_alive()) else { return };
        Arc::make_mut(&mut node.info).state = NodeState::Dead { reason, end_ms: now.unix_ms };
        out.push(NodeEffect::Down(Arc::clone(&node.info)));
        self.dead.push_back(node_id);
        while self.dead.len() > self.limits.dead_kept {
            let Some(oldest) = self.dead.pop_front() else { break };
            self.nodes.remove(&oldest);
            out.push(NodeEffect::Forget(oldest));
        }
    }

    /// Panics if the table contradicts itself; for tests.
    pub fn check_invariants(&self) {
        let dead: Vec<_> =
            self.nodes.iter().filter(|(_, node)| !node.info.is_alive()).map(|(id, _)| *id).collect();
        let mut listed: Vec<_> = self.dead.iter().copied().collect();
        listed.sort_unstable();
        assert_eq!(dead, listed, "exactly the dead nodes are listed as dead, each once");
        assert!(dead.len() <= self.limits.dead_kept.max(1), "{} dead nodes are kept", dead.len());
        let heads = self.iter().filter(|info| info.is_alive() && info.spec.is_head).count();
        assert!(heads <= 1, "{heads} heads are alive");
    }
}

fn check_alive(info: &NodeInfo) -> Result<(), NodeError> {
    match &info.state {
        NodeState::Alive => Ok(()),
        NodeState::Dead { reason, .. } => {
            Err(NodeError::Dead { node_id: info.spec.node_id, reason: reason.clone() })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: NodeLimits = NodeLimits {
        dead_after: Duration::from_millis(1000),
        tick_every: Duration::from_millis(100),
        dead_kept: 2,
    };

    fn at(ms: u64) -> Now {
        Now { elapsed: Duration::from_millis(ms), unix_ms: 1_000_000 + ms }
    }

    fn id(n: u8) -> NodeId {
        NodeId::from_bytes([n; 16])
    }

    fn spec(n: u8) -> NodeSpec {
        NodeSpec {
            node_id: id(n),
            raylet_address: format!("127.0.0.1:{n}"),
            hostname: "here".to_owned(),
            total: Resources::new(),
            labels: BTreeMap::new(),
            is_head: false,
            socket_path: String::new(),
            metrics_port: 0,
        }
    }

    fn with_node(n: u8) -> NodeTable {
        let mut table = NodeTable::new(LIMITS, at(0));
        table.register(spec(n), at(0), &mut Vec::new()).unwrap();
        table
    }

    /// Ticks every 100 ms up to and including `until`; returns who died, when and why.
    fn tick_until(table: &mut NodeTable, from: u64, until: u64) -> Vec<(u64, NodeId, String)> {
        let mut deaths = Vec::new();
        for ms in (from..=until).step_by(100) {
            let mut out = Vec::new();
            table.tick(at(ms), &mut out);
            for effect in out {
                if let NodeEffect::Down(info) = effect {
                    let NodeState::Dead { reason, .. } = &info.state else { panic!("{info:?}") };
                    deaths.push((ms, info.spec.node_id, reason.clone()));
                }
            }
        }
        deaths
    }

    #[test]
    fn a_silent_node_dies_exactly_at_the_limit_and_the_reason_says_how_long_it_was_silent() {
        let mut table = with_node(1);
        assert!(table.heartbeat(id(1), 1, at(500)));
        let deaths = tick_until(&mut table, 100, 3000);
        assert_eq!(deaths, [(1500, id(1), "no heartbeat for 1.0 s (the limit is 1.0 s)".to_owned())]);
        assert!(!table.heartbeat(id(1), 2, at(3000)));
        assert!(matches!(table.register(spec(1), at(3000), &mut Vec::new()), Err(NodeError::Dead { .. })));
    }

    #[test]
    fn a_late_tick_blames_nobody() {
        let mut table = with_node(1);
        assert_eq!(tick_until(&mut table, 100, 900), []);
        // The process slept for an hour; the heartbeats of that hour are still in the inbox.
        assert_eq!(tick_until(&mut table, 3_600_000, 3_600_000), []);
        assert_eq!(
            tick_until(&mut table, 3_600_100, 3_600_100).len(),
            1,
            "900 ms before it slept and 100 after"
        );
    }

    #[test]
    fn a_late_copy_of_a_heartbeat_is_no_sign_of_life() {
        let mut table = with_node(1);
        assert!(table.heartbeat(id(1), 5, at(100)));
        assert!(table.heartbeat(id(1), 5, at(900)));
        assert_eq!(tick_until(&mut table, 100, 1100).len(), 1);
    }

    #[test]
    fn registering_again_changes_nothing_unless_the_node_says_something_new() {
        let mut table = with_node(1);
        let mut out = Vec::new();
        table.register(spec(1), at(10), &mut out).unwrap();
        assert_eq!(out, []);
        let moved = NodeSpec { raylet_address: "elsewhere:1".to_owned(), ..spec(1) };
        table.register(moved, at(20), &mut out).unwrap();
        assert!(matches!(&out[..], [NodeEffect::Up(info)] if info.start_ms == 1_000_000));
    }

    #[test]
    fn a_node_at_the_same_address_replaces_the_one_that_was_there() {
        let mut table = with_node(1);
        let mut out = Vec::new();
        let second = NodeSpec { node_id: id(2), ..spec(1) };
        table.register(second, at(10), &mut out).unwrap();
        let [NodeEffect::Down(old), NodeEffect::Up(new)] = &out[..] else { panic!("{out:?}") };
        assert_eq!((old.spec.node_id, new.spec.node_id), (id(1), id(2)));
        assert!(table.alive(&id(1)).unwrap_err().to_string().contains("took its place"));
    }

    #[test]
    fn a_restored_node_gets_its_whole_grace() {
        let table = with_node(1);
        let kept: Vec<_> = table.iter().map(|info| NodeInfo::clone(info)).collect();
        let mut table = NodeTable::restore(LIMITS, kept, at(50_000));
        assert_eq!(tick_until(&mut table, 50_100, 50_900), []);
        assert_eq!(tick_until(&mut table, 51_000, 51_000).len(), 1);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Register(u8, bool),
        Unregister(u8),
        Heartbeat(u8, u64),
        Tick(u64),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..6, any::<bool>()).prop_map(|(n, head)| Step::Register(n, head)),
            (0u8..6).prop_map(Step::Unregister),
            (0u8..6, 0u64..50).prop_map(|(n, sequence)| Step::Heartbeat(n, sequence)),
            (0u64..400).prop_map(Step::Tick),
        ]
    }

    proptest! {
        #[test]
        fn the_table_stays_consistent_and_what_died_stays_dead(steps in prop::collection::vec(any_step(), 0..80)) {
            let mut table = NodeTable::new(LIMITS, at(0));
            let mut ms = 0;
            let mut buried = std::collections::BTreeSet::new();
            for step in steps {
                let mut out = Vec::new();
                match step {
                    Step::Register(n, is_head) => {
                        let spec = NodeSpec { is_head, ..spec(n) };
                        // A forgotten id is as good as a new one; real ids are never drawn twice.
                        if table.get(&id(n)).is_none() { buried.remove(&id(n)); }
                        let known = table.register(spec, at(ms), &mut out);
                        prop_assert_eq!(known.is_err(), buried.contains(&id(n)));
                    }
                    Step::Unregister(n) => table.unregister(id(n), "", at(ms), &mut out),
                    Step::Heartbeat(n, sequence) => {
                        let alive = table.heartbeat(id(n), sequence, at(ms));
                        prop_assert_eq!(alive, table.is_alive(&id(n)));
                    }
                    Step::Tick(later) => { ms += later; table.tick(at(ms), &mut out) }
                }
                for effect in out {
                    if let NodeEffect::Down(info) = effect {
                        prop_assert!(buried.insert(info.spec.node_id), "died twice");
                    }
                }
                table.check_invariants();
            }
        }
    }
}
