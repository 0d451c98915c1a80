//! Paths in the trie of a block's receipts (Ethereum yellow paper 4.3.1, appendix D). Pure.

use alloy::primitives::{B256, Bytes};
use alloy::rlp::encode_fixed_size;
use alloy::trie::proof::{ProofRetainer, verify_proof};
use alloy::trie::root::adjust_index_for_rlp;
use alloy::trie::{HashBuilder, Nibbles};

fn key(index: u64) -> Nibbles {
    Nibbles::unpack(encode_fixed_size(&index))
}

/// The root of the trie of these encoded receipts, and the nodes on the way to one of them.
pub(super) fn path(receipts: &[Bytes], index: u64) -> (B256, Vec<Bytes>) {
    let mut builder = HashBuilder::default().with_proof_retainer(ProofRetainer::new(vec![key(index)]));
    for position in 0..receipts.len() {
        // Leaves go in by the order of their keys.
        let position = adjust_index_for_rlp(position, receipts.len());
        if let Some(receipt) = receipts.get(position) {
            builder.add_leaf(key(position as u64), receipt);
        }
    }
    let root = builder.root();
    let nodes = builder.take_proof_nodes().into_nodes_sorted();
    (root, nodes.into_iter().map(|(_, node)| node).collect())
}

/// Whether a receipt is at a position of the trie with this root.
pub(super) fn holds(root: B256, index: u64, receipt: &Bytes, path: &[Bytes]) -> bool {
    verify_proof(root, key(index), Some(receipt.to_vec()), path).is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use alloy::trie::root::ordered_trie_root_encoded;
    use proptest::prelude::*;

    proptest! {
        /// The root is the one that every node computes, and only the receipt itself is at its place.
        #[test]
        fn a_path_leads_to_one_receipt(
            receipts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 33..200), 1..300),
            at in any::<prop::sample::Index>(), flip in any::<prop::sample::Index>(),
        ) {
            let receipts: Vec<Bytes> = receipts.into_iter().map(Bytes::from).collect();
            let index = at.index(receipts.len());
            let (root, nodes) = path(&receipts, index as u64);
            prop_assert_eq!(root, ordered_trie_root_encoded(&receipts));
            prop_assert!(holds(root, index as u64, &receipts[index], &nodes));
            let mut other = receipts[index].to_vec();
            let place = flip.index(other.len());
            other[place] ^= 1;
            prop_assert!(!holds(root, index as u64, &other.into(), &nodes));
            prop_assert!(!holds(root, index as u64 + 1, &receipts[index], &nodes));
            prop_assert!(!holds(B256::repeat_byte(7), index as u64, &receipts[index], &nodes));
            prop_assert!(!holds(root, index as u64, &receipts[index], &nodes[1..]));
        }
    }
}
