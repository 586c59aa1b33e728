//! Tests of the whole host wait for what happens, not for time to pass: a busy machine is slow, and that is no fault.

use super::Finding;
use super::source::{line_of, words};

/// Where no clock is read. What waits for a predicate, with a limit, is in `tests/src`.
const WITHOUT_CLOCK: &str = "tests/it/";
/// Where time is itself what is promised: how long a worker may hold too much, how much a flood may say in a second, what a
/// pause leaves alone.
const ABOUT_TIME: [&str; 4] = ["tests/it/gpu.rs", "tests/it/grant.rs", "tests/it/noise.rs", "tests/it/pause.rs"];
const CLOCK: [&str; 4] = ["sleep", "Instant", "SystemTime", "elapsed"];

/// Checks one file.
pub(super) fn check(path: &str, code: &str) -> Vec<Finding> {
    if !path.starts_with(WITHOUT_CLOCK) || ABOUT_TIME.contains(&path) {
        return Vec::new();
    }
    let found = |word| words(code, word).map(move |at| (word, at));
    let sentence = |word| {
        format!(
            "`{word}`: a test waits for a predicate (`aihost_tests::wait_for`), holds a fixture at its gate, or counts"
        )
    };
    CLOCK.into_iter().flat_map(found).map(|(word, at)| Finding::new(path, line_of(code, at), sentence(word))).collect()
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn a_clock_is_found_in_tests_of_the_host_alone() {
        let code = "let begun = Instant::now();\nsleep(moment).await;\nassert!(begun.elapsed() < limit);";
        let mut lines: Vec<_> = check("tests/it/a.rs", code).into_iter().map(|finding| finding.line).collect();
        lines.sort_unstable();
        assert_eq!(lines, [1, 2, 3]);
        assert_eq!(check("tests/src/lib.rs", code), []);
        assert_eq!(check("tests/it/a.rs", "wait_for(\"it\", ready).await; timeout(PATIENCE, x).await"), []);
    }
}
