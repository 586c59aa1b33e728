//! Where the workspace's things lie, and what packages it has.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::error::{Doing, Error, Result};
use crate::shell;

/// The repository's root: that of the checkout that runs this tool, which is not the one that built it where two
/// checkouts share a target folder.
pub(crate) fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        PathBuf::from(package).parent().map(Path::to_path_buf).unwrap_or_default()
    })
}

/// How things are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// The profile that `up` and `test` share.
    Dev,
    /// `--release`
    Release,
    /// `--profile dist`: release with link-time optimisation, stripped.
    Dist,
}

impl Profile {
    /// `Release` where the flag was given.
    pub(crate) fn of_flag(release: bool) -> Self {
        if release { Self::Release } else { Self::Dev }
    }

    /// The arguments that select it.
    pub(crate) fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Dev => &[],
            Self::Release => &["--release"],
            Self::Dist => &["--profile", "dist"],
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
            Self::Dist => "dist",
        }
    }
}

/// The workspace as cargo knows it.
#[derive(Debug)]
pub(crate) struct Workspace {
    target: PathBuf,
    packages: Vec<Value>,
}

/// Where models.yaml keeps plugins, models and state, and where measures and soaks keep theirs. Not below a target folder
/// that lies elsewhere: commands typed in the repository read the same models.yaml and must find the same folders.
const STAGING: &str = "target/aihost";

/// A package that builds a plugin file.
#[derive(Clone, Debug)]
pub(crate) struct PluginPackage {
    /// As in Cargo.toml.
    pub(crate) package: String,
    /// The library's name: `lib<library>.so`.
    pub(crate) library: String,
    /// Whether it is a fixture of the tests.
    pub(crate) fixture: bool,
    /// Whether it has a feature `cuda`.
    pub(crate) cuda: bool,
}

impl PluginPackage {
    /// The name of its file in a plugins folder: `candle-llm.so`.
    pub(crate) fn file_name(&self) -> String {
        format!("{}.so", self.name())
    }

    /// The name a developer calls it by: `candle-llm`.
    pub(crate) fn name(&self) -> String {
        self.library.replace('_', "-")
    }
}

impl Workspace {
    /// Asks cargo.
    pub(crate) fn read() -> Result<Self> {
        let mut metadata = metadata(&["--no-deps"])?;
        let target = metadata["target_directory"].as_str().unwrap_or_default().into();
        let Value::Array(packages) = metadata["packages"].take() else {
            return Err(Error::new("cargo metadata names no packages"));
        };
        Ok(Self { target, packages })
    }

    /// The folder of everything that `up`, `test` and `bench` stage.
    pub(crate) fn staging(&self) -> PathBuf {
        root().join(STAGING)
    }

    /// A built file.
    pub(crate) fn built(&self, profile: Profile, name: &str) -> PathBuf {
        self.target.join(profile.folder()).join(name)
    }

    /// The folder of what was built for a named target.
    pub(crate) fn built_for(&self, target: &str, profile: Profile) -> PathBuf {
        self.target.join(target).join(profile.folder())
    }

    /// The version of a package.
    pub(crate) fn version(&self, package: &str) -> Option<String> {
        let found = self.packages.iter().find(|found| found["name"] == package)?;
        found["version"].as_str().map(str::to_owned)
    }

    /// The built host.
    pub(crate) fn host(&self, profile: Profile) -> PathBuf {
        self.built(profile, "aihost")
    }

    /// `aihost` with this repository's models.yaml, as it is when typed in the repository's root.
    pub(crate) fn aihost(&self, profile: Profile) -> Command {
        let mut command = Command::new(self.host(profile));
        command.current_dir(root()).env("AIHOST_CONFIG", root().join("models.yaml"));
        command
    }

    /// The folder in which that host looks for plugins.
    pub(crate) fn plugins_folder(&self, profile: Profile) -> Result<PathBuf> {
        let path = shell::output(self.aihost(profile).args(["plugins", "path"]))?;
        Ok(PathBuf::from(path.trim_end_matches('\n')))
    }

    /// Every package that builds a plugin file, in name order.
    pub(crate) fn plugins(&self) -> Vec<PluginPackage> {
        let mut plugins: Vec<_> = self.packages.iter().filter_map(plugin_package).collect();
        plugins.sort_by(|a, b| a.library.cmp(&b.library));
        plugins
    }

    /// Everything that `test`, `soak` and `bench` need: the same packages and features each time, so that nothing heavy
    /// is compiled twice.
    pub(crate) fn build_all(&self, profile: Profile) -> Result {
        shell::run(shell::cargo().args(["build", "--workspace", "--all-targets"]).args(profile.arguments()))
    }

    /// What a measure of the host with this plugin needs, and the plugin. In the development profile that is everything, which tests
    /// share; optimised, the tests would take twice as long as all that is measured.
    pub(crate) fn build_to_measure(&self, profile: Profile, plugin: &str) -> Result<Vec<PluginPackage>> {
        let plugins: Vec<_> = self.plugins().into_iter().filter(|package| package.name() == plugin).collect();
        match profile {
            Profile::Dev => self.build_all(profile)?,
            _ => self.build_host(profile, &plugins)?,
        }
        Ok(plugins)
    }

    /// The host and these plugins, and nothing of the tests.
    pub(crate) fn build_host(&self, profile: Profile, plugins: &[PluginPackage]) -> Result {
        shell::run(&mut self.build_command(profile, plugins))
    }

    /// The command that builds these plugins, and the host beside them: alone they would ask their dependencies for fewer
    /// features, and have half of them compiled a second time.
    pub(crate) fn build_command(&self, profile: Profile, plugins: &[PluginPackage]) -> Command {
        let mut command = shell::cargo();
        command.arg("build").args(profile.arguments()).args(["--package", "aihost"]);
        for plugin in plugins {
            command.args(["--package", &plugin.package]);
        }
        command
    }
}

/// `cargo metadata` as JSON.
pub(crate) fn metadata(arguments: &[&str]) -> Result<Value> {
    let text = shell::output(shell::cargo().args(["metadata", "--format-version", "1"]).args(arguments))?;
    serde_json::from_str(&text).doing("read cargo metadata")
}

fn plugin_package(package: &Value) -> Option<PluginPackage> {
    let target = package["targets"]
        .as_array()?
        .iter()
        .find(|target| target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "cdylib")))?;
    let manifest = Path::new(package["manifest_path"].as_str()?);
    Some(PluginPackage {
        package: package["name"].as_str()?.to_owned(),
        library: target["name"].as_str()?.replace('-', "_"),
        fixture: manifest.components().any(|part| part.as_os_str() == "tests"),
        cuda: package["features"].get("cuda").is_some(),
    })
}
