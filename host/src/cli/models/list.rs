//! `aihost models list`.

use serde::Serialize;

use crate::cli::client::{ListedModel, Listing, Server};
use crate::cli::failure::CliError;
use crate::cli::table::Column;
use crate::cli::{CommandContext, out};
use crate::config::ModelConfig;
use crate::domain::ByteSize;
use crate::store::{Digests, Presence, presence};

const COLUMNS: [Column; 6] = [
    Column::whole("MODEL"),
    Column::whole("TYPE").dispensable(2),
    Column::cut("PLUGIN").dispensable(3),
    Column::whole("FILES"),
    Column::whole("SIZE").dispensable(1),
    Column::whole("STATE"),
];

/// An entry as it is shown.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    plugin: String,
    aliases: Vec<String>,
    /// `present`, `missing`, `wrong digest`, `not usable`, `none needed`, or `not known`.
    files: &'static str,
    /// Bytes on disk.
    size: u64,
    /// Where it stands on the server; `None` if that cannot be reached.
    state: Option<String>,
}

pub(super) async fn run(context: &CommandContext, arguments: Listing) -> Result<(), CliError> {
    let server = Server::of(context, &arguments.target)?;
    let config = match context.load() {
        Ok(config) => config,
        // What is served is known all the same, if it is served.
        Err(error) => return server.status().await.map_or(Err(error), |running| of_server(&running, arguments.json)),
    };
    let (running, unanswered) = match server.status().await {
        Ok(running) => (running, Ok(())),
        // A server that is there and does not answer is a failure; the files are told of first.
        Err(error @ CliError::Unanswered { .. }) => (Vec::new(), Err(error)),
        Err(error) => {
            out::note(&format!("note: no states: {error}"));
            (Vec::new(), Ok(()))
        }
    };
    let digests = Digests::of(&config.paths.state);
    let rows: Vec<Row> = config.models.values().map(|model| row(model, &running, &digests)).collect();
    show(&rows, arguments.json).and(unanswered)
}

/// What a server says of its models, where models.yaml says nothing.
fn of_server(running: &[ListedModel], json: bool) -> Result<(), CliError> {
    let row = |model: &ListedModel| Row {
        name: model.id.clone(),
        kind: model.kind.clone(),
        plugin: model.plugin.clone(),
        aliases: model.aliases.clone(),
        files: "not known",
        size: 0,
        state: Some(model.state.clone()),
    };
    show(&running.iter().map(row).collect::<Vec<_>>(), json)
}

fn show(rows: &[Row], json: bool) -> Result<(), CliError> {
    if json {
        return out::json(&rows);
    }
    let cells = |row: &Row| {
        let size = if row.size == 0 { "-".to_owned() } else { ByteSize(row.size).to_string() };
        let state = row.state.clone().unwrap_or_else(|| "-".to_owned());
        vec![row.name.clone(), row.kind.clone(), row.plugin.clone(), row.files.to_owned(), size, state]
    };
    out::table(&COLUMNS, rows.iter().map(cells).collect())
}

fn row(model: &ModelConfig, running: &[ListedModel], digests: &Digests) -> Row {
    let mut size = 0;
    let mut files = if model.files.is_empty() { "none needed" } else { "present" };
    for file in model.files.values() {
        match presence(file, digests) {
            Presence::Present(bytes) => size += bytes,
            Presence::Folder => {}
            Presence::Absent => files = "missing",
            Presence::WrongDigest(_) => files = "wrong digest",
            Presence::Unusable(_) => files = "not usable",
        }
    }
    Row {
        name: model.id.to_string(),
        kind: model.kind.name().to_owned(),
        plugin: model.plugin.clone(),
        aliases: model.aliases.clone(),
        files,
        size,
        state: running.iter().find(|status| status.id == model.id.as_str()).map(|status| status.state.clone()),
    }
}
