//! Plain values: what every language has, in a form of our own that needs no pickle.
//!
//! A tag of one byte, then by tag (numbers are little-endian):
//!
//! ```text
//! 0, 1, 2   none, false, true
//! 3, 4      integer, floating-point number: 8 bytes
//! 5, 6      text in UTF-8, bytes: length (4), then as many
//! 7, 8, 9   list, tuple, dictionary: length (4), then the items; of a dictionary key, value, key, value, ...
//! 10        reference: object (28), its owner's process (16) and node (16)
//! ```
//! Items are plain values too, but no containers: what is nested is not plain. So a reader needs no
//! recursion, whatever it is given.

use crate::error::{RayError, RayResult};
use crate::id::{NodeId, ObjectId, WorkerId};

const NONE: u8 = 0;
const FALSE: u8 = 1;
const TRUE: u8 = 2;
const INT: u8 = 3;
const FLOAT: u8 = 4;
const STR: u8 = 5;
const BYTES: u8 = 6;
const LIST: u8 = 7;
const TUPLE: u8 = 8;
const DICT: u8 = 9;
const REFERENCE: u8 = 10;

/// A kind of container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// Items in order, which may change.
    List,
    /// Items in order, for good.
    Tuple,
    /// Keys with values.
    Dict,
}

/// A value, or for a container its beginning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Plain<'a> {
    /// Nothing.
    None,
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// Text.
    Str(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
    /// A container; its items follow, of a dictionary twice as many.
    Container(Container, u32),
    /// A reference to an object, and who owns it.
    Reference(ObjectId, WorkerId, NodeId),
}

impl Plain<'_> {
    /// Appends it.
    ///
    /// # Panics
    /// If text or bytes are longer than a length of four bytes can say: 4 GiB.
    #[inline]
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::None => out.push(NONE),
            Self::Bool(value) => out.push(if *value { TRUE } else { FALSE }),
            Self::Int(number) => write_number(out, INT, number.to_le_bytes()),
            Self::Float(number) => write_number(out, FLOAT, number.to_le_bytes()),
            Self::Str(text) => write_long(out, STR, text.as_bytes()),
            Self::Bytes(bytes) => write_long(out, BYTES, bytes),
            Self::Container(kind, length) => {
                out.push(match kind {
                    Container::List => LIST,
                    Container::Tuple => TUPLE,
                    Container::Dict => DICT,
                });
                out.extend_from_slice(&length.to_le_bytes());
            }
            Self::Reference(object_id, worker_id, node_id) => {
                out.push(REFERENCE);
                out.extend_from_slice(object_id.as_bytes());
                out.extend_from_slice(worker_id.as_bytes());
                out.extend_from_slice(node_id.as_bytes());
            }
        }
    }
}

#[inline]
fn write_number(out: &mut Vec<u8>, tag: u8, number: [u8; 8]) {
    out.push(tag);
    out.extend_from_slice(&number);
}

#[inline]
fn write_long(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("the caller has checked the length");
    out.push(tag);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Reads a plain value: first [`PlainReader::value`], for a container then each item by
/// [`PlainReader::item`], and last [`PlainReader::finish`].
#[derive(Debug, Clone)]
pub struct PlainReader<'a> {
    rest: &'a [u8],
}

impl<'a> PlainReader<'a> {
    /// A reader of these bytes.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The value that begins here. Of a container that is read, as many items as it says may follow: no
    /// more than there are bytes, so that room can be made for them.
    ///
    /// # Errors
    /// [`RayError::Serialization`] if the bytes are no plain value.
    #[inline]
    pub fn value(&mut self) -> RayResult<Plain<'a>> {
        let tag = self.take(1)?[0];
        let kind = match tag {
            LIST => Container::List,
            TUPLE => Container::Tuple,
            DICT => Container::Dict,
            _ => return self.rest_of_item(tag),
        };
        let length = u32::from_le_bytes(self.array()?);
        let each = if kind == Container::Dict { 2 } else { 1 };
        if length as usize > self.rest.len() / each {
            return Err(damaged("it is cut off"));
        }
        Ok(Plain::Container(kind, length))
    }

    /// The next item of a container.
    ///
    /// # Errors
    /// [`RayError::Serialization`] if the bytes are none, a container among them.
    #[inline]
    pub fn item(&mut self) -> RayResult<Plain<'a>> {
        let tag = self.take(1)?[0];
        self.rest_of_item(tag)
    }

    /// All has been read.
    ///
    /// # Errors
    /// [`RayError::Serialization`] if something is left.
    #[inline]
    pub fn finish(self) -> RayResult<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(damaged("it goes on after its end")) }
    }

    #[inline]
    fn rest_of_item(&mut self, tag: u8) -> RayResult<Plain<'a>> {
        Ok(match tag {
            NONE => Plain::None,
            FALSE | TRUE => Plain::Bool(tag == TRUE),
            INT => Plain::Int(i64::from_le_bytes(self.array()?)),
            FLOAT => Plain::Float(f64::from_le_bytes(self.array()?)),
            STR => Plain::Str(std::str::from_utf8(self.long()?).map_err(|_| damaged("it is not UTF-8"))?),
            BYTES => Plain::Bytes(self.long()?),
            REFERENCE => Plain::Reference(
                ObjectId::from_bytes(self.array()?),
                WorkerId::from_bytes(self.array()?),
                NodeId::from_bytes(self.array()?),
            ),
            LIST | TUPLE | DICT => return Err(damaged("a container is in a container")),
            _ => return Err(damaged("it begins with no tag of a plain value")),
        })
    }

    #[inline]
    fn take(&mut self, count: usize) -> RayResult<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or_else(|| damaged("it is cut off"))?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> RayResult<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("as many bytes as asked for"))
    }

    #[inline]
    fn long(&mut self) -> RayResult<&'a [u8]> {
        let length = u32::from_le_bytes(self.array()?) as usize;
        self.take(length)
    }
}

#[cold]
fn damaged(reason: &'static str) -> RayError {
    RayError::serialization("read a plain value", reason)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(values: &[Plain<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        values.iter().for_each(|value| value.write(&mut out));
        out
    }

    #[test]
    fn values_read_back() {
        let reference = Plain::Reference(ObjectId::nil(), WorkerId::nil(), NodeId::nil());
        let (text, bytes) = (Plain::Str("ä"), Plain::Bytes(&[0, 255]));
        for value in
            [Plain::None, Plain::Bool(true), Plain::Int(-1), Plain::Float(0.5), text, bytes, reference]
        {
            let alone = written(&[value]);
            let mut reader = PlainReader::new(&alone);
            assert_eq!(reader.value().unwrap(), value);
            reader.finish().unwrap();
            for end in 0..alone.len() {
                assert!(PlainReader::new(&alone[..end]).value().is_err(), "cut off at {end}");
            }
            let inside = written(&[Plain::Container(Container::Dict, 1), value, value]);
            let mut reader = PlainReader::new(&inside);
            assert_eq!(reader.value().unwrap(), Plain::Container(Container::Dict, 1));
            assert_eq!((reader.item().unwrap(), reader.item().unwrap()), (value, value));
            reader.finish().unwrap();
        }
    }

    /// A reader that went down into each level ran out of stack, and its process died.
    #[test]
    fn what_is_nested_is_refused_at_the_second_level() {
        let nested = written(&[Plain::Container(Container::List, 1); 100_000]);
        let mut reader = PlainReader::new(&nested);
        assert_eq!(reader.value().unwrap(), Plain::Container(Container::List, 1));
        assert!(reader.item().is_err());
    }

    #[test]
    fn a_container_does_not_promise_more_than_there_is() {
        for kind in [Container::List, Container::Tuple, Container::Dict] {
            let empty = written(&[Plain::Container(kind, u32::MAX), Plain::None]);
            assert!(PlainReader::new(&empty).value().is_err());
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(bytes in prop::collection::vec(0u8..16, 0..200)) {
            let mut reader = PlainReader::new(&bytes);
            let mut out = Vec::new();
            let mut next = reader.value();
            while let Ok(value) = next {
                value.write(&mut out);
                next = reader.item();
            }
            prop_assert!(bytes.starts_with(&out));
        }
    }
}
