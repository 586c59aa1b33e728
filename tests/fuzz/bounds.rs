//! What an input may cost: no panic, memory of a few times its bytes, and time in proportion to them.
//!
//! Memory is what the thread that reads has allocated and not freed, by the allocator that the engines bring with them. Time is
//! looked at by the fuzzer alone, as processor time of the process: a test on a busy machine knows no time.

use std::time::Duration;

use aihost_support::budget::{Budget, Overrun};

use crate::targets::{Target, Time};

/// How long anything may take, on whatever machine: an end to what hangs, and no measure.
const WATCHDOG: Duration = Duration::from_secs(60);

/// Reads the input as the target does.
pub(crate) fn check(target: &Target, input: &[u8]) -> Result<(), String> {
    let bytes = target.extra_bytes + target.copies * input.len();
    let (run, owned) = (target.run, input.to_vec());
    // What is read is not what reading takes.
    let budget = Budget { bytes: bytes + input.len(), time: WATCHDOG };
    budget.run(move || run(&owned)).map_err(|overrun| match overrun {
        Overrun::Memory => format!("{} bytes took more than {bytes} bytes of memory", input.len()),
        Overrun::Time => format!("{} bytes took more than {} s", input.len(), WATCHDOG.as_secs()),
        Overrun::Ended => format!("{} bytes: it panicked", input.len()),
    })
}

/// The same, and whether the processor was busy for longer than so many bytes may keep it.
#[cfg_attr(test, expect(dead_code, reason = "the fuzzer's, which is another program of the same modules"))]
pub(crate) fn check_with_time(target: &Target, input: &[u8]) -> Result<(), String> {
    let begin = processor_time();
    check(target, input)?;
    let Time::Linear { extra, per_byte } = target.time else { return Ok(()) };
    let most = extra + per_byte * u32::try_from(input.len()).unwrap_or(u32::MAX);
    let (Some(begin), Some(end)) = (begin, processor_time()) else { return Ok(()) };
    let taken = end.saturating_sub(begin);
    // Counted in ticks, so one may be too many.
    if taken > most + TICK {
        return Err(format!("{} bytes took {taken:?} of the processor, of at most {most:?}", input.len()));
    }
    Ok(())
}

/// What Linux counts a process's time in.
const TICK: Duration = Duration::from_millis(10);

/// Time of all threads of this process, in the kernel too.
fn processor_time() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = stat.rsplit(')').next()?.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    Some(TICK * (ticks()? + ticks()?))
}
