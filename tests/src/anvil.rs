//! anvil as the ledger's node, with a clock that a test moves.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use alloy::providers::{DynProvider, Provider as _, ProviderBuilder};
use tokio::runtime::Runtime;

use crate::skip;

/// Key of the first account that anvil funds.
pub const ANVIL_KEY: &str = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
/// Its chain id.
pub const ANVIL_CHAIN_ID: u64 = 31337;

/// anvil under London rules on a free port of 127.0.0.1. Ends with the value.
pub struct Anvil {
    child: Child,
    pub url: String,
    provider: DynProvider,
    runtime: Runtime,
}

impl Drop for Anvil {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Anvil {
    /// Starts anvil from `ANVIL`, the path, or the contracts' npm modules, with its clock at `timestamp`; none if it is nowhere.
    pub fn start_at(timestamp: u64) -> Option<Self> {
        let modules =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../contracts/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil");
        let named = std::env::var("ANVIL").ok();
        let started = [named.as_deref(), Some("anvil"), Some(modules)].into_iter().flatten().find_map(|program| {
            Command::new(program)
                .args(["--hardfork", "london", "--port", "0", "--gas-limit", "40000000", "--no-request-size-limit"])
                .args(["--timestamp", &timestamp.to_string()])
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .ok()
        });
        let Some(mut child) = started else {
            skip("anvil");
            return None;
        };
        let mut lines = BufReader::new(child.stdout.take()?).lines();
        let listening = lines.find_map(|line| line.ok()?.strip_prefix("Listening on ").map(str::to_owned))?;
        std::thread::spawn(move || lines.for_each(drop));
        let url = format!("http://{listening}");
        let provider = ProviderBuilder::new().connect_http(url.parse().unwrap()).erased();
        Some(Self { child, url, provider, runtime: Runtime::new().unwrap() })
    }

    /// Lets time pass on the chain.
    pub fn pass(&self, seconds: u64) {
        self.runtime.block_on(async {
            let _: serde_json::Value = self.provider.raw_request("evm_increaseTime".into(), (seconds,)).await.unwrap();
            let _: serde_json::Value = self.provider.raw_request("evm_mine".into(), ()).await.unwrap();
        });
    }
}
