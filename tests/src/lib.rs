//! The harness: a host under test, the fixture plugins, the small real model.
//!
//! Tests drive the host through its binary and HTTP, as its users do.

pub mod server;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

/// The `aihost` binary of this build.
pub fn binary() -> PathBuf {
    built("aihost")
}

/// A plugin of this build by its library name: `echo`, `faulty` and `nvml` are fixtures, anything else is a plugin's own.
pub fn fixture(name: &str) -> PathBuf {
    let prefix = if matches!(name, "echo" | "faulty" | "nvml") { "libfixture_" } else { "lib" };
    built(&format!("{prefix}{name}.so"))
}

/// The small real model, SmolLM2-135M-Instruct.
pub fn model_file() -> PathBuf {
    std::env::var_os("AIHOST_SMOLLM2").map(PathBuf::from).filter(|path| path.is_file()).expect(
        "AIHOST_SMOLLM2 names no file: run the tests with `cargo xtask test`, which fetches the small model and sets it",
    )
}

/// How long a test waits for what must happen, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How often a predicate is asked.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Waits until `ready` gives something; polls, with a deadline.
///
/// # Panics
/// If it does not happen in [`PATIENCE`].
pub async fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what} did not happen within {PATIENCE:?}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    // target/PROFILE/deps/it-HASH -> target/PROFILE
    let folder = test.ancestors().nth(2).map(Path::to_path_buf).expect("a target folder");
    let path = folder.join(name);
    assert!(path.is_file(), "{} is not there: run the tests with `cargo xtask test`, which builds it", path.display());
    path
}
