//! From messages to checked types and back.
//!
//! Receivers check here, once: a missing field, an id of the wrong length or an unknown enum value
//! is a [`WireError`] that names the field. Inside, required data is never an `Option`.

use thiserror::Error;

use crate::error::RayError;
use crate::id::IdError;
use crate::pb;
use crate::resource::{Amount, Resources};

/// Why a message is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// A field that has to be there is not.
    #[error("field {0:?} is missing")]
    Missing(&'static str),
    /// A field's value makes no sense.
    #[error("field {field:?} is wrong: {reason}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl From<WireError> for RayError {
    fn from(error: WireError) -> Self {
        Self::InvalidArgument(error.to_string())
    }
}

impl From<WireError> for tonic::Status {
    fn from(error: WireError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

/// The id in this field.
///
/// # Errors
/// If the bytes are no such id.
pub fn id<'a, T: TryFrom<&'a [u8], Error = IdError>>(
    field: &'static str,
    bytes: &'a [u8],
) -> Result<T, WireError> {
    if bytes.is_empty() {
        return Err(WireError::Missing(field));
    }
    T::try_from(bytes).map_err(|error| WireError::Invalid { field, reason: error.to_string() })
}

/// The ids in this field.
///
/// # Errors
/// If one of them is none.
pub fn ids<'a, T: TryFrom<&'a [u8], Error = IdError>>(
    field: &'static str,
    all: &'a [Vec<u8>],
) -> Result<Vec<T>, WireError> {
    all.iter().map(|bytes| id(field, bytes)).collect()
}

/// What this field holds.
///
/// # Errors
/// If it holds nothing.
pub fn required<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or(WireError::Missing(field))
}

impl From<&Resources> for pb::common::Resources {
    fn from(resources: &Resources) -> Self {
        let amounts = resources.iter().map(|(name, amount)| (name.to_owned(), amount.to_raw()));
        Self { amounts: amounts.collect() }
    }
}

impl TryFrom<pb::common::Resources> for Resources {
    type Error = WireError;

    fn try_from(message: pb::common::Resources) -> Result<Self, WireError> {
        let mut resources = Self::new();
        for (name, raw) in message.amounts {
            if name.is_empty() || raw > Amount::MAX.to_raw() {
                let reason = format!("{raw} ten-thousandths of {name:?}");
                return Err(WireError::Invalid { field: "amounts", reason });
            }
            resources.set(&name, Amount::from_raw(raw));
        }
        Ok(resources)
    }
}

/// How an error travels by gRPC: the code says whether to try again, the text says what happened.
impl From<RayError> for tonic::Status {
    fn from(error: RayError) -> Self {
        let text = error.chain();
        match error {
            RayError::NotFound { .. } | RayError::ObjectLost { .. } | RayError::OwnerDied { .. } => {
                Self::not_found(text)
            }
            RayError::AlreadyExists { .. } => Self::already_exists(text),
            RayError::InvalidArgument(_) | RayError::Config { .. } | RayError::Serialization { .. } => {
                Self::invalid_argument(text)
            }
            RayError::GetTimeout { .. } => Self::deadline_exceeded(text),
            RayError::ObjectStoreFull { .. } | RayError::OutOfDisk { .. } | RayError::Overloaded { .. } => {
                Self::resource_exhausted(text)
            }
            RayError::Unavailable { .. } | RayError::ActorUnavailable { .. } | RayError::ShutDown => {
                Self::unavailable(text)
            }
            RayError::TaskCancelled { .. } => Self::cancelled(text),
            RayError::Infeasible { .. } | RayError::ActorDied { .. } | RayError::NodeDied { .. } => {
                Self::failed_precondition(text)
            }
            RayError::TaskFailed { .. } | RayError::WorkerCrashed { .. } => Self::aborted(text),
            RayError::Protocol { .. } | RayError::Io { .. } => Self::internal(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;

    #[test]
    fn a_refusal_names_the_field() {
        assert_eq!(id::<NodeId>("node_id", &[]), Err(WireError::Missing("node_id")));
        let error = id::<NodeId>("node_id", &[1]).unwrap_err();
        assert_eq!(error.to_string(), "field \"node_id\" is wrong: a NodeId has 16 bytes, got 1");
    }

    #[test]
    fn resources_travel_unchanged_and_too_much_is_refused() {
        let resources = Resources::from_units([("CPU", 0.1), ("gizmo", 3.0)]).unwrap();
        let message = pb::common::Resources::from(&resources);
        assert_eq!(Resources::try_from(message), Ok(resources));
        let bad = pb::common::Resources { amounts: [("CPU".to_owned(), u64::MAX)].into() };
        assert!(Resources::try_from(bad).is_err());
    }
}
