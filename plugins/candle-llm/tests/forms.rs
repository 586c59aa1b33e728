//! The real model, held to forms: JSON, schemas, calls of tools.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aihost_plugin_api::testing::{MockHost, TextAnswer};
use aihost_plugin_api::{FinishReason, Message, Sampling, TextEvent, TextFormat, TextInput, TextRequest, ToolChoice};
use candle_llm::LlmPlugin;
use serde_json::{Value, json};

/// Where the repository's models.yaml puts the file of its entry `smollm2`.
const FETCHED_MODEL: &str = "target/aihost/models/sha256-b179c9523d0e6a0f/SmolLM2-135M-Instruct.Q4_1.gguf";

fn loaded() -> MockHost {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(FETCHED_MODEL);
    let file = std::env::var_os("AIHOST_SMOLLM2").map_or(file, PathBuf::from);
    let mut host = MockHost::new::<LlmPlugin>(json!({"threads": 2}), &[("model", file)]).expect("options");
    host.load().expect("loads");
    host
}

fn wild(seed: u64) -> Sampling {
    Sampling::default().temperature(1.5).seed(seed)
}

fn weather() -> Vec<Value> {
    let function = |name: &str, parameters: Value| json!({"type": "function", "function": {"name": name, "description": "Looks it up", "parameters": parameters}});
    let city = json!({"type": "string", "maxLength": 20});
    let unit = json!({"enum": ["celsius", "fahrenheit"]});
    vec![
        function(
            "get_weather",
            json!({"type": "object", "properties": {"city": city, "unit": unit}, "required": ["city", "unit"], "additionalProperties": false}),
        ),
        function(
            "get_time",
            json!({"type": "object", "properties": {"zone": {"type": "integer", "minimum": -12, "maximum": 14}}, "required": ["zone"], "additionalProperties": false}),
        ),
    ]
}

/// Names and arguments of the calls.
fn calls(answer: &TextAnswer) -> Vec<(String, Value)> {
    let mut calls: Vec<(String, String)> = Vec::new();
    for event in &answer.events {
        match event {
            TextEvent::ToolCall { name, index, id, .. } => {
                assert!(*index as usize == calls.len() && id.starts_with("call_"), "{event:?}");
                calls.push((name.clone(), String::new()));
            }
            TextEvent::ToolArguments { index, fragment, .. } => calls[*index as usize].1 += fragment,
            _ => {}
        }
    }
    calls.into_iter().map(|(name, text)| (name, serde_json::from_str(&text).expect("arguments are JSON"))).collect()
}

#[test]
fn answers_are_as_their_schema_says() {
    let host = loaded();
    let schema = json!({
        "type": "object", "required": ["name", "age", "colours"], "additionalProperties": false,
        "properties": {
            "name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "colours": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
        },
    });
    for seed in 0..8 {
        for (format, is_chat) in
            [(TextFormat::json_schema(schema.clone()), true), (TextFormat::json_schema(schema.clone()), false)]
        {
            let asked = if is_chat { TextRequest::ask("Describe a person.") } else { TextRequest::prompt("A person:") };
            // That it goes on behind its end is not asked of a form.
            let request = asked.format(format).sampling(wild(seed)).max_tokens(120).ignore_eos(seed % 2 == 0);
            let answer = host.generate(&request.logprobs(1)).expect("answers");
            assert_eq!(answer.finish.reason, FinishReason::Stop, "{}", answer.text);
            let value: Value = serde_json::from_str(&answer.text).unwrap_or_else(|e| panic!("{e}: {}", answer.text));
            assert!((0..=120).contains(&value["age"].as_i64().expect("an integer")), "{value}");
            assert!(value["colours"].as_array().is_some_and(|list| list.len() <= 3), "{value}");
            let entries = answer.events.iter().map(|event| match event {
                TextEvent::Text { logprobs, .. } => logprobs.len(),
                _ => 0,
            });
            assert_eq!(entries.sum::<usize>(), answer.finish.usage.completion_tokens as usize);
        }
    }
    let words = TextRequest::ask("Yes or no?").format(TextFormat::regex("(yes|no)"));
    let answer = host.generate(&words.sampling(wild(1))).expect("answers");
    assert!(["yes", "no"].contains(&answer.text.as_str()), "{}", answer.text);
    let cut = TextRequest::ask("Count.").format(TextFormat::JsonObject).sampling(wild(2)).max_tokens(3);
    assert_eq!(host.generate(&cut).expect("answers").finish.reason, FinishReason::Length);
}

#[test]
fn forced_calls_are_made_and_fit() {
    let host = loaded();
    for seed in 0..8 {
        let choice = if seed % 2 == 0 { ToolChoice::Required } else { ToolChoice::named("get_time") };
        let input =
            TextInput::with_tools(vec![Message::user("What is the weather in Paris?")], weather(), choice.clone());
        let request = TextRequest::new(input).sampling(wild(seed)).max_tokens(200);
        let answer = host.generate(&request.logprobs(0)).expect("answers");
        assert_eq!(answer.finish.reason, FinishReason::ToolCalls, "{answer:?}");
        let calls = calls(&answer);
        assert!(!calls.is_empty() && answer.text.trim().is_empty(), "{answer:?}");
        for (name, arguments) in &calls {
            match name.as_str() {
                "get_time" => assert!((-12..=14).contains(&arguments["zone"].as_i64().expect("a zone")), "{arguments}"),
                "get_weather" => assert!(arguments["city"].as_str().is_some_and(|city| city.chars().count() <= 20)),
                other => panic!("{other}"),
            }
        }
        assert!(choice == ToolChoice::Required || (calls.len() == 1 && calls[0].0 == "get_time"), "{calls:?}");
        let entries: usize = answer
            .events
            .iter()
            .map(|event| if let TextEvent::Text { logprobs, .. } = event { logprobs.len() } else { 0 })
            .sum();
        assert_eq!(entries, answer.finish.usage.completion_tokens as usize, "every token has its entry");
    }
}

#[test]
fn a_tool_that_is_strict_is_called_as_it_says_or_not_at_all() {
    let host = loaded();
    let mut tools = weather();
    tools.iter_mut().for_each(|tool| tool["function"]["strict"] = json!(true));
    let (mut called, mut plain) = (0, 0);
    for seed in 0..12 {
        let input = TextInput::with_tools(
            vec![Message::user("What is the weather in Paris?")],
            tools.clone(),
            ToolChoice::Auto,
        );
        let request = TextRequest::new(input).sampling(wild(seed).temperature(0.9)).max_tokens(80);
        let answer = host.generate(&request).expect("answers");
        let calls = calls_or_cut(&answer);
        called += usize::from(!calls.is_empty());
        plain += usize::from(calls.is_empty());
        for (name, arguments) in calls {
            let is_right = match name.as_str() {
                "get_time" => arguments["zone"].is_i64(),
                "get_weather" => arguments["city"].is_string() && arguments["unit"].is_string(),
                _ => false,
            };
            assert!(is_right, "{name} {arguments}");
        }
    }
    println!("{called} called, {plain} did not");
}

/// As [`calls`], without one that was cut.
fn calls_or_cut(answer: &TextAnswer) -> Vec<(String, Value)> {
    if answer.finish.reason == FinishReason::Length { Vec::new() } else { calls(answer) }
}

#[test]
fn what_cannot_be_kept_is_refused_before_anything_is_computed() {
    let host = loaded();
    let request = TextRequest::ask("x").format(TextFormat::json_schema(json!({"not": {"type": "string"}})));
    let error = host.generate(&request).expect_err("cannot be kept");
    assert!(error.message().contains("`not`") && error.details().field.as_deref() == Some("format"), "{error}");
}

/// What the mask costs of a token, and what the first form costs once.
#[test]
fn cost() {
    let host = loaded();
    let tokens = 96;
    let ask =
        |text: &str| TextRequest::ask(text).max_tokens(tokens).sampling(Sampling::default().temperature(0.8).seed(3));
    let took = |request: &TextRequest| {
        let begun = Instant::now();
        let answer = host.generate(request).expect("answers");
        (begun.elapsed(), answer.finish.usage.completion_tokens)
    };
    let plain = ask("Tell me a story.").ignore_eos(true);
    let schema = json!({"type": "object", "properties": {"story": {"type": "string"}, "n": {"type": "array", "items": {"type": "integer"}}}});
    let formed = ask("Tell me a story.").format(TextFormat::json_schema(schema));
    let first = took(&formed.clone().max_tokens(1)).0;
    println!("the first form: {first:?}, the second {:?}", took(&formed.clone().max_tokens(1)).0);
    took(&plain);
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..4 {
        for (which, request) in [&plain, &formed].into_iter().enumerate() {
            let seed = Sampling::default().temperature(0.8).seed(round);
            let (time, count) = took(&request.clone().sampling(seed));
            rates[which].push(time.as_secs_f64() / f64::from(count.max(1)));
        }
    }
    let median = |rates: &mut Vec<f64>| {
        rates.sort_unstable_by(f64::total_cmp);
        Duration::from_secs_f64(rates[rates.len() / 2])
    };
    let [free, kept] = &mut rates;
    println!("a token: {:?} free, {:?} kept to a schema", median(free), median(kept));
}
