//! The wheel of `aihost-service`, made from its sources, which this plugin carries. The same bytes each time, so that their hash
//! says which it is.

use std::fmt::Write as _;
use std::io::{Cursor, Write};

use aihost_plugin_api::{Error, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

/// How the file is called, by the rules for names of wheels.
pub(crate) const FILE_NAME: &str = "aihost_service-0.1.0-py3-none-any.whl";

const SOURCES: [(&str, &str); 2] = [
    ("aihost_service/__init__.py", include_str!("../python/aihost_service/__init__.py")),
    ("core/base_service.py", include_str!("../python/core/base_service.py")),
];
/// As `pyproject.toml` has it.
const METADATA: &str = "Metadata-Version: 2.1
Name: aihost-service
Version: 0.1.0
Summary: The base class of model services in Python that aihost serves
License: MIT OR Apache-2.0
Requires-Python: >=3.9
Requires-Dist: fastapi>=0.100,<1
Requires-Dist: uvicorn>=0.23,<1
";
const WHEEL: &str = "Wheel-Version: 1.0
Generator: aihost
Root-Is-Purelib: true
Tag: py3-none-any
";
const INFO_FOLDER: &str = "aihost_service-0.1.0.dist-info";
const FILE_MODE: u32 = 0o644;

/// Its bytes: a zip, stored, with the hash of each file in its record.
pub(crate) fn bytes() -> Result<Vec<u8>> {
    let info = |name: &str| format!("{INFO_FOLDER}/{name}");
    let mut files: Vec<(String, &str)> = SOURCES.iter().map(|(name, text)| ((*name).to_owned(), *text)).collect();
    files.push((info("METADATA"), METADATA));
    files.push((info("WHEEL"), WHEEL));
    let mut record = String::new();
    for (name, text) in &files {
        let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(text));
        // A String takes all of it.
        let _ = writeln!(record, "{name},sha256={hash},{}", text.len());
    }
    record += &format!("{INFO_FOLDER}/RECORD,,\n");
    files.push((info("RECORD"), &record));
    zipped(&files).map_err(|e| Error::internal(format!("the wheel of aihost-service cannot be made: {e}")))
}

fn zipped(files: &[(String, &str)]) -> zip::result::ZipResult<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .unix_permissions(FILE_MODE);
    for (name, text) in files {
        zip.start_file(name.as_str(), options)?;
        zip.write_all(text.as_bytes())?;
    }
    Ok(zip.finish()?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::{FILE_NAME, METADATA, SOURCES, bytes};

    #[test]
    fn it_is_the_same_each_time_and_says_what_its_project_says() {
        assert_eq!(bytes().unwrap(), bytes().unwrap());
        let project = include_str!("../python/pyproject.toml");
        let value = |key: &str| {
            let line = project.lines().find_map(|line| line.strip_prefix(&format!("{key} = "))).unwrap();
            line.trim_matches('"').to_owned()
        };
        for (key, field) in [
            ("name", "Name"),
            ("version", "Version"),
            ("description", "Summary"),
            ("requires-python", "Requires-Python"),
        ] {
            let wanted = format!("{field}: {}", value(key));
            assert!(METADATA.lines().any(|line| line == wanted), "{wanted}");
        }
        let needs: Vec<String> = serde_json::from_str(&value("dependencies")).unwrap();
        let stated: Vec<&str> = METADATA.lines().filter_map(|line| line.strip_prefix("Requires-Dist: ")).collect();
        assert_eq!(needs, stated);
        assert!(FILE_NAME.starts_with(&format!("aihost_service-{}-", value("version"))));
        assert!(SOURCES[0].1.contains(&format!("__version__ = \"{}\"", value("version"))));
        assert!(
            SOURCES.iter().all(|(name, _)| *name != "core/__init__.py"),
            "a core/ without one would not come first"
        );
    }
}
