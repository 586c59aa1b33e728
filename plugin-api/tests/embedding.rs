//! The embedding half of the SDK, through the same ABI objects the host uses.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

mod bare;

use aihost_plugin_api::testing::MockHost;
use aihost_plugin_api::{
    Context, Embedding, EmbeddingInput, EmbeddingOutput, EmbeddingRequest, Engine, ErrorKind, FinishReason, Result,
};
use bare::loaded;

/// Embeds a text as its length and its place; scores a document by its length. The first text says what it does wrong.
#[derive(Default)]
struct Measure;

impl Engine for Measure {
    type Task = Embedding;

    fn generate(&self, request: EmbeddingRequest, out: &EmbeddingOutput, _: &Context) -> Result<()> {
        let width = request.dimensions.unwrap_or(2) as usize;
        let vector = |length: usize| {
            let place = out.pushed() as f32;
            out.vector(&[vec![length as f32, place], vec![0.0; width - 2]].concat())
        };
        match &request.input {
            EmbeddingInput::Texts { texts, .. } => {
                out.prompt_tokens(texts.iter().map(|text| text.len() as u32).sum());
                for text in texts {
                    match text.as_str() {
                        "wide" => out.vector(&[0.0; 3])?,
                        "empty" => out.vector(&[])?,
                        "huge" => out.vector(&vec![0.0; 65_537])?,
                        "score" => out.score(0.5)?,
                        "nan" => out.vector(&[0.0, f32::NAN])?,
                        "infinite" => out.vector(&[f32::NEG_INFINITY, 0.0])?,
                        "twice" => (0..2).try_for_each(|_| vector(0))?,
                        "nothing" => {}
                        _ => vector(text.len())?,
                    }
                }
                Ok(())
            }
            EmbeddingInput::Tokens { tokens, .. } => tokens.iter().try_for_each(|tokens| vector(tokens.len())),
            EmbeddingInput::Rank { query, documents, .. } => match query.as_str() {
                "vector" => vector(0),
                "nan" => out.score(f32::NAN),
                "twice" => out.scores(&vec![0.0; 2 * documents.len()]),
                "one by one" => documents.iter().try_for_each(|document| out.score(document.len() as f32)),
                _ => {
                    let scores: Vec<f32> = documents.iter().map(|document| document.len() as f32).collect();
                    scores.chunks(2).try_for_each(|scores| out.scores(scores)).and_then(|()| out.scores(&[]))
                }
            },
            _ => unreachable!("there are no others"),
        }
    }

    fn cost(&self, request: &EmbeddingRequest) -> Result<u64> {
        Ok(request.input.count() as u64 * 10)
    }
}

fn host() -> MockHost {
    loaded::<Measure>()
}

#[test]
fn vectors_come_in_order_and_tokens_are_told() {
    let host = host();
    let answer = host.embed(&EmbeddingRequest::texts(["abc", "a", "ab"])).unwrap();
    assert_eq!(answer.vectors, [[3.0, 0.0], [1.0, 1.0], [2.0, 2.0]]);
    assert_eq!((answer.finish.reason, answer.finish.prompt_tokens), (FinishReason::Stop, 6));
    assert!(answer.scores.is_empty());
    let tokens = EmbeddingRequest::new(EmbeddingInput::tokens(vec![vec![7, 8], vec![9]])).dimensions(3);
    assert_eq!(host.embed(&tokens).unwrap().vectors, [[2.0, 0.0, 0.0], [1.0, 1.0, 0.0]]);
    assert_eq!(host.embedding_cost(&tokens).unwrap(), 20);
}

#[test]
fn scores_come_in_order_one_by_one_or_together() {
    for query in ["together", "one by one"] {
        let answer = host().embed(&EmbeddingRequest::rank(query, ["abc", "", "ab"])).unwrap();
        assert_eq!((answer.scores.as_slice(), answer.vectors.len()), (&[3.0, 0.0, 2.0][..], 0), "{query}");
    }
}

#[test]
fn a_client_that_leaves_is_a_normal_end_and_tells_the_tokens() {
    let host = host();
    host.stop_after(2);
    let answer = host.embed(&EmbeddingRequest::texts(["abc", "a", "ab"])).unwrap();
    assert_eq!((answer.finish.reason, answer.finish.prompt_tokens), (FinishReason::Cancelled, 6));
    assert_eq!(answer.vectors.len(), 2);
    host.stop_after(usize::MAX);
    host.pause_at(1, 3);
    assert_eq!(host.embed(&EmbeddingRequest::texts(["abc", "a"])).unwrap().vectors.len(), 2);
    host.pause_at(1, 3);
    host.cancel();
    let answer = host.embed(&EmbeddingRequest::texts(["abc", "a"])).unwrap();
    assert_eq!((answer.finish.reason, answer.vectors.len()), (FinishReason::Cancelled, 1));
}

#[test]
fn what_is_no_answer_to_the_request_is_refused() {
    for (request, word) in [
        (EmbeddingRequest::texts(["a", "wide"]), "vector 1 has 3 values"),
        (EmbeddingRequest::texts(["a"]).dimensions(2), ""),
        (EmbeddingRequest::texts(["wide"]).dimensions(2), "vector 0 has 3 values"),
        (EmbeddingRequest::texts(["empty"]), "vector 0 has 0 values"),
        (EmbeddingRequest::texts(["huge"]), "vector 0 has 65537 values"),
        (EmbeddingRequest::texts(["score"]), "asks for vectors"),
        (EmbeddingRequest::texts(["nan"]), "no number: NaN"),
        (EmbeddingRequest::texts(["infinite"]), "no number: -inf"),
        (EmbeddingRequest::texts(["twice"]), "more than the 1 vectors"),
        (EmbeddingRequest::texts(["a", "nothing"]), "after 1 of 2 vectors"),
        (EmbeddingRequest::rank("vector", ["a"]), "asks for scores"),
        (EmbeddingRequest::rank("nan", ["a"]), "no number: NaN"),
        (EmbeddingRequest::rank("twice", ["a", "b"]), "more than the 2 scores"),
    ] {
        match host().embed(&request) {
            Ok(_) => assert_eq!(word, "", "{request:?}"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Internal, "{request:?}: {error}");
                assert!(!word.is_empty() && error.message().contains(word), "{request:?}: {error}");
            }
        }
    }
}
