//! The families of decoders that are served: one row each.

use aihost_engine::nn::decoder::{
    Biases, GGUF_NAMES, GGUF_NAMES_LFM2, GGUF_NAMES_POST_ATTENTION, HUGGING_FACE_NAMES, HUGGING_FACE_NAMES_AROUND,
    HUGGING_FACE_NAMES_GEMMA4, HUGGING_FACE_NAMES_GLM4, HUGGING_FACE_NAMES_LFM2, LayerConfig, Names, Norms,
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
    /// Whether each head's values have norms, without scales.
    pub has_value_norms: bool,
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
    pub mixture: Mixture,
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
    /// What scores are scaled by, if not by the width of a head.
    pub attention_scale: Option<f32>,
    /// Whether each layer's result is multiplied with a number of its own.
    pub has_layer_scales: bool,
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

/// Which members are mixtures of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mixture {
    /// None.
    None,
    /// All, in place of dense networks.
    InPlace,
    /// Those that say so, beside dense networks.
    Beside,
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
    has_value_norms: false,
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
    mixture: Mixture::None,
    gguf_names: &GGUF_NAMES,
    hugging_face_names: &HUGGING_FACE_NAMES,
    is_tied: false,
    has_sinks: false,
    yarn_has_whole_pairs: true,
    attention_scale: None,
    has_layer_scales: false,
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
pub const FAMILIES: [Family; 18] = [
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
    Family { gguf: "qwen3moe", hugging_face: &["qwen3_moe"], mixture: Mixture::InPlace, ..QWEN3 },
    QWEN35,
    Family { gguf: "qwen35moe", hugging_face: &["qwen3_5_moe_text"], mixture: Mixture::InPlace, ..QWEN35 },
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
        gguf: "gemma4",
        hugging_face: &["gemma4_text"],
        has_head_norms: true,
        has_value_norms: true,
        norm_offset: 0.0,
        windows: Windows::AllBut(6),
        window_rope_base: Some(10_000.0),
        mixture: Mixture::Beside,
        attention_scale: Some(1.0),
        has_layer_scales: true,
        hugging_face_names: &HUGGING_FACE_NAMES_GEMMA4,
        scaled_by_hidden: None,
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
        mixture: Mixture::InPlace,
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

    /// One of its layers: whether it sees only a window, and whether it has no keys. Rotary embedding 0 is that of layers that see
    /// all. What is its size, others say.
    pub fn layer(&self, number: usize, window: Option<usize>, is_recurrent: bool) -> LayerConfig {
        let is_apart = window.is_some() && self.window_rope_base.is_some();
        let is_rotated = !is_recurrent && self.unrotated.is_none_or(|every| !(number + 1).is_multiple_of(every));
        LayerConfig {
            window: window.filter(|_| !is_recurrent),
            rotary: is_rotated.then_some(usize::from(is_apart)),
            is_recurrent,
            ..LayerConfig::default()
        }
    }
}

/// Has the last layers see the keys of the last one before them that sees as much as they do.
///
/// # Errors
/// If there is none.
pub fn share_keys(layers: &mut [LayerConfig], shared: usize) -> std::result::Result<(), String> {
    let own = layers.len().saturating_sub(shared);
    for layer in own..layers.len() {
        let window = layers[layer].window;
        let earlier = layers[..own].iter().rposition(|other| other.window == window && !other.is_recurrent);
        layers[layer].keys_of = Some(
            earlier
                .ok_or_else(|| format!("layer {layer} has no keys of its own, and none before it that it may see"))?,
        );
    }
    Ok(())
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
        "the architecture is `{architecture}`, and served here are {known}; `plugin: vllm` or `engine: llama-server` serves others"
    )
}
