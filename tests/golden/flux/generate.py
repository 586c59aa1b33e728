"""Writes the golden cases of the flux plugin with diffusers' FluxPipeline as the reference.

    python generate.py CONFIG SEED OUT    one case: CONFIG is schnell, dev, gguf or mid; OUT is a folder to create
    python generate.py --all              the committed cases, beside this file

A case folder is a checkpoint with random weights in one of three layouts: `schnell` as the first release's single files,
`dev` as diffusers' folder with sharded weights and CLIP's tokenizer as vocabulary and merges, `gguf` as a dev transformer
and a T5 encoder quantised into GGUF with the other parts as single files. `mid` is a larger folder for timing, without
expected tensors. Weights are stored as bfloat16 or float16 where a case says so, and the reference computes in f32 with the
numbers as stored.

`case.json` has `files`, the roles and their paths; `prompt`, `steps`, `guidance`, `length` (T5's tokens); and `sizes`,
a list of [width, height]. `expected.safetensors` has f32 tensors: `pooled` (width), `text` (tokens, width), and for each
size WxH, from `WxH.noise` (channels, height, width): `WxH.block_text` and `WxH.block_picture` (tokens, hidden) after the first
double block of the first step, `WxH.latents_0` ... (tokens, channels) after each step, `WxH.final` (channels, height, width),
`WxH.pixels` (3, height, width) in [-1, 1], and `WxH.tiled`, the pixels decoded in tiles. For `dev` also, of the first size after the first
step: `half`, the latents of a pipeline that computes in bfloat16, and `whole`, those of f32 weights before they were rounded.

Needs torch, diffusers, transformers, tokenizers, safetensors, gguf.
"""

import json
import os
import shutil
import sys
from pathlib import Path

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import gguf
import numpy
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerFast, T5Config, T5EncoderModel

PROMPT = "A red fox, sleeping under 3 birches in the snow; it's an old photograph"
CORPUS = [PROMPT, "a photo of a cat", "an oil painting of ships at sea", "it's a small house in the old town's square"]
STEPS = {"schnell": 2, "dev": 3, "gguf": 2}
SIZES = {"schnell": [(24, 24), (32, 12)], "dev": [(48, 48), (32, 48)], "gguf": [(20, 28)]}
# A thousand of it is a bfloat16, so that a pipeline in half precision is told the same.
GUIDANCE = 4.0
# The prompt is longer than the first, and shorter than the others.
LENGTH = {"schnell": 24, "dev": 72, "gguf": 64, "mid": 512}
CLIP_LENGTH = {"schnell": 20, "dev": 60, "gguf": 77, "mid": 77}


def randomise(model, gain=1.0):
    """Random weights, large enough that every layer matters and no activation explodes."""
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key and key.endswith("weight") and weight.ndim == 1:
                weight.copy_(1 + 0.2 * torch.randn_like(weight))
            elif key.endswith("bias"):
                weight.copy_(0.1 * torch.randn_like(weight))
            elif "relative_attention_bias" in key or "position_embedding" in key:
                weight.copy_(0.3 * torch.randn_like(weight))
            elif "embed" in key and "token" in key or "shared" in key:
                weight.copy_(torch.randn_like(weight))
            elif weight.ndim == 1:
                weight.copy_(1 + 0.2 * torch.randn_like(weight))
            else:
                weight.copy_(gain * torch.randn_like(weight) / weight[0].numel() ** 0.5)
    return model.eval()


def clip_tokenizer(length):
    """CLIP's tokenizer over a few merges."""
    tokenizer = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=640, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False)
    )
    trained = json.loads(tokenizer.to_str())["model"]
    # As in CLIP's: each byte, each byte at the end of a word, merges, start and end.
    words = alphabet + [byte + "</w>" for byte in alphabet]
    merges = [tuple(merge) if not isinstance(merge, str) else tuple(merge.split(" ")) for merge in trained["merges"]]
    words += [word for word in ("".join(merge) for merge in merges) if word not in words]
    vocabulary = {word: i for i, word in enumerate(words + ["<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length), vocabulary, merges


def t5_tokenizer():
    """A unigram tokenizer that ends every text with </s>, as T5's does."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=512)


def pipeline(name, seed):
    """The parts with random weights; every size differs from every other, so that a swapped axis shows."""
    torch.manual_seed(seed)
    mid, quantised, guided = name == "mid", name == "gguf", name != "schnell"
    clip_words, vocabulary, merges = clip_tokenizer(CLIP_LENGTH[name])
    t5_words = t5_tokenizer()
    clip = dict(vocab_size=len(vocabulary), hidden_size=32, intermediate_size=72, num_hidden_layers=1 if quantised else 2)
    clip |= dict(num_attention_heads=2 if name == "dev" else 1, max_position_embeddings=CLIP_LENGTH[name], bos_token_id=len(vocabulary) - 2)
    clip |= dict(eos_token_id=len(vocabulary) - 1 if name == "dev" else 2, pad_token_id=1)
    # Quantised rows are whole blocks of 32.
    t5 = dict(vocab_size=100, d_model=32 if quantised else 40, d_kv=16 if quantised else 12, d_ff=64 if quantised else 56, num_layers=2)
    t5 |= dict(num_heads=4, relative_attention_num_buckets=8, feed_forward_proj="gated-gelu")
    t5 |= dict(relative_attention_max_distance=12) if name == "dev" else {}
    flux = dict(in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=32, num_attention_heads=2)
    flux |= dict(num_layers=2, num_attention_heads=1) if name == "schnell" else {}
    flux |= dict(num_single_layers=2) if quantised else {}
    flux |= dict(joint_attention_dim=t5["d_model"], pooled_projection_dim=clip["hidden_size"], guidance_embeds=guided)
    flux |= dict(axes_dims_rope=[8, 10, 14] if name == "dev" else [4, 14, 14])
    if mid:
        clip |= dict(hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=2)
        t5 |= dict(d_model=512, d_kv=64, d_ff=1024, num_heads=8, num_layers=4)
        flux |= dict(in_channels=64, num_layers=4, num_single_layers=8, attention_head_dim=128, num_attention_heads=6)
        flux |= dict(joint_attention_dim=512, pooled_projection_dim=128, axes_dims_rope=[16, 56, 56])
    # Single files say nothing of groups and tiles: those of the published decoder.
    widths = {"schnell": [32, 32], "dev": [16, 16, 16, 32], "gguf": [32, 32], "mid": [32, 64, 128, 128]}[name]
    vae = dict(block_out_channels=widths, layers_per_block=2 if mid else 1, latent_channels=flux["in_channels"] // 4)
    vae |= dict(norm_num_groups=8, sample_size=32) if name == "dev" else dict(norm_num_groups=32, sample_size=1024)
    vae |= dict(down_block_types=["DownEncoderBlock2D"] * len(widths), up_block_types=["UpDecoderBlock2D"] * len(widths))
    vae |= dict(use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159)
    scheduler = dict(shift=3.0, use_dynamic_shifting=True) if guided else dict(shift=1.0)
    with torch.no_grad():
        autoencoder = AutoencoderKL(**vae)
        autoencoder.decoder = randomise(autoencoder.decoder, 0.8)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler),
        vae=autoencoder.eval(),
        text_encoder=randomise(CLIPTextModel(CLIPTextConfig(**clip))),
        tokenizer=clip_words,
        text_encoder_2=randomise(T5EncoderModel(T5Config(**t5))),
        tokenizer_2=t5_words,
        transformer=randomise(FluxTransformer2DModel(**flux)),
    ), (vocabulary, merges)


def original_transformer(state, double, single):
    """The names and fused matrices of the first release."""
    swap = lambda weight: torch.cat(weight.chunk(2)[::-1])
    out = {}
    for ours, theirs in (("time_in", "timestep"), ("vector_in", "text"), ("guidance_in", "guidance")):
        for layer, i in (("in_layer", 1), ("out_layer", 2)):
            for kind in ("weight", "bias"):
                key = f"time_text_embed.{theirs}_embedder.linear_{i}.{kind}"
                if key in state:
                    out[f"{ours}.{layer}.{kind}"] = state[key]
    cat = lambda names: torch.cat([state[name] for name in names])
    for kind in ("weight", "bias"):
        out[f"txt_in.{kind}"] = state[f"context_embedder.{kind}"]
        out[f"img_in.{kind}"] = state[f"x_embedder.{kind}"]
        out[f"final_layer.linear.{kind}"] = state[f"proj_out.{kind}"]
        out[f"final_layer.adaLN_modulation.1.{kind}"] = swap(state[f"norm_out.linear.{kind}"])
        for i in range(double):
            ours, theirs = f"double_blocks.{i}", f"transformer_blocks.{i}"
            out[f"{ours}.img_mod.lin.{kind}"] = state[f"{theirs}.norm1.linear.{kind}"]
            out[f"{ours}.txt_mod.lin.{kind}"] = state[f"{theirs}.norm1_context.linear.{kind}"]
            out[f"{ours}.img_attn.qkv.{kind}"] = cat(f"{theirs}.attn.to_{part}.{kind}" for part in "qkv")
            out[f"{ours}.txt_attn.qkv.{kind}"] = cat(f"{theirs}.attn.add_{part}_proj.{kind}" for part in "qkv")
            out[f"{ours}.img_attn.proj.{kind}"] = state[f"{theirs}.attn.to_out.0.{kind}"]
            out[f"{ours}.txt_attn.proj.{kind}"] = state[f"{theirs}.attn.to_add_out.{kind}"]
            for stream, name in (("img", "ff"), ("txt", "ff_context")):
                out[f"{ours}.{stream}_mlp.0.{kind}"] = state[f"{theirs}.{name}.net.0.proj.{kind}"]
                out[f"{ours}.{stream}_mlp.2.{kind}"] = state[f"{theirs}.{name}.net.2.{kind}"]
        for i in range(single):
            ours, theirs = f"single_blocks.{i}", f"single_transformer_blocks.{i}"
            parts = [f"{theirs}.attn.to_{part}.{kind}" for part in "qkv"] + [f"{theirs}.proj_mlp.{kind}"]
            out[f"{ours}.modulation.lin.{kind}"] = state[f"{theirs}.norm.linear.{kind}"]
            out[f"{ours}.linear1.{kind}"] = cat(parts)
            out[f"{ours}.linear2.{kind}"] = state[f"{theirs}.proj_out.{kind}"]
    for i in range(double):
        for stream, names in (("img", ("norm_q", "norm_k")), ("txt", ("norm_added_q", "norm_added_k"))):
            for part, name in zip(("query", "key"), names):
                out[f"double_blocks.{i}.{stream}_attn.norm.{part}_norm.scale"] = state[f"transformer_blocks.{i}.attn.{name}.weight"]
    for i in range(single):
        for part in ("query", "key"):
            name = f"single_transformer_blocks.{i}.attn.norm_{part[0]}.weight"
            out[f"single_blocks.{i}.norm.{part}_norm.scale"] = state[name]
    return out


def original_vae(state, levels):
    """The decoder under the first release's names."""
    out = {}
    for key, weight in state.items():
        if not key.startswith("decoder."):
            continue
        for i in range(levels):
            key = key.replace(f"up_blocks.{i}.resnets", f"up.{levels - 1 - i}.block")
            key = key.replace(f"up_blocks.{i}.upsamplers.0.conv", f"up.{levels - 1 - i}.upsample.conv")
        for i in range(2):
            key = key.replace(f"mid_block.resnets.{i}", f"mid.block_{i + 1}")
        if "attentions" in key:
            key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("to_out.0", "proj_out").replace("group_norm", "norm")
            key = key.replace("to_", "")
            weight = weight[:, :, None, None] if weight.ndim == 2 else weight
        out[key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")] = weight
    return out


T5_NAMES = [
    ("shared", "token_embd"), ("encoder.final_layer_norm", "enc.output_norm"), ("encoder.block.", "enc.blk."),
    ("layer.0.SelfAttention.relative_attention_bias", "attn_rel_b"), ("layer.0.SelfAttention.", "attn_"),
    ("layer.0.layer_norm", "attn_norm"), ("layer.1.layer_norm", "ffn_norm"), ("layer.1.DenseReluDense.wi_0", "ffn_gate"),
    ("layer.1.DenseReluDense.wi_1", "ffn_up"), ("layer.1.DenseReluDense.wo", "ffn_down"),
]  # fmt: skip


def write_gguf(path, arch, tensors, kind):
    """A GGUF file; matrices quantised where rows are whole blocks. Returns the numbers as they are read."""
    writer, read = gguf.GGUFWriter(path, arch), {}
    for name, weight in tensors.items():
        numbers = weight.float().numpy()
        block = gguf.GGML_QUANT_SIZES[kind][0]
        wide = numbers.ndim < 2 or numbers.shape[-1] % block or "rel_b" in name
        used = gguf.GGMLQuantizationType.F32 if wide else kind
        data = gguf.quants.quantize(numbers, used)
        read[name] = torch.from_numpy(numpy.ascontiguousarray(gguf.quants.dequantize(data, used))).reshape(weight.shape)
        writer.add_tensor(name, data, raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read


def store(model, dtype):
    """Rounds a part's numbers to what a file of `dtype` holds, and returns them in it."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(dtype))
    return {key: weight.to(dtype).contiguous() for key, weight in model.state_dict().items()}


def write(name, pipe, words, out):
    """Writes the checkpoint in the case's layout and rounds the pipeline to it; returns the roles."""
    levels = len(pipe.vae.config.block_out_channels)
    blocks = pipe.transformer.config.num_layers, pipe.transformer.config.num_single_layers
    if name in ("dev", "mid"):
        kept = torch.bfloat16 if name == "dev" else torch.float32
        for part in (pipe.transformer, pipe.text_encoder_2, pipe.text_encoder, pipe.vae):
            store(part, kept)
            part.to(kept)
        # The encoder's half is not needed to decode.
        pipe.vae.encoder = torch.nn.Identity()
        shard = "150KB" if name == "dev" else "5GB"
        pipe.transformer.save_pretrained(out / "transformer", max_shard_size=shard)
        pipe.text_encoder.save_pretrained(out / "text_encoder")
        pipe.text_encoder_2.save_pretrained(out / "text_encoder_2")
        pipe.vae.save_pretrained(out / "vae")
        pipe.scheduler.save_pretrained(out / "scheduler")
        pipe.tokenizer_2.save_pretrained(out / "tokenizer_2")
        for part in (pipe.transformer, pipe.text_encoder_2, pipe.text_encoder, pipe.vae):
            part.to(torch.float32)
        vocabulary, merges = words
        (out / "tokenizer").mkdir()
        (out / "tokenizer/vocab.json").write_text(json.dumps(vocabulary))
        (out / "tokenizer/merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
        return {"model": "."}
    save_file(original_vae(store(pipe.vae, torch.float16), levels), out / "ae.safetensors")
    clip = {f"text_model.{key.removeprefix('text_model.')}": weight for key, weight in store(pipe.text_encoder, torch.float16).items()}
    save_file(clip, out / "clip_l.safetensors")
    pipe.tokenizer.save_pretrained(out / "tokenizers/tokenizer")
    pipe.tokenizer_2.save_pretrained(out / "tokenizers/tokenizer_2")
    roles = {"clip": "clip_l.safetensors", "vae": "ae.safetensors", "tokenizers": "tokenizers"}
    flux = original_transformer(pipe.transformer.state_dict(), *blocks)
    if name == "schnell":
        store(pipe.text_encoder_2, torch.float16)
    t5 = pipe.text_encoder_2.state_dict()
    t5.pop("encoder.embed_tokens.weight", None)
    if name == "schnell":
        save_file({key: weight.contiguous() for key, weight in flux.items()}, out / "flux1-schnell.safetensors")
        save_file({key: weight.to(torch.float16).clone() for key, weight in t5.items()}, out / "t5xxl.safetensors")
        return roles | {"transformer": "flux1-schnell.safetensors", "t5": "t5xxl.safetensors"}
    read = write_gguf(out / "flux1-dev.gguf", "flux", flux, gguf.GGMLQuantizationType.Q8_0)
    with torch.no_grad():
        for key, weight in unfused(read, *blocks).items():
            pipe.transformer.state_dict()[key].copy_(weight)
        renamed = {}
        for key in t5:
            new = key
            for old, short in T5_NAMES:
                new = new.replace(old, short)
            renamed[key] = new
        read = write_gguf(out / "t5.gguf", "t5encoder", {renamed[key]: t5[key] for key in t5}, gguf.GGMLQuantizationType.Q4_1)
        for key, new in renamed.items():
            t5[key].copy_(read[new])
    return roles | {"transformer": "flux1-dev.gguf", "t5": "t5.gguf"}


def unfused(original, double, single):
    """Undoes `original_transformer`, by diffusers' own conversion with its width made ours."""
    from diffusers.loaders import single_file_utils

    source = Path(single_file_utils.__file__).read_text()
    start = source.index("def convert_flux_transformer_checkpoint_to_diffusers")
    body = source[start : source.index("\ndef ", start + 1)].replace("inner_dim = 3072", "inner_dim = WIDTH")
    scope = dict(torch=torch, WIDTH=original["img_in.weight"].shape[0])
    exec(body, scope)
    return scope["convert_flux_transformer_checkpoint_to_diffusers"](dict(original))


def start(pipe, width, height):
    """The noise of a size."""
    torch.manual_seed(width * height)
    scale = pipe.vae_scale_factor
    return torch.randn(1, pipe.transformer.config.in_channels // 4, height // scale, width // scale)


def first_step(name, pipe, noise):
    """The latents after one step of the first size."""
    width, height = SIZES[name][0]
    steps = []
    pipe(
        PROMPT, width=width, height=height, num_inference_steps=STEPS[name], guidance_scale=GUIDANCE,
        latents=pipe._pack_latents(noise, *noise.shape), max_sequence_length=LENGTH[name], output_type="latent",
        callback_on_step_end=lambda pipe, i, t, kwargs: (steps.append(kwargs["latents"].clone()), {})[1],
    )  # fmt: skip
    return steps[0][0]


def expected(name, pipe):
    """What the pipeline makes at each stage."""
    out = {}
    text, pooled, _ = pipe.encode_prompt(PROMPT, max_sequence_length=LENGTH[name])
    out["text"], out["pooled"] = text[0], pooled[0]
    for width, height in SIZES[name]:
        label = f"{width}x{height}"
        noise = start(pipe, width, height)
        packed = pipe._pack_latents(noise, *noise.shape)
        first = []
        hook = pipe.transformer.transformer_blocks[0].register_forward_hook(lambda *args: first.append(args[2]))
        steps = []
        latents = pipe(
            PROMPT, width=width, height=height, num_inference_steps=STEPS[name], guidance_scale=GUIDANCE, latents=packed,
            max_sequence_length=LENGTH[name], output_type="latent",
            callback_on_step_end=lambda pipe, i, t, kwargs: (steps.append(kwargs["latents"].clone()), {})[1],
        ).images  # fmt: skip
        hook.remove()
        out[f"{label}.noise"] = noise[0]
        out[f"{label}.block_text"], out[f"{label}.block_picture"] = first[0][0][0], first[0][1][0]
        for i, step in enumerate(steps):
            out[f"{label}.latents_{i}"] = step[0]
        final = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
        out[f"{label}.final"] = final[0]
        scaled = final / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
        out[f"{label}.pixels"] = pipe.vae.decode(scaled, return_dict=False)[0][0]
        if name == "dev":
            pipe.vae.enable_tiling()
            out[f"{label}.tiled"] = pipe.vae.decode(scaled, return_dict=False)[0][0]
            pipe.vae.disable_tiling()
    if name == "dev":
        for part in (pipe.transformer, pipe.text_encoder, pipe.text_encoder_2):
            part.to(torch.bfloat16)
        width, height = SIZES[name][0]
        out["half"] = first_step(name, pipe, out[f"{width}x{height}.noise"][None].bfloat16())
    return {key: tensor.float().contiguous().clone() for key, tensor in out.items()}


@torch.no_grad()
def case(name, seed, out):
    """Writes one case."""
    pipe, words = pipeline(name, seed)
    pipe.set_progress_bar_config(disable=True)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    whole = first_step(name, pipe, start(pipe, *SIZES[name][0])) if name == "dev" else None
    files = write(name, pipe, words, out)
    description = dict(files=files, prompt=PROMPT, guidance=GUIDANCE, length=LENGTH[name])
    if name == "mid":
        (out / "speed.json").write_text(json.dumps(description | dict(sizes=[(256, 256)], steps=4)) + "\n")
        return
    tensors = expected(name, pipe) | ({"whole": whole} if name == "dev" else {})
    save_file(tensors, out / "expected.safetensors")
    (out / "case.json").write_text(json.dumps(description | dict(sizes=SIZES[name], steps=STEPS[name])) + "\n")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    label = "x".join(map(str, SIZES[name][0]))
    spread = lambda key: f"{tensors[key].std():.2f}"
    print(f"{name}: {size} bytes; text {spread('text')}, latents {spread(label + '.final')}, pixels {spread(label + '.pixels')}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--all"]:
        for name in STEPS:
            case(name, 1, Path(__file__).parent / name)
    elif len(sys.argv) == 4:
        case(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    else:
        raise SystemExit(__doc__)
