//! `POST /v1/embeddings`, `POST /v1/rerank` and Ollama's forms of the first: what reaches a plugin, what it may answer, and what is
//! refused.

use aihost_plugin_api::task::{EmbeddingBlock, EmbeddingForm, EmbeddingHeader};

use super::*;

const PATH: &str = "/v1/embeddings";
const RERANK: &str = "/v1/rerank";

fn over(script: Script) -> Host {
    Host::with(configured([model("v", Kind::Embedding), model("a", Kind::Text)]), script)
}

fn block(form: EmbeddingForm, index: u32, values: &[f32]) -> Output {
    Output::Bytes(EmbeddingBlock::encode(&EmbeddingHeader::new(form, index), values).unwrap().into())
}

fn vector(index: u32, values: &[f32]) -> Output {
    block(EmbeddingForm::Vector, index, values)
}

fn end(reason: &str) -> Output {
    Output::Done(Ok(Bytes::from(json!({"reason": reason, "prompt_tokens": 5}).to_string())))
}

/// Two vectors; or the scores of two documents, the second the better.
fn two(_: usize, submission: &Submission) -> Result<Vec<Output>, Failure> {
    let task: Value = serde_json::from_slice(&submission.ask.as_task().unwrap().header).unwrap();
    Ok(match task["input"]["type"].as_str().unwrap() {
        "rank" => vec![block(EmbeddingForm::Score, 0, &[0.1, 0.2]), end("stop")],
        _ => {
            vec![vector(0, &[0.1, -2.0]), Output::Progress { done: 1, total: 2 }, vector(1, &[0.25, 1e-8]), end("stop")]
        }
    })
}

#[tokio::test]
async fn what_is_asked_reaches_the_plugin_and_its_values_are_written_short() {
    let host = over(two);
    let reply = host.post(PATH, &json!({"model": "v", "input": ["x", "y"], "dimensions": 2})).await;
    assert_eq!(
        reply.body,
        r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.1,-2.0]},{"object":"embedding","index":1,"embedding":[0.25,1e-8]}],"model":"v","usage":{"prompt_tokens":5,"total_tokens":5}}"#
    );
    let reply = host.post(RERANK, &json!({"query": "q", "documents": ["x", {"text": "y"}]})).await;
    assert_eq!(
        reply.body,
        r#"{"object":"list","model":"v","usage":{"prompt_tokens":5,"total_tokens":5},"results":[{"index":1,"relevance_score":0.2},{"index":0,"relevance_score":0.1}]}"#
    );
    let reply = host.post("/api/embed", &json!({"model": "v:latest", "input": ["x", "y"]})).await.json();
    assert_eq!((&reply["model"], &reply["embeddings"][0][1]), (&json!("v:latest"), &json!(-2.0)));
    let texts = |dimensions: Value| json!({"input": {"type": "texts", "texts": ["x", "y"]}, "dimensions": dimensions});
    let rank = json!({"input": {"type": "rank", "query": "q", "documents": ["x", "y"]}, "dimensions": null});
    assert_eq!(host.tasks(), [texts(json!(2)), rank, texts(Value::Null)]);
    assert!(host.submitted.lock().unwrap().iter().all(|submission| submission.kind == Kind::Embedding));
}

#[tokio::test]
async fn what_is_no_answer_is_the_plugins_fault_and_never_reaches_a_client() {
    let scripts: [(&str, Script); 11] = [
        ("too few", |_, _| Ok(vec![vector(0, &[1.0]), end("stop")])),
        ("none", |_, _| Ok(vec![end("stop")])),
        ("too many", |_, _| Ok(vec![vector(0, &[1.0]), vector(1, &[1.0]), vector(2, &[1.0]), end("stop")])),
        ("out of order", |_, _| Ok(vec![vector(1, &[1.0]), vector(0, &[1.0]), end("stop")])),
        ("twice", |_, _| Ok(vec![vector(0, &[1.0]), vector(0, &[1.0]), end("stop")])),
        ("two widths", |_, _| Ok(vec![vector(0, &[1.0]), vector(1, &[1.0, 2.0]), end("stop")])),
        ("no number", |_, _| Ok(vec![vector(0, &[1.0]), vector(1, &[f32::NAN]), end("stop")])),
        ("no finite number", |_, _| Ok(vec![vector(0, &[f32::INFINITY]), vector(1, &[1.0]), end("stop")])),
        ("scores", |_, _| Ok(vec![block(EmbeddingForm::Score, 0, &[1.0, 2.0]), end("stop")])),
        ("damaged", |_, _| Ok(vec![Output::Bytes(Bytes::from_static(b"\x05\0\0\0hm")), end("stop")])),
        ("no summary", |_, _| {
            Ok(vec![vector(0, &[1.0]), vector(1, &[1.0]), Output::Done(Ok(Bytes::from_static(b"[]")))])
        }),
    ];
    for (name, script) in scripts {
        let reply = over(script).post(PATH, &json!({"model": "v", "input": ["x", "y"]})).await;
        assert_eq!(reply.error().0, 500, "{name}: {}", reply.body);
    }
    // Vectors of another width than was asked for, and vectors where scores were.
    let asked = json!({"model": "v", "input": ["x", "y"], "dimensions": 3});
    assert_eq!(over(two).post(PATH, &asked).await.error().0, 500);
    let vectors: Script = |_, _| Ok(vec![vector(0, &[1.0]), vector(1, &[1.0]), end("stop")]);
    let asked = json!({"model": "v", "query": "q", "documents": ["x", "y"]});
    assert_eq!(over(vectors).post(RERANK, &asked).await.error().0, 500);
}

#[tokio::test]
async fn an_answer_has_a_limit_that_says_what_to_do() {
    let much: Script = |_, _| {
        let wide = vec![0.5; 1 << 16];
        Ok((0..257).map(|index| vector(index, &wide)).chain([end("stop")]).collect())
    };
    let reply = over(much).post(PATH, &json!({"model": "v", "input": vec!["x"; 257]})).await;
    assert_eq!(reply.error().0, 400, "{}", reply.body);
    assert!(reply.body.contains("fewer texts at once"), "{}", reply.body);
}

#[tokio::test]
async fn what_a_plugin_refuses_has_the_name_that_its_client_gave_it() {
    let host = over(|_, _| blamed("dimensions"));
    assert_eq!(host.post(PATH, &json!({"input": "x"})).await.error().2, "dimensions");
    let long: Script = |_, _| Ok(vec![failed(FailureKind::ContextLength)]);
    assert_eq!(over(long).post(PATH, &json!({"input": "x"})).await.error().2, "input");
    assert_eq!(over(long).post(RERANK, &json!({"query": "q", "documents": ["x"]})).await.error().2, "documents");
    let gone = over(|_, _| Ok(vec![end("cancelled")]));
    assert_ne!(gone.post(PATH, &json!({"input": "x"})).await.status, 200);
}

#[tokio::test]
async fn a_model_of_another_kind_says_where_it_answers() {
    let host = over(two);
    for (path, body) in [
        (PATH, json!({"model": "a", "input": "x"})),
        ("/embeddings", json!({"model": "a", "input": "x"})),
        (RERANK, json!({"model": "a", "query": "q", "documents": ["x"]})),
        ("/rerank", json!({"model": "a", "query": "q", "documents": ["x"]})),
        // Whatever else is wrong with it.
        (PATH, json!({"model": "a"})),
        (RERANK, json!({"model": "a"})),
        ("/v1/chat/completions", chat(&json!({"model": "v"}))),
    ] {
        let (status, _, param) = host.post(path, &body).await.error();
        assert_eq!((status, param.as_str()), (400, "model"), "{path}");
    }
    assert_eq!(host.post(PATH, &json!({"model": "nobody"})).await.error().1, "model_not_found");
    assert!(host.tasks().is_empty());
}
