//! A text model that says back what it was told, word by word.
#![forbid(unsafe_code)]

use aihost_plugin_api::{Context, Engine, FinishReason, LoadContext, LoadRequest, MemoryPlan};
use aihost_plugin_api::{Plugin, Result, Text, TextInput, TextOutput, TextRequest};

/// What an entry of models.yaml may say under `options:`.
#[derive(Clone, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// Said before each answer.
    greeting: String,
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
    type Task = Text;
    fn generate(&self, asked: TextRequest, out: &TextOutput, _: &Context) -> Result<FinishReason> {
        let said = match asked.input {
            TextInput::Prompt { text, .. } => text,
            TextInput::Chat { mut messages, .. } => messages.pop().unwrap_or_default().content,
            other => return Err(other.unsupported()),
        };
        for word in format!("{}{said}", self.0.greeting).split_inclusive(' ') {
            out.token(word.as_bytes())?; // `?` ends the request once its client left.
        }
        Ok(FinishReason::Stop)
    }
}

aihost_plugin_api::export_plugin! { plugin: Model, id: "example/text", devices: ["cpu"] }

#[test]
fn it_says_back_what_it_was_told() {
    let options = serde_json::json!({"greeting": "You said: "});
    let mut host = aihost_plugin_api::testing::MockHost::new::<Model>(options, &[]).unwrap();
    host.load().unwrap();
    let answer = host.generate(&TextRequest::ask("Hello there")).unwrap();
    assert_eq!(answer.text, "You said: Hello there");
}
