//! Multi-head attention (Vaswani et al. 2017) that never holds the matrix of scores whole: by FlashAttention's kernels
//! (Dao 2023) where they are built in and fit, else a block of queries at a time.

use candle_core::{DType, Tensor};

use aihost_engine::candle::{Result, matmul};

/// Most bytes of the f32 scores that are there at a time.
const SCORES: usize = 256 << 20;

/// softmax(q kᵀ + mask) v, (queries, heads * width), of `q`, `k` and `v` (heads, tokens, width), where `q` is scaled already; `mask` is
/// added to the scores, (heads or 1, queries, keys) in f32.
///
/// # Errors
/// If the shapes do not fit, or the device is out of memory.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    #[cfg(feature = "flash")]
    if q.device().is_cuda() && q.dtype() != DType::F32 && mask.is_none() {
        let width = q.dim(2)?;
        if width <= FLASH_WIDTH && width.is_multiple_of(8) {
            return flash(q, k, v);
        }
    }
    attention_within(SCORES, q, k, v, mask)
}

/// Bytes that [`attention`] takes at its peak beside its arguments, for states of `size` bytes an element.
pub fn attention_bytes(heads: usize, queries: usize, keys: usize, size: usize) -> usize {
    let scores = heads * queries.min(block(SCORES, heads, keys)) * keys;
    // Scores and weights in the states' type and in f32; f32 needs no second copy.
    scores * if size == 4 { 8 } else { 8 + size }
}

fn block(scores: usize, heads: usize, keys: usize) -> usize {
    (scores / (4 * heads * keys).max(1)).max(1)
}

fn attention_within(scores: usize, q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let (heads, queries, width) = q.dims3()?;
    let block = block(scores, heads, k.dim(1)?);
    let transposed = k.t()?;
    let mut attended = Vec::new();
    for start in (0..queries).step_by(block) {
        let count = block.min(queries - start);
        let mut weights = matmul(&q.narrow(1, start, count)?.contiguous()?, &transposed)?.to_dtype(DType::F32)?;
        if let Some(mask) = mask {
            weights = weights.broadcast_add(&mask.narrow(1, start, count)?)?;
        }
        weights = candle_nn::ops::softmax_last_dim(&weights)?.to_dtype(v.dtype())?;
        attended.push(matmul(&weights, v)?.transpose(0, 1)?.reshape((count, heads * width))?);
    }
    Ok(match attended.as_slice() {
        [whole] => whole.clone(),
        blocks => Tensor::cat(blocks, 0)?,
    })
}

/// The widest head that the kernels take.
#[cfg(feature = "flash")]
const FLASH_WIDTH: usize = 256;

#[cfg(feature = "flash")]
fn flash(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (heads, queries, width) = q.dims3()?;
    // (1, tokens, heads, width): the kernels follow strides.
    let tokens_first = |x: &Tensor| x.transpose(0, 1)?.unsqueeze(0);
    let attended = candle_flash_attn::flash_attn(&tokens_first(q)?, &tokens_first(k)?, &tokens_first(v)?, 1.0, false)?;
    Ok(attended.reshape((queries, heads * width))?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// softmax(q kᵀ + mask) v, element by element, in f64.
    fn plain(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Vec<f64> {
        let to_f64 = |x: &Tensor| x.to_dtype(DType::F64).unwrap().to_vec3::<f64>().unwrap();
        let (q, k, v, mask) = (to_f64(q), to_f64(k), to_f64(v), mask.map(to_f64));
        let mut out = Vec::new();
        for i in 0..q[0].len() {
            for h in 0..q.len() {
                let score = |j: usize| -> f64 {
                    let product: f64 = q[h][i].iter().zip(&k[h][j]).map(|(a, b)| a * b).sum();
                    product + mask.as_ref().map_or(0.0, |mask| mask[h % mask.len()][i][j])
                };
                let weights: Vec<f64> = (0..k[0].len()).map(|j| score(j).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let attended = |c: usize| -> f64 { weights.iter().zip(&v[h]).map(|(w, v)| w / sum * v[c]).sum() };
                out.extend((0..v[h][0].len()).map(attended));
            }
        }
        out
    }

    #[test]
    fn blocks_of_queries_give_what_the_formula_gives() {
        let (heads, queries, keys, width) = (3, 10, 7, 4);
        let random = |tokens| Tensor::randn(0f32, 1.0, (heads, tokens, width), &Device::Cpu).unwrap();
        let (q, k, v) = (random(queries), random(keys), random(keys));
        let masks = [1, heads].map(|h| Tensor::randn(0f32, 1.0, (h, queries, keys), &Device::Cpu).unwrap());
        for mask in [None, Some(&masks[0]), Some(&masks[1])] {
            let wanted = plain(&q, &k, &v, mask);
            // Blocks of 1, of 3 with a shorter last one, and all at once.
            for scores in [0, 3 * 4 * heads * keys, SCORES] {
                for (dtype, limit) in [(DType::F32, 1e-5), (DType::BF16, 0.05)] {
                    let [q, k, v] = [&q, &k, &v].map(|x| x.to_dtype(dtype).unwrap());
                    let found = attention_within(scores, &q, &k, &v, mask).unwrap();
                    assert_eq!((found.dims(), found.dtype()), ([queries, heads * width].as_slice(), dtype));
                    let found = found.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
                    for (found, wanted) in found.iter().zip(&wanted) {
                        assert!((found - wanted).abs() < limit, "{found} {wanted} in {dtype:?}, {scores} bytes");
                    }
                }
            }
        }
    }
}
