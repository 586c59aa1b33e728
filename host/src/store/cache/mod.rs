//! Copies of weight files on a fast local disk (`cache_dir`), for models whose files lie on a slow one: a file is read once from
//! its beginning to its end, and opened from its copy from then on. Those that were used longest ago make room.
//!
//! Nothing here fails a load: where there is no copy, the original is opened, and it is told why. A copy counts for as long as
//! its original is the file that was read; what is half is never seen. It knows nothing of plugins and instances.

mod choose;
mod copying;
mod evict;
mod index;
mod lease;
mod links;
mod look;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use self::choose::{Chosen, Wanted};
use self::copying::{CopyError, copy};
use self::index::{CopyNote, entry_name, identity};
use self::lease::CopyId;
use self::state::{Claim, Claimed, State};
use super::digest::Digests;
use super::lock::Lock;
use super::verify::Verification;
use crate::config::{CacheConfig, ModelConfig, Paths, Sharing};
use crate::domain::{ByteSize, Failure, FailureKind, ModelId};
use crate::telemetry::unix_ms;
pub use lease::CacheLease;
pub use look::{entries, too_small};

/// What says whose the folder is.
const LOCK: &str = "host.lock";
/// How often one that waits for another that copies the same file looks whether it is to stop.
const COPY_POLL: Duration = Duration::from_millis(100);

/// The copies of a host.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    limit: Option<u64>,
    /// Folders that are others', to which no link may lead.
    others: Vec<PathBuf>,
    sharing: Sharing,
    digests: Digests,
    state: Mutex<State>,
    /// Held by who brings links up to date.
    links: Mutex<()>,
}

/// The files of a model as they are to be opened.
#[derive(Debug, Default)]
pub struct Taken {
    /// By role.
    pub files: BTreeMap<String, PathBuf>,
    /// What they stand for, where that is another place.
    pub copied_from: Vec<PathBuf>,
    /// Roles whose copy was hashed on its way and is what models.yaml wants.
    pub hashed: BTreeSet<String>,
}

/// What is to be copied for one load.
struct Job<'a> {
    model: &'a ModelId,
    check: &'a Verification,
    lease: &'a CacheLease,
}

/// A file of a job.
struct JobFile {
    id: CopyId,
    folder: PathBuf,
    original: PathBuf,
    wanted: Wanted,
}

impl Cache {
    /// The one that a configuration asks for. Nothing is looked at yet.
    pub fn of(paths: &Paths) -> Option<Self> {
        let CacheConfig { folder, size } = paths.cache.clone()?;
        Some(Self {
            folder,
            limit: size.map(|size| size.0),
            others: vec![paths.models.clone(), paths.state.clone(), paths.plugins.clone()],
            sharing: paths.sharing,
            digests: Digests::of(&paths.state),
            state: Mutex::default(),
            links: Mutex::default(),
        })
    }

    /// Whether nobody else may write a folder of copies.
    ///
    /// # Errors
    /// Others own it or may write it: what mends that.
    pub fn check_owner(paths: &Paths) -> Result<(), String> {
        let Some(cache) = &paths.cache else { return Ok(()) };
        paths.sharing.check(&cache.folder).map_err(|why| format!("`cache_dir`: {why}"))
    }

    /// Leaves the folder to another host: nothing is copied any more, nor opened from a copy that is not open yet.
    pub fn leave(&self) {
        self.note_uses();
        let mut state = self.state.lock();
        state.is_left = true;
        state.lock = None;
    }

    /// The files of a model, copied where they have to be, on a thread of its own. `lease` holds the copies.
    ///
    /// # Errors
    /// It was stopped, or the thread cannot be had.
    pub async fn take(
        self: Arc<Self>,
        model: &ModelConfig,
        files: BTreeMap<String, PathBuf>,
        check: Arc<Verification>,
        lease: CacheLease,
    ) -> Result<Taken, Failure> {
        let id = model.id.clone();
        let digests = model.files.iter().filter_map(|(role, file)| Some((role.clone(), file.sha256.clone()?)));
        let digests: BTreeMap<String, String> = digests.collect();
        let (answer, taken) = oneshot::channel();
        let work = move || {
            let job = Job { model: &id, check: &check, lease: &lease };
            let taken = self.work(&job, files, &digests);
            check.copies(false);
            // Who has the answer may take the folder, or let go of the copies, at once.
            drop((self, lease));
            // Whoever asked may have gone.
            let _ = answer.send(taken);
        };
        let gone = |why: String| {
            Failure::new(FailureKind::Internal, format!("model `{}`: its files cannot be copied: {why}", model.id))
        };
        thread::Builder::new().name("copy".into()).spawn(work).map_err(|e| gone(e.to_string()))?;
        taken.await.map_err(|e| gone(e.to_string()))?
    }

    fn work(
        &self,
        job: &Job<'_>,
        files: BTreeMap<String, PathBuf>,
        digests: &BTreeMap<String, String>,
    ) -> Result<Taken, Failure> {
        let mut taken = Taken { files, ..Taken::default() };
        if taken.files.is_empty() {
            return Ok(taken);
        }
        if let Err(why) = self.claim() {
            self.tell(job, &self.folder, &format!("no model is opened from a copy: {why}"));
            return Ok(taken);
        }
        let chosen = choose::choose(&taken.files, digests);
        self.bring(job, &chosen)?;
        for chosen in &chosen {
            let entry = entry_name(&chosen.folder);
            let has_copies = chosen.files.keys().any(|name| job.lease.has(&CopyId::new(&entry, name)));
            if !has_copies {
                continue;
            }
            match self.show(chosen, &entry) {
                Ok(view) => {
                    for (role, name) in &chosen.roles {
                        let place = name.as_ref().map_or_else(|| view.clone(), |name| view.join(name));
                        taken.copied_from.extend(taken.files.insert(role.clone(), place));
                    }
                    taken.hashed.extend(self.hashed(chosen, &entry, job));
                }
                Err(error) => self.tell(job, &chosen.folder, &format!("its copies cannot be laid out: {error}")),
            }
        }
        Ok(taken)
    }

    /// Takes the folder for this host, unless it has it.
    fn claim(&self) -> Result<(), String> {
        let mut state = self.state.lock();
        if state.is_left {
            return Err("another host takes this one's place".to_owned());
        }
        if state.lock.is_some() {
            return Ok(());
        }
        let shown = self.folder.display();
        let failed = |error: io::Error| format!("{shown}: {error}");
        self.sharing.check(&self.folder)?;
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).map_err(failed)?;
        let real = self.folder.canonicalize().map_err(failed)?;
        let mut others = self.others.iter().filter_map(|other| other.canonicalize().ok());
        if let Some(other) = others.find(|other| real.starts_with(other) || other.starts_with(&real)) {
            return Err(format!("{shown} leads to {}, or lies in it or around it", other.display()));
        }
        let lock = Lock::try_take(&self.folder.join(LOCK)).map_err(failed)?;
        let lock =
            lock.ok_or_else(|| format!("{shown} is used by another host; give each a `cache_dir:` of its own"))?;
        state.entries = index::scan(&self.folder).map_err(failed)?;
        state.lock = Some(lock);
        state.told.remove(&self.folder);
        // The budget may be smaller than it was.
        let budget = self.budget(&state);
        if let evict::Room::Without(leaving) = evict::make_room(state.kept(None), 0, budget) {
            leaving.iter().try_for_each(|id| state.remove(&self.folder, id)).map_err(failed)?;
        }
        Ok(())
    }

    /// Sees to it that there is a copy of each file that can have one.
    fn bring(&self, job: &Job<'_>, chosen: &[Chosen]) -> Result<(), Failure> {
        let mut missing = Vec::new();
        for chosen in chosen {
            let entry = entry_name(&chosen.folder);
            for (name, wanted) in &chosen.files {
                let (id, original) = (CopyId::new(&entry, name), chosen.folder.join(name));
                // What others may change is refused where files are checked.
                if self.sharing.check_file(&original).is_ok() {
                    missing.push(JobFile { id, folder: chosen.folder.clone(), original, wanted: wanted.clone() });
                }
            }
        }
        missing.retain(|file| !self.hit(job, file));
        if missing.is_empty() {
            return Ok(());
        }
        job.check.copies(true);
        let (mut mine, mut others) = (Vec::new(), Vec::new());
        for file in missing {
            let Ok(found) = file.original.metadata() else { continue };
            match self.reserve(&file, found.len()) {
                Claim::Mine(claimed) => mine.push((file, claimed)),
                Claim::Another => others.push(file),
                Claim::No(why) => {
                    self.tell_original(job, &file.original, &why);
                    continue;
                }
            }
            job.check.adds(found.len());
        }
        // What this load has claimed is copied before others are waited for: who waits holds nobody up.
        mine.into_iter().try_for_each(|(file, claimed)| self.copy(job, &file, claimed))?;
        others.iter().try_for_each(|file| self.await_copy(job, file))
    }

    /// Waits for another load that copies the file, and copies it if that one gave up.
    fn await_copy(&self, job: &Job<'_>, file: &JobFile) -> Result<(), Failure> {
        loop {
            if job.check.is_stopped() {
                return Err(stopped(job.model));
            }
            if self.hit(job, file) {
                job.check.read(file.original.metadata().map_or(0, |found| found.len()));
                return Ok(());
            }
            let Ok(found) = file.original.metadata() else { return Ok(()) };
            match self.reserve(file, found.len()) {
                Claim::Mine(claimed) => return self.copy(job, file, claimed),
                Claim::Another => thread::sleep(COPY_POLL),
                Claim::No(why) => {
                    self.tell_original(job, &file.original, &why);
                    return Ok(());
                }
            }
        }
    }

    /// Whether there is a copy of the file as it is now, which is held from here on.
    fn hit(&self, job: &Job<'_>, file: &JobFile) -> bool {
        let Ok(found) = file.original.metadata() else { return false };
        let state = self.state.lock();
        let folder = self.folder.join(file.id.entry());
        let note = state.entries.get(file.id.entry()).and_then(|index| index.intact(&folder, file.id.name()));
        let is_known = |note: &&CopyNote| file.wanted.sha256.is_none() || note.sha256.is_some();
        let Some(note) = note.filter(|note| note.original == identity(&found)).filter(is_known) else { return false };
        job.lease.holds(&state.uses, &file.id, note.inode());
        true
    }

    /// Room for a copy, and the right to make it.
    fn reserve(&self, file: &JobFile, bytes: u64) -> Claim<'_> {
        let mut state = self.state.lock();
        if state.is_copied(&file.id) {
            return Claim::Another;
        }
        let budget = self.budget(&state);
        let leaving = match evict::make_room(state.kept(Some(&file.id)), bytes, budget) {
            evict::Room::Without(leaving) => leaving,
            evict::Room::TooLarge => {
                let of = self
                    .limit
                    .filter(|limit| *limit <= budget)
                    .map_or("what the disk has room for", |_| "`cache_size`");
                return Claim::No(format!("its {} are more than {of} ({})", ByteSize(bytes), ByteSize(budget)));
            }
            evict::Room::InUse(used) => {
                return Claim::No(format!(
                    "there is no room for its {}: {} of {} are copies in use",
                    ByteSize(bytes),
                    ByteSize(used),
                    ByteSize(budget)
                ));
            }
        };
        for id in leaving {
            if let Err(error) = state.remove(&self.folder, &id) {
                return Claim::No(format!("{} cannot be removed: {error}", self.folder.join(id.entry()).display()));
            }
        }
        let begun = state.reserve(&file.id, bytes, &file.folder);
        Claim::Mine(Claimed::new(&self.state, &self.folder, file.id.clone(), begun))
    }

    /// Bytes that copies may take: what is configured, or what the disk has beside what others need.
    fn budget(&self, state: &State) -> u64 {
        let disk = rustix::fs::statvfs(&self.folder).map_or(u64::MAX, |disk| {
            let (free, total) =
                (disk.f_bavail.saturating_mul(disk.f_frsize), disk.f_blocks.saturating_mul(disk.f_frsize));
            free.saturating_add(state.on_disk(&self.folder)).saturating_sub(total / state::SPARE_PARTS)
        });
        self.limit.unwrap_or(u64::MAX).min(disk)
    }

    /// Makes a copy, and holds it. That there is none is told, and no error.
    fn copy(&self, job: &Job<'_>, file: &JobFile, mut claimed: Claimed<'_>) -> Result<(), Failure> {
        let (entry, name) = (self.folder.join(file.id.entry()), file.id.name());
        let (part, shown, begun) = (index::part(&entry, name), file.original.display(), Instant::now());
        let is_hashed = file.wanted.sha256.is_some();
        tracing::info!(model = %job.model, "copying {shown} into `cache_dir`");
        let made = self
            .make_entry(file)
            .map_err(CopyError::Disk)
            .and_then(|()| copy(&file.original, &part, claimed.begun(), is_hashed, job.check));
        let copied = match made {
            Ok(copied) => copied,
            Err(CopyError::Stopped(begun)) => {
                claimed.stops_at(*begun);
                return Err(stopped(job.model));
            }
            Err(CopyError::Original(error)) => {
                self.tell_original(job, &file.original, &format!("it cannot be read: {error}"));
                return Ok(());
            }
            Err(CopyError::Disk(error)) => {
                self.tell_original(job, &file.original, &format!("{}: {error}", self.folder.display()));
                return Ok(());
            }
            Err(CopyError::Changed) => {
                self.tell_original(job, &file.original, "it changed while it was copied");
                return Ok(());
            }
        };
        if let (Some(sha256), Ok(found)) = (&copied.sha256, file.original.metadata())
            && identity(&found) == copied.identity
        {
            self.digests.remember(&found, sha256);
        }
        if file.wanted.sha256.is_some() && copied.sha256 != file.wanted.sha256 {
            // Whoever checks the files refuses it, with both digests.
            return Ok(());
        }
        match self.keep(job, file, &part, copied.identity, copied.sha256) {
            Ok(()) => {
                let bytes = ByteSize(file.original.metadata().map_or(0, |found| found.len()));
                tracing::info!(model = %job.model, "copied {shown} ({bytes}) in {:.1} s", begun.elapsed().as_secs_f32());
                self.state.lock().told.remove(&file.original);
            }
            Err(error) => self.tell_original(job, &file.original, &format!("{}: {error}", self.folder.display())),
        }
        Ok(())
    }

    /// The folder of an entry, with its note: without one it would not be known again.
    fn make_entry(&self, file: &JobFile) -> io::Result<()> {
        let entry = self.folder.join(file.id.entry());
        let state = self.state.lock();
        let Some(index) = state.entries.get(file.id.entry()) else { return Ok(()) };
        index.write(&entry)?;
        fs::create_dir_all(index.view(&entry))
    }

    /// Puts a whole copy in its place. Until it is noted there it counts for nothing.
    fn keep(
        &self,
        job: &Job<'_>,
        file: &JobFile,
        part: &Path,
        original: String,
        sha256: Option<String>,
    ) -> io::Result<()> {
        let (entry, name) = (self.folder.join(file.id.entry()), file.id.name());
        let _links = self.links.lock();
        let mut state = self.state.lock();
        let uses = Arc::clone(&state.uses);
        if state.lock.is_none() {
            return Err(io::Error::other("another host has it by now"));
        }
        let Some(index) = state.entries.get_mut(file.id.entry()) else { return Ok(()) };
        if index.copies.remove(name).is_some() {
            index.write(&entry)?;
        }
        let view = index.view(&entry);
        links::make_way(&view, name)?;
        let place = view.join(name);
        fs::rename(part, &place)?;
        if let Some(folder) = place.parent() {
            File::open(folder)?.sync_all()?;
        }
        let note = CopyNote::new(original, &place.symlink_metadata()?, sha256, unix_ms());
        let inode = note.inode();
        index.copies.insert(name.to_owned(), note);
        index.write(&entry)?;
        job.lease.holds(&uses, &file.id, inode);
        Ok(())
    }

    /// The folder as a plugin is to see it.
    fn show(&self, chosen: &Chosen, entry: &str) -> io::Result<PathBuf> {
        let _links = self.links.lock();
        let place = self.folder.join(entry);
        let gone = || io::Error::other("it is gone");
        let noted: Vec<(String, String)> = {
            let state = self.state.lock();
            let index = state.entries.get(entry).ok_or_else(gone)?;
            index.copies.iter().map(|(name, note)| (name.clone(), note.original.clone())).collect()
        };
        // A copy that nobody asked for now may be of what its original was.
        let is_stale = |(name, was): &(String, String)| {
            chosen.folder.join(name).metadata().map_or(true, |found| identity(&found) != *was)
        };
        let stale: Vec<(String, String)> = noted.into_iter().filter(is_stale).collect();
        let (view, copies) = {
            let mut state = self.state.lock();
            let uses = Arc::clone(&state.uses);
            let index = state.entries.get_mut(entry).ok_or_else(gone)?;
            index.copies.retain(|name, note| !stale.iter().any(|(gone, was)| gone == name && *was == note.original));
            index.used(&uses, entry);
            index.write(&place)?;
            (index.view(&place), index.copies.keys().cloned().collect::<Vec<_>>())
        };
        links::refresh(&chosen.folder, &view, &copies.iter().map(String::as_str).collect())?;
        Ok(view)
    }

    /// Roles whose copy was hashed and is what is wanted.
    fn hashed(&self, chosen: &Chosen, entry: &str, job: &Job<'_>) -> BTreeSet<String> {
        let state = self.state.lock();
        let copies = state.entries.get(entry).map(|index| &index.copies);
        let is_right = |name: &String, wanted: &Wanted| {
            let found = copies.and_then(|copies| copies.get(name)).and_then(|note| note.sha256.as_ref());
            found.is_some() && found == wanted.sha256.as_ref() && job.lease.has(&CopyId::new(entry, name))
        };
        let right = chosen.files.iter().filter(|(name, wanted)| is_right(name, wanted));
        right.filter_map(|(_, wanted)| wanted.role.clone()).collect()
    }

    fn tell_original(&self, job: &Job<'_>, original: &Path, why: &str) {
        let shown = original.display();
        self.tell(job, original, &format!("{shown} is opened where it lies, not from a copy in `cache_dir`: {why}"));
    }

    /// Once for each file, until there is a copy of it; who asks about the model is told each time.
    fn tell(&self, job: &Job<'_>, about: &Path, sentence: &str) {
        job.lease.says(sentence.to_owned());
        if self.state.lock().told.insert(about.to_owned()) {
            tracing::warn!(model = %job.model, "{sentence}");
        }
    }

    /// Notes when copies were last used, for the next host.
    fn note_uses(&self) {
        let mut state = self.state.lock();
        if state.lock.is_some() {
            state.note_uses(&self.folder);
        }
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.note_uses();
    }
}

fn stopped(model: &ModelId) -> Failure {
    Failure::new(FailureKind::Cancelled, format!("nobody waits for `{model}` any more"))
}
