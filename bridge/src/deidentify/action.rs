//! Which action an attribute gets under the options in force (PS3.15 E.1.1, E.3): the table, and rules for what it does not
//! list.
//!
//! The standard leaves attributes alone that Table E.1-1 does not name. Here persons' names, dates, free text, AE titles and URLs
//! are changed even so, and attributes that the data dictionary does not know are removed, because nobody has judged
//! them. Compound codes are resolved to the last one, which never leaves a value and always leaves a valid object. Must not
//! know values.

use dicom_core::dictionary::DataDictionary;
use dicom_dictionary_std::StandardDataDictionary;
use dicom_scp::dataset::{Tag, VR, dictionary_vr};

use super::options::{Options, ProfileOption};
use super::table::{self, Base};

/// What is done to an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// X
    Remove,
    /// Z
    Empty,
    /// D
    Dummy,
    /// U
    ReplaceUid,
    /// K; sequences are gone into.
    Keep,
    /// K for temporal information: kept when it has the form of a date or time.
    KeepTime,
    /// C for temporal information.
    ShiftTime,
    /// C for text and for sequences; where nothing can be kept, the base action.
    Clean,
}

/// The action of a standard attribute.
pub(super) fn action(tag: Tag, options: &Options) -> Action {
    if is_outside_data_sets(tag) || is_curve_or_overlay(tag) || !is_known(tag) {
        return Action::Remove;
    }
    let (base, exceptions) = row(tag);
    let applying = exceptions & options.exceptions();
    let keeping = table::UIDS | table::DEVICE | table::INSTITUTION | table::PATIENT;
    match applying {
        applying if applying & keeping != 0 => Action::Keep,
        applying if applying & table::DATES == 0 && applying != 0 => Action::Clean,
        applying if applying & table::DATES != 0 && options.has(ProfileOption::RetainFullDates) => Action::KeepTime,
        applying if applying & table::DATES != 0 => Action::ShiftTime,
        _ => resolved(base),
    }
}

/// The action when no option applies.
pub(super) fn base_action(tag: Tag) -> Action {
    if is_known(tag) { resolved(row(tag).0) } else { Action::Remove }
}

fn resolved(base: Option<Base>) -> Action {
    match base {
        Some(Base::X) => Action::Remove,
        Some(Base::Z | Base::Xz) => Action::Empty,
        Some(Base::D | Base::Xd | Base::Xzd | Base::Zd) => Action::Dummy,
        Some(Base::U) => Action::ReplaceUid,
        // U* is about the UIDs inside, which have rows of their own.
        Some(Base::Xzu) | None => Action::Keep,
    }
}

/// The row of the table, or what stands for one by VR. No base action means that the attribute is kept.
fn row(tag: Tag) -> (Option<Base>, table::Exceptions) {
    if let Some((base, exceptions)) = table::row(u32::from(tag.0) << 16 | u32::from(tag.1)) {
        return (Some(base), exceptions);
    }
    match dictionary_vr(tag) {
        Some(VR::PN) => (Some(Base::Z), 0),
        Some(VR::DA | VR::DT | VR::TM) => (Some(Base::D), table::DATES),
        Some(VR::UI) => (Some(Base::U), table::UIDS),
        Some(VR::LT | VR::ST | VR::UT) => (Some(Base::D), table::DESCRIPTORS | table::STRUCTURED),
        Some(VR::AE | VR::UR | VR::UN) => (Some(Base::X), 0),
        _ => (None, 0),
    }
}

/// Command and file meta elements, group lengths, item tags.
fn is_outside_data_sets(tag: Tag) -> bool {
    tag.0 < 0x0008 || tag.1 == 0 || tag.0 == 0xFFFE
}

/// Repeating groups 50xx and 60xx. What they draw can be text, so Clean Graphics keeps nothing of them either; of a curve
/// or overlay without its data nothing useful is left, and the whole group goes.
pub(super) fn is_curve_or_overlay(tag: Tag) -> bool {
    matches!(tag.0 >> 8, 0x50 | 0x60)
}

fn is_known(tag: Tag) -> bool {
    tag.0.is_multiple_of(2) && StandardDataDictionary.by_tag(tag).is_some() && dictionary_vr(tag).is_some()
}

/// UIDs that the standard itself assigns and that name no instance: classes, transfer syntaxes, well-known frames of
/// reference, coding schemes, context groups, templates. All lie below its own root and are made of small numbers; longer
/// ones there would be somebody's invention.
pub(super) fn is_well_known(uid: &str) -> bool {
    let Some(rest) = uid.strip_prefix("1.2.840.10008.") else { return false };
    let is_small = |part: &str| (1..=4).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
    rest.split('.').count() <= 8 && rest.len() <= 20 && rest.split('.').all(is_small)
}
