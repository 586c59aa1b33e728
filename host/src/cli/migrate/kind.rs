//! The type of a model whose source does not say one: what its program, its arguments and its names tell.

/// Types by words in the name of a program, or of the script or module that it runs.
const PROGRAMS: [(&str, &str); 17] = [
    ("sd-server", "image"),
    ("stable-diffusion", "image"),
    ("comfyui", "image"),
    ("invokeai", "image"),
    ("whisper", "transcription"),
    ("parakeet", "transcription"),
    ("speaches", "transcription"),
    ("kokoro", "speech"),
    ("piper", "speech"),
    ("chatterbox", "speech"),
    ("xtts", "speech"),
    ("tts-server", "speech"),
    ("musicgen", "audio"),
    ("ace-step", "audio"),
    ("infinity_emb", "embedding"),
    ("text-embeddings", "embedding"),
    ("rerank", "embedding"),
];
/// Arguments that only one type takes.
const ARGUMENTS: [(&str, &str); 9] = [
    ("--embedding", "embedding"),
    ("--embeddings", "embedding"),
    ("--rerank", "embedding"),
    ("--reranking", "embedding"),
    ("--task=embed", "embedding"),
    ("--task=embedding", "embedding"),
    ("--task=score", "embedding"),
    ("--is-embedding", "embedding"),
    ("--diffusion-model", "image"),
];
/// Types by parts of a model's names.
const NAMES: [(&str, &str); 14] = [
    ("dall-e", "image"),
    ("gpt-image", "image"),
    ("stable-diffusion", "image"),
    ("sdxl", "image"),
    ("flux.", "image"),
    ("z-image", "image"),
    ("whisper", "transcription"),
    ("parakeet", "transcription"),
    ("tts", "speech"),
    ("kokoro", "speech"),
    ("embed", "embedding"),
    ("rerank", "embedding"),
    ("bge-", "embedding"),
    ("minilm", "embedding"),
];

/// A type, and what told it; nothing told that it is a model of texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Guess {
    pub(super) kind: &'static str,
    pub(super) from: Option<String>,
}

/// The type of a model that is started by these words and has these names.
pub(super) fn guess<'a>(words: &[String], names: impl IntoIterator<Item = &'a str>) -> Guess {
    let told = |kind: &'static str, from: &str| Guess { kind, from: Some(from.to_owned()) };
    let joined: Vec<String> = words.windows(2).map(|pair| format!("{}={}", pair[0], pair[1])).collect();
    let argument = |word: &String| ARGUMENTS.iter().find(|(name, _)| name == word);
    if let Some((name, kind)) = words.iter().chain(&joined).find_map(argument) {
        return told(kind, name);
    }
    // What is run: the program, and the script or image that a program of programs runs. Paths of weights are not.
    let runs = |word: &&String| !word.starts_with('-') && !is_weights(word);
    for word in words.iter().filter(runs) {
        let word = word.to_ascii_lowercase();
        if let Some((name, kind)) = PROGRAMS.iter().find(|(name, _)| word.contains(name)) {
            return told(kind, name);
        }
    }
    of_names(names)
}

/// The type of a model of which only names are known.
pub(super) fn of_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Guess {
    for name in names {
        let lower = name.to_ascii_lowercase();
        if let Some((_, kind)) = NAMES.iter().find(|(part, _)| lower.contains(part)) {
            return Guess { kind, from: Some(name.to_owned()) };
        }
    }
    Guess { kind: "text", from: None }
}

fn is_weights(word: &str) -> bool {
    [".gguf", ".safetensors", ".bin", ".onnx", ".pt"].iter().any(|end| word.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_told_by_arguments_programs_and_names_in_that_order() {
        for (line, name, kind) in [
            ("/app/sd-server --diffusion-model /m/z.gguf", "z", "image"),
            ("whisper-server -m /models/whisper.bin", "w", "transcription"),
            ("python -m infinity_emb v2", "x", "embedding"),
            ("vllm serve a/b --task embed", "x", "embedding"),
            ("docker run ghcr.io/remsky/kokoro-fastapi-gpu", "x", "speech"),
            ("llama-server -m /m/whisper-notes.gguf", "chat", "text"),
            ("vllm serve a/b", "nomic-embed-text", "embedding"),
            ("some-server", "gpt-image-1", "image"),
            ("some-server", "qwen", "text"),
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(guess(&words, [name]).kind, kind, "{line}");
        }
    }
}
