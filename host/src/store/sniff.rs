//! Whether the first bytes of a file are those of what it is called, where no digest says more: a page that asks for a login is
//! no model, whatever its name.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Bytes that are looked at.
const HEAD_BYTES: u64 = 512;
/// Bytes of the longest header of a safetensors file, by its format.
const SAFETENSORS_HEADER_MAX: u64 = 100_000_000;

/// Why the file at `path` cannot be what `name` says; nothing if it may be.
pub(super) fn foreign(path: &Path, name: &Path) -> io::Result<Option<String>> {
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let mut head = Vec::new();
    file.take(HEAD_BYTES).read_to_end(&mut head)?;
    let extension = name.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    Ok(judge(&head, bytes, extension.as_deref().unwrap_or_default()).map(|what| {
        format!(
            "{what}: its {bytes} bytes are not the file that was asked for; check the address, or give its `sha256:`"
        )
    }))
}

fn judge(head: &[u8], bytes: u64, extension: &str) -> Option<&'static str> {
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let begins = |with: &[u8]| text.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    let is_page = !matches!(extension, "html" | "htm") && (begins(b"<!doctype html") || begins(b"<html"));
    match extension {
        _ if bytes == 0 => Some("it is empty"),
        _ if is_page => Some("it is a web page"),
        "gguf" if !head.starts_with(b"GGUF") => Some("it does not begin as a GGUF file does"),
        "safetensors" if !is_safetensors(head, bytes) => Some("it does not begin as a safetensors file does"),
        extension if !matches!(extension, "xml" | "svg") && begins(b"<?xml") => Some("it is an XML document"),
        _ => None,
    }
}

/// Eight bytes of length, and a JSON object of that length.
fn is_safetensors(head: &[u8], bytes: u64) -> bool {
    let Some((length, rest)) = head.split_first_chunk::<8>() else { return false };
    let length = u64::from_le_bytes(*length);
    rest.first() == Some(&b'{') && length <= SAFETENSORS_HEADER_MAX && length + 8 <= bytes
}

#[cfg(test)]
mod tests {
    use super::judge;

    #[test]
    fn what_a_file_is_not_is_told_by_its_first_bytes() {
        let tensors = [&17_u64.to_le_bytes()[..], b"{\"__metadata__\":{}"].concat();
        for (head, extension, is_foreign) in [
            (&b"GGUF\x03\0\0\0"[..], "gguf", false),
            (b"<!DOCTYPE html><html>", "gguf", true),
            (b"\x1f\x8b\x08", "gguf", true),
            (b"{\"error\": \"no\"}", "gguf", true),
            (b"", "gguf", true),
            (&tensors, "safetensors", false),
            (b"GGUF\x03\0\0\0{", "safetensors", true),
            (b"\xef\xbb\xbf \n<HTML lang=en>", "bin", true),
            (b"<html>", "html", false),
            (b"<?xml version='1.0'?><Error>", "bin", true),
            (b"<?xml version='1.0'?>", "xml", false),
            (b"{\"a\": 1}", "json", false),
            (b"\x80\x02", "bin", false),
            (b"", "", true),
        ] {
            let told = judge(head, head.len() as u64, extension);
            assert_eq!(told.is_some(), is_foreign, "{extension}: {told:?} of {}", String::from_utf8_lossy(head));
        }
        assert!(judge(&tensors, 20, "safetensors").is_some(), "its header is longer than the file");
    }
}
