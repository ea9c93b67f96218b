//! Writing and reading the fields of hot messages: little-endian numbers, ids as they are, byte
//! strings after their length.

use ray_core::error::{RayError, RayResult};
use ray_core::id::IdError;

/// Appends a number.
pub(crate) fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends a number.
pub(crate) fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends a length and that many bytes.
///
/// # Panics
/// At 4 GiB, which no frame holds.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u32(out, u32::try_from(bytes.len()).expect("a field is shorter than 4 GiB"));
    out.extend_from_slice(bytes);
}

/// Reads fields off the front of a message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) const fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    pub(crate) fn take(&mut self, count: usize) -> RayResult<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or_else(cut_off)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn u8(&mut self) -> RayResult<u8> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn u32(&mut self) -> RayResult<u32> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("4 bytes")))
    }

    pub(crate) fn u64(&mut self) -> RayResult<u64> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("8 bytes")))
    }

    pub(crate) fn id<T: TryFrom<&'a [u8], Error = IdError>>(&mut self, length: usize) -> RayResult<T> {
        T::try_from(self.take(length)?).map_err(|error| damaged(error.to_string()))
    }

    pub(crate) fn bytes(&mut self) -> RayResult<&'a [u8]> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    pub(crate) fn text(&mut self) -> RayResult<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|error| damaged(error.to_string()))
    }

    /// A count of things of at least `each` bytes, so that no message can make a reader reserve more
    /// memory than it has sent.
    pub(crate) fn count(&mut self, each: usize) -> RayResult<usize> {
        let count = self.u32()? as usize;
        if count.saturating_mul(each) > self.rest.len() {
            return Err(cut_off());
        }
        Ok(count)
    }

    pub(crate) fn end(&self) -> RayResult<()> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(damaged(format!("{} bytes too many", self.rest.len())))
        }
    }

    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

fn cut_off() -> RayError {
    damaged("it is cut off".to_owned())
}

/// A message that makes no sense.
pub(crate) fn damaged(reason: String) -> RayError {
    RayError::Protocol { peer: "a core worker".to_owned(), reason }
}
