//! Fixture plugin `aihost/vectors`, of kind `embedding`: the vector of a text says how many of its bytes, or of its tokens, leave
//! which rest when they are divided by the vector's width; a document's score is how many words of the query it has. Some texts
//! are told apart: `wait` ends with its client, `nan` gives no number, `die` aborts.

#![forbid(unsafe_code)]

use std::time::Duration;

use aihost_plugin_api::{
    Context, Embedding, EmbeddingInput, EmbeddingOutput, EmbeddingRequest, Engine, Error, LoadContext, LoadRequest,
    MemoryPlan, ModelFacts, Plugin, Result,
};

/// How often one that waits looks whether its client left.
const POLL: Duration = Duration::from_millis(5);

/// Options of the entry.
#[derive(Clone, Debug, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Values of a vector.
    width: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { width: 8 }
    }
}

/// The plugin, and its engine.
#[derive(Clone, Debug)]
pub struct Vectors(Options);

impl Plugin for Vectors {
    type Options = Options;
    type Engine = Self;

    fn new(options: Options) -> Result<Self> {
        Ok(Self(options))
    }

    fn plan(&self, _load: &LoadRequest) -> Result<MemoryPlan> {
        Ok(MemoryPlan::default().facts(ModelFacts::default().embedding_length(self.0.width)))
    }

    fn load(&self, _load: &LoadRequest, _ctx: &LoadContext) -> Result<Self> {
        Ok(self.clone())
    }
}

impl Engine for Vectors {
    type Task = Embedding;

    fn generate(&self, request: EmbeddingRequest, out: &EmbeddingOutput, ctx: &Context) -> Result<()> {
        let made = self.0.width;
        let width = request.dimensions.unwrap_or(made);
        if width > made {
            return Err(Error::invalid_request(format!("the model's vectors have {made} values")).at("dimensions"));
        }
        match &request.input {
            EmbeddingInput::Texts { texts, .. } => {
                out.prompt_tokens(texts.iter().map(|text| text.len() as u32).sum());
                for (i, text) in texts.iter().enumerate() {
                    match text.as_str() {
                        "wait" => loop {
                            ctx.check()?;
                            std::thread::sleep(POLL);
                        },
                        "nan" => out.vector(&vec![f32::NAN; width as usize])?,
                        "die" => std::process::abort(),
                        _ => out.vector(&self.count(text.bytes().map(u32::from), width))?,
                    }
                    out.progress(i as u64 + 1, texts.len() as u64)?;
                }
                Ok(())
            }
            EmbeddingInput::Tokens { tokens, .. } => {
                out.prompt_tokens(tokens.iter().map(|tokens| tokens.len() as u32).sum());
                tokens.iter().try_for_each(|tokens| out.vector(&self.count(tokens.iter().copied(), width)))
            }
            EmbeddingInput::Rank { query, documents, .. } => {
                out.prompt_tokens(documents.iter().map(|document| (query.len() + document.len()) as u32).sum());
                let words: Vec<&str> = query.split_whitespace().collect();
                let score = |document: &String| words.iter().filter(|word| document.contains(**word)).count() as f32;
                out.scores(&documents.iter().map(score).collect::<Vec<_>>())
            }
            _ => Err(Error::invalid_request("no such input is known").at("input")),
        }
    }
}

impl Vectors {
    /// How many of these leave which rest, up to `width` of them, as parts of all.
    fn count(&self, numbers: impl Iterator<Item = u32> + Clone, width: u32) -> Vec<f32> {
        let all = numbers.clone().count() as f32;
        let of = |rest| numbers.clone().filter(|number| number % self.0.width == rest).count() as f32 / all;
        (0..width).map(of).collect()
    }
}

aihost_plugin_api::export_plugin! { plugin: Vectors, id: "aihost/vectors", devices: ["cpu"], max_concurrency: 4 }
