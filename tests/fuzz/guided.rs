//! The targets under libFuzzer, which mutates what reached new code. `cargo xtask fuzz` builds it with LLVM's coverage counters and
//! runs it; `AIHOST_FUZZ_TARGET` names the target. Needs a C++ compiler, unlike the tests over the corpus.

#![no_main]
#![expect(clippy::print_stderr, reason = "what was found is read in libFuzzer's log")]

mod bounds;
mod targets;

use std::sync::{LazyLock, Mutex, PoisonError};

use libfuzzer_sys::fuzz_target;
use targets::Target;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("AIHOST_FUZZ_TARGET").unwrap_or_default();
    targets::named(&name).unwrap_or_else(|| panic!("AIHOST_FUZZ_TARGET is `{name}`, which is no target"))
});

/// What panicked last. That is a finding only if nobody caught it, and libFuzzer's own hook would not wait to see.
static PANIC: Mutex<String> = Mutex::new(String::new());

fn note_panics() {
    std::panic::set_hook(Box::new(|panic| {
        *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = panic.to_string();
    }));
}

fuzz_target!(init: note_panics(), |input: &[u8]| {
    if let Err(why) = bounds::check_with_time(&TARGET, input) {
        eprintln!("{why}; the last panic: {}", PANIC.lock().unwrap_or_else(PoisonError::into_inner));
        std::process::abort();
    }
});
