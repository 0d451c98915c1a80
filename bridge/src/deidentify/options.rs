//! The options of the profile (PS3.15 E.3) and their codes (PS3.16 CID 7050).

use std::collections::BTreeSet;

use super::table::{self, Exceptions};

/// An option of the Basic Application Level Confidentiality Profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProfileOption {
    /// E.3.1: configured regions of the pixels are blanked.
    CleanPixelData,
    /// E.3.3: geometry of annotations stays, their text goes.
    CleanGraphics,
    /// E.3.4: reports keep codes and numbers; of their text, known words.
    CleanStructuredContent,
    /// E.3.5: of descriptions, known words stay.
    CleanDescriptors,
    /// E.3.6: dates and times stay.
    RetainFullDates,
    /// E.3.6: dates are moved by a number of days of their own per patient.
    RetainModifiedDates,
    /// E.3.7
    RetainPatientCharacteristics,
    /// E.3.8
    RetainDeviceIdentity,
    /// E.3.9
    RetainUids,
    /// E.3.10, for the attributes listed in `walk`.
    RetainSafePrivate,
    /// E.3.11
    RetainInstitutionIdentity,
}

/// Code and meaning of the profile itself.
pub(super) const BASIC_PROFILE: (&str, &str) = ("113100", "Basic Application Confidentiality Profile");

impl ProfileOption {
    /// All, in the order of their codes.
    pub const ALL: [Self; 11] = [
        Self::CleanPixelData,
        Self::CleanGraphics,
        Self::CleanStructuredContent,
        Self::CleanDescriptors,
        Self::RetainFullDates,
        Self::RetainModifiedDates,
        Self::RetainPatientCharacteristics,
        Self::RetainDeviceIdentity,
        Self::RetainUids,
        Self::RetainSafePrivate,
        Self::RetainInstitutionIdentity,
    ];

    fn facts(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::CleanPixelData => ("clean-pixel-data", "113101", "Clean Pixel Data Option"),
            Self::CleanGraphics => ("clean-graphics", "113103", "Clean Graphics Option"),
            Self::CleanStructuredContent => ("clean-structured-content", "113104", "Clean Structured Content Option"),
            Self::CleanDescriptors => ("clean-descriptors", "113105", "Clean Descriptors Option"),
            Self::RetainFullDates => {
                ("retain-full-dates", "113106", "Retain Longitudinal Temporal Information Full Dates Option")
            }
            Self::RetainModifiedDates => {
                ("retain-modified-dates", "113107", "Retain Longitudinal Temporal Information Modified Dates Option")
            }
            Self::RetainPatientCharacteristics => {
                ("retain-patient-characteristics", "113108", "Retain Patient Characteristics Option")
            }
            Self::RetainDeviceIdentity => ("retain-device-identity", "113109", "Retain Device Identity Option"),
            Self::RetainUids => ("retain-uids", "113110", "Retain UIDs Option"),
            Self::RetainSafePrivate => ("retain-safe-private", "113111", "Retain Safe Private Option"),
            Self::RetainInstitutionIdentity => {
                ("retain-institution-identity", "113112", "Retain Institution Identity Option")
            }
        }
    }

    /// The name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.facts().0
    }

    /// The code value in CID 7050, coding scheme DCM.
    #[must_use]
    pub fn code(self) -> &'static str {
        self.facts().1
    }

    /// The code meaning in CID 7050.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        self.facts().2
    }

    fn exceptions(self) -> Exceptions {
        match self {
            Self::CleanPixelData | Self::RetainSafePrivate => 0,
            Self::CleanGraphics => table::GRAPHICS,
            Self::CleanStructuredContent => table::STRUCTURED,
            Self::CleanDescriptors => table::DESCRIPTORS,
            Self::RetainFullDates | Self::RetainModifiedDates => table::DATES,
            Self::RetainPatientCharacteristics => table::PATIENT | table::PATIENT_CLEAN,
            Self::RetainDeviceIdentity => table::DEVICE | table::DEVICE_CLEAN,
            Self::RetainUids => table::UIDS,
            Self::RetainInstitutionIdentity => table::INSTITUTION,
        }
    }
}

/// Why options cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// No such option.
    #[error("unknown option {0}")]
    Unknown(String),
    /// Faces and the like cannot be made unrecognisable here, so it is not claimed.
    #[error("clean-recognizable-visual-features is not offered: no method for it is implemented")]
    NotOffered,
    /// Dates cannot be both kept and moved.
    #[error("retain-full-dates and retain-modified-dates exclude each other")]
    Contradiction,
}

/// The options in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options(BTreeSet<ProfileOption>);

impl Options {
    /// A set of options.
    ///
    /// # Errors
    /// [`OptionError::Contradiction`]
    pub fn new(options: impl IntoIterator<Item = ProfileOption>) -> Result<Self, OptionError> {
        let options = Self(options.into_iter().collect());
        let both = options.has(ProfileOption::RetainFullDates) && options.has(ProfileOption::RetainModifiedDates);
        if both { Err(OptionError::Contradiction) } else { Ok(options) }
    }

    /// A set of options by their names on the command line.
    ///
    /// # Errors
    /// [`OptionError`]
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, OptionError> {
        let option = |name: &str| match name {
            "clean-recognizable-visual-features" => Err(OptionError::NotOffered),
            _ => ProfileOption::ALL
                .into_iter()
                .find(|option| option.name() == name)
                .ok_or_else(|| OptionError::Unknown(name.to_owned())),
        };
        Self::new(names.into_iter().map(option).collect::<Result<Vec<_>, _>>()?)
    }

    /// Whether an option is in force.
    #[must_use]
    pub fn has(&self, option: ProfileOption) -> bool {
        self.0.contains(&option)
    }

    /// The options in the order of their codes.
    pub fn iter(&self) -> impl Iterator<Item = ProfileOption> + '_ {
        self.0.iter().copied()
    }

    /// The columns of the table that apply.
    pub(super) fn exceptions(&self) -> Exceptions {
        self.iter().fold(0, |all, option| all | option.exceptions())
    }
}
