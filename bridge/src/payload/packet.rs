//! OpenPGP packet framing (RFC 9580 section 4.2) for packets whose length is not known when they begin.
//!
//! One canonical form only, so that every byte of the framing is either required or an error: a new-format type octet,
//! then blocks of exactly [`BLOCK_BYTES`] each behind a partial body length octet, then a last block of 1 to
//! [`BLOCK_BYTES`] bytes behind a five-octet length. This file knows nothing of encryption.

use std::io::{self, BufRead, Read, Write};

/// Size of every block but the last.
pub(super) const BLOCK_BYTES: usize = 1 << BLOCK_EXPONENT;
const BLOCK_EXPONENT: u8 = 16;

/// Partial body length octet (RFC 9580 4.2.1.4) announcing a block of [`BLOCK_BYTES`].
const PARTIAL: u8 = 0xE0 | BLOCK_EXPONENT;
/// First octet of a five-octet body length (RFC 9580 4.2.1.3).
const FIVE_OCTETS: u8 = 0xFF;

/// Packet types used here (RFC 9580 section 5), with the two bits that mark a new-format header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum PacketType {
    /// Literal Data, type 11.
    Literal = 0xC0 | 11,
    /// Symmetrically Encrypted and Integrity Protected Data, type 18.
    Seipd = 0xC0 | 18,
    /// Padding, type 21.
    Padding = 0xC0 | 21,
}

/// Size of a packet in the canonical form with `body` bytes in it. `body` is at least 1.
pub(super) fn framed_bytes(body: u64) -> u64 {
    let partials = body.saturating_sub(1) / BLOCK_BYTES as u64;
    1 + partials + 5 + body
}

/// Header of a packet whose length is known: type octet and five-octet length.
pub(super) fn fixed_header(kind: PacketType, body: u32) -> [u8; 6] {
    let length = body.to_be_bytes();
    [kind as u8, FIVE_OCTETS, length[0], length[1], length[2], length[3]]
}

/// Writes one packet's body as it becomes known.
pub(super) struct PacketWriter<W> {
    out: W,
    block: Vec<u8>,
}

impl<W: Write> PacketWriter<W> {
    /// Begins a packet.
    pub(super) fn begin(mut out: W, kind: PacketType) -> io::Result<Self> {
        out.write_all(&[kind as u8])?;
        Ok(Self { out, block: Vec::with_capacity(BLOCK_BYTES) })
    }

    /// Appends to the body. A full block is held back until more follows, because the last one is framed differently.
    pub(super) fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.block.len() == BLOCK_BYTES {
                self.out.write_all(&[PARTIAL])?;
                self.out.write_all(&self.block)?;
                self.block.clear();
            }
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.block.len()));
            self.block.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    /// Writes the last block and gives the output back.
    pub(super) fn end(mut self) -> io::Result<W> {
        // The block is never longer than BLOCK_BYTES, which fits.
        let length = (self.block.len() as u32).to_be_bytes();
        self.out.write_all(&[FIVE_OCTETS])?;
        self.out.write_all(&length)?;
        self.out.write_all(&self.block)?;
        Ok(self.out)
    }

    /// The output, to drain what has been written so far.
    pub(super) fn output(&mut self) -> &mut W {
        &mut self.out
    }
}

/// Reads one packet's body; ends where the packet ends and leaves the source just behind it.
pub(super) struct PacketReader<R> {
    source: R,
    block_left: usize,
    last: bool,
}

/// An error of framing, as opposed to one of the underlying source.
pub(super) fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl<R: BufRead> PacketReader<R> {
    /// Expects a packet of this type.
    pub(super) fn begin(mut source: R, kind: PacketType) -> io::Result<Self> {
        let mut octet = [0];
        source.read_exact(&mut octet)?;
        if octet[0] != kind as u8 {
            return Err(malformed("unexpected packet type"));
        }
        let mut reader = Self { source, block_left: 0, last: false };
        reader.next_block()?;
        Ok(reader)
    }

    fn next_block(&mut self) -> io::Result<()> {
        let mut octet = [0];
        self.source.read_exact(&mut octet)?;
        match octet[0] {
            PARTIAL => self.block_left = BLOCK_BYTES,
            FIVE_OCTETS => {
                let mut length = [0; 4];
                self.source.read_exact(&mut length)?;
                self.block_left = u32::from_be_bytes(length) as usize;
                if self.block_left == 0 || self.block_left > BLOCK_BYTES {
                    return Err(malformed("last block of a packet has a wrong length"));
                }
                self.last = true;
            }
            _ => return Err(malformed("unexpected body length octet")),
        }
        Ok(())
    }

    /// The source, behind the packet once the body has been read to its end.
    pub(super) fn into_inner(self) -> R {
        self.source
    }
}

impl<R: BufRead> BufRead for PacketReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.block_left == 0 && !self.last {
            self.next_block()?;
        }
        if self.block_left == 0 {
            return Ok(&[]);
        }
        let bytes = self.source.fill_buf()?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let visible = bytes.len().min(self.block_left);
        Ok(&bytes[..visible])
    }

    fn consume(&mut self, amount: usize) {
        self.block_left -= amount;
        self.source.consume(amount);
    }
}

impl<R: BufRead> Read for PacketReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(out.len());
        out[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn framed(body: &[u8]) -> Vec<u8> {
        let mut writer = PacketWriter::begin(Vec::new(), PacketType::Literal).unwrap();
        for part in body.chunks(1000) {
            writer.append(part).unwrap();
        }
        writer.end().unwrap()
    }

    #[test]
    fn a_body_of_any_length_comes_back_and_has_the_predicted_size() {
        for length in [1, 2, 511, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES, 3 * BLOCK_BYTES + 7] {
            let body: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let mut bytes = framed(&body);
            assert_eq!(bytes.len() as u64, framed_bytes(length as u64));
            bytes.push(0x99);
            let mut reader = PacketReader::begin(bytes.as_slice(), PacketType::Literal).unwrap();
            let mut back = Vec::new();
            reader.read_to_end(&mut back).unwrap();
            assert_eq!(back, body);
            assert_eq!(reader.into_inner(), [0x99]);
        }
    }

    #[test]
    fn other_framings_of_the_same_body_are_refused() {
        // Type 11, one-octet length 1: legal OpenPGP, but not the one form we write.
        assert!(PacketReader::begin(&[0xCB, 0x01, 0x00][..], PacketType::Literal).is_err());
        // An empty last block.
        assert!(PacketReader::begin(&[0xCB, 0xFF, 0, 0, 0, 0][..], PacketType::Literal).is_err());
        // The wrong packet.
        assert!(PacketReader::begin(&[0xD2, 0xFF, 0, 0, 0, 1, 7][..], PacketType::Literal).is_err());
    }
}
