"""Sets the decoder's steps per second beside transformers' eager ones, in one run, turn and turn about.

    cargo build --release --workspace --examples
    python speed.py FOLDER target/release/examples/musicgen_speed [THREADS [ROUNDS]]

Writes the mid-size random checkpoint (width 512, 8 layers) to FOLDER if it is not there. Both sides hold the same f32
weights and make 200 greedy steps with guidance, two rows at once, with THREADS threads (2); the codec's part is left out
of both. A round is A B B A, ours first. Prints each side's median steps per second, and the median and the quartiles of
the rounds' ratios, ours over theirs. Needs torch and transformers.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
import transformers
from generate import GUIDANCE, PROMPT, model, tokenizer

STEPS = 200

folder, program = Path(sys.argv[1]), sys.argv[2]
threads, rounds = (int(value) for value in (*sys.argv[3:5], *(2, 5)[len(sys.argv) - 3 :]))
torch.set_num_threads(threads)
if not (folder / "config.json").exists():
    model("mid", 0).save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
reference = model("mid", 0)
reference.audio_encoder.decode = lambda codes, **rest: SimpleNamespace(audio_values=torch.zeros(1, 1, 1))
inputs = torch.tensor([tokenizer().encode(PROMPT).ids])
ours = subprocess.Popen(
    [program, str(folder), str(STEPS), str(threads), "f32", "turns"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
)  # fmt: skip


def our_steps():
    ours.stdin.write("\n")
    ours.stdin.flush()
    return STEPS / float(ours.stdout.readline())


@torch.no_grad()
def their_steps():
    start = time.perf_counter()
    reference.generate(
        inputs, attention_mask=torch.ones_like(inputs), guidance_scale=GUIDANCE, do_sample=False, max_new_tokens=STEPS
    )
    return STEPS / (time.perf_counter() - start)


for side in (our_steps, their_steps):
    side()
turns = [[our_steps(), their_steps(), their_steps(), our_steps()] for _ in range(rounds)]
ratios = [(a + d) / (b + c) for a, b, c, d in turns]
low, middle, high = statistics.quantiles(ratios, n=4)
median = lambda *columns: statistics.median(row[i] for row in turns for i in columns)
print(f"load {os.getloadavg()[0]:.2f}, {threads} threads, {rounds} rounds, torch {torch.__version__}, transformers {transformers.__version__}")
print(f"ours {median(0, 3):.1f} steps/s, transformers {median(1, 2):.1f} steps/s, ratio {middle:.2f} ({low:.2f} to {high:.2f})")
ours.stdin.close()
