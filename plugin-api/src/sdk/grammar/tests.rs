//! Forms that are kept by a model that draws at random.

use rand_free::Draw;
use serde_json::{Value, json};

use super::*;
use crate::sdk::ErrorKind;
use crate::sdk::logits::LogitsProcessor;
use crate::sdk::utf8::Utf8Assembler;
use crate::task::{Message, TextFormat, TextInput, ToolChoice};

/// Numbers that look random, the same for the same seed.
mod rand_free {
    pub(super) struct Draw(pub(super) u64);

    impl Draw {
        pub(super) fn below(&mut self, most: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % most
        }
    }
}

const END: u32 = 256;

/// Every byte, the end, and a few tokens that steer.
fn vocabulary(special: &[&str]) -> GrammarVocabulary {
    let bytes = (0..=255u8).map(|byte| GrammarToken::Bytes(vec![byte]));
    let steering = ["<|end_of_turn|>"].iter().chain(special).map(|name| GrammarToken::Special((*name).to_owned()));
    let words = ["\": ", "{\"", "<tool_", "call>", "\", \""];
    let words = words.iter().map(|word| GrammarToken::Bytes(word.as_bytes().to_vec()));
    GrammarVocabulary::new(bytes.chain(steering).chain(words), &[END]).expect("a vocabulary")
}

/// What a model that likes every token as well as another writes, and whether it ended.
fn written(vocabulary: &GrammarVocabulary, grammar: Grammar, request: &TextRequest, seed: u64) -> (String, bool) {
    let size = vocabulary.factory.tok_env().tok_trie().vocab_size();
    let mut processor = LogitsProcessor::with_grammar(request, &[], size, Some(grammar)).unwrap().expect("one");
    let (mut draw, mut tokens) = (Draw(seed), Vec::new());
    while tokens.len() < 4000 && !processor.is_over() {
        // Long texts bore: what may end a string or the whole is liked a little more.
        let mut logits: Vec<f32> = (0..size).map(|_| draw.below(1000) as f32).collect();
        [b'"', b'}', b']', b'<'].iter().for_each(|byte| logits[usize::from(*byte)] += 400.0);
        logits[END as usize] += 400.0;
        processor.apply(&mut logits).expect("a mask");
        let best = (0..size).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).expect("a token");
        assert!(logits[best] > f32::NEG_INFINITY, "no token is left behind {:?}", text(vocabulary, &tokens));
        let token = u32::try_from(best).unwrap();
        if token == END {
            return (text(vocabulary, &tokens), true);
        }
        processor.accept(token).expect("allowed");
        tokens.push(token);
    }
    (text(vocabulary, &tokens), processor.is_over())
}

fn text(vocabulary: &GrammarVocabulary, tokens: &[u32]) -> String {
    let bytes = vocabulary.factory.tok_env().tok_trie().decode(tokens);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn formed(format: TextFormat) -> TextRequest {
    TextRequest::prompt("x").format(format)
}

fn made(request: &TextRequest, syntax: AnswerSyntax, start: AnswerStart) -> Result<Option<Grammar>> {
    vocabulary(&[]).grammar(request, syntax, start)
}

fn tool(name: &str, parameters: Value) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": parameters}})
}

#[test]
fn what_asks_for_nothing_has_no_grammar() {
    let chat = TextRequest::ask("hi");
    assert!(made(&chat, AnswerSyntax::TAGGED, AnswerStart::Free).unwrap().is_none());
    let tools = vec![tool("f", json!({}))];
    let input = TextInput::with_tools(vec![Message::user("hi")], tools, ToolChoice::Auto);
    assert!(made(&TextRequest::new(input), AnswerSyntax::TAGGED, AnswerStart::Free).unwrap().is_none());
}

#[test]
fn json_is_an_object_and_a_schema_is_kept() {
    let vocabulary = vocabulary(&[]);
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["kind", "n"],
        "properties": {
            "kind": {"enum": ["a", "b"]}, "n": {"type": "integer", "minimum": 3, "maximum": 12},
            "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        },
    });
    let mut ended = 0;
    for seed in 0..40 {
        for format in [TextFormat::JsonObject, TextFormat::json_schema(schema.clone())] {
            let request = formed(format.clone());
            let grammar = vocabulary.grammar(&request, AnswerSyntax::TAGGED, AnswerStart::PastReasoning);
            let (text, has_ended) = written(&vocabulary, grammar.unwrap().unwrap(), &request, seed);
            if !has_ended {
                continue;
            }
            ended += 1;
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            assert!(value.is_object(), "{text}");
            if format != TextFormat::JsonObject {
                assert!(["a", "b"].contains(&value["kind"].as_str().unwrap()), "{text}");
                assert!((3..=12).contains(&value["n"].as_i64().unwrap()), "{text}");
                let list = value.get("list").map(|list| list.as_array().unwrap());
                assert!(list.is_none_or(|list| (1..=3).contains(&list.len()) && list.iter().all(Value::is_boolean)));
                assert!(value.as_object().unwrap().keys().all(|key| ["kind", "n", "list"].contains(&key.as_str())));
            }
        }
    }
    assert!(ended >= 60, "{ended} of 80 ended");
}

#[test]
fn expressions_and_grammars_match_as_a_whole() {
    let vocabulary = vocabulary(&[]);
    for seed in 0..10 {
        for (format, wanted) in [
            (TextFormat::regex("(yes|no)/[0-9]{2}"), &["yes/", "no/"][..]),
            (TextFormat::lark("start: \"a\" b\nb: \"1\" | \"22\""), &["a1", "a22"]),
        ] {
            let request = formed(format);
            let grammar = vocabulary.grammar(&request, AnswerSyntax::TAGGED, AnswerStart::PastReasoning);
            let (text, has_ended) = written(&vocabulary, grammar.unwrap().unwrap(), &request, seed);
            assert!(has_ended && wanted.iter().any(|begin| text.starts_with(begin)) && text.len() <= 6, "{text}");
        }
    }
}

#[test]
fn a_forced_call_is_read_as_one_in_every_syntax() {
    use super::super::answer::{AnswerReader, DEEPSEEK_CALL, Piece, functions};
    let templates = [
        "<tool_call>".to_owned(),
        "<tool_call><function=<parameter=".to_owned(),
        "<|python_tag|>".to_owned(),
        "[TOOL_CALLS]".to_owned(),
        "[TOOL_CALLS][ARGS]".to_owned(),
        "<|tool_call|><|/tool_call|>".to_owned(),
        "<|tool_call|>".to_owned(),
        format!("{}```json", DEEPSEEK_CALL[0]),
        DEEPSEEK_CALL[0].to_owned(),
        "<|channel|><|message|>".to_owned(),
        "nothing".to_owned(),
    ];
    let parameters = json!({
        "type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["n"],
        "additionalProperties": false,
    });
    let tools = vec![tool("get_it", parameters), tool("put_it", json!({}))];
    for template in &templates {
        let syntax = AnswerSyntax::of_template(template);
        let marks: Vec<&str> = syntax.marks().collect();
        // With marks as tokens of their own, and as text.
        for special in [&marks[..], &[]] {
            let vocabulary = vocabulary(special);
            for seed in 0..6 {
                let choice = if seed % 2 == 0 { ToolChoice::Required } else { ToolChoice::named("get_it") };
                let input = TextInput::with_tools(vec![Message::user("x")], tools.clone(), choice.clone());
                let request = TextRequest::new(input);
                let grammar = vocabulary.grammar(&request, syntax, AnswerStart::PastReasoning).unwrap().unwrap();
                let size = vocabulary.factory.tok_env().tok_trie().vocab_size();
                let mut processor = LogitsProcessor::with_grammar(&request, &[], size, Some(grammar)).unwrap().unwrap();
                let mut reader =
                    AnswerReader::new(syntax, AnswerStart::PastReasoning, functions(&request.input)).unwrap();
                let (mut draw, mut pieces, mut written) = (Draw(seed), Vec::new(), String::new());
                let mut characters = Utf8Assembler::default();
                for _ in 0..1500 {
                    let mut logits: Vec<f32> = (0..size).map(|_| draw.below(1000) as f32).collect();
                    [b'"', b'}', b']'].iter().for_each(|byte| logits[usize::from(*byte)] += 600.0);
                    logits[END as usize] += 900.0;
                    processor.apply(&mut logits).unwrap();
                    let best = (0..size).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
                    let trie = vocabulary.factory.tok_env().tok_trie();
                    let bytes = trie.token(best as u32);
                    let bytes = bytes.strip_prefix(&[TokTrie::SPECIAL_TOKEN_MARKER]).unwrap_or(bytes);
                    if best as u32 == END {
                        break;
                    }
                    processor.accept(best as u32).unwrap();
                    let text = characters.push(bytes);
                    written += &text;
                    pieces.extend(reader.push(&text));
                    if processor.is_over() {
                        break;
                    }
                }
                pieces.extend(reader.finish());
                let calls: Vec<&String> = pieces
                    .iter()
                    .filter_map(|piece| if let Piece::Call(name) = piece { Some(name) } else { None })
                    .collect();
                assert!(!calls.is_empty(), "{template}: {written}");
                if choice != ToolChoice::Required {
                    assert!(calls.len() == 1 && calls[0] == "get_it", "{template}: {written}");
                    let arguments: String = pieces
                        .iter()
                        .filter_map(|piece| if let Piece::Arguments(text) = piece { Some(text.as_str()) } else { None })
                        .collect();
                    let value: Value = serde_json::from_str(&arguments).unwrap_or_else(|e| panic!("{e}: {written}"));
                    assert!((1..=9).contains(&value["n"].as_i64().unwrap()), "{template}: {written}");
                }
                assert!(
                    !pieces.iter().any(|piece| matches!(piece, Piece::Text(text) if !text.trim().is_empty())),
                    "{template}: {pieces:?}"
                );
            }
        }
    }
}

#[test]
fn a_form_begins_behind_the_reasoning() {
    let syntax = AnswerSyntax::of_template("<think>");
    let request = TextRequest::ask("x").format(TextFormat::regex("[a-c]{3}"));
    for special in [&["<think>", "</think>"][..], &[]] {
        let vocabulary = vocabulary(special);
        for seed in 0..20 {
            for start in [AnswerStart::Free, AnswerStart::InReasoning, AnswerStart::PastReasoning] {
                let grammar = vocabulary.grammar(&request, syntax, start).unwrap().unwrap();
                let mut processor = LogitsProcessor::with_grammar(&request, &[], 400, Some(grammar)).unwrap().unwrap();
                let size = vocabulary.factory.tok_env().tok_trie().vocab_size();
                let (mut draw, mut out) = (Draw(seed), Vec::new());
                let trie = vocabulary.factory.tok_env().tok_trie();
                // A few random tokens, then what ends the thought.
                let close = if special.is_empty() {
                    "</think>".bytes().map(u32::from).collect()
                } else {
                    vec![vocabulary.special["</think>"]]
                };
                let mut script = close.into_iter();
                for step in 0..60 {
                    let mut logits: Vec<f32> = (0..size).map(|_| draw.below(1000) as f32).collect();
                    // A thought that may be ended behind any token.
                    logits[128..256].fill(f32::NEG_INFINITY);
                    logits[END as usize] += 2000.0;
                    processor.apply(&mut logits).unwrap();
                    let is_over = String::from_utf8_lossy(&out).contains("</think>");
                    let is_thinking = start == AnswerStart::InReasoning && step >= 8 && !is_over;
                    let scripted = if is_thinking { script.next() } else { None };
                    let best = scripted.unwrap_or_else(|| {
                        let likes = |token: usize| logits[token];
                        (0..size).max_by(|a, b| likes(*a).total_cmp(&likes(*b))).unwrap() as u32
                    });
                    assert!(
                        logits[best as usize] > f32::NEG_INFINITY,
                        "{start:?}: {:?}",
                        String::from_utf8_lossy(&out)
                    );
                    if best == END {
                        break;
                    }
                    out.extend_from_slice(trie.token(best));
                    processor.accept(best).unwrap();
                    if processor.is_over() {
                        break;
                    }
                }
                let out = String::from_utf8_lossy(&out).replace('\u{fffd}', "");
                let answer = out.rsplit("</think>").next().unwrap().trim_start_matches('\n');
                let is_kept = answer.len() == 3 && answer.bytes().all(|byte| (b'a'..=b'c').contains(&byte));
                // One that begins to think by itself need not be done.
                assert!(is_kept || (start == AnswerStart::Free && out.contains("<think>")), "{start:?}: {out:?}");
                assert!(start != AnswerStart::PastReasoning || !out.contains("think"), "{out:?}");
            }
        }
    }
}

#[test]
fn what_cannot_be_kept_is_named() {
    for (schema, wanted) in [
        (json!({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}), "`not`"),
        (json!({"if": {"type": "string"}, "then": {"minLength": 3}}), "`if`"),
        (json!({"type": "array", "uniqueItems": true}), "`uniqueItems`"),
        (json!({"type": "banana"}), "banana"),
        (json!({"type": "string", "format": "nonsense"}), "nonsense"),
        (json!({"$ref": "https://example.org/schema.json"}), "example.org"),
        (json!({"type": "string", "pattern": "(?=a)"}), "look"),
        (json!(false), "false"),
        (json!(3), "object"),
        (json!({"type": "object", "x-guidance": {"lenient": true}, "properties": {"a": {"not": {}}}}), "`not`"),
    ] {
        let error = made(&formed(TextFormat::json_schema(schema.clone())), AnswerSyntax::TAGGED, AnswerStart::Free);
        let error = error.expect_err(&schema.to_string());
        assert_eq!(error.details().field.as_deref(), Some("format"), "{schema}");
        assert!(error.message().contains(wanted), "{schema}: {error}");
    }
    let one_of_many = |k| json!({"type": "object", "properties": {"k": {"const": k}}, "required": ["k"]});
    let many: Vec<Value> = (0..3000).map(one_of_many).collect();
    for (format, wanted) in [
        (
            TextFormat::json_schema(
                json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
            ),
            "allows no answer",
        ),
        (TextFormat::lark("start: a\na: a"), "allows no answer"),
    ] {
        let error = made(&formed(format), AnswerSyntax::TAGGED, AnswerStart::Free).expect_err("cannot be followed");
        assert_eq!((error.kind(), error.details().field.as_deref()), (ErrorKind::InvalidRequest, Some("format")));
        assert!(error.message().contains(wanted), "{error}");
    }
    // What is too much behind a few tokens.
    let request = formed(TextFormat::json_schema(json!({ "anyOf": many })));
    let vocabulary = vocabulary(&[]);
    let grammar = vocabulary.grammar(&request, AnswerSyntax::TAGGED, AnswerStart::Free).unwrap();
    let mut processor = LogitsProcessor::with_grammar(&request, &[], 263, grammar).unwrap().expect("one");
    let mut go_on = || {
        for byte in *b"{\"k\": 7}" {
            processor.apply(&mut [0.0; 263])?;
            processor.accept(u32::from(byte))?;
        }
        Ok::<_, Error>(())
    };
    let error = go_on().expect_err("too much");
    assert_eq!((error.kind(), error.details().field.as_deref()), (ErrorKind::InvalidRequest, Some("format")));
    assert!(error.message().contains("3000 items; max is 2000"), "{error}");
    for format in [TextFormat::regex("("), TextFormat::lark("start: nothing"), TextFormat::lark("")] {
        let error = made(&formed(format), AnswerSyntax::TAGGED, AnswerStart::Free).expect_err("no form");
        assert_eq!(error.details().field.as_deref(), Some("format"), "{error}");
    }
    let input = TextInput::with_tools(
        vec![Message::user("x")],
        vec![tool("f", json!({"type": "object", "properties": {"a": {"not": {}}}}))],
        ToolChoice::Required,
    );
    let error = made(&TextRequest::new(input), AnswerSyntax::TAGGED, AnswerStart::Free).expect_err("not kept");
    assert!(error.details().field.as_deref() == Some("tools") && error.message().contains("`not`"), "{error}");
}
