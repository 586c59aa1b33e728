//! A real model, all-MiniLM-L6-v2, held against sentence-transformers (tests/golden/embed/generate.py).

use std::path::{Path, PathBuf};

use aihost_plugin_api::testing::MockHost;
use aihost_plugin_api::{EmbeddingInput, EmbeddingRequest, ErrorKind};
use candle_embed::EmbedPlugin;
use serde::Deserialize;
use serde_json::{Value, json};

/// Where the repository's models.yaml puts the files of its entry `minilm`, by their roles.
const FETCHED: [(&str, &str, &str); 5] = [
    ("model", "sha256-53aa51172d142c89/model.safetensors", "model.safetensors"),
    ("config", "sha256-953f9c0d463486b1/config.json", "config.json"),
    ("tokenizer", "sha256-be50c3628f2bf5bb/tokenizer.json", "tokenizer.json"),
    ("pooling", "sha256-4be450dde3b0273b/config.json", "1_Pooling/config.json"),
    ("sentence_bert_config", "sha256-fc1993fde0a95c24/sentence_bert_config.json", "sentence_bert_config.json"),
];

#[derive(Deserialize)]
struct Case {
    text: String,
    tokens: u32,
    vector: Vec<f32>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The model's files: those in the folder that `AIHOST_MINILM` names, else those that were fetched.
fn files() -> Vec<(&'static str, PathBuf)> {
    let named = std::env::var_os("AIHOST_MINILM").map(PathBuf::from);
    let place = |fetched: &str, usual: &str| match &named {
        Some(folder) => folder.join(usual),
        None => root().join("target/aihost/models").join(fetched),
    };
    let files: Vec<_> = FETCHED.iter().map(|(role, fetched, usual)| (*role, place(fetched, usual))).collect();
    let gone = files.iter().find(|(_, path)| !path.is_file());
    assert!(gone.is_none(), "{gone:?} is not there: `cargo xtask up` or `cargo xtask test` fetches it");
    files
}

fn loaded(options: Value) -> MockHost {
    let mut host = MockHost::new::<EmbedPlugin>(options, &files()).expect("options");
    host.load().expect("loads");
    host
}

fn cases() -> Vec<Case> {
    let path = root().join("tests/golden/embed/minilm.json");
    serde_json::from_slice(&std::fs::read(path).expect("golden data")).expect("golden data is valid")
}

#[test]
fn vectors_equal_the_reference() {
    let (host, cases) = (loaded(json!({"threads": 2})), cases());
    let answer = host.embed(&EmbeddingRequest::texts(cases.iter().map(|case| &*case.text))).expect("embeds");
    assert_eq!(answer.finish.prompt_tokens, cases.iter().map(|case| case.tokens).sum::<u32>());
    for (case, found) in cases.iter().zip(&answer.vectors) {
        let error = found.iter().zip(&case.vector).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error < 1e-5 && found.len() == 384, "{:?}: {error:.1e}", case.text);
        let alone = host.embed(&EmbeddingRequest::texts([&*case.text])).expect("embeds");
        assert_eq!((&alone.vectors[0], alone.finish.prompt_tokens), (found, case.tokens), "{:?}", case.text);
    }
}

#[test]
fn fewer_dimensions_are_the_first_ones() {
    let host = loaded(json!({}));
    let whole = &host.embed(&EmbeddingRequest::texts(["A man is playing guitar"])).expect("embeds").vectors[0];
    let request = EmbeddingRequest::texts(["A man is playing guitar"]).dimensions(64);
    let cut = &host.embed(&request).expect("embeds").vectors[0];
    let length = whole[..64].iter().map(|x| x * x).sum::<f32>().sqrt();
    assert_eq!(cut.len(), 64);
    assert!(cut.iter().zip(whole).all(|(cut, whole)| (cut - whole / length).abs() < 1e-6));
}

#[test]
fn documents_are_ranked_by_how_near_they_are() {
    let host = loaded(json!({}));
    let documents = ["The stock market fell.", "Someone strums a guitar.", "", "Guitars are made of wood."];
    let answer = host.embed(&EmbeddingRequest::rank("A man is playing guitar", documents)).expect("ranks");
    let scores = &answer.scores;
    assert!(scores.len() == 4 && scores[1] > scores[3] && scores[3] > scores[0], "{scores:?}");
}

#[test]
fn what_is_too_long_is_refused_or_cut() {
    let long = "word ".repeat(600);
    let error = loaded(json!({})).embed(&EmbeddingRequest::texts([&*long])).expect_err("too long");
    assert_eq!(error.kind(), ErrorKind::ContextLength);
    assert!(error.message().contains("256 tokens, but input has a text of 602"), "{}", error.message());
    let host = loaded(json!({"truncate": true}));
    let cut = host.embed(&EmbeddingRequest::texts([&*long, &"word ".repeat(254)])).expect("embeds");
    assert_eq!(cut.vectors[0], cut.vectors[1]);
    assert_eq!(cut.finish.prompt_tokens, 512);
}

#[test]
fn bad_input_is_told_and_harms_nothing() {
    let host = loaded(json!({}));
    for (request, words) in [
        (EmbeddingRequest::texts(["a"]).dimensions(385), "dimensions is 385"),
        (EmbeddingRequest::texts(["a"]).dimensions(0), "dimensions is 0"),
        (EmbeddingRequest::new(EmbeddingInput::tokens(vec![vec![101, 30522]])), "token 30522"),
    ] {
        let error = host.embed(&request).expect_err(words);
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.message().contains(words), "{}", error.message());
    }
    let ids = EmbeddingRequest::new(EmbeddingInput::tokens(vec![vec![101, 1037, 102]]));
    let (ids, text) = (host.embed(&ids).expect("embeds"), host.embed(&EmbeddingRequest::texts(["A"])).expect("embeds"));
    assert_eq!(ids.vectors, text.vectors);
    for (options, words) in [
        (json!({"context": 513}), "set at most 512"),
        (json!({"context": 0}), "options.context is 0"),
        (json!({"threads": 0}), "options.threads is 0"),
        (json!({"pooling": "sum"}), "sum"),
    ] {
        let refused = MockHost::new::<EmbedPlugin>(options, &files()).and_then(|mut host| host.load());
        let error = refused.expect_err(words);
        assert!(error.message().contains(words), "{}", error.message());
    }
}

#[test]
fn many_requests_at_once_have_their_own_answers() {
    let (host, cases) = (loaded(json!({"threads": 2})), cases());
    std::thread::scope(|scope| {
        for case in &cases {
            let host = &host;
            scope.spawn(move || {
                let texts = std::iter::repeat_n(&*case.text, 7);
                let answer = host.embed(&EmbeddingRequest::texts(texts)).expect("embeds");
                for found in &answer.vectors {
                    let error = found.iter().zip(&case.vector).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(error < 1e-5, "{:?}: {error:.1e}", case.text);
                }
            });
        }
    });
}
