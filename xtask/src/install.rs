//! `install`: the host and the plugins below a prefix, where a shell finds the one and the host the others.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::error::{Error, Result};
use crate::workspace::{Profile, Workspace};
use crate::{build_plugins, stage};

/// Where the host looks for the plugins that were installed with it: beside its own `bin`.
pub(crate) const PLUGINS: &str = "lib/aihost/plugins";

/// What to install and where.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The host goes to DIR/bin, the plugins to DIR/lib/aihost/plugins [default: ~/.local].
    #[arg(long, value_name = "DIR")]
    prefix: Option<PathBuf>,
    /// Which plugins; all of plugins/ if none is named.
    #[arg(value_name = "PLUGIN")]
    plugins: Vec<String>,
}

/// Builds, copies, and says what to do next.
pub(crate) fn run(options: &Options) -> Result {
    let prefix = prefix(options)?;
    let (bin, plugins_dir) = (prefix.join("bin"), prefix.join(PLUGINS));
    // Before the long build.
    for folder in [&bin, &plugins_dir] {
        check_writable(folder)?;
    }
    let workspace = Workspace::read()?;
    let chosen = build_plugins::choose(workspace.plugins(), &options.plugins)?;
    workspace.build_host(Profile::Release, &chosen)?;
    let host = bin.join("aihost");
    stage::copy_whole(&workspace.host(Profile::Release), &host)?;
    println!("{}", host.display());
    for staged in stage::plugins(&workspace, Profile::Release, &chosen, &plugins_dir)? {
        println!("{}", staged.path.display());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|folder| folder == bin) {
        eprintln!(
            "next: export PATH=\"{}:$PATH\"   # so that the shell finds aihost; also in ~/.profile",
            bin.display()
        );
    }
    eprintln!("next: aihost init   # writes a models.yaml that fits this machine, in the folder where it is typed");
    Ok(())
}

fn prefix(options: &Options) -> Result<PathBuf> {
    let home = || std::env::var_os("HOME").filter(|home| !home.is_empty());
    let chosen = options.prefix.clone().or_else(|| Some(PathBuf::from(home()?).join(".local")));
    let prefix = chosen.ok_or_else(|| Error::new("HOME is not set: say where to install with --prefix DIR"))?;
    std::path::absolute(&prefix).map_err(|error| Error(format!("{}: {error}", prefix.display())))
}

/// Makes the folder and a file in it, which is gone again afterwards.
fn check_writable(folder: &Path) -> Result {
    let probe = folder.join(format!(".aihost-install.{}", std::process::id()));
    let made = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&probe, b""));
    made.and_then(|()| std::fs::remove_file(&probe)).map_err(|error| {
        Error(format!(
            "cannot install into {}: {error}; name a folder that you may write: --prefix DIR",
            folder.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::{Options, check_writable, prefix};

    #[test]
    fn a_prefix_is_absolute_and_a_folder_that_cannot_be_is_named() {
        let options = Options { prefix: Some("some/where".into()), plugins: Vec::new() };
        assert!(prefix(&options).unwrap().is_absolute());
        let error = check_writable(std::path::Path::new("/dev/null/bin")).unwrap_err().0;
        assert!(error.contains("/dev/null/bin") && error.contains("--prefix"), "{error}");
    }
}
