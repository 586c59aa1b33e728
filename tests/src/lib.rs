//! The harness: a host under test, the fixture plugins, the small real model.
//!
//! Tests drive the host through its binary and HTTP, as its users do.

pub mod server;

use std::path::{Path, PathBuf};

/// The `aihost` binary of this build.
pub fn binary() -> PathBuf {
    built("aihost")
}

/// A plugin of this build by its library name: `echo` and `faulty` are fixtures, anything else is a plugin's own.
pub fn fixture(name: &str) -> PathBuf {
    let prefix = if matches!(name, "echo" | "faulty") { "libfixture_" } else { "lib" };
    built(&format!("{prefix}{name}.so"))
}

/// The small real model, SmolLM2-135M-Instruct.
pub fn model_file() -> PathBuf {
    std::env::var_os("AIHOST_SMOLLM2").map(PathBuf::from).filter(|path| path.is_file()).expect(
        "AIHOST_SMOLLM2 names no file: run the tests with `cargo xtask test`, which fetches the small model and sets it",
    )
}

fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    // target/PROFILE/deps/it-HASH -> target/PROFILE
    let folder = test.ancestors().nth(2).map(Path::to_path_buf).expect("a target folder");
    let path = folder.join(name);
    assert!(path.is_file(), "{} is not there: run the tests with `cargo xtask test`, which builds it", path.display());
    path
}
