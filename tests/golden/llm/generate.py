"""Writes greedy.json and tokenizer.json, what candle-llm is held against.

Needs torch, transformers, gguf, and a running llama-server of llama.cpp on the same GGUF file:

    llama-server -m smollm2-135m-instruct.q4_1.gguf --port 8099 &
    python generate.py smollm2-135m-instruct.q4_1.gguf http://127.0.0.1:8099

Of another model, whose tokens are then transformers' and which has no chats, only the greedy tokens, in a file of that name:

    python generate.py gemma-3-270m-q4_k_m.gguf gemma3.json

greedy.json: the model runs in transformers, in float32 over the dequantised weights. Per prompt: the token ids, the 32
greedy tokens, and per step the gap between the two likeliest tokens in natural-log probability. Generation goes on past
the end-of-sequence token. tokenizer.json: strings and their ids, from llama.cpp; the script says where transformers differs.
"""

import json
import pathlib
import sys
import urllib.request

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

STEPS = 32

CHATS = [
    "Who wrote Romeo and Juliet?",
    "What is the capital of France?",
    "Explain photosynthesis in one sentence.",
    "Write a haiku about the sea.",
    "What is 12 times 12?",
    "List three primary colours.",
    "Translate 'good morning' into Spanish.",
    "Write a Python function that adds two numbers.",
    "Why is the sky blue?",
    "Give me a recipe for pancakes.",
]
SYSTEM_CHAT = [
    {"role": "system", "content": "You answer in a single word."},
    {"role": "user", "content": "What colour is grass?"},
    {"role": "assistant", "content": "Green"},
    {"role": "user", "content": "And the sky?"},
]
PLAIN = [
    "Once upon a time",
    "The quick brown fox",
    "def fibonacci(n):\n    ",
    "In 1969, the first human",
    "The three laws of thermodynamics are",
    "Bonjour, je m'appelle",
    "1, 2, 3, 4, 5,",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it was the epoch of belief, "
    "it was the epoch of incredulity, it was the season of Light, it was the season of Darkness, it was the spring of hope, it was the winter of "
    "despair, we had everything before us, we had nothing before us, we were all going direct to Heaven, we were all going direct the other way. " * 2,
    "Water boils at",
]
MORE = [
    "Roses are red,\nviolets are", "The capital of Japan is", "<html>\n<head>\n<title>", "Il \u00e9tait une fois", "\u65e5\u672c\u306e\u9996\u90fd\u306f",
    "Dear Sir or Madam,\n\n", "import numpy as np\n\n", "2 + 2 = 4\n3 + 3 = 6\n4 + 4 =", "Q: Who wrote Hamlet?\nA:", "   indented text, and then", "\U0001f642\U0001f642",
]
STRINGS = [
    "", " ", "  ", "   leading", "trailing   ", "\n", "\n\n\n", "\t\ttabs\t", "a\r\nb\r\n", "Hello, world!", "hello world", " hello", "HELLO", "can't won't I'll you've they're I'd I'm it's",
    "CAN'T WON'T", "'s 't 're", "1234567890", "3.14159", "x1y22z333", "1,000,000", "½ ² Ⅳ ٣", "café naïve résumé", "cafe\u0301", "Straße", "日本語のテキスト", "你好，世界", "한국어", "Привет, мир",
    "مرحبا بالعالم", "שלום", "ไทย", "🙂", "👩‍👩‍👧‍👦 🇫🇷", "a🙂b", "\u200b\ufeff", "\u00a0nbsp\u00a0", "\u3000ideographic", "def f(x):\n    return x ** 2  # square\n", "for (int i = 0; i < 10; ++i) { a[i] += 1; }",
    "<div class=\"a\">&amp;</div>", "{\"key\": [1, 2.5, null]}", "SELECT * FROM t WHERE a='b';", "https://example.com/a?b=c&d=1#e", "user@example.com", "snake_case camelCase kebab-case", "...!!!???", "—–-", "“quotes” ‘single’",
    "$100 €50 £20 %5", "a" * 50, "word " * 20, "     five spaces     then", "line one\n  line two\n\tline three", "\\n escaped", "C:\\path\\file", "\x00\x01\x7f", "mixed 日本 and English 123 🙂!", "<|im_start|>user\nhi<|im_end|>\n", "a<|im_end|>b",
    "<|endoftext|>", "<|not_special|>", "<repo_name>x", "don'tdon't", " 's", "\n 12 \n", "end with newline\n",
]


def main(path: str, server: str) -> None:
    path = pathlib.Path(path).resolve()
    here = pathlib.Path(__file__).parent
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    if not server.startswith("http"):
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
        begin = [tokenizer.bos_token_id]
        ids = {text: begin + tokenizer(text, add_special_tokens=False)["input_ids"] for text in PLAIN + MORE}
        write(here / server, [{"prompt": text} | greedy(model, ids[text]) for text in ids])
        return

    def tokenize(text: str) -> list[int]:
        body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
        request = urllib.request.Request(server + "/tokenize", body, {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request))["tokens"]

    cases = []
    for text in STRINGS:
        ids = tokenize(text)
        other = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids != other:
            print(f"transformers differs from llama.cpp on {text!r}: {other} and {ids}")
        cases.append({"text": text, "ids": ids})
    write(here / "tokenizer.json", cases)

    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    chats = [[{"role": "user", "content": text}] for text in CHATS] + [SYSTEM_CHAT]
    cases = []
    for messages in chats:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        cases.append({"messages": messages} | greedy(model, tokenize(text)))
    for text in PLAIN:
        cases.append({"prompt": text} | greedy(model, tokenize(text)))
    write(here / "greedy.json", cases)


@torch.no_grad()
def greedy(model, ids: list[int]) -> dict:
    tokens, gaps, cache, feed = [], [], None, torch.tensor([ids])
    for _ in range(STEPS):
        out = model(feed, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        best = torch.log_softmax(out.logits[0, -1], -1).topk(2)
        tokens.append(best.indices[0].item())
        gaps.append(round((best.values[0] - best.values[1]).item(), 4))
        feed = torch.tensor([[tokens[-1]]])
    return {"ids": ids, "tokens": tokens, "gaps": gaps}


def write(path: pathlib.Path, cases: list[dict]) -> None:
    lines = ",\n".join(json.dumps(case, ensure_ascii=True) for case in cases)
    path.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
