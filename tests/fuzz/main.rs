//! Each fuzz target over its committed corpus: what once found a fault, and what reaches far into a reader. `cargo xtask fuzz`
//! goes on from there.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

mod bounds;
mod targets;

use std::path::{Path, PathBuf};

use targets::TARGETS;

/// Most bytes of a target's corpus: it is read by every test run, and by people.
const CORPUS_BYTES_MAX: u64 = 64 << 10;

fn corpus(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Gives a target its corpus, and a few inputs that every reader must survive.
fn replay(name: &str) {
    let target = targets::named(name).unwrap();
    let files = corpus(name);
    assert!(!files.is_empty(), "the corpus of `{name}` is empty");
    let size: u64 = files.iter().map(|file| file.metadata().unwrap().len()).sum();
    assert!(size <= CORPUS_BYTES_MAX, "the corpus of `{name}` has {size} bytes, of at most {CORPUS_BYTES_MAX}");
    for file in &files {
        let whole = std::fs::read(file).unwrap();
        for input in [&whole[..], &whole[..whole.len() / 2], &whole[..whole.len().saturating_sub(1)]] {
            if let Err(why) = bounds::check(target, input) {
                panic!("{}, {} bytes of it: {why}", file.display(), input.len());
            }
        }
    }
    for input in [&b""[..], b"\0", &[0xff; 300], &[b'['; 4096], &[b' '; 4096]] {
        bounds::check(target, input).unwrap_or_else(|why| panic!("{input:?}: {why}"));
    }
}

#[test]
fn request_bodies() {
    replay("requests");
}

#[test]
fn worker_frames() {
    replay("frames");
}

#[test]
fn manifests() {
    replay("manifest");
}

#[test]
fn models_yaml() {
    replay("config");
}

#[test]
fn gguf_files() {
    replay("gguf");
}

#[test]
fn safetensors_files() {
    replay("safetensors");
}

#[test]
fn pickled_checkpoints() {
    replay("pickle");
}

#[test]
fn tokenizer_files() {
    replay("tokenizer");
}

#[test]
fn chat_templates() {
    replay("template");
}

/// A target without a test above, or a corpus without a target, would be forgotten.
#[test]
fn every_target_has_its_corpus_and_its_test() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let mut there: Vec<_> = std::fs::read_dir(folder.join("corpus"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    there.sort();
    let mut named: Vec<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    named.sort();
    assert_eq!(there, named);
    let tests = include_str!("main.rs");
    for name in named {
        assert!(tests.contains(&format!("replay(\"{name}\")")), "`{name}` has no test");
    }
}

/// Every endpoint that reads a body is among those that the target sends to.
#[test]
fn every_endpoint_that_reads_a_body_is_fuzzed() {
    let output =
        std::process::Command::new(aihost_tests::binary()).args(["generated-page", "requests"]).output().unwrap();
    let endpoints: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    // Those of other APIs, whose refusals have other forms, of jobs, which need a store, and of what is counted: the host's own `http::tests::fuzz` has them.
    let is_elsewhere = |path: &str| {
        let others = ["/v1/jobs", "/v1/responses", "/responses", "/v1/messages", "/api/", "/tokenize", "/detokenize"];
        others.iter().any(|other| path.starts_with(other)) || path.ends_with("/input_tokens")
    };
    let paths = endpoints.as_array().unwrap().iter().map(|endpoint| endpoint["path"].as_str().unwrap());
    let paths: Vec<_> = paths.filter(|path| !is_elsewhere(path)).collect();
    assert_eq!(targets::ENDPOINTS.to_vec(), paths);
}

/// The bounds themselves are seen to fail.
#[test]
fn what_takes_too_much_or_panics_is_found() {
    let target =
        |run: fn(&[u8])| targets::Target { name: "a", run, copies: 4, extra_bytes: 1 << 20, time: targets::Time::Own };
    let verdict = |run: fn(&[u8])| bounds::check(&target(run), &[0; 100]).unwrap_err();
    assert!(verdict(|_| drop(std::hint::black_box(vec![1_u8; 2 << 20]))).contains("bytes of memory"));
    assert!(verdict(|input| assert!(input.is_empty(), "as asked")).contains("panicked"));
    assert_eq!(bounds::check(&target(|_| {}), &[0; 100]), Ok(()));
}
