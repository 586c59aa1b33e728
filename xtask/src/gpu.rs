//! Says so when this machine has a GPU that no built plugin can use.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::shell;
use crate::workspace::Workspace;

/// First bytes of a plugin's descriptor, then the header's size and the manifest's size as little-endian u32.
const MAGIC: &[u8] = b"AIHOSTP\x01";

/// One paragraph, or nothing where there is no GPU or a plugin that uses it.
pub(crate) fn notice(workspace: &Workspace, plugins_dir: &Path) -> Option<String> {
    let found = shell::probe("nvidia-smi", &["-L"])?;
    let gpu = found.lines().next().filter(|line| line.starts_with("GPU"))?.split(" (").next()?;
    if has_cuda_plugin(plugins_dir) {
        return None;
    }
    Some(if workspace.plugins().iter().any(|plugin| plugin.cuda && !plugin.fixture) {
        format!(
            "note: this machine has a GPU ({gpu}), but no plugin in {} is built for CUDA, so models will run on the CPU.\n\
             note: `cargo xtask build-plugins --cuda` builds them.",
            plugins_dir.display()
        )
    } else {
        format!(
            "note: this machine has a GPU ({gpu}), but no plugin of this checkout has a CUDA build: models will run on the CPU."
        )
    })
}

/// Whether a plugin file in the folder names `cuda` among its devices.
fn has_cuda_plugin(folder: &Path) -> bool {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "so")).any(|path| is_cuda_plugin(&path))
}

/// Whether this file is a plugin that names `cuda` among its devices.
pub(crate) fn is_cuda_plugin(file: &Path) -> bool {
    fs::read(file).is_ok_and(|bytes| names_cuda(&bytes))
}

fn names_cuda(file: &[u8]) -> bool {
    file.windows(MAGIC.len())
        .enumerate()
        .filter(|(_, window)| *window == MAGIC)
        .filter_map(|(at, _)| manifest(&file[at..]))
        .any(|manifest| manifest["devices"].as_array().is_some_and(|all| all.iter().any(|device| device == "cuda")))
}

fn manifest(descriptor: &[u8]) -> Option<Value> {
    let number = |at: usize| {
        let bytes: [u8; 4] = descriptor.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes) as usize)
    };
    let (start, size) = (number(8)?, number(12)?);
    serde_json::from_slice(descriptor.get(start..start.checked_add(size)?)?).ok()
}

#[cfg(test)]
mod tests {
    use super::{MAGIC, names_cuda};

    fn file(manifest: &str) -> Vec<u8> {
        let sizes = [16u32.to_le_bytes(), u32::try_from(manifest.len()).unwrap().to_le_bytes()].concat();
        [b"\x7fELF...", MAGIC, &sizes, manifest.as_bytes(), b"rest"].concat()
    }

    #[test]
    fn the_manifest_in_the_file_decides() {
        assert!(names_cuda(&file(r#"{"id":"x","devices":["cpu", "cuda"]}"#)));
        assert!(!names_cuda(&file(r#"{"id":"cuda","devices":["cpu"]}"#)));
        assert!(!names_cuda(b"AIHOSTP\x01\xff\xff\xff\xff\xff\xff\xff\xff cuda"));
    }
}
