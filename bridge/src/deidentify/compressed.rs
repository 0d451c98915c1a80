//! Text that rides along with compressed pixels: comments and application data in JPEG, JPEG-LS and JPEG 2000.
//!
//! It is overwritten with zeros in place, so that lengths and offset tables stay right. A codestream that is not understood
//! is refused. Samples are not touched.

use super::refuse::Refusal;

const DAMAGED: Refusal = Refusal::PixelData("compressed frame is damaged");

/// Cleans the fragments of an object's frames (PS3.5 A.4) in the transfer syntax.
pub(super) fn clean(transfer_syntax: &str, frames: usize, fragments: &mut [Vec<u8>]) -> Result<(), Refusal> {
    let number = transfer_syntax.strip_prefix("1.2.840.10008.1.2.").unwrap_or_default();
    let cleaner = match number {
        // RLE has no place for text (PS3.5 G).
        "5" => return Ok(()),
        "4.50" | "4.51" | "4.57" | "4.70" | "4.80" | "4.81" => jpeg,
        "4.90" | "4.91" | "4.92" | "4.93" | "4.201" | "4.202" | "4.203" => jpeg_2000,
        _ => return Err(Refusal::PixelData("transfer syntax may carry text and is not understood")),
    };
    if fragments.len() == frames {
        return fragments.iter_mut().try_for_each(|frame| cleaner(frame).ok_or(DAMAGED));
    }
    if frames != 1 {
        return Err(Refusal::PixelData("frames are spread over fragments"));
    }
    let mut whole = fragments.concat();
    cleaner(&mut whole).ok_or(DAMAGED)?;
    let mut rest = whole.as_slice();
    for fragment in fragments {
        let (own, others) = rest.split_at(fragment.len());
        fragment.copy_from_slice(own);
        rest = others;
    }
    Ok(())
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(*bytes.get(at)?) << 8 | usize::from(*bytes.get(at + 1)?))
}

/// ITU-T T.81 B.1 and T.87 C.1: comments, and application segments but for what decoders need of them.
fn jpeg(bytes: &mut [u8]) -> Option<()> {
    (number(bytes, 0)? == 0xFFD8).then_some(())?;
    let mut at = 2;
    loop {
        (*bytes.get(at)? == 0xFF).then_some(())?;
        let marker = *bytes.get(at + 1)?;
        match marker {
            0xFF => at += 1,
            0x01 | 0xD0..=0xD7 => at += 2,
            0xD9 => {
                bytes.get_mut(at + 2..)?.fill(0);
                return Some(());
            }
            _ => {
                let end = at + 2 + number(bytes, at + 2)?;
                let payload = bytes.get_mut(at + 4..end)?;
                let keep = decoders_need(marker, payload);
                payload.get_mut(keep..)?.fill(0);
                at = if marker == 0xDA { after_scan(bytes, end) } else { end };
                if at >= bytes.len() {
                    // Some encoders forget the end marker.
                    return (marker == 0xDA).then_some(());
                }
            }
        }
    }
}

/// How many bytes of a segment stay: all but for comments and application data.
fn decoders_need(marker: u8, payload: &[u8]) -> usize {
    match marker {
        // JFIF without its thumbnail; the last two of its bytes are the thumbnail's size, and with it zero.
        0xE0 if payload.starts_with(b"JFIF\0") => payload.len().min(12),
        // Which colour transform is used: Adobe's, and HP's in JPEG-LS.
        0xEE if payload.starts_with(b"Adobe") => payload.len().min(12),
        0xE8 if payload.starts_with(b"mrfx") => payload.len().min(5),
        0xE0..=0xEF | 0xFE => 0,
        _ => payload.len(),
    }
}

/// The marker behind entropy coded data, in which FF is followed by 00 (T.81) or a byte below 80 (T.87), or is a restart.
fn after_scan(bytes: &[u8], from: usize) -> usize {
    let is_marker = |pair: &[u8]| pair[0] == 0xFF && pair[1] >= 0xC0 && !matches!(pair[1], 0xD0..=0xD7 | 0xFF);
    bytes.get(from..).and_then(|rest| rest.windows(2).position(is_marker)).map_or(bytes.len(), |found| from + found)
}

/// ISO/IEC 15444-1 A: comments of the main header and of the tile-part headers.
fn jpeg_2000(bytes: &mut [u8]) -> Option<()> {
    (number(bytes, 0)? == 0xFF4F).then_some(())?;
    let mut at = 2;
    let mut tile_part_end = None;
    loop {
        match number(bytes, at)? {
            0xFFD9 => {
                bytes.get_mut(at + 2..)?.fill(0);
                return Some(());
            }
            // Start of data: the tile-part's header ends, its end is known from SOT.
            0xFF93 => {
                at = tile_part_end?;
                if at >= bytes.len() {
                    return (at == bytes.len()).then_some(());
                }
            }
            marker @ 0xFF00.. => {
                let end = at + 2 + number(bytes, at + 2)?;
                match marker {
                    0xFF90 => tile_part_end = Some(end_of_tile_part(bytes, at)?),
                    // Behind the length comes the kind of comment.
                    0xFF64 => bytes.get_mut(at + 6..end)?.fill(0),
                    _ => {}
                }
                at = end;
            }
            _ => return None,
        }
    }
}

/// Psot of the SOT at `at`; 0 means up to the end of the codestream.
fn end_of_tile_part(bytes: &[u8], at: usize) -> Option<usize> {
    let length = number(bytes, at + 6)? << 16 | number(bytes, at + 8)?;
    if length > 0 {
        return at.checked_add(length);
    }
    let end = bytes.len() - usize::from(bytes.last() == Some(&0));
    Some(if bytes.get(..end)?.ends_with(&[0xFF, 0xD9]) { end - 2 } else { bytes.len() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn comments_and_application_data_of_jpeg_become_zeros() {
        let mut stream = vec![0xFF, 0xD8, 0xFF, 0xE1, 0, 8];
        stream.extend(b"SECRET");
        stream.extend([0xFF, 0xE0, 0, 22]);
        stream.extend(b"JFIF\0abcdefg\0\0SECRET");
        stream.extend([0xFF, 0xFE, 0, 8]);
        stream.extend(b"SECRET");
        stream.extend([0xFF, 0xDA, 0, 4, 1, 2, 9, 0xFF, 0, 9, 0xFF, 0xD0, 9, 0xFF, 0xD9]);
        let scan = stream.len() - 15;
        stream.extend(b"SECRET");
        let mut fragments = vec![stream.clone()];
        clean("1.2.840.10008.1.2.4.50", 1, &mut fragments).unwrap();
        assert!(!fragments[0].windows(6).any(|run| run == b"SECRET"));
        assert_eq!(fragments[0].len(), stream.len());
        assert_eq!(fragments[0][scan..scan + 15], stream[scan..scan + 15], "coded data stays");
    }

    #[test]
    fn comments_of_jpeg_2000_become_zeros_wherever_headers_are() {
        let comment = |stream: &mut Vec<u8>| {
            stream.extend([0xFF, 0x64, 0, 10, 0, 1]);
            stream.extend(b"SECRET");
        };
        let mut stream = vec![0xFF, 0x4F];
        comment(&mut stream);
        stream.extend([0xFF, 0x90, 0, 10, 0, 0, 0, 0, 0, 28, 0, 1]);
        comment(&mut stream);
        stream.extend([0xFF, 0x93, 0xFF, 0x64]);
        stream.extend([0xFF, 0xD9]);
        stream.extend(b"SECRET");
        // In two fragments, cut inside a comment.
        let mut fragments = vec![stream[..9].to_vec(), stream[9..].to_vec()];
        clean("1.2.840.10008.1.2.4.90", 1, &mut fragments).unwrap();
        let cleaned = fragments.concat();
        assert!(!cleaned.windows(3).any(|run| b"SECRET".windows(3).any(|part| part == run)));
        assert_eq!(cleaned.len(), stream.len());
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for syntax in ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.102"] {
            assert!(clean(syntax, 1, &mut [b"SECRET".to_vec()]).is_err(), "{syntax}");
        }
    }
}
