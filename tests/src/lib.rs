//! The harness: a host under test, the fixture plugins, the small real model.
//!
//! Tests drive the host through its binary and HTTP, as its users do.

pub mod server;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::Instant;

/// The `aihost` binary of this build.
pub fn binary() -> PathBuf {
    built("aihost")
}

/// A plugin of this build by its library name: `echo`, `faulty`, `mirror`, `origin`, `spy`, `vectors` and `nvml` are fixtures, anything else is a plugin's own.
pub fn fixture(name: &str) -> PathBuf {
    let prefix = if matches!(name, "echo" | "faulty" | "mirror" | "nvml" | "origin" | "spy" | "vectors") {
        "libfixture_"
    } else {
        "lib"
    };
    built(&format!("{prefix}{name}.so"))
}

/// What becomes a program that may not use a certain system call.
pub fn deny() -> PathBuf {
    built("fixture_deny")
}

/// An engine process that speaks HTTP, and fails as its arguments say.
pub fn stand_in() -> PathBuf {
    built("fixture_stand_in")
}

/// The small real model, SmolLM2-135M-Instruct: the file that `AIHOST_SMOLLM2` names, else the one that `cargo xtask up` fetched.
///
/// # Panics
/// If it is not there.
pub fn model_file() -> PathBuf {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(FETCHED_MODEL);
    let path = std::env::var_os("AIHOST_SMOLLM2").map_or(fetched, PathBuf::from);
    assert!(path.is_file(), "{} is not there: `cargo xtask up` or `cargo xtask test` fetches it", path.display());
    path
}

/// Where models.yaml puts the file of the entry `smollm2`.
const FETCHED_MODEL: &str = "target/aihost/models/sha256-b179c9523d0e6a0f/SmolLM2-135M-Instruct.Q4_1.gguf";

/// How long a test waits for what must happen, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How often a predicate is asked.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Waits until `ready` gives something; polls, with a deadline.
///
/// # Panics
/// If it does not happen in [`PATIENCE`].
pub async fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    eventually(async || ready().ok_or_else(|| format!("{what} did not happen"))).await
}

/// Waits until `ready` is, as [`wait_for`]; until then it says how things are.
///
/// # Panics
/// With what it said last, if it is not ready in [`PATIENCE`].
pub async fn eventually<T>(mut ready: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ready().await {
            Ok(value) => return value,
            Err(how) => assert!(Instant::now() < deadline, "{how} (waited for {PATIENCE:?})"),
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// A gate of the fixture `echo` (`load_gate:`, `answer_gate:`, `park_gate:`) or `faulty` (`gate:`): who comes to it waits
/// until the test opens it.
#[derive(Debug)]
pub struct Gate {
    folder: tempfile::TempDir,
}

impl Gate {
    /// A closed one.
    pub fn closed() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    /// What the fixture is told.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("open")
    }

    /// Lets through who waits, and who comes.
    pub fn open(&self) {
        std::fs::write(self.path(), b"").expect("a gate opened");
    }

    /// Holds who comes from now on.
    pub fn close(&self) {
        std::fs::remove_file(self.path()).expect("a gate closed");
    }
}

/// A file that this build of the workspace made. Plain `cargo test` makes neither the host's program nor plugin files, so
/// the first call makes them, in the way of `cargo xtask test`: with the same features, so that nothing is compiled twice.
fn built(name: &str) -> PathBuf {
    static TARGET: OnceLock<PathBuf> = OnceLock::new();
    let folder = TARGET.get_or_init(|| {
        let test = std::env::current_exe().expect("the test's own path");
        // target/PROFILE/deps/it-HASH -> target/PROFILE
        let folder = test.ancestors().nth(2).map(Path::to_path_buf).expect("a target folder");
        if std::env::var_os("AIHOST_TESTS_BUILT").is_none() {
            build_workspace(&folder);
        }
        folder
    });
    let path = folder.join(name);
    assert!(path.is_file(), "{} is not there: `cargo build --workspace --all-targets` makes it", path.display());
    path
}

fn build_workspace(folder: &Path) {
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What this test's own package is called is nothing that build scripts should see, or they would run again.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") || name.to_string_lossy().starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    let status = cargo
        .args(["build", "--quiet", "--workspace", "--all-targets", "--profile", profile, "--target-dir"])
        .arg(folder.parent().expect("a target folder"))
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .status()
        .expect("cargo starts");
    assert!(status.success(), "the host and the plugins that tests drive could not be built ({status})");
}
