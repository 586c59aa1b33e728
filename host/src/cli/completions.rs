//! `aihost completions`: what a shell loads to complete this command line.

use clap::Command;
use clap_complete::Shell;

use super::failure::CliError;
use super::out;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The shell that the script is for.
    shell: Shell,
}

pub(super) fn run(arguments: &Arguments, mut command: Command) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "aihost", &mut script);
    out::text(&String::from_utf8_lossy(&script))
}
