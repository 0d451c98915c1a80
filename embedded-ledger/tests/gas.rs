//! What each action of Registry and Consent costs as a transaction, and that the bounds of PCIM's Table 1 are kept: by the first action
//! ever as well as by a repeated one. Gas is the same on every run and every node, so these are assertions and no benchmark.
#![allow(clippy::unwrap_used, non_snake_case)]

mod support;

use alloy::primitives::{Address, B256, Bytes, b256, keccak256};
use alloy::providers::{DynProvider, Provider};
use alloy::rpc::types::TransactionRequest;
use alloy::signers::SignerSync;
use alloy::sol_types::{Eip712Domain, SolCall, SolStruct};
use contracts::messages::{self, Allow, BindKey, DefineStudy, Deny, NameGuardians, RecoverStudy, Revoke};
use contracts::messages::{TombstoneStudy, TransferStudy, UnbindKey, VetoRecovery};
use contracts::{Addresses, Allowance, Consent, Emergency, KeyBindings, Sources, Studies};
use embedded_ledger::EmbeddedLedger;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use support::*;

/// Jabarulla and Lee (2021), Table 1.
const CREATE: u64 = 67_394;
const REQUEST: u64 = 246_908;
const APPROVE: u64 = 170_412;
const TRACE: u64 = 34_266;
const REMOVE: u64 = 59_358;

const NOW: u64 = 1_800_000_000;
const LATER: u64 = NOW + 100 * 86_400;
/// An OpenPGP v6 certificate with an X25519 subkey and no user id is about this long.
const KEY_BYTES: usize = 300;
/// SHA-256 of 91 octets A5, as another program computes it.
const SPKI_SHA256: B256 = b256!("f1023ec9583ed0e650702e48c3cd7241e379c12b5d42a8322f0c5993fd0b7c82");

struct World {
    provider: DynProvider,
    at: Addresses,
    clock: Arc<AtomicU64>,
    _ledger: EmbeddedLedger,
    _dir: tempfile::TempDir,
}

impl World {
    async fn used(&self, from: &mut Account, to: Address, call: impl SolCall, bound: u64, what: &str) {
        let receipt = from.send(&self.provider, to, call).await;
        assert!(receipt.status(), "{what}");
        let shown = if bound == u64::MAX { "-".to_owned() } else { bound.to_string() };
        println!("{what:<52} {:>8} {shown:>8}", receipt.gas_used);
        assert!(receipt.gas_used < bound, "{what}: {} is not below {bound}", receipt.gas_used);
    }

    fn sign(&self, signer: u8, domain: &Eip712Domain, message: &impl SolStruct) -> Bytes {
        key(signer).sign_hash_sync(&message.eip712_signing_hash(domain)).unwrap().as_bytes().to_vec().into()
    }
}

fn study(n: u8) -> B256 {
    keccak256([n])
}

fn allowance(study: B256, grantee: Address, series: B256, seq: u32) -> Allowance {
    Allowance {
        studyId: study,
        grantee,
        series,
        mode: 2,
        notBefore: NOW,
        notAfter: NOW + 86_400 * 365,
        purpose: messages::Purpose::Research.into(),
        notes: keccak256("notes"),
        encryptionKey: keccak256("key"),
        seq,
        deadline: LATER,
    }
}

#[tokio::test]
async fn every_action_costs_less_than_in_the_pcim_paper() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(AtomicU64::new(NOW));
    let mut config = config(&dir.path().join("l.redb"));
    config.clock = Some(clock.clone());
    let ledger = EmbeddedLedger::open(config).unwrap();
    let provider = provider(&ledger);
    let (mut admin, mut a, mut b) = (Account::new(ADMIN), Account::new(2), Account::new(3));
    let at = deploy(&provider, &mut admin).await;
    let world = World { provider, at, clock, _ledger: ledger, _dir: dir };
    for source in [&mut a, &mut b] {
        define_source(&world.provider, at.sources, &mut admin, source).await;
    }
    let studies_domain = messages::studies_domain(CHAIN_ID, at.studies);
    let consent_domain = messages::consent_domain(CHAIN_ID, at.consent);
    let bridge = b.address();
    println!("{:<52} {:>8} {:>8}", "action", "gas", "PCIM");

    let define = |world: &World, n: u8, owner: u8, derivedFrom: B256| {
        let (studyId, owner, custodial, deadline) = (study(n), (owner, key(owner).address()), false, LATER);
        let source = key(2).address();
        let message = DefineStudy { studyId, owner: owner.1, source, custodial, derivedFrom, deadline };
        let ownerSignature = world.sign(owner.0, &studies_domain, &message);
        Studies::defineStudyCall { studyId, owner: owner.1, custodial, derivedFrom, deadline, ownerSignature }
    };
    let call = define(&world, 1, 11, B256::ZERO);
    world.used(&mut a, at.studies, call, CREATE, "define study, the very first").await;
    let call = define(&world, 2, 12, B256::ZERO);
    world.used(&mut a, at.studies, call, CREATE, "define study, a later one").await;
    let call = define(&world, 3, 13, keccak256("lineage"));
    world.used(&mut a, at.studies, call, CREATE, "define study, derived from another").await;

    let request = |n: u8| Consent::requestCall {
        studyId: study(n),
        mode: 2,
        purpose: 1,
        notes: keccak256("notes"),
        encryptionKey: vec![0xa5; KEY_BYTES].into(),
    };
    world.used(&mut b, at.consent, request(1), REQUEST, "request, first").await;
    world.used(&mut b, at.consent, request(1), REQUEST, "request, repeated").await;

    let allow = |world: &World, n: u8, owner: u8, series: B256, seq: u32| {
        let allowance = allowance(study(n), bridge, series, seq);
        let ownerSignature = world.sign(owner, &consent_domain, &Allow::from(&allowance));
        Consent::allowCall { allowance, ownerSignature }
    };
    let call = allow(&world, 1, 11, B256::ZERO, 1);
    world.used(&mut a, at.consent, call, APPROVE, "allow what was requested").await;
    let call = allow(&world, 2, 12, keccak256("series"), 1);
    world.used(&mut a, at.consent, call, APPROVE, "allow unasked, one series").await;
    let call = allow(&world, 2, 12, B256::ZERO, 2);
    world.used(&mut a, at.consent, call, APPROVE, "allow again, other scope").await;

    let revoke = |world: &World, n: u8, owner: u8, seq: u32| {
        let message = Revoke { studyId: study(n), grantee: bridge, seq, deadline: LATER };
        let ownerSignature = world.sign(owner, &consent_domain, &message);
        Consent::revokeCall { studyId: study(n), grantee: bridge, seq, deadline: LATER, ownerSignature }
    };
    let call = revoke(&world, 1, 11, 2);
    world.used(&mut a, at.consent, call, REMOVE, "revoke, first").await;
    let call = revoke(&world, 1, 11, 3);
    world.used(&mut a, at.consent, call, REMOVE, "revoke, repeated").await;
    let call = revoke(&world, 3, 13, 1);
    // Writes its first word about this grantee, where PCIM has nothing to compare.
    world.used(&mut a, at.consent, call, u64::MAX, "revoke before anything was allowed").await;

    world.used(&mut b, at.consent, request(1), REQUEST, "request after a revocation").await;
    let message = Deny { studyId: study(1), grantee: bridge, reason: 4, notes: B256::ZERO, seq: 4, deadline: LATER };
    let ownerSignature = world.sign(11, &consent_domain, &message);
    let Deny { studyId, grantee, reason, notes, seq, deadline } = message;
    let call = Consent::denyCall { studyId, grantee, reason, notes, seq, deadline, ownerSignature };
    world.used(&mut a, at.consent, call, REMOVE, "deny").await;

    // Views cost their caller nothing; this is what they would cost as transactions.
    let trace = Consent::traceCall { studyId: study(1), grantee: bridge }.abi_encode();
    assert!(view_costs(&world, trace, "trace (view)").await < TRACE);
    let allowed = Consent::isAllowedCall { studyId: study(2), series: B256::ZERO, grantee: bridge, purpose: 3 };
    view_costs(&world, allowed.abi_encode(), "isAllowed (view)").await;

    let (none, until) = (Address::ZERO, NOW + 3600);
    let emergency =
        Emergency { studyId: study(1), reason: 1, notes: B256::ZERO, until, approver: none, deadline: LATER };
    let call = Consent::breakGlassCall { emergency, approverSignature: Bytes::new() };
    world.used(&mut b, at.consent, call, u64::MAX, "break-glass").await;

    let set =
        messages::guardian_set(&[4, 5, 6].map(|n| key(n).address()), 2, messages::RECOVERY_DELAY_MIN_S, B256::ZERO)
            .unwrap();
    let studyId = study(1);
    let guardians = messages::guardian_commitment(studyId, &set);
    let message = NameGuardians { studyId, guardians, seq: 1, deadline: LATER };
    let ownerSignature = world.sign(11, &studies_domain, &message);
    let call = Studies::nameGuardiansCall { studyId, guardians, seq: 1, deadline: LATER, ownerSignature };
    world.used(&mut a, at.studies, call, u64::MAX, "name guardians").await;

    let new_owner = key(14).address();
    let propose = |world: &World, seq: u32| {
        let (newOwner, custodial, deadline) = (new_owner, false, LATER);
        let message = RecoverStudy { studyId, newOwner, custodial, seq, deadline };
        let by_address = |address: &Address| (4u8..7).find(|n| key(*n).address() == *address).unwrap();
        let signer = set.guardians.iter().map(by_address);
        let mut signatures: Vec<_> = signer.map(|n| world.sign(n, &studies_domain, &message)).collect();
        signatures[1] = Bytes::new();
        Studies::proposeRecoveryCall { studyId, newOwner, custodial, deadline, set: set.clone(), signatures }
    };
    let call = propose(&world, 2);
    world.used(&mut a, at.studies, call, u64::MAX, "propose recovery, two of three").await;
    let message = VetoRecovery { studyId, seq: 3, deadline: LATER };
    let ownerSignature = world.sign(11, &studies_domain, &message);
    let call = Studies::vetoRecoveryCall { studyId, seq: 3, deadline: LATER, ownerSignature };
    world.used(&mut a, at.studies, call, u64::MAX, "veto").await;
    let call = propose(&world, 4);
    world.used(&mut a, at.studies, call, u64::MAX, "propose recovery again").await;
    world.clock.fetch_add(u64::from(messages::RECOVERY_DELAY_MIN_S), Ordering::Relaxed);
    let call = Studies::completeRecoveryCall { studyId };
    world.used(&mut a, at.studies, call, u64::MAX, "complete recovery").await;

    let newOwner = key(15).address();
    let message = TransferStudy { studyId, newOwner, custodial: false, seq: 6, deadline: LATER };
    let ownerSignature = world.sign(14, &studies_domain, &message);
    let call = Studies::transferCall { studyId, newOwner, custodial: false, seq: 6, deadline: LATER, ownerSignature };
    world.used(&mut a, at.studies, call, u64::MAX, "transfer").await;
    let message = TombstoneStudy { studyId, seq: 7, deadline: LATER };
    let ownerSignature = world.sign(15, &studies_domain, &message);
    let call = Studies::tombstoneCall { studyId, seq: 7, deadline: LATER, ownerSignature };
    world.used(&mut a, at.studies, call, u64::MAX, "tombstone").await;

    let call = Studies::amendCall { studyId: study(2), version: 1, manifestImage: study(8), manifestRoot: study(9) };
    world.used(&mut a, at.studies, call, u64::MAX, "amend, first manifest").await;
    let encryptionKey = vec![0xa5; KEY_BYTES].into();
    let call = Sources::changeKeysCall { tlsKey: study(1), encryptionKey };
    world.used(&mut a, at.sources, call, u64::MAX, "change keys of a source").await;

    // As long as real ones; the contract does not read them.
    let (spki, proof): (Bytes, Bytes) =
        (vec![0xa5; messages::SPKI_BYTES].into(), vec![0xa5; messages::KEY_PROOF_BYTES].into());
    let (account, domain) = (key(11).address(), messages::key_bindings_domain(CHAIN_ID, at.key_bindings));
    for (seq, what) in [(1, "bind a P-256 key, first"), (2, "bind it again")] {
        let (spki, proof, notAfter, deadline) = (spki.clone(), proof.clone(), LATER, LATER);
        let message = BindKey { account, spki: spki.clone(), proof: proof.clone(), notAfter, seq, deadline };
        let accountSignature = world.sign(11, &domain, &message);
        let call = KeyBindings::bindKeyCall { account, spki, proof, notAfter, seq, deadline, accountSignature };
        world.used(&mut a, at.key_bindings, call, u64::MAX, what).await;
    }
    let named = KeyBindings::notAfterOfCall { account, key: SPKI_SHA256 };
    assert_eq!(view(&world.provider, at.key_bindings, named.clone()).await.unwrap(), LATER, "the name is the SHA-256");
    let UnbindKey { account, key, seq, deadline } = UnbindKey { account, key: named.key, seq: 3, deadline: LATER };
    let accountSignature = world.sign(11, &domain, &UnbindKey { account, key, seq, deadline });
    let call = KeyBindings::unbindKeyCall { account, key, seq, deadline, accountSignature };
    world.used(&mut a, at.key_bindings, call, u64::MAX, "unbind it").await;
}

async fn view_costs(world: &World, input: Vec<u8>, what: &str) -> u64 {
    let request = TransactionRequest::default().from(key(2).address()).to(world.at.consent).input(input.into());
    let whole = world.provider.estimate_gas(request).await.unwrap();
    println!("{what:<52} {whole:>8} {TRACE:>8}");
    whole
}
