//! Layer 0: what is known of a plugin file without running it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The ELF section that holds a [`Descriptor`].
pub const SECTION: &str = ".aihost.plugin";
/// First bytes of the section.
pub const MAGIC: [u8; 8] = *b"AIHOSTP\x01";
/// 0 is a preview: host and plugin must have equal fingerprints.
pub const ABI_MAJOR: u32 = 0;
/// Counts additions within a major.
pub const ABI_MINOR: u32 = 1;

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
    /// Version of this crate.
    pub sdk: [u8; 24],
}

/// Header and manifest as one static.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Descriptor<const N: usize> {
    /// The fixed part.
    pub header: DescriptorHeader,
    /// JSON of a [`Manifest`].
    pub manifest: [u8; N],
}

impl<const N: usize> Descriptor<N> {
    /// The descriptor of a plugin built now, with this manifest.
    pub const fn new(manifest: &str) -> Self {
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
                sdk: fixed(env!("CARGO_PKG_VERSION")),
            },
            manifest: fixed(manifest),
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
    /// Semver.
    pub version: String,
    /// From Cargo.toml, joined by `:`.
    #[serde(default)]
    pub authors: String,
    /// SPDX.
    #[serde(default)]
    pub license: String,
    /// One line.
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
    /// What it asks of the operator: `network`, `subprocess`.
    #[serde(default)]
    pub permissions: Vec<String>,
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
    /// Parses and checks the JSON of a descriptor.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self =
            serde_json::from_slice(json).map_err(|e| ManifestError(format!("its manifest is not valid: {e}")))?;
        let good = |part: &str| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c))
        };
        if manifest.id.split('/').count() > 2 || !manifest.id.split('/').all(good) {
            return Err(ManifestError(format!(
                "its id `{}` is not `name` or `vendor/name` in a-z, 0-9, `-`, `_`, `.`",
                manifest.id
            )));
        }
        if manifest.kinds.is_empty() || manifest.max_concurrency == 0 {
            return Err(ManifestError("its manifest names no kind, or a concurrency of 0".into()));
        }
        Ok(manifest)
    }
}
