//! Orders to create an object that are under way: in case another process is writing the same object, for that one may
//! seal it or fail.
//!
//! ```text
//!             begin              end
//!   (none) ----------> asked ----------> (none)
//!                        ^                 | somebody else is writing the object
//!                        | retry           v
//!                        +------------- deferred
//! ```

use ray_core::id::{NodeId, ObjectId, WorkerId};
use ray_object_store::object_table::ClientId;
use rustc_hash::FxHashMap;

/// An order to create an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Create {
    pub(super) client: ClientId,
    pub(super) request: u64,
    pub(super) object_id: ObjectId,
    pub(super) size: u64,
    pub(super) owner: WorkerId,
    /// The node whose object it is, if it is to be a copy.
    pub(super) copy_of: Option<NodeId>,
}

/// See the top of this file.
#[derive(Debug, Default)]
pub(super) struct Creates {
    asked: FxHashMap<(ClientId, u64), Create>,
    deferred: Vec<Create>,
}

impl Creates {
    /// The table is asked to create.
    pub(super) fn begin(&mut self, create: Create) {
        self.asked.insert((create.client, create.request), create);
    }

    /// The table has answered. Returns what it was asked, unless that was no create or is forgotten.
    pub(super) fn end(&mut self, client: ClientId, request: u64) -> Option<Create> {
        self.asked.remove(&(client, request))
    }

    /// Somebody else is writing the object.
    pub(super) fn defer(&mut self, create: Create) {
        self.deferred.push(create);
    }

    /// Somebody sealed or gave up an object: those who wanted to write the same try again.
    pub(super) fn take_deferred(&mut self) -> Vec<Create> {
        std::mem::take(&mut self.deferred)
    }

    /// This client does not write the object any more.
    pub(super) fn forget_object(&mut self, client: ClientId, object_id: ObjectId) {
        self.keep(|create| (create.client, create.object_id) != (client, object_id));
    }

    /// This client is gone.
    pub(super) fn forget_client(&mut self, client: ClientId) {
        self.keep(|create| create.client != client);
    }

    /// Nobody waits for the answer to this request any more. Returns what the table was asked.
    pub(super) fn forget_request(&mut self, client: ClientId, request: u64) -> Option<Create> {
        self.deferred.retain(|create| (create.client, create.request) != (client, request));
        self.end(client, request)
    }

    fn keep(&mut self, is_kept: impl Fn(&Create) -> bool) {
        self.asked.retain(|_, create| is_kept(create));
        self.deferred.retain(is_kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ClientId = ClientId(1);
    const B: ClientId = ClientId(2);

    fn object(number: u64) -> ObjectId {
        ObjectId::for_put(ray_core::id::TaskId::nil(), number)
    }

    fn create(client: ClientId, request: u64, number: u64) -> Create {
        let owner = WorkerId::nil();
        Create { client, request, object_id: object(number), size: 1, owner, copy_of: None }
    }

    /// Each client has an order under way and a deferred one for each of the objects 0 and 1: requests 0 to 3.
    fn creates() -> Creates {
        let mut creates = Creates::default();
        for client in [A, B] {
            for number in [0, 1] {
                creates.begin(create(client, number, number));
                creates.defer(create(client, number + 2, number));
            }
        }
        creates
    }

    /// The requests that are left, under way and deferred.
    fn left(creates: &mut Creates, client: ClientId) -> Vec<u64> {
        let asked = (0..4).filter_map(|request| creates.end(client, request));
        let mut left: Vec<u64> = asked.map(|create| create.request).collect();
        left.extend(
            creates.deferred.iter().filter(|create| create.client == client).map(|create| create.request),
        );
        left
    }

    #[test]
    fn an_order_ends_once_and_a_deferred_one_is_tried_again_once() {
        let mut creates = Creates::default();
        creates.begin(create(A, 7, 0));
        assert_eq!(creates.end(B, 7), None);
        let ended = creates.end(A, 7).unwrap();
        assert_eq!((ended, creates.end(A, 7)), (create(A, 7, 0), None));
        creates.defer(ended);
        assert_eq!(creates.take_deferred(), [ended]);
        assert_eq!(creates.take_deferred(), []);
    }

    #[test]
    fn what_is_forgotten_is_neither_under_way_nor_tried_again() {
        let (mut without_object, mut without_client) = (creates(), creates());
        without_object.forget_object(A, object(0));
        assert_eq!(left(&mut without_object, A), [1, 3]);
        assert_eq!(left(&mut without_object, B), [0, 1, 2, 3]);
        without_client.forget_client(A);
        assert!(left(&mut without_client, A).is_empty());
        assert_eq!(left(&mut without_client, B), [0, 1, 2, 3]);
    }

    #[test]
    fn a_request_is_forgotten_wherever_it_is() {
        let mut creates = creates();
        assert_eq!(creates.forget_request(A, 0), Some(create(A, 0, 0)));
        assert_eq!(creates.forget_request(A, 2), None, "the table has answered it");
        assert_eq!(left(&mut creates, A), [1, 3]);
        assert_eq!(left(&mut creates, B), [0, 1, 2, 3]);
    }
}
