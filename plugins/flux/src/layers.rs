//! What blocks are made of: linear layers over weights in their files.

use aihost_engine::cpu::rows::{self, Activation};
use aihost_plugin_api::Result;
use aihost_support::checkpoint::Layers;
use aihost_support::dense::{self, Dense};
use aihost_support::gemm::{View, ViewMut};
use rayon::prelude::*;

/// A linear layer; its weights may be several matrices that give parts of one output.
#[derive(Debug)]
pub struct Linear {
    pub(crate) parts: Vec<Dense>,
    /// (width); empty if the layer has none.
    pub bias: Vec<f32>,
}

impl Linear {
    /// The layer `name` with a bias.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(layers: &dyn Layers, name: &str, rows: usize, columns: usize) -> Result<Self> {
        Self::stack(layers, &[(name, rows)], columns)
    }

    /// Layers of one input, their outputs side by side.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn stack(layers: &dyn Layers, names: &[(&str, usize)], columns: usize) -> Result<Self> {
        let mut whole = Self { parts: Vec::new(), bias: Vec::new() };
        for (name, rows) in names {
            whole.parts.push(layers.matrix(&format!("{name}.weight"), *rows, columns)?);
            whole.bias.extend(layers.tensor_f32(&format!("{name}.bias"), &[*rows])?);
        }
        Ok(whole)
    }

    /// The layer that gives outputs `range` of a layer of one part.
    #[must_use]
    pub fn part(&self, range: std::ops::Range<usize>) -> Self {
        Self {
            parts: self.parts.iter().map(|part| part.part(range.clone())).collect(),
            bias: self.bias[range].to_vec(),
        }
    }

    /// Width of an output.
    pub fn width(&self) -> usize {
        self.parts.iter().map(Dense::rows).sum()
    }

    /// Width of an input.
    pub fn columns(&self) -> usize {
        self.parts.first().map_or(0, Dense::columns)
    }

    /// `out`, whose rows begin `stride` apart, = `x` (rows, columns) times the weights. Without the bias: who uses the
    /// result adds it in the same pass.
    ///
    /// # Errors
    /// If a weight file cannot be read.
    pub fn project(&self, x: &[f32], out: &mut [f32], stride: usize) -> Result<()> {
        let (columns, count) = (self.columns(), x.len() / self.columns());
        let parts: Vec<&Dense> = self.parts.iter().collect();
        dense::project(View::rows(x, count, columns, columns), &parts, ViewMut::rows(out, count, self.width(), stride))
    }

    /// The whole layer: `x` (rows, columns) to (rows, width), bias and activation included.
    ///
    /// # Errors
    /// If a weight file cannot be read.
    pub fn forward(&self, x: &[f32], activation: Option<Activation>) -> Result<Vec<f32>> {
        let width = self.width();
        let mut out = vec![0.0; x.len() / self.columns() * width];
        self.project(x, &mut out, width)?;
        out.par_chunks_exact_mut(width).for_each(|row| match activation {
            Some(activation) => rows::activate(activation, row, &self.bias),
            None => rows::add_bias(row, &self.bias),
        });
        Ok(out)
    }

    /// Bytes kept beside the file.
    pub fn bytes(&self) -> u64 {
        4 * self.bias.len() as u64
    }
}
