//! The control plane from outside: through real gRPC clients, as a program that is killed, and in a
//! simulation.

mod actors;
mod groups;
mod harness;
mod nodes;
mod program;
mod rpcs;
mod sim;
