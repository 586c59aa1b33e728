//! Ten configurations in the forms of public ones, each a folder of `testdata`: what there is (`llama-swap.yaml`, or the files of
//! `tree.txt`), and the models.yaml that comes of it. `AIHOST_BLESS=1` writes the latter anew.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::cli::auto::gguf::tests::header_bytes;
use crate::config::{Env, Selection, parse, parse_size};

/// What a test's folder is called in what is expected.
const ROOT: &str = "/srv/models";
/// The configuration of a case of llama-swap's.
const LLAMA_SWAP: &str = "llama-swap.yaml";
/// The files of a case.
const TREE: &str = "tree.txt";
/// What comes of it.
const EXPECTED: &str = "models.yaml";

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/migrate/testdata")
}

/// A case's files in a folder.
fn lay_out(case: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    if case.join(LLAMA_SWAP).exists() {
        fs::copy(case.join(LLAMA_SWAP), folder.path().join(LLAMA_SWAP)).unwrap();
    }
    let tree = fs::read_to_string(case.join(TREE)).unwrap_or_default();
    for line in tree.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let mut words = line.splitn(3, ' ');
        let path = folder.path().join(words.next().unwrap());
        let (kind, rest) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match kind {
            "text" => fs::write(&path, rest).unwrap(),
            "gguf" => gguf(&path, rest),
            other => panic!("{}: `{other}` is no kind of file", case.display()),
        }
    }
    folder
}

/// A file of this size, key=value pairs in its header, and tensors of the types of `types=`.
fn gguf(path: &Path, words: &str) {
    let mut words = words.split(' ');
    let size = parse_size(words.next().unwrap()).unwrap();
    let pairs: Vec<(&str, &str)> = words.map(|word| word.split_once('=').unwrap()).collect();
    let (types, pairs): (Vec<_>, Vec<_>) = pairs.into_iter().partition(|(key, _)| *key == "types");
    let types: Vec<u32> =
        types.iter().flat_map(|(_, list)| list.split(',')).map(|kind| kind.parse().unwrap()).collect();
    fs::write(path, header_bytes(&pairs, &types)).unwrap();
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(size.0).unwrap();
}

fn context(folder: &Path) -> CommandContext {
    let folder = folder.to_str().unwrap();
    let env = Env::with(folder, [("ROOT", folder), ("HOME", folder), ("HF_TOKEN", "hf_0123456789")]);
    CommandContext { env, config: None }
}

fn arguments(from: &Path, output: Option<&str>, dry_run: bool) -> Arguments {
    Arguments { from: from.to_owned(), output: output.map(PathBuf::from), dry_run }
}

/// The host's own reader takes it, with all models in force.
fn check(text: &str) -> usize {
    let keys = [("OPENROUTER_KEY", "sk-or-0123456789abcdef"), ("SWAP_KEY", "sk-0123456789abcdef0")];
    let config = parse(text, Path::new("/m.yaml"), &Selection::default(), &Env::with("/", keys));
    config.unwrap_or_else(|error| panic!("{error}\n{text}")).models.len()
}

fn failure(folder: &Path, from: &str) -> (String, String) {
    let error = migrate(&context(folder), &arguments(Path::new(from), None, true)).unwrap_err();
    match error {
        CliError::Failed { message, hint } => (message, hint.unwrap_or_default()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_configuration_becomes_what_is_expected() {
    let mut cases: Vec<PathBuf> = fs::read_dir(testdata()).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 10, "{cases:?}");
    for case in cases {
        let folder = lay_out(&case);
        let root = folder.path().to_str().unwrap();
        let swap = folder.path().join(LLAMA_SWAP);
        let from = if swap.exists() { swap } else { folder.path().to_path_buf() };
        let context = context(folder.path());
        let source = source::find(&from, &context.env).unwrap();
        let mut plan = plan(&source, &from, &context).unwrap();
        plan.change(|text| text.replace(root, ROOT));
        let text = plan.text();
        assert_eq!(check(&text), plan.models(), "{}", case.display());
        // What is told on stderr stands in the file too.
        let unwrapped: Vec<&str> = text.split_whitespace().filter(|word| *word != "#").collect();
        let unwrapped = unwrapped.join(" ");
        for note in plan.told() {
            let note = note
                .split_once(": ")
                .filter(|(name, _)| plan.entries.iter().any(|e| e.name == *name))
                .map_or(note.as_str(), |(_, note)| note);
            let note =
                note.trim_start_matches("it is a comment, because ").split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(unwrapped.contains(&note), "{}: {note}\n{text}", case.display());
        }
        let expected = case.join(EXPECTED);
        if std::env::var_os("AIHOST_BLESS").is_some() {
            fs::write(&expected, &text).unwrap();
        }
        let wanted = fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(text, wanted, "{}: AIHOST_BLESS=1 writes it anew", case.display());
    }
}

#[test]
fn a_dry_run_prints_what_is_written_and_writes_nothing() {
    let folder = lay_out(&testdata().join("llama-swap-macros"));
    let (context, from) = (context(folder.path()), folder.path().join(LLAMA_SWAP));
    let printed = migrate(&context, &arguments(&from, None, true)).unwrap();
    let file = folder.path().join(EXPECTED);
    assert!(!file.exists());
    let written = migrate(&context, &arguments(&from, None, false)).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), printed.text);
    assert_eq!(written.text, format!("{}\n", file.display()));
    assert_eq!(written.notes[..printed.notes.len()], printed.notes);
    check(&printed.text);
    let to_stdout = migrate(&context, &arguments(&from, Some("-"), false)).unwrap();
    assert_eq!(to_stdout.text, printed.text);
}

#[test]
fn a_file_that_is_there_is_left_as_it_is() {
    let folder = lay_out(&testdata().join("llama-swap-macros"));
    let (context, from) = (context(folder.path()), folder.path().join(LLAMA_SWAP));
    let file = folder.path().join(EXPECTED);
    fs::write(&file, "mine").unwrap();
    let error = migrate(&context, &arguments(&from, None, false)).unwrap_err();
    assert!(error.to_string().contains("is there already and is left as it is"), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    let other = folder.path().join("other.yaml");
    migrate(&context, &arguments(&from, other.to_str(), false)).unwrap();
    assert!(other.exists());
}

#[test]
fn what_is_no_source_is_told_in_a_sentence_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("broken.yaml", "models:\n\t- x");
    write("ours.yaml", "models: {a: {type: text, plugin: candle-llm}}");
    write("other.yaml", "services: {a: 1}");
    write("text.gguf", "no weights");
    write("unset.yaml", "models: {a: {cmd: 'x ${env.NOT_SET}'}}");
    write("none.yaml", "models: {a: 1}\npeers: {p: {proxy: x, models: [m]}}");
    write("two/a.yaml", "models: {a: {cmd: x}}");
    write("two/b.yaml", "models: {a: {cmd: y}}");
    write("empty/x.txt", "");
    write("store/manifests/x", "");
    write("store/blobs/x", "");
    for (from, message, hint) in [
        ("nowhere", "there is no nowhere", "understood are"),
        ("broken.yaml", "cannot be read as YAML", "mend that line"),
        ("ours.yaml", "is a models.yaml of this host already", "check"),
        ("other.yaml", "nothing that can be migrated", "understood are"),
        ("text.gguf", "does not begin as a GGUF file does", "fetch it again"),
        ("unset.yaml", "names the variable NOT_SET", "export NOT_SET="),
        ("none.yaml", "there is no model in none.yaml", "name the file"),
        ("two", "has the model a, and so has another file", "name one of the files"),
        ("empty", "nothing that can be migrated", "understood are"),
        ("store", "there is no model in store", "name the file"),
        ("lmstudio", "there are no models of lmstudio here", "name the folder"),
    ] {
        let (told, to_do) = failure(folder.path(), from);
        assert!(told.contains(message) && !told.contains('\n'), "{from}: {told}");
        assert!(to_do.contains(hint), "{from}: {to_do}");
    }
}

#[test]
fn usual_places_stand_by_name() {
    let folder = lay_out(&testdata().join("ollama"));
    let usual = folder.path().join(".ollama/models");
    fs::create_dir_all(&usual).unwrap();
    for name in ["manifests", "blobs"] {
        fs::rename(folder.path().join(name), usual.join(name)).unwrap();
    }
    let told = migrate(&context(folder.path()), &arguments(Path::new("ollama"), None, true)).unwrap();
    assert!(check(&told.text) > 0);
}
