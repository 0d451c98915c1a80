//! Which attributes the index keeps, and at which level of the Query/Retrieve information model (PS3.4 C.6).
//!
//! Pure: from a header data set to the rows of the index.

use std::collections::BTreeSet;

use dicom_scp::Uid;
use dicom_scp::dataset::{DataSet, Tag, Value};
use dicom_scp::matching::Level;

/// Patient module attributes, kept with the study so that a study is whole by itself.
const PATIENT: &[Tag] = &[
    Tag(0x0010, 0x0010),
    Tag(0x0010, 0x0020),
    Tag(0x0010, 0x0021),
    Tag(0x0010, 0x0024),
    Tag(0x0010, 0x0030),
    Tag(0x0010, 0x0032),
    Tag(0x0010, 0x0040),
    Tag(0x0010, 0x1000),
    Tag(0x0010, 0x1001),
    Tag(0x0010, 0x2160),
    Tag(0x0010, 0x4000),
];

const STUDY: &[Tag] = &[
    Tag(0x0008, 0x0020),
    Tag(0x0008, 0x0030),
    Tag(0x0008, 0x0050),
    Tag(0x0008, 0x0090),
    Tag(0x0008, 0x1030),
    Tag(0x0008, 0x1032),
    Tag(0x0008, 0x1048),
    Tag(0x0008, 0x1060),
    Tag(0x0008, 0x1080),
    Tag(0x0010, 0x1010),
    Tag(0x0010, 0x1020),
    Tag(0x0010, 0x1030),
    Tag(0x0010, 0x2180),
    Tag(0x0010, 0x21B0),
    Tag(0x0020, 0x000D),
    Tag(0x0020, 0x0010),
];

const SERIES: &[Tag] = &[
    Tag(0x0008, 0x0021),
    Tag(0x0008, 0x0031),
    Tag(0x0008, 0x0060),
    Tag(0x0008, 0x0070),
    Tag(0x0008, 0x0080),
    Tag(0x0008, 0x1010),
    Tag(0x0008, 0x103E),
    Tag(0x0008, 0x1040),
    Tag(0x0008, 0x1050),
    Tag(0x0008, 0x1070),
    Tag(0x0008, 0x1090),
    Tag(0x0018, 0x0015),
    Tag(0x0018, 0x1030),
    Tag(0x0018, 0x5100),
    Tag(0x0020, 0x000E),
    Tag(0x0020, 0x0011),
    Tag(0x0020, 0x0060),
    Tag(0x0040, 0x0244),
    Tag(0x0040, 0x0245),
    Tag(0x0040, 0x0253),
    Tag(0x0040, 0x0254),
    Tag(0x0040, 0x0275),
];

/// (0008,0005), needed at every level to read the others.
const SPECIFIC_CHARACTER_SET: Tag = Tag(0x0008, 0x0005);

/// Longest value kept in the index at instance level, in bytes.
const VALUE_BYTES_MAX: usize = 256;

/// The header of one object, sorted into levels. A missing StudyInstanceUID or SeriesInstanceUID is an error of the caller.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Levels {
    pub(super) study_uid: Uid,
    pub(super) series_uid: Uid,
    pub(super) study: DataSet,
    pub(super) series: DataSet,
    pub(super) instance: DataSet,
}

impl Levels {
    /// Sorts a header. `Err` names the attribute without which an object cannot be filed.
    pub(super) fn of(header: &DataSet) -> Result<Self, &'static str> {
        let study_uid = header.uid(Tag(0x0020, 0x000D)).ok_or("StudyInstanceUID (0020,000D)")?;
        let series_uid = header.uid(Tag(0x0020, 0x000E)).ok_or("SeriesInstanceUID (0020,000E)")?;
        Ok(Self {
            study_uid,
            series_uid,
            study: utf8(pick(header, |tag| PATIENT.contains(&tag) || STUDY.contains(&tag))),
            series: utf8(pick(header, |tag| SERIES.contains(&tag))),
            instance: utf8(pick_small(header)),
        })
    }
}

/// At which level of the information model the index has an attribute.
#[must_use]
pub fn level_of(tag: Tag) -> Level {
    // "Number of ... Related ..." and lists over the series are made for the level that they tell about.
    const MADE_FOR_STUDIES: &[Tag] = &[
        Tag(0x0008, 0x0061),
        Tag(0x0008, 0x0062),
        Tag(0x0020, 0x1200),
        Tag(0x0020, 0x1202),
        Tag(0x0020, 0x1204),
        Tag(0x0020, 0x1206),
        Tag(0x0020, 0x1208),
    ];
    const ANYWHERE: &[Tag] = &[SPECIFIC_CHARACTER_SET, Tag(0x0008, 0x0054), Tag(0x0008, 0x0056), Tag(0x0008, 0x0201)];
    match tag {
        tag if PATIENT.contains(&tag) || ANYWHERE.contains(&tag) => Level::Patient,
        tag if STUDY.contains(&tag) || MADE_FOR_STUDIES.contains(&tag) => Level::Study,
        tag if SERIES.contains(&tag) || tag == Tag(0x0020, 0x1209) => Level::Series,
        _ => Level::Image,
    }
}

/// The index has one character set, so that rows of different levels and senders can be joined.
fn utf8(mut set: DataSet) -> DataSet {
    set.transcode_to_utf8();
    set
}

/// Whether an attribute belongs to the patient rather than the study.
pub(super) fn is_of_patient(tag: Tag) -> bool {
    tag == SPECIFIC_CHARACTER_SET || PATIENT.contains(&tag)
}

fn pick(header: &DataSet, wanted: impl Fn(Tag) -> bool) -> DataSet {
    let mut out = DataSet::default();
    for (tag, element) in header.iter() {
        if *tag == SPECIFIC_CHARACTER_SET || wanted(*tag) {
            out.put(*tag, element.clone());
        }
    }
    out
}

/// Instance level: whatever belongs to no other level, is short, standard and not a sequence.
fn pick_small(header: &DataSet) -> DataSet {
    let mut out = DataSet::default();
    for (tag, element) in header.iter() {
        let elsewhere = PATIENT.contains(tag) || STUDY.contains(tag) || SERIES.contains(tag);
        let short = matches!(&element.value, Value::Bytes(bytes) if bytes.len() <= VALUE_BYTES_MAX);
        if !elsewhere && short && tag.0 % 2 == 0 {
            out.put(*tag, element.clone());
        }
    }
    out
}

/// The forms under which a person name may be matched (PS3.4 C.2.2.2.1, PS3.5 6.2): whole and each component group, without
/// regard to case, with and without the delimiters of empty components at its end.
pub(super) fn name_forms(name: &str) -> BTreeSet<String> {
    let lower = name.to_lowercase();
    let groups: Vec<&str> = lower.split('=').map(|group| group.trim_end_matches(['^', ' '])).collect();
    let whole = groups.join("=").trim_end_matches('=').to_owned();
    let forms = groups.into_iter().map(str::to_owned).chain([whole, lower.clone()]);
    forms.filter(|form| !form.is_empty()).collect()
}
