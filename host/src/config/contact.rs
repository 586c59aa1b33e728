//! What a command that talks to a running server, or looks at plugins, needs of models.yaml: where the server listens, the keys
//! for it, and the folders. A host goes on serving while its file is edited and wrong, so this is read from the sections that can
//! be read, whatever the others say.

use std::net::SocketAddr;
use std::sync::Arc;

use super::resolve::Context;
use super::{ApiKey, Config, ConfigError, Env, Paths, Selection, extent, find_file, parse, raw, read_file, resolve};

/// The sections that say it.
const SECTIONS: [&str; 6] = ["listen", "api_keys", "plugins_dir", "models_dir", "state_dir", "allow_shared_folders"];

/// How a server is reached.
#[derive(Debug)]
pub struct Contact {
    /// Where it listens, if it was started with this file.
    pub listen: SocketAddr,
    /// What lets somebody in there.
    pub api_keys: Vec<Arc<ApiKey>>,
    /// Where plugins, models and what a host knows lie.
    pub paths: Paths,
    /// What is wrong in the file.
    pub problem: Option<ConfigError>,
}

impl Contact {
    /// As a file says that is right.
    pub fn of(config: &Config) -> Self {
        let (api_keys, paths) = (config.api_keys.clone(), config.paths.clone());
        Self { listen: config.listen, api_keys, paths, problem: None }
    }

    /// Reads it from the models.yaml that commands use.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn find(selection: &Selection, env: &Env) -> Result<Self, ConfigError> {
        let file = find_file(selection.file.as_deref(), env)?;
        let text = read_file(&file)?;
        let problem = match parse(&text, &file, selection, env) {
            Ok(config) => return Ok(Self::of(&config)),
            Err(problem) => problem,
        };
        let text = readable(&text);
        let raw = raw::parse(&text).unwrap_or_default();
        let (listen, api_keys, paths) =
            resolve::contact(&raw, &Context { text: &text, file: &file, selection, env, running: None });
        Ok(Self { listen, api_keys, paths, problem: Some(problem) })
    }
}

/// Those of [`SECTIONS`] that are right by themselves. A section begins with its key at the beginning of a line.
fn readable(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text.trim_start_matches('\u{feff}');
    while !rest.is_empty() {
        let end = next_section(rest);
        let section = &rest[..end];
        let is_wanted = SECTIONS.iter().any(|key| section.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')));
        if is_wanted && extent::opens_too_much(section).is_none() && !extent::is_too_much(section) {
            let with_it = format!("{kept}{section}\n");
            if raw::parse(&with_it).is_ok() {
                kept = with_it;
            }
        }
        rest = &rest[end..];
    }
    kept
}

/// Where the section after the one that `text` begins with begins. A list may stand at the beginning of lines, too.
fn next_section(text: &str) -> usize {
    let begins =
        |at: &usize| text[*at..].starts_with(|first: char| first.is_alphabetic() || first == '_' || first == '"');
    text.match_indices('\n').map(|(at, _)| at + 1).find(begins).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contact(text: &str) -> Contact {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("models.yaml");
        std::fs::write(&file, text).unwrap();
        let selection = Selection { file: Some(file), listen: None };
        Contact::find(&selection, &Env::default()).unwrap()
    }

    fn keys(contact: &Contact) -> Vec<&str> {
        contact.api_keys.iter().flat_map(|key| &key.secrets).map(String::as_str).collect()
    }

    #[test]
    fn a_file_that_is_wrong_elsewhere_says_where_its_server_is() {
        for wrong in [
            "models: {a: {plugin: p",
            "models:\n  a: {plugin: p, type: txt}",
            "models:\n\ta: b",
            "models: [\n",
            "mdels: {}\n",
            "limits: {queue: -1}\nmodels: {}",
            "limits:\n  hold: [[[[\nmodels: {}",
            "",
            "listen: 127.0.0.1:1\n",
            "models: *nobody",
        ] {
            for text in [
                format!("listen: 127.0.0.1:9123\napi_keys:\n- a-good-long-key-for-tests\nstate_dir: /s\n{wrong}"),
                format!(
                    "state_dir: /s\nlisten: 9123\napi_keys:\n  - {{key: a-good-long-key-for-tests, models: [a]}}\n{wrong}"
                ),
                format!(
                    "{}\nlisten: 9123\nstate_dir: \"/s\"\napi_keys: a-good-long-key-for-tests\n",
                    wrong.replace("listen", "defaults")
                ),
            ] {
                let found = contact(&text);
                assert!(found.problem.is_some(), "{text}");
                assert_eq!(found.listen.port(), 9123, "{text}");
                assert_eq!(found.paths.state, std::path::Path::new("/s"), "{text}");
                assert_eq!(keys(&found), ["a-good-long-key-for-tests"], "{text}");
            }
        }
    }

    #[test]
    fn a_section_that_is_wrong_itself_costs_no_other() {
        let found = contact("listen: [\napi_keys: a-good-long-key-for-tests\nmodels: {}\n");
        assert_eq!((found.listen.port(), keys(&found)), (9000, vec!["a-good-long-key-for-tests"]));
        let found = contact("listen: 0.0.0.0:9123\napi_keys: {\nmodels: {}\n");
        assert_eq!((found.listen.port(), keys(&found).len()), (9123, 0));
    }

    #[test]
    fn a_file_that_is_right_is_read_as_ever() {
        let found = contact("listen: 9123\nmodels: {}\n");
        assert_eq!(found.listen.port(), 9123);
        assert!(found.problem.is_none());
    }
}
