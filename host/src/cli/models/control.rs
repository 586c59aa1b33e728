//! `aihost models load` and `unload`.

use serde_json::json;

use super::Named;
use crate::cli::client::Server;
use crate::cli::failure::CliError;
use crate::cli::{Session, out};

/// What is done to the model.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    Load,
    Unload,
}

pub(super) async fn run(session: &Session, named: Named, action: Action) -> Result<(), CliError> {
    let server = Server::of(session, &named.target)?;
    let (path, done) = match action {
        Action::Load => ("/models/load", "loaded"),
        Action::Unload => ("/models/unload", "unloaded"),
    };
    server.post(path, &json!({"model": named.name})).await?;
    out::note(&format!("{} is {done}", named.name));
    Ok(())
}
