//! Sites on one ledger of any kind, and the consortium's administrator.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use alloy::network::{EthereumWallet, TransactionBuilder as _};
use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::providers::{DynProvider, Provider as _, ProviderBuilder};
use alloy::rpc::types::TransactionRequest;
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{SolCall as _, SolStruct as _};
use bridge::config::Config;
use bridge::demo::phantom::Phantom;
use bridge::keyring::Keyring;
use contracts::messages::{Allow, Revoke, consent_domain};
use contracts::{Allowance, Consent, Sources};
use dicom_scp::dataset::{Encoding, ReadOptions, read};
use dicom_scp::matching::Level;
use dicom_scp::scu::{Association, Proposal, ScuOptions};
use dicom_scp::{AeTitle, DataSet, Tag, VR, sop_class};
use tokio::runtime::Runtime;

use crate::anvil::{ANVIL_CHAIN_ID, ANVIL_KEY, Anvil};
use crate::dicom::{slices, subject};
use crate::geth::{GETH_CHAIN_ID, Geth};
use crate::vault::Vault;
use crate::{Bridge, files_below, wait_for};

/// Everybody may do everything over DICOM.
pub const OPEN: &str = "[dicom]\nunknown_peers = [\"echo\", \"store\", \"find\", \"move\", \"get\"]\n";
/// Of the embedded ledger.
pub const CHAIN_ID: u64 = 20181;

/// The secrets of a site, as its daemon made them.
pub fn keyring(site: &Bridge) -> Keyring {
    Keyring::open(site.data(), &Config::parse("", Default::default()).unwrap().keys).unwrap()
}

pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Which nodes keep the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nodes {
    /// One, inside a bridge.
    Embedded,
    /// anvil.
    Anvil,
    /// So many of geth with Clique, a site each.
    Geth(usize),
    /// The same, and what is between them can be cut.
    WiredGeth(usize),
    /// The same as `Geth`, and gas has a price.
    DearGeth(usize),
}

/// What blocks of a network take.
const BLOCK_GAS: u64 = 40_000_000;
/// What a site's account gets, in wei.
pub const FUNDS_WEI: u128 = 100_000_000_000_000_000_000;
/// What a unit of gas costs in the first block of [`Nodes::DearGeth`], in wei.
const DEAR_WEI: u64 = 100_000_000_000;

/// What keeps the ledger; ended with the value.
enum Ledger {
    Embedded(Box<Bridge>),
    Anvil(Anvil),
    Geth(Box<Geth>),
}

impl Ledger {
    /// Where a site asks its node: on networks, sites use all ways there are.
    fn way(&self, site: usize) -> String {
        match self {
            Self::Geth(geth) => match (site % 3, site % geth.network.nodes.len()) {
                (0, node) => geth.ws_url(node),
                (1, node) => geth.socket_url(node),
                _ => self.url(site),
            },
            Self::Anvil(anvil) if site == 0 => anvil.url.replace("http://", "ws://"),
            _ => self.url(site),
        }
    }

    /// Where the node of a site answers over HTTP.
    fn url(&self, site: usize) -> String {
        match self {
            Self::Embedded(bridge) => format!("http://{}", bridge.ready("rpc=")),
            Self::Anvil(anvil) => anvil.url.clone(),
            Self::Geth(geth) => geth.url(site % geth.network.nodes.len()).to_owned(),
        }
    }

    /// For a site's `[ledger]`, besides the URL.
    fn lines(&self) -> String {
        match self {
            Self::Embedded(_) => "deploy = false\n".to_owned(),
            Self::Anvil(_) => format!("chain_id = {ANVIL_CHAIN_ID}\n"),
            Self::Geth(geth) => {
                format!("chain_id = {GETH_CHAIN_ID}\nconfirmations = {}\n", geth.network.confirmations)
            }
        }
    }
}

/// Sites on one ledger, and the key of the consortium's administrator, who also relays what owners sign.
pub struct Consortium {
    ledger: Ledger,
    joined: AtomicUsize,
    pub admin: Address,
    chain_id: u64,
    provider: DynProvider,
    pub runtime: Runtime,
}

impl Consortium {
    /// On a ledger inside a bridge that does nothing else.
    pub fn found() -> Self {
        Self::found_on(Nodes::Embedded).unwrap()
    }

    /// None if the nodes' program is missing.
    pub fn found_on(nodes: Nodes) -> Option<Self> {
        let (key, chain_id, ledger) = match nodes {
            Nodes::Embedded => {
                let site = Bridge::start("[ledger]\nrpc_bind = \"127.0.0.1:0\"\n[publish]\nenabled = false\n");
                (keyring(&site).source().clone(), CHAIN_ID, Ledger::Embedded(Box::new(site)))
            }
            Nodes::Anvil => (ANVIL_KEY.parse().unwrap(), ANVIL_CHAIN_ID, Ledger::Anvil(Anvil::start_at(now_s())?)),
            Nodes::Geth(signers) | Nodes::WiredGeth(signers) | Nodes::DearGeth(signers) => {
                let key = PrivateKeySigner::random();
                let geth = match nodes {
                    Nodes::WiredGeth(_) => Geth::start_wired(signers, key.address())?,
                    Nodes::DearGeth(_) => Geth::start_dear(signers, key.address(), DEAR_WEI)?,
                    _ => Geth::start(signers, key.address())?,
                };
                (key, GETH_CHAIN_ID, Ledger::Geth(Box::new(geth)))
            }
        };
        let admin = key.address();
        let runtime = Runtime::new().unwrap();
        let wallet = ProviderBuilder::new().wallet(EthereumWallet::from(key));
        let provider = wallet.connect_http(ledger.url(0).parse().unwrap()).erased();
        Some(Self { ledger, joined: AtomicUsize::new(0), admin, chain_id, provider, runtime })
    }

    /// The nodes, where they are geth's.
    pub fn geth(&mut self) -> Option<&mut Geth> {
        match &mut self.ledger {
            Ledger::Geth(geth) => Some(geth),
            Ledger::Embedded(_) | Ledger::Anvil(_) => None,
        }
    }

    pub fn join(&self, exchange: bool) -> Bridge {
        self.join_with(if exchange { "[exchange]\nbind = \"127.0.0.1:0\"\n" } else { "" })
    }

    pub fn join_with(&self, exchange: &str) -> Bridge {
        let bridge = self.start(exchange, "");
        self.let_in(&bridge, keyring(&bridge).source().address());
        bridge
    }

    /// A site whose account's key is in a remote signer.
    pub fn join_signed_for(&self, vault: &Vault, exchange: &str) -> Bridge {
        let bridge = self.start(exchange, &vault.lines());
        self.let_in(&bridge, vault.account);
        bridge
    }

    /// Admits a site's account, and waits until the site has found that.
    fn let_in(&self, bridge: &Bridge, account: Address) {
        self.admit(account);
        bridge.wait_on_ledger();
    }

    /// A site whose account has no funds and is not admitted.
    pub fn start(&self, exchange: &str, signer: &str) -> Bridge {
        let url = self.ledger.way(self.joined.fetch_add(1, Ordering::Relaxed));
        self.start_at(&url, exchange, signer)
    }

    /// The same with a node elsewhere.
    pub fn start_at(&self, url: &str, exchange: &str, signer: &str) -> Bridge {
        let ledger = self.ledger_lines(url);
        Bridge::start(&format!("{OPEN}{ledger}{signer}[publish]\nsettle_ms = 200\n{exchange}"))
    }

    /// Where a node answers.
    pub fn url(&self, site: usize) -> String {
        self.ledger.url(site)
    }

    /// `[ledger]` of a site whose node is at `url`.
    pub fn ledger_lines(&self, url: &str) -> String {
        format!("[ledger]\nkind = \"rpc\"\nurl = \"{url}\"\nadmin = \"{}\"\n{}", self.admin, self.ledger.lines())
    }

    /// Funds an account and admits it as a source.
    pub fn admit(&self, account: Address) {
        self.admit_with(account, FUNDS_WEI);
    }

    /// Sends an account funds.
    pub fn pay(&self, account: Address, wei: u128) {
        self.send(account, Bytes::new(), U256::from(wei));
    }

    /// Funds an account with so much and admits it.
    pub fn admit_with(&self, account: Address, wei: u128) {
        self.pay(account, wei);
        let contracts = contracts::deployment::addresses(self.admin);
        wait_for("the first bridge to deploy the contracts", || {
            let code = self.runtime.block_on(async { self.provider.get_code_at(contracts.sources).await });
            code.is_ok_and(|code| !code.is_empty())
        });
        self.send(contracts.sources, Sources::admitCall { source: account }.abi_encode().into(), U256::ZERO);
    }

    /// Puts a contract where the first block of a network would have it. For anvil, which lets that be done later.
    pub fn hold(&self, contract: Address, code: &Bytes, slots: &BTreeMap<B256, B256>) {
        self.runtime.block_on(async {
            let set: serde_json::Value =
                self.provider.raw_request("anvil_setCode".into(), (contract, code)).await.unwrap();
            assert!(set.is_null(), "{set}");
            for (slot, value) in slots {
                let held: bool =
                    self.provider.raw_request("anvil_setStorageAt".into(), (contract, slot, value)).await.unwrap();
                assert!(held);
            }
        });
    }

    /// Sends a transaction that burns all gas of a block, with a tip above what sites offer, and does not wait for it.
    pub fn fill_a_block(&self) {
        const INVALID: u8 = 0xfe;
        let request = TransactionRequest::default()
            .with_deploy_code(vec![INVALID])
            .with_gas_limit(BLOCK_GAS)
            .with_max_priority_fee_per_gas(1_000_000_000)
            .with_max_fee_per_gas(100_000_000_000_000);
        drop(self.runtime.block_on(async { self.provider.send_transaction(request).await.unwrap() }));
    }

    /// Transactions of the administrator that no block has.
    pub fn waiting(&self) -> u64 {
        self.runtime.block_on(async {
            let all = self.provider.get_transaction_count(self.admin).pending().await.unwrap();
            all.saturating_sub(self.provider.get_transaction_count(self.admin).await.unwrap())
        })
    }

    pub fn send(&self, to: Address, data: Bytes, value: U256) {
        let request = TransactionRequest::default().with_to(to).with_input(data).with_value(value);
        let receipt = self.runtime.block_on(async {
            let pending = self.provider.send_transaction(request).await.unwrap();
            let hash = *pending.tx_hash();
            loop {
                if let Ok(Some(receipt)) = self.provider.get_transaction_receipt(hash).await {
                    return receipt;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        });
        assert!(receipt.status(), "the ledger refused a transaction");
    }

    /// Relays what the owner of a study signs.
    pub fn allow(&self, owner: &PrivateKeySigner, study: B256, grantee: &Keyring, mode: u8, seq: u32) {
        self.allow_part(owner, study, B256::ZERO, grantee, mode, seq);
    }

    /// The same for one series of it.
    pub fn allow_part(
        &self,
        owner: &PrivateKeySigner,
        study: B256,
        series: B256,
        grantee: &Keyring,
        mode: u8,
        seq: u32,
    ) {
        let consent = contracts::deployment::addresses(self.admin).consent;
        let allowance = Allowance {
            studyId: study,
            grantee: grantee.source().address(),
            series,
            mode,
            notBefore: 0,
            notAfter: now_s() + 86_400,
            purpose: 0,
            notes: B256::ZERO,
            encryptionKey: keccak256(grantee.payload_certificate().unwrap()),
            seq,
            deadline: now_s() + 3_600,
        };
        let digest = Allow::from(&allowance).eip712_signing_hash(&consent_domain(self.chain_id, consent));
        let signature = owner.sign_hash_sync(&digest).unwrap().as_bytes().to_vec().into();
        self.send(consent, Consent::allowCall { allowance, ownerSignature: signature }.abi_encode().into(), U256::ZERO);
    }

    pub fn revoke(&self, owner: &PrivateKeySigner, study: B256, grantee: Address, seq: u32) {
        let consent = contracts::deployment::addresses(self.admin).consent;
        let message = Revoke { studyId: study, grantee, seq, deadline: now_s() + 3_600 };
        let digest = message.eip712_signing_hash(&consent_domain(self.chain_id, consent));
        let call = Consent::revokeCall {
            studyId: study,
            grantee,
            seq,
            deadline: message.deadline,
            ownerSignature: owner.sign_hash_sync(&digest).unwrap().as_bytes().to_vec().into(),
        };
        self.send(consent, call.abi_encode().into(), U256::ZERO);
    }

    /// Unique keys of what a site shows at a level.
    pub fn find(&self, site: SocketAddr, level: Level) -> BTreeSet<String> {
        self.find_below(site, level, &self.first(Level::Series))
    }

    pub fn find_below(&self, site: SocketAddr, level: Level, series: &str) -> BTreeSet<String> {
        self.runtime.block_on(async {
            let options = ScuOptions::new(AeTitle::new("FINDER").unwrap(), AeTitle::new("PACSBRIDGE").unwrap());
            let model = if level == Level::Patient { sop_class::PATIENT_ROOT_FIND } else { sop_class::STUDY_ROOT_FIND };
            let host = site.ip().to_string();
            let mut open = Association::connect(&host, site.port(), &options, &[Proposal::plain(model)]).await.unwrap();
            let mut identifier = DataSet::default();
            identifier.put_text(Tag(0x0008, 0x0052), VR::CS, level.as_str());
            let above = [Level::Study, Level::Series].into_iter().filter(|one| *one < level);
            let keys = |one| if one == Level::Series { series.to_owned() } else { self.first(one) };
            above.for_each(|one| identifier.put_text(one.unique_key(), VR::UI, &keys(one)));
            identifier.put_text(level.unique_key(), if level == Level::Patient { VR::LO } else { VR::UI }, "");
            let mut found = BTreeSet::new();
            let on_match = |answer: DataSet| {
                found.insert(answer.text(level.unique_key()).unwrap_or_default());
                ControlFlow::Continue(())
            };
            open.find(&model, &identifier, on_match).await.unwrap();
            open.release().await.unwrap();
            found
        })
    }

    /// SOP Instance UIDs of what a site shows of a series of the first study.
    pub fn images(&self, site: SocketAddr, series: &str) -> BTreeSet<String> {
        self.find_below(site, Level::Image, series)
    }

    /// The first study, or its series.
    pub fn first(&self, level: Level) -> String {
        if level == Level::Study {
            return subject(1).study_uid;
        }
        let scanned = read(&slices(1, 1, 64)[0].bytes, Encoding::ExplicitLe, &ReadOptions::default());
        scanned.unwrap().0.text(level.unique_key()).unwrap()
    }
}

pub fn store(runtime: &Runtime, site: &Bridge, study: u32) -> BTreeMap<String, Vec<u8>> {
    store_all(runtime, site, slices(study, 5, 64))
}

pub fn store_all(runtime: &Runtime, site: &Bridge, phantoms: Vec<Phantom>) -> BTreeMap<String, Vec<u8>> {
    store_from(runtime, site, "CT1", phantoms)
}

/// As an application entity of this title.
pub fn store_from(runtime: &Runtime, site: &Bridge, title: &str, phantoms: Vec<Phantom>) -> BTreeMap<String, Vec<u8>> {
    runtime.block_on(async {
        let mut open = crate::dicom::connect(site.dicom, title).await.unwrap();
        for phantom in &phantoms {
            assert_eq!(crate::dicom::store(&mut open, phantom).await, Some(dicom_scp::Status::SUCCESS));
        }
        open.release().await.unwrap();
    });
    phantoms.into_iter().map(|phantom| (phantom.sop_instance.to_string(), phantom.bytes)).collect()
}

pub fn objects_here(site: &Bridge) -> usize {
    files_below(&site.data().join("archive/objects")).len()
}
