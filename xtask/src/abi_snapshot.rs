//! `abi-snapshot`: blesses the ABI's present layout.

use crate::error::Result;
use crate::shell;

/// Writes plugin-api/abi/abi.txt and the fingerprint anew.
pub(crate) fn run() -> Result {
    let arguments = ["test", "--package", "aihost-plugin-abi", "snapshot"];
    shell::run(shell::cargo().args(arguments).env("AIHOST_BLESS", "1"))?;
    println!("wrote plugin-api/abi/abi.txt and its fingerprint; say what changed in docs/CHANGELOG.md");
    Ok(())
}
