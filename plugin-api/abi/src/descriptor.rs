//! Layer 0: what is known of a plugin file without running it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rules::{ID_BYTES, NAME_BYTES, NAMES_MAX, PROSE_BYTES, is_id, is_name, is_prose};

/// The ELF section that holds a [`Descriptor`].
pub const SECTION: &str = ".aihost.plugin";
/// First bytes of the section.
pub const MAGIC: [u8; 8] = *b"AIHOSTP\x01";
/// 0 is a preview: host and plugin must have equal fingerprints.
pub const ABI_MAJOR: u32 = 0;
/// Counts additions within a major.
pub const ABI_MINOR: u32 = 2;

/// The fixed part of the section, little-endian as x86-64 and AArch64 write it. Texts are padded with zero bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DescriptorHeader {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// Bytes of this header.
    pub header_size: u32,
    /// Bytes of the JSON manifest that follows it.
    pub manifest_size: u32,
    /// [`ABI_MAJOR`] it was built with.
    pub abi_major: u32,
    /// [`ABI_MINOR`] it was built with.
    pub abi_minor: u32,
    /// SHA-256 of the layout text it was built with.
    pub fingerprint: [u8; 32],
    /// `rustc --version` of the build.
    pub rustc: [u8; 64],
    /// Target triple of the build.
    pub target: [u8; 48],
    /// `unwind` or `abort`.
    pub panic: [u8; 8],
    /// Version of the SDK that it was built with.
    pub sdk: [u8; 24],
}

/// Header and manifest as one static.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Descriptor<const N: usize> {
    /// What every descriptor has, of fixed size.
    pub header: DescriptorHeader,
    /// JSON of a [`Manifest`].
    pub manifest: [u8; N],
}

impl<const N: usize> Descriptor<N> {
    /// The descriptor of a plugin that is built now, with this manifest and by an SDK of this version.
    pub const fn new(sdk: &str, manifest: [u8; N]) -> Self {
        Self {
            header: DescriptorHeader {
                magic: MAGIC,
                header_size: size_of::<DescriptorHeader>() as u32,
                manifest_size: N as u32,
                abi_major: ABI_MAJOR,
                abi_minor: ABI_MINOR,
                fingerprint: super::FINGERPRINT,
                rustc: fixed(env!("AIHOST_RUSTC")),
                target: fixed(env!("AIHOST_TARGET")),
                panic: fixed(if cfg!(panic = "unwind") { "unwind" } else { "abort" }),
                sdk: fixed(sdk),
            },
            manifest,
        }
    }
}

/// A text as a zero-padded array; what does not fit is cut.
pub const fn fixed<const N: usize>(text: &str) -> [u8; N] {
    let bytes = text.as_bytes();
    let mut out = [0; N];
    let mut i = 0;
    while i < bytes.len() && i < N {
        out[i] = bytes[i];
        i += 1;
    }
    out
}

/// What a plugin says of itself in its file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Manifest {
    /// `vendor/name`; a bare name is one of aihost's own.
    pub id: String,
    /// The plugin's version, semver.
    pub version: String,
    /// From Cargo.toml, joined by `:`.
    #[serde(default)]
    pub authors: String,
    /// An SPDX expression, from Cargo.toml.
    #[serde(default)]
    pub license: String,
    /// What the plugin serves, in one line.
    #[serde(default)]
    pub description: String,
    /// `text`, `image`, `audio`, ...
    pub kinds: Vec<String>,
    /// Weight formats: `gguf`, `safetensors`, ...
    #[serde(default)]
    pub formats: Vec<String>,
    /// `cpu`, `cuda`.
    pub devices: Vec<String>,
    /// Requests an instance serves at once.
    #[serde(default = "one")]
    pub max_concurrency: u32,
    /// Whether instances can park.
    #[serde(default)]
    pub parks: bool,
    /// Whether memory no longer grows after load: nothing is allocated, and nothing allocated is touched for the first time.
    #[serde(default)]
    pub memory_static: bool,
    /// Whether it makes something before a model's first load, when its files are fetched.
    #[serde(default)]
    pub prepares: bool,
    /// What it may do beside reading its model's files: `network`, `subprocess`, `files`. A host that does not know one of them
    /// does not load the plugin.
    #[serde(default)]
    pub permissions: Vec<String>,
    /// What its SDK speaks beyond the layout, such as `blocks`; a host that does not know one of them does without.
    #[serde(default)]
    pub features: Vec<String>,
}

fn one() -> u32 {
    1
}

/// Why a manifest is not one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestError(pub String);

impl std::fmt::Display for ManifestError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ManifestError {}

impl Manifest {
    /// Parses and checks the JSON of a descriptor. What passes may be printed as it is, and is short.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = serde_json::from_slice(json)
            .map_err(|e| ManifestError(format!("its manifest is not valid: {}", shown(&e.to_string()))))?;
        if !is_id(&manifest.id) {
            return Err(ManifestError(format!(
                "its id `{}` is not `name` or `vendor/name` in a-z, 0-9, `-`, `_`, `.`, a letter or digit first, of at most {ID_BYTES} bytes",
                shown(&manifest.id)
            )));
        }
        if manifest.version.len() > NAME_BYTES {
            return Err(ManifestError(format!(
                "its version has {} bytes, of at most {NAME_BYTES}",
                manifest.version.len()
            )));
        }
        manifest.check_names()?;
        manifest.check_prose()?;
        if manifest.kinds.is_empty() || manifest.max_concurrency == 0 {
            return Err(ManifestError("its manifest names no kind, or a concurrency of 0".into()));
        }
        Ok(manifest)
    }

    fn check_names(&self) -> Result<(), ManifestError> {
        let lists = [
            ("kinds", &self.kinds),
            ("devices", &self.devices),
            ("formats", &self.formats),
            ("permissions", &self.permissions),
            ("features", &self.features),
        ];
        for (field, names) in lists {
            if names.len() > NAMES_MAX {
                return Err(ManifestError(format!("its `{field}` has {} names, of at most {NAMES_MAX}", names.len())));
            }
            if let Some(name) = names.iter().find(|name| !is_name(name)) {
                return Err(ManifestError(format!(
                    "its `{field}` has `{}`, which is no name in a-z, 0-9, `-`, `_`, `.` of at most {NAME_BYTES} bytes",
                    shown(name)
                )));
            }
        }
        Ok(())
    }

    fn check_prose(&self) -> Result<(), ManifestError> {
        let texts = [
            ("version", &self.version),
            ("authors", &self.authors),
            ("license", &self.license),
            ("description", &self.description),
        ];
        for (field, text) in texts {
            if !is_prose(text) {
                return Err(ManifestError(format!(
                    "its `{field}` is `{}`: one line of printable text is wanted, of at most {PROSE_BYTES} bytes",
                    shown(text)
                )));
            }
        }
        Ok(())
    }
}

/// The beginning of a text that is not trusted, printable.
fn shown(text: &str) -> String {
    let cut = text.floor_char_boundary(ID_BYTES);
    text[..cut].escape_debug().chain((cut < text.len()).then_some('…')).collect()
}

#[cfg(test)]
mod tests {
    use super::Manifest;

    fn parse(field: &str, value: &str) -> Result<Manifest, String> {
        let mut manifest = serde_json::json!({"id": "a/b", "version": "1.0.0", "kinds": ["text"], "devices": ["cpu"]});
        manifest[field] = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        Manifest::parse(manifest.to_string().as_bytes()).map_err(|error| error.0)
    }

    #[test]
    fn what_passes_is_short_and_may_be_printed() {
        for (field, value) in [
            ("id", "candle-llm"),
            ("id", "vendor.x/name_1"),
            ("authors", "Zoë <z@example.org>:李"),
            ("description", "says `\\u{1b}` \"quoted\""),
            ("formats", r#"["gguf", "safetensors"]"#),
        ] {
            parse(field, value).unwrap_or_else(|error| panic!("{field} {value}: {error}"));
        }
        let long = |n: usize| "x".repeat(n);
        let many = format!("[{}\"x\"]", "\"x\",".repeat(100));
        for (field, value) in [
            ("id", ".."),
            ("id", "../.."),
            ("id", "a/../b"),
            ("id", "A/b"),
            ("id", ""),
            ("id", "a/"),
            ("id", long(900 << 10).as_str()),
            ("version", long(65).as_str()),
            ("kinds", r#"["te\u001b[2Jxt"]"#),
            ("kinds", &format!(r#"["{}"]"#, long(65))),
            ("devices", &many),
            ("description", "one\ntwo"),
            ("description", "\u{1b}]0;title\u{7}"),
            ("description", "\u{202e}txt"),
            ("authors", long(4097).as_str()),
            ("kinds", "[]"),
        ] {
            let error = parse(field, value).expect_err(&format!("{field} {}", &value[..value.len().min(40)]));
            assert!(error.len() < 1000, "{} bytes of {field}", error.len());
            assert!(!error.contains(['\u{1b}', '\n', '\u{202e}']), "{error}");
        }
    }
}
