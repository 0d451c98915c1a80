//! How a network must be after faults: everything that was acknowledged is proven, was sent once, and is the same on all nodes and at another site.

use std::collections::BTreeMap;

use alloy::hex;
use alloy::primitives::{Address, B256};
use alloy::sol_types::SolCall as _;
use bridge::ledger::PieceMode;
use bridge::ledger::node::Transaction;
use bridge::ledger::pieces::pieces_in;
use contracts::Sources;
use dicom_scp::matching::Level;
use serde_json::{Value, json};

use crate::consortium::{Consortium, keyring};
use crate::dicom::{get, subject};
use crate::geth::Geth;
use crate::{Bridge, wait_for};

/// A quantity as JSON-RPC has it.
pub fn number(of: &Value) -> u64 {
    u64::from_str_radix(of.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

/// What an account sent, as a node has it.
#[derive(Debug, Default)]
pub struct Sent {
    /// How often each input went to each contract.
    pub calls: BTreeMap<(String, String), usize>,
    /// How often each piece of an image was carried: in another transaction with other pieces it is the same piece, paid for again.
    pub pieces: BTreeMap<(B256, u32), usize>,
}

impl Sent {
    /// Pieces that were carried more than once.
    pub fn carried_again(&self) -> Vec<(B256, u32, usize)> {
        let again = self.pieces.iter().filter(|(_, times)| **times > 1);
        again.map(|((image, index), times)| (*image, *index, *times)).collect()
    }

    fn add(&mut self, transaction: &Value, contract: Address) {
        let to_and_input = (transaction["to"].to_string(), transaction["input"].to_string());
        *self.calls.entry(to_and_input).or_default() += 1;
        let of = |field: &str| transaction[field].as_str().unwrap();
        let carrier = Transaction {
            hash: of("hash").parse().unwrap(),
            from: of("from").parse().unwrap(),
            to: transaction["to"].as_str().map(|to| to.parse().unwrap()),
            input: of("input").parse().unwrap(),
        };
        for piece in pieces_in(&carrier, contract) {
            *self.pieces.entry((piece.image, piece.index)).or_default() += 1;
        }
    }
}

/// What an account sent successfully, as a node has it; it sent nothing that failed.
pub fn sent_by(geth: &Geth, node: usize, account: &str, pieces: Address) -> Sent {
    let moves = format!("0x{}", hex::encode(Sources::changeEndpointCall::SELECTOR));
    let mut sent = Sent::default();
    for height in 1..=geth.head(node).unwrap() {
        let block = geth.ask(node, "eth_getBlockByNumber", json!([format!("{height:#x}"), true])).unwrap();
        for transaction in block["transactions"].as_array().unwrap() {
            let (from, hash) = (transaction["from"].as_str().unwrap(), &transaction["hash"]);
            let input = transaction["input"].as_str().unwrap();
            // A transfer without input fills a gap of nonces; a site that listens on whatever port is free states its endpoint anew whenever it starts.
            if !from.eq_ignore_ascii_case(account) || input == "0x" || input.starts_with(&moves) {
                continue;
            }
            let receipt = geth.ask(node, "eth_getTransactionReceipt", json!([hash])).unwrap();
            assert_eq!(number(&receipt["status"]), 1, "a transaction of the site failed: {transaction} {receipt}");
            sent.add(transaction, pieces);
        }
    }
    sent
}

/// Everything is proven, was sent once, and is the same on all nodes. Pieces that were carried again in other company are told, and left to the caller.
pub fn all_is_well(consortium: &mut Consortium, a: &Bridge, studies: u32, objects: usize) -> Sent {
    for study in 1..=studies {
        let verdicts = a.json(&["verify", &subject(study).study_uid]);
        let verdicts = verdicts.as_array().unwrap();
        assert_eq!(verdicts.len(), objects);
        assert!(verdicts.iter().all(|verdict| verdict["proven"] == true), "{verdicts:?}");
    }
    let account = keyring(a).source().address().to_string();
    let pieces = contracts::deployment::addresses(consortium.admin).pieces(PieceMode::Calldata);
    let geth = consortium.geth().unwrap();
    let last = geth.network.nodes.len() - 1;
    let height = geth.head(0).unwrap();
    wait_for("the nodes to be equally far", || {
        (1..=last).all(|node| geth.head(node).is_some_and(|head| head >= height))
    });
    let block = |node| geth.ask(node, "eth_getBlockByNumber", json!([format!("{:#x}", height - 4), false])).unwrap();
    for node in 1..=last {
        assert_eq!(block(node)["hash"], block(0)["hash"], "node {node} holds another chain");
    }
    let sent = sent_by(geth, last, &account, pieces);
    assert!(sent.calls.len() > 10 && sent.pieces.len() > objects);
    let begin = |input: &String| input.chars().take(75).collect::<String>();
    let twice = sent.calls.iter().filter(|(_, times)| **times > 1);
    let twice: Vec<_> = twice.map(|((to, input), times)| (to, begin(input), times)).collect();
    assert!(twice.is_empty(), "sent more than once: {twice:?}");
    let again = sent.carried_again();
    if !again.is_empty() {
        eprintln!("{} of {} pieces were carried again in other company: {again:?}", again.len(), sent.pieces.len());
    }
    both_agree(consortium, a, studies);
    sent
}

/// A site that joins now and is let in gets of every study what its source has.
pub fn both_agree(consortium: &Consortium, a: &Bridge, studies: u32) {
    let b = consortium.join(false);
    let (source, grantee) = (keyring(a), keyring(&b));
    let uids: Vec<_> = (1..=studies).map(|study| dicom_scp::Uid::new(&subject(study).study_uid).unwrap()).collect();
    for uid in &uids {
        let keys = source.study(uid).unwrap().unwrap();
        let study = bridge::study::study_id(&keys.salt, uid.as_str());
        consortium.allow(&source.owner(keys.owner_index).unwrap(), study, &grantee, 2, 1);
    }
    let everywhere = uids.iter().map(ToString::to_string).collect();
    wait_for("every study at B", || consortium.find(b.dicom, Level::Study) == everywhere);
    for uid in &uids {
        let of = |site: &Bridge| consortium.runtime.block_on(get(site.dicom, uid.as_str())).data_sets;
        let there = of(&b);
        assert!(!there.is_empty() && there == of(a), "the sites have something else of {uid}");
    }
}
