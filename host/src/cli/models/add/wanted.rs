//! What `aihost models add` was pointed at, as it was typed.

use std::path::PathBuf;

use crate::cli::failure::CliError;
use crate::config::Env;

/// How a repository of the hub is written.
const HUB: &str = "hf:";
/// The hub as people copy it from a browser.
const HUB_SITES: [&str; 2] = ["https://huggingface.co/", "https://hf.co/"];
/// What is understood, for whoever typed something else.
const UNDERSTOOD: &str =
    "write hf:ORG/REPO, hf:ORG/REPO:QUANTISATION, a GGUF file or a folder on this machine, or the URL of a GGUF file";

/// What is to become an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A repository of the hub.
    Hub(InHub),
    /// A file behind a URL.
    Url(String),
    /// A file or folder of this machine.
    Here(PathBuf),
}

/// A repository of the hub, and what of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct InHub {
    /// `org/name`
    pub(super) repo: String,
    /// Branch, tag or commit, if one was named.
    pub(super) revision: Option<String>,
    /// A quantisation by its name, or the name of a file.
    pub(super) quantisation: Option<String>,
    /// A file by its path.
    pub(super) file: Option<String>,
}

impl Wanted {
    /// Reads it. Whether it is there is for others to say.
    ///
    /// # Errors
    /// It is nothing that is understood.
    pub(super) fn parse(typed: &str, env: &Env) -> Result<Self, CliError> {
        if let Some(rest) = typed.strip_prefix(HUB) {
            return in_hub(rest.trim_start_matches('/'), typed);
        }
        let own = env.hf_endpoint().map(|hub| format!("{}/", hub.trim_end_matches('/')));
        let mut sites = HUB_SITES.iter().copied().chain(own.as_deref());
        if let Some(rest) = sites.find_map(|site| typed.strip_prefix(site)) {
            return of_site(rest.split(['?', '#']).next().unwrap_or(rest), typed);
        }
        if typed.starts_with("https://") || typed.starts_with("http://") {
            return Ok(Self::Url(typed.to_owned()));
        }
        let path = env.current_dir().join(typed);
        if path.exists() {
            return Ok(Self::Here(path));
        }
        let names: Vec<&str> = typed.split('/').collect();
        let is_repository = names.len() == 2 && names.iter().all(|name| !name.is_empty() && !name.starts_with('.'));
        Err(match is_repository {
            true => CliError::failed(format!("there is no {typed} here"))
                .hint(format!("a repository of the hub is written `hf:{typed}`")),
            false => CliError::failed(format!("there is no {typed} here")).hint(UNDERSTOOD),
        })
    }
}

/// `ORG/REPO`, with `/FILE`, `@REVISION` and `:QUANTISATION` behind it.
fn in_hub(rest: &str, typed: &str) -> Result<Wanted, CliError> {
    let (rest, quantisation) = cut(rest, ':');
    let (rest, revision) = cut(&rest, '@');
    let (quantisation, late) = quantisation.map_or((None, None), |text| {
        let (quantisation, revision) = cut(&text, '@');
        (Some(quantisation), revision)
    });
    let mut names = rest.splitn(3, '/');
    let (org, name, file) = (names.next().unwrap_or_default(), names.next().unwrap_or_default(), names.next());
    let is_empty = |text: &Option<String>| text.as_ref().is_some_and(String::is_empty);
    let revision = revision.or(late);
    if org.is_empty() || name.is_empty() || is_empty(&quantisation) || is_empty(&revision) || file == Some("") {
        return Err(CliError::usage(format!("{typed} names no repository of the hub")).hint(UNDERSTOOD));
    }
    if file.is_some() && quantisation.is_some() {
        return Err(CliError::usage(format!("{typed} names a file and a quantisation")).hint("name one of them"));
    }
    Ok(Wanted::Hub(InHub { repo: format!("{org}/{name}"), revision, quantisation, file: file.map(str::to_owned) }))
}

/// What stands in the address of a page or file of the hub.
fn of_site(path: &str, typed: &str) -> Result<Wanted, CliError> {
    let names: Vec<&str> = path.trim_end_matches('/').splitn(5, '/').collect();
    let hub = match names.as_slice() {
        [org, name] => InHub { repo: format!("{org}/{name}"), ..InHub::default() },
        [org, name, "tree", revision] => {
            InHub { repo: format!("{org}/{name}"), revision: Some((*revision).to_owned()), ..InHub::default() }
        }
        [org, name, "resolve" | "blob", revision, file] => InHub {
            repo: format!("{org}/{name}"),
            revision: Some((*revision).to_owned()),
            file: Some((*file).to_owned()),
            quantisation: None,
        },
        _ => {
            return Err(
                CliError::usage(format!("{typed} is no repository of models, nor a file of one")).hint(UNDERSTOOD)
            );
        }
    };
    Ok(Wanted::Hub(hub))
}

fn cut(text: &str, at: char) -> (String, Option<String>) {
    match text.split_once(at) {
        Some((before, behind)) => (before.to_owned(), Some(behind.to_owned())),
        None => (text.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(typed: &str) -> Result<Wanted, String> {
        let env = Env::with("/", [("HF_ENDPOINT", "http://hub.invalid/")]);
        Wanted::parse(typed, &env).map_err(|error| format!("{error:?}"))
    }

    fn hub(
        repo: &str,
        revision: Option<&str>,
        quantisation: Option<&str>,
        file: Option<&str>,
    ) -> Result<Wanted, String> {
        let [revision, quantisation, file] = [revision, quantisation, file].map(|text| text.map(str::to_owned));
        Ok(Wanted::Hub(InHub { repo: repo.to_owned(), revision, quantisation, file }))
    }

    #[test]
    fn repositories_are_read_as_people_write_them() {
        assert_eq!(parse("hf:o/r"), hub("o/r", None, None, None));
        assert_eq!(parse("hf://o/r:Q4_K_M"), hub("o/r", None, Some("Q4_K_M"), None));
        assert_eq!(parse("hf:o/r@v1:Q8_0"), hub("o/r", Some("v1"), Some("Q8_0"), None));
        assert_eq!(parse("hf:o/r:Q8_0@v1"), hub("o/r", Some("v1"), Some("Q8_0"), None));
        assert_eq!(parse("hf:o/r/d/x.gguf"), hub("o/r", None, None, Some("d/x.gguf")));
        assert_eq!(parse("https://huggingface.co/o/r/"), hub("o/r", None, None, None));
        assert_eq!(parse("https://huggingface.co/o/r/tree/v1"), hub("o/r", Some("v1"), None, None));
        let file = hub("o/r", Some("main"), None, Some("d/x.gguf"));
        assert_eq!(parse("https://huggingface.co/o/r/blob/main/d/x.gguf?download=true"), file);
        assert_eq!(parse("http://hub.invalid/o/r/resolve/main/d/x.gguf"), file);
        assert_eq!(parse("https://h/x.gguf"), Ok(Wanted::Url("https://h/x.gguf".to_owned())));
        assert_eq!(parse("/"), Ok(Wanted::Here("/".into())));
    }

    #[test]
    fn what_is_none_is_told_with_what_to_write() {
        for (typed, words) in [
            ("hf:o", "names no repository"),
            ("hf:o/r:", "names no repository"),
            ("hf:o/r/x.gguf:Q4_0", "name one of them"),
            ("https://huggingface.co/datasets/o/r", "no repository of models"),
            ("org/repo", "`hf:org/repo`"),
            ("nothing.gguf", "write hf:ORG/REPO"),
        ] {
            let told = parse(typed).unwrap_err();
            assert!(told.contains(words), "{typed}: {told}");
        }
    }
}
