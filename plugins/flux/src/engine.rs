//! The engine behind the plugin interface: checks requests, makes latents and pixels, and sends previews.

use aihost_plugin_api::task::MemoryUsage;
use aihost_plugin_api::{Context, Engine, Error, Image, ImageOutput, ImageRequest, Result};
use rayon::ThreadPool;

use crate::latents::Shape;
use crate::memory::{self, Load, Memory, Offload};
use crate::model::{Job, Model, Parts, rgb8};

/// Most steps of a request.
pub const MAX_STEPS: u32 = 100;

/// Largest guidance: the published model was distilled from 1 to 5 or so; far beyond, its input is no guidance.
pub const MAX_GUIDANCE: f32 = 100.0;

/// Steps and guidance that a request without them gets: what the model was distilled for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    /// Steps.
    pub steps: u32,
    /// Weight of the prompt.
    pub guidance: f32,
}

impl Defaults {
    /// Of dev, which is guided, or of schnell.
    pub fn of(guided: bool) -> Self {
        Self { steps: if guided { 28 } else { 4 }, guidance: 3.5 }
    }
}

/// A loaded model with its threads.
#[derive(Debug)]
pub struct Flux {
    pub(crate) model: Model,
    pub(crate) parts: Parts,
    pub(crate) threads: ThreadPool,
    pub(crate) memory: Memory,
    pub(crate) policy: Offload,
    pub(crate) text_length: usize,
    pub(crate) max_pixels: u64,
}

/// A request that was found good.
#[derive(Clone, Copy, Debug)]
struct Checked {
    job: Job,
    steps: u32,
}

impl Engine for Flux {
    type Task = Image;

    fn generate(&self, request: ImageRequest, output: &ImageOutput, ctx: &Context) -> Result<()> {
        let Checked { job, steps } = self.check(&request)?;
        let seed = request.seed.unwrap_or_else(rand::random);
        output.begin(request.width, request.height, seed);
        ctx.check()?;
        let prompt = self.threads.install(|| self.model.encode(&request.prompt))?;
        if prompt.cut > 0 {
            tracing::warn!(
                tokens_cut = prompt.cut,
                tokens_read = self.text_length,
                "the end of the prompt was not read"
            );
        }
        ctx.check()?;
        self.threads.install(|| {
            let previews = request.preview_steps(steps);
            let noise = job.shape.noise(seed);
            let latents = self.model.denoise(&prompt, &noise, &job, |step| {
                output.progress(step.done as u32, steps)?;
                if previews.contains(&(step.done as u32)) {
                    let expected = job.shape.unpack(&step.expected());
                    output.preview(&rgb8(&self.model.decode(&expected, job.shape)))?;
                }
                Ok(())
            })?;
            output.image(&rgb8(&self.model.decode(&latents, job.shape)))
        })
    }

    fn cost(&self, request: &ImageRequest) -> Result<u64> {
        let Checked { job, .. } = self.check(request)?;
        let load = Load {
            shape: job.shape,
            steps: job.steps,
            previews: request.partial_images > 0,
            text_length: self.text_length,
            threads: self.threads.current_num_threads(),
        };
        Ok(memory::cost(&self.parts, &load))
    }

    fn usage(&self) -> MemoryUsage {
        let held = self.memory.weights(self.policy);
        MemoryUsage { device: held, host: held }
    }
}

impl Flux {
    fn check(&self, request: &ImageRequest) -> Result<Checked> {
        let &ImageRequest { width, height, .. } = request;
        let unit = 2 * self.model.vae().config().scale();
        let shape: Option<Shape> = self.model.shape(width as usize, height as usize);
        let pixels = u64::from(width) * u64::from(height);
        let shape = shape.filter(|_| pixels <= self.max_pixels).ok_or_else(|| {
            let most = self.max_pixels;
            Error::invalid_request(format!(
                "size is {width} x {height}; both sides must be multiples of {unit} above 0, and together at most {most} pixels"
            ))
        })?;
        let defaults = Defaults::of(self.model.transformer().config().guidance);
        let steps = request.steps.unwrap_or(defaults.steps);
        if !(1..=MAX_STEPS).contains(&steps) {
            return Err(Error::invalid_request(format!("steps is {steps}; it must be from 1 to {MAX_STEPS}")));
        }
        let guidance = request.guidance.unwrap_or(defaults.guidance);
        if !(0.0..=MAX_GUIDANCE).contains(&guidance) {
            let text = format!("guidance is {guidance}; it must be from 0 to {MAX_GUIDANCE}");
            return Err(Error::invalid_request(text));
        }
        Ok(Checked { job: Job { shape, steps: steps as usize, guidance }, steps })
    }
}
