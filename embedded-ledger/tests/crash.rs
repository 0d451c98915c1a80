//! What a receipt promises: after a power cut or `kill -9`, every transaction that had one is there, and the chain is sound.
#![allow(clippy::unwrap_used)]

mod support;

use alloy::primitives::{Address, B256, Bytes};
use alloy::providers::Provider;
use embedded_ledger::{EmbeddedLedger, LedgerConfig, StorageBackend};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use support::*;

/// Stores 1 at the slot named by its input.
const SETTER: Address = Address::repeat_byte(0x5e);
const SETTER_CODE: [u8; 6] = [0x60, 1, 0x60, 0, 0x35, 0x55];

fn crash_config(path: &Path) -> LedgerConfig {
    config(path).with_code(SETTER, SETTER_CODE)
}

/// A disk whose power fails: unsynced writes are then kept, dropped or torn, each by chance. Length changes are durable at once.
#[derive(Debug, Default)]
struct Disk {
    /// What a read returns.
    current: Vec<u8>,
    /// What surely survives.
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
    /// Operations until the power fails.
    left: u64,
}

#[derive(Clone, Debug)]
struct Backend(Arc<Mutex<Disk>>);

impl Disk {
    fn spend(&mut self) -> io::Result<()> {
        self.left = self.left.checked_sub(1).ok_or_else(|| io::Error::other("power is off"))?;
        Ok(())
    }

    fn after_power_cut(&self, rng: &mut StdRng) -> Vec<u8> {
        let mut image = self.durable.clone();
        image.resize(self.current.len(), 0);
        for (offset, data) in &self.unsynced {
            let survives = match rng.gen_range(0..3) {
                0 => 0,
                1 => data.len(),
                _ => rng.gen_range(0..=data.len()) & !511,
            };
            let end = (offset + survives).min(image.len());
            if *offset < end {
                image[*offset..end].copy_from_slice(&data[..end - offset]);
            }
        }
        image
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock().unwrap();
        let from = usize::try_from(offset).unwrap();
        let stored = disk.current.get(from..from + out.len()).ok_or_else(|| io::Error::other("read past the end"))?;
        out.copy_from_slice(stored);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.spend()?;
        let len = usize::try_from(len).unwrap();
        disk.current.resize(len, 0);
        disk.durable.resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.spend()?;
        for (offset, data) in std::mem::take(&mut disk.unsynced) {
            let end = (offset + data.len()).min(disk.durable.len());
            if offset < end {
                disk.durable[offset..end].copy_from_slice(&data[..end - offset]);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.spend()?;
        let offset = usize::try_from(offset).unwrap();
        disk.current[offset..offset + data.len()].copy_from_slice(data);
        disk.unsynced.push((offset, data.to_vec()));
        Ok(())
    }
}

/// Writes until the power fails; returns what was acknowledged and what the disk holds then.
async fn write_until_power_cut(image: Vec<u8>, round: u64, left: u64, rng: &mut StdRng) -> (Vec<B256>, Vec<u8>) {
    let disk = Disk { durable: image.clone(), current: image, left, ..Disk::default() };
    let backend = Backend(Arc::new(Mutex::new(disk)));
    let mut acknowledged = Vec::new();
    // The power may fail while opening: then nothing is acknowledged.
    if let Ok(ledger) = EmbeddedLedger::open_backend(crash_config(Path::new("unused")), backend.clone()) {
        let provider = provider(&ledger);
        let mut accounts = [Account::new(2), Account::new(3)];
        for account in &mut accounts {
            account.nonce = provider.get_transaction_count(account.address()).await.unwrap();
        }
        'power: for step in 0u64.. {
            let mut sent = Vec::new();
            for account in &mut accounts {
                for _ in 0..rng.gen_range(1..4) {
                    let mut input = B256::from(alloy::primitives::U256::from(round * 1000 + step)).to_vec();
                    input.resize(32 + rng.gen_range(0..6000), 7);
                    let raw = account.sign(SETTER, input, 300_000);
                    let Ok(pending) = provider.send_raw_transaction(&raw).await else { break 'power };
                    sent.push(*pending.tx_hash());
                }
            }
            for hash in sent {
                while provider.get_transaction_receipt(hash).await.ok().flatten().is_none() {
                    if backend.0.lock().unwrap().left == 0 {
                        break 'power;
                    }
                    tokio::task::yield_now().await;
                }
                acknowledged.push(hash);
            }
        }
    }
    let image = backend.0.lock().unwrap().after_power_cut(rng);
    (acknowledged, image)
}

async fn power_cuts(seed: u64, rounds: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut image, mut acknowledged) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let left = rng.gen_range(1..400);
        let (new, after) = write_until_power_cut(image, round, left, &mut rng).await;
        acknowledged.extend(new);
        let disk = Disk { durable: after.clone(), current: after.clone(), left: u64::MAX, ..Disk::default() };
        let backend = Backend(Arc::new(Mutex::new(disk)));
        let ledger = EmbeddedLedger::open_backend(crash_config(Path::new("unused")), backend).unwrap();
        check(&ledger, &acknowledged, &format!("seed {seed} round {round}")).await;
        image = after;
    }
    assert!(!acknowledged.is_empty(), "seed {seed}: nothing was acknowledged, so nothing was tested");
}

async fn check(ledger: &EmbeddedLedger, acknowledged: &[B256], when: &str) {
    let provider = provider(ledger);
    for hash in acknowledged {
        let receipt = provider.get_transaction_receipt(*hash).await.unwrap();
        assert!(receipt.is_some_and(|receipt| receipt.status()), "{when}: {hash} had a receipt and is gone");
    }
    let report = ledger.verify().unwrap();
    assert!(report.is_sound(), "{when}: {:?}", report.defects);
    assert!(report.transactions >= acknowledged.len() as u64, "{when}");
}

#[tokio::test]
async fn a_power_cut_takes_nothing_that_had_a_receipt() {
    for seed in 0..12 {
        power_cuts(seed, 5).await;
    }
}

/// After a failed write nothing is accepted any more, until the ledger was reopened.
#[tokio::test]
async fn a_failed_write_stops_intake() {
    let disk = Disk { left: u64::MAX, ..Disk::default() };
    let backend = Backend(Arc::new(Mutex::new(disk)));
    let ledger = EmbeddedLedger::open_backend(crash_config(Path::new("unused")), backend.clone()).unwrap();
    let provider = provider(&ledger);
    let mut account = Account::new(2);
    let first = account.sign(SETTER, B256::repeat_byte(1), 300_000);
    let first = *provider.send_raw_transaction(&first).await.unwrap().tx_hash();
    receipt(&provider, first).await;
    backend.0.lock().unwrap().left = 0;
    let lost = account.sign(SETTER, B256::repeat_byte(2), 300_000);
    let lost = *provider.send_raw_transaction(&lost).await.unwrap().tx_hash();
    let refusal = loop {
        let next = account.sign(SETTER, B256::repeat_byte(3), 300_000);
        if let Err(refusal) = provider.send_raw_transaction(&next).await {
            break refusal.to_string();
        }
        tokio::task::yield_now().await;
    };
    assert!(refusal.contains("until it is reopened"), "{refusal}");
    // The disk is full again of power, but this ledger does not trust it any more; a new one does.
    backend.0.lock().unwrap().left = u64::MAX;
    let next = account.sign(SETTER, B256::repeat_byte(3), 300_000);
    assert!(provider.send_raw_transaction(&next).await.is_err());
    assert!(provider.get_transaction_receipt(lost).await.unwrap().is_none());
    assert!(provider.get_transaction_receipt(first).await.unwrap().is_some());
    ledger.close();
    let ledger = EmbeddedLedger::open_backend(crash_config(Path::new("unused")), backend).unwrap();
    check(&ledger, &[first], "reopened").await;
}

const CHILD: &str = "EMBEDDED_LEDGER_TEST_CHILD";

/// Not a test by itself: the process that is killed. Prints the hash of every transaction that has a receipt.
#[tokio::test]
async fn child_that_is_killed() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let ledger = EmbeddedLedger::open(crash_config(Path::new(&path))).unwrap();
    let provider = provider(&ledger);
    let mut account = Account::new(2);
    account.nonce = provider.get_transaction_count(account.address()).await.unwrap();
    loop {
        let mut sent = Vec::new();
        for _ in 0..8 {
            let mut input = B256::from(alloy::primitives::U256::from(account.nonce)).to_vec();
            input.resize(20_000, 3);
            let raw: Bytes = account.sign(SETTER, input, 500_000);
            sent.push(*provider.send_raw_transaction(&raw).await.unwrap().tx_hash());
        }
        for hash in sent {
            receipt(&provider, hash).await;
            println!("\nacknowledged {hash}");
            io::stdout().flush().unwrap();
        }
    }
}

#[tokio::test]
async fn a_killed_process_loses_nothing_that_had_a_receipt() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l.redb");
    let mut rng = StdRng::seed_from_u64(9);
    let mut acknowledged = Vec::new();
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_is_killed", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = io::BufReader::new(child.stdout.take().unwrap()).lines();
        let mut until = rng.gen_range(1..60);
        for line in &mut lines {
            let Ok(line) = line else { break };
            if let Some(hash) = line.strip_prefix("acknowledged ") {
                acknowledged.push(hash.parse::<B256>().unwrap());
                until -= 1;
                if until == 0 {
                    child.kill().unwrap();
                    break;
                }
            }
        }
        // What it had printed before it died counts too.
        for line in lines.map_while(Result::ok) {
            acknowledged.extend(line.strip_prefix("acknowledged ").and_then(|hash| hash.parse::<B256>().ok()));
        }
        child.wait().unwrap();
        let ledger = EmbeddedLedger::open(crash_config(&path)).unwrap();
        check(&ledger, &acknowledged, &format!("round {round}")).await;
        ledger.close();
    }
    assert!(acknowledged.len() > 6);
}
