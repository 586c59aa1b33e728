//! Element-wise and row-wise operations on f32 between matrix products: norms, activations, softmax, rotary embedding.
//!
//! Each is one pass, compiled once for each instruction set and chosen at run time. Sums are kept in lanes, so a result
//! depends on the row alone, never on the number of threads.

use pulp::Arch;

pub use crate::ops::Activation;
use crate::ops::RotaryOrder;

/// What gpt-oss keeps activations below.
const CLAMP: f32 = 7.0;
/// Partial sums of a row.
const LANES: usize = 16;

/// `row = activation(row + bias)`; an empty bias is none.
pub fn activate(activation: Activation, row: &mut [f32], bias: &[f32]) {
    Arch::new().dispatch(|| {
        add(row, bias);
        match activation {
            Activation::Relu => row.iter_mut().for_each(|x| *x = x.max(0.0)),
            // x * (1 + tanh(u)) / 2 is x * logistic(2 u).
            Activation::GeluTanh => {
                row.iter_mut().for_each(|x| *x *= logistic(1.595_769_2 * (*x + 0.044_715 * *x * *x * *x)))
            }
            Activation::QuickGelu => row.iter_mut().for_each(|x| *x *= logistic(1.702 * *x)),
            Activation::Silu => row.iter_mut().for_each(|x| *x *= logistic(*x)),
            Activation::Gelu => {
                row.iter_mut().for_each(|x| *x *= 0.5 + 0.5 * erf(*x * std::f32::consts::FRAC_1_SQRT_2))
            }
            Activation::ClampedSwish => {
                row.iter_mut().for_each(|x| *x = x.min(CLAMP) * logistic(1.702 * x.min(CLAMP)));
            }
            Activation::Tanh => row.iter_mut().for_each(|x| *x = 2.0 * logistic(2.0 * *x) - 1.0),
            Activation::Sigmoid => row.iter_mut().for_each(|x| *x = logistic(*x)),
            Activation::Identity => {}
        }
    });
}

/// `row = activation(row) * gated`.
pub fn gate(activation: Activation, row: &mut [f32], gated: &[f32]) {
    activate(activation, row, &[]);
    if activation == Activation::ClampedSwish {
        Arch::new().dispatch(|| row.iter_mut().zip(gated).for_each(|(x, y)| *x *= y.clamp(-CLAMP, CLAMP) + 1.0));
    } else {
        multiply(row, gated);
    }
}

/// `row += bias`; an empty bias is none.
pub fn add_bias(row: &mut [f32], bias: &[f32]) {
    Arch::new().dispatch(|| add(row, bias));
}

/// `row *= other`.
pub fn multiply(row: &mut [f32], other: &[f32]) {
    Arch::new().dispatch(|| row.iter_mut().zip(other).for_each(|(x, y)| *x *= y));
}

/// `row += gate * (branch + bias)`, element by element; an empty gate is 1, an empty bias 0.
pub fn add_gated(row: &mut [f32], branch: &[f32], bias: &[f32], gate: &[f32]) {
    Arch::new().dispatch(|| match (bias.is_empty(), gate.is_empty()) {
        (true, true) => row.iter_mut().zip(branch).for_each(|(x, y)| *x += y),
        (false, true) => row.iter_mut().zip(branch).zip(bias).for_each(|((x, y), b)| *x += y + b),
        (true, false) => row.iter_mut().zip(branch).zip(gate).for_each(|((x, y), g)| *x += g * y),
        (false, false) => {
            row.iter_mut().zip(branch).zip(bias.iter().zip(gate)).for_each(|((x, y), (b, g))| *x += g * (y + b));
        }
    });
}

/// Layer norm (Ba et al. 2016), then `out = normed * (scale + unit) + shift`: `unit` is 1 where a modulation is a change
/// of scale, 0 where the layer has a learned scale.
pub fn layer_norm(row: &[f32], epsilon: f32, (scale, unit): (&[f32], f32), shift: &[f32], out: &mut [f32]) {
    Arch::new().dispatch(|| {
        let count = row.len() as f32;
        let mean = sum_of(
            row,
            #[inline(always)]
            |x| x,
        ) / count;
        let variance = sum_of(
            row,
            #[inline(always)]
            |x| (x - mean) * (x - mean),
        ) / count;
        let inverse = 1.0 / (variance + epsilon).sqrt();
        for ((out, x), (scale, shift)) in out.iter_mut().zip(row).zip(scale.iter().zip(shift)) {
            *out = (x - mean) * inverse * (scale + unit) + shift;
        }
    });
}

/// Root-mean-square norm (Zhang and Sennrich 2019) with a learned scale.
pub fn rms_norm(row: &[f32], epsilon: f32, scale: &[f32], out: &mut [f32]) {
    Arch::new().dispatch(|| {
        let inverse = inverse_rms(row, epsilon);
        out.iter_mut().zip(row).zip(scale).for_each(|((out, x), scale)| *out = x * inverse * scale);
    });
}

/// One head of a query or key: adds its bias, takes its root-mean-square norm, and applies the rotary embedding, whose
/// cosines and sines `rotary` holds (Su et al. 2021, interleaved pairs); `factor` scales the result.
pub fn rms_norm_rotary(head: &mut [f32], bias: &[f32], epsilon: f32, scale: &[f32], rotary: &[[f32; 2]], factor: f32) {
    Arch::new().dispatch(|| {
        add(head, bias);
        let inverse = inverse_rms(head, epsilon) * factor;
        let pairs = head.as_chunks_mut::<2>().0.iter_mut().zip(scale.as_chunks::<2>().0);
        for (([x, y], [first, second]), [cos, sin]) in pairs.zip(rotary) {
            let (a, b) = (*x * inverse * first, *y * inverse * second);
            (*x, *y) = (a * cos - b * sin, b * cos + a * sin);
        }
    });
}

/// The rotary embedding of one head (Su et al. 2021) by the cosines and sines of its pairs. Elements beyond them stay.
pub fn rotate(head: &mut [f32], rotary: &[[f32; 2]], order: RotaryOrder) {
    match order {
        RotaryOrder::Interleaved => {
            for ([a, b], [cos, sin]) in head.as_chunks_mut::<2>().0.iter_mut().zip(rotary) {
                (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
            }
        }
        RotaryOrder::Halves => {
            let (first, second) = head.split_at_mut(rotary.len());
            for ((a, b), [cos, sin]) in first.iter_mut().zip(second).zip(rotary) {
                (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
            }
        }
    }
}

/// Softmax before its division: `row = exp(row - its maximum)`; returns the sum. The maximum of an empty row, or of minus infinity alone, gives zeros.
pub fn softmax_unnormalised(row: &mut [f32]) -> f32 {
    Arch::new().dispatch(|| {
        let (chunks, rest) = row.as_chunks::<LANES>();
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane = if *x > *lane { *x } else { *lane };
            }
        }
        let largest = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |most, x| if *x > most { *x } else { most });
        let shift = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        let (chunks, rest) = row.as_chunks_mut::<LANES>();
        let mut sums = [0.0; LANES];
        for chunk in chunks {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *x = exp(*x - shift);
                *sum += *x;
            }
        }
        let mut total: f32 = sums.iter().sum();
        for x in rest {
            *x = exp(*x - shift);
            total += *x;
        }
        total
    })
}

/// `row = cap * tanh(row / cap)`: large numbers stay below `cap`, small ones stay.
pub fn cap(row: &mut [f32], cap: f32) {
    // tanh(u) is 2 * logistic(2 u) - 1.
    Arch::new().dispatch(|| row.iter_mut().for_each(|x| *x = cap * (2.0 * logistic(2.0 * *x / cap) - 1.0)));
}

/// `row += weight * other`.
pub fn add_weighted(row: &mut [f32], other: &[f32], weight: f32) {
    Arch::new().dispatch(|| row.iter_mut().zip(other).for_each(|(x, y)| *x += weight * y));
}

/// `row *= factor`.
pub fn scale(row: &mut [f32], factor: f32) {
    Arch::new().dispatch(|| row.iter_mut().for_each(|x| *x *= factor));
}

/// Sum and sum of squares about `centre` of a row, in f64 across rows.
pub fn moments(row: &[f32], centre: f32) -> (f64, f64) {
    Arch::new().dispatch(|| {
        let sum = sum_of(
            row,
            #[inline(always)]
            |x| x - centre,
        );
        let squares = sum_of(
            row,
            #[inline(always)]
            |x| (x - centre) * (x - centre),
        );
        (f64::from(sum), f64::from(squares))
    })
}

/// `out = activation(x * factor + offset)`, element by element.
pub fn affine(row: &[f32], (factor, offset): (&[f32], &[f32]), activation: Option<Activation>, out: &mut [f32]) {
    Arch::new().dispatch(|| {
        for ((out, x), (factor, offset)) in out.iter_mut().zip(row).zip(factor.iter().zip(offset)) {
            *out = x * factor + offset;
        }
    });
    if let Some(activation) = activation {
        activate(activation, out, &[]);
    }
}

#[inline(always)]
fn add(row: &mut [f32], bias: &[f32]) {
    row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
}

#[inline(always)]
fn inverse_rms(row: &[f32], epsilon: f32) -> f32 {
    1.0 / (sum_of(
        row,
        #[inline(always)]
        |x| x * x,
    ) / row.len() as f32
        + epsilon)
        .sqrt()
}

#[inline(always)]
fn sum_of(row: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += of(*x);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|x| of(*x)).sum::<f32>()
}

#[inline(always)]
fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The error function, to 2e-7 (Abramowitz and Stegun 1964, 7.1.26).
#[inline(always)]
fn erf(x: f32) -> f32 {
    let size = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * size);
    let mut p = 1.061_405_4;
    p = p * t - 1.453_152_1;
    p = p * t + 1.421_413_7;
    p = p * t - 0.284_496_74;
    p = p * t + 0.254_829_6;
    (1.0 - p * t * exp(-size * size)).copysign(x)
}

/// e to the x, to about one unit in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes, expf).
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Below it, the result is 0 but for denormals; above it, infinity.
    const LEAST: f32 = -87.0;
    const MOST: f32 = 88.0;
    // Adding it rounds to a whole number in the lowest bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    let clipped = x.clamp(LEAST, MOST);
    let shifted = clipped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clipped - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5.000_000_3e-1;
    let mantissa = p * r * r + r + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    let value = mantissa * scale;
    if x < LEAST { 0.0 } else { value }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn exp_is_the_libraries(x in -86f32..87.0) {
            let (found, wanted) = (f64::from(exp(x)), f64::from(x).exp());
            prop_assert!((found - wanted).abs() <= 3e-7 * wanted, "{x}: {found} {wanted}");
        }

        #[test]
        fn gelu_is_the_formula(x in -6f32..6.0) {
            let mut row = [x];
            activate(Activation::Gelu, &mut row, &[]);
            // The normal distribution function by Simpson's rule from 0.
            let (x, steps) = (f64::from(x), 400);
            let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let weight = |i: usize| if i == 0 || i == steps { 1.0 } else if i % 2 == 1 { 4.0 } else { 2.0 };
            let step = x / steps as f64;
            let sum: f64 = (0..=steps).map(|i| weight(i) * density(i as f64 * step)).sum();
            let wanted = x * (0.5 + sum * step / 3.0);
            prop_assert!((f64::from(row[0]) - wanted).abs() < 2e-6, "{x}: {} {wanted}", row[0]);
        }

        #[test]
        fn softmax_unnormalised_is_the_formula(row in prop::collection::vec(-30f32..30.0, 1..70)) {
            let largest = row.iter().fold(f32::MIN, |a, b| a.max(*b));
            let mut found = row.clone();
            let total = softmax_unnormalised(&mut found);
            for (x, found) in row.iter().zip(&found) {
                prop_assert!((f64::from(*found) - f64::from(x - largest).exp()).abs() < 1e-6);
            }
            prop_assert!((total - found.iter().sum::<f32>()).abs() < 1e-4 * total);
        }

        #[test]
        fn rotary_embedding_keeps_the_norm(row in prop::collection::vec(-3f32..3.0, 16), angle in 0f32..6.0) {
            let mut rotated = row.clone();
            rms_norm_rotary(&mut rotated, &[], 1e-6, &[1.0; 16], &[[angle.cos(), angle.sin()]; 8], 1.0);
            let mut normed = vec![0.0; 16];
            rms_norm(&row, 1e-6, &[1.0; 16], &mut normed);
            for (rotated, normed) in rotated.chunks(2).zip(normed.chunks(2)) {
                let length = |pair: &[f32]| pair[0].hypot(pair[1]);
                prop_assert!((length(rotated) - length(normed)).abs() < 1e-5);
                let wanted = normed[0] * angle.cos() - normed[1] * angle.sin();
                prop_assert!((rotated[0] - wanted).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn activations_are_the_formulas() {
        let x: Vec<f32> = (-40..40).map(|i| i as f32 / 5.0).collect();
        let check = |activation, of: fn(f64) -> f64| {
            let mut found: Vec<f32> = x.iter().map(|x| x - 0.5).collect();
            activate(activation, &mut found, &[0.5; 80]);
            for (x, found) in x.iter().zip(found) {
                assert!((f64::from(found) - of(f64::from(*x))).abs() < 2e-6, "{activation:?} of {x}: {found}");
            }
        };
        check(Activation::Relu, |x| x.max(0.0));
        check(Activation::Silu, |x| x / (1.0 + (-x).exp()));
        check(Activation::QuickGelu, |x| x / (1.0 + (-1.702 * x).exp()));
        check(Activation::GeluTanh, |x| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        });
    }

    #[test]
    fn what_is_far_below_is_nothing_and_no_number_stays_none() {
        let mut row = [0.0, f32::NEG_INFINITY, -200.0, 0.0];
        assert_eq!((softmax_unnormalised(&mut row), row), (2.0, [1.0, 0.0, 0.0, 1.0]));
        assert!(exp(f32::NAN).is_nan());
    }
}
