#!/usr/bin/env python3
"""How far the log-probabilities of a text are from those that torch computes in f32 with the same weights, dequantised, and how far
the weights' own format moves those. Needs torch, transformers and gguf, and a build of the host with candle-llm beside it:

logprobs.py BUILD_FOLDER TEXT_FILE FILE.gguf...     the last file's weights are what formats are held against
"""
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import urllib.request

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ADDRESS = "127.0.0.1:9477"
CHARACTERS = 1600


def main():
    build, text, *files = sys.argv[1:]
    with open(text, encoding="utf-8") as file:
        text = file.read()[:CHARACTERS]
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(f"{folder}/plugins")
        os.symlink(os.path.abspath(f"{build}/libcandle_llm.so"), f"{folder}/plugins/candle-llm.so")
        entries = "".join(
            f"  m{number}: {{type: text, plugin: candle-llm, source: {{path: {os.path.abspath(file)}}}}}\n"
            for number, file in enumerate(files)
        )
        with open(f"{folder}/models.yaml", "w", encoding="utf-8") as file:
            file.write(f"listen: {ADDRESS}\nplugins_dir: plugins\nmodels_dir: models\nstate_dir: state\nmodels:\n{entries}")
        serve = [f"{build}/aihost", "serve", "--config", f"{folder}/models.yaml"]
        with subprocess.Popen(serve, stderr=subprocess.DEVNULL) as host:
            try:
                measure(text, files)
            finally:
                host.terminate()


def measure(text, files):
    exact = []
    for number, file in enumerate(files):
        told = ours(f"m{number}", text)
        exact.append(reference(file, text))
        print(os.path.basename(file), f"{len(exact[-1])} tokens, kernels:", distance(told, exact[-1]), flush=True)
    for file, logprobs in zip(files[:-1], exact):
        print(os.path.basename(file), "format:", distance(logprobs, exact[-1]))


def ours(model, text):
    body = {"model": model, "prompt": text, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    request = urllib.request.Request(
        f"http://{ADDRESS}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    for _ in range(100):
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)["choices"][0]["logprobs"]["token_logprobs"][1:]
        except urllib.error.URLError:
            time.sleep(0.1)
    raise SystemExit("the host does not answer")


def reference(file, text):
    folder, name = os.path.split(os.path.abspath(file))
    tokens = AutoTokenizer.from_pretrained(folder, gguf_file=name)(text, return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    with torch.no_grad():
        logprobs = torch.log_softmax(model(tokens).logits[0].double(), -1)
    return [logprobs[at, tokens[0, at + 1]].item() for at in range(tokens.shape[1] - 1)]


def distance(some, others):
    apart = [a - b for a, b in zip(some, others)]
    square = math.sqrt(sum(x * x for x in apart) / len(apart))
    return f"{square:.5f} nats (root of the mean square), {max(map(abs, apart)):.5f} at most"


main()
