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

#[test]
fn an_object_written_by_one_process_is_read_by_another() {
    let world = World::start(1.0);
    let (mut writer, mut reader) = (world.driver(), world.driver());
    let FromRaylet::Registered { store_capacity, .. } = writer.registered else { panic!("welcome") };
    let (written, read) = (memory(&mut writer), memory(&mut reader));
    assert_eq!(written.capacity(), store_capacity);
    reader.tell(ToRaylet::GetObjects { request: 1, object_ids: vec![object(1)], elsewhere: Vec::new() });
    let offset = create(&mut writer, 5, object(1), 5).unwrap();
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
    client.tell(ToRaylet::SealObject { object_id: object(2) });
    // Were it still there, it would be answered at once.
    client.tell(ToRaylet::GetObjects { request: 5, object_ids: vec![object(1)], elsewhere: Vec::new() });
    client.tell(ToRaylet::GetObjects { request: 6, object_ids: vec![object(2)], elsewhere: Vec::new() });
    let answered = client.wait_for("the first answer", |message| match message {
        FromRaylet::ObjectReady { request, .. } => Some(*request),
        _ => None,
    });
    assert_eq!(answered, 6);
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
