//! Whether this host can load a plugin, by what its descriptor says: its target, its ABI version and its ABI fingerprint.
//!
//! It reads no file.

use aihost_plugin_api::abi::{ABI_MAJOR, ABI_MINOR, Descriptor, FINGERPRINT};

use super::descriptor::{Described, text};

/// Why this host cannot load what is described, in one sentence without the file's name; `None` if it can.
pub fn incompatible(described: &Described) -> Option<String> {
    let mine = Descriptor::new("", []).header;
    let rebuild = "rebuild it against this host's aihost-plugin-api with `cargo xtask build-plugins`";
    let target = text(&mine.target);
    if described.target != target {
        return Some(format!("it is built for {}, this host for {target}; {rebuild}", described.target));
    }
    let (major, minor) = described.abi;
    if major != ABI_MAJOR {
        return Some(format!(
            "it speaks plugin ABI {major}.{minor}, this host ABI {ABI_MAJOR}.{ABI_MINOR}; {}",
            if major > ABI_MAJOR { "update the host, or take an older build of the plugin" } else { rebuild }
        ));
    }
    if major == 0 && described.fingerprint != FINGERPRINT {
        return Some(format!(
            "its ABI layout {} is not this host's {} (ABI 0 is a preview: both must be equal); {rebuild}",
            short(&described.fingerprint),
            short(&FINGERPRINT)
        ));
    }
    None
}

fn short(fingerprint: &[u8; 32]) -> String {
    crate::domain::hex(&fingerprint[..4])
}
