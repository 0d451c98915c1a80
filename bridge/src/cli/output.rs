//! Tables for people, JSON for programs.

use serde::Serialize;

use super::Failed;
use crate::audit::AuditStatus;
use crate::config::{Config, piece_mode_name};
use crate::control::Reply;
use crate::decide::{self, Done, KeyRow, RequestRow, SourceRow, Told, TraceReport};
use crate::derive::DerivedRow;
use crate::proof::{Match, Shown};
use crate::site::{SiteStatus, StudyReport, StudyRow, Verdict};

/// How results are printed.
pub(super) struct Output {
    json: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    pub(super) fn json(&self, value: &impl Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => println!("{text}"),
            Err(error) => println!("{{\"error\": \"{error}\"}}"),
        }
    }

    /// Prints an answer of the site; an error becomes the command's failure.
    pub(super) fn reply(&self, reply: Reply) -> Result<(), Failed> {
        match reply {
            Reply::Error(words) => return Err(Failed(words)),
            Reply::Noted => {}
            Reply::Anchors(anchors) => self.json(&anchors),
            Reply::LedgerExported(copy) if self.json => self.json(&copy),
            Reply::LedgerExported(copy) => {
                println!("{}: {}, up to block {} {}", copy.file.display(), size(copy.bytes), copy.number, copy.hash);
            }
            Reply::Studies(rows) if self.json => self.json(&rows),
            Reply::Studies(rows) => studies(&rows),
            Reply::Study(report) if self.json => self.json(&report),
            Reply::Study(report) => study(&report),
            Reply::Evicted { files, bytes } if self.json => {
                self.json(&serde_json::json!({ "files": files, "bytes": bytes }));
            }
            Reply::Evicted { files, bytes } => println!("removed {files} files, {}", size(bytes)),
            // It is a document, for people who pass it on and for programs alike.
            Reply::Proof(proof) => self.json(&proof),
            Reply::Verdicts(verdicts) if self.json => self.json(&verdicts),
            Reply::Verdicts(verdicts) => verdicts_table(&verdicts),
            Reply::Consent(told) => self.told(&told),
            Reply::Erased(outcome) => self.json(&outcome),
            Reply::Made(outcome) if self.json => self.json(&outcome),
            Reply::Made(made) => {
                println!("rule {}: study {}, {} objects, {} of them new", made.rule, made.study, made.objects, made.new)
            }
            Reply::Derivations(rows) if self.json => self.json(&rows),
            Reply::Derivations(rows) => derivations(&rows),
            Reply::Fetched(fetched) if self.json => self.json(&fetched),
            Reply::Fetched(fetched) => {
                let proven = match fetched.proven {
                    Some(objects) => format!("{objects} objects, each as the manifest here lists it"),
                    None => "not compared: this site has no manifest of the study".to_owned(),
                };
                println!("{}: {}; {proven}", fetched.file.display(), size(fetched.bytes));
            }
            Reply::Status(status) if self.json => self.json(&status),
            Reply::Status(status) => status_lines(&status),
        }
        Ok(())
    }

    fn told(&self, told: &Told) {
        match told {
            Told::Requests(rows) if self.json => self.json(rows),
            Told::Requests(rows) => requests(rows),
            Told::Done(done) if self.json => self.json(done),
            Told::Done(done) => self::done(done),
            Told::Unsigned(pending) if self.json => self.json(pending),
            Told::Unsigned(pending) => println!("{}", pending.action.in_words()),
            Told::Trace(report) if self.json => self.json(report),
            Told::Trace(report) => trace(report),
            Told::Sources(rows) if self.json => self.json(rows),
            Told::Sources(rows) => sources(rows),
            Told::HandOver(paper) => self.json(paper),
            Told::Guardians(paper) => self.json(paper),
            Told::Recovery(recovery) if self.json => self.json(recovery),
            Told::Recovery(recovery) => println!("{}", recovery.in_words()),
            Told::Emergency(paper) if self.json => self.json(paper),
            Told::Emergency(paper) => println!("{}", paper.in_words()),
            Told::Offer(offer) if self.json => self.json(offer),
            Told::Offer(offer) => println!("let {} act for source {}", offer.operator, offer.source),
            Told::KeyChallenge(challenge) => self.json(challenge),
            Told::KeyPaper(paper) if self.json => self.json(paper),
            Told::KeyPaper(paper) => println!("{}", paper.in_words()),
            Told::Keys(rows) if self.json => self.json(rows),
            Told::Keys(rows) => keys(rows),
        }
    }

    pub(super) fn config(&self, config: &Config) {
        let publish = if config.publish.enabled {
            format!(
                "after {} ms of quiet, pieces by {}",
                config.publish.settle.as_millis(),
                piece_mode_name(config.publish.piece_mode)
            )
        } else {
            "off".to_owned()
        };
        if self.json {
            let peers: Vec<String> = config.peers.iter().map(|peer| peer.ae_title.to_string()).collect();
            self.json(&serde_json::json!({
                "valid": true, "data_dir": config.site.data_dir, "ae_title": config.dicom.ae_title.to_string(),
                "bind": config.dicom.bind.map(|bind| bind.to_string()),
                "tls_bind": config.dicom.tls.bind.map(|bind| bind.to_string()), "peers": peers, "publish": publish,
            }));
        } else {
            println!("the configuration is valid");
            println!("  data      {}", config.site.data_dir.display());
            let on =
                |bind: Option<std::net::SocketAddr>| bind.map_or_else(|| "off".to_owned(), |bind| bind.to_string());
            let (plain, tls) = (on(config.dicom.bind), on(config.dicom.tls.bind));
            println!("  DICOM     {} on {plain}, over TLS on {tls}", config.dicom.ae_title);
            println!("  peers     {}", config.peers.len());
            println!("  publish   {publish}");
            println!("  ledger    {:?}, chain {}", config.ledger.kind, config.ledger.chain_id);
            println!("  HTTP API  {}", on(config.http.bind));
        }
    }

    pub(super) fn keys(&self, source: &str, operator: Option<&str>, payload: &str) {
        if self.json {
            self.json(&serde_json::json!({ "source": source, "operator": operator, "payload_key": payload }));
        } else {
            println!("source account    {source}");
            println!("signing account   {}", operator.unwrap_or("the source itself"));
            println!("payload key       {payload}");
        }
    }

    /// What a command did, and the facts of it.
    /// What a proof shows, and how a file compares with it.
    pub(super) fn shown(&self, shown: &Shown, compared: Option<&Match>) {
        if self.json {
            return self.json(&serde_json::json!({ "shown": shown, "file": compared }));
        }
        println!("The proof holds, if a node of the ledger has this block:");
        println!("  block      {} {}", shown.block, shown.block_hash);
        println!("  of         chain id {}, block 0 {}", shown.chain_id, shown.genesis);
        println!("It shows that");
        println!("  object     {}", shown.sop_instance_uid);
        println!("  with file  SHA-256 {}", hex::encode(shown.file_sha256));
        println!("  was sealed by source {}", shown.source);
        println!("  not after  {}", crate::decide::moment(shown.time_s));
        println!(
            "  by         contract {} ({}) of the consortium that {} founded",
            shown.contract, shown.pieces, shown.admin
        );
        match shown.signer {
            Some(signer) => println!("  signed by  {signer}"),
            None => println!("  signed by  nobody that is understood here: ask a node"),
        }
        let Some(Match { file, data_set, pixels }) = compared else { return };
        println!(
            "{}",
            match (file, data_set) {
                (true, _) => "The file is this object, byte for byte.",
                (false, true) => "The file's data set is this object's; group 0002 before it was written anew.",
                (false, false) => "The file is NOT this object.",
            }
        );
        match pixels {
            Some(true) => println!("Its pixel data has the digest that the document says."),
            Some(false) => println!("Its pixel data has ANOTHER digest than the document says."),
            None => {}
        }
    }

    pub(super) fn done(&self, what: &str, rows: &[(&str, String)]) {
        if self.json {
            let mut facts: serde_json::Map<String, serde_json::Value> =
                rows.iter().map(|(key, value)| ((*key).to_owned(), value.clone().into())).collect();
            facts.insert("done".into(), what.into());
            self.json(&serde_json::Value::Object(facts));
        } else if let [("secret", secret)] = rows {
            // Alone on its line, for whoever pipes it on.
            println!("{secret}");
        } else {
            println!("{what}");
            rows.iter().for_each(|(key, value)| println!("  {key:<10}{value}"));
        }
    }
}

fn studies(rows: &[StudyRow]) {
    let cells = rows.iter().map(|row| {
        vec![
            row.patient_name.clone(),
            row.study_date.clone(),
            row.modalities.join("/"),
            row.description.clone(),
            row.instances.to_string(),
            row.local.to_string(),
            size(row.bytes),
            format!("{:?}", row.state).to_lowercase(),
            format!("{}/{}", row.pieces_seen, row.pieces),
            row.viewable_after_ms.map_or_else(|| "-".into(), |ms| format!("{ms} ms")),
            row.uid.clone(),
        ]
    });
    let heads = [
        "PATIENT",
        "DATE",
        "MOD",
        "DESCRIPTION",
        "OBJECTS",
        "HERE",
        "SIZE",
        "STATE",
        "PIECES",
        "VIEWABLE AFTER",
        "STUDY UID",
    ];
    print!("{}", table(&heads, cells.collect()));
    for (row, trouble) in rows.iter().filter_map(|row| row.trouble.as_ref().map(|trouble| (row, trouble))) {
        println!("{} does not get on: {trouble}", row.uid);
    }
}

fn study(report: &StudyReport) {
    studies(std::slice::from_ref(&report.study));
    println!();
    println!("on the ledger as  {}", report.study_id.as_deref().unwrap_or("(not yet)"));
    println!("owned by          {}", report.owner.as_deref().unwrap_or("(nobody yet)"));
    println!("version           {}", report.study.version);
    println!();
    if !report.derivations.is_empty() {
        derivations(&report.derivations);
        println!();
    }
    let cells = report.images.iter().map(|image| {
        vec![image.kind.clone(), image.pieces.to_string(), size(image.bytes), image.id.clone(), image.subject.clone()]
    });
    print!("{}", table(&["IMAGE", "PIECES", "SEALED", "ID", "OF"], cells.collect()));
}

fn derivations(rows: &[DerivedRow]) {
    let or = |uid: &Option<String>, words: &str| uid.clone().unwrap_or_else(|| words.to_owned());
    let cells = rows.iter().map(|row| {
        vec![
            row.rule.clone(),
            row.state.clone(),
            row.owner.clone(),
            format!("{}/{}", row.let_in, row.grantees),
            or(&row.parent, "(erased)"),
            or(&row.study, "-"),
        ]
    });
    print!("{}", table(&["RULE", "STATE", "OWNER", "LET IN", "FROM", "DERIVED STUDY"], cells.collect()));
    for (row, trouble) in rows.iter().filter_map(|row| Some((row, row.trouble.as_ref()?))) {
        println!("{} is not derived by rule {}: {trouble}", or(&row.parent, "a study"), row.rule);
    }
}

fn verdicts_table(verdicts: &[Verdict]) {
    let proven = verdicts.iter().filter(|verdict| verdict.proven).count();
    let cells = verdicts.iter().filter(|verdict| !verdict.proven || verdicts.len() <= 20).map(|verdict| {
        let word = if verdict.proven { "proven" } else { "NOT PROVEN" };
        vec![word.to_owned(), verdict.file.clone(), verdict.ledger.clone(), verdict.sop_instance.clone()]
    });
    print!("{}", table(&["RESULT", "FILE", "LEDGER", "SOP INSTANCE UID"], cells.collect()));
    println!("{proven} of {} proven", verdicts.len());
}

fn status_lines(status: &SiteStatus) {
    println!("studies   {}", status.studies);
    println!("objects   {} ({})", status.instances, size(status.bytes));
    println!("here      {}", size(status.local_bytes));
    println!("source    {}", status.source);
    match &status.ledger {
        None => println!("ledger    away"),
        Some(ledger) => {
            let head = ledger.head.map_or_else(|| "-".to_owned(), |head| head.to_string());
            println!("ledger    {}, chain {}, head {head}, {} pending", ledger.kind, ledger.chain_id, ledger.pending);
            if let Some(endpoint) = &ledger.endpoint {
                println!("endpoint  {endpoint}");
            }
            if let Some(trouble) = &ledger.trouble {
                println!("trouble   {trouble}");
            }
        }
    }
    if let Some(ipfs) = &status.ipfs {
        println!("ipfs      {}", ipfs.version.as_deref().unwrap_or("away"));
        if let Some(trouble) = &ipfs.trouble {
            println!("trouble   {trouble}");
        }
    }
    if let Some(left) = &status.promotion {
        println!("promotion {} words of owners are left to be said on this ledger", left.words);
        if let Some(trouble) = &left.trouble {
            println!("trouble   {trouble}");
        }
    }
    audit_lines(status.audit.as_ref());
}

fn audit_lines(status: Option<&AuditStatus>) {
    let Some(audit) = status else { return println!("audit     off") };
    let anchored =
        audit.anchored.map_or_else(|| "not anchored since the start".to_owned(), |n| format!("{n} of them anchored"));
    println!("audit     {} records, {anchored}", audit.records);
    if let Some(repository) = &audit.repository {
        println!("          {} lacks {} of them", repository.address, repository.backlog);
    }
    let of_repository = audit.repository.as_ref().and_then(|repository| repository.trouble.as_ref());
    let lost = (audit.lost > 0).then(|| format!("{} events could not be recorded", audit.lost));
    for trouble in
        [audit.trouble.as_ref(), of_repository, audit.anchor_trouble.as_ref(), lost.as_ref()].into_iter().flatten()
    {
        println!("trouble   {trouble}");
    }
}

fn dash(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}

fn done(done: &Done) {
    let heads = ["WHAT", "STUDY", "ACCOUNT", "STATE NOW", "TRANSACTION", "BLOCK", "GAS"];
    let cells = vec![
        done.action.clone(),
        dash(done.study_id.as_deref()),
        dash(done.account.as_deref()),
        dash(done.state.as_deref()),
        done.transaction.clone(),
        done.block.to_string(),
        done.gas.to_string(),
    ];
    print!("{}", table(&heads, vec![cells]));
}

fn requests(rows: &[RequestRow]) {
    // Anybody may ask; who is no source of the consortium comes last.
    let (known, strangers): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.known);
    let cells = known.into_iter().chain(strangers).map(|row| {
        vec![
            row.state.clone(),
            row.grantee.clone(),
            if row.known { "source" } else { "stranger" }.to_owned(),
            row.mode.clone(),
            row.purpose.clone(),
            row.number.to_string(),
            row.block.to_string(),
            row.study_uid.clone().unwrap_or_else(|| row.study_id.clone()),
        ]
    });
    let heads = ["STATE", "WHO ASKS", "IS A", "FOR", "PURPOSE", "TIMES", "BLOCK", "STUDY"];
    print!("{}", table(&heads, cells.collect()));
}

fn sources(rows: &[SourceRow]) {
    let cells = rows.iter().map(|row| {
        let key = if row.tls_key.is_some() && row.encryption_key.is_some() { "stated" } else { "-" };
        vec![row.source.clone(), row.state.clone(), key.to_owned(), row.endpoint.clone()]
    });
    print!("{}", table(&["SOURCE", "STATE", "KEYS", "ENDPOINT"], cells.collect()));
}

fn keys(rows: &[KeyRow]) {
    let cells = rows.iter().map(|row| {
        let (account, until) = (row.account.to_string(), decide::key_end(row.not_after));
        vec![row.state.clone(), account, until, row.block.to_string(), row.key.to_string()]
    });
    print!("{}", table(&["STATE", "ACCOUNT", "UNTIL", "BLOCK", "KEY"], cells.collect()));
}

fn trace(report: &TraceReport) {
    println!("study    {}", report.study_id);
    if let Some(uid) = &report.study_uid {
        println!("         {uid}");
    }
    println!("owner    {}{}", report.owner, if report.custodial { " (key in custody)" } else { "" });
    println!("source   {}", report.source);
    if let Some(parent) = &report.derived_from {
        println!("from     {parent} (proven by this site's salt)");
    }
    println!();
    let cells = report.history.iter().map(|row| {
        vec![
            row.time_s.map_or_else(|| "-".to_owned(), decide::moment),
            row.event.clone(),
            dash(row.account.as_deref()),
            row.notes.as_ref().map_or_else(|| row.detail.clone(), |notes| format!("{}, note {notes}", row.detail)),
            row.block.to_string(),
            row.gas.map_or_else(|| "-".to_owned(), |gas| gas.to_string()),
            row.transaction.clone(),
        ]
    });
    print!("{}", table(&["TIME", "WHAT", "WHO", "DETAIL", "BLOCK", "GAS", "TRANSACTION"], cells.collect()));
    println!();
    let cells = report.states.iter().map(|row| vec![row.grantee.clone(), row.state.clone(), dash(row.sees.as_deref())]);
    print!("{}", table(&["GRANTEE", "STATE NOW", "SEES"], cells.collect()));
}

/// Bytes in words.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A table with columns as wide as their widest cell.
pub(crate) fn table(heads: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut widths: Vec<usize> = heads.iter().map(|head| head.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    for row in std::iter::once(&heads).chain(&rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
