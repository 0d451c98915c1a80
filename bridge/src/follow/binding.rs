//! P-256 keys as bindings name them, and the proof that a key's holder wants it bound (docs/P256-BINDING.md). Pure.
//!
//! The keys are those of [`ihe_retrieve`]: what is judged here when a binding is seen is what is looked up when a request comes.

use alloy::primitives::{Address, B256};
use contracts::messages::{KEY_PROOF_BYTES, key_proof_octets};
use ihe_retrieve::key::RequesterKey;
use sha2::{Digest as _, Sha256};

use super::Chain;

/// The name of a P-256 key in the one form that bindings have; none for other keys and other forms.
#[must_use]
pub fn key_of(spki: &[u8]) -> Option<B256> {
    parsed(spki).map(|key| key.spki_sha256().into())
}

fn parsed(spki: &[u8]) -> Option<RequesterKey> {
    let key = RequesterKey::from_spki(spki).ok()?;
    (matches!(key, RequesterKey::P256(_)) && key.spki() == spki).then_some(key)
}

/// Whether `proof` is what the holder of a P-256 key signs to have it bound to `account` on this chain.
#[must_use]
pub fn is_proof(chain: &Chain, account: Address, spki: &[u8], proof: &[u8]) -> bool {
    let Some(key) = parsed(spki) else { return false };
    let octets = key_proof_octets(chain.chain_id, chain.key_bindings, account, key.spki_sha256().into());
    proof.len() == KEY_PROOF_BYTES && key.verifies(&Sha256::digest(octets).into(), proof)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use alloy::signers::k256;
    use p256::ecdsa::signature::Signer as _;
    use p256::ecdsa::{Signature, SigningKey};
    use p256::pkcs8::EncodePublicKey as _;

    const CHAIN: Chain = Chain {
        genesis: B256::repeat_byte(1),
        registry: Address::repeat_byte(2),
        chain_id: 7,
        key_bindings: Address::repeat_byte(3),
    };
    const CLINIC: Address = Address::repeat_byte(4);

    fn key(seed: u8) -> (SigningKey, Vec<u8>) {
        let key = SigningKey::from_slice(&[seed; 32]).unwrap();
        let spki = key.verifying_key().to_public_key_der().unwrap().as_bytes().to_vec();
        (key, spki)
    }

    fn proof(key: &SigningKey, chain: &Chain, account: Address, named: B256) -> Vec<u8> {
        let octets = key_proof_octets(chain.chain_id, chain.key_bindings, account, named);
        let signature: Signature = key.sign(&octets);
        signature.to_bytes().to_vec()
    }

    #[test]
    fn only_the_keys_own_signature_for_this_account_on_this_ledger_is_a_proof() {
        let ((card, spki), (other, others)) = (key(1), key(2));
        let named = key_of(&spki).unwrap();
        let good = proof(&card, &CHAIN, CLINIC, named);
        assert!(is_proof(&CHAIN, CLINIC, &spki, &good));
        assert!(!is_proof(&CHAIN, Address::repeat_byte(5), &spki, &good), "copied by a stranger");
        assert!(!is_proof(&CHAIN, CLINIC, &others, &good), "of another key");
        assert!(!is_proof(&Chain { chain_id: 8, ..CHAIN }, CLINIC, &spki, &good), "of another chain");
        let elsewhere = Chain { key_bindings: Address::ZERO, ..CHAIN };
        assert!(!is_proof(&elsewhere, CLINIC, &spki, &good), "of another consortium");
        assert!(!is_proof(&CHAIN, CLINIC, &spki, &proof(&other, &CHAIN, CLINIC, named)), "by another key");
        assert!(!is_proof(&CHAIN, CLINIC, &spki, &[0; 64]) && !is_proof(&CHAIN, CLINIC, &spki, &good[..63]));
        // Both forms of an ECDSA signature are one.
        let s = p256::ecdsa::Signature::from_slice(&good).unwrap();
        let twin = Signature::from_scalars(s.r().to_bytes(), (-*s.s()).to_bytes()).unwrap();
        assert!(is_proof(&CHAIN, CLINIC, &spki, &twin.to_bytes()));
    }

    #[test]
    fn keys_have_one_form() {
        let (_, spki) = key(1);
        assert_eq!(spki.len(), contracts::messages::SPKI_BYTES);
        assert_eq!(key_of(&spki), Some(B256::from(<[u8; 32]>::from(Sha256::digest(&spki)))));
        let mut off_curve = spki.clone();
        *off_curve.last_mut().unwrap() ^= 1;
        let longer = [&spki[..], &[0]].concat();
        let ledgers = k256::ecdsa::SigningKey::from_slice(&[1; 32]).unwrap();
        let ledgers = ledgers.verifying_key().to_encoded_point(false);
        let mut secp256k1 = spki.clone();
        secp256k1.truncate(26);
        secp256k1.extend_from_slice(ledgers.as_bytes());
        for wrong in [&off_curve, &longer, &secp256k1, &spki[..90].to_vec(), &Vec::new()] {
            assert_eq!(key_of(wrong), None, "{wrong:?}");
        }
    }
}
