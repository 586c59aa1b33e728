//! The only reader of the environment, so that every variable the host heeds is listed here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::domain::Device;

/// Variables that say how packages are fetched, in small or capital letters.
const FETCHING: [&str; 9] = [
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NETRC",
];
/// By which installers of packages are kept from asking anyone.
const OFFLINE: [&str; 2] = ["PIP_NO_INDEX", "UV_OFFLINE"];
/// Beginnings of such variables.
const FETCHING_PREFIXES: [&str; 2] = ["PIP_", "UV_"];

/// Says to a process that its stdin is a socket over which a running host gives it its place.
pub const TAKES_PLACE_OF: &str = "AIHOST_TAKES_PLACE_OF";
/// Says to a host that a container's first process waits for it, and ends with it.
pub const REAPED: &str = "AIHOST_REAPED";

/// The environment as it was when it was taken.
#[derive(Clone, Debug, Default)]
pub struct Env {
    variables: BTreeMap<String, String>,
    current_dir: PathBuf,
    executable: Option<PathBuf>,
    find_devices: Option<fn() -> Vec<Device>>,
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
    pub fn finding_devices(self, find: fn() -> Vec<Device>) -> Self {
        Self { find_devices: Some(find), ..self }
    }

    /// What `devices: auto` stands for.
    pub fn devices(&self) -> Vec<Device> {
        self.find_devices.map_or_else(|| vec![Device::Cpu], |find| find())
    }

    /// `CUDA_VISIBLE_DEVICES`: the graphics cards that workers see. Set to nothing hides all, so this is not [`Self::named`].
    pub fn visible_gpus(&self) -> Option<&str> {
        self.variables.get("CUDA_VISIBLE_DEVICES").map(String::as_str)
    }

    /// `LD_LIBRARY_PATH`: where the system looks for libraries first.
    pub fn library_path(&self) -> Option<&str> {
        self.variables.get("LD_LIBRARY_PATH").map(String::as_str)
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

    /// Whether a shell would find a program of this name: by `PATH`.
    pub fn has_program(&self, name: &str) -> bool {
        let folders = std::env::split_paths(self.named("PATH").unwrap_or_default());
        let is_program = |found: std::fs::Metadata| {
            found.is_file() && std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o111 != 0
        };
        folders.map(|folder| folder.join(name)).any(|path| std::fs::metadata(path).is_ok_and(is_program))
    }

    /// `TMPDIR`: where what is needed for a while lies; else /tmp.
    pub fn temporary_folder(&self) -> PathBuf {
        self.current_dir.join(self.named("TMPDIR").unwrap_or("/tmp"))
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

    /// [`TAKES_PLACE_OF`]: the process.
    pub fn takes_place_of(&self) -> Option<u32> {
        self.named(TAKES_PLACE_OF)?.parse().ok()
    }

    /// [`REAPED`].
    pub fn is_reaped(&self) -> bool {
        self.named(REAPED).is_some()
    }

    /// `AIHOST_LOG`, else `RUST_LOG`: the log filter.
    pub fn log_filter(&self) -> Option<&str> {
        self.named("AIHOST_LOG").or_else(|| self.named("RUST_LOG"))
    }

    /// `NO_COLOR`: the log has no colours, whatever it is written to.
    pub fn wants_no_colour(&self) -> bool {
        self.named("NO_COLOR").is_some()
    }

    /// `AIHOST_API_KEY`: the key that client commands send to the server of models.yaml, before the keys there.
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

    /// `HF_HUB_OFFLINE`: nothing is asked of the hub, nor of anybody else that files are fetched from.
    pub fn is_offline(&self) -> bool {
        let says = self.named("HF_HUB_OFFLINE").unwrap_or_default().to_ascii_lowercase();
        matches!(says.as_str(), "1" | "on" | "yes" | "true")
    }

    /// The same, with nobody to be asked.
    pub fn offline(mut self) -> Self {
        self.variables.insert("HF_HUB_OFFLINE".to_owned(), "1".to_owned());
        self
    }

    /// `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME`, else `~/.cache/huggingface/hub`: where the hub's own programs keep what they
    /// fetched.
    pub fn hub_cache(&self) -> Option<PathBuf> {
        let named = self.named("HF_HUB_CACHE").or_else(|| self.named("HUGGINGFACE_HUB_CACHE")).map(PathBuf::from);
        let below_home = || self.named("HF_HOME").map(|home| PathBuf::from(home).join("hub"));
        let usual = || self.home_folder("XDG_CACHE_HOME", ".cache").map(|cache| cache.join("huggingface/hub"));
        named.or_else(below_home).or_else(usual).map(|folder| self.current_dir.join(folder))
    }

    /// Where LM Studio keeps its models, newer versions first.
    pub fn lm_studio_folders(&self) -> Vec<PathBuf> {
        let home = self.named("HOME").map(PathBuf::from);
        let below = |home: PathBuf| [".lmstudio/models", ".cache/lm-studio/models"].map(|folder| home.join(folder));
        home.into_iter().flat_map(below).collect()
    }

    /// `PIP_INDEX_URL` and the like: an option of pip by its name, `index-url`.
    pub fn pip_option(&self, option: &str) -> Option<&str> {
        self.named(&format!("PIP_{}", option.replace('-', "_").to_ascii_uppercase()))
    }

    /// Where pip looks for its settings, later ones outweighing earlier ones: the machine's, the user's, those of an active
    /// `VIRTUAL_ENV`. `PIP_CONFIG_FILE` stands for the user's; named `/dev/null`, it turns all of them off.
    pub fn pip_config_files(&self) -> Vec<PathBuf> {
        let named = self.named("PIP_CONFIG_FILE").map(PathBuf::from);
        if named.as_deref() == Some(Path::new("/dev/null")) {
            return Vec::new();
        }
        let machine =
            self.named("XDG_CONFIG_DIRS").unwrap_or("/etc/xdg").split(':').filter(|folder| !folder.is_empty());
        let mut files: Vec<PathBuf> = machine.map(|folder| PathBuf::from(folder).join("pip/pip.conf")).collect();
        files.push(PathBuf::from("/etc/pip.conf"));
        if named.is_none() {
            files.extend(self.named("HOME").map(|home| PathBuf::from(home).join(".pip/pip.conf")));
            files.extend(self.config_home().map(|home| home.join("pip/pip.conf")));
        }
        files.extend(self.named("VIRTUAL_ENV").map(|folder| PathBuf::from(folder).join("pip.conf")));
        files.extend(named);
        files
    }

    /// `http_proxy`, `https_proxy` and `all_proxy`, in small or capital letters: the proxy for a scheme, `http` or `https`.
    pub fn proxy(&self, scheme: &str) -> Option<&str> {
        self.either_case(&format!("{scheme}_proxy")).or_else(|| self.either_case("all_proxy"))
    }

    /// `no_proxy`, in small or capital letters: the hosts that are asked directly.
    pub fn no_proxy(&self) -> Option<&str> {
        self.either_case("no_proxy")
    }

    /// `SSL_CERT_FILE`: the certificate authorities that are trusted, instead of the system's.
    pub fn ca_file(&self) -> Option<PathBuf> {
        self.named("SSL_CERT_FILE").map(PathBuf::from)
    }

    /// `SSL_CERT_DIR`: folders of such, between colons.
    pub fn ca_folders(&self) -> Vec<PathBuf> {
        let folders = self.named("SSL_CERT_DIR").unwrap_or_default().split(':');
        folders.filter(|folder| !folder.is_empty()).map(PathBuf::from).collect()
    }

    /// `XDG_CONFIG_HOME`, else `~/.config`.
    pub fn config_home(&self) -> Option<PathBuf> {
        self.home_folder("XDG_CONFIG_HOME", ".config")
    }

    /// `XDG_DATA_HOME`, else `~/.local/share`.
    pub fn data_home(&self) -> Option<PathBuf> {
        self.home_folder("XDG_DATA_HOME", ".local/share")
    }

    /// What says where packages are fetched from: proxies, certificates, and the settings of installers (`PIP_*`, `UV_*`). For
    /// the programs that plugins start to prepare a model.
    pub fn fetching(&self) -> BTreeMap<String, String> {
        let says = |name: &str| {
            let prefixed = FETCHING_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            prefixed || FETCHING.iter().any(|wanted| name.eq_ignore_ascii_case(wanted))
        };
        let kept = self.variables.iter().filter(|(name, _)| says(name));
        let mut kept: BTreeMap<String, String> = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
        if self.is_offline() {
            kept.extend(OFFLINE.map(|name| (name.to_owned(), "1".to_owned())));
        }
        kept
    }

    fn either_case(&self, name: &str) -> Option<&str> {
        self.named(name).or_else(|| self.named(&name.to_ascii_uppercase()))
    }

    fn home_folder(&self, variable: &str, below_home: &str) -> Option<PathBuf> {
        self.named(variable)
            .map(PathBuf::from)
            .or_else(|| self.named("HOME").map(|home| PathBuf::from(home).join(below_home)))
    }
}
