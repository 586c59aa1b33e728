//! The command line of llama.cpp's server: what the plugin says itself is taken out, and what its host must know is found.

use std::path::Path;

use crate::cli::auto::weights::CacheBits;

/// How its file's name begins: people keep several builds side by side.
const PROGRAM: &str = "llama-server";

/// Flags that name its weights.
const MODEL: [&str; 2] = ["-m", "--model"];
/// Flags that the plugin says itself.
const OWN: [&str; 2] = ["--host", "--port"];
/// Flags with a value that make no sense behind a host, with what is said about it.
const LEFT_OUT: [(&str, &str); 5] = [
    ("--api-key", "the host's `api_keys:` stand before it, and the plugin sends none"),
    ("--api-key-file", "the host's `api_keys:` stand before it, and the plugin sends none"),
    ("--api-prefix", "the host asks it for the paths of its API as they are"),
    ("--ssl-key-file", "the host asks it on this machine, without TLS"),
    ("--ssl-cert-file", "the host asks it on this machine, without TLS"),
];
/// Flags that name a repository of Hugging Face, a file of it, and a token for it.
const HUB_REPO: [&str; 3] = ["-hf", "-hfr", "--hf-repo"];
const HUB_FILE: [&str; 2] = ["-hff", "--hf-file"];
const HUB_TOKEN: [&str; 2] = ["-hft", "--hf-token"];
/// Flags that name other files of weights, which take memory too.
const OTHER_FILES: [&str; 6] = ["-mm", "--mmproj", "--lora", "-md", "--model-draft", "--model-vocoder"];
/// Flags that choose among cards.
const CARDS: [&str; 10] = [
    "-ts",
    "--tensor-split",
    "-sm",
    "--split-mode",
    "-mg",
    "--main-gpu",
    "-dev",
    "--device",
    "-devd",
    "--device-draft",
];
/// Flags that say what makes vectors, and what orders.
const EMBEDDING: [&str; 2] = ["--embedding", "--embeddings"];
const RERANKING: [&str; 2] = ["--rerank", "--reranking"];

/// A command line, taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Server {
    /// The program.
    pub(super) binary: String,
    /// The file of its weights.
    pub(super) model: Option<String>,
    /// A repository of Hugging Face instead, without the tag of a quantisation, and a file of it.
    pub(super) hub: Option<(String, String)>,
    /// What it is told beside that.
    pub(super) args: Vec<String>,
    /// Other files of weights that it reads.
    pub(super) files: Vec<String>,
    /// Tokens of context.
    pub(super) context: Option<u64>,
    /// In what it keeps them.
    pub(super) cache: CacheBits,
    /// Whether it makes vectors or orders texts: it refuses completions then.
    pub(super) is_encoder: bool,
    /// Whether it keeps its slots in a folder of its own choice.
    pub(super) keeps_slots: bool,
    /// Whether it chooses among cards itself.
    pub(super) chooses_cards: bool,
    /// What is not carried over.
    pub(super) notes: Vec<String>,
}

/// Whether a program is llama.cpp's server.
pub(super) fn is_one(program: &str) -> bool {
    let name = Path::new(program).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let rest = name.strip_suffix(".exe").unwrap_or(name).strip_prefix(PROGRAM);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_', '.']))
}

/// Whether the program is the one that the plugin looks for where none is named.
pub(super) fn is_usual(program: &str) -> bool {
    program == PROGRAM
}

/// Takes a command line apart.
pub(super) fn read(words: &[String]) -> Server {
    let mut server = Server { binary: words.first().cloned().unwrap_or_default(), ..Server::default() };
    let mut rest = words.iter().skip(1).peekable();
    let (mut repo, mut file) = (None, None);
    while let Some(word) = rest.next() {
        let (flag, joined) = match word.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => (flag, Some(value.to_owned())),
            _ => (word.as_str(), None),
        };
        let left_out = LEFT_OUT.iter().find(|(name, _)| *name == flag);
        let is_taken = left_out.is_some()
            || [&MODEL[..], &OWN, &HUB_REPO, &HUB_FILE, &HUB_TOKEN].iter().any(|flags| flags.contains(&flag));
        if !is_taken {
            let value = joined.as_deref().or_else(|| rest.peek().map(|word| word.as_str()));
            server.heed(flag, value);
            server.args.push(word.clone());
            continue;
        }
        let Some(value) = joined.or_else(|| rest.next().cloned()) else {
            server.notes.push(format!("`{flag}` has no value, and is left out"));
            continue;
        };
        match flag {
            _ if MODEL.contains(&flag) => server.model = Some(value),
            _ if HUB_REPO.contains(&flag) => repo = Some(value),
            _ if HUB_FILE.contains(&flag) => file = Some(value),
            _ if HUB_TOKEN.contains(&flag) => {
                server.notes.push(format!("`{flag}` is left out: the host fetches with what HF_TOKEN holds"));
            }
            _ => {
                if let Some((_, why)) = left_out {
                    server.notes.push(format!("`{flag}` is left out: {why}"));
                }
            }
        }
    }
    if server.chooses_cards {
        server.notes.push(
            "its arguments choose among cards: the host counts its memory on one device, and does not know of the others".to_owned(),
        );
    }
    match (repo, file) {
        (Some(repo), Some(file)) if server.model.is_none() => {
            let repo = repo.split_once(':').map_or(repo.as_str(), |(repo, _)| repo).to_owned();
            server.hub = Some((repo, file));
        }
        (repo, file) => {
            // It finds the file itself.
            for (flag, value) in [("-hf", repo), ("--hf-file", file)] {
                server.args.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
            }
        }
    }
    server
}

impl Server {
    /// Notices what the host must know of what it is told.
    fn heed(&mut self, flag: &str, value: Option<&str>) {
        match flag {
            "-c" | "--ctx-size" => self.context = value.and_then(|value| value.parse().ok()),
            "-ctk" | "--cache-type-k" => self.cache.keys = value.and_then(bits).unwrap_or(self.cache.keys),
            "-ctv" | "--cache-type-v" => self.cache.values = value.and_then(bits).unwrap_or(self.cache.values),
            "--slot-save-path" => self.keeps_slots = true,
            _ if EMBEDDING.contains(&flag) || RERANKING.contains(&flag) => self.is_encoder = true,
            _ if CARDS.contains(&flag) => self.chooses_cards = true,
            _ if OTHER_FILES.contains(&flag) => self.files.extend(value.map(str::to_owned)),
            _ => {}
        }
    }
}

/// Bits of an element of a type of cache, the scales of its blocks among them, rounded up.
fn bits(name: &str) -> Option<u64> {
    Some(match name {
        "f32" => 32,
        "f16" | "bf16" => 16,
        "q8_0" => 9,
        "q5_0" | "q5_1" => 6,
        "q4_0" | "q4_1" | "iq4_nl" => 5,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_line(line: &str) -> Server {
        read(&shlex::split(line).unwrap())
    }

    #[test]
    fn what_the_plugin_says_is_taken_out_and_the_rest_stays_in_order() {
        let server = read_line(
            "/opt/llama-server-b5 --host 0.0.0.0 -m /m/x.gguf --port=9 -c 4096 -ngl 99 --mmproj /m/p.gguf -ctk q8_0 --jinja",
        );
        assert_eq!(server.args.join(" "), "-c 4096 -ngl 99 --mmproj /m/p.gguf -ctk q8_0 --jinja");
        assert_eq!((server.binary.as_str(), server.model.as_deref()), ("/opt/llama-server-b5", Some("/m/x.gguf")));
        assert_eq!((server.context, server.cache), (Some(4096), CacheBits { keys: 9, values: 16 }));
        assert_eq!(server.files, ["/m/p.gguf"]);
        assert!(server.notes.is_empty() && !server.is_encoder && !server.keeps_slots);
    }

    #[test]
    fn repositories_are_sources_where_the_file_is_named_and_stay_where_not() {
        let server = read_line("llama-server -hf o/r:Q4_K_M --hf-file r-q4.gguf -hft secret");
        assert_eq!((server.hub, server.args.len()), (Some(("o/r".into(), "r-q4.gguf".into())), 0));
        assert!(server.notes[0].contains("HF_TOKEN") && !server.notes[0].contains("secret"));
        let server = read_line("llama-server --hf-repo o/r:Q4_K_M --jinja");
        assert_eq!((server.hub, server.args.join(" ")), (None, "--jinja -hf o/r:Q4_K_M".to_owned()));
    }

    #[test]
    fn keys_and_certificates_are_left_out_and_told_without_their_values() {
        let server =
            read_line("llama-server -m x --api-key hunter2 --ssl-key-file k.pem --embeddings --slot-save-path /s");
        assert_eq!(server.args.join(" "), "--embeddings --slot-save-path /s");
        assert!(server.notes.len() == 2 && !server.notes.concat().contains("hunter2"), "{:?}", server.notes);
        assert!(server.is_encoder && server.keeps_slots);
        assert!(read_line("llama-server -m").notes[0].contains("has no value"));
    }

    #[test]
    fn builds_of_it_are_known_by_their_names() {
        for name in ["llama-server", "/a/llama-server-ec9e0301", "llama-server.exe", "./llama-server_vulkan"] {
            assert!(is_one(name), "{name}");
        }
        for name in ["llama-servers", "my-llama-server", "llama-server/run", "vllm", ""] {
            assert!(!is_one(name), "{name}");
        }
    }
}
