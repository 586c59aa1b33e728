//! Token ids held against llama.cpp's own vectors: its models/ggml-vocab-*.gguf, with texts and their ids beside them, which are too
//! large for this repository.

use std::path::{Path, PathBuf};

use aihost_engine::files::Gguf;
use candle_llm::tokenizer::Tokenizer;

/// What its vectors have between two texts.
const BETWEEN: &str = "\n__ggml_vocab_test__\n";
/// Vocabularies of a kind that makes no text.
const OTHER_KINDS: [&str; 1] = ["ggml-vocab-bert-bge.gguf"];

/// The vocabularies that have vectors.
fn vocabularies(source: &Path) -> Vec<PathBuf> {
    let models = std::fs::read_dir(source.join("models")).expect("a folder of llama.cpp's source has models");
    let paths = models.map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<PathBuf> = paths.filter(|path| beside(path, "inp").is_file()).collect();
    paths.sort();
    paths.retain(|path| !OTHER_KINDS.iter().any(|name| path.ends_with(name)));
    paths
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

#[test]
#[ignore = "AIHOST_LLAMA_CPP names a folder of llama.cpp's source; `cargo xtask ci --full` runs it where there is one"]
fn ids_are_those_of_llama_cpp() {
    let source = PathBuf::from(std::env::var_os("AIHOST_LLAMA_CPP").expect("it names a folder"));
    let (mut equal, mut wrong) = (0, Vec::new());
    let paths = vocabularies(&source);
    assert!(paths.len() >= 14, "{} vocabularies", paths.len());
    for path in &paths {
        let read = |ending| std::fs::read_to_string(beside(path, ending)).expect("a vector");
        let gguf = Gguf::open(path).expect("opens");
        let tokens = gguf.texts("tokenizer.ggml.tokens").expect("texts").expect("tokens").len();
        let tokenizer = Tokenizer::of_gguf(&gguf, tokens).expect("is known");
        let name = path.file_name().expect("a name").display().to_string();
        let before = wrong.len();
        for (text, ids) in read("inp").split(BETWEEN).zip(read("out").lines()) {
            let wanted: Vec<u32> = ids.split_whitespace().map(|id| id.parse().expect("an id")).collect();
            let mut found = tokenizer.encode(text).expect("encodes");
            found.drain(..usize::from(tokenizer.added_bos().is_some()));
            if found == wanted {
                equal += 1;
            } else {
                wrong.push(format!("{name}: {text:?} is {found:?} in place of {wanted:?}"));
            }
        }
        println!("{name}: {} differ", wrong.len() - before);
    }
    println!("{equal} of {} are equal", equal + wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
