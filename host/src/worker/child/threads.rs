//! The threads that requests run on. One that is done takes the next request: what it costs to start a thread, and to give it
//! its share of the processors, would be a tenth of a short request. What a plugin's libraries keep per thread stays warm too.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::device;

/// How long a thread waits for another request before it ends, and its stack with it.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// What a request does from its first to its last moment here.
type Job = Box<dyn FnOnce() + Send>;

/// Starts requests, each at once: as many threads as there are requests in progress.
#[derive(Clone, Default)]
pub(super) struct Threads(Arc<Waiting>);

/// Threads that wait, and what they were given.
#[derive(Default)]
struct Waiting {
    queue: Mutex<Queue>,
    given: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Threads that wait, those that were given a job and have not woken yet included.
    idle: usize,
    /// At most as many as threads are idle.
    jobs: VecDeque<Job>,
}

impl Threads {
    /// Runs the job now, on a thread that waits or on a new one.
    ///
    /// # Errors
    /// The system has no thread for it; the job was dropped.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let job = Box::new(job);
        {
            let mut queue = self.0.queue.lock();
            if queue.idle > queue.jobs.len() {
                queue.jobs.push_back(job);
                self.0.given.notify_one();
                return Ok(());
            }
        }
        let waiting = Arc::clone(&self.0);
        let work = move || {
            device::compute();
            let mut next: Option<Job> = Some(job);
            while let Some(job) = next.take() {
                job();
                next = waiting.next();
            }
        };
        thread::Builder::new().name("request".into()).spawn(work).map(drop)
    }
}

impl Waiting {
    /// The next job; nothing if none came for so long that the thread should end.
    fn next(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        queue.idle += 1;
        self.given.wait_while_for(&mut queue, |queue| queue.jobs.is_empty(), IDLE_LIMIT);
        queue.idle -= 1;
        queue.jobs.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::thread::{self, ThreadId};
    use std::time::Duration;

    use super::Threads;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Starts a job that tells its thread, and ends once its gate is dropped.
    fn start(threads: &Threads) -> (Receiver<ThreadId>, std::sync::mpsc::Sender<()>) {
        let (tell, told) = channel();
        let (gate, closed) = channel::<()>();
        threads
            .run(move || {
                tell.send(thread::current().id()).unwrap();
                let _closed = closed.recv();
            })
            .unwrap();
        (told, gate)
    }

    fn wait_idle(threads: &Threads, idle: usize) {
        while threads.0.queue.lock().idle != idle {
            thread::yield_now();
        }
    }

    #[test]
    fn requests_at_once_have_a_thread_each_and_later_ones_take_over_theirs() {
        let threads = Threads::default();
        let jobs: Vec<_> = (0..3).map(|_| start(&threads)).collect();
        let mut first: Vec<ThreadId> = jobs.iter().map(|(told, _)| told.recv_timeout(PATIENCE).unwrap()).collect();
        drop(jobs);
        wait_idle(&threads, 3);
        let jobs: Vec<_> = (0..4).map(|_| start(&threads)).collect();
        let then: Vec<ThreadId> = jobs.iter().map(|(told, _)| told.recv_timeout(PATIENCE).unwrap()).collect();
        first.retain(|thread| !then.contains(thread));
        assert!(first.is_empty(), "threads that were idle are used: {then:?}");
        drop(jobs);
        wait_idle(&threads, 4);
    }
}
