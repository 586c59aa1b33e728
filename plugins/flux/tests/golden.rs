//! The plugin against diffusers' numbers: every case folder under `tests/golden/flux` and under `AIHOST_GOLDEN_DIR`, as
//! `tests/golden/flux/generate.py` writes them, on the host's cores and in tensors.
//!
//! Tensors are candle's CPU device's, and those of `AIHOST_GOLDEN_DEVICE` (`cuda:0`) too in a build with the feature `cuda`.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test's helpers are tests too")]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use aihost_plugin_api::LoadRequest;
use aihost_support::device::{locate, open};
use candle_core::{Device, Tensor};
use flux::device::{Dtype, Wanted};
use flux::files::Files;
use flux::latents::Shape;
use flux::memory::Offload;
use flux::model::{Job, Model, Parts};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    files: BTreeMap<String, PathBuf>,
    prompt: String,
    steps: usize,
    guidance: f32,
    length: usize,
    sizes: Vec<(usize, usize)>,
}

struct Golden {
    folder: PathBuf,
    case: Case,
    expected: HashMap<String, Tensor>,
}

impl Golden {
    fn open(folder: &Path) -> Self {
        let case = std::fs::read_to_string(folder.join("case.json")).unwrap();
        Self {
            folder: folder.to_owned(),
            case: serde_json::from_str(&case).unwrap(),
            expected: candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap(),
        }
    }

    fn parts(&self, offload: Offload) -> Parts {
        let files = self.case.files.iter().map(|(role, path)| (role.clone(), self.folder.join(path))).collect();
        let files = Files::of(&LoadRequest { files, ..LoadRequest::default() }).unwrap();
        Parts::open(&files, offload.readings()).unwrap()
    }

    fn model(&self, offload: Offload) -> Model {
        self.parts(offload).load(self.case.length).unwrap()
    }

    /// In tensors, of weights that stay in mapped files until they are wanted.
    fn tensors(&self, device: &Device, dtype: Dtype, offload: Offload) -> Model {
        let wanted = Wanted { device, dtype, offload, heard: &|_| Ok(()) };
        self.parts(Offload::AllResident).load_on(&wanted, self.case.length).unwrap()
    }

    fn job(&self, model: &Model, (width, height): (usize, usize)) -> Job {
        let shape = model.vae().shape(width, height).unwrap();
        Job { shape, steps: self.case.steps, guidance: self.case.guidance }
    }

    fn numbers(&self, name: &str) -> Vec<f32> {
        numbers(&self.expected[name])
    }

    /// Says how far `found` is from the tensor `name` and fails if that is `limit` or more.
    fn check(&self, name: &str, found: &[f32], limit: f64) {
        let error = relative_error(found, &self.numbers(name));
        println!("{}: {name} {error:.1e}", self.folder.display());
        assert!(error < limit, "{}: {name} is off by {error:.1e}", self.folder.display());
    }
}

fn cases() -> Vec<Golden> {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/flux");
    let more = std::env::var_os("AIHOST_GOLDEN_DIR").map(PathBuf::from);
    let folders = [Some(committed), more].into_iter().flatten().flat_map(|root| std::fs::read_dir(root).unwrap());
    let folders = folders.map(|entry| entry.unwrap().path()).filter(|folder| folder.join("case.json").is_file());
    let cases: Vec<_> = folders.map(|folder| Golden::open(&folder)).collect();
    assert!(cases.len() >= 3, "the committed cases are missing");
    cases
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Norm of the difference over norm of the reference.
fn relative_error(found: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let difference: f64 = found.iter().zip(wanted).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (difference / wanted.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()).sqrt()
}

/// Of pixels (height, width, 3) in [-1, 1] beside (3, height, width), dB.
fn psnr(found: &[f32], wanted: &Tensor) -> f64 {
    let wanted = numbers(&wanted.permute((1, 2, 0)).unwrap().contiguous().unwrap());
    assert_eq!(found.len(), wanted.len());
    let squares: f64 = found.iter().zip(&wanted).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    10.0 * (4.0 / (squares / wanted.len() as f64)).log10()
}

/// The devices that tensors are tried on.
fn devices() -> Vec<Device> {
    let more = std::env::var("AIHOST_GOLDEN_DEVICE").ok();
    let more = more.map(|name| open(locate(&name).unwrap()).unwrap());
    std::iter::once(Device::Cpu).chain(more).collect()
}

/// How far a model may be from the reference.
#[derive(Clone, Copy)]
struct Limits {
    /// Relative error at every stage.
    error: f64,
    /// Of the pixels, dB.
    psnr: f64,
}

const F32: Limits = Limits { error: 1e-4, psnr: 60.0 };

/// Beside a reference in f32.
const HALF: Limits = Limits { error: 2e-2, psnr: 45.0 };

fn check_stages(golden: &Golden, model: &Model, limits: Limits) {
    let prompt = model.encode(&golden.case.prompt).unwrap();
    golden.check("pooled", &prompt.pooled, limits.error);
    golden.check("text", &prompt.text, limits.error);
    for &(width, height) in &golden.case.sizes {
        let (name, job) = (|part: &str| format!("{width}x{height}.{part}"), golden.job(model, (width, height)));
        let noise = golden.numbers(&name("noise"));

        let (text, picture) = model.first_block(&prompt, &noise, &job).unwrap();
        golden.check(&name("block_text"), &text, limits.error);
        golden.check(&name("block_picture"), &picture, limits.error);

        let mut steps = 0;
        let latents = model.denoise(&prompt, &noise, &job, |step| {
            golden.check(&name(&format!("latents_{}", step.done - 1)), step.latents, limits.error);
            steps = step.done;
            Ok(())
        });
        let latents = latents.unwrap();
        assert_eq!(steps, golden.case.steps);
        golden.check(&name("final"), &latents, limits.error);

        let found = psnr(&model.decode(&latents, job.shape).unwrap(), &golden.expected[&name("pixels")]);
        println!("{}: {} {found:.0} dB", golden.folder.display(), name("pixels"));
        assert!(found > limits.psnr, "{}: {} {found:.0} dB", golden.folder.display(), name("pixels"));
    }
}

#[test]
fn numbers_are_the_references() {
    for golden in cases() {
        check_stages(&golden, &golden.model(Offload::AllResident), F32);
    }
}

#[test]
fn numbers_in_tensors_are_the_references() {
    for device in devices() {
        for golden in cases() {
            check_stages(&golden, &golden.tensors(&device, Dtype::F32, Offload::AllResident), F32);
            for dtype in [Dtype::Bf16, Dtype::F16] {
                check_stages(&golden, &golden.tensors(&device, dtype, Offload::AllResident), HALF);
            }
        }
    }
}

#[test]
fn tiles_are_blended_as_the_reference_does() {
    let golden = cases().into_iter().find(|golden| golden.folder.ends_with("flux/dev")).unwrap();
    let tensors = devices().into_iter().map(|device| golden.tensors(&device, Dtype::F32, Offload::AllResident));
    for model in std::iter::once(golden.model(Offload::AllResident)).chain(tensors) {
        for &(width, height) in &golden.case.sizes {
            let (name, shape) =
                (|part: &str| format!("{width}x{height}.{part}"), golden.job(&model, (width, height)).shape);
            let tile = model.vae().tile();
            assert!(shape.height > tile || shape.width > tile, "one tile would be the whole picture");
            let pixels = model.decode_tiled(&golden.numbers(&name("final")), shape, tile).unwrap();
            let found = psnr(&pixels, &golden.expected[&name("tiled")]);
            assert!(found > 60.0, "{} {found:.0} dB", name("tiled"));
            let seams = psnr(&pixels, &golden.expected[&name("pixels")]);
            assert!(seams < 60.0, "the reference was not tiled");
        }
    }
}

/// The case's weights are bfloat16: beside a reference that computes in bfloat16, and beside one with the weights as they
/// were before they were rounded.
#[test]
fn half_precision_stays_close() {
    let golden = cases().into_iter().find(|golden| golden.folder.ends_with("flux/dev")).unwrap();
    let (width, height) = golden.case.sizes[0];
    let noise = golden.numbers(&format!("{width}x{height}.noise"));
    let tensors = devices().into_iter().map(|device| golden.tensors(&device, Dtype::Bf16, Offload::AllResident));
    for model in std::iter::once(golden.model(Offload::AllResident)).chain(tensors) {
        let job = golden.job(&model, (width, height));
        let prompt = model.encode(&golden.case.prompt).unwrap();
        let heard = model.denoise(&prompt, &noise, &job, |step| {
            if step.done == 1 {
                golden.check("half", step.latents, 2e-2);
                golden.check("whole", step.latents, 2e-2);
            }
            Ok(())
        });
        heard.unwrap();
    }
}

#[test]
fn weights_give_the_same_numbers_however_they_are_read() {
    for golden in cases() {
        let size = golden.case.sizes[0];
        let made = [Offload::AllResident, Offload::EncodersParked, Offload::Streamed].map(|offload| {
            let model = golden.model(offload);
            let prompt = model.encode(&golden.case.prompt).unwrap();
            let job = golden.job(&model, size);
            model.denoise(&prompt, &job.shape.noise(7), &job, |_| Ok(())).unwrap()
        });
        assert!(made[0] == made[1] && made[0] == made[2], "{}", golden.folder.display());
        assert!(made[0].iter().all(|x| x.is_finite()));
    }
}

#[test]
fn tensors_give_the_same_numbers_however_weights_are_kept() {
    for golden in cases() {
        let size = golden.case.sizes[0];
        for dtype in [Dtype::F32, Dtype::F16] {
            let made = [Offload::AllResident, Offload::EncodersParked, Offload::Streamed].map(|offload| {
                let model = golden.tensors(&Device::Cpu, dtype, offload);
                let prompt = model.encode(&golden.case.prompt).unwrap();
                let job = golden.job(&model, size);
                model.denoise(&prompt, &job.shape.noise(7), &job, |_| Ok(())).unwrap()
            });
            assert!(made[0].iter().all(|x| x.is_finite()));
            for other in &made[1..] {
                let error = relative_error(other, &made[0]);
                assert!(
                    error < if dtype == Dtype::F32 { 1e-6 } else { 2e-3 },
                    "{} {dtype:?} {error:.1e}",
                    golden.folder.display()
                );
            }
        }
    }
}

#[test]
fn shapes_are_those_of_the_decoder() {
    for golden in cases() {
        let model = golden.model(Offload::AllResident);
        let unit = 2 * model.vae().scale();
        assert_eq!(model.vae().shape(unit, 3 * unit).map(Shape::grid), Some((3, 1)));
        assert_eq!(
            [model.vae().shape(0, unit), model.vae().shape(unit, unit + 1), model.vae().shape(unit / 2, unit)],
            [None; 3]
        );
    }
}
