//! `build-plugins`: builds plugin files and puts them, under plain names, where a host finds them.

use std::path::PathBuf;
use std::process::Command;

use clap::Args;

use crate::cuda::{self, Cap, Toolkit};
use crate::error::{Error, Result};
use crate::table;
use crate::workspace::{PluginPackage, Profile, Workspace};
use crate::{shell, stage};

/// What to build and where to put it.
#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    /// Optimised as a whole and stripped, as for a release (slow to build).
    #[arg(long)]
    pub(crate) release: bool,
    /// With the plugins' `cuda` feature. Implies --release. Without nvcc, CUDA's toolkit is fetched from the package index.
    #[arg(long)]
    pub(crate) cuda: bool,
    /// Compute capabilities of the cards to build for, such as 80,89,90 [default: this machine's card's, else 90].
    #[arg(long = "cap", value_name = "CAP,...", value_delimiter = ',', requires = "cuda")]
    pub(crate) caps: Vec<Cap>,
    /// Where the files go [default: target/aihost/plugins].
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Which; all of plugins/ if none is named. A fixture of the tests must be named.
    #[arg(value_name = "PLUGIN")]
    pub(crate) plugins: Vec<String>,
}

/// Builds, copies, prints a table.
pub(crate) fn run(options: &Options) -> Result {
    let workspace = Workspace::read()?;
    let chosen = choose(workspace.plugins(), &options.plugins)?;
    let profile = if options.release || options.cuda { Profile::Dist } else { Profile::Dev };
    let mut command = workspace.build_command(profile, &chosen);
    if options.cuda {
        for_cards(&mut command, &chosen, &Cards::of(&workspace, &options.caps)?)?;
    }
    shell::run(&mut command)?;
    let folder = options.out.clone().unwrap_or_else(|| workspace.staging().join("plugins"));
    let staged = stage::plugins(&workspace, profile, &chosen, &folder)?;
    let mut rows = vec![table::row(["file", "size"])];
    for file in staged {
        rows.push(vec![file.path.display().to_string(), format!("{:.1} MB", file.size as f64 / 1e6)]);
    }
    print!("{}", table::render(&rows));
    Ok(())
}

/// A toolkit, and the cards that it is to build for.
#[derive(Debug)]
pub(crate) struct Cards {
    pub(crate) toolkit: Toolkit,
    pub(crate) caps: Vec<Cap>,
}

impl Cards {
    /// Those that were named, else this machine's; a driver that is too old is told of.
    pub(crate) fn of(workspace: &Workspace, named: &[Cap]) -> Result<Self> {
        // Before a download.
        let caps = cuda::caps(named)?;
        let toolkit = Toolkit::find(workspace)?;
        if let Some(notice) = cuda::driver_notice(&toolkit) {
            eprintln!("{notice}");
        }
        Ok(Self { toolkit, caps })
    }
}

/// Adds the kernels of these plugins to a build: all of them at once, so that candle's are compiled once for all.
pub(crate) fn for_cards(command: &mut Command, plugins: &[PluginPackage], cards: &Cards) -> Result {
    let with_kernels = plugins.iter().filter(|plugin| plugin.cuda);
    let features: Vec<String> = with_kernels.map(|plugin| format!("{}/cuda", plugin.package)).collect();
    if features.is_empty() {
        return Err(Error::new("none of these plugins has a `cuda` feature; leave --cuda out"));
    }
    command.args(["--features", &features.join(",")]);
    cards.toolkit.tell(command, &cards.caps)
}

/// Those of these names; all of plugins/ if none is named.
pub(crate) fn choose(all: Vec<PluginPackage>, names: &[String]) -> Result<Vec<PluginPackage>> {
    if names.is_empty() {
        return Ok(all.into_iter().filter(|plugin| !plugin.fixture).collect());
    }
    names
        .iter()
        .map(|name| {
            let found = all.iter().find(|plugin| plugin.name() == *name || plugin.package == *name);
            found.cloned().ok_or_else(|| {
                let known: Vec<String> = all.iter().map(PluginPackage::name).collect();
                Error(format!("there is no plugin `{name}`; there are: {}", known.join(", ")))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::choose;
    use crate::workspace::PluginPackage;

    fn all() -> Vec<PluginPackage> {
        [("aihost-candle-llm", "candle_llm", false), ("aihost-fixture-echo", "fixture_echo", true)]
            .map(|(package, library, fixture)| PluginPackage {
                package: package.to_owned(),
                library: library.to_owned(),
                fixture,
                cuda: false,
            })
            .to_vec()
    }

    #[test]
    fn fixtures_are_built_only_by_name() {
        let files = |names: &[&str]| {
            choose(all(), &names.iter().map(ToString::to_string).collect::<Vec<_>>())
                .map(|chosen| chosen.iter().map(PluginPackage::file_name).collect::<Vec<_>>())
        };
        assert_eq!(files(&[]).unwrap(), ["candle-llm.so"]);
        assert_eq!(files(&["fixture-echo"]).unwrap(), ["fixture-echo.so"]);
        assert!(files(&["flux"]).unwrap_err().0.contains("candle-llm, fixture-echo"));
    }
}
