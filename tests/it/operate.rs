//! What an operator types when something is wrong: it works then, too, and it says what is so.

use std::process::Command;

use aihost_tests::binary;
use aihost_tests::server::{Server, Setup, aihost, chat, prepare};
use rustix::process::Signal;
use serde_json::Value;

const YAML: &str = "models:\n  a: {type: text, plugin: aihost/echo}\n  b: {type: text, plugin: aihost/echo}\n";

fn setup(yaml: &str) -> Setup {
    Setup { yaml: yaml.into(), plugins: vec!["echo"], ..Setup::default() }
}

/// A command beside a server, given its models.yaml.
fn beside(server: &Server, command: &[&str]) -> (i32, String, String) {
    let config = server.folder().join("models.yaml").display().to_string();
    aihost(&[command, &["--config", &config]].concat(), &[])
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_work_beside_a_models_yaml_that_is_wrong_or_was_edited() {
    let server = Server::start(&setup(&format!("api_keys: [a-key-of-sixteen-bytes]\n{YAML}")));
    let file = server.folder().join("models.yaml");
    let good = std::fs::read_to_string(&file).unwrap();
    for (what, text) in [
        ("no YAML at the end", format!("{good}  c: [{{\n")),
        ("a tab", good.replace("  a:", "\ta:")),
        ("a wrong key", good.replace("type: text", "typ: text")),
        ("another address", good.replace("listen: 127.0.0.1:0", "listen: 127.0.0.1:1")),
        (
            "another address, and wrong",
            good.replace("listen: 127.0.0.1:0", "listen: 127.0.0.1:1").replace("models:", "mdels:"),
        ),
    ] {
        std::fs::write(&file, &text).unwrap();
        for (command, told) in [
            (&["ps"][..], "aihost/echo"),
            (&["why", "a"], "`a`"),
            (&["models", "list"], "a"),
            (&["plugins", "list"], "aihost/echo"),
            (&["models", "load", "a"], ""),
            (&["logs", "a"], ""),
            (&["models", "unload", "a"], ""),
        ] {
            let (code, stdout, stderr) = beside(&server, command);
            assert_eq!(code, 0, "{what}: {command:?}: {stdout}{stderr}");
            assert!(stdout.contains(told), "{what}: {command:?}: {stdout}{stderr}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_taken_as_people_write_it_and_a_wrong_one_is_told_of() {
    let server = Server::start(&setup(YAML));
    let bare = server.base().trim_start_matches("http://").to_owned();
    for url in
        [bare.clone(), format!("{}/v1", server.base()), format!("{}/v1/", server.base()), format!("{}/", server.base())]
    {
        let (code, stdout, stderr) = aihost(&["ps", "--url", &url], &[]);
        assert_eq!((code, stdout.contains("aihost/echo")), (0, true), "{url}: {stdout}{stderr}");
    }
    let foreign = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let foreign_port = foreign.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in foreign.incoming().flatten() {
            // Whoever answers before it was asked is no HTTP server.
            let _ = std::io::Read::read(&mut &stream, &mut [0; 1024]);
            let answer = "HTTP/1.1 404 Not Found\r\nserver: nginx\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = std::io::Write::write_all(&mut &stream, answer.as_bytes());
            // Read to its end, so that the answer is not lost with a reset.
            let _ = std::io::copy(&mut &stream, &mut std::io::sink());
        }
    });
    for (url, told) in [
        (format!("https://{bare}"), format!("http://{bare}")),
        ("http://no-such-host.invalid:1".to_owned(), "no machine of the name".to_owned()),
        (format!("http://127.0.0.1:{foreign_port}"), "is no aihost (it says it is nginx)".to_owned()),
    ] {
        let (code, _, stderr) = aihost(&["ps", "--url", &url], &[]);
        assert!(code != 0 && stderr.contains(&told), "{url}: {stderr}");
    }
    for command in
        [&["why", "nobody"][..], &["logs", "nobody"], &["models", "load", "nobody"], &["models", "unload", "nobody"]]
    {
        let (code, _, stderr) = aihost(&[command, &["--url", &bare]].concat(), &[]);
        assert!(code != 0 && stderr.contains("aihost models list"), "{command:?}: {stderr}");
        assert!(!stderr.contains("GET /"), "{command:?}: {stderr}");
    }
    let (code, _, stderr) = beside(&server, &["models", "pull"]);
    assert!(code == 2 && stderr.contains("--all") && stderr.contains("a, b"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_in_json_is_json_from_the_first_line_to_the_last() {
    let (folder, config) = prepare(&setup(
        "models:\n  a: {type: text, plugin: aihost/echo, options: {latency_ms: 20, tokens: 1000000}}\n",
    ));
    let mut command = Command::new(binary());
    // Nothing is said of the form: a file is no terminal.
    command.args(["serve", "--config"]).arg(&config).env_remove("AIHOST_LOG");
    let mut server = Server::of(&mut command, folder);
    let mut stream = server.stream(&chat("a", "on and on")).await;
    assert!(stream.chunk().await.unwrap().is_some());
    server.signal(Signal::TERM);
    let mut text = server.logged("stopping").await;
    server.signal(Signal::TERM);
    server.wait();
    text += &format!("\n{}", server.log());
    assert!(text.lines().count() >= 2, "{text}");
    for line in text.lines().filter(|line| !line.is_empty()) {
        let json: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(json["level"].is_string() && json["timestamp"].is_string(), "{line}");
    }
}
