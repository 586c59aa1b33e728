//! The sources of the plugin SDK, as they were when this program was built. An author needs no clone of a repository.

/// What `vendor/` calls the SDK.
pub(super) const FOLDER: &str = "aihost-plugin-api";

/// Paths from the SDK's folder, and what they hold.
pub(super) static FILES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/sdk_files.rs"));

/// A text of the SDK.
pub(super) fn text(path: &str) -> Option<&'static str> {
    let (_, bytes) = FILES.iter().find(|(name, _)| *name == path)?;
    std::str::from_utf8(bytes).ok()
}

/// The Rust that the SDK needs at least.
pub(super) fn rust_version() -> &'static str {
    let line =
        text("Cargo.toml").and_then(|manifest| manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")));
    line.unwrap_or_default().trim_matches('"')
}

/// Whether a manifest is that of the SDK.
pub(super) fn is_manifest(text: &str) -> bool {
    text.lines().any(|line| line.replace(' ', "") == r#"name="aihost-plugin-api""#)
}

#[cfg(test)]
mod tests {
    use aihost_plugin_api::abi::FINGERPRINT;

    use super::{FILES, is_manifest, rust_version, text};

    #[test]
    fn what_is_packed_is_the_sdk_that_this_host_is_built_with() {
        let (_, fingerprint) = FILES.iter().find(|(name, _)| *name == "abi/src/fingerprint.bin").unwrap();
        assert_eq!(*fingerprint, FINGERPRINT);
        assert!(rust_version().starts_with("1."), "{}", rust_version());
        for name in ["LICENSE-MIT", "abi/build.rs", "abi/abi.txt", "src/sdk/export.rs", "examples/text.rs"] {
            assert!(text(name).is_some(), "{name}");
        }
        assert!(FILES.iter().all(|(name, _)| !name.starts_with(['/', '.'])), "a path leads out of its folder");
    }

    #[test]
    fn what_is_packed_needs_no_workspace_around_it() {
        for name in ["Cargo.toml", "abi/Cargo.toml"] {
            let manifest = text(name).unwrap();
            let inherited = manifest.lines().filter(|line| !line.starts_with('#') && line.contains("workspace"));
            assert_eq!(inherited.collect::<Vec<_>>(), Vec::<&str>::new(), "{name}");
        }
        assert!(is_manifest(text("Cargo.toml").unwrap()) && !is_manifest(text("abi/Cargo.toml").unwrap()));
    }
}
