//! `aihost run` of a model that makes sound: a description in, a file out, a progress bar on the way.

use std::io::Write;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::client::Server;
use super::failure::CliError;
use super::out;
use super::sse::Events;
use crate::http::sound::{self, Encoding, Sound};

const BAR: &str = "{msg} {bar:30} {pos}/{len} steps {eta}";

/// Where the sound goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A WAV file on stdout.
    Stdout,
    /// A file of a kind that its name says.
    File(PathBuf, Encoding),
}

impl Target {
    /// Checked before anything is made.
    pub(super) fn of(output: Option<&Path>) -> Result<Self, CliError> {
        let Some(path) = output else {
            return Err(CliError::usage("this model makes sound, which needs a file")
                .hint("say `-o out.wav`, or `-o -` for a WAV file on stdout"));
        };
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
        let encoding = Encoding::by_name(&ending).ok_or_else(|| {
            CliError::usage(format!("{} is neither a .wav nor a .flac file", path.display()))
                .hint("the ending says which kind of file is written: `-o out.wav` or `-o out.flac`")
        })?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            return Err(CliError::usage(format!("there is no folder {}", folder.display())).hint("make it first"));
        }
        Ok(Self::File(path.to_owned(), encoding))
    }

    fn write(&self, sound: &Sound) -> Result<(), CliError> {
        let encoding = match self {
            Self::Stdout => Encoding::Wav,
            Self::File(_, encoding) => *encoding,
        };
        let file = sound.encode(encoding).map_err(CliError::failed)?;
        match self {
            Self::Stdout => {
                let mut stdout = std::io::stdout().lock();
                let written = stdout.write_all(&file).and_then(|()| stdout.flush());
                written.map_err(|error| CliError::failed(format!("stdout cannot be written: {error}")))
            }
            Self::File(path, _) => {
                let failed = |error| CliError::failed(format!("{} cannot be written: {error}", path.display()));
                std::fs::write(path, file).map_err(failed)?;
                out::note(&format!("{:.2} s of sound in {}", sound.seconds(), path.display()));
                Ok(())
            }
        }
    }
}

/// Asks for one piece and writes it. `request` is the body of `POST /v1/audio/generations`.
pub(super) async fn make(server: &Server, mut request: Value, target: &Target) -> Result<(), CliError> {
    request["stream"] = json!(true);
    request["stream_format"] = json!("sse");
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template(BAR) {
        bar.set_style(style);
    }
    bar.set_message("waiting for the model");
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    let received = receive(server, &request, &bar).await;
    bar.finish_and_clear();
    let sound = sound::of_stream(&received?).ok_or_else(|| CliError::failed("the server sent what is no WAV file"))?;
    target.write(&sound)
}

/// The file as it was streamed.
async fn receive(server: &Server, request: &Value, bar: &ProgressBar) -> Result<Vec<u8>, CliError> {
    let response = server.post("/v1/audio/generations", request).await?;
    let mut file = Vec::new();
    let mut events = Events::default();
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|e| CliError::failed(format!("the answer broke off: {e}")))?;
        for data in events.push(&piece) {
            match Event::of(&data)? {
                Event::Progress { done, total } => {
                    bar.set_message("making sound");
                    bar.set_length(total);
                    bar.set_position(done);
                }
                Event::Audio(bytes) => file.extend(bytes),
                Event::Done => return Ok(file),
                Event::Other => {}
            }
        }
    }
    Err(CliError::failed("the answer broke off before its end"))
}

/// An event of the stream.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Progress { done: u64, total: u64 },
    Audio(Vec<u8>),
    Done,
    Other,
}

impl Event {
    fn of(data: &str) -> Result<Self, CliError> {
        let event: Value =
            serde_json::from_str(data).map_err(|e| CliError::failed(format!("the answer is not JSON: {e}")))?;
        if let Some(error) = event.get("error") {
            let message = error.get("message").and_then(Value::as_str).unwrap_or("the model failed");
            return Err(CliError::failed(message));
        }
        let number = |key: &str| event.get(key).and_then(Value::as_u64).unwrap_or(0);
        Ok(match event.get("type").and_then(Value::as_str) {
            Some("audio_generation.progress") => Self::Progress { done: number("done"), total: number("total") },
            Some("audio_generation.delta") => {
                let audio = event.get("audio").and_then(Value::as_str).unwrap_or_default();
                let bytes = BASE64_STANDARD.decode(audio);
                Self::Audio(bytes.map_err(|e| CliError::failed(format!("the answer is not base64: {e}")))?)
            }
            Some("audio_generation.done") => Self::Done,
            _ => Self::Other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_says_what_is_written() {
        let of = |path: &str| Target::of(Some(Path::new(path))).map_err(|error| format!("{error:?}"));
        assert_eq!(of("out.wav"), Ok(Target::File("out.wav".into(), Encoding::Wav)));
        assert_eq!(of("/tmp/OUT.FLAC"), Ok(Target::File("/tmp/OUT.FLAC".into(), Encoding::Flac)));
        assert_eq!(of("-"), Ok(Target::Stdout));
        for (path, word) in [("out.mp3", ".flac"), ("out", ".flac"), ("/no/such/folder/out.wav", "folder")] {
            assert!(of(path).unwrap_err().contains(word), "{path}");
        }
        assert!(format!("{:?}", Target::of(None)).contains("-o out.wav"));
    }

    #[test]
    fn events_are_told_apart() {
        let of = |data: &str| Event::of(data).map_err(|error| error.to_string());
        let progress = r#"{"type":"audio_generation.progress","done":3,"total":9}"#;
        assert_eq!(of(progress), Ok(Event::Progress { done: 3, total: 9 }));
        assert_eq!(of(r#"{"type":"audio_generation.delta","audio":"aGk="}"#), Ok(Event::Audio(b"hi".to_vec())));
        assert_eq!(of(r#"{"type":"audio_generation.done"}"#), Ok(Event::Done));
        assert_eq!(of(r#"{"type":"later"}"#), Ok(Event::Other));
        assert_eq!(of(r#"{"error":{"message":"it died"}}"#), Err("it died".to_owned()));
    }
}
