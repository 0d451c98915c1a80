//! What an owner signs, in the JSON that wallets take (EIP-712, `eth_signTypedData_v4`).
//!
//! Types and their order come from the same structs whose digest the contracts check, so that what a wallet shows and signs
//! cannot differ from what is relayed. Pure; must not know who signs.

use std::collections::BTreeMap;

use alloy::primitives::Address;
use alloy::sol_types::{Eip712Domain, SolStruct};
use contracts::messages::{self, consent_domain, studies_domain};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::ledger::consent::Word;

/// Typed structured data. Numbers that JavaScript cannot hold exactly are decimal text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TypedData {
    /// Every struct type with its fields in the order that is hashed.
    pub types: BTreeMap<String, Vec<TypedField>>,
    /// The type of the message.
    #[serde(rename = "primaryType")]
    pub primary_type: String,
    /// What binds the signature to a contract on a chain.
    pub domain: TypedDomain,
    /// The fields' values.
    pub message: Map<String, Value>,
}

/// A field of a struct type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypedField {
    /// Its name.
    pub name: String,
    /// Its Solidity type.
    #[serde(rename = "type")]
    pub kind: String,
}

/// The EIP-712 domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypedDomain {
    /// What the contract calls its messages.
    pub name: String,
    /// Their version.
    pub version: String,
    /// EIP-155 chain id.
    #[serde(rename = "chainId")]
    pub chain_id: u64,
    /// The contract.
    #[serde(rename = "verifyingContract")]
    pub verifying_contract: Address,
}

impl TypedData {
    /// A word that is said to a contract on a chain.
    #[must_use]
    pub fn of(word: &Word, chain_id: u64, contract: Address) -> Self {
        let consent = consent_domain(chain_id, contract);
        let studies = studies_domain(chain_id, contract);
        let made = |domain: &Eip712Domain, kind: String, message: Value| {
            Self::made(domain, &kind, chain_id, contract, message)
        };
        let id = word.study();
        match word {
            Word::Allow(w) => made(
                &consent,
                encoded::<messages::Allow>(),
                json!({
                    "studyId": id, "grantee": w.grantee, "series": w.series, "mode": w.mode, "notBefore": wide(w.notBefore),
                    "notAfter": wide(w.notAfter), "purpose": w.purpose, "notes": w.notes, "encryptionKey": w.encryptionKey,
                    "seq": w.seq, "deadline": wide(w.deadline),
                }),
            ),
            Word::Deny(w) => made(
                &consent,
                encoded::<messages::Deny>(),
                json!({
                    "studyId": id, "grantee": w.grantee, "reason": w.reason, "notes": w.notes, "seq": w.seq,
                    "deadline": wide(w.deadline),
                }),
            ),
            Word::Revoke(w) => made(
                &consent,
                encoded::<messages::Revoke>(),
                json!({
                    "studyId": id, "grantee": w.grantee, "seq": w.seq, "deadline": wide(w.deadline),
                }),
            ),
            Word::Transfer(w) => made(
                &studies,
                encoded::<messages::TransferStudy>(),
                json!({
                    "studyId": id, "newOwner": w.newOwner, "custodial": w.custodial, "seq": w.seq, "deadline": wide(w.deadline),
                }),
            ),
            Word::Tombstone(w) => made(
                &studies,
                encoded::<messages::TombstoneStudy>(),
                json!({
                    "studyId": id, "seq": w.seq, "deadline": wide(w.deadline),
                }),
            ),
            Word::NameGuardians(w) => made(
                &studies,
                encoded::<messages::NameGuardians>(),
                json!({
                    "studyId": id, "guardians": w.guardians, "seq": w.seq, "deadline": wide(w.deadline),
                }),
            ),
            Word::VetoRecovery(w) => made(
                &studies,
                encoded::<messages::VetoRecovery>(),
                json!({
                    "studyId": id, "seq": w.seq, "deadline": wide(w.deadline),
                }),
            ),
        }
    }

    fn made(domain: &Eip712Domain, kind: &str, chain_id: u64, contract: Address, message: Value) -> Self {
        let (name, fields) = struct_type(kind);
        let (domain_name, domain_fields) = struct_type(&domain.encode_type());
        let text = |part: &Option<std::borrow::Cow<'static, str>>| part.as_deref().unwrap_or_default().to_owned();
        Self {
            types: BTreeMap::from([(domain_name, domain_fields), (name.clone(), fields)]),
            primary_type: name,
            domain: TypedDomain {
                name: text(&domain.name),
                version: text(&domain.version),
                chain_id,
                verifying_contract: contract,
            },
            message: match message {
                Value::Object(fields) => fields,
                _ => Map::new(),
            },
        }
    }
}

fn encoded<S: SolStruct>() -> String {
    S::eip712_encode_type().into_owned()
}

/// Of `Name(type field,type field)`, EIP-712's own notation, for structs that hold no other structs.
fn struct_type(encoded: &str) -> (String, Vec<TypedField>) {
    let (name, fields) = encoded.split_once('(').unwrap_or((encoded, ""));
    let fields = fields.trim_end_matches(')').split(',').filter_map(|field| field.split_once(' '));
    let field = |(kind, name): (&str, &str)| TypedField { name: name.to_owned(), kind: kind.to_owned() };
    (name.to_owned(), fields.map(field).collect())
}

fn wide(number: u64) -> String {
    number.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use alloy::primitives::B256;
    use contracts::Allowance;

    #[test]
    fn a_wallet_signs_the_digest_that_the_contract_checks() {
        let (study, account) = (B256::repeat_byte(0x11), Address::repeat_byte(0x22));
        let (seq, deadline) = (u32::MAX, u64::MAX);
        let allow = Allowance {
            studyId: study,
            grantee: account,
            series: B256::repeat_byte(3),
            mode: 2,
            notBefore: 1 << 60,
            notAfter: u64::MAX,
            purpose: 7,
            notes: B256::repeat_byte(4),
            encryptionKey: B256::repeat_byte(5),
            seq,
            deadline,
        };
        let (reason, notes, guardians) = (3, B256::ZERO, B256::repeat_byte(9));
        let words = [
            Word::Allow(allow),
            Word::Deny(messages::Deny { studyId: study, grantee: account, reason, notes, seq, deadline }),
            Word::Revoke(messages::Revoke { studyId: study, grantee: account, seq, deadline }),
            Word::Transfer(messages::TransferStudy {
                studyId: study,
                newOwner: account,
                custodial: false,
                seq,
                deadline,
            }),
            Word::Tombstone(messages::TombstoneStudy { studyId: study, seq, deadline }),
            Word::NameGuardians(messages::NameGuardians { studyId: study, guardians, seq, deadline }),
            Word::VetoRecovery(messages::VetoRecovery { studyId: study, seq, deadline }),
        ];
        for word in words {
            let contract = Address::repeat_byte(0x33);
            let text = serde_json::to_string(&TypedData::of(&word, 20_181, contract)).unwrap();
            let judge: alloy_dyn_abi::TypedData = serde_json::from_str(&text).unwrap();
            assert_eq!(judge.eip712_signing_hash().unwrap(), word.digest(20_181, contract), "{text}");
        }
    }
}
