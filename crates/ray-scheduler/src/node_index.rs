//! The living nodes laid out for searching.
//!
//! Each node has a slot. What every node has lies in one array per resource, indexed by slot, so that
//! a search for the best of 10 000 nodes runs through a few contiguous arrays. Resources of one's own
//! are often there on a few nodes only, so each has a list of the nodes that hold it, ordered by slot;
//! a search for such a resource walks the shortest of those lists and keeps a cursor in the others.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use ray_core::id::NodeId;
use ray_core::resource::{CPU, GPU, MEMORY, OBJECT_STORE_MEMORY, Resources};
use rustc_hash::FxHashMap;

/// Where a node lies in the arrays.
pub(crate) type Slot = usize;

/// The resources that have an array; these alone make up a node's utilisation, because the others are
/// often mere marks of a node.
const STANDARD: [&str; 4] = [CPU, GPU, MEMORY, OBJECT_STORE_MEMORY];
const GPU_COLUMN: usize = 1;

/// The utilisation that marks a slot without a node.
const EMPTY: u32 = u32::MAX;
const MILLION: u32 = 1_000_000;

/// One array for each standard resource.
type Columns = [Vec<u64>; STANDARD.len()];

/// Amounts of one custom resource on one node.
#[derive(Debug, Clone, Copy)]
struct Holding {
    slot: Slot,
    total: u64,
    free: u64,
}

#[derive(Debug, Default)]
pub(crate) struct NodeIndex {
    /// Ids as numbers of the same order: comparing two of these is two instructions.
    ids: Vec<u128>,
    total: Columns,
    free: Columns,
    /// Millionths in use of the resource that is used most.
    utilisation: Vec<u32>,
    /// Which of all placements was this node's last; 0 if it had none.
    last_placed: Vec<u64>,
    /// By name: the nodes that hold it, in the order of their slots.
    custom: FxHashMap<String, Vec<Holding>>,
    holes: Vec<Slot>,
}

/// What to compare with a request.
#[derive(Clone, Copy)]
enum Amounts {
    Free,
    Total,
}

/// A node on which a request fits, as a policy sees it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    index: &'a NodeIndex,
    slot: Slot,
}

impl Candidate<'_> {
    /// The node.
    pub fn node_id(self) -> NodeId {
        self.index.id(self.slot)
    }

    /// Millionths in use of that one of processors, graphics processors, memory and object store
    /// memory which is used most.
    pub fn utilisation(self) -> u32 {
        self.index.utilisation[self.slot]
    }

    /// When something was last placed there: which of the view's commits, from 1; 0 if none was.
    pub fn last_placed(self) -> u64 {
        self.index.last_placed[self.slot]
    }

    /// Whether the node has graphics processors, free or not.
    pub fn has_gpu(self) -> bool {
        self.index.total[GPU_COLUMN][self.slot] > 0
    }
}

impl NodeIndex {
    pub(crate) fn insert(
        &mut self,
        node_id: NodeId,
        total: &Resources,
        free: &Resources,
        last_placed: u64,
    ) -> Slot {
        let slot = self.holes.pop().unwrap_or_else(|| self.grow());
        self.ids[slot] = u128::from_be_bytes(*node_id.as_bytes());
        self.last_placed[slot] = last_placed;
        for (column, name) in self.total.iter_mut().zip(STANDARD) {
            column[slot] = total.get(name).to_raw();
        }
        for (name, amount) in custom(total) {
            let holders = self.custom.entry(name.to_owned()).or_default();
            let at = holders.partition_point(|holding| holding.slot < slot);
            holders.insert(at, Holding { slot, total: amount, free: 0 });
        }
        self.set_free(slot, total, free);
        slot
    }

    /// Removes a node that was inserted with this `total`.
    pub(crate) fn remove(&mut self, slot: Slot, total: &Resources) {
        for (name, _) in custom(total) {
            let Some(holders) = self.custom.get_mut(name) else { continue };
            holders.retain(|holding| holding.slot != slot);
            if holders.is_empty() {
                self.custom.remove(name);
            }
        }
        self.utilisation[slot] = EMPTY;
        self.holes.push(slot);
    }

    /// Sets what is free on a node that was inserted with this `total`.
    pub(crate) fn set_free(&mut self, slot: Slot, total: &Resources, free: &Resources) {
        let mut utilisation = 0;
        for (at, name) in STANDARD.into_iter().enumerate() {
            let amount = free.get(name).to_raw();
            self.free[at][slot] = amount;
            utilisation =
                utilisation.max(share(self.total[at][slot].saturating_sub(amount), self.total[at][slot]));
        }
        self.utilisation[slot] = utilisation;
        for (name, _) in custom(total) {
            let Some(holders) = self.custom.get_mut(name) else { continue };
            if let Ok(at) = holders.binary_search_by_key(&slot, |holding| holding.slot) {
                holders[at].free = free.get(name).to_raw();
            }
        }
    }

    pub(crate) fn set_last_placed(&mut self, slot: Slot, last_placed: u64) {
        self.last_placed[slot] = last_placed;
    }

    pub(crate) fn best_fit<K: Ord>(
        &self,
        resources: &Resources,
        allowed: impl Fn(NodeId) -> bool,
        mut key: impl FnMut(Candidate<'_>) -> K,
    ) -> Option<NodeId> {
        let mut best: Option<(K, Slot)> = None;
        let _ = self.search(resources, Amounts::Free, |slot| {
            if !allowed(self.id(slot)) {
                return ControlFlow::Continue(());
            }
            let key = key(Candidate { index: self, slot });
            let better = match &best {
                None => true,
                Some((best_key, best_slot)) => match key.cmp(best_key) {
                    Ordering::Less => true,
                    Ordering::Equal => self.ids[slot] < self.ids[*best_slot],
                    Ordering::Greater => false,
                },
            };
            if better {
                best = Some((key, slot));
            }
            ControlFlow::Continue(())
        });
        best.map(|(_, slot)| self.id(slot))
    }

    pub(crate) fn is_feasible(&self, resources: &Resources) -> bool {
        self.search(resources, Amounts::Total, |_| ControlFlow::Break(())).is_break()
    }

    pub(crate) fn closest(&self, resources: &Resources) -> Option<NodeId> {
        // The shares of what is asked of each resource, added up.
        let mut lacking = vec![0.0; self.ids.len()];
        for (column, name) in self.total.iter().zip(STANDARD) {
            let asked = resources.get(name).to_raw();
            if asked > 0 {
                let share = 1.0 / asked as f64;
                for (lacking, &total) in lacking.iter_mut().zip(column) {
                    *lacking += asked.saturating_sub(total) as f64 * share;
                }
            }
        }
        for (name, asked) in custom(resources) {
            let share = 1.0 / asked as f64;
            lacking.iter_mut().for_each(|lacking| *lacking += 1.0);
            for holding in self.custom.get(name).into_iter().flatten() {
                lacking[holding.slot] -= holding.total.min(asked) as f64 * share;
            }
        }
        let mut best: Option<Slot> = None;
        for slot in (0..self.ids.len()).filter(|&slot| self.utilisation[slot] != EMPTY) {
            let better = best.is_none_or(|best| match lacking[slot].total_cmp(&lacking[best]) {
                Ordering::Less => true,
                Ordering::Equal => self.ids[slot] < self.ids[best],
                Ordering::Greater => false,
            });
            if better {
                best = Some(slot);
            }
        }
        best.map(|slot| self.id(slot))
    }

    /// Visits the slots of all nodes that have `resources`, in the order of slots.
    fn search(
        &self,
        resources: &Resources,
        amounts: Amounts,
        mut visit: impl FnMut(Slot) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let columns = match amounts {
            Amounts::Free => &self.free,
            Amounts::Total => &self.total,
        };
        let mut asked = [(columns[0].as_slice(), 0); STANDARD.len()];
        let mut asked_count = 0;
        for (column, name) in columns.iter().zip(STANDARD) {
            let amount = resources.get(name).to_raw();
            if amount > 0 {
                asked[asked_count] = (column, amount);
                asked_count += 1;
            }
        }
        let asked = &asked[..asked_count];
        let fits = |slot: Slot| asked.iter().all(|&(column, amount)| column[slot] >= amount);

        let Some(mut holders) = self.holders(resources, amounts) else { return ControlFlow::Continue(()) };
        let Some((shortest, others)) = holders.split_first_mut() else {
            return (0..self.ids.len())
                .filter(|&slot| fits(slot) && self.utilisation[slot] != EMPTY)
                .try_for_each(visit);
        };
        for holding in shortest.rest {
            let slot = holding.slot;
            if shortest.has_enough(holding)
                && fits(slot)
                && others.iter_mut().all(|other| other.reaches(slot))
            {
                visit(slot)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// The holders of each custom resource in `resources`, the fewest first; `None` if one of them has
    /// none.
    fn holders(&self, resources: &Resources, amounts: Amounts) -> Option<Vec<Cursor<'_>>> {
        let mut holders = custom(resources)
            .map(|(name, asked)| {
                self.custom.get(name).map(|rest| Cursor { rest: rest.as_slice(), asked, amounts })
            })
            .collect::<Option<Vec<_>>>()?;
        holders.sort_by_key(|cursor| cursor.rest.len());
        Some(holders)
    }

    fn grow(&mut self) -> Slot {
        self.ids.push(0);
        self.utilisation.push(EMPTY);
        self.last_placed.push(0);
        self.total.iter_mut().chain(&mut self.free).for_each(|column| column.push(0));
        self.ids.len() - 1
    }

    fn id(&self, slot: Slot) -> NodeId {
        NodeId::from_bytes(self.ids[slot].to_be_bytes())
    }
}

/// What is left of one list of holders.
struct Cursor<'a> {
    rest: &'a [Holding],
    asked: u64,
    amounts: Amounts,
}

impl Cursor<'_> {
    fn has_enough(&self, holding: &Holding) -> bool {
        let there = match self.amounts {
            Amounts::Free => holding.free,
            Amounts::Total => holding.total,
        };
        there >= self.asked
    }

    /// Whether the node at `slot` holds enough. Slots may only grow from call to call.
    fn reaches(&mut self, slot: Slot) -> bool {
        while let Some((first, rest)) = self.rest.split_first() {
            if first.slot >= slot {
                return first.slot == slot && self.has_enough(first);
            }
            self.rest = rest;
        }
        false
    }
}

fn custom(resources: &Resources) -> impl Iterator<Item = (&str, u64)> {
    resources
        .iter()
        .filter(|(name, _)| !STANDARD.contains(name))
        .map(|(name, amount)| (name, amount.to_raw()))
}

/// Millionths that `part` is of `whole`, at most all of them, and only nothing counts as nothing. In
/// floating point, because a division of 128 bits takes ten times as long.
fn share(part: u64, whole: u64) -> u32 {
    if part == 0 || whole == 0 {
        return 0;
    }
    let millionths = part as f64 * f64::from(MILLION) / whole as f64;
    (millionths as u32).clamp(1, MILLION)
}
