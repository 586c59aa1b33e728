//! What the tensor code allocates beside what it plans, on candle's CPU device, in f32: there every allocation of a device is
//! one of the process. In bf16 the CPU device widens products, so its peaks are not a GPU's.

use std::path::Path;

use aihost_plugin_api::LoadRequest;
use aihost_support::counting::Counting;
use candle_core::{Device, DeviceLocation};
use flux::device::{DeviceOptions, Dtype, memory};
use flux::files::Files;
use flux::memory::{Memory, Offload, RequestSize, Target};
use flux::model::{DenoiseParams, Parts};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that `work` allocates at a time, bytes.
fn peak<T>(work: impl FnOnce() -> T) -> (u64, T) {
    let before = Counting::now();
    Counting::reset_peak();
    let made = work();
    (Counting::peak() - before, made)
}

/// What was planned, within a tenth: small tensors, and what the CPU's products pack their arguments in, are not planned for.
fn check(what: &str, taken: u64, planned: u64) {
    let share = taken as f64 / planned as f64;
    assert!((0.9..=1.1).contains(&share), "{what}: {taken} bytes taken, {planned} planned: {share:.3}");
}

#[test]
fn what_is_planned_is_what_is_taken() {
    const LENGTH: usize = 1024;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/flux/dev");
    let files = [("model".to_owned(), folder)].into_iter().collect();
    let files = Files::of(&LoadRequest::new("cpu", files)).unwrap();
    let parts = Parts::open(&files, Offload::AllResident.residency()).unwrap();
    let (device, dtype) = (Device::Cpu, Dtype::F32);
    let options = |offload| DeviceOptions { device: &device, dtype, offload, on_progress: &|_| Ok(()) };

    let shape = parts.vae.1.shape(384, 512).unwrap();
    let request = RequestSize { shape, steps: 20, previews: false, text_length: LENGTH };
    let target = Target::Tensors { location: DeviceLocation::Cpu, dtype };
    let sizes = Memory::of(&parts, target, Offload::AllResident, &request);
    let loaded = |offload| {
        let before = Counting::now();
        let model = parts.load_on(&options(offload), LENGTH).unwrap();
        (Counting::now() - before, model)
    };
    let (all, model) = loaded(Offload::AllResident);
    let (streamed, _) = loaded(Offload::Streamed);
    let planned = sizes.weights(Offload::AllResident) - sizes.weights(Offload::Streamed);
    check("matrices", all - streamed, planned);

    let (taken, prompt) = peak(|| model.encode("a fox").unwrap());
    check("encoding", taken, memory::encode(&parts, LENGTH, dtype));

    let params = DenoiseParams { shape, steps: request.steps, guidance: 3.5 };
    let noise = shape.noise(1);
    let (taken, ()) = peak(|| model.benchmark(&prompt, &params, |step| Ok(step < 1)).unwrap());
    check("a step", taken, memory::steps(&parts.transformer.1, &request, dtype));

    let (taken, _) = peak(|| model.decode(&noise, shape).unwrap());
    check("decoding", taken, memory::decode(&parts.vae.1, shape, dtype));
}
