//! pip's settings, as far as they say where packages are and how to get there: its variables, then its files. pip itself
//! is not needed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;

use crate::config::{Env, shown_url};

/// Where packages are when nothing says otherwise.
const PYPI: &str = "https://pypi.org/simple";
/// Sections of a pip.conf that bear upon fetching, later ones outweighing earlier ones.
const SECTIONS: [&str; 3] = ["global", "install", "download"];

/// A place that may have a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) enum Place {
    /// A package index.
    Index(Url),
    /// A page of links.
    Page(Url),
    /// A folder of wheels on this machine.
    Folder(PathBuf),
}

/// Shows no password.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(url) | Self::Page(url) => f.write_str(&shown_url(url.as_str())),
            Self::Folder(folder) => folder.display().fmt(f),
        }
    }
}

/// Where packages are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) struct Settings {
    /// What `find-links` names, then `index-url`, then each `extra-index-url`; no index with `no-index`.
    pub(in crate::store) places: Vec<Place>,
    /// `proxy`: goes before those of the environment.
    pub(in crate::store) proxy: Option<String>,
    /// `cert`: a PEM file of the authorities to trust.
    pub(in crate::store) cert: Option<PathBuf>,
    /// `timeout`: how long an index may be silent, where it is known to be slow.
    pub(in crate::store) timeout: Option<Duration>,
}

impl Settings {
    /// As the environment and pip's files say.
    pub(in crate::store) fn read(env: &Env) -> Result<Self, String> {
        let mut options = Options::default();
        for file in env.pip_config_files() {
            match std::fs::read_to_string(&file) {
                Ok(text) => options.add(&text),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(format!("pip's settings in {} cannot be read: {error}", file.display())),
            }
        }
        let option = |name: &str| env.pip_option(name).or_else(|| options.get(name)).map(str::to_owned);
        let mut places = Vec::new();
        for link in option("find-links").unwrap_or_default().split_whitespace() {
            places.extend(linked(link, env));
        }
        if !option("no-index").is_some_and(|value| is_true(&value)) {
            places.push(index("index-url", option("index-url").as_deref().unwrap_or(PYPI))?);
            for extra in option("extra-index-url").unwrap_or_default().split_whitespace() {
                places.push(index("extra-index-url", extra)?);
            }
        }
        let cert = option("cert").map(|file| env.current_dir().join(file));
        let seconds = option("timeout").or_else(|| option("default-timeout"));
        let timeout = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds.parse().ok()?).ok());
        Ok(Self { places, proxy: option("proxy"), cert, timeout })
    }
}

/// What pip's files say: section and option.
#[derive(Debug, Default)]
struct Options(BTreeMap<(String, String), String>);

impl Options {
    /// Of the sections that bear upon fetching, the last that has it.
    fn get(&self, option: &str) -> Option<&str> {
        let of = |section: &&str| self.0.get(&((*section).to_owned(), option.to_owned()));
        SECTIONS.iter().rev().find_map(of).map(String::as_str)
    }

    /// Adds a file's: `[section]`, `option = value` or `option: value`, values going on in indented lines, comments in lines
    /// of their own.
    fn add(&mut self, text: &str) {
        let mut section = String::new();
        let mut last: Option<(String, String)> = None;
        for line in text.lines() {
            let words = line.trim();
            if words.is_empty() || words.starts_with(['#', ';']) {
                continue;
            }
            if let (true, Some(key)) = (line.starts_with([' ', '\t']), &last) {
                let value = self.0.entry(key.clone()).or_default();
                *value = format!("{value}\n{words}").trim().to_owned();
            } else if let Some(name) = words.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                section = name.to_owned();
                last = None;
            } else {
                let (option, value) = words.split_once(['=', ':']).unwrap_or((words, ""));
                let key = (section.clone(), option.trim().to_lowercase().replace('_', "-"));
                self.0.insert(key.clone(), value.trim().to_owned());
                last = Some(key);
            }
        }
        self.0.retain(|_, value| !value.is_empty());
    }
}

fn is_true(value: &str) -> bool {
    matches!(value.to_lowercase().as_str(), "1" | "y" | "yes" | "t" | "true" | "on")
}

fn index(option: &str, typed: &str) -> Result<Place, String> {
    web_address(typed).map(Place::Index).ok_or_else(|| {
        let shown = shown_url(typed);
        format!("pip's option `{option}` is `{shown}`, which is no http(s) address; write it like https://host/simple")
    })
}

/// A page, or a folder; one that is not there has nothing.
fn linked(typed: &str, env: &Env) -> Option<Place> {
    let folder = || env.current_dir().join(typed.strip_prefix("file://").unwrap_or(typed));
    web_address(typed).map(Place::Page).or_else(|| Some(folder()).filter(|folder| folder.is_dir()).map(Place::Folder))
}

fn web_address(typed: &str) -> Option<Url> {
    Url::parse(typed).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

#[cfg(test)]
mod tests {
    use super::{Options, Place, Settings};
    use crate::config::Env;

    fn options(texts: &[&str]) -> Options {
        let mut options = Options::default();
        texts.iter().for_each(|text| options.add(text));
        options
    }

    /// The settings of a home whose pip.conf has this text.
    fn settings(pip_conf: &str, variables: &[(&str, &str)]) -> Result<Settings, String> {
        let home = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(home.path().join(".config/pip")).expect("created");
        std::fs::write(home.path().join(".config/pip/pip.conf"), pip_conf).expect("written");
        let path = home.path().display().to_string();
        Settings::read(&Env::with("/here", [("HOME", path.as_str())].into_iter().chain(variables.iter().copied())))
    }

    /// With their passwords.
    fn places(settings: &Settings) -> Vec<String> {
        let shown = |place: &Place| match place {
            Place::Index(url) => url.to_string(),
            other => format!("{other:?}"),
        };
        settings.places.iter().map(shown).collect()
    }

    #[test]
    fn later_files_and_nearer_sections_outweigh() {
        let machine = "# a comment\n[global]\nindex-url = https://machine/simple\nproxy: http://p:1\n";
        let user = "[install]\nindex_url=https://user/simple\n[global]\nextra-index-url =\n    https://a/simple\n    ; not this\n    https://b/simple\ncert =\n";
        let both = options(&[machine, user]);
        assert_eq!(both.get("index-url"), Some("https://user/simple"));
        assert_eq!(both.get("extra-index-url"), Some("https://a/simple\nhttps://b/simple"));
        assert_eq!((both.get("proxy"), both.get("cert")), (Some("http://p:1"), None));
        assert_eq!(options(&["[freeze]\nindex-url = https://x\n"]).get("index-url"), None, "another command's");
    }

    #[test]
    fn variables_outweigh_files() {
        let file = "[global]\nindex-url = https://file/simple\nextra-index-url = https://extra/simple\nproxy = http://p:1\ncert = ca.pem\ntimeout = 90\n";
        let from_file = settings(file, &[]).expect("read");
        assert_eq!(places(&from_file), ["https://file/simple", "https://extra/simple"]);
        assert_eq!(from_file.proxy.as_deref(), Some("http://p:1"));
        assert_eq!(from_file.cert.as_deref(), Some(std::path::Path::new("/here/ca.pem")));
        assert_eq!(from_file.timeout, Some(std::time::Duration::from_secs(90)));
        let variables = [
            ("PIP_INDEX_URL", "http://u:p@var/simple"),
            ("PIP_EXTRA_INDEX_URL", "http://c/ http://d/"),
            ("PIP_PROXY", "q:2"),
        ];
        let from_variables = settings(file, &variables).expect("read");
        assert_eq!(places(&from_variables), ["http://u:p@var/simple", "http://c/", "http://d/"]);
        assert_eq!(from_variables.proxy.as_deref(), Some("q:2"));
        let empty = settings(file, &[("PIP_INDEX_URL", "")]).expect("read");
        assert_eq!(places(&empty)[0], "https://file/simple", "a variable set to nothing is not set");
        assert_eq!(places(&settings(file, &[("PIP_CONFIG_FILE", "/dev/null")]).expect("read")), [super::PYPI]);
        let links = format!("/absent https://h/links {}", env!("CARGO_MANIFEST_DIR"));
        let offline = settings(file, &[("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", &links)]).expect("read");
        let page = Place::Page(reqwest::Url::parse("https://h/links").expect("a URL"));
        assert_eq!(offline.places, [page, Place::Folder(env!("CARGO_MANIFEST_DIR").into())]);
    }

    #[test]
    fn an_address_that_is_none_is_told_without_its_password() {
        for wrong in ["file://localhost/srv/simple", "ftp://user:pa55@h/simple", "simple"] {
            let error = settings("", &[("PIP_INDEX_URL", wrong)]).expect_err("refused");
            assert!(error.contains("`index-url`") && error.contains("https://host/simple"), "{error}");
            assert!(!error.contains("pa55"), "{error}");
        }
    }
}
