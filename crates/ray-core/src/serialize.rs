//! Values to bytes and back.

use serde::{Deserialize, Serialize};

use crate::error::{RayError, RayResult};

/// Encodes a value in the compact binary form that travels between processes.
///
/// # Errors
/// If the value refuses to be serialized.
pub fn to_bytes<T: Serialize + ?Sized>(value: &T) -> RayResult<Vec<u8>> {
    postcard::to_stdvec(value).map_err(|error| RayError::serialization("encode a value", error))
}

/// Decodes what [`to_bytes`] made.
///
/// # Errors
/// If the bytes are no such value.
pub fn from_bytes<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> RayResult<T> {
    postcard::from_bytes(bytes).map_err(|error| RayError::serialization("decode a value", error))
}
