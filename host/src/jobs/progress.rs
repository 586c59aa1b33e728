//! How far a job is, told to whoever follows it. Nothing of it outlives the host.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::job::Job;

/// All of a job, in the unit of [`JobView::progress`].
pub const WHOLE: u16 = 1000;

/// A job as it is just now.
#[derive(Clone, Debug, PartialEq)]
pub struct JobView {
    /// What is kept of it.
    pub job: Job,
    /// How far its attempt is, in thousandths.
    pub progress: u16,
}

/// Where whoever serves a request says how far it is. Cheap to clone; of a request that is no job it tells nobody.
#[derive(Clone, Debug, Default)]
pub struct Progress(Option<Arc<Parts>>);

#[derive(Debug)]
struct Parts {
    told: watch::Sender<JobView>,
    /// Thousandths of each of them.
    parts: Mutex<Vec<u16>>,
}

impl Progress {
    /// Of a job that these follow.
    pub(super) fn of(told: watch::Sender<JobView>) -> Self {
        Self(Some(Arc::new(Parts { told, parts: Mutex::default() })))
    }

    /// Part `number` of so many is so far. Nobody is told that a job has gone back, though a part may begin anew.
    pub fn report(&self, (number, parts): (u64, u64), done: u64, total: u64) {
        let Some(Parts { told, parts: known }) = self.0.as_deref() else { return };
        let (Ok(number), Ok(count)) = (usize::try_from(number), usize::try_from(parts)) else { return };
        let mut known = known.lock();
        if known.len() < count {
            known.resize(count, 0);
        }
        let Some(part) = known.get_mut(number) else { return };
        let now = u128::from(done.min(total)) * u128::from(WHOLE) / u128::from(total.max(1));
        *part = (*part).max(u16::try_from(now).unwrap_or(WHOLE));
        let sum: u64 = known.iter().map(|part| u64::from(*part)).sum();
        let progress = u16::try_from(sum / known.len() as u64).unwrap_or(WHOLE);
        told.send_if_modified(|view| {
            let is_more = progress > view.progress && !view.job.state.is_over();
            if is_more {
                view.progress = progress;
            }
            is_more
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::job::tests::queued;
    use super::*;

    #[test]
    fn parts_come_to_a_whole_that_never_goes_back() {
        let (told, follower) = watch::channel(JobView { job: queued(0), progress: 0 });
        let progress = Progress::of(told);
        let mut seen = Vec::new();
        for (part, done) in [(0, 1), (1, 2), (0, 4), (0, 1), (1, 4), (7, 4)] {
            progress.report((part, 2), done, 4);
            seen.push(follower.borrow().progress);
        }
        assert_eq!(seen, [125, 375, 750, 750, 1000, 1000]);
        progress.report((0, 2), 1, 0);
        Progress::default().report((0, 1), 1, 1);
    }
}
