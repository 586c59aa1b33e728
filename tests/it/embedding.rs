//! Plugins of kind `embedding`: vectors and scores over the wire, in every form that clients ask for them, and what is refused.

use aihost_tests::server::{Server, Setup, chat, client};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

const PATH: &str = "/v1/embeddings";
const RERANK: &str = "/v1/rerank";
const YAML: &str = "models:\n  bytes: {type: embedding, plugin: aihost/vectors, aliases: [ada]}\n  words: {type: text, plugin: aihost/echo}\n";

fn setup() -> Setup {
    Setup { yaml: YAML.to_owned(), plugins: vec!["vectors", "echo"], ..Setup::default() }
}

/// What the fixture makes of a text or of token ids, eight values wide.
fn vector(numbers: impl IntoIterator<Item = u32>) -> Vec<f32> {
    let numbers: Vec<u32> = numbers.into_iter().collect();
    let of = |rest| numbers.iter().filter(|number| *number % 8 == rest).count() as f32 / numbers.len() as f32;
    (0..8).map(of).collect()
}

fn of_text(text: &str) -> Vec<f32> {
    vector(text.bytes().map(u32::from))
}

fn floats(values: &Value) -> Vec<f32> {
    values.as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

/// The vectors of an answer, whose shape must be OpenAI's.
fn vectors(body: &Value) -> Vec<Vec<f32>> {
    assert_eq!(body["object"], "list", "{body}");
    let data = body["data"].as_array().unwrap().iter().enumerate();
    data.map(|(i, entry)| {
        assert_eq!((&entry["object"], &entry["index"]), (&json!("embedding"), &json!(i)), "{entry}");
        floats(&entry["embedding"])
    })
    .collect()
}

async fn embedded(server: &Server, extra: Value) -> Value {
    let mut body = json!({"model": "bytes"});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let (status, reply) = server.post(PATH, &body).await;
    assert_eq!(status, 200, "{body}: {reply}");
    reply
}

#[tokio::test]
async fn every_form_of_an_input_gives_its_vectors() {
    let server = Server::start(&setup());
    for (input, wanted, tokens) in [
        (json!("a red fox, \u{72d0}"), vec![of_text("a red fox, \u{72d0}")], 14),
        (json!(["one", "two \"three\"\n"]), vec![of_text("one"), of_text("two \"three\"\n")], 15),
        (json!([9, 1, 2]), vec![vector([9, 1, 2])], 3),
        (json!([[7], [8, 16, 3]]), vec![vector([7]), vector([8, 16, 3])], 4),
    ] {
        let body = embedded(&server, json!({"input": input, "user": "u", "encoding_format": "float"})).await;
        assert_eq!(vectors(&body), wanted, "{input}");
        assert_eq!(body["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}), "{input}");
        assert_eq!(body["model"], "bytes");
    }
    // By an alias, by none, and without the version in the path.
    assert_eq!(embedded(&server, json!({"model": "ada", "input": "x"})).await["model"], "ada");
    assert_eq!(vectors(&embedded(&server, json!({"model": null, "input": "x"})).await), [of_text("x")]);
    let (status, body) = server.post("/embeddings", &json!({"model": "bytes", "input": "x"})).await;
    assert_eq!((status, vectors(&body)), (200, vec![of_text("x")]));
    // What was read is counted, where it is for every kind.
    let (_, metrics) = server.get("/metrics").await;
    let counted =
        metrics.as_str().unwrap().lines().find(|line| {
            line.starts_with("aihost_tokens_total{") && line.contains("\"bytes\"") && line.contains("\"in\"")
        });
    assert_eq!(counted.and_then(|line| line.rsplit_once(' ')).map(|(_, count)| count), Some("39"), "{metrics}");
}

#[tokio::test]
async fn base64_is_the_same_floats_and_dimensions_cut_them() {
    let server = Server::start(&setup());
    let input = json!(["third", "a seventh of it"]);
    let plain = vectors(&embedded(&server, json!({"input": input})).await);
    let packed = embedded(&server, json!({"input": input, "encoding_format": "base64"})).await;
    for (entry, wanted) in packed["data"].as_array().unwrap().iter().zip(&plain) {
        let bytes = BASE64_STANDARD.decode(entry["embedding"].as_str().unwrap()).unwrap();
        let read: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        assert_eq!(&read, wanted);
    }
    let cut = vectors(&embedded(&server, json!({"input": input, "dimensions": 3})).await);
    assert_eq!(cut, plain.iter().map(|vector| vector[..3].to_vec()).collect::<Vec<_>>());
    let (status, body) = server.post(PATH, &json!({"model": "bytes", "input": "x", "dimensions": 9})).await;
    assert_eq!((status, &body["error"]["param"]), (400, &json!("dimensions")), "{body}");
    assert!(body["error"]["message"].as_str().unwrap().contains("8 values"), "{body}");
}

#[tokio::test]
async fn many_texts_keep_their_order() {
    let server = Server::start(&setup());
    let texts: Vec<String> = (0..200).map(|i| format!("text {i} {}", "x".repeat(i))).collect();
    let body = embedded(&server, json!({"input": texts})).await;
    assert_eq!(vectors(&body), texts.iter().map(|text| of_text(text)).collect::<Vec<_>>());
}

#[tokio::test]
async fn documents_are_ranked_the_best_first_and_equals_in_their_order() {
    let server = Server::start(&setup());
    let documents = json!(["a cat", {"text": "a dog and a cat"}, "nothing", "one cat"]);
    let asked = json!({"model": "bytes", "query": "cat dog", "documents": documents});
    let with = |extra: Value| {
        let mut body = asked.clone();
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    for path in [RERANK, "/rerank"] {
        let (status, body) = server.post(path, &asked).await;
        assert_eq!(status, 200, "{body}");
        let wanted = json!({
            "object": "list", "model": "bytes", "usage": {"prompt_tokens": 62, "total_tokens": 62},
            "results": [
                {"index": 1, "relevance_score": 2.0}, {"index": 0, "relevance_score": 1.0},
                {"index": 3, "relevance_score": 1.0}, {"index": 2, "relevance_score": 0.0},
            ],
        });
        assert_eq!(body, wanted);
    }
    let (_, body) = server.post(RERANK, &with(json!({"top_n": 2, "return_documents": true, "model": null}))).await;
    let wanted = json!([
        {"index": 1, "relevance_score": 2.0, "document": {"text": "a dog and a cat"}},
        {"index": 0, "relevance_score": 1.0, "document": {"text": "a cat"}},
    ]);
    assert_eq!(body["results"], wanted, "{body}");
    let (_, body) = server.post(RERANK, &with(json!({"top_n": 99}))).await;
    assert_eq!(body["results"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn bad_input_is_refused_clearly() {
    let server = Server::start(&setup());
    let many = vec!["x"; 2049];
    for (path, body, param, word) in [
        (PATH, json!({}), "input", "required"),
        (PATH, json!({"input": ""}), "input", "empty"),
        (PATH, json!({"input": []}), "input", "at least one"),
        (PATH, json!({"input": ["a", ""]}), "input[1]", "empty"),
        (PATH, json!({"input": ["a", 1]}), "input[1]", "a string"),
        (PATH, json!({"input": [1, "a"]}), "input[1]", "a token id"),
        (PATH, json!({"input": [-1]}), "input[0]", "a token id"),
        (PATH, json!({"input": [[1], []]}), "input[1]", "at least one token"),
        (PATH, json!({"input": [[1], [1.5]]}), "input[1][0]", "a token id"),
        (PATH, json!({"input": {"text": "a"}}), "input", "array"),
        (PATH, json!({"input": many}), "input", "at most 2048"),
        (PATH, json!({"input": "a", "encoding_format": "int8"}), "encoding_format", "float or base64"),
        (PATH, json!({"input": "a", "dimensions": 0}), "dimensions", "from 1 to 65536"),
        (PATH, json!({"input": "a", "dimensions": "8"}), "dimensions", "integer"),
        (PATH, json!({"input": "a", "model": "words"}), "model", "/v1/chat/completions"),
        (RERANK, json!({"documents": ["a"]}), "query", "required"),
        (RERANK, json!({"query": "", "documents": ["a"]}), "query", "empty"),
        (RERANK, json!({"query": "q"}), "documents", "required"),
        (RERANK, json!({"query": "q", "documents": []}), "documents", "at least one"),
        (RERANK, json!({"query": "q", "documents": "a"}), "documents", "an array"),
        (RERANK, json!({"query": "q", "documents": ["a", {"title": "b"}]}), "documents[1].text", "required"),
        (RERANK, json!({"query": "q", "documents": [1]}), "documents[0]", "a string"),
        (RERANK, json!({"query": "q", "documents": many}), "documents", "at most 2048"),
        (RERANK, json!({"query": "q", "documents": ["a"], "top_n": 0}), "top_n", "from 1"),
        (RERANK, json!({"query": "q", "documents": ["a"], "model": "words"}), "model", "/v1/chat/completions"),
    ] {
        let (status, reply) = server.post(path, &body).await;
        assert_eq!((status, &reply["error"]["param"]), (400, &json!(param)), "{param} {word}: {reply}");
        assert!(reply["error"]["message"].as_str().unwrap().contains(word), "{param} {word}: {reply}");
    }
    let (status, body) = server.post("/v1/chat/completions", &chat("bytes", "hello")).await;
    assert_eq!((status, &body["error"]["param"]), (400, &json!("model")), "{body}");
    assert!(body["error"]["message"].as_str().unwrap().contains(PATH), "{body}");
    // What the model gave is no number, and that is not the client's fault; the worker lives on.
    let (status, body) = server.post(PATH, &json!({"model": "bytes", "input": ["a", "nan"]})).await;
    assert_eq!(status, 500, "{body}");
    embedded(&server, json!({"input": "a"})).await;
    assert_eq!(server.status("bytes", "loads").await, 1);
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request_alone() {
    let server = Server::start(&setup().telling_of_cancels());
    let body = json!({"model": "bytes", "input": ["first", "wait"]});
    let sent = tokio::spawn(client().post(format!("{}{PATH}", server.base())).json(&body).send());
    server.until("bytes", "active", json!(1)).await;
    sent.abort();
    let end = server.cancelled().await;
    assert_eq!((&end["reason"], &end["prompt_tokens"]), (&json!("cancelled"), &json!(9)), "{end}");
    server.until("bytes", "active", json!(0)).await;
    embedded(&server, json!({"input": "a"})).await;
    assert_eq!(server.status("bytes", "loads").await, 1, "the worker was lost");
}

#[tokio::test]
async fn a_request_that_kills_its_worker_is_told_so_and_the_next_one_served() {
    let server = Server::start(&setup());
    let (status, body) = server.post(PATH, &json!({"model": "bytes", "input": "die"})).await;
    assert_eq!(status, 500, "{body}");
    assert_eq!(vectors(&embedded(&server, json!({"input": "a"})).await), [of_text("a")]);
}

#[tokio::test]
async fn two_models_take_turns() {
    let yaml = "devices: [{id: cpu, memory: 1GiB, max_loaded: 1}]\nmodels:\n  a: {type: embedding, plugin: aihost/vectors, park: false}\n  b: {type: embedding, plugin: aihost/vectors, park: false, options: {width: 2}}\n";
    let server = Server::start(&Setup { yaml: yaml.to_owned(), plugins: vec!["vectors"], ..Setup::default() });
    for round in 1..=2 {
        for (model, width, other) in [("a", 8, "b"), ("b", 2, "a")] {
            let body = embedded(&server, json!({"model": model, "input": ["x", "y"]})).await;
            assert!(vectors(&body).iter().all(|vector| vector.len() == width), "{body}");
            assert_eq!(server.status(model, "loads").await, round);
            server.until(other, "state", json!("cold")).await;
        }
    }
    // One of several has to be named.
    let (status, body) = server.post(PATH, &json!({"input": "x"})).await;
    assert_eq!((status, &body["error"]["param"]), (400, &json!("model")), "{body}");
}

#[tokio::test]
async fn ollamas_clients_get_the_same_vectors_and_find_the_model() {
    let server = Server::start(&setup());
    let (status, body) = server.post("/api/embed", &json!({"model": "bytes", "input": ["one", "two"]})).await;
    assert_eq!(status, 200, "{body}");
    let told: Vec<_> = body["embeddings"].as_array().unwrap().iter().map(floats).collect();
    assert_eq!((told, &body["prompt_eval_count"]), (vec![of_text("one"), of_text("two")], &json!(6)));
    assert_eq!((&body["model"], body["total_duration"].is_u64()), (&json!("bytes"), true));
    let (status, body) = server.post("/api/embeddings", &json!({"model": "bytes", "prompt": "one"})).await;
    assert_eq!((status, floats(&body["embedding"])), (200, of_text("one")), "{body}");
    let (_, body) = server.post("/api/embed", &json!({"model": "bytes", "input": "one", "dimensions": 2})).await;
    assert_eq!(floats(&body["embeddings"][0]), of_text("one")[..2]);
    for (body, word) in [
        (json!({"model": "bytes", "input": ""}), "`input`"),
        (json!({"model": "bytes", "prompt": ""}), "`prompt`"),
        (json!({"model": "bytes"}), "`input`"),
        (json!({"model": "words", "input": "a"}), "kind text"),
    ] {
        let (status, reply) = server.post("/api/embed", &body).await;
        assert_eq!(status, 400, "{body}: {reply}");
        assert!(reply["error"].as_str().unwrap().contains(word), "{body}: {reply}");
    }
    let (_, shown) = server.post("/api/show", &json!({"model": "bytes"})).await;
    assert_eq!(shown["capabilities"], json!(["embedding"]), "{shown}");
    let (_, model) = server.get("/v1/models/bytes").await;
    assert_eq!((&model["kind"], &model["meta"]["n_embd"]), (&json!("embedding"), &json!(8)), "{model}");
    assert_eq!(model["architecture"]["output_modalities"], json!(["embeddings"]));
}

#[tokio::test]
async fn a_job_may_be_for_vectors() {
    let server = Server::start(&setup());
    let job = |endpoint: &str, body: Value| json!({"endpoint": endpoint, "body": body});
    let (status, kept) = server.post("/v1/jobs", &job(PATH, json!({"model": "bytes", "input": "one"}))).await;
    assert_eq!(status, 202, "{kept}");
    let path = format!("/v1/jobs/{}/result", kept["id"].as_str().unwrap());
    aihost_tests::eventually(async || match server.get(&path).await {
        (200, body) if vectors(&body) == [of_text("one")] => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    for (endpoint, body, param) in [
        (PATH, json!({"model": "bytes", "input": []}), "input"),
        (RERANK, json!({"model": "bytes", "query": "q", "documents": []}), "documents"),
    ] {
        let (status, refused) = server.post("/v1/jobs", &job(endpoint, body)).await;
        assert_eq!((status, refused["error"]["param"].as_str()), (400, Some(param)), "{refused}");
    }
}
