use ray_core::id::{ObjectId, TaskId};
use ray_link::message::StoreError;
use ray_link::{FromRaylet, ToRaylet};
use ray_object_store::shm::{Access, ShmRegion};

use crate::world::{Client, World};

fn object(number: u64) -> ObjectId {
    ObjectId::for_put(TaskId::from_bytes([3; 16]), number)
}

fn memory(client: &mut Client) -> ShmRegion {
    ShmRegion::from_fd(client.memory.take().expect("it came with the welcome"), Access::ReadWrite).unwrap()
}

#[track_caller]
fn create(client: &mut Client, request: u64, object_id: ObjectId, size: u64) -> Result<u64, StoreError> {
    let owner = client.worker_id;
    client.tell(ToRaylet::CreateObject { request, object_id, size, owner });
    client.wait_for("room", |message| match message {
        FromRaylet::ObjectCreated { request: other, result } if *other == request => Some(result.clone()),
        _ => None,
    })
}

#[track_caller]
fn ready(client: &mut Client, request: u64) -> (u64, u64) {
    client.wait_for("the object", |message| match message {
        FromRaylet::ObjectReady { request: other, offset, size, .. } if *other == request => {
            Some((*offset, *size))
        }
        _ => None,
    })
}

/// Asks for an object that will not come.
#[track_caller]
fn unavailable(client: &mut Client, request: u64, object_id: ObjectId) -> StoreError {
    client.tell(ToRaylet::GetObjects { request, object_ids: vec![object_id], elsewhere: Vec::new() });
    client.wait_for("the refusal", |message| match message {
        FromRaylet::ObjectUnavailable { request: other, error, .. } if *other == request => {
            Some(error.clone())
        }
        _ => None,
    })
}

#[test]
fn an_object_written_by_one_process_is_read_by_another() {
    let world = World::start(1.0);
    let (mut writer, mut reader) = (world.driver(), world.driver());
    let FromRaylet::Registered { store_capacity, .. } = writer.registered else { panic!("welcome") };
    let (written, read) = (memory(&mut writer), memory(&mut reader));
    assert_eq!(written.capacity(), store_capacity);
    let offset = create(&mut writer, 5, object(1), 5).unwrap();
    // Asked for before it is there.
    reader.tell(ToRaylet::GetObjects { request: 1, object_ids: vec![object(1)], elsewhere: Vec::new() });
    written.slice_mut(offset, 5).unwrap().copy_from_slice(b"hello");
    writer.tell(ToRaylet::SealObject { object_id: object(1) });
    let (offset, size) = ready(&mut reader, 1);
    assert_eq!(&*read.slice(offset, size).unwrap(), b"hello");
    assert_eq!(create(&mut writer, 6, object(1), 5), Err(StoreError::AlreadySealed));
}

#[test]
fn memory_is_used_again_once_nobody_reads_it() {
    let world = World::start(1.0);
    let mut client = world.driver();
    let half = 9 << 20;
    create(&mut client, 1, object(1), half).unwrap();
    client.tell(ToRaylet::SealObject { object_id: object(1) });
    client.tell(ToRaylet::GetObjects { request: 3, object_ids: vec![object(1)], elsewhere: Vec::new() });
    ready(&mut client, 3);
    client.tell(ToRaylet::DeleteObjects { object_ids: vec![object(1)] });
    let Err(StoreError::Full { requested_bytes, holders, .. }) = create(&mut client, 4, object(2), half)
    else {
        panic!("it is read still")
    };
    assert_eq!(requested_bytes, half);
    assert!(holders.contains(&format!("process {}", std::process::id())), "{holders}");
    client.tell(ToRaylet::ReleaseObject { object_id: object(1), count: 1 });
    create(&mut client, 5, object(2), half).unwrap();
    client.tell(ToRaylet::AbortObject { object_id: object(2) });
    create(&mut client, 6, object(3), half).unwrap();
}

#[test]
fn what_a_lost_process_held_is_free_and_what_it_owned_is_gone() {
    let world = World::start(1.0);
    let (mut lost, mut client) = (world.driver(), world.driver());
    let half = 9 << 20;
    create(&mut lost, 1, object(1), half).unwrap();
    lost.tell(ToRaylet::SealObject { object_id: object(1) });
    lost.tell(ToRaylet::GetObjects { request: 2, object_ids: vec![object(1)], elsewhere: Vec::new() });
    ready(&mut lost, 2);
    client.tell(ToRaylet::GetObjects { request: 3, object_ids: vec![object(1)], elsewhere: Vec::new() });
    ready(&mut client, 3);
    client.tell(ToRaylet::ReleaseObject { object_id: object(1), count: 1 });
    let worker_id = lost.worker_id;
    drop(lost);
    client.worker_died(worker_id);
    create(&mut client, 4, object(2), half).unwrap();
    let StoreError::Lost { .. } = unavailable(&mut client, 5, object(1)) else { panic!("it is gone") };
}

#[test]
fn what_the_node_has_never_heard_of_is_said_to_be_lost_at_once() {
    let world = World::start(1.0);
    let mut client = world.driver();
    let StoreError::Lost { cause } = unavailable(&mut client, 1, object(1)) else { panic!("it is nowhere") };
    assert!(cause.contains("does not have it"), "{cause}");
}

#[test]
fn who_waits_for_what_is_not_written_to_its_end_is_told() {
    let world = World::start(1.0);
    let (mut writer, mut reader) = (world.driver(), world.driver());
    create(&mut writer, 1, object(1), 5).unwrap();
    reader.tell(ToRaylet::GetObjects { request: 1, object_ids: vec![object(1)], elsewhere: Vec::new() });
    // It is known by now, and the answer comes once the writer is gone.
    reader.tell(ToRaylet::FlushLogs { request: 2 });
    reader.wait_for("an answer", |message| match message {
        FromRaylet::LogsFlushed { request: 2 } => Some(()),
        FromRaylet::ObjectUnavailable { .. } => panic!("it is being written"),
        _ => None,
    });
    drop(writer);
    let error = reader.wait_for("the end of the wait", |message| match message {
        FromRaylet::ObjectUnavailable { request: 1, error, .. } => Some(error.clone()),
        _ => None,
    });
    assert_eq!(error, StoreError::Lost { cause: "its writer died".to_owned() });
}

#[test]
fn what_does_not_fit_is_spilled_and_restored_when_it_is_read() {
    let world = World::start(1.0);
    let mut client = world.driver();
    let region = memory(&mut client);
    let half = 9 << 20;
    for number in 0..4u8 {
        let id = object(u64::from(number));
        let offset = create(&mut client, 10 + u64::from(number), id, half).unwrap();
        region.slice_mut(offset, half).unwrap().fill(number);
        client.tell(ToRaylet::SealObject { object_id: id });
    }
    for number in 0..4u8 {
        let id = object(u64::from(number));
        client.tell(ToRaylet::GetObjects {
            request: 20 + u64::from(number),
            object_ids: vec![id],
            elsewhere: Vec::new(),
        });
        let (offset, size) = ready(&mut client, 20 + u64::from(number));
        assert!(region.slice(offset, size).unwrap().iter().all(|&byte| byte == number));
        client.tell(ToRaylet::ReleaseObject { object_id: id, count: 1 });
    }
}

#[test]
fn two_writers_of_one_object_are_served_in_turn() {
    let world = World::start(1.0);
    let (mut first, mut second) = (world.driver(), world.driver());
    create(&mut first, 1, object(1), 5).unwrap();
    let owner = second.worker_id;
    second.tell(ToRaylet::CreateObject { request: 2, object_id: object(1), size: 5, owner });
    // Whatever the second hears comes after this, for it is told in order.
    create(&mut second, 3, object(2), 5).unwrap();
    drop(first);
    second.wait_for("its turn", |message| match message {
        FromRaylet::ObjectCreated { request: 2, result } => Some(result.clone().unwrap()),
        _ => None,
    });
}
