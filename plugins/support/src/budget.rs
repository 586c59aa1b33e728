//! Work whose memory and time are bounded, whatever it does: templates, say, that come with a model and can make anything of
//! a short text.
//!
//! The work runs in a thread of its own. The plugin's allocator counts what that thread takes, and a thread that asks for more
//! than it may is never answered: an allocation can neither fail nor unwind, but it may take for ever. What it has is lost with
//! it, and it may hold locks, so the process should be given up soon.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// Pieces of work at once.
const SLOTS: usize = 64;
/// Between two looks at whether work has taken too much.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What work may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes at a time.
    pub bytes: usize,
    /// How long it may run.
    pub time: Duration,
}

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overrun {
    /// It asked for more memory. Its thread never ends.
    Memory,
    /// It ran for longer, and runs on.
    Time,
    /// It panicked, or there was no thread for it.
    Ended,
}

/// The system's allocator, which heeds budgets. To be the plugin's `#[global_allocator]`; without it only time is bounded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Budgeted;

/// What a thread may still take.
#[derive(Clone, Copy, Debug)]
struct Account {
    left: usize,
    slot: usize,
}

thread_local! {
    static ACCOUNT: Cell<Option<Account>> = const { Cell::new(None) };
}

/// By slot, whether its work asked for more than it may.
static OVER: [AtomicBool; SLOTS] = [const { AtomicBool::new(false) }; SLOTS];
/// A bit for each slot that is taken.
static TAKEN: AtomicU64 = AtomicU64::new(0);

impl Budget {
    /// Does the work, within its budget.
    ///
    /// # Errors
    /// What it took too much of.
    pub fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Overrun> {
        let slot = claim().ok_or(Overrun::Ended)?;
        let (reply, answer) = sync_channel(1);
        let body = move || {
            ACCOUNT.set(Some(Account { left: self.bytes, slot }));
            let result = work();
            ACCOUNT.set(None);
            // Who asked may have given up.
            let _ = reply.send(result);
        };
        if std::thread::Builder::new().name("budgeted".to_owned()).spawn(body).is_err() {
            release(slot);
            return Err(Overrun::Ended);
        }
        let begun = Instant::now();
        loop {
            match answer.recv_timeout(LOOK_EVERY) {
                Ok(result) => {
                    release(slot);
                    return Ok(result);
                }
                Err(RecvTimeoutError::Disconnected) => {
                    release(slot);
                    return Err(Overrun::Ended);
                }
                // The slot stays taken, as the thread stays there.
                Err(RecvTimeoutError::Timeout) if OVER[slot].load(Ordering::Acquire) => return Err(Overrun::Memory),
                Err(RecvTimeoutError::Timeout) if begun.elapsed() >= self.time => return Err(Overrun::Time),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

fn claim() -> Option<usize> {
    let before = TAKEN.fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| {
        (taken != u64::MAX).then(|| taken | 1 << taken.trailing_ones())
    });
    before.ok().map(|taken| taken.trailing_ones() as usize)
}

fn release(slot: usize) {
    TAKEN.fetch_and(!(1 << slot), Ordering::AcqRel);
}

/// The current thread takes so many bytes.
fn take(bytes: usize) {
    let Ok(Some(account)) = ACCOUNT.try_with(Cell::get) else { return };
    // A panic is reported under locks that all threads share, and its backtrace is not the work's own doing.
    if std::thread::panicking() {
        return;
    }
    match account.left.checked_sub(bytes) {
        Some(left) => ACCOUNT.set(Some(Account { left, ..account })),
        None => {
            OVER[account.slot].store(true, Ordering::Release);
            loop {
                std::thread::sleep(Duration::MAX);
            }
        }
    }
}

/// It gives them back, or others' in their place.
fn give(bytes: usize) {
    if let Ok(Some(account)) = ACCOUNT.try_with(Cell::get) {
        ACCOUNT.set(Some(Account { left: account.left.saturating_add(bytes), ..account }));
    }
}

#[expect(unsafe_code, reason = "an allocator is unsafe to implement")]
// SAFETY: every call goes to the system's allocator as it came, or does not return.
unsafe impl GlobalAlloc for Budgeted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        give(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        take(size.saturating_sub(layout.size()));
        give(layout.size().saturating_sub(size));
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: Budgeted = Budgeted;

    const BUDGET: Budget = Budget { bytes: 1 << 20, time: Duration::from_secs(60) };

    #[test]
    fn work_within_its_budget_is_done_and_what_it_frees_it_may_take_again() {
        let sum = BUDGET.run(|| (0..100).map(|n| vec![1_u8; 512 << 10].len() + n).sum::<usize>());
        assert_eq!(sum, Ok(100 * (512 << 10) + 4950));
    }

    #[test]
    fn work_that_asks_for_too_much_is_given_up_however_it_asks() {
        assert_eq!(BUDGET.run(|| vec![1_u8; 2 << 20].len()), Err(Overrun::Memory));
        assert_eq!(BUDGET.run(|| vec![0_u8; 1 << 40].len()), Err(Overrun::Memory));
        let doubling = || {
            let mut text = "x".to_owned();
            (0..60).for_each(|_| text.push_str(&text.clone()));
            text.len()
        };
        assert_eq!(BUDGET.run(doubling), Err(Overrun::Memory));
        let many = || (0..1_000_000).map(Box::new).collect::<Vec<Box<i32>>>().len();
        assert_eq!(BUDGET.run(many), Err(Overrun::Memory));
        // Others are not harmed.
        assert_eq!(BUDGET.run(|| vec![1_u8; 1000].len()), Ok(1000));
        assert_eq!(vec![1_u8; 8 << 20].len(), 8 << 20);
    }

    #[test]
    fn work_that_does_not_end_is_given_up_and_a_panic_is_no_result() {
        let short = Budget { time: Duration::from_millis(50), ..BUDGET };
        assert_eq!(short.run(|| std::thread::sleep(Duration::from_secs(3600))), Err(Overrun::Time));
        assert_eq!(BUDGET.run(|| panic!("as asked")), Err::<(), _>(Overrun::Ended));
    }
}
