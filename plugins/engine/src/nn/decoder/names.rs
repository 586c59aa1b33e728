//! How checkpoints call the tensors of a decoder.

/// The names of one form of checkpoints. Those of a layer's parts stand between the layer's number and `weight` or `bias`.
#[derive(Debug, PartialEq, Eq)]
pub struct Names {
    /// The table of tokens; also the output's matrix, if there is none.
    pub embedding: &'static str,
    /// The output's matrix.
    pub head: &'static str,
    /// The norm before it.
    pub norm: &'static str,
    /// What stands before a layer's number.
    pub layers: &'static str,
    /// The norms before attention and before the feed-forward network.
    pub norms_before: [&'static str; 2],
    /// The norms behind them, where a family has any.
    pub norms_behind: [&'static str; 2],
    /// Queries, keys, values, and what attention ends with.
    pub attention: [&'static str; 4],
    /// Queries, keys and values in one.
    pub fused_attention: &'static str,
    /// The scores of seeing nothing, of each head.
    pub sinks: &'static str,
    /// The norms of each head's queries and keys.
    pub head_norms: [&'static str; 2],
    /// Gate, up, down.
    pub feed_forward: [&'static str; 3],
    /// Gate and up in one.
    pub fused_feed_forward: &'static str,
    /// What tells how much of each expert a token gets.
    pub router: &'static str,
    /// Gate, up and down of the experts.
    pub experts: ExpertNames,
    /// Those of the expert that every token goes to, and what tells how much of it.
    pub shared_expert: [&'static str; 4],
    /// The norms of experts beside a dense network: behind that, before them, and behind them.
    pub norms_beside: [&'static str; 3],
    /// What the router's inputs are scaled by, and what the experts' shares are; whole names.
    pub router_scales: [&'static str; 2],
    /// What layers are told of a token.
    pub layer_inputs: LayerInputNames,
    /// What a layer's result is multiplied with, the whole name.
    pub layer_scale: &'static str,
    /// The parts of a delta net.
    pub delta_net: DeltaNetNames,
    /// What a short convolution begins with, its kernel, and what it ends with.
    pub short_convolution: [&'static str; 3],
    /// Ends of names that a decoder has no use for; beginnings, where the last letter is a dot.
    pub unused: &'static [&'static str],
}

/// The names of a delta net's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaNetNames {
    /// Queries, keys and values in one.
    pub mixed: &'static str,
    /// What the output is gated by.
    pub gate: &'static str,
    /// How much of what a key finds is replaced.
    pub beta: &'static str,
    /// How fast is forgotten.
    pub alpha: &'static str,
    /// The convolution's kernel, the whole name.
    pub kernel: &'static str,
    /// What is added to alpha, the whole name.
    pub bias: &'static str,
    /// What multiplies it, the whole name.
    pub rate: &'static str,
    /// Whether that is kept as the logarithm of what it is below 0 by.
    pub rate_is_log: bool,
    /// The norm of each head's output.
    pub norm: &'static str,
    /// What it ends with.
    pub output: &'static str,
}

/// The names of what layers are told of a token besides the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerInputNames {
    /// The table of what all layers are told of a token.
    pub table: &'static str,
    /// What they are told by its embedding.
    pub projection: &'static str,
    /// The norm of that.
    pub norm: &'static str,
    /// A layer's gate of it, what it becomes, and the norm of that.
    pub parts: [&'static str; 3],
}

/// How the matrices of experts lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertNames {
    /// All of one kind in one tensor, `[experts, rows, columns]`.
    Stacked {
        parts: [&'static str; 3],
        /// Gate and up in one, where a checkpoint has that.
        fused: &'static str,
        /// What stands behind these.
        suffix: &'static str,
    },
    /// Each in a tensor of its own: what stands before an expert's number, and behind it.
    Apart(&'static str, [&'static str; 3]),
}

/// llama.cpp's names.
pub const GGUF_NAMES: Names = Names {
    embedding: "token_embd.weight",
    head: "output.weight",
    norm: "output_norm.weight",
    layers: "blk",
    norms_before: ["attn_norm", "ffn_norm"],
    norms_behind: ["post_attention_norm", "post_ffw_norm"],
    attention: ["attn_q", "attn_k", "attn_v", "attn_output"],
    fused_attention: "attn_qkv",
    sinks: "attn_sinks",
    head_norms: ["attn_q_norm", "attn_k_norm"],
    feed_forward: ["ffn_gate", "ffn_up", "ffn_down"],
    fused_feed_forward: "ffn_up",
    router: "ffn_gate_inp",
    experts: ExpertNames::Stacked {
        parts: ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"],
        fused: "ffn_gate_up_exps",
        suffix: ".weight",
    },
    norms_beside: ["post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2"],
    router_scales: ["ffn_gate_inp.scale", "ffn_down_exps.scale"],
    layer_inputs: LayerInputNames {
        table: "per_layer_token_embd.weight",
        projection: "per_layer_model_proj",
        norm: "per_layer_proj_norm.weight",
        parts: ["inp_gate", "proj", "post_norm"],
    },
    layer_scale: "layer_output_scale.weight",
    shared_expert: ["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp", "ffn_gate_inp_shexp"],
    delta_net: DeltaNetNames {
        mixed: "attn_qkv",
        gate: "attn_gate",
        beta: "ssm_beta",
        alpha: "ssm_alpha",
        kernel: "ssm_conv1d.weight",
        bias: "ssm_dt.bias",
        rate: "ssm_a",
        rate_is_log: false,
        norm: "ssm_norm",
        output: "ssm_out",
    },
    short_convolution: ["shortconv.in_proj", "shortconv.conv.weight", "shortconv.out_proj"],
    // The configuration has read them.
    unused: &["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"],
};

/// Those of families whose norm before the network has another's name.
pub const GGUF_NAMES_POST_ATTENTION: Names = Names { norms_before: ["attn_norm", "post_attention_norm"], ..GGUF_NAMES };

/// Those of LFM2, whose last norm has another's name.
pub const GGUF_NAMES_LFM2: Names = Names { norm: "token_embd_norm.weight", ..GGUF_NAMES };

/// The names of Hugging Face's transformers.
pub const HUGGING_FACE_NAMES: Names = Names {
    embedding: "model.embed_tokens.weight",
    head: "lm_head.weight",
    norm: "model.norm.weight",
    layers: "model.layers",
    norms_before: ["input_layernorm", "post_attention_layernorm"],
    norms_behind: ["", ""],
    attention: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
    fused_attention: "self_attn.qkv_proj",
    sinks: "self_attn.sinks",
    head_norms: ["self_attn.q_norm", "self_attn.k_norm"],
    feed_forward: ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
    fused_feed_forward: "mlp.gate_up_proj",
    router: "mlp.gate",
    experts: ExpertNames::Apart("mlp.experts", ["gate_proj", "up_proj", "down_proj"]),
    norms_beside: ["post_feedforward_layernorm_1", "pre_feedforward_layernorm_2", "post_feedforward_layernorm_2"],
    router_scales: ["router.scale", "router.per_expert_scale"],
    layer_inputs: LayerInputNames {
        table: "model.embed_tokens_per_layer.weight",
        projection: "model.per_layer_model_projection",
        norm: "model.per_layer_projection_norm.weight",
        parts: ["per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm"],
    },
    layer_scale: "layer_scalar",
    shared_expert: [
        "mlp.shared_expert.gate_proj",
        "mlp.shared_expert.up_proj",
        "mlp.shared_expert.down_proj",
        "mlp.shared_expert_gate",
    ],
    delta_net: DeltaNetNames {
        mixed: "linear_attn.in_proj_qkv",
        gate: "linear_attn.in_proj_z",
        beta: "linear_attn.in_proj_b",
        alpha: "linear_attn.in_proj_a",
        kernel: "linear_attn.conv1d.weight",
        bias: "linear_attn.dt_bias",
        rate: "linear_attn.A_log",
        rate_is_log: true,
        norm: "linear_attn.norm",
        output: "linear_attn.out_proj",
    },
    short_convolution: ["conv.in_proj", "conv.conv.weight", "conv.out_proj"],
    // Old checkpoints keep the frequencies, which follow from the configuration.
    // What drafts tokens is for other ways to generate.
    unused: &["rotary_emb.inv_freq", "mtp."],
};

/// Those of families with norms on both sides there: what others call a norm behind attention is one before the network.
pub const HUGGING_FACE_NAMES_AROUND: Names = Names {
    norms_before: ["input_layernorm", "pre_feedforward_layernorm"],
    norms_behind: ["post_attention_layernorm", "post_feedforward_layernorm"],
    ..HUGGING_FACE_NAMES
};

/// Those of GLM-4.
pub const HUGGING_FACE_NAMES_GLM4: Names =
    Names { norms_behind: ["post_self_attn_layernorm", "post_mlp_layernorm"], ..HUGGING_FACE_NAMES };

/// Those of LFM2.
pub const HUGGING_FACE_NAMES_LFM2: Names = Names {
    norm: "model.embedding_norm.weight",
    norms_before: ["operator_norm", "ffn_norm"],
    attention: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"],
    head_norms: ["self_attn.q_layernorm", "self_attn.k_layernorm"],
    feed_forward: ["feed_forward.w1", "feed_forward.w3", "feed_forward.w2"],
    ..HUGGING_FACE_NAMES
};

/// Those of Gemma 4.
pub const HUGGING_FACE_NAMES_GEMMA4: Names = Names {
    router: "router.proj",
    experts: ExpertNames::Stacked {
        parts: ["experts.gate_proj", "experts.up_proj", "experts.down_proj"],
        fused: "experts.gate_up_proj",
        suffix: "",
    },
    ..HUGGING_FACE_NAMES_AROUND
};
