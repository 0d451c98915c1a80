//! The answers of the ledger, where clients depend on them: errors at submission, order, past states, logs, HTTP, reopening.
#![allow(clippy::unwrap_used)]

mod support;

use alloy::consensus::{SignableTransaction, TxEip1559, TxEip2930, TxEip7702, TxEnvelope, TxLegacy};
use alloy::eips::BlockId;
use alloy::eips::eip2718::Encodable2718;
use alloy::network::TxSignerSync;
use alloy::primitives::{Address, B256, Bytes, Signature, TxKind, U256, hex};
use alloy::providers::{DynProvider, Provider, ProviderBuilder};
use alloy::rpc::types::{BlockNumberOrTag, Filter, TransactionRequest};
use alloy::sol_types::{SolCall, SolError, SolEvent};
use contracts::{PieceInput, PieceMode, Pieces, Sources};
use embedded_ledger::{EmbeddedLedger, LedgerConfig, OpenError};
use redb::{Database, ReadableTable, TableDefinition};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

/// With input: stores its first word at slot 0. Without: returns slot 0.
const CELL: Address = Address::repeat_byte(0xce);
const CELL_CODE: [u8; 24] = hex!("3615600c57600035600055005b60005460005260206000f3");
/// With input: stores 1 at the slot named by its first word. Without: destroys itself.
const MORTAL: Address = Address::repeat_byte(0xde);
const MORTAL_CODE: [u8; 15] = hex!("3615600c57600160003555005b33ff");

struct Node {
    ledger: EmbeddedLedger,
    provider: DynProvider,
    _dir: tempfile::TempDir,
}

fn start(change: impl FnOnce(&mut LedgerConfig)) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&dir.path().join("l.redb")).with_code(CELL, CELL_CODE).with_code(MORTAL, MORTAL_CODE);
    change(&mut config);
    let ledger = EmbeddedLedger::open(config).unwrap();
    let provider = provider(&ledger);
    Node { ledger, provider, _dir: dir }
}

fn transfer(nonce: u64) -> TxEip1559 {
    TxEip1559 {
        chain_id: CHAIN_ID,
        nonce,
        gas_limit: 21_000,
        max_fee_per_gas: 2,
        max_priority_fee_per_gas: 1,
        to: TxKind::Call(Address::repeat_byte(9)),
        value: U256::from(1),
        ..TxEip1559::default()
    }
}

async fn refusal(provider: &DynProvider, raw: &[u8]) -> String {
    provider.send_raw_transaction(raw).await.unwrap_err().as_error_resp().unwrap().message.to_string()
}

#[tokio::test]
async fn a_transaction_that_cannot_be_executed_is_refused_in_geths_words() {
    let node = start(|_| {});
    let (account, poor) = (key(2), key(77));
    let refused = async |tx: TxEip1559| refusal(&node.provider, &sign(&account, tx)).await;
    let starts = |found: String, wanted: &str| assert!(found.starts_with(wanted), "{found:?} is not {wanted:?}");

    starts(refused(TxEip1559 { chain_id: 1, ..transfer(0) }).await, "invalid chain id for signer: have 1 want 1337");
    starts(refused(TxEip1559 { gas_limit: 20_999, ..transfer(0) }).await, "intrinsic gas too low");
    starts(refused(TxEip1559 { gas_limit: 40_000_001, ..transfer(0) }).await, "exceeds block gas limit");
    starts(refused(TxEip1559 { max_priority_fee_per_gas: 3, ..transfer(0) }).await, "max priority fee per gas higher");
    let free = TxEip1559 { max_fee_per_gas: 0, max_priority_fee_per_gas: 0, ..transfer(0) };
    starts(refused(free).await, "max fee per gas less than block base fee");
    let rich = TxEip1559 { value: U256::from(10).pow(U256::from(31)), ..transfer(0) };
    starts(refused(rich).await, "insufficient funds for gas * price + value");
    starts(refusal(&node.provider, &sign(&poor, transfer(0))).await, "insufficient funds for gas * price + value");
    let big = TxEip1559 { input: vec![1; 131_072].into(), gas_limit: 9_000_000, ..transfer(0) };
    starts(refused(big).await, "oversized data: transaction size");
    starts(refusal(&node.provider, &[0x02, 0xc0]).await, "rlp: ");
    starts(refusal(&node.provider, &[]).await, "rlp: ");

    let mut unprotected = TxLegacy { gas_limit: 21_000, gas_price: 2, ..TxLegacy::default() };
    let signature = account.sign_transaction_sync(&mut unprotected).unwrap();
    let raw = TxEnvelope::from(unprotected.into_signed(signature)).encoded_2718();
    starts(refusal(&node.provider, &raw).await, "only replay-protected (EIP-155) transactions allowed over RPC");
    let newer = TxEip7702 { chain_id: CHAIN_ID, ..TxEip7702::default() };
    let raw = TxEnvelope::from(newer.into_signed(Signature::test_signature())).encoded_2718();
    starts(refusal(&node.provider, &raw).await, "transaction type not supported");

    // Waits for nonce 0, so that it can be asked for again.
    let waiting = sign(&account, transfer(1));
    let _waits = node.provider.send_raw_transaction(&waiting).await.unwrap();
    assert_eq!(refusal(&node.provider, &waiting).await, "already known");
    let same_fee = TxEip1559 { value: U256::from(2), ..transfer(1) };
    assert_eq!(refused(same_fee).await, "replacement transaction underpriced");
    let first = sign(&account, transfer(0));
    let hash = *node.provider.send_raw_transaction(&first).await.unwrap().tx_hash();
    receipt(&node.provider, hash).await;
    starts(refusal(&node.provider, &first).await, "nonce too low: address 0x");
}

#[tokio::test]
async fn legacy_and_access_list_transactions_are_executed() {
    let node = start(|_| {});
    let mut legacy = TxLegacy { chain_id: Some(CHAIN_ID), gas_limit: 21_000, gas_price: 2, ..TxLegacy::default() };
    legacy.to = TxKind::Call(Address::repeat_byte(9));
    let signature = key(2).sign_transaction_sync(&mut legacy).unwrap();
    let legacy = TxEnvelope::from(legacy.into_signed(signature));
    let mut listed =
        TxEip2930 { chain_id: CHAIN_ID, gas_limit: 30_000, gas_price: 2, nonce: 1, ..TxEip2930::default() };
    listed.to = TxKind::Call(Address::repeat_byte(9));
    let signature = key(2).sign_transaction_sync(&mut listed).unwrap();
    let listed = TxEnvelope::from(listed.into_signed(signature));
    for tx in [legacy, listed] {
        let hash = *node.provider.send_raw_transaction(&tx.encoded_2718()).await.unwrap().tx_hash();
        assert_eq!(receipt(&node.provider, hash).await.transaction_type(), tx.tx_type());
        let found = node.provider.get_transaction_by_hash(hash).await.unwrap().unwrap();
        assert_eq!(found.inner.inner(), &tx);
        assert_eq!(found.inner.signer(), key(2).address());
    }
    assert!(node.ledger.verify().unwrap().is_sound());
}

/// One block takes what is ready; a gap in the nonces holds back what comes after it and nothing else.
#[tokio::test]
async fn what_waits_for_a_nonce_goes_together() {
    let node = start(|_| {});
    let provider = &node.provider;
    let address = key(2).address();
    let mut hashes = Vec::new();
    for nonce in (1..40).rev() {
        hashes.push(*provider.send_raw_transaction(&sign(&key(2), transfer(nonce))).await.unwrap().tx_hash());
    }
    assert_eq!(provider.get_transaction_count(address).pending().await.unwrap(), 0);
    let pending = provider.get_transaction_by_hash(hashes[0]).await.unwrap().unwrap();
    assert_eq!((pending.block_hash, pending.inner.signer()), (None, address));
    assert!(provider.get_transaction_receipt(hashes[0]).await.unwrap().is_none());
    // Ten percent more replaces a waiting transaction.
    let better = TxEip1559 { max_fee_per_gas: 4, max_priority_fee_per_gas: 2, ..transfer(7) };
    let better = *provider.send_raw_transaction(&sign(&key(2), better)).await.unwrap().tx_hash();
    let replaced = hashes[39 - 7];
    assert!(provider.get_transaction_by_hash(replaced).await.unwrap().is_none());

    let first = *provider.send_raw_transaction(&sign(&key(2), transfer(0))).await.unwrap().tx_hash();
    let number = receipt(provider, hashes[0]).await.block_number.unwrap();
    assert_eq!(provider.get_transaction_count(address).await.unwrap(), 40);
    assert_eq!(provider.get_transaction_count(address).pending().await.unwrap(), 40);
    assert_eq!(receipt(provider, first).await.block_number.unwrap(), number);
    assert_eq!(receipt(provider, better).await.transaction_index, Some(7));
    let block = provider.get_block_by_number(number.into()).full().await.unwrap().unwrap();
    let nonces: Vec<u64> = block.transactions.txns().map(alloy::consensus::Transaction::nonce).collect();
    assert_eq!(nonces, (0..40).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_pool_has_limits() {
    let node = start(|config| config.pool.per_sender_max = 3);
    for nonce in 1..4 {
        let _waits = node.provider.send_raw_transaction(&sign(&key(2), transfer(nonce))).await.unwrap();
    }
    assert_eq!(refusal(&node.provider, &sign(&key(2), transfer(4))).await, "account limit exceeded");
    // Another sender has its own room, and the gap can be filled once there is room again.
    let _waits = node.provider.send_raw_transaction(&sign(&key(3), transfer(1))).await.unwrap();
    let node = start(|config| config.pool.bytes_max = 200);
    let _waits = node.provider.send_raw_transaction(&sign(&key(2), transfer(1))).await.unwrap();
    assert_eq!(refusal(&node.provider, &sign(&key(3), transfer(1))).await, "txpool is full");
}

#[tokio::test]
async fn a_past_state_can_be_read_as_far_as_it_is_kept() {
    let node = start(|config| config.history_blocks = 3);
    let (provider, mut account) = (&node.provider, Account::new(2));
    for value in 1..=6u64 {
        let receipt = account.send_raw(provider, CELL, B256::from(U256::from(value)).to_vec(), 100_000).await;
        assert_eq!(receipt.block_number, Some(value));
    }
    let cell = TransactionRequest::default().to(CELL);
    for number in 3..=6u64 {
        let at = BlockId::number(number);
        let word = B256::from(U256::from(number));
        assert_eq!(provider.call(cell.clone()).block(at).await.unwrap().as_ref(), word.as_slice());
        assert_eq!(provider.get_storage_at(CELL, U256::ZERO).block_id(at).await.unwrap(), U256::from(number));
        assert_eq!(provider.get_transaction_count(account.address()).block_id(at).await.unwrap(), number);
    }
    let block = provider.get_block_by_number(4.into()).await.unwrap().unwrap();
    let at = BlockId::hash(block.header.hash);
    assert_eq!(provider.get_storage_at(CELL, U256::ZERO).block_id(at).await.unwrap(), U256::from(4));
    let pruned = provider.call(cell.clone()).block(BlockId::number(2)).await.unwrap_err();
    assert!(pruned.to_string().contains("missing trie node"), "{pruned}");
    let unknown = provider.call(cell).block(BlockId::number(7)).await.unwrap_err();
    assert!(unknown.to_string().contains("header not found"), "{unknown}");
}

#[tokio::test]
async fn a_contract_that_destroyed_itself_leaves_nothing_but_its_past() {
    let node = start(|_| {});
    let (provider, mut account) = (&node.provider, Account::new(2));
    for slot in 1..4u64 {
        account.send_raw(provider, MORTAL, B256::from(U256::from(slot)).to_vec(), 100_000).await;
    }
    assert!(account.send_raw(provider, MORTAL, Vec::new(), 100_000).await.status());
    assert!(provider.get_code_at(MORTAL).await.unwrap().is_empty());
    assert_eq!(provider.get_storage_at(MORTAL, U256::from(2)).await.unwrap(), U256::ZERO);
    let before = BlockId::number(3);
    assert_eq!(provider.get_code_at(MORTAL).block_id(before).await.unwrap().as_ref(), MORTAL_CODE.as_slice());
    assert_eq!(provider.get_storage_at(MORTAL, U256::from(2)).block_id(before).await.unwrap(), U256::from(1));
    assert!(node.ledger.verify().unwrap().is_sound());
}

#[tokio::test]
async fn blocks_receipts_and_logs_agree() {
    let node = start(|_| {});
    let (provider, mut admin, mut source) = (&node.provider, Account::new(ADMIN), Account::new(2));
    let at = deploy(provider, &mut admin).await;
    define_source(provider, at.sources, &mut admin, &mut source).await;
    let to = at.pieces(PieceMode::Log);
    let (study, first_nonce) = (B256::repeat_byte(1), source.nonce);
    // Later nonces first, so that all transactions come into one block.
    let mut raw = Vec::new();
    for image in 1..4u8 {
        let piece = |index| PieceInput { study, image: B256::repeat_byte(image), index, data: vec![image; 9].into() };
        let call = Pieces::storePiecesCall { batch: vec![piece(0), piece(1)] };
        raw.push(source.sign(to, call.abi_encode(), 1_000_000));
    }
    let mut hashes = Vec::new();
    for raw in raw.iter().rev() {
        hashes.push(*provider.send_raw_transaction(raw).await.unwrap().tx_hash());
    }
    hashes.reverse();
    let last = receipt(provider, hashes[2]).await;
    let block = provider.get_block_by_hash(last.block_hash.unwrap()).full().await.unwrap().unwrap();
    assert_eq!(block.header.hash, block.header.inner.hash_slow());
    assert_eq!(block.transactions.hashes().collect::<Vec<_>>(), hashes);
    let by_number = provider.get_block_by_number(block.header.number.into()).await.unwrap().unwrap();
    assert_eq!(by_number.transactions.hashes().collect::<Vec<_>>(), hashes);
    assert_eq!(by_number.header, block.header);
    let receipts = provider.get_block_receipts(BlockId::hash(block.header.hash)).await.unwrap().unwrap();
    assert_eq!(receipts.iter().map(|r| r.gas_used).sum::<u64>(), block.header.gas_used);
    assert_eq!(receipts.last().unwrap().inner.cumulative_gas_used(), block.header.gas_used);
    for (index, (one, hash)) in (0u64..).zip(receipts.iter().zip(&hashes)) {
        assert_eq!(Some(one.clone()), provider.get_transaction_receipt(*hash).await.unwrap());
        let by_index = provider.get_transaction_by_block_number_and_index(block.header.number.into(), index as usize);
        assert_eq!(by_index.await.unwrap().unwrap().inner.tx_hash(), hash);
        let nonce =
            alloy::consensus::Transaction::nonce(&provider.get_transaction_by_hash(*hash).await.unwrap().unwrap());
        assert_eq!(nonce, first_nonce + index);
    }
    let all: Vec<_> = receipts.iter().flat_map(|r| r.inner.logs().to_vec()).collect();
    // Per transaction: ImageOpened, then PieceBytes and PieceStored for each of two pieces.
    assert_eq!(all.len(), 15);
    assert!((0u64..).zip(&all).all(|(index, log)| log.log_index == Some(index)));
    let found = async |filter: &Filter| provider.get_logs(filter).await.unwrap();
    let filter = Filter::new().address(to).from_block(0);
    assert_eq!(found(&filter).await, all);
    assert_eq!(found(&filter.clone().at_block_hash(block.header.hash)).await, all);
    let stored = filter.clone().event_signature(Pieces::PieceStored::SIGNATURE_HASH);
    assert_eq!(found(&stored).await.len(), 6);
    let of_image = found(&stored.clone().topic2(B256::repeat_byte(2)).topic3(U256::from(1))).await;
    assert_eq!(of_image.len(), 1);
    let event = of_image[0].log_decode::<Pieces::PieceStored>().unwrap().inner.data;
    assert_eq!((event.source, event.image, event.index), (source.address(), B256::repeat_byte(2), 1));
    assert!(found(&stored.clone().topic1(Address::repeat_byte(1))).await.is_empty());
    assert!(found(&filter.clone().to_block(block.header.number - 1)).await.is_empty());
    assert!(provider.get_logs(&filter.from_block(9).to_block(8)).await.is_err());
}

#[tokio::test]
async fn a_revert_carries_its_reason_and_an_estimate_is_enough() {
    let node = start(|_| {});
    let (provider, mut admin, mut source) = (&node.provider, Account::new(ADMIN), Account::new(2));
    let at = deploy(provider, &mut admin).await;
    define_source(provider, at.sources, &mut admin, &mut source).await;
    let call = Sources::admitCall { source: key(4).address() };
    let request = TransactionRequest::default().from(source.address()).to(at.sources).input(call.abi_encode().into());
    for failure in [provider.call(request.clone()).await.err(), provider.estimate_gas(request).await.err()] {
        let failure = failure.unwrap();
        let payload = failure.as_error_resp().unwrap();
        assert_eq!((payload.code, payload.message.as_ref()), (3, "execution reverted"));
        let error = Sources::NotAdmin::abi_decode(&payload.as_revert_data().unwrap()).unwrap();
        assert_eq!(error.caller, source.address());
    }
    let data: Bytes = (0..120_000u32).map(|i| i.to_le_bytes()[0] | 1).collect::<Vec<u8>>().into();
    let piece = Pieces::storePieceCall { study: B256::repeat_byte(1), image: B256::repeat_byte(2), index: 0, data };
    for mode in [PieceMode::Calldata, PieceMode::Log] {
        let input = piece.abi_encode();
        let to = at.pieces(mode);
        let request = TransactionRequest::default().from(source.address()).to(to).input(input.clone().into());
        let gas = provider.estimate_gas(request).await.unwrap();
        let receipt = source.send_raw(provider, to, input, gas).await;
        assert!(receipt.status(), "{mode:?}");
        assert!(gas < receipt.gas_used + receipt.gas_used / 20, "{gas} for {}", receipt.gas_used);
    }
    let failed = source.send_raw(provider, at.sources, call.abi_encode(), 100_000).await;
    assert!(!failed.status() && failed.inner.logs().is_empty());
}

#[tokio::test]
async fn small_questions_are_answered_as_by_geth() {
    let node = start(|_| {});
    let provider = &node.provider;
    assert_eq!(provider.get_chain_id().await.unwrap(), CHAIN_ID);
    assert_eq!(provider.get_net_version().await.unwrap(), CHAIN_ID);
    assert!(provider.get_client_version().await.unwrap().starts_with("pacs-bridge-ledger/"));
    assert_eq!(provider.get_gas_price().await.unwrap(), 2);
    assert_eq!(provider.get_max_priority_fee_per_gas().await.unwrap(), 1);
    let history = provider.get_fee_history(5, BlockNumberOrTag::Latest, &[20.0]).await.unwrap();
    assert_eq!((history.oldest_block, history.base_fee_per_gas), (0, vec![1, 1]));
    assert!(provider.get_block_by_number(99.into()).await.unwrap().is_none());
    assert!(provider.get_block_receipts(BlockId::number(99)).await.unwrap().is_none());
    assert!(provider.get_transaction_by_hash(B256::ZERO).await.unwrap().is_none());
    for tag in [BlockNumberOrTag::Finalized, BlockNumberOrTag::Safe, BlockNumberOrTag::Earliest] {
        assert_eq!(provider.get_block_by_number(tag).await.unwrap().unwrap().header.number, 0);
    }
    let raw = |method: &'static str, params: serde_json::Value| {
        provider.raw_request::<_, serde_json::Value>(method.into(), params)
    };
    let error = raw("eth_getProof", serde_json::json!([])).await.unwrap_err();
    assert_eq!(error.as_error_resp().unwrap().code, -32601);
    let error = raw("eth_getBalance", serde_json::json!([])).await.unwrap_err();
    assert_eq!(error.as_error_resp().unwrap().code, -32602);
    let overridden =
        serde_json::json!([{}, "latest", {"0x0000000000000000000000000000000000000001": {"balance": "0x1"}}]);
    let error = raw("eth_call", overridden).await.unwrap_err();
    assert!(error.to_string().contains("overrides are not supported"));
    assert_eq!(raw("eth_syncing", serde_json::json!([])).await.unwrap(), serde_json::json!(false));
}

#[tokio::test]
async fn http_gives_the_same_answers_until_it_is_told_to_stop() {
    let node = start(|_| {});
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let server = tokio::spawn(node.ledger.http_server(listener, stop.clone()));
    let http = ProviderBuilder::new().connect_http(format!("http://{address}").parse().unwrap());
    let raw = sign(&key(2), transfer(0));
    let hash = *http.send_raw_transaction(&raw).await.unwrap().tx_hash();
    let there = receipt(&node.provider, hash).await;
    assert_eq!(http.get_transaction_receipt(hash).await.unwrap(), Some(there));
    let mut batch = alloy::rpc::client::BatchRequest::new(http.client());
    let one = batch.add_call::<_, String>("eth_chainId", &()).unwrap();
    let two = batch.add_call::<_, String>("eth_nonsense", &()).unwrap();
    batch.send().await.unwrap();
    assert_eq!(one.await.unwrap(), "0x539");
    assert_eq!(two.await.unwrap_err().as_error_resp().unwrap().code, -32601);

    // What a web page can send without a preflight is refused.
    let plain =
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
    assert!(exchange(address, plain).await.starts_with("HTTP/1.1 415"));
    let broken = "POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{,";
    assert!(exchange(address, broken).await.contains("-32700"));
    let huge = "POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 6000000\r\nconnection: close\r\n\r\n";
    assert!(exchange(address, huge).await.starts_with("HTTP/1.1 413"));

    drop(http);
    stop.cancel();
    server.await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

async fn exchange(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A server that refuses a body may close before it was sent.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_ledger_opens_again_where_it_was_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l.redb");
    let ledger = EmbeddedLedger::open(config(&path)).unwrap();
    let client = provider(&ledger);
    let hash = *client.send_raw_transaction(&sign(&key(2), transfer(0))).await.unwrap().tx_hash();
    receipt(&client, hash).await;
    let head = ledger.head();
    assert!(matches!(EmbeddedLedger::open(config(&path)), Err(OpenError::Store(_))), "two cannot write one file");
    ledger.close();
    assert!(client.get_block_number().await.unwrap_err().to_string().contains("ledger is closed"));

    let other = LedgerConfig { chain_id: 7, ..config(&path) };
    assert!(matches!(EmbeddedLedger::open(other), Err(OpenError::ChainId { found: CHAIN_ID, wanted: 7 })));
    let other = config(&path).with_balance(Address::repeat_byte(1), U256::from(1));
    assert!(matches!(EmbeddedLedger::open(other), Err(OpenError::Genesis { .. })));
    let ledger = EmbeddedLedger::open(config(&path)).unwrap();
    assert_eq!(ledger.head(), head);
    let signature = Signature::from_raw(&head.signature).unwrap();
    assert_eq!(signature.recover_address_from_prehash(&head.hash).unwrap(), key(99).address());
    assert!(provider(&ledger).get_transaction_receipt(hash).await.unwrap().is_some());
}

#[tokio::test]
async fn with_a_period_blocks_come_without_transactions() {
    let node = start(|config| config.block_period_ms = Some(5));
    let head = node.ledger.wait_for_block_after(3).await;
    assert!(head.number >= 4);
    let mut account = Account::new(2);
    assert!(account.send_raw(&node.provider, CELL, vec![1; 32], 100_000).await.status());
    assert!(node.ledger.verify().unwrap().is_sound());
}

/// Changing any table behind the ledger's back shows in a verification.
#[tokio::test]
async fn a_rewritten_file_does_not_verify() {
    const BODIES: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("bodies");
    const RECEIPTS: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("receipts");
    const SLOTS: TableDefinition<'_, [u8; 52], [u8; 32]> = TableDefinition::new("slots");
    const BLOCKS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("blocks");
    type Rewrite = fn(&redb::WriteTransaction);
    let rewrites: [(&str, Rewrite); 4] = [
        ("body", |write| {
            let mut table = write.open_table(BODIES).unwrap();
            let other = table.get((2, 0)).unwrap().unwrap().value().to_vec();
            table.insert((1, 0), other.as_slice()).unwrap();
        }),
        ("receipt", |write| {
            let mut table = write.open_table(RECEIPTS).unwrap();
            let mut bytes = table.get((1, 0)).unwrap().unwrap().value().to_vec();
            bytes[7] ^= 1;
            table.insert((1, 0), bytes.as_slice()).unwrap();
        }),
        ("state", |write| {
            let mut table = write.open_table(SLOTS).unwrap();
            let mut key = [0; 52];
            key[..20].copy_from_slice(CELL.as_slice());
            table.insert(key, [9; 32]).unwrap();
        }),
        ("header", |write| {
            let mut table = write.open_table(BLOCKS).unwrap();
            let mut bytes = table.get(2).unwrap().unwrap().value().to_vec();
            let at = bytes.len() - 60;
            bytes[at] ^= 1;
            table.insert(2, bytes.as_slice()).unwrap();
        }),
    ];
    for (what, rewrite) in rewrites {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l.redb");
        let open = || EmbeddedLedger::open(config(&path).with_code(CELL, CELL_CODE)).unwrap();
        let ledger = open();
        let mut account = Account::new(2);
        for value in 1..4u8 {
            account.send_raw(&provider(&ledger), CELL, vec![value; 32], 100_000).await;
        }
        assert!(ledger.verify().unwrap().is_sound());
        ledger.close();
        let database = Database::open(&path).unwrap();
        let write = database.begin_write().unwrap();
        rewrite(&write);
        write.commit().unwrap();
        drop(database);
        let report = open().verify().unwrap();
        assert!(!report.is_sound(), "a rewritten {what} went unnoticed");
    }
}
