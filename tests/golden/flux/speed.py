"""Sets the time of a step beside diffusers', in one run, turn and turn about.

    python generate.py mid 1 FOLDER
    cargo build --release -p aihost-flux --example flux_speed
    python speed.py FOLDER target/release/examples/flux_speed [THREADS [ROUNDS]]

Both sides hold the same f32 weights and compute in f32 with THREADS threads (2): 4 double and 8 single blocks of width 768,
256 x 256 pixels, 512 tokens of text. A round is A B B A, ours first. Prints each side's median step, and the median and
the quartiles of the rounds' ratios, ours over theirs: of seconds, and of seconds of CPU, which other work on the machine
distorts less (with one thread; with more, waiting threads count). Needs Linux, torch and diffusers.
"""

import os
import statistics
import subprocess
import sys
import time

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from diffusers import FluxTransformer2DModel

SIDE, TEXT = 256, 512

folder, program = sys.argv[1:3]
threads, rounds = (*map(int, sys.argv[3:5]), 2, 7)[:2] if len(sys.argv) != 4 else (int(sys.argv[3]), 7)
torch.set_num_threads(threads)
model = FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer", torch_dtype=torch.float32).eval()
config, tokens = model.config, SIDE // 16
ids = torch.zeros(tokens, tokens, 3)
ids[..., 1] += torch.arange(tokens)[:, None]
ids[..., 2] += torch.arange(tokens)
inputs = dict(
    hidden_states=torch.randn(1, tokens * tokens, config.in_channels),
    encoder_hidden_states=torch.randn(1, TEXT, config.joint_attention_dim),
    pooled_projections=torch.randn(1, config.pooled_projection_dim), timestep=torch.tensor([1.0]),
    guidance=torch.tensor([3.5]), img_ids=ids.reshape(-1, 3), txt_ids=torch.zeros(TEXT, 3),
)  # fmt: skip
ours = subprocess.Popen(
    [program, folder, str(threads), str(SIDE), str(SIDE), "4"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
)


def cpu_of(process):
    """Seconds of CPU that a process has used."""
    with open(f"/proc/{process}/stat") as file:
        fields = file.read().rsplit(")", 1)[-1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def our_step():
    before = cpu_of(ours.pid)
    ours.stdin.write("\n")
    ours.stdin.flush()
    taken = float(ours.stdout.readline())
    return taken, cpu_of(ours.pid) - before


@torch.no_grad()
def their_step():
    start, before = time.perf_counter(), time.process_time()
    model(**inputs)
    return time.perf_counter() - start, time.process_time() - before


for step in (our_step, their_step):
    step()
times = [[our_step(), their_step(), their_step(), our_step()] for _ in range(rounds)]
print(f"load {os.getloadavg()[0]:.2f}, {threads} threads, {rounds} rounds, torch {torch.__version__}")
for clock, name in enumerate(("", " of CPU")):
    ratios = [(a[clock] + d[clock]) / (b[clock] + c[clock]) for a, b, c, d in times]
    low, middle, high = statistics.quantiles(ratios, n=4)
    median = lambda *columns: statistics.median(row[i][clock] for row in times for i in columns)
    print(f"ours {median(0, 3):.3f} s{name}, diffusers {median(1, 2):.3f} s{name}, ratio {middle:.3f} ({low:.3f} to {high:.3f})")
ours.stdin.close()
