//! An image model that paints a gradient.
#![forbid(unsafe_code)]

use aihost_plugin_api::{Context, Engine, Image, ImageOutput, ImageRequest, LoadContext};
use aihost_plugin_api::{LoadRequest, MemoryPlan, Plugin, Result};

/// What an entry of models.yaml may say under `options:`.
#[derive(Clone, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// How blue images are, from 0 to 255.
    blue: u8,
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
    type Task = Image;
    fn generate(&self, asked: ImageRequest, out: &ImageOutput, _ctx: &Context) -> Result<()> {
        let (width, height) = (asked.width, asked.height);
        out.begin(width, height, asked.seed.unwrap_or(0));
        let pixel = |x, y| [(x * 255 / width) as u8, (y * 255 / height) as u8, self.0.blue];
        let mut pixels = Vec::new();
        for y in 0..height {
            out.progress(y + 1, height)?; // `?` ends the request once its client left.
            pixels.extend((0..width).flat_map(|x| pixel(x, y)));
        }
        out.image(&pixels)
    }
}

aihost_plugin_api::export_plugin! { plugin: Model, id: "example/image", devices: ["cpu"] }

#[test]
fn it_paints_the_size_that_was_asked_for() {
    let options = serde_json::json!({"blue": 7});
    let mut host = aihost_plugin_api::testing::MockHost::new::<Model>(options, &[]).unwrap();
    host.load().unwrap();
    let request = ImageRequest::new("dawn").width(4).height(2);
    let answer = host.generate_image(&request).unwrap();
    assert_eq!(answer.images[0].pixels[..6], [0, 0, 7, 63, 0, 7]);
}
