//! The rules of pulls, one by one under a made-up clock, and random programs.

use proptest::prelude::*;

use super::*;

const NORTH: NodeId = NodeId::from_bytes([1; 16]);
const SOUTH: NodeId = NodeId::from_bytes([2; 16]);
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);
const SIZE: u64 = 10;
const ANN: Asker = Asker { client: ClientId(16), request: 1 };
const BOB: Asker = Asker { client: ClientId(17), request: 1 };

fn id(n: u8) -> ObjectId {
    ObjectId::from_bytes([n; 28])
}

fn at(node_id: NodeId) -> Origin {
    Origin { node_id, size: SIZE }
}

fn reserve(n: u8, node_id: NodeId, attempt: u64) -> PullEffect {
    PullEffect::Reserve { object_id: id(n), origin: at(node_id), attempt }
}

fn fetch(n: u8, node_id: NodeId, attempt: u64, offset: u64) -> PullEffect {
    PullEffect::Fetch { object_id: id(n), origin: at(node_id), attempt, offset }
}

fn drop_of(n: u8) -> PullEffect {
    PullEffect::Drop { object_id: id(n) }
}

fn broken() -> FetchEnd {
    FetchEnd::Broken("the line is cut".to_owned())
}

/// Whom these effects refuse, and why.
fn refused(effects: &[PullEffect]) -> Vec<(Asker, String)> {
    let refusal = |effect: &PullEffect| match effect {
        PullEffect::Refuse { asker, refusal, .. } => Some((*asker, refusal.to_string())),
        _ => None,
    };
    effects.iter().filter_map(refusal).collect()
}

struct Bench {
    table: PullTable,
    now: Instant,
}

impl Bench {
    /// Two living nodes; four pulls and 50 bytes at once, and half of that from one node.
    fn new() -> Self {
        let config =
            PullConfig { max_pulls: 4, max_bytes: 50, patience: PATIENCE, pauses: (PAUSE, 4 * PAUSE) };
        let mut bench = Self { table: PullTable::new(config), now: Instant::now() };
        bench.step(|table, now, out| table.on_node_alive(now, NORTH, out));
        bench.step(|table, now, out| table.on_node_alive(now, SOUTH, out));
        bench
    }

    fn step(&mut self, event: impl FnOnce(&mut PullTable, Instant, &mut Vec<PullEffect>)) -> Vec<PullEffect> {
        let mut out = Vec::new();
        event(&mut self.table, self.now, &mut out);
        self.table.check_invariants();
        out
    }

    fn want(&mut self, asker: Asker, n: u8, origin: Origin) -> Vec<PullEffect> {
        self.step(|table, now, out| table.on_wanted(now, asker, id(n), origin, out))
    }

    fn room(&mut self, n: u8) -> Vec<PullEffect> {
        let attempt = self.table.pulls[&id(n)].attempt;
        self.step(|table, now, out| assert!(table.on_room(now, id(n), attempt, Ok(()), out)))
    }

    fn fetched(&mut self, n: u8, attempt: u64, offset: u64, end: FetchEnd) -> Vec<PullEffect> {
        self.step(|table, now, out| assert!(table.on_fetched(now, id(n), attempt, offset, end, out)))
    }

    fn lose(&mut self, node_id: NodeId) -> Vec<PullEffect> {
        self.step(|table, now, out| table.on_node_lost(now, node_id, "it burnt", out))
    }

    fn pass(&mut self, time: Duration) -> Vec<PullEffect> {
        self.now += time;
        self.step(|table, now, out| table.on_tick(now, out))
    }
}

impl PullTable {
    fn check_invariants(&self) {
        let (mut busy, mut busy_bytes) = (0, 0);
        let mut by_asker: BTreeMap<Asker, BTreeSet<ObjectId>> = BTreeMap::new();
        for (&object_id, pull) in &self.pulls {
            assert!(!pull.askers.is_empty(), "somebody asks for it");
            for &asker in pull.askers.keys() {
                by_asker.entry(asker).or_default().insert(object_id);
            }
            match pull.stage {
                Stage::Queued(place) => {
                    assert_eq!(self.queues[&pull.origin.node_id].get(&place), Some(&object_id));
                }
                Stage::Paused(until) => assert!(self.paused.contains(&(until, object_id))),
                Stage::Reserving => assert!(!pull.has_room),
                Stage::Fetching => assert!(pull.has_room),
            }
            if matches!(pull.stage, Stage::Reserving | Stage::Fetching) {
                (busy, busy_bytes) = (busy + 1, busy_bytes + pull.origin.size);
            }
        }
        let queued: usize = self.queues.values().map(BTreeMap::len).sum();
        assert_eq!(queued + self.paused.len() + busy, self.pulls.len());
        let mut shares: BTreeMap<NodeId, Share> = BTreeMap::new();
        for pull in self.pulls.values().filter(|pull| pull.has_room || pull.stage == Stage::Reserving) {
            let share = shares.entry(pull.origin.node_id).or_default();
            *share = Share { pulls: share.pulls + 1, bytes: share.bytes + pull.origin.size };
        }
        assert_eq!(self.shares, shares);
        let most = self.config.max_pulls.div_ceil(2);
        assert!(shares.values().all(|share| share.pulls <= most));
        assert!(shares.values().all(|share| share.pulls <= 1 || share.bytes <= self.config.max_bytes / 2));
        assert_eq!((self.busy, self.busy_bytes, &self.by_asker), (busy, busy_bytes, &by_asker));
        assert!(busy <= self.config.max_pulls);
        assert!(busy <= 1 || busy_bytes <= self.config.max_bytes);
        let waits_for_room = |pull: &&Pull| matches!(pull.stage, Stage::Paused(_)) && pull.has_room;
        let rests = self.pulls.values().filter(waits_for_room).count();
        assert!(queued == 0 || busy + rests > 0, "whoever waits, waits for one that has its turn");
    }
}

#[test]
fn an_object_is_pulled_once_whoever_asks() {
    let mut bench = Bench::new();
    assert_eq!(bench.want(ANN, 1, at(NORTH)), [reserve(1, NORTH, 1)]);
    assert_eq!(bench.want(BOB, 1, at(NORTH)), []);
    assert_eq!(bench.want(BOB, 1, at(NORTH)), []);
    assert_eq!(bench.room(1), [fetch(1, NORTH, 1, 0)]);
    assert_eq!(bench.fetched(1, 1, SIZE, FetchEnd::Complete), [PullEffect::Seal { object_id: id(1) }]);
    assert!(bench.table.pulls.is_empty() && bench.table.by_asker.is_empty());
}

#[test]
fn the_rest_waits_for_its_turn_in_the_order_in_which_it_came() {
    let mut bench = Bench::new();
    bench.want(ANN, 1, at(NORTH));
    assert_eq!(bench.want(ANN, 2, at(NORTH)), [reserve(2, NORTH, 2)]);
    assert_eq!(bench.want(ANN, 3, at(NORTH)), []);
    assert_eq!(bench.want(ANN, 4, at(NORTH)), []);
    bench.room(1);
    let effects = bench.fetched(1, 1, SIZE, FetchEnd::Complete);
    assert_eq!(effects, [PullEffect::Seal { object_id: id(1) }, reserve(3, NORTH, 3)]);
}

#[test]
fn a_node_that_hangs_leaves_turns_for_the_others() {
    let mut bench = Bench::new();
    for n in 1..=4 {
        bench.want(ANN, n, at(NORTH));
    }
    bench.room(1);
    bench.room(2);
    assert_eq!(bench.want(ANN, 5, at(SOUTH)), [reserve(5, SOUTH, 3)]);
    assert_eq!(bench.fetched(1, 1, 0, broken()), [], "what rests keeps its room");
    assert_eq!(bench.want(ANN, 6, at(SOUTH)), [reserve(6, SOUTH, 4)]);
    assert_eq!(bench.pass(PAUSE), [fetch(1, NORTH, 5, 0)]);
}

#[test]
fn large_objects_wait_for_bytes_but_the_largest_is_pulled_alone() {
    let mut bench = Bench::new();
    let large = Origin { node_id: NORTH, size: 20 };
    let huge = Origin { node_id: NORTH, size: 1000 };
    assert_eq!(bench.want(ANN, 1, large).len(), 1);
    assert_eq!(bench.want(ANN, 2, at(NORTH)), [], "30 bytes are too many from one node");
    assert_eq!(bench.want(ANN, 3, huge), []);
    assert_eq!(bench.want(ANN, 4, at(SOUTH)), [reserve(4, SOUTH, 2)]);
    bench.room(1);
    let effects = bench.fetched(1, 1, 20, FetchEnd::Complete);
    assert_eq!(effects, [PullEffect::Seal { object_id: id(1) }, reserve(2, NORTH, 3)]);
    bench.room(2);
    bench.room(4);
    assert_eq!(bench.fetched(2, 3, SIZE, FetchEnd::Complete), [PullEffect::Seal { object_id: id(2) }]);
    let effects = bench.fetched(4, 2, SIZE, FetchEnd::Complete);
    assert_eq!(effects.last(), Some(&PullEffect::Reserve { object_id: id(3), origin: huge, attempt: 4 }));
}

#[test]
fn what_is_cut_off_goes_on_where_it_stopped_after_longer_and_longer_pauses() {
    let mut bench = Bench::new();
    bench.want(ANN, 1, at(NORTH));
    bench.room(1);
    assert_eq!(bench.fetched(1, 1, 4, broken()), []);
    assert_eq!(bench.pass(PAUSE / 2), []);
    assert_eq!(bench.pass(PAUSE / 2), [fetch(1, NORTH, 2, 4)]);
    assert_eq!(bench.fetched(1, 2, 4, broken()), []);
    assert_eq!(bench.pass(PAUSE), []);
    assert_eq!(bench.pass(PAUSE), [fetch(1, NORTH, 3, 4)]);
    assert_eq!(bench.fetched(1, 3, 7, broken()), [], "it came further: the pauses begin anew");
    assert_eq!(bench.pass(PAUSE), [fetch(1, NORTH, 4, 7)]);
    let late = bench.step(|table, now, out| {
        assert!(!table.on_fetched(now, id(1), 3, SIZE, FetchEnd::Complete, out), "it was given up");
    });
    assert_eq!(late, []);
}

#[test]
fn without_progress_for_too_long_it_is_given_up() {
    let mut bench = Bench::new();
    bench.want(ANN, 1, at(NORTH));
    bench.room(1);
    bench.now += PATIENCE;
    let effects = bench.fetched(1, 1, 3, broken());
    assert_eq!(refused(&effects), [], "there was progress just now");
    bench.pass(PAUSE);
    bench.now += PATIENCE;
    let effects = bench.fetched(1, 2, 3, broken());
    let [(asker, cause)] = &refused(&effects)[..] else { panic!("one is refused, got {effects:?}") };
    assert_eq!(*asker, ANN);
    assert!(cause.contains(&NORTH.hex()) && cause.contains("the line is cut"), "{cause}");
    assert_eq!(effects.last(), Some(&drop_of(1)));
}

#[test]
fn an_object_that_is_not_there_or_whose_node_dies_is_told_so() {
    let mut bench = Bench::new();
    bench.want(ANN, 1, at(NORTH));
    bench.room(1);
    let effects = bench.fetched(1, 1, 0, FetchEnd::Missing);
    assert!(refused(&effects)[0].1.contains("does not have it"), "{effects:?}");
    bench.want(ANN, 2, at(NORTH));
    bench.want(BOB, 3, at(NORTH));
    bench.room(3);
    let effects = bench.lose(NORTH);
    let told = refused(&effects);
    assert_eq!(told.iter().map(|(asker, _)| *asker).collect::<Vec<_>>(), [ANN, BOB]);
    assert!(told[0].1.contains("it burnt"), "{told:?}");
    assert!(effects.contains(&drop_of(2)) && effects.contains(&drop_of(3)));
    let effects = bench.want(ANN, 4, at(NORTH));
    assert!(refused(&effects)[0].1.contains("it burnt"), "at once: {effects:?}");
    assert!(bench.table.pulls.is_empty());
}

#[test]
fn who_knows_another_node_that_has_it_is_served_from_there() {
    let mut bench = Bench::new();
    bench.want(ANN, 1, at(NORTH));
    bench.want(BOB, 1, at(SOUTH));
    bench.room(1);
    let effects = bench.lose(NORTH);
    assert_eq!(refused(&effects).len(), 1);
    assert_eq!(effects[1..], [drop_of(1), reserve(1, SOUTH, 2)]);
    assert_eq!(bench.room(1), [fetch(1, SOUTH, 2, 0)]);
}

#[test]
fn a_node_that_is_not_known_is_waited_for() {
    let mut bench = Bench::new();
    let west = NodeId::from_bytes([3; 16]);
    assert_eq!(bench.want(ANN, 1, at(west)), [], "and nothing is reserved");
    assert_eq!(bench.step(|table, now, out| table.on_node_alive(now, west, out)), [reserve(1, west, 2)]);
    let east = NodeId::from_bytes([4; 16]);
    bench.want(ANN, 2, at(east));
    let mut effects = Vec::new();
    while effects.is_empty() {
        effects = bench.pass(4 * PAUSE);
    }
    assert!(refused(&effects)[0].1.contains("has not heard of it"), "{effects:?}");
}

#[test]
fn what_nobody_asks_for_any_more_is_stopped() {
    let mut bench = Bench::new();
    bench.want(ANN, 1, at(NORTH));
    bench.want(BOB, 1, at(NORTH));
    bench.want(BOB, 2, at(NORTH));
    bench.want(BOB, 3, at(NORTH));
    bench.room(1);
    assert_eq!(bench.step(|table, now, out| table.on_cancelled(now, ANN, out)), []);
    let effects = bench.step(|table, now, out| table.on_client_lost(now, BOB.client, out));
    assert_eq!(effects, [drop_of(1), drop_of(2)]);
    assert!(bench.table.pulls.is_empty() && bench.table.by_asker.is_empty());
}

#[test]
fn a_full_store_is_told_to_all_who_ask() {
    let mut bench = Bench::new();
    bench.want(ANN, 1, at(NORTH));
    bench.want(BOB, 1, at(SOUTH));
    let refusal = Refusal::Lost { cause: "full".to_owned() };
    let effects = bench.step(|table, now, out| {
        assert!(table.on_room(now, id(1), 1, Err(refusal), out));
    });
    assert_eq!(refused(&effects).len(), 2);
    assert!(bench.table.pulls.is_empty());
}

#[test]
fn what_was_made_here_meanwhile_need_not_be_pulled() {
    let mut bench = Bench::new();
    bench.want(ANN, 1, at(NORTH));
    assert_eq!(bench.step(|table, now, out| table.on_present(now, id(1), 1, out)), []);
    assert!(bench.table.pulls.is_empty());
}

/// The word may be older than what is being pulled; only the node itself knows.
#[test]
fn what_is_recalled_while_it_is_pulled_is_asked_for_again() {
    let mut bench = Bench::new();
    bench.want(ANN, 1, at(NORTH));
    let recall = |table: &mut PullTable, now, out: &mut _| table.on_recalled(now, NORTH, Some(&[id(1)]), out);
    assert_eq!(bench.step(recall), [], "nothing was fetched yet");
    bench.room(1);
    assert_eq!(bench.step(recall), [drop_of(1), reserve(1, NORTH, 2)]);
    let late = |table: &mut PullTable, now, out: &mut _| {
        assert!(!table.on_room(now, id(1), 1, Ok(()), out), "it was for what was given up");
    };
    assert_eq!(bench.step(late), []);
    assert_eq!(bench.room(1), [fetch(1, NORTH, 2, 0)]);
    let from_elsewhere = |table: &mut PullTable, now, out: &mut _| table.on_recalled(now, SOUTH, None, out);
    assert_eq!(bench.step(from_elsewhere), []);
    let all = |table: &mut PullTable, now, out: &mut _| table.on_recalled(now, NORTH, None, out);
    assert_eq!(bench.step(all), [drop_of(1), reserve(1, NORTH, 3)]);
}

#[derive(Debug, Clone)]
enum Step {
    Want { client: u64, request: u64, object: u8, node: u8 },
    Cancel { client: u64, request: u64 },
    LoseClient { client: u64 },
    Room { pick: usize, luck: u8 },
    Fetched { pick: usize, luck: u8 },
    Recall { node: u8, object: Option<u8> },
    NodeAlive { node: u8 },
    NodeLost { node: u8 },
    Pass { millis: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0..3u64, 0..4u64, 0..6u8, 0..3u8)
            .prop_map(|(client, request, object, node)| Step::Want { client, request, object, node }),
        2 => (0..3u64, 0..4u64).prop_map(|(client, request)| Step::Cancel { client, request }),
        1 => (0..3u64).prop_map(|client| Step::LoseClient { client }),
        10 => (any::<usize>(), any::<u8>()).prop_map(|(pick, luck)| Step::Room { pick, luck }),
        10 => (any::<usize>(), any::<u8>()).prop_map(|(pick, luck)| Step::Fetched { pick, luck }),
        2 => (0..3u8, prop::option::of(0..6u8)).prop_map(|(node, object)| Step::Recall { node, object }),
        4 => (0..3u8).prop_map(|node| Step::NodeAlive { node }),
        1 => (0..3u8).prop_map(|node| Step::NodeLost { node }),
        4 => (0..20_000u64).prop_map(|millis| Step::Pass { millis }),
    ]
}

/// What surrounds a table: who waits for what, and what is under way.
struct World {
    bench: Bench,
    asked: BTreeSet<(Asker, ObjectId)>,
    reserving: BTreeMap<ObjectId, u64>,
    /// Rooms, and how far they are filled.
    rooms: BTreeMap<ObjectId, u64>,
    fetching: BTreeMap<ObjectId, u64>,
}

impl World {
    fn new() -> Self {
        let (asked, reserving) = (BTreeSet::new(), BTreeMap::new());
        Self { bench: Bench::new(), asked, reserving, rooms: BTreeMap::new(), fetching: BTreeMap::new() }
    }

    fn apply(&mut self, effects: Vec<PullEffect>) {
        for effect in effects {
            match effect {
                PullEffect::Reserve { object_id, attempt, .. } => {
                    assert!(!self.rooms.contains_key(&object_id));
                    assert!(self.reserving.insert(object_id, attempt).is_none());
                }
                PullEffect::Fetch { object_id, attempt, offset, origin } => {
                    assert_eq!(self.rooms.get(&object_id), Some(&offset), "it goes on where it stopped");
                    assert!(self.fetching.insert(object_id, attempt).is_none(), "one at a time");
                    assert!(self.bench.table.is_alive(origin.node_id));
                }
                PullEffect::Seal { object_id } => {
                    assert_eq!(self.rooms.remove(&object_id), Some(SIZE));
                    self.asked.retain(|(_, asked)| *asked != object_id);
                }
                PullEffect::Drop { object_id } => {
                    self.reserving.remove(&object_id);
                    self.rooms.remove(&object_id);
                    self.fetching.remove(&object_id);
                }
                PullEffect::Refuse { asker, object_id, .. } => {
                    assert!(self.asked.remove(&(asker, object_id)), "who asks is refused once");
                }
            }
        }
        let asked: BTreeSet<_> = self.bench.table.by_asker.iter().flat_map(pairs).collect();
        assert_eq!(asked, self.asked, "who is not answered is not forgotten");
        assert!(
            self.rooms.keys().chain(self.reserving.keys()).all(|id| self.bench.table.pulls.contains_key(id))
        );
    }

    fn run(&mut self, step: Step) {
        let node = |node: u8| NodeId::from_bytes([node + 1; 16]);
        let client = |client: u64| ClientId(client + 16);
        let effects = match step {
            Step::Want { client: by, request, object, node: from } => {
                let asker = Asker { client: client(by), request };
                self.asked.insert((asker, id(object)));
                self.bench.want(asker, object, at(node(from)))
            }
            Step::Cancel { client: by, request } => {
                let asker = Asker { client: client(by), request };
                self.asked.retain(|(other, _)| *other != asker);
                self.bench.step(|table, now, out| table.on_cancelled(now, asker, out))
            }
            Step::LoseClient { client: lost } => {
                self.asked.retain(|(asker, _)| asker.client != client(lost));
                self.bench.step(|table, now, out| table.on_client_lost(now, client(lost), out))
            }
            Step::Room { pick, luck } => {
                let picked = self.reserving.iter().nth(pick % self.reserving.len().max(1));
                let Some((object_id, attempt)) = picked.map(|(&id, &attempt)| (id, attempt)) else { return };
                self.reserving.remove(&object_id);
                match luck % 8 {
                    0 => {
                        let refusal = Refusal::Lost { cause: "full".to_owned() };
                        self.bench.step(|table, now, out| {
                            assert!(table.on_room(now, object_id, attempt, Err(refusal), out));
                        })
                    }
                    1 => {
                        self.asked.retain(|(_, asked)| *asked != object_id);
                        self.bench.step(|table, now, out| table.on_present(now, object_id, attempt, out))
                    }
                    _ => {
                        self.rooms.insert(object_id, 0);
                        self.bench.step(|table, now, out| {
                            assert!(table.on_room(now, object_id, attempt, Ok(()), out));
                        })
                    }
                }
            }
            Step::Fetched { pick, luck } => {
                let picked = self.fetching.iter().nth(pick % self.fetching.len().max(1));
                let Some((object_id, attempt)) = picked.map(|(&id, &attempt)| (id, attempt)) else { return };
                self.fetching.remove(&object_id);
                let room = self.rooms.get_mut(&object_id).expect("what is fetched has room");
                let end = match luck % 8 {
                    0 => FetchEnd::Missing,
                    1..4 => {
                        *room += u64::from(luck / 64).min(SIZE - 1 - *room);
                        broken()
                    }
                    _ => {
                        *room = SIZE;
                        FetchEnd::Complete
                    }
                };
                let offset = *room;
                self.bench.step(|table, now, out| {
                    assert!(table.on_fetched(now, object_id, attempt, offset, end, out));
                })
            }
            Step::Recall { node: from, object } => {
                let objects = object.map(|object| [id(object)]);
                self.bench.step(|table, now, out| {
                    table.on_recalled(now, node(from), objects.as_ref().map(|ids| &ids[..]), out);
                })
            }
            Step::NodeAlive { node: alive } => {
                self.bench.step(|table, now, out| table.on_node_alive(now, node(alive), out))
            }
            Step::NodeLost { node: lost } => self.bench.lose(node(lost)),
            Step::Pass { millis } => self.bench.pass(Duration::from_millis(millis)),
        };
        self.apply(effects);
    }
}

fn pairs((asker, objects): (&Asker, &BTreeSet<ObjectId>)) -> Vec<(Asker, ObjectId)> {
    objects.iter().map(|&object_id| (*asker, object_id)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whoever_asks_is_answered_once_and_in_the_end_nothing_is_left(
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let mut world = World::new();
        for step in steps {
            world.run(step);
        }
        // From here on all goes well: what is alive gives, what is unknown is given up.
        for _ in 0..1_000 {
            if world.asked.is_empty() {
                break;
            }
            while !world.reserving.is_empty() {
                world.run(Step::Room { pick: 0, luck: 7 });
            }
            while !world.fetching.is_empty() {
                world.run(Step::Fetched { pick: 0, luck: 7 });
            }
            world.run(Step::Pass { millis: 1_000 });
        }
        prop_assert!(world.asked.is_empty(), "everybody is answered");
        prop_assert!(world.bench.table.pulls.is_empty() && world.rooms.is_empty());
        prop_assert_eq!(world.bench.table.next_deadline(), None);
    }
}
