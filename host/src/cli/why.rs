//! `aihost why`: what a request for a model would meet on a running server, and who would leave for it.

use super::client::{Server, ServerTarget};
use super::failure::CliError;
use super::table::Column;
use super::{CommandContext, out};
use crate::domain::ByteSize;
use serde_json::Value;

const COLUMNS: [Column; 6] = [
    Column::whole("MODEL"),
    Column::words("WOULD"),
    Column::whole("MEMORY").dispensable(1),
    Column::whole("IDLE").dispensable(3),
    Column::whole("COMES BACK IN").dispensable(2),
    Column::words("WHY"),
];

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Model or alias.
    name: String,
    #[command(flatten)]
    target: ServerTarget,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(context: &CommandContext, arguments: Arguments) -> Result<(), CliError> {
    let plan = Server::of(context, &arguments.target)?.plan(&arguments.name).await?;
    if arguments.json {
        return out::json(&plan);
    }
    out::prose(plan["message"].as_str().unwrap_or_default())?;
    let rows: Vec<Vec<String>> = ["leaves", "stays"].into_iter().flat_map(|part| others(&plan, part)).collect();
    if rows.is_empty() { Ok(()) } else { out::table(&COLUMNS, rows) }
}

fn others(plan: &Value, part: &str) -> Vec<Vec<String>> {
    let dash = || "-".to_owned();
    let seconds = |value: &Value| value.as_u64().map_or_else(dash, |ms| format!("{}.{} s", ms / 1000, ms % 1000 / 100));
    let row = |other: &Value| {
        let would = other["how"].as_str().unwrap_or("stay");
        let reason = other["reason"].as_str().unwrap_or("idle and the least valuable");
        vec![
            other["model"].as_str().unwrap_or_default().to_owned(),
            would.to_owned(),
            ByteSize(other["memory"].as_u64().unwrap_or(0)).to_string(),
            seconds(&other["idle_ms"]),
            seconds(&other["takes_ms"]),
            reason.to_owned(),
        ]
    };
    plan[part].as_array().map(|others| others.iter().map(row).collect()).unwrap_or_default()
}
