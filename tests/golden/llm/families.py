"""Writes families/NAME/: a tiny random model of each family, in both forms, and what it gives.

Needs torch, transformers, gguf, and llama.cpp's sources, whose converter makes the GGUF files:

    python families.py LLAMA_CPP [NAME ...]

Weights are random, rounded to half precision, and large enough that every part of a model counts. outputs.safetensors has `tokens`, a
prompt and the 40 greedy tokens behind it, and `logits`, `[tokens, vocabulary]` f32, by transformers in float32. Windows and lengths
that positions are scaled from are shorter than the prompt.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CONFIG_MAPPING

PROMPT, STEPS, VOCABULARY = 48, 40, 96
SMALL = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=8.0, original_max_position_embeddings=32)
DELTA_NET = dict(
    linear_conv_kernel_dim=4, linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=6,
    rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5, mrope_section=[2, 1, 1]),
)
GEMMA4 = dict(
    head_dim=16, global_head_dim=32, intermediate_size=32, sliding_window=16, num_hidden_layers=4, vocab_size_per_layer_input=VOCABULARY,
    final_logit_softcapping=20.0,
    layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"], rope_parameters=dict(
        full_attention=dict(rope_type="proportional", rope_theta=1000000.0, partial_rotary_factor=0.25),
        sliding_attention=dict(rope_type="default", rope_theta=10000.0)),
)
FAMILIES = {
    "llama": ("llama", dict(rope_parameters=dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0,
                                                  high_freq_factor=4.0, original_max_position_embeddings=64))),
    "llama-linear": ("llama", dict(rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0))),
    "mistral": ("mistral", dict(head_dim=16, sliding_window=None)),
    "ministral": ("ministral3", dict(head_dim=16, sliding_window=None, rope_parameters=YARN | dict(
        beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1))),
    "qwen2": ("qwen2", dict()),
    "qwen2-yarn": ("qwen2", dict(rope_parameters=YARN)),
    "qwen3": ("qwen3", dict(head_dim=16)),
    "qwen3moe": ("qwen3_moe", dict(head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True,
                                   decoder_sparse_step=1, mlp_only_layers=[])),
    "gemma": ("gemma", dict(head_dim=16, hidden_activation="gelu_pytorch_tanh")),
    "gemma2": ("gemma2", dict(head_dim=16, intermediate_size=32, sliding_window=16, query_pre_attn_scalar=16, attn_logit_softcapping=5.0,
                              final_logit_softcapping=3.0, num_hidden_layers=4)),
    "gemma3": ("gemma3_text", dict(head_dim=16, intermediate_size=32, sliding_window=16, query_pre_attn_scalar=16, num_hidden_layers=7,
                                   rope_parameters=dict(
        full_attention=dict(rope_type="linear", rope_theta=1000000.0, factor=8.0),
        sliding_attention=dict(rope_type="default", rope_theta=10000.0)))),
    "phi3": ("phi3", dict(sliding_window=None, partial_rotary_factor=0.5, max_position_embeddings=256,
                          original_max_position_embeddings=32, rope_parameters=dict(
        rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.5, original_max_position_embeddings=32,
        short_factor=[1.0, 1.1], long_factor=[1.5, 4.0]))),
    "smollm3": ("smollm3", dict(num_hidden_layers=5, intermediate_size=32, no_rope_layer_interval=4, use_sliding_window=False)),
    "gpt-oss": ("gpt_oss", dict(head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=16, num_hidden_layers=4,
                                rope_parameters=YARN | dict(truncate=False, beta_fast=32.0, beta_slow=1.0))),
    "qwen35": ("qwen3_5_text", dict(head_dim=16, intermediate_size=32, num_hidden_layers=4, full_attention_interval=3, **DELTA_NET)),
    "qwen35moe": ("qwen3_5_moe_text", dict(head_dim=16, num_hidden_layers=2, full_attention_interval=2, num_experts=6, num_experts_per_tok=2,
                                           moe_intermediate_size=32, shared_expert_intermediate_size=48, **DELTA_NET)),
    "gemma4": ("gemma4_text", GEMMA4 | dict(hidden_size_per_layer_input=8, num_kv_shared_layers=2, use_double_wide_mlp=True)),
    "gemma4-experts": ("gemma4_text", GEMMA4 | dict(hidden_size_per_layer_input=0, attention_k_eq_v=True, num_global_key_value_heads=1,
                                                    enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=32)),
    "glm4": ("glm4", dict(head_dim=16, attention_bias=True, rope_parameters=dict(
        rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5))),
    "lfm2": ("lfm2", dict(num_hidden_layers=4, layer_types=["conv", "full_attention", "conv", "full_attention"], conv_L_cache=3,
                          block_auto_adjust_ff_dim=False, rope_parameters=dict(rope_type="default", rope_theta=10000.0))),
    "granite": ("granite", dict(embedding_multiplier=3.0, residual_multiplier=0.4, attention_multiplier=0.2, logits_scaling=2.0)),
}


def main(llama_cpp: str, *names: str) -> None:
    here = pathlib.Path(__file__).parent / "families"
    here.mkdir(exist_ok=True)
    for name in names or FAMILIES:
        model_type, more = FAMILIES[name]
        torch.manual_seed(sum(name.encode()))
        config = CONFIG_MAPPING[model_type](**(SMALL | more))
        config._attn_implementation = "eager"
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        randomise(model)
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder) / name
            model.save_pretrained(folder)
            out = here / name
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            # Gemma 3's converter counts the vocabulary.
            (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": dict.fromkeys(map(str, range(VOCABULARY)))}, "added_tokens": []}))
            if model_type == "qwen3_5_text":
                add_next_token_layer(folder)
            # From float32: what is added to a norm's weights is not to be rounded to half precision.
            converted(llama_cpp, folder, out / "model.gguf", ["--no-mtp"] if model_type == "qwen3_5_moe_text" else [])
            weights = {key: value.to(torch.float16) for key, value in load_file(folder / "model.safetensors").items()}
            save_file(weights, folder / "model.safetensors", {"format": "pt"})
            # Experts of a form of its own, which is read as GGUF alone.
            for file in ["config.json", "model.safetensors"] if model_type != "gpt_oss" else []:
                shutil.copy(folder / file, out / file)
        save_file(outputs(model), here / name / "outputs.safetensors")
        print(name, "done")


@torch.no_grad()
def randomise(model) -> None:
    """Weights that halves hold, of a size that lets nonlinear parts bend."""
    for name, weight in model.named_parameters():
        size = weight.shape[-1]
        if name.endswith("norm.weight") or "layernorm" in name:
            weight.add_(torch.randn_like(weight) * 0.3)
        elif name.endswith("bias"):
            weight.copy_(torch.randn_like(weight) * 0.5)
        elif "embed_tokens" in name:
            weight.copy_(torch.randn_like(weight))
        else:
            weight.copy_(torch.randn_like(weight) * 1.5 / size**0.5)
        weight.copy_(weight.to(torch.float16).float())
    # Numbers that are not trained here and count all the same.
    for name, scale in model.named_buffers():
        if name.endswith("layer_scalar"):
            scale.copy_((torch.rand_like(scale) / 2 + 0.75).to(torch.float16).float())
    model.tie_weights()


@torch.no_grad()
def outputs(model) -> dict:
    tokens = torch.randint(3, VOCABULARY, (1, PROMPT))
    for _ in range(STEPS):
        best = model(tokens, use_cache=False).logits[0, -1].topk(2)
        tokens = torch.cat([tokens, best.indices[:1].view(1, 1)], -1)
    return {"tokens": tokens[0].int(), "logits": model(tokens, use_cache=False).logits[0].float().contiguous()}


def add_next_token_layer(folder: pathlib.Path) -> None:
    """A layer that drafts tokens, as these checkpoints have one: a decoder has no use for it."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mtp_num_hidden_layers": 1}))
    weights = load_file(folder / "model.safetensors")
    attention = config["layer_types"].index("full_attention")
    prefix = f"model.layers.{attention}."
    drafting = {"mtp.layers.0." + key.removeprefix(prefix): value.clone() for key, value in weights.items() if key.startswith(prefix)}
    hidden = config["hidden_size"]
    drafting["mtp.fc.weight"] = torch.zeros(hidden, 2 * hidden)
    for norm in ["norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"]:
        drafting[f"mtp.{norm}.weight"] = torch.zeros(hidden)
    save_file(weights | drafting, folder / "model.safetensors", {"format": "pt"})


def converted(llama_cpp: str, folder: pathlib.Path, out: pathlib.Path, options: list) -> None:
    """By llama.cpp's converter, with a vocabulary of single letters: the models have none."""
    script = f"""
import sys
sys.path[:0] = [{llama_cpp!r}, {llama_cpp + '/gguf-py'!r}]
import torch, convert_hf_to_gguf, conversion.base as base
def vocabulary(self):
    tokens = [chr(0x100 + i) for i in range({VOCABULARY} - 1)]
    tokens.append(tokens[0] + tokens[1])
    self.gguf_writer.add_tokenizer_model("gpt2")
    self.gguf_writer.add_tokenizer_pre("gpt-2")
    self.gguf_writer.add_token_list(tokens)
    self.gguf_writer.add_token_types([1] * len(tokens))
    self.gguf_writer.add_token_merges([tokens[0] + ' ' + tokens[1]])
def everywhere(kind):
    for child in kind.__subclasses__():
        child.set_vocab = vocabulary
        everywhere(child)
load = base.ModelBase.__init__
def init(self, *args, **kwargs):
    everywhere(base.ModelBase)
    load(self, *args, **kwargs)
base.ModelBase.__init__ = init
sys.argv = ["convert", {str(folder)!r}, "--outfile", {str(out)!r}, "--outtype", "f16", *{options!r}]
convert_hf_to_gguf.main()
"""
    subprocess.run([sys.executable, "-c", script], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
