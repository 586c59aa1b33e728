//! The golden cases: diffusers' values, and how far a model's are from them at every stage. Shared by the test `golden` and
//! by the example `flux_device`, which asks the same on a card without cargo.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use aihost_plugin_api::LoadRequest;
use candle_core::{Device, Tensor};
use flux::device::{DeviceOptions, Dtype};
use flux::files::Files;
use flux::memory::Offload;
use flux::model::{DenoiseParams, Model, Parts};
use serde::Deserialize;

/// What `case.json` says.
#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) files: BTreeMap<String, PathBuf>,
    pub(crate) prompt: String,
    pub(crate) steps: usize,
    pub(crate) guidance: f32,
    pub(crate) length: usize,
    pub(crate) sizes: Vec<(usize, usize)>,
}

/// A case with the values that the reference computed.
pub(crate) struct Golden {
    pub(crate) folder: PathBuf,
    pub(crate) case: Case,
    pub(crate) expected: HashMap<String, Tensor>,
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

    pub(crate) fn parts(&self, offload: Offload) -> Parts {
        let files = self.case.files.iter().map(|(role, path)| (role.clone(), self.folder.join(path))).collect();
        let files = Files::of(&LoadRequest::new("cpu", files)).unwrap();
        Parts::open(&files, offload.residency()).unwrap()
    }

    /// In tensors, of weights that stay in mapped files until they are wanted.
    pub(crate) fn tensors(&self, device: &Device, dtype: Dtype, offload: Offload) -> Model {
        let options = DeviceOptions { device, dtype, offload, on_progress: &|_| Ok(()) };
        self.parts(Offload::AllResident).load_on(&options, self.case.length).unwrap()
    }

    pub(crate) fn params(&self, model: &Model, (width, height): (usize, usize)) -> DenoiseParams {
        let shape = model.vae().shape(width, height).unwrap();
        DenoiseParams { shape, steps: self.case.steps, guidance: self.case.guidance }
    }

    pub(crate) fn to_f32(&self, name: &str) -> Vec<f32> {
        to_f32(&self.expected[name])
    }

    /// How far a model is from the reference, stage by stage, in the order in which a request passes them.
    pub(crate) fn measure(&self, model: &Model) -> Vec<Measure> {
        let mut measures = Vec::new();
        let mut note = |name: String, found: &[f32]| {
            let off = Off::Error(relative_error(found, &self.to_f32(&name)));
            measures.push(Measure { name, off });
        };
        let prompt = model.encode(&self.case.prompt).unwrap();
        note("pooled".to_owned(), &prompt.pooled);
        note("text".to_owned(), &prompt.text);
        let mut images = Vec::new();
        for &(width, height) in &self.case.sizes {
            let (name, params) = (|part: &str| format!("{width}x{height}.{part}"), self.params(model, (width, height)));
            let noise = self.to_f32(&name("noise"));
            let (text, image) = model.first_block(&prompt, &noise, &params).unwrap();
            note(name("block_text"), &text);
            note(name("block_picture"), &image);
            let mut steps = 0;
            let latents = model.denoise(&prompt, &noise, &params, |step| {
                note(name(&format!("latents_{}", step.done - 1)), step.latents);
                steps = step.done;
                Ok(())
            });
            let latents = latents.unwrap();
            assert_eq!(steps, self.case.steps);
            note(name("final"), &latents);
            let pixels = name("pixels");
            let off = Off::Psnr(psnr(&model.decode(&latents, params.shape).unwrap(), &self.expected[&pixels]));
            images.push(Measure { name: pixels, off });
        }
        measures.extend(images);
        measures
    }
}

/// How far one stage is from the reference.
#[derive(Clone, Debug)]
pub(crate) struct Measure {
    pub(crate) name: String,
    pub(crate) off: Off,
}

/// How far something is off.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Off {
    /// Norm of the difference over norm of the reference.
    Error(f64),
    /// Peak signal-to-noise ratio of pixels, dB.
    Psnr(f64),
}

/// How far a model may be from the reference.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Relative error at every stage.
    pub(crate) error: f64,
    /// Least peak signal-to-noise ratio of the pixels, dB.
    pub(crate) psnr: f64,
}

/// The limits of a model that computes in f32.
pub(crate) const F32: Limits = Limits { error: 1e-4, psnr: 60.0 };

/// The limits of a model that computes in bf16 or f16, against a reference in f32.
pub(crate) const HALF: Limits = Limits { error: 2e-2, psnr: 45.0 };

impl Measure {
    /// Whether it is within the limits.
    pub(crate) fn is_within(&self, limits: Limits) -> bool {
        match self.off {
            Off::Error(error) => error < limits.error,
            Off::Psnr(psnr) => psnr > limits.psnr,
        }
    }
}

/// The cases below these folders.
pub(crate) fn cases(roots: &[PathBuf]) -> Vec<Golden> {
    let folders = roots.iter().flat_map(|root| std::fs::read_dir(root).unwrap());
    let folders = folders.map(|entry| entry.unwrap().path()).filter(|folder| folder.join("case.json").is_file());
    let mut cases: Vec<_> = folders.map(|folder| Golden::open(&folder)).collect();
    cases.sort_by(|a, b| a.folder.cmp(&b.folder));
    assert!(cases.len() >= 3, "the committed cases are missing");
    cases
}

fn to_f32(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Norm of the difference over norm of the reference.
pub(crate) fn relative_error(found: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let difference: f64 = found.iter().zip(wanted).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (difference / wanted.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()).sqrt()
}

/// Of pixels (height, width, 3) in [-1, 1] beside (3, height, width), dB.
pub(crate) fn psnr(found: &[f32], wanted: &Tensor) -> f64 {
    let wanted = to_f32(&wanted.permute((1, 2, 0)).unwrap().contiguous().unwrap());
    assert_eq!(found.len(), wanted.len());
    let squares: f64 = found.iter().zip(&wanted).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    10.0 * (4.0 / (squares / wanted.len() as f64)).log10()
}
