//! How the host's process keeps the memory that it gave back.

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
