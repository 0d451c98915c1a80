//! The client commands: C-ECHO, C-STORE and C-FIND towards a peer.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use dicom_core::dictionary::{DataDictionary, DataDictionaryEntry};
use dicom_dictionary_std::StandardDataDictionary;
use dicom_scp::dataset::{DataSet, Element, Tag, VR, Value};
use dicom_scp::dimse::Priority;
use dicom_scp::scu::{Association, CONTEXTS_MAX, Proposal, ScuOptions, StoreRequest, is_stored};
use dicom_scp::status::StatusKind;
use dicom_scp::{AeTitle, TransferSyntax, Uid, sop_class};
use indicatif::{ProgressBar, ProgressStyle};

use super::Failed;
use super::output::{Output, size, table};
use crate::archive::FileMeta;
use crate::config::Config;
use crate::dicom::{echo, encrypted};

/// Whom a command talks to.
struct Target {
    options: ScuOptions,
    host: String,
    port: u16,
}

/// A configured peer's title, or `AETITLE@HOST:PORT`.
fn target(config: &Config, peer: &str) -> Result<Target, Failed> {
    let ours = config.dicom.ae_title.clone();
    if let Some((title, address)) = peer.split_once('@') {
        let wrong = || Failed(format!("\"{peer}\" is not AETITLE@HOST:PORT"));
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        let title = AeTitle::new(title).map_err(|_| wrong())?;
        let options = ScuOptions::new(ours, title);
        return Ok(Target { options, host: host.to_owned(), port: port.parse().map_err(|_| wrong())? });
    }
    match config.peers.iter().find(|known| known.ae_title.as_str() == peer && known.port != 0) {
        Some(known) => Ok(Target {
            options: ScuOptions { secure: encrypted::towards(known)?, ..ScuOptions::new(ours, known.ae_title.clone()) },
            host: known.host.clone(),
            port: known.port,
        }),
        None => Err(Failed(format!(
            "no [[peer]] \"{peer}\" with host and port is configured; AETITLE@HOST:PORT works without"
        ))),
    }
}

async fn connect(target: Target, proposals: Vec<Proposal>) -> Result<Association, Failed> {
    Ok(Association::connect(&target.host, target.port, &target.options, &proposals).await?)
}

pub(super) async fn echo(config: &Config, peer: &str, output: &Output) -> Result<ExitCode, Failed> {
    let Target { options, host, port } = target(config, peer)?;
    let echoed = echo::echo(&host, port, &options).await?;
    let milliseconds = echoed.after.as_secs_f64() * 1000.0;
    if output.is_json() {
        output.json(&serde_json::json!({ "peer": peer, "status": echoed.status.to_string(), "ms": milliseconds }));
    } else {
        println!("{peer} answered {} in {milliseconds:.1} ms", echoed.status);
    }
    Ok(if echoed.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A file to be sent.
struct Outgoing {
    path: PathBuf,
    request: StoreRequest,
    offset: u64,
}

pub(super) async fn send(config: &Config, peer: &str, files: &[PathBuf], output: &Output) -> Result<ExitCode, Failed> {
    let mut found = Vec::new();
    let mut failures: Vec<(String, String)> = Vec::new();
    for path in files.iter().flat_map(|path| below(path)) {
        match outgoing(&path) {
            Ok(one) => found.push(one),
            Err(error) => failures.push((path.display().to_string(), error)),
        }
    }
    let bytes: u64 = found.iter().map(|one| one.request.bytes).sum();
    let bar = progress(bytes, output);
    let mut sent = 0_u64;
    for group in in_contexts(found) {
        let proposals = group.iter().map(|(key, _)| Proposal::new(key.0, vec![key.1])).collect();
        let mut association = connect(target(config, peer)?, proposals).await?;
        for one in group.into_iter().flat_map(|(_, members)| members) {
            match store(&mut association, &one).await {
                Ok(()) => sent += 1,
                Err(why) => failures.push((one.path.display().to_string(), why)),
            }
            bar.inc(one.request.bytes);
        }
        association.release().await?;
    }
    bar.finish_and_clear();
    report(output, sent, bytes, &failures);
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn store(association: &mut Association, one: &Outgoing) -> Result<(), String> {
    let fail = |e: &dyn std::error::Error| e.to_string();
    if !association.can_store(&one.request.sop_class, &one.request.transfer_syntax) {
        return Err(format!(
            "the peer does not take {} in {}",
            one.request.sop_class,
            one.request.transfer_syntax.uid()
        ));
    }
    let mut file = tokio::fs::File::open(&one.path).await.map_err(|e| fail(&e))?;
    tokio::io::AsyncSeekExt::seek(&mut file, SeekFrom::Start(one.offset)).await.map_err(|e| fail(&e))?;
    match association.store(&one.request, &mut file).await {
        Ok(outcome) if is_stored(&outcome) => Ok(()),
        Ok(outcome) => Err(format!("{} {}", outcome.status, outcome.comment.unwrap_or_default()).trim_end().to_owned()),
        Err(error) => Err(crate::chain_of(&error)),
    }
}

fn outgoing(path: &Path) -> Result<Outgoing, String> {
    let read = |path: &Path| {
        let mut file = File::open(path)?;
        let (meta, offset) = FileMeta::read(&mut file)?;
        let end = file.seek(SeekFrom::End(0))?;
        Ok::<_, crate::archive::Part10Error>((meta, offset, end))
    };
    let (meta, offset, end) = read(path).map_err(|error| crate::chain_of(&error))?;
    let syntax = TransferSyntax::of(&meta.transfer_syntax)
        .ok_or_else(|| format!("unknown transfer syntax {}", meta.transfer_syntax))?;
    let request = StoreRequest {
        sop_class: meta.sop_class,
        sop_instance: meta.sop_instance,
        transfer_syntax: syntax,
        bytes: end.saturating_sub(offset),
        priority: Priority::Medium,
        move_originator: None,
    };
    Ok(Outgoing { path: path.to_owned(), request, offset })
}

type Context = (Uid, TransferSyntax);
type ContextGroup = Vec<(Context, Vec<Outgoing>)>;

/// Files by presentation context, in groups that fit one association each.
fn in_contexts(files: Vec<Outgoing>) -> Vec<ContextGroup> {
    let mut contexts: BTreeMap<(Uid, Uid), (Context, Vec<Outgoing>)> = BTreeMap::new();
    for one in files {
        let (class, syntax) = (one.request.sop_class, one.request.transfer_syntax);
        contexts.entry((class, *syntax.uid())).or_insert_with(|| ((class, syntax), Vec::new())).1.push(one);
    }
    let mut groups: Vec<ContextGroup> = Vec::new();
    for context in contexts.into_values() {
        match groups.last_mut().filter(|group| group.len() < CONTEXTS_MAX) {
            Some(group) => group.push(context),
            None => groups.push(vec![context]),
        }
    }
    groups
}

/// The regular files at or below a path, in order. Links are not followed into directories.
pub(super) fn below(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else { return vec![path.to_owned()] };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().filter(|path| !(path.is_symlink() && path.is_dir())).flat_map(|path| below(path)).collect()
}

fn progress(bytes: u64, output: &Output) -> ProgressBar {
    if output.is_json() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(bytes);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}") {
        bar.set_style(style);
    }
    bar
}

fn report(output: &Output, sent: u64, bytes: u64, failures: &[(String, String)]) {
    if output.is_json() {
        let failed: Vec<_> =
            failures.iter().map(|(file, why)| serde_json::json!({ "file": file, "why": why })).collect();
        output.json(&serde_json::json!({ "sent": sent, "failed": failed }));
        return;
    }
    println!("{sent} objects sent ({})", size(bytes));
    let rows: Vec<Vec<String>> = failures.iter().map(|(file, why)| vec![file.clone(), why.clone()]).collect();
    if !rows.is_empty() {
        print!("{}", table(&["NOT SENT", "WHY"], rows));
    }
}

/// Return keys of each level when none are asked for.
fn usual_keys(level: &str) -> &'static [&'static str] {
    match level {
        "PATIENT" => &["PatientName", "PatientID", "PatientBirthDate", "PatientSex"],
        "SERIES" => &[
            "StudyInstanceUID",
            "SeriesInstanceUID",
            "Modality",
            "SeriesNumber",
            "SeriesDescription",
            "NumberOfSeriesRelatedInstances",
        ],
        "IMAGE" => &["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "InstanceNumber"],
        _ => &[
            "PatientName",
            "PatientID",
            "StudyDate",
            "ModalitiesInStudy",
            "StudyDescription",
            "NumberOfStudyRelatedInstances",
            "StudyInstanceUID",
        ],
    }
}

pub(super) async fn find(
    config: &Config,
    peer: &str,
    level: &str,
    keys: &[String],
    output: &Output,
) -> Result<ExitCode, Failed> {
    let level = level.to_uppercase();
    let identifier = identifier(&level, keys)?;
    let model = if level == "PATIENT" { sop_class::PATIENT_ROOT_FIND } else { sop_class::STUDY_ROOT_FIND };
    let mut association = connect(target(config, peer)?, vec![Proposal::plain(model)]).await?;
    let mut found = Vec::new();
    let outcome = association
        .find(&model, &identifier, |answer| {
            found.push(answer);
            ControlFlow::Continue(())
        })
        .await?;
    association.release().await?;
    if outcome.status.kind() != StatusKind::Success {
        return Err(Failed(format!("{peer} answered {} {}", outcome.status, outcome.comment.unwrap_or_default())));
    }
    print_found(output, &identifier, &found);
    Ok(ExitCode::SUCCESS)
}

fn identifier(level: &str, keys: &[String]) -> Result<DataSet, Failed> {
    let mut identifier = DataSet::default();
    identifier.put_text(Tag(0x0008, 0x0005), VR::CS, "ISO_IR 192");
    identifier.put_text(Tag(0x0008, 0x0052), VR::CS, level);
    for key in usual_keys(level) {
        let (tag, vr) = attribute(key)?;
        identifier.put(tag, Element::empty(vr));
    }
    for key in keys {
        let (name, value) = key.split_once('=').unwrap_or((key, ""));
        let (tag, vr) = attribute(name)?;
        identifier.put_text(tag, vr, value);
    }
    Ok(identifier)
}

fn attribute(name: &str) -> Result<(Tag, VR), Failed> {
    let entry = StandardDataDictionary.by_name(name).map(|entry| (entry.tag(), entry.vr().relaxed()));
    let tag = || {
        let number = u32::from_str_radix(name, 16).ok().filter(|_| name.len() == 8)?;
        let tag = Tag((number >> 16) as u16, (number & 0xFFFF) as u16);
        Some((tag, dicom_scp::dataset::dictionary_vr(tag).unwrap_or(VR::UN)))
    };
    entry
        .or_else(tag)
        .ok_or_else(|| Failed(format!("\"{name}\" is neither a DICOM keyword nor a tag such as 00100020")))
}

fn print_found(output: &Output, identifier: &DataSet, found: &[DataSet]) {
    let name = |tag: &Tag| {
        StandardDataDictionary
            .by_tag(*tag)
            .map_or_else(|| format!("{:04X}{:04X}", tag.0, tag.1), |entry| entry.alias().to_owned())
    };
    let wanted: Vec<Tag> =
        identifier.iter().map(|(tag, _)| *tag).filter(|tag| !matches!(tag, Tag(0x0008, 0x0005 | 0x0052))).collect();
    let text = |answer: &DataSet, tag: Tag| match answer.get(tag).map(|element| &element.value) {
        Some(Value::Items(items)) => format!("({} items)", items.len()),
        _ => answer.texts(tag).join("\\"),
    };
    if output.is_json() {
        let rows: Vec<serde_json::Map<String, serde_json::Value>> = found
            .iter()
            .map(|answer| wanted.iter().map(|tag| (name(tag), text(answer, *tag).into())).collect())
            .collect();
        return output.json(&rows);
    }
    let heads: Vec<String> = wanted.iter().map(name).collect();
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    let rows = found.iter().map(|answer| wanted.iter().map(|tag| text(answer, *tag)).collect()).collect();
    print!("{}", table(&heads, rows));
    println!("{} found", found.len());
}
