//! `aihost run` of a model that makes pictures: a description in, a PNG, JPEG or WebP file out.

use std::path::Path;

use serde_json::{Value, json};

use super::client::Server;
use super::failure::CliError;
use super::making::{Files, Heard, Target, bytes, watch};
use crate::http::picture::Format;

const FILES: Files<Format> =
    Files { thing: "pictures", endings: &["png", "jpg", "jpeg", "webp"], by_ending: Format::by_ending };

/// Asks for one picture and writes it. `request` is the body of `POST /v1/images/generations`.
pub(super) async fn make(server: &Server, mut request: Value, output: Option<&Path>) -> Result<(), CliError> {
    let target = Target::of(output, &FILES)?;
    let format = match target {
        Target::Stdout => Format::Png,
        Target::File(_, format) => format,
    };
    request["stream"] = json!(true);
    request["output_format"] = json!(format.name());
    let mut made = None;
    let heard = |name: &str, event: &Value| match name {
        "image_generation.completed" => {
            let text = |key: &str| event.get(key).map_or_else(String::new, |value| value.to_string().replace('"', ""));
            made = Some((bytes(event, "b64_json")?, format!("{} from seed {}", text("size"), text("seed"))));
            Ok(Heard::All)
        }
        _ => Ok(Heard::More),
    };
    watch(server, "/v1/images/generations", &request, heard).await?;
    let (file, what) = made.unwrap_or_default();
    target.write(&file, &what)
}
