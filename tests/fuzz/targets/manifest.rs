//! Plugin files as the host lists them: nothing of them runs, and what is printed of them steers no terminal.

use aihost::plugin::{self, Described};
use aihost_plugin_api::abi::{Descriptor, MAGIC, Manifest, SECTION};

use super::files::Folder;

/// Bytes of the headers that ELF asks for.
const FILE_HEADER_BYTES: u64 = 64;
const SECTION_HEADER_BYTES: u64 = 64;
/// Sections of a file that is put around an input: none, the names, the descriptor.
const SECTIONS: u16 = 3;

/// An input that begins as an ELF file is one; one that begins as a descriptor is the section; any other is the manifest.
pub(super) fn run(input: &[u8]) {
    let folder = Folder::new();
    let file = if input.starts_with(b"\x7fELF") { input.to_vec() } else { library(&section(input)) };
    let described = match plugin::describe(&folder.write("plugin.so", &file)) {
        Ok(described) => described,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let printed = [&described.manifest.id, &described.manifest.version];
    assert!(!printed.iter().any(|text| text.contains(char::is_control)), "{printed:?} would steer a terminal");
    let _ = (plugin::incompatible(&described), plugin::permissions(&described.manifest));
    // What was read is written and read the same.
    let json = serde_json::to_vec(&described.manifest).expect("a manifest is data");
    assert_eq!(Manifest::parse(&json).as_ref(), Ok(&described.manifest));
    let again: Described =
        plugin::describe(&folder.write("again.so", &library(&section(&json)))).expect("it reads back");
    assert_eq!(again.manifest, described.manifest);
}

/// The section, with this build's header where the input has none.
fn section(input: &[u8]) -> Vec<u8> {
    if input.starts_with(&MAGIC) {
        return input.to_vec();
    }
    let header = Descriptor::<0>::new("", []).header;
    let mut out = header.magic.to_vec();
    for word in [header.header_size, input.len() as u32, header.abi_major, header.abi_minor] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    for field in [&header.fingerprint[..], &header.rustc, &header.target, &header.panic, &header.sdk] {
        out.extend_from_slice(field);
    }
    out.extend_from_slice(input);
    out
}

/// The smallest shared library for this machine that has the section.
fn library(section: &[u8]) -> Vec<u8> {
    let names = format!("\0.shstrtab\0{SECTION}\0");
    let (names_at, section_at) = (FILE_HEADER_BYTES, FILE_HEADER_BYTES + names.len() as u64);
    let table_at = (section_at + section.len() as u64).next_multiple_of(8);
    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    let machine: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
    // A shared library, of this machine, of version 1.
    out.extend(3_u16.to_le_bytes());
    out.extend(machine.to_le_bytes());
    out.extend(1_u32.to_le_bytes());
    // Where it begins, its segments, its sections.
    [0, 0, table_at].iter().for_each(|at: &u64| out.extend(at.to_le_bytes()));
    out.extend(0_u32.to_le_bytes());
    let sizes = [FILE_HEADER_BYTES as u16, 56, 0, SECTION_HEADER_BYTES as u16, SECTIONS, 1];
    sizes.iter().for_each(|size| out.extend(size.to_le_bytes()));
    out.extend(names.as_bytes());
    out.extend(section);
    out.resize(table_at as usize, 0);
    out.resize(out.len() + SECTION_HEADER_BYTES as usize, 0);
    // Name, kind (a table of names, bytes of the program), flags, address, place, size, link and info, alignment, size of an entry.
    for (name, kind, at, size) in [(1_u32, 3_u32, names_at, names.len()), (11, 1, section_at, section.len())] {
        out.extend(name.to_le_bytes());
        out.extend(kind.to_le_bytes());
        [0, 0, at, size as u64, 0, 1, 0].iter().for_each(|word| out.extend(word.to_le_bytes()));
    }
    out
}
