//! What ends a turn, by name (llama.cpp's llama-vocab.cpp): files forget to say so, or give such tokens the type of a text.

use std::collections::HashSet;

use super::{CONTROL, NORMAL};

/// Tokens that end a turn.
const ENDS: [&str; 27] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "< EOT >",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    "[e~[",
    // Where a file of a repository that is filled in ends.
    "<|fim_pad|>",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<|file_sep|>",
];
/// An end, unless a vocabulary has all of one of these: then it stands between the parts of one answer.
const MESSAGE_END: &str = "<|end|>";
const WITH_MESSAGES: [&[&str]; 2] = [&["<|return|>", "<|call|>"], &["<|calls|>", "<|flush|>"]];
/// An end, unless a vocabulary has one of these: then it is text.
const OLD_END: &str = "</s>";
const WITHOUT_OLD_END: [&str; 2] = ["<|tool_response>", "<|plamo:eos|>"];

/// Whether tokens of the type of a text may end a turn too.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Types {
    /// They may: files are known to err.
    Doubted,
    Trusted,
}

/// The tokens that end a turn by their names. They are made control tokens, whatever they were.
pub(super) fn by_name(tokens: &[&str], types: &mut [i32], trust: Types) -> HashSet<u32> {
    let is_candidate = |token: &str| ENDS.contains(&token) || WITHOUT_OLD_END.contains(&token);
    let found = tokens
        .iter()
        .copied()
        .zip(types.iter())
        .enumerate()
        .filter(|(_, (token, kind))| is_candidate(token) && (trust == Types::Doubted || **kind != NORMAL));
    let found: Vec<(usize, &str)> = found.map(|(id, (token, _))| (id, token)).collect();
    let has = |name: &&str| found.iter().any(|(_, token)| token == name);
    let has_messages = WITH_MESSAGES.iter().any(|names| names.iter().all(has));
    let has_no_old_end = WITHOUT_OLD_END.iter().any(has);
    let mut ends = HashSet::new();
    for (id, token) in found {
        if token == OLD_END && has_no_old_end {
            types[id] = NORMAL;
            continue;
        }
        if !ENDS.contains(&token) {
            continue;
        }
        if types[id] != CONTROL {
            tracing::warn!(id, token, "the file says that this token is text; it ends turns");
            types[id] = CONTROL;
        }
        if !(token == MESSAGE_END && has_messages) {
            ends.insert(id as u32);
        }
    }
    ends
}
