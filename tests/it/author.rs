//! An author's first minutes: the commands of docs/PLUGIN_GUIDE.md, as they stand there, in folders that have nothing of this
//! repository but the program.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, channel};

use aihost_tests::{PATIENCE, binary, fixture, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::plugins::{echo, install, sha256};

const GUIDE: &str = include_str!("../../docs/PLUGIN_GUIDE.md");
/// What begins the last command of a section, which serves.
const RUN: &str = "aihost plugins run ";

/// Where cargo builds: kept, so that what the SDK needs is compiled once.
static TARGET: LazyLock<PathBuf> = LazyLock::new(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/author"));

/// A section of the guide: its blocks, by the language that they are marked with.
fn blocks<'a>(heading: &str, language: &str) -> Vec<&'a str> {
    let (_, section) = GUIDE.split_once(&format!("\n## {heading}\n")).expect(heading);
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let begin = format!("```{language}\n");
    let parts = section.split(begin.as_str()).skip(1);
    parts.map(|part| part.split_once("```").expect("a block ends").0).collect()
}

/// A command of the guide, in the way of a test: unoptimised, in a target folder that is kept.
fn shell(line: &str, folder: &Path) -> Command {
    let line = line.replace(" --release", "").replace("target/release/", &format!("{}/debug/", TARGET.display()));
    let programs = binary().parent().expect("a folder").display().to_string();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = Command::new("sh");
    shell.args(["-ec", &line]).current_dir(folder).env("PATH", format!("{programs}:{path}"));
    // What cargo tells tests of the crate that they are in is nothing to another crate.
    for (name, _) in
        std::env::vars().filter(|(name, _)| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
    {
        shell.env_remove(name);
    }
    shell.env("CARGO_TARGET_DIR", &*TARGET).env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_INCREMENTAL", "0");
    shell.env("TMPDIR", folder).stdin(Stdio::null());
    shell
}

/// What a command wrote, which is to succeed.
fn done(line: &str, folder: &Path) -> String {
    let output = shell(line, folder).output().expect("sh starts");
    let wrote = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {wrote}");
    wrote
}

/// What a command wrote that is to fail.
fn refused(line: &str, folder: &Path) -> String {
    let output = shell(line, folder).output().expect("sh starts");
    let wrote = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.stdout.is_empty(), "{line}: {wrote}");
    wrote
}

/// `aihost plugins run`, and what it printed.
struct Run {
    child: Child,
    stdout: Receiver<String>,
}

impl Run {
    fn start(line: &str, folder: &Path) -> Self {
        let mut command = shell(&format!("exec {line}"), folder);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("sh starts");
        let (lines, stdout) = channel();
        let pipe = child.stdout.take().expect("a pipe");
        std::thread::spawn(move || {
            BufReader::new(pipe).lines().map_while(Result::ok).try_for_each(|line| lines.send(line)).ok()
        });
        Self { child, stdout }
    }

    /// The line that asks it.
    fn curl(&mut self) -> String {
        self.stdout
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("it printed nothing: {}", self.end(Signal::KILL).1))
    }

    /// Ends it, and gives how, and what it wrote to stderr.
    fn end(&mut self, signal: Signal) -> (ExitStatus, String) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it lives");
        let status = self.child.wait().expect("waiting works");
        let mut wrote = String::new();
        self.child.stderr.take().expect("a pipe").read_to_string(&mut wrote).expect("a text");
        (status, wrote)
    }
}

/// The names in a folder.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect()
}

/// Follows a section; gives the crate's folder, and what the line that was printed answered with.
fn follow(heading: &str, here: &Path) -> (PathBuf, Vec<u8>) {
    let block = blocks(heading, "sh")[0];
    let (mut folder, mut run) = (here.to_owned(), None);
    for line in block.lines() {
        if let Some(name) = line.strip_prefix("cd ") {
            folder.push(name);
            // What this repository has fetched will do.
            std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock"), folder.join("Cargo.lock"))
                .expect("a lock");
        } else if line.starts_with(RUN) {
            run = Some(Run::start(line, &folder));
        } else {
            done(line, &folder);
        }
    }
    let source = std::fs::read_to_string(folder.join("src/lib.rs")).expect("the author's source");
    for shown in blocks(heading, "rust") {
        assert!(source.contains(shown.trim_end()), "{heading} shows what is not in src/lib.rs: {shown}");
    }
    let mut run = run.expect("the last command serves");
    let line = run.curl();
    let before = names(&folder);
    let answer = shell(&line, here).output().expect("sh starts");
    assert!(answer.status.success(), "{line}: {}", String::from_utf8_lossy(&answer.stderr));
    let (status, wrote) = run.end(Signal::INT);
    assert!(status.success() && !wrote.contains("ERROR"), "{status}: {wrote}");
    let left: Vec<String> = names(&folder).into_iter().filter(|name| name.starts_with("aihost-run")).collect();
    assert!(before.iter().any(|name| name.starts_with("aihost-run")) && left.is_empty(), "{before:?}, then {left:?}");
    (folder, answer.stdout)
}

/// A plugin of an SDK of another version, and the same layout.
fn with_sdk(folder: &Path, version: &str) {
    let manifest = folder.join("vendor/aihost-plugin-api/Cargo.toml");
    let text = std::fs::read_to_string(&manifest).expect("the SDK's manifest");
    let other: String = text.lines().fold(String::new(), |mut out, line| {
        let line = if line.starts_with("version = ") { format!("version = \"{version}\"") } else { line.to_owned() };
        let _ = writeln!(out, "{line}");
        out
    });
    std::fs::write(manifest, other).expect("a changed manifest");
    done("cargo build --release", folder);
}

/// All in one test: what the SDK needs is compiled once.
#[test]
fn the_guide_leads_from_nothing_to_an_answer_for_every_kind_without_this_repository() {
    let here = tempfile::tempdir().expect("a temporary folder");
    let (parrot, answer) = follow("Text, from nothing to served", here.path());
    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
    assert_eq!(answer["choices"][0]["message"]["content"], "Hello there", "{answer}");

    let greeting = blocks("Text, from nothing to served", "sh")[1].trim_end();
    let mut run = Run::start(greeting, &parrot);
    let line = run.curl();
    let answer = done(&line, &parrot);
    assert!(answer.contains("You said: Hello there"), "{answer}");
    run.end(Signal::TERM);

    for version in ["0.2.0", "0.0.9"] {
        with_sdk(&parrot, version);
        let mut run = Run::start(&format!("{RUN}target/release/libparrot.so"), &parrot);
        let line = run.curl();
        assert!(done(&line, &parrot).contains("Hello there"), "of SDK {version}");
        run.end(Signal::HUP);
    }

    follow("Images", here.path());
    let image = std::fs::read(here.path().join("out.png")).expect("an image");
    assert!(image.starts_with(b"\x89PNG"), "{image:?}");
    follow("Music and other audio", here.path());
    let sound = std::fs::read(here.path().join("out.wav")).expect("a sound");
    assert!(sound.starts_with(b"RIFF") && sound.len() > 2 * 32_000, "{} bytes", sound.len());
    let (_, answer) = follow("Vectors of texts", here.path());
    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
    assert_eq!(answer["data"][0]["embedding"][4], 3.0, "{answer}");
    let (_, answer) = follow("A kind of its own", here.path());
    assert_eq!(String::from_utf8_lossy(&answer), r#"{"letters":5}"#);
    let (_, answer) = follow("An engine that speaks HTTP itself", here.path());
    assert_eq!(String::from_utf8_lossy(&answer), "Hello");
}

#[test]
fn a_plugin_that_cannot_be_begun_leaves_nothing_and_says_why_in_a_sentence() {
    let here = tempfile::tempdir().expect("a temporary folder");
    std::fs::create_dir(here.path().join("there")).expect("a folder");
    for (arguments, wanted) in [
        ("'' --kind text", "names no plugin"),
        ("3d --kind text", "begin with a letter"),
        ("fn --kind text", "`fn-plugin` would do"),
        ("Acme/parrot --kind text", "vendor"),
        ("there --kind text", "is there already"),
        ("parrot --kind text --path nowhere/parrot", "no folder to make it in"),
        ("parrot --kind text --sdk there", "is not the SDK"),
        ("parrot --kind video", "invalid value 'video'"),
        ("parrot", "--kind"),
    ] {
        let wrote = refused(&format!("aihost plugins new {arguments}"), here.path());
        assert!(wrote.contains(wanted), "{arguments}: {wrote}");
    }
    assert_eq!(names(here.path()), BTreeSet::from(["there".to_owned()]));
}

#[tokio::test]
async fn a_plugin_that_cannot_be_run_leaves_nothing_and_says_why_in_a_sentence() {
    let here = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(here.path().join("notes.so"), "no library").expect("a file");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let (echo, llm) = (fixture("echo").display().to_string(), fixture("candle_llm").display().to_string());
    for (arguments, wanted) in [
        ("nothing.so".to_owned(), "there is no nothing.so"),
        ("notes.so".to_owned(), "is not a whole shared library"),
        (binary().display().to_string(), "is a library but no aihost plugin"),
        (
            format!("{echo} --options '{{\"tokns\": 1}}'"),
            "--options tokns: is not an option of the plugin\nhint: did you mean `tokens`?",
        ),
        (format!("{echo} --options '{{\"tokens\": \"x\"}}'"), "--options tokens: `x` is not a whole number"),
        (format!("{echo} --options '['"), "--options is not JSON"),
        (format!("{echo} --options 3"), "--options is JSON, but no object"),
        (format!("{echo} --file weights.gguf"), "`--file model=weights.gguf`"),
        (format!("{echo} --file model=weights.gguf"), "--file model: there is no "),
        (format!("{echo} --device gpu"), "--device gpu: devices are called"),
        (format!("{echo} --device cuda:7"), "this machine has no cuda:7; it has cpu"),
        (format!("{echo} --port {port}"), "is taken by another program"),
        (llm, "it cannot be loaded: "),
    ] {
        let wrote = refused(&format!("aihost plugins run {arguments}"), here.path());
        assert!(wrote.contains(wanted), "{arguments}: {wrote}");
        assert!(!wrote.contains("panicked"), "{arguments}: {wrote}");
    }
    wait_for("the last folder is gone", || {
        (names(here.path()) == BTreeSet::from(["notes.so".to_owned()])).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_plugin_that_is_built_again_while_it_is_run_answers_the_next_request() {
    let here = tempfile::tempdir().expect("a temporary folder");
    let file = here.path().join("echo.so");
    let builds = ["0.1.0", "0.2.0"].map(echo);
    install(&file, &builds[0]);
    let mut run = Run::start("aihost plugins run echo.so", here.path());
    let line = run.curl();
    assert!(done(&line, here.path()).contains("Hello there"));
    let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next()).expect("an address");
    let worker = || {
        let models: Value =
            serde_json::from_str(&done(&format!("curl -s http://{address}/admin/status"), here.path())).ok()?;
        models[0]["pid"].as_u64()
    };
    let maps = |pid| std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let first = worker().expect("it is loaded");
    assert!(maps(first).contains(&sha256(&builds[0])));
    // What is no plugin leaves the build before in force, and what is one takes its place with no word of ours.
    install(&file, b"half of a library");
    assert!(done(&line, here.path()).contains("Hello there"));
    install(&file, &builds[1]);
    wait_for("the worker of the build before is gone", || (worker() != Some(first)).then_some(())).await;
    assert!(done(&line, here.path()).contains("Hello there"));
    let second = worker().expect("it is loaded again");
    assert!(maps(second).contains(&sha256(&builds[1])), "the new build is not what answers");
    let (status, wrote) = run.end(Signal::INT);
    assert!(status.success() && wrote.contains("was built anew"), "{status}: {wrote}");
}

/// Every line of program text below a folder, as one: what a sentence is made of stands in one piece.
fn sources(folder: &Path, out: &mut String) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source");
            let mut pieces = text.split("\\\n");
            out.push_str(pieces.next().unwrap_or_default());
            pieces.for_each(|piece| out.push_str(piece.trim_start()));
        }
    }
}

#[test]
fn what_the_page_of_mistakes_quotes_is_what_is_said() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut said = String::new();
    ["host/src", "plugin-api/src", "plugin-api/abi/src"].iter().for_each(|room| sources(&root.join(room), &mut said));
    let said = said.replace("\\\"", "\"");
    let page = std::fs::read_to_string(root.join("docs/PLUGIN_MISTAKES.md")).expect("the page");
    let cells = page.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let mut quoted = 0;
    for cell in cells {
        let sentence = cell.trim_matches('`').trim();
        for piece in sentence.split('…').map(|piece| piece.trim_matches([' ', ':', ';', ',', '"', '(', '.'])) {
            assert!(said.contains(piece), "nothing says `{piece}` of `{sentence}`");
        }
        quoted += 1;
    }
    assert!(quoted > 30, "{quoted}");
}

/// Files that `cargo xtask golden` made when the layout last changed, stripped as authors ship them. A host that no longer loads
/// them breaks every plugin that is out there.
#[test]
fn plugins_that_were_shipped_are_whole_load_and_answer() {
    let here = tempfile::tempdir().expect("a temporary folder");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/plugins");
    done("sha256sum --check --strict SHA256SUMS", &golden);
    for (file, wanted) in [("text.so", "Hello there"), ("image.so", "")] {
        let path = golden.join(file);
        assert!(std::fs::metadata(&path).expect("it is there").len() < 1_000_000, "{file} is too large");
        let mut run = Run::start(&format!("{RUN}{}", path.display()), here.path());
        let line = run.curl();
        let answer = done(&line, here.path());
        assert!(answer.contains(wanted), "{file}: {answer}");
        run.end(Signal::INT);
    }
    let image = std::fs::read(here.path().join("out.png")).expect("an image");
    assert!(image.starts_with(b"\x89PNG"), "{image:?}");
}
