//! What a request takes beside what the plugin said it would: a counting allocator under a mid-size random checkpoint.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test's helpers are tests too")]

use std::collections::HashMap;
use std::path::Path;

use aihost_plugin_api::AudioRequest;
use aihost_plugin_api::testing::MockHost;
use aihost_support::counting::Counting;
use candle_core::{Device, Tensor};
use musicgen::MusicGenPlugin;
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const LAYERS: usize = 8;

/// The committed mono checkpoint with a decoder and a codec of real proportions: hidden 512, 8 layers, 32 kHz. The names
/// and which sizes belong together come from the small one; the numbers are random.
fn grow(small: &Path, folder: &Path) {
    let mut config: Value = serde_json::from_slice(&std::fs::read(small.join("config.json")).unwrap()).unwrap();
    for (key, value) in [("hidden_size", 512), ("ffn_dim", 2048), ("vocab_size", 2048), ("num_hidden_layers", LAYERS)] {
        config["decoder"][key] = json!(value);
    }
    (config["decoder"]["num_attention_heads"], config["decoder"]["max_position_embeddings"]) = (json!(8), json!(2048));
    let codec = &mut config["audio_encoder"];
    for (key, value) in [("sampling_rate", 32_000), ("hidden_size", 128), ("num_filters", 32), ("codebook_size", 2048)]
    {
        codec[key] = json!(value);
    }
    codec["upsampling_ratios"] = json!([8, 8, 10]);
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::copy(small.join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();

    let mut grown = HashMap::new();
    for (name, tensor) in candle_core::safetensors::load(small.join("model.safetensors"), &Device::Cpu).unwrap() {
        if name.starts_with("text_encoder.") {
            grown.insert(name, tensor);
            continue;
        }
        let shape = grown_shape(&name, tensor.dims());
        let random = Tensor::rand(-0.05f32, 0.05, shape, &Device::Cpu).unwrap();
        match name.split_once(".layers.0.") {
            Some((before, after)) if before == "decoder.model.decoder" => {
                for layer in 0..LAYERS {
                    grown.insert(format!("{before}.layers.{layer}.{after}"), random.clone());
                }
            }
            // Layer 1 is a copy of layer 0.
            _ if name.starts_with("decoder.model.decoder.layers.") => {}
            _ => drop(grown.insert(name, random)),
        }
    }
    candle_core::safetensors::save(&grown, folder.join("model.safetensors")).unwrap();
}

/// A tensor's shape in the grown checkpoint, by its shape in the small one.
fn grown_shape(name: &str, dims: &[usize]) -> Vec<usize> {
    if !name.starts_with("audio_encoder.") {
        let size = |dim: &usize| match dim {
            32 => 512,
            56 => 2048,
            64 => 2048,
            65 => 2049,
            other => *other,
        };
        return dims.iter().map(size).collect();
    }
    if name.contains(".codebook.") {
        return dims.iter().map(|dim| if *dim == 12 { 128 } else { dim.max(&1) * 32 }).collect();
    }
    let is_kernel = |axis: usize| dims.len() == 3 && axis == 2;
    let size = |(axis, dim): (usize, &usize)| match dim {
        1 => 1,
        12 => 128,
        // Twice the stage's ratio.
        _ if is_kernel(axis) && (name.contains("layers.3.conv.") || name.contains("layers.6.conv.")) => 16,
        _ if is_kernel(axis) && name.contains("layers.9.conv.") => 20,
        dim if is_kernel(axis) => *dim,
        dim => dim * 8,
    };
    dims.iter().enumerate().map(size).collect()
}

/// Bytes of the model's files that are mapped now.
fn mapped(folder: &Path) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let own = maps.lines().filter(|line| line.contains(folder.to_str().unwrap()));
    own.map(|line| {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        u64::from_str_radix(to, 16).unwrap() - u64::from_str_radix(from, 16).unwrap()
    })
    .sum()
}

#[test]
fn what_is_taken_is_what_was_said() {
    let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/musicgen/mono");
    let folder = tempfile::tempdir().unwrap();
    grow(&small, folder.path());
    let options = json!({"window": 2, "overlap": 0.8});
    let mut host = MockHost::new::<MusicGenPlugin>(options, &[("model", folder.path().to_owned())]).unwrap();
    let plan = host.plan().unwrap();
    let empty = Counting::now();
    host.load().unwrap();
    let loaded = Counting::now();
    assert_eq!(mapped(folder.path()), 0, "weights are copied, not mapped");
    near("weights", loaded - empty, plan.required);

    let mut longest = 0;
    let request = |duration, words| AudioRequest::new("drums ".repeat(words)).duration(duration);
    let most_words = (1..).take_while(|words| host.audio_cost(&request(1.0, *words)).is_ok()).last().unwrap();
    for (duration, words) in [(1.0, 4), (3.2, 4), (3.2, most_words)] {
        let request = request(duration, words);
        let cost = host.audio_cost(&request).unwrap();
        Counting::reset_peak();
        let answer = host.generate_audio(&request).unwrap();
        // The mock host keeps the blocks it is sent; those bytes are not the engine's.
        let sent = 4 * answer.samples.len() as u64;
        let peak = Counting::peak() - loaded - sent;
        near(&format!("{duration} s after {words} words"), peak, cost);
        longest = peak;
    }
    // The longest prompt, and windows as long as they get: what is longer only keeps more codes.
    near("the most", longest, plan.workspace_max);
}

/// Within a tenth.
fn near(what: &str, found: u64, said: u64) {
    println!("{what}: {found} bytes, said {said}, {:.3}", found as f64 / said as f64);
    assert!(found.abs_diff(said) * 10 <= said, "{what} took {found} bytes, not {said}");
}
