//! What this node pulls from others: which object from where, how many at once, and when again.
//!
//! ```text
//!          asked for           its turn              room                      all bytes
//!  (none) ----------> Queued ------------> Reserving ------> Fetching ----------------------> sealed
//!                     ^    |                   |               |   |
//!                     |    | node not known    | refused       |   +-- not there, node dead
//!                due  |    v                   v               |                |
//!                     +- Paused <---------- refused            v                v
//!                          ^                          broken: it goes on      refused
//!                          +------------------------- where it stopped
//! ```
//! There is one pull of an object, whoever asks for it. It ends as soon as nobody does. Those that wait for their turn
//! take it in the order in which they were asked for; one that goes on after a pause goes first, for it has room already.
//! One node has half of the turns and bytes at most, counting what rests: if it hangs, the others are still read from.
//!
//! # Why nothing waits for ever
//! A turn ends with the pull, or with a pause. Without progress for [`PullConfig::patience`], or with the death of the
//! node that has the object, a pull ends. Room is waited for as long as the object table says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ray_core::id::{NodeId, ObjectId};
use ray_object_store::object_table::{ClientId, Refusal};

/// Dead nodes that are remembered, for errors that name them.
const REMEMBERED_DEAD: usize = 1_000;

/// Settings of a [`PullTable`].
#[derive(Debug, Clone)]
pub(crate) struct PullConfig {
    /// How many objects are pulled at once.
    pub(crate) max_pulls: usize,
    /// How many bytes they have together, unless one alone has more.
    pub(crate) max_bytes: u64,
    /// How long a pull may be without progress.
    pub(crate) patience: Duration,
    /// The first and the longest pause after something went wrong.
    pub(crate) pauses: (Duration, Duration),
}

/// One request of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Asker {
    pub(crate) client: ClientId,
    pub(crate) request: u64,
}

/// Where an object is, as somebody said who asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) node_id: NodeId,
    pub(crate) size: u64,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PullEffect {
    /// Ask for room; `on_room` or `on_present` of this attempt is expected back.
    Reserve { object_id: ObjectId, origin: Origin, attempt: u64 },
    /// Fetch the object into its room from this offset on; `on_fetched` of this attempt is expected back.
    Fetch { object_id: ObjectId, origin: Origin, attempt: u64, offset: u64 },
    /// The object is there to its end.
    Seal { object_id: ObjectId },
    /// Stop what is under way for this object, and give up its room.
    Drop { object_id: ObjectId },
    /// The object will not come.
    Refuse { asker: Asker, object_id: ObjectId, refusal: Refusal },
}

/// How an attempt to fetch an object ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FetchEnd {
    /// All bytes are there.
    Complete,
    /// The node has no such object.
    Missing,
    /// Something went wrong that may go better next time.
    Broken(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// At this place of the queue.
    Queued(i64),
    Reserving,
    Fetching,
    Paused(Instant),
}

#[derive(Debug)]
struct Pull {
    /// From where it is pulled.
    origin: Origin,
    /// Who asks, and where each thinks that it is.
    askers: BTreeMap<Asker, Origin>,
    stage: Stage,
    has_room: bool,
    /// Bytes that are there.
    offset: u64,
    /// What was said of an earlier one changes nothing.
    attempt: u64,
    /// The node was asked for it.
    is_lent: bool,
    /// When something of it came last, or there was room, or it was first its turn.
    progress_at: Option<Instant>,
    pause: Duration,
    /// What went wrong last.
    trouble: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Share {
    pulls: usize,
    bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    Alive,
    Dead(String),
}

/// The pulls of one node; see the module's documentation. Every event appends what is to be done to `out`.
#[derive(Debug)]
pub(crate) struct PullTable {
    config: PullConfig,
    nodes: BTreeMap<NodeId, Known>,
    pulls: BTreeMap<ObjectId, Pull>,
    by_asker: BTreeMap<Asker, BTreeSet<ObjectId>>,
    /// Those that wait for their turn, by node, the first in front.
    queues: BTreeMap<NodeId, BTreeMap<i64, ObjectId>>,
    /// How many pulls from a node have or ask for room, and their bytes.
    shares: BTreeMap<NodeId, Share>,
    paused: BTreeSet<(Instant, ObjectId)>,
    /// Pulls whose turn it is, and their bytes.
    busy: usize,
    busy_bytes: u64,
    first: i64,
    last: i64,
    attempts: u64,
    received_bytes: u64,
}

impl PullTable {
    /// Nothing is pulled, and no node is known.
    pub(crate) fn new(config: PullConfig) -> Self {
        Self {
            config,
            nodes: BTreeMap::new(),
            pulls: BTreeMap::new(),
            by_asker: BTreeMap::new(),
            queues: BTreeMap::new(),
            shares: BTreeMap::new(),
            paused: BTreeSet::new(),
            busy: 0,
            busy_bytes: 0,
            first: 0,
            last: 0,
            attempts: 0,
            received_bytes: 0,
        }
    }

    /// Whether this node is known to live.
    pub(crate) fn is_alive(&self, node_id: NodeId) -> bool {
        self.nodes.get(&node_id) == Some(&Known::Alive)
    }

    /// Bytes that have come from other nodes.
    pub(crate) const fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// A node lives, and can be reached.
    pub(crate) fn on_node_alive(&mut self, now: Instant, node_id: NodeId, out: &mut Vec<PullEffect>) {
        if self.nodes.insert(node_id, Known::Alive) == Some(Known::Alive) {
            return;
        }
        let from_it = |(_, object_id): &&(Instant, ObjectId)| {
            self.pulls.get(object_id).is_some_and(|pull| pull.origin.node_id == node_id)
        };
        for (_, object_id) in self.paused.iter().filter(from_it).copied().collect::<Vec<_>>() {
            self.enqueue(object_id);
        }
        self.start_next(now, out);
    }

    /// A node is dead, and with it its objects.
    pub(crate) fn on_node_lost(
        &mut self,
        now: Instant,
        node_id: NodeId,
        reason: &str,
        out: &mut Vec<PullEffect>,
    ) {
        self.nodes.insert(node_id, Known::Dead(reason.to_owned()));
        let dead = |known: &Known| matches!(known, Known::Dead(_));
        if self.nodes.values().filter(|known| dead(known)).count() > REMEMBERED_DEAD
            && let Some(forgotten) = self
                .nodes
                .iter()
                .find(|(other, known)| dead(known) && **other != node_id)
                .map(|(&other, _)| other)
        {
            self.nodes.remove(&forgotten);
        }
        for object_id in self.of_node(node_id) {
            self.fail_origin(now, object_id, dead_node(node_id, reason), out);
        }
        self.start_next(now, out);
    }

    /// Somebody asks for an object that is not here. Asking twice changes nothing.
    pub(crate) fn on_wanted(
        &mut self,
        now: Instant,
        asker: Asker,
        object_id: ObjectId,
        origin: Origin,
        out: &mut Vec<PullEffect>,
    ) {
        if let Some(Known::Dead(reason)) = self.nodes.get(&origin.node_id)
            && !self.pulls.contains_key(&object_id)
        {
            let refusal = dead_node(origin.node_id, reason);
            out.push(PullEffect::Refuse { asker, object_id, refusal });
            return;
        }
        let is_new = !self.pulls.contains_key(&object_id);
        let pause = self.config.pauses.0;
        let pull = self.pulls.entry(object_id).or_insert_with(|| Pull {
            origin,
            askers: BTreeMap::new(),
            stage: Stage::Paused(now),
            has_room: false,
            offset: 0,
            attempt: 0,
            is_lent: false,
            progress_at: None,
            pause,
            trouble: String::new(),
        });
        pull.askers.insert(asker, origin);
        self.by_asker.entry(asker).or_default().insert(object_id);
        if is_new {
            self.paused.insert((now, object_id));
            self.enqueue(object_id);
            self.start_next(now, out);
        }
    }

    /// A request is taken back.
    pub(crate) fn on_cancelled(&mut self, now: Instant, asker: Asker, out: &mut Vec<PullEffect>) {
        for object_id in self.by_asker.remove(&asker).unwrap_or_default() {
            let Some(pull) = self.pulls.get_mut(&object_id) else { continue };
            pull.askers.remove(&asker);
            if pull.askers.is_empty() {
                self.end(object_id, true, out);
            }
        }
        self.start_next(now, out);
    }

    /// A client is gone, and with it all that it asked for.
    pub(crate) fn on_client_lost(&mut self, now: Instant, client: ClientId, out: &mut Vec<PullEffect>) {
        let requests = Asker { client, request: 0 }..=Asker { client, request: u64::MAX };
        for asker in self.by_asker.range(requests).map(|(&asker, _)| asker).collect::<Vec<_>>() {
            self.on_cancelled(now, asker, out);
        }
    }

    /// There is room for an object, or will be none. False, and nothing happens, if the attempt was given up before.
    pub(crate) fn on_room(
        &mut self,
        now: Instant,
        object_id: ObjectId,
        attempt: u64,
        room: Result<(), Refusal>,
        out: &mut Vec<PullEffect>,
    ) -> bool {
        let is_current = |pull: &&mut Pull| pull.stage == Stage::Reserving && pull.attempt == attempt;
        let Some(pull) = self.pulls.get_mut(&object_id).filter(is_current) else { return false };
        match room {
            Ok(()) => {
                pull.has_room = true;
                pull.progress_at = Some(now);
                self.fetch(now, object_id, out);
            }
            Err(refusal) => {
                for &asker in pull.askers.keys() {
                    out.push(PullEffect::Refuse { asker, object_id, refusal: refusal.clone() });
                }
                self.end(object_id, false, out);
            }
        }
        self.start_next(now, out);
        true
    }

    /// The object is here already: it was made on this node meanwhile.
    pub(crate) fn on_present(
        &mut self,
        now: Instant,
        object_id: ObjectId,
        attempt: u64,
        out: &mut Vec<PullEffect>,
    ) {
        let is_current = |pull: &Pull| pull.stage == Stage::Reserving && pull.attempt == attempt;
        if self.pulls.get(&object_id).is_some_and(is_current) {
            self.end(object_id, false, out);
            self.start_next(now, out);
        }
    }

    /// An attempt has ended, with so many bytes there. False, and nothing happens, if it was given up before.
    pub(crate) fn on_fetched(
        &mut self,
        now: Instant,
        object_id: ObjectId,
        attempt: u64,
        offset: u64,
        end: FetchEnd,
        out: &mut Vec<PullEffect>,
    ) -> bool {
        let is_current = |pull: &&mut Pull| pull.stage == Stage::Fetching && pull.attempt == attempt;
        let Some(pull) = self.pulls.get_mut(&object_id).filter(is_current) else { return false };
        if offset > pull.offset {
            self.received_bytes += offset - pull.offset;
            pull.offset = offset;
            pull.progress_at = Some(now);
            pull.pause = self.config.pauses.0;
        }
        let node_id = pull.origin.node_id;
        match end {
            FetchEnd::Complete => {
                out.push(PullEffect::Seal { object_id });
                self.end(object_id, false, out);
            }
            FetchEnd::Missing => {
                let cause = format!("node {node_id}, where it was stored, does not have it any more");
                self.fail_origin(now, object_id, Refusal::Lost { cause }, out);
            }
            FetchEnd::Broken(trouble) => {
                pull.trouble = trouble;
                self.pause(now, object_id, out);
            }
        }
        self.start_next(now, out);
        true
    }

    /// A node says that these objects are gone. What is being pulled of them is asked for again, for the word may be
    /// about an object of the same name that was there before.
    pub(crate) fn on_recalled(
        &mut self,
        now: Instant,
        node_id: NodeId,
        object_ids: Option<&[ObjectId]>,
        out: &mut Vec<PullEffect>,
    ) {
        let recalled = object_ids.map_or_else(|| self.of_node(node_id), <[ObjectId]>::to_vec);
        for object_id in recalled {
            let is_lent = |pull: &Pull| pull.origin.node_id == node_id && pull.is_lent;
            if self.pulls.get(&object_id).is_some_and(is_lent) {
                self.restart(object_id, out);
            }
        }
        self.start_next(now, out);
    }

    /// Does what is due by now.
    pub(crate) fn on_tick(&mut self, now: Instant, out: &mut Vec<PullEffect>) {
        while let Some(&(at, object_id)) = self.paused.first().filter(|(at, _)| *at <= now) {
            self.paused.remove(&(at, object_id));
            self.enqueue(object_id);
        }
        self.start_next(now, out);
    }

    /// When [`Self::on_tick`] has something to do next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.paused.first().map(|&(at, _)| at)
    }

    fn of_node(&self, node_id: NodeId) -> Vec<ObjectId> {
        let of_node = self.pulls.iter().filter(|(_, pull)| pull.origin.node_id == node_id);
        of_node.map(|(&object_id, _)| object_id).collect()
    }

    /// Gives turns to those who wait, as far as there are some.
    fn start_next(&mut self, now: Instant, out: &mut Vec<PullEffect>) {
        while let Some((object_id, size)) = self.next_in_turn() {
            let is_full = self.busy >= self.config.max_pulls
                || self.busy_bytes.saturating_add(size) > self.config.max_bytes;
            if self.busy > 0 && is_full {
                return;
            }
            self.leave_stage(object_id);
            self.begin(now, object_id, out);
        }
    }

    /// The one that waits for longest, of the nodes that have not had their share.
    fn next_in_turn(&self) -> Option<(ObjectId, u64)> {
        let fronts = self.queues.iter().filter_map(|(node_id, queue)| {
            let (&place, object_id) = queue.first_key_value()?;
            let pull = self.pulls.get(object_id)?;
            let has_turn = pull.has_room || !self.has_its_share(*node_id, pull.origin.size);
            has_turn.then_some((place, *object_id, pull.origin.size))
        });
        fronts.min().map(|(_, object_id, size)| (object_id, size))
    }

    fn has_its_share(&self, node_id: NodeId, size: u64) -> bool {
        self.shares.get(&node_id).is_some_and(|share| {
            share.pulls >= self.config.max_pulls.div_ceil(2)
                || share.bytes.saturating_add(size) > self.config.max_bytes / 2
        })
    }

    fn take_share(&mut self, Origin { node_id, size }: Origin) {
        let share = self.shares.entry(node_id).or_default();
        *share = Share { pulls: share.pulls + 1, bytes: share.bytes + size };
    }

    fn give_share_back(&mut self, Origin { node_id, size }: Origin) {
        if let Some(share) = self.shares.get_mut(&node_id) {
            *share = Share { pulls: share.pulls - 1, bytes: share.bytes - size };
            if share.pulls == 0 {
                self.shares.remove(&node_id);
            }
        }
    }

    /// It is this pull's turn.
    fn begin(&mut self, now: Instant, object_id: ObjectId, out: &mut Vec<PullEffect>) {
        let Some(pull) = self.pulls.get_mut(&object_id) else { return };
        pull.stage = Stage::Reserving;
        pull.progress_at.get_or_insert(now);
        self.busy += 1;
        self.busy_bytes += pull.origin.size;
        self.attempts += 1;
        pull.attempt = self.attempts;
        let Pull { has_room, origin, attempt, .. } = *pull;
        if !has_room {
            self.take_share(origin);
        }
        if has_room || !self.is_alive(origin.node_id) {
            self.fetch(now, object_id, out);
        } else {
            out.push(PullEffect::Reserve { object_id, origin, attempt });
        }
    }

    /// Fetches what is missing, if the node can be asked.
    fn fetch(&mut self, now: Instant, object_id: ObjectId, out: &mut Vec<PullEffect>) {
        let Some(pull) = self.pulls.get_mut(&object_id) else { return };
        let node_id = pull.origin.node_id;
        match self.nodes.get(&node_id) {
            Some(Known::Alive) => {
                pull.stage = Stage::Fetching;
                pull.is_lent = true;
                let Pull { origin, attempt, offset, .. } = *pull;
                out.push(PullEffect::Fetch { object_id, origin, attempt, offset });
            }
            Some(Known::Dead(reason)) => {
                let refusal = dead_node(node_id, reason);
                self.fail_origin(now, object_id, refusal, out);
            }
            None => {
                pull.trouble = "this node has not heard of it".to_owned();
                self.pause(now, object_id, out);
            }
        }
    }

    /// Lets a pull rest, or ends it if it was without progress for too long.
    fn pause(&mut self, now: Instant, object_id: ObjectId, out: &mut Vec<PullEffect>) {
        let Some(pull) = self.pulls.get_mut(&object_id) else { return };
        let idle = now.saturating_duration_since(pull.progress_at.unwrap_or(now));
        if idle >= self.config.patience {
            let (node_id, trouble) = (pull.origin.node_id, &pull.trouble);
            let cause = format!(
                "node {node_id}, where it is stored, could not be read from for {} s: {trouble}",
                idle.as_secs()
            );
            return self.fail_origin(now, object_id, Refusal::Lost { cause }, out);
        }
        let until = now + pull.pause;
        pull.pause = (pull.pause * 2).min(self.config.pauses.1);
        if !pull.has_room {
            let origin = pull.origin;
            self.give_share_back(origin);
        }
        self.leave_stage(object_id);
        self.paused.insert((until, object_id));
        if let Some(pull) = self.pulls.get_mut(&object_id) {
            pull.stage = Stage::Paused(until);
        }
    }

    /// An object is not to be had where it was looked for: who thought that it is there is refused; for the others
    /// it is looked for where they say.
    fn fail_origin(
        &mut self,
        now: Instant,
        object_id: ObjectId,
        refusal: Refusal,
        out: &mut Vec<PullEffect>,
    ) {
        let Some(pull) = self.pulls.get_mut(&object_id) else { return };
        let node_id = pull.origin.node_id;
        let (refused, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut pull.askers).into_iter().partition(|(_, origin)| origin.node_id == node_id);
        let next = others.values().next().copied();
        pull.askers = others;
        for &asker in refused.keys() {
            self.forget_asker(asker, object_id);
            out.push(PullEffect::Refuse { asker, object_id, refusal: refusal.clone() });
        }
        match next {
            Some(origin) => {
                self.restart(object_id, out);
                // Its place is in the queue of the other node.
                self.leave_stage(object_id);
                if let Some(pull) = self.pulls.get_mut(&object_id) {
                    pull.origin = origin;
                    pull.stage = Stage::Paused(now);
                }
                self.enqueue(object_id);
            }
            None => self.end(object_id, true, out),
        }
    }

    /// Begins a pull anew.
    fn restart(&mut self, object_id: ObjectId, out: &mut Vec<PullEffect>) {
        let Some(pull) = self.pulls.get_mut(&object_id) else { return };
        let origin = pull.origin;
        let has_share = pull.has_room || pull.stage == Stage::Reserving;
        (pull.has_room, pull.is_lent, pull.offset, pull.progress_at) = (false, false, 0, None);
        if has_share {
            self.give_share_back(origin);
            out.push(PullEffect::Drop { object_id });
        }
        self.enqueue(object_id);
    }

    /// Lets a pull wait for its turn. Those that have room go first: they have a share already, and who waits for one
    /// must not keep them waiting.
    fn enqueue(&mut self, object_id: ObjectId) {
        self.leave_stage(object_id);
        let in_front = self.pulls.get(&object_id).is_some_and(|pull| pull.has_room);
        let place = if in_front { &mut self.first } else { &mut self.last };
        *place += if in_front { -1 } else { 1 };
        let place = *place;
        if let Some(pull) = self.pulls.get_mut(&object_id) {
            pull.stage = Stage::Queued(place);
            self.queues.entry(pull.origin.node_id).or_default().insert(place, object_id);
        }
    }

    /// A pull is where it was no longer.
    fn leave_stage(&mut self, object_id: ObjectId) {
        let Some(pull) = self.pulls.get(&object_id) else { return };
        match pull.stage {
            Stage::Queued(place) => {
                if let Some(queue) = self.queues.get_mut(&pull.origin.node_id) {
                    queue.remove(&place);
                    if queue.is_empty() {
                        self.queues.remove(&pull.origin.node_id);
                    }
                }
            }
            Stage::Paused(until) => drop(self.paused.remove(&(until, object_id))),
            Stage::Reserving | Stage::Fetching => {
                self.busy -= 1;
                self.busy_bytes -= pull.origin.size;
            }
        }
    }

    fn end(&mut self, object_id: ObjectId, dropped: bool, out: &mut Vec<PullEffect>) {
        self.leave_stage(object_id);
        let Some(pull) = self.pulls.remove(&object_id) else { return };
        if pull.has_room || pull.stage == Stage::Reserving {
            self.give_share_back(pull.origin);
            if dropped {
                out.push(PullEffect::Drop { object_id });
            }
        }
        for &asker in pull.askers.keys() {
            self.forget_asker(asker, object_id);
        }
    }

    fn forget_asker(&mut self, asker: Asker, object_id: ObjectId) {
        if let Some(asked) = self.by_asker.get_mut(&asker) {
            asked.remove(&object_id);
            if asked.is_empty() {
                self.by_asker.remove(&asker);
            }
        }
    }
}

fn dead_node(node_id: NodeId, reason: &str) -> Refusal {
    Refusal::Lost { cause: format!("node {node_id}, where it was stored, is dead: {reason}") }
}

#[cfg(test)]
#[path = "pull_table_tests.rs"]
mod tests;
