//! `gpu-bundle`: all that `gpu-check` needs on a machine with a card, in one archive: the host, flux and candle-llm with kernels for one kind
//! of card, the fixtures, the golden cases, and this program as their runner. It needs no network and no cargo there.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use serde_json::json;

use crate::build_plugins::{Cards, for_cards};
use crate::cuda::Cap;
use crate::error::{Doing, Error, Result};
use crate::gpu_check::MANIFEST;
use crate::workspace::{PluginPackage, Profile, Workspace, root};
use crate::{shell, stage, table};

/// Most bytes of all parts together: what is carried to a machine at once.
const BUNDLE_BYTES_MAX: u64 = 60 << 20;
/// Bytes of a part.
const PART_BYTES: &str = "15M";
/// The plugins with kernels, the programs that try them, and what stands beside them.
const PLUGINS: [&str; 2] = ["flux", "candle-llm"];
const PROGRAMS: [&str; 2] = ["flux_device", "llm_device"];
const FIXTURES: [&str; 3] = ["echo", "faulty", "nvml"];
/// Starts the runner from any folder.
const SCRIPT: &str = "#!/bin/sh\nexec \"$(dirname \"$(readlink -f \"$0\")\")/bin/xtask\" gpu-check \"$@\"\n";
/// How the archive begins to be called.
const NAME: &str = "gpu-bundle";

/// What to bundle and where to put it.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The compute capability of the card [default: this machine's card's, else 90].
    #[arg(long, value_name = "CAP")]
    cap: Option<Cap>,
    /// Where the parts go [default: target/aihost/gpu].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Builds, packs, and rehearses what was packed.
pub(crate) fn run(options: &Options) -> Result {
    let workspace = Workspace::read()?;
    let cards = Cards::of(&workspace, options.cap.as_slice())?;
    let [cap] = cards.caps[..] else {
        return Err(Error::new("a bundle is for one kind of card; name it with --cap"));
    };
    let out = options.out.clone().unwrap_or_else(|| workspace.staging().join("gpu"));
    let folder = out.join(NAME);
    if folder.exists() {
        fs::remove_dir_all(&folder).doing(format_args!("remove {}", folder.display()))?;
    }
    build(&workspace, &cards)?;
    fill(&workspace, &folder)?;
    describe(&folder, &cards, cap)?;
    let parts = pack(&out)?;
    rehearse(&folder, &cards)?;
    tell(&parts)
}

fn build(workspace: &Workspace, cards: &Cards) -> Result {
    let plugins: Vec<PluginPackage> =
        workspace.plugins().into_iter().filter(|plugin| PLUGINS.contains(&plugin.name().as_str())).collect();
    let mut command = workspace.build_command(Profile::Dist, &plugins);
    for package in FIXTURES.map(|name| format!("aihost-fixture-{name}")).iter().chain([&"xtask".to_owned()]) {
        command.args(["--package", package]);
    }
    command.args(["--lib", "--bins"]);
    for program in PROGRAMS {
        command.args(["--example", program]);
    }
    for_cards(&mut command, &plugins, cards)?;
    shell::run(&mut command)
}

fn fill(workspace: &Workspace, folder: &Path) -> Result {
    let built = |name: &str| workspace.built(Profile::Dist, name);
    let mut copies = vec![
        (built("aihost"), "bin/aihost".to_owned()),
        (built("xtask"), "bin/xtask".to_owned()),
        (built("libflux.so"), "plugins/flux.so".to_owned()),
        (built("libcandle_llm.so"), "plugins/candle-llm.so".to_owned()),
    ];
    copies.extend(PROGRAMS.map(|name| (built(&format!("examples/{name}")), format!("bin/{name}"))));
    copies.extend(FIXTURES.map(|name| (built(&format!("libfixture_{name}.so")), format!("plugins/{name}.so"))));
    for (from, to) in copies {
        stage::copy_whole(&from, &folder.join(to))?;
    }
    let golden = folder.join("golden");
    shell::run(Command::new("cp").arg("-r").arg(root().join("tests/golden/flux")).arg(&golden))?;
    let script = folder.join("gpu-check");
    fs::write(&script, SCRIPT).doing(format_args!("write {}", script.display()))?;
    fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).doing("make a script a program")
}

/// What the bundle is, and what it needs of the machine.
fn describe(folder: &Path, cards: &Cards, cap: Cap) -> Result {
    let mut git = Command::new("git");
    git.current_dir(root()).args(["-c", "safe.directory=*", "describe", "--always", "--dirty"]);
    let commit = shell::output(&mut git).unwrap_or_else(|_| "unknown".to_owned());
    let mut libraries = BTreeSet::from(["libcublasLt.so.".to_owned() + &cards.toolkit.version.0.to_string()]);
    for file in ["bin/flux_device", "bin/llm_device", "plugins/flux.so", "plugins/candle-llm.so"] {
        libraries.extend(of_cuda(&shell::output(Command::new("readelf").arg("-d").arg(folder.join(file)))?));
    }
    let about = json!({
        "commit": commit.trim(), "compute_capability": cap.0, "cuda": cards.toolkit.version.to_string(), "libraries": libraries,
    });
    let file = folder.join(MANIFEST);
    fs::write(&file, format!("{about:#}\n")).doing(format_args!("write {}", file.display()))
}

/// CUDA's libraries among those that `readelf -d` says a file needs.
fn of_cuda(dynamic: &str) -> Vec<String> {
    let needed = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    let names = needed.filter_map(|line| line.split_once('[')?.1.split_once(']').map(|(name, _)| name.to_owned()));
    names.filter(|name| ["libcu", "libnv"].iter().any(|start| name.starts_with(start))).collect()
}

/// The folder as compressed parts; together they must not be too large to carry.
fn pack(out: &Path) -> Result<Vec<(PathBuf, u64)>> {
    for old in parts(out)? {
        fs::remove_file(&old.0).doing(format_args!("remove {}", old.0.display()))?;
    }
    let line = format!(
        "set -e; tar --sort=name --owner=0 --group=0 --numeric-owner -cf {NAME}.tar {NAME}; xz -T0 -6 {NAME}.tar; split -d -b {PART_BYTES} {NAME}.tar.xz {NAME}.tar.xz.; rm {NAME}.tar.xz"
    );
    shell::run(Command::new("sh").current_dir(out).args(["-c", &line]))?;
    let parts = parts(out)?;
    let bytes: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
    if parts.is_empty() || bytes >= BUNDLE_BYTES_MAX {
        return Err(Error(format!(
            "the bundle has {bytes} bytes, and must have fewer than {BUNDLE_BYTES_MAX} to be carried"
        )));
    }
    Ok(parts)
}

fn parts(out: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let entries = fs::read_dir(out).doing(format_args!("read {}", out.display()))?.flatten();
    let is_part = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{NAME}.tar")))
    };
    let paths = entries.map(|entry| entry.path()).filter(is_part);
    let mut parts: Vec<_> = paths
        .map(|path| {
            let bytes = fs::metadata(&path).map_or(0, |file| file.len());
            (path, bytes)
        })
        .collect();
    parts.sort();
    Ok(parts)
}

/// Every part of the bundle, with the very files that were packed, on candle's CPU device: the driver's library is the one
/// that they were linked against.
fn rehearse(folder: &Path, cards: &Cards) -> Result {
    let mut check = Command::new(folder.join("gpu-check"));
    check.arg("--rehearse").arg("--out").arg(folder.with_extension("rehearsal.jsonl"));
    shell::run(check.env("LD_LIBRARY_PATH", cards.toolkit.libraries()))
}

fn tell(parts: &[(PathBuf, u64)]) -> Result {
    let mut rows = vec![table::row(["part", "bytes", "sha256"])];
    for (path, bytes) in parts {
        let sum = shell::output(Command::new("sha256sum").arg(path))?;
        let sum = sum.split_whitespace().next().unwrap_or_default().to_owned();
        rows.push(vec![path.display().to_string(), bytes.to_string(), sum]);
    }
    print!("{}", table::render(&rows));
    println!(
        "{} bytes in all. On the machine with the card:\n  cat {NAME}.tar.xz.* | tar xJ   # or: cat {NAME}.tar.xz.* | python3 -c \"import sys, tarfile; tarfile.open(fileobj=sys.stdin.buffer, mode='r|xz').extractall()\"\n  {NAME}/gpu-check",
        parts.iter().map(|(_, bytes)| bytes).sum::<u64>()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn cudas_libraries_are_told_from_others() {
        let text = " 0x01 (NEEDED)  Shared library: [libcuda.so.1]\n 0x01 (NEEDED)  Shared library: [libc.so.6]\n 0x0e (SONAME) Library soname: [libcux.so]\n";
        assert_eq!(super::of_cuda(text), ["libcuda.so.1"]);
    }
}
