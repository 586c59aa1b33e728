//! Torch's checkpoints: archives that hold a pickle and the weights it speaks of.

use std::io::{Cursor, Write};

use aihost_support::weights::Weights;
use zip::CompressionMethod;
use zip::write::SimpleFileOptions;

use super::files::Folder;

/// Bytes of weights beside a pickle that is given alone.
const DATA_BYTES: usize = 256;

/// The first byte says what the rest is: `p` a pickle, which an archive is put around, `z` a pickle in one that is compressed;
/// otherwise the input is the whole file.
pub(super) fn run(input: &[u8]) {
    let folder = Folder::new();
    let path = match input.split_first() {
        Some((b'p', pickle)) => folder.write("pytorch_model.bin", &archive(pickle, CompressionMethod::Stored)),
        Some((b'z', pickle)) => folder.write("pytorch_model.bin", &archive(pickle, CompressionMethod::Deflated)),
        _ => folder.write("pytorch_model.bin", input),
    };
    let Ok(weights) = Weights::open(&path) else { return };
    for entry in weights.entries() {
        if let Ok(tensor) = weights.tensor(&entry.name) {
            assert_eq!(tensor.elem_count(), entry.elements);
        }
    }
}

fn archive(pickle: &[u8], method: CompressionMethod) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let data: Vec<u8> = (0..DATA_BYTES).map(|n| n as u8).collect();
    for (name, bytes) in [("archive/data.pkl", pickle), ("archive/data/0", &data)] {
        archive.start_file(name, SimpleFileOptions::default().compression_method(method)).expect("a file begins");
        archive.write_all(bytes).expect("a file is written");
    }
    archive.finish().expect("an archive ends").into_inner()
}
