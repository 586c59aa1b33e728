//! Copies of weights on a local disk (`cache_dir`): made by the first load, opened by all, and never in the way of one.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use aihost_tests::server::{Server, Setup, aihost, chat, client, prepare, text};
use aihost_tests::{binary, wait_for};
use rustix::process::Signal;
use serde_json::json;

/// A volume with models, and a disk for copies.
struct Disks(tempfile::TempDir);

impl Disks {
    fn new() -> Self {
        let disks = Self(tempfile::tempdir().unwrap());
        fs::create_dir(disks.at("volume")).unwrap();
        disks
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn lay(&self, name: &str, content: &str) {
        let path = self.at("volume").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// models.yaml with a model for each: its name, its file, what else it says.
    fn yaml(&self, size: Option<&str>, models: &[(&str, &str, &str)]) -> String {
        let mut yaml = format!("cache_dir: {}\n", self.at("cache").display());
        yaml += &size.map(|size| format!("cache_size: {size}\n")).unwrap_or_default();
        yaml += "models:\n";
        for (name, file, more) in models {
            let path = self.at("volume").join(file).display().to_string();
            yaml += &format!(
                "  {name}:\n    type: text\n    plugin: aihost/echo\n    source: {{path: {path}}}\n    {more}\n"
            );
        }
        yaml
    }

    fn server(&self, size: Option<&str>, models: &[(&str, &str, &str)]) -> Server {
        Server::start(&setup(self.yaml(size, models)))
    }

    /// Files below the cache, in order: copies by their names, beginnings of copies as such.
    fn copies(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.at("cache")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    folders.push(entry.path());
                } else if kind.is_file() {
                    found.push(entry.file_name().to_string_lossy().into_owned());
                }
            }
        }
        found.retain(|name| !["host.lock", "copies.json", "copies.json.fresh"].contains(&name.as_str()));
        found.sort();
        found
    }
}

fn setup(yaml: String) -> Setup {
    Setup { yaml, plugins: vec!["echo"], ..Setup::default() }
}

const READS: &str = "options: {reads: model}";

/// What a model's plugin opened, and what that said.
async fn opened(server: &Server, model: &str) -> (PathBuf, String) {
    let (status, body) = server.chat(model, "hi").await;
    assert_eq!(status, 200, "{body}");
    let said = text(&body).strip_suffix(" hi").unwrap().to_owned();
    let (path, content) = said.split_once(' ').unwrap();
    (PathBuf::from(path), content.to_owned())
}

async fn unload(server: &Server, model: &str) {
    assert_eq!(server.post("/models/unload", &json!({"model": model})).await.0, 200);
    server.until(model, "state", json!("cold")).await;
}

fn sha256(file: &Path) -> String {
    let output = Command::new("sha256sum").arg(file).output().expect("sha256sum");
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

#[tokio::test]
async fn the_first_load_copies_and_every_other_opens_the_copy() {
    let disks = Disks::new();
    disks.lay("org/m-00001-of-00002.gguf", "first");
    disks.lay("org/m-00002-of-00002.gguf", "second");
    disks.lay("org/config.json", "settings");
    let file = "org/m-00001-of-00002.gguf";
    let hashed = format!("sha256: {}\n    {READS}", sha256(&disks.at("volume").join(file)));
    let models = [
        ("a", file, hashed.as_str()),
        ("b", file, "options: {reads: m-00002-of-00002.gguf}"),
        ("c", file, "options: {reads: config.json}"),
    ];
    let server = disks.server(None, &models[..1]);
    let (path, content) = opened(&server, "a").await;
    assert!(path.starts_with(disks.at("cache")) && path.ends_with(file) && content == "first", "{path:?} {content}");
    let log = server.logged("copied ").await;
    assert!(log.contains("m-00001-of-00002.gguf (5 B)"), "{log}");
    assert_eq!(server.status("a", "note").await, json!(null));
    unload(&server, "a").await;
    assert_eq!(opened(&server, "a").await.0, path);
    let rest = server.log();
    assert!(!rest.contains("copying") && !rest.contains("verifying"), "it was read again: {rest}");
    drop(server);
    assert_eq!(disks.copies(), ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]);

    // Another host, which has hashed nothing yet, knows the copies; and what lies beside a file is found beside its copy.
    let mut three = models;
    let digest = sha256(&disks.at("volume").join(file));
    let each = [1, 2].map(|at| format!("sha256: {digest}\n    {}", models[at].2));
    (three[1].2, three[2].2) = (&each[0], &each[1]);
    let server = disks.server(None, &three);
    assert_eq!(opened(&server, "a").await.0, path);
    assert_eq!(opened(&server, "b").await, (path.with_file_name("m-00002-of-00002.gguf"), "second".to_owned()));
    assert_eq!(opened(&server, "c").await, (path.with_file_name("config.json"), "settings".to_owned()));
    let log = server.log();
    assert!(!log.contains("copying") && !log.contains("verifying") && !log.contains("verified"), "{log}");
}

#[tokio::test]
async fn a_changed_file_is_copied_anew_and_one_with_another_digest_is_refused() {
    let disks = Disks::new();
    disks.lay("x.gguf", "before");
    let wanted = sha256(&disks.at("volume/x.gguf"));
    let hashed = format!("sha256: {wanted}\n    {READS}");
    let server = disks.server(None, &[("a", "x.gguf", READS)]);
    assert_eq!(opened(&server, "a").await.1, "before");
    disks.lay("x.gguf", "after!");
    unload(&server, "a").await;
    let (path, content) = opened(&server, "a").await;
    assert!(path.starts_with(disks.at("cache")) && content == "after!", "{content}");
    assert_eq!(disks.copies(), ["x.gguf"]);
    drop(server);

    let server = disks.server(None, &[("b", "x.gguf", &hashed)]);
    let (status, body) = server.chat("b", "hi").await;
    let message = server.status("b", "error").await.to_string();
    assert!(status == 500 && message.contains(&wanted) && message.contains("has the sha256"), "{body} {message}");
    disks.lay("x.gguf", "before");
    assert_eq!(server.post("/models/load", &json!({"model": "b"})).await.0, 200);
    let (path, content) = opened(&server, "b").await;
    assert!(path.starts_with(disks.at("cache")) && content == "before", "{content}");
}

#[tokio::test]
async fn the_least_recently_used_leave_and_what_is_loaded_stays() {
    let disks = Disks::new();
    for name in ["x", "y", "z"] {
        disks.lay(name, "ten bytes.");
    }
    disks.lay("large", "more than twenty-five bytes");
    let models = [("a", "x", READS), ("b", "y", READS), ("c", "z", READS), ("d", "large", READS)];
    let server = disks.server(Some("25"), &models);
    let is_copied = async |model| opened(&server, model).await.0.starts_with(disks.at("cache"));
    assert!(is_copied("a").await && is_copied("b").await);
    // Both are loaded: there is room for no third, and it is served all the same.
    assert!(!is_copied("c").await);
    let why = server.why("c").await;
    assert!(why.contains("is opened where it lies, not from a copy in `cache_dir`") && why.contains("in use"), "{why}");
    assert!(server.status("c", "note").await.to_string().contains("volume/z is opened where it lies"));
    server.logged("z is opened where it lies").await;
    unload(&server, "c").await;
    assert!(!is_copied("c").await);
    assert!(!is_copied("d").await);
    let log = server.logged("large is opened where it lies").await;
    assert!(log.contains("its 27 B are more than `cache_size` (25 B)") && !log.contains("/z is"), "told once: {log}");
    assert_eq!(disks.copies(), ["x", "y"]);

    // `b` was used before `a` leaves, so that the copy of `b` is the older one once both are unloaded.
    for model in ["c", "b", "a"] {
        unload(&server, model).await;
    }
    assert!(is_copied("c").await);
    assert_eq!(disks.copies(), ["x", "z"]);
    assert_eq!(server.status("c", "note").await, json!(null));
    assert!(is_copied("a").await);
}

#[tokio::test]
async fn the_copy_of_a_parked_model_stays() {
    let disks = Disks::new();
    for name in ["x", "y"] {
        disks.lay(name, "ten bytes.");
    }
    let server = disks.server(Some("15"), &[("a", "x", READS), ("b", "y", READS)]);
    assert!(opened(&server, "a").await.0.starts_with(disks.at("cache")));
    assert_eq!(server.post("/models/park", &json!({"model": "a"})).await.0, 200);
    server.until("a", "state", json!("parked")).await;
    assert!(opened(&server, "b").await.0.starts_with(disks.at("volume")));
    assert_eq!(disks.copies(), ["x"]);
    assert_eq!(opened(&server, "a").await.1, "ten bytes.");
}

/// So large that copying it takes seconds.
const LARGE_BYTES: u64 = 6 << 30;

#[tokio::test]
async fn a_copy_that_nobody_waits_for_is_not_made_to_its_end_and_a_killed_host_leaves_none() {
    let disks = Disks::new();
    disks.lay("x", "");
    let file = disks.at("volume/x");
    fs::File::options().write(true).open(&file).and_then(|file| file.set_len(LARGE_BYTES)).unwrap();
    let mut server = disks.server(None, &[("a", "x", "startup_time: 1s")]);
    let asked = || {
        let request = client().post(format!("{}/v1/chat/completions", server.base())).json(&chat("a", "hi"));
        tokio::spawn(request.send())
    };
    // The one client leaves.
    let request = asked();
    server.until("a", "step", json!("copying")).await;
    assert!(server.status("a", "progress").await.is_u64());
    assert!(server.why("a").await.contains("is copying"));
    request.abort();
    server.until("a", "state", json!("cold")).await;
    assert_eq!(disks.copies(), ["part-x"]);
    // The host ends; what it had begun it goes on with.
    let request = asked();
    server.until("a", "step", json!("copying")).await;
    server.signal(Signal::TERM);
    assert!(server.wait().success());
    assert_eq!(request.await.unwrap().unwrap().status().as_u16(), 503);

    let mut server = disks.server(None, &[("a", "x", "startup_time: 1s")]);
    let request = client().post(format!("{}/v1/chat/completions", server.base())).json(&chat("a", "hi"));
    let request = tokio::spawn(request.send());
    server.until("a", "step", json!("copying")).await;
    server.signal(Signal::KILL);
    server.wait();
    drop(request.await);
    assert_eq!(disks.copies(), ["part-x"]);
    disks.lay("x", "small by now");
    let server = disks.server(None, &[("a", "x", READS)]);
    let (path, content) = opened(&server, "a").await;
    assert!(path.starts_with(disks.at("cache")) && content == "small by now");
    assert_eq!(disks.copies(), ["x"]);
}

#[tokio::test]
async fn models_that_come_up_at_once_copy_their_file_once() {
    let disks = Disks::new();
    disks.lay("x", &"weights ".repeat(1 << 20));
    let server = disks.server(None, &[("a", "x", "park: false"), ("b", "x", "park: false")]);
    let (a, b) = tokio::join!(server.chat("a", "hi"), server.chat("b", "hi"));
    assert_eq!((a.0, b.0), (200, 200));
    let log = server.log();
    assert_eq!(log.matches("copying ").count(), 1, "{log}");
    assert_eq!(disks.copies(), ["x"]);
}

/// Files may grow to 16 KiB or so, and no further: as on a disk that is nearly full.
const NEARLY_FULL: &str = "trap '' XFSZ; ulimit -f 32";

#[tokio::test]
async fn a_disk_that_fills_up_costs_a_copy_and_no_load() {
    let disks = Disks::new();
    disks.lay("x", &"weights ".repeat(1 << 16));
    let setup = setup(disks.yaml(None, &[("a", "x", "park: false")]));
    // Plugins are copied before.
    let (folder, config) = prepare(&setup);
    let (code, _, stderr) = aihost(&["check", "--config", &config.display().to_string()], &[]);
    assert_eq!(code, 0, "{stderr}");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let env = ["PLUGINS", "STATE"].map(|name| (format!("AIHOST_{name}_DIR"), at(&name.to_lowercase())));
    let server = Server::start(&Setup { env: env.into(), plugins: vec![], before: Some(NEARLY_FULL), ..setup });
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let told = server.logged("is opened where it lies").await;
    assert!(told.contains("cache: File too large"), "{told}");
    assert!(server.status("a", "note").await.to_string().contains("File too large"));
    assert_eq!(disks.copies(), [""; 0]);
}

#[tokio::test]
async fn a_reload_without_the_cache_waits_for_the_next_start() {
    let disks = Disks::new();
    disks.lay("x", "weights");
    let server = disks.server(None, &[("a", "x", READS)]);
    let file = server.folder().join("models.yaml");
    let yaml = fs::read_to_string(&file).unwrap();
    let without: String =
        yaml.lines().filter(|line| !line.starts_with("cache_dir")).map(|line| format!("{line}\n")).collect();
    fs::write(file.with_extension("new"), without).unwrap();
    fs::rename(file.with_extension("new"), &file).unwrap();
    server.logged("cache_dir").await;
    assert!(opened(&server, "a").await.0.starts_with(disks.at("cache")));
}

#[test]
fn a_folder_of_copies_that_others_may_write_is_refused_with_what_mends_it() {
    let disks = Disks::new();
    fs::create_dir(disks.at("cache")).unwrap();
    fs::set_permissions(disks.at("cache"), Permissions::from_mode(0o777)).unwrap();
    let (_folder, config) = prepare(&setup(disks.yaml(None, &[("a", "x", "park: false")])));
    let output = Command::new("timeout").arg("30").arg(binary()).args(["serve", "--config"]).arg(config).output();
    let output = output.expect("timeout, of coreutils");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let mend = format!("`cache_dir`: any user may write {}", disks.at("cache").display());
    assert!(stderr.contains(&mend) && stderr.contains("chmod go-w"), "{stderr}");
}

#[tokio::test]
async fn a_second_host_on_a_folder_of_copies_serves_without_it_until_the_first_is_gone() {
    let disks = Disks::new();
    disks.lay("x", "weights");
    let first = disks.server(None, &[("a", "x", READS)]);
    assert!(opened(&first, "a").await.0.starts_with(disks.at("cache")));
    let second = disks.server(None, &[("a", "x", READS)]);
    assert!(opened(&second, "a").await.0.starts_with(disks.at("volume")));
    second.logged("is used by another host; give each a `cache_dir:` of its own").await;
    drop(first);
    unload(&second, "a").await;
    // The kernel lets go of the lock with the process, and what that started.
    let mut found = PathBuf::new();
    for _ in 0..50 {
        found = opened(&second, "a").await.0;
        if found.starts_with(disks.at("cache")) {
            break;
        }
        unload(&second, "a").await;
    }
    assert!(found.starts_with(disks.at("cache")), "{}", found.display());
    wait_for("one copy", || (disks.copies() == ["x"]).then_some(())).await;
}
