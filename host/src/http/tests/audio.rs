//! `POST /v1/audio/generations`: files, streams, addresses, and what is refused.

use std::f32::consts::TAU;

use aihost_plugin_api::task::{self, AudioBlock, AudioHeader};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::*;
use crate::media::audio::{self, Audio, AudioFormat};

const PATH: &str = "/v1/audio/generations";
const RATE: u32 = 32_000;

/// Half a second of a quiet tone, whose pitch the seed shifts.
fn tone(seed: u64) -> Vec<f32> {
    let pitch = 400.0 + 50.0 * seed as f32;
    (0..RATE / 2).map(|i| 0.05 * (i as f32 * pitch * TAU / RATE as f32).sin()).collect()
}

fn block(samples: &[f32], offset: u64) -> Output {
    let header = AudioHeader::new(task::AudioFormat::new(RATE, 1), offset);
    Output::Bytes(AudioBlock::encode(&header, samples).unwrap().into())
}

fn finished(reason: &str) -> Output {
    let finish =
        json!({"reason": reason, "sample_rate": RATE, "channels": 1, "samples": RATE / 2, "steps": 25, "seconds": 0.5});
    Output::Done(Ok(Bytes::from(finish.to_string())))
}

/// Plays the tone of the task's seed in three blocks, with progress between.
fn play(_: usize, submission: &Submission) -> Result<Vec<Output>, Failure> {
    let task: Value = serde_json::from_slice(&submission.ask.as_task().unwrap().header).unwrap();
    let tone = tone(task["seed"].as_u64().unwrap_or(0));
    let mut outputs = Vec::new();
    for (i, samples) in tone.chunks(6000).enumerate() {
        outputs.push(Output::Progress { done: i as u64 + 1, total: 3 });
        outputs.push(block(samples, 6000 * i as u64));
    }
    outputs.push(finished("stop"));
    Ok(outputs)
}

fn ask(extra: &Value) -> Value {
    let mut body = json!({"model": "music", "prompt": "rain", "duration": 0.5});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

async fn sent(host: &Host, extra: &Value) -> (u16, String, Bytes) {
    raw(host, post(PATH, ask(extra).to_string())).await
}

fn wav(seed: u64) -> Vec<u8> {
    Audio { sample_rate: RATE, channels: 1, samples: tone(seed) }.encode(AudioFormat::Wav).unwrap()
}

#[tokio::test]
async fn one_piece_is_a_file_in_the_body() {
    let host = Host::new(play);
    assert_eq!(sent(&host, &json!({"seed": 3})).await, (200, "audio/wav".into(), wav(3).into()));
    let (status, kind, file) = sent(&host, &json!({"seed": 3, "response_format": "flac"})).await;
    assert_eq!((status, kind.as_str()), (200, "audio/flac"));
    let samples = claxon::FlacReader::new(file.as_ref()).unwrap().samples().map(Result::unwrap).collect::<Vec<_>>();
    let mut reader = hound::WavReader::new(std::io::Cursor::new(wav(3))).unwrap();
    assert_eq!(samples, reader.samples::<i32>().map(Result::unwrap).collect::<Vec<_>>());
    // Without a model's name the endpoint decides.
    let mut body = ask(&json!({}));
    body["model"] = Value::Null;
    assert_eq!(raw(&host, post(PATH, body.to_string())).await.0, 200);
}

#[tokio::test]
async fn parameters_reach_the_model_and_pieces_differ_in_their_seed() {
    let host = Host::new(play);
    let reply = host.post(PATH, &ask(&json!({"seed": 7, "n": 3, "top_k": -1, "top_p": 0.5, "temperature": 1.5, "guidance_scale": 2, "unknown": 1}))).await;
    let body = reply.json();
    let files = body["data"].as_array().unwrap();
    assert_eq!(files.len(), 3);
    for (i, file) in files.iter().enumerate() {
        assert_eq!(BASE64_STANDARD.decode(file["b64_json"].as_str().unwrap()).unwrap(), wav(7 + i as u64));
        assert_eq!(file["seconds"], 0.5);
    }
    assert_eq!((&body["response_format"], &body["sample_rate"]), (&json!("wav"), &json!(RATE)));
    let wanted = |seed: u64| json!({"prompt": "rain", "duration": 0.5, "guidance_scale": 2.0, "temperature": 1.5, "top_k": 0, "top_p": 0.5, "seed": seed});
    assert_eq!(host.tasks(), [wanted(7), wanted(8), wanted(9)]);
}

#[tokio::test]
async fn a_normalised_file_has_the_target_loudness() {
    let (_, _, file) = sent(&Host::new(play), &json!({"normalize": true})).await;
    let samples = hound::WavReader::new(file.as_ref())
        .unwrap()
        .samples::<i16>()
        .map(|s| f32::from(s.unwrap()) / 32768.0)
        .collect();
    let loudness = Audio { sample_rate: RATE, channels: 1, samples }.loudness().unwrap();
    assert!((loudness + 14.0).abs() < 0.2, "{loudness}");
}

#[tokio::test]
async fn a_stream_is_the_same_file_but_for_its_length() {
    let host = Host::new(play);
    let (status, kind, file) = sent(&host, &json!({"seed": 1, "stream": true})).await;
    assert_eq!((status, kind.as_str()), (200, "audio/wav"));
    let (whole, streamed) = (wav(1), file.as_ref());
    assert_eq!(streamed[44..], whole[44..]);
    for (name, range) in [("RIFF", 4..8), ("data", 40..44)] {
        assert_eq!(streamed[range], [0xFF; 4], "{name}");
    }
    assert_eq!((&streamed[..4], &streamed[8..40]), (&whole[..4], &whole[8..40]));

    for body in [json!({"seed": 1, "stream_format": "sse"}), json!({"seed": 1, "stream": true, "stream_format": "sse"})]
    {
        let (_, kind, events) = sent(&host, &body).await;
        assert_eq!(kind, "text/event-stream");
        let events = named_events(&events);
        let names: Vec<_> =
            events.iter().map(|event| event["type"].as_str().unwrap().rsplit('.').next().unwrap()).collect();
        assert_eq!(names, ["progress", "delta", "progress", "delta", "progress", "delta", "done"]);
        assert_eq!((&events[2]["done"], &events[2]["total"]), (&json!(2), &json!(3)));
        assert_eq!(events[6]["seconds"], 0.5);
        let audio = events.iter().filter_map(|event| event["audio"].as_str());
        let joined: Vec<u8> = audio.flat_map(|audio| BASE64_STANDARD.decode(audio).unwrap()).collect();
        assert_eq!(joined, file);
        assert_eq!(audio::of_stream(&joined).unwrap().samples.len(), tone(1).len());
    }
}

#[tokio::test]
async fn samples_leave_as_they_come_and_a_break_is_seen() {
    for (body, text) in [(json!({"stream": true}), ""), (json!({"stream_format": "sse"}), "worker_died")] {
        let (outputs, receiver) = mpsc::channel(4);
        outputs.send(block(&[0.5; 100], 0)).await.unwrap();
        let reply = answering(receiver).oneshot(post(PATH, ask(&body).to_string())).await.unwrap();
        assert_eq!(reply.status(), 200);
        let mut pieces = reply.into_body().into_data_stream();
        assert!(!pieces.next().await.unwrap().unwrap().is_empty());
        outputs.send(failed(FailureKind::WorkerDied)).await.unwrap();
        let last = pieces.next().await.unwrap();
        match text {
            "" => assert!(last.is_err(), "a file that is not whole looks whole"),
            text => assert!(std::str::from_utf8(&last.unwrap()).unwrap().contains(text)),
        }
        assert!(pieces.next().await.is_none());
    }
}

#[tokio::test]
async fn a_client_that_leaves_cancels() {
    for stream in [true, false] {
        let (outputs, receiver) = mpsc::channel(4);
        outputs.send(block(&[0.5; 100], 0)).await.unwrap();
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
async fn files_are_kept_at_an_address_for_a_while() {
    let (folder, host) = keeping(play, |_| {});
    let reply = host.post(PATH, &ask(&json!({"response": "url", "seed": 2, "n": 2}))).await.json();
    for (i, seed) in [2, 3].into_iter().enumerate() {
        let url = reply["data"][i]["url"].as_str().unwrap().to_owned();
        let path = url.strip_prefix("http://127.0.0.1:9000").unwrap();
        let (status, kind, file) = raw(&host, Request::get(path).body(Body::empty()).unwrap()).await;
        assert_eq!((status, kind.as_str(), file.as_ref()), (200, "audio/wav", wav(seed).as_slice()));
        let lying = folder.path().join("artifacts").join(path.rsplit('/').next().unwrap());
        let old = std::time::SystemTime::now() - Duration::from_secs(3600);
        std::fs::File::options().write(true).open(&lying).unwrap().set_modified(old).unwrap();
        assert_eq!(host.get(path).await.error().1, "artifact_not_found");
    }
    for name in ["nothing.wav", "..%2f..%2fetc%2fpasswd", "%ff"] {
        let status = host.get(&format!("/artifacts/{name}")).await.status.as_u16();
        assert!(status == 404 || status == 400, "{name}: {status}");
    }
}

#[tokio::test]
async fn the_address_is_one_that_the_client_can_reach() {
    let (_folder, host) = keeping(play, |config| config.api_keys = keys(&["key"]));
    let mut request = post(PATH, ask(&json!({"response": "url"})).to_string());
    for (name, value) in [("host", "pod.example:7000"), ("x-forwarded-proto", "https"), ("x-api-key", "key")] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let reply = host.send(request).await.json();
    let path = reply["data"][0]["url"].as_str().unwrap().strip_prefix("https://pod.example:7000").unwrap().to_owned();
    assert_eq!(host.get(&path).await.status, 401);
}

#[tokio::test]
async fn a_store_without_room_costs_one_request() {
    let (_folder, host) = keeping(play, |config| config.limits.artifact_bytes = ByteSize(100));
    let reply = host.post(PATH, &ask(&json!({"response": "url"}))).await;
    assert_eq!(reply.error(), (507, "storage_full".into(), String::new()));
    assert!(reply.body.contains("b64_json") && !reply.body.contains("artifact_bytes"), "{}", reply.body);
    assert_eq!(sent(&host, &json!({})).await.0, 200);
    let (folder, host) = keeping(play, |_| {});
    std::fs::write(folder.path().join("artifacts"), b"").unwrap();
    assert_eq!(host.post(PATH, &ask(&json!({"response": "url"}))).await.error().0, 500);
}

#[tokio::test]
async fn bad_input_names_its_field() {
    let host = Host::new(play);
    for (extra, param) in [
        (json!({"duration": 0}), "duration"),
        (json!({"duration": -1}), "duration"),
        (json!({"duration": 1e6}), "duration"),
        (json!({"duration": "NaN"}), "duration"),
        (json!({"duration": 200, "n": 4}), "duration"),
        (json!({"prompt": ""}), "prompt"),
        (json!({"prompt": " \n"}), "prompt"),
        (json!({"prompt": null}), "prompt"),
        (json!({"prompt": ["rain"]}), "prompt"),
        (json!({"response_format": "mp3"}), "response_format"),
        (json!({"response_format": "opus"}), "response_format"),
        (json!({"response": "file"}), "response"),
        (json!({"response": "bytes", "n": 2}), "response"),
        (json!({"n": 0}), "n"),
        (json!({"n": 5}), "n"),
        (json!({"n": 2, "stream": true}), "n"),
        (json!({"stream": true, "response_format": "flac"}), "response_format"),
        (json!({"stream": true, "response": "url"}), "response"),
        (json!({"stream": true, "normalize": true}), "normalize"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream_format": "websocket"}), "stream_format"),
        (json!({"normalize": "loud"}), "normalize"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"guidance_scale": -1}), "guidance_scale"),
        (json!({"top_p": 2}), "top_p"),
        (json!({"top_k": 1.5}), "top_k"),
        (json!({"seed": "x"}), "seed"),
        (json!({"model": 1}), "model"),
    ] {
        let reply = host.post(PATH, &ask(&extra)).await;
        let (status, _, found) = reply.error();
        assert_eq!((status, found.as_str()), (400, param), "{extra} -> {}", reply.body);
    }
    let formats = host.post(PATH, &ask(&json!({"response_format": "mp3"}))).await.body;
    assert!(formats.contains("wav or flac"), "{formats}");
    let not_a_number = r#"{"model": "music", "prompt": "rain", "duration": NaN}"#;
    assert_eq!(host.send(post(PATH, not_a_number)).await.error().0, 400);
    assert!(host.submitted.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_models_own_refusal_blames_the_field_it_names() {
    let host = Host::new(|_, _| {
        let mut failure = Failure::new(FailureKind::InvalidRequest, "prompt is no field here");
        failure.details = Some(Box::new(crate::domain::FailureDetails {
            field: Some("duration".to_owned()),
            code: Some("beyond_the_model".to_owned()),
            retry_after_ms: Some(1500),
            ..Default::default()
        }));
        Ok(vec![Output::Done(Err(failure))])
    });
    for stream in [false, true] {
        let reply = host.post(PATH, &ask(&json!({"stream": stream}))).await;
        assert_eq!(reply.error(), (400, "beyond_the_model".into(), "duration".into()));
        assert_eq!(reply.header("retry-after"), "2");
    }
}

#[tokio::test]
async fn other_kinds_are_sent_to_their_own_endpoint() {
    let host = Host::new(play);
    for (path, body, own) in [
        ("/v1/audio/speech", json!({"model": "music", "input": "hello", "voice": "alloy"}), PATH),
        ("/v1/chat/completions", chat(&json!({"model": "music"})), PATH),
        (PATH, ask(&json!({"model": "a"})), "/v1/chat/completions"),
    ] {
        let reply = host.post(path, &body).await;
        assert_eq!(reply.error(), (400, "unsupported_endpoint_for_model".into(), "model".into()));
        assert!(reply.body.contains(&format!("; ask {own}")), "{}", reply.body);
    }
}

#[tokio::test]
async fn nonsense_of_a_plugin_is_its_own_fault() {
    fn of_channels(channels: u16) -> Output {
        let header = AudioHeader::new(task::AudioFormat::new(RATE, channels), 0);
        Output::Bytes(AudioBlock::encode(&header, &[0.0; 3]).unwrap().into())
    }
    for script in [
        (|_, _| Ok(vec![Output::Bytes(Bytes::from_static(b"??"))])) as Script,
        |_, _| Ok(vec![of_channels(0)]),
        |_, _| Ok(vec![of_channels(2)]),
        |_, _| Ok(vec![of_channels(u16::MAX)]),
        |_, _| Ok(vec![Output::Done(Ok(Bytes::from_static(b"[]")))]),
        |_, _| Ok(vec![block(&[0.0], 0)]),
    ] {
        for stream in [false, true] {
            let reply = Host::new(script).post(PATH, &ask(&json!({"stream": stream}))).await;
            assert_eq!(reply.error().0, 500, "{}", reply.body);
        }
    }
    let cancelled = Host::new(|_, _| Ok(vec![finished("cancelled")]));
    assert_eq!(cancelled.post(PATH, &ask(&json!({}))).await.error().1, "cancelled");
}
