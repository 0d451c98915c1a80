//! Gas of what Jabarulla and Lee's contract does too, from the receipts of the network.

use std::time::{SystemTime, UNIX_EPOCH};

use alloy::primitives::{Address, B256, Bytes, keccak256};
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall as _;
use bridge::ledger::{Ledger, PieceMode, StudyOwner, Word};
use bridge::payload::keys::RecipientSecret;
use contracts::messages::{Purpose, Revoke};
use contracts::{Allowance, Consent};

use crate::Outcome;
use crate::clique::{Network, words};
use crate::consent::PCIM;
use crate::report::{Report, Table};

/// Enough for any of them.
const GAS_MAX: u64 = 1_000_000;
/// `IConsent.Mode.Full`.
const FULL: u8 = 2;

/// A study, who owns it and who asks for it.
struct Story<'a> {
    network: &'a Network,
    ledger: Ledger,
    study: B256,
    owner: PrivateKeySigner,
    /// The asker's OpenPGP key.
    certificate: Bytes,
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Gas of the functions of [`PCIM`], in its order, each said for the first time about its study.
pub(crate) async fn gas(network: &Network) -> Outcome<[u64; 5]> {
    let secret = RecipientSecret::generate().map_err(words)?;
    let certificate = secret.recipient().and_then(|recipient| recipient.to_bytes()).map_err(words)?;
    let story = Story {
        network,
        ledger: network.ledger(PieceMode::Calldata).await?,
        study: keccak256(now_s().to_be_bytes()),
        owner: PrivateKeySigner::random(),
        certificate: certificate.into(),
    };
    let created = story.create().await?;
    let requested = story.request().await?;
    let allowed = story.allow().await?;
    let traced = story.trace().await?;
    let revoked = story.revoke().await?;
    Ok([created, requested, allowed, traced, revoked])
}

impl Story<'_> {
    fn grantee(&self) -> Address {
        self.network.client()
    }

    fn signed(&self, digest: B256) -> Outcome<Bytes> {
        Ok(self.owner.sign_hash_sync(&digest).map_err(words)?.as_bytes().to_vec().into())
    }

    /// Define Study: the source sends what the owner has signed.
    async fn create(&self) -> Outcome<u64> {
        let (owner, deadline) = (self.owner.address(), now_s() + 3_600);
        let digest = self.ledger.consent_digest(self.study, owner, deadline).await.map_err(words)?;
        let owner = StudyOwner::Signed { owner, deadline, signature: self.signed(digest)? };
        let from = self.network.head().await?;
        self.ledger.define_study(self.study, &owner, B256::ZERO).await.map_err(words)?;
        let count = self.network.count(self.network.site(), from).await?;
        if count.transactions == 1 { Ok(count.gas) } else { Err(format!("a definition is one transaction: {count:?}")) }
    }

    async fn request(&self) -> Outcome<u64> {
        let call = Consent::requestCall {
            studyId: self.study,
            mode: FULL,
            purpose: Purpose::Treatment.into(),
            notes: keccak256("second opinion"),
            encryptionKey: self.certificate.clone(),
        };
        let consent = self.network.addresses().consent;
        Ok(self.network.send(consent, call.abi_encode().into(), GAS_MAX).await?.gas_used)
    }

    async fn allow(&self) -> Outcome<u64> {
        let word = Word::Allow(Allowance {
            studyId: self.study,
            grantee: self.grantee(),
            series: B256::ZERO,
            mode: FULL,
            notBefore: 0,
            notAfter: now_s() + 86_400,
            purpose: Purpose::Treatment.into(),
            notes: B256::ZERO,
            encryptionKey: keccak256(&self.certificate),
            seq: 1,
            deadline: now_s() + 3_600,
        });
        self.say(word).await
    }

    async fn revoke(&self) -> Outcome<u64> {
        let deadline = now_s() + 3_600;
        self.say(Word::Revoke(Revoke { studyId: self.study, grantee: self.grantee(), seq: 2, deadline })).await
    }

    async fn say(&self, word: Word) -> Outcome<u64> {
        let signature = self.signed(self.ledger.digest(&word))?;
        Ok(self.ledger.say(&word, signature).await.map_err(words)?.gas)
    }

    /// A view, called by a transaction as theirs is.
    async fn trace(&self) -> Outcome<u64> {
        let call = Consent::traceCall { studyId: self.study, grantee: self.grantee() };
        let consent = self.network.addresses().consent;
        Ok(self.network.send(consent, call.abi_encode().into(), GAS_MAX).await?.gas_used)
    }
}

pub(crate) fn table(report: &mut Report, gas: [u64; 5]) {
    let mut table = Table::new(
        "Jabarulla and Lee: gas of each function (Table 1)",
        &["function (PCIM's name)", "ours", "PCIM", "to PCIM"],
    );
    for ((name, theirs), ours) in PCIM.into_iter().zip(gas) {
        table.row(vec![
            name.into(),
            ours.to_string(),
            theirs.to_string(),
            format!("{:.2}x", ours as f64 / theirs as f64),
        ]);
    }
    table.note(
        "By the receipts of this run's network, each said for the first time about its study: Define Study sent by the source with the owner's \
         signature, a request with the asker's OpenPGP key and a commitment to its words, an allowance with scope, period and purpose signed by \
         the owner, its revocation signed by the owner. The trace is a view that costs its caller nothing; here it was called by a transaction, as \
         theirs is. Less is better.",
    );
    report.table(&table);
}
