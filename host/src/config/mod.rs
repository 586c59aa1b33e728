//! models.yaml, parsed twice: what was typed, then what it means. A leaf: it knows `domain` and nothing else of the host.

pub mod env;
mod error;
mod locate;
mod paths;
mod raw;
mod resolve;
mod resolved;
mod schema;
mod source;
mod units;
mod warnings;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use env::Env;
pub use error::{ConfigError, Problem};
pub use resolved::{ApiKey, Config, DeviceConfig, FileConfig, Limits, ModelConfig, Paths};
pub use schema::json_schema;
pub use source::{Location, Part, Source, shown_url};
pub use units::{parse_duration, parse_size};

/// What the command line says about the configuration.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// `--config`
    pub file: Option<PathBuf>,
    /// `--listen`
    pub listen: Option<String>,
}

/// Finds models.yaml, reads it and checks it.
///
/// # Errors
/// There is none, it cannot be read, or something in it is wrong; every wrong thing is listed.
pub fn load(selection: &Selection, env: &Env) -> Result<Config, ConfigError> {
    let file = paths::config_file(selection.file.as_deref(), env)?;
    let text = std::fs::read_to_string(&file).map_err(|e| ConfigError::unreadable(&file, &e))?;
    parse(&text, &file, selection, env)
}

/// Checks the text of a models.yaml that lies (or would lie) at `file`.
///
/// # Errors
/// Everything that is wrong in it.
pub fn parse(text: &str, file: &Path, selection: &Selection, env: &Env) -> Result<Config, ConfigError> {
    let raw = raw::parse(text).map_err(|e| ConfigError::from_yaml(file, text, &e))?;
    resolve::resolve(raw, resolve::Context { text, file, selection, env })
}

/// The models.yaml that commands use: the one named, else the first that is found.
///
/// # Errors
/// There is none.
pub fn find_file(named: Option<&Path>, env: &Env) -> Result<PathBuf, ConfigError> {
    paths::config_file(named, env)
}

/// The folders of a host that has no models.yaml (yet).
pub fn default_folders(env: &Env) -> Paths {
    paths::folders([None; 3], &env.current_dir(), env)
}

/// Where `aihost init` writes when no file is named.
pub fn default_file(env: &Env) -> PathBuf {
    env.current_dir().join(paths::FILE_NAME)
}
