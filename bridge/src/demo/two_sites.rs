//! Second part of the demonstration: two hospitals, one patient, and a third site that nobody lets in.
//!
//! Four bridges in one process, each with its own data, keys and doors: one that is the consortium's ledger, the source A, the grantee B
//! and the stranger C. The patient's key is made here and known to none of them.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use dicom_scp::dataset::{DataSet, Tag, VR};
use dicom_scp::scu::Proposal;
use dicom_scp::{Uid, sop_class};

use super::phantom::Phantom;
use super::{DemoError, Received, associate, compare, indent, r#move, parse, say, send, wait_final};
use crate::app::{App, Core};
use crate::cli::table;
use crate::config::Config;
use crate::decide::{self, Ask, Decision, Done, Pending, Told};
use crate::keyring::Keyring;
use crate::site::Site;

/// Longest wait for what should happen within blocks.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);
const NOTHING: &str = "-";

/// What the steps came to.
#[derive(Default)]
struct Story {
    rows: Vec<Vec<String>>,
}

impl Story {
    /// A step, what it cost on the ledger, how long it took, and who finds the study afterwards.
    fn tell(&mut self, step: &str, done: Option<&Done>, took: Duration, sees: [&str; 3]) {
        let (transaction, gas) = match done {
            Some(done) => (done.transaction.chars().take(12).collect(), done.gas.to_string()),
            None => (NOTHING.to_owned(), NOTHING.to_owned()),
        };
        let took = format!("{} ms", took.as_millis());
        let sees = sees.map(str::to_owned);
        println!("   {step}");
        self.rows.push([vec![step.to_owned(), transaction, gas, took], sees.to_vec()].concat());
    }

    fn table(self) -> String {
        table(&["STEP", "TRANSACTION", "GAS", "TOOK", "A FINDS", "B FINDS", "C FINDS"], self.rows)
    }
}

/// The sites, while they are up.
struct Sites {
    ledger: App,
    a: Option<App>,
    b: App,
    c: App,
    account_b: Address,
}

/// Shows the story. `viewer_port` is where C-MOVE brings objects, which are noted in `received`.
pub(super) async fn show(
    dir: &Path,
    viewer_port: u16,
    study: Vec<Phantom>,
    received: &Received,
) -> Result<(), DemoError> {
    say("8. Two hospitals A and B, a third site C, and a patient: four bridges, one ledger");
    let mut sites = Sites::start(dir, viewer_port).await?;
    let told = sites.story(study, received).await;
    sites.stop().await;
    print!("\n{}", indent(&told?.table()));
    Ok(())
}

/// Makes a site's keys before it starts, so that the consortium can admit it.
async fn account_of(config: &Config) -> Result<Address, DemoError> {
    let (dir, keys) = (config.site.data_dir.clone(), config.keys.clone());
    let made = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&dir).map_err(|e| DemoError::Io("making a data directory", e))?;
        let keyring = Keyring::open(&dir, &keys).map_err(|e| DemoError::Wrong(crate::chain_of(&e)))?;
        Ok(keyring.source().address())
    });
    made.await.map_err(|e| DemoError::Wrong(format!("making keys: {e}")))?
}

async fn start(config: Config) -> Result<App, DemoError> {
    Ok(App::start(Core::open(config).await?, None).await?)
}

async fn ask(site: &Site, ask: Ask) -> Result<Told, DemoError> {
    decide::answer(site, ask, &crate::audit::Party::at_this_machine())
        .await
        .map_err(|e| DemoError::Wrong(crate::chain_of(&e)))
}

async fn act(site: &Site, what: Ask) -> Result<Done, DemoError> {
    match ask(site, what).await? {
        Told::Done(done) => Ok(done),
        other => Err(DemoError::Wrong(format!("the bridge answered {other:?}"))),
    }
}

/// What a patient decides: made at a site, signed with a key that no site has, relayed by a site.
async fn decided(site: &Site, study: &str, decision: Decision, patient: &PrivateKeySigner) -> Result<Done, DemoError> {
    let Told::Unsigned(pending) = ask(site, Ask::Unsigned { study: study.to_owned(), decision }).await? else {
        return Err(DemoError::Wrong("the bridge made no action to sign".into()));
    };
    let mut action: Box<Pending> = pending;
    action.sign(patient).map_err(|e| DemoError::Wrong(e.to_string()))?;
    act(site, Ask::Submit { action }).await
}

impl Sites {
    async fn start(dir: &Path, viewer_port: u16) -> Result<Self, DemoError> {
        let embedded = "[publish]\nenabled = false\n[ledger]\nrpc_bind = \"127.0.0.1:0\"\n";
        let ledger = start(parse(&dir.join("consortium"), viewer_port, embedded)?).await?;
        let admin = ledger.site().status().await?.source;
        let rpc = ledger.rpc_address().ok_or_else(|| DemoError::Wrong("the ledger has no port".into()))?;
        let lines = format!(
            "[publish]\nsettle_ms = 500\n[exchange]\nbind = \"127.0.0.1:0\"\n\
             [ledger]\nkind = \"rpc\"\nurl = \"http://{rpc}\"\nadmin = \"{admin}\"\ndeploy = false\n"
        );
        let config = |name: &str| parse(&dir.join(name), viewer_port, &lines);
        let (a, b, c) = (config("hospital-a")?, config("hospital-b")?, config("site-c")?);
        let accounts = tokio::try_join!(account_of(&a), account_of(&b), account_of(&c))?;
        for account in [accounts.0, accounts.1, accounts.2] {
            act(ledger.site(), Ask::Admit { source: account.to_string() }).await?;
        }
        let (a, b, c) = tokio::try_join!(start(a), start(b), start(c))?;
        println!("   the consortium's ledger admitted A, B and C; each has its own data, keys and AE");
        Ok(Self { ledger, a: Some(a), b, c, account_b: accounts.1 })
    }

    async fn stop(self) {
        for app in [self.a, Some(self.b), Some(self.c), Some(self.ledger)].into_iter().flatten() {
            app.drain().await;
        }
    }

    async fn story(&mut self, study: Vec<Phantom>, received: &Received) -> Result<Story, DemoError> {
        let mut story = Story::default();
        let grantee = self.account_b.to_string();
        let a = self.a.as_ref().ok_or_else(|| DemoError::Wrong("A is not up".into()))?;
        let (count, patient) = (study.len().to_string(), PrivateKeySigner::random());

        let begun = Instant::now();
        send(a, &study).await?;
        let row = wait_final(a, 1).await?.swap_remove(0);
        let Told::HandOver(known) = ask(a.site(), Ask::HandOver { study: row.uid.clone() }).await? else {
            return Err(DemoError::Wrong("the bridge does not know the study".into()));
        };
        let (uid, id) = (row.uid, known.study_id);
        let defined = definition(a.site(), &id).await?;
        story.tell(
            "A receives the study and publishes it",
            defined.as_ref(),
            begun.elapsed(),
            self.finds(&uid, &count, NOTHING).await?,
        );

        let begun = Instant::now();
        let transfer = Decision::Transfer { owner: patient.address().to_string() };
        let done = act(a.site(), Ask::Decide { study: uid.clone(), decision: transfer }).await?;
        let sees = self.finds(&uid, &count, NOTHING).await?;
        story.tell("The patient takes the study over with a key of her own", Some(&done), begun.elapsed(), sees);

        let begun = Instant::now();
        let wish = Ask::Request { study: id.clone(), preview_only: false, purpose: Some("TREAT".into()), notes: None };
        let done = act(self.b.site(), wish).await?;
        story.tell("B asks for access", Some(&done), begun.elapsed(), self.finds(&uid, &count, NOTHING).await?);

        let begun = Instant::now();
        let allow = Decision::Allow {
            grantee: grantee.clone(),
            preview_only: false,
            series: None,
            from_s: None,
            until_s: None,
            purpose: Some("TREAT".into()),
            encryption_key: None,
            notes: None,
        };
        let done = decided(a.site(), &id, allow, &patient).await?;
        let signed = begun.elapsed();
        self.wait("B's viewer to find the study", async || Ok(self.b_finds(&uid).await? == count)).await?;
        let found = begun.elapsed();
        story.tell(
            "The patient allows B; she signs, A sends",
            Some(&done),
            signed,
            self.finds(&uid, &count, &count).await?,
        );
        story.tell("B's viewer finds it, before any pixel came", None, found, self.finds(&uid, &count, &count).await?);
        let study_id = id.parse().map_err(|_| DemoError::Wrong(format!("study id {id}")))?;
        let archive = self.b.site().archive();
        self.wait("B's previews", async || {
            Ok(archive.foreign_study(study_id).is_ok_and(|study| study.is_some_and(|study| study.version > 0))
                && archive.previews_missing(study_id).is_ok_and(|missing| missing.is_empty()))
        })
        .await?;
        story.tell("B has the previews", None, begun.elapsed(), self.finds(&uid, &count, &count).await?);

        let begun = Instant::now();
        self.retrieve(&study, received, &uid).await?;
        let sees = self.finds(&uid, &count, &count).await?;
        story.tell("B retrieves it from the ledger, byte for byte", None, begun.elapsed(), sees);

        if let Some(a) = self.a.take() {
            a.drain().await;
        }
        let (files, _) = self.b.site().evict(&uid).await?;
        if files as usize != study.len() {
            return Err(DemoError::Wrong(format!("B removed {files} of {count} copies")));
        }
        let begun = Instant::now();
        self.retrieve(&study, received, &uid).await?;
        let sees = self.finds(&uid, &count, &count).await?;
        story.tell("A is stopped, B's copies removed: B retrieves it again", None, begun.elapsed(), sees);

        let begun = Instant::now();
        let done = decided(self.ledger.site(), &id, Decision::Revoke { grantee }, &patient).await?;
        let signed = begun.elapsed();
        self.wait("the study to be gone at B", async || Ok(self.b_finds(&uid).await? == NOTHING)).await?;
        let sees = self.finds(&uid, &count, NOTHING).await?;
        story.tell("The patient stops it; another site sends what she signed", Some(&done), signed, sees);
        story.tell(
            "B's viewer finds nothing any more",
            None,
            begun.elapsed(),
            self.finds(&uid, &count, NOTHING).await?,
        );
        Ok(story)
    }

    /// What the three find now. What B must find is known; C must never find anything.
    async fn finds<'a>(&self, uid: &str, count: &'a str, b: &'a str) -> Result<[&'a str; 3], DemoError> {
        let a = match &self.a {
            Some(a) if objects_found(a, uid).await? == count => count,
            Some(_) => return Err(DemoError::Wrong("A does not find its own study".into())),
            None => "(stopped)",
        };
        if self.b_finds(uid).await? != b {
            return Err(DemoError::Wrong(format!("B finds {}, not {b}", self.b_finds(uid).await?)));
        }
        if objects_found(&self.c, uid).await? != NOTHING {
            return Err(DemoError::Wrong("C finds a study that nobody let it see".into()));
        }
        Ok([a, b, NOTHING])
    }

    async fn b_finds(&self, uid: &str) -> Result<String, DemoError> {
        objects_found(&self.b, uid).await
    }

    /// C-MOVE at B, and every byte compared with what the modality sent to A.
    async fn retrieve(&self, study: &[Phantom], received: &Received, uid: &str) -> Result<(), DemoError> {
        received.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        r#move(&self.b, uid).await?;
        compare(std::slice::from_ref(&study.to_vec()), received)
    }

    async fn wait(&self, what: &str, there: impl AsyncFn() -> Result<bool, DemoError>) -> Result<(), DemoError> {
        let begun = Instant::now();
        while !there().await? {
            if begun.elapsed() > PATIENCE {
                return Err(DemoError::Wrong(format!("waited in vain for {what}")));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

/// The transaction that defined a study.
async fn definition(site: &Site, study: &str) -> Result<Option<Done>, DemoError> {
    let Told::Trace(trace) = ask(site, Ask::Trace { study: study.to_owned(), grantee: None }).await? else {
        return Ok(None);
    };
    Ok(trace.history.first().map(|first| Done {
        action: first.event.clone(),
        study_id: Some(study.to_owned()),
        account: None,
        state: None,
        transaction: first.transaction.clone(),
        block: first.block,
        gas: first.gas.unwrap_or(0),
    }))
}

/// How many objects of a study a viewer finds at a site, in words.
async fn objects_found(app: &App, uid: &str) -> Result<String, DemoError> {
    const OBJECTS: Tag = Tag(0x0020, 0x1208);
    let mut identifier = DataSet::default();
    identifier.put_text(Tag(0x0008, 0x0052), VR::CS, "STUDY");
    let uid = Uid::new(uid).map_err(|e| DemoError::Wrong(e.to_string()))?;
    identifier.put_text(Tag(0x0020, 0x000D), VR::UI, uid.as_str());
    identifier.put_text(OBJECTS, VR::IS, "");
    let mut association = associate(app, &[Proposal::plain(sop_class::STUDY_ROOT_FIND)]).await?;
    let mut found = NOTHING.to_owned();
    association
        .find(&sop_class::STUDY_ROOT_FIND, &identifier, |answer| {
            found = answer.text(OBJECTS).unwrap_or_default();
            ControlFlow::Continue(())
        })
        .await?;
    association.release().await?;
    Ok(found)
}
