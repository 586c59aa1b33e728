//! The command line, one file per subcommand.

use std::process::ExitCode;

/// Parses the arguments, runs the command, and says how it went.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
