//! Building against an old glibc: by cargo-zigbuild and the linker of ziglang, both from the package index of Python.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{GLIBC, TARGET};
use crate::error::{Error, Result};
use crate::shell;
use crate::workspace::{PluginPackage, Profile, Workspace};

const PACKAGES: [&str; 2] = ["cargo-zigbuild==0.24.1", "ziglang==0.15.2"];

/// Builds the host and these plugins; the folder in which they lie then.
pub(super) fn build(workspace: &Workspace, plugins: &[PluginPackage], out: &Path) -> Result<PathBuf> {
    let tools = tools(out)?;
    let plain = workspace.build_command(Profile::Dist, plugins);
    let mut command = shell::cargo();
    let arguments: Vec<_> = plain.get_args().skip(1).map(ToOwned::to_owned).collect();
    command.arg("zigbuild").args(arguments).args(["--target", &format!("{TARGET}.{GLIBC}")]);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(tools.clone()).chain(std::env::split_paths(&path));
    let path = std::env::join_paths(folders).map_err(|error| Error(format!("PATH: {error}")))?;
    command.env("PATH", path);
    // The system's pieces must neither be found nor linked.
    command.env("CARGO_ZIGBUILD_PYTHON_PATH", tools.join("python"));
    shell::run(&mut command)?;
    Ok(workspace.built_for(TARGET, Profile::Dist))
}

/// The tools' own environment, made once.
fn tools(out: &Path) -> Result<PathBuf> {
    let folder = out.join("tools");
    let bin = folder.join("bin");
    if !bin.join("cargo-zigbuild").is_file() {
        shell::run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        shell::run(Command::new(bin.join("python")).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES))?;
    }
    Ok(bin)
}
