//! Images from YAML to a file: the committed tiny checkpoint through flux, over HTTP and the command line.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use aihost_tests::server::{Server, Setup, aihost, client, prepare};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::StreamExt;
use serde_json::{Value, json};
use zune_jpeg::JpegDecoder;
use zune_png::PngDecoder;
use zune_png::zune_core::bytestream::ZCursor;

const PATH: &str = "/v1/images/generations";
const PROMPT: &str = "a red fox, \u{72d0}";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/flux/dev").canonicalize().unwrap()
}

fn setup() -> Setup {
    let model = format!(
        "models:\n  fox:\n    type: image\n    plugin: flux\n    aliases: [flux]\n    source: {{path: {}}}\n    options: {{max_pixels: 65536}}\n",
        folder().display()
    );
    let yaml = format!("devices: [{{id: cpu, memory: 1GiB}}]\n{model}  words: {{type: text, plugin: echo}}\n");
    Setup { yaml, plugins: vec!["flux", "echo"], ..Setup::default() }
}

/// An image of 48 by 32 in three steps, with these fields besides.
fn ask(extra: Value) -> Value {
    let mut body = json!({"model": "fox", "prompt": PROMPT, "size": "48x32", "steps": 3, "seed": 7});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

async fn made(server: &Server, extra: Value) -> Value {
    let (status, body) = server.post(PATH, &ask(extra.clone())).await;
    assert_eq!(status, 200, "{extra}: {body}");
    body
}

fn decoded(base64: &Value) -> Vec<u8> {
    BASE64_STANDARD.decode(base64.as_str().unwrap()).unwrap()
}

/// Pixels of a PNG of this size, and the texts in it.
fn read_png(file: Vec<u8>, size: (usize, usize)) -> (Vec<u8>, Vec<(String, String)>) {
    let mut png = PngDecoder::new(ZCursor::new(file));
    let pixels = png.decode_raw().unwrap();
    assert_eq!((png.dimensions(), pixels.len()), (Some(size), 3 * size.0 * size.1));
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let notes = png.info().unwrap().itxt_chunk.iter().map(|chunk| (text(&chunk.keyword), text(&chunk.text)));
    (pixels, notes.collect())
}

fn pixels(file: Vec<u8>) -> Vec<u8> {
    read_png(file, (48, 32)).0
}

/// How many different values there are: an image of one colour is no image.
fn read_webp(file: Vec<u8>) -> Vec<u8> {
    let mut decoder = image_webp::WebPDecoder::new(Cursor::new(file)).unwrap();
    let mut pixels = vec![0; decoder.output_buffer_size().unwrap()];
    decoder.read_image(&mut pixels).unwrap();
    pixels
}

fn colours(pixels: &[u8]) -> usize {
    pixels.iter().collect::<std::collections::HashSet<_>>().len()
}

#[tokio::test]
async fn every_way_out_gives_the_same_image_for_the_same_seed() {
    let server = Server::start(&setup());
    let body = made(&server, json!({"guidance": 4})).await;
    let (whole, notes) = read_png(decoded(&body["data"][0]["b64_json"]), (48, 32));
    assert!(colours(&whole) > 50, "{}", colours(&whole));
    let wanted =
        [("prompt", PROMPT), ("model", "fox"), ("seed", "7"), ("steps", "3"), ("size", "48x32"), ("guidance", "4")];
    assert_eq!(notes, wanted.map(|(key, text)| (key.to_owned(), text.to_owned())));

    let one = async |extra: Value| decoded(&made(&server, extra).await["data"][0]["b64_json"]);
    assert_eq!(pixels(one(json!({"guidance": 4, "model": "flux"})).await), whole);
    let webp = one(json!({"guidance": 4, "output_format": "webp", "model": null})).await;
    assert_eq!(read_webp(webp), whole);
    let mut jpeg = JpegDecoder::new(ZCursor::new(one(json!({"guidance": 4, "output_format": "jpeg"})).await));
    let off = jpeg.decode().unwrap().iter().zip(&whole).map(|(a, b)| u32::from(a.abs_diff(*b))).sum::<u32>();
    assert!(jpeg.dimensions() == Some((48, 32)) && off < 8 * whole.len() as u32, "off by {off}");

    // Everything that is asked for matters.
    for other in [json!({"seed": 8}), json!({"guidance": 1}), json!({"steps": 2}), json!({"prompt": "a blue whale"})] {
        assert_ne!(pixels(one(other.clone()).await), whole, "{other}");
    }
    assert_eq!(read_png(one(json!({"size": "32x64"})).await, (32, 64)).0.len(), 32 * 64 * 3);

    // Images differ in their seed, and a seed is an image.
    let pair = made(&server, json!({"guidance": 4, "seed": 6, "n": 2})).await;
    let of = |i: usize| pixels(decoded(&pair["data"][i]["b64_json"]));
    assert!(of(1) == whole && of(0) != whole);
    assert_eq!(pair["data"][1]["seed"], 7);
    // The seed that was drawn is told, and gives the same again.
    let drawn = made(&server, json!({"seed": null})).await;
    let again = made(&server, json!({"seed": drawn["data"][0]["seed"]})).await;
    assert_eq!(drawn["data"], again["data"]);

    // At an address.
    let body = made(&server, json!({"guidance": 4, "response_format": "url"})).await;
    let response = client().get(body["data"][0]["url"].as_str().unwrap()).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "image/png");
    assert_eq!(pixels(response.bytes().await.unwrap().to_vec()), whole);
    assert_eq!(server.status("fox", "loads").await, json!(1));
}

/// Data of server-sent events.
fn events(body: &[u8]) -> Vec<Value> {
    let events = std::str::from_utf8(body).unwrap().split_terminator("\n\n");
    events.map(|event| serde_json::from_str(event.split_once("\ndata: ").unwrap().1).unwrap()).collect()
}

#[tokio::test]
async fn a_stream_shows_the_image_coming_out_of_the_noise() {
    let server = Server::start(&setup());
    let whole = pixels(decoded(&made(&server, json!({"steps": 8})).await["data"][0]["b64_json"]));
    let body = ask(json!({"steps": 8, "stream": true, "partial_images": 3}));
    let response = client().post(format!("{}{PATH}", server.base())).json(&body).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let events = events(&response.bytes().await.unwrap());
    let of = |kind: &str| -> Vec<&Value> {
        events.iter().filter(|event| event["type"] == format!("image_generation.{kind}")).collect()
    };
    let (progress, partial, completed) = (of("progress"), of("partial_image"), of("completed"));
    assert_eq!((partial.len(), completed.len(), events.last()), (3, 1, Some(completed[0])));
    assert_eq!(progress.last().map(|last| (&last["done"], &last["total"])), Some((&json!(8), &json!(8))));
    assert_eq!(pixels(decoded(&completed[0]["b64_json"])), whole);
    let distance = |event: &Value| -> u64 {
        let found = pixels(decoded(&event["b64_json"]));
        found.iter().zip(&whole).map(|(a, b)| u64::from(a.abs_diff(*b))).sum()
    };
    let distances: Vec<_> = partial.iter().map(|event| distance(event)).collect();
    assert!(distances[0] > distances[2] && distances[2] > 0, "{distances:?}");
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request_alone() {
    let server = Server::start(&setup().telling_of_cancels());
    // Nobody hears more than the beginning.
    let body = ask(json!({"size": "256x256", "steps": 100, "stream": true}));
    let response = client().post(format!("{}{PATH}", server.base())).json(&body).send().await.unwrap();
    let mut pieces = response.bytes_stream();
    assert!(!pieces.next().await.unwrap().unwrap().is_empty());
    drop(pieces);
    let end = server.cancelled().await;
    assert_eq!(end["reason"], "cancelled", "{end}");
    assert!(end["steps"].as_u64().is_some_and(|steps| steps < 100), "{end}");
    server.until("fox", "active", json!(0)).await;
    made(&server, json!({})).await;
    assert_eq!(server.status("fox", "loads").await, json!(1), "the worker was lost");
}

#[tokio::test]
async fn bad_input_is_refused_clearly() {
    let server = Server::start(&setup());
    for (extra, param, word) in [
        (json!({"size": "0x0"}), "size", "multiples of 16"),
        (json!({"size": "7x7"}), "size", "multiples of 16"),
        (json!({"size": "1000000000x1000000000"}), "size", "8192"),
        // The model's own limits.
        (json!({"size": "512x512"}), "size", "65536 pixels"),
        (json!({"size": "auto"}), "size", "65536 pixels"),
        (json!({"steps": 0}), "steps", "from 1"),
        (json!({"steps": 101}), "steps", "100"),
        (json!({"guidance": "NaN"}), "guidance", "number"),
        (json!({"guidance": -1}), "guidance", "from 0"),
        (json!({"output_format": "gif"}), "output_format", "png, jpeg or webp"),
        (json!({"model": "words"}), "model", "/v1/chat/completions"),
    ] {
        let (status, body) = server.post(PATH, &ask(extra.clone())).await;
        assert_eq!((status, &body["error"]["param"]), (400, &json!(param)), "{extra}: {body}");
        assert!(body["error"]["message"].as_str().unwrap().contains(word), "{extra}: {body}");
    }
    // A prompt may be empty, or so long that its end is not read.
    for prompt in [String::new(), "fox ".repeat(8000)] {
        let body = made(&server, json!({"prompt": prompt})).await;
        let (_, notes) = read_png(decoded(&body["data"][0]["b64_json"]), (48, 32));
        assert!(notes[0].1 == prompt, "another prompt");
    }
    let (status, body) = server.chat("fox", "hello").await;
    assert_eq!((status, &body["error"]["param"]), (400, &json!("model")), "{body}");
    assert!(body["error"]["message"].as_str().unwrap().contains(PATH), "{body}");
    let form = "--x\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a.png\"\r\n\r\nx\r\n--x--\r\n";
    let request = client().post(format!("{}/v1/images/edits", server.base())).body(form);
    let response = request.header("content-type", "multipart/form-data; boundary=x").send().await.unwrap();
    assert_eq!(response.status(), 400);
    assert!(response.text().await.unwrap().contains(PATH));
}

#[tokio::test]
async fn the_command_line_writes_a_file() {
    let (folder, config) = prepare(&setup());
    let run = |file: &str, more: &[&str]| {
        let out = folder.path().join(file).display().to_string();
        let config = config.display().to_string();
        let mut arguments = vec!["run", "flux", PROMPT, "-o", &out, "--config", &config];
        arguments.extend(["--size", "48x32", "--steps", "3", "--seed", "7", "--guidance", "4"]);
        arguments.extend(more);
        (aihost(&arguments, &[]), std::fs::read(&out).unwrap_or_default())
    };
    // Hosting by itself.
    let ((code, _, stderr), file) = run("out.png", &[]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("48x32 from seed 7"), "{stderr}");
    let (whole, notes) = read_png(file, (48, 32));
    assert!(notes.contains(&("guidance".to_owned(), "4".to_owned())), "{notes:?}");
    // Against a server, as other files.
    let server = Server::start(&setup());
    let one = made(&server, json!({"guidance": 4})).await;
    assert_eq!(pixels(decoded(&one["data"][0]["b64_json"])), whole);
    let ((code, _, stderr), file) = run("out.webp", &["--url", server.base()]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(read_webp(file), whole);
    let ((code, _, stderr), file) = run("OUT.JPG", &["--url", server.base()]);
    assert!(code == 0 && file.starts_with(&[0xFF, 0xD8]), "{stderr}");
    // What cannot be is said before anything is made.
    for (file, more, word) in [
        ("out.gif", &["--url", server.base()][..], ".png or .jpg"),
        ("none/out.png", &["--url", server.base()], "no folder"),
        ("out.png", &["--duration", "2", "--url", server.base()], "type audio"),
        ("out.png", &["--system", "x", "--url", server.base()], "type text"),
    ] {
        let ((code, _, stderr), _) = run(file, more);
        assert!(code == 2 && stderr.contains(word), "{code}: {stderr}");
    }
    for (arguments, wanted, word) in [
        (&["run", "fox", "x"][..], 2, "-o out.png"),
        (&["run", "words", "x", "--size", "16x16"], 2, "type image"),
        (&["run", "fox", "x", "-o", "x.png", "--size", "7x7"], 1, "multiples of 16"),
    ] {
        let (code, _, stderr) = aihost(&[arguments, &["--url", server.base()]].concat(), &[]);
        assert!(code == wanted && stderr.contains(word), "{code}: {stderr}");
    }
}
