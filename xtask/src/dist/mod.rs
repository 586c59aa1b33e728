//! `dist`: the release. One archive with the host, the plugins and all that an operator needs to install them without Rust, and a
//! Python wheel of the same bytes.
//!
//! Everything is linked against an old glibc, so that it runs on the systems people rent; nothing is linked statically: the host is
//! also its own worker, and opens plugins.

mod glibc;
mod licences;
mod rehearsal;
mod wheel;
mod zig;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use crate::error::{Doing, Error, Result};
use crate::install::PLUGINS;
use crate::workspace::{PluginPackage, Workspace, root};
use crate::{build_plugins, shell, stage, table};

/// The oldest glibc that everything runs with.
const GLIBC: &str = "2.28";
/// What it is built for.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const INSTALL: &str = include_str!("install.sh");
/// What shells there are completions for, and what the files are called where those look.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "share/bash-completion/completions/aihost"),
    ("zsh", "share/zsh/site-functions/_aihost"),
    ("fish", "share/fish/vendor_completions.d/aihost.fish"),
];

/// What to make and where to put it.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where the archive and the wheel go [default: target/aihost/dist].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Then follow docs/DEPLOYMENT.md with the archive, from unpacking to an answer to the end.
    #[arg(long)]
    rehearse: bool,
    /// Which plugins; all of plugins/ if none is named.
    #[arg(value_name = "PLUGIN")]
    plugins: Vec<String>,
}

/// Builds, checks and packs.
pub(crate) fn run(options: &Options) -> Result {
    let workspace = Workspace::read()?;
    let chosen = build_plugins::choose(workspace.plugins(), &options.plugins)?;
    let out = options.out.clone().unwrap_or_else(|| workspace.staging().join("dist"));
    let built = zig::build(&workspace, &chosen, &out)?;
    let name = format!("aihost-{}-{}", version(&workspace)?, TARGET.trim_end_matches("-gnu").replace("-unknown", ""));
    let folder = out.join(&name);
    if folder.exists() {
        fs::remove_dir_all(&folder).doing(format_args!("remove {}", folder.display()))?;
    }
    fill(&chosen, &built, &folder)?;
    glibc::check(&folder, GLIBC)?;
    checksums(&folder)?;
    let archive = out.join(format!("{name}.tar.gz"));
    // The same bytes from the same sources: names in order, nobody's numbers, one time.
    shell::run(
        Command::new("tar")
            .current_dir(&out)
            .env("GZIP", "-n")
            .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "-czf"])
            .arg(&archive)
            .arg(&name),
    )?;
    let wheel = wheel::write(&folder, &version(&workspace)?, GLIBC, &out)?;
    if options.rehearse {
        rehearsal::run(&workspace, &archive, &out)?;
    }
    tell(&[archive, wheel])
}

/// All of it, rehearsed.
pub(crate) fn run_whole() -> Result {
    run(&Options { out: None, rehearse: true, plugins: Vec::new() })
}

/// The host's own version.
fn version(workspace: &Workspace) -> Result<String> {
    workspace.version("aihost").ok_or_else(|| Error::new("cargo metadata names no version of aihost"))
}

fn fill(plugins: &[PluginPackage], built: &Path, folder: &Path) -> Result {
    let host = folder.join("bin/aihost");
    stage::copy_whole(&built.join("aihost"), &host)?;
    for plugin in plugins {
        let file = plugin.file_name();
        stage::copy_whole(&built.join(format!("lib{}.so", plugin.library)), &folder.join(PLUGINS).join(file))?;
    }
    for (shell, place) in COMPLETIONS {
        let text = shell::output(Command::new(&host).args(["completions", shell]))?;
        write(&folder.join(place), &text)?;
    }
    let docs = folder.join("share/doc/aihost");
    for file in ["README.md", "LICENSE-APACHE", "LICENSE-MIT", "models.yaml"] {
        stage::copy_whole(&root().join(file), &docs.join(file))?;
    }
    for file in fs::read_dir(root().join("docs")).doing("read docs")?.flatten().map(|entry| entry.path()) {
        if file.extension().is_some_and(|kind| kind == "md") {
            stage::copy_whole(&file, &docs.join("docs").join(file.file_name().unwrap_or_default()))?;
        }
    }
    write(&docs.join("THIRD_PARTY_LICENCES.txt"), &licences::text(plugins)?)?;
    let install = folder.join("install");
    write(&install, INSTALL)?;
    fs::set_permissions(&install, PermissionsExt::from_mode(0o755)).doing("make a script a program")
}

/// `SHA256SUMS` of every file, as sha256sum reads it.
fn checksums(folder: &Path) -> Result {
    let list = "find . -type f ! -name SHA256SUMS -print0 | LC_ALL=C sort -z | xargs -0 sha256sum";
    let sums = shell::output(Command::new("sh").current_dir(folder).args(["-c", list]))?;
    write(&folder.join("SHA256SUMS"), &sums)
}

fn write(path: &Path, text: &str) -> Result {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).and_then(|()| fs::write(path, text)).doing(format_args!("write {}", path.display()))
}

fn tell(files: &[PathBuf]) -> Result {
    let mut rows = vec![table::row(["file", "bytes", "sha256"])];
    for file in files {
        let size = file.metadata().doing(format_args!("look at {}", file.display()))?.len();
        let sum = shell::output(Command::new("sha256sum").arg(file))?;
        let sum = sum.split_whitespace().next().unwrap_or_default().to_owned();
        rows.push(vec![file.display().to_string(), size.to_string(), sum]);
    }
    print!("{}", table::render(&rows));
    Ok(())
}
