//! The locks of what `tests/models.rs` runs under a scheduler of its own, which has other ones here.

pub(crate) use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
