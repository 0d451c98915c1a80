//! Cleaning text (PS3.15 E.3.4, E.3.5): of free text only words from a fixed vocabulary stay.
//!
//! Names cannot be recognised reliably, known words can. The list holds anatomy, techniques, contrast and directions, and
//! no word that is also a common name. Digits stay only inside listed words, because numbers can be dates and ids.

/// In alphabetical order.
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "2D", "3D", "4D", "ABDOMEN", "ABDOMINAL", "ADC", "ANGIO", "ANGIOGRAPHY", "ANKLE", "ANTERIOR", "AORTA", "AP", "ARTERIAL",
    "ARTERY", "AXIAL", "BILATERAL", "BLADDER", "BONE", "BRAIN", "BREAST", "CARDIAC", "CARDIO", "CAROTID", "CC", "CERVICAL",
    "CHEST", "CONTRAST", "CORONAL", "CORONARY", "CR", "CT", "CTA", "DCE", "DELAYED", "DIFFUSION", "DIXON", "DWI", "DX",
    "DYNAMIC", "ELBOW", "EPI", "FACE", "FAST", "FAT", "FEMUR", "FINGER", "FLAIR", "FOOT", "FRONTAL", "FUSION", "GADOLINIUM",
    "GRADIENT", "HEART", "HIP", "INFERIOR", "INVERSION", "JOINT", "KIDNEY", "KNEE", "LATERAL", "LEFT", "LIVER",
    "LOCALIZER", "LOWER", "LUMBAR", "LUNG", "MAMMOGRAPHY", "MASK", "MEDIASTINUM", "MIP", "MLO", "MPR", "MR", "MRA", "MRI",
    "NATIVE", "NECK", "NM", "OBLIQUE", "ORBIT", "PA", "PANCREAS", "PELVIS", "PERFUSION", "PET", "PHASE", "PLAIN",
    "PORTAL", "POST", "POSTERIOR", "PRE", "PROSTATE", "PROTON", "RECON", "RECONSTRUCTION", "RECOVERY", "RENAL", "RIGHT",
    "SAGITTAL", "SCAN", "SCOUT", "SEQUENCE", "SERIES", "SHOULDER", "SINUS", "SKULL", "SPINE", "SPLEEN", "STANDARD", "STIR",
    "SUBTRACTION", "SUPERIOR", "SUPPRESSED", "SURVEY", "SWI", "T1", "T1W", "T2", "T2W", "THICK", "THIN", "THORACIC",
    "THORAX", "TOF", "TOPOGRAM", "TRANSVERSE", "TSE", "ULTRASOUND", "UPPER", "UTERUS", "VEIN", "VENOUS", "WEIGHTED",
    "WITH", "WITHOUT", "WRIST", "XA",
];

/// The known words of a text, at most `bytes_max` bytes of them; `None` when there is none.
pub(super) fn cleaned(text: &str, bytes_max: usize) -> Option<String> {
    let mut kept = String::new();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| is_known(word)) {
        let separator = usize::from(!kept.is_empty());
        if kept.len() + separator + word.len() > bytes_max {
            break;
        }
        if separator == 1 {
            kept.push(' ');
        }
        kept.push_str(word);
    }
    (!kept.is_empty()).then_some(kept)
}

fn is_known(word: &str) -> bool {
    // Mr is not MR.
    if word.len() < 3 && word.chars().any(char::is_lowercase) {
        return false;
    }
    WORDS.binary_search(&word.to_ascii_uppercase().as_str()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_words_stay() {
        assert_eq!(cleaned("MRI Brain w/o contrast, Mr. Smith 12/03/1961", 64).as_deref(), Some("MRI Brain contrast"));
        assert_eq!(cleaned("Smith^John", 64), None);
        assert_eq!(cleaned("LEFT_KNEE", 8).as_deref(), Some("LEFT"));
    }

    #[test]
    fn the_list_is_in_order() {
        assert!(WORDS.is_sorted());
    }
}
