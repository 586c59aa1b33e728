//! `aihost logs`: what a model's workers and its plugin said on a running server.

use futures_util::StreamExt;

use super::client::{Server, Target};
use super::failure::CliError;
use super::sse::Events;
use super::{Session, out};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Model or alias.
    name: String,
    /// Go on with every line as it comes.
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    target: Target,
}

pub(super) async fn run(session: &Session, arguments: Arguments) -> Result<(), CliError> {
    let server = Server::of(session, &arguments.target)?;
    if arguments.follow {
        return server.attended(follow(&server, &arguments.name)).await;
    }
    let mut pieces = server.logs(&arguments.name).await?.bytes_stream();
    while let Some(piece) = pieces.next().await {
        out::bytes(&piece.map_err(|error| server.broke_off("the log", &error))?)?;
    }
    Ok(())
}

async fn follow(server: &Server, model: &str) -> Result<(), CliError> {
    let mut events = Events::default();
    let mut pieces = server.follow(model).await?.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| server.broke_off("the log", &error))?;
        events.push(&piece).iter().try_for_each(|line| out::line(line))?;
    }
    Ok(())
}
