//! Values as bytes: a compact binary codec, JSON for people and tools, and a layout that is read in
//! place.
//!
//! The binary codec is postcard: small, fast, and without any description of itself, so that both
//! sides have to have the same type. What lives longer than a process needs a version of its own.

mod copy;
mod plain;
mod value;

use std::any::type_name;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

pub use self::plain::{Container, Plain, PlainReader};
pub use self::value::{BUFFER_ALIGNMENT, ValueParts, ValueView};
use crate::error::{RayError, RayResult, Source};

/// What a codec said, and about which type.
#[derive(Debug, Error)]
#[error("{type_name}: {source}")]
struct CodecError {
    type_name: &'static str,
    source: Source,
}

fn codec_error<T: ?Sized>(action: &'static str, source: impl Into<Source>) -> RayError {
    RayError::serialization(action, CodecError { type_name: type_name::<T>(), source: source.into() })
}

/// The binary form of `value`.
///
/// # Errors
/// [`RayError::Serialization`] names the type.
pub fn to_bytes<T: Serialize + ?Sized>(value: &T) -> RayResult<Vec<u8>> {
    postcard::to_stdvec(value).map_err(|error| codec_error::<T>("encode a value", error))
}

/// The value whose binary form `bytes` is, all of them.
///
/// # Errors
/// [`RayError::Serialization`] names the type; also if bytes are left over.
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> RayResult<T> {
    let action = "decode a value";
    let (value, rest) = postcard::take_from_bytes(bytes).map_err(|error| codec_error::<T>(action, error))?;
    if !rest.is_empty() {
        return Err(codec_error::<T>(action, format!("{} bytes are left over", rest.len())));
    }
    Ok(value)
}

/// `value` as JSON in one line.
///
/// # Errors
/// [`RayError::Serialization`] names the type.
pub fn to_json<T: Serialize + ?Sized>(value: &T) -> RayResult<String> {
    serde_json::to_string(value).map_err(|error| codec_error::<T>("write a value as JSON", error))
}

/// The value that this JSON text describes.
///
/// # Errors
/// [`RayError::Serialization`] names the type.
pub fn from_json<T: DeserializeOwned>(text: &str) -> RayResult<T> {
    serde_json::from_str(text).map_err(|error| codec_error::<T>("read a value from JSON", error))
}

/// Lays itself out in memory that someone else provides, such as shared memory, so that it is
/// copied once.
pub trait ZeroCopyWrite {
    /// Bytes that [`write_into`](Self::write_into) needs.
    fn encoded_len(&self) -> usize;

    /// Writes all of `out`.
    ///
    /// # Errors
    /// [`RayError::Serialization`] if `out` is not [`encoded_len`](Self::encoded_len) bytes long, or this
    /// cannot be laid out; what `out` then holds is undefined.
    fn write_into(&self, out: &mut [u8]) -> RayResult<()>;
}

/// Borrows its parts from the bytes that it is read from.
pub trait ZeroCopyRead<'a>: Sized {
    /// Checks `bytes`, which may come from anyone, and borrows from them.
    ///
    /// # Errors
    /// [`RayError::Serialization`] if they are no such value.
    fn read_from(bytes: &'a [u8]) -> RayResult<Self>;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::id::TaskId;
    use crate::resource::Resources;

    #[test]
    fn an_error_names_the_type() {
        let error = from_bytes::<TaskId>(&[1, 2, 3]).unwrap_err();
        assert!(
            error.chain().starts_with("cannot decode a value: ray_core::id::TaskId: "),
            "{}",
            error.chain()
        );
        let error = from_json::<TaskId>("[]").unwrap_err();
        assert!(error.chain().contains("JSON: ray_core::id::TaskId: "), "{}", error.chain());
        // JSON has text keys only.
        let error = to_json(&BTreeMap::from([((1, 2), 3)])).unwrap_err();
        assert!(error.chain().contains("BTreeMap"), "{}", error.chain());
    }

    #[test]
    fn bytes_left_over_are_an_error() {
        let mut bytes = to_bytes(&7u32).unwrap();
        assert_eq!(from_bytes::<u32>(&bytes).unwrap(), 7);
        bytes.push(0);
        assert!(from_bytes::<u32>(&bytes).unwrap_err().chain().contains("1 bytes are left over"));
    }

    proptest! {
        #[test]
        fn both_codecs_read_what_they_wrote(text in ".*", numbers in prop::collection::vec(any::<i64>(), 0..20)) {
            let mut resources = Resources::new();
            resources.set("CPU", crate::resource::Amount::from_raw(numbers.len() as u64));
            let value = (text, numbers, resources);
            prop_assert_eq!(from_bytes::<(String, Vec<i64>, Resources)>(&to_bytes(&value).unwrap()).unwrap(), value.clone());
            prop_assert_eq!(from_json::<(String, Vec<i64>, Resources)>(&to_json(&value).unwrap()).unwrap(), value);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = from_bytes::<(String, Vec<i64>, Resources)>(&bytes);
        }
    }
}
