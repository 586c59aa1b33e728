//! What crosses as JSON, byte by byte: types that grow must not change what they write already.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

use aihost_plugin_api::{
    AudioFinish, AudioHeader, AudioRequest, Description, EmbeddingFinish, EmbeddingHeader, EmbeddingInput,
    EmbeddingRequest, ImageFinish, ImageHeader, ImageRequest, LoadRequest, LogprobEntry, MemoryPlan, MemoryUsage,
    Message, Sampling, TextFinish, TextInput, TextRequest, TokenLogprob, Usage,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Panics unless this is the whole of what a type writes, members in their order.
fn keeps<T: Serialize + DeserializeOwned>(json: &str) {
    let value: T = serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"));
    assert_eq!(serde_json::to_string(&value).unwrap(), json);
}

/// Panics unless a type reads `short` as what it writes as `whole`.
fn fills_in<T: Serialize + DeserializeOwned>(short: &str, whole: &str) {
    keeps::<T>(whole);
    let value: T = serde_json::from_str(short).unwrap_or_else(|error| panic!("{short}: {error}"));
    assert_eq!(serde_json::to_string(&value).unwrap(), whole);
}

const SAMPLING: &str = r#"{"temperature":1.0,"top_p":1.0,"top_k":0,"min_p":0.0,"seed":null,"repetition_penalty":1.0,"frequency_penalty":0.0,"presence_penalty":0.0,"logit_bias":{}}"#;

#[test]
fn requests_cross_as_they_did() {
    fills_in::<Sampling>("{}", SAMPLING);
    keeps::<Sampling>(
        r#"{"temperature":0.5,"top_p":0.25,"top_k":1,"min_p":0.5,"seed":7,"repetition_penalty":2.0,"frequency_penalty":-1.0,"presence_penalty":1.5,"logit_bias":{"5":-100.0}}"#,
    );
    fills_in::<TextRequest>(
        r#"{"input":{"type":"prompt","text":"x"}}"#,
        &format!(
            r#"{{"input":{{"type":"prompt","text":"x"}},"sampling":{SAMPLING},"stop":[],"max_tokens":null,"logprobs":null,"echo":false,"ignore_eos":false}}"#
        ),
    );
    keeps::<TextInput>(r#"{"type":"tokens","tokens":[1,2]}"#);
    fills_in::<TextInput>(
        r#"{"type":"chat","messages":[{"role":"user","content":"x"}]}"#,
        r#"{"type":"chat","messages":[{"role":"user","content":"x"}],"tools":[]}"#,
    );
    keeps::<Message>(r#"{"role":"tool","content":"","name":"n","tool_calls":[],"tool_call_id":"c"}"#);
    fills_in::<AudioRequest>(
        r#"{"prompt":"x"}"#,
        r#"{"prompt":"x","duration":10.0,"guidance_scale":3.0,"temperature":1.0,"top_k":250,"top_p":1.0,"seed":null}"#,
    );
    fills_in::<ImageRequest>(
        r#"{"prompt":"x"}"#,
        r#"{"prompt":"x","width":1024,"height":1024,"steps":null,"guidance":null,"seed":null,"partial_images":0}"#,
    );
    fills_in::<EmbeddingRequest>(
        r#"{"input":{"type":"texts","texts":["x"]}}"#,
        r#"{"input":{"type":"texts","texts":["x"]},"dimensions":null}"#,
    );
    keeps::<EmbeddingInput>(r#"{"type":"tokens","tokens":[[1,2],[3]]}"#);
    keeps::<EmbeddingInput>(r#"{"type":"rank","query":"q","documents":["a","b"]}"#);
}

#[test]
fn answers_cross_as_they_did() {
    keeps::<AudioHeader>(r#"{"sample_rate":32000,"channels":2,"format":"f32le","offset":9}"#);
    keeps::<AudioFinish>(
        r#"{"reason":"stop","sample_rate":32000,"channels":2,"samples":16000,"steps":25,"seconds":0.5}"#,
    );
    keeps::<ImageHeader>(r#"{"width":4,"height":2,"format":"rgb8","index":1,"partial":true,"step":3,"row":1}"#);
    keeps::<ImageFinish>(r#"{"reason":"cancelled","seed":7,"steps":4,"width":4,"height":2}"#);
    keeps::<EmbeddingHeader>(r#"{"form":"vector","index":3}"#);
    keeps::<EmbeddingHeader>(r#"{"form":"score","index":0}"#);
    fills_in::<EmbeddingFinish>(r#"{"reason":"stop"}"#, r#"{"reason":"stop","prompt_tokens":0}"#);
    keeps::<Usage>(r#"{"prompt_tokens":3,"completion_tokens":2,"cached_tokens":1}"#);
    keeps::<TextFinish>(r#"{"reason":"length","usage":{"prompt_tokens":3,"completion_tokens":2,"cached_tokens":0}}"#);
    keeps::<LogprobEntry>(r#"{"token":"x","bytes":[120],"logprob":-0.5}"#);
    keeps::<TokenLogprob>(
        r#"{"token":"x","bytes":[120],"logprob":-0.5,"top":[{"token":"y","bytes":[121],"logprob":-1.5}]}"#,
    );
}

#[test]
fn what_loads_a_model_crosses_as_it_did() {
    fills_in::<LoadRequest>(
        r#"{"files":{"model":"/m"},"device":"cpu"}"#,
        r#"{"files":{"model":"/m"},"device":"cpu","threads":1,"granted":0}"#,
    );
    fills_in::<MemoryPlan>(
        r#"{"required":3}"#,
        r#"{"required":3,"preferred":0,"workspace_max":0,"mapped":0,"pinned":0}"#,
    );
    keeps::<MemoryPlan>(
        r#"{"required":3,"preferred":3,"workspace_max":0,"mapped":0,"pinned":2,"others":{"cuda:1":5}}"#,
    );
    keeps::<MemoryUsage>(r#"{"device":3,"host":2}"#);
    keeps::<Description>(r#"{"options_schema":{"type":"object"}}"#);
}
