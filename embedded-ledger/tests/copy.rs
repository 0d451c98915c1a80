//! A copy of a chain makes the same ledger again, and nothing else does.
#![allow(clippy::unwrap_used)]

mod support;

use alloy::primitives::B256;
use alloy::providers::Provider;
use contracts::{PieceMode, Pieces, merkle};
use embedded_ledger::{CopyError, EmbeddedLedger, import};
use support::*;

/// A ledger with contracts, a source, and an image in every mode of pieces.
async fn ledger_at(path: &std::path::Path) -> EmbeddedLedger {
    let ledger = EmbeddedLedger::open(config(path)).unwrap();
    let provider = provider(&ledger);
    let (mut admin, mut source) = (Account::new(ADMIN), Account::new(2));
    let at = deploy(&provider, &mut admin).await;
    define_source(&provider, at.sources, &mut admin, &mut source).await;
    let (study, image, piece) = (B256::repeat_byte(5), B256::repeat_byte(6), vec![7_u8; 2000]);
    let root = merkle::root([merkle::piece_hash(&piece)]).unwrap();
    for mode in PieceMode::ALL {
        let call = Pieces::storePieceCall { study, image, index: 0, data: piece.clone().into() };
        assert!(source.send(&provider, at.pieces(mode), call).await.status());
        assert!(source.send(&provider, at.pieces(mode), Pieces::sealCall { image, pieces: 1, root }).await.status());
    }
    ledger
}

#[tokio::test]
async fn a_copy_makes_the_same_ledger_again() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = ledger_at(&dir.path().join("a.redb")).await;
    let mut copy = Vec::new();
    let head = ledger.export(&mut copy).unwrap();
    assert_eq!(head, ledger.head());
    let wanted = config(&dir.path().join("b.redb"));
    assert_eq!(import(&wanted, &mut copy.as_slice()).unwrap(), head);
    assert!(
        matches!(import(&wanted, &mut copy.as_slice()), Err(CopyError::File(_))),
        "what is there is not overwritten"
    );
    let again = EmbeddedLedger::open(wanted).unwrap();
    assert_eq!(again.head(), head);
    let report = again.verify().unwrap();
    assert!(report.is_sound(), "{:?}", report.defects);
    // It goes on from there.
    let mut source = Account::new(2);
    source.nonce = provider(&again).get_transaction_count(source.address()).await.unwrap();
    let at = contracts::deployment::addresses(key(ADMIN).address());
    let (study, image) = (B256::repeat_byte(5), B256::repeat_byte(9));
    let call = Pieces::storePieceCall { study, image, index: 0, data: vec![1].into() };
    assert!(source.send(&provider(&again), at.pieces(PieceMode::Calldata), call).await.status());
    let mut second = Vec::new();
    again.export(&mut second).unwrap();
    assert!(second.len() > copy.len());
}

#[tokio::test]
async fn what_is_not_the_copy_makes_no_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = ledger_at(&dir.path().join("a.redb")).await;
    let mut copy = Vec::new();
    ledger.export(&mut copy).unwrap();
    let wanted = config(&dir.path().join("b.redb"));
    let refused = |bytes: &[u8]| {
        let error = import(&wanted, &mut &*bytes).unwrap_err();
        let left = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 1, "nothing is left of {error}");
        error
    };
    // Wherever it is cut, also between blocks, and whatever is changed.
    for part in 1..40 {
        refused(&copy[..copy.len() * part / 40]);
        let mut changed = copy.clone();
        changed[copy.len() * part / 40] ^= 1;
        refused(&changed);
    }
    assert!(matches!(refused(b""), CopyError::Form));
    let mut other = config(&dir.path().join("b.redb"));
    other.chain_id += 1;
    assert!(matches!(import(&other, &mut copy.as_slice()), Err(CopyError::Foreign { .. })));
}
