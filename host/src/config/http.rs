//! How models are asked that answer HTTP themselves: where they are, and what is known of them. Checked.

use std::fmt;

/// What stands for the plugin of a model that others run.
pub const REMOTE: &str = "remote";

/// How a model that answers HTTP itself is asked. What holds for others is all of it absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpConfig {
    /// Where it answers, if this host does not run it (`url`).
    pub remote: Option<RemoteConfig>,
    /// How it is seen to work on what it has answered (`busy`).
    pub busy: Option<BusyProbe>,
    /// Beginnings of the paths of its own that are served below `/upstream/NAME` (`upstream_routes`).
    pub routes: Vec<String>,
    /// The name by which its engine knows it (`engine_model`).
    pub engine_model: Option<String>,
    /// Whether its engine has the path of its `endpoint:` itself, as servers have that are not written for this host.
    pub has_endpoint: bool,
}

/// A model that others run.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteConfig {
    /// Where it answers, each with a scheme and what stands before its paths; at least one.
    pub urls: Vec<String>,
    /// What it asks for.
    pub api_key: Option<Secret>,
    /// Requests at once at each of the addresses (`concurrency`).
    pub concurrency: u32,
    /// How often a request is sent again that had no answer (`retries`).
    pub retries: u32,
}

/// A text that is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// How an engine is asked whether it still has something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusyProbe {
    /// Path and query of an answer of JSON; `{id}` stands for the `id` that the engine gave to what it took.
    pub path: String,
    /// The members that say so, `a.b` for `b` in `a`.
    pub json: Vec<String>,
    /// The texts that mean so; none: whatever is not empty, null, false or 0.
    pub values: Vec<String>,
}

/// Engines whose words for it are known: their name, path, members and texts.
const KNOWN: [(&str, &str, &[&str], &[&str]); 3] = [
    ("comfyui", "/queue", &["queue_running", "queue_pending"], &[]),
    ("a1111", "/sdapi/v1/progress?skip_current_image=true", &["progress", "state.job_count"], &[]),
    ("sd-server", "/sdcpp/v1/jobs/{id}", &["status"], &["queued", "generating"]),
];

impl BusyProbe {
    /// That of an engine that is known by name.
    pub fn built_in(name: &str) -> Option<Self> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let (_, path, json, values) = KNOWN.into_iter().find(|(known, ..)| *known == name)?;
        Some(Self { path: path.to_owned(), json: owned(json), values: owned(values) })
    }

    /// The names of those engines.
    pub fn built_ins() -> impl Iterator<Item = &'static str> {
        KNOWN.into_iter().map(|(name, ..)| name)
    }
}
