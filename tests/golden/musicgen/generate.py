"""Writes the golden cases of the musicgen plugin with transformers' MusicgenForConditionalGeneration as the reference.

    python generate.py CONFIG SEED OUT    one case: CONFIG is mono, stereo, causal or mid; OUT is a folder to create
    python generate.py --all              the committed cases, each with the first seed that is accepted

A case folder is a checkpoint in the layout of facebook/musicgen-* with random weights, and `expected.safetensors`:
`text_states` (T, d_model) f32, `logits_0` and `logits_10` (codebooks, vocab) f32 after guidance, `tokens` (codebooks,
steps) i64 as sampled with the delay still in, `codes` (codebooks, frames) i64 without it, `audio` (channels, samples)
f32. `case.json` has the prompt, the guidance scale and the number of frames.

A seed is rejected if the two likeliest tokens of any step are closer than 1e-3 in logit: such a case would test the order
of a floating-point sum, not the model. Needs torch, transformers, tokenizers, safetensors.
"""

import json
import os
import shutil
import sys
from pathlib import Path

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import MusicgenConfig, MusicgenForConditionalGeneration

PROMPT = "a slow lo-fi beat with soft piano and rain"
STEPS = 60
GUIDANCE = 3.0
MIN_GAP = 1e-3
FIELDS = ("prompt", "guidance_scale", "frames")


def config(name):
    """The three parts' configurations; every size differs from every other, so that a swapped axis shows."""
    stereo, mid = name == "stereo", name == "mid"
    text = dict(vocab_size=96, d_model=24, d_kv=10, d_ff=40, num_layers=2, num_heads=3)
    text |= dict(relative_attention_num_buckets=8, relative_attention_max_distance=12)
    if stereo:
        text |= dict(feed_forward_proj="gated-gelu", d_model=32)
    audio = dict(sampling_rate=1600, audio_channels=1, hidden_size=12, num_filters=4, upsampling_ratios=[4, 4, 2])
    audio |= dict(codebook_size=64, target_bandwidths=[1.2], use_causal_conv=False, use_conv_shortcut=False)
    audio |= dict(kernel_size=7, last_kernel_size=7, norm_type="weight_norm", pad_mode="reflect")
    if stereo:
        audio |= dict(num_residual_layers=2, upsampling_ratios=[8, 4])
    if name == "causal":
        audio |= dict(use_causal_conv=True, use_conv_shortcut=True)
    decoder = dict(vocab_size=64, max_position_embeddings=128, num_hidden_layers=2, ffn_dim=56, num_attention_heads=4)
    decoder |= dict(hidden_size=32, num_codebooks=8 if stereo else 4, audio_channels=2 if stereo else 1)
    if mid:
        text = dict(vocab_size=96, d_model=768, d_kv=64, d_ff=3072, num_layers=4, num_heads=12)
        audio |= dict(sampling_rate=32000, hidden_size=128, num_filters=32, upsampling_ratios=[8, 5, 4, 4])
        audio |= dict(codebook_size=2048, target_bandwidths=[2.2])
        decoder = dict(vocab_size=2048, max_position_embeddings=2048, num_hidden_layers=8, ffn_dim=2048)
        decoder |= dict(hidden_size=512, num_attention_heads=8, num_codebooks=4, audio_channels=1)
    decoder |= dict(pad_token_id=decoder["vocab_size"], bos_token_id=decoder["vocab_size"])
    return MusicgenConfig(
        text_encoder=text | dict(model_type="t5"), audio_encoder=audio | dict(model_type="encodec"), decoder=decoder
    )


def model(name, seed):
    """A model whose weights are random but large enough that logits spread and audio is neither silent nor clipped."""
    torch.manual_seed(seed)
    model = MusicgenForConditionalGeneration(config(name)).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if key.startswith("audio_encoder") and "original0" not in key and not key.endswith("bias"):
                continue
            if "norm" in key and key.endswith("weight"):
                weight.copy_(1 + 0.2 * torch.randn_like(weight))
            elif key.startswith("audio_encoder"):
                weight.mul_(1 + 0.2 * torch.randn_like(weight))
            elif key.endswith("bias") or "relative_attention_bias" in key:
                weight.copy_(0.3 * torch.randn_like(weight))
            elif "embed_tokens" in key or "shared" in key:
                weight.copy_(torch.randn_like(weight))
            elif "lm_heads" in key:
                weight.copy_(torch.randn_like(weight) * 1.5 / weight.shape[1] ** 0.5)
            else:
                weight.copy_(torch.randn_like(weight) / weight.shape[1] ** 0.5)
        for layer in model.audio_encoder.quantizer.layers:
            layer.codebook.embed.copy_(torch.randn_like(layer.codebook.embed))
    generation = model.generation_config
    generation.pad_token_id = generation.decoder_start_token_id = generation.bos_token_id = model.config.decoder.vocab_size
    generation.eos_token_id = None
    return model


def tokenizer():
    """A unigram tokenizer that ends every text with </s>, as T5's does."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    corpus = [PROMPT, "drums and bass", "rock guitar with loud drums", "calm ambient pads", "80s pop track with synth"]
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        corpus, trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def case(name, seed, out):
    """Writes one case; returns the smallest gap, and writes nothing if it is under MIN_GAP."""
    reference, words = model(name, seed), tokenizer()
    inputs = torch.tensor([words.encode(PROMPT).ids])
    mask = torch.ones_like(inputs)
    with torch.no_grad():
        states = reference.text_encoder(input_ids=inputs, attention_mask=mask).last_hidden_state[0]
        captured = []
        decode = reference.audio_encoder.decode
        reference.audio_encoder.decode = lambda codes, **rest: (captured.append(codes), decode(codes, **rest))[1]
        result = reference.generate(
            inputs, attention_mask=mask, do_sample=False, guidance_scale=GUIDANCE, max_new_tokens=STEPS,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
    codebooks = reference.config.decoder.num_codebooks
    lanes = 2 if reference.config.decoder.audio_channels == 2 else 1
    scores = torch.stack([step.reshape(codebooks, -1) for step in result.scores])
    frames = STEPS + 1 - codebooks // lanes
    used = torch.tensor(
        [[0 <= step - book // lanes < frames for book in range(codebooks)] for step in range(STEPS)]
    )
    top = scores.topk(2, dim=-1).values
    gap = (top[..., 0] - top[..., 1])[used].min().item()
    if gap < MIN_GAP:
        return gap
    codes = captured[0][0, 0]
    if lanes == 2:
        codes = torch.stack([captured[0][0, 0], captured[1][0, 0]], dim=1).flatten(0, 1)
    assert codes.shape == (codebooks, frames), codes.shape

    shutil.rmtree(out, ignore_errors=True)
    reference.save_pretrained(out, max_shard_size="100KB" if name == "stereo" else "5GB")
    if name == "causal":
        # The same layout with torch's own file, as older checkpoints have it.
        old = {key: value.clone() for key, value in reference.state_dict().items()}
        torch.save(old, out / "pytorch_model.bin")
        (out / "model.safetensors").unlink()
    words.save(str(out / "tokenizer.json"))
    audio = result.sequences[0]
    save_file(
        dict(
            text_states=states.contiguous(), logits_0=scores[0].contiguous(), logits_10=scores[10].contiguous(),
            tokens=scores.argmax(-1).T.contiguous(), codes=codes.contiguous(), audio=audio.contiguous(),
        ),  # fmt: skip
        out / "expected.safetensors",
    )
    (out / "case.json").write_text(json.dumps(dict(zip(FIELDS, (PROMPT, GUIDANCE, frames)))) + "\n")
    peak, kinds = audio.abs().max().item(), len(codes.unique())
    print(f"{name}: seed {seed}, gap {gap:.1e}, peak {peak:.2f}, {kinds} distinct codes, {len(states)} text tokens")
    return gap


def first_accepted(name, out):
    """The first seed whose case is accepted."""
    for seed in range(200):
        if case(name, seed, out) >= MIN_GAP:
            return
    raise SystemExit(f"{name}: no seed was accepted")


if __name__ == "__main__":
    if sys.argv[1:] == ["--all"]:
        for name in ("mono", "stereo", "causal"):
            first_accepted(name, Path(__file__).parent / name)
    elif len(sys.argv) == 4:
        gap = case(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
        if gap < MIN_GAP:
            raise SystemExit(f"rejected: the smallest gap is {gap:.1e}, under {MIN_GAP}")
    else:
        raise SystemExit(__doc__)
