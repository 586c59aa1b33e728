//! Reads what a plugin file says of itself, without running it: the descriptor in its ELF section and the libraries it needs.
//!
//! Every byte is untrusted: the file may be truncated, of another machine, or no plugin at all. No `dlopen` here.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use aihost_plugin_api::abi::{DescriptorHeader, MAGIC, Manifest, ManifestError, SECTION};
use object::read::elf::{ElfFile64, FileHeader as _};
use object::{Architecture, Endianness, Object, ObjectSection, ReadCache, elf};

use super::copy::open_source;
use crate::domain::excerpt;

/// Largest manifest that is read, in bytes. Real ones have under 2 KiB.
const MAX_MANIFEST_BYTES: u32 = 1 << 20;
/// Most entries of the table of what it needs that are read; more is not a real library.
const MAX_DYNAMIC: usize = 1024;

/// Bytes of an id that is kept of a manifest that is not one.
const ID_SHOWN_BYTES: usize = 128;

/// What a plugin file says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Described {
    /// ABI version it was built with.
    pub abi: (u32, u32),
    /// SHA-256 of the ABI layout it was built with.
    pub fingerprint: [u8; 32],
    /// `rustc --version` of the build.
    pub rustc: String,
    /// Target triple of the build.
    pub target: String,
    /// `unwind` or `abort`.
    pub panic: String,
    /// Version of the SDK.
    pub sdk: String,
    /// What it serves, and how it is configured.
    pub manifest: Manifest,
    /// The libraries that it needs.
    pub linkage: Linkage,
}

/// The libraries that a file needs at run time, and where it says that they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Linkage {
    /// Their names (`DT_NEEDED`).
    pub needed: Vec<String>,
    /// The folders in which these are looked for (`DT_RUNPATH`).
    pub runpath: Vec<String>,
    /// The folders in which these are looked for, and what they need themselves; of no meaning beside the others (`DT_RPATH`).
    pub rpath: Vec<String>,
}

/// Why a file is not a plugin this host can read. Each text says what was wanted, what was found, what to do.
#[derive(Debug, thiserror::Error)]
pub enum DescribeError {
    /// The file cannot be opened or read.
    #[error("cannot read {}: {source}; check that it exists and that you may read it", file.display())]
    Io {
        /// The file that was read.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not a whole 64-bit ELF file.
    #[error(
        "{} is not a whole shared library (wanted a 64-bit ELF file: {detail}); copy it again, or remove it",
        file.display()
    )]
    NotElf {
        /// The file that was read.
        file: PathBuf,
        /// What the parser said.
        detail: String,
    },
    /// Of another machine.
    #[error(
        "{} is built for {found}, this machine runs {wanted}; build it on this machine, or for it with `cargo build --target`",
        file.display()
    )]
    Machine {
        /// The file that was read.
        file: PathBuf,
        /// The host's.
        wanted: String,
        /// The file's.
        found: String,
    },
    /// A library, but no plugin.
    #[error(
        "{} is a library but no aihost plugin (no section {SECTION}); move it out of the plugins folder, or export it with `export_plugin!`",
        file.display()
    )]
    NotAPlugin {
        /// The file that was read.
        file: PathBuf,
    },
    /// A descriptor that cannot be read.
    #[error("{} has a damaged plugin descriptor ({detail}); rebuild or copy it again", file.display())]
    Descriptor {
        /// The file that was read.
        file: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A manifest that is not one.
    #[error("{} cannot be used: {source}; correct its `export_plugin!` and rebuild it", file.display())]
    Manifest {
        /// The file that was read.
        file: PathBuf,
        /// The id that it states all the same.
        id: Option<String>,
        /// What is wrong with it.
        source: ManifestError,
    },
}

/// A library's file while it is looked at.
type Library<'data> = ElfFile64<'data, Endianness, &'data ReadCache<BufReader<File>>>;

/// Reads the descriptor of a plugin file. Nothing of it runs, and libraries it needs may be absent.
///
/// # Errors
/// When it is not a plugin for this machine; see [`DescribeError`].
pub fn describe(file: &Path) -> Result<Described, DescribeError> {
    library(file, |parsed| {
        let section =
            parsed.section_by_name(SECTION).ok_or_else(|| DescribeError::NotAPlugin { file: file.to_owned() })?;
        let damaged = |detail: String| DescribeError::Descriptor { file: file.to_owned(), detail };
        let data = section.data().map_err(|e| damaged(e.to_string()))?;
        let (header, manifest) = split(data).map_err(damaged)?;
        let mut described = read_header(header, manifest).map_err(|source| DescribeError::Manifest {
            file: file.to_owned(),
            id: stated_id(manifest),
            source,
        })?;
        described.linkage = linked(file, parsed)?;
        Ok(described)
    })
}

/// Reads which libraries a library needs.
pub(super) fn linkage(file: &Path) -> Result<Linkage, DescribeError> {
    library(file, |parsed| linked(file, parsed))
}

/// Looks at a whole library of this machine.
fn library<T>(file: &Path, look: impl FnOnce(&Library<'_>) -> Result<T, DescribeError>) -> Result<T, DescribeError> {
    let io = |source| DescribeError::Io { file: file.to_owned(), source };
    let not_elf = |detail: String| DescribeError::NotElf { file: file.to_owned(), detail };
    let (reader, identity) = open_source(file).map_err(io)?;
    let cache = ReadCache::new(BufReader::new(reader));
    let parsed: Library<'_> = ElfFile64::parse(&cache).map_err(|e| not_elf(e.to_string()))?;
    let machine = parsed.architecture();
    if machine != host_architecture() || parsed.elf_header().endian().is_ok_and(|e| e != Endianness::default()) {
        return Err(DescribeError::Machine {
            file: file.to_owned(),
            wanted: format!("{:?}", host_architecture()),
            found: format!("{machine:?}"),
        });
    }
    whole(&parsed, identity.size()).map_err(not_elf)?;
    look(&parsed)
}

fn linked(file: &Path, parsed: &Library<'_>) -> Result<Linkage, DescribeError> {
    let not_elf = |e: object::Error| DescribeError::NotElf { file: file.to_owned(), detail: e.to_string() };
    let mut linkage = Linkage::default();
    let dynamic = parsed.elf_dynamic_table().map_err(not_elf)?;
    for entry in dynamic.iter().take(MAX_DYNAMIC) {
        let text = || dynamic.string(entry).map(|text| String::from_utf8_lossy(text).into_owned()).map_err(not_elf);
        let folders = || text().map(|folders| folders.split(':').map(str::to_owned).collect::<Vec<_>>());
        match entry.tag {
            elf::DT_NEEDED => linkage.needed.push(text()?),
            elf::DT_RUNPATH => linkage.runpath.extend(folders()?),
            elf::DT_RPATH => linkage.rpath.extend(folders()?),
            _ => {}
        }
    }
    Ok(linkage)
}

/// The id of a manifest that is none, for whoever asks for that plugin.
fn stated_id(manifest: &[u8]) -> Option<String> {
    let json: serde_json::Value = serde_json::from_slice(manifest).ok()?;
    json["id"].as_str().map(|id| excerpt(id, ID_SHOWN_BYTES))
}

fn host_architecture() -> Architecture {
    if cfg!(target_arch = "aarch64") { Architecture::Aarch64 } else { Architecture::X86_64 }
}

/// A copy that broke off has its section table or its sections past the end of the file.
fn whole<'data, R: object::ReadRef<'data>>(parsed: &ElfFile64<'data, Endianness, R>, bytes: u64) -> Result<(), String> {
    for section in parsed.sections() {
        if let Some((offset, size)) = section.file_range()
            && offset.checked_add(size).is_none_or(|end| end > bytes)
        {
            return Err(format!("it ends after {bytes} bytes, inside its own sections"));
        }
    }
    let header = parsed.elf_header();
    if header.e_type(parsed.endian()) != elf::ET_DYN {
        return Err("it is an ELF file, but not a shared library".to_owned());
    }
    Ok(())
}

/// The header's bytes and the manifest's, by the sizes the header states.
fn split(data: &[u8]) -> Result<(&[u8], &[u8]), String> {
    let known = size_of::<DescriptorHeader>();
    if data.len() < known {
        return Err(format!("wanted at least {known} bytes, found {}", data.len()));
    }
    if data[..MAGIC.len()] != MAGIC {
        return Err("its first bytes are not the magic number".to_owned());
    }
    let header_size = word(data, std::mem::offset_of!(DescriptorHeader, header_size));
    let manifest_size = word(data, std::mem::offset_of!(DescriptorHeader, manifest_size));
    if (header_size as usize) < known || manifest_size > MAX_MANIFEST_BYTES {
        return Err(format!("it states a header of {header_size} and a manifest of {manifest_size} bytes"));
    }
    let (start, size) = (header_size as usize, manifest_size as usize);
    let manifest = data.get(start..).and_then(|rest| rest.get(..size));
    let manifest =
        manifest.ok_or_else(|| format!("it states {start} + {size} bytes, the section has {}", data.len()))?;
    Ok((&data[..known], manifest))
}

fn read_header(header: &[u8], manifest: &[u8]) -> Result<Described, ManifestError> {
    use std::mem::offset_of;
    let field = |offset: usize, size: usize| &header[offset..offset + size];
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(field(offset_of!(DescriptorHeader, fingerprint), 32));
    Ok(Described {
        abi: (
            word(header, offset_of!(DescriptorHeader, abi_major)),
            word(header, offset_of!(DescriptorHeader, abi_minor)),
        ),
        fingerprint,
        rustc: text(field(offset_of!(DescriptorHeader, rustc), 64)),
        target: text(field(offset_of!(DescriptorHeader, target), 48)),
        panic: text(field(offset_of!(DescriptorHeader, panic), 8)),
        sdk: text(field(offset_of!(DescriptorHeader, sdk), 24)),
        manifest: Manifest::parse(manifest)?,
        linkage: Linkage::default(),
    })
}

/// A little-endian number; the caller has checked that the header is there.
fn word(data: &[u8], offset: usize) -> u32 {
    data[offset..offset + 4].iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

/// A text of the header, without the zeros that fill its place.
pub(super) fn text(padded: &[u8]) -> String {
    let end = padded.iter().position(|byte| *byte == 0).unwrap_or(padded.len());
    String::from_utf8_lossy(&padded[..end]).into_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use aihost_plugin_api::abi::Descriptor;
    use proptest::prelude::*;

    use super::*;
    use crate::plugin::{caution, incompatible};

    /// The bytes a section would have.
    pub(in crate::plugin) fn section(manifest: &str) -> Vec<u8> {
        let header = Descriptor::<0>::new("", []).header;
        let mut out = header.magic.to_vec();
        for word in [header.header_size, manifest.len() as u32, header.abi_major, header.abi_minor] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for field in [&header.fingerprint[..], &header.rustc, &header.target, &header.panic, &header.sdk] {
            out.extend_from_slice(field);
        }
        out.extend_from_slice(manifest.as_bytes());
        out
    }

    const MANIFEST: &str = r#"{"id":"a/b","version":"1.2.3","kinds":["text"],"devices":["cpu"]}"#;

    #[test]
    fn a_section_reads_back() {
        let bytes = section(MANIFEST);
        let (header, manifest) = split(&bytes).unwrap();
        let described = read_header(header, manifest).unwrap();
        assert_eq!(described.manifest.id, "a/b");
        assert_eq!(described.panic, "unwind");
        assert_eq!((incompatible(&described), caution(&described)), (None, None));
        let aborts = Described { panic: "abort".to_owned(), ..described.clone() };
        assert_eq!(incompatible(&aborts), None);
        assert!(caution(&aborts).unwrap().contains("a panic ends its worker"));
        let odd = Described { panic: "P\u{1b}".repeat(4), ..described.clone() };
        assert!(!caution(&odd).unwrap().contains('\u{1b}'));
        let other = Described { fingerprint: [7; 32], ..described.clone() };
        assert!(incompatible(&other).unwrap().contains("07070707"));
        let newer = Described { abi: (9, 1), ..described };
        assert!(incompatible(&newer).unwrap().contains("update the host"));
    }

    #[test]
    fn what_serves_nothing_here_or_runs_nowhere_is_refused_by_name() {
        let bytes = section(MANIFEST);
        let (header, manifest) = split(&bytes).unwrap();
        let described = read_header(header, manifest).unwrap();
        let manifest = |kinds: &str, devices: &str| {
            let json = format!(r#"{{"id":"a/b","version":"1.0.0","kinds":[{kinds}],"devices":[{devices}]}}"#);
            Described { manifest: Manifest::parse(json.as_bytes()).unwrap(), ..described.clone() }
        };
        for sound in [manifest("\"text\"", "\"cpu\""), manifest("\"x\",\"upstream\"", "\"tpu\",\"cuda\"")] {
            assert_eq!(incompatible(&sound), None);
        }
        for (wrong, wanted) in [
            (manifest("\"hologram\"", "\"cpu\""), "it serves hologram, which this host does not know; update the host"),
            (manifest("\"text\"", "\"gpu\""), "it runs on gpu, and this host knows cpu and cuda; correct `devices:`"),
            (manifest("\"text\"", ""), "it names no devices, and this host knows cpu and cuda"),
        ] {
            let told = incompatible(&wrong).unwrap();
            assert!(told.contains(wanted), "{told}");
        }
    }

    #[test]
    fn what_is_no_plugin_is_named_so() {
        let dir = tempfile::tempdir().unwrap();
        let own = std::env::current_exe().unwrap();
        let garbage = dir.path().join("garbage.so");
        std::fs::write(&garbage, b"#!/bin/sh\necho no\n").unwrap();
        let cut = dir.path().join("cut.so");
        let bytes = std::fs::read(&own).unwrap();
        std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
        let empty = dir.path().join("empty.so");
        std::fs::write(&empty, b"").unwrap();
        let foreign = dir.path().join("foreign.so");
        let mut other = bytes[..bytes.len()].to_vec();
        other[18] = 243; // e_machine: RISC-V
        std::fs::write(&foreign, other).unwrap();
        for (file, wanted) in [
            (&garbage, "not a whole shared library"),
            (&cut, "not a whole shared library"),
            (&empty, "not a whole shared library"),
            (&foreign, "this machine runs"),
            (&own, "no aihost plugin"),
            (&dir.path().join("absent.so"), "cannot read"),
        ] {
            let error = describe(file).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
            assert!(error.contains(&*file.to_string_lossy()), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_upset_the_parser(mut bytes in prop::collection::vec(any::<u8>(), 0..300), real in any::<bool>()) {
            if real {
                let whole = section(MANIFEST);
                let cut = bytes.len().min(whole.len());
                bytes.truncate(cut);
                for (byte, mask) in bytes.iter_mut().zip(&whole) { *byte = if *byte < 250 { *mask } else { *byte }; }
            }
            if let Ok((header, manifest)) = split(&bytes) { let _ = read_header(header, manifest); }
        }
    }
}
