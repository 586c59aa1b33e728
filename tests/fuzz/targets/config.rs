//! A models.yaml: it is used, or refused with sentences that can be printed.

use std::path::Path;

use aihost::config::{self, Env, Selection};

/// Bytes of all that is told of one file.
const TOLD_BYTES_MAX: usize = 64 << 10;

/// Reads the input as models.yaml.
pub(super) fn run(input: &[u8]) {
    // What is not UTF-8 is refused before it is parsed.
    let Ok(text) = std::str::from_utf8(input) else { return };
    let env = Env::with("/nowhere", [("AIHOST_TEST_KEY", "0123456789abcdef0123456789abcdef"), ("HOME", "/nowhere")]);
    let read = || config::parse(text, Path::new("/nowhere/models.yaml"), &Selection::default(), &env);
    match read() {
        Ok(config) => {
            for (id, model) in &config.models {
                assert!(*id == model.id && model.replicas > 0, "{model:?}");
            }
            assert!(read().as_ref() == Ok(&config), "read twice, it means two things");
        }
        Err(error) => {
            let told = error.to_string();
            assert!(!error.problems.is_empty() && told.len() <= TOLD_BYTES_MAX, "{} bytes", told.len());
            let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
            assert!(!told.contains(steers), "it would steer a terminal: {told:?}");
            // YAML's lines end at more than line feeds, and the end of a text is behind its last line.
            let lines = 1 + text.matches(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count();
            let mut named = error.problems.iter().filter_map(|problem| problem.line);
            let beyond = named.find(|line| !(1..=lines + 1).contains(line));
            assert!(beyond.is_none(), "of {lines} lines, it names line {beyond:?}");
        }
    }
}
