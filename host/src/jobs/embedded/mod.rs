//! Jobs in a folder of this host's own: what is known of them and what they ask in a database of one file, their answers as
//! files beside it. A host that is killed at any moment finds each job as it was before a call or as it is after it.
//!
//! An answer's file is whole before its job is done, and goes after its job has expired: a file that no job has is what a crash
//! left, and is removed at the next start.

#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition};

use super::job::{Job, JobEvent, JobId, JobState};
use super::store::{JobAnswer, JobLimits, JobRequest, JobStore, StoreError};

/// Jobs that are over and whose answers are gone that are remembered at most.
const ENDED_MAX: u64 = 10_000;
/// The ending of an answer that is being written.
const UNFINISHED: &str = "part";

/// Each job as JSON, by its id.
const JOBS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("jobs");
/// What each asks, as JSON, until it is over.
const REQUESTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("requests");
/// The ids of each owner.
const OWNED: TableDefinition<'_, (&str, &str), ()> = TableDefinition::new("owned");
/// Those that wait or run, and when they came.
const PENDING: TableDefinition<'_, &str, u64> = TableDefinition::new("pending");
/// Those that are over by when that was, and the bytes of their answers.
const ENDED: TableDefinition<'_, (u64, &str), u64> = TableDefinition::new("ended");
/// What is kept, in bytes.
const TOTALS: TableDefinition<'_, &str, u64> = TableDefinition::new("totals");
const BYTES: &str = "bytes";

/// Opens the database anew.
type Open = Box<dyn Fn() -> Result<Database, redb::DatabaseError> + Send + Sync>;

/// The folder of jobs.
pub struct EmbeddedStore {
    folder: PathBuf,
    open: Open,
    /// Nothing after a disk failed under it: then it is opened anew, for it takes nothing else.
    database: RwLock<Option<Database>>,
    /// Whether it was left to another process.
    is_closed: AtomicBool,
}

/// What a call came to that was not done.
enum Undone {
    /// The database has failed.
    Database(redb::Error),
    /// It is not to be done.
    Refused(StoreError),
}

type Done<T> = Result<T, Undone>;

/// The tables of one change.
struct Tables<'t> {
    jobs: Table<'t, &'static str, &'static [u8]>,
    requests: Table<'t, &'static str, &'static [u8]>,
    owned: Table<'t, (&'static str, &'static str), ()>,
    pending: Table<'t, &'static str, u64>,
    ended: Table<'t, (u64, &'static str), u64>,
    totals: Table<'t, &'static str, u64>,
}

impl EmbeddedStore {
    /// The jobs of this folder, which is made if there is none. Blocks on the disk.
    ///
    /// # Errors
    /// It cannot be had, or what is in it cannot be read.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(answers(folder));
        made.map_err(|error| failed_io(folder, &error))?;
        let file = folder.join("jobs.redb");
        Self::over(folder, Box::new(move || Database::create(&file)))
    }

    fn over(folder: &Path, open: Open) -> Result<Self, StoreError> {
        let store =
            Self { folder: folder.to_owned(), open, database: RwLock::new(None), is_closed: AtomicBool::new(false) };
        // Reading finds the tables there.
        if store.with(|database| Ok(database.begin_read()?.open_table(TOTALS).is_err()))? {
            store.write(|_| Ok(()))?;
        }
        store.remove_orphans()?;
        Ok(store)
    }

    /// Removes files of answers that no job has.
    fn remove_orphans(&self) -> Result<(), StoreError> {
        let Ok(found) = fs::read_dir(answers(&self.folder)) else { return Ok(()) };
        for entry in found.filter_map(Result::ok) {
            let name = entry.file_name();
            let id = name.to_str().and_then(JobId::parse);
            let is_of_job = match id.map(|id| self.get(&id)) {
                Some(Ok(job)) => job.state == JobState::Done,
                Some(Err(StoreError::Unknown)) | None => false,
                Some(Err(error)) => return Err(error),
            };
            if !is_of_job {
                remove_file(&entry.path());
            }
        }
        Ok(())
    }

    /// Does all of it or nothing.
    fn write<T>(&self, work: impl FnOnce(&mut Tables<'_>) -> Done<T>) -> Result<T, StoreError> {
        self.with(|database| {
            let mut change = database.begin_write()?;
            // A commit that a crash cuts short is told from one that was written in full by its order, not by checksums alone.
            change.set_two_phase_commit(true);
            let done = work(&mut Tables {
                jobs: change.open_table(JOBS)?,
                requests: change.open_table(REQUESTS)?,
                owned: change.open_table(OWNED)?,
                pending: change.open_table(PENDING)?,
                ended: change.open_table(ENDED)?,
                totals: change.open_table(TOTALS)?,
            })?;
            change.commit()?;
            Ok(done)
        })
    }

    fn with<T>(&self, work: impl FnOnce(&Database) -> Done<T>) -> Result<T, StoreError> {
        if self.database.read().is_none() {
            let mut database = self.database.write();
            if self.is_closed.load(Ordering::Relaxed) {
                return Err(StoreError::Unavailable("another process keeps the jobs by now; ask again".to_owned()));
            }
            if database.is_none() {
                *database = Some((self.open)().map_err(|error| self.failed(error.into()))?);
            }
        }
        let done = match &*self.database.read() {
            Some(database) => work(database),
            // Another one has failed in between.
            None => Err(Undone::Database(redb::Error::PreviousIo)),
        };
        match done {
            Ok(done) => Ok(done),
            Err(Undone::Refused(refused)) => Err(refused),
            Err(Undone::Database(error)) => {
                *self.database.write() = None;
                Err(self.failed(error))
            }
        }
    }

    fn failed(&self, error: redb::Error) -> StoreError {
        let file = self.folder.join("jobs.redb");
        match error {
            redb::Error::Io(error) => failed_io(&file, &error),
            error => StoreError::Unavailable(format!("{}: {error}", file.display())),
        }
    }

    fn file(&self, id: &JobId) -> PathBuf {
        answers(&self.folder).join(id.as_str())
    }
}

impl JobStore for EmbeddedStore {
    fn create(&self, job: &Job, request: &JobRequest, limits: &JobLimits) -> Result<(), StoreError> {
        let request = json(request)?;
        let mut gone = Vec::new();
        self.write(|tables| {
            if tables.pending.len()? >= u64::from(limits.unfinished) {
                return Err(Undone::Refused(StoreError::TooMany(limits.unfinished)));
            }
            tables.make_room(request.len() as u64, limits, &mut gone)?;
            let id = job.id.as_str();
            tables.requests.insert(id, request.as_slice())?;
            tables.count(request.len() as u64, 0)?;
            tables.owned.insert((owner_key(job.owner.as_deref()).as_str(), id), ())?;
            tables.pending.insert(id, job.created_s)?;
            tables.put(job)
        })?;
        self.remove_files(&gone);
        Ok(())
    }

    fn get(&self, id: &JobId) -> Result<Job, StoreError> {
        self.with(|database| {
            read(database.begin_read()?.open_table(JOBS)?.get(id.as_str())?.map(|found| job(found.value())))
        })
    }

    fn request(&self, id: &JobId) -> Result<JobRequest, StoreError> {
        self.with(|database| {
            let found = database.begin_read()?.open_table(REQUESTS)?.get(id.as_str())?;
            read(found.map(|found| serde_json::from_slice(found.value()).map_err(unreadable)))
        })
    }

    fn list(&self, owner: Option<&str>, before: Option<&JobId>, most: usize) -> Result<Vec<Job>, StoreError> {
        let owner = owner_key(owner);
        // Ids are of hexadecimal digits: what comes after all of them is no id.
        let end = before.map_or("~", JobId::as_str);
        self.with(|database| {
            let tables = database.begin_read()?;
            let (owned, jobs) = (tables.open_table(OWNED)?, tables.open_table(JOBS)?);
            let mut listed = Vec::new();
            for entry in owned.range((owner.as_str(), "")..(owner.as_str(), end))?.rev().take(most) {
                let (key, _) = entry?;
                let (_, id) = key.value();
                listed.push(read(jobs.get(id)?.map(|found| job(found.value())))?);
            }
            Ok(listed)
        })
    }

    fn unfinished(&self) -> Result<Vec<Job>, StoreError> {
        self.with(|database| {
            let tables = database.begin_read()?;
            let (pending, jobs) = (tables.open_table(PENDING)?, tables.open_table(JOBS)?);
            let mut found = Vec::new();
            for entry in pending.iter()? {
                found.push(read(jobs.get(entry?.0.value())?.map(|found| job(found.value())))?);
            }
            Ok(found)
        })
    }

    fn change(&self, id: &JobId, event: &JobEvent, now_s: u64) -> Result<Job, StoreError> {
        let mut gone = Vec::new();
        let job = self.write(|tables| tables.change(id, event, now_s, &mut gone))?;
        self.remove_files(&gone);
        Ok(job)
    }

    fn answer(&self, id: &JobId, answer: &JobAnswer, limits: &JobLimits, now_s: u64) -> Result<Job, StoreError> {
        let event = JobEvent::Answered(answer.attempt, answer.facts.clone());
        // Nothing is written for what is over already.
        self.get(id)?.after(&event, now_s)?;
        let file = self.file(id);
        let unfinished = file.with_extension(UNFINISHED);
        let written = write_whole(&unfinished, &answer.bytes)
            .and_then(|()| fs::rename(&unfinished, &file))
            .and_then(|()| File::open(answers(&self.folder))?.sync_all());
        if let Err(error) = written {
            remove_file(&unfinished);
            return Err(failed_io(&self.folder, &error));
        }
        let mut gone = Vec::new();
        let changed = self.write(|tables| {
            tables.make_room(answer.bytes.len() as u64, limits, &mut gone)?;
            tables.change(id, &event, now_s, &mut gone)
        });
        match changed {
            Ok(job) => {
                self.remove_files(&gone);
                Ok(job)
            }
            Err(refused @ (StoreError::OutOfTurn(_) | StoreError::Unknown | StoreError::NoRoom(_))) => {
                remove_file(&file);
                Err(refused)
            }
            // Whether it was done is not known. If it was, the file is the answer; if not, it is an orphan.
            Err(error) => Err(error),
        }
    }

    fn open_answer(&self, id: &JobId) -> Result<File, StoreError> {
        let file = self.file(id);
        File::open(&file).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::Unknown,
            _ => failed_io(&file, &error),
        })
    }

    fn remove(&self, id: &JobId) -> Result<(), StoreError> {
        self.write(|tables| tables.remove(id))?;
        remove_file(&self.file(id));
        Ok(())
    }

    fn sweep(&self, limits: &JobLimits, now_s: u64) -> Result<Vec<Job>, StoreError> {
        let mut gone = Vec::new();
        let ttl_s = limits.ttl.as_secs();
        let late = self.with(|database| {
            let mut late = Vec::new();
            for entry in database.begin_read()?.open_table(PENDING)?.iter()? {
                let (id, created_s) = entry?;
                if created_s.value().saturating_add(ttl_s) <= now_s {
                    late.extend(JobId::parse(id.value()));
                }
            }
            Ok(late)
        })?;
        // One that is running by now is not late.
        let expired = late.iter().filter_map(|id| self.change(id, &JobEvent::Expired, now_s).ok()).collect();
        let (old, forgotten) = self.with(|database| {
            let ended = database.begin_read()?.open_table(ENDED)?;
            let surplus = ended.len()?.saturating_sub(ENDED_MAX);
            let (mut old, mut forgotten) = (Vec::new(), Vec::new());
            for (position, entry) in (0..).zip(ended.iter()?) {
                let (key, bytes) = entry?;
                let (ended_s, id) = key.value();
                let age_s = now_s.saturating_sub(ended_s);
                if age_s < ttl_s && position >= surplus {
                    break;
                }
                if age_s >= ttl_s.saturating_mul(2) || position < surplus {
                    forgotten.extend(JobId::parse(id));
                } else if bytes.value() > 0 {
                    old.extend(JobId::parse(id));
                }
            }
            Ok((old, forgotten))
        })?;
        if !old.is_empty() || !forgotten.is_empty() || self.bytes()? > limits.bytes.0 {
            self.write(|tables| {
                old.iter().try_for_each(|id| tables.change(id, &JobEvent::Expired, now_s, &mut gone).map(drop))?;
                forgotten.iter().try_for_each(|id| tables.remove(id))?;
                tables.let_go(limits.bytes.0, &mut gone)
            })?;
        }
        gone.extend(forgotten);
        self.remove_files(&gone);
        Ok(expired)
    }

    fn close(&self) {
        let mut database = self.database.write();
        self.is_closed.store(true, Ordering::Relaxed);
        *database = None;
    }
}

impl EmbeddedStore {
    /// What is kept, in bytes.
    fn bytes(&self) -> Result<u64, StoreError> {
        self.with(|database| {
            let total = database.begin_read()?.open_table(TOTALS)?.get(BYTES)?;
            Ok(total.map_or(0, |total| total.value()))
        })
    }

    fn remove_files(&self, gone: &[JobId]) {
        gone.iter().for_each(|id| remove_file(&self.file(id)));
    }
}

impl Tables<'_> {
    fn get(&self, id: &str) -> Done<Job> {
        read(self.jobs.get(id)?.map(|found| job(found.value())))
    }

    fn put(&mut self, job: &Job) -> Done<()> {
        self.jobs.insert(job.id.as_str(), json(job).map_err(Undone::Refused)?.as_slice())?;
        Ok(())
    }

    /// So many bytes more are kept, and so many less.
    fn count(&mut self, more: u64, less: u64) -> Done<()> {
        let total = self.totals.get(BYTES)?.map_or(0, |total| total.value());
        self.totals.insert(BYTES, (total + more).saturating_sub(less))?;
        Ok(())
    }

    /// The job after an event. `gone` gets it if its answer is kept no longer.
    fn change(&mut self, id: &JobId, event: &JobEvent, now_s: u64, gone: &mut Vec<JobId>) -> Done<Job> {
        let before = self.get(id.as_str())?;
        let after = before.after(event, now_s).map_err(|late| Undone::Refused(late.into()))?;
        let bytes = after.answer.as_ref().map_or(0, |facts| facts.bytes);
        if after.state.is_over() && !before.state.is_over() {
            self.pending.remove(id.as_str())?;
            let request = self.requests.remove(id.as_str())?.map_or(0, |request| request.value().len() as u64);
            self.count(bytes, request)?;
            self.ended.insert((now_s, id.as_str()), bytes)?;
        } else if before.state == JobState::Done {
            self.count(0, bytes)?;
            self.ended.insert((before.ended_s.unwrap_or_default(), id.as_str()), 0)?;
            gone.push(id.clone());
        }
        self.put(&after)?;
        Ok(after)
    }

    /// Lets the oldest answers go until there is room for so many bytes.
    fn make_room(&mut self, bytes: u64, limits: &JobLimits, gone: &mut Vec<JobId>) -> Done<()> {
        let no_room = || Undone::Refused(StoreError::NoRoom(limits.bytes));
        let most = limits.bytes.0.checked_sub(bytes).ok_or_else(no_room)?;
        self.let_go(most, gone)?;
        let total = self.totals.get(BYTES)?.map_or(0, |total| total.value());
        if total <= most { Ok(()) } else { Err(no_room()) }
    }

    /// Lets the oldest answers go until no more than this is kept, or none is left.
    fn let_go(&mut self, most: u64, gone: &mut Vec<JobId>) -> Done<()> {
        let mut total = self.totals.get(BYTES)?.map_or(0, |total| total.value());
        let mut oldest = Vec::new();
        if total > most {
            for entry in self.ended.iter()? {
                let (key, bytes) = entry?;
                if total <= most {
                    break;
                }
                if bytes.value() > 0 {
                    total = total.saturating_sub(bytes.value());
                    oldest.extend(JobId::parse(key.value().1));
                }
            }
        }
        // When it was over stays what it was, so the time says nothing.
        oldest.iter().try_for_each(|id| self.change(id, &JobEvent::Expired, 0, gone).map(drop))
    }

    fn remove(&mut self, id: &JobId) -> Done<()> {
        let job = self.get(id.as_str())?;
        let id = id.as_str();
        self.jobs.remove(id)?;
        self.owned.remove((owner_key(job.owner.as_deref()).as_str(), id))?;
        self.pending.remove(id)?;
        let request = self.requests.remove(id)?.map_or(0, |request| request.value().len() as u64);
        let answer = self.ended.remove((job.ended_s.unwrap_or_default(), id))?.map_or(0, |bytes| bytes.value());
        self.count(0, request + answer)
    }
}

fn answers(folder: &Path) -> PathBuf {
    folder.join("answers")
}

/// An owner as a key. Whoever has no name is not whoever has an empty one.
fn owner_key(owner: Option<&str>) -> String {
    owner.map_or_else(String::new, |name| format!("k{name}"))
}

fn job(bytes: &[u8]) -> Result<Job, StoreError> {
    serde_json::from_slice(bytes).map_err(unreadable)
}

/// What was found, or that there is no such job.
fn read<T>(found: Option<Result<T, StoreError>>) -> Done<T> {
    found.unwrap_or(Err(StoreError::Unknown)).map_err(Undone::Refused)
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(unreadable)
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn unreadable(error: serde_json::Error) -> StoreError {
    StoreError::Unavailable(format!("what is kept of a job cannot be read: {error}"))
}

fn failed_io(path: &Path, error: &io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full(path.to_owned()),
        _ => StoreError::Unavailable(format!("{}: {error}", path.display())),
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// One that is not there is removed already.
fn remove_file(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(file = %path.display(), %error, "the file of a job's answer cannot be removed");
        }
        _ => {}
    }
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedStore").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// What each call of the database may fail with.
macro_rules! of_database {
    ($($error:ident),*) => {
        $(impl From<redb::$error> for Undone {
            fn from(error: redb::$error) -> Self {
                Self::Database(error.into())
            }
        })*
    };
}
of_database!(TransactionError, TableError, StorageError, CommitError);
