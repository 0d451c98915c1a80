//! Consent: what each action costs beside the figures of PCIM's paper, how long a patient's word takes to reach another site, and
//! whether a site with many granted studies still answers.

use std::time::{Duration, Instant};

use alloy::primitives::Address;
use alloy::providers::{Provider as _, ProviderBuilder};
use alloy::rpc::types::TransactionRequest;
use alloy::sol_types::SolCall as _;
use contracts::Consent;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use tests::{Bridge, PATIENCE, wait_for};
use tokio::runtime::Runtime;

use crate::objects::{query_study_uid, tiny};
use crate::report::{Report, Table, figure, median, quantile};
use crate::servers::{OURS, Target};
use crate::{Options, Outcome, client};

/// Jabarulla and Lee (2021), Table 1: gas of each function.
pub(crate) const PCIM: [(&str, u64); 5] =
    [("create", 67_394), ("request", 246_908), ("approve", 170_412), ("trace", 34_266), ("remove", 59_358)];
/// Time between blocks, in milliseconds.
const BLOCK_MS: u64 = 1_000;
const OPEN: &str = "[dicom]\nunknown_peers = [\"echo\", \"store\", \"find\", \"move\", \"get\"]\n";

pub(crate) fn run(options: &Options, runtime: &Runtime, report: &mut Report) {
    let studies = options.scaled(10, 2);
    let sites = Sites::start();
    let stored = runtime.block_on(sites.publish(studies));
    if report.keep("publishing at A", stored).is_none() {
        return;
    }
    let gas = sites.gas(runtime);
    if let Some(gas) = report.keep("gas", gas) {
        beside_pcim(report, gas);
    }
    let waits = (1..studies).map(|study| sites.until_preview(study)).collect::<Outcome<Vec<_>>>();
    if let Some(waits) = report.keep("from the patient's word to the preview", waits) {
        latency(report, &waits);
    }
}

/// The site that is the ledger, the source and the grantee.
struct Sites {
    ledger: Bridge,
    a: Bridge,
    b: Bridge,
    grantee: String,
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

impl Sites {
    fn start() -> Self {
        let ledger = Bridge::start(&format!(
            "[publish]\nenabled = false\n[ledger]\nrpc_bind = \"127.0.0.1:0\"\nblock_period_ms = {BLOCK_MS}\n"
        ));
        let admin = ledger.json(&["keys", "show"]);
        let toml = format!(
            "{OPEN}[ledger]\nkind = \"rpc\"\nurl = \"http://{}\"\nadmin = \"{}\"\ndeploy = false\n\
             [publish]\nsettle_ms = 200\n[exchange]\nbind = \"127.0.0.1:0\"\n",
            ledger.ready("rpc="),
            text(&admin["source"])
        );
        let (a, b) = (Bridge::start(&toml), Bridge::start(&toml));
        let accounts = [&a, &b].map(|site| text(&site.json(&["keys", "show"])["source"]).to_owned());
        for account in &accounts {
            ledger.json(&["sources", "admit", account]);
        }
        wait_for("both sites to state their keys", || {
            let rows = ledger.json(&["sources"]);
            let stated = |row: &&Value| row["state"] == "active" && row["encryption_key"].is_string();
            rows.as_array().is_some_and(|rows| rows.iter().filter(stated).count() >= accounts.len())
        });
        let [_, grantee] = accounts;
        Self { ledger, a, b, grantee }
    }

    async fn publish(&self, studies: u32) -> Outcome<()> {
        let target = Target { address: self.a.dicom, called: "PACSBRIDGE" };
        let objects = std::sync::Arc::new((0..studies).flat_map(|study| tiny(study, 3)).collect::<Vec<_>>());
        client::store(&target, &objects, 2).await?;
        self.a.wait_final(studies as usize);
        Ok(())
    }

    /// Gas of the functions of [`PCIM`], in its order, each said for the first time.
    fn gas(&self, runtime: &Runtime) -> Outcome<[u64; 5]> {
        let uid = query_study_uid(0);
        let known = self.a.json(&["trace", &uid]);
        let id = text(&known["study_id"]).to_owned();
        let used = |done: &Value| done["gas"].as_u64().ok_or_else(|| format!("no gas in {done}"));
        let created = used(&known["history"][0])?;
        let requested = used(&self.b.json(&["request", &id]))?;
        let allowed = used(&self.a.json(&["allow", &uid, &self.grantee]))?;
        let traced = runtime.block_on(self.trace_gas(&id))?;
        let revoked = used(&self.a.json(&["revoke", &uid, &self.grantee]))?;
        Ok([created, requested, allowed, traced, revoked])
    }

    /// What the view costs whoever would call it in a transaction.
    async fn trace_gas(&self, id: &str) -> Outcome<u64> {
        let words = |e: &dyn std::fmt::Display| e.to_string();
        let admin = self.ledger.json(&["keys", "show"]);
        let admin: Address = text(&admin["source"]).parse().map_err(|e| words(&e))?;
        let url = format!("http://{}", self.ledger.ready("rpc=")).parse().map_err(|e| words(&e))?;
        let call = Consent::traceCall {
            studyId: id.parse().map_err(|e| words(&e))?,
            grantee: self.grantee.parse().map_err(|e| words(&e))?,
        };
        let request = TransactionRequest::default()
            .to(contracts::deployment::addresses(admin).consent)
            .input(call.abi_encode().into())
            .from(admin);
        ProviderBuilder::new().connect_http(url).estimate_gas(request).await.map_err(|e| words(&e))
    }

    /// From the call of `allow` until the first preview's picture is at B, in milliseconds.
    fn until_preview(&self, study: u32) -> Outcome<f64> {
        let uid = query_study_uid(study);
        std::thread::scope(|scope| {
            let begun = Instant::now();
            let allowing = scope.spawn(|| self.a.json(&["allow", &uid, &self.grantee]));
            let took = wait_preview(&self.b, &uid, begun)?;
            allowing.join().map_err(|_| "allow failed".to_owned())?;
            Ok(took.as_secs_f64() * 1e3)
        })
    }
}

/// Waits until a study's first picture is in a site's index; returns the time since `begun`.
pub(crate) fn wait_preview(site: &Bridge, uid: &str, begun: Instant) -> Outcome<Duration> {
    let index = site.data().join("archive/index.sqlite");
    let index = Connection::open_with_flags(index, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|e| e.to_string())?;
    let sql = "SELECT 1 FROM image p JOIN study st ON p.study = st.id WHERE st.uid = ?1 AND p.kind = 2 AND p.plain IS NOT NULL";
    let mut statement = index.prepare(sql).map_err(|e| e.to_string())?;
    loop {
        if statement.exists([uid]).map_err(|e| e.to_string())? {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!("no preview of study {uid} came"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn beside_pcim(report: &mut Report, gas: [u64; 5]) {
    let mut table =
        Table::new("Consent: gas of each function", &["function (PCIM's name)", "PACS Bridge", "PCIM", "to PCIM"]);
    for ((name, theirs), ours) in PCIM.into_iter().zip(gas) {
        let part = ours as f64 / theirs as f64;
        table.row(vec![name.into(), ours.to_string(), theirs.to_string(), format!("{part:.2}x")]);
        report.aim(&format!("Gas of {name}, to PCIM's"), 1.0, Some(part), true);
    }
    table.note(
        "PCIM: Jabarulla and Lee (2021), Table 1. Ours as whole transactions by the program's own commands, each said for the first time about its study: \
         Define Study signed by the owner, a request with the asker's OpenPGP key in it, an allowance with scope, period and purpose signed by the owner. \
         The trace is a view that costs its caller nothing; this is what it would cost as a transaction.",
    );
    report.table(&table);
}

fn latency(report: &mut Report, waits: &[f64]) {
    let mut table = Table::new(
        "Consent: from the patient's word to the first preview at the other site",
        &["system", "studies", "median ms", "worst ms", "block ms"],
    );
    let worst = quantile(waits, 1.0);
    let show = |ms: Option<f64>| ms.map_or_else(|| "-".into(), figure);
    table.row(vec![OURS.into(), waits.len().to_string(), show(median(waits)), show(worst), BLOCK_MS.to_string()]);
    table.note(
        "From the start of `pacs-bridge allow` at A until the picture is in B's index. Both sites reach the embedded ledger of a third over HTTP; \
         B's key request to A, the manifest and the preview come out of it.",
    );
    report.table(&table);
    let aim = 2.0 * BLOCK_MS as f64 + 300.0;
    report.aim("From allow to the first preview, worst, ms", aim, worst, true);
}
