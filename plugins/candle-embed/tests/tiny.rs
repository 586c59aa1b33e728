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
    loaded_with(model, json!({}))
}

fn loaded_with(model: &Path, options: Value) -> aihost_plugin_api::Result<MockHost> {
    let files = [("model", model.to_owned())];
    MockHost::new::<EmbedPlugin>(options, &files).and_then(|mut host| host.load().map(|()| host))
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

#[test]
fn a_decoder_ranks_by_its_vectors_or_by_its_answers() {
    let (_folder, path) = folder("qwen3", |config| config["max_position_embeddings"] = json!(1024));
    let judge = json!({"rank_by": "answer"});
    let error = loaded_with(&path, judge.clone()).expect_err("it cannot answer");
    assert!(error.kind() == ErrorKind::InvalidOptions && error.message().contains("`yes` and `no`"), "{error}");
    let words = tokenizer(96).to_string().replace("[unused7]", "yes").replace("[unused9]", "no");
    std::fs::write(path.join("tokenizer.json"), words).expect("written");
    let rank = EmbeddingRequest::rank("abc", ["abd", "xyz", "abd"]);
    let by_vectors = loaded(&path).expect("loads").embed(&rank).expect("ranks");
    let told = loaded_with(&path, judge.clone()).expect("loads").embed(&rank).expect("ranks");
    assert!(told.scores.iter().all(|score| (0.0..=1.0).contains(score)), "{:?}", told.scores);
    assert!(told.scores[0] == told.scores[2] && told.scores[0] != told.scores[1] && told.scores != by_vectors.scores);
    // What is looked for counts, and so does the frame around the question.
    let other = json!({"rank_by": "answer", "instruction": "find the opposite"});
    let other = loaded_with(&path, other).expect("loads").embed(&rank).expect("ranks");
    assert_ne!(other.scores, told.scores);
    assert!(told.finish.prompt_tokens > 3 * 300, "{}", told.finish.prompt_tokens);
    // A document that is too long is refused, or cut before what asks for the answer.
    let long = EmbeddingRequest::rank("abc", [&*"a".repeat(2000)]);
    let host = loaded_with(&path, judge).expect("loads");
    assert_eq!(host.embed(&long).expect_err("too long").kind(), ErrorKind::ContextLength);
    let cut = loaded_with(&path, json!({"rank_by": "answer", "truncate": true})).expect("loads");
    assert_eq!(cut.embed(&long).expect("cut").finish.prompt_tokens, 1024);
    let error = loaded_with(&folder("gemma3", |_| ()).1, json!({"rank_by": "answer"})).expect_err("it writes nothing");
    assert!(!error.message().is_empty());
}

#[test]
fn layers_behind_the_pooling_make_the_vector() {
    let (_folder, path) = folder("gemma3", |_| ());
    let plain = loaded_with(&path, json!({"normalize": false})).expect("loads");
    let plain = plain.embed(&EmbeddingRequest::texts(["abc"])).expect("embeds").vectors.remove(0);
    let modules = json!([
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Dense", "path": "2_Dense"},
    ]);
    std::fs::write(path.join("modules.json"), modules.to_string()).expect("written");
    let layer = path.join("2_Dense");
    let error = loaded(&path).expect_err("it is not there");
    assert!(error.kind() == ErrorKind::MissingFile && error.message().contains("2_Dense"), "{error}");
    std::fs::create_dir(&layer).expect("a folder");
    let config =
        json!({"in_features": 32, "out_features": 2, "activation_function": "torch.nn.modules.linear.Identity"});
    std::fs::write(layer.join("config.json"), config.to_string()).expect("written");
    // The sum of all elements, and their first one.
    let weights: Vec<u8> = (0..64).flat_map(|i| f32::from(u8::from(i <= 32)).to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2, 32], &weights).expect("a matrix");
    let bytes = safetensors::serialize([("linear.weight", view)], None).expect("serialises");
    std::fs::write(layer.join("model.safetensors"), bytes).expect("written");
    let host = loaded(&path).expect("loads");
    let vector = host.embed(&EmbeddingRequest::texts(["abc"])).expect("embeds").vectors.remove(0);
    let (sum, first) = (plain.iter().sum::<f32>(), plain[0]);
    assert!(vector.len() == 2 && (vector[0] - sum).abs() < 1e-3 && (vector[1] - first).abs() < 1e-3, "{vector:?}");
    let error = host.embed(&EmbeddingRequest::texts(["abc"]).dimensions(3)).expect_err("two");
    assert!(error.message().contains("this model's vectors have 2"), "{error}");
}
