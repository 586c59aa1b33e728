//! Products of f32 matrices in slices, with strides, through the `gemm` crate.
//!
//! The views check once that every element lies in their slice; after that the product runs on raw pointers. Nothing here
//! knows a layer.
#![expect(unsafe_code, reason = "the product takes raw pointers, and threads write to disjoint columns of one slice")]

use std::marker::PhantomData;

use gemm::Parallelism;

/// A matrix in a slice: element (row, column) lies at `row * row_stride + column * column_stride`.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix of `columns` elements a row, with rows `stride` elements apart.
    ///
    /// # Panics
    /// If the last element lies past the slice.
    pub fn rows(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        check(data.len(), rows, columns, stride);
        Self { data, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// The transpose, of the same elements.
    #[must_use]
    pub fn transposed(self) -> Self {
        let Self { data, rows, columns, row_stride, column_stride } = self;
        Self { data, rows: columns, columns: rows, row_stride: column_stride, column_stride: row_stride }
    }
}

/// A matrix to write, by rows.
#[derive(Debug)]
pub struct ViewMut<'a> {
    data: *mut f32,
    rows: usize,
    columns: usize,
    stride: usize,
    _life: PhantomData<&'a mut [f32]>,
}

// SAFETY: a `ViewMut` stands for a `&mut [f32]` of which it alone has the elements that it covers.
unsafe impl Send for ViewMut<'_> {}

impl<'a> ViewMut<'a> {
    /// A row-major matrix of `columns` elements a row, with rows `stride` elements apart.
    ///
    /// # Panics
    /// If the last element lies past the slice, or rows overlap.
    pub fn rows(data: &'a mut [f32], rows: usize, columns: usize, stride: usize) -> Self {
        check(data.len(), rows, columns, stride);
        Self { data: data.as_mut_ptr(), rows, columns, stride, _life: PhantomData }
    }

    /// How many rows it has.
    pub fn height(&self) -> usize {
        self.rows
    }

    /// How many columns it has.
    pub fn width(&self) -> usize {
        self.columns
    }

    /// Cuts it into pieces of `widths` columns, left to right.
    ///
    /// # Panics
    /// If they are wider than it together.
    pub fn split(self, widths: impl IntoIterator<Item = usize>) -> Vec<ViewMut<'a>> {
        let mut at = 0;
        let piece = |columns| {
            assert!(at + columns <= self.columns, "pieces of a matrix are wider than it");
            // SAFETY: `at` is at most `columns`, and the first row lies in the slice unless there is no row at all.
            let data = if self.rows == 0 { self.data } else { unsafe { self.data.add(at) } };
            at += columns;
            ViewMut { data, columns, ..self }
        };
        widths.into_iter().map(piece).collect()
    }
}

fn check(length: usize, rows: usize, columns: usize, stride: usize) {
    let end = if rows == 0 || columns == 0 { 0 } else { (rows - 1) * stride + columns };
    assert!(end <= length && (columns <= stride || rows <= 1), "a matrix of {rows} x {columns} lies past its slice");
}

/// `out` = `factor` times `a` times `b`, on this thread.
///
/// # Panics
/// If the sizes do not fit each other.
pub fn matmul(a: View<'_>, b: View<'_>, factor: f32, out: &mut ViewMut<'_>) {
    assert!(a.columns == b.rows && out.rows == a.rows && out.columns == b.columns, "a product of the wrong size");
    if out.rows == 0 || out.columns == 0 {
        return;
    }
    // SAFETY: the constructors of the views checked that every element lies in its slice; `out` is written by nobody
    // else, and cannot overlap `a` or `b`, because it stands for a unique borrow. With `read_dst` false, `out` is only
    // written. Strides of slices fit an isize.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.data,
            1,
            out.stride as isize,
            false,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            0.0,
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test_values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed) % 211) as f32 / 211.0 - 0.5).collect()
    }

    #[test]
    fn strided_products_are_those_of_f64() {
        for (m, k, n) in [(1, 1, 1), (5, 7, 3), (33, 64, 17), (4, 130, 70)] {
            let (stride_a, stride_b, stride_out) = (k + 3, k + 1, n + 5);
            let (a, b) = (test_values(m * stride_a, 1), test_values(n * stride_b, 2));
            let mut out = vec![7.0; m * stride_out];
            let (left, right) = (View::rows(&a, m, k, stride_a), View::rows(&b, n, k, stride_b).transposed());
            let half = n / 2;
            let mut pieces = ViewMut::rows(&mut out, m, n, stride_out).split([half, n - half]);
            matmul(left, View::rows(&b, half, k, stride_b).transposed(), 2.0, &mut pieces[0]);
            matmul(left, View::rows(&b[half * stride_b..], n - half, k, stride_b).transposed(), 2.0, &mut pieces[1]);
            let mut whole = vec![0.0; m * n];
            matmul(left, right, 2.0, &mut ViewMut::rows(&mut whole, m, n, n));
            for row in 0..m {
                for column in 0..n {
                    let of = |i| f64::from(a[row * stride_a + i]) * f64::from(b[column * stride_b + i]);
                    let wanted = 2.0 * (0..k).map(of).sum::<f64>();
                    assert!((f64::from(out[row * stride_out + column]) - wanted).abs() < 1e-4);
                    assert!((f64::from(whole[row * n + column]) - wanted).abs() < 1e-4);
                }
                assert!(out[row * stride_out + n..(row + 1) * stride_out].iter().all(|kept| *kept == 7.0));
            }
        }
    }

    #[test]
    #[should_panic(expected = "past its slice")]
    fn a_view_past_its_slice_is_refused() {
        View::rows(&[0.0; 10], 3, 4, 4);
    }

    #[test]
    #[should_panic(expected = "past its slice")]
    fn rows_that_overlap_are_not_written() {
        ViewMut::rows(&mut [0.0; 10], 3, 4, 3);
    }
}
