//! The tensors of a model, as its parts open them.

use std::ops::Range;

use aihost_plugin_api::{Error, ErrorKind, Result};

use crate::cpu::Linear;
use crate::files::Tensors;
use crate::ops::Ops;

/// Opens the tensors of a file, and remembers which.
pub(super) struct Weights<'a, O: Ops> {
    ops: &'a O,
    file: &'a Tensors,
    used: Vec<String>,
}

/// A matrix with what is added to its products.
pub(super) struct Projection<O: Ops> {
    matrix: O::Matrix,
    bias: Option<O::Vector>,
}

/// Whether a matrix has a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bias {
    None,
    Needed,
    /// If the file has one.
    AsStored,
}

impl<'a, O: Ops> Weights<'a, O> {
    pub(super) fn new(ops: &'a O, file: &'a Tensors) -> Self {
        Self { ops, file, used: Vec::new() }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.file.has_tensor(name)
    }

    /// That a tensor is of no use, whatever it holds.
    pub(super) fn leave_out(&mut self, name: String) {
        self.used.push(name);
    }

    pub(super) fn table(&mut self, name: &str, rows: usize, columns: usize) -> Result<O::Table> {
        self.used.push(name.to_owned());
        self.ops.table(self.file, name, rows, columns)
    }

    /// Rows of a tensor of this shape, whose last size is that of a row.
    pub(super) fn matrix(&mut self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<O::Matrix> {
        self.used.push(name.to_owned());
        self.ops.matrix_rows(self.file, name, shape, rows)
    }

    /// A vector of `len` elements.
    pub(super) fn values(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.used.push(name.to_owned());
        self.file.vector(name, len)
    }

    /// Each row of a matrix of vectors.
    pub(super) fn vectors(&mut self, name: &str, rows: usize, columns: usize) -> Result<Vec<O::Vector>> {
        self.used.push(name.to_owned());
        let linear = Linear::open(self.file, name, rows, columns)?;
        let row = |i: usize| {
            let mut row = vec![0.0; columns];
            linear.row(i, &mut row);
            self.ops.vector(row)
        };
        (0..rows).map(row).collect()
    }

    pub(super) fn vector(&mut self, name: &str, len: usize) -> Result<O::Vector> {
        let values = self.values(name, len)?;
        self.ops.vector(values)
    }

    /// Rows of `NAME.weight`, a matrix of this shape, and of `NAME.bias`.
    pub(super) fn projection(
        &mut self,
        name: &str,
        shape: [usize; 2],
        rows: Range<usize>,
        bias: Bias,
    ) -> Result<Projection<O>> {
        let bias_name = format!("{name}.bias");
        let has_bias = bias == Bias::Needed || (bias == Bias::AsStored && self.has(&bias_name));
        let matrix = self.matrix(&format!("{name}.weight"), &shape, rows.clone())?;
        let bias = if has_bias { Some(self.values(&bias_name, shape[0])?[rows].to_vec()) } else { None };
        Ok(Projection { matrix, bias: bias.map(|bias| self.ops.vector(bias)).transpose()? })
    }

    /// The kernel of a convolution of each channel, `[channels, taps]` or `[channels, 1, taps]`: tap by tap, `[taps, channels]`.
    pub(super) fn kernel(&mut self, name: &str, channels: usize, taps: usize) -> Result<O::Vector> {
        self.used.push(name.to_owned());
        let is_flat = self.file.tensor(name)?.dimensions.len() == 2;
        let shape = if is_flat { &[channels, taps][..] } else { &[channels, 1, taps] };
        let kernel = Linear::open_rows(self.file, name, shape, 0..channels)?;
        let (mut values, mut row) = (vec![0.0; taps * channels], vec![0.0; taps]);
        for channel in 0..channels {
            kernel.row(channel, &mut row);
            row.iter().enumerate().for_each(|(tap, x)| values[tap * channels + channel] = *x);
        }
        self.ops.vector(values)
    }

    /// That the file has nothing else but what ends with one of these, or begins with it where it ends with a dot.
    pub(super) fn check_rest(mut self, unused: &[&str]) -> Result<()> {
        self.used.sort();
        let is_used = |name: &str| {
            self.used.binary_search_by(|used| used.as_str().cmp(name)).is_ok()
                || unused.iter().any(|part| name.ends_with(part) || (part.ends_with('.') && name.starts_with(part)))
        };
        match self.file.iter().find(|(name, _)| !is_used(name)) {
            None => Ok(()),
            Some((extra, _)) => Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{}: the tensor {extra} is of no use to a model of this kind; this variant is not served here",
                    self.file.name()
                ),
            )),
        }
    }
}

/// Products with their biases.
pub(super) fn project<O: Ops, const N: usize>(
    ops: &O,
    x: &O::Tensor,
    projections: [&Projection<O>; N],
) -> Result<[O::Tensor; N]> {
    let mut products = ops.linear(x, projections.map(|projection| &projection.matrix))?;
    for (product, projection) in products.iter_mut().zip(projections) {
        if let Some(bias) = &projection.bias {
            ops.add_vector(product, bias)?;
        }
    }
    Ok(products)
}
