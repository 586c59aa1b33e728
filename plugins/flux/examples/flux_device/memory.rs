//! Memory: what is planned beside what is taken, what comes back, and what happens where others hold the card.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use aihost_plugin_api::{Error, ErrorKind, LoadRequest};
use aihost_support::counting::Counting;
use candle_core::{DType, Tensor};
use flux::device::{DeviceOptions, Dtype, memory};
use flux::files::Files;
use flux::latents::Shape;
use flux::memory::{Memory, Offload, RequestSize, Target};
use flux::model::{DenoiseParams, Model, Parts};
use serde_json::json;

use crate::cases::{Golden, cases, relative_error};
use crate::weights::{self, PUBLISHED, SMALL, Scratch, Size};
use crate::{Here, Verdict, card, mib, say};

/// Bytes that may stay out after a park: what the host allows.
const TOLERANCE: u64 = 256 << 20;
/// Bytes of a card that are left to this process while another one holds the rest.
const LEFT: u64 = 600 << 20;
/// Tokens of a text.
const LENGTH: usize = 512;

fn golden(here: &Here) -> Golden {
    cases(std::slice::from_ref(&here.folder)).into_iter().find(|golden| golden.folder.ends_with("dev")).unwrap()
}

fn load(here: &Here, golden: &Golden) -> Result<Model, Error> {
    let options = DeviceOptions {
        device: &here.device,
        dtype: Dtype::F32,
        offload: Offload::AllResident,
        on_progress: &|_| Ok(()),
    };
    golden.parts(Offload::AllResident).load_on(&options, LENGTH)
}

/// Plan beside measure, then `cycles` of parking and waking, which give the same values each time.
pub(crate) fn run(here: &Here, cycles: u64) {
    let golden = golden(here);
    let (free, total) = card::memory(&here.device);
    let context = json!({"free": mib(free), "total": mib(total), "planned_for_the_context": mib(memory::CONTEXT)});
    say("the device once it is open", &context, Verdict::Figure);
    let parts = golden.parts(Offload::AllResident);
    let shape = parts.vae.1.shape(384, 512).unwrap();
    let planned = RequestSize { shape, steps: 20, previews: false, text_length: LENGTH };
    let target = Target::Tensors { location: here.device.location(), dtype: Dtype::F32 };
    let sizes = Memory::of(&parts, target, Offload::AllResident, &planned);

    let model = load(here, &golden).unwrap();
    let (loaded, _) = card::memory(&here.device);
    let beside = |taken: u64, planned: u64| json!({"taken": mib(taken), "planned": mib(planned)});
    // A driver takes whole blocks; what counts is that no more is taken than was planned, context included.
    let taken = free.saturating_sub(loaded);
    let weights = sizes.weights(Offload::AllResident);
    say("weights", &beside(taken, weights), Verdict::of(taken <= weights + TOLERANCE));

    let params = DenoiseParams { shape, steps: planned.steps, guidance: 3.5 };
    let cost = memory::cost(&parts, &planned, Dtype::F32, Offload::AllResident);
    let before = Counting::now();
    Counting::reset_peak();
    let first = image(&model, &params, 2).unwrap();
    if here.device.is_cpu() {
        let peak = Counting::peak() - before;
        let within = peak <= cost + cost / 10;
        say("a request's peak", &beside(peak, cost), Verdict::of(within));
    } else {
        let (after, _) = card::memory(&here.device);
        say(
            "kept after a request",
            &beside(loaded.saturating_sub(after), 0),
            Verdict::of(loaded - after.min(loaded) <= TOLERANCE),
        );
    }

    let small = DenoiseParams { shape: parts.vae.1.shape(64, 64).unwrap(), ..params };
    let reference = image(&model, &small, 1).unwrap();
    let mut model = Some(model);
    let start = Instant::now();
    let (mut least, mut most, mut off) = (u64::MAX, 0, 0.0_f64);
    for _ in 0..cycles {
        drop(model.take());
        let (parked, _) = card::memory(&here.device);
        (least, most) = (least.min(parked), most.max(parked));
        let woken = load(here, &golden).unwrap();
        off = off.max(relative_error(&image(&woken, &small, 1).unwrap(), &reference));
        model = Some(woken);
    }
    let stays = free.saturating_sub(least);
    let seconds = start.elapsed().as_secs_f64();
    let value =
        json!({"cycles": cycles, "seconds": seconds, "most_that_stayed": mib(stays), "drift": mib(most - least)});
    say("parking and waking", &value, Verdict::of(stays <= TOLERANCE));
    say("the same values after each", &json!(off), Verdict::of(off < 1e-5));
    let again = image(model.as_ref().unwrap(), &params, 2).unwrap();
    let off = relative_error(&again, &first);
    say("the same image at the end as at the beginning", &json!(off), Verdict::of(off < 1e-5));
    drop(model);
    let (released, _) = card::memory(&here.device);
    say(
        "kept after release",
        &json!(mib(free.saturating_sub(released))),
        Verdict::of(free.saturating_sub(released) <= TOLERANCE),
    );
}

fn image(model: &Model, params: &DenoiseParams, steps: usize) -> Result<Vec<f32>, Error> {
    let params = DenoiseParams { steps, ..*params };
    let prompt = model.encode("a fox")?;
    let latents = model.denoise(&prompt, &params.shape.noise(7), &params, |_| Ok(()))?;
    model.decode(&latents, params.shape)
}

/// Another process takes the card: a step is out of memory, is told so, and the next one is served when the other has left; so
/// does a load. On candle's CPU device nobody can take anything, so there only the way is gone.
pub(crate) fn full(here: &Here) {
    let golden = golden(here);
    let model = load(here, &golden).unwrap();
    let small = model.vae().shape(64, 64).unwrap();
    let params = |shape: Shape| DenoiseParams { shape, steps: 1, guidance: 3.5 };
    let parts = golden.parts(Offload::AllResident);
    let cost = |shape| {
        let request = RequestSize { shape, steps: 1, previews: false, text_length: LENGTH };
        memory::cost(&parts, &request, Dtype::F32, Offload::AllResident)
    };
    // An image that takes three times what is left.
    let sides = (1..64).map(|i| i * 256);
    let large = sides.filter_map(|side| model.vae().shape(side, side)).find(|shape| cost(*shape) > 3 * LEFT);
    image(&model, &params(small), 1).unwrap();

    let larger = Larger::write(here);
    let (free, total) = card::memory(&here.device);
    let other = Other::hold(here, free.saturating_sub(LEFT));
    let (left, _) = card::memory(&here.device);
    let held = json!({"left": mib(left), "of": mib(total), "share_held": 1.0 - left as f64 / total as f64});
    say("another process holds the card", &held, Verdict::of(here.device.is_cpu() || left < total / 20));
    if here.device.is_cpu() {
        say("what is out of memory", &json!("only a card can be full: not provoked here"), Verdict::Figure);
    } else if let Some(large) = large {
        told("a step that is out of memory", image(&model, &params(large), 1).map(drop));
        told("a load that is out of memory", larger.load(here).map(drop));
    }
    drop(other);
    let small = image(&model, &params(small), 1);
    say("a request when it has left", &json!(small.as_ref().err().map(Error::message)), Verdict::of(small.is_ok()));
    let again = larger.load(here).map(drop);
    say("a load when it has left", &json!(again.as_ref().err().map(Error::message)), Verdict::of(again.is_ok()));
}

fn told(what: &str, made: Result<(), Error>) {
    let kind = made.as_ref().err().map(Error::kind);
    let text = made.as_ref().err().map(|error| error.message().to_owned());
    say(what, &json!(text), Verdict::of(kind == Some(ErrorKind::OutOfMemory)));
}

/// A model that what is left of a full card does not hold.
struct Larger(Scratch);

impl Larger {
    fn write(here: &Here) -> Self {
        let scratch = Scratch::new("larger");
        let size = if here.device.is_cpu() { SMALL } else { Size { double_blocks: 2, single_blocks: 2, ..PUBLISHED } };
        weights::write(&here.folder.join("dev"), size, &scratch.0).unwrap();
        Self(scratch)
    }

    fn load(&self, here: &Here) -> Result<Model, Error> {
        let files = [("model".to_owned(), self.0.0.clone())].into_iter().collect();
        let files = Files::of(&LoadRequest::new("cpu", files))?;
        let parts = Parts::open(&files, Offload::AllResident.residency())?;
        let options = DeviceOptions {
            device: &here.device,
            dtype: Dtype::Bf16,
            offload: Offload::AllResident,
            on_progress: &|_| Ok(()),
        };
        parts.load_on(&options, LENGTH)
    }
}

/// Takes so many bytes until the input ends.
pub(crate) fn hold(here: &Here, bytes: u64) {
    let mut held = Vec::new();
    let mut left = if here.device.is_cpu() { 0 } else { bytes };
    let mut piece = 4_u64 << 30;
    while left > 0 && piece >= 16 << 20 {
        let size = piece.min(left);
        match Tensor::zeros(size as usize, DType::U8, &here.device) {
            Ok(tensor) => {
                held.push(tensor);
                left -= size;
            }
            Err(_) => piece /= 2,
        }
    }
    let _ = here.device.synchronize();
    say("held", &json!(mib(bytes - left)), Verdict::Figure);
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// A process that holds memory of the card; it leaves when this is dropped.
struct Other(Child);

impl Other {
    fn hold(here: &Here, bytes: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["hold", &here.name])
            .arg(&here.folder)
            .arg(bytes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self(child)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
