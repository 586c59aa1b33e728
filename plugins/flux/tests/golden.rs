//! The plugin against diffusers' values: every case folder under `tests/golden/flux` and under `AIHOST_GOLDEN_DIR`, as
//! `tests/golden/flux/generate.py` writes them, on the host's cores and in tensors.
//!
//! Tensors are candle's CPU device's, and those of `AIHOST_GOLDEN_DEVICE` (`cuda:0`) too in a build with the feature `cuda`.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test's helpers are tests too")]

mod cases;

use std::path::{Path, PathBuf};

use aihost_engine::candle::{locate, open};
use candle_core::Device;
use flux::device::Dtype;
use flux::latents::Shape;
use flux::memory::Offload;
use flux::model::Model;

use cases::{F32, Golden, HALF, Limits, psnr, relative_error};

/// The committed cases, and those of `AIHOST_GOLDEN_DIR`.
fn cases() -> Vec<Golden> {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/flux");
    let more = std::env::var_os("AIHOST_GOLDEN_DIR").map(PathBuf::from);
    cases::cases(&[committed].into_iter().chain(more).collect::<Vec<_>>())
}

/// On the host's cores.
fn on_host(golden: &Golden, offload: Offload) -> Model {
    golden.parts(offload).load(golden.case.length).unwrap()
}

/// Says how far `found` is from the tensor `name` and fails if that is `limit` or more.
fn check(golden: &Golden, name: &str, found: &[f32], limit: f64) {
    let error = relative_error(found, &golden.to_f32(name));
    println!("{}: {name} {error:.1e}", golden.folder.display());
    assert!(error < limit, "{}: {name} is off by {error:.1e}", golden.folder.display());
}

/// The devices that tensors are tried on.
fn devices() -> Vec<Device> {
    let more = std::env::var("AIHOST_GOLDEN_DEVICE").ok();
    let more = more.map(|name| open(locate(&name).unwrap()).unwrap());
    std::iter::once(Device::Cpu).chain(more).collect()
}

fn check_stages(golden: &Golden, model: &Model, limits: Limits) {
    for measure in golden.measure(model) {
        let text = format!("{}: {} {:?}", golden.folder.display(), measure.name, measure.off);
        println!("{text}");
        assert!(measure.is_within(limits), "{text}");
    }
}

#[test]
fn values_are_the_references() {
    for golden in cases() {
        check_stages(&golden, &on_host(&golden, Offload::AllResident), F32);
    }
}

#[test]
fn values_in_tensors_are_the_references() {
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
    for model in std::iter::once(on_host(&golden, Offload::AllResident)).chain(tensors) {
        for &(width, height) in &golden.case.sizes {
            let (name, shape) =
                (|part: &str| format!("{width}x{height}.{part}"), golden.params(&model, (width, height)).shape);
            let tile = model.vae().tile();
            assert!(shape.height > tile || shape.width > tile, "one tile would be the whole image");
            let pixels = model.decode_tiled(&golden.to_f32(&name("final")), shape, tile).unwrap();
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
    let noise = golden.to_f32(&format!("{width}x{height}.noise"));
    let tensors = devices().into_iter().map(|device| golden.tensors(&device, Dtype::Bf16, Offload::AllResident));
    for model in std::iter::once(on_host(&golden, Offload::AllResident)).chain(tensors) {
        let params = golden.params(&model, (width, height));
        let prompt = model.encode(&golden.case.prompt).unwrap();
        let result = model.denoise(&prompt, &noise, &params, |step| {
            if step.done == 1 {
                check(&golden, "half", step.latents, 2e-2);
                check(&golden, "whole", step.latents, 2e-2);
            }
            Ok(())
        });
        result.unwrap();
    }
}

#[test]
fn weights_give_the_same_values_however_they_are_read() {
    for golden in cases() {
        let size = golden.case.sizes[0];
        let made = [Offload::AllResident, Offload::EncodersParked, Offload::Streamed].map(|offload| {
            let model = on_host(&golden, offload);
            let prompt = model.encode(&golden.case.prompt).unwrap();
            let params = golden.params(&model, size);
            model.denoise(&prompt, &params.shape.noise(7), &params, |_| Ok(())).unwrap()
        });
        assert!(made[0] == made[1] && made[0] == made[2], "{}", golden.folder.display());
        assert!(made[0].iter().all(|x| x.is_finite()));
    }
}

#[test]
fn tensors_give_the_same_values_however_weights_are_kept() {
    for golden in cases() {
        let size = golden.case.sizes[0];
        for dtype in [Dtype::F32, Dtype::F16] {
            let made = [Offload::AllResident, Offload::EncodersParked, Offload::Streamed].map(|offload| {
                let model = golden.tensors(&Device::Cpu, dtype, offload);
                let prompt = model.encode(&golden.case.prompt).unwrap();
                let params = golden.params(&model, size);
                model.denoise(&prompt, &params.shape.noise(7), &params, |_| Ok(())).unwrap()
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
        let model = on_host(&golden, Offload::AllResident);
        let unit = 2 * model.vae().scale();
        assert_eq!(model.vae().shape(unit, 3 * unit).map(Shape::grid), Some((3, 1)));
        assert_eq!(
            [model.vae().shape(0, unit), model.vae().shape(unit, unit + 1), model.vae().shape(unit / 2, unit)],
            [None; 3]
        );
    }
}
