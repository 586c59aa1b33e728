//! A store that is killed, fills its disk, and forgets in time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use redb::StorageBackend;

use super::super::job::tests::{facts, queued};
use super::*;
use crate::domain::ByteSize;

const LIMITS: JobLimits = JobLimits { unfinished: 3, at_once: 1, ttl: Duration::from_secs(100), bytes: ByteSize(1000) };

fn asked(body: &str) -> JobRequest {
    JobRequest { headers: Vec::new(), body: body.into() }
}

fn answer(attempt: u32, bytes: usize) -> JobAnswer {
    JobAnswer { attempt, facts: facts(bytes as u64), bytes: Bytes::from(vec![b'x'; bytes]) }
}

fn create(store: &EmbeddedStore, now_ms: u64) -> Result<JobId, StoreError> {
    let job = queued(now_ms);
    store.create(&job, &asked("{}"), &LIMITS).map(|()| job.id)
}

fn done(store: &EmbeddedStore, now_s: u64, bytes: usize) -> JobId {
    let id = create(store, now_s * 1000).unwrap();
    store.change(&id, &JobEvent::Started, now_s).unwrap();
    store.answer(&id, &answer(1, bytes), &LIMITS, now_s).unwrap();
    id
}

fn store() -> (tempfile::TempDir, EmbeddedStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(folder.path()).unwrap();
    (folder, store)
}

fn state(store: &EmbeddedStore, id: &JobId) -> JobState {
    store.get(id).unwrap().state
}

#[test]
fn a_job_and_its_answer_outlive_the_host() {
    let (folder, first) = store();
    let id = create(&first, 5_000).unwrap();
    assert_eq!(first.request(&id).unwrap(), asked("{}"));
    first.change(&id, &JobEvent::Started, 6).unwrap();
    let kept = first.answer(&id, &answer(1, 3), &LIMITS, 7).unwrap();
    drop(first);
    fs::write(folder.path().join("answers").join(format!("{id}.part")), b"half").unwrap();
    fs::write(folder.path().join("answers").join(JobId::new(0).as_str()), b"of nobody").unwrap();
    let second = EmbeddedStore::open(folder.path()).unwrap();
    assert_eq!(second.get(&id).unwrap(), kept);
    assert_eq!(io::read_to_string(second.open_answer(&id).unwrap()).unwrap(), "xxx");
    assert!(matches!(second.request(&id), Err(StoreError::Unknown)), "what is over asks nothing");
    assert_eq!(fs::read_dir(folder.path().join("answers")).unwrap().count(), 1, "what a crash left is gone");
}

#[test]
fn a_job_is_answered_by_one() {
    let (_folder, store) = store();
    let id = create(&store, 0).unwrap();
    store.change(&id, &JobEvent::Started, 1).unwrap();
    store.change(&id, &JobEvent::Cancelled, 2).unwrap();
    let late = store.answer(&id, &answer(1, 3), &LIMITS, 3);
    assert!(matches!(late, Err(StoreError::OutOfTurn(_))), "{late:?}");
    assert!(store.open_answer(&id).is_err());
    let id = done(&store, 4, 3);
    assert!(store.answer(&id, &answer(1, 5), &LIMITS, 5).is_err());
    assert_eq!(io::read_to_string(store.open_answer(&id).unwrap()).unwrap(), "xxx");
}

#[test]
fn an_owner_lists_their_own_page_by_page() {
    let (_folder, store) = store();
    let mut ids = Vec::new();
    for (number, owner) in [None, Some("a"), Some("b"), Some("a"), Some(""), Some("a")].into_iter().enumerate() {
        let job = Job { owner: owner.map(str::to_owned), ..queued(number as u64) };
        store.create(&job, &asked("{}"), &JobLimits { unfinished: 9, ..LIMITS }).unwrap();
        ids.push(job.id);
    }
    let list = |owner, before, most| {
        let jobs = store.list(owner, before, most).unwrap();
        jobs.into_iter().map(|job| ids.iter().position(|id| *id == job.id).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(list(Some("a"), None, 2), [5, 3]);
    assert_eq!(list(Some("a"), Some(&ids[3]), 2), [1]);
    assert_eq!((list(None, None, 9), list(Some(""), None, 9), list(Some("c"), None, 9)), (vec![0], vec![4], vec![]));
}

#[test]
fn there_are_so_many_and_no_more() {
    let (_folder, store) = store();
    let ids: Vec<_> = (0..3).map(|ms| create(&store, ms).unwrap()).collect();
    let error = create(&store, 4).unwrap_err();
    assert!(matches!(error, StoreError::TooMany(3)), "{error}");
    assert_eq!(store.unfinished().unwrap().into_iter().map(|job| job.id).collect::<Vec<_>>(), ids);
    store.change(&ids[1], &JobEvent::Cancelled, 5).unwrap();
    create(&store, 6).unwrap();
    store.remove(&ids[0]).unwrap();
    create(&store, 7).unwrap();
}

#[test]
fn the_oldest_answers_make_room() {
    let (_folder, store) = store();
    let (first, second) = (done(&store, 1, 400), done(&store, 2, 400));
    let third = done(&store, 3, 400);
    assert_eq!(
        [&first, &second, &third].map(|id| state(&store, id)),
        [JobState::Expired, JobState::Done, JobState::Done]
    );
    assert!(store.open_answer(&first).is_err() && store.open_answer(&second).is_ok());
    let huge = create(&store, 4_000).unwrap();
    store.change(&huge, &JobEvent::Started, 4).unwrap();
    assert!(matches!(store.answer(&huge, &answer(1, 1001), &LIMITS, 5), Err(StoreError::NoRoom(_))));
    assert_eq!((state(&store, &huge), store.open_answer(&huge).is_err()), (JobState::Running, true));
    store.remove(&second).unwrap();
    store.remove(&third).unwrap();
    store.remove(&huge).unwrap();
    assert_eq!(store.bytes().unwrap(), 0);
}

#[test]
fn what_is_kept_too_long_goes_and_is_remembered_for_a_while() {
    let (_folder, store) = store();
    let id = done(&store, 10, 3);
    let late = create(&store, 20_000).unwrap();
    assert_eq!(store.sweep(&LIMITS, 109).unwrap(), []);
    assert_eq!(state(&store, &id), JobState::Done);
    assert_eq!(store.sweep(&LIMITS, 110).unwrap(), []);
    assert_eq!((state(&store, &id), store.open_answer(&id).is_err()), (JobState::Expired, true));
    let expired = store.sweep(&LIMITS, 120).unwrap();
    assert_eq!(expired.into_iter().map(|job| (job.id, job.state)).collect::<Vec<_>>(), [(late, JobState::Expired)]);
    store.sweep(&LIMITS, 210).unwrap();
    assert!(matches!(store.get(&id), Err(StoreError::Unknown)));
}

/// A disk of bytes that fails, or whose machine does.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<Platter>>);

#[derive(Debug, Default)]
struct Platter {
    bytes: Vec<u8>,
    /// What a loss of power leaves.
    synced: Vec<u8>,
    /// Writes until it fails, each time by this error; it never does where there is none.
    left: Option<usize>,
    error: Option<io::ErrorKind>,
}

impl Platter {
    fn write(&mut self) -> io::Result<()> {
        match &mut self.left {
            Some(0) => Err(self.error.unwrap_or(io::ErrorKind::Other).into()),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        let platter = self.0.lock();
        let found = platter.bytes.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.0.lock();
        platter.write()?;
        platter.bytes.resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.0.lock();
        platter.write()?;
        platter.synced = platter.bytes.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        let mut platter = self.0.lock();
        platter.write()?;
        platter.bytes[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }
}

impl Disk {
    fn store(&self, folder: &Path) -> Result<EmbeddedStore, StoreError> {
        fs::create_dir_all(answers(folder)).unwrap();
        let disk = self.clone();
        EmbeddedStore::over(folder, Box::new(move || Database::builder().create_with_backend(disk.clone())))
    }

    /// It fails from the n-th write on.
    fn failing(&self, after: usize, error: io::ErrorKind) {
        let mut platter = self.0.lock();
        (platter.left, platter.error) = (Some(after), Some(error));
    }

    fn mended(&self) -> bool {
        let mut platter = self.0.lock();
        platter.left.take() == Some(0)
    }
}

/// What is done, and where the job stands after it.
type Step<'a> = (&'a dyn Fn() -> Result<(), StoreError>, JobState);

/// A job's life, step by step; how many steps were taken, and where it stood before the next and after it.
fn life(store: &EmbeddedStore, job: &Job) -> (usize, [Option<JobState>; 2]) {
    let steps: [Step<'_>; 5] = [
        (&|| store.create(job, &asked("{}"), &LIMITS), JobState::Queued),
        (&|| store.change(&job.id, &JobEvent::Started, 1).map(drop), JobState::Running),
        (&|| store.change(&job.id, &JobEvent::PutBack(1), 2).map(drop), JobState::Queued),
        (&|| store.change(&job.id, &JobEvent::Started, 3).map(drop), JobState::Running),
        (&|| store.answer(&job.id, &answer(1, 30), &LIMITS, 4).map(drop), JobState::Done),
    ];
    let mut before = None;
    for (number, (step, after)) in steps.iter().enumerate() {
        if step().is_err() {
            return (number, [before, Some(*after)]);
        }
        before = Some(*after);
    }
    (steps.len(), [before, before])
}

/// Kills it at every write, and takes the power away at every write.
#[test]
fn a_host_that_ends_at_any_moment_finds_its_jobs_as_they_were_or_as_they_became() {
    for power_fails in [false, true] {
        let mut moments = 0;
        for moment in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let disk = Disk::default();
            let older = done(&disk.store(folder.path()).unwrap(), 0, 10);
            let store = disk.store(folder.path()).unwrap();
            disk.failing(moment, io::ErrorKind::BrokenPipe);
            let job = queued(1_000);
            let (steps, [before, after]) = life(&store, &job);
            let left = disk.0.lock().bytes.clone();
            let synced = disk.0.lock().synced.clone();
            drop(store);
            let has_failed = disk.mended();
            disk.0.lock().bytes = if power_fails { synced } else { left };
            let next = disk.store(folder.path()).unwrap_or_else(|error| panic!("write {moment}: {error}"));
            let found = next.get(&job.id).ok().map(|job| job.state);
            assert!(
                found == before || found == after,
                "write {moment}, step {steps}: {found:?}, not {before:?} or {after:?}"
            );
            assert_eq!(next.open_answer(&job.id).is_ok(), found == Some(JobState::Done), "write {moment}");
            assert_eq!(state(&next, &older), JobState::Done);
            let unfinished = next.unfinished().unwrap();
            assert_eq!(unfinished.len(), usize::from(matches!(found, Some(JobState::Queued | JobState::Running))));
            if !has_failed {
                assert_eq!(steps, 5);
                break;
            }
            moments += 1;
        }
        assert!(moments > 20, "{moments} writes were cut");
    }
}

#[test]
fn a_full_disk_is_said_and_nothing_is_lost_by_it() {
    let mut moments = 0;
    for moment in 0.. {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::default();
        let store = disk.store(folder.path()).unwrap();
        let older = done(&store, 0, 10);
        let waiting = create(&store, 1_000).unwrap();
        disk.failing(moment, io::ErrorKind::StorageFull);
        let job = queued(2_000);
        let refused = store.create(&job, &asked(&"x".repeat(500)), &LIMITS);
        let has_failed = disk.mended();
        if let Err(error) = &refused {
            assert!(matches!(error, StoreError::Full(_)), "write {moment}: {error:?}");
        }
        assert_eq!((state(&store, &older), state(&store, &waiting)), (JobState::Done, JobState::Queued));
        if store.get(&job.id).is_err() {
            store.create(&job, &asked("{}"), &LIMITS).unwrap();
        }
        assert_eq!(store.unfinished().unwrap().len(), 2);
        if !has_failed {
            break;
        }
        moments += 1;
    }
    assert!(moments > 3, "{moments} writes failed");
}

#[test]
fn what_cannot_be_read_is_said() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("jobs.redb"), vec![7; 1 << 16]).unwrap();
    let error = EmbeddedStore::open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("jobs.redb"), "{error}");
}
