//! The fuzzing corpus and seeded mutations of it, on stable and in every test run. `CORPUS_MUTATIONS` sets how many, 3000 by default.
#![allow(clippy::unwrap_used)]

#[path = "../fuzz/fuzz_targets/exercise.rs"]
mod exercise;
mod support;

use std::path::Path;

use support::Random;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 4, "the corpus is there");
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

fn replay(target: &str, exercise: fn(&[u8])) {
    let seeds = corpus(target);
    seeds.iter().for_each(|seed| exercise(seed));
    let count = std::env::var("CORPUS_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    for number in 1..=count {
        let mut random = Random::seeded(number);
        let seed = &seeds[random.below(seeds.len())];
        let input = random.mutated(seed, &seeds);
        if std::panic::catch_unwind(|| exercise(&input)).is_err() {
            panic!("mutation {number} of {target}: {:?}", String::from_utf8_lossy(&input));
        }
    }
}

#[test]
fn requests() {
    replay("request", exercise::request);
}

#[test]
fn responses() {
    replay("response", exercise::response);
}

#[test]
fn documents() {
    replay("xml", exercise::xml);
}
