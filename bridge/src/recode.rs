//! A file in another transfer syntax than it is kept in, read as it is made: a run at a time, never the whole. Must not know who asks.

use std::io::{self, Cursor, Read};

use dicom_scp::transcode::Transcoder;
use dicom_scp::{TransferSyntax, Uid};

use crate::archive::{FileMeta, Stored};
use crate::retrieve::Content;

const RUN_BYTES: usize = 64 * 1024;

/// From which transfer syntax into which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recoding {
    from: TransferSyntax,
    to: TransferSyntax,
}

impl Recoding {
    /// None where one cannot be made of the other without loss.
    pub(crate) fn new(from: &Uid, to: &Uid) -> Option<Self> {
        let (from, to) = (TransferSyntax::of(from)?, TransferSyntax::of(to)?);
        Transcoder::new(&from, &to).map(|_| Self { from, to })
    }

    /// What it becomes.
    pub(crate) fn to(&self) -> &Uid {
        self.to.uid()
    }

    /// The whole file, read as it becomes one of the other transfer syntax.
    pub(crate) fn read(&self, stored: &Stored, data_set: Content) -> Option<Recoded> {
        let meta = FileMeta {
            sop_class: stored.sop_class,
            sop_instance: stored.sop_instance,
            transfer_syntax: *self.to.uid(),
        };
        Some(Recoded::new(meta.encode(), data_set, Transcoder::new(&self.from, &self.to)?))
    }
}

/// Group 0002 of the other transfer syntax, and what the data set becomes in it.
pub(crate) struct Recoded {
    data_set: Box<dyn Read + Send>,
    transcoder: Transcoder,
    run: Vec<u8>,
    /// What was made, and how much of it was given.
    made: Vec<u8>,
    given: usize,
    ended: bool,
}

impl Recoded {
    pub(crate) fn new(meta: Vec<u8>, data_set: Content, transcoder: Transcoder) -> Self {
        let data_set: Box<dyn Read + Send> = match data_set {
            Content::Whole(bytes) => Box::new(Cursor::new(bytes)),
            Content::File(file) => Box::new(file),
        };
        Self { data_set, transcoder, run: vec![0; RUN_BYTES], made: meta, given: 0, ended: false }
    }
}

impl Read for Recoded {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.given == self.made.len() && !self.ended {
            self.made.clear();
            self.given = 0;
            let count = self.data_set.read(&mut self.run)?;
            self.ended = count == 0;
            let made = match count {
                0 => self.transcoder.finish(&mut self.made),
                _ => self.transcoder.push(&self.run[..count], &mut self.made),
            };
            made.map_err(io::Error::other)?;
        }
        let count = out.len().min(self.made.len() - self.given);
        out[..count].copy_from_slice(&self.made[self.given..self.given + count]);
        self.given += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use dicom_scp::TransferSyntax;
    use dicom_scp::dataset::{DataSet, Element, Encoding, Tag, VR};

    #[test]
    fn what_is_read_is_the_file_in_the_other_transfer_syntax_however_it_is_cut() {
        let mut set = DataSet::default();
        set.put_text(Tag(0x0010, 0x0010), VR::PN, "A^B");
        set.put(Tag(0x7FE0, 0x0010), Element::bytes(VR::OW, vec![7; 3 * RUN_BYTES]));
        let bytes = set.write(Encoding::ExplicitLe);
        let (from, to) = (TransferSyntax::EXPLICIT_VR_LE, TransferSyntax::IMPLICIT_VR_LE);
        let recoded = |bytes: Vec<u8>| {
            let transcoder = Transcoder::new(&from, &to).unwrap();
            Recoded::new(b"meta".to_vec(), Content::Whole(bytes.into()), transcoder)
        };
        let expected = [b"meta".to_vec(), set.write(Encoding::ImplicitLe)].concat();
        let mut whole = Vec::new();
        recoded(bytes.clone()).read_to_end(&mut whole).unwrap();
        assert!(whole == expected, "{} bytes instead of {}", whole.len(), expected.len());
        let mut in_pieces = vec![0; expected.len()];
        let mut reader = recoded(bytes.clone());
        in_pieces.chunks_mut(1009).for_each(|piece| reader.read_exact(piece).unwrap());
        assert!(in_pieces == expected && reader.read(&mut [0]).unwrap() == 0);
        let cut = recoded(bytes[..bytes.len() - 1].to_vec()).read_to_end(&mut Vec::new());
        assert!(cut.unwrap_err().get_ref().unwrap().is::<dicom_scp::transcode::TranscodeError>());
    }
}
