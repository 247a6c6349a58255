//! What is fuzzed: bytes in, a panic when a promise is broken. Compiled for fuzzing and for tests only.
//!
//! A target of `fuzz/fuzz_targets/` calls one of these functions. The committed corpora are run through the same
//! functions by a test here, so that what a fuzzer once found stays found. `parsers` has those that read one text,
//! `request` those that send a request all the way to an answer.

mod parsers;
mod request;

pub use parsers::{
    cache_control, commands, config, field, patterns, secret_id, secret_path, secrets_file, units,
};
pub use request::{headers, query, request, sdk_body};

/// What is run with each input.
pub type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: &[(&str, Target)] = &[
    ("cache_control", cache_control),
    ("commands", commands),
    ("config", config),
    ("field", field),
    ("headers", headers),
    ("patterns", patterns),
    ("query", query),
    ("request", request),
    ("sdk_body", sdk_body),
    ("secret_id", secret_id),
    ("secret_path", secret_path),
    ("secrets_file", secrets_file),
    ("units", units),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    fn in_fuzz(folder: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(folder)
    }

    fn names_in(folder: &str) -> BTreeSet<String> {
        let entries = fs::read_dir(in_fuzz(folder)).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn every_seed_keeps_every_promise() {
        let mut broken = Vec::new();
        for (name, target) in TARGETS {
            let seeds = fs::read_dir(in_fuzz("corpus").join(name)).unwrap();
            let mut count = 0;
            for seed in seeds.map(|entry| entry.unwrap().path()) {
                let data = fs::read(&seed).unwrap();
                if std::panic::catch_unwind(|| target(&data)).is_err() {
                    broken.push(seed);
                }
                count += 1;
            }
            assert!(count >= 3, "{name} has {count} seeds");
        }
        assert!(broken.is_empty(), "{broken:?}");
    }

    #[test]
    fn every_target_has_a_program_and_a_corpus() {
        let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(names_in("fuzz_targets"), targets);
        assert_eq!(names_in("corpus"), targets);
        let manifest: toml::Table = fs::read_to_string(in_fuzz("Cargo.toml")).unwrap().parse().unwrap();
        let programs = manifest["bin"].as_array().unwrap().iter();
        let programs: BTreeSet<String> =
            programs.map(|program| program["name"].as_str().unwrap().to_owned()).collect();
        assert_eq!(programs, targets);
    }
}
