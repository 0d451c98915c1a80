//! The VR an attribute has in PS3.6. Private attributes have none.

use super::{Tag, VR};
use dicom_core::dictionary::{DataDictionary, DataDictionaryEntry, VirtualVr};
use dicom_dictionary_std::StandardDataDictionary;

/// The VR of a standard attribute in the dictionary. Where the dictionary leaves a choice (US or SS, OB or OW), the one that loses
/// nothing: US for samples, OW for pixel, overlay and lookup table data.
pub fn dictionary_vr(tag: Tag) -> Option<VR> {
    if !tag.0.is_multiple_of(2) {
        // Private creators, PS3.5 7.8.1; private data elements are known to their creator only.
        return (0x0010..=0x00ff).contains(&tag.1).then_some(VR::LO);
    }
    let vr = StandardDataDictionary.by_tag(tag)?.vr();
    match vr {
        VirtualVr::Exact(VR::UN) => None,
        other => Some(other.relaxed()),
    }
}

/// Whether the VR is US or SS depending on Pixel Representation (0028,0103).
pub(crate) fn is_sample_valued(tag: Tag) -> bool {
    StandardDataDictionary.by_tag(tag).is_some_and(|entry| entry.vr() == VirtualVr::Xs)
}
