//! A value of one in-band part and any number of out-of-band buffers, as pickle 5 makes them, in one
//! block of memory. Readers use the buffers where they lie.
//!
//! All numbers are little-endian. With `n` buffers:
//!
//! ```text
//! offset       size     content
//! 0            4        "RRV1"
//! 4            4        n
//! 8            8        length of the in-band part
//! 16           16 * n   for each buffer: offset from the start of the block (8), length (8)
//! 16 + 16 * n           in-band part
//! ...                   zeros up to the next multiple of 64
//! ...                   buffer 0
//! ...                   zeros up to the next multiple of 64, buffer 1, and so on
//! ```
//!
//! Every buffer begins at a multiple of 64 and the block ends with the last part, so that a value has
//! one layout only, and whatever deviates from it is refused. If the block itself is aligned to 64
//! bytes, so are the buffers in memory: enough for any vector instruction, and buffers share no
//! cache line.

use super::copy::copy;
use super::{ZeroCopyRead, ZeroCopyWrite};
use crate::error::{RayError, RayResult};

/// Alignment of each buffer from the start of the block, in bytes.
pub const BUFFER_ALIGNMENT: usize = 64;

const MAGIC: [u8; 4] = *b"RRV1";
const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;

/// A value to be written: its parts, wherever they lie now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ValueParts<'a> {
    /// What the codec wrote inline.
    pub in_band: &'a [u8],
    /// What the codec left out, in its order.
    pub buffers: Vec<&'a [u8]>,
}

/// A value that was read: its parts, where they lie in the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValueView<'a> {
    /// Checked when the view was made.
    block: &'a [u8],
    in_band: &'a [u8],
    buffer_count: usize,
}

impl ZeroCopyWrite for ValueParts<'_> {
    fn encoded_len(&self) -> usize {
        let start = in_band_start(self.buffers.len());
        let in_band_end = start.saturating_add(self.in_band.len());
        self.buffers.iter().fold(in_band_end, |end, buffer| align_up(end).saturating_add(buffer.len()))
    }

    fn write_into(&self, out: &mut [u8]) -> RayResult<()> {
        let action = "write a value";
        let count = u32::try_from(self.buffers.len())
            .map_err(|_| RayError::serialization(action, "it has more than 2^32 buffers"))?;
        if out.len() != self.encoded_len() {
            let reason = format!("it has {} bytes, the place for it {}", self.encoded_len(), out.len());
            return Err(RayError::serialization(action, reason));
        }
        out[..4].copy_from_slice(&MAGIC);
        out[4..8].copy_from_slice(&count.to_le_bytes());
        put_u64(out, 8, self.in_band.len());
        let start = in_band_start(self.buffers.len());
        let mut end = start + self.in_band.len();
        copy(&mut out[start..end], self.in_band);
        for (index, buffer) in self.buffers.iter().enumerate() {
            let offset = align_up(end);
            out[end..offset].fill(0);
            end = offset + buffer.len();
            copy(&mut out[offset..end], buffer);
            let entry = HEADER_BYTES + index * ENTRY_BYTES;
            put_u64(out, entry, offset);
            put_u64(out, entry + 8, buffer.len());
        }
        Ok(())
    }
}

impl<'a> ZeroCopyRead<'a> for ValueView<'a> {
    fn read_from(block: &'a [u8]) -> RayResult<Self> {
        check(block).map_err(|reason| RayError::serialization("read a value", reason))
    }
}

impl<'a> ValueView<'a> {
    /// The in-band part.
    pub fn in_band(&self) -> &'a [u8] {
        self.in_band
    }

    /// How many buffers there are.
    pub fn buffer_count(&self) -> usize {
        self.buffer_count
    }

    /// The buffer with this index; `None` past the last one.
    pub fn buffer(&self, index: usize) -> Option<&'a [u8]> {
        self.buffer_range(index).map(|range| &self.block[range])
    }

    /// Where in the block the buffer with this index lies; `None` past the last one.
    pub fn buffer_range(&self, index: usize) -> Option<std::ops::Range<usize>> {
        if index >= self.buffer_count {
            return None;
        }
        let entry = HEADER_BYTES + index * ENTRY_BYTES;
        let (offset, length) = (get_u64(self.block, entry)?, get_u64(self.block, entry + 8)?);
        // `check` has seen to both; checked again rather than trusted to keep this free of panics.
        let range = offset..offset.checked_add(length)?;
        self.block.get(range.clone()).map(|_| range)
    }

    /// The buffers in order.
    pub fn buffers(&self) -> impl Iterator<Item = &'a [u8]> {
        let view = *self;
        (0..view.buffer_count).filter_map(move |index| view.buffer(index))
    }
}

fn check(block: &[u8]) -> Result<ValueView<'_>, String> {
    if block.get(..4) != Some(&MAGIC) {
        return Err("it does not begin as a value does".to_owned());
    }
    let count = block.get(4..8).ok_or("its header is cut off")?;
    let count = u32::from_le_bytes(count.try_into().expect("4 bytes")) as usize;
    let in_band_bytes = get_u64(block, 8).ok_or("its header is cut off")?;
    let start = in_band_start(count);
    let mut end = start.saturating_add(in_band_bytes);
    // Before the loop, so that the table is known to be there and the count to be honest.
    let in_band = block.get(start..end).ok_or("its table or in-band part is cut off")?;
    for index in 0..count {
        let entry = HEADER_BYTES + index * ENTRY_BYTES;
        let fields = get_u64(block, entry).zip(get_u64(block, entry + 8));
        let (offset, length) = fields.ok_or_else(|| format!("buffer {index} has no sizes"))?;
        if offset != align_up(end) {
            return Err(format!("buffer {index} is at {offset}, not at {}", align_up(end)));
        }
        let before = end..offset;
        end = offset.saturating_add(length);
        if end > block.len() {
            return Err(format!("buffer {index} ends at {end}, beyond the {} bytes", block.len()));
        }
        if block[before].iter().any(|&byte| byte != 0) {
            return Err(format!("what precedes buffer {index} is not zero"));
        }
    }
    if end != block.len() {
        return Err(format!("it ends at {end}, but there are {} bytes", block.len()));
    }
    Ok(ValueView { block, in_band, buffer_count: count })
}

fn in_band_start(buffer_count: usize) -> usize {
    buffer_count.saturating_mul(ENTRY_BYTES).saturating_add(HEADER_BYTES)
}

/// The next multiple of the alignment; sizes near the end of the address space stay what they are,
/// too large for any block.
fn align_up(offset: usize) -> usize {
    offset.checked_next_multiple_of(BUFFER_ALIGNMENT).unwrap_or(usize::MAX)
}

fn put_u64(out: &mut [u8], at: usize, value: usize) {
    out[at..at + 8].copy_from_slice(&(value as u64).to_le_bytes());
}

/// The number at this place; `None` if it is not there or no size on this machine.
fn get_u64(block: &[u8], at: usize) -> Option<usize> {
    let bytes = block.get(at..at.checked_add(8)?)?;
    usize::try_from(u64::from_le_bytes(bytes.try_into().expect("8 bytes"))).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn write(parts: &ValueParts<'_>) -> Vec<u8> {
        // Not zero, so that padding that is not written shows.
        let mut block = vec![0xaa; parts.encoded_len()];
        parts.write_into(&mut block).unwrap();
        block
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let block = write(&ValueParts { in_band: b"ab", buffers: vec![b"first", b"", b"third"] });
        assert_eq!(&block[..16], b"RRV1\x03\0\0\0\x02\0\0\0\0\0\0\0");
        assert_eq!(&block[16..32], b"\x80\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0");
        assert_eq!(&block[32..48], b"\xc0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(&block[48..64], b"\xc0\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0");
        assert_eq!(&block[64..66], b"ab");
        assert!(block[66..128].iter().all(|&byte| byte == 0));
        assert_eq!(&block[128..133], b"first");
        assert_eq!(&block[192..], b"third");
    }

    #[test]
    fn a_place_of_another_size_is_refused() {
        let parts = ValueParts { in_band: b"ab", buffers: vec![] };
        assert!(parts.write_into(&mut [0; 17]).is_err());
        assert!(parts.write_into(&mut [0; 19]).is_err());
    }

    #[test]
    fn hostile_sizes_are_refused() {
        let good = write(&ValueParts { in_band: b"ab", buffers: vec![b"first"] });
        // The count, the in-band length, and the buffer's offset and length, each at its largest.
        for field in [4..8, 8..16, 16..24, 24..32] {
            let mut bad = good.clone();
            bad[field.clone()].fill(0xff);
            assert!(ValueView::read_from(&bad).is_err(), "{field:?}");
        }
        // Bytes that belong to nothing would make two blocks of one value.
        let mut bad = good.clone();
        bad[40] = 1;
        let error = ValueView::read_from(&bad).unwrap_err();
        assert!(error.chain().contains("precedes buffer 0"), "{}", error.chain());
        let error = ValueView::read_from(&good[..good.len() - 1]).unwrap_err();
        assert!(error.chain().contains("buffer 0 ends at"), "{}", error.chain());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_in_place(
            in_band in prop::collection::vec(any::<u8>(), 0..200),
            buffers in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..6),
        ) {
            let buffers: Vec<&[u8]> = buffers.iter().map(Vec::as_slice).collect();
            let block = write(&ValueParts { in_band: &in_band, buffers: buffers.clone() });
            let view = ValueView::read_from(&block).unwrap();
            prop_assert_eq!(view.in_band(), &in_band);
            prop_assert_eq!(view.buffers().collect::<Vec<_>>(), buffers);
            prop_assert_eq!(view.buffer(view.buffer_count()), None);
            for index in 0..view.buffer_count() {
                prop_assert_eq!(view.buffer_range(index).unwrap().start % BUFFER_ALIGNMENT, 0);
            }
            // One byte less or more is another value's block.
            prop_assert!(ValueView::read_from(&block[..block.len() - 1]).is_err());
            let longer = [block.as_slice(), &[0]].concat();
            prop_assert!(ValueView::read_from(&longer).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), magic in any::<bool>()) {
            if magic && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&MAGIC);
            }
            if let Ok(view) = ValueView::read_from(&bytes) {
                prop_assert_eq!(view.buffers().count(), view.buffer_count());
            }
        }

        #[test]
        fn a_damaged_value_never_panics(at in 0usize..200, byte in any::<u8>()) {
            let mut block = write(&ValueParts { in_band: b"in band", buffers: vec![b"first", b"second"] });
            let at = at % block.len();
            block[at] = byte;
            if let Ok(view) = ValueView::read_from(&block) {
                prop_assert_eq!(view.buffers().count(), view.buffer_count());
            }
        }
    }
}
