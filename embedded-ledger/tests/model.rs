//! The contracts on the ledger against a model in Rust: random calls by several accounts succeed and fail exactly as the model
//! says, and leave exactly what the model holds.
#![allow(clippy::unwrap_used, non_snake_case)]

mod support;

use alloy::primitives::{Address, B256, Bytes, keccak256};
use alloy::providers::DynProvider;
use alloy::signers::SignerSync;
use alloy::sol_types::{SolCall, SolStruct};
use contracts::messages::{DefineStudy, TombstoneStudy, TransferStudy, studies_domain};
use contracts::{Addresses, PieceMode, Pieces, Sources, Studies, merkle};
use embedded_ledger::EmbeddedLedger;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use support::*;

/// Accounts 1 (admin) to 5 send; 11 to 13 own studies.
const SENDERS: std::ops::RangeInclusive<u8> = 1..=5;

#[derive(Clone, Debug)]
enum Step {
    Admit { by: u8, source: u8 },
    Suspend { by: u8, source: u8 },
    Reinstate { by: u8, source: u8 },
    DefineSource { by: u8, key_of: u8 },
    Authorize { by: u8, operator: u8 },
    Accept { by: u8, source: u8 },
    Revoke { by: u8, operator: u8 },
    DefineStudy { by: u8, study: u8, owner: u8, signer: u8, signed_source: u8 },
    Amend { by: u8, study: u8, version: u32 },
    Transfer { by: u8, study: u8, signer: u8, to: u8, seq: u32 },
    Tombstone { by: u8, study: u8, signer: u8, seq: u32 },
    Store { by: u8, mode: PieceMode, study: u8, image: u8, index: u32, length: u16, fill: u8 },
    Seal { by: u8, mode: PieceMode, image: u8, count: u32, right: bool },
}

fn sender() -> impl Strategy<Value = u8> {
    // Sources 2 and 3 act most; the stranger and the operator less.
    prop_oneof![1 => Just(1u8), 5 => Just(2), 4 => Just(3), 1 => Just(4), 2 => Just(5)]
}

fn mode() -> impl Strategy<Value = PieceMode> {
    prop_oneof![Just(PieceMode::Calldata), Just(PieceMode::Log), Just(PieceMode::Code), Just(PieceMode::Storage)]
}

fn step() -> impl Strategy<Value = Step> {
    let admin = prop_oneof![9 => Just(1u8), 1 => SENDERS];
    let owner = 11u8..14;
    prop_oneof![
        1 => (admin.clone(), SENDERS).prop_map(|(by, source)| Step::Admit { by, source }),
        1 => (admin.clone(), SENDERS).prop_map(|(by, source)| Step::Suspend { by, source }),
        2 => (admin, SENDERS).prop_map(|(by, source)| Step::Reinstate { by, source }),
        2 => (sender(), SENDERS).prop_map(|(by, key)| Step::DefineSource { by, key_of: if key == 5 { key } else { by } }),
        2 => (sender(), SENDERS).prop_map(|(by, operator)| Step::Authorize { by, operator }),
        2 => (SENDERS, SENDERS).prop_map(|(by, source)| Step::Accept { by, source }),
        1 => (sender(), SENDERS).prop_map(|(by, operator)| Step::Revoke { by, operator }),
        6 => (sender(), 1u8..6, owner.clone(), owner.clone(), sender(), 0u8..8).prop_map(|(by, study, owner, signer, source, wrong)| {
            Step::DefineStudy {
                by,
                study,
                owner,
                signer: if wrong == 0 { signer } else { owner },
                signed_source: if wrong == 1 || by == 5 { source } else { by },
            }
        }),
        4 => (sender(), 1u8..6, 0u32..5).prop_map(|(by, study, version)| Step::Amend { by, study, version }),
        4 => (SENDERS, 1u8..6, owner.clone(), owner.clone(), 0u32..5)
            .prop_map(|(by, study, signer, to, seq)| Step::Transfer { by, study, signer, to, seq }),
        1 => (SENDERS, 1u8..6, owner, 1u32..5).prop_map(|(by, study, signer, seq)| Step::Tombstone { by, study, signer, seq }),
        10 => (sender(), mode(), 1u8..3, 1u8..4, 0u32..3, prop_oneof![Just(0u16), Just(1), Just(40), Just(25_000)], 1u8..3)
            .prop_map(|(by, mode, study, image, index, length, fill)| {
                // The image decides the study, but for now and then.
                let study = if index == 2 { study } else { image };
                Step::Store { by, mode, study, image, index, length, fill }
            }),
        5 => (sender(), mode(), 1u8..4, 0u32..4, prop::bool::weighted(0.9))
            .prop_map(|(by, mode, image, count, right)| Step::Seal { by, mode, image, count, right }),
    ]
}

#[derive(Clone, Debug, Default)]
struct SourceModel {
    admitted: bool,
    suspended: bool,
    defined: bool,
}

#[derive(Clone, Debug)]
struct StudyModel {
    owner: u8,
    source: u8,
    seq: u32,
    version: u32,
    dead: bool,
}

#[derive(Clone, Debug, Default)]
struct ImageModel {
    study: u8,
    pieces: BTreeMap<u32, Vec<u8>>,
    sealed: Option<(u32, B256)>,
}

#[derive(Debug, Default)]
struct Model {
    sources: BTreeMap<u8, SourceModel>,
    acts_for: BTreeMap<u8, u8>,
    offers: BTreeSet<(u8, u8)>,
    studies: BTreeMap<u8, StudyModel>,
    stake: BTreeMap<u8, u64>,
    images: BTreeMap<(PieceMode, u8, u8), ImageModel>,
}

impl Model {
    fn source(&self, account: u8) -> SourceModel {
        self.sources.get(&account).cloned().unwrap_or_default()
    }

    fn source_of(&self, operator: u8) -> Option<u8> {
        let source = *self.acts_for.get(&operator)?;
        let known = self.source(source);
        (known.defined && !known.suspended).then_some(source)
    }

    /// Takes one step. False when the contracts must refuse it, and then nothing changes.
    fn take(&mut self, step: &Step) -> bool {
        self.try_take(step).is_some()
    }

    fn try_take(&mut self, step: &Step) -> Option<()> {
        let must = |holds: bool| holds.then_some(());
        match *step {
            Step::Admit { by, source } => {
                must(by == ADMIN && !self.source(source).admitted && !self.acts_for.contains_key(&source))?;
                self.sources.entry(source).or_default().admitted = true;
            }
            Step::Suspend { by, source } => {
                let known = self.source(source);
                must(by == ADMIN && known.admitted && !known.suspended)?;
                self.sources.entry(source).or_default().suspended = true;
            }
            Step::Reinstate { by, source } => {
                must(by == ADMIN && self.source(source).suspended)?;
                self.sources.entry(source).or_default().suspended = false;
            }
            Step::DefineSource { by, key_of } => {
                let known = self.source(by);
                must(known.admitted && !known.defined && key_of == by)?;
                self.sources.entry(by).or_default().defined = true;
                self.acts_for.insert(by, by);
            }
            Step::Authorize { by, operator } => {
                must(self.source(by).defined)?;
                self.offers.insert((by, operator));
            }
            Step::Accept { by, source } => {
                must(self.offers.contains(&(source, by)) && !self.acts_for.contains_key(&by))?;
                must(!self.source(by).admitted || by == source)?;
                self.offers.remove(&(source, by));
                self.acts_for.insert(by, source);
            }
            Step::Revoke { by, operator } => {
                let acting = self.acts_for.get(&operator) == Some(&by);
                must(acting || self.offers.contains(&(by, operator)))?;
                self.offers.remove(&(by, operator));
                if acting {
                    self.acts_for.remove(&operator);
                }
            }
            Step::DefineStudy { by, study, owner, signer, signed_source } => {
                let source = self.source_of(by)?;
                must(!self.studies.contains_key(&study) && signer == owner && signed_source == source)?;
                self.studies.insert(study, StudyModel { owner, source, seq: 0, version: 0, dead: false });
                *self.stake.entry(source).or_default() += 1;
            }
            Step::Amend { by, study, version } => {
                let source = self.source_of(by)?;
                let known = self.studies.get_mut(&study)?;
                must(!known.dead && known.source == source && version > known.version)?;
                known.version = version;
            }
            Step::Transfer { study, signer, to, seq, .. } => {
                let known = self.studies.get_mut(&study)?;
                must(!known.dead && known.owner == signer && seq > known.seq)?;
                (known.owner, known.seq) = (to, seq);
            }
            Step::Tombstone { study, signer, seq, .. } => {
                let known = self.studies.get_mut(&study)?;
                must(!known.dead && known.owner == signer && seq > known.seq)?;
                (known.dead, known.seq) = (true, seq);
            }
            Step::Store { by, mode, study, image, index, length, fill } => {
                let source = self.source_of(by)?;
                let data = piece(length, fill);
                if let Some(known) = self.images.get(&(mode, source, image)) {
                    must(known.study == study)?;
                    if let Some(stored) = known.pieces.get(&index) {
                        return must(*stored == data);
                    }
                    must(known.sealed.is_none())?;
                }
                must(!data.is_empty())?;
                let known = self.images.entry((mode, source, image)).or_default();
                known.study = study;
                known.pieces.insert(index, data);
            }
            Step::Seal { by, mode, image, count, right } => {
                let source = self.source_of(by)?;
                let root = self.root(step)?;
                let known = self.images.get_mut(&(mode, source, image))?;
                if known.sealed.is_some() {
                    return must(known.sealed == Some((count, root)));
                }
                must(right && count as usize == known.pieces.len() && known.pieces.keys().copied().eq(0..count))?;
                known.sealed = Some((count, root));
            }
        }
        Some(())
    }

    /// The root that a seal step claims; `None` when its sender is nobody.
    fn root(&self, step: &Step) -> Option<B256> {
        let Step::Seal { by, mode, image, right, .. } = *step else { return None };
        let known = self.images.get(&(mode, self.source_of(by)?, image))?;
        let root = merkle::root(known.pieces.values().map(|data| merkle::piece_hash(data)))?;
        Some(if right { root } else { keccak256(root) })
    }
}

fn piece(length: u16, fill: u8) -> Vec<u8> {
    vec![fill; usize::from(length)]
}

fn id(kind: &str, n: u8) -> B256 {
    keccak256(format!("{kind}{n}"))
}

/// A running ledger with the contracts, and the accounts that use it.
struct World {
    ledger: EmbeddedLedger,
    provider: DynProvider,
    at: Addresses,
    accounts: BTreeMap<u8, Account>,
    _dir: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ledger = EmbeddedLedger::open(config(&dir.path().join("l.redb"))).unwrap();
        let provider = provider(&ledger);
        let mut accounts: BTreeMap<u8, Account> = SENDERS.map(|seed| (seed, Account::new(seed))).collect();
        let at = deploy(&provider, accounts.get_mut(&ADMIN).unwrap()).await;
        Self { ledger, provider, at, accounts, _dir: dir }
    }

    /// Takes one step; whether the contracts accepted it.
    async fn take(&mut self, step: &Step, root: Option<B256>) -> bool {
        let (by, to, input) = self.encode(step, root);
        let account = self.accounts.get_mut(&by).unwrap();
        account.send_raw(&self.provider, to, input, 39_000_000).await.status()
    }

    fn encode(&self, step: &Step, root: Option<B256>) -> (u8, Address, Vec<u8>) {
        let address = |seed| key(seed).address();
        let (sources, studies) = (self.at.sources, self.at.studies);
        match *step {
            Step::Admit { by, source } => (by, sources, Sources::admitCall { source: address(source) }.abi_encode()),
            Step::Suspend { by, source } => {
                (by, sources, Sources::suspendCall { source: address(source) }.abi_encode())
            }
            Step::Reinstate { by, source } => {
                (by, sources, Sources::reinstateCall { source: address(source) }.abi_encode())
            }
            Step::DefineSource { by, key_of } => {
                let call =
                    Sources::defineSourceCall { publicKey: public_key(&key(key_of)), endpoint: "https://x".into() };
                (by, sources, call.abi_encode())
            }
            Step::Authorize { by, operator } => {
                (by, sources, Sources::authorizeOperatorCall { operator: address(operator) }.abi_encode())
            }
            Step::Accept { by, source } => {
                (by, sources, Sources::acceptOperatorCall { source: address(source) }.abi_encode())
            }
            Step::Revoke { by, operator } => {
                (by, sources, Sources::revokeOperatorCall { operator: address(operator) }.abi_encode())
            }
            Step::DefineStudy { by, study, owner, signer, signed_source } => {
                let (studyId, owner, deadline) = (id("study", study), address(owner), u64::MAX);
                let (custodial, derivedFrom) = (false, B256::ZERO);
                let source = address(signed_source);
                let message = DefineStudy { studyId, owner, source, custodial, derivedFrom, deadline };
                let ownerSignature = self.signature(signer, &message);
                let call =
                    Studies::defineStudyCall { studyId, owner, custodial, derivedFrom, deadline, ownerSignature };
                (by, studies, call.abi_encode())
            }
            Step::Amend { by, study, version } => {
                let call = Studies::amendCall {
                    studyId: id("study", study),
                    version,
                    manifestImage: id("manifest", study),
                    manifestRoot: keccak256(version.to_be_bytes()),
                };
                (by, studies, call.abi_encode())
            }
            Step::Transfer { by, study, signer, to, seq } => {
                let (studyId, newOwner, deadline) = (id("study", study), address(to), u64::MAX);
                let custodial = false;
                let message = TransferStudy { studyId, newOwner, custodial, seq, deadline };
                let ownerSignature = self.signature(signer, &message);
                let call = Studies::transferCall { studyId, newOwner, custodial, seq, deadline, ownerSignature };
                (by, studies, call.abi_encode())
            }
            Step::Tombstone { by, study, signer, seq } => {
                let (studyId, deadline) = (id("study", study), u64::MAX);
                let ownerSignature = self.signature(signer, &TombstoneStudy { studyId, seq, deadline });
                (by, studies, Studies::tombstoneCall { studyId, seq, deadline, ownerSignature }.abi_encode())
            }
            Step::Store { by, mode, study, image, index, length, fill } => {
                let call = Pieces::storePieceCall {
                    study: id("study", study),
                    image: id("image", image),
                    index,
                    data: piece(length, fill).into(),
                };
                (by, self.at.pieces(mode), call.abi_encode())
            }
            Step::Seal { by, mode, image, count, .. } => {
                let call =
                    Pieces::sealCall { image: id("image", image), pieces: count, root: root.unwrap_or_default() };
                (by, self.at.pieces(mode), call.abi_encode())
            }
        }
    }

    fn signature(&self, signer: u8, message: &impl SolStruct) -> Bytes {
        let hash = message.eip712_signing_hash(&studies_domain(CHAIN_ID, self.at.studies));
        Bytes::copy_from_slice(&key(signer).sign_hash_sync(&hash).unwrap().as_bytes())
    }

    async fn compare(&self, model: &Model) {
        let address = |seed: u8| key(seed).address();
        for account in SENDERS {
            let expected = model.source_of(account).map_or(Address::ZERO, address);
            let call = Sources::sourceOfCall { operator: address(account) };
            assert_eq!(view(&self.provider, self.at.sources, call).await.unwrap(), expected);
            let call = Sources::stakeOfCall { source: address(account) };
            let stake = model.stake.get(&account).copied().unwrap_or_default();
            assert_eq!(view(&self.provider, self.at.studies, call).await.unwrap().to::<u64>(), stake);
        }
        for study in 1..6 {
            let call = Studies::getStudyCall { studyId: id("study", study) };
            let found = view(&self.provider, self.at.studies, call).await.unwrap();
            match model.studies.get(&study) {
                None => assert_eq!(found.owner, Address::ZERO),
                Some(known) => {
                    assert_eq!((found.owner, found.source), (address(known.owner), address(known.source)));
                    assert_eq!((found.seq, found.version, found.tombstoned), (known.seq, known.version, known.dead));
                    let root = if known.version == 0 { B256::ZERO } else { keccak256(known.version.to_be_bytes()) };
                    assert_eq!(found.manifestRoot, root);
                }
            }
        }
        for mode in PieceMode::ALL {
            for source in SENDERS {
                self.compare_images(model, mode, source).await;
            }
        }
        let report = self.ledger.verify().unwrap();
        assert!(report.is_sound(), "{:?}", report.defects);
    }

    async fn compare_images(&self, model: &Model, mode: PieceMode, number: u8) {
        let (to, source, provider) = (self.at.pieces(mode), key(number).address(), &self.provider);
        for image in 1u8..4 {
            let known = model.images.get(&(mode, number, image)).cloned().unwrap_or_default();
            let image = id("image", image);
            let found = view(provider, to, Pieces::getImageCall { source, image }).await.unwrap();
            assert_eq!(found.stored as usize, known.pieces.len());
            assert_eq!(found.size, known.pieces.values().map(|data| data.len() as u64).sum::<u64>());
            assert_eq!((found.pieces, found.root), known.sealed.unwrap_or_default());
            let exists = view(provider, to, Pieces::getImageExistsCall { source, image }).await.unwrap();
            assert_eq!(exists, !known.pieces.is_empty());
            for index in 0..3 {
                let data = known.pieces.get(&index);
                let hash = view(provider, to, Pieces::pieceHashOfCall { source, image, index }).await.unwrap();
                assert_eq!(hash, data.map(keccak256).unwrap_or_default());
                if mode.readable_by_call() {
                    let loaded = view(provider, to, Pieces::loadPieceCall { source, image, index }).await;
                    assert_eq!(loaded.ok().map(|bytes| bytes.to_vec()).as_ref(), data, "{mode:?}");
                }
            }
        }
        for study in 1u8..4 {
            let images =
                model.images.iter().filter(|((m, s, _), i)| (*m, *s, i.study) == (mode, number, study)).count();
            let call = Pieces::getImageCountCall { source, study: id("study", study) };
            assert_eq!(view(provider, to, call).await.unwrap().to::<usize>(), images);
        }
    }
}

/// Every run begins with two sources at work and one operator invited; what follows is random.
fn opening() -> Vec<Step> {
    let mut steps = Vec::new();
    for source in [2, 3] {
        steps.push(Step::Admit { by: ADMIN, source });
        steps.push(Step::DefineSource { by: source, key_of: source });
    }
    steps.push(Step::Authorize { by: 2, operator: 5 });
    steps
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_contracts_do_what_the_model_does(steps in prop::collection::vec(step(), 60..120)) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let (mut world, mut model) = (World::new().await, Model::default());
            let mut accepted = 0;
            for step in opening().iter().chain(&steps) {
                let root = model.root(step);
                let expected = model.take(step);
                accepted += usize::from(expected);
                assert_eq!(world.take(step, root).await, expected, "{step:?}\n{model:#?}");
            }
            assert!(accepted >= 5);
            world.compare(&model).await;
        });
    }
}
