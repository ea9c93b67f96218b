//! The stores as their users see them.

mod grpc;
mod memory;
mod remote;
mod two_processes;
