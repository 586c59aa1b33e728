"""Writes the golden cases of the musicgen plugin with transformers' MusicgenForConditionalGeneration as the reference.

    python generate.py CONFIG SEED OUT    one case: CONFIG is mono, stereo, causal or mid; OUT is a folder to create
    python generate.py --all              the committed cases, each with the first seed that is accepted

A case folder is a checkpoint in the layout of facebook/musicgen-* with random weights, and `expected.safetensors`:
`text_states` (T, d_model) f32, `logits_0` and `logits_10` (codebooks, vocab) f32 after guidance, `tokens` (codebooks,
steps) i64 as sampled with the delay still in, `codes` (codebooks, frames) i64 without it, `audio` (channels, samples)
f32. `long_codes` (codebooks, frames + frames - overlap) i64 are two windows, the second of which was given the last
`overlap` frames of the first. `sampled_codes` (codebooks, frames) i64 were drawn with `draws` (codebooks * frames) f64,
uniform in [0, 1): each is the first token, in the order of the vocabulary, at which the cumulative probability passes the
draw, step by step and within a step codebook by codebook, padding left out. `case.json` has the prompt, the guidance
scale, the number of frames, the overlap, and the temperature, top_k and top_p of the draws.

A seed is rejected if the two likeliest tokens of any step are closer than 1e-3 in logit, or if a draw comes closer than
3e-5 to the border of its token: such a case would test the order of a floating-point sum, not the model. Needs torch,
transformers, tokenizers, safetensors.
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
MIN_MARGIN = 3e-5
OVERLAP = 20
SAMPLING = dict(temperature=0.9, top_k=24, top_p=0.95)


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


def run(reference, inputs, **options):
    """The reference's answer and its codes (codebooks, frames), without the delay."""
    captured = []
    decode = reference.audio_encoder.decode
    reference.audio_encoder.decode = lambda codes, **rest: (captured.append(codes), decode(codes, **rest))[1]
    with torch.no_grad():
        result = reference.generate(
            inputs, attention_mask=torch.ones_like(inputs), guidance_scale=GUIDANCE, return_dict_in_generate=True,
            output_scores=True, **options,
        )  # fmt: skip
    reference.audio_encoder.decode = decode
    codes = captured[0][0, 0]
    if reference.config.decoder.audio_channels == 2:
        codes = torch.stack([captured[0][0, 0], captured[1][0, 0]], dim=1).flatten(0, 1)
    return result, codes


def smallest_gap(scores, used):
    """Between the two likeliest tokens, where `used` (steps, codebooks)."""
    top = scores.topk(2, dim=-1).values
    return (top[..., 0] - top[..., 1])[used].min().item()


def sample(reference, inputs, used, seed):
    """Codes that the reference draws with given uniform numbers, those numbers, and the smallest distance to a border."""
    draws = torch.rand(int(used.sum()), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    left, steps, margins = iter(draws.tolist()), iter(used.tolist()), []

    def multinomial(probabilities, num_samples):
        borders = probabilities.double().cumsum(-1)
        tokens = torch.zeros(len(borders), num_samples, dtype=torch.long)
        for book, asked in enumerate(next(steps)):
            if asked:
                goal = next(left) * borders[book, -1]
                tokens[book, 0] = int((borders[book] > goal).nonzero()[0, 0])
                margins.append((borders[book] - goal).abs().min().item())
        return tokens

    original, torch.multinomial = torch.multinomial, multinomial
    _, codes = run(reference, inputs, do_sample=True, max_new_tokens=STEPS, **SAMPLING)
    torch.multinomial = original
    assert next(left, None) is None, "the reference drew fewer tokens than the pattern has"
    return codes, draws, min(margins)


def case(name, seed, out):
    """Writes one case; returns why it is rejected, or nothing once it is written."""
    reference, words = model(name, seed), tokenizer()
    inputs = torch.tensor([words.encode(PROMPT).ids])
    with torch.no_grad():
        mask = torch.ones_like(inputs)
        states = reference.text_encoder(input_ids=inputs, attention_mask=mask).last_hidden_state[0]
    result, codes = run(reference, inputs, do_sample=False, max_new_tokens=STEPS)
    codebooks = reference.config.decoder.num_codebooks
    lanes = 2 if reference.config.decoder.audio_channels == 2 else 1
    scores = torch.stack([step.reshape(codebooks, -1) for step in result.scores])
    frames = STEPS + 1 - codebooks // lanes
    assert codes.shape == (codebooks, frames), codes.shape
    used = torch.tensor(
        [[0 <= step - book // lanes < frames for book in range(codebooks)] for step in range(STEPS)]
    )
    given = codes[:, -OVERLAP:]
    more, window = run(reference, inputs, do_sample=False, max_new_tokens=STEPS - OVERLAP, decoder_input_ids=given)
    assert window.shape == codes.shape and torch.equal(window[:, :OVERLAP], given), "the given codes were changed"
    long_codes = torch.cat([codes, window[:, OVERLAP:]], dim=1)
    # A step that goes on from given codes asks for those that are not given.
    asked = used[OVERLAP:].clone()
    for book in range(codebooks):
        asked[: book // lanes, book] = False
    more = torch.stack([step.reshape(codebooks, -1) for step in more.scores])
    gap = min(smallest_gap(scores, used), smallest_gap(more, asked))
    if gap < MIN_GAP:
        return f"the smallest gap is {gap:.1e}, under {MIN_GAP}"
    sampled, draws, margin = sample(reference, inputs, used, seed)
    if margin < MIN_MARGIN:
        return f"a draw is {margin:.1e} from a border, under {MIN_MARGIN}"

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
            long_codes=long_codes.contiguous(), sampled_codes=sampled.contiguous(), draws=draws,
        ),  # fmt: skip
        out / "expected.safetensors",
    )
    facts = dict(prompt=PROMPT, guidance_scale=GUIDANCE, frames=frames, overlap=OVERLAP, **SAMPLING)
    (out / "case.json").write_text(json.dumps(facts) + "\n")
    peak, kinds = audio.abs().max().item(), len(codes.unique())
    print(f"{name}: seed {seed}, gap {gap:.1e}, margin {margin:.1e}, peak {peak:.2f}, {kinds} distinct codes")


def first_accepted(name, out):
    """The first seed whose case is accepted."""
    for seed in range(200):
        if case(name, seed, out) is None:
            return
    raise SystemExit(f"{name}: no seed was accepted")


if __name__ == "__main__":
    if sys.argv[1:] == ["--all"]:
        for name in ("mono", "stereo", "causal"):
            first_accepted(name, Path(__file__).parent / name)
    elif len(sys.argv) == 4:
        why = case(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
        if why:
            raise SystemExit(f"rejected: {why}")
    else:
        raise SystemExit(__doc__)
