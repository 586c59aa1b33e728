//! `plugin: auto` under a whole host: what serves a model is chosen by its file, told, and chosen later where the file comes later.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use aihost_tests::server::{Server, Setup, aihost, prepare};
use aihost_tests::{eventually, stand_in};
use serde_json::{Value, json};

/// A header that says no more than the architecture.
fn gguf(architecture: &str) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let counts = [0_u64, 1].map(u64::to_le_bytes).concat();
    // A text is of type 8.
    let pair = [text("general.architecture"), 8_u32.to_le_bytes().to_vec(), text(architecture)].concat();
    [b"GGUF\x03\0\0\0".to_vec(), counts, pair].concat()
}

/// A host with an entry `a` for the file `m.gguf` of this folder, which has a `llama-server` in its PATH.
fn setup(folder: &Path, options: &str) -> Setup {
    let bin = folder.join("bin");
    fs::create_dir_all(&bin).unwrap();
    symlink(stand_in(), bin.join("llama-server")).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let yaml = format!(
        "devices: [{{id: cpu, memory: 8GiB}}]\nmodels:\n  a: {{type: text, plugin: auto, source: {{path: '{}'}}, options: {{{options}}}, upstream_routes: true}}\n",
        folder.join("m.gguf").display()
    );
    Setup { yaml, plugins: vec!["vllm"], env: vec![("PATH".to_owned(), path)], ..Setup::default() }
}

async fn completion(server: &Server) -> (u16, Value) {
    server.post("/v1/completions", &json!({"model": "a", "prompt": "1 2 3", "max_tokens": 1})).await
}

#[tokio::test]
async fn a_file_that_our_own_plugin_does_not_serve_is_llama_cpps_servers() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("m.gguf"), gguf("deepseek2")).unwrap();
    let server = Server::start(&setup(folder.path(), "context: 4096, threads: 2"));
    assert_eq!(completion(&server).await.0, 200);
    assert_eq!(server.status("a", "plugin").await, "vllm");
    let why = server.why("a").await;
    assert!(
        why.contains(
            "`plugin: auto` is llama.cpp's server here: candle-llm does not serve the architecture `deepseek2`"
        ),
        "{why}"
    );
    let (_, about) = server.get("/upstream/a/about").await;
    let words: Vec<&str> = about["arguments"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(words[words.len() - 4..], ["--ctx-size", "4096", "--threads", "2"], "{words:?}");
}

#[tokio::test]
async fn what_is_fetched_while_the_host_serves_is_chosen_for_then() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&setup(folder.path(), ""));
    let (status, answer) = completion(&server).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (503, Some("model_not_pulled")), "{answer}");
    let why = server.why("a").await;
    assert!(why.contains("`plugin: auto` is decided once its files are here"), "{why}");
    // As a download ends: whole, under its name.
    let part = folder.path().join("m.part");
    fs::write(&part, gguf("deepseek2")).unwrap();
    fs::rename(part, folder.path().join("m.gguf")).unwrap();
    eventually(async || match completion(&server).await {
        (200, _) => Ok(()),
        (status, answer) => Err(format!("{status}: {answer}")),
    })
    .await;
    assert_eq!(server.status("a", "plugin").await, "vllm");
}

#[test]
fn check_tells_what_is_chosen_what_is_open_and_what_nothing_serves() {
    let folder = tempfile::tempdir().unwrap();
    let check = |setup: &Setup, path: &str| {
        let (_kept, config) = prepare(setup);
        let (code, stdout, stderr) = aihost(&["check", "--config", config.to_str().unwrap()], &[("PATH", path)]);
        (code, stdout + &stderr.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let setup = setup(folder.path(), "");
    let path = setup.env[0].1.clone();
    let (code, said) = check(&setup, &path);
    assert!(said.contains("`plugin: auto` is decided once its files are here"), "{code}: {said}");
    fs::write(folder.path().join("m.gguf"), gguf("deepseek2")).unwrap();
    let (code, said) = check(&setup, &path);
    assert!(code == 0 && said.contains("models.a: `plugin: auto` is llama.cpp's server here"), "{code}: {said}");
    let (code, said) = check(&setup, "/nowhere");
    assert_ne!(code, 0, "{said}");
    for words in [
        "models.a.plugin: `auto` finds nothing that serves its files",
        "no `llama-server` in the PATH",
        "install llama.cpp",
    ] {
        assert!(said.contains(words), "{said}");
    }
}
