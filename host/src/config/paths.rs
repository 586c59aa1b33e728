//! Where everything lies: the lookup of models.yaml and the folders.

use std::path::{Component, Path, PathBuf};

use super::env::Env;
use super::error::ConfigError;
use super::ownership::Sharing;
use super::resolved::Paths;

/// What the configuration is called.
pub(super) const FILE_NAME: &str = "models.yaml";
/// Where an installation keeps its plugins, below its prefix.
const INSTALLED_PLUGINS: &str = "lib/aihost/plugins";
/// The volume that rented GPU machines keep between sessions.
const VOLUME: &str = "/workspace";

/// The models.yaml to use: the one named, else `AIHOST_CONFIG`, else the first that exists.
pub(super) fn config_file(named: Option<&Path>, env: &Env) -> Result<PathBuf, ConfigError> {
    let here = env.current_dir();
    if let Some(file) = named.map(Path::to_path_buf).or_else(|| env.config_file()) {
        return Ok(absolute(&here, &file));
    }
    let mut candidates = vec![here.join(FILE_NAME), Path::new(VOLUME).join(FILE_NAME)];
    candidates.extend(env.config_home().map(|home| home.join("aihost").join(FILE_NAME)));
    match candidates.iter().find(|file| file.is_file()) {
        Some(file) => Ok(file.clone()),
        None => Err(ConfigError::none_found(&candidates)),
    }
}

/// The folders: environment, else what was typed (relative to `base`), else the defaults.
pub(super) fn folders(typed: [Option<&Path>; 3], base: &Path, env: &Env) -> Paths {
    let here = env.current_dir();
    let root = default_root(env);
    let pick = |variable: Option<PathBuf>, typed: Option<&Path>, name: &str| match (variable, typed) {
        (Some(folder), _) => absolute(&here, &folder),
        (None, Some(folder)) => absolute(base, folder),
        (None, None) => root.join(name),
    };
    let [plugins, models, state] = typed;
    let chosen = plugins.is_some() || env.plugins_dir().is_some();
    Paths {
        installed_plugins: if chosen { None } else { installed_plugins(env) },
        plugins: pick(env.plugins_dir(), plugins, "plugins"),
        models: pick(env.models_dir(), models, "models"),
        state: pick(env.state_dir(), state, "state"),
        cache: None,
        sharing: Sharing::Refused,
    }
}

/// `path` below `base` unless it is absolute, without `.` and `..` where they can be folded.
pub(super) fn absolute(base: &Path, path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in base.join(path).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

/// `lib/aihost/plugins` beside the `bin` that this program was installed in.
fn installed_plugins(env: &Env) -> Option<PathBuf> {
    let bin = env.executable()?.parent()?.to_owned();
    let folder = bin.file_name().is_some_and(|name| name == "bin").then(|| bin.parent())??.join(INSTALLED_PLUGINS);
    folder.is_dir().then_some(folder)
}

fn default_root(env: &Env) -> PathBuf {
    let writable = rustix::fs::access(VOLUME, rustix::fs::Access::WRITE_OK).is_ok();
    match env.data_home() {
        _ if writable => PathBuf::from(VOLUME),
        Some(home) => home.join("aihost"),
        None => PathBuf::from(VOLUME),
    }
}
