//! An API key, checked: by which texts it is known, and what whoever sends one of them may do.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::domain::{Class, ModelId, named};

/// Characters below which a key can be guessed, or was not meant to be one.
const SECRET_CHARS_MIN: usize = 16;

/// An accepted API key.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// What logs call whoever sends it; never one of the secrets.
    pub name: String,
    /// The texts that are accepted, at least one: several where a variable holds several.
    pub secrets: Vec<String>,
    /// The kinds of routes that it opens.
    pub scopes: BTreeSet<Scope>,
    /// The models that there are for it; `None` means all.
    pub models: Option<BTreeSet<ModelId>>,
    /// How urgent its requests are at most.
    pub class: Class,
    /// How often it may ask.
    pub rate: Option<Rate>,
    /// Most of its requests at once.
    pub concurrency: Option<u32>,
}

named! {
    /// What a route is for.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub enum Scope {
        /// To ask models, and to see which there are.
        Use = "use",
        /// To load, park and unload them, and to look into the host.
        Operate = "operate",
        /// To scrape what is measured.
        Metrics = "metrics",
    }
}

/// So many requests in so much time, and at most so many in a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Requests, at least one.
    pub requests: u32,
    /// The time in which a burst of them is allowed again.
    pub per: Duration,
}

impl ApiKey {
    /// Why somebody else may hit upon it, or why it is hardly what was meant.
    pub(super) fn weakness(&self) -> Option<&'static str> {
        let any = |is: fn(&str) -> bool| self.secrets.iter().any(|secret| is(secret));
        if any(|secret| secret.starts_with('$')) {
            Some("is taken as it is typed, `$` and all; a variable is written `env:NAME`")
        } else if any(|secret| secret.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("env:"))) {
            Some("is taken as it is typed; a variable is written `env:NAME`, in small letters")
        } else if any(|secret| secret.len() < SECRET_CHARS_MIN) {
            Some("is shorter than 16 characters and can be guessed; `openssl rand -hex 24` prints a better one")
        } else {
            None
        }
    }
}

/// Shows no secret.
impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, secrets: _, scopes, models, class, rate, concurrency } = self;
        f.debug_struct("ApiKey")
            .field("name", name)
            .field("scopes", scopes)
            .field("models", models)
            .field("class", class)
            .field("rate", rate)
            .field("concurrency", concurrency)
            .finish_non_exhaustive()
    }
}
