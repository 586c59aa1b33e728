//! How the host's process keeps the memory that it gave back.

use std::thread;
use std::time::Duration;

/// Bytes from which an allocation is a mapping of its own, which is gone once it is freed. Left to itself the C library raises
/// this with every large block it sees, and then keeps such blocks.
const MAPPED_BYTES: i32 = 128 << 10;
/// Free bytes at an arena's end beyond which they go back to the system.
const TRIM_BYTES: i32 = 256 << 10;
/// Arenas that threads share. Left to itself the C library makes eight for each core, and each keeps what was free in it.
const ARENAS_MAX: i32 = 2;

/// Sets the allocator to give back what is free rather than keep it for later: the host is there for months, and its peaks
/// are other programs' memory. Called once, before there are threads.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, ARENAS_MAX), (libc::M_MMAP_THRESHOLD, MAPPED_BYTES), (libc::M_TRIM_THRESHOLD, TRIM_BYTES)]
    {
        // SAFETY: `mallopt` takes two numbers and locks the allocator itself. One that it does not know it ignores.
        #[expect(unsafe_code, reason = "the C library has no safe face for it")]
        let _known = unsafe { libc::mallopt(parameter, value) };
    }
}

/// Between two looks at what the process holds.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Bytes beyond the least that it was seen to hold which are left to it: to give them back would cost more than it brings.
const LEFT_BYTES: u64 = 8 << 20;

/// Pages that were touched anew between two looks, beyond which the process is busy with what fills its heap. To give pages back
/// holds the allocator's locks for milliseconds: requests of that moment would wait, and the pages be needed again.
const BUSY_PAGES: u64 = 512;
/// Looks in a row at a busy process after which its pages go back all the same.
const BUSY_LOOKS_MAX: u32 = 20;

/// From now on what is free within the heap goes back as well, a few seconds after it was needed last: between two blocks that
/// stay, the C library keeps what was freed, and a flood of requests leaves tens of MiB of such holes.
pub(super) fn keep_small() {
    #[cfg(target_env = "gnu")]
    // Without such a thread the heap stays as large as it was.
    let _started = thread::Builder::new().name("heap-trimmer".into()).spawn(|| {
        // It holds the allocator's locks for a moment, and must not be interrupted in that.
        crate::device::serve();
        let (mut least, mut touched, mut busy_looks) = (u64::MAX, 0, 0);
        while let (Some(held), Some(now_touched)) = (resident_bytes(), touched_pages()) {
            let is_busy = now_touched.saturating_sub(touched) > BUSY_PAGES;
            busy_looks = if is_busy { busy_looks + 1 } else { 0 };
            touched = now_touched;
            if held > least.saturating_add(LEFT_BYTES) && (!is_busy || busy_looks > BUSY_LOOKS_MAX) {
                trim();
                busy_looks = 0;
            }
            least = least.min(resident_bytes().unwrap_or(held));
            thread::sleep(LOOK_EVERY);
        }
    });
}

/// Gives back every free page.
#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: `malloc_trim` takes no pointer and locks the allocator itself; it may be called from any thread at any time.
    #[expect(unsafe_code, reason = "the C library has no safe face for it")]
    let _whether_any = unsafe { libc::malloc_trim(0) };
}

/// What this process holds of the machine's memory.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let held = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(held.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

/// Pages that this process touched for the first time since it started, or since they were given back.
fn touched_pages() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name, in brackets; `minflt` is the tenth.
    stat.rsplit_once(')')?.1.split_whitespace().nth(7)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_as_they_are_touched() {
        const PAGES: usize = 1 << 10;
        let before = touched_pages().unwrap();
        let bytes = vec![1_u8; PAGES << 12];
        // How many they are is the system's choice: its pages may be large.
        assert!(touched_pages().unwrap() > before);
        drop(bytes);
    }
}
