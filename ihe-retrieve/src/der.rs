//! As much of DER (X.690) as it takes to find the SubjectPublicKeyInfo of an X.509 certificate, and to wrap one in a certificate.
//!
//! A certificate is only an envelope for a key here: issuer, validity, extensions and its signature are skipped, not judged. That needs
//! tags and lengths and nothing else, which is why no X.509 library is used.

pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OID: u8 = 0x06;
pub(crate) const UTF8_STRING: u8 = 0x0c;
pub(crate) const UTC_TIME: u8 = 0x17;
pub(crate) const GENERALIZED_TIME: u8 = 0x18;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;
pub(crate) const VERSION: u8 = 0xa0;

/// id-ecPublicKey, 1.2.840.10045.2.1
pub(crate) const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
/// secp256k1, 1.3.132.0.10
pub(crate) const SECP256K1: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x0a];
/// prime256v1, 1.2.840.10045.3.1.7
pub(crate) const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// ecdsa-with-SHA256, 1.2.840.10045.4.3.2
pub(crate) const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// commonName, 2.5.4.3
pub(crate) const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// A cursor over the elements of one level.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Der(bytes)
    }

    /// The next element whatever its tag: tag, whole encoding, contents. Lengths must be definite and minimal, tags of one octet.
    fn any(&mut self) -> Option<(u8, &'a [u8], &'a [u8])> {
        let (tag, first) = (*self.0.first()?, *self.0.get(1)?);
        let octets = match first {
            0..=0x7f => 0,
            0x81..=0x83 => usize::from(first & 0x7f),
            _ => return None,
        };
        let header = 2 + octets;
        let long = self.0.get(2..header)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        let length = if octets == 0 { usize::from(first) } else { long };
        let minimal = octets == 0 || (length > 0x7f && length >> (8 * (octets - 1)) != 0);
        let whole = self.0.get(..header + length).filter(|_| minimal && tag & 0x1f != 0x1f)?;
        self.0 = &self.0[whole.len()..];
        Some((tag, whole, &whole[header..]))
    }

    /// The contents of the next element, which must have this tag.
    pub(crate) fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.any().filter(|(found, _, _)| *found == tag).map(|(_, _, contents)| contents)
    }

    /// The next element, contents as a level of its own.
    pub(crate) fn enter(&mut self, tag: u8) -> Option<Der<'a>> {
        self.take(tag).map(Der)
    }

    /// The whole encoding of the next element, which must have this tag.
    fn take_whole(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.any().filter(|(found, _, _)| *found == tag).map(|(_, whole, _)| whole)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The SubjectPublicKeyInfo of a certificate (RFC 5280 section 4.1).
pub(crate) fn certificate_key(certificate: &[u8]) -> Option<&[u8]> {
    let mut outer = Der::new(certificate);
    let mut fields = outer.enter(SEQUENCE)?;
    let mut tbs = fields.enter(SEQUENCE)?;
    fields.take(SEQUENCE)?;
    fields.take(BIT_STRING)?;
    if !outer.is_empty() || !fields.is_empty() {
        return None;
    }
    let mut versioned = tbs;
    if versioned.take(VERSION).is_some() {
        tbs = versioned;
    }
    tbs.take(INTEGER)?;
    // Signature algorithm, issuer, validity, subject.
    for _ in 0..4 {
        tbs.take(SEQUENCE)?;
    }
    tbs.take_whole(SEQUENCE)
}

/// Curve and point of a SubjectPublicKeyInfo (RFC 5480).
pub(crate) fn public_key_info(spki: &[u8]) -> Option<(KeyKind<'_>, &[u8])> {
    let mut outer = Der::new(spki);
    let mut fields = outer.enter(SEQUENCE)?;
    let mut algorithm = fields.enter(SEQUENCE)?;
    let key = fields.take(BIT_STRING)?;
    if !outer.is_empty() || !fields.is_empty() {
        return None;
    }
    if algorithm.take(OID)? != EC_PUBLIC_KEY {
        return Some((KeyKind::Other, key));
    }
    // A curve given by its parameters instead of its name is of another kind (RFC 5480 forbids it).
    let kind = algorithm.take(OID).filter(|_| algorithm.is_empty()).map_or(KeyKind::Other, KeyKind::Curve);
    let point = key.strip_prefix(&[0])?;
    Some((kind, point))
}

/// What a SubjectPublicKeyInfo is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyKind<'a> {
    /// A named curve, by the contents of its object identifier.
    Curve(&'a [u8]),
    /// Anything else.
    Other,
}

/// One element around the concatenation of parts.
pub(crate) fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let contents = parts.concat();
    let length = contents.len().to_be_bytes();
    let significant = &length[length.iter().position(|b| *b != 0).unwrap_or(length.len() - 1)..];
    let mut out = vec![tag];
    if contents.len() > 0x7f {
        out.push(0x80 | significant.len() as u8);
    }
    out.extend_from_slice(significant);
    out.extend_from_slice(&contents);
    out
}

/// An unsigned number as INTEGER.
pub(crate) fn unsigned(big_endian: &[u8]) -> Vec<u8> {
    let trimmed = &big_endian[big_endian.iter().position(|b| *b != 0).unwrap_or(big_endian.len())..];
    let needs_zero = trimmed.first().is_none_or(|b| b & 0x80 != 0);
    element(INTEGER, &[if needs_zero { &[0] } else { &[] }, trimmed])
}

/// A SubjectPublicKeyInfo with an uncompressed point on a named curve.
pub(crate) fn spki(curve: &[u8], point: &[u8]) -> Vec<u8> {
    let algorithm = element(SEQUENCE, &[&element(OID, &[EC_PUBLIC_KEY]), &element(OID, &[curve])]);
    element(SEQUENCE, &[&algorithm, &element(BIT_STRING, &[&[0], point])])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_definite_and_minimal() {
        for (bytes, contents) in [
            (&[0x30, 0x00][..], Some(0)),
            (&[0x30, 0x80, 0, 0], None),
            (&[0x30, 0x81, 0x01, 0], None),
            (&[0x30, 0x05, 0], None),
            (&[0x30], None),
            (&[], None),
            (&[0x1f, 0x00], None),
            (&[0x30, 0x84, 0, 0, 0, 1, 0], None),
            (&[0x30, 0x82, 0x00, 0x80], None),
        ] {
            assert_eq!(Der::new(bytes).any().map(|(_, _, c)| c.len()), contents, "{bytes:02x?}");
        }
        for length in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0x1_0000] {
            let written = element(SEQUENCE, &[&vec![7; length]]);
            assert_eq!(Der::new(&written).take(SEQUENCE).map(<[u8]>::len), Some(length));
        }
        assert_eq!(unsigned(&[0, 0x80]), [2, 2, 0, 0x80]);
        assert_eq!(unsigned(&[0, 0]), [2, 1, 0]);
        assert_eq!(unsigned(&[0, 0x7f]), [2, 1, 0x7f]);
    }
}
