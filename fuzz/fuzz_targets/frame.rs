//! Frames come out of a stream as they are in it, however it is cut into reads, and their reader takes no
//! more memory than its limit allows.
//!
//! The input is a small program, for what is long has to come from few bytes: see [`Program`].

#![no_main]

use std::ops::Range;

use libfuzzer_sys::fuzz_target;
use ray_fuzz::peak_bytes;
use ray_link::FrameReader;
use ray_link::frame::{FrameError, HEADER_LEN, READ_ROOM, VERSION};

/// Longer streams take too much of the fuzzer's time, in bytes.
const MAX_STREAM: usize = 3 << 20;
/// After so many reads the rest comes in reads as large as can be.
const MAX_CUTS: usize = 2_000;

/// ```text
/// limit: u32 | number of cuts: u8 | for each cut, the length of a read: u16, above 0x8000 what is more, times 64
/// then pieces of the stream:  0 kind u8, length u16      a frame of 16 times that many bytes
///                             1 length u8, bytes         these bytes
///                             2 length u32, kind u8      a header
///                             3 byte u8, length u16      a run of this byte, 16 times that many
/// ```
#[derive(Debug)]
struct Program {
    limit: usize,
    cuts: Vec<usize>,
    stream: Vec<u8>,
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(self.bytes(bytes)?.iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte)))
    }
}

impl Program {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut input = Input(bytes);
        // Mostly limits that matter to streams of this length.
        let limit = input.number(4)? % (2 * MAX_STREAM);
        let count = input.number(1)?;
        let mut cuts = Vec::with_capacity(count);
        for _ in 0..count {
            let cut = input.number(2)?;
            cuts.push(if cut < 1 << 15 { cut } else { (cut - (1 << 15)) * 64 });
        }
        let mut stream = Vec::new();
        while stream.len() < MAX_STREAM && append_piece(&mut stream, &mut input).is_some() {}
        Some(Self { limit, cuts, stream })
    }
}

fn append_piece(stream: &mut Vec<u8>, input: &mut Input<'_>) -> Option<()> {
    match input.number(1)? {
        0 => {
            let (kind, length) = (input.number(1)? as u8, input.number(2)? * 16);
            append_header(stream, length, kind);
            stream.resize(stream.len() + length, kind);
        }
        1 => {
            let length = input.number(1)?;
            stream.extend_from_slice(input.bytes(length)?);
        }
        2 => {
            let (length, kind) = (input.number(4)?, input.number(1)? as u8);
            append_header(stream, length, kind);
        }
        3 => {
            let (byte, length) = (input.number(1)? as u8, input.number(2)? * 16);
            stream.resize(stream.len() + length, byte);
        }
        _ => return None,
    }
    Some(())
}

fn append_header(stream: &mut Vec<u8>, length: usize, kind: u8) {
    stream.extend_from_slice(&(length as u32).to_le_bytes());
    stream.extend_from_slice(&[VERSION, kind, 0, 0]);
}

/// What a stream holds: frames, then a fault, or the first bytes of a frame, or nothing.
#[derive(Debug, Default)]
struct Expected {
    frames: Vec<(u8, Range<usize>)>,
    fault: Option<FrameError>,
    is_amid_frame: bool,
}

/// The format as its documentation has it, in the simplest way.
fn expected(stream: &[u8], limit: usize) -> Expected {
    let mut expected = Expected::default();
    let mut at = 0;
    while let Some(header) = stream[at..].first_chunk::<HEADER_LEN>() {
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let fault = match header {
            [.., version, _, _, _] if *version != VERSION => Some(FrameError::Version(*version)),
            [.., 0, 0] => (length > limit).then_some(FrameError::TooLong { length, limit }),
            _ => Some(FrameError::Damaged),
        };
        if fault.is_some() {
            return Expected { fault, ..expected };
        }
        let payload = at + HEADER_LEN..at + HEADER_LEN + length;
        if payload.end > stream.len() {
            break;
        }
        at = payload.end;
        expected.frames.push((header[5], payload));
    }
    Expected { is_amid_frame: at < stream.len(), ..expected }
}

fn check(program: &Program, expected: &Expected) {
    let Program { limit, cuts, stream } = program;
    let mut reader = FrameReader::new(*limit);
    let (mut rest, mut cuts) = (stream.as_slice(), cuts.iter().cycle().take(MAX_CUTS));
    let mut frames = expected.frames.iter();
    while !rest.is_empty() {
        let cut = cuts.next().copied().unwrap_or(usize::MAX).max(1);
        let room = reader.room();
        assert!(!room.is_empty(), "there is always room");
        let count = cut.min(room.len()).min(rest.len());
        room[..count].copy_from_slice(&rest[..count]);
        reader.filled(count);
        rest = &rest[count..];
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => {
                    let (kind, payload) = frames.next().expect("no more frames than there are");
                    assert!(frame.kind == *kind && frame.payload == &stream[payload.clone()]);
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(Some(error), expected.fault);
                    assert!(frames.next().is_none(), "frames before a fault still count");
                    return;
                }
            }
        }
    }
    assert_eq!(expected.fault, None);
    assert!(frames.next().is_none(), "all frames come out");
    assert_eq!(reader.is_amid_frame(), expected.is_amid_frame);
}

fuzz_target!(|bytes: &[u8]| {
    let Some(program) = Program::read(bytes) else { return };
    let expected = expected(&program.stream, program.limit);
    let ((), peak) = peak_bytes(|| check(&program, &expected));
    // The longest frame, and room for a read behind it.
    let most = HEADER_LEN + program.limit + READ_ROOM;
    assert!(peak <= most, "{peak} bytes are held with a limit of {}", program.limit);
    let whole = Program { cuts: Vec::new(), ..program };
    check(&whole, &expected);
});
