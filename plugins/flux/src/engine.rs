//! The engine behind the plugin interface: checks requests, makes latents and pixels, and sends previews.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, TryLockError};

use aihost_engine::candle::{Failure, open};
use aihost_plugin_api::{
    Context, Engine, Error, ErrorKind, Image, ImageOutput, ImageRequest, LoadContext, MemoryUsage, Result,
};
use candle_core::Device;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::device::DeviceOptions;
use crate::files::Files;
use crate::memory::{Memory, Offload, RequestSize, Target};
use crate::model::{DenoiseParams, Model, Parts, rgb8};

/// Most steps of a request.
pub const MAX_STEPS: u32 = 100;

/// Largest guidance: the published model was distilled from 1 to 5 or so; far beyond, its input is no guidance.
pub const MAX_GUIDANCE: f32 = 100.0;

/// Steps and guidance that a request without them gets: what the model was distilled for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    /// Denoising steps.
    pub steps: u32,
    /// Guidance scale: the weight of the prompt.
    pub guidance: f32,
}

impl Defaults {
    /// Of dev, which is guided, or of schnell.
    pub fn of(guided: bool) -> Self {
        Self { steps: if guided { 28 } else { 4 }, guidance: 3.5 }
    }
}

/// What a model is loaded from, to which target, and with which policy.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) files: Files,
    /// Open, with nothing mapped: for sizes.
    pub(crate) parts: Parts,
    pub(crate) target: Target,
    pub(crate) memory: Memory,
    pub(crate) policy: Offload,
    pub(crate) text_length: usize,
    /// Bytes on the target that weights and requests may take.
    pub(crate) granted: u64,
    pub(crate) max_pixels: u64,
}

/// A model with its threads.
#[derive(Debug)]
pub struct Flux {
    loaded: Loaded,
    /// The cores' threads; for a device, the one thread that has all to do with it.
    threads: ThreadPool,
    /// Open as long as this lives: its kernels are loaded once.
    device: Option<Device>,
    /// The loaded model; `None` while it is parked.
    model: RwLock<Option<Model>>,
}

impl Flux {
    pub(crate) fn new(loaded: Loaded) -> Result<Self> {
        let count = if let Target::Host { threads } = loaded.target { threads } else { 1 };
        let threads = ThreadPoolBuilder::new().num_threads(count).build().map_err(Error::internal)?;
        let device = match loaded.target {
            Target::Host { .. } => None,
            Target::Tensors { location, .. } => Some(threads.install(|| open(location))?),
        };
        Ok(Self { loaded, threads, device, model: RwLock::default() })
    }

    /// Loads the model: maps or uploads the weights that the policy keeps, with the bytes so far as progress.
    pub(crate) fn load_weights(&self, ctx: &LoadContext) -> Result<()> {
        let &Loaded { ref files, ref memory, policy, target, text_length, .. } = &self.loaded;
        let total = memory.resident(policy);
        let on_progress = |read: u64| {
            ctx.progress(read.min(total), total);
            ctx.check()
        };
        let model = match (target, &self.device) {
            (Target::Tensors { dtype, .. }, Some(device)) => {
                // Mapped, so that nothing is copied in host memory on the way.
                let parts = Parts::open(files, Offload::AllResident.residency())?;
                let read = AtomicU64::new(0);
                let on_upload = |bytes| on_progress(read.fetch_add(bytes, Ordering::Relaxed) + bytes);
                let options = DeviceOptions { device, dtype, offload: policy, on_progress: &on_upload };
                self.threads.install(|| parts.load_on(&options, text_length))?
            }
            _ => {
                let parts = Parts::open(files, policy.residency())?;
                let model = self.threads.install(|| parts.load(text_length))?;
                parts.preload(on_progress)?;
                model
            }
        };
        *self.model.write().unwrap_or_else(PoisonError::into_inner) = Some(model);
        self.synchronize()
    }

    /// Drops a model, on the thread that a device's work is done on.
    fn unload(&self, model: Option<Model>) -> Result<()> {
        self.threads.install(|| drop(model));
        self.synchronize()
    }

    /// Waits until a device is idle: only then does its driver give back what was freed.
    fn synchronize(&self) -> Result<()> {
        let Some(device) = &self.device else { return Ok(()) };
        Ok(self.threads.install(|| device.synchronize()).map_err(Failure::from)?)
    }

    /// Bytes that a request takes at its peak.
    fn bytes(&self, request: &ImageRequest, params: &DenoiseParams) -> u64 {
        let &Loaded { ref parts, target, policy, text_length, .. } = &self.loaded;
        let size =
            RequestSize { shape: params.shape, steps: params.steps, previews: request.partial_images > 0, text_length };
        target.cost(parts, &size, policy)
    }

    /// Refuses a request that takes more memory than is left beside the weights.
    fn check_memory(&self, request: &ImageRequest, params: &DenoiseParams) -> Result<()> {
        let &Loaded { ref memory, policy, granted, .. } = &self.loaded;
        let (cost, left) = (self.bytes(request, params), granted.saturating_sub(memory.weights(policy)));
        if cost <= left {
            return Ok(());
        }
        let text = format!(
            "the image takes {cost} bytes at its peak, and {left} of the {granted} granted are left beside the weights; ask for a smaller one, or give the model more `memory:`"
        );
        Err(Error::new(ErrorKind::OutOfMemory, text))
    }
}

impl Drop for Flux {
    fn drop(&mut self) {
        let model = self.model.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Err(error) = self.unload(model) {
            tracing::error!("the device failed while the model was dropped: {error}");
        }
        let Self { threads, device, .. } = self;
        threads.install(|| *device = None);
    }
}

/// The parameters of a request whose fields are in range.
#[derive(Clone, Copy, Debug)]
struct Checked {
    params: DenoiseParams,
    steps: u32,
}

impl Engine for Flux {
    type Task = Image;

    fn generate(&self, request: ImageRequest, output: &ImageOutput, ctx: &Context) -> Result<()> {
        let Checked { params, steps } = self.check(&request)?;
        self.check_memory(&request, &params)?;
        let model = self.model.read().unwrap_or_else(PoisonError::into_inner);
        let model = model.as_ref().ok_or_else(|| Error::internal("the model is parked"))?;
        let seed = request.seed.unwrap_or_else(rand::random);
        output.begin(request.width, request.height, seed);
        ctx.check()?;
        let result = self.run(model, &request, (params, steps, seed), output, ctx);
        // Also frees what a request allocated that failed or was cancelled.
        let synchronized = self.synchronize();
        result.and(synchronized)
    }

    fn cost(&self, request: &ImageRequest) -> Result<u64> {
        let Checked { params, .. } = self.check(request)?;
        Ok(self.bytes(request, &params))
    }

    fn usage(&self) -> MemoryUsage {
        match &*self.model.read().unwrap_or_else(PoisonError::into_inner) {
            Some(_) => self.loaded.memory.usage(self.loaded.policy),
            None => self.loaded.memory.parked(),
        }
    }

    fn park(&self) -> Result<()> {
        let mut model = match self.model.try_write() {
            Ok(model) => model,
            Err(TryLockError::Poisoned(model)) => model.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(Error::internal("a request runs; park when it is done")),
        };
        self.unload(model.take())
    }

    fn unpark(&self, ctx: &LoadContext) -> Result<()> {
        self.load_weights(ctx)
    }
}

impl Flux {
    /// From a prompt to pixels, which go to `output`.
    fn run(
        &self,
        model: &Model,
        request: &ImageRequest,
        (params, steps, seed): (DenoiseParams, u32, u64),
        output: &ImageOutput,
        ctx: &Context,
    ) -> Result<()> {
        let prompt = self.threads.install(|| model.encode(&request.prompt))?;
        if prompt.truncated > 0 {
            tracing::warn!(
                tokens_cut = prompt.truncated,
                tokens_read = self.loaded.text_length,
                "the end of the prompt was not read"
            );
        }
        ctx.check()?;
        self.threads.install(|| {
            let previews = request.preview_steps(steps);
            let noise = params.shape.noise(seed);
            let latents = model.denoise(&prompt, &noise, &params, |step| {
                output.progress(step.done as u32, steps)?;
                if previews.contains(&(step.done as u32)) {
                    let expected = params.shape.unpack(&step.predicted_x0());
                    output.preview(&rgb8(&model.decode(&expected, params.shape)?))?;
                }
                Ok(())
            })?;
            output.image(&rgb8(&model.decode(&latents, params.shape)?))
        })
    }

    fn check(&self, request: &ImageRequest) -> Result<Checked> {
        let &ImageRequest { width, height, .. } = request;
        let Loaded { parts, max_pixels, .. } = &self.loaded;
        let unit = 2 * parts.vae.1.scale();
        let shape = parts.vae.1.shape(width as usize, height as usize);
        let pixels = u64::from(width) * u64::from(height);
        let shape = shape.filter(|_| pixels <= *max_pixels).ok_or_else(|| {
            Error::invalid_request(format!(
                "size is {width} x {height}; both sides must be multiples of {unit} above 0, and together at most {max_pixels} pixels"
            ))
            .at("size")
        })?;
        let defaults = Defaults::of(parts.transformer.1.guidance);
        let steps = request.steps.unwrap_or(defaults.steps);
        if !(1..=MAX_STEPS).contains(&steps) {
            let text = format!("steps is {steps}; it must be from 1 to {MAX_STEPS}");
            return Err(Error::invalid_request(text).at("steps"));
        }
        let guidance = request.guidance.unwrap_or(defaults.guidance);
        if !(0.0..=MAX_GUIDANCE).contains(&guidance) {
            let text = format!("guidance is {guidance}; it must be from 0 to {MAX_GUIDANCE}");
            return Err(Error::invalid_request(text).at("guidance"));
        }
        Ok(Checked { params: DenoiseParams { shape, steps: steps as usize, guidance }, steps })
    }
}
