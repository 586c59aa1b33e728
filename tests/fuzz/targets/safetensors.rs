//! Safetensors files and indexes of shards, by both readers: the one that maps weights and the one that reads them.

use aihost_support::checkpoint::{Checkpoint, Layers};
use aihost_support::dense::Residency;
use aihost_support::weights::Weights;

use super::files::Folder;

/// Bytes of weights behind a header that is given alone.
const DATA_BYTES: usize = 256;
/// The shard that an index may name.
const SHARD: &str = "model-00001-of-00002.safetensors";

/// The first byte says what the rest is: `h` a header, which weights are put behind; `i` an index of shards; otherwise the
/// input is the whole file.
pub(super) fn run(input: &[u8]) {
    let folder = Folder::new();
    let path = match input.split_first() {
        Some((b'h', header)) => folder.write("model.safetensors", &file(header)),
        Some((b'i', index)) => {
            folder.write(SHARD, &file(br#"{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#));
            folder.write("model.safetensors.index.json", index)
        }
        _ => folder.write("model.safetensors", input),
    };
    if let Ok(weights) = Weights::open(&path) {
        for entry in weights.entries() {
            assert!(weights.has(&entry.name));
            let tensor = weights.tensor(&entry.name).expect("what the header names is there");
            assert_eq!(tensor.elem_count(), entry.elements);
        }
    }
    for residency in [Residency::Resident, Residency::Streamed] {
        let Ok(checkpoint) = Checkpoint::open(&path, residency) else { continue };
        read(&checkpoint);
    }
}

/// Every tensor of a checkpoint, by its own shape.
pub(super) fn read(checkpoint: &Checkpoint) {
    for name in checkpoint.names() {
        let shape = checkpoint.shape(name).expect("a name has a shape");
        if let Ok(values) = checkpoint.tensor_f32(name, shape) {
            assert_eq!(values.len(), shape.iter().product::<usize>());
        }
        if let [rows, columns] = *shape {
            let _ = checkpoint.matrix(name, rows, columns);
        }
    }
    let all = checkpoint.count(|_| true);
    assert!(checkpoint.size(|_| true) <= all.saturating_mul(4), "more bytes than floats");
    checkpoint.preload(|_| Ok(())).expect("all of it is there");
}

/// A file of this header.
fn file(header: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header);
    out.extend((0..DATA_BYTES).map(|n| n as u8));
    out
}
