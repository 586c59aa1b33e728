//! The rotary position embedding on three axes (Su et al. 2021; section 2 of the FLUX.1 model cards' `EmbedND`): tokens of the text stand
//! at the origin, tokens of the image at (0, row, column).

/// The base of the frequencies.
const THETA: f64 = 10_000.0;

/// The rotary embedding of every token: cosine and sine for each pair of a head's elements,
/// (text + rows * columns, sum of axes / 2).
///
/// Angles are f64, as in the reference.
pub fn rotary_table(axes: [usize; 3], text: usize, rows: usize, columns: usize) -> Vec<[f32; 2]> {
    let pairs = axes.iter().sum::<usize>() / 2;
    let mut table = Vec::with_capacity((text + rows * columns) * pairs);
    let image = (0..rows).flat_map(|row| (0..columns).map(move |column| [0, row, column]));
    for position in std::iter::repeat_n([0; 3], text).chain(image) {
        for (axis, place) in axes.iter().zip(position) {
            for pair in 0..axis / 2 {
                let angle = place as f64 / THETA.powf(2.0 * pair as f64 / *axis as f64);
                table.push([angle.cos() as f32, angle.sin() as f32]);
            }
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use aihost_engine::cpu::rows::rms_norm_rotary;
    use proptest::prelude::*;

    use super::*;

    const AXES: [usize; 3] = [4, 6, 6];

    /// The attention score of a query and a key at two positions.
    fn score(q: &[f32], k: &[f32], at: [(usize, usize); 2]) -> f32 {
        let table = rotary_table(AXES, 1, 12, 12);
        let rotated = |x: &[f32], (row, column): (usize, usize)| {
            let mut x = x.to_vec();
            let place = 1 + row * 12 + column;
            rms_norm_rotary(&mut x, &[], 1e-6, &[1.0; 16], &table[place * 8..(place + 1) * 8], 1.0);
            x
        };
        rotated(q, at[0]).iter().zip(rotated(k, at[1])).map(|(a, b)| a * b).sum()
    }

    proptest! {
        #[test]
        fn scores_depend_on_the_distance_alone(
            q in prop::collection::vec(-1f32..1.0, 16),
            k in prop::collection::vec(-1f32..1.0, 16),
            (row, column) in (0usize..6, 0usize..6),
            (down, right) in (0usize..6, 0usize..6),
        ) {
            let near = score(&q, &k, [(0, 0), (down, right)]);
            let far = score(&q, &k, [(row, column), (row + down, column + right)]);
            prop_assert!((near - far).abs() < 2e-4, "{near} {far}");
        }
    }

    #[test]
    fn text_is_not_rotated_and_axes_are_rows_then_columns() {
        let table = rotary_table(AXES, 2, 2, 3);
        assert_eq!(table.len(), (2 + 6) * 8);
        assert!(table[..2 * 8].iter().all(|cos_sin| *cos_sin == [1.0, 0.0]));
        // The last token is row 1, column 2: the first pair of an axis is rotated by the position itself, in radians.
        let last = &table[7 * 8..];
        assert_eq!(last[0], [1.0, 0.0]);
        assert_eq!(last[2], [1f64.cos() as f32, 1f64.sin() as f32]);
        assert_eq!(last[5], [2f64.cos() as f32, 2f64.sin() as f32]);
    }
}
