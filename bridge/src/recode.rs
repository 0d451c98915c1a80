//! A file in another transfer syntax than it is kept in, read as it is made: a run or a frame at a time, never the whole. Nothing is lost by it that
//! was not lost before. Must not know who asks.

use std::io::{self, Cursor, Read, Seek};

use dicom_scp::transcode::{TranscodeError, Transcoder};
use dicom_scp::{TransferSyntax, Uid};
use flate2::read::DeflateDecoder;

use crate::archive::{FileMeta, Stored};
use crate::payload::preview::{Native, PreviewError, Reason, is_decodable};
use crate::retrieve::{Content, Retrieve, RetrieveError};

const RUN_BYTES: usize = 64 * 1024;

/// From which transfer syntax into which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recoding {
    from: TransferSyntax,
    to: TransferSyntax,
    way: Way,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The same elements, encoded otherwise.
    Elements,
    /// The same bytes once they are inflated.
    Inflated,
    /// The pixel data is decoded, or its words turned round.
    Pixels,
}

/// Why a file cannot be had in another transfer syntax.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecodeError {
    /// The object cannot be had at all.
    #[error("the object")]
    Retrieve(#[from] RetrieveError),
    /// Nothing is wrong with it; what it holds is not decoded here.
    #[error("it cannot be decoded: {0}")]
    Undecodable(Reason),
    /// Its pixel data is damaged, or was when it came.
    #[error("it cannot be decoded")]
    Damaged(#[source] PreviewError),
    /// Its bytes are no data set of its transfer syntax.
    #[error("it is no data set of its transfer syntax")]
    Malformed(#[source] TranscodeError),
    /// It could not be read.
    #[error("it could not be read")]
    Io(#[from] io::Error),
    /// The site ends.
    #[error("given up")]
    GivenUp,
}

impl Recoding {
    /// None where one cannot be made of the other here. Whether the pixel data of an object can be decoded is known when that is tried.
    pub(crate) fn new(from: &Uid, to: &Uid) -> Option<Self> {
        let (from, to) = (TransferSyntax::of(from)?, TransferSyntax::of(to)?);
        let way = if Transcoder::new(&from, &to).is_some() {
            Way::Elements
        } else if ![TransferSyntax::IMPLICIT_VR_LE, TransferSyntax::EXPLICIT_VR_LE].contains(&to) {
            return None;
        } else if from.is_deflated() && from.encoding() == TransferSyntax::EXPLICIT_VR_LE.encoding() {
            Way::Inflated
        } else if is_decodable(&from) {
            Way::Pixels
        } else {
            return None;
        };
        Some(Self { from, to, way })
    }

    /// What it becomes.
    pub(crate) fn to(&self) -> &Uid {
        self.to.uid()
    }

    /// The whole file, to be read as it becomes one of the other transfer syntax.
    ///
    /// # Errors
    /// [`RecodeError`], also for what is found out at the first frame. What is wrong with a later one is an error of reading
    /// ([`RecodeError::of_reading`]).
    pub(crate) async fn open(self, retrieve: &Retrieve, stored: &Stored) -> Result<Box<dyn Read + Send>, RecodeError> {
        let meta = FileMeta {
            sop_class: stored.sop_class,
            sop_instance: stored.sop_instance,
            transfer_syntax: *self.to.uid(),
        };
        let data_set = self.open_data_set(retrieve, stored).await?;
        Ok(Box::new(Cursor::new(meta.encode()).chain(data_set)))
    }

    /// The same without file meta information.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) async fn open_data_set(
        self,
        retrieve: &Retrieve,
        stored: &Stored,
    ) -> Result<Box<dyn Read + Send>, RecodeError> {
        let content = match self.way {
            Way::Elements | Way::Inflated => retrieve.open(stored).await?.content,
            // Proven when it is opened, then read at any place.
            Way::Pixels => retrieve.open_file(stored).await?.content,
        };
        let began = tokio::task::spawn_blocking(move || self.data_set(content));
        began.await.map_err(|_| RecodeError::GivenUp)?
    }

    fn data_set(&self, content: Content) -> Result<Box<dyn Read + Send>, RecodeError> {
        match (self.way, content) {
            (Way::Pixels, Content::Whole(bytes)) => native(Cursor::new(bytes), &self.to),
            (Way::Pixels, Content::File(file)) => native(file.into_proven(), &self.to),
            (Way::Elements, Content::Whole(bytes)) => recoded(Cursor::new(bytes), &self.from, &self.to),
            (Way::Elements, Content::File(file)) => recoded(file, &self.from, &self.to),
            (Way::Inflated, Content::Whole(bytes)) => inflated(Cursor::new(bytes), &self.to),
            (Way::Inflated, Content::File(file)) => inflated(file, &self.to),
        }
    }
}

impl RecodeError {
    /// What came up while it was read: the pixel data, or the disk.
    pub(crate) fn of_reading(error: io::Error) -> Self {
        match error.downcast::<PreviewError>() {
            Ok(damaged) => Self::Damaged(damaged),
            Err(other) => match other.downcast::<TranscodeError>() {
                Ok(malformed) => Self::Malformed(malformed),
                Err(other) => Self::Io(other),
            },
        }
    }

    /// Whether it is the object that cannot be had so, however often it is tried.
    pub(crate) fn is_of_object(&self) -> bool {
        matches!(self, Self::Undecodable(_) | Self::Damaged(_) | Self::Malformed(_))
    }
}

fn native(file: impl Read + Seek + Send + 'static, to: &TransferSyntax) -> Result<Box<dyn Read + Send>, RecodeError> {
    match Native::open(file, to.encoding()).map_err(RecodeError::Damaged)? {
        Ok(native) => Ok(Box::new(native)),
        Err(reason) => Err(RecodeError::Undecodable(reason)),
    }
}

fn inflated(deflated: impl Read + Send + 'static, to: &TransferSyntax) -> Result<Box<dyn Read + Send>, RecodeError> {
    recoded(DeflateDecoder::new(deflated), &TransferSyntax::EXPLICIT_VR_LE, to)
}

fn recoded(
    data_set: impl Read + Send + 'static,
    from: &TransferSyntax,
    to: &TransferSyntax,
) -> Result<Box<dyn Read + Send>, RecodeError> {
    let transcoder = Transcoder::new(from, to).ok_or(io::ErrorKind::Unsupported).map_err(io::Error::from)?;
    Ok(Box::new(Recoded::new(Box::new(data_set), transcoder)))
}

/// What a data set becomes in another encoding.
struct Recoded {
    data_set: Box<dyn Read + Send>,
    transcoder: Transcoder,
    run: Vec<u8>,
    /// What was made, and how much of it was given.
    made: Vec<u8>,
    given: usize,
    ended: bool,
}

impl Recoded {
    fn new(data_set: Box<dyn Read + Send>, transcoder: Transcoder) -> Self {
        Self { data_set, transcoder, run: vec![0; RUN_BYTES], made: Vec::new(), given: 0, ended: false }
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
    use std::io::Write as _;

    use dicom_scp::TransferSyntax;
    use dicom_scp::dataset::{DataSet, Element, Encoding, Tag, VR};
    use flate2::write::DeflateEncoder;

    const EXPLICIT: TransferSyntax = TransferSyntax::EXPLICIT_VR_LE;
    const IMPLICIT: TransferSyntax = TransferSyntax::IMPLICIT_VR_LE;

    fn set() -> DataSet {
        let mut set = DataSet::default();
        set.put_text(Tag(0x0010, 0x0010), VR::PN, "A^B");
        set.put(Tag(0x7FE0, 0x0010), Element::bytes(VR::OW, vec![7; 3 * RUN_BYTES]));
        set
    }

    #[test]
    fn what_is_read_is_the_file_in_the_other_transfer_syntax_however_it_is_cut() {
        let bytes = set().write(Encoding::ExplicitLe);
        let opened = |bytes: Vec<u8>| recoded(Cursor::new(bytes), &EXPLICIT, &IMPLICIT).unwrap();
        let expected = set().write(Encoding::ImplicitLe);
        let mut whole = Vec::new();
        opened(bytes.clone()).read_to_end(&mut whole).unwrap();
        assert!(whole == expected, "{} bytes instead of {}", whole.len(), expected.len());
        let mut in_pieces = vec![0; expected.len()];
        let mut reader = opened(bytes.clone());
        in_pieces.chunks_mut(1009).for_each(|piece| reader.read_exact(piece).unwrap());
        assert!(in_pieces == expected && reader.read(&mut [0]).unwrap() == 0);
        let cut = opened(bytes[..bytes.len() - 1].to_vec()).read_to_end(&mut Vec::new()).unwrap_err();
        assert!(matches!(RecodeError::of_reading(cut), RecodeError::Malformed(_)));
    }

    #[test]
    fn what_is_deflated_is_inflated() {
        let bytes = set().write(Encoding::ExplicitLe);
        let mut deflate = DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        deflate.write_all(&bytes).unwrap();
        let deflated = deflate.finish().unwrap();
        for to in [EXPLICIT, IMPLICIT] {
            let mut whole = Vec::new();
            inflated(Cursor::new(deflated.clone()), &to).unwrap().read_to_end(&mut whole).unwrap();
            assert!(whole == set().write(to.encoding()), "{}", to.name());
        }
        let cut = inflated(Cursor::new(deflated[..deflated.len() / 2].to_vec()), &EXPLICIT).unwrap();
        assert!(std::io::copy(&mut { cut }, &mut std::io::sink()).is_err());
    }

    #[test]
    fn what_can_become_what_is_known_by_the_transfer_syntaxes() {
        let way =
            |from: &str, to: &str| Recoding::new(&Uid::new(from).unwrap(), &Uid::new(to).unwrap()).map(|how| how.way);
        let (implicit, explicit) = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1");
        assert_eq!(way(implicit, explicit), Some(Way::Elements));
        assert_eq!(way("1.2.840.10008.1.2.1.99", implicit), Some(Way::Inflated));
        for from in ["1.2.840.10008.1.2.2", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5"] {
            assert_eq!(way(from, explicit), Some(Way::Pixels), "{from}");
            assert_eq!(way(explicit, from), None, "nothing is compressed");
        }
        assert_eq!(way("1.2.840.10008.1.2.4.102", explicit), None, "a video");
    }
}
