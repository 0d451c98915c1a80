//! What is not de-identified because it cannot be done well: opaque content, free reports, and pixels in which text cannot
//! be excluded (PS3.15 E.1.1, E.3.1).
//!
//! Decides from the header alone and never in favour of an object it does not know.

use dicom_scp::dataset::{DataSet, Tag};
use dicom_scp::{Uid, sop_class};

use super::options::{Options, ProfileOption};
use super::rules::{Blanking, Rules};

const IMAGE_TYPE: Tag = Tag(0x0008, 0x0008);
const SOP_CLASS_UID: Tag = Tag(0x0008, 0x0016);
const SOP_INSTANCE_UID: Tag = Tag(0x0008, 0x0018);
const MODALITY: Tag = Tag(0x0008, 0x0060);
const CONVERSION_TYPE: Tag = Tag(0x0008, 0x0064);
const BURNED_IN_ANNOTATION: Tag = Tag(0x0028, 0x0301);
const RECOGNIZABLE_VISUAL_FEATURES: Tag = Tag(0x0028, 0x0302);
const CONTENT_SEQUENCE: Tag = Tag(0x0040, 0xA730);
const ENCAPSULATED_DOCUMENT: Tag = Tag(0x0042, 0x0011);
const PIXEL_DATA: [Tag; 3] = [Tag(0x7FE0, 0x0008), Tag(0x7FE0, 0x0009), Tag(0x7FE0, 0x0010)];
const STORAGE: &str = "1.2.840.10008.5.1.4.1.1.";

/// Why an object is not de-identified. No message holds a value of the object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// An attribute without which an object has no identity.
    #[error("object lacks {0}")]
    Lacks(&'static str),
    /// Private or unknown: nobody can say what its attributes mean.
    #[error("SOP class is not a storage class of the standard")]
    UnknownClass,
    /// PDF, CDA, STL and the like.
    #[error("encapsulated documents cannot be cleaned")]
    EncapsulatedDocument,
    /// Raw data, sound.
    #[error("content of this SOP class cannot be judged")]
    Opaque,
    /// A report without the option that cleans it.
    #[error("structured content needs clean-structured-content")]
    StructuredContent,
    /// (0028,0302) is YES.
    #[error("recognizable visual features (0028,0302) cannot be cleaned")]
    VisualFeatures,
    /// (0028,0301) is YES and no rule says where.
    #[error("burned-in annotation (0028,0301) is YES and no region rule matches")]
    BurnedIn,
    /// A kind of image that usually shows text.
    #[error("text in the pixels cannot be excluded for this kind of image and no region rule matches")]
    TextLikely,
    /// A kind of image that may show text, without a statement that it does not.
    #[error("burned-in annotation (0028,0301) is not NO and no region rule matches")]
    TextNotExcluded,
    /// Pixels that cannot be blanked or checked as they are.
    #[error("pixel data cannot be cleaned: {0}")]
    PixelData(&'static str),
}

/// How sure a kind of image is to be free of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Text {
    /// Values computed by the modality.
    Unlikely,
    /// Has markers or labels at times: a statement is wanted.
    Possible,
    /// Usual: a statement is not believed.
    Likely,
}

/// What is to be done to the pixels of an object that is not refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pixels {
    /// There are none.
    None,
    /// They stay. `stated` is whether the object says that no text is burned in.
    Kept { stated: bool },
    /// Regions are blanked.
    Blanked(Blanking),
}

/// Judges an object. `judging` is whether an earlier run's result is being judged: then its own statement counts.
pub(super) fn refuse(data_set: &DataSet, options: &Options, rules: &Rules, judging: bool) -> Result<Pixels, Refusal> {
    let class = data_set.uid(SOP_CLASS_UID).ok_or(Refusal::Lacks("SOP Class UID (0008,0016)"))?;
    data_set.uid(SOP_INSTANCE_UID).ok_or(Refusal::Lacks("SOP Instance UID (0008,0018)"))?;
    refuse_content(data_set, &class, options)?;
    if data_set.text(RECOGNIZABLE_VISUAL_FEATURES).as_deref() == Some("YES") {
        return Err(Refusal::VisualFeatures);
    }
    if !PIXEL_DATA.iter().any(|tag| data_set.contains(*tag)) {
        return Ok(Pixels::None);
    }
    if options.has(ProfileOption::CleanPixelData)
        && let Some(blanking) = rules.blanking(data_set)
    {
        return Ok(Pixels::Blanked(blanking));
    }
    let stated = data_set.text(BURNED_IN_ANNOTATION);
    let was_cleaned = judging && options.has(ProfileOption::CleanPixelData);
    match (stated.as_deref(), text_in(data_set, &class)) {
        (Some("NO"), _) if was_cleaned => Ok(Pixels::Kept { stated: true }),
        (_, Text::Likely) => Err(Refusal::TextLikely),
        (Some("YES"), _) => Err(Refusal::BurnedIn),
        (Some("NO"), _) => Ok(Pixels::Kept { stated: true }),
        (_, Text::Unlikely) => Ok(Pixels::Kept { stated: false }),
        (_, Text::Possible) => Err(Refusal::TextNotExcluded),
    }
}

fn refuse_content(data_set: &DataSet, class: &Uid, options: &Options) -> Result<(), Refusal> {
    if sop_class::storage_class(class).is_none() {
        return Err(Refusal::UnknownClass);
    }
    let number = class.as_str().strip_prefix(STORAGE).unwrap_or_default();
    if number.starts_with("104.") || data_set.contains(ENCAPSULATED_DOCUMENT) {
        return Err(Refusal::EncapsulatedDocument);
    }
    if number == "66" || number.starts_with("9.4.") {
        return Err(Refusal::Opaque);
    }
    let is_report =
        number.starts_with("88.") || data_set.items(CONTENT_SEQUENCE).is_some_and(|items| !items.is_empty());
    match is_report && !options.has(ProfileOption::CleanStructuredContent) {
        true => Err(Refusal::StructuredContent),
        false => Ok(()),
    }
}

fn text_in(data_set: &DataSet, class: &Uid) -> Text {
    by_class(class).max(by_modality(data_set)).max(by_image_type(data_set))
}

/// By SOP class (PS3.4 B.5). Whatever is not named here is likely to show text.
fn by_class(class: &Uid) -> Text {
    match class.as_str().strip_prefix(STORAGE).unwrap_or_default() {
        // CT, MR, PET, RT dose, segmentations, parametric maps
        "2" | "2.1" | "2.2" | "4" | "4.1" | "4.3" | "4.4" | "128" | "128.1" | "130" => Text::Unlikely,
        "481.2" | "66.4" | "66.7" | "30" => Text::Unlikely,
        // CR, DX, MG, IO, XA, RF, breast tomosynthesis, NM, RT image
        "1" | "1.1" | "1.1.1" | "1.2" | "1.2.1" | "1.3" | "1.3.1" | "20" | "481.1" => Text::Possible,
        "12.1" | "12.1.1" | "12.2" | "12.2.1" | "13.1.1" | "13.1.2" | "13.1.3" | "13.1.4" | "13.1.5" => Text::Possible,
        _ => Text::Likely,
    }
}

/// By modality: digitised films, photographs, screens and ultrasound occur in other SOP classes too.
fn by_modality(data_set: &DataSet) -> Text {
    match data_set.text(MODALITY).as_deref() {
        Some("US" | "IVUS" | "BDUS" | "SC" | "XC" | "ES" | "GM" | "SM" | "OT" | "DF" | "FD" | "HC" | "DOC" | "ECG") => {
            Text::Likely
        }
        _ => Text::Unlikely,
    }
}

/// Screens saved as images of the modality, and whatever was converted from something else (PS3.3 C.8.6.1).
fn by_image_type(data_set: &DataSet) -> Text {
    let screens = ["SCREEN", "CAPTURE", "REPORT", "DOSE_INFO", "SNAPSHOT"];
    let is_screen = data_set.texts(IMAGE_TYPE).iter().any(|value| screens.iter().any(|word| value.contains(word)));
    match is_screen || data_set.text(CONVERSION_TYPE).is_some() {
        true => Text::Likely,
        false => Text::Unlikely,
    }
}
