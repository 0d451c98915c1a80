//! `docs/FORMAT.md` and the files of earlier releases against the code.
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::path::Path;

use alloy::primitives::B256;
use dicom_scp::Uid;
use pgp::crypto::aead::{AeadAlgorithm, ChunkSize, StreamDecryptor};
use pgp::crypto::sym::SymmetricKeyAlgorithm;
use sha2::{Digest, Sha256};

use super::container::{SealOptions, seal_bytes, unseal_bytes};
use super::keys::SessionKey;
use super::manifest::{Manifest, ManifestObject, ManifestPreview, PreviewKind};
use super::pieces::{PieceMap, split};

/// The hexadecimal digits of the fenced block that follows this heading in `docs/FORMAT.md`; `#` begins a comment.
fn example(heading: &str) -> Vec<u8> {
    let text = include_str!("../../../docs/FORMAT.md");
    let block = text.split(&format!("\n#### {heading}\n")).nth(1).unwrap().split("```").nth(1).unwrap();
    let digits: String = block.lines().skip(1).map(|line| line.split('#').next().unwrap().replace(' ', "")).collect();
    hex::decode(digits).unwrap()
}

fn shown(bytes: &[u8]) -> String {
    bytes.chunks(16).map(|line| hex::encode(line) + "\n").collect()
}

fn key() -> SessionKey {
    SessionKey::from_bytes(&[0x42; 32])
}

const IMAGE: B256 = B256::repeat_byte(0x11);

/// The manifest of the documentation: one object, one preview.
fn manifest() -> Manifest {
    let uid = |text: &str| Uid::new(text).unwrap();
    let digest = |byte: u8| [byte; 32];
    Manifest {
        study_uid: uid("1.2.3"),
        version: 1,
        created_ms: 1_700_000_000_000,
        objects: vec![ManifestObject {
            sop_class_uid: uid("1.2.840.10008.5.1.4.1.1.7"),
            sop_instance_uid: uid("1.2.3.4.5"),
            series_uid: uid("1.2.3.4"),
            transfer_syntax: uid("1.2.840.10008.1.2.1"),
            file_bytes: 526_336,
            file_sha256: digest(0xA1),
            dataset_sha256: digest(0xA2),
            pixel_sha256: Some(digest(0xA3)),
            header: b"\x08\x00\x60\x00CS\x02\x00OT".to_vec(),
            image: B256::from(digest(0xA4)),
            epoch: 1,
            map: Some(PieceMap {
                pieces: 3,
                sealed_bytes: 300_000,
                piece_bytes: 120_000,
                root: B256::from(digest(0xA5)),
            }),
            meta_bytes: 334,
            by_series: true,
            link: None,
        }],
        previews: vec![ManifestPreview {
            subject: uid("1.2.3.4"),
            kind: PreviewKind::Series,
            media_type: "image/jpeg".to_owned(),
            width: 512,
            height: 512,
            sha256: digest(0xB1),
            image: B256::from(digest(0xB2)),
            epoch: 1,
            map: PieceMap { pieces: 1, sealed_bytes: 24_000, piece_bytes: 120_000, root: B256::from(digest(0xB3)) },
            series: Some(uid("1.2.3.4")),
        }],
        series: None,
    }
}

/// The same as format version 1 had it, before series had keys.
fn manifest_without_series() -> Manifest {
    let mut manifest = manifest();
    manifest.objects.iter_mut().for_each(|object| object.by_series = false);
    manifest.previews.iter_mut().for_each(|preview| preview.series = None);
    manifest
}

/// The same with the object's bytes at its source.
fn manifest_at_source() -> Manifest {
    let mut manifest = manifest();
    manifest.objects.iter_mut().for_each(|object| object.map = None);
    manifest
}

#[test]
fn the_documented_manifest_is_the_code_s() {
    let bytes = manifest().encode();
    assert_eq!(shown(&example("Example manifest")), shown(&bytes));
    assert_eq!(Manifest::decode(&bytes).unwrap(), manifest());
}

#[test]
fn the_documented_container_opens_and_holds_what_the_document_says() {
    let sealed = example("Example container");
    assert_eq!(unseal_bytes(&sealed, &key(), &IMAGE, 5).unwrap(), b"DICOM");
    // Type octet, length, SEIPD parameters, salt; then the encrypted part.
    let salt: [u8; 32] = sealed[10..42].try_into().unwrap();
    let (cipher, mode, chunk) = (SymmetricKeyAlgorithm::AES256, AeadAlgorithm::Ocb, ChunkSize::C64KiB);
    let mut inner = Vec::new();
    let decryptor = StreamDecryptor::new_rfc9580(cipher, mode, chunk, &salt, key().expose(), &sealed[42..]);
    decryptor.unwrap().read_to_end(&mut inner).unwrap();
    assert_eq!(shown(&example("Example content")), shown(&inner));
    // Only the same zstd makes the same bytes again; any zstd opens them.
    if zstd::zstd_safe::version_number() == 10_507 {
        let (again, _) = seal_bytes(b"DICOM", &key(), &IMAGE, SealOptions::default()).unwrap();
        assert_eq!(shown(&again), shown(&sealed));
    }
}

#[test]
fn the_documented_keys_are_the_code_s() {
    assert_eq!(shown(&example("Example preview key")), shown(key().preview_key().expose()));
    assert_eq!(shown(&example("Example public key")), shown(SessionKey::public(&[0x42; 32]).expose()));
    let series = Uid::new("1.2.3.4").unwrap();
    assert_eq!(shown(&example("Example key of a series' objects")), shown(key().of_series(&series).expose()));
    let previews = key().preview_key().of_series(&series);
    assert_eq!(shown(&example("Example key of a series' previews")), shown(previews.expose()));
}

#[test]
fn the_documented_pieces_are_the_code_s() {
    let mut pieces = Vec::new();
    let map = split(&mut &example("Example container")[..], 100, |_, piece| {
        pieces.push(piece.to_vec());
        Ok(())
    });
    let root = example("Example root");
    assert_eq!(shown(map.unwrap().root.as_slice()), shown(&root));
}

/// What the golden files hold: enough for several blocks and chunks, compressible in part.
fn golden_plain() -> Vec<u8> {
    (0..200_000_u32).map(|i| if i % 3 == 0 { (i.wrapping_mul(2_654_435_761) >> 24) as u8 } else { 7 }).collect()
}

/// Files written by released versions. They are only ever added to: every later version must open all of them.
#[test]
fn files_of_every_released_format_still_open() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/payload/fixtures");
    let options = [("v1", None), ("v1-padded", Some(70_000))];
    for (name, pad_to_bytes) in options {
        let path = directory.join(format!("{name}.sealed"));
        if std::env::var_os("PACS_BRIDGE_WRITE_FIXTURES").is_some() {
            let options = SealOptions { pad_to_bytes, ..SealOptions::default() };
            std::fs::write(&path, seal_bytes(&golden_plain(), &key(), &IMAGE, options).unwrap().0).unwrap();
        }
        let sealed = std::fs::read(path).unwrap();
        assert!(unseal_bytes(&sealed, &key(), &IMAGE, 200_000).unwrap() == golden_plain(), "{name}");
        assert!(pad_to_bytes.is_none() || sealed.len().is_multiple_of(70_000));
    }
    assert_eq!(hex::encode(Sha256::digest(golden_plain())), GOLDEN_SHA256);
    let one_series = manifest().of_series(&Uid::new("1.2.3.4").unwrap());
    let of_version_3 = manifest_at_source();
    for (name, manifest) in [
        ("v1", manifest_without_series()),
        ("v2", manifest()),
        ("v2-series", one_series),
        ("v3-at-source", of_version_3),
    ] {
        let path = directory.join(format!("{name}.manifest"));
        if std::env::var_os("PACS_BRIDGE_WRITE_FIXTURES").is_some() {
            std::fs::write(&path, manifest.encode()).unwrap();
        }
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest, "{name}");
        assert_eq!(manifest.encode(), bytes, "{name}: one encoding for good");
    }
}

const GOLDEN_SHA256: &str = "0a85cd46bd568e39ae747e2ae3569b83cc3b448308c383ff190ee54aaeb7a823";
