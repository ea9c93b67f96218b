//! What core workers say to one another: what is read is written to what reads the same.
//!
//! The first byte is the kind of the frame, the rest its payload.

#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use ray_core::serialize;
use ray_fuzz::read_frugally;
use ray_worker::peer_message::{
    Arg, DefineFunction, Hello, Kind, PeerMessage, Returned, StreamItem, TaskHeader, TaskReply, read_args,
    write_arg,
};
use ray_worker::value::Value;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Small things in large structs: an empty value takes 9 bytes of a reply, and a `Returned` in memory.
const EACH: usize = 64;

fn check<M: Serialize + DeserializeOwned + PartialEq + Debug>(payload: &[u8]) {
    let Ok(message) = read_frugally(payload, EACH, serialize::from_bytes::<M>) else { return };
    let written = serialize::to_bytes(&message).expect("what was read can be written");
    let again: M = serialize::from_bytes(&written).expect("what was written can be read");
    assert_eq!(again, message);
    assert_eq!(serialize::to_bytes(&again).ok().as_ref(), Some(&written));
}

fn check_task(payload: &[u8]) {
    let Ok((header, args)) = TaskHeader::split(payload) else { return };
    let mut written = Vec::new();
    header.write(&mut written);
    assert!(payload.starts_with(&written) && payload[written.len()..] == *args, "{header:?}");
    check_args(args);
}

fn check_args(bytes: &[u8]) {
    let Ok(args) = read_frugally(bytes, EACH, read_args) else { return };
    let mut written = Vec::new();
    for Arg { keyword, value } in &args {
        write_arg(&mut written, *keyword, value);
    }
    assert!(written == bytes, "{args:?}");
}

fn check_reply(payload: &[u8]) {
    let Ok(reply) = read_frugally(payload, EACH, TaskReply::read) else { return };
    let mut written = Vec::new();
    reply.write(&mut written).expect("what was read can be written");
    assert_eq!(TaskReply::read(&written).expect("what was written can be read"), reply);
    // A failure goes through the common codec, in which numbers have more than one form.
    let failed = reply.outcome.as_ref().map_or(true, |returned| returned.iter().any(has_failed));
    assert!(failed || written == payload, "{reply:?}");
}

fn has_failed(returned: &Returned) -> bool {
    matches!(returned.value, Value::Failed(_))
}

fn check_item(payload: &[u8]) {
    let Ok(item) = read_frugally(payload, EACH, StreamItem::read) else { return };
    let mut written = Vec::new();
    item.write(&mut written).expect("what was read can be written");
    assert_eq!(StreamItem::read(&written).expect("what was written can be read"), item);
    assert!(has_failed(&item.item) || written == payload, "{item:?}");
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, payload)) = bytes.split_first() else { return };
    match Kind::try_from(kind) {
        Ok(Kind::Hello) => check::<Hello>(payload),
        Ok(Kind::DefineFunction) => check::<DefineFunction>(payload),
        Ok(Kind::PushTask) => check_task(payload),
        Ok(Kind::TaskReply) => check_reply(payload),
        Ok(Kind::StreamItem) => check_item(payload),
        Ok(Kind::Other) => check::<PeerMessage>(payload),
        Err(_) => {}
    }
});
