//! `aihost models load`, `park` and `unload`.

use serde_json::json;

use super::Named;
use crate::cli::client::Server;
use crate::cli::failure::CliError;
use crate::cli::{CommandContext, out};

/// What is done to the model.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    Load,
    Park,
    Unload { force_after: Option<f32> },
}

pub(super) async fn run(context: &CommandContext, named: Named, action: Action) -> Result<(), CliError> {
    let server = Server::of(context, &named.target)?;
    let (path, done) = match action {
        Action::Load => ("/models/load", "loaded"),
        Action::Park => ("/models/park", "parked"),
        Action::Unload { .. } => ("/models/unload", "unloaded"),
    };
    let mut body = json!({"model": named.name});
    if let Action::Unload { force_after: Some(seconds) } = action {
        body["force_after"] = json!(seconds);
    }
    server.attended(server.post(path, &body)).await?;
    out::note(&format!("{} is {done}", named.name));
    Ok(())
}
