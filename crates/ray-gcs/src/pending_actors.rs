//! The actors that wait for a node, in the order in which they came.
//!
//! They wait by shape: what they need and where they want to be. If the first of a shape finds no node,
//! none of that shape does, so that a round of placement costs one look for each shape, however
//! many actors wait; and one shape never waits behind another.

use std::collections::BTreeMap;

use ray_core::constraint::Shape;
use ray_core::id::ActorId;

/// The actors that wait for a node.
#[derive(Debug, Default)]
pub struct PendingActors {
    shapes: BTreeMap<Shape, Queue>,
    places: BTreeMap<ActorId, (Shape, u64)>,
    next: u64,
}

#[derive(Debug, Default)]
struct Queue {
    /// By order of arrival.
    actors: BTreeMap<u64, ActorId>,
    reason: String,
    /// Whoever came before this one knows the reason.
    told_before: u64,
}

impl PendingActors {
    /// An actor begins to wait. One that waits already keeps its place.
    pub fn push(&mut self, actor_id: ActorId, shape: Shape) {
        if self.places.contains_key(&actor_id) {
            return;
        }
        let place = self.next;
        self.next += 1;
        self.shapes.entry(shape.clone()).or_default().actors.insert(place, actor_id);
        self.places.insert(actor_id, (shape, place));
    }

    /// An actor waits no longer.
    pub fn remove(&mut self, actor_id: &ActorId) {
        let Some((shape, place)) = self.places.remove(actor_id) else { return };
        let Some(queue) = self.shapes.get_mut(&shape) else { return };
        queue.actors.remove(&place);
        if queue.actors.is_empty() {
            self.shapes.remove(&shape);
        }
    }

    /// The shapes that somebody waits with, the one whose first actor came first in front.
    pub fn shapes(&self) -> Vec<Shape> {
        let mut shapes: Vec<_> =
            self.shapes.iter().map(|(shape, queue)| (queue.actors.keys().next(), shape)).collect();
        shapes.sort_unstable();
        shapes.into_iter().map(|(_, shape)| shape.clone()).collect()
    }

    /// The first actor of this shape.
    pub fn first(&self, shape: &Shape) -> Option<ActorId> {
        self.shapes.get(shape)?.actors.values().next().copied()
    }

    /// Notes why this shape waits; returns the actors that were not told so yet.
    pub fn tell(&mut self, shape: &Shape, reason: &str) -> Vec<ActorId> {
        let Some(queue) = self.shapes.get_mut(shape) else { return Vec::new() };
        if queue.reason != reason {
            reason.clone_into(&mut queue.reason);
            queue.told_before = 0;
        }
        let untold = queue.actors.range(queue.told_before..).map(|(_, &actor_id)| actor_id).collect();
        queue.told_before = self.next;
        untold
    }

    /// What is waited for, and by how many.
    pub fn demand(&self) -> impl Iterator<Item = (&Shape, usize)> {
        self.shapes.iter().map(|(shape, queue)| (shape, queue.actors.len()))
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Who waits, in the order of ids; for tests.
    pub fn iter(&self) -> impl Iterator<Item = ActorId> {
        self.places.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> ActorId {
        ActorId::from_bytes([n; 16])
    }

    fn shape(cpus: f64) -> Shape {
        Shape::from(ray_core::resource::Resources::new().with_cpu(cpus).unwrap())
    }

    #[test]
    fn it_tells_how_many_wait_with_what() {
        let mut pending = PendingActors::default();
        assert_eq!(pending.demand().count(), 0);
        for (number, cpus) in [(1, 1.0), (2, 2.0), (3, 1.0)] {
            pending.push(id(number), shape(cpus));
        }
        assert_eq!(pending.demand().collect::<Vec<_>>(), [(&shape(1.0), 2), (&shape(2.0), 1)]);
        pending.remove(&id(2));
        assert_eq!(pending.demand().collect::<Vec<_>>(), [(&shape(1.0), 2)]);
    }

    #[test]
    fn each_shape_is_served_in_order_and_the_oldest_shape_first() {
        let mut pending = PendingActors::default();
        pending.push(id(1), shape(9.0));
        pending.push(id(2), shape(1.0));
        pending.push(id(3), shape(9.0));
        pending.push(id(2), shape(1.0));
        assert_eq!(pending.shapes(), [shape(9.0), shape(1.0)]);
        assert_eq!(pending.first(&shape(9.0)), Some(id(1)));
        pending.remove(&id(1));
        assert_eq!(pending.shapes(), [shape(1.0), shape(9.0)]);
        assert_eq!(pending.first(&shape(9.0)), Some(id(3)));
        pending.remove(&id(3));
        pending.remove(&id(2));
        assert!(pending.is_empty() && pending.shapes().is_empty());
    }

    #[test]
    fn everyone_is_told_a_reason_once() {
        let mut pending = PendingActors::default();
        pending.push(id(1), shape(1.0));
        assert_eq!(pending.tell(&shape(1.0), "busy"), [id(1)]);
        pending.push(id(2), shape(1.0));
        assert_eq!(pending.tell(&shape(1.0), "busy"), [id(2)]);
        assert_eq!(pending.tell(&shape(1.0), "busy"), []);
        assert_eq!(pending.tell(&shape(1.0), "too big"), [id(1), id(2)]);
    }
}
