//! Times the steps of a checkpoint and sets the memory it takes beside the memory it plans:
//!
//! `cargo run --release -p aihost-flux --example flux_speed -- FOLDER [THREADS]` prints both;
//! `... -- FOLDER THREADS WIDTH HEIGHT STEPS` makes one step for each line it reads and prints its seconds, for
//! `tests/golden/flux/speed.py`, which sets them beside diffusers'. FOLDER is `generate.py mid`'s.

#![expect(clippy::print_stdout, reason = "an example's output is what it is for")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use aihost_plugin_api::testing::MockHost;
use aihost_plugin_api::{Error, ImageRequest, LoadRequest, Result};
use aihost_support::counting::Counting;
use flux::FluxPlugin;
use flux::files::Files;
use flux::memory::Offload;
use flux::model::{DenoiseParams, Model, Parts};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PROMPT: &str = "a red fox sleeping under birches in the snow";

/// Tokens of T5.
const LENGTH: usize = 512;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().unwrap_or_default());
    let numbers: Vec<usize> = arguments.filter_map(|text| text.parse().ok()).collect();
    let threads = numbers.first().copied().unwrap_or(2);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(Error::internal)?;
    if let [_, width, height, steps] = numbers[..] {
        let model = load(&folder)?;
        return pool.install(|| answer(&model, width, height, steps));
    }
    pool.install(|| times(&load(&folder)?))?;
    ["all_resident", "encoders_parked", "streamed"].iter().try_for_each(|offload| memory(&folder, offload))
}

fn load(folder: &Path) -> Result<Model> {
    let files = BTreeMap::from([("model".to_owned(), folder.to_owned())]);
    let files = Files::of(&LoadRequest::new("cpu", files))?;
    Parts::open(&files, Offload::AllResident.residency())?.load(LENGTH)
}

fn params(model: &Model, width: usize, height: usize, steps: usize) -> Result<DenoiseParams> {
    let shape = model.vae().shape(width, height).ok_or_else(|| Error::internal("the size is not a multiple of 16"))?;
    Ok(DenoiseParams { shape, steps, guidance: 3.5 })
}

fn answer(model: &Model, width: usize, height: usize, steps: usize) -> Result<()> {
    let params = params(model, width, height, steps)?;
    let mut lines = std::io::stdin().lines();
    let mut start = Instant::now();
    model.benchmark(&*model.encode(PROMPT)?, &params, |done| {
        if done > 0 {
            println!("{:.6}", start.elapsed().as_secs_f64());
        }
        let more = lines.next().is_some();
        start = Instant::now();
        Ok(more)
    })
}

fn times(model: &Model) -> Result<()> {
    let mut start = Instant::now();
    let mut lap = |what: &str| {
        println!("{what}: {:.3} s", start.elapsed().as_secs_f64());
        start = Instant::now();
    };
    let prompt = model.encode(PROMPT)?;
    lap("text encoders");
    let params = params(model, 256, 256, 4)?;
    let latents = model.denoise(&prompt, &params.shape.noise(1), &params, |step| {
        lap(&format!("step {}", step.done));
        Ok(())
    })?;
    model.decode(&latents, params.shape)?;
    lap("pixels of 256 x 256");
    Ok(())
}

/// On one thread, as the mock host loads.
fn memory(folder: &Path, offload: &str) -> Result<()> {
    let options = serde_json::json!({ "offload": offload, "max_pixels": 512 * 512 });
    let mut host = MockHost::new::<FluxPlugin>(options, &[("model", folder.to_owned())])?;
    let (plan, empty) = (host.plan()?, Counting::now());
    host.load()?;
    let loaded = Counting::now() - empty;
    println!("{offload}: {loaded} bytes on the heap and {} mapped, planned {}", plan.mapped, plan.required);
    for (width, height, partial_images) in [(256, 256, 0), (256, 256, 1), (512, 384, 0)] {
        let steps = Some(2);
        let prompt = format!("{PROMPT} {width} {partial_images}");
        let request = ImageRequest::new(prompt).width(width).height(height).steps(steps).partial_images(partial_images);
        let before = Counting::now();
        Counting::reset_peak();
        let answer = host.generate_image(&request)?;
        // The mock host keeps what it is sent, twice: those bytes are not the engine's.
        let kept: usize = answer.images.iter().map(|image| image.pixels.len()).sum();
        let (peak, cost) = (Counting::peak() - before, host.image_cost(&request)?);
        println!("  {width} x {height}, {partial_images} previews: peak {peak} bytes ({kept} kept), cost {cost}");
    }
    let held = Counting::now() - empty;
    println!("  most: {}; on the heap with three prompts kept: {held}", plan.workspace_max);
    Ok(())
}
