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
    let response = Server::of(session, &arguments.target)?.logs(&arguments.name, arguments.follow).await?;
    let mut events = Events::default();
    let broke = |e| CliError::failed(format!("the log broke off: {e}"));
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(broke)?;
        if arguments.follow {
            events.push(&piece).iter().try_for_each(|line| out::line(line))?;
        } else {
            out::bytes(&piece)?;
        }
    }
    Ok(())
}
