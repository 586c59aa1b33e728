//! Times a checkpoint and sets the memory it takes beside the memory it plans:
//! `cargo run --release -p aihost-musicgen --example musicgen_speed -- FOLDER [STEPS] [THREADS] [DTYPE]`.
//! With `turns` after the data type it makes STEPS steps for each line it reads, and prints the seconds they took.

#![expect(clippy::print_stdout, reason = "an example's output is what it is for")]

use std::path::PathBuf;
use std::time::Instant;

use aihost_plugin_api::{AudioRequest, Result, testing::MockHost};
use aihost_support::counting::Counting;
use candle_core::DType;
use musicgen::MusicGenPlugin;
use musicgen::decoder::Guidance;
use musicgen::model::{Files, Model, WindowRequest};
use musicgen::sampler::{Sampler, SamplingStrategy};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PROMPT: &str = "a slow lo-fi beat with soft piano and rain";

/// Seconds that so many steps take, the text encoder's part included, and the codes of the first channel.
fn decode(model: &Model, steps: usize) -> Result<(f64, Vec<u32>)> {
    let start = Instant::now();
    let text = model.encode(PROMPT)?;
    let codebooks = model.config().decoder.codebooks_per_channel();
    let frames = steps + 1 - codebooks;
    let mut sampler = Sampler::new(SamplingStrategy::Greedy, 0);
    let piece = WindowRequest { text: &text, frames, guidance: Guidance::Scale(3.0), given: &[] };
    let mut codes = Vec::new();
    model.generate(piece, &mut sampler, |step| {
        if step.index < frames {
            codes.extend(step.tokens.iter().take(codebooks).map(|token| token % 2048));
        }
        Ok(())
    })?;
    Ok((start.elapsed().as_secs_f64(), codes))
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().unwrap_or_default());
    let mut number = |default| arguments.next().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (steps, threads): (usize, usize) = (number(250), number(2));
    let dtype = arguments.next();
    let kept = match dtype.as_deref() {
        Some("f16") => Some(DType::F16),
        Some("bf16") => Some(DType::BF16),
        _ => None,
    };
    let files =
        Files { weights: folder.clone(), config: folder.join("config.json"), tokenizer: folder.join("tokenizer.json") };
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(aihost_plugin_api::Error::internal)?;
    let start = Instant::now();
    let model = Model::load(&files, kept)?;
    if arguments.next().as_deref() == Some("turns") {
        return pool.install(|| {
            for _ in std::io::stdin().lines() {
                println!("{}", decode(&model, steps)?.0);
            }
            Ok(())
        });
    }
    println!("load {:.2} s", start.elapsed().as_secs_f64());
    pool.install(|| {
        for _ in 0..3 {
            let (decoder, codes) = decode(&model, steps)?;
            let start = Instant::now();
            model.codec().decode(&codes)?;
            let codec = start.elapsed().as_secs_f64();
            println!("{steps} steps: {:.1} steps/s, codec {codec:.2} s", steps as f64 / decoder);
        }
        Ok::<_, aihost_plugin_api::Error>(())
    })?;
    drop(model);
    let mut host = MockHost::new::<MusicGenPlugin>(serde_json::json!({}), &[("model", folder)])?;
    let empty = Counting::now();
    host.load()?;
    let loaded = Counting::now();
    println!("weights: {} bytes, planned {}", loaded - empty, host.plan()?.required);
    for duration in [1.0, 5.0, 20.0, 40.0] {
        let request = AudioRequest::new(PROMPT).duration(duration);
        Counting::reset_peak();
        let start = Instant::now();
        let answer = host.generate_audio(&request)?;
        let (took, cost) = (start.elapsed().as_secs_f64(), host.audio_cost(&request)?);
        // The mock host keeps what it is sent, blocks and samples: those bytes are not the engine's.
        let kept = answer.samples.len() as u64 * 8;
        let peak = Counting::peak() - loaded;
        println!("{duration} s on one thread in {took:.2} s; peak {peak} bytes ({kept} of them kept), cost {cost}");
    }
    println!("most: {}", host.plan()?.workspace_max);
    Ok(())
}
