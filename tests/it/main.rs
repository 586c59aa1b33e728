//! Tests of the whole host against real workers and fixture plugins; one binary, so that it links once.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod worker;
