//! Seconds a step of FLUX.1's size in bf16 with random weights, at 1024x1024.

use std::time::Instant;

use flux::device::{DeviceOptions, Dtype};
use flux::files::Files;
use flux::memory::Offload;
use flux::model::{DenoiseParams, Parts};
use serde_json::json;

use aihost_plugin_api::LoadRequest;

use crate::weights::{self, PUBLISHED, SMALL, Scratch};
use crate::{Here, Verdict, card, mib, say};

/// Steps that are timed, after two that are not.
const STEPS: usize = 10;
/// Tokens of an image of 1024x1024 on each side.
const SIDE: usize = 64;
/// Tokens of T5.
const LENGTH: usize = 512;

pub(crate) fn run(here: &Here) {
    let on_paper = here.device.is_cpu();
    let (size, side, steps) = if on_paper { (SMALL, 4, 2) } else { (PUBLISHED, SIDE, STEPS) };
    let scratch = Scratch::new("speed");
    let start = Instant::now();
    let bytes = weights::write(&here.folder.join("dev"), size, &scratch.0).unwrap();
    let value = json!({"bytes": bytes, "seconds": start.elapsed().as_secs_f64()});
    say("random weights written", &value, Verdict::Figure);

    let files = [("model".to_owned(), scratch.0.clone())].into_iter().collect();
    let files = Files::of(&LoadRequest::new("cpu", files)).unwrap();
    let parts = Parts::open(&files, Offload::AllResident.residency()).unwrap();
    let options = DeviceOptions {
        device: &here.device,
        dtype: Dtype::Bf16,
        offload: Offload::AllResident,
        on_progress: &|_| Ok(()),
    };
    let (before, _) = card::memory(&here.device);
    let start = Instant::now();
    let model = parts.load_on(&options, LENGTH).unwrap();
    here.device.synchronize().unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let (after, _) = card::memory(&here.device);
    let rate = format!("{:.2} GB/s", bytes as f64 / seconds / 1e9);
    let value = json!({"seconds": seconds, "rate": rate, "taken": mib(before.saturating_sub(after))});
    say("the transformer brought to the device", &value, Verdict::Figure);

    let unit = 2 * model.vae().scale();
    let shape = model.vae().shape(side * unit, side * unit).unwrap();
    let params = DenoiseParams { shape, steps: steps + 2, guidance: 3.5 };
    let prompt = model.encode("a fox").unwrap();
    let mut times = Vec::new();
    let mut last = Instant::now();
    model
        .benchmark(&prompt, &params, |done| {
            times.push(last.elapsed().as_secs_f64());
            last = Instant::now();
            Ok(done < steps + 2)
        })
        .unwrap();
    // The first entry is what is before a step; two steps compile kernels and fill pools.
    let mut times = times.split_off(3);
    times.sort_by(f64::total_cmp);
    let value = json!({
        "tokens": side * side + LENGTH, "hidden": size.heads * size.head, "blocks": size.double_blocks + size.single_blocks,
        "median_seconds": times[times.len() / 2], "best_seconds": times[0], "steps": times.len(),
        "attention": if cfg!(feature = "flash") { "flash" } else { "blocks of scores" },
    });
    say("a step", &value, Verdict::of(times.iter().all(|time| time.is_finite())));
    let latents = model.denoise(&prompt, &shape.noise(1), &DenoiseParams { steps: 1, ..params }, |_| Ok(())).unwrap();
    let finite = latents.iter().all(|x| x.is_finite());
    say("its latents are finite", &json!(finite), Verdict::of(finite));
}
