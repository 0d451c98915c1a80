//! Which regions of which machine's images hold text, from a TOML file.
//!
//! ```toml
//! [[rule]]
//! modality = "US"
//! manufacturer = "ACME"      # optional, as are the three below; compared without regard to case
//! model = "Scan 5"
//! rows = 480
//! columns = 640
//! blank = [[0, 0, 640, 40]]  # x, y, width, height in pixels
//! keep_only_ultrasound_regions = true  # blank what lies outside (0018,6011)
//! ```
//!
//! A rule says that outside of its regions there is no text. One that blanks nothing must say `no_text = true`.

use dicom_scp::dataset::{DataSet, Tag};
use serde::Deserialize;

const MODALITY: Tag = Tag(0x0008, 0x0060);
const MANUFACTURER: Tag = Tag(0x0008, 0x0070);
const MODEL_NAME: Tag = Tag(0x0008, 0x1090);
const ROWS: Tag = Tag(0x0028, 0x0010);
const COLUMNS: Tag = Tag(0x0028, 0x0011);
const ULTRASOUND_REGIONS: Tag = Tag(0x0018, 0x6011);
const REGION_LOCATION: [Tag; 4] = [Tag(0x0018, 0x6018), Tag(0x0018, 0x601A), Tag(0x0018, 0x601C), Tag(0x0018, 0x601E)];

/// A rectangle of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(from = "[u32; 4]")]
pub(super) struct Region {
    pub(super) x: u32,
    pub(super) y: u32,
    pub(super) width: u32,
    pub(super) height: u32,
}

impl From<[u32; 4]> for Region {
    fn from([x, y, width, height]: [u32; 4]) -> Self {
        Self { x, y, width, height }
    }
}

impl Region {
    pub(super) fn contains(&self, x: u32, y: u32) -> bool {
        x.checked_sub(self.x).is_some_and(|x| x < self.width) && y.checked_sub(self.y).is_some_and(|y| y < self.height)
    }
}

/// What to blank in every frame of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blanking {
    /// Blanked.
    pub(super) inside: Vec<Region>,
    /// Blanked outside of all of these, when there are any.
    pub(super) outside: Vec<Region>,
}

impl Blanking {
    pub(super) fn covers(&self, x: u32, y: u32) -> bool {
        let is_outside = !self.outside.is_empty() && !self.outside.iter().any(|region| region.contains(x, y));
        is_outside || self.inside.iter().any(|region| region.contains(x, y))
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.inside.is_empty() && self.outside.is_empty()
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    modality: String,
    manufacturer: Option<String>,
    model: Option<String>,
    rows: Option<i64>,
    columns: Option<i64>,
    #[serde(default)]
    blank: Vec<Region>,
    #[serde(default)]
    keep_only_ultrasound_regions: bool,
    #[serde(default)]
    no_text: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<Rule>,
}

/// The region rules, in the order in which they are tried.
#[derive(Debug, Clone, Default)]
pub struct Rules(Vec<Rule>);

/// Why rules cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// No TOML, an unknown key, a missing or impossible value.
    #[error("cannot understand the rules")]
    Form(#[from] config::ConfigError),
    /// A rule that would let everything through without saying so.
    #[error("rule {0} blanks nothing and does not say no_text = true")]
    Nothing(usize),
    /// A rule that says both.
    #[error("rule {0} says no_text = true and blanks regions")]
    Contradiction(usize),
}

impl Rules {
    /// Reads rules from the text of a TOML file.
    ///
    /// # Errors
    /// [`RulesError`]; rules are counted from 1.
    pub fn parse(toml: &str) -> Result<Self, RulesError> {
        let source = config::File::from_str(toml, config::FileFormat::Toml);
        let file: File = config::Config::builder().add_source(source).build()?.try_deserialize()?;
        for (index, rule) in file.rule.iter().enumerate() {
            match (rule.no_text, rule.blank.is_empty() && !rule.keep_only_ultrasound_regions) {
                (false, true) => return Err(RulesError::Nothing(index + 1)),
                (true, false) => return Err(RulesError::Contradiction(index + 1)),
                _ => {}
            }
        }
        Ok(Self(file.rule))
    }

    /// What the first rule that matches wants blanked.
    pub(super) fn blanking(&self, data_set: &DataSet) -> Option<Blanking> {
        self.0.iter().filter(|rule| rule.matches(data_set)).find_map(|rule| rule.blanking(data_set))
    }
}

impl Rule {
    fn matches(&self, data_set: &DataSet) -> bool {
        let text = |tag, wanted: &Option<String>| {
            wanted.as_ref().is_none_or(|wanted| {
                data_set.text(tag).is_some_and(|value| value.to_lowercase() == wanted.trim().to_lowercase())
            })
        };
        let number = |tag, wanted: Option<i64>| wanted.is_none_or(|wanted| data_set.int(tag) == Some(wanted));
        data_set.text(MODALITY).as_deref() == Some(self.modality.as_str())
            && text(MANUFACTURER, &self.manufacturer)
            && text(MODEL_NAME, &self.model)
            && number(ROWS, self.rows)
            && number(COLUMNS, self.columns)
    }

    /// `None` when the object lacks the ultrasound regions that the rule relies on.
    fn blanking(&self, data_set: &DataSet) -> Option<Blanking> {
        let outside = if self.keep_only_ultrasound_regions { ultrasound_regions(data_set)? } else { Vec::new() };
        Some(Blanking { inside: self.blank.clone(), outside })
    }
}

/// Sequence of Ultrasound Regions (PS3.3 C.8.5.5): corners, both inside.
fn ultrasound_regions(data_set: &DataSet) -> Option<Vec<Region>> {
    let items = data_set.items(ULTRASOUND_REGIONS).filter(|items| !items.is_empty())?;
    let region = |item: &DataSet| {
        let corner = |index: usize| u32::try_from(item.int(*REGION_LOCATION.get(index)?)?).ok();
        let (x, y) = (corner(0)?, corner(1)?);
        let (width, height) = (corner(2)?.checked_sub(x)?.checked_add(1)?, corner(3)?.checked_sub(y)?.checked_add(1)?);
        Some(Region { x, y, width, height })
    };
    items.iter().map(region).collect()
}
