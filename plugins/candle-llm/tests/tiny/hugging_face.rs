//! The tiny model as Hugging Face's transformers would keep it.

use std::collections::BTreeMap;
use std::path::Path;

use aihost_engine::files::Gguf;
use aihost_plugin_api::{Message, ToolChoice};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::*;

/// What transformers calls a tensor.
fn renamed(name: &str) -> String {
    for (gguf, hugging_face) in [
        ("token_embd", "model.embed_tokens"),
        ("output_norm", "model.norm"),
        ("blk.0.attn_norm", "model.layers.0.input_layernorm"),
        ("blk.0.ffn_norm", "model.layers.0.post_attention_layernorm"),
        ("blk.0.attn_output", "model.layers.0.self_attn.o_proj"),
        ("blk.0.attn_q", "model.layers.0.self_attn.q_proj"),
        ("blk.0.attn_k", "model.layers.0.self_attn.k_proj"),
        ("blk.0.attn_v", "model.layers.0.self_attn.v_proj"),
        ("blk.0.ffn_gate", "model.layers.0.mlp.gate_proj"),
        ("blk.0.ffn_up", "model.layers.0.mlp.up_proj"),
        ("blk.0.ffn_down", "model.layers.0.mlp.down_proj"),
    ] {
        if let Some(end) = name.strip_prefix(gguf) {
            return format!("{hugging_face}{end}");
        }
    }
    panic!("{name}");
}

/// Rows of queries and keys in the order of halves, where a GGUF file has those that turn together side by side.
fn halves(bytes: &[u8], row: usize) -> Vec<u8> {
    const HEAD: usize = 8;
    let rows: Vec<&[u8]> = bytes.chunks(row).collect();
    let of_head = |head: &[&[u8]]| {
        (0..2)
            .flat_map(|odd| (0..HEAD / 2).flat_map(move |pair| [2 * pair + odd]))
            .flat_map(|at| head[at].to_vec())
            .collect::<Vec<u8>>()
    };
    rows.chunks(HEAD).flat_map(of_head).collect()
}

/// The weights of a GGUF file by the names of transformers, with their shapes.
fn weights(gguf: &[u8]) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, gguf).expect("written");
    let gguf = Gguf::open(&path).expect("opens");
    let tensors = gguf.tensors();
    let all = tensors.iter().map(|(name, info)| {
        let mut bytes = tensors.map(info)[info.range.clone()].to_vec();
        if name.contains("attn_q") || name.contains("attn_k") {
            bytes = halves(&bytes, 4 * HIDDEN);
        }
        (renamed(name), (info.dimensions.iter().rev().copied().collect(), bytes))
    });
    all.collect()
}

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32",
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 258, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "rope_scaling": null, "hidden_act": "silu", "tie_word_embeddings": true,
        "eos_token_id": 257
    })
}

/// The characters of bytes, in the order of the GGUF file.
fn tokenizer() -> Value {
    let singles =
        (33..=126u32).chain(161..=172).chain(174..=255).chain(256..=323).filter_map(char::from_u32).map(String::from);
    let vocabulary: serde_json::Map<String, Value> =
        singles.chain(["ab".to_owned()]).zip(0..).map(|(token, id)| (token, json!(id))).collect();
    json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}, "padding": null,
        "added_tokens": [{"id": 257, "content": "<|im_end|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocabulary, "merges": ["a b"]}
    })
}

/// What a folder holds.
struct Files {
    config: Value,
    tokenizer: Value,
    tokenizer_config: Value,
    /// In how many files the weights are.
    shards: usize,
}

impl Files {
    fn new() -> Self {
        Self {
            config: config(),
            tokenizer: tokenizer(),
            tokenizer_config: json!({"eos_token": "<|im_end|>"}),
            shards: 1,
        }
    }

    fn write(&self, folder: &Path) {
        for (name, value) in [
            ("config.json", &self.config),
            ("tokenizer.json", &self.tokenizer),
            ("tokenizer_config.json", &self.tokenizer_config),
        ] {
            std::fs::write(folder.join(name), value.to_string()).expect("written");
        }
        let weights = weights(&gguf());
        let (mut index, mut parts) = (serde_json::Map::new(), vec![Vec::new(); self.shards]);
        for (at, (name, (shape, bytes))) in weights.iter().enumerate() {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a tensor");
            parts[at % self.shards].push((name.clone(), view));
            index.insert(name.clone(), json!(self.file(at % self.shards)));
        }
        for (at, part) in parts.into_iter().enumerate() {
            let bytes = safetensors::serialize(part, None).expect("serialised");
            std::fs::write(folder.join(self.file(at)), bytes).expect("written");
        }
        if self.shards > 1 {
            let index = json!({"metadata": {}, "weight_map": index});
            std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).expect("written");
        }
    }

    fn file(&self, at: usize) -> String {
        if self.shards == 1 {
            "model.safetensors".to_owned()
        } else {
            format!("model-{:05}-of-{:05}.safetensors", at + 1, self.shards)
        }
    }
}

fn loaded(folder: &Path) -> aihost_plugin_api::Result<MockHost> {
    MockHost::new::<LlmPlugin>(json!({}), &[("model", folder.to_owned())])
        .and_then(|mut host| host.load().map(|()| host))
}

fn of(files: &Files) -> (tempfile::TempDir, aihost_plugin_api::Result<MockHost>) {
    let folder = tempfile::tempdir().expect("a folder");
    files.write(folder.path());
    let host = loaded(folder.path());
    (folder, host)
}

/// Log-probabilities of a text's tokens, and what greedily follows it.
fn said(host: &MockHost) -> (Vec<f32>, String) {
    let asked = request("hello world, a longer text of 12 things and some", 0).echo(true).logprobs(0);
    let answer = host.generate(&asked).expect("scores");
    let scores = answer.events.into_iter().flat_map(|event| match event {
        TextEvent::Text { logprobs, .. } => logprobs.into_iter().map(|entry| entry.chosen.logprob).collect(),
        _ => Vec::new(),
    });
    let greedy = request("hello world", 12).sampling(Sampling::default().temperature(0.0));
    (scores.collect(), host.generate(&greedy).expect("answers").text)
}

#[test]
fn a_folder_says_what_its_gguf_file_says() {
    let (_folder, host) = host(&gguf(), json!({}));
    let wanted = said(&host.expect("loads"));
    for shards in [1, 3] {
        let (_folder, host) = of(&Files { shards, ..Files::new() });
        let found = said(&host.expect("loads"));
        assert_eq!((found.0.len(), &found.1), (wanted.0.len(), &wanted.1));
        for (found, wanted) in found.0.iter().zip(&wanted.0) {
            assert!((found - wanted).abs() < 2e-3, "{found} {wanted}");
        }
    }
}

#[test]
fn files_are_named_or_lie_beside_each_other() {
    let (folder, elsewhere) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    Files::new().write(folder.path());
    for name in ["config.json", "tokenizer.json"] {
        std::fs::rename(folder.path().join(name), elsewhere.path().join(name)).expect("moved");
    }
    let weights = folder.path().join("model.safetensors");
    let roles = [
        ("model", weights.clone()),
        ("config", elsewhere.path().join("config.json")),
        ("tokenizer", elsewhere.path().join("tokenizer.json")),
    ];
    let mut host = MockHost::new::<LlmPlugin>(json!({}), &roles).expect("options");
    host.load().expect("loads");
    let error = MockHost::new::<LlmPlugin>(json!({}), &[("model", weights)])
        .and_then(|mut host| host.load())
        .expect_err("lost");
    assert_eq!(error.kind(), ErrorKind::MissingFile);
    assert!(error.message().contains("config.json does not exist"), "{}", error.message());
}

#[test]
fn positions_are_scaled_as_the_settings_say() {
    let scores = |more: &[(&str, Value)]| {
        let mut files = Files::new();
        more.iter().for_each(|(name, value)| files.config[*name] = value.clone());
        let (_folder, host) = of(&files);
        said(&host.expect("loads")).0
    };
    let plain = scores(&[]);
    let linear = scores(&[("rope_scaling", json!({"type": "linear", "factor": 4.0}))]);
    let gguf = super::scores(&built(&[("llama.rope.scaling.factor", 4)], |_| true, |_, _| {}));
    assert!(gguf.iter().zip(&linear).all(|(wanted, found)| (wanted - found).abs() < 2e-3), "as in a GGUF file");
    let differs = |found: &[f32]| plain.iter().zip(found).any(|(plain, found)| (plain - found).abs() > 0.01);
    assert!(differs(&linear));
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32});
    assert!(differs(&scores(&[("rope_scaling", llama3)])));
    let newer = json!({"rope_type": "default", "rope_theta": 10000.0});
    assert_eq!(scores(&[("rope_theta", Value::Null), ("rope_parameters", newer)]), plain);
}

#[test]
fn what_is_not_served_is_told_before_anything_is_loaded() {
    for (name, value, kind, words) in [
        ("model_type", json!("qwen3_5"), ErrorKind::Unsupported, "`engine: llama-server` serves others"),
        ("quantization_config", json!({"quant_method": "gptq"}), ErrorKind::Unsupported, "gptq"),
        ("hidden_act", json!("gelu"), ErrorKind::Unsupported, "`gelu`"),
        ("attention_bias", json!(true), ErrorKind::CorruptFile, "model.layers.0.self_attn.q_proj.bias is missing"),
        ("mlp_bias", json!(true), ErrorKind::Unsupported, "biases"),
        ("rope_scaling", json!({"rope_type": "dynamic", "factor": 2.0}), ErrorKind::Unsupported, "`dynamic`"),
        (
            "rope_scaling",
            json!({"rope_type": "yarn", "factor": 2.0}),
            ErrorKind::CorruptFile,
            "`original_max_position_embeddings`",
        ),
        (
            "rope_scaling",
            json!({"rope_type": "longrope", "short_factor": [1.0], "original_max_position_embeddings": 8}),
            ErrorKind::CorruptFile,
            "`short_factor` must have 4 numbers",
        ),
        ("layer_types", json!(["linear_attention"]), ErrorKind::Unsupported, "`linear_attention`"),
        ("layer_types", json!([]), ErrorKind::CorruptFile, "`layer_types` has 0 entries"),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 0.0}), ErrorKind::CorruptFile, "`factor` is 0"),
        ("rope_scaling", json!({"rope_type": "linear"}), ErrorKind::CorruptFile, "`factor` of its rope scaling"),
        ("num_attention_heads", json!(0), ErrorKind::CorruptFile, "`num_attention_heads` is 0"),
        ("num_key_value_heads", json!(3), ErrorKind::CorruptFile, "do not fit together"),
        ("hidden_size", json!("wide"), ErrorKind::CorruptFile, "config.json: invalid type"),
        ("hidden_size", json!(64), ErrorKind::CorruptFile, "model.embed_tokens.weight has shape"),
        ("num_hidden_layers", json!(2), ErrorKind::CorruptFile, "model.layers.1.self_attn.q_proj.weight is missing"),
        ("tie_word_embeddings", json!(false), ErrorKind::CorruptFile, "lm_head.weight is missing"),
        ("rms_norm_eps", json!(-1.0), ErrorKind::CorruptFile, "`rms_norm_eps` is -1"),
    ] {
        let mut files = Files::new();
        files.config[name] = value;
        let error = of(&files).1.expect_err(name);
        assert_eq!(error.kind(), kind, "{name}: {}", error.message());
        assert!(error.message().contains(words), "{name}: {}", error.message());
    }
}

#[test]
fn another_kind_of_tokenizer_is_refused_and_a_broken_one_is_told() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut files = Files::new();
        change(&mut files.tokenizer);
        of(&files).1.map(drop)
    };
    assert!(with(&|_| ()).is_ok());
    for (what, change, kind) in [
        (
            "no bytes",
            &(|t: &mut Value| {
                t["decoder"] = json!({"type": "Metaspace", "replacement": "_", "prepend_scheme": "never"})
            }) as &dyn Fn(&mut Value),
            ErrorKind::Unsupported,
        ),
        (
            "no merges",
            &|t: &mut Value| t["model"] = json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
            ErrorKind::Unsupported,
        ),
        ("no object", &|t: &mut Value| *t = json!([1]), ErrorKind::CorruptFile),
        ("a merge of nothing", &|t: &mut Value| t["model"]["merges"] = json!(["a zz"]), ErrorKind::CorruptFile),
        ("more tokens", &|t: &mut Value| t["model"]["vocab"]["abc"] = json!(300), ErrorKind::CorruptFile),
    ] {
        let error = with(change).expect_err(what);
        assert_eq!(error.kind(), kind, "{what}: {}", error.message());
        assert!(error.message().contains("tokenizer.json"), "{what}: {}", error.message());
    }
}

#[test]
fn turns_end_and_begin_as_the_settings_say() {
    let template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let mut files = Files::new();
    files.tokenizer_config = json!({"bos_token": {"content": "<|im_end|>"}, "chat_template": [
        {"name": "tool_use", "template": "{{ none }}"}, {"name": "default", "template": template}]});
    files.tokenizer["post_processor"] = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|im_end|>": {"id": "<|im_end|>", "ids": [257], "tokens": ["<|im_end|>"]}}});
    let (_folder, host) = of(&files);
    let host = host.expect("loads");
    let prompt_tokens = |request: &TextRequest| host.generate(request).expect("answers").finish.usage.prompt_tokens;
    assert_eq!(prompt_tokens(&request("xyz", 1)), 4, "the text and what is put before it");
    let chat = TextRequest::ask("xyz").max_tokens(1);
    assert_eq!(prompt_tokens(&chat), 4, "the template says so itself, and once is enough");
}

#[test]
fn a_model_is_sampled_as_its_settings_say_where_nobody_asks() {
    let (folder, _host) = of(&Files::new());
    let settings = json!({"do_sample": true, "top_k": 1, "temperature": null, "eos_token_id": 257});
    std::fs::write(folder.path().join("generation_config.json"), settings.to_string()).expect("written");
    let host = loaded(folder.path()).expect("loads");
    let own = answers_of_seeds(&host, &["temperature", "top_k"]);
    assert!(own.iter().all(|text| *text == own[0]), "{own:?}");
    let asked = answers_of_seeds(&host, &[]);
    assert!(asked.iter().any(|text| *text != asked[0]), "{asked:?}");
}

#[test]
fn the_template_for_tools_is_named_or_a_file_of_its_own() {
    let mut files = Files::new();
    files.tokenizer_config = json!({"eos_token": "<|im_end|>", "chat_template": [
        {"name": "tool_use", "template": "{{ tools[0].function.name }}"}, {"name": "default", "template": "xyz"}]});
    let (folder, host) = of(&files);
    let input = |tools| TextInput::with_tools(vec![Message::user("a")], tools, ToolChoice::Auto);
    let prompt_tokens = |host: &MockHost, tools| {
        let request = TextRequest::new(input(tools)).tokenize(true);
        host.generate(&request).expect("it is counted").finish.usage.prompt_tokens
    };
    let tool = json!({"type": "function", "function": {"name": "abab"}});
    let host = host.expect("loads");
    assert_eq!((prompt_tokens(&host, Vec::new()), prompt_tokens(&host, vec![tool.clone()])), (3, 2));
    let more = folder.path().join("additional_chat_templates");
    std::fs::create_dir(&more).expect("a folder");
    std::fs::write(more.join("tool_use.jinja"), "{{ tools[0].function.name }}xyz").expect("written");
    let host = loaded(folder.path()).expect("loads");
    assert_eq!((prompt_tokens(&host, Vec::new()), prompt_tokens(&host, vec![tool])), (3, 5));
}
