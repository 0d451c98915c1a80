//! De-identification: PS3.15 Annex E, the Basic Application Level Confidentiality Profile and its options.
//!
//! An object in, an object of another identity out, or a refusal. Nothing is claimed that was not done: what cannot be
//! cleaned is refused, what nobody has judged (private, unknown, opaque) is removed. The same key gives the same names, so
//! that the objects of a study group stay related, and a second run over a result changes nothing. That last property is also
//! the check of [`is_deidentified`]: an object is de-identified when de-identifying it would change nothing.
//!
//! Pure: bytes and values. Must not know files, the archive, the ledger or configuration; where objects come from and whether
//! anyone may see the result is decided elsewhere.

mod action;
mod compressed;
mod dates;
mod file;
mod keyed;
mod options;
mod pixels;
mod private;
mod refuse;
mod rules;
mod table;
#[cfg(test)]
mod tests;
mod walk;
mod words;

use dicom_scp::Uid;
use dicom_scp::dataset::{DataSet, Element, Tag, VR, Value};
use serde::Serialize;

pub use file::FileError;
pub use keyed::Key;
pub use options::{OptionError, Options, ProfileOption};
pub use refuse::Refusal;
pub use rules::{Rules, RulesError};

use keyed::Names;
use options::BASIC_PROFILE;
use refuse::Pixels;
use walk::Walk;

const SPECIFIC_CHARACTER_SET: Tag = Tag(0x0008, 0x0005);
const SOP_INSTANCE_UID: Tag = Tag(0x0008, 0x0018);
const PATIENT_ID: Tag = Tag(0x0010, 0x0020);
const STUDY_INSTANCE_UID: Tag = Tag(0x0020, 0x000D);
const PATIENT_IDENTITY_REMOVED: Tag = Tag(0x0012, 0x0062);
const DEIDENTIFICATION_METHOD: Tag = Tag(0x0012, 0x0063);
const DEIDENTIFICATION_METHOD_CODES: Tag = Tag(0x0012, 0x0064);
const BURNED_IN_ANNOTATION: Tag = Tag(0x0028, 0x0301);
const LONGITUDINAL_TEMPORAL_INFORMATION: Tag = Tag(0x0028, 0x0303);
const PIXEL_GROUP: u16 = 0x7FE0;
const CODE_VALUE: Tag = Tag(0x0008, 0x0100);
const CODING_SCHEME_DESIGNATOR: Tag = Tag(0x0008, 0x0102);
const CODE_MEANING: Tag = Tag(0x0008, 0x0104);

/// What (0012,0063) says besides the lineage.
const METHOD: [&str; 3] = ["PACS Bridge", "DICOM PS3.15 Annex E, Table E.1-1 of 2026c", "lineage keccak256"];

/// How many elements, nested ones included, were treated in which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Removed, with everything in them.
    pub removed: usize,
    /// Emptied.
    pub emptied: usize,
    /// Replaced by a dummy, a pseudonym or another UID.
    pub replaced: usize,
    /// Of text, only known words stayed. These count as kept too.
    pub cleaned: usize,
    /// Kept, dates perhaps moved.
    pub kept: usize,
}

/// What was done to an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What happened to its elements.
    #[serde(flatten)]
    pub counts: Counts,
    /// Whether regions of its pixels were blanked.
    pub blanked: bool,
    /// Its new SOP Instance UID.
    #[serde(serialize_with = "as_text")]
    pub sop_instance: Uid,
    /// Its new Study Instance UID.
    #[serde(skip)]
    pub study_instance: Option<Uid>,
    /// Commitment to the object it was made from, in hexadecimal; see `Deidentifier`.
    pub lineage: String,
}

fn as_text<S: serde::Serializer>(uid: &Uid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(uid.as_str())
}

/// De-identifies objects under one key and one set of options.
///
/// Each result holds, as the fourth value of (0012,0063), a commitment to its original: `keccak256(salt ‖ SOPInstanceUID)` with
/// `salt = HMAC-SHA256(key, "lineage" ‖ 00 ‖ SOPInstanceUID)`. Who holds key and original can prove the lineage;
/// nobody else can try out UIDs.
#[derive(Debug, Clone)]
pub struct Deidentifier {
    key: Key,
    options: Options,
    rules: Rules,
}

/// One reason why an object does not count as de-identified.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// (0012,0062) is not YES.
    #[error("patient identity removed (0012,0062) is not YES")]
    NotStated,
    /// (0012,0064) does not hold the code of the basic profile, or options that exclude each other.
    #[error("de-identification method (0012,0064) does not state the basic profile and its options")]
    ProfileNotStated,
    /// An attribute that the stated profile and options would not leave as it is.
    #[error("attribute {0} is not as the stated profile leaves it")]
    Attribute(Tag),
    /// The pixel data holds what de-identification would remove.
    #[error("pixel data is not as de-identification leaves it")]
    PixelData,
    /// De-identification would refuse the object.
    #[error("object would be refused: {0}")]
    Refused(Refusal),
}

impl Deidentifier {
    /// A de-identifier for one study group.
    #[must_use]
    pub fn new(key: Key, options: Options, rules: Rules) -> Self {
        Self { key, options, rules }
    }

    /// De-identifies a data set with native pixels or none. Its text comes out in UTF-8.
    ///
    /// # Errors
    /// [`Refusal`]
    pub fn data_set(&self, data_set: &DataSet) -> Result<(DataSet, Report), Refusal> {
        let (mut out, pixels, report) = self.header(data_set)?;
        let blanking = if let Pixels::Blanked(blanking) = &pixels { Some(blanking) } else { None };
        for (tag, vr, bytes) in native_pixels(data_set)? {
            out.put(tag, Element::bytes(vr, pixels::cleaned(data_set, tag, bytes, blanking)?));
        }
        Ok((out, report))
    }

    /// Everything but the pixels, and what is to be done with those.
    fn header(&self, data_set: &DataSet) -> Result<(DataSet, Pixels, Report), Refusal> {
        header(data_set, Names::Keyed(&self.key), &self.options, &self.rules)
    }
}

fn header(
    data_set: &DataSet,
    names: Names<'_>,
    options: &Options,
    rules: &Rules,
) -> Result<(DataSet, Pixels, Report), Refusal> {
    let pixels = refuse::refuse(data_set, options, rules, matches!(names, Names::Recognised))?;
    let mut source = data_set.clone();
    source.transcode_to_utf8();
    let mut walk = Walk::new(&source, names, options);
    let mut out = walk.object(&source);
    let lineage = lineage(&source, names, options);
    state(&mut out, options, &pixels, &lineage);
    if out.needs_character_set() {
        out.put(SPECIFIC_CHARACTER_SET, Element::bytes(VR::CS, *b"ISO_IR 192"));
    }
    let blanked = matches!(&pixels, Pixels::Blanked(blanking) if !blanking.is_nothing());
    // Collecting anew hands the character set down to the items.
    let out: DataSet = out.into_iter().map(|(tag, element)| (*tag, element.clone())).collect();
    let sop_instance = out.uid(SOP_INSTANCE_UID).ok_or(Refusal::Lacks("SOP Instance UID (0008,0018)"))?;
    let study_instance = out.uid(STUDY_INSTANCE_UID);
    Ok((out, pixels, Report { counts: walk.counts, blanked, sop_instance, study_instance, lineage }))
}

/// The lineage of a result of ours stays; anything else gets one.
fn lineage(source: &DataSet, names: Names<'_>, options: &Options) -> String {
    let uid = source.text(SOP_INSTANCE_UID).unwrap_or_default();
    let former = source.texts(DEIDENTIFICATION_METHOD).into_iter().nth(3);
    let is_digest = |text: &String| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let is_unchanged = action::is_well_known(&uid) || options.has(ProfileOption::RetainUids);
    let is_own_uid = is_unchanged || names.is_own_uid(&uid);
    let is_own = is_own_uid && names.is_own_pseudonym(&source.text(PATIENT_ID).unwrap_or_default());
    former.filter(|text| is_digest(text) && is_own).or_else(|| names.lineage(&uid)).unwrap_or_default()
}

/// What a de-identified object says of itself (PS3.15 E.1.1, E.3).
fn state(out: &mut DataSet, options: &Options, pixels: &Pixels, lineage: &str) {
    out.put_text(PATIENT_IDENTITY_REMOVED, VR::CS, "YES");
    out.put_texts(DEIDENTIFICATION_METHOD, VR::LO, &[METHOD[0], METHOD[1], METHOD[2], lineage]);
    let codes = std::iter::once(BASIC_PROFILE).chain(options.iter().map(|option| (option.code(), option.meaning())));
    out.put(DEIDENTIFICATION_METHOD_CODES, Element::sequence(codes.map(code).collect()));
    let temporal = match () {
        () if options.has(ProfileOption::RetainFullDates) => "UNMODIFIED",
        () if options.has(ProfileOption::RetainModifiedDates) => "MODIFIED",
        () => "REMOVED",
    };
    out.put_text(LONGITUDINAL_TEMPORAL_INFORMATION, VR::CS, temporal);
    if matches!(pixels, Pixels::Blanked(_) | Pixels::Kept { stated: true }) {
        out.put_text(BURNED_IN_ANNOTATION, VR::CS, "NO");
    }
}

fn code((value, meaning): (&str, &str)) -> DataSet {
    let mut item = DataSet::new();
    item.put_text(CODE_VALUE, VR::SH, value);
    item.put_text(CODING_SCHEME_DESIGNATOR, VR::SH, "DCM");
    item.put_text(CODE_MEANING, VR::LO, meaning);
    item
}

/// A pixel element that is a plain value.
type NativePixels<'a> = (Tag, VR, &'a [u8]);

/// The pixel elements that are plain values. The offset tables of encapsulated pixels have no place beside them.
fn native_pixels(data_set: &DataSet) -> Result<Vec<NativePixels<'_>>, Refusal> {
    let elements = data_set.iter().filter(|(tag, _)| matches!(tag, Tag(PIXEL_GROUP, 0x0008..=0x0010)));
    elements
        .map(|(tag, element)| match &element.value {
            Value::Bytes(bytes) => Ok((*tag, element.vr, bytes.as_slice())),
            _ => Err(Refusal::PixelData("not loaded, or encapsulated")),
        })
        .collect()
}

/// Whether an object counts as de-identified: it says so, states the profile, and de-identifying it by what it states would
/// change nothing. Names, ids and UIDs are judged by their form, since the key is not known here. The check fails closed: objects
/// that other programs de-identified may well be refused.
///
/// Encapsulated pixel data is not in a data set; [`file_is_deidentified`] looks at it too.
///
/// # Errors
/// Every [`Reason`] against it.
pub fn is_deidentified(data_set: &DataSet) -> Result<(), Vec<Reason>> {
    let mut reasons = Vec::new();
    if data_set.text(PATIENT_IDENTITY_REMOVED).as_deref() != Some("YES") {
        reasons.push(Reason::NotStated);
    }
    let Some(options) = stated_options(data_set) else {
        reasons.push(Reason::ProfileNotStated);
        return Err(reasons);
    };
    match header(data_set, Names::Recognised, &options, &Rules::default()) {
        Ok((expected, _, _)) => reasons.extend(differences(data_set, &expected)),
        Err(refusal) => reasons.push(Reason::Refused(refusal)),
    }
    if native_pixels_differ(data_set) {
        reasons.push(Reason::PixelData);
    }
    if reasons.is_empty() { Ok(()) } else { Err(reasons) }
}

/// [`is_deidentified`] for a whole Part 10 file, compressed pixel data included.
///
/// # Errors
/// [`FileError::NotDeidentified`] with every reason, or why the file cannot be judged.
pub fn file_is_deidentified(bytes: &[u8]) -> Result<(), FileError> {
    file::check(bytes)
}

fn stated_options(data_set: &DataSet) -> Option<Options> {
    let items = data_set.items(DEIDENTIFICATION_METHOD_CODES)?;
    let codes: Vec<String> = items.iter().filter_map(|item| item.text(CODE_VALUE)).collect();
    codes.iter().any(|code| code == BASIC_PROFILE.0).then_some(())?;
    Options::new(ProfileOption::ALL.into_iter().filter(|option| codes.iter().any(|code| code == option.code()))).ok()
}

/// Attributes in which two data sets differ, but for pixels and the character set.
fn differences(actual: &DataSet, expected: &DataSet) -> Vec<Reason> {
    let mut actual = actual.clone();
    actual.transcode_to_utf8();
    let tags = actual.iter().chain(expected).map(|(tag, _)| *tag);
    let mut tags: Vec<Tag> = tags.filter(|tag| tag.0 != PIXEL_GROUP && *tag != SPECIFIC_CHARACTER_SET).collect();
    tags.sort_unstable();
    tags.dedup();
    tags.retain(|tag| actual.get(*tag) != expected.get(*tag));
    tags.into_iter().map(Reason::Attribute).collect()
}

fn native_pixels_differ(data_set: &DataSet) -> bool {
    // Encapsulated and skipped values are judged where their bytes are.
    let Ok(elements) = native_pixels(data_set) else { return false };
    elements
        .into_iter()
        .any(|(tag, _, bytes)| pixels::cleaned(data_set, tag, bytes, None).is_ok_and(|cleaned| cleaned != bytes))
}
