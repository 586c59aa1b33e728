//! Medians and spreads of readings in seconds.

use serde_json::{Value, json};

/// Readings of one kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Readings(pub(crate) Vec<f64>);

impl Readings {
    /// The middle reading; of an even number, the mean of the middle two; 0 of none.
    pub(crate) fn median(&self) -> f64 {
        let sorted = self.sorted();
        let upper = sorted.len() / 2;
        match sorted.len() {
            0 => 0.0,
            count if count % 2 == 1 => sorted[upper],
            _ => f64::midpoint(sorted[upper - 1], sorted[upper]),
        }
    }

    /// The reading below which so many of a hundred are; of few, the largest; 0 of none.
    pub(crate) fn percentile(&self, share: usize) -> f64 {
        let sorted = self.sorted();
        let at = (sorted.len() * share).div_ceil(100).max(1) - 1;
        sorted.get(at).copied().unwrap_or(0.0)
    }

    /// Least and largest.
    pub(crate) fn range(&self) -> (f64, f64) {
        let sorted = self.sorted();
        (sorted.first().copied().unwrap_or(0.0), sorted.last().copied().unwrap_or(0.0))
    }

    /// For the file.
    pub(crate) fn json(&self) -> Value {
        json!({"median_s": self.median(), "min_s": self.range().0, "max_s": self.range().1, "readings_s": self.0})
    }

    /// For the table.
    pub(crate) fn text(&self) -> String {
        let (min, max) = self.range();
        format!("{:.3} s ({min:.3}-{max:.3})", self.median())
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

#[cfg(test)]
mod tests {
    use super::Readings;

    #[test]
    fn medians() {
        for (readings, median) in [(vec![], 0.0), (vec![3.0, 1.0, 2.0], 2.0), (vec![4.0, 1.0, 2.0, 3.0], 2.5)] {
            assert!((Readings(readings).median() - median).abs() < 1e-9);
        }
        let hundred = Readings((1..=100).map(f64::from).collect());
        assert_eq!([50, 99, 100].map(|share| hundred.percentile(share)), [50.0, 99.0, 100.0]);
        assert_eq!((Readings(vec![2.0]).percentile(99), Readings::default().percentile(50)), (2.0, 0.0));
        assert_eq!(Readings(vec![3.0, 1.0, 2.0]).text(), "2.000 s (1.000-3.000)");
    }
}
