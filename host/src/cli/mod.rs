//! The command line, one file per subcommand.

use std::process::ExitCode;

/// Parses the arguments, runs the command, and says how it went.
pub fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|command| command == "worker") {
        return crate::worker::worker_main();
    }
    ExitCode::SUCCESS
}
