//! RLE Lossless (PS3.5 annex G): one PackBits run per byte plane of each sample, most significant byte first.

/// Decodes one frame into interleaved little endian cells. What a damaged segment lacks stays zero.
pub(super) fn decode(
    frame: &[u8],
    pixels: usize,
    samples_per_pixel: usize,
    cell_bytes: usize,
) -> Result<Vec<u8>, String> {
    let header = frame.get(..64).ok_or("rle header is cut short")?;
    let word = |n: usize| u32::from_le_bytes([header[4 * n], header[4 * n + 1], header[4 * n + 2], header[4 * n + 3]]);
    let segments = samples_per_pixel * cell_bytes;
    if word(0) as usize != segments || segments > 15 {
        return Err(format!("{} rle segments where {segments} belong", word(0)));
    }
    let mut out = vec![0; pixels * segments];
    for segment in 0..segments {
        let begin = word(segment + 1) as usize;
        let end = if segment + 1 < segments { word(segment + 2) as usize } else { frame.len() };
        let packed =
            frame.get(begin..end.max(begin).min(frame.len())).ok_or("rle segment lies outside of the frame")?;
        let (sample, plane) = (segment / cell_bytes, segment % cell_bytes);
        let first = sample * cell_bytes + (cell_bytes - 1 - plane);
        unpack(packed, out.iter_mut().skip(first).step_by(segments));
    }
    Ok(out)
}

/// PackBits (PS3.5 G.3.2).
fn unpack<'a>(packed: &[u8], mut out: impl Iterator<Item = &'a mut u8>) {
    let mut bytes = packed.iter();
    while let Some(control) = bytes.next() {
        match *control {
            0..=127 => {
                for _ in 0..=*control {
                    let (Some(byte), Some(place)) = (bytes.next(), out.next()) else { return };
                    *place = *byte;
                }
            }
            128 => {}
            129..=255 => {
                let Some(byte) = bytes.next() else { return };
                for _ in 0..257 - u16::from(*control) {
                    let Some(place) = out.next() else { return };
                    *place = *byte;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn framed(segments: &[&[u8]]) -> Vec<u8> {
        let mut header = vec![segments.len() as u32];
        let mut at = 64;
        for segment in segments {
            header.push(at);
            at += segment.len() as u32;
        }
        header.resize(16, 0);
        header.iter().flat_map(|word| word.to_le_bytes()).chain(segments.concat()).collect()
    }

    #[test]
    fn literal_and_repeated_runs_make_little_endian_cells() {
        // Three pixels of 16 bits: 0x0102 0x0103 0x0104.
        let frame = framed(&[&[254, 1], &[2, 2, 3, 4]]);
        assert_eq!(decode(&frame, 3, 1, 2).unwrap(), [2, 1, 3, 1, 4, 1]);
    }

    #[test]
    fn damaged_frames_neither_panic_nor_write_beyond() {
        assert!(decode(&[0; 10], 4, 1, 1).is_err());
        assert_eq!(decode(&framed(&[&[129, 7]]), 4, 1, 1).unwrap(), [7; 4]);
        assert_eq!(decode(&framed(&[&[127, 7]]), 4, 1, 1).unwrap(), [7, 0, 0, 0]);
        let mut outside = framed(&[&[0, 7]]);
        outside[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(decode(&outside, 4, 1, 1).is_err());
    }
}
