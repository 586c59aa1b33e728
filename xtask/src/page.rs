//! `page`: the page of the host in a real browser, used as people use it. What is looked at, the cases in tests/browser know.

use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use crate::error::{Doing, Error, Result};
use crate::shell;
use crate::system;
use crate::workspace::{Profile, Workspace, root};

/// Where the cases lie, and what they are written with.
const FOLDER: &str = "tests/browser";
/// The browser, by the names that systems give it.
const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// Set where nobody looks: what is missing is a failure there.
const CI_VARIABLE: &str = "CI";
/// Seconds that the page is left open in `ci`.
const BRIEF_SECONDS: u32 = 40;
const HOUR_SECONDS: u32 = 3600;

/// What is looked at, and for how long.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only cases with these words in their names.
    #[arg(long, value_name = "WORDS")]
    only: Option<String>,
    /// Leave the page open for an hour to see whether it or its host grows.
    #[arg(long)]
    hour: bool,
    /// Put pictures of every view into this folder.
    #[arg(long, value_name = "FOLDER")]
    screens: Option<PathBuf>,
}

/// Runs the cases, or fails with what is missing.
pub(crate) fn run(options: &Options) -> Result {
    match obstacle() {
        Some(why) => Err(Error(why)),
        None => cases(options),
    }
}

/// Runs what takes two minutes. Says why where it cannot run.
pub(crate) fn run_briefly() -> Result<Option<String>> {
    if let Some(why) = obstacle() {
        return if std::env::var_os(CI_VARIABLE).is_some() { Err(Error(why)) } else { Ok(Some(why)) };
    }
    cases(&Options { only: None, hour: false, screens: None }).map(|()| None)
}

/// What is missing here, after an attempt to install it.
fn obstacle() -> Option<String> {
    for program in ["node", "npm"] {
        if shell::probe(program, &["--version"]).is_none() {
            return Some(format!("there is no {program}, which the cases of the page need; install nodejs and npm"));
        }
    }
    if browser().is_none() {
        system::install("chromium");
    }
    browser().is_none().then(|| "there is no chromium; install it (apt-get install chromium)".to_owned())
}

fn browser() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let all = || std::env::split_paths(&folders).collect::<Vec<_>>();
    BROWSERS.iter().flat_map(|name| all().into_iter().map(move |folder| folder.join(name))).find(|file| file.is_file())
}

fn cases(options: &Options) -> Result {
    let workspace = Workspace::read()?;
    workspace.build_all(Profile::Dev)?;
    let host = workspace.host(Profile::Dev);
    let built = host.parent().ok_or_else(|| Error::new("the host lies nowhere"))?;
    let modules = modules()?;
    let browser = browser().ok_or_else(|| Error::new("there is no chromium"))?;
    let seconds = if options.hour { HOUR_SECONDS } else { BRIEF_SECONDS }.to_string();
    let mut node = Command::new("node");
    node.current_dir(root().join(FOLDER)).arg("page.mjs").arg(built);
    node.args(["--seconds", &seconds]).env("AIHOST_BROWSER_MODULES", modules).env("AIHOST_CHROMIUM", browser);
    if let Some(only) = &options.only {
        node.args(["--only", only]);
    }
    if let Some(screens) = &options.screens {
        let screens = std::path::absolute(screens).doing("find the folder of the pictures")?;
        node.args([OsStr::new("--screens"), screens.as_os_str()]);
    }
    shell::run(&mut node)
}

/// The folder with the packages of the cases, by what its lock file names; made if it is not there.
fn modules() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let of_user = || variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let cache = of_user().ok_or_else(|| Error::new("neither XDG_CACHE_HOME nor HOME is set"))?;
    let own = |name: &str| root().join(FOLDER).join(name);
    let lock = fs::read(own("package-lock.json")).doing("read the lock file of tests/browser")?;
    let mut hasher = DefaultHasher::new();
    lock.hash(&mut hasher);
    let folder = cache.join(format!("aihost-browser/{:016x}", hasher.finish()));
    if !folder.join("node_modules/.package-lock.json").is_file() {
        install(&folder, &own)?;
    }
    Ok(folder)
}

fn install(folder: &Path, own: &dyn Fn(&str) -> PathBuf) -> Result {
    fs::create_dir_all(folder).doing(format_args!("create {}", folder.display()))?;
    for name in ["package.json", "package-lock.json"] {
        fs::copy(own(name), folder.join(name)).doing(format_args!("copy {name}"))?;
    }
    let mut npm = Command::new("npm");
    npm.current_dir(folder).args(["ci", "--no-audit", "--no-fund", "--loglevel=error", "--ignore-scripts"]);
    shell::run(&mut npm)
}
