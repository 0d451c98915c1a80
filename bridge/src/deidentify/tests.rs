//! What must hold whatever comes in; and the cases of the standard one by one.
#![allow(clippy::unwrap_used)]

use std::sync::OnceLock;

use dicom_scp::dataset::{DataSet, Element, Encoding, Tag, VR, dictionary_vr, is_text};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::table::{self, Base, TABLE};
use super::*;

const CT: &str = "1.2.840.10008.5.1.4.1.1.2";
const US: &str = "1.2.840.10008.5.1.4.1.1.6.1";
const STUDY_DATE: Tag = Tag(0x0008, 0x0020);
const PIXEL_DATA: Tag = Tag(0x7FE0, 0x0010);

fn key() -> Key {
    Key::from_bytes([7; 32])
}

fn deidentifier(options: &[ProfileOption]) -> Deidentifier {
    Deidentifier::new(key(), Options::new(options.iter().copied()).unwrap(), Rules::default())
}

fn object(class: &str) -> DataSet {
    let mut set = DataSet::new();
    set.put_text(Tag(0x0008, 0x0016), VR::UI, class);
    set.put_text(Tag(0x0008, 0x0018), VR::UI, "1.2.3.4");
    set.put_text(Tag(0x0020, 0x000D), VR::UI, "1.2.3");
    set.put_text(PATIENT_ID, VR::LO, "4711");
    set
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|run| run == needle)
}

/// Every attribute that the dictionary knows in the groups of data sets.
fn known_tags() -> &'static [Tag] {
    static TAGS: OnceLock<Vec<Tag>> = OnceLock::new();
    TAGS.get_or_init(|| {
        let groups =
            TABLE.iter().map(|row| (row.0 >> 16) as u16).chain([0x0028, 0x0054, 0x0022, 0x0048, 0x0062, 0x0066]);
        let mut groups: Vec<u16> = groups.filter(|group| *group >= 8).collect();
        groups.sort_unstable();
        groups.dedup();
        let all = groups.into_iter().flat_map(|group| (1..=u16::MAX).map(move |element| Tag(group, element)));
        all.filter(|tag| dictionary_vr(*tag).is_some()).collect()
    })
}

/// Data sets in which every value is a secret of its own, and where each secret was put.
struct Planter {
    rng: ChaCha8Rng,
    planted: Vec<Secret>,
    reports: bool,
}

impl Planter {
    fn secret(&mut self, vr: VR, path: &[Tag]) -> Element {
        let number = self.planted.len();
        let (text, sought) = match vr {
            VR::UI => (format!("1.2.826.9{number:08}.1"), format!("826.9{number:08}")),
            VR::DS | VR::IS => (format!("9{number:011}"), format!("9{number:011}")),
            _ => (format!("Zq{number:05}x"), format!("Zq{number:05}x")),
        };
        self.planted.push((sought.into_bytes(), path.to_vec()));
        let mut bytes = text.into_bytes();
        if !bytes.len().is_multiple_of(2) {
            bytes.push(0);
        }
        Element::bytes(vr, bytes)
    }

    fn fill(&mut self, set: &mut DataSet, path: &mut Vec<Tag>, count: usize) {
        for _ in 0..count {
            let tag = self.tag();
            // These would be refused, not cleaned.
            let is_refused = (tag == Tag(0x0040, 0xA730) && !self.reports) || tag == Tag(0x0042, 0x0011);
            if set.contains(tag) || is_refused {
                continue;
            }
            path.push(tag);
            let vr = if !tag.0.is_multiple_of(2) { self.private_vr(tag) } else { dictionary_vr(tag).unwrap_or(VR::UN) };
            let element = match vr {
                VR::SQ if path.len() < 4 => {
                    let mut item = DataSet::new();
                    self.fill(&mut item, path, 6);
                    Element::sequence(vec![item])
                }
                VR::SQ => Element::sequence(Vec::new()),
                vr => self.secret(vr, path),
            };
            set.put(tag, element);
            path.pop();
        }
    }

    fn tag(&mut self) -> Tag {
        match self.rng.gen_range(0..10) {
            0..5 => {
                let row = TABLE[self.rng.gen_range(0..TABLE.len())].0;
                Tag((row >> 16) as u16, row as u16)
            }
            5..8 => known_tags()[self.rng.gen_range(0..known_tags().len())],
            8 => {
                Tag(self.rng.gen_range(4..0x40) * 2 + 1, self.rng.gen_range(0x10..0x12) << 8 | self.rng.gen_range(0..4))
            }
            _ => Tag(self.rng.gen_range(4..0x7FFF) * 2, self.rng.r#gen()),
        }
    }

    fn private_vr(&mut self, tag: Tag) -> VR {
        let vrs = [VR::LO, VR::UN, VR::DS, VR::SQ, VR::OB, VR::PN];
        if tag.1 < 0x1000 { VR::LO } else { vrs[self.rng.gen_range(0..vrs.len())] }
    }
}

/// A secret's bytes and where it is: the tags from the top down.
type Secret = (Vec<u8>, Vec<Tag>);

fn planted(seed: u64, options: &Options) -> (DataSet, Vec<Secret>) {
    let reports = options.has(ProfileOption::CleanStructuredContent);
    let mut planter = Planter { rng: ChaCha8Rng::seed_from_u64(seed), planted: Vec::new(), reports };
    let mut set = DataSet::new();
    set.put_text(Tag(0x0008, 0x0016), VR::UI, CT);
    for (tag, vr) in [(Tag(0x0008, 0x0018), VR::UI), (PATIENT_ID, VR::LO), (Tag(0x0010, 0x0010), VR::PN)] {
        let secret = planter.secret(vr, &[tag]);
        set.put(tag, secret);
    }
    planter.fill(&mut set, &mut Vec::new(), 150);
    (set, planter.planted)
}

/// The table read by itself: whether an attribute at this place may survive. Secrets are no words of the vocabulary, no
/// dates and no numbers of private creators, so cleaning leaves nothing of them where people write text.
fn may_survive(path: &[Tag], options: &Options) -> bool {
    let keeping = table::UIDS | table::DEVICE | table::INSTITUTION | table::PATIENT;
    let cleaning =
        table::DEVICE_CLEAN | table::PATIENT_CLEAN | table::DESCRIPTORS | table::STRUCTURED | table::GRAPHICS;
    let (last, above) = path.split_last().unwrap();
    let is_free = |vr| matches!(vr, VR::LO | VR::SH | VR::UC);
    let mut in_cleaned = false;
    let level = |tag: &Tag, is_leaf: bool, in_cleaned: &mut bool| {
        let Some(vr) = dictionary_vr(*tag).filter(|_| tag.0.is_multiple_of(2) && tag.0 >= 8) else { return false };
        match table::row(u32::from(tag.0) << 16 | u32::from(tag.1)) {
            Some((_, exceptions)) if exceptions & options.exceptions() & keeping != 0 => true,
            Some((_, exceptions)) if exceptions & options.exceptions() & cleaning != 0 && !is_leaf => {
                *in_cleaned = true;
                true
            }
            // Binary time stamps stay as they are with full dates.
            Some((_, exceptions)) if exceptions & options.exceptions() & table::DATES != 0 => {
                !is_leaf
                    || (options.has(ProfileOption::RetainFullDates) && (!is_text(vr) || matches!(vr, VR::DS | VR::IS)))
            }
            Some((Base::Xzu, _)) => !is_leaf,
            Some(_) => false,
            None => match vr {
                VR::UI => options.has(ProfileOption::RetainUids),
                VR::PN | VR::DA | VR::DT | VR::TM | VR::LT | VR::ST | VR::UT | VR::AE | VR::UR | VR::UN => false,
                _ => tag.0 >> 8 != 0x60 && tag.0 >> 8 != 0x50,
            },
        }
    };
    above.iter().all(|tag| level(tag, false, &mut in_cleaned))
        && level(last, true, &mut in_cleaned)
        && !(in_cleaned && dictionary_vr(*last).is_some_and(is_free))
}

fn options_of(mask: u16) -> Options {
    let chosen = ProfileOption::ALL.into_iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1);
    Options::new(
        chosen.map(|(_, option)| option).filter(|option| *option != ProfileOption::RetainFullDates || mask & 32 == 0),
    )
    .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn no_secret_gets_out_but_where_the_table_keeps_it(seed: u64, mask in 0_u16..2048) {
        let options = options_of(mask);
        let (set, secrets) = planted(seed, &options);
        let (out, _) = Deidentifier::new(key(), options.clone(), Rules::default()).data_set(&set).unwrap();
        let bytes = out.write(Encoding::ExplicitLe);
        for (secret, path) in &secrets {
            prop_assert!(
                !holds(&bytes, secret) || may_survive(path, &options),
                "{} at {path:?} got out under {options:?}", String::from_utf8_lossy(secret)
            );
        }
    }

    #[test]
    fn a_second_run_changes_nothing_and_the_check_agrees(seed: u64, mask in 0_u16..2048) {
        let options = options_of(mask);
        let (set, _) = planted(seed, &options);
        prop_assert!(is_deidentified(&set).is_err());
        let deidentifier = Deidentifier::new(key(), options, Rules::default());
        let (once, _) = deidentifier.data_set(&set).unwrap();
        prop_assert_eq!(is_deidentified(&once), Ok(()));
        let (twice, _) = deidentifier.data_set(&once).unwrap();
        prop_assert_eq!(once.write(Encoding::ExplicitLe), twice.write(Encoding::ExplicitLe));
    }

    #[test]
    fn one_value_put_back_fails_the_check(seed: u64, mask in 0_u16..2048, choice: prop::sample::Index) {
        let options = options_of(mask);
        let (set, secrets) = planted(seed, &options);
        let (mut out, _) = Deidentifier::new(key(), options.clone(), Rules::default()).data_set(&set).unwrap();
        let lost: Vec<Tag> = secrets.iter().filter(|(_, path)| path.len() == 1 && !may_survive(path, &options))
            .map(|(_, path)| path[0]).collect();
        let tag = lost[choice.index(lost.len())];
        // Where an option cleans binary values or numbers they may come through as they are.
        let original = set.get(tag).unwrap().clone();
        prop_assume!(out.get(tag) != Some(&original) && tag.0 != 0x7FE0);
        out.put(tag, original);
        prop_assert!(is_deidentified(&out).is_err(), "{} was put back", tag);
    }
}

#[test]
fn the_table_is_whole_and_in_order() {
    assert_eq!(TABLE.len(), 652);
    assert!(TABLE.windows(2).all(|pair| pair[0].0 < pair[1].0));
    let known = |row: u32| dictionary_vr(Tag((row >> 16) as u16, row as u16));
    for (tag, base, exceptions) in TABLE {
        let vr = known(*tag);
        assert!(*base != Base::U || vr.is_none_or(|vr| vr == VR::UI), "{tag:08X}");
        assert!(exceptions & table::UIDS == 0 || vr.is_none_or(|vr| matches!(vr, VR::UI | VR::SQ)), "{tag:08X}");
    }
    let rows = |base| TABLE.iter().filter(|row| row.1 == base).count();
    assert_eq!([Base::X, Base::Z, Base::D, Base::U].map(rows), [412, 42, 93, 55]);
}

#[test]
fn references_between_objects_still_resolve() {
    let mut image = object(CT);
    image.put_text(Tag(0x0020, 0x0052), VR::UI, "1.2.3.99");
    let mut reference = DataSet::new();
    reference.put_text(Tag(0x0008, 0x1150), VR::UI, CT);
    reference.put_text(Tag(0x0008, 0x1155), VR::UI, "1.2.3.4");
    let mut other = object(CT);
    other.put_text(Tag(0x0008, 0x0018), VR::UI, "1.2.3.5");
    other.put_text(Tag(0x0020, 0x0052), VR::UI, "1.2.840.10008.1.4.1.1");
    other.put(Tag(0x0008, 0x1140), Element::sequence(vec![reference]));
    let deidentifier = deidentifier(&[]);
    let (image, _) = deidentifier.data_set(&image).unwrap();
    let (other, _) = deidentifier.data_set(&other).unwrap();
    let reference = &other.items(Tag(0x0008, 0x1140)).unwrap()[0];
    assert_eq!(reference.uid(Tag(0x0008, 0x1155)), image.uid(Tag(0x0008, 0x0018)));
    assert_eq!(reference.text(Tag(0x0008, 0x1150)).unwrap(), CT);
    assert_eq!(image.uid(Tag(0x0020, 0x000D)), other.uid(Tag(0x0020, 0x000D)));
    assert_ne!(image.uid(Tag(0x0008, 0x0018)), other.uid(Tag(0x0008, 0x0018)));
    assert_eq!(other.text(Tag(0x0020, 0x0052)).unwrap(), "1.2.840.10008.1.4.1.1", "well-known frames stay");
    assert!(image.text(Tag(0x0020, 0x000D)).unwrap().starts_with("2.25."));
    // Another key, other names.
    let (stranger, _) = Deidentifier::new(Key::from_bytes([8; 32]), Options::default(), Rules::default())
        .data_set(&object(CT))
        .unwrap();
    assert_ne!(stranger.uid(Tag(0x0020, 0x000D)), image.uid(Tag(0x0020, 0x000D)));
    assert_ne!(stranger.text(PATIENT_ID), image.text(PATIENT_ID));
}

#[test]
fn modified_dates_keep_the_intervals_of_a_patient() {
    let deidentifier = deidentifier(&[ProfileOption::RetainModifiedDates]);
    let dated = |date: &str, patient: &str| {
        let mut set = object(CT);
        set.put_text(PATIENT_ID, VR::LO, patient);
        set.put_text(STUDY_DATE, VR::DA, date);
        set.put_text(Tag(0x0008, 0x0030), VR::TM, "101112.5");
        set.put_text(Tag(0x0008, 0x002A), VR::DT, &format!("{date}101112.5+0100"));
        let (out, _) = deidentifier.data_set(&set).unwrap();
        assert_eq!(out.text(Tag(0x0028, 0x0303)).unwrap(), "MODIFIED");
        assert_eq!(out.text(Tag(0x0008, 0x0030)).unwrap(), "101112.5");
        let date = out.text(STUDY_DATE).unwrap();
        assert_eq!(out.text(Tag(0x0008, 0x002A)).unwrap(), format!("{date}101112.5+0100"));
        date
    };
    let (first, second) = (dated("20240228", "A1"), dated("20240301", "A1"));
    let back = |date: &str| (0..4000).find(|days| dates::shifted(VR::DA, date, *days).as_deref() == Some("20240228"));
    assert_eq!(back(&first).unwrap(), back(&second).unwrap() + 2, "two days lie between, with the leap day");
    assert_ne!(first, "20240228");
    assert_ne!(dated("20240228", "A2"), first, "another patient, another shift");
}

#[test]
fn the_result_says_what_was_done() {
    let options = [ProfileOption::CleanDescriptors, ProfileOption::RetainModifiedDates];
    let mut set = object(CT);
    set.put_text(Tag(0x0008, 0x0005), VR::CS, "ISO_IR 100");
    set.put(Tag(0x0008, 0x0070), Element::bytes(VR::LO, *b"M\xFCller "));
    let (out, report) = deidentifier(&options).data_set(&set).unwrap();
    assert_eq!(out.text(PATIENT_IDENTITY_REMOVED).unwrap(), "YES");
    let codes = out.items(DEIDENTIFICATION_METHOD_CODES).unwrap();
    let codes: Vec<String> = codes.iter().map(|item| item.text(CODE_VALUE).unwrap()).collect();
    assert_eq!(codes, ["113100", "113105", "113107"]);
    assert_eq!(out.texts(DEIDENTIFICATION_METHOD)[3], report.lineage);
    assert_eq!(report.lineage.len(), 64);
    assert_eq!(out.text(Tag(0x0008, 0x0005)).unwrap(), "ISO_IR 192", "kept text is now in UTF-8");
    assert_eq!(out.text(Tag(0x0008, 0x0070)).unwrap(), "Müller");
}

#[test]
fn a_name_hidden_in_an_attribute_that_stays_is_found() {
    let mut set = object(CT);
    set.put_text(Tag(0x0010, 0x0010), VR::PN, "Zyxwquist^Brunhilde");
    set.put_text(Tag(0x0008, 0x0070), VR::LO, "ACME for zyxwquist");
    set.put_text(Tag(0x0018, 0x1020), VR::LO, "v1.2");
    let (out, _) = deidentifier(&[]).data_set(&set).unwrap();
    assert_eq!(out.text(Tag(0x0008, 0x0070)).unwrap(), "REMOVED");
    assert_eq!(out.text(Tag(0x0018, 0x1020)).unwrap(), "v1.2");
}

#[test]
fn descriptions_keep_known_words_and_patients_their_characteristics() {
    let options = [
        ProfileOption::CleanDescriptors,
        ProfileOption::RetainPatientCharacteristics,
        ProfileOption::RetainSafePrivate,
    ];
    let mut set = object(CT);
    set.put_text(Tag(0x0008, 0x1030), VR::LO, "CT Abdomen for Mr Smith");
    set.put_text(Tag(0x0010, 0x1010), VR::AS, "093Y");
    set.put_text(Tag(0x0010, 0x0040), VR::CS, "F");
    set.put_text(Tag(0x0019, 0x0010), VR::LO, "SIEMENS MR HEADER");
    set.put_text(Tag(0x0019, 0x100C), VR::IS, "1000");
    set.put_text(Tag(0x0019, 0x100D), VR::CS, "SMITH");
    let (out, _) = deidentifier(&options).data_set(&set).unwrap();
    assert_eq!(out.text(Tag(0x0008, 0x1030)).unwrap(), "CT Abdomen");
    assert_eq!(out.text(Tag(0x0010, 0x1010)).unwrap(), "090Y");
    assert_eq!(out.text(Tag(0x0010, 0x0040)).unwrap(), "F");
    assert_eq!(out.text(Tag(0x0019, 0x100C)).unwrap(), "1000");
    assert_eq!(out.text(Tag(0x0019, 0x0010)).unwrap(), "SIEMENS MR HEADER");
    assert!(!out.contains(Tag(0x0019, 0x100D)));
    let (out, _) = deidentifier(&[]).data_set(&set).unwrap();
    assert!(out.iter().all(|(tag, _)| tag.0.is_multiple_of(2)), "no private attribute without the option");
    assert!(out.text(Tag(0x0010, 0x1010)).is_none() && out.text(Tag(0x0010, 0x0040)).is_none());
}

fn image(class: &str, modality: &str, photometric: &str, samples: u16, bits: u16, pixels: Vec<u8>) -> DataSet {
    let mut set = object(class);
    set.put_text(Tag(0x0008, 0x0060), VR::CS, modality);
    set.put_u16(Tag(0x0028, 0x0002), samples);
    set.put_text(Tag(0x0028, 0x0004), VR::CS, photometric);
    set.put_u16(Tag(0x0028, 0x0010), 2);
    set.put_u16(Tag(0x0028, 0x0011), 3);
    set.put_u16(Tag(0x0028, 0x0100), bits);
    set.put(PIXEL_DATA, Element::bytes(VR::OW, pixels));
    set
}

#[test]
fn images_in_which_text_cannot_be_excluded_are_refused() {
    let refusal = |set: &DataSet| deidentifier(&[ProfileOption::CleanPixelData]).data_set(set).err();
    let grey = |class, modality| image(class, modality, "MONOCHROME2", 1, 8, vec![1; 6]);
    let stated = |mut set: DataSet, value| {
        set.put_text(BURNED_IN_ANNOTATION, VR::CS, value);
        set
    };
    let dx = "1.2.840.10008.5.1.4.1.1.1.1";
    assert_eq!(refusal(&grey(CT, "CT")), None);
    assert_eq!(refusal(&stated(grey(CT, "CT"), "YES")), Some(Refusal::BurnedIn));
    assert_eq!(refusal(&grey(dx, "DX")), Some(Refusal::TextNotExcluded));
    assert_eq!(refusal(&stated(grey(dx, "DX"), "NO")), None);
    assert_eq!(refusal(&stated(grey(US, "US"), "NO")), Some(Refusal::TextLikely));
    assert_eq!(refusal(&grey("1.2.840.10008.5.1.4.1.1.7", "OT")), Some(Refusal::TextLikely));
    assert_eq!(refusal(&grey(CT, "US")), Some(Refusal::TextLikely), "a modality outweighs the SOP class");
    let mut screen = grey(CT, "CT");
    screen.put_texts(Tag(0x0008, 0x0008), VR::CS, &["DERIVED", "SECONDARY", "SCREEN SAVE"]);
    assert_eq!(refusal(&screen), Some(Refusal::TextLikely));
    let mut face = grey(CT, "CT");
    face.put_text(Tag(0x0028, 0x0302), VR::CS, "YES");
    assert_eq!(refusal(&face), Some(Refusal::VisualFeatures));
    assert_eq!(refusal(&object("1.2.840.10008.5.1.4.1.1.104.1")), Some(Refusal::EncapsulatedDocument));
    assert_eq!(refusal(&object("1.2.840.10008.5.1.4.1.1.88.11")), Some(Refusal::StructuredContent));
    assert_eq!(refusal(&object("1.2.840.10008.5.1.4.1.1.66")), Some(Refusal::Opaque));
    assert_eq!(refusal(&object("1.3.12.2.1107.5.9.1")), Some(Refusal::UnknownClass));
}

fn ruled(rule: &str) -> Deidentifier {
    let options = Options::new([ProfileOption::CleanPixelData]).unwrap();
    Deidentifier::new(key(), options, Rules::parse(&format!("[[rule]]\nmodality = \"US\"\n{rule}")).unwrap())
}

#[test]
fn regions_are_blanked_in_every_frame_and_sample() {
    let pixels = |deidentifier: &Deidentifier, set: &DataSet| {
        let (out, report) = deidentifier.data_set(set).unwrap();
        assert!(report.blanked);
        assert_eq!(out.text(BURNED_IN_ANNOTATION).unwrap(), "NO");
        assert_eq!(is_deidentified(&out), Ok(()));
        out.bytes(PIXEL_DATA).unwrap().to_vec()
    };
    let rule = ruled("blank = [[1, 0, 9, 1]]");
    let grey = image(US, "US", "MONOCHROME2", 1, 8, vec![1, 2, 3, 4, 5, 6]);
    assert_eq!(pixels(&rule, &grey), [1, 0, 0, 4, 5, 6]);
    let mut frames = image(US, "US", "MONOCHROME2", 1, 8, (1..=12).collect());
    frames.put_text(Tag(0x0028, 0x0008), VR::IS, "2");
    assert_eq!(pixels(&rule, &frames), [1, 0, 0, 4, 5, 6, 7, 0, 0, 10, 11, 12]);
    let words = image(US, "US", "MONOCHROME2", 1, 16, (1..=12).collect());
    assert_eq!(pixels(&rule, &words), [1, 2, 0, 0, 0, 0, 7, 8, 9, 10, 11, 12]);
    let colour = image(US, "US", "RGB", 3, 8, (1..=18).collect());
    assert_eq!(pixels(&rule, &colour)[..9], [1, 2, 3, 0, 0, 0, 0, 0, 0]);
    let mut planes = image(US, "US", "RGB", 3, 8, (1..=18).collect());
    planes.put_u16(Tag(0x0028, 0x0006), 1);
    assert_eq!(pixels(&rule, &planes), [1, 0, 0, 4, 5, 6, 7, 0, 0, 10, 11, 12, 13, 0, 0, 16, 17, 18]);

    let region = [(0x6018, 1_u32), (0x601A, 0), (0x601C, 1), (0x601E, 1)];
    let region = region.map(|(element, value)| (Tag(0x0018, element), Element::bytes(VR::UL, value.to_le_bytes())));
    let mut us = grey.clone();
    us.put(Tag(0x0018, 0x6011), Element::sequence(vec![region.into_iter().collect()]));
    let regions = ruled("keep_only_ultrasound_regions = true");
    assert_eq!(pixels(&regions, &us), [0, 2, 0, 0, 5, 0]);
    assert_eq!(regions.data_set(&grey).err(), Some(Refusal::TextLikely), "without regions the rule says nothing");

    let ybr = image(US, "US", "YBR_FULL", 3, 8, vec![1; 18]);
    assert!(matches!(rule.data_set(&ybr).err(), Some(Refusal::PixelData(_))));
    let short = image(US, "US", "MONOCHROME2", 1, 8, vec![1; 4]);
    assert!(matches!(rule.data_set(&short).err(), Some(Refusal::PixelData(_))));
}

#[test]
fn rules_match_by_what_they_name_and_must_say_what_they_mean() {
    let grey = image(US, "US", "MONOCHROME2", 1, 8, vec![1; 6]);
    assert!(ruled("manufacturer = \"ACME\"\nno_text = true").data_set(&grey).is_err());
    let mut acme = grey.clone();
    acme.put_text(Tag(0x0008, 0x0070), VR::LO, "Acme");
    let (out, report) = ruled("manufacturer = \"ACME\"\nrows = 2\nno_text = true").data_set(&acme).unwrap();
    assert!(!report.blanked && out.bytes(PIXEL_DATA) == acme.bytes(PIXEL_DATA));
    assert!(ruled("rows = 3\nno_text = true").data_set(&acme).is_err());
    for wrong in ["", "no_text = true\nblank = [[0, 0, 1, 1]]", "blank = [[0, 0, 1]]", "blanc = []"] {
        assert!(Rules::parse(&format!("[[rule]]\nmodality = \"US\"\n{wrong}")).is_err(), "{wrong}");
    }
    // Rules are part of an option; without it they do nothing.
    let without = Deidentifier::new(key(), Options::default(), ruled("no_text = true").rules.clone());
    assert_eq!(without.data_set(&grey).err(), Some(Refusal::TextLikely));
}

#[test]
fn what_lies_beside_the_samples_goes() {
    let mut set = image(CT, "CT", "MONOCHROME2", 1, 16, b"\xFF\xFF__________SECRET".to_vec());
    set.put_u16(Tag(0x0028, 0x0101), 12);
    set.put_u16(Tag(0x0028, 0x0102), 11);
    set.put_u16(Tag(0x6000, 0x0100), 16);
    set.put_u16(Tag(0x6000, 0x0102), 15);
    let (out, _) = deidentifier(&[]).data_set(&set).unwrap();
    let pixels = out.bytes(PIXEL_DATA).unwrap();
    assert_eq!((pixels.len(), &pixels[..4]), (12, &[0xFF, 0x0F, b'_', b'_' & 0x0F][..]));
    assert!(!out.contains(Tag(0x6000, 0x0100)));
}

#[test]
fn reports_keep_codes_and_numbers() {
    let mut code = DataSet::new();
    code.put_text(CODE_VALUE, VR::SH, "121071");
    code.put_text(CODING_SCHEME_DESIGNATOR, VR::SH, "DCM");
    code.put_text(CODE_MEANING, VR::LO, "Brain of John Smith");
    let mut item = DataSet::new();
    item.put_text(Tag(0x0040, 0xA040), VR::CS, "TEXT");
    item.put(Tag(0x0040, 0xA043), Element::sequence(vec![code]));
    item.put_text(Tag(0x0040, 0xA160), VR::UT, "John Smith has a lesion in the left lung");
    item.put_text(Tag(0x0040, 0xA123), VR::PN, "Smith^John");
    let mut report = object("1.2.840.10008.5.1.4.1.1.88.11");
    report.put(Tag(0x0040, 0xA730), Element::sequence(vec![item]));
    let (out, _) = deidentifier(&[ProfileOption::CleanStructuredContent]).data_set(&report).unwrap();
    let item = &out.items(Tag(0x0040, 0xA730)).unwrap()[0];
    assert_eq!(item.text(Tag(0x0040, 0xA160)).unwrap(), "left lung");
    assert_eq!(item.text(Tag(0x0040, 0xA123)).unwrap(), "REMOVED");
    let code = &item.items(Tag(0x0040, 0xA043)).unwrap()[0];
    assert_eq!(code.text(CODE_VALUE).unwrap(), "121071");
    assert_eq!(code.text(CODE_MEANING).unwrap(), "Brain");
}

#[test]
fn options_have_names_and_limits() {
    assert_eq!(Options::from_names(["retain-uids"]).unwrap().iter().collect::<Vec<_>>(), [ProfileOption::RetainUids]);
    assert_eq!(Options::from_names(["clean-recognizable-visual-features"]).err(), Some(OptionError::NotOffered));
    assert_eq!(Options::from_names(["retain-names"]).err(), Some(OptionError::Unknown("retain-names".into())));
    assert_eq!(
        Options::from_names(["retain-full-dates", "retain-modified-dates"]).err(),
        Some(OptionError::Contradiction)
    );
    assert_eq!(format!("{:?}", key()), "Key(..)");
    assert_eq!(Key::from_hex(&format!("{}\n", key().to_hex())).unwrap().to_hex(), key().to_hex());
}
