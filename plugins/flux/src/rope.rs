//! Rotary positions on three axes (Su et al. 2021; section 2 of the FLUX.1 model cards' `EmbedND`): tokens of the text stand
//! at the origin, tokens of the picture at (0, row, column).

/// The base of the frequencies.
const THETA: f64 = 10_000.0;

/// Cosine and sine by which each pair of numbers of a head turns: (text + rows * columns, sum of axes / 2).
///
/// Angles are f64, as in the reference.
pub fn turns(axes: [usize; 3], text: usize, rows: usize, columns: usize) -> Vec<[f32; 2]> {
    let pairs = axes.iter().sum::<usize>() / 2;
    let mut table = Vec::with_capacity((text + rows * columns) * pairs);
    let picture = (0..rows).flat_map(|row| (0..columns).map(move |column| [0, row, column]));
    for position in std::iter::repeat_n([0; 3], text).chain(picture) {
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
    use aihost_support::rows::norm_and_turn;
    use proptest::prelude::*;

    use super::*;

    const AXES: [usize; 3] = [4, 6, 6];

    /// A query and a key at two places: their product after turning.
    fn score(q: &[f32], k: &[f32], at: [(usize, usize); 2]) -> f32 {
        let table = turns(AXES, 1, 12, 12);
        let turned = |x: &[f32], (row, column): (usize, usize)| {
            let mut x = x.to_vec();
            let place = 1 + row * 12 + column;
            norm_and_turn(&mut x, &[], 1e-6, &[1.0; 16], &table[place * 8..(place + 1) * 8], 1.0);
            x
        };
        turned(q, at[0]).iter().zip(turned(k, at[1])).map(|(a, b)| a * b).sum()
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
    fn text_does_not_turn_and_axes_are_rows_then_columns() {
        let table = turns(AXES, 2, 2, 3);
        assert_eq!(table.len(), (2 + 6) * 8);
        assert!(table[..2 * 8].iter().all(|turn| *turn == [1.0, 0.0]));
        // The last token is row 1, column 2: the first pair of an axis turns by the place itself.
        let last = &table[7 * 8..];
        assert_eq!(last[0], [1.0, 0.0]);
        assert_eq!(last[2], [1f64.cos() as f32, 1f64.sin() as f32]);
        assert_eq!(last[5], [2f64.cos() as f32, 2f64.sin() as f32]);
    }
}
