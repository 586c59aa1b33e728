//! Readers of others panic over some of what they do not expect. Here that is a file that cannot be read, and no more.
//!
//! Not for our own code, whose panics are faults to be seen.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What the work comes to.
///
/// # Errors
/// A sentence about the file, if the work panicked; the panic itself is in the log.
pub fn caught<T, E: std::fmt::Display>(work: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    // What the work was about to change is dropped with it, or was only read.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("it is not what its reader expects".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::caught;

    #[test]
    fn a_panic_is_an_error_and_an_error_stays_what_it_is() {
        assert_eq!(caught(|| Ok::<_, String>(7)), Ok(7));
        assert_eq!(caught(|| Err::<u8, _>("cut")), Err("cut".to_owned()));
        let found = caught(|| -> Result<u8, String> { panic!("as asked") });
        assert!(found.is_err_and(|words| words.contains("not what its reader expects")));
    }
}
