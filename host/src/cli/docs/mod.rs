//! `aihost docs`, hidden: the pages of docs/ that are written from the code. `cargo xtask docgen` puts them in their place.

mod commands;
mod config;
mod metrics;

use clap::{Command, ValueEnum};

use super::failure::CliError;
use super::out;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The page that is printed.
    page: Page,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Page {
    /// Every metric with its labels.
    Metrics,
    /// Every key of models.yaml.
    Config,
    /// Every command with its options.
    Cli,
    /// Every field that is read of a request, as JSON: for tests, not a page.
    Requests,
}

pub(super) fn run(arguments: &Arguments, command: Command) -> Result<(), CliError> {
    out::text(&match arguments.page {
        Page::Metrics => metrics::page(),
        Page::Config => config::page(&crate::config::json_schema()),
        Page::Cli => commands::page(command),
        Page::Requests => requests()?,
    })
}

fn requests() -> Result<String, CliError> {
    serde_json::to_string(&crate::http::request_fields()).map_err(|error| CliError::failed(error.to_string()))
}

/// A Markdown table.
fn table(heading: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&heading.iter().map(ToString::to_string).collect::<Vec<_>>());
    text += &format!("|{}\n", "---|".repeat(heading.len()));
    for row in rows {
        text += &line(&row.iter().map(|cell| cell.replace('|', "\\|").replace('\n', " ")).collect::<Vec<_>>());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::json_schema;
    use crate::telemetry::Metric;

    #[test]
    fn every_metric_key_and_command_has_its_place() {
        let page = metrics::page();
        for metric in Metric::ALL {
            assert!(page.contains(&format!("`{}`", metric.spec().name)), "{metric:?} is not in\n{page}");
        }
        let page = config::page(&json_schema());
        for row in ["| `limits` | [Limits](#limits)", "| `hold` | duration | 90s |", "| `id` | text | required |"] {
            assert!(page.contains(row), "no `{row}` in\n{page}");
        }
        assert!(!page.contains("| any |"), "a key has no type in\n{page}");
        let page = commands::page(<super::super::Arguments as clap::CommandFactory>::command());
        for line in [
            "## `aihost models pull`",
            "| `--config FILE` |",
            "| 4 | the server cannot be reached, or does not answer |",
        ] {
            assert!(page.contains(line), "no `{line}` in\n{page}");
        }
        assert!(!page.contains("aihost worker") && !page.contains("aihost docs"), "{page}");
    }
}
