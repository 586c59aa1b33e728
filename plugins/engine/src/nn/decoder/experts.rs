//! A mixture of experts (Shazeer et al. 2017): each token passes through the few networks that a router chooses for it.

use aihost_plugin_api::{Error, Result};

use super::config::{Biases, DecoderConfig, Experts};
use super::layer::Dense;
use super::names::ExpertNames;
use crate::nn::weights::{Bias, Projection, Weights, project};
use crate::ops::{Activation, Ops};

/// The experts of a block.
pub(super) struct Mixture<O: Ops> {
    shape: Experts,
    router: Projection<O>,
    /// Gate, up and down.
    experts: Vec<[O::Matrix; 3]>,
    /// The biases of all experts' gates, ups and downs, where there are any.
    biases: [Option<Vec<O::Vector>>; 3],
    shared: Option<SharedExpert<O>>,
    /// What each expert's shares are multiplied with.
    scales: Option<Vec<f32>>,
}

/// The expert that every token goes to.
struct SharedExpert<O: Ops> {
    network: Dense<O>,
    /// What tells how much of it a token gets.
    share: Projection<O>,
}

/// One token's share of one expert.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Share {
    expert: usize,
    row: usize,
    weight: f32,
}

impl<O: Ops> Mixture<O> {
    pub(super) fn open(weights: &mut Weights<'_, O>, c: &DecoderConfig, prefix: &str, shape: Experts) -> Result<Self> {
        let (names, hidden) = (c.names, c.hidden);
        let has_biases = c.biases == Biases::AsStored;
        let router = format!("{prefix}.{}", names.router);
        let bias = if has_biases { Bias::AsStored } else { Bias::None };
        let router = weights.projection(&router, [shape.count, hidden], 0..shape.count, bias)?;
        let sizes = [[shape.feed_forward, hidden], [shape.feed_forward, hidden], [hidden, shape.feed_forward]];
        let is_fused = match names.experts {
            ExpertNames::Stacked { fused, suffix, .. } => weights.has(&format!("{prefix}.{fused}{suffix}")),
            ExpertNames::Apart(..) => false,
        };
        let mut part = |expert: usize, part: usize| {
            let [rows, columns] = sizes[part];
            match names.experts {
                ExpertNames::Stacked { fused, suffix, .. } if is_fused && part < 2 => {
                    let (name, start) = (format!("{prefix}.{fused}{suffix}"), (2 * expert + part) * rows);
                    weights.matrix(&name, &[shape.count, 2 * rows, columns], start..start + rows)
                }
                ExpertNames::Stacked { parts, suffix, .. } => {
                    let name = format!("{prefix}.{}{suffix}", parts[part]);
                    weights.matrix(&name, &[shape.count, rows, columns], expert * rows..(expert + 1) * rows)
                }
                ExpertNames::Apart(all, parts) => {
                    let name = format!("{prefix}.{all}.{expert}.{}.weight", parts[part]);
                    weights.matrix(&name, &[rows, columns], 0..rows)
                }
            }
        };
        let experts = (0..shape.count).map(|i| Ok([part(i, 0)?, part(i, 1)?, part(i, 2)?])).collect::<Result<_>>()?;
        let mut biases = [None, None, None];
        if let ExpertNames::Stacked { parts, .. } = names.experts {
            for ((biases, part), [rows, _]) in biases.iter_mut().zip(parts).zip(sizes) {
                let name = format!("{prefix}.{part}.bias");
                if has_biases && weights.has(&name) {
                    *biases = Some(weights.vectors(&name, shape.count, rows)?);
                }
            }
        }
        let shared = shape.shared.map(|inner| SharedExpert::open(weights, c, prefix, inner)).transpose()?;
        Ok(Self { shape, router, experts, biases, shared, scales: None })
    }

    /// With shares that are multiplied with these.
    pub(super) fn scaled(self, scales: Vec<f32>) -> Self {
        Self { scales: Some(scales), ..self }
    }

    /// What the experts give for each row, added up by its shares, which follow from `routed`.
    pub(super) fn forward(
        &self,
        ops: &O,
        routed: &O::Tensor,
        x: &O::Tensor,
        activation: Activation,
    ) -> Result<O::Tensor> {
        let [scores] = project(ops, routed, [&self.router])?;
        let mut shares = self.shape.shares(&ops.to_host(&scores)?);
        if let Some(scales) = &self.scales {
            shares.iter_mut().for_each(|share| share.weight *= scales[share.expert]);
        }
        let rows: Vec<usize> = shares.iter().map(|share| share.row).collect();
        let chosen = ops.select(x, &rows)?;
        let groups: Vec<(usize, usize)> =
            shares.chunk_by(|a, b| a.expert == b.expert).map(|group| (group.len(), group[0].expert)).collect();
        let product = |x: &O::Tensor, part: usize| {
            let matrices: Vec<_> = groups.iter().map(|(rows, expert)| (*rows, &self.experts[*expert][part])).collect();
            let mut product = ops.linear_grouped(x, &matrices)?;
            if let Some(biases) = &self.biases[part] {
                let biases: Vec<_> = groups.iter().map(|(rows, expert)| (*rows, &biases[*expert])).collect();
                ops.add_grouped(&mut product, &biases)?;
            }
            Ok::<_, Error>(product)
        };
        let (gate, up) = (product(&chosen, 0)?, product(&chosen, 1)?);
        let given = product(&ops.gated(gate, &up, activation)?, 2)?;
        let places: Vec<(usize, f32)> = shares.iter().map(|share| (share.row, share.weight)).collect();
        let mut sums = ops.weighted_sums(&given, &places, shares.len() / self.shape.used.max(1))?;
        if let Some(shared) = &self.shared {
            ops.add(&mut sums, &shared.forward(ops, x, activation)?)?;
        }
        Ok(sums)
    }
}

impl<O: Ops> SharedExpert<O> {
    fn open(weights: &mut Weights<'_, O>, c: &DecoderConfig, prefix: &str, inner: usize) -> Result<Self> {
        let [gate, up, down, share] = c.names.shared_expert;
        let network = Dense::open(weights, c, prefix, [gate, up, down], inner)?;
        Ok(Self { network, share: weights.projection(&format!("{prefix}.{share}"), [1, c.hidden], 0..1, Bias::None)? })
    }

    fn forward(&self, ops: &O, x: &O::Tensor, activation: Activation) -> Result<O::Tensor> {
        let [shares] = project(ops, x, [&self.share])?;
        let shares = ops.to_host(&ops.activate(shares, Activation::Sigmoid)?)?;
        let places: Vec<(usize, f32)> = shares.into_iter().enumerate().collect();
        ops.weighted_sums(&self.network.forward(ops, x, activation)?, &places, places.len())
    }
}

impl Experts {
    /// Which rows go to which experts, by scores `[rows, count]`: expert by expert, and each expert's rows in order.
    fn shares(&self, scores: &[f32]) -> Vec<Share> {
        let rows = scores.chunks_exact(self.count).enumerate();
        let mut shares: Vec<Share> = rows.flat_map(|(row, scores)| self.shares_of(row, scores)).collect();
        shares.sort_by_key(|share| (share.expert, share.row));
        shares
    }

    fn shares_of(&self, row: usize, scores: &[f32]) -> Vec<Share> {
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut shares: Vec<Share> =
            scores.iter().enumerate().map(|(expert, x)| Share { expert, row, weight: (x - largest).exp() }).collect();
        let sum = |shares: &[Share]| shares.iter().map(|share| share.weight).sum::<f32>();
        let all = sum(&shares);
        // Of equals the first.
        shares.sort_by(|a, b| b.weight.total_cmp(&a.weight).then(a.expert.cmp(&b.expert)));
        shares.truncate(self.used);
        let all = if self.is_normalised { sum(&shares) } else { all };
        shares.iter_mut().for_each(|share| share.weight /= all);
        shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Experts = Experts { count: 4, used: 2, feed_forward: 8, is_normalised: false, shared: None };

    #[test]
    fn a_token_goes_to_its_largest_shares() {
        let shares = SHAPE.shares(&[0.0, 2.0, 1.0, -1.0, 5.0, 0.0, 5.0, 5.0]);
        let places: Vec<(usize, usize)> = shares.iter().map(|share| (share.expert, share.row)).collect();
        assert_eq!(places, [(0, 1), (1, 0), (2, 0), (2, 1)]);
        let all: f32 = [0.0f32, 2.0, 1.0, -1.0].iter().map(|x| x.exp()).sum();
        assert!((shares[1].weight - 2f32.exp() / all).abs() < 1e-6);
        let normalised = Experts { is_normalised: true, ..SHAPE }.shares(&[0.0, 2.0, 1.0, -1.0]);
        assert!((normalised.iter().map(|share| share.weight).sum::<f32>() - 1.0).abs() < 1e-6);
    }
}
