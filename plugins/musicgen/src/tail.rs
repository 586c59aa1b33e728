//! What a stream keeps of rows that come for as long as it lasts: the last ones, under the numbers that they had.

/// The last rows of a matrix that grows.
#[derive(Debug)]
pub(crate) struct Tail {
    width: usize,
    /// Rows that are no longer here.
    forgotten: usize,
    rows: Vec<f32>,
}

impl Tail {
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

    /// More rows, number by number.
    pub(crate) fn extend(&mut self, numbers: impl Iterator<Item = f32>) {
        self.rows.extend(numbers);
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
    use super::Tail;

    #[test]
    fn rows_keep_their_numbers() {
        let mut tail = Tail::new(2);
        for i in 0..4u8 {
            tail.push().fill(f32::from(i));
        }
        tail.extend([4.0, 4.0].into_iter());
        tail.forget(3);
        tail.forget(1);
        assert_eq!((tail.frames(), tail.rows(3..5)), (5, [3.0, 3.0, 4.0, 4.0].as_slice()));
    }
}
