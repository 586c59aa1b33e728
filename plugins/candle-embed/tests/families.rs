//! Tiny encoders of every family, on both backends, held against transformers (tests/golden/embed/generate.py).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use aihost_engine::candle::CandleOps;
use aihost_engine::cpu::Cpu;
use aihost_engine::nn::encoder::Sequences;
use aihost_engine::ops::Ops;
use aihost_plugin_api::LoadRequest;
use candle_core::{DType, Device};
use candle_embed::family::FAMILIES;
use candle_embed::files::ModelFiles;
use candle_embed::network::Network;
use safetensors::SafeTensors;

const LENGTHS: [usize; 2] = [24, 40];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/embed/families")
}

fn names() -> Vec<String> {
    let entries = std::fs::read_dir(folder()).expect("golden data is in the repository");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("read").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

fn files(name: &str) -> ModelFiles {
    let model = folder().join(name).join("model.safetensors");
    ModelFiles::open(&LoadRequest::new("cpu", [("model".to_owned(), model)].into())).unwrap_or_else(|e| panic!("{e}"))
}

/// The tokens of both sequences, and what the reference makes of them.
fn golden(name: &str) -> (Vec<u32>, Vec<f32>) {
    let bytes = std::fs::read(folder().join(name).join("outputs.safetensors")).expect("golden data");
    let tensors = SafeTensors::deserialize(&bytes).expect("golden data is valid");
    let words = |name: &str| tensors.tensor(name).map(|tensor| tensor.data().as_chunks::<4>().0.to_vec());
    let wanted = words("vectors").or_else(|_| words("scores")).expect("one of both");
    let tokens = words("tokens").expect("tokens").into_iter().map(u32::from_le_bytes).collect();
    (tokens, wanted.into_iter().map(f32::from_le_bytes).collect())
}

fn given<O: Ops>(ops: O, files: &ModelFiles, sequences: &Sequences) -> Vec<f32> {
    let network = Network::open(ops, &files.tensors, files.config.clone(), 64).unwrap_or_else(|e| panic!("{e}"));
    match network.score(sequences).expect("computes") {
        Some(scores) => scores,
        None => network.vectors(sequences).expect("computes"),
    }
}

fn sequences(tokens: &[u32], lengths: &[usize]) -> Sequences {
    Sequences { tokens: tokens.to_vec(), kinds: vec![0; tokens.len()], lengths: lengths.to_vec() }
}

#[test]
fn every_family_has_a_golden_model() {
    let found: BTreeSet<String> = names().iter().map(|name| files(name).architecture).collect();
    // Decoders are of the families of candle-llm, whose goldens are many: here is one that sees what was, and one that sees all.
    let wanted = FAMILIES.iter().map(|family| family.model_types[0]).chain(["qwen3", "gemma3_text"]);
    assert_eq!(found, wanted.map(str::to_owned).collect());
}

#[test]
fn vectors_and_scores_equal_the_reference() {
    for name in names() {
        let (tokens, wanted) = golden(&name);
        let (files, both) = (files(&name), sequences(&tokens, &LENGTHS));
        for (backend, found) in [
            ("cpu", given(Cpu, &files, &both)),
            ("candle", given(CandleOps::new(Device::Cpu, DType::F32), &files, &both)),
        ] {
            assert_eq!(found.len(), wanted.len(), "{name}");
            let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let error = norm(&mut found.iter().zip(&wanted).map(|(a, b)| a - b)) / norm(&mut wanted.iter().copied());
            println!("{name} {backend}: {error:.1e}");
            // The cache of the host's cores is of half precision.
            let most = if name == "qwen3" && backend == "cpu" { 2e-3 } else { 1e-5 };
            assert!(error < most, "{name}, {backend}: {error:.1e}");
        }
    }
}

#[test]
fn a_text_gives_the_same_in_any_company() {
    for name in names() {
        let (tokens, _) = golden(&name);
        let files = files(&name);
        let together = given(Cpu, &files, &sequences(&tokens, &LENGTHS));
        let (first, second) = tokens.split_at(LENGTHS[0]);
        let mut apart = given(Cpu, &files, &sequences(first, &LENGTHS[..1]));
        apart.extend(given(Cpu, &files, &sequences(second, &LENGTHS[1..])));
        assert_eq!(apart, together, "{name}");
    }
}

/// What is longer than a pass goes through in pieces.
#[test]
fn long_texts_of_a_decoder_pass_in_pieces() {
    let files = files("qwen3");
    let tokens: Vec<u32> = (0..3500_u32).map(|i| 3 + i * i % 90).collect();
    let together = given(Cpu, &files, &sequences(&tokens, &[1300, 2200]));
    let mut apart = given(Cpu, &files, &sequences(&tokens[..1300], &[1300]));
    apart.extend(given(Cpu, &files, &sequences(&tokens[1300..], &[2200])));
    assert!(apart == together);
    let judge = |tokens: &[u32], lengths: &[usize]| {
        let network = Network::open(Cpu, &files.tensors, files.config.clone(), 64).expect("opens");
        let judge = network.judging([7, 9]).expect("it sees what was");
        judge.score(&sequences(tokens, lengths)).expect("computes").expect("scores")
    };
    let [first, second] = [judge(&tokens[..1300], &[1300]), judge(&tokens[1300..], &[2200])];
    assert_eq!(judge(&tokens, &[1300, 2200]), [first, second].concat());
}
