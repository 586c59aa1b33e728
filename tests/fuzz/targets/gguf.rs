//! GGUF files: the header, every value that a model is built from, its tokenizer, its weights.

use aihost_engine::cpu::Cpu;
use aihost_engine::files::Gguf;
use aihost_engine::nn::decoder::{Decoder, weight_bytes, workspace_bytes};
use aihost_engine::ops::Ops;
use aihost_support::checkpoint::Checkpoint;
use aihost_support::decoder::gguf as config;
use aihost_support::dense::Residency;
use candle_llm::tokenizer::Tokenizer;

use super::files::Folder;
use super::safetensors;

/// A context to plan for.
const CONTEXT: usize = 4096;
/// What is put into tokens.
const TEXTS: [&str; 3] =
    ["Who wrote Romeo?\n\n  'S 12345 <|im_end|> Größe", "", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"];

/// Reads the input as a GGUF file, as a model of it, and as a checkpoint.
pub(super) fn run(input: &[u8]) {
    let folder = Folder::new();
    let path = folder.write("model.gguf", input);
    let Ok(gguf) = Gguf::open(&path) else {
        assert!(Checkpoint::open(&path, Residency::Resident).is_err(), "one reader takes what the other refuses");
        return;
    };
    let tensors = gguf.tensors();
    for (name, info) in tensors.iter() {
        assert!(
            info.range.start <= info.range.end && info.range.end <= tensors.len(),
            "{name} lies outside of its file"
        );
        if let [count] = info.dimensions[..]
            && let Ok(values) = tensors.vector(name, count)
        {
            assert_eq!(values.len(), count);
        }
    }
    if let Ok(checkpoint) = Checkpoint::open(&path, Residency::Resident) {
        safetensors::read(&checkpoint);
    }
    words(&gguf);
    if let Ok(config) = config::read(&gguf) {
        let workspace = workspace_bytes(&Cpu, &config, CONTEXT, CONTEXT, CONTEXT);
        assert!(
            config.caches().into_iter().map(|shape| Cpu.block_bytes(shape)).sum::<u64>() > 0 && workspace > 0,
            "a model that takes nothing"
        );
        assert!(weight_bytes(&Cpu, tensors, config.names) > 0);
        let _ = Decoder::open(Cpu, tensors, config, CONTEXT);
    }
}

/// The tokenizer, whatever model it belongs to.
fn words(gguf: &Gguf) {
    let Ok(Some(tokens)) = gguf.texts("tokenizer.ggml.tokens") else { return };
    let count = tokens.len();
    let Ok(tokenizer) = Tokenizer::of_gguf(gguf, count) else { return };
    assert_eq!(tokenizer.vocabulary(), count);
    for text in TEXTS {
        let Ok(ids) = tokenizer.encode(text) else { continue };
        for id in ids {
            assert!((id as usize) < count, "the id {id} of {count}");
            assert!(tokenizer.bytes(id).len() <= tokenizer.longest());
            let _ = (tokenizer.visible(id), tokenizer.is_end(id));
        }
    }
    let _ = tokenizer.bos_eos_texts();
}
