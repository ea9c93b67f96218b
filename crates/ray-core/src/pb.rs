//! Messages and services generated from the files in `proto/`.
//!
//! They stay at the border: [`crate::wire`] turns them into checked types.
#![allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    reason = "generated code"
)]

/// Messages that several services share.
pub mod common {
    tonic::include_proto!("ray.common");
}
/// The control plane.
pub mod gcs {
    tonic::include_proto!("ray.gcs");
}
/// The node daemon.
pub mod raylet {
    tonic::include_proto!("ray.raylet");
}
/// The object store.
pub mod object_store {
    tonic::include_proto!("ray.object_store");
}
