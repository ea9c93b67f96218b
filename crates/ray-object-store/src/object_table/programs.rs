//! Random programs of many clients over a table whose memory and disk are simulated.
//!
//! The simulation writes an object's id where the object begins, moves it when the disk has done its work, and
//! checks at every step that whoever holds a pin still finds there what it was promised.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use ray_core::id::{NodeId, ObjectId, WorkerId};

use super::*;

const GRACE: Duration = Duration::from_secs(2);
const CAPACITY: u64 = 16 * 4096;
const CLIENTS: u64 = 4;
const OBJECTS: u8 = 8;
const OWNERS: u8 = 3;
const NODES: u8 = 2;

#[derive(Debug, Clone)]
enum Step {
    Create { client: u64, object: u8, size: u64, owner: u8 },
    CreateCopy { client: u64, object: u8, size: u64, from: u8 },
    Lend { client: u64, object: u8, to: u8 },
    Recall { from: u8, objects: Vec<u8> },
    LoseNode { node: u8 },
    Seal { client: u64, pick: usize },
    Abort { client: u64, pick: usize },
    Get { client: u64, objects: Vec<u8>, maps_files: bool },
    Wait { client: u64, objects: Vec<u8> },
    Cancel { client: u64 },
    Release { client: u64, pick: usize },
    Delete { object: u8 },
    Reference { object: u8, add: bool },
    Spill { client: u64, object: u8 },
    LoseClient { client: u64 },
    LoseOwner { owner: u8 },
    Disk { pick: usize, luck: u8 },
    LoseCopy { object: u8 },
    Pass { millis: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let client = 0..CLIENTS;
    let object = 0..OBJECTS;
    let objects = || prop::collection::vec(0..OBJECTS, 1..4);
    prop_oneof![
        8 => (client.clone(), object.clone(), 0..CAPACITY + 4096, 0..OWNERS)
            .prop_map(|(client, object, size, owner)| Step::Create { client, object, size, owner }),
        8 => (client.clone(), object.clone(), 1..CAPACITY / 3, 0..OWNERS)
            .prop_map(|(client, object, size, owner)| Step::Create { client, object, size, owner }),
        4 => (client.clone(), object.clone(), 1..CAPACITY / 3, 0..NODES)
            .prop_map(|(client, object, size, from)| Step::CreateCopy { client, object, size, from }),
        4 => (client.clone(), object.clone(), 0..NODES)
            .prop_map(|(client, object, to)| Step::Lend { client, object, to }),
        1 => (0..NODES, objects()).prop_map(|(from, objects)| Step::Recall { from, objects }),
        1 => (0..NODES).prop_map(|node| Step::LoseNode { node }),
        10 => (client.clone(), any::<usize>()).prop_map(|(client, pick)| Step::Seal { client, pick }),
        1 => (client.clone(), any::<usize>()).prop_map(|(client, pick)| Step::Abort { client, pick }),
        8 => (client.clone(), objects(), any::<bool>())
            .prop_map(|(client, objects, maps_files)| Step::Get { client, objects, maps_files }),
        2 => (client.clone(), objects()).prop_map(|(client, objects)| Step::Wait { client, objects }),
        1 => client.clone().prop_map(|client| Step::Cancel { client }),
        8 => (client.clone(), any::<usize>()).prop_map(|(client, pick)| Step::Release { client, pick }),
        3 => object.clone().prop_map(|object| Step::Delete { object }),
        3 => (object.clone(), any::<bool>()).prop_map(|(object, add)| Step::Reference { object, add }),
        2 => (client.clone(), object.clone()).prop_map(|(client, object)| Step::Spill { client, object }),
        1 => client.prop_map(|client| Step::LoseClient { client }),
        1 => (0..OWNERS).prop_map(|owner| Step::LoseOwner { owner }),
        12 => (any::<usize>(), any::<u8>()).prop_map(|(pick, luck)| Step::Disk { pick, luck }),
        1 => object.prop_map(|object| Step::LoseCopy { object }),
        3 => (0..1500u64).prop_map(|millis| Step::Pass { millis }),
    ]
}

fn id(object: u8) -> ObjectId {
    ObjectId::from_bytes([object; 28])
}

fn owner(owner: u8) -> WorkerId {
    if owner == 0 { WorkerId::NIL } else { WorkerId::from_bytes([owner; 16]) }
}

fn node(node: u8) -> NodeId {
    NodeId::from_bytes([node; 16])
}

/// Where a reader looks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Sight {
    Memory(u64),
    File(String),
}

/// A table, and the world that it rules.
struct World {
    table: ObjectTable,
    now: Instant,
    /// What lies at each offset.
    memory: BTreeMap<u64, ObjectId>,
    disk: BTreeMap<String, ObjectId>,
    /// Spills and restores that the disk has not finished.
    jobs: Vec<Effect>,
    next_url: u64,
    next_request: u64,
    writing: BTreeMap<u64, BTreeSet<(ObjectId, u64)>>,
    pins: BTreeMap<u64, Vec<(ObjectId, Sight)>>,
    /// Creates that are not answered.
    open_creates: BTreeSet<(u64, u64)>,
    /// Gets and waits that are not answered.
    open_gets: BTreeSet<(u64, u64, ObjectId)>,
    /// What other nodes have pulled and were not told to drop.
    lent: BTreeSet<(ObjectId, NodeId)>,
}

impl World {
    fn new(max_spill_bytes: u64) -> Self {
        let config = TableConfig {
            capacity_bytes: CAPACITY,
            spill_place: Some("/disk".to_owned()),
            max_spill_bytes,
            full_grace: GRACE,
            max_waiting: 5,
            max_waiters: 30,
        };
        Self {
            table: ObjectTable::new(config),
            now: Instant::now(),
            memory: BTreeMap::new(),
            disk: BTreeMap::new(),
            jobs: Vec::new(),
            next_url: 0,
            next_request: 0,
            writing: BTreeMap::new(),
            pins: BTreeMap::new(),
            open_creates: BTreeSet::new(),
            open_gets: BTreeSet::new(),
            lent: BTreeSet::new(),
        }
    }

    fn run(&mut self, step: Step) {
        let now = self.now;
        let mut out = Vec::new();
        self.next_request += 1;
        let request = self.next_request;
        match step {
            Step::Create { client, object, size, owner: by } => {
                self.open_creates.insert((client, request));
                self.table.on_create(now, (ClientId(client), request), id(object), size, owner(by), &mut out);
            }
            Step::CreateCopy { client, object, size, from } => {
                self.open_creates.insert((client, request));
                let (client, from) = (ClientId(client), node(from));
                self.table.on_create_copy(now, (client, request), id(object), size, from, &mut out);
            }
            Step::Lend { client, object, to } => {
                let (by, to) = ((ClientId(client), request), node(to));
                if self.table.on_lend(now, by, id(object), Reader::Arena, Some(to), &mut out) {
                    self.open_gets.insert((client, request, id(object)));
                    self.lent.insert((id(object), to));
                }
            }
            Step::Recall { from, objects } => {
                self.table.on_recall(now, node(from), objects.into_iter().map(id), &mut out);
            }
            Step::LoseNode { node: lost } => {
                self.lent.retain(|&(_, to)| to != node(lost));
                self.table.on_node_lost(now, node(lost), &mut out);
            }
            Step::Seal { client, pick } => {
                if let Some(object_id) = self.end_writing(client, pick) {
                    self.table.on_seal(now, ClientId(client), object_id, &mut out).unwrap();
                }
            }
            Step::Abort { client, pick } => {
                if let Some(object_id) = self.end_writing(client, pick) {
                    let aborted = self.table.on_abort(now, ClientId(client), object_id, &mut out);
                    aborted.unwrap();
                }
            }
            Step::Get { client, objects, maps_files } => {
                let ids: Vec<ObjectId> = objects.into_iter().map(id).collect();
                self.open_gets.extend(ids.iter().map(|id| (client, request, *id)));
                let reader = if maps_files { Reader::ArenaOrFile } else { Reader::Arena };
                self.table.on_get(now, (ClientId(client), request), &ids, reader, &mut out);
            }
            Step::Wait { client, objects } => {
                let ids: Vec<ObjectId> = objects.into_iter().map(id).collect();
                self.open_gets.extend(ids.iter().map(|id| (client, request, *id)));
                self.table.on_wait(now, (ClientId(client), request), &ids, &mut out);
            }
            Step::Cancel { client } => {
                let open = self.open_gets.iter().find(|get| get.0 == client).map(|get| get.1);
                if let Some(request) = open {
                    self.open_gets.retain(|get| (get.0, get.1) != (client, request));
                    self.table.on_cancel(now, ClientId(client), request, &mut out);
                }
            }
            Step::Release { client, pick } => {
                let pins = self.pins.entry(client).or_default();
                if !pins.is_empty() {
                    let (object_id, _) = pins.swap_remove(pick % pins.len());
                    self.table.on_release(now, ClientId(client), object_id, 1, &mut out).unwrap();
                }
            }
            Step::Delete { object } => {
                self.table.on_delete(now, &[id(object)], &mut out);
            }
            Step::Reference { object, add: true } => {
                self.table.on_add_reference(id(object));
            }
            Step::Reference { object, add: false } => {
                self.table.on_remove_reference(now, id(object), &mut out);
            }
            Step::Spill { client, object } => {
                self.open_gets.insert((client, request, id(object)));
                self.table.on_spill(now, (ClientId(client), request), &[id(object)], &mut out);
            }
            Step::LoseClient { client } => {
                self.writing.remove(&client);
                self.pins.remove(&client);
                self.open_creates.retain(|create| create.0 != client);
                self.open_gets.retain(|get| get.0 != client);
                self.table.on_client_lost(now, ClientId(client), &mut out);
            }
            Step::LoseOwner { owner: by } => self.table.on_owner_lost(now, owner(by), &mut out),
            Step::Disk { pick, luck } => {
                if !self.jobs.is_empty() {
                    let job = self.jobs.swap_remove(pick % self.jobs.len());
                    self.finish(job, luck, &mut out);
                }
            }
            Step::LoseCopy { object } => {
                let url = self.table.info(&id(object)).and_then(|info| info.spill_url);
                self.table.on_copy_lost(now, id(object), &url.unwrap_or_default(), &mut out);
            }
            Step::Pass { millis } => {
                self.now += Duration::from_millis(millis);
                self.table.on_tick(self.now, &mut out);
            }
        }
        self.apply(out);
        self.check();
    }

    fn end_writing(&mut self, client: u64, pick: usize) -> Option<ObjectId> {
        let writing = self.writing.get_mut(&client)?;
        let picked = writing.iter().nth(pick % writing.len().max(1)).copied()?;
        writing.remove(&picked);
        Some(picked.0)
    }

    /// The disk finishes a job; with bad luck it fails.
    fn finish(&mut self, job: Effect, luck: u8, out: &mut Vec<Effect>) {
        let failure = match luck % 16 {
            0 => Some(DiskFailure::OutOfDisk),
            1 => Some(DiskFailure::Failed { cause: "bad luck".to_owned() }),
            2 => Some(DiskFailure::Lost { cause: "bad luck".to_owned() }),
            _ => None,
        };
        match (job, failure) {
            (Effect::Spill { object_id, offset, .. }, None) => {
                assert_eq!(self.memory.get(&offset), Some(&object_id), "what is spilled is in place");
                let url = format!("{}", self.next_url);
                self.next_url += 1;
                self.disk.insert(url.clone(), object_id);
                self.table.on_spill_done(self.now, object_id, url, out);
            }
            (Effect::Spill { object_id, .. }, Some(failure)) => {
                self.table.on_spill_failed(self.now, object_id, failure, out);
            }
            (Effect::Restore { object_id, url, offset, .. }, None) => {
                assert_eq!(self.disk.get(&url), Some(&object_id), "what is restored is on disk");
                self.memory.insert(offset, object_id);
                self.table.on_restore_done(self.now, object_id, out);
            }
            (Effect::Restore { object_id, .. }, Some(failure)) => {
                self.table.on_restore_failed(self.now, object_id, failure, out);
            }
            (other, _) => panic!("{other:?} is no job"),
        }
    }

    fn apply(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Answer(answer) => self.hear(answer),
                Effect::Spill { .. } | Effect::Restore { .. } => self.jobs.push(effect),
                Effect::RemoveSpilled { url } => assert!(self.disk.remove(&url).is_some(), "removed once"),
                Effect::Recall { object_id, nodes } => {
                    assert!(!nodes.is_empty());
                    for node_id in nodes {
                        assert!(self.lent.remove(&(object_id, node_id)), "recalled once");
                    }
                }
            }
        }
    }

    fn hear(&mut self, Answer { client: ClientId(client), request, object_id, outcome }: Answer) {
        let was_open = self.open_creates.remove(&(client, request))
            || self.open_gets.remove(&(client, request, object_id));
        assert!(was_open, "each request is answered once");
        match outcome {
            Outcome::Created { offset } => {
                self.memory.insert(offset, object_id);
                self.writing.entry(client).or_default().insert((object_id, offset));
            }
            Outcome::Ready { offset, .. } => {
                self.pins.entry(client).or_default().push((object_id, Sight::Memory(offset)));
            }
            Outcome::OnDisk { url, .. } => {
                self.pins.entry(client).or_default().push((object_id, Sight::File(url)));
            }
            Outcome::Exists { .. } | Outcome::Arrived | Outcome::Spilled { .. } | Outcome::Refused(_) => {}
        }
    }

    fn check(&self) {
        self.table.check_invariants();
        for (object_id, sight) in self.pins.values().flatten() {
            match sight {
                Sight::Memory(offset) => assert_eq!(self.memory.get(offset), Some(object_id)),
                Sight::File(url) => assert_eq!(self.disk.get(url), Some(object_id)),
            }
        }
        for (object_id, offset) in self.writing.values().flatten() {
            assert_eq!(self.memory.get(offset), Some(object_id));
        }
        let urls: BTreeSet<&str> = self.table.spilled_urls().collect();
        assert!(urls.iter().all(|url| self.disk.contains_key(*url)));
    }

    /// No client does anything any more. Once the disk has done its work and the grace is over, whoever waited
    /// for room has an answer.
    fn wait_it_out(&mut self) {
        for _ in 0..1000 {
            while !self.jobs.is_empty() {
                self.run(Step::Disk { pick: 0, luck: 15 });
            }
            if self.table.next_deadline().is_none() {
                break;
            }
            self.run(Step::Pass { millis: 1000 });
        }
        assert!(self.open_creates.is_empty(), "every create is answered");
        for (_, _, object_id) in &self.open_gets {
            assert!(!self.table.contains(object_id), "a get waits only for what is not there");
        }
    }

    fn end(&mut self) {
        (0..CLIENTS).for_each(|client| self.run(Step::LoseClient { client }));
        (0..OBJECTS).for_each(|object| self.run(Step::Delete { object }));
        while !self.jobs.is_empty() {
            self.run(Step::Disk { pick: 0, luck: 15 });
        }
        assert!(self.table.is_pristine(), "{:?}", self.table);
        assert!(self.lent.is_empty(), "every copy is recalled");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_is_freed_early_everything_in_the_end_and_nobody_hangs(
        steps in prop::collection::vec(step(), 1..150),
        limited_disk in any::<bool>(),
    ) {
        let mut world = World::new(if limited_disk { 2 * CAPACITY } else { 0 });
        for step in steps {
            world.run(step);
        }
        world.wait_it_out();
        world.end();
    }

    /// The same without the wait: everything is freed whatever was under way.
    #[test]
    fn an_end_in_the_middle_of_everything_leaves_nothing(steps in prop::collection::vec(step(), 1..150)) {
        let mut world = World::new(0);
        for step in steps {
            world.run(step);
        }
        world.end();
    }
}
