//! Entries for what a stand-in of the hub has, and for what lies here, written into a models.yaml that keeps all that it said.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::cli::auto::gguf::tests::{SMOLLM, header_bytes};
use crate::config::Env;
use crate::store::tests::standin::{Manners, Page, Standin};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const FILE: &str = "# mine\nlisten: 127.0.0.1:9\ndevices: [{id: cpu, memory: 2GiB}]   # all of it\n\nmodels:\n  # the first\n  old: {type: text, plugin: p, aliases: [older]}\n";

/// A hub, and a folder with a models.yaml.
struct World {
    hub: Standin,
    folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("models.yaml"), FILE).unwrap();
        Self { hub: Standin::start().await, folder }
    }

    /// A repository of these files: sizes as it tells them, content where there is some.
    fn repository(&self, id: &str, more: &str, files: &[(&str, u64, Vec<u8>)]) {
        let siblings: Vec<String> = files
            .iter()
            .map(|(path, bytes, _)| {
                let digest = "ab".repeat(32);
                let lfs = if *bytes > 1000 {
                    format!(r#", "lfs": {{"sha256": "{digest}", "size": {bytes}}}"#)
                } else {
                    String::new()
                };
                format!(r#"{{"rfilename": "{path}", "size": {bytes}{lfs}}}"#)
            })
            .collect();
        let answer = format!(r#"{{"id": "{id}", "sha": "{COMMIT}", {more}"siblings": [{}]}}"#, siblings.join(", "));
        self.hub.file(&format!("api/models/{id}"), answer.as_bytes());
        for (path, _, content) in files.iter().filter(|(_, _, content)| !content.is_empty()) {
            self.hub.file(&format!("{id}/resolve/{COMMIT}/{path}"), content);
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path("models.yaml")).unwrap()
    }

    fn context(&self, more: &[(&str, &str)]) -> CommandContext {
        let here = self.folder.path().to_str().unwrap();
        let own = [("HF_ENDPOINT", self.hub.base.as_str()), ("HOME", here), ("PIP_CONFIG_FILE", "/dev/null")];
        let folders = ["AIHOST_MODELS_DIR", "AIHOST_STATE_DIR", "AIHOST_PLUGINS_DIR"].map(|name| (name, "folders"));
        let own = own.into_iter().chain(folders);
        CommandContext { env: Env::with(here, own.chain(more.iter().copied())), config: None }
    }

    async fn add(&self, from: &str, name: Option<&str>, dry_run: bool) -> Result<Told, String> {
        let arguments = Arguments { from: from.to_owned(), name: name.map(str::to_owned), dry_run };
        add(&self.context(&[]), &arguments).await.map_err(|error| match error {
            CliError::Failed { message, hint } | CliError::Usage { message, hint } => {
                format!("{message}; {}", hint.unwrap_or_default())
            }
            other => format!("{other:?}"),
        })
    }

    /// The model that the file has now under this name.
    fn model(&self, name: &str) -> crate::config::ModelConfig {
        let config = write::Target::find(&self.context(&[])).unwrap_or_else(|error| panic!("{error:?}")).config;
        config.models.into_values().find(|model| model.id.as_str() == name).expect("it is there")
    }
}

fn gguf(architecture: &str) -> Vec<u8> {
    let mut pairs = SMOLLM;
    pairs[0].1 = architecture;
    header_bytes(&pairs, &[0, 12])
}

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn the_quantisation_that_fits_is_written_and_the_file_keeps_what_it_said() {
    let world = World::new().await;
    let sizes = [("Q8_0", 900), ("Q4_K_M", 500), ("Q2_K", 300), ("F16", 1800)];
    let names: Vec<String> = sizes.iter().map(|(name, _)| format!("SmolLM-{name}.gguf")).collect();
    let mut files: Vec<(&str, u64, Vec<u8>)> =
        names.iter().zip(sizes).map(|(name, (_, mib))| (name.as_str(), mib * MIB, gguf("llama"))).collect();
    files.push(("mmproj-F16.gguf", 5 * MIB, Vec::new()));
    world.repository("org/SmolLM-GGUF", r#""cardData": {"license": "apache-2.0"}, "#, &files);
    let dry = world.add("hf:org/SmolLM-GGUF", None, true).await.expect("told");
    assert_eq!(world.text(), FILE, "a dry run writes nothing");
    assert_eq!(check(&dry.text), 1);
    for words in [
        "size: 500.0 MiB in 1 file",
        "licence: apache-2.0",
        "memory: about 1.",
        "served by: candle-llm",
        "Q4_K_M, the best that fits",
        "projector",
    ] {
        assert!(dry.notes.iter().any(|note| note.contains(words)), "wanted `{words}` in {:?}", dry.notes);
    }
    let told = world.add("hf:org/SmolLM-GGUF", None, false).await.expect("written");
    assert_eq!(world.text(), format!("{FILE}{}", dry.text));
    assert!(told.notes.last().is_some_and(|note| note == "next: aihost models pull smollm"), "{:?}", told.notes);
    let model = world.model("smollm");
    assert_eq!((model.plugin.as_str(), &model.files["model"].sha256), ("candle-llm", &Some("ab".repeat(32))));
    let source = model.files["model"].sources[0].to_string();
    assert_eq!(source, format!("hf org/SmolLM-GGUF/SmolLM-Q4_K_M.gguf@{COMMIT}"));
    let weights: Vec<_> = world.hub.asked().into_iter().filter(|asked| asked.path.contains("/resolve/")).collect();
    assert!(weights.iter().all(|asked| asked.range.is_some()), "only beginnings are asked for: {weights:?}");
}

#[tokio::test]
async fn a_quantisation_that_was_named_is_taken_and_one_that_is_not_there_is_told() {
    let world = World::new().await;
    world.repository(
        "o/r-GGUF",
        "",
        &[("r-Q8_0.gguf", 9000 * MIB, gguf("llama")), ("r-Q4_0.gguf", 4000 * MIB, gguf("llama"))],
    );
    let told = world.add("hf:o/r-GGUF", None, true).await.expect_err("nothing fits");
    for words in [
        "nothing of o/r-GGUF fits: the smallest, Q4_0, takes about 4.9 GiB",
        "cpu may give 2.0 GiB",
        "hf:o/r-GGUF:Q4_0",
    ] {
        assert!(told.contains(words), "wanted `{words}` in {told}");
    }
    let named = world.add("hf:o/r-GGUF:q8_0", Some("big"), true).await.expect("it was asked for");
    assert!(named.text.contains("  big:\n") && named.text.contains("r-Q8_0.gguf"), "{}", named.text);
    assert!(
        named.notes.iter().any(|note| note.starts_with("warning: it does not fit: cpu may give 2.0 GiB")),
        "{:?}",
        named.notes
    );
    let told = world.add("hf:o/r-GGUF:Q5_K_M", None, true).await.expect_err("not there");
    assert!(told.contains("has no `Q5_K_M`; there are: Q8_0, Q4_0"), "{told}");
    assert_eq!(world.text(), FILE);
}

#[tokio::test]
async fn a_split_model_has_all_its_parts_beside_each_other() {
    let world = World::new().await;
    let part = |number: u32| format!("Q4_0/r-Q4_0-0000{number}-of-00002.gguf");
    let (one, two) = (part(1), part(2));
    world.repository("o/r", "", &[(&one, 300 * MIB, gguf("deepseek2")), (&two, 200 * MIB, gguf("deepseek2"))]);
    let told = world.add("hf:o/r", None, false).await.expect("written");
    assert!(told.notes.iter().any(|note| note == "size: 500.0 MiB in 2 files"), "{:?}", told.notes);
    let model = world.model("r");
    assert_eq!((model.plugin.as_str(), model.options["engine"].as_str()), ("vllm", Some("llama-server")));
    let paths: Vec<&std::path::Path> = model.files.values().map(|file| file.path.parent().unwrap()).collect();
    assert_eq!(paths.len(), 2);
    assert_eq!(paths[0], paths[1], "a server finds the second beside the first");
    assert!(model.files.values().all(|file| file.sha256.is_some()));
    assert!(told.notes.iter().any(|note| note.contains("no `llama-server` in the PATH")), "{:?}", told.notes);
}

#[tokio::test]
async fn models_of_several_files_are_told_by_their_configuration() {
    let world = World::new().await;
    let llama = br#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "num_hidden_layers": 2,
        "num_attention_heads": 4, "hidden_size": 64, "max_position_embeddings": 2048}"#;
    let qwen = br#"{"model_type": "deepseek2", "architectures": ["Qwen3ForCausalLM"]}"#;
    let config = |text: &[u8]| ("config.json", 200, text.to_vec());
    let small = |name: &'static str| (name, 100, Vec::new());
    let whole = [
        config(llama),
        ("model.safetensors", 300 * MIB, Vec::new()),
        small("tokenizer.json"),
        small("README.md"),
        small("onnx/model.onnx"),
    ];
    world.repository("o/Llama", "", &whole);
    world.add("hf:o/Llama", None, false).await.expect("written");
    let model = world.model("llama");
    assert_eq!((model.plugin.as_str(), model.files.len()), ("candle-llm", 3));
    assert_eq!(model.files.keys().map(String::as_str).collect::<Vec<_>>(), ["config", "model", "tokenizer"]);

    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let sharded = [
        config(qwen),
        (shards[0], 300 * MIB, Vec::new()),
        (shards[1], 300 * MIB, Vec::new()),
        small("model.safetensors.index.json"),
        small("tokenizer.json"),
    ];
    world.repository("o/Qwen", "", &sharded);
    let told = world.add("hf:o/Qwen", None, false).await.expect("written");
    let model = world.model("qwen");
    assert_eq!((model.plugin.as_str(), model.options["engine"].as_str()), ("vllm", Some("vllm")));
    let folder = model.files["model"].path.parent();
    assert!(model.files["model"].path.ends_with("model.safetensors.index.json"));
    assert!(["shard_1", "shard_2"].iter().all(|role| model.files[*role].path.parent() == folder), "beside their index");
    assert!(told.notes.iter().any(|note| note.starts_with("size: 600.0 MiB")), "{:?}", told.notes);

    world.repository(
        "o/musicgen-small",
        "",
        &[
            config(br#"{"model_type": "musicgen"}"#),
            ("model.safetensors", 300 * MIB, Vec::new()),
            small("tokenizer.json"),
        ],
    );
    world.add("hf:o/musicgen-small", None, false).await.expect("written");
    assert_eq!(world.model("musicgen-small").plugin, "musicgen");

    let bert = br#"{"model_type": "bert", "architectures": ["BertModel"]}"#;
    let weights = || ("model.safetensors", 3 * MIB, Vec::new());
    world.repository("o/bert", "", &[config(bert), weights(), small("tokenizer.json"), small("1_Pooling/config.json")]);
    world.add("hf:o/bert", None, false).await.expect("written");
    let model = world.model("bert");
    assert_eq!(model.files.keys().map(String::as_str).collect::<Vec<_>>(), ["config", "model", "pooling", "tokenizer"]);
    // A decoder that makes vectors is told from one that writes by what lists its parts.
    let qwen3 = br#"{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu"}"#;
    let parts = [config(qwen3), weights(), small("tokenizer.json"), small("modules.json")];
    world.repository("o/Qwen3-Embedding", "", &parts);
    world.add("hf:o/Qwen3-Embedding", None, false).await.expect("written");
    assert_eq!(world.model("qwen3-embedding").plugin, "candle-embed");
    let parts =
        [config(qwen3), weights(), small("tokenizer.json"), small("modules.json"), small("2_Dense/config.json")];
    world.repository("o/dense", "", &parts);
    let sees = br#"{"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {"model_type": "gemma3_text"}}"#;
    world.repository("o/sees", "", &[config(sees), weights(), small("tokenizer.json")]);
    world.add("hf:o/sees", None, false).await.expect("written");
    assert_eq!(world.model("sees").plugin, "candle-llm");
    let t5 = br#"{"model_type": "t5", "architectures": ["T5Model"]}"#;
    world.repository("o/t5", "", &[config(t5), ("model.safetensors", 3 * MIB, Vec::new())]);
    world.repository("o/flux", "", &[("model_index.json", 100, br#"{"_class_name": "FluxPipeline"}"#.to_vec())]);
    world.repository("o/data", "", &[small("README.md")]);
    for (repository, words) in [
        ("hf:o/dense", "has layers behind its pooling, which are served from a folder"),
        ("hf:o/t5", "has a model of type `t5`, of which no plugin"),
        ("hf:o/flux", "FLUX.1 in diffusers' layout"),
        ("hf:o/data", "has files without a GGUF model or a config.json"),
        ("hf:o/Llama:Q4_0", "has no GGUF model"),
        ("hf:o/absent", "404 Not Found: it has no such repository"),
    ] {
        let told = world.add(repository, None, false).await.expect_err(words);
        assert!(told.contains(words), "wanted `{words}` in {told}");
    }
}

#[tokio::test]
async fn files_behind_urls_and_files_here_are_added_too() {
    let world = World::new().await;
    let files = Standin::start().await;
    files.file("d/tiny.gguf", &gguf("llama"));
    world.add(&files.url("d/tiny.gguf"), None, false).await.expect("written");
    assert_eq!(world.model("tiny").files["model"].sources.len(), 1);
    files.put("d/page.gguf", Page { bytes: b"<html>".to_vec(), content_type: Some("text/html"), ..Page::default() });
    let told = world.add(&files.url("d/page.gguf"), None, false).await.expect_err("a page");
    assert!(told.contains("does it ask for a login?"), "{told}");

    fs::create_dir_all(world.path("own")).unwrap();
    fs::write(world.path("own/Mine.gguf"), gguf("deepseek2")).unwrap();
    world.add("own/Mine.gguf", None, false).await.expect("written");
    assert_eq!(world.model("mine").files["model"].path, world.path("own/Mine.gguf"));
    world.add("own", Some("again"), false).await.expect("the only one of the folder");
    assert_eq!(world.model("again").files["model"].path, world.path("own/Mine.gguf"));
    fs::write(world.path("own/clip.gguf"), gguf("clip")).unwrap();
    fs::write(world.path("own/x.bin"), "x").unwrap();
    fs::create_dir_all(world.path("flux")).unwrap();
    fs::write(world.path("flux/model_index.json"), r#"{"_class_name": "FluxPipeline"}"#).unwrap();
    world.add("flux", None, false).await.expect("written");
    assert_eq!(world.model("flux").plugin, "flux");
    for (from, words) in [
        ("own/clip.gguf", "is a projector"),
        ("own/x.bin", "is no GGUF file"),
        ("own", "has several GGUF models: Mine.gguf, clip.gguf"),
        ("absent/file.gguf", "there is no absent/file.gguf here"),
    ] {
        let told = world.add(from, None, false).await.expect_err(words);
        assert!(told.contains(words), "wanted `{words}` in {told}");
    }
}

#[tokio::test]
async fn names_that_are_taken_or_unusable_are_refused_before_anything_is_written() {
    let world = World::new().await;
    let files = Standin::start().await;
    files.file("d/old.gguf", &gguf("llama"));
    let url = files.url("d/old.gguf");
    for (name, words) in [
        (None, "models.yaml has a model `old` already; name this one with `--name NAME`"),
        (Some("older"), "`older` is an alias of `old`"),
        (Some("a b"), "the entry is refused"),
    ] {
        let told = world.add(&url, name, false).await.expect_err(words);
        assert!(told.contains(words), "wanted `{words}` in {told}");
    }
    assert_eq!(world.text(), FILE);
}

#[tokio::test]
async fn a_gated_repository_is_told_with_what_to_do() {
    let world = World::new().await;
    world.repository("o/gated", r#""gated": "auto", "#, &[("x-Q4_0.gguf", 100 * MIB, Vec::new())]);
    let page = Page { manners: Manners::Gated, ..Page::default() };
    world.hub.put(&format!("o/gated/resolve/{COMMIT}/x-Q4_0.gguf"), page);
    let told = world.add("hf:o/gated", None, false).await.expect_err("its header is not given");
    assert!(told.contains("accept its terms at ") && told.contains("/o/gated and set HF_TOKEN"), "{told}");
    assert_eq!(world.text(), FILE);
}
