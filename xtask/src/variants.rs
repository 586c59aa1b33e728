//! `variants`: an author's plugin built in every way that they may choose, each loaded and asked by the built host.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::error::{Doing, Error, Result};
use crate::workspace::{Profile, Workspace};
use crate::{shell, table};

/// What is built: a crate as `aihost plugins new` begins it, with what it takes to be used and nothing that tests it.
const CRATE: &str = "variant";
/// What it is to answer the line that `aihost plugins run` prints.
const ANSWER: &str = "Hello there";

/// A way to build a plugin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    /// Cargo's profile.
    pub(crate) profile: &'static str,
    /// Settings of that profile, as cargo's environment names them.
    pub(crate) settings: &'static [(&'static str, &'static str)],
}

const VARIANTS: [Variant; 5] = [
    Variant { name: "debug", profile: "dev", settings: &[("CARGO_PROFILE_DEV_OPT_LEVEL", "0")] },
    Variant { name: "release", profile: "release", settings: &[] },
    Variant { name: "lto", profile: "release", settings: &[("CARGO_PROFILE_RELEASE_LTO", "fat")] },
    Variant { name: "small", profile: "release", settings: &[("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")] },
    Variant { name: "abort", profile: "release", settings: &[("CARGO_PROFILE_RELEASE_PANIC", "abort")] },
];

/// Builds each, serves it, and asks it.
pub(crate) fn run() -> Result {
    let workspace = Workspace::read()?;
    workspace.build_host(Profile::Dev, &[])?;
    let (host, target) = (workspace.host(Profile::Dev), workspace.staging().join("variants"));
    let author = target.join("author");
    // What an earlier run left is of an earlier SDK.
    if author.exists() {
        fs::remove_dir_all(&author).doing(format_args!("clear {}", author.display()))?;
    }
    fs::create_dir_all(&author).doing(format_args!("make {}", author.display()))?;
    shell::run(Command::new(&host).args(["plugins", "new", CRATE, "--kind", "text"]).current_dir(&author))?;
    let mut rows = vec![table::row(["variant", "size", "result"])];
    for variant in VARIANTS {
        let built = build_crate(variant, &author.join(CRATE), &target)?;
        let file = target.join(format!("{}.so", variant.name));
        let size = fs::copy(&built, &file).doing(format_args!("copy {}", built.display()))?;
        ask(&host, &file)?;
        rows.push(vec![
            variant.name.to_owned(),
            format!("{:.1} MB", size as f64 / 1e6),
            "loads and answers".to_owned(),
        ]);
    }
    print!("{}", table::render(&rows));
    Ok(())
}

/// Builds an author's crate in a target folder of its own; the file.
fn build_crate(variant: Variant, folder: &Path, target: &Path) -> Result<PathBuf> {
    let mut command = shell::cargo();
    command.args(["build", "--profile", variant.profile]).arg("--manifest-path").arg(folder.join("Cargo.toml"));
    shell::run(command.arg("--target-dir").arg(target).envs(variant.settings.iter().copied()))?;
    let profile = if variant.profile == "dev" { "debug" } else { variant.profile };
    Ok(target.join(profile).join(format!("lib{CRATE}.so")))
}

/// Builds an example of the SDK in a target folder of its own; the file.
pub(crate) fn build(variant: Variant, example: &str, target: &Path, flags: &[String]) -> Result<PathBuf> {
    let mut command = shell::cargo();
    command.args(["build", "--package", "aihost-plugin-api", "--example", example, "--profile", variant.profile]);
    command.arg("--target-dir").arg(target).envs(variant.settings.iter().copied());
    if !flags.is_empty() {
        command.env("RUSTFLAGS", flags.join(" "));
    }
    shell::run(&mut command)?;
    let folder = if variant.profile == "dev" { "debug" } else { variant.profile };
    Ok(target.join(folder).join("examples").join(format!("lib{example}.so")))
}

/// A host that is killed when nobody needs it any more.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _told = shell::terminate(self.0.id()).is_ok();
        let _ended = self.0.wait().is_ok();
    }
}

/// Serves one plugin file, and asks it by the line that is printed.
pub(crate) fn ask(host: &Path, file: &Path) -> Result {
    let mut command = Command::new(host);
    command.args(["plugins", "run"]).arg(file).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut served = Served(command.spawn().doing("start aihost")?);
    let stdout = served.0.stdout.take().ok_or_else(|| Error::new("aihost has no stdout"))?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).doing("read what `aihost plugins run` prints")?;
    if line.is_empty() {
        return Err(Error(format!("{} was not served (see above)", file.display())));
    }
    let answer = shell::output(Command::new("sh").args(["-ec", &line]))?;
    if answer.contains(ANSWER) {
        return Ok(());
    }
    Err(Error(format!("{} answered `{}`, without `{ANSWER}`", file.display(), answer.trim_end())))
}
