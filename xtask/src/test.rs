//! `test`: every test of the workspace, against the real small model.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use clap::Args;

use crate::error::{Error, Result};
use crate::workspace::{Profile, Workspace};
use crate::{shell, stage};

/// Names the model file that tests of the real model read.
const MODEL_VARIABLE: &str = "AIHOST_SMOLLM2";
/// Names the folder of the encoder that tests of a real one read.
const ENCODER_VARIABLE: &str = "AIHOST_MINILM";
/// Tells tests that what they drive is built, so that they need not see to it.
pub(crate) const BUILT_VARIABLE: &str = "AIHOST_TESTS_BUILT";

/// Which tests.
#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    /// Only tests whose name contains one of these.
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
}

/// Builds, fetches the model, runs `cargo test`.
pub(crate) fn run(options: &Options) -> Result {
    let start = Instant::now();
    let workspace = Workspace::read()?;
    workspace.build_all(Profile::Dev)?;
    let mut command = shell::cargo();
    command.args(["test", "--workspace"]);
    if !options.filters.is_empty() {
        command.arg("--").args(&options.filters);
    }
    command.env(MODEL_VARIABLE, small_model(&workspace, Profile::Dev)?).env(BUILT_VARIABLE, "1");
    if std::env::var_os(ENCODER_VARIABLE).is_none_or(|path| path.is_empty()) {
        shell::run(workspace.aihost(Profile::Dev).args(["models", "pull", "minilm"]))?;
    }
    let result = shell::run(&mut command);
    eprintln!("build and tests took {:.0} s", start.elapsed().as_secs_f64());
    result
}

/// Runs one integration test that plain runs leave out, below a program that prepares for it if there is need.
pub(crate) fn run_ignored(name: &str, below: &[&str]) -> Result {
    Workspace::read()?.build_all(Profile::Dev)?;
    let test = ["test", "--workspace", "--test", "it", "--", "--ignored", "--exact", "--nocapture", name];
    let mut command = match below {
        [] => shell::cargo(),
        [program, arguments @ ..] => shell::below(program, arguments, &shell::cargo()),
    };
    shell::run(command.args(test).env(BUILT_VARIABLE, "1"))
}

/// The small real model: the one that the environment names, else fetched through the host's own command.
pub(crate) fn small_model(workspace: &Workspace, profile: Profile) -> Result<PathBuf> {
    small_model_by(workspace, &mut workspace.aihost(profile))
}

/// The same, fetched by this `aihost`.
pub(crate) fn small_model_by(workspace: &Workspace, aihost: &mut Command) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(MODEL_VARIABLE).filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    shell::run(aihost.args(["models", "pull", "smollm2"]))?;
    let folder = workspace.staging().join("models");
    stage::find(&folder, ".gguf")
        .ok_or_else(|| Error(format!("`aihost models pull smollm2` left no .gguf file under {}", folder.display())))
}
