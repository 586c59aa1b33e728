//! Memory that nobody planned, taken in every way there is. It is touched, so that it counts, and never given back.

use std::sync::Mutex;
use std::time::Duration;

use aihost_plugin_api::Result;

/// What is taken at a time by those who take it bit by bit.
const BIT_BYTES: u64 = 8 << 20;
/// Between two bits.
const BIT_PAUSE: Duration = Duration::from_millis(20);

static HOARD: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// How long what was taken in a request is held before the request goes on: it is to be seen.
const SHOWN: Duration = Duration::from_secs(1);

/// Takes all of it while a request waits.
pub(crate) fn in_request(bytes: u64) {
    at_once(bytes);
    std::thread::sleep(SHOWN);
}

/// Takes all of it.
pub(crate) fn at_once(bytes: u64) {
    // Ones, because zeros may lie in pages that are not there.
    let taken = vec![1; bytes as usize];
    HOARD.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(taken);
}

/// Takes a bit, says so, and so on.
pub(crate) fn slowly(bytes: u64, mut say: impl FnMut() -> Result<()>) -> Result<()> {
    for _ in 0..bytes.div_ceil(BIT_BYTES) {
        at_once(BIT_BYTES);
        say()?;
        std::thread::sleep(BIT_PAUSE);
    }
    Ok(())
}

/// Takes it bit by bit in a thread of its own.
pub(crate) fn when_idle(bytes: u64) {
    std::thread::spawn(move || slowly(bytes, || Ok(())));
}
