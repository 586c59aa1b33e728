//! The environments of suites: virtual environments, npm trees and unpacked sources, in a cache outside the repository.
//! What is in one follows from its name, which has the digest of what was asked for.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::suite::{Source, Suite};
use super::{file, has};
use crate::error::{Doing, Error, Result};
use crate::shell;

/// Written last into a folder that is whole.
const WHOLE: &str = ".whole";

/// The folder of all environments.
#[derive(Debug)]
pub(super) struct Cache(PathBuf);

/// What a suite runs in.
#[derive(Debug)]
pub(super) struct Environment {
    /// Of Python or Node.
    folder: PathBuf,
    /// The suite's own source.
    source: Option<PathBuf>,
}

impl Cache {
    /// The one that is named, else that of the user.
    pub(super) fn open(named: Option<&Path>) -> Result<Self> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let of_user = || variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
        let named = named.map(Path::to_path_buf).or_else(|| Some(of_user()?.join("aihost-conformance")));
        named.map(Self).ok_or_else(|| Error::new("neither XDG_CACHE_HOME nor HOME is set; say --cache FOLDER"))
    }

    /// What a suite runs in, made if it is not there.
    pub(super) fn environment(&self, suite: &Suite) -> Result<Environment> {
        let folder = match () {
            () if suite.environment == "plain" => self.0.clone(),
            () if suite.is_node() => self.node(&suite.environment)?,
            () => self.python(&suite.environment)?,
        };
        let source = suite.source.as_ref().map(|source| self.source(source)).transpose()?;
        Ok(Environment { folder, source })
    }

    /// Why a suite's environment cannot be made on this machine, through no fault of what it asks for.
    pub(super) fn obstacle(&self, suite: &Suite) -> Result<Option<String>> {
        let program = if suite.is_node() { "npm" } else { "python3" };
        if !has(program) {
            return Ok(Some(format!("there is no {program}, which the suite {} needs", suite.name)));
        }
        if let Err(error) = self.environment(suite) {
            let folder = self.0.join("probe");
            let mut probe = Command::new("python3");
            probe.args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest"]).arg(&folder).arg("six");
            if shell::run(&mut probe).is_err() {
                return Ok(Some(format!("the package registries are out of reach: {error}")));
            }
            return Err(error);
        }
        Ok(None)
    }

    /// A virtual environment with what `requirements/NAME.txt` names.
    fn python(&self, name: &str) -> Result<PathBuf> {
        let requirements = file("requirements").join(format!("{name}.txt"));
        let asked = fs::read_to_string(&requirements).doing(format_args!("read {}", requirements.display()))?;
        let python = shell::probe("python3", &["--version"]).unwrap_or_default();
        self.whole(name, &[&asked, &python], |folder| {
            shell::run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
            let mut install = Command::new(folder.join("bin/python"));
            install.args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-compile",
                "--requirement",
            ]);
            shell::run(install.arg(&requirements))
        })
    }

    /// The packages that `node/NAME.json` names.
    fn node(&self, name: &str) -> Result<PathBuf> {
        let package = file("node").join(format!("{name}.json"));
        let asked = fs::read_to_string(&package).doing(format_args!("read {}", package.display()))?;
        self.whole(name, &[&asked], |folder| {
            fs::create_dir_all(folder).doing(format_args!("create {}", folder.display()))?;
            fs::copy(&package, folder.join("package.json")).doing(format_args!("copy {}", package.display()))?;
            let mut install = Command::new("npm");
            install.current_dir(folder).args(["install", "--no-audit", "--no-fund", "--loglevel=error"]);
            shell::run(&mut install)
        })
    }

    /// Part of a source distribution, unpacked.
    fn source(&self, source: &Source) -> Result<PathBuf> {
        let (name, _) = source.package.split_once("==").unwrap_or((&source.package, ""));
        let folder = self.whole(&format!("{name}-source"), &[&source.package, &source.folder], |folder| {
            let archives = folder.join("archives");
            let mut download = Command::new("python3");
            // Only this package as source: what builds it comes as it is.
            download.args(["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", name, "--dest"]);
            shell::run(download.arg(&archives).arg(&source.package))?;
            let archive = fs::read_dir(&archives).doing("read what pip fetched")?.flatten().next();
            let archive = archive.ok_or_else(|| Error(format!("pip fetched nothing for {}", source.package)))?.path();
            let mut unpack = Command::new("tar");
            unpack.arg("xzf").arg(&archive).arg("-C").arg(folder).args(["--strip-components=1", "--wildcards"]);
            shell::run(unpack.arg(format!("*/{}*", source.folder)))?;
            fs::remove_dir_all(&archives).doing("remove an archive that was unpacked")
        })?;
        Ok(folder.join(&source.folder))
    }

    /// The folder of what was asked for; made anew unless it is whole.
    fn whole(&self, name: &str, asked: &[&str], make: impl FnOnce(&Path) -> Result) -> Result<PathBuf> {
        let mut hasher = DefaultHasher::new();
        asked.hash(&mut hasher);
        let folder = self.0.join(format!("{name}-{:016x}", hasher.finish()));
        if folder.join(WHOLE).exists() {
            return Ok(folder);
        }
        if folder.exists() {
            fs::remove_dir_all(&folder).doing(format_args!("remove {}, which is not whole", folder.display()))?;
        }
        fs::create_dir_all(&self.0).doing(format_args!("create {}", self.0.display()))?;
        make(&folder)?;
        fs::write(folder.join(WHOLE), "").doing(format_args!("write into {}", folder.display()))?;
        Ok(folder)
    }
}

impl Environment {
    /// The script in it.
    pub(super) fn command(&self, script: &Path) -> Result<Command> {
        let mut command = if script.extension().is_some_and(|extension| extension == "mjs") {
            // Node looks for packages from where a script lies, so it is run where they are.
            for name in [script.to_path_buf(), file("harness.mjs")] {
                let copy = self.folder.join(name.file_name().unwrap_or_default());
                fs::copy(&name, &copy).doing(format_args!("copy {} to {}", name.display(), copy.display()))?;
            }
            let mut command = Command::new(self.folder.join("node_modules/node/bin/node"));
            command.arg(self.folder.join(script.file_name().unwrap_or_default()));
            command
        } else {
            let own = self.folder.join("bin/python");
            let mut command = Command::new(if own.exists() { own } else { "python3".into() });
            command.arg(script);
            command
        };
        if let Some(source) = &self.source {
            command.env("CONFORMANCE_SOURCE", source);
        }
        // Nothing of the developer's own settings, no compiled files beside the scripts, no telemetry.
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_setting(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        command.env_remove("PYTHONDONTWRITEBYTECODE").env("PYTHONPYCACHEPREFIX", self.folder.join("compiled"));
        command.env("DO_NOT_TRACK", "1").env("CONFORMANCE_ENVIRONMENT", &self.folder);
        Ok(command)
    }
}

/// Whether a variable of this name would send a client elsewhere.
fn is_setting(name: &str) -> bool {
    ["OPENAI_", "ANTHROPIC_", "OLLAMA_", "LITELLM_", "LANGCHAIN_", "LANGSMITH_", "LLM_", "CLAUDE_", "CODEX_"]
        .iter()
        .any(|start| name.starts_with(start))
        || ["http_proxy", "https_proxy", "all_proxy"].contains(&name.to_ascii_lowercase().as_str())
}

impl Suite {
    fn is_node(&self) -> bool {
        file("node").join(format!("{}.json", self.environment)).is_file()
    }

    /// The versions of the packages that it tries.
    pub(super) fn versions(&self) -> String {
        let name = if self.is_node() {
            format!("node/{}.json", self.environment)
        } else {
            format!("requirements/{}.txt", self.environment)
        };
        let text = fs::read_to_string(file(&name)).unwrap_or_default();
        let version = |package: &String| {
            let pinned = |line: &str| {
                let line = line.trim().trim_end_matches(',');
                let pip = line.strip_prefix(package.as_str()).and_then(|rest| rest.strip_prefix("=="));
                let npm = || line.strip_prefix(&format!("\"{package}\": \"")).and_then(|rest| rest.strip_suffix('"'));
                pip.or_else(npm).map(ToOwned::to_owned)
            };
            let version = text.lines().find_map(pinned).unwrap_or_else(|| "?".to_owned());
            format!("{package} {version}")
        };
        let mut versions: Vec<String> = self.packages.iter().map(version).collect();
        versions.extend(self.source.iter().map(|source| format!("source of {}", source.package.replace("==", " "))));
        versions.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::{Cache, is_setting};
    use crate::conformance::suite::Suite;
    use crate::error::Error;

    #[test]
    fn what_was_made_once_is_kept_and_what_was_not_is_made_again() {
        let folder = std::env::temp_dir().join(format!("aihost-conformance-{}", std::process::id()));
        let cache = Cache(folder.clone());
        let mut made = 0;
        let mut make = |asked: &str, fails: bool| {
            cache.whole("x", &[asked], |folder| {
                made += 1;
                std::fs::create_dir_all(folder).unwrap();
                if fails { Err(Error::new("no")) } else { Ok(()) }
            })
        };
        assert!(make("a", true).is_err());
        let first = make("a", false).unwrap();
        assert_eq!(make("a", false).unwrap(), first);
        assert_ne!(make("b", false).unwrap(), first);
        assert_eq!(made, 3);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn every_package_that_is_tried_is_pinned() {
        for suite in Suite::read().unwrap() {
            assert!(!suite.versions().contains('?'), "{}: {}", suite.name, suite.versions());
        }
    }

    #[test]
    fn settings_of_clients_stay_outside() {
        assert!(is_setting("OPENAI_BASE_URL") && is_setting("HTTPS_PROXY"));
        assert!(!is_setting("PATH") && !is_setting("PIP_INDEX_URL"));
    }
}
