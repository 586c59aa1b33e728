//! Folders that fail a running host: plugins that vanish, a disk that is full.

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
        let message = body["error"]["message"].as_str().unwrap_or_default();
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
