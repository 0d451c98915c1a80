//! Transfer syntaxes (PS3.5 annex A, PS3.6 annex A): how the bytes of a data set are encoded.
//!
//! Must not know codecs: pixel data is opaque here.

use crate::{Uid, dataset::Encoding};
use Encoding::{ExplicitBe, ExplicitLe, ImplicitLe};

/// One transfer syntax. Those of the standard come from [`TransferSyntax::of`]; a site's private ones are made with
/// [`TransferSyntax::private`] and passed in as options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TransferSyntax {
    uid: Uid,
    name: &'static str,
    encoding: Encoding,
    flags: u8,
}

const DEFLATED: u8 = 1;
const ENCAPSULATED: u8 = 2;
const LOSSY: u8 = 4;
const RETIRED: u8 = 8;
const NO_DIMSE: u8 = 16;

impl TransferSyntax {
    /// Implicit VR Little Endian, the default of DICOM (PS3.5 10.1).
    pub const IMPLICIT_VR_LE: TransferSyntax = row("1.2.840.10008.1.2", "Implicit VR Little Endian", ImplicitLe, 0);
    /// Explicit VR Little Endian (PS3.5 A.2).
    pub const EXPLICIT_VR_LE: TransferSyntax = row("1.2.840.10008.1.2.1", "Explicit VR Little Endian", ExplicitLe, 0);
    /// Explicit VR Big Endian (PS3.5 A.3, retired).
    pub const EXPLICIT_VR_BE: TransferSyntax =
        row("1.2.840.10008.1.2.2", "Explicit VR Big Endian", ExplicitBe, RETIRED);

    /// The transfer syntax with this UID: any of PS3.6 (retired ones included) or a well-known private one.
    pub fn of(uid: &Uid) -> Option<TransferSyntax> {
        TABLE.iter().find(|row| row.uid == *uid).copied()
    }

    /// A private transfer syntax of a site, with uncompressed or encapsulated pixel data, not deflated.
    pub const fn private(uid: Uid, encoding: Encoding, encapsulated: bool, lossy: bool) -> TransferSyntax {
        let flags = (encapsulated as u8) * ENCAPSULATED + (lossy as u8) * LOSSY;
        TransferSyntax { uid, name: "Private", encoding, flags }
    }

    /// Every transfer syntax known here.
    pub fn all() -> impl Iterator<Item = TransferSyntax> {
        TABLE.iter().copied()
    }

    /// Its UID.
    pub const fn uid(&self) -> &Uid {
        &self.uid
    }

    /// Its name in PS3.6, without "(Retired)".
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// How data elements are encoded, after inflating if [`Self::is_deflated`].
    pub const fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// The whole data set is a raw deflate stream (PS3.5 A.5).
    pub const fn is_deflated(&self) -> bool {
        self.flags & DEFLATED != 0
    }

    /// Pixel data comes in fragments (PS3.5 A.4).
    pub const fn is_encapsulated(&self) -> bool {
        self.flags & ENCAPSULATED != 0
    }

    /// Pixel data may have been compressed with loss. False for syntaxes that only refer to pixel data (JPIP).
    pub const fn may_be_lossy(&self) -> bool {
        self.flags & LOSSY != 0
    }

    /// Retired from the standard; still found in archives.
    pub const fn is_retired(&self) -> bool {
        self.flags & RETIRED != 0
    }

    /// Usable for messages on an association. The video streams of SMPTE ST 2110 and the XML encoding are not.
    pub const fn is_for_associations(&self) -> bool {
        self.flags & NO_DIMSE == 0
    }
}

const fn row(uid: &str, name: &'static str, encoding: Encoding, flags: u8) -> TransferSyntax {
    TransferSyntax { uid: Uid::literal(uid), name, encoding, flags }
}

#[rustfmt::skip]
static TABLE: &[TransferSyntax] = &[
    row("1.2.840.10008.1.2", "Implicit VR Little Endian", ImplicitLe, 0),
    row("1.2.840.10008.1.2.1", "Explicit VR Little Endian", ExplicitLe, 0),
    row("1.2.840.10008.1.2.1.98", "Encapsulated Uncompressed Explicit VR Little Endian", ExplicitLe, ENCAPSULATED),
    row("1.2.840.10008.1.2.1.99", "Deflated Explicit VR Little Endian", ExplicitLe, DEFLATED),
    row("1.2.840.10008.1.2.2", "Explicit VR Big Endian", ExplicitBe, RETIRED),
    row("1.2.840.10008.1.2.4.100", "MPEG2 Main Profile / Main Level", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.100.1", "Fragmentable MPEG2 Main Profile / Main Level", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.101", "MPEG2 Main Profile / High Level", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.101.1", "Fragmentable MPEG2 Main Profile / High Level", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.102", "MPEG-4 AVC/H.264 High Profile / Level 4.1", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.102.1", "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.1", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.103", "MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.103.1", "Fragmentable MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.104", "MPEG-4 AVC/H.264 High Profile / Level 4.2 For 2D Video", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.104.1", "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.2 For 2D Video", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.105", "MPEG-4 AVC/H.264 High Profile / Level 4.2 For 3D Video", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.105.1", "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.2 For 3D Video", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.106", "MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.106.1", "Fragmentable MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.107", "HEVC/H.265 Main Profile / Level 5.1", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.108", "HEVC/H.265 Main 10 Profile / Level 5.1", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.110", "JPEG XL Lossless", ExplicitLe, ENCAPSULATED),
    row("1.2.840.10008.1.2.4.111", "JPEG XL JPEG Recompression", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.112", "JPEG XL", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.201", "High-Throughput JPEG 2000 Image Compression (Lossless Only)", ExplicitLe, ENCAPSULATED),
    row("1.2.840.10008.1.2.4.202", "High-Throughput JPEG 2000 with RPCL Options Image Compression (Lossless Only)", ExplicitLe, ENCAPSULATED),
    row("1.2.840.10008.1.2.4.203", "High-Throughput JPEG 2000 Image Compression", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.204", "JPIP HTJ2K Referenced", ExplicitLe, 0),
    row("1.2.840.10008.1.2.4.205", "JPIP HTJ2K Referenced Deflate", ExplicitLe, DEFLATED),
    row("1.2.840.10008.1.2.4.50", "JPEG Baseline (Process 1)", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.51", "JPEG Extended (Process 2 & 4)", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.52", "JPEG Extended (Process 3 & 5)", ExplicitLe, ENCAPSULATED | LOSSY | RETIRED),
    row("1.2.840.10008.1.2.4.53", "JPEG Spectral Selection, Non-Hierarchical (Process 6 & 8)", ExplicitLe, ENCAPSULATED | LOSSY | RETIRED),
    row("1.2.840.10008.1.2.4.54", "JPEG Spectral Selection, Non-Hierarchical (Process 7 & 9)", ExplicitLe, ENCAPSULATED | LOSSY | RETIRED),
    row("1.2.840.10008.1.2.4.55", "JPEG Full Progression, Non-Hierarchical (Process 10 & 12)", ExplicitLe, ENCAPSULATED | LOSSY | RETIRED),
    row("1.2.840.10008.1.2.4.56", "JPEG Full Progression, Non-Hierarchical (Process 11 & 13)", ExplicitLe, ENCAPSULATED | LOSSY | RETIRED),
    row("1.2.840.10008.1.2.4.57", "JPEG Lossless, Non-Hierarchical (Process 14)", ExplicitLe, ENCAPSULATED),
    row("1.2.840.10008.1.2.4.58", "JPEG Lossless, Non-Hierarchical (Process 15)", ExplicitLe, ENCAPSULATED | RETIRED),
    row("1.2.840.10008.1.2.4.59", "JPEG Extended, Hierarchical (Process 16 & 18)", ExplicitLe, ENCAPSULATED | LOSSY | RETIRED),
    row("1.2.840.10008.1.2.4.60", "JPEG Extended, Hierarchical (Process 17 & 19)", ExplicitLe, ENCAPSULATED | LOSSY | RETIRED),
    row("1.2.840.10008.1.2.4.61", "JPEG Spectral Selection, Hierarchical (Process 20 & 22)", ExplicitLe, ENCAPSULATED | LOSSY | RETIRED),
    row("1.2.840.10008.1.2.4.62", "JPEG Spectral Selection, Hierarchical (Process 21 & 23)", ExplicitLe, ENCAPSULATED | LOSSY | RETIRED),
    row("1.2.840.10008.1.2.4.63", "JPEG Full Progression, Hierarchical (Process 24 & 26)", ExplicitLe, ENCAPSULATED | LOSSY | RETIRED),
    row("1.2.840.10008.1.2.4.64", "JPEG Full Progression, Hierarchical (Process 25 & 27)", ExplicitLe, ENCAPSULATED | LOSSY | RETIRED),
    row("1.2.840.10008.1.2.4.65", "JPEG Lossless, Hierarchical (Process 28)", ExplicitLe, ENCAPSULATED | RETIRED),
    row("1.2.840.10008.1.2.4.66", "JPEG Lossless, Hierarchical (Process 29)", ExplicitLe, ENCAPSULATED | RETIRED),
    row("1.2.840.10008.1.2.4.70", "JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14 [Selection Value 1])", ExplicitLe, ENCAPSULATED),
    row("1.2.840.10008.1.2.4.80", "JPEG-LS Lossless Image Compression", ExplicitLe, ENCAPSULATED),
    row("1.2.840.10008.1.2.4.81", "JPEG-LS Lossy (Near-Lossless) Image Compression", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.90", "JPEG 2000 Image Compression (Lossless Only)", ExplicitLe, ENCAPSULATED),
    row("1.2.840.10008.1.2.4.91", "JPEG 2000 Image Compression", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.92", "JPEG 2000 Part 2 Multi-component Image Compression (Lossless Only)", ExplicitLe, ENCAPSULATED),
    row("1.2.840.10008.1.2.4.93", "JPEG 2000 Part 2 Multi-component Image Compression", ExplicitLe, ENCAPSULATED | LOSSY),
    row("1.2.840.10008.1.2.4.94", "JPIP Referenced", ExplicitLe, 0),
    row("1.2.840.10008.1.2.4.95", "JPIP Referenced Deflate", ExplicitLe, DEFLATED),
    row("1.2.840.10008.1.2.5", "RLE Lossless", ExplicitLe, ENCAPSULATED),
    row("1.2.840.10008.1.2.6.1", "RFC 2557 MIME encapsulation", ExplicitLe, RETIRED),
    row("1.2.840.10008.1.2.6.2", "XML Encoding", ExplicitLe, RETIRED | NO_DIMSE),
    row("1.2.840.10008.1.2.7.1", "SMPTE ST 2110-20 Uncompressed Progressive Active Video", ExplicitLe, NO_DIMSE),
    row("1.2.840.10008.1.2.7.2", "SMPTE ST 2110-20 Uncompressed Interlaced Active Video", ExplicitLe, NO_DIMSE),
    row("1.2.840.10008.1.2.7.3", "SMPTE ST 2110-30 PCM Digital Audio", ExplicitLe, NO_DIMSE),
    row("1.2.840.10008.1.2.8.1", "Deflated Image Frame Compression", ExplicitLe, ENCAPSULATED),
    row("1.2.840.10008.1.20", "Papyrus 3 Implicit VR Little Endian", ImplicitLe, RETIRED),
    // Private, but met in the field often enough.
    row("1.2.840.113619.5.2", "GE Private Implicit VR, Big Endian Pixel Data", ImplicitLe, 0),
    row("1.3.46.670589.33.1.4.1", "Philips Private Explicit VR Little Endian", ExplicitLe, 0),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_uid_occurs_once_and_is_found() {
        for row in TransferSyntax::all() {
            assert_eq!(TransferSyntax::all().filter(|other| other.uid == row.uid).count(), 1, "{}", row.uid);
            assert_eq!(TransferSyntax::of(row.uid()), Some(row));
        }
        assert_eq!(TransferSyntax::of(&Uid::literal("1.2.3")), None);
    }

    #[test]
    fn named_constants_are_the_rows() {
        for named in [TransferSyntax::IMPLICIT_VR_LE, TransferSyntax::EXPLICIT_VR_LE, TransferSyntax::EXPLICIT_VR_BE] {
            assert_eq!(TransferSyntax::of(named.uid()), Some(named));
        }
    }

    #[test]
    fn properties_of_a_few() {
        let of = |uid| {
            TransferSyntax::of(&Uid::literal(uid)).map(|t| (t.is_deflated(), t.is_encapsulated(), t.may_be_lossy()))
        };
        assert_eq!(of("1.2.840.10008.1.2.1.99"), Some((true, false, false)));
        assert_eq!(of("1.2.840.10008.1.2.4.50"), Some((false, true, true)));
        assert_eq!(of("1.2.840.10008.1.2.4.70"), Some((false, true, false)));
        assert_eq!(of("1.2.840.10008.1.2.5"), Some((false, true, false)));
        assert_eq!(of("1.2.840.113619.5.2"), Some((false, false, false)));
    }
}
