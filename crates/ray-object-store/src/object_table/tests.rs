//! The table's rules, one by one, under a made-up clock.

use std::time::{Duration, Instant};

use ray_core::id::{NodeId, ObjectId, WorkerId};

use super::*;

const GRACE: Duration = Duration::from_secs(2);
const ANN: ClientId = ClientId(1);
const BOB: ClientId = ClientId(2);
/// One large object fills the store of [`Bench::new`].
const FULL: u64 = 1 << 20;
const HALF: u64 = FULL / 2;

struct Bench {
    table: ObjectTable,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self::with(TableConfig { spill_place: Some("/disk".to_owned()), ..TableConfig::default() })
    }

    fn without_disk() -> Self {
        Self::with(TableConfig::default())
    }

    fn with(config: TableConfig) -> Self {
        let table = ObjectTable::new(TableConfig { capacity_bytes: FULL, full_grace: GRACE, ..config });
        Self { table, now: Instant::now() }
    }

    fn step(&mut self, event: impl FnOnce(&mut ObjectTable, Instant, &mut Vec<Effect>)) -> Vec<Effect> {
        let mut out = Vec::new();
        event(&mut self.table, self.now, &mut out);
        self.table.check_invariants();
        out
    }

    fn create(&mut self, client: ClientId, n: u8, size: u64) -> Vec<Effect> {
        self.step(|table, now, out| {
            table.on_create(now, (client, u64::from(n)), id(n), size, WorkerId::NIL, out);
        })
    }

    fn seal(&mut self, client: ClientId, n: u8) -> Vec<Effect> {
        self.step(|table, now, out| table.on_seal(now, client, id(n), out).unwrap())
    }

    /// Creates and seals; returns the offset.
    fn put(&mut self, client: ClientId, n: u8, size: u64) -> u64 {
        let effects = self.create(client, n, size);
        let [Effect::Answer(Answer { outcome: Outcome::Created { offset }, .. })] = effects[..] else {
            panic!("created, got {effects:?}");
        };
        assert_eq!(self.seal(client, n), []);
        offset
    }

    fn get(&mut self, client: ClientId, n: u8, reader: Reader) -> Vec<Effect> {
        self.step(|table, now, out| table.on_get(now, (client, 100), &[id(n)], reader, out))
    }

    fn release(&mut self, client: ClientId, n: u8) -> Vec<Effect> {
        self.step(|table, now, out| table.on_release(now, client, id(n), 1, out).unwrap())
    }

    fn delete(&mut self, n: u8) -> Vec<Effect> {
        self.step(|table, now, out| {
            table.on_delete(now, &[id(n)], out);
        })
    }

    fn spilled(&mut self, n: u8) -> Vec<Effect> {
        self.step(|table, now, out| table.on_spill_done(now, id(n), url(n), out))
    }

    fn spill_failed(&mut self, n: u8, failure: DiskFailure) -> Vec<Effect> {
        self.step(|table, now, out| table.on_spill_failed(now, id(n), failure, out))
    }

    fn restored(&mut self, n: u8) -> Vec<Effect> {
        self.step(|table, now, out| table.on_restore_done(now, id(n), out))
    }

    fn pass(&mut self, time: Duration) -> Vec<Effect> {
        self.now += time;
        self.step(|table, now, out| table.on_tick(now, out))
    }

    /// Puts the object on disk only.
    fn put_on_disk(&mut self, n: u8, size: u64) {
        self.put(ANN, n, size);
        self.step(|table, now, out| table.on_spill(now, (ANN, 7), &[id(n)], out));
        self.spilled(n);
        assert_eq!(self.table.entries[&id(n)].place, Place::Disk { url: url(n) });
    }
}

fn id(n: u8) -> ObjectId {
    ObjectId::from_bytes([n; 28])
}

fn url(n: u8) -> String {
    format!("file:///disk/{n}")
}

fn answer(client: ClientId, request: u64, n: u8, outcome: Outcome) -> Effect {
    Effect::Answer(Answer { client, request, object_id: id(n), outcome })
}

fn ready(client: ClientId, n: u8, offset: u64, size: u64) -> Effect {
    answer(client, 100, n, Outcome::Ready { offset, size })
}

fn created(client: ClientId, n: u8, offset: u64) -> Effect {
    answer(client, u64::from(n), n, Outcome::Created { offset })
}

fn refusal(effects: &[Effect]) -> &Refusal {
    match effects {
        [Effect::Answer(Answer { outcome: Outcome::Refused(refusal), .. })] => refusal,
        other => panic!("one refusal, got {other:?}"),
    }
}

#[test]
fn a_reader_that_comes_early_is_answered_at_the_seal() {
    let mut bench = Bench::new();
    assert_eq!(bench.get(BOB, 1, Reader::Arena), []);
    assert_eq!(bench.create(ANN, 1, 100), [created(ANN, 1, 0)]);
    assert_eq!(bench.seal(ANN, 1), [ready(BOB, 1, 0, 100)]);
    assert_eq!(bench.table.info(&id(1)).unwrap().pins, 1);
}

#[test]
fn creating_twice_writes_once() {
    let mut bench = Bench::new();
    bench.create(ANN, 1, 100);
    let exists = |sealed| [answer(BOB, 1, 1, Outcome::Exists { sealed, size: 100 })];
    assert_eq!(bench.create(BOB, 1, 50), exists(false));
    bench.seal(ANN, 1);
    assert_eq!(bench.create(BOB, 1, 50), exists(true));
}

#[test]
fn only_the_writer_seals_and_aborts() {
    let mut bench = Bench::new();
    bench.create(ANN, 1, 100);
    let misuse = Misuse::NotWriting { client: BOB, object_id: id(1) };
    bench.step(|table, now, out| {
        assert_eq!(table.on_seal(now, BOB, id(1), out), Err(misuse.clone()));
        assert_eq!(table.on_abort(now, BOB, id(1), out), Err(misuse));
        assert_eq!(table.on_abort(now, ANN, id(1), out), Ok(()));
    });
    assert_eq!(bench.table.usage().used_bytes, 0);
}

/// A client that created an object twice and gives up the first time is still answered the second time.
#[test]
fn an_abort_withdraws_a_waiting_create_only_if_nothing_is_being_written() {
    let mut bench = Bench::without_disk();
    bench.put(ANN, 9, FULL);
    bench.create(ANN, 1, 100);
    bench.create(BOB, 2, FULL);
    bench.create(ANN, 1, 100);
    assert_eq!(bench.delete(9), [created(ANN, 1, 0)]);
    let abort = |bench: &mut Bench, client, n| {
        bench.step(|table, now, out| table.on_abort(now, client, id(n), out).unwrap())
    };
    assert_eq!(abort(&mut bench, ANN, 1), [created(BOB, 2, 0)]);
    assert_eq!(abort(&mut bench, BOB, 2), [created(ANN, 1, 0)]);
    bench.create(BOB, 3, FULL);
    assert_eq!(abort(&mut bench, BOB, 3), []);
    assert_eq!(abort(&mut bench, ANN, 1), []);
    assert_eq!(bench.table.next_deadline(), None);
}

#[test]
fn a_deleted_object_stays_until_its_last_reader_lets_go() {
    let mut bench = Bench::new();
    let offset = bench.put(ANN, 1, FULL);
    assert_eq!(bench.get(BOB, 1, Reader::Arena), [ready(BOB, 1, offset, FULL)]);
    assert_eq!(bench.delete(1), []);
    assert!(!bench.table.contains(&id(1)));
    assert_eq!(bench.create(ANN, 2, FULL), []);
    assert_eq!(bench.release(BOB, 1), [created(ANN, 2, offset)]);
}

#[test]
fn a_deleted_object_that_is_created_again_is_taken_up() {
    let mut bench = Bench::new();
    bench.put(ANN, 1, 100);
    bench.get(BOB, 1, Reader::Arena);
    bench.delete(1);
    bench.create(ANN, 1, 100);
    bench.release(BOB, 1);
    assert!(bench.table.contains(&id(1)));
}

#[test]
fn who_waits_for_a_deleted_object_is_told() {
    let mut bench = Bench::new();
    bench.create(ANN, 1, 100);
    bench.get(BOB, 1, Reader::Arena);
    assert!(matches!(refusal(&bench.delete(1)), Refusal::Lost { .. }));
    bench.seal(ANN, 1);
    assert_eq!(bench.table.usage().objects, 0);
}

#[test]
fn releasing_more_than_is_held_is_named_and_changes_no_other_pins() {
    let mut bench = Bench::new();
    bench.put(ANN, 1, 100);
    for client in [ANN, BOB] {
        bench.get(client, 1, Reader::Arena);
    }
    bench.step(|table, now, out| {
        let misuse = Misuse::NotPinned { client: BOB, object_id: id(1), released: 2, held: 1 };
        assert_eq!(table.on_release(now, BOB, id(1), 2, out), Err(misuse));
    });
    assert_eq!(bench.table.info(&id(1)).unwrap().pins, 1);
}

#[test]
fn a_lost_client_leaves_what_it_sealed_and_nothing_else() {
    let mut bench = Bench::new();
    bench.put(ANN, 1, 100);
    bench.create(ANN, 2, 100);
    bench.get(ANN, 1, Reader::Arena);
    bench.get(ANN, 3, Reader::Arena);
    bench.get(BOB, 2, Reader::Arena);
    bench.create(BOB, 4, FULL);
    bench.create(ANN, 5, 100);
    let effects = bench.step(|table, now, out| table.on_client_lost(now, ANN, out));
    // Bob waited for what she did not finish.
    assert_eq!(*refusal(&effects[..1]), Refusal::Lost { cause: "its writer died".to_owned() });
    assert_eq!(bench.table.info(&id(1)).unwrap().pins, 0);
    assert_eq!(bench.table.info(&id(2)), None);
    // Another may write it.
    bench.delete(1);
    bench.step(|table, now, out| table.on_abort(now, BOB, id(4), out).unwrap());
    bench.create(ANN, 2, 100);
    assert_eq!(bench.seal(ANN, 2).len(), 0);
    assert_eq!(bench.get(BOB, 2, Reader::Arena).len(), 1);
}

#[test]
fn an_owner_takes_its_objects_with_it() {
    let mut bench = Bench::new();
    let owner = WorkerId::random();
    let create = |bench: &mut Bench, n: u8, size| {
        bench.step(|table, now, out| table.on_create(now, (ANN, 1), id(n), size, owner, out))
    };
    create(&mut bench, 1, HALF);
    bench.seal(ANN, 1);
    bench.put(ANN, 2, HALF);
    bench.get(BOB, 1, Reader::Arena);
    bench.get(BOB, 2, Reader::Arena);
    create(&mut bench, 3, HALF);
    let effects = bench.step(|table, now, out| table.on_owner_lost(now, owner, out));
    assert!(matches!(refusal(&effects), Refusal::Lost { .. }));
    bench.release(BOB, 1);
    assert_eq!(bench.table.usage().objects, 1);
}

#[test]
fn a_waiting_get_can_be_taken_back() {
    let mut bench = Bench::new();
    bench.step(|table, now, out| table.on_get(now, (ANN, 1), &[id(1), id(2), id(1)], Reader::Arena, out));
    bench.get(ANN, 1, Reader::Arena);
    bench.step(|table, now, out| table.on_cancel(now, ANN, 1, out));
    assert_eq!(bench.create(BOB, 2, 1).len(), 1);
    assert_eq!(bench.seal(BOB, 2), []);
    let offset = bench.table.arena().used();
    bench.create(BOB, 1, 1);
    assert_eq!(bench.seal(BOB, 1), [ready(ANN, 1, offset, 1)]);
}

#[test]
fn garbage_goes_before_anything_is_spilled() {
    let mut bench = Bench::new();
    bench.put(ANN, 1, HALF);
    bench.put(ANN, 2, HALF);
    bench.step(|table, now, out| {
        assert_eq!(table.on_remove_reference(now, id(2), out), Some(0));
    });
    assert!(bench.table.contains(&id(2)));
    assert_eq!(bench.create(ANN, 3, HALF), [created(ANN, 3, HALF)]);
    assert!(!bench.table.contains(&id(2)));
}

#[test]
fn the_least_recently_used_object_is_spilled() {
    let mut bench = Bench::new();
    for n in 1..=2 {
        bench.put(ANN, n, HALF);
    }
    bench.get(BOB, 1, Reader::Arena);
    bench.release(BOB, 1);
    let spill = Effect::Spill { object_id: id(2), offset: HALF, size: HALF };
    assert_eq!(bench.create(ANN, 3, HALF), [spill]);
    assert_eq!(bench.table.next_deadline(), None);
    assert_eq!(bench.spilled(2), [created(ANN, 3, HALF)]);
    assert_eq!(bench.table.info(&id(2)).unwrap().spill_url, Some(url(2)));
    assert_eq!(bench.table.usage().spilled_bytes, HALF);
}

#[test]
fn what_is_read_while_it_is_spilled_keeps_its_memory() {
    let mut bench = Bench::new();
    let offset = bench.put(ANN, 1, FULL);
    bench.create(ANN, 2, FULL);
    assert_eq!(bench.get(BOB, 1, Reader::Arena), [ready(BOB, 1, offset, FULL)]);
    assert_eq!(bench.spilled(1), []);
    assert_eq!(bench.release(BOB, 1), [created(ANN, 2, offset)]);
}

#[test]
fn what_nobody_refers_to_is_not_there_any_more_for_who_wants_it_on_disk() {
    let mut bench = Bench::new();
    bench.put(ANN, 1, 100);
    bench.get(BOB, 1, Reader::Arena);
    let spill =
        |bench: &mut Bench| bench.step(|table, now, out| table.on_spill(now, (ANN, 7), &[id(1)], out));
    spill(&mut bench);
    bench.spilled(1);
    bench.release(BOB, 1);
    bench.step(|table, now, out| assert_eq!(table.on_remove_reference(now, id(1), out), Some(0)));
    // Its memory goes, and with that the object.
    let effects = spill(&mut bench);
    assert_eq!(
        effects,
        [Effect::RemoveSpilled { url: url(1) }, answer(ANN, 7, 1, Outcome::Refused(Refusal::NotFound))]
    );
}

#[test]
fn what_is_deleted_while_it_is_spilled_leaves_no_copy() {
    let mut bench = Bench::new();
    bench.put(ANN, 1, FULL);
    bench.create(ANN, 2, FULL);
    assert_eq!(bench.delete(1), []);
    assert_eq!(bench.spilled(1), [Effect::RemoveSpilled { url: url(1) }, created(ANN, 2, 0)]);
}

#[test]
fn a_spilled_object_comes_back_and_then_makes_way_without_being_written_again() {
    let mut bench = Bench::new();
    bench.put_on_disk(1, FULL);
    let restore = Effect::Restore { object_id: id(1), url: url(1), offset: 0, size: FULL };
    assert_eq!(bench.get(BOB, 1, Reader::Arena), [restore]);
    assert_eq!(bench.restored(1), [ready(BOB, 1, 0, FULL)]);
    bench.release(BOB, 1);
    assert_eq!(bench.create(ANN, 2, FULL), [created(ANN, 2, 0)]);
    assert!(bench.table.contains(&id(1)));
}

/// Memory is full of what only a spill could move, but a reader that can map files waits for none.
#[test]
fn a_restore_needs_no_spill() {
    let mut bench = Bench::new();
    bench.put_on_disk(1, FULL);
    bench.put(ANN, 2, FULL);
    let on_disk = Outcome::OnDisk { url: url(1), size: FULL };
    assert_eq!(bench.get(BOB, 1, Reader::ArenaOrFile), [answer(BOB, 100, 1, on_disk)]);
    // The file stays until it is released.
    assert_eq!(bench.delete(1), []);
    assert_eq!(bench.release(BOB, 1), [Effect::RemoveSpilled { url: url(1) }]);
}

#[test]
fn a_reader_of_the_arena_waits_for_a_spill_and_goes_before_creates() {
    let mut bench = Bench::new();
    bench.put_on_disk(1, FULL);
    let offset = bench.put(ANN, 2, FULL);
    bench.get(ANN, 2, Reader::Arena);
    assert_eq!(bench.create(ANN, 3, FULL), []);
    assert_eq!(bench.get(BOB, 1, Reader::Arena), []);
    let spill = Effect::Spill { object_id: id(2), offset, size: FULL };
    assert_eq!(bench.release(ANN, 2), [spill]);
    let restore = Effect::Restore { object_id: id(1), url: url(1), offset, size: FULL };
    assert_eq!(bench.spilled(2), [restore]);
    assert_eq!(bench.restored(1), [ready(BOB, 1, offset, FULL)]);
    assert_eq!(bench.release(BOB, 1), [created(ANN, 3, offset)]);
}

#[test]
fn when_only_clients_can_help_they_have_a_moment_and_then_the_holders_are_named() {
    let mut bench = Bench::new();
    bench.table.on_client_named(BOB, "worker 4711");
    bench.put(ANN, 1, FULL);
    bench.get(BOB, 1, Reader::Arena);
    assert_eq!(bench.create(ANN, 2, HALF), []);
    assert_eq!(bench.table.next_deadline(), Some(bench.now + GRACE));
    assert_eq!(bench.pass(GRACE - Duration::from_nanos(1)), []);
    let effects = bench.pass(Duration::from_nanos(1));
    let Refusal::Full { requested_bytes: HALF, used_bytes: FULL, capacity_bytes: FULL, holders } =
        refusal(&effects)
    else {
        panic!("{effects:?}");
    };
    assert_eq!(holders, "; worker 4711 uses 1048576 bytes, the node owns 1048576 bytes");
    // It was told once.
    assert_eq!(bench.release(BOB, 1), []);
    assert_eq!(bench.table.next_deadline(), None);
}

#[test]
fn what_can_never_fit_is_refused_at_once() {
    let mut bench = Bench::new();
    assert!(matches!(refusal(&bench.create(ANN, 1, FULL + 1)), Refusal::Full { .. }));
    assert!(matches!(refusal(&bench.create(ANN, 1, u64::MAX)), Refusal::Full { .. }));
}

#[test]
fn without_a_disk_a_full_store_refuses_after_the_grace() {
    let mut bench = Bench::without_disk();
    bench.put(ANN, 1, FULL);
    assert_eq!(bench.create(ANN, 2, 1), []);
    assert!(matches!(refusal(&bench.pass(GRACE)), Refusal::Full { .. }));
    let effects = bench.step(|table, now, out| table.on_spill(now, (ANN, 1), &[id(1)], out));
    assert_eq!(refusal(&effects), &Refusal::CannotSpill);
}

/// A slow disk costs time, not an error.
#[test]
fn patience_does_not_end_while_the_disk_works() {
    let mut bench = Bench::new();
    bench.put(ANN, 1, FULL);
    bench.create(ANN, 2, HALF);
    assert_eq!(bench.pass(10 * GRACE), []);
    assert_eq!(bench.spilled(1), [created(ANN, 2, 0)]);
}

#[test]
fn a_full_disk_is_told_once_to_each_who_needed_it() {
    let mut bench = Bench::new();
    bench.put(ANN, 1, FULL);
    bench.create(ANN, 2, HALF);
    assert_eq!(bench.create(BOB, 3, HALF), []);
    // The next in the queue tries again, for the disk may have room by now.
    let effects = bench.spill_failed(1, DiskFailure::OutOfDisk);
    assert!(matches!(refusal(&effects[..1]), Refusal::OutOfDisk { requested_bytes: HALF, .. }));
    assert_eq!(effects[1..], [Effect::Spill { object_id: id(1), offset: 0, size: FULL }]);
    let effects = bench.spill_failed(1, DiskFailure::Failed { cause: "no".to_owned() });
    assert_eq!(refusal(&effects), &Refusal::DiskFailed { cause: "no".to_owned() });
    assert_eq!(bench.table.next_deadline(), None);
    assert!(bench.table.contains(&id(1)));
}

#[test]
fn the_limit_on_spilled_bytes_is_a_full_disk() {
    let spill_place = Some("/disk".to_owned());
    let mut bench = Bench::with(TableConfig { spill_place, max_spill_bytes: HALF, ..TableConfig::default() });
    bench.put(ANN, 1, HALF);
    bench.put(ANN, 2, HALF);
    assert_eq!(bench.create(ANN, 3, HALF).len(), 1);
    assert_eq!(bench.spilled(1), [created(ANN, 3, 0)]);
    assert!(matches!(refusal(&bench.create(ANN, 4, HALF)), Refusal::OutOfDisk { .. }));
}

#[test]
fn a_lost_copy_is_a_lost_object_that_can_be_made_again() {
    let mut bench = Bench::new();
    bench.put_on_disk(1, HALF);
    bench.get(BOB, 1, Reader::Arena);
    let lost = DiskFailure::Lost { cause: "gone".to_owned() };
    let effects = bench.step(|table, now, out| table.on_restore_failed(now, id(1), lost, out));
    assert!(matches!(refusal(&effects[..1]), Refusal::Lost { cause } if cause == "gone"));
    assert_eq!(bench.create(ANN, 1, HALF), [created(ANN, 1, 0)]);
}

#[test]
fn a_disk_that_refuses_to_read_loses_nothing() {
    let mut bench = Bench::new();
    bench.put_on_disk(1, HALF);
    bench.get(BOB, 1, Reader::Arena);
    let failed = DiskFailure::Failed { cause: "tired".to_owned() };
    let effects = bench.step(|table, now, out| table.on_restore_failed(now, id(1), failed, out));
    assert!(matches!(refusal(&effects), Refusal::DiskFailed { .. }));
    assert_eq!(bench.get(BOB, 1, Reader::Arena).len(), 1);
    assert_eq!(bench.restored(1), [ready(BOB, 1, 0, HALF)]);
    // A copy that is reported lost later does not matter while the object is in memory.
    bench.step(|table, now, out| table.on_copy_lost(now, id(1), &url(1), out));
    assert_eq!(bench.table.usage().spilled_bytes, 0);
    assert!(bench.table.contains(&id(1)));
}

#[test]
fn a_reader_of_a_file_that_is_gone_reports_it() {
    let mut bench = Bench::new();
    bench.put_on_disk(1, FULL);
    bench.put(ANN, 2, FULL);
    bench.get(BOB, 1, Reader::ArenaOrFile);
    bench.step(|table, now, out| table.on_copy_lost(now, id(1), &url(1), out));
    assert!(!bench.table.contains(&id(1)));
    bench.release(BOB, 1);
    assert_eq!(bench.table.usage().objects, 1);
}

#[test]
fn the_queues_are_bounded() {
    let mut bench = Bench::with(TableConfig { max_waiting: 1, max_waiters: 1, ..TableConfig::default() });
    bench.create(ANN, 1, FULL);
    assert_eq!(bench.create(ANN, 2, FULL), []);
    assert!(matches!(refusal(&bench.create(ANN, 3, FULL)), Refusal::Overloaded { capacity: 1, .. }));
    assert_eq!(bench.get(BOB, 8, Reader::Arena), []);
    assert!(matches!(refusal(&bench.get(BOB, 9, Reader::Arena)), Refusal::Overloaded { capacity: 1, .. }));
}

#[test]
fn a_wait_pins_nothing() {
    let mut bench = Bench::new();
    bench.put_on_disk(1, HALF);
    let effects = bench.step(|table, now, out| table.on_wait(now, (BOB, 5), &[id(1), id(2)], out));
    assert_eq!(effects, [answer(BOB, 5, 1, Outcome::Arrived)]);
    bench.create(ANN, 2, 1);
    assert_eq!(bench.seal(ANN, 2), [answer(BOB, 5, 2, Outcome::Arrived)]);
    assert!([1, 2].iter().all(|n| bench.table.info(&id(*n)).unwrap().pins == 0));
}

#[test]
fn references_to_an_object_on_disk_that_run_out_remove_it() {
    let mut bench = Bench::new();
    bench.put_on_disk(1, HALF);
    assert_eq!(bench.table.on_add_reference(id(1)), Some(2));
    bench.step(|table, now, out| {
        table.on_remove_reference(now, id(1), out);
    });
    let effects = bench.step(|table, now, out| {
        table.on_remove_reference(now, id(1), out);
    });
    assert_eq!(effects, [Effect::RemoveSpilled { url: url(1) }]);
    assert_eq!(bench.table.usage().objects, 0);
    assert_eq!(bench.table.on_add_reference(id(1)), None);
}

const NORTH: NodeId = NodeId::from_bytes([1; 16]);
const SOUTH: NodeId = NodeId::from_bytes([2; 16]);

impl Bench {
    /// Writes a copy of an object of that node.
    fn put_copy(&mut self, n: u8, size: u64, from: NodeId) {
        let effects = self.step(|table, now, out| {
            table.on_create_copy(now, (ANN, u64::from(n)), id(n), size, from, out);
        });
        assert!(matches!(&effects[..], [Effect::Answer(Answer { outcome: Outcome::Created { .. }, .. })]));
        self.seal(ANN, n);
    }

    fn lend(&mut self, n: u8, to: NodeId) -> Vec<Effect> {
        self.step(|table, now, out| {
            assert!(table.on_lend(now, (BOB, 100), id(n), Reader::Arena, Some(to), out));
        })
    }

    fn recall(&mut self, n: u8, from: NodeId) -> Vec<Effect> {
        self.step(|table, now, out| table.on_recall(now, from, [id(n)], out))
    }
}

#[test]
fn a_copy_makes_way_before_anything_is_spilled_unless_it_is_read() {
    let mut bench = Bench::new();
    bench.put(ANN, 1, HALF / 2);
    bench.put_copy(2, HALF, NORTH);
    assert_eq!(bench.create(ANN, 3, HALF), [created(ANN, 3, HALF / 2)]);
    assert!(!bench.table.contains(&id(2)), "it is dropped, not spilled");
    bench.seal(ANN, 3);
    bench.delete(3);
    bench.put_copy(2, HALF, NORTH);
    bench.get(BOB, 2, Reader::Arena);
    let effects = bench.create(ANN, 3, HALF);
    assert!(matches!(&effects[..], [Effect::Spill { .. }]), "the original goes to disk: {effects:?}");
}

#[test]
fn a_copy_goes_when_its_original_does_and_its_readers_finish() {
    let mut bench = Bench::new();
    bench.put_copy(1, HALF, NORTH);
    bench.get(BOB, 1, Reader::Arena);
    assert_eq!(bench.recall(1, SOUTH), [], "it is no copy of an object of that node");
    assert!(bench.table.contains(&id(1)));
    assert_eq!(bench.recall(1, NORTH), []);
    assert_eq!(bench.recall(1, NORTH), [], "it may be told twice");
    assert!(!bench.table.contains(&id(1)));
    assert!(bench.table.usage().used_bytes >= HALF, "someone reads it");
    bench.release(BOB, 1);
    assert_eq!(bench.table.usage().used_bytes, 0);
}

#[test]
fn nodes_that_have_pulled_an_object_are_told_when_it_goes() {
    let mut bench = Bench::new();
    bench.put(ANN, 1, HALF);
    bench.lend(1, NORTH);
    bench.lend(1, SOUTH);
    bench.lend(1, SOUTH);
    let effects = bench.delete(1);
    assert_eq!(effects, [Effect::Recall { object_id: id(1), nodes: vec![NORTH, SOUTH] }]);
    assert_eq!(bench.delete(1), []);
    let mut out = Vec::new();
    let lent = bench.table.on_lend(bench.now, (BOB, 101), id(1), Reader::Arena, Some(NORTH), &mut out);
    assert!(!lent, "it is only kept for those who read it");
}

#[test]
fn a_dead_node_is_told_nothing_and_its_objects_are_gone() {
    let mut bench = Bench::new();
    bench.put(ANN, 1, HALF / 2);
    bench.lend(1, NORTH);
    bench.put_copy(2, HALF / 2, NORTH);
    bench.put_copy(3, HALF / 2, SOUTH);
    assert_eq!(bench.step(|table, now, out| table.on_node_lost(now, NORTH, out)), []);
    assert!(!bench.table.contains(&id(2)) && bench.table.contains(&id(3)));
    assert_eq!(bench.delete(1), []);
}

/// A task that runs again on another node makes its results there, where a copy may lie.
#[test]
fn a_copy_of_what_is_made_here_is_a_copy_no_longer() {
    let mut bench = Bench::new();
    bench.put_copy(1, HALF, NORTH);
    assert_eq!(bench.table.owned_objects(), 0);
    let owner = WorkerId::from_bytes([9; 16]);
    let effects = bench.step(|table, now, out| table.on_create(now, (ANN, 1), id(1), HALF, owner, out));
    assert_eq!(effects, [answer(ANN, 1, 1, Outcome::Exists { sealed: true, size: HALF })]);
    assert_eq!(bench.table.owned_objects(), 1);
    assert_eq!(bench.recall(1, NORTH), []);
    assert!(bench.table.contains(&id(1)));
    assert_eq!(bench.table.owner_of(&id(1)), Some(owner));
    bench.step(|table, now, out| table.on_owner_lost(now, owner, out));
    assert!(!bench.table.contains(&id(1)));
    assert_eq!(bench.table.owned_objects(), 0);
}

#[test]
fn one_request_is_refused_when_what_it_waits_for_will_not_come() {
    let mut bench = Bench::new();
    bench.get(ANN, 1, Reader::Arena);
    bench.get(BOB, 1, Reader::Arena);
    assert!(bench.table.is_awaited_by(ANN, 100, id(1)));
    let refusal = Refusal::Lost { cause: "its node is dead".to_owned() };
    let refuse = |table: &mut ObjectTable, _, out: &mut _| {
        table.on_unavailable((ANN, 100), id(1), &refusal, out);
        table.on_unavailable((ANN, 100), id(1), &refusal, out);
    };
    let effects = bench.step(refuse);
    assert_eq!(effects, [answer(ANN, 100, 1, Outcome::Refused(refusal))]);
    assert!(!bench.table.is_awaited_by(ANN, 100, id(1)) && bench.table.is_awaited_by(BOB, 100, id(1)));
}
