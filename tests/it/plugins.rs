//! A plugin that is added, replaced or removed while the host serves is what the next load finds, with the libraries beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use aihost_tests::server::{Server, Setup, aihost, text};
use aihost_tests::{eventually, fixture, wait_for};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};

const YAML: &str = "models:\n  a:\n    type: text\n    plugin: aihost/echo\n";

fn serving(plugins: Vec<&'static str>) -> Server {
    Server::start(&Setup { yaml: YAML.into(), plugins, ..Setup::default() })
}

/// Where the fixture lies in a server's folder.
fn place(server: &Server) -> PathBuf {
    server.folder().join("plugins/echo.so")
}

/// The fixture `echo` as it is, with another version in its manifest.
pub(super) fn echo(version: &str) -> Vec<u8> {
    let mut bytes = fs::read(fixture("echo")).unwrap();
    let (known, stated) =
        (r#""id":"aihost/echo","version":"0.1.0""#, format!(r#""id":"aihost/echo","version":"{version}""#));
    assert_eq!(known.len(), stated.len());
    let at = find(&bytes, known.as_bytes()).expect("its manifest");
    bytes[at..at + stated.len()].copy_from_slice(stated.as_bytes());
    bytes
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// As installers do: the whole file takes the old one's place.
pub(super) fn install(file: &Path, bytes: &[u8]) {
    let fresh = file.with_extension("fresh");
    fs::write(&fresh, bytes).and_then(|()| fs::rename(&fresh, file)).unwrap();
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, bytes).unwrap();
    let output = Command::new("sha256sum").arg(file).output().expect("sha256sum");
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

/// What the worker of `a` has mapped.
async fn mapped(server: &Server) -> String {
    let worker = server.status("a", "pid").await;
    fs::read_to_string(format!("/proc/{worker}/maps")).expect("its maps")
}

async fn says(server: &Server, field: &str, words: &str) {
    eventually(async || {
        let said = server.status("a", field).await;
        let told = said.as_str().is_some_and(|said| said.contains(words));
        if told { Ok(()) } else { Err(format!("{field} is {said}, without `{words}`")) }
    })
    .await;
}

async fn unload(server: &Server) {
    assert_eq!(server.post("/models/unload", &json!({"model": "a"})).await.0, 200);
}

async fn load(server: &Server) -> (u16, String) {
    let (status, body) = server.post("/models/load", &json!({"model": "a"})).await;
    (status, body["error"]["message"].as_str().unwrap_or_default().to_owned())
}

async fn plan(server: &Server) -> String {
    let (_, body): (u16, Value) = server.get("/admin/plan?model=a").await;
    body["message"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn what_runs_goes_on_and_the_next_load_uses_the_file_that_is_there() {
    let server = serving(vec!["echo"]);
    assert_eq!(text(&server.chat("a", "hi").await.1), "hi");
    let worker = server.status("a", "pid").await;
    let newer = echo("0.2.0");
    install(&place(&server), &newer);
    let log = server.logged("plugin replaced").await;
    let line = log.lines().find(|line| line.contains("plugin replaced")).unwrap();
    let digest = sha256(&newer);
    for part in ["aihost/echo", "0.2.0", "echo.so", &digest[..8]] {
        assert!(line.contains(part), "{line}");
    }
    says(&server, "note", "a newer copy waits: 0.2.0").await;
    assert!(plan(&server).await.contains("a newer copy waits: 0.2.0"));
    assert_eq!(text(&server.chat("a", "still here").await.1), "still here");
    assert_eq!(server.status("a", "pid").await, worker, "a new file threw out what was hot");
    unload(&server).await;
    assert!(plan(&server).await.contains(&format!("0.2.0 ({}) in", &digest[..8])), "{}", plan(&server).await);
    assert_eq!(text(&server.chat("a", "newer").await.1), "newer");
    assert!(mapped(&server).await.contains(&digest), "it runs on the old file");
    assert_eq!(server.status("a", "note").await, Value::Null);

    // Removed: it serves on until it leaves.
    fs::remove_file(place(&server)).unwrap();
    server.logged("plugin removed").await;
    says(&server, "note", "there no more").await;
    assert_eq!(server.chat("a", "hi").await.0, 200);
    unload(&server).await;
    let (status, message) = load(&server).await;
    let folder = server.folder().join("plugins").display().to_string();
    assert!(status == 500 && message.contains("aihost/echo") && message.contains(&folder), "{status} {message}");
    assert_eq!(server.chat("a", "hi").await.0, 500);
    // Put back, it is found by whoever asks next: nobody waits for a look or for a pause after the failure.
    install(&place(&server), &echo("0.3.0"));
    assert_eq!(text(&server.chat("a", "back").await.1), "back");
    assert!(plan(&server).await.contains("a") && mapped(&server).await.contains(&sha256(&echo("0.3.0"))));
}

#[tokio::test]
async fn a_load_right_after_a_replacement_uses_the_new_file() {
    let server = serving(vec!["echo"]);
    for version in ["0.2.0", "0.1.1", "0.9.9"] {
        assert_eq!(server.chat("a", "hi").await.0, 200);
        install(&place(&server), &echo(version));
        unload(&server).await;
        assert_eq!(load(&server).await.0, 200);
        assert!(mapped(&server).await.contains(&sha256(&echo(version))), "{version} is not what was loaded");
    }
}

#[tokio::test]
async fn a_plugin_that_was_not_there_is_found_once_all_of_it_is() {
    let server = serving(vec![]);
    assert_eq!(server.chat("a", "hi").await.0, 500);
    let whole = echo("0.1.0");
    // As `cp` leaves it half-way.
    fs::write(place(&server), &whole[..whole.len() / 2]).unwrap();
    let (status, message) = load(&server).await;
    assert!(status == 500 && message.contains("not a whole shared library"), "{message}");
    fs::write(place(&server), &whole).unwrap();
    assert_eq!(text(&server.chat("a", "hi").await.1), "hi");
}

#[tokio::test]
async fn a_folder_that_is_removed_and_made_again_is_watched_again() {
    let server = serving(vec!["echo"]);
    let folder = server.folder().join("plugins");
    fs::rename(&folder, server.folder().join("aside")).unwrap();
    server.logged("is not there any more").await;
    assert_eq!(server.chat("a", "by the copy").await.0, 200);
    fs::create_dir(&folder).unwrap();
    install(&place(&server), &echo("0.2.0"));
    server.logged("plugin replaced").await;
    install(&place(&server), &echo("0.3.0"));
    server.logged("plugin replaced").await;
    assert_eq!(server.chat("a", "hi").await.0, 200);
    // An atomic deploy: the folder is a link that leads elsewhere from one moment to the next.
    let (one, two) = (server.folder().join("one"), server.folder().join("two"));
    fs::rename(&folder, &one).and_then(|()| std::os::unix::fs::symlink(&one, &folder)).unwrap();
    fs::create_dir(&two).unwrap();
    install(&two.join("echo.so"), &echo("0.4.0"));
    let fresh = server.folder().join("fresh");
    std::os::unix::fs::symlink(&two, &fresh).and_then(|()| fs::rename(&fresh, &folder)).unwrap();
    server.logged("0.4.0").await;
    unload(&server).await;
    assert_eq!(server.chat("a", "hi").await.0, 200);
    assert!(mapped(&server).await.contains(&sha256(&echo("0.4.0"))));
}

#[tokio::test]
async fn a_file_that_is_not_usable_is_named_and_what_it_was_serves_on() {
    let server = serving(vec!["echo"]);
    install(&place(&server), b"no library at all");
    let log = server.logged("plugin refused").await;
    assert!(log.contains("as it was before is used on") && log.contains("not a whole shared library"), "{log}");
    assert_eq!(text(&server.chat("a", "hi").await.1), "hi");
    says(&server, "note", "not a whole shared library").await;
    assert!(plan(&server).await.contains("as that was before"), "{}", plan(&server).await);
    install(&place(&server), &echo("0.2.0"));
    server.logged("plugin replaced").await;
}

#[tokio::test]
async fn a_full_disk_costs_a_sentence_and_the_copy_before_serves_on() {
    let server = serving(vec!["echo"]);
    let server_process = Pid::from_raw(server.pid());
    let unlimited = getrlimit(Resource::Fsize);
    // Every write to a file fails, as on a full disk.
    prlimit(server_process, Resource::Fsize, Rlimit { current: Some(0), ..unlimited }).unwrap();
    install(&place(&server), &echo("0.2.0"));
    let log = server.logged("plugin refused").await;
    assert!(log.contains("aside") && log.contains("as it was before is used on"), "{log}");
    assert_eq!(server.chat("a", "by the copy").await.0, 200);
    unload(&server).await;
    prlimit(server_process, Resource::Fsize, unlimited).unwrap();
    server.logged("plugin replaced").await;
    assert_eq!(server.chat("a", "hi").await.0, 200);
    assert!(mapped(&server).await.contains(&sha256(&echo("0.2.0"))));
}

#[tokio::test]
async fn a_rebuilt_plugin_begins_anew_whatever_the_one_before_did() {
    let server = serving(vec!["echo"]);
    // A build that dies as soon as it is opened.
    let (section, source, made) =
        (server.folder().join("section"), server.folder().join("crash.c"), server.folder().join("crash.so"));
    let ran = |command: &mut Command| assert!(command.status().expect("binutils and a C compiler").success());
    ran(Command::new("objcopy")
        .args(["-O", "binary", "--only-section=.aihost.plugin"])
        .args([&fixture("echo"), &section]));
    let text = format!(
        "__asm__(\".section .aihost.plugin,\\\"a\\\",@progbits\\n.incbin \\\"{}\\\"\\n.text\\n\");\n\
         void abort(void);\n__attribute__((constructor)) static void crash(void) {{ abort(); }}\n",
        section.display()
    );
    fs::write(&source, text).unwrap();
    ran(Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&made, &source]));
    install(&place(&server), &fs::read(&made).unwrap());
    server.logged("plugin replaced").await;
    eventually(async || {
        let (status, message) = load(&server).await;
        assert_eq!(status, 500, "{message}");
        let error = server.status("a", "error").await.to_string();
        if error.contains("quarantined") { Ok(()) } else { Err(format!("not quarantined: {error}")) }
    })
    .await;
    let remembered =
        || fs::read_to_string(server.folder().join("state/quarantine.json")).unwrap_or_default().contains("\"a\"");
    wait_for("a remembered quarantine", || remembered().then_some(())).await;
    install(&place(&server), &echo("0.1.0"));
    server.logged("plugin replaced").await;
    assert_eq!(server.chat("a", "mended").await.0, 200);
    wait_for("a forgotten quarantine", || (!remembered()).then_some(())).await;
}

/// `echo`, made to need `libgcc_x.so.1` instead of `libgcc_s.so.1`, and to look for it where it lies itself.
fn with_library() -> Vec<u8> {
    let mut bytes = echo("0.1.0");
    let name = find(&bytes, b"libgcc_s.so.1\0").expect("a library that it needs");
    bytes[name..name + 13].copy_from_slice(b"libgcc_x.so.1");
    // A weak symbol that nobody has: its name is free.
    let free = find(&bytes, b"_ITM_deregisterTMCloneTable\0").expect("a name");
    bytes[free..free + 8].copy_from_slice(b"$ORIGIN\0");
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let (headers, count) = (word(&bytes, 32) as usize, bytes[56] as usize);
    let dynamic = (0..count).map(|i| headers + 56 * i).find(|at| bytes[*at..*at + 4] == [2, 0, 0, 0]);
    let table = word(&bytes, dynamic.expect("a dynamic table") + 8) as usize;
    let entry = |bytes: &[u8], tag: u64| (0..).map(|i| table + 16 * i).find(|at| word(bytes, *at) == tag).unwrap();
    // The table of names is mapped where it lies.
    let names = word(&bytes, entry(&bytes, 5) + 8) as usize;
    let hint = entry(&bytes, 0x6fff_fff9);
    bytes[hint..hint + 8].copy_from_slice(&0x1d_u64.to_le_bytes());
    bytes[hint + 8..hint + 16].copy_from_slice(&((free - names) as u64).to_le_bytes());
    bytes
}

/// A library of the system's, by what this very program has mapped.
fn system_library(name: &str) -> Vec<u8> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let path = maps.lines().find_map(|line| line.split_whitespace().nth(5).filter(|path| path.ends_with(name)));
    fs::read(path.expect("it is mapped")).unwrap()
}

#[tokio::test]
async fn a_library_beside_a_plugin_loads_and_is_replaced_with_it() {
    let server = serving(vec![]);
    let library = server.folder().join("plugins/libgcc_x.so.1");
    install(&place(&server), &with_library());
    let (status, message) = load(&server).await;
    assert!(status == 500 && message.contains("libgcc_x.so.1") && message.contains("put it into"), "{message}");
    // What is behind its end is no part of a library, and tells one from another.
    let mut content = system_library("libgcc_s.so.1");
    install(&library, &content);
    assert_eq!(text(&server.chat("a", "hi").await.1), "hi");
    let shadow = server.folder().join("state/shadow").display().to_string();
    let beside = |maps: &str| {
        let line = maps.lines().find(|line| line.ends_with("libgcc_x.so.1")).expect("its library is mapped");
        line.split_whitespace().nth(5).unwrap().to_owned()
    };
    let first = beside(&mapped(&server).await);
    assert!(first.starts_with(&shadow), "{first}");

    let folders = ["PLUGINS", "STATE"]
        .map(|name| (format!("AIHOST_{name}_DIR"), server.folder().join(name.to_lowercase()).display().to_string()));
    let env = folders.each_ref().map(|(name, folder)| (name.as_str(), folder.as_str()));
    let config = server.folder().join("models.yaml").display().to_string();
    let (code, told, _) = aihost(&["plugins", "info", "aihost/echo", "--json", "--config", &config], &env);
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!((code, &told[0]["beside"]), (0, &json!([library])), "{told}");
    assert!(told[0]["libraries"].as_array().expect("what it needs").contains(&json!("libgcc_x.so.1")), "{told}");

    content.push(0);
    install(&library, &content);
    says(&server, "note", "a newer copy waits").await;
    unload(&server).await;
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let second = beside(&mapped(&server).await);
    assert!(second.starts_with(&shadow) && second != first, "{second}");

    // The copies are what they were hashed to, or are made anew.
    unload(&server).await;
    fs::remove_file(&second).and_then(|()| fs::write(&second, vec![0; content.len()])).unwrap();
    assert_eq!(server.chat("a", "hi").await.0, 200);
    server.logged("it is made anew").await;
    assert!(fs::read(&second).unwrap() == content);

    fs::remove_file(&library).unwrap();
    let log = server.logged("plugin refused").await;
    assert!(log.contains("libgcc_x.so.1"), "{log}");
    unload(&server).await;
    assert_eq!(server.chat("a", "by the copy").await.0, 200);
}

#[tokio::test]
async fn a_file_that_is_replaced_all_the_time_costs_no_request() {
    let server = serving(vec!["echo"]);
    let versions: Vec<Vec<u8>> = ["0.2.0", "0.3.0"].map(echo).into();
    for number in 0..100 {
        install(&place(&server), &versions[number % 2]);
        if number % 10 == 0 {
            assert_eq!(server.chat("a", "hi").await.0, 200);
            unload(&server).await;
        }
    }
    assert_eq!(load(&server).await.0, 200);
    assert!(mapped(&server).await.contains(&sha256(&versions[1])), "the last is not what was loaded");
}
