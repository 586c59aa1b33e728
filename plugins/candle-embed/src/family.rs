//! The families of encoders that are served: one row each.

use aihost_engine::nn::encoder::{Gate, Names};
use aihost_engine::ops::Activation;

/// What the members of a family have in common.
#[derive(Debug, PartialEq)]
pub struct Family {
    /// `model_type` in its `config.json`.
    pub model_types: &'static [&'static str],
    pub names: &'static Names,
    pub has_norms_before: bool,
    pub positions: PositionKind,
    pub has_kinds: bool,
    /// Where its `config.json` does not name it.
    pub activation: Activation,
    pub gate: Gate,
}

/// How a family knows positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PositionKind {
    /// By a table, from its first row on.
    Learned,
    /// By a table, behind the rows up to that of padding.
    LearnedBehindPadding,
    /// By one rotary embedding.
    Rotary,
    /// By two, of which the second is for layers that see only what is near.
    RotaryNear,
}

/// What checkpoints have beside an encoder: positions that follow from the configuration, and what was there to train it.
const UNUSED: &[&str] = &[
    "position_ids",
    "pooler.dense.weight",
    "pooler.dense.bias",
    "predictions.bias",
    "predictions.transform.dense.weight",
    "predictions.transform.dense.bias",
    "predictions.transform.LayerNorm.weight",
    "predictions.transform.LayerNorm.bias",
    "predictions.decoder.weight",
    "predictions.decoder.bias",
    "seq_relationship.weight",
    "seq_relationship.bias",
    "lm_head.bias",
    "lm_head.decoder.weight",
    "lm_head.decoder.bias",
    "lm_head.dense.weight",
    "lm_head.dense.bias",
    "lm_head.layer_norm.weight",
    "lm_head.layer_norm.bias",
    "rotary_emb.inv_freq",
];

const BERT_NAMES: Names = Names {
    roots: &["", "bert.", "model."],
    tokens: "embeddings.word_embeddings.weight",
    positions: "embeddings.position_embeddings.weight",
    kinds: "embeddings.token_type_embeddings.weight",
    embedding_norm: "embeddings.LayerNorm",
    layers: "encoder.layer",
    attention: &["attention.self.query", "attention.self.key", "attention.self.value"],
    output: "attention.output.dense",
    norms: ["attention.output.LayerNorm", "output.LayerNorm"],
    inner: &["intermediate.dense"],
    outer: "output.dense",
    norm: "",
    scorer: ["pooler.dense", "", "classifier"],
    unused: UNUSED,
};

const ROBERTA_NAMES: Names =
    Names { roots: &["", "roberta.", "model."], scorer: ["classifier.dense", "", "classifier.out_proj"], ..BERT_NAMES };

const NOMIC_NAMES: Names = Names {
    roots: &["", "nomic_bert.", "bert.", "model."],
    embedding_norm: "emb_ln",
    layers: "encoder.layers",
    attention: &["attn.Wqkv"],
    output: "attn.out_proj",
    norms: ["norm1", "norm2"],
    inner: &["mlp.fc12", "mlp.fc11"],
    outer: "mlp.fc2",
    ..BERT_NAMES
};

const MODERN_NAMES: Names = Names {
    roots: &["", "model."],
    tokens: "embeddings.tok_embeddings.weight",
    embedding_norm: "embeddings.norm",
    layers: "layers",
    attention: &["attn.Wqkv"],
    output: "attn.Wo",
    norms: ["attn_norm", "mlp_norm"],
    inner: &["mlp.Wi"],
    outer: "mlp.Wo",
    norm: "final_norm",
    scorer: ["head.dense", "head.norm", "classifier"],
    unused: &["head.dense.weight", "head.norm.weight", "decoder.weight", "decoder.bias"],
    ..BERT_NAMES
};

const BERT: Family = Family {
    model_types: &["bert"],
    names: &BERT_NAMES,
    has_norms_before: false,
    positions: PositionKind::Learned,
    has_kinds: true,
    activation: Activation::Gelu,
    gate: Gate::None,
};

/// All families.
pub const FAMILIES: [Family; 4] = [
    BERT,
    Family {
        model_types: &["xlm-roberta", "roberta", "camembert"],
        names: &ROBERTA_NAMES,
        positions: PositionKind::LearnedBehindPadding,
        ..BERT
    },
    Family {
        model_types: &["nomic_bert"],
        names: &NOMIC_NAMES,
        positions: PositionKind::Rotary,
        activation: Activation::Silu,
        gate: Gate::Apart,
        ..BERT
    },
    Family {
        model_types: &["modernbert"],
        names: &MODERN_NAMES,
        has_norms_before: true,
        positions: PositionKind::RotaryNear,
        has_kinds: false,
        gate: Gate::First,
        ..BERT
    },
];

impl Family {
    /// That of a `config.json`.
    pub fn of(model_type: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.model_types.contains(&model_type))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_host_knows_the_same_families() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../host/src/cli/models/add/layout.rs");
        let source = std::fs::read_to_string(path).expect("it is there");
        let list = source.split("const ENCODERS: ").nth(1).and_then(|rest| rest.split("];").next()).expect("a list");
        let theirs: BTreeSet<&str> = list.split('"').skip(1).step_by(2).collect();
        assert_eq!(theirs, FAMILIES.iter().flat_map(|family| family.model_types).copied().collect());
    }
}
