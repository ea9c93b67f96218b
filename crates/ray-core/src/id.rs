//! Identifiers of everything that the system names.
//!
//! All are fixed-size byte arrays, written as lower-case hex. One macro, [`define_id!`], makes them.
//! Task and object ids are derived, not drawn: the same program gives the same ids when a task is
//! retried or an object is rebuilt, so that a reference handed out before a failure stays valid.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why bytes or text are not an id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdError {
    /// The input has another length than the id.
    #[error("a {kind} has {expected} bytes, got {actual}")]
    Length {
        /// Name of the id type.
        kind: &'static str,
        /// Length of the id in bytes.
        expected: usize,
        /// Length of the input in bytes.
        actual: usize,
    },
    /// The text holds something else than hex digits.
    #[error("a {kind} is written in hexadecimal digits, got {text:?}")]
    NotHex {
        /// Name of the id type.
        kind: &'static str,
        /// The refused text.
        text: String,
    },
    /// The byte that tells the kind of an object holds an unknown value.
    #[error("{0} is no kind of object")]
    UnknownObjectKind(u8),
}

/// Makes a `Copy` newtype over a byte array that prints, parses, orders, hashes and serializes.
#[macro_export]
macro_rules! define_id {
    ($(#[$meta:meta])* $name:ident, $len:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;
            /// The id of nothing: all ones, as in Ray.
            pub const NIL: Self = Self([0xff; $len]);

            /// The id of nothing: all ones, as in Ray.
            pub const fn nil() -> Self {
                Self::NIL
            }

            /// Whether this is the id of nothing.
            pub fn is_nil(&self) -> bool {
                *self == Self::NIL
            }

            /// A new id from the operating system's random numbers.
            ///
            /// # Panics
            /// If the operating system refuses random numbers, without which no id is safe.
            pub fn random() -> Self {
                let mut bytes = [0; $len];
                getrandom::fill(&mut bytes).expect("the operating system gives random numbers");
                Self(bytes)
            }

            /// The id made of these bytes.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The id made of these bytes.
            ///
            /// # Errors
            /// [`IdError::Length`](crate::id::IdError::Length) if the length differs.
            pub fn from_binary(bytes: &[u8]) -> Result<Self, $crate::id::IdError> {
                <[u8; $len]>::try_from(bytes).map(Self).map_err(|_| $crate::id::IdError::Length {
                    kind: stringify!($name),
                    expected: $len,
                    actual: bytes.len(),
                })
            }

            /// The id written in this text: hex digits, twice as many as the id has bytes.
            ///
            /// # Errors
            /// If the text has another length or other characters.
            pub fn from_hex(text: &str) -> Result<Self, $crate::id::IdError> {
                let mut bytes = [0; $len];
                $crate::id::decode_hex(stringify!($name), text, &mut bytes)?;
                Ok(Self(bytes))
            }

            /// The bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// The bytes, as a vector.
            pub fn to_binary(&self) -> Vec<u8> {
                self.0.to_vec()
            }

            /// Lower-case hex digits.
            pub fn hex(&self) -> String {
                self.to_string()
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::id::IdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::from_hex(text)
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = $crate::id::IdError;

            fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
                Self::from_binary(bytes)
            }
        }

        impl From<$name> for Vec<u8> {
            fn from(id: $name) -> Self {
                id.to_binary()
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                use serde::de::Error as _;
                if deserializer.is_human_readable() {
                    let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                    Self::from_hex(&text).map_err(D::Error::custom)
                } else {
                    let bytes = <&[u8]>::deserialize(deserializer)?;
                    Self::from_binary(bytes).map_err(D::Error::custom)
                }
            }
        }
    };
}

define_id!(
    /// One task: a call of a remote function or of an actor's method.
    TaskId, 16
);
define_id!(
    /// One actor, across its restarts.
    ActorId, 16
);
define_id!(
    /// One node: the daemon of one machine, from its start to its end.
    NodeId, 16
);
define_id!(
    /// One job: what one driver started.
    JobId, 16
);
define_id!(
    /// One worker or driver process.
    WorkerId, 16
);
define_id!(
    /// One placement group.
    PlacementGroupId, 16
);
define_id!(
    /// One lease: the right to run tasks of one scheduling class on one worker.
    LeaseId, 16
);
define_id!(
    /// One exported function or actor class, named by a hash of its pickled form.
    FunctionId, 16
);
define_id!(
    /// One runtime environment, named by a hash of its description; nil: none.
    RuntimeEnvId, 16
);
define_id!(
    /// One object: the id of the task that made it (16 bytes), its [`ObjectKind`] (1), three zero
    /// bytes, and its index among that task's objects (8, little-endian).
    ObjectId, 28
);

define_id!(
    /// Whatever has no kind of its own.
    UniqueId,
    16
);
define_id!(
    /// A class of actors.
    ActorClassId,
    16
);
define_id!(
    /// A cluster.
    ClusterId,
    16
);

/// How an object came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum ObjectKind {
    /// Returned by its task.
    Return = 0,
    /// Put by its task with `put`.
    Put = 1,
    /// Yielded by its task, a streaming generator.
    Stream = 2,
}

impl TryFrom<u8> for ObjectKind {
    type Error = IdError;

    fn try_from(byte: u8) -> Result<Self, IdError> {
        match byte {
            0 => Ok(Self::Return),
            1 => Ok(Self::Put),
            2 => Ok(Self::Stream),
            other => Err(IdError::UnknownObjectKind(other)),
        }
    }
}

impl ObjectId {
    /// The object of this task with this kind and index.
    pub fn new(task_id: TaskId, kind: ObjectKind, index: u64) -> Self {
        let mut bytes = [0; Self::LEN];
        bytes[..16].copy_from_slice(&task_id.0);
        bytes[16] = kind as u8;
        bytes[20..].copy_from_slice(&index.to_le_bytes());
        Self(bytes)
    }

    /// The `index`-th return value of this task, counted from 0.
    pub fn for_return(task_id: TaskId, index: u64) -> Self {
        Self::new(task_id, ObjectKind::Return, index)
    }

    /// The `index`-th object that this task put, counted from 0.
    pub fn for_put(task_id: TaskId, index: u64) -> Self {
        Self::new(task_id, ObjectKind::Put, index)
    }

    /// The task that made this object.
    pub fn task_id(&self) -> TaskId {
        let mut bytes = [0; TaskId::LEN];
        bytes.copy_from_slice(&self.0[..16]);
        TaskId(bytes)
    }

    /// How this object came to be; `None` in an id that [`ObjectId::new`] did not make.
    pub fn kind(&self) -> Option<ObjectKind> {
        ObjectKind::try_from(self.0[16]).ok()
    }

    /// Index among the objects of the same task and kind.
    pub fn index(&self) -> u64 {
        u64::from_le_bytes(self.0[20..].try_into().expect("8 bytes remain after byte 20"))
    }
}

impl ActorId {
    /// The task that creates this actor; its calls are children of other tasks.
    pub fn creation_task_id(&self) -> TaskId {
        TaskId(mix(self.0, 0x6163_746f_725f_6e65))
    }
}

/// Hands out the ids of one task's children, in order.
///
/// A child's id is 11 bytes mixed from its parent's id and a 5-byte counter, so that a parent that
/// runs again names its children as before, and so that 2^40 children fit.
#[derive(Debug, Clone)]
pub struct ChildTaskIds {
    prefix: [u8; 11],
    next: u64,
}

impl ChildTaskIds {
    /// The ids of the children of `parent`, from the first on.
    pub fn new(parent: TaskId) -> Self {
        let mixed = mix(parent.0, 0x6368_696c_6472_656e);
        Self { prefix: mixed[..11].try_into().expect("16 bytes hold 11"), next: 0 }
    }

    /// What the ids of all children begin with, and of no other parent's.
    pub const fn prefix(&self) -> &[u8; 11] {
        &self.prefix
    }

    /// The id of the next child.
    pub fn next_id(&mut self) -> TaskId {
        let mut bytes = [0; TaskId::LEN];
        bytes[..11].copy_from_slice(&self.prefix);
        bytes[11..].copy_from_slice(&self.next.to_le_bytes()[..5]);
        self.next += 1;
        TaskId(bytes)
    }
}

impl FunctionId {
    /// The id of the function whose pickled form this is: 128 bits of a keyed sponge over the
    /// 64-bit finalizer of [`mix`]. It tells apart what one cluster's users export; it is no
    /// protection against someone who constructs collisions on purpose, who could as well send
    /// the code that they want to run.
    pub fn of(pickled: &[u8]) -> Self {
        let mut state = mix((pickled.len() as u128).to_le_bytes(), 0x6675_6e63_7469_6f6e);
        for chunk in pickled.chunks(16) {
            let mut block = [0; 16];
            block[..chunk.len()].copy_from_slice(chunk);
            for (byte, own) in block.iter_mut().zip(state) {
                *byte ^= own;
            }
            state = mix(block, 0x626c_6f63_6b00_0000);
        }
        Self(state)
    }
}

/// A bijection on 128 bits in which each output bit depends on every input bit: four Feistel rounds
/// over the 64-bit finalizer of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom
/// Number Generators, 2014). `tag` separates the uses from one another.
fn mix(bytes: [u8; 16], tag: u64) -> [u8; 16] {
    let word = u128::from_le_bytes(bytes);
    let (mut left, mut right) = (word as u64, (word >> 64) as u64);
    for round in 0..4u64 {
        let mut z = right ^ tag.wrapping_add(round.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (left, right) = (right, left ^ z);
    }
    (u128::from(left) | (u128::from(right) << 64)).to_le_bytes()
}

/// Writes the bytes that `text` spells into `out`; the macro's parser.
#[doc(hidden)]
pub fn decode_hex(kind: &'static str, text: &str, out: &mut [u8]) -> Result<(), IdError> {
    let digits = text.as_bytes();
    if digits.len() != 2 * out.len() {
        return Err(IdError::Length { kind, expected: out.len(), actual: digits.len() / 2 });
    }
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let nibble = |digit: u8| (digit as char).to_digit(16);
        let (Some(high), Some(low)) = (nibble(pair[0]), nibble(pair[1])) else {
            return Err(IdError::NotHex { kind, text: text.to_owned() });
        };
        *byte = (high * 16 + low) as u8;
    }
    Ok(())
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Return => "return",
            Self::Put => "put",
            Self::Stream => "stream",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nil_is_all_ones_and_says_so() {
        assert!(TaskId::nil().is_nil());
        assert_eq!(TaskId::nil().hex(), "f".repeat(32));
        assert!(!TaskId::random().is_nil());
    }

    #[test]
    fn wrong_input_names_the_type() {
        assert_eq!(NodeId::from_binary(&[1, 2]).unwrap_err().to_string(), "a NodeId has 16 bytes, got 2");
        assert!(NodeId::from_hex(&"zz".repeat(16)).unwrap_err().to_string().contains("hexadecimal"));
        // A sign is no digit, though the standard library's parser takes it for one.
        assert!(NodeId::from_hex(&"+1".repeat(16)).is_err());
    }

    #[test]
    fn an_object_id_tells_its_parts() {
        let task_id = TaskId::random();
        let id = ObjectId::for_put(task_id, 7);
        assert_eq!((id.task_id(), id.kind(), id.index()), (task_id, Some(ObjectKind::Put), 7));
        assert_eq!(id, ObjectId::for_put(task_id, 7));
        assert_ne!(id, ObjectId::for_return(task_id, 7));
        assert_eq!(ObjectId::nil().kind(), None);
    }

    #[test]
    fn children_are_the_same_at_every_run_and_never_meet() {
        let mut seen = HashSet::new();
        for parent in 0..64u8 {
            let parent = TaskId::from_bytes([parent; 16]);
            let (mut first, mut again) = (ChildTaskIds::new(parent), ChildTaskIds::new(parent));
            for _ in 0..256 {
                let id = first.next_id();
                assert_eq!(id, again.next_id());
                assert!(seen.insert(id));
            }
        }
    }

    #[test]
    fn function_ids_depend_on_every_byte_and_the_length() {
        let mut seen = HashSet::new();
        let mut blob = vec![0u8; 100];
        assert!(seen.insert(FunctionId::of(&blob)));
        for at in 0..blob.len() {
            blob[at] = 1;
            assert!(seen.insert(FunctionId::of(&blob)));
            blob[at] = 0;
        }
        for length in 0..100 {
            assert!(seen.insert(FunctionId::of(&blob[..length])));
        }
    }

    proptest! {
        #[test]
        fn every_form_reads_back(bytes in any::<[u8; 28]>()) {
            let id = ObjectId::from_bytes(bytes);
            prop_assert_eq!(id.hex().parse::<ObjectId>().unwrap(), id);
            prop_assert_eq!(ObjectId::from_binary(&id.to_binary()).unwrap(), id);
            let json = serde_json::to_string(&id).unwrap();
            prop_assert_eq!(serde_json::from_str::<ObjectId>(&json).unwrap(), id);
            let binary = postcard::to_stdvec(&id).unwrap();
            prop_assert_eq!(postcard::from_bytes::<ObjectId>(&binary).unwrap(), id);
        }

        #[test]
        fn mixing_loses_nothing(a in any::<[u8; 16]>(), b in any::<[u8; 16]>()) {
            prop_assert_eq!(a == b, mix(a, 1) == mix(b, 1));
        }
    }
}
