//! Whether this host can load a plugin, by what its descriptor says: its target, its ABI version and its ABI fingerprint.
//!
//! It reads no file.

use aihost_plugin_api::abi::{ABI_MAJOR, ABI_MINOR, Descriptor, FINGERPRINT};

use super::descriptor::{Described, text};
use super::registry::kind_served;
use crate::domain::{Device, excerpt, some_names};

/// Kinds of devices, as manifests name them.
const DEVICES: [&str; 2] = [Device::Cpu.kind(), Device::Cuda(0).kind()];

/// Bytes that a sentence repeats of how a plugin panics.
const PANIC_BYTES: usize = 8;

/// Why this host cannot load what is described, in one sentence without the file's name; `None` if it can.
pub fn incompatible(described: &Described) -> Option<String> {
    let mine = Descriptor::new("", []).header;
    let rebuild = "rebuild it with this host's SDK, which `aihost plugins new` writes into `vendor/`";
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
    let manifest = &described.manifest;
    if !manifest.kinds.iter().any(|kind| kind_served(kind).is_some()) {
        let kinds = some_names(manifest.kinds.iter().map(String::as_str));
        return Some(format!(
            "it serves {kinds}, which this host does not know; update the host, or take an older build of the plugin"
        ));
    }
    if !manifest.devices.iter().any(|kind| DEVICES.contains(&kind.as_str())) {
        let devices = some_names(manifest.devices.iter().map(String::as_str));
        let named =
            if manifest.devices.is_empty() { "names no devices".to_owned() } else { format!("runs on {devices}") };
        return Some(format!(
            "it {named}, and this host knows {}; correct `devices:` of its `export_plugin!` and rebuild it",
            DEVICES.join(" and ")
        ));
    }
    None
}

/// What an operator should know of a plugin that can be loaded, in one sentence without the file's name.
pub fn caution(described: &Described) -> Option<String> {
    (described.panic != "unwind").then(|| {
        format!(
            "it is built with panic = \"{}\": a panic ends its worker, and every request there, instead of one; leave `panic` out of \
             its Cargo.toml and rebuild it",
            excerpt(&described.panic, PANIC_BYTES)
        )
    })
}

fn short(fingerprint: &[u8; 32]) -> String {
    crate::domain::hex(&fingerprint[..4])
}
