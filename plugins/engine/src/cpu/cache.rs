//! Keys and values in blocks of f16, each head of a block with a power of two that its numbers are multiplied with: so that none
//! is beyond the range of f16, whatever a model makes.

use std::ops::{Deref, DerefMut};

use aihost_plugin_api::{Error, ErrorKind, Result};
use half::f16;
use half::slice::HalfFloatSliceExt;
use memmap2::MmapMut;

use crate::ops::{BLOCK_TOKENS, CacheShape, Span};

/// The keys and values of all layers and sequences. Memory is taken from the system page by page, as it is written.
#[derive(Debug)]
pub struct KvCache {
    shape: CacheShape,
    layers: Vec<LayerCache>,
}

#[derive(Debug)]
struct LayerCache {
    /// `[blocks, kv_heads, width, BLOCK_TOKENS]`: a query's scores of a block's tokens come in one go.
    keys: Halves,
    /// `[blocks, kv_heads, BLOCK_TOKENS, width]`
    values: Halves,
    /// What the numbers are multiplied with, `[blocks, kv_heads]`.
    key_scales: Vec<f32>,
    value_scales: Vec<f32>,
}

/// Numbers in memory of the system's own: it is given page by page when they are written, and given back at the end, where an
/// allocator would fill what it is asked for with zeros, and keep it.
struct Halves(MmapMut);

impl Halves {
    fn zeros(count: usize) -> Result<Self> {
        let bytes = count * size_of::<f16>();
        MmapMut::map_anon(bytes).map(Self).map_err(|e| {
            Error::new(ErrorKind::OutOfMemory, format!("there are no {bytes} bytes for a layer's cache: {e}"))
        })
    }
}

impl Deref for Halves {
    type Target = [f16];

    fn deref(&self) -> &[f16] {
        bytemuck::cast_slice(&self.0)
    }
}

impl DerefMut for Halves {
    fn deref_mut(&mut self) -> &mut [f16] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

impl std::fmt::Debug for Halves {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} halves", self.len())
    }
}

/// One head of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadBlock<'a> {
    /// `[width, BLOCK_TOKENS]`
    pub(super) keys: &'a [f16],
    /// `[BLOCK_TOKENS, width]`
    pub(super) values: &'a [f16],
    pub(super) key_scale: f32,
    pub(super) value_scale: f32,
}

/// Bytes of a block of all layers.
pub(super) fn block_bytes(shape: CacheShape) -> u64 {
    let heads = (shape.layers * shape.kv_heads) as u64;
    heads * 2 * (2 * (shape.width * BLOCK_TOKENS) as u64 + 4)
}

impl KvCache {
    /// # Errors
    /// `OutOfMemory` if the process may have no more address space.
    pub(super) fn new(shape: CacheShape, blocks: usize) -> Result<Self> {
        let heads = blocks * shape.kv_heads;
        let numbers = || Halves::zeros(heads * shape.width * BLOCK_TOKENS);
        let layer = |_| {
            let (keys, values) = (numbers()?, numbers()?);
            Ok(LayerCache { keys, values, key_scales: vec![1.0; heads], value_scales: vec![1.0; heads] })
        };
        Ok(Self { shape, layers: (0..shape.layers).map(layer).collect::<Result<_>>()? })
    }

    pub(super) fn shape(&self) -> CacheShape {
        self.shape
    }

    pub(super) fn block(&self, layer: usize, block: u32, head: usize) -> HeadBlock<'_> {
        let layer = &self.layers[layer];
        let at = block as usize * self.shape.kv_heads + head;
        let size = self.shape.width * BLOCK_TOKENS;
        HeadBlock {
            keys: &layer.keys[at * size..(at + 1) * size],
            values: &layer.values[at * size..(at + 1) * size],
            key_scale: layer.key_scales[at],
            value_scale: layer.value_scales[at],
        }
    }

    /// Writes the keys and values of a pass, `[rows, kv_heads * width]` each.
    pub(super) fn write(&mut self, layer: usize, keys: &[f32], values: &[f32], spans: &[Span<'_>]) {
        let (heads, width) = (self.shape.kv_heads, self.shape.width);
        let positions = spans.iter().flat_map(|span| {
            let places = span.start..span.start + span.rows;
            places.map(|position| (span.blocks[position / BLOCK_TOKENS], position % BLOCK_TOKENS))
        });
        let rows = keys.chunks_exact(heads * width).zip(values.chunks_exact(heads * width));
        for ((block, slot), (keys, values)) in positions.zip(rows) {
            for (head, (key, value)) in keys.chunks_exact(width).zip(values.chunks_exact(width)).enumerate() {
                self.layers[layer].write(block as usize * heads + head, slot, key, value);
            }
        }
    }
}

impl LayerCache {
    fn write(&mut self, head: usize, slot: usize, key: &[f32], value: &[f32]) {
        let size = key.len() * BLOCK_TOKENS;
        let range = head * size..(head + 1) * size;
        let (keys, values) = (&mut self.keys[range.clone()], &mut self.values[range]);
        if slot == 0 {
            // What an earlier sequence left must weigh nothing, and nothing times what is no number is none.
            keys.fill(f16::ZERO);
            values.fill(f16::ZERO);
            (self.key_scales[head], self.value_scales[head]) = (1.0, 1.0);
        }
        let factor = fit(key, keys, &mut self.key_scales[head]);
        for (column, x) in keys.chunks_exact_mut(BLOCK_TOKENS).zip(key) {
            column[slot] = f16::from_f32(x * factor);
        }
        let factor = fit(value, values, &mut self.value_scales[head]);
        let row = &mut values[slot * value.len()..(slot + 1) * value.len()];
        if factor == 1.0 {
            row.convert_from_f32_slice(value);
        } else {
            row.iter_mut().zip(value).for_each(|(half, x)| *half = f16::from_f32(x * factor));
        }
    }
}

/// Makes the scale of a block as large as these numbers need. What they are multiplied with to be stored.
fn fit(numbers: &[f32], stored: &mut [f16], scale: &mut f32) -> f32 {
    let largest = numbers.iter().fold(0f32, |most, x| most.max(x.abs()));
    if largest.is_finite() {
        let mut wanted = *scale;
        while largest > f32::from(f16::MAX) * wanted {
            wanted *= 2.0;
        }
        if wanted != *scale {
            let shrink = *scale / wanted;
            stored.iter_mut().for_each(|half| *half = f16::from_f32(half.to_f32() * shrink));
            *scale = wanted;
        }
    }
    1.0 / *scale
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(rows: &[[f32; 2]]) -> KvCache {
        let mut cache = KvCache::new(CacheShape { layers: 1, kv_heads: 1, width: 2 }, 3).unwrap();
        for (at, row) in rows.iter().enumerate() {
            let span = Span { rows: 1, start: at, blocks: &[2, 0], state: 0 };
            cache.write(0, row, row, &[span]);
        }
        cache
    }

    /// A token's key and value as they are read.
    fn read(cache: &KvCache, block: u32, slot: usize) -> [[f32; 2]; 2] {
        let head = cache.block(0, block, 0);
        let key = [0, 1].map(|i| head.keys[i * BLOCK_TOKENS + slot].to_f32() * head.key_scale);
        let value = [0, 1].map(|i| head.values[slot * 2 + i].to_f32() * head.value_scale);
        [key, value]
    }

    /// Pages that this process has in memory.
    fn resident_pages() -> usize {
        let status = std::fs::read_to_string("/proc/self/statm").unwrap();
        status.split(' ').nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn memory_is_taken_as_it_is_written_and_given_back() {
        // A gigabyte, of which a block of each layer is written; other tests take what they take meanwhile.
        let shape = CacheShape { layers: 32, kv_heads: 8, width: 64 };
        let before = resident_pages();
        for _ in 0..2 {
            let mut cache = KvCache::new(shape, 1024).unwrap();
            let row = vec![1.0; 8 * 64];
            (0..32).for_each(|layer| {
                cache.write(layer, &row, &row, &[Span { rows: 1, start: 0, blocks: &[700], state: 0 }])
            });
            let taken = resident_pages().saturating_sub(before) * 4096;
            assert!(taken < 300 << 20, "{} MiB", taken >> 20);
        }
    }

    #[test]
    fn what_is_beyond_half_precision_stays_right() {
        let cache = written(&[[1.5, -2.0], [1e6, -3e9], [65504.0, 0.5]]);
        for (slot, wanted) in [(0, [1.5, -2.0]), (1, [1e6, -3e9]), (2, [65504.0, 0.5])] {
            for read in read(&cache, 2, slot) {
                for (found, wanted) in read.iter().zip(wanted) {
                    // The smallest that still counts beside 3e9 is that times 2^-25.
                    assert!((found - wanted).abs() <= wanted.abs() * 5e-4 + 3e9 / 3.3e7, "{found} {wanted}");
                }
            }
        }
        // The next block has nothing of that.
        let mut rows = vec![[1e9, 1.0]; BLOCK_TOKENS];
        rows.push([0.1, 7.0]);
        let cache = written(&rows);
        assert_eq!(read(&cache, 0, 0), [[f16::from_f32(0.1).to_f32(), 7.0]; 2]);
    }

    #[test]
    fn what_is_no_number_stays_none_and_is_gone_with_its_block() {
        let cache = written(&[[f32::NAN, f32::INFINITY]]);
        let [key, value] = read(&cache, 2, 0);
        assert!(key[0].is_nan() && value[0].is_nan() && key[1] == f32::INFINITY);
        let mut cache = cache;
        cache.write(0, &[1.0, 2.0], &[3.0, 4.0], &[Span { rows: 1, start: 0, blocks: &[2], state: 0 }]);
        let head = cache.block(0, 2, 0);
        assert!(head.values.iter().chain(head.keys).all(|half| half.is_finite()));
    }
}
