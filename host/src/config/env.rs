//! The only reader of the environment, so that every variable the host heeds is listed here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::domain::DeviceId;

/// The environment as it was when it was taken.
#[derive(Clone, Debug, Default)]
pub struct Env {
    variables: BTreeMap<String, String>,
    current_dir: PathBuf,
    executable: Option<PathBuf>,
    find_devices: Option<fn() -> Vec<DeviceId>>,
}

impl Env {
    /// This process's environment.
    pub fn process() -> Self {
        Self {
            variables: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
            current_dir: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            executable: std::env::current_exe().ok(),
            find_devices: None,
        }
    }

    /// The same, with what `devices: auto` stands for. It is looked for when it is asked for.
    pub fn finding_devices(self, find: fn() -> Vec<DeviceId>) -> Self {
        Self { find_devices: Some(find), ..self }
    }

    /// What `devices: auto` stands for.
    pub fn devices(&self) -> Vec<DeviceId> {
        self.find_devices.map_or_else(|| vec![DeviceId("cpu".to_owned())], |find| find())
    }

    /// `CUDA_VISIBLE_DEVICES`: the graphics cards that workers see. Set to nothing hides all, so this is not [`Self::named`].
    pub fn visible_gpus(&self) -> Option<&str> {
        self.variables.get("CUDA_VISIBLE_DEVICES").map(String::as_str)
    }

    /// A made-up environment, for tests and embedding.
    pub fn with<'a>(current_dir: impl Into<PathBuf>, variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self {
            variables: variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            current_dir: current_dir.into(),
            executable: None,
            find_devices: None,
        }
    }

    /// The same, of a program that lies there.
    pub fn running(self, executable: impl Into<PathBuf>) -> Self {
        Self { executable: Some(executable.into()), ..self }
    }

    /// The file of this program, links followed; `None` if it is not known.
    pub fn executable(&self) -> Option<&std::path::Path> {
        self.executable.as_deref()
    }

    /// The working directory.
    pub fn current_dir(&self) -> PathBuf {
        self.current_dir.clone()
    }

    /// A variable by name; one that is set to nothing counts as unset.
    pub fn named(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// `AIHOST_CONFIG`: the models.yaml to use.
    pub fn config_file(&self) -> Option<PathBuf> {
        self.named("AIHOST_CONFIG").map(PathBuf::from)
    }

    /// `AIHOST_PLUGINS_DIR`: overrides `plugins_dir:`.
    pub fn plugins_dir(&self) -> Option<PathBuf> {
        self.named("AIHOST_PLUGINS_DIR").map(PathBuf::from)
    }

    /// `AIHOST_MODELS_DIR`: overrides `models_dir:`.
    pub fn models_dir(&self) -> Option<PathBuf> {
        self.named("AIHOST_MODELS_DIR").map(PathBuf::from)
    }

    /// `AIHOST_STATE_DIR`: overrides `state_dir:`.
    pub fn state_dir(&self) -> Option<PathBuf> {
        self.named("AIHOST_STATE_DIR").map(PathBuf::from)
    }

    /// `AIHOST_LOG`, else `RUST_LOG`: the log filter.
    pub fn log_filter(&self) -> Option<&str> {
        self.named("AIHOST_LOG").or_else(|| self.named("RUST_LOG"))
    }

    /// `AIHOST_API_KEY`: the key that client commands send, where models.yaml does not have it.
    pub fn api_key(&self) -> Option<&str> {
        self.named("AIHOST_API_KEY")
    }

    /// `HF_TOKEN`: sent to Hugging Face for gated repositories.
    pub fn hf_token(&self) -> Option<&str> {
        self.named("HF_TOKEN")
    }

    /// `HF_ENDPOINT`: a mirror of huggingface.co.
    pub fn hf_endpoint(&self) -> Option<&str> {
        self.named("HF_ENDPOINT")
    }

    /// `XDG_CONFIG_HOME`, else `~/.config`.
    pub fn config_home(&self) -> Option<PathBuf> {
        self.home_folder("XDG_CONFIG_HOME", ".config")
    }

    /// `XDG_DATA_HOME`, else `~/.local/share`.
    pub fn data_home(&self) -> Option<PathBuf> {
        self.home_folder("XDG_DATA_HOME", ".local/share")
    }

    fn home_folder(&self, variable: &str, below_home: &str) -> Option<PathBuf> {
        self.named(variable)
            .map(PathBuf::from)
            .or_else(|| self.named("HOME").map(|home| PathBuf::from(home).join(below_home)))
    }
}
