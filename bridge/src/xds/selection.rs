//! The manifest of a study for XDS-I.b: a Key Object Selection Document that names every object (PS3.3 A.35.4, PS3.16 TID 2010;
//! RAD TF-3 4.68.4.1.2.3). Pure.
//!
//! The same version of a study gives the same bytes for ever, whatever the configuration says meanwhile: UIDs go over the study's manifest,
//! times are those of the manifest. So it says where the objects are by the one name of this source that never changes.

use std::collections::HashMap;

use dicom_scp::dataset::{DataSet, Element, Encoding, ReadOptions, Tag, VR, read};
use dicom_scp::{TransferSyntax, Uid};
use sha2::{Digest, Sha256};

use crate::archive::FileMeta;
use crate::payload::manifest::{Manifest, ManifestObject};
use crate::study::derived_uid;

/// Key Object Selection Document Storage (PS3.4 B.5).
const KEY_OBJECT_SELECTION: Uid = Uid::literal("1.2.840.10008.5.1.4.1.1.88.59");
/// Every waveform storage class begins with this (PS3.4 B.5).
const WAVEFORMS: &str = "1.2.840.10008.5.1.4.1.1.9.";
/// What sets the UIDs of these documents apart from all others that are derived.
const DOMAIN: &str = "pacs-bridge/kos/1";

/// Attributes of patient and study that are said as the study's first object says them, and whether they must be there, if only
/// without a value (PS3.3 C.7.1.1, C.7.2.1).
const OF_STUDY: [(Tag, VR, bool); 13] = [
    (Tag(0x0008, 0x0005), VR::CS, false),
    (Tag(0x0008, 0x0020), VR::DA, true),
    (Tag(0x0008, 0x0030), VR::TM, true),
    (Tag(0x0008, 0x0050), VR::SH, true),
    (Tag(0x0008, 0x0051), VR::SQ, false),
    (Tag(0x0008, 0x0090), VR::PN, true),
    (Tag(0x0008, 0x1030), VR::LO, false),
    (Tag(0x0010, 0x0010), VR::PN, true),
    (Tag(0x0010, 0x0020), VR::LO, true),
    (Tag(0x0010, 0x0021), VR::LO, false),
    (Tag(0x0010, 0x0030), VR::DA, true),
    (Tag(0x0010, 0x0040), VR::CS, true),
    (Tag(0x0020, 0x0010), VR::SH, true),
];

/// The document for a version of a study, as a whole Part 10 file. `location` is the Retrieve Location UID, which RAD-69 takes as
/// RepositoryUniqueId. `None` for a study without objects, which has no such document, because it must name one.
pub(super) fn key_object_selection(manifest: &Manifest, location: &Uid) -> Option<Vec<u8>> {
    let first = manifest.objects.first()?;
    let digest: [u8; 32] = Sha256::digest(manifest.encode()).into();
    let study = manifest.study_uid.as_str();
    let sop_instance = derived_uid(DOMAIN, &["document", study, location.as_str()], &digest)?;
    let series = derived_uid(DOMAIN, &["series", study, location.as_str()], &[])?;

    let mut set = of_study(first);
    set.put_uid(Tag(0x0008, 0x0016), &KEY_OBJECT_SELECTION);
    set.put_uid(Tag(0x0008, 0x0018), &sop_instance);
    set.put_uid(Tag(0x0020, 0x000D), &manifest.study_uid);
    set.extend(series_and_equipment(&series));
    set.extend(document(manifest, location));
    set.extend(content(manifest));

    let transfer_syntax = *TransferSyntax::EXPLICIT_VR_LE.uid();
    let mut file = FileMeta { sop_class: KEY_OBJECT_SELECTION, sop_instance, transfer_syntax }.encode();
    file.extend(set.write(Encoding::ExplicitLe));
    Some(file)
}

/// Patient and General Study modules, but for the study's UID.
fn of_study(object: &ManifestObject) -> DataSet {
    let header = read(&object.header, Encoding::ExplicitLe, &ReadOptions::default());
    let header = header.map(|(header, _)| header).unwrap_or_default();
    let said = |(tag, vr, needed): (Tag, VR, bool)| {
        let found = header.get(tag).cloned();
        found.or_else(|| needed.then(|| Element::empty(vr))).map(|element| (tag, element))
    };
    OF_STUDY.into_iter().filter_map(said).collect()
}

/// Key Object Document Series and General Equipment modules (PS3.3 C.17.6.1, C.7.5.1).
fn series_and_equipment(series: &Uid) -> DataSet {
    let mut set = DataSet::default();
    set.put_text(Tag(0x0008, 0x0060), VR::CS, "KO");
    set.put_uid(Tag(0x0020, 0x000E), series);
    set.put_text(Tag(0x0020, 0x0011), VR::IS, "1");
    set.put(Tag(0x0008, 0x1111), Element::empty(VR::SQ));
    set.put_text(Tag(0x0008, 0x0070), VR::LO, "PACS Bridge");
    set
}

/// Key Object Document module (PS3.3 C.17.6.2).
fn document(manifest: &Manifest, location: &Uid) -> DataSet {
    let mut set = DataSet::default();
    let made = ihe_retrieve::time::format(i64::try_from(manifest.created_ms).unwrap_or(i64::MAX));
    let digits: String = made.chars().filter(char::is_ascii_digit).collect();
    let (date, time) = digits.split_at(8);
    set.put_text(Tag(0x0008, 0x0023), VR::DA, date);
    set.put_text(Tag(0x0008, 0x0033), VR::TM, &format!("{}.{}", &time[..6], &time[6..]));
    set.put_text(Tag(0x0020, 0x0013), VR::IS, &manifest.version.to_string());
    let mut study = DataSet::default();
    study.put_uid(Tag(0x0020, 0x000D), &manifest.study_uid);
    let mut listed: Vec<(Uid, Vec<DataSet>)> = Vec::new();
    let mut places: HashMap<Uid, usize> = HashMap::new();
    for object in &manifest.objects {
        let place = *places.entry(object.series_uid).or_insert(listed.len());
        if place == listed.len() {
            listed.push((object.series_uid, Vec::new()));
        }
        listed[place].1.push(reference(object));
    }
    let of_series = |(series, objects): (Uid, Vec<DataSet>)| {
        let mut item = DataSet::default();
        item.put(Tag(0x0008, 0x1199), Element::sequence(objects));
        item.put_uid(Tag(0x0020, 0x000E), &series);
        item.put_uid(Tag(0x0040, 0xE011), location);
        item
    };
    study.put(Tag(0x0008, 0x1115), Element::sequence(listed.into_iter().map(of_series).collect()));
    set.put(Tag(0x0040, 0xA375), Element::sequence(vec![study]));
    set
}

/// SR Document Content module (PS3.3 C.17.3) by TID 2010.
fn content(manifest: &Manifest) -> DataSet {
    let mut set = DataSet::default();
    set.put_text(Tag(0x0040, 0xA040), VR::CS, "CONTAINER");
    let mut title = DataSet::default();
    title.put_text(Tag(0x0008, 0x0100), VR::SH, "113030");
    title.put_text(Tag(0x0008, 0x0102), VR::SH, "DCM");
    title.put_text(Tag(0x0008, 0x0104), VR::LO, "Manifest");
    set.put(Tag(0x0040, 0xA043), Element::sequence(vec![title]));
    set.put_text(Tag(0x0040, 0xA050), VR::CS, "SEPARATE");
    let mut template = DataSet::default();
    template.put_text(Tag(0x0008, 0x0105), VR::CS, "DCMR");
    template.put_text(Tag(0x0040, 0xDB00), VR::CS, "2010");
    set.put(Tag(0x0040, 0xA504), Element::sequence(vec![template]));
    let named = |object: &ManifestObject| {
        let mut item = DataSet::default();
        item.put_text(Tag(0x0040, 0xA010), VR::CS, "CONTAINS");
        item.put_text(Tag(0x0040, 0xA040), VR::CS, value_type(object));
        item.put(Tag(0x0008, 0x1199), Element::sequence(vec![reference(object)]));
        item
    };
    set.put(Tag(0x0040, 0xA730), Element::sequence(manifest.objects.iter().map(named).collect()));
    set
}

/// SOP Instance Reference macro (PS3.3 10.8).
fn reference(object: &ManifestObject) -> DataSet {
    let mut item = DataSet::default();
    item.put_uid(Tag(0x0008, 0x1150), &object.sop_class_uid);
    item.put_uid(Tag(0x0008, 0x1155), &object.sop_instance_uid);
    item
}

/// Value Type of the content item that names an object (PS3.3 C.17.3.2.1).
fn value_type(object: &ManifestObject) -> &'static str {
    match object.pixel_sha256 {
        Some(_) => "IMAGE",
        None if object.sop_class_uid.as_str().starts_with(WAVEFORMS) => "WAVEFORM",
        None => "COMPOSITE",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::payload::pieces::PieceMap;
    use alloy::primitives::B256;

    fn object(series: &str, instance: &str, class: &str, pixels: bool) -> ManifestObject {
        let mut header = DataSet::default();
        header.put_text(Tag(0x0008, 0x0005), VR::CS, "ISO_IR 100");
        header.put(Tag(0x0010, 0x0010), Element::bytes(VR::PN, *b"M\xFCller^A "));
        header.put_text(Tag(0x0028, 0x0010), VR::US, "");
        let uid = |text: &str| Uid::new(text).unwrap();
        ManifestObject {
            sop_class_uid: uid(class),
            sop_instance_uid: uid(instance),
            series_uid: uid(series),
            transfer_syntax: *TransferSyntax::EXPLICIT_VR_LE.uid(),
            file_bytes: 1,
            file_sha256: [1; 32],
            dataset_sha256: [2; 32],
            pixel_sha256: pixels.then_some([3; 32]),
            header: header.write(Encoding::ExplicitLe),
            image: B256::ZERO,
            epoch: 0,
            map: Some(PieceMap { pieces: 1, piece_bytes: 1, sealed_bytes: 1, root: B256::ZERO }),
            meta_bytes: 0,
            by_series: true,
            link: None,
        }
    }

    fn manifest() -> Manifest {
        Manifest {
            study_uid: Uid::literal("1.2"),
            version: 3,
            created_ms: 1_795_903_200_123,
            objects: vec![
                object("1.2.2", "1.2.2.9", "1.2.840.10008.5.1.4.1.1.2", true),
                object("1.2.1", "1.2.1.1", "1.2.840.10008.5.1.4.1.1.9.1.1", false),
                object("1.2.2", "1.2.2.1", "1.2.840.10008.5.1.4.1.1.104.1", false),
            ],
            previews: Vec::new(),
            series: None,
        }
    }

    fn read_file(file: &[u8]) -> DataSet {
        let (meta, begin) = FileMeta::read(&mut &file[..]).unwrap();
        let (set, _) = read(&file[begin as usize..], Encoding::ExplicitLe, &ReadOptions::default()).unwrap();
        assert_eq!(set.uid(Tag(0x0008, 0x0018)), Some(meta.sop_instance));
        set
    }

    #[test]
    fn it_names_every_object_once_in_the_manifests_order() {
        let location = Uid::literal("2.25.7");
        let set = read_file(&key_object_selection(&manifest(), &location).unwrap());
        assert_eq!(set.text(Tag(0x0010, 0x0010)).as_deref(), Some("Müller^A"));
        assert!(set.contains(Tag(0x0010, 0x0020)) && !set.contains(Tag(0x0028, 0x0010)));
        let made = (set.text(Tag(0x0008, 0x0023)), set.text(Tag(0x0008, 0x0033)));
        assert_eq!(made, (Some("20261128".into()), Some("220000.123".into())));
        let study = &set.items(Tag(0x0040, 0xA375)).unwrap()[0];
        let listed: Vec<_> = study
            .items(Tag(0x0008, 0x1115))
            .unwrap()
            .iter()
            .map(|series| {
                assert_eq!(series.uid(Tag(0x0040, 0xE011)), Some(location));
                let objects = series.items(Tag(0x0008, 0x1199)).unwrap();
                let objects: Vec<_> = objects.iter().map(|o| o.text(Tag(0x0008, 0x1155)).unwrap()).collect();
                (series.text(Tag(0x0020, 0x000E)).unwrap(), objects)
            })
            .collect();
        let expected = [("1.2.2", vec!["1.2.2.9", "1.2.2.1"]), ("1.2.1", vec!["1.2.1.1"])];
        assert_eq!(listed, expected.map(|(s, o)| (s.to_owned(), o.into_iter().map(str::to_owned).collect())));
        let content = set.items(Tag(0x0040, 0xA730)).unwrap();
        let types: Vec<_> = content.iter().map(|item| item.text(Tag(0x0040, 0xA040)).unwrap()).collect();
        assert_eq!(types, ["IMAGE", "WAVEFORM", "COMPOSITE"]);
    }

    #[test]
    fn the_same_version_is_the_same_bytes_and_another_is_another_document_of_the_same_series() {
        let location = Uid::literal("2.25.7");
        let first = key_object_selection(&manifest(), &location).unwrap();
        assert_eq!(first, key_object_selection(&manifest(), &location).unwrap());
        let next = Manifest { version: 4, ..manifest() };
        let (first, next) = (read_file(&first), read_file(&key_object_selection(&next, &location).unwrap()));
        let of = |set: &DataSet, tag| set.uid(tag).unwrap();
        assert_ne!(of(&first, Tag(0x0008, 0x0018)), of(&next, Tag(0x0008, 0x0018)));
        assert_eq!(of(&first, Tag(0x0020, 0x000E)), of(&next, Tag(0x0020, 0x000E)));
        assert_eq!(key_object_selection(&Manifest { objects: Vec::new(), ..manifest() }, &location), None);
    }
}
