//! Reads a configuration tree key by key and collects every mistake instead of stopping at the first.

use std::collections::BTreeMap;
use std::fmt;

use config::{Value, ValueKind};

/// One mistake in the configuration, naming the key as the ops person wrote it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// Dotted path of the key, e.g. `dicom.bind` or `peer[2].port`.
    pub key: String,
    /// What is wrong with it and what would be right.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.what)
    }
}

/// One table of the configuration. Every key is taken once; [`Section::end`] reports what nobody took.
pub(super) struct Section<'a> {
    path: String,
    table: BTreeMap<String, Value>,
    known: Vec<&'static str>,
    mistakes: &'a mut Vec<Mistake>,
}

impl<'a> Section<'a> {
    /// Opens a table. Anything but a table is a mistake and reads as an empty one.
    pub(super) fn open(path: String, value: Option<Value>, mistakes: &'a mut Vec<Mistake>) -> Self {
        let mut section = Self { path, table: BTreeMap::new(), known: Vec::new(), mistakes };
        match value.map(|v| v.kind) {
            None | Some(ValueKind::Nil) => {}
            Some(ValueKind::Table(table)) => section.table = table.into_iter().collect(),
            Some(other) => {
                let what = format!("expected a table, found {}", describe(&other));
                section.mistakes.push(Mistake { key: section.path.clone(), what });
            }
        }
        section
    }

    /// Takes a key and parses it; a missing key gives the default, a wrong one the default and a mistake.
    pub(super) fn take<T>(
        &mut self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&ValueKind) -> Result<T, String>,
    ) -> T {
        self.known.push(key);
        let Some(value) = self.table.remove(key) else { return default };
        match parse(&value.kind) {
            Ok(parsed) => parsed,
            Err(what) => {
                self.mistake(key, what);
                default
            }
        }
    }

    /// Records a mistake about a key of this table.
    pub(super) fn mistake(&mut self, key: &str, what: impl Into<String>) {
        let key = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        self.mistakes.push(Mistake { key, what: what.into() });
    }

    /// Whether the table names the key at all.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether nothing is wrong with a key of this table so far.
    pub(super) fn is_right(&self, key: &str) -> bool {
        let key = format!("{}.{key}", self.path);
        self.mistakes.iter().all(|mistake| mistake.key != key)
    }

    /// Takes a sub-table or a list of tables as it is.
    pub(super) fn take_value(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.table.remove(key)
    }

    /// Reports every key that nobody asked for.
    pub(super) fn end(mut self) {
        for key in std::mem::take(&mut self.table).into_keys() {
            let near = self.known.iter().filter(|known| distance(known, &key) <= 2).min_by_key(|k| distance(k, &key));
            let what = match near {
                Some(known) => format!("unknown key; did you mean `{known}`?"),
                None => format!("unknown key; known here: {}", self.known.join(", ")),
            };
            self.mistake(&key, what);
        }
    }
}

/// Text, as written. Numbers and booleans are refused: an AE title `0123` must not become `123`.
pub(super) fn text(value: &ValueKind) -> Result<String, String> {
    match value {
        ValueKind::String(text) => Ok(text.clone()),
        other => Err(format!("expected text in quotes, found {}", describe(other))),
    }
}

/// A whole number within bounds; text holding one is accepted, because the environment has only text.
pub(super) fn number(min: u64, max: u64) -> impl Fn(&ValueKind) -> Result<u64, String> {
    move |value| {
        let found = match value {
            ValueKind::I64(n) => u64::try_from(*n).ok(),
            ValueKind::U64(n) => Some(*n),
            ValueKind::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        match found {
            Some(n) if (min..=max).contains(&n) => Ok(n),
            _ => Err(format!("expected a whole number from {min} to {max}, found {}", describe(value))),
        }
    }
}

/// `true` or `false`, also as text.
pub(super) fn flag(value: &ValueKind) -> Result<bool, String> {
    match value {
        ValueKind::Boolean(flag) => Ok(*flag),
        ValueKind::String(text) if text == "true" => Ok(true),
        ValueKind::String(text) if text == "false" => Ok(false),
        other => Err(format!("expected true or false, found {}", describe(other))),
    }
}

/// A list; a single text splits at commas, because the environment has only text.
pub(super) fn list<T>(item: impl Fn(&ValueKind) -> Result<T, String>) -> impl Fn(&ValueKind) -> Result<Vec<T>, String> {
    move |value| match value {
        ValueKind::Array(items) => items.iter().map(|v| item(&v.kind)).collect(),
        ValueKind::String(text) if text.trim().is_empty() => Ok(Vec::new()),
        ValueKind::String(text) => {
            text.split(',').map(|part| item(&ValueKind::String(part.trim().to_owned()))).collect()
        }
        other => Err(format!("expected a list, found {}", describe(other))),
    }
}

/// One of a few words.
pub(super) fn one_of<T: Copy>(words: &[(&'static str, T)]) -> impl Fn(&ValueKind) -> Result<T, String> {
    move |value| {
        let found = text(value)?;
        words.iter().find(|(word, _)| *word == found).map(|(_, meaning)| *meaning).ok_or_else(|| {
            let known: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
            format!("expected one of {}, found \"{found}\"", known.join(", "))
        })
    }
}

/// Text parsed by a type's own rules.
pub(super) fn parsed<T: std::str::FromStr>(expected: &'static str) -> impl Fn(&ValueKind) -> Result<T, String> {
    move |value| {
        let found = text(value)?;
        found.parse().map_err(|_| format!("expected {expected}, found \"{found}\""))
    }
}

pub(super) fn describe(value: &ValueKind) -> String {
    match value {
        ValueKind::Nil => "nothing".to_owned(),
        ValueKind::Boolean(flag) => flag.to_string(),
        ValueKind::I64(n) => n.to_string(),
        ValueKind::U64(n) => n.to_string(),
        ValueKind::Float(n) => n.to_string(),
        ValueKind::String(text) => format!("\"{text}\""),
        ValueKind::Table(_) => "a table".to_owned(),
        ValueKind::Array(_) => "a list".to_owned(),
        _ => "a value of another kind".to_owned(),
    }
}

/// Levenshtein distance, to suggest the key that was meant.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let cost = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
