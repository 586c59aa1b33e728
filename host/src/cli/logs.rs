//! `aihost logs`: what a model's workers and its plugin said on a running server.

use futures_util::StreamExt;

use super::client::{Server, ServerTarget};
use super::failure::CliError;
use super::sse::{EventReader, TEXT_EVENT_BYTES};
use super::{CommandContext, out};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Model or alias.
    name: String,
    /// Go on with every line as it comes.
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    target: ServerTarget,
}

pub(super) async fn run(context: &CommandContext, arguments: Arguments) -> Result<(), CliError> {
    let server = Server::of(context, &arguments.target)?;
    if arguments.follow {
        return server.attended(follow(&server, &arguments.name)).await;
    }
    let mut begun = Vec::new();
    let mut pieces = server.logs(&arguments.name).await?.bytes_stream();
    while let Some(piece) = pieces.next().await {
        begun.extend_from_slice(&piece.map_err(|error| server.broke_off("the log", &error))?);
        let whole = begun.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines: Vec<u8> = begun.drain(..whole).collect();
        String::from_utf8_lossy(&lines).lines().try_for_each(out::line)?;
        if begun.len() > TEXT_EVENT_BYTES {
            return Err(CliError::failed(format!("a line of the log is longer than {TEXT_EVENT_BYTES} bytes")));
        }
    }
    String::from_utf8_lossy(&begun).lines().try_for_each(out::line)
}

async fn follow(server: &Server, model: &str) -> Result<(), CliError> {
    let mut events = EventReader::new(TEXT_EVENT_BYTES);
    let mut pieces = server.follow(model).await?.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| server.broke_off("the log", &error))?;
        events.push(&piece)?.iter().try_for_each(|line| out::line(line))?;
    }
    out::note("the server has ended, and the log with it");
    Ok(())
}
