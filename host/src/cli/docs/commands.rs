//! docs/CLI.md.

use std::fmt::Write;

use clap::{Arg, Command};

use super::table;
use crate::cli::EXIT_CODES;

const HEAD: &str = "# Command line

Written by `cargo xtask docgen` from the commands themselves; each also has `--help`. Data goes to standard output, everything
else to standard error. Where there is a table there is `--json`.

";

pub(super) fn page(mut command: Command) -> String {
    command.build();
    let mut text = HEAD.to_owned();
    text += "## Exit codes\n\n";
    text += &table(&["code", "meaning"], EXIT_CODES.map(|(code, meaning)| vec![code.to_string(), meaning.to_owned()]));
    text += "\n## Options of every command\n\n";
    text += &arguments(command.get_arguments().filter(|argument| argument.is_global_set()));
    section(&mut text, &command, "aihost");
    text
}

/// A command that does something; those that only hold others are told by those.
fn section(text: &mut String, command: &Command, path: &str) {
    let mut children = command.get_subcommands().filter(|child| !child.is_hide_set() && child.get_name() != "help");
    if command.get_subcommands().next().is_none() {
        // Writing to a string does not fail.
        let _written = write!(text, "\n## `{path}`\n\n{}\n", sentence(command));
        let own: Vec<&Arg> = command
            .get_arguments()
            .filter(|a| !a.is_hide_set() && !a.is_global_set() && a.get_id() != "help")
            .collect();
        if !own.is_empty() {
            *text += "\n";
            *text += &arguments(own.into_iter());
        }
    }
    children.by_ref().for_each(|child| section(text, child, &format!("{path} {}", child.get_name())));
}

fn sentence(command: &Command) -> String {
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    if about.ends_with('.') { about } else { format!("{about}.") }
}

fn arguments<'a>(arguments: impl Iterator<Item = &'a Arg>) -> String {
    let row = |argument: &'a Arg| vec![format!("`{}`", name(argument)), meaning(argument)];
    table(&["argument", "meaning"], arguments.map(row))
}

fn name(argument: &Arg) -> String {
    let value = argument.get_value_names().map(|names| names.join(" ")).unwrap_or_default();
    match argument.get_long() {
        Some(long) if argument.get_action().takes_values() => format!("--{long} {value}"),
        Some(long) => format!("--{long}"),
        None if argument.is_required_set() => value,
        None => format!("[{value}]"),
    }
}

fn meaning(argument: &Arg) -> String {
    let mut text = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let possible: Vec<String> = argument
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set() && argument.get_action().takes_values())
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if !text.ends_with('.') && !text.is_empty() {
        text.push('.');
    }
    if !possible.is_empty() {
        text += &format!(" One of {}.", possible.join(", "));
    }
    let defaults: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if !defaults.is_empty() && argument.get_action().takes_values() {
        text += &format!(" Default: `{}`.", defaults.join(" "));
    }
    text.trim().to_owned()
}
