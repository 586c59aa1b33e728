//! What only the C library can do.

/// Gives the heap's free pages back to the system: an allocator keeps them for later, but the memory of a parked model is
/// someone else's now.
pub(super) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` takes no pointer and locks the allocator itself; it may be called from any thread at any time.
    #[expect(unsafe_code, reason = "the C library has no safe face for it")]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Ends the process at once: exit handlers of the plugin's libraries may hang, so none is run.
pub(super) fn leave(code: i32) -> ! {
    // SAFETY: `_exit` takes no pointer and does not return.
    #[expect(unsafe_code, reason = "the standard library's exit runs the handlers")]
    unsafe {
        libc::_exit(code)
    }
}
