//! What is true of the decoder on a device, without a host and without cargo: `llm_device PART DEVICE` prints a line of JSON for
//! each thing it looked at. `cargo xtask gpu-check` runs it on a card or, with the device `cpu`, on candle's CPU device.
//!
//! Parts: `golden`, a small model with random weights in every format, whose log-probabilities are held against those of the
//! engine's own CPU kernels; `speed`, steps of a model of a billion parameters (on `cpu`, of the small one).

#![expect(clippy::print_stdout, reason = "what it prints is what it is for")]
#![expect(clippy::unwrap_used, reason = "a check that cannot go on ends, and whoever runs it says so")]

mod random;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use aihost_engine::candle::{CandleOps, dtype_on, locate, open};
use aihost_engine::cpu::Cpu;
use aihost_engine::files::TensorType;
use aihost_engine::ops::{BLOCK_TOKENS, Ops, Pass, Span};
use aihost_plugin_api::LoadRequest;
use candle_core::{DType, Device};
use candle_llm::files::ModelFiles;
use candle_llm::model::{self, Room, Runner, blocks_of};
use serde_json::{Value, json};

use random::Sizes;

/// The formats that a device keeps as they are stored, and the plain ones.
const FORMATS: [TensorType; 12] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::Bf16,
    TensorType::Q40,
    TensorType::Q41,
    TensorType::Q50,
    TensorType::Q51,
    TensorType::Q80,
    TensorType::Q3K,
    TensorType::Q4K,
    TensorType::Q5K,
    TensorType::Q6K,
];
/// Tokens of the two prompts: one ends within a block of the cache, one with it.
const PROMPTS: [usize; 2] = [41, 32];
/// How far log-probabilities of likely tokens may be off, in nats, the root of the mean square. Of other weights it is above 1.
const F32_LIMIT: f32 = 0.01;
const BF16_LIMIT: f32 = 0.25;
/// Tokens less likely than this are noise.
const LIKELY: f32 = -7.0;
/// Rounds of a measure.
const ROUNDS: usize = 5;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [part, name, ..] = arguments.as_slice() else { return usage() };
    let device = if name == "cpu" { Ok(Device::Cpu) } else { locate(name).and_then(open) };
    match (part.as_str(), device) {
        (_, Err(error)) => say("device", &json!(error.message()), Some(false)),
        ("golden", Ok(device)) => golden(&device),
        ("speed", Ok(device)) => speed(&device),
        _ => usage(),
    }
}

#[expect(clippy::print_stderr, reason = "usage")]
fn usage() {
    eprintln!("usage: llm_device golden|speed DEVICE");
}

/// A line for whoever runs this, at once: as it must be, or not; or a figure, which is neither.
fn say(what: &str, value: &Value, is_right: Option<bool>) {
    let verdict = match is_right {
        Some(true) => "right",
        Some(false) => "wrong",
        None => "figure",
    };
    println!("{}", json!({"what": what, "value": value, "verdict": verdict}));
}

fn golden(device: &Device) {
    // Half precision is what a card computes with; on the CPU it is computed too, so that nothing is new there.
    for dtype in [DType::F32, DType::BF16] {
        let limit = if dtype == DType::F32 { F32_LIMIT } else { BF16_LIMIT };
        for format in FORMATS {
            let what = format!("decoder, {format} weights, computed in {dtype:?}");
            let measured = catch_unwind(AssertUnwindSafe(|| error(device, dtype, format)));
            match measured {
                Ok(error) => {
                    let value = json!({"nats": error, "limit": limit});
                    say(&what, &value, Some(error < limit));
                }
                Err(_) => say(&what, &json!("it failed; see the error output"), Some(false)),
            }
        }
    }
}

/// How far the device is off, over prompts that pass together in two pieces and a token of each that follows.
fn error(device: &Device, dtype: DType, format: TensorType) -> f32 {
    let folder = tempfile::tempdir().unwrap();
    let files = written(folder.path(), Sizes::SMALL, format);
    let wanted = logprobs(Cpu, &files);
    let found = logprobs(CandleOps::new(device.clone(), dtype), &files);
    let likely = wanted.iter().zip(&found).filter(|(wanted, _)| **wanted > LIKELY);
    let squares: Vec<f32> = likely.map(|(wanted, found)| (wanted - found).powi(2)).collect();
    (squares.iter().sum::<f32>() / squares.len() as f32).sqrt()
}

fn written(folder: &Path, sizes: Sizes, format: TensorType) -> Arc<ModelFiles> {
    let path = folder.join("model.gguf");
    random::write(&path, sizes, format).unwrap();
    let load = LoadRequest::new("cpu", [("model".to_owned(), path)].into());
    Arc::new(ModelFiles::open(&load).unwrap())
}

/// Log-probabilities behind both prompts, and behind one token more of each.
fn logprobs<O: Ops + Clone>(ops: O, files: &Arc<ModelFiles>) -> Vec<f32> {
    let config = files.config().unwrap();
    let (blocks, vocabulary) = (2 * blocks_of(64), config.vocabulary as u32);
    let mut model = model::on(ops, files, config, Room { blocks, states: 0, context: blocks * BLOCK_TOKENS }).unwrap();
    model.wake().unwrap();
    // Blocks of each in an order of its own.
    let places = [[2, 0, 3, 1], [7, 5, 6, 4]];
    let tokens =
        |prompt: usize, from: usize, to: usize| (from..to).map(move |at| (31 * at + 97 * prompt) as u32 % vocabulary);
    let mut out = Vec::new();
    for (from, to) in [([0, 0], [23, 16]), ([23, 16], PROMPTS), (PROMPTS, PROMPTS.map(|length| length + 1))] {
        let spans =
            (0..2).map(|i| Span { rows: to[i] - from[i], start: from[i], blocks: &places[i], state: 0 }).collect();
        let tokens = (0..2).flat_map(|i| tokens(i, from[i], to[i])).collect();
        let (first, second) = (to[0] - from[0], to[1] - from[1]);
        let pass = Pass { tokens, spans, wanted: vec![first - 1, first + second - 1] };
        let logits = model.forward(&pass).unwrap();
        for row in logits.chunks(vocabulary as usize) {
            let most = row.iter().copied().fold(f32::MIN, f32::max);
            let total: f32 = row.iter().map(|logit| (logit - most).exp()).sum();
            out.extend(row.iter().map(|logit| logit - most - total.ln()));
        }
    }
    out
}

fn speed(device: &Device) {
    let sizes = if device.is_cpu() { Sizes::SMALL } else { Sizes::BILLION };
    for format in [TensorType::Q4K, TensorType::Q80, TensorType::Bf16] {
        let folder = tempfile::tempdir().unwrap();
        let files = written(folder.path(), sizes, format);
        let begun = Instant::now();
        let ops = CandleOps::new(device.clone(), dtype_on(device).unwrap());
        let config = files.config().unwrap();
        let blocks = blocks_of(sizes.context) * 8;
        let mut model =
            model::on(ops, &files, config, Room { blocks, states: 0, context: blocks * BLOCK_TOKENS }).unwrap();
        model.wake().unwrap();
        device.synchronize().unwrap();
        let mebibytes = files.tensors().len() >> 20;
        say(
            &format!("decoder, {format}: load of {mebibytes} MiB"),
            &json!({"seconds": begun.elapsed().as_secs_f64()}),
            None,
        );
        for (streams, depth) in [(1, 512.min(sizes.context / 2)), (8, 512.min(sizes.context / 2))] {
            let seconds = median(|| step(model.as_mut(), sizes, streams, 1, depth));
            let value = json!({"tokens_per_second": streams as f64 / seconds, "milliseconds": 1e3 * seconds});
            say(&format!("decoder, {format}: a step of {streams} streams at depth {depth}"), &value, None);
        }
        let rows = 512.min(sizes.context);
        let seconds = median(|| step(model.as_mut(), sizes, 1, rows, 0));
        let value = json!({"tokens_per_second": rows as f64 / seconds, "milliseconds": 1e3 * seconds});
        say(&format!("decoder, {format}: a prompt of {rows} tokens"), &value, None);
    }
}

/// Passes so many tokens of each stream; what it came to is read back, so it is done.
fn step(model: &mut dyn Runner, sizes: Sizes, streams: usize, rows: usize, start: usize) {
    let each = blocks_of(sizes.context) as u32;
    let blocks: Vec<Vec<u32>> = (0..streams as u32).map(|i| (i * each..(i + 1) * each).collect()).collect();
    let spans = blocks.iter().map(|blocks| Span { rows, start, blocks, state: 0 }).collect();
    let tokens = (0..streams * rows).map(|at| (at * 31 % sizes.vocabulary) as u32).collect();
    let wanted = (0..streams).map(|i| (i + 1) * rows - 1).collect();
    model.forward(&Pass { tokens, spans, wanted }).unwrap();
}

/// Seconds, the median of some rounds behind one that warms up.
fn median(mut round: impl FnMut()) -> f64 {
    round();
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            round();
            begun.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}
