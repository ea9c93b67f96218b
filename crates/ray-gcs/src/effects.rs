//! What the shell has to do after a step of the control plane, as plain data.

use std::collections::BTreeMap;
use std::sync::Arc;

use ray_core::id::{ActorId, NodeId, PlacementGroupId};
use ray_core::traits::Write;

use crate::actor::ActorInfo;
use crate::actor_table::NodeOrder;
use crate::job_table::JobInfo;
use crate::node_table::NodeInfo;
use crate::placement_group::GroupInfo;
use crate::stored;
use crate::usage_table::NodeUsage;

/// Something that everyone may know has changed.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A node.
    Node(Arc<NodeInfo>),
    /// An actor.
    Actor(Arc<ActorInfo>),
    /// A placement group.
    PlacementGroup(Arc<GroupInfo>),
    /// A job.
    Job(Arc<JobInfo>),
    /// A node's usage.
    Usage(Arc<NodeUsage>),
}

/// Everything that everyone may know, at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// All nodes.
    pub nodes: Vec<Arc<NodeInfo>>,
    /// All actors.
    pub actors: Vec<Arc<ActorInfo>>,
    /// All placement groups.
    pub groups: Vec<Arc<GroupInfo>>,
    /// All jobs.
    pub jobs: Vec<Arc<JobInfo>>,
    /// Every living node's usage.
    pub usages: Vec<NodeUsage>,
}

/// What has to be done about the connection to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkChange {
    /// The node is there, at this address.
    Open(NodeId, String),
    /// The node is gone.
    Close(NodeId),
}

/// What the shell has to do after one or more steps: first make `writes` durable, all or none, then the rest.
#[derive(Debug, Default)]
pub struct Effects {
    /// To be kept.
    pub writes: Vec<Write>,
    /// To be told to every subscriber, in this order.
    pub events: Vec<Event>,
    /// Connections to open or close, before any order is given.
    pub links: Vec<LinkChange>,
    /// Orders to nodes, in this order.
    pub orders: Vec<(NodeId, NodeOrder)>,
    /// Where an actor's change lies in `writes` and `events`.
    changed_actors: BTreeMap<ActorId, (usize, usize)>,
    /// The same of placement groups.
    changed_groups: BTreeMap<PlacementGroupId, (usize, usize)>,
}

impl Effects {
    /// An actor changed. Of several changes of one actor only the last one is kept and told: what was
    /// true only inside a step never was.
    pub(crate) fn actor_changed(&mut self, info: Arc<ActorInfo>) {
        let write = stored::put_actor(&info);
        match self.changed_actors.get(&info.actor_id) {
            Some(&(at_write, at_event)) => {
                self.writes[at_write] = write;
                self.events[at_event] = Event::Actor(info);
            }
            None => {
                self.changed_actors.insert(info.actor_id, (self.writes.len(), self.events.len()));
                self.writes.push(write);
                self.events.push(Event::Actor(info));
            }
        }
    }

    /// A placement group changed; as with actors, the last change counts.
    pub(crate) fn group_changed(&mut self, info: Arc<GroupInfo>) {
        let write = stored::put_group(&info);
        match self.changed_groups.get(&info.spec.group_id) {
            Some(&(at_write, at_event)) => {
                self.writes[at_write] = write;
                self.events[at_event] = Event::PlacementGroup(info);
            }
            None => {
                let at = (self.writes.len(), self.events.len());
                self.changed_groups.insert(info.spec.group_id, at);
                self.writes.push(write);
                self.events.push(Event::PlacementGroup(info));
            }
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.events.is_empty() && self.links.is_empty() && self.orders.is_empty()
    }
}
