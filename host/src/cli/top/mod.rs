//! `aihost top`: a running server as one screen that renews itself: devices, models, who waits, what came and left, the last
//! requests. Where nobody looks at a terminal it prints one screen and ends.

mod frame;
mod screen;

use std::io::{self, IsTerminal};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, timeout};

use self::frame::{Frame, Told};
use self::screen::{Key, Screen};
use super::client::{Server, ServerTarget};
use super::failure::CliError;
use super::{CommandContext, out};

/// Between two looks at the server.
const EVERY: Duration = Duration::from_secs(1);
/// How long a server may take to answer until it is said to be lost.
const PATIENCE: Duration = Duration::from_secs(2);

/// What `aihost top` is asked.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    target: ServerTarget,
    /// Print one screen and end. Where stdout or stdin is no terminal, that is so anyway.
    #[arg(long)]
    once: bool,
    /// Show only models and requests with these words in them.
    #[arg(long, value_name = "WORDS", default_value = "")]
    filter: String,
}

pub(super) async fn run(context: &CommandContext, arguments: Arguments) -> Result<(), CliError> {
    let server = Server::of(context, &arguments.target)?;
    let told: Told = server.overview().await?;
    let mut frame = Frame::of(arguments.filter);
    if arguments.once || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return out::line(&frame.lines(&told, out::width(), None).join("\n"));
    }
    watch(&server, told, frame).await
}

/// Renews the screen until somebody ends it.
async fn watch(server: &Server, mut told: Told, mut frame: Frame) -> Result<(), CliError> {
    let cannot = |error: io::Error| CliError::failed(format!("this terminal cannot be used: {error}"));
    let mut screen = Screen::open().map_err(cannot)?;
    let mut looks = interval(EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut ended, mut hung_up) =
        (signal(SignalKind::terminate()).map_err(cannot)?, signal(SignalKind::hangup()).map_err(cannot)?);
    loop {
        let (columns, rows) = screen.size();
        screen.draw(&frame.lines(&told, Some(columns), Some(rows)))?;
        tokio::select! {
            _ = looks.tick() => match timeout(PATIENCE, server.overview()).await {
                Ok(Ok(news)) => (told, frame.lost) = (news, None),
                Ok(Err(error)) => frame.lost = Some(error.to_string()),
                Err(_) => frame.lost = Some(format!("no answer for {} s", PATIENCE.as_secs())),
            },
            key = screen.key() => match key {
                None | Some(Key::Quit) if !frame.is_typing => return Ok(()),
                None | Some(Key::Interrupt) => return Ok(()),
                Some(key) => frame.take(key),
            },
            _ = ended.recv() => return Ok(()),
            _ = hung_up.recv() => return Ok(()),
        }
    }
}
