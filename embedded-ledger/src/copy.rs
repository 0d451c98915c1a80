//! A chain in a file of its own: what made every block, and from that the whole ledger again.
//!
//! The file is a sequence of RLP lists: first `["pacs-bridge ledger", 1, chain id, hash of the first block, number and hash
//! of the newest]`, then for every block from the second on `[header, signature, [transactions]]`, with transactions in their EIP-2718 form. State and receipts are not in it: they
//! follow, and whoever reads the file executes everything and compares what comes out with every header.
//!
//! This module must not know the pool or JSON-RPC.

use crate::execute::{BlockContext, ExecuteError, Executor};
use crate::pool::check;
use crate::producer::{Receipts, seal};
use crate::state::{BlockState, StateRead};
use crate::store::{BlockRecord, SealedBlock, Snapshot, Store, StoreError, StoredTransaction};
use crate::verify::genesis_of;
use crate::{Head, LedgerConfig};
use alloy::consensus::Header;
use alloy::primitives::{B256, Bytes, Signature};
use alloy::rlp::{Decodable, Encodable, Header as RlpHeader};
use std::io::{self, Read, Write};

/// What a copy begins with.
const TITLE: &str = "pacs-bridge ledger";
/// The form described above.
const FORMAT: u64 = 1;
/// Longest block that is read, in bytes; transactions of a block have 8 MiB.
const BLOCK_BYTES_MAX: usize = 64 << 20;

/// Why a copy could not be made or read, sorted by who has to act.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The operator: the file.
    #[error("the copy of the ledger")]
    File(#[from] io::Error),
    /// The operator: the ledger's own file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operator: it is no such file, or of a later release.
    #[error("this is no copy of a ledger that this release reads")]
    Form,
    /// The operator: it is of another ledger than the one that is configured here.
    #[error("the copy is of chain {found} with first block {first}, not of the one that is configured here")]
    Foreign {
        /// Chain id in the file.
        found: u64,
        /// Hash of its first block.
        first: B256,
    },
    /// The operator: what is in the file is not what was copied.
    #[error("block {block} of the copy is not sound: {what}")]
    Unsound {
        /// Its number.
        block: u64,
        /// What does not agree.
        what: &'static str,
    },
}

/// Writes the chain as of now. Returns its newest block.
pub(crate) fn export(snapshot: &Snapshot, chain_id: u64, out: &mut impl Write) -> Result<Head, CopyError> {
    let first = snapshot.block(0)?.ok_or(StoreError::Corrupt("no first block"))?.hash;
    let head = snapshot.head()?;
    write_list(out, &[&TITLE, &FORMAT, &chain_id, &first, &head.header.number, &head.hash])?;
    for number in 1..=head.header.number {
        let record = snapshot.block(number)?.ok_or(StoreError::Corrupt("a block is missing"))?;
        let one = |index| -> Result<Bytes, StoreError> {
            let transaction = snapshot.transaction(number, index)?;
            Ok(transaction.ok_or(StoreError::Corrupt("a transaction is missing"))?.raw)
        };
        let transactions = (0..record.transactions).map(one).collect::<Result<Vec<_>, _>>()?;
        write_list(out, &[&record.header, &record.signature, &transactions])?;
    }
    Ok(Head::of(&head))
}

fn write_list(out: &mut impl Write, items: &[&dyn Encodable]) -> io::Result<()> {
    let mut payload = Vec::new();
    items.iter().for_each(|item| item.encode(&mut payload));
    let mut head = Vec::new();
    RlpHeader { list: true, payload_length: payload.len() }.encode(&mut head);
    out.write_all(&head)?;
    out.write_all(&payload)
}

/// Makes the ledger again in a store that has none, and compares it with the copy at every block.
pub(crate) fn import(config: &LedgerConfig, store: &Store, input: &mut impl Read) -> Result<Head, CopyError> {
    let genesis = genesis_of(config)?;
    let title = read_list(input)?.ok_or(CopyError::Form)?;
    let (last, hash) = check_title(&title, config.chain_id, genesis.record.hash)?;
    store.write_genesis(config.chain_id, &genesis)?;
    let mut parent = genesis.record;
    while let Some(payload) = read_list(input)? {
        let number = parent.header.number + 1;
        let unsound = |what| CopyError::Unsound { block: number, what };
        let unreadable = |_| unsound("it cannot be read");
        let (head, rest) = BlockHead::decode(&payload).map_err(unreadable)?;
        // Nothing else of it is looked at unless this site made it.
        check_signature(config, &head).map_err(unsound)?;
        let copied = Copied::decode(head, rest).map_err(unreadable)?;
        let block = execute(config, &store.snapshot()?, &parent, &copied)?;
        let mut block = block.ok_or_else(|| unsound("a transaction cannot be executed"))?;
        if block.record.header != copied.header {
            return Err(unsound("executing it again gives another header"));
        }
        block.record.signature = copied.signature;
        store.append(&block, config.history_blocks)?;
        parent = block.record;
    }
    if (parent.header.number, parent.hash) != (last, hash) {
        return Err(CopyError::Unsound {
            block: parent.header.number,
            what: "the copy ends here, and the ledger went on",
        });
    }
    Ok(Head::of(&parent))
}

/// Returns number and hash of the newest block.
fn check_title(mut payload: &[u8], chain_id: u64, first: B256) -> Result<(u64, B256), CopyError> {
    let payload = &mut payload;
    let (title, format) = (String::decode(payload), u64::decode(payload));
    if title.as_deref() != Ok(TITLE) || format != Ok(FORMAT) {
        return Err(CopyError::Form);
    }
    match (u64::decode(payload), B256::decode(payload)) {
        (Ok(found), Ok(hash)) if (found, hash) == (chain_id, first) => {
            let form = |_| CopyError::Form;
            Ok((u64::decode(payload).map_err(form)?, B256::decode(payload).map_err(form)?))
        }
        (Ok(found), Ok(first)) => Err(CopyError::Foreign { found, first }),
        _ => Err(CopyError::Form),
    }
}

/// A header is signed by the key that the configuration names, or it is not this ledger's.
fn check_signature(config: &LedgerConfig, head: &BlockHead) -> Result<(), &'static str> {
    let Some(signer) = &config.signer else { return Ok(()) };
    let hash = head.header.hash_slow();
    let recovered = Signature::from_raw(&head.signature).and_then(|one| one.recover_address_from_prehash(&hash));
    if recovered.is_ok_and(|address| address == signer.address()) {
        Ok(())
    } else {
        Err("its signature is not this site's")
    }
}

struct Copied {
    header: Header,
    signature: Bytes,
    transactions: Vec<Bytes>,
}

/// What stands before a block's transactions.
struct BlockHead {
    header: Header,
    signature: Bytes,
}

impl BlockHead {
    /// With what follows.
    fn decode(mut payload: &[u8]) -> alloy::rlp::Result<(Self, &[u8])> {
        let head = Self { header: Header::decode(&mut payload)?, signature: Bytes::decode(&mut payload)? };
        Ok((head, payload))
    }
}

impl Copied {
    fn decode(head: BlockHead, mut rest: &[u8]) -> alloy::rlp::Result<Self> {
        let BlockHead { header, signature } = head;
        let copied = Self { header, signature, transactions: Vec::decode(&mut rest)? };
        if rest.is_empty() { Ok(copied) } else { Err(alloy::rlp::Error::UnexpectedLength) }
    }
}

/// The block that these transactions make on this state; none when one of them cannot be executed there.
fn execute(
    config: &LedgerConfig,
    base: &dyn StateRead,
    parent: &BlockRecord,
    copied: &Copied,
) -> Result<Option<SealedBlock>, StoreError> {
    let header = &copied.header;
    let context = BlockContext {
        chain_id: config.chain_id,
        number: parent.header.number + 1,
        timestamp: header.timestamp,
        gas_limit: header.gas_limit,
        beneficiary: header.beneficiary,
    };
    let mut state = BlockState::new(base);
    let (mut receipts, mut transactions) = (Receipts::default(), Vec::new());
    let mut executor = Executor::new(&mut state, &context);
    for raw in &copied.transactions {
        let Ok(checked) = check(raw.clone(), config.chain_id, header.gas_limit) else { return Ok(None) };
        match executor.execute(&checked.tx, checked.sender) {
            Ok(result) => receipts.add(&checked, result),
            Err(ExecuteError::Invalid(_)) => return Ok(None),
            Err(ExecuteError::Store(error)) => return Err(error),
        }
        transactions.push(StoredTransaction { hash: checked.hash(), sender: checked.sender, raw: raw.clone() });
    }
    drop(executor);
    Ok(Some(seal(parent, &context, state.finish()?, transactions, receipts, None)))
}

/// The payload of the next list; none at the end of the file.
fn read_list(input: &mut impl Read) -> Result<Option<Vec<u8>>, CopyError> {
    let mut head = [0; 9];
    if input.read(&mut head[..1])? == 0 {
        return Ok(None);
    }
    let long = match head[0] {
        0xC0..=0xF7 => 0,
        first @ 0xF8.. => usize::from(first - 0xF7),
        _ => return Err(CopyError::Form),
    };
    input.read_exact(&mut head[1..=long])?;
    let bytes = length_of(&head[..=long]).filter(|bytes| *bytes <= BLOCK_BYTES_MAX).ok_or(CopyError::Form)?;
    let mut payload = vec![0; bytes];
    match input.read_exact(&mut payload) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(CopyError::Form),
        read => Ok(read.map(|()| Some(payload))?),
    }
}

/// Length of the payload of a list, by its head.
fn length_of(head: &[u8]) -> Option<usize> {
    match head {
        [short] => Some(usize::from(*short - 0xC0)),
        [_, digits @ ..] => {
            digits.iter().try_fold(0_usize, |all, digit| all.checked_mul(256)?.checked_add(usize::from(*digit)))
        }
        [] => None,
    }
}
