//! What the rest of the bridge may ask of the ledger. Every operation that changes the chain first looks at what is there, sends only what is
//! missing, and returns when the effect was seen at the configured depth; all can be repeated. It must not know DICOM, files or keys' storage.

use super::ahead::Definitions;
use super::carried::Cargo;
use super::node::{Ask, At, Backoff, Clock, Event, EventFilter, Node, NodeError, SystemClock};
use super::owner::{HeldKeys, OwnerSeed};
use super::pieces::{self, CalldataRule, Located, Piece, PieceLocation, PieceMode, Seal};
use super::sender::{Call, SendError, Sender};
use super::slots::{InFlight, Placed};
use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{SolCall, SolEvent as _, SolStruct as _};
use contracts::{Addresses, Pieces, PiecesLog, Sources, Studies, messages};
use futures::future::{join, try_join};
use futures::stream::{self, Stream, StreamExt as _};
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use thiserror::Error;
use tokio::sync::watch;

/// Why the ledger did not do or say something, sorted by who has to act.
#[derive(Debug, Clone, Error)]
pub enum LedgerError {
    /// Nobody: the node is away or the chain is not there yet. Ask again later; everything can be repeated.
    #[error("ledger unavailable: {0}")]
    Unavailable(String),
    /// The operator: a contract or the node refuses, and will again.
    #[error("ledger refused: {0}")]
    Refused(String),
    /// The consortium: this account may not write.
    #[error("account {0} is not an admitted source of this consortium and does not sign for one")]
    NotAdmitted(Address),
    /// The reader: what the ledger holds is not what was asked for.
    #[error("ledger data differs: {0}")]
    Differs(String),
}

impl From<NodeError> for LedgerError {
    fn from(e: NodeError) -> Self {
        match e {
            NodeError::Unreachable(what) | NodeError::Unavailable(what) => Self::Unavailable(what),
            NodeError::Reverted { reason, data } => Self::Refused(explain(&reason, &data)),
            NodeError::Refused(what) => Self::Refused(what),
        }
    }
}

impl From<SendError> for LedgerError {
    fn from(e: SendError) -> Self {
        match e {
            SendError::Refused(what) | SendError::Signing(what) => Self::Refused(what),
            SendError::Displaced | SendError::Interrupted | SendError::NotInFlight | SendError::SignerAway(_) => {
                Self::Unavailable(e.to_string())
            }
        }
    }
}

/// Says what a contract's refusal means, or at least names it.
pub(super) fn explain(reason: &str, data: &Bytes) -> String {
    let Some(selector) = data.first_chunk::<4>().copied() else { return reason.to_owned() };
    if let Some(words) = super::refusal::words(data) {
        return words;
    }
    let name = Pieces::PiecesErrors::name_by_selector(selector)
        .or_else(|| Studies::StudiesErrors::name_by_selector(selector))
        .or_else(|| Sources::SourcesErrors::name_by_selector(selector));
    name.map_or_else(|| reason.to_owned(), |name| format!("{name} {}", alloy::primitives::hex::encode(&data[4..])))
}

/// Who owns a study.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StudyOwner {
    /// A key of the site's owner seed, by index ([`OwnerSeed::key`]).
    Custodial {
        /// Index in the derivation path.
        index: u32,
    },
    /// A key in this site's custody that follows from no seed, such as a research key.
    Held {
        /// Its account.
        owner: Address,
    },
    /// A key elsewhere, which has signed `DefineStudy` for this source.
    Signed {
        /// The owner's account.
        owner: Address,
        /// Last second at which the signature is good, since 1970.
        deadline: u64,
        /// The EIP-712 signature.
        signature: Bytes,
    },
}

/// A manifest announced for a study.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Amendment {
    /// Study id on chain.
    pub study: B256,
    /// Manifest version, from 1, rising.
    pub version: u32,
    /// Image id of the manifest.
    pub image: B256,
    /// Its Merkle root.
    pub root: B256,
}

impl Amendment {
    /// The call that announces it.
    pub(super) fn call(&self) -> Bytes {
        let Self { study, version, image, root } = *self;
        let amend = Studies::amendCall { studyId: study, version, manifestImage: image, manifestRoot: root };
        amend.abi_encode().into()
    }
}

/// A study as the chain knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StudyOnChain {
    /// The owner's account.
    pub owner: Address,
    /// The source's account.
    pub source: Address,
    /// Newest manifest version; 0 before the first.
    pub version: u32,
    /// Whether the owner has it marked as gone.
    pub tombstoned: bool,
    /// Image id of the newest manifest.
    pub manifest_image: B256,
    /// Merkle root of the newest manifest.
    pub manifest_root: B256,
}

/// An image as the chain knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImageOnChain {
    /// Pieces stored so far.
    pub stored: u32,
    /// Bytes stored so far.
    pub bytes: u64,
    /// Pieces already folded into the root; only images above 4,096 pieces are folded.
    pub folded: u32,
    /// Number of pieces and Merkle root, once it is sealed.
    pub sealed: Option<(u32, B256)>,
}

/// What kind of ledger this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerKind {
    /// The single-node ledger inside the daemon.
    Embedded,
    /// A node of a network, over its JSON-RPC interface.
    Network,
}

/// The ledger's health.
#[derive(Debug, Clone, PartialEq)]
pub struct LedgerStatus {
    /// Embedded or network.
    pub kind: LedgerKind,
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The account that signs.
    pub account: Address,
    /// Height of the newest block followed; none before the first contact.
    pub head: Option<u64>,
    /// Seconds since the newest block; a network that makes no blocks for five periods stands still.
    pub head_age_s: Option<u64>,
    /// Balance in wei; none when the node does not answer.
    pub funds_wei: Option<U256>,
    /// Transactions that are not final.
    pub pending: usize,
    /// Why nothing moves, if so.
    pub trouble: Option<String>,
    /// The endpoint in use.
    pub endpoint: Option<String>,
}

/// Fixed facts of a client.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Embedded or network.
    pub kind: LedgerKind,
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The account that signs.
    pub account: Address,
    /// Its public key, x ‖ y.
    pub public_key: [u8; 64],
    /// The consortium's contracts.
    pub addresses: Addresses,
    /// Where the bytes of new pieces go.
    pub mode: PieceMode,
    /// Bytes of pieces in one transaction at most, their overhead included; at most [`pieces::payload_bytes_max`].
    pub payload_bytes_max: usize,
    /// Final means: this many blocks from the tip, the block itself included.
    pub depth: u64,
    /// Wait between looks at something that is on chain but not deep enough.
    pub poll_ms: u64,
    /// Requests in flight when pieces are read.
    pub read_parallel: usize,
    /// Where custodial owner keys come from.
    pub owner_seed: Option<OwnerSeed>,
    /// Further owner keys in custody.
    pub held_keys: HeldKeys,
    /// The key of the source that the account acts for, where it is another: it signs what an operator may not say.
    pub identity: Option<PrivateKeySigner>,
}

/// A client of one chain for one source. Clones share everything.
pub struct Client<N, K = SystemClock> {
    pub(super) inner: Arc<Inner<N, K>>,
}

pub(super) struct Inner<N, K> {
    pub(super) node: N,
    pub(super) clock: K,
    pub(super) sender: Sender,
    pub(super) config: ClientConfig,
    source: OnceLock<Address>,
    /// What calldata costs on this chain, as far as a node has said, and when that was, in milliseconds.
    calldata: Mutex<Option<(CalldataRule, u64)>>,
    /// Definitions that were sent at once with what counts on them.
    pub(super) definitions: watch::Sender<Definitions>,
    /// What is on its way, as far as it was read.
    pub(super) cargo: Mutex<Cargo>,
}

impl<N, K> Clone for Client<N, K> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<N, K> std::fmt::Debug for Client<N, K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("account", &self.inner.config.account).finish_non_exhaustive()
    }
}

/// How long it is remembered what calldata costs.
const RULE_MS_MAX: u64 = 60_000;
/// How often a refusal is believed only after another look at the chain: it may come from a state that has passed.
const REFUSALS_MAX: u32 = 5;
/// Looks for a piece that is there but not deep enough, one poll apart, before the caller is told to come back.
const LOCATE_TRIES: u32 = 20;
/// How long a signature is good that a custodial owner or a source's identity gives here.
pub(super) const CONSENT_S: u64 = 24 * 3600;

/// Last second of a custodial owner's word on a definition: the same all day, so that whoever starts again makes the same call, which is then
/// known to be on its way already.
fn definition_deadline(now_s: u64) -> u64 {
    (now_s / CONSENT_S + 2) * CONSENT_S
}
/// Blocks per question when a node limits the range (Besu's default).
const EVENT_BLOCKS_MAX: u64 = 5_000;

impl<N: Node, K: Clock> Client<N, K> {
    /// A client over a node and the sender of its key.
    pub fn new(node: N, clock: K, sender: Sender, config: ClientConfig) -> Self {
        let (source, calldata, definitions) = (OnceLock::new(), Mutex::default(), watch::Sender::default());
        let cargo = Mutex::default();
        Self { inner: Arc::new(Inner { node, clock, sender, config, source, calldata, definitions, cargo }) }
    }

    /// Where new pieces go.
    pub fn mode(&self) -> PieceMode {
        self.inner.config.mode
    }

    /// Bytes of pieces in one transaction at most, their overhead included.
    pub fn payload_bytes_max(&self) -> usize {
        self.inner.config.payload_bytes_max.min(pieces::payload_bytes_max(self.mode()))
    }

    /// The account that signs.
    pub fn account(&self) -> Address {
        self.inner.config.account
    }

    /// The consortium's contracts.
    pub fn addresses(&self) -> &Addresses {
        &self.inner.config.addresses
    }

    /// Transactions of this site that it sends until they are final.
    pub fn in_flight(&self) -> &InFlight {
        self.inner.sender.in_flight()
    }

    /// The node, for questions that have no operation here.
    pub fn node(&self) -> &N {
        &self.inner.node
    }

    // ---- sources and studies -------------------------------------------------------------------------------------------

    /// Makes sure that the account may write: as an operator of a defined source, or as a source that defines itself now with
    /// this endpoint. On a ledger whose admin is this account it admits itself. A source that is defined is moved to this endpoint,
    /// where its own key is here to say so. Returns the source's account.
    pub async fn ensure_source_defined(&self, endpoint: &str) -> Result<Address, LedgerError> {
        let me = self.account();
        let known = self.ask_sources(Sources::getSourceCall { source: me }, self.deep().await?).await?;
        if known.defined && known.endpoint != endpoint {
            self.change_endpoint(endpoint).await?;
        }
        if !known.defined {
            match self.acts_for(self.deep().await?).await? {
                None => self.define_source(endpoint, known.admitted).await?,
                Some(source) if self.identity_of(source).is_some() => drop(self.move_endpoint(endpoint).await?),
                Some(_) => {}
            }
        }
        self.source().await
    }

    /// The key of `source` itself, where this account is another and the key is here.
    pub(super) fn identity_of(&self, source: Address) -> Option<&PrivateKeySigner> {
        self.inner.config.identity.as_ref().filter(|key| key.address() == source && source != self.account())
    }

    async fn define_source(&self, endpoint: &str, admitted: bool) -> Result<(), LedgerError> {
        let me = self.account();
        if !admitted {
            if self.ask_sources(Sources::adminCall {}, At::Latest).await? != me {
                return Err(LedgerError::NotAdmitted(me));
            }
            let admit = Sources::admitCall { source: me }.abi_encode();
            let look = |at| async move {
                let known = self.ask_sources(Sources::getSourceCall { source: me }, at).await?;
                Ok(known.admitted.then_some(()))
            };
            self.ensure(self.addresses().sources, admit.into(), look).await?;
        }
        let public_key = Bytes::copy_from_slice(&self.inner.config.public_key);
        let define = Sources::defineSourceCall { publicKey: public_key, endpoint: endpoint.to_owned() }.abi_encode();
        let look = |at| async move { Ok(self.acts_for(at).await?.map(|_| ())) };
        self.ensure(self.addresses().sources, define.into(), look).await
    }

    async fn change_endpoint(&self, endpoint: &str) -> Result<(), LedgerError> {
        let me = self.account();
        let change = Sources::changeEndpointCall { endpoint: endpoint.to_owned() }.abi_encode();
        let look = |at| async move {
            let known = self.ask_sources(Sources::getSourceCall { source: me }, at).await?;
            Ok((known.endpoint == endpoint).then_some(()))
        };
        self.ensure(self.addresses().sources, change.into(), look).await
    }

    async fn acts_for(&self, at: At) -> Result<Option<Address>, LedgerError> {
        let source = self.ask_sources(Sources::sourceOfCall { operator: self.account() }, at).await?;
        Ok(Some(source).filter(|s| *s != Address::ZERO))
    }

    pub(super) fn sender(&self) -> &Sender {
        &self.inner.sender
    }

    /// The source for which the account acts.
    pub async fn source(&self) -> Result<Address, LedgerError> {
        if let Some(source) = self.inner.source.get() {
            return Ok(*source);
        }
        let source = self.acts_for(self.deep().await?).await?.ok_or(LedgerError::NotAdmitted(self.account()))?;
        Ok(*self.inner.source.get_or_init(|| source))
    }

    /// The same, as far as the ledger has said it already.
    #[must_use]
    pub fn known_source(&self) -> Option<Address> {
        self.inner.source.get().copied()
    }

    /// A study as seen at the configured depth; none if it is not defined there.
    pub async fn study(&self, study: B256) -> Result<Option<StudyOnChain>, LedgerError> {
        self.study_at(study, self.deep().await?).await
    }

    pub(super) async fn study_at(&self, study: B256, at: At) -> Result<Option<StudyOnChain>, LedgerError> {
        let s = self.ask(self.addresses().studies, Studies::getStudyCall { studyId: study }, at).await?;
        let (owner, source, _seq, version, tombstoned, manifest_image, manifest_root) = s.into();
        let known = StudyOnChain { owner, source, version, tombstoned, manifest_image, manifest_root };
        Ok(Some(known).filter(|k| k.owner != Address::ZERO))
    }

    /// Whether a study is defined, at the configured depth.
    pub async fn study_exists(&self, study: B256) -> Result<bool, LedgerError> {
        Ok(self.study(study).await?.is_some())
    }

    /// What an owner elsewhere must sign so that this source can define the study.
    pub async fn consent_digest(&self, study: B256, owner: Address, deadline: u64) -> Result<B256, LedgerError> {
        self.definition_digest(study, owner, false, B256::ZERO, deadline).await
    }

    async fn definition_digest(
        &self,
        study: B256,
        owner: Address,
        custodial: bool,
        derived_from: B256,
        deadline: u64,
    ) -> Result<B256, LedgerError> {
        let message = messages::DefineStudy {
            studyId: study,
            owner,
            source: self.source().await?,
            custodial,
            derivedFrom: derived_from,
            deadline,
        };
        let domain = messages::studies_domain(self.inner.config.chain_id, self.addresses().studies);
        Ok(message.eip712_signing_hash(&domain))
    }

    /// Define Study: by this source, with the owner's consent. `derived_from` commits to the study that it was made from
    /// ([`messages::lineage`]); zero where there is none, or none is to be named.
    pub async fn define_study(&self, study: B256, owner: &StudyOwner, derived_from: B256) -> Result<(), LedgerError> {
        if let Some(known) = self.study(study).await? {
            return self.check_ours(&known).await;
        }
        let (_, define) = self.definition(study, owner, derived_from).await?;
        let look = |at| async move { self.study_at(study, at).await };
        let known = self.ensure(self.addresses().studies, define, look).await?;
        self.check_ours(&known).await
    }

    /// The owner's account, and the call that defines a study with his consent.
    pub(super) async fn definition(
        &self,
        study: B256,
        owner: &StudyOwner,
        derived_from: B256,
    ) -> Result<(Address, Bytes), LedgerError> {
        let custodial = matches!(owner, StudyOwner::Custodial { .. } | StudyOwner::Held { .. });
        let (owner, deadline, signature) = self.consent(study, owner, derived_from).await?;
        let define = Studies::defineStudyCall {
            studyId: study,
            owner,
            custodial,
            derivedFrom: derived_from,
            deadline,
            ownerSignature: signature,
        };
        Ok((owner, define.abi_encode().into()))
    }

    pub(super) async fn check_ours(&self, known: &StudyOnChain) -> Result<(), LedgerError> {
        if known.source != self.source().await? {
            return Err(LedgerError::Refused(format!("the study id is taken by source {}", known.source)));
        }
        if known.tombstoned {
            return Err(LedgerError::Refused("the study's owner has marked it as gone".into()));
        }
        Ok(())
    }

    async fn consent(
        &self,
        study: B256,
        owner: &StudyOwner,
        derived_from: B256,
    ) -> Result<(Address, u64, Bytes), LedgerError> {
        let config = &self.inner.config;
        let key = match owner {
            StudyOwner::Signed { owner, deadline, signature } => return Ok((*owner, *deadline, signature.clone())),
            StudyOwner::Held { owner } => {
                let no_key = || LedgerError::Refused(format!("the owner key of {owner} is not here"));
                config.held_keys.key(*owner).ok_or_else(no_key)?
            }
            StudyOwner::Custodial { index } => {
                let no_seed = || LedgerError::Refused("no owner seed is configured".into());
                let seed = config.owner_seed.as_ref().ok_or_else(no_seed)?;
                seed.key(*index).map_err(|e| LedgerError::Refused(e.to_string()))?
            }
        };
        let deadline = definition_deadline(self.ledger_s());
        let digest = self.definition_digest(study, key.address(), true, derived_from, deadline).await?;
        let signed = alloy::signers::SignerSync::sign_hash_sync(&key, &digest);
        let signature = signed.map_err(|e| LedgerError::Refused(e.to_string()))?;
        Ok((key.address(), deadline, signature.as_bytes().to_vec().into()))
    }

    /// Announces a manifest version. A version below the newest counts as announced: versions never fall.
    pub async fn amend(&self, a: &Amendment) -> Result<(), LedgerError> {
        let Amendment { study, version, image, .. } = *a;
        let look = |at| async move {
            let known = self.study_at(study, at).await?;
            Ok(known.filter(|k| k.version >= version))
        };
        let known = self.ensure(self.addresses().studies, a.call(), look).await?;
        if known.version == version && known.manifest_image != image {
            return Err(LedgerError::Refused(format!("manifest version {version} is announced with another image")));
        }
        Ok(())
    }

    // ---- pieces: writing -----------------------------------------------------------------------------------------------

    /// An image of this source as seen at the configured depth.
    pub async fn image(&self, image: B256) -> Result<ImageOnChain, LedgerError> {
        self.image_at(image, self.deep().await?).await
    }

    pub(super) async fn image_at(&self, image: B256, at: At) -> Result<ImageOnChain, LedgerError> {
        let call = Pieces::getImageCall { source: self.source().await?, image };
        let i = self.ask(self.pieces_contract(self.mode()), call, at).await?;
        let sealed = (i.pieces != 0).then_some((i.pieces, i.root));
        Ok(ImageOnChain { stored: i.stored, bytes: i.size, folded: i.folded, sealed })
    }

    /// Stores pieces, all in one transaction, and says where they are. Pieces that are there already, or on their way, are not sent again.
    pub async fn store(&self, batch: &[Piece]) -> Result<Vec<Located>, LedgerError> {
        pieces::check_batch(self.mode(), batch)?;
        let (aboard, others) = self.part_by_carrier(batch.to_vec()).await;
        let mut missing: Vec<Piece> = Vec::new();
        let mut found: Vec<Located> = Vec::new();
        for piece in others {
            match self.hash_of(piece.image, piece.index, At::Latest).await? {
                B256::ZERO => missing.push(piece),
                stored if stored == keccak256(&piece.bytes) => found.push(self.locate(&piece).await?),
                _ => return Err(differs(piece.image, piece.index)),
            }
        }
        // Both to their ends: what is left while it waits would be on its way without anybody knowing.
        let (sent, carried) = join(self.send_pieces(&missing), self.wait_for_carriers(aboard)).await;
        found.extend(sent?);
        found.extend(carried?);
        Ok(found)
    }

    async fn send_pieces(&self, batch: &[Piece]) -> Result<Vec<Located>, LedgerError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let contract = self.pieces_contract(self.mode());
        let call = pieces::store_call(self.mode(), self.calldata_rule().await, contract, batch);
        let placed = self.inner.sender.send(call.clone()).await?;
        if !placed.succeeded {
            // Ask the node for the reason. If it would succeed now, the trouble has passed.
            let ask = Ask { from: self.account(), to: contract, data: call.data };
            self.inner.node.call(ask, At::Latest).await?;
            return Err(LedgerError::Unavailable("storing pieces reverted, but would not now".into()));
        }
        let at = |(entry, p): (u32, &Piece)| Located {
            image: p.image,
            index: p.index,
            location: PieceLocation { block: placed.block_number, transaction: placed.index, entry },
        };
        Ok((0..).zip(batch).map(at).collect())
    }

    /// What calldata costs. Without an answer it is taken for dear, and asked again; as it is after a while, since nodes are replaced by newer ones.
    pub async fn calldata_rule(&self) -> CalldataRule {
        let (me, now) = (self.account(), self.inner.clock.now_ms());
        let known = || self.inner.calldata.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((rule, _)) = known().filter(|(_, asked_ms)| now < asked_ms + RULE_MS_MAX) {
            return rule;
        }
        let question = Ask { from: me, to: me, data: CalldataRule::question() };
        let node = &self.inner.node;
        match try_join(node.estimate(question), node.version()).await {
            Ok((gas, program)) => known().insert((CalldataRule::of(gas, &program), now)).0,
            Err(_) => CalldataRule::Prague,
        }
    }

    /// Finds a piece that some earlier transaction stored, once it is deep enough.
    pub(super) async fn locate(&self, piece: &Piece) -> Result<Located, LedgerError> {
        for _ in 0..LOCATE_TRIES {
            let found = self.find_piece(piece.image, Some(piece.index)).await?;
            if let Some(located) = found.into_iter().next() {
                return Ok(located);
            }
            if self.hash_of(piece.image, piece.index, At::Latest).await? == B256::ZERO {
                return Err(LedgerError::Unavailable("a piece left the chain again".into()));
            }
            self.inner.clock.sleep_ms(self.inner.config.poll_ms).await;
        }
        Err(LedgerError::Unavailable("a stored piece is not deep enough yet".into()))
    }

    pub(super) async fn hash_of(&self, image: B256, index: u32, at: At) -> Result<B256, LedgerError> {
        let source = self.source().await?;
        self.ask(self.pieces_contract(self.mode()), Pieces::pieceHashOfCall { source, image, index }, at).await
    }

    /// Ends images, all in one transaction; those that are sealed already are left out.
    pub async fn seal(&self, seals: &[Seal]) -> Result<(), LedgerError> {
        let mut open = Vec::new();
        for seal in seals {
            let known = self.image(seal.image).await?;
            if !is_sealed(&known, seal)? {
                self.fold(seal, known.folded).await?;
                open.push(*seal);
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        let open = &open;
        let look = |at| async move {
            for seal in open {
                if !is_sealed(&self.image_at(seal.image, at).await?, seal)? {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        };
        self.ensure(self.pieces_contract(self.mode()), pieces::seal_call(open), look).await
    }

    /// An image of more than 4,096 pieces is hashed in several transactions.
    async fn fold(&self, seal: &Seal, folded: u32) -> Result<(), LedgerError> {
        let image = seal.image;
        for step in folded / contracts::merkle::CHUNK_PIECES..contracts::merkle::folds_needed(seal.pieces) {
            let wanted = (step + 1) * contracts::merkle::CHUNK_PIECES;
            let look = |at| async move { Ok((self.image_at(image, at).await?.folded >= wanted).then_some(())) };
            let fold = Pieces::foldCall { image }.abi_encode();
            self.ensure(self.pieces_contract(self.mode()), fold.into(), look).await?;
        }
        Ok(())
    }

    // ---- pieces: reading -----------------------------------------------------------------------------------------------

    /// Finds the pieces of an image of this source by their events: the way back for a rebuilt index.
    pub async fn find_pieces(&self, image: B256) -> Result<Vec<Located>, LedgerError> {
        self.find_piece(image, None).await
    }

    async fn find_piece(&self, image: B256, index: Option<u32>) -> Result<Vec<Located>, LedgerError> {
        self.find_up_to(self.deep().await?, self.source().await?, self.mode(), image, index).await
    }

    /// Finds pieces of an image of any source, in any mode, as far as the newest block: for whoever proves what is read there.
    pub async fn find_pieces_of(
        &self,
        source: Address,
        mode: PieceMode,
        image: B256,
    ) -> Result<Vec<Located>, LedgerError> {
        self.find_up_to(At::Latest, source, mode, image, None).await
    }

    async fn find_up_to(
        &self,
        newest: At,
        source: Address,
        mode: PieceMode,
        image: B256,
        index: Option<u32>,
    ) -> Result<Vec<Located>, LedgerError> {
        let contract = self.pieces_contract(mode);
        let mut topics = vec![Pieces::PieceStored::SIGNATURE_HASH, source.into_word(), image];
        topics.extend(index.map(|i| B256::from(U256::from(i))));
        let to = match newest {
            At::Block(number) => number,
            At::Latest => self.inner.node.head().await?.number,
        };
        let events = self.events(EventFilter { contract, from: 0, to, topics }).await?;
        let mut batches: HashMap<(u64, u64), HashMap<u32, u32>> = HashMap::new();
        let mut found = Vec::with_capacity(events.len());
        for event in &events {
            let place = (event.block_number, event.transaction_index);
            let Some(index) = event.topics.get(3).and_then(|t| u32::try_from(U256::from_be_bytes(t.0)).ok()) else {
                continue;
            };
            if let std::collections::hash_map::Entry::Vacant(unread) = batches.entry(place) {
                unread.insert(self.entries(place, contract, image).await?);
            }
            let entry = batches.get(&place).and_then(|b| b.get(&index)).copied();
            let Some(entry) = entry else { continue };
            let location = PieceLocation { block: place.0, transaction: place.1, entry };
            found.push(Located { image, index, location });
        }
        let mut once = HashSet::new();
        found.retain(|l| once.insert(l.index));
        found.sort_by_key(|l| l.index);
        Ok(found)
    }

    /// Which entry of a transaction carries which piece of an image.
    async fn entries(
        &self,
        place: (u64, u64),
        contract: Address,
        image: B256,
    ) -> Result<HashMap<u32, u32>, LedgerError> {
        let transaction = self.inner.node.transaction_at(place.0, place.1).await?;
        let transaction = transaction.ok_or_else(|| LedgerError::Unavailable("a transaction is not there".into()))?;
        let entries = (0_u32..).zip(pieces::pieces_in(&transaction, contract));
        Ok(entries.filter(|(_, p)| p.image == image).map(|(entry, p)| (p.index, entry)).collect())
    }

    /// All events of a filter; in parts when the node limits the range.
    async fn events(&self, filter: EventFilter) -> Result<Vec<Event>, LedgerError> {
        match self.inner.node.events(filter.clone()).await {
            // The words for "too many blocks" differ by node; if it was something else, the parts fail too.
            Err(_) if filter.to.saturating_sub(filter.from) >= EVENT_BLOCKS_MAX => {}
            other => return Ok(other?),
        }
        let mut all = Vec::new();
        let mut from = filter.from;
        while from <= filter.to {
            let to = filter.to.min(from + EVENT_BLOCKS_MAX - 1);
            all.extend(self.inner.node.events(EventFilter { from, to, ..filter.clone() }).await?);
            from = to + 1;
        }
        Ok(all)
    }

    /// Loads one piece and checks its bytes against the hash on chain. A location that has become wrong is looked up again.
    pub async fn load_piece(&self, source: Address, mode: PieceMode, wanted: &Located) -> Result<Bytes, LedgerError> {
        let Located { image, index, .. } = *wanted;
        let contract = self.pieces_contract(mode);
        let recorded = self.ask(contract, Pieces::pieceHashOfCall { source, image, index }, At::Latest).await?;
        if recorded == B256::ZERO {
            return Err(LedgerError::Differs(format!("piece {index} of image {image} is not on the ledger")));
        }
        let matches = |bytes: &Bytes| keccak256(bytes) == recorded;
        if let Some(bytes) = self.fetch(source, mode, wanted).await?.filter(matches) {
            return Ok(bytes);
        }
        for found in self.find_up_to(At::Latest, source, mode, image, Some(index)).await? {
            if let Some(bytes) = self.fetch(source, mode, &found).await?.filter(matches) {
                return Ok(bytes);
            }
        }
        Err(differs(image, index))
    }

    /// Loads pieces with a bounded number of requests in flight, in the order given.
    pub fn load_pieces(
        &self,
        source: Address,
        mode: PieceMode,
        wanted: Vec<Located>,
    ) -> impl Stream<Item = Result<(Located, Bytes), LedgerError>> + Send + use<N, K> {
        let client = self.clone();
        let load = move |w: Located| {
            let client = client.clone();
            async move { Ok((w, client.load_piece(source, mode, &w).await?)) }
        };
        stream::iter(wanted).map(load).buffered(self.inner.config.read_parallel.max(1))
    }

    /// As [`load_pieces`](Self::load_pieces), but the bytes are not compared with the hashes on chain: for a caller who proves
    /// them all against the image's root anyway, and who comes back for the slower way when they do not add up.
    pub fn load_pieces_unproven(
        &self,
        source: Address,
        mode: PieceMode,
        wanted: Vec<Located>,
    ) -> impl Stream<Item = Result<(Located, Bytes), LedgerError>> + Send + use<N, K> {
        let client = self.clone();
        let load = move |w: Located| {
            let client = client.clone();
            async move {
                let found = client.fetch(source, mode, &w).await?;
                Ok((w, found.ok_or_else(|| differs(w.image, w.index))?))
            }
        };
        stream::iter(wanted).map(load).buffered(self.inner.config.read_parallel.max(1))
    }

    async fn fetch(&self, source: Address, mode: PieceMode, wanted: &Located) -> Result<Option<Bytes>, LedgerError> {
        let contract = self.pieces_contract(mode);
        let Located { image, index, location } = *wanted;
        match mode {
            PieceMode::Calldata => {
                let found = self.inner.node.transaction_at(location.block, location.transaction).await?;
                Ok(found.and_then(|t| pieces::piece_at(&t, contract, wanted)))
            }
            PieceMode::Log => {
                let topics = vec![
                    PiecesLog::PieceBytes::SIGNATURE_HASH,
                    source.into_word(),
                    image,
                    B256::from(U256::from(index)),
                ];
                let (from, to) = (location.block, location.block);
                let events = self.inner.node.events(EventFilter { contract, from, to, topics }).await?;
                let data = events.into_iter().map(|e| PiecesLog::PieceBytes::abi_decode_data(&e.data));
                Ok(data.filter_map(Result::ok).map(|(bytes,)| bytes).next())
            }
            PieceMode::Code | PieceMode::Storage => {
                let call = Pieces::loadPieceCall { source, image, index };
                Ok(Some(self.ask(contract, call, At::Latest).await?))
            }
        }
    }

    // ---- health --------------------------------------------------------------------------------------------------------

    /// The ledger's health. Never waits for a node that does not answer longer than its transport does.
    pub async fn status(&self) -> LedgerStatus {
        let sender = self.inner.sender.status().borrow().clone();
        let config = &self.inner.config;
        let age = |_| self.inner.clock.unix_s().saturating_sub(sender.tip_unix_s);
        LedgerStatus {
            kind: config.kind,
            chain_id: config.chain_id,
            account: config.account,
            head: sender.tip,
            head_age_s: sender.tip.map(age),
            funds_wei: self.inner.node.balance(config.account).await.ok(),
            pending: sender.pending,
            trouble: sender.trouble,
            endpoint: self.inner.node.endpoint(),
        }
    }

    // ---- below: how it is done -----------------------------------------------------------------------------------------

    pub(super) fn pieces_contract(&self, mode: PieceMode) -> Address {
        self.inner.config.addresses.pieces(mode)
    }

    /// Height of the newest block that counts as final.
    pub async fn final_height(&self) -> Result<u64, LedgerError> {
        let depth = self.inner.config.depth.max(1);
        Ok(self.inner.node.head().await?.number.saturating_sub(depth - 1))
    }

    /// The newest state that counts as final.
    pub(super) async fn deep(&self) -> Result<At, LedgerError> {
        match self.inner.config.depth {
            0 | 1 => Ok(At::Latest),
            depth => Ok(At::Block(self.inner.node.head().await?.number.saturating_sub(depth - 1))),
        }
    }

    /// Sends wei and waits until that is final.
    pub(super) async fn send_wei(&self, to: Address, value: U256) -> Result<Placed, LedgerError> {
        let call = Call { to, data: Bytes::new(), gas: 21_000, value };
        Ok(self.inner.sender.send(call).await?)
    }

    /// Fixed facts.
    pub(super) fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    /// Seconds since 1970 from which deadlines are counted: the contracts judge them by the time of blocks, so a clock here that is behind that
    /// does not count. One that is ahead only makes them later.
    pub fn ledger_s(&self) -> u64 {
        self.unix_s().max(self.inner.sender.status().borrow().tip_unix_s)
    }

    /// Seconds since 1970.
    pub(super) fn unix_s(&self) -> u64 {
        self.inner.clock.unix_s()
    }

    pub(super) async fn ask<C: SolCall>(&self, to: Address, call: C, at: At) -> Result<C::Return, LedgerError> {
        let ask = Ask { from: self.account(), to, data: call.abi_encode().into() };
        let answer = self.inner.node.call(ask, at).await?;
        C::abi_decode_returns(&answer).map_err(|e| LedgerError::Unavailable(format!("unreadable answer: {e}")))
    }

    pub(super) async fn ask_sources<C: SolCall>(&self, call: C, at: At) -> Result<C::Return, LedgerError> {
        self.ask(self.addresses().sources, call, at).await
    }

    /// Makes the chain hold something. Looks, sends what is missing, and looks again until the effect is deep enough.
    pub(super) async fn ensure<T, L, F>(&self, to: Address, data: Bytes, look: L) -> Result<T, LedgerError>
    where
        L: Fn(At) -> F + Send + Sync,
        F: Future<Output = Result<Option<T>, LedgerError>> + Send,
    {
        let mut refusals = 0;
        let mut backoff = Backoff::new(self.inner.config.poll_ms.max(1), 2_000);
        loop {
            let deep = self.deep().await?;
            if let Some(seen) = look(deep).await? {
                return Ok(seen);
            }
            let on_its_way = deep != At::Latest && look(At::Latest).await?.is_some();
            if !on_its_way {
                if let Err(reason) = self.send_once(to, data.clone()).await? {
                    refusals += 1;
                    if refusals >= REFUSALS_MAX {
                        return Err(LedgerError::Refused(reason));
                    }
                } else if look(self.deep().await?).await?.is_some() {
                    continue;
                }
            }
            let wait = backoff.next_ms(&self.inner.clock);
            self.inner.clock.sleep_ms(wait).await;
        }
    }

    /// Sends a call once and waits until it is final. The inner error is a revert with its reason.
    pub(super) async fn send_once(&self, to: Address, data: Bytes) -> Result<Result<Placed, String>, LedgerError> {
        let ask = Ask { from: self.account(), to, data: data.clone() };
        let gas = match self.inner.node.estimate(ask.clone()).await {
            Ok(gas) => gas.saturating_add(gas / 4),
            Err(NodeError::Reverted { reason, data }) => return Ok(Err(explain(&reason, &data))),
            Err(other) => return Err(other.into()),
        };
        let placed = self.inner.sender.send(Call { to, data, gas, value: U256::ZERO }).await?;
        if placed.succeeded {
            return Ok(Ok(placed));
        }
        match self.inner.node.call(ask, At::Latest).await {
            Err(NodeError::Reverted { reason, data }) => Ok(Err(explain(&reason, &data))),
            // The trouble has passed, so this is no refusal: the caller looks and sends again.
            _ => Err(LedgerError::Unavailable("a transaction reverted, but would not now".into())),
        }
    }

    /// Sends a call whose effect the caller checks itself, and waits until it is final.
    pub(super) async fn send_plain(&self, to: Address, data: Bytes) -> Result<(), LedgerError> {
        self.send_once(to, data).await?.map(drop).map_err(LedgerError::Refused)
    }
}

pub(super) fn differs(image: B256, index: u32) -> LedgerError {
    LedgerError::Differs(format!("piece {index} of image {image} has other bytes on the ledger"))
}

pub(super) fn is_sealed(known: &ImageOnChain, seal: &Seal) -> Result<bool, LedgerError> {
    match known.sealed {
        None => Ok(false),
        Some(sealed) if sealed == (seal.pieces, seal.root) => Ok(true),
        Some(_) => Err(LedgerError::Refused(format!("image {} is sealed with another root", seal.image))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_is_the_same_call_all_day_and_good_for_a_day_or_more() {
        let midnight = 20_000 * CONSENT_S;
        let deadlines = [midnight, midnight + 1, midnight + CONSENT_S - 1].map(definition_deadline);
        assert_eq!(deadlines, [midnight + 2 * CONSENT_S; 3]);
        assert_eq!(definition_deadline(midnight - 1), midnight + CONSENT_S);
    }
}
