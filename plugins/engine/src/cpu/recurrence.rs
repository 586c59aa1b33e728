//! What layers without keys and values remember of sequences, and how they go on from it: a short convolution, and the gated delta
//! rule (Yang et al. 2024), row by row, so that a sequence gives the same however its rows are cut into passes.

use aihost_plugin_api::{Error, ErrorKind, Result};
use memmap2::MmapMut;
use pulp::Arch;
use rayon::prelude::*;

use super::{Rows, rows};
use crate::ops::{Convolution, DeltaRule, Span, StateShape};

/// Added to the squared length of keys and queries.
const LENGTH_EPSILON: f32 = 1e-6;
/// From here on ln(1 + exp(x)) is x.
const SOFTPLUS_LINEAR: f32 = 20.0;

/// `[places, layers, convolution and matrices]` f32. Memory is taken from the system page by page, as it is written.
#[derive(Debug)]
pub struct States {
    shape: StateShape,
    memory: MmapMut,
}

/// What a layer remembers.
#[derive(Clone, Copy, Debug)]
enum Part {
    Convolution,
    Matrices,
}

/// Bytes of a place.
pub(super) fn state_bytes(shape: StateShape) -> u64 {
    4 * place_len(shape) as u64
}

/// Bytes that the operations take beside their arguments and results.
pub(super) fn bytes(rows: usize, shape: StateShape) -> u64 {
    4 * (rows * shape.heads * shape.value_width) as u64
}

fn place_len(shape: StateShape) -> usize {
    shape.layers * shape.sizes().iter().sum::<usize>()
}

impl States {
    /// # Errors
    /// `OutOfMemory` if the process may have no more address space.
    pub(super) fn new(shape: StateShape, places: usize) -> Result<Self> {
        // A mapping of nothing is refused.
        let bytes = (4 * places * place_len(shape)).max(4);
        let memory = MmapMut::map_anon(bytes).map_err(|e| {
            Error::new(ErrorKind::OutOfMemory, format!("there are no {bytes} bytes for the states of sequences: {e}"))
        })?;
        Ok(Self { shape, memory })
    }

    fn values(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.memory)
    }

    pub(super) fn copy(&mut self, from: usize, to: usize) {
        let len = place_len(self.shape);
        self.values().copy_within(from * len..(from + 1) * len, to * len);
    }

    /// What a part of a layer remembers of each span's sequence: nothing, of those that start.
    fn of_layer(&mut self, layer: usize, part: Part, spans: &[Span<'_>]) -> Result<Vec<&mut [f32]>> {
        let (len, [convolution, matrices]) = (place_len(self.shape), self.shape.sizes());
        let start = layer * (convolution + matrices);
        let range = match part {
            Part::Convolution => start..start + convolution,
            Part::Matrices => start + convolution..start + convolution + matrices,
        };
        let mut places: Vec<Option<&mut [f32]>> = self.values().chunks_exact_mut(len.max(1)).map(Some).collect();
        let of_span = |span: &Span<'_>| {
            let place = places.get_mut(span.state as usize).and_then(Option::take);
            let place = place.ok_or_else(|| Error::internal("two sequences of a pass have one state"))?;
            let state = &mut place[range.clone()];
            if span.start == 0 {
                state.fill(0.0);
            }
            Ok(state)
        };
        spans.iter().map(of_span).collect()
    }

    /// `[rows, channels]`
    pub(super) fn convolve(&mut self, pass: &Convolution<'_, Rows, Vec<f32>>) -> Result<Rows> {
        let StateShape { channels, taps, .. } = self.shape;
        let mut out = Rows::zeros(pass.x.count(), channels);
        let (mut inputs, mut outputs) = (pass.x.values.as_slice(), out.values.as_mut_slice());
        for (span, past) in pass.spans.iter().zip(self.of_layer(pass.layer, Part::Convolution, pass.spans)?) {
            let (new, later) = inputs.split_at(span.rows * channels);
            let (made, rest) = outputs.split_at_mut(span.rows * channels);
            let input = |row: usize| match row.checked_sub(taps) {
                None => &past[row * channels..(row + 1) * channels],
                Some(row) => &new[row * channels..(row + 1) * channels],
            };
            made.par_chunks_exact_mut(channels).enumerate().for_each(|(row, made)| {
                for (tap, kernel) in pass.kernel.chunks_exact(channels).enumerate() {
                    rows::add_gated(made, input(row + tap), &[], kernel);
                }
            });
            let kept = taps.saturating_sub(span.rows) * channels;
            past.copy_within(past.len() - kept.., 0);
            let added = &mut past[kept..];
            added.copy_from_slice(&new[new.len() - added.len()..]);
            (inputs, outputs) = (later, rest);
        }
        Ok(out)
    }

    /// `[rows, heads * value_width]`
    pub(super) fn delta_rule(&mut self, pass: &DeltaRule<'_, Rows>) -> Result<Rows> {
        let shape = self.shape;
        let StateShape { heads, key_width, value_width, .. } = shape;
        let (mut first, mut parts) = (0, Vec::with_capacity(pass.spans.len() * heads));
        for (span, matrices) in pass.spans.iter().zip(self.of_layer(pass.layer, Part::Matrices, pass.spans)?) {
            let matrices = matrices.chunks_exact_mut(key_width * value_width).enumerate();
            parts.extend(matrices.map(|(head, matrix)| Head { head, first, rows: span.rows, matrix }));
            first += span.rows;
        }
        let made: Vec<(usize, usize, Vec<f32>)> = parts
            .into_par_iter()
            .map(|mut part| (part.head, part.first, Arch::new().dispatch(|| part.forward(pass, shape))))
            .collect();
        let mut out = Rows::zeros(first, heads * value_width);
        for (head, first, made) in made {
            for (row, made) in made.chunks_exact(value_width).enumerate() {
                let at = ((first + row) * heads + head) * value_width;
                out.values[at..at + value_width].copy_from_slice(made);
            }
        }
        Ok(out)
    }
}

/// A head of a sequence, and its rows of a pass.
struct Head<'a> {
    head: usize,
    first: usize,
    rows: usize,
    /// `[key_width, value_width]`
    matrix: &'a mut [f32],
}

impl Head<'_> {
    /// What its rows find, `[rows, value_width]`.
    #[inline(always)]
    fn forward(&mut self, pass: &DeltaRule<'_, Rows>, shape: StateShape) -> Vec<f32> {
        let StateShape { heads, key_width, value_width, .. } = shape;
        let (head, keys) = (self.head, pass.key_heads * key_width);
        let key_at = pass.key_of(head, heads) * key_width;
        let mut out = vec![0.0; self.rows * value_width];
        let (mut query, mut key, mut change) = (vec![0.0; key_width], vec![0.0; key_width], vec![0.0; value_width]);
        for (row, found) in (self.first..).zip(out.chunks_exact_mut(value_width)) {
            let mixed = &pass.mixed.values[row * pass.mixed.width..(row + 1) * pass.mixed.width];
            unit(&mixed[key_at..key_at + key_width], 1.0 / (key_width as f32).sqrt(), &mut query);
            unit(&mixed[keys + key_at..keys + key_at + key_width], 1.0, &mut key);
            let value = &mixed[2 * keys + head * value_width..2 * keys + (head + 1) * value_width];
            let of_row = |x: &Rows| x.values[row * x.width + head];
            let decay = (pass.rate[head] * softplus(of_row(pass.alpha) + pass.bias[head])).exp();
            // What the key finds.
            change.fill(0.0);
            for (line, key) in self.matrix.chunks_exact(value_width).zip(&key) {
                change.iter_mut().zip(line).for_each(|(sum, x)| *sum += key * x);
            }
            let beta = of_row(pass.beta);
            change.iter_mut().zip(value).for_each(|(change, value)| *change = beta * (value - decay * *change));
            for (line, (key, query)) in self.matrix.chunks_exact_mut(value_width).zip(key.iter().zip(&query)) {
                for ((x, change), found) in line.iter_mut().zip(&change).zip(found.iter_mut()) {
                    *x = decay * *x + key * change;
                    *found += query * *x;
                }
            }
        }
        out
    }
}

/// A vector as long as `length`, in its direction.
#[inline(always)]
fn unit(vector: &[f32], length: f32, out: &mut [f32]) {
    let square: f32 = vector.iter().map(|x| x * x).sum();
    let factor = length / (square + LENGTH_EPSILON).sqrt();
    out.iter_mut().zip(vector).for_each(|(out, x)| *out = x * factor);
}

#[inline(always)]
fn softplus(x: f32) -> f32 {
    if x > SOFTPLUS_LINEAR { x } else { x.exp().ln_1p() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: StateShape = StateShape { layers: 2, channels: 2, taps: 2, heads: 2, key_width: 2, value_width: 3 };

    fn spans(spans: &[(usize, usize, u32)]) -> Vec<Span<'static>> {
        spans
            .iter()
            .map(|(rows, start, state)| Span { rows: *rows, start: *start, blocks: &[], state: *state })
            .collect()
    }

    fn rows(width: usize, values: &[f32]) -> Rows {
        Rows { values: values.to_vec(), width }
    }

    fn convolved(states: &mut States, x: &[f32], of: &[(usize, usize, u32)]) -> Vec<f32> {
        let (x, kernel, spans) = (rows(2, x), vec![100.0, 1.0, 10.0, 1.0, 1.0, 1.0], spans(of));
        states.convolve(&Convolution { layer: 1, x: &x, kernel: &kernel, spans: &spans }).expect("computes").values
    }

    #[test]
    fn a_convolution_goes_on_where_its_sequence_was() {
        let mut states = States::new(SHAPE, 3).expect("memory");
        let x = [1.0, 1.0, 2.0, 1.0, 3.0, 1.0, 4.0, 1.0];
        let whole = convolved(&mut states, &x, &[(4, 0, 1)]);
        assert_eq!(whole, [1.0, 1.0, 12.0, 2.0, 123.0, 3.0, 234.0, 3.0]);
        let pieces = [
            convolved(&mut states, &x[..2], &[(1, 0, 2)]),
            convolved(&mut states, &x[2..4], &[(1, 1, 2)]),
            convolved(&mut states, &x[4..], &[(2, 2, 2)]),
        ];
        assert_eq!(pieces.concat(), whole);
        // Another that starts in its place knows nothing of it, beside one that goes on from a copy.
        states.copy(2, 0);
        let both = convolved(&mut states, &[5.0, 1.0, 5.0, 1.0], &[(1, 0, 2), (1, 4, 0)]);
        assert_eq!(both, [5.0, 1.0, 345.0, 3.0]);
        let of_layer = states.of_layer(0, Part::Matrices, &spans(&[(1, 1, 1), (1, 1, 1)]));
        assert!(of_layer.is_err());
    }

    /// By matrices, as the paper has it.
    fn plain(mixed: &[f32], alpha: &[f32], beta: &[f32]) -> Vec<f32> {
        let (heads, keys, wide) = (2usize, 2usize, 3usize);
        let mut out = vec![0.0; alpha.len() * wide];
        for head in 0..heads {
            let mut s = [[0f64; 3]; 2];
            for row in 0..alpha.len() / heads {
                let mixed = &mixed[row * 10..(row + 1) * 10];
                let direction = |at: usize| {
                    let v = [f64::from(mixed[at]), f64::from(mixed[at + 1])];
                    let length = (v[0] * v[0] + v[1] * v[1] + 1e-6).sqrt();
                    [v[0] / length, v[1] / length]
                };
                let (q, k) = (direction(0), direction(keys));
                let a = f64::from(alpha[row * heads + head]) + 0.5;
                let decay = (-2.0 * a.exp().ln_1p()).exp();
                for j in 0..wide {
                    (0..keys).for_each(|i| s[i][j] *= decay);
                    let found: f64 = (0..keys).map(|i| k[i] * s[i][j]).sum();
                    let v = f64::from(mixed[4 + head * wide + j]);
                    (0..keys).for_each(|i| s[i][j] += k[i] * f64::from(beta[row * heads + head]) * (v - found));
                    let read: f64 = (0..keys).map(|i| q[i] * s[i][j]).sum();
                    out[(row * heads + head) * wide + j] = (read / 2f64.sqrt()) as f32;
                }
            }
        }
        out
    }

    #[test]
    fn the_delta_rule_is_that_of_the_paper_and_goes_on_where_its_sequence_was() {
        let values = |count: usize, by: f32| (0..count).map(|i| (i as f32 * by).sin()).collect::<Vec<_>>();
        let (mixed, alpha) = (values(50, 1.3), values(10, 0.7));
        let beta: Vec<f32> = values(10, 2.1).iter().map(|x| x * x).collect();
        let pass = |states: &mut States, from: usize, to: usize, state: u32| {
            let (mixed, alpha) = (rows(10, &mixed[from * 10..to * 10]), rows(2, &alpha[from * 2..to * 2]));
            let (beta, spans) = (rows(2, &beta[from * 2..to * 2]), spans(&[(to - from, from, state)]));
            let rule = DeltaRule {
                layer: 0,
                mixed: &mixed,
                key_heads: 1,
                is_grouped: true,
                alpha: &alpha,
                beta: &beta,
                bias: &[0.5; 2],
                rate: &[-2.0; 2],
                spans: &spans,
            };
            states.delta_rule(&rule).expect("computes").values
        };
        let mut states = States::new(SHAPE, 2).expect("memory");
        let whole = pass(&mut states, 0, 5, 1);
        let wanted = plain(&mixed, &alpha, &beta);
        assert!(whole.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-5), "{whole:?} {wanted:?}");
        let pieces = [pass(&mut states, 0, 2, 0), pass(&mut states, 2, 3, 0), pass(&mut states, 3, 5, 0)];
        assert_eq!(pieces.concat(), whole);
    }
}
