//! Renders, one at a time, as a server works them off that has answered long before.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What waits and what is under way.
#[derive(Debug, Default)]
pub(crate) struct Renders {
    queue: Mutex<Queue>,
    news: Condvar,
}

/// Numbers of renders.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    pub(crate) running: Option<u64>,
    pub(crate) pending: VecDeque<u64>,
    pub(crate) done: Vec<u64>,
    /// How often memory was asked back.
    pub(crate) freed: u64,
    begun: u64,
}

impl Renders {
    /// Queues a render that takes so long, and gives its number at once.
    pub(crate) fn queue(self: &Arc<Self>, takes: Duration) -> u64 {
        let number = {
            let mut queue = self.lock();
            queue.begun += 1;
            let number = queue.begun;
            queue.pending.push_back(number);
            number
        };
        let shared = Arc::clone(self);
        std::thread::spawn(move || shared.render(number, takes));
        number
    }

    /// As it is now.
    pub(crate) fn now(&self) -> Queue {
        self.lock().clone()
    }

    /// Memory is asked back.
    pub(crate) fn free(&self) {
        self.lock().freed += 1;
    }

    fn render(&self, number: u64, takes: Duration) {
        let must_wait = |queue: &mut Queue| queue.running.is_some() || queue.pending.front() != Some(&number);
        let mut queue = self.news.wait_while(self.lock(), must_wait).unwrap_or_else(PoisonError::into_inner);
        queue.pending.pop_front();
        queue.running = Some(number);
        drop(queue);
        std::thread::sleep(takes);
        let mut queue = self.lock();
        queue.running = None;
        queue.done.push(number);
        drop(queue);
        eprintln!("render {number} is done");
        self.news.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
