"""Torch's attention and product at the shapes of a step of FLUX.1 at 1024x1024; prints a line of JSON for each."""
import json, sys, time, torch

device = sys.argv[1]
card = device == "cuda"
tokens, heads, head, times = (4608, 24, 128, 20) if card else (528, 2, 128, 2)
dtype = torch.bfloat16


def measure(what, work, flops):
    for _ in range(3):
        work()
    if card:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        work()
    if card:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / times
    value = {"seconds": seconds, "tflops": flops / seconds / 1e12, "torch": torch.__version__}
    print(json.dumps({"what": what, "value": value, "verdict": "figure"}), flush=True)


q, k, v = (torch.randn(1, heads, tokens, head, device=device, dtype=dtype) for _ in range(3))
attention = torch.nn.functional.scaled_dot_product_attention
measure("torch: attention of a block", lambda: attention(q, k, v), 4 * heads * tokens * tokens * head)
x = torch.randn(tokens, heads * head, device=device, dtype=dtype)
w = torch.randn(heads * head, 7 * heads * head, device=device, dtype=dtype)
measure("torch: the first product of a single block", lambda: x @ w, 2 * tokens * 7 * (heads * head) ** 2)
