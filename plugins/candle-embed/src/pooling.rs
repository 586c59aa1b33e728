//! One vector of a text from those of its tokens.

use schemars::JsonSchema;
use serde::Deserialize;

/// How the vectors of tokens become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Their mean.
    #[default]
    Mean,
    /// The first one.
    Cls,
    /// The last one.
    Last,
    /// The largest of each element.
    Max,
}

impl Pooling {
    /// The vector of a text of which these are the vectors of tokens, `[tokens, width]`; at least one.
    pub fn pool(self, vectors: &[f32], width: usize) -> Vec<f32> {
        let rows = vectors.chunks_exact(width);
        match self {
            Self::Cls => vectors[..width].to_vec(),
            Self::Last => vectors[vectors.len() - width..].to_vec(),
            Self::Mean => {
                let count = rows.len() as f64;
                let mut sums = vec![0f64; width];
                rows.for_each(|row| sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x)));
                sums.into_iter().map(|sum| (sum / count) as f32).collect()
            }
            Self::Max => {
                let mut largest = vec![f32::NEG_INFINITY; width];
                rows.for_each(|row| largest.iter_mut().zip(row).for_each(|(most, x)| *most = most.max(*x)));
                largest
            }
        }
    }
}

/// Makes a vector's length 1; one of zeros stays.
pub fn normalise(vector: &mut [f32]) {
    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
}

/// The cosine of the angle between two vectors; 0 if one has no length.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let lengths = (product(a, a) * product(b, b)).sqrt();
    if lengths > 0.0 { (product(a, b) / lengths) as f32 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_makes_its_vector() {
        let vectors = [1.0, -2.0, 3.0, 4.0, 2.0, 1.0];
        for (pooling, wanted) in [
            (Pooling::Mean, [2.0, 1.0]),
            (Pooling::Cls, [1.0, -2.0]),
            (Pooling::Last, [2.0, 1.0]),
            (Pooling::Max, [3.0, 4.0]),
        ] {
            assert_eq!(pooling.pool(&vectors, 2), wanted, "{pooling:?}");
        }
    }

    #[test]
    fn lengths_are_one_and_angles_known() {
        let mut vector = [3.0, 4.0];
        normalise(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
        let mut nothing = [0.0; 2];
        normalise(&mut nothing);
        assert_eq!(nothing, [0.0; 2]);
        assert!((cosine(&[1.0, 0.0], &[2.0, 2.0]) - 0.5f32.sqrt()).abs() < 1e-6);
        assert_eq!(cosine(&[1.0], &[0.0]), 0.0);
    }
}
