//! The families of decoders that are served: one row each.

use aihost_engine::nn::decoder::{
    Biases, GGUF_NAMES, GGUF_NAMES_LFM2, GGUF_NAMES_POST_ATTENTION, HUGGING_FACE_NAMES, HUGGING_FACE_NAMES_AROUND,
    HUGGING_FACE_NAMES_GLM4, HUGGING_FACE_NAMES_LFM2, LayerConfig, Names, Norms,
};
use aihost_engine::ops::{Activation, RotaryOrder};

/// What the members of a family have in common.
#[derive(Debug, PartialEq)]
pub struct Family {
    /// `general.architecture` of its GGUF files.
    pub gguf: &'static str,
    /// `model_type` in its `config.json`.
    pub hugging_face: &'static [&'static str],
    /// Which elements are rotated together in GGUF files, for which converters reorder some.
    pub gguf_order: RotaryOrder,
    /// Which are in Hugging Face's folders.
    pub hugging_face_order: RotaryOrder,
    pub norms: Norms,
    pub has_head_norms: bool,
    pub biases: Biases,
    /// Whether queries, keys and values are one matrix.
    pub has_fused_attention: bool,
    /// Whether gate and up are one matrix.
    pub has_fused_network: bool,
    /// Whether each head's query comes with a gate of what the head finds.
    pub has_query_gates: bool,
    /// What its layers without keys and values have in place of attention.
    pub recurrent: Recurrent,
    pub activation: Activation,
    /// Whether embeddings are multiplied with the root of their width.
    pub scales_embeddings: bool,
    /// What Hugging Face's checkpoints leave out of the scales of norms.
    pub norm_offset: f32,
    pub windows: Windows,
    /// Whether layers with windows have a rotary embedding of their own, and its base.
    pub window_rope_base: Option<f32>,
    /// Every so-manieth layer does not know positions.
    pub unrotated: Option<usize>,
    pub has_experts: bool,
    /// How its GGUF files call tensors.
    pub gguf_names: &'static Names,
    /// How its folders do.
    pub hugging_face_names: &'static Names,
    /// Whether the table of tokens is the output's matrix too where a folder does not say.
    pub is_tied: bool,
    /// Whether each head has a score of seeing nothing.
    pub has_sinks: bool,
    /// Whether YaRN's slowing begins and ends at whole pairs.
    pub yarn_has_whole_pairs: bool,
    /// Layers of a member whose scores are scaled by `hidden / heads`, not by the width of a head.
    pub scaled_by_hidden: Option<usize>,
}

/// Which layers see only what is near, where a file names a window and does not say which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// None.
    None,
    /// All.
    All,
    /// All but every so-manieth.
    AllBut(usize),
}

/// What layers without keys and values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recurrent {
    /// There are none.
    None,
    /// Gated delta nets; in GGUF files their heads are reordered.
    DeltaNet,
    /// Gated convolutions.
    ShortConvolution,
}

const LLAMA: Family = Family {
    gguf: "llama",
    hugging_face: &["llama"],
    gguf_order: RotaryOrder::Interleaved,
    hugging_face_order: RotaryOrder::Halves,
    norms: Norms::Before,
    has_head_norms: false,
    biases: Biases::AsStored,
    has_fused_attention: false,
    has_fused_network: false,
    has_query_gates: false,
    recurrent: Recurrent::None,
    activation: Activation::Silu,
    scales_embeddings: false,
    norm_offset: 0.0,
    windows: Windows::None,
    window_rope_base: None,
    unrotated: None,
    has_experts: false,
    gguf_names: &GGUF_NAMES,
    hugging_face_names: &HUGGING_FACE_NAMES,
    is_tied: false,
    has_sinks: false,
    yarn_has_whole_pairs: true,
    scaled_by_hidden: None,
};

const QWEN3: Family = Family {
    gguf: "qwen3",
    hugging_face: &["qwen3"],
    gguf_order: RotaryOrder::Halves,
    has_head_norms: true,
    biases: Biases::None,
    ..LLAMA
};

/// Its checkpoints keep what the scales of norms differ from 1 by.
const QWEN35: Family = Family {
    gguf: "qwen35",
    hugging_face: &["qwen3_5_text"],
    has_query_gates: true,
    recurrent: Recurrent::DeltaNet,
    norm_offset: 1.0,
    gguf_names: &GGUF_NAMES_POST_ATTENTION,
    ..QWEN3
};

const GEMMA2: Family = Family {
    gguf: "gemma2",
    hugging_face: &["gemma2"],
    gguf_order: RotaryOrder::Halves,
    norms: Norms::Around,
    biases: Biases::None,
    activation: Activation::GeluTanh,
    scales_embeddings: true,
    norm_offset: 1.0,
    windows: Windows::AllBut(2),
    hugging_face_names: &HUGGING_FACE_NAMES_AROUND,
    is_tied: true,
    scaled_by_hidden: Some(46),
    ..LLAMA
};

/// All families.
pub const FAMILIES: [Family; 17] = [
    LLAMA,
    // Its GGUF files are called `llama`.
    Family { gguf: "mistral", hugging_face: &["mistral"], windows: Windows::All, ..LLAMA },
    Family { gguf: "mistral3", hugging_face: &["ministral3"], windows: Windows::All, ..LLAMA },
    Family {
        gguf: "qwen2",
        hugging_face: &["qwen2"],
        gguf_order: RotaryOrder::Halves,
        biases: Biases::QueryKeyValue,
        ..LLAMA
    },
    QWEN3,
    Family { gguf: "qwen3moe", hugging_face: &["qwen3_moe"], has_experts: true, ..QWEN3 },
    QWEN35,
    Family { gguf: "qwen35moe", hugging_face: &["qwen3_5_moe_text"], has_experts: true, ..QWEN35 },
    GEMMA2,
    Family {
        gguf: "gemma3",
        hugging_face: &["gemma3_text"],
        has_head_norms: true,
        windows: Windows::AllBut(6),
        window_rope_base: Some(10_000.0),
        scaled_by_hidden: Some(62),
        ..GEMMA2
    },
    Family {
        gguf: "phi3",
        hugging_face: &["phi3"],
        gguf_order: RotaryOrder::Halves,
        biases: Biases::None,
        has_fused_attention: true,
        has_fused_network: true,
        windows: Windows::All,
        ..LLAMA
    },
    Family { gguf: "smollm3", hugging_face: &["smollm3"], unrotated: Some(4), ..LLAMA },
    Family { gguf: "granite", hugging_face: &["granite"], ..LLAMA },
    // Its folders have experts of a form of their own, which is not read.
    Family {
        gguf: "gpt-oss",
        hugging_face: &[],
        gguf_order: RotaryOrder::Halves,
        activation: Activation::ClampedSwish,
        windows: Windows::AllBut(2),
        has_experts: true,
        gguf_names: &GGUF_NAMES_POST_ATTENTION,
        has_sinks: true,
        yarn_has_whole_pairs: false,
        ..LLAMA
    },
    // First of the Gemmas: theirs without what came later.
    Family {
        gguf: "gemma",
        hugging_face: &["gemma"],
        norms: Norms::Before,
        windows: Windows::None,
        hugging_face_names: &HUGGING_FACE_NAMES,
        scaled_by_hidden: None,
        ..GEMMA2
    },
    Family {
        gguf: "glm4",
        hugging_face: &["glm4"],
        hugging_face_order: RotaryOrder::Interleaved,
        norms: Norms::Around,
        has_fused_network: true,
        hugging_face_names: &HUGGING_FACE_NAMES_GLM4,
        ..LLAMA
    },
    Family {
        gguf: "lfm2",
        hugging_face: &["lfm2"],
        gguf_order: RotaryOrder::Halves,
        has_head_norms: true,
        biases: Biases::None,
        recurrent: Recurrent::ShortConvolution,
        gguf_names: &GGUF_NAMES_LFM2,
        hugging_face_names: &HUGGING_FACE_NAMES_LFM2,
        is_tied: true,
        ..LLAMA
    },
];

impl Family {
    /// That of a GGUF file.
    pub fn of_gguf(architecture: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.gguf == architecture)
    }

    /// That of a `config.json`.
    pub fn of_hugging_face(model_type: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.hugging_face.contains(&model_type))
    }

    /// Its layers, where those that `is_near` names see only a window, and those that `is_recurrent` names have no keys. Rotary
    /// embedding 0 is that of the others.
    pub fn layers(
        &self,
        count: usize,
        window: Option<usize>,
        is_near: impl Fn(usize) -> bool,
        is_recurrent: impl Fn(usize) -> bool,
    ) -> Vec<LayerConfig> {
        let layer = |i: usize| {
            if is_recurrent(i) {
                return LayerConfig { has_experts: self.has_experts, is_recurrent: true, ..LayerConfig::default() };
            }
            let window = window.filter(|_| is_near(i));
            let is_apart = window.is_some() && self.window_rope_base.is_some();
            let is_rotated = self.unrotated.is_none_or(|every| !(i + 1).is_multiple_of(every));
            LayerConfig {
                window,
                rotary: is_rotated.then_some(usize::from(is_apart)),
                has_experts: self.has_experts,
                is_recurrent: false,
            }
        };
        (0..count).map(layer).collect()
    }
}

impl Windows {
    /// Whether a layer has one.
    pub fn has(self, layer: usize) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::AllBut(every) => !(layer + 1).is_multiple_of(every),
        }
    }
}

/// The message for a kind of model that is not here.
pub fn unknown(architecture: &str) -> String {
    let known = FAMILIES.map(|family| family.gguf).join(", ");
    format!(
        "the architecture is `{architecture}`, and candle-llm serves {known}; `plugin: vllm` or `engine: llama-server` serves others"
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// The texts of a list in the host's source, which chooses a plugin by lists of its own.
    pub(crate) fn host_list(file: &str, list: &str) -> BTreeSet<String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../host/src/cli/auto").join(file);
        let source = std::fs::read_to_string(path).expect("it is there");
        let list = source.split(&format!("const {list}: ")).nth(1).and_then(|rest| rest.split("];").next());
        list.expect("a list").split('"').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn the_host_knows_the_same_families() {
        // Mistral's GGUF files are called another's.
        let ggufs = FAMILIES.iter().filter(|family| family.gguf != "mistral");
        let owned = |name: &str| name.to_owned();
        assert_eq!(host_list("weights.rs", "CANDLE_ARCHITECTURES"), ggufs.map(|family| owned(family.gguf)).collect());
        let experts = FAMILIES.iter().filter(|family| family.has_experts);
        assert_eq!(host_list("weights.rs", "CANDLE_EXPERTS"), experts.map(|family| owned(family.gguf)).collect());
        let folders = FAMILIES.iter().flat_map(|family| family.hugging_face);
        assert_eq!(host_list("folder.rs", "CANDLE_MODELS"), folders.map(|name| owned(name)).collect());
    }
}
