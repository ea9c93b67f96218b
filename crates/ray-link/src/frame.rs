//! One frame on a stream.
//!
//! ```text
//! byte 0..4   length of the payload, little-endian
//! byte 4      version of the protocol, [`VERSION`]
//! byte 5      kind: which message the payload is; each connection has its own list
//! byte 6..8   zero
//! byte 8..    payload
//! ```
//! Many frames may be written at once and arrive in any pieces.

use thiserror::Error;

/// Version of everything that travels in frames. Peers of another version are refused.
pub const VERSION: u8 = 8;

/// Length of what precedes the payload, in bytes.
pub const HEADER_LEN: usize = 8;

/// By how much a reader's buffer grows at least, in bytes; a read is offered half of it or more.
pub const READ_ROOM: usize = 64 * 1024;

/// A reader keeps a buffer of this size at most while it is empty, in bytes.
const KEPT_ROOM: usize = 1024 * 1024;

/// Why a stream of frames cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// A frame is longer than this connection takes.
    #[error("a frame of {length} bytes is longer than the {limit} that are taken")]
    TooLong {
        /// Length of its payload.
        length: usize,
        /// The most that is taken.
        limit: usize,
    },
    /// The peer speaks another version.
    #[error("the peer speaks version {0} of the frame protocol, this is version {VERSION}")]
    Version(u8),
    /// Bytes that have to be zero are not.
    #[error("the header of a frame is damaged")]
    Damaged,
}

/// A received frame; it borrows the reader's buffer.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct Frame<'a> {
    /// Which message this is.
    pub kind: u8,
    /// The message.
    pub payload: &'a [u8],
}

/// Appends a frame of this kind to `out`; `write` appends the payload.
///
/// # Panics
/// If the payload is 4 GiB or longer: senders split what is that large.
pub fn write_frame(out: &mut Vec<u8>, kind: u8, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, VERSION, kind, 0, 0]);
    write(out);
    let length = u32::try_from(out.len() - start - HEADER_LEN).expect("a payload stays below 4 GiB");
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// Cuts a stream of bytes into frames.
#[derive(Debug)]
pub struct FrameReader {
    buffer: Vec<u8>,
    /// What precedes this is read.
    start: usize,
    /// What follows this is room.
    end: usize,
    limit: usize,
}

impl FrameReader {
    /// A reader that takes payloads of up to `limit` bytes.
    pub const fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, end: 0, limit }
    }

    /// Room for the next bytes of the stream; call [`FrameReader::filled`] with how many came.
    ///
    /// There is always some. For a long frame it grows with what has come of it, so that a header alone
    /// makes nobody take the memory that it speaks of. As long as whole frames are taken before each call
    /// of this, no more is held than the longest frame and [`READ_ROOM`].
    pub fn room(&mut self) -> &mut [u8] {
        let pending = self.end - self.start;
        if pending == 0 {
            (self.start, self.end) = (0, 0);
            if self.buffer.len() > KEPT_ROOM {
                self.buffer = Vec::new();
            }
        }
        if self.buffer.len() - self.end < READ_ROOM / 2 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, pending);
        }
        if self.buffer.len() - self.end < READ_ROOM / 2 {
            let wanted = READ_ROOM.max(self.missing().min(pending.max(KEPT_ROOM)));
            // Exactly, for a vector that grows by itself doubles, which may be far beyond the limit.
            self.buffer.reserve_exact(self.end + wanted - self.buffer.len());
            self.buffer.resize(self.end + wanted, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// Takes over `count` bytes that were written to the front of [`FrameReader::room`].
    pub fn filled(&mut self, count: usize) {
        assert!(count <= self.buffer.len() - self.end, "no more than the room was filled");
        self.end += count;
    }

    /// The next whole frame, if it is in.
    ///
    /// # Errors
    /// If the stream is not one of ours; it cannot be read any further then.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let Some((length, kind)) = self.header()? else {
            return Ok(None);
        };
        let from = self.start + HEADER_LEN;
        if self.end - from < length {
            return Ok(None);
        }
        self.start = from + length;
        Ok(Some(Frame { kind, payload: &self.buffer[from..from + length] }))
    }

    /// Whether part of a frame is in.
    pub const fn is_amid_frame(&self) -> bool {
        self.end > self.start
    }

    fn header(&self) -> Result<Option<(usize, u8)>, FrameError> {
        let Some(header) = self.buffer[self.start..self.end].first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let &[a, b, c, d, version, kind, zero, zero_too] = header;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if (zero, zero_too) != (0, 0) {
            return Err(FrameError::Damaged);
        }
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > self.limit {
            return Err(FrameError::TooLong { length, limit: self.limit });
        }
        Ok(Some((length, kind)))
    }

    /// How many bytes the frame that has begun still lacks.
    fn missing(&self) -> usize {
        match self.header() {
            Ok(Some((length, _))) => (HEADER_LEN + length).saturating_sub(self.end - self.start),
            // Without a whole header, or with a bad one, nothing is known to be missing.
            Ok(None) | Err(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn feed(reader: &mut FrameReader, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = reader.room();
            let count = room.len().min(bytes.len());
            room[..count].copy_from_slice(&bytes[..count]);
            reader.filled(count);
            bytes = &bytes[count..];
        }
    }

    #[test]
    fn a_foreign_stream_is_refused_at_its_header() {
        let mut reader = FrameReader::new(100);
        feed(&mut reader, b"GET / HTTP/1.1\r\n");
        assert_eq!(reader.next_frame(), Err(FrameError::Version(b'/')));

        let mut reader = FrameReader::new(100);
        feed(&mut reader, &[200, 0, 0, 0, VERSION, 1, 0, 0]);
        assert_eq!(reader.next_frame(), Err(FrameError::TooLong { length: 200, limit: 100 }));

        let mut reader = FrameReader::new(100);
        feed(&mut reader, &[2, 0, 0, 0, VERSION, 1, 9, 0]);
        assert_eq!(reader.next_frame(), Err(FrameError::Damaged));
    }

    #[test]
    fn the_buffer_of_one_large_frame_is_given_back() {
        let mut reader = FrameReader::new(usize::MAX);
        let mut bytes = Vec::new();
        write_frame(&mut bytes, 1, |out| out.resize(out.len() + 8 * KEPT_ROOM, 7));
        feed(&mut reader, &bytes);
        assert_eq!(reader.next_frame().unwrap().unwrap().payload.len(), 8 * KEPT_ROOM);
        reader.room();
        assert!(reader.buffer.len() <= KEPT_ROOM);
    }

    /// A byte beyond what the buffer held made it twice as large.
    #[test]
    fn no_more_is_held_than_the_longest_frame_and_room_for_a_read() {
        for limit in [100, READ_ROOM - HEADER_LEN + 1, KEPT_ROOM + READ_ROOM, 3 * KEPT_ROOM] {
            let mut reader = FrameReader::new(limit);
            let mut bytes = Vec::new();
            for length in [1, limit / 2, limit, 0, limit] {
                write_frame(&mut bytes, 1, |out| out.resize(out.len() + length, 7));
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let count = reader.room().len().min(limit / 3 + 1).min(rest.len());
                assert!(reader.buffer.capacity() <= HEADER_LEN + limit + READ_ROOM, "{limit}");
                feed(&mut reader, &rest[..count]);
                rest = &rest[count..];
                while reader.next_frame().unwrap().is_some() {}
            }
            assert!(!reader.is_amid_frame());
        }
    }

    /// Or each of them would be a copy of all that has come.
    #[test]
    fn single_bytes_make_the_buffer_grow_rarely() {
        let mut reader = FrameReader::new(2 * KEPT_ROOM);
        let mut bytes = Vec::new();
        write_frame(&mut bytes, 1, |out| out.resize(out.len() + 2 * KEPT_ROOM, 7));
        let (mut capacity, mut growths) = (0, 0);
        for byte in &bytes {
            feed(&mut reader, std::slice::from_ref(byte));
            growths += usize::from(reader.buffer.capacity() != capacity);
            capacity = reader.buffer.capacity();
        }
        assert!(growths <= 6, "{growths}");
    }

    #[test]
    fn a_header_that_speaks_of_much_takes_little() {
        let mut reader = FrameReader::new(usize::MAX);
        feed(&mut reader, &[0xff, 0xff, 0xff, 0xff, VERSION, 1, 0, 0]);
        assert_eq!(reader.next_frame(), Ok(None));
        assert!(reader.room().len() <= KEPT_ROOM + READ_ROOM);
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_they_are_cut(
            frames in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..300)), 0..20),
            cuts in prop::collection::vec(1usize..200, 1..50),
        ) {
            let mut bytes = Vec::new();
            for (kind, payload) in &frames {
                write_frame(&mut bytes, *kind, |out| out.extend_from_slice(payload));
            }
            let mut reader = FrameReader::new(1000);
            let mut seen = Vec::new();
            let (mut rest, mut cuts) = (bytes.as_slice(), cuts.iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                feed(&mut reader, now);
                rest = later;
                while let Some(frame) = reader.next_frame().unwrap() {
                    seen.push((frame.kind, frame.payload.to_vec()));
                }
            }
            prop_assert!(!reader.is_amid_frame());
            prop_assert_eq!(seen, frames);
        }

        #[test]
        fn no_bytes_make_it_panic_or_grow_without_bound(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut reader = FrameReader::new(4096);
            feed(&mut reader, &bytes);
            while let Ok(Some(_)) = reader.next_frame() {}
            reader.room();
            prop_assert!(reader.buffer.len() <= 2 * READ_ROOM + 4096 + bytes.len());
        }
    }
}
