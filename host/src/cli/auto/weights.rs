//! A file of weights on this machine: how large it is with its parts, what serves it, and what it takes while it is served.

use std::fs;
use std::path::{Path, PathBuf};

use super::gguf::{self, Header};
use crate::domain::ByteSize;

/// Most tokens of context of a migrated server whose source says nothing: what a model was trained for may take more memory
/// than it does.
pub(in crate::cli) const CONTEXT_TOKENS: u64 = 8192;
/// What an estimate adds to weights and cache, bytes: buffers, and what a driver takes of each process.
const BESIDE_BYTES: u64 = 1 << 30;
/// An estimate is rounded up to a multiple of this, bytes.
const ESTIMATE_STEP_BYTES: u64 = 100 << 20;
/// Most parts that a split GGUF model is believed to have.
const PARTS_MAX: u64 = 999;

/// The architectures that candle-llm serves (its family.rs, whose test looks here).
const CANDLE_ARCHITECTURES: [&str; 17] = [
    "llama",
    "mistral3",
    "qwen2",
    "qwen3",
    "qwen3moe",
    "qwen35",
    "qwen35moe",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma4",
    "phi3",
    "smollm3",
    "granite",
    "gpt-oss",
    "glm4",
    "lfm2",
];
/// Those among them that are mixtures of experts.
const CANDLE_EXPERTS: [&str; 4] = ["gpt-oss", "qwen3moe", "qwen35moe", "gemma4"];
/// How it scales positions.
const CANDLE_ROPES: [&str; 4] = ["none", "linear", "yarn", "longrope"];
/// What candle-llm reads, as ggml numbers the types of tensors.
const CANDLE_TENSORS: [u32; 16] = [0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 20, 23, 30, 39];
/// The kinds of tokenizers that it knows.
const CANDLE_TOKENIZERS: [&str; 3] = ["gpt2", "llama", "gemma4"];
/// The rules of splitting texts that it knows, which one of these kinds has (its tokenizer/pre.rs, whose test looks here).
const CANDLE_SPLITS: [&str; 90] = [
    "default",
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "dbrx",
    "smaug-bpe",
    "chatglm-bpe",
    "glm4",
    "glm5",
    "minicpm5",
    "jais-2",
    "qwen2",
    "deepseek-r1-qwen",
    "kormo",
    "f2llmv2",
    "megrez",
    "stablelm2",
    "hunyuan",
    "solar-open",
    "grok-2",
    "qwen35",
    "laguna",
    "ufakzeka",
    "seed-coder",
    "bailingmoe",
    "bailingmoe2",
    "llada-moe",
    "exaone-moe",
    "tekken",
    "gpt-4o",
    "llama4",
    "kanana2",
    "talkie",
    "minimax-m2",
    "granite-embed-multi-97m",
    "tiny_aya",
    "cohere2moe",
    "kimi-k2",
    "youtu",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
    "hunyuan-dense",
    "joyai-llm",
    "hy_v4",
    "spark2_5",
    "afmoe",
    "falcon",
    "starcoder",
    "refact",
    "command-r",
    "smollm",
    "codeshell",
    "exaone",
    "minerva-7b",
    "mellum2",
    "gpt-2",
    "phi-2",
    "jina-es",
    "jina-de",
    "gigachat",
    "jina-v2-es",
    "jina-v2-de",
    "a.x-4.0",
    "mellum",
    "modern-bert",
    "jina-v1-en",
    "jina-v2-code",
    "roberta-bpe",
    "mpt",
    "olmo",
    "jais",
    "trillion",
    "granite-docling",
    "exaone4",
    "chameleon",
    "bloom",
    "poro-chat",
    "gpt3-finnish",
    "viking",
    "superbpe",
    "gemma4",
    "granite-embed-multi-311m",
    "sarvam-moe",
];

/// Architectures of models that make vectors of texts.
const EMBEDDING: [&str; 9] = [
    "bert",
    "eurobert",
    "gemma-embedding",
    "jina-bert-v2",
    "jina-bert-v3",
    "modern-bert",
    "neo-bert",
    "nomic-bert",
    "nomic-bert-moe",
];
/// Architectures of files that are a part of a model, or a model of something else than texts.
const NO_TEXT: [(&str, &str); 18] = [
    ("clip", "a projector, which belongs to another model"),
    ("mmproj", "a projector, which belongs to another model"),
    ("t5encoder", "the text encoder of another model"),
    ("t5", "a text encoder, or a translator"),
    ("flux", FLUX),
    ("sd1", IMAGE),
    ("sdxl", IMAGE),
    ("sd3", IMAGE),
    ("aura", IMAGE),
    ("hidream", IMAGE),
    ("lumina2", IMAGE),
    ("qwen_image", IMAGE),
    ("cosmos", IMAGE),
    ("hyvid", IMAGE),
    ("ltxv", IMAGE),
    ("wan", IMAGE),
    ("wavtokenizer-dec", "the decoder of a voice"),
    ("pig", "a part of another model"),
];
const FLUX: &str = "the transformer of FLUX; `plugin: flux` serves it with its `vae`, `clip`, `t5` and `tokenizers`";
const IMAGE: &str = "a part of a model of images or films; a `command:` of its server, sd-server say, serves it";

/// A file of weights.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Weights {
    /// Bytes of all its parts; nothing if it is not here.
    pub(in crate::cli) bytes: Option<u64>,
    /// What it says of itself; why it cannot be told.
    pub(in crate::cli) header: Result<Header, String>,
}

/// What serves a file of weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Runner {
    /// This host's own plugin.
    CandleLlm,
    /// llama.cpp's server; why the plugin does not.
    LlamaServer(String),
}

/// What a model makes of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Task {
    /// More text.
    Text,
    /// Vectors.
    Embedding,
    /// An order among them.
    Rerank,
}

impl Weights {
    /// Looks at a file; of a split model, at the first part and the others beside it.
    pub(in crate::cli) fn look(path: &Path) -> Self {
        let parts = parts(path);
        let sizes = parts.iter().map(|part| fs::metadata(part).ok().map(|found| found.len()));
        let bytes = sizes.sum::<Option<u64>>();
        let mut header = gguf::read(path);
        if let Ok(first) = &mut header {
            for part in parts.iter().skip(1) {
                // One that is missing or wrong is told of when the model is loaded.
                first.tensor_types.extend(gguf::read(part).unwrap_or_default().tensor_types);
            }
        }
        Self { bytes, header }
    }

    /// What it makes of texts; why it is no model of texts.
    pub(in crate::cli) fn task(&self) -> Result<Task, String> {
        let Ok(header) = &self.header else { return Ok(Task::Text) };
        let architecture = header.architecture();
        if let Some((_, what)) = NO_TEXT.iter().find(|(name, _)| *name == architecture) {
            return Err((*what).to_owned());
        }
        // llama.cpp's numbers: 0 is none, 4 is that of rerankers.
        Ok(match header.of_architecture("pooling_type") {
            Some(4) => Task::Rerank,
            None | Some(0) if !EMBEDDING.contains(&architecture) => Task::Text,
            _ => Task::Embedding,
        })
    }

    /// Tokens of context that it was trained for, at most what is usual.
    pub(in crate::cli) fn usual_context(&self) -> u64 {
        let trained = self.header.as_ref().ok().and_then(|header| header.of_architecture("context_length"));
        trained.map_or(CONTEXT_TOKENS, |trained| trained.min(CONTEXT_TOKENS))
    }

    /// What it takes while llama.cpp's server serves so many tokens, with other files beside it, and how that was come by. Nothing
    /// where the file is not here.
    pub(in crate::cli) fn memory(
        &self,
        context: Option<u64>,
        cache: CacheBits,
        others: u64,
    ) -> Option<(ByteSize, String)> {
        let bytes = self.bytes?.checked_add(others)?;
        let trained = self.header.as_ref().ok().and_then(|header| header.of_architecture("context_length"));
        let tokens = context.filter(|tokens| *tokens > 0).or(trained);
        let cached = tokens.and_then(|tokens| {
            let taken = self.header.as_ref().ok()?.cache_bytes(tokens, cache.keys, cache.values)?;
            Some((tokens, taken))
        });
        let taken = cached.map_or(0, |(_, taken)| taken);
        let all = bytes.checked_add(taken)?.checked_add(BESIDE_BYTES)?.checked_next_multiple_of(ESTIMATE_STEP_BYTES)?;
        let cache = match cached {
            Some((tokens, taken)) => format!("{} for a cache of {tokens} tokens", ByteSize(taken)),
            None => "nothing for its cache, which its header does not tell".to_owned(),
        };
        let files = ByteSize(bytes);
        let how = format!("An estimate: {files} of weights, {cache}, 1 GiB beside. `aihost ps` shows what it takes.");
        Some((ByteSize(all), how))
    }
}

/// Bits that llama.cpp's server keeps an element of its cache in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) struct CacheBits {
    /// Of keys.
    pub(in crate::cli) keys: u64,
    /// Of values.
    pub(in crate::cli) values: u64,
}

impl Default for CacheBits {
    fn default() -> Self {
        Self { keys: 16, values: 16 }
    }
}

/// What serves a model. The one place that decides it.
pub(in crate::cli) fn runner(weights: &Weights) -> Runner {
    let header = match &weights.header {
        Ok(header) => header,
        Err(why) => return Runner::LlamaServer(format!("its file {why}")),
    };
    let no = |why: String| Runner::LlamaServer(why);
    match header.architecture() {
        known if CANDLE_ARCHITECTURES.contains(&known) => {}
        "" => return no("its file does not say what architecture it is of".to_owned()),
        other => return no(format!("candle-llm does not serve the architecture `{other}`")),
    }
    let has_experts = header.of_architecture("expert_count").is_some_and(|experts| experts > 0);
    if has_experts && !CANDLE_EXPERTS.contains(&header.architecture()) {
        return no(format!("candle-llm serves no mixture of experts of the kind `{}`", header.architecture()));
    }
    if let Some(kind) = header.tensor_types.iter().find(|kind| !CANDLE_TENSORS.contains(kind)) {
        return no(format!("candle-llm does not read its format (ggml's type {kind})"));
    }
    let tokenizer = header.text("tokenizer.ggml.model").unwrap_or("(none)");
    if !CANDLE_TOKENIZERS.contains(&tokenizer) {
        return no(format!("candle-llm does not know its tokenizer `{tokenizer}`"));
    }
    match header.text("tokenizer.ggml.pre") {
        _ if tokenizer != "gpt2" => {}
        Some(split) if CANDLE_SPLITS.contains(&split) => {}
        other => return no(format!("candle-llm does not know its pre-tokenizer `{}`", other.unwrap_or("(none)"))),
    }
    match header.text_of_architecture("rope.scaling.type") {
        None => Runner::CandleLlm,
        Some(known) if CANDLE_ROPES.contains(&known) => Runner::CandleLlm,
        Some(other) => no(format!("candle-llm does not scale positions by `{other}`")),
    }
}

/// The file, and the other parts of a split model whose first part it is.
pub(in crate::cli) fn parts(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match part_of(name) {
        Some((stem, 1, count)) => {
            (1..=count).map(|number| path.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf"))).collect()
        }
        _ => vec![path.to_owned()],
    }
}

/// The stem of a split model's file, which part it is, and of how many.
pub(in crate::cli) fn part_of(name: &str) -> Option<(&str, u64, u64)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let is_number = |digits: &str| digits.len() == 5 && digits.bytes().all(|digit| digit.is_ascii_digit());
    if !is_number(count) || !is_number(number) {
        return None;
    }
    let (number, count) = (number.parse().ok()?, count.parse().ok()?);
    (number >= 1 && number <= count && count <= PARTS_MAX).then_some((stem, number, count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::auto::gguf::tests::{SMOLLM, header_bytes};

    fn weights(pairs: &[(&str, &str)], types: &[u32]) -> Weights {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        fs::write(&path, header_bytes(pairs, types)).unwrap();
        Weights::look(&path)
    }

    #[test]
    fn what_candle_llm_reads_is_its_own_and_the_rest_llama_cpps() {
        assert_eq!(runner(&weights(&SMOLLM, &[0, 12, 14])), Runner::CandleLlm);
        for (at, value, words) in [
            (0, "deepseek2", "the architecture `deepseek2`"),
            (6, "t5", "its tokenizer `t5`"),
            (7, "mmbert", "its pre-tokenizer `mmbert`"),
        ] {
            let mut other = SMOLLM;
            other[at].1 = value;
            let Runner::LlamaServer(why) = runner(&weights(&other, &[0])) else { panic!("{value}") };
            assert!(why.contains(words), "{why}");
        }
        assert!(matches!(runner(&weights(&SMOLLM, &[0, 16])), Runner::LlamaServer(why) if why.contains("type 16")));
        let mut experts = SMOLLM.to_vec();
        experts.push(("llama.expert_count", "8"));
        assert!(matches!(runner(&weights(&experts, &[0])), Runner::LlamaServer(why) if why.contains("mixture")));
        for (at, value) in [(6, "llama"), (6, "gemma4"), (7, "tekken"), (7, "falcon3")] {
            let mut other = SMOLLM;
            other[at].1 = value;
            assert_eq!(runner(&weights(&other, &[0])), Runner::CandleLlm, "{value}");
        }
        let gone = Weights::look(Path::new("/nowhere/x.gguf"));
        assert!(matches!(runner(&gone), Runner::LlamaServer(why) if why.contains("cannot be read")));
        assert_eq!(gone.memory(None, CacheBits::default(), 0), None);
    }

    #[test]
    fn an_estimate_is_the_sum_of_what_is_known() {
        let mut known = weights(&SMOLLM, &[0]);
        known.bytes = Some(100 << 20);
        // 30 layers, 3 heads of 64, keys and values of 2 bytes, 4096 tokens: 90 MiB.
        let (memory, how) = known.memory(Some(4096), CacheBits::default(), 0).unwrap();
        assert_eq!(memory, ByteSize(1300 << 20));
        assert!(how.contains("100.0 MiB of weights, 90.0 MiB for a cache of 4096 tokens"), "{how}");
        let (_, how) = known.memory(None, CacheBits { keys: 8, values: 8 }, 0).unwrap();
        assert!(how.contains("22.5 MiB for a cache of 2048 tokens"), "{how}");
    }

    #[test]
    fn tasks_are_told_by_architecture_and_pooling() {
        let with = |architecture: &'static str, pooling: Option<(&'static str, &'static str)>| {
            let mut pairs = vec![("general.architecture", architecture)];
            pairs.extend(pooling);
            weights(&pairs, &[0]).task()
        };
        assert_eq!(with("llama", None), Ok(Task::Text));
        assert_eq!(with("nomic-bert", None), Ok(Task::Embedding));
        assert_eq!(with("qwen3", Some(("qwen3.pooling_type", "3"))), Ok(Task::Embedding));
        assert_eq!(with("bert", Some(("bert.pooling_type", "4"))), Ok(Task::Rerank));
        assert!(with("clip", None).unwrap_err().contains("projector"));
    }

    #[test]
    fn parts_of_a_split_model_are_known_by_their_names() {
        assert_eq!(part_of("a-b-00002-of-00003.gguf"), Some(("a-b", 2, 3)));
        for name in ["a.gguf", "a-1-of-3.gguf", "a-00004-of-00003.gguf", "a-00000-of-00003.gguf", "a-00001-of-00003"] {
            assert_eq!(part_of(name), None, "{name}");
        }
        assert_eq!(parts(Path::new("/m/a-00001-of-00002.gguf")).len(), 2);
    }
}
