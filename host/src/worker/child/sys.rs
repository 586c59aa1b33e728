//! What only the C library can do.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;

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

/// Closes every descriptor but the first three and this one.
///
/// # Errors
/// Linux before 5.9 cannot close a range; there each number that is possible is closed, and nothing can fail.
pub(super) fn close_all_but(kept: &OwnedFd) -> Result<(), Errno> {
    let kept = kept.as_raw_fd().unsigned_abs();
    for (first, last) in [(3, kept - 1), (kept + 1, u32::MAX)] {
        if first <= last {
            close_range(first, last)?;
        }
    }
    Ok(())
}

fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: the caller keeps no descriptor in the range: this process has opened none but the one it keeps.
    #[expect(unsafe_code, reason = "the C library has no safe face for it")]
    let failed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0;
    match Errno::from_io_error(&std::io::Error::last_os_error()) {
        Some(Errno::NOSYS) if failed => close_one_by_one(first, last),
        Some(errno) if failed => return Err(errno),
        _ => {}
    }
    Ok(())
}

fn close_one_by_one(first: u32, last: u32) {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 16);
    let last = last.min(u32::try_from(most).unwrap_or(u32::MAX));
    for descriptor in first..=last {
        // SAFETY: as above; a number that is not open is no harm.
        #[expect(unsafe_code, reason = "the descriptor was inherited, nothing here owns it")]
        unsafe {
            libc::close(descriptor.cast_signed())
        };
    }
}
