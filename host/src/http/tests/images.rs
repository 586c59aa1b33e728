//! `POST /v1/images/generations`: files, events, addresses, and what is refused.

use aihost_plugin_api::task::{ImageBlock, ImageHeader};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use zune_png::PngDecoder;
use zune_png::zune_core::bytestream::ZCursor;

use super::*;
use crate::media::image::tests::{read_jpeg, read_webp};

const PATH: &str = "/v1/images/generations";
const WIDTH: u32 = 48;
const HEIGHT: u32 = 32;

/// Stripes that the seed shifts.
fn pixels(seed: u64) -> Vec<u8> {
    (0..u64::from(WIDTH * HEIGHT * 3)).map(|i| (7 * i).wrapping_add(seed.wrapping_mul(31)) as u8).collect()
}

fn header(index: u32, partial: bool, row: u32) -> ImageHeader {
    ImageHeader::new(WIDTH, HEIGHT).index(index).partial(partial).step(2).row(row)
}

/// An image in two blocks.
fn blocks(index: u32, partial: bool, seed: u64) -> [Output; 2] {
    let (pixels, cut) = (pixels(seed), (WIDTH * 3 * 20) as usize);
    [(0, &pixels[..cut]), (20, &pixels[cut..])]
        .map(|(row, pixels)| Output::Bytes(ImageBlock::encode(&header(index, partial, row), pixels).unwrap().into()))
}

fn finished(reason: &str, seed: u64) -> Output {
    let finish = json!({"reason": reason, "seed": seed, "steps": 4, "width": WIDTH, "height": HEIGHT});
    Output::Done(Ok(Bytes::from(finish.to_string())))
}

/// Draws the stripes of the task's seed, with progress and as many unfinished images as it asks for.
fn draw(_: usize, submission: &Submission) -> Result<Vec<Output>, Failure> {
    let task: Value = serde_json::from_slice(&submission.ask.as_task().unwrap().header).unwrap();
    let (seed, partials) = (task["seed"].as_u64().unwrap(), task["partial_images"].as_u64().unwrap() as u32);
    let mut outputs = Vec::new();
    for index in 0..partials {
        outputs.push(Output::Progress { done: u64::from(index) + 1, total: 4 });
        outputs.extend(blocks(index, true, seed + 100 + u64::from(index)));
    }
    outputs.push(Output::Progress { done: 4, total: 4 });
    outputs.extend(blocks(partials, false, seed));
    outputs.push(finished("stop", seed));
    Ok(outputs)
}

fn ask(extra: &Value) -> Value {
    let mut body = json!({"model": "flux", "prompt": "a red fox", "size": "48x32"});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn decoded(base64: &Value) -> Vec<u8> {
    BASE64_STANDARD.decode(base64.as_str().unwrap()).unwrap()
}

/// Pixels and texts of a PNG.
fn read_png(file: Vec<u8>) -> (Vec<u8>, Vec<(String, String)>) {
    let mut png = PngDecoder::new(ZCursor::new(file));
    let pixels = png.decode_raw().unwrap();
    assert_eq!(png.dimensions(), Some((WIDTH as usize, HEIGHT as usize)));
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let metadata = png.info().unwrap().itxt_chunk.iter().map(|chunk| (text(&chunk.keyword), text(&chunk.text)));
    (pixels, metadata.collect())
}

#[tokio::test]
async fn parameters_reach_the_model_and_images_differ_in_their_seed() {
    let host = Host::new(draw);
    let extra = json!({"seed": 7, "n": 3, "steps": 4, "guidance": 2.5, "partial_images": 2, "quality": "high",
        "background": "transparent", "moderation": "low", "style": "vivid", "user": "u", "unknown": 1,
        "num_inference_steps": 9, "guidance_scale": 9.5, "negative_prompt": " "});
    let body = host.post(PATH, &ask(&extra)).await.json();
    assert_eq!(
        (&body["output_format"], &body["size"], &body["background"]),
        (&json!("png"), &json!("48x32"), &json!("opaque"))
    );
    let data = body["data"].as_array().unwrap();
    assert_eq!(data.len(), 3);
    for (entry, seed) in data.iter().zip(7..) {
        assert_eq!(entry["seed"], seed);
        let (found, metadata) = read_png(decoded(&entry["b64_json"]));
        assert_eq!(found, pixels(seed));
        let wanted = [
            ("prompt", "a red fox"),
            ("model", "flux"),
            ("seed", &seed.to_string()),
            ("steps", "4"),
            ("size", "48x32"),
            ("guidance", "2.5"),
        ];
        assert_eq!(metadata, wanted.map(|(key, text)| (key.to_owned(), text.to_owned())));
    }
    let wanted = |seed: u64| json!({"prompt": "a red fox", "width": 48, "height": 32, "steps": 4, "guidance": 2.5, "seed": seed, "partial_images": 0});
    assert_eq!(host.tasks(), [wanted(7), wanted(8), wanted(9)]);
}

#[tokio::test]
async fn a_drawn_seed_can_be_asked_for_again() {
    let host = Host::new(draw);
    let [first, second] = [host.post(PATH, &ask(&json!({"n": 2}))).await, host.post(PATH, &ask(&json!({}))).await]
        .map(|reply| reply.json());
    let seed = first["data"][0]["seed"].as_u64().unwrap();
    assert!(seed < 1 << 53 && first["data"][1]["seed"] == seed + 1);
    assert_ne!(second["data"][0]["seed"], seed);
    let again = host.post(PATH, &ask(&json!({"seed": seed}))).await.json();
    assert_eq!(again["data"][0], first["data"][0]);
    // The last seed that can be named is followed by the first.
    let last = host.post(PATH, &ask(&json!({"seed": i64::MAX, "n": 2}))).await.json();
    assert_eq!((&last["data"][0]["seed"], &last["data"][1]["seed"]), (&json!(i64::MAX), &json!(0)));
}

#[tokio::test]
async fn what_is_left_out_is_up_to_the_model() {
    let host = Host::new(|_, _| Ok(vec![failed(FailureKind::Internal)]));
    for body in
        [json!({"prompt": ""}), json!({"prompt": "", "size": "auto", "steps": null, "model": "flux", "n": null})]
    {
        assert_eq!(host.post(PATH, &body).await.error().0, 500);
    }
    for mut task in host.tasks() {
        assert!(task["seed"].take().is_u64());
        assert_eq!(
            task,
            json!({"prompt": "", "width": 1024, "height": 1024, "steps": null, "guidance": null, "seed": null, "partial_images": 0})
        );
    }
}

#[tokio::test]
async fn other_files_are_written_as_asked() {
    let host = Host::new(draw);
    let file = async |extra: Value| {
        let body = host.post(PATH, &ask(&extra)).await.json();
        (body["output_format"].as_str().unwrap().to_owned(), decoded(&body["data"][0]["b64_json"]))
    };
    let (format, webp) = file(json!({"seed": 1, "output_format": "webp", "output_compression": 10})).await;
    assert_eq!((format.as_str(), &webp[8..12]), ("webp", b"WEBP".as_slice()));
    assert_eq!(read_webp(&webp).pixels, pixels(1));
    let (format, fine) = file(json!({"seed": 1, "output_format": "jpeg"})).await;
    let (_, coarse) = file(json!({"seed": 1, "output_format": "jpeg", "output_compression": 10})).await;
    assert!(format == "jpeg" && coarse.len() < fine.len() / 2, "{} and {}", coarse.len(), fine.len());
    let read = read_jpeg(&coarse);
    assert_eq!((read.width, read.height), (WIDTH, HEIGHT));
}

#[tokio::test]
async fn a_stream_tells_of_steps_and_unfinished_images() {
    let host = Host::new(draw);
    for partials in 0..=3 {
        // OpenAI's events carry base64 whatever `response_format` is.
        let body = ask(&json!({"stream": true, "partial_images": partials, "seed": 5, "response_format": "url"}));
        let (status, kind, events) = raw(&host, post(PATH, body.to_string())).await;
        assert_eq!((status, kind.as_str()), (200, "text/event-stream"));
        let events = named_events(&events);
        let names: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
        let mut wanted = ["image_generation.progress", "image_generation.partial_image"].repeat(partials);
        wanted.extend(["image_generation.progress", "image_generation.completed"]);
        assert_eq!(names, wanted);
        for (i, event) in events.iter().filter(|event| event["type"] == "image_generation.partial_image").enumerate() {
            assert_eq!(event["partial_image_index"], i);
            assert_eq!(read_png(decoded(&event["b64_json"])), (pixels(105 + i as u64), Vec::new()));
        }
        let [.., progress, last] = &events[..] else { panic!("{events:?}") };
        assert_eq!((&progress["done"], &progress["total"]), (&json!(4), &json!(4)));
        let (found, metadata) = read_png(decoded(&last["b64_json"]));
        assert!(found == pixels(5) && metadata.contains(&("seed".into(), "5".into())));
        for key in ["created_at", "size", "quality", "background", "output_format", "seed"] {
            assert!(!last[key].is_null(), "no `{key}`: {last}");
        }
    }
}

#[tokio::test]
async fn a_stream_that_breaks_says_so_and_one_that_never_began_is_a_plain_refusal() {
    let (outputs, receiver) = mpsc::channel(4);
    outputs.send(Output::Progress { done: 1, total: 4 }).await.unwrap();
    let body = ask(&json!({"stream": true})).to_string();
    let reply = answering(receiver).oneshot(post(PATH, body.clone())).await.unwrap();
    assert_eq!(reply.status(), 200);
    let mut pieces = reply.into_body().into_data_stream();
    assert!(!pieces.next().await.unwrap().unwrap().is_empty());
    outputs.send(failed(FailureKind::WorkerDied)).await.unwrap();
    let last = named_events(&pieces.next().await.unwrap().unwrap());
    assert_eq!(last[0]["error"]["code"], "worker_died");
    assert!(pieces.next().await.is_none());

    let (outputs, receiver) = mpsc::channel(4);
    outputs.send(failed(FailureKind::OutOfMemory)).await.unwrap();
    assert_eq!(answering(receiver).oneshot(post(PATH, body)).await.unwrap().status(), 503);
}

#[tokio::test]
async fn a_client_that_leaves_cancels() {
    for stream in [true, false] {
        let (outputs, receiver) = mpsc::channel(4);
        outputs.send(Output::Progress { done: 1, total: 4 }).await.unwrap();
        let asking = answering(receiver).oneshot(post(PATH, ask(&json!({"stream": stream})).to_string()));
        if stream {
            drop(asking.await.unwrap());
        } else {
            assert!(tokio::time::timeout(Duration::from_millis(50), asking).await.is_err());
        }
        outputs.closed().await;
    }
}

#[tokio::test]
async fn files_are_kept_at_an_address() {
    let (_folder, host) = keeping(draw, |_| {});
    for (format, media) in [("png", "image/png"), ("jpeg", "image/jpeg"), ("webp", "image/webp")] {
        let extra = json!({"response_format": "url", "seed": 2, "n": 2, "output_format": format});
        let reply = host.post(PATH, &ask(&extra)).await.json();
        for (i, seed) in [2, 3].into_iter().enumerate() {
            let entry = &reply["data"][i];
            assert_eq!((&entry["seed"], &entry["b64_json"]), (&json!(seed), &Value::Null));
            let path = entry["url"].as_str().unwrap().strip_prefix("http://127.0.0.1:9000").unwrap();
            let (status, kind, file) = raw(&host, Request::get(path).body(Body::empty()).unwrap()).await;
            assert_eq!((status, kind.as_str()), (200, media));
            if format == "png" {
                assert_eq!(read_png(file.to_vec()).0, pixels(seed));
            }
        }
    }
}

#[tokio::test]
async fn class_and_keep_alive_are_as_elsewhere() {
    let host = Host::new(draw);
    host.post(PATH, &ask(&json!({"service_tier": "flex", "keep_alive": "5m"}))).await.json();
    host.post(PATH, &ask(&json!({"stream": true}))).await;
    let submitted = host.submitted.lock().unwrap();
    use crate::runtime::{Class, KeepAlive, OutputMode};
    let found: Vec<_> = submitted.iter().map(|one| (one.class, one.keep_alive, one.delivery)).collect();
    let five_minutes = Some(KeepAlive::For(Duration::from_secs(300)));
    let wanted = [(Class::Batch, five_minutes, OutputMode::Gathered), (Class::Interactive, None, OutputMode::Streamed)];
    assert_eq!(found, wanted);
}

#[tokio::test]
async fn bad_input_names_its_field() {
    let host = Host::new(draw);
    for (extra, param, word) in [
        (json!({"size": "0x0"}), "size", "multiples of 16"),
        (json!({"size": "0x512"}), "size", "multiples of 16"),
        (json!({"size": "7x7"}), "size", "multiples of 16"),
        (json!({"size": "512x520"}), "size", "multiples of 16"),
        (json!({"size": "1000000000x1000000000"}), "size", "8192"),
        (json!({"size": format!("16x{}", "9".repeat(99))}), "size", "8192"),
        (json!({"size": "8208x16"}), "size", "8192"),
        (json!({"size": "8192x8192", "n": 2}), "size", "`n`"),
        (json!({"size": "-16x16"}), "size", "1024x768"),
        (json!({"size": "+16x16"}), "size", "1024x768"),
        (json!({"size": "16 x 16"}), "size", "1024x768"),
        (json!({"size": "16x16x16"}), "size", "1024x768"),
        (json!({"size": "x"}), "size", "1024x768"),
        (json!({"size": "large"}), "size", "auto"),
        (json!({"size": 1024}), "size", "string"),
        (json!({"prompt": null}), "prompt", "required"),
        (json!({"prompt": ["fox"]}), "prompt", "string"),
        (json!({"negative_prompt": "blurry"}), "negative_prompt", "`prompt`"),
        (json!({"image": "aGk="}), "image", "`prompt`"),
        (json!({"mask": {}}), "mask", "`prompt`"),
        (json!({"n": 0}), "n", "1 to 10"),
        (json!({"n": 11}), "n", "1 to 10"),
        (json!({"n": 1.5}), "n", "integer"),
        (json!({"n": 2, "stream": true}), "n", "stream"),
        (json!({"steps": 0}), "steps", "from 1"),
        (json!({"steps": -1}), "steps", "from 1"),
        (json!({"num_inference_steps": 0}), "num_inference_steps", "from 1"),
        (json!({"steps": 4, "num_inference_steps": "x"}), "num_inference_steps", "integer"),
        (json!({"guidance": -0.5}), "guidance", "from 0"),
        (json!({"guidance": "NaN"}), "guidance", "number"),
        (json!({"guidance": 1e9}), "guidance", "100"),
        (json!({"cfg_scale": -1}), "cfg_scale", "from 0"),
        (json!({"seed": -1}), "seed", "from 0"),
        (json!({"seed": 0.5}), "seed", "integer"),
        (json!({"seed": 1e300}), "seed", "integer"),
        (json!({"output_format": "gif"}), "output_format", "png, jpeg or webp"),
        (json!({"output_format": "jpg"}), "output_format", "png, jpeg or webp"),
        (json!({"output_compression": 101}), "output_compression", "0 to 100"),
        (json!({"output_compression": -1}), "output_compression", "0 to 100"),
        (json!({"response_format": "file"}), "response_format", "b64_json or url"),
        (json!({"stream": "yes"}), "stream", "true or false"),
        (json!({"partial_images": 4, "stream": true}), "partial_images", "0 to 3"),
        (json!({"partial_images": -1}), "partial_images", "0 to 3"),
        (json!({"keep_alive": "soon"}), "keep_alive", "5m"),
        (json!({"service_tier": 1}), "service_tier", "string"),
        (json!({"model": 1}), "model", "string"),
        (json!({"model": "a"}), "model", "/v1/chat/completions"),
        (json!({"model": "music"}), "model", "/v1/audio/generations"),
    ] {
        let reply = host.post(PATH, &ask(&extra)).await;
        let (status, _, found) = reply.error();
        assert_eq!((status, found.as_str()), (400, param), "{extra} -> {}", reply.body);
        assert!(reply.body.contains(word), "{extra} -> {}", reply.body);
    }
    for body in [r#"{"prompt": "fox", "guidance": NaN}"#, r#"{"prompt": "fox", "guidance": 1e999}"#, "[]", ""] {
        assert_eq!(host.send(post(PATH, body)).await.error().0, 400, "{body}");
    }
    assert_eq!(host.post(PATH, &ask(&json!({"model": "nobody"}))).await.error().0, 404);
    assert!(host.submitted.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_image_model_is_no_chat_model() {
    let (_folder, host) = keeping(draw, |config| {
        let flux = config.models.get_mut("flux").unwrap();
        flux.endpoint = Some(PATH.into());
    });
    for path in ["/v1/chat/completions", "/v1/completions", "/v1/audio/generations"] {
        let mut body = chat(&json!({"model": "flux", "prompt": "hi"}));
        if path.ends_with("generations") {
            body["duration"] = json!(1);
        }
        let reply = host.post(path, &body).await;
        assert_eq!(reply.error(), (400, "unsupported_endpoint_for_model".into(), "model".into()), "{path}");
        assert!(reply.body.contains(PATH), "{path}: {}", reply.body);
    }
}

#[tokio::test]
async fn edits_and_variations_say_what_to_ask_whatever_is_sent() {
    let host = Host::new(draw);
    let form = "--x\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\nfox\r\n--x--\r\n";
    for path in ["/v1/images/edits", "/v1/images/variations"] {
        for (kind, body) in [("multipart/form-data; boundary=x", form), ("application/json", "{}"), ("text/plain", "")]
        {
            let request = Request::post(path).header("content-type", kind).body(Body::from(body)).unwrap();
            let reply = host.send(request).await;
            assert_eq!(reply.error(), (400, "unsupported_endpoint".into(), String::new()));
            assert!(reply.body.contains(PATH), "{}", reply.body);
        }
        let much = Request::post(path).body(Body::from(vec![0; 65 << 10])).unwrap();
        assert_eq!(host.send(much).await.error().0, 413);
    }
}

#[tokio::test]
async fn a_models_own_refusal_blames_the_field_it_names() {
    let host = Host::new(|_, _| {
        let mut failure = Failure::new(FailureKind::InvalidRequest, "prompt is no field here");
        failure.details = Some(Box::new(crate::domain::FailureDetails {
            field: Some("size".to_owned()),
            code: Some("beyond_the_model".to_owned()),
            retry_after_ms: Some(1500),
            ..Default::default()
        }));
        Ok(vec![Output::Done(Err(failure))])
    });
    for stream in [false, true] {
        let reply = host.post(PATH, &ask(&json!({"stream": stream}))).await;
        assert_eq!(reply.error(), (400, "beyond_the_model".into(), "size".into()));
        assert_eq!(reply.header("retry-after"), "2");
    }
}

#[tokio::test]
async fn nonsense_of_a_plugin_is_its_own_fault() {
    fn only(header: ImageHeader) -> Output {
        let rows = (header.height - header.row) as usize;
        Output::Bytes(ImageBlock::encode(&header, &vec![0; rows * header.width as usize * 3]).unwrap().into())
    }
    for script in [
        (|_, _| Ok(vec![Output::Bytes(Bytes::from_static(b"??"))])) as Script,
        |_, _| Ok(vec![only(header(0, false, 1))]),
        |_, _| Ok(vec![only(header(0, false, 0).width(WIDTH + 16))]),
        |_, _| Ok(vec![Output::Done(Ok(Bytes::from_static(b"[]")))]),
        |_, _| Ok(vec![finished("stop", 1)]),
        |_, _| Ok(vec![blocks(0, false, 1)[0].clone(), finished("stop", 1)]),
        |_, _| Ok(blocks(0, false, 1).to_vec()),
    ] {
        for stream in [false, true] {
            let reply = Host::new(script).post(PATH, &ask(&json!({"stream": stream}))).await;
            assert_eq!(reply.error().0, 500, "{}", reply.body);
        }
    }
    let cancelled = Host::new(|_, _| Ok(vec![finished("cancelled", 1)]));
    assert_eq!(cancelled.post(PATH, &ask(&json!({}))).await.error().1, "cancelled");
}
