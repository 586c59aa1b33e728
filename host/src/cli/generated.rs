//! `aihost run` of a model that makes files: where the file goes, what is told on the way, and the progress bar.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::client::Server;
use super::failure::CliError;
use super::out;
use super::sse::{EventReader, FILE_EVENT_BYTES};

const BAR: &str = "{msg} {bar:30} {pos}/{len} steps {eta}";

/// The files that models of one type make.
#[derive(Debug)]
pub(super) struct Files<E> {
    /// What is in them.
    pub(super) thing: &'static str,
    /// Endings of their names; the first is what stdout gets.
    pub(super) endings: &'static [&'static str],
    /// The kind of file that an ending says.
    pub(super) by_ending: fn(&str) -> Option<E>,
}

/// Where a file goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Destination<E> {
    /// The standard output, for a pipe.
    Stdout,
    /// A file of a kind that its name says.
    File(PathBuf, E),
}

impl<E> Destination<E> {
    /// Checked before anything is made.
    pub(super) fn of(output: Option<&Path>, files: &Files<E>) -> Result<Self, CliError> {
        let Files { thing, endings, by_ending } = files;
        let usual = endings.first().copied().unwrap_or_default();
        let Some(path) = output else {
            return Err(CliError::usage(format!("this model makes {thing}, which needs a file"))
                .hint(format!("say `-o out.{usual}`, or `-o -` for a .{usual} file on stdout")));
        };
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
        let kind = by_ending(&ending).ok_or_else(|| {
            let known: Vec<_> = endings.iter().map(|ending| format!(".{ending}")).collect();
            CliError::usage(format!("{} is not a {} file", path.display(), known.join(" or ")))
                .hint(format!("the ending says which kind of file is written: `-o out.{usual}`"))
        })?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            return Err(CliError::usage(format!("there is no folder {}", folder.display())).hint("make it first"));
        }
        Ok(Self::File(path.to_owned(), kind))
    }

    /// Puts a file there and says what it is.
    pub(super) fn write(&self, file: &[u8], what: &str) -> Result<(), CliError> {
        match self {
            Self::Stdout => out::bytes(file),
            Self::File(path, _) => {
                let failed = |error| CliError::failed(format!("{} cannot be written: {error}", path.display()));
                std::fs::write(path, file).map_err(failed)?;
                out::note(&format!("{what} in {}", path.display()));
                Ok(())
            }
        }
    }
}

/// Asks for something that is made in steps. Progress moves a bar; `on_event` gets every event by its type, and breaks off
/// with the last.
pub(super) async fn watch(
    server: &Server,
    path: &str,
    request: &Value,
    mut on_event: impl FnMut(&str, &Value) -> Result<ControlFlow<()>, CliError>,
) -> Result<(), CliError> {
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template(BAR) {
        bar.set_style(style);
    }
    bar.set_message("waiting for the model");
    bar.enable_steady_tick(out::TICK);
    let received = async {
        let response = server.post(path, request).await?;
        let mut events = EventReader::new(FILE_EVENT_BYTES);
        let mut pieces = response.bytes_stream();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| server.broke_off("the answer", &error))?;
            for data in events.push(&piece)? {
                let (name, event) = event(&data)?;
                if name.ends_with(".progress") {
                    let number = |key: &str| event.get(key).and_then(Value::as_u64).unwrap_or(0);
                    bar.set_message("making it");
                    bar.set_length(number("total"));
                    bar.set_position(number("done"));
                }
                if on_event(&name, &event)?.is_break() {
                    return Ok(());
                }
            }
        }
        Err(CliError::failed("the answer broke off before its end"))
    };
    let received = server.attended(received).await;
    bar.finish_and_clear();
    received
}

/// What a field of an event holds as base64.
pub(super) fn bytes(event: &Value, key: &str) -> Result<Vec<u8>, CliError> {
    let text = event.get(key).and_then(Value::as_str).unwrap_or_default();
    BASE64_STANDARD.decode(text).map_err(|e| CliError::failed(format!("the answer is not base64: {e}")))
}

/// An event and its type, or the error that it tells of.
fn event(data: &str) -> Result<(String, Value), CliError> {
    let event: Value =
        serde_json::from_str(data).map_err(|e| CliError::failed(format!("the answer is not JSON: {e}")))?;
    if let Some(error) = event.get("error") {
        let message = error.get("message").and_then(Value::as_str).unwrap_or("the model failed");
        return Err(CliError::failed(message));
    }
    let name = event.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok((name, event))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_says_what_is_written() {
        let by_ending = |ending: &str| ["a", "b"].into_iter().find(|known| *known == ending);
        let files = Files { thing: "noise", endings: &["a", "b"], by_ending };
        let of = |path: &str| Destination::of(Some(Path::new(path)), &files).map_err(|error| format!("{error:?}"));
        assert_eq!(of("out.a"), Ok(Destination::File("out.a".into(), "a")));
        assert_eq!(of("/tmp/OUT.B"), Ok(Destination::File("/tmp/OUT.B".into(), "b")));
        assert_eq!(of("-"), Ok(Destination::Stdout));
        for (path, word) in [("out.mp3", ".a or .b"), ("out", ".a or .b"), ("/no/such/folder/out.a", "folder")] {
            assert!(of(path).unwrap_err().contains(word), "{path}");
        }
        let none = format!("{:?}", Destination::of(None, &files));
        assert!(none.contains("-o out.a") && none.contains("noise"), "{none}");
    }

    #[test]
    fn events_are_told_apart() {
        let of = |data: &str| event(data).map_err(|error| error.to_string());
        let (name, delta) = of(r#"{"type":"audio_generation.delta","audio":"aGk="}"#).unwrap();
        assert_eq!((name.as_str(), bytes(&delta, "audio").unwrap().as_slice()), ("audio_generation.delta", &b"hi"[..]));
        assert!(bytes(&serde_json::json!({"audio": "?"}), "audio").is_err());
        assert_eq!(of(r#"{"error":{"message":"it died"}}"#).unwrap_err(), "it died");
        assert!(of("[DONE]").is_err());
    }
}
