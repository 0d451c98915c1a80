//! Going through a data set, sequences included, and doing to each value what [`super::action`] says.
//!
//! Values in, values out. Must not decide whether an object may be de-identified at all, and must not know pixels.

use dicom_scp::dataset::{DataSet, Element, Tag, VR, Value, dictionary_vr, is_text};

use super::action::{Action, action, base_action, is_well_known};
use super::keyed::Names;
use super::options::{Options, ProfileOption};
use super::{Counts, dates, private, words};

const SPECIFIC_CHARACTER_SET: Tag = Tag(0x0008, 0x0005);
const PATIENT_NAME: Tag = Tag(0x0010, 0x0010);
const PATIENT_ID: Tag = Tag(0x0010, 0x0020);
const ISSUER_OF_PATIENT_ID: Tag = Tag(0x0010, 0x0021);
const PATIENT_AGE: Tag = Tag(0x0010, 0x1010);
const STUDY_INSTANCE_UID: Tag = Tag(0x0020, 0x000D);
const CODE_VALUE: Tag = Tag(0x0008, 0x0100);
const CODING_SCHEME_DESIGNATOR: Tag = Tag(0x0008, 0x0102);
const TEXT_OBJECT_SEQUENCE: Tag = Tag(0x0070, 0x0008);
/// Pixels, the offset tables of encapsulated ones, and what follows: belongs to the object as a whole.
const PIXEL_GROUP: u16 = 0x7FE0;
/// What the result says about itself, written afresh in `super`.
const OWN_STATEMENTS: [Tag; 5] =
    [Tag(0x0012, 0x0062), Tag(0x0012, 0x0063), Tag(0x0012, 0x0064), Tag(0x0028, 0x0301), Tag(0x0028, 0x0303)];

/// Identifiers that are looked for in what would be kept, besides all persons' names.
const SOUGHT: [Tag; 8] = [
    PATIENT_ID,
    Tag(0x0010, 0x1000), // Other Patient IDs
    Tag(0x0010, 0x0030), // Patient's Birth Date
    Tag(0x0010, 0x1040), // Patient's Address
    Tag(0x0010, 0x2154), // Patient's Telephone Numbers
    Tag(0x0008, 0x0050), // Accession Number
    Tag(0x0038, 0x0010), // Admission ID
    Tag(0x0020, 0x0010), // Study ID
];
/// Shorter identifiers would be found in innocent text.
const SOUGHT_CHARS_MIN: usize = 4;

/// Coding schemes whose codes are public (PS3.16 8).
const CODING_SCHEMES: [&str; 14] =
    ["DCM", "SCT", "SRT", "SNM3", "99SDM", "LN", "UCUM", "RADLEX", "FMA", "NCIt", "UMLS", "I10", "I9C", "MDC"];

/// The text that replaces text.
const DUMMY_TEXT: &str = "REMOVED";

/// How far the values of a data set may survive, besides what the table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inside {
    /// As the table says.
    Plain,
    /// Inside of what is cleaned: of text, only known words and public codes.
    Cleaned,
    /// Inside of a sequence that is replaced by a dummy: no value.
    Dummy,
}

/// What the whole object has in common.
pub(super) struct Walk<'a> {
    names: Names<'a>,
    options: &'a Options,
    subject: String,
    shift_days: i64,
    sought: Vec<String>,
    /// What was done, by element.
    pub(super) counts: Counts,
}

impl<'a> Walk<'a> {
    /// Prepares for one object. `data_set` has its text in UTF-8.
    pub(super) fn new(data_set: &DataSet, names: Names<'a>, options: &'a Options) -> Self {
        let subject = subject(data_set).or_else(|| data_set.text(STUDY_INSTANCE_UID)).unwrap_or_default();
        let shift_days = names.shift_days(&subject);
        let mut sought = Vec::new();
        collect_sought(data_set, &mut sought);
        // What a former run left in place of a name is no identifier.
        sought.retain(|identifier| identifier != DUMMY_TEXT);
        sought.sort_unstable();
        sought.dedup();
        Self { names, options, subject, shift_days, sought, counts: Counts::default() }
    }

    /// The object's elements, de-identified; without pixels and without the statements of `OWN_STATEMENTS`.
    pub(super) fn object(&mut self, data_set: &DataSet) -> DataSet {
        let mut out = self.items_of(data_set, Inside::Plain);
        let pseudonym = self.names.pseudonym(&self.subject);
        out.put_text(PATIENT_NAME, VR::PN, &pseudonym);
        out.put_text(PATIENT_ID, VR::LO, &pseudonym);
        out
    }

    fn items_of(&mut self, data_set: &DataSet, inside: Inside) -> DataSet {
        let mut out = DataSet::new();
        for (tag, element) in data_set {
            match self.element(data_set, *tag, element, inside) {
                Some(element) => out.put(*tag, element),
                None => self.counts.removed += usize::from(!is_managed(*tag)),
            }
        }
        out
    }

    fn element(&mut self, holder: &DataSet, tag: Tag, element: &Element, inside: Inside) -> Option<Element> {
        if is_managed(tag) || (inside == Inside::Cleaned && tag == TEXT_OBJECT_SEQUENCE) {
            return None;
        }
        if !tag.0.is_multiple_of(2) {
            let safe = self.options.has(ProfileOption::RetainSafePrivate) && inside == Inside::Plain;
            return safe.then(|| private::kept(holder, tag, element)).flatten().inspect(|_| self.counts.kept += 1);
        }
        let action = action(tag, self.options);
        let vr = agreed_vr(tag, element)?;
        if action == Action::Remove {
            return None;
        }
        if element.is_empty() {
            return Some(Element::empty(vr));
        }
        if tag == PATIENT_NAME || tag == PATIENT_ID {
            return Some(self.identity(holder, vr));
        }
        match &element.value {
            Value::Items(items) => Some(self.sequence(tag, items, action, inside)),
            Value::Bytes(bytes) if inside == Inside::Dummy => Some(self.dummy(vr, bytes)),
            Value::Bytes(bytes) => self.value(holder, tag, vr, bytes, action, inside),
            Value::Skipped { .. } => None,
        }
    }

    /// A patient's name or id: of the object itself or, in items, of whom that item names.
    fn identity(&mut self, holder: &DataSet, vr: VR) -> Element {
        self.counts.replaced += 1;
        text(vr, &self.names.pseudonym(&subject(holder).unwrap_or_else(|| self.subject.clone())))
    }

    fn sequence(&mut self, tag: Tag, items: &[DataSet], action: Action, inside: Inside) -> Element {
        let deeper = match action {
            Action::Empty => {
                self.counts.emptied += 1;
                return Element::sequence(Vec::new());
            }
            Action::Dummy => Inside::Dummy,
            Action::Clean if inside != Inside::Dummy => Inside::Cleaned,
            // A sequence of dates has no date of its own.
            _ if base_action(tag) == Action::Dummy && action == Action::ShiftTime => Inside::Cleaned,
            _ => inside,
        };
        Element::sequence(items.iter().map(|item| self.items_of(item, deeper)).collect())
    }

    fn value(
        &mut self,
        holder: &DataSet,
        tag: Tag,
        vr: VR,
        bytes: &[u8],
        action: Action,
        inside: Inside,
    ) -> Option<Element> {
        let kept = match action {
            Action::Remove | Action::Empty | Action::Dummy | Action::ReplaceUid => None,
            Action::Keep if inside == Inside::Cleaned => self.kept_in_clean(holder, tag, vr, bytes),
            Action::Keep => self.kept(tag, vr, bytes),
            Action::KeepTime => times(vr, bytes, 0),
            Action::ShiftTime if is_text(vr) => times(vr, bytes, self.shift_days),
            // A binary time stamp cannot be moved by days without knowing its unit.
            Action::ShiftTime => None,
            Action::Clean => self.words_of(vr, bytes).inspect(|_| self.counts.cleaned += 1),
        };
        if let Some(element) = kept {
            self.counts.kept += 1;
            return Some(element);
        }
        let fallback = match action {
            Action::Keep => Action::Dummy,
            Action::KeepTime | Action::ShiftTime | Action::Clean => base_action(tag),
            action => action,
        };
        self.replaced(vr, bytes, fallback)
    }

    fn replaced(&mut self, vr: VR, bytes: &[u8], action: Action) -> Option<Element> {
        match action {
            Action::Remove => None,
            Action::Empty => {
                self.counts.emptied += 1;
                Some(Element::empty(vr))
            }
            _ => Some(self.dummy(vr, bytes)),
        }
    }

    /// A value that is to be kept, unless an identifier of this object is found in it.
    fn kept(&self, tag: Tag, vr: VR, bytes: &[u8]) -> Option<Element> {
        if tag == PATIENT_AGE {
            return Some(text(vr, &capped_age(&decoded(bytes))?));
        }
        if is_free(vr) && self.names_somebody(&decoded(bytes)) {
            return None;
        }
        Some(Element::bytes(vr, bytes))
    }

    fn kept_in_clean(&mut self, holder: &DataSet, tag: Tag, vr: VR, bytes: &[u8]) -> Option<Element> {
        let scheme = || holder.text(CODING_SCHEME_DESIGNATOR).is_some_and(|name| CODING_SCHEMES.contains(&&*name));
        match tag {
            CODE_VALUE | CODING_SCHEME_DESIGNATOR if scheme() && is_code(bytes) => self.kept(tag, vr, bytes),
            _ if is_free(vr) => self.words_of(vr, bytes),
            _ => self.kept(tag, vr, bytes),
        }
    }

    fn words_of(&self, vr: VR, bytes: &[u8]) -> Option<Element> {
        if !is_free(vr) {
            return None;
        }
        let bytes_max = if vr == VR::SH { 16 } else { 64 };
        let words = words::cleaned(&decoded(bytes), bytes_max)?;
        (!self.names_somebody(&words)).then(|| text(vr, &words))
    }

    fn names_somebody(&self, text: &str) -> bool {
        let text = text.to_uppercase();
        self.sought.iter().any(|identifier| text.contains(identifier.as_str()))
    }

    /// A value of this VR that says nothing; a UID gets its replacement.
    fn dummy(&mut self, vr: VR, bytes: &[u8]) -> Element {
        self.counts.replaced += 1;
        match vr {
            VR::UI => self.uids(bytes),
            VR::DA => text(vr, "19000101"),
            VR::DT => text(vr, "19000101000000"),
            VR::TM => text(vr, "000000"),
            VR::AS => text(vr, "000Y"),
            VR::DS | VR::IS => text(vr, "0"),
            VR::UR => text(vr, "about:blank"),
            VR::SQ => Element::sequence(Vec::new()),
            vr if is_text(vr) => text(vr, DUMMY_TEXT),
            _ => Element::bytes(vr, vec![0; bytes.len()]),
        }
    }

    fn uids(&self, bytes: &[u8]) -> Element {
        let all = decoded(bytes);
        let replaced = |uid: &str| match uid.trim_matches([' ', '\0']) {
            "" => String::new(),
            uid if is_well_known(uid) => uid.to_owned(),
            uid => self.names.uid(uid),
        };
        text(VR::UI, &all.split('\\').map(replaced).collect::<Vec<_>>().join("\\"))
    }
}

/// Whose data this is: the patient's id and who gave it.
fn subject(data_set: &DataSet) -> Option<String> {
    let id = data_set.text(PATIENT_ID)?;
    Some(match data_set.text(ISSUER_OF_PATIENT_ID) {
        Some(issuer) => format!("{id}\\{issuer}"),
        None => id,
    })
}

/// Elements that are not the walk's business: written by the caller or added at the end.
fn is_managed(tag: Tag) -> bool {
    tag == SPECIFIC_CHARACTER_SET || tag.0 == PIXEL_GROUP || OWN_STATEMENTS.contains(&tag)
}

/// The VR to write: the received one where the dictionary allows it. `None` when a value pretends to be something else than
/// what its attribute is.
fn agreed_vr(tag: Tag, element: &Element) -> Option<VR> {
    let expected = dictionary_vr(tag)?;
    let is_sequence = matches!(element.value, Value::Items(_));
    let received = element.vr;
    match (expected, received) {
        _ if is_sequence != (expected == VR::SQ) => None,
        (expected, received) if expected == received => Some(expected),
        (VR::OB | VR::OW, VR::OB | VR::OW) | (VR::US | VR::SS | VR::OW, VR::US | VR::SS | VR::OW) => Some(received),
        (expected, received) if is_text(expected) && is_text(received) => Some(expected),
        _ => None,
    }
}

/// VRs whose values people write.
fn is_free(vr: VR) -> bool {
    matches!(vr, VR::LO | VR::SH | VR::LT | VR::ST | VR::UT | VR::UC | VR::AE | VR::UR | VR::PN)
}

fn decoded(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_matches([' ', '\0']).to_owned()
}

fn text(vr: VR, text: &str) -> Element {
    let mut bytes = text.as_bytes().to_vec();
    if bytes.len() % 2 == 1 {
        bytes.push(if vr == VR::UI { 0 } else { b' ' });
    }
    Element::bytes(vr, bytes)
}

/// Every value a time, moved; otherwise nothing.
fn times(vr: VR, bytes: &[u8], days: i64) -> Option<Element> {
    if !is_text(vr) {
        return Some(Element::bytes(vr, bytes));
    }
    let moved =
        |value: &str| if value.trim().is_empty() { Some(String::new()) } else { dates::shifted(vr, value, days) };
    let all: Option<Vec<String>> = decoded(bytes).split('\\').map(moved).collect();
    Some(text(vr, &all?.join("\\")))
}

/// Ages above 89 are few enough to identify; they become 90.
fn capped_age(age: &str) -> Option<String> {
    let (number, unit) = age.split_at_checked(age.len().checked_sub(1)?)?;
    let number: u32 = number.parse().ok()?;
    matches!(unit, "D" | "W" | "M" | "Y").then_some(())?;
    Some(if unit == "Y" && number > 89 { "090Y".to_owned() } else { format!("{number:03}{unit}") })
}

fn is_code(bytes: &[u8]) -> bool {
    let text = decoded(bytes);
    text.len() <= 18 && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
}

/// The identifiers to look for: ids, and the parts of every person's name, in capitals.
fn collect_sought(data_set: &DataSet, sought: &mut Vec<String>) {
    for (tag, element) in data_set {
        match &element.value {
            Value::Items(items) => items.iter().for_each(|item| collect_sought(item, sought)),
            Value::Bytes(bytes) if element.vr == VR::PN => {
                let name = decoded(bytes).to_uppercase();
                sought.extend(name.split(['^', '=', '\\', ' ', ',']).filter(|part| is_long(part)).map(str::to_owned));
            }
            Value::Bytes(bytes) if SOUGHT.contains(tag) => {
                let ids = decoded(bytes).to_uppercase();
                sought.extend(ids.split('\\').map(str::trim).filter(|id| is_long(id)).map(str::to_owned));
            }
            _ => {}
        }
    }
}

fn is_long(identifier: &str) -> bool {
    identifier.chars().count() >= SOUGHT_CHARS_MIN
}
