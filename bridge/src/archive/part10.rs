//! The DICOM file format around a data set (PS3.10 7.1): preamble, "DICM", group 0002.
//!
//! The data set itself is never looked at.

use std::io::{self, Read};

use dicom_scp::Uid;
use dicom_scp::dataset::{DataSet, Encoding, ReadEnd, ReadOptions, Tag, VR, read};

/// Implementation Class UID (0002,0012) of this software, derived from a UUID (PS3.5 B.2).
pub const IMPLEMENTATION_CLASS_UID: &str = "2.25.293018419267730217318213447526189411072";
/// Implementation Version Name (0002,0013). Without a version and without a sender's AE title, group 0002 depends on
/// the object alone: the same object gives the same file and the same digest, whoever sends it and whenever.
pub const IMPLEMENTATION_VERSION_NAME: &str = "PACSBRIDGE";

/// Longest group 0002 we read, in bytes; ours has fewer than 512.
const META_BYTES_MAX: usize = 64 * 1024;

/// What group 0002 says about a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMeta {
    /// Media Storage SOP Class UID (0002,0002).
    pub sop_class: Uid,
    /// Media Storage SOP Instance UID (0002,0003).
    pub sop_instance: Uid,
    /// Transfer Syntax UID (0002,0010).
    pub transfer_syntax: Uid,
}

/// Why a file is not a DICOM file.
#[derive(Debug, thiserror::Error)]
pub enum Part10Error {
    /// It could not be read.
    #[error("cannot read the file")]
    Io(#[from] io::Error),
    /// No "DICM" after 128 bytes.
    #[error("no DICM prefix after the preamble (PS3.10 7.1)")]
    NoPrefix,
    /// Group 0002 cannot be parsed or has no end.
    #[error("file meta information cannot be parsed")]
    Unreadable,
    /// A UID of group 0002 that we need is missing or wrong.
    #[error("file meta information lacks {0}")]
    Lacks(&'static str),
}

impl FileMeta {
    /// Preamble, prefix and group 0002 in Explicit VR Little Endian, ready to be followed by the data set.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut meta = DataSet::default();
        meta.put_text(Tag(0x0002, 0x0002), VR::UI, self.sop_class.as_str());
        meta.put_text(Tag(0x0002, 0x0003), VR::UI, self.sop_instance.as_str());
        meta.put_text(Tag(0x0002, 0x0010), VR::UI, self.transfer_syntax.as_str());
        meta.put_text(Tag(0x0002, 0x0012), VR::UI, IMPLEMENTATION_CLASS_UID);
        meta.put_text(Tag(0x0002, 0x0013), VR::SH, IMPLEMENTATION_VERSION_NAME);
        let body = meta.write(Encoding::ExplicitLe);
        // (0002,0001) File Meta Information Version, OB, 00 01, stands before the elements above.
        let version = [0x02, 0x00, 0x01, 0x00, b'O', b'B', 0, 0, 2, 0, 0, 0, 0, 1];
        let length = u32::try_from(version.len() + body.len()).unwrap_or(u32::MAX);
        let mut out = vec![0; 128];
        out.extend_from_slice(b"DICM");
        out.extend_from_slice(&[0x02, 0x00, 0x00, 0x00, b'U', b'L', 4, 0]);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&version);
        out.extend_from_slice(&body);
        out
    }

    /// Reads the start of a file as far as it has come: none while more of it is needed, which ends after 64 KiB at the latest.
    ///
    /// # Errors
    /// [`Part10Error`] when this is not a DICOM file.
    pub fn begun(octets: &[u8]) -> Result<Option<(Self, usize)>, Part10Error> {
        let needed = match octets.get(132..144) {
            None if octets.get(128..132).is_some_and(|prefix| prefix != b"DICM") => return Err(Part10Error::NoPrefix),
            None => return Ok(None),
            Some(body) => 144 + group_length(body).unwrap_or(META_BYTES_MAX),
        };
        if octets.len() < needed.min(144 + META_BYTES_MAX) {
            // What is no file is known before all of its beginning is here.
            return if &octets[128..132] == b"DICM" { Ok(None) } else { Err(Part10Error::NoPrefix) };
        }
        let (meta, offset) = Self::read(&mut &octets[..])?;
        Ok(Some((meta, usize::try_from(offset).unwrap_or(usize::MAX))))
    }

    /// Reads the start of a file. Returns what group 0002 says and the offset in bytes at which the data set begins.
    ///
    /// # Errors
    /// [`Part10Error`] when this is not a DICOM file.
    pub fn read(source: &mut impl Read) -> Result<(Self, u64), Part10Error> {
        let mut head = vec![0; 132 + 12];
        source.read_exact(&mut head).map_err(|_| Part10Error::NoPrefix)?;
        if &head[128..132] != b"DICM" {
            return Err(Part10Error::NoPrefix);
        }
        source.take(META_BYTES_MAX as u64).read_to_end(&mut head)?;
        let body = &head[132..];
        let options = ReadOptions { stop_at: Some(Tag(0x0003, 0x0000)), ..ReadOptions::default() };
        let (meta, length) = match group_length(body) {
            Some(length) if 12 + length <= body.len() => {
                let (meta, _) =
                    read(&body[..12 + length], Encoding::ExplicitLe, &options).map_err(|_| Part10Error::Unreadable)?;
                (meta, 12 + length)
            }
            _ => match read(body, Encoding::ExplicitLe, &options) {
                Ok((meta, ReadEnd::Stopped { offset, .. })) => (meta, offset),
                _ => return Err(Part10Error::Unreadable),
            },
        };
        let parsed = Self {
            sop_class: meta.uid(Tag(0x0002, 0x0002)).ok_or(Part10Error::Lacks("Media Storage SOP Class UID"))?,
            sop_instance: meta.uid(Tag(0x0002, 0x0003)).ok_or(Part10Error::Lacks("Media Storage SOP Instance UID"))?,
            transfer_syntax: meta.uid(Tag(0x0002, 0x0010)).ok_or(Part10Error::Lacks("Transfer Syntax UID"))?,
        };
        Ok((parsed, 132 + length as u64))
    }
}

/// The value of (0002,0000), when the group begins with it.
fn group_length(body: &[u8]) -> Option<usize> {
    let head = [0x02, 0x00, 0x00, 0x00, b'U', b'L', 4, 0];
    let value: [u8; 4] = body.get(8..12)?.try_into().ok()?;
    body.starts_with(&head).then(|| u32::from_le_bytes(value) as usize)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn meta() -> FileMeta {
        FileMeta {
            sop_class: Uid::new("1.2.840.10008.5.1.4.1.1.2").unwrap(),
            sop_instance: Uid::new("1.2.3").unwrap(),
            transfer_syntax: Uid::new("1.2.840.10008.1.2.4.70").unwrap(),
        }
    }

    #[test]
    fn what_was_written_is_read_back_and_the_data_set_begins_where_it_ends() {
        let mut file = meta().encode();
        let offset = file.len() as u64;
        assert_eq!(offset % 2, 0);
        file.extend_from_slice(&[8, 0, 5, 0, b'C', b'S', 0, 0]);
        assert_eq!(FileMeta::read(&mut file.as_slice()).unwrap(), (meta(), offset));
    }

    #[test]
    fn a_file_without_group_length_is_read_too() {
        let mut file = meta().encode();
        file.drain(132..144);
        let offset = file.len() as u64;
        file.extend_from_slice(&[8, 0, 5, 0, b'C', b'S', 0, 0, 0, 0, 0, 0]);
        assert_eq!(FileMeta::read(&mut file.as_slice()).unwrap(), (meta(), offset));
    }

    #[test]
    fn a_file_that_comes_in_runs_is_known_as_soon_as_group_0002_is_there() {
        let mut file = meta().encode();
        let offset = file.len();
        file.extend_from_slice(&[8, 0, 5, 0, b'C', b'S', 0, 0]);
        for length in 0..offset {
            assert!(matches!(FileMeta::begun(&file[..length]), Ok(None)), "{length}");
        }
        for length in offset..=file.len() {
            assert_eq!(FileMeta::begun(&file[..length]).unwrap(), Some((meta(), offset)));
        }
        // Without its length it ends where another group begins, which is looked for when enough has come.
        file.drain(132..144);
        assert!(matches!(FileMeta::begun(&file), Ok(None)));
        file.resize(200_000, 0);
        assert_eq!(FileMeta::begun(&file).unwrap(), Some((meta(), offset - 12)));
        assert!(matches!(FileMeta::begun(&[0; 132]), Err(Part10Error::NoPrefix)));
        assert!(matches!(FileMeta::begun(&[0; 150]), Err(Part10Error::NoPrefix)));
        let mut endless = meta().encode();
        endless[140..144].copy_from_slice(&u32::MAX.to_le_bytes());
        endless.resize(200_000, 0);
        assert!(FileMeta::begun(&endless).is_err());
    }

    #[test]
    fn other_files_are_refused() {
        assert!(matches!(FileMeta::read(&mut [0u8; 300].as_slice()), Err(Part10Error::NoPrefix)));
        assert!(matches!(FileMeta::read(&mut b"short".as_slice()), Err(Part10Error::NoPrefix)));
    }
}
