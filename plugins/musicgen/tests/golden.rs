//! The plugin against transformers' values: every case folder under `tests/golden/musicgen` and under
//! `AIHOST_GOLDEN_DIR`, as `tests/golden/musicgen/generate.py` writes them.

#![expect(clippy::unwrap_used, reason = "a test's helpers are tests too")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use aihost_plugin_api::testing::MockHost;
use aihost_plugin_api::{AudioRequest, ErrorKind, FinishReason};
use aihost_support::damage::poison;
use candle_core::{DType, Device, Tensor};
use musicgen::MusicGenPlugin;
use musicgen::compose::{Composition, Windows};
use musicgen::decoder::Guidance;
use musicgen::model::{Files, Model, WindowRequest};
use musicgen::sampler::{Sampler, SamplingStrategy};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    prompt: String,
    guidance_scale: f32,
    frames: usize,
    overlap: usize,
    temperature: f32,
    top_k: usize,
    top_p: f32,
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

    fn model(&self) -> Model {
        let file = |name| self.folder.join(name);
        let files =
            Files { weights: self.folder.clone(), config: file("config.json"), tokenizer: file("tokenizer.json") };
        Model::load(&files, None).unwrap()
    }

    fn values(&self, name: &str) -> Vec<f32> {
        to_f32(&self.expected[name])
    }

    fn tokens(&self, name: &str) -> Vec<Vec<i64>> {
        self.expected[name].to_vec2().unwrap()
    }

    /// Samples interleaved, as they are pushed.
    fn audio(&self) -> Vec<f32> {
        to_f32(&self.expected["audio"].t().unwrap())
    }

    /// A piece of this many frames, of windows as the case has them.
    fn compose(&self, model: &Model, frames: usize, sampler: Sampler) -> Vec<Vec<i64>> {
        let composition = Composition {
            text: model.encode(&self.case.prompt).unwrap(),
            frames,
            guidance: Guidance::from_scale(self.case.guidance_scale),
            sampler,
            windows: Windows { frames: self.case.frames, overlap: self.case.overlap },
        };
        let mut told = (0, 0);
        let codes = model.compose(composition, |_, advance| {
            assert!(advance.done == told.0 + 1 && advance.done <= advance.total, "{advance:?} after {told:?}");
            told = (advance.done, advance.total);
            Ok(())
        });
        assert_eq!(told.0, told.1, "the end was not told");
        let (codes, books) = (codes.unwrap(), model.config().decoder.num_codebooks);
        (0..books)
            .map(|book| codes.all().iter().skip(book).step_by(books).map(|code| i64::from(*code)).collect())
            .collect()
    }

    fn request(&self, model: &Model) -> AudioRequest {
        AudioRequest::new(self.case.prompt.clone())
            .duration((self.case.frames as f64 / model.config().audio_encoder.frame_rate()) as f32)
            .guidance_scale(self.case.guidance_scale)
            .temperature(0.0)
    }
}

fn cases() -> Vec<Golden> {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/musicgen");
    let more = std::env::var_os("AIHOST_GOLDEN_DIR").map(PathBuf::from);
    let folders = [Some(committed), more].into_iter().flatten().flat_map(|root| std::fs::read_dir(root).unwrap());
    let folders = folders.map(|entry| entry.unwrap().path()).filter(|folder| folder.join("case.json").is_file());
    let cases: Vec<_> = folders.map(|folder| Golden::open(&folder)).collect();
    assert!(cases.len() >= 3, "the committed cases are missing");
    cases
}

fn to_f32(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Norm of the difference over norm of the reference.
fn relative_error(found: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let norm = |squares: f64| squares.sqrt();
    let difference = found.iter().zip(wanted).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    norm(difference) / norm(wanted.iter().map(|b| f64::from(*b).powi(2)).sum())
}

fn largest_difference(found: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(found.len(), wanted.len());
    found.iter().zip(wanted).fold(0.0, |most, (a, b)| most.max((a - b).abs()))
}

#[test]
fn values_are_the_references() {
    for golden in cases() {
        let (name, model) = (golden.folder.display(), golden.model());
        let text = model.encode(&golden.case.prompt).unwrap();
        let error = relative_error(&to_f32(&text), &golden.values("text_states"));
        println!("{name}: text states {error:.1e}");
        assert!(error < 1e-4, "{name}: text states are off by {error:.1e}");

        let pattern = model.pattern(golden.case.frames);
        let wanted = golden.tokens("tokens");
        let mut codes = vec![0u32; pattern.frames() * pattern.codebooks()];
        let guidance = Guidance::from_scale(golden.case.guidance_scale);
        let piece = WindowRequest { text: &text, frames: golden.case.frames, guidance, given: &[] };
        let mut steps = 0;
        let made = model.generate(piece, &mut Sampler::new(SamplingStrategy::Greedy, 0), |step| {
            steps += 1;
            if let Some(logits) = golden.expected.get(&format!("logits_{}", step.index)) {
                let error = relative_error(step.logits, &to_f32(logits));
                println!("{name}: logits of step {} {error:.1e}", step.index);
                assert!(error < 1e-4, "{name}: logits of step {} are off by {error:.1e}", step.index);
            }
            for (book, token) in step.tokens.iter().enumerate() {
                if let Some(frame) = pattern.frame(step.index, book) {
                    assert_eq!(i64::from(*token), wanted[book][step.index], "{name}: step {}, book {book}", step.index);
                    codes[frame * pattern.codebooks() + book] = *token;
                }
            }
            Ok(())
        });
        made.unwrap();
        assert_eq!(steps, wanted[0].len(), "{name}: steps");

        for (book, wanted) in golden.tokens("codes").iter().enumerate() {
            let found = codes.iter().skip(book).step_by(pattern.codebooks());
            assert!(found.map(|code| i64::from(*code)).eq(wanted.iter().copied()), "{name}: codes of book {book}");
        }

        let channels = model.config().decoder.audio_channels;
        for channel in 0..channels {
            let own: Vec<u32> = codes.iter().skip(channel).step_by(channels).copied().collect();
            let found = model.codec().decode(&own).unwrap();
            let wanted: Vec<f32> = golden.audio().into_iter().skip(channel).step_by(channels).collect();
            let difference = largest_difference(&found, &wanted);
            println!("{name}: audio of channel {channel} {difference:.1e}");
            assert!(difference < 1e-3, "{name}: audio of channel {channel} is off by {difference:.1e}");
        }
    }
}

#[test]
fn a_longer_piece_goes_on_as_the_reference_does() {
    for golden in cases() {
        let (name, model) = (golden.folder.display(), golden.model());
        let wanted = golden.tokens("long_codes");
        let found = golden.compose(&model, wanted[0].len(), Sampler::new(SamplingStrategy::Greedy, 0));
        assert_eq!(found, wanted, "{name}");
    }
}

#[test]
fn the_same_uniform_draws_give_the_same_tokens() {
    for golden in cases() {
        let (name, model) = (golden.folder.display(), golden.model());
        let draws: Vec<f64> = golden.expected["draws"].to_vec1().unwrap();
        let Case { temperature, top_k, top_p, frames, .. } = golden.case;
        let strategy = SamplingStrategy::Sample { temperature, top_k, top_p };
        let found = golden.compose(&model, frames, Sampler::with_draws(strategy, draws));
        assert_eq!(found, golden.tokens("sampled_codes"), "{name}");
        assert_ne!(found, golden.tokens("codes"), "{name}: drawn like the likeliest");
    }
}

#[test]
fn streamed_audio_is_the_whole() {
    for golden in cases() {
        let (name, request) = (golden.folder.display(), golden.request(&golden.model()));
        for chunk in [1, 7, 50, 1000] {
            let options = serde_json::json!({ "chunk_frames": chunk });
            let mut host = MockHost::new::<MusicGenPlugin>(options, &[("model", golden.folder.clone())]).unwrap();
            host.load().unwrap();
            let answer = host.generate_audio(&request).unwrap();
            let difference = largest_difference(&answer.samples, &golden.audio());
            println!("{name}: in chunks of {chunk}: {} blocks, {difference:.1e}", answer.blocks.len());
            assert!(difference < 1e-4, "{name}: in chunks of {chunk} off by {difference:.1e}");
            assert!(chunk > 7 || answer.blocks.len() > 2, "{name}: nothing was streamed");
            assert_eq!(answer.finish.reason, FinishReason::Stop);
            assert_eq!(answer.finish.samples as usize * usize::from(answer.finish.channels), answer.samples.len());
            assert_eq!(answer.finish.steps as usize, golden.tokens("tokens")[0].len());
        }
    }
}

#[test]
fn a_longer_piece_streams_without_a_seam() {
    for golden in cases() {
        let (name, model) = (golden.folder.display(), golden.model());
        let (wanted, rate) = (golden.tokens("long_codes"), model.config().audio_encoder.frame_rate());
        let options = serde_json::json!({
            "chunk_frames": 16,
            "window": golden.case.frames as f64 / rate,
            "overlap": golden.case.overlap as f64 / rate,
        });
        let mut host = MockHost::new::<MusicGenPlugin>(options, &[("model", golden.folder.clone())]).unwrap();
        host.load().unwrap();
        let duration = (wanted[0].len() as f64 / rate) as f32;
        let answer = host.generate_audio(&golden.request(&model).duration(duration)).unwrap();
        let channels = model.config().decoder.audio_channels;
        for channel in 0..channels {
            let books: Vec<_> = wanted.iter().skip(channel).step_by(channels).collect();
            let codes: Vec<u32> =
                (0..wanted[0].len()).flat_map(|f| books.iter().map(move |book| book[f] as u32)).collect();
            let found: Vec<f32> = answer.samples.iter().copied().skip(channel).step_by(channels).collect();
            let difference = largest_difference(&found, &model.codec().decode(&codes).unwrap());
            assert!(difference < 1e-4, "{name}: channel {channel} is off by {difference:.1e}");
        }
        assert!(answer.finish.steps > answer.finish.samples / model.config().audio_encoder.hop() as u64);
    }
}

#[test]
fn windows_that_cannot_be_are_refused() {
    for options in [
        serde_json::json!({"window": 0}),
        serde_json::json!({"window": -1, "overlap": -2}),
        serde_json::json!({"window": 5, "overlap": 5}),
        serde_json::json!({"overlap": -1}),
    ] {
        let error = MockHost::new::<MusicGenPlugin>(options.clone(), &[]).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidOptions && error.message().contains("overlap"), "{options}: {error}");
    }
}

#[test]
fn what_is_no_number_fails_its_request_and_names_the_part() {
    let golden = cases().into_iter().find(|golden| golden.folder.ends_with("mono")).unwrap();
    let request = golden.request(&golden.model());
    for (tensor, part) in [
        ("text_encoder.encoder.final_layer_norm.weight", "text encoder, at its one step;"),
        ("decoder.lm_heads.0.weight", "decoder, at step 1 of "),
        ("audio_encoder.decoder.layers.12.conv.bias", "codec, at step "),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for name in ["config.json", "generation_config.json", "tokenizer.json"] {
            std::fs::copy(golden.folder.join(name), folder.path().join(name)).unwrap();
        }
        poison(&golden.folder.join("model.safetensors"), tensor, &folder.path().join("model.safetensors")).unwrap();
        let files = [("model", folder.path().to_owned())];
        let mut host = MockHost::new::<MusicGenPlugin>(serde_json::json!({}), &files).unwrap();
        host.load().unwrap();
        let error = host.generate_audio(&request).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
        assert!(error.message().contains(&format!("no finite numbers: its {part}")), "{tensor}: {error}");
    }
}

#[test]
fn bad_requests_are_refused_clearly() {
    let golden = cases().swap_remove(0);
    let good = golden.request(&golden.model());
    let mut host = MockHost::new::<MusicGenPlugin>(serde_json::json!({}), &[("model", golden.folder)]).unwrap();
    host.load().unwrap();
    let check = |change: fn(&mut AudioRequest), word: &str| {
        let mut request = good.clone();
        change(&mut request);
        let error = host.generate_audio(&request).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
        assert!(error.message().contains(word), "{error}");
    };
    check(|r| r.duration = 0.0, "above 0");
    check(|r| r.duration = -1.0, "above 0");
    check(|r| r.duration = 1e6, "at most");
    check(|r| r.prompt = " \n".to_owned(), "empty");
    check(|r| r.prompt = "drums ".repeat(2000), "tokens");
    check(|r| r.temperature = -0.5, "temperature");
    check(|r| r.top_p = 0.0, "top_p");
    assert!(host.audio_cost(&good.clone().duration(1e6)).is_err());
    assert_eq!(host.generate_audio(&good).unwrap().finish.reason, FinishReason::Stop);
}

#[test]
fn a_seed_makes_the_same_audio_and_a_client_may_leave() {
    let golden = cases().swap_remove(0);
    let good = golden.request(&golden.model());
    let mut host =
        MockHost::new::<MusicGenPlugin>(serde_json::json!({"chunk_frames": 10}), &[("model", golden.folder)]).unwrap();
    host.load().unwrap();
    let sampled = |seed: u64| good.clone().temperature(1.0).top_k(20).seed(seed);
    let first = host.generate_audio(&sampled(1)).unwrap();
    assert_eq!(first.samples, host.generate_audio(&sampled(1)).unwrap().samples);
    assert_ne!(first.samples, host.generate_audio(&sampled(2)).unwrap().samples);
    assert!(first.samples.iter().all(|sample| sample.is_finite()));

    let plan = host.plan().unwrap();
    assert!(plan.required > 0 && host.audio_cost(&good).unwrap() <= plan.workspace_max);

    host.stop_after(1);
    let left = host.generate_audio(&good).unwrap();
    assert_eq!(left.finish.reason, FinishReason::Cancelled);
    assert!(left.finish.steps < first.finish.steps);
    host.cancel();
    assert_eq!(host.generate_audio(&good).unwrap().finish.steps, 0);
}

#[test]
fn half_precision_stays_close() {
    let golden = cases().into_iter().find(|golden| golden.folder.ends_with("mono")).unwrap();
    let files = |name: &str| golden.folder.join(name);
    let files =
        Files { weights: golden.folder.clone(), config: files("config.json"), tokenizer: files("tokenizer.json") };
    for (dtype, limit) in [(DType::F16, 5e-3), (DType::BF16, 5e-2)] {
        let model = Model::load(&files, Some(dtype)).unwrap();
        let text = model.encode(&golden.case.prompt).unwrap();
        let guidance = Guidance::from_scale(golden.case.guidance_scale);
        let piece = WindowRequest { text: &text, frames: 1, guidance, given: &[] };
        let mut error = None;
        let result = model.generate(piece, &mut Sampler::new(SamplingStrategy::Greedy, 0), |step| {
            error.get_or_insert(relative_error(step.logits, &golden.values("logits_0")));
            Ok(())
        });
        result.unwrap();
        println!("{dtype:?}: {error:?}");
        assert!(error.unwrap() < limit, "{dtype:?}: {error:?}");
    }
}

#[test]
fn a_melody_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "musicgen_melody"}"#).unwrap();
    let files = [("model", folder.path().to_owned())];
    let error = MockHost::new::<MusicGenPlugin>(serde_json::json!({}), &files).unwrap().plan().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert!(error.message().contains("melody"), "{error}");
}
