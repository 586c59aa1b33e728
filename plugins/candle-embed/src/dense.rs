//! Layers that stand behind the pooling of some models of sentence-transformers (`models.Dense`).

use std::path::Path;

use aihost_engine::cpu::{Linear, project};
use aihost_engine::files::Tensors;
use aihost_plugin_api::Result;
use aihost_support::settings::Settings;
use serde::Deserialize;

/// Most elements of a vector: far above any model.
const MAX_WIDTH: u64 = 1 << 20;

/// A product, and an activation behind it.
#[derive(Debug)]
pub struct Dense {
    weight: Linear,
    bias: Option<Vec<f32>>,
    is_bent: bool,
}

/// Its `config.json`.
#[derive(Debug, Deserialize)]
struct Config {
    in_features: u64,
    out_features: u64,
    activation_function: Option<String>,
}

impl Dense {
    /// Opens a layer's folder; what goes in has `width` elements.
    ///
    /// # Errors
    /// `MissingFile`, `CorruptFile` and `Unsupported`, each of which names its file.
    pub fn open(folder: &Path, width: usize) -> Result<Self> {
        let path = folder.join("config.json");
        let file = Settings(&path);
        let config: Config =
            file.json()?.ok_or_else(|| file.missing("a layer that modules.json names needs its config.json"))?;
        let input = file.size("in_features", config.in_features, MAX_WIDTH)?;
        let output = file.size("out_features", config.out_features, MAX_WIDTH)?;
        if input != width {
            return Err(file.corrupt(format!("`in_features` is {input}, and what stands before it gives {width}")));
        }
        let activation = config.activation_function.as_deref().unwrap_or("torch.nn.modules.activation.Tanh");
        let is_bent = match activation.rsplit('.').next() {
            Some("Identity") => false,
            Some("Tanh") => true,
            _ => {
                let what = format!("`activation_function` is `{activation}`, and candle-embed has Identity and Tanh");
                return Err(file.unsupported(what));
            }
        };
        let tensors = Tensors::open(folder)?;
        let weight = Linear::open(&tensors, "linear.weight", output, input)?;
        let bias = tensors.has_tensor("linear.bias").then(|| tensors.vector("linear.bias", output)).transpose()?;
        Ok(Self { weight, bias, is_bent })
    }

    /// Elements of what it gives.
    pub fn width(&self) -> usize {
        self.weight.rows()
    }

    /// `activation(weight * vector + bias)`
    pub fn apply(&self, vector: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; self.width()];
        project(vector, 1, &mut [(&self.weight, out.as_mut_slice())]);
        out.iter_mut().zip(self.bias.iter().flatten()).for_each(|(x, bias)| *x += bias);
        if self.is_bent {
            out.iter_mut().for_each(|x| *x = x.tanh());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::{Dtype, TensorView};

    use super::*;

    fn folder(config: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let (weight, bias) = (bytes(&[1.0, 2.0, 0.0, -1.0, 0.5, 0.5]), bytes(&[0.0, 1.0, 0.25]));
        let tensors = [
            ("linear.weight", TensorView::new(Dtype::F32, vec![3, 2], &weight).unwrap()),
            ("linear.bias", TensorView::new(Dtype::F32, vec![3], &bias).unwrap()),
        ];
        std::fs::write(folder.path().join("model.safetensors"), safetensors::serialize(tensors, None).unwrap())
            .unwrap();
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        folder
    }

    #[test]
    fn a_layer_is_a_product_and_what_bends_it() {
        let config = |activation: &str| {
            format!(r#"{{"in_features": 2, "out_features": 3, "activation_function": "{activation}"}}"#)
        };
        let plain = folder(&config("torch.nn.modules.linear.Identity"));
        let plain = Dense::open(plain.path(), 2).unwrap();
        assert_eq!((plain.width(), plain.apply(&[1.0, 0.5])), (3, vec![2.0, 0.5, 1.0]));
        let bent = folder(&config("torch.nn.modules.activation.Tanh"));
        assert_eq!(Dense::open(bent.path(), 2).unwrap().apply(&[1.0, 0.5]), [2.0, 0.5, 1.0].map(f32::tanh));
        for (config, width, words) in [
            (config("torch.nn.modules.activation.ReLU"), 2, "`activation_function`"),
            (config("x.Identity"), 4, "`in_features` is 2, and what stands before it gives 4"),
            ("{".to_owned(), 2, "config.json"),
        ] {
            let told = Dense::open(folder(&config).path(), width).unwrap_err();
            assert!(told.message().contains(words), "{told}");
        }
    }
}
