//! Consent on the ledger against a model in Rust: every call succeeds exactly when the model says so, and after every step
//! everybody may see exactly what the model says.
#![allow(clippy::unwrap_used, non_snake_case)]

#[path = "support/mod.rs"]
mod chain;
#[path = "support/histories.rs"]
mod histories;

use std::collections::BTreeMap;

use histories::{DELAY, Model, START, STUDIES, Step, Terms, World, step};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

proptest! {
    // The same histories on every run; PROPTEST_RNG_SEED has no say, so that a failure here is a failure everywhere.
    #![proptest_config(ProptestConfig {
        cases: 8,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(20_261_120),
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    })]

    #[test]
    fn everybody_sees_what_the_owners_signed_and_no_more(steps in prop::collection::vec(step(), 60..110)) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut model = Model::default();
            let mut world = World::new(&dir.path().join("l.redb"), START, BTreeMap::new(), &mut model).await;
            let (mut history, mut accepted) = (Vec::new(), 0);
            for step in &steps {
                let step = model.resolve(step, &history);
                let expected = model.take(&step).is_some();
                accepted += usize::from(expected);
                assert_eq!(world.take(&step).await, expected, "{step:?}\n{model:#?}");
                world.compare(&model, STUDIES, &step).await;
                if !matches!(step, Step::Wait { .. }) {
                    history.push(step);
                }
            }
            assert!(accepted >= 15, "only {accepted} of {} steps did anything", steps.len());
            assert!(world.ledger.verify().unwrap().is_sound());
        });
    }
}

/// The hashes that Rust signs are the contracts', for every message: each of these calls would be refused otherwise.
#[tokio::test]
async fn every_message_signed_in_rust_is_understood_by_the_contracts() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = Model::default();
    let mut world = World::new(&dir.path().join("l.redb"), START, BTreeMap::new(), &mut model).await;
    let (by, study, grantee, signer) = (7, 1, 3, 11);
    let terms = Terms { series: 1, mode: 1, from: START, to: START + 50, purpose: 3 };
    let later = u64::from(DELAY);
    let steps = [
        Step::Request { by: 4, study },
        Step::Deny { by, study, grantee, signer, seq: 1 },
        Step::Allow { by, study, grantee, signer, seq: 2, deadline: START + 9, terms },
        Step::Revoke { by, study, grantee, signer, seq: 3, deadline: START + 9 },
        Step::DemandApproval { by: 3, required: true },
        Step::BreakGlass { by: 4, source: 3, study, until: START + 100, approver: 5, signer: 5 },
        Step::NameGuardians { by, study, signer, seq: 1, some: true },
        Step::Propose { by, study, signers: 3, seq: 2, to: 12 },
        Step::Veto { by, study, signer, seq: 3 },
        Step::Propose { by, study, signers: 5, seq: 4, to: 12 },
        Step::Wait { seconds: later },
        Step::Complete { by, study },
        Step::Transfer { by, study, signer: 12, seq: 6, deadline: u64::MAX, to: 13 },
        Step::Tombstone { by, study, signer: 13, seq: 7 },
    ];
    for step in &steps {
        assert!(world.take(step).await, "{step:?}");
        assert!(model.take(step).is_some(), "{step:?}");
        world.compare(&model, STUDIES, step).await;
    }
}
