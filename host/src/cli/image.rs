//! `aihost run` of a model that makes images: a description in, a PNG, JPEG or WebP file out.

use std::ops::ControlFlow;
use std::path::Path;

use serde_json::{Value, json};

use super::client::Server;
use super::failure::CliError;
use super::generated::{Destination, Files, bytes, watch};
use crate::media::image::ImageFormat;

const FILES: Files<ImageFormat> =
    Files { thing: "images", endings: &["png", "jpg", "jpeg", "webp"], by_ending: ImageFormat::by_ending };

/// Asks for one image and writes it. `request` is the body of `POST /v1/images/generations`.
pub(super) async fn make(server: &Server, mut request: Value, output: Option<&Path>) -> Result<(), CliError> {
    let destination = Destination::of(output, &FILES)?;
    let format = match destination {
        Destination::Stdout => ImageFormat::Png,
        Destination::File(_, format) => format,
    };
    request["stream"] = json!(true);
    request["output_format"] = json!(format.name());
    let mut made = None;
    let on_event = |name: &str, event: &Value| match name {
        "image_generation.completed" => {
            let text = |key: &str| event.get(key).map_or_else(String::new, |value| value.to_string().replace('"', ""));
            made = Some((bytes(event, "b64_json")?, format!("{} from seed {}", text("size"), text("seed"))));
            Ok(ControlFlow::Break(()))
        }
        _ => Ok(ControlFlow::Continue(())),
    };
    watch(server, "/v1/images/generations", &request, on_event).await?;
    let (file, what) = made.unwrap_or_default();
    destination.write(&file, &what)
}
