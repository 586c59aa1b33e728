//! `/v1/completions`: prompts in all their forms, echo, log-probabilities.

use super::*;

#[tokio::test]
async fn prompts_and_choices_are_numbered_in_rows() {
    let host = Host::new(|_, submission| {
        let task: Value = serde_json::from_slice(&submission.ask.as_task().unwrap().header).unwrap();
        Ok(vec![text(&task["input"].to_string()), done("length")])
    });
    let body = json!({"model": "a", "prompt": ["x", [1, 2]], "n": 2});
    let json = host.post("/v1/completions", &body).await.json();
    assert_eq!(json["object"], "text_completion");
    let texts: Vec<_> =
        json["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    let (prompt, tokens) = (r#"{"type":"prompt","text":"x"}"#, r#"{"type":"tokens","tokens":[1,2]}"#);
    assert_eq!(texts, [prompt, prompt, tokens, tokens]);
    assert_eq!(json["usage"]["prompt_tokens"], 6);
    assert_eq!(host.tasks()[0]["max_tokens"], 16);
}

#[tokio::test]
async fn stream_is_exact_to_the_byte() {
    let host = Host::new(hello);
    let body = json!({"prompt": "x", "stream": true, "stream_options": {"include_usage": true}});
    let reply = host.post("/completions", &body).await;
    let head = r#"data: {"id":"cmpl-ID","object":"text_completion","created":0,"model":"org/b","choices":["#;
    let chunk = |text: &str, finish: &str| {
        format!(r#"{head}{{"index":0,"text":"{text}","logprobs":null,"finish_reason":{finish}}}],"usage":null}}"#)
            + "\n\n"
    };
    let usage = concat!(
        r#"{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":1},"#,
        r#""completion_tokens_details":{"reasoning_tokens":0}}"#
    );
    let expected = [
        chunk("Hel", "null"),
        chunk("lo", "null"),
        chunk("", r#""stop""#),
        format!("{head}],\"usage\":{usage}}}\n\ndata: [DONE]\n\n"),
    ];
    assert_eq!(reply.body, expected.concat());
}

/// As a plugin sends it that calls each part of a character by what it would be alone.
#[tokio::test]
async fn no_offset_runs_past_the_text() {
    for stream in [false, true] {
        let host = Host::new(|_, _| {
            let token = |token: &str| json!({"token": token, "bytes": [240], "logprob": -1.5, "top": []});
            let logprobs = [token("\u{fffd}"), token("\u{fffd}"), token("\u{fffd}"), token("b")];
            Ok(vec![event(&json!({"type": "text", "text": "🎉b", "logprobs": logprobs})), done("length")])
        });
        let reply =
            host.post("/v1/completions", &json!({"model": "a", "prompt": "x", "logprobs": 0, "stream": stream})).await;
        assert!(reply.body.contains(r#""text_offset":[0,1,2,2]"#), "{}", reply.body);
    }
}

#[tokio::test]
async fn echoed_prompt_has_no_probability_for_its_first_token() {
    let host = Host::new(|_, _| {
        let other = json!({"token": "x", "bytes": [120], "logprob": -0.25});
        let token = |token: &str| json!({"token": token, "bytes": [], "logprob": -1.5, "top": [other]});
        let logprobs = [token("ä"), token("bc"), token("d")];
        Ok(vec![event(&json!({"type": "text", "text": "äbcd", "logprobs": logprobs})), done("length")])
    });
    let body = json!({"model": "a", "prompt": "äbc", "echo": true, "logprobs": 1, "max_tokens": 1});
    let choice = host.post("/v1/completions", &body).await.json()["choices"][0].clone();
    let expected = json!({
        "tokens": ["ä", "bc", "d"],
        "token_logprobs": [null, -1.5, -1.5],
        "top_logprobs": [null, {"x": -0.25}, {"x": -0.25}],
        "text_offset": [0, 1, 3],
    });
    assert_eq!(choice["logprobs"], expected);
    assert_eq!(host.tasks()[0]["echo"], true);
}

#[tokio::test]
async fn a_prompt_that_is_echoed_without_its_tokens_takes_no_probability_from_the_first_of_the_answer() {
    let script = |_: usize, _: &Submission| {
        let scored = json!({"type": "text", "text": "bc", "logprobs": [{"token": "bc", "bytes": [98, 99], "logprob": -0.5, "top": []}]});
        Ok(vec![text("a\u{e9}"), event(&scored), done("stop")])
    };
    for stream in [false, true] {
        let host = Host::new(script);
        let body = json!({"model": "org/b", "prompt": "a\u{e9}", "echo": true, "logprobs": 0, "stream": stream});
        let reply = host.post("/v1/completions", &body).await;
        let wanted = r#"{"tokens":["bc"],"token_logprobs":[-0.5],"top_logprobs":null,"text_offset":[2]}"#;
        assert!(reply.body.contains(wanted), "{}", reply.body);
    }
}
