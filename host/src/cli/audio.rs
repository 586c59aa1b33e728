//! `aihost run` of a model that makes audio: a description in, a WAV or FLAC file out.

use std::ops::ControlFlow;
use std::path::Path;

use serde_json::{Value, json};

use super::client::Server;
use super::failure::CliError;
use super::generated::{Destination, Files, bytes, watch};
use crate::media::audio::{self, AudioFormat};

const FILES: Files<AudioFormat> = Files { thing: "audio", endings: &["wav", "flac"], by_ending: AudioFormat::by_name };

/// Asks for one piece and writes it. `request` is the body of `POST /v1/audio/generations`.
pub(super) async fn make(server: &Server, mut request: Value, output: Option<&Path>) -> Result<(), CliError> {
    let destination = Destination::of(output, &FILES)?;
    request["stream"] = json!(true);
    request["stream_format"] = json!("sse");
    let mut file = Vec::new();
    let on_event = |name: &str, event: &Value| match name {
        "audio_generation.delta" => {
            file.extend(bytes(event, "audio")?);
            Ok(ControlFlow::Continue(()))
        }
        "audio_generation.done" => Ok(ControlFlow::Break(())),
        _ => Ok(ControlFlow::Continue(())),
    };
    watch(server, "/v1/audio/generations", &request, on_event).await?;
    let audio = audio::of_stream(&file).ok_or_else(|| CliError::failed("the server sent what is no WAV file"))?;
    let encoding = match destination {
        Destination::Stdout => AudioFormat::Wav,
        Destination::File(_, encoding) => encoding,
    };
    let file = audio.encode(encoding).map_err(CliError::failed)?;
    destination.write(&file, &format!("{:.2} s of audio", audio.seconds()))
}
