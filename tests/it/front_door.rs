//! The first minutes: `init`, what it says next, and that every command sees the same folders.

use std::path::{Path, PathBuf};
use std::process::Command;

use aihost_tests::server::{Server, aihost, text};
use aihost_tests::{binary, fixture, model_file};
use serde_json::Value;

/// A machine on which the host was installed, with a home that nobody used yet.
struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    /// With these plugins, as (file of this build, name).
    fn new(plugins: &[(&str, &str)]) -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap() };
        for folder in ["prefix/bin", "prefix/lib/aihost/plugins", "home", "drivers"] {
            std::fs::create_dir_all(machine.path(folder)).unwrap();
        }
        std::fs::copy(binary(), machine.path("prefix/bin/aihost")).unwrap();
        for (library, name) in plugins {
            std::fs::copy(fixture(library), machine.path("prefix/lib/aihost/plugins").join(name)).unwrap();
        }
        machine
    }

    /// The same, with one card on paper: so many bytes in all and free.
    fn with_card(self, bytes: u64) -> Self {
        std::os::unix::fs::symlink(fixture("nvml"), self.path("drivers/libnvidia-ml.so.1")).unwrap();
        std::fs::write(self.path("cards"), format!("{bytes} {bytes}\n")).unwrap();
        self
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    /// A line as it is typed, in the home.
    fn typed(&self, line: &str) -> Command {
        let mut command = Command::new("sh");
        let bin = self.path("prefix/bin");
        command
            .args(["-c", line])
            .current_dir(self.path("home"))
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
            .env("HOME", self.path("home"))
            .env("LD_LIBRARY_PATH", self.path("drivers"))
            .env("NVIDIA_FIXTURE_CARDS", self.path("cards"))
            // Not /workspace, which the machine of the tests may have.
            .env("AIHOST_MODELS_DIR", self.path("home/models"))
            .env("AIHOST_STATE_DIR", self.path("home/state"));
        command
    }

    /// What it wrote to stdout and stderr.
    fn output(&self, line: &str) -> (bool, String, String) {
        let output = self.typed(line).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    }
}

/// The steps that `init` numbers, in order.
fn steps(stderr: &str) -> Vec<String> {
    let step = |line: &str| Some(line.trim_start_matches("next:").trim_start().split_once(". ")?.1.to_owned());
    stderr.lines().filter_map(step).collect()
}

#[tokio::test]
async fn what_init_says_next_works_as_typed() {
    let machine = Machine::new(&[("candle_llm", "candle-llm.so"), ("flux", "flux.so")]).with_card(80 << 30);
    let (done, stdout, stderr) = machine.output("aihost init");
    assert!(done, "{stderr}");
    assert_eq!(Path::new(stdout.trim_end()), machine.path("home/models.yaml"));
    let written = std::fs::read_to_string(machine.path("home/models.yaml")).unwrap();
    // The card, and who could use it; nothing of a plugin that is not here.
    for part in ["cuda:0: 76.0 GiB for models", "devices: auto", "plugin: candle-llm", "plugin: flux"] {
        assert!(written.contains(part), "no `{part}` in:\n{written}");
    }
    assert!(!written.contains("musicgen"), "{written}");

    let steps = steps(&stderr);
    let [pull, up] = steps.as_slice() else { panic!("{stderr}") };
    assert_eq!((pull.as_str(), up.as_str()), ("aihost models pull smollm2", "aihost up"));
    // The model that is fetched is the one the tests have.
    let config: Value = serde_json::from_str(&machine.output("aihost models list --json").1).unwrap();
    assert_eq!(config[0]["files"], "missing");
    let model = model_file();
    let folder = machine.path("home/models/sha256-b179c9523d0e6a0f");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(&model, folder.join("SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
    let (done, _, stderr) = machine.output(pull);
    assert!(done && stderr.contains("already there"), "{stderr}");
    let (done, stdout, stderr) = machine.output("aihost check");
    assert!(done, "{stdout}{stderr}");
    let mut command = machine.typed("exec aihost serve --listen 127.0.0.1:0");
    let server = Server::of(&mut command, machine.folder);
    let (status, body) = server.chat("smollm2", "Hi").await;
    assert_eq!(status, 200, "{body}");
    assert!(!text(&body).is_empty());
}

#[test]
fn where_no_plugin_is_found_init_says_where_they_go() {
    let machine = Machine::new(&[]);
    let (done, _, stderr) = machine.output("aihost init");
    assert!(done, "{stderr}");
    let first = &steps(&stderr)[0];
    let folder = machine.output("aihost plugins path").1;
    assert!(first.contains(folder.trim_end()) && first.contains("candle-llm.so"), "{stderr}");
    assert!(!stderr.contains("cargo"), "{stderr}");
    // And there they count.
    std::fs::create_dir_all(folder.trim_end()).unwrap();
    std::fs::copy(fixture("echo"), Path::new(folder.trim_end()).join("echo.so")).unwrap();
    let list = machine.output("aihost plugins list").1;
    assert!(list.contains("aihost/echo") && list.contains("ok"), "{list}");
}

#[test]
fn a_file_elsewhere_is_named_in_the_next_steps_and_one_that_is_there_is_left() {
    let machine = Machine::new(&[("candle_llm", "candle-llm.so")]);
    let (done, _, stderr) = machine.output("aihost init mine.yaml");
    assert!(done && steps(&stderr).iter().all(|step| step.starts_with("aihost --config mine.yaml ")), "{stderr}");
    std::fs::write(machine.path("home/mine.yaml"), "kept").unwrap();
    let (done, _, stderr) = machine.output("aihost init mine.yaml");
    assert!(!done && stderr.contains("is there already") && stderr.contains("hint:"), "{stderr}");
    assert_eq!(std::fs::read_to_string(machine.path("home/mine.yaml")).unwrap(), "kept");
    for (file, words) in [("none/models.yaml", "no such folder"), ("/proc/models.yaml", "cannot be written")] {
        let (done, _, stderr) = machine.output(&format!("aihost init {file}"));
        assert!(!done && stderr.contains(words) && stderr.contains("aihost init FILE"), "{file}: {stderr}");
    }
    let (done, stdout, _) = machine.output("aihost init -");
    assert!(done && stdout.contains("models:") && !machine.path("home/-").exists(), "{stdout}");
}

#[test]
fn a_server_offers_no_model_that_is_not_here() {
    let machine = Machine::new(&[("candle_llm", "candle-llm.so")]);
    assert!(machine.output("aihost init").0);
    let mut command = machine.typed("exec aihost serve --listen 127.0.0.1:0");
    let mut server = Server::of(&mut command, machine.folder);
    server.signal(rustix::process::Signal::TERM);
    assert!(server.wait().success());
    let log = server.log();
    assert!(!log.contains("try:") && log.contains("aihost models pull smollm2"), "{log}");
}

#[test]
fn commands_typed_in_the_repository_see_what_up_staged() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let config = root.join("models.yaml");
    let (code, stdout, stderr) = aihost(&["plugins", "path", "--config", &config.display().to_string()], &[]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(Path::new(stdout.trim_end()), root.join("target/aihost/plugins"));
}
