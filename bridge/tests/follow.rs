//! The followed state against the contracts: random histories of consent and of key bindings on the embedded ledger, stopped and started again in the
//! middle, and a chain that is exchanged for another branch. Whatever happened, `Grant` answers as `Consent` does, and
//! a key is whose `KeyBindings` and the proofs say.
#![allow(clippy::unwrap_used, missing_docs, non_snake_case)]

#[path = "../../embedded-ledger/tests/support/mod.rs"]
mod chain;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::providers::DynProvider;
use alloy::signers::SignerSync;
use alloy::sol_types::{Eip712Domain, SolCall, SolStruct};
use bridge::follow::{Ahead, Consents, FollowConfig, Head, KeyBinding, Mode, What, follow};
use bridge::ledger::node::{
    Ask, At, Block, Event, EventFilter, Logged, Node, NodeError, Offer, Receipt, Span, SystemClock, Transaction,
};
use bridge::ledger::rpc::RpcNode;
use bridge::ledger::slots::{InFlight, Record, Slots};
use chain::{ADMIN, Account, CHAIN_ID, key, public_key, view};
use contracts::messages::{
    Allow, BindKey, DefineStudy, Deny, Revoke, TombstoneStudy, TransferStudy, UnbindKey, consent_domain,
    key_bindings_domain, key_proof_octets, studies_domain,
};
use contracts::{Addresses, Allowance, Consent, Emergency, KeyBindings, Sources, Studies};
use embedded_ledger::EmbeddedLedger;
use p256::ecdsa::signature::Signer as _;
use p256::pkcs8::EncodePublicKey as _;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::RngSeed;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const START: u64 = 1_800_000_000;
const STUDIES: [u8; 2] = [1, 2];
const GRANTEES: [u8; 3] = [2, 3, 6];
/// P-256 keys, and accounts that may bind them.
const CARDS: [u8; 2] = [31, 32];
const HOLDERS: [u8; 3] = [2, 5, 6];

/// What may happen. Numbers are chosen when it does, so that most of it is accepted.
#[derive(Clone, Copy, Debug)]
enum Step {
    Request { by: u8, study: u8 },
    Allow { study: u8, grantee: u8, series: u8, mode: u8, purpose: u16, from: u64, length: u64 },
    Deny { study: u8, grantee: u8 },
    Revoke { study: u8, grantee: u8 },
    BreakGlass { by: u8, study: u8, lasting: u64 },
    Transfer { study: u8 },
    Amend { study: u8 },
    Tombstone { study: u8 },
    Suspend { source: u8 },
    Reinstate { source: u8 },
    Endpoint { source: u8 },
    Keys { source: u8 },
    Operator { revoke: bool },
    Bind { account: u8, card: u8, proof: Proof, lasting: u64 },
    Unbind { account: u8, card: u8 },
    Wait { seconds: u64 },
    Restart,
}

/// What comes with a binding as its proof.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Proof {
    Right,
    /// That of the binding to another account.
    Copied,
    /// The right octets, signed by another key.
    OfAnotherKey,
    Nonsense,
}

fn step() -> impl Strategy<Value = Step> {
    let (study, grantee) = (prop::sample::select(&STUDIES[..]), prop::sample::select(&GRANTEES[..]));
    let pair = (study.clone(), grantee);
    let source = 2u8..4;
    let terms = (0u8..3, 1u8..3, prop_oneof![Just(0u16), Just(3)], 0u64..40, 0u64..90);
    let (holder, card) = (prop::sample::select(&HOLDERS[..]), prop::sample::select(&CARDS[..]));
    let bound = (holder, card);
    let proof = prop_oneof![5 => Just(Proof::Right), 1 => Just(Proof::Copied), 1 => Just(Proof::OfAnotherKey), 1 => Just(Proof::Nonsense)];
    prop_oneof![
        3 => (2u8..7, study.clone()).prop_map(|(by, study)| Step::Request { by, study }),
        8 => (pair.clone(), terms).prop_map(|((study, grantee), (series, mode, purpose, from, length))| {
            Step::Allow { study, grantee, series: series / 2, mode, purpose, from, length }
        }),
        2 => pair.clone().prop_map(|(study, grantee)| Step::Deny { study, grantee }),
        4 => pair.prop_map(|(study, grantee)| Step::Revoke { study, grantee }),
        2 => (2u8..4, study.clone(), 1u64..100).prop_map(|(by, study, lasting)| Step::BreakGlass { by, study, lasting }),
        2 => study.clone().prop_map(|study| Step::Transfer { study }),
        2 => study.clone().prop_map(|study| Step::Amend { study }),
        1 => study.prop_map(|study| Step::Tombstone { study }),
        1 => source.clone().prop_map(|source| Step::Suspend { source }),
        2 => source.clone().prop_map(|source| Step::Reinstate { source }),
        1 => source.clone().prop_map(|source| Step::Endpoint { source }),
        1 => source.prop_map(|source| Step::Keys { source }),
        1 => any::<bool>().prop_map(|revoke| Step::Operator { revoke }),
        7 => (bound.clone(), proof, prop_oneof![0u64..90, Just(u64::MAX)])
            .prop_map(|((account, card), proof, lasting)| Step::Bind { account, card, proof, lasting }),
        3 => bound.prop_map(|(account, card)| Step::Unbind { account, card }),
        6 => (1u64..50).prop_map(|seconds| Step::Wait { seconds }),
        1 => Just(Step::Restart),
    ]
}

fn study(n: u8) -> B256 {
    keccak256([n])
}

fn series(n: u8) -> B256 {
    if n == 0 { B256::ZERO } else { keccak256([9, n]) }
}

fn address(n: u8) -> Address {
    key(n).address()
}

fn card(seed: u8) -> p256::ecdsa::SigningKey {
    p256::ecdsa::SigningKey::from_slice(&[seed; 32]).unwrap()
}

fn spki(seed: u8) -> Bytes {
    card(seed).verifying_key().to_public_key_der().unwrap().into_vec().into()
}

fn card_name(seed: u8) -> B256 {
    bridge::follow::binding::key_of(&spki(seed)).unwrap()
}

/// A chain with two sources at work, an operator of the second, and two studies.
struct World {
    provider: DynProvider,
    at: Addresses,
    accounts: BTreeMap<u8, Account>,
    owners: BTreeMap<u8, u8>,
    /// By account and card: whether its newest binding is proven, and how many were said before it.
    bound: BTreeMap<(u8, u8), (bool, usize)>,
    bindings: usize,
    clock: Arc<AtomicU64>,
    ledger: EmbeddedLedger,
}

impl World {
    async fn new(path: &Path) -> Self {
        let clock = Arc::new(AtomicU64::new(START));
        let mut config = chain::config(path);
        config.clock = Some(clock.clone());
        let ledger = EmbeddedLedger::open(config).unwrap();
        let provider = chain::provider(&ledger);
        let mut accounts: BTreeMap<u8, Account> = (1..8).map(|seed| (seed, Account::new(seed))).collect();
        let at = chain::deploy(&provider, accounts.get_mut(&ADMIN).unwrap()).await;
        let (owners, bound) = (BTreeMap::new(), BTreeMap::new());
        let mut world = Self { provider, at, accounts, owners, bound, bindings: 0, clock, ledger };
        for source in [2, 3] {
            assert!(world.send(ADMIN, at.sources, Sources::admitCall { source: address(source) }).await);
            let call = Sources::defineSourceCall { publicKey: public_key(&key(source)), endpoint: "https://x".into() };
            assert!(world.send(source, at.sources, call).await);
        }
        for (n, owner) in [(1, 11), (2, 12)] {
            world.define(n, owner).await;
        }
        world
    }

    fn now(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    async fn define(&mut self, n: u8, owner: u8) {
        let (studyId, custodial, derivedFrom, deadline) = (study(n), true, B256::ZERO, u64::MAX);
        let message =
            DefineStudy { studyId, owner: address(owner), source: address(2), custodial, derivedFrom, deadline };
        let ownerSignature = sign(owner, &self.studies(), &message);
        let owner_ = address(owner);
        let call =
            Studies::defineStudyCall { studyId, owner: owner_, custodial, derivedFrom, deadline, ownerSignature };
        assert!(self.send(2, self.at.studies, call).await);
        self.owners.insert(n, owner);
    }

    async fn send(&mut self, by: u8, to: Address, call: impl SolCall) -> bool {
        self.accounts.get_mut(&by).unwrap().send(&self.provider, to, call).await.status()
    }

    fn studies(&self) -> Eip712Domain {
        studies_domain(CHAIN_ID, self.at.studies)
    }

    async fn seq(&self, studyId: B256, grantee: Address) -> u32 {
        let call = Consent::getGrantCall { studyId, grantee };
        view(&self.provider, self.at.consent, call).await.unwrap().seq + 1
    }

    async fn study_seq(&self, studyId: B256) -> u32 {
        view(&self.provider, self.at.studies, Studies::getStudyCall { studyId }).await.unwrap().seq + 1
    }

    /// Takes one step; the contract decides whether anything comes of it.
    async fn take(&mut self, step: Step) {
        let (Addresses { sources, studies, consent, .. }, deadline, now) = (self.at, u64::MAX, self.now());
        let domain = consent_domain(CHAIN_ID, consent);
        match step {
            Step::Request { by, study: n } => {
                let (studyId, encryptionKey) = (study(n), vec![by; 40].into());
                let call = Consent::requestCall { studyId, mode: 2, purpose: 3, notes: B256::ZERO, encryptionKey };
                self.send(by, consent, call).await;
            }
            Step::Allow { study: n, grantee, series: part, mode, purpose, from, length } => {
                let allowance = Allowance {
                    studyId: study(n),
                    grantee: address(grantee),
                    series: series(part),
                    mode,
                    notBefore: now + from - 10,
                    notAfter: if length > 80 { u64::MAX } else { now + from + length },
                    purpose,
                    notes: B256::ZERO,
                    encryptionKey: keccak256([grantee]),
                    seq: self.seq(study(n), address(grantee)).await,
                    deadline,
                };
                let ownerSignature = sign(self.owners[&n], &domain, &Allow::from(&allowance));
                self.send(7, consent, Consent::allowCall { allowance, ownerSignature }).await;
            }
            Step::Deny { study: n, grantee } => {
                let (studyId, grantee, reason, notes) = (study(n), address(grantee), 4, B256::ZERO);
                let seq = self.seq(studyId, grantee).await;
                let ownerSignature =
                    sign(self.owners[&n], &domain, &Deny { studyId, grantee, reason, notes, seq, deadline });
                let call = Consent::denyCall { studyId, grantee, reason, notes, seq, deadline, ownerSignature };
                self.send(7, consent, call).await;
            }
            Step::Revoke { study: n, grantee } => {
                let (studyId, grantee) = (study(n), address(grantee));
                let seq = self.seq(studyId, grantee).await;
                let ownerSignature = sign(self.owners[&n], &domain, &Revoke { studyId, grantee, seq, deadline });
                let call = Consent::revokeCall { studyId, grantee, seq, deadline, ownerSignature };
                self.send(7, consent, call).await;
            }
            Step::BreakGlass { by, study: n, lasting } => {
                let (studyId, until, approver) = (study(n), now + lasting, Address::ZERO);
                let emergency = Emergency { studyId, reason: 1, notes: B256::ZERO, until, approver, deadline };
                self.send(by, consent, Consent::breakGlassCall { emergency, approverSignature: Bytes::new() }).await;
            }
            Step::Transfer { study: n } => {
                let next = if self.owners[&n] == 13 { 11 } else { 13 };
                let (studyId, newOwner, custodial) = (study(n), address(next), false);
                let seq = self.study_seq(studyId).await;
                let message = TransferStudy { studyId, newOwner, custodial, seq, deadline };
                let ownerSignature = sign(self.owners[&n], &self.studies(), &message);
                let call = Studies::transferCall { studyId, newOwner, custodial, seq, deadline, ownerSignature };
                if self.send(7, studies, call).await {
                    self.owners.insert(n, next);
                }
            }
            Step::Amend { study: n } => {
                let found = view(&self.provider, studies, Studies::getStudyCall { studyId: study(n) }).await.unwrap();
                let version = found.version + 1;
                let (manifestImage, manifestRoot) = (keccak256([n, 1]), keccak256(version.to_be_bytes()));
                let call = Studies::amendCall { studyId: study(n), version, manifestImage, manifestRoot };
                self.send(2, studies, call).await;
            }
            Step::Tombstone { study: n } => {
                let studyId = study(n);
                let seq = self.study_seq(studyId).await;
                let message = TombstoneStudy { studyId, seq, deadline };
                let ownerSignature = sign(self.owners[&n], &self.studies(), &message);
                self.send(7, studies, Studies::tombstoneCall { studyId, seq, deadline, ownerSignature }).await;
            }
            Step::Suspend { source } => {
                self.send(ADMIN, sources, Sources::suspendCall { source: address(source) }).await;
            }
            Step::Reinstate { source } => {
                self.send(ADMIN, sources, Sources::reinstateCall { source: address(source) }).await;
            }
            Step::Endpoint { source } => {
                let call = Sources::changeEndpointCall { endpoint: format!("https://{now}") };
                self.send(source, sources, call).await;
            }
            Step::Keys { source } => {
                let call = Sources::changeKeysCall {
                    tlsKey: keccak256(now.to_be_bytes()),
                    encryptionKey: now.to_be_bytes().to_vec().into(),
                };
                self.send(source, sources, call).await;
            }
            Step::Operator { revoke } => {
                let operator = address(4);
                if revoke {
                    self.send(3, sources, Sources::revokeOperatorCall { operator }).await;
                } else {
                    self.send(3, sources, Sources::authorizeOperatorCall { operator }).await;
                    self.send(4, sources, Sources::acceptOperatorCall { source: address(3) }).await;
                }
            }
            Step::Bind { account, card: n, proof, lasting } => {
                self.bind(account, n, proof, now.saturating_add(lasting)).await;
            }
            Step::Unbind { account, card } => self.unbind(account, card).await,
            Step::Wait { seconds } => {
                self.clock.fetch_add(seconds, Ordering::Relaxed);
                // Views are answered as of the newest block: there must be one of this time.
                self.send(ADMIN, sources, Sources::adminCall {}).await;
            }
            Step::Restart => {}
        }
    }

    async fn key_seq(&self, account: u8) -> u32 {
        let call = KeyBindings::seqOfCall { account: address(account) };
        view(&self.provider, self.at.key_bindings, call).await.unwrap() + 1
    }

    async fn bind(&mut self, holder: u8, n: u8, proof: Proof, notAfter: u64) {
        let (account, at, deadline) = (address(holder), self.at.key_bindings, u64::MAX);
        let named = if proof == Proof::Copied { address(7) } else { account };
        let octets = key_proof_octets(CHAIN_ID, at, named, card_name(n));
        let signer = if proof == Proof::OfAnotherKey { card(33) } else { card(n) };
        let signature: p256::ecdsa::Signature = signer.sign(&octets);
        let octets = if proof == Proof::Nonsense { vec![0; 64] } else { signature.to_bytes().to_vec() };
        let (proven, spki, proof) = (proof == Proof::Right, spki(n), Bytes::from(octets));
        let seq = self.key_seq(holder).await;
        let message = BindKey { account, spki: spki.clone(), proof: proof.clone(), notAfter, seq, deadline };
        let accountSignature = sign(holder, &key_bindings_domain(CHAIN_ID, at), &message);
        let call = KeyBindings::bindKeyCall { account, spki, proof, notAfter, seq, deadline, accountSignature };
        assert!(self.send(7, at, call).await, "the contract does not judge proofs");
        self.bindings += 1;
        self.bound.insert((holder, n), (proven, self.bindings));
    }

    async fn unbind(&mut self, holder: u8, n: u8) {
        let (account, key, at, deadline) = (address(holder), card_name(n), self.at.key_bindings, u64::MAX);
        let seq = self.key_seq(holder).await;
        let message = UnbindKey { account, key, seq, deadline };
        let accountSignature = sign(holder, &key_bindings_domain(CHAIN_ID, at), &message);
        let call = KeyBindings::unbindKeyCall { account, key, seq, deadline, accountSignature };
        assert!(self.send(7, at, call).await);
    }

    /// What is bound is what the contract holds, as far as it is proven; of several that hold the oldest counts.
    async fn compare_keys(&self, consents: &Consents, when: &str) {
        let now = self.now();
        for n in CARDS {
            let (key, mut holding) = (card_name(n), Vec::new());
            for holder in HOLDERS {
                let account = address(holder);
                let call = KeyBindings::notAfterOfCall { account, key };
                let said = view(&self.provider, self.at.key_bindings, call).await.unwrap();
                let (proven, order) = self.bound.get(&(holder, n)).copied().unwrap_or_default();
                let expected = (proven && said != 0).then_some(said);
                let followed = consents.bindings_of(account).unwrap().into_iter().find(|binding| binding.key == key);
                assert_eq!(followed.map(|binding| binding.not_after), expected, "account {holder}, card {n}, {when}");
                if expected.is_some_and(|last| now <= last) {
                    holding.push((order, account));
                }
            }
            let expected = holding.into_iter().min().map(|(_, account)| account);
            assert_eq!(consents.account_of(key, now).unwrap(), expected, "card {n}, {when}");
        }
    }

    /// Everybody's followed access is the contract's.
    async fn compare(&self, consents: &Consents, when: &str) {
        self.compare_keys(consents, when).await;
        let now = self.now();
        for (n, grantee) in STUDIES.iter().flat_map(|n| GRANTEES.map(|g| (*n, address(g)))) {
            let studyId = study(n);
            let grant = consents.grant(studyId, grantee).unwrap();
            for (part, purpose) in [(0, 0), (0, 3), (1, 0), (1, 3)] {
                let call = Consent::isAllowedCall { studyId, series: series(part), grantee, purpose };
                let found = view(&self.provider, self.at.consent, call).await.unwrap();
                let followed = grant.as_ref().and_then(|grant| grant.mode_for(now, series(part), purpose));
                assert_eq!(followed.map_or(0, Mode::number), found.mode, "study {n}, {grantee}, {when}: {grant:#?}");
            }
            let found = view(&self.provider, self.at.consent, Consent::traceCall { studyId, grantee }).await.unwrap();
            if let Some(grant) = &grant {
                let call = Consent::isAllowedCall { studyId, series: grant.series, grantee, purpose: grant.purpose };
                let allowed = view(&self.provider, self.at.consent, call).await.unwrap();
                assert_eq!(grant.mode_at(now).map_or(0, Mode::number), allowed.mode, "{when}: {grant:#?}");
                assert_eq!((grant.trace_at(now).number(), grant.seq), (found.state, found.seq), "{when}: {grant:#?}");
            } else {
                assert_eq!((found.state, found.seq), (0, 0), "{when}");
            }
        }
        for n in STUDIES {
            let studyId = study(n);
            let found = view(&self.provider, self.at.studies, Studies::getStudyCall { studyId }).await.unwrap();
            let known = consents.study(studyId).unwrap().unwrap();
            assert_eq!((known.owner, known.source, known.seq), (found.owner, found.source, found.seq), "{when}");
            assert_eq!((known.version, known.tombstoned), (found.version, found.tombstoned), "{when}");
            assert_eq!(
                (known.manifest_image, known.manifest_root),
                (found.manifestImage, found.manifestRoot),
                "{when}"
            );
        }
        for n in 1..8 {
            let operator = address(n);
            let found = view(&self.provider, self.at.sources, Sources::sourceOfCall { operator }).await.unwrap();
            assert_eq!(consents.source_of(operator).unwrap().unwrap_or_default(), found, "account {n}, {when}");
            let found = view(&self.provider, self.at.sources, Sources::keysOfCall { source: operator }).await.unwrap();
            let known = consents.source(operator).unwrap();
            let keys = known.as_ref().map(|s| (B256::from(s.tls_key), s.encryption_key)).unwrap_or_default();
            assert_eq!(keys, (found.tlsKey, found.encryptionKey), "account {n}, {when}");
            let found =
                view(&self.provider, self.at.sources, Sources::endpointOfCall { source: operator }).await.unwrap();
            assert_eq!(known.map(|s| s.endpoint).unwrap_or_default(), found, "account {n}, {when}");
        }
    }
}

fn sign(signer: u8, domain: &Eip712Domain, message: &impl SolStruct) -> Bytes {
    key(signer).sign_hash_sync(&message.eip712_signing_hash(domain)).unwrap().as_bytes().to_vec().into()
}

/// One node that can change its mind about which of two chains is canonical.
#[derive(Clone)]
struct Fickle {
    chains: [RpcNode; 2],
    second: Arc<AtomicBool>,
}

impl Fickle {
    fn now(&self) -> &RpcNode {
        &self.chains[usize::from(self.second.load(Ordering::SeqCst))]
    }
}

impl Node for Fickle {
    async fn version(&self) -> Result<String, NodeError> {
        self.now().version().await
    }

    async fn chain_id(&self) -> Result<u64, NodeError> {
        self.now().chain_id().await
    }
    async fn head(&self) -> Result<Block, NodeError> {
        self.now().head().await
    }
    async fn block(&self, hash: B256) -> Result<Option<Block>, NodeError> {
        self.now().block(hash).await
    }
    async fn block_at(&self, number: u64) -> Result<Option<Block>, NodeError> {
        self.now().block_at(number).await
    }
    async fn receipts(&self, block: B256) -> Result<Option<Vec<Receipt>>, NodeError> {
        self.now().receipts(block).await
    }
    async fn receipt(&self, transaction: B256) -> Result<Option<Receipt>, NodeError> {
        self.now().receipt(transaction).await
    }
    async fn nonce(&self, account: Address) -> Result<u64, NodeError> {
        self.now().nonce(account).await
    }
    async fn balance(&self, account: Address) -> Result<U256, NodeError> {
        self.now().balance(account).await
    }
    async fn code(&self, account: Address) -> Result<Bytes, NodeError> {
        self.now().code(account).await
    }
    async fn call(&self, ask: Ask, at: At) -> Result<Bytes, NodeError> {
        self.now().call(ask, at).await
    }
    async fn estimate(&self, ask: Ask) -> Result<u64, NodeError> {
        self.now().estimate(ask).await
    }
    async fn offer(&self, raw: Bytes) -> Result<Offer, NodeError> {
        self.now().offer(raw).await
    }
    async fn events(&self, filter: EventFilter) -> Result<Vec<Event>, NodeError> {
        self.now().events(filter).await
    }
    async fn said(&self, contracts: Vec<Address>, span: Span) -> Result<Vec<Logged>, NodeError> {
        self.now().said(contracts, span).await
    }
    async fn transaction_at(&self, block: u64, index: u64) -> Result<Option<Transaction>, NodeError> {
        self.now().transaction_at(block, index).await
    }
}

/// The follower, which can be stopped and started again on its file.
struct Follower {
    path: PathBuf,
    node: Fickle,
    at: Addresses,
    consents: Consents,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Follower {
    fn start(path: &Path, node: Fickle, at: Addresses) -> Self {
        Self::start_with(path, node, at, false, 1, InFlight::default())
    }

    fn start_with(
        path: &Path,
        node: Fickle,
        at: Addresses,
        clocks_elsewhere: bool,
        depth: u64,
        carried: InFlight,
    ) -> Self {
        let consents = Consents::open(path).unwrap();
        let config = FollowConfig {
            registry: at.studies,
            consent: at.consent,
            key_bindings: at.key_bindings,
            depth,
            poll_ms: 1,
            clocks_elsewhere,
            carried,
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(follow(
            consents.clone(),
            node.clone(),
            SystemClock,
            config,
            Arc::new(Notify::new()),
            stop.clone(),
        ));
        Self { path: path.to_owned(), node, at, consents, stop, task }
    }

    async fn restart(self) -> Self {
        self.stop.cancel();
        self.task.await.unwrap();
        drop(self.consents);
        Self::start(&self.path, self.node, self.at)
    }

    /// Waits until the newest block of a chain is the newest one followed.
    async fn caught_up(&self, ledger: &EmbeddedLedger) {
        let head = ledger.head();
        let mut followed = self.consents.followed();
        loop {
            if self.consents.cursor().unwrap().is_some_and(|at| at.hash == head.hash) {
                return;
            }
            let changed = tokio::time::timeout(std::time::Duration::from_secs(300), followed.changed()).await;
            changed.expect("the follower stands still").unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 6,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(20_261_121),
        max_shrink_iters: 60,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_followed_state_is_that_of_the_contracts(
        before in prop::collection::vec(step(), 10..25),
        lost in prop::collection::vec(step(), 1..12),
        kept in prop::collection::vec(step(), 1..15),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut first = World::new(&dir.path().join("a.redb")).await;
            let mut second = World::new(&dir.path().join("b.redb")).await;
            let chains = [RpcNode::embedded(&first.ledger), RpcNode::embedded(&second.ledger)];
            let node = Fickle { chains, second: Arc::default() };
            let mut follower = Follower::start(&dir.path().join("consent.sqlite"), node.clone(), first.at);
            for step in &before {
                first.take(*step).await;
                second.take(*step).await;
                if matches!(step, Step::Restart) {
                    follower = follower.restart().await;
                }
                follower.caught_up(&first.ledger).await;
                first.compare(&follower.consents, &format!("{step:?}")).await;
            }
            assert_eq!(first.ledger.head().hash, second.ledger.head().hash, "the chains have a common beginning");
            let fork = first.ledger.head().number;

            // What is lost was followed; then the node holds another, longer branch for canonical.
            for step in &lost {
                first.take(*step).await;
            }
            follower.caught_up(&first.ledger).await;
            first.compare(&follower.consents, "the branch that will be lost").await;
            for step in &kept {
                second.take(*step).await;
            }
            while second.ledger.head().number <= first.ledger.head().number {
                second.take(Step::Wait { seconds: 1 }).await;
            }
            node.second.store(true, Ordering::SeqCst);
            follower.caught_up(&second.ledger).await;
            second.compare(&follower.consents, "after the reorganisation").await;
            assert!(follower.consents.header_below(fork).unwrap().is_some_and(|head| head.number == fork));

            // The same from the file alone, and the same from the very beginning.
            follower = follower.restart().await;
            follower.caught_up(&second.ledger).await;
            second.compare(&follower.consents, "after a restart").await;
            let afresh = Follower::start(&dir.path().join("other.sqlite"), node, first.at);
            afresh.caught_up(&second.ledger).await;
            for n in STUDIES {
                let said = |consents: &Consents| consents.history(study(n)).unwrap();
                assert_eq!(said(&follower.consents), said(&afresh.consents));
            }
            for follower in [follower, afresh] {
                follower.stop.cancel();
                follower.task.await.unwrap();
            }
        });
    }
}

/// Two chains with a common beginning, and one node that knows both.
async fn fork(dir: &Path) -> (World, World, Fickle, Follower) {
    let (first, second) = (World::new(&dir.join("a.redb")).await, World::new(&dir.join("b.redb")).await);
    let chains = [RpcNode::embedded(&first.ledger), RpcNode::embedded(&second.ledger)];
    let node = Fickle { chains, second: Arc::default() };
    let follower = Follower::start(&dir.join("consent.sqlite"), node.clone(), first.at);
    (first, second, node, follower)
}

/// The cases of docs/P256-BINDING.md, one after the other.
#[tokio::test]
async fn a_key_signs_for_the_account_that_its_holder_chose_first_until_that_account_says_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let (mut world, mut other, node, follower) = fork(dir.path()).await;
    let (clinic, stranger, card) = (2, 6, CARDS[0]);
    let (key, consents) = (card_name(card), follower.consents.clone());
    let holder = |now| consents.account_of(key, now).unwrap();
    let bindings = |n: u8| consents.bindings_of(address(n)).unwrap();

    // A stranger comes first, with every proof but the holder's own for him.
    for proof in [Proof::Nonsense, Proof::OfAnotherKey, Proof::Copied] {
        world.bind(stranger, card, proof, u64::MAX).await;
        follower.caught_up(&world.ledger).await;
        assert_eq!(holder(world.now()), None, "{proof:?}");
    }
    world.bind(clinic, card, Proof::Right, u64::MAX).await;
    follower.caught_up(&world.ledger).await;
    assert_eq!(holder(world.now()), Some(address(clinic)));
    // He copies the clinic's proof from the ledger, which names the clinic.
    let octets = key_proof_octets(CHAIN_ID, world.at.key_bindings, address(clinic), key);
    let copied: p256::ecdsa::Signature = self::card(card).sign(&octets);
    let (account, spki, proof, deadline) = (address(stranger), spki(card), copied.to_bytes().to_vec().into(), u64::MAX);
    let (notAfter, seq, accountSignature) = (u64::MAX, world.key_seq(stranger).await, Bytes::new());
    let call = KeyBindings::bindKeyCall { account, spki, proof, notAfter, seq, deadline, accountSignature };
    let at = world.at.key_bindings;
    assert!(world.send(stranger, at, call).await);
    follower.caught_up(&world.ledger).await;
    assert!(bindings(stranger).is_empty() && holder(world.now()) == Some(address(clinic)));

    // The holder binds it to another account as well, which counts when the first is gone; then nothing does.
    world.bind(stranger, card, Proof::Right, u64::MAX).await;
    follower.caught_up(&world.ledger).await;
    let [KeyBinding { account, .. }] = bindings(stranger)[..] else { panic!("{:?}", bindings(stranger)) };
    assert_eq!((account, holder(world.now())), (address(stranger), Some(address(clinic))), "the older one");
    world.unbind(clinic, card).await;
    follower.caught_up(&world.ledger).await;
    assert_eq!(holder(world.now()), Some(address(stranger)), "the younger one follows");
    world.bind(clinic, card, Proof::Right, world.now() + 10).await;
    world.unbind(stranger, card).await;
    follower.caught_up(&world.ledger).await;
    let last = world.now() + 10;
    assert_eq!((holder(last), holder(last + 1)), (Some(address(clinic)), None), "until its last second");
    // The account's newest word counts alone, whatever its proof is worth.
    world.bind(clinic, card, Proof::Nonsense, u64::MAX).await;
    follower.caught_up(&world.ledger).await;
    assert_eq!(holder(world.now()), None);

    // A binding that left the chain never was.
    world.bind(clinic, card, Proof::Right, u64::MAX).await;
    follower.caught_up(&world.ledger).await;
    assert_eq!(holder(world.now()), Some(address(clinic)));
    while other.ledger.head().number <= world.ledger.head().number {
        other.take(Step::Wait { seconds: 1 }).await;
    }
    node.second.store(true, Ordering::SeqCst);
    follower.caught_up(&other.ledger).await;
    assert!(holder(other.now()).is_none() && bindings(clinic).is_empty());
    other.bind(stranger, card, Proof::Right, u64::MAX).await;
    follower.caught_up(&other.ledger).await;
    assert_eq!(holder(other.now()), Some(address(stranger)), "on the other branch he is the first");
    follower.stop.cancel();
    follower.task.await.unwrap();
}

/// By a clock that is behind, grants would live longer than on the ledger.
#[test]
fn nothing_counts_as_current_while_blocks_come_from_the_future_of_this_clock() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let mut world = World::new(&dir.path().join("a.redb")).await;
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        world.clock.store(now() + 600, Ordering::Relaxed);
        world.take(Step::Wait { seconds: 1 }).await;
        let chain = RpcNode::embedded(&world.ledger);
        let node = Fickle { chains: [chain.clone(), chain], second: Arc::default() };
        for (clocks_elsewhere, current) in [(true, false), (false, true)] {
            let file = dir.path().join(format!("{clocks_elsewhere}.sqlite"));
            let follower =
                Follower::start_with(&file, node.clone(), world.at, clocks_elsewhere, 1, InFlight::default());
            follower.caught_up(&world.ledger).await;
            // Hundreds of rounds, in each of which there is nothing new.
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            assert_eq!(follower.consents.is_current(now()), current, "clocks elsewhere: {clocks_elsewhere}");
            follower.stop.cancel();
            follower.task.await.unwrap();
        }
    });
}

/// A ledger's blocks, and everything that the followed contracts said in them.
async fn everything(world: &World) -> (Vec<Head>, Vec<Logged>) {
    let node = RpcNode::embedded(&world.ledger);
    let (newest, Addresses { studies, consent, key_bindings, .. }) = (world.ledger.head().number, world.at);
    let mut heads = Vec::new();
    for number in 0..=newest {
        let block = node.block_at(number).await.unwrap().unwrap();
        heads.push(Head { number, hash: block.hash, parent: block.parent });
    }
    (heads, node.said(vec![studies, consent, key_bindings], Span::Heights(0, newest)).await.unwrap())
}

/// What blocks that may be replaced say, by what they can do to a grant.
#[derive(Default)]
struct NotFinal {
    says: bool,
    opens_otherwise: bool,
}

impl NotFinal {
    fn of(ahead: &[Logged], study: B256, grantee: Address) -> Self {
        let mut found = Self::default();
        for what in ahead.iter().filter_map(|logged| What::decode(&logged.topics, &logged.data)) {
            let of_study = what.study() == Some(study);
            let of_source = matches!(what, What::SourceSuspended { source } | What::SourceReinstated { source } if source == grantee);
            found.says |= of_study || of_source;
            let otherwise = matches!(what, What::GlassBroken { .. } | What::Transferred { .. });
            found.opens_otherwise |= of_study && otherwise || matches!(what, What::SourceReinstated { .. });
        }
        found
    }
}

/// The blocks up to `last` are final, and two more are not. Nobody has more than both states give, and more than the final one gives by a word
/// alone that this site carries; whatever takes something away does at once.
fn compare_ahead(heads: &[Head], said: &[Logged], last: usize, carries: u64, now: u64) -> [usize; 2] {
    let (final_height, newest) = (heads[last].number, &heads[(last + 2).min(heads.len() - 1)]);
    let dir = tempfile::tempdir().unwrap();
    let up_to = |name: &str, height: u64, ahead: Ahead| {
        let consents = Consents::open(&dir.path().join(name)).unwrap();
        let heads: Vec<Head> = heads.iter().filter(|head| head.number <= height).copied().collect();
        let said: Vec<Logged> = said.iter().filter(|event| event.block <= height).cloned().collect();
        consents.apply_with(&heads, &said, ahead).unwrap();
        consents
    };
    let events: Vec<Logged> =
        said.iter().filter(|event| (final_height + 1..=newest.number).contains(&event.block)).cloned().collect();
    let all: std::collections::HashSet<B256> = events.iter().map(|event| event.transaction).collect();
    let carried = all.iter().filter(|hash| carries >> (hash.0[31] % 64) & 1 == 1).copied().collect();
    let is_final = up_to("final", final_height, Ahead::default());
    let new = up_to("new", newest.number, Ahead::default());
    let of_this_site = up_to("some", final_height, Ahead { events: events.clone(), carried });
    let of_others = up_to("none", final_height, Ahead { events: events.clone(), ..Ahead::default() });
    let whoever = up_to("all", final_height, Ahead { events: events.clone(), carried: all });
    let mut seen = [0, 0];
    for (n, grantee) in STUDIES.iter().flat_map(|n| GRANTEES.map(|g| (*n, address(g)))) {
        let about = NotFinal::of(&events, study(n), grantee);
        let asked =
            [(0, 0), (0, 3), (1, 0), (1, 3)].into_iter().flat_map(|ask| [now - 60, now, now + 60].map(|at| (ask, at)));
        for ((part, purpose), at) in asked {
            let mode = |grant: Option<bridge::follow::Grant>| {
                grant.and_then(|grant| grant.mode_for(at, series(part), purpose))
            };
            let plain = |consents: &Consents| mode(consents.grant(study(n), grantee).unwrap());
            let ahead = |consents: &Consents| mode(consents.in_effect(study(n), grantee).unwrap());
            let (before, after) = (plain(&is_final), plain(&new));
            let (some, none, all) = (ahead(&of_this_site), ahead(&of_others), ahead(&whoever));
            let when = format!(
                "study {n}, {grantee}, {part}, {purpose}: {before:?} to {after:?}: {some:?} {none:?} {all:?}\n{events:?}"
            );
            assert!(some <= after && none <= after && all <= after, "kept what is taken away: {when}");
            assert!(none <= before, "opened by a word that others carry: {when}");
            assert!(none <= some && some <= all, "{when}");
            assert!(about.says || (some, none, all) == (before, before, before), "changed by nothing: {when}");
            assert!(about.opens_otherwise || all == after, "not opened by what this site carries: {when}");
            let open = of_others.open_to(grantee).unwrap().into_iter().find(|grant| grant.study_id == study(n));
            assert_eq!(mode(open), all, "{when}");
            seen[0] += usize::from(none < before);
            seen[1] += usize::from(all > before);
        }
    }
    seen
}

#[test]
fn what_is_not_final_takes_at_once_and_gives_only_by_words_that_this_site_carries() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        rng_seed: RngSeed::Fixed(20_261_130),
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let mut seen = [0, 0];
    for _ in 0..4 {
        let steps = prop::collection::vec(step(), 60..80).new_tree(&mut runner).unwrap().current();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut world = World::new(&dir.path().join("a.redb")).await;
            for step in steps {
                world.take(step).await;
            }
            let (heads, said) = everything(&world).await;
            for last in 8..heads.len() - 1 {
                let carries = u64::from_be_bytes(heads[last].hash.0[..8].try_into().unwrap());
                let now = world.now();
                for (sum, more) in seen.iter_mut().zip(compare_ahead(&heads, &said, last, carries, now)) {
                    *sum += more;
                }
            }
        });
    }
    assert!(seen.iter().all(|times| *times > 20), "hardly anything happened: {seen:?}");
}

/// A record of a transaction in flight.
fn in_flight(hashes: &[B256]) -> InFlight {
    let in_flight = InFlight::default();
    let record =
        |(nonce, hash): (u64, &B256)| Record { nonce, hash: *hash, call: *hash, raw: Bytes::new(), earlier: vec![] };
    let records = (0..).zip(hashes).map(record).collect();
    let _ = Slots::load(records, 0, 0).shown_in(&in_flight);
    in_flight
}

#[test]
fn a_word_in_a_block_that_is_replaced_lets_nobody_in_and_one_that_this_site_carries_does_until_then() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (mut first, mut second) =
            (World::new(&dir.path().join("a.redb")).await, World::new(&dir.path().join("b.redb")).await);
        let chains = [RpcNode::embedded(&first.ledger), RpcNode::embedded(&second.ledger)];
        let node = Fickle { chains, second: Arc::default() };
        let allow = Step::Allow { study: 1, grantee: 3, series: 0, mode: 2, purpose: 0, from: 0, length: 90 };
        first.take(allow).await;
        let word = node.head().await.unwrap().transactions[0];
        let start = |name: &str, carried| {
            Follower::start_with(&dir.path().join(name), node.clone(), first.at, false, 2, carried)
        };
        let (carrier, other) = (start("carrier", in_flight(&[word])), start("other", InFlight::default()));
        let open = |at: &Follower| {
            let grant = at.consents.in_effect(study(1), address(3)).unwrap();
            grant.and_then(|grant| grant.mode_at(START)).is_some()
        };
        async fn until(what: &str, is: impl Fn() -> bool) {
            for _ in 0..3_000 {
                if is() {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            panic!("waited in vain for {what}");
        }
        until("the carrier to open", || open(&carrier)).await;
        // The other has read the same block.
        until("the grantee to hear of it", || !other.consents.open_to(address(3)).unwrap().is_empty()).await;
        assert!(!open(&other) && carrier.consents.grant(study(1), address(3)).unwrap().is_none(), "it is not final");

        // Another block takes its place, of the same height.
        second.take(Step::Amend { study: 1 }).await;
        node.second.store(true, Ordering::SeqCst);
        until("the block to be replaced", || !open(&carrier)).await;
        // Carried again, it is final in the end, for everybody.
        second.take(allow).await;
        second.take(Step::Wait { seconds: 1 }).await;
        until("the word to be final", || open(&other) && open(&carrier)).await;
        assert!(carrier.consents.grant(study(1), address(3)).unwrap().is_some());

        // What is taken away is taken away in the first block that says so, wherever it came from.
        second.take(Step::Revoke { study: 1, grantee: 3 }).await;
        until("the revocation", || !open(&other) && !open(&carrier)).await;
        let grant = other.consents.grant(study(1), address(3)).unwrap().unwrap();
        assert!(grant.mode_at(START).is_some(), "it is not final");
        for follower in [carrier, other] {
            follower.stop.cancel();
            follower.task.await.unwrap();
        }
    });
}
