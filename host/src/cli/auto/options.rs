//! The options of an entry whose plugin the host chooses, in the words of what it chose. What both have is translated; what one of
//! them alone has is refused where the other was chosen.

use serde_json::{Map, Value, json};

use super::{Chosen, Engine};

/// What engines alone have, as the plugin that starts them takes it.
const OF_ENGINES: [&str; 13] = [
    "args",
    "binary",
    "env",
    "free",
    "health",
    "keep_slots",
    "port",
    "prefix",
    "python",
    "requirements",
    "requirements_file",
    "stop_timeout",
    "working_dir",
];
/// What makes another kind of entry of it.
const OF_OTHERS: [&str; 3] = ["engine", "command", "service_script"];
/// What our own plugin alone has.
const OF_CANDLE_LLM: [&str; 4] = ["cache_tokens", "past_trained_length", "sampling_order", "share_cache"];
/// How llama.cpp's server may be told its context by `args` themselves.
const CONTEXT_FLAGS: [&str; 2] = ["-c", "--ctx-size"];

/// Options for what was chosen.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Translated {
    pub(super) options: Value,
    /// Tokens of context of all that is served at once, as far as these options say.
    pub(super) tokens: Option<u64>,
}

/// Whether options say where an engine is, or how to get it.
pub(super) fn say_where(options: &Value) -> bool {
    ["binary", "requirements", "requirements_file"].iter().any(|key| options.get(key).is_some())
}

/// Puts options into the words of what was chosen. `usual`: tokens of context of a server to which nobody says how many.
///
/// # Errors
/// What is wrong with them, as the end of a sentence about `options`.
pub(super) fn translate(chosen: &Chosen, typed: &Value, usual: Option<u64>) -> Result<Translated, String> {
    let none = Map::new();
    let typed = typed.as_object().unwrap_or(&none);
    if let Some(key) = OF_OTHERS.iter().find(|key| typed.contains_key(**key)) {
        return Err(format!("`{key}` is what `plugin: auto` chooses; leave it out, or say `plugin: vllm`"));
    }
    let refuse = |key: &str, whose: &str| {
        Err(format!("`{key}` is an option of {whose}, and {}; leave it out, or name the plugin", chosen.told()))
    };
    match chosen.engine {
        None => match OF_ENGINES.iter().chain(&["sleep"]).find(|key| typed.contains_key(**key)) {
            Some(key) => refuse(key, "engines"),
            None => Ok(Translated { options: Value::Object(typed.clone()), tokens: None }),
        },
        Some(engine) => {
            let more = if engine == Engine::Vllm { &["threads"][..] } else { &[] };
            match OF_CANDLE_LLM.iter().chain(more).find(|key| typed.contains_key(**key)) {
                Some(key) => refuse(key, "candle-llm"),
                None => for_engine(engine, typed, usual),
            }
        }
    }
}

fn for_engine(engine: Engine, typed: &Map<String, Value>, usual: Option<u64>) -> Result<Translated, String> {
    let mut typed = typed.clone();
    let args = match typed.remove("args") {
        None => Vec::new(),
        Some(Value::Array(args)) => args,
        Some(_) => return Err("`args` is no list".to_owned()),
    };
    let mut count = |key: &str| match typed.remove(key) {
        None => Ok(None),
        Some(value) => {
            value.as_u64().filter(|count| *count > 0).map(Some).ok_or(format!("`{key}` is no whole number above 0"))
        }
    };
    let (context, slots, threads) = (count("context")?, count("slots")?, count("threads")?);
    let template = match typed.remove("chat_template") {
        None => None,
        Some(Value::String(text)) => Some(braced(&text)),
        Some(_) => return Err("`chat_template` is no text".to_owned()),
    };
    let says_context = || args.iter().any(|word| CONTEXT_FLAGS.iter().any(|flag| word == flag));
    let context = context.or(usual.filter(|_| !says_context()));
    // llama.cpp's server shares its context out among its slots.
    let tokens = context.map(|tokens| tokens.saturating_mul(slots.unwrap_or(1)));
    let numbers = match engine {
        Engine::LlamaServer => [("--ctx-size", tokens), ("--parallel", slots), ("--threads", threads)],
        Engine::Vllm => [("--max-model-len", context), ("--max-num-seqs", slots), ("", None)],
    };
    let numbers = numbers.into_iter().filter_map(|(flag, number)| Some([flag.to_owned(), number?.to_string()]));
    let mut words: Vec<Value> = numbers.flatten().map(Value::String).collect();
    if engine == Engine::LlamaServer && template.is_some() {
        words.push("--jinja".into());
    }
    words.extend(template.into_iter().flat_map(|text| ["--chat-template".into(), Value::String(text)]));
    words.extend(args);
    let mut options = Map::from_iter([("engine".to_owned(), json!(engine.name()))]);
    if !words.is_empty() {
        options.insert("args".to_owned(), Value::Array(words));
    }
    options.extend(typed);
    Ok(Translated { options: Value::Object(options), tokens })
}

/// A text in which braces stand for themselves.
pub(in crate::cli) fn braced(word: &str) -> String {
    word.replace('{', "{{").replace('}', "}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(engine: Option<Engine>, typed: Value) -> Result<Value, String> {
        let chosen = Chosen { engine, why: "so it is".to_owned() };
        translate(&chosen, &typed, Some(8192).filter(|_| engine == Some(Engine::LlamaServer))).map(|done| done.options)
    }

    #[test]
    fn what_both_have_is_told_in_the_words_of_each() {
        let typed = json!({"context": 2048, "slots": 4, "chat_template": "{{ x }}"});
        assert_eq!(of(None, typed.clone()), Ok(typed.clone()));
        assert_eq!(
            of(Some(Engine::Vllm), typed.clone()),
            Ok(
                json!({"engine": "vllm", "args": ["--max-model-len", "2048", "--max-num-seqs", "4", "--chat-template", "{{{{ x }}}}"]})
            )
        );
        let mut typed = typed;
        typed["threads"] = json!(2);
        typed["env"] = json!({"A": "b"});
        assert_eq!(
            of(Some(Engine::LlamaServer), typed),
            Ok(json!({"engine": "llama-server", "env": {"A": "b"}, "args": [
                "--ctx-size", "8192", "--parallel", "4", "--threads", "2", "--jinja", "--chat-template", "{{{{ x }}}}"
            ]}))
        );
    }

    #[test]
    fn an_argument_of_the_entry_itself_decides_the_context() {
        let args = json!({"args": ["-c", "100"]});
        assert_eq!(of(Some(Engine::LlamaServer), args), Ok(json!({"engine": "llama-server", "args": ["-c", "100"]})));
        let none = of(Some(Engine::LlamaServer), json!({}));
        assert_eq!(none, Ok(json!({"engine": "llama-server", "args": ["--ctx-size", "8192"]})));
        assert_eq!(of(Some(Engine::Vllm), json!({})), Ok(json!({"engine": "vllm"})));
    }

    #[test]
    fn what_the_other_one_has_is_refused_with_what_was_chosen() {
        for (engine, typed, words) in [
            (
                None,
                json!({"keep_slots": false}),
                "`keep_slots` is an option of engines, and `plugin: auto` is candle-llm here: so it is",
            ),
            (None, json!({"sleep": 1}), "`sleep`"),
            (
                Some(Engine::LlamaServer),
                json!({"share_cache": true}),
                "`share_cache` is an option of candle-llm, and `plugin: auto` is llama.cpp's server here",
            ),
            (
                Some(Engine::Vllm),
                json!({"threads": 2}),
                "`threads` is an option of candle-llm, and `plugin: auto` is vLLM here",
            ),
            (Some(Engine::Vllm), json!({"engine": "vllm"}), "`engine` is what `plugin: auto` chooses"),
            (None, json!({"command": "x"}), "`command` is what `plugin: auto` chooses"),
            (Some(Engine::Vllm), json!({"context": "many"}), "`context` is no whole number"),
            (Some(Engine::Vllm), json!({"args": "x"}), "`args` is no list"),
        ] {
            let why = of(engine, typed.clone()).unwrap_err();
            assert!(why.contains(words), "{typed}: {why}");
        }
        // What nobody knows is for the plugin's own schema to refuse, which tells the nearest name.
        assert_eq!(of(None, json!({"contxt": 1})), Ok(json!({"contxt": 1})));
    }
}
