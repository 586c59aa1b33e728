//! An audio model that hums one tone.
#![forbid(unsafe_code)]

use aihost_plugin_api::{Audio, AudioFormat, AudioOutput, AudioRequest, Context, Engine};
use aihost_plugin_api::{LoadContext, LoadRequest, MemoryPlan, Plugin, Result};

/// What an entry of models.yaml may say under `options:`.
#[derive(Clone, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// How many octaves above 440 Hz it hums; below, where it is negative.
    octaves: i8,
}

struct Model(Options);

impl Plugin for Model {
    type Options = Options;
    type Engine = Self;
    fn new(options: Options) -> Result<Self> {
        Ok(Self(options))
    }

    /// Bytes that loading will take: for weights, the sizes of their files.
    fn plan(&self, _load: &LoadRequest) -> Result<MemoryPlan> {
        Ok(MemoryPlan::default())
    }

    /// Weights are read here: `load.file("model")?` is the path of a file.
    fn load(&self, _load: &LoadRequest, _ctx: &LoadContext) -> Result<Self> {
        Ok(Self(self.0.clone()))
    }
}

impl Engine for Model {
    type Task = Audio;
    fn generate(&self, asked: AudioRequest, out: &AudioOutput, _ctx: &Context) -> Result<()> {
        let rate = 32_000;
        out.format(AudioFormat::new(rate, 1));
        let pitch = 440.0 * f64::from(self.0.octaves).exp2();
        let angle = |n: u64| n as f64 * pitch / f64::from(rate) * std::f64::consts::TAU;
        let samples = asked.frames(rate.into()).unwrap_or(0);
        for start in (0..samples).step_by(1000) {
            let wave = (start..samples.min(start + 1000)).map(|n| angle(n).sin() as f32);
            out.samples(&wave.collect::<Vec<_>>())?; // `?` ends it once its client left.
        }
        Ok(())
    }
}

aihost_plugin_api::export_plugin! { plugin: Model, id: "example/audio", devices: ["cpu"] }

#[test]
fn it_hums_for_as_long_as_was_asked_for() {
    let options = serde_json::json!({"octaves": -1});
    let mut host = aihost_plugin_api::testing::MockHost::new::<Model>(options, &[]).unwrap();
    host.load().unwrap();
    let request = AudioRequest::new("hum").duration(0.25);
    assert_eq!(host.generate_audio(&request).unwrap().samples.len(), 8000);
}
