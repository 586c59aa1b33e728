//! Folders that are not what they should be.

use std::path::{Path, PathBuf};

use aihost_plugin_api::testing::MockHost;
use aihost_plugin_api::{EmbeddingRequest, ErrorKind};
use candle_embed::EmbedPlugin;
use serde_json::{Value, json};

/// A copy of a golden model with a tokenizer of its own, and its `config.json` changed.
fn folder(name: &str, change: impl FnOnce(&mut Value)) -> (tempfile::TempDir, PathBuf) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/embed/families").join(name);
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::copy(golden.join("model.safetensors"), folder.path().join("model.safetensors")).expect("copied");
    let text = std::fs::read(golden.join("config.json")).expect("golden data");
    let mut config: Value = serde_json::from_slice(&text).expect("golden data");
    change(&mut config);
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer(96).to_string()).expect("written");
    let path = folder.path().to_owned();
    (folder, path)
}

/// Words of letters, each letter a token.
fn tokenizer(count: u32) -> Value {
    let letters = (b'a'..=b'z').map(|letter| char::from(letter).to_string());
    let rest = (0..).map(|i| format!("[unused{i}]"));
    let tokens = ["[UNK]".to_owned()].into_iter().chain(letters).chain(rest).take(count as usize);
    let vocabulary: serde_json::Map<String, Value> = tokens.zip(0u32..).map(|(token, id)| (token, json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": false},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    })
}

fn loaded(model: &Path) -> aihost_plugin_api::Result<MockHost> {
    let files = [("model", model.to_owned())];
    MockHost::new::<EmbedPlugin>(json!({}), &files).and_then(|mut host| host.load().map(|()| host))
}

#[test]
fn a_folder_is_served_and_what_is_wrong_with_one_is_told() {
    let (_folder, path) = folder("bert", |_| ());
    let host = loaded(&path).expect("loads");
    assert_eq!(host.embed(&EmbeddingRequest::texts(["abc"])).expect("embeds").vectors[0].len(), 32);
    let error = host.embed(&EmbeddingRequest::texts([&*"a".repeat(65)])).expect_err("too long");
    assert_eq!(error.kind(), ErrorKind::ContextLength);
    for (key, value, kind, words) in [
        ("model_type", json!("deberta-v2"), ErrorKind::Unsupported, "`engine: llama-server` serves others"),
        ("position_embedding_type", json!("relative_key"), ErrorKind::Unsupported, "`relative_key`"),
        ("quantization_config", json!({"quant_method": "awq"}), ErrorKind::Unsupported, "awq"),
        ("hidden_act", json!("mish"), ErrorKind::Unsupported, "`mish`"),
        ("num_attention_heads", json!(5), ErrorKind::CorruptFile, "5 heads do not divide"),
        ("num_attention_heads", json!(0), ErrorKind::CorruptFile, "`num_attention_heads` is 0"),
        ("hidden_size", json!(64), ErrorKind::CorruptFile, "has shape"),
        (
            "num_hidden_layers",
            json!(3),
            ErrorKind::CorruptFile,
            "encoder.layer.2.attention.self.query.weight is missing",
        ),
        ("num_hidden_layers", json!(1), ErrorKind::Unsupported, "is of no use"),
        ("layer_norm_eps", json!(0.0), ErrorKind::CorruptFile, "`layer_norm_eps` is 0"),
        ("vocab_size", json!("many"), ErrorKind::CorruptFile, "config.json: invalid type"),
    ] {
        let (_folder, path) = folder("bert", |config| config[key] = value);
        let error = loaded(&path).expect_err(key);
        assert!(error.kind() == kind && error.message().contains(words), "{key}: {error}");
    }
}

#[test]
fn missing_and_foreign_files_are_named() {
    for (file, words) in [("config.json", "needs its config.json"), ("tokenizer.json", "needs its tokenizer.json")] {
        let (_folder, path) = folder("bert", |_| ());
        std::fs::remove_file(path.join(file)).expect("removed");
        let error = loaded(&path).expect_err(file);
        assert!(error.kind() == ErrorKind::MissingFile && error.message().contains(words), "{error}");
    }
    let (_folder, path) = folder("bert", |_| ());
    std::fs::create_dir(path.join("1_Pooling")).expect("a folder");
    std::fs::write(path.join("1_Pooling/config.json"), r#"{"pooling_mode_weightedmean_tokens": true}"#)
        .expect("written");
    let error = loaded(&path).expect_err("no known pooling");
    assert!(error.message().contains("set `pooling` in the entry's options"), "{error}");
}

#[test]
fn a_model_of_scores_ranks_and_makes_no_vectors() {
    let (_folder, path) = folder("bert-score", |_| ());
    let host = loaded(&path).expect("loads");
    let answer = host.embed(&EmbeddingRequest::rank("abc", ["abd", "xyz", "abd"])).expect("ranks");
    assert!(answer.scores.iter().all(|score| (0.0..=1.0).contains(score)), "{:?}", answer.scores);
    assert!(answer.scores[0] == answer.scores[2] && answer.scores[0] != answer.scores[1]);
    let error = host.embed(&EmbeddingRequest::texts(["abc"])).expect_err("no vectors");
    assert!(error.kind() == ErrorKind::InvalidRequest && error.message().contains("/v1/rerank"), "{error}");
}
