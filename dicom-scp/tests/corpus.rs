//! The fuzzing corpus and seeded mutations of it, on stable and in every test run. `CORPUS_MUTATIONS` sets how many, 5000 by default.
#![allow(clippy::unwrap_used)]

#[path = "../fuzz/fuzz_targets/exercise.rs"]
mod exercise;

use std::path::Path;

/// xorshift: enough to choose mutations, and the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 5, "the corpus is there");
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

fn mutated(seed: &[u8], others: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes.truncate(at),
            1 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            2 if !bytes.is_empty() => bytes[at] = [0x00, 0xff, 0x7f, 0x80, b'\\', 0x1b][random.below(6)],
            3 => {
                let end = at + random.below(bytes.len() - at + 1);
                let copy = bytes[at..end].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
            4 => {
                let other = &others[random.below(others.len())];
                let from = random.below(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => {
                let end = at + random.below(bytes.len() - at + 1);
                bytes.drain(at..end);
            }
        }
    }
    bytes
}

fn replay(target: &str, exercise: fn(&[u8])) {
    let seeds = corpus(target);
    seeds.iter().for_each(|seed| exercise(seed));
    let count = std::env::var("CORPUS_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(5000);
    for number in 1..=count {
        let mut random = Random(u64::wrapping_mul(number, 0x9e37_79b9_7f4a_7c15));
        let input = mutated(&seeds[random.below(seeds.len())], &seeds, &mut random);
        if std::panic::catch_unwind(|| exercise(&input)).is_err() {
            panic!("mutation {number} of {target}: {input:02x?}");
        }
    }
}

#[test]
fn data_sets() {
    replay("dataset", exercise::dataset);
}

#[test]
fn messages() {
    replay("message", exercise::message);
}
