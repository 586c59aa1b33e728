//! An embedding model that counts letters, and ranks documents by the letters that they share with a query.
#![forbid(unsafe_code)]

use aihost_plugin_api::{Context, Embedding, EmbeddingInput, EmbeddingOutput, EmbeddingRequest, Engine, Error};
use aihost_plugin_api::{LoadContext, LoadRequest, MemoryPlan, Plugin, Result};

/// What an entry of models.yaml may say under `options:`.
#[derive(Clone, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// Whether `A` is another letter than `a`.
    case: bool,
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

impl Model {
    /// A vector of length 1, or of zeros.
    fn embed(&self, text: &str) -> Vec<f32> {
        let mut vector = vec![0.0; 128];
        for letter in text.bytes().filter(u8::is_ascii_alphabetic) {
            let letter = if self.0.case { letter } else { letter.to_ascii_lowercase() };
            vector[usize::from(letter)] += 1.0;
        }
        let length = dot(&vector, &vector).sqrt().max(f32::MIN_POSITIVE);
        vector.iter().map(|value| value / length).collect()
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Engine for Model {
    type Task = Embedding;
    fn generate(&self, asked: EmbeddingRequest, out: &EmbeddingOutput, _ctx: &Context) -> Result<()> {
        if asked.dimensions.is_some_and(|dimensions| dimensions != 128) {
            return Err(Error::invalid_request("this model makes 128 values").at("dimensions"));
        }
        match &asked.input {
            EmbeddingInput::Texts { texts, .. } => {
                out.prompt_tokens(texts.iter().map(|text| text.len() as u32).sum());
                texts.iter().try_for_each(|text| out.vector(&self.embed(text))) // `?` ends it once its client left.
            }
            EmbeddingInput::Rank { query, documents, .. } => {
                let query = self.embed(query);
                documents.iter().try_for_each(|document| out.score(dot(&query, &self.embed(document))))
            }
            _ => Err(Error::invalid_request("this model reads texts").at("input")),
        }
    }
}

aihost_plugin_api::export_plugin! { plugin: Model, id: "example/embedding", devices: ["cpu"] }

#[test]
fn it_puts_the_document_first_that_shares_letters() {
    let options = serde_json::json!({"case": false});
    let mut host = aihost_plugin_api::testing::MockHost::new::<Model>(options, &[]).unwrap();
    host.load().unwrap();
    let vectors = host.embed(&EmbeddingRequest::texts(["ab", "BA"])).unwrap().vectors;
    assert_eq!((vectors.len(), &vectors[0]), (2, &vectors[1]));
    let scores = host.embed(&EmbeddingRequest::rank("tea", ["eat", "rum"])).unwrap().scores;
    assert!(scores[0] > scores[1]);
}
