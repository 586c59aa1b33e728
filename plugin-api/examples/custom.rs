//! A model of a kind of its own: what it answers with is its own affair.
#![forbid(unsafe_code)]

use aihost_plugin_api::{Context, Custom, CustomOutput, CustomRequest, Engine, Error, LoadContext};
use aihost_plugin_api::{LoadRequest, MemoryPlan, Plugin, Result};

/// What an entry of models.yaml may say under `options:`.
#[derive(Clone, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// Letters that are not counted.
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
    type Task = Custom;
    /// Counts letters: `{"text": "Hello"}` in, `{"letters": 5}` out.
    fn generate(&self, asked: CustomRequest, out: &CustomOutput, _ctx: &Context) -> Result<()> {
        let body: serde_json::Value = asked.json()?;
        let text = body["text"].as_str();
        let text = text.ok_or_else(|| Error::invalid_request("a text is wanted").at("text"))?;
        let counted = |c: &char| c.is_alphabetic() && !self.0.ignored.contains(*c);
        out.json(&serde_json::json!({"letters": text.chars().filter(counted).count()}))
    }
}

aihost_plugin_api::export_plugin! { plugin: Model, id: "example/custom", devices: ["cpu"] }

#[test]
fn it_counts() {
    let options = serde_json::json!({"ignored": "l"});
    let mut host = aihost_plugin_api::testing::MockHost::new::<Model>(options, &[]).unwrap();
    host.load().unwrap();
    let answer = host.call_custom(&CustomRequest::new("POST", "", r#"{"text": "Hello"}"#)).unwrap();
    assert_eq!(answer.body, br#"{"letters":3}"#);
}
