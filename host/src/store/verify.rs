//! Weights against the digests that models.yaml wants of them: hashed when they are first used, once for each file as it is.
//!
//! A large file takes minutes, so each is hashed on a thread of its own that gives way to others, can be stopped, and goes on
//! where it was stopped.

use std::collections::{BTreeSet, HashMap};
use std::fs::{File, Metadata};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::digest::{Digests, exact, hex};
use crate::config::{ModelConfig, Paths, Sharing};
use crate::domain::{ByteSize, Failure, FailureKind, ModelId};

/// What is done with files before a start, as it is told.
pub const COPYING: &str = "copying";
const VERIFYING: &str = "verifying";

/// Bytes read at once, after which it is seen whether to go on.
const BLOCK_BYTES: usize = 4 << 20;
/// How much it gives way: others who are ready to run do so first.
const NICENESS: i32 = 10;
/// How often one that waits for another that hashes the same file looks whether it is to stop.
const LOCK_POLL: Duration = Duration::from_millis(100);

/// What was found out, and what is under way.
#[derive(Debug)]
pub struct Verifier {
    digests: Digests,
    sharing: Sharing,
    /// By device and number of the file.
    files: Mutex<HashMap<(u64, u64), SharedHashed>>,
}

/// Whoever hashes the file has it locked.
type SharedHashed = Arc<Mutex<Hashed>>;

/// How far a file is hashed.
#[derive(Debug, Default)]
struct Hashed {
    begun: Option<Begun>,
    /// As it was, and its digest: also where nothing can be noted in the state folder.
    found: Option<(String, String)>,
}

/// A file that was hashed to this point when it was stopped.
struct Begun {
    exact: String,
    done: u64,
    hasher: Sha256,
}

impl std::fmt::Debug for Begun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Begun").field("done", &self.done).finish_non_exhaustive()
    }
}

/// One check of a model's files, and the copying before it, for those who look at it and who may stop it.
#[derive(Debug, Default)]
pub struct Verification {
    done: AtomicU64,
    total: AtomicU64,
    is_copying: AtomicBool,
    stopped: AtomicBool,
}

impl Verification {
    /// What is done with its files now.
    pub fn step(&self) -> &'static str {
        if self.is_copying.load(Ordering::Relaxed) { COPYING } else { VERIFYING }
    }

    /// Share of the bytes that are hashed or copied, in thousandths; nothing while no file has to be.
    pub fn progress(&self) -> Option<u32> {
        let (done, total) = (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        let thousandths = (u128::from(done) * 1000).checked_div(u128::from(total))?;
        Some(thousandths.min(1000) as u32)
    }

    /// Stops it soon. What was hashed so far is kept.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Bytes are copied, or no longer: what is counted begins anew.
    pub(super) fn copies(&self, is_copying: bool) {
        self.total.store(0, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
        self.is_copying.store(is_copying, Ordering::Relaxed);
    }

    /// So many bytes more are to be read.
    pub(super) fn adds(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many more were.
    pub(super) fn read(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

/// A file of a model, and the digest that it is to have.
#[derive(Clone, Debug)]
struct Wanted {
    path: PathBuf,
    sha256: Option<String>,
    /// Whether it can be fetched.
    is_fetched: bool,
}

impl Verifier {
    /// One that remembers in the state folder.
    pub fn new(paths: &Paths) -> Self {
        Self { digests: Digests::of(&paths.state), sharing: paths.sharing, files: Mutex::default() }
    }

    /// Checks that nobody else may change the files of a model, and that each that has a digest in models.yaml has that one,
    /// but for those that were checked as they are. `hashed`: roles whose bytes were hashed on their way into a copy.
    ///
    /// # Errors
    /// Others may change a file, it has another digest or cannot be read, or the check was stopped.
    pub async fn verify(
        self: Arc<Self>,
        model: &ModelConfig,
        hashed: &BTreeSet<String>,
        check: Arc<Verification>,
    ) -> Result<(), Failure> {
        let wanted: Vec<Wanted> = model
            .files
            .iter()
            .map(|(role, file)| Wanted {
                path: file.path.clone(),
                sha256: file.sha256.clone().filter(|_| !hashed.contains(role)),
                is_fetched: !file.sources.is_empty(),
            })
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let id = model.id.clone();
        let (answer, checked) = oneshot::channel();
        let work = move || {
            // Without the right to give way it takes its share.
            let _ = rustix::process::nice(NICENESS);
            // Whoever asked may have gone.
            let _ = answer.send(self.check_all(&id, &wanted, &check));
        };
        let gone = |why: String| {
            Failure::new(FailureKind::Internal, format!("model `{}`: its files cannot be checked: {why}", model.id))
        };
        thread::Builder::new().name("verify".into()).spawn(work).map_err(|e| gone(e.to_string()))?;
        checked.await.map_err(|e| gone(e.to_string()))?
    }

    fn check_all(&self, model: &ModelId, wanted: &[Wanted], check: &Verification) -> Result<(), Failure> {
        let unreadable = |wanted: &Wanted, e: std::io::Error| {
            let message = format!("model `{model}`: its file {} cannot be read: {e}", wanted.path.display());
            Failure::new(FailureKind::NotUsable, message)
        };
        let mut unknown = Vec::new();
        for wanted in wanted {
            self.sharing.check_file(&wanted.path).map_err(|why| {
                Failure::new(FailureKind::NotUsable, format!("model `{model}` is not loaded: its file {why}"))
            })?;
            let Some(sha256) = &wanted.sha256 else { continue };
            let found = std::fs::metadata(&wanted.path).map_err(|e| unreadable(wanted, e))?;
            match self.remembered(&found) {
                Some(digest) => wanted.compare(model, sha256, &digest)?,
                None => {
                    let bytes = found.len();
                    check.adds(bytes);
                    unknown.push((wanted, sha256, bytes));
                }
            }
        }
        for (wanted, sha256, bytes) in unknown {
            let path = wanted.path.display();
            tracing::info!(%model, "verifying {path} ({}), which was not hashed as it is now", ByteSize(bytes));
            let begun = Instant::now();
            let found = self.hash(&wanted.path, check).map_err(|e| unreadable(wanted, e))?;
            let Some(found) = found else {
                return Err(Failure::new(FailureKind::Cancelled, format!("nobody waits for `{model}` any more")));
            };
            wanted.compare(model, sha256, &found)?;
            tracing::info!(%model, "verified {path} in {:.1} s", begun.elapsed().as_secs_f32());
        }
        Ok(())
    }

    fn remembered(&self, found: &Metadata) -> Option<String> {
        self.digests.remembered_of(found).or_else(|| {
            let file = self.files.lock().get(&(found.dev(), found.ino())).cloned()?;
            let hashed = file.try_lock()?;
            hashed.found.clone().filter(|(was, _)| *was == exact(found)).map(|(_, digest)| digest)
        })
    }

    /// The digest of the file; nothing if it was stopped. Of several who ask for the same file one reads it.
    fn hash(&self, path: &Path, check: &Verification) -> std::io::Result<Option<String>> {
        let mut file = File::open(path)?;
        let before = file.metadata()?;
        let shared = Arc::clone(self.files.lock().entry((before.dev(), before.ino())).or_default());
        let mut hashed = loop {
            if check.is_stopped() {
                return Ok(None);
            }
            if let Some(hashed) = shared.try_lock_for(LOCK_POLL) {
                break hashed;
            }
        };
        if let Some((_, digest)) = hashed.found.as_ref().filter(|(was, _)| *was == exact(&before)) {
            check.read(before.len());
            return Ok(Some(digest.clone()));
        }
        let (mut done, mut hasher) = match hashed.begun.take().filter(|begun| begun.exact == exact(&before)) {
            Some(begun) => (begun.done, begun.hasher),
            None => (0, Sha256::new()),
        };
        file.seek(SeekFrom::Start(done))?;
        check.read(done);
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            if check.is_stopped() {
                hashed.begun = Some(Begun { exact: exact(&before), done, hasher });
                return Ok(None);
            }
            match file.read(&mut block) {
                Ok(0) => break,
                Ok(read) => {
                    hasher.update(&block[..read]);
                    done += read as u64;
                    check.read(read as u64);
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if exact(&file.metadata()?) != exact(&before) {
            return Err(std::io::Error::other("it changed while it was hashed; send the request again"));
        }
        let digest = hex(&hasher.finalize());
        self.digests.remember(&before, &digest);
        hashed.found = Some((exact(&before), digest.clone()));
        Ok(Some(digest))
    }
}

impl Wanted {
    fn compare(&self, model: &ModelId, wanted: &str, found: &str) -> Result<(), Failure> {
        if found == wanted {
            return Ok(());
        }
        let (kind, advice) = match self.is_fetched {
            true => (FailureKind::NotPulled, format!("fetch it again with `aihost models pull {model}`")),
            false => (FailureKind::NotUsable, "put the right file there".to_owned()),
        };
        let message = format!(
            "model `{model}` is not loaded: its file {} has the sha256 {found}, where models.yaml wants {wanted}; {advice}, or correct `sha256:`",
            self.path.display()
        );
        Err(Failure::new(kind, message))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{Env, FileConfig, Selection, parse};

    fn model(path: &Path, sha256: &str) -> ModelConfig {
        let text = "models: {m: {type: text, plugin: p}}";
        let config = parse(text, Path::new("/models.yaml"), &Selection::default(), &Env::default()).unwrap();
        let mut model = config.models[&ModelId::from("m")].clone();
        let file = FileConfig { sources: Vec::new(), sha256: Some(sha256.to_owned()), path: path.to_owned() };
        model.files = BTreeMap::from([("model".to_owned(), file)]);
        model
    }

    fn digest(bytes: &[u8]) -> String {
        hex(&Sha256::digest(bytes))
    }

    fn verifier(folder: &tempfile::TempDir) -> Arc<Verifier> {
        let digests = Digests::of(&folder.path().join("state"));
        Arc::new(Verifier { digests, sharing: Sharing::Refused, files: Mutex::default() })
    }

    struct World {
        folder: tempfile::TempDir,
        verifier: Arc<Verifier>,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let verifier = verifier(&folder);
            Self { folder, verifier }
        }

        fn file(&self) -> PathBuf {
            self.folder.path().join("weights.gguf")
        }

        /// What comes of it, and how many bytes had to be hashed.
        async fn verify(&self, wanted: &str) -> (Result<(), Failure>, u64) {
            let check = Arc::new(Verification::default());
            let verified = Arc::clone(&self.verifier)
                .verify(&model(&self.file(), wanted), &BTreeSet::new(), Arc::clone(&check))
                .await;
            (verified, check.total.load(Ordering::Relaxed))
        }
    }

    #[tokio::test]
    async fn a_file_is_hashed_once_as_it_is() {
        let world = World::new();
        std::fs::write(world.file(), b"right").unwrap();
        let right = digest(b"right");
        assert_eq!(world.verify(&right).await, (Ok(()), 5));
        assert_eq!(world.verify(&right).await, (Ok(()), 0));
        // By the host after this one, too.
        let next = World { verifier: verifier(&world.folder), ..world };
        assert_eq!(next.verify(&right).await, (Ok(()), 0));
        std::fs::write(next.file(), b"other!").unwrap();
        assert_eq!(next.verify(&right).await.1, 6);
    }

    #[tokio::test]
    async fn another_content_is_refused_with_both_digests_and_what_to_do() {
        let world = World::new();
        std::fs::write(world.file(), b"wrong").unwrap();
        let (wanted, found) = (digest(b"right"), digest(b"wrong"));
        for bytes in [5, 0] {
            let (refused, hashed) = world.verify(&wanted).await;
            let message = refused.unwrap_err().message;
            for part in [&wanted, &found, &world.file().display().to_string(), "put the right file there"] {
                assert!(message.contains(part), "{message}");
            }
            assert_eq!(hashed, bytes, "what is known to be wrong is not hashed again");
        }
    }

    #[tokio::test]
    async fn what_was_stopped_goes_on_where_it_was() {
        let world = World::new();
        let content = vec![7; 3 * BLOCK_BYTES];
        std::fs::write(world.file(), &content).unwrap();
        let wanted = digest(&content);
        let stopped = Arc::new(Verification::default());
        stopped.stop();
        let verifier = Arc::clone(&world.verifier);
        let ended = verifier.verify(&model(&world.file(), &wanted), &BTreeSet::new(), stopped).await;
        assert_eq!(ended.unwrap_err().kind, FailureKind::Cancelled);
        // As one that was stopped in the middle leaves it.
        let found = std::fs::metadata(world.file()).unwrap();
        let mut hasher = Sha256::new();
        hasher.update(&content[..BLOCK_BYTES]);
        let begun = Begun { exact: exact(&found), done: BLOCK_BYTES as u64, hasher };
        let hashed = Hashed { begun: Some(begun), found: None };
        world.verifier.files.lock().insert((found.dev(), found.ino()), Arc::new(Mutex::new(hashed)));
        let check = Arc::new(Verification::default());
        let verified = Arc::clone(&world.verifier)
            .verify(&model(&world.file(), &wanted), &BTreeSet::new(), Arc::clone(&check))
            .await;
        assert_eq!((verified, check.progress()), (Ok(()), Some(1000)));
    }

    #[tokio::test]
    async fn of_two_who_want_a_file_one_reads_it() {
        let world = World::new();
        std::fs::write(world.file(), b"right").unwrap();
        let right = digest(b"right");
        let (first, second) = tokio::join!(world.verify(&right), world.verify(&right));
        assert!(first.0.is_ok() && second.0.is_ok());
    }
}
