//! What the tests share: where the built binary and the fixture plugins lie, and waiting for a predicate.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

/// How long a test waits for what must happen, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How often a predicate is asked.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The `aihost` binary of this build.
///
/// # Panics
/// If it was not built.
pub fn binary() -> PathBuf {
    built(&output_dir().join("aihost"))
}

/// The `.so` of a fixture plugin, such as `echo`.
///
/// # Panics
/// If it was not built.
pub fn fixture(name: &str) -> PathBuf {
    built(&output_dir().join(format!("libfixture_{name}.so")))
}

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

/// Where cargo put this profile's output: the test binary lies in its `deps`.
fn output_dir() -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its own path");
    let deps = own.parent().expect("a test binary lies in a folder");
    if deps.ends_with("deps") { deps.parent().unwrap_or(deps).to_owned() } else { deps.to_owned() }
}

fn built(file: &Path) -> PathBuf {
    assert!(
        file.is_file(),
        "{} is not built; run the tests with `cargo xtask test`, which builds it first",
        file.display()
    );
    file.to_owned()
}
