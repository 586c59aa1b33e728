//! Bad input: each case gets one clear error that says what to do next, and the host goes on.

use std::io::{Seek, SeekFrom, Write};

use aihost_tests::model_file;
use aihost_tests::server::{Server, Setup, aihost, client, prepare, text};
use serde_json::json;

const ECHO: &str = "models:\n  a:\n    type: text\n    plugin: aihost/echo\n    aliases: [nick]\n";

fn echo() -> Server {
    Server::start(&Setup { yaml: ECHO.into(), plugins: vec!["echo"], ..Setup::default() })
}

#[tokio::test]
async fn http_bodies() {
    let server = echo();
    let url = format!("{}/v1/chat/completions", server.base());
    let client = client();
    let cases: [(&str, u16, &str); 7] = [
        ("not json", 400, "JSON"),
        ("[]", 400, "object"),
        ("{}", 400, "messages"),
        (r#"{"model":"a","messages":[]}"#, 400, "messages"),
        (r#"{"model":"a","messages":[{"role":"user","content":"x"}],"temperature":9}"#, 400, "temperature"),
        (r#"{"model":"smol","messages":[{"role":"user","content":"x"}]}"#, 404, "smol"),
        (r#"{"model":"a","messages":[{"role":"nobody","content":"x"}]}"#, 400, "role"),
    ];
    for (body, status, word) in cases {
        let response =
            client.post(&url).header("content-type", "application/json").body(body).send().await.expect("an answer");
        assert_eq!(response.status().as_u16(), status, "{body}");
        let answer: serde_json::Value = response.json().await.expect("the envelope");
        assert!(answer["error"]["message"].as_str().is_some_and(|message| message.contains(word)), "{body}: {answer}");
    }
    assert_eq!(server.get("/nowhere").await.0, 404);
    assert_eq!(server.get("/v1/chat/completions").await.0, 405);
    assert_eq!(server.chat("nick", "by alias").await.1["model"], "nick");
    let (status, body) =
        server.post("/v1/chat/completions", &json!({"messages": [{"role": "user", "content": "no model"}]})).await;
    assert_eq!((status, text(&body)), (200, "no model"), "{body}");
    let (_, list) = server.get("/v1/models").await;
    assert_eq!(list["data"].as_array().map(Vec::len), Some(1), "{list}");
}

#[tokio::test]
async fn a_folder_is_no_file_for_a_plugin_that_reads_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().display();
    let entry = |name, plugin| format!("  {name}: {{type: text, plugin: {plugin}, source: {{path: {path}}}}}\n");
    let (reads_files, reads_none, reads_folders) = ("aihost/faulty", "aihost/echo", "candle-llm");
    let yaml = format!("models:\n{}{}{}", entry("a", reads_files), entry("b", reads_none), entry("c", reads_folders));
    let setup = Setup { yaml, plugins: vec!["echo", "faulty", "candle_llm"], ..Setup::default() };
    let (_keep, config) = prepare(&setup);
    let (code, stdout, stderr) = aihost(&["check", "--json", "--config", &config.display().to_string()], &[]);
    let report: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(
        (code, &report["models"][0]["files"], &report["models"][1]["files"]),
        (1, &json!("not usable"), &json!("present")),
        "{stderr}"
    );
    let problem = report["models"][0]["problems"][0].as_str().unwrap_or_default().to_owned();
    assert!(problem.contains(&format!("{path} is a folder, not a file")), "{problem}");
    let server = Server::start(&setup);
    assert!(server.why("a").await.contains("is a folder, not a file"));
    assert_eq!((server.chat("a", "x").await.0, server.chat("b", "x").await.0), (500, 200));
    assert!(server.status("a", "error").await.to_string().contains("is a folder, not a file"));
    assert_eq!(server.chat("c", "x").await.0, 500);
    let error = server.status("c", "error").await.to_string();
    assert!(error.contains("config.json does not exist"), "{error}");
}

#[tokio::test]
async fn what_is_missing_is_named_with_the_command_that_helps() {
    let yaml = format!(
        "{ECHO}  unpulled:\n    type: text\n    plugin: candle-llm\n    source: {{url: \"http://127.0.0.1:9/x.gguf\"}}\n  orphan:\n    type: text\n    plugin: acme/none\n"
    );
    let server = Server::start(&Setup { yaml, plugins: vec!["echo", "candle_llm"], ..Setup::default() });
    let (status, body) = server.chat("unpulled", "x").await;
    assert_eq!(status, 503, "{body}");
    assert_eq!(body["error"]["code"], "model_not_pulled");
    assert!(server.why("unpulled").await.contains("aihost models pull unpulled"));
    let (status, body) = server.chat("orphan", "x").await;
    assert_eq!(status, 500, "{body}");
    assert_eq!(body["error"]["code"], "model_not_usable");
    assert!(server.why("orphan").await.contains("acme/none"));
    assert_eq!(server.chat("a", "x").await.0, 200);
}

#[tokio::test]
async fn damaged_weights() {
    let whole = std::fs::read(model_file()).expect("the small model");
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        path
    };
    let truncated = write("truncated.gguf", &whole[..whole.len() / 2]);
    let header = write("header.gguf", &whole[..100]);
    let garbage = write("garbage.gguf", b"this is no model at all");
    let twisted = write("twisted.gguf", &whole);
    let mut file = std::fs::OpenOptions::new().write(true).open(&twisted).expect("opened");
    file.seek(SeekFrom::Start(8)).and_then(|_| file.write_all(&[0xff; 64])).expect("overwritten");
    let mut yaml = ECHO.to_owned();
    for (name, path) in [("truncated", &truncated), ("header", &header), ("garbage", &garbage), ("twisted", &twisted)] {
        yaml +=
            &format!("  {name}:\n    type: text\n    plugin: candle-llm\n    source: {{path: {}}}\n", path.display());
    }
    let server = Server::start(&Setup { yaml, plugins: vec!["echo", "candle_llm"], ..Setup::default() });
    for name in ["truncated", "header", "garbage", "twisted"] {
        let (status, body) = server.chat(name, "x").await;
        assert_eq!(status, 500, "{name}: {body}");
        let message = server.status(name, "error").await.to_string();
        assert!(
            message.contains(".gguf") && !message.contains("panic") && !message.contains("crash"),
            "{name}: {message}"
        );
    }
    assert_eq!(server.chat("a", "x").await.0, 200);
}

#[test]
fn a_port_already_taken() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address");
    let (_folder, config) =
        prepare(&Setup { yaml: format!("listen: {address}\n{ECHO}"), plugins: vec!["echo"], ..Setup::default() });
    let (code, _, stderr) = aihost(&["serve", "--config", &config.display().to_string()], &[]);
    assert_ne!(code, 0);
    assert!(stderr.contains(&address.port().to_string()) && stderr.contains("listen"), "{stderr}");
}

#[test]
fn no_models_yaml() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("models.yaml").display().to_string();
    for command in ["serve", "check", "ps"] {
        let (code, _, stderr) = aihost(&[command, "--config", &missing], &[]);
        assert_ne!(code, 0);
        assert!(stderr.contains("aihost init"), "{command}: {stderr}");
    }
}

#[test]
fn an_unknown_key() {
    let (_folder, config) =
        prepare(&Setup { yaml: "models:\n  a:\n    type: text\n    plugn: x\n".into(), ..Setup::default() });
    let (code, _, stderr) = aihost(&["check", "--config", &config.display().to_string()], &[]);
    assert_ne!(code, 0);
    assert!(stderr.contains("plugn") && stderr.contains("plugin") && stderr.contains("models.yaml"), "{stderr}");
}

#[test]
fn an_unknown_model_suggests_the_nearest() {
    let (_folder, config) = prepare(&Setup {
        yaml:
            "models:\n  smollm2:\n    type: text\n    plugin: candle-llm\n    source: {url: \"http://127.0.0.1:9/x\"}\n"
                .into(),
        ..Setup::default()
    });
    let (code, _, stderr) = aihost(&["models", "pull", "smolm2", "--config", &config.display().to_string()], &[]);
    assert_ne!(code, 0);
    assert!(stderr.contains("smollm2"), "{stderr}");
}

#[test]
fn an_empty_plugins_folder_and_a_file_that_is_no_plugin() {
    let (folder, config) = prepare(&Setup { yaml: ECHO.into(), ..Setup::default() });
    let config = config.display().to_string();
    let (code, stdout, stderr) = aihost(&["plugins", "list", "--config", &config], &[]);
    assert_eq!(code, 0, "{stderr}");
    let put = format!("put the `.so` files of a release into {}", folder.path().join("plugins").display());
    assert!(stderr.contains(&put), "{stdout}{stderr}");
    std::fs::write(folder.path().join("plugins/junk.so"), b"\x7fELF but not really").expect("written");
    let (code, stdout, _) = aihost(&["plugins", "list", "--json", "--config", &config], &[]);
    assert_eq!(code, 0);
    assert!(stdout.contains("junk.so"), "{stdout}");
}
