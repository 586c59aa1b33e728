//! What is opened is what was hashed, by nobody but the host's user: weights, plugins and their copies, and the folder of what
//! a host remembers.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use aihost_tests::binary;
use aihost_tests::server::{Server, Setup, aihost, chat, client, prepare, text};
use serde_json::json;

const ECHO: &str = "models:\n  a:\n    type: text\n    plugin: aihost/echo\n";

/// What a host says that does not start. One that does is ended after a while, with another code.
fn not_started(config: &str) -> String {
    let output = Command::new("timeout").arg("30").arg(binary()).args(["serve", "--config", config]).output();
    let output = output.expect("timeout, of coreutils");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    stderr
}

/// The digest of a file, by another program.
fn sha256(file: &Path) -> String {
    let output = Command::new("sha256sum").arg(file).output().expect("sha256sum");
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

fn weights(folder: &Path, content: &str) -> PathBuf {
    let file = folder.join("weights.bin");
    fs::write(&file, content).unwrap();
    file
}

fn with_weights(file: &Path, digest: &str) -> String {
    format!("{ECHO}    source: {{path: {}}}\n    sha256: {digest}\n", file.display())
}

#[tokio::test]
async fn weights_with_another_digest_are_refused_with_both_and_hashed_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = weights(folder.path(), "right");
    let right = sha256(&file);
    fs::write(&file, "wrong").unwrap();
    let wrong = sha256(&file);
    let server = Server::start(&Setup { yaml: with_weights(&file, &right), plugins: vec!["echo"], ..Setup::default() });
    let (status, body) = server.chat("a", "hi").await;
    let message = server.status("a", "error").await.to_string();
    assert!(status == 500 && message.contains(&right) && message.contains(&wrong), "{status} {body}");
    server.logged("verifying").await;

    // Mended, it is served; and neither a swap nor the next host hashes it again.
    fs::write(&file, "right").unwrap();
    assert_eq!(server.post("/models/load", &json!({"model": "a"})).await.0, 200);
    server.logged("verified").await;
    assert_eq!(server.post("/models/unload", &json!({"model": "a"})).await.0, 200);
    assert_eq!(text(&server.chat("a", "again").await.1), "again");
    assert!(!server.log().contains("verifying"), "it was hashed again");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "something was written beside the weights");
}

/// So large that hashing it to its end would take longer than any test waits.
const HUGE_BYTES: u64 = 1 << 40;

#[tokio::test]
async fn weights_that_nobody_waits_for_are_not_hashed_to_their_end() {
    let folder = tempfile::tempdir().unwrap();
    let file = weights(folder.path(), "");
    fs::File::options().write(true).open(&file).and_then(|file| file.set_len(HUGE_BYTES)).unwrap();
    let yaml = with_weights(&file, &"ab".repeat(32)).replace("    type", "    startup_time: 1s\n    type");
    let mut server = Server::start(&Setup { yaml, plugins: vec!["echo"], ..Setup::default() });
    let asked = || {
        let request = client().post(format!("{}/v1/chat/completions", server.base())).json(&chat("a", "hi"));
        tokio::spawn(request.send())
    };
    // The one client leaves.
    let request = asked();
    server.until("a", "step", json!("verifying")).await;
    assert!(server.status("a", "progress").await.is_u64());
    request.abort();
    server.until("a", "state", json!("cold")).await;
    // An operator unloads it.
    let request = asked();
    server.until("a", "step", json!("verifying")).await;
    assert_eq!(server.post("/models/unload", &json!({"model": "a"})).await.0, 200);
    assert_eq!(request.await.unwrap().unwrap().status().as_u16(), 503);
    // The host ends.
    let request = asked();
    server.until("a", "step", json!("verifying")).await;
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait().success());
    assert_eq!(request.await.unwrap().unwrap().status().as_u16(), 503);
}

#[tokio::test]
async fn weights_that_others_may_change_are_refused_with_what_mends_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = weights(folder.path(), "right");
    let yaml = with_weights(&file, &sha256(&file));
    let server = Server::start(&Setup { yaml: yaml.clone(), plugins: vec!["echo"], ..Setup::default() });
    for path in [&file, folder.path()] {
        let before = path.metadata().unwrap().permissions();
        fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
        // Clients are not told where it lies.
        let (status, body) = server.chat("a", "hi").await;
        let said = body["error"]["message"].as_str().unwrap_or_default();
        assert!(status == 500 && !said.contains("chmod") && !said.contains(&*path.to_string_lossy()), "{body}");
        let (status, body) = server.post("/models/load", &json!({"model": "a"})).await;
        let mend = format!("chmod go-w {}", path.display());
        assert!(status == 500 && body["error"]["message"].as_str().is_some_and(|m| m.contains(&mend)), "{body}");
        fs::set_permissions(path, before).unwrap();
        assert_eq!(server.post("/models/load", &json!({"model": "a"})).await.0, 200);
        assert_eq!(server.post("/models/unload", &json!({"model": "a"})).await.0, 200);
    }
    fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
    let shared = format!("allow_shared_folders: true\n{yaml}");
    let shared = Server::start(&Setup { yaml: shared, plugins: vec!["echo"], ..Setup::default() });
    assert_eq!(shared.chat("a", "hi").await.0, 200);
}

#[tokio::test]
async fn plugins_that_others_may_change_are_not_opened() {
    type Harm = fn(&Path);
    let harms: [(Harm, &str); 3] = [
        (
            |folder| fs::set_permissions(folder.join("plugins/echo.so"), Permissions::from_mode(0o666)).unwrap(),
            "chmod go-w",
        ),
        (|folder| fs::set_permissions(folder.join("plugins"), Permissions::from_mode(0o777)).unwrap(), "chmod go-w"),
        (|folder| chown(folder.join("plugins/echo.so"), Some(4242), None).unwrap(), "user 4242"),
    ];
    for (harm, told) in harms {
        let (folder, config) = prepare(&Setup { yaml: ECHO.into(), plugins: vec!["echo"], ..Setup::default() });
        harm(folder.path());
        let (code, _, stderr) = aihost(&["check", "--config", &config.display().to_string()], &[]);
        assert!(code != 0 && stderr.contains(told) && stderr.contains("is not opened"), "{stderr}");
    }
}

#[tokio::test]
async fn a_state_folder_of_others_is_not_used() {
    for (mode, owner, told) in [(0o777, 0, "chmod go-w"), (0o700, 4242, "user 4242")] {
        let (folder, config) = prepare(&Setup { yaml: ECHO.into(), plugins: vec!["echo"], ..Setup::default() });
        let state = folder.path().join("state");
        fs::create_dir(&state).unwrap();
        fs::set_permissions(&state, Permissions::from_mode(mode)).unwrap();
        chown(&state, Some(owner), None).unwrap();
        let stderr = not_started(&config.display().to_string());
        assert!(stderr.contains(told), "{stderr}");
    }
}

#[tokio::test]
async fn a_copy_that_was_changed_or_removed_is_made_anew() {
    let server = Server::start(&Setup { yaml: ECHO.into(), plugins: vec!["echo"], ..Setup::default() });
    let copy = || {
        let copies = fs::read_dir(server.folder().join("state/shadow")).unwrap().flatten().map(|entry| entry.path());
        copies.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "so")).expect("a copy")
    };
    let (path, whole) = (copy(), fs::read(copy()).unwrap());
    for harm in ["changed before the first load", "changed", "removed", "all removed"] {
        match harm {
            "removed" => fs::remove_file(&path).unwrap(),
            "all removed" => fs::remove_dir_all(path.parent().unwrap()).unwrap(),
            _ => {
                fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
                fs::write(&path, vec![0; whole.len()]).unwrap();
                fs::set_permissions(&path, Permissions::from_mode(0o500)).unwrap();
            }
        }
        assert_eq!(text(&server.chat("a", harm).await.1), harm);
        server.logged("it is made anew").await;
        assert!(fs::read(&path).unwrap() == whole, "{harm}");
        assert_eq!(server.post("/models/unload", &json!({"model": "a"})).await.0, 200);
    }
    // What is opened is reached by the descriptor that was looked at.
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let worker = server.status("a", "pid").await;
    let links = fs::read_dir(format!("/proc/{worker}/fd")).unwrap().flatten();
    assert!(links.filter_map(|link| fs::read_link(link.path()).ok()).any(|target| target == path));
}

#[tokio::test]
async fn a_second_host_on_one_state_folder_is_told_who_was_first() {
    let mut server = Server::start(&Setup { yaml: ECHO.into(), plugins: vec!["echo"], ..Setup::default() });
    let config = server.folder().join("models.yaml").display().to_string();
    let stderr = not_started(&config);
    let address = server.base().trim_start_matches("http://");
    for part in [&format!("process {}", server.pid()), address, "state_dir"] {
        assert!(stderr.contains(part), "{stderr}");
    }
    // Commands that only look are no hosts.
    assert_eq!(aihost(&["plugins", "list", "--config", &config], &[]).0, 0);
    server.signal(rustix::process::Signal::KILL);
    server.wait();
    // The kernel lets go with the process, however it ended.
    let folder = tempfile::tempdir().unwrap();
    fs::copy(&config, folder.path().join("models.yaml")).unwrap();
    assert_eq!(Server::serving(folder).get("/health").await.0, 200);
}
