//! From messages to checked types and back.
//!
//! Receivers check here, once: a missing field, an id of the wrong length or an unknown enum value
//! is a [`WireError`] that names the field. Inside, required data is never an `Option`.

use thiserror::Error;

use crate::constraint::{Constraint, LabelMatch, LabelSelector, Strategy, WhenBusy};
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

impl From<&LabelSelector> for pb::common::LabelSelector {
    fn from(selector: &LabelSelector) -> Self {
        use pb::common::label_expression::Operator;
        let expressions = selector.0.iter().map(|(key, wanted)| {
            let (operator, values) = match wanted {
                LabelMatch::In(values) => (Operator::In, values.clone()),
                LabelMatch::NotIn(values) => (Operator::NotIn, values.clone()),
                LabelMatch::Exists => (Operator::Exists, Vec::new()),
                LabelMatch::DoesNotExist => (Operator::DoesNotExist, Vec::new()),
            };
            pb::common::LabelExpression { key: key.clone(), operator: operator.into(), values }
        });
        Self { expressions: expressions.collect() }
    }
}

impl TryFrom<pb::common::LabelSelector> for LabelSelector {
    type Error = WireError;

    fn try_from(message: pb::common::LabelSelector) -> Result<Self, WireError> {
        use pb::common::label_expression::Operator;
        let expressions = message.expressions.into_iter().map(|expression| {
            let operator = expression.operator();
            let wanted = match operator {
                Operator::In => LabelMatch::In(expression.values),
                Operator::NotIn => LabelMatch::NotIn(expression.values),
                Operator::Exists => LabelMatch::Exists,
                Operator::DoesNotExist => LabelMatch::DoesNotExist,
                Operator::Unspecified => {
                    let reason = format!("{} is no known operator", expression.operator);
                    return Err(WireError::Invalid { field: "selector.operator", reason });
                }
            };
            Ok((expression.key, wanted))
        });
        expressions.collect::<Result<_, _>>().map(Self)
    }
}

impl From<&Constraint> for pb::common::SchedulingStrategy {
    fn from(constraint: &Constraint) -> Self {
        use pb::common::scheduling_strategy::{Kind, WhenBusy as PbWhenBusy};
        let selectors = constraint.selectors.iter().map(Into::into).collect();
        let message = Self { selectors, ..Self::default() };
        match constraint.strategy {
            Strategy::Default => Self { kind: Kind::Default.into(), ..message },
            Strategy::Spread => Self { kind: Kind::Spread.into(), ..message },
            Strategy::NodeAffinity { node_id, soft, when_busy } => {
                let when_busy = match when_busy {
                    WhenBusy::Wait => PbWhenBusy::Wait,
                    WhenBusy::Spill => PbWhenBusy::Spill,
                    WhenBusy::Fail => PbWhenBusy::Fail,
                };
                let (kind, when_busy) = (Kind::NodeAffinity.into(), when_busy.into());
                Self { kind, node_id: node_id.to_binary(), soft, when_busy, ..message }
            }
            Strategy::Bundle { group_id, index, capture } => Self {
                kind: Kind::Bundle.into(),
                placement_group_id: group_id.to_binary(),
                bundle_index: index.map_or(-1, i64::from),
                capture_child_tasks: capture,
                ..message
            },
        }
    }
}

impl TryFrom<pb::common::SchedulingStrategy> for Constraint {
    type Error = WireError;

    fn try_from(message: pb::common::SchedulingStrategy) -> Result<Self, WireError> {
        use pb::common::scheduling_strategy::{Kind, WhenBusy as PbWhenBusy};
        let unknown = |field, value| WireError::Invalid { field, reason: format!("{value} is not known") };
        let kind = Kind::try_from(message.kind).map_err(|_| unknown("strategy.kind", message.kind))?;
        let strategy = match kind {
            Kind::Default => Strategy::Default,
            Kind::Spread => Strategy::Spread,
            Kind::NodeAffinity => {
                let when_busy = match PbWhenBusy::try_from(message.when_busy) {
                    Ok(PbWhenBusy::Wait) => WhenBusy::Wait,
                    Ok(PbWhenBusy::Spill) => WhenBusy::Spill,
                    Ok(PbWhenBusy::Fail) => WhenBusy::Fail,
                    Err(_) => return Err(unknown("strategy.when_busy", message.when_busy)),
                };
                let node_id = id("strategy.node_id", &message.node_id)?;
                Strategy::NodeAffinity { node_id, soft: message.soft, when_busy }
            }
            Kind::Bundle => Strategy::Bundle {
                group_id: id("strategy.placement_group_id", &message.placement_group_id)?,
                index: u32::try_from(message.bundle_index).ok(),
                capture: message.capture_child_tasks,
            },
        };
        let selectors = message.selectors.into_iter().map(LabelSelector::try_from);
        Ok(Self { strategy, selectors: selectors.collect::<Result<_, _>>()? })
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
