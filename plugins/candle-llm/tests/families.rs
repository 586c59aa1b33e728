//! Tiny models of every family, in both forms and on both backends, held against transformers (tests/golden/llm/families.py).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aihost_engine::candle::CandleOps;
use aihost_engine::cpu::Cpu;
use aihost_engine::ops::{BLOCK_TOKENS, Ops, Pass, Span};
use aihost_plugin_api::LoadRequest;
use aihost_support::decoder::family::FAMILIES;
use candle_core::{DType, Device};
use candle_llm::files::ModelFiles;
use candle_llm::model::{self, Room, Runner};
use candle_llm::sampler::argmax;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

/// Tokens of the prompts; what follows was chosen by the reference.
const PROMPT: usize = 48;
/// More than the tiny models' positions are scaled from.
const ROOM: Room = Room { blocks: 8, states: 2, context: 8 * BLOCK_TOKENS };
/// Blocks of the cache, in an order of their own.
const BLOCKS: [u32; 8] = [5, 0, 7, 2, 1, 6, 3, 4];
const FORMS: [&str; 2] = ["model.gguf", "model.safetensors"];

/// A reference's tokens, and its logits behind each of them.
struct Golden {
    tokens: Vec<u32>,
    logits: Vec<f32>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llm/families")
}

fn names() -> Vec<String> {
    let entries = std::fs::read_dir(folder()).expect("golden data is in the repository");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("read").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

impl Golden {
    fn of(name: &str) -> Self {
        let bytes = std::fs::read(folder().join(name).join("outputs.safetensors")).expect("golden data");
        let tensors = SafeTensors::deserialize(&bytes).expect("golden data is valid");
        let words = |name: &str| tensors.tensor(name).expect("there").data().as_chunks::<4>().0.to_vec();
        Self {
            tokens: words("tokens").into_iter().map(u32::from_le_bytes).collect(),
            logits: words("logits").into_iter().map(f32::from_le_bytes).collect(),
        }
    }

    /// The distance of logits from these, as a part of their length.
    fn error(&self, logits: &[f32]) -> f64 {
        let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        assert_eq!(logits.len(), self.logits.len());
        norm(&mut logits.iter().zip(&self.logits).map(|(a, b)| a - b)) / norm(&mut self.logits.iter().copied())
    }
}

fn open(name: &str, form: &str) -> Arc<ModelFiles> {
    let load = LoadRequest::new("cpu", [("model".to_owned(), folder().join(name).join(form))].into());
    Arc::new(ModelFiles::open(&load).unwrap_or_else(|error| panic!("{name}: {error}")))
}

fn awake<O: Ops + Clone>(ops: O, files: &Arc<ModelFiles>) -> Box<dyn Runner> {
    let config = files.config().unwrap_or_else(|error| panic!("{error}"));
    let mut model = model::on(ops, files, config, ROOM).unwrap_or_else(|error| panic!("{error}"));
    model.wake().expect("memory");
    model
}

/// The logits behind each token, which pass through the model in pieces.
fn logits(model: &mut dyn Runner, tokens: &[u32], pieces: &[usize]) -> Vec<f32> {
    let (mut at, mut logits) = (0, Vec::new());
    for rows in pieces {
        let span = Span { rows: *rows, start: at, blocks: &BLOCKS, state: 1 };
        let pass = Pass { tokens: tokens[at..at + rows].to_vec(), spans: vec![span], wanted: (0..*rows).collect() };
        logits.extend(model.forward(&pass).expect("computes"));
        at += rows;
    }
    assert_eq!(at, tokens.len());
    logits
}

/// The forms that a golden model is there in.
fn forms(name: &str) -> impl Iterator<Item = &'static str> {
    FORMS.into_iter().filter(move |form| folder().join(name).join(form).is_file())
}

#[test]
fn every_family_has_golden_models_in_its_forms() {
    let architectures = |form: &str| -> BTreeSet<String> {
        let names = names().into_iter().filter(|name| forms(name).any(|there| there == form));
        names.map(|name| open(&name, form).architecture().expect("text").expect("there").to_owned()).collect()
    };
    let [ggufs, folders] = FORMS.map(architectures);
    // Mistral's files are called another's.
    let wanted = FAMILIES.iter().map(|family| family.gguf.to_owned()).filter(|name| name != "mistral");
    assert_eq!(ggufs, wanted.collect());
    let wanted = FAMILIES.iter().filter_map(|family| family.hugging_face.first());
    assert_eq!(folders, wanted.map(|name| (*name).to_owned()).collect());
}

#[test]
fn logits_and_greedy_tokens_equal_the_reference() {
    for name in names() {
        let golden = Golden::of(&name);
        for form in forms(&name) {
            let files = open(&name, form);
            let runs: [(&str, Box<dyn Runner>, f64); 2] = [
                // Its cache is of half precision.
                ("cpu", awake(Cpu, &files), 2e-3),
                ("candle", awake(CandleOps::new(Device::Cpu, DType::F32), &files), 1e-4),
            ];
            for (backend, mut model, most) in runs {
                let whole = logits(model.as_mut(), &golden.tokens, &[golden.tokens.len()]);
                let error = golden.error(&whole);
                println!("{name} {form} {backend}: {error:.1e}");
                assert!(error < most, "{name}, {form}, {backend}: {error:.1e}");
                let vocabulary = whole.len() / golden.tokens.len();
                let rows = whole.chunks_exact(vocabulary).zip(&golden.tokens[1..]).enumerate();
                for (at, (row, next)) in rows.skip(PROMPT - 1) {
                    assert_eq!(argmax(row), *next, "{name}, {form}, {backend}: token {at}");
                }
            }
        }
    }
}

#[test]
fn a_sequence_gives_the_same_in_any_pieces() {
    for name in names() {
        let golden = Golden::of(&name);
        let mut model = awake(Cpu, &open(&name, FORMS[0]));
        let whole = logits(model.as_mut(), &golden.tokens, &[golden.tokens.len()]);
        let rest = golden.tokens.len() - PROMPT;
        let mut pieces = vec![7, PROMPT - 7];
        pieces.extend(vec![1; rest]);
        assert!(logits(model.as_mut(), &golden.tokens, &pieces) == whole, "{name}");
        let mut model = awake(CandleOps::new(Device::Cpu, DType::F32), &open(&name, FORMS[0]));
        let error = golden.error(&logits(model.as_mut(), &golden.tokens, &pieces));
        assert!(error < 1e-4, "{name}: {error:.1e}");
    }
}

/// A folder of a model of several kinds of input: its text decoder's settings and tensors lie deeper, beside others.
#[test]
fn the_text_of_a_model_of_several_kinds_of_input_is_served() {
    for (name, prefix) in [("qwen35", "model.language_model."), ("gemma3", "language_model.model.")] {
        let read = |file: &str| std::fs::read(folder().join(name).join(file)).expect("golden data");
        let mut text: serde_json::Value = serde_json::from_slice(&read("config.json")).expect("JSON");
        let tied = text.as_object_mut().and_then(|text| text.remove("tie_word_embeddings"));
        let config = serde_json::json!({"model_type": "several", "text_config": text, "tie_word_embeddings": tied});
        let (weights, other) = (read("model.safetensors"), [0u8; 8]);
        let tensors = SafeTensors::deserialize(&weights).expect("golden data is valid").tensors();
        let mut deeper: Vec<(String, TensorView<'_>)> = tensors
            .into_iter()
            .map(|(name, view)| {
                (name.strip_prefix("model.").map_or(name.clone(), |rest| format!("{prefix}{rest}")), view)
            })
            .collect();
        let vision = TensorView::new(safetensors::Dtype::F32, vec![2], &other).expect("two numbers");
        deeper.push(("model.visual.patch_embed.weight".to_owned(), vision));
        let folder = tempfile::tempdir().expect("a folder");
        let written = safetensors::serialize(deeper, None).expect("serialises");
        std::fs::write(folder.path().join("model.safetensors"), written).expect("written");
        std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
        let load = LoadRequest::new("cpu", [("model".to_owned(), folder.path().to_owned())].into());
        let files = Arc::new(ModelFiles::open(&load).unwrap_or_else(|error| panic!("{name}: {error}")));
        let golden = Golden::of(name);
        let mut model = awake(CandleOps::new(Device::Cpu, DType::F32), &files);
        let error = golden.error(&logits(model.as_mut(), &golden.tokens, &[golden.tokens.len()]));
        assert!(error < 1e-4, "{name}: {error:.1e}");
    }
}
