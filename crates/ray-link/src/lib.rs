//! How the processes of Ray Rust talk without gRPC: length-prefixed frames over a stream.
//!
//! * [`frame`]: the bytes of one frame, pure.
//! * [`connection`]: a non-blocking Unix socket with a buffer for each direction.
//! * [`poller`]: epoll, and a way to wake a thread that waits in it.
//! * [`message`]: what a core worker and its node say to each other ("the link").
//!
//! What core workers say to one another is in `ray-worker`. Nothing here decides anything.

pub mod connection;
pub mod frame;
pub mod message;
pub mod poller;

pub use connection::{Connection, ConnectionError, Listener};
pub use frame::{Frame, FrameError, FrameReader};
pub use message::{FromRaylet, ToRaylet};
pub use poller::{Interest, Poller, Readiness, Waker};
