//! The first block of a network, in the form that geth and Besu read. Pure: the same plan and keys give the same octets.

use std::collections::BTreeMap;

use alloy::primitives::{Address, U256, hex};
use contracts::deployment::{DEPLOYER, DEPLOYER_CODE};
use contracts::validators;
use serde_json::{Value, json};

use super::besu;
use super::plan::{BLOCK_GAS_LIMIT, Engine, Plan};

/// What every account gets that is to send transactions: 10^30 wei, more than is ever spent at one wei a unit of gas.
const FUNDS_DECIMALS: u64 = 30;
/// Blocks between two at which votes on signers lapse (EIP-225).
const CLIQUE_EPOCH: u64 = 30_000;
/// Octets before and after the signers in the extra data of the first block (EIP-225).
const CLIQUE_VANITY: usize = 32;
const CLIQUE_SEAL: usize = 65;
/// Blocks between two at which votes on validators lapse. There are none where a contract names them, and Besu wants the number all the same.
const QBFT_EPOCH: u64 = 30_000;
/// By which a header of QBFT is known.
const QBFT_MIX_HASH: &str = "0x63746963616c2062797a616e74696e65206661756c7420746f6c6572616e6365";
/// RLP of 32 octets, no validators, no vote, round 0, no seals: the contract names the validators.
const QBFT_EXTRA: &str = "0xe5a00000000000000000000000000000000000000000000000000000000000000000c0c080c0";

/// The first block, for a plan whose nodes sign with `signers`.
#[must_use]
pub fn genesis(plan: &Plan, signers: &[Address]) -> Value {
    let config = config(plan);
    let extra = match plan.engine {
        Engine::Clique => clique_extra(signers),
        Engine::Qbft => QBFT_EXTRA.to_owned(),
    };
    let mut block = json!({
        "config": config,
        "difficulty": "0x1",
        "gasLimit": format!("{BLOCK_GAS_LIMIT:#x}"),
        // One wei from the first block on: where gas costs nothing, geth does not pass transactions on.
        "baseFeePerGas": "0x1",
        "extraData": extra,
        "alloc": alloc(plan, signers),
    });
    if plan.engine == Engine::Qbft {
        block["mixHash"] = QBFT_MIX_HASH.into();
        block["nonce"] = "0x0".into();
        block["timestamp"] = "0x0".into();
        block["coinbase"] = Address::ZERO.to_string().into();
    }
    block
}

/// All forks up to London from the first block on: Clique knows no later ones, and contracts are compiled for them.
fn config(plan: &Plan) -> Value {
    let mut config = json!({ "chainId": plan.chain_id });
    let forks = [
        "homestead",
        "eip150",
        "eip155",
        "eip158",
        "byzantium",
        "constantinople",
        "petersburg",
        "istanbul",
        "berlin",
        "london",
    ];
    for fork in forks {
        config[format!("{fork}Block")] = 0.into();
    }
    match plan.engine {
        Engine::Clique => config["clique"] = json!({ "period": plan.block_period_s, "epoch": CLIQUE_EPOCH }),
        Engine::Qbft => {
            config["qbft"] = json!({
                "epochlength": QBFT_EPOCH,
                "blockperiodseconds": plan.block_period_s,
                "requesttimeoutseconds": 2 * plan.block_period_s,
                "validatorcontractaddress": hex::encode_prefixed(validators::ADDRESS),
            });
        }
    }
    config
}

fn clique_extra(signers: &[Address]) -> String {
    let mut sorted = signers.to_vec();
    sorted.sort_unstable();
    let signers = sorted.iter().flat_map(|signer| signer.into_array());
    let octets: Vec<u8> =
        std::iter::repeat_n(0, CLIQUE_VANITY).chain(signers).chain(std::iter::repeat_n(0, CLIQUE_SEAL)).collect();
    hex::encode_prefixed(octets)
}

fn alloc(plan: &Plan, signers: &[Address]) -> Value {
    let funds = format!("{:#x}", U256::from(10).pow(U256::from(FUNDS_DECIMALS)));
    let bridges = plan.sites.iter().filter_map(|site| site.bridge);
    let funded = signers.iter().copied().chain(bridges).chain(plan.fund.iter().copied());
    let mut alloc: BTreeMap<Address, Value> = funded.map(|account| (account, json!({ "balance": funds }))).collect();
    // Through this, contracts have the same addresses at every consortium with the same administrator.
    alloc.insert(DEPLOYER, json!({ "balance": "0x0", "code": hex::encode_prefixed(DEPLOYER_CODE) }));
    if plan.engine == Engine::Qbft {
        alloc.insert(validators::ADDRESS, validators_account(plan, signers));
    }
    alloc
        .into_iter()
        .map(|(account, value)| (hex::encode_prefixed(account), value))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// The contract that names the validators, with its state.
fn validators_account(plan: &Plan, signers: &[Address]) -> Value {
    let storage = besu::first_state(plan, signers).storage();
    let storage: BTreeMap<String, String> =
        storage.into_iter().map(|(slot, value)| (slot.to_string(), value.to_string())).collect();
    json!({ "balance": "0x0", "code": hex::encode_prefixed(validators::runtime_code()), "storage": storage })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_first_block_of_clique_is_as_eip_225_has_it() {
        let plan = "name = \"n\"\nengine = \"clique\"\nchain_id = 7\nblock_period_s = 5\n\
                    fund = [\"0x3333333333333333333333333333333333333333\"]\n[[site]]\nname = \"a\"\nhost = \"h\"\n\
                    bridge = \"0x4444444444444444444444444444444444444444\"\nnodes = 2\n";
        let plan = Plan::parse(plan).unwrap();
        let (late, early) = (Address::repeat_byte(0x22), Address::repeat_byte(0x11));
        let block = genesis(&plan, &[late, early]);
        let extra = format!("0x{}{}{}{}", "00".repeat(32), "11".repeat(20), "22".repeat(20), "00".repeat(65));
        assert_eq!(block["extraData"], extra, "signers are in order");
        assert_eq!(block["config"]["clique"], json!({ "period": 5, "epoch": 30_000 }));
        assert_eq!((&block["config"]["londonBlock"], &block["config"]["chainId"]), (&json!(0), &json!(7)));
        assert!(
            block["config"].get("shanghaiTime").is_none() && block["config"].get("terminalTotalDifficulty").is_none()
        );
        assert_eq!((&block["gasLimit"], &block["baseFeePerGas"]), (&json!("0x2625a00"), &json!("0x1")));
        let alloc = block["alloc"].as_object().unwrap();
        assert_eq!(alloc.len(), 5, "two signers, a bridge, one more, and the deployer");
        let code = &alloc[&hex::encode_prefixed(DEPLOYER)]["code"];
        assert_eq!(code, &json!(hex::encode_prefixed(DEPLOYER_CODE)));
        for account in ["11", "22", "33", "44"] {
            assert_eq!(alloc[&format!("0x{}", account.repeat(20))]["balance"], "0xc9f2c9cd04674edea40000000");
        }
    }
}
