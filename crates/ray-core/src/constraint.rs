//! Where something may run, beyond what it needs there.
//!
//! A [`Constraint`] is a [`Strategy`] and, in the order of preference, the labels that a node has to carry. A
//! [`Shape`] is that and the resources: whatever has the same shape can stand in for one another.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, PlacementGroupId};
use crate::resource::Resources;

/// The label that every node carries: its id, in hexadecimal.
pub const NODE_ID_LABEL: &str = "ray.io/node-id";

/// Which nodes are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub enum Strategy {
    /// What the scheduler was made with: pack until half full, then spread.
    #[default]
    Default,
    /// The node that is used least.
    Spread,
    /// One node.
    NodeAffinity {
        /// That node.
        node_id: NodeId,
        /// Whether any node will do if that one is gone or too small.
        soft: bool,
        /// What to do while the node is there but busy.
        when_busy: WhenBusy,
    },
    /// The resources that a placement group has reserved.
    Bundle {
        /// The group.
        group_id: PlacementGroupId,
        /// Which of its bundles; any of them if not given.
        index: Option<u32>,
        /// Whether what runs there has its own tasks and actors run in the group, too.
        capture: bool,
    },
}

/// What becomes of something that has to be on a node which has no room now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub enum WhenBusy {
    /// It waits until there is.
    #[default]
    Wait,
    /// It goes to another node.
    Spill,
    /// It fails.
    Fail,
}

/// What is asked of one label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LabelMatch {
    /// It is there, with one of these values.
    In(Vec<String>),
    /// It is not there with one of these values.
    NotIn(Vec<String>),
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

/// What is asked of a node's labels: all of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct LabelSelector(pub Vec<(String, LabelMatch)>);

impl LabelSelector {
    /// Whether a node with these labels will do.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|(key, wanted)| {
            let value = labels.get(key);
            match wanted {
                LabelMatch::In(values) => value.is_some_and(|value| values.contains(value)),
                LabelMatch::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                LabelMatch::Exists => value.is_some(),
                LabelMatch::DoesNotExist => value.is_none(),
            }
        })
    }

    /// The nodes that this names by their ids, if it does: no other will ever do.
    pub fn named_nodes(&self) -> Option<Vec<NodeId>> {
        self.0.iter().find_map(|(key, wanted)| match wanted {
            LabelMatch::In(values) if key == NODE_ID_LABEL => {
                Some(values.iter().filter_map(|value| NodeId::from_hex(value).ok()).collect())
            }
            _ => None,
        })
    }
}

impl fmt::Display for LabelSelector {
    /// As `{region: in(eu, us), gpu: !}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (at, (key, wanted)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            match wanted {
                LabelMatch::In(values) => write!(f, "{comma}{key}: in({})", values.join(", "))?,
                LabelMatch::NotIn(values) => write!(f, "{comma}{key}: !in({})", values.join(", "))?,
                LabelMatch::Exists => write!(f, "{comma}{key}: there")?,
                LabelMatch::DoesNotExist => write!(f, "{comma}{key}: not there")?,
            }
        }
        f.write_str("}")
    }
}

/// Where something may run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Constraint {
    /// Which nodes are wanted.
    pub strategy: Strategy,
    /// What its node's labels have to be; of several, the first that some node fulfils counts. Empty: anything.
    pub selectors: Vec<LabelSelector>,
}

impl Constraint {
    /// Whether a node with these labels will do by any of the selectors.
    pub fn allows(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selectors.is_empty() || self.selectors.iter().any(|selector| selector.matches(labels))
    }

    /// The placement group in which it has to run.
    pub const fn group_id(&self) -> Option<PlacementGroupId> {
        match self.strategy {
            Strategy::Bundle { group_id, .. } => Some(group_id),
            Strategy::Default | Strategy::Spread | Strategy::NodeAffinity { .. } => None,
        }
    }
}

impl Strategy {
    /// This node, whatever else; or, if `soft`, any while it is gone or too small.
    pub const fn on_node(node_id: NodeId, soft: bool) -> Self {
        Self::NodeAffinity { node_id, soft, when_busy: WhenBusy::Wait }
    }
}

impl From<Strategy> for Constraint {
    fn from(strategy: Strategy) -> Self {
        Self { strategy, selectors: Vec::new() }
    }
}

/// What something needs, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Shape {
    /// What it takes.
    pub resources: Resources,
    /// Where it may run.
    pub constraint: Constraint,
}

impl Shape {
    /// This with another strategy.
    #[must_use]
    pub fn with_strategy(mut self, strategy: Strategy) -> Self {
        self.constraint.strategy = strategy;
        self
    }

    /// This, on nodes whose labels are as one of these wants them.
    #[must_use]
    pub fn with_selectors(mut self, selectors: Vec<LabelSelector>) -> Self {
        self.constraint.selectors = selectors;
        self
    }
}

impl From<Resources> for Shape {
    /// On any node.
    fn from(resources: Resources) -> Self {
        Self { resources, constraint: Constraint::default() }
    }
}

/// One of the sets of resources that a placement group reserves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BundleId {
    /// The group.
    pub group_id: PlacementGroupId,
    /// Which of its bundles, from 0.
    pub index: u32,
}

impl fmt::Display for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bundle {} of placement group {}", self.index, self.group_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn selector(key: &str, wanted: LabelMatch) -> LabelSelector {
        LabelSelector(vec![(key.to_owned(), wanted)])
    }

    #[test]
    fn each_operator_means_what_it_says() {
        let (eu, none) = (labels(&[("region", "eu")]), labels(&[]));
        let values = || vec!["eu".to_owned(), "us".to_owned()];
        for (wanted, of_eu, of_none) in [
            (LabelMatch::In(values()), true, false),
            (LabelMatch::NotIn(values()), false, true),
            (LabelMatch::In(vec!["us".to_owned()]), false, false),
            (LabelMatch::NotIn(vec!["us".to_owned()]), true, true),
            (LabelMatch::Exists, true, false),
            (LabelMatch::DoesNotExist, false, true),
        ] {
            let selector = selector("region", wanted);
            assert_eq!((selector.matches(&eu), selector.matches(&none)), (of_eu, of_none), "{selector}");
        }
        assert!(LabelSelector::default().matches(&none));
    }

    #[test]
    fn any_of_several_selectors_will_do_but_each_as_a_whole() {
        let wanted = |value: &str| LabelMatch::In(vec![value.to_owned()]);
        let both = LabelSelector(vec![("a".to_owned(), wanted("1")), ("b".to_owned(), wanted("2"))]);
        let constraint =
            Constraint { selectors: vec![both, selector("c", LabelMatch::Exists)], ..Constraint::default() };
        assert!(!constraint.allows(&labels(&[("a", "1")])));
        assert!(constraint.allows(&labels(&[("a", "1"), ("b", "2")])));
        assert!(constraint.allows(&labels(&[("c", "")])));
    }

    #[test]
    fn a_selector_names_the_nodes_that_it_pins() {
        let node_id = NodeId::from_bytes([7; 16]);
        let pinned = selector(NODE_ID_LABEL, LabelMatch::In(vec![node_id.hex()]));
        assert_eq!(pinned.named_nodes(), Some(vec![node_id]));
        assert_eq!(selector("region", LabelMatch::Exists).named_nodes(), None);
    }
}
