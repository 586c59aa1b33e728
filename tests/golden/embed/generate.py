"""Writes families/NAME/: a tiny random encoder or decoder of each family, and what it gives; and minilm.json, the vectors of a real one.

Needs torch, transformers and sentence-transformers:

    python generate.py families [NAME ...]
    python generate.py minilm FOLDER_OF_ALL_MINILM_L6_V2

Weights are random, rounded to half precision, and large enough that every part of a model counts. outputs.safetensors has `tokens`, two
sequences of 24 and 40 tokens one behind the other, and `vectors`, `[tokens, hidden]` f32, or `scores` of the sequences, by transformers
in float32.
"""

import json
import pathlib
import shutil
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, CONFIG_MAPPING

LENGTHS, VOCABULARY = (24, 40), 96
SMALL = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
)
MODERN = dict(num_hidden_layers=4, local_attention=16, global_attn_every_n_layers=3)
FAMILIES = {
    "bert": ("bert", AutoModel, dict()),
    "bert-score": ("bert", AutoModelForSequenceClassification, dict(num_labels=1)),
    "xlm-roberta": ("xlm-roberta", AutoModel, dict(pad_token_id=1, type_vocab_size=1)),
    "xlm-roberta-score": ("xlm-roberta", AutoModelForSequenceClassification, dict(pad_token_id=1, type_vocab_size=1, num_labels=1)),
    "nomic": ("nomic_bert", AutoModel, dict()),
    "modernbert": ("modernbert", AutoModel, MODERN),
    "qwen3": ("qwen3", AutoModel, dict(num_key_value_heads=2, head_dim=16)),
    "gemma3": ("gemma3_text", AutoModel, dict(num_key_value_heads=1, head_dim=16, num_hidden_layers=3, sliding_window=16, use_bidirectional_attention=True,
                                              layer_types=["sliding_attention", "full_attention", "sliding_attention"])),
    "modernbert-score": ("modernbert", AutoModelForSequenceClassification, MODERN | dict(num_labels=1, classifier_pooling="cls")),
}
TEXTS = [
    "A", "The cat sits outside", "A man is playing guitar", "The new movie is so great", "Der Hund schläft.", "日本語のテキスト", "Größe 42 🙂 naïve",
    "def add(a, b):\n    return a + b", "  many   spaces\tand tabs ", "UPPER lower MiXeD", "x" * 300, "word " * 120, "don't stop, can't won't (really)!", "...", "1,234.56 USD",
]


def families(*names: str) -> None:
    here = pathlib.Path(__file__).parent / "families"
    here.mkdir(exist_ok=True)
    for name in names or FAMILIES:
        model_type, kind, more = FAMILIES[name]
        torch.manual_seed(sum(name.encode()))
        config = CONFIG_MAPPING[model_type](**(SMALL | more))
        config._attn_implementation = "eager"
        model = kind.from_config(config, dtype=torch.float32).eval()
        randomise(model)
        out = here / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            model.save_pretrained(folder)
            weights = {key: value.to(torch.float16) for key, value in load_file(folder / "model.safetensors").items()}
            save_file(weights, out / "model.safetensors", {"format": "pt"})
            shutil.copy(folder / "config.json", out / "config.json")
        save_file(outputs(model), out / "outputs.safetensors")
        print(name, "done")


@torch.no_grad()
def randomise(model) -> None:
    for name, weight in model.named_parameters():
        size = weight.shape[-1]
        if "norm" in name.lower() or "emb_ln" in name:
            weight.add_(torch.randn_like(weight) * 0.3)
        elif name.endswith("bias"):
            weight.copy_(torch.randn_like(weight) * 0.5)
        elif "embeddings" in name:
            weight.copy_(torch.randn_like(weight))
        else:
            weight.copy_(torch.randn_like(weight) * 1.5 / size**0.5)
        weight.copy_(weight.to(torch.float16).float())


@torch.no_grad()
def outputs(model) -> dict:
    sequences = [torch.randint(3, VOCABULARY, (1, length)) for length in LENGTHS]
    given = [model(ids, attention_mask=torch.ones_like(ids)) for ids in sequences]
    tokens = torch.cat(sequences, -1)[0].int()
    if hasattr(given[0], "logits"):
        return {"tokens": tokens, "scores": torch.cat([one.logits[:, 0] for one in given]).float()}
    return {"tokens": tokens, "vectors": torch.cat([one.last_hidden_state[0] for one in given]).float().contiguous()}


def minilm(folder: str) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu")
    vectors = model.encode(TEXTS)
    counts = [len(model.tokenizer(text, truncation=True, max_length=256)["input_ids"]) for text in TEXTS]
    cases = [
        {"text": text, "tokens": count, "vector": [round(float(x), 6) for x in vector]}
        for text, count, vector in zip(TEXTS, counts, vectors)
    ]
    lines = ",\n".join(json.dumps(case) for case in cases)
    (pathlib.Path(__file__).parent / "minilm.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    {"families": families, "minilm": minilm}[sys.argv[1]](*sys.argv[2:])
