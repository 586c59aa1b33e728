//! An allocator that counts, for tests and measures that set what a plugin takes beside what it plans.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

static NOW: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);

/// Counts bytes on their way to the system's allocator. To be the process's `#[global_allocator]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counting;

impl Counting {
    /// Bytes allocated and not yet freed.
    pub fn now() -> u64 {
        NOW.load(Ordering::Relaxed)
    }

    /// The most there were at a time since [`reset_peak`](Self::reset_peak).
    pub fn peak() -> u64 {
        PEAK.load(Ordering::Relaxed)
    }

    /// Forgets what there was before.
    pub fn reset_peak() {
        PEAK.store(Self::now(), Ordering::Relaxed);
    }

    fn add(bytes: usize) {
        let now = NOW.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        PEAK.fetch_max(now, Ordering::Relaxed);
    }
}

#[expect(unsafe_code, reason = "an allocator is unsafe to implement")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::add(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::add(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}
