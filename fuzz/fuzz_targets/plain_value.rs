//! A plain value has one form only: what is read is written as the bytes that were read.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ray_core::serialize::{Container, Plain, PlainReader};
use ray_fuzz::read_frugally;

fuzz_target!(|bytes: &[u8]| {
    let Ok(values) = read_frugally(bytes, 64, read) else { return };
    let mut written = Vec::new();
    values.iter().for_each(|value| value.write(&mut written));
    assert!(written == bytes, "it is written as {written:?}");
});

/// The value and, of a container, its items.
fn read(bytes: &[u8]) -> ray_core::error::RayResult<Vec<Plain<'_>>> {
    let mut reader = PlainReader::new(bytes);
    let value = reader.value()?;
    let count = match value {
        Plain::Container(Container::Dict, length) => length as usize * 2,
        Plain::Container(_, length) => length as usize,
        _ => 0,
    };
    let mut values = Vec::with_capacity(count + 1);
    values.push(value);
    for _ in 0..count {
        values.push(reader.item()?);
    }
    reader.finish()?;
    Ok(values)
}
