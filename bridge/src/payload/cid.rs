//! The name of sealed bytes in IPFS: CIDv1 over a UnixFS file of raw leaves, as `ipfs add` makes it with the parameters below.
//!
//! The name is computed here and never taken from a node, so that what a node returns can be compared with it. It depends on how a
//! file is cut, so the parameters belong to the format: 1 MiB a leaf, 1024 links a node, SHA-256 (docs/FORMAT.md). Pure; must not know
//! how bytes travel.

use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// Bytes of a leaf, but the last.
pub const LEAF_BYTES: usize = 1 << 20;
/// Links of a node at most.
pub const LINKS_MAX: usize = 1024;
/// Length of a CID in bytes: version, codec, and a multihash of SHA-256.
pub const CID_BYTES: usize = 36;

/// Multicodec of a block that is bytes and nothing else.
const RAW: u8 = 0x55;
/// Multicodec of a node of links.
const DAG_PB: u8 = 0x70;
const SHA2_256: u8 = 0x12;
/// Multibase of the text form: lower-case base32 without padding.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// The name of a file in IPFS.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cid {
    codec: u8,
    sha256: [u8; 32],
}

/// It is no CID that is used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a CIDv1 of a raw or dag-pb block with SHA-256")]
pub struct CidError;

impl Cid {
    /// Its bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; CID_BYTES] {
        let mut bytes = [0; CID_BYTES];
        bytes[..4].copy_from_slice(&[1, self.codec, SHA2_256, 32]);
        bytes[4..].copy_from_slice(&self.sha256);
        bytes
    }

    /// Reads its bytes.
    ///
    /// # Errors
    /// [`CidError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CidError> {
        match bytes {
            [1, codec @ (RAW | DAG_PB), SHA2_256, 32, digest @ ..] => {
                Ok(Self { codec: *codec, sha256: digest.try_into().map_err(|_| CidError)? })
            }
            _ => Err(CidError),
        }
    }
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::from("b");
        let (mut held, mut bits) = (0_u32, 0);
        for byte in self.to_bytes() {
            held = held << 8 | u32::from(byte);
            bits += 8;
            while bits >= 5 {
                bits -= 5;
                text.push(char::from(BASE32[(held >> bits & 31) as usize]));
            }
            held &= (1 << bits) - 1;
        }
        if bits > 0 {
            text.push(char::from(BASE32[(held << (5 - bits) & 31) as usize]));
        }
        f.write_str(&text)
    }
}

impl fmt::Debug for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Cid {
    type Err = CidError;

    /// Reads the one text form that [`Cid`] is written in.
    fn from_str(text: &str) -> Result<Self, CidError> {
        let (mut held, mut bits, mut bytes) = (0_u32, 0, Vec::with_capacity(CID_BYTES));
        for digit in text.strip_prefix('b').ok_or(CidError)?.bytes() {
            let value = BASE32.iter().position(|known| *known == digit).ok_or(CidError)?;
            held = held << 5 | value as u32;
            bits += 5;
            if bits >= 8 {
                bits -= 8;
                bytes.push((held >> bits & 0xFF) as u8);
                held &= (1 << bits) - 1;
            }
        }
        let cid = Self::from_bytes(&bytes)?;
        // Bits left over, or upper case, would be other texts for the same name.
        if cid.to_string() == text { Ok(cid) } else { Err(CidError) }
    }
}

/// Finds the CID of what is written to it. Holds no leaf in memory.
#[derive(Debug, Default)]
pub struct CidBuilder {
    leaf: Sha256,
    leaf_bytes: usize,
    bytes: u64,
    /// What waits for its parent, leaves first.
    levels: Vec<Vec<Link>>,
}

/// A child of a node.
#[derive(Debug, Clone, Copy)]
struct Link {
    cid: Cid,
    /// Of the file below it.
    file_bytes: u64,
    /// Of all blocks below it, itself included.
    dag_bytes: u64,
}

impl CidBuilder {
    /// How many bytes were written.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn end_leaf(&mut self) {
        let sha256 = std::mem::take(&mut self.leaf).finalize().into();
        let bytes = std::mem::take(&mut self.leaf_bytes) as u64;
        self.push(0, Link { cid: Cid { codec: RAW, sha256 }, file_bytes: bytes, dag_bytes: bytes });
    }

    fn push(&mut self, level: usize, link: Link) {
        if self.levels.len() == level {
            self.levels.push(Vec::new());
        }
        self.levels[level].push(link);
        if self.levels[level].len() == LINKS_MAX {
            self.end_node(level);
        }
    }

    fn end_node(&mut self, level: usize) {
        let children = std::mem::take(&mut self.levels[level]);
        self.push(level + 1, node(&children));
    }

    /// The CID of everything that was written.
    #[must_use]
    pub fn finish(mut self) -> Cid {
        // An empty file is one empty leaf.
        if self.leaf_bytes > 0 || self.bytes == 0 {
            self.end_leaf();
        }
        let mut level = 0;
        loop {
            let is_top = level + 1 == self.levels.len();
            match self.levels[level].as_slice() {
                [only] if is_top => return only.cid,
                [] => {}
                _ => self.end_node(level),
            }
            level += 1;
        }
    }
}

impl Write for CidBuilder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full leaf ends when more comes, so that there is none after the last.
        if self.leaf_bytes == LEAF_BYTES {
            self.end_leaf();
        }
        let count = bytes.len().min(LEAF_BYTES - self.leaf_bytes);
        self.leaf.update(&bytes[..count]);
        self.leaf_bytes += count;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A dag-pb node of a UnixFS file: its links, then what UnixFS says of them.
fn node(children: &[Link]) -> Link {
    const FILE: u64 = 2;
    let file_bytes = children.iter().map(|child| child.file_bytes).sum();
    let mut unixfs = Vec::new();
    number(&mut unixfs, 1, FILE);
    number(&mut unixfs, 3, file_bytes);
    children.iter().for_each(|child| number(&mut unixfs, 4, child.file_bytes));
    let mut block = Vec::new();
    for child in children {
        let mut link = Vec::new();
        field(&mut link, 1, &child.cid.to_bytes());
        // The name, which children of a file do not have.
        field(&mut link, 2, &[]);
        number(&mut link, 3, child.dag_bytes);
        field(&mut block, 2, &link);
    }
    field(&mut block, 1, &unixfs);
    let dag_bytes = block.len() as u64 + children.iter().map(|child| child.dag_bytes).sum::<u64>();
    Link { cid: Cid { codec: DAG_PB, sha256: Sha256::digest(&block).into() }, file_bytes, dag_bytes }
}

/// A number of a protocol buffer.
fn number(out: &mut Vec<u8>, field: u8, value: u64) {
    out.push(field << 3);
    varint(out, value);
}

/// Bytes of a protocol buffer.
fn field(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7F) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn cid_of(bytes: u64) -> Cid {
        let mut builder = CidBuilder::default();
        let run: Vec<u8> = (0..=255).collect();
        let mut left = bytes;
        while left > 0 {
            let count = left.min(256);
            builder.write_all(&run[..usize::try_from(count).unwrap()]).unwrap();
            left -= count;
        }
        assert_eq!(builder.bytes(), bytes);
        builder.finish()
    }

    #[test]
    fn a_cid_has_one_text_and_one_form_in_bytes() {
        // The empty block, whose name is known everywhere.
        let empty = cid_of(0);
        assert_eq!(empty.to_string(), "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku");
        for cid in [empty, cid_of(LEAF_BYTES as u64 + 1)] {
            assert_eq!(cid.to_string().parse(), Ok(cid));
            assert_eq!(Cid::from_bytes(&cid.to_bytes()), Ok(cid));
            assert!(cid.to_string().to_uppercase().parse::<Cid>().is_err());
            assert!(format!("{cid}a").parse::<Cid>().is_err());
            assert!(Cid::from_bytes(&cid.to_bytes()[..35]).is_err());
        }
        assert!("QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH".parse::<Cid>().is_err());
        let mut sha1 = empty.to_bytes();
        sha1[2] = 0x11;
        assert!(Cid::from_bytes(&sha1).is_err());
    }

    /// As kubo 0.39 named as many zeros with these parameters.
    #[test]
    fn zeros_have_the_names_that_kubo_gives_them() {
        let leaf = Link {
            cid: Cid { codec: RAW, sha256: Sha256::digest(vec![0; LEAF_BYTES]).into() },
            file_bytes: LEAF_BYTES as u64,
            dag_bytes: LEAF_BYTES as u64,
        };
        for (leaves, rest, name) in [
            (0, 1, "bafkreidogqfzz75tpkmjzjke425xqcrmpcib2p5tg44hnbirumdbpl5adu"),
            (1, 0, "bafkreibq4fevl27rgurgnxbp7adh42aqiyd6ouflxhj3gzmcxcxzbh6lla"),
            (1, 1, "bafybeihd4yzq7n5umhjngdum4r6k2to7egxfkf2jz6thvwzf6djus22cmq"),
            (1024, 0, "bafybeibqawkaltgjfdebq4no6nmfcvkcw7k52xqzclkwfmrkn6oxw7srmy"),
            (1025, 0, "bafybeigt7wofv4vnxbg3titijasuw4ptg5kfztec4smsk7opdt7z6djoxq"),
            (1026, 5, "bafybeiehaycthuqs6ovtrxlkbdxpsyrtstd5q7rvb72ewusect2z2efuo4"),
        ] {
            let mut builder = CidBuilder { bytes: leaves * LEAF_BYTES as u64, ..CidBuilder::default() };
            (0..leaves).for_each(|_| builder.push(0, leaf));
            builder.write_all(&vec![0; rest]).unwrap();
            assert_eq!(builder.finish().to_string(), name, "{leaves} leaves and {rest} bytes");
        }
    }

    #[test]
    fn the_name_does_not_depend_on_how_the_bytes_are_written() {
        let bytes: Vec<u8> = (0..3 * LEAF_BYTES + 5).map(|n| (n * 7 + n / 251) as u8).collect();
        let of = |step: usize| {
            let mut builder = CidBuilder::default();
            bytes.chunks(step).for_each(|run| builder.write_all(run).unwrap());
            builder.finish()
        };
        assert_eq!(of(1000), of(bytes.len()));
        assert_eq!(of(LEAF_BYTES), of(LEAF_BYTES + 1));
    }
}
