//! A non-blocking Unix stream socket that carries frames, with a buffer for each direction.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, recvmsg, send, sendmsg, socket_with,
};
use thiserror::Error;

use crate::frame::{Frame, FrameError, FrameReader, write_frame};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// How long a process that connects waits for room there: who takes nothing for so long is stopped.
const BACKLOG_LIMIT: Duration = Duration::from_secs(2);

/// A buffer larger than this is given back once it is written, in bytes.
const KEPT_OUT: usize = 1024 * 1024;

/// Why a connection cannot go on.
#[derive(Debug, Error)]
pub enum ConnectionError {
    /// The other side closed it, or its process ended.
    #[error("the connection was closed by the other side")]
    Closed,
    /// The other side does not keep to the protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The operating system refused something.
    #[error("{0}")]
    Os(#[from] Errno),
    /// An answer did not come in time.
    #[error("no answer within {} s", .0.as_secs_f64())]
    Timeout(Duration),
}

impl ConnectionError {
    /// Whether nothing listens at the path that was connected to.
    pub const fn is_nobody_there(&self) -> bool {
        matches!(self, Self::Os(Errno::CONNREFUSED | Errno::NOENT))
    }
}

/// One end of a stream of frames.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    reader: FrameReader,
    out: Vec<u8>,
    /// What precedes this in `out` is written.
    written: usize,
    /// Descriptors that came with the bytes read so far, oldest first.
    descriptors: Vec<OwnedFd>,
}

impl Connection {
    /// Connects to the socket at this path.
    ///
    /// # Errors
    /// If nobody listens there, or whoever listens takes no connections.
    pub fn connect(path: &Path, max_frame_bytes: usize) -> Result<Self, ConnectionError> {
        Self::connect_within(path, max_frame_bytes, BACKLOG_LIMIT)
    }

    fn connect_within(path: &Path, max_frame_bytes: usize, limit: Duration) -> Result<Self, ConnectionError> {
        let socket = unix_socket()?;
        let address = SocketAddrUnix::new(path)?;
        let give_up_at = Instant::now() + limit;
        // Connecting a Unix socket does not wait for the other side, except for room in its backlog.
        loop {
            match connect(&socket, &address) {
                Ok(()) => return Ok(Self::new(socket, max_frame_bytes)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if Instant::now() >= give_up_at => {
                    return Err(ConnectionError::Timeout(limit));
                }
                Err(Errno::AGAIN) => std::thread::sleep(Duration::from_millis(1)),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A connection over a connected, non-blocking stream socket.
    pub const fn new(socket: OwnedFd, max_frame_bytes: usize) -> Self {
        Self {
            socket,
            reader: FrameReader::new(max_frame_bytes),
            out: Vec::new(),
            written: 0,
            descriptors: Vec::new(),
        }
    }

    /// Puts a frame behind what waits to be written; `write` appends its payload.
    pub fn queue(&mut self, kind: u8, write: impl FnOnce(&mut Vec<u8>)) {
        write_frame(&mut self.out, kind, write);
    }

    /// Bytes that wait to be written.
    pub const fn queued_bytes(&self) -> usize {
        self.out.len() - self.written
    }

    /// Writes what the socket takes now. Returns whether all is written; if not, wait until the
    /// socket is writable and flush again.
    ///
    /// # Errors
    /// If the connection is closed.
    pub fn flush(&mut self) -> Result<bool, ConnectionError> {
        while self.written < self.out.len() {
            match send(&self.socket, &self.out[self.written..], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => self.written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(ConnectionError::Closed),
                Err(error) => return Err(error.into()),
            }
        }
        self.written = 0;
        if self.out.capacity() > KEPT_OUT {
            self.out = Vec::new();
        } else {
            self.out.clear();
        }
        Ok(true)
    }

    /// Writes all that waits, then a frame together with a descriptor for the other side.
    ///
    /// # Errors
    /// If the connection is closed or its buffer full: meant for a connection's first frames.
    pub fn send_with_descriptor(
        &mut self,
        kind: u8,
        descriptor: BorrowedFd<'_>,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), ConnectionError> {
        if !self.flush()? {
            return Err(Errno::AGAIN.into());
        }
        let mut frame = Vec::new();
        write_frame(&mut frame, kind, write);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor];
        let pushed = ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        assert!(pushed, "the space was made for one descriptor");
        let sent = sendmsg(&self.socket, &[IoSlice::new(&frame)], &mut ancillary, SendFlags::NOSIGNAL)?;
        self.out.extend_from_slice(&frame[sent..]);
        self.flush()?;
        Ok(())
    }

    /// Reads what is there now. Returns whether anything was.
    ///
    /// # Errors
    /// If the connection is closed; frames that came before can still be taken.
    pub fn fill(&mut self) -> Result<bool, ConnectionError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        loop {
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut room = [IoSliceMut::new(self.reader.room())];
            match recvmsg(
                &self.socket,
                &mut room,
                &mut ancillary,
                RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
            ) {
                Ok(message) if message.bytes == 0 => return Err(ConnectionError::Closed),
                Ok(message) => {
                    for part in ancillary.drain() {
                        if let RecvAncillaryMessage::ScmRights(received) = part {
                            self.descriptors.extend(received);
                        }
                    }
                    self.reader.filled(message.bytes);
                    return Ok(true);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::CONNRESET) => return Err(ConnectionError::Closed),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next whole frame of what was read.
    ///
    /// # Errors
    /// If the stream is not one of ours.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        self.reader.next_frame()
    }

    /// Whether part of a frame was read whose rest has not come.
    pub const fn is_amid_frame(&self) -> bool {
        self.reader.is_amid_frame()
    }

    /// Lends out what was read, so that frames can be taken while this connection is written to. Give
    /// it back by [`Connection::restore_reader`] before the next read.
    pub const fn lend_reader(&mut self) -> FrameReader {
        std::mem::replace(&mut self.reader, FrameReader::new(0))
    }

    /// Takes back what [`Connection::lend_reader`] lent.
    pub fn restore_reader(&mut self, reader: FrameReader) {
        self.reader = reader;
    }

    /// The oldest descriptor that came and was not taken yet.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        (!self.descriptors.is_empty()).then(|| self.descriptors.remove(0))
    }

    /// Flushes, waits for the next frame and gives it to `read`. For the first exchange only: it
    /// blocks the thread.
    ///
    /// # Errors
    /// If the connection is closed, or no frame comes within `timeout`.
    pub fn wait_for_frame<T>(
        &mut self,
        timeout: Duration,
        read: impl FnOnce(Frame<'_>) -> T,
    ) -> Result<T, ConnectionError> {
        let start = Instant::now();
        loop {
            let flushed = self.flush()?;
            // Two steps, for a frame that is returned from a loop would borrow for the whole loop.
            if self.reader.is_amid_frame() || self.fill()? {
                if let Some(frame) = self.reader.next_frame()? {
                    return Ok(read(frame));
                }
                if self.fill()? {
                    continue;
                }
            }
            let rest = timeout.checked_sub(start.elapsed()).ok_or(ConnectionError::Timeout(timeout))?;
            let events = if flushed { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            let limit = Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: i64::from(rest.subsec_nanos()) };
            match poll(&mut [PollFd::new(&self.socket, events)], Some(&limit)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Process id of the other side, as the kernel noted it when the connection was made.
    pub fn peer_pid(&self) -> Option<i32> {
        let credentials = rustix::net::sockopt::socket_peercred(&self.socket).ok()?;
        Some(credentials.pid.as_raw_pid())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A Unix socket that takes connections. Its file goes away with it.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`, where nothing may be yet.
    ///
    /// # Errors
    /// If the path exists, is longer than a socket's may be (107 bytes), or cannot be written.
    pub fn bind(path: &Path) -> Result<Self, ConnectionError> {
        let socket = unix_socket()?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        let listener = Self { socket, path: path.to_owned() };
        listen(&listener.socket, BACKLOG)?;
        Ok(listener)
    }

    /// The next waiting connection, if there is one.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub fn accept(&self, max_frame_bytes: usize) -> Result<Option<Connection>, ConnectionError> {
        loop {
            match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => return Ok(Some(Connection::new(socket, max_frame_bytes))),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It may be gone with its folder already.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn unix_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pair() -> (tempfile::TempDir, Connection, Connection) {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&folder.path().join("socket")).unwrap();
        let client = Connection::connect(listener.path(), 1 << 20).unwrap();
        let server = listener.accept(1 << 20).unwrap().expect("the client waits");
        assert!(listener.accept(1 << 20).unwrap().is_none());
        (folder, client, server)
    }

    #[test]
    fn frames_go_both_ways() {
        let (_folder, mut client, mut server) = pair();
        client.queue(3, |out| out.extend_from_slice(b"ping"));
        client.flush().unwrap();
        server
            .wait_for_frame(SECOND, |frame| assert_eq!((frame.kind, frame.payload), (3, &b"ping"[..])))
            .unwrap();
        server.queue(4, |out| out.extend_from_slice(b"pong"));
        server.flush().unwrap();
        client.wait_for_frame(SECOND, |frame| assert_eq!(frame.payload, b"pong")).unwrap();
    }

    #[test]
    fn who_takes_no_connections_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&folder.path().join("socket")).unwrap();
        listen(&listener.socket, 0).unwrap();
        let connect = || Connection::connect_within(listener.path(), 1 << 20, Duration::from_millis(20));
        let waiting = connect().unwrap();
        assert!(matches!(connect(), Err(ConnectionError::Timeout(_))));
        assert!(listener.accept(1 << 20).unwrap().is_some());
        connect().unwrap();
        drop(waiting);
    }

    #[test]
    fn two_frames_in_one_read_are_both_waited_for_in_turn() {
        let (_folder, mut client, mut server) = pair();
        client.queue(1, |out| out.push(1));
        client.queue(2, |out| out.push(2));
        client.flush().unwrap();
        assert_eq!(server.wait_for_frame(SECOND, |frame| frame.kind).unwrap(), 1);
        assert_eq!(server.wait_for_frame(SECOND, |frame| frame.kind).unwrap(), 2);
    }

    #[test]
    fn a_descriptor_comes_with_its_frame() {
        let (folder, mut client, mut server) = pair();
        let path = folder.path().join("file");
        std::fs::write(&path, b"content").unwrap();
        let file = std::fs::File::open(&path).unwrap();
        server.send_with_descriptor(9, file.as_fd(), |out| out.extend_from_slice(b"here")).unwrap();
        client.wait_for_frame(SECOND, |frame| assert_eq!(frame.kind, 9)).unwrap();
        let received = std::fs::File::from(client.take_descriptor().expect("one came"));
        assert_eq!(std::io::read_to_string(received).unwrap(), "content");
        assert!(client.take_descriptor().is_none());
    }

    #[test]
    fn an_end_is_told_as_closed_after_the_last_frame() {
        let (_folder, mut client, mut server) = pair();
        client.queue(1, |_| {});
        client.flush().unwrap();
        drop(client);
        assert!(server.fill().unwrap());
        assert_eq!(server.next_frame().unwrap().unwrap().kind, 1);
        assert!(matches!(server.fill(), Err(ConnectionError::Closed)));
        server.queue(1, |_| {});
        assert!(matches!(server.flush(), Err(ConnectionError::Closed)));
    }

    #[test]
    fn what_the_socket_does_not_take_stays_queued() {
        let (_folder, mut client, mut server) = pair();
        let payload = vec![7; 1 << 20];
        for _ in 0..4 {
            client.queue(1, |out| out.extend_from_slice(&payload));
        }
        assert!(!client.flush().unwrap());
        let mut frames = 0;
        while frames < 4 {
            client.flush().unwrap();
            server.fill().unwrap();
            while let Some(frame) = server.next_frame().unwrap() {
                assert!(frame.payload == payload);
                frames += 1;
            }
        }
        assert_eq!(client.queued_bytes(), 0);
    }

    #[test]
    fn a_silent_peer_is_a_timeout_and_an_absent_one_an_error() {
        let (folder, mut client, _server) = pair();
        let waited = client.wait_for_frame(Duration::from_millis(10), |_| ());
        assert!(matches!(waited, Err(ConnectionError::Timeout(_))));
        assert!(Connection::connect(&folder.path().join("nobody"), 1).is_err());
    }
}
