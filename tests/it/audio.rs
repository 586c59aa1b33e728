//! Music from YAML to a file: the committed tiny checkpoint through musicgen, over HTTP and the command line.

use std::path::{Path, PathBuf};

use aihost_tests::server::{Server, Setup, aihost, client, prepare};
use aihost_tests::wait_for;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::StreamExt;
use serde_json::{Value, json};

const PATH: &str = "/v1/audio/generations";
/// Samples per second of the tiny checkpoint.
const RATE: u32 = 1600;
/// Its steps per second of audio, at least.
const STEPS_PER_SECOND: u64 = 50;

/// What transformers made of the case's prompt.
struct Golden {
    prompt: String,
    seconds: f64,
    samples: Vec<f32>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/musicgen/mono").canonicalize().unwrap()
}

fn golden() -> Golden {
    let case: Value = serde_json::from_slice(&std::fs::read(folder().join("case.json")).unwrap()).unwrap();
    let file = std::fs::read(folder().join("expected.safetensors")).unwrap();
    let (length, rest) = file.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header: Value = serde_json::from_slice(header).unwrap();
    let at = |i: usize| header["audio"]["data_offsets"][i].as_u64().unwrap() as usize;
    let (samples, _) = data[at(0)..at(1)].as_chunks::<4>();
    Golden {
        prompt: case["prompt"].as_str().unwrap().to_owned(),
        seconds: case["frames"].as_f64().unwrap() / 50.0,
        // A file holds what lies in [-1, 1].
        samples: samples.iter().map(|bytes| f32::from_le_bytes(*bytes).clamp(-1.0, 1.0)).collect(),
    }
}

fn setup(limits: &str) -> Setup {
    let model = format!(
        "models:\n  tune:\n    type: audio\n    plugin: musicgen\n    aliases: [musicgen]\n    source: {{path: {}}}\n    options: {{chunk_frames: 10}}\n",
        folder().display()
    );
    let yaml = format!("devices: [{{id: cpu, memory: 1GiB}}]\n{limits}{model}  words: {{type: text, plugin: echo}}\n");
    Setup { yaml, plugins: vec!["musicgen", "echo"], ..Setup::default() }
}

/// The case's request, greedy, with these fields besides.
fn ask(extra: Value) -> Value {
    let Golden { prompt, seconds, .. } = golden();
    let mut body = json!({"model": "tune", "prompt": prompt, "duration": seconds, "temperature": 0});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

async fn post(server: &Server, body: &Value) -> reqwest::Response {
    client().post(format!("{}{PATH}", server.base())).json(body).send().await.unwrap()
}

async fn bytes(server: &Server, body: &Value) -> Vec<u8> {
    let response = post(server, body).await;
    assert_eq!(response.status(), 200, "{body}: {:?}", response.text().await);
    response.bytes().await.unwrap().to_vec()
}

fn wav(file: &[u8]) -> Vec<f32> {
    let mut reader = hound::WavReader::new(file).unwrap();
    let spec = reader.spec();
    assert_eq!((spec.sample_rate, spec.channels, spec.bits_per_sample), (RATE, 1, 16));
    reader.samples::<i16>().map(|sample| f32::from(sample.unwrap()) / 32768.0).collect()
}

/// Samples of a streamed file, whose head does not know its length.
fn streamed(file: &[u8]) -> Vec<f32> {
    let mut file = file.to_vec();
    let length = file.len() as u32;
    assert_eq!((&file[4..8], &file[40..44]), ([0xFF; 4].as_slice(), [0xFF; 4].as_slice()));
    file[4..8].copy_from_slice(&(length - 8).to_le_bytes());
    file[40..44].copy_from_slice(&(length - 44).to_le_bytes());
    wav(&file)
}

fn flac(file: &[u8]) -> Vec<f32> {
    let mut reader = claxon::FlacReader::new(file).unwrap();
    assert_eq!((reader.streaminfo().sample_rate, reader.streaminfo().channels), (RATE, 1));
    reader.samples().map(|sample| sample.unwrap() as f32 / 32768.0).collect()
}

fn near(found: &[f32], wanted: &[f32], most: f32) {
    assert_eq!(found.len(), wanted.len());
    let difference = found.iter().zip(wanted).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(difference < most, "off by {difference}");
}

/// Names and data of server-sent events.
fn events(body: &[u8]) -> Vec<Value> {
    let events = std::str::from_utf8(body).unwrap().split_terminator("\n\n");
    events.map(|event| serde_json::from_str(event.split_once("\ndata: ").unwrap().1).unwrap()).collect()
}

#[tokio::test]
async fn every_way_out_gives_the_references_audio() {
    let (server, golden) = (Server::start(&setup("")), golden());
    let whole = wav(&bytes(&server, &ask(json!({}))).await);
    near(&whole, &golden.samples, 1e-3);
    assert_eq!(flac(&bytes(&server, &ask(json!({"response_format": "flac"}))).await), whole);
    near(&streamed(&bytes(&server, &ask(json!({"stream": true}))).await), &whole, 1e-4);

    let events = events(&bytes(&server, &ask(json!({"stream": true, "stream_format": "sse"}))).await);
    let of = |kind: &str| events.iter().filter(|event| event["type"] == format!("audio_generation.{kind}")).collect();
    let (progress, deltas, done): (Vec<_>, Vec<_>, Vec<_>) = (of("progress"), of("delta"), of("done"));
    assert!(deltas.len() > 2, "nothing was streamed: {}", deltas.len());
    assert!(!progress.is_empty() && done.len() == 1 && events.last() == Some(done[0]));
    let steps = progress.iter().map(|event| event["done"].as_u64().unwrap()).collect::<Vec<_>>();
    assert!(steps.is_sorted() && steps.iter().all(|step| (1..=60).contains(step)), "{steps:?}");
    let audio = deltas.iter().flat_map(|event| BASE64_STANDARD.decode(event["audio"].as_str().unwrap()).unwrap());
    near(&streamed(&audio.collect::<Vec<_>>()), &whole, 1e-4);

    // No name: the only model of this endpoint. An alias is a name.
    assert_eq!(wav(&bytes(&server, &ask(json!({"model": null}))).await), whole);
    assert_eq!(wav(&bytes(&server, &ask(json!({"model": "musicgen"}))).await), whole);
    // Pieces differ in their seed, and a seed is a piece.
    let sampled = json!({"temperature": 1, "top_k": 20, "seed": 4, "n": 2});
    let (status, pieces) = server.post(PATH, &ask(sampled)).await;
    assert_eq!(status, 200, "{pieces}");
    let piece = |i: usize| BASE64_STANDARD.decode(pieces["data"][i]["b64_json"].as_str().unwrap()).unwrap();
    assert_ne!(piece(0), piece(1));
    assert_eq!(bytes(&server, &ask(json!({"temperature": 1, "top_k": 20, "seed": 5}))).await, piece(1));
    assert_eq!(server.status("tune", "loads").await, json!(1));
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request_alone() {
    let server = Server::start(&setup("").telling_of_cancels());
    let long = ask(json!({"duration": 600, "stream": true}));
    // Nobody hears more than the beginning.
    let mut pieces = post(&server, &long).await.bytes_stream();
    assert!(pieces.next().await.unwrap().unwrap().len() > 44);
    drop(pieces);
    let end = server.cancelled().await;
    assert_eq!(end["reason"], "cancelled", "{end}");
    assert!(end["steps"].as_u64().is_some_and(|steps| steps < 600 * STEPS_PER_SECOND), "{end}");
    server.until("tune", "active", json!(0)).await;
    // The same again, to its end.
    assert_eq!(bytes(&server, &long).await.len(), 44 + 2 * 600 * RATE as usize);
    assert_eq!(server.status("tune", "loads").await, json!(1), "the worker was lost");
}

#[tokio::test]
async fn bad_input_is_refused_clearly() {
    let server = Server::start(&setup(""));
    for (extra, param, word) in [
        (json!({"duration": 0}), "duration", "above 0"),
        (json!({"duration": -2}), "duration", "from 0"),
        (json!({"duration": 1e6}), "duration", "600"),
        (json!({"duration": "NaN"}), "duration", "number"),
        (json!({"prompt": ""}), "prompt", "empty"),
        (json!({"prompt": "drums ".repeat(3000)}), "prompt", "tokens"),
        (json!({"response_format": "ogg"}), "response_format", "wav or flac"),
        (json!({"normalize": true, "stream": true}), "normalize", "stream"),
        (json!({"model": "words"}), "model", "/v1/chat/completions"),
    ] {
        let (status, body) = server.post(PATH, &ask(extra.clone())).await;
        assert_eq!((status, &body["error"]["param"]), (400, &json!(param)), "{extra}: {body}");
        assert!(body["error"]["message"].as_str().unwrap().contains(word), "{extra}: {body}");
    }
    let speech = json!({"model": "tune", "input": "hello", "voice": "alloy"});
    let (status, body) = server.post("/v1/audio/speech", &speech).await;
    assert_eq!((status, &body["error"]["code"]), (400, &json!("unsupported_endpoint_for_model")), "{body}");
    assert!(body["error"]["message"].as_str().unwrap().contains(PATH), "{body}");
    let (status, body) = server.chat("tune", "hello").await;
    assert_eq!((status, &body["error"]["param"]), (400, &json!("model")), "{body}");
}

#[tokio::test]
async fn a_melody_model_is_refused_clearly() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "musicgen_melody"}"#).unwrap();
    let path = folder.path().display();
    let yaml = format!("models: {{hum: {{type: audio, plugin: musicgen, source: {{path: {path}}}}}}}\n");
    let server = Server::start(&Setup { yaml, plugins: vec!["musicgen"], ..Setup::default() });
    let (status, body) = server.post(PATH, &ask(json!({"model": "hum"}))).await;
    // Whoever asks can do nothing about it; whoever runs the host is told.
    assert_eq!((status, &body["error"]["code"]), (500, &json!("model_not_usable")), "{body}");
    server.logged("melody").await;
}

#[tokio::test]
async fn a_file_at_an_address_goes_after_its_time() {
    let server = Server::start(&setup("limits: {artifact_ttl: 1h, artifact_bytes: 1MiB}\n"));
    let (status, body) = server.post(PATH, &ask(json!({"response": "url"}))).await;
    assert_eq!(status, 200, "{body}");
    let url = body["data"][0]["url"].as_str().unwrap().to_owned();
    let client = client();
    let response = client.get(&url).send().await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["content-type"]), (200, &"audio/wav".parse().unwrap()));
    near(&wav(&response.bytes().await.unwrap()), &golden().samples, 1e-3);
    // Its age is that of the file. One that is too old is not there, and the next sweep removes it from the disk.
    let lying = server.folder().join("state/artifacts").join(url.rsplit('/').next().unwrap());
    let file = std::fs::File::options().write(true).open(&lying).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(client.get(&url).send().await.unwrap().status(), 404);
    wait_for("the sweep", || (!lying.exists()).then_some(())).await;
}

#[tokio::test]
async fn the_command_line_writes_a_file() {
    let golden = golden();
    let (folder, config) = prepare(&setup(""));
    let run = |file: &str, more: &[&str]| {
        let out = folder.path().join(file).display().to_string();
        let config = config.display().to_string();
        let seconds = golden.seconds.to_string();
        let mut arguments = vec!["run", "musicgen", &golden.prompt, "-o", &out, "--config", &config];
        arguments.extend(["--duration", &seconds, "--temperature", "0", "--seed", "1"]);
        arguments.extend(more);
        (aihost(&arguments, &[]), std::fs::read(&out).unwrap_or_default())
    };
    // Hosting by itself.
    let ((code, _, stderr), file) = run("out.wav", &[]);
    assert_eq!(code, 0, "{stderr}");
    near(&wav(&file), &golden.samples, 1e-3);
    assert!(stderr.contains("1.14 s of audio"), "{stderr}");
    // Against a server, as FLAC.
    let server = Server::start(&setup(""));
    let ((code, _, stderr), file) = run("out.flac", &["--url", server.base()]);
    assert_eq!(code, 0, "{stderr}");
    near(&flac(&file), &golden.samples, 1e-3);
    // What cannot be is said before anything is made.
    for (file, more, word) in [
        ("out.mp3", &["--url", server.base()][..], ".wav or .flac"),
        ("none/out.wav", &["--url", server.base()], "no folder"),
    ] {
        let ((code, _, stderr), _) = run(file, more);
        assert!(code == 2 && stderr.contains(word), "{code}: {stderr}");
    }
    let (code, _, stderr) = aihost(&["run", "tune", "x", "--url", server.base()], &[]);
    assert!(code == 2 && stderr.contains("-o out.wav"), "{code}: {stderr}");
    let (code, _, stderr) = aihost(&["run", "words", "x", "-o", "x.wav", "--url", server.base()], &[]);
    assert!(code == 2 && stderr.contains("audio"), "{code}: {stderr}");
    let (code, _, stderr) =
        aihost(&["run", "tune", "x", "-o", "x.wav", "--duration", "0", "--url", server.base()], &[]);
    assert!(code == 1 && stderr.contains("above 0"), "{code}: {stderr}");
}
