//! The layout fingerprint: a canonical text of every type that crosses, and its SHA-256.
//!
//! The text is committed as `abi.txt` beside the manifest; a test compares it with the real layout and the hash with
//! the constant. `cargo xtask abi-snapshot` writes both anew when the ABI is meant to change.

use std::collections::BTreeMap;
use std::fmt::Write;

use abi_stable::StableAbi;
use abi_stable::type_layout::TypeLayout;

/// SHA-256 of `abi.txt`.
pub const FINGERPRINT: [u8; 32] = *include_bytes!("fingerprint.bin");

/// The canonical text of the root module's layout: package, type, size, alignment, fields, function signatures.
pub fn layout_text() -> String {
    let mut seen = BTreeMap::new();
    visit(<super::Root_Ref as StableAbi>::LAYOUT, &mut seen);
    let mut lines: Vec<String> = seen.into_values().collect();
    lines.sort();
    lines.dedup();
    lines.concat()
}

fn visit(layout: &'static TypeLayout, seen: &mut BTreeMap<usize, String>) {
    let key = std::ptr::from_ref(layout) as usize;
    if seen.contains_key(&key) {
        return;
    }
    let mut text = format!(
        "{} {} size={} align={} repr={:?}\n",
        layout.package(),
        layout.full_type(),
        layout.size(),
        layout.alignment(),
        layout.repr_attr()
    );
    if let Some(fields) = layout.get_fields() {
        for field in fields {
            let _ = writeln!(text, "  {}: {}", field.name(), field.full_type());
            for function in field.function_range().iter() {
                let _ = writeln!(text, "    {function}");
            }
        }
    }
    seen.insert(key, text);
    for get in layout.shared_vars().type_layouts() {
        visit(get(), seen);
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    #[test]
    fn snapshot_is_the_layout() {
        let text = super::layout_text();
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("AIHOST_BLESS").is_some() {
            std::fs::write(root.join("abi.txt"), &text).unwrap();
            std::fs::write(root.join("src/fingerprint.bin"), Sha256::digest(&text)).unwrap();
            return;
        }
        let committed = std::fs::read_to_string(root.join("abi.txt")).unwrap();
        assert_eq!(
            committed, text,
            "the ABI changed: if that is meant, run `cargo xtask abi-snapshot` and say so in docs/CHANGELOG.md"
        );
        assert_eq!(Sha256::digest(&text)[..], super::FINGERPRINT[..]);
    }
}
