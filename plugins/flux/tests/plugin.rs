//! The plugin through the objects a host uses: requests good and bad, seeds, previews, memory, damaged checkpoints; and the
//! same objects over tensors, on candle's CPU device.

#![expect(clippy::unwrap_used, reason = "a test's helpers are tests too")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use aihost_plugin_api::testing::MockHost;
use aihost_plugin_api::{ErrorKind, FinishReason, ImageRequest, LoadContext, LoadRequest, MemoryPlan, Plugin, Result};
use aihost_support::damage::poison;
use candle_core::{Device, DeviceLocation, Tensor};
use flux::device::Dtype;
use flux::engine::Flux;
use flux::memory::Target;
use flux::{FluxPlugin, Options};
use serde_json::{Value, json};

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/flux").join(case)
}

fn schnell() -> Vec<(&'static str, PathBuf)> {
    let parts = [
        ("transformer", "flux1-schnell.safetensors"),
        ("t5", "t5xxl.safetensors"),
        ("clip", "clip_l.safetensors"),
        ("ae", "ae.safetensors"),
        ("tokenizers", "tokenizers"),
    ];
    parts.map(|(role, name)| (role, golden("schnell").join(name))).to_vec()
}

fn dev() -> Vec<(&'static str, PathBuf)> {
    vec![("model", golden("dev"))]
}

fn host(options: Value, files: &[(&str, PathBuf)]) -> MockHost {
    let mut host = MockHost::new::<FluxPlugin>(options, files).unwrap();
    host.load().unwrap();
    host
}

/// The plugin as it runs on a device, on candle's CPU device.
struct InTensors(FluxPlugin);

const TENSORS: Target = Target::Tensors { location: DeviceLocation::Cpu, dtype: Dtype::F32 };

impl Plugin for InTensors {
    type Options = Options;
    type Engine = Flux;

    fn new(options: Options) -> Result<Self> {
        FluxPlugin::new(options).map(Self)
    }

    fn plan(&self, load: &LoadRequest) -> Result<MemoryPlan> {
        self.0.plan_on(load, TENSORS)
    }

    fn load(&self, load: &LoadRequest, ctx: &LoadContext) -> Result<Flux> {
        self.0.load_on(load, TENSORS, ctx)
    }
}

/// On the host's cores and in tensors; nothing is loaded yet.
fn both(options: &Value, files: &[(&str, PathBuf)]) -> [MockHost; 2] {
    [MockHost::new::<FluxPlugin>(options.clone(), files), MockHost::new::<InTensors>(options.clone(), files)]
        .map(Result::unwrap)
}

fn small() -> Value {
    json!({"max_pixels": 4096, "max_sequence_length": 32})
}

fn ask() -> ImageRequest {
    let prompt = "a fox in the snow".to_owned();
    ImageRequest::new(prompt).width(48).height(32).steps(3).seed(5)
}

#[test]
fn a_seed_makes_the_same_image() {
    let host = host(small(), &dev());
    let first = host.generate_image(&ask()).unwrap();
    let image = &first.images[0];
    assert_eq!((first.images.len(), image.pixels.len()), (1, 48 * 32 * 3));
    assert_eq!((image.header.width, image.header.height, image.header.partial), (48, 32, false));
    assert!(image.pixels.iter().collect::<std::collections::BTreeSet<_>>().len() > 50, "it is one colour");
    let finish = first.finish;
    assert_eq!((finish.reason, finish.seed, finish.steps), (FinishReason::Stop, 5, 3));

    assert_eq!(host.generate_image(&ask()).unwrap().images, first.images);
    let differs = |change: fn(&mut ImageRequest)| {
        let mut request = ask();
        change(&mut request);
        assert_ne!(host.generate_image(&request).unwrap().images[0].pixels, image.pixels);
    };
    differs(|request| request.seed = Some(6));
    differs(|request| request.prompt = "a boat".to_owned());
    differs(|request| request.guidance = Some(1.0));
    differs(|request| request.steps = Some(2));
    // Asked again after others, and by another instance.
    assert_eq!(host.generate_image(&ask()).unwrap().images, first.images);

    let drawn = host.generate_image(&ask().seed(None)).unwrap();
    let again = host.generate_image(&ask().seed(drawn.finish.seed)).unwrap();
    assert_eq!(drawn.images, again.images);
}

#[test]
fn what_is_no_number_fails_its_request_and_names_the_part() {
    let folder = tempfile::tempdir().unwrap();
    for (role, tensor, part) in [
        ("clip", "text_model.final_layer_norm.weight", "CLIP encoder, at its one step"),
        ("t5", "encoder.final_layer_norm.weight", "T5 encoder, at its one step"),
        ("transformer", "img_in.weight", "transformer, at step 1 of 3"),
        ("ae", "decoder.conv_out.weight", "autoencoder, at its one step"),
    ] {
        let mut files = schnell();
        let copy = folder.path().join(format!("{role}.safetensors"));
        let (_, file) = files.iter_mut().find(|(name, _)| *name == role).unwrap();
        poison(file, tensor, &copy).unwrap();
        *file = copy;
        for mut host in both(&small(), &files) {
            host.load().unwrap();
            let error = host.generate_image(&ask()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
            assert!(error.message().contains(&format!("no finite numbers: its {part};")), "{tensor}: {error}");
        }
    }
}

#[test]
fn previews_become_the_image() {
    let host = host(small(), &schnell());
    let request = ask().steps(6).partial_images(2);
    let answer = host.generate_image(&request).unwrap();
    let steps: Vec<_> = answer.images.iter().map(|image| (image.header.step, image.header.partial)).collect();
    assert_eq!(steps, [(2, true), (4, true), (6, false)]);
    let away = |i: usize| -> u64 {
        let pairs = answer.images[i].pixels.iter().zip(&answer.images[2].pixels);
        pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum()
    };
    assert!(away(0) > away(1) && away(1) > 0, "{} {}", away(0), away(1));
}

#[test]
fn a_client_may_leave() {
    let host = host(small(), &schnell());
    host.stop_after(1);
    let left = host.generate_image(&ask().partial_images(2)).unwrap();
    assert_eq!((left.finish.reason, left.finish.steps), (FinishReason::Cancelled, 1));
    host.cancel();
    assert_eq!(host.generate_image(&ask()).unwrap().finish.steps, 0);
}

#[test]
fn bad_requests_are_refused_clearly_and_odd_ones_have_a_result() {
    let host = host(small(), &schnell());
    let refused = |change: fn(&mut ImageRequest), word: &str| {
        let mut request = ask();
        change(&mut request);
        for error in [host.generate_image(&request).unwrap_err(), host.image_cost(&request).unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
            assert!(error.message().contains(word), "{error}");
        }
    };
    refused(|request| request.width = 0, "multiples of 4");
    refused(|request| request.height = 7, "multiples of 4");
    refused(|request| request.width = 1_000_000_000, "at most 4096 pixels");
    refused(|request| (request.width, request.height) = (4_000_000_000, 4_000_000_000), "at most 4096 pixels");
    refused(|request| (request.width, request.height) = (64, 68), "at most 4096 pixels");
    refused(|request| request.steps = Some(0), "from 1 to 100");
    refused(|request| request.steps = Some(u32::MAX), "from 1 to 100");
    refused(|request| request.guidance = Some(-0.5), "guidance is -0.5");
    refused(|request| request.guidance = Some(1e9), "guidance is 1000000000");

    let made = |change: fn(&mut ImageRequest)| {
        let mut request = ask().steps(1);
        change(&mut request);
        assert_eq!(host.generate_image(&request).unwrap().finish.reason, FinishReason::Stop);
    };
    made(|request| request.prompt = String::new());
    made(|request| request.prompt = "snow ".repeat(20_000));
    made(|request| request.prompt = "\u{0}\u{feff}🦊 \u{202e}".to_owned());
    made(|request| (request.width, request.height) = (4, 4));
    made(|request| (request.width, request.height) = (4, 1024));
    // No JSON number: it arrives as absent.
    made(|request| request.guidance = Some(f32::NAN));
    assert!(host.logs().iter().any(|line| line.contains("end of the prompt")), "{:?}", host.logs());
}

#[test]
fn wrong_options_are_named() {
    for (options, word) in [
        (json!({"max_sequence_length": 0}), "max_sequence_length is 0"),
        (json!({"max_sequence_length": 513}), "max_sequence_length is 513"),
        (json!({"max_pixels": 1}), "max_pixels is 1"),
        (json!({"offload": "disk"}), "disk"),
        (json!({"stepz": 1}), "stepz"),
    ] {
        let error = MockHost::new::<FluxPlugin>(options, &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOptions);
        assert!(error.message().contains(word), "{error}");
    }
}

#[test]
fn what_is_granted_decides_which_weights_stay() {
    for way in 0..2 {
        let host = |offload: &str| {
            let mut options = small();
            options["offload"] = json!(offload);
            both(&options, &dev()).into_iter().nth(way).unwrap()
        };
        let plan = |offload: &str| host(offload).plan().unwrap();
        let [auto, all, parked, streamed] = ["auto", "all_resident", "encoders_parked", "streamed"].map(plan);
        assert_eq!((auto.required, auto.preferred, auto.mapped), (streamed.required, all.required, 0));
        assert!(all.required > parked.required && parked.required > streamed.required);
        assert_eq!((all.required, streamed.mapped), (all.preferred, 0));
        let kept = |granted| {
            let mut host = host("auto");
            host.load_within(granted).unwrap();
            let image = host.generate_image(&ask()).unwrap().images;
            (host.usage().unwrap().device, image)
        };
        let plenty = kept(all.required + auto.workspace_max);
        assert_eq!(plenty.0, all.required);
        for (granted, left) in [
            (all.required + auto.workspace_max - 1, parked.required),
            (parked.required + auto.workspace_max - 1, streamed.required),
            (streamed.required + auto.workspace_max, streamed.required),
        ] {
            assert_eq!(kept(granted), (left, plenty.1.clone()));
        }
        let error = host("auto").load_within(streamed.required - 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
        assert!(error.message().contains(&streamed.required.to_string()), "{error}");
    }
}

#[test]
fn an_image_that_does_not_fit_is_refused_and_a_smaller_one_is_made() {
    for mut host in
        both(&json!({"max_pixels": 16384, "max_sequence_length": 32, "offload": "all_resident"}), &schnell())
    {
        let held = host.plan().unwrap().required;
        let large = ask().width(128).height(128);
        host.load().unwrap();
        let [cost, less] = [&large, &ask()].map(|request| host.image_cost(request).unwrap());
        assert!(less < cost);
        host.load_within(held + cost - 1).unwrap();
        let error = host.generate_image(&large).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
        assert!(error.message().contains(&cost.to_string()), "{error}");
        assert!(error.message().contains(&(cost - 1).to_string()), "{error}");
        assert_eq!(host.generate_image(&ask()).unwrap().images.len(), 1);
        host.load_within(held + cost).unwrap();
        assert_eq!(host.generate_image(&large).unwrap().images.len(), 1);
    }
}

#[test]
fn tensors_make_the_same_image_within_a_shade() {
    let request = ask().steps(6).partial_images(2);
    let [one, other] = both(&small(), &schnell()).map(|mut host| {
        host.load().unwrap();
        assert!(host.progress() > 0);
        let answer = host.generate_image(&request).unwrap();
        assert_eq!(host.generate_image(&request).unwrap().images, answer.images);
        host.stop_after(1);
        assert_eq!(host.generate_image(&request).unwrap().finish.reason, FinishReason::Cancelled);
        answer.images
    });
    assert_eq!(one.len(), 3);
    for (one, other) in one.iter().zip(&other) {
        assert_eq!(one.header.step, other.header.step);
        assert!(one.pixels.iter().zip(&other.pixels).all(|(a, b)| a.abs_diff(*b) <= 1));
    }
}

#[test]
fn parked_it_holds_nothing_and_wakes_as_it_was() {
    for mut host in both(&small(), &dev()) {
        host.load().unwrap();
        let (before, image) = (host.usage().unwrap(), host.generate_image(&ask()).unwrap().images);
        assert!(before.device > 0);
        host.park().unwrap();
        assert_eq!(host.usage().unwrap().device, 0);
        assert!(host.generate_image(&ask()).unwrap_err().message().contains("parked"));
        host.unpark().unwrap();
        assert_eq!(host.usage().unwrap(), before);
        assert_eq!(host.generate_image(&ask()).unwrap().images, image);
    }
}

#[test]
fn devices_that_are_not_there_are_named() {
    let plan = |device: &str, options: Value| {
        let files = dev().into_iter().map(|(role, path)| (role.to_owned(), path)).collect();
        let load = LoadRequest::new(device, files);
        FluxPlugin::new(serde_json::from_value(options).unwrap()).unwrap().plan(&load)
    };
    let error = plan("tpu:0", small()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("`tpu:0`"), "{error}");
    let error = plan("cpu", json!({"dtype": "f16"})).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOptions);
    assert!(error.message().contains("dtype"), "{error}");
    let error = plan("cuda:0", json!({"max_pixels": 1 << 26})).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOptions);
    assert!(error.message().contains("33554432"), "{error}");
    for device in ["cuda", "cuda:1"] {
        let found = plan(device, json!({"dtype": "f16"}));
        if cfg!(feature = "cuda") {
            assert!(found.unwrap().required > flux::device::memory::CONTEXT);
        } else {
            let error = found.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.message().contains("build-plugins --cuda"), "{error}");
        }
    }
}

#[test]
fn the_plan_holds_for_every_request() {
    for mut host in both(&small(), &dev()) {
        host.load().unwrap();
        let most = host.plan().unwrap().workspace_max;
        let cost = |request: ImageRequest| host.image_cost(&request).unwrap();
        let largest = ask().width(64).height(64).steps(100).partial_images(3);
        assert!(cost(ask()) < cost(largest.clone()) && cost(largest) <= most);
        assert!(cost(ask().width(256).height(16).steps(100).partial_images(1)) <= most);
    }
}

/// A copy of the schnell case whose transformer lacks or changes a tensor.
fn damaged(change: impl FnOnce(&mut HashMap<String, Tensor>)) -> aihost_plugin_api::Error {
    let folder = tempfile::tempdir().unwrap();
    let mut files = schnell();
    let mut tensors = candle_core::safetensors::load(&files[0].1, &Device::Cpu).unwrap();
    change(&mut tensors);
    files[0].1 = folder.path().join("damaged.safetensors");
    candle_core::safetensors::save(&tensors, &files[0].1).unwrap();
    let mut host = MockHost::new::<FluxPlugin>(small(), &files).unwrap();
    host.load().unwrap_err()
}

#[test]
fn a_missing_or_mis_shaped_tensor_is_named() {
    let shape =
        |rows: usize, columns: usize| Tensor::zeros((rows, columns), candle_core::DType::F32, &Device::Cpu).unwrap();
    for (error, words) in [
        (
            damaged(|t| drop(t.remove("double_blocks.1.txt_mlp.2.bias"))),
            ["double_blocks.1.txt_mlp.2.bias", "has no tensor"],
        ),
        (damaged(|t| drop(t.remove("img_in.weight"))), ["img_in.weight", "FLUX.1"]),
        (
            damaged(|t| drop(t.insert("single_blocks.0.linear2.weight".to_owned(), shape(32, 100)))),
            ["single_blocks.0.linear2.weight", "[32, 100]"],
        ),
        (damaged(|t| drop(t.insert("txt_in.weight".to_owned(), shape(32, 64)))), ["takes 64 states of T5", "has 40"]),
    ] {
        assert_eq!(error.kind(), ErrorKind::CorruptFile, "{error}");
        assert!(words.iter().all(|word| error.message().contains(word)), "{error}");
    }
}

#[test]
fn a_missing_part_is_named() {
    for (role, word) in [("t5", "`t5`"), ("ae", "`vae`"), ("tokenizers", "tokenizer")] {
        let files: Vec<_> = schnell().into_iter().filter(|(name, _)| *name != role).collect();
        let error = MockHost::new::<FluxPlugin>(small(), &files).unwrap().plan().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::MissingFile);
        assert!(error.message().contains(word), "{error}");
    }
    let files: Vec<_> = schnell().into_iter().map(|(role, path)| (role, path.with_extension("gone"))).collect();
    let error = MockHost::new::<FluxPlugin>(small(), &files).unwrap().plan().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingFile, "{error}");
}
