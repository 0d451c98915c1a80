//! Nothing that identifies a patient is on the chain or in the log.
#![allow(clippy::unwrap_used, missing_docs)]

use alloy::consensus::Transaction;
use alloy::providers::{Provider, ProviderBuilder};
use tests::dicom::{connect, slices, store, subject};
use tests::{Bridge, files_below};

/// What was planted, in every spelling in which it could get out.
fn planted() -> Vec<(String, Vec<u8>)> {
    let subject = subject(1);
    let mut texts = vec![
        subject.patient_name.clone(),
        "Zyxwquist".into(),
        "Brunhilde1".into(),
        subject.patient_id,
        subject.study_uid.clone(),
        subject.study_date,
        subject.accession,
        subject.description,
        "PLANTEDMODALITY".into(),
        format!("{}.1.1", subject.study_uid),
        "Thorax 1.5 mm".into(),
    ];
    // Without a clear "CT" the modality's own two letters would be found by chance; its attribute's encoding would not.
    texts.push("CS\u{2}\u{0}CT".into());
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    for text in texts {
        let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        all.push((format!("{text} (UTF-16)"), wide));
        all.push((format!("{text} (lower case)"), text.to_lowercase().into_bytes()));
        all.push((text.clone(), text.into_bytes()));
    }
    all
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn no_byte_of_the_chain_or_the_log_tells_who_the_patient_is() {
    let mut bridge = Bridge::start("[publish]\nsettle_ms = 100\n[ledger]\nrpc_bind = \"127.0.0.1:0\"\n");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut open = connect(bridge.dicom, "PLANTEDMODALITY").await.unwrap();
        for phantom in slices(1, 6, 64) {
            assert_eq!(store(&mut open, &phantom).await, Some(dicom_scp::Status::SUCCESS));
        }
    });
    let rows = bridge.wait_final(1);
    let planted = planted();

    // The search itself works: the archive does hold all this.
    let objects: Vec<u8> = files_below(&bridge.dir.path().join("data/archive/objects"))
        .iter()
        .flat_map(|path| std::fs::read(path).unwrap())
        .collect();
    assert!(holds(&objects, b"Zyxwquist^Brunhilde1") && holds(&objects, b"CS\x02\x00CT"));

    // Everything that a node would serve, transaction by transaction.
    let rpc = bridge.ready("rpc=").to_owned();
    let mut chain: Vec<u8> = Vec::new();
    runtime.block_on(async {
        let provider = ProviderBuilder::new().connect_http(format!("http://{rpc}").parse().unwrap());
        let head = provider.get_block_number().await.unwrap();
        assert!(head > 0);
        for number in 0..=head {
            let block = provider.get_block_by_number(number.into()).full().await.unwrap().unwrap();
            for transaction in block.transactions.txns() {
                chain.extend_from_slice(transaction.input());
            }
            for receipt in provider.get_block_receipts(number.into()).await.unwrap().unwrap() {
                for log in receipt.inner.logs() {
                    log.topics().iter().for_each(|topic| chain.extend_from_slice(topic.as_slice()));
                    chain.extend_from_slice(&log.inner.data.data);
                }
            }
        }
    });
    assert!(chain.len() as u64 > rows[0]["bytes"].as_u64().unwrap() / 4, "the chain does not hold the study");
    // And the ledger's own files, code and state included, byte by byte.
    bridge.terminate();
    for path in files_below(&bridge.dir.path().join("data/ledger")) {
        chain.extend(std::fs::read(path).unwrap());
    }
    for (what, bytes) in &planted {
        assert!(!holds(&chain, bytes), "{what} is on the chain");
    }
    let log = bridge.log().into_bytes();
    for (what, bytes) in planted.iter().filter(|(what, _)| what.contains("Zyxwquist") || what.contains("MRN")) {
        assert!(!holds(&log, bytes), "{what} is in the log");
    }
}
