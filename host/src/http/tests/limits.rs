//! What a request may cost: sizes, counts, lengths; and the place that one request with many parts takes.

use std::collections::VecDeque;

use super::*;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// A host that reads bodies as large as they come where nothing is said.
fn usual() -> Host {
    let mut config = config();
    config.limits.body_limit = None;
    config.limits.bodies = ByteSize(64 << 20);
    Host::with(config, hello)
}

#[tokio::test]
async fn what_each_choice_would_have_a_copy_of_is_bounded() {
    let host = usual();
    let biases: serde_json::Map<_, _> = (0..5000).map(|token| (token.to_string(), json!(1))).collect();
    for (path, extra, param) in [
        (CHAT, json!({"stop": "z".repeat(1025)}), "stop"),
        (CHAT, json!({"stop": ["a", "z".repeat(1 << 20)]}), "stop[1]"),
        (CHAT, json!({"stop": vec!["a"; 65]}), "stop"),
        (CHAT, json!({"logit_bias": biases}), "logit_bias"),
        (COMPLETIONS, json!({"prompt": vec!["a"; 1024], "stop": ["z".repeat(1 << 20)]}), "stop[0]"),
        (COMPLETIONS, json!({"prompt": vec!["a"; 1025]}), "prompt"),
        (CHAT, json!({"tools": vec![json!({"type": "function", "function": {"name": "f"}}); 40_000]}), "tools"),
        ("/v1/images/generations", json!({"model": "flux", "prompt": "ä".repeat(32_001)}), "prompt"),
        ("/v1/audio/generations", json!({"model": "music", "prompt": "x".repeat(32_001)}), "prompt"),
    ] {
        let mut body = chat(&json!({}));
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let reply = host.post(path, &body).await;
        assert_eq!(reply.error(), (400, "invalid_value".into(), param.into()), "{}", reply.body);
        assert!(reply.body.len() < 1024, "{}", reply.body.len());
    }
    assert_eq!(host.tasks().len(), 0);
}

#[tokio::test]
async fn what_is_not_read_is_skipped_however_it_looks() {
    let host = usual();
    let body = |ignored: &str| {
        format!(
            r#"{{"messages": [{{"role": "user", "content": "hi", "x": {ignored}}}], "x": {ignored}, "model": "a"}}"#
        )
    };
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    for ignored in [deep.as_str(), "1e999", "[[1],[1]]", r#"{"a":{"a":0}}"#, r#""\ud800""#] {
        let reply = host.send(post(CHAT, body(ignored))).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    for broken in ["[1,]", "01", "\"\n\"", "{\"a\"}", "[1}"] {
        assert_eq!(host.send(post(CHAT, body(broken))).await.error().0, 400, "{broken}");
    }
}

#[tokio::test]
async fn what_is_passed_on_as_it_came_can_be_read() {
    let host = usual();
    for (parameters, status) in [
        (r#"{"a": [1, 2.5, "x", null, true, {"a": {}}]}"#, 200),
        (r#"{"a": 1e999}"#, 400),
        (r#"{"a": "\ud800"}"#, 400),
        (&format!(r#"{{"a": {}1{}}}"#, "[".repeat(200), "]".repeat(200)), 400),
    ] {
        let tool = format!(r#"{{"type": "function", "function": {{"name": "f", "parameters": {parameters}}}}}"#);
        let body = format!(r#"{{"model": "a", "messages": [{{"role": "user", "content": "hi"}}], "tools": [{tool}]}}"#);
        let reply = host.send(post(CHAT, body)).await;
        assert_eq!(reply.status.as_u16(), status, "{parameters}: {}", reply.body);
    }
    assert_eq!(host.tasks()[0]["input"]["tools"][0]["function"]["parameters"]["a"][5], json!({"a": {}}));
}

#[tokio::test]
async fn a_name_is_looked_for_only_where_it_could_be_meant() {
    let names = (0..3000).map(|number| model(&format!("model-{number}-of-many"), Kind::Text));
    let mut config = configured(names);
    (config.limits.body_limit, config.limits.bodies) = (None, ByteSize(64 << 20));
    let host = Host::with(config, hello);
    let long = "q".repeat(3 << 20);
    let reply = host.post(CHAT, &chat(&json!({"model": long}))).await;
    assert_eq!(reply.error(), (404, "model_not_found".into(), "model".into()));
    assert!(reply.body.len() < 1024, "{}", reply.body.len());
    assert!(host.get(&format!("/v1/models/{}", "q".repeat(60_000))).await.body.len() < 1024);
    assert!(host.get(&format!("/logs/{}", "q".repeat(60_000))).await.body.len() < 1024);
    assert!(host.get(&format!("/artifacts/{}", "q".repeat(60_000))).await.body.len() < 1024);
    assert!(host.get(&format!("/{}", "q".repeat(60_000))).await.body.len() < 1024);
    let near = host.post(CHAT, &chat(&json!({"model": "model-1-of-mny"}))).await;
    assert!(near.body.contains("did you mean `model-1-of-many`?"), "{}", near.body);
}

#[tokio::test]
async fn each_endpoint_reads_bodies_of_its_own_size() {
    let host = usual();
    let unlimited = |bytes: usize| json!({"model": "a", "x": "y".repeat(bytes)}).to_string();
    for (path, most) in [
        ("/models/load", 64 << 10),
        ("/v1/images/generations", 1 << 20),
        (CHAT, 4 << 20),
        ("/v1/images/edits", 32 << 20),
    ] {
        assert_eq!(host.send(post(path, unlimited(most))).await.error().1, "request_too_large", "{path}");
        let reply = host.send(post(path, unlimited(most - 100))).await;
        assert_ne!(reply.status, 413, "{path}");
    }
    let mut config = config();
    config.limits.body_limit = Some(ByteSize(8 << 20));
    config.limits.bodies = ByteSize(64 << 20);
    let raised = Host::with(config, hello);
    for (path, bytes, status) in [(CHAT, 7 << 20, 400), (CHAT, 9 << 20, 413), ("/models/load", 1 << 20, 413)] {
        assert_eq!(raised.send(post(path, unlimited(bytes))).await.status.as_u16(), status, "{path} {bytes}");
    }
}

#[tokio::test(start_paused = true)]
async fn bodies_together_have_a_limit_until_their_answers_have_ended() {
    let (outputs, receiver) = mpsc::channel(4);
    outputs.send(text("Hel")).await.unwrap();
    let mut config = config();
    config.limits.body_limit = Some(ByteSize(1 << 20));
    config.limits.bodies = ByteSize(1 << 20);
    let router = router_answering(config, [receiver]);
    let large = |stream: bool| {
        let body =
            json!({"model": "a", "stream": stream, "messages": [{"role": "user", "content": "x".repeat(700 << 10)}]});
        post(CHAT, body.to_string())
    };
    let first = router.clone().oneshot(large(true)).await.unwrap();
    assert_eq!(first.status(), 200);
    let refused = router.clone().oneshot(large(false)).await.unwrap();
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (503, &"2".parse().unwrap()));
    let short = post("/models/load", json!({"model": "nobody"}).to_string());
    assert_eq!(router.clone().oneshot(short).await.unwrap().status(), 404, "a short one is kept out");
    drop((first, refused));
    let second = router.oneshot(large(true)).await.unwrap();
    // There is room again: this one got as far as the runtime, which has no answer for it.
    assert_eq!(second.headers().get("retry-after"), None);
    assert_ne!(axum::body::to_bytes(second.into_body(), usize::MAX).await.unwrap().len(), 0);
}

/// A router whose requests get these answers in turn; those beyond are told that the host shuts down.
fn router_answering(config: Config, answers: impl IntoIterator<Item = mpsc::Receiver<Output>>) -> Router {
    let (commands, mut received) = mpsc::channel(1);
    let mut answers: VecDeque<_> = answers.into_iter().collect();
    tokio::spawn(async move {
        while let Some(command) = received.recv().await {
            if let Command::Submit(_, reply) = command {
                let answer = answers.pop_front().map(|output| Answer { request: RequestId(1), output });
                let gone = Failure::new(FailureKind::ShuttingDown, "no more answers");
                let _ = reply.send(answer.ok_or(gone));
            }
        }
    });
    crate::http::router(Handle::new(commands, tokio::sync::watch::channel(Arc::new(config)).1, super::no_plugins()))
}

/// The asks of one request, held until the test grants them.
async fn asks(body: Value) -> (mpsc::Receiver<Command>, tokio::task::JoinHandle<(u16, String)>) {
    let (commands, received) = mpsc::channel(64);
    let router = crate::http::router(Handle::new(
        commands,
        tokio::sync::watch::channel(Arc::new(config())).1,
        super::no_plugins(),
    ));
    let reply = tokio::spawn(async move {
        let reply = router.oneshot(post(CHAT, body.to_string())).await.unwrap();
        let status = reply.status().as_u16();
        let bytes = axum::body::to_bytes(reply.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    });
    (received, reply)
}

async fn next_ask(received: &mut mpsc::Receiver<Command>) -> oneshot::Sender<crate::runtime::Submitted> {
    match received.recv().await.unwrap() {
        Command::Submit(_, reply) => reply,
        other => panic!("{other:?}"),
    }
}

fn grant(ask: oneshot::Sender<crate::runtime::Submitted>, outputs: Vec<Output>) {
    ask.send(Ok(Answer { request: RequestId(1), output: feed(outputs) })).unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_request_has_one_place_in_the_queue_however_many_choices_it_wants() {
    let (mut received, reply) = asks(chat(&json!({"n": 64}))).await;
    let (kept, held) = mpsc::channel(1);
    let mut held = Some(held);
    for granted in 0..64 {
        let ask = next_ask(&mut received).await;
        // Time passes at once where nobody has anything to do: whatever else is asked for would be there.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(received.try_recv().is_err(), "two wait at once after {granted} grants");
        match held.take() {
            // The first one runs on: the others do not wait for it.
            Some(output) => ask.send(Ok(Answer { request: RequestId(1), output })).unwrap(),
            None => grant(ask, vec![text("x"), done("stop")]),
        }
    }
    kept.send(done("stop")).await.unwrap();
    let (status, body) = reply.await.unwrap();
    assert_eq!(status, 200, "{body}");
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["choices"].as_array().unwrap().len(), 64);
}

#[tokio::test(start_paused = true)]
async fn what_was_begun_waits_for_a_full_queue_and_what_was_not_is_refused() {
    let full = || Err(Failure::new(FailureKind::QueueFull, "full"));
    let (mut received, reply) = asks(chat(&json!({"n": 2}))).await;
    next_ask(&mut received).await.send(full()).unwrap();
    assert_eq!(reply.await.unwrap().0, 429);

    let (mut received, reply) = asks(chat(&json!({"n": 2}))).await;
    grant(next_ask(&mut received).await, vec![done("stop")]);
    for _ in 0..5 {
        next_ask(&mut received).await.send(full()).unwrap();
    }
    grant(next_ask(&mut received).await, vec![done("stop")]);
    assert_eq!(reply.await.unwrap().0, 200);

    let (mut received, reply) = asks(chat(&json!({"n": 2}))).await;
    grant(next_ask(&mut received).await, vec![done("stop")]);
    let refusing = tokio::spawn(async move {
        while let Some(Command::Submit(_, ask)) = received.recv().await {
            ask.send(full()).unwrap();
        }
    });
    assert_eq!(reply.await.unwrap().0, 429);
    refusing.await.unwrap();
}

#[tokio::test]
async fn tasks_of_large_prompts_are_made_one_by_one() {
    let prompt = "x".repeat(40 << 10);
    let (mut received, reply) =
        asks(chat(&json!({"n": 3, "seed": 1, "messages": [{"role": "user", "content": prompt}]}))).await;
    let mut tasks = Vec::new();
    while tasks.len() < 3 {
        let Command::Submit(submission, ask) = received.recv().await.unwrap() else { panic!("no submission") };
        tasks.push(submission.ask.as_task().unwrap().clone());
        grant(ask, vec![done("stop")]);
    }
    assert_eq!(reply.await.unwrap().0, 200);
    assert!(tasks.iter().all(|task| task.header.len() > 40 << 10) && tasks[0] != tasks[1]);

    let (mut received, reply) = asks(chat(&json!({"n": 3, "messages": [{"role": "user", "content": prompt}]}))).await;
    let mut tasks = Vec::new();
    while tasks.len() < 3 {
        let Command::Submit(submission, ask) = received.recv().await.unwrap() else { panic!("no submission") };
        tasks.push(submission.ask.as_task().unwrap().clone());
        grant(ask, vec![done("stop")]);
    }
    assert_eq!(reply.await.unwrap().0, 200);
    // Without a seed the choices' tasks are one and the same, not copies.
    assert!(tasks.iter().all(|task| task.header.as_ptr() == tasks[0].header.as_ptr()));
}
