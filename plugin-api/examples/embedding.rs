//! An embedding model that counts letters.
#![forbid(unsafe_code)]

use aihost_plugin_api::{Context, Embedding, EmbeddingInput, EmbeddingOutput, EmbeddingRequest, Engine, Error};
use aihost_plugin_api::{LoadContext, LoadRequest, MemoryPlan, Plugin, Result};

/// What an entry of models.yaml may say under `options:`.
#[derive(Clone, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// Letters that do not count.
    ignored: String,
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
    type Task = Embedding;
    fn generate(&self, asked: EmbeddingRequest, out: &EmbeddingOutput, _ctx: &Context) -> Result<()> {
        let EmbeddingInput::Texts { texts, .. } = asked.input else {
            return Err(Error::invalid_request("it embeds texts, and nothing else"));
        };
        if asked.dimensions.is_some_and(|values| values != 26) {
            return Err(Error::invalid_request("its vectors have 26 values").at("dimensions"));
        }
        out.prompt_tokens(texts.iter().map(|text| text.len() as u32).sum());
        let counted = |c: char, text: &str| text.matches(c).filter(|_| !self.0.ignored.contains(c)).count() as f32;
        let vector = |text: &String| ('a'..='z').map(|c| counted(c, text)).collect::<Vec<_>>();
        texts.iter().try_for_each(|text| out.vector(&vector(text))) // It ends once its client left.
    }
}

aihost_plugin_api::export_plugin! { plugin: Model, id: "example/embedding", devices: ["cpu"] }

#[test]
fn it_counts_the_letters_that_count() {
    let options = serde_json::json!({"ignored": "b"});
    let mut host = aihost_plugin_api::testing::MockHost::new::<Model>(options, &[]).unwrap();
    host.load().unwrap();
    let answer = host.embed(&EmbeddingRequest::texts(["abba"])).unwrap();
    assert_eq!(answer.vectors[0][..3], [2.0, 0.0, 0.0]);
}
