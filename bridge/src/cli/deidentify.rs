//! `pacs-bridge deidentify`: files in, files of nobody out.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::Failed;
use super::clients::below;
use super::output::{Output, table};
use crate::deidentify::{Deidentifier, Key, Options, Report, Rules};

/// What to de-identify, and how.
#[derive(Debug, Args)]
pub(super) struct Deidentify {
    /// DICOM files, or directories of them.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Directory for the results, STUDY/INSTANCE.dcm by their new UIDs. Nothing in it is overwritten.
    #[arg(long)]
    out: PathBuf,
    /// File with the study group's key. The same key gives the same pseudonyms and UIDs.
    #[arg(long)]
    key_file: PathBuf,
    /// Make the key; the file must not exist yet.
    #[arg(long)]
    new_key: bool,
    /// An option of PS3.15 E.3, such as retain-modified-dates, retain-device-identity or clean-descriptors; repeat for more.
    #[arg(long = "option", value_name = "NAME")]
    options: Vec<String>,
    /// TOML file with the regions to blank, for clean-pixel-data.
    #[arg(long)]
    rules: Option<PathBuf>,
}

/// What became of a file.
#[derive(Debug, Serialize)]
struct Row {
    file: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    out: Option<PathBuf>,
    #[serde(flatten)]
    report: Option<Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

pub(super) fn run(arguments: &Deidentify, output: &Output) -> Result<ExitCode, Failed> {
    let options = Options::from_names(arguments.options.iter().map(String::as_str))?;
    let rules = match &arguments.rules {
        Some(file) => Rules::parse(&read_text(file)?)?,
        None => Rules::default(),
    };
    let key = if arguments.new_key { make_key(&arguments.key_file)? } else { read_key(&arguments.key_file)? };
    let deidentifier = Deidentifier::new(key, options, rules);
    let files = arguments.files.iter().flat_map(|path| below(path));
    let rows: Vec<Row> = files.map(|file| one(&deidentifier, file, &arguments.out)).collect();
    print(&rows, output);
    let all = rows.iter().all(|row| row.refused.is_none());
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn one(deidentifier: &Deidentifier, file: PathBuf, out: &Path) -> Row {
    match write_one(deidentifier, &file, out) {
        Ok((path, report)) => Row { file, out: Some(path), report: Some(report), refused: None },
        Err(words) => Row { file, out: None, report: None, refused: Some(words) },
    }
}

fn write_one(deidentifier: &Deidentifier, file: &Path, out: &Path) -> Result<(PathBuf, Report), String> {
    let bytes = fs::read(file).map_err(|error| format!("cannot read: {error}"))?;
    let (bytes, report) = deidentifier.file(&bytes).map_err(|error| crate::chain_of(&error))?;
    let dir = report.study_instance.as_ref().map_or_else(|| out.to_owned(), |uid| out.join(uid.as_str()));
    let path = dir.join(format!("{}.dcm", report.sop_instance));
    fs::create_dir_all(&dir)
        .and_then(|()| write_new(&path, &bytes, 0o666))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    Ok((path, report))
}

/// Writes a file that must not exist yet; what could not be written whole is removed.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    let written = file.write_all(bytes).and_then(|()| File::sync_all(&file));
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written
}

fn make_key(path: &Path) -> Result<Key, Failed> {
    let key = Key::random();
    write_new(path, format!("{}\n", key.to_hex()).as_bytes(), 0o600)
        .map_err(|error| Failed(format!("cannot make the key file {}: {error}", path.display())))?;
    Ok(key)
}

fn read_key(path: &Path) -> Result<Key, Failed> {
    let wrong = || Failed(format!("{} does not hold a key; --new-key makes one", path.display()));
    Key::from_hex(&read_text(path)?).ok_or_else(wrong)
}

fn read_text(path: &Path) -> Result<String, Failed> {
    fs::read_to_string(path).map_err(|error| Failed(format!("cannot read {}: {error}", path.display())))
}

fn print(rows: &[Row], output: &Output) {
    if output.is_json() {
        return output.json(&rows);
    }
    let line = |row: &Row| {
        let counts = row.report.as_ref().map(|report| report.counts).unwrap_or_default();
        let numbers = [counts.kept, counts.replaced, counts.emptied, counts.removed].map(|count| count.to_string());
        let result = match (&row.out, &row.refused) {
            (Some(path), _) => path.display().to_string(),
            (None, refused) => format!("refused: {}", refused.as_deref().unwrap_or_default()),
        };
        let [kept, replaced, emptied, removed] = numbers;
        vec![row.file.display().to_string(), kept, replaced, emptied, removed, result]
    };
    let lines: Vec<Vec<String>> = rows.iter().map(line).collect();
    print!("{}", table(&["file", "kept", "replaced", "emptied", "removed", "result"], lines));
}
