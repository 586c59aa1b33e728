//! Answers of a model that knows nothing, kept to a schema after the other: what ends by itself has to be as the schema says, by a
//! validator that has nothing to do with what kept it.

use std::collections::BTreeMap;

use aihost_plugin_api::{
    AnswerStart, AnswerSyntax, Error, GrammarToken, GrammarVocabulary, LogitsProcessor, TextFormat, TextRequest,
};
use serde_json::Value;

/// The token by which a text ends.
const END: u32 = 256;
/// Seeds per schema.
const SEEDS: u64 = 20;
/// Tokens after which an answer is cut.
const MOST_TOKENS: usize = 600;
/// As high as requests may ask.
const TEMPERATURE: f32 = 1.5;

/// Numbers that look random, the same for the same seed (Vigna 2015, splitmix64).
struct Draw(u64);

impl Draw {
    /// From 0 up to 1.
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// Bytes, the end, and words across which the parts of JSON lie.
fn tokens() -> Vec<Vec<u8>> {
    let words = [
        "{\"",
        "\": ",
        "\":",
        "\", \"",
        "\"}",
        "\"}}",
        "}",
        "},",
        "}, {",
        "[{\"",
        "\"],",
        "]]",
        "true",
        "false",
        "null",
        "tru",
        "12",
        "-1",
        "0.5",
        "e1",
        "e+",
        " 1",
        "  ",
        "\n  ",
        "\n",
        "\\\"",
        "\\u00",
        "\u{e9}",
        "\u{1f389}",
        "name",
        "name\"",
        "id\": 1",
        "kind",
        "items",
        "2024-02-29",
        "T12:00:00Z",
        "@example",
        ".org",
        "://",
        "a",
        "ab",
        "abc",
        "\"a\"",
        "\": \"",
        "\": {\"",
        "\": [",
        "\",",
    ];
    let bytes = (0..=255u8).map(|byte| vec![byte]);
    bytes.chain([b"<|end|>".to_vec()]).chain(words.iter().map(|word| word.as_bytes().to_vec())).collect()
}

/// What came of a schema.
enum Outcome {
    Refused(Error),
    /// Of its seeds, which texts ended by themselves.
    Answered(Vec<String>),
}

struct Model {
    tokens: Vec<Vec<u8>>,
    vocabulary: GrammarVocabulary,
}

impl Model {
    fn new() -> Self {
        let tokens = tokens();
        let named = tokens.iter().enumerate().map(|(id, bytes)| {
            if id == END as usize {
                GrammarToken::Special("<|end|>".to_owned())
            } else {
                GrammarToken::Bytes(bytes.clone())
            }
        });
        let vocabulary = GrammarVocabulary::new(named, &[END]).expect("a vocabulary");
        Self { tokens, vocabulary }
    }

    fn answers(&self, schema: &Value, seeds: u64) -> Outcome {
        let request = TextRequest::prompt("x").format(TextFormat::json_schema(schema.clone()));
        let mut texts = Vec::new();
        for seed in 0..seeds {
            let grammar = self.vocabulary.grammar(&request, AnswerSyntax::TAGGED, AnswerStart::PastReasoning);
            match grammar {
                Err(error) => return Outcome::Refused(error),
                Ok(grammar) => {
                    let grammar = grammar.expect("a form was asked for");
                    let size = self.tokens.len();
                    let processor = LogitsProcessor::with_grammar(&request, &[], size, Some(grammar));
                    texts.extend(self.answer(processor.expect("is sound").expect("there is one"), seed));
                }
            }
        }
        Outcome::Answered(texts)
    }

    /// A text that ended by itself.
    fn answer(&self, mut processor: LogitsProcessor, seed: u64) -> Option<String> {
        let (mut draw, mut bytes) = (Draw(seed), Vec::new());
        for step in 0..MOST_TOKENS {
            // The longer, the more it likes to end what is open.
            let haste = step as f32 / 60.0;
            let mut logits: Vec<f32> = self
                .tokens
                .iter()
                .map(|word| {
                    let ends = word.iter().filter(|byte| b"}]\"".contains(byte)).count() as f32;
                    4.0 * draw.next() + haste * ends / word.len() as f32
                })
                .collect();
            processor.apply(&mut logits).expect("a mask");
            let weights: Vec<f32> = logits.iter().map(|logit| (logit / TEMPERATURE).exp()).collect();
            let total: f32 = weights.iter().sum();
            assert!(total > 0.0, "nothing may follow {:?}", String::from_utf8_lossy(&bytes));
            let mut at = draw.next() * total;
            let chosen = weights.iter().position(|weight| {
                at -= weight;
                at < 0.0 && *weight > 0.0
            });
            let chosen = chosen.unwrap_or_else(|| weights.iter().rposition(|weight| *weight > 0.0).expect("some"));
            let token = u32::try_from(chosen).expect("small");
            if token == END {
                return Some(String::from_utf8(bytes).expect("whole characters"));
            }
            bytes.extend_from_slice(&self.tokens[chosen]);
            processor.accept(token).expect("was allowed");
            if processor.is_over() {
                return Some(String::from_utf8(bytes).expect("whole characters"));
            }
        }
        None
    }
}

/// What is wrong with an answer.
fn checked(validator: &jsonschema::Validator, text: &str) -> Result<(), String> {
    match serde_json::from_str::<Value>(text) {
        // A validator that divides by floats is no judge of multiples of that size.
        Ok(value) if value.as_f64().is_some_and(|number| number.abs() > 9e15) => Ok(()),
        Ok(value) => validator.validate(&value).map_err(|error| error.to_string()),
        // JSON's grammar knows no largest number, and this reader does.
        Err(error) if error.to_string().contains("number out of range") => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn what_ends_by_itself_is_as_its_schema_says() {
    let schemas: BTreeMap<String, Value> = serde_json::from_str(include_str!("schemas.json")).expect("is JSON");
    assert!(schemas.len() >= 150, "{}", schemas.len());
    let model = Model::new();
    let (mut ended, mut asked) = (0, 0);
    let mut wrong = Vec::new();
    for (name, schema) in &schemas {
        let validator = jsonschema::validator_for(schema).unwrap_or_else(|e| panic!("{name}: {e}"));
        let Outcome::Answered(texts) = model.answers(schema, SEEDS) else {
            wrong.push(format!("{name} was refused"));
            continue;
        };
        asked += SEEDS;
        ended += texts.len() as u64;
        for text in texts {
            if let Err(why) = checked(&validator, &text) {
                wrong.push(format!("{name}: {text}: {why}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} are wrong, such as\n{}", wrong.len(), wrong[..wrong.len().min(12)].join("\n"));
    assert!(ended * 10 >= asked * 7, "only {ended} of {asked} ended");
}

/// Beside the suite of JSON Schema's authors, if it is there: `AIHOST_SCHEMA_SUITE=JSON-Schema-Test-Suite/tests/draft2020-12`.
#[test]
fn schemas_of_the_suite_are_kept_or_refused() {
    let Some(folder) = std::env::var_os("AIHOST_SCHEMA_SUITE") else { return };
    let model = Model::new();
    let (mut kept, mut refused, mut wrong) = (0, BTreeMap::<String, u32>::new(), Vec::new());
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|ending| ending != "json") {
            continue;
        }
        let groups: Vec<Value> = serde_json::from_slice(&std::fs::read(&path).expect("readable")).expect("JSON");
        for group in groups {
            let schema = &group["schema"];
            let name = format!("{}: {}", path.file_stem().unwrap_or_default().display(), group["description"]);
            match model.answers(schema, 5) {
                Outcome::Refused(error) => *refused.entry(error.message().to_owned()).or_default() += 1,
                Outcome::Answered(texts) => {
                    kept += 1;
                    let Ok(validator) = jsonschema::validator_for(schema) else { continue };
                    for text in texts {
                        if let Err(why) = checked(&validator, &text) {
                            wrong.push(format!("{name}: {schema}: {text}: {why}"));
                        }
                    }
                }
            }
        }
    }
    for (message, count) in &refused {
        eprintln!("{count} x {message}");
    }
    assert!(wrong.is_empty(), "{} of {kept}, such as\n{}", wrong.len(), wrong[..wrong.len().min(40)].join("\n"));
}
