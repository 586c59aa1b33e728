//! The Python wheel: the files of the archive, where `pip install` puts programs and their data.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Doing, Result};
use crate::{shell, stage};

/// Writes the wheel's entries in order, each with its hash: what the format asks for, by the only library that is sure to be where
/// wheels are installed.
const PACK: &str = r#"
import base64, hashlib, os, sys, zipfile
folder, wheel, info = sys.argv[1:]
names = sorted(os.path.relpath(os.path.join(at, name), folder) for at, _, files in os.walk(folder) for name in files)
record = ""
with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as out:
    def add(name, data, mode):
        entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
        entry.external_attr, entry.compress_type = (0o100000 | mode) << 16, zipfile.ZIP_DEFLATED
        out.writestr(entry, data)
    for name in names:
        with open(os.path.join(folder, name), "rb") as file:
            data = file.read()
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(data)}\n"
        add(name, data, os.stat(os.path.join(folder, name)).st_mode & 0o777)
    add(f"{info}/RECORD", (record + f"{info}/RECORD,,\n").encode(), 0o644)
"#;

/// Makes the wheel of an archive's folder.
pub(super) fn write(folder: &Path, version: &str, glibc: &str, out: &Path) -> Result<PathBuf> {
    let tag = format!("py3-none-manylinux_{}_x86_64", glibc.replace('.', "_"));
    let (tree, info) = (out.join("wheel"), format!("aihost-{version}.dist-info"));
    if tree.exists() {
        fs::remove_dir_all(&tree).doing(format_args!("remove {}", tree.display()))?;
    }
    let data = tree.join(format!("aihost-{version}.data"));
    stage::copy_whole(&folder.join("bin/aihost"), &data.join("scripts/aihost"))?;
    for part in ["lib", "share"] {
        let place = data.join("data").join(part);
        fs::create_dir_all(&place).doing(format_args!("create {}", place.display()))?;
        shell::run(Command::new("cp").arg("-r").arg(folder.join(part).join(".")).arg(&place))?;
    }
    let about = format!(
        "Metadata-Version: 2.1\nName: aihost\nVersion: {version}\nSummary: Serves many generative models from one GPU machine behind one \
         OpenAI-compatible port\nLicense: MIT OR Apache-2.0\nRequires-Python: >=3.8\n"
    );
    let kind = format!("Wheel-Version: 1.0\nGenerator: xtask\nRoot-Is-Purelib: false\nTag: {tag}\n");
    for (name, text) in [("METADATA", &about), ("WHEEL", &kind)] {
        super::write(&tree.join(&info).join(name), text)?;
    }
    let wheel = out.join(format!("aihost-{version}-{tag}.whl"));
    shell::run(Command::new("python3").args(["-c", PACK]).arg(&tree).arg(&wheel).arg(&info))?;
    Ok(wheel)
}
