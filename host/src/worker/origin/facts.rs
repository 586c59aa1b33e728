//! What an engine says of its model, for those who choose among models. All list theirs at `/v1/models`, each in words of its
//! own; llama.cpp's server tells of its template beside that.

use aihost_plugin_api::ModelFacts;
use serde_json::Value;

use super::Origin;

/// Where engines list their models.
const MODELS: &str = "/v1/models";
/// Where llama.cpp's server tells how it answers.
const PROPS: &str = "/props";

/// What its engine says of the model that it knows by this name, if it says anything.
pub(in crate::worker) async fn facts(origin: &Origin, name: &str) -> Option<ModelFacts> {
    let listed = origin.look_in_passing(MODELS).await?;
    let entry = entry(&listed, name)?;
    // Others have no such route.
    let props = if entry["meta"].is_object() { origin.look_in_passing(PROPS).await } else { None };
    let facts = read(entry, &props.unwrap_or_default());
    (!facts.is_unknown()).then_some(facts)
}

/// The one of this name. An engine that has a single model often answers to any name.
fn entry<'a>(listed: &'a Value, name: &str) -> Option<&'a Value> {
    let entries = listed["data"].as_array()?;
    let named = entries.iter().find(|entry| entry["id"] == name);
    named.or_else(|| entries.first().filter(|_| entries.len() == 1))
}

fn read(entry: &Value, props: &Value) -> ModelFacts {
    let meta = &entry["meta"];
    let text = |at: &Value| at.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let mut facts = ModelFacts::default();
    facts.context_length = [
        // vLLM and SGLang; OpenRouter; Groq; LM Studio and Mistral; llama.cpp.
        &entry["max_model_len"],
        &entry["context_length"],
        &entry["context_window"],
        &entry["max_context_length"],
        &meta["n_ctx"],
        &props["default_generation_settings"]["n_ctx"],
    ]
    .into_iter()
    .find_map(tokens);
    facts.trained_context_length = tokens(&meta["n_ctx_train"]);
    facts.vocabulary = tokens(&meta["n_vocab"]);
    facts.embedding_length = tokens(&meta["n_embd"]);
    facts.parameters = meta["n_params"].as_u64().filter(|count| *count > 0);
    facts.bytes = meta["size"].as_u64().filter(|count| *count > 0);
    facts.architecture = text(&meta["architecture"]);
    facts.quantization = text(&meta["quantization"]).or_else(|| text(&meta["ftype"]));
    facts.chat_template = text(&props["chat_template"]);
    facts.abilities = abilities(entry, props);
    facts
}

/// A count of them; engines that do not know say 0 or nothing.
fn tokens(at: &Value) -> Option<u32> {
    at.as_u64().and_then(|count| u32::try_from(count).ok()).filter(|count| *count > 0)
}

fn abilities(entry: &Value, props: &Value) -> Vec<String> {
    let says = |list: &Value, what: &str| list.as_array().is_some_and(|list| list.iter().any(|said| said == what));
    let (can, takes) = (&entry["capabilities"], &entry["supported_parameters"]);
    let sees = says(&entry["architecture"]["input_modalities"], "image") || props["modalities"]["vision"] == true;
    let abilities = [
        ("tools", says(can, "tools") || says(takes, "tools") || props["chat_template_caps"]["supports_tools"] == true),
        ("reasoning", says(can, "thinking") || says(takes, "reasoning")),
        ("fill_in", says(can, "insert")),
        ("vision", says(can, "vision") || sees),
    ];
    abilities.into_iter().filter(|(_, is_so)| *is_so).map(|(ability, _)| ability.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(list: &Value, name: &str, props: &Value) -> Option<ModelFacts> {
        entry(list, name).map(|entry| read(entry, props))
    }

    #[test]
    fn each_kind_of_engine_is_read_in_its_own_words() {
        let vllm = json!({"object": "list", "data": [{"id": "m", "owned_by": "vllm", "max_model_len": 8192}]});
        assert_eq!(of(&vllm, "m", &Value::Null), Some(ModelFacts::default().context_length(8192)));

        let llama = json!({"models": [{"capabilities": ["completion"]}], "data": [{
            "id": "any", "owned_by": "llamacpp",
            "architecture": {"input_modalities": ["text", "image"], "output_modalities": ["text"]},
            "meta": {"vocab_type": 2, "n_vocab": 49152, "n_ctx": 2048, "n_ctx_train": 8192, "n_embd": 576,
                     "n_params": 134515008, "size": 98_000_000, "ftype": "Q4_1"},
        }]});
        let props = json!({"chat_template": "{{ x }}", "chat_template_caps": {"supports_tools": true}});
        let facts = ModelFacts::default()
            .context_length(2048)
            .trained_context_length(8192)
            .vocabulary(49152)
            .embedding_length(576)
            .parameters(134_515_008)
            .bytes(98_000_000)
            .quantization("Q4_1".to_owned())
            .chat_template("{{ x }}".to_owned())
            .abilities(vec!["tools".into(), "vision".into()]);
        assert_eq!(of(&llama, "m", &props), Some(facts), "a single model answers to any name");

        let router = json!({"data": [
            {"id": "a/b", "context_length": 131_072, "supported_parameters": ["tools", "reasoning"]},
            {"id": "c", "context_window": 4096}, {"id": "d", "max_context_length": 512}, {"id": "e", "meta": {"n_ctx": 0}},
        ]});
        let big = ModelFacts::default().context_length(131_072).abilities(vec!["tools".into(), "reasoning".into()]);
        assert_eq!(of(&router, "a/b", &Value::Null), Some(big));
        assert_eq!(of(&router, "c", &Value::Null), Some(ModelFacts::default().context_length(4096)));
        assert_eq!(of(&router, "d", &Value::Null), Some(ModelFacts::default().context_length(512)));
        assert_eq!(of(&router, "e", &Value::Null), Some(ModelFacts::default()), "0 is not known");
        assert_eq!(of(&router, "z", &Value::Null), None, "one of several is meant by its name");
    }

    #[test]
    fn what_makes_no_sense_says_nothing() {
        for list in [json!([]), json!({"data": {}}), json!({"data": []}), json!("m"), json!({"data": [null, 1]})] {
            assert_eq!(of(&list, "m", &Value::Null), None, "{list}");
        }
        let odd = json!({"data": [{"id": 7, "max_model_len": -1, "context_length": "8", "meta": ["n_ctx"], "capabilities": 3}]});
        assert_eq!(of(&odd, "m", &json!({"modalities": []})), Some(ModelFacts::default()));
        let huge = json!({"data": [{"id": "m", "max_model_len": 1_u64 << 40}]});
        assert_eq!(of(&huge, "m", &Value::Null), Some(ModelFacts::default()));
    }
}
