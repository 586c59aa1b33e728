//! The rows that a stream still needs, the last ones, under the indices that they had from its start.

/// The last rows of a matrix (frames, width) that grows, f32.
#[derive(Debug)]
pub(crate) struct RollingRows {
    width: usize,
    /// Rows that are no longer here.
    forgotten: usize,
    rows: Vec<f32>,
}

impl RollingRows {
    pub(crate) fn new(width: usize) -> Self {
        Self { width, forgotten: 0, rows: Vec::new() }
    }

    /// Rows so far, the forgotten ones among them.
    pub(crate) fn frames(&self) -> usize {
        self.forgotten + self.rows.len() / self.width
    }

    /// A new row, of zeros.
    pub(crate) fn push(&mut self) -> &mut [f32] {
        let at = self.rows.len();
        self.rows.resize(at + self.width, 0.0);
        &mut self.rows[at..]
    }

    /// More rows, element by element.
    pub(crate) fn extend(&mut self, values: impl Iterator<Item = f32>) {
        self.rows.extend(values);
    }

    /// Some rows, none of them forgotten.
    pub(crate) fn rows(&self, range: std::ops::Range<usize>) -> &[f32] {
        &self.rows[(range.start - self.forgotten) * self.width..(range.end - self.forgotten) * self.width]
    }

    /// Drops the rows before `frame`.
    pub(crate) fn forget(&mut self, frame: usize) {
        let rows = frame.saturating_sub(self.forgotten);
        self.rows.drain(..rows * self.width);
        self.forgotten += rows;
    }
}

#[cfg(test)]
mod tests {
    use super::RollingRows;

    #[test]
    fn rows_keep_their_numbers() {
        let mut rows = RollingRows::new(2);
        for i in 0..4u8 {
            rows.push().fill(f32::from(i));
        }
        rows.extend([4.0, 4.0].into_iter());
        rows.forget(3);
        rows.forget(1);
        assert_eq!((rows.frames(), rows.rows(3..5)), (5, [3.0, 3.0, 4.0, 4.0].as_slice()));
    }
}
