//! Whether what a model computes are numbers at all: damaged weights and overflows give what is none, which must never pass for an
//! answer.

use std::fmt::Display;

use aihost_plugin_api::{Error, Result};

/// Whether all are finite numbers.
pub fn is_finite(values: &[f32]) -> bool {
    // All bits of the exponent are set in what is not. Lanes, so that the compiler uses vectors.
    const EXPONENT: u32 = 0x7f80_0000;
    let (chunks, rest) = values.as_chunks::<16>();
    let mut lanes = [0_u32; 16];
    for chunk in chunks {
        let mut i = 0;
        while i < lanes.len() {
            lanes[i] |= u32::from(chunk[i].to_bits() & EXPONENT == EXPONENT);
            i += 1;
        }
    }
    lanes == [0; 16] && rest.iter().all(|x| x.is_finite())
}

/// Checks what a part of a model gave at a step.
///
/// # Errors
/// `Internal` that names both, which is logged too, if one of the values is no finite number.
pub fn check(values: &[f32], part: impl Display, step: impl Display) -> Result<()> {
    if is_finite(values) { Ok(()) } else { Err(broken(part, step)) }
}

/// The error of a part that gave no finite numbers at a step; it is logged.
pub fn broken(part: impl Display, step: impl Display) -> Error {
    tracing::error!(%part, %step, "the model gave no finite numbers");
    Error::internal(format!("the model gave no finite numbers: its {part}, at {step}; is its file damaged?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_any_place_is_found() {
        for length in [1, 15, 16, 17, 100] {
            let mut values = vec![f32::MAX; length];
            assert!(is_finite(&values));
            for at in 0..length {
                for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let right = std::mem::replace(&mut values[at], wrong);
                    assert!(!is_finite(&values), "{wrong} at {at} of {length}");
                    values[at] = right;
                }
            }
        }
        let error = check(&[f32::NAN], "codec", format_args!("step {} of {}", 3, 9)).unwrap_err();
        assert!(error.message().contains("its codec, at step 3 of 9;"), "{error}");
    }
}
