//! `aihost run` of a model that makes sound: a description in, a WAV or FLAC file out.

use std::path::Path;

use serde_json::{Value, json};

use super::client::Server;
use super::failure::CliError;
use super::making::{Files, Heard, Target, bytes, watch};
use crate::http::sound::{self, Encoding};

const FILES: Files<Encoding> = Files { thing: "sound", endings: &["wav", "flac"], by_ending: Encoding::by_name };

/// Asks for one piece and writes it. `request` is the body of `POST /v1/audio/generations`.
pub(super) async fn make(server: &Server, mut request: Value, output: Option<&Path>) -> Result<(), CliError> {
    let target = Target::of(output, &FILES)?;
    request["stream"] = json!(true);
    request["stream_format"] = json!("sse");
    let mut file = Vec::new();
    let heard = |name: &str, event: &Value| match name {
        "audio_generation.delta" => {
            file.extend(bytes(event, "audio")?);
            Ok(Heard::More)
        }
        "audio_generation.done" => Ok(Heard::All),
        _ => Ok(Heard::More),
    };
    watch(server, "/v1/audio/generations", &request, heard).await?;
    let sound = sound::of_stream(&file).ok_or_else(|| CliError::failed("the server sent what is no WAV file"))?;
    let encoding = match target {
        Target::Stdout => Encoding::Wav,
        Target::File(_, encoding) => encoding,
    };
    let file = sound.encode(encoding).map_err(CliError::failed)?;
    target.write(&file, &format!("{:.2} s of sound", sound.seconds()))
}
