//! A real node, with workers and a fork server made up by the tests.

mod actors;
mod grpc;
mod hostile;
mod joining;
mod leases;
mod node_end;
mod objects;
mod pulls;
mod survival;
mod world;
