//! The core worker against a real node: this program is the driver, and starts itself again as each
//! worker that the node orders.

mod actors;
mod blocking;
mod failures;
mod front;
mod functions;
mod generators;
mod hostile;
mod objects;
mod process;
mod references;
mod seeds;
mod tasks;
mod threads;
mod waiting;
mod world;
