//! A value has one layout only: a block that is read is the block that its parts are written to.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ray_core::serialize::{BUFFER_ALIGNMENT, ValueParts, ValueView, ZeroCopyRead as _, ZeroCopyWrite as _};
use ray_fuzz::read_frugally;

fuzz_target!(|block: &[u8]| {
    let Ok(view) = read_frugally(block, 0, ValueView::read_from) else { return };
    let buffers: Vec<&[u8]> = view.buffers().collect();
    assert_eq!(buffers.len(), view.buffer_count());
    assert_eq!(view.buffer(buffers.len()), None);
    for (index, buffer) in buffers.iter().enumerate() {
        let range = view.buffer_range(index).expect("as many as there are");
        assert_eq!(range.start % BUFFER_ALIGNMENT, 0);
        assert_eq!(&block[range], *buffer);
    }
    let parts = ValueParts { in_band: view.in_band(), buffers };
    // Not zero, so that padding that is not written shows.
    let mut written = vec![0xaa; parts.encoded_len()];
    parts.write_into(&mut written).expect("what was read can be written");
    assert!(written == block, "it is written as {written:?}");
});
