//! How `describe()` goes wrong: no option can say it, since it is asked before there are any, and whoever is asked has neither
//! the environment nor the files of whoever asks. So it is written into the plugin's own file, in place of a name.

use std::io::Write;

use schemars::Schema;

/// What a test writes another name over, padded with dots.
#[used]
static FAULT: [u8; 32] = *b"describe:nothing................";
/// Bytes of the longest description.
const ENDLESS_BYTES: usize = 100 << 20;

/// Does what is written in this file.
pub(crate) fn misbehave(schema: &mut Schema) {
    let fault = std::hint::black_box(&FAULT);
    let fault = String::from_utf8_lossy(fault);
    match fault.trim_end_matches('.').trim_start_matches("describe:") {
        "panic" => panic!("a panic in describe, as asked"),
        "abort" => std::process::abort(),
        "exit" => leave(),
        "hang" => super::hang(),
        "flood" => {
            for _ in 0..1 << 20 {
                let _ = writeln!(std::io::stdout(), "a line of a flood that nobody asked for, and that nobody reads");
            }
        }
        "garble" => super::garble(),
        "endless" => {
            schema.insert("description".to_owned(), "d".repeat(ENDLESS_BYTES).into());
        }
        "circle" => {
            schema.insert("$ref".to_owned(), "#".into());
        }
        _ => {}
    }
}

#[expect(clippy::exit, reason = "it is the fault")]
fn leave() {
    std::process::exit(0)
}
