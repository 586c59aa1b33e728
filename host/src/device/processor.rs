//! How threads share the processors: what serves is short and comes at once, what a plugin computes comes after it, and what
//! is long and can wait comes last.

use std::time::Duration;

/// How long a thread that serves runs before another one's turn. It does little at a time; by saying so it is let in before
/// those that run longer.
const SERVING_SLICE: Duration = Duration::from_micros(300);
/// How long a thread runs at a stretch that works through something large. What serves need not wait longer for it.
const LONG_WORK_SLICE: Duration = Duration::from_micros(100);
/// What is added to the nice value of such a thread: on a busy machine it has an eighth of what a plugin's has.
const LONG_WORK_NICE: i32 = 19;
/// What is added to the nice value of a plugin's threads. Beside 32 of them that compute without end, on 2 processors, the slowest
/// probe in a hundred takes 20 to 24 ms with 0, 18 to 20 ms with 1, and 6 to 8 ms with 10. But then a model's answers come behind
/// whatever hostile clients have the host do: the slowest patient request in a hundred takes 1.7 times what it takes alone with
/// 1, and 2.0 to 2.1 times with 10.
const PLUGIN_NICE: i32 = 1;
/// How long a plugin's thread runs at a stretch where others want the processor. The probe of above takes 20 ms with and without
/// it; beside hostile clients the ratio was 1.67 to 1.68 in three runs with it, and 1.66 and 1.90 in two without.
const PLUGIN_SLICE: Duration = Duration::from_micros(500);

/// From now on the calling thread is one that answers: it runs at once when there is something to do.
pub fn serve() {
    share(0, SERVING_SLICE, Heirs::Usual);
}

/// From now on the calling thread runs after those that serve.
pub fn work_long() {
    share(LONG_WORK_NICE, LONG_WORK_SLICE, Heirs::Usual);
}

/// From now on the calling thread runs a plugin's code, and so does all that it starts: it runs after those that serve.
pub fn compute() {
    share(PLUGIN_NICE, PLUGIN_SLICE, Heirs::Same);
}

/// What the threads and processes have that a thread starts.
#[derive(Clone, Copy, Debug)]
enum Heirs {
    /// What every thread has.
    Usual,
    /// What it has itself.
    Same,
}

/// Sets the calling thread's share and slice. Linux before 6.12 does not heed the slice, and where none of it may be set the
/// thread runs as every other one does.
fn share(nicer: i32, slice: Duration, heirs: Heirs) {
    let Ok(nice) = rustix::process::getpriority_process(None) else { return };
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER as u32,
        sched_flags: match heirs {
            Heirs::Usual => libc::SCHED_FLAG_RESET_ON_FORK as u64,
            Heirs::Same => 0,
        },
        sched_nice: nice + nicer,
        sched_priority: 0,
        sched_runtime: slice.as_nanos() as u64,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the call reads `size` bytes of a structure that outlives it, and changes the calling thread alone.
    #[expect(unsafe_code, reason = "the C library has no face for it")]
    let _set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The highest that there is.
    const NICE_MAX: i32 = 19;

    /// The calling thread's nice value.
    fn nice() -> i32 {
        rustix::process::getpriority_process(None).unwrap()
    }

    #[test]
    fn long_work_comes_after_what_serves_and_what_it_starts_does_not() {
        let usual = nice();
        std::thread::spawn(move || {
            work_long();
            assert_eq!(nice(), (usual + LONG_WORK_NICE).min(NICE_MAX));
        })
        .join()
        .unwrap();
        std::thread::spawn(move || {
            serve();
            assert_eq!(nice(), usual);
            std::thread::spawn(move || assert_eq!(nice(), usual)).join().unwrap();
        })
        .join()
        .unwrap();
        std::thread::spawn(move || {
            compute();
            let nicer = (usual + PLUGIN_NICE).min(NICE_MAX);
            assert_eq!(nice(), nicer);
            std::thread::spawn(move || assert_eq!(nice(), nicer, "what it starts")).join().unwrap();
        })
        .join()
        .unwrap();
        assert_eq!(nice(), usual, "another thread");
    }
}
